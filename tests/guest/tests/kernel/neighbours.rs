//! ARP and the neighbour cache.

use std::net::SocketAddrV4;

use etherparse::{ArpOperation, IpNumber, Ipv4Header};
use nic_guest::net::stats::{RxDrop, TxDrop};
use nic_guest::net::{Ifindex, NeighParms, NudState};
use nic_guest::virtio_net::features as f;

use crate::common::packets::{
    OURS, PEER, PEER_MAC, arp, arp_reply, arp_request, ethernet, ip_with, read_arp, read_ip,
    read_udp,
};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, boot, settle};
use crate::udp::finish_checksum;
use crate::{PORT, peer, resolve_peer, udp_socket};

const SECOND: u64 = 1_000_000_000;
const BROADCAST: [u8; 6] = [0xff; 6];

#[test]
fn who_asks_for_us_is_answered_and_remembered() {
    let (mut kernel, world) = boot();
    world.receive(&arp_request(OURS));
    settle(&mut kernel);
    let sent = world.take_sent();
    assert_eq!(sent.len(), 1);
    let (destination, reply) = read_arp(&sent[0].frame);
    assert_eq!(destination, PEER_MAC);
    assert_eq!(reply.operation, ArpOperation::REPLY);
    assert_eq!((reply.sender_mac, reply.sender_ipv4), (MAC, OURS));
    assert_eq!((reply.target_mac, reply.target_ipv4), (PEER_MAC, PEER));
    // A datagram to him needs no question.
    let fd = udp_socket(&mut kernel, 7000);
    kernel.sendto(fd, b"hi", Some(peer(9))).unwrap();
    let sent = world.take_sent();
    assert_eq!(read_ip(&sent[0].frame).destination, PEER_MAC);
    assert_balanced(&kernel);
}

#[test]
fn requests_for_others_and_probes() {
    let (mut kernel, world) = boot();
    world.receive(&arp_request([10, 77, 0, 99]));
    settle(&mut kernel);
    assert_eq!(world.take_sent(), []);
    // Duplicate address detection: the sender has no address yet, and is not remembered.
    let probe = (PEER_MAC, [0; 4]);
    world.receive(&arp(
        BROADCAST,
        ArpOperation::REQUEST,
        probe,
        ([0; 6], OURS),
    ));
    settle(&mut kernel);
    let (destination, reply) = read_arp(&world.take_sent()[0].frame);
    assert_eq!((destination, reply.target_ipv4), (PEER_MAC, [0; 4]));
    assert_eq!(kernel.stats().consumed, 2);
    assert_balanced(&kernel);
}

#[test]
fn what_is_no_arp_is_dropped() {
    let (mut kernel, world) = boot();
    let mut strange = arp_request(OURS);
    strange[15] = 7;
    let multicast = arp_request([224, 0, 0, 1]);
    let short = [&ethernet(MAC, 0x0806)[..], &[0; 20]].concat();
    for frame in [strange, multicast, short] {
        world.receive(&frame);
    }
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::ArpInvalid), 3);
    assert_balanced(&kernel);
}

#[test]
fn packets_wait_for_the_answer_and_the_oldest_go() {
    let mut setup = Setup::default();
    setup.config.unres_qlen = 3;
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, 7000);
    for n in 0..5u8 {
        assert_eq!(kernel.sendto(fd, &[n], Some(peer(9))), Ok(1));
    }
    let sent = world.take_sent();
    assert_eq!(sent.len(), 1, "one question for all");
    let (destination, request) = read_arp(&sent[0].frame);
    assert_eq!(destination, BROADCAST);
    assert_eq!(request.operation, ArpOperation::REQUEST);
    assert_eq!((request.sender_ipv4, request.target_ipv4), (OURS, PEER));
    assert_eq!(kernel.stats().tx_drop(TxDrop::NeighUnresDiscards), 2);
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    let payloads: Vec<_> = world.take_sent().iter().map(|s| s.frame[42]).collect();
    assert_eq!(payloads, [2, 3, 4]);
}

#[test]
fn three_questions_a_second_apart_and_then_nothing() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, 7000);
    world.advance(5 * SECOND);
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    for n in 1..=3 {
        let due = kernel.next_timer().unwrap();
        assert_eq!(due, (5 + n) * SECOND);
        assert_eq!(kernel.stats().tx_dropped(), 0);
        settle(&mut kernel);
        world.advance(SECOND - 1);
        assert_eq!(kernel.step(), Ok(false), "not due yet");
        world.advance(1);
        assert_eq!(kernel.step(), Ok(true));
        settle(&mut kernel);
    }
    let times: Vec<_> = world.take_sent().iter().map(|s| s.at / SECOND).collect();
    assert_eq!(times, [5, 6, 7]);
    assert_eq!(kernel.stats().tx_drop(TxDrop::NeighResFailed), 1);
    assert_eq!(kernel.next_timer(), None);
    // The next packet asks again.
    kernel.sendto(fd, b"y", Some(peer(9))).unwrap();
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    assert_eq!(read_udp(&finish_checksum(&world.take_sent()[1])).3, b"y");
}

#[test]
fn answers_nobody_asked_for_are_not_believed() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, 7000);
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    assert_eq!(read_arp(&world.take_sent()[0].frame).0, BROADCAST);
    // The first answer counts, until it is a second old.
    let other = [2, 0, 0, 0, 0x77, 9];
    let claim = arp(MAC, ArpOperation::REPLY, (other, PEER), (MAC, OURS));
    let mut destination = |frame: &[u8]| {
        world.receive(frame);
        settle(&mut kernel);
        kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
        read_ip(&world.take_sent().last().unwrap().frame).destination
    };
    assert_eq!(destination(&arp_reply(PEER)), PEER_MAC);
    assert_eq!(destination(&claim), PEER_MAC);
    world.advance(SECOND);
    assert_eq!(destination(&claim), other);
}

/// A host asks for us, and so tells of himself.
fn host_asks(kernel: &mut Guest, world: &World, n: u16) -> bool {
    let [high, low] = n.to_be_bytes();
    let sender = (PEER_MAC, [10, 78, high, low]);
    let target = ([0; 6], OURS);
    world.receive(&arp(BROADCAST, ArpOperation::REQUEST, sender, target));
    settle(kernel);
    !world.take_sent().is_empty()
}

#[test]
fn the_table_is_bounded() {
    let (mut kernel, world) = boot();
    let answered = (0..3000).filter(|n| host_asks(&mut kernel, &world, *n));
    assert_eq!(answered.count(), 1024);
    let neigh = kernel.stats().neigh;
    assert_eq!((neigh.allocs, neigh.table_fulls), (1024, 3000 - 1024));
    assert_balanced(&kernel);
    // Those that have not changed for 5 s make room until it is half full.
    world.advance(5 * SECOND + 1);
    assert!(host_asks(&mut kernel, &world, 5000));
    assert_eq!(kernel.stats().neigh.destroys, 512);
    // The rest goes when nobody has used it for a minute.
    world.advance(100 * SECOND);
    settle(&mut kernel);
    let neigh = kernel.stats().neigh;
    assert_eq!(neigh.allocs - neigh.destroys, 0, "{neigh:?}");
    assert_eq!(kernel.next_timer(), None);
}

#[test]
fn neighbours_grow_old_and_are_asked_again() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, 7000);
    let state = |kernel: &Guest| kernel.neigh_state(PEER.into(), Ifindex::ETH0);
    // Sends a datagram; what goes out is one frame to the peer.
    let send = |kernel: &mut Guest| {
        kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
        let sent = world.take_sent();
        assert_eq!(read_ip(&sent[0].frame).destination, PEER_MAC);
        assert_eq!(sent.len(), 1);
    };
    let after = |kernel: &mut Guest, ns| {
        world.advance(ns);
        settle(kernel);
        world.take_sent()
    };
    assert_eq!(state(&kernel), None);
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    assert_eq!(state(&kernel), Some(NudState::Incomplete));
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    world.take_sent();
    assert_eq!(state(&kernel), Some(NudState::Reachable));
    // After half a minute without another answer he is believed no longer, but used.
    assert_eq!(after(&mut kernel, 30 * SECOND - 1), []);
    assert_eq!(state(&kernel), Some(NudState::Reachable));
    send(&mut kernel);
    assert_eq!(after(&mut kernel, 1), []);
    assert_eq!(state(&kernel), Some(NudState::Stale));
    send(&mut kernel);
    assert_eq!(state(&kernel), Some(NudState::Delay));
    // Then he is asked himself, and answers.
    let question = after(&mut kernel, 5 * SECOND);
    assert_eq!(state(&kernel), Some(NudState::Probe));
    assert_eq!(read_arp(&question[0].frame).0, PEER_MAC);
    send(&mut kernel);
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    assert_eq!(state(&kernel), Some(NudState::Reachable));
    // Next time he does not: after three questions he is given up.
    after(&mut kernel, 30 * SECOND);
    send(&mut kernel);
    for _ in 0..3 {
        let wait = if state(&kernel) == Some(NudState::Delay) {
            5
        } else {
            1
        };
        assert_eq!(after(&mut kernel, wait * SECOND).len(), 1);
        assert_eq!(state(&kernel), Some(NudState::Probe));
    }
    assert_eq!(after(&mut kernel, SECOND), []);
    assert_eq!(state(&kernel), Some(NudState::Failed));
    assert_eq!(kernel.stats().neigh.res_failed, 1);
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    assert_eq!(read_arp(&world.take_sent()[0].frame).0, BROADCAST);
}

#[test]
fn who_answers_again_is_believed_for_longer() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, 7000);
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    for (wait, want) in [
        (0, NudState::Reachable),
        (20, NudState::Reachable),
        (29, NudState::Reachable),
        (30, NudState::Stale),
    ] {
        world.advance(wait * SECOND);
        settle(&mut kernel);
        let state = kernel.neigh_state(PEER.into(), Ifindex::ETH0);
        if wait > 0 {
            assert_eq!(state, Some(want), "after {wait} s");
        }
        world.receive(&arp_reply(PEER));
        settle(&mut kernel);
    }
}

#[test]
fn who_is_heard_of_while_he_is_to_be_asked_is_not_asked() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, 7000);
    let state = |kernel: &Guest| kernel.neigh_state(PEER.into(), Ifindex::ETH0);
    world.receive(&arp_request(OURS));
    settle(&mut kernel);
    assert_eq!(state(&kernel), Some(NudState::Stale));
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    assert_eq!(state(&kernel), Some(NudState::Delay));
    world.advance(4 * SECOND);
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    assert_eq!(state(&kernel), Some(NudState::Reachable));
    world.take_sent();
    world.advance(2 * SECOND);
    settle(&mut kernel);
    assert_eq!(world.take_sent(), []);
}

#[test]
fn a_table_full_of_questions_takes_no_more() {
    let mut setup = Setup::default();
    setup.config.prefix_len = 8;
    let (mut kernel, _world) = setup.boot();
    let fd = udp_socket(&mut kernel, 7000);
    kernel.set_sndbuf(fd, 10 << 20).unwrap();
    for n in 0..1100u16 {
        let [high, low] = n.to_be_bytes();
        let to = SocketAddrV4::new([10, 1, high, low].into(), 9);
        kernel.sendto(fd, b"x", Some(to)).unwrap();
    }
    assert_eq!(kernel.stats().tx_drop(TxDrop::NeighTableFull), 1100 - 1024);
}

#[test]
fn what_the_administrator_says_stays() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, 7000);
    let told = [2, 0, 0, 0, 0x77, 7];
    // What waited is sent; whoever says otherwise later is not believed.
    kernel.sendto(fd, b"waits", Some(peer(9))).unwrap();
    kernel.neigh_add(PEER.into(), told).unwrap();
    assert_eq!(kernel.next_timer(), None);
    world.receive(&arp_request(OURS));
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    world.advance(2 * SECOND);
    world.receive(&arp_reply(PEER));
    settle(&mut kernel);
    kernel.sendto(fd, b"later", Some(peer(9))).unwrap();
    let sent = world.take_sent();
    let destinations: Vec<_> = sent.iter().map(|s| &s.frame[..6]).collect();
    assert_eq!(destinations, [&BROADCAST[..], &told, &PEER_MAC, &told]);
    // But he may change his mind, also about what was learnt.
    kernel.neigh_add(PEER.into(), PEER_MAC).unwrap();
    kernel.sendto(fd, b"now", Some(peer(9))).unwrap();
    assert_eq!(read_ip(&world.take_sent()[0].frame).destination, PEER_MAC);
}

#[test]
fn who_makes_room_for_whom_his_packets_are_from_loses_none_uncounted() {
    let mut setup = Setup::default();
    setup.config.ip_forward = true;
    setup.config.neigh = NeighParms {
        gc_thresh1: 1,
        gc_thresh2: 2,
        gc_thresh3: 4,
        ..NeighParms::default()
    };
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, 7000);
    kernel.set_sndbuf(fd, 10_000).unwrap();
    let silent = |host| SocketAddrV4::new([10, 77, 0, host].into(), 9);
    // The first to wait is from a host that is not known either, and is told of it.
    let header = Ipv4Header::new(8, 64, IpNumber::UDP, [10, 77, 0, 150], [10, 77, 0, 200]).unwrap();
    world.receive(&ip_with(header, &[0x23, 0x28, 0x1b, 0x58, 0, 8, 0, 0]));
    settle(&mut kernel);
    let mut sends = 0;
    while kernel.sendto(fd, &[1; 1000], Some(silent(200))).is_ok() {
        sends += 1;
    }
    // Another, so that the table is as full as it is to be.
    let other = udp_socket(&mut kernel, 7001);
    kernel.sendto(other, b"x", Some(silent(201))).unwrap();
    for _ in 0..30 {
        world.advance(SECOND);
        settle(&mut kernel);
    }
    assert!(kernel.stats().neigh.forced_gc_runs > 0);
    // Those, the one that was sent on, and the error about it.
    let lost = kernel.stats().tx_drop(TxDrop::NeighResFailed);
    assert_eq!(lost, sends + 3);
    assert!(kernel.sendto(fd, &[1; 1000], Some(silent(202))).is_ok());
}

#[test]
fn a_new_address_of_ours_is_told_and_used() {
    let setup = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_MAC_ADDR,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    let vlan = kernel.vlan_add("eth0.5", Ifindex::ETH0, 5).unwrap();
    let fd = udp_socket(&mut kernel, PORT);
    for _ in 0..2 {
        kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    }
    // One waits for an answer, which would come to the old address.
    let absent = SocketAddrV4::new([10, 77, 0, 9].into(), 9);
    kernel.sendto(fd, b"x", Some(absent)).unwrap();
    settle(&mut kernel);
    world.take_sent();
    let new = [2, 9, 9, 9, 9, 9];
    kernel.dev_set_mac_address(new).unwrap();
    assert_eq!(kernel.dev_get_by_index(vlan).unwrap().dev_addr(), new);
    assert_eq!(kernel.stats().tx_drop(TxDrop::NeighUnresDiscards), 1);
    assert_eq!(kernel.neigh_state(PEER.into(), Ifindex::ETH0), None);
    kernel.sendto(fd, b"y", Some(peer(9))).unwrap();
    let reply = ArpOperation::REPLY;
    world.receive(&arp(new, reply, (PEER_MAC, PEER), (new, OURS)));
    settle(&mut kernel);
    kernel.sendto(fd, b"z", Some(peer(9))).unwrap();
    let sent = world.take_sent();
    let question = &sent[0].frame;
    assert_eq!(
        (&question[12..14], &question[22..28]),
        (&[8, 6][..], &new[..])
    );
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|sent| sent.frame[6..12] == new));
    // Nobody asks for the old one's sake any more.
    world.advance(10_000_000_000);
    settle(&mut kernel);
    assert!(
        world
            .take_sent()
            .iter()
            .all(|sent| sent.frame[28..32] != [10, 77, 0, 9])
    );
    assert_balanced(&kernel);
}
