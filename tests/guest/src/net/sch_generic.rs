//! Transmit queues and what runs their queueing disciplines (Linux: `net/sched/sch_generic.c`, and `net_tx_action` of
//! `net/core/dev.c`).
//!
//! In: frames to send. Out: the same frames to the driver, in the order that the discipline chooses: `sch_pfifo_fast`,
//! `sch_fq_codel`, `sch_tbf`, or none. While a transmit queue is stopped its frames wait; when completions wake it, or a timer says that
//! it is time, the transmit soft interrupt sends them. Dropped and counted: what a discipline drops, and what waits
//! when its queue goes out of use. Which discipline a device has is the affair of `sch_api`.

use std::collections::VecDeque;

use super::dql::Dql;
use super::hrtimer::Hrtimer;
use super::sch_fq_codel::FqCodel;
use super::sch_pfifo_fast::PfifoFast;
use super::sch_tbf::Tbf;
use super::skbuff::{SkBuff, Skb};
use super::softirq::NET_TX_SOFTIRQ;
use super::stats::{TxDrop, TxQueueStats};
use super::tcp::TCP_DOFF;
use super::udp::UDPHDR_LEN;
use super::{Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::gso::{SKB_GSO_TCPV4, SKB_GSO_TCPV6};
use crate::virtio_net::tx::SendQueue;

/// What `tc -s` shows of each discipline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QdiscStats {
    /// Bytes that left it.
    pub bytes: u64,
    /// Packets that left it; one that stands for several counts as those.
    pub packets: u64,
    /// Packets that it dropped.
    pub drops: u64,
    /// Times that a packet had to wait for its rate.
    pub overlimits: u64,
    /// Packets that left it and came back, because the driver had no room.
    pub requeues: u64,
    /// Packets that wait.
    pub qlen: u64,
    /// Bytes of them.
    pub backlog: u64,
}

/// What a discipline says of itself to who runs it.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub stats: QdiscStats,
    /// Packets that it is done with. Nothing is in there between two calls.
    pub to_free: Vec<Skb>,
    /// When it wants to be asked again.
    pub watchdog: Option<u64>,
}

impl Account {
    /// A packet waits.
    #[inline]
    pub fn came(&mut self, skb: &SkBuff) {
        self.stats.qlen += 1;
        self.stats.backlog += qdisc_pkt_len(skb) as u64;
    }

    /// It does no longer.
    #[inline]
    pub fn left(&mut self, skb: &SkBuff) {
        self.stats.qlen -= 1;
        self.stats.backlog -= qdisc_pkt_len(skb) as u64;
    }

    /// A packet is not sent; it does not wait any more, or never has.
    #[cold]
    pub fn drop(&mut self, skb: Skb) {
        self.stats.drops += 1;
        self.to_free.push(skb);
    }

    /// A packet goes to the driver (`qdisc_bstats_update`).
    #[inline]
    fn sent(&mut self, skb: &SkBuff) {
        let segs = if skb.gso_size == 0 { 1 } else { skb.gso_segs };
        self.stats.packets += u64::from(segs);
        self.stats.bytes += qdisc_pkt_len(skb) as u64;
    }
}

/// Bytes of a packet on the wire: one that stands for several has headers for each (`qdisc_pkt_len_init`).
#[inline]
pub(super) fn qdisc_pkt_len(skb: &SkBuff) -> usize {
    if skb.gso_size == 0 {
        return skb.len();
    }
    let transport = skb.csum_start.saturating_sub(skb.headroom());
    let of_tcp = skb.gso_type & (SKB_GSO_TCPV4 | SKB_GSO_TCPV6) != 0;
    let doff = || {
        skb.data()
            .get(transport + TCP_DOFF)
            .map_or(0, |doff| doff >> 4)
    };
    let headers = transport
        + if of_tcp {
            usize::from(doff()) * 4
        } else {
            UDPHDR_LEN
        };
    skb.len() + headers * usize::from(skb.gso_segs.saturating_sub(1))
}

/// The algorithm of a discipline (`struct Qdisc_ops`): names, not pointers, so that the calls are direct.
#[derive(Debug)]
pub(super) enum QdiscOps {
    Noqueue,
    PfifoFast(PfifoFast),
    FqCodel(Box<FqCodel>),
    Tbf(Tbf),
}

/// A discipline (`struct Qdisc`).
#[derive(Debug)]
pub(crate) struct Qdisc {
    pub(super) ops: QdiscOps,
    pub(super) account: Account,
    /// Frames that have left it and for which the driver had no room (`gso_skb`): they are the first.
    gso_skb: VecDeque<Skb>,
    /// On an output queue (`__QDISC_STATE_SCHED`).
    scheduled: bool,
    /// It serves one transmit queue, and sends nothing while that is stopped (`TCQ_F_ONETXQUEUE`).
    onetxqueue: bool,
}

impl Qdisc {
    pub(super) fn new(ops: QdiscOps, onetxqueue: bool) -> Self {
        Self {
            ops,
            account: Account::default(),
            gso_skb: VecDeque::new(),
            scheduled: false,
            onetxqueue,
        }
    }

    /// Packets that wait.
    #[inline]
    fn qlen(&self) -> u64 {
        self.account.stats.qlen
    }

    /// Whether a packet that finds it empty may go past it (`TCQ_F_CAN_BYPASS`).
    #[inline]
    fn can_bypass(&self) -> bool {
        !matches!(self.ops, QdiscOps::Tbf(_))
    }

    fn enqueue(&mut self, skb: Skb, now: u64) {
        let account = &mut self.account;
        match &mut self.ops {
            QdiscOps::Noqueue => account.drop(skb),
            QdiscOps::PfifoFast(sch) => sch.enqueue(skb, account),
            QdiscOps::FqCodel(sch) => sch.enqueue(skb, now, account),
            QdiscOps::Tbf(sch) => sch.enqueue(skb, account),
        }
    }

    fn dequeue(&mut self, now: u64) -> Option<Skb> {
        let account = &mut self.account;
        let skb = match &mut self.ops {
            QdiscOps::Noqueue => None,
            QdiscOps::PfifoFast(sch) => sch.dequeue(account),
            QdiscOps::FqCodel(sch) => sch.dequeue(now, account),
            QdiscOps::Tbf(sch) => sch.dequeue(now, account),
        }?;
        account.sent(&skb);
        Some(skb)
    }

    /// The driver had no room for a frame that has left it: it waits behind `place` others that came back.
    fn requeue(&mut self, place: usize, skb: Skb) {
        self.account.stats.requeues += 1;
        self.account.came(&skb);
        self.gso_skb.insert(place, skb);
    }

    /// Gives up all packets; they are in `to_free` then (`qdisc_reset`).
    pub(super) fn reset(&mut self, now: u64) {
        let account = &mut self.account;
        match &mut self.ops {
            QdiscOps::Noqueue => {}
            QdiscOps::PfifoFast(sch) => sch.reset(account),
            QdiscOps::FqCodel(sch) => sch.reset(account),
            QdiscOps::Tbf(sch) => sch.reset(now, account),
        }
        account.to_free.extend(self.gso_skb.drain(..));
        (account.stats.qlen, account.stats.backlog) = (0, 0);
    }
}

/// What the stack knows of a transmit queue (`struct netdev_queue`), and the frames its ring has.
#[derive(Debug)]
pub(crate) struct NetdevQueue {
    /// Which discipline its frames wait in.
    pub(super) qdisc: usize,
    /// The driver wants no more for now (`__QUEUE_STATE_DRV_XOFF`).
    pub stopped: bool,
    /// The device has as much as it may have (`__QUEUE_STATE_STACK_XOFF`).
    pub(super) stack_xoff: bool,
    /// How much that is, where there is a limit.
    pub(super) dql: Option<Dql>,
    /// What leaves the discipline at present. Kept for its memory; nothing is in there between two frames.
    list: VecDeque<Skb>,
    /// Frames in the ring, by the driver's buffer: they end when the device has sent them.
    pub in_flight: Vec<Option<Skb>>,
    pub stats: TxQueueStats,
}

impl NetdevQueue {
    pub fn new(sq: &SendQueue, dql: Option<Dql>) -> Self {
        let mut in_flight = Vec::new();
        in_flight.resize_with(usize::from(sq.vq.size()), || None);
        Self {
            qdisc: 0,
            stopped: false,
            stack_xoff: false,
            dql,
            list: VecDeque::new(),
            in_flight,
            stats: TxQueueStats::default(),
        }
    }

    /// Whether frames have to wait (`netif_xmit_stopped`).
    #[inline]
    fn xmit_stopped(&self) -> bool {
        self.stopped || self.stack_xoff
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Sends a frame past an empty discipline, or behind those that wait.
    #[inline]
    pub(super) fn __dev_xmit_skb(&mut self, queue: usize, mut skb: Skb) {
        let at = self.txq[queue].qdisc;
        let q = &mut self.qdiscs[at];
        if let QdiscOps::Noqueue = q.ops {
            return self.xmit_or_drop(queue, skb);
        }
        skb.queue_mapping = queue as u16;
        if q.qlen() == 0 && q.can_bypass() {
            q.account.sent(&skb);
            let nolock = matches!(q.ops, QdiscOps::PfifoFast(_));
            if self.sch_direct_xmit(at, skb, true, false) && (!nolock || self.qdiscs[at].qlen() > 0)
            {
                self.__qdisc_run(at);
            }
            return;
        }
        self.dev_qdisc_enqueue(at, skb);
        self.__qdisc_run(at);
    }

    fn dev_qdisc_enqueue(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("dev_qdisc_enqueue");
        let now = self.machine.now();
        let q = &mut self.qdiscs[at];
        let before = q.qlen();
        q.enqueue(skb, now);
        let qlen = q.qlen();
        self.changed("qlen", || format!("{before} -> {qlen}"));
        self.free_to_free(at, TxDrop::QdiscDrops);
    }

    /// What a discipline is done with ends here.
    #[inline]
    pub(super) fn free_to_free(&mut self, at: usize, reason: TxDrop) {
        while let Some(skb) = self.qdiscs[at].account.to_free.pop() {
            self.drop_tx(skb, reason);
        }
    }

    /// A driver's device without a discipline: what it does not take at once is lost.
    fn xmit_or_drop(&mut self, queue: usize, skb: Skb) {
        let mut list = std::mem::take(&mut self.txq[queue].list);
        self.validate_xmit_skb_list(skb, &mut list);
        if !self.txq[queue].xmit_stopped() {
            self.dev_hard_start_xmit(queue, &mut list, false);
        }
        for skb in list.drain(..) {
            self.netdevs[skb.dev].stats.tx_dropped += 1;
            self.drop_tx(skb, TxDrop::TxDropped);
        }
        self.txq[queue].list = list;
    }

    /// Gives a frame to the driver, or its segments; whether it took all. What it has no room for is the
    /// first that waits.
    fn sch_direct_xmit(&mut self, at: usize, skb: Skb, validate: bool, more: bool) -> bool {
        let _stage = self.stage("sch_direct_xmit");
        let queue = usize::from(skb.queue_mapping);
        let mut list = std::mem::take(&mut self.txq[queue].list);
        if validate {
            self.validate_xmit_skb_list(skb, &mut list);
        } else {
            list.push_back(skb);
        }
        if !self.txq[queue].xmit_stopped() {
            self.dev_hard_start_xmit(queue, &mut list, more);
        }
        let done = list.is_empty();
        if !done {
            self.dev_requeue_skb(at, queue, 0, &mut list);
        }
        self.txq[queue].list = list;
        done
    }

    /// Frames that have left a discipline come back to it, behind `place` others.
    fn dev_requeue_skb(&mut self, at: usize, queue: usize, place: usize, list: &mut VecDeque<Skb>) {
        for (nth, mut skb) in list.drain(..).enumerate() {
            skb.queue_mapping = queue as u16;
            self.qdiscs[at].requeue(place + nth, skb);
        }
    }

    /// A frame has left a discipline, and the one before it came back: it waits behind that, and is ready to be sent
    /// as that is.
    #[cold]
    fn requeue_next(&mut self, at: usize, skb: Skb) {
        let queue = usize::from(skb.queue_mapping);
        let mut list = std::mem::take(&mut self.txq[queue].list);
        self.validate_xmit_skb_list(skb, &mut list);
        let place = self.qdiscs[at].gso_skb.len();
        self.dev_requeue_skb(at, queue, place, &mut list);
        self.txq[queue].list = list;
    }

    /// The next frame of a discipline whose transmit queue is not stopped; whether it is still to be validated.
    fn dequeue_skb(&mut self, at: usize) -> Option<(Skb, bool)> {
        let now = self.machine.now();
        let q = &mut self.qdiscs[at];
        if let Some(skb) = q.gso_skb.front() {
            if self.txq[usize::from(skb.queue_mapping)].xmit_stopped() {
                return None;
            }
            let skb = q.gso_skb.pop_front()?;
            q.account.left(&skb);
            return Some((skb, false));
        }
        let found = q.dequeue(now);
        if let Some(expires) = q.account.watchdog.take() {
            self.hrtimers
                .start(Hrtimer::QdiscWatchdog(at), self.cpu, expires);
        }
        self.free_to_free(at, TxDrop::QdiscDrops);
        found.map(|skb| (skb, true))
    }

    /// Sends what waits, until the driver has enough or others should have their turn.
    pub(super) fn __qdisc_run(&mut self, at: usize) {
        let _stage = self.stage("__qdisc_run");
        let mut quota = self.config.dev_weight.max(1);
        let (mut next, mut bytelimit) = (None, 0);
        loop {
            if next.is_none() {
                next = self.dequeue_of_running(at);
                bytelimit = self.bulk_limit(at);
            }
            let Some((skb, validate)) = next else { return };
            quota -= 1;
            bytelimit -= qdisc_pkt_len(&skb) as i64;
            // One kick for all: the driver kicks by itself when it stops the queue. As long as others wait that had come
            // back none is taken before its turn: it would be behind them if it came back, too.
            let first = self.qdiscs[at].gso_skb.is_empty();
            next = if first && quota > 0 && bytelimit > 0 {
                self.dequeue_of_running(at)
            } else {
                None
            };
            let done = self.sch_direct_xmit(at, skb, validate, next.is_some());
            if !done {
                if let Some((skb, _)) = next {
                    self.requeue_next(at, skb);
                }
                return;
            }
            if quota == 0 {
                return self.__netif_schedule(at);
            }
        }
    }

    /// Bytes that may leave a discipline together: only those for one transmit queue do.
    fn bulk_limit(&self, at: usize) -> i64 {
        if self.qdiscs[at].onetxqueue {
            self.qdisc_avail_bulklimit(at)
        } else {
            0
        }
    }

    /// The next frame of a discipline, unless it has one transmit queue and that is stopped.
    fn dequeue_of_running(&mut self, at: usize) -> Option<(Skb, bool)> {
        if self.qdiscs[at].onetxqueue && self.txq[at].xmit_stopped() {
            return None;
        }
        self.dequeue_skb(at)
    }

    /// Has the transmit soft interrupt run a discipline.
    pub(super) fn __netif_schedule(&mut self, at: usize) {
        if !std::mem::replace(&mut self.qdiscs[at].scheduled, true) {
            let sd = self.sd();
            sd.output_queue.push_back(at);
            sd.raise_softirq(NET_TX_SOFTIRQ);
        }
    }

    /// A discipline's timer: it may send again.
    pub(super) fn qdisc_watchdog(&mut self, at: usize) {
        let _stage = self.stage("qdisc_watchdog");
        self.__netif_schedule(at);
    }

    /// Queues from `first` on are out of use: what waits for them goes (`netif_set_real_num_tx_queues`,
    /// `qdisc_reset_all_tx_gt`).
    pub(crate) fn qdisc_reset_all_tx_gt(&mut self, first: usize) {
        for queue in first..self.txq.len() {
            self.qdisc_reset(self.txq[queue].qdisc);
        }
    }

    /// What waits in a discipline goes.
    pub(super) fn qdisc_reset(&mut self, at: usize) {
        self.hrtimers.cancel(Hrtimer::QdiscWatchdog(at));
        let now = self.machine.now();
        self.qdiscs[at].reset(now);
        self.free_to_free(at, TxDrop::QdiscReset);
    }

    /// The ring is full (`netif_tx_stop_queue`).
    pub(crate) fn netif_tx_stop_queue(&mut self, queue: usize) {
        let txq = &mut self.txq[queue];
        txq.stopped = true;
        txq.stats.stop += 1;
        self.changed("tx queue", || format!("{queue} stopped"));
    }

    /// The ring has room again (`netif_tx_wake_queue`).
    #[inline]
    pub(crate) fn netif_tx_wake_queue(&mut self, queue: usize) {
        let txq = &mut self.txq[queue];
        if std::mem::take(&mut txq.stopped) {
            txq.stats.wake += 1;
            let at = txq.qdisc;
            self.changed("tx queue", || format!("{queue} woken"));
            self.__netif_schedule(at);
        }
    }

    /// The transmit soft interrupt: runs the disciplines that were waiting for room.
    pub(super) fn net_tx_action(&mut self) {
        let _stage = self.stage("net_tx_action");
        self.sd().stats.net_tx_actions += 1;
        // Those that schedule themselves again have the next turn.
        for _ in 0..self.sd().output_queue.len() {
            let Some(at) = self.sd().output_queue.pop_front() else {
                return;
            };
            // It may have been replaced meanwhile.
            if let Some(q) = self.qdiscs.get_mut(at) {
                q.scheduled = false;
                self.__qdisc_run(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::skbuff::SkbCache;
    use super::*;
    use crate::virtio_net::gso::SKB_GSO_UDP_L4;

    /// Ethernet and IP.
    const BEFORE: usize = 34;

    #[test]
    fn each_segment_has_headers_on_the_wire() {
        let mut cache = SkbCache::default();
        let mut skb = cache.alloc(64, 3000);
        skb.put(3000);
        assert_eq!(qdisc_pkt_len(&skb), 3000);
        skb.csum_start = skb.headroom() + BEFORE;
        (skb.gso_size, skb.gso_segs, skb.gso_type) = (1000, 3, SKB_GSO_UDP_L4);
        assert_eq!(qdisc_pkt_len(&skb), 3000 + 2 * (BEFORE + 8));
        skb.gso_type = SKB_GSO_TCPV4;
        for words in [5, 8, 15] {
            skb.data_mut()[BEFORE + TCP_DOFF] = words << 4;
            let headers = BEFORE + 4 * usize::from(words);
            assert_eq!(qdisc_pkt_len(&skb), 3000 + 2 * headers);
        }
    }
}
