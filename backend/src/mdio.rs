//! The PHY's registers for users: what they name, and what they are shown.

use std::str::FromStr;

use nic_model::phy::Phy;
use nic_model::phy::mdio::Address;
use nic_model::phy::names;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A register and what is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// The MDIO manageable device of Clause 45; none in Clause 22.
    pub mmd: Option<u8>,
    /// The register's number there.
    pub reg: u16,
    /// Its short name, if it has one.
    pub name: Option<String>,
    /// What it is.
    pub about: Option<String>,
    /// Its value.
    pub value: u16,
    /// The value of each of its fields.
    pub fields: Map<String, Value>,
}

impl Shown {
    /// What `phy` has at `address`, which is `value`.
    #[must_use]
    pub fn of(phy: &Phy, address: Address, value: u16) -> Self {
        let register = phy.register(address);
        let fields = register.map_or(&[][..], |register| register.fields);
        Shown {
            mmd: address.mmd,
            reg: address.reg,
            name: register.map(|register| register.name.to_owned()),
            about: register.map(|register| register.about.to_owned()),
            value,
            fields: fields
                .iter()
                .map(|field| (field.name.to_owned(), field.of(value).into()))
                .collect(),
        }
    }

    /// All registers of `phy` that have a name. Nothing is cleared by that.
    #[must_use]
    pub fn all(phy: &Phy) -> Vec<Self> {
        phy.registers()
            .map(|register| Shown::of(phy, register.address, phy.peek(register.address)))
            .collect()
    }

    /// One line for users.
    #[must_use]
    pub fn line(&self) -> String {
        let address = Address {
            mmd: self.mmd,
            reg: self.reg,
        };
        let (address, value) = (address.to_string(), self.value);
        match self.name.as_deref().and_then(names::named) {
            Some(register) => {
                let (name, fields) = (register.name, register.describe(value));
                format!("{address:5} {name:14} {value:#06x}  {fields}")
                    .trim_end()
                    .to_owned()
            }
            None => format!("{address:5} {:14} {value:#06x}", ""),
        }
    }
}

/// A register as users name it: its number, `MMD.NUMBER`, or its short name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named(pub Address);

/// What is wrong with the text of a register or a value.
#[derive(Debug, thiserror::Error)]
pub enum BadText {
    /// It is no register.
    #[error(
        "no such register: use a number (16 or 0x10, up to 31, or any with --mmd), MMD.NUMBER (7.1), or a name that vhost-user-nic mdio dump shows (got {0:?})"
    )]
    Register(String),
    /// It is no value.
    #[error(
        "no such value: use a number up to 65535 (4096 or 0x1000), or names of single bits of that register with commas between (got {0:?})"
    )]
    Value(String),
    /// A name has its device already.
    #[error("--mmd is for registers by number; {0} has its own")]
    Device(Address),
}

/// A number, in hexadecimal with 0x.
fn number(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl FromStr for Named {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Self, BadText> {
        let of_device = || {
            let (mmd, reg) = text.split_once('.')?;
            Some(Address::mmd(mmd.parse().ok()?, number(reg)?))
        };
        let by_name = || names::named(text).map(|register| register.address);
        number(text)
            .map(Address::mii)
            .or_else(of_device)
            .or_else(by_name)
            .map(Named)
            .ok_or_else(|| BadText::Register(text.to_owned()))
    }
}

impl Named {
    /// The address, a number being one of the device `mmd`.
    ///
    /// # Errors
    /// It has a device of its own, or there is no such register.
    pub fn at(self, mmd: Option<u8>) -> Result<Address, BadText> {
        let address = match (self.0.mmd, mmd) {
            (Some(_), Some(_)) => return Err(BadText::Device(self.0)),
            (own, other) => Address {
                mmd: own.or(other),
                reg: self.0.reg,
            },
        };
        if address.is_valid() {
            Ok(address)
        } else {
            Err(BadText::Register(address.to_string()))
        }
    }
}

/// The value `text` of the register at `address`.
///
/// # Errors
/// It is neither a number nor names of bits there.
pub fn value(address: Address, text: &str) -> Result<u16, BadText> {
    number(text)
        .or_else(|| names::flags(address, text).ok())
        .ok_or_else(|| BadText::Value(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic_model::time::Nanos;

    #[test]
    fn registers_are_named_in_several_ways() {
        for (text, mmd, address) in [
            ("0", None, Address::mii(0)),
            ("0x1f", None, Address::mii(31)),
            ("BMSR", None, Address::mii(1)),
            ("7.33", None, Address::mmd(7, 33)),
            ("33", Some(7), Address::mmd(7, 33)),
            ("an-10gbt-stat", None, Address::mmd(7, 33)),
            ("65535", Some(31), Address::mmd(31, 65_535)),
        ] {
            let named: Named = text.parse().unwrap();
            assert_eq!(named.at(mmd).unwrap(), address, "{text}");
        }
        for (text, mmd) in [
            ("32", None),
            ("7.1", Some(7)),
            ("an-ctrl1", Some(7)),
            ("1", Some(32)),
            ("32.1", None),
        ] {
            let named: Named = text.parse().unwrap();
            assert!(named.at(mmd).is_err(), "{text}");
        }
        for text in ["", "65536", "bmxr", "7.", "-1", "7.x", "0x"] {
            assert!(text.parse::<Named>().is_err(), "{text}");
        }
    }

    #[test]
    fn values_are_numbers_or_bits_by_name() {
        let bmcr = Address::mii(0);
        assert_eq!(value(bmcr, "an-enable,an-restart").unwrap(), 0x1200);
        assert_eq!(value(bmcr, "0x1200").unwrap(), 0x1200);
        assert_eq!(value(bmcr, "512").unwrap(), 512);
        for text in ["", "65536", "an-enable,", "link"] {
            assert!(value(bmcr, text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_register_is_shown_with_its_fields() {
        let mut phy = Phy::new("1G".parse().unwrap(), true);
        let bmcr = Shown::of(&phy, Address::mii(0), 0x0140);
        assert_eq!(
            bmcr.line(),
            "0     bmcr           0x0140  full-duplex speed-msb"
        );
        assert_eq!(
            (&bmcr.fields["full-duplex"], &bmcr.fields["reset"]),
            (&1.into(), &0.into())
        );
        let nameless = Shown::of(&phy, Address::mii(31), 5);
        assert_eq!(nameless.line(), "31                   0x0005");
        let all = Shown::all(&phy);
        assert!(all.len() > 20 && all.iter().all(|shown| shown.name.is_some()));
        phy.set_link(Nanos::ZERO, false);
        phy.set_link(Nanos::ZERO, true);
        for _ in 0..2 {
            assert_eq!(Shown::all(&phy)[1].fields["link"], 0, "the latch stays");
        }
    }
}
