//! The other side, for tests: a guest's memory and a driver of split virtqueues in it.
//!
//! The driver writes the rings octet by octet from the specification (VIRTIO 1.3, 2.7) and shares nothing
//! with the device's code; it can be told to do what no driver may.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nic_model::counters::Drop;
use nic_model::frame::Frame;
use nic_model::host::QueueIndex;
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::features::Features;
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::nic::Nic;
use crate::ring::Layout;
use crate::virtio_net::{QueueSetup, VirtqueueCounters};

pub(crate) mod packed;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Where [`Guest::new`] maps memory: two mappings that adjoin, a hole, and a third.
const RANGES: [(u64, usize); 3] = [(0, MAPPING), (BORDER, MAPPING), (HOLE_END, MAPPING)];
const MAPPING: usize = 0x2_0000;
/// Where the first two mappings adjoin.
pub(crate) const BORDER: u64 = MAPPING as u64;
/// Where tests put buffers: behind all rings, across the border.
pub(crate) const BUFFERS: u64 = 0x1_0000;
/// Guest addresses from here to [`HOLE_END`] are not mapped.
pub(crate) const HOLE: u64 = 2 * BORDER;
pub(crate) const HOLE_END: u64 = 0x8_0000;

/// Octets that are compared at once.
const PAGE: usize = 4096;

/// A guest's memory, as the guest sees it and as the device does.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) mapped: Arc<GuestMemoryMmap>,
    pub(crate) memory: Arc<GuestMemory>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self::with(&RANGES)
    }

    pub(crate) fn with(ranges: &[(u64, usize)]) -> Self {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|&(addr, len)| (GuestAddress(addr), len))
            .collect();
        let mapped = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let memory = Arc::new(GuestMemory::new(mapped.clone()));
        Guest { mapped, memory }
    }

    /// Another mapping with the same contents.
    pub(crate) fn copy(&self) -> Self {
        let ranges: Vec<_> = self
            .mapped
            .iter()
            .map(|r| (r.start_addr().0, r.len() as usize))
            .collect();
        let copy = Guest::with(&ranges);
        for (addr, bytes) in self.snapshot() {
            copy.write(addr, &bytes);
        }
        copy
    }

    /// All contents, by mapping.
    pub(crate) fn snapshot(&self) -> Vec<(u64, Vec<u8>)> {
        let read = |region: &vm_memory::GuestRegionMmap| {
            let addr = region.start_addr().0;
            (addr, self.read(addr, region.len() as usize))
        };
        self.mapped.iter().map(read).collect()
    }

    /// The first guest address at which the contents differ from `before` and that lies in none of `allowed`
    /// (address and length).
    pub(crate) fn changed_outside(
        &self,
        before: &[(u64, Vec<u8>)],
        allowed: &[(u64, u64)],
    ) -> Option<u64> {
        let now = self.snapshot();
        for ((addr, old), (_, new)) in before.iter().zip(&now) {
            for (at, (old, new)) in (*addr..)
                .step_by(PAGE)
                .zip(old.chunks(PAGE).zip(new.chunks(PAGE)))
            {
                if old == new {
                    continue;
                }
                let differing = (at..)
                    .zip(old.iter().zip(new))
                    .filter(|(_, (old, new))| old != new);
                for (at, _) in differing {
                    if !allowed
                        .iter()
                        .any(|(addr, len)| at.wrapping_sub(*addr) < *len)
                    {
                        return Some(at);
                    }
                }
            }
        }
        None
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.mapped.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mapped
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    pub(crate) fn write16(&self, addr: u64, value: u16) {
        self.write(addr, &value.to_le_bytes());
    }

    pub(crate) fn read16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr, 2).try_into().unwrap())
    }

    pub(crate) fn read32(&self, addr: u64) -> u32 {
        u32::from_le_bytes(self.read(addr, 4).try_into().unwrap())
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn describe(&self, table: u64, index: u16, descriptor: Descriptor) {
        let Descriptor {
            addr,
            len,
            flags,
            next,
        } = descriptor;
        let at = table + 16 * u64::from(index);
        self.write(at, &addr.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Writes a chain of `buffers` into consecutive descriptors of the table at `table`, from the first.
    pub(crate) fn describe_chain(&self, table: u64, buffers: &[Buffer]) {
        for (index, buffer) in (0..).zip(buffers) {
            let more = usize::from(index) + 1 < buffers.len();
            self.describe(table, index, buffer.descriptor(more.then_some(index + 1)));
        }
    }
}

/// A descriptor as it stands in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A buffer to be posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

/// A buffer that the device reads.
pub(crate) fn readable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: false,
    }
}

/// A buffer that the device writes.
pub(crate) fn writable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: true,
    }
}

impl Buffer {
    fn descriptor(self, next: Option<u16>) -> Descriptor {
        let flags = if self.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
        Descriptor {
            addr: self.addr,
            len: self.len,
            flags,
            next: next.unwrap_or(0),
        }
    }
}

/// The driver of one split virtqueue.
pub(crate) struct Driver {
    pub(crate) guest: Guest,
    pub(crate) layout: Layout,
    /// The available index, as the device sees it.
    pub(crate) available: u16,
    /// How far the used ring has been looked at.
    pub(crate) seen: u16,
    /// Free descriptors; taken at the front, given back at the end, so that chains get scattered.
    pub(crate) free: VecDeque<u16>,
    /// The descriptors of each chain by head.
    chains: HashMap<u16, Vec<u16>>,
}

impl Driver {
    /// A ring of `size` at guest address `base` whose two indices stand at `start`.
    pub(crate) fn new(guest: &Guest, base: u64, size: u16, start: u16) -> Self {
        let entries = u64::from(size);
        let layout = Layout {
            size,
            descriptors: base,
            driver: base + 16 * entries,
            device: (base + 18 * entries + 6).next_multiple_of(4),
            base: None,
        };
        let driver = Driver {
            guest: guest.clone(),
            layout,
            available: start,
            seen: start,
            free: (0..size).collect(),
            chains: HashMap::new(),
        };
        driver.set_available_index(start);
        guest.write16(layout.device + 2, start);
        driver
    }

    /// Posts `buffers` as one chain, and returns its head.
    pub(crate) fn post(&mut self, buffers: &[Buffer]) -> u16 {
        self.post_mixed(buffers, None)
    }

    /// Posts a chain of the buffers `direct`, then those in `indirect`: the guest address of a table and what
    /// is to be in it.
    pub(crate) fn post_mixed(
        &mut self,
        direct: &[Buffer],
        indirect: Option<(u64, &[Buffer])>,
    ) -> u16 {
        let count = direct.len() + usize::from(indirect.is_some());
        assert!(
            count > 0 && count <= self.free.len(),
            "{count} of {}",
            self.free.len()
        );
        let indices: Vec<u16> = self.free.drain(..count).collect();
        for (at, buffer) in direct.iter().enumerate() {
            let descriptor = buffer.descriptor(indices.get(at + 1).copied());
            self.guest
                .describe(self.layout.descriptors, indices[at], descriptor);
        }
        if let Some((table, buffers)) = indirect {
            self.guest.describe_chain(table, buffers);
            let reference = Descriptor {
                addr: table,
                len: 16 * buffers.len() as u32,
                flags: INDIRECT,
                next: 0,
            };
            self.guest
                .describe(self.layout.descriptors, indices[count - 1], reference);
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.post_head(head);
        head
    }

    /// Makes the chain at `head` available, whatever it is.
    pub(crate) fn post_head(&mut self, head: u16) {
        let slot = u64::from(self.available % self.layout.size);
        self.guest.write16(self.layout.driver + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// Writes descriptor `index` of the ring's own table.
    pub(crate) fn describe(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor {
            addr,
            len,
            flags,
            next,
        };
        self.guest
            .describe(self.layout.descriptors, index, descriptor);
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.guest.write16(self.layout.driver + 2, index);
    }

    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.guest.write16(self.layout.driver, flags);
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        self.guest.write16(
            self.layout.driver + 4 + 2 * u64::from(self.layout.size),
            index,
        );
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.guest.read16(self.layout.device)
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.guest.read16(self.layout.device + 2)
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.guest
            .read16(self.layout.device + 4 + 8 * u64::from(self.layout.size))
    }

    /// Guest address and length of the used ring's index and entries.
    pub(crate) fn used_ring(&self) -> (u64, u64) {
        (self.layout.device + 2, 2 + 8 * u64::from(self.layout.size))
    }

    /// Takes back what the device has used since the last call: heads and lengths.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while self.seen != self.used_index() {
            let slot = u64::from(self.seen % self.layout.size);
            let at = self.layout.device + 4 + 8 * slot;
            let (id, len) = (self.guest.read32(at), self.guest.read32(at + 4));
            let id = u16::try_from(id).unwrap();
            let indices = self.chains.remove(&id).unwrap_or_default();
            self.free.extend(indices);
            used.push((id, len));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}

/// What a card's tests ask of a driver, whatever its rings' layout.
pub(crate) trait Posts {
    /// Where its ring is.
    fn layout(&self) -> Layout;
    /// Posts `buffers` as one chain, and returns what it is known by.
    fn post(&mut self, buffers: &[Buffer]) -> u16;
    /// Takes back what the device has used since the last call.
    fn used(&mut self) -> Vec<(u16, u32)>;
}

impl Posts for Driver {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn post(&mut self, buffers: &[Buffer]) -> u16 {
        self.post(buffers)
    }

    fn used(&mut self) -> Vec<(u16, u32)> {
        self.used()
    }
}

/// An interrupt line that counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    raised: Arc<AtomicUsize>,
    broken: bool,
}

impl Line {
    /// A line that nobody listens to.
    pub(crate) fn broken() -> Self {
        Line {
            broken: true,
            ..Default::default()
        }
    }

    /// How often it was raised since the last call.
    pub(crate) fn take(&self) -> usize {
        self.raised.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn boxed(&self) -> Option<Box<dyn Interrupt>> {
        Some(Box::new(self.clone()))
    }
}

impl Interrupt for Line {
    fn raise(&mut self) -> io::Result<()> {
        self.raised.fetch_add(1, Ordering::Relaxed);
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

/// Octets that no two places share by chance.
pub(crate) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // SplitMix64.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Where a ring's indices begin: often just before they wrap around.
pub(crate) fn start() -> impl Strategy<Value = u16> {
    prop_oneof![any::<u16>(), 65_400..=u16::MAX]
}

/// A second, naive walk: the chain's buffers, or nothing if it is malformed.
pub(crate) fn reference(driver: &Driver, head: u16) -> Option<Vec<Buffer>> {
    let guest = &driver.guest;
    let size = u64::from(driver.layout.size);
    let mapped = |addr: u64, len: u64| {
        let end = addr.checked_add(len)?;
        ((end <= HOLE) || (addr >= HOLE_END && end <= HOLE_END + BORDER)).then_some(())
    };
    let mut buffers: Vec<Buffer> = Vec::new();
    let (mut table, mut entries, mut index) = (driver.layout.descriptors, size, u64::from(head));
    let mut in_table = false;
    while index < entries && buffers.len() < size as usize {
        let at = table.checked_add(16 * index)?;
        mapped(at, 16)?;
        let addr = u64::from_le_bytes(guest.read(at, 8).try_into().unwrap());
        let (len, flags, next) = (
            guest.read32(at + 8),
            guest.read16(at + 12),
            guest.read16(at + 14),
        );
        if flags & INDIRECT != 0 {
            if in_table || flags & NEXT != 0 || len == 0 || len % 16 != 0 {
                return None;
            }
            (table, entries, index, in_table) = (addr, u64::from(len / 16), 0, true);
            continue;
        }
        mapped(addr, u64::from(len))?;
        let writable = flags & WRITE != 0;
        if len == 0 || (!writable && buffers.last().is_some_and(|last| last.writable)) {
            return None;
        }
        buffers.push(Buffer {
            addr,
            len,
            writable,
        });
        if flags & NEXT == 0 {
            return Some(buffers);
        }
        index = u64::from(next);
    }
    None
}

/// A descriptor of a table of `size`: mostly in memory and mostly sensible. Those that refer to an indirect
/// table refer to a place near `tables`.
pub(crate) fn garbage(size: u16, tables: u64) -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        12 => BUFFERS..HOLE,
        2 => HOLE - 2000..HOLE + 2000,
        2 => HOLE_END - 10..HOLE_END + BORDER + 0x100,
        1 => 0..0x1000u64,
        1 => any::<u64>(),
        1 => u64::MAX - 3000..=u64::MAX,
    ];
    let len = prop_oneof![20 => 1u32..2000, 1 => Just(0), 1 => any::<u32>()];
    let flags = prop_oneof![
        6 => Just(NEXT),
        6 => Just(WRITE),
        6 => Just(NEXT | WRITE),
        3 => Just(0),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![20 => 0..size, 1 => Just(size), 1 => any::<u16>()];
    let buffer = (addr, len, flags, next).prop_map(|(addr, len, flags, next)| Descriptor {
        addr,
        len,
        flags,
        next,
    });
    let reference = (0u64..8, 1u32..20, 0u16..4).prop_map(move |(at, entries, flags)| Descriptor {
        addr: tables + 16 * at,
        len: 16 * entries,
        flags: INDIRECT | (flags & WRITE),
        next: 0,
    });
    prop_oneof![5 => buffer, 1 => reference]
}

/// Virtqueues of a card with one pair.
pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
pub(crate) const CONTROL: usize = 2;

/// A card with one queue pair and a control queue, its driver, and a wire on which each burst takes a
/// millisecond.
pub(crate) struct Bench<D = Driver> {
    pub(crate) nic: Nic,
    pub(crate) guest: Guest,
    pub(crate) drivers: [D; 3],
    pub(crate) lines: [Line; 3],
    pub(crate) errors: [Line; 3],
    pub(crate) now: Nanos,
    /// What the card sent.
    pub(crate) sent: Vec<Vec<u8>>,
}

impl Bench {
    pub(crate) fn new(features: Features) -> Self {
        Self::with(features, 256, 0)
    }

    /// With rings of `size` whose indices stand at `start`.
    pub(crate) fn with(features: Features, size: u16, start: u16) -> Self {
        Self::of(features, |guest, base| {
            Driver::new(guest, base, size, start)
        })
    }
}

impl<D: Posts> Bench<D> {
    /// With rings that `driver` makes, each behind a guest address.
    pub(crate) fn of(features: Features, driver: impl Fn(&Guest, u64) -> D) -> Self {
        Self::on(&PortConfig::default(), features, driver)
    }

    /// The same of a card as `config` says, of whose queue pairs only the first has rings.
    pub(crate) fn on(
        config: &PortConfig,
        features: Features,
        driver: impl Fn(&Guest, u64) -> D,
    ) -> Self {
        let guest = Guest::new();
        let mut nic = Nic::new(config, Features::supported(1));
        nic.device.set_memory(Some(guest.memory.clone())).unwrap();
        nic.set_features(features).unwrap();
        let mut bench = Bench {
            nic,
            drivers: [0, 0x4000, 0x8000].map(|base| driver(&guest, base)),
            guest,
            lines: Default::default(),
            errors: Default::default(),
            now: Nanos::ZERO,
            sent: Vec::new(),
        };
        for index in [RX, TX, CONTROL] {
            bench.set_up(index);
            assert_eq!(
                bench.lines[index].take(),
                1,
                "the driver may have missed one"
            );
        }
        bench
    }

    /// Sets virtqueue `index` up where its driver has it.
    pub(crate) fn set_up(&mut self, index: usize) {
        let setup = QueueSetup {
            layout: self.drivers[index].layout(),
            enabled: true,
            interrupt: self.lines[index].boxed(),
            error: self.errors[index].boxed(),
        };
        self.nic.rings().set_up(index, setup).unwrap();
    }

    /// Posts `buffers` on virtqueue `index`.
    pub(crate) fn post(&mut self, index: usize, buffers: &[Buffer]) -> u16 {
        self.drivers[index].post(buffers)
    }

    /// Writes `octets` to guest address `addr` and posts them on the transmit queue.
    pub(crate) fn send(&mut self, addr: u64, octets: &[u8]) -> u16 {
        self.guest.write(addr, octets);
        self.post(TX, &[readable(addr, octets.len() as u32)])
    }

    /// Lets `frames` arrive in one burst. Returns whether the card had anything to do.
    pub(crate) fn arrive(&mut self, frames: &[Vec<u8>]) -> bool {
        let mut burst: Vec<Frame> = Vec::new();
        for bytes in frames {
            let mut frame = self.nic.port.pool.take();
            assert!(frame.fill(bytes));
            burst.push(frame);
        }
        self.arrive_frames(burst)
    }

    /// As [`Bench::arrive`], with frames that tell what has yet to be done to them.
    pub(crate) fn arrive_frames(&mut self, mut burst: Vec<Frame>) -> bool {
        for frame in &mut burst {
            frame.arrival = self.now;
        }
        self.now = Nanos(self.now.0 + 1_000_000);
        let mut sent = Vec::new();
        let worked = self.nic.poll(self.now, &mut burst, &mut sent);
        assert!(burst.is_empty());
        self.sent
            .extend(sent.iter().map(|frame| frame.bytes().to_vec()));
        self.nic.port.pool.give_all(sent);
        self.balance();
        worked
    }

    pub(crate) fn poll(&mut self) -> bool {
        self.arrive(&[])
    }

    /// Each frame is in exactly one place, and so is each buffer.
    pub(crate) fn balance(&self) {
        let (port, waiting) = (self.nic.counters(), self.nic.queues.frames());
        assert_eq!(port.receive_balance(waiting), 0, "{port:?}");
        assert_eq!(port.transmit_balance(0), 0, "{port:?}");
        assert!(port.statistics_agree(), "{port:?}");
        assert_eq!(self.nic.port.pool.lent(), waiting, "a frame was lost");
        let counters = self.nic.device.counters();
        let rx = &counters[RX];
        assert_eq!(rx.packets - rx.segments_made, port.rx_delivered);
        let line = self.nic.port.line_counters(QueueIndex(0));
        assert_eq!(line.rx_overflows, port.drops.get(Drop::RxFifoOverflow));
        assert_eq!(line.tx_link_down, port.drops.get(Drop::TxLinkDown));
        assert_eq!(
            (line.tx_frames, line.tx_octets),
            (port.tx_frames, port.tx_octets)
        );
    }

    pub(crate) fn dropped(&self, reason: Drop) -> u64 {
        self.nic.counters().drops.get(reason)
    }

    pub(crate) fn counters(&self, index: usize) -> VirtqueueCounters {
        self.nic.device.counters().swap_remove(index)
    }

    pub(crate) fn used(&mut self, index: usize) -> Vec<(u16, u32)> {
        self.drivers[index].used()
    }
}

/// A broadcast frame of `len` octets, `seed` in them.
pub(crate) fn broadcast(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    bytes.extend(noise(len - bytes.len(), seed));
    bytes
}

/// A UDP datagram over IPv4 in an Ethernet frame.
pub(crate) fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 2000)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}
