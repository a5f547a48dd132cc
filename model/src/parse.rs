//! The header walk: each received frame's headers are looked at once, here, and the later blocks use what
//! was found.
//!
//! Ethernet II with any number of VLAN tags (IEEE 802.1Q), IPv4 (RFC 791), IPv6 with its extension headers
//! (RFC 8200, 4), TCP and UDP. Nothing is dropped: a frame that makes no sense has a shorter summary.
//!
//! The addresses of Mobile IPv6 (RFC 6275) have hardly a frame to be in, so a summary has no place for them: whoever
//! wants them has the extension headers walked again, by [`mobile_addresses`].

use crate::frame::{ETHERNET_HEADER, FCS};
use crate::mac::MIN_FRAME;

/// Which network protocol a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Neither version of IP, or a header that is cut off or inconsistent.
    Other,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Which transport protocol a frame carries. A fragment carries none: it has no whole transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// None that the card knows.
    None,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What the header walk found. Offsets count octets from the first octet of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The network protocol. If it is IP, its fixed header is within the frame.
    pub network: Network,
    /// The transport protocol. If there is one, its fixed header is within the frame and before `end`.
    pub transport: Transport,
    /// Whether it is a fragment of an IP datagram.
    pub fragment: bool,
    /// Where the network header begins.
    pub network_offset: u16,
    /// Where the transport header begins.
    pub transport_offset: u16,
    /// Where the IP packet ends; padding may follow.
    pub end: u32,
}

impl Summary {
    /// Whether there are extension headers of IPv6 between the network header and the transport header.
    #[must_use]
    #[inline]
    pub fn is_extended(&self) -> bool {
        self.network == Network::Ipv6 && self.transport_offset != self.network_offset + IPV6_HEADER
    }

    /// Whether there is a tag before the network header.
    #[must_use]
    #[inline]
    pub fn is_tagged(&self) -> bool {
        usize::from(self.network_offset) != ETHERNET_HEADER
    }
}

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Octets of IPv4's header without options.
const IPV4_HEADER: usize = 20;
/// More fragments, and the fragment offset.
const FRAGMENT_BITS: u16 = 0x3fff;

/// Octets of the transport headers without options.
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Octets of IPv6's fixed header, and where the addresses are in it.
pub(crate) const IPV6_HEADER: u16 = 40;
const IPV6_SOURCE: usize = 8;
const IPV6_DESTINATION: usize = 24;

/// How a routing header of type 2 goes on behind its first octet: it has 2 units of 8 octets more than the
/// shortest, an address in them (RFC 6275, 6.4).
const ROUTING_TYPE_2: [u8; 2] = [2, 2];

/// Destination options: the padding that is a lone octet, and the home address (RFC 6275, 6.3), an address.
const PAD1: u8 = 0;
const HOME_ADDRESS: u8 = 0xc9;
const ADDRESS_LEN: usize = 16;

/// Tags and extension headers that the walk passes at most: more are no traffic that anyone sends.
const MAX_TAGS: usize = 4;
const MAX_EXTENSIONS: usize = 8;

/// Walks the headers of a frame that begins with its destination address and has no check sequence.
#[must_use]
#[inline]
pub fn summarise(frame: &[u8]) -> Summary {
    ethernet(frame, 0)
}

/// What is not the same in all frames that are as most are: no shorter than the line carries, IP of `VERSION` 4 or 6 with
/// neither tags nor options nor extension headers, whole, TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plain<const VERSION: u8> {
    pub(crate) transport: Transport,
    /// Where the IP packet ends; padding may follow.
    pub(crate) end: u32,
}

impl<const VERSION: u8> Plain<VERSION> {
    const NETWORK: usize = ETHERNET_HEADER;
    const IP: Network = match VERSION {
        4 => Network::Ipv4,
        _ => Network::Ipv6,
    };
    /// Where the transport header begins.
    pub(crate) const TRANSPORT: usize = match VERSION {
        4 => Self::NETWORK + IPV4_HEADER,
        _ => Self::NETWORK + IPV6_HEADER as usize,
    };
    /// Where the addresses begin, which end the network header.
    pub(crate) const ADDRESSES: usize = match VERSION {
        4 => Self::TRANSPORT - 2 * 4,
        _ => Self::TRANSPORT - 2 * ADDRESS_LEN,
    };

    /// What the header walk finds. All that is the same in these frames are constants, to whoever has this inlined.
    #[inline(always)]
    pub(crate) fn summary(self) -> Summary {
        Summary {
            network: Self::IP,
            transport: self.transport,
            fragment: false,
            network_offset: Self::NETWORK as u16,
            transport_offset: Self::TRANSPORT as u16,
            end: self.end,
        }
    }
}

impl Plain<4> {
    /// The headers of `frame`; `None` if it is another one, or makes no sense.
    #[inline(always)]
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        const NETWORK: usize = Plain::<4>::NETWORK;
        let headers = frame.first_chunk::<{ MIN_FRAME - FCS }>()?;
        let (transport, shortest) = match headers[NETWORK + 9] {
            UDP => (Transport::Udp, UDP_HEADER),
            TCP => (Transport::Tcp, TCP_HEADER),
            _ => return None,
        };
        let total_len = u16::from_be_bytes([headers[NETWORK + 2], headers[NETWORK + 3]]);
        let end = NETWORK + usize::from(total_len);
        let fragment = u16::from_be_bytes([headers[NETWORK + 6], headers[NETWORK + 7]]);
        let is_plain = [headers[12], headers[13]] == ETHERTYPE_IPV4.to_be_bytes()
            && headers[NETWORK] == 0x45
            && fragment & FRAGMENT_BITS == 0
            && end >= Self::TRANSPORT + shortest
            && end <= frame.len();
        let end = end as u32;
        is_plain.then_some(Plain { transport, end })
    }
}

impl Plain<6> {
    /// The headers of `frame`; `None` if it is another one, or makes no sense.
    #[inline(always)]
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        const NETWORK: usize = Plain::<6>::NETWORK;
        // With the shorter of the transport headers it is longer than the line asks for.
        let headers = frame.first_chunk::<{ Plain::<6>::TRANSPORT + UDP_HEADER }>()?;
        if [headers[12], headers[13]] != ETHERTYPE_IPV6.to_be_bytes() {
            return None;
        }
        let (transport, shortest) = match headers[NETWORK + 6] {
            UDP => (Transport::Udp, UDP_HEADER),
            TCP => (Transport::Tcp, TCP_HEADER),
            _ => return None,
        };
        let payload_len = u16::from_be_bytes([headers[NETWORK + 4], headers[NETWORK + 5]]);
        let end = Self::TRANSPORT + usize::from(payload_len);
        let is_plain =
            headers[NETWORK] >> 4 == 6 && end >= Self::TRANSPORT + shortest && end <= frame.len();
        let end = end as u32;
        is_plain.then_some(Plain { transport, end })
    }
}

/// Walks the headers that begin with a destination address at `start`.
#[inline]
pub(crate) fn ethernet(frame: &[u8], start: usize) -> Summary {
    let mut offset = start + 12;
    let mut ethertype = be16(frame, offset).unwrap_or(0);
    for _ in 0..MAX_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        offset += 4;
        ethertype = be16(frame, offset).unwrap_or(0);
    }
    network(frame, offset + 2, ethertype)
}

/// Walks the headers that begin at `offset` with the one that `ethertype` stands for.
#[inline]
pub(crate) fn network(frame: &[u8], offset: usize, ethertype: u16) -> Summary {
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, offset),
        ETHERTYPE_IPV6 => ipv6(frame, offset),
        _ => None,
    }
    .unwrap_or(Summary {
        network: Network::Other,
        transport: Transport::None,
        fragment: false,
        network_offset: offset as u16,
        transport_offset: offset as u16,
        end: frame.len() as u32,
    })
}

#[inline]
fn be16(frame: &[u8], at: usize) -> Option<u16> {
    let octets = frame.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*octets))
}

/// The octets of the IPv4 header that begins at `offset`, with its options, if its EtherType, version and length say that there is one, whatever the
/// packet's length is.
#[cold]
pub(crate) fn ipv4_header(frame: &[u8], offset: usize) -> Option<&[u8]> {
    let header = frame.get(offset..)?;
    let first = *header.first()?;
    let len = usize::from(first & 0x0f) * 4;
    let is_one = be16(frame, offset.checked_sub(2)?) == Some(ETHERTYPE_IPV4)
        && first >> 4 == 4
        && len >= IPV4_HEADER;
    header.get(..len).filter(|_| is_one)
}

#[inline]
fn ipv4(frame: &[u8], offset: usize) -> Option<Summary> {
    let header = frame.get(offset..)?.first_chunk::<IPV4_HEADER>()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < IPV4_HEADER {
        return None;
    }
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let end = offset + total_len;
    if total_len < header_len || end > frame.len() {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_BITS != 0;
    let transport_offset = offset + header_len;
    Some(Summary {
        network: Network::Ipv4,
        transport: transport(header[9], fragment, end - transport_offset),
        fragment,
        network_offset: offset as u16,
        transport_offset: transport_offset as u16,
        end: end as u32,
    })
}

#[inline]
fn ipv6(frame: &[u8], offset: usize) -> Option<Summary> {
    let header = frame.get(offset..)?.first_chunk::<40>()?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let end = offset + 40 + payload_len;
    if header[0] >> 4 != 6 || end > frame.len() {
        return None;
    }
    let mut next = header[6];
    let mut at = offset + 40;
    let mut fragment = false;
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT
        ) {
            break;
        }
        let extension = frame.get(at..)?.first_chunk::<8>()?;
        if next == FRAGMENT {
            // An atomic fragment (RFC 6946) is a whole datagram.
            fragment |= u16::from_be_bytes([extension[2], extension[3]]) & 0xfff9 != 0;
        }
        at += extension_len(next, extension);
        next = extension[0];
        if at > end {
            return None;
        }
        if fragment {
            break;
        }
    }
    Some(Summary {
        network: Network::Ipv6,
        transport: transport(next, fragment, end - at),
        fragment,
        network_offset: offset as u16,
        transport_offset: at as u16,
        end: end as u32,
    })
}

/// Octets of an extension header of the kind `header`.
#[inline]
pub(crate) fn extension_len(header: u8, octets: &[u8; 8]) -> usize {
    match header {
        FRAGMENT => 8,
        AUTHENTICATION => (usize::from(octets[1]) + 2) * 4,
        _ => (usize::from(octets[1]) + 1) * 8,
    }
}

/// Where a frame of IPv6 with the headers `summary` has the addresses that stand for the ends of the conversation
/// wherever they roam: that of a home address option, or else the source, and that of a routing header
/// of type 2, or else the destination.
#[must_use]
pub fn mobile_addresses(frame: &[u8], summary: &Summary) -> (usize, usize) {
    let network = usize::from(summary.network_offset);
    let (mut source, mut destination) = (network + IPV6_SOURCE, network + IPV6_DESTINATION);
    // The summary vouches for the headers being there, up to the transport header.
    let headers = frame
        .get(..usize::from(summary.transport_offset))
        .unwrap_or(&[]);
    let mut next = headers.get(network + 6).copied().unwrap_or(0);
    let mut at = network + usize::from(IPV6_HEADER);
    while let Some(header) = headers.get(at..).and_then(<[u8]>::first_chunk) {
        let end = at + extension_len(next, header);
        match next {
            ROUTING if header[1..3] == ROUTING_TYPE_2 => destination = at + 8,
            DESTINATION_OPTIONS => {
                let option = headers.get(at..end).and_then(home_address);
                source = option.map_or(source, |option| at + option);
            }
            _ => {}
        }
        next = header[0];
        at = end;
    }
    (source, destination)
}

/// Where the address of a home address option is in a destination options header.
fn home_address(header: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        let kind = *header.get(at)?;
        if kind == PAD1 {
            at += 1;
            continue;
        }
        let len = usize::from(*header.get(at + 1)?);
        let value = at + 2;
        at = value + len;
        if kind == HOME_ADDRESS && len == ADDRESS_LEN && at <= header.len() {
            return Some(value);
        }
    }
}

#[inline]
fn transport(protocol: u8, fragment: bool, octets: usize) -> Transport {
    match protocol {
        TCP if !fragment && octets >= TCP_HEADER => Transport::Tcp,
        UDP if !fragment && octets >= UDP_HEADER => Transport::Udp,
        _ => Transport::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    #[test]
    fn tags_are_skipped() {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .double_vlan(
                etherparse::VlanId::try_new(5).unwrap(),
                etherparse::VlanId::try_new(6).unwrap(),
            )
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut bytes, b"hello")
            .unwrap();
        let summary = summarise(&bytes);
        assert_eq!(summary.network, Network::Ipv4);
        assert_eq!(summary.transport, Transport::Udp);
        assert_eq!((summary.network_offset, summary.transport_offset), (22, 42));
        assert_eq!(summary.end as usize, bytes.len());
        assert!(summary.is_tagged() && !summarise(&bytes[8..]).is_tagged());
    }

    #[test]
    fn extension_headers_are_walked() {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 64)
            .udp(1, 2)
            .write(&mut bytes, b"hello")
            .unwrap();
        // A destination options header of 8 octets between IPv6 and UDP.
        bytes.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        bytes[14 + 6] = DESTINATION_OPTIONS;
        bytes[14 + 5] += 8;
        let summary = summarise(&bytes);
        assert_eq!(
            (summary.transport, summary.transport_offset),
            (Transport::Udp, 62)
        );
        // Now a fragment header: first of several.
        bytes[14 + 6] = FRAGMENT;
        bytes[54..62].copy_from_slice(&[17, 0, 0, 1, 0, 0, 0, 9]);
        let summary = summarise(&bytes);
        assert!(summary.fragment);
        assert_eq!(summary.transport, Transport::None);
        // And an atomic one.
        bytes[57] = 0;
        assert_eq!(summarise(&bytes).transport, Transport::Udp);
    }

    #[test]
    fn an_ipv4_fragment_has_no_transport() {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .write(&mut bytes, IpNumber::UDP, &[0; 64])
            .unwrap();
        assert_eq!(summarise(&bytes).transport, Transport::Udp);
        bytes[14 + 6] = 0x20;
        let summary = summarise(&bytes);
        assert!(summary.fragment);
        assert_eq!(summary.transport, Transport::None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_summary_within_the_frame(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..4) {
            if bytes.len() > 15 {
                match kind {
                    0 => bytes[12..15].copy_from_slice(&[8, 0, 0x45]),
                    1 => bytes[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]),
                    2 => bytes[12..14].copy_from_slice(&[0x81, 0]),
                    _ => {}
                }
            }
            let summary = summarise(&bytes);
            prop_assert!(summary.end as usize <= bytes.len());
            if summary.transport != Transport::None {
                prop_assert!(u32::from(summary.transport_offset) + 8 <= summary.end);
                // etherparse is an independent parser; where it sees TCP or UDP, so do we, and at the same place.
                if let Ok(packet) = SlicedPacket::from_ethernet(&bytes) {
                    match packet.transport {
                        Some(TransportSlice::Udp(udp)) => prop_assert_eq!(udp.slice().as_ptr() as usize - bytes.as_ptr() as usize, usize::from(summary.transport_offset)),
                        Some(TransportSlice::Tcp(tcp)) => prop_assert_eq!(tcp.slice().as_ptr() as usize - bytes.as_ptr() as usize, usize::from(summary.transport_offset)),
                        _ => {}
                    }
                }
            }
        }
    }
}
