//! The split ring against virtio-queue as oracle, against drivers that do what none may, and against noise.

mod hostile;

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::*;
use crate::ring;
use crate::testing::{
    BORDER, BUFFERS, Buffer, Descriptor, Driver, Guest, HOLE, HOLE_END, INDIRECT, NEXT, WRITE,
    garbage, noise, readable, reference, start, writable,
};

const BASE: Features = Features::VERSION_1;
const WITH_INDIRECT: Features = BASE.union(Features::INDIRECT_DESC);
const WITH_EVENTS: Features = BASE.union(Features::EVENT_IDX);

/// A ring and two scatter lists over the driver's memory.
struct Device {
    ring: SplitRing,
    readable: Scatter,
    writable: Scatter,
}

impl Device {
    fn new(driver: &Driver, features: Features) -> Self {
        let memory = &driver.guest.memory;
        Device {
            ring: SplitRing::new(memory.clone(), &driver.layout, features).unwrap(),
            readable: Scatter::new(memory.clone(), 4),
            writable: Scatter::new(memory.clone(), 4),
        }
    }

    fn fetch(&mut self) -> Result<Option<u16>, Fault> {
        self.readable.clear();
        self.writable.clear();
        let chain = self.ring.fetch(&mut self.readable, &mut self.writable)?;
        Ok(chain.map(|chain| chain.id))
    }

    fn begin_and_fetch(&mut self) -> Result<Option<u16>, Fault> {
        self.ring.begin()?;
        self.fetch()
    }

    /// Takes and completes `count` chains.
    fn use_up(&mut self, count: u16) {
        self.ring.begin().unwrap();
        for _ in 0..count {
            let head = self.fetch().unwrap().unwrap();
            self.ring.complete(ring::Chain::new(head), 0);
        }
        self.ring.publish();
    }
}

fn contents(list: &Scatter) -> Vec<u8> {
    let mut bytes = vec![0; list.len() as usize];
    assert_eq!(list.cursor().read(&mut bytes), bytes.len());
    bytes
}

fn oracle(driver: &Driver, event_idx: bool, start: u16) -> Queue {
    let mut queue = Queue::new(driver.layout.size).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(driver.layout.descriptors))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(driver.layout.driver))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(driver.layout.device))
        .unwrap();
    queue.set_event_idx(event_idx);
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    queue
}

/// Buffers to read, buffers to write, and how many of them come before an indirect table, if there is one.
#[derive(Clone, Debug)]
struct Chain {
    buffers: Vec<Buffer>,
    direct: Option<usize>,
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

fn chain() -> impl Strategy<Value = Chain> {
    let buffers = (vec(buffer(false), 0..9), vec(buffer(true), 0..9));
    let buffers = buffers.prop_filter("a chain has buffers", |(r, w)| {
        !(r.is_empty() && w.is_empty())
    });
    (buffers, proptest::option::of(any::<prop::sample::Index>())).prop_map(|((r, w), at)| {
        let buffers = [r, w].concat();
        let direct = at.map(|at| at.index(buffers.len()));
        Chain { buffers, direct }
    })
}

proptest! {
    /// Chains that are used where they are leave what those leave that are taken and completed one by one.
    #[test]
    fn places_are_used_as_if_they_were_taken_one_by_one(
        log_size in 0u32..=6,
        start in start(),
        seed in any::<u64>(),
        rounds in vec((vec(prop_oneof![vec(buffer(false), 1..3), vec(buffer(true), 1..3)], 1..20), 0usize..24), 1..12),
    ) {
        let size = 1u16 << log_size;
        let guest = Guest::new();
        guest.write(BUFFERS, &noise((HOLE - BUFFERS) as usize, seed));
        let mut driver = Driver::new(&guest, 0, size, start);
        let copy = guest.copy();
        let mut device = Device::new(&driver, BASE);
        let mut one_by_one = SplitRing::new(copy.memory.clone(), &driver.layout, BASE).unwrap();
        for (chains, wanted) in rounds {
            for buffers in chains {
                if buffers.len() <= driver.free.len() {
                    driver.post(&buffers);
                }
            }
            for (addr, bytes) in guest.snapshot() {
                if addr > 0 {
                    copy.write(addr, &bytes);
                    continue;
                }
                // But for the used ring, which each device writes in its own memory.
                let (used, len) = driver.used_ring();
                copy.write(0, &bytes[..used as usize]);
                copy.write(used + len, &bytes[(used + len) as usize..]);
            }
            prop_assert_eq!(device.ring.begin(), one_by_one.begin());
            // Not each place that is offered is wanted.
            let mut left = wanted;
            loop {
                let mut used = [Access::Read, Access::Write].map(|access| {
                    let mut offered = Vec::new();
                    let count = device.ring.use_places(&guest.memory, access, left, |place| {
                        let wants = place.len() % 8 != 7;
                        let written = if access == Access::Write { place.len() as u32 } else { 0 };
                        offered.extend(wants.then_some((access, place.len(), written)));
                        wants.then_some(written)
                    });
                    assert_eq!(count, offered.len());
                    left -= count;
                    offered
                }).concat();
                if used.is_empty() && left > 0
                    && let Some(head) = device.fetch().unwrap() {
                    left -= 1;
                    device.ring.complete(ring::Chain::new(head), 1);
                    used.push((Access::Read, 0, 1));
                }
                if used.is_empty() {
                    break;
                }
                for (access, len, written) in used {
                    let (mut readable, mut writable) = (Scatter::new(copy.memory.clone(), 4), Scatter::new(copy.memory.clone(), 4));
                    let chain = one_by_one.fetch(&mut readable, &mut writable).unwrap().unwrap();
                    if len > 0 {
                        let list = if access == Access::Write { &writable } else { &readable };
                        prop_assert_eq!(list.len(), len as u64);
                        prop_assert_eq!(readable.len() + writable.len(), len as u64);
                    }
                    one_by_one.complete(chain, written);
                }
            }
            device.ring.publish();
            one_by_one.publish();
            let (addr, len) = driver.used_ring();
            prop_assert_eq!(guest.read(addr, len as usize), copy.read(addr, len as usize));
            prop_assert_eq!(device.ring.position(), one_by_one.position());
            driver.used();
        }
    }

    /// virtio-queue sees the same chains in the same memory, and leaves the same used ring behind.
    #[test]
    fn valid_rings_are_walked_as_virtio_queue_does(
        log_size in 0u32..=8,
        start in start(),
        event_idx in any::<bool>(),
        seed in any::<u64>(),
        rounds in vec((vec(chain(), 1..12), vec(any::<u16>(), 12)), 1..12),
    ) {
        let size = 1u16 << log_size;
        let guest = Guest::new();
        guest.write(BUFFERS, &noise((HOLE - BUFFERS) as usize, seed));
        let mut driver = Driver::new(&guest, 0, size, start);
        let features = if event_idx { WITH_INDIRECT | WITH_EVENTS } else { WITH_INDIRECT };
        let mut device = Device::new(&driver, features);
        prop_assert_eq!(device.ring.position(), start);
        let mut queue = oracle(&driver, event_idx, start);
        let copy = guest.copy();
        let mut tables = (0..).map(|at: u64| HOLE_END + 0x200 * (at % 200) + at % 16);
        for (chains, lengths) in rounds {
            let mut posted = 0;
            for chain in chains {
                let mut buffers = chain.buffers;
                buffers.truncate(usize::from(size));
                let direct = chain.direct.filter(|&direct| direct < buffers.len());
                let (direct, indirect) = buffers.split_at(direct.unwrap_or(buffers.len()));
                let indirect = (!indirect.is_empty()).then(|| (tables.next().unwrap(), indirect));
                if direct.len() + usize::from(indirect.is_some()) <= driver.free.len() {
                    driver.post_mixed(direct, indirect);
                    posted += 1;
                }
            }
            prop_assert_eq!(device.ring.begin(), Ok(posted));
            let mut heads = Vec::new();
            for _ in 0..posted {
                let head = device.fetch().unwrap();
                let theirs = queue.pop_descriptor_chain(&*guest.mapped).unwrap();
                prop_assert_eq!(head, Some(theirs.head_index()));
                let (mut readable, mut writable) = (Vec::new(), Vec::new());
                for descriptor in theirs {
                    let list = if descriptor.is_write_only() { &mut writable } else { &mut readable };
                    list.extend(guest.read(descriptor.addr().0, descriptor.len() as usize));
                }
                prop_assert_eq!(device.readable.len(), readable.len() as u64);
                prop_assert_eq!(device.writable.len(), writable.len() as u64);
                prop_assert!(contents(&device.readable) == readable, "other octets to read");
                prop_assert!(contents(&device.writable) == writable, "other octets to write");
                heads.extend(head);
            }
            prop_assert_eq!(device.fetch(), Ok(None));
            // The device may use them in any order.
            let turn = usize::from(lengths[0]) % heads.len().max(1);
            heads.rotate_left(turn);
            for (&head, &len) in heads.iter().zip(&lengths) {
                let before = driver.used_index();
                device.ring.complete(ring::Chain::new(head), u32::from(len));
                prop_assert_eq!(driver.used_index(), before, "shown before it is published");
                queue.add_used(&*copy.mapped, head, u32::from(len)).unwrap();
            }
            device.ring.publish();
            let (addr, len) = driver.used_ring();
            prop_assert_eq!(guest.read(addr, len as usize), copy.read(addr, len as usize));
            let expected: Vec<_> =
                heads.iter().copied().zip(lengths.iter().map(|&len| u32::from(len))).collect();
            prop_assert_eq!(driver.used(), expected);
        }
        prop_assert_eq!(driver.free.len(), usize::from(size));
    }

    /// With EVENT_IDX an interrupt is due exactly if the used index moved past the driver's mark.
    #[test]
    fn an_interrupt_is_due_when_the_mark_was_passed(
        start in start(), steps in vec((1u16..=8, -10i16..10), 1..20),
    ) {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, 8, start);
        let mut device = Device::new(&driver, WITH_EVENTS);
        prop_assert!(!device.ring.needs_interrupt(), "nothing was published");
        for (count, mark) in steps {
            let old = device.ring.position();
            let event = old.wrapping_add_signed(mark);
            driver.set_used_event(event);
            for _ in 0..count {
                driver.post(&[readable(BUFFERS, 1)]);
            }
            device.use_up(count);
            let passed = (0..count).any(|at| old.wrapping_add(at) == event);
            prop_assert_eq!(device.ring.needs_interrupt(), passed);
            prop_assert!(!device.ring.needs_interrupt(), "nothing was published since");
            driver.used();
        }
    }
}

#[test]
fn without_event_idx_the_drivers_flag_decides() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 4, 0);
    let mut device = Device::new(&driver, BASE);
    // With the feature off, the mark's place means nothing.
    driver.set_used_event(1000);
    for (flags, expected) in [(0, true), (1, false), (0xfffe, true), (0xffff, false)] {
        driver.set_available_flags(flags);
        assert!(!device.ring.needs_interrupt(), "nothing was published");
        driver.post(&[readable(BUFFERS, 1)]);
        device.use_up(1);
        assert_eq!(device.ring.needs_interrupt(), expected, "flags {flags:#x}");
        driver.used();
    }
}

#[test]
fn with_event_idx_the_drivers_flags_mean_nothing() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 4, 0);
    let mut device = Device::new(&driver, WITH_EVENTS);
    driver.set_available_flags(1);
    driver.set_used_event(0);
    driver.post(&[readable(BUFFERS, 1)]);
    device.use_up(1);
    assert!(device.ring.needs_interrupt());
    device.ring.disable_kicks();
    assert_eq!(driver.used_flags(), 0);
}

#[test]
fn kicks_are_wanted_from_the_next_chain_on() {
    for start in [0, 7, 65_534, 65_535] {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, 4, start);
        let mut device = Device::new(&driver, WITH_EVENTS);
        assert!(!device.ring.enable_kicks());
        assert_eq!(driver.avail_event(), start);
        driver.post(&[readable(BUFFERS, 1)]);
        driver.post(&[readable(BUFFERS, 1)]);
        assert!(device.ring.enable_kicks(), "two came in between");
        device.use_up(1);
        assert!(device.ring.enable_kicks(), "one is left");
        assert_eq!(driver.avail_event(), start.wrapping_add(1));
        device.use_up(1);
        assert!(!device.ring.enable_kicks());
        assert_eq!(driver.avail_event(), start.wrapping_add(2));
        device.ring.disable_kicks();
        assert_eq!(driver.avail_event(), start.wrapping_add(2));
    }
}

#[test]
fn without_event_idx_kicks_are_switched_by_a_flag() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 4, 0);
    let mut device = Device::new(&driver, BASE);
    device.ring.disable_kicks();
    assert_eq!(driver.used_flags(), 1);
    driver.post(&[readable(BUFFERS, 1)]);
    assert!(device.ring.enable_kicks());
    assert_eq!(driver.used_flags(), 0);
    device.use_up(1);
    assert!(!device.ring.enable_kicks());
}

#[test]
fn a_ring_set_up_again_can_ask_for_kicks() {
    let guest = Guest::new();
    let driver = Driver::new(&guest, 0, 4, 0);
    Device::new(&driver, BASE).ring.disable_kicks();
    let mut device = Device::new(&driver, BASE);
    device.ring.enable_kicks();
    assert_eq!(
        driver.used_flags(),
        0,
        "its predecessor's wish has to be taken back"
    );
}

#[test]
fn when_what_is_available_was_not_enough_only_more_of_it_is_worth_a_kick() {
    for features in [BASE, WITH_EVENTS] {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, 4, 65_535);
        let mut device = Device::new(&driver, features);
        let start = device.ring.position();
        driver.post(&[writable(BUFFERS, 1)]);
        assert!(device.begin_and_fetch().unwrap().is_some());
        device.ring.rewind(start);
        assert!(!device.ring.enable_kicks(), "nothing new came");
        if features == WITH_EVENTS {
            assert_eq!(driver.avail_event(), 0);
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
fn chains_given_back_come_again() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 4, 65_534);
    let mut device = Device::new(&driver, BASE);
    let heads: Vec<_> = (0..4)
        .map(|at| driver.post(&[readable(BUFFERS, at + 1)]))
        .collect();
    assert_eq!(device.ring.begin(), Ok(4));
    assert_eq!(device.fetch(), Ok(Some(heads[0])));
    let position = device.ring.position();
    for &head in &heads[1..] {
        assert_eq!(device.fetch(), Ok(Some(head)));
    }
    assert_eq!(device.fetch(), Ok(None));
    device.ring.rewind(position);
    assert_eq!(device.ring.begin(), Ok(3));
    assert_eq!(device.fetch(), Ok(Some(heads[1])));
    assert_eq!(device.readable.len(), 2);
}

#[test]
fn what_came_after_begin_waits_for_the_next() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 4, 0);
    let mut device = Device::new(&driver, BASE);
    assert_eq!(device.ring.begin(), Ok(0));
    driver.post(&[readable(BUFFERS, 1)]);
    assert_eq!(device.fetch(), Ok(None));
    assert_eq!(device.begin_and_fetch(), Ok(Some(0)));
}

#[test]
fn a_ring_must_be_in_memory_aligned_and_of_a_size_that_is_a_power_of_two() {
    let guest = Guest::new();
    let layout = Driver::new(&guest, 0, 8, 0).layout;
    let refused = |change: &dyn Fn(&mut Layout), features| {
        let mut layout = layout;
        change(&mut layout);
        SplitRing::new(guest.memory.clone(), &layout, features).unwrap_err()
    };
    for size in [0, 3, 100, u16::MAX] {
        assert_eq!(refused(&|l| l.size = size, BASE), BadRing::Size(size));
    }
    let misaligned = |part, addr, align| BadRing::Misaligned { part, addr, align };
    assert_eq!(
        refused(&|l| l.descriptors = 8, BASE),
        misaligned("descriptor table", 8, 16)
    );
    assert_eq!(
        refused(&|l| l.driver = 9, BASE),
        misaligned("available ring", 9, 2)
    );
    assert_eq!(
        refused(&|l| l.device = 10, BASE),
        misaligned("used ring", 10, 4)
    );
    let unmapped = |part, addr, len| BadRing::Unmapped { part, addr, len };
    let at = HOLE - 112;
    assert_eq!(
        refused(&|l| l.descriptors = at, BASE),
        unmapped("descriptor table", at, 128)
    );
    // The last octets of memory: room for the rings, but not for the marks behind them.
    let at = HOLE - 20;
    SplitRing::new(
        guest.memory.clone(),
        &Layout {
            driver: at,
            ..layout
        },
        BASE,
    )
    .unwrap();
    assert_eq!(
        refused(&|l| l.driver = at, WITH_EVENTS),
        unmapped("available ring", at, 22)
    );
    let at = HOLE - 68;
    SplitRing::new(
        guest.memory.clone(),
        &Layout {
            device: at,
            ..layout
        },
        BASE,
    )
    .unwrap();
    assert_eq!(
        refused(&|l| l.device = at, WITH_EVENTS),
        unmapped("used ring", at, 70)
    );
    let at = u64::MAX - 3;
    assert_eq!(
        refused(&|l| l.device = at, BASE),
        unmapped("used ring", at, 68)
    );
}

#[test]
fn a_mapping_at_an_odd_guest_address_makes_no_misaligned_ring() {
    // Aligned for the guest, but the mapping itself begins at a page here.
    let guest = Guest::with(&[(0x1001, 0x2000)]);
    let layout = Layout {
        size: 8,
        descriptors: 0x1010,
        driver: 0x1100,
        device: 0x1200,
        base: None,
    };
    let refused = SplitRing::new(guest.memory.clone(), &layout, BASE).unwrap_err();
    assert!(matches!(refused, BadRing::Misaligned { .. }), "{refused}");
}

proptest! {
    /// Whatever stands in a ring: each chain is as the naive walk sees it at that moment, or the ring faults
    /// where that one gives up, and only writable buffers and the used ring change.
    #[test]
    fn any_ring_is_used_or_faults(
        (table, indirect, heads) in (0u32..7).prop_flat_map(|log| {
            let size = 1u16 << log;
            let count = usize::from(size);
            let head = prop_oneof![40 => 0..size, 1 => any::<u16>()];
            (vec(garbage(size, BUFFERS), count), vec(garbage(20, BUFFERS), 28), vec(head, 0..=count))
        }),
        jump in prop_oneof![9 => Just(0u16), 1 => any::<u16>()],
        start in start(),
        fill in 0usize..4000,
    ) {
        let size = table.len() as u16;
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, size, start);
        for (index, &descriptor) in (0..).zip(&table) {
            guest.describe(driver.layout.descriptors, index, descriptor);
        }
        for (index, &descriptor) in (0..).zip(&indirect) {
            guest.describe(BUFFERS, index, descriptor);
        }
        for &head in &heads {
            driver.post_head(head);
        }
        driver.set_available_index(driver.available.wrapping_add(jump));
        let mut device = Device::new(&driver, WITH_INDIRECT | WITH_EVENTS);
        let before = guest.snapshot();
        let mut allowed = vec![driver.used_ring()];
        let claimed = (heads.len() as u16).wrapping_add(jump);
        let available = device.ring.begin();
        if claimed > size {
            prop_assert_eq!(available, Err(Fault::IndexJump));
        } else {
            prop_assert_eq!(available, Ok(claimed));
            let mut used = 0;
            loop {
                // A chain may be written over the ring itself; then what counts is what stands there now.
                let slot = u64::from(start.wrapping_add(used) % size);
                let head = guest.read16(driver.layout.driver + 4 + 2 * slot);
                match device.fetch() {
                    Ok(None) => {
                        prop_assert_eq!(used, claimed);
                        break;
                    }
                    Ok(Some(id)) => {
                        prop_assert_eq!(id, head);
                        let chain = reference(&driver, head);
                        prop_assert!(chain.is_some(), "a malformed chain was taken");
                        let chain = chain.unwrap();
                        let lengths = [false, true].map(|writable| -> u64 {
                            let kind = chain.iter().filter(|b| b.writable == writable);
                            kind.map(|b| u64::from(b.len)).sum()
                        });
                        prop_assert_eq!([device.readable.len(), device.writable.len()], lengths);
                        let room = chain.iter().filter(|b| b.writable);
                        allowed.extend(room.map(|b| (b.addr, u64::from(b.len))));
                        let written = device.writable.cursor().write(&vec![0xa5; fill]);
                        prop_assert_eq!(written as u64, lengths[1].min(fill as u64));
                        device.ring.complete(ring::Chain::new(id), written as u32);
                        used += 1;
                    }
                    Err(fault) => {
                        let chain = if head < size { reference(&driver, head) } else { None };
                        prop_assert_eq!(chain, None, "{} on a good chain", fault);
                        break;
                    }
                }
                prop_assert!(used <= size);
            }
            device.ring.publish();
            if allowed.iter().all(|&(addr, _)| addr >= driver.layout.device) {
                prop_assert_eq!(driver.used_index(), start.wrapping_add(used));
            }
        }
        prop_assert_eq!(guest.changed_outside(&before, &allowed), None);
    }
}
