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
//!
//! A card may come with a [`Mode`] of its own instead: an interval throttle ([`itr`]), which a tuner may set
//! ([`igb`], [`dim`]). It holds for a queue until the driver says something: then that counts, until the queue is disabled
//! (one queue) or the device is reset (all of a direction).

use std::time::Duration;

use serde::Serialize;

use crate::host::{Direction, QueueIndex};
use crate::phy::Speed;
use crate::time::Nanos;

pub mod dim;
pub mod igb;
pub mod itr;
mod own;

pub use own::{Mode, ModeStatus};

use own::Own;

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

/// A packet, as the moderation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When the host was given it, or was relieved of it.
    pub at: Nanos,
    /// Its octets, without check sequence.
    pub octets: u32,
}

/// Packets that wait to be told of.
#[derive(Clone, Debug, Default)]
struct Pending {
    /// Packets since the condition was last met.
    waiting: u32,
    /// When the first of them came.
    first: Nanos,
    /// When their time is up.
    deadline: Nanos,
    /// Whether it was met since [`Moderation::take_due`].
    due: bool,
    counters: ModerationCounters,
}

impl Pending {
    /// When time is up, if packets wait.
    #[inline]
    fn deadline(&self) -> Option<Nanos> {
        (self.waiting > 0).then_some(self.deadline)
    }

    /// Whether time was up before `at`.
    #[inline]
    fn is_up(&self, at: Nanos) -> bool {
        self.waiting > 0 && self.deadline < at
    }

    /// The condition is met: time is up. `now` is when the card sees to it.
    fn time_is_up(&mut self, now: Nanos) {
        let late = now.since(self.deadline).as_nanos() as u64;
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

/// The moderation of one direction of a queue.
#[derive(Clone, Debug, Default)]
pub struct Moderation {
    /// The parameters of notification coalescing; off in a mode of the card's own.
    coalesce: Coalesce,
    pending: Pending,
    /// A mode of the card's own.
    own: Option<Box<Own>>,
}

impl Moderation {
    /// A moderation of a direction of a queue, with nothing waiting, at a port of `speed`.
    #[must_use]
    pub fn new(mode: impl Into<Mode>, direction: Direction, speed: Speed) -> Self {
        let mut moderation = Moderation::default();
        moderation.restart(mode.into(), direction, speed);
        moderation
    }

    /// The parameters in force. A mode without a number of packets has the largest.
    #[must_use]
    pub fn coalesce(&self) -> Coalesce {
        self.own
            .as_ref()
            .map_or(self.coalesce, |own| own.in_force())
    }

    /// The mode, and where it is.
    #[must_use]
    pub fn mode(&self) -> ModeStatus {
        match &self.own {
            Some(own) => own.status(),
            None if self.coalesce.is_off() => ModeStatus::Off,
            None => ModeStatus::NotfCoal,
        }
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> ModerationCounters {
        self.pending.counters
    }

    /// A packet came at `at`, no earlier than the one before; `now` is when the card sees to it.
    #[inline]
    fn packet(&mut self, at: Nanos, now: Nanos) {
        let pending = &mut self.pending;
        if pending.is_up(at) {
            pending.time_is_up(now);
        }
        if pending.waiting == 0 {
            pending.first = at;
            pending.deadline = at + self.coalesce.span();
        }
        pending.waiting += 1;
        if pending.waiting >= self.coalesce.frames {
            pending.met();
        }
    }

    /// Packets came, the earliest first and no earlier than those before; `now` is when the card sees to it.
    #[inline]
    pub fn packets(
        &mut self,
        mut packets: impl ExactSizeIterator<Item = Packet> + DoubleEndedIterator + Clone,
        now: Nanos,
    ) {
        if self.coalesce.is_off() {
            if let Some(own) = &mut self.own {
                own.packets(&mut self.pending, packets, now);
            } else if packets.len() > 0 {
                self.pending.met();
                self.pending.counters.conditions_met += packets.len() as u64 - 1;
            }
            return;
        }
        if self.pending.waiting == 0
            && let Some(first) = packets.next()
        {
            self.packet(first.at, now);
        }
        // Mostly none of them meets a condition.
        let room = self.coalesce.frames - self.pending.waiting;
        let last = packets.clone().next_back();
        if (packets.len() as u64) < room.into()
            && last.is_none_or(|last| !self.pending.is_up(last.at))
        {
            self.pending.waiting += packets.len() as u32;
        } else {
            packets.for_each(|packet| self.packet(packet.at, now));
        }
    }

    /// Sees whether time is up at `at`; all packets that have come by then have been told. `now` is when the card sees
    /// to it.
    #[inline]
    pub fn expire(&mut self, at: Nanos, now: Nanos) {
        if self.deadline().is_some_and(|deadline| deadline <= at) {
            match &mut self.own {
                None => self.pending.time_is_up(now),
                Some(own) => own.time_is_up(&mut self.pending, now),
            }
        }
    }

    /// Changes the parameters at `now`; packets that wait already are judged by the new ones at once. A mode of the card's own is
    /// over.
    pub fn set(&mut self, coalesce: Coalesce, now: Nanos) {
        (self.coalesce, self.own) = (coalesce, None);
        let pending = &mut self.pending;
        pending.deadline = pending.first + coalesce.span();
        if pending.waiting > 0 && (coalesce.is_off() || pending.waiting >= coalesce.frames) {
            pending.met();
        }
        self.expire(now, now);
    }

    /// Changes the mode at `now`. Packets that wait are told of at once if it is one of the card's own.
    fn change(&mut self, mode: Mode, direction: Direction, speed: Speed, now: Nanos) {
        match mode {
            Mode::NotfCoal(coalesce) => self.set(coalesce, now),
            own => {
                if self.pending.waiting > 0 {
                    self.pending.met();
                }
                self.coalesce = Coalesce::default();
                self.own = Own::new(own, direction, speed).map(Box::new);
            }
        }
    }

    /// Starts over in `mode`: the queue was disabled, nobody waits for its packets any more.
    fn restart(&mut self, mode: Mode, direction: Direction, speed: Speed) {
        self.coalesce = match mode {
            Mode::NotfCoal(coalesce) => coalesce,
            _ => Coalesce::default(),
        };
        self.own = Own::new(mode, direction, speed).map(Box::new);
        (self.pending.waiting, self.pending.due) = (0, false);
    }

    /// Whether the condition was met since the last call.
    #[inline]
    pub fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.pending.due)
    }

    /// Whether nothing waits, for an interrupt or for time to be up.
    #[must_use]
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.pending.waiting == 0 && !self.pending.due
    }

    /// When time is up, if packets wait. Packets that come until then may bring it forward, or put it off.
    #[must_use]
    #[inline]
    pub fn deadline(&self) -> Option<Nanos> {
        self.pending.deadline()
    }

    /// A bound for the instant at which the condition is met if the `n`-th packet from now, from 1 on, comes no earlier
    /// than `arrival(n)`: it is met no earlier; `None` is never. Where no packet's size or distance counts it is that instant, if they
    /// come no later.
    #[must_use]
    pub fn earliest(&self, arrival: impl Fn(usize) -> Option<Nanos>) -> Option<Nanos> {
        if let Some(own) = &self.own {
            return own.earliest(&self.pending, arrival);
        }
        if self.coalesce.is_off() {
            return arrival(1);
        }
        let waiting = self.pending.waiting;
        let missing = self.coalesce.frames.saturating_sub(waiting).max(1);
        let full = arrival(missing as usize);
        let up = match waiting {
            0 => arrival(1).map(|first| first + self.coalesce.span()),
            _ => self.deadline(),
        };
        [full, up].into_iter().flatten().min()
    }
}

/// The moderation of all queues, with what they start from.
#[derive(Clone, Debug)]
pub struct Moderator {
    queues: Vec<[Moderation; 2]>,
    /// What the driver said for all queues of a direction, else what the card came with.
    general: [Mode; 2],
    /// What the card came with.
    initial: [Mode; 2],
    /// The port's.
    speed: Speed,
}

/// Both directions, in the order of their numbers.
const DIRECTIONS: [Direction; 2] = [Direction::Receive, Direction::Transmit];

impl Moderator {
    /// Moderates `queues` queue pairs of a port of `speed`, from a reset on with `receive` and `transmit`.
    #[must_use]
    pub fn new(queues: usize, receive: Mode, transmit: Mode, speed: Speed) -> Self {
        let initial = [receive, transmit];
        let pair = DIRECTIONS.map(|direction| {
            let mode = initial[direction as usize];
            Moderation::new(mode, direction, speed)
        });
        Moderator {
            queues: vec![pair; queues],
            general: initial,
            initial,
            speed,
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

    /// That of each queue in one direction.
    #[inline]
    pub fn each_mut(
        &mut self,
        direction: Direction,
    ) -> impl Iterator<Item = (QueueIndex, &mut Moderation)> {
        let queues = (0..).map(QueueIndex).zip(&mut self.queues);
        queues.map(move |(queue, halves)| (queue, &mut halves[direction as usize]))
    }

    /// Changes the parameters of all queues of a direction (`VIRTIO_NET_CTRL_NOTF_COAL_RX_SET`, `_TX_SET`). A mode of the card's own
    /// is over until a reset.
    pub fn set_all(&mut self, direction: Direction, coalesce: Coalesce, now: Nanos) {
        self.general[direction as usize] = coalesce.into();
        for queue in &mut self.queues {
            queue[direction as usize].set(coalesce, now);
        }
    }

    /// Changes what the card came with: the mode of all queues of a direction from `now` on, and after a reset.
    pub fn set_initial(&mut self, direction: Direction, mode: Mode, now: Nanos) {
        self.initial[direction as usize] = mode;
        self.general[direction as usize] = mode;
        for queue in &mut self.queues {
            queue[direction as usize].change(mode, direction, self.speed, now);
        }
    }

    /// `queue` was disabled, or is enabled again: nothing waits, and what was said for all queues holds.
    pub fn restart(&mut self, queue: QueueIndex, direction: Direction) {
        let (mode, speed) = (self.general[direction as usize], self.speed);
        self.of_mut(queue, direction)
            .restart(mode, direction, speed);
    }

    /// The device was reset: all is as the card came.
    pub fn reset(&mut self) {
        self.general = self.initial;
        for queue in &mut self.queues {
            for direction in DIRECTIONS {
                let mode = self.initial[direction as usize];
                queue[direction as usize].restart(mode, direction, self.speed);
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
