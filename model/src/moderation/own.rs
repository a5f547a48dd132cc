//! The modes of the card's own, and what they have in common: a timer, a number of packets that are enough, and what sets them.
//!
//! What enters: packets, each with its instant and octets. What leaves: conditions met, in [`Pending`]. There are two timers:
//!
//! ```text
//!                  | time is up
//! since interrupt  | a period after the last interrupt; for whoever comes later, at once
//! since packet     | a period after the last packet
//! ```
//!
//! As with notification coalescing a packet that comes at the very instant at which time is up belongs to that interrupt,
//! and so do packets that are told of together, at one instant, with one that interrupts at once.

use std::time::Duration;

use serde::Serialize;

use super::dim::{Dim, PeriodMode, WalkState};
use super::igb::{self, Class, Igb};
use super::itr::{ItrConfig, Lli};
use super::{Coalesce, Packet, Pending};
use crate::host::Direction;
use crate::phy::Speed;
use crate::time::Nanos;

/// What says when a queue interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Notification coalescing with these parameters (VIRTIO 1.3, 5.1.6.5.10).
    NotfCoal(Coalesce),
    /// An interval throttle ([`itr`](super::itr)).
    Itr(ItrConfig),
    /// An interval throttle with the interval of a class ([`igb`]).
    IgbDynamic,
    /// The profiles of a tuner ([`dim`](super::dim)).
    Dim(PeriodMode),
}

impl Default for Mode {
    /// Each packet interrupts.
    fn default() -> Self {
        Coalesce::default().into()
    }
}

impl From<Coalesce> for Mode {
    fn from(coalesce: Coalesce) -> Self {
        Mode::NotfCoal(coalesce)
    }
}

/// A mode, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum ModeStatus {
    /// Each packet interrupts.
    #[default]
    Off,
    /// Notification coalescing.
    NotfCoal,
    /// An interval throttle.
    Itr {
        /// Interrupts before the interval was over, for credits.
        lli_sent: u64,
    },
    /// An interval throttle with the interval of a class.
    IgbDynamic {
        /// The class.
        class: Class,
        /// How often it has changed.
        class_changes: u64,
    },
    /// The profiles of a tuner.
    Dim {
        /// When the timer starts.
        period_mode: PeriodMode,
        /// The profile in force, from 0 on.
        profile: u8,
        /// Where the tuner walks.
        tune_state: WalkState,
        /// How often it has decided.
        decisions: u64,
    },
}

/// A mode of the card's own at work.
#[derive(Clone, Debug)]
pub(super) struct Own {
    timer: Timer,
    period: Duration,
    /// Packets that are enough.
    frames: u32,
    /// When a period will have passed since the last interrupt.
    ready: Nanos,
    lli: Option<Lli>,
    tuner: Tuner,
    /// Octets of the packets that wait; counted for a tuner only.
    octets: u64,
    /// Whether those that wait are to be told of as soon as they are counted: time was up before they came.
    at_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    SinceInterrupt,
    SincePacket,
}

/// What changes the parameters at each interrupt.
#[derive(Clone, Debug)]
enum Tuner {
    None,
    Igb(Igb),
    Dim(Dim),
}

impl Own {
    /// What `mode` needs; nothing if it is not of the card's own.
    pub fn new(mode: Mode, direction: Direction, speed: Speed) -> Option<Self> {
        let own = |timer, tuner| Own {
            timer,
            period: Duration::ZERO,
            frames: u32::MAX,
            ready: Nanos::ZERO,
            lli: None,
            tuner,
            octets: 0,
            at_once: false,
        };
        match mode {
            Mode::NotfCoal(_) => None,
            Mode::Itr(config) => {
                let lli = config.lli.filter(|_| direction == Direction::Receive);
                Some(Own {
                    period: config.interval(),
                    lli: lli.map(Lli::new),
                    ..own(Timer::SinceInterrupt, Tuner::None)
                })
            }
            Mode::IgbDynamic => Some(Own {
                period: igb::START,
                ..own(Timer::SinceInterrupt, Tuner::Igb(Igb::new(speed)))
            }),
            Mode::Dim(mode) => {
                let timer = match mode {
                    PeriodMode::Eqe => Timer::SinceInterrupt,
                    PeriodMode::Cqe => Timer::SincePacket,
                };
                let dim = Dim::new(mode, direction);
                let profile = dim.profile();
                Some(Own {
                    period: profile.span(),
                    frames: profile.frames,
                    ..own(timer, Tuner::Dim(dim))
                })
            }
        }
    }

    /// The parameters in force.
    pub fn in_force(&self) -> Coalesce {
        Coalesce {
            usecs: self.period.as_micros() as u32,
            frames: self.frames,
        }
    }

    /// The mode, and where it is.
    pub fn status(&self) -> ModeStatus {
        match &self.tuner {
            Tuner::None => ModeStatus::Itr {
                lli_sent: self.lli.as_ref().map_or(0, Lli::sent),
            },
            Tuner::Igb(igb) => igb.status(),
            Tuner::Dim(dim) => dim.status(),
        }
    }

    /// Packets came; as [`Moderation::packets`](super::Moderation::packets).
    #[cold] // so that notification coalescing has the short way
    #[inline(never)]
    pub fn packets(
        &mut self,
        pending: &mut Pending,
        packets: impl ExactSizeIterator<Item = Packet> + DoubleEndedIterator + Clone,
        now: Nanos,
    ) {
        if self.only_wait(pending, &packets) {
            pending.waiting += packets.len() as u32;
            if !matches!(self.tuner, Tuner::None) {
                let octets = packets.map(|packet| u64::from(packet.octets));
                self.octets += octets.sum::<u64>();
            }
            return;
        }
        for packet in packets {
            self.packet(pending, packet, now);
        }
        if self.at_once {
            self.time_is_up(pending, now);
        }
    }

    /// Whether all that `packets` change is the number of those that wait: mostly so.
    fn only_wait(
        &self,
        pending: &Pending,
        packets: &(impl ExactSizeIterator<Item = Packet> + DoubleEndedIterator + Clone),
    ) -> bool {
        let room = self.frames.saturating_sub(pending.waiting);
        let last = packets.clone().next_back();
        self.timer == Timer::SinceInterrupt
            && self.lli.is_none()
            && pending.waiting > 0
            && (packets.len() as u64) < room.into()
            && last.is_none_or(|last| !pending.is_up(last.at))
    }

    fn packet(&mut self, pending: &mut Pending, packet: Packet, now: Nanos) {
        let Packet { at, octets } = packet;
        if pending.is_up(at) {
            self.time_is_up(pending, now);
        }
        let up = match pending.deadline() {
            None => {
                pending.first = at;
                None
            }
            before => before,
        };
        let mut deadline = match (self.timer, up) {
            (Timer::SinceInterrupt, None) => at.max(self.ready),
            (Timer::SincePacket, None) => at + self.period,
            (Timer::SincePacket, Some(up)) if at < up => at + self.period,
            (_, Some(up)) => up,
        };
        if let Some(lli) = &mut self.lli
            && lli.concerns(octets)
        {
            deadline = deadline.min(lli.next_credit(at));
        }
        pending.deadline = deadline;
        self.at_once |= deadline <= at && up != Some(at);
        pending.waiting += 1;
        self.octets += u64::from(octets);
        if pending.waiting >= self.frames {
            self.at_once = false;
            self.met(pending, at);
        }
    }

    /// Those that wait have waited long enough. `now` is when the card sees to it.
    pub fn time_is_up(&mut self, pending: &mut Pending, now: Nanos) {
        let at = pending.deadline;
        if std::mem::take(&mut self.at_once) {
            self.met(pending, at);
        } else {
            let packets = pending.waiting;
            pending.time_is_up(now);
            self.interrupted(at, packets);
        }
    }

    fn met(&mut self, pending: &mut Pending, at: Nanos) {
        let packets = pending.waiting;
        pending.met();
        self.interrupted(at, packets);
    }

    /// The condition was met at `at` for so many packets: the next period begins, with what the tuner makes of that.
    fn interrupted(&mut self, at: Nanos, packets: u32) {
        let octets = std::mem::take(&mut self.octets);
        if let Some(lli) = &mut self.lli
            && at < self.ready
        {
            lli.spend(at);
        }
        match &mut self.tuner {
            Tuner::None => {}
            Tuner::Igb(igb) => self.period = igb.interrupted(packets, octets),
            Tuner::Dim(dim) => {
                let profile = dim.interrupted(at, packets, octets);
                (self.period, self.frames) = (profile.span(), profile.frames);
            }
        }
        self.ready = at + self.period;
    }

    /// As [`Moderation::earliest`](super::Moderation::earliest).
    pub fn earliest(
        &self,
        pending: &Pending,
        arrival: impl Fn(usize) -> Option<Nanos>,
    ) -> Option<Nanos> {
        let missing = self.frames.saturating_sub(pending.waiting).max(1);
        let full = arrival(missing as usize);
        let up = match (pending.deadline(), self.timer) {
            // Since the last packet it is a bound: one that comes puts it off.
            (Some(deadline), _) => Some(deadline),
            (None, Timer::SinceInterrupt) => arrival(1).map(|first| first.max(self.ready)),
            (None, Timer::SincePacket) => arrival(1).map(|first| first + self.period),
        };
        // The next packet may be a small one.
        let lli = self
            .lli
            .as_ref()
            .and_then(|lli| Some(arrival(1)?.max(lli.earliest())));
        [full, up, lli].into_iter().flatten().min()
    }
}
