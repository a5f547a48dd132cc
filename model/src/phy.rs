//! The physical layer: whether there is a link, how fast it is, and how long each frame occupies it.
//!
//! Follows IEEE 802.3: Clause 22 ([`mii`]) and Clause 45 ([`mmd`]) for the registers, Clauses 28, 40, 55 and 73 for
//! auto-negotiation ([`autoneg`], [`resolve`]), 4.4.2 for the line ([`mod@line`]).
//!
//! ```text
//! management -> registers (mii, mmd) -> settings -.
//! cable, link partner -> signal ------------------+-> arbitration -> link, mode, pause -> lines
//! time ------------------------------------------'
//! ```
//!
//! [`Phy::advance`] does what is due, [`Phy::next_deadline`] says when that is. With auto-negotiation off, as it is unless a
//! configuration says otherwise, the link is up as soon as the cable is plugged in, and time has no part in it.
//!
//! Half duplex is negotiated, shown, and has no flow control; but the MAC above has no CSMA/CD, so both directions keep a line of their
//! own.

pub mod autoneg;
pub mod line;
pub mod mdio;
pub mod mii;
pub mod mmd;
pub mod mode;
pub mod names;
pub mod partner;
pub mod resolve;
pub mod speed;

use serde::{Deserialize, Serialize};

use crate::time::Nanos;
use autoneg::{Arbitration, Family, Medium, Signal};
use mdio::Indirect;
use resolve::MasterSlave;

pub use line::{LINE_OVERHEAD, Line, octets_on_line};
pub use mode::{Duplex, Mode, Modes};
pub use partner::LinkPartner;
pub use resolve::{Advertisement, Pause};
pub use speed::{BadSpeed, Speed};

/// No deadline.
const NEVER: Nanos = Nanos(u64::MAX);

/// What a physical layer is made of.
#[derive(Clone, Copy, Debug)]
pub struct PhyConfig {
    /// The highest rate that it can do, and the one that it is forced to without auto-negotiation.
    pub speed: Speed,
    /// Whether the cable is plugged in.
    pub plugged: bool,
    /// Whether it negotiates until somebody says otherwise.
    pub autoneg: bool,
    /// The other end.
    pub partner: LinkPartner,
}

/// Where frames turn that are sent, to be received again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loopback {
    /// In the MAC: the PHY and its link have no part in it.
    Mac,
    /// In the PHY: the other end has no signal (22.2.4.1.2).
    Phy,
}

/// What management has set; the registers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    autoneg: bool,
    /// The mode without auto-negotiation.
    forced: Mode,
    /// The bits that turn the PHY into a loopback: of Clause 22 and of the PCS, and of the PMA.
    loopback: bool,
    pma_loopback: bool,
    power_down: bool,
    isolate: bool,
    collision_test: bool,
    advertised: Advertisement,
    /// The next page to be sent, which is only kept.
    next_page: u16,
}

/// Bits that stay until they are read: whether the link was lost, as each register that shows it has it.
#[derive(Clone, Copy, Debug, Default)]
struct Latches {
    mii: bool,
    pma: bool,
    pcs: bool,
    an: bool,
    remote_fault: bool,
}

/// The physical layer of one port.
#[derive(Debug)]
pub struct Phy {
    /// Whether frames pass.
    link: bool,
    mode: Mode,
    /// From the link partner to us.
    pub rx: Line,
    /// From us to the link partner.
    pub tx: Line,
    /// When time alone changes something.
    due: Nanos,
    pause: Pause,
    /// Whether the registers show a link.
    status: bool,
    family: Family,
    abilities: Modes,
    plugged: bool,
    partner: LinkPartner,
    mac_loopback: bool,
    settings: Settings,
    /// What a reset restores.
    strap: Settings,
    latches: Latches,
    indirect: Indirect,
    arbitration: Arbitration,
}

/// The physical layer's state, at one instant.
#[derive(Clone, Debug, Serialize)]
pub struct PhyStatus {
    /// Half or full duplex.
    pub duplex: &'static str,
    /// Whether it negotiates.
    pub autoneg: bool,
    /// The state of auto-negotiation, by the standard's name.
    pub state: &'static str,
    /// Whether the other end did not negotiate, and was detected by its signal alone.
    pub parallel_detection: bool,
    /// Whether the ends differ in duplex, which neither can know.
    pub duplex_mismatch: bool,
    /// Whether PAUSE frames may be sent.
    pub pause_transmit: bool,
    /// Whether PAUSE frames that come are to be obeyed.
    pub pause_receive: bool,
    /// Where sent frames turn, if they do.
    pub loopback: Option<Loopback>,
    /// The other end.
    pub partner: String,
}

/// What others see of a PHY, and have to hear of when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether frames pass.
    pub link: bool,
    /// The mode; the highest or the last without a link.
    pub mode: Mode,
    /// Flow control.
    pub pause: Pause,
}

impl Phy {
    /// A PHY that does not negotiate, with its link up or down.
    #[must_use]
    pub fn new(speed: Speed, link: bool) -> Self {
        Self::with(&PhyConfig {
            speed,
            plugged: link,
            autoneg: false,
            partner: LinkPartner::Same,
        })
    }

    /// A PHY as `config` says, powered up at the clock's epoch.
    #[must_use]
    pub fn with(config: &PhyConfig) -> Self {
        let speed = config.speed;
        let (family, abilities) = kind(speed);
        let strap = Settings {
            autoneg: config.autoneg,
            forced: Mode::full(speed),
            loopback: false,
            pma_loopback: false,
            power_down: false,
            isolate: false,
            collision_test: false,
            advertised: Advertisement {
                modes: abilities,
                pause: true,
                asym_pause: true,
                remote_fault: false,
                master_slave: MasterSlave::default(),
            },
            next_page: mii::NULL_PAGE,
        };
        let mut phy = Phy {
            link: false,
            mode: Mode::full(speed),
            rx: Line::new(speed),
            tx: Line::new(speed),
            due: NEVER,
            pause: Pause::default(),
            status: false,
            family,
            abilities,
            plugged: config.plugged,
            partner: config.partner,
            mac_loopback: false,
            settings: strap,
            strap,
            latches: Latches::default(),
            indirect: Indirect::default(),
            arbitration: Arbitration::default(),
        };
        let medium = phy.medium();
        phy.arbitration.begin(Nanos::ZERO, &medium);
        phy.arbitration.hurry(Nanos::ZERO, &medium);
        phy.settle();
        phy
    }

    /// Whether there is a link, or a loopback in its place: whether frames pass.
    #[must_use]
    #[inline]
    pub fn link(&self) -> bool {
        self.link
    }

    /// The line rate; without a link, the last one.
    #[must_use]
    pub fn speed(&self) -> Speed {
        self.mode.speed
    }

    /// Half or full duplex; without a link, the last one.
    #[must_use]
    pub fn duplex(&self) -> Duplex {
        self.mode.duplex
    }

    /// Whether flow control was agreed on: to send PAUSE frames, and to obey those that come (IEEE 802.3, annex 28B.2). Neither
    /// without a link, without negotiation ([`Phy::negotiates`]), or in half duplex.
    #[must_use]
    pub fn pause(&self) -> (bool, bool) {
        (self.pause.transmit, self.pause.receive)
    }

    /// Whether auto-negotiation is on: if it is, [`Phy::pause`] says what was agreed on.
    #[must_use]
    pub fn negotiates(&self) -> bool {
        self.settings.autoneg
    }

    /// What others see.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen {
            link: self.link,
            mode: self.mode,
            pause: self.pause,
        }
    }

    /// Where sent frames turn, if they do.
    #[must_use]
    pub fn loopback(&self) -> Option<Loopback> {
        if self.mac_loopback {
            Some(Loopback::Mac)
        } else {
            self.turns().then_some(Loopback::Phy)
        }
    }

    /// Whether [`Phy::advance`] has something to do.
    #[must_use]
    #[inline]
    pub fn is_due(&self, now: Nanos) -> bool {
        self.due <= now
    }

    /// When time alone changes something; `None`: never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        (self.due != NEVER).then_some(self.due)
    }

    /// Does what is due by `now`, each thing as of its own instant.
    pub fn advance(&mut self, now: Nanos) {
        while self.due <= now && self.due != NEVER {
            let medium = self.medium();
            self.arbitration.step(self.due, &medium);
            self.settle();
        }
    }

    /// Plugs the cable in, or pulls it out; returns whether the link changes at once. Without auto-negotiation it does.
    pub fn set_link(&mut self, now: Nanos, plugged: bool) -> bool {
        self.advance(now);
        let before = self.link;
        if std::mem::replace(&mut self.plugged, plugged) != plugged {
            self.signal_changed(now);
        }
        self.link != before
    }

    /// Whether the cable is plugged in.
    #[must_use]
    pub fn is_plugged(&self) -> bool {
        self.plugged
    }

    /// What the transceiver can do.
    #[must_use]
    pub fn abilities(&self) -> Modes {
        self.abilities
    }

    /// Has the line at `speed`, full duplex where that is possible: as the forced mode, or as the only one that is advertised; then a
    /// negotiation begins. Returns whether the transceiver can do it; if not, nothing is changed. Without auto-negotiation a link
    /// whose other end follows goes on without a break, like one whose cable is plugged in ([`Phy::set_link`]).
    pub fn set_speed(&mut self, now: Nanos, speed: Speed) -> bool {
        let modes = self.abilities.and(Modes::that(|mode| mode.speed == speed));
        let Some(mode) = modes.highest() else {
            return false;
        };
        self.change(now, self.settings.autoneg, |settings, _| {
            if settings.autoneg {
                settings.advertised.modes = modes;
            } else {
                settings.forced = mode;
            }
        });
        self.arbitration.hurry(now, &self.medium());
        self.settle();
        true
    }

    /// Plugs the cable into another link partner.
    pub fn set_partner(&mut self, now: Nanos, partner: LinkPartner) {
        let plugged = std::mem::replace(&mut self.plugged, false);
        self.advance(now);
        self.signal_changed(now);
        self.partner = partner;
        self.plugged = plugged;
        self.signal_changed(now);
    }

    /// Has frames turn in the MAC, of which no register knows, or in the PHY, which register 0 shows; or nowhere.
    pub fn set_loopback(&mut self, now: Nanos, at: Option<Loopback>) {
        self.mac_loopback = at == Some(Loopback::Mac);
        self.change(now, false, |settings, _| {
            settings.loopback = at == Some(Loopback::Phy);
            settings.pma_loopback = false;
        });
    }

    /// The other end.
    #[must_use]
    pub fn partner(&self) -> &LinkPartner {
        &self.partner
    }

    /// The state, for users to look at.
    #[must_use]
    pub fn status(&self) -> PhyStatus {
        let resolution = self.arbitration.resolution;
        PhyStatus {
            duplex: self.mode.duplex.name(),
            autoneg: self.settings.autoneg,
            state: self.arbitration.state.name(),
            parallel_detection: resolution.is_some_and(|agreed| agreed.parallel),
            duplex_mismatch: self.mismatch(),
            pause_transmit: self.pause.transmit,
            pause_receive: self.pause.receive,
            loopback: self.loopback(),
            partner: self.partner.to_string(),
        }
    }

    fn mismatch(&self) -> bool {
        let theirs = match self.medium().signal {
            _ if !self.arbitration.link() => return false,
            Signal::Idle(mode) => mode.duplex,
            // Both have agreed, or it has detected us.
            Signal::CodeWords(_) if self.settings.autoneg => return false,
            Signal::CodeWords(_) => Duplex::Half,
            Signal::Silence => return false,
        };
        theirs != self.mode.duplex
    }

    /// Whether the PHY is a loopback.
    fn turns(&self) -> bool {
        let settings = &self.settings;
        !settings.power_down && (settings.loopback || settings.pma_loopback)
    }

    fn medium(&self) -> Medium {
        let forced = (!self.settings.autoneg).then_some(self.settings.forced);
        let cut = !self.plugged || self.settings.power_down || self.turns();
        Medium {
            family: self.family,
            abilities: self.abilities,
            forced,
            local: self.settings.advertised,
            signal: if cut {
                Signal::Silence
            } else {
                Signal::of(&self.partner, self.abilities, forced)
            },
        }
    }

    fn signal_changed(&mut self, now: Nanos) {
        if !self.settings.power_down {
            let medium = self.medium();
            self.arbitration.signal_changed(now, &medium);
            self.arbitration.hurry(now, &medium);
        }
        self.settle();
    }

    /// Restores what the PHY comes up with (22.2.4.1.1).
    fn reset(&mut self, now: Nanos) {
        self.indirect = Indirect::default();
        self.arbitration.halt();
        self.settle();
        self.latches = Latches::default();
        self.arbitration = Arbitration::default();
        self.set_mode(self.strap.forced);
        self.change(now, true, |settings, strap| *settings = *strap);
    }

    /// Changes what management has set; auto-negotiation begins anew if `restart` says so, or if the change asks for it.
    fn change(&mut self, now: Nanos, restart: bool, change: impl FnOnce(&mut Settings, &Settings)) {
        self.advance(now);
        let (before, turned) = (self.settings, self.turns());
        change(&mut self.settings, &self.strap);
        let after = self.settings;
        let medium = self.medium();
        if after.power_down {
            self.arbitration.halt();
        } else if restart
            || before.power_down
            || before.autoneg != after.autoneg
            || !after.autoneg && before.forced != after.forced
        {
            self.arbitration.begin(now, &medium);
        } else if turned != self.turns() {
            self.arbitration.signal_changed(now, &medium);
        }
        self.settle();
    }

    fn set_mode(&mut self, mode: Mode) {
        if mode.speed != self.mode.speed {
            self.rx.set_speed(mode.speed);
            self.tx.set_speed(mode.speed);
        }
        self.mode = mode;
    }

    /// Brings what others see into line with the state.
    fn settle(&mut self) {
        let (settings, arbitration) = (&self.settings, &self.arbitration);
        let (up, turns) = (arbitration.link(), self.turns());
        if !up && !turns && self.status {
            (self.latches.mii, self.latches.pma) = (true, true);
            (self.latches.pcs, self.latches.an) = (true, true);
        }
        self.latches.remote_fault |= arbitration.heard.is_some_and(|said| said.remote_fault);
        self.status = up || turns;
        let agreed = arbitration.resolution.filter(|_| up);
        self.pause = agreed.map(|agreed| agreed.pause).unwrap_or_default();
        let mode = match agreed.and_then(|agreed| agreed.mode) {
            Some(mode) => mode,
            None if !settings.autoneg => settings.forced,
            None if turns => self.abilities.highest().unwrap_or(self.mode),
            None => self.mode,
        };
        self.set_mode(mode);
        self.link = self.mac_loopback || self.status && !self.settings.isolate;
        self.due = self.arbitration.due.unwrap_or(NEVER);
    }
}

/// The transceiver of a card of `speed`, and what it can do.
fn kind(speed: Speed) -> (Family, Modes) {
    if speed.mbps() <= 10_000 {
        let modes = Modes::that(|mode| mode.speed <= speed);
        (Family::TwistedPair, modes)
    } else {
        let modes = |mode: Mode| mode.speed.mbps() >= 1_000 && mode.duplex == Duplex::Full;
        let modes = Modes::that(|mode| modes(mode) && mode.speed <= speed);
        (Family::CopperCable, modes)
    }
}

#[cfg(test)]
mod tests;
