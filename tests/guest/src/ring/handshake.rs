//! The driver's half of the notification handshake: interrupts masked and asked for, kicks decided
//! (virtio 1.3, 2.7.7, 2.7.10 and 2.7.13.4).
//!
//! What enters: the words of a ring that both sides write, and indices that the driver keeps to
//! itself. What leaves: whether to sleep, whether to kick. A wake-up is lost when one side goes to
//! sleep while the other believes that nobody wants to hear of its news. The same two rules prevent
//! it in both directions:
//!
//! - who is about to sleep writes that it wants to be notified, and only then looks for news;
//! - who has news writes them, and only then looks whether a notification is wanted.
//!
//! With a full fence between writing and looking on either side, at least one of the two sees what
//! the other wrote. Without it both may look at the past: processors let a load overtake an earlier
//! store.
//!
//! The functions are written over [`IndexCells`], so that a model checker can run them on cells that
//! show every value which the memory model allows. On guest memory they are inlined to the loads
//! and stores themselves.

use super::{
    RING_ENTRIES, RING_FLAGS, RING_IDX, RingMemory, VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_USED_F_NO_NOTIFY, vring_need_event,
};
use crate::memory::{GuestSlice, virtio_mb};

/// The words of a split ring that the handshake is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexCell {
    /// `avail.flags`: the driver's, whether it wants interrupts.
    AvailFlags,
    /// `avail.idx`: the driver's, how far it has added buffers.
    AvailIdx,
    /// `used_event`: the driver's, the used index that it wants an interrupt behind.
    UsedEvent,
    /// `used.flags`: the device's, whether it wants kicks.
    UsedFlags,
    /// `used.idx`: the device's, how far it has used buffers.
    UsedIdx,
    /// `avail_event`: the device's, the available index that it wants a kick behind.
    AvailEvent,
}

/// Access to those words.
pub trait IndexCells {
    /// Loads an index: what the other side wrote before it is visible afterwards.
    fn load_acquire(&self, cell: IndexCell) -> u16;
    /// Stores an index: what was written before it is visible to whoever loads it.
    fn store_release(&self, cell: IndexCell, value: u16);
    /// Reads a word, in no order with anything else.
    fn read(&self, cell: IndexCell) -> u16;
    /// Writes a word, in no order with anything else.
    fn write(&self, cell: IndexCell, value: u16);
    /// Orders all that this side has written before all that it reads next.
    fn fence(&self);
}

impl RingMemory {
    #[inline]
    fn place(&self, cell: IndexCell) -> (&GuestSlice, usize) {
        let size = usize::from(self.size);
        match cell {
            IndexCell::AvailFlags => (&self.avail, RING_FLAGS),
            IndexCell::AvailIdx => (&self.avail, RING_IDX),
            IndexCell::UsedEvent => (&self.avail, RING_ENTRIES + 2 * size),
            IndexCell::UsedFlags => (&self.used, RING_FLAGS),
            IndexCell::UsedIdx => (&self.used, RING_IDX),
            IndexCell::AvailEvent => (&self.used, RING_ENTRIES + 8 * size),
        }
    }
}

impl IndexCells for RingMemory {
    #[inline]
    fn load_acquire(&self, cell: IndexCell) -> u16 {
        let (part, offset) = self.place(cell);
        part.load_acquire_u16(offset)
    }

    #[inline]
    fn store_release(&self, cell: IndexCell, value: u16) {
        let (part, offset) = self.place(cell);
        part.store_release_u16(offset, value);
    }

    #[inline]
    fn read(&self, cell: IndexCell) -> u16 {
        let (part, offset) = self.place(cell);
        part.read_u16(offset)
    }

    #[inline]
    fn write(&self, cell: IndexCell, value: u16) {
        let (part, offset) = self.place(cell);
        part.write_u16(offset, value);
    }

    #[inline]
    fn fence(&self) {
        virtio_mb();
    }
}

/// What the driver remembers of the handshake; the indices are the queue's.
#[derive(Debug, Clone, Copy)]
pub struct Handshake {
    event_idx: bool,
    /// No interrupts are wanted. With EVENT_IDX no flag in the ring says so.
    masked: bool,
}

impl Handshake {
    /// The start of a ring that was zeroed: interrupts and kicks are wanted.
    #[must_use]
    pub fn new(event_idx: bool) -> Self {
        Self {
            event_idx,
            masked: false,
        }
    }

    /// What is left after a reset: what was negotiated.
    #[must_use]
    pub fn restarted(self) -> Self {
        Self::new(self.event_idx)
    }

    /// The start of a ring whose indices are not zero but `last_used`.
    pub fn start_at(&self, ring: &impl IndexCells, last_used: u16) {
        if self.event_idx {
            let event = if self.masked {
                behind(last_used)
            } else {
                last_used
            };
            ring.write(IndexCell::UsedEvent, event);
        }
    }

    /// Makes buffers available up to `avail_idx`.
    #[inline]
    pub fn publish(&self, ring: &impl IndexCells, avail_idx: u16) {
        ring.store_release(IndexCell::AvailIdx, avail_idx);
    }

    /// Whether the device wants a kick for the buffers from `old` to `new`, which have been published
    /// (`virtqueue_kick_prepare`).
    #[inline]
    #[must_use]
    pub fn kick_wanted(&self, ring: &impl IndexCells, old: u16, new: u16) -> bool {
        // The device must see the index before we look whether it wants to hear of it.
        ring.fence();
        if self.event_idx {
            vring_need_event(ring.read(IndexCell::AvailEvent), new, old)
        } else {
            ring.read(IndexCell::UsedFlags) & VIRTQ_USED_F_NO_NOTIFY == 0
        }
    }

    /// How far the device has used buffers.
    #[inline]
    #[must_use]
    pub fn used_idx(&self, ring: &impl IndexCells) -> u16 {
        ring.load_acquire(IndexCell::UsedIdx)
    }

    /// Buffers were taken up to `last_used` (the end of `virtqueue_get_buf`): if interrupts are
    /// wanted, the next one is for the next buffer. Who then finds no buffer may sleep, since the
    /// fence stands before that look too.
    #[inline]
    pub fn taken(&self, ring: &impl IndexCells, last_used: u16) {
        if self.event_idx && !self.masked {
            ring.write(IndexCell::UsedEvent, last_used);
            ring.fence();
        }
    }

    /// Asks for no interrupts (`virtqueue_disable_cb`). A hint: some may still come.
    ///
    /// With EVENT_IDX there is no off: the event index is put as far away as it can be, so that the
    /// device passes it only after 65535 more buffers. (Linux writes 0.)
    #[inline]
    pub fn disable_cb(&mut self, ring: &impl IndexCells, last_used: u16) {
        if self.masked {
            return;
        }
        self.masked = true;
        if self.event_idx {
            ring.write(IndexCell::UsedEvent, behind(last_used));
        } else {
            ring.write(IndexCell::AvailFlags, VIRTQ_AVAIL_F_NO_INTERRUPT);
        }
    }

    /// Asks for an interrupt with the next buffer used after `last_used`, for which
    /// [`Self::poll`] must look before anybody sleeps (`virtqueue_enable_cb_prepare`).
    #[inline]
    pub fn enable_cb_prepare(&mut self, ring: &impl IndexCells, last_used: u16) {
        if self.event_idx {
            ring.write(IndexCell::UsedEvent, last_used);
        } else if self.masked {
            ring.write(IndexCell::AvailFlags, 0);
        }
        self.masked = false;
    }

    /// Whether the device used a buffer since `last_used` (`virtqueue_poll`).
    #[inline]
    #[must_use]
    pub fn poll(&self, ring: &impl IndexCells, last_used: u16) -> bool {
        self.used_since(ring, last_used) != 0
    }

    /// Asks for an interrupt with the next used buffer, and looks once more: `false` means that the
    /// device used buffers meanwhile, for which no interrupt may follow (`virtqueue_enable_cb`).
    #[inline]
    #[must_use]
    pub fn enable_cb(&mut self, ring: &impl IndexCells, last_used: u16) -> bool {
        self.enable_cb_prepare(ring, last_used);
        !self.poll(ring, last_used)
    }

    /// Asks for an interrupt once three quarters of the `outstanding` buffers are used and one
    /// more is; `false` means that they already are (`virtqueue_enable_cb_delayed`).
    ///
    /// `true` does not mean that there is nothing to take. Without EVENT_IDX the device cannot wait
    /// for so many: its next used buffer interrupts.
    #[inline]
    #[must_use]
    pub fn enable_cb_delayed(
        &mut self,
        ring: &impl IndexCells,
        last_used: u16,
        outstanding: u16,
    ) -> bool {
        let bufs = (u32::from(outstanding) * 3 / 4) as u16;
        let event = last_used.wrapping_add(bufs);
        self.enable_cb_prepare(ring, event);
        self.used_since(ring, last_used) <= bufs
    }

    /// Buffers used since `last_used`, by a look that comes after all that was written.
    #[inline]
    fn used_since(&self, ring: &impl IndexCells, last_used: u16) -> u16 {
        // The device must see what we ask for before we look for what it has done.
        ring.fence();
        self.used_idx(ring).wrapping_sub(last_used)
    }
}

/// The event index that is passed last of all.
#[inline]
fn behind(last_used: u16) -> u16 {
    last_used.wrapping_sub(1)
}
