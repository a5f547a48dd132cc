//! Ping sockets (Linux: `net/ipv4/ping.c`): echo without privileges.
//!
//! In: echo requests that a process wrote, whose identifier is replaced by the socket's port and whose
//! checksum is filled in; and echo replies. Out: the requests to IP, the replies to the socket with
//! that port. Dropped and counted: replies that no socket waits for, or whose queue is full.

use std::net::SocketAddrV4;

use super::af_inet::datagram_check;
use super::file::MsgFlags;
use super::icmp::{ICMP_ECHO, ICMPHDR_LEN, IPPROTO_ICMP, IcmpError, icmp_checksum};
use super::ip_input::Iphdr;
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
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("ping_v4_sendmsg");
        datagram_check(data, flags)?;
        let Some((header @ [ICMP_ECHO, 0, ..], rest)) = data.split_first_chunk::<ICMPHDR_LEN>()
        else {
            return Err(Errno::EINVAL);
        };
        let (daddr, _) = self.destination(at, to)?;
        let rt = self.ip_route_output_sk(at, daddr);
        let rt = rt.inspect_err(|error| self.count_no_route(*error))?;
        let cork = self.ip_setup_cork(at, rt, (daddr, 0), 0)?;
        self.ip_append_pending(at, ICMPHDR_LEN, Some(&cork), rest)?;
        let ident = self.socks.get(at).ok_or(Errno::EBADF)?.inet_num;
        if let Some((mut skb, cork)) = self.ip_finish_skb(at) {
            let message = skb.data_mut();
            message[..ICMPHDR_LEN].copy_from_slice(header);
            message[4..6].copy_from_slice(&ident.to_be_bytes());
            icmp_checksum(message);
            self.ip_push_skb(at, skb, &cork, IPPROTO_ICMP)?;
        }
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
