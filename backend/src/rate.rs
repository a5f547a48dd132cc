//! Rate limits as users write them: `rx=1G:128K,tx=500M`, or `off`.

use std::fmt;
use std::str::FromStr;

use nic_model::phy::Speed;
use nic_model::rate::{Limit, Rates};

use crate::written::{self, BadSpec};

/// Bits a second of the highest limit.
const HIGHEST: f64 = 1e12;
/// Octets of the smallest burst where none is said: a super-frame's.
const SMALLEST_BURST: u64 = 64 * 1024;
/// Octets of the largest burst.
const LARGEST_BURST: u64 = 1 << 30;

/// The rates of both directions, where they are limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateSpec(pub Rates);

const USAGE: &str = "off, or rx=RATE[:BURST], tx=RATE[:BURST] or both with a comma between, as in rx=1G:128K,tx=500M";

impl FromStr for RateSpec {
    type Err = BadSpec;
    fn from_str(text: &str) -> Result<Self, BadSpec> {
        written::read(text, "is no rate limit", USAGE, parse)
    }
}

fn parse(text: &str) -> Result<RateSpec, String> {
    let mut rates = Rates::default();
    if text == "off" {
        return Ok(RateSpec(rates));
    }
    for (direction, value) in written::pairs(text)? {
        let limited = match direction {
            "rx" => &mut rates.rx,
            "tx" => &mut rates.tx,
            _ => return Err(format!("{direction:?} is neither rx nor tx")),
        };
        *limited = Some(limit(value)?);
    }
    Ok(RateSpec(rates))
}

fn limit(text: &str) -> Result<Limit, String> {
    let (rate, burst) = match text.split_once(':') {
        Some((rate, burst)) => (rate, Some(burst)),
        None => (text, None),
    };
    let wrong = || format!("{rate:?} is no rate from 1k to 1000G bits a second, with k, M or G");
    let bits = scaled(rate, &[('k', 1e3), ('M', 1e6), ('G', 1e9)]).ok_or_else(wrong)?;
    if !(1e3..=HIGHEST).contains(&bits) {
        return Err(wrong());
    }
    let bits_per_second = bits.round() as u64;
    let burst = match burst {
        // What the rate brings in a millisecond.
        None => (bits_per_second / 8_000).max(SMALLEST_BURST),
        Some(burst) => {
            let octets = scaled(burst, &[('K', 1024.0), ('M', 1024.0 * 1024.0)]);
            let octets = octets.filter(|octets| (64.0..=LARGEST_BURST as f64).contains(octets));
            octets.ok_or_else(|| {
                format!("{burst:?} is no burst of 64 octets to 1024M, with K or M or without")
            })? as u64
        }
    };
    Ok(Limit {
        bits_per_second,
        burst: burst.min(LARGEST_BURST) as u32,
    })
}

/// A number, in one of `units` if its letter stands behind it.
fn scaled(text: &str, units: &[(char, f64)]) -> Option<f64> {
    let unit = units.iter().find(|(letter, _)| text.ends_with(*letter));
    let (number, unit) = match unit {
        Some((letter, unit)) => (text.strip_suffix(*letter)?, *unit),
        None => (text, 1.0),
    };
    let is_number = number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number: f64 = number.parse().ok().filter(|_| is_number)?;
    Some(number * unit)
}

impl RateSpec {
    /// Why a card whose line has the rate `speed` at most cannot have these limits, if it cannot.
    #[must_use]
    pub fn unfit(&self, speed: Speed) -> Option<String> {
        let line = u64::from(speed.mbps()) * 1_000_000;
        let limits = [self.0.rx, self.0.tx].into_iter().flatten();
        let highest = limits.map(|limit| limit.bits_per_second).max()?;
        (highest > line).then(|| {
            format!("the line has no more than {speed}b/s, so such a limit limits nothing: give a lower one, or off")
        })
    }
}

impl fmt::Display for RateSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [("rx", self.0.rx), ("tx", self.0.tx)];
        let shown = limits.map(|(direction, limit)| {
            limit.map(
                |Limit {
                     bits_per_second,
                     burst,
                 }| {
                    let (rate, unit) = match bits_per_second {
                        bits if bits % 1_000_000_000 == 0 => (bits / 1_000_000_000, "G"),
                        bits if bits % 1_000_000 == 0 => (bits / 1_000_000, "M"),
                        bits => (bits, ""),
                    };
                    format!("{direction}={rate}{unit}:{burst}")
                },
            )
        });
        let shown: Vec<_> = shown.into_iter().flatten().collect();
        if shown.is_empty() {
            return f.write_str("off");
        }
        f.write_str(&shown.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_shown() {
        for (text, shown) in [
            ("off", "off"),
            ("rx=1G:128K", "rx=1G:131072"),
            ("tx=2.5G", "tx=2500M:312500"),
            ("tx=500M,rx=1k:64", "rx=1000:64,tx=500M:65536"),
            ("rx=8000", "rx=8000:65536"),
        ] {
            let spec: RateSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), shown);
            assert_eq!(shown.parse::<RateSpec>().unwrap(), spec);
        }
        let gigabit = Speed::from_mbps(1_000).unwrap();
        for (text, fits) in [
            ("off", true),
            ("rx=1G,tx=1k", true),
            ("rx=1k,tx=1.1G", false),
        ] {
            let spec: RateSpec = text.parse().unwrap();
            assert_eq!(spec.unfit(gigabit).is_none(), fits, "{text}");
        }
        for (wrong, reason) in [
            ("", "not NAME=VALUE"),
            ("1G", "not NAME=VALUE"),
            ("up=1G", "neither rx nor tx"),
            ("rx=1G,rx=2G", "twice"),
            ("rx=0", "no rate"),
            ("rx=-1G", "no rate"),
            ("rx=infG", "no rate"),
            ("rx=9999G", "no rate"),
            ("rx=1G:1", "no burst"),
            ("rx=1G:9999M", "no burst"),
            ("rx=1G:", "no burst"),
        ] {
            let error = wrong.parse::<RateSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }
}
