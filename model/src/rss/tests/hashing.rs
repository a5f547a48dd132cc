use super::*;
use crate::parse::{Network, mobile_addresses, summarise};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6ExtensionSlice,
    Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions,
    NetSlice, SlicedPacket, TransportSlice, VlanId,
};
use proptest::prelude::*;
use std::net::IpAddr;

/// Source and destination with their ports, the hash over addresses, and the one with ports.
const VECTORS: [(&str, u16, &str, u16, u32, u32); 8] = [
    (
        "66.9.149.187",
        2794,
        "161.142.100.80",
        1766,
        0x323e_8fc2,
        0x51cc_c178,
    ),
    (
        "199.92.111.2",
        14230,
        "65.69.140.83",
        4739,
        0xd718_262a,
        0xc626_b0ea,
    ),
    (
        "24.19.198.95",
        12898,
        "12.22.207.184",
        38024,
        0xd2d0_a5de,
        0x5c2b_394a,
    ),
    (
        "38.27.205.30",
        48228,
        "209.142.163.6",
        2217,
        0x8298_9176,
        0xafc7_327f,
    ),
    (
        "153.39.163.191",
        44251,
        "202.188.127.2",
        1303,
        0x5d18_09c5,
        0x10e8_28a2,
    ),
    (
        "3ffe:2501:200:1fff::7",
        2794,
        "3ffe:2501:200:3::1",
        1766,
        0x2cc1_8cd5,
        0x4020_7d3d,
    ),
    (
        "3ffe:501:8::260:97ff:fe40:efab",
        14230,
        "ff02::1",
        4739,
        0x0f0c_461c,
        0xdde5_1bbf,
    ),
    (
        "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
        44251,
        "fe80::200:f8ff:fe21:67cf",
        38024,
        0x4b61_e985,
        0x02d1_feef,
    ),
];

#[test]
fn microsofts_vectors() {
    for (source, source_port, destination, destination_port, addresses, ports) in VECTORS {
        let ether = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (ip, v4) = match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (ether.ipv4(from.octets(), to.octets(), 9), true),
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                (ether.ipv6(from.octets(), to.octets(), 9), false)
            }
            _ => unreachable!("both are of one kind"),
        };
        let mut frame = Vec::new();
        let tcp = ip.tcp(source_port, destination_port, 1, 1);
        tcp.write(&mut frame, &[]).unwrap();
        let hash = |types| {
            Hasher::new(HashConfig::new(types, &KEY).unwrap()).hash(&frame, &summarise(&frame))
        };
        let (ip, tcp) = if v4 {
            (HashReport::Ipv4, HashReport::Tcpv4)
        } else {
            (HashReport::Ipv6, HashReport::Tcpv6)
        };
        assert_eq!(hash(HashTypes::ALL.bits()), (ports, tcp));
        // Without the types for TCP, by IP; without those, not at all.
        assert_eq!(hash(0b1001), (addresses, ip));
        assert_eq!(hash(0b1_1110_0100), (0, HashReport::None));
    }
}

/// Bit by bit, as the definition says.
fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bit = |octets: &[u8], n: usize| octets[n / 8] >> (7 - n % 8) & 1;
    let mut hash = 0;
    for n in (0..8 * input.len()).filter(|&n| bit(input, n) == 1) {
        hash ^= (0..32).fold(0, |window, i| window << 1 | u32::from(bit(key, n + i)));
    }
    hash
}

/// The fields to hash and the number to report, by the letter of VIRTIO 1.4 (5.1.6.4.3.2 to 5.1.6.4.3.4), from
/// what etherparse sees.
fn expected(types: u32, frame: &[u8]) -> Option<(Vec<u8>, u8)> {
    let enabled = |bit: u32| types >> bit & 1 == 1;
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (ports, tcp, udp) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (&tcp.slice()[..4], true, false),
        Some(TransportSlice::Udp(udp)) => (&udp.slice()[..4], false, true),
        _ => (&[][..], false, false),
    };
    let addresses = |from: &[u8], to: &[u8], ports: &[u8]| [from, to, ports].concat();
    match packet.net? {
        NetSlice::Ipv4(ip) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            if enabled(1) && tcp {
                Some((addresses(&from, &to, ports), 2))
            } else if enabled(2) && udp {
                Some((addresses(&from, &to, ports), 3))
            } else if enabled(0) {
                Some((addresses(&from, &to, &[]), 1))
            } else {
                None
            }
        }
        NetSlice::Ipv6(ip) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            if !ip.extensions().is_empty() {
                let (mut home, mut routing) = (from, to);
                for extension in ip.extensions().clone() {
                    match extension {
                        Ipv6ExtensionSlice::Routing(header) if header.slice()[2] == 2 => {
                            routing = header.slice()[8..24].try_into().unwrap();
                        }
                        Ipv6ExtensionSlice::DestinationOptions(header) => {
                            // The test's options are these alone, so they cannot be mistaken.
                            let options = header.slice();
                            let at = options.windows(2).position(|pair| pair == [0xc9, 16]);
                            if let Some(at) = at {
                                home = options[at + 2..at + 18].try_into().unwrap();
                            }
                        }
                        // What follows is in the first fragment alone.
                        Ipv6ExtensionSlice::Fragment(header) if header.is_fragmenting_payload() => {
                            break;
                        }
                        _ => {}
                    }
                }
                if enabled(7) && tcp {
                    return Some((addresses(&home, &routing, ports), 8));
                } else if enabled(8) && udp {
                    return Some((addresses(&home, &routing, ports), 9));
                } else if enabled(6) {
                    return Some((addresses(&home, &routing, &[]), 7));
                }
            }
            if enabled(4) && tcp {
                Some((addresses(&from, &to, ports), 5))
            } else if enabled(5) && udp {
                Some((addresses(&from, &to, ports), 6))
            } else if enabled(3) {
                Some((addresses(&from, &to, &[]), 4))
            } else {
                None
            }
        }
        NetSlice::Arp(_) => None,
    }
}

fn extension(payload: &[u8]) -> Ipv6RawExtHeader {
    Ipv6RawExtHeader::new_raw(IpNumber::UDP, payload).unwrap()
}

prop_compose! {
    /// Destination options: padding of either kind around a home address, or padding alone.
    fn destination_options()(
        before in 0usize..5, filler in any::<bool>(), home in prop::option::of(prop::array::uniform16(0u8..0xc9)),
    ) -> Ipv6RawExtHeader {
        let mut options = match before {
            0 => Vec::new(),
            1 => vec![0],
            n if filler => [vec![1, n as u8 - 2], vec![0; n - 2]].concat(),
            n => vec![0; n],
        };
        if let Some(home) = home {
            options.extend([0xc9, 16]);
            options.extend(home);
        }
        options.resize(6 + (options.len().max(6) - 6).next_multiple_of(8), 0);
        extension(&options)
    }
}

prop_compose! {
    fn routing()(
        kind in prop_oneof![Just(2u8), Just(4)], address in prop::array::uniform16(0u8..0xc9),
        final_destination_options in prop::option::of(destination_options()),
    ) -> Ipv6RoutingExtensions {
        let payload = [&[kind, 1, 0, 0, 0, 0][..], &address].concat();
        Ipv6RoutingExtensions { routing: extension(&payload), final_destination_options }
    }
}

prop_compose! {
    fn ipv6()(
        source: [u8; 16], destination: [u8; 16],
        hop in any::<bool>(),
        destination_options in prop::option::of(destination_options()),
        routing in prop::option::of(routing()),
        fragment in prop::option::of((0u16..3, any::<bool>())),
    ) -> IpHeaders {
        let fragment = fragment.map(|(offset, more)| {
            Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::try_new(offset).unwrap(), more, 7)
        });
        let header = Ipv6Header { source, destination, hop_limit: 64, ..Default::default() };
        let extensions = Ipv6Extensions {
            hop_by_hop_options: hop.then(|| extension(&[1, 4, 0, 0, 0, 0])),
            // In front of a routing header it would have to be the only one.
            destination_options: destination_options.filter(|_| routing.is_none()),
            routing,
            fragment,
            auth: None,
        };
        IpHeaders::Ipv6(header, extensions)
    }
}

prop_compose! {
    fn ipv4()(
        source: [u8; 4], destination: [u8; 4], options in any::<bool>(),
        fragment in prop::option::of((0u16..3, any::<bool>())),
    ) -> IpHeaders {
        let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, source, destination).unwrap();
        if options {
            header.options = [1; 4].into();
        }
        if let Some((offset, more)) = fragment {
            header.dont_fragment = false;
            header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
            header.more_fragments = more;
        }
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    }
}

prop_compose! {
    fn frame()(
        ip in prop_oneof![ipv4(), ipv6(), ipv6().prop_map(|ip| match ip {
            IpHeaders::Ipv6(header, _) => IpHeaders::Ipv6(header, Ipv6Extensions::default()),
            ip @ IpHeaders::Ipv4(..) => ip,
        })],
        tags in 0..3, protocol in 0..3, ports: (u16, u16),
    ) -> Vec<u8> {
        let ether = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = match tags {
            0 => ether.ip(ip),
            1 => ether.single_vlan(VlanId::try_new(5).unwrap()).ip(ip),
            _ => ether.double_vlan(VlanId::try_new(5).unwrap(), VlanId::try_new(6).unwrap()).ip(ip),
        };
        let mut frame = Vec::new();
        match protocol {
            0 => ip.tcp(ports.0, ports.1, 1, 1).write(&mut frame, b"payload"),
            1 => ip.udp(ports.0, ports.1).write(&mut frame, b"payload"),
            _ => ip.write(&mut frame, IpNumber::SCTP, &[7; 30]),
        }.unwrap();
        frame
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn every_frame_is_hashed_as_an_independent_reader_says(
        frame in frame(), types in prop_oneof![0u32..0x200, Just(0x1ff)], key in prop::collection::vec(any::<u8>(), 0..=MAX_KEY),
    ) {
        let hasher = Hasher::new(HashConfig::new(types, &key).unwrap());
        let (hash, report) = hasher.hash(&frame, &summarise(&frame));
        let mut whole = key;
        whole.resize(MAX_KEY, 0);
        match expected(types, &frame) {
            Some((input, number)) => {
                prop_assert_eq!(report as u8, number);
                prop_assert_eq!(hash, toeplitz(&whole, &input));
            }
            None => prop_assert_eq!((hash, report), (0, HashReport::None)),
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_hashed_without_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300), options in any::<bool>(),
    ) {
        // Destination options or a routing header whose contents are noise.
        let header = [0x86, 0xdd, 0x60, 0, 0, 0, 0, 200, if options { 60 } else { 43 }];
        if bytes.len() > 12 + header.len() {
            bytes[12..12 + header.len()].copy_from_slice(&header);
        }
        let summary = summarise(&bytes);
        let _ = Hasher::new(everything()).hash(&bytes, &summary);
        let _ = flow(&bytes, &summary);
        if summary.network == Network::Ipv6 {
            let (source, destination) = mobile_addresses(&bytes, &summary);
            prop_assert!(source.max(destination) + 16 <= usize::from(summary.transport_offset));
        }
    }

    #[test]
    fn a_key_that_repeats_two_octets_does_not_tell_the_directions_apart(
        client: ([u8; 4], u16), server: ([u8; 4], u16), pair: [u8; 2],
    ) {
        let hasher = Hasher::new(HashConfig::new(HashTypes::ALL.bits(), &pair.repeat(20)).unwrap());
        let (there, back) = (tcp4(client, server), tcp4(server, client));
        prop_assert_eq!(hasher.hash(&there, &summarise(&there)), hasher.hash(&back, &summarise(&back)));
    }

    #[test]
    fn the_two_directions_of_a_conversation_are_one_flow(client: ([u8; 4], u16), server: ([u8; 4], u16)) {
        let (there, back) = (tcp4(client, server), tcp4(server, client));
        let number = flow(&there, &summarise(&there));
        prop_assert!(number.is_some());
        prop_assert_eq!(number, flow(&back, &summarise(&back)));
    }
}

#[test]
fn another_key_is_another_hash_function() {
    let (frame, _) = conversation(1);
    let summary = summarise(&frame);
    let mut hasher = Hasher::new(HashConfig::default());
    assert_eq!(hasher.hash(&frame, &summary), (0, HashReport::None));
    hasher.set(&everything());
    assert_eq!(
        hasher.hash(&frame, &summary),
        Hasher::new(everything()).hash(&frame, &summary)
    );
    // Zero hashes to zero, and is reported nevertheless.
    hasher.set(&HashConfig::new(HashTypes::ALL.bits(), &[]).unwrap());
    assert_eq!(hasher.hash(&frame, &summary), (0, HashReport::Tcpv4));
}
