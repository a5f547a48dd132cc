//! Headers between IPv6's and a transport's (Linux: `net/ipv6/exthdrs.c`; RFC 8200, 4).
//!
//! In: packets whose next header is one of options, for each hop or for this host, or of a route. Out: the same, if it
//! asks for nothing that this host does not do. Dropped and counted: headers that are cut off or have wrong options, of
//! which some are answered; and routes that lead on, which this host does not follow (RFC 5095).

use super::icmp6::{ICMPV6_HDR_FIELD, ICMPV6_PARAMPROB, ICMPV6_UNK_OPTION};
use super::ipv6::{IPV6HDR_LEN, is_multicast};
use super::skbuff::{PktType, Skb};
use super::stats::{Mib6, RxDrop};
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Options.
const IPV6_TLV_PAD1: u8 = 0;
const IPV6_TLV_PADN: u8 = 1;
const IPV6_TLV_ROUTERALERT: u8 = 5;
const IPV6_TLV_CALIPSO: u8 = 7;
const IPV6_TLV_IOAM: u8 = 49;
const IPV6_TLV_JUMBO: u8 = 0xc2;
const IPV6_TLV_HAO: u8 = 0xc9;
/// Most options of one header that are no padding (`max_hbh_opts_number`, `max_dst_opts_number`).
const MAX_OPTS: usize = 8;
/// Longest padding between two options.
const MAX_PADDING: usize = 7;

/// Kinds of routes.
const IPV6_SRCRT_TYPE_2: u8 = 2;
const IPV6_SRCRT_TYPE_3: u8 = 3;
const IPV6_SRCRT_TYPE_4: u8 = 4;

/// What is wrong with options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BadOption {
    /// Nobody is told.
    Silent,
    /// The sender is told of the field at a place in the packet.
    Field(usize),
    /// He is told that the option at a place is not known.
    Unknown(usize),
}

/// Reads the options of `packet` from `at` to `end`; how long the packet is without its header, if one says so
/// (`ip6_parse_tlv`).
fn parse_tlv(
    packet: &[u8],
    mut at: usize,
    end: usize,
    hop_by_hop: bool,
) -> Result<Option<usize>, BadOption> {
    let (mut count, mut padding, mut jumbo) = (0, 0, None);
    while at < end {
        let kind = packet[at];
        if kind == IPV6_TLV_PAD1 {
            padding += 1;
            at += 1;
            if padding > MAX_PADDING {
                return Err(BadOption::Silent);
            }
            continue;
        }
        let option = packet[at..end].get(1).map(|len| at + 2 + usize::from(*len));
        let next = option.filter(|next| *next <= end);
        let next = next.ok_or(BadOption::Silent)?;
        let data = &packet[at + 2..next];
        if kind == IPV6_TLV_PADN {
            padding += next - at;
            if padding > MAX_PADDING || data.iter().any(|octet| *octet != 0) {
                return Err(BadOption::Silent);
            }
        } else {
            count += 1;
            if count > MAX_OPTS {
                return Err(BadOption::Silent);
            }
            match kind {
                IPV6_TLV_ROUTERALERT if hop_by_hop => {
                    if data.len() != 2 {
                        return Err(BadOption::Silent);
                    }
                }
                // (What is recorded there of a way is not looked at: `ioam6_enabled` is off.)
                IPV6_TLV_IOAM if hop_by_hop => {
                    if !at.is_multiple_of(4) {
                        return Err(BadOption::Silent);
                    }
                }
                IPV6_TLV_JUMBO if hop_by_hop => jumbo = Some(hop_jumbo(packet, at, data)?),
                // No security labels, and no mobile hosts, are known here.
                IPV6_TLV_CALIPSO if hop_by_hop => return Err(BadOption::Silent),
                IPV6_TLV_HAO if !hop_by_hop => return Err(BadOption::Silent),
                _ => tlvopt_unknown(packet, at)?,
            }
            padding = 0;
        }
        at = next;
    }
    Ok(jumbo)
}

/// An option that is not known says itself what is to be done (`ip6_tlvopt_unknown`).
fn tlvopt_unknown(packet: &[u8], at: usize) -> Result<(), BadOption> {
    let multicast = packet.get(24) == Some(&0xff);
    match packet[at] >> 6 {
        0 => Ok(()),
        3 if multicast => Err(BadOption::Silent),
        2 | 3 => Err(BadOption::Unknown(at)),
        _ => Err(BadOption::Silent),
    }
}

/// The length of a packet that is too long for its header (`ipv6_hop_jumbo`, RFC 2675).
fn hop_jumbo(packet: &[u8], at: usize, data: &[u8]) -> Result<usize, BadOption> {
    let len = <[u8; 4]>::try_from(data).ok().filter(|_| at % 4 == 2);
    let len = u32::from_be_bytes(len.ok_or(BadOption::Silent)?) as usize;
    if len <= usize::from(u16::MAX) {
        return Err(BadOption::Field(at + 2));
    }
    if packet[4..6] != [0, 0] {
        return Err(BadOption::Field(at));
    }
    if len > packet.len() - IPV6HDR_LEN {
        return Err(BadOption::Silent);
    }
    Ok(len)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Where the options end that are next, if they are all there.
    fn options_end(skb: &Skb) -> Option<usize> {
        let next = skb.next_header();
        let len = (usize::from(*next.get(1)?) + 1) * 8;
        (len <= next.len()).then(|| skb.ip6.thoff() + len)
    }

    /// Tells the sender of a packet which field of it is wrong; it is dropped (`icmpv6_param_prob`).
    pub(super) fn icmpv6_param_prob(&mut self, skb: Skb, code: u8, pos: usize) {
        self.icmp6_send(&skb, ICMPV6_PARAMPROB, code, pos as u32);
        self.drop_rx(skb, RxDrop::Ip6InHdrErrors);
    }

    /// The options that every host on the way looks at.
    pub(super) fn ipv6_parse_hopopts(&mut self, skb: Skb) -> Option<Skb> {
        let _stage = self.stage("ipv6_parse_hopopts");
        let Some(end) = Self::options_end(&skb) else {
            self.bad_header6(skb);
            return None;
        };
        let mut skb = self.ip6_parse_tlv(skb, end, true)?;
        (skb.ip6.nhoff, skb.ip6.thoff) = (IPV6HDR_LEN as u32, end as u32);
        Some(skb)
    }

    /// Options for this host.
    pub(super) fn ipv6_destopt_rcv(&mut self, skb: Skb) -> Option<Skb> {
        let _stage = self.stage("ipv6_destopt_rcv");
        let Some(end) = Self::options_end(&skb) else {
            self.bad_header6(skb);
            return None;
        };
        let mut skb = self.ip6_parse_tlv(skb, end, false)?;
        (skb.ip6.nhoff, skb.ip6.thoff) = (skb.ip6.thoff, end as u32);
        Some(skb)
    }

    /// A packet whose options, up to `end`, ask for nothing that is not done.
    fn ip6_parse_tlv(&mut self, mut skb: Skb, end: usize, hop_by_hop: bool) -> Option<Skb> {
        let _stage = self.stage("ip6_parse_tlv");
        let packet = skb.network();
        let bad = match parse_tlv(packet, skb.ip6.thoff() + 2, end, hop_by_hop) {
            Ok(jumbo) => {
                if let Some(len) = jumbo {
                    skb.trim(IPV6HDR_LEN + len);
                }
                return Some(skb);
            }
            Err(bad) => bad,
        };
        self.inc6(Mib6::Ip6InHdrErrors);
        match bad {
            BadOption::Silent => self.drop_rx(skb, RxDrop::Ip6InHdrErrors),
            BadOption::Field(at) => self.icmpv6_param_prob(skb, ICMPV6_HDR_FIELD, at),
            BadOption::Unknown(at) => self.icmpv6_param_prob(skb, ICMPV6_UNK_OPTION, at),
        }
        None
    }

    /// A route, which has to end here.
    pub(super) fn ipv6_rthdr_rcv(&mut self, mut skb: Skb) -> Option<Skb> {
        let _stage = self.stage("ipv6_rthdr_rcv");
        let Some(end) = Self::options_end(&skb) else {
            self.bad_header6(skb);
            return None;
        };
        let thoff = skb.ip6.thoff();
        let (hdrlen, kind, left) = match skb.next_header() {
            [_, hdrlen, kind, left, ..] => (*hdrlen, *kind, *left),
            _ => (0, 0, 0),
        };
        if is_multicast(skb.ip6.daddr) || skb.pkt_type != PktType::Host {
            self.inc6(Mib6::Ip6InAddrErrors);
            self.drop_rx(skb, RxDrop::Ip6InAddrErrors);
            return None;
        }
        match (kind, left) {
            // Routes of segments, which nobody has asked for (`seg6_enabled`, `rpl_seg_enabled`).
            (IPV6_SRCRT_TYPE_3 | IPV6_SRCRT_TYPE_4, _) => {
                self.drop_rx(skb, RxDrop::Ip6BadExthdr);
            }
            // To a mobile host, which this one is not.
            (IPV6_SRCRT_TYPE_2, 0) => {
                self.inc6(Mib6::Ip6InAddrErrors);
                self.drop_rx(skb, RxDrop::Ip6InAddrErrors);
            }
            (IPV6_SRCRT_TYPE_2, left) => {
                if (hdrlen, left) == (2, 1) {
                    self.inc6(Mib6::Ip6InAddrErrors);
                    self.drop_rx(skb, RxDrop::Ip6InAddrErrors);
                } else {
                    self.bad_header6(skb);
                }
            }
            (_, 0) => {
                (skb.ip6.nhoff, skb.ip6.thoff) = (thoff as u32, end as u32);
                return Some(skb);
            }
            _ => {
                self.inc6(Mib6::Ip6InHdrErrors);
                self.icmpv6_param_prob(skb, ICMPV6_HDR_FIELD, thoff + 2);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict about options for each hop, or for this host, behind a header of `payload_len`.
    fn parse(
        options: &[u8],
        hop_by_hop: bool,
        payload_len: u16,
    ) -> Result<Option<usize>, BadOption> {
        let mut packet = vec![0; IPV6HDR_LEN];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload_len.to_be_bytes());
        packet.extend([17, 0]);
        packet.extend(options);
        parse_tlv(&packet, 42, packet.len(), hop_by_hop)
    }

    #[test]
    fn options_are_read_or_refused() {
        use BadOption::{Field, Silent, Unknown};
        for (options, want) in [
            (&[1, 4, 0, 0, 0, 0][..], Ok(None)),
            (&[0; 6], Ok(None)),
            (&[0; 8], Err(Silent)),
            (&[1, 6, 0, 0, 0, 0, 0, 0], Err(Silent)),
            (&[1, 5, 0, 0, 0, 0, 0], Ok(None)),
            (&[1, 5, 0, 0, 0, 0, 0, 1, 0], Err(Silent)),
            (&[1, 4, 0, 0, 1, 0], Err(Silent)),
            (&[1], Err(Silent)),
            (&[0x1e, 5, 0, 0, 0, 0], Err(Silent)),
            (&[0x1e, 4, 9, 9, 9, 9], Ok(None)),
            (&[0x5e, 4, 0, 0, 0, 0], Err(Silent)),
            (&[0x9e, 4, 0, 0, 0, 0], Err(Unknown(42))),
            (&[0, 0, 0xde, 2, 0, 0], Err(Unknown(44))),
            (&[0x1e, 0].repeat(8), Ok(None)),
            (&[0x1e, 0].repeat(9), Err(Silent)),
        ] {
            for hop_by_hop in [false, true] {
                assert_eq!(parse(options, hop_by_hop, 9), want, "{options:?}");
            }
        }
        assert_eq!(parse(&[5, 2, 0, 0, 1, 0], true, 9), Ok(None));
        assert_eq!(parse(&[5, 1, 0, 1, 1, 0], true, 9), Err(Silent));
        assert_eq!(parse(&[0xc2, 4, 0, 0, 1, 0], true, 0), Err(Field(44)));
        assert_eq!(parse(&[0xc2, 4, 0, 1, 0, 0], true, 9), Err(Field(42)));
        assert_eq!(
            parse(&[0xc2, 4, 0, 1, 0, 0], true, 0),
            Err(Silent),
            "it is not there"
        );
        assert_eq!(
            parse(&[0, 0xc2, 4, 0, 1, 0, 0, 0], true, 0),
            Err(Silent),
            "alignment"
        );
        let hao = [&[0xc9, 16][..], &[0xfd; 16]].concat();
        assert_eq!(parse(&hao, false, 9), Err(Silent));
        assert_eq!(parse(&hao, true, 9), Err(Unknown(42)));
        let long = [&[0xc2, 4, 0, 1, 0, 0][..], &[0; 0x10000]].concat();
        assert_eq!(
            parse_tlv(&[&[0; 42][..], &long].concat(), 42, 48, true),
            Ok(Some(0x10000))
        );
    }
}
