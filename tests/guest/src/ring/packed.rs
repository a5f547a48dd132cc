//! The packed virtqueue, driver side (Linux: `struct vring_virtqueue_packed` in
//! `drivers/virtio/virtio_ring.c`; virtio 1.3, 2.8).
//!
//! What enters and leaves is what does in [`super::split`]. There is one ring of descriptors which both
//! sides write: the driver fills them in order and says so in their flags, the device overwrites them, in
//! whatever order it likes, with the ids of buffers that it has used. Which id is which buffer, and how
//! many descriptors that has, is kept in private copies (`DescExtra`, `DescState`); of the ring only
//! used descriptors are read, and checked. A device that breaks a rule breaks the ring, for good.
//!
//! With IN_ORDER the id of a buffer is its place in the ring, and one used descriptor may stand for all
//! buffers up to the one that it names (virtio 1.3, 2.8.9).

use std::sync::Arc;

use super::packed_handshake::{PackedCells, PackedHandshake};
use super::virtqueue::VirtqueueOptions;
use super::{
    AddError, DESC_SIZE, OffWrap, RingFault, RingMemory, Segment, Used, VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED,
};
use crate::memory::{GuestMemory, GuestSlice, MemoryError};

/// Longest packed ring (virtio 1.3, 2.8.10.1).
pub const MAX_SIZE: u16 = 0x8000;

/// Which buffer id is free after this one (Linux: `vring_desc_extra`).
#[derive(Debug, Clone, Copy, Default)]
struct DescExtra {
    next: u16,
}

/// What is in flight under a buffer id (Linux: `vring_desc_state_packed`).
#[derive(Debug, Clone, Copy, Default)]
struct DescState {
    /// Descriptors of the buffer; 0 when nothing is in flight here.
    num: u16,
    last: u16,
    token: u32,
    writable: u32,
}

/// A packed virtqueue.
#[derive(Debug)]
pub struct PackedQueue {
    ring: RingMemory,
    handshake: PackedHandshake,
    in_order: bool,
    indirect: Option<GuestSlice>,
    indirect_entries: u16,
    extra: Vec<DescExtra>,
    state: Vec<DescState>,
    /// The next free id, without IN_ORDER.
    free_head: u16,
    num_free: u16,
    /// Where the next descriptor goes, with its wrap counter (Linux: `next_avail_idx`,
    /// `avail_wrap_counter`).
    next_avail: OffWrap,
    /// Descriptors added since the last kick decision (Linux: `num_added`).
    num_added: u32,
    /// Where the device writes next, with its wrap counter (Linux: `last_used_idx`).
    last_used: OffWrap,
    /// Buffers that the device has.
    outstanding: u16,
    /// With IN_ORDER: the last buffer of a batch that is being taken, and what was written to it.
    batch_last: Option<(u16, u32)>,
    broken: Option<RingFault>,
}

impl PackedQueue {
    /// Allocates a ring of `size` entries.
    ///
    /// # Errors
    /// When guest memory is full.
    ///
    /// # Panics
    /// When `size` is 0 or greater than [`MAX_SIZE`].
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        options: VirtqueueOptions,
    ) -> Result<Self, MemoryError> {
        assert!(
            (1..=MAX_SIZE).contains(&size),
            "no packed ring has {size} entries"
        );
        let ring = RingMemory::allocate_packed(memory, size)?;
        Self::with_ring(ring.clone(), options).inspect_err(|_| ring.release())
    }

    /// Makes a ring of memory that was placed by the caller and zeroed.
    ///
    /// # Errors
    /// When there is no room for the indirect tables.
    pub fn with_ring(ring: RingMemory, options: VirtqueueOptions) -> Result<Self, MemoryError> {
        let size = ring.size;
        let indirect = if options.indirect == 0 {
            None
        } else {
            let len = usize::from(size) * usize::from(options.indirect) * DESC_SIZE;
            Some(ring.desc.memory().allocate(len, DESC_SIZE)?)
        };
        Ok(Self {
            handshake: PackedHandshake::new(options.event_idx),
            in_order: options.in_order,
            indirect,
            indirect_entries: options.indirect,
            extra: (1..=size)
                .map(|next| DescExtra { next: next % size })
                .collect(),
            state: vec![DescState::default(); usize::from(size)],
            free_head: 0,
            num_free: size,
            next_avail: OffWrap::START,
            num_added: 0,
            last_used: OffWrap::START,
            outstanding: 0,
            batch_last: None,
            broken: None,
            ring,
        })
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
        self.outstanding
    }

    /// Where the device writes the next used descriptor.
    #[must_use]
    pub fn last_used(&self) -> OffWrap {
        self.last_used
    }

    /// Where the next descriptor is made available.
    #[must_use]
    pub fn next_avail(&self) -> OffWrap {
        self.next_avail
    }

    /// Why the ring was given up, if it was.
    #[must_use]
    pub fn fault(&self) -> Option<RingFault> {
        self.broken
    }

    /// Adds a buffer: pieces that the device reads, then pieces that it writes (`virtqueue_add_packed`). The
    /// device may take it at once, kick or not.
    ///
    /// # Errors
    /// [`AddError::Full`] when descriptors are short; the other kinds cannot be waited away.
    pub fn add(&mut self, out: &[Segment], input: &[Segment], token: u32) -> Result<(), AddError> {
        if let Some(fault) = self.broken {
            return Err(fault.into());
        }
        let total = out.len() + input.len();
        if total == 0 {
            return Err(AddError::Empty);
        }
        let use_indirect = total > 1 && total <= usize::from(self.indirect_entries);
        let num = if use_indirect {
            1
        } else {
            u16::try_from(total)
                .ok()
                .filter(|&num| num <= self.ring.size)
                .ok_or(AddError::TooLong(total))?
        };
        if num > self.num_free {
            return Err(AddError::Full);
        }
        let head = self.next_avail;
        let id = if self.in_order {
            head.off()
        } else {
            self.free_head
        };
        let pieces = out
            .iter()
            .map(|piece| (*piece, 0))
            .chain(input.iter().map(|piece| (*piece, VIRTQ_DESC_F_WRITE)));
        let (head_flags, last) = if use_indirect {
            let table = self.write_indirect(id, total, pieces);
            self.write_desc(head.off(), table, id);
            (VIRTQ_DESC_F_INDIRECT | head.avail_flags(), id)
        } else {
            self.write_chain(head, id, num, pieces)
        };
        let writable = input
            .iter()
            .fold(0, |sum: u32, piece| sum.saturating_add(piece.len));
        self.free_head = self.extra[usize::from(last)].next;
        self.num_free -= num;
        self.outstanding += 1;
        self.state[usize::from(id)] = DescState {
            num,
            last,
            token,
            writable,
        };
        self.next_avail = head.advance(num, self.ring.size);
        self.num_added = self.num_added.saturating_add(num.into());
        // Last of all: from here on the chain is the device's.
        self.ring.store_flags(head.off(), head_flags);
        Ok(())
    }

    /// Writes a chain, but for the flags of its first descriptor: they, and the last id it takes.
    fn write_chain(
        &self,
        head: OffWrap,
        id: u16,
        num: u16,
        pieces: impl Iterator<Item = (Segment, u16)>,
    ) -> (u16, u16) {
        let (mut at, mut head_flags) = (head, 0);
        let (mut curr, mut last) = (id, id);
        for ((piece, flags), left) in pieces.zip((0..num).rev()) {
            let next = if left > 0 { VIRTQ_DESC_F_NEXT } else { 0 };
            let flags = flags | next | at.avail_flags();
            self.write_desc(at.off(), piece, id);
            if at == head {
                head_flags = flags;
            } else {
                let offset = usize::from(at.off()) * DESC_SIZE + 14;
                self.ring.desc.write_u16(offset, flags);
            }
            (last, curr) = (curr, self.extra[usize::from(curr)].next);
            at = at.advance(1, self.ring.size);
        }
        (head_flags, last)
    }

    /// Writes a descriptor but for its flags.
    #[inline]
    fn write_desc(&self, at: u16, piece: Segment, id: u16) {
        let offset = usize::from(at) * DESC_SIZE;
        self.ring.desc.write_u64(offset, piece.addr);
        self.ring.desc.write_u32(offset + 8, piece.len);
        self.ring.desc.write_u16(offset + 12, id);
    }

    /// Writes a buffer's table (`virtqueue_add_indirect_packed`); where it is. In a table the order is that of
    /// the chain, and but for [`VIRTQ_DESC_F_WRITE`] no flag counts.
    fn write_indirect(
        &self,
        id: u16,
        total: usize,
        pieces: impl Iterator<Item = (Segment, u16)>,
    ) -> Segment {
        let Some(tables) = &self.indirect else {
            return Segment::default();
        };
        let first = usize::from(id) * usize::from(self.indirect_entries) * DESC_SIZE;
        for (index, (piece, flags)) in pieces.enumerate() {
            let rest = u64::from(piece.len) | u64::from(flags) << 48;
            tables.write_u64_pair(first + index * DESC_SIZE, piece.addr, rest);
        }
        Segment::new(
            tables.guest_addr() + first as u64,
            (total * DESC_SIZE) as u32,
        )
    }

    /// Says whether the device wants a kick for what was added since the last time
    /// (`virtqueue_kick_prepare_packed`).
    #[must_use]
    pub fn kick_prepare(&mut self) -> bool {
        let added = std::mem::take(&mut self.num_added);
        if self.broken.is_some() {
            return false;
        }
        // More than a round: whatever it waits for has been passed.
        let Ok(added) = u16::try_from(added) else {
            return true;
        };
        let (next, size) = (self.next_avail, self.ring.size);
        self.handshake.kick_wanted(&self.ring, added, next, size)
    }

    /// Takes the next used buffer (`virtqueue_get_buf_ctx_packed`).
    ///
    /// # Errors
    /// What the device did wrong; the ring is broken from then on.
    #[inline(never)]
    pub fn get_buf(&mut self) -> Result<Option<Used>, RingFault> {
        if let Some(fault) = self.broken {
            return Err(fault);
        }
        let last_used = self.last_used;
        let (id, len) = match self.batch_last {
            Some(batch) => batch,
            None if self.handshake.is_used(&self.ring, last_used) => {
                let offset = usize::from(last_used.off()) * DESC_SIZE + 8;
                let rest = self.ring.desc.read_u64(offset);
                ((rest >> 32) as u16, rest as u32)
            }
            None => return Ok(None),
        };
        match self.state.get(usize::from(id)) {
            None => {
                return Err(self.give_up(RingFault::UsedId {
                    id: id.into(),
                    size: self.ring.size,
                }));
            }
            Some(DescState { num: 0, .. }) => {
                return Err(self.give_up(RingFault::NotInFlight { id: id.into() }));
            }
            Some(_) => {}
        }
        // In order the next buffer is the one whose id is the place that the device wrote to; those before
        // the one that it named are used completely.
        let mut taken = id;
        if self.in_order {
            taken = last_used.off();
            self.batch_last = (taken != id).then_some((id, len));
        }
        let DescState {
            num,
            last,
            token,
            writable,
        } = std::mem::take(&mut self.state[usize::from(taken)]);
        if !self.in_order {
            self.extra[usize::from(last)].next = self.free_head;
            self.free_head = id;
        }
        self.num_free += num;
        self.outstanding -= 1;
        self.last_used = last_used.advance(num, self.ring.size);
        self.handshake.taken(&self.ring, self.last_used);
        let len = if taken == id { len } else { writable };
        Ok(Some(Used {
            token,
            len,
            writable,
        }))
    }

    fn give_up(&mut self, fault: RingFault) -> RingFault {
        log::debug!("ring given up: {fault}");
        self.broken = Some(fault);
        fault
    }

    /// Whether used buffers wait to be taken (`more_used_packed`).
    #[must_use]
    pub fn more_used(&self) -> bool {
        self.is_more_used(self.last_used, |at| self.handshake.is_used(&self.ring, at))
    }

    /// The same, seen from `last_used` by the look that `is_used` takes.
    #[inline]
    fn is_more_used(&self, last_used: OffWrap, is_used: impl FnOnce(OffWrap) -> bool) -> bool {
        // The rest of a batch waits here, not in the ring.
        self.broken.is_none() && (self.batch_last.is_some() || is_used(last_used))
    }

    /// Asks for no interrupts (`virtqueue_disable_cb_packed`). A hint: some may still come.
    pub fn disable_cb(&mut self) {
        self.handshake.disable_cb(&self.ring);
    }

    /// Asks for an interrupt with the next used buffer; what it returns is for [`Self::poll`]
    /// (`virtqueue_enable_cb_prepare_packed`).
    pub fn enable_cb_prepare(&mut self) -> u16 {
        self.handshake.enable_cb_prepare(&self.ring, self.last_used);
        self.last_used.0
    }

    /// Whether the device used a buffer since [`Self::enable_cb_prepare`] returned `last_used`
    /// (`virtqueue_poll_packed`).
    #[must_use]
    pub fn poll(&self, last_used: u16) -> bool {
        self.is_more_used(OffWrap(last_used), |at| self.handshake.poll(&self.ring, at))
    }

    /// Asks for interrupts and looks once more: `false` means that buffers came in between, for
    /// which no interrupt may follow, so the caller has to look again (`virtqueue_enable_cb`).
    #[must_use]
    pub fn enable_cb(&mut self) -> bool {
        let last_used = self.enable_cb_prepare();
        !self.poll(last_used)
    }

    /// Asks for an interrupt when three quarters of the descriptors in flight are used; `false` when
    /// there is something to take (`virtqueue_enable_cb_delayed_packed`).
    #[must_use]
    pub fn enable_cb_delayed(&mut self) -> bool {
        let size = self.ring.size;
        let in_flight = size - self.num_free;
        let idle = self
            .handshake
            .enable_cb_delayed(&self.ring, self.last_used, in_flight, size);
        self.broken.is_some() || (idle && self.batch_last.is_none())
    }

    /// Takes back a buffer that the device never used, once it is stopped
    /// (`virtqueue_detach_unused_buf_packed`). The ring has to be reset before it is used again.
    pub fn detach_unused_buf(&mut self) -> Option<u32> {
        let id = self.state.iter().position(|state| state.num > 0)?;
        let DescState {
            num, last, token, ..
        } = std::mem::take(&mut self.state[id]);
        self.extra[usize::from(last)].next = self.free_head;
        self.free_head = id as u16;
        self.num_free += num;
        self.outstanding -= 1;
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
        (self.next_avail, self.last_used) = (OffWrap::START, OffWrap::START);
        (self.num_added, self.outstanding) = (0, 0);
        self.handshake = self.handshake.restarted();
        (self.batch_last, self.broken) = (None, None);
    }

    /// Gives all guest memory of the ring back; the device must be stopped.
    pub fn release(self) {
        if let Some(tables) = &self.indirect {
            tables.memory().release(tables);
        }
        self.ring.release();
    }

    /// Puts a ring that was never used at another place, to test wrap-around: its descriptors are as those of a
    /// ring that came there with all buffers used.
    ///
    /// # Panics
    /// When buffers were added before, or there is no such place.
    pub fn start_at(&mut self, place: OffWrap) {
        assert!(self.outstanding == 0 && self.next_avail == self.last_used);
        assert!(place.off() < self.ring.size);
        for at in 0..self.ring.size {
            let wrap = (at < place.off()) == place.wrap();
            let used = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED;
            self.ring.store_flags(at, if wrap { used } else { 0 });
        }
        (self.next_avail, self.last_used) = (place, place);
    }
}
