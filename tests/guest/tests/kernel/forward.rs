//! Packets for other hosts: sent on, or their senders told why not.

use std::net::Ipv4Addr;
use std::rc::Rc;

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Ipv4Header, PacketBuilder, SlicedPacket, TcpHeader,
    TcpOptionElement,
};
use nic_guest::net::netfilter::{NfHook, NftChain, NftRule, Verdict};
use nic_guest::net::stats::{RxDrop, TxDrop};
use nic_guest::net::{Ifindex, ProcFile};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::{
    OURS, PEER, PEER_MAC, arp_reply, arp_request, icmp, read_arp, read_icmp, udp_to,
};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, settle};
use crate::devices::{dummy0, stats};

const BEYOND: [u8; 4] = [192, 168, 9, 2];
/// A host behind a narrow network.
const NARROW: [u8; 4] = [192, 168, 8, 2];
const PORT: u16 = 7000;

/// A router between the wire and dummy0 that knows the peer.
fn router(features: u64) -> (Guest, Rc<World>, Ifindex) {
    let mut setup = Setup {
        features,
        ..Setup::default()
    };
    setup.config.ip_forward = true;
    let (mut kernel, world) = setup.boot();
    let dummy = dummy0(&mut kernel);
    world.receive(&arp_request(OURS));
    settle(&mut kernel);
    world.take_sent();
    (kernel, world, dummy)
}

/// A datagram from the peer for that host, with so many hops left.
fn datagram(to: [u8; 4], ttl: u8, df: bool, len: usize) -> Vec<u8> {
    let mut header =
        Ipv4Header::new(8 + len as u16, ttl, etherparse::IpNumber::UDP, PEER, to).unwrap();
    header.dont_fragment = df;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        .udp(9000, PORT)
        .write(&mut frame, &vec![7; len])
        .unwrap();
    frame
}

#[test]
fn a_packet_for_another_host_leaves_by_the_other_device() {
    let (mut kernel, world, dummy) = router(FEATURES);
    world.receive(&udp_to(MAC, BEYOND, PORT, b"hello"));
    settle(&mut kernel);
    assert_eq!(stats(&kernel, dummy).tx_packets, 1);
    assert_eq!(stats(&kernel, dummy).tx_bytes, 14 + 20 + 8 + 5);
    assert_eq!(world.take_sent(), []);
    assert_eq!(kernel.stats().snmp.ip_forw_datagrams, 1);
    assert_eq!(kernel.stats().forwarded, 1);
    let mut snmp = String::new();
    kernel.proc_show(ProcFile::Snmp, &mut snmp).unwrap();
    // It forwards: 1; a host that does not says 2 (RFC 1213).
    assert!(snmp.contains("\nIp: 1 64 "), "{snmp}");
    assert_balanced(&kernel);
}

#[test]
fn what_is_sent_on_has_a_hop_less_and_is_the_same_else() {
    let (mut kernel, world, _) = router(FEATURES);
    // To a network behind the peer: it leaves as it came.
    let far = [198, 51, 100, 7];
    let gateway = Some(Ipv4Addr::from(PEER));
    let network = (far.into(), 24);
    kernel
        .ip_route_add(network, gateway, Ifindex::ETH0)
        .unwrap();
    let frame = datagram(far, 9, true, 100);
    for _ in 0..3 {
        // Those that come together have one look at the route.
        world.receive(&frame);
    }
    settle(&mut kernel);
    let sent = world.take_sent();
    assert_eq!(sent.len(), 3);
    for sent in &sent {
        assert_eq!(sent.frame[..12], [PEER_MAC, MAC].concat());
        let packet = SlicedPacket::from_ethernet(&sent.frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else {
            panic!("{packet:?}");
        };
        let header = ip.header().to_header();
        assert_eq!(header.time_to_live, 8);
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!((header.source, header.destination), (PEER, far));
        assert_eq!(sent.frame[34..], frame[34..]);
    }
    assert_balanced(&kernel);
}

#[test]
fn a_host_that_does_not_forward_drops_it() {
    let (mut kernel, world) = Setup::default().boot();
    let dummy = dummy0(&mut kernel);
    world.receive(&udp_to(MAC, BEYOND, PORT, b"hello"));
    settle(&mut kernel);
    assert_eq!(stats(&kernel, dummy).tx_packets, 0);
    assert_eq!(kernel.stats().rx_drop(RxDrop::IpInAddrErrors), 1);
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

/// The one answer that was sent, and the packet that it is about.
fn answer(world: &World) -> (Icmpv4Type, Vec<u8>) {
    let sent = world.take_sent();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(sent[0].frame[..6], PEER_MAC);
    read_icmp(&sent[0].frame)
}

#[test]
fn no_hop_left_no_route_and_no_room_are_told() {
    let (mut kernel, world, dummy) = router(FEATURES);
    let unreachable = Icmpv4Type::DestinationUnreachable;
    let lan = kernel.dummy_add("narrow", [2, 0, 0, 0, 8, 1]).unwrap();
    kernel
        .inet_addr_add(lan, [192, 168, 8, 1].into(), 24)
        .unwrap();
    kernel.dev_set_mtu(lan, 600).unwrap();
    for (frame, want, reason) in [
        (
            datagram(BEYOND, 1, false, 10),
            Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
            RxDrop::IpInHdrErrors,
        ),
        (
            datagram([198, 51, 100, 7], 64, false, 10),
            unreachable(DestUnreachableHeader::Network),
            RxDrop::IpInNoRoutes,
        ),
        (
            datagram([192, 168, 8, 2], 64, true, 1000),
            unreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 }),
            RxDrop::IpForwFragFails,
        ),
    ] {
        world.receive(&frame);
        settle(&mut kernel);
        let (icmp_type, quoted) = answer(&world);
        assert_eq!(icmp_type, want);
        let packet = &frame[14..];
        assert_eq!(quoted, packet[..packet.len().min(576 - 28)], "as it came");
        assert_eq!(kernel.stats().rx_drop(reason), 1, "{reason:?}");
    }
    assert_eq!(
        (
            stats(&kernel, dummy).tx_packets,
            stats(&kernel, lan).tx_packets
        ),
        (0, 0)
    );
    // One that may be fragmented is nobody's fault.
    world.receive(&datagram([192, 168, 8, 2], 64, false, 1000));
    settle(&mut kernel);
    assert_eq!(world.take_sent(), []);
    assert_eq!(kernel.stats().rx_drop(RxDrop::IpForwFragFails), 1);
    let before = stats(&kernel, lan).tx_packets;
    // The last hop, and a packet that just fits, go on.
    world.receive(&datagram(BEYOND, 2, false, 10));
    world.receive(&datagram([192, 168, 8, 2], 64, true, 600 - 28));
    settle(&mut kernel);
    assert_eq!(
        (
            stats(&kernel, dummy).tx_packets,
            stats(&kernel, lan).tx_packets - before
        ),
        (1, 1)
    );
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn nobody_is_told_of_errors_fragments_and_what_many_got() {
    let (mut kernel, world, _) = router(FEATURES);
    let mut error = icmp(
        &Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
        &[0; 28],
    );
    let mut fragment = datagram(BEYOND, 1, false, 10);
    fragment[21] = 1;
    let mut broadcast = datagram(BEYOND, 1, false, 10);
    broadcast[..6].fill(0xff);
    error[22] = 1;
    error[30..34].copy_from_slice(&BEYOND);
    for (frame, reason) in [
        (&mut error, RxDrop::IpInHdrErrors),
        (&mut fragment, RxDrop::IpInHdrErrors),
        (&mut broadcast, RxDrop::IpInDiscards),
    ] {
        mend(frame);
        let before = kernel.stats().rx_drop(reason);
        world.receive(frame);
        settle(&mut kernel);
        assert_eq!(kernel.stats().rx_drop(reason), before + 1);
        assert_eq!(world.take_sent(), []);
    }
    // An echo request is no error.
    let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 1, seq: 1 });
    let mut request = icmp(&echo, b"anybody?");
    request[22] = 1;
    request[30..34].copy_from_slice(&BEYOND);
    mend(&mut request);
    world.receive(&request);
    settle(&mut kernel);
    assert!(matches!(answer(&world).0, Icmpv4Type::TimeExceeded(_)));
    assert_balanced(&kernel);
}

/// Makes the checksum of a frame's IP header right.
fn mend(frame: &mut [u8]) {
    let (header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

#[test]
fn a_neighbour_that_does_not_answer_is_unreachable() {
    let (mut kernel, world, _) = router(FEATURES);
    world.receive(&datagram([10, 77, 0, 99], 64, false, 10));
    settle(&mut kernel);
    let sent = world.take_sent();
    assert_eq!(read_arp(&sent[0].frame).1.target_ipv4, [10, 77, 0, 99]);
    for _ in 0..3 {
        world.advance(1_000_000_000);
        settle(&mut kernel);
    }
    let sent = world.take_sent();
    let (icmp_type, _) = read_icmp(&sent.last().unwrap().frame);
    let host = DestUnreachableHeader::Host;
    assert_eq!(icmp_type, Icmpv4Type::DestinationUnreachable(host));
    assert_eq!(kernel.stats().tx_drop(TxDrop::NeighResFailed), 1);
    // One that does gets the packet.
    world.receive(&datagram([10, 77, 0, 98], 64, false, 10));
    settle(&mut kernel);
    world.receive(&arp_reply([10, 77, 0, 98]));
    settle(&mut kernel);
    assert_eq!(
        world.take_sent().last().unwrap().frame[30..34],
        [10, 77, 0, 98]
    );
    assert_balanced(&kernel);
}

#[test]
fn the_filter_may_keep_it() {
    let (mut kernel, world, dummy) = router(FEATURES);
    let rule = NftRule {
        daddr: Some((BEYOND.into(), 32)),
        verdict: Some(Verdict::Drop),
        ..NftRule::default()
    };
    let chain = |hook| NftChain {
        rules: vec![rule.clone()],
        ..NftChain::counting(hook)
    };
    // Neither input nor output is asked about what passes by.
    for hook in [NfHook::LocalIn, NfHook::LocalOut, NfHook::Forward] {
        world.receive(&udp_to(MAC, BEYOND, PORT, b"hello"));
        settle(&mut kernel);
        kernel.nf_register_net_hook(chain(hook));
    }
    assert_eq!(stats(&kernel, dummy).tx_packets, 3);
    world.receive(&udp_to(MAC, BEYOND, PORT, b"hello"));
    settle(&mut kernel);
    assert_eq!(stats(&kernel, dummy).tx_packets, 3);
    assert_eq!(kernel.stats().rx_drop(RxDrop::NetfilterDrop), 1);
    assert_balanced(&kernel);
}

/// The same datagram with the sum of its pseudo header only.
fn unfinished(whole: &[u8]) -> Vec<u8> {
    let mut frame = whole.to_vec();
    let udp_len = frame.len() - 34;
    let halves = frame[26..34].chunks(2);
    let sum: u32 = halves
        .map(|half| u32::from(u16::from_be_bytes([half[0], half[1]])))
        .sum();
    let pseudo = sum + 17 + udp_len as u32;
    let pseudo = (pseudo & 0xffff) + (pseudo >> 16);
    frame[40..42].copy_from_slice(&(pseudo as u16).to_be_bytes());
    frame
}

/// What a device left to others to finish is finished for a device that cannot.
#[test]
fn a_checksum_that_is_missing_is_made() {
    for features in [FEATURES, FEATURES & !f::CSUM] {
        let (mut kernel, world, _) = router(features);
        let network = ([198, 51, 100, 0].into(), 24);
        kernel
            .ip_route_add(network, Some(PEER.into()), Ifindex::ETH0)
            .unwrap();
        let whole = datagram([198, 51, 100, 7], 64, false, 11);
        let frame = unfinished(&whole);
        world.schedule_with(0, 0, VirtioNetHdr::needs_csum(34, 6), &frame);
        settle(&mut kernel);
        let sent = world.take_sent();
        if features & f::CSUM != 0 {
            assert_eq!((sent[0].hdr.csum_start, sent[0].hdr.csum_offset), (34, 6));
            assert_eq!(sent[0].frame[40..], frame[40..]);
        } else {
            assert_eq!(sent[0].hdr, VirtioNetHdr::default());
            assert_eq!(sent[0].frame[40..], whole[40..]);
        }
    }
}

#[test]
fn what_stands_for_several_is_sent_on_whole_or_in_its_parts() {
    for offload in [f::HOST_USO, 0] {
        let features = FEATURES | f::GUEST_USO4 | offload;
        let (mut kernel, world, _) = router(features);
        let network = ([198, 51, 100, 0].into(), 24);
        kernel
            .ip_route_add(network, Some(PEER.into()), Ifindex::ETH0)
            .unwrap();
        let frame = datagram([198, 51, 100, 7], 64, false, 1200);
        let mut hdr = VirtioNetHdr::needs_csum(34, 6);
        (hdr.gso_type, hdr.gso_size, hdr.hdr_len) = (5, 500, 42);
        world.schedule_with(0, 0, hdr, &frame);
        settle(&mut kernel);
        let lens: Vec<_> = world
            .take_sent()
            .iter()
            .map(|sent| sent.frame.len() - 42)
            .collect();
        let want = if offload != 0 {
            vec![1200]
        } else {
            vec![500, 500, 200]
        };
        assert_eq!(lens, want);
        assert_balanced(&kernel);
    }
}

/// A router between the wire and a network of MTU 600, which a VLAN on the same wire is, so that what it sends is seen.
fn narrow_router(features: u64) -> (Guest, Rc<World>) {
    let (mut kernel, world, _) = router(features);
    let vlan = kernel.vlan_add("eth0.5", Ifindex::ETH0, 5).unwrap();
    kernel
        .inet_addr_add(vlan, [192, 168, 8, 1].into(), 24)
        .unwrap();
    kernel.dev_set_mtu(vlan, 600).unwrap();
    kernel.neigh_add(NARROW.into(), PEER_MAC).unwrap();
    (kernel, world)
}

/// The `nth` segment of as many octets from the peer's connection to that host.
fn tcp_segment(df: bool, nth: u16, len: usize) -> Vec<u8> {
    let mut th = TcpHeader::new(9000, PORT, 1000 + u32::from(nth) * len as u32, 4096);
    th.ack = true;
    let timestamps = [TcpOptionElement::Timestamp(1, 2)];
    th.set_options(&timestamps).unwrap();
    let ip_len = (th.header_len() + len) as u16;
    let mut header = Ipv4Header::new(ip_len, 64, etherparse::IpNumber::TCP, PEER, NARROW).unwrap();
    (header.dont_fragment, header.identification) = (df, nth);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        .tcp_header(th)
        .write(&mut frame, &vec![7; len])
        .unwrap();
    frame
}

#[test]
fn what_came_together_is_measured_one_by_one() {
    // Payloads of packets of 600 octets, of one more, and of many more.
    for (len, lens) in [(548, &[600][..]), (549, &[596, 25]), (948, &[596, 424])] {
        for (df, count) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
            let (mut kernel, world) = narrow_router(FEATURES);
            for nth in 0..count {
                world.receive(&tcp_segment(df, nth, len));
            }
            settle(&mut kernel);
            assert_eq!(kernel.stats().gro_merged, u64::from(count) - 1);
            let sent = world.take_sent();
            if df && len > 548 {
                let (icmp_type, _) = read_icmp(&sent[0].frame);
                let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
                assert_eq!(icmp_type, Icmpv4Type::DestinationUnreachable(header));
                assert_eq!(sent.len(), 1);
            } else {
                let tag = 4;
                let got: Vec<_> = sent.iter().map(|s| s.frame.len() - 14 - tag).collect();
                assert_eq!(got, lens.repeat(count.into()), "{count} of {len}, DF {df}");
            }
            assert_balanced(&kernel);
        }
    }
}

#[test]
fn what_is_fragmented_has_its_checksum() {
    for features in [FEATURES, FEATURES & !f::CSUM] {
        let (mut kernel, world) = narrow_router(features);
        let whole = datagram(NARROW, 64, false, 1000);
        let hdr = VirtioNetHdr::needs_csum(34, 6);
        world.schedule_with(0, 0, hdr, &unfinished(&whole));
        settle(&mut kernel);
        let sent = world.take_sent();
        let payloads: Vec<_> = sent.iter().map(|sent| &sent.frame[38..]).collect();
        assert_eq!(payloads.concat(), whole[34..]);
        assert!(sent.iter().all(|sent| sent.hdr == VirtioNetHdr::default()));
        // One whose checksum would be in what was only padding cannot be finished.
        let before = kernel.stats().tx_drop(TxDrop::IpFragFails);
        let padded = [&unfinished(&whole)[..], &[0; 100]].concat();
        let wrong = VirtioNetHdr::needs_csum(34, 1020);
        world.schedule_with(0, 0, wrong, &padded);
        settle(&mut kernel);
        assert_eq!(world.take_sent(), []);
        assert_eq!(kernel.stats().tx_drop(TxDrop::IpFragFails), before + 1);
        assert_balanced(&kernel);
    }
}
