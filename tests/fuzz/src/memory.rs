//! A small guest memory with canaries around it, and what has changed in it.

use std::sync::Arc;

use nic_device::memory::GuestMemory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileMemory,
};

use super::input::Input;
use super::walk::Buffer;

/// Octets of a page, and of each canary.
const PAGE: usize = 4096;

/// Octets that are compared at once.
const PIECE: usize = 128;

/// The canaries' octets.
const CANARY: u8 = 0xc5;

/// Where guest memory begins, in two mappings that adjoin; up to [`HOLE`].
pub const BORDER: u64 = 0x4000;
/// Guest addresses from here to [`HOLE_END`] are not mapped.
pub const HOLE: u64 = 0x6000;
/// Where the third mapping begins.
pub const HOLE_END: u64 = 0x8000;
/// Where it ends.
pub const END: u64 = 0x9000;

/// The mappings: guest address and octets.
const RANGES: [(u64, usize); 3] = [
    (0, BORDER as usize),
    (BORDER, (HOLE - BORDER) as usize),
    (HOLE_END, (END - HOLE_END) as usize),
];

/// Guest memory. Between and around its mappings lie canaries, in the host's memory.
#[derive(Debug)]
pub struct Memory {
    /// As the device sees it.
    pub view: Arc<GuestMemory>,
    /// As others do.
    pub mapped: Arc<GuestMemoryMmap>,
    backing: Arc<MmapRegion>,
    /// All of it when it was clear.
    clear: Vec<u8>,
}

impl Memory {
    /// Memory of zeros.
    ///
    /// # Panics
    /// If the host has none.
    #[must_use]
    pub fn new() -> Self {
        let pages: usize = RANGES.iter().map(|(_, len)| len + PAGE).sum();
        let backing = Arc::new(MmapRegion::<()>::new(pages + PAGE).expect("memory"));
        let mut clear = vec![CANARY; backing.size()];
        let mut at = PAGE;
        let mut regions = Vec::new();
        for (guest, len) in RANGES {
            clear[at..at + len].fill(0);
            let builder = MmapRegionBuilder::new(len)
                .with_mmap_prot(backing.prot())
                .with_mmap_flags(backing.flags());
            // SAFETY: `at + len` is within the backing, which is never unmapped.
            let builder = unsafe { builder.with_raw_mmap_pointer(backing.as_ptr().add(at)) };
            let region = builder.build().expect("a region of the backing");
            regions.push(GuestRegionMmap::new(region, GuestAddress(guest)).expect("no overflow"));
            at += len + PAGE;
        }
        let mapped = Arc::new(GuestMemoryMmap::from_regions(regions).expect("they do not overlap"));
        // Whoever was given a view of it may keep that.
        std::mem::forget(backing.clone());
        let memory = Memory {
            view: Arc::new(GuestMemory::new(mapped.clone())),
            mapped,
            backing,
            clear,
        };
        memory.reset();
        memory
    }

    fn slice(&self) -> vm_memory::VolatileSlice<'_> {
        self.backing.as_volatile_slice()
    }

    /// Makes all of it zeros again.
    pub fn reset(&self) {
        self.slice().copy_from(&self.clear);
    }

    /// What `look` makes of all of it, canaries too, as it is now.
    fn look<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: it is mapped for ever, and its octets may be anything. Nobody writes to it while they are borrowed: whoever has the
        // memory, the device too, runs on the thread that is here, and what is called below copies or compares, and keeps nothing.
        let all = unsafe { std::slice::from_raw_parts(self.backing.as_ptr(), self.backing.size()) };
        look(all)
    }

    /// Copies all of it, canaries too, into `copy`.
    pub fn copy_to(&self, copy: &mut Vec<u8>) {
        copy.clear();
        self.look(|now| copy.extend_from_slice(now));
    }

    /// The guest address of octet `at` of a copy; `None` for a canary's.
    #[must_use]
    pub fn guest_address(at: usize) -> Option<u64> {
        let mut start = PAGE;
        for (guest, len) in RANGES {
            if (start..start + len).contains(&at) {
                return Some(guest + (at - start) as u64);
            }
            start += len + PAGE;
        }
        None
    }

    /// Where guest address `addr` is in a copy.
    #[must_use]
    pub fn host_offset(addr: u64) -> Option<usize> {
        Self::place(addr, 1)
    }

    /// Where the `len` octets at `addr` are in a copy, if they are all in one mapping.
    fn place(addr: u64, len: usize) -> Option<usize> {
        let mut start = PAGE;
        for (guest, size) in RANGES {
            let at = addr.wrapping_sub(guest);
            if at < size as u64 && len <= size - at as usize {
                return Some(start + at as usize);
            }
            start += size + PAGE;
        }
        None
    }

    /// Panics if a canary has changed, or what lies in none of the places `allowed` (guest address and octets).
    ///
    /// # Panics
    /// That is what it is for.
    pub fn assert_unchanged_but(&self, before: &[u8], allowed: &[(u64, u64)]) {
        self.look(|now| assert_same(before, now, allowed));
    }

    /// Panics if a canary has changed.
    ///
    /// # Panics
    /// That is what it is for.
    pub fn assert_canaries(&self) {
        self.look(|now| {
            let mut start = 0;
            for (_, len) in RANGES.into_iter().chain([(0, 0)]) {
                let canary = start..start + PAGE;
                assert!(now[canary.clone()] == self.clear[canary], "a canary died");
                start += PAGE + len;
            }
        });
    }

    /// Whether `len` octets at `addr` are all guest memory.
    #[must_use]
    pub fn holds(addr: u64, len: u64) -> bool {
        let Some(end) = addr.checked_add(len) else {
            return false;
        };
        end <= HOLE || (addr >= HOLE_END && end <= END)
    }

    /// The octets at `addr`, if all are guest memory.
    #[must_use]
    pub fn get<T: ByteValued + Default>(&self, addr: u64) -> Option<T> {
        let mut value = T::default();
        let octets = value.as_mut_slice();
        // Looking a mapping up in the table takes long, and is needed where octets are in two.
        match Self::place(addr, octets.len()) {
            // SAFETY: the place is in the backing, and only raw copies are made of what is there.
            Some(at) => unsafe {
                let from = self.backing.as_ptr().add(at);
                from.copy_to_nonoverlapping(octets.as_mut_ptr(), octets.len());
            },
            None => (self.mapped.read_slice(octets, GuestAddress(addr))).ok()?,
        }
        Some(value)
    }

    /// The 16 bits at `addr`.
    ///
    /// # Panics
    /// If that is no guest memory.
    #[must_use]
    pub fn get16(&self, addr: u64) -> u16 {
        u16::from_le(self.get(addr).expect("guest memory"))
    }

    /// Writes `octets` to `addr`, as far as that is guest memory.
    pub fn put(&self, addr: u64, octets: &[u8]) {
        let _ = match Self::place(addr, octets.len()) {
            Some(at) => self.slice().write(octets, at).ok(),
            None => self.mapped.write(octets, GuestAddress(addr)).ok(),
        };
    }

    /// Writes 16 bits to `addr`.
    pub fn put16(&self, addr: u64, value: u16) {
        self.put(addr, &value.to_le_bytes());
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// Panics if two copies differ elsewhere than in `allowed`.
pub(crate) fn assert_same(before: &[u8], now: &[u8], allowed: &[(u64, u64)]) {
    if before == now {
        return;
    }
    // Most of it has not: it is looked for in pages, then in pieces.
    for (page, (before, now)) in differing(before, now, PAGE) {
        for (piece, (before, now)) in differing(before, now, PIECE) {
            let octets = before.iter().zip(now).enumerate();
            for (at, (old, new)) in octets.filter(|(_, (old, new))| old != new) {
                let Some(addr) = Memory::guest_address(page + piece + at) else {
                    panic!("a canary has changed from {old:#x} to {new:#x}");
                };
                let expected =
                    (allowed.iter()).any(|(start, len)| addr.wrapping_sub(*start) < *len);
                assert!(
                    expected,
                    "guest address {addr:#x} has changed from {old:#x} to {new:#x}"
                );
            }
        }
    }
}

/// The parts of `before` and `now`, of `len` octets each, that differ, and where they begin.
fn differing<'a>(
    before: &'a [u8],
    now: &'a [u8],
    len: usize,
) -> impl Iterator<Item = (usize, (&'a [u8], &'a [u8]))> {
    let parts = before.chunks(len).zip(now.chunks(len));
    (0..)
        .step_by(len)
        .zip(parts)
        .filter(|(_, (before, now))| before != now)
}

/// A guest address: mostly of memory, often near a border.
pub(crate) fn address(input: &mut Input<'_>) -> u64 {
    let raw = input.u16();
    let low = u64::from(raw & 0x1fff);
    match raw >> 13 {
        0..=2 => low % HOLE,
        3 => 0x2000 + low,
        4 => BORDER - 0x40 + low % 0x80,
        5 => HOLE_END + low % (END - HOLE_END),
        6 => HOLE - 0x100 + low % 0x180,
        _ => match raw & 3 {
            0 => u64::MAX - (low >> 2),
            1 => HOLE_END - 1 - (low >> 2) % 0x40,
            2 => END - 0x20 + (low >> 2) % 0x40,
            _ => low << 40,
        },
    }
}

/// Octets of a buffer: mostly few, sometimes none or very many.
pub(crate) fn length(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        short @ 0..=0xef => short.into(),
        0xf0..=0xfb => input.u16().into(),
        _ => input.u32(),
    }
}

/// What `buffer` holds.
pub(crate) fn octets(memory: &Memory, buffer: Buffer) -> Vec<u8> {
    let mut octets = vec![0; buffer.len as usize];
    let read = (memory.mapped).read_slice(&mut octets, GuestAddress(buffer.addr));
    read.expect("guest memory");
    octets
}
