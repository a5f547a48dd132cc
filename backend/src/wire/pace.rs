//! When the frames of a rate are due.
//!
//! At a constant rate event `n` is due `n / rate` seconds after the start, rounded down to a nanosecond: integers
//! only; what rounding leaves is carried over, so that nothing adds up over any number of events.
//!
//! At random each gap is what a frame occupies of the line and an exponentially distributed rest: frames are as
//! random as a line lets them be. Where frames are far apart that is a Poisson process; at the rate of the
//! line it is a constant one. The mean is the rate's, whatever the rate, and no queue forms before the line.

use std::num::NonZeroU64;

use nic_model::time::Nanos;
use rand_distr::{Distribution, Exp1};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::SeedableRng;

const SECOND: u64 = 1_000_000_000;

/// When the next event is due.
#[derive(Clone, Debug)]
pub struct Pace {
    due: Nanos,
    gaps: Gaps,
}

#[derive(Clone, Debug)]
enum Gaps {
    Constant {
        rate: u64,
        /// Nanoseconds of a gap, rounded down, and what that leaves, in units of 1/`rate`.
        gap: u64,
        left: u64,
        /// What has been left beyond `due`.
        rest: u64,
    },
    Random {
        /// Nanoseconds that each gap has at least.
        least: f64,
        /// Nanoseconds that it has more than that, in the mean.
        mean: f64,
        /// Nanoseconds beyond `due`, below 1.
        rest: f64,
        random: Pcg64Mcg,
    },
}

impl Pace {
    /// `rate` events a second, the first at `start`.
    pub fn constant(rate: NonZeroU64, start: Nanos) -> Self {
        let rate = rate.get();
        Pace {
            due: start,
            gaps: Gaps::Constant {
                rate,
                gap: SECOND / rate,
                left: SECOND % rate,
                rest: 0,
            },
        }
    }

    /// `rate` events a second in the mean, at least `least` picoseconds apart if the rate leaves that room; the first
    /// a gap after `start`. The same `seed` gives the same gaps.
    pub fn random(rate: NonZeroU64, least: u64, seed: u64, start: Nanos) -> Self {
        let mean = SECOND as f64 / rate.get() as f64;
        let least = (least as f64 / 1_000.0).min(mean);
        let mut pace = Pace {
            due: start,
            gaps: Gaps::Random {
                least,
                mean: mean - least,
                rest: 0.0,
                random: Pcg64Mcg::seed_from_u64(seed),
            },
        };
        pace.advance();
        pace
    }

    /// When the next event is due.
    #[inline]
    pub fn due(&self) -> Nanos {
        self.due
    }

    /// The next event happens; returns when it was due.
    #[inline(always)] // for each frame; its other callers are rare
    pub fn advance(&mut self) -> Nanos {
        let due = self.due;
        match &mut self.gaps {
            Gaps::Constant {
                rate,
                gap,
                left,
                rest,
            } => {
                self.due.0 += *gap;
                *rest += *left;
                if rest >= rate {
                    *rest -= *rate;
                    self.due.0 += 1;
                }
            }
            Gaps::Random {
                least,
                mean,
                rest,
                random,
            } => {
                let more: f64 = Exp1.sample(random);
                let gap = *rest + *least + *mean * more;
                self.due.0 += gap as u64;
                *rest = gap.fract();
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_due_at_its_exact_instant() {
        for rate in [1, 3, 7, 1_000, 999_983, 14_880_952, SECOND, 7 * SECOND / 3] {
            let mut pace = Pace::constant(NonZeroU64::new(rate).unwrap(), Nanos(12_345));
            for n in 0..10_000u64 {
                let exact = u128::from(n) * u128::from(SECOND) / u128::from(rate);
                assert_eq!(
                    u128::from(pace.advance().0),
                    12_345 + exact,
                    "{n} at {rate}"
                );
            }
        }
    }

    #[test]
    fn random_gaps_have_the_mean_and_the_spread_that_they_should() {
        let rate = NonZeroU64::new(1_000_000).unwrap();
        for least in [0u32, 67_200, 672_000, 1_000_000, 2_000_000] {
            let least = f64::from(least.min(1_000_000)) / 1_000.0;
            let mut pace = Pace::random(rate, (least * 1_000.0) as u64, 7, Nanos(0));
            let events = 200_000;
            let (mut sum, mut squares, mut last) = (0.0, 0.0, pace.advance());
            for _ in 0..events {
                let due = pace.advance();
                let gap = (due.0 - last.0) as f64;
                assert!(gap >= least.floor(), "{gap} is less than {least}");
                (sum, squares) = (sum + gap, squares + gap * gap);
                last = due;
            }
            let mean = sum / f64::from(events);
            let deviation = (squares / f64::from(events) - mean * mean).max(0.0).sqrt();
            assert!((mean - 1_000.0).abs() < 10.0, "{least}: mean {mean}");
            let expected = 1_000.0 - least;
            assert!(
                (deviation - expected).abs() < 10.0,
                "{least}: deviation {deviation}"
            );
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_instants() {
        let instants = |seed| {
            let mut pace = Pace::random(NonZeroU64::MIN, 0, seed, Nanos(5));
            (0..100).map(|_| pace.advance().0).collect::<Vec<_>>()
        };
        let all: Vec<_> = (0..16).map(instants).collect();
        for (seed, one) in all.iter().enumerate() {
            assert_eq!(*one, instants(seed as u64));
            assert!(all[..seed].iter().all(|other| other != one), "{seed}");
        }
    }
}
