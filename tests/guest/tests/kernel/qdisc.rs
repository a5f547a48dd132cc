//! Queueing disciplines: who goes first, who is dropped or marked, and when.

use std::net::SocketAddrV4;
use std::rc::Rc;

use nic_guest::net::sch_api::{FqCodelParams, QdiscKind, TbfParams};
use nic_guest::net::stats::TxDrop;
use nic_guest::net::{Errno, Fd};
use nic_guest::virtio_net::features as f;

use crate::common::packets::read_udp;
use crate::common::world::{FEATURES, Guest, Setup, World, settle};
use crate::{PORT, peer, resolve_peer, udp_socket};

const RING: u16 = 16;
const MS: u64 = 1_000_000;

/// A kernel with such a discipline, whose device has yet to send what it is given.
fn held(kind: QdiscKind) -> (Guest, Rc<World>) {
    let mut setup = Setup {
        features: FEATURES & !f::CSUM,
        queue_size: RING,
        ..Setup::default()
    };
    setup.config.default_qdisc = kind;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    settle(&mut kernel);
    world.hold.set(true);
    (kernel, world)
}

fn send(kernel: &mut Guest, fd: Fd, to: SocketAddrV4, count: usize) {
    for _ in 0..count {
        kernel.sendto(fd, &[7; 100], Some(to)).unwrap();
    }
}

/// Has the device send all there is; the ports that the datagrams went to.
fn release(kernel: &mut Guest, world: &World) -> Vec<u16> {
    world.hold.set(false);
    world.transmit(0, 1000);
    settle(kernel);
    let sent = world.take_sent();
    sent.iter().map(|sent| read_udp(&sent.frame).2).collect()
}

#[test]
fn what_is_urgent_goes_first() {
    let (mut kernel, world) = held(QdiscKind::PfifoFast);
    let bulk = udp_socket(&mut kernel, PORT);
    kernel.set_tos(bulk, 0x08).unwrap();
    let urgent = udp_socket(&mut kernel, PORT + 1);
    kernel.set_priority(urgent, 7).unwrap();
    send(&mut kernel, bulk, peer(1), 30);
    send(&mut kernel, urgent, peer(2), 5);
    let order = release(&mut kernel, &world);
    // What is in the ring, and the one that had left the discipline already, cannot be overtaken.
    let (before, behind) = order.split_at(usize::from(RING) + 1);
    assert_eq!(before, [1; 17]);
    assert_eq!(behind[..5], [2; 5]);
    assert_eq!(behind[5..], [1; 13]);
    let stats = kernel.qdisc_stats(0).unwrap();
    assert_eq!((stats.qlen, stats.backlog, stats.drops), (0, 0, 0));
    // The packet that learnt the neighbour and the question itself count as well.
    assert_eq!(stats.packets, 35 + 2);
    assert!(stats.requeues > 0);
    assert_eq!(kernel.set_tos(Fd(99), 0), Err(Errno::EBADF));
    assert_eq!(kernel.set_priority(Fd(99), 0), Err(Errno::EBADF));
}

#[test]
fn a_flow_stays_in_order_however_often_its_frames_come_back() {
    for kind in [
        QdiscKind::PfifoFast,
        QdiscKind::FqCodel(FqCodelParams::default()),
    ] {
        for room in 1..=6 {
            let (mut kernel, world) = held(kind);
            let fd = udp_socket(&mut kernel, PORT);
            // Each is forty on the wire, more than the ring holds; their octets count them.
            for first in [0, 40, 80] {
                let data: Vec<u8> = (first..first + 40).flat_map(|n| [n; 100]).collect();
                kernel
                    .sendto_segments(fd, &data, Some(peer(9)), 100)
                    .unwrap();
            }
            while world.transmit(0, room) > 0 {
                world.interrupt(1);
                settle(&mut kernel);
            }
            let sent = world.take_sent();
            let payloads = sent.iter().map(|sent| read_udp(&sent.frame).3);
            let order: Vec<_> = payloads.map(|payload| payload[0]).collect();
            assert_eq!(order, (0..120).collect::<Vec<u8>>(), "{kind:?}, {room}");
            assert!(kernel.qdisc_stats(0).unwrap().requeues > 40);
        }
    }
}

#[test]
fn one_flow_does_not_keep_another_waiting() {
    let (mut kernel, world) = held(QdiscKind::FqCodel(FqCodelParams::default()));
    let heavy = udp_socket(&mut kernel, PORT);
    let light = udp_socket(&mut kernel, PORT + 1);
    send(&mut kernel, heavy, peer(1), 200);
    send(&mut kernel, light, peer(2), 1);
    let order = release(&mut kernel, &world);
    assert_eq!(order.len(), 201);
    let place = order.iter().position(|&port| port == 2).unwrap();
    // The ring, one that had left, and a turn of ten packets of 142 bytes.
    assert!(place <= usize::from(RING) + 1 + 11, "{place}");
    // With FIFOs it is the last.
    let (mut kernel, world) = held(QdiscKind::PfifoFast);
    let heavy = udp_socket(&mut kernel, PORT);
    let light = udp_socket(&mut kernel, PORT + 1);
    send(&mut kernel, heavy, peer(1), 200);
    send(&mut kernel, light, peer(2), 1);
    assert_eq!(release(&mut kernel, &world).last(), Some(&2));
}

/// Fills the ring and the discipline, and has the device send one frame each 20 ms.
fn slow(tos: u8) -> (Guest, Rc<World>) {
    let (mut kernel, world) = held(QdiscKind::FqCodel(FqCodelParams::default()));
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_tos(fd, tos).unwrap();
    send(&mut kernel, fd, peer(1), 200);
    for _ in 0..180 {
        world.advance(20 * MS);
        world.transmit(0, 1);
        world.interrupt(1);
        settle(&mut kernel);
    }
    (kernel, world)
}

#[test]
fn who_waits_too_long_is_dropped_or_marked() {
    let (kernel, world) = slow(0);
    let stats = kernel.fq_codel_stats(0).unwrap();
    let dropped = stats.codel.drop_count;
    assert!(dropped > 10 && stats.codel.ecn_mark == 0, "{stats:?}");
    assert_eq!(kernel.stats().tx_drop(TxDrop::QdiscDrops), dropped);
    assert_eq!(kernel.qdisc_stats(0).unwrap().drops, dropped);
    assert!(world.take_sent().iter().all(|sent| sent.frame[15] == 0));
    // A sender that understands marks loses nothing.
    let (kernel, world) = slow(2);
    let stats = kernel.fq_codel_stats(0).unwrap();
    assert_eq!(kernel.stats().tx_dropped(), 0);
    let sent = world.take_sent();
    let marked = sent.iter().filter(|sent| sent.frame[15] == 3).count() as u64;
    assert!(marked > 10, "{stats:?}");
    assert!(
        (marked..marked + 20).contains(&stats.codel.ecn_mark),
        "some are in the ring"
    );
    for sent in &sent {
        read_udp(&sent.frame);
    }
}

#[test]
fn a_rate_is_held_by_timers() {
    let params = TbfParams {
        rate: 125_000,
        burst: 5_000,
        limit: 100_000,
    };
    let (mut kernel, world) = held(QdiscKind::Tbf(params));
    world.hold.set(false);
    // The bucket is full again after two small packets.
    world.advance(100 * MS);
    let begin = nic_guest::net::Machine::now(&*world);
    let fd = udp_socket(&mut kernel, PORT);
    for _ in 0..50 {
        kernel.sendto(fd, &[7; 1000 - 42], Some(peer(1))).unwrap();
    }
    while let Some(timer) = kernel.next_timer() {
        let now = nic_guest::net::Machine::now(&*world);
        world.advance(timer - now);
        settle(&mut kernel);
    }
    let sent = world.take_sent();
    let law = |n: u64| begin + 8 * MS * n.saturating_sub(4);
    assert!(sent.iter().map(|sent| sent.at).eq((0..50).map(law)));
    let stats = kernel.qdisc_stats(0).unwrap();
    assert_eq!((stats.drops, stats.qlen), (0, 0));
    assert!(stats.overlimits >= 45, "{stats:?}");
}

#[test]
fn a_rate_has_a_bounded_queue() {
    let params = TbfParams {
        rate: 1_000,
        burst: 2_000,
        limit: 5_000,
    };
    let (mut kernel, _world) = held(QdiscKind::Tbf(params));
    let of_neighbour = kernel.next_timer();
    let fd = udp_socket(&mut kernel, PORT);
    for _ in 0..20 {
        kernel.sendto(fd, &[7; 1000 - 42], Some(peer(1))).unwrap();
    }
    let stats = kernel.qdisc_stats(0).unwrap();
    assert!(stats.backlog <= 5_000 && stats.drops >= 13, "{stats:?}");
    assert_eq!(kernel.stats().tx_drop(TxDrop::QdiscDrops), stats.drops);
    kernel.qdisc_replace(None, QdiscKind::PfifoFast).unwrap();
    assert_eq!(kernel.stats().tx_drop(TxDrop::QdiscReset), stats.qlen);
    assert_eq!(kernel.next_timer(), of_neighbour, "nobody waits any more");
}

#[test]
fn without_a_discipline_a_full_ring_loses_packets() {
    let (mut kernel, world) = held(QdiscKind::Noqueue);
    let fd = udp_socket(&mut kernel, PORT);
    send(&mut kernel, fd, peer(1), 30);
    assert_eq!(kernel.stats().tx_drop(TxDrop::TxDropped), 30 - 16);
    assert_eq!(release(&mut kernel, &world).len(), 16);
}

#[test]
fn a_run_sends_its_weight_and_has_another() {
    let (mut kernel, world) = held(QdiscKind::PfifoFast);
    let fd = udp_socket(&mut kernel, PORT);
    send(&mut kernel, fd, peer(1), 200);
    world.hold.set(false);
    world.transmit(0, 1000);
    let before = kernel.stats().cpu().net_tx_actions;
    settle(&mut kernel);
    // 184 packets wait; a ring of 16 stops the queue before the weight of 64 does.
    assert!(kernel.stats().cpu().net_tx_actions - before >= 184 / 64);
    assert_eq!(world.take_sent().len(), 200);
}

fn many(root: Option<QdiscKind>) -> (Guest, Rc<World>) {
    let mut setup = Setup {
        features: FEATURES & !f::CSUM,
        pairs: 4,
        queue_size: RING,
        ..Setup::default()
    };
    setup.config.cpus = 4;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    if let Some(kind) = root {
        kernel.qdisc_replace(None, kind).unwrap();
    }
    world.hold.set(true);
    (kernel, world)
}

#[test]
fn each_queue_has_its_own_under_mq_and_one_at_the_root_serves_all() {
    for (root, stopped_for_all) in [(None, false), (Some(QdiscKind::PfifoFast), true)] {
        let (mut kernel, world) = many(root);
        let fd = udp_socket(&mut kernel, PORT);
        send(&mut kernel, fd, peer(1), 40);
        // CPU 0's ring is full, the others' are not.
        kernel.sched_setaffinity(1).unwrap();
        send(&mut kernel, fd, peer(2), 3);
        let in_ring = kernel.dev.sq[1].vq.outstanding();
        assert_eq!(in_ring == 0, stopped_for_all, "{in_ring}");
        let mut text = String::new();
        kernel.tc_qdisc_show("eth0", &mut text).unwrap();
        let disciplines = text
            .lines()
            .filter(|line| line.starts_with("qdisc"))
            .count();
        assert_eq!(disciplines, if stopped_for_all { 1 } else { 5 }, "{text}");
        world.hold.set(false);
        for pair in 0..4 {
            world.transmit(pair, 100);
        }
        settle(&mut kernel);
        let sent = world.take_sent();
        let on = |pair| sent.iter().filter(|sent| sent.pair == pair).count();
        assert_eq!((on(0), on(1)), (40, 3), "each on the queue of its CPU");
        assert_eq!(kernel.stats().tx_dropped(), 0);
    }
}

#[test]
fn the_leaf_of_one_queue_is_replaced() {
    let (mut kernel, _world) = many(None);
    let codel = QdiscKind::FqCodel(FqCodelParams::default());
    let fd = udp_socket(&mut kernel, PORT);
    send(&mut kernel, fd, peer(1), 20);
    kernel.qdisc_replace(Some(0), codel).unwrap();
    assert_eq!(kernel.stats().tx_drop(TxDrop::QdiscReset), 4);
    assert!(kernel.fq_codel_stats(0).is_some() && kernel.fq_codel_stats(1).is_none());
    let mut text = String::new();
    kernel.tc_qdisc_show("eth0", &mut text).unwrap();
    assert!(
        text.contains("qdisc fq_codel 0: dev eth0 parent :1 limit 10240p flows 1024 quantum 1514"),
        "{text}"
    );
    for (queue, kind, error) in [
        (Some(4), codel, Errno::ENOENT),
        (Some(1), QdiscKind::Mq, Errno::EOPNOTSUPP),
    ] {
        assert_eq!(kernel.qdisc_replace(queue, kind), Err(error));
    }
    kernel.qdisc_replace(None, codel).unwrap();
    assert_eq!(kernel.qdisc_replace(Some(0), codel), Err(Errno::ENOENT));
    let none = TbfParams {
        rate: 0,
        burst: 1,
        limit: 1,
    };
    assert_eq!(
        kernel.qdisc_replace(None, QdiscKind::Tbf(none)),
        Err(Errno::EINVAL)
    );
    for flows in [0, 65_537] {
        let many = QdiscKind::FqCodel(FqCodelParams {
            flows,
            ..FqCodelParams::default()
        });
        assert_eq!(kernel.qdisc_replace(None, many), Err(Errno::EINVAL));
    }
    assert_eq!(kernel.qdisc_stats(4), None);
    kernel.qdisc_replace(None, QdiscKind::Mq).unwrap();
}

#[test]
fn the_device_has_no_more_bytes_than_keep_it_busy() {
    let mut setup = Setup {
        features: FEATURES & !f::CSUM,
        ..Setup::default()
    };
    setup.config.bql = true;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    world.hold.set(true);
    let fd = udp_socket(&mut kernel, PORT);
    send(&mut kernel, fd, peer(1), 100);
    let limits = kernel.byte_queue_limits(0).unwrap();
    // One frame more than the limit lets it have; the ring has room for many more.
    assert!(
        limits.inflight > limits.limit && limits.inflight <= limits.limit + 142,
        "{limits:?}"
    );
    let mut before = limits.limit;
    let mut sent = 0;
    while sent < 100 {
        let kicks = kernel.dev.sq[0].stats.kicks;
        sent += world.transmit(0, 1000);
        settle(&mut kernel);
        let limits = kernel.byte_queue_limits(0).unwrap();
        assert!(limits.limit >= before, "it ran dry");
        before = limits.limit;
        assert!(
            kernel.dev.sq[0].stats.kicks - kicks <= 2,
            "kicked once or twice"
        );
    }
    assert!(before > 3 * 142, "{before}");
    assert_eq!(release(&mut kernel, &world), [1; 100]);
    assert_eq!(kernel.byte_queue_limits(0).unwrap().inflight, 0);
    assert_eq!(kernel.stats().tx_dropped(), 0);
    // Without limits there are none to show.
    let (kernel, _world) = Setup::default().boot();
    assert_eq!(kernel.byte_queue_limits(0), None);
}

#[test]
fn a_ring_that_begins_anew_is_not_waited_for() {
    let mut setup = Setup {
        features: FEATURES | f::RING_RESET,
        ..Setup::default()
    };
    setup.config.bql = true;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    world.hold.set(true);
    let fd = udp_socket(&mut kernel, PORT);
    send(&mut kernel, fd, peer(1), 10);
    world.hold.set(false);
    kernel.set_ringparam(256, 64).unwrap();
    settle(&mut kernel);
    world.interrupt(1);
    settle(&mut kernel);
    let reset = kernel.stats().tx_drop(TxDrop::RingReset);
    assert_eq!(world.take_sent().len() as u64 + reset, 10);
}
