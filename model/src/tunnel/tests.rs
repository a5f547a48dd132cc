use etherparse::{IpNumber, PacketBuilder};
use proptest::prelude::*;

use super::*;

const A4: [u8; 4] = [10, 0, 0, 1];
const B4: [u8; 4] = [10, 0, 0, 2];

/// An IPv4 packet with a datagram, and an IPv6 packet with a segment.
fn inner4() -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ipv4([192, 168, 0, 1], [192, 168, 0, 2], 9).udp(53, 99);
    packet.write(&mut bytes, b"question").unwrap();
    bytes
}

fn inner6() -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ipv6([3; 16], [4; 16], 9).tcp(80, 81, 7, 8);
    packet.write(&mut bytes, b"page").unwrap();
    bytes
}

/// A packet in an Ethernet frame, with a tag if `tag` says so.
fn bridged(packet: &[u8], ethertype: u16, tag: bool) -> Vec<u8> {
    let mut bytes = vec![2; 12];
    if tag {
        bytes.extend([0x81, 0x00, 0x00, 0x05]);
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(packet);
    bytes
}

/// `payload` as protocol `protocol` in IPv4, or in IPv6 behind a destination options header.
fn over(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if v6 {
        let options = [&[protocol, 0, 1, 4, 0, 0, 0, 0], payload].concat();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 64)
            .write(&mut bytes, IpNumber(60), &options)
            .unwrap();
    } else {
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(A4, B4, 64)
            .write(&mut bytes, IpNumber(protocol), payload)
            .unwrap();
    }
    bytes
}

/// `payload` in a datagram to `port`.
fn udp(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut datagram = [40_000, port, len, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    over(v6, 17, &datagram)
}

fn all_types() -> impl Iterator<Item = TunnelTypes> {
    (0..9).map(|bit| TunnelTypes::from_bits(1 << bit).unwrap())
}

/// The types with which the headers inside `frame` are found.
fn types(frame: &[u8]) -> TunnelTypes {
    let outer = parse::summarise(frame);
    all_types()
        .filter(|&one| inner(frame, &outer, one).is_some())
        .fold(TunnelTypes::default(), TunnelTypes::union)
}

/// Asserts that `frame` is of `expected` types and no others, and that `packet`, at its end, is what is found inside.
fn check(frame: &[u8], expected: TunnelTypes, packet: &[u8]) {
    assert_eq!(types(frame), expected);
    // Padding is no part of it.
    for padding in [0, 30] {
        let padded = [frame, &vec![0; padding]].concat();
        let outer = parse::summarise(&padded);
        let found = inner(&padded, &outer, TunnelTypes::ALL).unwrap();
        let start = frame.len() - packet.len();
        let (network, transport, header) = match packet[0] >> 4 {
            4 => (Network::Ipv4, Transport::Udp, 20),
            _ => (Network::Ipv6, Transport::Tcp, 40),
        };
        let expected = Summary {
            network,
            transport,
            fragment: false,
            network_offset: start as u16,
            transport_offset: (start + header) as u16,
            end: frame.len() as u32,
        };
        assert_eq!(found, expected);
        assert_eq!(inner(&padded, &outer, TunnelTypes::default()), None);
    }
}

/// Both inner packets with their Ethernet types.
fn inners() -> [(u16, Vec<u8>); 2] {
    [(ETHERTYPE_IPV4, inner4()), (ETHERTYPE_IPV6, inner6())]
}

#[test]
fn gre_is_told_by_its_fields_and_by_what_it_joins() {
    for v6 in [false, true] {
        for (ethertype, packet) in inners() {
            for flags in 0u16..8 {
                // Checksum, key, sequence number: four octets each.
                let wire = (flags & 4) << 13 | (flags & 2) << 12 | (flags & 1) << 12;
                let mut header = [wire, ethertype].map(u16::to_be_bytes).concat();
                header.resize(4 + 4 * flags.count_ones() as usize, 0xab);
                let plain = match (v6, ethertype) {
                    (false, ETHERTYPE_IPV4) => TunnelTypes::GRE_2784,
                    (false, _) => TunnelTypes::GRE_2784.union(TunnelTypes::GRE_7676),
                    (true, _) => TunnelTypes::GRE_7676,
                };
                let expected = match flags & 3 {
                    0 => plain,
                    _ => TunnelTypes::GRE_2890,
                };
                let gre = [&header[..], &packet].concat();
                check(&over(v6, 47, &gre), expected, &packet);
                check(&udp(v6, 4754, &gre), TunnelTypes::GRE_UDP, &packet);
            }
        }
    }
}

#[test]
fn ethernet_in_gre_with_a_key_is_nvgre_too() {
    for (ethertype, packet) in inners() {
        let frame = bridged(&packet, ethertype, true);
        let gre = |header: &[u8]| over(false, 47, &[header, &frame].concat());
        check(
            &gre(&[0x20, 0, 0x65, 0x58, 0, 0, 7, 0]),
            TunnelTypes::NVGRE.union(TunnelTypes::GRE_2890),
            &packet,
        );
        check(
            &gre(&[0x30, 0, 0x65, 0x58, 0, 0, 7, 0, 0, 0, 0, 1]),
            TunnelTypes::GRE_2890,
            &packet,
        );
        check(&gre(&[0, 0, 0x65, 0x58]), TunnelTypes::GRE_2784, &packet);
    }
}

#[test]
fn what_rides_on_udp_is_told_by_its_port() {
    for v6 in [false, true] {
        for (ethertype, packet) in inners() {
            let kind = ethertype.to_be_bytes();
            let next = if ethertype == ETHERTYPE_IPV4 { 1 } else { 2 };
            let frame = bridged(&packet, ethertype, false);
            let behind = |header: &[u8], payload: &[u8]| [header, payload].concat();
            let vxlan = behind(&[8, 0, 0, 0, 0, 0, 5, 0], &frame);
            check(&udp(v6, 4789, &vxlan), TunnelTypes::VXLAN, &packet);
            for gpe in [
                behind(&[0x0c, 0, 0, next, 0, 0, 5, 0], &packet),
                behind(&[0x0c, 0, 0, 3, 0, 0, 5, 0], &frame),
                behind(&[0x08, 0, 0, 0, 0, 0, 5, 0], &frame),
            ] {
                check(&udp(v6, 4790, &gpe), TunnelTypes::VXLAN_GPE, &packet);
            }
            for geneve in [
                behind(&[0, 0, 0x65, 0x58, 0, 0, 5, 0], &frame),
                behind(&[0, 0x40, kind[0], kind[1], 0, 0, 5, 0], &packet),
                // Two words of options.
                behind(
                    &[2, 0, 0x65, 0x58, 0, 0, 5, 0, 1, 2, 3, 1, 9, 9, 9, 9],
                    &frame,
                ),
            ] {
                check(&udp(v6, 6081, &geneve), TunnelTypes::GENEVE, &packet);
            }
        }
    }
}

#[test]
fn ipv4_in_ipv4() {
    let packet = inner4();
    check(&over(false, 4, &packet), TunnelTypes::IPIP, &packet);
    // In IPv6 (RFC 2473), or of IPv6 (RFC 4213), it has no type.
    assert!(types(&over(true, 4, &packet)).is_empty());
    assert!(types(&over(false, 41, &inner6())).is_empty());
}

#[test]
fn one_level_is_looked_into() {
    let innermost = inner4();
    let mut middle = Vec::new();
    PacketBuilder::ipv4(A4, B4, 64)
        .write(&mut middle, IpNumber(4), &innermost)
        .unwrap();
    let frame = over(false, 4, &middle);
    let found = inner(&frame, &parse::summarise(&frame), TunnelTypes::ALL).unwrap();
    assert_eq!((found.network_offset, found.transport_offset), (34, 54));
    assert_eq!(found.transport, Transport::None);
}

#[test]
fn what_is_no_tunnel_has_nothing_inside() {
    let frame = bridged(&inner4(), ETHERTYPE_IPV4, false);
    let behind = |header: &[u8]| [header, &frame].concat();
    let gre = |header: &[u8]| over(false, 47, &behind(header));
    for (what, packet) in [
        ("plain UDP", udp(false, 4788, &frame)),
        (
            "VXLAN without an identifier",
            udp(false, 4789, &behind(&[0; 8])),
        ),
        ("VXLAN cut off", udp(false, 4789, &[8, 0, 0, 0, 0, 0, 5])),
        (
            "GPE, version 1",
            udp(false, 4790, &behind(&[0x1c, 0, 0, 3, 0, 0, 5, 0])),
        ),
        (
            "GPE, management",
            udp(false, 4790, &behind(&[0x0d, 0, 0, 3, 0, 0, 5, 0])),
        ),
        (
            "GPE, NSH",
            udp(false, 4790, &behind(&[0x0c, 0, 0, 4, 0, 0, 5, 0])),
        ),
        (
            "GPE without an identifier",
            udp(false, 4790, &behind(&[0x04, 0, 0, 3, 0, 0, 5, 0])),
        ),
        (
            "Geneve, version 1",
            udp(false, 6081, &behind(&[0x40, 0, 0x65, 0x58, 0, 0, 5, 0])),
        ),
        (
            "Geneve, control",
            udp(false, 6081, &behind(&[0, 0x80, 0x65, 0x58, 0, 0, 5, 0])),
        ),
        (
            "Geneve, options cut off",
            udp(false, 6081, &[0x3f, 0, 0x65, 0x58, 0, 0, 5, 0]),
        ),
        ("GRE, version 1", gre(&[0x00, 1, 0x08, 0x00])),
        ("GRE with routing", gre(&[0x40, 0, 0x08, 0x00])),
        ("GRE cut off", over(false, 47, &[0x00, 0, 0x08])),
        (
            "GRE whose key is cut off",
            over(false, 47, &[0x20, 0, 0x08, 0, 1, 2]),
        ),
        (
            "GRE in UDP with DTLS",
            udp(false, 4755, &behind(&[0, 0, 0x65, 0x58])),
        ),
        ("ARP", bridged(&[0; 28], 0x0806, false)),
    ] {
        assert!(types(&packet).is_empty(), "{what}");
    }
    let mut fragment = over(false, 4, &inner4());
    fragment[14 + 6] = 0x20;
    assert!(types(&fragment).is_empty(), "a fragment");
}

#[test]
fn what_is_inside_and_makes_no_sense_is_other() {
    let arp = bridged(&[0; 28], 0x0806, false);
    for frame in [
        udp(false, 4789, &[&[8, 0, 0, 0, 0, 0, 5, 0], &arp[..]].concat()),
        udp(false, 4789, &[8, 0, 0, 0, 0, 0, 5, 0]),
        over(false, 47, &[0, 0, 0x08, 0x00]),
        over(false, 4, &inner4()[..25]),
    ] {
        let found = inner(&frame, &parse::summarise(&frame), TunnelTypes::ALL).unwrap();
        assert_eq!(
            (found.network, found.transport),
            (Network::Other, Transport::None)
        );
        assert_eq!(found.end as usize, frame.len());
    }
}

#[test]
fn unknown_bits_are_no_set() {
    assert_eq!(TunnelTypes::from_bits(0x1ff), Some(TunnelTypes::ALL));
    assert_eq!(TunnelTypes::from_bits(0), Some(TunnelTypes::default()));
    assert_eq!(TunnelTypes::from_bits(0x200), None);
    assert_eq!(TunnelTypes::from_bits(1 << 31), None);
    assert_eq!(TunnelTypes::VXLAN.bits(), 16);
}

proptest! {
    /// Whatever stands in a frame, what is found inside lies behind the outer header and within the packet.
    #[test]
    fn any_octets_give_a_summary_within_the_packet(
        v6 in any::<bool>(),
        carrier in prop_oneof![Just(4789u16), Just(4790), Just(6081), Just(4754), Just(47), Just(4)],
        mut payload in proptest::collection::vec(any::<u8>(), 0..120),
        sensible in any::<bool>(),
        cut in 0usize..40,
    ) {
        if let (true, Some(flags)) = (sensible, payload.first_mut()) {
            *flags &= 0x2a;
        }
        let mut frame = match carrier {
            4 | 47 => over(v6, carrier as u8, &payload),
            port => udp(v6, port, &payload),
        };
        frame.truncate(frame.len() - cut.min(frame.len()));
        let outer = parse::summarise(&frame);
        if let Some(found) = inner(&frame, &outer, TunnelTypes::ALL) {
            prop_assert!(found.end <= outer.end);
            prop_assert!(found.network_offset >= outer.transport_offset);
            if found.transport != Transport::None {
                prop_assert!(u32::from(found.transport_offset) + 8 <= found.end);
            }
        }
    }
}
