//! What a device may get wrong that its driver sees: what it says of used buffers, of received packets, of its configuration, and what
//! it does not say at all. The device carries it out, for only it knows rings and headers; here is what is to happen, and how often it
//! did. Each is by chance, for one buffer, packet, command or read at a time.

use serde::Serialize;

use crate::host::Direction;

/// What the device is to get wrong: a probability each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lies {
    /// Of received packets' buffers.
    pub receive: RingLies,
    /// Of sent packets' buffers.
    pub transmit: RingLies,
    /// A received packet is said to be in no buffer, or in more than it is.
    pub num_buffers: f64,
    /// A received packet is said to stand for several, which cannot be.
    pub gso: f64,
    /// A received packet is said to lack a checksum at a place that it does not have.
    pub csum: f64,
    /// A command is not answered.
    pub silent: f64,
    /// A read of the configuration space gives what was never there.
    pub config_tear: f64,
}

/// What the device is to get wrong about the used buffers of one direction: a probability each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RingLies {
    /// It names another buffer, or none.
    pub used_id: f64,
    /// It says that it wrote more than there is room for, or less than it did.
    pub used_len: f64,
    /// It says that more are used than are.
    pub used_jump: f64,
}

impl Lies {
    /// Those about the used buffers of `direction`.
    #[must_use]
    pub fn of(&self, direction: Direction) -> RingLies {
        match direction {
            Direction::Receive => self.receive,
            Direction::Transmit => self.transmit,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// How often the device got things wrong on purpose, with one virtqueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LieCounters {
    /// Used buffers under another's name.
    pub used_ids: u64,
    /// Used buffers with a wrong length.
    pub used_lengths: u64,
    /// Times that more were said to be used than were.
    pub used_jumps: u64,
    /// Received packets with a wrong number of buffers.
    pub num_buffers: u64,
    /// Received packets that cannot stand for several, and were said to.
    pub gso: u64,
    /// Received packets with a checksum to be completed where they have no octets.
    pub csum: u64,
    /// Commands that were not answered.
    pub unanswered: u64,
}
