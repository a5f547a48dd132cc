//! `struct virtio_net_hdr`: what goes before each packet in a buffer (VIRTIO 1.3, 5.1.6).

use nic_model::counters::Drop;
use nic_model::frame::{Checksum, Frame};
use nic_model::rss::HashReport;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::features::Features;

/// The longest header.
pub const MAX_HEADER: usize = size_of::<NetHeader>();
/// Most drivers' header: without HASH_REPORT.
pub const USUAL_HEADER: usize = 12;
/// The header of a legacy driver without MRG_RXBUF.
pub const LEGACY_HEADER: usize = 10;

/// The header's fields (`struct virtio_net_hdr_v1_hash`). Without HASH_REPORT it ends with `num_buffers`, for a legacy
/// driver without MRG_RXBUF before that.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetHeader {
    /// NEEDS_CSUM, DATA_VALID.
    pub flags: u8,
    /// Which kind of segmentation is asked for.
    pub gso_type: u8,
    /// Octets of all headers; a hint, never trusted.
    pub hdr_len: U16,
    /// Octets of each segment's payload.
    pub gso_size: U16,
    /// Where the checksum's cover begins.
    pub csum_start: U16,
    /// Where its field is, from there.
    pub csum_offset: U16,
    /// Buffers that a received packet spans.
    pub num_buffers: U16,
    /// The hash that a received packet was steered by.
    pub hash_value: U32,
    /// What was hashed (VIRTIO 1.4, 5.1.6.4.5).
    pub hash_report: U16,
    /// Nothing.
    pub padding_reserved: U16,
}

/// The octets of [`NetHeader::received`] for a packet in one buffer, of which no more is to be said than its `flags` and its
/// hash: most packets. In a few moves.
#[must_use]
#[inline(always)]
pub fn plain(flags: u8, hash: u32, report: HashReport) -> [u8; MAX_HEADER] {
    let num_buffers = 1 << 16;
    let mut bytes = [0; MAX_HEADER];
    bytes[..8].copy_from_slice(&u64::from(flags).to_le_bytes());
    bytes[8..16].copy_from_slice(&(u64::from(hash) << 32 | num_buffers).to_le_bytes());
    bytes[16..].copy_from_slice(&(report as u32).to_le_bytes());
    bytes
}

impl NetHeader {
    /// The header of a received packet that spans `num_buffers` buffers.
    #[must_use]
    #[inline]
    pub fn received(frame: &Frame, num_buffers: u16, features: Features) -> Self {
        let valid =
            matches!(frame.checksum, Checksum::Valid) && features.contains(Features::GUEST_CSUM);
        NetHeader {
            flags: if valid {
                VIRTIO_NET_HDR_F_DATA_VALID as u8
            } else {
                0
            },
            num_buffers: U16::new(num_buffers),
            hash_value: U32::new(frame.hash),
            hash_report: U16::new(frame.hash_report as u16),
            ..Default::default()
        }
    }

    /// What the header of a packet to be sent asks for.
    ///
    /// # Errors
    /// [`Drop::TxMalformed`] if that was not negotiated.
    #[inline]
    pub fn offloads(&self, features: Features) -> Result<Checksum, Drop> {
        if u32::from(self.gso_type) != VIRTIO_NET_HDR_GSO_NONE {
            return Err(Drop::TxMalformed);
        }
        if u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
            return Ok(Checksum::Unknown);
        }
        if !features.contains(Features::CSUM) {
            return Err(Drop::TxMalformed);
        }
        Ok(Checksum::Partial {
            start: self.csum_start.get(),
            offset: self.csum_offset.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic_model::frame::Pool;

    #[test]
    fn the_layout_is_the_specifications() {
        let mut frame = Pool::new(64).take();
        frame.checksum = Checksum::Valid;
        (frame.hash, frame.hash_report) = (0x0403_0201, HashReport::Udpv6Ex);
        let header = NetHeader::received(&frame, 3, Features::GUEST_CSUM);
        let (usual, hash) = header.as_bytes().split_at(USUAL_HEADER);
        assert_eq!(usual, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
        assert_eq!(hash, [1, 2, 3, 4, 9, 0, 0, 0]);
        let header = NetHeader::received(&frame, 1, Features::empty());
        assert_eq!(
            header.flags, 0,
            "a driver without GUEST_CSUM gets no verdict"
        );
    }

    #[test]
    fn only_what_was_negotiated_may_be_asked_for() {
        let mut header = NetHeader {
            flags: 1,
            ..Default::default()
        };
        header.csum_start.set(34);
        header.csum_offset.set(16);
        let partial = Checksum::Partial {
            start: 34,
            offset: 16,
        };
        assert_eq!(header.offloads(Features::CSUM), Ok(partial));
        assert_eq!(header.offloads(Features::empty()), Err(Drop::TxMalformed));
        let gso = NetHeader {
            gso_type: 1,
            ..Default::default()
        };
        assert_eq!(gso.offloads(Features::all()), Err(Drop::TxMalformed));
        let plain = NetHeader::default();
        assert_eq!(plain.offloads(Features::empty()), Ok(Checksum::Unknown));
    }
}
