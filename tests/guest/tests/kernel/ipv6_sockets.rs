//! IPv6: what sockets are told, where their datagrams go, and which of them gets what comes.

use std::net::{Ipv6Addr, SocketAddrV6};

use etherparse::PacketBuilder;
use nic_guest::net::netfilter::{NfHook, NfProto, NftChain, Verdict};
use nic_guest::net::stats::Mib6;
use nic_guest::net::{Errno, Fd, Ifindex, IpPmtudisc, NeighParms, Protocol, SockType};
use nic_guest::virtio_net::features as f;

use crate::PORT;
use crate::common::packets::PEER_MAC;
use crate::common::packets6::{ALL_NODES, LINKLOCAL, OURS6, PEER6, ip6, ip6_between, message6};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, settle};
use crate::ipv6::{known_peer, peer6, take};
use crate::vlan::tagged;

/// An echo request of a ping socket.
const PING: [u8; 8] = [128, 0, 0, 0, 0, 0, 0, 1];

/// A neighbour, whose address means something on a link only.
const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);

fn at(addr: Ipv6Addr, scope: u32) -> SocketAddrV6 {
    SocketAddrV6::new(addr, PORT, 0, scope)
}

fn open(kernel: &mut Guest, protocol: Protocol) -> Fd {
    kernel.socket6(SockType::Dgram, protocol).unwrap()
}

/// A guest with VLAN 5 on eth0, of the same MAC and so of the same link-local address.
fn two_links() -> (Guest, std::rc::Rc<World>, [Ifindex; 2]) {
    let (mut kernel, world) = known_peer();
    let vlan = kernel.vlan_add("eth0.5", Ifindex::ETH0, 5).unwrap();
    let links = [Ifindex::ETH0, vlan];
    for dev in links {
        kernel.neigh6_add(NEIGHBOUR, dev, PEER_MAC).unwrap();
    }
    (kernel, world, links)
}

/// The lengths of the packets that were sent.
fn sent_lens(world: &World) -> Vec<usize> {
    let sent = world.take_sent();
    sent.iter().map(|sent| sent.frame.len() - 14).collect()
}

/// Has a router say that of a packet only 1300 octets pass.
fn packet_too_big(world: &World, packet: &[u8], from: Ipv6Addr, to: Ipv6Addr, tags: &[(u16, u16)]) {
    let quoted = &packet[..packet.len().min(1232)];
    let error = message6(from, to, [2, 0, 0, 0, 0, 0, 5, 0x14], quoted);
    world.receive(&tagged(&ip6_between(from, to, 64, 58, &error), tags));
}

#[test]
fn a_scope_has_to_be_a_device_with_ipv6() {
    let (mut kernel, world) = known_peer();
    for protocol in [Protocol::Udp, Protocol::Icmp] {
        for scope in [99, 0x1_0000 + u32::from(Ifindex::ETH0)] {
            let fd = open(&mut kernel, protocol);
            for addr in [ALL_NODES, NEIGHBOUR, LINKLOCAL] {
                let bound = kernel.bind6(fd, at(addr, scope));
                assert_eq!(bound, Err(Errno::ENODEV), "{addr}");
            }
            kernel.bind6(fd, at(OURS6, 0)).unwrap();
            for addr in [ALL_NODES, NEIGHBOUR] {
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

#[test]
fn link_local_sockets_belong_to_their_link() {
    let (mut kernel, world, links) = two_links();
    let fds = links.map(|dev| {
        let fd = open(&mut kernel, Protocol::Udp);
        kernel.bind6(fd, at(LINKLOCAL, dev.into())).unwrap();
        fd
    });
    let third = open(&mut kernel, Protocol::Udp);
    let taken = kernel.bind6(third, at(LINKLOCAL, links[1].into()));
    assert_eq!(taken, Err(Errno::EADDRINUSE));
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv6(NEIGHBOUR.octets(), LINKLOCAL.octets(), 64)
        .udp(9000, PORT)
        .write(&mut frame, b"hello")
        .unwrap();
    let mut buf = [0; 100];
    for (nth, tags) in [&[][..], &[(0x8100, 5)]].into_iter().enumerate() {
        world.receive(&tagged(&frame, tags));
        settle(&mut kernel);
        let received = kernel.recvfrom6(fds[nth], &mut buf).unwrap();
        assert_eq!(received.from.scope_id(), u32::from(links[nth]));
        let other = kernel.recvfrom6(fds[1 - nth], &mut buf);
        assert_eq!(other.unwrap_err(), Errno::EAGAIN);
        // An error, too, is for the socket of the link that it came by.
        let to = SocketAddrV6::new(NEIGHBOUR, 9, 0, links[nth].into());
        kernel.connect6(fds[nth], to).unwrap();
        kernel.sendto6(fds[nth], b"x", None).unwrap();
        let sent = world.take_sent().remove(0).frame;
        let packet = &sent[14 + 4 * nth..];
        let error = message6(NEIGHBOUR, LINKLOCAL, [1, 4, 0, 0, 0, 0, 0, 0], packet);
        let error = ip6_between(NEIGHBOUR, LINKLOCAL, 64, 58, &error);
        world.receive(&tagged(&error, tags));
        settle(&mut kernel);
        let told = [nth, 1 - nth].map(|nth| kernel.recvfrom6(fds[nth], &mut buf).unwrap_err());
        assert_eq!(told, [Errno::ECONNREFUSED, Errno::EAGAIN]);
    }
    assert_balanced(&kernel);
}

#[test]
fn what_this_host_sends_itself_comes_by_the_link_that_has_the_address() {
    let (mut kernel, world, links) = two_links();
    for dev in links {
        let to = at(LINKLOCAL, dev.into());
        let (fd, sender) = (
            open(&mut kernel, Protocol::Udp),
            open(&mut kernel, Protocol::Udp),
        );
        kernel.bind6(fd, to).unwrap();
        kernel.sendto6(sender, b"me", Some(to)).unwrap();
        settle(&mut kernel);
        let from = kernel.recvfrom6(fd, &mut [0; 9]).unwrap().from;
        assert_eq!((*from.ip(), from.scope_id()), (LINKLOCAL, dev.into()));
        // So that the answer finds its way.
        kernel.sendto6(fd, b"you", Some(from)).unwrap();
        settle(&mut kernel);
        assert_eq!(take(&mut kernel, sender), b"you");
    }
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn a_socket_may_leave_the_path_mtu_alone() {
    let (mut kernel, world) = known_peer();
    let fd = open(&mut kernel, Protocol::Udp);
    let to = Some(peer6(9));
    kernel.sendto6(fd, &[1; 1400], to).unwrap();
    let sent = world.take_sent().remove(0).frame;
    packet_too_big(&world, &sent[14..], PEER6, OURS6, &[]);
    settle(&mut kernel);
    for (pmtudisc, longer, too_long) in [
        (IpPmtudisc::Want, &[1296, 208][..], &[1296, 408][..]),
        (IpPmtudisc::Do, &[], &[]),
        (IpPmtudisc::Probe, &[1448], &[]),
        (IpPmtudisc::Interface, &[1448], &[]),
        (IpPmtudisc::Omit, &[1448], &[1496, 208]),
    ] {
        kernel.set_mtu_discover(fd, pmtudisc).unwrap();
        for (len, want) in [(1400, longer), (1600, too_long)] {
            let sent = kernel.sendto6(fd, &vec![1; len], to);
            let refused = want.is_empty();
            assert_eq!(sent == Err(Errno::EMSGSIZE), refused, "{pmtudisc:?} {len}");
            assert_eq!(sent_lens(&world), want, "{pmtudisc:?} {len}");
        }
    }
    assert_balanced(&kernel);
}

#[test]
fn a_path_mtu_of_a_link_is_of_that_link() {
    let (mut kernel, world, links) = two_links();
    let fd = open(&mut kernel, Protocol::Udp);
    let send = |kernel: &mut Guest, dev: Ifindex| {
        let to = SocketAddrV6::new(NEIGHBOUR, 9, 0, dev.into());
        kernel.sendto6(fd, &[1; 1400], Some(to)).unwrap();
    };
    send(&mut kernel, links[1]);
    let sent = world.take_sent().remove(0).frame;
    packet_too_big(&world, &sent[18..], NEIGHBOUR, LINKLOCAL, &[(0x8100, 5)]);
    settle(&mut kernel);
    send(&mut kernel, links[0]);
    assert_eq!(sent_lens(&world), [1448]);
    send(&mut kernel, links[1]);
    assert_eq!(sent_lens(&world), [1300, 212], "and a tag each");
    assert_balanced(&kernel);
}

#[test]
fn a_ping_socket_is_not_told_of_lengths() {
    let (mut kernel, world) = known_peer();
    let fd = open(&mut kernel, Protocol::Icmp);
    kernel.connect6(fd, peer6(0)).unwrap();
    kernel.sendto6(fd, &PING, None).unwrap();
    let sent = world.take_sent().remove(0).frame;
    packet_too_big(&world, &sent[14..], PEER6, OURS6, &[]);
    settle(&mut kernel);
    let told = |kernel: &mut Guest| kernel.recvfrom6(fd, &mut [0; 9]).unwrap_err();
    assert_eq!(told(&mut kernel), Errno::EAGAIN);
    let error = message6(PEER6, OURS6, [1, 4, 0, 0, 0, 0, 0, 0], &sent[14..]);
    world.receive(&ip6(58, &error));
    settle(&mut kernel);
    assert_eq!(told(&mut kernel), Errno::ECONNREFUSED);
    // The path is known to be narrow all the same.
    let long = [&PING[..], &[0; 1400]].concat();
    kernel.sendto6(fd, &long, None).unwrap();
    assert_eq!(sent_lens(&world), [1296, 208]);
    assert_balanced(&kernel);
}

#[test]
fn what_is_not_sent_is_counted_as_ipv6s() {
    let mut setup = Setup::default();
    setup.config.ipv6.addr = Some((OURS6, 64));
    setup.config.neigh = NeighParms {
        gc_thresh1: 2,
        gc_thresh2: 2,
        gc_thresh3: 2,
        ..NeighParms::default()
    };
    let (mut kernel, world) = setup.boot();
    let [fd, ping] = [Protocol::Udp, Protocol::Icmp].map(|protocol| open(&mut kernel, protocol));
    let counts = |kernel: &Guest| {
        let stats = kernel.stats();
        assert_eq!(stats.snmp.ip_out_discards, 0, "it is IPv4's");
        [
            Mib6::Ip6OutNoRoutes,
            Mib6::Ip6OutDiscards,
            Mib6::Udp6SndbufErrors,
            Mib6::Icmp6OutRateLimitHost,
        ]
        .map(|counter| stats.snmp6[counter])
    };
    let far = at(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 0);
    for fd in [fd, ping] {
        let refused = kernel.sendto6(fd, &PING, Some(far));
        assert_eq!(refused, Err(Errno::ENETUNREACH));
    }
    assert_eq!(counts(&kernel), [2, 0, 0, 0]);
    // An error that cannot be sent back counts as one too many.
    world.receive(&ip6_between(*far.ip(), OURS6, 64, 99, b"what?"));
    settle(&mut kernel);
    assert_eq!(counts(&kernel), [3, 0, 0, 1]);
    // They wait for a neighbour, and fill the send buffer.
    kernel.set_sndbuf(fd, 1).unwrap();
    let to = Some(peer6(9));
    let full = (0..10).find_map(|_| kernel.sendto6(fd, &[0; 1000], to).err());
    assert_eq!(full, Some(Errno::EAGAIN));
    assert_eq!(counts(&kernel), [3, 1, 1, 1]);
    // There is room for the neighbour, and the group that was asked for him.
    let other = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 7);
    kernel.sendto6(ping, &PING, Some(at(other, 0))).unwrap();
    assert_eq!(counts(&kernel), [4, 1, 1, 1]);
    kernel.nf_register_net_hook(NftChain {
        family: NfProto::Ipv6,
        policy: Verdict::Drop,
        rules: Vec::new(),
        ..NftChain::counting(NfHook::LocalOut)
    });
    kernel.set_sndbuf(fd, 100_000).unwrap();
    assert_eq!(kernel.sendto6(fd, b"x", to), Err(Errno::EPERM));
    assert_eq!(counts(&kernel), [4, 2, 1, 1]);
    assert_balanced(&kernel);
}

#[test]
fn the_class_is_another_option_than_the_type_of_service() {
    let (mut kernel, world) = known_peer();
    for protocol in [Protocol::Udp, Protocol::Icmp] {
        let fd = open(&mut kernel, protocol);
        let class = |kernel: &mut Guest| {
            kernel.sendto6(fd, &PING, Some(peer6(9))).unwrap();
            let sent = world.take_sent().remove(0).frame;
            sent[14] << 4 | sent[15] >> 4
        };
        kernel.set_tos(fd, 0xb8).unwrap();
        assert_eq!(class(&mut kernel), 0);
        kernel.set_tclass(fd, 0x2a).unwrap();
        assert_eq!(class(&mut kernel), 0x2a);
    }
    let ipv4 = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    assert_eq!(kernel.set_tclass(ipv4, 1), Err(Errno::ENOPROTOOPT));
    assert_balanced(&kernel);
}

#[test]
fn a_send_fails_for_the_first_reason() {
    let (mut kernel, world) = known_peer();
    let [udp, ping] = [Protocol::Udp, Protocol::Icmp].map(|protocol| open(&mut kernel, protocol));
    let long = vec![0; 70_000];
    for (fd, to, error) in [
        (udp, None, Errno::EDESTADDRREQ),
        (udp, Some(peer6(0)), Errno::EINVAL),
        (udp, Some(peer6(9)), Errno::EMSGSIZE),
        (ping, None, Errno::EMSGSIZE),
    ] {
        assert_eq!(kernel.sendto6(fd, &long, to), Err(error), "{to:?}");
    }
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn a_device_loses_its_addresses_with_its_mtu() {
    let (mut kernel, world) = known_peer();
    let dummy = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    let own = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 1);
    let linklocal = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x901);
    kernel.inet6_addr_add(dummy, own, 64).unwrap();
    let bound = |kernel: &mut Guest, addr, scope| {
        let fd = open(kernel, Protocol::Udp);
        let bound = kernel.bind6(fd, at(addr, scope));
        kernel.close(fd).unwrap();
        bound
    };
    assert_eq!(bound(&mut kernel, own, 0), Ok(()));
    for (mtu, linklocal_is_there) in [(1000, false), (1280, true)] {
        kernel.dev_set_mtu(dummy, mtu).unwrap();
        let of_link = bound(&mut kernel, linklocal, dummy.into());
        assert_eq!(of_link.is_ok(), linklocal_is_there, "{mtu}");
        assert_eq!(bound(&mut kernel, own, 0), Err(Errno::EADDRNOTAVAIL));
        world.receive(&ip6_between(PEER6, own, 64, 17, b""));
        settle(&mut kernel);
        assert_eq!(kernel.stats().snmp6[Mib6::Ip6InDelivers], 0);
        world.take_sent();
    }
    assert_balanced(&kernel);
}

#[test]
fn without_ipv6_there_is_no_way_out() {
    let mut setup = Setup::default();
    setup.config.ipv6.gateway = Some(PEER6);
    setup.config.ipv6.disable_ipv6 = true;
    let (mut kernel, _) = setup.boot();
    let fd = open(&mut kernel, Protocol::Udp);
    let sent = kernel.sendto6(fd, b"x", Some(peer6(9)));
    assert_eq!(sent, Err(Errno::ENETUNREACH));
}

#[test]
fn a_bridge_has_the_link_local_address_of_its_first_port() {
    let (mut kernel, _) = known_peer();
    let bridge = kernel.br_add_bridge("br0").unwrap();
    let own = |kernel: &mut Guest, addr: &str| {
        let fd = open(kernel, Protocol::Udp);
        let bound = kernel.bind6(fd, at(addr.parse().unwrap(), bridge.into()));
        kernel.close(fd).unwrap();
        bound.is_ok()
    };
    assert!(!own(&mut kernel, "fe80::200:ff:fe00:0"), "as any other");
    for last in [2, 1] {
        let name = format!("dummy{last}");
        let port = kernel.dummy_add(&name, [2, 0, 0, 0, 9, last]).unwrap();
        kernel.br_add_if(bridge, port).unwrap();
        assert!(own(&mut kernel, "fe80::ff:fe00:902"), "of the first port");
    }
    assert!(!own(&mut kernel, "fe80::ff:fe00:901"), "it keeps that");
}
