//! ICMP (Linux: `net/ipv4/icmp.c`, RFC 792, RFC 1122 3.2.2).
//!
//! In: messages for this host, and packets that it cannot deliver. Out: echo replies, and errors back
//! to who sent the packet. Errors about datagrams of connected sockets end there; echo replies go to
//! ping sockets; what asks for nothing is consumed. Dropped and counted: short messages, bad checksums,
//! unknown types, echo requests to broadcast addresses. Nothing is rate-limited.

use super::checksum::{csum_fold, csum_good, csum_partial};
use super::ip_input::{IPHDR_LEN, inner_header};
use super::ip_output::Flow;
use super::route::RtType;
use super::skbuff::{IpSummed, MAX_HEADER, PktType, SkBuff, Skb};
use super::stats::RxDrop;
use super::udp::IPPROTO_UDP;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

pub(super) const IPPROTO_ICMP: u8 = 1;
/// Bytes of a header.
pub(super) const ICMPHDR_LEN: usize = 8;
pub(super) const ICMP_ECHOREPLY: u8 = 0;
pub(super) const ICMP_DEST_UNREACH: u8 = 3;
pub(super) const ICMP_ECHO: u8 = 8;
/// The highest type that is known.
const NR_ICMP_TYPES: u8 = 18;
pub(super) const ICMP_PROT_UNREACH: u8 = 2;
pub(super) const ICMP_PORT_UNREACH: u8 = 3;
/// An error is no longer than this with its IP header, whatever the MTU (RFC 1812, 4.3.2.3).
const MAX_ERROR_LEN: usize = 576;
/// Errors keep the delay, throughput and reliability bits, and have this precedence.
const IPTOS_TOS_MASK: u8 = 0x1e;
const IPTOS_PREC_INTERNETCONTROL: u8 = 0xc0;

/// What an unreachable destination means by its code, and whether for good (`icmp_err_convert`).
const ICMP_ERR_CONVERT: [(Errno, bool); 16] = [
    (Errno::ENETUNREACH, false),  // ICMP_NET_UNREACH
    (Errno::EHOSTUNREACH, false), // ICMP_HOST_UNREACH
    (Errno::ENOPROTOOPT, true),   // ICMP_PROT_UNREACH
    (Errno::ECONNREFUSED, true),  // ICMP_PORT_UNREACH
    (Errno::EMSGSIZE, false),     // ICMP_FRAG_NEEDED; path MTUs are not kept
    (Errno::EOPNOTSUPP, false),   // ICMP_SR_FAILED
    (Errno::ENETUNREACH, true),   // ICMP_NET_UNKNOWN
    (Errno::EHOSTDOWN, true),     // ICMP_HOST_UNKNOWN
    (Errno::ENONET, true),        // ICMP_HOST_ISOLATED
    (Errno::ENETUNREACH, true),   // ICMP_NET_ANO
    (Errno::EHOSTUNREACH, true),  // ICMP_HOST_ANO
    (Errno::ENETUNREACH, false),  // ICMP_NET_UNR_TOS
    (Errno::EHOSTUNREACH, false), // ICMP_HOST_UNR_TOS
    (Errno::EHOSTUNREACH, true),  // ICMP_PKT_FILTERED
    (Errno::EHOSTUNREACH, true),  // ICMP_PREC_VIOLATION
    (Errno::EHOSTUNREACH, true),  // ICMP_PREC_CUTOFF
];

/// Writes the checksum of a message (`icmp_push_reply`).
pub(super) fn icmp_checksum(message: &mut [u8]) {
    message[2..4].fill(0);
    let check = csum_fold(csum_partial(message, 0));
    message[2..4].copy_from_slice(&check);
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn icmp_rcv(&mut self, skb: Skb) {
        self.counters.snmp.icmp_in_msgs += 1;
        if skb.ip_summed == IpSummed::None && !csum_good(csum_partial(skb.data(), 0)) {
            return self.drop_rx(skb, RxDrop::IcmpInCsumErrors);
        }
        let Some(&[icmp_type, code, ..]) = skb.data().first_chunk::<ICMPHDR_LEN>() else {
            return self.drop_rx(skb, RxDrop::IcmpInErrors);
        };
        if icmp_type > NR_ICMP_TYPES || skb.rt_type == RtType::Broadcast {
            return self.drop_rx(skb, RxDrop::IcmpInErrors);
        }
        match icmp_type {
            ICMP_ECHO => self.icmp_echo(&skb),
            ICMP_ECHOREPLY => return self.ping_rcv(skb),
            ICMP_DEST_UNREACH => self.icmp_unreach(&skb, code),
            // Nothing asks for an answer that this host gives (`icmp_discard`).
            _ => {}
        }
        self.counters.consumed += 1;
        self.consume_skb(skb);
    }

    /// Sends the request back as a reply.
    fn icmp_echo(&mut self, request: &SkBuff) {
        let mut reply = self.skb_cache.alloc(MAX_HEADER, request.len());
        let message = reply.put(request.len());
        message.copy_from_slice(request.data());
        message[0] = ICMP_ECHOREPLY;
        icmp_checksum(message);
        self.icmp_push_reply(reply, request.ip.saddr, request.ip.tos);
    }

    fn icmp_push_reply(&mut self, skb: Skb, daddr: u32, tos: u8) {
        let Ok(rt) = self.ip_route_output_flow(daddr) else {
            return self.consume_skb(skb);
        };
        self.counters.snmp.icmp_out_msgs += 1;
        let flow = Flow {
            daddr,
            protocol: IPPROTO_ICMP,
            tos,
            df: false,
            id: self.ip_select_ident(),
        };
        self.ip_send_skb(skb, rt, &flow);
    }

    /// Tells the sender of a packet why it was not delivered, with the beginning of it. Nobody is
    /// told of packets that were sent to many. (Nor of ICMP errors: nobody calls this for ICMP.)
    pub(super) fn icmp_send(&mut self, skb_in: &SkBuff, icmp_type: u8, code: u8) {
        if skb_in.pkt_type != PktType::Host || skb_in.rt_type != RtType::Local {
            return;
        }
        let headers = IPHDR_LEN + ICMPHDR_LEN;
        let room = self.mtu().min(MAX_ERROR_LEN).saturating_sub(headers);
        let packet = skb_in.network();
        let quoted = &packet[..packet.len().min(room)];
        let mut skb = self.skb_cache.alloc(MAX_HEADER, ICMPHDR_LEN + quoted.len());
        let message = skb.put(ICMPHDR_LEN + quoted.len());
        message[..ICMPHDR_LEN].copy_from_slice(&[icmp_type, code, 0, 0, 0, 0, 0, 0]);
        message[ICMPHDR_LEN..].copy_from_slice(quoted);
        icmp_checksum(message);
        let tos = skb_in.ip.tos & IPTOS_TOS_MASK | IPTOS_PREC_INTERNETCONTROL;
        self.icmp_push_reply(skb, skb_in.ip.saddr, tos);
    }

    /// A packet of ours was not delivered: its socket is told, if it is connected.
    fn icmp_unreach(&mut self, skb: &SkBuff, code: u8) {
        // What may pass is not worth telling, nor is a code that nobody knows.
        let Some(&(error, true)) = ICMP_ERR_CONVERT.get(usize::from(code)) else {
            return;
        };
        let quoted = skb.data().get(ICMPHDR_LEN..).and_then(inner_header);
        if let Some((iph, rest)) = quoted
            && iph.protocol == IPPROTO_UDP
        {
            self.udp_err(&iph, rest, error);
        }
    }
}
