//! What a driver has put into a ring, looked at the slow way: a second implementation of VIRTIO 1.3, 2.7.5 and 2.8.6 to 2.8.8, from
//! which the device's must not differ, in what it takes and in what it refuses.

use nic_device::ring::{Chain, Fault, Layout};

use super::memory::Memory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A descriptor, split or packed: the last two fields are flags and successor, or identifier and flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) fields: [u16; 2],
}

pub(crate) fn descriptor(memory: &Memory, table: u64, index: u64) -> Result<Descriptor, Fault> {
    let at = (table.checked_add(16 * index)).ok_or(Fault::AddressWraps)?;
    let octets: [u8; 16] = memory.get(at).ok_or(Fault::AddressOutOfRange)?;
    let (addr, rest) = octets.split_at(8);
    Ok(Descriptor {
        addr: u64::from_le_bytes(addr.try_into().expect("8 of them")),
        len: u32::from_le_bytes(rest[..4].try_into().expect("4 of them")),
        fields: [4, 6].map(|at| u16::from_le_bytes([rest[at], rest[at + 1]])),
    })
}

/// A place that a chain consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Octets.
    pub len: u32,
    /// Whether the device may write to it.
    pub writable: bool,
}

/// The places of `buffers` that the device may write to: guest addresses and octets.
pub(crate) fn room(buffers: &[Buffer]) -> impl Iterator<Item = (u64, u64)> {
    (buffers.iter().filter(|buffer| buffer.writable))
        .map(|buffer| (buffer.addr, u64::from(buffer.len)))
}

/// Octets of `buffers` that the device may write, or those that it may read.
pub(crate) fn octets(buffers: &[Buffer], writable: bool) -> u64 {
    (buffers.iter().filter(|buffer| buffer.writable == writable))
        .map(|buffer| u64::from(buffer.len))
        .sum()
}

fn push(buffers: &mut Vec<Buffer>, at: Descriptor, writable: bool) -> Result<(), Fault> {
    if at.len == 0 {
        return Err(Fault::ZeroLength);
    }
    if !writable && buffers.last().is_some_and(|last| last.writable) {
        return Err(Fault::ReadableAfterWritable);
    }
    if !Memory::holds(at.addr, at.len.into()) {
        let wraps = at.addr.checked_add(at.len.into()).is_none();
        return Err(if wraps {
            Fault::AddressWraps
        } else {
            Fault::AddressOutOfRange
        });
    }
    buffers.push(Buffer {
        addr: at.addr,
        len: at.len,
        writable,
    });
    Ok(())
}

/// The chain of a split ring that begins at `head`.
///
/// # Errors
/// What is wrong with it first.
pub fn split(
    memory: &Memory,
    layout: &Layout,
    indirect: bool,
    head: u16,
) -> Result<Vec<Buffer>, Fault> {
    let size = u64::from(layout.size);
    if u64::from(head) >= size {
        return Err(Fault::HeadOutOfRange);
    }
    let mut buffers = Vec::new();
    let (mut table, mut entries, mut index) = (layout.descriptors, size, u64::from(head));
    let mut inside = false;
    // A chain has no more buffers than the ring has descriptors. With the one that refers to a table it may be one longer.
    for _ in 0..=size {
        let at = descriptor(memory, table, index)?;
        let [flags, next] = at.fields;
        if flags & INDIRECT != 0 {
            if !indirect {
                return Err(Fault::IndirectNotNegotiated);
            }
            if inside {
                return Err(Fault::IndirectNested);
            }
            if flags & NEXT != 0 {
                return Err(Fault::IndirectWithNext);
            }
            if at.len == 0 || at.len % 16 != 0 || at.len / 16 > 0xffff {
                return Err(Fault::IndirectLength);
            }
            (table, entries, index, inside) = (at.addr, u64::from(at.len / 16), 0, true);
            continue;
        }
        push(&mut buffers, at, flags & WRITE != 0)?;
        if flags & NEXT == 0 {
            return Ok(buffers);
        }
        index = u64::from(next);
        if index >= entries {
            return Err(Fault::NextOutOfRange);
        }
    }
    Err(Fault::ChainTooLong)
}

/// A place in a packed ring, with the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The descriptor.
    pub index: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl Place {
    /// What `word` says, with the wrap counter in bit 15.
    #[must_use]
    pub fn from_word(word: u16) -> Self {
        Place {
            index: word % 0x8000,
            wrap: word >= 0x8000,
        }
    }

    /// The same as one word.
    #[must_use]
    pub fn word(self) -> u16 {
        self.index + if self.wrap { 0x8000 } else { 0 }
    }

    /// The place `count` behind it in a ring of `size`.
    #[must_use]
    pub fn after(mut self, count: u16, size: u16) -> Self {
        for _ in 0..count {
            self.index += 1;
            if self.index == size {
                self = Place {
                    index: 0,
                    wrap: !self.wrap,
                };
            }
        }
        self
    }

    /// AVAIL (bit 7) and USED (bit 15) of a descriptor that is available here.
    #[must_use]
    pub fn available(self) -> u16 {
        if self.wrap { 1 << 7 } else { 1 << 15 }
    }

    /// Those of one that is used here.
    #[must_use]
    pub fn used(self) -> u16 {
        if self.wrap { 0x8080 } else { 0 }
    }

    /// Guest address of the descriptor here.
    #[must_use]
    pub fn address(self, layout: &Layout) -> u64 {
        layout.descriptors + 16 * u64::from(self.index)
    }

    /// Whether the driver has made the descriptor here available.
    #[must_use]
    pub fn is_available(self, memory: &Memory, layout: &Layout) -> bool {
        memory.get16(self.address(layout) + 14) & 0x8080 == self.available()
    }
}

/// How many descriptors of a packed ring belong together from `at` on, whatever is wrong with them; no more than the ring has.
pub(crate) fn linked(memory: &Memory, layout: &Layout, at: Place) -> u16 {
    let goes_on = |count: &u16| {
        let place = at.after(*count - 1, layout.size);
        memory.get16(place.address(layout) + 14) & NEXT != 0
    };
    (1..layout.size).take_while(goes_on).count() as u16 + 1
}

/// The chain of a packed ring that begins at `at`, which is available: its buffers, and how it is given back.
///
/// # Errors
/// What is wrong with it first.
pub fn packed(
    memory: &Memory,
    layout: &Layout,
    indirect: bool,
    at: Place,
) -> Result<(Vec<Buffer>, Chain), Fault> {
    let mut buffers = Vec::new();
    for entries in 1..=layout.size {
        let place = at.after(entries - 1, layout.size);
        let it = descriptor(memory, layout.descriptors, place.index.into())?;
        let [id, flags] = it.fields;
        if flags & INDIRECT != 0 {
            if entries > 1 {
                return Err(Fault::IndirectWithNext);
            }
            if !indirect {
                return Err(Fault::IndirectNotNegotiated);
            }
            if flags & NEXT != 0 {
                return Err(Fault::IndirectWithNext);
            }
            if it.len == 0 || it.len % 16 != 0 {
                return Err(Fault::IndirectLength);
            }
            if it.len / 16 > u32::from(layout.size) {
                return Err(Fault::ChainTooLong);
            }
            for index in 0..u64::from(it.len / 16) {
                let entry = descriptor(memory, it.addr, index)?;
                push(&mut buffers, entry, entry.fields[1] & WRITE != 0)?;
            }
            return Ok((buffers, Chain { id, entries }));
        }
        push(&mut buffers, it, flags & WRITE != 0)?;
        if flags & NEXT == 0 {
            return Ok((buffers, Chain { id, entries }));
        }
    }
    Err(Fault::ChainTooLong)
}
