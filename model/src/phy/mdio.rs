//! The management interface: reads and writes of registers, of Clause 22 and of Clause 45, and the way from one to the other
//! (IEEE 802.3, 22.2.4.3.11 and annex 22D).

use std::fmt;

use super::{Phy, mii};
use crate::time::Nanos;

/// Where a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The MDIO manageable device of Clause 45, 0 to 31; `None`: a register of Clause 22.
    pub mmd: Option<u8>,
    /// Its number there: up to 31 in Clause 22.
    pub reg: u16,
}

impl Address {
    /// A register of Clause 22.
    #[must_use]
    pub const fn mii(reg: u16) -> Self {
        Address { mmd: None, reg }
    }

    /// A register of Clause 45.
    #[must_use]
    pub const fn mmd(mmd: u8, reg: u16) -> Self {
        Address {
            mmd: Some(mmd),
            reg,
        }
    }

    /// Whether there can be such a register.
    #[must_use]
    pub fn is_valid(self) -> bool {
        match self.mmd {
            Some(mmd) => mmd < 32,
            None => self.reg < 32,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mmd {
            Some(mmd) => write!(f, "{mmd}.{}", self.reg),
            None => write!(f, "{}", self.reg),
        }
    }
}

/// Registers 13 and 14, behind which those of Clause 45 are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Indirect {
    pub(super) control: u16,
    /// The address register of each manageable device.
    pub(super) addresses: [u16; 32],
}

/// Register 13: what register 14 is for.
const FUNCTION_ADDRESS: u16 = 0;
const FUNCTION_DATA: u16 = 1;
const FUNCTION_INCREMENT: u16 = 2;

/// What nobody drives reads as ones (22.2.4.4.3).
pub(super) const NOBODY: u16 = 0xffff;

impl Phy {
    /// Reads a register at `now`, which clears the bits that wait to be read.
    pub fn read(&mut self, now: Nanos, address: Address) -> u16 {
        self.advance(now);
        if address == Address::mii(mii::MMD_DATA) {
            return self.read_indirect(now);
        }
        let value = self.peek(address);
        self.latches_read(address);
        value
    }

    /// What a read would give, without its effects. Register 14 shows the address, or what is there.
    #[must_use]
    pub fn peek(&self, address: Address) -> u16 {
        match address {
            Address {
                mmd: None,
                reg: mii::MMD_DATA,
            } => match self.indirect.control >> 14 {
                FUNCTION_ADDRESS => self.indirect.addresses[self.device()],
                _ => self.peek(self.behind()),
            },
            Address { mmd: None, reg } => self.read_mii(reg),
            Address {
                mmd: Some(mmd),
                reg,
            } => self.read_mmd(mmd, reg),
        }
    }

    /// Writes a register at `now`. Bits that cannot be written, or not so, keep their value.
    pub fn write(&mut self, now: Nanos, address: Address, value: u16) {
        self.advance(now);
        match address {
            Address {
                mmd: None,
                reg: mii::MMD_CONTROL,
            } => self.indirect.control = value & 0xc01f,
            Address {
                mmd: None,
                reg: mii::MMD_DATA,
            } => self.write_indirect(now, value),
            Address { mmd: None, reg } => self.write_mii(now, reg, value),
            Address {
                mmd: Some(mmd),
                reg,
            } => self.write_mmd(now, mmd, reg, value),
        }
    }

    /// The device that register 13 names.
    fn device(&self) -> usize {
        usize::from(self.indirect.control & 0x1f)
    }

    /// The register that register 14 stands for.
    fn behind(&self) -> Address {
        let device = self.device();
        Address::mmd(device as u8, self.indirect.addresses[device])
    }

    fn read_indirect(&mut self, now: Nanos) -> u16 {
        let device = self.device();
        let function = self.indirect.control >> 14;
        if function == FUNCTION_ADDRESS {
            return self.indirect.addresses[device];
        }
        let value = self.read(now, self.behind());
        if function == FUNCTION_INCREMENT {
            self.increment(device);
        }
        value
    }

    fn write_indirect(&mut self, now: Nanos, value: u16) {
        let device = self.device();
        match self.indirect.control >> 14 {
            FUNCTION_ADDRESS => self.indirect.addresses[device] = value,
            function => {
                // A reset by way of it resets this, too.
                let behind = self.behind();
                if function != FUNCTION_DATA {
                    self.increment(device);
                }
                self.write(now, behind, value);
            }
        }
    }

    fn increment(&mut self, device: usize) {
        let address = &mut self.indirect.addresses[device];
        *address = address.wrapping_add(1);
    }
}
