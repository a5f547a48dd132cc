//! Feature bits (VIRTIO 1.3, 2.2, 3.1.1, 5.1.3 and 6) and config space (5.1.4).

use nic_guest::transport::message::{FLAG_VERSION, config};
use nic_guest::virtio_net::config::VirtioNetConfig;
use nic_guest::virtio_net::features as f;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::bed::{Bed, SIZE};
use super::front::{Front, Target};
use super::ring::Layout;
use super::{Case, Stop, Verdict};

/// What an offered feature needs (VIRTIO 1.3, 5.1.3.1): at least one of several.
const NEEDS: &[(&str, u64, &str, u64)] = &[
    ("GUEST_TSO4", f::GUEST_TSO4, "GUEST_CSUM", f::GUEST_CSUM),
    ("GUEST_TSO6", f::GUEST_TSO6, "GUEST_CSUM", f::GUEST_CSUM),
    (
        "GUEST_ECN",
        f::GUEST_ECN,
        "GUEST_TSO4 or GUEST_TSO6",
        f::GUEST_TSO4 | f::GUEST_TSO6,
    ),
    ("GUEST_UFO", f::GUEST_UFO, "GUEST_CSUM", f::GUEST_CSUM),
    ("GUEST_USO4", f::GUEST_USO4, "GUEST_CSUM", f::GUEST_CSUM),
    ("GUEST_USO6", f::GUEST_USO6, "GUEST_CSUM", f::GUEST_CSUM),
    ("HOST_TSO4", f::HOST_TSO4, "CSUM", f::CSUM),
    ("HOST_TSO6", f::HOST_TSO6, "CSUM", f::CSUM),
    (
        "HOST_ECN",
        f::HOST_ECN,
        "HOST_TSO4 or HOST_TSO6",
        f::HOST_TSO4 | f::HOST_TSO6,
    ),
    ("HOST_UFO", f::HOST_UFO, "CSUM", f::CSUM),
    ("HOST_USO", f::HOST_USO, "CSUM", f::CSUM),
    ("CTRL_RX", f::CTRL_RX, "CTRL_VQ", f::CTRL_VQ),
    ("CTRL_VLAN", f::CTRL_VLAN, "CTRL_VQ", f::CTRL_VQ),
    ("GUEST_ANNOUNCE", f::GUEST_ANNOUNCE, "CTRL_VQ", f::CTRL_VQ),
    ("MQ", f::MQ, "CTRL_VQ", f::CTRL_VQ),
    ("CTRL_MAC_ADDR", f::CTRL_MAC_ADDR, "CTRL_VQ", f::CTRL_VQ),
    ("NOTF_COAL", f::NOTF_COAL, "CTRL_VQ", f::CTRL_VQ),
    ("VQ_NOTF_COAL", f::VQ_NOTF_COAL, "CTRL_VQ", f::CTRL_VQ),
    ("HASH_REPORT", f::HASH_REPORT, "CTRL_VQ", f::CTRL_VQ),
    ("RSS", f::RSS, "CTRL_VQ", f::CTRL_VQ),
    (
        "RSC_EXT",
        f::RSC_EXT,
        "HOST_TSO4 or HOST_TSO6",
        f::HOST_TSO4 | f::HOST_TSO6,
    ),
    ("RING_PACKED", f::RING_PACKED, "VERSION_1", f::VERSION_1),
];

/// Bits that a driver may accept on their own, with VERSION_1: it has to work.
const ALONE: &[(&str, u64)] = &[
    ("nothing but VERSION_1", 0),
    ("CSUM", f::CSUM),
    ("GUEST_CSUM", f::GUEST_CSUM),
    ("MTU", f::MTU),
    ("MRG_RXBUF", f::MRG_RXBUF),
    ("STATUS", f::STATUS),
    ("INDIRECT_DESC", f::INDIRECT_DESC),
    ("EVENT_IDX", f::EVENT_IDX),
    ("IN_ORDER", f::IN_ORDER),
    ("CSUM and HOST_TSO4", f::CSUM | f::HOST_TSO4),
    ("GUEST_CSUM and GUEST_TSO4", f::GUEST_CSUM | f::GUEST_TSO4),
];

/// Bits without what they need: a driver must not accept them, a device must survive it.
const UNMET: &[(&str, u64)] = &[
    ("HOST_TSO4 without CSUM", f::HOST_TSO4),
    ("HOST_ECN without HOST_TSO", f::HOST_ECN | f::CSUM),
    ("GUEST_TSO4 without GUEST_CSUM", f::GUEST_TSO4),
    ("CTRL_RX without CTRL_VQ", f::CTRL_RX),
    ("MQ without CTRL_VQ", f::MQ),
    ("RSS without CTRL_VQ", f::RSS),
    ("NOTF_COAL without CTRL_VQ", f::NOTF_COAL),
];

/// All cases.
#[must_use]
pub fn suite() -> Vec<Case> {
    let mut cases: Vec<_> = NEEDS
        .iter()
        .map(|&(name, bit, needed, bits)| {
            let title = format!("{name} is offered with {needed}");
            Case::new("features", title, move |target| {
                target.need(bit, name)?;
                if target.facts.features & bits == 0 {
                    return Err(Stop::Fail(format!("offered without {needed}")));
                }
                Ok("as 5.1.3.1 has it".into())
            })
        })
        .collect();
    for &(name, bits) in ALONE {
        for layout in Layout::ALL {
            let title = format!(
                "{name}, {} rings: accepted, and frames are sent",
                layout.name()
            );
            cases.push(Case::new("features", title, move |target| {
                target.need(bits, name)?;
                let mut bed = Bed::attach_with(target, layout, SIZE, bits)?;
                (0..3).try_for_each(|_| bed.send())?;
                Ok("3 frames sent".into())
            }));
        }
    }
    for &(name, bits) in UNMET {
        cases.push(Case::new("features", name, move |target| {
            target.need(bits, name)?;
            let front = Front::greet(target)?;
            let accepted = f::VERSION_1 | bits | front.offered & f::PROTOCOL_FEATURES;
            let sent = (Req::SET_FEATURES.into(), FLAG_VERSION);
            let seen = front.provoke(sent, &accepted.to_ne_bytes(), &[], false)?;
            Ok(seen.in_words().into())
        }));
    }
    cases.extend(rules());
    cases.extend(config_space());
    cases
}

fn rules() -> Vec<Case> {
    let case = |name: &str, run: fn(&Target) -> Verdict| Case::new("features", name, run);
    vec![
        case("VERSION_1 is offered", |target| {
            // A device that is not legacy offers it (6.2).
            if target.facts.features & f::VERSION_1 == 0 {
                return Err(Stop::fail("not offered"));
            }
            Ok("offered".into())
        }),
        case("the same is offered on each connection", |target| {
            for _ in 0..3 {
                let offered = Front::greet(target)?.offered;
                if offered != target.facts.features {
                    return Err(Stop::Fail(format!(
                        "{offered:#x} after {:#x}",
                        target.facts.features
                    )));
                }
            }
            Ok(format!("{:#x}", target.facts.features))
        }),
        case("all that is offered is accepted", |target| {
            let front = Front::greet(target)?;
            // LOG_ALL begins a migration.
            front.accept(front.offered & !(f::LOG_ALL | f::ACCESS_PLATFORM))?;
            Ok("accepted".into())
        }),
        case(
            "all that is offered is accepted, and frames are sent",
            |target| {
                let bits = target.facts.features;
                let not = f::LOG_ALL
                    | f::ACCESS_PLATFORM
                    | f::RING_PACKED
                    | f::HASH_REPORT
                    | f::NOTIFICATION_DATA
                    | f::MQ
                    | f::RSS
                    | f::PROTOCOL_FEATURES
                    | 1 << 41;
                let mut bed = Bed::attach_with(target, Layout::Split, SIZE, bits & !not)?;
                (0..3).try_for_each(|_| bed.send())?;
                Ok(format!("{:#x}", bits & !not))
            },
        ),
        case(
            "a legacy driver's features are accepted or refused",
            |target| {
                let front = Front::greet(target)?;
                let sent = (Req::SET_FEATURES.into(), FLAG_VERSION);
                let bits = front.offered & f::PROTOCOL_FEATURES;
                let seen = front.provoke(sent, &bits.to_ne_bytes(), &[], false)?;
                Ok(seen.in_words().into())
            },
        ),
        case("protocol features that were not offered", |target| {
            target.need(f::PROTOCOL_FEATURES, "PROTOCOL_FEATURES")?;
            let front = Front::greet(target)?;
            let bits = u64::MAX << 40;
            let sent = (Req::SET_PROTOCOL_FEATURES.into(), FLAG_VERSION);
            let seen = front.provoke(sent, &bits.to_ne_bytes(), &[], false)?;
            Ok(seen.in_words().into())
        }),
        case("GET_QUEUE_NUM names at least a pair", |target| {
            target.need_protocol(Protocol::MQ)?;
            match target.facts.queues {
                Some(n @ 1..=1024) => Ok(format!("{n}")),
                other => Err(Stop::Fail(format!("{other:?}"))),
            }
        }),
        case(
            "GET_MAX_MEM_SLOTS names at least as many as SET_MEM_TABLE takes",
            |target| {
                target.need_protocol(Protocol::CONFIGURE_MEM_SLOTS)?;
                match Front::greet(target)?.raw.ask_u64(Req::GET_MAX_MEM_SLOTS)? {
                    n @ 8.. => Ok(format!("{n}")),
                    n => Err(Stop::Fail(format!("{n}"))),
                }
            },
        ),
    ]
}

/// Config space as the offered features have it.
fn read(target: &Target) -> Result<(Front, Vec<u8>), Stop> {
    target.need_protocol(Protocol::CONFIG)?;
    let len = VirtioNetConfig::len(target.facts.features);
    if len == 0 {
        return Err(Stop::missing("no feature has a field"));
    }
    let front = Front::greet(target)?;
    front.accept(target.facts.features & (f::VERSION_1 | f::MAC | f::MTU | f::STATUS))?;
    let bytes = front.read_config(0, len)?;
    Ok((front, bytes))
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn expect(holds: bool, what: String) -> Verdict {
    if holds {
        Ok(what)
    } else {
        Err(Stop::Fail(what))
    }
}

fn config_space() -> Vec<Case> {
    let case = |name: &str, run: fn(&Target) -> Verdict| Case::new("config", name, run);
    let field = |name: &'static str, bits: u64, bit: &'static str, check: fn(&[u8]) -> Verdict| {
        Case::new("config", name, move |target: &Target| {
            target.need_protocol(Protocol::CONFIG)?;
            if target.facts.features & bits == 0 {
                return Err(Stop::missing(bit));
            }
            check(&read(target)?.1)
        })
    };
    let mut cases = vec![
        field("the address is a unicast one", f::MAC, "MAC", |bytes| {
            let mac = &bytes[..6];
            expect(mac[0] & 1 == 0 && mac != [0; 6], format!("{mac:02x?}"))
        }),
        field(
            "status has only bits that there are",
            f::STATUS,
            "STATUS",
            |bytes| {
                let status = word(bytes, 6);
                expect(status & !3 == 0, format!("{status:#x}"))
            },
        ),
        field(
            "there are 1 to 32768 queue pairs",
            f::MQ | f::RSS,
            "MQ or RSS",
            |bytes| {
                let pairs = word(bytes, 8);
                expect((1..=0x8000).contains(&pairs), format!("{pairs}"))
            },
        ),
        field("the MTU is at least 68", f::MTU, "MTU", |bytes| {
            let mtu = word(bytes, 10);
            expect(mtu >= 68, format!("{mtu}"))
        }),
        field(
            "speed is one, or unknown",
            f::SPEED_DUPLEX,
            "SPEED_DUPLEX",
            |bytes| {
                let speed = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
                let good = speed <= 0x7fff_ffff || speed == u32::MAX;
                expect(good, format!("{speed}"))
            },
        ),
        field(
            "duplex is half, full or unknown",
            f::SPEED_DUPLEX,
            "SPEED_DUPLEX",
            |bytes| expect(matches!(bytes[16], 0 | 1 | 0xff), format!("{}", bytes[16])),
        ),
        field(
            "RSS keys may have 40 octets",
            f::RSS | f::HASH_REPORT,
            "RSS or HASH_REPORT",
            |bytes| expect(bytes[17] >= 40, format!("{}", bytes[17])),
        ),
        field("RSS tables may have 128 entries", f::RSS, "RSS", |bytes| {
            let most = word(bytes, 18);
            expect(most >= 128, format!("{most}"))
        }),
        case("it reads the same octet by octet", |target| {
            let (front, whole) = read(target)?;
            for (at, octet) in whole.iter().enumerate() {
                let part = front.read_config(at as u32, 1)?;
                if part[0] != *octet {
                    return Err(Stop::Fail(format!("octet {at} is {:#x}", part[0])));
                }
            }
            Ok(format!("{} octets", whole.len()))
        }),
        case("a driver's write changes nothing", |target| {
            let (front, whole) = read(target)?;
            let body = config(0, 0, &[0x5a; 6]);
            let sent = (Req::SET_CONFIG.into(), FLAG_VERSION);
            let seen = front.provoke(sent, &body, &[], false)?;
            drop(front);
            let again = Front::greet(target)?.read_config(0, whole.len())?;
            // With VERSION_1 nothing of it can be written (5.1.4).
            expect(again == whole, seen.in_words().into())
        }),
    ];
    for (name, offset, len) in [
        ("a read far behind its end", 0x1000, 16),
        ("a read that begins at the last offset", u32::MAX, 1),
        ("a read whose end wraps", u32::MAX - 3, 16),
        ("a read of 256 octets", 0, 256),
        ("a read of 257 octets", 0, 257),
        ("a read of 4000 octets", 0, 4000),
    ] {
        cases.push(Case::new("config", name, move |target| {
            target.need_protocol(Protocol::CONFIG)?;
            let front = Front::greet(target)?;
            let body = config(offset, 0, &vec![0; len]);
            let sent = (Req::GET_CONFIG.into(), FLAG_VERSION);
            let seen = front.provoke(sent, &body, &[], true)?;
            Ok(seen.in_words().into())
        }));
    }
    for (name, offset, len) in [
        ("a write far behind its end", 0x1000, 16),
        ("a write whose end wraps", u32::MAX - 3, 16),
    ] {
        cases.push(Case::new("config", name, move |target| {
            target.need_protocol(Protocol::CONFIG)?;
            let front = Front::greet(target)?;
            let body = config(offset, 0, &vec![0x5a; len]);
            let sent = (Req::SET_CONFIG.into(), FLAG_VERSION);
            let seen = front.provoke(sent, &body, &[], false)?;
            Ok(seen.in_words().into())
        }));
    }
    cases
}
