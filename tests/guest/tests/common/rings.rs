//! The device's side of a ring of either layout, written from the standard (virtio 1.3, 2.7 and 2.8) and
//! sharing nothing with the driver's but the words in memory.

use std::sync::Arc;

use nic_guest::memory::GuestMemory;
use nic_guest::ring::raw::{Descriptor, RawRing};
use nic_guest::ring::raw_packed::{PackedDescriptor, RawPackedRing};
use nic_guest::ring::{OffWrap, RingMemory};
use nic_guest::transport::QueueConfig;
use nic_guest::virtio_net::features as f;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A split ring.
pub struct SplitSide {
    pub raw: RawRing,
    pub next: u16,
    event_idx: bool,
}

/// A place in a packed ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    fn of(place: OffWrap) -> Self {
        Self {
            at: place.0 & 0x7fff,
            wrap: place.0 >> 15 == 1,
        }
    }

    fn word(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }

    fn step(&mut self, size: u16, count: u16) {
        for _ in 0..count {
            self.at += 1;
            if self.at == size {
                (self.at, self.wrap) = (0, !self.wrap);
            }
        }
    }

    /// Entries from `self` to `to`, which is less than two rounds ahead.
    fn distance(self, to: Self, size: u16) -> u32 {
        let line = |place: Self| u32::from(place.at) + u32::from(!place.wrap) * u32::from(size);
        (line(to) + 2 * u32::from(size) - line(self)) % (2 * u32::from(size))
    }
}

/// A packed ring.
pub struct PackedSide {
    pub raw: RawPackedRing,
    next: Place,
    used: Place,
    event_idx: bool,
    /// Descriptors of the chains that were taken, by id.
    counts: Vec<(u16, u16)>,
}

/// A ring as a device has it.
pub enum DeviceRing {
    Split(SplitSide),
    Packed(PackedSide),
}

impl DeviceRing {
    /// The ring that a transport is told of, under `features`.
    pub fn new(memory: &Arc<GuestMemory>, queue: &QueueConfig, features: u64) -> Self {
        if features & f::RING_PACKED != 0 {
            let ring = RingMemory::at_packed(memory, queue.size, queue.layout).unwrap();
            return Self::packed(&ring, queue.next, features & f::EVENT_IDX != 0);
        }
        let ring = RingMemory::at(memory, queue.size, queue.layout).unwrap();
        let next = u16::try_from(queue.next).unwrap();
        Self::split(&ring, next, features & f::EVENT_IDX != 0)
    }

    pub fn split(ring: &RingMemory, next: u16, event_idx: bool) -> Self {
        let raw = RawRing::new(ring);
        Self::Split(SplitSide {
            raw,
            next,
            event_idx,
        })
    }

    pub fn packed(ring: &RingMemory, base: u32, event_idx: bool) -> Self {
        Self::Packed(PackedSide {
            raw: RawPackedRing::new(ring),
            next: Place::of(OffWrap(base as u16)),
            used: Place::of(OffWrap((base >> 16) as u16)),
            event_idx,
            counts: Vec::new(),
        })
    }

    /// The words of a split ring.
    pub fn raw(&self) -> &RawRing {
        match self {
            Self::Split(side) => &side.raw,
            Self::Packed(_) => panic!("a packed ring"),
        }
    }

    /// The words of a packed ring.
    pub fn raw_packed(&self) -> &RawPackedRing {
        match self {
            Self::Split(_) => panic!("a split ring"),
            Self::Packed(side) => &side.raw,
        }
    }

    pub fn size(&self) -> u16 {
        match self {
            Self::Split(side) => side.raw.size(),
            Self::Packed(side) => side.raw.size(),
        }
    }

    /// What GET_VRING_BASE answers.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(side) => side.next.into(),
            Self::Packed(side) => u32::from(side.next.word()) | u32::from(side.used.word()) << 16,
        }
    }

    /// The next available chain: its id, and its descriptors with those of a table.
    pub fn take(&mut self) -> Option<(u16, Vec<Descriptor>)> {
        match self {
            Self::Split(side) => {
                if side.next == side.raw.avail_idx() {
                    return None;
                }
                let head = side.raw.avail_entry(side.next);
                side.next = side.next.wrapping_add(1);
                let memory = side.raw.ring().desc.memory();
                Some((head, super::in_process::chain(memory, &side.raw, head)))
            }
            Self::Packed(side) => side.take(),
        }
    }

    /// Uses a chain; whether the driver wants an interrupt for it.
    pub fn put(&mut self, id: u16, len: u32) -> bool {
        self.put_batch(&[id], len)
    }

    /// Uses all of `ids`, which were taken one after the other, by naming the last (IN_ORDER).
    pub fn put_batch(&mut self, ids: &[u16], len: u32) -> bool {
        let (&last, count) = (ids.last().unwrap(), ids.len() as u16);
        match self {
            Self::Split(side) => {
                let old = side.raw.used_idx();
                side.raw.set_used_elem(old, last.into(), len);
                side.raw.set_used_idx(old.wrapping_add(count));
                if side.event_idx {
                    side.raw.used_event().wrapping_sub(old) < count
                } else {
                    side.raw.avail_flags() & 1 == 0
                }
            }
            Self::Packed(side) => side.put_batch(ids, last, len),
        }
    }

    /// Wants a kick with the next chain.
    pub fn ask_for_kick(&self) {
        match self {
            Self::Split(side) => side.raw.set_avail_event(side.next),
            Self::Packed(side) => {
                let next = OffWrap(side.next.word());
                let flags = if side.event_idx { 2 } else { 0 };
                side.raw.set_device_event(next, flags);
            }
        }
    }
}

impl PackedSide {
    fn take(&mut self) -> Option<(u16, Vec<Descriptor>)> {
        let is_available = |place: Place, flags: u16| {
            (flags & AVAIL != 0) == place.wrap && (flags & USED != 0) != place.wrap
        };
        let first = self.raw.desc(self.next.at);
        if !is_available(self.next, first.flags) {
            return None;
        }
        let (mut desc, mut count, mut chain) = (first, 0, Vec::new());
        let size = self.raw.size();
        loop {
            assert!(is_available(self.next, desc.flags), "half a chain");
            count += 1;
            self.next.step(size, 1);
            if desc.flags & INDIRECT == 0 {
                let flags = desc.flags & (NEXT | WRITE);
                chain.push(Descriptor::new(desc.addr, desc.len, flags, 0));
            } else {
                assert_eq!(desc.flags & (NEXT | WRITE), 0, "reserved with a table");
                chain = self.table(desc);
            }
            if desc.flags & NEXT == 0 {
                break;
            }
            assert!(count < size, "a chain longer than the ring");
            desc = self.raw.desc(self.next.at);
        }
        assert!(
            self.counts.iter().all(|&(id, _)| id != desc.id),
            "an id twice"
        );
        self.counts.push((desc.id, count));
        Some((desc.id, chain))
    }

    fn table(&self, desc: PackedDescriptor) -> Vec<Descriptor> {
        let mut bytes = vec![0; desc.len as usize];
        let memory = self.raw.ring().desc.memory();
        memory.read(desc.addr, &mut bytes).unwrap();
        let (table, rest) = bytes.as_chunks::<16>();
        assert!(rest.is_empty() && !table.is_empty(), "half a descriptor");
        table
            .iter()
            .map(PackedDescriptor::from_bytes)
            .map(|entry| Descriptor::new(entry.addr, entry.len, entry.flags & WRITE, 0))
            .collect()
    }

    fn put_batch(&mut self, ids: &[u16], last: u16, len: u32) -> bool {
        let mut count = 0;
        for id in ids {
            // What was never taken is used all the same: a lie.
            let known = self.counts.iter().position(|(taken, _)| taken == id);
            count += known.map_or(1, |at| self.counts.swap_remove(at).1);
        }
        let old = self.used;
        let wrap = if old.wrap { AVAIL | USED } else { 0 };
        let write = if len > 0 { WRITE } else { 0 };
        self.raw.set_used(old.at, last, len, wrap | write);
        let size = self.raw.size();
        self.used.step(size, count);
        match self.raw.driver_event() {
            (_, 0) => true,
            (event, 2) => old.distance(Place::of(event), size) < u32::from(count),
            _ => false,
        }
    }
}
