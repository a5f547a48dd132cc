//! What of a frame is hashed for receive-side scaling (virtio 1.3, 5.1.6.4.3).
//!
//! In: a frame and the hash types in force. Out: the bytes for [`toeplitz()`], and the type that the device
//! is to report; nothing where no type applies. Of what types apply the one that takes most is it. Fragments
//! have no ports, the first one neither; with IPv6 whatever has a Fragment header is one. VLAN tags are
//! passed over.

use super::toeplitz::toeplitz;

/// Addresses of IPv4.
pub const VIRTIO_NET_RSS_HASH_TYPE_IPV4: u32 = 1 << 0;
/// Addresses and ports of TCP over IPv4.
pub const VIRTIO_NET_RSS_HASH_TYPE_TCPV4: u32 = 1 << 1;
/// Addresses and ports of UDP over IPv4.
pub const VIRTIO_NET_RSS_HASH_TYPE_UDPV4: u32 = 1 << 2;
/// Addresses of IPv6.
pub const VIRTIO_NET_RSS_HASH_TYPE_IPV6: u32 = 1 << 3;
/// Addresses and ports of TCP over IPv6.
pub const VIRTIO_NET_RSS_HASH_TYPE_TCPV6: u32 = 1 << 4;
/// Addresses and ports of UDP over IPv6.
pub const VIRTIO_NET_RSS_HASH_TYPE_UDPV6: u32 = 1 << 5;
/// Addresses of IPv6 with extension headers, those that mobility options name included.
pub const VIRTIO_NET_RSS_HASH_TYPE_IP_EX: u32 = 1 << 6;
/// The same and the ports of TCP.
pub const VIRTIO_NET_RSS_HASH_TYPE_TCP_EX: u32 = 1 << 7;
/// The same and the ports of UDP.
pub const VIRTIO_NET_RSS_HASH_TYPE_UDP_EX: u32 = 1 << 8;

/// Not hashed.
pub const VIRTIO_NET_HASH_REPORT_NONE: u16 = 0;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_IPV4`].
pub const VIRTIO_NET_HASH_REPORT_IPV4: u16 = 1;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_TCPV4`].
pub const VIRTIO_NET_HASH_REPORT_TCPV4: u16 = 2;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_UDPV4`].
pub const VIRTIO_NET_HASH_REPORT_UDPV4: u16 = 3;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_IPV6`].
pub const VIRTIO_NET_HASH_REPORT_IPV6: u16 = 4;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_TCPV6`].
pub const VIRTIO_NET_HASH_REPORT_TCPV6: u16 = 5;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_UDPV6`].
pub const VIRTIO_NET_HASH_REPORT_UDPV6: u16 = 6;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_IP_EX`].
pub const VIRTIO_NET_HASH_REPORT_IPV6_EX: u16 = 7;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_TCP_EX`].
pub const VIRTIO_NET_HASH_REPORT_TCPV6_EX: u16 = 8;
/// By [`VIRTIO_NET_RSS_HASH_TYPE_UDP_EX`].
pub const VIRTIO_NET_HASH_REPORT_UDPV6_EX: u16 = 9;

/// The types come in threes: addresses, with ports of TCP, with ports of UDP. The first bit of each.
const V4: u16 = 0;
const V6: u16 = 3;
const V6_EX: u16 = 6;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// Extension headers of IPv6 (RFC 8200, 4; RFC 4302).
const NEXTHDR_HOP: u8 = 0;
const NEXTHDR_ROUTING: u8 = 43;
const NEXTHDR_FRAGMENT: u8 = 44;
const NEXTHDR_AUTH: u8 = 51;
const NEXTHDR_DEST: u8 = 60;
/// The mobile node's home address, as a destination option and behind a routing header (RFC 6275, 6.3, 6.4).
const IPV6_TLV_HAO: u8 = 201;
const IPV6_SRCRT_TYPE_2: u8 = 2;

/// What is hashed of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashInput {
    /// `VIRTIO_NET_HASH_REPORT_*`.
    pub report: u16,
    /// Source and destination address, then the ports where the type has them.
    pub bytes: Vec<u8>,
}

impl HashInput {
    /// What is hashed of `frame`, an Ethernet frame, under `hash_types`
    /// (`VIRTIO_NET_RSS_HASH_TYPE_*`); `None` where no type applies.
    #[must_use]
    pub fn of(frame: &[u8], hash_types: u32) -> Option<Self> {
        let (protocol, packet) = network(frame)?;
        match protocol {
            ETH_P_IP => ipv4(packet, hash_types),
            ETH_P_IPV6 => ipv6(packet, hash_types),
            _ => None,
        }
    }

    /// The hash of it.
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u32 {
        toeplitz(key, &self.bytes)
    }
}

/// The ports of a packet that has any, and which of three types they call for.
type Ports<'a> = Option<(u16, &'a [u8])>;

/// Ethertype and what is behind it.
fn network(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut rest = frame.get(12..)?;
    loop {
        let protocol = u16::from_be_bytes(*rest.first_chunk()?);
        if !matches!(protocol, ETH_P_8021Q | ETH_P_8021AD) {
            return Some((protocol, &rest[2..]));
        }
        rest = rest.get(4..)?;
    }
}

/// The ports, where all of a transport header is there.
fn ports(protocol: u8, segment: &[u8]) -> Ports<'_> {
    let (of_three, header) = match protocol {
        IPPROTO_TCP => (1, 20),
        IPPROTO_UDP => (2, 8),
        _ => return None,
    };
    (segment.len() >= header).then(|| (of_three, &segment[..4]))
}

/// Takes the type with ports, else the one without.
fn select(
    first: u16,
    hash_types: u32,
    addresses: [&[u8]; 2],
    ports: Ports<'_>,
) -> Option<HashInput> {
    let on = |bit: u16| hash_types & 1 << bit != 0;
    let (bit, ports) = match ports {
        Some((of_three, ports)) if on(first + of_three) => (first + of_three, ports),
        _ if on(first) => (first, &[][..]),
        _ => return None,
    };
    Some(HashInput {
        report: bit + 1,
        bytes: [addresses[0], addresses[1], ports].concat(),
    })
}

fn ipv4(packet: &[u8], hash_types: u32) -> Option<HashInput> {
    let header = packet.first_chunk::<20>()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (hdr_len, len) = (usize::from(header[0] & 0xf) * 4, usize::from(word(2)));
    if header[0] >> 4 != 4 || hdr_len < header.len() {
        return None;
    }
    let segment = packet.get(hdr_len..len.min(packet.len()))?;
    let fragment = word(6) & 0x3fff != 0;
    let ports = ports(header[9], segment).filter(|_| !fragment);
    select(V4, hash_types, [&header[12..16], &header[16..]], ports)
}

fn ipv6(packet: &[u8], hash_types: u32) -> Option<HashInput> {
    let header = packet.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (source, destination) = (&header[8..24], &header[24..]);
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let payload = &packet[header.len()..];
    let chain = extensions(header[6], &payload[..len.min(payload.len())]);
    let named = [
        chain.home.unwrap_or(source),
        chain.route.unwrap_or(destination),
    ];
    chain
        .any
        .then(|| select(V6_EX, hash_types, named, chain.ports))
        .flatten()
        .or_else(|| select(V6, hash_types, [source, destination], chain.ports))
}

/// What the headers between IPv6 and the transport say.
#[derive(Default)]
struct Extensions<'a> {
    any: bool,
    /// The source that stands for the header's.
    home: Option<&'a [u8]>,
    /// The destination that stands for the header's.
    route: Option<&'a [u8]>,
    ports: Ports<'a>,
}

/// Follows the headers, until one that is no extension, or not all there.
fn extensions(mut next: u8, mut rest: &[u8]) -> Extensions<'_> {
    let mut found = Extensions::default();
    loop {
        let units = rest.get(1).map_or(0, |&len| usize::from(len));
        let len = match next {
            NEXTHDR_HOP | NEXTHDR_ROUTING | NEXTHDR_DEST => 8 * (units + 1),
            NEXTHDR_AUTH => 4 * (units + 2),
            NEXTHDR_FRAGMENT => {
                found.any = true;
                return found;
            }
            _ => {
                found.ports = ports(next, rest);
                return found;
            }
        };
        found.any = true;
        let Some(header) = rest.get(..len) else {
            return found;
        };
        match next {
            NEXTHDR_ROUTING if header[2] == IPV6_SRCRT_TYPE_2 => found.route = header.get(8..24),
            NEXTHDR_DEST => found.home = home_address(&header[2..]).or(found.home),
            _ => {}
        }
        (next, rest) = (header[0], &rest[len..]);
    }
}

/// The home address among destination options.
fn home_address(mut options: &[u8]) -> Option<&[u8]> {
    loop {
        let (&kind, rest) = options.split_first()?;
        if kind == 0 {
            // Pad1 has no length.
            options = rest;
            continue;
        }
        let (&len, rest) = rest.split_first()?;
        let value = rest.get(..usize::from(len))?;
        if kind == IPV6_TLV_HAO && value.len() == 16 {
            return Some(value);
        }
        options = &rest[value.len()..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = 0x1ff;

    fn ethernet(protocol: u16, packet: &[u8]) -> Vec<u8> {
        [&[2; 12][..], &protocol.to_be_bytes(), packet].concat()
    }

    /// From 1.1.1.1 to 2.2.2.2; the payload's first bytes are ports 0x0304 and 0x0506.
    fn v4(protocol: u8, frag_off: u16, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(20 + payload as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&frag_off.to_be_bytes());
        packet[9] = protocol;
        packet[12..16].fill(1);
        packet[16..20].fill(2);
        packet.extend(
            [3, 4, 5, 6]
                .into_iter()
                .chain(std::iter::repeat(0))
                .take(payload),
        );
        ethernet(ETH_P_IP, &packet)
    }

    /// From 1:... to 2:...; `headers` with the number of the first, then a transport header.
    fn v6(next: u8, headers: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[6] = next;
        packet[8..24].fill(1);
        packet[24..40].fill(2);
        packet.extend(headers);
        packet.extend([3, 4, 5, 6]);
        packet.extend([0; 16]);
        let len = packet.len() as u16 - 40;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        ethernet(ETH_P_IPV6, &packet)
    }

    /// Report, first byte of source and of destination, whether there are ports.
    fn of(frame: &[u8], types: u32) -> Option<(u16, u8, u8, bool)> {
        HashInput::of(frame, types).map(|input| {
            let len = if input.report < VIRTIO_NET_HASH_REPORT_IPV6 {
                4
            } else {
                16
            };
            let (source, rest) = input.bytes.split_at(len);
            let (destination, ports) = rest.split_at(len);
            for address in [source, destination] {
                assert!(address.iter().all(|byte| *byte == address[0]));
            }
            assert!(ports.is_empty() || ports == [3, 4, 5, 6]);
            (input.report, source[0], destination[0], !ports.is_empty())
        })
    }

    #[test]
    fn ipv4_takes_the_most_that_is_on() {
        let (ip, tcp, udp) = (1, 2, 4);
        let cases = [
            (v4(6, 0, 20), ALL, Some((2, 1, 2, true))),
            (v4(6, 0, 20), ip | udp, Some((1, 1, 2, false))),
            (v4(6, 0, 20), udp, None),
            (v4(17, 0, 8), ALL, Some((3, 1, 2, true))),
            (v4(17, 0, 8), ip | tcp, Some((1, 1, 2, false))),
            (v4(1, 0, 20), ALL, Some((1, 1, 2, false))),
            (v4(1, 0, 20), tcp | udp, None),
            // Don't Fragment makes no fragment; More Fragments and an offset do.
            (v4(17, 0x4000, 8), ALL, Some((3, 1, 2, true))),
            (v4(17, 0x2000, 8), ALL, Some((1, 1, 2, false))),
            (v4(17, 0x0001, 8), ALL, Some((1, 1, 2, false))),
            // Half a header.
            (v4(6, 0, 19), ALL, Some((1, 1, 2, false))),
            (v4(17, 0, 7), ALL, Some((1, 1, 2, false))),
            // Other families' types are no matter.
            (v4(17, 0, 8), 0x1f8, None),
        ];
        for (frame, types, expected) in cases {
            assert_eq!(of(&frame, types), expected, "{frame:x?} {types:#x}");
        }
    }

    #[test]
    fn ipv6_without_extensions() {
        let cases = [
            (v6(6, &[]), ALL, Some((5, 1, 2, true))),
            (v6(17, &[]), ALL, Some((6, 1, 2, true))),
            (v6(58, &[]), ALL, Some((4, 1, 2, false))),
            (v6(17, &[]), 0x1c0, None),
            (v6(17, &[]), 0x008, Some((4, 1, 2, false))),
        ];
        for (frame, types, expected) in cases {
            assert_eq!(of(&frame, types), expected, "{frame:x?} {types:#x}");
        }
    }

    #[test]
    fn ipv6_with_extensions() {
        let hop = [17, 0, 1, 4, 0, 0, 0, 0];
        let fragment = [17, 0, 0, 0, 0, 0, 0, 1];
        let auth = [[6, 1], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]].concat();
        // Pad1, then the home address 7:...
        let home = [&[6, 2, 0, 1, 1, 0, IPV6_TLV_HAO, 16][..], &[7; 16]].concat();
        let route = [&[17, 2, 2, 1, 0, 0, 0, 0][..], &[8; 16]].concat();
        let other_route = [&[17, 2, 3, 1, 0, 0, 0, 0][..], &[8; 16]].concat();
        let both = [&[43, 2, 1, 2, 0, 0, IPV6_TLV_HAO, 16][..], &[7; 16], &route].concat();
        let cases = [
            (v6(0, &hop), ALL, Some((9, 1, 2, true))),
            (v6(0, &hop), 0x03f, Some((6, 1, 2, true))),
            (v6(0, &hop), 0x040 | 0x020, Some((7, 1, 2, false))),
            (v6(51, &auth), ALL, Some((8, 1, 2, true))),
            (v6(44, &fragment), ALL, Some((7, 1, 2, false))),
            (v6(44, &fragment), 0x03f, Some((4, 1, 2, false))),
            (v6(60, &home), ALL, Some((8, 7, 2, true))),
            (v6(60, &home), 0x03f, Some((5, 1, 2, true))),
            (v6(43, &route), ALL, Some((9, 1, 8, true))),
            (v6(43, &other_route), ALL, Some((9, 1, 2, true))),
            (v6(60, &both), ALL, Some((9, 7, 8, true))),
            // A header that claims more than there is.
            (v6(60, &[17, 255]), ALL, Some((7, 1, 2, false))),
        ];
        for (frame, types, expected) in cases {
            assert_eq!(of(&frame, types), expected, "{frame:x?} {types:#x}");
        }
    }

    #[test]
    fn tags_are_passed_over_and_what_is_no_ip_is_not_hashed() {
        let frame = v4(17, 0, 8);
        let tag = [0x81, 0, 0, 5];
        let tagged = [&frame[..12], &[0x88, 0xa8, 0, 9], &tag, &frame[12..]].concat();
        assert_eq!(of(&tagged, ALL), of(&frame, ALL));
        assert_eq!(of(&ethernet(0x0806, &[0; 46]), ALL), None);
        assert_eq!(of(&ethernet(ETH_P_IPV6, &frame[14..]), ALL), None);
        for len in 0..frame.len() {
            // However short: nothing, or the addresses.
            let short = of(&frame[..len], ALL);
            assert!(short.is_none_or(|input| input == (1, 1, 2, false)));
        }
    }

    #[test]
    fn a_frame_is_hashed_as_microsoft_does() {
        let mut frame = v4(6, 0, 20);
        frame[26..30].copy_from_slice(&[66, 9, 149, 187]);
        frame[30..34].copy_from_slice(&[161, 142, 100, 80]);
        frame[34..36].copy_from_slice(&2794u16.to_be_bytes());
        frame[36..38].copy_from_slice(&1766u16.to_be_bytes());
        let hash = |types| {
            HashInput::of(&frame, types)
                .map(|i| i.hash(&crate::virtio_net::toeplitz::VERIFICATION_KEY))
        };
        assert_eq!(hash(VIRTIO_NET_RSS_HASH_TYPE_TCPV4), Some(0x51cc_c178));
        assert_eq!(hash(VIRTIO_NET_RSS_HASH_TYPE_IPV4), Some(0x323e_8fc2));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_hashed_by_whole_fields(
            protocol in proptest::sample::select(vec![ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q]),
            version in proptest::sample::select(vec![0x45, 0x4f, 0x60, 0x00]),
            next in proptest::sample::select(vec![0, 6, 17, 43, 44, 51, 60]),
            mut packet in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            if packet.len() > 10 {
                (packet[0], packet[6], packet[9]) = (version, next, next);
            }
            if let Some(input) = HashInput::of(&ethernet(protocol, &packet), ALL) {
                let len = match input.report {
                    VIRTIO_NET_HASH_REPORT_IPV4 => 8,
                    VIRTIO_NET_HASH_REPORT_TCPV4 | VIRTIO_NET_HASH_REPORT_UDPV4 => 12,
                    VIRTIO_NET_HASH_REPORT_IPV6 | VIRTIO_NET_HASH_REPORT_IPV6_EX => 32,
                    _ => 36,
                };
                assert_eq!(input.bytes.len(), len);
            }
        }
    }
}
