//! Ping sockets (Linux: `net/ipv4/ping.c`): echo without privileges.
//!
//! In: echo requests that a process wrote, whose identifier is replaced by the socket's port and whose
//! checksum is filled in; and echo replies. Out: the requests to IP, the replies to the socket with
//! that port. Dropped and counted: replies that no socket waits for, or whose queue is full.

use std::net::SocketAddrV4;

use super::icmp::{ICMP_ECHO, ICMPHDR_LEN, IPPROTO_ICMP, icmp_checksum};
use super::ip_input::IPHDR_LEN;
use super::ip_output::Flow;
use super::skbuff::{MAX_HEADER, Skb};
use super::stats::RxDrop;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn ping_v4_sendmsg(
        &mut self,
        at: usize,
        data: &[u8],
        to: Option<SocketAddrV4>,
    ) -> Result<usize, Errno> {
        let Some([ICMP_ECHO, 0, ..]) = data.first_chunk::<ICMPHDR_LEN>() else {
            return Err(Errno::EINVAL);
        };
        let (daddr, _) = self.destination(at, to)?;
        let rt = self.ip_route_output_unicast(daddr)?;
        if IPHDR_LEN + data.len() > self.mtu() {
            return Err(Errno::EMSGSIZE);
        }
        let (sk, ident) = self.sock_alloc_send(at)?;
        let mut skb = self.skb_cache.alloc(MAX_HEADER, data.len());
        let message = skb.put(data.len());
        message.copy_from_slice(data);
        message[4..6].copy_from_slice(&ident.to_be_bytes());
        icmp_checksum(message);
        self.skb_set_owner_w(&mut skb, sk);
        self.counters.snmp.icmp_out_msgs += 1;
        let flow = Flow {
            daddr,
            protocol: IPPROTO_ICMP,
            tos: 0,
            df: true,
            id: self.ip_select_ident(),
        };
        self.ip_send_skb(skb, rt, &flow);
        Ok(data.len())
    }

    /// An echo reply, to the socket that asked, whoever answers.
    pub(super) fn ping_rcv(&mut self, skb: Skb) {
        // The caller has seen the whole header.
        let ident = skb
            .data()
            .first_chunk::<ICMPHDR_LEN>()
            .map_or(0, |hdr| u16::from_be_bytes([hdr[4], hdr[5]]));
        match self.ping_table.lookup_local((skb.ip.daddr, ident)) {
            Some(at) => self.sock_queue_rcv_skb(at, skb, RxDrop::PingRcvbufErrors),
            None => self.drop_rx(skb, RxDrop::PingNoSocket),
        }
    }
}
