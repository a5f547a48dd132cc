//! Ping sockets (Linux: `net/ipv4/ping.c`): echo without privileges.
//!
//! In: echo requests that a process wrote, whose identifier is replaced by the socket's port and whose
//! checksum is filled in; and echo replies. Out: the requests to IP, the replies to the socket with
//! that port. Dropped and counted: replies that no socket waits for, or whose queue is full.

use std::net::SocketAddrV4;

use super::icmp::{ICMP_ECHO, ICMPHDR_LEN, IPPROTO_ICMP, IcmpError, icmp_checksum};
use super::ip_input::{IPHDR_LEN, Iphdr};
use super::ip_options::ReplyOptions;
use super::ip_output::Flow;
use super::skbuff::Skb;
use super::stats::RxDrop;
use super::{Errno, Kernel, Machine, Received};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn ping_v4_sendmsg(
        &mut self,
        at: usize,
        data: &[u8],
        to: Option<SocketAddrV4>,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("ping_v4_sendmsg");
        let Some([ICMP_ECHO, 0, ..]) = data.first_chunk::<ICMPHDR_LEN>() else {
            return Err(Errno::EINVAL);
        };
        let (daddr, _) = self.destination(at, to)?;
        let rt = self.ip_route_output_sk(at, daddr);
        let rt = rt.inspect_err(|error| self.count_no_route(*error))?;
        let len = IPHDR_LEN + data.len();
        if len > 0xffff {
            return Err(Errno::EMSGSIZE);
        }
        let pmtudisc = self.socks.get(at).ok_or(Errno::EBADF)?.pmtudisc;
        let df = self.ip_dont_fragment(pmtudisc, &rt, len)?;
        let (sk, ident, tos) = self.sock_alloc_send(at)?;
        let mut skb = self.ip_append_data(data, Some(sk));
        let message = skb.data_mut();
        message[4..6].copy_from_slice(&ident.to_be_bytes());
        icmp_checksum(message);
        let flow = Flow {
            saddr: self.source(at, &rt),
            daddr,
            protocol: IPPROTO_ICMP,
            tos,
            df,
            id: self.ip_select_ident(),
        };
        self.ip_push_pending_frames(skb, rt, &flow, &ReplyOptions::NONE)?;
        Ok(data.len())
    }

    pub(super) fn ping_recvmsg(
        &mut self,
        at: usize,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received, Errno> {
        let _stage = self.stage("ping_recvmsg");
        self.sock_recv_skb(at, buf, peek)
    }

    /// A request of ours was not delivered.
    pub(super) fn ping_err(&mut self, iph: &Iphdr, quoted: &[u8], error: IcmpError) {
        if quoted[0] != ICMP_ECHO {
            return;
        }
        let ident = u16::from_be_bytes([quoted[4], quoted[5]]);
        if let Some(at) = self.ping_table.lookup_local((iph.saddr, ident), ()) {
            self.sock_icmp_error(at, (iph.daddr, 0), error, quoted);
        }
    }

    /// An echo reply, to the socket that asked, whoever answers.
    pub(super) fn ping_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("ping_rcv");
        // The caller has seen the whole header.
        let ident = skb
            .data()
            .first_chunk::<ICMPHDR_LEN>()
            .map_or(0, |hdr| u16::from_be_bytes([hdr[4], hdr[5]]));
        match self.ping_table.lookup_local((skb.ip.daddr, ident), ()) {
            Some(at) => {
                self.sock_queue_rcv_skb(at, skb, RxDrop::PingRcvbufErrors);
            }
            None => self.drop_rx(skb, RxDrop::PingNoSocket),
        }
    }
}
