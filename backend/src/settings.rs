//! What can be changed of a NIC that runs, as users write it: `coalesce=rx-usecs=50,rx-frames=32`, `speed=1G`.
//!
//! The rest is settled when the NIC starts, since threads, memory or what the guest was told depend on it; whoever wants
//! to change that is told so.

use std::str::FromStr;

use nic_model::phy::Speed;
use nic_model::port::Port;
use serde::{Deserialize, Serialize};

use crate::coalesce::CoalesceSpec;
use crate::pfc::PfcSpec;
use crate::rate::RateSpec;
use crate::weights::WeightsSpec;

/// What is to be changed; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// When queues interrupt: all of them from now on, whatever a driver said before, and after a device reset.
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    pub coalesce: Option<CoalesceSpec>,
    /// Priorities that are flow controlled each for itself, of a NIC that was started with some.
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    pub pfc: Option<PfcSpec>,
    /// The rates of both directions, where they are limited below the line's.
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateSpec>,
    /// The line rate: the forced one, or with auto-negotiation the only one that is advertised.
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// How transmit queues share the line.
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    pub tx_weights: Option<WeightsSpec>,
}

/// What has a command of its own, and which one.
const COMMANDS: &[(&str, &str)] = &[
    ("autoneg", "mdio"),
    ("fault", "fault"),
    ("link", "link"),
    ("link-partner", "link --partner"),
    ("loopback", "loopback"),
    ("mdio", "mdio"),
];

/// What is settled when a NIC starts.
const FIXED: &[&str] = &[
    "config",
    "control",
    "cpus",
    "disable",
    "lro",
    "mac",
    "mtu",
    "packet-buffer",
    "poll",
    "profile",
    "queues",
    "ring-reset",
    "rss",
    "rss-table",
    "socket",
    "trace-protocol",
    "wire",
    "workers",
];

/// Why something cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum BadSetting {
    /// It is no name with a value.
    #[error(
        "{0:?} is not NAME=VALUE; what can be changed is coalesce, pfc, rate, speed and tx-weights"
    )]
    Form(String),
    /// It is settled when the NIC starts.
    #[error(
        "{0} cannot be changed while the NIC runs: start it again with serve --{0}; what can be changed is coalesce, pfc, rate, speed and tx-weights"
    )]
    Fixed(String),
    /// It has a command of its own.
    #[error("{0} has a command of its own: vhost-user-nic {1}")]
    Command(String, &'static str),
    /// Nobody knows it.
    #[error(
        "there is no setting {0:?}; what can be changed is coalesce, pfc, rate, speed and tx-weights"
    )]
    Unknown(String),
    /// It was said twice.
    #[error("{0} is said twice")]
    Twice(String),
    /// Its value is none.
    #[error("{0}")]
    Value(String),
}

impl FromStr for Settings {
    type Err = BadSetting;
    fn from_str(text: &str) -> Result<Self, BadSetting> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| BadSetting::Form(text.to_owned()))?;
        let mut settings = Settings::default();
        match name {
            "coalesce" => settings.coalesce = Some(parse(value)?),
            "pfc" => settings.pfc = Some(parse(value)?),
            "rate" => settings.rate = Some(parse(value)?),
            "speed" => settings.speed = Some(parse(value)?),
            "tx-weights" => settings.tx_weights = Some(parse(value)?),
            name => return Err(fixed(name)),
        }
        Ok(settings)
    }
}

/// Why `name` is none.
fn fixed(name: &str) -> BadSetting {
    let command = COMMANDS.iter().find(|(of, _)| *of == name);
    match command {
        Some((_, command)) => BadSetting::Command(name.to_owned(), command),
        None if FIXED.contains(&name) => BadSetting::Fixed(name.to_owned()),
        None => BadSetting::Unknown(name.to_owned()),
    }
}

fn parse<T: FromStr<Err: ToString>>(value: &str) -> Result<T, BadSetting> {
    value
        .parse()
        .map_err(|error: T::Err| BadSetting::Value(error.to_string()))
}

impl Settings {
    /// All of `parts` together.
    ///
    /// # Errors
    /// Two of them say the same.
    pub fn all(parts: impl IntoIterator<Item = Settings>) -> Result<Self, BadSetting> {
        let mut all = Settings::default();
        for part in parts {
            merge("coalesce", &mut all.coalesce, part.coalesce)?;
            merge("pfc", &mut all.pfc, part.pfc)?;
            merge("rate", &mut all.rate, part.rate)?;
            merge("speed", &mut all.speed, part.speed)?;
            merge("tx-weights", &mut all.tx_weights, part.tx_weights)?;
        }
        Ok(all)
    }
}

impl Settings {
    /// Why `port` cannot have these, if it cannot. Of its rate the PHY knows.
    #[must_use]
    pub fn unfit(&self, port: &Port) -> Option<String> {
        if let Some(weights) = &self.tx_weights
            && let Some(reason) = weights.unfit(port.queue_pairs())
        {
            return Some(format!("tx-weights={weights}: {reason}"));
        }
        if let (Some(rate), Some(highest)) = (&self.rate, port.phy.abilities().highest())
            && let Some(reason) = rate.unfit(highest.speed)
        {
            return Some(format!("rate={rate}: {reason}"));
        }
        if let Some(pfc) = &self.pfc {
            let Some(room) = port.pfc_room() else {
                return pfc.0.is_some().then(|| {
                    format!("pfc={pfc}: this NIC was started without: start it with serve --pfc")
                });
            };
            if let Some(reason) = pfc.unfit(room, port.max_frame()) {
                return Some(format!("pfc={pfc}: {reason}"));
            }
        }
        None
    }
}

/// Adds what was said of the setting `name`.
fn merge<T>(name: &str, all: &mut Option<T>, part: Option<T>) -> Result<(), BadSetting> {
    if part.is_some() && all.is_some() {
        return Err(BadSetting::Twice(name.to_owned()));
    }
    *all = part.or(all.take());
    Ok(())
}

/// Values as users write them.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::ref_option)] // serde calls it so
    pub fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => out.collect_str(value),
            None => out.serialize_none(),
        }
    }

    pub fn deserialize<'de, T, D>(input: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(input)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_go_through_the_socket() {
        let parts = [
            "coalesce=rx-usecs=50,rx-frames=32",
            "speed=25G",
            "rate=rx=1G:64K,tx=500M",
            "pfc=3,4",
            "tx-weights=1,3",
        ];
        let settings = Settings::all(parts.map(|part| part.parse().unwrap())).unwrap();
        let json = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), settings);
        assert_eq!(settings.speed.unwrap().mbps(), 25_000);
        assert_eq!(
            serde_json::from_str::<Settings>("{}").unwrap(),
            Settings::default()
        );
        for mode in ["itr=50,lli-bytes=128,lli-usecs=8", "igb-dynamic", "dim=cqe"] {
            let settings: Settings = format!("coalesce={mode}").parse().unwrap();
            let json = serde_json::to_string(&settings).unwrap();
            assert_eq!(json, format!("{{\"coalesce\":\"{mode}\"}}"));
            assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), settings);
        }
        for wrong in ["{\"speed\":\"3G\"}", "{\"mtu\":\"9000\"}", "{\"speed\":3}"] {
            assert!(serde_json::from_str::<Settings>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_changed_is_said() {
        for (text, reason) in [
            ("speed", "\"speed\" is not NAME=VALUE"),
            ("speed=3G", "no such speed"),
            ("coalesce=often", "no interrupt moderation"),
            ("rate=rx", "no rate limit"),
            ("pfc=8", "no priorities"),
            ("tx-weights=0", "no weights of transmit queues"),
            ("mtu=9000", "start it again with serve --mtu"),
            ("queues=2", "start it again with serve --queues"),
            ("link=up", "vhost-user-nic link"),
            ("link-partner=same", "vhost-user-nic link --partner"),
            ("autoneg=on", "vhost-user-nic mdio"),
            ("color=red", "there is no setting \"color\""),
        ] {
            let error = text.parse::<Settings>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        for twice in [
            ["speed=1G", "speed=10G"],
            ["tx-weights=1,2", "tx-weights=equal"],
        ] {
            let twice = twice.map(|part| part.parse().unwrap());
            assert!(Settings::all(twice).is_err());
        }
    }
}
