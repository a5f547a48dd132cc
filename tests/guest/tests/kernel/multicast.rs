//! Packets for many: groups and their reports, broadcasts; sockets that share a port.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use etherparse::{IpNumber, Ipv4Header};
use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Fd, Ifindex, Protocol, SockType};
use nic_guest::virtio_net::features as f;

use crate::common::packets::{OURS, PEER, ip_with, read_ip, read_udp, udp_between, udp_to};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, boot, settle};
use crate::udp::finish_checksum;
use crate::vlan::{tagged, untagged};
use crate::{PORT, read_all, resolve_peer, udp_socket};

const SECOND: u64 = 1_000_000_000;
const GROUP: [u8; 4] = [239, 129, 2, 3];
/// Its address on the link: the upper bits are lost.
const GROUP_MAC: [u8; 6] = [1, 0, 0x5e, 1, 2, 3];
const ALL_HOSTS: [u8; 4] = [224, 0, 0, 1];
const ETH0: Option<Ifindex> = Some(Ifindex::ETH0);

fn join(kernel: &mut Guest, fd: Fd) {
    kernel.ip_mc_join_group(fd, GROUP.into(), ETH0).unwrap();
}

fn receive(kernel: &mut Guest, world: &World, frame: &[u8]) {
    world.receive(frame);
    settle(kernel);
}

/// What was sent within `ns`, as IGMP: where to, and the messages.
fn reports(kernel: &mut Guest, world: &World, ns: u64) -> Vec<([u8; 4], Vec<u8>)> {
    let end = ns / 100;
    for _ in 0..100 {
        world.advance(end);
        settle(kernel);
    }
    let sent = world.take_sent();
    let read = sent.iter().map(|sent| {
        let ip = read_ip(&sent.frame);
        assert_eq!(
            (ip.header.protocol, ip.header.time_to_live),
            (IpNumber(2), 1)
        );
        assert_eq!(ip.header.options.as_slice(), [0x94, 4, 0, 0]);
        let [_, b, c, d] = ip.header.destination;
        assert_eq!(ip.destination, [1, 0, 0x5e, b & 0x7f, c, d]);
        let message = ip.payload.to_vec();
        assert_eq!(checksum(&message), 0);
        (ip.header.destination, message)
    });
    read.collect()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    !((sum & 0xffff) as u16 + (sum >> 16) as u16)
}

/// A message of IGMP from the peer to a group.
fn igmp(to: [u8; 4], message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let check = checksum(&message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let header = Ipv4Header::new(message.len() as u16, 1, IpNumber(2), PEER, to).unwrap();
    let mut frame = ip_with(header, &message);
    frame[..6].copy_from_slice(&[1, 0, 0x5e, to[1] & 0x7f, to[2], to[3]]);
    frame
}

/// The record of a report of version 3 about the group.
fn record(kind: u8) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &GROUP].concat()
}

#[test]
fn a_group_is_reported_when_it_is_joined_and_left() {
    let (mut kernel, world) = boot();
    let (a, b) = (udp_socket(&mut kernel, 1), udp_socket(&mut kernel, 2));
    join(&mut kernel, a);
    join(&mut kernel, b);
    for (what, kind) in [("joined", 4), ("left", 3)] {
        let sent = reports(&mut kernel, &world, 5 * SECOND);
        assert_eq!(sent.len(), 2, "{what}: told twice");
        for (to, message) in &sent {
            assert_eq!(*to, [224, 0, 0, 22]);
            assert_eq!((message[0], message[7]), (0x22, 1));
            assert_eq!(message[8..], record(kind), "{what}");
        }
        kernel
            .ip_mc_leave_group(a, GROUP.into(), ETH0)
            .unwrap_or(());
        assert_eq!(kernel.next_timer(), None, "there is one more in it");
        kernel.close(b).unwrap_or(());
    }
    assert_eq!(kernel.next_timer(), None);
}

#[test]
fn queries_are_answered_in_their_version() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    join(&mut kernel, fd);
    reports(&mut kernel, &world, 5 * SECOND);
    // Of version 3, to all; within 2 s.
    let general = [0x11, 20, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0];
    receive(&mut kernel, &world, &igmp(ALL_HOSTS, &general));
    assert_eq!(world.take_sent(), []);
    let sent = reports(&mut kernel, &world, 2 * SECOND);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].1[8..], record(2));
    // About another group.
    let other = [0x11, 20, 0, 0, 239, 1, 1, 1, 2, 125, 0, 0];
    receive(&mut kernel, &world, &igmp(ALL_HOSTS, &other));
    assert_eq!(reports(&mut kernel, &world, 5 * SECOND), []);
    // Of version 2: so are answers from then on, and whoever leaves says so.
    let v2 = [0x11, 20, 0, 0, 0, 0, 0, 0];
    receive(&mut kernel, &world, &igmp(ALL_HOSTS, &v2));
    let sent = reports(&mut kernel, &world, 2 * SECOND);
    assert_eq!((sent.len(), sent[0].0, sent[0].1[0]), (1, GROUP, 0x16));
    assert_eq!(sent[0].1[4..], GROUP);
    // Another host's report is enough.
    receive(&mut kernel, &world, &igmp(ALL_HOSTS, &v2));
    let theirs = [&[0x16, 0, 0, 0][..], &GROUP].concat();
    receive(&mut kernel, &world, &igmp(GROUP, &theirs));
    assert_eq!(reports(&mut kernel, &world, 5 * SECOND), []);
    receive(&mut kernel, &world, &igmp(ALL_HOSTS, &v2));
    reports(&mut kernel, &world, 2 * SECOND);
    kernel.ip_mc_leave_group(fd, GROUP.into(), ETH0).unwrap();
    let sent = reports(&mut kernel, &world, SECOND);
    assert_eq!(
        (sent.len(), sent[0].0, sent[0].1[0]),
        (1, [224, 0, 0, 2], 0x17)
    );
    // What is broken is dropped.
    let mut bad = igmp(ALL_HOSTS, &v2);
    *bad.last_mut().unwrap() ^= 1;
    receive(&mut kernel, &world, &bad);
    receive(&mut kernel, &world, &igmp(ALL_HOSTS, &v2[..7]));
    assert_eq!(kernel.stats().rx_drop(RxDrop::IgmpInvalid), 2);
    assert_balanced(&kernel);
}

#[test]
fn sockets_get_a_groups_datagrams_while_the_host_is_in_it() {
    let (mut kernel, world) = boot();
    let (fd, shy) = (
        udp_socket(&mut kernel, PORT),
        kernel.socket(SockType::Dgram, Protocol::Udp).unwrap(),
    );
    kernel.set_reuseaddr(shy, true).unwrap();
    let group = SocketAddrV4::new(GROUP.into(), PORT + 1);
    kernel.bind(shy, group).unwrap();
    kernel.set_multicast_all(shy, false).unwrap();
    let got = |kernel: &mut Guest, to, port| {
        receive(kernel, &world, &udp_to(GROUP_MAC, to, port, b"x"));
        let fd = if port == PORT { fd } else { shy };
        read_all(kernel, fd).len()
    };
    assert_eq!(got(&mut kernel, GROUP, PORT), 0);
    assert_eq!(
        got(&mut kernel, ALL_HOSTS, PORT),
        1,
        "everybody is in there"
    );
    join(&mut kernel, fd);
    assert_eq!(got(&mut kernel, GROUP, PORT), 1);
    assert_eq!(
        got(&mut kernel, GROUP, PORT + 1),
        0,
        "it did not join itself"
    );
    join(&mut kernel, shy);
    assert_eq!(got(&mut kernel, GROUP, PORT + 1), 1);
    kernel.close(fd).unwrap();
    kernel.ip_mc_leave_group(shy, GROUP.into(), ETH0).unwrap();
    assert_eq!(got(&mut kernel, GROUP, PORT + 1), 0);
    assert_eq!(kernel.stats().rx_drop(RxDrop::IpInMcastNotMember), 2);
    assert_balanced(&kernel);
}

#[test]
fn who_has_no_address_speaks_on_the_link_only() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    join(&mut kernel, fd);
    for (from, to, got) in [
        ([0; 4], ALL_HOSTS, 1),
        ([0; 4], GROUP, 0),
        ([127, 0, 0, 1], GROUP, 0),
        ([224, 0, 0, 5], GROUP, 0),
        (OURS, GROUP, 0),
        ([192, 0, 2, 1], GROUP, 1),
    ] {
        let mut payload = udp_to(GROUP_MAC, to, PORT, b"x").split_off(34);
        payload[6..8].fill(0);
        let header = Ipv4Header::new(payload.len() as u16, 9, IpNumber(17), from, to).unwrap();
        receive(&mut kernel, &world, &ip_with(header, &payload));
        assert_eq!(read_all(&mut kernel, fd).len(), got, "{from:?} to {to:?}");
    }
    assert_eq!(kernel.stats().rx_drop(RxDrop::IpInMartianSource), 4);
}

#[test]
fn the_device_takes_the_frames_of_the_groups() {
    let mut setup = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_RX,
        ..Setup::default()
    };
    setup.config.ipv6.disable_ipv6 = true;
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    let all_hosts = [1, 0, 0x5e, 0, 0, 1];
    let tables = |groups: &[[u8; 6]]| {
        let count = [groups.len() as u8, 0, 0, 0];
        let data = [&[0; 4][..], &count, &groups.concat()].concat();
        (1, 0, data)
    };
    join(&mut kernel, fd);
    kernel.close(fd).unwrap();
    let commands = world.commands.take();
    let want = [
        tables(&[all_hosts]),
        tables(&[all_hosts, GROUP_MAC]),
        tables(&[all_hosts]),
    ];
    assert_eq!(commands, want);
}

#[test]
fn it_takes_those_of_its_vlans_groups_too() {
    let mut setup = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_RX,
        ..Setup::default()
    };
    setup.config.ipv6.disable_ipv6 = true;
    let (mut kernel, world) = setup.boot();
    let vlan = kernel.vlan_add("eth0.5", Ifindex::ETH0, 5).unwrap();
    let inner = kernel.vlan_add("eth0.5.6", vlan, 6).unwrap();
    let dummy = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    let addresses = |world: &World| {
        let commands = world.commands.take();
        let tables = commands.into_iter().map(|(class, command, data)| {
            assert_eq!((class, command), (1, 0));
            data[8..].chunks(6).map(|mac| mac[5]).collect::<Vec<_>>()
        });
        tables.collect::<Vec<_>>()
    };
    addresses(&world);
    let fd = udp_socket(&mut kernel, PORT);
    for (last, dev, table) in [
        (2, vlan, &[1, 2][..]),
        (3, inner, &[1, 2, 3]),
        (4, Ifindex::ETH0, &[1, 2, 3, 4]),
        // The same address, for another device.
        (3, Ifindex::ETH0, &[1, 2, 3, 4]),
    ] {
        let group = Ipv4Addr::new(239, 0, 0, last);
        kernel.ip_mc_join_group(fd, group, Some(dev)).unwrap();
        assert_eq!(addresses(&world), [table]);
    }
    let group = Ipv4Addr::new(239, 0, 0, 5);
    kernel.ip_mc_join_group(fd, group, Some(dummy)).unwrap();
    assert!(addresses(&world).is_empty(), "that is no VLAN of it");
    kernel.close(fd).unwrap();
    assert_eq!(addresses(&world).last().unwrap(), &[1]);
}

#[test]
fn memberships_are_checked() {
    let (mut kernel, _world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    let mut join = |group: [u8; 4], dev| kernel.ip_mc_join_group(fd, group.into(), dev);
    assert_eq!(join(PEER, ETH0), Err(Errno::EINVAL));
    assert_eq!(
        join(GROUP, None),
        Err(Errno::ENODEV),
        "no route leads there"
    );
    assert_eq!(join(GROUP, ETH0), Ok(()));
    assert_eq!(join(GROUP, ETH0), Err(Errno::EADDRINUSE));
    for n in 1..20 {
        assert_eq!(join([239, 0, 0, n], ETH0), Ok(()));
    }
    assert_eq!(join([239, 0, 0, 20], ETH0), Err(Errno::ENOBUFS));
    let left = kernel.ip_mc_leave_group(fd, Ipv4Addr::new(239, 0, 0, 20), ETH0);
    assert_eq!(left, Err(Errno::EADDRNOTAVAIL));
}

#[test]
fn what_is_sent_to_a_group_is_for_its_members_here_too() {
    let (mut kernel, world) = boot();
    let (sender, member) = (udp_socket(&mut kernel, 1), udp_socket(&mut kernel, PORT));
    let to = Some(SocketAddrV4::new(GROUP.into(), PORT));
    assert_eq!(kernel.sendto(sender, b"x", to), Err(Errno::ENETUNREACH));
    for (ttl, loops, joined, here, sent) in [
        (1, true, false, 0, 1),
        (1, true, true, 1, 1),
        (7, false, true, 0, 1),
    ] {
        if joined {
            kernel
                .ip_mc_join_group(member, GROUP.into(), ETH0)
                .unwrap_or(());
        }
        kernel.set_multicast(sender, ETH0, ttl, loops).unwrap();
        kernel.sendto(sender, b"hello", to).unwrap();
        settle(&mut kernel);
        assert_eq!(read_all(&mut kernel, member).len(), here);
        let frames = world.take_sent();
        assert_eq!(frames.len(), sent);
        let frame = finish_checksum(&frames[0]);
        assert_eq!(read_udp(&frame), (GROUP, 1, PORT, b"hello".to_vec()));
        let ip = read_ip(&frame);
        assert_eq!((ip.destination, ip.header.time_to_live), (GROUP_MAC, ttl));
    }
    assert_balanced(&kernel);
}

#[test]
fn broadcasts_are_sent_by_those_who_may_and_heard_here() {
    let (mut kernel, world) = boot();
    let (sender, member) = (udp_socket(&mut kernel, 1), udp_socket(&mut kernel, PORT));
    for to in [[10, 77, 0, 255], [255; 4]] {
        let to = Some(SocketAddrV4::new(to.into(), PORT));
        kernel.set_broadcast(sender, false).unwrap();
        assert_eq!(kernel.sendto(sender, b"x", to), Err(Errno::EACCES));
        kernel.set_broadcast(sender, true).unwrap();
        assert_eq!(kernel.sendto(sender, b"x", to), Ok(1));
        settle(&mut kernel);
        assert_eq!(read_all(&mut kernel, member), [b"x"]);
        assert_eq!(read_ip(&world.take_sent()[0].frame).destination, [0xff; 6]);
    }
    assert_balanced(&kernel);
}

#[test]
fn of_sockets_that_share_a_port_one_gets_each_datagram() {
    let (mut kernel, world): (Guest, Rc<World>) = boot();
    resolve_peer(&mut kernel, &world);
    let mut open = |reuseport| {
        let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
        kernel.set_reuseport(fd, reuseport).unwrap();
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        kernel.bind(fd, any).map(|()| fd)
    };
    let fds: Vec<_> = (0..4).map(|_| open(true).unwrap()).collect();
    assert_eq!(open(false), Err(Errno::EADDRINUSE));
    let send = |kernel: &mut Guest| {
        for from in 1000..1200 {
            receive(kernel, &world, &udp_between(from, (MAC, OURS, PORT), b"x"));
        }
        let read = fds.iter().map(|fd| read_all(kernel, *fd).len());
        read.collect::<Vec<_>>()
    };
    let shares = send(&mut kernel);
    assert_eq!(shares.iter().sum::<usize>(), 200);
    assert!(shares.iter().all(|share| *share > 20), "{shares:?}");
    assert_eq!(send(&mut kernel), shares, "a peer stays with its socket");
}

#[test]
fn a_router_of_version_2_is_heard_on_its_own_link_only() {
    let (mut kernel, world) = boot();
    let vlan = kernel.vlan_add("eth0.7", Ifindex::ETH0, 7).unwrap();
    let fd = udp_socket(&mut kernel, PORT);
    join(&mut kernel, fd);
    reports(&mut kernel, &world, 5 * SECOND);
    let v2 = [0x11, 20, 0, 0, 0, 0, 0, 0];
    let query = tagged(&igmp(ALL_HOSTS, &v2), &[(0x8100, 7)]);
    receive(&mut kernel, &world, &query);
    assert_eq!(reports(&mut kernel, &world, 3 * SECOND), []);
    // On eth0 version 3 is spoken on; in the VLAN version 2 is.
    kernel.ip_mc_leave_group(fd, GROUP.into(), ETH0).unwrap();
    let sent = reports(&mut kernel, &world, 5 * SECOND);
    assert!(
        sent.iter()
            .all(|(to, message)| (*to, message[0]) == ([224, 0, 0, 22], 0x22))
    );
    assert_eq!(sent.len(), 2);
    kernel
        .ip_mc_join_group(fd, GROUP.into(), Some(vlan))
        .unwrap();
    world.advance(SECOND);
    settle(&mut kernel);
    let sent = world.take_sent();
    let (tci, frame) = untagged(&sent[0].frame);
    assert_eq!((tci, read_ip(&frame).payload[0]), (7, 0x16));
}
