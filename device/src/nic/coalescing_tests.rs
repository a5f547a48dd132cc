//! Interrupt moderation as a driver sets it over its control queue (VIRTIO 1.3, 5.1.6.5.10).

use nic_model::host::Direction;
use nic_model::moderation::Coalesce;
use nic_model::port::PortConfig;

use super::tests::{ANSWER, BASE, ERROR, OK, command};
use super::*;
use crate::testing::{BUFFERS, Bench, CONTROL, RX, TX, broadcast, readable, writable};

const COALESCING: Features = BASE
    .union(Features::NOTF_COAL)
    .union(Features::VQ_NOTF_COAL);

const TX_SET: u8 = 0;
const RX_SET: u8 = 1;

fn set(bench: &mut Bench, which: u8, frames: u32, usecs: u32) {
    let mut octets = vec![6, which];
    octets.extend(frames.to_le_bytes());
    octets.extend(usecs.to_le_bytes());
    assert_eq!(command(bench, &[2], &octets), OK);
}

fn vq_set(bench: &mut Bench, queue: u16, frames: u32, usecs: u32) -> u8 {
    let mut octets = vec![6, 2];
    octets.extend(queue.to_le_bytes());
    octets.extend([0; 2]);
    octets.extend(frames.to_le_bytes());
    octets.extend(usecs.to_le_bytes());
    command(bench, &[2], &octets)
}

/// Packets and microseconds of virtqueue `queue`, or nothing if the device says no.
fn vq_get(bench: &mut Bench, queue: u16) -> Option<(u32, u32)> {
    let [low, high] = queue.to_le_bytes();
    bench.guest.write(BUFFERS, &[6, 3, low, high, 0, 0]);
    bench.guest.write(ANSWER, &[0xee; 16]);
    // As Linux has it: the answer, then the result.
    let chain = [
        readable(BUFFERS, 2),
        readable(BUFFERS + 2, 4),
        writable(ANSWER, 1),
        writable(ANSWER + 1, 8),
    ];
    let head = bench.post(CONTROL, &chain);
    bench.poll();
    bench.lines[CONTROL].take();
    let answer = bench.guest.read(ANSWER, 9);
    let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
    if answer[0] == OK {
        assert_eq!(bench.used(CONTROL), [(head, 9)]);
        Some((word(1), word(5)))
    } else {
        assert_eq!(bench.used(CONTROL), [(head, 1)]);
        assert_eq!(answer[1..], [0xee; 8], "no result");
        None
    }
}

/// Lets `count` frames arrive, each in a millisecond of its own; how often the driver was interrupted.
fn receive(bench: &mut Bench, count: usize) -> usize {
    for _ in 0..count {
        bench.post(RX, &[writable(BUFFERS, 100)]);
        bench.arrive(&[broadcast(60, 1)]);
        assert_eq!(bench.used(RX).len(), 1, "packets are not held back");
    }
    bench.lines[RX].take()
}

fn send(bench: &mut Bench, count: usize) -> usize {
    for _ in 0..count {
        bench.send(BUFFERS + 4000, &[0; 12 + 60]);
        bench.poll();
    }
    bench.used(TX);
    bench.lines[TX].take()
}

/// Longer than any test, in microseconds.
const LONG: u32 = 1_000_000_000;

#[test]
fn each_direction_is_moderated_as_it_was_said() {
    let mut bench = Bench::new(COALESCING);
    assert_eq!((receive(&mut bench, 4), send(&mut bench, 4)), (4, 4));
    set(&mut bench, RX_SET, 4, LONG);
    assert_eq!((receive(&mut bench, 8), send(&mut bench, 4)), (2, 4));
    set(&mut bench, TX_SET, 2, LONG);
    assert_eq!((receive(&mut bench, 8), send(&mut bench, 4)), (2, 2));
    // Five milliseconds: the frames that come at its end are of it.
    set(&mut bench, RX_SET, 1000, 5_000);
    let interrupts = receive(&mut bench, 60);
    assert!((9..=11).contains(&interrupts), "{interrupts}");
    set(&mut bench, RX_SET, 0, LONG);
    bench.lines[RX].take();
    assert_eq!(receive(&mut bench, 3), 3);
    let status = bench.nic.status();
    let met = |queue: usize| status.moderation[queue].unwrap().counters.conditions_met;
    assert_eq!(status.moderation[CONTROL], None);
    // The two that waited when the parameters changed met the condition then.
    assert_eq!(met(RX), status.queues[RX].interrupts_sent);
    assert_eq!(met(TX), status.queues[TX].interrupts_sent);
}

#[test]
fn packets_that_wait_are_told_when_new_parameters_say_so() {
    let mut bench = Bench::new(COALESCING);
    set(&mut bench, RX_SET, 15, LONG);
    assert_eq!(receive(&mut bench, 10), 0);
    set(&mut bench, RX_SET, 8, LONG);
    bench.poll();
    assert_eq!(bench.lines[RX].take(), 1);
    set(&mut bench, TX_SET, 15, LONG);
    assert_eq!(send(&mut bench, 10), 0);
    assert_eq!(vq_set(&mut bench, TX as u16, 8, LONG), OK);
    bench.poll();
    assert_eq!(bench.lines[TX].take(), 1);
}

#[test]
fn the_last_setter_wins_and_queues_answer_for_themselves() {
    let mut bench = Bench::new(COALESCING);
    assert_eq!(vq_get(&mut bench, 0), Some((0, 0)));
    assert_eq!(vq_set(&mut bench, 0, 3, 30), OK);
    assert_eq!(vq_get(&mut bench, 0), Some((3, 30)));
    assert_eq!(vq_get(&mut bench, 1), Some((0, 0)));
    set(&mut bench, RX_SET, 4, 40);
    set(&mut bench, TX_SET, 5, 50);
    assert_eq!(vq_get(&mut bench, 0), Some((4, 40)));
    assert_eq!(vq_get(&mut bench, 1), Some((5, 50)));

    // Neither the control queue nor one that does not exist has packets.
    for queue in [CONTROL as u16, 3, 4, 0xffff] {
        assert_eq!(vq_set(&mut bench, queue, 1, 1), ERROR, "{queue}");
        assert_eq!(vq_get(&mut bench, queue), None, "{queue}");
    }
    // Nor has one that is disabled; enabled again, it has what was said for all.
    assert_eq!(vq_set(&mut bench, 0, 3, 30), OK);
    bench.nic.rings().tear_down(RX);
    assert_eq!(vq_set(&mut bench, 0, 1, 1), ERROR);
    assert_eq!(vq_get(&mut bench, 0), None);
    bench.set_up(RX);
    assert_eq!(vq_get(&mut bench, 0), Some((4, 40)));
}

#[test]
fn a_queue_that_is_disabled_is_refused_and_forgets_what_was_its_own() {
    let mut bench = Bench::new(COALESCING);
    set(&mut bench, RX_SET, 4, LONG);
    assert_eq!(vq_set(&mut bench, 0, 3, LONG), OK);
    assert_eq!(receive(&mut bench, 2), 0);
    bench.nic.rings().enable(RX, true);
    assert_eq!(vq_get(&mut bench, 0), Some((3, LONG)), "it was enabled");
    bench.nic.rings().enable(RX, false);
    assert_eq!(vq_set(&mut bench, 0, 9, 9), ERROR);
    assert_eq!(vq_get(&mut bench, 0), None);
    bench.nic.rings().enable(RX, true);
    assert_eq!(vq_get(&mut bench, 0), Some((4, LONG)));
    assert_eq!(receive(&mut bench, 3), 0, "what waited was forgotten");
    assert_eq!(receive(&mut bench, 1), 1);
}

#[test]
fn a_ring_that_runs_and_is_moved_keeps_its_moderation() {
    let mut bench = Bench::new(COALESCING);
    assert_eq!(vq_set(&mut bench, 0, 3, 30), OK);
    bench.set_up(RX);
    assert_eq!(vq_get(&mut bench, 0), Some((3, 30)));
}

#[test]
fn a_driver_that_cannot_moderate_does_not_inherit_it() {
    let mut bench = Bench::new(COALESCING);
    set(&mut bench, RX_SET, 1_000, LONG);
    assert_eq!(receive(&mut bench, 2), 0);
    for queue in [RX, TX, CONTROL] {
        bench.nic.rings().tear_down(queue);
    }
    bench.nic.set_features(BASE).unwrap();
    for queue in [RX, TX, CONTROL] {
        bench.set_up(queue);
    }
    bench.lines[RX].take();
    assert_eq!(receive(&mut bench, 2), 2);
}

#[test]
fn any_number_of_packets_may_pass_between_two_interrupts() {
    for features in [COALESCING, COALESCING | Features::EVENT_IDX] {
        // Round the indices once and some more, and exactly once.
        for frames in [65_535, 65_536, 65_540, 65_536 + 255, 131_072] {
            let mut bench = Bench::new(features);
            set(&mut bench, RX_SET, frames, LONG);
            if features.contains(Features::EVENT_IDX) {
                // It has taken all but the last ring's worth, and sleeps.
                bench.drivers[RX].set_used_event((frames - 1) as u16);
            }
            let mut left = frames;
            while left > 0 {
                let burst = left.min(64);
                for _ in 0..burst {
                    bench.post(RX, &[writable(BUFFERS, 100)]);
                }
                assert_eq!(bench.lines[RX].take(), 0, "{left} of {frames} are missing");
                bench.arrive(&vec![broadcast(60, 1); burst as usize]);
                bench.used(RX);
                left -= burst;
            }
            assert_eq!(bench.lines[RX].take(), 1, "{frames} {features}");
        }
    }
}

#[test]
fn queues_beyond_those_in_use_are_none() {
    let config = PortConfig {
        queue_pairs: 2,
        ..PortConfig::default()
    };
    let mut nic = Nic::new(&config, Features::all());
    nic.set_features(COALESCING).unwrap();
    // Without MQ the third virtqueue is for control, and what follows has no name.
    let halves: Vec<_> = (0..8)
        .map(|index| nic.device.half(index).is_some())
        .collect();
    assert_eq!(halves[..3], [true, true, false]);
    assert!(!halves[4..].contains(&true));
    let status = nic.status();
    assert!(status.moderation[4].is_none());
}

#[test]
fn a_reset_restores_what_the_card_came_with() {
    let came = Coalesce {
        usecs: 7,
        frames: 9,
    };
    let config = PortConfig {
        rx_coalesce: came.into(),
        ..PortConfig::default()
    };
    let mut nic = Nic::new(&config, COALESCING);
    let all = |nic: &Nic| {
        let [rx, tx] = [RX, TX].map(|queue| nic.status().moderation[queue].unwrap().coalesce);
        (rx, tx)
    };
    assert_eq!(all(&nic), (came, Coalesce::default()));
    let other = Coalesce {
        usecs: 1,
        frames: 2,
    };
    for direction in [Direction::Receive, Direction::Transmit] {
        nic.queues.moderator.set_all(direction, other, Nanos::ZERO);
    }
    assert_eq!(all(&nic), (other, other));
    nic.reset();
    assert_eq!(all(&nic), (came, Coalesce::default()));
}
