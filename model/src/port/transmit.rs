//! Whose turn it is to send, and whether the line has time for it ([`scheduler`](crate::scheduler)).
//!
//! Nothing is fetched from a driver that cannot go at once: what waits for the line waits in the driver's ring. Of what has to wait for its priority
//! ([`pfc`](crate::pfc)) one packet of a queue is fetched, to know that.

use super::Port;
use crate::host::{Fetched, QueueIndex};
use crate::scheduler::Weights;
use crate::time::Nanos;

impl Port {
    /// Has the queues send in turn, as long as the line has time: `fetch` takes up to so many of a queue's
    /// frames, passes them to [`Port::send`], and says what it took. Returns whether there were any, or may be if it is called again.
    pub fn transmit(
        &mut self,
        now: Nanos,
        fetch: impl FnMut(&mut Self, QueueIndex, usize) -> Fetched,
    ) -> bool {
        if self.lines.len() == 1 && self.pfc.is_none() {
            self.transmit_alone(now, fetch)
        } else {
            self.transmit_in_turn(now, fetch)
        }
    }

    /// [`Port::transmit`] of a card with one queue, which has nobody to share with.
    #[inline]
    fn transmit_alone(
        &mut self,
        now: Nanos,
        mut fetch: impl FnMut(&mut Self, QueueIndex, usize) -> Fetched,
    ) -> bool {
        let horizon = now + self.lead;
        self.tx_paused = self.tx_free() > horizon;
        if self.tx_paused {
            if self.tx_bucket.is_some() {
                self.note_waiting(horizon, |port, queue| fetch(port, queue, 0).more);
            }
            return false;
        }
        let fetched = self.fetch(now, QueueIndex(0), self.tx_burst(), &mut fetch);
        self.tx_paused = fetched.more && self.tx_free() > horizon;
        fetched.frames > 0
    }

    #[inline]
    fn transmit_in_turn(
        &mut self,
        now: Nanos,
        mut fetch: impl FnMut(&mut Self, QueueIndex, usize) -> Fetched,
    ) -> bool {
        let queues = self.lines.len();
        let horizon = now + self.lead;
        let burst = self.tx_burst();
        let (mut worked, mut emptied, mut owing) = (false, 0, false);
        let mut free = self.tx_free() <= horizon;
        if !free && self.tx_bucket.is_some() {
            self.note_waiting(horizon, |port, queue| fetch(port, queue, 0).more);
        }
        let mut queue = self.scheduler.turn();
        for _ in 0..queues {
            // A call that finds the line busy must not cost a queue its turn.
            if !free {
                break;
            }
            let this = queue;
            queue = if this + 1 == queues { 0 } else { this + 1 };
            let held = self.held_until(this);
            if held.is_some_and(|until| until > now.max(self.phy.tx.busy_until())) {
                emptied += 1;
                continue;
            }
            let budget = self.scheduler.budget(this).min(burst);
            if budget == 0 {
                self.scheduler.pay(this);
                owing = true;
                continue;
            }
            // What was held back goes first.
            let budget = if held.is_some() { 0 } else { budget };
            let before = self.counters.tx_octets;
            let fetched = self.fetch(now, QueueIndex(this as u16), budget, &mut fetch);
            emptied += usize::from(!fetched.more);
            if fetched.frames == 0 && held.is_none() {
                continue;
            }
            let octets = self.counters.tx_octets - before;
            if fetched.frames > 0 || octets > 0 {
                let frames = fetched.frames.max(1);
                queue = self.scheduler.sent(this, frames, octets, !fetched.more);
                free = self.tx_free() <= horizon;
                worked = true;
            }
        }
        self.tx_paused = emptied < queues && !free;
        if owing && !worked {
            self.scheduler.forgive();
            return true;
        }
        worked
    }

    /// Has `fetch` take and send up to `budget` of the packets of `queue`, as far as there are tokens.
    #[inline]
    fn fetch(
        &mut self,
        now: Nanos,
        queue: QueueIndex,
        budget: usize,
        fetch: &mut impl FnMut(&mut Self, QueueIndex, usize) -> Fetched,
    ) -> Fetched {
        match self.tx_bucket {
            None => fetch(self, queue, budget),
            Some(_) => self.fetch_limited(now, queue, budget, fetch),
        }
    }

    /// When the line is free for what the host may have to send, if that waits for it.
    #[must_use]
    pub fn tx_resumes(&self) -> Option<Nanos> {
        self.tx_paused.then(|| self.tx_free())
    }

    /// Whether packets of `queue` may be fetched, as far as anybody knows: neither the line nor their priority has to be waited for.
    #[must_use]
    pub fn tx_wants(&self, queue: QueueIndex) -> bool {
        !self.tx_paused && self.held_until(queue.0.into()).is_none()
    }

    /// Shares the line between the queues as `weights` says.
    pub fn set_tx_weights(&mut self, weights: Weights) {
        self.tx_weights = weights;
        self.scheduler.set_weights(&weights);
    }
}
