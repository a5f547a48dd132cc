//! IPv6: what sockets are told, where their datagrams go, and which of them gets what comes.

use std::net::{Ipv6Addr, SocketAddrV6};

use nic_guest::net::stats::Mib6;
use nic_guest::net::{Errno, Fd, Ifindex, Protocol, SockType};
use nic_guest::virtio_net::features as f;

use crate::PORT;
use crate::common::packets6::{ALL_NODES, LINKLOCAL, OURS6, PEER6, ip6, message6};
use crate::common::world::{FEATURES, Guest, Setup, assert_balanced, settle};
use crate::ipv6::known_peer;

/// An echo request of a ping socket.
const PING: [u8; 8] = [128, 0, 0, 0, 0, 0, 0, 1];

fn at(addr: Ipv6Addr, scope: u32) -> SocketAddrV6 {
    SocketAddrV6::new(addr, PORT, 0, scope)
}

fn open(kernel: &mut Guest, protocol: Protocol) -> Fd {
    kernel.socket6(SockType::Dgram, protocol).unwrap()
}

#[test]
fn a_scope_has_to_be_a_device_with_ipv6() {
    let (mut kernel, world) = known_peer();
    let other = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
    for protocol in [Protocol::Udp, Protocol::Icmp] {
        for scope in [99, 0x1_0000 + u32::from(Ifindex::ETH0)] {
            let fd = open(&mut kernel, protocol);
            for addr in [ALL_NODES, other, LINKLOCAL] {
                let bound = kernel.bind6(fd, at(addr, scope));
                assert_eq!(bound, Err(Errno::ENODEV), "{addr}");
            }
            kernel.bind6(fd, at(OURS6, 0)).unwrap();
            for addr in [ALL_NODES, other] {
                let sent = kernel.sendto6(fd, &PING, Some(at(addr, scope)));
                assert_eq!(sent, Err(Errno::ENETUNREACH), "{addr}");
                let connected = kernel.connect6(fd, at(addr, scope));
                assert_eq!(connected, Err(Errno::ENETUNREACH), "{addr}");
            }
            kernel.close(fd).unwrap();
        }
        let fd = open(&mut kernel, protocol);
        let looped = at(ALL_NODES, Ifindex::LO.into());
        let sent = kernel.sendto6(fd, &PING, Some(looped));
        assert_eq!(sent, Err(Errno::ENETUNREACH), "lo has no groups");
    }
    let short = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    kernel.dev_set_mtu(short, 1000).unwrap();
    let fd = open(&mut kernel, Protocol::Udp);
    let sent = kernel.sendto6(fd, b"x", Some(at(ALL_NODES, short.into())));
    assert_eq!(sent, Err(Errno::ENETUNREACH), "it has no IPv6");
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn what_means_something_on_a_link_only_needs_a_device() {
    let (mut kernel, world) = known_peer();
    let dummy = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    let (ping, udp) = (
        open(&mut kernel, Protocol::Icmp),
        open(&mut kernel, Protocol::Udp),
    );
    for fd in [ping, udp] {
        for addr in [ALL_NODES, LINKLOCAL] {
            assert_eq!(kernel.bind6(fd, at(addr, 0)), Err(Errno::EINVAL));
            assert_eq!(kernel.connect6(fd, at(addr, 0)), Err(Errno::EINVAL));
        }
    }
    let unbound = open(&mut kernel, Protocol::Icmp);
    let sent = kernel.sendto6(unbound, &PING, Some(at(ALL_NODES, 0)));
    assert_eq!(sent, Err(Errno::EINVAL));
    let eth0 = Ifindex::ETH0.into();
    for fd in [ping, udp] {
        kernel.bind6(fd, at(LINKLOCAL, eth0)).unwrap();
        let elsewhere = kernel.connect6(fd, at(ALL_NODES, dummy.into()));
        assert_eq!(elsewhere, Err(Errno::EINVAL), "it is bound to eth0");
        kernel.connect6(fd, at(ALL_NODES, eth0)).unwrap();
    }
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn addresses_of_ipv4_are_none_of_theirs() {
    let (mut kernel, world) = known_peer();
    let mapped = at("::ffff:10.77.0.1".parse().unwrap(), 0);
    for (protocol, error) in [
        (Protocol::Udp, Errno::ENETUNREACH),
        (Protocol::Icmp, Errno::EINVAL),
    ] {
        let fd = open(&mut kernel, protocol);
        assert_eq!(kernel.bind6(fd, mapped), Err(Errno::EINVAL));
        assert_eq!(kernel.connect6(fd, mapped), Err(Errno::ENETUNREACH));
        assert_eq!(kernel.sendto6(fd, &PING, Some(mapped)), Err(error));
    }
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn a_jumbogram_is_not_echoed() {
    let setup = Setup {
        features: FEATURES | f::MRG_RXBUF,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    kernel.inet6_addr_add(Ifindex::ETH0, OURS6, 64).unwrap();
    kernel.neigh6_add(PEER6, Ifindex::ETH0, [2; 6]).unwrap();
    let mut echo = |len: usize| {
        let request = message6(PEER6, OURS6, PING, &vec![1; len - PING.len()]);
        let payload_len = (8 + request.len() as u32).to_be_bytes();
        let jumbo = [&[58, 0, 0xc2, 4][..], &payload_len, &request].concat();
        let mut frame = ip6(0, &jumbo);
        frame[18..20].fill(0);
        world.receive(&frame);
        settle(&mut kernel);
        world.take_sent().len()
    };
    assert!(echo(65_535) > 40, "in fragments");
    assert_eq!(echo(65_536), 0);
    assert_eq!(kernel.stats().snmp6[Mib6::Icmp6OutErrors], 1);
    assert_balanced(&kernel);
}
