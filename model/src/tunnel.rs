//! The tunnel walk: where the headers of the packet inside a tunnel are, for a hash over those (VIRTIO 1.4, 5.1.6.4.4).
//!
//! A frame whose headers were walked enters; if they are those of a tunnel of a type that the driver enabled, the
//! summary of the inner headers leaves. One level is looked into. Nothing is dropped: a tunnel whose
//! own header is cut off, of another version or carries control messages is none, and what is inside one and makes no sense
//! has a summary that says so.

use crate::parse::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Network, Summary, Transport};

/// A set of tunnel types, as a driver writes it (VIRTIO 1.4, 5.1.6.4.4: encapsulation types).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelTypes(u32);

impl TunnelTypes {
    /// GRE over IPv4 without key and sequence number (RFC 2784).
    pub const GRE_2784: Self = TunnelTypes(1 << 0);
    /// GRE with a key or a sequence number (RFC 2890).
    pub const GRE_2890: Self = TunnelTypes(1 << 1);
    /// GRE of RFC 2784 where either packet is of IPv6, or both (RFC 7676).
    pub const GRE_7676: Self = TunnelTypes(1 << 2);
    /// GRE in UDP (RFC 8086), in the clear.
    pub const GRE_UDP: Self = TunnelTypes(1 << 3);
    /// VXLAN (RFC 7348).
    pub const VXLAN: Self = TunnelTypes(1 << 4);
    /// VXLAN with a protocol field (draft-ietf-nvo3-vxlan-gpe).
    pub const VXLAN_GPE: Self = TunnelTypes(1 << 5);
    /// Geneve (RFC 8926).
    pub const GENEVE: Self = TunnelTypes(1 << 6);
    /// IPv4 in IPv4 (RFC 2003).
    pub const IPIP: Self = TunnelTypes(1 << 7);
    /// NVGRE (RFC 7637): Ethernet in GRE with a key.
    pub const NVGRE: Self = TunnelTypes(1 << 8);
    /// Every type; the card knows them all.
    pub const ALL: Self = TunnelTypes((1 << 9) - 1);

    /// The set of the bits `bits`; `None` if there is one that stands for no type.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & !Self::ALL.0 {
            0 => Some(TunnelTypes(bits)),
            _ => None,
        }
    }

    /// The set's bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether the two have a type in common.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The types of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        TunnelTypes(self.0 | other.0)
    }

    /// Whether there is no type in it.
    #[must_use]
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

const IPV4: u8 = 4;
const GRE: u8 = 47;

/// The ports that the UDP tunnels are sent to, and octets of UDP's header.
const VXLAN_PORT: u16 = 4789;
const VXLAN_GPE_PORT: u16 = 4790;
const GRE_PORT: u16 = 4754;
const GENEVE_PORT: u16 = 6081;
const UDP_HEADER: usize = 8;

/// The Ethernet type that stands for a whole Ethernet frame (RFC 1701).
const ETHERTYPE_BRIDGED: u16 = 0x6558;

/// A tunnel's header: the types that it is of, and what begins where behind it.
struct Tunnel {
    types: TunnelTypes,
    offset: usize,
    ethertype: u16,
}

/// The headers inside the tunnel that `outer`, the headers of `frame`, are of; `None` if they are of none of `enabled`,
/// or of a fragment of one. Offsets count from the first octet of `frame`.
#[must_use]
#[inline]
pub fn inner(frame: &[u8], outer: &Summary, enabled: TunnelTypes) -> Option<Summary> {
    if enabled.is_empty() || outer.fragment || outer.network == Network::Other {
        return None;
    }
    // Padding behind the outer packet is no part of the inner one.
    let packet = frame.get(..outer.end as usize)?;
    let tunnel = tunnel(packet, outer).filter(|tunnel| tunnel.types.intersects(enabled))?;
    Some(match tunnel.ethertype {
        ETHERTYPE_BRIDGED => parse::ethernet(packet, tunnel.offset),
        ethertype => parse::network(packet, tunnel.offset, ethertype),
    })
}

/// Which tunnel the headers `outer` are of.
fn tunnel(packet: &[u8], outer: &Summary) -> Option<Tunnel> {
    let at = usize::from(outer.transport_offset);
    match (outer.transport, protocol(packet, outer)?) {
        (Transport::Udp, _) => {
            let port = be16(packet, at + 2)?;
            let at = at + UDP_HEADER;
            match port {
                VXLAN_PORT => vxlan(packet, at),
                VXLAN_GPE_PORT => vxlan_gpe(packet, at),
                GENEVE_PORT => geneve(packet, at),
                GRE_PORT => gre(packet, at, outer).map(|gre| Tunnel {
                    types: TunnelTypes::GRE_UDP,
                    ..gre
                }),
                _ => None,
            }
        }
        (Transport::None, GRE) => gre(packet, at, outer),
        (Transport::None, IPV4) if outer.network == Network::Ipv4 => Some(Tunnel {
            types: TunnelTypes::IPIP,
            offset: at,
            ethertype: ETHERTYPE_IPV4,
        }),
        _ => None,
    }
}

/// The protocol behind the network header of `outer` and its extensions.
fn protocol(packet: &[u8], outer: &Summary) -> Option<u8> {
    let network = usize::from(outer.network_offset);
    if outer.network == Network::Ipv4 {
        return packet.get(network + 9).copied();
    }
    let mut next = *packet.get(network + 6)?;
    let mut at = network + 40;
    while at < outer.transport_offset.into() {
        let extension = packet.get(at..)?.first_chunk::<8>()?;
        at += parse::extension_len(next, extension);
        next = extension[0];
    }
    Some(next)
}

fn gre(packet: &[u8], at: usize, outer: &Summary) -> Option<Tunnel> {
    const CHECKSUM: u16 = 0x8000;
    const KEY: u16 = 0x2000;
    const SEQUENCE: u16 = 0x1000;
    /// What has to be zero: RFC 1701's routing and recursion, and the version.
    const ZERO: u16 = 0x4c07;
    let (flags, ethertype) = (be16(packet, at)?, be16(packet, at + 2)?);
    if flags & ZERO != 0 {
        return None;
    }
    let fields = (flags & (CHECKSUM | KEY | SEQUENCE)).count_ones() as usize;
    let offset = at + 4 + 4 * fields;
    let of_ipv6 = outer.network == Network::Ipv6 || ethertype == ETHERTYPE_IPV6;
    let mut types = TunnelTypes::default();
    if flags & (KEY | SEQUENCE) != 0 {
        types = types.union(TunnelTypes::GRE_2890);
    } else {
        if outer.network == Network::Ipv4 {
            types = types.union(TunnelTypes::GRE_2784);
        }
        if of_ipv6 {
            types = types.union(TunnelTypes::GRE_7676);
        }
    }
    if flags & (CHECKSUM | KEY | SEQUENCE) == KEY && ethertype == ETHERTYPE_BRIDGED {
        types = types.union(TunnelTypes::NVGRE);
    }
    (offset <= packet.len()).then_some(Tunnel {
        types,
        offset,
        ethertype,
    })
}

fn vxlan(packet: &[u8], at: usize) -> Option<Tunnel> {
    /// The network identifier is valid.
    const VNI: u8 = 0x08;
    let header = packet.get(at..)?.first_chunk::<8>()?;
    (header[0] & VNI != 0).then_some(Tunnel {
        types: TunnelTypes::VXLAN,
        offset: at + 8,
        ethertype: ETHERTYPE_BRIDGED,
    })
}

fn vxlan_gpe(packet: &[u8], at: usize) -> Option<Tunnel> {
    const VERSION: u8 = 0x30;
    const VNI: u8 = 0x08;
    const NEXT_PROTOCOL: u8 = 0x04;
    /// A message of the tunnel's own management.
    const OAM: u8 = 0x01;
    let header = packet.get(at..)?.first_chunk::<8>()?;
    let flags = header[0];
    if flags & (VERSION | OAM) != 0 || flags & VNI == 0 {
        return None;
    }
    let ethertype = match header[3] {
        _ if flags & NEXT_PROTOCOL == 0 => ETHERTYPE_BRIDGED,
        1 => ETHERTYPE_IPV4,
        2 => ETHERTYPE_IPV6,
        3 => ETHERTYPE_BRIDGED,
        _ => return None,
    };
    Some(Tunnel {
        types: TunnelTypes::VXLAN_GPE,
        offset: at + 8,
        ethertype,
    })
}

fn geneve(packet: &[u8], at: usize) -> Option<Tunnel> {
    const VERSION: u8 = 0xc0;
    const OPTIONS_LEN: u8 = 0x3f;
    /// A message of the tunnel's own management.
    const CONTROL: u8 = 0x80;
    let header = packet.get(at..)?.first_chunk::<8>()?;
    if header[0] & VERSION != 0 || header[1] & CONTROL != 0 {
        return None;
    }
    let offset = at + 8 + 4 * usize::from(header[0] & OPTIONS_LEN);
    (offset <= packet.len()).then_some(Tunnel {
        types: TunnelTypes::GENEVE,
        offset,
        ethertype: u16::from_be_bytes([header[2], header[3]]),
    })
}

fn be16(packet: &[u8], at: usize) -> Option<u16> {
    let octets = packet.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*octets))
}

#[cfg(test)]
mod tests;
