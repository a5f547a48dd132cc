//! The whole card: its control queue, and whatever a hostile driver writes into its three rings.

use nic_model::counters::Drop;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ring::Fault;
use crate::testing::{
    BUFFERS, Bench, CONTROL, Descriptor, HOLE_END, Line, RX, TX, broadcast, garbage, readable,
    reference, start, writable,
};

pub(super) const BASE: Features = Features::VERSION_1
    .union(Features::MRG_RXBUF)
    .union(Features::CTRL_VQ)
    .union(Features::CTRL_RX)
    .union(Features::CTRL_MAC_ADDR);
/// Where commands and their answers are.
pub(super) const ANSWER: u64 = BUFFERS + 0x8000;
pub(super) const OK: u8 = 0;
pub(super) const ERROR: u8 = 1;

/// Sends `command`, cut into buffers of `parts` octets and a last one of the rest, and returns the answer.
pub(super) fn command(bench: &mut Bench, parts: &[usize], command: &[u8]) -> u8 {
    let at = BUFFERS + 0x4000;
    bench.guest.write(at, command);
    bench.guest.write(ANSWER, &[0xee; 4]);
    let (mut chain, mut from) = (Vec::new(), 0);
    for &part in parts.iter().chain([&command.len()]) {
        let len = part.min(command.len() - from);
        if len > 0 {
            chain.push(readable(at + from as u64, len as u32));
        }
        from += len;
    }
    chain.push(writable(ANSWER, 4));
    let head = bench.post(CONTROL, &chain);
    assert!(bench.poll());
    assert_eq!(bench.used(CONTROL), [(head, 1)]);
    assert_eq!(bench.lines[CONTROL].take(), 1);
    let answer = bench.guest.read(ANSWER, 4);
    assert_eq!(answer[1..], [0xee; 3], "only one octet is the answer");
    answer[0]
}

/// Whether a frame to `address` reaches the driver.
pub(super) fn admits(bench: &mut Bench, address: [u8; 6]) -> bool {
    let mut frame = broadcast(60, 1);
    frame[..6].copy_from_slice(&address);
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.arrive(&[frame]);
    if bench.used(RX).is_empty() {
        // The buffer is still there: use it up.
        bench.arrive(&[broadcast(60, 0)]);
        bench.used(RX);
        return false;
    }
    true
}

pub(super) const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 7];
pub(super) const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

#[test]
fn commands_change_what_is_received() {
    let mut bench = Bench::with(BASE, 16, 65_533);
    assert!(!admits(&mut bench, OTHER) && !admits(&mut bench, GROUP));
    assert_eq!(bench.dropped(Drop::RxFiltered), 2);
    // PROMISC on and off, in one buffer and in pieces.
    assert_eq!(command(&mut bench, &[2], &[0, 0, 1]), OK);
    assert!(admits(&mut bench, OTHER) && admits(&mut bench, GROUP));
    assert_eq!(command(&mut bench, &[], &[0, 0, 0]), OK);
    assert!(!admits(&mut bench, OTHER));
    // ALLMULTI.
    assert_eq!(command(&mut bench, &[1, 1], &[0, 1, 1]), OK);
    assert!(!admits(&mut bench, OTHER) && admits(&mut bench, GROUP));
    assert_eq!(command(&mut bench, &[2], &[0, 1, 0]), OK);
    // Tables, as Linux sends them: header, unicast and multicast in buffers of their own.
    let tables = [&[1, 0, 1, 0, 0, 0][..], &OTHER, &[1, 0, 0, 0], &GROUP].concat();
    assert_eq!(command(&mut bench, &[2, 10], &tables), OK);
    assert!(admits(&mut bench, OTHER) && admits(&mut bench, GROUP));
    assert_eq!(
        command(&mut bench, &[2, 4], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        OK
    );
    assert!(!admits(&mut bench, OTHER) && !admits(&mut bench, GROUP));
    // The address.
    assert_eq!(
        command(&mut bench, &[2], &[&[1, 1][..], &OTHER].concat()),
        OK
    );
    assert!(admits(&mut bench, OTHER));
    let counters = bench.nic.status().control;
    assert_eq!((counters.commands, counters.ok), (7, 7));
    assert_eq!(bench.counters(CONTROL).faults, 0);
}

#[test]
fn commands_that_make_no_sense_are_refused_and_change_nothing() {
    let mut bench = Bench::new(BASE);
    let before = format!("{:?}", bench.nic.port.filter);
    let too_many = [&[1, 0, 0xff, 0xff, 0xff, 0xff][..], &OTHER].concat();
    for bad in [
        &[0][..],
        &[0, 0],
        &[0, 0, 2],
        &[0, 0, 1, 1],
        &[0, 2, 1],
        &[1, 1, 2, 0],
        &[1, 0, 1, 0, 0, 0],
        &too_many,
        &[3, 0, 0],
        &[4, 0, 1, 0],
        &[0xff, 0xff],
    ] {
        assert_eq!(command(&mut bench, &[2], bad), ERROR, "{bad:?}");
    }
    assert_eq!(format!("{:?}", bench.nic.port.filter), before);
    assert_eq!(bench.nic.status().control.ok, 0);
    // An answer without a command.
    let head = bench.post(CONTROL, &[writable(ANSWER, 1)]);
    bench.poll();
    assert_eq!(
        (bench.used(CONTROL), bench.guest.read(ANSWER, 1)),
        (vec![(head, 1)], vec![ERROR])
    );
    assert_eq!(bench.counters(CONTROL).faults, 0);
}

#[test]
fn commands_that_were_not_negotiated_are_refused() {
    let mut bench = Bench::new(Features::VERSION_1 | Features::CTRL_VQ);
    assert_eq!(command(&mut bench, &[2], &[0, 0, 1]), ERROR);
    assert_eq!(
        command(&mut bench, &[2], &[&[1, 1][..], &OTHER].concat()),
        ERROR
    );
    // Without CTRL_RX nobody can set the filter up: all frames pass.
    assert!(admits(&mut bench, OTHER));
}

#[test]
fn a_command_without_a_place_for_the_answer_stops_the_queue_and_no_other() {
    let mut bench = Bench::new(BASE);
    bench.guest.write(BUFFERS, &[0, 0, 1]);
    bench.post(CONTROL, &[readable(BUFFERS, 3)]);
    assert!(!bench.poll());
    assert_eq!(bench.errors.each_ref().map(Line::take), [0, 0, 1]);
    assert_eq!(
        bench.counters(CONTROL).last_fault,
        Some(Fault::NotWritable.name())
    );
    assert!(!bench.nic.port.filter.promiscuous, "it was not executed");
    assert!(!bench.poll());
    assert_eq!(bench.errors[CONTROL].take(), 0);
    assert_eq!(
        bench.nic.rings().tear_down(CONTROL),
        Some(0),
        "it was not used"
    );
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!(bench.used(RX).len(), 1);
}

#[test]
fn many_commands_are_done_in_turns() {
    let mut bench = Bench::new(BASE);
    bench.guest.write(BUFFERS, &[0, 0, 1]);
    for _ in 0..100 {
        bench.post(CONTROL, &[readable(BUFFERS, 3), writable(ANSWER, 1)]);
    }
    for expected in [64, 36] {
        assert!(bench.poll());
        assert_eq!(bench.used(CONTROL).len(), expected);
        assert_eq!(bench.lines[CONTROL].take(), 1);
    }
    assert!(!bench.poll());
}

#[test]
fn without_the_feature_nobody_looks_at_the_control_queue() {
    let mut bench = Bench::new(Features::VERSION_1);
    assert_eq!(bench.nic.device.control_queue(), None);
    bench.post(CONTROL, &[readable(BUFFERS, 3), writable(ANSWER, 1)]);
    assert!(!bench.poll());
    assert_eq!(bench.used(CONTROL), []);
}

#[test]
fn a_reset_forgets_the_driver_and_keeps_the_counts() {
    let mut bench = Bench::new(BASE);
    assert_eq!(
        command(&mut bench, &[2], &[&[1, 1][..], &OTHER].concat()),
        OK
    );
    assert_eq!(command(&mut bench, &[2], &[0, 0, 1]), OK);
    bench.nic.reset();
    let filter = &bench.nic.port.filter;
    assert_eq!(filter.address(), PortConfig::default().mac);
    assert!(!filter.active && !filter.promiscuous);
    assert!(!bench.nic.device.rings().iter().any(Option::is_some));
    assert_eq!(bench.nic.device.acked(), Features::empty());
    assert_eq!(bench.nic.status().control.commands, 2);
}

#[test]
fn without_a_link_what_is_sent_comes_back() {
    let mut bench = Bench::new(BASE);
    bench.nic.port.phy.set_link(Nanos::ZERO, false);
    bench.send(BUFFERS, &[0; 72]);
    assert!(bench.poll());
    assert_eq!(bench.used(TX).len(), 1);
    assert_eq!(bench.dropped(Drop::TxLinkDown), 1);
}

/// A chain that is well-formed: its head, its writable octets, and where they are.
type Sound = (u16, u64, Vec<(u64, u64)>);

/// What a hostile driver makes available on one queue: a table, tables to refer to, heads.
type Noise = (Vec<Descriptor>, Vec<Descriptor>, Vec<u16>);

fn hostile(size: u16) -> impl Strategy<Value = Noise> {
    let count = usize::from(size);
    let head = prop_oneof![60 => 0..size, 1 => any::<u16>()];
    // Of little noise, too: such queues get far.
    (
        vec(garbage(size, HOLE_END), count),
        vec(garbage(20, HOLE_END), 28),
        vec(head, 0..=count),
    )
        .prop_map(move |(mut table, mut tables, heads)| {
            // Buffers are where no ring and no table is, so that what a chain holds is known in advance.
            for descriptor in table.iter_mut().chain(&mut tables) {
                let inside = |at: u64| {
                    at < BUFFERS || (HOLE_END - 0x1_0000..HOLE_END + 0x3_0000).contains(&at)
                };
                if descriptor.flags & 4 == 0
                    && (inside(descriptor.addr) || descriptor.len > 1 << 20)
                {
                    descriptor.addr = BUFFERS + descriptor.addr % 0x1_0000;
                    descriptor.len %= 4096;
                }
            }
            (table, tables, heads)
        })
}

proptest! {
    /// Each chain is used once, in order and with a length that it holds, or its queue is stopped with a fault
    /// at the first chain that is malformed; and nothing but its buffers and the used ring changes.
    #[test]
    fn hostile_rings_are_used_or_stopped(
        (size, noise) in (1u32..6).prop_flat_map(|log| {
            let size = 1u16 << log;
            (Just(size), [hostile(size), hostile(size), hostile(size)])
        }),
        start in start(),
        merge in any::<bool>(),
        lengths in vec(14usize..1518, 64),
    ) {
        let features = if merge { BASE } else { BASE.difference(Features::MRG_RXBUF) };
        let mut bench = Bench::with(features | Features::INDIRECT_DESC, size, start);
        bench.nic.port.filter.promiscuous = true;
        for (index, (table, tables, heads)) in noise.iter().enumerate() {
            for (at, &descriptor) in (0..).zip(table) {
                bench.guest.describe(bench.drivers[index].layout.descriptors, at, descriptor);
            }
            for (at, &descriptor) in (0..).zip(tables) {
                // The three queues' tables lie one upon the other, the last one's count.
                bench.guest.describe(HOLE_END, at, descriptor);
            }
            for &head in heads {
                bench.drivers[index].post_head(head);
            }
        }
        // Each queue's chains before the first malformed one: heads and writable octets.
        let sound = [RX, TX, CONTROL].map(|index| -> Vec<Sound> {
            let driver = &bench.drivers[index];
            noise[index].2.iter().map_while(|&head| {
                let chain = if head < size { reference(driver, head)? } else { return None };
                let room: Vec<_> =
                    chain.iter().filter(|b| b.writable).map(|b| (b.addr, u64::from(b.len))).collect();
                let len = room.iter().map(|(_, len)| len).sum();
                let usable = match index {
                    RX => chain.iter().all(|buffer| buffer.writable),
                    TX => true,
                    _ => len > 0,
                };
                usable.then_some((head, len, room))
            }).collect()
        });
        let before = bench.guest.snapshot();
        for len in lengths {
            bench.arrive(&[broadcast(len, 5)]);
        }
        let mut allowed = Vec::new();
        for (index, sound) in sound.iter().enumerate() {
            let posted = noise[index].2.len();
            let used = bench.used(index);
            let faults = bench.counters(index).faults;
            prop_assert_eq!(bench.errors[index].take() as u64, faults);
            prop_assert!(used.len() <= sound.len(), "a malformed chain was used");
            for ((head, len), (expected, room, places)) in used.iter().zip(sound) {
                prop_assert_eq!(head, expected);
                prop_assert!(u64::from(*len) <= *room);
                allowed.extend(places);
            }
            if index != RX {
                prop_assert_eq!(used.len(), sound.len(), "queue {}", index);
            }
            match faults {
                0 if index == RX => {
                    // Either no frame is left, or what is left is not enough for the one that waits.
                    let left: u64 = sound[used.len()..].iter().map(|(_, room, _)| room).sum();
                    let (waiting, enough) = (bench.nic.queues.frames(), if merge { 12 + 1518 } else { 1 });
                    prop_assert!(waiting == 0 || left < enough);
                }
                0 => prop_assert_eq!(used.len(), posted),
                _ => prop_assert!(sound.len() < posted, "queue {} has no malformed chain", index),
            }
            allowed.push(bench.drivers[index].used_ring());
            prop_assert_eq!(
                bench.nic.rings().tear_down(index),
                Some(start.wrapping_add(used.len() as u16))
            );
        }
        prop_assert_eq!(bench.guest.changed_outside(&before, &allowed), None);
    }
}
