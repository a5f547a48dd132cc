//! Options of IP headers, and the limits of the errors that tell of them.

use std::rc::Rc;
use std::time::Duration;

use etherparse::icmpv4::{DestUnreachableHeader, ParameterProblemHeader, TimestampMessage};
use etherparse::{ArpOperation, Icmpv4Type, IpNumber, Ipv4Header};
use nic_guest::net::stats::{RxDrop, TxDrop};
use nic_guest::net::{Errno, IpPmtudisc, ProcFile};

use crate::common::packets::{
    OURS, PEER, PEER_MAC, arp, echo_request, icmp, ip_with, read_icmp, read_ip, udp, udp_to,
};
use crate::common::world::{Guest, MAC, Setup, World, assert_balanced, settle};
use crate::vlan::tagged;
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

const SECOND: u64 = 1_000_000_000;

fn known_peer(setup: Setup) -> (Guest, Rc<World>) {
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    (kernel, world)
}

/// The packet with options, padded by their end mark.
fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let (mut header, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    let mut padded = options.to_vec();
    padded.resize(options.len().next_multiple_of(4), 0);
    header.options = padded[..].try_into().unwrap();
    header.total_len = (header.header_len() + payload.len()) as u16;
    ip_with(header, payload)
}

fn receive(kernel: &mut Guest, world: &World, frame: &[u8]) {
    world.receive(frame);
    settle(kernel);
}

#[test]
fn an_answer_records_the_route_and_the_time() {
    let (mut kernel, world) = known_peer(Setup::default());
    world.advance(5 * SECOND);
    let echo = echo_request(1, 2, b"hello");
    for (options, want) in [
        (
            &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[7, 11, 12, 10, 77, 0, 2, 10, 77, 0, 2, 0][..],
        ),
        (&[1, 7, 7, 4, 0, 0, 0, 0], &[7, 7, 8, 10, 77, 0, 2, 0]),
        (&[68, 8, 5, 0, 0, 0, 0, 0], &[68, 8, 9, 0, 0, 0, 0x13, 0x88]),
        // Neither is known; an answer has no use for them.
        (&[1, 1, 1, 1], &[]),
        (&[0x94, 4, 0, 0], &[]),
    ] {
        receive(&mut kernel, &world, &with_options(&echo, options));
        let sent = world.take_sent();
        let ip = read_ip(&sent[0].frame);
        assert_eq!(ip.header.options.as_slice(), want, "{options:?}");
        assert_eq!(read_icmp(&sent[0].frame).1, b"hello");
    }
    assert_balanced(&kernel);
}

#[test]
fn wrong_options_are_told_of_even_if_the_packet_is_for_nobody() {
    let (mut kernel, world) = known_peer(Setup::default());
    let elsewhere = udp_to(MAC, [10, 77, 0, 3], PORT, b"hello");
    receive(
        &mut kernel,
        &world,
        &with_options(&elsewhere, &[7, 7, 4, 0, 0, 0, 0]),
    );
    assert_eq!(world.take_sent(), []);
    receive(&mut kernel, &world, &with_options(&elsewhere, &[7, 99, 4]));
    let sent = world.take_sent();
    assert_eq!(read_ip(&sent[0].frame).header.source, OURS);
    let problem = ParameterProblemHeader::PointerIndicatesError(20);
    let (message, _) = read_icmp(&sent[0].frame);
    assert_eq!(message, Icmpv4Type::ParameterProblem(problem));
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::IpInAddrErrors), 1);
    assert_eq!(stats.rx_drop(RxDrop::IpInHdrErrors), 1);
    assert_balanced(&kernel);
}

#[test]
fn sockets_get_datagrams_that_have_options() {
    let (mut kernel, world) = known_peer(Setup::default());
    let fd = udp_socket(&mut kernel, PORT);
    let datagram = udp(PORT, b"hello");
    receive(
        &mut kernel,
        &world,
        &with_options(&datagram, &[7, 7, 4, 0, 0, 0, 0]),
    );
    receive(&mut kernel, &world, &with_options(&datagram, &[1; 40]));
    assert_eq!(read_all(&mut kernel, fd), [b"hello", b"hello"]);
}

#[test]
fn bad_options_are_told_by_their_octet_and_source_routes_are_not_followed() {
    let (mut kernel, world) = known_peer(Setup::default());
    let fd = udp_socket(&mut kernel, PORT);
    let datagram = udp(PORT, b"hello");
    let bad = with_options(&datagram, &[1, 7, 6, 4, 0, 0, 0, 0]);
    receive(&mut kernel, &world, &bad);
    let sent = world.take_sent();
    let (message, quoted) = read_icmp(&sent[0].frame);
    let problem = ParameterProblemHeader::PointerIndicatesError(23);
    assert_eq!(message, Icmpv4Type::ParameterProblem(problem));
    assert_eq!(quoted, bad[14..]);
    receive(
        &mut kernel,
        &world,
        &with_options(&datagram, &[131, 7, 4, 10, 77, 0, 9]),
    );
    assert_eq!(world.take_sent(), []);
    assert_eq!(read_all(&mut kernel, fd).len(), 0);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::IpInHdrErrors), 1);
    assert_eq!(stats.rx_drop(RxDrop::IpInSourceRoute), 1);
    assert_balanced(&kernel);
}

#[test]
fn who_asks_for_the_time_is_told() {
    let (mut kernel, world) = known_peer(Setup::default());
    world.advance(7 * SECOND);
    let request = TimestampMessage {
        id: 3,
        seq: 4,
        originate_timestamp: 99,
        receive_timestamp: 0,
        transmit_timestamp: 0,
    };
    receive(
        &mut kernel,
        &world,
        &icmp(&Icmpv4Type::TimestampRequest(request.clone()), &[]),
    );
    let reply = TimestampMessage {
        receive_timestamp: 7000,
        transmit_timestamp: 7000,
        ..request
    };
    let sent = world.take_sent();
    assert_eq!(
        read_icmp(&sent[0].frame).0,
        Icmpv4Type::TimestampReply(reply)
    );
    let mut snmp = String::new();
    kernel.proc_show(ProcFile::Snmp, &mut snmp).unwrap();
    let counted = "IcmpMsg: InType13 OutType14\nIcmpMsg: 1 1\n";
    assert!(snmp.contains(counted), "{snmp}");
}

#[test]
fn errors_are_limited_and_answers_are_not() {
    let (mut kernel, world) = known_peer(Setup::default());
    let errors = |kernel: &mut Guest, count: usize| {
        for _ in 0..count {
            receive(kernel, &world, &udp(4444, b"x"));
        }
        world.take_sent().len()
    };
    assert_eq!(errors(&mut kernel, 20), 6);
    assert_eq!(kernel.stats().snmp.icmp_out_rate_limit_host, 14);
    world.advance(SECOND);
    assert_eq!(errors(&mut kernel, 20), 1);
    for n in 0..20 {
        receive(&mut kernel, &world, &echo_request(1, n, b""));
    }
    assert_eq!(world.take_sent().len(), 20);
    assert_balanced(&kernel);
}

#[test]
fn limits_can_be_raised_and_hold_for_all_hosts_together() {
    let mut setup = Setup::default();
    setup.config.ipv4.icmp_ratelimit = Duration::ZERO;
    let (mut kernel, world) = known_peer(setup);
    let errors = |kernel: &mut Guest| {
        for _ in 0..200 {
            receive(kernel, &world, &udp(4444, b"x"));
        }
        world.take_sent().len()
    };
    assert_eq!(errors(&mut kernel), 50);
    assert_eq!(kernel.stats().snmp.icmp_out_rate_limit_global, 150);
    let mut setup = Setup::default();
    setup.config.ipv4.icmp_ratemask = 0;
    let (mut kernel, world) = known_peer(setup);
    for _ in 0..200 {
        receive(&mut kernel, &world, &udp(4444, b"x"));
    }
    assert_eq!(world.take_sent().len(), 200);
}

#[test]
fn errors_are_not_answered_with_errors() {
    let (mut kernel, world) = known_peer(Setup::default());
    // An error, and something that may be one, with options that are wrong; a request with such is told of.
    for (icmp_type, answers) in [(3, 0), (40, 0), (13, 1)] {
        let message = Icmpv4Type::Unknown {
            type_u8: icmp_type,
            code_u8: 0,
            bytes5to8: [0; 4],
        };
        let bad = with_options(&icmp(&message, &[0; 28]), &[7, 1, 0, 0]);
        receive(&mut kernel, &world, &bad);
        assert_eq!(world.take_sent().len(), answers, "{icmp_type}");
    }
    // Nor are fragments but the first.
    let mut header = Ipv4Header::new(8, 64, IpNumber(17), PEER, OURS).unwrap();
    header.options = [7, 1, 0, 0].into();
    header.total_len += 4;
    header.dont_fragment = false;
    header.fragment_offset = 1.try_into().unwrap();
    receive(&mut kernel, &world, &ip_with(header, &[0; 8]));
    assert_eq!(world.take_sent(), []);
}

/// Packets with options of a host, one for each buffer that the device has.
fn fill_buffers(kernel: &mut Guest, world: &World, host: [u8; 4]) {
    world.receive(&arp(
        MAC,
        ArpOperation::REQUEST,
        (PEER_MAC, host),
        ([0; 6], OURS),
    ));
    let header = Ipv4Header::new(8, 64, IpNumber(99), host, OURS).unwrap();
    let frame = with_options(
        &ip_with(header, &[0; 8]),
        &[1, 1, 7, 7, 4, 0, 0, 0, 0, 0, 0, 0],
    );
    for _ in 0..64 {
        receive(kernel, world, &frame);
    }
    world.take_sent();
}

#[test]
fn an_answer_that_waits_in_vain_has_no_options_of_an_earlier_packet() {
    let (mut kernel, world) = known_peer(Setup::default());
    fill_buffers(&mut kernel, &world, PEER);
    // There is no room left in its record, and nobody has the address that it is from.
    let full = [7, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut echo = with_options(&echo_request(1, 2, b"hello"), &full);
    let (mut header, payload) = Ipv4Header::from_slice(&echo[14..]).unwrap();
    header.source = [10, 77, 0, 99];
    echo = ip_with(header, payload);
    receive(&mut kernel, &world, &echo);
    for _ in 0..4 {
        world.advance(SECOND);
        settle(&mut kernel);
    }
    assert_eq!(kernel.stats().tx_drop(TxDrop::NeighResFailed), 1);
    assert_balanced(&kernel);
}

#[test]
fn an_error_about_what_this_host_sent_stays_here() {
    let (mut kernel, world) = known_peer(Setup::default());
    let fd = udp_socket(&mut kernel, PORT);
    kernel.connect(fd, peer(9)).unwrap();
    kernel.sendto(fd, &[7; 1400], None).unwrap();
    let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
    let quoted = &world.take_sent()[0].frame[14..42].to_vec();
    let message = Icmpv4Type::DestinationUnreachable(header);
    receive(&mut kernel, &world, &icmp(&message, quoted));
    assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::EMSGSIZE));
    fill_buffers(&mut kernel, &world, [10, 77, 0, 66]);
    // It is longer than what passes by now, and not to be fragmented any more: too long, says this host to itself.
    kernel.set_udp_cork(fd, true).unwrap();
    kernel.sendto(fd, &[7; 1400], None).unwrap();
    kernel.set_mtu_discover(fd, IpPmtudisc::Do).unwrap();
    kernel.set_udp_cork(fd, false).unwrap();
    settle(&mut kernel);
    assert_eq!(kernel.stats().tx_drop(TxDrop::IpFragFails), 1);
    assert_eq!(world.take_sent(), []);
    assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::EMSGSIZE));
}

#[test]
fn what_is_sent_on_records_the_address_that_it_leaves_by() {
    let mut setup = Setup::default();
    setup.config.ip_forward = true;
    let (mut kernel, world) = known_peer(setup);
    let vlan = kernel
        .vlan_add("eth0.7", nic_guest::net::Ifindex::ETH0, 7)
        .unwrap();
    kernel
        .inet_addr_add(vlan, [10, 88, 0, 1].into(), 24)
        .unwrap();
    world.advance(5 * SECOND);
    let mut header = Ipv4Header::new(8, 64, IpNumber(99), [10, 88, 0, 9], PEER).unwrap();
    header.identification = 7;
    for (options, want) in [
        // It came by 10.88.0.1.
        (
            &[7, 7, 4, 0, 0, 0, 0, 0][..],
            &[7, 7, 8, 10, 77, 0, 2, 0][..],
        ),
        (
            &[68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[68, 12, 13, 1, 10, 77, 0, 2, 0, 0, 0x13, 0x88],
        ),
        (&[68, 8, 5, 0, 0, 0, 0, 0], &[68, 8, 9, 0, 0, 0, 0x13, 0x88]),
        // There is no room; one more host had none.
        (&[7, 7, 8, 1, 2, 3, 4, 0], &[7, 7, 8, 1, 2, 3, 4, 0]),
    ] {
        let frame = with_options(&ip_with(header.clone(), &[0; 8]), options);
        receive(&mut kernel, &world, &tagged(&frame, &[(0x8100, 7)]));
        let sent = world.take_sent();
        let (ip, _) = Ipv4Header::from_slice(&sent[0].frame[14..]).unwrap();
        assert_eq!(ip.options.as_slice(), want, "{options:?}");
        assert_eq!(
            (ip.time_to_live, ip.header_checksum),
            (63, ip.calc_header_checksum())
        );
    }
    assert_balanced(&kernel);
}
