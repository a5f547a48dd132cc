//! `vhost-user-nic stats --names`: the port's counters under the names that standards give them.

use clap::ValueEnum;
use nic_backend::control::{self, Request, Standard};
use serde_json::{Map, Value};

use crate::{Target, print};

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Names {
    Nic,
    Ethtool,
    Rfc,
}

impl Names {
    /// The standard that has them; none for our own.
    pub fn standard(self) -> Option<Standard> {
        match self {
            Names::Nic => None,
            Names::Ethtool => Some(Standard::Ethtool),
            Names::Rfc => Some(Standard::Rfc),
        }
    }
}

/// Shows them: in the standard's order, or as one JSON object.
pub fn named(target: &Target, names: Standard) -> anyhow::Result<()> {
    let answer = control::ask(&target.control, Request::Counters { names })?;
    let counts: Vec<(String, Value)> = serde_json::from_value(answer)?;
    if target.json {
        let counts: Map<_, _> = counts.into_iter().collect();
        return print(&serde_json::to_string_pretty(&counts)?);
    }
    let lines: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("{name}: {count}"))
        .collect();
    print(&lines.join("\n"))
}
