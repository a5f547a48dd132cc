//! The driver's half of the notification handshake in a packed ring (virtio 1.3, 2.8.7, 2.8.10 and
//! 2.8.21; Linux: `drivers/virtio/virtio_ring.c`).
//!
//! What enters: the words of a ring that both sides write, and places that the driver keeps to itself.
//! What leaves: whether a descriptor was used, whether to sleep, whether to kick. The rules against lost
//! wake-ups are those of [`super::handshake`]; what differs is that no index tells of news, but the flags
//! of the descriptor itself, and that what each side wants is written in a structure of its own.
//!
//! The functions are written over [`PackedCells`], so that a model checker can run them.

use super::{
    DESC_SIZE, OffWrap, RingMemory, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
    vring_need_event,
};
use crate::memory::virtio_mb;

/// Where the flags of a descriptor are in it.
pub(super) const DESC_FLAGS: usize = 14;
/// Offsets in an event suppression structure.
pub(super) const EVENT_OFF_WRAP: usize = 0;
pub(super) const EVENT_FLAGS: usize = 2;

/// Access to the words of a packed ring that the handshake is about.
pub trait PackedCells {
    /// Loads the flags of the descriptor at `at`: what the other side wrote before is visible afterwards.
    fn load_flags(&self, at: u16) -> u16;
    /// Stores them: what was written before is visible to whoever loads them.
    fn store_flags(&self, at: u16, flags: u16);
    /// Reads what kicks the device wants, in no order with anything else: descriptor offset and flags, both
    /// of one moment.
    fn read_device_event(&self) -> (OffWrap, u16);
    /// Writes which descriptor the driver wants an interrupt for, in no order with anything else.
    fn write_driver_off_wrap(&self, at: OffWrap);
    /// Writes what interrupts the driver wants: the descriptor written before is visible to whoever loads it.
    fn store_driver_flags(&self, flags: u16);
    /// Orders all that this side has written before all that it reads next.
    fn fence(&self);
}

impl PackedCells for RingMemory {
    #[inline]
    fn load_flags(&self, at: u16) -> u16 {
        let offset = usize::from(at) * DESC_SIZE + DESC_FLAGS;
        self.desc.load_acquire_u16(offset)
    }

    #[inline]
    fn store_flags(&self, at: u16, flags: u16) {
        let offset = usize::from(at) * DESC_SIZE + DESC_FLAGS;
        self.desc.store_release_u16(offset, flags);
    }

    #[inline]
    fn read_device_event(&self) -> (OffWrap, u16) {
        let both = self.used.read_u32(EVENT_OFF_WRAP);
        (OffWrap(both as u16), (both >> 16) as u16)
    }

    #[inline]
    fn write_driver_off_wrap(&self, at: OffWrap) {
        self.avail.write_u16(EVENT_OFF_WRAP, at.0);
    }

    #[inline]
    fn store_driver_flags(&self, flags: u16) {
        self.avail.store_release_u16(EVENT_FLAGS, flags);
    }

    #[inline]
    fn fence(&self) {
        virtio_mb();
    }
}

/// What the driver remembers of the handshake; the places are the queue's.
#[derive(Debug, Clone, Copy)]
pub struct PackedHandshake {
    event_idx: bool,
    /// The driver's flags as last written.
    event_flags_shadow: u16,
}

impl PackedHandshake {
    /// The start of a ring that was zeroed: interrupts and kicks are wanted.
    #[must_use]
    pub fn new(event_idx: bool) -> Self {
        Self {
            event_idx,
            event_flags_shadow: VRING_PACKED_EVENT_FLAG_ENABLE,
        }
    }

    /// What is left after a reset: what was negotiated.
    #[must_use]
    pub fn restarted(self) -> Self {
        Self::new(self.event_idx)
    }

    /// Whether the device wants a kick for the `added` descriptors that end before `next`, which have been
    /// made available (`virtqueue_kick_prepare_packed`). A ring of `size` entries.
    #[inline]
    #[must_use]
    pub fn kick_wanted(
        &self,
        ring: &impl PackedCells,
        added: u16,
        next: OffWrap,
        size: u16,
    ) -> bool {
        // The device must see the descriptors before we look whether it wants to hear of them.
        ring.fence();
        let (event, flags) = ring.read_device_event();
        if flags != VRING_PACKED_EVENT_FLAG_DESC {
            return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
        }
        let mut event_idx = event.off();
        if event.wrap() != next.wrap() {
            event_idx = event_idx.wrapping_sub(size);
        }
        vring_need_event(event_idx, next.off(), next.off().wrapping_sub(added))
    }

    /// Whether the device has used the descriptor at `at` (`is_used_desc_packed`).
    #[inline]
    #[must_use]
    pub fn is_used(&self, ring: &impl PackedCells, at: OffWrap) -> bool {
        let flags = ring.load_flags(at.off());
        let avail = flags & VRING_PACKED_DESC_F_AVAIL != 0;
        let used = flags & VRING_PACKED_DESC_F_USED != 0;
        avail == used && used == at.wrap()
    }

    /// Buffers were taken up to `last_used` (the end of `virtqueue_get_buf_ctx_packed`): if interrupts are
    /// asked for by descriptor, the next one is for the next buffer. Who then finds no buffer may sleep, since
    /// the fence stands before that look too.
    #[inline]
    pub fn taken(&self, ring: &impl PackedCells, last_used: OffWrap) {
        if self.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DESC {
            ring.write_driver_off_wrap(last_used);
            ring.fence();
        }
    }

    /// Asks for no interrupts (`virtqueue_disable_cb_packed`). A hint: some may still come.
    #[inline]
    pub fn disable_cb(&mut self, ring: &impl PackedCells) {
        if self.event_flags_shadow != VRING_PACKED_EVENT_FLAG_DISABLE {
            self.event_flags_shadow = VRING_PACKED_EVENT_FLAG_DISABLE;
            ring.store_driver_flags(self.event_flags_shadow);
        }
    }

    /// Asks for an interrupt with the buffer used at `event`, for which [`Self::poll`] must look before
    /// anybody sleeps (`virtqueue_enable_cb_prepare_packed`).
    #[inline]
    pub fn enable_cb_prepare(&mut self, ring: &impl PackedCells, event: OffWrap) {
        if self.event_idx {
            // The flags that follow say that this counts.
            ring.write_driver_off_wrap(event);
        }
        if self.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DISABLE {
            self.event_flags_shadow = if self.event_idx {
                VRING_PACKED_EVENT_FLAG_DESC
            } else {
                VRING_PACKED_EVENT_FLAG_ENABLE
            };
            ring.store_driver_flags(self.event_flags_shadow);
        }
    }

    /// Whether the device has used the buffer at `last_used`, by a look that comes after all that was written
    /// (`virtqueue_poll_packed`).
    #[inline]
    #[must_use]
    pub fn poll(&self, ring: &impl PackedCells, last_used: OffWrap) -> bool {
        // The device must see what we ask for before we look for what it has done.
        ring.fence();
        self.is_used(ring, last_used)
    }

    /// Asks for an interrupt with the next used buffer, and looks once more: `false` means that the device used
    /// buffers meanwhile, for which no interrupt may follow (`virtqueue_enable_cb`).
    #[inline]
    #[must_use]
    pub fn enable_cb(&mut self, ring: &impl PackedCells, last_used: OffWrap) -> bool {
        self.enable_cb_prepare(ring, last_used);
        !self.poll(ring, last_used)
    }

    /// Asks for an interrupt once three quarters of the `in_flight` descriptors of a ring of `size` are used
    /// and one more is; `false` means that there is something to take (`virtqueue_enable_cb_delayed_packed`).
    ///
    /// Without EVENT_IDX the device cannot wait for so many: its next used buffer interrupts.
    #[inline]
    #[must_use]
    pub fn enable_cb_delayed(
        &mut self,
        ring: &impl PackedCells,
        last_used: OffWrap,
        in_flight: u16,
        size: u16,
    ) -> bool {
        let descs = (u32::from(in_flight) * 3 / 4) as u16;
        self.enable_cb_prepare(ring, last_used.advance(descs, size));
        !self.poll(ring, last_used)
    }
}
