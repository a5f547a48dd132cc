//! Byte queue limits (Linux: `lib/dynamic_queue_limits.c`, and `netdev_tx_sent_queue`, `netdev_tx_completed_queue` of
//! `include/linux/netdevice.h`).
//!
//! In: bytes that were given to the device, and bytes that it has sent. Out: how many more it may have. The limit is the least that keeps
//! the device busy: it grows when the device ran dry although more was there to send, and shrinks by what was
//! never needed within a second. Frames beyond it wait in the queueing discipline, where they can be overtaken.

use super::softirq::HZ;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Largest limit, in bytes (`DQL_MAX_LIMIT`).
const DQL_MAX_LIMIT: u64 = u32::MAX as u64 / 2 - u32::MAX as u64 / 16;

/// The limit of a queue (`struct dql`). Counts are of bytes, since the beginning.
#[derive(Debug)]
pub(crate) struct Dql {
    num_queued: u64,
    num_completed: u64,
    limit: u64,
    /// How far `num_queued` may go.
    adj_limit: u64,
    /// The last that was queued.
    last_obj_cnt: u64,
    /// What was so at the last completion: bytes beyond the limit, what had been queued, and the last of it.
    prev_ovlimit: u64,
    prev_num_queued: u64,
    prev_last_obj_cnt: u64,
    /// The least that was not needed, since `slack_start_time` in jiffies.
    lowest_slack: u64,
    slack_start_time: u64,
}

impl Dql {
    pub fn new(jiffies: u64) -> Self {
        Self {
            num_queued: 0,
            num_completed: 0,
            limit: 0,
            adj_limit: 0,
            last_obj_cnt: 0,
            prev_ovlimit: 0,
            prev_num_queued: 0,
            prev_last_obj_cnt: 0,
            lowest_slack: u64::MAX,
            slack_start_time: jiffies,
        }
    }

    /// The device got `count` bytes (`dql_queued`).
    #[inline]
    fn queued(&mut self, count: u64) {
        self.last_obj_cnt = count;
        self.num_queued += count;
    }

    /// Bytes that it may have beyond what it has; below 0 it has too many (`dql_avail`).
    #[inline]
    fn avail(&self) -> i64 {
        self.adj_limit.wrapping_sub(self.num_queued) as i64
    }

    /// The device has sent `count` bytes (`dql_completed`).
    fn completed(&mut self, count: u64, jiffies: u64) {
        let before = self.num_completed;
        // No more than it has.
        let completed = self.num_queued.min(before + count);
        let mut limit = self.limit;
        let mut ovlimit = (self.num_queued - before).saturating_sub(limit);
        let inprogress = self.num_queued > completed;
        let prev_inprogress = self.prev_num_queued > before;
        let all_prev_completed = completed >= self.prev_num_queued;
        let starved = ovlimit > 0 && !inprogress || self.prev_ovlimit > 0 && all_prev_completed;
        if starved {
            limit += completed.saturating_sub(self.prev_num_queued) + self.prev_ovlimit;
            self.begin_slack(jiffies);
        } else if inprogress && prev_inprogress && !all_prev_completed {
            let unused = (limit + self.prev_ovlimit).saturating_sub(2 * (completed - before));
            // Of a long packet that went over the limit, what was below it may not have been needed.
            let of_last = match self.prev_ovlimit {
                0 => 0,
                over => self.prev_last_obj_cnt.saturating_sub(over),
            };
            self.lowest_slack = self.lowest_slack.min(unused.max(of_last));
            if jiffies > self.slack_start_time + HZ {
                limit = limit.saturating_sub(self.lowest_slack);
                self.begin_slack(jiffies);
            }
        }
        limit = limit.min(DQL_MAX_LIMIT);
        if limit != self.limit {
            self.limit = limit;
            ovlimit = 0;
        }
        self.adj_limit = limit + completed;
        self.prev_ovlimit = ovlimit;
        self.prev_last_obj_cnt = self.last_obj_cnt;
        self.num_completed = completed;
        self.prev_num_queued = self.num_queued;
    }

    fn begin_slack(&mut self, jiffies: u64) {
        self.slack_start_time = jiffies;
        self.lowest_slack = u64::MAX;
    }
}

/// What `/sys/class/net/DEV/queues/tx-N/byte_queue_limits` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteQueueLimits {
    /// Bytes that the device may have.
    pub limit: u64,
    /// Bytes that it has.
    pub inflight: u64,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The driver has put `bytes` into a ring; whether the device is to be kicked: not if more comes at once
    /// (`__netdev_tx_sent_queue`).
    #[inline]
    pub(crate) fn netdev_tx_sent_queue(&mut self, queue: usize, bytes: usize, more: bool) -> bool {
        let txq = &mut self.txq[queue];
        if let Some(dql) = &mut txq.dql {
            dql.queued(bytes as u64);
            txq.stack_xoff |= !more && dql.avail() < 0;
        }
        !more || txq.stopped
    }

    /// The device has sent `bytes`; who waits for that goes on.
    #[inline]
    pub(crate) fn netdev_tx_completed_queue(&mut self, queue: usize, bytes: usize) {
        if bytes > 0 && self.txq[queue].dql.is_some() {
            self.dql_completed(queue, bytes as u64);
        }
    }

    fn dql_completed(&mut self, queue: usize, bytes: u64) {
        let jiffies = self.jiffies();
        let txq = &mut self.txq[queue];
        let Some(dql) = &mut txq.dql else { return };
        let before = dql.limit;
        dql.completed(bytes, jiffies);
        let (limit, avail, at) = (dql.limit, dql.avail(), txq.qdisc);
        let waits = avail >= 0 && std::mem::take(&mut txq.stack_xoff);
        self.changed("dql.limit", || format!("{before} -> {limit}"));
        if waits {
            self.__netif_schedule(at);
        }
    }

    /// A ring begins anew, with room for what waits (`netdev_tx_reset_queue`).
    pub(crate) fn netdev_tx_reset_queue(&mut self, queue: usize) {
        let jiffies = self.jiffies();
        let txq = &mut self.txq[queue];
        txq.dql = txq.dql.take().map(|_| Dql::new(jiffies));
        if std::mem::take(&mut txq.stack_xoff) {
            let at = txq.qdisc;
            self.__netif_schedule(at);
        }
    }

    /// Bytes that may leave a discipline together (`qdisc_avail_bulklimit`); no limit without one.
    #[inline]
    pub(super) fn qdisc_avail_bulklimit(&self, queue: usize) -> i64 {
        self.txq[queue].dql.as_ref().map_or(i64::MAX, Dql::avail)
    }

    /// The limit of a transmit queue, where it has one ([`super::KernelConfig::bql`]).
    #[must_use]
    pub fn byte_queue_limits(&self, queue: usize) -> Option<ByteQueueLimits> {
        let dql = self.txq.get(queue)?.dql.as_ref()?;
        Some(ByteQueueLimits {
            limit: dql.limit,
            inflight: dql.num_queued - dql.num_completed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends until the limit says stop, and then has the device send all but `keep` bytes; what the limit is then.
    fn round(dql: &mut Dql, jiffies: u64, keep: u64) -> u64 {
        while dql.avail() >= 0 {
            dql.queued(1000);
        }
        let inflight = dql.num_queued - dql.num_completed;
        dql.completed(inflight - keep.min(inflight), jiffies);
        dql.limit
    }

    #[test]
    fn the_limit_grows_as_long_as_the_device_runs_dry() {
        let mut dql = Dql::new(0);
        let limits: Vec<_> = (0..6).map(|_| round(&mut dql, 0, 0)).collect();
        assert_eq!(limits[0], 1000, "what was sent at once");
        assert!(
            limits.is_sorted() && limits[5] > 4 * limits[0],
            "{limits:?}"
        );
        // As soon as it does not, it stays.
        let limit = dql.limit;
        for _ in 0..50 {
            dql.queued(1000);
            dql.queued(1000);
            dql.completed(1000, 0);
            dql.completed(500, 0);
            dql.completed(500, 0);
        }
        assert_eq!(dql.limit, limit);
    }

    #[test]
    fn what_was_not_needed_for_a_second_goes() {
        let mut dql = Dql::new(0);
        for _ in 0..5 {
            round(&mut dql, 0, 0);
        }
        let high = dql.limit;
        assert!(high >= 10_000, "{high}");
        // From now on the device is slow: little of what it has is sent between two looks, so little is needed.
        let mut jiffies = 0;
        while jiffies <= HZ {
            assert_eq!(dql.limit, high, "not before a second has gone by");
            while dql.avail() >= 0 {
                dql.queued(1000);
            }
            jiffies += 10;
            dql.completed(1000, jiffies);
        }
        assert!(dql.limit < high, "{} {high}", dql.limit);
        for _ in 0..2000 {
            while dql.avail() >= 0 {
                dql.queued(1000);
            }
            jiffies += 10;
            dql.completed(1000, jiffies);
        }
        assert!(dql.limit <= 3000, "{}", dql.limit);
        assert!(dql.num_queued > dql.num_completed, "it does not run dry");
    }

    #[test]
    fn more_than_it_has_is_not_sent() {
        let mut dql = Dql::new(0);
        dql.queued(10);
        dql.completed(1000, 0);
        assert_eq!(dql.num_completed, 10);
    }
}
