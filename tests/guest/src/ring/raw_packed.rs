//! Direct access to every field of a packed ring, for tests that do not play by the rules.
//!
//! As a hostile driver it writes descriptors that no driver would; as a hostile device it writes used
//! ones. Nothing is checked but that the field exists. What a well-behaved driver does is in `packed`;
//! the split ring's twin of this is [`super::raw`].

use std::sync::Arc;

use super::packed_handshake::{DESC_FLAGS, EVENT_FLAGS, EVENT_OFF_WRAP};
use super::{DESC_SIZE, OffWrap, RingMemory};
use crate::memory::{GuestMemory, GuestSlice, MemoryError};

/// A packed descriptor as it stands in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackedDescriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Its length, or how much of it was written.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// `VIRTQ_DESC_F_*` and `VRING_PACKED_DESC_F_*`.
    pub flags: u16,
}

impl PackedDescriptor {
    /// A descriptor with these fields.
    #[must_use]
    pub fn new(addr: u64, len: u32, id: u16, flags: u16) -> Self {
        Self {
            addr,
            len,
            id,
            flags,
        }
    }

    /// The 16 bytes of the descriptor.
    #[must_use]
    pub fn to_bytes(self) -> [u8; DESC_SIZE] {
        let mut bytes = [0; DESC_SIZE];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.id.to_le_bytes());
        bytes[14..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }

    /// A descriptor out of its 16 bytes, as of an indirect table.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; DESC_SIZE]) -> Self {
        let all = u128::from_le_bytes(*bytes);
        Self {
            addr: all as u64,
            len: (all >> 64) as u32,
            id: (all >> 96) as u16,
            flags: (all >> 112) as u16,
        }
    }
}

/// A packed ring without rules.
#[derive(Debug, Clone)]
pub struct RawPackedRing {
    ring: RingMemory,
}

impl RawPackedRing {
    /// The same ring as `ring`.
    #[must_use]
    pub fn new(ring: &RingMemory) -> Self {
        Self { ring: ring.clone() }
    }

    /// Allocates a ring that no driver owns.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn allocate(memory: &Arc<GuestMemory>, size: u16) -> Result<Self, MemoryError> {
        Ok(Self {
            ring: RingMemory::allocate_packed(memory, size)?,
        })
    }

    /// The memory it is in.
    #[must_use]
    pub fn ring(&self) -> &RingMemory {
        &self.ring
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size
    }

    /// Reads descriptor `at` (which must be in the ring), its flags first.
    #[must_use]
    pub fn desc(&self, at: u16) -> PackedDescriptor {
        let offset = usize::from(at) * DESC_SIZE;
        let flags = self.flags(at);
        let desc = &self.ring.desc;
        PackedDescriptor {
            addr: desc.read_u64(offset),
            len: desc.read_u32(offset + 8),
            id: desc.read_u16(offset + 12),
            flags,
        }
    }

    /// Writes descriptor `at` (which must be in the ring), its flags last.
    pub fn set_desc(&self, at: u16, desc: PackedDescriptor) {
        let offset = usize::from(at) * DESC_SIZE;
        let bytes = desc.to_bytes();
        self.ring.desc.write(offset, &bytes[..DESC_FLAGS]);
        self.set_flags(at, desc.flags);
    }

    /// Writes id and length of descriptor `at` and then its flags, as a device does.
    pub fn set_used(&self, at: u16, id: u16, len: u32, flags: u16) {
        let offset = usize::from(at) * DESC_SIZE;
        self.ring.desc.write_u32(offset + 8, len);
        self.ring.desc.write_u16(offset + 12, id);
        self.set_flags(at, flags);
    }

    /// Flags of descriptor `at`.
    #[must_use]
    pub fn flags(&self, at: u16) -> u16 {
        let offset = usize::from(at) * DESC_SIZE + DESC_FLAGS;
        self.ring.desc.load_acquire_u16(offset)
    }

    /// Stores the flags of descriptor `at`.
    pub fn set_flags(&self, at: u16, flags: u16) {
        let offset = usize::from(at) * DESC_SIZE + DESC_FLAGS;
        self.ring.desc.store_release_u16(offset, flags);
    }

    /// Writes a table of descriptors anywhere in guest memory.
    ///
    /// # Errors
    /// When it is not in guest memory.
    pub fn write_indirect_table(
        &self,
        addr: u64,
        table: &[PackedDescriptor],
    ) -> Result<(), MemoryError> {
        let bytes: Vec<u8> = table.iter().flat_map(|desc| desc.to_bytes()).collect();
        self.ring.desc.memory().write(addr, &bytes)
    }

    /// What interrupts the driver wants: for which descriptor, and flags.
    #[must_use]
    pub fn driver_event(&self) -> (OffWrap, u16) {
        event(&self.ring.avail)
    }

    /// Writes what interrupts the driver wants.
    pub fn set_driver_event(&self, at: OffWrap, flags: u16) {
        set_event(&self.ring.avail, at, flags);
    }

    /// What kicks the device wants: for which descriptor, and flags.
    #[must_use]
    pub fn device_event(&self) -> (OffWrap, u16) {
        event(&self.ring.used)
    }

    /// Writes what kicks the device wants.
    pub fn set_device_event(&self, at: OffWrap, flags: u16) {
        set_event(&self.ring.used, at, flags);
    }
}

fn event(part: &GuestSlice) -> (OffWrap, u16) {
    let flags = part.load_acquire_u16(EVENT_FLAGS);
    (OffWrap(part.read_u16(EVENT_OFF_WRAP)), flags)
}

fn set_event(part: &GuestSlice, at: OffWrap, flags: u16) {
    part.write_u16(EVENT_OFF_WRAP, at.0);
    part.store_release_u16(EVENT_FLAGS, flags);
}
