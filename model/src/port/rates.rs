//! The port's rate limits ([`rate`](crate::rate)): behind steering where frames are received, before the line where they are sent.

use super::Port;
use crate::counters::Drop;
use crate::frame::Contents;
use crate::host::{ENOUGH, Fetched, QueueIndex};
use crate::rate::{Rates, TokenBucket};
use crate::rss::Steered;
use crate::time::Nanos;

impl Port {
    /// Limits both directions as `rates` says, with full buckets.
    pub fn set_rates(&mut self, rates: Rates) {
        self.rates = rates;
        self.rx_bucket = rates.rx.map(TokenBucket::new);
        self.judges = self.rx_bucket.is_some() || self.pfc.is_some();
        self.tx_bucket = rates.tx.map(TokenBucket::new);
        // What waited did so for another rate.
        self.tx_waits.fill(false);
    }

    /// The limits of both directions.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.rates
    }

    /// Drops a frame that stands for `frames` ones if it exceeds the rate. One that has no queue is not received anyway.
    pub(super) fn police(
        &mut self,
        frame: &Contents,
        frames: u64,
        steered: &Steered,
    ) -> Result<(), Drop> {
        let (Some(bucket), Some(queue)) = (&mut self.rx_bucket, steered.queue) else {
            return Ok(());
        };
        if bucket.conforms(frame.octets as usize, frame.arrival) {
            return Ok(());
        }
        let line = &mut self.lines[usize::from(queue.0)];
        line.rx_exceeded.count(frames, u64::from(frame.octets));
        Err(Drop::RxRateExceeded)
    }

    /// The line is not free for the queues. If it is the rate that they wait for, notes those that have something that does: `waits` tells.
    #[cold]
    pub(super) fn note_waiting(
        &mut self,
        horizon: Nanos,
        mut waits: impl FnMut(&mut Self, QueueIndex) -> bool,
    ) {
        let line = self.phy.tx.busy_until().max(self.pause.until());
        let ready = self.tx_bucket.as_ref().map(TokenBucket::ready);
        if ready.is_some_and(|ready| ready + self.lead > horizon.max(line)) {
            for queue in 0..self.queue_pairs() {
                let index = usize::from(queue);
                // What is held back for its priority has been fetched already.
                let held = self.held_until(index).is_some();
                self.tx_waits[index] = held || waits(self, QueueIndex(queue));
            }
        }
    }

    /// Has `fetch` take up to `budget` packets of `queue`, at a time as many as there surely are tokens for at `now`, whatever their length, and one as long as
    /// there is any. What has been fetched goes at once: there is a wire that does not look when it may.
    #[cold]
    pub(super) fn fetch_limited(
        &mut self,
        now: Nanos,
        queue: QueueIndex,
        budget: usize,
        fetch: &mut impl FnMut(&mut Self, QueueIndex, usize) -> Fetched,
    ) -> Fetched {
        let (mut all, enough) = (Fetched::default(), self.counters.tx_octets + ENOUGH as u64);
        loop {
            let sure = self.surely_conform(now).min(budget - all.frames);
            let fetched = fetch(self, queue, sure);
            all.frames += fetched.frames;
            all.more = fetched.more;
            let goes_on = fetched.frames > 0
                && fetched.more
                && all.frames < budget
                && self.counters.tx_octets < enough
                && (self.tx_bucket.as_ref()).is_none_or(|bucket| bucket.ready() <= now);
            if !goes_on {
                return all;
            }
        }
    }

    /// Packets that there are tokens for at `now` whatever their length, at least one: how much a super-frame is on the line
    /// nobody knows before it has been fetched.
    fn surely_conform(&self, now: Nanos) -> usize {
        match &self.tx_bucket {
            Some(bucket) if !self.host_sends_super => {
                bucket.frames(self.mac.max_frame(), now).max(1)
            }
            _ => 1,
        }
    }

    /// When frames of `queue`, `frames` of `octets` octets in all, that are `ready` may begin.
    #[inline]
    pub(super) fn shape(
        &mut self,
        queue: QueueIndex,
        frames: usize,
        octets: usize,
        ready: Nanos,
    ) -> Nanos {
        let Some(bucket) = &mut self.tx_bucket else {
            return ready;
        };
        let free = ready.max(self.phy.tx.busy_until());
        let departs = bucket.departs(octets, free);
        let waited = std::mem::take(&mut self.tx_waits[usize::from(queue.0)]);
        if waited || departs > free {
            let line = &mut self.lines[usize::from(queue.0)];
            line.tx_exceeded.count(frames as u64, octets as u64);
            self.counters.tx_rate_exceeded += frames as u64;
        }
        departs
    }
}
