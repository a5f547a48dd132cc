//! The registers of Clause 22 (IEEE 802.3, 22.2.4), with those of auto-negotiation (28.2.4.1, 40.5.1.1).
//!
//! A card of 25 Gb/s or more has those that every PHY has, and 13 and 14, behind which the others are ([`super::mmd`]).

use super::autoneg::Family;
use super::mdio::{Address, NOBODY};
use super::mode::{Duplex, Mode, Modes};
use super::resolve::{Advertisement, MasterSlave, Role};
use super::{Phy, Settings, Speed};
use crate::time::Nanos;

/// Control.
pub const BMCR: u16 = 0;
/// Status.
pub const BMSR: u16 = 1;
/// Identifier, upper half.
pub const PHYID1: u16 = 2;
/// Identifier, lower half.
pub const PHYID2: u16 = 3;
/// Auto-negotiation advertisement.
pub const ANAR: u16 = 4;
/// Auto-negotiation link partner base page ability.
pub const ANLPAR: u16 = 5;
/// Auto-negotiation expansion.
pub const ANER: u16 = 6;
/// Auto-negotiation next page transmit.
pub const ANNPTR: u16 = 7;
/// Auto-negotiation link partner received next page.
pub const ANLPRNPR: u16 = 8;
/// 1000BASE-T control.
pub const GBCR: u16 = 9;
/// 1000BASE-T status.
pub const GBSR: u16 = 10;
/// MMD access control.
pub const MMD_CONTROL: u16 = 13;
/// MMD access address and data.
pub const MMD_DATA: u16 = 14;
/// Extended status.
pub const ESTATUS: u16 = 15;

/// Register 0: resets the PHY, and clears itself.
pub const BMCR_RESET: u16 = 1 << 15;
/// Register 0: the PHY is a loopback.
pub const BMCR_LOOPBACK: u16 = 1 << 14;
/// Register 0: auto-negotiation is on.
pub const BMCR_ANENABLE: u16 = 1 << 12;
/// Register 0: no power.
pub const BMCR_PDOWN: u16 = 1 << 11;
/// Register 0: cut off from the MAC.
pub const BMCR_ISOLATE: u16 = 1 << 10;
/// Register 0: begins negotiation anew, and clears itself.
pub const BMCR_ANRESTART: u16 = 1 << 9;
/// Register 0: full duplex, if it is forced.
pub const BMCR_FULLDPLX: u16 = 1 << 8;
const BMCR_CTST: u16 = 1 << 7;
/// Register 0: the speed, if it is forced: neither 10, the lower 100, the upper 1000 Mb/s, both: register 1.0 says it.
const SPEED_LSB: u16 = 1 << 13;
const SPEED_MSB: u16 = 1 << 6;

/// Register 1: negotiation is over, and the link is there.
pub const BMSR_ANEGCOMPLETE: u16 = 1 << 5;
/// Register 1: the other end has a fault; stays until it is read.
pub const BMSR_RFAULT: u16 = 1 << 4;
/// Register 1: there is a link; that there was none stays until it is read.
pub const BMSR_LSTATUS: u16 = 1 << 2;

/// Register 6: parallel detection failed.
pub const ANER_PDF: u16 = 1 << 4;
/// Register 6: a page has come.
pub const ANER_PAGE: u16 = 1 << 1;
/// Register 6: the other end negotiates.
pub const ANER_LPANABLE: u16 = 1;

/// The null message page (annex 28C.1), which is what register 7 comes up with.
pub(super) const NULL_PAGE: u16 = 0x2001;

/// Identifiers: an organisation's that nobody is given (52-54-00, locally administered), the model, revision 0.
const ID1: u16 = 0x4950;
const MODEL_1G: u16 = 1 << 4;
const MODEL_10G: u16 = 2 << 4;
const MODEL_CABLE: u16 = 3 << 4;

/// Modes in a base page, by bit (28.2.1.2, annex 28B.2).
const BASE_PAGE: [(u16, u32, Duplex); 4] = [
    (5, 10, Duplex::Half),
    (6, 10, Duplex::Full),
    (7, 100, Duplex::Half),
    (8, 100, Duplex::Full),
];
/// The selector of IEEE 802.3.
const SELECTOR: u16 = 1;
const PAUSE: u16 = 1 << 10;
const ASM_DIR: u16 = 1 << 11;
const EXTENDED_NEXT_PAGE: u16 = 1 << 12;
const REMOTE_FAULT: u16 = 1 << 13;
pub(super) const ACKNOWLEDGE: u16 = 1 << 14;
const NEXT_PAGE: u16 = 1 << 15;

const HALF_1000: Mode = Mode::of(1_000, Duplex::Half);
const FULL_1000: Mode = Mode::of(1_000, Duplex::Full);

pub(super) fn bit(set: bool, bit: u16) -> u16 {
    if set { bit } else { 0 }
}

/// `said` as the base page of Clause 28.
pub(super) fn base_page(said: &Advertisement) -> u16 {
    let modes = BASE_PAGE
        .iter()
        .map(|&(at, mbps, duplex)| bit(said.modes.has(Mode::of(mbps, duplex)), 1 << at));
    modes.fold(SELECTOR, |page, bit| page | bit)
        | bit(said.pause, PAUSE)
        | bit(said.asym_pause, ASM_DIR)
        | bit(said.modes.reaches(2_500), EXTENDED_NEXT_PAGE)
        | bit(said.remote_fault, REMOTE_FAULT)
        | bit(said.modes.reaches(1_000), NEXT_PAGE)
}

impl Settings {
    /// Takes the base page `page` for what is advertised, as far as `abilities` go. Whether pages follow is settled by the rest.
    pub(super) fn set_base_page(&mut self, page: u16, abilities: Modes) {
        let said = &mut self.advertised;
        for (at, mbps, duplex) in BASE_PAGE {
            let mode = Mode::of(mbps, duplex);
            said.modes
                .set(mode, page & 1 << at != 0 && abilities.has(mode));
        }
        said.pause = page & PAUSE != 0;
        said.asym_pause = page & ASM_DIR != 0;
        said.remote_fault = page & REMOTE_FAULT != 0;
    }

    /// Takes `mode` for the forced one, as far as `abilities` go.
    pub(super) fn force(&mut self, speed: Speed, duplex: Duplex, abilities: Modes) {
        let wanted = Mode { speed, duplex };
        let other = Mode::full(speed);
        if let Some(mode) = [wanted, other]
            .into_iter()
            .find(|&mode| abilities.has(mode))
        {
            self.forced = mode;
        }
    }
}

/// Who clocks the line, as bits 12, 11 and 10 of register 9; two and one more to the left in 7.32.
pub(super) fn master_slave_bits(said: MasterSlave) -> u16 {
    bit(said.manual.is_some(), 1 << 2)
        | bit(said.manual == Some(true), 1 << 1)
        | bit(said.multiport, 1)
}

/// The reverse.
pub(super) fn master_slave_of(bits: u16) -> MasterSlave {
    MasterSlave {
        manual: (bits & 1 << 2 != 0).then_some(bits & 1 << 1 != 0),
        multiport: bits & 1 != 0,
    }
}

impl Phy {
    /// A register of Clause 22 other than 14.
    pub(super) fn read_mii(&self, reg: u16) -> u16 {
        let twisted = self.family == Family::TwistedPair;
        match reg {
            BMCR => self.control(),
            BMSR => self.status_register(),
            PHYID1 => ID1,
            PHYID2 => match self.family {
                Family::CopperCable => MODEL_CABLE,
                Family::TwistedPair if self.abilities.reaches(2_500) => MODEL_10G,
                Family::TwistedPair => MODEL_1G,
            },
            ANAR if twisted => base_page(&self.settings.advertised),
            ANLPAR if twisted => self.partner_page(),
            ANER if twisted => self.expansion(),
            ANNPTR if twisted => self.settings.next_page,
            ANLPRNPR if twisted => bit(self.arbitration.heard_all, NULL_PAGE),
            GBCR if self.has_gigabit() => self.gigabit_control(),
            GBSR if self.has_gigabit() => self.gigabit_status(),
            MMD_CONTROL => self.indirect.control,
            ESTATUS if self.has_gigabit() => {
                bit(self.abilities.has(FULL_1000), 1 << 13)
                    | bit(self.abilities.has(HALF_1000), 1 << 12)
            }
            4..=12 | 15..=31 => 0,
            _ => NOBODY,
        }
    }

    /// Writes a register of Clause 22 other than 13 and 14.
    pub(super) fn write_mii(&mut self, now: Nanos, reg: u16, value: u16) {
        let (abilities, twisted) = (self.abilities, self.family == Family::TwistedPair);
        match reg {
            BMCR => self.write_control(now, value),
            ANAR if twisted => self.change(now, false, |settings, _| {
                settings.set_base_page(value, abilities);
            }),
            ANNPTR if twisted => self.settings.next_page = value & !ACKNOWLEDGE,
            GBCR if self.has_gigabit() => self.change(now, false, |settings, _| {
                let said = &mut settings.advertised;
                said.master_slave = master_slave_of(value >> 10);
                said.modes.set(FULL_1000, value & 1 << 9 != 0);
                let half = value & 1 << 8 != 0 && abilities.has(HALF_1000);
                said.modes.set(HALF_1000, half);
            }),
            _ => {}
        }
    }

    /// Clears what the read of `address` clears.
    pub(super) fn latches_read(&mut self, address: Address) {
        match (address.mmd, address.reg) {
            (None, BMSR) => self.latches.mii = false,
            (Some(1), 1) => self.latches.pma = false,
            (Some(3), 1) => self.latches.pcs = false,
            (Some(7), 1) => {
                self.latches.an = false;
                self.arbitration.clear_latches();
            }
            (None, ANER) => self.arbitration.clear_latches(),
            (None, GBSR) | (Some(7), 33) => self.arbitration.role_fault = false,
            _ => {}
        }
        if matches!((address.mmd, address.reg), (None, BMSR) | (Some(7), 1)) {
            self.latches.remote_fault = false;
            self.settle();
        }
    }

    fn has_gigabit(&self) -> bool {
        self.family == Family::TwistedPair && self.abilities.has(FULL_1000)
    }

    fn control(&self) -> u16 {
        let settings = &self.settings;
        bit(settings.loopback, BMCR_LOOPBACK)
            | bit(settings.autoneg, BMCR_ANENABLE)
            | bit(settings.power_down, BMCR_PDOWN)
            | bit(settings.isolate, BMCR_ISOLATE)
            | bit(settings.forced.duplex == Duplex::Full, BMCR_FULLDPLX)
            | bit(settings.collision_test, BMCR_CTST)
            | match settings.forced.speed.mbps() {
                10 => 0,
                100 => SPEED_LSB,
                1_000 => SPEED_MSB,
                _ => SPEED_LSB | SPEED_MSB,
            }
    }

    fn write_control(&mut self, now: Nanos, value: u16) {
        if value & BMCR_RESET != 0 {
            return self.reset(now);
        }
        let abilities = self.abilities;
        let restart = value & BMCR_ANRESTART != 0 && value & BMCR_ANENABLE != 0;
        self.change(now, restart, |settings, _| {
            settings.loopback = value & BMCR_LOOPBACK != 0;
            settings.autoneg = value & BMCR_ANENABLE != 0;
            settings.power_down = value & BMCR_PDOWN != 0;
            settings.isolate = value & BMCR_ISOLATE != 0;
            settings.collision_test = value & BMCR_CTST != 0;
            let duplex = if value & BMCR_FULLDPLX != 0 {
                Duplex::Full
            } else {
                Duplex::Half
            };
            let speed = match (value & SPEED_MSB != 0, value & SPEED_LSB != 0) {
                (false, false) => 10,
                (false, true) => 100,
                (true, false) => 1_000,
                (true, true) => return,
            };
            settings.force(Speed::known(speed), duplex, abilities);
        });
    }

    fn status_register(&self) -> u16 {
        let has = |mbps, duplex| {
            self.family == Family::TwistedPair && self.abilities.has(Mode::of(mbps, duplex))
        };
        bit(has(100, Duplex::Full), 1 << 14)
            | bit(has(100, Duplex::Half), 1 << 13)
            | bit(has(10, Duplex::Full), 1 << 12)
            | bit(has(10, Duplex::Half), 1 << 11)
            // Extended status, preamble suppression, ability to negotiate, extended capability.
            | bit(self.has_gigabit(), 1 << 8)
            | 1 << 6
            | bit(self.arbitration.complete(), BMSR_ANEGCOMPLETE)
            | bit(self.latches.remote_fault, BMSR_RFAULT)
            | 1 << 3
            | bit(self.status && !self.latches.mii, BMSR_LSTATUS)
            | 1
    }

    /// What the other end said, or what was detected of it (28.2.4.1.4).
    pub(super) fn partner_page(&self) -> u16 {
        if let Some(said) = &self.arbitration.heard {
            return base_page(said) | ACKNOWLEDGE;
        }
        let detected = self.arbitration.resolution.filter(|agreed| agreed.parallel);
        let mut said = Advertisement::default();
        match detected.and_then(|agreed| agreed.mode) {
            Some(mode) => {
                said.modes.set(mode, true);
                base_page(&said) & !SELECTOR
            }
            None => 0,
        }
    }

    fn expansion(&self) -> u16 {
        let arbitration = &self.arbitration;
        let pages = arbitration
            .heard
            .is_some_and(|said| said.modes.reaches(1_000));
        // The place for next pages is told, and it is register 8.
        1 << 6
            | 1 << 5
            | bit(arbitration.parallel_fault, ANER_PDF)
            | bit(pages, 1 << 3)
            | bit(self.abilities.reaches(1_000), 1 << 2)
            | bit(arbitration.page_received, ANER_PAGE)
            | bit(arbitration.partner_negotiates(), ANER_LPANABLE)
    }

    fn gigabit_control(&self) -> u16 {
        let said = &self.settings.advertised;
        master_slave_bits(said.master_slave) << 10
            | bit(said.modes.has(FULL_1000), 1 << 9)
            | bit(said.modes.has(HALF_1000), 1 << 8)
    }

    fn gigabit_status(&self) -> u16 {
        let heard = self
            .arbitration
            .heard
            .filter(|_| self.arbitration.heard_all);
        let modes = heard.map(|said| said.modes).unwrap_or_default();
        let good = self.arbitration.complete() && self.mode.speed.mbps() == 1_000;
        bit(self.arbitration.role_fault, 1 << 15)
            | bit(self.is_master(), 1 << 14)
            | bit(good, 1 << 13 | 1 << 12)
            | bit(modes.has(FULL_1000), 1 << 11)
            | bit(modes.has(HALF_1000), 1 << 10)
    }

    /// Whether this end clocks the line.
    pub(super) fn is_master(&self) -> bool {
        let role = self.arbitration.resolution.and_then(|agreed| agreed.role);
        role == Some(Role::Master)
    }
}
