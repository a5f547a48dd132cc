//! What a process is not let send, and what it hears of what it sent: error queues, counters.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use etherparse::Icmpv4Type;
use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use nic_guest::net::file::{MSG_MORE, MsgFlags, PollFlags};
use nic_guest::net::netfilter::{NfHook, NftChain, NftRule, Verdict};
use nic_guest::net::{
    EeOrigin, Errno, Fd, IpPmtudisc, ProcFile, Protocol, SockExtendedErr, SockType,
};

use crate::common::packets::{PEER, icmp};
use crate::common::world::{Guest, World, assert_balanced, boot, settle};
use crate::udp::finish_checksum;
use crate::{PORT, peer, resolve_peer, udp_socket};

fn guest() -> (Guest, Rc<World>, Fd) {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    (kernel, world, fd)
}

/// What was sent last comes back in a message.
fn answer(kernel: &mut Guest, world: &World, message: &Icmpv4Type, quoted: usize) {
    let sent = world.take_sent();
    let packet = &finish_checksum(sent.last().unwrap())[14..];
    world.receive(&icmp(message, &packet[..quoted.min(packet.len())]));
    settle(kernel);
}

fn from_peer(ee_errno: Errno, (ee_type, ee_code): (u8, u8), ee_info: u32) -> SockExtendedErr {
    SockExtendedErr {
        ee_errno,
        ee_origin: EeOrigin::Icmp,
        ee_type,
        ee_code,
        ee_info,
        offender: Some(PEER.into()),
        addr: peer(9),
    }
}

#[test]
fn a_socket_that_asks_keeps_what_became_of_its_packets() {
    let (mut kernel, world, fd) = guest();
    kernel.set_recverr(fd, true).unwrap();
    let mut buf = [0; 64];
    assert_eq!(kernel.recv_error(fd, &mut buf), Err(Errno::EAGAIN));
    let closed = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    let late = Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit);
    let narrow = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
    let narrow = Icmpv4Type::DestinationUnreachable(narrow);
    for (data, message) in [
        (&b"first"[..], &closed),
        (b"second", &late),
        (b"third", &narrow),
    ] {
        kernel.sendto(fd, data, Some(peer(9))).unwrap_or_else(|_| {
            // It was told of the one before.
            kernel.sendto(fd, data, Some(peer(9))).unwrap()
        });
        answer(&mut kernel, &world, message, 64);
    }
    // It is not connected, and hears all the same; of what may pass, too.
    assert_eq!(kernel.vfs_poll(fd, PollFlags::empty()), PollFlags::POLLERR);
    for (want, data) in [
        (from_peer(Errno::ECONNREFUSED, (3, 3), 0), &b"first"[..]),
        (from_peer(Errno::EHOSTUNREACH, (11, 0), 0), b"second"),
        (from_peer(Errno::EMSGSIZE, (3, 4), 600), b"third"),
    ] {
        let (len, error) = kernel.recv_error(fd, &mut buf).unwrap();
        assert_eq!((error, &buf[..len]), (want, data));
    }
    assert_eq!(kernel.vfs_poll(fd, PollFlags::empty()), PollFlags::empty());
    assert_eq!(
        kernel.recvfrom(fd, &mut buf),
        Err(Errno::EAGAIN),
        "none is left to tell"
    );
    assert_balanced(&kernel);
}

#[test]
fn the_next_error_is_told_by_calls_while_it_waits() {
    let (mut kernel, world, fd) = guest();
    kernel.set_recverr(fd, true).unwrap();
    for code in [
        DestUnreachableHeader::Port,
        DestUnreachableHeader::HostUnknown,
    ] {
        let _ = kernel.sendto(fd, b"x", Some(peer(9)));
        if world.sent.borrow().is_empty() {
            kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
        }
        answer(
            &mut kernel,
            &world,
            &Icmpv4Type::DestinationUnreachable(code),
            28,
        );
    }
    let (len, error) = kernel.recv_error(fd, &mut []).unwrap();
    assert_eq!((len, error.ee_errno), (0, Errno::ECONNREFUSED));
    assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::EHOSTDOWN));
    // Who wants no more of them loses those that wait.
    kernel.set_recverr(fd, false).unwrap();
    assert_eq!(kernel.recv_error(fd, &mut []), Err(Errno::EAGAIN));
}

#[test]
fn what_is_too_long_to_be_sent_is_kept_as_this_hosts_own() {
    let (mut kernel, _world, fd) = guest();
    kernel.set_recverr(fd, true).unwrap();
    kernel.set_mtu_discover(fd, IpPmtudisc::Do).unwrap();
    let told = |kernel: &mut Guest| {
        let (len, error) = kernel.recv_error(fd, &mut [0; 8]).unwrap();
        assert_eq!(
            (len, error.ee_errno, error.offender),
            (0, Errno::EMSGSIZE, None)
        );
        assert_eq!(error.ee_origin, EeOrigin::Local);
        assert_eq!(*error.addr.ip(), Ipv4Addr::from(PEER));
        (error.ee_info, error.addr.port())
    };
    let long = [0; 1473];
    assert_eq!(
        kernel.sendto(fd, &long, Some(peer(9))),
        Err(Errno::EMSGSIZE)
    );
    // The port is that of a connection.
    assert_eq!(told(&mut kernel), (1500, 0));
    let more = kernel.sendto_flags(fd, &long[..1000], Some(peer(9)), MSG_MORE);
    assert_eq!(more, Ok(1000));
    assert_eq!(kernel.sendto(fd, &long[..473], None), Err(Errno::EMSGSIZE));
    assert_eq!(told(&mut kernel), (1500, 0));
    assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::EAGAIN));
    kernel.connect(fd, peer(9)).unwrap();
    assert_eq!(kernel.sendto(fd, &long, None), Err(Errno::EMSGSIZE));
    assert_eq!(told(&mut kernel), (1500, 9));
    // What stands for several is as long as a packet can be.
    let longest = [0; 65_508];
    let sent = kernel.sendto_segments(fd, &longest, None, 1000);
    assert_eq!(sent, Err(Errno::EMSGSIZE));
    assert_eq!(told(&mut kernel), (65_535, 9));
    // One that is too long itself is nobody's news.
    let sent = kernel.sendto_segments(fd, &long, None, 1473);
    assert_eq!(sent, Err(Errno::EMSGSIZE));
    assert_eq!(kernel.recv_error(fd, &mut []), Err(Errno::EAGAIN));
}

#[test]
fn raw_and_ping_sockets_are_told_what_is_too_long_as_well() {
    let (mut kernel, world, _) = guest();
    let raw = |kernel: &mut Guest, number| {
        let protocol = Protocol::Raw(number);
        kernel.socket(SockType::Raw, protocol).unwrap()
    };
    let (plain, hdrincl) = (raw(&mut kernel, 99), raw(&mut kernel, 255));
    let ping = kernel.socket(SockType::Dgram, Protocol::Icmp).unwrap();
    let mut echo = [0; 1481];
    echo[0] = 8;
    for (fd, data) in [
        (plain, &[0; 1481][..]),
        (hdrincl, &[0x45; 1501]),
        (ping, &echo),
    ] {
        kernel.set_recverr(fd, true).unwrap();
        kernel.set_mtu_discover(fd, IpPmtudisc::Do).unwrap();
        let sent = kernel.sendto(fd, data, Some(peer(0)));
        assert_eq!(sent, Err(Errno::EMSGSIZE));
        let (_, error) = kernel.recv_error(fd, &mut []).unwrap();
        assert_eq!(
            (error.ee_origin, error.ee_info, error.addr),
            (EeOrigin::Local, 1500, peer(0))
        );
    }
    assert!(world.take_sent().is_empty());
}

#[test]
fn whose_packets_may_be_fragmented_hears_of_a_narrow_path_only_by_a_raw_socket() {
    let (mut kernel, world, udp) = guest();
    let raw = kernel.socket(SockType::Raw, Protocol::Raw(99)).unwrap();
    let narrow = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
    let narrow = Icmpv4Type::DestinationUnreachable(narrow);
    for (fd, told) in [(raw, true), (udp, false)] {
        kernel.set_recverr(fd, true).unwrap();
        kernel.set_mtu_discover(fd, IpPmtudisc::Dont).unwrap();
        kernel.sendto(fd, &[1; 500], Some(peer(9))).unwrap();
        answer(&mut kernel, &world, &narrow, 64);
        let error = kernel.recv_error(fd, &mut []);
        let error = error.map(|(_, error)| (error.ee_errno, error.ee_type, error.ee_code));
        let want = told.then_some((Errno::EMSGSIZE, 3, 4)).ok_or(Errno::EAGAIN);
        assert_eq!(error, want);
    }
    // Without being asked it tells nobody.
    kernel.set_recverr(raw, false).unwrap();
    kernel.connect(raw, peer(0)).unwrap();
    let _ = kernel.recvfrom(raw, &mut []);
    kernel.sendto(raw, &[1; 500], None).unwrap();
    answer(&mut kernel, &world, &narrow, 64);
    assert_eq!(kernel.recvfrom(raw, &mut []), Err(Errno::EAGAIN));
}

#[test]
fn what_has_no_room_in_the_receive_buffer_is_not_kept() {
    let (mut kernel, world, fd) = guest();
    kernel.set_recverr(fd, true).unwrap();
    kernel.set_rcvbuf(fd, 1).unwrap();
    let closed = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    for _ in 0..10 {
        let _ = kernel.recvfrom(fd, &mut []);
        kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
        answer(&mut kernel, &world, &closed, 28);
    }
    let kept = |kernel: &mut Guest| {
        let errors = (0..20).take_while(|_| kernel.recv_error(fd, &mut []).is_ok());
        errors.count()
    };
    assert_eq!(kept(&mut kernel), 1, "as long as a buffer of the device");
    // From this host they are shorter; two of either kind have room in 2304 bytes.
    let lo = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
    for _ in 0..10 {
        let _ = kernel.recvfrom(fd, &mut []);
        kernel.sendto(fd, b"x", Some(lo)).unwrap();
        settle(&mut kernel);
    }
    assert_eq!(kept(&mut kernel), 2);
    for _ in 0..10 {
        let sent = kernel.sendto(fd, &[0; 65_508], Some(peer(9)));
        assert_eq!(sent, Err(Errno::EMSGSIZE));
    }
    assert_eq!(kept(&mut kernel), 2);
    // Whoever reads them has room again.
    assert_eq!(
        kernel.sendto(fd, &[0; 65_508], Some(peer(9))),
        Err(Errno::EMSGSIZE)
    );
    assert_eq!(kept(&mut kernel), 1);
}

#[test]
fn a_raw_socket_gets_back_what_it_wrote() {
    let (mut kernel, world, _) = guest();
    let fd = kernel.socket(SockType::Raw, Protocol::Raw(99)).unwrap();
    kernel.set_recverr(fd, true).unwrap();
    kernel.sendto(fd, b"raw data", Some(peer(0))).unwrap();
    let unknown = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Protocol);
    answer(&mut kernel, &world, &unknown, 64);
    let mut buf = [0; 64];
    let (len, error) = kernel.recv_error(fd, &mut buf).unwrap();
    assert_eq!(
        (&buf[..len], error.ee_errno),
        (&b"raw data"[..], Errno::ENOPROTOOPT)
    );
}

#[test]
fn no_datagram_is_urgent_but_a_stream_takes_it_in_its_order() {
    let (mut kernel, _world, fd) = guest();
    let ping = kernel.socket(SockType::Dgram, Protocol::Icmp).unwrap();
    let raw = kernel.socket(SockType::Raw, Protocol::Raw(99)).unwrap();
    let urgent = |kernel: &mut Guest, fd, data: &[u8]| {
        kernel.sendto_flags(fd, data, Some(peer(9)), MsgFlags::MSG_OOB)
    };
    let echo = [8, 0, 0, 0, 0, 0, 0, 0];
    for fd in [fd, ping, raw] {
        assert_eq!(urgent(&mut kernel, fd, &echo), Err(Errno::EOPNOTSUPP));
        let long = urgent(&mut kernel, fd, &[8; 70_000]);
        assert_eq!(long, Err(Errno::EMSGSIZE));
    }
    assert_eq!(urgent(&mut kernel, Fd(99), &echo), Err(Errno::EBADF));
    let stream = kernel.socket(SockType::Stream, Protocol::Tcp).unwrap();
    assert_eq!(urgent(&mut kernel, stream, b"x"), Err(Errno::EPIPE));
}

/// A column of `/proc/net/snmp`.
fn column(kernel: &Guest, group: &str, name: &str) -> u64 {
    let mut text = String::new();
    kernel.proc_show(ProcFile::Snmp, &mut text).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|column| column == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

#[test]
fn what_is_not_sent_is_counted_where_linux_does() {
    let (mut kernel, world, fd) = guest();
    let counts = |kernel: &Guest| {
        [
            column(kernel, "Ip:", "OutNoRoutes"),
            column(kernel, "Ip:", "OutDiscards"),
            column(kernel, "Udp:", "SndbufErrors"),
        ]
    };
    let nowhere = SocketAddrV4::new(Ipv4Addr::new(8, 8, 8, 8), 9);
    let ping = kernel.socket(SockType::Dgram, Protocol::Icmp).unwrap();
    let stream = kernel.socket(SockType::Stream, Protocol::Tcp).unwrap();
    let echo = [8, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(
        kernel.sendto(fd, b"x", Some(nowhere)),
        Err(Errno::ENETUNREACH)
    );
    assert_eq!(
        kernel.sendto(ping, &echo, Some(nowhere)),
        Err(Errno::ENETUNREACH)
    );
    for fd in [fd, stream] {
        assert_eq!(kernel.connect(fd, nowhere), Err(Errno::ENETUNREACH));
    }
    assert_eq!(counts(&kernel), [4, 0, 0]);
    // No room in the send buffer.
    world.hold.set(true);
    for fd in [fd, ping] {
        kernel.set_sndbuf(fd, 1).unwrap();
        let sends = (0..20).take_while(|_| kernel.sendto(fd, &echo, Some(peer(9))).is_ok());
        assert!(sends.count() < 20);
    }
    assert_eq!(counts(&kernel), [4, 2, 1]);
    world.hold.set(false);
    world.transmit(0, 100);
    world.interrupt(1);
    settle(&mut kernel);
    // The filter.
    let rule = NftRule {
        verdict: Some(Verdict::Drop),
        ..NftRule::default()
    };
    kernel.nf_register_net_hook(NftChain {
        rules: vec![rule],
        ..NftChain::counting(NfHook::LocalOut)
    });
    assert_eq!(kernel.sendto(fd, b"x", Some(peer(9))), Err(Errno::EPERM));
    assert_eq!(counts(&kernel), [4, 3, 1]);
    let raw = kernel.socket(SockType::Raw, Protocol::Raw(255)).unwrap();
    for (packet, error, discards) in [
        (&[0x45; 24][..], Errno::EPERM, 4),
        (&[0x4f; 24], Errno::EINVAL, 5),
        (&[0x45; 19], Errno::EINVAL, 5),
        (&[0x45; 1501], Errno::EMSGSIZE, 5),
    ] {
        assert_eq!(kernel.sendto(raw, packet, Some(peer(0))), Err(error));
        assert_eq!(counts(&kernel), [4, discards, 1]);
    }
}
