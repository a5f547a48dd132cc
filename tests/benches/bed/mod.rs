//! What the benches of the data path share: a card with a guest that has set it up, and bursts at hand for one direction.
//!
//! All frames are UDP datagrams to the card's own address, as short as there are: 64 octets with IPv4, 66 with IPv6, the check
//! sequence included. Frames of the same flow are the same, and no two flows have the same address and port.

#![allow(dead_code)] // shared by several benches; none uses all of it

use std::cell::RefCell;
use std::net::Ipv6Addr;
use std::rc::Rc;
use std::time::Duration;

use etherparse::PacketBuilder;
use nic_backend::card::Card;
use nic_backend::wire::{PortFacts, WireSpec};
use nic_device::features::Features;
use nic_device::nic::Nic;
use nic_guest::memory::GuestMemory;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::rss::RssConfig;
use nic_guest::virtio_net::toeplitz::VERIFICATION_KEY;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};
use nic_model::frame::Frame;
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

/// Packets in a burst.
pub const BURST: usize = nic_testbed::baseline::BURST as usize;

/// Which internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    V4,
    V6,
}

/// A frame of flow `flow`.
pub fn frame(ip: Ip, flow: u32) -> Vec<u8> {
    let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 0x77, 1], PortConfig::default().mac.0);
    // 64 Ki ports an address.
    let [_, host, a, b] = flow.to_be_bytes();
    let port = u16::from_be_bytes([a, b]);
    let mut bytes = Vec::new();
    let written = match ip {
        Ip::V4 => ether
            .ipv4([10, 77, 1, host], [10, 77, 0, 2], 64)
            .udp(port, 9)
            .write(&mut bytes, &[0x55; 60 - 42]),
        Ip::V6 => {
            let address = |last| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, last).octets();
            ether
                .ipv6(address(0x100 | u16::from(host)), address(2), 64)
                .udp(port, 9)
                .write(&mut bytes, &[])
        }
    };
    written.expect("there is room in a vector");
    bytes
}

/// Flows of which each has its turn before one has it again.
pub fn flows_in_turn(flows: u32) -> impl Iterator<Item = u32> {
    (0..flows).cycle()
}

/// What card and guest are like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What the card offers.
    pub offered: Features,
    /// What the guest takes of it.
    pub accepted: u64,
    /// Queue pairs, all of them in use.
    pub pairs: u16,
}

impl Default for Shape {
    /// Everything on one queue pair with split rings, but for super-frames, whose buffers are large.
    fn default() -> Self {
        Shape {
            offered: Features::supported(1),
            accepted: f::USUAL & !f::SEGMENTATION,
            pairs: 1,
        }
    }
}

impl Shape {
    /// Everything, on `pairs` queue pairs.
    pub fn of(pairs: u16) -> Self {
        Shape {
            offered: Features::supported(pairs),
            pairs,
            ..Shape::default()
        }
    }

    /// The same with packed rings.
    pub fn packed(mut self) -> Self {
        self.accepted |= f::RING_PACKED;
        self
    }

    /// Everything but `features`.
    pub fn without(mut self, features: Features) -> Self {
        self.offered -= features;
        self
    }
}

/// A guest and a card with bursts for one direction at hand.
pub struct Bed {
    /// Keeps the guest's memory and rings in place.
    pub guest: VirtnetInfo<InProcess>,
    /// The card.
    pub card: Rc<RefCell<Card>>,
    now: Nanos,
    /// What the wire brings, one burst a poll.
    rx: Vec<Vec<Frame>>,
    tx: Vec<Frame>,
}

impl Bed {
    /// A bed without bursts. One of each kind went each way on every pair before, so that nothing is done for the first time.
    pub fn new(shape: &Shape) -> Self {
        let config = PortConfig {
            queue_pairs: shape.pairs,
            ..PortConfig::default()
        };
        let facts = PortFacts::of(&config);
        let none = WireSpec::None.open(&facts).expect("no wire");
        let card = Card::new(Nic::new(&config, shape.offered), none, Nanos::ZERO);
        let memory = GuestMemory::new(160 << 20).expect("guest memory");
        let transport = InProcess::new(card, memory).expect("a card");
        let card = transport.card();
        let options = ProbeOptions {
            features: shape.accepted,
            queue_pairs: shape.pairs,
            queue_size: 1024,
            // No chance in here.
            rss_key: Some(VERIFICATION_KEY),
            ..ProbeOptions::default()
        };
        let mut guest = VirtnetInfo::probe(transport, &options).expect("a device");
        if shape.pairs > 1 {
            let even = RssConfig {
                hash_types: 0x1ff,
                unclassified_queue: 0,
                indirection_table: (0..128).map(|entry| entry % shape.pairs).collect(),
                max_tx_vq: shape.pairs,
                key: VERIFICATION_KEY.to_vec(),
            };
            guest.set_rss(&even).expect("RSS");
        }
        let mut bed = Bed {
            guest,
            card,
            now: Nanos(1_000_000_000),
            rx: Vec::new(),
            tx: Vec::with_capacity(1024),
        };
        bed.send(Ip::V4);
        bed.arrive(Ip::V4, 1, flows_in_turn(BURST as u32));
        bed.poll();
        bed.now = Nanos(2_000_000_000);
        // What the line had yet to carry arrives.
        bed.poll();
        let sent: Vec<_> = bed.tx.drain(..).collect();
        bed.card.borrow_mut().nic.port.pool.give_all(sent);
        bed.rx.clear();
        bed.now = Nanos(3_000_000_000);
        bed
    }

    /// The guest queues a burst, spread over its pairs, and kicks.
    pub fn send(&mut self, ip: Ip) {
        let pairs = self.guest.rq.len() as u16;
        for n in 0..BURST as u16 {
            let header = VirtioNetHdr::default();
            let frame = frame(ip, n.into());
            self.guest
                .start_xmit(n % pairs, &frame, &header)
                .expect("room");
        }
        for pair in 0..pairs {
            self.guest.flush(pair);
        }
        if self.rx.is_empty() {
            self.rx.push(Vec::with_capacity(BURST));
        }
    }

    /// The wire brings `bursts` bursts of `flows`; the line has had the time to carry them.
    pub fn arrive(&mut self, ip: Ip, bursts: usize, flows: impl Iterator<Item = u32>) {
        self.arrive_in(ip, bursts, BURST, flows);
    }

    /// The same, with `length` frames a burst.
    pub fn arrive_in(
        &mut self,
        ip: Ip,
        bursts: usize,
        length: usize,
        mut flows: impl Iterator<Item = u32>,
    ) {
        let pool = &mut self.card.borrow_mut().nic.port.pool;
        self.rx = (0..bursts)
            .map(|_| {
                let frames = flows.by_ref().take(length).map(|flow| {
                    let mut taken = pool.take();
                    assert!(taken.fill(&frame(ip, flow)), "it fits");
                    taken
                });
                frames.collect()
            })
            .collect();
    }

    /// The wire brings nothing `polls` times.
    pub fn stay_idle(&mut self, polls: usize) {
        self.rx = (0..polls).map(|_| Vec::new()).collect();
    }

    /// What is measured: the card is polled, once for each burst.
    pub fn poll(&mut self) {
        let nic = &mut self.card.borrow_mut().nic;
        for burst in &mut self.rx {
            nic.poll(self.now, burst, &mut self.tx);
            self.now += Duration::from_millis(1);
        }
    }
}

impl Drop for Bed {
    /// What was measured did happen.
    fn drop(&mut self) {
        let nic = &self.card.borrow().nic;
        let counters = nic.counters();
        assert_eq!(counters.drops.total(), 0, "{counters:?}");
        assert_eq!(nic.queues.frames(), 0, "all were delivered");
    }
}
