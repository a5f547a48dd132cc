//! `/proc/interrupts` and `/proc/softirqs` (Linux: `kernel/irq/proc.c`, `fs/proc/softirqs.c`).

use std::fmt;

use super::super::stats::CpuStats;
use super::super::{Kernel, Machine};
use crate::transport::Transport;

/// Number of the first queue's interrupt: those below it are the platform's.
const FIRST_IRQ: usize = 24;
/// Soft interrupts, by their numbers.
const SOFTIRQ_TO_NAME: [&str; 10] = [
    "HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU",
];
/// Digits that interrupts' numbers have at least.
const PREC: usize = 3;

/// How often each soft interrupt ran on a CPU; those that this kernel does not have never do.
fn runs(stats: &CpuStats) -> [u64; 10] {
    let (timer, tx, rx) = (
        stats.timer_softirqs,
        stats.net_tx_actions,
        stats.net_rx_actions,
    );
    [0, timer, tx, rx, 0, 0, 0, 0, 0, 0]
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn show_interrupts(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let cpus = self.softnet.len();
        write!(out, "{:1$}", "", PREC + 8)?;
        for cpu in 0..cpus {
            write!(out, "CPU{cpu:<8}")?;
        }
        writeln!(out)?;
        for vq in 0..self.napi.len() {
            write!(out, "{:PREC$}: ", FIRST_IRQ + vq)?;
            for count in &self.kstat_irqs[vq * cpus..][..cpus] {
                write!(out, "{count:10} ")?;
            }
            let direction = if vq % 2 == 0 { "input" } else { "output" };
            // An eventfd is the interrupt controller.
            let (chip, edge) = ("eventfd", "edge");
            writeln!(
                out,
                " {chip:>8} {vq:PREC$}-{edge:<8}  virtio0-{direction}.{}",
                vq / 2
            )?;
        }
        Ok(())
    }

    pub(super) fn show_softirqs(&self, out: &mut impl fmt::Write) -> fmt::Result {
        write!(out, "{:20}", "")?;
        for cpu in 0..self.softnet.len() {
            write!(out, "CPU{cpu:<8}")?;
        }
        writeln!(out)?;
        let columns: Vec<_> = self.softnet.iter().map(|sd| runs(&sd.stats)).collect();
        for (row, name) in SOFTIRQ_TO_NAME.iter().enumerate() {
            write!(out, "{name:>12}:")?;
            for column in &columns {
                write!(out, " {:10}", column[row])?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}
