//! Ways to poll: late interrupts, timers, readers, threads, and no polling at all.

use std::rc::Rc;
use std::time::Duration;

use nic_guest::net::stats::RxDrop;
use nic_guest::net::{CpuCost, Errno, Fd, Machine};
use nic_guest::ring::RingFault;
use nic_guest::virtio_net::features as f;

use crate::common::packets::udp;
use crate::common::world::{
    FEATURES, Guest, Setup, World, assert_balanced, boot, over_each_ring, settle,
};
use crate::{PORT, read_all, udp_socket};

const US: u64 = 1_000;

/// Plays on to `end`, with the kernel's timers and interrupts each at its instant.
fn play(kernel: &mut Guest, world: &World, end: u64) {
    settle(kernel);
    while world.now() < end {
        let step = kernel.next_timer().map_or(end, |at| at.min(end));
        // Frames may come in between.
        world.advance((step - world.now()).clamp(1, 10 * US));
        settle(kernel);
    }
}

#[test]
fn a_masked_interrupt_is_replaced_by_a_timer() {
    for features in over_each_ring(FEATURES) {
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let (mut kernel, world) = setup.boot();
        let fd = udp_socket(&mut kernel, PORT);
        let before = kernel.stats().queues[0];
        kernel.set_napi_defer_hard_irqs(2, Duration::from_micros(100));
        // A packet each 150 us: each second poll finds one.
        for n in 1..=20 {
            world.schedule(n * 150 * US, &udp(PORT, b"x"));
        }
        play(&mut kernel, &world, 21 * 150 * US);
        let after = kernel.stats().queues[0];
        assert_eq!(read_all(&mut kernel, fd).len(), 20);
        assert_eq!(after.interrupts - before.interrupts, 1, "the first");
        assert!(after.polls - before.polls >= 25, "{after:?}");
        // When nothing comes it gives up, and the interrupt is on again.
        play(&mut kernel, &world, 5_000 * US);
        assert_eq!(kernel.next_timer(), None);
        let polls = kernel.stats().queues[0].polls;
        world.receive(&udp(PORT, b"x"));
        settle(&mut kernel);
        let after = kernel.stats().queues[0];
        assert_eq!(
            (after.interrupts - before.interrupts, after.polls),
            (2, polls + 1)
        );
        assert_eq!(read_all(&mut kernel, fd).len(), 1);
        assert_balanced(&kernel);
    }
}

#[test]
fn without_a_timer_an_interrupt_is_not_put_off() {
    let (mut kernel, world) = boot();
    kernel.set_napi_defer_hard_irqs(100, Duration::ZERO);
    udp_socket(&mut kernel, PORT);
    let before = kernel.stats().queues[0];
    for n in 1..=5 {
        world.schedule(n * 100 * US, &udp(PORT, b"x"));
    }
    play(&mut kernel, &world, 600 * US);
    assert_eq!(kernel.stats().queues[0].interrupts - before.interrupts, 5);
    assert_eq!(kernel.next_timer(), None);
}

/// A socket that has had a packet, so that it knows its device's queue; its reader polls for `usecs`.
fn polling(setup: Setup, usecs: u32) -> (Guest, Rc<World>, Fd) {
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_busy_poll(fd, usecs).unwrap();
    assert_eq!(
        kernel.recvfrom(fd, &mut [0; 8]),
        Err(Errno::EAGAIN),
        "it knows none yet"
    );
    world.receive(&udp(PORT, b"first"));
    settle(&mut kernel);
    assert_eq!(read_all_at_once(&mut kernel, fd), 1);
    (kernel, world, fd)
}

/// Datagrams that are there without polling for any more.
fn read_all_at_once(kernel: &mut Guest, fd: Fd) -> usize {
    let mut count = 0;
    while kernel.poll(fd).unwrap() {
        kernel.recvfrom(fd, &mut [0; 64]).unwrap();
        count += 1;
    }
    count
}

#[test]
fn a_reader_that_polls_needs_no_interrupt() {
    for features in over_each_ring(FEATURES) {
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let (mut kernel, world, fd) = polling(setup, 50);
        let before = kernel.stats();
        let begin = world.now();
        for n in 1..=10 {
            world.schedule(begin + n * 20 * US, &udp(PORT, &[n as u8]));
        }
        for n in 1..=10 {
            let mut buf = [0; 8];
            let received = kernel.recvfrom(fd, &mut buf).unwrap();
            assert_eq!((received.len, u64::from(buf[0])), (1, n));
            assert!(
                world.now() - begin < n * 20 * US + US,
                "as soon as it is there"
            );
        }
        // Nothing comes any more: it gives up after its time.
        let idle = world.now();
        assert_eq!(kernel.recvfrom(fd, &mut [0; 8]), Err(Errno::EAGAIN));
        assert!((50 * US..52 * US).contains(&(world.now() - idle)));
        let after = kernel.stats();
        // Between two reads it is on; each read masks it before it can be handled.
        assert_eq!(after.rx().interrupts, before.rx().interrupts);
        assert_eq!(after.cpu().busy_poll_rx_packets, 10);
        settle(&mut kernel);
        // And then the interrupt is on as before.
        world.receive(&udp(PORT, b"again"));
        settle(&mut kernel);
        assert_eq!(kernel.stats().rx().interrupts, before.rx().interrupts + 1);
        assert_eq!(read_all_at_once(&mut kernel, fd), 1);
        assert_balanced(&kernel);
    }
}

#[test]
fn a_reader_waits_for_who_polls_already() {
    let (mut kernel, world, fd) = polling(Setup::default(), 50);
    // The interrupt was taken, so that the soft interrupt's poll comes first.
    kernel.dev_set_threaded(true);
    world.receive(&udp(PORT, b"x"));
    kernel.step().unwrap();
    assert!(kernel.recvfrom(fd, &mut [0; 8]).is_ok());
    assert_eq!(kernel.stats().cpu().busy_poll_rx_packets, 0);
    assert_eq!(kernel.set_busy_poll(Fd(99), 1), Err(Errno::EBADF));
}

#[test]
fn a_flood_does_not_keep_a_reader_for_ever() {
    let (mut kernel, world, fd) = polling(Setup::default(), 50);
    for _ in 0..200 {
        world.receive(&udp(PORT + 1, b"for somebody else"));
    }
    let begin = world.now();
    assert_eq!(kernel.recvfrom(fd, &mut [0; 8]), Err(Errno::EAGAIN));
    assert!(world.now() - begin < 60 * US);
    settle(&mut kernel);
    assert_balanced(&kernel);
}

#[test]
fn threads_poll_instead_of_the_soft_interrupt() {
    let mut setup = Setup {
        pairs: 2,
        ..Setup::default()
    };
    setup.config.napi_weight = 16;
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_rcvbuf(fd, 1 << 20).unwrap();
    kernel.dev_set_threaded(true);
    let before = kernel.stats().cpu();
    for queue in [0, 2] {
        for _ in 0..40 {
            world.schedule_with(0, queue, Default::default(), &udp(PORT, &[queue as u8]));
        }
    }
    settle(&mut kernel);
    let order: Vec<u8> = read_all(&mut kernel, fd).iter().map(|d| d[0]).collect();
    // One poll each, in turn.
    let turns: Vec<u8> = order.chunks(16).map(|turn| turn[0]).collect();
    assert_eq!((order.len(), &turns[..4]), (80, &[0, 2, 0, 2][..]));
    let after = kernel.stats().cpu();
    assert_eq!(after.net_rx_actions, before.net_rx_actions);
    assert_eq!(after.napi_threaded_polls, 6);
    kernel.dev_set_threaded(false);
    world.receive(&udp(PORT, b"x"));
    settle(&mut kernel);
    assert_eq!(kernel.stats().cpu().napi_threaded_polls, 6);
    assert_eq!(read_all(&mut kernel, fd).len(), 1);
    assert_balanced(&kernel);
}

#[test]
fn without_napi_the_interrupt_takes_frames_and_the_backlog_is_bounded() {
    for features in over_each_ring(FEATURES & !f::CSUM) {
        let mut setup = Setup {
            features,
            ..Setup::default()
        };
        (setup.config.rx_napi, setup.config.netdev_max_backlog) = (false, 10);
        let (mut kernel, world) = setup.boot();
        let fd = udp_socket(&mut kernel, PORT);
        for _ in 0..100 {
            world.receive(&udp(PORT, b"x"));
        }
        settle(&mut kernel);
        let stats = kernel.stats();
        assert_eq!(read_all(&mut kernel, fd).len(), 11);
        assert_eq!(stats.rx_drop(RxDrop::CpuBacklog), 89);
        assert_eq!((stats.rx().polls, stats.rx_packets), (0, 0));
        assert_eq!((stats.netif_rx, stats.cpu().dropped), (100, 89));
        let (came, ended) = stats.rx_balance();
        assert_eq!(came, ended);
        // Work in the soft interrupt takes its time; each frame that comes meanwhile has an interrupt of its own.
        world.schedule(world.now() + 10, &udp(PORT, b"x"));
        world.advance(10);
        settle(&mut kernel);
        assert_eq!(read_all(&mut kernel, fd).len(), 1);
    }
}

#[test]
fn without_napi_a_flood_costs_an_interrupt_a_frame() {
    let counts = [true, false].map(|rx_napi| {
        let mut setup = Setup::default();
        setup.config.rx_napi = rx_napi;
        setup.config.cost = CpuCost {
            packet: Duration::from_micros(10),
            ..CpuCost::default()
        };
        let (mut kernel, world) = setup.boot();
        udp_socket(&mut kernel, PORT);
        let before = kernel.stats().rx().interrupts;
        for n in 1..=50 {
            world.schedule(n * 10 * US, &udp(PORT, b"x"));
        }
        play(&mut kernel, &world, 2_000 * US);
        assert_eq!(kernel.stats().queued, 50);
        kernel.stats().rx().interrupts - before
    });
    assert!(counts[0] < 10 && counts[1] >= 45, "{counts:?}");
}

#[test]
fn a_broken_ring_ends_each_way_to_poll() {
    for (rx_napi, threaded, usecs) in [(false, false, 0), (true, true, 0), (true, false, 20)] {
        let mut setup = Setup::default();
        setup.config.rx_napi = rx_napi;
        let (mut kernel, world, fd) = polling(setup, usecs);
        kernel.dev_set_threaded(threaded);
        let fault = RingFault::UsedId { id: 999, size: 256 };
        world.use_nonsense(0, 999);
        if usecs > 0 {
            assert_eq!(kernel.recvfrom(fd, &mut [0; 8]), Err(Errno::EAGAIN));
        }
        let mut faults = Vec::new();
        for _ in 0..5 {
            faults.extend(kernel.step().err());
        }
        assert_eq!(faults, [fault], "told once");
        assert_eq!(kernel.step(), Ok(false));
    }
}
