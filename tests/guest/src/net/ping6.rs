//! Ping sockets of IPv6 (Linux: `net/ipv6/ping.c`, `net/ipv4/ping.c`): echo without privileges.
//!
//! As those of IPv4: requests that a process wrote get the socket's port for their identifier, and replies go to the
//! socket with that port. Dropped and counted: replies that no socket waits for, or whose queue is full.

use std::net::SocketAddrV6;

use super::icmp::ICMPHDR_LEN;
use super::icmp6::ICMPV6_ECHO_REQUEST;
use super::ip6_output::Flow6;
use super::ipv6::{IPPROTO_ICMPV6, IPV6HDR_LEN, needs_scope_id};
use super::skbuff::Skb;
use super::stats::RxDrop;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn ping_v6_sendmsg(
        &mut self,
        at: usize,
        data: &[u8],
        to: Option<SocketAddrV6>,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("ping_v6_sendmsg");
        if data.len() > 0xffff {
            return Err(Errno::EMSGSIZE);
        }
        let Some([ICMPV6_ECHO_REQUEST, 0, ..]) = data.first_chunk::<ICMPHDR_LEN>() else {
            return Err(Errno::EINVAL);
        };
        if to.is_some_and(|to| to.ip().to_ipv4_mapped().is_some()) {
            return Err(Errno::EINVAL);
        }
        let (daddr, _, oif) = self.destination6(at, to)?;
        let bound = self.socks.get(at).and_then(|sk| sk.pinet6.oif);
        if needs_scope_id(daddr) && oif.is_none() || bound.is_some() && bound != oif {
            return Err(Errno::EINVAL);
        }
        let rt = self.ip6_dst_lookup_flow(daddr, oif)?;
        let saddr = self.source6(at, &rt, daddr)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let (pmtudisc, tclass) = (sk.pmtudisc, sk.pinet6.tclass);
        let rt = self.ip6_setup_cork(pmtudisc, rt, IPV6HDR_LEN + data.len())?;
        let (sk, ident, _) = self.sock_alloc_send(at)?;
        let mut skb = self.ip_append_data(data, Some(sk));
        skb.data_mut()[4..6].copy_from_slice(&ident.to_be_bytes());
        let flow = Flow6 {
            tclass,
            ..Flow6::new(saddr, daddr, IPPROTO_ICMPV6)
        };
        self.icmpv6_push_pending_frames(skb, &flow, rt, ICMPV6_ECHO_REQUEST);
        Ok(data.len())
    }

    /// An echo reply, to the socket that asked, whoever answers.
    pub(super) fn ping_v6_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("ping_rcv");
        // The caller has seen the whole header.
        let ident = skb
            .data()
            .first_chunk::<ICMPHDR_LEN>()
            .map_or(0, |hdr| u16::from_be_bytes([hdr[4], hdr[5]]));
        let (daddr, iif) = (skb.ip6.daddr, skb.ip6.iif);
        match self.ping6_table.lookup_local((daddr, ident), Some(iif)) {
            Some(at) => {
                self.sock_queue_rcv_skb(at, skb, RxDrop::PingRcvbufErrors);
            }
            None => self.drop_rx(skb, RxDrop::PingNoSocket),
        }
    }
}
