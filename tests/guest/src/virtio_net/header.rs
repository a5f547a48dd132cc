//! `virtio_net_hdr`: what stands before every frame in a buffer (virtio 1.3, 5.1.6).
//!
//! 12 bytes with VERSION_1 or MRG_RXBUF, 10 without both, 20 with HASH_REPORT. What enters from the
//! device is checked here, as Linux checks it in `virtio_net_hdr_to_skb`: a header that lies costs
//! the frame.

use super::features as f;
use super::hash_input as h;

/// `csum_start` and `csum_offset` say where a checksum is missing.
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
pub const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
/// The frame was put together from `csum_start` segments.
pub const VIRTIO_NET_HDR_F_RSC_INFO: u8 = 4;

/// Not a GSO frame.
pub const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
/// UDP fragments.
pub const VIRTIO_NET_HDR_GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
/// UDP segments.
pub const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;
/// TCP with ECN; beside the type.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;

/// Longest header this driver knows: with HASH_REPORT.
pub const MAX_HDR_LEN: usize = 20;
/// The header with VERSION_1 and without HASH_REPORT.
pub(super) const USUAL_HDR_LEN: usize = 12;

/// The header, in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioNetHdr {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all headers of a GSO frame.
    pub hdr_len: u16,
    /// Payload of each segment.
    pub gso_size: u16,
    /// Where the checksum begins to be summed.
    pub csum_start: u16,
    /// Where, from there, it is stored.
    pub csum_offset: u16,
    /// Buffers that the frame is in; only in frames received.
    pub num_buffers: u16,
    /// With HASH_REPORT: the hash of a frame received.
    pub hash_value: u32,
    /// With HASH_REPORT: `VIRTIO_NET_HASH_REPORT_*` of a frame received.
    pub hash_report: u16,
}

/// What a reported hash is made of (`enum pkt_hash_types`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PktHashType {
    /// Nobody knows: there is none, or of a type that is not known.
    None,
    /// Addresses.
    L3,
    /// Addresses and ports.
    L4,
}

/// Why a header is no good ("bad gso" in Linux).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// A GSO type that does not exist or was not negotiated.
    #[error("bad gso: type {0:#x}")]
    GsoType(u8),
    /// A segment size that cannot be, or makes too many segments.
    #[error("bad gso: size {0}")]
    GsoSize(u16),
    /// A GSO frame without room for its headers.
    #[error("bad gso: headers in {0} bytes")]
    GsoShort(usize),
    /// A GSO frame whose checksum is not left to be filled in where its protocol has it.
    #[error("bad gso: checksum")]
    GsoCsum,
    /// A checksum outside the frame, or in its network header.
    #[error("checksum at {start}+{offset} in a frame of {len}")]
    Csum {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Length of the frame.
        len: usize,
    },
    /// A partial checksum, which was not negotiated.
    #[error("NEEDS_CSUM without VIRTIO_NET_F_GUEST_CSUM")]
    CsumNotNegotiated,
}

impl VirtioNetHdr {
    /// A header for a frame whose checksum the device is to fill in.
    #[must_use]
    pub fn needs_csum(start: u16, offset: u16) -> Self {
        Self {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            csum_start: start,
            csum_offset: offset,
            ..Self::default()
        }
    }

    /// The same, for a frame that the device is to cut up.
    #[must_use]
    pub fn with_gso(self, gso_type: u8, gso_size: u16, hdr_len: u16) -> Self {
        Self {
            gso_type,
            gso_size,
            hdr_len,
            ..self
        }
    }

    /// Length of the header under `features`.
    #[must_use]
    pub fn len(features: u64) -> usize {
        if features & f::HASH_REPORT != 0 {
            20
        } else if features & (f::MRG_RXBUF | f::VERSION_1) != 0 {
            12
        } else {
            10
        }
    }

    /// The header as it stands in memory; the first [`Self::len`] bytes count.
    #[inline]
    #[must_use]
    pub fn to_bytes(&self) -> [u8; MAX_HDR_LEN] {
        let mut bytes = [0; MAX_HDR_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let words = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        for (at, word) in (2..).step_by(2).zip(words) {
            bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        bytes[12..16].copy_from_slice(&self.hash_value.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.hash_report.to_le_bytes());
        bytes
    }

    /// Reads a header; what `features` leave out is 0.
    #[inline]
    #[must_use]
    pub fn from_bytes(bytes: &[u8; MAX_HDR_LEN], features: u64) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut hdr = Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            ..Self::default()
        };
        if features & (f::MRG_RXBUF | f::VERSION_1) != 0 {
            hdr.num_buffers = word(10);
        }
        if features & f::HASH_REPORT != 0 {
            hdr.hash_value = u32::from(word(12)) | u32::from(word(14)) << 16;
            hdr.hash_report = word(16);
        }
        hdr
    }

    /// Reads a header of 12 bytes, the first eight in `low`, the others in `high`, as little-endian numbers.
    #[inline]
    #[must_use]
    pub fn from_words(low: u64, high: u32) -> Self {
        Self {
            flags: low as u8,
            gso_type: (low >> 8) as u8,
            hdr_len: (low >> 16) as u16,
            gso_size: (low >> 32) as u16,
            csum_start: (low >> 48) as u16,
            csum_offset: high as u16,
            num_buffers: (high >> 16) as u16,
            ..Self::default()
        }
    }

    /// Reads a header of 20 bytes, the first eight in `low`, the next eight in `high`, the others in `report`, as
    /// little-endian numbers.
    #[inline]
    #[must_use]
    pub fn from_long_words(low: u64, high: u64, report: u32) -> Self {
        Self {
            hash_value: (high >> 32) as u32,
            hash_report: report as u16,
            ..Self::from_words(low, high as u32)
        }
    }

    /// What the reported hash is made of.
    #[inline]
    #[must_use]
    pub fn hash_type(&self) -> PktHashType {
        match self.hash_report {
            h::VIRTIO_NET_HASH_REPORT_TCPV4
            | h::VIRTIO_NET_HASH_REPORT_UDPV4
            | h::VIRTIO_NET_HASH_REPORT_TCPV6
            | h::VIRTIO_NET_HASH_REPORT_UDPV6
            | h::VIRTIO_NET_HASH_REPORT_TCPV6_EX
            | h::VIRTIO_NET_HASH_REPORT_UDPV6_EX => PktHashType::L4,
            h::VIRTIO_NET_HASH_REPORT_IPV4
            | h::VIRTIO_NET_HASH_REPORT_IPV6
            | h::VIRTIO_NET_HASH_REPORT_IPV6_EX => PktHashType::L3,
            _ => PktHashType::None,
        }
    }

    /// Checks a header that came with a frame of `len` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline]
    pub fn check(&self, len: usize, features: u64) -> Result<(), BadHeader> {
        let needs_csum = self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        if !needs_csum && self.gso_type == VIRTIO_NET_HDR_GSO_NONE {
            return Ok(());
        }
        self.check_offloads(len, features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_follow_the_features() {
        assert_eq!(VirtioNetHdr::len(0), 10);
        assert_eq!(VirtioNetHdr::len(f::MRG_RXBUF), 12);
        assert_eq!(VirtioNetHdr::len(f::VERSION_1), 12);
        assert_eq!(VirtioNetHdr::len(f::VERSION_1 | f::HASH_REPORT), 20);
    }

    #[test]
    fn bytes_come_back() {
        let hdr = VirtioNetHdr {
            flags: 1,
            gso_type: 4,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
            num_buffers: 0x090a,
            hash_value: 0x0b0c_0d0e,
            hash_report: 0x0f10,
        };
        let all = f::MRG_RXBUF | f::HASH_REPORT;
        assert_eq!(VirtioNetHdr::from_bytes(&hdr.to_bytes(), all), hdr);
        let bytes = hdr.to_bytes();
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        let report = (word(12) >> 32) as u32;
        let long = VirtioNetHdr::from_long_words(word(0), word(8), report);
        assert_eq!(long, hdr);
        let plain = VirtioNetHdr::from_bytes(&hdr.to_bytes(), 0);
        assert_eq!(
            (plain.num_buffers, plain.hash_value, plain.hash_report),
            (0, 0, 0)
        );
        assert_eq!(hdr.to_bytes()[..4], [1, 4, 2, 1]);
    }

    #[test]
    fn hashes_are_of_addresses_or_ports() {
        use PktHashType::{L3, L4, None};
        let types: Vec<_> = (0..11)
            .map(|hash_report| VirtioNetHdr {
                hash_report,
                ..VirtioNetHdr::default()
            })
            .map(|hdr| hdr.hash_type())
            .collect();
        assert_eq!(types, [None, L3, L4, L4, L3, L4, L4, L3, L4, L4, None]);
    }

    #[test]
    fn lies_are_found() {
        let features = f::GUEST_CSUM | f::GUEST_TSO4;
        let csum = VirtioNetHdr::needs_csum(34, 16);
        assert_eq!(csum.check(52, features), Ok(()));
        let past = BadHeader::Csum {
            start: 34,
            offset: 16,
            len: 51,
        };
        assert_eq!(csum.check(51, features), Err(past));
        assert_eq!(csum.check(52, 0), Err(BadHeader::CsumNotNegotiated));
        let far = VirtioNetHdr::needs_csum(0xffff, 0xffff);
        assert!(far.check(1500, features).is_err());
        assert_eq!(csum.with_gso(1, 1448, 54).check(9000, features), Ok(()));
        assert_eq!(
            csum.with_gso(1, 0, 54).check(9000, features),
            Err(BadHeader::GsoSize(0))
        );
        for bad in [2, 3, 4, 5, 0x81, 0x80, 0xff] {
            let lie = csum.with_gso(bad, 1448, 54).check(9000, features);
            assert_eq!(lie, Err(BadHeader::GsoType(bad)));
        }
    }
}
