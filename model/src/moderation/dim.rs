//! Dynamically tuned moderation (DIM), as Linux's drivers run it for their cards, run in the card.
//!
//! Follows the kernel's documentation, Net DIM (`Documentation/networking/net_dim.rst`), and the numbers that its library publishes. What enters:
//! each interrupt, with the packets and octets that it is for. What leaves: which of five profiles holds, each a period and a
//! number of packets. There is a table of them for each direction and period mode:
//!
//! ```text
//!                     | EQE: the period starts with the last interrupt  | CQE: with the last packet
//! receive   usecs     | 1   8   64   128  256                           | 2    8    16  32  64
//!           packets   | 256 256 256  256  256                           | 256  128  64  64  64
//! transmit  usecs     | 1   8   32   64   128                           | 5    8    16  32  64
//!           packets   | 128 128 128  128  128                           | 128  64   32  32  32
//! ```
//!
//! It measures for 64 interrupts and compares the rates of octets, packets and interrupts with those of before: a change of more than 10 % of octets
//! decides, else one of packets (more is better), else one of interrupts (fewer is better). Then:
//!
//! ```text
//! state             | same               | better              | worse
//! parking on top    |                    | go                  | go
//! going left, right | turn, step         | step                | turn, step
//! parking tired     | go once as many decisions have passed as steps had been made (10)
//! ```
//!
//! Going is to the left, to shorter periods, or to the right where there is nothing left of it. Instead of a step it parks on top where
//! there is none any more, and where it has come back by one from beyond the best (a turn after at least two steps, then one
//! back that was better); and it parks tired where it has made 10 steps since it last parked on top. While it parks on top it compares
//! with what was when it came there. At first it parks on top with the second profile.
//!
//! Where this differs from a driver: a new profile holds from the interrupt on at which it was decided, and is measured from there; a driver takes
//! until its work item has run.

use serde::Serialize;

use super::{Coalesce, ModeStatus};
use crate::host::Direction;
use crate::time::Nanos;

/// Interrupts that are measured for a decision.
const EVENTS: u64 = 64;
/// Profiles of a table.
const PROFILES: usize = 5;
/// The profile at first.
const FIRST_PROFILE: usize = 1;
/// Steps that make tired.
const TIRED: u32 = 2 * PROFILES as u32;
/// Changes of more than so many per cent count.
const SIGNIFICANT_PCT: u64 = 10;

/// What the period of a profile starts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeriodMode {
    /// The last interrupt (event queue entry).
    #[default]
    Eqe,
    /// The last packet (completion queue entry).
    Cqe,
}

/// Where a tuner walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalkState {
    /// It has found the best profile.
    ParkingOnTop,
    /// It has walked for too long.
    ParkingTired,
    /// It tries longer periods.
    GoingRight,
    /// It tries shorter periods.
    GoingLeft,
}

/// Profiles as a table of microseconds, and of packets.
const fn table(usecs: [u32; PROFILES], frames: [u32; PROFILES]) -> [Coalesce; PROFILES] {
    let mut profiles = [Coalesce {
        usecs: 0,
        frames: 0,
    }; PROFILES];
    let mut n = 0;
    while n < PROFILES {
        profiles[n].usecs = usecs[n];
        profiles[n].frames = frames[n];
        n += 1;
    }
    profiles
}

static RX_EQE: [Coalesce; PROFILES] = table([1, 8, 64, 128, 256], [256; PROFILES]);
static TX_EQE: [Coalesce; PROFILES] = table([1, 8, 32, 64, 128], [128; PROFILES]);
static RX_CQE: [Coalesce; PROFILES] = table([2, 8, 16, 32, 64], [256, 128, 64, 64, 64]);
static TX_CQE: [Coalesce; PROFILES] = table([5, 8, 16, 32, 64], [128, 64, 32, 32, 32]);

/// Rates, each a millisecond and rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates {
    octets: u64,
    packets: u64,
    events: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Same,
    Worse,
}

/// A tuner.
#[derive(Clone, Debug)]
pub(super) struct Dim {
    mode: PeriodMode,
    profiles: &'static [Coalesce; PROFILES],
    profile: usize,
    state: WalkState,
    /// Steps to the left since it last turned there, or parked.
    left: u32,
    /// The same to the right.
    right: u32,
    /// Steps since it last parked on top, less the decisions since it parked tired.
    steps: u32,
    /// What the next rates are compared with.
    before: Rates,
    measured: Measured,
    decisions: u64,
}

/// What has come since a measurement began.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// When it began; it does with an interrupt.
    since: Option<Nanos>,
    events: u64,
    packets: u64,
    octets: u64,
}

impl Dim {
    pub fn new(mode: PeriodMode, direction: Direction) -> Self {
        Dim {
            mode,
            profiles: match (direction, mode) {
                (Direction::Receive, PeriodMode::Eqe) => &RX_EQE,
                (Direction::Receive, PeriodMode::Cqe) => &RX_CQE,
                (Direction::Transmit, PeriodMode::Eqe) => &TX_EQE,
                (Direction::Transmit, PeriodMode::Cqe) => &TX_CQE,
            },
            profile: FIRST_PROFILE,
            state: WalkState::ParkingOnTop,
            left: 0,
            right: 0,
            steps: 0,
            before: Rates::default(),
            measured: Measured::default(),
            decisions: 0,
        }
    }

    /// The profile in force.
    pub fn profile(&self) -> Coalesce {
        self.profiles[self.profile]
    }

    pub fn status(&self) -> ModeStatus {
        ModeStatus::Dim {
            period_mode: self.mode,
            profile: self.profile as u8,
            tune_state: self.state,
            decisions: self.decisions,
        }
    }

    /// There was an interrupt at `at` for so many packets with so many octets. Returns the profile from now on.
    pub fn interrupted(&mut self, at: Nanos, packets: u32, octets: u64) -> Coalesce {
        let measured = &mut self.measured;
        let Some(since) = measured.since else {
            measured.since = Some(at);
            return self.profile();
        };
        measured.events += 1;
        measured.packets += u64::from(packets);
        measured.octets += octets;
        let usecs = at.since(since).as_micros() as u64;
        if measured.events >= EVENTS && usecs > 0 {
            let rates = Rates::of(measured, usecs);
            *measured = Measured {
                since: Some(at),
                ..Measured::default()
            };
            self.decide(rates);
        }
        self.profile()
    }

    fn decide(&mut self, now: Rates) {
        self.decisions += 1;
        let verdict = now.compared_with(&self.before);
        match self.state {
            WalkState::ParkingOnTop if verdict == Verdict::Same => return,
            WalkState::ParkingOnTop => self.go(),
            WalkState::ParkingTired => {
                self.steps -= 1;
                if self.steps == 0 {
                    self.go();
                }
            }
            WalkState::GoingLeft | WalkState::GoingRight => {
                if verdict != Verdict::Better {
                    self.turn();
                }
                self.advance();
            }
        }
        self.before = now;
    }

    /// Leaves where it parked.
    fn go(&mut self) {
        self.state = if self.profile > 0 {
            WalkState::GoingLeft
        } else {
            WalkState::GoingRight
        };
        self.step();
    }

    /// Changes direction; the steps of that direction begin anew.
    fn turn(&mut self) {
        if self.state == WalkState::GoingLeft {
            (self.state, self.right) = (WalkState::GoingRight, 0);
        } else {
            (self.state, self.left) = (WalkState::GoingLeft, 0);
        }
    }

    /// Makes a step, or parks.
    fn advance(&mut self) {
        let leftwards = self.state == WalkState::GoingLeft;
        let (ahead, behind, edge) = if leftwards {
            (self.left, self.right, 0)
        } else {
            (self.right, self.left, PROFILES - 1)
        };
        let on_top = ahead == 1 && behind > 1;
        if !on_top && self.steps == TIRED {
            (self.state, self.left, self.right) = (WalkState::ParkingTired, 0, 0);
        } else if on_top || self.profile == edge {
            self.state = WalkState::ParkingOnTop;
            (self.left, self.right, self.steps) = (0, 0, 0);
        } else {
            self.step();
        }
    }

    fn step(&mut self) {
        if self.state == WalkState::GoingLeft {
            self.profile -= 1;
            self.left += 1;
        } else {
            self.profile += 1;
            self.right += 1;
        }
        self.steps += 1;
    }
}

impl Rates {
    /// The rates of what came in so many microseconds.
    fn of(measured: &Measured, usecs: u64) -> Self {
        let a_ms = |count: u64| count.saturating_mul(1_000).div_ceil(usecs);
        Rates {
            octets: a_ms(measured.octets),
            packets: a_ms(measured.packets),
            events: a_ms(EVENTS),
        }
    }

    fn compared_with(&self, before: &Rates) -> Verdict {
        // A rate that was none is no measure for others.
        for (now, before) in [(self.octets, before.octets), (self.packets, before.packets)] {
            match before {
                0 if now > 0 => return Verdict::Better,
                0 => return Verdict::Same,
                _ if differ(now, before) && now > before => return Verdict::Better,
                _ if differ(now, before) => return Verdict::Worse,
                _ => {}
            }
        }
        match before.events {
            0 => Verdict::Same,
            events if !differ(self.events, events) => Verdict::Same,
            events if self.events < events => Verdict::Better,
            _ => Verdict::Worse,
        }
    }
}

/// Whether a rate is another than `before`, which is not zero.
fn differ(now: u64, before: u64) -> bool {
    100 * u128::from(now.abs_diff(before)) / u128::from(before) > SIGNIFICANT_PCT.into()
}

#[cfg(test)]
mod tests;
