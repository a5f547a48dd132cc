//! NAPI (Linux: `net/core/dev.c`): interrupts turned into polling.
//!
//! In: drivers that ask to be polled because their queue interrupted. Out: calls of their poll
//! functions, at most 64 packets each and 300 in all before others get their turn; the packets
//! they found go up by way of `gro`. While an instance is scheduled its queue's interrupt stays
//! masked; an interrupt that comes all the same is remembered (`NAPI_STATE_MISSED`) and costs one
//! more poll. Where the administrator says so it stays masked for some more polls, which a timer brings. Nothing is dropped.

use std::time::Duration;

use super::gro::GroNode;
use super::hrtimer::Hrtimer;
use super::softirq::{NET_RX_SOFTIRQ, SoftnetData, usecs_to_jiffies};
use super::stats::QueueStats;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// On a poll list, or being polled.
pub(super) const NAPI_STATE_SCHED: u8 = 1 << 0;
/// It was asked for again meanwhile.
pub(super) const NAPI_STATE_MISSED: u8 = 1 << 1;
/// A reader polls it.
pub(super) const NAPI_STATE_IN_BUSY_POLL: u8 = 1 << 2;
/// A thread polls it.
pub(super) const NAPI_STATE_THREADED: u8 = 1 << 3;

/// On a poll list: the CPU's backlog.
pub(crate) const BACKLOG: usize = usize::MAX;

/// What is polled: one for each virtqueue (`struct napi_struct`).
#[derive(Debug)]
pub(crate) struct NapiStruct {
    pub(super) state: u8,
    /// Polls that may still find nothing before its interrupt is switched on.
    defer_hard_irqs_count: u32,
    /// Packets of one poll.
    weight: usize,
    /// The CPU whose interrupt this is.
    pub cpu: usize,
    /// Packets that it found and that have not gone up yet.
    pub(super) gro: GroNode,
    pub stats: QueueStats,
}

impl NapiStruct {
    /// Of a virtqueue that interrupts `cpu`.
    pub fn new(cpu: usize, weight: usize) -> Self {
        Self {
            state: 0,
            defer_hard_irqs_count: 0,
            // With none it would be polled for ever and never find a packet.
            weight: weight.max(1),
            cpu,
            gro: GroNode::default(),
            stats: QueueStats::default(),
        }
    }

    /// Whether the caller is to schedule it; if it is scheduled already, that it was asked for is
    /// remembered.
    #[inline]
    fn napi_schedule_prep(&mut self) -> bool {
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
    pub fn napi_schedule(&mut self, vq: usize) {
        self.poll_list.push_back(vq);
        // A net_rx_action under way looks at the list before it ends.
        if !self.in_net_rx_action {
            self.raise_softirq(NET_RX_SOFTIRQ);
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Whether the caller is to schedule it.
    #[inline]
    pub(crate) fn napi_schedule_prep(&mut self, vq: usize) -> bool {
        let _stage = self.stage("napi_schedule_prep");
        let before = self.napi[vq].state;
        let scheduled = self.napi[vq].napi_schedule_prep();
        let after = self.napi[vq].state;
        self.changed("napi.state", || format!("{before:#x} -> {after:#x}"));
        scheduled
    }

    #[inline]
    pub(crate) fn __napi_schedule(&mut self, vq: usize) {
        let _stage = self.stage("__napi_schedule");
        if self.napi[vq].state & NAPI_STATE_THREADED != 0 {
            self.changed("napi thread", || format!("of virtqueue {vq} woken"));
            self.sd().napi_threads.push_back(vq);
            return;
        }
        self.changed("poll_list", || format!("virtqueue {vq} added"));
        self.sd().napi_schedule(vq);
    }

    /// Keeps a receive queue's interrupt masked until so many polls in a row found nothing, `timeout` after one another
    /// (`/sys/class/net/DEV/napi_defer_hard_irqs`, `gro_flush_timeout`); 0 of either is not at all.
    pub fn set_napi_defer_hard_irqs(&mut self, polls: u32, timeout: Duration) {
        self.napi_defer_hard_irqs = polls;
        self.gro_flush_timeout = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    }

    /// Whether the interrupt stays masked after a poll that found `work_done`, and for how long.
    fn napi_defer(&mut self, vq: usize, work_done: usize) -> Option<u64> {
        let napi = &mut self.napi[vq];
        if work_done > 0 {
            napi.defer_hard_irqs_count = self.napi_defer_hard_irqs;
        }
        napi.defer_hard_irqs_count = napi.defer_hard_irqs_count.checked_sub(1)?;
        Some(self.gro_flush_timeout).filter(|&timeout| timeout > 0)
    }

    /// The timer of an instance whose interrupt is masked: it is polled.
    pub(super) fn napi_watchdog(&mut self, vq: usize) {
        let _stage = self.stage("napi_watchdog");
        if self.napi[vq].state & NAPI_STATE_SCHED == 0 {
            self.napi[vq].state |= NAPI_STATE_SCHED;
            self.__napi_schedule(vq);
        }
    }

    /// Ends a poll that found fewer packets than it might: gives them to the stack and lets go of
    /// the CPU, unless the instance was asked for again meanwhile. Whether it let go and its interrupt is to be on.
    pub(crate) fn napi_complete_done(&mut self, vq: usize, work_done: usize) -> bool {
        let _stage = self.stage("napi_complete_done");
        if self.napi[vq].state & NAPI_STATE_IN_BUSY_POLL != 0 {
            return false;
        }
        let deferred = self.napi_defer(vq, work_done);
        self.napi_gro_flush(vq, deferred.is_some());
        self.gro_normal_list(vq);
        let napi = &mut self.napi[vq];
        let before = napi.state;
        let missed = before & NAPI_STATE_MISSED != 0;
        napi.state &= !(NAPI_STATE_MISSED | NAPI_STATE_SCHED);
        if missed {
            napi.state |= NAPI_STATE_SCHED;
        }
        let after = napi.state;
        self.changed("napi.state", || format!("{before:#x} -> {after:#x}"));
        if missed {
            self.napi[vq].stats.missed += 1;
            self.__napi_schedule(vq);
            return false;
        }
        if let Some(timeout) = deferred {
            let expires = self.machine.now().saturating_add(timeout);
            self.hrtimers
                .start(Hrtimer::NapiWatchdog(vq), self.cpu, expires);
        }
        deferred.is_none()
    }

    /// The receive soft interrupt: polls what is scheduled, until budget or time is spent.
    pub(super) fn net_rx_action(&mut self) {
        let _stage = self.stage("net_rx_action");
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
        self.net_rps_action();
    }

    fn napi_poll(&mut self, vq: usize) -> usize {
        let (work, repoll) = self.__napi_poll(vq);
        if repoll {
            self.sd().repoll.push_back(vq);
        }
        work
    }

    /// Calls the poll function; how many packets it took, and whether it is to be called again.
    pub(super) fn __napi_poll(&mut self, vq: usize) -> (usize, bool) {
        let _stage = self.stage("__napi_poll");
        if vq == BACKLOG {
            let weight = self.config.dev_weight.max(1);
            let work = self.process_backlog(weight);
            return (work, work == weight);
        }
        let napi = &mut self.napi[vq];
        let weight = napi.weight;
        napi.stats.polls += 1;
        let work = if vq.is_multiple_of(2) {
            self.spend(self.costs.poll);
            self.virtnet_poll(vq, weight)
        } else {
            self.virtnet_poll_tx(vq)
        };
        self.changed("work", || format!("{work} of {weight}"));
        if work < weight {
            return (work, false);
        }
        // It has more: it stays scheduled, with its interrupt masked. A jiffy is too long to keep a packet back.
        self.napi_gro_flush(vq, false);
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
