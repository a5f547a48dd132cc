//! UDP over IPv6 (Linux: `net/ipv6/udp.c`; RFC 768, RFC 8200 8.1).
//!
//! In: datagrams from IPv6, and what processes send. Out: datagrams in the queue of the socket that fits best, or of all
//! that fit a group; packets to IPv6. Dropped and counted: datagrams that are short, have a bad checksum or none, find
//! no socket (which is answered) or a full queue. As over IPv4 sums are made on arrival.

use std::net::SocketAddrV6;

use super::checksum::{
    CSUM_MANGLED_0, csum_fold, csum_fold_raw, csum_good, csum_ipv6_magic, csum_partial,
};
use super::icmp6::{ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH, Icmp6Error};
use super::ip6_output::Flow6;
use super::ip6_route::Rt6Info;
use super::ipv6::{IPV6HDR_LEN, Ipv6hdr, is_multicast};
use super::netdevice::{Ifindex, NETIF_F_HW_CSUM};
use super::skbuff::{IpSummed, Skb};
use super::stats::{Mib6, RxDrop};
use super::udp::{CHECK, CHECKSUM_BREAK, IPPROTO_UDP, UDPHDR_LEN, source_port};
use super::{Errno, Kernel, Machine, Received};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn udpv6_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("udpv6_rcv");
        self.__udp6_lib_rcv(skb);
    }

    /// A datagram that is wrong.
    fn udp6_discard(&mut self, skb: Skb, reason: RxDrop) {
        if reason == RxDrop::Udp6InCsumErrors {
            self.inc6(Mib6::Udp6InCsumErrors);
        }
        self.inc6(Mib6::Udp6InErrors);
        self.drop_rx(skb, reason);
    }

    /// To the socket that fits, or all that do.
    fn __udp6_lib_rcv(&mut self, mut skb: Skb) {
        let _stage = self.stage("__udp6_lib_rcv");
        let Some(uh) = skb.data().first_chunk::<UDPHDR_LEN>() else {
            return self.udp6_discard(skb, RxDrop::Udp6InErrors);
        };
        let half = |at: usize| u16::from_be_bytes([uh[at], uh[at + 1]]);
        let (source, dest, check) = (half(0), half(2), half(CHECK));
        let ulen = match usize::from(half(4)) {
            // It is too long to say so (RFC 2675).
            0 => skb.len(),
            ulen => ulen,
        };
        if !(UDPHDR_LEN..=skb.len()).contains(&ulen) {
            return self.udp6_discard(skb, RxDrop::Udp6InErrors);
        }
        skb.trim(ulen);
        let sound = skb.ip_summed != IpSummed::None || check == 0 || {
            let hdr = &skb.ip6;
            let pseudo = csum_ipv6_magic(hdr.saddr, hdr.daddr, ulen, IPPROTO_UDP);
            csum_good(csum_partial(skb.data(), pseudo))
        };
        let (from, to) = ((skb.ip6.saddr, source), (skb.ip6.daddr, dest));
        // What is short is summed at once, all else when it is read.
        if !sound && ulen <= CHECKSUM_BREAK {
            return self.udp6_discard(skb, RxDrop::Udp6InCsumErrors);
        }
        if is_multicast(skb.ip6.daddr) {
            return self.__udp6_lib_mcast_deliver(skb, from, to, (check != 0, sound));
        }
        if check == 0 || !sound {
            return self.udp6_discard(skb, RxDrop::Udp6InCsumErrors);
        }
        match self.__udp6_lib_lookup(from, to, skb.ip6.iif) {
            Some(at) => self.udpv6_queue_rcv_skb(at, skb),
            None => {
                self.inc6(Mib6::Udp6NoPorts);
                self.icmp6_send(&skb, ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH, 0);
                self.drop_rx(skb, RxDrop::Udp6NoPorts);
            }
        }
    }

    fn __udp6_lib_lookup(&self, from: (u128, u16), to: (u128, u16), iif: Ifindex) -> Option<usize> {
        let _stage = self.stage("__udp6_lib_lookup");
        let found = self.udp6_table.lookup(from, to, Some(iif));
        self.changed("sk", || {
            found.map_or("none".into(), |at| format!("socket {at}"))
        });
        found
    }

    /// A datagram for all sockets that fit: the last one gets it, the others a copy. Without a checksum it is for none; if
    /// its checksum is not `sound`, it is wrong for each of them.
    fn __udp6_lib_mcast_deliver(
        &mut self,
        skb: Skb,
        from: (u128, u16),
        to: (u128, u16),
        (has_checksum, sound): (bool, bool),
    ) {
        let _stage = self.stage("__udp6_lib_mcast_deliver");
        let queue = |kernel: &mut Self, at, skb| {
            if sound {
                kernel.udpv6_queue_rcv_skb(at, skb);
            } else {
                kernel.udp6_discard(skb, RxDrop::Udp6InCsumErrors);
            }
        };
        let (mut previous, mut nth, iif) = (None, 0, Some(skb.ip6.iif));
        while has_checksum && let Some((at, next)) = self.udp6_table.next_match(nth, from, to, iif)
        {
            nth = next;
            if let Some(earlier) = previous.replace(at) {
                let copy = self.skb_cache.clone_skb(&skb);
                self.counters.cloned += 1;
                queue(self, earlier, copy);
            }
        }
        match previous {
            Some(at) => queue(self, at, skb),
            // Nobody is told: everybody would be.
            None => {
                self.inc6(Mib6::Udp6IgnoredMulti);
                self.drop_rx(skb, RxDrop::Udp6IgnoredMulti);
            }
        }
    }

    /// To a socket, in its parts if it stands for several.
    fn udpv6_queue_rcv_skb(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("udpv6_queue_rcv_skb");
        if skb.gso_size != 0 {
            return self.udp_queue_rcv_gso_skb(at, skb);
        }
        self.udpv6_queue_rcv_one_skb(at, skb);
    }

    pub(super) fn udpv6_queue_rcv_one_skb(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("udpv6_queue_rcv_one_skb");
        if !self.sock_queue_rcv_skb(at, skb, RxDrop::Udp6RcvbufErrors) {
            self.inc6(Mib6::Udp6RcvbufErrors);
            self.inc6(Mib6::Udp6InErrors);
        }
    }

    /// The oldest datagram of a socket's queue; with `peek` it stays there.
    pub(super) fn udpv6_recvmsg(
        &mut self,
        at: usize,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received<SocketAddrV6>, Errno> {
        let _stage = self.stage("udpv6_recvmsg");
        if peek {
            let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
            let skb = sk.sk_receive_queue.front().ok_or(Errno::EAGAIN)?;
            return Ok(Received::copy6(skb, UDPHDR_LEN, source_port(skb), buf));
        }
        let skb = self.sock_dequeue_skb(at)?;
        self.inc6(Mib6::Udp6InDatagrams);
        let received = Received::copy6(&skb, UDPHDR_LEN, source_port(&skb), buf);
        self.skb_cache.put(skb);
        Ok(received)
    }

    /// A datagram of ours was not delivered (`__udp6_lib_err`): its socket may want to know. Whether there is one.
    pub(super) fn udpv6_err(&mut self, hdr: &Ipv6hdr, quoted: &[u8], error: Icmp6Error) -> bool {
        let _stage = self.stage("udpv6_err");
        let half = |at: usize| u16::from_be_bytes([quoted[at], quoted[at + 1]]);
        // It went the other way.
        let (from, to) = ((hdr.daddr, half(2)), (hdr.saddr, half(0)));
        let Some(at) = self.udp6_table.lookup(from, to, Some(error.iif)) else {
            return false;
        };
        self.sock_icmp6_error(at, hdr.daddr, error);
        true
    }

    pub(super) fn udpv6_sendmsg(
        &mut self,
        at: usize,
        data: &[u8],
        to: Option<SocketAddrV6>,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("udpv6_sendmsg");
        let (daddr, dport, oif) = self.destination6(at, to)?;
        if dport == 0 {
            return Err(Errno::EINVAL);
        }
        let rt = self.ip6_dst_lookup_flow(daddr, oif)?;
        let saddr = self.source6(at, &rt, daddr)?;
        if UDPHDR_LEN + data.len() > 0xffff {
            return Err(Errno::EMSGSIZE);
        }
        let len = IPV6HDR_LEN + UDPHDR_LEN + data.len();
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let (pmtudisc, tclass) = (sk.pmtudisc, sk.pinet6.tclass);
        let rt = self.ip6_setup_cork(pmtudisc, rt, len)?;
        let sender = self.sock_alloc_send(at);
        let (sk, sport, _) = sender.inspect_err(|error| {
            if *error == Errno::EAGAIN {
                self.inc6(Mib6::Udp6SndbufErrors);
            }
        })?;
        let flow = Flow6 {
            tclass,
            ..Flow6::new(saddr, daddr, IPPROTO_UDP)
        };
        let skb = self.ip6_make_skb(UDPHDR_LEN, data, &flow, Some(sk));
        self.udp_v6_send_skb(skb, rt, (sport, dport), &flow)?;
        Ok(data.len())
    }

    /// Writes the header; the checksum is the device's to finish where it can.
    fn udp_v6_send_skb(
        &mut self,
        mut skb: Skb,
        rt: Rt6Info,
        (sport, dport): (u16, u16),
        flow: &Flow6,
    ) -> Result<(), Errno> {
        let _stage = self.stage("udp_v6_send_skb");
        let start = skb.transport_header;
        let len = skb.len() - IPV6HDR_LEN;
        let uh = &mut skb.data_mut()[IPV6HDR_LEN..];
        uh[..2].copy_from_slice(&sport.to_be_bytes());
        uh[2..4].copy_from_slice(&dport.to_be_bytes());
        uh[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        uh[CHECK..UDPHDR_LEN].fill(0);
        let pseudo = csum_ipv6_magic(flow.saddr, flow.daddr, len, IPPROTO_UDP);
        let offloads = self.netdevs[rt.dev].features & NETIF_F_HW_CSUM != 0;
        // No device sums over fragments.
        let check = if offloads && skb.len() <= self.dst_mtu6(&rt) {
            skb.ip_summed = IpSummed::Partial;
            (skb.csum_start, skb.csum_offset) = (start, CHECK as u16);
            csum_fold_raw(pseudo).to_ne_bytes()
        } else {
            match csum_fold(csum_partial(&skb.data()[IPV6HDR_LEN..], pseudo)) {
                [0, 0] => CSUM_MANGLED_0,
                check => check,
            }
        };
        skb.data_mut()[IPV6HDR_LEN..][CHECK..UDPHDR_LEN].copy_from_slice(&check);
        self.changed("udphdr", || {
            format!(
                "{sport} to {dport}, {len} bytes, checksum {:?}",
                skb.ip_summed
            )
        });
        self.ip6_send_skb(skb, rt)?;
        self.inc6(Mib6::Udp6OutDatagrams);
        Ok(())
    }
}
