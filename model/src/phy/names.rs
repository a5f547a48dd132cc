//! The names of registers and of their fields, as IEEE 802.3 and Linux's `mii.h` and `mdio.h` have them, for users to read.

use super::Phy;
use super::autoneg::Family;
use super::mdio::Address;

/// A field: its name, its highest bit and its lowest.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    high: u8,
    low: u8,
}

impl Field {
    /// Its value in a register of `value`.
    #[must_use]
    pub fn of(&self, value: u16) -> u16 {
        let width = self.high - self.low + 1;
        (value >> self.low) & (((1u32 << width) - 1) as u16)
    }

    /// Its bit, if it is a single one.
    #[must_use]
    pub fn bit(&self) -> Option<u16> {
        (self.high == self.low).then_some(1 << self.low)
    }
}

/// Which cards have a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Every,
    TwistedPair,
    /// From 1 Gb/s on.
    Gigabit,
    /// From 2.5 Gb/s on.
    MultiGigabit,
    CopperCable,
}

/// A register.
#[derive(Debug)]
pub struct Register {
    /// Where it is.
    pub address: Address,
    /// Its short name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its fields, the highest first; bits that belong to none are reserved.
    pub fields: &'static [Field],
    on: On,
}

/// Fields, the highest first: a name with its bit, or with its highest and lowest.
macro_rules! fields {
    ($($name:literal $high:literal $(- $low:literal)?),* $(,)?) => {
        &[$(Field { name: $name, high: $high, low: fields!(@low $high $($low)?) }),*]
    };
    (@low $high:literal) => { $high };
    (@low $high:literal $low:literal) => { $low };
}

const CONTROL_FIELDS: &[Field] = fields![
    "reset" 15, "speed-lsb" 13, "low-power" 11, "speed-msb" 6, "speed" 5 - 2, "pma-loopback" 0,
];
const PCS_CONTROL_FIELDS: &[Field] = fields![
    "reset" 15, "loopback" 14, "speed-lsb" 13, "low-power" 11, "speed-msb" 6, "speed" 5 - 2,
];
const STATUS_FIELDS: &[Field] = fields!["fault" 7, "link" 2, "low-power-ability" 1];
const PACKAGE_FIELDS: &[Field] = fields!["an" 7, "pcs" 3, "pma" 1, "clause22" 0];
const BASE_PAGE_FIELDS: &[Field] = fields![
    "next-page" 15, "ack" 14, "remote-fault" 13, "extended-next-page" 12, "asm-dir" 11, "pause" 10, "100t4" 9, "100full" 8,
    "100half" 7, "10full" 6, "10half" 5, "selector" 4 - 0,
];
const PAGE_1_FIELDS: &[Field] = fields![
    "next-page" 15, "ack" 14, "remote-fault" 13, "asm-dir" 11, "pause" 10, "echoed-nonce" 9 - 5, "selector" 4 - 0,
];
const PAGE_2_FIELDS: &[Field] = fields![
    "25gbase-r" 15, "25gbase-r-s" 14, "100gbase-cr4" 13, "100gbase-kr4" 12, "100gbase-kp4" 11, "100gbase-cr10" 10,
    "40gbase-cr4" 9, "40gbase-kr4" 8, "10gbase-kr" 7, "10gbase-kx4" 6, "1000base-kx" 5, "nonce" 4 - 0,
];
const PAGE_3_FIELDS: &[Field] = fields![
    "fec" 15 - 12, "400gbase-cr4" 7, "200gbase-cr2" 6, "100gbase-cr1" 5, "200gbase-cr4" 4, "100gbase-cr2" 3, "50gbase-cr" 2,
    "5gbase-kr" 1, "2.5gbase-kx" 0,
];

const fn register(
    address: Address,
    on: On,
    name: &'static str,
    about: &'static str,
    fields: &'static [Field],
) -> Register {
    Register {
        address,
        name,
        about,
        fields,
        on,
    }
}

const fn mii(reg: u16) -> Address {
    Address::mii(reg)
}

const fn mmd(mmd: u8, reg: u16) -> Address {
    Address::mmd(mmd, reg)
}

/// All registers that have a name.
static REGISTERS: [Register; 49] = [
    register(
        mii(0),
        On::Every,
        "bmcr",
        "control",
        fields![
            "reset" 15, "loopback" 14, "speed-lsb" 13, "an-enable" 12, "power-down" 11, "isolate" 10, "an-restart" 9, "full-duplex" 8,
            "collision-test" 7, "speed-msb" 6,
        ],
    ),
    register(
        mii(1),
        On::Every,
        "bmsr",
        "status",
        fields![
            "100t4" 15, "100full" 14, "100half" 13, "10full" 12, "10half" 11, "extended-status" 8, "preamble-suppression" 6,
            "an-complete" 5, "remote-fault" 4, "an-ability" 3, "link" 2, "jabber" 1, "extended" 0,
        ],
    ),
    register(
        mii(2),
        On::Every,
        "phyid1",
        "identifier, upper half",
        fields!["oui" 15 - 0],
    ),
    register(
        mii(3),
        On::Every,
        "phyid2",
        "identifier, lower half",
        fields!["oui" 15 - 10, "model" 9 - 4, "revision" 3 - 0],
    ),
    register(
        mii(4),
        On::TwistedPair,
        "anar",
        "auto-negotiation advertisement",
        BASE_PAGE_FIELDS,
    ),
    register(
        mii(5),
        On::TwistedPair,
        "anlpar",
        "link partner ability",
        BASE_PAGE_FIELDS,
    ),
    register(
        mii(6),
        On::TwistedPair,
        "aner",
        "auto-negotiation expansion",
        fields![
            "next-page-location-able" 6, "next-page-location" 5, "parallel-detection-fault" 4, "lp-next-page" 3, "next-page" 2,
            "page-received" 1, "lp-an-able" 0,
        ],
    ),
    register(
        mii(7),
        On::TwistedPair,
        "annptr",
        "next page to send",
        fields![
            "next-page" 15, "message-page" 13, "ack2" 12, "toggle" 11, "code" 10 - 0,
        ],
    ),
    register(
        mii(8),
        On::TwistedPair,
        "anlprnpr",
        "next page received",
        fields![
            "next-page" 15, "ack" 14, "message-page" 13, "ack2" 12, "toggle" 11, "code" 10 - 0,
        ],
    ),
    register(
        mii(9),
        On::Gigabit,
        "gbcr",
        "1000BASE-T control",
        fields![
            "test-mode" 15 - 13, "manual-master-slave" 12, "master" 11, "multiport" 10, "1000full" 9, "1000half" 8,
        ],
    ),
    register(
        mii(10),
        On::Gigabit,
        "gbsr",
        "1000BASE-T status",
        fields![
            "master-slave-fault" 15, "master" 14, "local-receiver" 13, "remote-receiver" 12, "lp-1000full" 11, "lp-1000half" 10,
            "idle-errors" 7 - 0,
        ],
    ),
    register(
        mii(13),
        On::Every,
        "mmdctrl",
        "MMD access control",
        fields!["function" 15 - 14, "device" 4 - 0],
    ),
    register(
        mii(14),
        On::Every,
        "mmddata",
        "MMD access address and data",
        fields!["value" 15 - 0],
    ),
    register(
        mii(15),
        On::Gigabit,
        "estatus",
        "extended status",
        fields![
            "1000x-full" 15, "1000x-half" 14, "1000t-full" 13, "1000t-half" 12,
        ],
    ),
    register(
        mmd(1, 0),
        On::Every,
        "pma-ctrl1",
        "PMA/PMD control 1",
        CONTROL_FIELDS,
    ),
    register(
        mmd(1, 1),
        On::Every,
        "pma-stat1",
        "PMA/PMD status 1",
        STATUS_FIELDS,
    ),
    register(
        mmd(1, 2),
        On::Every,
        "pma-id1",
        "PMA/PMD identifier, upper half",
        fields!["oui" 15 - 0],
    ),
    register(
        mmd(1, 3),
        On::Every,
        "pma-id2",
        "PMA/PMD identifier, lower half",
        fields!["oui" 15 - 10, "model" 9 - 4, "revision" 3 - 0],
    ),
    register(
        mmd(1, 4),
        On::Every,
        "pma-speed",
        "PMA/PMD speed ability",
        fields![
            "400g" 15, "5g" 14, "2.5g" 13, "200g" 12, "25g" 11, "100g" 9, "40g" 8, "10m" 6, "100m" 5, "1g" 4, "50g" 3, "10g" 0,
        ],
    ),
    register(
        mmd(1, 5),
        On::Every,
        "pma-devs",
        "devices in package",
        PACKAGE_FIELDS,
    ),
    register(
        mmd(1, 7),
        On::TwistedPair,
        "pma-ctrl2",
        "PMA/PMD control 2",
        fields!["type" 6 - 0],
    ),
    register(
        mmd(1, 8),
        On::Every,
        "pma-stat2",
        "PMA/PMD status 2",
        fields![
            "present" 15 - 14, "extended-abilities" 9, "loopback-ability" 0,
        ],
    ),
    register(
        mmd(1, 11),
        On::Every,
        "pma-extable",
        "PMA/PMD extended ability",
        fields![
            "2.5g-5gbase-t" 14, "10base-t" 8, "100base-tx" 7, "1000base-kx" 6, "1000base-t" 5, "10gbase-kr" 4, "10gbase-kx4" 3,
            "10gbase-t" 2,
        ],
    ),
    register(
        mmd(1, 21),
        On::MultiGigabit,
        "pma-ng-extable",
        "2.5G/5G PMA/PMD extended ability",
        fields!["5gbase-t" 1, "2.5gbase-t" 0],
    ),
    register(
        mmd(3, 0),
        On::Every,
        "pcs-ctrl1",
        "PCS control 1",
        PCS_CONTROL_FIELDS,
    ),
    register(
        mmd(3, 1),
        On::Every,
        "pcs-stat1",
        "PCS status 1",
        STATUS_FIELDS,
    ),
    register(
        mmd(3, 2),
        On::Every,
        "pcs-id1",
        "PCS identifier, upper half",
        fields!["oui" 15 - 0],
    ),
    register(
        mmd(3, 3),
        On::Every,
        "pcs-id2",
        "PCS identifier, lower half",
        fields!["oui" 15 - 10, "model" 9 - 4, "revision" 3 - 0],
    ),
    register(
        mmd(3, 4),
        On::Every,
        "pcs-speed",
        "PCS speed ability",
        fields![
            "400g" 9, "200g" 8, "5g" 7, "2.5g" 6, "50g" 5, "25g" 4, "100g" 3, "40g" 2, "10g" 0,
        ],
    ),
    register(
        mmd(3, 5),
        On::Every,
        "pcs-devs",
        "devices in package",
        PACKAGE_FIELDS,
    ),
    register(
        mmd(3, 8),
        On::Every,
        "pcs-stat2",
        "PCS status 2",
        fields!["present" 15 - 14],
    ),
    register(
        mmd(3, 32),
        On::Every,
        "pcs-br-stat1",
        "10GBASE-R/-T PCS status 1",
        fields!["link" 12, "high-ber" 1, "block-lock" 0],
    ),
    register(
        mmd(7, 0),
        On::Every,
        "an-ctrl1",
        "auto-negotiation control",
        fields![
            "reset" 15, "extended-next-page" 13, "an-enable" 12, "an-restart" 9,
        ],
    ),
    register(
        mmd(7, 1),
        On::Every,
        "an-stat1",
        "auto-negotiation status",
        fields![
            "parallel-detection-fault" 9, "extended-next-page" 7, "page-received" 6, "an-complete" 5, "remote-fault" 4, "an-ability" 3,
            "link" 2, "lp-an-able" 0,
        ],
    ),
    register(
        mmd(7, 2),
        On::Every,
        "an-id1",
        "auto-negotiation identifier, upper half",
        fields!["oui" 15 - 0],
    ),
    register(
        mmd(7, 3),
        On::Every,
        "an-id2",
        "auto-negotiation identifier, lower half",
        fields!["oui" 15 - 10, "model" 9 - 4, "revision" 3 - 0],
    ),
    register(
        mmd(7, 5),
        On::Every,
        "an-devs",
        "devices in package",
        PACKAGE_FIELDS,
    ),
    register(
        mmd(7, 16),
        On::TwistedPair,
        "an-adv",
        "auto-negotiation advertisement",
        BASE_PAGE_FIELDS,
    ),
    register(
        mmd(7, 16),
        On::CopperCable,
        "an-adv1",
        "auto-negotiation advertisement, bits 15 to 0",
        PAGE_1_FIELDS,
    ),
    register(
        mmd(7, 17),
        On::CopperCable,
        "an-adv2",
        "auto-negotiation advertisement, bits 31 to 16",
        PAGE_2_FIELDS,
    ),
    register(
        mmd(7, 18),
        On::CopperCable,
        "an-adv3",
        "auto-negotiation advertisement, bits 47 to 32",
        PAGE_3_FIELDS,
    ),
    register(
        mmd(7, 19),
        On::TwistedPair,
        "an-lpa",
        "link partner ability",
        BASE_PAGE_FIELDS,
    ),
    register(
        mmd(7, 19),
        On::CopperCable,
        "an-lpa1",
        "link partner ability, bits 15 to 0",
        PAGE_1_FIELDS,
    ),
    register(
        mmd(7, 20),
        On::CopperCable,
        "an-lpa2",
        "link partner ability, bits 31 to 16",
        PAGE_2_FIELDS,
    ),
    register(
        mmd(7, 21),
        On::CopperCable,
        "an-lpa3",
        "link partner ability, bits 47 to 32",
        PAGE_3_FIELDS,
    ),
    register(
        mmd(7, 32),
        On::MultiGigabit,
        "an-10gbt-ctrl",
        "10GBASE-T control",
        fields![
            "manual-master-slave" 15, "master" 14, "multiport" 13, "10g" 12, "5g" 8, "2.5g" 7,
        ],
    ),
    register(
        mmd(7, 33),
        On::MultiGigabit,
        "an-10gbt-stat",
        "10GBASE-T status",
        fields![
            "master-slave-fault" 15, "master" 14, "local-receiver" 13, "remote-receiver" 12, "lp-10g" 11, "lp-5g" 6, "lp-2.5g" 5,
        ],
    ),
    register(
        mmd(7, 48),
        On::CopperCable,
        "an-bp-stat",
        "backplane Ethernet, BASE-R copper status",
        fields![
            "25gbase-r" 13, "25gbase-r-s" 12, "100gbase-cr4" 11, "100gbase-kr4" 10, "100gbase-kp4" 9, "100gbase-cr10" 8, "40gbase-cr4" 6,
            "40gbase-kr4" 5, "10gbase-kr" 3, "10gbase-kx4" 2, "1000base-kx" 1, "an-ability" 0,
        ],
    ),
    register(
        mmd(7, 49),
        On::CopperCable,
        "an-bp-stat2",
        "backplane Ethernet, BASE-R copper status 2",
        fields![
            "400gbase-cr4" 7, "200gbase-cr2" 6, "100gbase-cr1" 5, "200gbase-cr4" 4, "100gbase-cr2" 3, "50gbase-cr" 2, "5gbase-kr" 1,
            "2.5gbase-kx" 0,
        ],
    ),
];

/// The register that users call `name`, whatever the card.
#[must_use]
pub fn named(name: &str) -> Option<&'static Register> {
    REGISTERS
        .iter()
        .find(|register| register.name.eq_ignore_ascii_case(name))
}

/// The value that has the bits `text` names, separated by commas, in the register at `address` of any card.
///
/// # Errors
/// The name that is none of a single bit there.
pub fn flags(address: Address, text: &str) -> Result<u16, String> {
    let registers = REGISTERS.iter().filter(|one| one.address == address);
    let fields: Vec<_> = registers.flat_map(|one| one.fields).collect();
    text.split(',').try_fold(0, |value, name| {
        let mut named = fields.iter().filter(|field| field.name == name);
        match named.find_map(|field| field.bit()) {
            Some(bit) => Ok(value | bit),
            None => Err(name.to_owned()),
        }
    })
}

impl Register {
    /// What `value` has in its fields: the names of single bits that are set, and the others with their values.
    #[must_use]
    pub fn describe(&self, value: u16) -> String {
        let shown = self.fields.iter().filter_map(|field| match field.bit() {
            Some(bit) => (value & bit != 0).then(|| field.name.to_owned()),
            None => Some(format!("{}={}", field.name, field.of(value))),
        });
        shown.collect::<Vec<_>>().join(" ")
    }
}

impl Phy {
    /// The registers of this card that have a name, in order.
    pub fn registers(&self) -> impl Iterator<Item = &'static Register> {
        let twisted = self.family == Family::TwistedPair;
        let (gigabit, more) = (self.abilities.reaches(1_000), self.abilities.reaches(2_500));
        REGISTERS.iter().filter(move |register| match register.on {
            On::Every => true,
            On::TwistedPair => twisted,
            On::Gigabit => twisted && gigabit,
            On::MultiGigabit => twisted && more,
            On::CopperCable => !twisted,
        })
    }

    /// The name and the fields of the register at `address`, if it has any on this card.
    #[must_use]
    pub fn register(&self, address: Address) -> Option<&'static Register> {
        self.registers()
            .find(|register| register.address == address)
    }
}
