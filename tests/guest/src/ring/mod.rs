//! Virtqueues, driver side: what the two layouts and their hostile twins share.
//!
//! This is the second implementation of the rings: it has no line in common with the device's, so
//! that the two check each other. Layout and rules: virtio 1.3, 2.7 (split) and 2.8 (packed).

pub mod handshake;
pub mod packed;
pub mod packed_handshake;
pub mod raw;
pub mod raw_packed;
pub mod split;
#[cfg(test)]
mod split_tests;
pub mod virtqueue;

use std::sync::Arc;

use crate::memory::{GuestMemory, GuestSlice, MemoryError, PAGE_SIZE};

/// The descriptor continues in the one named by `next`.
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
/// The device writes this buffer; without the flag it reads it.
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;
/// In `avail.flags`: the driver wants no interrupt (ignored with EVENT_IDX).
pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
/// In `used.flags`: the device wants no kick (ignored with EVENT_IDX).
pub const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;

/// In the flags of a packed descriptor: made available in the round whose wrap counter this bit is.
pub const VRING_PACKED_DESC_F_AVAIL: u16 = 1 << 7;
/// In the flags of a packed descriptor: used in that round, if it equals the other bit.
pub const VRING_PACKED_DESC_F_USED: u16 = 1 << 15;
/// Event suppression: every event is wanted.
pub const VRING_PACKED_EVENT_FLAG_ENABLE: u16 = 0;
/// Event suppression: none is.
pub const VRING_PACKED_EVENT_FLAG_DISABLE: u16 = 1;
/// Event suppression: the one of a certain descriptor is (only with EVENT_IDX).
pub const VRING_PACKED_EVENT_FLAG_DESC: u16 = 2;
/// The bit of the wrap counter in an event's descriptor offset.
pub const VRING_PACKED_EVENT_F_WRAP_CTR: u16 = 15;
/// Bytes of an event suppression structure: descriptor offset with wrap counter, flags.
pub const PACKED_EVENT_SIZE: usize = 4;

/// Bytes of a descriptor.
pub const DESC_SIZE: usize = 16;

/// Offsets in the available and the used ring.
const RING_FLAGS: usize = 0;
const RING_IDX: usize = 2;
const RING_ENTRIES: usize = 4;

/// A piece of a buffer, by guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Segment {
    /// A piece of `len` bytes at `addr`.
    #[must_use]
    pub fn new(addr: u64, len: u32) -> Self {
        Self { addr, len }
    }
}

/// Where the three parts of a ring lie, by guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Descriptor table, or the packed ring itself.
    pub desc: u64,
    /// Available ring, or the driver's event suppression ("driver area").
    pub avail: u64,
    /// Used ring, or the device's event suppression ("device area").
    pub used: u64,
}

impl RingLayout {
    /// Bytes of the descriptor table.
    #[must_use]
    pub fn desc_len(size: u16) -> usize {
        DESC_SIZE * usize::from(size)
    }

    /// Bytes of a split ring's available ring: flags, index, entries, `used_event`.
    #[must_use]
    pub fn avail_len(size: u16) -> usize {
        6 + 2 * usize::from(size)
    }

    /// Bytes of a split ring's used ring: flags, index, elements, `avail_event`.
    #[must_use]
    pub fn used_len(size: u16) -> usize {
        6 + 8 * usize::from(size)
    }
}

/// The memory of a ring: three windows, zeroed when allocated.
#[derive(Debug, Clone)]
pub struct RingMemory {
    /// Entries.
    pub size: u16,
    /// Descriptor table, or the packed ring itself.
    pub desc: GuestSlice,
    /// Available ring, or the driver's event suppression.
    pub avail: GuestSlice,
    /// Used ring, or the device's event suppression.
    pub used: GuestSlice,
}

impl RingMemory {
    /// Allocates a split ring of `size` entries, the used ring on a page of its own.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn allocate(memory: &Arc<GuestMemory>, size: u16) -> Result<Self, MemoryError> {
        let (avail, used) = (RingLayout::avail_len(size), RingLayout::used_len(size));
        Self::allocate_parts(memory, size, (avail, 64), (used, PAGE_SIZE))
    }

    /// Allocates a packed ring of `size` entries, each side's event suppression on a cache line of its own.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn allocate_packed(memory: &Arc<GuestMemory>, size: u16) -> Result<Self, MemoryError> {
        let event = (PACKED_EVENT_SIZE, 64);
        Self::allocate_parts(memory, size, event, event)
    }

    /// All three parts, two of them of a length and an alignment; or none, where memory does not do for all.
    fn allocate_parts(
        memory: &Arc<GuestMemory>,
        size: u16,
        avail: (usize, usize),
        used: (usize, usize),
    ) -> Result<Self, MemoryError> {
        let desc = memory.allocate(RingLayout::desc_len(size), PAGE_SIZE)?;
        let avail = memory.allocate(avail.0, avail.1);
        let avail = avail.inspect_err(|_| memory.release(&desc))?;
        let used = memory.allocate(used.0, used.1).inspect_err(|_| {
            memory.release(&desc);
            memory.release(&avail);
        })?;
        let ring = Self {
            size,
            desc,
            avail,
            used,
        };
        ring.clear();
        Ok(ring)
    }

    /// Takes the three parts of a split ring where `layout` says, without touching them.
    ///
    /// # Errors
    /// When a part is not in one region of guest memory.
    pub fn at(
        memory: &Arc<GuestMemory>,
        size: u16,
        layout: RingLayout,
    ) -> Result<Self, MemoryError> {
        Ok(Self {
            size,
            desc: memory.slice(layout.desc, RingLayout::desc_len(size))?,
            avail: memory.slice(layout.avail, RingLayout::avail_len(size))?,
            used: memory.slice(layout.used, RingLayout::used_len(size))?,
        })
    }

    /// Takes the three parts of a packed ring where `layout` says, without touching them.
    ///
    /// # Errors
    /// When a part is not in one region of guest memory.
    pub fn at_packed(
        memory: &Arc<GuestMemory>,
        size: u16,
        layout: RingLayout,
    ) -> Result<Self, MemoryError> {
        Ok(Self {
            size,
            desc: memory.slice(layout.desc, RingLayout::desc_len(size))?,
            avail: memory.slice(layout.avail, PACKED_EVENT_SIZE)?,
            used: memory.slice(layout.used, PACKED_EVENT_SIZE)?,
        })
    }

    /// Guest addresses of the three parts.
    #[must_use]
    pub fn layout(&self) -> RingLayout {
        RingLayout {
            desc: self.desc.guest_addr(),
            avail: self.avail.guest_addr(),
            used: self.used.guest_addr(),
        }
    }

    /// Zeroes all three parts.
    pub fn clear(&self) {
        for part in [&self.desc, &self.avail, &self.used] {
            part.fill(0, part.len(), 0);
        }
    }

    /// Gives the memory back; the device must no longer use it.
    pub fn release(&self) {
        for part in [&self.desc, &self.avail, &self.used] {
            part.memory().release(part);
        }
    }
}

/// A buffer that the device has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// What the driver called the buffer when it added it.
    pub token: u32,
    /// Bytes the device says it wrote. Not to be trusted.
    pub len: u32,
    /// Bytes the device could write.
    pub writable: u32,
}

/// Why a ring was given up: the device broke a rule that no driver can go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// `used.idx` is ahead of what was made available, or went backwards.
    #[error("used index moved from {from} to {to} with {outstanding} buffers outstanding")]
    UsedIndex {
        /// Index up to which buffers were taken.
        from: u16,
        /// Index read now.
        to: u16,
        /// Buffers the device had.
        outstanding: u16,
    },
    /// A used id is not a descriptor of this ring.
    #[error("used id {id} out of range for a ring of {size}")]
    UsedId {
        /// What the device wrote.
        id: u32,
        /// Entries of the ring.
        size: u16,
    },
    /// A used id is not the head of a buffer that the device has.
    #[error("used id {id} is not a head in flight")]
    NotInFlight {
        /// What the device wrote.
        id: u32,
    },
    /// With IN_ORDER: a used id is the last of more buffers than `used.idx` says were used.
    #[error("used id {id} ends a batch of more buffers than the used index says")]
    Batch {
        /// What the device wrote.
        id: u32,
    },
}

/// Why a buffer was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Too few free descriptors: try again after completions.
    #[error("ring full")]
    Full,
    /// A buffer must have at least one piece.
    #[error("a buffer without pieces")]
    Empty,
    /// More pieces than the ring has entries.
    #[error("{0} pieces do not fit into this ring at all")]
    TooLong(usize),
    /// The ring was given up.
    #[error("ring broken: {0}")]
    Broken(#[from] RingFault),
}

/// A place in a packed ring with the counter of the round it is in, as events have it and, twice, the
/// base of a vhost-user ring: 15 bits of offset, one of wrap counter (virtio 1.3, 2.8.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffWrap(pub u16);

impl OffWrap {
    /// Where a ring begins: offset 0, wrap counter 1.
    pub const START: Self = Self(1 << VRING_PACKED_EVENT_F_WRAP_CTR);

    /// Offset `off`, which is below 32768, in a round whose counter is `wrap`.
    #[inline]
    #[must_use]
    pub const fn new(off: u16, wrap: bool) -> Self {
        Self(off | (wrap as u16) << VRING_PACKED_EVENT_F_WRAP_CTR)
    }

    /// The offset.
    #[inline]
    #[must_use]
    pub const fn off(self) -> u16 {
        self.0 & !Self::START.0
    }

    /// The wrap counter.
    #[inline]
    #[must_use]
    pub const fn wrap(self) -> bool {
        self.0 & Self::START.0 != 0
    }

    /// `count` entries (at most `size`) further in a ring of `size`.
    #[inline]
    #[must_use]
    pub fn advance(self, count: u16, size: u16) -> Self {
        // Both are at most 32768.
        let off = u32::from(self.off()) + u32::from(count);
        if off >= u32::from(size) {
            Self::new((off - u32::from(size)) as u16, !self.wrap())
        } else {
            Self::new(off as u16, self.wrap())
        }
    }

    /// Both bits of a descriptor's flags as the driver writes them in this round.
    #[inline]
    #[must_use]
    pub fn avail_flags(self) -> u16 {
        if self.wrap() {
            VRING_PACKED_DESC_F_AVAIL
        } else {
            VRING_PACKED_DESC_F_USED
        }
    }
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.3, 2.7.7.2; all modulo
/// 65536).
#[inline]
#[must_use]
pub fn vring_need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
