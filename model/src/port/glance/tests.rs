//! A glance at a frame must find what a thorough look finds.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use crate::checksum;
use crate::frame::{Checksum, Frame};
use crate::parse::{Network, Plain, Transport, summarise};
use crate::port::{Port, PortConfig};
use crate::rss::{HashConfig, HashTypes, RssConfig};
use crate::segment;
use crate::time::Nanos;

/// How a port steers.
#[derive(Clone, Copy, Debug)]
enum Steering {
    /// As it comes up.
    First,
    Automatic,
    Table,
}

/// A port with as many queues that hashes by these types.
fn port(queue_pairs: u16, steering: Steering, types: u32) -> Port {
    let config = PortConfig {
        queue_pairs,
        ..PortConfig::default()
    };
    let mut port = Port::new(&config);
    let hash = HashConfig::new(types, HashConfig::usual().key()).expect("a key");
    match steering {
        Steering::First => port.set_hash(&hash),
        Steering::Automatic => {
            port.set_hash(&hash);
            port.use_pairs(queue_pairs).expect("a number of pairs");
        }
        Steering::Table => {
            let even = RssConfig::even(hash, queue_pairs);
            port.set_rss(&even, queue_pairs).expect("a table");
        }
    }
    port.filter.active = true;
    port
}

/// What a frame is made of.
#[derive(Clone, Debug)]
struct Recipe {
    ipv6: bool,
    tcp: bool,
    /// The ends of the conversation: the last octet of their addresses, and their ports.
    ends: [(u8, u16); 2],
    payload: usize,
    /// Octets behind the packet: its length field is smaller than the frame.
    padding: usize,
    /// Extension headers of IPv6: the first one's number, and its octets but for the number of what follows.
    extension: Option<(u8, [u8; 7])>,
}

/// A hop-by-hop header with padding, one with a jumbo payload option, destination options, a routing header, a fragment
/// header of an atomic fragment and of a first one, and one that nobody knows.
const EXTENSIONS: [(u8, [u8; 7]); 7] = [
    (0, [0, 1, 4, 0, 0, 0, 0]),
    (0, [0, 0xc2, 4, 0, 1, 0, 0]),
    (60, [0, 1, 4, 0, 0, 0, 0]),
    (43, [0, 0, 0, 0, 0, 0, 0]),
    (44, [0, 0, 0, 0, 0, 0, 9]),
    (44, [0, 0, 1, 0, 0, 0, 9]),
    (253, [0, 0, 0, 0, 0, 0, 0]),
];

impl Recipe {
    /// With as much payload as the shortest of UDP over IPv4 has.
    fn new(ipv6: bool, tcp: bool) -> Self {
        Recipe {
            ipv6,
            tcp,
            ends: [(1, 1024), (2, 9)],
            payload: 18,
            padding: 0,
            extension: None,
        }
    }

    /// The frame, to the station.
    fn frame(&self) -> Vec<u8> {
        let ether = PacketBuilder::ethernet2([2; 6], PortConfig::default().mac.0);
        let [(source, from), (destination, to)] = self.ends;
        let ip = if self.ipv6 {
            let address = |last| [[0x20; 15].as_slice(), &[last]].concat().try_into();
            let (source, destination) = (address(source), address(destination));
            ether.ipv6(source.expect("16 octets"), destination.expect("16"), 64)
        } else {
            ether.ipv4([10, 0, 0, source], [10, 0, 0, destination], 64)
        };
        let mut bytes = Vec::new();
        let payload = vec![0x5a; self.payload];
        if self.tcp {
            ip.tcp(from, to, 3, 4).write(&mut bytes, &payload)
        } else {
            ip.udp(from, to).write(&mut bytes, &payload)
        }
        .expect("there is room in a vector");
        if let Some((kind, rest)) = self.extension.filter(|_| self.ipv6) {
            let next = std::mem::replace(&mut bytes[IPV6_NEXT], kind);
            bytes.splice(54..54, [next].into_iter().chain(rest));
            let payload_len = (bytes.len() - 54) as u16;
            bytes[IPV6_LENGTH..IPV6_LENGTH + 2].copy_from_slice(&payload_len.to_be_bytes());
        }
        bytes.resize(bytes.len() + self.padding, 0xee);
        bytes
    }
}

const IPV6_LENGTH: usize = 14 + 4;
const IPV6_NEXT: usize = 14 + 6;

/// Makes the checksum of an IPv4 header right again.
fn mend_header(bytes: &mut [u8]) {
    let summary = summarise(bytes);
    if summary.network == Network::Ipv4 {
        let header = summary.network_offset.into()..summary.transport_offset.into();
        segment::insert_header_checksum(&mut bytes[header]);
    }
}

/// Makes the transport checksum of `bytes` right again, if there is one.
fn mend(bytes: &mut [u8]) {
    let summary = summarise(bytes);
    let (field, protocol) = match summary.transport {
        Transport::None => return,
        Transport::Tcp => (16, 6),
        Transport::Udp => (6, 17),
    };
    let network = usize::from(summary.network_offset);
    let (start, end) = (usize::from(summary.transport_offset), summary.end as usize);
    let addresses = match bytes[network] >> 4 {
        4 => network + 12..network + 20,
        _ => network + 8..network + 40,
    };
    let field = start + field;
    bytes[field..field + 2].fill(0);
    let pseudo = checksum::sum(&bytes[addresses], protocol + (end - start) as u64);
    let checksum = match !checksum::sum(&bytes[start..end], pseudo.into()) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// What happens to a frame on its way.
#[derive(Clone, Debug)]
enum Damage {
    /// An octet is another one.
    Octet(prop::sample::Index, u8),
    /// One of the headers' octets is.
    Header(usize, u8),
    /// The IP packet's length field changes by as much.
    Length(i16),
    /// The frame has no more octets than these.
    Cut(usize),
    /// The checksum of UDP is zero.
    Unused,
}

impl Damage {
    fn happen(&self, bytes: &mut Vec<u8>) {
        let ipv6 = bytes.get(12) == Some(&0x86);
        match *self {
            Damage::Octet(_, _) if bytes.is_empty() => {}
            Damage::Octet(at, octet) => {
                let at = at.index(bytes.len());
                bytes[at] = octet;
            }
            Damage::Header(at, octet) => {
                if let Some(place) = bytes.get_mut(at) {
                    *place = octet;
                }
            }
            Damage::Length(change) => {
                let at = if ipv6 { IPV6_LENGTH } else { 14 + 2 };
                if let Some(place) = bytes.get_mut(at..at + 2) {
                    let len = i16::from_be_bytes([place[0], place[1]]).wrapping_add(change);
                    place.copy_from_slice(&len.to_be_bytes());
                }
            }
            Damage::Cut(len) => bytes.truncate(len),
            Damage::Unused => {
                let at = if ipv6 { 54 + 6 } else { 34 + 6 };
                if let Some(place) = bytes.get_mut(at..at + 2) {
                    place.fill(0);
                }
            }
        }
    }
}

fn any_recipe() -> impl Strategy<Value = Recipe> {
    let payload = prop_oneof![0_usize..64, 0_usize..1600];
    let extension = proptest::option::weighted(0.2, prop::sample::select(&EXTENSIONS[..]));
    let all = (any::<[bool; 2]>(), any::<[(u8, u16); 2]>(), payload);
    (all, 0_usize..8, extension).prop_map(|(all, padding, extension)| {
        let ([ipv6, tcp], ends, payload) = all;
        Recipe {
            ipv6,
            tcp,
            ends,
            payload,
            padding,
            extension,
        }
    })
}

fn any_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>())
            .prop_map(|(at, octet)| Damage::Octet(at, octet)),
        (0_usize..76, any::<u8>()).prop_map(|(at, octet)| Damage::Header(at, octet)),
        (-80_i16..80).prop_map(Damage::Length),
        (0_usize..100).prop_map(Damage::Cut),
        Just(Damage::Unused),
    ]
}

fn any_checksum() -> impl Strategy<Value = Checksum> {
    prop_oneof![
        3 => Just(Checksum::Unknown),
        2 => Just(Checksum::Valid),
        1 => Just(Checksum::Bad),
    ]
}

fn any_steering() -> impl Strategy<Value = Steering> {
    prop_oneof![
        Just(Steering::First),
        Just(Steering::Automatic),
        Just(Steering::Table),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn it_finds_what_a_thorough_look_finds(
        (pairs, steering) in (prop_oneof![Just(1), Just(4)], any_steering()),
        types in prop_oneof![Just(HashTypes::ALL.bits()), 0..=HashTypes::ALL.bits()],
        recipe in any_recipe(),
        damage in proptest::collection::vec(any_damage(), 0..3),
        [mended, header_mended] in any::<[bool; 2]>(),
        checksum in any_checksum(),
    ) {
        let mut bytes = recipe.frame();
        damage.iter().for_each(|damage| damage.happen(&mut bytes));
        if mended {
            mend(&mut bytes);
        }
        if header_mended {
            mend_header(&mut bytes);
        }
        let (mut quick, mut thorough) = (port(pairs, steering, types), port(pairs, steering, types));
        let mut frames = Vec::new();
        for port in [&mut quick, &mut thorough] {
            let mut frame = port.pool.take();
            prop_assume!(frame.fill(&bytes));
            frame.arrival = Nanos(1_000);
            frame.checksum = checksum;
            frames.push(frame);
        }
        let mut other = frames.pop().expect("two");
        quick.receive(Nanos(5_000), &mut frames);
        thorough.counters.rx_frames += 1;
        thorough.counters.rx_unicast += 1;
        let admitted = match thorough.ingress(&mut other, false) {
            Ok(()) => vec![other],
            Err(reason) => {
                thorough.counters.drop_received(reason, other.octets);
                vec![]
            }
        };
        let told = |frames: &[Frame]| -> Vec<_> {
            frames.iter().map(|frame| (
                frame.bytes().to_vec(), frame.arrival, frame.octets, frame.hash, frame.hash_report,
                frame.queue, frame.checksum, frame.fifo_end,
            )).collect()
        };
        prop_assert_eq!(told(&frames), told(&admitted));
        prop_assert_eq!(quick.counters(&[]), thorough.counters(&[]));
        prop_assert_eq!(format!("{:?}", quick.fifos), format!("{:?}", thorough.fifos));
        // With one queue nothing has to be remembered of flows.
        prop_assert!(pairs == 1 || quick.rss.remembers_the_same_as(&thorough.rss), "steering differs");
    }
}

/// Whether a glance at `bytes` is enough, with a checksum to verify or with one that was verified.
fn enough(bytes: &[u8]) -> [bool; 2] {
    [Checksum::Unknown, Checksum::Valid].map(|checksum| {
        let mut port = port(4, Steering::Table, HashTypes::ALL.bits());
        let mut frame = port.pool.take();
        assert!(frame.fill(bytes));
        frame.checksum = checksum;
        let four = Plain::<4>::of(bytes).map(|headers| {
            let glance = port.glance(&mut frame, headers);
            glance.or_else(|| port.glance_unverified(&mut frame, headers))
        });
        let six = Plain::<6>::of(bytes).map(|headers| {
            let glance = port.glance(&mut frame, headers);
            glance.or_else(|| port.glance_unverified(&mut frame, headers))
        });
        assert!(four.is_none() || six.is_none());
        four.or(six).flatten().is_some()
    })
}

#[test]
fn it_is_enough_for_most_frames() {
    for (ipv6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        for (payload, padding) in [(18, 0), (19, 0), (18, 4), (1_400, 0)] {
            let recipe = Recipe {
                payload,
                padding,
                ..Recipe::new(ipv6, tcp)
            };
            assert_eq!(enough(&recipe.frame()), [true; 2], "{recipe:?}");
        }
    }
    // The shortest there are over IPv6: no payload at all.
    for tcp in [false, true] {
        let recipe = Recipe {
            payload: 0,
            ..Recipe::new(true, tcp)
        };
        assert_eq!(enough(&recipe.frame()), [true; 2], "{recipe:?}");
    }
}

#[test]
fn it_is_not_enough_for_what_needs_a_thorough_look() {
    for extension in EXTENSIONS {
        let recipe = Recipe {
            extension: Some(extension),
            ..Recipe::new(true, false)
        };
        assert_eq!(enough(&recipe.frame()), [false; 2], "{recipe:?}");
    }
    for ipv6 in [false, true] {
        let good = Recipe::new(ipv6, false).frame();
        let with = |damage: Damage| {
            let mut bytes = good.clone();
            damage.happen(&mut bytes);
            if !ipv6 {
                // It is not for the header's checksum.
                segment::insert_header_checksum(&mut bytes[14..34]);
            }
            enough(&bytes)
        };
        assert_eq!(with(Damage::Cut(good.len() - 1)), [false; 2], "cut off");
        assert_eq!(with(Damage::Header(5, 1)), [false; 2], "to another");
        assert_eq!(with(Damage::Length(1)), [false; 2], "more than there is");
        // As long as none has been verified, less than UDP says makes no sense.
        assert_eq!(with(Damage::Length(-1)), [false, true], "less than UDP has");
        // UDP over IPv6 may not do without.
        assert_eq!(with(Damage::Unused), [!ipv6, true], "no checksum");
        let last = good.len() - 1;
        assert_eq!(with(Damage::Header(last, 0)), [false, true], "damaged");
        if !ipv6 {
            let mut bytes = good.clone();
            bytes[22] ^= 1;
            assert_eq!(enough(&bytes), [false, true], "a wrong header");
        }
    }
}
