//! The registers of Clause 45 (IEEE 802.3, 45.2): PMA/PMD, PCS and auto-negotiation.

use super::autoneg::Family;
use super::mdio::NOBODY;
use super::mii::{
    self, ACKNOWLEDGE, BMCR_ANENABLE, BMCR_ANRESTART, BMCR_LOOPBACK, BMCR_PDOWN, BMCR_RESET, bit,
};
use super::mode::{Duplex, Mode};
use super::resolve::Advertisement;
use super::{Phy, Settings, Speed};
use crate::time::Nanos;

/// PMA/PMD: the transceiver (45.2.1).
pub const PMA: u8 = 1;
/// PCS: coding (45.2.3).
pub const PCS: u8 = 3;
/// Auto-negotiation (45.2.7).
pub const AN: u8 = 7;

/// Registers that several devices have.
const CONTROL_1: u16 = 0;
const STATUS_1: u16 = 1;
const SPEED_ABILITY: u16 = 4;
const CONTROL_2: u16 = 7;
const STATUS_2: u16 = 8;

/// 1.11: abilities beyond those of 1.8; 1.21: 2.5 and 5 Gb/s.
const PMA_EXTENDED: u16 = 11;
const PMA_NG: u16 = 21;
/// 3.32: the state of 10GBASE-R, of its kind, or 10GBASE-T.
const PCS_STATUS_1: u16 = 32;
/// 7.16 to 7.18: what is advertised; 7.19 to 7.21: what the other end says.
const AN_ADVERTISEMENT: u16 = 16;
const AN_PARTNER: u16 = 19;
/// 7.32 and 7.33: 10GBASE-T, with 2.5 and 5 Gb/s.
const AN_10GT_CONTROL: u16 = 32;
const AN_10GT_STATUS: u16 = 33;
/// 7.48 and 7.49: which mode of Clause 73 it is.
const AN_BACKPLANE: u16 = 48;

/// Speeds in the control register: of the PMA/PMD in bits 5 to 2, of the PCS, and the bit of the PMA/PMD's speed ability register
/// (Tables 45-4, 45-6 and 45-236). 10, 100 and 1000 Mb/s are selected as in register 0.
const SPEEDS: [(u32, u16, u16, u16); 12] = [
    (10, 0, 0, 6),
    (100, 0, 0, 5),
    (1_000, 0, 0, 4),
    (2_500, 6, 7, 13),
    (5_000, 7, 8, 14),
    (10_000, 0, 0, 0),
    (25_000, 4, 5, 11),
    (40_000, 2, 3, 8),
    (50_000, 5, 6, 3),
    (100_000, 3, 4, 9),
    (200_000, 8, 9, 12),
    (400_000, 9, 10, 15),
];
const SPEED_LSB: u16 = 1 << 13;
const SPEED_MSB: u16 = 1 << 6;

/// Modes in the second and third word of a Clause 73 page: the word, its bit (Table 73-4), and the bit of 7.48 or 7.49.
const TECHNOLOGIES: [(u32, usize, u16, u16, u16); 10] = [
    (1_000, 1, 5, 48, 1),
    (2_500, 2, 0, 49, 0),
    (5_000, 2, 1, 49, 1),
    (10_000, 1, 7, 48, 3),
    (25_000, 1, 15, 48, 13),
    (40_000, 1, 9, 48, 6),
    (50_000, 2, 2, 49, 2),
    (100_000, 1, 13, 48, 11),
    (200_000, 2, 4, 49, 4),
    (400_000, 2, 7, 49, 7),
];

/// Modes in 7.32, with their bit in 7.33.
const NBASE_T: [(u32, u16, u16); 3] = [(2_500, 7, 5), (5_000, 8, 6), (10_000, 12, 11)];

fn full(mbps: u32) -> Mode {
    Mode::of(mbps, Duplex::Full)
}

/// `said` as a page of Clause 73, in its three words (73.6).
fn page(said: &Advertisement) -> [u16; 3] {
    let mut words = [0; 3];
    // The selector of IEEE 802.3; pause as in Clause 28.
    words[0] = mii::base_page(said) & (1 | 1 << 10 | 1 << 11 | 1 << 13);
    for (mbps, word, at, _, _) in TECHNOLOGIES {
        words[word] |= bit(said.modes.has(full(mbps)), 1 << at);
    }
    words
}

impl Phy {
    /// A register of the device `mmd`.
    pub(super) fn read_mmd(&self, mmd: u8, reg: u16) -> u16 {
        match (mmd, reg) {
            (PMA | PCS | AN, 2) => self.read_mii(mii::PHYID1),
            (PMA | PCS | AN, 3) => self.read_mii(mii::PHYID2),
            // Devices in the package: these three, and Clause 22.
            (PMA | PCS | AN, 5) => 1 | 1 << PMA | 1 << PCS | 1 << AN,
            (PMA, _) => self.read_pma(reg),
            (PCS, _) => self.read_pcs(reg),
            (AN, _) => self.read_an(reg),
            _ => NOBODY,
        }
    }

    /// Writes a register of the device `mmd`.
    pub(super) fn write_mmd(&mut self, now: Nanos, mmd: u8, reg: u16, value: u16) {
        let abilities = self.abilities;
        match (mmd, reg) {
            (PMA | PCS | AN, CONTROL_1) if value & BMCR_RESET != 0 => self.reset(now),
            (PMA, CONTROL_1) => self.change(now, false, |settings, _| {
                settings.power_down = value & BMCR_PDOWN != 0;
                settings.pma_loopback = value & 1 != 0;
                if let Some(speed) = selected(value) {
                    settings.force(speed, settings.forced.duplex, abilities);
                }
            }),
            (PCS, CONTROL_1) => self.change(now, false, |settings, _| {
                settings.power_down = value & BMCR_PDOWN != 0;
                settings.loopback = value & BMCR_LOOPBACK != 0;
            }),
            (AN, CONTROL_1) => {
                let on = value & BMCR_ANENABLE != 0;
                let restart = on && value & BMCR_ANRESTART != 0;
                self.change(now, restart, |settings, _| settings.autoneg = on);
            }
            (AN, reg) => self.change(now, false, |settings, _| {
                settings.advertise(reg, value, abilities.highest());
                settings.advertised.modes = settings.advertised.modes.and(abilities);
            }),
            _ => {}
        }
    }

    fn speed_bits(&self, pick: impl Fn(&(u32, u16, u16, u16)) -> u16) -> u16 {
        let mbps = self.settings.forced.speed.mbps();
        let entry = SPEEDS.iter().find(|entry| entry.0 == mbps);
        match mbps {
            10 => 0,
            100 => SPEED_LSB,
            1_000 => SPEED_MSB,
            _ => SPEED_LSB | SPEED_MSB | entry.map_or(0, pick) << 2,
        }
    }

    fn read_pma(&self, reg: u16) -> u16 {
        let twisted = self.family == Family::TwistedPair;
        let has = |mbps| twisted && self.abilities.has(full(mbps));
        match reg {
            CONTROL_1 => {
                self.speed_bits(|entry| entry.1)
                    | bit(self.settings.power_down, BMCR_PDOWN)
                    | bit(self.settings.pma_loopback, 1)
            }
            STATUS_1 => bit(self.status && !self.latches.pma, 1 << 2) | 1 << 1,
            SPEED_ABILITY => SPEEDS
                .iter()
                .filter(|entry| {
                    self.abilities
                        .iter()
                        .any(|mode| mode.speed.mbps() == entry.0)
                })
                .fold(0, |bits, entry| bits | 1 << entry.3),
            CONTROL_2 if twisted => match self.mode.speed.mbps() {
                10 => 0x0f,
                100 => 0x0e,
                1_000 => 0x0c,
                2_500 => 0x30,
                5_000 => 0x31,
                _ => 0x09,
            },
            // Present; extended abilities; loopback.
            STATUS_2 => 1 << 15 | 1 << 9 | 1,
            PMA_EXTENDED => {
                bit(has(10_000), 1 << 2)
                    | bit(has(1_000), 1 << 5)
                    | bit(has(100), 1 << 7)
                    | bit(has(10), 1 << 8)
                    | bit(has(2_500), 1 << 14)
                    // 10GBASE-KR and 1000BASE-KX.
                    | bit(!twisted, 1 << 4 | 1 << 6)
            }
            PMA_NG => bit(has(2_500), 1) | bit(has(5_000), 1 << 1),
            _ => 0,
        }
    }

    fn read_pcs(&self, reg: u16) -> u16 {
        let link = self.status;
        match reg {
            CONTROL_1 => {
                self.speed_bits(|entry| entry.2)
                    | bit(self.settings.loopback, BMCR_LOOPBACK)
                    | bit(self.settings.power_down, BMCR_PDOWN)
            }
            STATUS_1 => bit(link && !self.latches.pcs, 1 << 2) | 1 << 1,
            SPEED_ABILITY => {
                let has = |mbps, at: u16| bit(self.abilities.has(full(mbps)), 1 << at);
                has(10_000, 0)
                    | has(40_000, 2)
                    | has(100_000, 3)
                    | has(25_000, 4)
                    | has(50_000, 5)
                    | has(2_500, 6)
                    | has(5_000, 7)
                    | has(200_000, 8)
                    | has(400_000, 9)
            }
            STATUS_2 => 1 << 15,
            // The link, and blocks found.
            PCS_STATUS_1 if self.mode.speed.mbps() > 1_000 => bit(link, 1 << 12 | 1),
            _ => 0,
        }
    }

    fn read_an(&self, reg: u16) -> u16 {
        let said = &self.settings.advertised;
        let arbitration = &self.arbitration;
        let twisted = self.family == Family::TwistedPair;
        match reg {
            CONTROL_1 => {
                bit(self.settings.autoneg, BMCR_ANENABLE)
                    | bit(said.modes.reaches(2_500) && twisted, 1 << 13)
            }
            STATUS_1 => {
                let extended = |said: Advertisement| said.modes.reaches(2_500);
                bit(arbitration.parallel_fault, 1 << 9)
                    | bit(twisted && arbitration.heard.is_some_and(extended), 1 << 7)
                    | bit(arbitration.page_received, 1 << 6)
                    | bit(arbitration.complete(), 1 << 5)
                    | bit(self.latches.remote_fault, 1 << 4)
                    | 1 << 3
                    | bit(self.status && !self.latches.an, 1 << 2)
                    | bit(arbitration.partner_negotiates(), 1)
            }
            AN_ADVERTISEMENT if twisted => mii::base_page(said),
            AN_PARTNER if twisted => self.partner_page(),
            AN_ADVERTISEMENT..=18 if !twisted => page(said)[usize::from(reg - AN_ADVERTISEMENT)],
            AN_PARTNER..=21 if !twisted => arbitration.heard.map_or(0, |said| {
                let word = usize::from(reg - AN_PARTNER);
                page(&said)[word] | bit(word == 0, ACKNOWLEDGE)
            }),
            AN_10GT_CONTROL if twisted && self.abilities.reaches(2_500) => {
                let modes = NBASE_T
                    .iter()
                    .map(|&(mbps, at, _)| bit(said.modes.has(full(mbps)), 1 << at));
                modes.fold(0, |bits, bit| bits | bit)
                    | mii::master_slave_bits(said.master_slave) << 13
            }
            AN_10GT_STATUS if twisted && self.abilities.reaches(2_500) => self.nbase_t_status(),
            AN_BACKPLANE | 49 if !twisted => {
                let mode = self.mode.speed.mbps();
                let complete = arbitration.complete();
                let modes = TECHNOLOGIES.iter().map(|&(mbps, _, _, at, bit_of)| {
                    bit(complete && at == reg && mbps == mode, 1 << bit_of)
                });
                modes.fold(bit(reg == AN_BACKPLANE, 1), |bits, bit| bits | bit)
            }
            _ => 0,
        }
    }

    fn nbase_t_status(&self) -> u16 {
        let arbitration = &self.arbitration;
        let heard = arbitration.heard.filter(|_| arbitration.heard_all);
        let modes = heard.map(|said| said.modes).unwrap_or_default();
        let said = NBASE_T
            .iter()
            .map(|&(mbps, _, at)| bit(modes.has(full(mbps)), 1 << at));
        let good = arbitration.complete() && self.mode.speed.mbps() > 1_000;
        said.fold(0, |bits, bit| bits | bit)
            | bit(arbitration.role_fault, 1 << 15)
            | bit(self.is_master(), 1 << 14)
            | bit(good, 1 << 13 | 1 << 12)
    }
}

/// The speed that the PMA/PMD's control register selects.
fn selected(value: u16) -> Option<Speed> {
    let mbps = match (value & SPEED_MSB != 0, value & SPEED_LSB != 0) {
        (false, false) => 10,
        (false, true) => 100,
        (true, false) => 1_000,
        (true, true) => {
            let bits = value >> 2 & 0xf;
            let mut above = SPEEDS.iter().filter(|entry| entry.0 > 1_000);
            above.find(|entry| entry.1 == bits)?.0
        }
    };
    Some(Speed::known(mbps))
}

impl Settings {
    /// Takes `value`, written to the auto-negotiation register `reg`, of a card whose best mode is `highest`.
    fn advertise(&mut self, reg: u16, value: u16, highest: Option<Mode>) {
        let twisted = highest.is_none_or(|mode| mode.speed.mbps() <= 10_000);
        let said = &mut self.advertised;
        match reg {
            AN_ADVERTISEMENT if twisted => self.set_base_page(value, super::Modes::ALL),
            AN_ADVERTISEMENT => {
                said.pause = value & 1 << 10 != 0;
                said.asym_pause = value & 1 << 11 != 0;
                said.remote_fault = value & 1 << 13 != 0;
            }
            17 | 18 if !twisted => {
                let word = usize::from(reg - AN_ADVERTISEMENT);
                for (mbps, in_word, at, _, _) in TECHNOLOGIES {
                    if in_word == word {
                        said.modes.set(full(mbps), value & 1 << at != 0);
                    }
                }
            }
            AN_10GT_CONTROL if twisted && highest.is_some_and(|mode| mode.speed.mbps() > 1_000) => {
                for (mbps, at, _) in NBASE_T {
                    said.modes.set(full(mbps), value & 1 << at != 0);
                }
                said.master_slave = mii::master_slave_of(value >> 13);
            }
            _ => {}
        }
    }
}
