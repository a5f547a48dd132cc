//! The packed ring against a driver and a walk of its own, against drivers that do what none may, and against noise.

mod hostile;

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::packed::{DESCRIPTOR as AT, DISABLE, ENABLE, PackedDriver, Place as At, Raw};
use crate::testing::{
    BORDER, BUFFERS, Buffer, Descriptor as Garbage, Guest, HOLE, HOLE_END, garbage, noise,
    readable, writable,
};

const BASE: Features = Features::VERSION_1.union(Features::RING_PACKED);
const WITH_INDIRECT: Features = BASE.union(Features::INDIRECT_DESC);
const WITH_EVENTS: Features = BASE.union(Features::EVENT_IDX);
/// Where a fresh ring begins.
const FRESH: At = At {
    index: 0,
    wrap: true,
};

/// A ring and two scatter lists over the driver's memory.
struct Device {
    ring: PackedRing,
    memory: Arc<GuestMemory>,
    readable: Scatter,
    writable: Scatter,
}

impl Device {
    fn new(driver: &PackedDriver, features: Features) -> Self {
        let memory = &driver.guest.memory;
        Device {
            ring: PackedRing::new(memory.clone(), &driver.layout, features).unwrap(),
            memory: memory.clone(),
            readable: Scatter::new(memory.clone(), 4),
            writable: Scatter::new(memory.clone(), 4),
        }
    }

    fn fetch(&mut self) -> Result<Option<Chain>, Fault> {
        self.readable.clear();
        self.writable.clear();
        self.ring.fetch(&mut self.readable, &mut self.writable)
    }

    /// Takes and completes `count` chains.
    fn use_up(&mut self, count: u16) {
        for _ in 0..count {
            let chain = self.fetch().unwrap().unwrap();
            self.ring.complete(chain, 0);
        }
        self.ring.publish();
    }

    fn at(&self) -> At {
        At::from_word(self.ring.position())
    }
}

fn contents(list: &Scatter) -> Vec<u8> {
    let mut bytes = vec![0; list.len() as usize];
    assert_eq!(list.cursor().read(&mut bytes), bytes.len());
    bytes
}

/// What `buffers` hold, those to read or those to write.
fn octets(guest: &Guest, buffers: &[Buffer], writable: bool) -> Vec<u8> {
    (buffers.iter().filter(|buffer| buffer.writable == writable))
        .flat_map(|buffer| guest.read(buffer.addr, buffer.len as usize))
        .collect()
}

/// Sizes of rings; few are powers of two.
fn size() -> impl Strategy<Value = u16> {
    prop_oneof![1u16..12, 1u16..300]
}

/// A place in a ring of `size`, often the last.
fn place(size: u16) -> impl Strategy<Value = At> {
    let index = prop_oneof![0..size, Just(size - 1)];
    (index, any::<bool>()).prop_map(|(index, wrap)| At { index, wrap })
}

fn ring() -> impl Strategy<Value = (u16, At)> {
    size().prop_flat_map(|size| (Just(size), place(size)))
}

fn buffer(writable: bool) -> impl Strategy<Value = Buffer> {
    // Half of them where two mappings adjoin.
    let place = prop_oneof![BUFFERS..HOLE - 600, BORDER - 256..BORDER];
    (place, 1u32..600).prop_map(move |(addr, len)| Buffer {
        addr,
        len,
        writable,
    })
}

/// Buffers, and whether they are in an indirect table.
fn chain() -> impl Strategy<Value = (Vec<Buffer>, bool)> {
    let lists = prop_oneof![
        (vec(buffer(false), 0..9), vec(buffer(true), 0..9)),
        (vec(buffer(false), 0..2), vec(buffer(true), 0..2)),
    ];
    let lists = lists.prop_filter("a chain has buffers", |(r, w)| r.len() + w.len() > 0);
    (lists, any::<bool>()).prop_map(|((r, w), indirect)| ([r, w].concat(), indirect))
}

proptest! {
    /// Each chain is taken as it was posted, once and in order; the driver sees what was used when it is published and not
    /// before; and nothing else in memory changes.
    #[test]
    fn valid_rings_are_taken_as_they_were_posted(
        (size, start) in ring(),
        [event_idx, in_order] in any::<[bool; 2]>(),
        seed in any::<u64>(),
        rounds in vec((vec(chain(), 0..12), vec(0u16..2000, 12), any::<[bool; 5]>()), 1..8),
    ) {
        let guest = Guest::new();
        guest.write(BUFFERS, &noise((HOLE - BUFFERS) as usize, seed));
        let mut driver = PackedDriver::new(&guest, 0, size, start);
        driver.in_order = in_order;
        let mut features = WITH_INDIRECT;
        features.set(Features::EVENT_IDX, event_idx);
        features.set(Features::IN_ORDER, in_order);
        let mut device = Device::new(&driver, features);
        let mut posted = VecDeque::new();
        let mut completed = Vec::new();
        let mut asleep = true;
        let mut tables = (0..).map(|at: u64| HOLE_END + 0x200 * (at % 200) + at % 16);
        for (chains, lengths, [leave, rewind, hide, sleep, written]) in rounds {
            for (mut buffers, indirect) in chains {
                buffers.truncate(usize::from(size));
                let entries = if indirect { 1 } else { buffers.len() as u16 };
                if entries > driver.free {
                    continue;
                }
                let old = driver.next;
                let id = if indirect {
                    driver.post_indirect(tables.next().unwrap(), &buffers)
                } else {
                    driver.post(&buffers)
                };
                if std::mem::take(&mut asleep) {
                    prop_assert!(driver.would_kick(old, event_idx), "the device sleeps on");
                }
                let plain = !indirect && buffers.len() == 1 && !across_mappings(&buffers[0]);
                posted.push_back((id, entries, buffers, plain));
            }
            let before = guest.snapshot();
            let mut changed = Vec::new();
            let available = device.ring.begin().unwrap();
            prop_assert!((available == 0) == posted.is_empty());
            prop_assert!(usize::from(available) >= posted.len());
            if rewind && let Some((id, entries, ..)) = posted.front() {
                let position = device.ring.position();
                let chain = Chain { id: *id, entries: *entries };
                prop_assert_eq!(device.fetch(), Ok(Some(chain)));
                device.ring.rewind(position);
            }
            let mut lengths: VecDeque<u16> = lengths.into_iter().take(if leave { 3 } else { 12 }).collect();
            let memory = device.memory.clone();
            while !lengths.is_empty() {
                let Some((id, entries, buffers, plain)) = posted.front() else {
                    prop_assert_eq!(device.fetch(), Ok(None));
                    prop_assert_eq!(device.ring.use_places(&memory, Access::Read, 1, |_| Some(0)), 0);
                    break;
                };
                let written_to = |buffer: &Buffer, len| if written || buffer.writable { len } else { 0 };
                let writable = buffers[0].writable;
                let (access, other) = if writable { (Access::Write, Access::Read) } else { (Access::Read, Access::Write) };
                prop_assert_eq!(device.ring.use_places(&memory, other, 1, |_| Some(1)), 0);
                let mut at = device.at();
                // As long as they are plain and wanted, and to the ring's end.
                let refused = |len: u16| len % 8 == 7;
                let expected = (posted.iter().zip(&lengths).take(usize::from(size - at.index)))
                    .take_while(|((_, _, buffers, plain), len)| *plain && buffers[0].writable == writable && !refused(**len))
                    .count();
                let mut offered = posted.iter().zip(&lengths);
                let used = device.ring.use_places(&memory, access, lengths.len(), |place| {
                    let ((_, _, buffers, _), &len) = offered.next().expect("no more than was asked for");
                    assert_eq!(place.len(), buffers[0].len as usize);
                    (!refused(len)).then(|| written_in_place(&buffers[0], len).into())
                });
                prop_assert_eq!(used, expected);
                if used == 0 {
                    prop_assert!(!plain || refused(lengths[0]));
                    let chain = Chain { id: *id, entries: *entries };
                    check(&mut device, &guest, chain, buffers)?;
                    let len = buffers.iter().map(|buffer| written_to(buffer, lengths[0])).max().unwrap();
                    device.ring.complete(chain, len.into());
                    completion(chain.id, at, len, &mut changed, &mut completed);
                    posted.pop_front();
                    lengths.pop_front();
                }
                for ((id, _, buffers, _), len) in posted.drain(..used).zip(lengths.drain(..used)) {
                    completion(id, at, written_in_place(&buffers[0], len), &mut changed, &mut completed);
                    at = at.after(1, size);
                }
            }
            prop_assert_eq!(driver.used(), vec![], "shown before it is published");
            prop_assert_eq!(guest.changed_outside(&before, &changed), None);
            if !hide {
                device.ring.publish();
                changed.extend(completed.iter().map(|&(at, _, _): &(At, u16, u32)| (driver.slot(at.index) + 8, 8)));
                prop_assert_eq!(guest.changed_outside(&before, &changed), None);
                let expected: Vec<_> = completed.drain(..).map(|(_, id, len)| (id, len)).collect();
                prop_assert_eq!(driver.used(), expected);
            }
            if sleep {
                asleep = !device.ring.enable_kicks();
                prop_assert_eq!(asleep, posted.is_empty());
            } else {
                asleep = false;
                device.ring.disable_kicks();
                prop_assert!(!driver.would_kick(driver.next, event_idx));
            }
            prop_assert_eq!(device.at().word(), device.ring.position());
        }
    }

    /// With EVENT_IDX an interrupt is due exactly if the driver's descriptor is among those that were shown since the last
    /// one was considered.
    #[test]
    fn an_interrupt_is_due_when_the_descriptor_was_passed(
        (size, start, steps) in size().prop_flat_map(|size| {
            let step = (vec(1u16..8, 0..6), place(size), 0u16..4, any::<bool>());
            (Just(size), place(size), vec(step, 1..30))
        }),
        event_idx in any::<bool>(),
    ) {
        let guest = Guest::new();
        let mut driver = PackedDriver::new(&guest, 0, size, start);
        let mut device = Device::new(&driver, if event_idx { WITH_EVENTS } else { BASE });
        prop_assert!(!device.ring.needs_interrupt(), "nothing was published");
        let mut shown = Vec::new();
        for (chains, event, flags, ask) in steps {
            for entries in chains {
                let entries = entries.min(size);
                let at = device.at();
                driver.post(&vec![readable(BUFFERS, 1); usize::from(entries)]);
                device.use_up(1);
                prop_assert_eq!(driver.used().len(), 1);
                shown.extend((0..entries).map(|count| at.after(count, size)));
            }
            driver.set_event(event, flags);
            if ask {
                let wanted = match flags {
                    DISABLE => false,
                    AT if event_idx => shown.contains(&event),
                    _ => true,
                };
                prop_assert_eq!(device.ring.needs_interrupt(), wanted && !shown.is_empty());
                prop_assert!(!device.ring.needs_interrupt(), "nothing was published since");
                shown.clear();
            }
        }
    }
}

/// The device takes `chain`, which has `buffers`.
fn check(
    device: &mut Device,
    guest: &Guest,
    chain: Chain,
    buffers: &[Buffer],
) -> Result<(), TestCaseError> {
    prop_assert_eq!(device.fetch(), Ok(Some(chain)));
    let expected = [false, true].map(|writable| octets(guest, buffers, writable));
    let got = [&device.readable, &device.writable].map(contents);
    prop_assert!(got == expected, "other octets");
    Ok(())
}

/// Whether the device cannot see `buffer` in one piece.
fn across_mappings(buffer: &Buffer) -> bool {
    buffer.addr < BORDER && buffer.addr + u64::from(buffer.len) > BORDER
}

/// Octets that the device writes in place: some, if it may write.
fn written_in_place(buffer: &Buffer, len: u16) -> u16 {
    if buffer.writable { len.max(1) } else { 0 }
}

/// The device has completed the chain `id` that it took at `at`; of memory only what the driver does not look at may have changed.
fn completion(
    id: u16,
    at: At,
    len: u16,
    changed: &mut Vec<(u64, u64)>,
    completed: &mut Vec<(At, u16, u32)>,
) {
    let place = |at: At| 16 * u64::from(at.index) + 8;
    match completed.first() {
        None => changed.push((place(at), 6)),
        // With IN_ORDER it may stand for more than one.
        Some(&(first, _, _)) => changed.extend([(place(first), 6), (place(at), 8)]),
    }
    completed.push((at, id, u32::from(len)));
}

#[test]
fn one_used_descriptor_stands_for_all_that_was_only_read() {
    let guest = Guest::new();
    let mut driver = PackedDriver::new(&guest, 0, 7, At::from_word(0x8005));
    driver.in_order = true;
    let mut device = Device::new(&driver, BASE | Features::IN_ORDER);
    let mut skipped = |chains: &[&[Buffer]]| {
        let ids: Vec<_> = chains.iter().map(|chain| driver.post(chain)).collect();
        device.use_up(ids.len() as u16);
        let used = driver.used();
        assert!(used.iter().map(|&(id, _)| id).eq(ids));
        std::mem::take(&mut driver.skipped)
    };
    let (read, write) = ([readable(BUFFERS, 1)], [writable(BUFFERS, 1)]);
    let both = [read[0], write[0]];
    assert_eq!(skipped(&[&read, &read, &read]), 2);
    assert_eq!(skipped(&[&read]), 0);
    assert_eq!(skipped(&[&read, &[read[0]; 3], &read]), 2);
    // Of what can be written to, the driver has to know that nothing was.
    assert_eq!(skipped(&[&write, &write]), 0);
    assert_eq!(skipped(&[&read, &read, &write, &read]), 1);
    assert_eq!(skipped(&[&both, &read, &read]), 0);
    assert_eq!(skipped(&[&read, &read]), 1, "a burst of its own");
}

#[test]
fn nothing_stands_for_a_writable_chain_that_was_taken_before_others_were_shown() {
    let guest = Guest::new();
    let mut driver = PackedDriver::new(&guest, 0, 7, FRESH);
    driver.in_order = true;
    let mut device = Device::new(&driver, BASE | Features::IN_ORDER);
    let chains = [
        readable(BUFFERS, 1),
        writable(BUFFERS, 1),
        readable(BUFFERS, 1),
    ];
    let ids = chains.map(|buffer| driver.post(&[buffer]));
    let [first, written, last] = [(); 3].map(|()| device.fetch().unwrap().unwrap());
    device.ring.complete(first, 0);
    device.ring.publish();
    assert_eq!(driver.used(), [(ids[0], 0)]);
    device.ring.complete(written, 0);
    device.ring.complete(last, 0);
    device.ring.publish();
    assert_eq!(driver.used(), [(ids[1], 0), (ids[2], 0)]);
    assert_eq!(driver.skipped, 0);
}

#[test]
fn kicks_are_wanted_from_the_next_chain_on() {
    for start in [0, 0x8000, 2, 0x8002] {
        let guest = Guest::new();
        let start = At::from_word(start);
        let mut driver = PackedDriver::new(&guest, 0, 3, start);
        let mut device = Device::new(&driver, WITH_EVENTS);
        assert!(!device.ring.enable_kicks());
        assert_eq!(driver.device_event(), (start, AT));
        driver.post(&[readable(BUFFERS, 1)]);
        driver.post(&[readable(BUFFERS, 1), readable(BUFFERS, 1)]);
        assert!(device.ring.enable_kicks(), "two came in between");
        device.use_up(1);
        assert!(device.ring.enable_kicks(), "one is left");
        assert_eq!(driver.device_event(), (start.next(3), AT));
        device.use_up(1);
        assert!(!device.ring.enable_kicks());
        assert_eq!(driver.device_event(), (start.after(3, 3), AT));
        device.ring.disable_kicks();
        assert_eq!(driver.device_event().1, DISABLE);
    }
}

#[test]
fn without_event_idx_kicks_are_switched() {
    let guest = Guest::new();
    let mut driver = PackedDriver::new(&guest, 0, 4, FRESH);
    let mut device = Device::new(&driver, BASE);
    device.ring.disable_kicks();
    assert_eq!(driver.device_event().1, DISABLE);
    driver.post(&[readable(BUFFERS, 1)]);
    assert!(device.ring.enable_kicks());
    assert_eq!(driver.device_event().1, ENABLE);
    device.use_up(1);
    assert!(!device.ring.enable_kicks());
}

#[test]
fn a_ring_set_up_again_can_ask_for_kicks() {
    let guest = Guest::new();
    let driver = PackedDriver::new(&guest, 0, 4, FRESH);
    Device::new(&driver, BASE).ring.disable_kicks();
    let mut device = Device::new(&driver, BASE);
    device.ring.enable_kicks();
    assert_eq!(driver.device_event().1, ENABLE, "it was taken back");
}

#[test]
fn when_what_is_available_was_not_enough_only_more_of_it_is_worth_a_kick() {
    for features in [BASE, WITH_EVENTS] {
        let guest = Guest::new();
        let start = At {
            index: 3,
            wrap: true,
        };
        let mut driver = PackedDriver::new(&guest, 0, 4, start);
        let mut device = Device::new(&driver, features);
        let position = device.ring.position();
        driver.post(&[writable(BUFFERS, 1)]);
        assert!(device.fetch().unwrap().is_some());
        assert!(device.fetch().unwrap().is_none());
        device.ring.rewind(position);
        assert!(!device.ring.enable_kicks(), "nothing new came");
        if features == WITH_EVENTS {
            assert_eq!(driver.device_event(), (start.next(4), AT));
        }
        driver.post(&[writable(BUFFERS, 1)]);
        assert!(device.ring.enable_kicks(), "one more came");
        device.ring.begin().unwrap();
        assert!(device.ring.enable_kicks(), "seen, but not tried");
        device.use_up(1);
        assert!(device.ring.enable_kicks(), "the other is to be taken");
        assert_eq!(driver.used().len(), 1);
    }
}

#[test]
fn a_state_tells_who_waits_for_whom() {
    let guest = Guest::new();
    let mut driver = PackedDriver::new(&guest, 0, 5, At::from_word(0x8003));
    let mut device = Device::new(&driver, WITH_EVENTS);
    for _ in 0..4 {
        driver.post(&[readable(BUFFERS, 1)]);
    }
    device.use_up(1);
    device.fetch().unwrap().unwrap();
    driver.set_event(At::from_word(2), AT);
    let state = device.ring.state();
    assert_eq!((state.size, state.available), (5, 2));
    assert_eq!((state.used, state.taken), (0x8004, 0));
    assert_eq!(state.interrupt_after, Some(2));
    assert_eq!(state.interrupts_wanted, None);
    driver.set_event(At::from_word(2), DISABLE);
    assert_eq!(device.ring.state().interrupts_wanted, Some(false));
    driver.set_event(At::from_word(2), ENABLE);
    assert_eq!(device.ring.state().interrupts_wanted, Some(true));
}

#[test]
fn the_largest_ring_goes_round() {
    const SIZE: u16 = 32_768;
    let guest = Guest::with(&[(0, 0x10_0000)]);
    let start = At {
        index: SIZE - 2,
        wrap: true,
    };
    let mut driver = PackedDriver::new(&guest, 0, SIZE, start);
    let mut device = Device::new(&driver, WITH_EVENTS);
    // Longer than what is left of this round, and then as long as the ring.
    for len in [3, usize::from(SIZE)] {
        let at = device.at();
        let id = driver.post(&vec![readable(0x9_0000, 1); len]);
        let chain = device.fetch().unwrap().unwrap();
        assert_eq!((chain.id, usize::from(chain.entries)), (id, len));
        assert_eq!(device.readable.len(), len as u64);
        device.ring.complete(chain, 7);
        device.ring.publish();
        assert_eq!(driver.used(), [(id, 7)]);
        driver.set_event(at, AT);
        assert!(device.ring.needs_interrupt());
    }
    assert_eq!(device.at(), start.after(3, SIZE).after(SIZE, SIZE));
}

#[test]
fn a_ring_must_be_in_memory_aligned_and_begin_in_itself() {
    let guest = Guest::new();
    let layout = PackedDriver::new(&guest, 0, 7, FRESH).layout;
    let refused = |change: &dyn Fn(&mut Layout)| {
        let mut layout = layout;
        change(&mut layout);
        PackedRing::new(guest.memory.clone(), &layout, BASE).unwrap_err()
    };
    for size in [0, 32_769, u16::MAX] {
        assert_eq!(refused(&|l| l.size = size), BadRing::Size(size));
    }
    for base in [7, 0x8007, 0x7fff, 0xffff] {
        let bad = BadRing::Base { base, size: 7 };
        assert_eq!(refused(&|l| l.base = Some(base)), bad);
    }
    let misaligned = |part, addr, align| BadRing::Misaligned { part, addr, align };
    let (ring, driver, device) = (
        "descriptor ring",
        "driver's event suppression",
        "device's event suppression",
    );
    assert_eq!(refused(&|l| l.descriptors = 8), misaligned(ring, 8, 16));
    assert_eq!(refused(&|l| l.driver = 10), misaligned(driver, 10, 4));
    assert_eq!(refused(&|l| l.device = 10), misaligned(device, 10, 4));
    let unmapped = |part, addr, len| BadRing::Unmapped { part, addr, len };
    let at = HOLE - 96;
    assert_eq!(refused(&|l| l.descriptors = at), unmapped(ring, at, 112));
    assert_eq!(refused(&|l| l.driver = HOLE), unmapped(driver, HOLE, 4));
    assert_eq!(refused(&|l| l.device = HOLE), unmapped(device, HOLE, 4));
    // Without a base it begins as a fresh one does.
    let fresh = Layout {
        base: None,
        ..layout
    };
    let ring = PackedRing::new(guest.memory.clone(), &fresh, BASE).unwrap();
    assert_eq!(ring.position(), 0x8000);
}

#[test]
fn a_base_of_zero_begins_a_ring_that_nobody_wrote_to() {
    let guest = Guest::new();
    let position = |first_flags: u16, base| {
        let start = At::from_word(base);
        let driver = PackedDriver::new(&guest, 0, 5, start);
        driver.write(0, 0, 0, 0, first_flags);
        Device::new(&driver, BASE).ring.position()
    };
    assert_eq!(position(0, 0), 0x8000);
    // Used in the round before, left out there by IN_ORDER, and available in this one.
    for flags in [0x8080, 0x0080, 0x8000] {
        assert_eq!(position(flags, 0), 0);
    }
    assert_eq!(position(0, 1), 1);
}

proptest! {
    /// Whatever stands in a ring: each chain is as the naive walk sees it at that moment, or the ring faults where that one
    /// gives up, and only writable buffers and used descriptors change.
    #[test]
    fn any_ring_is_used_or_faults(
        (table, start) in ring().prop_flat_map(|(size, start)| {
            let size = size.min(64);
            let index = start.index.min(size - 1);
            let entry = (garbage(size, BUFFERS), any::<u16>(), 0u8..12);
            (vec(entry, usize::from(size)), Just(At { index, ..start }))
        }),
        indirect in vec(garbage(20, BUFFERS), 28),
        fill in 0usize..4000,
        publish in any::<bool>(),
        event in any::<u32>(),
    ) {
        let size = table.len() as u16;
        let guest = Guest::new();
        let driver = PackedDriver::new(&guest, 0, size, start);
        let mut device = Device::new(&driver, WITH_INDIRECT | WITH_EVENTS);
        let mut at = start;
        for (garbage, id, odd) in table {
            let Garbage { addr, len, flags, .. } = garbage;
            let flags = match odd {
                0 => flags,
                1 => flags | 0x8080,
                _ => (flags & 0x7f7f) | at.available(),
            };
            driver.write(at.index, addr, len, id, flags);
            at = at.next(size);
        }
        for (index, &descriptor) in (0..).zip(&indirect) {
            guest.describe(BUFFERS, index, descriptor);
        }
        guest.write(driver.layout.driver, &event.to_le_bytes());
        let before = guest.snapshot();
        let mut allowed = vec![(driver.layout.device, 4)];
        let begun = device.ring.begin().unwrap();
        // Buffers may lie over the ring, which then may stay available for ever.
        for step in 0..3 * size {
            let at = device.at();
            let slot = driver.slot(at.index);
            let available = guest.read16(slot + 14) & 0x8080 == at.available();
            if step == 0 {
                prop_assert_eq!(begun, if available { size } else { 0 });
            }
            match device.fetch() {
                Ok(None) => {
                    prop_assert!(!available);
                    break;
                }
                Ok(Some(chain)) => {
                    prop_assert!(available);
                    let walked = driver.reference(at);
                    prop_assert!(walked.is_some(), "a malformed chain was taken");
                    let (buffers, id, entries) = walked.unwrap();
                    prop_assert_eq!(chain, Chain { id, entries });
                    prop_assert_eq!(device.at(), at.after(entries, size));
                    let lengths = [false, true].map(|writable| -> u64 {
                        let kind = buffers.iter().filter(|b| b.writable == writable);
                        kind.map(|b| u64::from(b.len)).sum()
                    });
                    prop_assert_eq!([device.readable.len(), device.writable.len()], lengths);
                    let room = buffers.iter().filter(|b| b.writable);
                    allowed.extend(room.map(|b| (b.addr, u64::from(b.len))));
                    allowed.push((slot + 8, 8));
                    let written = device.writable.cursor().write(&vec![0xa5; fill]);
                    prop_assert_eq!(written as u64, lengths[1].min(fill as u64));
                    device.ring.complete(chain, written as u32);
                    if publish {
                        device.ring.publish();
                    }
                }
                Err(fault) => {
                    prop_assert!(available);
                    prop_assert_eq!(driver.reference(at), None, "{} on a good chain", fault);
                    prop_assert_eq!(device.at(), at);
                    break;
                }
            }
        }
        device.ring.publish();
        device.ring.needs_interrupt();
        device.ring.enable_kicks();
        device.ring.state();
        prop_assert_eq!(guest.changed_outside(&before, &allowed), None);
    }
}
