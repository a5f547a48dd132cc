//! Line rates that IEEE 802.3 knows.

use std::fmt;
use std::str::FromStr;

/// A line rate that IEEE 802.3 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speed(u32);

impl Speed {
    /// The rates, in megabits a second, each a whole number of picoseconds an octet.
    pub(crate) const RATES: [u32; 12] = [
        10, 100, 1_000, 2_500, 5_000, 10_000, 25_000, 40_000, 50_000, 100_000, 200_000, 400_000,
    ];

    /// The speed of `mbps` megabits a second, if IEEE 802.3 has it.
    #[must_use]
    pub fn from_mbps(mbps: u32) -> Option<Self> {
        Self::RATES.contains(&mbps).then_some(Speed(mbps))
    }

    /// The speed of `mbps` megabits a second, which is one of the rates.
    pub(super) const fn known(mbps: u32) -> Self {
        Speed(mbps)
    }

    /// Megabits a second.
    #[must_use]
    pub fn mbps(self) -> u32 {
        self.0
    }

    /// Picoseconds that one octet takes.
    #[must_use]
    pub fn picoseconds_per_octet(self) -> u64 {
        8_000_000 / u64::from(self.0)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            2_500 => write!(f, "2.5G"),
            mbps if mbps >= 1_000 => write!(f, "{}G", mbps / 1_000),
            mbps => write!(f, "{mbps}M"),
        }
    }
}

/// What is wrong with the text of a speed.
#[derive(Debug, thiserror::Error)]
#[error(
    "no such speed: use one of 10M, 100M, 1G, 2.5G, 5G, 10G, 25G, 40G, 50G, 100G, 200G, 400G (got {0:?})"
)]
pub struct BadSpeed(String);

impl FromStr for Speed {
    type Err = BadSpeed;
    fn from_str(text: &str) -> Result<Self, BadSpeed> {
        Self::RATES
            .iter()
            .map(|&mbps| Speed(mbps))
            .find(|speed| speed.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| BadSpeed(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_written_as_users_write_them() {
        for mbps in Speed::RATES {
            let speed = Speed(mbps);
            assert_eq!(speed.to_string().parse::<Speed>().unwrap(), speed);
        }
        assert_eq!("10g".parse::<Speed>().unwrap().mbps(), 10_000);
        assert!("3G".parse::<Speed>().is_err());
    }
}
