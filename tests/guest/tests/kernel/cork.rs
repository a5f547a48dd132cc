//! Data that waits for more: corked sockets, `MSG_MORE`; against sockets of the machine that the test runs on.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nic_guest::net::file::{MSG_MORE, MsgFlags};
use nic_guest::net::{Errno, Fd, IpPmtudisc, Protocol, SockType};
use nic_guest::virtio_net::header::VirtioNetHdr;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockaddrIn, bind, connect, getsockname, recv, send,
    sendto, socket,
};
use proptest::prelude::*;

use crate::common::packets::{read_ip, read_udp};
use crate::common::world::{Guest, assert_balanced, boot, settle};
use crate::udp::finish_checksum;
use crate::{PORT, peer, resolve_peer, udp_socket};

const NONE: MsgFlags = MsgFlags::empty();

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
    assert_eq!(more(&mut kernel, 12_000), Ok(12_000));
    assert_eq!(more(&mut kernel, 10), Ok(10), "still the same fragment");
    assert_eq!(more(&mut kernel, 1480), Err(Errno::ENOBUFS));
    let snmp = kernel.stats().snmp;
    assert_eq!((snmp.ip_out_discards, snmp.udp_sndbuf_errors), (1, 1));
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

/// What is done with a socket.
#[derive(Debug, Clone)]
enum Call {
    Send { len: usize, more: bool },
    Cork(bool),
    Discover(bool),
    Connect,
}

fn call() -> impl Strategy<Value = Call> {
    let len = prop_oneof![
        4 => 0..100usize,
        2 => 1000..3000usize,
        1 => 20_000..40_000usize,
        1 => 65_500..65_540usize,
    ];
    prop_oneof![
        8 => (len, any::<bool>()).prop_map(|(len, more)| Call::Send { len, more }),
        2 => any::<bool>().prop_map(Call::Cork),
        1 => any::<bool>().prop_map(Call::Discover),
        1 => Just(Call::Connect),
    ]
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same calls give the same results, and the same datagrams come out.
    #[test]
    fn sockets_of_this_machine_do_the_same(calls in proptest::collection::vec(call(), 1..24)) {
        let host = Host::new();
        let (mut kernel, _world) = boot();
        let to = udp_socket(&mut kernel, PORT);
        kernel.set_rcvbuf(to, 1 << 20).unwrap();
        let from = udp_socket(&mut kernel, 0);
        let lo = SocketAddrV4::new([127, 0, 0, 1].into(), PORT);
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
                    let ours = kernel.sendto_flags(from, &data, (!connected).then_some(lo), flags);
                    prop_assert_eq!(ours, theirs, "{} of {} bytes", nth, len);
                }
                Call::Cork(on) => {
                    host.option(libc::SOL_UDP, libc::UDP_CORK, on.into());
                    kernel.set_udp_cork(from, on).unwrap();
                }
                Call::Discover(on) => {
                    let (value, ours) = if on {
                        (libc::IP_PMTUDISC_DO, IpPmtudisc::Do)
                    } else {
                        (libc::IP_PMTUDISC_WANT, IpPmtudisc::Want)
                    };
                    host.option(libc::SOL_IP, libc::IP_MTU_DISCOVER, value);
                    kernel.set_mtu_discover(from, ours).unwrap();
                }
                Call::Connect => {
                    connect(host.from.as_raw_fd(), &host.addr).unwrap();
                    kernel.connect(from, lo).unwrap();
                    connected = true;
                }
            }
            settle(&mut kernel);
            prop_assert_eq!(received(&mut kernel, to), host.received(), "after call {}", nth);
        }
    }
}
