//! Places in a packed ring (VIRTIO 1.3, 2.8.1).
//!
//! Both sides go round the ring, and each has a wrap counter of one bit that changes each time. A descriptor's flags
//! AVAIL and USED say by whom it was written and in which round: they differ where it is available, with AVAIL as the
//! counter is, and both are as the counter is where it is used.

use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_F_WRAP_CTR,
};

const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
/// The flags that say who wrote a descriptor, and when.
pub(crate) const STATE: u16 = AVAIL | USED;
/// The wrap counter beside an index, in the words that front-ends and drivers use.
const WRAP: u16 = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;

/// A place in the ring, and the wrap counter there: in the lower half the descriptor, below the ring's size, and in the upper
/// the flags of one that is used there, both or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(u32);

impl Cursor {
    /// Where both sides begin.
    pub const START: u16 = WRAP;

    /// What `word` says: the index, and in bit 15 the wrap counter.
    #[must_use]
    #[inline]
    pub fn new(word: u16) -> Self {
        let used = if word & WRAP == 0 { 0 } else { STATE };
        Cursor(u32::from(word & !WRAP) | (u32::from(used) << 16))
    }

    /// Index and wrap counter as one word.
    #[must_use]
    #[inline]
    pub fn word(self) -> u16 {
        // Bit 15 in both.
        const { assert!(USED == WRAP) }
        self.index() | (self.used() & USED)
    }

    /// The descriptor.
    #[inline]
    pub(crate) fn index(self) -> u16 {
        self.0 as u16
    }

    /// The flags of a descriptor that is available here.
    #[inline]
    pub(crate) fn available(self) -> u16 {
        self.used() ^ USED
    }

    /// The flags of a descriptor that is used here.
    #[inline]
    pub(crate) fn used(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The place `entries` behind it in a ring of `size`, once round at most.
    #[inline(always)] // on the way of each packet, and small
    #[must_use]
    pub(crate) fn after(self, entries: u16, size: u16) -> Self {
        debug_assert!(self.index() < size && entries <= size && size <= WRAP);
        let moved = Cursor(self.0 + u32::from(entries));
        if moved.index() < size {
            moved
        } else {
            moved.round(size)
        }
    }

    #[cold] // so that the others do without conditional moves
    #[inline(never)]
    fn round(self, size: u16) -> Self {
        Cursor((self.0 - u32::from(size)) ^ (u32::from(STATE) << 16))
    }

    /// How many descriptors lie between `earlier` and this place in a ring of `size`, where the two are less than two
    /// rounds apart: after two rounds the wrap counter is what it was.
    pub(crate) fn since(self, earlier: Cursor, size: u16) -> u32 {
        let rounds = 2 * u32::from(size);
        let place = |at: Cursor| {
            let round = if at.used() == 0 { size } else { 0 };
            u32::from(at.index()) + u32::from(round)
        };
        let (here, there) = (place(self), place(earlier));
        if here >= there {
            here - there
        } else {
            here + rounds - there
        }
    }
}
