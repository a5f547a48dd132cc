//! TCP over IPv6, receive side (Linux: `net/ipv6/tcp_ipv6.c`): nobody listens, so that segments are answered with a reset.
//!
//! In: segments from IPv6. Out: resets. Dropped and counted: segments that are short, have a bad checksum, were not sent to
//! this station alone; and all others, since they find no socket.

use super::checksum::{csum_fold, csum_good, csum_ipv6_magic, csum_partial};
use super::inet_ecn::INET_ECN_MASK;
use super::ip6_output::Flow6;
use super::ipv6::{is_multicast, needs_scope_id};
use super::skbuff::{IpSummed, PktType, SkBuff, Skb};
use super::stats::RxDrop;
use super::tcp::{IPPROTO_TCP, TCP_CHECK, TCP_FLAG_RST, Tcphdr};
use super::{Kernel, Machine};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn tcp_v6_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("tcp_v6_rcv");
        if skb.pkt_type != PktType::Host {
            return self.drop_rx(skb, RxDrop::TcpNotHost);
        }
        self.counters.snmp.tcp_in_segs += 1;
        let th = match Tcphdr::parse(skb.data()) {
            Ok(th) => th,
            Err(reason) => return self.drop_rx(skb, reason),
        };
        let hdr = &skb.ip6;
        let pseudo = csum_ipv6_magic(hdr.saddr, hdr.daddr, skb.len(), IPPROTO_TCP);
        if skb.ip_summed == IpSummed::None && !csum_good(csum_partial(skb.data(), pseudo)) {
            return self.drop_rx(skb, RxDrop::TcpInCsumErrors);
        }
        self.tcp_v6_send_reset(&skb, &th);
        self.drop_rx(skb, RxDrop::TcpNoSocket);
    }

    /// Tells who sent a segment that there is no such connection (RFC 9293, 3.10.7.1).
    fn tcp_v6_send_reset(&mut self, skb: &SkBuff, th: &Tcphdr) {
        let _stage = self.stage("tcp_v6_send_reset");
        let hdr = skb.ip6;
        if th.has(TCP_FLAG_RST) || is_multicast(hdr.daddr) {
            return;
        }
        let oif = needs_scope_id(hdr.saddr).then_some(hdr.iif);
        let Ok(rt) = self.ip6_dst_lookup_flow(hdr.saddr, oif) else {
            return;
        };
        let mut reply = th.reset(skb.len());
        let pseudo = csum_ipv6_magic(hdr.daddr, hdr.saddr, reply.len(), IPPROTO_TCP);
        let check = csum_fold(csum_partial(&reply, pseudo));
        reply[TCP_CHECK..TCP_CHECK + 2].copy_from_slice(&check);
        self.counters.snmp.tcp_out_segs += 1;
        self.counters.snmp.tcp_out_rsts += 1;
        self.changed("tcphdr", || "RST".into());
        let flow = Flow6 {
            // What it says of congestion is of that segment alone.
            tclass: hdr.tclass & !INET_ECN_MASK,
            ..Flow6::new(hdr.daddr, hdr.saddr, IPPROTO_TCP)
        };
        let mut skb = self.ip_append_data(&reply, None);
        self.ip6_finish_skb(&mut skb, &flow);
        // Nobody waits for it: what the filter makes of it is counted.
        let _ = self.ip6_local_out(skb, rt);
    }
}
