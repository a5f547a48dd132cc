//! Direct access to every field of a split ring, for tests that do not play by the rules.
//!
//! As a hostile driver it writes descriptors, tables and indices that no driver would; as a hostile
//! device it writes used elements. Nothing is checked but that the field exists. What a
//! well-behaved driver does is in `split`.

use std::sync::Arc;

use super::{DESC_SIZE, RingMemory};
use crate::memory::{GuestMemory, MemoryError};

const FLAGS: usize = 0;
const IDX: usize = 2;
const ENTRIES: usize = 4;

/// A descriptor as it stands in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Its length.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// Next of the chain, with `VIRTQ_DESC_F_NEXT`.
    pub next: u16,
}

impl Descriptor {
    /// A descriptor with these fields.
    #[must_use]
    pub fn new(addr: u64, len: u32, flags: u16, next: u16) -> Self {
        Self {
            addr,
            len,
            flags,
            next,
        }
    }

    /// The 16 bytes of the descriptor.
    #[must_use]
    pub fn to_bytes(self) -> [u8; DESC_SIZE] {
        let mut bytes = [0; DESC_SIZE];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A ring without rules.
#[derive(Debug, Clone)]
pub struct RawRing {
    ring: RingMemory,
}

impl RawRing {
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
            ring: RingMemory::allocate(memory, size)?,
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

    fn slot(&self, index: u16) -> usize {
        usize::from(index % self.ring.size)
    }

    /// Writes descriptor `index` (which must be in the table).
    pub fn set_desc(&self, index: u16, desc: Descriptor) {
        self.ring
            .desc
            .write(usize::from(index) * DESC_SIZE, &desc.to_bytes());
    }

    /// Reads descriptor `index` (which must be in the table).
    #[must_use]
    pub fn desc(&self, index: u16) -> Descriptor {
        let at = usize::from(index) * DESC_SIZE;
        let table = &self.ring.desc;
        Descriptor {
            addr: table.read_u64(at),
            len: table.read_u32(at + 8),
            flags: table.read_u16(at + 12),
            next: table.read_u16(at + 14),
        }
    }

    /// Writes a table of descriptors anywhere in guest memory.
    ///
    /// # Errors
    /// When it is not in guest memory.
    pub fn write_indirect_table(&self, addr: u64, table: &[Descriptor]) -> Result<(), MemoryError> {
        let bytes: Vec<u8> = table.iter().flat_map(|desc| desc.to_bytes()).collect();
        self.ring.desc.memory().write(addr, &bytes)
    }

    /// Writes the available entry for index `index` (taken modulo the size).
    pub fn set_avail_entry(&self, index: u16, head: u16) {
        self.ring
            .avail
            .write_u16(ENTRIES + 2 * self.slot(index), head);
    }

    /// The available entry for index `index`.
    #[must_use]
    pub fn avail_entry(&self, index: u16) -> u16 {
        self.ring.avail.read_u16(ENTRIES + 2 * self.slot(index))
    }

    /// Stores `avail.idx`.
    pub fn set_avail_idx(&self, index: u16) {
        self.ring.avail.store_release_u16(IDX, index);
    }

    /// `avail.idx`.
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        self.ring.avail.load_acquire_u16(IDX)
    }

    /// Appends heads to the available ring and stores the index once.
    pub fn make_available(&self, heads: &[u16]) {
        let mut index = self.avail_idx();
        for &head in heads {
            self.set_avail_entry(index, head);
            index = index.wrapping_add(1);
        }
        self.set_avail_idx(index);
    }

    /// Writes `avail.flags`.
    pub fn set_avail_flags(&self, flags: u16) {
        self.ring.avail.write_u16(FLAGS, flags);
    }

    /// `avail.flags`.
    #[must_use]
    pub fn avail_flags(&self) -> u16 {
        self.ring.avail.read_u16(FLAGS)
    }

    /// Writes `used_event`.
    pub fn set_used_event(&self, index: u16) {
        self.ring
            .avail
            .write_u16(ENTRIES + 2 * usize::from(self.ring.size), index);
    }

    /// `used_event`.
    #[must_use]
    pub fn used_event(&self) -> u16 {
        self.ring
            .avail
            .read_u16(ENTRIES + 2 * usize::from(self.ring.size))
    }

    /// `used.idx`.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.ring.used.load_acquire_u16(IDX)
    }

    /// Stores `used.idx`, as a device does.
    pub fn set_used_idx(&self, index: u16) {
        self.ring.used.store_release_u16(IDX, index);
    }

    /// The used element for index `index`: id and length.
    #[must_use]
    pub fn used_elem(&self, index: u16) -> (u32, u32) {
        let at = ENTRIES + 8 * self.slot(index);
        (self.ring.used.read_u32(at), self.ring.used.read_u32(at + 4))
    }

    /// Writes the used element for index `index`.
    pub fn set_used_elem(&self, index: u16, id: u32, len: u32) {
        let at = ENTRIES + 8 * self.slot(index);
        self.ring.used.write_u32(at, id);
        self.ring.used.write_u32(at + 4, len);
    }

    /// `used.flags`.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.ring.used.read_u16(FLAGS)
    }

    /// Writes `used.flags`.
    pub fn set_used_flags(&self, flags: u16) {
        self.ring.used.write_u16(FLAGS, flags);
    }

    /// `avail_event`.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.ring
            .used
            .read_u16(ENTRIES + 8 * usize::from(self.ring.size))
    }

    /// Writes `avail_event`.
    pub fn set_avail_event(&self, index: u16) {
        self.ring
            .used
            .write_u16(ENTRIES + 8 * usize::from(self.ring.size), index);
    }
}
