//! The used ring: buffers that the device gives back.
//!
//! What enters: used elements, none of them trusted. What leaves: the tokens of buffers in flight, or what
//! the device did wrong. With IN_ORDER one used element may stand for all buffers up to the one that it names
//! (virtio 1.3, 2.7.9).

use super::{DescState, SplitQueue};
use crate::ring::{RING_ENTRIES, RingFault, Used};

/// What a ring with IN_ORDER has more.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InOrder {
    /// Head of the oldest buffer in flight.
    pub next_head: u16,
    /// `used.idx` as last loaded and checked.
    pub used_seen: u16,
    /// The last buffer of a batch that is being taken, and what was written to it (Linux: `batch_last`).
    batch_last: Option<(u16, u32)>,
}

impl SplitQueue {
    /// Takes the next used buffer (`virtqueue_get_buf`).
    ///
    /// # Errors
    /// What the device did wrong; the ring is broken from then on.
    #[inline(always)] // on the way of each packet, in both directions
    pub fn get_buf(&mut self) -> Result<Option<Used>, RingFault> {
        if self.last_used_idx == self.used_seen {
            return self.get_buf_unseen();
        }
        self.get_buf_seen().map(Some)
    }

    /// Takes a buffer that is known to be used.
    #[inline(always)] // as above
    fn get_buf_seen(&mut self) -> Result<Used, RingFault> {
        let (id, len) = self.used_elem();
        let state = self.detach(id)?;
        self.extra[usize::from(state.last)].next = self.free_head;
        self.free_head = id as u16;
        Ok(self.taken(state, len))
    }

    /// Looks what else was used, and takes a buffer if there is one.
    #[inline(never)]
    fn get_buf_unseen(&mut self) -> Result<Option<Used>, RingFault> {
        if let Some(fault) = self.broken {
            return Err(fault);
        }
        if let Some(in_order) = self.in_order {
            return self.get_buf_in_order(in_order);
        }
        self.used_seen = self.look_for_used()?;
        if self.used_seen == self.last_used_idx {
            return Ok(None);
        }
        self.get_buf_seen().map(Some)
    }

    /// Takes the oldest buffer, if it is in a batch that was used (`virtqueue_get_buf_ctx_split_in_order`).
    /// Those before the one that the device named are used completely.
    fn get_buf_in_order(&mut self, mut now: InOrder) -> Result<Option<Used>, RingFault> {
        if now.used_seen == self.last_used_idx {
            now.used_seen = self.look_for_used()?;
        }
        let (id, len) = match now.batch_last {
            Some(batch) if now.used_seen != self.last_used_idx => batch,
            Some((id, _)) => return Err(self.give_up(RingFault::Batch { id: id.into() })),
            None if now.used_seen == self.last_used_idx => return Ok(None),
            None => {
                let (id, len) = self.used_elem();
                self.check_id(id)?;
                (id as u16, len)
            }
        };
        let head = now.next_head;
        let state = self.detach(head.into())?;
        now.next_head = self.extra[usize::from(state.last)].next;
        now.batch_last = (head != id).then_some((id, len));
        self.in_order = Some(now);
        let used = self.taken(state, if head == id { len } else { state.writable });
        self.used_seen = self.last_used_idx;
        Ok(Some(used))
    }

    /// The used element for the next used index: id and length.
    #[inline]
    fn used_elem(&self) -> (u32, u32) {
        let slot = RING_ENTRIES + 8 * usize::from(self.last_used_idx & self.mask);
        self.ring.used.read_u32_pair(slot)
    }

    /// Whether `id` is the head of a buffer in flight.
    fn check_id(&mut self, id: u32) -> Result<(), RingFault> {
        match self.state.get(id as usize) {
            Some(DescState { count: 1.., .. }) => Ok(()),
            Some(_) => Err(self.give_up(RingFault::NotInFlight { id })),
            None => Err(self.unknown_id(id)),
        }
    }

    /// Takes what is in flight under `id`.
    #[inline]
    fn detach(&mut self, id: u32) -> Result<DescState, RingFault> {
        let Some(state) = self.state.get_mut(id as usize) else {
            return Err(self.unknown_id(id));
        };
        let state = std::mem::take(state);
        if state.count == 0 {
            return Err(self.give_up(RingFault::NotInFlight { id }));
        }
        Ok(state)
    }

    /// A buffer is no longer in flight: what is said of it.
    #[inline]
    fn taken(&mut self, state: DescState, len: u32) -> Used {
        self.num_free += state.count;
        self.last_used_idx = self.last_used_idx.wrapping_add(1);
        self.handshake.taken(&self.ring, self.last_used_idx);
        Used {
            token: state.token,
            len,
            writable: state.writable,
        }
    }

    /// Loads `used.idx` and checks it.
    fn look_for_used(&mut self) -> Result<u16, RingFault> {
        let to = self.handshake.used_idx(&self.ring);
        let outstanding = self.published.wrapping_sub(self.last_used_idx);
        if to.wrapping_sub(self.last_used_idx) > outstanding {
            let from = self.last_used_idx;
            return Err(self.give_up(RingFault::UsedIndex {
                from,
                to,
                outstanding,
            }));
        }
        Ok(to)
    }

    #[cold]
    fn unknown_id(&mut self, id: u32) -> RingFault {
        let size = self.ring.size;
        self.give_up(RingFault::UsedId { id, size })
    }

    #[cold]
    fn give_up(&mut self, fault: RingFault) -> RingFault {
        log::debug!("ring given up: {fault}");
        self.broken = Some(fault);
        self.used_seen = self.last_used_idx;
        fault
    }
}
