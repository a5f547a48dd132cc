//! The split ring: driver's nonsense in it, and two devices that must do the same with it.
//!
//! The device's [`SplitRing`] and virtio-queue's [`Queue`] each have a memory of their own, and after each step the two memories must
//! be the same. What virtio-queue hides, a malformed chain, the [`walk`](super::walk) tells: the device has to refuse it for that
//! very reason, and never any other.

use std::cell::RefCell;
use std::collections::VecDeque;

use nic_device::features::Features;
use nic_device::memory::{Access, Scatter};
use nic_device::ring::{Chain, Fault, Layout, Ring};
use nic_device::split::SplitRing;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::input::Input;
use super::memory::{Memory, address, assert_same, length, octets};
use super::walk::{self, Buffer};

/// Where indirect tables are.
const TABLES: u64 = 0x1000;
/// Steps of one execution at most.
const STEPS: usize = 128;

thread_local! {
    static MEMORIES: RefCell<[Memory; 2]> = RefCell::default();
}

/// Runs the target.
///
/// # Panics
/// If the ring does what it must not.
pub fn run(data: &[u8]) {
    MEMORIES.with_borrow_mut(|memories| {
        let mut input = Input::new(data);
        memories.iter().for_each(Memory::reset);
        let [ours, theirs] = memories;
        let mut bed = Bed::new(&mut input, ours, theirs);
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            bed.step(&mut input);
            bed.compare();
        }
    });
}

/// Both devices.
struct Bed<'a> {
    ours: &'a Memory,
    theirs: &'a Memory,
    copies: [Vec<u8>; 2],
    layout: Layout,
    features: Features,
    ring: SplitRing,
    queue: Queue,
    readable: Scatter,
    writable: Scatter,
    /// Chains that were taken and not given back.
    taken: VecDeque<(u16, Vec<Buffer>)>,
    /// How far the driver says that it has got.
    available: u16,
    /// How far it had when the device looked last.
    begun: u16,
    /// Chains given back since an interrupt was last considered.
    unconsidered: u32,
    /// The device does not want kicks.
    kicks_disabled: bool,
    /// More than that much has to be available before a kick is worth it.
    short: Option<u16>,
}

impl<'a> Bed<'a> {
    fn new(input: &mut Input<'_>, ours: &'a Memory, theirs: &'a Memory) -> Self {
        let shape = input.u8();
        let size = 1u16 << (shape & 7).min(6);
        let mut features = Features::VERSION_1;
        features.set(Features::INDIRECT_DESC, shape & 0x10 != 0);
        features.set(Features::EVENT_IDX, shape & 0x20 != 0);
        let entries = u64::from(size);
        let driver = 16 * entries;
        let layout = Layout {
            size,
            descriptors: 0,
            driver,
            device: (driver + 6 + 2 * entries).next_multiple_of(4),
            base: None,
        };
        let start = if shape & 0x40 == 0 {
            0xffff
        } else {
            input.u16()
        };
        for memory in [ours, theirs] {
            memory.put16(layout.driver + 2, start);
            memory.put16(layout.device + 2, start);
        }
        let view = &ours.view;
        Bed {
            copies: Default::default(),
            layout,
            features,
            ring: SplitRing::new(view.clone(), &layout, features).expect("a sound layout"),
            queue: queue(&layout, features, start),
            readable: Scatter::new(view.clone(), 4),
            writable: Scatter::new(view.clone(), 4),
            taken: VecDeque::new(),
            available: start,
            begun: start,
            unconsidered: 0,
            kicks_disabled: false,
            short: None,
            ours,
            theirs,
        }
    }

    fn event_idx(&self) -> bool {
        self.features.contains(Features::EVENT_IDX)
    }

    /// The driver writes to both memories.
    fn put(&self, addr: u64, octets: &[u8]) {
        self.ours.put(addr, octets);
        self.theirs.put(addr, octets);
    }

    fn compare(&mut self) {
        let [ours, theirs] = &mut self.copies;
        self.ours.copy_to(ours);
        self.theirs.copy_to(theirs);
        assert_same(theirs, ours, &[]);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let size = self.layout.size;
        let entries = u64::from(size);
        match input.below(16) {
            0 | 1 => {
                let at = self.layout.descriptors + 16 * u64::from(input.below(size));
                self.describe(input, at, size);
            }
            2 => {
                let at = TABLES + 16 * u64::from(input.below(20));
                self.describe(input, at, 20);
            }
            3 | 4 => {
                let head = match input.u8() {
                    0xff => input.u16(),
                    head => u16::from(head) % size,
                };
                let slot = u64::from(self.available % size);
                self.put(self.layout.driver + 4 + 2 * slot, &head.to_le_bytes());
                self.move_index(1);
            }
            5 => {
                let by = input.u8().cast_signed();
                self.move_index(by.into());
            }
            6 => {
                let event = self.layout.driver + 4 + 2 * entries;
                let near = self
                    .ring
                    .position()
                    .wrapping_add_signed(i16::from(input.u8().cast_signed()) / 4);
                if self.event_idx() {
                    self.put(event, &near.to_le_bytes());
                } else {
                    self.put(self.layout.driver, &near.to_le_bytes());
                }
            }
            7 => {
                let at = address(input);
                self.put(at, input.octets(15));
            }
            8..=10 => self.begin_and_fetch(input),
            11 | 12 => self.give_back(input),
            13 => self.rewind(input),
            14 => self.tell(input),
            _ => self.set_up_again(),
        }
    }

    /// The driver writes the descriptor at `at`, of a table of `entries`.
    fn describe(&mut self, input: &mut Input<'_>, at: u64, entries: u16) {
        let kind = input.u8();
        let flags = match kind & 0xf {
            0xf => input.u16(),
            flags => u16::from(flags & 3),
        };
        let mut octets = Vec::with_capacity(16);
        if kind & 0xf0 == 0xf0 {
            // It refers to a table.
            let table = TABLES + 16 * u64::from(input.below(20));
            octets.extend(table.to_le_bytes());
            octets.extend((16 * u32::from(input.u8() % 24)).to_le_bytes());
            octets.extend((4 | (flags & 0xfffe)).to_le_bytes());
        } else {
            octets.extend(address(input).to_le_bytes());
            octets.extend(length(input).to_le_bytes());
            octets.extend(flags.to_le_bytes());
        }
        let next = match input.u8() {
            0xff => input.u16(),
            next => u16::from(next) % entries,
        };
        octets.extend(next.to_le_bytes());
        self.put(at, &octets);
    }

    fn move_index(&mut self, by: i16) {
        self.available = self.available.wrapping_add_signed(by);
        let index = self.available.to_le_bytes();
        self.put(self.layout.driver + 2, &index);
    }

    /// The driver broke the ring: it is set up anew.
    fn set_up_again(&mut self) {
        self.taken.clear();
        let used = self.ours.get16(self.layout.device + 2);
        let flags = self.ours.get16(self.layout.device);
        let view = self.ours.view.clone();
        self.ring = SplitRing::new(view, &self.layout, self.features).expect("a sound layout");
        assert_eq!(self.ring.position(), used);
        self.queue = queue(&self.layout, self.features, used);
        self.begun = used;
        self.unconsidered = 0;
        self.kicks_disabled = flags & 1 != 0;
        self.short = None;
    }

    fn begin_and_fetch(&mut self, input: &mut Input<'_>) {
        let index = self.ours.get16(self.layout.driver + 2);
        let ahead = index.wrapping_sub(self.ring.position());
        let expected = if ahead > self.layout.size {
            Err(Fault::IndexJump)
        } else {
            Ok(ahead)
        };
        assert_eq!(self.ring.begin(), expected);
        if expected.is_err() {
            let theirs = self.queue.pop_descriptor_chain(&*self.theirs.mapped);
            assert!(theirs.is_none(), "virtio-queue takes it");
            return self.set_up_again();
        }
        (self.begun, self.short) = (index, None);
        let script = input.u8();
        for _ in 0..=script & 0xf {
            if !self.fetch(script & 0x10 != 0, script >> 5) {
                break;
            }
        }
    }

    /// Takes one chain, and writes to it. Returns whether there was one.
    fn fetch(&mut self, short_way: bool, fill: u8) -> bool {
        let position = self.ring.position();
        self.readable.clear();
        self.writable.clear();
        if position == self.begun {
            let none = self.ring.fetch(&mut self.readable, &mut self.writable);
            assert_eq!(none, Ok(None));
            return false;
        }
        let slot = u64::from(position % self.layout.size);
        let head = self.ours.get16(self.layout.driver + 4 + 2 * slot);
        let indirect = self.features.contains(Features::INDIRECT_DESC);
        let walked = walk::split(self.ours, &self.layout, indirect, head);
        if short_way && self.use_place(head, walked.as_deref(), fill) {
            return true;
        }
        let fetched = (self.ring).fetch(&mut self.readable, &mut self.writable);
        let buffers = match (fetched, walked) {
            (Ok(Some(chain)), Ok(buffers)) => {
                assert_eq!(chain, Chain::new(head));
                buffers
            }
            (Err(ours), Err(expected)) => {
                assert_eq!(ours, expected);
                assert_eq!(self.ring.position(), position, "its chain is not taken");
                self.set_up_again();
                return false;
            }
            (fetched, walked) => panic!("{fetched:?} of {walked:?}"),
        };
        assert_eq!(self.ring.position(), position.wrapping_add(1));
        for (list, writable) in [(&self.readable, false), (&self.writable, true)] {
            assert_eq!(list.len(), walk::octets(&buffers, writable));
        }
        let mut read = vec![0; self.readable.len() as usize];
        assert_eq!(self.readable.cursor().read(&mut read), read.len());
        let expected: Vec<u8> = (buffers.iter().filter(|buffer| !buffer.writable))
            .flat_map(|buffer| octets(self.theirs, *buffer))
            .collect();
        assert!(read == expected, "other octets to read");
        self.pop(head, &buffers);
        // The two devices write the same.
        let room = self.writable.len() as usize;
        let data = vec![fill; room.min(usize::from(fill) * 40)];
        assert_eq!(self.writable.cursor().write(&data), data.len());
        self.write_theirs(&buffers, &data);
        self.taken.push_back((head, buffers));
        true
    }

    /// As [`Bed::fetch`], the short way, which only chains of one buffer in one mapping may take; and gives it back.
    fn use_place(&mut self, head: u16, walked: Result<&[Buffer], &Fault>, fill: u8) -> bool {
        if !self.taken.is_empty() {
            return false;
        }
        let wanted = 200;
        let access = if fill & 1 == 0 {
            Access::Read
        } else {
            Access::Write
        };
        let (ours, theirs) = (self.ours, self.theirs);
        let index = ours.get16(self.layout.device + 2);
        let used = self.ring.use_places(&ours.view, access, 1, |place| {
            if place.len() < wanted {
                return None;
            }
            let Ok(&[only]) = walked else {
                panic!("{walked:?} was taken as one place");
            };
            assert_eq!(place.len(), only.len as usize);
            assert_eq!(only.writable, access == Access::Write);
            if only.writable {
                assert!(place.write(&[fill; 12], &[fill; 60]));
                return Some(72);
            }
            let mut read = vec![0; only.len as usize];
            assert!(place.read(&mut read));
            assert!(read == octets(theirs, only), "other octets to read");
            Some(0)
        });
        let (1, Ok(&[only])) = (used, walked) else {
            return false;
        };
        self.pop(head, &[only]);
        let len = if only.writable { 72 } else { 0 };
        self.write_theirs(&[only], &vec![fill; len]);
        let shown = self.layout.device + 2;
        if !(only.writable && (shown.saturating_sub(71)..=shown + 1).contains(&only.addr)) {
            assert_eq!(ours.get16(shown), index, "shown before it is published");
        }
        (self.queue.add_used(&*theirs.mapped, head, len as u32)).expect("its own ring");
        self.unconsidered += 1;
        self.ring.publish();
        assert_eq!(self.ring.state().used, self.queue.next_used());
        true
    }

    /// virtio-queue takes the same chain, and sees it as the walk does.
    fn pop(&mut self, head: u16, buffers: &[Buffer]) {
        if self.theirs.get16(self.layout.driver + 2) != self.begun {
            // What was written to a chain has moved the index, which virtio-queue looks at each time.
            self.queue
                .set_next_avail(self.queue.next_avail().wrapping_add(1));
            return;
        }
        let chain = (self.queue.pop_descriptor_chain(&*self.theirs.mapped)).expect("a chain");
        assert_eq!(chain.head_index(), head);
        let theirs = chain.map(|descriptor| Buffer {
            addr: descriptor.addr().0,
            len: descriptor.len(),
            writable: descriptor.is_write_only(),
        });
        assert!(
            theirs.eq(buffers.iter().copied()),
            "virtio-queue sees another chain"
        );
        assert_eq!(self.queue.next_avail(), self.ring.position());
    }

    fn write_theirs(&self, buffers: &[Buffer], mut data: &[u8]) {
        for (addr, len) in walk::room(buffers) {
            let (here, rest) = data.split_at(data.len().min(len as usize));
            self.theirs.put(addr, here);
            data = rest;
        }
    }

    /// Gives chains back, in any order, and shows them.
    fn give_back(&mut self, input: &mut Input<'_>) {
        let script = input.u8();
        if self.taken.is_empty() {
            return self.ring.publish();
        }
        let turn = usize::from(script >> 4) % self.taken.len();
        self.taken.rotate_left(turn);
        let used = self.layout.device + 2;
        let index = self.ours.get16(used);
        let count = self.taken.len().min(usize::from(script & 0xf) + 1);
        for (head, _) in self.taken.drain(..count) {
            let len = u32::from(input.u16());
            self.ring.complete(Chain::new(head), len);
            assert_eq!(self.ours.get16(used), index, "shown before it is published");
            let mapped = &*self.theirs.mapped;
            self.queue
                .add_used(mapped, head, len)
                .expect("its own ring");
        }
        self.unconsidered += count as u32;
        self.ring.publish();
        assert_eq!(self.ring.state().used, self.queue.next_used());
    }

    /// Chains that were taken last are put back.
    fn rewind(&mut self, input: &mut Input<'_>) {
        let count = usize::from(input.u8()).min(self.taken.len());
        let position = self.ring.position().wrapping_sub(count as u16);
        // Those that were given back in the meantime may lie between: only what was taken in a row goes back.
        let slot = |index: u16| u64::from(index % self.layout.size);
        let in_a_row = self
            .taken
            .iter()
            .rev()
            .take(count)
            .enumerate()
            .all(|(at, (head, _))| {
                let index = self.ring.position().wrapping_sub(at as u16 + 1);
                self.ours.get16(self.layout.driver + 4 + 2 * slot(index)) == *head
            });
        if count == 0 || !in_a_row {
            return;
        }
        self.taken.truncate(self.taken.len() - count);
        self.ring.rewind(position);
        self.queue.set_next_avail(position);
        self.short = Some(self.begun);
        assert_eq!(self.ring.position(), position);
    }

    /// Interrupts and kicks.
    fn tell(&mut self, input: &mut Input<'_>) {
        let available = self.theirs.get16(self.layout.driver + 2);
        match input.below(3) {
            0 => {
                let expected = if self.event_idx() {
                    (self.queue.needs_notification(&*self.theirs.mapped)).expect("its own ring")
                } else {
                    let flags = self.theirs.get16(self.layout.driver);
                    self.unconsidered > 0 && flags & 1 == 0
                };
                self.unconsidered = 0;
                assert_eq!(self.ring.needs_interrupt(), expected);
            }
            1 => {
                let known = self.short.unwrap_or(self.queue.next_avail());
                if self.event_idx() || self.kicks_disabled {
                    let position = self.queue.next_avail();
                    self.queue.set_next_avail(known);
                    let more = (self.queue).enable_notification(&*self.theirs.mapped);
                    assert_eq!(more.expect("its own ring"), available != known);
                    self.queue.set_next_avail(position);
                }
                self.kicks_disabled = false;
                assert_eq!(self.ring.enable_kicks(), available != known);
            }
            _ => {
                if !self.kicks_disabled {
                    (self.queue.disable_notification(&*self.theirs.mapped)).expect("its own ring");
                }
                self.kicks_disabled = true;
                self.ring.disable_kicks();
            }
        }
    }
}

fn queue(layout: &Layout, features: Features, start: u16) -> Queue {
    let mut queue = Queue::new(layout.size).expect("a power of two");
    let parts = [layout.descriptors, layout.driver, layout.device].map(GuestAddress);
    let [descriptors, available, used] = parts;
    queue
        .try_set_desc_table_address(descriptors)
        .expect("aligned");
    queue
        .try_set_avail_ring_address(available)
        .expect("aligned");
    queue.try_set_used_ring_address(used).expect("aligned");
    queue.set_event_idx(features.contains(Features::EVENT_IDX));
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    queue
}
