//! NAPI (Linux: `net/core/dev.c`, `net/core/gro.c`): interrupts turned into polling.
//!
//! In: drivers that ask to be polled because their queue interrupted. Out: calls of their poll
//! functions, at most 64 packets each and 300 in all before others get their turn, and the packets
//! they found, up the stack in lists of 8. While an instance is scheduled its queue's interrupt stays
//! masked; an interrupt that comes all the same is remembered (`NAPI_STATE_MISSED`) and costs one
//! more poll. Nothing is dropped.

use super::skbuff::Skb;
use super::softirq::{NET_RX_SOFTIRQ, SoftnetData, usecs_to_jiffies};
use super::stats::QueueStats;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// On a poll list, or being polled.
const NAPI_STATE_SCHED: u8 = 1 << 0;
/// It was asked for again meanwhile.
const NAPI_STATE_MISSED: u8 = 1 << 1;

/// What is polled: one for each virtqueue (`struct napi_struct`).
#[derive(Debug)]
pub(crate) struct NapiStruct {
    state: u8,
    /// Packets of one poll.
    weight: usize,
    /// The CPU whose interrupt this is.
    pub cpu: usize,
    /// Packets that go up the stack together.
    rx_list: Vec<Skb>,
    pub stats: QueueStats,
}

impl NapiStruct {
    /// Of a virtqueue that interrupts `cpu`.
    pub fn new(cpu: usize, weight: usize) -> Self {
        Self {
            state: 0,
            // With none it would be polled for ever and never find a packet.
            weight: weight.max(1),
            cpu,
            rx_list: Vec::new(),
            stats: QueueStats::default(),
        }
    }

    /// Whether the caller is to schedule it; if it is scheduled already, that it was asked for is
    /// remembered.
    #[inline]
    pub fn napi_schedule_prep(&mut self) -> bool {
        if self.state & NAPI_STATE_SCHED != 0 {
            self.state |= NAPI_STATE_MISSED;
            return false;
        }
        self.state |= NAPI_STATE_SCHED;
        true
    }
}

impl SoftnetData {
    /// Puts an instance on the poll list (`____napi_schedule`).
    #[inline]
    fn napi_schedule(&mut self, vq: usize) {
        self.poll_list.push_back(vq);
        // A net_rx_action under way looks at the list before it ends.
        if !self.in_net_rx_action {
            self.raise_softirq(NET_RX_SOFTIRQ);
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    #[inline]
    pub(crate) fn __napi_schedule(&mut self, vq: usize) {
        self.sd().napi_schedule(vq);
    }

    /// Ends a poll that found fewer packets than it might: gives them to the stack and lets go of
    /// the CPU, unless the instance was asked for again meanwhile. Whether it let go.
    pub(crate) fn napi_complete_done(&mut self, vq: usize) -> bool {
        self.gro_normal_list(vq);
        let napi = &mut self.napi[vq];
        let missed = napi.state & NAPI_STATE_MISSED != 0;
        napi.state = if missed { NAPI_STATE_SCHED } else { 0 };
        if missed {
            napi.stats.missed += 1;
            self.__napi_schedule(vq);
        }
        !missed
    }

    /// A packet from the driver (`napi_gro_receive`). Segments of one flow are not merged yet.
    #[inline]
    pub(crate) fn napi_gro_receive(&mut self, vq: usize, skb: Skb) {
        self.counters.rx_packets += 1;
        let list = &mut self.napi[vq].rx_list;
        list.push(skb);
        if list.len() >= self.config.gro_normal_batch {
            self.gro_normal_list(vq);
        }
    }

    /// Gives what was gathered to the stack.
    #[inline]
    fn gro_normal_list(&mut self, vq: usize) {
        if self.napi[vq].rx_list.is_empty() {
            return;
        }
        // Taken out for the time of the call, because the stack may need all of the kernel to
        // answer; nobody adds to the list meanwhile.
        let mut list = std::mem::take(&mut self.napi[vq].rx_list);
        self.netif_receive_skb_list(&mut list);
        self.napi[vq].rx_list = list;
    }

    /// The receive soft interrupt: polls what is scheduled, until budget or time is spent.
    pub(super) fn net_rx_action(&mut self) {
        let limit = self.jiffies() + usecs_to_jiffies(self.config.netdev_budget_usecs);
        let mut budget = self.config.netdev_budget;
        let sd = self.sd();
        sd.stats.net_rx_actions += 1;
        sd.in_net_rx_action = true;
        loop {
            let sd = self.sd();
            let Some(vq) = sd.list.pop_front() else {
                if sd.repoll.is_empty() && !sd.poll_list.is_empty() {
                    // Scheduled meanwhile, or before: the list of this round.
                    std::mem::swap(&mut sd.list, &mut sd.poll_list);
                    continue;
                }
                break;
            };
            let work = self.napi_poll(vq);
            budget = budget.saturating_sub(work);
            if budget == 0 || self.jiffies() >= limit {
                self.sd().stats.time_squeeze += 1;
                break;
            }
        }
        // What is left of the round comes first, then what was scheduled, then what had more.
        let sd = self.sd();
        let SoftnetData {
            list,
            poll_list,
            repoll,
            ..
        } = sd;
        list.append(poll_list);
        list.append(repoll);
        std::mem::swap(list, poll_list);
        sd.in_net_rx_action = false;
        if !sd.poll_list.is_empty() {
            sd.raise_softirq(NET_RX_SOFTIRQ);
        }
    }

    fn napi_poll(&mut self, vq: usize) -> usize {
        let (work, repoll) = self.__napi_poll(vq);
        if repoll {
            self.sd().repoll.push_back(vq);
        }
        work
    }

    /// Calls the poll function; how many packets it took, and whether it is to be called again.
    fn __napi_poll(&mut self, vq: usize) -> (usize, bool) {
        let napi = &mut self.napi[vq];
        let weight = napi.weight;
        napi.stats.polls += 1;
        let work = if vq.is_multiple_of(2) {
            self.spend(self.costs.poll);
            self.virtnet_poll(vq, weight)
        } else {
            self.virtnet_poll_tx(vq)
        };
        if work < weight {
            return (work, false);
        }
        // It has more: it stays scheduled, with its interrupt masked.
        self.gro_normal_list(vq);
        (work, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_scheduled_once_and_remembers_what_it_missed() {
        let mut napi = NapiStruct::new(0, 64);
        assert!(napi.napi_schedule_prep());
        assert_eq!(napi.state, NAPI_STATE_SCHED);
        assert!(!napi.napi_schedule_prep());
        assert_eq!(napi.state, NAPI_STATE_SCHED | NAPI_STATE_MISSED);
    }

    #[test]
    fn each_poll_may_take_something() {
        assert_eq!(NapiStruct::new(0, 0).weight, 1);
    }

    #[test]
    fn the_soft_interrupt_is_raised_unless_it_runs() {
        for (in_net_rx_action, pending) in [(false, NET_RX_SOFTIRQ), (true, 0)] {
            let mut sd = SoftnetData {
                in_net_rx_action,
                ..SoftnetData::default()
            };
            sd.napi_schedule(1);
            assert_eq!((sd.poll_list.len(), sd.pending), (1, pending));
        }
    }
}
