//! Interval throttling with low-latency interrupts, as an Intel 82576 does it.
//!
//! Follows the register EITR and its interrupt moderation (82576 data sheet, 7.3.4 and the EITR register; the I210's, 7.3.5 and 8.8.14, is the
//! same). Each queue has a counter. An interrupt is sent only while the counter is zero, and loads it with the interval; it counts down
//! to zero and stays there. So the first packet after an idle interval interrupts at once, and those of a busy time do at the end of
//! the interval:
//!
//! ```text
//! state      | packet                | the counter reaches zero
//! ready      | interrupt -> counting |
//! counting   | -> pending            | -> ready
//! pending    |                       | interrupt -> counting
//! ```
//!
//! At a rate λ of packets at constant distances `min(λ, 1 / interval)` interrupts a second are sent.
//!
//! Low-latency interrupts (LLI; I210 data sheet, 7.3.6 and 7.3.6.1, GPIE in 8.8.17; the 82576's are the same) pass
//! the counter by: a packet shorter than a threshold interrupts at once, whatever the counter says, and loads it. So that they do not
//! undo the throttle each takes a credit. Credits come one an LL interval, 31 are kept at most, and there are none at first; without one
//! the packet waits for the next credit or for the end of the interval, whichever is first, and takes none in the latter case. An LL
//! interval of zero is no limit. The LL interval's clock is that of the card, whatever happens to the queue.

use std::time::Duration;

use serde::Serialize;

use crate::time::Nanos;

/// The throttle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ItrConfig {
    usecs: u16,
    /// Which packets do not wait.
    pub(super) lli: Option<LliConfig>,
}

/// Low-latency interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LliConfig {
    below: u16,
    usecs: u8,
}

impl ItrConfig {
    /// The longest interval, in microseconds: 13 bits of EITR, bits 14 to 2.
    pub const MAX_USECS: u16 = 0x1FFF;

    /// At least `usecs` microseconds, from 1 to [`ItrConfig::MAX_USECS`], between interrupts; `None` is any other number.
    #[must_use]
    pub fn new(usecs: u16, lli: Option<LliConfig>) -> Option<Self> {
        (1..=Self::MAX_USECS)
            .contains(&usecs)
            .then_some(ItrConfig { usecs, lli })
    }

    /// Microseconds between interrupts.
    #[must_use]
    pub fn usecs(&self) -> u16 {
        self.usecs
    }

    /// Which packets do not wait.
    #[must_use]
    pub fn lli(&self) -> Option<LliConfig> {
        self.lli
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_micros(self.usecs.into())
    }
}

impl LliConfig {
    /// The highest threshold, in octets: 12 bits.
    pub const MAX_BELOW: u16 = 0xFFF;
    /// The longest LL interval, in microseconds: 5 bits of GPIE, in units of 4 us.
    pub const MAX_USECS: u8 = 31 * 4;

    /// Packets of fewer than `below` octets without check sequence, from 1 to [`LliConfig::MAX_BELOW`], interrupt at once. They get a credit
    /// every `usecs` microseconds, a multiple of 4 up to [`LliConfig::MAX_USECS`]; with 0 they need none. `None` if the registers
    /// do not hold these.
    #[must_use]
    pub fn new(below: u16, usecs: u8) -> Option<Self> {
        let fits = (1..=Self::MAX_BELOW).contains(&below)
            && usecs.is_multiple_of(4)
            && usecs <= Self::MAX_USECS;
        fits.then_some(LliConfig { below, usecs })
    }

    /// The threshold, in octets.
    #[must_use]
    pub fn below(&self) -> u16 {
        self.below
    }

    /// Microseconds between credits.
    #[must_use]
    pub fn usecs(&self) -> u8 {
        self.usecs
    }
}

/// Credits that are kept at most.
const MAX_CREDITS: u64 = 31;

/// The low-latency interrupts of a queue.
#[derive(Clone, Debug)]
pub(super) struct Lli {
    below: u32,
    /// Nanoseconds between credits.
    interval: u64,
    credits: u64,
    /// LL intervals that credits were given for.
    intervals: u64,
    sent: u64,
}

impl Lli {
    pub fn new(config: LliConfig) -> Self {
        Lli {
            below: config.below.into(),
            interval: u64::from(config.usecs) * 1_000,
            credits: 0,
            intervals: 0,
            sent: 0,
        }
    }

    /// Whether a packet of so many octets does not wait.
    pub fn concerns(&self, octets: u32) -> bool {
        octets < self.below
    }

    /// Interrupts sent for credits.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// When there is a credit, from `at` on.
    pub fn next_credit(&mut self, at: Nanos) -> Nanos {
        self.give(at);
        at.max(self.earliest())
    }

    /// When there is a credit, as far as is known.
    pub fn earliest(&self) -> Nanos {
        match self.credits {
            0 if self.interval > 0 => Nanos((self.intervals + 1) * self.interval),
            _ => Nanos::ZERO,
        }
    }

    /// A low-latency interrupt is sent.
    pub fn spend(&mut self, at: Nanos) {
        self.give(at);
        self.credits = self.credits.saturating_sub(1);
        self.sent += 1;
    }

    /// Gives the credits of the LL intervals that are over by `at`.
    fn give(&mut self, at: Nanos) {
        let Some(intervals) = at.0.checked_div(self.interval) else {
            return;
        };
        let new = intervals.saturating_sub(self.intervals);
        self.credits = (self.credits + new).min(MAX_CREDITS);
        self.intervals = intervals.max(self.intervals);
    }
}

#[cfg(test)]
mod tests;
