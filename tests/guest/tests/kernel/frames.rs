//! Any frame whatever: it ends in one counter, and nothing panics.

use std::net::{Ipv6Addr, SocketAddrV6};

use nic_guest::net::{Fd, Ifindex, Protocol, SockType};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use proptest::prelude::*;

use crate::common::packets::{
    OURS, arp_reply, arp_request, echo_reply, echo_request, ethernet, icmp, ip, ip_with, udp,
    udp_to,
};
use crate::common::packets6::{
    LINKLOCAL, OURS6, PEER6, SOLICITED, echo_request6, ip6, neighbour6, udp6,
};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, boot, settle};
use crate::devices::dummy0;
use crate::tcp::{listener, segment};
use crate::vlan::tagged;
use crate::{PORT, peer, udp_socket};

/// VLANs of a router.
const VLANS: [u16; 3] = [100, 10, 20];
/// A group that a socket is in.
const GROUP: [u8; 4] = [239, 1, 2, 3];

/// Good frames of every kind that the stack knows.
fn seeds() -> Vec<Vec<u8>> {
    use etherparse::{Icmpv4Type, IpNumber, Ipv4Header};
    let quoted = &udp_to(MAC, OURS, 9, b"quoted")[14..];
    let unreachable = etherparse::icmpv4::DestUnreachableHeader::Port;
    let fragment = Ipv4Header {
        more_fragments: true,
        ..Ipv4Header::new(16, 64, IpNumber::UDP, [10, 77, 0, 1], OURS).unwrap()
    };
    vec![
        udp(PORT, b"payload"),
        udp(4444, &[3; 700]),
        udp_to([0xff; 6], [255; 4], PORT, b"all"),
        echo_request(1, 2, b"ping"),
        echo_reply(32_768, 2, b"pong"),
        icmp(&Icmpv4Type::DestinationUnreachable(unreachable), quoted),
        udp_to(MAC, [192, 168, 9, 2], PORT, b"beyond"),
        udp_to(MAC, [198, 51, 100, 7], PORT, b"nowhere"),
        udp_to([2, 9, 9, 9, 9, 9], [10, 9, 0, 3], PORT, &[1; 400]),
        arp_request(OURS),
        arp_reply([10, 77, 0, 1]),
        ip(99, &[0; 40]),
        segment(|th| th.syn = true, b""),
        segment(|th| (th.ack, th.source_port) = (true, 9001), b"data"),
        ip_with(fragment, &[0; 16]),
        ethernet(MAC, 0x88b5),
        ethernet(MAC, 0x86dd),
        udp6(PORT, b"payload"),
        echo_request6(PEER6, LINKLOCAL, b"ping"),
        neighbour6(135, (PEER6, SOLICITED), OURS6),
        neighbour6(136, (PEER6, OURS6), PEER6),
        ip6(44, &[17, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]),
        ip6(
            0,
            &[
                60, 0, 1, 4, 0, 0, 0, 0, 43, 0, 0x1e, 4, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        ip6(58, &[1, 4, 0, 0, 0, 0, 0, 0]),
        ip6(6, &[0; 20]),
    ]
}

/// Frames for what is seldom used: fragments that belong together, options, groups, a path that is narrow.
fn rare_seeds() -> Vec<Vec<u8>> {
    use etherparse::{Icmpv4Type, IpNumber, Ipv4Header};
    let header = |len: usize, protocol, to| {
        let header = Ipv4Header::new(len as u16, 64, IpNumber(protocol), [10, 77, 0, 1], to);
        header.unwrap()
    };
    let part = |offset: u16, more, len| {
        let fragment = Ipv4Header {
            dont_fragment: false,
            more_fragments: more,
            fragment_offset: offset.try_into().unwrap(),
            ..header(len, 17, OURS)
        };
        ip_with(fragment, &vec![1; len])
    };
    let with_options = |options: &[u8]| {
        let mut header = header(8, 1, OURS);
        header.options = options.try_into().unwrap();
        header.total_len += options.len() as u16;
        ip_with(header, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0])
    };
    let narrow =
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
    let quoted = &udp_to(MAC, OURS, 9, b"quoted")[14..];
    let query = [0x11, 20, 0xee, 0xeb, 0, 0, 0, 0];
    vec![
        part(2, true, 16),
        part(4, false, 9),
        part(1, true, 16),
        with_options(&[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options(&[68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options(&[68, 12, 5, 3, 10, 77, 0, 2, 0, 0, 0, 0]),
        ip_with(header(8, 2, [224, 0, 0, 1]), &query),
        ip_with(header(8, 2, GROUP), &[0x16, 0, 0xfa, 0xfd, 239, 1, 2, 3]),
        udp_to(MAC, GROUP, PORT, b"group"),
        icmp(&Icmpv4Type::DestinationUnreachable(narrow), quoted),
    ]
}

/// A kernel with sockets of each kind.
fn guest() -> (Guest, std::rc::Rc<World>, [Fd; 3]) {
    let (mut kernel, world) = boot();
    let bound = udp_socket(&mut kernel, PORT);
    let connected = udp_socket(&mut kernel, 7001);
    kernel.connect(connected, peer(9)).unwrap();
    let ping = kernel.socket(SockType::Dgram, Protocol::Icmp).unwrap();
    kernel
        .sendto(ping, &[8, 0, 0, 0, 0, 0, 0, 0], Some(peer(0)))
        .unwrap();
    kernel.set_udp_gro(bound, true).unwrap();
    kernel.inet6_addr_add(Ifindex::ETH0, OURS6, 64).unwrap();
    let over_ipv6 = kernel.socket6(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0);
    kernel.bind6(over_ipv6, any).unwrap();
    listener(&mut kernel, PORT, 2);
    (kernel, world, [bound, connected, ping])
}

/// A router with a VLAN, a bridge between two others, or between eth0 and a dummy, and a tap.
fn router(eth0_is_port: bool) -> (Guest, std::rc::Rc<World>, [Fd; 3]) {
    let mut setup = Setup {
        features: FEATURES | f::GUEST_TSO4 | f::GUEST_USO4,
        ..Setup::default()
    };
    setup.config.ip_forward = true;
    let (mut kernel, world) = setup.boot();
    let dummy = dummy0(&mut kernel);
    let br = kernel.br_add_bridge("br0").unwrap();
    kernel.inet_addr_add(br, [10, 9, 0, 2].into(), 24).unwrap();
    for vlan_id in VLANS {
        let name = format!("eth0.{vlan_id}");
        let vlan = kernel.vlan_add(&name, Ifindex::ETH0, vlan_id).unwrap();
        let addr = [10, vlan_id as u8, 0, 2].into();
        kernel.inet_addr_add(vlan, addr, 24).unwrap();
        if vlan_id != VLANS[0] {
            kernel.br_add_if(br, vlan).unwrap();
        }
    }
    if eth0_is_port {
        kernel.br_add_if(br, Ifindex::ETH0).unwrap();
        kernel.br_add_if(br, dummy).unwrap();
    }
    let bound = udp_socket(&mut kernel, PORT);
    let other = udp_socket(&mut kernel, 7001);
    let tap = kernel.packet_socket(None).unwrap();
    (kernel, world, [bound, other, tap])
}

fn take_in(frames: &[(VirtioNetHdr, Vec<u8>)]) {
    for (kernel, world, sockets) in [guest(), router(false), router(true)] {
        take_in_by(kernel, &world, sockets, frames);
    }
}

fn take_in_by(
    mut kernel: Guest,
    world: &World,
    [bound, connected, ping]: [Fd; 3],
    frames: &[(VirtioNetHdr, Vec<u8>)],
) {
    let raw = kernel.socket(SockType::Raw, Protocol::Raw(17)).unwrap();
    let eth0 = Some(Ifindex::ETH0);
    kernel.ip_mc_join_group(bound, GROUP.into(), eth0).unwrap();
    let sockets = [bound, connected, ping, raw];
    let mut buf = [0; 100];
    for (hdr, frame) in frames {
        world.schedule_with(0, 0, *hdr, frame);
        settle(&mut kernel);
        for fd in sockets {
            let _ = kernel.recvfrom(fd, &mut buf);
            let _ = kernel.packet_recvmsg(fd, &mut buf);
        }
    }
    assert_balanced(&kernel);
    assert_eq!(world.missed.get(), 0);
}

#[derive(Debug, Clone)]
enum Change {
    Byte(usize, u8),
    Cut(usize),
    Grow(usize),
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let change = prop_oneof![
        6 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => any::<usize>().prop_map(Change::Cut),
        1 => (0..200usize).prop_map(Change::Grow),
    ];
    let all = [seeds(), rare_seeds()].concat();
    let tags = prop::collection::vec((0..4usize, any::<bool>()), 0..3);
    let changes = prop::collection::vec(change, 0..5);
    (0..all.len(), tags, changes).prop_map(move |(seed, tags, changes)| {
        let mut frame = all[seed].clone();
        for (vlan, priority) in tags {
            let vlan_id = VLANS.get(vlan).copied().unwrap_or(0);
            let tci = vlan_id | u16::from(priority) << 13;
            frame = tagged(&frame, &[(0x8100, tci)]);
        }
        for change in changes {
            match change {
                // Mostly in the headers.
                Change::Byte(at, byte) => {
                    let at = at % frame.len().min(60);
                    frame[at] = byte;
                }
                Change::Cut(at) => frame.truncate(14 + at % frame.len()),
                Change::Grow(by) => frame.extend(std::iter::repeat_n(0x5a, by)),
            }
        }
        frame
    })
}

/// Mends the sums of a mutated packet, so that the layers above see it too.
fn mended(mut frame: Vec<u8>) -> Vec<u8> {
    let sum = |bytes: &[u8]| {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    };
    let hdr_len = frame.get(14).map_or(0, |byte| usize::from(byte & 0xf) * 4);
    if hdr_len >= 20 && frame.len() >= 14 + hdr_len {
        frame[24..26].fill(0);
        let check = sum(&frame[14..14 + hdr_len]);
        frame[24..26].copy_from_slice(&check);
        let transport = 14 + hdr_len;
        if frame[23] == 6 && frame.len() >= transport + 18 {
            frame[transport + 16..transport + 18].fill(0);
            let len = (frame.len() - transport) as u16;
            let pseudo = [&frame[26..34], &[0, 6], &len.to_be_bytes()].concat();
            let check = sum(&[&pseudo, &frame[transport..]].concat());
            frame[transport + 16..transport + 18].copy_from_slice(&check);
        }
        if matches!(frame[23], 1 | 2) && frame.len() >= transport + 4 {
            frame[transport + 2..transport + 4].fill(0);
            let check = sum(&frame[transport..]);
            frame[transport + 2..transport + 4].copy_from_slice(&check);
        }
    }
    frame
}

fn header() -> impl Strategy<Value = VirtioNetHdr> {
    let lying = (any::<u8>(), any::<u8>(), any::<[u16; 4]>()).prop_map(
        |(flags, gso_type, [hdr_len, gso_size, csum_start, csum_offset])| VirtioNetHdr {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
            ..VirtioNetHdr::default()
        },
    );
    let valid = VirtioNetHdr {
        flags: 2,
        ..VirtioNetHdr::default()
    };
    prop_oneof![
        4 => Just(VirtioNetHdr::default()),
        2 => Just(valid),
        2 => (0..60u16, 0..20u16).prop_map(|(start, offset)| VirtioNetHdr::needs_csum(start, offset)),
        1 => lying,
    ]
}

proptest! {
    #[test]
    fn random_frames_are_accounted_for(
        frames in prop::collection::vec((header(), prop::collection::vec(any::<u8>(), 0..200)), 1..20)
    ) {
        take_in(&frames);
    }

    #[test]
    fn mutated_frames_are_accounted_for(
        frames in prop::collection::vec((header(), mutated(), any::<bool>()), 1..40)
    ) {
        let frames: Vec<_> = frames
            .into_iter()
            .map(|(hdr, frame, mend)| (hdr, if mend { mended(frame) } else { frame }))
            .collect();
        take_in(&frames);
    }
}

#[test]
fn frames_of_every_kind_end_where_they_should() {
    let (mut kernel, world, _) = guest();
    for frame in seeds() {
        world.receive(&frame);
    }
    settle(&mut kernel);
    let stats = kernel.stats();
    let dropped: Vec<_> = stats.drops().filter(|(_, count)| *count > 0).collect();
    assert_eq!(
        dropped,
        [
            ("UnhandledProto", 1),
            ("IpOtherHost", 1),
            ("IpInAddrErrors", 2),
            ("IpInUnknownProtos", 1),
            ("UdpNoPorts", 1),
            ("TcpInErrs", 1),
            ("TcpFlags", 1),
            ("Ip6InHdrErrors", 1),
            ("Icmp6InCsumErrors", 1),
        ]
    );
    assert_eq!((stats.queued, stats.consumed), (4, 9));
    assert_eq!(stats.reassembling, 2);
    assert_balanced(&kernel);
}
