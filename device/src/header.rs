//! `struct virtio_net_hdr`: what goes before each packet in a buffer (VIRTIO 1.3, 5.1.6).

use nic_model::counters::Drop;
use nic_model::frame::{Checksum, Contents, Frame, Gso, Segmentation};
use nic_model::rss::HashReport;
use nic_model::segment;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_RSC_INFO,
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
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
    /// NEEDS_CSUM, DATA_VALID, RSC_INFO.
    pub flags: u8,
    /// Which kind of segmentation is asked for.
    pub gso_type: u8,
    /// Octets of all headers; a hint, with GUEST_HDRLEN more than that, but never trusted.
    pub hdr_len: U16,
    /// Octets of each segment's payload.
    pub gso_size: U16,
    /// Where the checksum's cover begins; with RSC_INFO how many segments of TCP are in a received packet.
    pub csum_start: U16,
    /// Where its field is, from there; with RSC_INFO how many acknowledgements that said nothing new are in a received packet.
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
    /// The header of a received packet that spans `num_buffers` buffers, and that the driver [`takes`] as it is.
    #[must_use]
    #[inline]
    pub fn received(frame: &Frame, num_buffers: u16, features: Features) -> Self {
        let valid =
            matches!(frame.checksum, Checksum::Valid) && features.contains(Features::GUEST_CSUM);
        let mut header = NetHeader {
            flags: if valid {
                VIRTIO_NET_HDR_F_DATA_VALID as u8
            } else {
                0
            },
            num_buffers: U16::new(num_buffers),
            hash_value: U32::new(frame.hash),
            hash_report: U16::new(frame.hash_report as u16),
            ..Default::default()
        };
        if matches!(frame.checksum, Checksum::Partial { .. }) {
            header.set_offloads(frame);
            if frame.is_super() && features.contains(Features::RSC_EXT) {
                header.set_rsc_info(frame);
            }
        }
        header
    }

    /// Says how many segments were put together instead of where the checksum is (VIRTIO 1.3, 5.1.6.4.1). An acknowledgement without
    /// payload is never put together with others, so there are none that repeat what was said.
    #[cold]
    fn set_rsc_info(&mut self, frame: &Contents) {
        let of_tcp = matches!(frame.gso.kind, Segmentation::Tcpv4 | Segmentation::Tcpv6);
        let segments = if of_tcp { segment::frames(frame) } else { 0 };
        self.flags |= VIRTIO_NET_HDR_F_RSC_INFO as u8;
        self.csum_start.set(segments as u16);
        self.csum_offset.set(0);
    }

    /// Says what has yet to be done to `frame` (VIRTIO 1.3, 5.1.6.4.1): its checksum, and cutting it.
    #[cold]
    pub fn set_offloads(&mut self, frame: &Contents) {
        let Checksum::Partial { start, offset } = frame.checksum else {
            return;
        };
        self.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        self.csum_start.set(start);
        self.csum_offset.set(offset);
        self.gso_type = match frame.gso.kind {
            Segmentation::None => return,
            Segmentation::Tcpv4 => VIRTIO_NET_HDR_GSO_TCPV4,
            Segmentation::Tcpv6 => VIRTIO_NET_HDR_GSO_TCPV6,
            Segmentation::Udp => VIRTIO_NET_HDR_GSO_UDP_L4,
            Segmentation::Fragments => VIRTIO_NET_HDR_GSO_UDP,
        } as u8;
        if segment::reduces_congestion_window(frame) {
            self.gso_type |= VIRTIO_NET_HDR_GSO_ECN as u8;
        }
        self.gso_size.set(frame.gso.size);
        self.hdr_len.set(frame.gso.headers.into());
    }

    /// Notes in `frame`, which came from software with this header, what has yet to be done to it. Whether it can be cut, the
    /// port finds out.
    #[inline]
    pub fn tell(&self, frame: &mut Contents) {
        if u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            let (start, offset) = (self.csum_start.get(), self.csum_offset.get());
            if usize::from(start) + usize::from(offset) + 2 <= frame.len() {
                frame.checksum = Checksum::Partial { start, offset };
            }
        }
        if self.gso_type != 0 {
            let kind = u32::from(self.gso_type) & !VIRTIO_NET_HDR_GSO_ECN;
            frame.gso.kind = match kind {
                VIRTIO_NET_HDR_GSO_TCPV4 => Segmentation::Tcpv4,
                VIRTIO_NET_HDR_GSO_TCPV6 => Segmentation::Tcpv6,
                VIRTIO_NET_HDR_GSO_UDP => Segmentation::Fragments,
                _ => Segmentation::Udp,
            };
            frame.gso.size = self.gso_size.get();
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

    /// What the header of a super-frame asks for (VIRTIO 1.3, 5.1.6.2.1). The card finds the packet's headers itself, and
    /// counts where a driver that says their length exactly (GUEST_HDRLEN) is wrong: Linux from 6.3 on says so, and gives what lies in
    /// the packet's first piece.
    ///
    /// # Errors
    /// [`Drop::TxMalformed`] if that was not negotiated, or cannot be.
    #[cold]
    pub fn segmentation(&self, features: Features) -> Result<(Checksum, Gso), Drop> {
        let ecn = u32::from(self.gso_type) & VIRTIO_NET_HDR_GSO_ECN;
        let (kind, needed) = match u32::from(self.gso_type) & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_TCPV4 => (Segmentation::Tcpv4, Features::HOST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => (Segmentation::Tcpv6, Features::HOST_TSO6),
            VIRTIO_NET_HDR_GSO_UDP_L4 if ecn == 0 => (Segmentation::Udp, Features::HOST_USO),
            VIRTIO_NET_HDR_GSO_UDP if ecn == 0 => (Segmentation::Fragments, Features::HOST_UFO),
            _ => return Err(Drop::TxMalformed),
        };
        let with_ecn = ecn == 0 || features.contains(Features::HOST_ECN);
        let needs_checksum = u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let needed = needed | Features::CSUM;
        let size = self.gso_size.get();
        if !features.contains(needed) || !with_ecn || !needs_checksum || size == 0 {
            return Err(Drop::TxMalformed);
        }
        let checksum = Checksum::Partial {
            start: self.csum_start.get(),
            offset: self.csum_offset.get(),
        };
        let headers = if features.contains(Features::GUEST_HDRLEN) {
            // Something is said in any case.
            u8::try_from(self.hdr_len.get()).unwrap_or(u8::MAX).max(1)
        } else {
            0
        };
        let gso = Gso {
            kind,
            headers,
            size,
        };
        Ok((checksum, gso))
    }
}

/// Whether a driver that takes the offloads in `features` takes `frame` as it is; otherwise the card has to complete its checksum,
/// or to cut it.
#[must_use]
#[inline]
pub fn takes(frame: &Contents, features: Features) -> bool {
    !matches!(frame.checksum, Checksum::Partial { .. }) || takes_partial(frame, features)
}

#[cold]
fn takes_partial(frame: &Contents, features: Features) -> bool {
    let needed = match frame.gso.kind {
        Segmentation::None => Features::empty(),
        Segmentation::Tcpv4 => Features::GUEST_TSO4,
        Segmentation::Tcpv6 => Features::GUEST_TSO6,
        Segmentation::Udp if segment::is_ipv6(frame) => Features::GUEST_USO6,
        Segmentation::Udp => Features::GUEST_USO4,
        Segmentation::Fragments => Features::GUEST_UFO,
    };
    features.contains(needed | Features::GUEST_CSUM)
        && (frame.gso.kind == Segmentation::None
            || features.contains(Features::GUEST_ECN)
            || !segment::reduces_congestion_window(frame))
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
        assert_eq!(gso.segmentation(Features::all()), Err(Drop::TxMalformed));
        let plain = NetHeader::default();
        assert_eq!(plain.offloads(Features::empty()), Ok(Checksum::Unknown));
    }

    #[test]
    fn super_frames_may_be_asked_for_as_negotiated() {
        let header = |gso_type: u8, flags: u8, gso_size: u16| NetHeader {
            flags,
            gso_type,
            gso_size: U16::new(gso_size),
            csum_start: U16::new(34),
            csum_offset: U16::new(16),
            ..Default::default()
        };
        let partial = Checksum::Partial {
            start: 34,
            offset: 16,
        };
        for (gso_type, kind, feature) in [
            (1, Segmentation::Tcpv4, Features::HOST_TSO4),
            (4, Segmentation::Tcpv6, Features::HOST_TSO6),
            (5, Segmentation::Udp, Features::HOST_USO),
            (3, Segmentation::Fragments, Features::HOST_UFO),
        ] {
            let needed = Features::CSUM | feature;
            let gso = Gso {
                kind,
                headers: 0,
                size: 1448,
            };
            assert_eq!(
                header(gso_type, 1, 1448).segmentation(needed),
                Ok((partial, gso))
            );
            let refused = Err(Drop::TxMalformed);
            for missing in [Features::CSUM, feature] {
                let features = Features::all() - missing;
                assert_eq!(header(gso_type, 1, 1448).segmentation(features), refused);
            }
            assert_eq!(header(gso_type, 0, 1448).segmentation(needed), refused);
            assert_eq!(header(gso_type, 1, 0).segmentation(needed), refused);
            let ecn = header(gso_type | 0x80, 1, 1448);
            assert_eq!(ecn.segmentation(needed), refused);
            let with_ecn = ecn.segmentation(needed | Features::HOST_ECN);
            let tcp = matches!(kind, Segmentation::Tcpv4 | Segmentation::Tcpv6);
            assert_eq!(with_ecn.is_ok(), tcp);
            // What is said of the headers is noted where it is to be exact.
            let exact = needed | Features::GUEST_HDRLEN;
            let mut long = header(gso_type, 1, 1448);
            for (hdr_len, noted) in [(0, 1), (54, 54), (255, 255), (256, 255)] {
                long.hdr_len.set(hdr_len);
                assert_eq!(long.segmentation(exact).unwrap().1.headers, noted);
                assert_eq!(long.segmentation(needed).unwrap().1.headers, 0);
            }
        }
        for unknown in [0, 2, 6, 0x40, 0x80, 0x83, 0xff] {
            let asked = header(unknown, 1, 1448).segmentation(Features::all());
            assert_eq!(asked, Err(Drop::TxMalformed), "{unknown}");
        }
    }
}
