//! Instructions that each block of the card takes of a packet, so that a rise in `instructions.rs` has an address.
//!
//! 32 frames each, the shortest of UDP over IPv4 (64 octets), of 16 flows; `parse_ipv6` and `toeplitz_ipv6` over IPv6. `ring_split`: fetch and
//! complete 32 chains of one writable descriptor. `dma_receive` and `dma_transmit`: ring, header and copy, what the device does of a
//! burst. The names are those of `instructions.json`.

// What the macros of gungraun make has no documentation, and full names.
#![allow(missing_docs, unused_qualifications)]

mod bed;

use std::hint::black_box;
use std::sync::Arc;

use gungraun::{library_benchmark, library_benchmark_group, main};
use nic_device::features::Features;
use nic_device::memory::{Access, GuestMemory};
use nic_device::ring::{Layout, Ring};
use nic_device::split::SplitRing;
use nic_model::checksum::{self, Verdict};
use nic_model::counters::Drops;
use nic_model::fifo::{Fifo, Occupancy};
use nic_model::filter::Filter;
use nic_model::frame::{Contents, Frame, Pool};
use nic_model::host::{Direction, Host, QueueIndex};
use nic_model::mac::Mac;
use nic_model::moderation::{Coalesce, Moderation, Packet};
use nic_model::parse::{Summary, summarise};
use nic_model::phy::{Phy, Speed, octets_on_line};
use nic_model::port::{Port, PortConfig};
use nic_model::rss::{HashConfig, Hasher, Progress, Rss, RssConfig};
use nic_model::time::Nanos;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use bed::{BURST, Bed, Ip, Shape, flows_in_turn, frame};

/// Flows of the frames.
const FLOWS: u32 = 16;
/// Entries of the ring.
const RING: u16 = 256;

/// A burst as it comes from the wire, each frame with what the parser says of it.
struct Frames {
    pool: Pool,
    frames: Vec<Frame>,
    summaries: Vec<Summary>,
}

fn frames(ip: Ip) -> Frames {
    let mut pool = Pool::new(Port::buffer_size(&PortConfig::default()));
    let frames: Vec<_> = flows_in_turn(FLOWS)
        .take(BURST)
        .map(|flow| {
            let mut taken = pool.take();
            assert!(taken.fill(&frame(ip, flow)), "it fits");
            taken
        })
        .collect();
    let summaries = frames.iter().map(|frame| summarise(frame.bytes()));
    Frames {
        summaries: summaries.collect(),
        pool,
        frames,
    }
}

impl Frames {
    /// Each frame's octets and headers.
    fn parsed(&self) -> impl Iterator<Item = (&[u8], &Summary)> {
        let contents = self.frames.iter().map(|frame| &**frame);
        contents.map(Contents::bytes).zip(&self.summaries)
    }
}

#[library_benchmark]
#[bench::parse(frames(Ip::V4))]
#[bench::parse_ipv6(frames(Ip::V6))]
fn parse(burst: Frames) -> Frames {
    for frame in &burst.frames {
        black_box(summarise(frame.bytes()));
    }
    burst
}

#[library_benchmark]
#[bench::checksum(frames(Ip::V4))]
fn verify(burst: Frames) -> Frames {
    for (frame, summary) in burst.parsed() {
        assert!(checksum::verify(frame, summary) == Verdict::Good);
    }
    burst
}

/// A card that steers by hash, and hears nothing of its FIFOs.
struct Steering(Rss, Frames);

struct Empty;

impl Progress for Empty {
    fn pushed(&self, _queue: QueueIndex) -> u64 {
        0
    }

    fn drained(&self, _queue: QueueIndex) -> u64 {
        0
    }
}

fn steering() -> Steering {
    let mut rss = Rss::new(4);
    let even = RssConfig::even(HashConfig::usual(), 4);
    rss.set_table(&even, &Empty).expect("a table");
    Steering(rss, frames(Ip::V4))
}

#[library_benchmark]
#[bench::rss(steering())]
fn steer(steering: Steering) -> Steering {
    let Steering(mut rss, burst) = steering;
    for (frame, summary) in burst.parsed() {
        black_box(rss.steer(frame, summary, &Empty));
    }
    Steering(rss, burst)
}

fn hashing(ip: Ip) -> (Hasher, Frames) {
    (Hasher::new(HashConfig::usual()), frames(ip))
}

#[library_benchmark]
#[bench::toeplitz(hashing(Ip::V4))]
#[bench::toeplitz_ipv6(hashing(Ip::V6))]
fn hash((hasher, burst): (Hasher, Frames)) -> (Hasher, Frames) {
    for (frame, summary) in burst.parsed() {
        black_box(hasher.hash(frame, summary));
    }
    (hasher, burst)
}

fn filtering() -> (Filter, Frames) {
    let mut filter = Filter::new(PortConfig::default().mac);
    filter.active = true;
    (filter, frames(Ip::V4))
}

#[library_benchmark]
#[bench::filter(filtering())]
fn admit((filter, burst): (Filter, Frames)) -> (Filter, Frames) {
    for frame in &burst.frames {
        assert!(black_box(filter.admit(frame.bytes())).is_ok());
    }
    (filter, burst)
}

fn mac() -> (Mac, Frames) {
    (Mac::new(PortConfig::default().mtu), frames(Ip::V4))
}

#[library_benchmark]
#[bench::mac(mac())]
fn accept((mac, mut burst): (Mac, Frames)) -> (Mac, Frames) {
    for frame in &mut burst.frames {
        assert!(black_box(mac.accept(frame)).is_ok());
    }
    (mac, burst)
}

fn phy() -> (Phy, Frames) {
    let speed: Speed = "10G".parse().expect("a speed");
    (Phy::new(speed, true), frames(Ip::V4))
}

#[library_benchmark]
#[bench::phy(phy())]
fn carry((mut phy, mut burst): (Phy, Frames)) -> (Phy, Frames) {
    for frame in &mut burst.frames {
        frame.arrival = phy.rx.carry(octets_on_line(frame), frame.arrival);
    }
    (phy, burst)
}

/// A FIFO with its account, and the burst.
struct Fifos {
    fifo: Fifo,
    occupancy: Occupancy,
    pool: Pool,
    frames: Vec<Frame>,
}

fn fifos() -> Fifos {
    let burst = frames(Ip::V4);
    Fifos {
        fifo: Fifo::default(),
        occupancy: Occupancy::new(PortConfig::default().fifo),
        pool: burst.pool,
        frames: burst.frames,
    }
}

#[library_benchmark]
#[bench::fifo(fifos())]
fn pass(mut fifos: Fifos) -> Fifos {
    for frame in &mut fifos.frames {
        assert!(fifos.occupancy.push(frame), "there is room");
    }
    fifos.fifo.append(&mut fifos.frames);
    let left = fifos.fifo.drain(BURST);
    fifos.occupancy.drain(left.as_slice());
    fifos.pool.give_all(left);
    fifos
}

/// A moderation that no timer ends, and when the frames come.
fn moderating() -> (Moderation, Vec<Nanos>) {
    let coalesce = Coalesce {
        usecs: 64,
        frames: 256,
    };
    let instants = (0..BURST as u64).map(|n| Nanos(n * 67));
    let speed = Speed::from_mbps(10_000).expect("a rate");
    let moderation = Moderation::new(coalesce, Direction::Receive, speed);
    (moderation, instants.collect())
}

#[library_benchmark]
#[bench::moderation(moderating())]
fn moderate((mut moderation, at): (Moderation, Vec<Nanos>)) -> (Moderation, Vec<Nanos>) {
    let packets = at.iter().map(|&at| Packet { at, octets: 60 });
    moderation.packets(packets, Nanos(10_000));
    black_box(moderation.take_due());
    (moderation, at)
}

/// A ring whose driver has posted a burst of buffers.
struct Posted<R> {
    ring: R,
    memory: Arc<GuestMemory>,
}

/// Where things are in guest memory.
const LAYOUT: Layout = Layout {
    size: RING,
    descriptors: 0,
    driver: 0x1_0000,
    device: 0x2_0000,
    base: None,
};
const BUFFERS: u64 = 0x10_0000;
const BUFFER: u32 = 2048;

fn split() -> Posted<SplitRing> {
    let ranges = [(GuestAddress(0), 4 << 20)];
    let mapped = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("guest memory");
    let write = |bytes: &[u8], at| mapped.write_slice(bytes, GuestAddress(at)).expect("memory");
    for n in 0..BURST as u64 {
        let address = BUFFERS + n * u64::from(BUFFER);
        write(&address.to_le_bytes(), 16 * n);
        write(&BUFFER.to_le_bytes(), 16 * n + 8);
        // VIRTQ_DESC_F_WRITE
        write(&2_u16.to_le_bytes(), 16 * n + 12);
        write(&(n as u16).to_le_bytes(), LAYOUT.driver + 4 + 2 * n);
    }
    write(&(BURST as u16).to_le_bytes(), LAYOUT.driver + 2);
    let memory = Arc::new(GuestMemory::new(Arc::new(mapped)));
    let features = Features::VERSION_1 | Features::EVENT_IDX | Features::INDIRECT_DESC;
    let ring = SplitRing::new(memory.clone(), &LAYOUT, features).expect("a ring");
    Posted { ring, memory }
}

/// For a ring of any layout.
fn use_up<R: Ring>(posted: &mut Posted<R>) {
    let Posted { ring, memory } = posted;
    assert!(ring.begin() == Ok(BURST as u16), "a burst is there");
    let used = ring.use_places(memory, Access::Write, BURST, |place| {
        black_box(&place);
        Some(72)
    });
    assert!(used == BURST, "all of it");
    ring.publish();
    black_box(ring.needs_interrupt());
}

#[library_benchmark]
#[bench::ring_split(split())]
fn ring(mut posted: Posted<SplitRing>) -> Posted<SplitRing> {
    use_up(&mut posted);
    posted
}

fn dma(sends: bool) -> (Bed, Frames) {
    let mut bed = Bed::new(&Shape::default());
    let mut burst = frames(Ip::V4);
    if sends {
        bed.send(Ip::V4);
        // The pool has buffers for what is fetched.
        burst.pool.give_all(burst.frames.drain(..));
    }
    (bed, burst)
}

#[library_benchmark]
#[bench::dma_receive(dma(false))]
fn deliver((bed, burst): (Bed, Frames)) -> (Bed, Frames) {
    let mut drops = Drops::default();
    let mut card = bed.card.borrow_mut();
    let taken = card
        .nic
        .device
        .deliver(QueueIndex(0), &burst.frames, &mut drops);
    assert!(taken == BURST);
    drop(card);
    (bed, burst)
}

#[library_benchmark]
#[bench::dma_transmit(dma(true))]
fn fetch((bed, mut burst): (Bed, Frames)) -> (Bed, Frames) {
    let mut drops = Drops::default();
    let mut card = bed.card.borrow_mut();
    let device = &mut card.nic.device;
    let (pool, frames) = (&mut burst.pool, &mut burst.frames);
    let taken = device
        .fetch_tx(QueueIndex(0), BURST, pool, frames, &mut drops)
        .frames;
    assert!(taken == BURST);
    device.complete_tx(QueueIndex(0));
    drop(card);
    (bed, burst)
}

library_benchmark_group!(
    name = blocks;
    benchmarks = parse, verify, hash, steer, admit, accept, carry, pass, moderate, ring, deliver, fetch
);

main!(library_benchmark_groups = blocks);
