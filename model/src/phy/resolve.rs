//! What two stations make of each other's abilities: the mode of the highest priority that both have (IEEE 802.3, annex 28B.3,
//! and 73.7.6), flow control (28B.2), and who clocks the line (40.5.2, 55.6.2).

use super::mode::{Duplex, Mode, Modes};

/// How a station wants the line to be clocked, from 1000BASE-T on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasterSlave {
    /// Whether it has been told to be the master, or the slave; `None`: to agree on it.
    pub manual: Option<bool>,
    /// Whether it has several ports, as a switch has, and prefers to be the master.
    pub multiport: bool,
}

/// What a station tells the other one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// What it can do and wants to.
    pub modes: Modes,
    /// PAUSE: both directions.
    pub pause: bool,
    /// `ASM_DIR`: one direction alone.
    pub asym_pause: bool,
    /// Something is wrong with its receiver, or it is out of service.
    pub remote_fault: bool,
    /// Who clocks the line.
    pub master_slave: MasterSlave,
}

/// Which directions have flow control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// PAUSE frames may be sent.
    pub transmit: bool,
    /// Those that come are to be obeyed.
    pub receive: bool,
}

/// Who clocks the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This station.
    Master,
    /// The other one.
    Slave,
    /// Both have been told the same: there is no link.
    Fault,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The mode; `None`: there is none that both have.
    pub mode: Option<Mode>,
    /// Flow control.
    pub pause: Pause,
    /// Who clocks the line, where that is a question.
    pub role: Option<Role>,
    /// Whether the other station did not negotiate, and was detected by its signal alone (28.2.3.1).
    pub parallel: bool,
}

impl Resolution {
    /// What `local` and `partner` agree on; `seeds` decide who is the master where nothing else does.
    #[must_use]
    pub fn of(local: &Advertisement, partner: &Advertisement, seeds: (u16, u16)) -> Self {
        let mode = local.modes.and(partner.modes).highest();
        let full = mode.is_some_and(|mode| mode.duplex == Duplex::Full);
        let clocked = mode.is_some_and(|mode| (1_000..=10_000).contains(&mode.speed.mbps()));
        Resolution {
            mode,
            pause: if full {
                pause(local, partner)
            } else {
                Pause::default()
            },
            role: clocked.then(|| role(local.master_slave, partner.master_slave, seeds)),
            parallel: false,
        }
    }

    /// For a partner that was detected by its signal: nothing is known but that, so nobody but half duplex is safe.
    #[must_use]
    pub fn detected(mode: Mode) -> Self {
        Resolution {
            mode: Some(mode),
            pause: Pause::default(),
            role: None,
            parallel: true,
        }
    }
}

/// Flow control, full duplex given (Table 28B-3).
fn pause(local: &Advertisement, partner: &Advertisement) -> Pause {
    let both = local.pause && partner.pause;
    let one = !both && local.asym_pause && partner.asym_pause;
    Pause {
        transmit: both || one && partner.pause,
        receive: both || one && local.pause,
    }
}

/// Who clocks the line (Table 40-5).
fn role(local: MasterSlave, partner: MasterSlave, (ours, theirs): (u16, u16)) -> Role {
    let master = match (local.manual, partner.manual) {
        (Some(one), Some(other)) if one == other => return Role::Fault,
        (Some(master), _) => master,
        (None, Some(master)) => !master,
        (None, None) if local.multiport != partner.multiport => local.multiport,
        (None, None) => ours > theirs,
    };
    if master { Role::Master } else { Role::Slave }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(text: &str) -> Modes {
        let mut modes = Modes::NONE;
        for mode in text.split(',').filter(|text| !text.is_empty()) {
            modes.set(mode.parse().unwrap(), true);
        }
        modes
    }

    #[test]
    fn the_mode_of_the_highest_priority_that_both_have_is_taken() {
        for (local, partner, mode) in [
            (
                "10half,10full,100half,100full",
                "100half,10full",
                Some("100half"),
            ),
            (
                "10half,10full,100half,100full",
                "10half,10full",
                Some("10full"),
            ),
            ("100full,1000half", "100full,1000half", Some("1000half")),
            ("1000half,1000full", "1000half,1000full", Some("1000full")),
            (
                "1000full,2500full,5000full",
                "1000full,2500full",
                Some("2500full"),
            ),
            (
                "5000full,10000full",
                "1000full,5000full,10000full",
                Some("10000full"),
            ),
            (
                "25000full,100000full",
                "25000full,40000full",
                Some("25000full"),
            ),
            ("100half", "100full", None),
            ("1000full", "", None),
        ] {
            let side = |text| Advertisement {
                modes: modes(text),
                ..Advertisement::default()
            };
            for (one, other) in [(local, partner), (partner, local)] {
                let agreed = Resolution::of(&side(one), &side(other), (1, 0));
                assert_eq!(
                    agreed.mode,
                    mode.map(|m| m.parse().unwrap()),
                    "{one} {other}"
                );
            }
        }
    }

    #[test]
    fn every_line_of_table_28b_3() {
        // Local PAUSE and ASM_DIR, the partner's; whether this station sends and obeys PAUSE frames.
        let table = [
            ("00", "00", ""),
            ("00", "01", ""),
            ("00", "10", ""),
            ("00", "11", ""),
            ("01", "00", ""),
            ("01", "01", ""),
            ("01", "10", ""),
            ("01", "11", "t"),
            ("10", "00", ""),
            ("10", "01", ""),
            ("10", "10", "tr"),
            ("10", "11", "tr"),
            ("11", "00", ""),
            ("11", "01", "r"),
            ("11", "10", "tr"),
            ("11", "11", "tr"),
        ];
        for duplex in ["full", "half"] {
            let side = |bits: &str| Advertisement {
                modes: modes(&format!("100{duplex}")),
                pause: &bits[..1] == "1",
                asym_pause: &bits[1..] == "1",
                ..Advertisement::default()
            };
            for (local, partner, expected) in table {
                let pause = Resolution::of(&side(local), &side(partner), (0, 1)).pause;
                let full = duplex == "full";
                assert_eq!(
                    pause.transmit,
                    full && expected.contains('t'),
                    "{local} {partner}"
                );
                assert_eq!(
                    pause.receive,
                    full && expected.contains('r'),
                    "{local} {partner}"
                );
            }
        }
    }

    #[test]
    fn every_line_of_table_40_5() {
        let side = |manual, multiport| MasterSlave { manual, multiport };
        let (master, slave) = (Some(true), Some(false));
        for (local, partner, expected) in [
            (side(None, false), side(None, true), Role::Slave),
            (side(None, false), side(master, false), Role::Slave),
            (side(slave, false), side(None, true), Role::Slave),
            (side(slave, false), side(None, false), Role::Slave),
            (side(None, true), side(master, false), Role::Slave),
            (side(slave, false), side(master, false), Role::Slave),
            (side(None, true), side(None, false), Role::Master),
            (side(None, true), side(slave, false), Role::Master),
            (side(master, false), side(None, false), Role::Master),
            (side(master, false), side(None, true), Role::Master),
            (side(None, false), side(slave, false), Role::Master),
            (side(master, false), side(slave, false), Role::Master),
            (side(master, false), side(master, true), Role::Fault),
            (side(slave, true), side(slave, false), Role::Fault),
        ] {
            assert_eq!(
                role(local, partner, (7, 8)),
                expected,
                "{local:?} {partner:?}"
            );
            assert_eq!(
                role(local, partner, (8, 7)),
                expected,
                "{local:?} {partner:?}"
            );
        }
        // Of the same kind: the higher seed is the master.
        for multiport in [false, true] {
            let same = side(None, multiport);
            assert_eq!(role(same, same, (8, 7)), Role::Master);
            assert_eq!(role(same, same, (7, 8)), Role::Slave);
        }
    }

    #[test]
    fn clocks_are_a_question_between_1_and_10_gigabits_only() {
        for (mode, asked) in [
            ("100full", false),
            ("1000half", true),
            ("1000full", true),
            ("2500full", true),
            ("10000full", true),
            ("25000full", false),
        ] {
            let side = Advertisement {
                modes: modes(mode),
                ..Advertisement::default()
            };
            let agreed = Resolution::of(&side, &side, (1, 0));
            assert_eq!(agreed.role.is_some(), asked, "{mode}");
        }
    }
}
