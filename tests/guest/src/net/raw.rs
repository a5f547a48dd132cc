//! Raw sockets (Linux: `net/ipv4/raw.c`): IP packets of one protocol as they are.
//!
//! In: packets for this host, before their protocol gets them; what processes send, with an IP header of their own
//! (`IP_HDRINCL`) or without. Out: a copy for each socket that fits, header included; packets to IP. Dropped and
//! counted: copies for which a socket's queue has no room.

use std::net::SocketAddrV4;

use super::af_inet::datagram_check;
use super::file::{MSG_MORE, MsgFlags};
use super::icmp::{IPPROTO_ICMP, IcmpError};
use super::ip_cork::InetCork;
use super::ip_input::{IPHDR_LEN, Iphdr};
use super::ip_output::ip_send_check;
use super::netfilter::NfHook;
use super::skbuff::{NET_SKB_PAD, SkBuff};
use super::sock::{Proto, SkRef, Sock};
use super::stats::RxDrop;
use super::{Errno, Fd, Kernel, Machine, Received};
use crate::transport::Transport;

/// With a socket of this protocol the process writes headers, and nothing is received.
pub(super) const IPPROTO_RAW: u8 = 255;

/// What a raw socket says of its packets (`struct raw_sock`).
#[derive(Debug, Default)]
pub(super) struct RawOptions {
    /// What is sent has its IP header (`IP_HDRINCL`).
    pub hdrincl: bool,
    /// Types of ICMP that it does not want, as bits (`ICMP_FILTER`).
    filter: u32,
}

/// Whether a socket gets packets of a protocol between two addresses, `laddr` of this host's (`raw_v4_match`).
fn raw_v4_match(sk: &Sock, protocol: u8, raddr: u32, laddr: u32) -> bool {
    sk.inet_num == u16::from(protocol)
        && (sk.inet_daddr == 0 || sk.inet_daddr == raddr)
        && (sk.inet_rcv_saddr == 0 || sk.inet_rcv_saddr == laddr)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Says whether what a raw socket sends has its IP header (`IP_HDRINCL`).
    ///
    /// # Errors
    /// EBADF; ENOPROTOOPT: it is no raw socket.
    pub fn set_hdrincl(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.raw_options(fd)?.hdrincl = on;
        Ok(())
    }

    /// Says which types of ICMP a raw socket does not want, as bits (`ICMP_FILTER`).
    ///
    /// # Errors
    /// EBADF; ENOPROTOOPT: it is no raw socket.
    pub fn set_icmp_filter(&mut self, fd: Fd, filter: u32) -> Result<(), Errno> {
        self.raw_options(fd)?.filter = filter;
        Ok(())
    }

    fn raw_options(&mut self, fd: Fd) -> Result<&mut RawOptions, Errno> {
        let sk = self.sock_mut(fd)?;
        if sk.sk_prot != Proto::Raw {
            return Err(Errno::ENOPROTOOPT);
        }
        Ok(&mut sk.raw)
    }

    /// A packet for this host, whose IP header was taken off; whether a raw socket wants such.
    #[cold]
    pub(super) fn raw_local_deliver(&mut self, skb: &SkBuff) -> bool {
        let _stage = self.stage("raw_local_deliver");
        self.raw_v4_input(skb)
    }

    /// A copy for each socket that fits.
    fn raw_v4_input(&mut self, skb: &SkBuff) -> bool {
        let _stage = self.stage("raw_v4_input");
        let iph = skb.ip;
        let mut delivered = false;
        for nth in 0..self.raw_table.len() {
            let at = self.raw_table[nth];
            let Some(sk) = self.socks.get(at) else {
                continue;
            };
            if !raw_v4_match(sk, iph.protocol, iph.saddr, iph.daddr) {
                continue;
            }
            delivered = true;
            // `icmp_filter`: what has no type is for nobody.
            let filtered = iph.protocol == IPPROTO_ICMP
                && skb
                    .data()
                    .first()
                    .is_none_or(|icmp_type| *icmp_type < 32 && sk.raw.filter >> icmp_type & 1 != 0);
            if !filtered && self.ip_mc_sf_allow(at, skb) {
                self.raw_rcv(at, skb);
            }
        }
        delivered
    }

    fn raw_rcv(&mut self, at: usize, skb: &SkBuff) {
        let _stage = self.stage("raw_rcv");
        let len = skb.network_len();
        let mut copy = self.skb_cache.alloc(NET_SKB_PAD, len);
        skb.copy_network(copy.put(len));
        copy.inherit(skb);
        copy.reset_network_header();
        (copy.ip_summed, copy.truesize) = (skb.ip_summed, skb.truesize);
        self.counters.cloned += 1;
        let room = |sk: &Sock| sk.sk_rmem_alloc < sk.sk_rcvbuf;
        if self.socks.get(at).is_some_and(room) {
            self.sock_queue_rcv_skb(at, copy, RxDrop::RawRcvbufErrors);
        } else {
            self.drop_rx(copy, RxDrop::RawRcvbufErrors);
        }
    }

    /// A packet that a process sent by one of these sockets was not delivered (`raw_icmp_error`).
    pub(super) fn raw_icmp_error(&mut self, iph: &Iphdr, error: IcmpError, packet: &[u8]) {
        for nth in 0..self.raw_table.len() {
            let at = self.raw_table[nth];
            let sk = self.socks.get(at);
            let sk = sk.filter(|sk| raw_v4_match(sk, iph.protocol, iph.daddr, iph.saddr));
            if let Some(sk) = sk {
                // As much of it as the process wrote.
                let before = if sk.raw.hdrincl { 0 } else { iph.hdr_len() };
                let payload = packet.get(before..).unwrap_or_default();
                self.sock_icmp_error(at, (iph.daddr, 0), error, payload);
            }
        }
    }

    pub(super) fn raw_sendmsg(
        &mut self,
        at: usize,
        data: &[u8],
        to: Option<SocketAddrV4>,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("raw_sendmsg");
        datagram_check(data, flags)?;
        let (daddr, _) = self.destination(at, to)?;
        let rt = self.ip_route_output_sk(at, daddr)?;
        let cork = self.ip_setup_cork(at, rt, (daddr, 0), 0)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let protocol = sk.inet_num as u8;
        if sk.raw.hdrincl {
            self.raw_send_hdrinc(at, data, &cork)?;
            return Ok(data.len());
        }
        self.ip_append_pending(at, 0, Some(&cork), data)?;
        if !flags.contains(MSG_MORE)
            && let Some((skb, mut first)) = self.ip_finish_skb(at)
        {
            // It goes where the last piece does, by the route of the first.
            (first.saddr, first.daddr) = (cork.saddr, cork.daddr);
            self.ip_push_skb(at, skb, &first, protocol)?;
        }
        Ok(data.len())
    }

    /// Sends a packet whose header the process wrote: length and checksum are made right, and what is 0 is filled in.
    fn raw_send_hdrinc(&mut self, at: usize, packet: &[u8], cork: &InetCork) -> Result<(), Errno> {
        let _stage = self.stage("raw_send_hdrinc");
        let mtu = self.mtu(cork.rt.dev);
        if packet.len() > mtu {
            self.ip_local_error(at, cork.daddr, mtu);
            return Err(Errno::EMSGSIZE);
        }
        if packet.len() < IPHDR_LEN {
            return Err(Errno::EINVAL);
        }
        let (owner, ..) = self.sock_alloc_send(at)?;
        let sent = self.raw_send_packet(packet, owner, cork);
        sent.inspect_err(|_| self.counters.snmp.ip_out_discards += 1)
    }

    fn raw_send_packet(
        &mut self,
        packet: &[u8],
        owner: SkRef,
        cork: &InetCork,
    ) -> Result<(), Errno> {
        let hdr_len = usize::from(packet[0] & 0xf) * 4;
        if hdr_len > packet.len() {
            return Err(Errno::EINVAL);
        }
        let mut skb = self.ip_append_data(packet, Some(owner));
        let id = self.ip_select_ident();
        if hdr_len >= IPHDR_LEN {
            let tot_len = packet.len() as u16;
            let iph = &mut skb.data_mut()[..hdr_len];
            if iph[12..16] == [0; 4] {
                iph[12..16].copy_from_slice(&cork.saddr.to_be_bytes());
            }
            if iph[4..6] == [0; 2] {
                iph[4..6].copy_from_slice(&id.to_be_bytes());
            }
            iph[2..4].copy_from_slice(&tot_len.to_be_bytes());
            ip_send_check(iph);
        }
        if packet[9] == IPPROTO_ICMP {
            self.icmp_out_count(packet.get(hdr_len).copied().unwrap_or_default());
        }
        skb.reset_network_header();
        skb.protocol = super::eth::ETH_P_IP;
        skb.dst = Some(cork.rt);
        let skb = self.nf_hook_out(NfHook::LocalOut, skb)?;
        self.ip_output(skb, cork.rt)
    }

    pub(super) fn raw_recvmsg(
        &mut self,
        at: usize,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received, Errno> {
        let _stage = self.stage("raw_recvmsg");
        self.sock_recv_skb(at, buf, peek)
    }
}
