//! CoDel, controlled delay (RFC 8289; Linux: `include/net/codel_impl.h`).
//!
//! In: a queue of packets that know when they came. Out: its packets in order. Once the time that packets have
//! waited has been above `target` for a whole `interval`, one is dropped, or marked if its sender understands ECN
//! (RFC 3168), and then one more each `interval` divided by the square root of how many there were, until the wait is short
//! again.

use std::collections::VecDeque;

use super::sch_generic::{Account, qdisc_pkt_len};
use super::skbuff::Skb;

/// What a queue is to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodelParams {
    /// How long a packet may wait, in nanoseconds.
    pub target: u64,
    /// How long the wait may be too long before something is done, in nanoseconds: about a round trip.
    pub interval: u64,
    /// A queue of no more bytes than this is never too long.
    pub mtu: usize,
    /// Packets are marked that can be.
    pub ecn: bool,
}

/// What was done about waits that were too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CodelStats {
    /// The longest packet, in bytes.
    pub maxpacket: usize,
    /// Packets dropped.
    pub drop_count: u64,
    /// Packets marked.
    pub ecn_mark: u64,
}

/// State of a queue (`struct codel_vars`).
#[derive(Debug, Clone, Copy, Default)]
struct CodelVars {
    /// Packets dropped or marked since the wait became too long.
    count: u32,
    /// `count` when that began.
    lastcount: u32,
    dropping: bool,
    /// 1 / sqrt(count), in 1/65536.
    rec_inv_sqrt: u16,
    /// When something will be done if the wait stays too long; 0 while it is not.
    first_above_time: u64,
    drop_next: u64,
}

impl CodelVars {
    /// One step of Newton's method towards 1 / sqrt(count): y (3 - count y^2) / 2.
    fn newton_step(&mut self) {
        let y = u64::from(self.rec_inv_sqrt) << 16;
        let squared = (y * y) >> 32;
        let rest = (3_u64 << 32).wrapping_sub(u64::from(self.count).wrapping_mul(squared));
        // Two bits are given up meanwhile, so that the product fits.
        let next = (rest >> 2).wrapping_mul(y) >> (32 - 2 + 1);
        self.rec_inv_sqrt = (next >> 16) as u16;
    }

    /// The instant after `t` at which the next one goes.
    fn control_law(&self, t: u64, interval: u64) -> u64 {
        t + ((interval * u64::from(self.rec_inv_sqrt)) >> 16)
    }
}

/// A queue that is kept short.
#[derive(Debug, Default)]
pub(super) struct CodelQueue {
    q: VecDeque<Skb>,
    /// Bytes in it.
    pub backlog: usize,
    vars: CodelVars,
}

impl CodelQueue {
    /// Adds a packet, which came at `now`.
    #[inline]
    pub fn push(&mut self, mut skb: Skb, now: u64) {
        skb.tstamp = now;
        self.backlog += qdisc_pkt_len(&skb);
        self.q.push_back(skb);
    }

    /// Takes the oldest packet, however long it has waited.
    #[inline]
    pub fn pop(&mut self) -> Option<Skb> {
        let skb = self.q.pop_front()?;
        self.backlog -= qdisc_pkt_len(&skb);
        Some(skb)
    }

    /// So many were dropped for another reason: the next drops come as if it had been for this one.
    pub fn press(&mut self, count: u32) {
        self.vars.count = self.vars.count.wrapping_add(count);
    }

    /// Takes the oldest packet that need not go; those that must are `account`'s.
    pub fn dequeue(
        &mut self,
        params: &CodelParams,
        stats: &mut CodelStats,
        now: u64,
        account: &mut Account,
    ) -> Option<Skb> {
        let Some(mut skb) = self.take(account) else {
            self.vars.first_above_time = 0;
            self.vars.dropping = false;
            return None;
        };
        let drop = self.should_drop(&skb, params, stats, now, account);
        if self.vars.dropping {
            self.vars.dropping = drop;
            while self.vars.dropping && now >= self.vars.drop_next {
                self.vars.count = self.vars.count.wrapping_add(1);
                self.vars.newton_step();
                let marked = params.ecn && skb.inet_ecn_set_ce();
                if marked {
                    stats.ecn_mark += 1;
                } else {
                    skb = self.next_instead_of(skb, stats, account)?;
                    self.vars.dropping = self.should_drop(&skb, params, stats, now, account);
                }
                if self.vars.dropping {
                    let drop_next = self.vars.drop_next;
                    self.vars.drop_next = self.vars.control_law(drop_next, params.interval);
                }
                if marked {
                    break;
                }
            }
        } else if drop {
            self.enter_dropping(params, now);
            if params.ecn && skb.inet_ecn_set_ce() {
                stats.ecn_mark += 1;
            } else {
                skb = self.next_instead_of(skb, stats, account)?;
                // What it says counts when the next one leaves.
                self.should_drop(&skb, params, stats, now, account);
            }
        }
        Some(skb)
    }

    fn take(&mut self, account: &mut Account) -> Option<Skb> {
        let skb = self.pop()?;
        account.left(&skb);
        Some(skb)
    }

    /// Drops a packet; the one behind it. Without any the wait is short again.
    fn next_instead_of(
        &mut self,
        skb: Skb,
        stats: &mut CodelStats,
        account: &mut Account,
    ) -> Option<Skb> {
        stats.drop_count += 1;
        account.drop(skb);
        let next = self.take(account);
        if next.is_none() {
            self.vars.first_above_time = 0;
            self.vars.dropping = false;
        }
        next
    }

    /// Whether the wait has been too long for too long.
    fn should_drop(
        &mut self,
        skb: &Skb,
        params: &CodelParams,
        stats: &mut CodelStats,
        now: u64,
        account: &Account,
    ) -> bool {
        stats.maxpacket = stats.maxpacket.max(qdisc_pkt_len(skb));
        let waited = now.saturating_sub(skb.tstamp);
        if waited < params.target || account.stats.backlog <= params.mtu as u64 {
            self.vars.first_above_time = 0;
            return false;
        }
        if self.vars.first_above_time == 0 {
            self.vars.first_above_time = now + params.interval;
            return false;
        }
        now > self.vars.first_above_time
    }

    /// The first one goes. If it is not long since the wait was too long before, it goes on from the rate that was
    /// right then.
    fn enter_dropping(&mut self, params: &CodelParams, now: u64) {
        let vars = &mut self.vars;
        let delta = vars.count.wrapping_sub(vars.lastcount);
        let recently = now.saturating_sub(vars.drop_next) < 16 * params.interval;
        vars.dropping = true;
        if delta > 1 && recently {
            vars.count = delta;
            vars.newton_step();
        } else {
            vars.count = 1;
            vars.rec_inv_sqrt = u16::MAX;
        }
        vars.lastcount = vars.count;
        vars.drop_next = vars.control_law(now, params.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::super::skbuff::SkbCache;
    use super::*;

    const MS: u64 = 1_000_000;
    const PARAMS: CodelParams = CodelParams {
        target: 5 * MS,
        interval: 100 * MS,
        mtu: 1514,
        ecn: true,
    };

    /// A queue that has `count` packets of 1000 bytes since the beginning.
    fn queue(count: usize) -> (CodelQueue, Account) {
        let (mut cache, mut queue) = (SkbCache::default(), CodelQueue::default());
        let mut account = Account::default();
        for _ in 0..count {
            let mut skb = cache.alloc(0, 1000);
            skb.put(1000);
            account.came(&skb);
            queue.push(skb, 0);
        }
        (queue, account)
    }

    /// When packets were dropped, if one leaves each 100 us from `from` to `end`.
    fn drops(queue: &mut CodelQueue, account: &mut Account, from: u64, end: u64) -> Vec<u64> {
        let (mut stats, mut at) = (CodelStats::default(), Vec::new());
        for now in (from..end).step_by(100_000) {
            queue.dequeue(&PARAMS, &mut stats, now, account);
            at.extend(account.to_free.drain(..).map(|_| now));
        }
        assert_eq!(stats.drop_count, at.len() as u64);
        at
    }

    #[test]
    fn drops_come_faster_by_the_square_root_of_their_number() {
        let (mut queue, mut account) = queue(100_000);
        let at = drops(&mut queue, &mut account, 5 * MS, 4_000 * MS);
        // The wait is too long from the first look on, and nothing happens for an interval.
        assert_eq!(at[0], (5 + 100) * MS + 100_000);
        assert_eq!(at[1] - at[0], 100 * MS);
        assert!(at.len() > 300, "{}", at.len());
        // Newton's method needs some steps to be near.
        for (count, pair) in (1..).zip(at.windows(2)).skip(4) {
            let law = 100e6 / f64::from(count).sqrt();
            let took = (pair[1] - pair[0]) as f64;
            assert!(
                (took - law).abs() < 0.02 * law + 110_000.0,
                "{count}: {took} {law}"
            );
        }
        // All of them together: the sum of 1 / sqrt(k) is about 2 sqrt(n).
        let (n, took) = (at.len() as f64, (at[at.len() - 1] - at[0]) as f64);
        assert!(
            (took / (2.0 * n.sqrt() * 100e6) - 1.0).abs() < 0.1,
            "{n} {took}"
        );
    }

    #[test]
    fn short_waits_and_short_queues_are_let_be() {
        let (mut queue, mut account) = queue(3);
        let mut stats = CodelStats::default();
        for now in [4 * MS, 1_000 * MS, 2_000 * MS] {
            // Young; then no more than a frame is left behind it.
            assert!(
                queue
                    .dequeue(&PARAMS, &mut stats, now, &mut account)
                    .is_some()
            );
        }
        assert_eq!((stats.drop_count, stats.maxpacket), (0, 1000));
        assert!(
            queue
                .dequeue(&PARAMS, &mut stats, 3_000 * MS, &mut account)
                .is_none()
        );
    }

    #[test]
    fn a_wait_that_gets_short_ends_it_and_the_next_time_goes_on_where_it_was() {
        let (mut queue, mut account) = queue(100_000);
        let first = drops(&mut queue, &mut account, 5 * MS, 2_000 * MS);
        let count = first.len();
        while queue.pop().is_some() {
            account.stats.qlen -= 1;
            account.stats.backlog -= 1000;
        }
        assert_eq!(
            drops(&mut queue, &mut account, 2_000 * MS, 2_001 * MS),
            [0; 0]
        );
        let mut cache = SkbCache::default();
        for _ in 0..10_000 {
            let mut skb = cache.alloc(0, 1000);
            skb.put(1000);
            account.came(&skb);
            queue.push(skb, 2_001 * MS);
        }
        let again = drops(&mut queue, &mut account, 2_010 * MS, 2_400 * MS);
        let law = 100e6 / (count as f64).sqrt();
        let took = (again[1] - again[0]) as f64;
        assert!((took - law).abs() < 0.1 * law + 110_000.0, "{took} {law}");
    }
}
