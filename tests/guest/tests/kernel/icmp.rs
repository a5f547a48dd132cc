//! ICMP: echo both ways, and errors both ways.

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{IcmpEchoHeader, Icmpv4Type};
use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Protocol, SockType};

use crate::common::packets::{
    OURS, PEER, PEER_MAC, arp_request, echo_reply, echo_request, icmp, ip, read_icmp, read_ip, udp,
    udp_to,
};
use crate::common::world::{Guest, World, assert_balanced, boot, settle};
use crate::{peer, read_all, resolve_peer, udp_socket};

/// A kernel that knows the peer, and so answers at once.
fn known_peer() -> (Guest, std::rc::Rc<World>) {
    let (mut kernel, world) = boot();
    world.receive(&arp_request(OURS));
    settle(&mut kernel);
    world.take_sent();
    (kernel, world)
}

/// A message of that type.
fn raw(type_u8: u8) -> Icmpv4Type {
    Icmpv4Type::Unknown {
        type_u8,
        code_u8: 0,
        bytes5to8: [0; 4],
    }
}

#[test]
fn echo_requests_are_answered() {
    let (mut kernel, world) = known_peer();
    for payload in [&b""[..], b"x", &[7; 1472]] {
        world.receive(&echo_request(0x1234, 9, payload));
        settle(&mut kernel);
        let sent = world.take_sent();
        assert_eq!(sent.len(), 1);
        let reply = IcmpEchoHeader { id: 0x1234, seq: 9 };
        let want = (Icmpv4Type::EchoReply(reply), payload.to_vec());
        assert_eq!(read_icmp(&sent[0].frame), want);
        let ip = read_ip(&sent[0].frame);
        assert_eq!((ip.destination, ip.header.destination), (PEER_MAC, PEER));
        assert_eq!(
            (ip.header.time_to_live, ip.header.dont_fragment),
            (64, false)
        );
    }
    assert_eq!(kernel.stats().snmp.icmp_out_msgs, 3);
    assert_balanced(&kernel);
}

#[test]
fn bad_messages_are_told_apart() {
    let (mut kernel, world) = known_peer();
    let mut wrong = echo_request(1, 1, b"data");
    wrong[45] ^= 1;
    let short = ip(1, &[8, 0, 0xf7, 0xff]);
    let unknown = icmp(&raw(19), &[]);
    for frame in [&wrong, &short, &unknown] {
        world.receive(frame);
    }
    // Discarded, but not wrong: a timestamp that nobody asked for.
    world.receive(&icmp(&raw(14), &[0; 12]));
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::IcmpInCsumErrors), 1);
    assert_eq!(stats.rx_drop(RxDrop::IcmpInErrors), 2);
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn questions_about_interfaces_are_not_answered_and_not_wrong() {
    let (mut kernel, world) = known_peer();
    for icmp_type in [42, 43] {
        world.receive(&icmp(&raw(icmp_type), &[0; 12]));
    }
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!(stats.snmp.icmp_in_errors, 0);
    assert_eq!(stats.rx_drop(RxDrop::PingNoSocket), 1);
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn a_closed_port_is_unreachable() {
    let (mut kernel, world) = known_peer();
    let frame = udp(4444, &[0xab; 1000]);
    world.receive(&frame);
    settle(&mut kernel);
    let sent = world.take_sent();
    let (message, quoted) = read_icmp(&sent[0].frame);
    let port = DestUnreachableHeader::Port;
    assert_eq!(message, Icmpv4Type::DestinationUnreachable(port));
    assert_eq!(quoted, frame[14..14 + 548], "576 octets with all headers");
    assert_eq!(read_ip(&sent[0].frame).header.dscp.value() << 2, 0xc0);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpNoPorts), 1);
    assert_balanced(&kernel);
}

#[test]
fn an_unknown_protocol_is_unreachable() {
    let (mut kernel, world) = known_peer();
    world.receive(&ip(99, &[0; 20]));
    settle(&mut kernel);
    let (message, quoted) = read_icmp(&world.take_sent()[0].frame);
    let protocol = DestUnreachableHeader::Protocol;
    assert_eq!(message, Icmpv4Type::DestinationUnreachable(protocol));
    assert_eq!(quoted.len(), 40);
    assert_eq!(kernel.stats().rx_drop(RxDrop::IpInUnknownProtos), 1);
}

#[test]
fn nobody_is_told_about_what_was_sent_to_many() {
    let (mut kernel, world) = known_peer();
    let everybody = [0xff; 6];
    world.receive(&udp_to(everybody, [10, 77, 0, 255], 4444, b"x"));
    // To our address, but by a broadcast of the link.
    world.receive(&udp_to(everybody, OURS, 4444, b"x"));
    settle(&mut kernel);
    assert_eq!(world.take_sent(), []);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpIgnoredMulti), 1);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpNoPorts), 1);
}

#[test]
fn a_ping_socket_pings() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = kernel.socket(SockType::Dgram, Protocol::Icmp).unwrap();
    let request = [8, 0, 0, 0, 0xde, 0xad, 0, 5, b'h', b'i'];
    assert_eq!(kernel.sendto(fd, &request, Some(peer(0))), Ok(10));
    let sent = world.take_sent();
    let (message, payload) = read_icmp(&sent[0].frame);
    let id = kernel.getsockname(fd).unwrap().port();
    let echo = IcmpEchoHeader { id, seq: 5 };
    assert_eq!(message, Icmpv4Type::EchoRequest(echo));
    assert_eq!(payload, b"hi");
    world.receive(&echo_reply(id, 5, b"hi"));
    world.receive(&echo_reply(id ^ 1, 5, b"hi"));
    settle(&mut kernel);
    let mut buf = [0; 100];
    let received = kernel.recvfrom(fd, &mut buf).unwrap();
    assert_eq!((received.len, received.from), (10, peer(0)));
    assert_eq!((buf[0], &buf[8..10]), (0, &b"hi"[..]));
    assert_eq!(read_all(&mut kernel, fd).len(), 0);
    assert_eq!(kernel.stats().rx_drop(RxDrop::PingNoSocket), 1);
    for (what, bytes) in [("short", &request[..7]), ("a reply", &[0; 8])] {
        assert_eq!(
            kernel.sendto(fd, bytes, Some(peer(0))),
            Err(Errno::EINVAL),
            "{what}"
        );
    }
    assert_balanced(&kernel);
}

#[test]
fn a_connected_socket_learns_that_nobody_listens() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let unconnected = udp_socket(&mut kernel, 7001);
    kernel.connect(fd, peer(9)).unwrap();
    kernel.sendto(fd, b"anybody?", None).unwrap();
    kernel
        .sendto(unconnected, b"anybody?", Some(peer(9)))
        .unwrap();
    for sent in world.take_sent() {
        let port = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        world.receive(&icmp(&port, &sent.frame[14..]));
        // Cut off so short that nobody can say whose it was, or nonsense.
        for len in [0, 10, 20, 27] {
            world.receive(&icmp(&port, &sent.frame[14..14 + len]));
        }
        world.receive(&icmp(&port, &[0xff; 40]));
    }
    settle(&mut kernel);
    let mut buf = [0; 10];
    assert_eq!(kernel.recvfrom(fd, &mut buf), Err(Errno::ECONNREFUSED));
    assert_eq!(
        kernel.recvfrom(fd, &mut buf),
        Err(Errno::EAGAIN),
        "told once"
    );
    assert_eq!(kernel.recvfrom(unconnected, &mut buf), Err(Errno::EAGAIN));
    assert_balanced(&kernel);
}
