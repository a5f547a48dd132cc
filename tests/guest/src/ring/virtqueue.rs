//! A virtqueue of either layout, as the driver of a device sees it (Linux: `struct virtqueue`).
//!
//! The layout is chosen at set-up, by features, and named once a call here; who adds many buffers at once
//! asks once for all of them. What each function does is told in [`SplitQueue`] and [`PackedQueue`].

use std::sync::Arc;

use super::packed::PackedQueue;
use super::split::{SplitQueue, SplitQueueOptions};
use super::{AddError, OffWrap, RingFault, RingMemory, Segment, Used};
use crate::memory::{GuestMemory, MemoryError};

/// How a virtqueue is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtqueueOptions {
    /// `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
    /// `VIRTIO_F_IN_ORDER` was negotiated.
    pub in_order: bool,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Entries of each indirect table; 0 when `VIRTIO_F_INDIRECT_DESC` was not negotiated.
    pub indirect: u16,
}

impl VirtqueueOptions {
    /// Whether there can be a ring of `size` entries: up to 32768, in a split ring a power of two.
    #[must_use]
    pub fn size_is_possible(self, size: u16) -> bool {
        (1..=super::packed::MAX_SIZE).contains(&size) && (self.packed || size.is_power_of_two())
    }
}

/// A virtqueue.
#[derive(Debug)]
pub enum Virtqueue {
    /// With a split ring.
    Split(SplitQueue),
    /// With a packed ring.
    Packed(PackedQueue),
}

/// Calls the same function of either.
macro_rules! either {
    ($queue:expr, $vq:ident => $call:expr) => {
        match $queue {
            $crate::ring::virtqueue::Virtqueue::Split($vq) => $call,
            $crate::ring::virtqueue::Virtqueue::Packed($vq) => $call,
        }
    };
}
pub(crate) use either;

impl Virtqueue {
    /// Allocates a ring of `size` entries.
    ///
    /// # Errors
    /// When guest memory is full.
    ///
    /// # Panics
    /// When there is no such ring: see [`VirtqueueOptions::size_is_possible`].
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        options: VirtqueueOptions,
    ) -> Result<Self, MemoryError> {
        if options.packed {
            return Ok(Self::Packed(PackedQueue::new(memory, size, options)?));
        }
        let split = SplitQueueOptions {
            event_idx: options.event_idx,
            indirect: options.indirect,
        };
        let vq = SplitQueue::new(memory, size, split)?;
        Ok(Self::Split(if options.in_order {
            vq.in_order()
        } else {
            vq
        }))
    }

    /// Whether the ring is a packed one.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        either!(self, vq => vq.size())
    }

    /// The ring's memory, to tell a transport where it is or to write into it raw.
    #[must_use]
    pub fn ring(&self) -> &RingMemory {
        either!(self, vq => vq.ring())
    }

    /// Free descriptors.
    #[must_use]
    pub fn num_free(&self) -> u16 {
        either!(self, vq => vq.num_free())
    }

    /// Buffers that the device has and has not used, as far as this side knows.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        either!(self, vq => vq.outstanding())
    }

    /// Where a device is to go on that knows nothing but what the driver has taken, as vhost-user has it
    /// (`SET_VRING_BASE`): an available index; in a packed ring the next available descriptor in the lower half
    /// and the next used one in the upper.
    #[must_use]
    pub fn vring_base(&self) -> u32 {
        match self {
            Self::Split(vq) => vq.last_used_idx().into(),
            Self::Packed(vq) => packed_base(vq.last_used(), vq.last_used()),
        }
    }

    /// Why the ring was given up, if it was.
    #[must_use]
    pub fn fault(&self) -> Option<RingFault> {
        either!(self, vq => vq.fault())
    }

    /// Adds a buffer: pieces that the device reads, then pieces that it writes (`virtqueue_add`).
    ///
    /// # Errors
    /// [`AddError::Full`] when descriptors are short; the other kinds cannot be waited away.
    #[inline(always)] // callers know how many pieces they have
    pub fn add(&mut self, out: &[Segment], input: &[Segment], token: u32) -> Result<(), AddError> {
        either!(self, vq => vq.add(out, input, token))
    }

    /// Makes all added buffers available; in a packed ring each is at once.
    pub fn publish(&mut self) {
        if let Self::Split(vq) = self {
            vq.publish();
        }
    }

    /// Publishes, and says whether the device wants a kick (`virtqueue_kick_prepare`).
    #[must_use]
    pub fn kick_prepare(&mut self) -> bool {
        either!(self, vq => vq.kick_prepare())
    }

    /// Takes the next used buffer (`virtqueue_get_buf`).
    ///
    /// # Errors
    /// What the device did wrong; the ring is broken from then on.
    #[inline(always)] // on the way of each packet, in both directions
    pub fn get_buf(&mut self) -> Result<Option<Used>, RingFault> {
        either!(self, vq => vq.get_buf())
    }

    /// Whether used buffers wait to be taken (`more_used`).
    #[must_use]
    pub fn more_used(&self) -> bool {
        either!(self, vq => vq.more_used())
    }

    /// Asks for no interrupts (`virtqueue_disable_cb`). A hint: some may still come.
    pub fn disable_cb(&mut self) {
        either!(self, vq => vq.disable_cb());
    }

    /// Asks for an interrupt with the next used buffer; what it returns is for [`Self::poll`]
    /// (`virtqueue_enable_cb_prepare`).
    pub fn enable_cb_prepare(&mut self) -> u16 {
        either!(self, vq => vq.enable_cb_prepare())
    }

    /// Whether the device used a buffer since [`Self::enable_cb_prepare`] (`virtqueue_poll`).
    #[must_use]
    pub fn poll(&self, opaque: u16) -> bool {
        either!(self, vq => vq.poll(opaque))
    }

    /// Asks for interrupts and looks once more: `false` means that buffers came in between, for
    /// which no interrupt may follow, so the caller has to look again (`virtqueue_enable_cb`).
    #[must_use]
    pub fn enable_cb(&mut self) -> bool {
        either!(self, vq => vq.enable_cb())
    }

    /// Asks for an interrupt when three quarters of what is in flight is used; `false` when the caller has
    /// to look at once (`virtqueue_enable_cb_delayed`).
    #[must_use]
    pub fn enable_cb_delayed(&mut self) -> bool {
        either!(self, vq => vq.enable_cb_delayed())
    }

    /// Takes back a buffer that the device never used, once it is stopped
    /// (`virtqueue_detach_unused_buf`).
    pub fn detach_unused_buf(&mut self) -> Option<u32> {
        either!(self, vq => vq.detach_unused_buf())
    }

    /// Starts over with an empty, zeroed ring, as after a device reset.
    pub fn reset(&mut self) {
        either!(self, vq => vq.reset());
    }

    /// Gives all guest memory of the ring back; the device must be stopped.
    pub fn release(self) {
        either!(self, vq => vq.release());
    }
}

/// Where a packed ring goes on, in the 32 bits that vhost-user has for it.
#[must_use]
pub fn packed_base(avail: OffWrap, used: OffWrap) -> u32 {
    u32::from(avail.0) | u32::from(used.0) << 16
}
