//! Priorities that are flow controlled, as users write them: `3,4`, `all`, or `off`.

use std::fmt;
use std::str::FromStr;

use nic_model::pfc::{PRIORITIES, Priorities};

/// The priorities that are flow controlled each for itself, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PfcSpec(pub Option<Priorities>);

/// The text is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} are no priorities: use off, all, or each priority once, from 0 to 7, with commas between, as in 3,4"
)]
pub struct BadPfc(String);

impl FromStr for PfcSpec {
    type Err = BadPfc;
    fn from_str(text: &str) -> Result<Self, BadPfc> {
        match text {
            "off" => return Ok(PfcSpec(None)),
            "all" => return Ok(PfcSpec(Some(Priorities::ALL))),
            _ => {}
        }
        let mut priorities = Priorities::NONE;
        for part in text.split(',') {
            let priority = part.parse().ok();
            let priority = priority.filter(|&priority| {
                part.len() == 1 && priority < PRIORITIES && !priorities.contains(priority)
            });
            priorities.insert(priority.ok_or_else(|| BadPfc(text.to_owned()))?);
        }
        Ok(PfcSpec(Some(priorities)))
    }
}

impl PfcSpec {
    /// Why a card cannot control these, any of whose queues has room for `room` octets and whose longest frame has `longest`, if it cannot: when
    /// a priority's share is half full one of its frames may be on its way from the partner, who is told of it behind one of ours, and sends another meanwhile.
    #[must_use]
    pub fn unfit(&self, room: usize, longest: usize) -> Option<String> {
        let share = room / self.0?.shares();
        let least = 4 * longest;
        (share < least).then(|| {
            format!(
                "each would have a share of {share} octets of the room for received frames, and needs {least}, four of the longest frames: name fewer, or give a --packet-buffer, or a larger one"
            )
        })
    }
}

impl fmt::Display for PfcSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("off"),
            Some(Priorities::ALL) => f.write_str("all"),
            Some(priorities) => priorities.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_read_and_shown() {
        for (text, shown) in [
            ("off", "off"),
            ("all", "all"),
            ("0,1,2,3,4,5,6,7", "all"),
            ("4,3", "3,4"),
            ("0", "0"),
        ] {
            let spec: PfcSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), shown);
            assert_eq!(shown.parse::<PfcSpec>().unwrap(), spec);
        }
        let two: PfcSpec = "3,4".parse().unwrap();
        assert!(two.unfit(18_000, 1_500).is_none() && PfcSpec(None).unfit(0, 1).is_none());
        let reason = two.unfit(17_999, 1_500).unwrap();
        assert!(
            reason.contains("5999 octets") && reason.contains("needs 6000"),
            "{reason}"
        );
        for wrong in ["", "8", "3,3", "3,", "-1", "03", "on"] {
            let error = wrong.parse::<PfcSpec>().unwrap_err().to_string();
            assert!(error.contains("from 0 to 7"), "{wrong}: {error}");
        }
    }
}
