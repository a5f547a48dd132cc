//! The PHY as whoever manages it sees it, in virtual time.

use std::time::Duration;

use super::mdio::Address;
use super::*;

mod links;
mod registers;

pub(super) const SECOND: Nanos = Nanos(1_000_000_000);

pub(super) fn speed(text: &str) -> Speed {
    text.parse().expect("a speed")
}

/// A PHY of `speed` that negotiates with `partner`, plugged in.
pub(super) fn negotiating(speed: &str, partner: &str) -> Phy {
    Phy::with(&PhyConfig {
        speed: speed.parse().expect("a speed"),
        plugged: true,
        autoneg: true,
        partner: partner.parse().expect("a partner"),
    })
}

/// The same that is forced to its speed.
pub(super) fn forced(speed: &str, partner: &str) -> Phy {
    Phy::with(&PhyConfig {
        speed: speed.parse().expect("a speed"),
        plugged: true,
        autoneg: false,
        partner: partner.parse().expect("a partner"),
    })
}

/// Advances from deadline to deadline until `end`, or until `done` says so; when that was.
pub(super) fn run(phy: &mut Phy, end: Nanos, mut done: impl FnMut(&Phy) -> bool) -> Option<Nanos> {
    let mut now = Nanos::ZERO;
    loop {
        if done(phy) {
            return Some(now);
        }
        match phy.next_deadline() {
            Some(due) if due <= end => {
                assert!(due >= now && phy.is_due(due), "time goes on");
                now = due;
                phy.advance(now);
            }
            _ => return None,
        }
    }
}

pub(super) fn mode_of(phy: &Phy) -> String {
    phy.seen().mode.to_string()
}

pub(super) fn millis(ms: u64) -> Nanos {
    Nanos::ZERO + Duration::from_millis(ms)
}

pub(super) fn mii_read(phy: &mut Phy, reg: u16) -> u16 {
    phy.read(Nanos::ZERO, Address::mii(reg))
}
