//! The guest's memory: a table of mappings, and scatter lists of places in it.
//!
//! The table may be replaced at any time between two bursts; whoever holds pointers into the old one holds
//! the old one itself. The guest changes its memory as it likes while we look at it, so nothing here
//! ever makes a reference into it: octets are copied in and out, and what was copied is what is checked.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::EventFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use crate::ring::Fault;
use crate::sigbus::{Full, Guard};

mod cut;
pub use cut::Cut;

/// One contiguous piece of guest memory and where it is mapped here.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    guest: u64,
    len: u64,
    host: NonNull<u8>,
}

impl Mapping {
    const NOTHING: Mapping = Mapping {
        guest: 0,
        len: 0,
        host: NonNull::dangling(),
    };

    /// Where guest address `addr` is, if it is in here, and how many octets follow (at least one).
    #[inline(always)]
    fn locate(&self, addr: u64) -> Option<(NonNull<u8>, u64)> {
        let offset = addr.wrapping_sub(self.guest);
        if offset >= self.len {
            return None;
        }
        // SAFETY: `offset` is within the mapping, which is one allocation.
        let host = unsafe { self.host.add(offset as usize) };
        Some((host, self.len - offset))
    }
}

/// The table of mappings.
#[derive(Debug)]
pub struct GuestMemory {
    /// The longest: most of what a driver posts is there.
    longest: Mapping,
    /// All others, ordered by guest address.
    others: Vec<Mapping>,
    /// Sees to it that what is taken away behind us does not end the process; it goes before the mappings do.
    guard: Guard,
    /// Who hears that something was, once.
    alarm: Option<Arc<EventFd>>,
    told: AtomicBool,
    /// Keeps the mappings in place for as long as this table exists.
    mapped: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers are to shared mappings that live as long as `mapped`; all accesses through them are
// raw copies, which any thread may make.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; the table itself does not change.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// The mappings of `mapped`, which nobody else can take away: what is not there when it is touched ends the process.
    #[must_use]
    pub fn new(mapped: Arc<GuestMemoryMmap>) -> Self {
        Self::with(mapped, Guard::none(), None)
    }

    /// The mappings of `mapped`, files of somebody who may cut them short at any time. `alarm` is written to then, by
    /// [`GuestMemory::tell`].
    ///
    /// # Errors
    /// There are too many mappings in this process.
    pub fn guarded(mapped: Arc<GuestMemoryMmap>, alarm: Arc<EventFd>) -> Result<Self, Full> {
        let guard = Guard::new(cut::ranges(&mapped))?;
        Ok(Self::with(mapped, guard, Some(alarm)))
    }

    fn with(mapped: Arc<GuestMemoryMmap>, guard: Guard, alarm: Option<Arc<EventFd>>) -> Self {
        let mut others: Vec<_> = mapped
            .iter()
            .filter_map(|region| {
                let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
                Some(Mapping {
                    guest: region.start_addr().0,
                    len: region.len(),
                    host: NonNull::new(host)?,
                })
            })
            .collect();
        let longest = (0..others.len()).max_by_key(|&index| others[index].len);
        let longest = longest.map_or(Mapping::NOTHING, |index| others.remove(index));
        GuestMemory {
            longest,
            others,
            guard,
            alarm,
            told: AtomicBool::new(false),
            mapped,
        }
    }

    /// Whether something was touched that has been taken away: since then zeros are there, and nothing that was read counts.
    #[inline]
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.guard.is_struck()
    }

    /// What was taken away, and how it can be told.
    #[must_use]
    pub fn cut(&self) -> Option<Cut> {
        let (region, offset) = self.guard.struck()?;
        Cut::of(&self.mapped, region, offset)
    }

    /// Tells of it.
    #[cold]
    pub fn tell(&self) {
        if self.is_cut()
            && !self.told.swap(true, Ordering::Relaxed)
            && let Some(alarm) = &self.alarm
        {
            // It is never full: this is written once a table.
            let _ = alarm.write(1);
        }
    }

    /// Where `len` octets at guest address `addr` are, if they lie in one mapping.
    #[must_use]
    #[inline]
    pub fn find(&self, addr: u64, len: u64) -> Option<NonNull<u8>> {
        let Mapping {
            guest,
            len: room,
            host,
        } = self.longest;
        let offset = addr.wrapping_sub(guest);
        if offset < room && len <= room - offset {
            // SAFETY: `offset` is within the mapping, which is one allocation.
            return Some(unsafe { host.add(offset as usize) });
        }
        self.find_in_others(addr, len)
    }

    #[cold] // so that the way of most packets is short
    fn find_in_others(&self, addr: u64, len: u64) -> Option<NonNull<u8>> {
        let (host, room) = self.locate(addr)?;
        (len <= room).then_some(host)
    }

    /// Where guest address `addr` is, and how many octets follow in its mapping (at least one).
    #[inline]
    fn locate(&self, addr: u64) -> Option<(NonNull<u8>, u64)> {
        let mut mappings = [&self.longest].into_iter().chain(&self.others);
        mappings.find_map(|mapping| mapping.locate(addr))
    }

    /// Copies `N` octets at `addr` out of guest memory, each read once. They may span mappings that adjoin.
    #[must_use]
    #[inline]
    pub fn read<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        match self.find(addr, N as u64) {
            // SAFETY: `find` says that N octets are mapped there, and `self` keeps them mapped.
            Some(host) => Some(unsafe { read_once(host) }),
            None => self.read_pieces(addr),
        }
    }

    #[cold] // as `find_in_others`
    fn read_pieces<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (at, byte) in (0..).zip(&mut bytes) {
            let host = self.find(addr.checked_add(at)?, 1)?;
            // SAFETY: as in `read`.
            [*byte] = unsafe { read_once(host) };
        }
        Some(bytes)
    }
}

/// Copies `N` octets, each read once; word by word where that can be, for a volatile array is read octet by
/// octet.
///
/// # Safety
/// `host` is the place of `N` mapped octets.
#[inline]
unsafe fn read_once<const N: usize>(host: NonNull<u8>) -> [u8; N] {
    let mut bytes = [0; N];
    let words = host.cast::<u64>();
    if N.is_multiple_of(8) && words.is_aligned() {
        for (at, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the place; it is aligned.
            *word = unsafe { words.add(at).read_volatile() }.to_ne_bytes();
        }
    } else {
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the place.
            *byte = unsafe { host.add(at).read_volatile() };
        }
    }
    bytes
}

impl fmt::Display for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut mappings: Vec<_> = self.others.iter().chain([&self.longest]).collect();
        mappings.sort_by_key(|mapping| mapping.guest);
        for (index, mapping) in mappings.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{:#x}+{:#x}", mapping.guest, mapping.len)?;
        }
        Ok(())
    }
}

/// A place in guest memory that is mapped here.
#[derive(Clone, Copy, Debug)]
struct Segment {
    host: NonNull<u8>,
    len: usize,
}

/// What the device may do with a place in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write to it.
    Write,
}

/// A place in guest memory that is read or written while the lender of the memory keeps it mapped.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    segment: Segment,
    memory: PhantomData<&'a GuestMemory>,
}

impl<'a> Place<'a> {
    /// The `len` octets at guest address `addr` of `memory`, if they lie in one mapping.
    #[must_use]
    #[inline]
    pub fn new(memory: &'a GuestMemory, addr: u64, len: u32) -> Option<Self> {
        let host = memory.find(addr, len.into())?;
        let len = len as usize;
        Some(Place {
            segment: Segment { host, len },
            memory: PhantomData,
        })
    }

    /// Octets in it.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.segment.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has the processor fetch the first two cache lines, while other work is done.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self.segment.host);
    }

    /// Copies all of `header` to its beginning, and `body` behind. Returns false, with nothing done, if there is no room.
    #[must_use]
    #[inline(always)] // so that short copies of known length are a few moves
    pub fn write<const HEADER: usize>(self, header: &[u8; HEADER], body: &[u8]) -> bool {
        let place = self.segment.host.as_ptr();
        if HEADER + body.len() > self.segment.len {
            return false;
        }
        // SAFETY: so many octets are there, and the memory they are in is borrowed, so it stays mapped. Guest memory and our
        // buffers do not overlap. The guest may change it meanwhile; nothing is inferred from it.
        unsafe {
            ptr::copy_nonoverlapping(header.as_ptr(), place, HEADER);
            copy(body.as_ptr(), place.add(HEADER), body.len());
        }
        true
    }

    /// Its first `HEADER` octets and the place behind them, or `None` if it has fewer.
    #[must_use]
    #[inline(always)] // as `write`
    pub fn split<const HEADER: usize>(self) -> Option<([u8; HEADER], Place<'a>)> {
        let Segment { host, len } = self.segment;
        let len = len.checked_sub(HEADER)?;
        // SAFETY: so many octets are there; else as in `write`, the other way round.
        let (header, host) = unsafe {
            let header = host.cast::<[u8; HEADER]>().read_unaligned();
            (header, host.add(HEADER))
        };
        let segment = Segment { host, len };
        let memory = PhantomData;
        Some((header, Place { segment, memory }))
    }

    /// Fills all of `bytes` from its beginning. Returns false, with nothing done, if there are not as many octets.
    #[must_use]
    #[inline(always)] // as `write`
    pub fn read(self, bytes: &mut [u8]) -> bool {
        if bytes.len() > self.segment.len {
            return false;
        }
        // SAFETY: as in `write`, the other way round.
        unsafe { copy(self.segment.host.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }
}

/// Octets that a call of the system's copy is not worth it for.
const SHORT: usize = 128;

/// Copies `len` octets, short ones in overlapping moves of 16.
///
/// # Safety
/// As [`ptr::copy_nonoverlapping`].
#[inline(always)] // on the way of each packet
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    /// Moves 16 octets from `at` on.
    #[inline(always)]
    unsafe fn move16(from: *const u8, to: *mut u8, at: usize) {
        // SAFETY: the caller's promise.
        unsafe { ptr::copy_nonoverlapping(from.add(at), to.add(at), 16) }
    }
    // SAFETY: all moves are within the `len` octets that the caller vouches for.
    unsafe {
        if !(32..=SHORT).contains(&len) {
            ptr::copy_nonoverlapping(from, to, len);
            return;
        }
        if len > 64 {
            move16(from, to, 32);
            move16(from, to, 48);
            move16(from, to, len - 64);
            move16(from, to, len - 48);
        }
        move16(from, to, 0);
        move16(from, to, 16);
        move16(from, to, len - 32);
        move16(from, to, len - 16);
    }
}

/// Has the processor fetch the cache line at `host` and the one behind.
#[inline(always)]
fn prefetch(host: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = host.as_ptr().cast_const().cast::<i8>();
        // SAFETY: a hint, which reads nothing and faults nowhere, whatever the address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line);
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(64));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = host;
}

/// A list of places in guest memory that are read or written as if they were one.
#[derive(Debug)]
pub struct Scatter {
    memory: Arc<GuestMemory>,
    segments: Vec<Segment>,
    len: u64,
}

// SAFETY: the segments are pointers into `memory`, which may be used from any thread.
unsafe impl Send for Scatter {}

impl Scatter {
    /// An empty list over `memory` with room for `capacity` places.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, capacity: usize) -> Self {
        Scatter {
            memory,
            segments: Vec::with_capacity(capacity),
            len: 0,
        }
    }

    /// Empties the list.
    #[inline]
    pub fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
    }

    /// Octets in all places together.
    #[must_use]
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no place.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Appends `len` octets at guest address `addr`. They may span mappings that adjoin.
    ///
    /// # Errors
    /// [`Fault::AddressWraps`] and [`Fault::AddressOutOfRange`] if they are not all guest memory.
    #[inline]
    pub fn push(&mut self, addr: u64, len: u32) -> Result<(), Fault> {
        match self.memory.locate(addr) {
            Some((host, room)) if u64::from(len) <= room => {
                self.len += u64::from(len);
                let len = len as usize;
                self.segments.push(Segment { host, len });
                Ok(())
            }
            _ => self.push_pieces(addr, u64::from(len)),
        }
    }

    /// Appends what does not lie in one mapping.
    #[cold]
    fn push_pieces(&mut self, mut addr: u64, mut left: u64) -> Result<(), Fault> {
        if addr.checked_add(left).is_none() {
            return Err(Fault::AddressWraps);
        }
        self.len += left;
        while left > 0 {
            let (host, room) = self.memory.locate(addr).ok_or(Fault::AddressOutOfRange)?;
            let len = room.min(left);
            self.segments.push(Segment {
                host,
                len: len as usize,
            });
            addr += len;
            left -= len;
        }
        Ok(())
    }

    /// A cursor at the first octet.
    #[inline]
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor {
            segments: &self.segments,
            offset: 0,
        }
    }
}

/// A position in a [`Scatter`] that moves on with what is copied.
#[derive(Debug)]
pub struct Cursor<'a> {
    segments: &'a [Segment],
    offset: usize,
}

impl Cursor<'_> {
    /// Copies `bytes` into guest memory; returns how many octets there was room for.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        self.advance(bytes.len(), |host, done, len| {
            let source = &bytes[done..done + len];
            // SAFETY: `advance` gives a place with `len` mapped octets. Guest memory and our buffers
            // do not overlap. The guest may change it meanwhile; nothing is inferred from it.
            unsafe { copy(source.as_ptr(), host.as_ptr(), len) }
        })
    }

    /// Copies guest memory into `bytes`; returns how many octets there were.
    #[inline]
    pub fn read(&mut self, bytes: &mut [u8]) -> usize {
        self.advance(bytes.len(), |host, done, len| {
            let target = &mut bytes[done..done + len];
            // SAFETY: as in `write`, the other way round.
            unsafe { copy(host.as_ptr(), target.as_mut_ptr(), len) }
        })
    }

    /// Calls `copy(place, octets done before, octets here)` for each place of the next `len` octets.
    #[inline]
    fn advance(&mut self, len: usize, mut copy: impl FnMut(NonNull<u8>, usize, usize)) -> usize {
        if let Some(first) = self.segments.first()
            && len < first.len - self.offset
        {
            // SAFETY: `offset` is below the segment's length.
            copy(unsafe { first.host.add(self.offset) }, 0, len);
            self.offset += len;
            return len;
        }
        let mut done = 0;
        while done < len {
            let Some((segment, rest)) = self.segments.split_first() else {
                break;
            };
            let here = (segment.len - self.offset).min(len - done);
            // SAFETY: `offset` is at most the segment's length.
            copy(unsafe { segment.host.add(self.offset) }, done, here);
            done += here;
            self.offset += here;
            if self.offset == segment.len {
                self.segments = rest;
                self.offset = 0;
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    /// Two mappings that adjoin, a hole, and a third.
    fn memory() -> (Arc<GuestMemoryMmap>, Arc<GuestMemory>) {
        let ranges = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)];
        let ranges = ranges.map(|(addr, len)| (GuestAddress(addr), len));
        let mapped = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        (mapped.clone(), Arc::new(GuestMemory::new(mapped)))
    }

    #[test]
    fn places_may_span_mappings_that_adjoin_but_no_hole() {
        let (mapped, memory) = memory();
        let mut list = Scatter::new(memory, 4);
        list.push(0x1ff0, 0x20).unwrap();
        list.push(0x8000, 4).unwrap();
        assert_eq!(list.len(), 0x24);
        let bytes: Vec<u8> = (0..0x24).collect();
        assert_eq!(list.cursor().write(&bytes), 0x24);
        let mut back = [0; 0x24];
        mapped
            .read_slice(&mut back[..0x20], GuestAddress(0x1ff0))
            .unwrap();
        mapped
            .read_slice(&mut back[0x20..], GuestAddress(0x8000))
            .unwrap();
        assert_eq!(back[..], bytes[..]);
        let mut back = [0; 0x30];
        assert_eq!(list.cursor().read(&mut back), 0x24);
        assert_eq!(back[..0x24], bytes[..]);
        assert_eq!(list.push(0x2ff0, 0x20), Err(Fault::AddressOutOfRange));
        assert_eq!(list.push(0x0, 1), Err(Fault::AddressOutOfRange));
        assert_eq!(list.push(u64::MAX, 2), Err(Fault::AddressWraps));
    }

    #[test]
    fn a_place_is_written_up_to_its_end() {
        let (mapped, memory) = memory();
        let place = Place::new(&memory, 0x8ffc, 4).unwrap();
        assert!(!place.write(&[9], &[9; 4]));
        assert!(place.write(&[1, 2, 3], &[4]));
        let mut back = [0; 4];
        mapped.read_slice(&mut back, GuestAddress(0x8ffc)).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
        let (first, rest) = place.split().unwrap();
        assert_eq!((first, rest.len()), ([1, 2, 3], 1));
        let mut back = [0; 1];
        assert!(rest.read(&mut back) && !rest.read(&mut [0; 2]));
        assert_eq!(back, [4]);
        assert!(place.split::<5>().is_none());
        assert!(Place::new(&memory, 0x8ffc, 5).is_none());
        assert!(Place::new(&memory, 0x1ff0, 0x20).is_none());
    }

    #[test]
    fn a_range_must_lie_in_one_mapping_to_be_found() {
        let (mapped, memory) = memory();
        assert!(memory.find(0x1000, 0x1000).is_some());
        assert!(memory.find(0x1000, 0x1001).is_none());
        assert!(memory.find(0x8fff, 1).is_some() && memory.find(0x9000, 1).is_none());
        mapped
            .write_slice(&[1, 2, 3], GuestAddress(0x8ffd))
            .unwrap();
        assert_eq!(memory.read::<3>(0x8ffd), Some([1, 2, 3]));
        assert_eq!(memory.read::<4>(0x8ffd), None);
        mapped
            .write_slice(&[4, 5, 6], GuestAddress(0x1ffe))
            .unwrap();
        assert_eq!(memory.read::<3>(0x1ffe), Some([4, 5, 6]));
        assert_eq!(memory.read::<2>(u64::MAX), None);
    }
}
