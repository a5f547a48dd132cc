//! Transmit rings that fill up, and what waits for them.

use std::rc::Rc;

use nic_guest::net::Errno;
use nic_guest::net::stats::{TxDrop, TxQueueStats};
use nic_guest::virtio_net::features as f;

use crate::common::world::{FEATURES, Guest, Setup, World, over_each_ring, settle};
use crate::{PORT, peer, resolve_peer, udp_socket};

const RING: u16 = 16;

/// A kernel whose device has yet to send what it is given.
fn held(features: u64, tx_queue_len: usize) -> (Guest, Rc<World>) {
    let mut setup = Setup {
        features,
        queue_size: RING,
        ..Setup::default()
    };
    setup.config.tx_queue_len = tx_queue_len;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    settle(&mut kernel);
    world.hold.set(true);
    (kernel, world)
}

fn payloads(world: &World) -> Vec<u8> {
    world
        .take_sent()
        .iter()
        .map(|sent| sent.frame[42])
        .collect()
}

#[test]
fn a_full_ring_stops_the_queue_and_completions_wake_it() {
    for features in over_each_ring(FEATURES) {
        let (mut kernel, world) = held(features, 1000);
        let fd = udp_socket(&mut kernel, PORT);
        for n in 0..100 {
            assert_eq!(kernel.sendto(fd, &[n], Some(peer(9))), Ok(1));
        }
        let stats = kernel.stats();
        assert_eq!(stats.tx_queues, [TxQueueStats { stop: 1, wake: 0 }]);
        assert_eq!(
            settle(&mut kernel),
            0,
            "nothing to do until the device sends"
        );
        // The device sends what it has; the rest follows by itself.
        let kicks = kernel.dev.sq[0].stats.kicks;
        assert_eq!(world.transmit(0, 100), usize::from(RING));
        settle(&mut kernel);
        assert_eq!(
            world.transmit(0, 100),
            usize::from(RING),
            "as many as there is room for"
        );
        assert_eq!(kernel.dev.sq[0].stats.kicks, kicks + 1, "with one kick");
        world.hold.set(false);
        world.interrupt(1);
        settle(&mut kernel);
        assert_eq!(payloads(&world), (0..100).collect::<Vec<u8>>());
        let stats = kernel.stats();
        assert_eq!(stats.tx_queues[0].stop, stats.tx_queues[0].wake);
        assert_eq!(stats.tx_dropped(), 0);
        assert!(stats.cpu().net_tx_actions > 0);
    }
}

#[test]
fn a_full_discipline_drops() {
    let (mut kernel, world) = held(FEATURES, 10);
    let fd = udp_socket(&mut kernel, PORT);
    for n in 0..30 {
        kernel.sendto(fd, &[n], Some(peer(9))).unwrap();
    }
    // One has left it already, and came back because the ring was full.
    assert_eq!(kernel.stats().tx_drop(TxDrop::QdiscDrops), 30 - 16 - 1 - 10);
    world.hold.set(false);
    world.transmit(0, 100);
    settle(&mut kernel);
    assert_eq!(payloads(&world), (0..27).collect::<Vec<u8>>());
}

#[test]
fn the_send_buffer_makes_senders_wait() {
    let (mut kernel, world) = held(FEATURES, 1000);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_sndbuf(fd, 4000).unwrap();
    let mut accepted = 0;
    while kernel.sendto(fd, &[accepted], Some(peer(9))) == Ok(1) {
        accepted += 1;
    }
    assert_eq!(accepted, 11, "8000 / 768, and one more");
    assert_eq!(kernel.sendto(fd, b"x", Some(peer(9))), Err(Errno::EAGAIN));
    let other = udp_socket(&mut kernel, PORT + 1);
    assert_eq!(
        kernel.sendto(other, b"x", Some(peer(9))),
        Ok(1),
        "others may"
    );
    // A quarter is still out when the interrupt comes, and is taken all the same.
    world.transmit(0, 100);
    settle(&mut kernel);
    for n in 0..accepted {
        assert_eq!(kernel.sendto(fd, &[n], Some(peer(9))), Ok(1), "{n}");
    }
}

#[test]
fn completions_interrupt_seldom() {
    for features in over_each_ring(FEATURES).filter(|set| set & f::EVENT_IDX != 0) {
        completions_of_interrupt_seldom(features);
    }
}

fn completions_of_interrupt_seldom(features: u64) {
    let (mut kernel, world) = held(features, 1000);
    let fd = udp_socket(&mut kernel, PORT);
    for n in 0..12 {
        kernel.sendto(fd, &[n], Some(peer(9))).unwrap();
    }
    let before = world.raised[1].get();
    for _ in 0..12 {
        world.transmit(0, 1);
    }
    assert_eq!(world.raised[1].get(), before + 1, "one for twelve");
    settle(&mut kernel);
    assert_eq!(kernel.dev.sq[0].vq.outstanding(), 0);
}

#[test]
fn a_broken_send_ring_costs_its_frames_only() {
    over_each_ring(FEATURES).for_each(break_send_ring);
}

fn break_send_ring(features: u64) {
    let (mut kernel, world) = held(features, 1000);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    world.use_nonsense(1, 5000);
    assert!(kernel.step().is_err());
    assert_eq!(
        kernel.sendto(fd, b"y", Some(peer(9))),
        Ok(1),
        "as Linux has it"
    );
    assert_eq!(kernel.stats().tx_drop(TxDrop::TxFifoErrors), 1);
    assert!(kernel.step().is_err(), "the send noticed it again");
    assert_eq!(kernel.step(), Ok(false));
}
