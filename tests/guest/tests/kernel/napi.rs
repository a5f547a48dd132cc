//! Interrupts, polling, budgets: the shape of the work.

use std::time::Duration;

use nic_guest::net::stats::QueueStats;
use nic_guest::net::{CpuCost, Fd, KernelConfig};
use nic_guest::ring::RingFault;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::udp;
use crate::common::world::{
    FEATURES, Guest, Setup, World, assert_balanced, boot, over_each_ring, settle,
};
use crate::{PORT, read_all, udp_socket};

/// What happened to queue `vq` while `work` ran.
fn during(kernel: &mut Guest, vq: usize, work: impl FnOnce(&mut Guest)) -> QueueStats {
    let before = kernel.stats().queues[vq];
    work(kernel);
    let after = kernel.stats().queues[vq];
    QueueStats {
        raised: after.raised - before.raised,
        interrupts: after.interrupts - before.interrupts,
        spurious: after.spurious - before.spurious,
        polls: after.polls - before.polls,
        completes: after.completes - before.completes,
        repolls: after.repolls - before.repolls,
        missed: after.missed - before.missed,
    }
}

fn config(change: impl FnOnce(&mut KernelConfig)) -> Setup {
    let mut setup = Setup::default();
    change(&mut setup.config);
    setup
}

fn cost(irq: u64, poll: u64, packet: u64) -> CpuCost {
    CpuCost {
        irq: Duration::from_nanos(irq),
        poll: Duration::from_nanos(poll),
        packet: Duration::from_nanos(packet),
    }
}

/// A socket whose queue does not fill up here.
fn roomy_socket(kernel: &mut Guest) -> Fd {
    let fd = udp_socket(kernel, PORT);
    kernel.set_rcvbuf(fd, 1 << 20).unwrap();
    fd
}

fn burst(world: &World, count: usize) {
    for n in 0..count {
        world.receive(&udp(PORT, &(n as u32).to_be_bytes()));
    }
}

#[test]
fn an_idle_kernel_has_nothing_to_do() {
    let (mut kernel, world) = boot();
    assert_eq!(kernel.step(), Ok(false));
    assert_eq!(kernel.next_timer(), None);
    // Opening the device polled each queue once and left the interrupts on.
    assert!(
        kernel
            .stats()
            .queues
            .iter()
            .all(|q| (q.polls, q.completes) == (1, 1))
    );
    world.interrupt(0);
    assert_eq!(
        kernel.step(),
        Ok(true),
        "an interrupt is work, even for nothing"
    );
    assert_eq!(kernel.stats().rx().spurious, 1);
    assert_eq!(kernel.step(), Ok(false));
}

#[test]
fn frames_before_the_device_was_opened_are_not_forgotten() {
    for features in over_each_ring(FEATURES) {
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let (mut kernel, world) = setup.boot();
        let fd = udp_socket(&mut kernel, PORT);
        world.receive(&udp(PORT, b"one"));
        assert_eq!(world.raised[0].get(), 1, "interrupts are on");
        settle(&mut kernel);
        assert_eq!(read_all(&mut kernel, fd), [b"one"]);
    }
}

#[test]
fn one_interrupt_serves_a_burst_and_polling_masks_it() {
    for features in over_each_ring(FEATURES) {
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let (mut kernel, world) = setup.boot();
        let fd = roomy_socket(&mut kernel);
        let rx = during(&mut kernel, 0, |kernel| {
            burst(&world, 150);
            settle(kernel);
        });
        let want = QueueStats {
            interrupts: 1,
            // 64 + 64 + 22
            polls: 3,
            completes: 1,
            ..rx
        };
        assert_eq!(rx, want);
        assert_eq!((rx.spurious, rx.repolls, rx.missed), (0, 0, 0));
        if features & f::EVENT_IDX != 0 {
            assert_eq!(rx.raised, 1);
        }
        assert_eq!(read_all(&mut kernel, fd).len(), 150);
        assert_balanced(&kernel);
    }
}

#[test]
fn frames_that_come_while_the_cpu_is_busy_need_no_interrupt() {
    let (mut kernel, world) = config(|config| config.cost = cost(500, 1000, 300)).boot();
    let fd = udp_socket(&mut kernel, PORT);
    world.spent.take();
    // One every 200 ns: each packet's work sees one or two more arrive.
    for n in 0..40 {
        world.schedule(10_000 + 200 * n, &udp(PORT, b"x"));
    }
    let rx = during(&mut kernel, 0, |kernel| {
        world.advance(10_000);
        settle(kernel);
    });
    assert_eq!((rx.raised, rx.interrupts, rx.polls), (1, 1, 1));
    assert_eq!(read_all(&mut kernel, fd).len(), 40);
    let spent = world.spent.take();
    assert_eq!(spent[..3], [500, 1000, 300]);
    assert_eq!(spent.len(), 2 + 40);
}

#[test]
fn the_budget_ends_a_softirq_and_the_rest_goes_on() {
    let setup = config(|config| (config.netdev_budget, config.napi_weight) = (20, 20));
    let (mut kernel, world) = setup.boot();
    let fd = roomy_socket(&mut kernel);
    burst(&world, 100);
    kernel.step().unwrap();
    let cpu = kernel.stats().cpu();
    // Five runs that spend the budget, and one that finds the ring empty.
    assert_eq!((cpu.processed, cpu.time_squeeze), (100, 5));
    assert_eq!(cpu.ksoftirqd_runs, 0);
    assert_eq!(read_all(&mut kernel, fd).len(), 100);
    assert_balanced(&kernel);
}

#[test]
fn after_ten_rounds_ksoftirqd_takes_over() {
    let setup = config(|config| (config.netdev_budget, config.napi_weight) = (4, 4));
    let (mut kernel, world) = setup.boot();
    let fd = roomy_socket(&mut kernel);
    burst(&world, 100);
    kernel.step().unwrap();
    let cpu = kernel.stats().cpu();
    assert_eq!(cpu.ksoftirqd_runs, 1);
    assert_eq!(
        cpu.processed,
        2 * 10 * 4,
        "ten rounds on interrupt exit, ten in ksoftirqd"
    );
    kernel.step().unwrap();
    assert_eq!(
        kernel.stats().cpu().ksoftirqd_runs,
        2,
        "no interrupt was needed"
    );
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd).len(), 100);
    assert_eq!(kernel.stats().rx().interrupts, 1);
}

#[test]
fn the_clock_ends_a_softirq_too() {
    // 64 packets of 150 us are more than two jiffies.
    let (mut kernel, world) = config(|config| config.cost = cost(0, 0, 150_000)).boot();
    udp_socket(&mut kernel, PORT);
    burst(&world, 200);
    kernel.step().unwrap();
    let cpu = kernel.stats().cpu();
    assert_eq!(
        (cpu.processed, cpu.time_squeeze, cpu.ksoftirqd_runs),
        (128, 2, 1)
    );
    settle(&mut kernel);
    assert_eq!(kernel.stats().cpu().processed, 200);
}

#[test]
fn a_frame_between_the_last_look_and_the_unmasking_is_found() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    crate::resolve_peer(&mut kernel, &world);
    world.answer_next_send_with(&udp(PORT, b"late"));
    let rx = during(&mut kernel, 0, |kernel| {
        // The stack gets the request when the poll has seen the ring empty and asked for
        // interrupts again; what its answer brings comes too late for that poll.
        world.receive(&crate::common::packets::echo_request(1, 1, b"ping"));
        settle(kernel);
    });
    assert_eq!(read_all(&mut kernel, fd), [b"late"]);
    assert_eq!((rx.repolls, rx.polls, rx.completes), (1, 2, 2));
    // With interrupts already on, the device raised one that found the work done.
    assert_eq!((rx.raised, rx.interrupts, rx.spurious), (2, 1, 1));
}

#[test]
fn an_interrupt_while_polling_is_not_missed() {
    let (mut kernel, world) = config(|config| config.cost = cost(0, 0, 1000)).boot();
    let fd = udp_socket(&mut kernel, PORT);
    // A device that does not care for masks: masks are hints.
    world.stubborn.set(true);
    world.schedule(1000, &udp(PORT, b"one"));
    world.schedule(1500, &udp(PORT, b"two"));
    let rx = during(&mut kernel, 0, |kernel| {
        world.advance(1000);
        settle(kernel);
    });
    assert_eq!((rx.interrupts, rx.missed), (2, 1));
    assert_eq!((rx.polls, rx.completes), (2, 1));
    assert_eq!(read_all(&mut kernel, fd), [b"one", b"two"]);
}

#[test]
fn two_queues_take_turns() {
    let setup = Setup {
        pairs: 2,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    let fd = roomy_socket(&mut kernel);
    for n in 0..100u8 {
        world.schedule_with(0, 0, VirtioNetHdr::default(), &udp(PORT, &[0, n]));
        world.schedule_with(0, 2, VirtioNetHdr::default(), &udp(PORT, &[2, n]));
    }
    settle(&mut kernel);
    let order: Vec<u8> = read_all(&mut kernel, fd).iter().map(|d| d[0]).collect();
    let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!((order.len(), changes), (200, 3), "64, 64, 36, 36");
    assert_eq!(kernel.stats().queues[2].interrupts, 1);
    assert_balanced(&kernel);
}

#[test]
fn who_did_not_get_his_turn_is_first_in_the_next() {
    let mut setup = Setup {
        pairs: 3,
        ..Setup::default()
    };
    // The budget is spent with each poll.
    (setup.config.netdev_budget, setup.config.napi_weight) = (8, 8);
    let (mut kernel, world) = setup.boot();
    let fd = roomy_socket(&mut kernel);
    for queue in [0, 2, 4] {
        for _ in 0..16 {
            world.schedule_with(
                0,
                queue,
                VirtioNetHdr::default(),
                &udp(PORT, &[queue as u8]),
            );
        }
    }
    settle(&mut kernel);
    let order = read_all(&mut kernel, fd);
    let turns: Vec<u8> = order.chunks(8).map(|turn| turn[0][0]).collect();
    assert_eq!(turns, [0, 2, 4, 0, 2, 4]);
    assert!(
        order
            .chunks(8)
            .all(|turn| turn.iter().all(|d| *d == turn[0]))
    );
    assert_eq!(kernel.stats().cpu().time_squeeze, 6);
}

#[test]
fn each_cpu_has_its_own_queue() {
    let mut setup = Setup {
        pairs: 2,
        ..Setup::default()
    };
    setup.config.cpus = 2;
    let (mut kernel, world) = setup.boot();
    udp_socket(&mut kernel, PORT);
    for _ in 0..5 {
        world.schedule_with(0, 2, VirtioNetHdr::default(), &udp(PORT, b"x"));
    }
    settle(&mut kernel);
    let processed: Vec<u64> = kernel
        .stats()
        .cpus
        .iter()
        .map(|cpu| cpu.processed)
        .collect();
    assert_eq!(processed, [0, 5]);
}

#[test]
fn a_broken_ring_is_reported_and_the_others_go_on() {
    let setup = Setup {
        pairs: 2,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    world.use_nonsense(0, 999);
    let fault = RingFault::UsedId { id: 999, size: 256 };
    assert_eq!(kernel.step(), Err(fault));
    assert_eq!(kernel.step(), Ok(false), "it does not come back by itself");
    world.schedule_with(0, 2, VirtioNetHdr::default(), &udp(PORT, b"alive"));
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd), [b"alive"]);
}
