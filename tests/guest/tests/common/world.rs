//! A NIC, its wire and the clock, in the kernel's own process: virtual time, and an honest device.
//!
//! What the test schedules arrives when the clock gets there: because the test moves it, or because
//! the kernel is busy. The device respects what the driver says of interrupts, and keeps what was sent.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nic_guest::memory::GuestMemory;
use nic_guest::net::{Kernel, KernelConfig, Machine};
use nic_guest::transport::{QueueConfig, Transport, TransportError};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::{MAX_HDR_LEN, VirtioNetHdr};
use nic_guest::virtio_net::rss::RssConfig;
use nic_guest::virtio_net::toeplitz::VERIFICATION_KEY;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};

use super::rings::DeviceRing;

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// What the device offers unless a test says otherwise.
pub const FEATURES: u64 = f::VERSION_1 | f::MAC | f::CSUM | f::GUEST_CSUM | f::EVENT_IDX;

/// `features` over each kind of ring: split or packed, any order or one, flags or event indices.
pub fn over_each_ring(features: u64) -> impl Iterator<Item = u64> {
    let rings = [f::RING_PACKED, f::IN_ORDER, f::EVENT_IDX];
    (0..8).map(move |set: usize| {
        let chosen = rings
            .iter()
            .enumerate()
            .filter(|(at, _)| set >> at & 1 == 1);
        chosen.fold(features & !f::EVENT_IDX, |sum, (_, bit)| sum | bit)
    })
}

/// A frame on its way to a receive queue.
struct Arrival {
    at: u64,
    queue: u16,
    hdr: VirtioNetHdr,
    frame: Vec<u8>,
}

/// A frame that was sent, as the device got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub at: u64,
    /// Queue pair whose ring it was in.
    pub pair: u16,
    pub hdr: VirtioNetHdr,
    pub frame: Vec<u8>,
}

pub struct World {
    memory: Arc<GuestMemory>,
    offered: u64,
    features: Cell<u64>,
    pairs: u16,
    now: Cell<u64>,
    queues: RefCell<Vec<Option<DeviceRing>>>,
    /// Interrupts raised and not taken, by queue.
    pub interrupts: Vec<Cell<u64>>,
    /// Interrupts raised in all, by queue.
    pub raised: Vec<Cell<u64>>,
    /// Frames on their way.
    arrivals: RefCell<VecDeque<Arrival>>,
    /// Frames for which no buffer was there.
    pub missed: Cell<u64>,
    pub sent: RefCell<Vec<Sent>>,
    /// Send rings are left alone until [`World::transmit`].
    pub hold: Cell<bool>,
    /// Interrupts are raised whether they are wanted or not.
    pub stubborn: Cell<bool>,
    /// Arrives when the next frame is sent.
    answer: RefCell<Option<Vec<u8>>>,
    /// Costs that were spent, in order.
    pub spent: RefCell<Vec<u64>>,
    /// Control commands seen: class, command, data.
    pub commands: RefCell<Vec<(u8, u8, Vec<u8>)>>,
    /// Control commands are refused.
    pub refuse: Cell<bool>,
    /// The status in config space.
    status: Cell<u16>,
    config_changed: Cell<bool>,
    /// What RSS_CONFIG or HASH_CONFIG said last.
    rss: RefCell<RssConfig>,
}

pub type Guest = Kernel<Nic, Rc<World>>;

/// A world's device as a transport.
pub struct Nic(pub Rc<World>);

impl World {
    pub fn new(offered: u64, pairs: u16) -> Rc<Self> {
        // One for the control queue.
        let cells = || (0..=2 * pairs).map(|_| Cell::new(0)).collect();
        Rc::new(Self {
            memory: GuestMemory::new(32 << 20).unwrap(),
            offered,
            features: Cell::new(0),
            pairs,
            now: Cell::new(0),
            queues: RefCell::default(),
            interrupts: cells(),
            raised: cells(),
            arrivals: RefCell::default(),
            missed: Cell::new(0),
            sent: RefCell::default(),
            hold: Cell::new(false),
            stubborn: Cell::new(false),
            answer: RefCell::default(),
            spent: RefCell::default(),
            commands: RefCell::default(),
            refuse: Cell::new(false),
            status: Cell::new(1),
            config_changed: Cell::new(false),
            rss: RefCell::default(),
        })
    }

    /// The guest's memory, as the device sees it.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Has a frame arrive at `at`; calls come in order of time.
    pub fn schedule(&self, at: u64, frame: &[u8]) {
        self.schedule_with(at, 0, VirtioNetHdr::default(), frame);
    }

    pub fn schedule_with(&self, at: u64, queue: u16, hdr: VirtioNetHdr, frame: &[u8]) {
        let frame = frame.to_vec();
        let arrival = Arrival {
            at,
            queue,
            hdr,
            frame,
        };
        self.arrivals.borrow_mut().push_back(arrival);
        self.advance(0);
    }

    /// Has a frame arrive now.
    pub fn receive(&self, frame: &[u8]) {
        self.schedule(self.now.get(), frame);
    }

    /// Asks the driver to announce itself.
    pub fn ask_for_announcement(&self) {
        self.status.set(3);
        self.config_changed.set(true);
    }

    /// Has a frame arrive now where the driver's hash settings lead it, with its hash; the queue pair.
    pub fn receive_steered(&self, frame: &[u8]) -> u16 {
        let steered = self.rss.borrow().steer(frame);
        let mut hdr = VirtioNetHdr::default();
        if self.features.get() & f::HASH_REPORT != 0 {
            (hdr.hash_value, hdr.hash_report) = (steered.hash_value, steered.hash_report);
        }
        self.schedule_with(self.now.get(), 2 * steered.pair, hdr, frame);
        steered.pair
    }

    /// Moves the clock on; what was scheduled arrives.
    pub fn advance(&self, ns: u64) {
        let end = self.now.get() + ns;
        loop {
            let mut arrivals = self.arrivals.borrow_mut();
            if arrivals.front().is_none_or(|arrival| arrival.at > end) {
                break;
            }
            let arrival = arrivals.pop_front().unwrap();
            drop(arrivals);
            self.now.set(arrival.at.max(self.now.get()));
            self.deliver(arrival.queue, arrival.hdr, &arrival.frame);
        }
        self.now.set(end);
    }

    fn deliver(&self, index: u16, mut hdr: VirtioNetHdr, frame: &[u8]) {
        let mut queues = self.queues.borrow_mut();
        let ring = queues[usize::from(index)].as_mut().unwrap();
        let hdr_len = VirtioNetHdr::len(self.features.get());
        let mergeable = self.features.get() & f::MRG_RXBUF != 0;
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < hdr_len + frame.len() && (mergeable || chains.is_empty()) {
            let Some(chain) = ring.take() else {
                assert!(chains.is_empty(), "too few buffers for that frame");
                self.missed.set(self.missed.get() + 1);
                return;
            };
            room += chain.1.iter().map(|desc| desc.len as usize).sum::<usize>();
            chains.push(chain);
        }
        hdr.num_buffers = chains.len() as u16;
        let bytes = [&hdr.to_bytes()[..hdr_len], frame].concat();
        let mut rest = &bytes[..];
        for (head, chain) in chains {
            let before = rest.len();
            for desc in chain {
                let here = rest.len().min(desc.len as usize);
                self.memory.dma_debug().device_access(desc.addr, here, true);
                self.memory.write(desc.addr, &rest[..here]).unwrap();
                rest = &rest[here..];
            }
            self.put(index, ring, head, (before - rest.len()) as u32);
        }
        assert!(rest.is_empty(), "longer than the buffer");
    }

    fn put(&self, index: u16, ring: &mut DeviceRing, head: u16, len: u32) {
        if ring.put(head, len) || self.stubborn.get() {
            self.interrupt(index);
        }
    }

    /// Raises an interrupt, wanted or not.
    pub fn interrupt(&self, index: u16) {
        for counter in [&self.interrupts, &self.raised] {
            let cell = &counter[usize::from(index)];
            cell.set(cell.get() + 1);
        }
    }

    /// Writes any used element, as a broken device does.
    pub fn use_nonsense(&self, index: u16, id: u16) {
        let mut queues = self.queues.borrow_mut();
        let ring = queues[usize::from(index)].as_mut().unwrap();
        ring.put(id, 100);
        self.interrupt(index);
    }

    /// Sends up to `max` frames that are in the send ring of a pair; how many.
    pub fn transmit(&self, pair: u16, max: usize) -> usize {
        let index = 2 * pair + 1;
        for count in 0..max {
            let mut queues = self.queues.borrow_mut();
            let ring = queues[usize::from(index)].as_mut().unwrap();
            let Some((head, chain)) = ring.take() else {
                // A kick, please, for the next one.
                ring.ask_for_kick();
                return count;
            };
            let mut bytes = Vec::new();
            for desc in chain {
                let (at, len) = (bytes.len(), desc.len as usize);
                self.memory.dma_debug().device_access(desc.addr, len, false);
                bytes.resize(at + len, 0);
                self.memory.read(desc.addr, &mut bytes[at..]).unwrap();
            }
            let features = self.features.get();
            let hdr_len = VirtioNetHdr::len(features);
            let mut hdr = [0; MAX_HDR_LEN];
            hdr[..hdr_len].copy_from_slice(&bytes[..hdr_len]);
            self.sent.borrow_mut().push(Sent {
                at: self.now.get(),
                pair,
                hdr: VirtioNetHdr::from_bytes(&hdr, features),
                frame: bytes.split_off(hdr_len),
            });
            self.put(index, ring, head, 0);
            drop(queues);
            if let Some(answer) = self.answer.take() {
                self.receive(&answer);
            }
        }
        max
    }

    /// Has a frame arrive as soon as another is sent.
    pub fn answer_next_send_with(&self, frame: &[u8]) {
        self.answer.replace(Some(frame.to_vec()));
    }

    /// What was sent since the last call.
    pub fn take_sent(&self) -> Vec<Sent> {
        self.sent.take()
    }
}

impl Machine for World {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn spend(&self, ns: u64) {
        assert_ne!(ns, 0);
        self.spent.borrow_mut().push(ns);
        self.advance(ns);
    }
}

impl Transport for Nic {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.0.memory
    }

    fn device_features(&mut self) -> Result<u64, TransportError> {
        Ok(self.0.offered)
    }

    fn set_driver_features(&mut self, features: u64) -> Result<(), TransportError> {
        self.0.features.set(features);
        Ok(())
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        let mut config = [0; 24];
        config[..6].copy_from_slice(&MAC);
        config[6..8].copy_from_slice(&self.0.status.get().to_le_bytes());
        config[8] = self.0.pairs as u8;
        (config[17], config[18], config[20]) = (40, 128, 0x3f);
        let at = offset as usize;
        buf.copy_from_slice(&config[at..at + buf.len()]);
        Ok(())
    }

    fn setup_queue(&mut self, queue: &QueueConfig) -> Result<(), TransportError> {
        let index = usize::from(queue.index);
        let ring = DeviceRing::new(&self.0.memory, queue, self.0.features.get());
        let mut queues = self.0.queues.borrow_mut();
        let len = queues.len().max(index + 1);
        queues.resize_with(len, || None);
        queues[index] = Some(ring);
        Ok(())
    }

    fn driver_ok(&mut self) -> Result<(), TransportError> {
        Ok(())
    }

    fn enable_queue(&mut self, _index: u16, _enable: bool) -> Result<(), TransportError> {
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<u32, TransportError> {
        let mut queues = self.0.queues.borrow_mut();
        Ok(queues[usize::from(index)].take().unwrap().base())
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        self.0.queues.borrow_mut().clear();
        Ok(())
    }

    fn kick(&self, index: u16) {
        if index % 2 == 1 && !self.0.hold.get() {
            self.0.transmit(index / 2, usize::MAX);
        }
    }

    fn take_interrupt(&self, index: u16) -> u64 {
        self.0.interrupts[usize::from(index)].take()
    }

    fn vmm_control(&mut self, class: u8, command: u8, data: &[u8]) -> Option<u8> {
        let seen = (class, command, data.to_vec());
        self.0.commands.borrow_mut().push(seen);
        if self.0.refuse.get() {
            return Some(1);
        }
        if class == 3 {
            self.0.status.set(1);
        }
        if class == 4 && command > 0 {
            self.0.rss.replace(rss_config(command, data));
        }
        Some(0)
    }

    fn wait_interrupt(&self, index: u16, _timeout: Duration) -> bool {
        self.0.interrupts[usize::from(index)].get() > 0
    }

    fn wait(&self, _timeout: Duration) -> bool {
        self.0.config_changed.get() || self.0.interrupts.iter().any(|cell| cell.get() > 0)
    }

    fn take_config_change(&mut self) -> bool {
        self.0.config_changed.take()
    }
}

/// Reads RSS_CONFIG (command 1) or HASH_CONFIG (2).
fn rss_config(command: u8, data: &[u8]) -> RssConfig {
    let word = |at: usize| u16::from_le_bytes([data[at], data[at + 1]]);
    let len = if command == 1 {
        usize::from(word(4)) + 1
    } else {
        0
    };
    let rest = 8 + 2 * len;
    let key_len = if command == 1 { rest + 2 } else { 12 };
    RssConfig {
        hash_types: u32::from(word(0)) | u32::from(word(2)) << 16,
        unclassified_queue: if command == 1 { word(6) } else { 0 },
        indirection_table: (0..len).map(|at| word(8 + 2 * at)).collect(),
        max_tx_vq: if command == 1 { word(rest) } else { 0 },
        key: data[key_len + 1..][..usize::from(data[key_len])].to_vec(),
    }
}

/// How to make a guest.
pub struct Setup {
    /// What the device offers; with more than one pair MQ too.
    pub features: u64,
    pub pairs: u16,
    pub queue_size: u16,
    /// Length of transmit buffers, where the usual will not do.
    pub tx_buf_len: Option<usize>,
    /// The device refuses all commands at probe.
    pub refuse: bool,
    pub config: KernelConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            features: FEATURES,
            pairs: 1,
            queue_size: 256,
            tx_buf_len: Some(2048),
            refuse: false,
            // What is sent is looked at before the kernel hears that it was.
            config: KernelConfig {
                bql: false,
                ..KernelConfig::default()
            },
        }
    }
}

impl Setup {
    pub fn boot(self) -> (Guest, Rc<World>) {
        self.boot_on(Rc::clone)
    }

    /// The same with a machine that is made of the world.
    pub fn boot_on<M: Machine>(
        self,
        machine: impl FnOnce(&Rc<World>) -> M,
    ) -> (Kernel<Nic, M>, Rc<World>) {
        let many = if self.pairs > 1 {
            f::MQ | f::CTRL_VQ
        } else {
            0
        };
        let world = World::new(self.features | many, self.pairs);
        world.refuse.set(self.refuse);
        let options = ProbeOptions {
            queue_pairs: self.pairs,
            queue_size: self.queue_size,
            tx_buf_len: self.tx_buf_len,
            rss_key: Some(VERIFICATION_KEY),
            ..ProbeOptions::default()
        }
        .with(f::RING_PACKED | f::IN_ORDER);
        let dev = VirtnetInfo::probe(Nic(Rc::clone(&world)), &options).unwrap();
        (Kernel::new(dev, machine(&world), self.config), world)
    }
}

/// A guest with Linux's defaults.
pub fn boot() -> (Guest, Rc<World>) {
    Setup::default().boot()
}

/// Steps until the kernel is idle; how many steps did something.
pub fn settle(kernel: &mut Guest) -> usize {
    let mut steps = 0;
    while kernel.step().unwrap() {
        steps += 1;
        assert!(steps < 10_000, "the kernel does not come to rest");
    }
    steps
}

/// Asserts that each packet that came in is accounted for.
pub fn assert_balanced(kernel: &Guest) {
    let stats = kernel.stats();
    let (came, ended) = stats.rx_balance();
    assert_eq!(came, ended, "{stats:#?}");
    let (rx, _) = kernel.dev.stats();
    assert_eq!(rx.packets, stats.rx_packets);
}
