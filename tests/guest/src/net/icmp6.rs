//! ICMPv6 (Linux: `net/ipv6/icmp.c`; RFC 4443).
//!
//! In: messages for this host, and packets that it cannot deliver. Out: echo replies, and errors back to who sent the
//! packet. Errors about datagrams of connected sockets end there, echo replies go to ping sockets, Neighbour Discovery is
//! another's ([`super::ndisc`]); what asks for nothing is consumed. Dropped and counted: short messages, bad checksums, and
//! errors that quote too little.

use super::checksum::{csum_fold, csum_good, csum_ipv6_magic, csum_partial};
use super::icmp::ICMPHDR_LEN;
use super::ip_sockglue::IpPmtudisc;
use super::ip6_output::Flow6;
use super::ip6_route::Rt6Info;
use super::ipv6::{
    IN6ADDR_ANY, IPPROTO_ICMPV6, IPV6_MIN_MTU, IPV6HDR_LEN, Ipv6hdr, NEXTHDR, is_multicast,
    needs_scope_id, skip_exthdr,
};
use super::netdevice::{IFF_LOOPBACK, Ifindex};
use super::skbuff::{IpSummed, PktType, SkBuff, Skb};
use super::sock::Proto;
use super::stats::{Mib6, RxDrop};
use super::tcp::IPPROTO_TCP;
use super::udp::IPPROTO_UDP;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// Where the counts of sent messages begin.
pub(super) const ICMP6_OUT: usize = 0x100;
pub(super) const ICMPV6_DEST_UNREACH: u8 = 1;
pub(super) const ICMPV6_PKT_TOOBIG: u8 = 2;
pub(super) const ICMPV6_TIME_EXCEED: u8 = 3;
pub(super) const ICMPV6_PARAMPROB: u8 = 4;
pub(super) const ICMPV6_ECHO_REQUEST: u8 = 128;
pub(super) const ICMPV6_ECHO_REPLY: u8 = 129;
pub(super) const ICMPV6_NOROUTE: u8 = 0;
pub(super) const ICMPV6_ADDR_UNREACH: u8 = 3;
pub(super) const ICMPV6_PORT_UNREACH: u8 = 4;
pub(super) const ICMPV6_EXC_FRAGTIME: u8 = 1;
pub(super) const ICMPV6_HDR_FIELD: u8 = 0;
pub(super) const ICMPV6_UNK_NEXTHDR: u8 = 1;
pub(super) const ICMPV6_UNK_OPTION: u8 = 2;
pub(super) const ICMPV6_HDR_INCOMP: u8 = 3;
/// From here on messages are no errors.
const ICMPV6_INFOMSG_MASK: u8 = 0x80;
/// The answer to a question about interfaces (RFC 8335).
const ICMPV6_EXT_ECHO_REPLY: u8 = 161;
/// Neighbour Discovery.
pub(super) const NDISC_ROUTER_SOLICITATION: u8 = 133;
pub(super) const NDISC_REDIRECT: u8 = 137;
/// The most of a packet that an error quotes.
const MAX_QUOTE: usize = IPV6_MIN_MTU - IPV6HDR_LEN - ICMPHDR_LEN;

/// What an unreachable destination means by its code, and whether for good (`tab_unreach`).
const TAB_UNREACH: [(Errno, bool); 7] = [
    (Errno::ENETUNREACH, false),  // ICMPV6_NOROUTE
    (Errno::EACCES, true),        // ICMPV6_ADM_PROHIBITED
    (Errno::EHOSTUNREACH, false), // ICMPV6_NOT_NEIGHBOUR
    (Errno::EHOSTUNREACH, false), // ICMPV6_ADDR_UNREACH
    (Errno::ECONNREFUSED, true),  // ICMPV6_PORT_UNREACH
    (Errno::EACCES, true),        // ICMPV6_POLICY_FAIL
    (Errno::EACCES, true),        // ICMPV6_REJECT_ROUTE
];

/// What a message means to a socket, and whether for good (`icmpv6_err_convert`).
fn icmpv6_err_convert(icmp_type: u8, code: u8) -> (Errno, bool) {
    match icmp_type {
        ICMPV6_DEST_UNREACH => {
            let known = TAB_UNREACH.get(usize::from(code)).copied();
            known.unwrap_or((Errno::EPROTO, true))
        }
        ICMPV6_PKT_TOOBIG => (Errno::EMSGSIZE, false),
        ICMPV6_PARAMPROB => (Errno::EPROTO, true),
        ICMPV6_TIME_EXCEED => (Errno::EHOSTUNREACH, false),
        _ => (Errno::EPROTO, false),
    }
}

/// Whether an error about a packet would be one about an error (`is_ineligible`).
fn is_ineligible(packet: &[u8]) -> bool {
    let Some(upper) = skip_exthdr(packet, IPV6HDR_LEN, packet[NEXTHDR]) else {
        return false;
    };
    if upper.protocol != IPPROTO_ICMPV6 {
        return false;
    }
    match packet.get(upper.at) {
        None => upper.frag_off == 0,
        Some(icmp_type) => icmp_type & ICMPV6_INFOMSG_MASK == 0,
    }
}

/// Whether the option at a place says that its sender is to be told of it even if it was sent to many (`opt_unrec`).
fn opt_unrec(packet: &[u8], at: u32) -> bool {
    let kind = packet.get(at as usize);
    kind.is_none_or(|kind| kind & 0xc0 == 0x80)
}

/// What a message says of a packet that was not delivered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Icmp6Error {
    pub icmp_type: u8,
    code: u8,
    /// The MTU of a path, or the octet that is wrong.
    info: u32,
    /// The device that the message came by.
    pub iif: Ifindex,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn icmpv6_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("icmpv6_rcv");
        self.inc6(Mib6::Icmp6InMsgs);
        let pseudo = csum_ipv6_magic(skb.ip6.saddr, skb.ip6.daddr, skb.len(), IPPROTO_ICMPV6);
        if skb.ip_summed == IpSummed::None && !csum_good(csum_partial(skb.data(), pseudo)) {
            self.inc6(Mib6::Icmp6InCsumErrors);
            self.inc6(Mib6::Icmp6InErrors);
            return self.drop_rx(skb, RxDrop::Icmp6InCsumErrors);
        }
        let Some(&[icmp_type, code, .., i0, i1, i2, i3]) = skb.data().first_chunk::<ICMPHDR_LEN>()
        else {
            return self.icmpv6_discard(skb);
        };
        self.icmp6msg[usize::from(icmp_type)] += 1;
        let error = Icmp6Error {
            icmp_type,
            code,
            info: u32::from_be_bytes([i0, i1, i2, i3]),
            iif: skb.ip6.iif,
        };
        match icmp_type {
            ICMPV6_ECHO_REQUEST => self.icmpv6_echo_reply(&skb),
            ICMPV6_ECHO_REPLY | ICMPV6_EXT_ECHO_REPLY => return self.ping_v6_rcv(skb),
            NDISC_ROUTER_SOLICITATION..=NDISC_REDIRECT => return self.ndisc_rcv(skb),
            // All others that are no errors ask for nothing that is done.
            _ if icmp_type & ICMPV6_INFOMSG_MASK != 0 => {}
            _ if self.icmpv6_notify(&skb, error) => {}
            _ => return self.icmpv6_discard(skb),
        }
        self.counters.consumed += 1;
        self.consume_skb(skb);
    }

    /// A message that says too little.
    fn icmpv6_discard(&mut self, skb: Skb) {
        self.inc6(Mib6::Icmp6InErrors);
        self.drop_rx(skb, RxDrop::Icmp6InErrors);
    }

    /// Sends the request back as a reply.
    fn icmpv6_echo_reply(&mut self, request: &SkBuff) {
        let _stage = self.stage("icmpv6_echo_reply");
        let hdr = request.ip6;
        let oif = needs_scope_id(hdr.saddr).then_some(hdr.iif);
        let Ok(rt) = self.ip6_dst_lookup_flow(hdr.saddr, oif) else {
            return;
        };
        let saddr = if is_multicast(hdr.daddr) {
            self.ipv6_dev_get_saddr(rt.iif, hdr.saddr)
        } else {
            Some(hdr.daddr)
        };
        let Some(saddr) = saddr else {
            return;
        };
        let flow = Flow6 {
            tclass: hdr.tclass,
            ..Flow6::new(saddr, hdr.saddr, IPPROTO_ICMPV6)
        };
        if request.len() > usize::from(u16::MAX) {
            // A jumbogram (RFC 2675), of which fragments cannot be.
            return self.inc6(Mib6::Icmp6OutErrors);
        }
        let skb = self.ip_append_data(request.data(), None);
        self.icmpv6_push_pending_frames(skb, &flow, rt, ICMPV6_ECHO_REPLY);
    }

    /// Sends a message, with its type and the right checksum.
    pub(super) fn icmpv6_push_pending_frames(
        &mut self,
        mut skb: Skb,
        flow: &Flow6,
        rt: Rt6Info,
        icmp_type: u8,
    ) {
        let _stage = self.stage("icmpv6_push_pending_frames");
        let len = skb.len();
        let message = skb.data_mut();
        message[0] = icmp_type;
        message[2..4].fill(0);
        let pseudo = csum_ipv6_magic(flow.saddr, flow.daddr, len, IPPROTO_ICMPV6);
        let check = csum_fold(csum_partial(message, pseudo));
        message[2..4].copy_from_slice(&check);
        self.icmp6_out_count(icmp_type);
        self.ip6_finish_skb(&mut skb, flow);
        // Nobody waits for it: what the filter makes of it is counted.
        let _ = self.ip6_send_skb(skb, rt);
    }

    pub(super) fn icmp6_out_count(&mut self, icmp_type: u8) {
        self.inc6(Mib6::Icmp6OutMsgs);
        self.icmp6msg[ICMP6_OUT + usize::from(icmp_type)] += 1;
    }

    /// Tells the sender of a packet why it was not delivered, with the beginning of it; `info` is the second word of the
    /// header. Nobody is told of packets that were sent to many, but of what a group's hosts have to know, of such from
    /// nobody or from one of several, and of errors (RFC 4443, 2.4 (e)), nor of more than the limits allow.
    pub(super) fn icmp6_send(&mut self, skb_in: &SkBuff, icmp_type: u8, code: u8, info: u32) {
        let _stage = self.stage("icmp6_send");
        let packet = skb_in.network();
        let Some(hdr) = Ipv6hdr::parse(packet) else {
            return;
        };
        let of_many = is_multicast(hdr.daddr) || skb_in.pkt_type != PktType::Host;
        let for_groups = icmp_type == ICMPV6_PKT_TOOBIG
            || (icmp_type, code) == (ICMPV6_PARAMPROB, ICMPV6_UNK_OPTION)
                && opt_unrec(packet, info);
        if of_many && !for_groups
            || hdr.saddr == IN6ADDR_ANY
            || is_multicast(hdr.saddr)
            || is_ineligible(packet)
        {
            return;
        }
        // Packets that are too long are always told of.
        let limited = icmp_type != ICMPV6_PKT_TOOBIG;
        let looped = self.netdevs[skb_in.dev].flags & IFF_LOOPBACK != 0;
        if limited && !looped && !self.icmp_global_allow() {
            return;
        }
        let iif = skb_in.ip6.iif;
        let oif = needs_scope_id(hdr.saddr).then_some(iif);
        let Ok(rt) = self.ip6_dst_lookup_flow(hdr.saddr, oif) else {
            if limited && !looped {
                // As if there had been too many.
                self.inc6(Mib6::Icmp6OutRateLimitHost);
            }
            return;
        };
        if limited && !looped && !self.icmpv6_xrlim_allow(hdr.saddr, &rt)
            || rt.is_anycast(hdr.saddr)
        {
            return;
        }
        let own = !of_many && self.fib6.is_local(hdr.daddr, None);
        let saddr = if own {
            Some(hdr.daddr)
        } else {
            self.ipv6_dev_get_saddr(iif, hdr.saddr)
        };
        let Some(saddr) = saddr else {
            return;
        };
        let quoted = &packet[..packet.len().min(MAX_QUOTE)];
        let mut message = [0; IPV6_MIN_MTU];
        message[1] = code;
        message[4..ICMPHDR_LEN].copy_from_slice(&info.to_be_bytes());
        message[ICMPHDR_LEN..][..quoted.len()].copy_from_slice(quoted);
        self.changed("icmp6hdr", || format!("type {icmp_type}, code {code}"));
        let skb = self.ip_append_data(&message[..ICMPHDR_LEN + quoted.len()], None);
        let flow = Flow6::new(saddr, hdr.saddr, IPPROTO_ICMPV6);
        self.icmpv6_push_pending_frames(skb, &flow, rt, icmp_type);
    }

    /// A packet of ours was not delivered: who sent it is told. Whether the message says which packet.
    fn icmpv6_notify(&mut self, skb: &SkBuff, error: Icmp6Error) -> bool {
        let _stage = self.stage("icmpv6_notify");
        let quoted = &skb.data()[ICMPHDR_LEN..];
        let Some(hdr) = Ipv6hdr::parse(quoted) else {
            return false;
        };
        let upper = skip_exthdr(quoted, IPV6HDR_LEN, quoted[NEXTHDR]);
        let Some(upper) = upper.filter(|upper| upper.at + 8 <= quoted.len()) else {
            return false;
        };
        let rest = &quoted[upper.at..];
        let known = match upper.protocol {
            IPPROTO_UDP => self.udpv6_err(&hdr, rest, error),
            // There are no connections.
            IPPROTO_TCP => false,
            IPPROTO_ICMPV6 => {
                self.icmpv6_err(&hdr, rest, error);
                true
            }
            _ => true,
        };
        if !known {
            self.inc6(Mib6::Icmp6InErrors);
        }
        true
    }

    /// A message of ours was not delivered.
    fn icmpv6_err(&mut self, hdr: &Ipv6hdr, quoted: &[u8], error: Icmp6Error) {
        if error.icmp_type == ICMPV6_PKT_TOOBIG {
            self.ip6_update_pmtu(hdr.daddr, error.info, error.iif);
        }
        if quoted[0] == ICMPV6_ECHO_REQUEST {
            let ident = u16::from_be_bytes([quoted[4], quoted[5]]);
            if let Some(at) = self
                .ping6_table
                .lookup_local((hdr.saddr, ident), Some(error.iif))
            {
                self.sock_icmp6_error(at, hdr.daddr, error);
            }
        }
    }

    /// Tells a socket what became of a packet that it sent to `daddr`, unless it is of no use to it.
    pub(super) fn sock_icmp6_error(&mut self, at: usize, daddr: u128, error: Icmp6Error) {
        let Some(sk) = self.socks.get(at) else {
            return;
        };
        let (pmtudisc, connected) = (sk.pmtudisc, sk.pinet6.daddr != 0);
        let udp = sk.sk_prot == Proto::Udpv6;
        let (errno, mut for_good) = icmpv6_err_convert(error.icmp_type, error.code);
        if udp && error.icmp_type == ICMPV6_PKT_TOOBIG {
            if !pmtudisc.accepts_pmtu() {
                return;
            }
            self.ip6_update_pmtu(daddr, error.info, error.iif);
            for_good = pmtudisc != IpPmtudisc::Dont;
        }
        if for_good && connected {
            self.sk_error_report(at, errno);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_not_answered() {
        let packet = |nexthdr, rest: &[u8]| {
            let mut packet = vec![0; IPV6HDR_LEN];
            packet[NEXTHDR] = nexthdr;
            packet.extend(rest);
            packet
        };
        for (nexthdr, rest, want) in [
            (17, &[][..], false),
            (IPPROTO_ICMPV6, &[128, 0], false),
            (IPPROTO_ICMPV6, &[1, 0], true),
            (IPPROTO_ICMPV6, &[], true),
            // A first fragment, whose message may be an error, and one that says nothing yet.
            (44, &[IPPROTO_ICMPV6, 0, 0, 1, 0, 0, 0, 1, 3], true),
            (44, &[IPPROTO_ICMPV6, 0, 0, 1, 0, 0, 0, 1], false),
            (44, &[IPPROTO_ICMPV6, 0, 0, 8, 0, 0, 0, 1, 3], false),
            (60, &[IPPROTO_ICMPV6], false),
        ] {
            assert_eq!(
                is_ineligible(&packet(nexthdr, rest)),
                want,
                "{nexthdr} {rest:?}"
            );
        }
    }

    #[test]
    fn some_errors_are_for_good() {
        let convert = icmpv6_err_convert;
        assert_eq!(convert(1, 4), (Errno::ECONNREFUSED, true));
        assert_eq!(convert(1, 0), (Errno::ENETUNREACH, false));
        assert_eq!(convert(1, 7), (Errno::EPROTO, true));
        assert_eq!(convert(4, 9), (Errno::EPROTO, true));
        assert_eq!(convert(3, 0), (Errno::EHOSTUNREACH, false));
        assert_eq!(convert(100, 0), (Errno::EPROTO, false));
    }
}
