//! A queue is reset and set up again with another size while the others run (VIRTIO 1.3, 2.6.1). A front-end stops it
//! with GET_VRING_BASE and sets it up as it did the first time.

use nic_model::counters::Drop;

use super::tests::{BASE, OK, command};
use super::*;
use crate::testing::{BUFFERS, Bench, CONTROL, Driver, RX, TX, broadcast, writable};

const FEATURES: Features = BASE.union(Features::RING_RESET);

/// Sends a frame. Whether it comes out on the wire and its buffer comes back.
fn sends(bench: &mut Bench) -> bool {
    let frame = broadcast(80, 7);
    let head = bench.send(BUFFERS + 0x2000, &[&[0; 12], &frame[..]].concat());
    bench.poll();
    let used = bench.used(TX);
    assert!(used.is_empty() || used == [(head, 0)]);
    !used.is_empty() && std::mem::take(&mut bench.sent) == [frame]
}

/// Lets a frame arrive. Whether it is in a buffer.
fn receives(bench: &mut Bench) -> bool {
    let head = bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.arrive(&[broadcast(64, 3)]);
    let used = bench.used(RX);
    assert!(used.is_empty() || used == [(head, 12 + 64)]);
    !used.is_empty()
}

/// The driver has virtqueue `index` reset and gives it a ring of `size`, which begins at zero.
fn reset(bench: &mut Bench, index: usize, size: u16) {
    bench.drivers[index] = Driver::new(&bench.guest, 0x4000 * index as u64, size, 0);
    bench.lines[index].take();
    bench.set_up(index);
    assert_eq!(
        bench.lines[index].take(),
        1,
        "the driver may have missed one"
    );
}

#[test]
fn a_receive_queue_is_reset_while_the_others_run() {
    let mut bench = Bench::with(FEATURES, 64, 65_530);
    for size in [8, 256, 64] {
        for _ in 0..10 {
            assert!(receives(&mut bench) && sends(&mut bench));
        }
        bench.post(RX, &[writable(BUFFERS, 100)]);
        bench.nic.rings().tear_down(RX);
        let before = bench.guest.snapshot();
        let lost = bench.dropped(Drop::RxQueueDisabled);
        bench.arrive(&[broadcast(64, 3)]);
        assert_eq!(bench.dropped(Drop::RxQueueDisabled), lost + 1);
        assert_eq!(bench.guest.changed_outside(&before, &[]), None);
        assert!(sends(&mut bench));
        assert_eq!(command(&mut bench, &[2], &[0, 1, 1]), OK);
        reset(&mut bench, RX, size);
        let rings = bench.nic.device.rings();
        assert_eq!(
            rings[RX].map(|ring| (ring.size, ring.used)),
            Some((size, 0))
        );
        assert_eq!(rings[TX].map(|ring| ring.size), Some(64));
    }
    assert!(receives(&mut bench));
    assert_eq!(bench.counters(RX).packets, 31, "the counts go on");
    assert_eq!(bench.counters(RX).faults, 0);
}

#[test]
fn a_transmit_queue_is_reset_while_the_others_run() {
    let mut bench = Bench::with(FEATURES, 64, 65_530);
    for size in [8, 256, 64] {
        for _ in 0..10 {
            assert!(receives(&mut bench) && sends(&mut bench));
        }
        bench.nic.rings().tear_down(TX);
        assert!(!sends(&mut bench) && bench.sent.is_empty());
        assert!(receives(&mut bench));
        assert_eq!(command(&mut bench, &[2], &[0, 1, 1]), OK);
        reset(&mut bench, TX, size);
        assert_eq!(bench.nic.device.rings()[RX].map(|ring| ring.size), Some(64));
    }
    assert!(sends(&mut bench));
    assert_eq!(bench.counters(TX).packets, 31, "the counts go on");
    assert_eq!(bench.counters(TX).faults, 0);
}

#[test]
fn a_queue_that_the_driver_broke_runs_again_after_a_reset() {
    let mut bench = Bench::new(FEATURES);
    bench.drivers[TX].set_available_index(60_000);
    bench.poll();
    assert_eq!(bench.counters(TX).faults, 1);
    assert!(!sends(&mut bench) && receives(&mut bench));
    bench.nic.rings().tear_down(TX);
    reset(&mut bench, TX, 32);
    assert!(sends(&mut bench));
    assert_eq!(bench.counters(CONTROL).faults, 0);
}
