//! TCP: what the kernel answers to segments that a test makes. (Connections are in `connections`.)

use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use etherparse::{PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Fd, Protocol, SockType};
use nic_guest::virtio_net::features as f;

use crate::common::packets::{OURS, PEER, PEER_MAC, icmp, read_ip};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, settle};
use crate::{PORT, resolve_peer};

/// A segment from the peer's port 9000.
pub fn segment(change: impl FnOnce(&mut TcpHeader), payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(9000, PORT, 1000, 4096);
    change(&mut header);
    let builder = PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv4(PEER, OURS, 64)
        .tcp_header(header);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// The segments that the kernel has sent; their checksums are right.
fn sent(world: &World) -> Vec<TcpHeader> {
    let read = |frame: &[u8]| {
        let ip = read_ip(frame);
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("no TCP: {frame:x?}");
        };
        let header = tcp.to_header();
        let check = header
            .calc_checksum_ipv4(&ip.header, tcp.payload())
            .unwrap();
        assert_eq!(header.checksum, check);
        header
    };
    let sent = world.take_sent();
    sent.iter().map(|sent| read(&sent.frame)).collect()
}

/// A kernel whose device makes no checksums, and that knows its peer.
fn plain() -> (Guest, Rc<World>) {
    let setup = Setup {
        features: FEATURES & !f::CSUM,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    (kernel, world)
}

pub fn stream(kernel: &mut Guest) -> Fd {
    kernel.socket(SockType::Stream, Protocol::Tcp).unwrap()
}

pub fn listener(kernel: &mut Guest, port: u16, backlog: usize) -> Fd {
    let fd = stream(kernel);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    kernel.bind(fd, any).unwrap();
    kernel.listen(fd, backlog).unwrap();
    fd
}

#[test]
fn a_closed_port_answers_with_a_reset() {
    let (mut kernel, world) = plain();
    // With ACK: that number, and no other flag. Without: all that came is acknowledged.
    world.receive(&segment(
        |th| (th.ack, th.acknowledgment_number) = (true, 77),
        b"abc",
    ));
    world.receive(&segment(|th| th.syn = true, b""));
    world.receive(&segment(|th| (th.syn, th.fin) = (true, true), b"abc"));
    world.receive(&segment(|th| th.rst = true, b""));
    settle(&mut kernel);
    let answers: Vec<_> = sent(&world)
        .iter()
        .map(|th| {
            assert!(th.rst && !th.syn && !th.fin);
            assert_eq!((th.source_port, th.destination_port), (PORT, 9000));
            (th.sequence_number, th.ack, th.acknowledgment_number)
        })
        .collect();
    assert_eq!(answers, [(77, false, 0), (0, true, 1001), (0, true, 1005)]);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::TcpNoSocket), 4);
    assert_eq!((stats.snmp.tcp_in_segs, stats.snmp.tcp_out_rsts), (4, 3));
    assert_balanced(&kernel);
}

#[test]
fn broken_segments_are_counted_and_not_answered() {
    let (mut kernel, world) = plain();
    listener(&mut kernel, PORT, 1);
    let good = segment(|th| th.syn = true, b"");
    let mut bad = good.clone();
    bad[40] ^= 1;
    world.receive(&bad);
    let mut bad = good.clone();
    // Four words of header; then 15, which are not there. The checksum would be found wrong after that.
    for words in [4, 15] {
        bad[46] = words << 4;
        world.receive(&bad);
    }
    let mut group = good.clone();
    group[..6].fill(0xff);
    world.receive(&group);
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::TcpInCsumErrors), 1);
    assert_eq!(stats.rx_drop(RxDrop::TcpInErrs), 1);
    assert_eq!(stats.rx_drop(RxDrop::TcpTruncated), 1);
    assert_eq!(stats.rx_drop(RxDrop::TcpNotHost), 1);
    assert_eq!(sent(&world), []);
    assert_balanced(&kernel);
}

#[test]
fn a_reset_says_nothing_of_congestion() {
    let (mut kernel, world) = plain();
    let mut frame = segment(|th| th.syn = true, b"");
    // A type of service of 0x10, and a mark of congestion; the header's sum is less by as much.
    frame[15] = 0x13;
    let sum = u16::from_be_bytes([frame[24], frame[25]]) - 0x13;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    world.receive(&frame);
    settle(&mut kernel);
    let answers = world.take_sent();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].frame[15], 0x10);
    assert_balanced(&kernel);
}

#[test]
fn an_error_about_a_segment_that_nobody_sent_is_one() {
    let (mut kernel, world) = plain();
    let narrow =
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
    let host = etherparse::icmpv4::DestUnreachableHeader::Host;
    // The peer's own segment is none of ours either.
    let quoted = &segment(|_| (), b"")[14..];
    for why in [narrow, host] {
        world.receive(&icmp(
            &etherparse::Icmpv4Type::DestinationUnreachable(why),
            quoted,
        ));
    }
    settle(&mut kernel);
    assert_eq!(kernel.stats().snmp.icmp_in_errors, 2);
    assert_balanced(&kernel);
}

#[test]
fn a_listener_answers_requests_and_nothing_else() {
    let (mut kernel, world) = plain();
    listener(&mut kernel, PORT, 8);
    world.receive(&segment(|th| th.syn = true, b""));
    settle(&mut kernel);
    let [answer] = &sent(&world)[..] else {
        panic!("one answer");
    };
    assert!(answer.syn && answer.ack);
    assert_eq!(answer.acknowledgment_number, 1001);
    // From another port each, so that they are for the listener.
    type Change = fn(&mut TcpHeader);
    let others: [Change; 4] = [
        |_| (),
        |th| th.rst = true,
        |th| (th.syn, th.fin) = (true, true),
        |th| (th.syn, th.rst) = (true, true),
    ];
    for (port, change) in (9001..).zip(others) {
        let from = |th: &mut TcpHeader| th.source_port = port;
        world.receive(&segment(|th| (change(th), from(th)).1, b""));
    }
    settle(&mut kernel);
    assert_eq!(sent(&world), []);
    world.receive(&segment(
        |th| (th.source_port, th.ack, th.acknowledgment_number) = (9005, true, 5),
        b"",
    ));
    settle(&mut kernel);
    let [answer] = &sent(&world)[..] else {
        panic!("one answer");
    };
    assert!(answer.rst && !answer.ack);
    assert_eq!(answer.sequence_number, 5);
    assert_eq!(kernel.stats().rx_drop(RxDrop::TcpFlags), 5);
    assert_balanced(&kernel);
}

#[test]
fn a_backlog_is_bounded_in_both_halves() {
    let (mut kernel, world) = plain();
    let fd = listener(&mut kernel, PORT, 3);
    let asks = |port: u16| segment(|th| (th.source_port, th.syn) = (port, true), b"");
    for port in 1..=10 {
        world.receive(&asks(port));
    }
    settle(&mut kernel);
    let answers = sent(&world);
    assert_eq!(answers.len(), 3);
    assert_eq!(kernel.stats().rx_drop(RxDrop::TcpReqQFullDrop), 7);
    // Their handshakes end, and there is room for others: one more than the backlog may wait.
    let finish = |answer: &TcpHeader| {
        segment(
            |th| {
                th.source_port = answer.destination_port;
                (th.ack, th.sequence_number) = (true, 1001);
                th.acknowledgment_number = answer.sequence_number.wrapping_add(1);
            },
            b"",
        )
    };
    for answer in &answers {
        world.receive(&finish(answer));
    }
    for port in 11..=13 {
        world.receive(&asks(port));
    }
    settle(&mut kernel);
    let answers = sent(&world);
    assert_eq!(answers.len(), 3);
    for answer in &answers {
        world.receive(&finish(answer));
    }
    world.receive(&asks(14));
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::ListenOverflows), 3);
    assert_eq!(stats.snmp.tcp_passive_opens, 4);
    let ports: Vec<_> = std::iter::from_fn(|| kernel.accept(fd).ok())
        .map(|(_, from)| from.port())
        .collect();
    assert_eq!(ports, [1, 2, 3, 11], "the oldest first");
    // The others have not given up: their SYN-ACK comes again, and is answered.
    let due = kernel.next_timer().unwrap();
    assert_eq!(due, 1_000_000_000);
    world.advance(due);
    settle(&mut kernel);
    let again = sent(&world);
    assert_eq!(again.len(), 2);
    assert_eq!(kernel.stats().snmp.tcp_retrans_segs, 2);
    for answer in &again {
        world.receive(&finish(answer));
    }
    settle(&mut kernel);
    assert_eq!(kernel.stats().snmp.tcp_curr_estab, 6);
    // A listener that goes takes with it what nobody accepted.
    kernel.close(fd).unwrap();
    assert_eq!(sent(&world).iter().filter(|th| th.rst).count(), 2);
    assert_eq!(kernel.stats().snmp.tcp_curr_estab, 4);
    assert_balanced(&kernel);
}

#[test]
fn what_is_left_of_an_earlier_connection_is_reset() {
    let (mut kernel, world) = plain();
    let fd = stream(&mut kernel);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    kernel.bind(fd, any).unwrap();
    let to = SocketAddrV4::new(PEER.into(), 9000);
    assert_eq!(kernel.connect(fd, to), Err(Errno::EINPROGRESS));
    let [syn] = &sent(&world)[..] else {
        panic!("a request");
    };
    let right = syn.sequence_number.wrapping_add(1);
    let answer = |ack: u32, change: fn(&mut TcpHeader)| {
        let with = |th: &mut TcpHeader| {
            (th.ack, th.acknowledgment_number) = (true, ack);
            change(th);
        };
        segment(with, b"")
    };
    world.receive(&answer(right + 1, |th| th.fin = true));
    world.receive(&answer(right - 1, |th| th.syn = true));
    world.receive(&answer(right + 1, |th| th.rst = true));
    settle(&mut kernel);
    let resets: Vec<_> = sent(&world)
        .iter()
        .map(|th| (th.rst, th.sequence_number))
        .collect();
    assert_eq!(resets, [(true, right + 1), (true, right - 1)]);
    assert_eq!(kernel.stats().rx_drop(RxDrop::TcpInvalidAckSequence), 3);
    assert_eq!(kernel.poll_writable(fd), Ok(false));
    world.receive(&answer(right, |th| th.syn = true));
    settle(&mut kernel);
    assert_eq!(kernel.poll_writable(fd), Ok(true));
    assert_eq!(kernel.sendto(fd, b"data", None), Ok(4));
    assert_balanced(&kernel);
}

/// A host on the way says that the peer cannot be reached.
#[test]
fn a_server_may_begin_again_while_its_connections_live() {
    for reuse in [true, false] {
        let (mut kernel, world) = plain();
        let server = |kernel: &mut Guest| {
            let fd = stream(kernel);
            kernel.set_reuseaddr(fd, reuse).unwrap();
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
            kernel.bind(fd, any).and_then(|()| kernel.listen(fd, 8))?;
            Ok(fd)
        };
        let fd = server(&mut kernel).unwrap();
        world.receive(&segment(|th| th.syn = true, b""));
        settle(&mut kernel);
        let ack = sent(&world)[0].sequence_number.wrapping_add(1);
        let established = |th: &mut TcpHeader| {
            (th.ack, th.sequence_number, th.acknowledgment_number) = (true, 1001, ack);
        };
        world.receive(&segment(established, b""));
        settle(&mut kernel);
        kernel.accept(fd).unwrap();
        let second = server(&mut kernel);
        assert_eq!(second, Err(Errno::EADDRINUSE), "while the first listens");
        kernel.close(fd).unwrap();
        let again = server(&mut kernel).err();
        assert_eq!(again, (!reuse).then_some(Errno::EADDRINUSE));
    }
}

#[test]
fn an_unreachable_peer_is_given_up_at_once() {
    let (mut kernel, world) = plain();
    let of_neighbour = kernel.next_timer();
    let fd = stream(&mut kernel);
    let to = SocketAddrV4::new(PEER.into(), 9000);
    assert_eq!(kernel.connect(fd, to), Err(Errno::EINPROGRESS));
    let [syn] = &world.take_sent()[..] else {
        panic!("a request");
    };
    let code = etherparse::icmpv4::DestUnreachableHeader::FilterProhibited;
    let message = etherparse::Icmpv4Type::DestinationUnreachable(code);
    let mut quoted = syn.frame[14..42].to_vec();
    // Somebody who has not seen the request does not know its number.
    quoted[27] ^= 2;
    world.receive(&icmp(&message, &quoted));
    settle(&mut kernel);
    assert_eq!(kernel.recvfrom(fd, &mut [0; 9]), Err(Errno::EAGAIN));
    quoted[27] ^= 2;
    world.receive(&icmp(&message, &quoted));
    settle(&mut kernel);
    assert_eq!(kernel.recvfrom(fd, &mut [0; 9]), Err(Errno::EHOSTUNREACH));
    assert_eq!(kernel.next_timer(), of_neighbour, "it is not asked again");
    assert_eq!(kernel.stats().snmp.tcp_attempt_fails, 1);
    kernel.close(fd).unwrap();
    assert_balanced(&kernel);
}
