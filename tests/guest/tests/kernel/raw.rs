//! Raw sockets.

use std::net::SocketAddrV4;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, IpNumber, Ipv4Header, TcpHeader};
use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Fd, Protocol, SockType};

use crate::common::packets::{OURS, PEER, echo_request, icmp, ip, read_ip, udp};
use crate::common::world::{Guest, World, assert_balanced, boot, settle};
use crate::tcp::segment;
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

fn raw_socket(kernel: &mut Guest, protocol: u8) -> Fd {
    kernel
        .socket(SockType::Raw, Protocol::Raw(protocol))
        .unwrap()
}

fn receive(kernel: &mut Guest, world: &World, frame: &[u8]) {
    world.receive(frame);
    settle(kernel);
}

#[test]
fn each_socket_of_a_protocol_gets_its_packets_with_their_header() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let bound = udp_socket(&mut kernel, PORT);
    let (a, b, other) = (
        raw_socket(&mut kernel, 17),
        raw_socket(&mut kernel, 17),
        raw_socket(&mut kernel, 132),
    );
    kernel
        .connect(b, SocketAddrV4::new([10, 77, 0, 9].into(), 0))
        .unwrap();
    let frame = udp(PORT, b"hello");
    receive(&mut kernel, &world, &frame);
    assert_eq!(read_all(&mut kernel, a), [&frame[14..]]);
    assert_eq!(
        read_all(&mut kernel, b).len(),
        0,
        "it is connected to another"
    );
    assert_eq!(
        read_all(&mut kernel, bound),
        [b"hello"],
        "and so does its protocol"
    );
    // Whose protocol nobody knows else is not told of.
    receive(&mut kernel, &world, &ip(132, b"xyz"));
    let all = read_all(&mut kernel, other);
    assert_eq!((all.len(), all[0].len()), (1, 23));
    assert_eq!(world.take_sent(), []);
    kernel.close(other).unwrap();
    receive(&mut kernel, &world, &ip(132, b"xyz"));
    assert_eq!(kernel.stats().rx_drop(RxDrop::IpInUnknownProtos), 1);
    assert_balanced(&kernel);
}

#[test]
fn what_was_merged_of_several_is_whole() {
    let (mut kernel, world) = boot();
    let fd = raw_socket(&mut kernel, 6);
    for n in 0..3 {
        let th = |th: &mut TcpHeader| (th.ack, th.sequence_number) = (true, 1000 + 100 * n);
        world.receive(&segment(th, &[n as u8; 100]));
    }
    settle(&mut kernel);
    assert_eq!(kernel.stats().gro_merged, 2);
    let all = read_all(&mut kernel, fd);
    assert_eq!(all.len(), 1);
    let (header, payload) = all[0].split_at(40);
    assert_eq!(header[2..4], 340u16.to_be_bytes(), "as it says");
    assert_eq!(payload, [[0; 100], [1; 100], [2; 100]].concat());
    assert_balanced(&kernel);
}

#[test]
fn a_full_queue_drops() {
    let (mut kernel, world) = boot();
    let fd = raw_socket(&mut kernel, 132);
    kernel.set_rcvbuf(fd, 4000).unwrap();
    for _ in 0..20 {
        receive(&mut kernel, &world, &ip(132, b"xyz"));
    }
    let queued = read_all(&mut kernel, fd).len() as u64;
    assert!((2..10).contains(&queued), "{queued}");
    assert_eq!(kernel.stats().rx_drop(RxDrop::RawRcvbufErrors), 20 - queued);
    assert_balanced(&kernel);
}

#[test]
fn types_of_icmp_are_filtered() {
    let (mut kernel, world) = boot();
    let fd = raw_socket(&mut kernel, 1);
    receive(&mut kernel, &world, &echo_request(1, 2, b""));
    assert_eq!(read_all(&mut kernel, fd).len(), 1);
    kernel.set_icmp_filter(fd, 1 << 8).unwrap();
    receive(&mut kernel, &world, &echo_request(1, 2, b""));
    assert_eq!(read_all(&mut kernel, fd).len(), 0);
    let udp = udp_socket(&mut kernel, PORT);
    assert_eq!(kernel.set_icmp_filter(udp, 0), Err(Errno::ENOPROTOOPT));
}

#[test]
fn packets_are_sent_with_and_without_a_header() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = raw_socket(&mut kernel, 132);
    assert_eq!(kernel.sendto(fd, b"data", Some(peer(0))), Ok(4));
    let sent = world.take_sent();
    let ip = read_ip(&sent[0].frame);
    assert_eq!(
        (ip.header.protocol, ip.payload),
        (IpNumber(132), &b"data"[..])
    );
    assert_eq!(ip.header.destination, PEER);
    // Length and checksum are made right, source and identification filled in; the rest is the process's.
    let raw = raw_socket(&mut kernel, 255);
    let mut header = Ipv4Header::new(4, 9, IpNumber(99), [0; 4], PEER).unwrap();
    header.total_len = 7;
    let packet = [&header.to_bytes()[..], b"data"].concat();
    assert_eq!(kernel.sendto(raw, &packet, Some(peer(0))), Ok(24));
    let sent = world.take_sent();
    let ip = read_ip(&sent[0].frame);
    assert_eq!((ip.header.source, ip.header.time_to_live), (OURS, 9));
    assert_eq!((ip.header.total_len, ip.payload), (24, &b"data"[..]));
    assert_ne!(ip.header.identification, 0);
    // What is no header is the process's affair.
    assert_eq!(kernel.sendto(raw, &[0x40; 24], Some(peer(0))), Ok(24));
    for (bytes, error) in [
        (&packet[..19], Errno::EINVAL),
        (&[0x4f; 24], Errno::EINVAL),
        (&[0x45; 1501], Errno::EMSGSIZE),
    ] {
        assert_eq!(kernel.sendto(raw, bytes, Some(peer(0))), Err(error));
    }
    let nothing = kernel.socket(SockType::Raw, Protocol::Raw(0));
    assert_eq!(nothing, Err(Errno::EPROTONOSUPPORT));
}

#[test]
fn a_connected_socket_hears_of_errors() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = raw_socket(&mut kernel, 132);
    kernel.connect(fd, peer(0)).unwrap();
    kernel.sendto(fd, b"anybody", None).unwrap();
    let sent = world.take_sent();
    let header = DestUnreachableHeader::Protocol;
    let message = Icmpv4Type::DestinationUnreachable(header);
    // The beginning of a packet's payload belongs to what is told.
    receive(&mut kernel, &world, &icmp(&message, &sent[0].frame[14..41]));
    assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::EAGAIN));
    kernel.sendto(fd, b"anybody?", None).unwrap();
    let sent = world.take_sent();
    receive(&mut kernel, &world, &icmp(&message, &sent[0].frame[14..42]));
    assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::ENOPROTOOPT));
    assert_balanced(&kernel);
}
