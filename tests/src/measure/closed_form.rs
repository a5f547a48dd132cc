//! How many interrupts there should be, by arithmetic.
//!
//! A moderated queue interrupts `k` packets after the first in the mean, the first with them, so that a load of
//! `rate` packets a second meets the condition `rate / k` times. With U the time and N the packets that the
//! moderation waits for:
//!
//! - either of them zero: `k = 1`.
//! - packets at a constant distance T: those that come within U of the first, at U itself included, but no more than N:
//!   `k = min(N, 1 + floor(U / T))`.
//! - packets at random distances, each of them at least S and exponentially distributed beyond that, with the mean
//!   `m = 1 / rate - S`: the n-th packet after the first comes within U with the probability that a gamma
//!   distributed time of n terms is at most `(U - n S) / m`. So `k = 1 + sum P(n, (U - n S) / m)` for n from 1
//!   to N - 1, P being the regularised incomplete gamma function. With S = 0 that is a Poisson process and
//!   `k = E[1 + min(N - 1, Poisson(rate U))]`; S is what a frame occupies of the line, no less can be.
//!
//! A throttle of the interval I (`itr`) interrupts `min(rate, 1 / I)` times a second for packets at a constant distance. At random distances it does so
//! after I, and after the rest of a gap if none came in I. With `S < I` the probability of that is `a = exp(-(I - S) / m)` where the last
//! interrupt was for a packet at once, and about `b = rate m a` where it was at the end of an interval, which finds the gaps in their
//! equilibrium; the rest takes m in the mean. So `1 / (I + m b / (1 - a + b))`, and with S = 0 exactly `1 / (I + exp(-rate I) / rate)`.
//! The other modes of the card's own have no closed form here.
//!
//! The instrument compares this with what the moderation's state machine counted.

use std::f64::consts::{PI, SQRT_2};
use std::time::Duration;

use nic_model::moderation::{Coalesce, Mode};
use statrs::function::erf::erfc;
use statrs::function::gamma::gamma_lr;

/// How the packets of a load follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// All at the same distance.
    Constant,
    /// At random distances.
    Poisson,
}

/// A load: what the sender offers, and the line that it goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Packets a second.
    pub pps: f64,
    /// Seconds that a packet occupies the line.
    pub occupies: f64,
    /// How they follow each other.
    pub arrivals: Arrivals,
}

/// Packets in a group from which on their number is as good as normally distributed.
const MANY: f64 = 100_000.0;

/// The mean of the packets in a group, `most` at most, of which `expected` come in time behind the first, at distances whose
/// deviation is `ratio` of their mean (the central limit theorem for renewal processes).
fn renewals(expected: f64, ratio: f64, most: f64) -> f64 {
    let mean = 1.0 + expected + (ratio * ratio - 1.0) / 2.0;
    let deviation = ratio * expected.sqrt();
    let above = (mean - most) / deviation;
    let density = (-above * above / 2.0).exp() / (2.0 * PI).sqrt();
    let probability = erfc(-above / SQRT_2) / 2.0;
    mean - deviation * (above * probability + density)
}

impl Load {
    /// Packets a second that get through the line.
    #[must_use]
    pub fn through(&self) -> f64 {
        self.pps.min(1.0 / self.occupies)
    }

    /// Packets that one interrupt stands for, in the mean, if the card sees `late` after the fact that time is up; `None` if
    /// there is no closed form.
    #[must_use]
    pub fn packets_per_condition(&self, mode: Mode, late: Duration) -> Option<f64> {
        match mode {
            Mode::NotfCoal(coalesce) => Some(self.group(coalesce, late)),
            Mode::Itr(itr) if itr.lli().is_none() => {
                let interval = f64::from(itr.usecs()) / 1e6 + late.as_secs_f64();
                Some(self.through() * self.throttled(interval))
            }
            Mode::Itr(_) | Mode::IgbDynamic | Mode::Dim(_) => None,
        }
    }

    /// Seconds between interrupts that are so many seconds apart at least, in the mean.
    fn throttled(&self, interval: f64) -> f64 {
        let distance = 1.0 / self.through();
        let mean = distance - self.occupies;
        if self.arrivals == Arrivals::Constant || mean < distance * 1e-6 {
            return interval.max(distance);
        }
        if interval <= self.occupies {
            return distance;
        }
        let after_packet = (-(interval - self.occupies) / mean).exp();
        let after_interval = mean / distance * after_packet;
        interval + mean * after_interval / (1.0 - after_packet + after_interval)
    }

    /// The packets of a group.
    fn group(&self, coalesce: Coalesce, late: Duration) -> f64 {
        if coalesce.is_off() {
            return 1.0;
        }
        let wait = f64::from(coalesce.usecs) / 1e6 + late.as_secs_f64();
        let most = f64::from(coalesce.frames);
        let distance = 1.0 / self.through();
        let mean = distance - self.occupies;
        // At the line's rate nothing is left to chance.
        if self.arrivals == Arrivals::Constant || mean < distance * 1e-6 {
            // A distance that is a whole part of the time must not fall out by a rounding error.
            return (1.0 + (wait / distance * (1.0 + 1e-12)).floor()).min(most);
        }
        if wait / distance >= MANY && most >= MANY {
            return renewals(wait / distance, mean / distance, most);
        }
        // The first of many surely come in time: all but those of the last few deviations.
        let (per_root, all) = (12.0 * mean, 4.0 * distance * wait);
        let root = ((per_root * per_root + all).sqrt() - per_root) / (2.0 * distance);
        let surely = match (root * root).floor() {
            few if few < 1000.0 => 0.0,
            many => many.min(most - 1.0),
        };
        let mut packets = 1.0 + surely;
        for n in surely as u32 + 1..coalesce.frames {
            let left = wait - f64::from(n) * self.occupies;
            if left <= 0.0 {
                break;
            }
            let comes = gamma_lr(f64::from(n), left / mean);
            packets += comes;
            if comes < 1e-12 {
                break;
            }
        }
        packets
    }

    /// Conditions met a second, if there is a closed form.
    #[must_use]
    pub fn conditions_per_second(&self, mode: Mode) -> Option<f64> {
        self.conditions_per_second_when_late(mode, Duration::ZERO)
    }

    /// Conditions met a second if the card sees `late` after the fact that time is up; `None` if there is no closed form.
    #[must_use]
    pub fn conditions_per_second_when_late(&self, mode: Mode, late: Duration) -> Option<f64> {
        Some(self.through() / self.packets_per_condition(mode, late)?)
    }
}

#[cfg(test)]
mod tests {
    use nic_model::moderation::dim::PeriodMode;
    use nic_model::moderation::itr::{ItrConfig, LliConfig};

    use super::*;

    /// 64-octet frames at 1 Gb/s.
    const OCCUPIES: f64 = 84.0 * 8e-9;

    fn load(pps: f64, occupies: f64, arrivals: Arrivals) -> Load {
        Load {
            pps,
            occupies,
            arrivals,
        }
    }

    fn rate(load: &Load, usecs: u32, frames: u32) -> f64 {
        let coalesce = Coalesce { usecs, frames };
        let rate = load.conditions_per_second(coalesce.into());
        rate.expect("a closed form")
    }

    #[test]
    fn the_published_rates_at_gigabit_line_rate() {
        let load = load(1_488_095.0, OCCUPIES, Arrivals::Constant);
        for (usecs, per_second) in [
            (1, 744_048),
            (8, 124_008),
            (64, 15_501),
            (128, 7_791),
            (256, 5_813),
        ] {
            assert_eq!(
                rate(&load, usecs, 256).round() as u32,
                per_second,
                "{usecs}"
            );
        }
        for off in [(0, 0), (64, 0), (0, 32)] {
            assert_eq!(rate(&load, off.0, off.1), load.pps);
        }
        assert_eq!(rate(&load, 10_000, 32), load.pps / 32.0);
    }

    #[test]
    fn a_packet_at_the_very_end_counts() {
        for (pps, usecs, packets) in [
            (100_000.0, 10, 2.0),
            (100_000.0, 9, 1.0),
            (30_000.0, 100, 4.0),
        ] {
            let load = load(pps, OCCUPIES, Arrivals::Constant);
            let coalesce = Coalesce { usecs, frames: 256 };
            assert_eq!(
                load.group(coalesce, Duration::ZERO),
                packets,
                "{pps} {usecs}"
            );
        }
    }

    #[test]
    fn without_a_line_random_arrivals_are_a_poisson_process() {
        // E[1 + min(N - 1, Poisson(rate U))], summed term by term.
        for (pps, usecs, frames) in [
            (100_000.0, 64, 32),
            (100_000.0, 64, 5),
            (10_000.0, 1_000, 256),
        ] {
            let expected = pps * f64::from(usecs) / 1e6;
            let (mut term, mut mean) = ((-expected).exp(), 0.0);
            for n in 0..500u32 {
                mean += term * f64::from((n + 1).min(frames));
                term *= expected / f64::from(n + 1);
            }
            let load = load(pps, 0.0, Arrivals::Poisson);
            let packets = load.group(Coalesce { usecs, frames }, Duration::ZERO);
            assert!((packets / mean - 1.0).abs() < 1e-9, "{packets} {mean}");
        }
        // Time alone: 1 / (U + 1 / rate).
        let load = load(100_000.0, 0.0, Arrivals::Poisson);
        let exact = 1.0 / (64e-6 + 1e-5);
        assert!((rate(&load, 64, u32::MAX) / exact - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_long_wait_is_summed_in_no_time() {
        let load = load(1_000_000.0, OCCUPIES, Arrivals::Poisson);
        // A renewal process: the mean over a long time, less half a packet and half the variance of a gap.
        let ratio = 1.0 - OCCUPIES * load.pps;
        for (usecs, frames) in [
            (10_000, u32::MAX),
            (99_999, u32::MAX),
            (100_001, u32::MAX),
            (1_000_000, 200_000),
            (u32::MAX, u32::MAX - 10_000_000),
        ] {
            let packets = load.group(Coalesce { usecs, frames }, Duration::ZERO);
            let mean = 1.0 + f64::from(usecs) + (ratio * ratio - 1.0) / 2.0;
            let exact = mean.min(f64::from(frames));
            assert!((packets / exact - 1.0).abs() < 1e-6, "{packets} {exact}");
        }
        // Where time and number are up at once, both ways to compute it agree.
        let coalesce = Coalesce {
            usecs: 50_000,
            frames: 50_001,
        };
        let exact = load.group(coalesce, Duration::ZERO);
        let normal = renewals(50_000.0, ratio, 50_001.0);
        assert!((exact / normal - 1.0).abs() < 1e-5, "{exact} {normal}");
    }

    #[test]
    fn the_line_bounds_what_chance_can_do() {
        // At its rate, and beyond, all is constant.
        for pps in [1_488_095.0, 1_488_096.0, 3e6] {
            let constant = load(pps, OCCUPIES, Arrivals::Constant);
            let random = load(pps, OCCUPIES, Arrivals::Poisson);
            for usecs in [1, 8, 64] {
                let (constant, random) = (rate(&constant, usecs, 256), rate(&random, usecs, 256));
                assert!(
                    (constant / random - 1.0).abs() < 1e-3,
                    "{constant} {random}"
                );
            }
        }
    }

    fn throttled(load: &Load, usecs: u16) -> f64 {
        let itr = ItrConfig::new(usecs, None).expect("an interval");
        let rate = load.conditions_per_second(Mode::Itr(itr));
        rate.expect("a closed form")
    }

    #[test]
    fn a_throttle_takes_the_lesser_of_packets_and_intervals() {
        for (pps, usecs, rate) in [
            (10_000.0, 50, 10_000.0),
            (20_000.0, 50, 20_000.0),
            (100_000.0, 50, 20_000.0),
            (3e6, 1, 1.0 / 1e-6),
        ] {
            let load = load(pps, OCCUPIES, Arrivals::Constant);
            assert!((throttled(&load, usecs) / rate - 1.0).abs() < 1e-9, "{pps}");
        }
        // A Poisson process: 1 / (I + exp(-rate I) / rate).
        let poisson = load(20_000.0, 0.0, Arrivals::Poisson);
        let exact = 1.0 / (50e-6 + (-1.0f64).exp() / 20_000.0);
        assert!((throttled(&poisson, 50) / exact - 1.0).abs() < 1e-9);
        // On a line that is nearly full there is nearly nothing left to chance.
        let full = load(1_480_000.0, OCCUPIES, Arrivals::Poisson);
        assert!((throttled(&full, 2) / 5e5 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_adapts_has_no_closed_form() {
        let load = load(20_000.0, OCCUPIES, Arrivals::Constant);
        let lli = ItrConfig::new(50, LliConfig::new(128, 0)).expect("an interval");
        for mode in [Mode::Itr(lli), Mode::IgbDynamic, Mode::Dim(PeriodMode::Eqe)] {
            assert_eq!(load.conditions_per_second(mode), None);
        }
    }
}
