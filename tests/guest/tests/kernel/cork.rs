//! Data that waits for more: corked sockets, `MSG_MORE`; against sockets of the machine that the test runs on.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use etherparse::Icmpv4Type;
use etherparse::icmpv4::DestUnreachableHeader;
use nic_guest::net::file::{MSG_MORE, MsgFlags};
use nic_guest::net::{Errno, Fd, Ifindex, IpPmtudisc, Protocol, SockType};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockaddrIn, bind, connect, getsockname, recv, send,
    sendto, socket,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::common::packets::{icmp, read_ip, read_udp};
use crate::common::world::{FEATURES, Guest, Sent, Setup, assert_balanced, boot, settle};
use crate::udp::finish_checksum;
use crate::{PORT, peer, resolve_peer, udp_socket};

const NONE: MsgFlags = MsgFlags::empty();
/// [`PORT`] of this host.
const LO_PORT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);

#[test]
fn what_is_sent_with_more_to_come_is_one_datagram() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    for (piece, flags) in [(&b"one "[..], MSG_MORE), (b"two ", MSG_MORE)] {
        assert_eq!(kernel.sendto_flags(fd, piece, Some(peer(9)), flags), Ok(4));
    }
    assert!(world.take_sent().is_empty());
    // It goes where the first piece went, whatever is said.
    assert_eq!(kernel.sendto(fd, b"three", Some(peer(10))), Ok(5));
    let sent = world.take_sent();
    assert_eq!(sent.len(), 1);
    let (_, _, port, payload) = read_udp(&sent[0].frame);
    assert_eq!((port, &payload[..]), (9, &b"one two three"[..]));
    assert_eq!(
        sent[0].hdr,
        VirtioNetHdr::default(),
        "its checksum was made here"
    );
    assert_eq!(kernel.sendto(fd, b"four", Some(peer(10))), Ok(4));
    let sent = world.take_sent();
    assert_eq!(read_udp(&finish_checksum(&sent[0])).2, 10);
    assert_eq!(kernel.stats().snmp.udp_out_datagrams, 3);
}

#[test]
fn a_cork_that_is_drawn_lets_all_out_that_waits() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_udp_cork(fd, true).unwrap();
    for _ in 0..30 {
        kernel.sendto(fd, &[7; 100], Some(peer(9))).unwrap();
    }
    // A connection made meanwhile is for what comes after.
    kernel.connect(fd, peer(12)).unwrap();
    assert!(world.take_sent().is_empty());
    kernel.set_udp_cork(fd, false).unwrap();
    let sent = world.take_sent();
    let lens: Vec<usize> = sent
        .iter()
        .map(|sent| read_ip(&sent.frame).payload.len())
        .collect();
    assert_eq!(lens, [1480, 1480, 48]);
    kernel.set_udp_cork(fd, false).unwrap();
    assert!(world.take_sent().is_empty(), "nothing waits");
    let stream = kernel.socket(SockType::Stream, Protocol::Tcp).unwrap();
    assert_eq!(kernel.set_udp_cork(stream, true), Err(Errno::ENOPROTOOPT));
    assert_eq!(kernel.set_udp_gro(stream, true), Err(Errno::ENOPROTOOPT));
    settle(&mut kernel);
    assert_balanced(&kernel);
}

#[test]
fn a_socket_is_charged_for_what_waits_until_it_is_gone() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_sndbuf(fd, 2304).unwrap();
    let more = |kernel: &mut Guest, len: usize| {
        kernel.sendto_flags(fd, &vec![1; len], Some(peer(9)), MSG_MORE)
    };
    // Each fragment is looked at; so it is if nothing is to follow.
    assert_eq!(more(&mut kernel, 12_000), Err(Errno::ENOBUFS));
    let at_once = kernel.sendto(fd, &[1; 12_000], Some(peer(9)));
    assert_eq!(at_once, Err(Errno::ENOBUFS));
    assert_eq!(more(&mut kernel, 7300), Ok(7300));
    assert_eq!(more(&mut kernel, 10), Ok(10), "still the same fragment");
    assert_eq!(more(&mut kernel, 1480), Err(Errno::ENOBUFS));
    let snmp = kernel.stats().snmp;
    assert_eq!((snmp.ip_out_discards, snmp.udp_sndbuf_errors), (3, 3));
    // All of it is lost, and there is room again.
    assert_eq!(kernel.sendto(fd, b"alone", Some(peer(9))), Ok(5));
    let sent = world.take_sent();
    assert_eq!(
        (sent.len(), &read_udp(&finish_checksum(&sent[0])).3[..]),
        (1, &b"alone"[..])
    );
    assert_eq!(more(&mut kernel, 100), Ok(100));
    kernel.close(fd).unwrap();
    settle(&mut kernel);
    assert!(world.take_sent().is_empty());
}

#[test]
fn a_datagram_that_waits_may_be_several() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_udp_cork(fd, true).unwrap();
    for len in [1000, 400] {
        kernel
            .sendto_segments(fd, &vec![3; len], Some(peer(9)), 500)
            .unwrap();
    }
    kernel.set_udp_cork(fd, false).unwrap();
    let lens: Vec<usize> = world
        .take_sent()
        .iter()
        .map(|sent| read_udp(&finish_checksum(sent)).3.len())
        .collect();
    assert_eq!(lens, [500, 500, 400]);
    // 129 of them, or one too long: refused once it is complete, which with a cork nobody hears.
    for (len, gso_size) in [(129, 1), (2000, 1473)] {
        kernel.set_udp_cork(fd, true).unwrap();
        kernel
            .sendto_segments(fd, &vec![3; len], Some(peer(9)), gso_size)
            .unwrap();
        kernel.set_udp_cork(fd, false).unwrap();
        assert!(world.take_sent().is_empty(), "{len}");
    }
}

#[test]
fn raw_packets_wait_too() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = kernel.socket(SockType::Raw, Protocol::Raw(99)).unwrap();
    assert_eq!(
        kernel.sendto_flags(fd, b"one ", Some(peer(0)), MSG_MORE),
        Ok(4)
    );
    assert_eq!(kernel.sendto_flags(fd, b"two", Some(peer(0)), NONE), Ok(3));
    let sent = world.take_sent();
    let ip = read_ip(&sent[0].frame);
    assert_eq!(
        (sent.len(), ip.header.protocol.0, ip.payload),
        (1, 99, &b"one two"[..])
    );
    assert_eq!(
        kernel.sendto_flags(fd, b"one", Some(peer(0)), MSG_MORE),
        Ok(3)
    );
    let long = vec![0; 65_535 - 20 - 2];
    assert_eq!(
        kernel.sendto(fd, &long, Some(peer(0))),
        Err(Errno::EMSGSIZE)
    );
    assert_eq!(kernel.sendto(fd, b"alone", Some(peer(0))), Ok(5));
    assert_eq!(read_ip(&world.take_sent()[0].frame).payload, b"alone");
}

#[test]
fn no_device_is_so_wide_that_a_packet_is_longer_than_it_can_say() {
    for pmtudisc in [IpPmtudisc::Do, IpPmtudisc::Probe, IpPmtudisc::Interface] {
        for mtu in [65_536, 200_000] {
            let (mut kernel, _world) = boot();
            kernel.dev_set_mtu(Ifindex::LO, mtu).unwrap();
            let to = udp_socket(&mut kernel, PORT);
            let fd = udp_socket(&mut kernel, 0);
            kernel.set_mtu_discover(fd, pmtudisc).unwrap();
            let mut send =
                |len, flags| kernel.sendto_flags(fd, &vec![1; len], Some(LO_PORT), flags);
            for (first, second) in [(65_000, 65_000), (65_000, 508), (0, 65_508)] {
                assert_eq!(send(first, MSG_MORE), Ok(first));
                assert_eq!(send(second, MSG_MORE), Err(Errno::EMSGSIZE));
                assert_eq!(send(65_508, NONE), Err(Errno::EMSGSIZE));
            }
            assert_eq!(send(65_000, MSG_MORE), Ok(65_000));
            assert_eq!(send(507, NONE), Ok(507));
            settle(&mut kernel);
            let received = received(&mut kernel, to);
            let lens: Vec<usize> = received.iter().map(Vec::len).collect();
            assert_eq!(lens, [65_507]);
            assert_balanced(&kernel);
        }
    }
}

#[test]
fn whether_it_may_be_fragmented_is_seen_when_it_is_complete() {
    for (pmtudisc, fragments, counts) in [
        (IpPmtudisc::Interface, 3, [0, 0, 1]),
        (IpPmtudisc::Omit, 3, [0, 0, 1]),
        (IpPmtudisc::Do, 0, [1, 1, 0]),
        (IpPmtudisc::Probe, 0, [1, 1, 0]),
    ] {
        let (mut kernel, world) = boot();
        resolve_peer(&mut kernel, &world);
        let fd = udp_socket(&mut kernel, PORT);
        kernel.set_udp_cork(fd, true).unwrap();
        assert_eq!(kernel.sendto(fd, &[1; 3000], Some(peer(9))), Ok(3000));
        kernel.set_mtu_discover(fd, pmtudisc).unwrap();
        kernel.set_udp_cork(fd, false).unwrap();
        let sent = world.take_sent();
        assert_eq!(sent.len(), fragments, "{pmtudisc:?}");
        let df = |sent: &Sent| read_ip(&sent.frame).header.dont_fragment;
        assert!(!sent.iter().any(df), "{pmtudisc:?}");
        let snmp = kernel.stats().snmp;
        let counted = [
            snmp.ip_frag_fails,
            snmp.ip_out_discards,
            // One asked for the peer's address.
            snmp.udp_out_datagrams - 1,
        ];
        assert_eq!(counted, counts, "{pmtudisc:?}");
        settle(&mut kernel);
        assert_balanced(&kernel);
    }
}

#[test]
fn who_completes_what_the_path_has_become_too_narrow_for_is_told() {
    for protocol in [Protocol::Udp, Protocol::Raw(99)] {
        let (mut kernel, _world) = boot();
        let fd = match protocol {
            Protocol::Udp => udp_socket(&mut kernel, 0),
            _ => kernel.socket(SockType::Raw, protocol).unwrap(),
        };
        kernel.set_mtu_discover(fd, IpPmtudisc::Do).unwrap();
        let more = kernel.sendto_flags(fd, &[1; 3000], Some(LO_PORT), MSG_MORE);
        assert_eq!(more, Ok(3000));
        kernel.dev_set_mtu(Ifindex::LO, 1500).unwrap();
        let last = kernel.sendto(fd, b"", Some(LO_PORT));
        assert_eq!(last, Err(Errno::EMSGSIZE), "{protocol:?}");
        let snmp = kernel.stats().snmp;
        let counted = [
            snmp.ip_frag_fails,
            snmp.ip_out_discards,
            snmp.udp_out_datagrams,
        ];
        assert_eq!(counted, [1, 1, 0], "{protocol:?}");
        settle(&mut kernel);
        assert_balanced(&kernel);
    }
}

#[test]
fn what_is_too_long_is_told_before_what_a_peer_answered() {
    let (mut kernel, _world) = boot();
    let fd = udp_socket(&mut kernel, 0);
    kernel.connect(fd, LO_PORT).unwrap();
    kernel.set_mtu_discover(fd, IpPmtudisc::Do).unwrap();
    for flags in [NONE, MSG_MORE] {
        kernel.sendto(fd, b"anybody?", None).unwrap();
        settle(&mut kernel);
        let long = kernel.sendto_flags(fd, &[1; 65_520], None, flags);
        assert_eq!(long, Err(Errno::EMSGSIZE));
        let next = kernel.sendto_flags(fd, b"x", None, flags);
        assert_eq!(next, Err(Errno::ECONNREFUSED));
    }
    // Datagrams that are too many are not seen before either.
    kernel.sendto(fd, b"anybody?", None).unwrap();
    settle(&mut kernel);
    for want in [Errno::ECONNREFUSED, Errno::EINVAL] {
        assert_eq!(kernel.sendto_segments(fd, &[1; 129], None, 1), Err(want));
    }
}

#[test]
fn a_raw_socket_has_twice_its_send_buffer_and_sends_whatever_was_answered() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = kernel.socket(SockType::Raw, Protocol::Raw(99)).unwrap();
    kernel.connect(fd, peer(0)).unwrap();
    kernel.sendto(fd, b"anybody?", None).unwrap();
    let header = DestUnreachableHeader::Protocol;
    let message = Icmpv4Type::DestinationUnreachable(header);
    world.receive(&icmp(&message, &world.take_sent()[0].frame[14..42]));
    settle(&mut kernel);
    assert_eq!(kernel.sendto(fd, b"all the same", None), Ok(12));
    assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::ENOPROTOOPT));
    kernel.set_sndbuf(fd, 1).unwrap();
    world.hold.set(true);
    let full = (0..20).find_map(|_| kernel.sendto(fd, &[1; 1000], None).err());
    assert_eq!(full, Some(Errno::ENOBUFS));
}

#[test]
fn what_stands_for_several_is_marked_by_its_whole_length_and_left_to_the_device() {
    let setup = Setup {
        features: FEATURES | f::HOST_USO,
        queue_size: 64,
        tx_buf_len: None,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    let partial = VirtioNetHdr::needs_csum(34, 6);
    for (len, df) in [(1400, true), (3000, false), (600, true)] {
        for cork in [false, true] {
            kernel.set_udp_cork(fd, cork).unwrap();
            let sent = kernel.sendto_segments(fd, &vec![3; len], Some(peer(9)), 700);
            assert_eq!(sent, Ok(len));
            kernel.set_udp_cork(fd, false).unwrap();
            let sent = world.take_sent();
            let hdr = match len {
                600 => partial,
                _ => partial.with_gso(5, 700, 42),
            };
            assert_eq!((sent.len(), sent[0].hdr), (1, hdr), "{len}, {cork}");
            let header = read_ip(&finish_checksum(&sent[0])).header;
            assert_eq!(header.dont_fragment, df, "{len}, {cork}");
        }
    }
}

/// What is done with a socket.
#[derive(Debug, Clone)]
enum Call {
    Send { len: usize, more: bool },
    Cork(bool),
    Discover(i32, IpPmtudisc),
    Connect,
}

/// What may be sent; `narrow` says that no packet is longer than its MTU has it.
fn call(narrow: bool) -> impl Strategy<Value = Call> {
    let len = prop_oneof![
        4 => 0..100usize,
        2 => 1000..3000usize,
        1 => 20_000..40_000usize,
        1 => 65_500..65_540usize,
    ];
    let discover = [
        (libc::IP_PMTUDISC_WANT, IpPmtudisc::Want),
        (libc::IP_PMTUDISC_DO, IpPmtudisc::Do),
        (libc::IP_PMTUDISC_DONT, IpPmtudisc::Dont),
        (libc::IP_PMTUDISC_OMIT, IpPmtudisc::Omit),
        (libc::IP_PMTUDISC_PROBE, IpPmtudisc::Probe),
        (libc::IP_PMTUDISC_INTERFACE, IpPmtudisc::Interface),
    ];
    let discover = discover[..if narrow { 6 } else { 4 }].to_vec();
    prop_oneof![
        8 => (len, any::<bool>()).prop_map(|(len, more)| Call::Send { len, more }),
        2 => any::<bool>().prop_map(Call::Cork),
        2 => proptest::sample::select(discover).prop_map(|(theirs, ours)| Call::Discover(theirs, ours)),
        1 => Just(Call::Connect),
    ]
}

/// Runs `test` where this machine's loopback device is as narrow as Ethernet, if that is possible; it is told whether.
fn on_a_narrow_loopback(test: impl FnOnce(bool) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let narrow = unshare(CloneFlags::CLONE_NEWNET).is_ok() && {
            let ip = ["link", "set", "lo", "mtu", "1500", "up"];
            let set = Command::new("ip").args(ip).status();
            set.expect("ip(8) is there").success()
        };
        test(narrow);
    });
    thread.join().expect("the test passes");
}

/// A socket of the machine that the test runs on, and one that it sends to.
struct Host {
    from: OwnedFd,
    to: OwnedFd,
    addr: SockaddrIn,
}

impl Host {
    fn new() -> Self {
        let udp = || {
            let kind = nix::sys::socket::SockType::Datagram;
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Inet, kind, flags, SockProtocol::Udp).unwrap();
            bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
            fd
        };
        let (from, to) = (udp(), udp());
        let addr = getsockname(to.as_raw_fd()).unwrap();
        Self { from, to, addr }
    }

    fn option(&self, level: i32, name: i32, value: i32) {
        let len = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the option is an integer, of which the call reads as many bytes as it has.
        let set = unsafe {
            libc::setsockopt(
                self.from.as_fd().as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                len,
            )
        };
        assert_eq!(set, 0);
    }

    fn received(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut buf = vec![0; 1 << 16];
        while let Ok(len) = recv(self.to.as_raw_fd(), &mut buf, NONE) {
            all.push(buf[..len].to_vec());
        }
        all
    }
}

fn received(kernel: &mut Guest, fd: Fd) -> Vec<Vec<u8>> {
    let (mut all, mut buf) = (Vec::new(), vec![0; 1 << 16]);
    while let Ok(received) = kernel.recvfrom(fd, &mut buf) {
        all.push(buf[..received.len].to_vec());
    }
    all
}

/// The same calls give the same results, and the same datagrams come out.
fn compare(calls: Vec<Call>, narrow: bool) -> Result<(), TestCaseError> {
    let host = Host::new();
    let (mut kernel, _world) = boot();
    if narrow {
        kernel.dev_set_mtu(Ifindex::LO, 1500).unwrap();
    }
    let to = udp_socket(&mut kernel, PORT);
    kernel.set_rcvbuf(to, 1 << 20).unwrap();
    let from = udp_socket(&mut kernel, 0);
    let mut connected = false;
    for (nth, call) in calls.into_iter().enumerate() {
        match call {
            Call::Send { len, more } => {
                let data = vec![nth as u8; len];
                let flags = if more { MSG_MORE } else { NONE };
                let theirs = if connected {
                    send(host.from.as_raw_fd(), &data, flags)
                } else {
                    sendto(host.from.as_raw_fd(), &data, &host.addr, flags)
                };
                let to = (!connected).then_some(LO_PORT);
                let ours = kernel.sendto_flags(from, &data, to, flags);
                prop_assert_eq!(ours, theirs, "{} of {} bytes", nth, len);
            }
            Call::Cork(on) => {
                host.option(libc::SOL_UDP, libc::UDP_CORK, on.into());
                kernel.set_udp_cork(from, on).unwrap();
            }
            Call::Discover(theirs, ours) => {
                host.option(libc::SOL_IP, libc::IP_MTU_DISCOVER, theirs);
                kernel.set_mtu_discover(from, ours).unwrap();
            }
            Call::Connect => {
                connect(host.from.as_raw_fd(), &host.addr).unwrap();
                kernel.connect(from, LO_PORT).unwrap();
                connected = true;
            }
        }
        settle(&mut kernel);
        let (ours, theirs) = (received(&mut kernel, to), host.received());
        prop_assert_eq!(ours, theirs, "after call {}", nth);
    }
    Ok(())
}

#[test]
fn sockets_of_this_machine_do_the_same() {
    on_a_narrow_loopback(|narrow| {
        let config = ProptestConfig {
            cases: 96,
            source_file: Some(file!()),
            ..ProptestConfig::default()
        };
        let calls = proptest::collection::vec(call(narrow), 1..24);
        let same = TestRunner::new(config).run(&calls, |calls| compare(calls, narrow));
        same.unwrap_or_else(|error| panic!("{error}"));
    });
}

#[test]
fn a_full_send_buffer_refuses_what_it_does_on_this_machine() {
    on_a_narrow_loopback(|narrow| {
        if !narrow {
            eprintln!("not tested: no network namespace");
            return;
        }
        let host = Host::new();
        host.option(libc::SOL_SOCKET, libc::SO_SNDBUF, 1);
        let (mut kernel, _world) = boot();
        kernel.dev_set_mtu(Ifindex::LO, 1500).unwrap();
        let fd = udp_socket(&mut kernel, 0);
        kernel.set_sndbuf(fd, 1).unwrap();
        for flags in [MSG_MORE, NONE] {
            for (len, want) in [
                (12_000, Err(Errno::ENOBUFS)),
                (4000, Ok(4000)),
                (12_000, Err(Errno::ENOBUFS)),
                (1000, Ok(1000)),
            ] {
                let data = vec![1; len];
                let theirs = sendto(host.from.as_raw_fd(), &data, &host.addr, flags);
                assert_eq!(theirs, want, "{len}, of this machine");
                let ours = kernel.sendto_flags(fd, &data, Some(LO_PORT), flags);
                assert_eq!(ours, want, "{len}");
                settle(&mut kernel);
            }
            let _ = kernel.sendto(fd, b"", Some(LO_PORT));
            let _ = sendto(host.from.as_raw_fd(), b"", &host.addr, NONE);
            settle(&mut kernel);
        }
    });
}
