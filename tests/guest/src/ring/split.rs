//! The split virtqueue, driver side (Linux: `drivers/virtio/virtio_ring.c`).
//!
//! What enters: buffers as lists of guest addresses, each with a token of the driver's choice. What
//! leaves: the tokens, when the device has used the buffers, and whether a kick or an interrupt is
//! due. The device can write all of the ring, so nothing in it is read back but the used ring: the
//! chain of a buffer is kept in a private copy (`DescExtra`), and each used element is checked
//! against what is in flight. A device that breaks a rule breaks the ring, for good.
//!
//! Publishing is batched: [`SplitQueue::add`] fills descriptors, [`SplitQueue::kick_prepare`]
//! stores the index once for all of them.
//!
//! How used buffers are taken is in `used`. With IN_ORDER descriptors are used in the order of the table.

mod used;

use std::sync::Arc;

use super::handshake::{Handshake, IndexCell, IndexCells};
use super::{
    AddError, DESC_SIZE, RING_ENTRIES, RingFault, RingMemory, Segment, VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};
use crate::memory::{GuestMemory, GuestSlice, MemoryError};
use used::InOrder;

/// How a ring is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitQueueOptions {
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Entries of each indirect table; 0 when `VIRTIO_F_INDIRECT_DESC` was not negotiated.
    pub indirect: u16,
}

/// Private copy of a descriptor (Linux: `vring_desc_extra`).
#[derive(Debug, Clone, Copy, Default)]
struct DescExtra {
    next: u16,
}

/// What is in flight under a head descriptor (Linux: `vring_desc_state_split`).
#[derive(Debug, Clone, Copy, Default)]
struct DescState {
    /// Descriptors of the chain; 0 when nothing is in flight here.
    count: u16,
    last: u16,
    token: u32,
    writable: u32,
}

/// A split virtqueue.
#[derive(Debug)]
pub struct SplitQueue {
    ring: RingMemory,
    mask: u16,
    handshake: Handshake,
    indirect: Option<GuestSlice>,
    indirect_entries: u16,
    extra: Vec<DescExtra>,
    state: Vec<DescState>,
    free_head: u16,
    num_free: u16,
    /// Next available index, perhaps not published yet.
    avail_idx: u16,
    /// `avail.idx` as last stored.
    published: u16,
    /// Buffers added since the last kick decision (Linux: `num_added`).
    num_added: u32,
    last_used_idx: u16,
    /// `used.idx` as last loaded and checked; that of `last_used_idx` where [`Self::get_buf_unseen`] has
    /// to be asked for each buffer: in a broken ring, and with IN_ORDER.
    used_seen: u16,
    in_order: Option<InOrder>,
    broken: Option<RingFault>,
}

impl SplitQueue {
    /// Allocates a ring of `size` entries, a power of two.
    ///
    /// # Errors
    /// When guest memory is full.
    ///
    /// # Panics
    /// When `size` is not a power of two up to 32768.
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        options: SplitQueueOptions,
    ) -> Result<Self, MemoryError> {
        let ring = RingMemory::allocate(memory, size)?;
        Self::with_ring(ring.clone(), options).inspect_err(|_| ring.release())
    }

    /// Makes a ring of memory that was placed by the caller and zeroed.
    ///
    /// # Errors
    /// When there is no room for the indirect tables.
    ///
    /// # Panics
    /// When the size is not a power of two up to 32768.
    pub fn with_ring(ring: RingMemory, options: SplitQueueOptions) -> Result<Self, MemoryError> {
        let size = ring.size;
        assert!(
            size.is_power_of_two(),
            "ring size {size} is not a power of two"
        );
        let indirect = if options.indirect == 0 {
            None
        } else {
            let len = usize::from(size) * usize::from(options.indirect) * DESC_SIZE;
            Some(ring.desc.memory().allocate(len, DESC_SIZE)?)
        };
        Ok(Self {
            mask: size - 1,
            handshake: Handshake::new(options.event_idx),
            indirect,
            indirect_entries: options.indirect,
            extra: (1..=size)
                .map(|next| DescExtra { next: next % size })
                .collect(),
            state: vec![DescState::default(); usize::from(size)],
            free_head: 0,
            num_free: size,
            avail_idx: 0,
            published: 0,
            num_added: 0,
            last_used_idx: 0,
            used_seen: 0,
            in_order: None,
            broken: None,
            ring,
        })
    }

    /// The same ring, not used yet, where `VIRTIO_F_IN_ORDER` was negotiated.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.in_order = Some(InOrder::default());
        self
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size
    }

    /// The ring's memory, to tell a transport where it is or to write into it raw.
    #[must_use]
    pub fn ring(&self) -> &RingMemory {
        &self.ring
    }

    /// Free descriptors.
    #[must_use]
    pub fn num_free(&self) -> u16 {
        self.num_free
    }

    /// Buffers that the device has and has not used, as far as this side knows.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.last_used_idx)
    }

    /// Index up to which used buffers were taken.
    #[must_use]
    pub fn last_used_idx(&self) -> u16 {
        self.last_used_idx
    }

    /// Available index, counting buffers that are not published yet.
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// Why the ring was given up, if it was.
    #[must_use]
    pub fn fault(&self) -> Option<RingFault> {
        self.broken
    }

    /// Adds a buffer: pieces that the device reads, then pieces that it writes (`virtqueue_add`).
    ///
    /// # Errors
    /// [`AddError::Full`] when descriptors are short; the other kinds cannot be waited away.
    #[inline(always)] // callers know how many pieces they have
    pub fn add(&mut self, out: &[Segment], input: &[Segment], token: u32) -> Result<(), AddError> {
        match (out, input) {
            // Most buffers: one descriptor.
            (&[], &[piece]) => self.add_one(piece, VIRTQ_DESC_F_WRITE, piece.len, token),
            (&[piece], &[]) => self.add_one(piece, 0, 0, token),
            _ => self.add_chain(out, input, token),
        }
    }

    #[inline(always)] // on the way of each packet, in both directions
    fn add_one(
        &mut self,
        piece: Segment,
        flags: u16,
        writable: u32,
        token: u32,
    ) -> Result<(), AddError> {
        if let Some(fault) = self.broken {
            return Err(fault.into());
        }
        if self.num_free == 0 {
            return Err(AddError::Full);
        }
        let head = self.free_head;
        let next = self.extra[usize::from(head)].next;
        write_desc(&self.ring.desc, usize::from(head), piece, flags, next);
        let chain = DescState {
            count: 1,
            last: head,
            token,
            writable,
        };
        self.make_available(head, next, chain);
        Ok(())
    }

    #[inline(never)]
    fn add_chain(
        &mut self,
        out: &[Segment],
        input: &[Segment],
        token: u32,
    ) -> Result<(), AddError> {
        if let Some(fault) = self.broken {
            return Err(fault.into());
        }
        let total = out.len() + input.len();
        if total == 0 {
            return Err(AddError::Empty);
        }
        let pieces = out
            .iter()
            .map(|piece| (piece, 0))
            .chain(input.iter().map(|piece| (piece, VIRTQ_DESC_F_WRITE)));
        let head = self.free_head;
        let use_indirect = total > 1 && total <= usize::from(self.indirect_entries);
        let (count, last) = if use_indirect {
            if self.num_free == 0 {
                return Err(AddError::Full);
            }
            self.write_indirect(head, total, pieces);
            (1, head)
        } else {
            let count = u16::try_from(total)
                .ok()
                .filter(|&count| count <= self.ring.size)
                .ok_or(AddError::TooLong(total))?;
            if count > self.num_free {
                return Err(AddError::Full);
            }
            (count, self.write_chain(head, count, pieces))
        };
        let writable = input
            .iter()
            .fold(0, |sum: u32, piece| sum.saturating_add(piece.len));
        let next = self.extra[usize::from(last)].next;
        let chain = DescState {
            count,
            last,
            token,
            writable,
        };
        self.make_available(head, next, chain);
        Ok(())
    }

    /// Puts the chain from `head` on into the available ring; `next` is free then.
    #[inline]
    fn make_available(&mut self, head: u16, next: u16, chain: DescState) {
        self.free_head = next;
        self.num_free -= chain.count;
        self.state[usize::from(head)] = chain;
        let slot = usize::from(self.avail_idx & self.mask);
        self.ring.avail.write_u16(RING_ENTRIES + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.num_added = self.num_added.saturating_add(1);
    }

    fn write_chain<'a>(
        &self,
        head: u16,
        count: u16,
        pieces: impl Iterator<Item = (&'a Segment, u16)>,
    ) -> u16 {
        let (mut index, mut last) = (head, head);
        for ((piece, flags), left) in pieces.zip((0..count).rev()) {
            let next = self.extra[usize::from(index)].next;
            let flags = if left > 0 {
                flags | VIRTQ_DESC_F_NEXT
            } else {
                flags
            };
            write_desc(&self.ring.desc, usize::from(index), *piece, flags, next);
            last = index;
            index = next;
        }
        last
    }

    fn write_indirect<'a>(
        &self,
        head: u16,
        total: usize,
        pieces: impl Iterator<Item = (&'a Segment, u16)>,
    ) {
        let Some(tables) = &self.indirect else { return };
        let first = usize::from(head) * usize::from(self.indirect_entries);
        for (index, (piece, flags)) in pieces.enumerate() {
            let more = index + 1 < total;
            let flags = if more {
                flags | VIRTQ_DESC_F_NEXT
            } else {
                flags
            };
            let next = if more { index as u16 + 1 } else { 0 };
            write_desc(tables, first + index, *piece, flags, next);
        }
        let table = Segment::new(
            tables.guest_addr() + (first * DESC_SIZE) as u64,
            (total * DESC_SIZE) as u32,
        );
        write_desc(
            &self.ring.desc,
            usize::from(head),
            table,
            VIRTQ_DESC_F_INDIRECT,
            0,
        );
    }

    /// Makes all added buffers available with one store of the index.
    pub fn publish(&mut self) {
        if self.published != self.avail_idx {
            self.handshake.publish(&self.ring, self.avail_idx);
            self.published = self.avail_idx;
        }
    }

    /// Publishes, and says whether the device wants a kick (`virtqueue_kick_prepare`).
    #[must_use]
    pub fn kick_prepare(&mut self) -> bool {
        self.publish();
        let added = std::mem::take(&mut self.num_added);
        if self.broken.is_some() {
            return false;
        }
        let Ok(added) = u16::try_from(added) else {
            return true;
        };
        let (old, new) = (self.avail_idx.wrapping_sub(added), self.avail_idx);
        self.handshake.kick_wanted(&self.ring, old, new)
    }

    /// Whether used buffers wait to be taken (`more_used`).
    #[must_use]
    pub fn more_used(&self) -> bool {
        self.broken.is_none() && self.handshake.used_idx(&self.ring) != self.last_used_idx
    }

    /// Asks for no interrupts (`virtqueue_disable_cb`). A hint: some may still come.
    pub fn disable_cb(&mut self) {
        self.handshake.disable_cb(&self.ring, self.last_used_idx);
    }

    /// Asks for an interrupt with the next used buffer; what it returns is for [`Self::poll`]
    /// (`virtqueue_enable_cb_prepare`).
    pub fn enable_cb_prepare(&mut self) -> u16 {
        self.handshake
            .enable_cb_prepare(&self.ring, self.last_used_idx);
        self.last_used_idx
    }

    /// Whether the device used a buffer since `last_used` (`virtqueue_poll`).
    #[must_use]
    pub fn poll(&self, last_used: u16) -> bool {
        self.broken.is_none() && self.handshake.poll(&self.ring, last_used)
    }

    /// Asks for interrupts and looks once more: `false` means that buffers came in between, for
    /// which no interrupt may follow, so the caller has to look again (`virtqueue_enable_cb`).
    #[must_use]
    pub fn enable_cb(&mut self) -> bool {
        let idle = self.handshake.enable_cb(&self.ring, self.last_used_idx);
        idle || self.broken.is_some()
    }

    /// Asks for an interrupt when three quarters of the outstanding buffers are used; `false` when
    /// they already are (`virtqueue_enable_cb_delayed`).
    #[must_use]
    pub fn enable_cb_delayed(&mut self) -> bool {
        let outstanding = self.outstanding();
        self.handshake
            .enable_cb_delayed(&self.ring, self.last_used_idx, outstanding)
    }

    /// Takes back a buffer that the device never used, once it is stopped
    /// (`virtqueue_detach_unused_buf`).
    pub fn detach_unused_buf(&mut self) -> Option<u32> {
        let head = self.state.iter().position(|state| state.count > 0)?;
        let DescState {
            count, last, token, ..
        } = std::mem::take(&mut self.state[head]);
        match &mut self.in_order {
            // The order of the table stays, and begins where it ended.
            Some(in_order) => in_order.next_head = self.free_head,
            None => {
                self.extra[usize::from(last)].next = self.free_head;
                self.free_head = head as u16;
            }
        }
        self.num_free += count;
        // One less that the device may use.
        self.avail_idx = self.avail_idx.wrapping_sub(1);
        self.published = self.avail_idx;
        self.handshake.publish(&self.ring, self.avail_idx);
        Some(token)
    }

    /// Starts over with an empty, zeroed ring, as after a device reset.
    pub fn reset(&mut self) {
        let size = self.ring.size;
        self.ring.clear();
        for (next, extra) in (1..=size).zip(&mut self.extra) {
            extra.next = next % size;
        }
        self.state.fill(DescState::default());
        (self.free_head, self.num_free) = (0, size);
        (self.avail_idx, self.published, self.num_added) = (0, 0, 0);
        (self.last_used_idx, self.used_seen) = (0, 0);
        self.handshake = self.handshake.restarted();
        self.in_order = self.in_order.map(|_| InOrder::default());
        self.broken = None;
    }

    /// Gives all guest memory of the ring back; the device must be stopped.
    pub fn release(self) {
        if let Some(tables) = &self.indirect {
            tables.memory().release(tables);
        }
        self.ring.release();
    }

    /// Puts a ring that was never used at another start index, to test wrap-around.
    ///
    /// # Panics
    /// When buffers were added before.
    pub fn start_at(&mut self, index: u16) {
        assert!(self.num_free == self.ring.size && self.avail_idx == self.last_used_idx);
        (self.avail_idx, self.published) = (index, index);
        (self.last_used_idx, self.used_seen) = (index, index);
        if let Some(in_order) = &mut self.in_order {
            in_order.used_seen = index;
        }
        self.ring.store_release(IndexCell::AvailIdx, index);
        self.ring.store_release(IndexCell::UsedIdx, index);
        self.handshake.start_at(&self.ring, index);
    }
}

#[inline]
fn write_desc(table: &GuestSlice, index: usize, piece: Segment, flags: u16, next: u16) {
    let at = index * DESC_SIZE;
    let rest = u64::from(piece.len) | u64::from(flags) << 32 | u64::from(next) << 48;
    table.write_u64_pair(at, piece.addr, rest);
}
