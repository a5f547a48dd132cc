//! Fair queueing with controlled delay (RFC 8290; Linux: `net/sched/sch_fq_codel.c`).
//!
//! In: packets, by a hash of their flow. Out: packets of the flows in turn, `quantum` bytes each (deficit round
//! robin); flows that have just begun come before the others, once. Within a flow [`super::codel`] keeps the wait short.
//! Dropped and counted: what CoDel drops, and when there are too many packets or bytes, half of the longest flow at once.

use std::collections::VecDeque;

use super::codel::{CodelParams, CodelQueue, CodelStats};
use super::flow_dissector::skb_get_hash;
use super::sch_generic::{Account, qdisc_pkt_len};
use super::skbuff::Skb;
use super::xps::reciprocal_scale;

/// How `fq_codel` is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FqCodelParams {
    /// Packets in all.
    pub limit: usize,
    /// Queues that flows are hashed to.
    pub flows: usize,
    /// Bytes of a flow's turn; 0 is a frame of the device's MTU.
    pub quantum: usize,
    /// Nanoseconds that a packet may wait.
    pub target: u64,
    /// Nanoseconds that the wait may be too long before something is done.
    pub interval: u64,
    /// Bytes of memory in all.
    pub memory_limit: usize,
    /// Packets are marked that can be, instead of dropped.
    pub ecn: bool,
    /// Packets that one overflow costs at most.
    pub drop_batch: u32,
}

impl Default for FqCodelParams {
    fn default() -> Self {
        Self {
            limit: 10_240,
            flows: 1024,
            quantum: 0,
            target: 5_000_000,
            interval: 100_000_000,
            memory_limit: 32 << 20,
            ecn: true,
            drop_batch: 64,
        }
    }
}

/// What `tc -s` shows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FqCodelStats {
    /// CoDel's.
    pub codel: CodelStats,
    /// Packets dropped because there were too many.
    pub drop_overlimit: u64,
    /// Of those, because they took too much memory.
    pub drop_overmemory: u64,
    /// How often a flow began.
    pub new_flow_count: u64,
    /// Flows that have just begun, and others that have packets.
    pub new_flows_len: usize,
    /// See `new_flows_len`.
    pub old_flows_len: usize,
}

/// A flow (`struct fq_codel_flow`).
#[derive(Debug, Default)]
struct Flow {
    queue: CodelQueue,
    /// Bytes of its turn that are left.
    deficit: i64,
    /// On one of the two lists.
    listed: bool,
}

/// The discipline.
#[derive(Debug)]
pub(super) struct FqCodel {
    params: FqCodelParams,
    cparams: CodelParams,
    flows: Vec<Flow>,
    /// Flows that have just begun, in order.
    new_flows: VecDeque<usize>,
    old_flows: VecDeque<usize>,
    memory_usage: usize,
    stats: FqCodelStats,
}

impl FqCodel {
    /// Of a device whose frames have `mtu` bytes at most.
    pub fn new(params: FqCodelParams, mtu: usize) -> Self {
        let mut flows = Vec::new();
        flows.resize_with(params.flows.max(1), Flow::default);
        let quantum = if params.quantum == 0 {
            mtu
        } else {
            params.quantum
        };
        Self {
            params: FqCodelParams { quantum, ..params },
            cparams: CodelParams {
                target: params.target,
                interval: params.interval,
                mtu,
                ecn: params.ecn,
            },
            flows,
            new_flows: VecDeque::new(),
            old_flows: VecDeque::new(),
            memory_usage: 0,
            stats: FqCodelStats::default(),
        }
    }

    pub fn params(&self) -> &FqCodelParams {
        &self.params
    }

    pub fn stats(&self) -> FqCodelStats {
        FqCodelStats {
            new_flows_len: self.new_flows.len(),
            old_flows_len: self.old_flows.len(),
            ..self.stats
        }
    }

    pub fn enqueue(&mut self, skb: Skb, now: u64, account: &mut Account) {
        let at = reciprocal_scale(skb_get_hash(&skb), self.flows.len());
        let flow = &mut self.flows[at];
        self.memory_usage += skb.truesize;
        account.came(&skb);
        flow.queue.push(skb, now);
        if !flow.listed {
            flow.listed = true;
            flow.deficit = self.params.quantum as i64;
            self.new_flows.push_back(at);
            self.stats.new_flow_count += 1;
        }
        let memory_limited = self.memory_usage > self.params.memory_limit;
        if account.stats.qlen > self.params.limit as u64 || memory_limited {
            let dropped = self.drop_longest(account);
            self.stats.drop_overlimit += dropped;
            if memory_limited {
                self.stats.drop_overmemory += dropped;
            }
        }
    }

    /// Drops from the head of the longest flow, half of its bytes at most; how many packets (`fq_codel_drop`).
    #[cold]
    fn drop_longest(&mut self, account: &mut Account) -> u64 {
        let Some(flow) = self.flows.iter_mut().max_by_key(|flow| flow.queue.backlog) else {
            return 0;
        };
        let threshold = flow.queue.backlog / 2;
        let (mut len, mut count) = (0, 0);
        while let Some(skb) = flow.queue.pop() {
            len += qdisc_pkt_len(&skb);
            self.memory_usage -= skb.truesize.min(self.memory_usage);
            account.left(&skb);
            account.drop(skb);
            count += 1;
            if count >= self.params.drop_batch || len >= threshold {
                break;
            }
        }
        flow.queue.press(count);
        count.into()
    }

    pub fn dequeue(&mut self, now: u64, account: &mut Account) -> Option<Skb> {
        loop {
            let of_new = !self.new_flows.is_empty();
            let head = if of_new {
                &mut self.new_flows
            } else {
                &mut self.old_flows
            };
            let at = *head.front()?;
            let flow = &mut self.flows[at];
            if flow.deficit <= 0 {
                flow.deficit += self.params.quantum.max(1) as i64;
                head.pop_front();
                self.old_flows.push_back(at);
                continue;
            }
            let dropped = account.to_free.len();
            let stats = &mut self.stats.codel;
            let found = flow.queue.dequeue(&self.cparams, stats, now, account);
            let gone = account.to_free[dropped..].iter().chain(&found);
            let freed: usize = gone.map(|skb| skb.truesize).sum();
            self.memory_usage -= freed.min(self.memory_usage);
            if let Some(skb) = found {
                flow.deficit -= qdisc_pkt_len(&skb) as i64;
                return Some(skb);
            }
            // It has to wait behind the old ones once: else who sends now and then would always come first.
            head.pop_front();
            if of_new && !self.old_flows.is_empty() {
                self.old_flows.push_back(at);
            } else {
                flow.listed = false;
            }
        }
    }

    /// Forgets all packets (`fq_codel_reset`).
    pub fn reset(&mut self, account: &mut Account) {
        for flow in &mut self.flows {
            while let Some(skb) = flow.queue.pop() {
                account.to_free.push(skb);
            }
            *flow = Flow::default();
        }
        self.new_flows.clear();
        self.old_flows.clear();
        self.memory_usage = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::skbuff::SkbCache;
    use super::*;

    /// A packet of flow `hash`, whose number is its priority.
    fn packet(cache: &mut SkbCache, hash: u32, len: usize, number: u32) -> Skb {
        let mut skb = cache.alloc(0, len);
        skb.put(len);
        (skb.hash, skb.priority) = (hash, number);
        skb
    }

    /// Hashes of two flows that do not meet.
    const ONE: u32 = 0x1000_0000;
    const OTHER: u32 = 0xe000_0000;

    fn discipline(params: FqCodelParams) -> (FqCodel, Account, SkbCache) {
        (
            FqCodel::new(params, 1514),
            Account::default(),
            SkbCache::default(),
        )
    }

    #[test]
    fn flows_have_the_same_bytes_whatever_their_packets() {
        let (mut sch, mut account, mut cache) = discipline(FqCodelParams::default());
        for n in 0..1000 {
            sch.enqueue(packet(&mut cache, ONE, 1500, n), 0, &mut account);
            for _ in 0..10 {
                sch.enqueue(packet(&mut cache, OTHER, 150, n), 0, &mut account);
            }
        }
        let mut bytes = [0, 0];
        for _ in 0..3000 {
            let skb = sch.dequeue(1, &mut account).unwrap();
            bytes[usize::from(skb.hash == OTHER)] += skb.len();
        }
        // Not further apart than a turn and a packet.
        assert!(bytes[0].abs_diff(bytes[1]) <= 1514 + 1500, "{bytes:?}");
        assert_eq!(sch.stats().new_flow_count, 2);
    }

    #[test]
    fn who_has_just_begun_comes_first_but_once() {
        let (mut sch, mut account, mut cache) = discipline(FqCodelParams::default());
        for n in 0..10 {
            sch.enqueue(packet(&mut cache, ONE, 700, n), 0, &mut account);
        }
        // More than a turn: it is no longer new.
        for _ in 0..4 {
            assert_eq!(sch.dequeue(0, &mut account).unwrap().hash, ONE);
        }
        sch.enqueue(packet(&mut cache, OTHER, 100, 100), 0, &mut account);
        assert_eq!(sch.stats().new_flows_len, 1);
        assert_eq!(sch.dequeue(0, &mut account).unwrap().hash, OTHER);
        assert_eq!(sch.dequeue(0, &mut account).unwrap().hash, ONE);
        // It has no packets, but its place behind the others until they had their turn: what comes now is not new.
        sch.enqueue(packet(&mut cache, OTHER, 100, 101), 0, &mut account);
        assert_eq!(sch.stats().new_flows_len, 0);
        let left: Vec<_> = std::iter::from_fn(|| sch.dequeue(0, &mut account)).collect();
        assert_eq!(left.len(), 6);
        assert!(left[0].hash == OTHER, "its turn was the next");
        assert!(sch.dequeue(0, &mut account).is_none());
        assert_eq!(sch.stats().old_flows_len, 0);
    }

    #[test]
    fn the_longest_flow_pays_for_an_overflow() {
        let limit = 100;
        let params = FqCodelParams {
            limit,
            ..FqCodelParams::default()
        };
        let (mut sch, mut account, mut cache) = discipline(params);
        sch.enqueue(packet(&mut cache, OTHER, 1000, 7), 0, &mut account);
        for n in 0..limit as u32 {
            sch.enqueue(packet(&mut cache, ONE, 1000, n), 0, &mut account);
        }
        // Half of its bytes, from the head.
        assert_eq!((account.stats.drops, account.stats.qlen), (50, 51));
        assert!(account.to_free.drain(..).map(|skb| skb.priority).eq(0..50));
        assert_eq!(sch.stats().drop_overlimit, 50);
        assert_eq!(account.stats.backlog, 51_000);
        let tight = FqCodelParams {
            memory_limit: 10_000,
            ..params
        };
        let (mut sch, mut account, mut cache) = discipline(tight);
        for n in 0..1000 {
            sch.enqueue(packet(&mut cache, ONE, 1000, n), 0, &mut account);
            account.to_free.clear();
        }
        let held: usize = sch.flows.iter().map(|flow| flow.queue.backlog).sum();
        assert!(
            held <= 10_000 && held as u64 == account.stats.backlog,
            "{held}"
        );
        assert_eq!(sch.stats().drop_overmemory, account.stats.drops);
        sch.reset(&mut account);
        assert_eq!((sch.memory_usage, sch.stats().new_flows_len), (0, 0));
    }

    #[test]
    fn memory_is_given_back_by_whatever_way_packets_go() {
        let (mut sch, mut account, mut cache) = discipline(FqCodelParams::default());
        for n in 0..5000 {
            sch.enqueue(packet(&mut cache, ONE, 1000, n), 0, &mut account);
        }
        let (mut now, mut sent) = (0, 0);
        while sch.dequeue(now, &mut account).is_some() {
            (now, sent) = (now + 1_000_000, sent + 1);
        }
        assert_eq!(sent + account.stats.drops, 5000);
        assert!(account.stats.drops > 100 && sch.stats().codel.ecn_mark == 0);
        assert_eq!((sch.memory_usage, account.stats.backlog), (0, 0));
    }
}
