//! The split virtqueue (VIRTIO 1.3, 2.7).
//!
//! Three parts in guest memory: the descriptor table and the available ring are the driver's, the used ring is
//! the device's. They are mapped once, when the ring is set up; from then on a burst costs one load of the
//! available index, one copy of each descriptor, and one store of the used index.

use std::num::Wrapping;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::features::Features;
use crate::memory::{Access, GuestMemory, Place, Scatter};
use crate::notify::{Notify, Word, Words};
use crate::ring::{BadRing, Chain, Fault, Layout, Ring, RingState};

/// `struct virtq_desc`, copied out of guest memory.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
struct Descriptor {
    addr: U64,
    len: U32,
    flags: U16,
    next: U16,
}

const DESCRIPTOR: usize = size_of::<Descriptor>();
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Words of 16 bits before the available ring's entries: flags and index; likewise in the used ring.
const RING_HEADER: usize = 2;
/// Octets of `struct virtq_used_elem`.
const USED_ELEMENT: usize = 8;

/// The available and the used ring, word by word; the mapping that they lie in is the [`SplitRing`]'s to keep.
#[derive(Debug)]
struct Rings {
    available: NonNull<u16>,
    used: NonNull<u16>,
    size: u16,
    event_idx: bool,
}

impl Rings {
    /// Word `at` of the available ring: flags, index, entries, used_event.
    #[inline]
    fn available_word(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at < RING_HEADER + usize::from(self.size) + usize::from(self.event_idx));
        // SAFETY: `SplitRing::new` made sure that the ring with all its words is mapped and aligned, and its
        // `memory` keeps it mapped. The driver shares it with us, which an atomic allows.
        unsafe { AtomicU16::from_ptr(self.available.add(at).as_ptr()) }
    }

    /// Word `at` of the used ring: flags, index, entries of four words, avail_event.
    #[inline]
    fn used_word(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at < RING_HEADER + 4 * usize::from(self.size) + usize::from(self.event_idx));
        // SAFETY: as in `available_word`.
        unsafe { AtomicU16::from_ptr(self.used.add(at).as_ptr()) }
    }
}

/// The two event words exist with EVENT_IDX only, and only then are they asked for.
impl Words for Rings {
    type Word = AtomicU16;

    #[inline]
    fn available_flags(&self) -> &AtomicU16 {
        self.available_word(0)
    }

    #[inline]
    fn available_index(&self) -> &AtomicU16 {
        self.available_word(1)
    }

    #[inline]
    fn used_event(&self) -> &AtomicU16 {
        self.available_word(RING_HEADER + usize::from(self.size))
    }

    #[inline]
    fn used_flags(&self) -> &AtomicU16 {
        self.used_word(0)
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        self.used_word(1)
    }

    #[inline]
    fn avail_event(&self) -> &AtomicU16 {
        self.used_word(RING_HEADER + 4 * usize::from(self.size))
    }
}

/// A split virtqueue in guest memory.
#[derive(Debug)]
pub struct SplitRing {
    memory: Arc<GuestMemory>,
    descriptors: NonNull<u8>,
    rings: Rings,
    indirect: bool,
    /// The next entry of the available ring to take, and how far the driver has filled it.
    next_available: Wrapping<u16>,
    available_index: Wrapping<u16>,
    /// The next entry of the used ring to fill.
    next_used: Wrapping<u16>,
    notify: Notify,
    /// What was available up to here was not enough: only more of it is worth a kick.
    short: bool,
    short_at: Wrapping<u16>,
}

// SAFETY: the pointers lie in `memory`, which may be used from any thread.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// The ring at `layout`, going on where its used index stands.
    ///
    /// The used index is trusted more than a base that a front-end gives: all chains that this device takes it
    /// also completes before it stops, so the two differ only if the front-end is wrong about it, and then
    /// buffers that a driver had posted would be lost.
    ///
    /// # Errors
    /// The layout is not one of a ring in `memory`.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &Layout,
        features: Features,
    ) -> Result<Self, BadRing> {
        let Layout {
            size,
            descriptors,
            driver: available,
            device: used,
            ..
        } = *layout;
        if !size.is_power_of_two() {
            return Err(BadRing::Size(size));
        }
        let entries = u64::from(size);
        let event = if features.contains(Features::EVENT_IDX) {
            2
        } else {
            0
        };
        let part = |part, addr, len, align| BadRing::place(&memory, part, addr, len, align);
        let descriptors = part(
            "descriptor table",
            descriptors,
            DESCRIPTOR as u64 * entries,
            16,
        )?;
        let available = part("available ring", available, 4 + 2 * entries + event, 2)?;
        let used = part(
            "used ring",
            used,
            4 + USED_ELEMENT as u64 * entries + event,
            4,
        )?;
        let rings = Rings {
            available: available.cast(),
            used: used.cast(),
            size,
            event_idx: features.contains(Features::EVENT_IDX),
        };
        let notify = Notify::new(&rings, rings.event_idx);
        let index = Wrapping(notify.published());
        Ok(SplitRing {
            descriptors,
            rings,
            memory,
            indirect: features.contains(Features::INDIRECT_DESC),
            next_available: index,
            available_index: index,
            next_used: index,
            notify,
            short: false,
            short_at: index,
        })
    }

    /// The place of a free-running index in the ring.
    #[inline]
    fn slot(&self, index: Wrapping<u16>) -> usize {
        usize::from(index.0 & (self.rings.size - 1))
    }

    /// A private copy of descriptor `index` of the ring's own table.
    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.rings.size);
        let words = self.descriptors.cast::<[u64; 2]>();
        // SAFETY: `new` made sure that the table is mapped and aligned; `index` is within it.
        let words = unsafe { words.add(usize::from(index)).read_volatile() };
        zerocopy::transmute!(words)
    }

    /// Address, length and flags of descriptor `index` of the ring's own table, each read once.
    #[inline(always)] // on the way of each packet, and small
    fn fields(&self, index: u16) -> (u64, u32, u16) {
        debug_assert!(index < self.rings.size);
        // SAFETY: `new` made sure that the table is mapped and aligned; `index` is within it.
        unsafe {
            let descriptor = self
                .descriptors
                .cast::<Descriptor>()
                .add(usize::from(index));
            let addr = descriptor.cast::<u64>();
            let len = descriptor.cast::<u32>().add(2);
            let flags = descriptor.cast::<u16>().add(6);
            (
                u64::from_le(addr.read_volatile()),
                u32::from_le(len.read_volatile()),
                u16::from_le(flags.read_volatile()),
            )
        }
    }

    /// Writes entry `index` of the used ring.
    #[inline(always)] // on the way of each packet, and small
    fn write_used(&self, index: Wrapping<u16>, head: u16, len: u32) {
        let slot = RING_HEADER + 4 * self.slot(index);
        debug_assert!(slot + 4 <= RING_HEADER + 4 * usize::from(self.rings.size));
        // SAFETY: `new` made sure that the used ring is mapped and aligned to 4; `slot` is an entry of it.
        // The driver does not look at it before `publish`.
        unsafe {
            let element = self.rings.used.add(slot).cast::<u32>();
            element.write_volatile(u32::from(head).to_le());
            element.add(1).write_volatile(len.to_le());
        }
    }

    /// Takes the chain that starts at `head`; most have one descriptor.
    #[inline(always)] // on the way of each packet, and small
    fn take(&self, head: u16, readable: &mut Scatter, writable: &mut Scatter) -> Result<(), Fault> {
        let descriptor = self.descriptor(head);
        let (flags, len) = (descriptor.flags.get(), descriptor.len.get());
        if flags & (NEXT | INDIRECT) != 0 || len == 0 {
            return self.walk(head, descriptor, readable, writable);
        }
        let list = if flags & WRITE == 0 {
            readable
        } else {
            writable
        };
        list.push(descriptor.addr.get(), len)
    }

    /// Walks the chain that starts at `head`, whose first descriptor has been copied already.
    #[inline(never)]
    fn walk(
        &self,
        head: u16,
        first: Descriptor,
        readable: &mut Scatter,
        writable: &mut Scatter,
    ) -> Result<(), Fault> {
        let mut first = Some(first);
        let mut index = head;
        // The indirect table that the walk is in: its guest address.
        let mut indirect: Option<u64> = None;
        let mut entries = u32::from(self.rings.size);
        let mut seen_writable = false;
        let (read_before, written_before) = (readable.len(), writable.len());
        // One step more than the ring has descriptors: the one that refers to an indirect table does not count.
        for _ in 0..=self.rings.size {
            let descriptor = match (first.take(), indirect) {
                (Some(first), _) => first,
                (None, None) => self.descriptor(index),
                (None, Some(table)) => {
                    let addr = table
                        .checked_add((DESCRIPTOR * usize::from(index)) as u64)
                        .ok_or(Fault::AddressWraps)?;
                    let bytes: [u8; DESCRIPTOR] =
                        self.memory.read(addr).ok_or(Fault::AddressOutOfRange)?;
                    zerocopy::transmute!(bytes)
                }
            };
            let (flags, len) = (descriptor.flags.get(), descriptor.len.get());
            if flags & INDIRECT != 0 {
                if !self.indirect {
                    return Err(Fault::IndirectNotNegotiated);
                }
                if indirect.is_some() {
                    return Err(Fault::IndirectNested);
                }
                if flags & NEXT != 0 {
                    return Err(Fault::IndirectWithNext);
                }
                entries = len / DESCRIPTOR as u32;
                if entries == 0
                    || entries > u16::MAX.into()
                    || !(len as usize).is_multiple_of(DESCRIPTOR)
                {
                    return Err(Fault::IndirectLength);
                }
                indirect = Some(descriptor.addr.get());
                index = 0;
                continue;
            }
            if len == 0 {
                return Err(Fault::ZeroLength);
            }
            if flags & WRITE != 0 {
                seen_writable = true;
                writable.push(descriptor.addr.get(), len)?;
            } else if seen_writable {
                return Err(Fault::ReadableAfterWritable);
            } else {
                readable.push(descriptor.addr.get(), len)?;
            }
            if flags & NEXT == 0 {
                let total = readable.len() - read_before + writable.len() - written_before;
                if total > 1 << 32 {
                    return Err(Fault::ChainTooBig);
                }
                return Ok(());
            }
            index = descriptor.next.get();
            if u32::from(index) >= entries {
                return Err(Fault::NextOutOfRange);
            }
        }
        Err(Fault::ChainTooLong)
    }
}

impl Ring for SplitRing {
    fn state(&self) -> RingState {
        let rings = &self.rings;
        let flags = rings.available_flags().get();
        let wanted = u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        RingState {
            size: rings.size,
            available: rings.available_index().get(),
            taken: self.next_available.0,
            used: self.notify.published(),
            interrupt_after: rings.event_idx.then(|| rings.used_event().get()),
            interrupts_wanted: (!rings.event_idx).then_some(wanted),
        }
    }

    fn size(&self) -> u16 {
        self.rings.size
    }

    #[inline]
    fn begin(&mut self) -> Result<u16, Fault> {
        let index = Wrapping(self.rings.available_index().get_acquire());
        let available = (index - self.next_available).0;
        if available > self.rings.size {
            return Err(Fault::IndexJump);
        }
        self.available_index = index;
        self.short = false;
        Ok(available)
    }

    #[inline]
    fn has_next(&self) -> bool {
        self.next_available != self.available_index
    }

    #[inline(always)] // on the way of each packet, and small
    fn fetch(
        &mut self,
        readable: &mut Scatter,
        writable: &mut Scatter,
    ) -> Result<Option<Chain>, Fault> {
        if self.next_available == self.available_index {
            return Ok(None);
        }
        let slot = RING_HEADER + self.slot(self.next_available);
        let head = self.rings.available_word(slot).get();
        if head >= self.rings.size {
            return Err(Fault::HeadOutOfRange);
        }
        self.take(head, readable, writable)?;
        self.next_available += 1;
        Ok(Some(Chain::new(head)))
    }

    #[inline(always)] // on the way of each packet
    fn use_places<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        count: usize,
        mut each: impl FnMut(Place<'m>) -> Option<u32>,
    ) -> usize {
        let wanted = match access {
            Access::Read => 0,
            Access::Write => WRITE,
        };
        let (first_available, first_used) = (self.next_available, self.next_used);
        let available = (self.available_index - first_available).0;
        let count = count.min(available.into()) as u16;
        let mut done = Wrapping(0);
        while done.0 < count {
            let slot = RING_HEADER + self.slot(first_available + done);
            let head = self.rings.available_word(slot).get();
            if head >= self.rings.size {
                break;
            }
            let (addr, room, flags) = self.fields(head);
            if flags != wanted {
                break;
            }
            let Some(written) = Place::new(memory, addr, room).and_then(&mut each) else {
                break;
            };
            self.write_used(first_used + done, head, written);
            done += 1;
        }
        self.next_available = first_available + done;
        self.next_used = first_used + done;
        done.0.into()
    }

    #[inline]
    fn position(&self) -> u16 {
        self.next_available.0
    }

    #[inline]
    fn rewind(&mut self, position: u16) {
        self.next_available = Wrapping(position);
        self.short = true;
        // Not what a later `begin` sees: whether that is enough only a try can tell.
        self.short_at = self.available_index;
    }

    #[inline]
    fn complete(&mut self, chain: Chain, len: u32) {
        self.write_used(self.next_used, chain.id, len);
        self.next_used += 1;
    }

    #[inline]
    fn publish(&mut self) {
        self.notify.publish(&self.rings, self.next_used.0);
    }

    #[inline]
    fn needs_interrupt(&mut self) -> bool {
        self.notify.needs_interrupt(&self.rings)
    }

    fn enable_kicks(&mut self) -> bool {
        let known = if self.short {
            self.short_at
        } else {
            self.next_available
        };
        self.notify.enable_kicks(&self.rings, known.0)
    }

    fn disable_kicks(&mut self) {
        self.notify.disable_kicks(&self.rings);
    }
}

#[cfg(test)]
mod tests;
