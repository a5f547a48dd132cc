//! IPv6's header and addresses (Linux: `include/uapi/linux/ipv6.h`, `net/ipv6/addrconf_core.c`; RFC 8200, RFC 4291).

use super::eth::ETH_ALEN;
use super::netdevice::Ifindex;

/// Bytes of the header.
pub(super) const IPV6HDR_LEN: usize = 40;
/// The least MTU of a link that has IPv6.
pub(super) const IPV6_MIN_MTU: usize = 1280;
/// Where the length, the protocol and the hop limit are in a header.
pub(super) const PAYLOAD_LEN: usize = 4;
pub(super) const NEXTHDR: usize = 6;
pub(super) const HOP_LIMIT: usize = 7;

/// What may follow it before a transport.
pub(super) const NEXTHDR_HOP: u8 = 0;
pub(super) const NEXTHDR_ROUTING: u8 = 43;
pub(super) const NEXTHDR_FRAGMENT: u8 = 44;
pub(super) const NEXTHDR_AUTH: u8 = 51;
pub(super) const NEXTHDR_NONE: u8 = 59;
pub(super) const NEXTHDR_DEST: u8 = 60;
pub(super) const IPPROTO_ICMPV6: u8 = 58;

/// Addresses that every host knows: none, itself, all nodes and all routers of the link.
pub(super) const IN6ADDR_ANY: u128 = 0;
pub(super) const IN6ADDR_LOOPBACK: u128 = 1;
pub(super) const IN6ADDR_LINKLOCAL_ALLNODES: u128 = 0xff02 << 112 | 1;
/// The network of link-local addresses.
pub(super) const LINKLOCAL_PREFIX: u128 = 0xfe80 << 112;

/// Scopes of groups, which other addresses have as well.
pub(super) const SCOPE_NODELOCAL: u8 = 1;
pub(super) const SCOPE_LINKLOCAL: u8 = 2;
const SCOPE_SITELOCAL: u8 = 5;
const SCOPE_GLOBAL: u8 = 14;

/// What of a header, and of those behind it so far, is needed later (`struct ipv6hdr`, `struct inet6_skb_parm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ipv6hdr {
    pub saddr: u128,
    pub daddr: u128,
    pub payload_len: u16,
    pub tclass: u8,
    pub hop_limit: u8,
    /// Where the octet is that says what follows next, from the header's beginning on.
    pub nhoff: u32,
    /// Where that begins.
    pub thoff: u32,
    /// A fragment header was among them (`IP6SKB_FRAGMENTED`).
    pub fragmented: bool,
    /// The device that it came by; of what this host sent to itself the one that has the address.
    pub iif: Ifindex,
}

impl Ipv6hdr {
    /// Of what begins with one; `None` if it is not whole.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let b = bytes.first_chunk::<IPV6HDR_LEN>()?;
        Some(Self {
            saddr: addr_at(b, 8)?,
            daddr: addr_at(b, 24)?,
            payload_len: u16::from_be_bytes([b[4], b[5]]),
            tclass: b[0] << 4 | b[1] >> 4,
            hop_limit: b[HOP_LIMIT],
            nhoff: NEXTHDR as u32,
            thoff: IPV6HDR_LEN as u32,
            fragmented: false,
            iif: Ifindex::default(),
        })
    }

    pub fn nhoff(&self) -> usize {
        self.nhoff as usize
    }

    pub fn thoff(&self) -> usize {
        self.thoff as usize
    }
}

/// The address at a place.
#[inline]
pub(super) fn addr_at(bytes: &[u8], at: usize) -> Option<u128> {
    let addr = bytes.get(at..)?.first_chunk()?;
    Some(u128::from_be_bytes(*addr))
}

#[inline]
pub(super) fn is_multicast(addr: u128) -> bool {
    addr >> 120 == 0xff
}

pub(super) fn is_linklocal(addr: u128) -> bool {
    addr >> 118 == 0x3fa
}

/// Whether it means something on a link only (`__ipv6_addr_needs_scope_id`).
pub(super) fn needs_scope_id(addr: u128) -> bool {
    is_linklocal(addr) || is_multicast(addr) && matches!(mc_scope(addr), 1 | 2)
}

/// How far a group reaches (`IPV6_ADDR_MC_SCOPE`).
pub(super) fn mc_scope(group: u128) -> u8 {
    (group >> 112 & 0xf) as u8
}

/// How far an address reaches (`ipv6_addr_scope`).
pub(super) fn scope(addr: u128) -> u8 {
    if is_multicast(addr) {
        mc_scope(addr)
    } else if addr == IN6ADDR_LOOPBACK || is_linklocal(addr) {
        SCOPE_LINKLOCAL
    } else if addr >> 118 == 0x3fb {
        SCOPE_SITELOCAL
    } else {
        SCOPE_GLOBAL
    }
}

/// The group of all hosts whose address ends as that one (`addrconf_addr_solict_mult`; RFC 4291, 2.7.1).
pub(super) fn solict_mult(addr: u128) -> u128 {
    0xff02 << 112 | 0x1_ff00_0000 | addr & 0xff_ffff
}

pub(super) fn is_solict_mult(addr: u128) -> bool {
    addr >> 24 == solict_mult(0) >> 24
}

/// The link-local address of a station (`addrconf_ifid_eui48`; RFC 4291, appendix A).
pub(super) fn linklocal_of([a, b, c, d, e, f]: [u8; ETH_ALEN]) -> u128 {
    let ifid = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    LINKLOCAL_PREFIX | u128::from(ifid)
}

/// The hardware address of a multicast group (`ipv6_eth_mc_map`; RFC 2464, 7).
pub(super) fn ipv6_eth_mc_map(group: u128) -> [u8; ETH_ALEN] {
    let [a, b, c, d] = (group as u32).to_be_bytes();
    [0x33, 0x33, a, b, c, d]
}

/// The bits that name a network.
pub(super) fn prefix_mask6(prefix_len: u8) -> u128 {
    let host_bits = 128 - u32::from(prefix_len.min(128));
    u128::MAX.checked_shl(host_bits).unwrap_or(0)
}

/// Whether it is a header that may stand before a transport's (`ipv6_ext_hdr`).
pub(super) fn is_ext_hdr(nexthdr: u8) -> bool {
    matches!(
        nexthdr,
        NEXTHDR_HOP
            | NEXTHDR_ROUTING
            | NEXTHDR_FRAGMENT
            | NEXTHDR_AUTH
            | NEXTHDR_NONE
            | NEXTHDR_DEST
    )
}

/// What is found behind such headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Upper {
    pub protocol: u8,
    /// Where it begins.
    pub at: usize,
    /// The offset field of the last fragment header on the way.
    pub frag_off: u16,
}

/// Looks behind the headers from `at` on, of which the first is `nexthdr` (`ipv6_skip_exthdr`); the walk ends at the
/// header of a fragment that is not the first. `None` if one is cut off, or nothing follows.
pub(super) fn skip_exthdr(packet: &[u8], at: usize, nexthdr: u8) -> Option<Upper> {
    find_hdr(packet, at, nexthdr).filter(|upper| upper.protocol != NEXTHDR_NONE)
}

/// The same, but that nothing follows is found as well.
pub(super) fn find_hdr(packet: &[u8], mut at: usize, mut nexthdr: u8) -> Option<Upper> {
    let mut frag_off = 0;
    while is_ext_hdr(nexthdr) && nexthdr != NEXTHDR_NONE {
        let &[next, len] = packet.get(at..)?.first_chunk()?;
        let len = match nexthdr {
            NEXTHDR_FRAGMENT => {
                let field = packet.get(at + 2..)?.first_chunk()?;
                frag_off = u16::from_be_bytes(*field);
                if frag_off & !7 != 0 {
                    break;
                }
                8
            }
            NEXTHDR_AUTH => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        (nexthdr, at) = (next, at + len);
    }
    Some(Upper {
        protocol: nexthdr,
        at,
        frag_off,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    fn addr(text: &str) -> u128 {
        text.parse::<Ipv6Addr>().unwrap().to_bits()
    }

    #[test]
    fn addresses_are_told_apart() {
        for (text, multicast, linklocal, reaches) in [
            ("::", false, false, SCOPE_GLOBAL),
            ("::1", false, false, SCOPE_LINKLOCAL),
            ("fe80::1", false, true, SCOPE_LINKLOCAL),
            ("febf::1", false, true, SCOPE_LINKLOCAL),
            ("fec0::1", false, false, SCOPE_SITELOCAL),
            ("fd77::2", false, false, SCOPE_GLOBAL),
            ("ff02::1", true, false, SCOPE_LINKLOCAL),
            ("ff0e::9", true, false, SCOPE_GLOBAL),
        ] {
            let addr = addr(text);
            assert_eq!(is_multicast(addr), multicast, "{text}");
            assert_eq!(is_linklocal(addr), linklocal, "{text}");
            assert_eq!(scope(addr), reaches, "{text}");
        }
        assert_eq!(addr("ff02::1"), IN6ADDR_LINKLOCAL_ALLNODES);
        let group = solict_mult(addr("fd77::12:3456"));
        assert_eq!(group, addr("ff02::1:ff12:3456"));
        assert!(is_solict_mult(group) && !is_solict_mult(addr("ff02::1:fe12:3456")));
        assert_eq!(ipv6_eth_mc_map(group), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let own = linklocal_of([2, 0, 0, 0, 0x77, 1]);
        assert_eq!(own, addr("fe80::ff:fe00:7701"));
        let lens = [0, 64, 128, 200].map(prefix_mask6);
        assert_eq!(lens, [0, u128::MAX << 64, u128::MAX, u128::MAX]);
    }

    #[test]
    fn the_upper_protocol_is_found_behind_other_headers() {
        let upper = |at, protocol, frag_off| {
            Some(Upper {
                protocol,
                at,
                frag_off,
            })
        };
        let options = [NEXTHDR_ROUTING, 0, 1, 4, 0, 0, 0, 0];
        let routing = [
            NEXTHDR_FRAGMENT,
            1,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let fragment = |offset| [17, 0, 0, offset, 0, 0, 0, 1];
        let first = [&options[..], &routing, &fragment(1)].concat();
        assert_eq!(skip_exthdr(&first, 0, NEXTHDR_DEST), upper(32, 17, 1));
        let later = [&options[..], &routing, &fragment(8)].concat();
        let found = skip_exthdr(&later, 0, NEXTHDR_DEST);
        assert_eq!(found, upper(24, NEXTHDR_FRAGMENT, 8));
        assert_eq!(
            skip_exthdr(&first[..30], 0, NEXTHDR_HOP),
            upper(32, 17, 1),
            "only looked at"
        );
        assert_eq!(skip_exthdr(&first[..27], 0, NEXTHDR_HOP), None);
        assert_eq!(skip_exthdr(&[17, 1], 0, NEXTHDR_AUTH), upper(12, 17, 0));
        assert_eq!(skip_exthdr(&[], 0, 17), upper(0, 17, 0));
        assert_eq!(skip_exthdr(&first, 0, NEXTHDR_NONE), None);
    }
}
