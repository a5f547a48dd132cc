//! Faults at the queues, as a driver sees them.

use std::time::Duration;

use nic_model::fault::{HostFaults, QueueFaults, Stall};

use super::tests::{BASE, OK, command};
use super::*;
use crate::testing::packed::{PackedDriver, Place};
use crate::testing::{BUFFERS, Bench, CONTROL, Posts, RX, TX, broadcast, readable, writable};

/// Has `faults` in both directions.
fn inject<D: Posts>(bench: &mut Bench<D>, faults: QueueFaults) {
    let (now, both) = (
        bench.now,
        HostFaults {
            receive: faults,
            transmit: faults,
            ..HostFaults::default()
        },
    );
    bench.nic.rings().set_faults(both, 1, now);
}

fn slow(millis: u64) -> QueueFaults {
    QueueFaults {
        slow_used: Duration::from_millis(millis),
        ..QueueFaults::default()
    }
}

/// A frame arrives and one is sent, each burst a millisecond after the one before; neither is shown for five.
fn shows_late<D: Posts>(mut bench: Bench<D>) {
    inject(&mut bench, slow(5));
    let (mut heads, mut sent) = (Vec::new(), Vec::new());
    for round in 0..20 {
        for at in 0..3 {
            heads.push(bench.post(RX, &[writable(BUFFERS + 0x800 * at, 100)]));
            let packet = [&[0; 12], &broadcast(64, 7)[..]].concat();
            sent.push(bench.drivers[TX].post(&[readable(BUFFERS + 0x8000, 76)]));
            bench.guest.write(BUFFERS + 0x8000, &packet);
            bench.arrive(&[broadcast(64, at)]);
            assert!(bench.used(RX).is_empty() && bench.used(TX).is_empty());
            assert_eq!((bench.lines[RX].take(), bench.lines[TX].take()), (0, 0));
        }
        for _ in 3..5 {
            bench.poll();
            assert!(bench.used(RX).is_empty() && bench.used(TX).is_empty());
        }
        bench.poll();
        let all =
            |heads: &mut Vec<u16>, len| heads.drain(..).map(|head| (head, len)).collect::<Vec<_>>();
        assert_eq!(bench.used(RX), all(&mut heads, 76), "{round}");
        assert_eq!(bench.used(TX), all(&mut sent, 0), "{round}");
        assert!(
            bench.lines[RX].take() > 0 && bench.lines[TX].take() > 0,
            "{round}"
        );
    }
    assert_eq!(bench.counters(RX).used_late, 20);
    assert_eq!(bench.counters(TX).used_late, 20);
    assert_eq!(bench.counters(RX).packets, 60);
    // What is taken away shows what was kept.
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.arrive(&[broadcast(64, 1)]);
    assert!(bench.used(RX).is_empty());
    inject(&mut bench, QueueFaults::default());
    assert_eq!(bench.used(RX).len(), 1);
}

#[test]
fn a_slow_split_ring_is_shown_late_with_all_that_came() {
    shows_late(Bench::with(BASE, 16, 65_530));
}

#[test]
fn a_slow_packed_ring_is_shown_late_with_all_that_came() {
    for order in [Features::empty(), Features::IN_ORDER] {
        let driver = |guest: &_, base| {
            let mut driver = PackedDriver::new(guest, base, 16, Place::from_word(0x8000));
            driver.in_order = !order.is_empty();
            driver
        };
        shows_late(Bench::of(BASE | Features::RING_PACKED | order, driver));
    }
}

#[test]
fn a_queue_that_stops_shows_what_was_kept() {
    for rebuilt in [false, true] {
        let mut bench = Bench::with(BASE, 8, 65_530);
        inject(&mut bench, slow(50));
        let head = bench.post(RX, &[writable(BUFFERS, 100)]);
        bench.arrive(&[broadcast(64, 1)]);
        if rebuilt {
            let memory = bench.guest.memory.clone();
            bench.nic.rings().set_memory(Some(memory)).unwrap();
        } else {
            // Where it stops is what its used index says: nothing is taken twice.
            assert_eq!(bench.nic.rings().tear_down(RX), Some(65_531));
            bench.set_up(RX);
        }
        assert_eq!(bench.used(RX), [(head, 76)]);
        let second = bench.post(RX, &[writable(BUFFERS, 100)]);
        bench.arrive(&[broadcast(64, 2)]);
        for _ in 0..50 {
            bench.poll();
        }
        assert_eq!(bench.used(RX), [(second, 76)]);
    }
}

#[test]
fn a_queue_that_is_disabled_shows_what_was_kept() {
    let mut bench = Bench::with(BASE, 16, 65_530);
    inject(&mut bench, slow(50));
    bench
        .guest
        .write(BUFFERS, &[&[0; 12], &broadcast(64, 7)[..]].concat());
    bench.drivers[TX].post(&[readable(BUFFERS, 76)]);
    bench.poll();
    assert!(bench.used(TX).is_empty());
    bench.nic.rings().enable(TX, false);
    bench.nic.rings().enable(TX, true);
    assert_eq!(bench.used(TX).len(), 1);
}

#[test]
fn lost_interrupts_are_counted_and_those_for_commands_are_not_lost() {
    let mut bench = Bench::new(BASE);
    let faults = QueueFaults {
        lost_interrupts: 1.0,
        ..QueueFaults::default()
    };
    inject(&mut bench, faults);
    for _ in 0..10 {
        bench.post(RX, &[writable(BUFFERS, 100)]);
        bench.arrive(&[broadcast(64, 1)]);
        assert_eq!(bench.used(RX).len(), 1, "it is there");
    }
    assert_eq!(bench.lines[RX].take(), 0);
    let counters = bench.counters(RX);
    assert_eq!(
        (counters.interrupts_lost, counters.interrupts_sent),
        (10, 0)
    );
    assert_eq!(command(&mut bench, &[2], &[0, 1, 1]), OK);
    assert_eq!(bench.counters(CONTROL).interrupts_lost, 0);
    inject(&mut bench, QueueFaults::default());
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.arrive(&[broadcast(64, 1)]);
    assert_eq!(
        (bench.lines[RX].take(), bench.counters(RX).interrupts_lost),
        (1, 10)
    );
}

#[test]
fn interrupts_for_nothing_come_whatever_the_driver_wants_and_are_counted_apart() {
    let mut bench = Bench::new(BASE);
    let faults = QueueFaults {
        spurious_interrupts: 10_000.0,
        ..QueueFaults::default()
    };
    inject(&mut bench, faults);
    for index in [RX, TX] {
        // VIRTQ_AVAIL_F_NO_INTERRUPT
        bench.drivers[index].set_available_flags(1);
    }
    for _ in 0..100 {
        bench.poll();
    }
    for index in [RX, TX] {
        let (raised, counters) = (bench.lines[index].take() as u64, bench.counters(index));
        assert!(raised.abs_diff(1_000) < 160, "{raised}");
        assert_eq!(
            (counters.interrupts_spurious, counters.interrupts_sent),
            (raised, 0)
        );
    }
    assert_eq!(bench.lines[CONTROL].take(), 0);
}

#[test]
fn a_stalled_queue_asks_for_no_kicks() {
    let mut bench = Bench::new(BASE);
    let (run, stall) = (Duration::from_millis(2), Duration::from_millis(3));
    let faults = QueueFaults {
        stall: Some(Stall { run, stall }),
        ..QueueFaults::default()
    };
    inject(&mut bench, faults);
    bench.now = Nanos(2_500_000);
    bench.send(BUFFERS, &[&[0; 12], &broadcast(64, 7)[..]].concat());
    bench.poll();
    assert!(bench.sent.is_empty() && bench.used(TX).is_empty());
    let now = bench.now;
    assert!(!bench.nic.idle(now), "it would be asked again at once");
    assert_eq!(bench.nic.next_deadline(now), Some(Nanos(5_000_000)));
    bench.poll();
    assert_eq!(bench.sent.len(), 0);
    bench.now = Nanos(4_000_000);
    bench.poll();
    assert_eq!((bench.sent.len(), bench.used(TX).len()), (1, 1));
    assert_eq!(bench.counters(TX).dma_stalls, 1);
}
