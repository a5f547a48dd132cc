//! A ring of either layout, driven by hand: one chain after the other.

use std::sync::Arc;

use nic_guest::memory::{GuestMemory, MemoryError};
use nic_guest::ring::raw::{Descriptor, RawRing};
use nic_guest::ring::raw_packed::{PackedDescriptor, RawPackedRing};
use nic_guest::ring::{
    OffWrap, RingMemory, VIRTQ_DESC_F_NEXT, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED,
};

/// How a ring is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// VIRTIO 1.3, 2.7.
    Split,
    /// VIRTIO 1.3, 2.8.
    Packed,
}

impl Layout {
    /// Both.
    pub const ALL: [Layout; 2] = [Layout::Split, Layout::Packed];

    /// The group of its cases.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Layout::Split => "split",
            Layout::Packed => "packed",
        }
    }
}

/// A piece of a chain: where, how long, and `VIRTQ_DESC_F_WRITE` or `INDIRECT`.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Guest-physical address.
    pub addr: u64,
    /// Octets.
    pub len: u32,
    /// `VIRTQ_DESC_F_*` but NEXT.
    pub flags: u16,
}

impl Piece {
    /// A piece.
    #[must_use]
    pub fn new(addr: u64, len: u32, flags: u16) -> Self {
        Piece { addr, len, flags }
    }
}

/// A split ring and how far its used elements were taken.
pub struct Split {
    /// Every field of it.
    pub raw: RawRing,
    used: u16,
}

/// A packed ring, where the next chain goes, and where the next used descriptor is.
pub struct Packed {
    /// Every field of it.
    pub raw: RawPackedRing,
    next: OffWrap,
    used: OffWrap,
    /// Descriptors of the chain that each buffer id stands for.
    lengths: Vec<(u16, u16)>,
}

/// A ring of either layout.
pub enum Ring {
    /// A split one.
    Split(Split),
    /// A packed one.
    Packed(Packed),
}

impl Packed {
    /// Where the next chain begins.
    #[must_use]
    pub fn next(&self) -> OffWrap {
        self.next
    }

    /// Writes `chain` as it is, its flags completed by those that make it available; the first descriptor last.
    pub fn put(&mut self, chain: &[PackedDescriptor]) {
        let size = self.raw.size();
        let mut at = self.next;
        let places: Vec<_> = chain
            .iter()
            .map(|desc| {
                let place = at;
                at = at.advance(1, size);
                (place, desc)
            })
            .collect();
        for (place, desc) in places.into_iter().rev() {
            let flags = desc.flags | place.avail_flags();
            self.raw
                .set_desc(place.off(), PackedDescriptor { flags, ..*desc });
        }
        if let Some(last) = chain.last() {
            self.lengths.retain(|&(id, _)| id != last.id);
            self.lengths.push((last.id, chain.len() as u16));
        }
        self.next = at;
    }

    fn take_used(&mut self) -> Option<(u32, u32)> {
        let flags = self.raw.flags(self.used.off());
        let (avail, used) = (
            flags & VRING_PACKED_DESC_F_AVAIL != 0,
            flags & VRING_PACKED_DESC_F_USED != 0,
        );
        if avail != used || used != self.used.wrap() {
            return None;
        }
        let desc = self.raw.desc(self.used.off());
        let known = self.lengths.iter().find(|&&(id, _)| id == desc.id);
        let count = known.map_or(1, |&(_, count)| count);
        self.used = self.used.advance(count, self.raw.size());
        Some((desc.id.into(), desc.len))
    }
}

impl Ring {
    /// A ring of `size` entries in `memory`.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn allocate(
        memory: &Arc<GuestMemory>,
        layout: Layout,
        size: u16,
    ) -> Result<Self, MemoryError> {
        Ok(match layout {
            Layout::Split => Ring::Split(Split {
                raw: RawRing::allocate(memory, size)?,
                used: 0,
            }),
            Layout::Packed => Ring::Packed(Packed {
                raw: RawPackedRing::allocate(memory, size)?,
                next: OffWrap::START,
                used: OffWrap::START,
                lengths: Vec::new(),
            }),
        })
    }

    /// The memory it is in.
    #[must_use]
    pub fn memory(&self) -> &RingMemory {
        match self {
            Ring::Split(ring) => ring.raw.ring(),
            Ring::Packed(ring) => ring.raw.ring(),
        }
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.memory().size
    }

    /// Makes it as new; the device must have stopped it.
    pub fn clear(&mut self) {
        self.memory().clear();
        match self {
            Ring::Split(ring) => ring.used = 0,
            Ring::Packed(ring) => {
                (ring.next, ring.used) = (OffWrap::START, OffWrap::START);
                ring.lengths.clear();
            }
        }
    }

    /// Where the device begins when nothing has been used, as SET_VRING_BASE says it.
    #[must_use]
    pub fn base(&self) -> u32 {
        match self {
            Ring::Split(ring) => ring.used.into(),
            Ring::Packed(ring) => u32::from(ring.used.0) << 16 | u32::from(ring.used.0),
        }
    }

    /// Begins at index `base` instead of 0, on a ring that is clear; only a split ring can.
    pub fn begin_at(&mut self, base: u16) {
        if let Ring::Split(ring) = self {
            ring.raw.set_avail_idx(base);
            ring.raw.set_used_idx(base);
            ring.used = base;
        }
    }

    /// Makes a chain available. In a split ring it begins at descriptor `at`, in a packed one that is its buffer id.
    pub fn offer(&mut self, at: u16, chain: &[Piece]) {
        let last = chain.len().saturating_sub(1);
        let linked = |n: usize| if n < last { VIRTQ_DESC_F_NEXT } else { 0 };
        match self {
            Ring::Split(ring) => {
                for (n, piece) in chain.iter().enumerate() {
                    let index = at + n as u16;
                    let flags = piece.flags | linked(n);
                    let desc = Descriptor::new(piece.addr, piece.len, flags, index + 1);
                    ring.raw.set_desc(index, desc);
                }
                ring.raw.make_available(&[at]);
            }
            Ring::Packed(ring) => {
                let chain: Vec<_> = chain
                    .iter()
                    .enumerate()
                    .map(|(n, piece)| {
                        let flags = piece.flags | linked(n);
                        PackedDescriptor::new(piece.addr, piece.len, at, flags)
                    })
                    .collect();
                ring.put(&chain);
            }
        }
    }

    /// The next chain that the device used: which, and how many octets it says that it wrote.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        match self {
            Ring::Packed(ring) => ring.take_used(),
            Ring::Split(ring) => {
                if ring.raw.used_idx() == ring.used {
                    return None;
                }
                let used = ring.raw.used_elem(ring.used);
                ring.used = ring.used.wrapping_add(1);
                Some(used)
            }
        }
    }

    /// Address and length of all that its descriptors say may be written.
    #[must_use]
    pub fn writable(&self) -> Vec<(u64, u32)> {
        use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
        let all = 0..self.size();
        match self {
            Ring::Split(ring) => all
                .map(|index| ring.raw.desc(index))
                .filter(|desc| desc.flags & WRITE != 0)
                .map(|desc| (desc.addr, desc.len))
                .collect(),
            Ring::Packed(ring) => all
                .map(|index| ring.raw.desc(index))
                .filter(|desc| desc.flags & WRITE != 0)
                .map(|desc| (desc.addr, desc.len))
                .collect(),
        }
    }
}
