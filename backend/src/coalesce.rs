//! Interrupt moderation as users write it: `rx-usecs=50,rx-frames=32,tx-usecs=100,tx-frames=64`, or `off`.
//!
//! Names are those of `ethtool -C`.

use std::fmt;
use std::str::FromStr;

use nic_model::moderation::Coalesce;

/// What the card's moderation starts from, and goes back to when its device is reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoalesceSpec {
    /// For receive queues.
    pub rx: Coalesce,
    /// For transmit queues.
    pub tx: Coalesce,
}

/// What is wrong with the text of a moderation.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no interrupt moderation: {reason}; use off, or some of rx-usecs=N,rx-frames=N,tx-usecs=N,tx-frames=N with N from 0 to 4294967295"
)]
pub struct BadCoalesce {
    text: String,
    reason: String,
}

impl FromStr for CoalesceSpec {
    type Err = BadCoalesce;
    fn from_str(text: &str) -> Result<Self, BadCoalesce> {
        parse(text).map_err(|reason| BadCoalesce {
            text: text.to_owned(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<CoalesceSpec, String> {
    let mut spec = CoalesceSpec::default();
    if text == "off" {
        return Ok(spec);
    }
    let mut written = Vec::new();
    for part in text.split(',') {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not NAME=N"))?;
        let place = match name {
            "rx-usecs" => &mut spec.rx.usecs,
            "rx-frames" => &mut spec.rx.frames,
            "tx-usecs" => &mut spec.tx.usecs,
            "tx-frames" => &mut spec.tx.frames,
            _ => return Err(format!("there is no {name:?}")),
        };
        *place = value
            .parse()
            .map_err(|_| format!("{name} cannot be {value:?}"))?;
        written.push(name);
    }
    // The other one would be zero, and each frame would interrupt: not what somebody wants who writes one.
    for (one, other) in [("rx-usecs", "rx-frames"), ("tx-usecs", "tx-frames")] {
        if written.contains(&one) != written.contains(&other) {
            return Err(format!("{one} and {other} work only together, give both"));
        }
    }
    Ok(spec)
}

impl fmt::Display for CoalesceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CoalesceSpec { rx, tx } = self;
        write!(f, "rx-usecs={},rx-frames={}", rx.usecs, rx.frames)?;
        write!(f, ",tx-usecs={},tx-frames={}", tx.usecs, tx.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let spec: CoalesceSpec = "rx-usecs=50,rx-frames=32".parse().unwrap();
        assert_eq!((spec.rx.usecs, spec.rx.frames), (50, 32));
        assert!(spec.tx.is_off());
        for text in [
            "off",
            "rx-usecs=50,rx-frames=32",
            "tx-frames=4294967295,tx-usecs=1",
            "rx-usecs=0,rx-frames=32",
        ] {
            let spec: CoalesceSpec = text.parse().unwrap();
            assert_eq!(spec.to_string().parse::<CoalesceSpec>().unwrap(), spec);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "\"\" is not NAME=N"),
            ("rx-usecs", "\"rx-usecs\" is not NAME=N"),
            ("rx-usecs=", "rx-usecs cannot be \"\""),
            ("rx-usecs=-1,rx-frames=2", "rx-usecs cannot be \"-1\""),
            ("rx-frames=4294967296,rx-usecs=1", "rx-frames cannot be"),
            ("rx-packets=3", "there is no \"rx-packets\""),
            ("rx-usecs=50", "rx-usecs and rx-frames work only together"),
            ("tx-frames=50", "tx-usecs and tx-frames work only together"),
        ] {
            let error = text.parse::<CoalesceSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
