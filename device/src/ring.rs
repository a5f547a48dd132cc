//! Virtqueues: what every ring layout does, and what a driver can do wrong with one.
//!
//! A ring is used in bursts: [`Ring::begin`] looks once at what the driver made available, [`Ring::fetch`]
//! takes chains of descriptors one by one into private scatter lists, [`Ring::complete`] notes which have
//! been used, and [`Ring::publish`] shows all of them to the driver with one store. After that
//! [`Ring::needs_interrupt`] tells whether the driver wants to be interrupted for what it was shown since it
//! was last asked.

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
    /// An indirect descriptor that has a successor.
    IndirectWithNext = "an indirect descriptor with a successor",
    /// An indirect table whose length is no multiple of a descriptor's, or nothing.
    IndirectLength = "an indirect table's length is zero or not a multiple of 16",
    /// A chain for received packets that is not writable throughout, or a command without a place for the answer.
    NotWritable = "a chain that is not writable where it has to be",
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
    /// The size is none that the layout allows.
    #[error("size {0} is not a power of two from 1 to 32768")]
    Size(u16),
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

/// Where a ring stands: what tells who waits for whom when nothing moves. Indices run freely from 0 to 65535.
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
    /// Without EVENT_IDX: whether the driver wants interrupts.
    pub interrupts_wanted: Option<bool>,
}

/// A virtqueue, seen from the device.
pub trait Ring {
    /// Where the ring stands.
    fn state(&self) -> RingState;

    /// Descriptors in the ring.
    fn size(&self) -> u16;

    /// Looks at what the driver has made available; at most that many chains can be fetched until the next call.
    ///
    /// # Errors
    /// The driver's index cannot be right.
    fn begin(&mut self) -> Result<u16, Fault>;

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

    /// As [`Ring::fetch`], for most of what a driver posts: takes the next chain if it is one place in one piece of
    /// `memory`, for the device to access as `access` says, of no less than `len` octets. Otherwise it stays, and
    /// [`Ring::fetch`] tells what it is.
    fn fetch_place<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        len: usize,
    ) -> Option<(Chain, Place<'m>)>;

    /// As many [`Ring::fetch_place`] as `places` has room for, each of no less than the next of `lens`. Returns how many there
    /// were.
    #[inline(always)] // on the way of each packet
    fn fetch_places<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        places: &mut [(Chain, Place<'m>)],
        lens: impl Iterator<Item = usize>,
    ) -> usize
    where
        Self: Sized,
    {
        let mut count = 0;
        for (slot, len) in places.iter_mut().zip(lens) {
            let Some(place) = self.fetch_place(memory, access, len) else {
                break;
            };
            *slot = place;
            count += 1;
        }
        count
    }

    /// Where the next chain is taken from.
    fn position(&self) -> u16;

    /// Goes back to an earlier [`Ring::position`]: the chains since then were not used after all. Unless one
    /// is fetched again, [`Ring::enable_kicks`] asks for a kick only for more than was available then.
    fn rewind(&mut self, position: u16);

    /// Notes that `chain` has been used and `len` octets were written to it.
    fn complete(&mut self, chain: Chain, len: u32);

    /// Shows the driver all chains completed since the last call.
    fn publish(&mut self);

    /// Whether the driver wants an interrupt for what was published since the last call.
    fn needs_interrupt(&mut self) -> bool;

    /// Asks the driver to kick when it makes more available. Returns true if it has done so already.
    fn enable_kicks(&mut self) -> bool;

    /// Tells the driver that kicks are not needed.
    fn disable_kicks(&mut self);
}
