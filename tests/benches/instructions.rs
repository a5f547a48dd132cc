//! Instructions a packet costs, counted by callgrind: the same on every machine, however busy.
//!
//! `receive`: from a burst that came from the wire to the stored used index. `transmit`: from the kick to the burst
//! that goes on the wire. 32 packets of 64 octets each (IPv4, UDP), one queue pair, rings of 256, INDIRECT_DESC,
//! EVENT_IDX, MRG_RXBUF, CSUM and GUEST_CSUM; the receive checksum is verified. The figures that callgrind
//! prints are for the whole burst. `receive` is measured twice: `udp_64_rss` with all that the card offers, so that each packet is
//! hashed by all types and has its hash in the header, and `plain` with neither RSS nor HASH_REPORT, which then cost nothing.
//!
//! `wire_to_socket`: everything, card and guest, in virtual time: from the generator on the wire by way of the card, its
//! moderation (64 us, 256 frames), interrupt, NAPI, IP and UDP to the buffer of a process that calls `recvfrom`. 64-octet
//! frames at the rate of a 1 Gb/s line.
//!
//! Run with `cargo bench -p nic-testbed --bench instructions`; it takes valgrind and gungraun-runner.

// What the macros of gungraun make has no documentation, and full names.
#![allow(missing_docs, unused_qualifications)]

use std::cell::RefCell;
use std::hint::black_box;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use nic_backend::card::Card;
use nic_backend::wire::{PortFacts, WireSpec};
use nic_device::features::Features;
use nic_device::nic::Nic;
use nic_guest::memory::GuestMemory;
use nic_guest::net::CpuCost;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nic_model::frame::Frame;
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;
use nic_testbed::measure::closed_form::Arrivals;
use nic_testbed::measure::{Experiment, Testbed};

/// Packets in a burst.
const BURST: usize = 32;
/// Instructions that a packet may cost in either direction.
const LIMIT: u64 = 600;

/// Packets on their way from the wire to the socket.
const THROUGH: u64 = 9_600;
/// Instructions that a packet may cost on all of that way.
const THROUGH_LIMIT: u64 = 1_500;

/// A guest and a card with a burst for one direction at hand.
struct Bench {
    /// Keeps the guest's memory and rings in place.
    guest: VirtnetInfo<InProcess>,
    card: Rc<RefCell<Card>>,
    now: Nanos,
    rx: Vec<Frame>,
    tx: Vec<Frame>,
}

impl Bench {
    /// One burst goes each way before, so that nothing is done for the first time.
    fn new(offered: Features) -> (Self, Vec<Frame>) {
        let config = PortConfig::default();
        let facts = PortFacts {
            mac: config.mac,
            mtu: config.mtu,
            speed: config.speed,
        };
        // The generator's frames are those of a real sender; making them is not measured.
        let spec: WireSpec = "generator:size=64,flows=16".parse().expect("a wire");
        let mut source = spec.open(&facts).expect("a generator");
        source.link_changed(Nanos::ZERO, true);
        let none = WireSpec::None.open(&facts).expect("no wire");
        let card = Card::new(Nic::new(&config, offered), none, Nanos::ZERO);
        let memory = GuestMemory::new(16 << 20).expect("guest memory");
        let transport = InProcess::new(card, memory).expect("a card");
        let card = transport.card();
        let guest = VirtnetInfo::probe(transport, &ProbeOptions::default()).expect("a device");
        let mut bench = Bench {
            guest,
            card,
            now: Nanos(1_000_000_000),
            rx: Vec::with_capacity(BURST),
            tx: Vec::with_capacity(BURST),
        };
        let mut burst = || {
            let pool = &mut bench.card.borrow_mut().nic.port.pool;
            let mut frames = Vec::with_capacity(BURST);
            source.receive(bench.now, BURST, pool, &mut frames);
            assert_eq!(frames.len(), BURST);
            frames
        };
        let (first, second) = (burst(), burst());
        bench.send(first[0].bytes());
        bench.rx = first;
        bench.poll();
        let sent: Vec<_> = bench.tx.drain(..).collect();
        bench.card.borrow_mut().nic.port.pool.give_all(sent);
        bench.now = Nanos(2_000_000_000);
        // What the line had yet to carry arrives.
        bench.poll();
        (bench, second)
    }

    /// The guest queues a burst and kicks.
    fn send(&mut self, frame: &[u8]) {
        for _ in 0..BURST {
            let header = VirtioNetHdr::default();
            self.guest.start_xmit(0, frame, &header).expect("room");
        }
        self.guest.flush(0);
    }

    /// What is measured.
    fn poll(&mut self) {
        let nic = &mut self.card.borrow_mut().nic;
        nic.poll(self.now, &mut self.rx, &mut self.tx);
    }
}

/// All that a card with one queue pair can do.
fn everything() -> Features {
    Features::supported(1)
}

fn before_receive(offered: Features) -> Bench {
    let (mut bench, burst) = Bench::new(offered);
    bench.rx = burst;
    // The line has had the time to carry them.
    for frame in &mut bench.rx {
        frame.arrival = Nanos::ZERO;
    }
    bench.now = Nanos(3_000_000_000);
    bench
}

fn before_transmit() -> Bench {
    let (mut bench, burst) = Bench::new(everything());
    bench.send(burst[0].bytes());
    bench.card.borrow_mut().nic.port.pool.give_all(burst);
    bench
}

#[library_benchmark(config = limited_to(LIMIT * BURST as u64))]
#[bench::udp_64_rss(before_receive(everything()))]
#[bench::plain(before_receive(everything() - (Features::RSS | Features::HASH_REPORT)))]
fn receive(mut bench: Bench) -> Bench {
    bench.poll();
    black_box(bench)
}

#[library_benchmark(config = limited_to(LIMIT * BURST as u64))]
#[bench::udp_64(before_transmit())]
fn transmit(mut bench: Bench) -> Bench {
    bench.poll();
    black_box(bench)
}

/// A load that has been running for a while.
fn before_wire_to_socket() -> (Testbed, Nanos) {
    let mut experiment = Experiment {
        pps: NonZeroU64::new(1_488_095).expect("a rate"),
        frame_size: 64,
        coalesce: "rx-usecs=64,rx-frames=256".parse().expect("a moderation"),
        arrivals: Arrivals::Constant,
        speed: "1G".parse().expect("a speed"),
        duration: Duration::ZERO,
        seed: 1,
        cost: CpuCost::default(),
        poll: false,
    };
    experiment.duration = Duration::from_nanos(THROUGH * 1_000_000_000 / experiment.pps);
    let mut testbed = Testbed::start(&experiment).expect("a testbed");
    let warm = testbed.now() + Duration::from_millis(5);
    testbed.run_until(warm).expect("a sound guest");
    let end = testbed.now() + experiment.duration;
    (testbed, end)
}

#[library_benchmark(config = limited_to(THROUGH_LIMIT * THROUGH))]
#[bench::udp_64(before_wire_to_socket())]
fn wire_to_socket((mut testbed, end): (Testbed, Nanos)) -> Testbed {
    testbed.run_until(end).expect("a sound guest");
    black_box(testbed)
}

fn limited_to(instructions: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, instructions)]));
    config
}

library_benchmark_group!(name = data_path; benchmarks = receive, transmit, wire_to_socket);

main!(library_benchmark_groups = data_path);
