//! The packet buffer as users write it: `512K,guarantee=16K,alpha=1/2`, or `off`.

use std::fmt;
use std::str::FromStr;

use nic_model::packet_buffer::{Alpha, BufferConfig};

use crate::written::{self, BadSpec};

/// Octets of the largest: an account of octets goes to 2^31.
const LARGEST: u32 = 1 << 30;

/// The packet buffer that the receive queues share, if they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketBufferSpec(pub Option<BufferConfig>);

const USAGE: &str =
    "off, or OCTETS[,guarantee=OCTETS][,alpha=N], as in 512K,guarantee=16K,alpha=1/2";

impl FromStr for PacketBufferSpec {
    type Err = BadSpec;
    fn from_str(text: &str) -> Result<Self, BadSpec> {
        written::read(text, "is no packet buffer", USAGE, parse)
    }
}

fn parse(text: &str) -> Result<PacketBufferSpec, String> {
    if text == "off" {
        return Ok(PacketBufferSpec(None));
    }
    let (size, rest) = match text.split_once(',') {
        Some((size, rest)) => (size, written::pairs(rest)?),
        None => (text, Vec::new()),
    };
    let mut config = BufferConfig {
        size: octets(size)?,
        guarantee: 0,
        alpha: Alpha::default(),
    };
    for (name, value) in rest {
        match name {
            "guarantee" => config.guarantee = octets(value)?,
            "alpha" => config.alpha = alpha(value)?,
            _ => return Err(format!("{name:?} is neither guarantee nor alpha")),
        }
    }
    if config.size == 0 || config.size > LARGEST {
        return Err("it has from 1 octet to 1024M".to_owned());
    }
    Ok(PacketBufferSpec(Some(config)))
}

/// A number of octets, in units of 1024 or 1024 * 1024 with K or M behind it.
fn octets(text: &str) -> Result<u32, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M']) {
        Some(number) if text.ends_with('K') => (number, 1 << 10),
        Some(number) => (number, 1 << 20),
        None => (text, 1),
    };
    let number: Option<u32> = number.parse().ok();
    let octets = number.and_then(|number| number.checked_mul(unit));
    octets.ok_or_else(|| format!("{text:?} is no number of octets, with K or M or without"))
}

fn alpha(text: &str) -> Result<Alpha, String> {
    let exponents = -7..=3;
    let named = |exponent: &i8| match exponent {
        up @ 0.. => text == (1 << up).to_string(),
        down => text == format!("1/{}", 1 << down.unsigned_abs()),
    };
    let exponent = exponents.into_iter().find(named);
    let alpha = exponent.and_then(Alpha::new);
    alpha.ok_or_else(|| "alpha is a power of two from 1/128 to 8".to_owned())
}

impl fmt::Display for PacketBufferSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(config) = self.0 else {
            return f.write_str("off");
        };
        write!(f, "{},guarantee={}", config.size, config.guarantee)?;
        match config.alpha.exponent() {
            up @ 0.. => write!(f, ",alpha={}", 1 << up),
            down => write!(f, ",alpha=1/{}", 1 << down.unsigned_abs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_buffers_are_read_and_shown() {
        for (text, shown) in [
            ("off", "off"),
            ("1000", "1000,guarantee=0,alpha=1"),
            ("64K,alpha=8", "65536,guarantee=0,alpha=8"),
            (
                "1M,guarantee=16K,alpha=1/128",
                "1048576,guarantee=16384,alpha=1/128",
            ),
        ] {
            let spec: PacketBufferSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), shown);
            assert_eq!(shown.parse::<PacketBufferSpec>().unwrap(), spec);
        }
        for (wrong, reason) in [
            ("", "no number of octets"),
            ("0", "from 1 octet"),
            ("2048M", "from 1 octet"),
            ("8192M", "no number of octets"),
            ("64K,alpha=3", "power of two"),
            ("64K,alpha=16", "power of two"),
            ("64K,beta=1", "neither"),
            ("64K,guarantee=1K,guarantee=2K", "guarantee is said twice"),
            ("on", "no number"),
        ] {
            let error = wrong.parse::<PacketBufferSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }
}
