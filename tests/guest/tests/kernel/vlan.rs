//! VLAN devices: tags that are taken off, and tags that are put in.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use nic_guest::net::stats::{RxDrop, TxDrop};
use nic_guest::net::{Errno, Fd, Ifindex, Protocol, SockType};
use nic_guest::virtio_net::features as f;

use crate::common::packets::{PEER_MAC, arp, arp_request, ethernet, read_arp, udp_to};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, boot, settle};
use crate::devices::stats;
use crate::read_all;

const OURS: [u8; 4] = [10, 100, 0, 2];
const THEIRS: [u8; 4] = [10, 100, 0, 1];
const PORT: u16 = 7001;

/// Puts tags into a frame, the outermost last.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (proto, tci) in tags {
        let tag = [proto.to_be_bytes(), tci.to_be_bytes()].concat();
        frame.splice(12..12, tag);
    }
    frame
}

/// The frame without its outermost tag, and what that says.
pub fn untagged(frame: &[u8]) -> (u16, Vec<u8>) {
    assert_eq!(frame[12..14], [0x81, 0]);
    let tci = u16::from_be_bytes([frame[14], frame[15]]);
    (tci, [&frame[..12], &frame[16..]].concat())
}

/// A guest with VLAN 100 on eth0, and a socket there.
fn guest(features: u64) -> (Guest, Rc<World>, Ifindex, Fd) {
    let setup = Setup {
        features,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    let vlan = kernel.vlan_add("eth0.100", Ifindex::ETH0, 100).unwrap();
    kernel.inet_addr_add(vlan, OURS.into(), 24).unwrap();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    kernel
        .bind(fd, SocketAddrV4::new(OURS.into(), PORT))
        .unwrap();
    (kernel, world, vlan, fd)
}

fn them() -> Option<SocketAddrV4> {
    Some(SocketAddrV4::new(THEIRS.into(), 9))
}

#[test]
fn a_tagged_frame_is_received_by_the_vlans_device() {
    let (mut kernel, world, vlan, fd) = guest(FEATURES);
    let plain = udp_to(MAC, OURS, PORT, b"hello");
    // The priority in a tag does not matter.
    for tci in [100, 0xe064] {
        world.receive(&tagged(&plain, &[(0x8100, tci)]));
    }
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd), [b"hello", b"hello"]);
    let counted = stats(&kernel, vlan);
    assert_eq!(
        (counted.rx_packets, counted.rx_bytes),
        (2, 2 * (plain.len() as u64 - 14))
    );
    assert_eq!(stats(&kernel, Ifindex::ETH0).rx_packets, 2, "so has eth0");
    assert_balanced(&kernel);
}

#[test]
fn datagrams_with_one_tag_are_merged_and_those_with_another_are_not() {
    let (mut kernel, world, _, fd) = guest(FEATURES);
    kernel.set_udp_gro(fd, true).unwrap();
    let plain = udp_to(MAC, OURS, PORT, b"hello");
    for tci in [100, 100, 0xe064, 100] {
        world.receive(&tagged(&plain, &[(0x8100, tci)]));
    }
    settle(&mut kernel);
    let mut buf = [0; 100];
    let mut read = || {
        kernel
            .recvfrom(fd, &mut buf)
            .map(|got| (got.len, got.gso_size))
    };
    assert_eq!((read(), read()), (Ok((15, 5)), Ok((5, 0))));
    assert_eq!(read(), Err(Errno::EAGAIN));
    assert_eq!(kernel.stats().gro_merged, 2);
    assert_balanced(&kernel);
}

#[test]
fn a_vlan_that_nobody_has_is_another_hosts() {
    let (mut kernel, world, vlan, fd) = guest(FEATURES);
    let plain = udp_to(MAC, OURS, PORT, b"hello");
    for tags in [
        &[(0x8100, 101)][..],
        &[(0x8100, 0x0fff)],
        // A provider's tag is none of a customer's.
        &[(0x88a8, 100)],
    ] {
        world.receive(&tagged(&plain, tags));
    }
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::IpOtherHost), 3);
    // What is in there may be of one that somebody has, but it is not looked at.
    world.receive(&tagged(&plain, &[(0x8100, 100), (0x8100, 101)]));
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UnhandledProto), 1);
    // One that names no VLAN counts for nothing, alone or before another.
    world.receive(&tagged(&plain, &[(0x8100, 0xe000)]));
    world.receive(&tagged(&plain, &[(0x8100, 100), (0x8100, 0)]));
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd).len(), 2);
    assert_eq!(stats(&kernel, vlan).rx_packets, 1);
    // A tag that is cut off.
    for cut in 0..4 {
        let mut frame = ethernet(MAC, 0x8100);
        frame.extend(&[0; 4][..cut]);
        world.receive(&frame);
    }
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::VlanUntag), 4);
    assert_balanced(&kernel);
}

#[test]
fn what_a_vlan_sends_has_its_tag() {
    let (mut kernel, world, vlan, fd) = guest(FEATURES);
    // The neighbour is asked for in the VLAN, and answers there.
    kernel.sendto(fd, b"hi", them()).unwrap();
    let sent = world.take_sent();
    let (tci, request) = untagged(&sent[0].frame);
    assert_eq!((sent.len(), tci), (1, 100));
    let (_, request) = read_arp(&request);
    assert_eq!((request.sender_ipv4, request.target_ipv4), (OURS, THEIRS));
    let reply = etherparse::ArpOperation::REPLY;
    let reply = arp(MAC, reply, (PEER_MAC, THEIRS), (MAC, OURS));
    // Outside of it he is somebody else.
    world.receive(&reply);
    settle(&mut kernel);
    assert_eq!(world.take_sent(), []);
    world.receive(&tagged(&reply, &[(0x8100, 100)]));
    settle(&mut kernel);
    for n in 0..2 {
        let sent = world.take_sent();
        let (tci, frame) = untagged(&sent[0].frame);
        assert_eq!((sent.len(), tci), (1, 100), "{n}");
        assert_eq!(frame[..14], [&PEER_MAC[..], &MAC, &[8, 0]].concat());
        assert_eq!(frame[26..34], [OURS, THEIRS].concat());
        assert_eq!(sent[0].hdr.csum_start, 38, "behind the tag");
        kernel.sendto(fd, b"hi", them()).unwrap();
    }
    // The question and three datagrams.
    let counted = stats(&kernel, vlan);
    assert_eq!((counted.tx_packets, counted.tx_bytes), (4, 42 + 3 * 44));
    assert_eq!(kernel.stats().tx_dropped(), 0);
}

#[test]
fn who_asks_in_a_vlan_is_answered_there() {
    let (mut kernel, world, ..) = guest(FEATURES);
    world.receive(&tagged(&arp_request(OURS), &[(0x8100, 100)]));
    settle(&mut kernel);
    let (tci, reply) = untagged(&world.take_sent()[0].frame);
    assert_eq!((tci, read_arp(&reply).1.sender_ipv4), (100, OURS));
    assert_balanced(&kernel);
}

#[test]
fn datagrams_that_stand_for_several_are_tagged_one_by_one() {
    for features in [FEATURES, FEATURES & !f::CSUM] {
        let (mut kernel, world, _, fd) = guest(features);
        let reply = etherparse::ArpOperation::REPLY;
        let reply = arp(MAC, reply, (PEER_MAC, THEIRS), (MAC, OURS));
        kernel.sendto(fd, b"hi", them()).unwrap();
        world.receive(&tagged(&reply, &[(0x8100, 100)]));
        settle(&mut kernel);
        world.take_sent();
        kernel.sendto_segments(fd, &[7; 250], them(), 100).unwrap();
        let sent = world.take_sent();
        let lens: Vec<_> = sent
            .iter()
            .map(|sent| {
                let (tci, frame) = untagged(&sent.frame);
                assert_eq!(tci, 100);
                etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
                frame.len() - 42
            })
            .collect();
        assert_eq!(lens, [100, 100, 50]);
    }
}

#[test]
fn a_vlan_may_be_in_a_vlan() {
    let (mut kernel, world, vlan, _) = guest(FEATURES);
    let inner = kernel.vlan_add("inner", vlan, 7).unwrap();
    let ours = Ipv4Addr::new(10, 107, 0, 2);
    kernel.inet_addr_add(inner, ours, 24).unwrap();
    let request = arp_request(ours.octets());
    world.receive(&tagged(&request, &[(0x8100, 7), (0x8100, 100)]));
    settle(&mut kernel);
    let (outer, frame) = untagged(&world.take_sent()[0].frame);
    let (inner, reply) = untagged(&frame);
    assert_eq!((outer, inner), (100, 7));
    assert_eq!(read_arp(&reply).1.sender_ipv4, ours.octets());
}

#[test]
fn vlans_in_vlans_have_an_end() {
    let (mut kernel, world, mut vlan, fd) = guest(FEATURES);
    for depth in 2..=10 {
        vlan = kernel
            .vlan_add(&format!("vlan{depth}"), vlan, depth)
            .unwrap();
        let addr = Ipv4Addr::new(10, 200, depth as u8, 2);
        kernel.inet_addr_add(vlan, addr, 24).unwrap();
        let them = Ipv4Addr::new(10, 200, depth as u8, 1);
        kernel.neigh_add(them, PEER_MAC).unwrap();
        let them = SocketAddrV4::new(them, 9);
        kernel.sendto(fd, b"hi", Some(them)).unwrap();
        let lens: Vec<_> = world
            .take_sent()
            .iter()
            .map(|sent| sent.frame.len())
            .collect();
        if depth < 10 {
            assert_eq!(lens, [44 + 4 * usize::from(depth)]);
        } else {
            assert_eq!(lens, [0; 0]);
        }
    }
    assert_eq!(kernel.stats().tx_drop(TxDrop::RecursionLimit), 1);
    assert_eq!(stats(&kernel, Ifindex::ETH0).tx_dropped, 0);
}

#[test]
fn the_driver_lets_a_vlan_in_where_it_filters() {
    let (_, world, ..) = guest(FEATURES | f::CTRL_VQ | f::CTRL_VLAN);
    let added = (2, 0, vec![100, 0]);
    assert!(world.commands.borrow().contains(&added));
    let (mut kernel, world) = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_VLAN,
        ..Setup::default()
    }
    .boot();
    world.refuse.set(true);
    let refused = kernel.vlan_add("eth0.100", Ifindex::ETH0, 100);
    assert_eq!(refused, Err(Errno::EIO));
    assert!(kernel.dev_get_by_name("eth0.100").is_none());
}

#[test]
fn what_can_be_no_vlan_is_refused() {
    let (mut kernel, _) = boot();
    let eth0 = Ifindex::ETH0;
    assert_eq!(kernel.vlan_add("a", eth0, 4095), Err(Errno::ERANGE));
    assert_eq!(kernel.vlan_add("a", Ifindex::LO, 1), Err(Errno::EOPNOTSUPP));
    for vlan_id in [4094, 1, 2] {
        let name = format!("eth0.{vlan_id}");
        kernel.vlan_add(&name, eth0, vlan_id).unwrap();
        for (name, vlan_id) in [("a", vlan_id), (&name, 9)] {
            assert_eq!(kernel.vlan_add(name, eth0, vlan_id), Err(Errno::EEXIST));
        }
    }
}

#[test]
fn a_vlans_packets_are_no_longer_than_its_devices() {
    let (mut kernel, _, vlan, _) = guest(FEATURES);
    assert_eq!(kernel.dev_set_mtu(vlan, 1501), Err(Errno::ERANGE));
    assert_eq!(kernel.dev_set_mtu(vlan, 1400), Ok(()));
    let inner = kernel.vlan_add("eth0.100.7", vlan, 7).unwrap();
    let mtu = |kernel: &Guest, dev| kernel.dev_get_by_index(dev).unwrap().mtu();
    assert_eq!((mtu(&kernel, vlan), mtu(&kernel, inner)), (1400, 1400));
    assert_eq!(kernel.dev_set_mtu(inner, 1401), Err(Errno::ERANGE));
    // What is in it shrinks with it, and does not grow again.
    assert_eq!(kernel.dev_set_mtu(vlan, 1300), Ok(()));
    assert_eq!(kernel.dev_set_mtu(vlan, 1500), Ok(()));
    assert_eq!((mtu(&kernel, vlan), mtu(&kernel, inner)), (1500, 1300));
}
