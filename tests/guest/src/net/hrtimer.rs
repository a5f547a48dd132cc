//! Timers (Linux: `kernel/time/hrtimer.c`).
//!
//! In: what is to be done, by which CPU and when. Out: the same, when it is due. A timer that is started again has one time, the last.

/// What is done when a timer is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hrtimer {
    /// A queueing discipline may send again (`qdisc_watchdog`).
    QdiscWatchdog(usize),
    /// A NAPI instance is polled without an interrupt (`napi_watchdog`).
    NapiWatchdog(usize),
}

/// The timers that run.
#[derive(Debug, Default)]
pub(super) struct HrtimerBase {
    /// The earliest is the last.
    queue: Vec<(u64, usize, Hrtimer)>,
}

impl HrtimerBase {
    /// Has `timer` be due on `cpu` at `expires` (`hrtimer_start`).
    pub fn start(&mut self, timer: Hrtimer, cpu: usize, expires: u64) {
        self.cancel(timer);
        let at = self.queue.partition_point(|other| other.0 > expires);
        self.queue.insert(at, (expires, cpu, timer));
    }

    /// Has it never be due (`hrtimer_cancel`).
    pub fn cancel(&mut self, timer: Hrtimer) {
        self.queue.retain(|other| other.2 != timer);
    }

    /// When the first is due.
    #[inline]
    pub fn next(&self) -> Option<u64> {
        self.queue.last().map(|first| first.0)
    }

    /// Takes the first of that CPU that is due.
    pub fn pop(&mut self, cpu: usize, now: u64) -> Option<Hrtimer> {
        let due = self.queue.partition_point(|timer| timer.0 > now);
        let at = due + self.queue[due..].iter().rposition(|timer| timer.1 == cpu)?;
        Some(self.queue.remove(at).2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_due_in_order_each_on_its_cpu() {
        let mut base = HrtimerBase::default();
        let [a, b, c] = [0, 1, 2].map(Hrtimer::QdiscWatchdog);
        base.start(a, 0, 30);
        base.start(b, 1, 10);
        base.start(c, 0, 20);
        assert_eq!(base.next(), Some(10));
        assert_eq!(base.pop(0, 10), None);
        assert_eq!(base.pop(0, 30), Some(c));
        base.start(a, 0, 5);
        assert_eq!(base.next(), Some(5), "one time, the last");
        assert_eq!(base.pop(0, 30), Some(a));
        assert_eq!(base.pop(0, 30), None);
        base.cancel(b);
        assert_eq!(base.next(), None);
    }
}
