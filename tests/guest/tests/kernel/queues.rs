//! Several queue pairs and several CPUs: who sends where, and pairs that come and go while traffic runs.

use std::rc::Rc;

use nic_guest::net::stats::TxDrop;
use nic_guest::net::{Errno, Fd};
use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::{OURS, read_udp, udp, udp_between};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, settle};
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

fn guest(pairs: u16, cpus: usize) -> (Guest, Rc<World>) {
    let mut setup = Setup {
        features: FEATURES & !f::CSUM,
        pairs,
        queue_size: 16,
        ..Setup::default()
    };
    setup.config.cpus = cpus;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    (kernel, world)
}

/// The queue pairs that packets of this socket, one from each CPU, were sent on.
fn sent_on(kernel: &mut Guest, world: &World, fd: Fd, cpus: usize) -> Vec<u16> {
    for cpu in 0..cpus {
        kernel.sched_setaffinity(cpu).unwrap();
        kernel.sendto(fd, &[cpu as u8], Some(peer(9))).unwrap();
        // The CPU stays the process's whatever runs meanwhile.
        settle(kernel);
    }
    let sent = world.take_sent();
    let cpus: Vec<_> = sent.iter().map(|sent| read_udp(&sent.frame).3[0]).collect();
    assert!(cpus.iter().copied().eq(0..cpus.len() as u8));
    sent.iter().map(|sent| sent.pair).collect()
}

#[test]
fn each_cpu_sends_on_its_own_queue() {
    let (mut kernel, world) = guest(4, 4);
    let fd = udp_socket(&mut kernel, PORT);
    assert_eq!(sent_on(&mut kernel, &world, fd, 4), [0, 1, 2, 3]);
    assert_eq!(kernel.sched_setaffinity(4), Err(Errno::EINVAL));
    kernel.set_channels(2).unwrap();
    assert_eq!(sent_on(&mut kernel, &world, fd, 4), [0, 0, 1, 1]);
    kernel.set_channels(1).unwrap();
    assert_eq!(sent_on(&mut kernel, &world, fd, 4), [0; 4]);
    kernel.set_channels(3).unwrap();
    assert_eq!(sent_on(&mut kernel, &world, fd, 4), [0, 0, 1, 2]);
}

#[test]
fn flows_of_one_cpu_are_spread_over_its_queues() {
    let (mut kernel, world) = guest(4, 2);
    let mut used = [0; 4];
    for port in 0..32 {
        let fd = udp_socket(&mut kernel, PORT + port);
        let (first, second) = (
            sent_on(&mut kernel, &world, fd, 2),
            sent_on(&mut kernel, &world, fd, 2),
        );
        assert_eq!(first, second, "a flow keeps its queue");
        assert!(first[0].is_multiple_of(2) && !first[1].is_multiple_of(2));
        used[usize::from(first[0])] += 1;
        used[usize::from(first[1])] += 1;
    }
    assert!(used.iter().all(|&flows| flows > 4), "{used:?}");
}

#[test]
fn interrupts_go_to_the_first_cpu_of_each_queue() {
    let (mut kernel, world) = guest(2, 4);
    let fd = udp_socket(&mut kernel, PORT);
    let processed = |kernel: &Guest| -> Vec<u64> {
        let stats = kernel.stats();
        stats.cpus.iter().map(|cpu| cpu.processed).collect()
    };
    let before = processed(&kernel)[0];
    world.schedule_with(0, 0, VirtioNetHdr::default(), &udp(PORT, b"x"));
    world.schedule_with(0, 2, VirtioNetHdr::default(), &udp(PORT, b"x"));
    settle(&mut kernel);
    assert_eq!(processed(&kernel), [before + 1, 0, 1, 0]);
    assert_eq!(read_all(&mut kernel, fd).len(), 2);
}

#[test]
fn pairs_come_and_go_while_traffic_runs() {
    let (mut kernel, world) = guest(4, 4);
    let fd = udp_socket(&mut kernel, PORT);
    for pairs in [1, 4, 2, 3, 1, 4] {
        let mut expected = 0;
        // In all rings when the number changes; more in the middle of it.
        for queue in 0..4 {
            for n in 0..5 {
                let frame = udp_between(1000 + n, (MAC, OURS, PORT), b"x");
                world.schedule_with(0, 2 * queue, VirtioNetHdr::default(), &frame);
                expected += 1;
            }
        }
        kernel.step().unwrap();
        kernel.set_channels(pairs).unwrap();
        assert_eq!(kernel.dev.curr_queue_pairs(), pairs);
        for queue in 0..pairs {
            world.schedule_with(0, 2 * queue, VirtioNetHdr::default(), &udp(PORT, b"y"));
            expected += 1;
        }
        settle(&mut kernel);
        let last = world.commands.borrow().last().cloned();
        assert_eq!(last, Some((4, 0, vec![pairs as u8, 0])));
        assert_eq!(read_all(&mut kernel, fd).len(), expected, "{pairs}");
    }
    assert_eq!(world.missed.get(), 0);
    assert_balanced(&kernel);
}

#[test]
fn packets_for_a_queue_out_of_use_are_dropped_and_its_ring_drains() {
    let (mut kernel, world) = guest(2, 2);
    let fd = udp_socket(&mut kernel, PORT);
    world.hold.set(true);
    kernel.sched_setaffinity(1).unwrap();
    for n in 0..20 {
        kernel.sendto(fd, &[n], Some(peer(9))).unwrap();
    }
    let stats = kernel.stats();
    assert_eq!((stats.tx_queues[1].stop, stats.tx_dropped()), (1, 0));
    kernel.set_channels(1).unwrap();
    assert_eq!(kernel.stats().tx_drop(TxDrop::QdiscReset), 20 - 16);
    assert_eq!(world.transmit(1, 100), 16);
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!((stats.tx_queues[1].wake, stats.tx_dropped()), (1, 4));
    assert_eq!(kernel.dev.sq[1].vq.outstanding(), 0);
    // It sends elsewhere now, and on its own again when that is back.
    world.hold.set(false);
    world.take_sent();
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    kernel.set_channels(2).unwrap();
    kernel.sendto(fd, b"y", Some(peer(9))).unwrap();
    let pairs: Vec<_> = world.take_sent().iter().map(|sent| sent.pair).collect();
    assert_eq!(pairs, [0, 1]);
}

#[test]
fn a_refusal_changes_nothing() {
    let (mut kernel, world) = guest(2, 2);
    let fd = udp_socket(&mut kernel, PORT);
    world.refuse.set(true);
    assert_eq!(kernel.set_channels(1), Err(CtrlError::Refused(1)));
    assert!(matches!(kernel.set_channels(3), Err(CtrlError::Invalid(_))));
    assert_eq!(kernel.dev.curr_queue_pairs(), 2);
    assert_eq!(sent_on(&mut kernel, &world, fd, 2), [0, 1]);
}

fn resizable() -> (Guest, Rc<World>) {
    let mut setup = Setup {
        features: FEATURES & !f::CSUM | f::RING_RESET,
        queue_size: 16,
        pairs: 2,
        ..Setup::default()
    };
    setup.config.cpus = 2;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    (kernel, world)
}

#[test]
fn rings_are_resized_while_traffic_runs() {
    let (mut kernel, world) = resizable();
    let fd = udp_socket(&mut kernel, PORT);
    for (round, size) in (0..).zip([64, 8, 8, 256, 16]) {
        for queue in [0, 2] {
            for n in 0..5 {
                let frame = udp(PORT, &[round, n]);
                world.schedule_with(0, queue, VirtioNetHdr::default(), &frame);
            }
        }
        kernel.step().unwrap();
        kernel.set_ringparam(size, size).unwrap();
        assert_eq!(kernel.dev.ringparam(), (size, size));
        for n in 0..size as u8 / 4 {
            world.receive(&udp(PORT, &[round, n]));
            kernel.sendto(fd, &[n], Some(peer(9))).unwrap();
        }
        settle(&mut kernel);
        let frames = 10 + usize::from(size as u8 / 4);
        assert_eq!(read_all(&mut kernel, fd).len(), frames, "{size}");
        assert_eq!(world.take_sent().len(), usize::from(size as u8 / 4));
    }
    assert_eq!(kernel.stats().tx_dropped(), 0);
    assert_balanced(&kernel);
}

#[test]
fn what_is_in_a_ring_that_is_reset_is_dropped_and_what_waits_is_sent() {
    let (mut kernel, world) = resizable();
    let fd = udp_socket(&mut kernel, PORT);
    world.hold.set(true);
    kernel.sched_setaffinity(1).unwrap();
    for n in 0..30 {
        kernel.sendto(fd, &[n], Some(peer(9))).unwrap();
    }
    assert_eq!(kernel.stats().tx_queues[1].stop, 1);
    world.hold.set(false);
    kernel.sched_setaffinity(0).unwrap();
    kernel.set_ringparam(16, 64).unwrap();
    settle(&mut kernel);
    let sent = world.take_sent();
    let payloads: Vec<_> = sent.iter().map(|sent| read_udp(&sent.frame).3[0]).collect();
    assert_eq!(payloads, (16..30).collect::<Vec<u8>>());
    assert_eq!(kernel.stats().tx_drop(TxDrop::RingReset), 16);
    // The sender is charged for none of them any more.
    kernel.set_sndbuf(fd, 4000).unwrap();
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    assert_eq!(world.take_sent().len(), 1);
}
