//! Transmit queues and their queueing discipline (Linux: `net/sched/sch_generic.c`, and
//! `net_tx_action` of `net/core/dev.c`).
//!
//! In: frames to send. Out: the same frames to the driver, in order. While the driver has stopped
//! its queue because its ring is full they wait here, in one bounded FIFO a queue (as `pfifo` does
//! under `mq`); when completions wake the queue, the transmit soft interrupt sends them. Dropped and
//! counted: what comes while the FIFO is full, and what waits when its queue goes out of use.

use std::collections::VecDeque;

use super::skbuff::Skb;
use super::softirq::NET_TX_SOFTIRQ;
use super::stats::{TxDrop, TxQueueStats};
use super::{Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::tx::SendQueue;

/// A FIFO of frames (`struct Qdisc`).
#[derive(Debug)]
struct Qdisc {
    q: VecDeque<Skb>,
    limit: usize,
    /// On an output queue (`__QDISC_STATE_SCHED`).
    scheduled: bool,
}

/// What the stack knows of a transmit queue (`struct netdev_queue`), and the frames its ring has.
#[derive(Debug)]
pub(crate) struct NetdevQueue {
    qdisc: Qdisc,
    /// The driver wants no more for now (`__QUEUE_STATE_DRV_XOFF`).
    pub stopped: bool,
    /// Frames in the ring, by the driver's buffer: they end when the device has sent them.
    pub in_flight: Vec<Option<Skb>>,
    pub stats: TxQueueStats,
}

impl NetdevQueue {
    pub fn new(sq: &SendQueue, limit: usize) -> Self {
        let mut in_flight = Vec::new();
        in_flight.resize_with(usize::from(sq.vq.size()), || None);
        Self {
            qdisc: Qdisc {
                q: VecDeque::new(),
                limit,
                scheduled: false,
            },
            stopped: false,
            in_flight,
            stats: TxQueueStats::default(),
        }
    }

    /// Frames that wait for the driver.
    pub fn qlen(&self) -> usize {
        self.qdisc.q.len()
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Sends a frame past an empty discipline, or behind those that wait.
    #[inline]
    pub(super) fn __dev_xmit_skb(&mut self, queue: usize, skb: Skb) {
        let txq = &mut self.txq[queue];
        if txq.qlen() == 0 && !txq.stopped {
            return self.dev_hard_start_xmit(queue, skb, false);
        }
        if txq.qlen() >= txq.qdisc.limit {
            return self.drop_tx(skb, TxDrop::QdiscDrops);
        }
        txq.qdisc.q.push_back(skb);
        self.__qdisc_run(queue);
    }

    /// Sends what waits, until the driver has enough or others should have their turn.
    fn __qdisc_run(&mut self, queue: usize) {
        for quota in (0..self.config.dev_weight.max(1)).rev() {
            let txq = &mut self.txq[queue];
            if txq.stopped {
                return;
            }
            let Some(skb) = txq.qdisc.q.pop_front() else {
                return;
            };
            // One kick for all: the driver kicks by itself when it stops the queue.
            let more = quota > 0 && txq.qlen() > 0;
            self.dev_hard_start_xmit(queue, skb, more);
        }
        self.__netif_schedule(queue);
    }

    /// Has the transmit soft interrupt run a discipline.
    fn __netif_schedule(&mut self, queue: usize) {
        let qdisc = &mut self.txq[queue].qdisc;
        if !std::mem::replace(&mut qdisc.scheduled, true) {
            let sd = self.sd();
            sd.output_queue.push_back(queue);
            sd.raise_softirq(NET_TX_SOFTIRQ);
        }
    }

    /// Queues from `first` on are out of use: what waits for them goes (`netif_set_real_num_tx_queues`,
    /// `qdisc_reset_all_tx_gt`).
    pub(crate) fn qdisc_reset_all_tx_gt(&mut self, first: usize) {
        for queue in first..self.txq.len() {
            while let Some(skb) = self.txq[queue].qdisc.q.pop_front() {
                self.drop_tx(skb, TxDrop::QdiscReset);
            }
        }
    }

    /// The ring is full (`netif_tx_stop_queue`).
    pub(crate) fn netif_tx_stop_queue(&mut self, queue: usize) {
        let txq = &mut self.txq[queue];
        txq.stopped = true;
        txq.stats.stop += 1;
    }

    /// The ring has room again (`netif_tx_wake_queue`).
    #[inline]
    pub(crate) fn netif_tx_wake_queue(&mut self, queue: usize) {
        let txq = &mut self.txq[queue];
        if std::mem::take(&mut txq.stopped) {
            txq.stats.wake += 1;
            self.__netif_schedule(queue);
        }
    }

    /// The transmit soft interrupt: runs the disciplines that were waiting for room.
    pub(super) fn net_tx_action(&mut self) {
        self.sd().stats.net_tx_actions += 1;
        // Those that schedule themselves again have the next turn.
        for _ in 0..self.sd().output_queue.len() {
            let Some(queue) = self.sd().output_queue.pop_front() else {
                return;
            };
            self.txq[queue].qdisc.scheduled = false;
            self.__qdisc_run(queue);
        }
    }
}
