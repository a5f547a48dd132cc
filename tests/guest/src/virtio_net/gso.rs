//! Frames that stand for several segments (Linux: `include/linux/virtio_net.h`, `skb_shared_info`).
//!
//! In: headers that a device or the stack wrote, and the frames behind them. Out: what the stack knows of a
//! frame's segments, and headers for the device. A header that contradicts itself or its frame is bad, as in
//! `virtio_net_hdr_to_skb`; what was not negotiated is, too.

use super::features as f;
use super::header::{
    BadHeader, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_RSC_INFO, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4, VirtioNetHdr,
};
use crate::net::checksum::{csum_fold_raw, csum_partial};

/// TCP over IPv4.
pub const SKB_GSO_TCPV4: u32 = 1 << 0;
/// Its headers come from somebody who is not trusted.
pub const SKB_GSO_DODGY: u32 = 1 << 1;
/// TCP with CWR in the first segment only.
pub const SKB_GSO_TCP_ECN: u32 = 1 << 2;
/// TCP whose segments all have the same identification in IP's header.
pub const SKB_GSO_TCP_FIXEDID: u32 = 1 << 3;
/// TCP over IPv6.
pub const SKB_GSO_TCPV6: u32 = 1 << 4;
/// A datagram that becomes IP fragments (UFO).
pub const SKB_GSO_UDP: u32 = 1 << 16;
/// Datagrams (USO).
pub const SKB_GSO_UDP_L4: u32 = 1 << 17;

/// Datagrams in one frame at most.
pub const UDP_MAX_SEGMENTS: usize = 128;
/// A segment size that means something else in a kernel.
const GSO_BY_FRAGS: u16 = 0xffff;

/// Bytes of an Ethernet header, of a TCP header without options, of a UDP header.
const ETH_HLEN: usize = 14;
const TCPHDR_LEN: usize = 20;
const UDPHDR_LEN: usize = 8;
/// Bytes of an IPv4 header without options, and of an IPv6 header.
const IPHDR_LEN: usize = 20;
const IPV6HDR_LEN: usize = 40;
/// Where the checksum is in a TCP and in a UDP header.
const TCP_CHECK: u16 = 16;
const UDP_CHECK: u16 = 6;
const TCP_FLAGS: usize = 13;
const TCP_FLAG_CWR: u8 = 0x80;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Bytes of a frame that may be headers: Ethernet with a VLAN tag, IP and TCP, both with all options.
pub const MAX_HEADERS: usize = ETH_HLEN + 4 + 60 + 60;

/// What is known of the segments of a packet (`skb_shared_info`); all 0 of one that is no more than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SkbSharedInfo {
    /// `SKB_GSO_*`.
    pub gso_type: u32,
    /// Payload of each segment but the last, which may be shorter.
    pub gso_size: u16,
    /// How many segments. (Linux counts those of a received packet when it takes it apart.)
    pub gso_segs: u16,
}

/// A protocol that has segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GsoKind {
    gso_type: u32,
    /// Shortest network and transport header.
    nh_min_len: usize,
    thlen: usize,
    /// The driver receives it with one of these features.
    guest: u64,
}

impl GsoKind {
    fn of(gso_type: u8) -> Option<Self> {
        let kind = |gso_type, nh_min_len, thlen, guest| Self {
            gso_type,
            nh_min_len,
            thlen,
            guest,
        };
        let uso = f::GUEST_USO4 | f::GUEST_USO6;
        Some(match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_TCPV4 => kind(SKB_GSO_TCPV4, IPHDR_LEN, TCPHDR_LEN, f::GUEST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => kind(SKB_GSO_TCPV6, IPV6HDR_LEN, TCPHDR_LEN, f::GUEST_TSO6),
            VIRTIO_NET_HDR_GSO_UDP => kind(SKB_GSO_UDP, IPHDR_LEN, UDPHDR_LEN, f::GUEST_UFO),
            VIRTIO_NET_HDR_GSO_UDP_L4 => kind(SKB_GSO_UDP_L4, IPHDR_LEN, UDPHDR_LEN, uso),
            _ => return None,
        })
    }

    /// Whether it, in a header of that type, was negotiated.
    fn is_received(self, gso_type: u8, features: u64) -> bool {
        let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
        features & self.guest != 0 && (!ecn || features & f::GUEST_ECN != 0)
    }
}

/// What a device says of segments that it put together (RSC_EXT); all 0 of a packet that it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RscInfo {
    /// Segments of TCP.
    pub segments: u16,
    /// Acknowledgements among them that said nothing new.
    pub dup_acks: u16,
}

impl VirtioNetHdr {
    /// Takes what a device says of segments out of the header, where it stands in the place of the checksum, and says where the
    /// checksum is instead, as the headers in `head`, the frame's first bytes, have it.
    #[cold]
    pub(super) fn take_rsc_info(&mut self, head: &[u8]) -> RscInfo {
        let info = RscInfo {
            segments: self.csum_start,
            dup_acks: self.csum_offset,
        };
        self.flags &= !VIRTIO_NET_HDR_F_RSC_INFO;
        // Without headers the checksum is nowhere; the check then finds that out.
        (self.csum_start, self.csum_offset) = (u16::MAX, 0);
        if let Some(headers) = Headers::parse(head) {
            self.csum_start = headers.transport as u16;
            self.csum_offset = match headers.protocol {
                IPPROTO_TCP => TCP_CHECK,
                _ => UDP_CHECK,
            };
        }
        info
    }

    /// Checks what a header says of checksum and segments of a frame of `len` bytes (the checks of
    /// `virtio_net_hdr_to_skb`).
    pub(super) fn check_offloads(&self, len: usize, features: u64) -> Result<(), BadHeader> {
        let needs_csum = self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let is_gso = self.gso_type != VIRTIO_NET_HDR_GSO_NONE;
        let kind = match GsoKind::of(self.gso_type) {
            _ if !is_gso => None,
            Some(kind) if kind.is_received(self.gso_type, features) => Some(kind),
            _ => return Err(BadHeader::GsoType(self.gso_type)),
        };
        let thlen = kind.map_or(0, |kind| kind.thlen);
        if needs_csum {
            if features & f::GUEST_CSUM == 0 {
                return Err(BadHeader::CsumNotNegotiated);
            }
            let (start, offset) = (self.csum_start, self.csum_offset);
            let needed = usize::from(start) + thlen.max(usize::from(offset) + 2);
            let nh_min_len = kind.map_or(IPHDR_LEN, |kind| kind.nh_min_len);
            if needed > len || usize::from(start) < nh_min_len {
                return Err(BadHeader::Csum { start, offset, len });
            }
        }
        let Some(kind) = kind else { return Ok(()) };
        if matches!(self.gso_size, 0 | GSO_BY_FRAGS) {
            return Err(BadHeader::GsoSize(self.gso_size));
        }
        let p_off = self.payload_offset(kind);
        if p_off > len {
            return Err(BadHeader::GsoShort(len));
        }
        let check_at = if kind.thlen == TCPHDR_LEN {
            TCP_CHECK
        } else {
            UDP_CHECK
        };
        let elsewhere = needs_csum && self.csum_offset != check_at;
        if kind.gso_type == SKB_GSO_UDP_L4 {
            let most = usize::from(self.gso_size) * UDP_MAX_SEGMENTS;
            if !needs_csum || elsewhere {
                return Err(BadHeader::GsoCsum);
            }
            if len - p_off > most {
                return Err(BadHeader::GsoSize(self.gso_size));
            }
        } else if elsewhere && kind.thlen == TCPHDR_LEN {
            return Err(BadHeader::GsoCsum);
        }
        Ok(())
    }

    /// Where the payload of a GSO frame begins, as far as the header tells.
    fn payload_offset(&self, kind: GsoKind) -> usize {
        if self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            usize::from(self.csum_start) + kind.thlen
        } else {
            kind.nh_min_len + kind.thlen
        }
    }

    /// What it says of the segments of a frame of `len` bytes, of which `head` are the first, at least
    /// [`MAX_HEADERS`] where there are so many. The header was checked.
    #[must_use]
    pub fn shared_info(&self, len: usize, head: &[u8]) -> SkbSharedInfo {
        if self.gso_type == VIRTIO_NET_HDR_GSO_NONE {
            return SkbSharedInfo::default();
        }
        self.gso_info(len, head)
    }

    #[cold]
    fn gso_info(&self, len: usize, head: &[u8]) -> SkbSharedInfo {
        let Some(kind) = GsoKind::of(self.gso_type) else {
            return SkbSharedInfo::default();
        };
        // UFO's size may count the transport header in.
        let of_ip = if kind.gso_type == SKB_GSO_UDP {
            kind.thlen
        } else {
            0
        };
        let nh_off = self.payload_offset(kind).saturating_sub(of_ip);
        if len.saturating_sub(nh_off) <= usize::from(self.gso_size) {
            // Too short to be cut up.
            return SkbSharedInfo::default();
        }
        let headers = Headers::parse(head).map_or(nh_off, |headers| headers.end - of_ip);
        let segs = len.saturating_sub(headers).max(1);
        let segs = segs.div_ceil(self.gso_size.into());
        let ecn = if self.gso_type & VIRTIO_NET_HDR_GSO_ECN != 0 {
            SKB_GSO_TCP_ECN
        } else {
            0
        };
        SkbSharedInfo {
            gso_type: kind.gso_type | ecn | SKB_GSO_DODGY,
            gso_size: self.gso_size,
            gso_segs: u16::try_from(segs).unwrap_or(u16::MAX),
        }
    }

    /// What a device is told of a packet with those segments, whose headers are `hdr_len` bytes long
    /// (`virtio_net_hdr_from_skb`, `virtio_net_set_hdrlen`).
    #[must_use]
    pub fn with_shared_info(self, info: &SkbSharedInfo, hdr_len: u16) -> Self {
        let gso_type = match info.gso_type & !(SKB_GSO_DODGY | SKB_GSO_TCP_ECN) {
            SKB_GSO_TCPV4 => VIRTIO_NET_HDR_GSO_TCPV4,
            SKB_GSO_TCPV6 => VIRTIO_NET_HDR_GSO_TCPV6,
            SKB_GSO_UDP => VIRTIO_NET_HDR_GSO_UDP,
            SKB_GSO_UDP_L4 => VIRTIO_NET_HDR_GSO_UDP_L4,
            _ => return self,
        };
        let ecn = if info.gso_type & SKB_GSO_TCP_ECN != 0 {
            VIRTIO_NET_HDR_GSO_ECN
        } else {
            0
        };
        self.with_gso(gso_type | ecn, info.gso_size, hdr_len)
    }
}

/// Where the headers of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Headers {
    network: usize,
    transport: usize,
    /// Where the payload begins.
    end: usize,
    is_v6: bool,
    protocol: u8,
}

impl Headers {
    /// Of a frame with Ethernet, one VLAN tag at most, IP, and TCP or UDP behind it.
    fn parse(frame: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let mut network = ETH_HLEN;
        let mut ethertype = half(12)?;
        if ethertype == 0x8100 {
            (ethertype, network) = (half(16)?, network + 4);
        }
        let byte = |at: usize| frame.get(network + at).copied();
        let (is_v6, protocol, len) = match ethertype {
            0x0800 => (false, byte(9)?, usize::from(byte(0)? & 0xf) * 4),
            0x86dd => (true, byte(6)?, IPV6HDR_LEN),
            _ => return None,
        };
        let transport = network + len;
        let thlen = match protocol {
            IPPROTO_TCP => usize::from(frame.get(transport + 12)? >> 4) * 4,
            IPPROTO_UDP => UDPHDR_LEN,
            _ => return None,
        };
        let least = if protocol == IPPROTO_TCP {
            TCPHDR_LEN
        } else {
            UDPHDR_LEN
        };
        let end = transport + thlen;
        let possible = len >= IPHDR_LEN && thlen >= least && frame.len() >= end;
        possible.then_some(Self {
            network,
            transport,
            end,
            is_v6,
            protocol,
        })
    }
}

/// Makes a frame with all its headers one that the device cuts up: TCP over IPv4 or IPv6 into segments of
/// `gso_size` bytes of payload (`tcp_write_xmit`), UDP into datagrams of that size (UDP_SEGMENT). The sum of its
/// pseudo header is put where the checksum is to be. What is returned goes with the frame to
/// [`super::VirtnetInfo::start_xmit`]; `None` of a frame that is neither.
pub fn super_frame(frame: &mut [u8], gso_size: u16) -> Option<VirtioNetHdr> {
    leave_to_device(frame, gso_size, SKB_GSO_UDP_L4)
}

/// The same, but UDP is a datagram that the device sends as fragments of IP with `gso_size` bytes each, UDP's header
/// among them (UFO).
pub fn ufo_frame(frame: &mut [u8], gso_size: u16) -> Option<VirtioNetHdr> {
    leave_to_device(frame, gso_size, SKB_GSO_UDP)
}

fn leave_to_device(frame: &mut [u8], gso_size: u16, of_udp: u32) -> Option<VirtioNetHdr> {
    let headers = Headers::parse(frame)?;
    let (offset, gso_type) = match (headers.protocol, headers.is_v6) {
        (IPPROTO_TCP, false) => (TCP_CHECK, SKB_GSO_TCPV4),
        (IPPROTO_TCP, true) => (TCP_CHECK, SKB_GSO_TCPV6),
        _ => (UDP_CHECK, of_udp),
    };
    let ecn = match headers.protocol {
        IPPROTO_TCP if frame[headers.transport + TCP_FLAGS] & TCP_FLAG_CWR != 0 => SKB_GSO_TCP_ECN,
        _ => 0,
    };
    let addresses = if headers.is_v6 {
        headers.network + 8..headers.network + 40
    } else {
        headers.network + 12..headers.network + 20
    };
    let len = (frame.len() - headers.transport) as u32;
    let rest = len + u32::from(headers.protocol);
    let sum = csum_partial(&frame[addresses], u64::from(rest.to_be()));
    let at = headers.transport + usize::from(offset);
    frame[at..at + 2].copy_from_slice(&csum_fold_raw(sum).to_ne_bytes());
    let hdr = VirtioNetHdr::needs_csum(headers.transport as u16, offset);
    let payload = match gso_type {
        SKB_GSO_UDP => frame.len() - headers.transport,
        _ => frame.len() - headers.end,
    };
    if payload <= usize::from(gso_size) {
        return Some(hdr);
    }
    let info = SkbSharedInfo {
        gso_type: gso_type | ecn,
        gso_size,
        gso_segs: u16::try_from(payload.div_ceil(gso_size.max(1).into())).ok()?,
    };
    Some(hdr.with_shared_info(&info, headers.end as u16))
}
