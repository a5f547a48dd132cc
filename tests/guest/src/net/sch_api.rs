//! Which queueing discipline a device has (Linux: `net/sched/sch_api.c`, `sch_mq.c`; iproute2's `tc`).
//!
//! In: what the administrator asks for. Out: disciplines, and what they count. A device of several transmit queues has `mq` at first: a
//! discipline of its own for each queue, of the kind `net.core.default_qdisc` says. Any other one at the root serves all queues together.
//! What waits in a discipline that is replaced is dropped and counted.

use std::fmt;
use std::ops::RangeInclusive;

pub use super::codel::CodelStats;
pub use super::sch_fq_codel::{FqCodelParams, FqCodelStats};
pub use super::sch_generic::QdiscStats;
pub use super::sch_tbf::TbfParams;

use super::eth::ETH_HLEN;
use super::netdevice::Ifindex;
use super::sch_fq_codel::FqCodel;
use super::sch_generic::{Qdisc, QdiscOps};
use super::sch_pfifo_fast::{PRIO2BAND, PfifoFast};
use super::sch_tbf::Tbf;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// Queues that `fq_codel` may have.
const FLOWS: RangeInclusive<usize> = 1..=65_536;

/// A queueing discipline and its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QdiscKind {
    /// None: what the driver does not take at once is lost.
    Noqueue,
    /// Three FIFOs by priority, of `txqueuelen` packets each.
    #[default]
    PfifoFast,
    /// Flows in turn, each kept short.
    FqCodel(FqCodelParams),
    /// No more than a rate.
    Tbf(TbfParams),
    /// At the root of several transmit queues: one of the default kind for each.
    Mq,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Gives the device the disciplines it begins with (`attach_default_qdiscs`).
    pub(super) fn attach_default_qdiscs(&mut self) {
        let kind = match self.config.default_qdisc {
            _ if self.txq.len() > 1 => QdiscKind::Mq,
            // A device of one queue has no use for it.
            QdiscKind::Mq => QdiscKind::PfifoFast,
            kind => kind,
        };
        self.attach_root(kind);
    }

    fn attach_root(&mut self, kind: QdiscKind) {
        let queues = self.txq.len();
        self.qdiscs = match kind {
            QdiscKind::Mq => (0..queues)
                .map(|_| self.qdisc_create(self.config.default_qdisc, true))
                .collect(),
            kind => vec![self.qdisc_create(kind, queues == 1)],
        };
        self.qdisc_root = kind;
        let last = self.qdiscs.len() - 1;
        for (queue, txq) in self.txq.iter_mut().enumerate() {
            txq.qdisc = queue.min(last);
        }
    }

    fn qdisc_create(&self, kind: QdiscKind, onetxqueue: bool) -> Qdisc {
        let ops = match kind {
            QdiscKind::Noqueue => QdiscOps::Noqueue,
            QdiscKind::PfifoFast | QdiscKind::Mq => {
                QdiscOps::PfifoFast(PfifoFast::new(self.config.tx_queue_len))
            }
            QdiscKind::FqCodel(params) => {
                let mtu = self.netdevs[Ifindex::ETH0].mtu() + ETH_HLEN;
                QdiscOps::FqCodel(Box::new(FqCodel::new(params, mtu)))
            }
            QdiscKind::Tbf(params) => QdiscOps::Tbf(Tbf::new(params, self.machine.now())),
        };
        Qdisc::new(ops, onetxqueue)
    }

    /// Gives the device another discipline (`tc qdisc replace dev DEV root ...`), or, under `mq`, one of its transmit
    /// queues (`parent :QUEUE`, counted from 0 here).
    ///
    /// # Errors
    /// EOPNOTSUPP for `mq` where there are not several queues, or under `mq`; EINVAL for a rate of 0, for no flows or more than
    /// 65536; ENOENT for a queue
    /// that there is not, or has no discipline of its own.
    pub fn qdisc_replace(&mut self, queue: Option<usize>, kind: QdiscKind) -> Result<(), Errno> {
        if kind == QdiscKind::Mq && (queue.is_some() || self.txq.len() == 1) {
            return Err(Errno::EOPNOTSUPP);
        }
        match kind {
            QdiscKind::Tbf(TbfParams { rate: 0, .. }) => return Err(Errno::EINVAL),
            QdiscKind::FqCodel(params) if !FLOWS.contains(&params.flows) => {
                return Err(Errno::EINVAL);
            }
            _ => {}
        }
        match queue {
            None => {
                for at in 0..self.qdiscs.len() {
                    self.qdisc_reset(at);
                }
                self.attach_root(kind);
            }
            Some(queue) => {
                if self.qdisc_root != QdiscKind::Mq || queue >= self.txq.len() {
                    return Err(Errno::ENOENT);
                }
                self.qdisc_reset(queue);
                self.qdiscs[queue] = self.qdisc_create(kind, true);
            }
        }
        Ok(())
    }

    /// What the discipline of a transmit queue counted.
    #[must_use]
    pub fn qdisc_stats(&self, queue: usize) -> Option<QdiscStats> {
        let txq = self.txq.get(queue)?;
        Some(self.qdiscs[txq.qdisc].account.stats)
    }

    /// What `fq_codel` counted, where that is a queue's discipline.
    #[must_use]
    pub fn fq_codel_stats(&self, queue: usize) -> Option<FqCodelStats> {
        match &self.qdiscs[self.txq.get(queue)?.qdisc].ops {
            QdiscOps::FqCodel(sch) => Some(sch.stats()),
            _ => None,
        }
    }

    /// All disciplines and what they counted, as `tc -s qdisc show dev DEV` has it.
    ///
    /// # Errors
    /// `out`'s.
    pub fn tc_qdisc_show(&self, dev: &str, out: &mut impl fmt::Write) -> fmt::Result {
        if self.qdisc_root != QdiscKind::Mq {
            let q = &self.qdiscs[0];
            return show(out, dev, "root refcnt 2", q);
        }
        let mut sum = QdiscStats::default();
        for q in &self.qdiscs {
            let stats = &q.account.stats;
            sum.bytes += stats.bytes;
            sum.packets += stats.packets;
            sum.drops += stats.drops;
            sum.overlimits += stats.overlimits;
            sum.requeues += stats.requeues;
            sum.qlen += stats.qlen;
            sum.backlog += stats.backlog;
        }
        writeln!(out, "qdisc mq 0: dev {dev} root")?;
        show_stats(out, &sum)?;
        for (queue, q) in (1..).zip(&self.qdiscs) {
            show(out, dev, &format!("parent :{queue:x}"), q)?;
        }
        Ok(())
    }
}

fn show(out: &mut impl fmt::Write, dev: &str, parent: &str, q: &Qdisc) -> fmt::Result {
    match &q.ops {
        QdiscOps::Noqueue => writeln!(out, "qdisc noqueue 0: dev {dev} {parent}")?,
        QdiscOps::PfifoFast(_) => {
            write!(
                out,
                "qdisc pfifo_fast 0: dev {dev} {parent} bands 3 priomap"
            )?;
            for band in PRIO2BAND {
                write!(out, " {band}")?;
            }
            writeln!(out)?;
        }
        QdiscOps::FqCodel(sch) => {
            let params = sch.params();
            let ms = |ns: u64| ns / 1_000_000;
            writeln!(
                out,
                "qdisc fq_codel 0: dev {dev} {parent} limit {}p flows {} quantum {} target {}ms interval {}ms memory_limit {}Mb{} drop_batch {}",
                params.limit,
                params.flows,
                params.quantum,
                ms(params.target),
                ms(params.interval),
                params.memory_limit >> 20,
                if params.ecn { " ecn" } else { "" },
                params.drop_batch,
            )?;
        }
        QdiscOps::Tbf(sch) => {
            let params = sch.params();
            let (rate, burst, limit) = (params.rate * 8, params.burst, params.limit);
            writeln!(
                out,
                "qdisc tbf 8001: dev {dev} {parent} rate {rate}bit burst {burst}b limit {limit}b"
            )?;
        }
    }
    show_stats(out, &q.account.stats)?;
    if let QdiscOps::FqCodel(sch) = &q.ops {
        let stats = sch.stats();
        writeln!(
            out,
            "  maxpacket {} drop_overlimit {} new_flow_count {} ecn_mark {}",
            stats.codel.maxpacket, stats.drop_overlimit, stats.new_flow_count, stats.codel.ecn_mark
        )?;
        let (new, old) = (stats.new_flows_len, stats.old_flows_len);
        writeln!(out, "  new_flows_len {new} old_flows_len {old}")?;
    }
    Ok(())
}

fn show_stats(out: &mut impl fmt::Write, stats: &QdiscStats) -> fmt::Result {
    writeln!(
        out,
        " Sent {} bytes {} pkt (dropped {}, overlimits {} requeues {})",
        stats.bytes, stats.packets, stats.drops, stats.overlimits, stats.requeues
    )?;
    let (backlog, qlen, requeues) = (stats.backlog, stats.qlen, stats.requeues);
    writeln!(out, " backlog {backlog}b {qlen}p requeues {requeues}")
}
