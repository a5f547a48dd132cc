//! The packet buffer that the queues share.

use proptest::prelude::*;

use super::*;
use crate::packet_buffer::{Alpha, BufferConfig};
use crate::rss::HashReport;

const QUEUES: u16 = 4;

fn shared(size: u32, guarantee: u32, exponent: i8) -> Card {
    card(|c| {
        c.queue_pairs = QUEUES;
        c.packet_buffer = Some(BufferConfig {
            size,
            guarantee,
            alpha: Alpha::new(exponent).unwrap(),
        });
    })
}

/// Has a frame of `octets` octets go to `queue`. Returns it if it is admitted.
fn steer(card: &mut Card, queue: u16, octets: u32) -> Option<Frame> {
    let mut frame = card.pool.take();
    frame.octets = octets;
    let steered = Steered {
        queue: Some(QueueIndex(queue)),
        hash: 0,
        report: HashReport::None,
    };
    match card.enqueue(&mut frame, steered) {
        Ok(()) => Some(frame),
        Err(reason) => {
            assert_eq!(reason, Drop::RxFifoOverflow);
            card.pool.give(frame);
            None
        }
    }
}

/// What is in the FIFO of each queue, by the port's account.
fn octets(card: &Card) -> Vec<usize> {
    card.fifos.iter().map(Occupancy::octets).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_guarantee_holds_and_the_account_is_right_whatever_comes_and_goes(
        size in 40_000u32..200_000,
        exponent in -3i8..=3,
        moves in proptest::collection::vec((0..QUEUES, 64u32..1519, any::<bool>()), 1..400),
    ) {
        let guarantee = 8_000;
        let mut card = shared(size, guarantee, exponent);
        let mut inside: Vec<Vec<Frame>> = (0..QUEUES).map(|_| Vec::new()).collect();
        let mut missed = [0; QUEUES as usize];
        for (queue, len, leaves) in moves {
            let index = usize::from(queue);
            let before = octets(&card);
            if leaves {
                let count = inside[index].len().div_ceil(2);
                card.release(QueueIndex(queue), inside[index].drain(..count));
            } else {
                let sure = card.port.shared_rx_room() > 1;
                match steer(&mut card, queue, len) {
                    Some(frame) => inside[index].push(frame),
                    None => {
                        prop_assert!(before[index] + len as usize > guarantee as usize);
                        missed[index] += 1;
                        let other = before.iter().sum::<usize>() - before[index];
                        prop_assert!(!sure || other > 0 || before[index] > 0, "the first one");
                    }
                }
            }
            let now = octets(&card);
            let held = |frames: &Vec<Frame>| frames.iter().map(|f| f.octets as usize).sum::<usize>();
            prop_assert_eq!(&now, &inside.iter().map(held).collect::<Vec<_>>());
            let beyond: usize = now.iter().map(|octets| octets.saturating_sub(8_000)).sum();
            let status = card.buffer.as_ref().unwrap().status();
            prop_assert_eq!(status.shared_used as usize, beyond);
            prop_assert!(status.shared_peak <= status.shared);
            prop_assert!(now.iter().sum::<usize>() <= size as usize);
        }
        for queue in 0..QUEUES {
            let line = card.line_counters(QueueIndex(queue));
            prop_assert_eq!(line.rx_overflows, missed[usize::from(queue)]);
            card.release(QueueIndex(queue), inside[usize::from(queue)].drain(..));
        }
        prop_assert_eq!(card.buffer.as_ref().unwrap().status().shared_used, 0);
    }
}

#[test]
fn one_full_queue_leaves_room_for_the_others() {
    // 60,000 octets are shared, and half of that is one queue's.
    let mut card = shared(100_000, 10_000, 0);
    let mut inside = Vec::new();
    while let Some(frame) = steer(&mut card, 2, 1000) {
        inside.push(frame);
    }
    assert_eq!(inside.len(), 10 + 30);
    assert_eq!(card.line_counters(QueueIndex(2)).rx_overflows, 1);
    // Another one has its guarantee, and as much of the rest as the threshold leaves: less than the first has by now.
    let mut other = Vec::new();
    while let Some(frame) = steer(&mut card, 0, 1000) {
        other.push(frame);
    }
    assert_eq!(other.len(), 10 + 15);
    assert!(
        steer(&mut card, 2, 64).is_none(),
        "it is above its threshold now"
    );
    card.release(QueueIndex(2), inside.drain(..));
    card.release(QueueIndex(0), other.drain(..));
    assert_eq!(card.pool.lent(), 0);
}

#[test]
fn a_wire_that_waits_loses_nothing_to_a_shared_buffer() {
    let mut port = shared(40_000, 2_000, 0);
    port.set_flow_control(true);
    let mut host = Recorder {
        buffers: Some(0),
        ..Recorder::default()
    };
    let mut now = Nanos(0);
    while !port.wire_is_paused() {
        now += Duration::from_millis(1);
        arrive(&mut port, &mut host, now, &[broadcast(1514), broadcast(60)]);
        assert!(now < Nanos(1_000_000_000), "it fills up");
    }
    assert!(octets(&port)[0] > 2_000);
    host.buffers = None;
    port.receive(now, &mut Vec::new(), &mut host);
    assert!(!port.wire_is_paused());
    assert_eq!(port.counters().drops.total(), 0);
    assert_balanced(&port);
}

#[test]
fn who_found_no_buffer_is_told_from_who_found_no_room() {
    let mut port = card(|c| c.fifo = 5 * 64);
    let mut host = Recorder {
        buffers: Some(2),
        ..Recorder::default()
    };
    let counts = |port: &Card| {
        let counters = port.counters();
        (
            counters.rx_no_buffer,
            counters.drops.get(Drop::RxFifoOverflow),
        )
    };
    for n in 1..=4 {
        arrive(&mut port, &mut host, Nanos(n * 1_000), &[broadcast(60)]);
        // It is delivered, or waits, once it has arrived.
        port.receive(Nanos(n * 1_000 + 500), &mut Vec::new(), &mut host);
    }
    assert_eq!((host.delivered.len(), counts(&port)), (2, (2, 0)));
    // Asked again, they are no others.
    port.receive(Nanos(5_000), &mut Vec::new(), &mut host);
    assert_eq!(counts(&port), (2, 0));
    // In between come others, when there was none; the driver has some when the card looks next.
    let mut burst = Vec::new();
    for n in 0..5 {
        let mut frame = port.pool.take();
        assert!(frame.fill(&broadcast(60)));
        frame.arrival = Nanos(6_000 + n);
        burst.push(frame);
    }
    host.buffers = None;
    port.receive(Nanos(10_000), &mut burst, &mut host);
    assert_eq!((host.delivered.len(), counts(&port)), (2 + 2 + 3, (5, 2)));
    assert_balanced(&port);
}
