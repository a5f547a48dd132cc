//! Virtqueues: what every ring layout does, and what a driver can do wrong with one.
//!
//! A ring is used in bursts: [`Ring::begin`] looks once at what the driver made available, [`Ring::fetch`]
//! takes chains of descriptors one by one into private scatter lists, [`Ring::complete`] notes which have
//! been used, and [`Ring::publish`] shows all of them to the driver with one store. After that
//! [`Ring::needs_interrupt`] tells whether the driver wants to be interrupted for what it was shown since it
//! was last asked.

use std::ptr::NonNull;

use serde::Serialize;

use crate::memory::{Access, GuestMemory, Place, Scatter};

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// What a driver did wrong. Its queue stops until it is set up again: nothing that such a driver
        /// says about the ring can be relied on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum Fault { $($(#[doc = $doc])+ #[error($text)] $variant,)+ }

        impl Fault {
            /// Every kind of fault.
            pub const ALL: &[Fault] = &[$(Fault::$variant,)+];
        }
    };
}

faults! {
    /// The available index moved by more than the ring's size, or backwards (VIRTIO 1.3, 2.7.13.3).
    IndexJump = "the available index jumped by more than the ring's size",
    /// A chain starts at a descriptor that does not exist.
    HeadOutOfRange = "a chain's head is not a descriptor of the ring",
    /// A descriptor is followed by one that does not exist.
    NextOutOfRange = "a descriptor's successor is not in its table",
    /// A chain is longer than the ring: it loops (VIRTIO 1.3, 2.7.5.2).
    ChainTooLong = "a chain has more descriptors than the ring (a loop?)",
    /// A buffer is not, or not all, in guest memory.
    AddressOutOfRange = "a buffer lies outside guest memory",
    /// A buffer's end is beyond the last address.
    AddressWraps = "a buffer's address and length wrap around",
    /// A buffer of no octets.
    ZeroLength = "a descriptor has length zero",
    /// All buffers of a chain together are longer than 2^32 octets (VIRTIO 1.3, 2.7.5.2).
    ChainTooBig = "a chain's buffers are longer than 2^32 octets",
    /// A buffer to read follows one to write (VIRTIO 1.3, 2.7.4.2).
    ReadableAfterWritable = "a readable descriptor follows a writable one",
    /// An indirect table although that was not negotiated (VIRTIO 1.3, 2.7.5.3.1).
    IndirectNotNegotiated = "an indirect descriptor, which was not negotiated",
    /// An indirect table within an indirect table.
    IndirectNested = "an indirect descriptor in an indirect table",
    /// An indirect descriptor that has a successor, or in a packed ring a predecessor (VIRTIO 1.3, 2.8.17).
    IndirectWithNext = "an indirect descriptor chained to others",
    /// An indirect table whose length is no multiple of a descriptor's, or nothing, or of more descriptors than an index reaches.
    IndirectLength = "an indirect table's length is zero, not a multiple of 16, or of more than 65535 descriptors",
    /// A chain for received packets that is not writable throughout, or a command without a place for the answer.
    NotWritable = "a chain that is not writable where it has to be",
    /// Not the driver's doing: the front-end took guest memory away ([`sigbus`](crate::sigbus)).
    MemoryGone = "guest memory was taken away",
}

impl Fault {
    /// The counter's name, as users see it.
    #[must_use]
    pub fn name(self) -> String {
        let mut name = String::new();
        for (index, letter) in format!("{self:?}").char_indices() {
            if letter.is_uppercase() && index > 0 {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

/// Why a ring cannot be used at the addresses that were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRing {
    /// The size is none that the layout allows: from 1 to 32768, and if it is split, a power of two.
    #[error("a ring of this layout cannot have {0} descriptors")]
    Size(u16),
    /// It is to go on at a place that it does not have.
    #[error("base {base:#x} is not in a ring of {size} descriptors")]
    Base {
        /// The place, with the wrap counter in bit 15.
        base: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// A part is not where it has to be.
    #[error("the {part} at guest address {addr:#x} is not aligned to {align} octets")]
    Misaligned {
        /// Which part of the ring.
        part: &'static str,
        /// Its guest address.
        addr: u64,
        /// The alignment that it must have.
        align: u64,
    },
    /// A part is not in guest memory, or not in one piece.
    #[error(
        "the {part} at guest address {addr:#x} is not in guest memory as a whole ({len} octets)"
    )]
    Unmapped {
        /// Which part of the ring.
        part: &'static str,
        /// Its guest address.
        addr: u64,
        /// Octets in it.
        len: u64,
    },
}

impl BadRing {
    /// Where `len` octets at guest address `addr` are mapped: the `part` of a ring, which must be aligned to `align` octets.
    pub(crate) fn place(
        memory: &GuestMemory,
        part: &'static str,
        addr: u64,
        len: u64,
        align: u64,
    ) -> Result<NonNull<u8>, BadRing> {
        if !addr.is_multiple_of(align) {
            return Err(BadRing::Misaligned { part, addr, align });
        }
        let host = memory
            .find(addr, len)
            .ok_or(BadRing::Unmapped { part, addr, len })?;
        // A mapping may begin at any guest address, so that the one alignment does not imply the other.
        if !(host.addr().get() as u64).is_multiple_of(align) {
            return Err(BadRing::Misaligned { part, addr, align });
        }
        Ok(host)
    }
}

/// Where a ring is and where it starts. The driver area is what a split ring calls its available ring, the device area its
/// used ring (VIRTIO 1.3, 2.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Descriptors in it.
    pub size: u16,
    /// Guest address of the descriptor area.
    pub descriptors: u64,
    /// Guest address of the driver area.
    pub driver: u64,
    /// Guest address of the device area.
    pub device: u64,
    /// Where a packed ring goes on: [`Ring::position`] when it stopped. Without it, where it stood, or at its beginning. A split
    /// ring says itself where it stands.
    pub base: Option<u16>,
}

/// A chain of descriptors that was taken: what it takes to give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// What the driver knows it by.
    pub id: u16,
    /// Entries of the ring that it takes; a split ring's take one each.
    pub entries: u16,
}

impl Chain {
    /// A chain that takes one entry.
    #[must_use]
    #[inline]
    pub fn new(id: u16) -> Self {
        Chain { id, entries: 1 }
    }
}

/// Where a ring stands: what tells who waits for whom when nothing moves. A split ring's indices run freely from 0 to 65535;
/// a packed ring's are descriptors, with the wrap counter in bit 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RingState {
    /// Descriptors in the ring.
    pub size: u16,
    /// How far the driver has made chains available.
    pub available: u16,
    /// How far the device has taken them.
    pub taken: u16,
    /// How far the device has given them back.
    pub used: u16,
    /// With EVENT_IDX: the driver wants an interrupt once `used` passes this.
    pub interrupt_after: Option<u16>,
    /// Otherwise: whether the driver wants interrupts.
    pub interrupts_wanted: Option<bool>,
}

/// A virtqueue, seen from the device.
pub trait Ring {
    /// Where the ring stands.
    fn state(&self) -> RingState;

    /// Descriptors in the ring.
    fn size(&self) -> u16;

    /// Looks at what the driver has made available; at most that many chains can be fetched until the next call, and none
    /// if it is zero.
    ///
    /// # Errors
    /// The driver's index cannot be right.
    fn begin(&mut self) -> Result<u16, Fault>;

    /// Whether there is a chain to fetch; a packed ring may have one that was not there at [`Ring::begin`].
    fn has_next(&self) -> bool;

    /// Takes the next chain: its buffers are appended to `readable` and `writable`. Returns what to
    /// complete it with, or `None` if all have been taken.
    ///
    /// # Errors
    /// The chain is malformed.
    fn fetch(
        &mut self,
        readable: &mut Scatter,
        writable: &mut Scatter,
    ) -> Result<Option<Chain>, Fault>;

    /// For most of what a driver posts: takes and completes the next chains, `count` at most, as long as each is one place in
    /// one piece of `memory`, for the device to access as `access` says, and `each` uses it. Returns how many. What was taken
    /// before has to be complete.
    ///
    /// `each` returns how many octets it wrote, which are some if it was to write, or `None` if it does not want the
    /// place: then the chain stays, as one of another kind does, and [`Ring::fetch`] tells what it is. It must not want an
    /// empty one, which is the driver's fault. A packed ring also stops at its end.
    fn use_places<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        count: usize,
        each: impl FnMut(Place<'m>) -> Option<u32>,
    ) -> usize
    where
        Self: Sized;

    /// Where the next chain is taken from: an index, and for a packed ring the wrap counter in bit 15, as vhost-user has it.
    fn position(&self) -> u16;

    /// Goes back to an earlier [`Ring::position`]: the chains since then were not used after all. Unless one
    /// is fetched again, [`Ring::enable_kicks`] asks for a kick only for more than was available then.
    fn rewind(&mut self, position: u16);

    /// Notes that `chain` has been used and `len` octets were written to it.
    fn complete(&mut self, chain: Chain, len: u32);

    /// Shows the driver all chains completed since the last call, at once.
    fn publish(&mut self);

    /// Whether the driver wants an interrupt for what was published since the last call.
    fn needs_interrupt(&mut self) -> bool;

    /// Asks the driver to kick when it makes more available. Returns true if it has done so already.
    fn enable_kicks(&mut self) -> bool;

    /// Tells the driver that kicks are not needed.
    fn disable_kicks(&mut self);
}
