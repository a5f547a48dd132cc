//! The card's counts as a driver reads them over its control queue (VIRTIO 1.4, 5.1.6.5.11).

use nic_model::BURST;
use nic_model::counters::Drop;

use super::tests::{ANSWER, BASE, ERROR, OK};
use super::*;
use crate::testing::{BUFFERS, Bench, CONTROL, RX, TX, broadcast, datagram, readable, writable};

const STATS: Features = BASE
    .union(Features::DEVICE_STATS)
    .union(Features::CSUM)
    .union(Features::GUEST_CSUM);

const RX_BASIC: u64 = 1 << 0;
const RX_CSUM: u64 = 1 << 1;
const TX_BASIC: u64 = 1 << 16;
const TX_CSUM: u64 = 1 << 17;
const CVQ: u64 = 1 << 32;

/// Asks for `groups` of virtqueue `index` with room for `room` octets of result. Returns the answer and the result.
fn get(bench: &mut Bench, index: u16, groups: u64, room: u32) -> (u8, Vec<u8>) {
    let mut command = vec![8, 1];
    command.extend(index.to_le_bytes());
    command.extend([0; 6]);
    command.extend(groups.to_le_bytes());
    bench.guest.write(BUFFERS, &command);
    bench.guest.write(ANSWER, &[0xee; 512]);
    // As Linux has it: class and command, data, answer, result.
    let mut chain = vec![
        readable(BUFFERS, 2),
        readable(BUFFERS + 2, 16),
        writable(ANSWER, 1),
    ];
    if room > 0 {
        chain.push(writable(ANSWER + 1, room));
    }
    let head = bench.post(CONTROL, &chain);
    bench.poll();
    bench.lines[CONTROL].take();
    let [(used, len)] = bench.used(CONTROL)[..] else {
        panic!("one command, one answer");
    };
    assert_eq!(used, head);
    let answer = bench.guest.read(ANSWER, 512);
    let (written, rest) = answer.split_at(len as usize);
    assert!(rest.iter().all(|&octet| octet == 0xee));
    (written[0], written[1..].to_vec())
}

/// The counts of one group.
fn counts(bench: &mut Bench, index: usize, group: u64) -> Vec<u64> {
    let (answer, result) = get(bench, index as u16, group, 500);
    assert_eq!(answer, OK);
    let (words, []) = result[8..].as_chunks::<8>() else {
        panic!("not whole words");
    };
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

#[test]
fn what_arrives_is_counted() {
    let mut bench = Bench::new(STATS);
    for at in 0..4 {
        bench.post(RX, &[writable(BUFFERS + 0x1000 + 2048 * at, 2048)]);
    }
    let good = datagram(b"some payload");
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    let bytes = 2 * good.len() + bad.len() + 100;
    bench.arrive(&[good.clone(), bad, broadcast(100, 1), good]);
    bench.nic.device.count_kick(RX);
    let interrupts = bench.counters(RX).interrupts_sent;
    assert_eq!(
        counts(&mut bench, RX, RX_BASIC),
        [1, 4, bytes as u64, interrupts, 0, 0]
    );
    assert_eq!(counts(&mut bench, RX, RX_CSUM), [2, 0, 1, 1]);
    let port = bench.nic.counters();
    let checksums = port.rx_checksums;
    assert_eq!(
        (checksums.good(), checksums.bad(), checksums.none()),
        (2, 1, 1)
    );
    assert!(interrupts > 0);
}

#[test]
fn what_is_lost_for_want_of_buffers_is_an_overrun_and_what_does_not_fit_is_not() {
    let mut bench = Bench::new(STATS);
    for _ in 0..10 {
        let burst = vec![broadcast(1500, 1); BURST];
        bench.arrive(&burst);
    }
    let overruns = bench.dropped(Drop::RxFifoOverflow);
    assert!(overruns > 0);
    assert_eq!(counts(&mut bench, RX, RX_BASIC)[4..], [overruns, overruns]);
    // Nor is it merged into more than one.
    bench.post(RX, &[writable(BUFFERS + 0x1000, 20)]);
    bench
        .nic
        .rings()
        .set_features(STATS.difference(Features::MRG_RXBUF))
        .unwrap();
    bench.poll();
    assert_eq!(bench.dropped(Drop::RxBufferTooSmall), 1);
    assert_eq!(
        counts(&mut bench, RX, RX_BASIC)[4..],
        [overruns + 1, overruns]
    );
    // Frames for other stations belong to no queue.
    let mut other = broadcast(100, 1);
    other[0] = 2;
    bench.arrive(&[other]);
    assert_eq!(bench.dropped(Drop::RxFiltered), 1);
    assert_eq!(counts(&mut bench, RX, RX_BASIC)[4], overruns + 1);
}

#[test]
fn what_is_sent_is_counted() {
    let mut bench = Bench::new(STATS);
    let packet = |header: &[u8], bytes: &[u8]| {
        let mut octets = header.to_vec();
        octets.resize(12, 0);
        octets.extend(bytes);
        octets
    };
    let frame = datagram(b"to be summed, this one");
    bench.send(BUFFERS + 0x1000, &packet(&[], &frame));
    bench.poll();
    bench.send(
        BUFFERS + 0x1000,
        &packet(&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0], &frame),
    );
    bench.poll();
    // Padded on the line.
    bench.send(BUFFERS + 0x1000, &packet(&[], &broadcast(20, 1)));
    bench.poll();
    // A kind of segmentation that nobody negotiated; shorter than its header; too long.
    bench.send(BUFFERS + 0x1000, &packet(&[0, 9], &frame));
    bench.poll();
    bench.send(BUFFERS + 0x1000, &[0; 5]);
    bench.poll();
    bench.send(BUFFERS + 0x1000, &packet(&[], &[0; 1600]));
    bench.poll();
    bench.nic.port.phy.set_link(Nanos::ZERO, false);
    bench.send(BUFFERS + 0x1000, &packet(&[], &frame));
    bench.poll();
    bench.nic.device.count_kick(TX);
    bench.nic.device.count_kick(TX);
    let bytes = 2 * frame.len() as u64 + 60;
    assert_eq!(
        counts(&mut bench, TX, TX_BASIC),
        [2, 3, bytes, 7, 4, 2],
        "{:?}",
        bench.nic.counters().drops
    );
    assert_eq!(counts(&mut bench, TX, TX_CSUM), [3, 1]);
    let port = bench.nic.counters();
    assert_eq!(port.tx_frames, 3);
    assert_eq!(port.tx_octets, bytes + 4 * 3);
    assert_eq!(port.drops.transmitted(), 4);
}

#[test]
fn commands_are_counted_with_the_one_that_asks() {
    let mut bench = Bench::new(STATS);
    assert_eq!(counts(&mut bench, CONTROL, CVQ), [1, 1]);
    assert_eq!(get(&mut bench, 3, CVQ, 100), (ERROR, vec![]));
    assert_eq!(counts(&mut bench, CONTROL, CVQ), [3, 2]);
    let counters = bench.nic.status().control;
    assert_eq!((counters.commands, counters.ok), (3, 2));
}

#[test]
fn a_result_with_too_little_room_ends_where_the_room_does() {
    let mut bench = Bench::new(STATS);
    let groups = RX_BASIC | RX_CSUM;
    let (answer, whole) = get(&mut bench, 0, groups, 500);
    assert_eq!((answer, whole.len()), (OK, 56 + 40));
    for room in [0, 1, 8, 55, 56, 60, 95, 96] {
        let (answer, result) = get(&mut bench, 0, groups, room);
        assert_eq!(answer, OK);
        assert_eq!(result, whole[..room as usize]);
    }
    assert_eq!(bench.counters(CONTROL).faults, 0);
}

#[test]
fn a_driver_that_never_set_a_queue_up_may_ask_for_it() {
    let mut bench = Bench::new(STATS);
    bench.nic.rings().tear_down(TX);
    assert_eq!(counts(&mut bench, TX, TX_BASIC)[1], 0);
}
