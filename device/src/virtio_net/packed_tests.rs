//! The data path through packed rings: what their layout could break of it.

use std::collections::{HashMap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::packed::{DESCRIPTOR, DISABLE, ENABLE, PackedDriver, Place, Raw};
use crate::testing::{
    BUFFERS, Bench, Buffer, CONTROL, Guest, RX, TX, broadcast, readable, writable,
};

const BASE: Features = Features::VERSION_1.union(Features::RING_PACKED);
const MERGE: Features = BASE.union(Features::MRG_RXBUF);
/// Everything that changes what stands in a ring.
const ALL: Features = MERGE
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX)
    .union(Features::IN_ORDER);

type PackedBench = Bench<PackedDriver>;

fn bench(features: Features, size: u16, start: u16) -> PackedBench {
    Bench::of(features, |guest, base| {
        let mut driver = PackedDriver::new(guest, base, size, Place::from_word(start));
        driver.in_order = features.contains(Features::IN_ORDER);
        driver
    })
}

/// Writes a packet at `addr` behind a header that asks for nothing, and returns the buffer.
fn packet(bench: &PackedBench, addr: u64, bytes: &[u8]) -> Buffer {
    let octets = [&[0; 12], bytes].concat();
    bench.guest.write(addr, &octets);
    readable(addr, octets.len() as u32)
}

/// A frame each way.
fn exchange(bench: &mut PackedBench, seed: u64) {
    let frame = broadcast(100, seed);
    let packet = packet(bench, BUFFERS + 0x4000, &frame);
    let sent = bench.post(TX, &[packet]);
    let received = bench.post(RX, &[writable(BUFFERS, 2000)]);
    bench.arrive(std::slice::from_ref(&frame));
    assert_eq!(bench.used(RX), [(received, 112)]);
    assert_eq!(bench.used(TX), [(sent, 0)]);
    assert!(bench.guest.read(BUFFERS + 12, 100) == frame);
    assert_eq!(bench.sent.pop(), Some(frame));
}

#[test]
fn a_fetch_says_whether_more_waits() {
    tests::fetches(&mut bench(BASE, 256, 0x8000));
}

#[test]
fn frames_pass_round_and_round() {
    for features in [BASE, ALL] {
        for size in [1, 2, 3, 100] {
            let mut bench = bench(features, size, 0x8000);
            for seed in 0..250 {
                exchange(&mut bench, seed);
            }
            assert_eq!(bench.counters(RX).faults + bench.counters(TX).faults, 0);
        }
    }
}

#[test]
fn packets_are_gathered_from_chains_and_tables() {
    let mut bench = bench(ALL, 5, 0x8003);
    for seed in 0..20 {
        let frame = broadcast(300, seed);
        let Buffer { addr, len, .. } = packet(&bench, BUFFERS, &frame);
        let pieces = [
            readable(addr, 5),
            readable(addr + 5, 50),
            readable(addr + 55, len - 55),
        ];
        let chain = bench.post(TX, &pieces);
        let table = bench.drivers[TX].post_indirect(BUFFERS + 0x8000, &pieces);
        bench.poll();
        assert_eq!(bench.used(TX), [(chain, 0), (table, 0)]);
        assert!(bench.sent.drain(..).eq([frame.clone(), frame]));
    }
}

#[test]
fn a_frame_without_enough_buffers_waits_and_is_delivered_intact() {
    for features in [MERGE, ALL] {
        let mut bench = bench(features, 3, 0x8002);
        for seed in 0..20 {
            let frame = broadcast(1000, seed);
            let place = |at: u64| writable(BUFFERS + 500 * at, 400);
            let mut ids: Vec<_> = (0..2).map(|at| bench.post(RX, &[place(at)])).collect();
            assert!(!bench.arrive(std::slice::from_ref(&frame)));
            assert_eq!(bench.used(RX), []);
            assert!(!bench.nic.idle(bench.now), "no more buffers have come");
            let old = bench.drivers[RX].next;
            ids.push(bench.post(RX, &[place(2)]));
            let event_idx = features.contains(Features::EVENT_IDX);
            assert!(bench.drivers[RX].would_kick(old, event_idx));
            assert!(bench.nic.idle(bench.now));
            bench.poll();
            assert_eq!(
                bench.used(RX),
                [(ids[0], 400), (ids[1], 400), (ids[2], 212)]
            );
            let octets = [(0, 400), (1, 400), (2, 212)]
                .map(|(at, len)| bench.guest.read(BUFFERS + 500 * at, len))
                .concat();
            assert_eq!(octets[10], 3, "buffers");
            assert!(octets[12..] == frame[..]);
        }
    }
}

#[test]
fn interrupts_come_as_the_driver_wants_them() {
    let mut bench = bench(ALL, 4, 0x8000);
    let mut raised = |event, flags| {
        bench.drivers[RX].set_event(event, flags);
        bench.lines[RX].take();
        exchange(&mut bench, 1);
        bench.lines[RX].take()
    };
    let at = |index, wrap| Place { index, wrap };
    assert_eq!(raised(at(0, true), ENABLE), 1);
    assert_eq!(raised(at(0, true), DISABLE), 0);
    assert_eq!(raised(at(2, true), DESCRIPTOR), 1);
    assert_eq!(raised(at(3, false), DESCRIPTOR), 0, "in the next round");
    assert_eq!(raised(at(0, false), DESCRIPTOR), 1);
}

#[test]
fn commands_are_answered() {
    let mut bench = bench(ALL | Features::CTRL_VQ | Features::CTRL_RX, 3, 0x8000);
    for on in [1, 0, 1, 0] {
        bench.guest.write(BUFFERS, &[0, 0, on, 0xee]);
        let chain = [
            readable(BUFFERS, 2),
            readable(BUFFERS + 2, 1),
            writable(BUFFERS + 3, 1),
        ];
        let id = bench.post(CONTROL, &chain);
        assert!(bench.poll());
        assert_eq!(bench.used(CONTROL), [(id, 1)]);
        assert_eq!(bench.guest.read(BUFFERS + 3, 1), [0]);
        assert_eq!(bench.nic.port.filter.promiscuous, on == 1);
    }
}

#[test]
fn a_driver_that_breaks_its_ring_stops_that_one() {
    let mut bench = bench(ALL, 4, 0x8000);
    let raw = Raw {
        addr: 0,
        len: 0,
        id: 0,
        flags: 0,
    };
    bench.drivers[TX].post_raw(&[raw]);
    bench.poll();
    assert_eq!(
        bench.counters(TX).last_fault.as_deref(),
        Some("zero_length")
    );
    assert_eq!(bench.errors[TX].take(), 1);
    bench.post(RX, &[writable(BUFFERS, 2000)]);
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!(bench.used(RX).len(), 1);
}

#[test]
fn a_queue_goes_on_where_it_stopped() {
    let mut bench = bench(ALL, 3, 0x8000);
    for seed in 0..5 {
        exchange(&mut bench, seed);
    }
    for index in [RX, TX] {
        assert_eq!(bench.nic.rings().tear_down(index), Some(2), "second round");
        assert_eq!(bench.nic.rings().tear_down(index), None);
        bench.drivers[index].layout.base = Some(2);
        bench.set_up(index);
        // Whoever is told of new descriptors is not told where he stands.
        bench.drivers[index].layout.base = None;
        bench.set_up(index);
    }
    exchange(&mut bench, 5);
    assert_eq!(bench.nic.device.position(RX), Some(0x8000));
}

#[test]
fn queues_go_on_in_new_memory_and_with_new_features() {
    let mut bench = bench(ALL, 3, 0x8001);
    for seed in 0..3 {
        exchange(&mut bench, seed);
    }
    let new = bench.guest.copy();
    let moved = bench.nic.device.set_memory(Some(new.memory.clone()));
    moved.unwrap();
    bench.guest = new.clone();
    for driver in &mut bench.drivers {
        driver.guest = new.clone();
    }
    exchange(&mut bench, 3);
    bench.nic.set_features(BASE).unwrap();
    exchange(&mut bench, 4);
    assert_eq!(bench.nic.device.position(RX), Some(0x8000));
}

#[test]
fn a_queue_that_was_lost_goes_on_where_it_stood() {
    let mut bench = bench(ALL, 3, 0x8000);
    for seed in 0..4 {
        exchange(&mut bench, seed);
    }
    for driver in &mut bench.drivers {
        driver.layout.base = None;
    }
    let memory = bench.guest.memory.clone();
    let elsewhere = Guest::with(&[(0x10_0000, 0x1000)]).memory;
    for nothing in [None, Some(elsewhere)] {
        bench.nic.device.set_memory(nothing).unwrap_err();
        assert!(!bench.nic.device.is_set_up(RX));
        bench.nic.device.set_memory(Some(memory.clone())).unwrap();
        bench.set_up(RX);
        bench.set_up(TX);
        exchange(&mut bench, 4);
    }
    bench.nic.device.set_memory(None).unwrap_err();
    assert_eq!(bench.nic.rings().tear_down(RX), Some(0x8000));
    bench.nic.rings().reset();
    assert_eq!(
        bench.nic.rings().tear_down(TX),
        None,
        "a new driver begins anew"
    );
}

#[test]
fn a_ring_that_becomes_packed_begins_where_it_was_told_to() {
    // A front-end may give addresses before the driver has accepted features.
    let mut bench = bench(Features::VERSION_1, 4, 0x8003);
    assert_eq!(bench.nic.device.position(RX), Some(0), "a split ring");
    bench.nic.set_features(ALL).unwrap();
    exchange(&mut bench, 1);
    assert_eq!(bench.nic.device.position(RX), Some(0));
}

proptest! {
    /// Whatever buffers a driver posts, all frames come through, in order and whole, or are counted.
    #[test]
    fn frames_survive_any_buffers(
        merge in any::<bool>(),
        size in 4u16..70,
        rounds in vec((vec(14usize..1518, 0..20), vec((1u32..1700, 1u16..4), 0..20)), 1..20),
    ) {
        let mut bench = bench(if merge { ALL } else { BASE }, size, 0x8003);
        let mut expected = VecDeque::new();
        let mut posted = HashMap::new();
        // More than the largest ring has descriptors, so that no two overlap.
        let mut places = (0..).map(|at: u64| BUFFERS + 2048 * (at % 72));
        let (mut delivered, mut seed) = (0, 0);
        for (frames, chains) in rounds {
            for (len, count) in chains {
                if bench.drivers[RX].free >= count {
                    let chain: Vec<_> = (0..count)
                        .map(|_| writable(places.next().unwrap(), len))
                        .collect();
                    posted.insert(bench.post(RX, &chain), chain);
                }
            }
            let frames: Vec<_> = frames.iter().map(|&len| { seed += 1; broadcast(len, seed) }).collect();
            expected.extend(frames.iter().cloned());
            bench.arrive(&frames);
            let used = bench.used(RX);
            let mut used = used.into_iter();
            let mut take = |posted: &mut HashMap<u16, Vec<Buffer>>, guest: &Guest| {
                let (id, mut len) = used.next()?;
                let mut octets = Vec::new();
                for buffer in posted.remove(&id).unwrap() {
                    let here = len.min(buffer.len);
                    octets.extend(guest.read(buffer.addr, here as usize));
                    len -= here;
                }
                assert_eq!(len, 0, "more than there was room for");
                Some(octets)
            };
            while let Some(mut octets) = take(&mut posted, &bench.guest) {
                if octets.is_empty() {
                    continue;
                }
                let mut chains = 1;
                while octets.len() < 12 || chains < u16::from_le_bytes([octets[10], octets[11]]) {
                    octets.extend(take(&mut posted, &bench.guest).unwrap());
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
