//! Interrupt moderation of one queue: when to tell the driver about the packets it has.
//!
//! What enters: the instant of each packet that the host has been given or has been relieved of, and the instants at
//! which the port looks at its deadlines. What leaves: conditions met, each of them one wish to interrupt;
//! whether the driver then lets itself be interrupted is the host's affair.
//!
//! Follows VIRTIO 1.3, 5.1.6.5.10 (Notifications Coalescing). With both parameters above zero the first packet
//! starts the clock, and the condition is met once `max_frames` packets have come or `max_usecs` have passed,
//! whichever is first; then it waits for the next packet. With either at zero each packet meets it. A
//! packet that comes at the very instant at which time is up still belongs to that interrupt. New
//! parameters hold at once, for packets that wait already, too.

use std::time::Duration;

use serde::Serialize;

use crate::host::{Direction, QueueIndex};
use crate::time::Nanos;

/// When to interrupt (`struct virtio_net_ctrl_coal`). Zero in either means for each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coalesce {
    /// Microseconds since the first packet, at most (`max_usecs`).
    pub usecs: u32,
    /// Packets, at most (`max_packets`).
    pub frames: u32,
}

impl Coalesce {
    /// Whether each packet interrupts on its own.
    #[must_use]
    #[inline]
    pub fn is_off(self) -> bool {
        self.usecs == 0 || self.frames == 0
    }

    fn span(self) -> Duration {
        Duration::from_micros(self.usecs.into())
    }
}

/// What a queue's moderation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ModerationCounters {
    /// Times that the condition for an interrupt was met. It goes by the buffers given back, also those of frames that were
    /// dropped then because they did not fit.
    pub conditions_met: u64,
    /// Of those, the ones where time was up.
    pub by_timer: u64,
    /// Nanoseconds between those instants and the ones at which the card got round to them, in all.
    pub timer_late_ns: u64,
    /// The longest of these, in nanoseconds.
    pub timer_late_max_ns: u64,
}

/// The moderation of one direction of a queue.
#[derive(Clone, Debug, Default)]
pub struct Moderation {
    coalesce: Coalesce,
    /// Packets since the condition was last met.
    waiting: u32,
    /// When the first of them came.
    first: Nanos,
    /// Whether it was met since [`Moderation::take_due`].
    due: bool,
    counters: ModerationCounters,
}

impl Moderation {
    /// A moderation with nothing waiting.
    #[must_use]
    pub fn new(coalesce: Coalesce) -> Self {
        Moderation {
            coalesce,
            ..Moderation::default()
        }
    }

    /// The parameters in force.
    #[must_use]
    pub fn coalesce(&self) -> Coalesce {
        self.coalesce
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> ModerationCounters {
        self.counters
    }

    /// A packet came at `at`, no earlier than the one before; `now` is when the card sees to it.
    #[inline]
    pub fn packet(&mut self, at: Nanos, now: Nanos) {
        if self.coalesce.is_off() {
            self.met();
            return;
        }
        if self.is_up(at) {
            self.time_is_up(now);
        }
        if self.waiting == 0 {
            self.first = at;
        }
        self.waiting += 1;
        if self.waiting >= self.coalesce.frames {
            self.met();
        }
    }

    /// Packets came, each at one of the instants `at`, the earliest first; as [`Moderation::packet`] for each of them.
    #[inline]
    pub fn packets(
        &mut self,
        mut at: impl ExactSizeIterator<Item = Nanos> + DoubleEndedIterator + Clone,
        now: Nanos,
    ) {
        if self.coalesce.is_off() {
            if at.len() > 0 {
                self.met();
                self.counters.conditions_met += at.len() as u64 - 1;
            }
            return;
        }
        if self.waiting == 0
            && let Some(first) = at.next()
        {
            self.packet(first, now);
        }
        // Mostly none of them meets a condition.
        let room = self.coalesce.frames - self.waiting;
        let last = at.clone().next_back();
        if (at.len() as u64) < room.into() && last.is_none_or(|last| !self.is_up(last)) {
            self.waiting += at.len() as u32;
        } else {
            at.for_each(|at| self.packet(at, now));
        }
    }

    /// Whether time was up before `at`.
    #[inline]
    fn is_up(&self, at: Nanos) -> bool {
        self.deadline().is_some_and(|deadline| deadline < at)
    }

    /// Sees whether time is up at `at`; all packets that have come by then have been told. `now` is when the card sees
    /// to it.
    #[inline]
    pub fn expire(&mut self, at: Nanos, now: Nanos) {
        if self.deadline().is_some_and(|deadline| deadline <= at) {
            self.time_is_up(now);
        }
    }

    /// Changes the parameters at `now`; packets that wait already are judged by the new ones at once.
    pub fn set(&mut self, coalesce: Coalesce, now: Nanos) {
        self.coalesce = coalesce;
        if self.waiting > 0 && (coalesce.is_off() || self.waiting >= coalesce.frames) {
            self.met();
        }
        self.expire(now, now);
    }

    /// Starts over with `coalesce`: the queue was disabled, nobody waits for its packets any more.
    pub fn restart(&mut self, coalesce: Coalesce) {
        (self.coalesce, self.waiting, self.due) = (coalesce, 0, false);
    }

    /// Whether the condition was met since the last call.
    #[inline]
    pub fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// Whether nothing waits, for an interrupt or for time to be up.
    #[must_use]
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.waiting == 0 && !self.due
    }

    /// When time is up, if packets wait.
    #[must_use]
    #[inline]
    pub fn deadline(&self) -> Option<Nanos> {
        (self.waiting > 0).then(|| self.first + self.coalesce.span())
    }

    /// When the condition can be met at the earliest if the `n`-th packet from now, from 1 on, comes no earlier
    /// than `arrival(n)`; `None` is never.
    #[must_use]
    pub fn earliest(&self, arrival: impl Fn(usize) -> Option<Nanos>) -> Option<Nanos> {
        if self.coalesce.is_off() {
            return arrival(1);
        }
        let missing = self.coalesce.frames.saturating_sub(self.waiting).max(1);
        let full = arrival(missing as usize);
        let up = match self.waiting {
            0 => arrival(1).map(|first| first + self.coalesce.span()),
            _ => self.deadline(),
        };
        [full, up].into_iter().flatten().min()
    }

    fn time_is_up(&mut self, now: Nanos) {
        let late = now.since(self.first + self.coalesce.span()).as_nanos() as u64;
        self.counters.by_timer += 1;
        self.counters.timer_late_ns += late;
        self.counters.timer_late_max_ns = self.counters.timer_late_max_ns.max(late);
        self.met();
    }

    #[inline]
    fn met(&mut self) {
        self.waiting = 0;
        self.due = true;
        self.counters.conditions_met += 1;
    }
}

/// The moderation of all queues, with what they start from.
#[derive(Clone, Debug)]
pub struct Moderator {
    queues: Vec<[Moderation; 2]>,
    /// What the driver said for all queues of a direction, else what the card came with.
    general: [Coalesce; 2],
    /// What the card came with.
    initial: [Coalesce; 2],
}

impl Moderator {
    /// Moderates `queues` queue pairs, from a reset on with `receive` and `transmit`.
    #[must_use]
    pub fn new(queues: usize, receive: Coalesce, transmit: Coalesce) -> Self {
        let initial = [receive, transmit];
        Moderator {
            queues: vec![initial.map(Moderation::new); queues],
            general: initial,
            initial,
        }
    }

    /// One direction of `queue`.
    ///
    /// # Panics
    /// If there is no such queue.
    #[must_use]
    #[inline]
    pub fn of(&self, queue: QueueIndex, direction: Direction) -> &Moderation {
        &self.queues[usize::from(queue.0)][direction as usize]
    }

    /// One direction of `queue`, to be told of packets.
    ///
    /// # Panics
    /// If there is no such queue.
    #[inline]
    pub fn of_mut(&mut self, queue: QueueIndex, direction: Direction) -> &mut Moderation {
        &mut self.queues[usize::from(queue.0)][direction as usize]
    }

    /// Changes the parameters of all queues of a direction (`VIRTIO_NET_CTRL_NOTF_COAL_RX_SET`, `_TX_SET`).
    pub fn set_all(&mut self, direction: Direction, coalesce: Coalesce, now: Nanos) {
        self.general[direction as usize] = coalesce;
        for queue in &mut self.queues {
            queue[direction as usize].set(coalesce, now);
        }
    }

    /// `queue` was disabled, or is enabled again: nothing waits, and what was said for all queues holds.
    pub fn restart(&mut self, queue: QueueIndex, direction: Direction) {
        let coalesce = self.general[direction as usize];
        self.of_mut(queue, direction).restart(coalesce);
    }

    /// The device was reset: all is as the card came.
    pub fn reset(&mut self) {
        self.general = self.initial;
        for queue in &mut self.queues {
            for (moderation, coalesce) in queue.iter_mut().zip(self.initial) {
                moderation.restart(coalesce);
            }
        }
    }

    /// When time is up next on any queue.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.queues
            .iter()
            .flatten()
            .filter_map(Moderation::deadline)
            .min()
    }
}

#[cfg(test)]
mod tests;
