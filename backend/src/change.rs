//! The commands that change a running NIC: `fault` and `set`.

use nic_backend::control::{self, Request};
use nic_backend::settings::Settings;
use nic_backend::wire::fault::FaultSpec;

use crate::cli::usage;
use crate::{Target, print};

/// Shows what goes wrong on purpose, after it was changed to `spec`, if that is given.
pub fn fault(target: &Target, spec: Option<FaultSpec>) -> anyhow::Result<()> {
    let status = control::ask(&target.control, Request::Fault { spec })?;
    if target.json {
        return print(&serde_json::to_string_pretty(&status)?);
    }
    let mut text = format!("faults: {}", status["spec"].as_str().unwrap_or("unknown"));
    for direction in ["rx", "tx"] {
        let Some(counts) = status[direction].as_object() else {
            continue;
        };
        let counts = counts.iter().filter(|(_, count)| **count != 0);
        for (name, count) in counts {
            text += &format!("\n{direction}.{name} {count}");
        }
    }
    if status["flaps"] != 0 {
        text += &format!("\nflaps {}", status["flaps"]);
    }
    print(&text)
}

/// Changes what `parts` say.
pub fn set(target: &Target, parts: &[Settings]) -> anyhow::Result<()> {
    let settings = Settings::all(parts.iter().copied());
    let settings = settings.unwrap_or_else(|error| usage::refuse(error));
    let set = control::ask(&target.control, Request::Set(settings))?;
    if target.json {
        return print(&serde_json::to_string_pretty(&set)?);
    }
    let set = set.as_object().into_iter().flatten();
    let lines: Vec<_> = set
        .map(|(name, value)| format!("{name} {}", value.as_str().unwrap_or("unknown")))
        .collect();
    print(&lines.join("\n"))
}
