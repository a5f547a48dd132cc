//! The packed virtqueue (VIRTIO 1.3, 2.8).
//!
//! One ring of descriptors in guest memory that both sides write: the driver makes descriptors available in its order, and
//! the device overwrites the first of each chain to say that it was used. Two small structures say who wants to hear of
//! what ([`events`]). A burst costs one load and one copy of each descriptor, and one store into each first one.
//!
//! The driver looks at used descriptors in their order, and no further than the first that is not. So those of a burst are
//! written as they are completed, but for the first one's flags: with them [`Ring::publish`] shows all.
//!
//! With IN_ORDER one used descriptor stands for a whole burst of buffers that the device only read (VIRTIO 1.3, 2.8.9).
//!
//! How far the device has got stands nowhere in the ring: whoever takes one over has to be told ([`Layout::base`]).

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::features::Features;
use crate::memory::{Access, GuestMemory, Place, Scatter};
use crate::notify::Word;
use crate::ring::{BadRing, Chain, Fault, Layout, Ring, RingState};

pub mod cursor;
pub mod events;

use cursor::{Cursor, STATE};
use events::{Event, EventWords, Events};

/// `struct pvirtq_desc`, copied out of guest memory (VIRTIO 1.3, 2.8.13).
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
struct Descriptor {
    addr: U64,
    len: U32,
    id: U16,
    flags: U16,
}

const DESCRIPTOR: usize = size_of::<Descriptor>();
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// The largest ring (VIRTIO 1.3, 2.8).
const MAX_SIZE: u16 = 1 << 15;
/// Octets of an event suppression structure (VIRTIO 1.3, 2.8.14).
const EVENT: u64 = 4;

/// The descriptor ring and the event suppression structures; the mapping that they lie in is the [`PackedRing`]'s to keep.
#[derive(Debug)]
struct Areas {
    descriptors: NonNull<u8>,
    driver: NonNull<u8>,
    device: NonNull<u8>,
    size: u16,
}

/// A descriptor in the ring.
#[derive(Clone, Copy)]
struct Slot<'a> {
    host: NonNull<u8>,
    areas: PhantomData<&'a Areas>,
}

impl<'a> Slot<'a> {
    /// Its flags, by which it changes hands.
    #[inline(always)]
    fn flags(self) -> &'a AtomicU16 {
        // SAFETY: the flags are the last word of a descriptor, which is mapped and aligned to 16, and the ring's `memory`
        // keeps it mapped. The driver shares them with us, which an atomic allows.
        unsafe { AtomicU16::from_ptr(self.host.cast().add(7).as_ptr()) }
    }

    /// The one behind it; behind the ring's last one there is none, and nobody may look at it.
    #[inline(always)]
    fn next(self) -> Self {
        // SAFETY: within the ring, or at its end.
        let host = unsafe { self.host.add(DESCRIPTOR) };
        Slot { host, ..self }
    }

    /// A private copy of it.
    #[inline(always)]
    fn copy(self) -> Descriptor {
        // SAFETY: the descriptor is mapped and aligned.
        let words = unsafe { self.host.cast::<[u64; 2]>().read_volatile() };
        zerocopy::transmute!(words)
    }

    /// Writes a used descriptor over it, but for the address, which means nothing there.
    #[inline(always)]
    fn use_up(self, id: u16, len: u32, flags: u16) {
        let id_and_flags = u32::from(id) | (u32::from(flags) << 16);
        let words = self.host.cast::<u32>();
        // SAFETY: the second half of a descriptor, which is mapped and aligned.
        unsafe {
            words.add(2).write_volatile(len.to_le());
            words.add(3).write_volatile(id_and_flags.to_le());
        }
    }

    /// As [`Slot::use_up`], but its flags stay as they are.
    #[inline(always)]
    fn prepare(self, id: u16, len: u32) {
        // SAFETY: length and identifier within a descriptor, which is mapped and aligned.
        unsafe {
            let words = self.host.cast::<u32>();
            words.add(2).write_volatile(len.to_le());
            words.add(3).cast::<u16>().write_volatile(id.to_le());
        }
    }
}

impl Areas {
    /// Descriptor `index`.
    #[inline(always)]
    fn slot(&self, index: u16) -> Slot<'_> {
        debug_assert!(index < self.size);
        // SAFETY: `PackedRing::new` made sure that the ring is mapped, and `index` is within it.
        let host = unsafe { self.descriptors.add(DESCRIPTOR * usize::from(index)) };
        Slot {
            host,
            areas: PhantomData,
        }
    }

    /// Whether the driver has made the descriptor at `at` available. If so, what it had written before can be read
    /// from now on.
    #[inline(always)]
    fn is_available(&self, at: Cursor) -> bool {
        self.slot(at.index()).flags().get_acquire() & STATE == at.available()
    }
}

impl EventWords for Areas {
    #[inline]
    fn driver_event(&self) -> u32 {
        // SAFETY: `PackedRing::new` made sure that the structure is mapped and aligned, and its `memory` keeps it mapped.
        let event = unsafe { AtomicU32::from_ptr(self.driver.cast().as_ptr()) };
        u32::from_le(event.load(Ordering::Relaxed))
    }

    #[inline]
    fn set_device_event(&self, event: u32) {
        // SAFETY: as in `driver_event`.
        let word = unsafe { AtomicU32::from_ptr(self.device.cast().as_ptr()) };
        word.store(event.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// A packed virtqueue in guest memory.
#[derive(Debug)]
pub struct PackedRing {
    memory: Arc<GuestMemory>,
    areas: Areas,
    indirect: bool,
    in_order: bool,
    /// The next descriptor to take.
    next: Cursor,
    /// Where the next used descriptor goes.
    used: Cursor,
    /// Up to where the driver was shown what was used, and the flags that will show it the rest.
    shown: Cursor,
    show: u16,
    /// How many of its descriptors are used that the driver was not shown.
    hidden: u32,
    /// Whether the first used descriptor that is hidden may stand for all that are.
    batch: bool,
    events: Events,
    /// What was available up to here was not enough when the next one to take was `short_from`: only more of it is worth a kick.
    short: bool,
    short_from: Cursor,
    short_at: Cursor,
}

/// The base that a front-end gives which knows of split rings only (User-mode Linux). It may also be a place: the beginning of any
/// even round. But then the first descriptor was made available in the round before, and has flags that say so, or that
/// it was used or made available since: in a new ring it has none.
const UNTOLD: u16 = 0;

// SAFETY: the pointers lie in `memory`, which may be used from any thread.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// The ring at `layout`, going on at its base.
    ///
    /// # Errors
    /// The layout is not one of a ring in `memory`, or the base not a place in the ring.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &Layout,
        features: Features,
    ) -> Result<Self, BadRing> {
        let size = layout.size;
        if size == 0 || size > MAX_SIZE {
            return Err(BadRing::Size(size));
        }
        let base = layout.base.unwrap_or(Cursor::START);
        let mut start = Cursor::new(base);
        if start.index() >= size {
            return Err(BadRing::Base { base, size });
        }
        let part = |part, addr, len, align| BadRing::place(&memory, part, addr, len, align);
        let octets = DESCRIPTOR as u64 * u64::from(size);
        let areas = Areas {
            descriptors: part("descriptor ring", layout.descriptors, octets, 16)?,
            driver: part("driver's event suppression", layout.driver, EVENT, 4)?,
            device: part("device's event suppression", layout.device, EVENT, 4)?,
            size,
        };
        if base == UNTOLD && areas.slot(0).copy().flags.get() & STATE == 0 {
            start = Cursor::new(Cursor::START);
        }
        let event_idx = features.contains(Features::EVENT_IDX);
        Ok(PackedRing {
            memory,
            areas,
            indirect: features.contains(Features::INDIRECT_DESC),
            in_order: features.contains(Features::IN_ORDER),
            next: start,
            used: start,
            shown: start,
            show: 0,
            hidden: 0,
            batch: features.contains(Features::IN_ORDER),
            events: Events::new(size, event_idx),
            short: false,
            short_from: start,
            short_at: start,
        })
    }

    /// Walks the chain that starts at the next descriptor, whose `flags` and `first` copy are at hand.
    #[inline(never)]
    fn walk(
        &self,
        flags: u16,
        first: Descriptor,
        readable: &mut Scatter,
        writable: &mut Scatter,
    ) -> Result<Chain, Fault> {
        let mut sorter = Sorter::new(readable, writable);
        if flags & INDIRECT != 0 {
            if !self.indirect {
                return Err(Fault::IndirectNotNegotiated);
            }
            if flags & NEXT != 0 {
                return Err(Fault::IndirectWithNext);
            }
            self.walk_table(first, &mut sorter)?;
            return Ok(Chain::new(first.id.get()));
        }
        let (mut at, mut flags, mut descriptor) = (self.next, flags, first);
        for entries in 1..=self.areas.size {
            sorter.push(descriptor, flags)?;
            if flags & NEXT == 0 {
                sorter.finish()?;
                let id = descriptor.id.get();
                return Ok(Chain { id, entries });
            }
            // The driver wrote it before the flags of the first, so it is whole.
            at = at.after(1, self.areas.size);
            descriptor = self.areas.slot(at.index()).copy();
            flags = descriptor.flags.get();
            if flags & INDIRECT != 0 {
                return Err(Fault::IndirectWithNext);
            }
        }
        Err(Fault::ChainTooLong)
    }

    /// Walks the indirect table that `reference` refers to: all of it, in order (VIRTIO 1.3, 2.8.8).
    fn walk_table(&self, reference: Descriptor, sorter: &mut Sorter<'_>) -> Result<(), Fault> {
        let len = reference.len.get();
        if len == 0 || !(len as usize).is_multiple_of(DESCRIPTOR) {
            return Err(Fault::IndirectLength);
        }
        let entries = len / DESCRIPTOR as u32;
        if entries > u32::from(self.areas.size) {
            return Err(Fault::ChainTooLong);
        }
        for index in 0..entries {
            let addr = (reference.addr.get())
                .checked_add(DESCRIPTOR as u64 * u64::from(index))
                .ok_or(Fault::AddressWraps)?;
            let bytes: [u8; DESCRIPTOR] = self.memory.read(addr).ok_or(Fault::AddressOutOfRange)?;
            let descriptor: Descriptor = zerocopy::transmute!(bytes);
            // Its other flags mean nothing.
            sorter.push(descriptor, descriptor.flags.get() & WRITE)?;
        }
        sorter.finish()
    }

    /// How far the driver has made descriptors available. Only a look at all of them can tell.
    fn available(&self) -> Cursor {
        let mut at = self.next;
        for _ in 0..self.areas.size {
            if !self.areas.is_available(at) {
                break;
            }
            at = at.after(1, self.areas.size);
        }
        at
    }
}

/// Puts the buffers of one chain where they belong.
struct Sorter<'a> {
    readable: &'a mut Scatter,
    writable: &'a mut Scatter,
    seen_writable: bool,
    /// Octets that were in the two lists before.
    before: u64,
}

impl<'a> Sorter<'a> {
    fn new(readable: &'a mut Scatter, writable: &'a mut Scatter) -> Self {
        Sorter {
            before: readable.len() + writable.len(),
            readable,
            writable,
            seen_writable: false,
        }
    }

    fn push(&mut self, descriptor: Descriptor, flags: u16) -> Result<(), Fault> {
        let (addr, len) = (descriptor.addr.get(), descriptor.len.get());
        if len == 0 {
            return Err(Fault::ZeroLength);
        }
        if flags & WRITE != 0 {
            self.seen_writable = true;
            self.writable.push(addr, len)
        } else if self.seen_writable {
            Err(Fault::ReadableAfterWritable)
        } else {
            self.readable.push(addr, len)
        }
    }

    fn finish(self: &Sorter<'a>) -> Result<(), Fault> {
        if self.readable.len() + self.writable.len() - self.before > 1 << 32 {
            return Err(Fault::ChainTooBig);
        }
        Ok(())
    }
}

impl Ring for PackedRing {
    fn state(&self) -> RingState {
        let wanted = self.events.wanted(&self.areas);
        RingState {
            size: self.areas.size,
            available: self.available().word(),
            taken: self.next.word(),
            used: self.used.word(),
            interrupt_after: match wanted {
                Event::Descriptor(at) => Some(at.word()),
                _ => None,
            },
            interrupts_wanted: match wanted {
                Event::Descriptor(_) => None,
                Event::Enable => Some(true),
                Event::Disable => Some(false),
            },
        }
    }

    #[inline]
    fn size(&self) -> u16 {
        self.areas.size
    }

    /// How many there are, only [`Ring::fetch`] finds out.
    #[inline(always)] // on the way of each burst, and small
    fn begin(&mut self) -> Result<u16, Fault> {
        self.short = false;
        Ok(if self.has_next() { self.areas.size } else { 0 })
    }

    #[inline(always)] // as `begin`
    fn has_next(&self) -> bool {
        self.areas.is_available(self.next)
    }

    #[inline(always)] // on the way of each packet, and small
    fn fetch(
        &mut self,
        readable: &mut Scatter,
        writable: &mut Scatter,
    ) -> Result<Option<Chain>, Fault> {
        let (next, size) = (self.next, self.areas.size);
        let slot = self.areas.slot(next.index());
        // These first, and what they vouch for afterwards.
        let flags = slot.flags().get_acquire();
        if flags & STATE != next.available() {
            return Ok(None);
        }
        let descriptor = slot.copy();
        let len = descriptor.len.get();
        let chain = if flags & (NEXT | INDIRECT) != 0 || len == 0 {
            self.walk(flags, descriptor, readable, writable)?
        } else {
            let list = if flags & WRITE == 0 {
                readable
            } else {
                &mut *writable
            };
            list.push(descriptor.addr.get(), len)?;
            Chain::new(descriptor.id.get())
        };
        self.batch &= writable.is_empty();
        self.next = next.after(chain.entries, size);
        Ok(Some(chain))
    }

    #[inline(always)] // on the way of each packet
    fn use_places<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        count: usize,
        mut each: impl FnMut(Place<'m>) -> Option<u32>,
    ) -> usize {
        if self.next != self.used {
            return 0;
        }
        let written = match access {
            Access::Read => 0,
            Access::Write => WRITE,
        };
        let (size, start) = (self.areas.size, self.next);
        let (available, used) = (start.available() | written, start.used() | written);
        self.batch &= access == Access::Read;
        let batch = self.batch;
        let shown = self.areas.slot(self.shown.index());
        let mut flags = used;
        if self.used == self.shown {
            // The first one's are written last, by `publish`; until then they stay what they are.
            self.show = used;
            flags = available;
        }
        // Behind the ring's end other flags count.
        let count = count.min(usize::from(size - start.index())) as u16;
        let mut slot = self.areas.slot(start.index());
        let mut done = 0;
        while done < count {
            if slot.flags().get_acquire() != available {
                break;
            }
            let Descriptor { addr, len, id, .. } = slot.copy();
            let place = Place::new(memory, addr.get(), len.get());
            let Some(len) = place.and_then(&mut each) else {
                break;
            };
            debug_assert_eq!(len > 0, access == Access::Write);
            if batch {
                shown.prepare(id.get(), len);
            } else {
                slot.use_up(id.get(), len, flags);
                flags = used;
            }
            slot = slot.next();
            done += 1;
        }
        self.next = start.after(done, size);
        self.used = self.next;
        self.hidden += u32::from(done);
        done.into()
    }

    #[inline(always)]
    fn position(&self) -> u16 {
        self.next.word()
    }

    #[inline]
    fn rewind(&mut self, position: u16) {
        self.short = true;
        // The first that was not available when it was looked for: whether a later one is enough only a try can tell.
        self.short_at = self.next;
        self.next = Cursor::new(position);
        self.short_from = self.next;
    }

    #[inline(always)] // on the way of each packet, and small
    fn complete(&mut self, chain: Chain, len: u32) {
        let used = self.used;
        let written = if len == 0 { 0 } else { WRITE };
        let flags = used.used() | written;
        if used == self.shown {
            self.areas.slot(used.index()).prepare(chain.id, len);
            self.show = flags;
            self.batch &= len == 0;
        } else if self.batch && len == 0 {
            // It has the identifier of the last one. The driver assumes of those that it is not told of that all was written.
            self.areas.slot(self.shown.index()).prepare(chain.id, 0);
        } else {
            self.batch = false;
            let slot = self.areas.slot(used.index());
            slot.use_up(chain.id, len, flags);
        }
        self.used = used.after(chain.entries, self.areas.size);
        self.hidden += u32::from(chain.entries);
    }

    #[inline]
    fn publish(&mut self) {
        if self.used != self.shown {
            let first = self.areas.slot(self.shown.index());
            first.flags().set_release(self.show);
            self.events.published(std::mem::take(&mut self.hidden));
            self.shown = self.used;
            // Of those still out, some may be writable.
            self.batch = self.in_order && self.next == self.used;
        }
    }

    #[inline]
    fn needs_interrupt(&mut self) -> bool {
        self.events.needs_interrupt(&self.areas, self.shown)
    }

    fn enable_kicks(&mut self) -> bool {
        let known = if self.short && self.next == self.short_from {
            self.short_at
        } else {
            self.next
        };
        let areas = &self.areas;
        (self.events).enable_kicks(areas, known, || areas.is_available(known))
    }

    fn disable_kicks(&mut self) {
        self.events.disable_kicks(&self.areas);
    }
}

#[cfg(test)]
mod tests;
