//! A driver of packed virtqueues, for tests.
//!
//! As [`super::Driver`] it writes the ring field by field from the specification (VIRTIO 1.3, 2.8), slowly, shares nothing with
//! the device's code, and can be told to do what no driver may.

use std::collections::VecDeque;

use super::{BORDER, Buffer, Guest, HOLE, HOLE_END, INDIRECT, NEXT, Posts, WRITE};
use crate::ring::Layout;

/// What the driver may want to hear of.
pub(crate) const ENABLE: u16 = 0;
pub(crate) const DISABLE: u16 = 1;
pub(crate) const DESCRIPTOR: u16 = 2;

/// A place in a ring with the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) index: u16,
    pub(crate) wrap: bool,
}

impl Place {
    pub(crate) fn from_word(word: u16) -> Self {
        Place {
            index: word % 0x8000,
            wrap: word >= 0x8000,
        }
    }

    pub(crate) fn word(self) -> u16 {
        self.index + if self.wrap { 0x8000 } else { 0 }
    }

    /// The place behind it in a ring of `size`.
    #[must_use]
    pub(crate) fn next(self, size: u16) -> Self {
        if self.index + 1 == size {
            Place {
                index: 0,
                wrap: !self.wrap,
            }
        } else {
            Place {
                index: self.index + 1,
                ..self
            }
        }
    }

    /// The place `count` behind it.
    #[must_use]
    pub(crate) fn after(self, count: u16, size: u16) -> Self {
        (0..count).fold(self, |at, _| at.next(size))
    }

    /// AVAIL (bit 7) and USED (bit 15) of an available descriptor here.
    pub(crate) fn available(self) -> u16 {
        if self.wrap { 1 << 7 } else { 1 << 15 }
    }
}

/// A descriptor as a driver writes it, but for AVAIL and USED.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

/// The driver of one packed virtqueue.
pub(crate) struct PackedDriver {
    pub(crate) guest: Guest,
    pub(crate) layout: Layout,
    /// Where the next descriptor goes.
    pub(crate) next: Place,
    /// Where the next used descriptor is looked for.
    pub(crate) seen: Place,
    /// Descriptors that are not the device's.
    pub(crate) free: u16,
    /// Buffers that are the device's, in the order in which they were posted, each with how many descriptors it takes.
    posted: VecDeque<(u16, u16)>,
    /// Whether IN_ORDER was negotiated, and how many buffers had no used descriptor of their own.
    pub(crate) in_order: bool,
    pub(crate) skipped: usize,
    /// The next buffer's identifier: any will do, and none says where the buffer is.
    id: u16,
}

impl PackedDriver {
    /// A ring of `size` at guest address `base` that begins at `start`.
    pub(crate) fn new(guest: &Guest, base: u64, size: u16, start: Place) -> Self {
        let events = base + 16 * u64::from(size);
        let driver = PackedDriver {
            guest: guest.clone(),
            layout: Layout {
                size,
                descriptors: base,
                driver: events,
                device: events + 4,
                base: Some(start.word()),
            },
            next: start,
            seen: start,
            free: size,
            posted: VecDeque::new(),
            in_order: false,
            skipped: 0,
            id: 0xfff0,
        };
        // Each descriptor looks used by the round before.
        let mut at = start;
        for _ in 0..size {
            let used = if at.wrap { 0 } else { 0x8080 };
            driver.write(at.index, 0, 0, 0, used);
            at = at.next(size);
        }
        driver
    }

    /// Guest address of descriptor `index`.
    pub(crate) fn slot(&self, index: u16) -> u64 {
        self.layout.descriptors + 16 * u64::from(index)
    }

    /// Writes all of descriptor `index`.
    pub(crate) fn write(&self, index: u16, addr: u64, len: u32, id: u16, flags: u16) {
        write(&self.guest, self.slot(index), addr, len, id, flags);
    }

    /// Posts `buffers` as a chain, and returns its identifier.
    pub(crate) fn post(&mut self, buffers: &[Buffer]) -> u16 {
        let id = self.new_id();
        let last = buffers.len() - 1;
        let chain: Vec<_> = (buffers.iter().enumerate())
            .map(|(at, buffer)| Raw {
                addr: buffer.addr,
                len: buffer.len,
                // Only that of the last counts.
                id: if at == last { id } else { !id },
                flags: flag(*buffer) | if at == last { 0 } else { NEXT },
            })
            .collect();
        self.post_raw(&chain);
        id
    }

    /// Posts `buffers` in an indirect table at guest address `table`, and returns the identifier.
    pub(crate) fn post_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (at, buffer) in (0..).zip(buffers) {
            // Nothing of flags and identifier counts but WRITE.
            let flags = flag(*buffer) | (0xffff - WRITE);
            let entry = table + 16 * at;
            write(&self.guest, entry, buffer.addr, buffer.len, 0xabcd, flags);
        }
        let id = self.new_id();
        self.post_raw(&[Raw {
            addr: table,
            len: 16 * buffers.len() as u32,
            id,
            flags: INDIRECT,
        }]);
        id
    }

    fn new_id(&mut self) -> u16 {
        self.id = self.id.wrapping_add(1);
        self.id
    }

    /// Makes `chain` available, whatever it is: the first descriptor's flags last.
    pub(crate) fn post_raw(&mut self, chain: &[Raw]) {
        let size = self.layout.size;
        assert!(chain.len() <= usize::from(self.free));
        let mut at = self.next;
        for raw in chain {
            let hidden = at == self.next;
            let flags = if hidden {
                // As it was.
                self.guest.read16(self.slot(at.index) + 14)
            } else {
                raw.flags | at.available()
            };
            self.write(at.index, raw.addr, raw.len, raw.id, flags);
            at = at.next(size);
        }
        let first = self.slot(self.next.index) + 14;
        self.guest
            .write16(first, chain[0].flags | self.next.available());
        let last = chain.last().unwrap();
        self.posted.push_back((last.id, chain.len() as u16));
        self.next = at;
        self.free -= chain.len() as u16;
    }

    /// Takes back what the device has used since the last call: identifiers and lengths.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        loop {
            let slot = self.slot(self.seen.index);
            let flags = self.guest.read16(slot + 14);
            let expected = if self.seen.wrap { 0x8080 } else { 0 };
            // In the first round, nothing tells a descriptor of zeros from one that was used.
            if flags & 0x8080 != expected || self.free == self.layout.size {
                return used;
            }
            let (len, id) = (self.guest.read32(slot + 8), self.guest.read16(slot + 12));
            assert_eq!(flags & !0x8080, if len > 0 { WRITE } else { 0 });
            loop {
                let (next, entries) = self.posted.pop_front().expect("a buffer that is posted");
                self.seen = self.seen.after(entries, self.layout.size);
                self.free += entries;
                if next == id {
                    break;
                }
                assert!(self.in_order, "buffer {next} is missing");
                self.skipped += 1;
                used.push((next, 0));
            }
            used.push((id, len));
        }
    }

    /// Says what the driver wants to hear of.
    pub(crate) fn set_event(&self, at: Place, flags: u16) {
        self.guest.write16(self.layout.driver, at.word());
        self.guest.write16(self.layout.driver + 2, flags);
    }

    /// What the device wants to hear of.
    pub(crate) fn device_event(&self) -> (Place, u16) {
        let word = |at| self.guest.read16(self.layout.device + at);
        (Place::from_word(word(0)), word(2))
    }

    /// Whether a driver would kick once it has made available what lies between `old` and its next place.
    pub(crate) fn would_kick(&self, old: Place, event_idx: bool) -> bool {
        match self.device_event() {
            (_, ENABLE) => true,
            (at, DESCRIPTOR) if event_idx => {
                let mut passed = old;
                while passed != self.next {
                    if passed == at {
                        return true;
                    }
                    passed = passed.next(self.layout.size);
                }
                false
            }
            _ => false,
        }
    }

    /// A second, naive walk of the chain at `at`, or nothing if it is malformed: its buffers, its identifier, and how
    /// many descriptors it takes.
    pub(crate) fn reference(&self, at: Place) -> Option<(Vec<Buffer>, u16, u16)> {
        let size = self.layout.size;
        let (mut buffers, mut at) = (Vec::new(), at);
        loop {
            let (addr, len, id, flags) = self.read(self.slot(at.index))?;
            if flags & INDIRECT != 0 {
                if flags & NEXT != 0 || !buffers.is_empty() || len == 0 || len % 16 != 0 {
                    return None;
                }
                for entry in 0..u64::from(len / 16) {
                    if entry == u64::from(size) {
                        return None;
                    }
                    let (addr, len, _, flags) = self.read(addr.checked_add(16 * entry)?)?;
                    buffers.push(sound(&buffers, addr, len, flags)?);
                }
                return Some((buffers, id, 1));
            }
            buffers.push(sound(&buffers, addr, len, flags)?);
            if flags & NEXT == 0 {
                let entries = buffers.len() as u16;
                return Some((buffers, id, entries));
            }
            if buffers.len() == usize::from(size) {
                return None;
            }
            at = at.next(size);
        }
    }

    /// The descriptor at guest address `at`, if that is memory.
    fn read(&self, at: u64) -> Option<(u64, u32, u16, u16)> {
        mapped(at, 16)?;
        let addr = u64::from_le_bytes(self.guest.read(at, 8).try_into().unwrap());
        let (id, flags) = (self.guest.read16(at + 12), self.guest.read16(at + 14));
        Some((addr, self.guest.read32(at + 8), id, flags))
    }
}

impl Posts for PackedDriver {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn post(&mut self, buffers: &[Buffer]) -> u16 {
        self.post(buffers)
    }

    fn used(&mut self) -> Vec<(u16, u32)> {
        self.used()
    }
}

fn flag(buffer: Buffer) -> u16 {
    if buffer.writable { WRITE } else { 0 }
}

fn write(guest: &Guest, at: u64, addr: u64, len: u32, id: u16, flags: u16) {
    guest.write(at, &addr.to_le_bytes());
    guest.write(at + 8, &len.to_le_bytes());
    guest.write16(at + 12, id);
    guest.write16(at + 14, flags);
}

/// Whether so much memory is where [`Guest::new`] maps it.
fn mapped(addr: u64, len: u64) -> Option<()> {
    let end = addr.checked_add(len)?;
    let last = HOLE_END + BORDER;
    (end <= HOLE || (addr >= HOLE_END && end <= last)).then_some(())
}

/// The buffer that a descriptor describes, if it may follow `before`.
fn sound(before: &[Buffer], addr: u64, len: u32, flags: u16) -> Option<Buffer> {
    mapped(addr, len.into())?;
    let writable = flags & WRITE != 0;
    let late = !writable && before.last().is_some_and(|last| last.writable);
    (len > 0 && !late).then_some(Buffer {
        addr,
        len,
        writable,
    })
}
