//! Interrupt moderation as users write it: `rx-usecs=50,rx-frames=32,tx-usecs=100,tx-frames=64`, or a mode of the card's own as
//! `itr=50`, or `off`.
//!
//! Names are those of `ethtool -C` and of the drivers whose modes these are.

use std::fmt;
use std::str::FromStr;

use nic_model::moderation::dim::PeriodMode;
use nic_model::moderation::itr::{ItrConfig, LliConfig};
use nic_model::moderation::{Coalesce, Mode};

use crate::written::{self, BadSpec};

/// What the card's moderation starts from, and goes back to when its device is reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoalesceSpec {
    /// For receive queues.
    pub rx: Mode,
    /// For transmit queues.
    pub tx: Mode,
}

const USAGE: &str = "off, or some of rx-usecs=N,rx-frames=N,tx-usecs=N,tx-frames=N with N from 0 to 4294967295, \
     or itr=USECS[,lli-bytes=N[,lli-usecs=N]], igb-dynamic, dim, dim=cqe";

impl FromStr for CoalesceSpec {
    type Err = BadSpec;
    fn from_str(text: &str) -> Result<Self, BadSpec> {
        written::read(text, "is no interrupt moderation", USAGE, parse)
    }
}

fn parse(text: &str) -> Result<CoalesceSpec, String> {
    let mode = match text {
        "off" => Mode::default(),
        "igb-dynamic" => Mode::IgbDynamic,
        "dim" | "dim=eqe" => Mode::Dim(PeriodMode::Eqe),
        "dim=cqe" => Mode::Dim(PeriodMode::Cqe),
        _ if text.contains("itr") => itr(text)?,
        _ if text.starts_with("dim=") => return Err("dim is eqe, the usual, or cqe".to_owned()),
        _ => return parameters(text),
    };
    Ok(CoalesceSpec { rx: mode, tx: mode })
}

fn number<N: FromStr>(name: &str, value: &str) -> Result<N, String> {
    value
        .parse()
        .map_err(|_| format!("{name} cannot be {value:?}"))
}

fn itr(text: &str) -> Result<Mode, String> {
    let (mut usecs, mut bytes, mut every) = (0, None, None);
    for (name, value) in written::pairs(text)? {
        match name {
            "itr" => usecs = number(name, value)?,
            "lli-bytes" => bytes = Some(number(name, value)?),
            "lli-usecs" => every = Some(number(name, value)?),
            _ => return Err(format!("there is no {name:?} beside itr")),
        }
    }
    let lli = match (bytes, every) {
        (None, None) => None,
        (None, Some(_)) => return Err("lli-usecs is for lli-bytes, give both".to_owned()),
        (Some(bytes), every) => {
            let lli = LliConfig::new(bytes, every.unwrap_or(0));
            let reason = "lli-bytes is from 1 to 4095, and lli-usecs a multiple of 4 from 0 to 124";
            Some(lli.ok_or(reason)?)
        }
    };
    let config = ItrConfig::new(usecs, lli);
    config
        .map(Mode::Itr)
        .ok_or_else(|| "itr is from 1 to 8191".to_owned())
}

fn parameters(text: &str) -> Result<CoalesceSpec, String> {
    let (mut rx, mut tx) = (Coalesce::default(), Coalesce::default());
    let mut written = Vec::new();
    for (name, value) in written::pairs(text)? {
        let place = match name {
            "rx-usecs" => &mut rx.usecs,
            "rx-frames" => &mut rx.frames,
            "tx-usecs" => &mut tx.usecs,
            "tx-frames" => &mut tx.frames,
            _ => return Err(format!("there is no {name:?}")),
        };
        *place = number(name, value)?;
        written.push(name);
    }
    // The other one would be zero, and each frame would interrupt: not what somebody wants who writes one.
    for (one, other) in [("rx-usecs", "rx-frames"), ("tx-usecs", "tx-frames")] {
        if written.contains(&one) != written.contains(&other) {
            return Err(format!("{one} and {other} work only together, give both"));
        }
    }
    Ok(CoalesceSpec {
        rx: rx.into(),
        tx: tx.into(),
    })
}

impl fmt::Display for CoalesceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rx, self.tx) {
            (Mode::NotfCoal(rx), Mode::NotfCoal(tx)) => {
                write!(f, "rx-usecs={},rx-frames={}", rx.usecs, rx.frames)?;
                write!(f, ",tx-usecs={},tx-frames={}", tx.usecs, tx.frames)
            }
            // Both directions have the same.
            (Mode::Itr(itr), _) | (_, Mode::Itr(itr)) => {
                write!(f, "itr={}", itr.usecs())?;
                itr.lli().map_or(Ok(()), |lli| {
                    write!(f, ",lli-bytes={},lli-usecs={}", lli.below(), lli.usecs())
                })
            }
            (Mode::IgbDynamic, _) | (_, Mode::IgbDynamic) => f.write_str("igb-dynamic"),
            (Mode::Dim(mode), _) | (_, Mode::Dim(mode)) => f.write_str(match mode {
                PeriodMode::Eqe => "dim",
                PeriodMode::Cqe => "dim=cqe",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let spec: CoalesceSpec = "rx-usecs=50,rx-frames=32".parse().unwrap();
        let rx = Coalesce {
            usecs: 50,
            frames: 32,
        };
        assert_eq!((spec.rx, spec.tx), (rx.into(), Mode::default()));
        for text in [
            "off",
            "rx-usecs=50,rx-frames=32",
            "tx-frames=4294967295,tx-usecs=1",
            "rx-usecs=0,rx-frames=32",
            "itr=50",
            "itr=8191,lli-bytes=128",
            "lli-usecs=124,itr=1,lli-bytes=4095",
            "igb-dynamic",
            "dim",
            "dim=eqe",
            "dim=cqe",
        ] {
            let spec: CoalesceSpec = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(spec.to_string().parse::<CoalesceSpec>().unwrap(), spec);
        }
    }

    #[test]
    fn modes_are_for_both_directions() {
        let lli = LliConfig::new(128, 8);
        let itr = Mode::Itr(ItrConfig::new(50, lli).unwrap());
        for (text, mode) in [
            ("itr=50,lli-bytes=128,lli-usecs=8", itr),
            ("igb-dynamic", Mode::IgbDynamic),
            ("dim", Mode::Dim(PeriodMode::Eqe)),
            ("dim=cqe", Mode::Dim(PeriodMode::Cqe)),
        ] {
            let spec: CoalesceSpec = text.parse().unwrap();
            assert_eq!((spec.rx, spec.tx), (mode, mode), "{text}");
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "\"\" is not NAME=VALUE"),
            ("rx-usecs", "\"rx-usecs\" is not NAME=VALUE"),
            ("rx-usecs=", "rx-usecs cannot be \"\""),
            ("rx-usecs=-1,rx-frames=2", "rx-usecs cannot be \"-1\""),
            ("rx-frames=4294967296,rx-usecs=1", "rx-frames cannot be"),
            ("rx-packets=3", "there is no \"rx-packets\""),
            ("rx-usecs=50", "rx-usecs and rx-frames work only together"),
            ("tx-frames=50", "tx-usecs and tx-frames work only together"),
            ("itr", "\"itr\" is not NAME=VALUE"),
            ("itr=0", "itr is from 1 to 8191"),
            ("itr=8192", "itr is from 1 to 8191"),
            ("itr=many", "itr cannot be \"many\""),
            ("itr=9,rx-usecs=3", "there is no \"rx-usecs\" beside itr"),
            ("itr=9,lli-bytes=0", "lli-bytes is from 1 to 4095"),
            ("itr=9,lli-bytes=9,lli-usecs=6", "a multiple of 4"),
            ("itr=9,lli-bytes=9,lli-usecs=256", "lli-usecs cannot be"),
            ("itr=9,lli-usecs=8", "lli-usecs is for lli-bytes"),
            ("igb", "\"igb\" is not NAME=VALUE"),
            ("dim=both", "dim is eqe, the usual, or cqe"),
        ] {
            let error = text.parse::<CoalesceSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
