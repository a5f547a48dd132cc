//! A token bucket (Linux: `net/sched/sch_tbf.c`): no more than a rate, but for bursts.
//!
//! In: packets. Out: the same in order, as long as there are tokens for them: they come in at the rate, and the bucket holds
//! those of `burst` bytes. Who comes too early waits, in a FIFO of `limit` bytes, for a timer. Dropped and counted: what has no room in
//! there, and packets longer than the bucket, also such as stand for
//! several. There is no second bucket for a peak rate.

use std::collections::VecDeque;

use super::sch_generic::{Account, qdisc_pkt_len};
use super::skbuff::Skb;

/// How `tbf` is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TbfParams {
    /// Bytes a second, at least 1.
    pub rate: u64,
    /// Bytes that may be sent at once.
    pub burst: u64,
    /// Bytes that wait at most.
    pub limit: usize,
}

/// The discipline.
#[derive(Debug)]
pub(super) struct Tbf {
    params: TbfParams,
    q: VecDeque<Skb>,
    /// What the bucket holds, as the time in nanoseconds that the rate takes for it.
    buffer: u64,
    /// What is in it, likewise.
    tokens: u64,
    /// When that was so.
    t_c: u64,
}

/// What `len` bytes take at `rate`, in nanoseconds (`psched_l2t_ns`).
fn l2t_ns(rate: u64, len: u64) -> u64 {
    let ns = u128::from(len) * 1_000_000_000 / u128::from(rate.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

impl Tbf {
    pub fn new(params: TbfParams, now: u64) -> Self {
        let buffer = l2t_ns(params.rate, params.burst);
        Self {
            params,
            q: VecDeque::new(),
            buffer,
            tokens: buffer,
            t_c: now,
        }
    }

    pub fn params(&self) -> &TbfParams {
        &self.params
    }

    pub fn enqueue(&mut self, skb: Skb, account: &mut Account) {
        let len = qdisc_pkt_len(&skb) as u64;
        if len > self.params.burst || account.stats.backlog + len > self.params.limit as u64 {
            return account.drop(skb);
        }
        account.came(&skb);
        self.q.push_back(skb);
    }

    pub fn dequeue(&mut self, now: u64, account: &mut Account) -> Option<Skb> {
        let len = qdisc_pkt_len(self.q.front()?) as u64;
        let came = now.saturating_sub(self.t_c).min(self.buffer);
        let tokens = self.tokens.saturating_add(came).min(self.buffer);
        let needed = l2t_ns(self.params.rate, len);
        if tokens < needed {
            account.watchdog = Some(now + (needed - tokens));
            account.stats.overlimits += 1;
            return None;
        }
        (self.t_c, self.tokens) = (now, tokens - needed);
        let skb = self.q.pop_front()?;
        account.left(&skb);
        Some(skb)
    }

    /// Forgets all packets; the bucket is full again.
    pub fn reset(&mut self, now: u64, account: &mut Account) {
        account.to_free.extend(self.q.drain(..));
        (self.t_c, self.tokens) = (now, self.buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::super::skbuff::SkbCache;
    use super::*;

    #[test]
    fn the_rate_holds_to_the_nanosecond() {
        // 1 Mb/s; a packet of 1000 bytes takes 8 ms.
        let params = TbfParams {
            rate: 125_000,
            burst: 5_000,
            limit: 100_000,
        };
        let (mut cache, mut account) = (SkbCache::default(), Account::default());
        let mut sch = Tbf::new(params, 1_000);
        for _ in 0..100 {
            let mut skb = cache.alloc(0, 1000);
            skb.put(1000);
            sch.enqueue(skb, &mut account);
        }
        let (mut now, mut left) = (1_000, Vec::new());
        while account.stats.qlen > 0 {
            match sch.dequeue(now, &mut account) {
                Some(_) => left.push(now),
                None => now = account.watchdog.take().expect("a time"),
            }
        }
        let law = |n: u64| 1_000 + 8_000_000 * n.saturating_sub(4);
        assert!(left.iter().copied().eq((0..100).map(law)), "{left:?}");
        assert_eq!(account.stats.overlimits, 95);
    }

    #[test]
    fn what_never_fits_is_dropped_at_once() {
        let params = TbfParams {
            rate: 1,
            burst: 999,
            limit: 2_000,
        };
        let (mut cache, mut account) = (SkbCache::default(), Account::default());
        let mut sch = Tbf::new(params, 0);
        for (len, drops, qlen) in [(1000, 1, 0), (999, 1, 1), (999, 1, 2), (3, 2, 2), (2, 2, 3)] {
            let mut skb = cache.alloc(0, len);
            skb.put(len);
            sch.enqueue(skb, &mut account);
            assert_eq!(
                (account.stats.drops, account.stats.qlen),
                (drops, qlen),
                "{len}"
            );
        }
    }
}
