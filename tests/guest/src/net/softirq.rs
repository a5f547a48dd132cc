//! Hard and soft interrupts (Linux: `kernel/irq/handle.c`, `kernel/softirq.c`) and `softnet_data`.
//!
//! In: interrupts that the transport took for this CPU's queues. Out: calls of the driver's
//! interrupt handlers, then of the soft interrupts they raised, on interrupt exit. Soft interrupts that
//! go on for more than 10 rounds or until the next jiffy are left to ksoftirqd, which gets one run
//! a step. Nothing is dropped. Unlike in Linux, waking a process does not end the rounds: there is no
//! scheduler to ask (`need_resched`).

use std::collections::VecDeque;

use super::arp::Arp;
use super::hrtimer::Hrtimer;
use super::ndisc::Ndisc;
use super::skbuff::Skb;
use super::stats::CpuStats;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Jiffies a second (`CONFIG_HZ`).
pub(super) const HZ: u64 = 250;
const NSEC_PER_JIFFY: u64 = 1_000_000_000 / HZ;
/// `MAX_SOFTIRQ_TIME`, 2 ms rounded up.
const MAX_SOFTIRQ_JIFFIES: u64 = 1;
const MAX_SOFTIRQ_RESTART: u32 = 10;

/// Soft interrupts, as bits of what is pending.
pub(crate) const TIMER_SOFTIRQ: u8 = 1 << 1;
pub(crate) const NET_TX_SOFTIRQ: u8 = 1 << 2;
pub(crate) const NET_RX_SOFTIRQ: u8 = 1 << 3;

/// What a CPU has to do for the network (`struct softnet_data`), and which soft interrupts it has
/// pending.
#[derive(Debug, Default)]
pub(crate) struct SoftnetData {
    /// NAPI instances to poll, by virtqueue number.
    pub poll_list: VecDeque<usize>,
    /// The lists of a `net_rx_action` under way. They are kept for their memory; nothing is in them
    /// between two runs.
    pub list: VecDeque<usize>,
    pub repoll: VecDeque<usize>,
    /// The lists of packets of one protocol, and of one route, while they go up: kept for their memory.
    pub ptype_list: Vec<Skb>,
    pub dst_list: Vec<Skb>,
    /// Packets that come without NAPI, and those of them that a poll has begun with (`backlog`).
    pub input_pkt_queue: VecDeque<Skb>,
    pub process_queue: VecDeque<Skb>,
    /// Packets that came into the backlog in all, and those of them that went up.
    pub input_queue_tail: u64,
    pub input_queue_head: u64,
    /// CPUs that are to hear of packets in their backlogs, and whether this one is.
    pub rps_ipi_list: Vec<usize>,
    pub rps_ipi_pending: bool,
    /// The backlog's NAPI instance is on a poll list, or being polled (`NAPI_STATE_SCHED`).
    pub backlog_scheduled: bool,
    /// Packets on their way through devices without a queueing discipline, a list for each that sends by another.
    /// They are kept for their memory.
    pub xmit_lists: Vec<VecDeque<Skb>>,
    /// How many devices without a queueing discipline are sending by one another (`xmit.recursion`).
    pub xmit_recursion: u8,
    /// Transmit queues whose discipline is to be run (`output_queue`).
    pub output_queue: VecDeque<usize>,
    pub in_net_rx_action: bool,
    /// NAPI instances whose threads were woken.
    pub napi_threads: VecDeque<usize>,
    /// Soft interrupts raised and not run (`irq_stat.__softirq_pending`).
    pub pending: u8,
    pub in_softirq: bool,
    pub ksoftirqd_woken: bool,
    pub stats: CpuStats,
}

impl SoftnetData {
    /// Asks for a soft interrupt (`__raise_softirq_irqoff`).
    #[inline]
    pub fn raise_softirq(&mut self, softirq: u8) {
        self.pending |= softirq;
    }
}

/// Jiffies that have passed at an instant of the machine's.
#[inline]
pub(crate) fn nsecs_to_jiffies(now: u64) -> u64 {
    now / NSEC_PER_JIFFY
}

/// Jiffies of `usecs`, rounded up.
pub(crate) fn usecs_to_jiffies(usecs: u64) -> u64 {
    usecs.saturating_mul(1000).div_ceil(NSEC_PER_JIFFY)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The CPU that runs now.
    #[inline]
    pub(crate) fn sd(&mut self) -> &mut SoftnetData {
        &mut self.softnet[self.cpu]
    }

    #[inline]
    pub(crate) fn jiffies(&self) -> u64 {
        nsecs_to_jiffies(self.machine.now())
    }

    /// Takes this CPU's pending interrupts, each queue's once; whether there were any.
    ///
    /// Once, because an interrupt storm must not keep the CPU here for ever: what comes meanwhile is
    /// taken the next time.
    #[inline]
    pub(crate) fn do_irqs(&mut self) -> bool {
        let mut any = false;
        for vq in 0..self.napi.len() {
            if self.napi[vq].cpu == self.cpu {
                any |= self.handle_irq(vq);
            }
        }
        any
    }

    fn handle_irq(&mut self, vq: usize) -> bool {
        let raised = self.dev.take_queue_interrupt(vq);
        if raised == 0 {
            return false;
        }
        let _stage = self.stage("handle_irq_event");
        self.changed("raised", || format!("{raised} of virtqueue {vq}"));
        self.napi[vq].stats.raised += raised;
        self.kstat_irqs[vq * self.softnet.len() + self.cpu] += 1;
        if self.costs.irq > 0 {
            // Interrupts are off meanwhile.
            self.machine.spend(self.costs.irq);
        }
        self.vring_interrupt(vq);
        true
    }

    /// Whether a timer was due; its soft interrupt is raised.
    pub(super) fn timer_interrupt(&mut self) -> bool {
        let due = self
            .next_jiffies_timer()
            .is_some_and(|at| at <= self.machine.now());
        if due {
            self.sd().raise_softirq(TIMER_SOFTIRQ);
        }
        due
    }

    /// Does what timers of this CPU are due for; whether there was one.
    #[inline]
    pub(super) fn hrtimer_interrupt(&mut self) -> bool {
        if self.hrtimers.next().is_none() {
            return false;
        }
        self.run_hrtimers()
    }

    fn run_hrtimers(&mut self) -> bool {
        let (now, mut any) = (self.machine.now(), false);
        while let Some(timer) = self.hrtimers.pop(self.cpu, now) {
            let _stage = self.stage("hrtimer_interrupt");
            any = true;
            match timer {
                Hrtimer::QdiscWatchdog(at) => self.qdisc_watchdog(at),
                Hrtimer::NapiWatchdog(vq) => self.napi_watchdog(vq),
            }
        }
        any
    }

    /// The end of a hard interrupt: soft interrupts run (`invoke_softirq`).
    pub(super) fn irq_exit_rcu(&mut self) {
        let _stage = self.stage("irq_exit_rcu");
        let sd = self.sd();
        if !sd.in_softirq && sd.pending != 0 {
            self.handle_softirqs();
        }
    }

    /// The end of what a process did with soft interrupts off (`local_bh_enable`): those raised
    /// meanwhile run now.
    #[inline]
    pub(crate) fn local_bh_enable(&mut self) {
        let sd = self.sd();
        if !sd.in_softirq && sd.pending != 0 {
            self.__do_softirq();
        }
    }

    fn __do_softirq(&mut self) {
        let _stage = self.stage("__do_softirq");
        self.handle_softirqs();
    }

    fn handle_softirqs(&mut self) {
        let _stage = self.stage("handle_softirqs");
        let end = self.jiffies() + MAX_SOFTIRQ_JIFFIES;
        let mut restarts = MAX_SOFTIRQ_RESTART;
        self.sd().in_softirq = true;
        loop {
            let pending = std::mem::take(&mut self.sd().pending);
            self.changed("softirq_pending", || format!("{pending:#x} -> 0"));
            if pending & TIMER_SOFTIRQ != 0 {
                self.sd().stats.timer_softirqs += 1;
                self.neigh_timer_handler::<Arp>();
                self.neigh_timer_handler::<Ndisc>();
                self.tcp_timers();
                self.ip_expire();
                self.ip6_frag_expire();
                self.igmp_timer_expire();
            }
            if pending & NET_TX_SOFTIRQ != 0 {
                self.net_tx_action();
            }
            if pending & NET_RX_SOFTIRQ != 0 {
                self.net_rx_action();
            }
            if self.sd().pending == 0 {
                break;
            }
            restarts -= 1;
            if restarts == 0 || self.jiffies() >= end {
                self.sd().ksoftirqd_woken = true;
                break;
            }
        }
        self.sd().in_softirq = false;
    }

    /// One run of this CPU's ksoftirqd, if it was woken; whether it was.
    pub(super) fn run_ksoftirqd(&mut self) -> bool {
        let sd = self.sd();
        let woken = std::mem::take(&mut sd.ksoftirqd_woken);
        if woken && sd.pending != 0 {
            let _stage = self.stage("run_ksoftirqd");
            let sd = self.sd();
            sd.stats.ksoftirqd_runs += 1;
            self.handle_softirqs();
        }
        woken
    }
}
