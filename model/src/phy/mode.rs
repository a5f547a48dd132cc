//! What a link can be: a rate and a duplex mode, and sets of these.

use std::fmt;
use std::str::FromStr;

use super::Speed;

/// Whether both ends may send at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duplex {
    /// One at a time.
    Half,
    /// Both.
    Full,
}

impl Duplex {
    /// `half` or `full`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Duplex::Half => "half",
            Duplex::Full => "full",
        }
    }
}

/// A rate and a duplex mode. The greater one has priority (IEEE 802.3, 28B.3 and 73.7.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mode {
    /// The rate.
    pub speed: Speed,
    /// The duplex mode.
    pub duplex: Duplex,
}

impl Mode {
    /// `mbps` megabits a second, which has to be one of [`Speed`]'s.
    pub(super) const fn of(mbps: u32, duplex: Duplex) -> Self {
        Mode {
            speed: Speed::known(mbps),
            duplex,
        }
    }

    /// Full duplex at `speed`.
    #[must_use]
    pub const fn full(speed: Speed) -> Self {
        Mode {
            speed,
            duplex: Duplex::Full,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.speed.mbps(), self.duplex.name())
    }
}

/// What is wrong with the text of a mode.
#[derive(Debug, thiserror::Error)]
#[error(
    "no such mode: use a rate in Mb/s and half (up to 1000) or full, as in 100half or 10000full, or a rate alone, as in 10G (got {0:?})"
)]
pub struct BadMode(String);

impl FromStr for Mode {
    type Err = BadMode;
    fn from_str(text: &str) -> Result<Self, BadMode> {
        let named = ALL.iter().find(|mode| mode.to_string() == text);
        let rate = || text.parse().ok().map(Mode::full);
        named
            .copied()
            .or_else(rate)
            .ok_or_else(|| BadMode(text.to_owned()))
    }
}

/// All modes, by priority, the lowest first.
const ALL: [Mode; 15] = {
    use Duplex::{Full, Half};
    [
        Mode::of(10, Half),
        Mode::of(10, Full),
        Mode::of(100, Half),
        Mode::of(100, Full),
        Mode::of(1_000, Half),
        Mode::of(1_000, Full),
        Mode::of(2_500, Full),
        Mode::of(5_000, Full),
        Mode::of(10_000, Full),
        Mode::of(25_000, Full),
        Mode::of(40_000, Full),
        Mode::of(50_000, Full),
        Mode::of(100_000, Full),
        Mode::of(200_000, Full),
        Mode::of(400_000, Full),
    ]
};

/// A set of modes: bit `n` stands for the `n`-th by priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes(u16);

impl Modes {
    /// None.
    pub const NONE: Modes = Modes(0);
    /// Every one.
    pub const ALL: Modes = Modes((1 << ALL.len()) - 1);

    /// The modes that `wanted` says yes to.
    #[must_use]
    pub fn that(wanted: impl Fn(Mode) -> bool) -> Self {
        let bits = (0..ALL.len()).filter(|&bit| wanted(ALL[bit]));
        Modes(bits.fold(0, |set, bit| set | 1 << bit))
    }

    /// Whether `mode` is in the set.
    #[must_use]
    pub fn has(self, mode: Mode) -> bool {
        self.iter().any(|one| one == mode)
    }

    /// Whether any mode of `mbps` megabits a second or more is in the set.
    #[must_use]
    pub fn reaches(self, mbps: u32) -> bool {
        self.highest().is_some_and(|mode| mode.speed.mbps() >= mbps)
    }

    /// Puts `mode` into the set, or takes it out.
    pub fn set(&mut self, mode: Mode, on: bool) {
        let one = Modes::that(|each| each == mode);
        self.0 = if on { self.0 | one.0 } else { self.0 & !one.0 };
    }

    /// What both sets have.
    #[must_use]
    pub fn and(self, other: Modes) -> Self {
        Modes(self.0 & other.0)
    }

    /// The mode of the highest priority.
    #[must_use]
    pub fn highest(self) -> Option<Mode> {
        self.iter().last()
    }

    /// The modes, by priority, the lowest first.
    pub fn iter(self) -> impl Iterator<Item = Mode> {
        (0..ALL.len())
            .filter(move |bit| self.0 & 1 << bit != 0)
            .map(|bit| ALL[bit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_stand_in_their_order_of_priority_and_are_written_as_they_are_read() {
        assert!(ALL.is_sorted());
        assert_eq!(Modes::ALL.iter().count(), ALL.len());
        for mode in ALL {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        assert_eq!(
            "2.5G".parse::<Mode>().unwrap(),
            Mode::of(2_500, Duplex::Full)
        );
        for text in ["", "10", "2500half", "3000full", "full", "100 full"] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let mut modes = Modes::NONE;
        assert_eq!(modes.highest(), None);
        modes.set(Mode::of(100, Duplex::Half), true);
        modes.set(Mode::of(10, Duplex::Full), true);
        assert_eq!(modes.highest(), Some(Mode::of(100, Duplex::Half)));
        assert!(modes.has(Mode::of(10, Duplex::Full)) && !modes.has(Mode::of(10, Duplex::Half)));
        assert!(modes.reaches(100) && !modes.reaches(1_000));
        modes.set(Mode::of(100, Duplex::Half), false);
        assert_eq!(modes.and(Modes::ALL), modes);
        assert_eq!(
            modes.iter().collect::<Vec<_>>(),
            [Mode::of(10, Duplex::Full)]
        );
    }
}
