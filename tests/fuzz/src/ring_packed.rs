//! The packed ring: driver's nonsense in it, against a slow and obvious reference.
//!
//! The reference is the [`walk`](super::walk), which says what is available and what is wrong with it, and [`Bed::shown`], which reads
//! used descriptors as a driver does: in their order, no further than the first that is not used, and with IN_ORDER as standing for
//! those before them. Nothing of memory may change but writable buffers and used descriptors.

use std::cell::RefCell;
use std::collections::VecDeque;

use nic_device::features::Features;
use nic_device::memory::{Access, Scatter};
use nic_device::packed::PackedRing;
use nic_device::ring::{Chain, Fault, Layout, Ring};

use super::input::Input;
use super::memory::{Memory, address, length, octets};
use super::walk::{self, Buffer, Place};

/// Where indirect tables are.
const TABLES: u64 = 0x1000;
/// Steps of one execution at most.
const STEPS: usize = 128;

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Runs the target.
///
/// # Panics
/// If the ring does what it must not.
pub fn run(data: &[u8]) {
    MEMORY.with_borrow_mut(|memory| {
        let mut input = Input::new(data);
        memory.reset();
        let mut bed = Bed::new(&mut input, memory);
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            bed.step(&mut input);
        }
        memory.assert_canaries();
    });
}

/// A chain that the device has.
struct Taken {
    at: Place,
    chain: Chain,
    buffers: Vec<Buffer>,
}

/// A chain that was given back.
struct Used {
    at: Place,
    chain: Chain,
    writable: bool,
    len: u32,
}

struct Bed<'a> {
    memory: &'a Memory,
    /// Memory before what the device does.
    before: Vec<u8>,
    layout: Layout,
    features: Features,
    ring: PackedRing,
    readable: Scatter,
    writable: Scatter,
    /// Where the driver writes next.
    driver: Place,
    taken: VecDeque<Taken>,
    /// Given back and not yet shown.
    used: Vec<Used>,
    /// Whether the driver has written to memory since then, or had the device write over the ring: then who knows what stands there.
    spoilt: bool,
    /// Where the device gives back next.
    next_used: Place,
    /// Descriptors shown since an interrupt was last considered.
    unconsidered: Vec<Place>,
    /// The first that was missing before the device went back, and where it went back to.
    short: Option<(Place, Place)>,
    /// What the device has asked for.
    asked: Option<u32>,
}

impl<'a> Bed<'a> {
    fn new(input: &mut Input<'_>, memory: &'a Memory) -> Self {
        let shape = input.u8();
        let size = match shape & 7 {
            7 => 1 + input.below(64),
            small => 1 + u16::from(small),
        };
        let mut features = Features::VERSION_1 | Features::RING_PACKED;
        features.set(Features::INDIRECT_DESC, shape & 0x10 != 0);
        features.set(Features::EVENT_IDX, shape & 0x20 != 0);
        features.set(Features::IN_ORDER, shape & 0x40 != 0);
        let start = Place {
            index: if shape & 8 == 0 { 0 } else { input.below(size) },
            wrap: shape & 0x80 == 0,
        };
        let events = 16 * u64::from(size);
        let layout = Layout {
            size,
            descriptors: 0,
            driver: events,
            device: events + 4,
            base: Some(start.word()),
        };
        // All descriptors look used by the round before.
        for count in 0..size {
            let at = start.after(count, size);
            memory.put16(at.address(&layout) + 14, 0x8080 ^ at.used());
        }
        let view = &memory.view;
        let ring = PackedRing::new(view.clone(), &layout, features).expect("a sound layout");
        // A base of 0 in memory that nobody wrote to is a fresh ring's.
        let start = Place::from_word(ring.position());
        Bed {
            before: Vec::new(),
            layout,
            features,
            ring,
            readable: Scatter::new(view.clone(), 4),
            writable: Scatter::new(view.clone(), 4),
            driver: start,
            taken: VecDeque::new(),
            used: Vec::new(),
            spoilt: false,
            next_used: start,
            unconsidered: Vec::new(),
            short: None,
            asked: None,
            memory,
        }
    }

    fn event_idx(&self) -> bool {
        self.features.contains(Features::EVENT_IDX)
    }

    fn in_order(&self) -> bool {
        self.features.contains(Features::IN_ORDER)
    }

    fn at(&self) -> Place {
        Place::from_word(self.ring.position())
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let size = self.layout.size;
        let step = input.below(16);
        self.spoilt |= step < 8;
        match step {
            0..=2 => {
                let at = self.driver;
                self.describe(input, at.address(&self.layout), Some(at));
                self.driver = at.after(1, size);
            }
            3 => {
                let at = TABLES + 16 * u64::from(input.below(20));
                self.describe(input, at, None);
            }
            4 => {
                // A chain that is as it should be.
                let count = 1 + input.below(size.min(4));
                let first = self.driver;
                for at in (0..count).rev() {
                    let place = first.after(at, size);
                    let next = u16::from(at + 1 < count);
                    let writable = u16::from(at >= count / 2);
                    let addr = 0x2000 + u64::from(input.u16() & 0x1fff);
                    let len = 1 + u32::from(input.u8());
                    let flags = place.available() | next | (2 * writable);
                    self.write(
                        place.address(&self.layout),
                        addr,
                        len,
                        input.u8().into(),
                        flags,
                    );
                }
                self.driver = first.after(count, size);
            }
            5 => {
                self.driver = self.driver.after(input.below(size), size);
            }
            6 => {
                let near = self.next_used.after(input.below(size), size).word();
                let flags = u16::from(input.u8() & 3);
                let word = if flags == 3 { input.u16() } else { near };
                self.memory.put16(self.layout.driver, word);
                self.memory.put16(self.layout.driver + 2, flags);
            }
            7 => {
                let at = address(input);
                self.memory.put(at, input.octets(15));
            }
            8..=10 => self.begin_and_fetch(input),
            11 | 12 => self.give_back(input),
            13 => self.rewind(input),
            14 => self.tell(input),
            _ => self.set_up_again(),
        }
    }

    fn write(&self, at: u64, addr: u64, len: u32, id: u16, flags: u16) {
        self.memory.put(at, &addr.to_le_bytes());
        self.memory.put(at + 8, &len.to_le_bytes());
        self.memory.put16(at + 12, id);
        self.memory.put16(at + 14, flags);
    }

    /// The driver writes the descriptor at `at`: at that `place`, or in a table.
    fn describe(&mut self, input: &mut Input<'_>, at: u64, place: Option<Place>) {
        let kind = input.u8();
        let state = place.map_or(0, Place::available);
        let flags = match kind & 0xf {
            0xf => input.u16(),
            flags => state | u16::from(flags & 3),
        };
        let id = input.u8().into();
        if kind & 0xf0 == 0xf0 {
            let table = TABLES + 16 * u64::from(input.below(20));
            let len = 16 * u32::from(input.u8() % 24);
            self.write(at, table, len, id, 4 | (flags & 0xfffe));
        } else {
            let addr = address(input);
            self.write(at, addr, length(input), id, flags);
        }
    }

    /// The driver broke the ring, or the front-end stopped it: it is set up where it stood.
    fn set_up_again(&mut self) {
        self.ring.publish();
        self.used.clear();
        self.taken.clear();
        let base = Some(self.ring.position());
        let layout = Layout {
            base,
            ..self.layout
        };
        let view = self.memory.view.clone();
        self.ring = PackedRing::new(view, &layout, self.features).expect("a sound layout");
        self.next_used = self.at();
        self.unconsidered.clear();
        self.short = None;
        self.asked = None;
    }

    fn begin_and_fetch(&mut self, input: &mut Input<'_>) {
        let available = self.at().is_available(self.memory, &self.layout);
        let expected = if available { self.layout.size } else { 0 };
        assert_eq!(self.ring.begin(), Ok(expected));
        self.short = None;
        let script = input.u8();
        for _ in 0..=script & 0xf {
            if !self.fetch(script & 0x10 != 0, script >> 5) {
                break;
            }
        }
    }

    /// Takes one chain, and writes to it. Returns whether there was one.
    fn fetch(&mut self, short_way: bool, fill: u8) -> bool {
        let at = self.at();
        self.readable.clear();
        self.writable.clear();
        // A ring has no more in flight than it has descriptors. Buffers that lie over it may make it look otherwise; a driver that does
        // so gets what it asked for, which here would only be confusing.
        let in_flight: u16 = self.taken.iter().map(|taken| taken.chain.entries).sum();
        let hidden: u16 = self.used.iter().map(|used| used.chain.entries).sum();
        if in_flight + hidden >= self.layout.size {
            return false;
        }
        if !at.is_available(self.memory, &self.layout) {
            let none = self.ring.fetch(&mut self.readable, &mut self.writable);
            assert_eq!(none, Ok(None));
            return false;
        }
        let indirect = self.features.contains(Features::INDIRECT_DESC);
        let walked = walk::packed(self.memory, &self.layout, indirect, at);
        if let Ok((_, chain)) = &walked
            && in_flight + hidden + chain.entries > self.layout.size
        {
            return false;
        }
        self.memory.copy_to(&mut self.before);
        if short_way && self.use_place(at, &walked, fill) {
            return true;
        }
        let fetched = self.ring.fetch(&mut self.readable, &mut self.writable);
        let (buffers, chain) = match (fetched, walked) {
            (Ok(Some(ours)), Ok((buffers, chain))) => {
                assert_eq!(ours, chain);
                (buffers, chain)
            }
            (Err(ours), Err(expected)) => {
                assert_eq!(ours, expected);
                assert_eq!(self.at(), at, "its chain is not taken");
                self.set_up_again();
                return false;
            }
            (fetched, walked) => panic!("{fetched:?} of {walked:?}"),
        };
        assert_eq!(self.at(), at.after(chain.entries, self.layout.size));
        for (list, writable) in [(&self.readable, false), (&self.writable, true)] {
            assert_eq!(list.len(), walk::octets(&buffers, writable));
        }
        let mut read = vec![0; self.readable.len() as usize];
        assert_eq!(self.readable.cursor().read(&mut read), read.len());
        let expected: Vec<u8> = (buffers.iter().filter(|buffer| !buffer.writable))
            .flat_map(|buffer| octets(self.memory, *buffer))
            .collect();
        assert!(read == expected, "other octets to read");
        let data = vec![fill; (self.writable.len() as usize).min(usize::from(fill) * 40)];
        assert_eq!(self.writable.cursor().write(&data), data.len());
        let room: Vec<_> = walk::room(&buffers).collect();
        self.spoilt |= room.iter().any(|&(addr, _)| addr < self.layout.device);
        self.memory.assert_unchanged_but(&self.before, &room);
        self.taken.push_back(Taken { at, chain, buffers });
        true
    }

    /// As [`Bed::fetch`], the short way, which only chains of one buffer in one mapping may take; and gives it back.
    fn use_place(
        &mut self,
        at: Place,
        walked: &Result<(Vec<Buffer>, Chain), Fault>,
        fill: u8,
    ) -> bool {
        if !self.taken.is_empty() {
            return false;
        }
        let wanted = 72;
        let access = if fill & 1 == 0 {
            Access::Read
        } else {
            Access::Write
        };
        let memory = self.memory;
        let used = self.ring.use_places(&memory.view, access, 1, |place| {
            if place.len() < wanted {
                return None;
            }
            let Ok((buffers, _)) = walked else {
                panic!("{walked:?} was taken as one place");
            };
            let &[only] = &buffers[..] else {
                panic!("{buffers:?} were taken as one place");
            };
            assert_eq!(place.len(), only.len as usize);
            assert_eq!(only.writable, access == Access::Write);
            if only.writable {
                assert!(place.write(&[fill; 12], &[fill; 60]));
                return Some(72);
            }
            let mut read = vec![0; only.len as usize];
            assert!(place.read(&mut read));
            assert!(read == octets(memory, only), "other octets to read");
            Some(0)
        });
        let (1, Ok((buffers, chain))) = (used, walked) else {
            return false;
        };
        let only = buffers[0];
        assert_eq!(self.at(), at.after(1, self.layout.size));
        self.spoilt |= only.writable && only.addr < self.layout.device;
        let (next, len) = (self.next_used, if only.writable { 72 } else { 0 });
        self.next_used = self.at();
        let first = self.used.first().map_or(next, |first| first.at);
        let mut allowed = vec![
            (first.address(&self.layout) + 8, 6),
            (only.addr, len.into()),
        ];
        if next != first {
            allowed.push((next.address(&self.layout) + 8, 8));
        }
        memory.assert_unchanged_but(&self.before, &allowed);
        self.used.push(Used {
            at: next,
            chain: *chain,
            writable: only.writable,
            len,
        });
        true
    }

    /// Gives chains back, in order if that was agreed upon, and shows them or not yet.
    fn give_back(&mut self, input: &mut Input<'_>) {
        let script = input.u8();
        if !self.in_order() && !self.taken.is_empty() {
            // Descriptors are used up one after the other: in another order only chains of the same length can be told apart.
            let turn = usize::from(script >> 4) % self.taken.len();
            let entries = self.taken[0].chain.entries;
            if self
                .taken
                .iter()
                .all(|taken| taken.chain.entries == entries)
            {
                self.taken.rotate_left(turn);
            }
        }
        if self.used.is_empty() {
            self.spoilt = false;
        }
        self.memory.copy_to(&mut self.before);
        let mut allowed = Vec::new();
        let count = self.taken.len().min(usize::from(script & 7) + 1);
        for taken in self.taken.drain(..count) {
            let writable = taken.buffers.iter().any(|buffer| buffer.writable);
            // Nobody writes where nothing is writable.
            // A device may complete without having written anything, and with IN_ORDER that shows.
            let writes = writable && input.u8() & 3 != 0;
            let len = if writes { input.u16().into() } else { 0 };
            self.ring.complete(taken.chain, len);
            let at = self.next_used;
            self.next_used = at.after(taken.chain.entries, self.layout.size);
            allowed.push((at.address(&self.layout) + 8, 8));
            self.used.push(Used {
                at,
                chain: taken.chain,
                writable,
                len,
            });
        }
        if let Some(first) = self.used.first() {
            // With IN_ORDER the first may come to stand for more.
            let place = first.at.address(&self.layout);
            allowed.push((place + 8, 6));
            let flags = Memory::get16(self.memory, place + 14);
            let mut then = Vec::new();
            self.memory.copy_to(&mut then);
            assert_eq!(
                flags,
                self.flags_before(first.at),
                "shown before it is published"
            );
        }
        self.memory.assert_unchanged_but(&self.before, &allowed);
        if script & 8 == 0 {
            self.memory.copy_to(&mut self.before);
            self.ring.publish();
            let first = self
                .used
                .first()
                .map(|first| first.at.address(&self.layout) + 14);
            let allowed: Vec<_> = first.map(|flags| (flags, 2)).into_iter().collect();
            self.memory.assert_unchanged_but(&self.before, &allowed);
            self.shown();
        }
    }

    /// The flags of the descriptor at `at` when memory was last copied.
    fn flags_before(&self, at: Place) -> u16 {
        let host = Memory::host_offset(at.address(&self.layout) + 14).expect("in the ring");
        u16::from_le_bytes([self.before[host], self.before[host + 1]])
    }

    /// The driver finds all that was given back, once, in order, and no more.
    fn shown(&mut self) {
        let size = self.layout.size;
        let used = std::mem::take(&mut self.used);
        let spoilt = std::mem::take(&mut self.spoilt);
        let mut at = if spoilt { used.len() } else { 0 };
        while let Some(first) = used.get(at) {
            let place = first.at.address(&self.layout);
            let flags = self.memory.get16(place + 14);
            assert_eq!(flags & 0x8080, first.at.used(), "not shown");
            let (len, id) = (
                u32::from_le(self.memory.get(place + 8).expect("in the ring")),
                self.memory.get16(place + 12),
            );
            assert_eq!(flags & !0x8080, if len > 0 { 2 } else { 0 });
            // Which one it stands for: with IN_ORDER perhaps a later one, if nothing could be written before.
            let stands_for = |used: &Used| used.chain.id == id && used.len == len;
            let skipped = |used: &Used| self.in_order() && !used.writable && used.len == 0;
            let last = (at..used.len())
                .take_while(|&last| used[at..last].iter().all(skipped))
                .filter(|&last| stands_for(&used[last]))
                .last();
            at = 1 + last.unwrap_or_else(|| panic!("{id} with {len} octets is none that is due"));
        }
        for used in &used {
            let places = (0..used.chain.entries).map(|count| used.at.after(count, size));
            self.unconsidered.extend(places);
        }
    }

    /// Chains that were taken last are put back.
    fn rewind(&mut self, input: &mut Input<'_>) {
        let count = usize::from(input.u8()).min(self.taken.len());
        let kept = self.taken.len() - count;
        let Some(first) = self.taken.get(kept) else {
            return;
        };
        let (size, position) = (self.layout.size, first.at);
        // Only what was taken in a row, with nothing behind.
        let mut place = position;
        for taken in self.taken.iter().skip(kept) {
            if taken.at != place {
                return;
            }
            place = place.after(taken.chain.entries, size);
        }
        if place != self.at() {
            return;
        }
        self.taken.truncate(kept);
        self.ring.rewind(position.word());
        self.short = Some((position, place));
        assert_eq!(self.at(), position);
    }

    /// Interrupts and kicks.
    fn tell(&mut self, input: &mut Input<'_>) {
        let size = self.layout.size;
        self.memory.copy_to(&mut self.before);
        let device_event = (self.layout.device, 4);
        let mut ask = |word: u32| {
            let changes = self.asked != Some(word);
            self.asked = Some(word);
            changes.then_some(word)
        };
        let (changed, expected) = match input.below(3) {
            0 => {
                let event = Place::from_word(self.memory.get16(self.layout.driver));
                let shown = std::mem::take(&mut self.unconsidered);
                let expected = match self.memory.get16(self.layout.driver + 2) & 3 {
                    _ if shown.is_empty() => false,
                    1 => false,
                    2 if self.event_idx() && event.index < size => shown.contains(&event),
                    _ => true,
                };
                assert_eq!(self.ring.needs_interrupt(), expected);
                (None, None)
            }
            1 => {
                let at = Place::from_word(self.ring.position());
                let known = match self.short {
                    Some((from, missing)) if from == at => missing,
                    _ => at,
                };
                let word = if self.features.contains(Features::EVENT_IDX) {
                    (2 << 16) | u32::from(known.word())
                } else {
                    0
                };
                let expected = ask(word);
                let available = known.is_available(self.memory, &self.layout);
                assert_eq!(self.ring.enable_kicks(), available);
                (Some(device_event), expected)
            }
            _ => {
                let expected = ask(1 << 16);
                self.ring.disable_kicks();
                (Some(device_event), expected)
            }
        };
        let changed: Vec<_> = changed.into_iter().collect();
        self.memory.assert_unchanged_but(&self.before, &changed);
        if let Some(word) = expected {
            let now = self.memory.get(self.layout.device).map(u32::from_le);
            assert_eq!(now, Some(word));
        }
    }
}
