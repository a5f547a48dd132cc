//! ARP and the neighbour cache.

use etherparse::ArpOperation;
use nic_guest::net::stats::{RxDrop, TxDrop};

use crate::common::packets::{
    OURS, PEER, PEER_MAC, arp, arp_reply, arp_request, ethernet, read_arp, read_ip, read_udp,
};
use crate::common::world::{MAC, Setup, assert_balanced, boot, settle};
use crate::udp::finish_checksum;
use crate::{peer, udp_socket};

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
    assert_eq!(kernel.next_timer(), None);
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

#[test]
fn the_table_is_bounded() {
    let (mut kernel, world) = boot();
    for n in 0..3000u16 {
        let [high, low] = n.to_be_bytes();
        let sender = (PEER_MAC, [10, 78, high, low]);
        world.receive(&arp(
            BROADCAST,
            ArpOperation::REQUEST,
            sender,
            ([0; 6], OURS),
        ));
        settle(&mut kernel);
    }
    assert_eq!(world.take_sent().len(), 3000, "each was answered");
    assert_balanced(&kernel);
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
        let to = std::net::SocketAddrV4::new([10, 1, high, low].into(), 9);
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
