//! What became of the checksums of received frames.
//!
//! By its transport checksum each frame that the filters admitted is in one of four: right, wrong, without one that can be verified, and
//! left to be computed by whoever sent it (VIRTIO's "needs checksum"). Right and wrong ones are told apart by protocol. Wrong ones of
//! IPv4's header are counted beside that, whatever the packet carries: VIRTIO has no word for them, and hosts verify them whatever a card says.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::parse::Transport;

/// Frames by transport protocol; [`Transport::None`] is any other.
type ByTransport = [u64; 3];

/// Received frames by what is known of their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    good: ByTransport,
    bad: ByTransport,
    none: u64,
    left: u64,
    bad_header: u64,
}

impl Checksums {
    /// Counts a frame whose checksum is right.
    #[inline(always)] // on the way of each packet
    pub fn count_good(&mut self, transport: Transport) {
        self.good[transport as usize] += 1;
    }

    /// Counts a frame whose checksum is wrong.
    pub fn count_bad(&mut self, transport: Transport) {
        self.bad[transport as usize] += 1;
    }

    /// Counts a frame in which there is nothing to verify.
    #[inline]
    pub fn count_none(&mut self) {
        self.none += 1;
    }

    /// Counts `frames` frames whose checksum was left to be computed.
    pub fn count_left(&mut self, frames: u64) {
        self.left += frames;
    }

    /// Counts `frames` frames whose IPv4 header has a wrong checksum.
    pub fn count_bad_header(&mut self, frames: u64) {
        self.bad_header += frames;
    }

    /// Frames whose checksum is right: it was verified, here or by whoever handed the frame over.
    #[must_use]
    pub fn good(&self) -> u64 {
        self.good.iter().sum()
    }

    /// Of those, the frames of `transport`.
    #[must_use]
    pub fn good_of(&self, transport: Transport) -> u64 {
        self.good[transport as usize]
    }

    /// Frames whose checksum is wrong; they are delivered, and the driver is not told that they are good.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.bad.iter().sum()
    }

    /// Of those, the frames of `transport`.
    #[must_use]
    pub fn bad_of(&self, transport: Transport) -> u64 {
        self.bad[transport as usize]
    }

    /// Frames with nothing to verify: neither TCP nor UDP, a fragment, a truncated packet, UDP without a checksum.
    #[must_use]
    pub fn none(&self) -> u64 {
        self.none
    }

    /// Frames whose checksum whoever sent them left to be computed.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Frames whose IPv4 header has a wrong checksum; they are delivered, and among the others by what they carry.
    #[must_use]
    pub fn bad_header(&self) -> u64 {
        self.bad_header
    }

    /// Frames that were looked at.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.good() + self.bad() + self.none + self.left
    }
}

impl Serialize for Checksums {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let (tcp, udp) = (Transport::Tcp, Transport::Udp);
        let counts = [
            ("rx_checksum_good", self.good()),
            ("rx_checksum_good_tcp", self.good_of(tcp)),
            ("rx_checksum_good_udp", self.good_of(udp)),
            ("rx_checksum_bad", self.bad()),
            ("rx_checksum_bad_tcp", self.bad_of(tcp)),
            ("rx_checksum_bad_udp", self.bad_of(udp)),
            ("rx_checksum_bad_ip", self.bad_header()),
            ("rx_checksum_none", self.none()),
            ("rx_checksum_left", self.left()),
        ];
        let mut map = out.serialize_map(Some(counts.len()))?;
        for (name, frames) in counts {
            map.serialize_entry(name, &frames)?;
        }
        map.end()
    }
}
