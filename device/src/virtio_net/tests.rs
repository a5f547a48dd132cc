//! The data path through real rings: what stands in the driver's buffers, and what comes of its packets.

use nic_model::counters::Drop;
use proptest::prelude::*;

use super::*;
use crate::ring::BadRing;
use crate::testing::{
    BUFFERS, Bench, Buffer, CONTROL, Driver, Guest, Line, Posts, RX, TX, broadcast, datagram,
    noise, readable, start, writable,
};

const BASE: Features = Features::VERSION_1;
const MERGE: Features = BASE.union(Features::MRG_RXBUF);

/// `count` buffers of `len` octets each, one after the other with a gap between them.
fn buffers(count: u64, len: u32) -> impl Iterator<Item = Buffer> {
    (0..count).map(move |at| writable(BUFFERS + at * (u64::from(len) + 32), len))
}

/// A header that asks for nothing, then `bytes`.
fn packet(bytes: &[u8]) -> Vec<u8> {
    [&[0; 12], bytes].concat()
}

#[test]
fn a_received_frame_stands_behind_its_header() {
    for (features, header) in [
        (MERGE, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..]),
        (BASE, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        (
            MERGE | Features::GUEST_CSUM,
            &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        ),
        (Features::MRG_RXBUF, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        (Features::empty(), &[0; 10]),
        (Features::GUEST_CSUM, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let mut bench = Bench::new(features);
        bench.guest.write(BUFFERS, &[0xee; 2048]);
        let head = bench.post(RX, &[writable(BUFFERS, 2048)]);
        let frame = datagram(b"some payload");
        assert!(bench.arrive(std::slice::from_ref(&frame)));
        let expected = [header, &frame].concat();
        assert_eq!(
            bench.used(RX),
            [(head, expected.len() as u32)],
            "{features}"
        );
        assert_eq!(
            bench.guest.read(BUFFERS, expected.len()),
            expected,
            "{features}"
        );
        let rest = 2048 - expected.len();
        let behind = bench.guest.read(BUFFERS + expected.len() as u64, rest);
        assert_eq!(
            behind,
            vec![0xee; rest],
            "{features}: written behind the frame"
        );
        assert_eq!(bench.counters(RX).bytes, frame.len() as u64);
        assert_eq!(bench.lines[RX].take(), 1);
    }
}

#[test]
fn a_wrong_checksum_is_not_called_valid() {
    let mut bench = Bench::new(MERGE | Features::GUEST_CSUM);
    bench.post(RX, &[writable(BUFFERS, 2048)]);
    let mut frame = datagram(b"some payload");
    *frame.last_mut().unwrap() ^= 1;
    bench.arrive(&[frame]);
    assert_eq!(
        bench.guest.read(BUFFERS, 12),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
}

#[test]
fn a_frame_spans_as_many_buffers_as_it_takes() {
    for start in [0, 65_534] {
        let mut bench = Bench::with(MERGE, 8, start);
        let frame = broadcast(1500, 3);
        // The second chain is of two buffers, and the first holds less than the header.
        let chains = [
            vec![writable(BUFFERS, 5)],
            vec![writable(BUFFERS + 100, 300), writable(BUFFERS + 500, 300)],
            vec![writable(BUFFERS + 1000, 2000)],
            vec![writable(BUFFERS + 4000, 2000)],
        ];
        let heads: Vec<_> = chains.iter().map(|chain| bench.post(RX, chain)).collect();
        bench.arrive(std::slice::from_ref(&frame));
        assert_eq!(
            bench.used(RX),
            [(heads[0], 5), (heads[1], 600), (heads[2], 907)]
        );
        let places = [
            (BUFFERS, 5),
            (BUFFERS + 100, 300),
            (BUFFERS + 500, 300),
            (BUFFERS + 1000, 907),
        ];
        let read = places
            .map(|(addr, len)| bench.guest.read(addr, len))
            .concat();
        assert_eq!(read[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
        assert!(read[12..] == frame[..]);
    }
}

#[test]
fn a_frame_that_fills_its_buffers_takes_no_more() {
    let mut bench = Bench::new(MERGE);
    let heads: Vec<_> = buffers(3, 756)
        .map(|buffer| bench.post(RX, &[buffer]))
        .collect();
    bench.arrive(&[broadcast(1500, 0)]);
    assert_eq!(bench.used(RX), [(heads[0], 756), (heads[1], 756)]);
}

#[test]
fn a_frame_without_enough_buffers_waits_and_is_delivered_intact() {
    for features in [MERGE, MERGE | Features::EVENT_IDX] {
        let mut bench = Bench::with(features, 4, 65_535);
        let (first, second) = (broadcast(1000, 1), broadcast(60, 2));
        let places: Vec<_> = buffers(4, 400).collect();
        let heads: Vec<_> = places[..2]
            .iter()
            .map(|&buffer| bench.post(RX, &[buffer]))
            .collect();
        assert!(!bench.arrive(&[first.clone(), second.clone()]));
        assert_eq!(bench.used(RX), []);
        assert_eq!(bench.nic.queues.frames(), 2);
        assert!(!bench.nic.idle(bench.now), "no more buffers have come");
        if features.contains(Features::EVENT_IDX) {
            assert_eq!(
                bench.drivers[RX].avail_event(),
                1,
                "a kick is due with the third"
            );
        }
        let heads = [heads, vec![bench.post(RX, &[places[2]])]].concat();
        assert!(bench.nic.idle(bench.now), "one more came");
        assert!(bench.poll());
        assert_eq!(
            bench.used(RX),
            [(heads[0], 400), (heads[1], 400), (heads[2], 212)]
        );
        let read: Vec<_> = places[..3]
            .iter()
            .flat_map(|buffer| bench.guest.read(buffer.addr, 400))
            .collect();
        assert!(read[12..1012] == first[..]);
        bench.post(RX, &[places[3]]);
        assert!(bench.poll());
        assert!(bench.guest.read(places[3].addr + 12, 60) == second);
        assert_eq!(bench.nic.counters().rx_delivered, 2);
    }
}

#[test]
fn without_merging_a_buffer_too_small_comes_back_empty() {
    let mut bench = Bench::new(BASE);
    let small = bench.post(RX, &[writable(BUFFERS, 111)]);
    let large = bench.post(RX, &[writable(BUFFERS + 500, 112)]);
    let before = bench.guest.snapshot();
    let frame = broadcast(100, 1);
    bench.arrive(&[frame.clone(), frame.clone()]);
    assert_eq!(bench.used(RX), [(small, 0), (large, 112)]);
    let allowed = [bench.drivers[RX].used_ring(), (BUFFERS + 500, 112)];
    assert_eq!(bench.guest.changed_outside(&before, &allowed), None);
    assert_eq!(bench.dropped(Drop::RxBufferTooSmall), 1);
    assert_eq!(bench.lines[RX].take(), 1);
}

#[test]
fn a_frame_for_which_the_whole_ring_is_too_small_is_dropped() {
    let mut bench = Bench::with(MERGE, 2, 65_535);
    let heads: Vec<_> = buffers(2, 100)
        .map(|buffer| bench.post(RX, &[buffer]))
        .collect();
    bench.arrive(&[broadcast(500, 1), broadcast(60, 2)]);
    assert_eq!(bench.used(RX), [(heads[0], 0), (heads[1], 0)]);
    assert_eq!(bench.dropped(Drop::RxBufferTooSmall), 1);
    assert_eq!(bench.nic.queues.frames(), 1, "the next frame waits");
    buffers(2, 100).for_each(|buffer| {
        bench.post(RX, &[buffer]);
    });
    bench.poll();
    assert_eq!(bench.used(RX).len(), 1);
}

#[test]
fn a_receive_chain_with_something_to_read_stops_the_queue() {
    let mut bench = Bench::new(MERGE);
    bench.post(RX, &[readable(BUFFERS, 64), writable(BUFFERS + 100, 200)]);
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!(bench.used(RX), []);
    assert_stopped(&mut bench, RX, Fault::NotWritable);
}

/// The queue is stopped: the front-end heard of it once, and nothing of the ring is touched any more.
fn assert_stopped(bench: &mut Bench, index: usize, fault: Fault) {
    assert_eq!(bench.errors[index].take(), 1);
    let counters = bench.counters(index);
    assert_eq!(
        (counters.faults, counters.last_fault),
        (1, Some(fault.name()))
    );
    bench.lines[index].take();
    let before = bench.guest.snapshot();
    for _ in 0..3 {
        bench.arrive(&[broadcast(60, 1)]);
        bench.nic.rings().busy();
        assert!(!bench.nic.device.want_kicks(index, true));
        bench.nic.rings().enable(index, true);
    }
    // The other queues' flags change.
    let others = [RX, TX, CONTROL]
        .into_iter()
        .filter(|&other| other != index);
    let others: Vec<_> = others
        .map(|other| (bench.drivers[other].layout.device, 2))
        .collect();
    assert_eq!(bench.guest.changed_outside(&before, &others), None);
    assert_eq!(
        (bench.errors[index].take(), bench.lines[index].take()),
        (0, 0)
    );
    assert_eq!(bench.counters(index).faults, 1);
    // Neither new memory nor new features mend what the driver did.
    let memory = Some(bench.guest.memory.clone());
    bench.nic.device.set_memory(memory).unwrap();
    bench.poll();
    assert_eq!(bench.nic.device.counters()[index].faults, 1);
    assert!(bench.nic.device.sound(index).is_none());
}

#[test]
fn a_receive_chain_that_cannot_be_written_stops_the_queue() {
    let mut bench = Bench::new(MERGE);
    let good = bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.post(RX, &[readable(BUFFERS, 100)]);
    bench.arrive(&[broadcast(60, 1), broadcast(60, 2)]);
    assert_eq!(bench.used(RX), [(good, 72)], "what came before counts");
    assert_eq!(bench.lines[RX].take(), 1);
    assert_stopped(&mut bench, RX, Fault::NotWritable);
    assert_eq!(
        bench.nic.rings().tear_down(RX),
        Some(1),
        "the bad chain was not used"
    );
    // Set up again, it may try again.
    bench.drivers[RX] = Driver::new(&bench.guest, 0, 256, 0);
    bench.set_up(RX);
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.arrive(&[broadcast(60, 2)]);
    assert_eq!(bench.used(RX).len(), 1);
    assert_eq!(bench.counters(RX).faults, 1);
}

#[test]
fn a_fault_amid_a_frame_leaves_no_chain_half_used() {
    let mut bench = Bench::with(MERGE, 4, 65_535);
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.drivers[RX].post_head(9);
    bench.arrive(&[broadcast(500, 1)]);
    assert_eq!(bench.used(RX), []);
    assert_stopped(&mut bench, RX, Fault::HeadOutOfRange);
    assert_eq!(bench.nic.rings().tear_down(RX), Some(65_535));
}

#[test]
fn a_transmit_chain_that_is_malformed_stops_the_queue() {
    let mut bench = Bench::new(BASE);
    let frame = broadcast(60, 1);
    let good = bench.send(BUFFERS, &packet(&frame));
    bench.post(TX, &[readable(BUFFERS, 12), readable(1 << 40, 60)]);
    bench.send(BUFFERS, &packet(&frame));
    assert!(bench.poll());
    assert_eq!(bench.sent, [frame]);
    assert_eq!(bench.used(TX), [(good, 0)]);
    assert_eq!(bench.lines[TX].take(), 1, "for the good one");
    assert_stopped(&mut bench, TX, Fault::AddressOutOfRange);
    assert_eq!(bench.sent.len(), 1);
    assert_eq!(bench.nic.rings().tear_down(TX), Some(1));
}

#[test]
fn packets_are_sent_in_order_whatever_their_descriptors() {
    let mut bench = Bench::with(BASE | Features::INDIRECT_DESC, 16, 65_530);
    let frames: Vec<_> = (0..4).map(|at| broadcast(100 + at, at as u64)).collect();
    let octets: Vec<_> = frames.iter().map(|frame| packet(frame)).collect();
    let at = |index: usize| BUFFERS + 0x1000 * index as u64;
    for (index, octets) in octets.iter().enumerate() {
        bench.guest.write(at(index), octets);
    }
    let part = |index, from: u64, len| readable(at(index) + from, len);
    let mut heads = vec![bench.post(TX, &[part(0, 0, 112)])];
    // The header in five parts, the last of them with the packet's beginning.
    heads.push(bench.post(
        TX,
        &[
            part(1, 0, 1),
            part(1, 1, 2),
            part(1, 3, 4),
            part(1, 7, 4),
            part(1, 11, 2),
            part(1, 13, 100),
        ],
    ));
    let table = [part(2, 12, 50), part(2, 62, 52)];
    heads.push(bench.drivers[TX].post_mixed(&[part(2, 0, 12)], Some((BUFFERS + 0x8000, &table))));
    // What may be written is of no use, and does no harm.
    heads.push(bench.post(TX, &[part(3, 0, 115), writable(BUFFERS + 0x9000, 5)]));
    let before = bench.guest.snapshot();
    bench.poll();
    assert!(bench.sent == frames);
    let used: Vec<_> = heads.iter().map(|&head| (head, 0)).collect();
    assert_eq!(bench.used(TX), used);
    let allowed = [bench.drivers[TX].used_ring()];
    assert_eq!(bench.guest.changed_outside(&before, &allowed), None);
}

#[test]
fn a_checksum_left_to_the_card_is_inserted() {
    let mut bench = Bench::new(BASE | Features::CSUM);
    let frame = datagram(b"an odd number of octets");
    let mut unfinished = frame.clone();
    // The pseudo-header's sum: addresses, protocol, length (RFC 768).
    let words = frame[26..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum = words.sum::<u32>() + 17 + (frame.len() as u32 - 34);
    unfinished[40..42].copy_from_slice(&((sum + (sum >> 16)) as u16).to_be_bytes());
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    let head = bench.send(BUFFERS, &[&header, &unfinished[..]].concat());
    bench.poll();
    assert_eq!(bench.sent, [frame]);
    assert_eq!(bench.used(TX), [(head, 0)]);
    assert_eq!(bench.nic.counters().tx_checksum_inserted, 1);
}

#[test]
fn a_legacy_drivers_header_is_shorter() {
    let mut bench = Bench::new(Features::CSUM);
    let frame = broadcast(60, 1);
    bench.send(BUFFERS, &[&[0; 10], &frame[..]].concat());
    bench.poll();
    assert_eq!(bench.sent, [frame]);
}

#[test]
fn what_cannot_be_sent_is_counted_and_comes_back() {
    let frame = broadcast(60, 1);
    let with = |header: [u8; 12]| [&header, &frame[..]].concat();
    let longest = 1500 + 14;
    let cases: &[(&str, Features, Vec<u8>, Option<Drop>)] = &[
        (
            "segmentation",
            BASE | Features::CSUM,
            with([1, 1, 0, 0, 0, 5, 34, 0, 16, 0, 0, 0]),
            Some(Drop::TxMalformed),
        ),
        (
            "segmentation of no kind",
            BASE,
            with([0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Some(Drop::TxMalformed),
        ),
        (
            "a checksum not negotiated",
            BASE,
            with([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]),
            Some(Drop::TxMalformed),
        ),
        (
            "a checksum at the very end",
            BASE | Features::CSUM,
            with([1, 0, 0, 0, 0, 0, 34, 0, 24, 0, 0, 0]),
            None,
        ),
        (
            "a checksum beyond it",
            BASE | Features::CSUM,
            with([1, 0, 0, 0, 0, 0, 34, 0, 25, 0, 0, 0]),
            Some(Drop::TxMalformed),
        ),
        (
            "a checksum far beyond it",
            BASE | Features::CSUM,
            with([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
            Some(Drop::TxMalformed),
        ),
        (
            "lies about header length and buffers",
            BASE,
            with([0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]),
            None,
        ),
        ("half a header", BASE, vec![0; 11], Some(Drop::TxUndersize)),
        ("a header alone", BASE, vec![0; 12], Some(Drop::TxUndersize)),
        (
            "half an Ethernet header",
            BASE,
            packet(&[1; 13]),
            Some(Drop::TxUndersize),
        ),
        ("an Ethernet header", BASE, packet(&[1; 14]), None),
        ("the longest", BASE, packet(&vec![1; longest]), None),
        (
            "one more",
            BASE,
            packet(&vec![1; longest + 1]),
            Some(Drop::TxOversize),
        ),
        (
            "much more than a frame's buffer",
            BASE,
            packet(&vec![1; 60_000]),
            Some(Drop::TxOversize),
        ),
    ];
    for (name, features, octets, reason) in cases {
        let mut bench = Bench::new(*features);
        let head = bench.send(BUFFERS, octets);
        assert!(bench.poll(), "{name}");
        assert_eq!(bench.used(TX), [(head, 0)], "{name}");
        assert_eq!(bench.sent.len(), usize::from(reason.is_none()), "{name}");
        let counters = bench.nic.counters();
        assert_eq!(
            counters.drops.total(),
            u64::from(reason.is_some()),
            "{name}"
        );
        assert_eq!(
            reason.map_or(1, |reason| bench.dropped(reason)),
            1,
            "{name}"
        );
        assert_eq!(bench.counters(TX).faults, 0, "{name}");
        assert_eq!(bench.lines[TX].take(), 1, "{name}");
    }
    let mut bench = Bench::new(BASE);
    bench.post(TX, &[writable(BUFFERS, 100)]);
    bench.poll();
    assert_eq!(
        bench.dropped(Drop::TxUndersize),
        1,
        "nothing to read at all"
    );
}

#[test]
fn a_short_packet_is_padded_with_zeros_and_nothing_else() {
    let mut bench = Bench::new(BASE);
    bench.send(BUFFERS, &packet(&noise(200, 1)));
    bench.send(BUFFERS + 1000, &packet(&[1; 20]));
    bench.poll();
    bench.send(BUFFERS, &packet(&[1; 20]));
    bench.poll();
    let padded = [vec![1; 20], vec![0; 40]].concat();
    assert_eq!(bench.sent[1..], [padded.clone(), padded]);
}

#[test]
fn a_disabled_queue_receives_nothing_and_discards_what_is_sent() {
    let mut bench = Bench::new(BASE);
    bench.nic.rings().enable(RX, false);
    bench.nic.rings().enable(TX, false);
    bench.post(RX, &[writable(BUFFERS, 2000)]);
    let head = bench.send(BUFFERS + 4000, &packet(&broadcast(60, 1)));
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!((bench.used(RX), bench.used(TX)), (vec![], vec![(head, 0)]));
    assert!(bench.sent.is_empty());
    assert_eq!(bench.dropped(Drop::RxQueueDisabled), 1);
    assert_eq!(bench.dropped(Drop::TxQueueDisabled), 1);
    bench.nic.rings().enable(RX, true);
    bench.nic.rings().enable(TX, true);
    bench.send(BUFFERS + 4000, &packet(&broadcast(60, 1)));
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!((bench.used(RX).len(), bench.sent.len()), (1, 1));
}

#[test]
fn frames_that_wait_are_dropped_when_their_queue_goes() {
    for stop in [
        |nic: &mut VirtioNet| nic.enable(RX, false),
        |nic: &mut VirtioNet| {
            nic.tear_down(RX);
        },
    ] {
        let mut bench = Bench::new(BASE);
        bench.arrive(&[broadcast(60, 1), broadcast(60, 2)]);
        assert_eq!(bench.nic.queues.frames(), 2);
        stop(&mut bench.nic.device);
        bench.poll();
        assert_eq!(bench.nic.queues.frames(), 0);
        assert_eq!(bench.dropped(Drop::RxQueueDisabled), 2);
    }
}

#[test]
fn after_tear_down_nothing_of_a_queue_is_touched() {
    let mut bench = Bench::with(MERGE, 8, 65_534);
    for _ in 0..3 {
        bench.post(RX, &[writable(BUFFERS, 2000)]);
        bench.send(BUFFERS + 4000, &packet(&broadcast(60, 1)));
    }
    bench.arrive(&[broadcast(60, 1), broadcast(60, 2)]);
    assert_eq!(bench.nic.rings().tear_down(RX), Some(0), "two were used");
    assert_eq!(bench.nic.rings().tear_down(TX), Some(1), "three were used");
    assert_eq!(bench.nic.rings().tear_down(RX), None);
    bench.send(BUFFERS + 4000, &packet(&broadcast(60, 1)));
    let before = bench.guest.snapshot();
    bench.arrive(&[broadcast(60, 1)]);
    bench.nic.idle(bench.now);
    bench.nic.rings().busy();
    let control = (bench.drivers[CONTROL].layout.device, 0x1000);
    assert_eq!(bench.guest.changed_outside(&before, &[control]), None);
    assert_eq!(bench.counters(RX).packets, 2, "counts go on");
    // Set up again, they go on where they stood.
    bench.set_up(RX);
    bench.set_up(TX);
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!((bench.used(RX).len(), bench.sent.len()), (3, 4));
    assert_eq!(bench.counters(RX).packets, 3);
}

#[test]
fn queues_go_on_where_they_stood_in_new_memory_and_with_new_features() {
    let mut bench = Bench::with(MERGE, 4, 65_535);
    for _ in 0..4 {
        bench.post(RX, &[writable(BUFFERS, 2000)]);
    }
    bench.send(BUFFERS + 4000, &packet(&broadcast(60, 1)));
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!((bench.used(RX).len(), bench.used(TX).len()), (1, 1));
    let old = bench.guest.clone();
    let new = old.copy();
    bench.lines.iter().for_each(|line| {
        line.take();
    });
    bench
        .nic
        .device
        .set_memory(Some(new.memory.clone()))
        .unwrap();
    assert_eq!(bench.lines.each_ref().map(Line::take), [1, 1, 1]);
    bench.guest = new.clone();
    for driver in &mut bench.drivers {
        driver.guest = new.clone();
    }
    let before = old.snapshot();
    bench.send(BUFFERS + 4000, &packet(&broadcast(70, 2)));
    bench.arrive(&[broadcast(80, 3)]);
    assert_eq!(bench.used(RX), [(1, 92)]);
    assert_eq!(bench.used(TX), [(1, 0)]);
    assert_eq!(
        old.changed_outside(&before, &[]),
        None,
        "the old memory was written to"
    );
    // Now without merging, and legacy: only the header's length changes.
    bench.nic.set_features(Features::empty()).unwrap();
    bench.arrive(&[broadcast(80, 4)]);
    assert_eq!(bench.used(RX), [(2, 90)]);
    assert_eq!(bench.nic.rings().tear_down(RX), Some(2));
}

#[test]
fn a_queue_that_new_memory_does_not_hold_is_gone_and_the_others_are_not() {
    let mut bench = Bench::new(BASE);
    // Receive and transmit rings are mapped, the control queue's is not.
    let small = Guest::with(&[(0, 0x8000)]);
    for index in [RX, TX] {
        let driver = Driver::new(&small, 0x4000 * index as u64, 256, 0);
        assert_eq!(driver.layout, bench.drivers[index].layout);
    }
    let refused = bench.nic.device.set_memory(Some(small.memory)).unwrap_err();
    assert!(matches!(refused, BadRing::Unmapped { addr: 0x8000, .. }));
    assert_eq!(bench.nic.rings().tear_down(RX), Some(0));
    assert_eq!(bench.nic.rings().tear_down(TX), Some(0));
    assert_eq!(bench.nic.rings().tear_down(CONTROL), None);
    assert!(!bench.nic.device.rings().iter().any(Option::is_some));
    let mut bench = Bench::new(BASE);
    assert!(bench.nic.device.set_memory(None).is_err());
    assert!(!bench.nic.device.rings().iter().any(Option::is_some));
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!(bench.dropped(Drop::RxQueueDisabled), 1);
}

#[test]
fn a_burst_makes_one_interrupt_at_most() {
    for features in [MERGE, MERGE | Features::EVENT_IDX] {
        let mut bench = Bench::with(features, 256, 0);
        for round in 0..40 {
            for buffer in buffers(64, 100) {
                if !bench.drivers[RX].free.is_empty() {
                    bench.post(RX, &[buffer]);
                }
                bench.send(BUFFERS + 0x1_0000, &packet(&broadcast(60, 1)));
            }
            bench.drivers[RX].set_used_event(60 * round + 7);
            bench.drivers[TX].set_used_event(64 * round + 7);
            let frames: Vec<_> = (0..60).map(|at| broadcast(60, at)).collect();
            bench.arrive(&frames);
            let raised = bench.lines.each_ref().map(Line::take);
            assert_eq!(raised, [1, 1, 0], "round {round}");
            assert_eq!((bench.used(RX).len(), bench.used(TX).len()), (60, 64));
        }
        assert_eq!(bench.counters(TX).interrupts_sent, 40);
    }
}

#[test]
fn interrupts_that_are_not_wanted_or_cannot_be_raised_are_counted() {
    let mut bench = Bench::new(BASE);
    let receive = |bench: &mut Bench| {
        bench.post(RX, &[writable(BUFFERS, 100)]);
        bench.arrive(&[broadcast(60, 1)]);
        let counters = bench.counters(RX);
        (
            counters.interrupts_sent,
            counters.interrupts_suppressed,
            counters.interrupts_failed,
        )
    };
    assert_eq!(receive(&mut bench), (1, 0, 0));
    bench.drivers[RX].set_available_flags(1);
    assert_eq!(receive(&mut bench), (1, 1, 0));
    bench.drivers[RX].set_available_flags(0);
    bench.nic.device.set_interrupt(RX, None);
    assert_eq!(receive(&mut bench), (1, 2, 0));
    let broken = Line::broken();
    bench.nic.device.set_interrupt(RX, broken.boxed());
    assert_eq!(receive(&mut bench), (1, 2, 1));
    assert_eq!(broken.take(), 2, "once when it was set, once for the frame");
    let line = Line::default();
    bench.nic.device.set_interrupt(RX, line.boxed());
    assert_eq!(line.take(), 1);
    assert_eq!(receive(&mut bench), (2, 2, 1));
}

#[test]
fn kicks_are_wanted_where_something_is_waited_for() {
    let mut bench = Bench::new(BASE | Features::CTRL_VQ);
    let flags = |bench: &Bench| bench.drivers.each_ref().map(Driver::used_flags);
    bench.nic.rings().busy();
    assert_eq!(flags(&bench), [1, 1, 1]);
    assert!(!bench.nic.idle(bench.now));
    assert_eq!(
        flags(&bench),
        [1, 0, 0],
        "receive buffers are of no use without frames"
    );
    bench.arrive(&[broadcast(60, 1)]);
    assert!(!bench.nic.idle(bench.now));
    assert_eq!(flags(&bench), [0, 0, 0], "a frame waits");
    bench.post(RX, &[writable(BUFFERS, 100)]);
    assert!(bench.nic.idle(bench.now));
    bench.nic.device.count_kick(RX);
    assert_eq!(bench.counters(RX).kicks, 1);
}

/// Has the transmit queue of `bench` fetched, and holds the answers against what was `sent`.
pub(super) fn fetches<D: Posts>(bench: &mut Bench<D>) {
    let packet = packet(&[0x55; 1500]);
    bench.guest.write(BUFFERS, &packet);
    let post = |bench: &mut Bench<D>, packets| {
        for _ in 0..packets {
            bench.post(TX, &[readable(BUFFERS, packet.len() as u32)]);
        }
    };
    let fetch = |bench: &mut Bench<D>, budget| {
        let (mut frames, mut drops) = (Vec::new(), Drops::default());
        let (device, pool) = (&mut bench.nic.device, &mut bench.nic.port.pool);
        let fetched = device.fetch_tx(QueueIndex(0), budget, pool, &mut frames, &mut drops);
        assert_eq!(frames.len(), fetched.frames);
        pool.give_all(frames);
        (fetched.frames, fetched.more)
    };
    assert_eq!(fetch(bench, 0), (0, false));
    post(bench, 5);
    assert_eq!(fetch(bench, 0), (0, true), "only asked");
    assert_eq!(fetch(bench, 3), (3, true));
    assert_eq!(fetch(bench, 2), (2, false), "these were the last");
    assert_eq!(fetch(bench, 2), (0, false));
    // 256 KiB are more than 174 of them, and are looked at every 16.
    post(bench, 200);
    assert_eq!(fetch(bench, 250), (176, true));
    assert_eq!(fetch(bench, 250), (24, false));
}

#[test]
fn a_fetch_says_whether_more_waits() {
    fetches(&mut Bench::new(BASE));
}

proptest! {
    /// Whatever buffers a driver posts, all frames come through, in order and whole, or are counted.
    #[test]
    fn frames_survive_any_buffers(
        merge in any::<bool>(),
        log_size in 2u32..7,
        start in start(),
        rounds in proptest::collection::vec(
            (proptest::collection::vec(14usize..1518, 0..20), proptest::collection::vec(1u32..1700, 0..20)),
            1..20,
        ),
    ) {
        let mut bench = Bench::with(if merge { MERGE } else { BASE }, 1 << log_size, start);
        let mut expected = std::collections::VecDeque::new();
        let mut posted = std::collections::HashMap::new();
        let mut places = (0..).map(|at: u64| BUFFERS + 2048 * (at % 64));
        let (mut delivered, mut seed) = (0, 0);
        for (frames, lengths) in rounds {
            for len in lengths {
                if let Some(&head) = bench.drivers[RX].free.front() {
                    let buffer = writable(places.next().unwrap(), len);
                    prop_assert_eq!(bench.post(RX, &[buffer]), head);
                    posted.insert(head, buffer);
                }
            }
            let frames: Vec<_> = frames.iter().map(|&len| { seed += 1; broadcast(len, seed) }).collect();
            expected.extend(frames.iter().cloned());
            bench.arrive(&frames);
            let used = bench.used(RX);
            let mut used = used.into_iter();
            while let Some((head, len)) = used.next() {
                let buffer = posted.remove(&head).unwrap();
                prop_assert!(len <= buffer.len);
                if len == 0 {
                    continue;
                }
                let mut octets = bench.guest.read(buffer.addr, len as usize);
                let mut chains = 1;
                // The header may itself be spread over several buffers.
                while octets.len() < 12 || chains < u16::from_le_bytes([octets[10], octets[11]]) {
                    let (head, len) = used.next().unwrap();
                    let buffer = posted.remove(&head).unwrap();
                    octets.extend(bench.guest.read(buffer.addr, len as usize));
                    chains += 1;
                }
                // Frames that were dropped for want of room are missing from the sequence.
                while expected.front().is_some_and(|frame| frame[..] != octets[12..]) {
                    expected.pop_front();
                }
                prop_assert!(expected.pop_front().is_some(), "a frame that nobody sent");
                delivered += 1;
            }
        }
        prop_assert_eq!(bench.nic.counters().rx_delivered, delivered);
        prop_assert_eq!(bench.counters(RX).faults, 0);
    }
}
