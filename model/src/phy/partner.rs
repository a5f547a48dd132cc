//! The station at the other end of the line, as its physical layer shows it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::mode::{Mode, Modes};
use super::resolve::{Advertisement, MasterSlave};

/// What the other end does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LinkPartner {
    /// It does whatever this card does: negotiates with all the card's modes and PAUSE, or is forced to the card's mode.
    #[default]
    Same,
    /// It negotiates.
    Negotiates(Advertisement),
    /// It has been forced to a mode, and does not negotiate.
    Forced(Mode),
}

/// What is wrong with the text of a link partner.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no link partner: {reason}; use same, or a list of modes (100half, 1000full, 10G, ...) and pause, asym, master, slave, fault; or one mode and silent"
)]
pub struct BadLinkPartner {
    text: String,
    reason: String,
}

impl FromStr for LinkPartner {
    type Err = BadLinkPartner;
    fn from_str(text: &str) -> Result<Self, BadLinkPartner> {
        parse(text).map_err(|reason| BadLinkPartner {
            text: text.to_owned(),
            reason,
        })
    }
}

impl TryFrom<String> for LinkPartner {
    type Error = BadLinkPartner;
    fn try_from(text: String) -> Result<Self, BadLinkPartner> {
        text.parse()
    }
}

impl From<LinkPartner> for String {
    fn from(partner: LinkPartner) -> String {
        partner.to_string()
    }
}

fn parse(text: &str) -> Result<LinkPartner, String> {
    if text == "same" {
        return Ok(LinkPartner::Same);
    }
    let mut said = switch(Modes::NONE);
    let (mut silent, mut others) = (false, false);
    for word in text.split(',') {
        match word {
            "silent" => silent = true,
            "pause" => said.pause = true,
            "asym" => said.asym_pause = true,
            "fault" => said.remote_fault = true,
            "master" | "slave" if said.master_slave.manual.is_some() => {
                return Err("it is master or slave, once".into());
            }
            "master" => said.master_slave.manual = Some(true),
            "slave" => said.master_slave.manual = Some(false),
            mode => match mode.parse() {
                Ok(mode) => {
                    said.modes.set(mode, true);
                    continue;
                }
                Err(_) => return Err(format!("there is no {mode:?}")),
            },
        }
        others |= word != "silent";
    }
    if !silent {
        if said.modes == Modes::NONE {
            said.modes = Modes::ALL;
        }
        return Ok(LinkPartner::Negotiates(said));
    }
    let mut modes = said.modes.iter();
    match (modes.next(), modes.next()) {
        (Some(mode), None) if !others => Ok(LinkPartner::Forced(mode)),
        (Some(_), None) => Err("one that is silent cannot say more than its mode".into()),
        _ => Err(
            "one that is silent is forced to one mode, which has to be named, as in 100full,silent"
                .into(),
        ),
    }
}

/// What a switch port that can do `modes` and nothing else says.
fn switch(modes: Modes) -> Advertisement {
    Advertisement {
        modes,
        master_slave: MasterSlave {
            manual: None,
            multiport: true,
        },
        ..Advertisement::default()
    }
}

impl LinkPartner {
    /// What it tells a card that can do `abilities`, if it negotiates.
    #[must_use]
    pub fn says(&self, abilities: Modes) -> Option<Advertisement> {
        match self {
            LinkPartner::Same => Some(Advertisement {
                pause: true,
                ..switch(abilities)
            }),
            LinkPartner::Negotiates(said) => Some(*said),
            LinkPartner::Forced(_) => None,
        }
    }
}

impl fmt::Display for LinkPartner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match self {
            LinkPartner::Same => return f.write_str("same"),
            LinkPartner::Forced(mode) => return write!(f, "{mode},silent"),
            LinkPartner::Negotiates(said) => said,
        };
        let words = [
            (said.pause, "pause"),
            (said.asym_pause, "asym"),
            (said.remote_fault, "fault"),
            (said.master_slave.manual == Some(true), "master"),
            (said.master_slave.manual == Some(false), "slave"),
        ];
        let words = words.iter().filter(|(set, _)| *set);
        let words = words.map(|(_, word)| (*word).to_owned());
        let modes = said.modes.iter().map(|mode| mode.to_string());
        f.write_str(&modes.chain(words).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_write_is_understood_and_written_back() {
        for text in [
            "same",
            "100full,silent",
            "10half",
            "10half,10full,100half,100full,1000full,pause,asym",
            "1000full,master",
            "1000full,fault,slave",
            "25000full,400000full",
        ] {
            let partner: LinkPartner = text.parse().unwrap();
            assert_eq!(partner.to_string(), text);
        }
        let all: LinkPartner = "pause".parse().unwrap();
        let LinkPartner::Negotiates(said) = all else {
            panic!("{all}");
        };
        assert!(said.pause && !said.asym_pause && said.modes == Modes::ALL);
        assert_eq!(all.to_string().parse::<LinkPartner>().unwrap(), all);
        assert_eq!(
            "silent,1G".parse::<LinkPartner>().unwrap().to_string(),
            "1000full,silent"
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "there is no \"\""),
            ("3G", "there is no \"3G\""),
            ("100full,", "there is no \"\""),
            ("silent", "has to be named, as in 100full,silent"),
            ("100full,10full,silent", "one mode"),
            ("100full,pause,silent", "cannot say more"),
            ("master,slave", "master or slave, once"),
            ("same,pause", "there is no \"same\""),
        ] {
            let error = text.parse::<LinkPartner>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(error.contains("is no link partner"), "{error}");
        }
    }
}
