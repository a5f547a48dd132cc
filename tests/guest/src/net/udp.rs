//! UDP (Linux: `net/ipv4/udp.c`, RFC 768).
//!
//! In: datagrams from IP, and what processes send. Out: datagrams in the queue of the socket that fits
//! best, or of all that fit a broadcast; packets to IP. Dropped and counted: datagrams that are short,
//! have a bad checksum, find no socket (which is answered) or a full queue. Linux sums when the datagram is read; here it is done on arrival, so that a bad one is
//! never queued.

use std::net::SocketAddrV4;

use super::checksum::{
    CSUM_MANGLED_0, csum_fold, csum_fold_raw, csum_good, csum_partial, csum_tcpudp_nofold,
};
use super::icmp::{ICMP_DEST_UNREACH, ICMP_PORT_UNREACH};
use super::ip_input::{IPHDR_LEN, Iphdr};
use super::ip_output::Flow;
use super::route::RtType;
use super::skbuff::{IpSummed, MAX_HEADER, SkBuff, Skb};
use super::stats::RxDrop;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::features as f;
use crate::virtio_net::gso::{SKB_GSO_UDP_L4, UDP_MAX_SEGMENTS};

pub(super) const IPPROTO_UDP: u8 = 17;
/// Bytes of a header.
pub(crate) const UDPHDR_LEN: usize = 8;
/// Where the checksum is in it.
const CHECK: usize = 6;

/// Source port of a datagram, from its header on.
#[inline]
pub(super) fn source_port(skb: &SkBuff) -> u16 {
    skb.data()
        .first_chunk::<2>()
        .map_or(0, |port| u16::from_be_bytes(*port))
}

/// Whether the checksum is good (`__udp4_lib_checksum_complete`).
fn checksum_complete(skb: &SkBuff) -> bool {
    let pseudo = csum_tcpudp_nofold(skb.ip.saddr, skb.ip.daddr, skb.len(), IPPROTO_UDP);
    csum_good(csum_partial(skb.data(), pseudo))
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    #[inline]
    pub(super) fn udp_rcv(&mut self, mut skb: Skb) {
        let Some(uh) = skb.data().first_chunk::<UDPHDR_LEN>() else {
            return self.drop_rx(skb, RxDrop::UdpInErrors);
        };
        let half = |at: usize| u16::from_be_bytes([uh[at], uh[at + 1]]);
        let (source, dest, ulen, check) = (half(0), half(2), half(4), half(CHECK));
        if !(UDPHDR_LEN..=skb.len()).contains(&usize::from(ulen)) {
            return self.drop_rx(skb, RxDrop::UdpInErrors);
        }
        skb.trim(usize::from(ulen));
        // `udp4_csum_init`: none was sent, or the device has looked.
        if check != 0 && skb.ip_summed == IpSummed::None && !checksum_complete(&skb) {
            return self.drop_rx(skb, RxDrop::UdpInCsumErrors);
        }
        if skb.gso_size != 0 {
            return self.udp_rcv_gso(skb, source, dest);
        }
        self.__udp4_lib_rcv(skb, source, dest);
    }

    /// To the socket that fits, or all that do.
    #[inline(always)] // for each datagram; its other callers are rare
    pub(super) fn __udp4_lib_rcv(&mut self, skb: Skb, source: u16, dest: u16) {
        if skb.rt_type == RtType::Broadcast {
            return self.__udp4_lib_mcast_deliver(skb, source, dest);
        }
        let (from, to) = ((skb.ip.saddr, source), (skb.ip.daddr, dest));
        match self.udp_table.lookup(from, to) {
            Some(at) => self.sock_queue_rcv_skb(at, skb, RxDrop::UdpRcvbufErrors),
            None => {
                self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_PORT_UNREACH);
                self.drop_rx(skb, RxDrop::UdpNoPorts);
            }
        }
    }

    /// A datagram for all sockets that fit: the last one gets it, the others a copy.
    fn __udp4_lib_mcast_deliver(&mut self, skb: Skb, source: u16, dest: u16) {
        let (from, to) = ((skb.ip.saddr, source), (skb.ip.daddr, dest));
        let (mut previous, mut nth) = (None, 0);
        while let Some((at, next)) = self.udp_table.next_match(nth, from, to) {
            nth = next;
            if let Some(earlier) = previous.replace(at) {
                let copy = self.skb_cache.clone_skb(&skb);
                self.counters.cloned += 1;
                self.sock_queue_rcv_skb(earlier, copy, RxDrop::UdpRcvbufErrors);
            }
        }
        match previous {
            Some(at) => self.sock_queue_rcv_skb(at, skb, RxDrop::UdpRcvbufErrors),
            // Nobody is told: everybody would be.
            None => self.drop_rx(skb, RxDrop::UdpIgnoredMulti),
        }
    }

    /// A datagram of ours was not delivered (`__udp4_lib_err`): a connected socket is told.
    pub(super) fn udp_err(&mut self, iph: &Iphdr, quoted: &[u8], error: Errno) {
        let Some(uh) = quoted.first_chunk::<UDPHDR_LEN>() else {
            return;
        };
        let (source, dest) = (
            u16::from_be_bytes([uh[0], uh[1]]),
            u16::from_be_bytes([uh[2], uh[3]]),
        );
        // It went the other way.
        let (from, to) = ((iph.daddr, dest), (iph.saddr, source));
        let found = self.udp_table.lookup(from, to);
        if let Some(sk) = found.and_then(|at| self.socks.get_mut(at))
            && sk.inet_dport != 0
        {
            sk.sk_err = Some(error);
        }
    }

    pub(super) fn udp_sendmsg(
        &mut self,
        at: usize,
        data: &[u8],
        to: Option<SocketAddrV4>,
        gso_size: u16,
    ) -> Result<usize, Errno> {
        if IPHDR_LEN + UDPHDR_LEN + data.len() > 0xffff {
            return Err(Errno::EMSGSIZE);
        }
        let mss = if gso_size == 0 {
            data.len()
        } else {
            data.len().min(gso_size.into())
        };
        let (daddr, dport) = self.destination(at, to)?;
        if dport == 0 {
            return Err(Errno::EINVAL);
        }
        let rt = self.ip_route_output_unicast(daddr)?;
        if IPHDR_LEN + UDPHDR_LEN + mss > self.mtu() {
            return Err(Errno::EMSGSIZE);
        }
        if data.len() > mss * UDP_MAX_SEGMENTS {
            return Err(Errno::EINVAL);
        }
        let (sk, sport) = self.sock_alloc_send(at)?;
        // `ip_make_skb`.
        let mut skb = self.skb_cache.alloc(MAX_HEADER, data.len());
        skb.put(data.len()).copy_from_slice(data);
        self.skb_set_owner_w(&mut skb, sk);
        if data.len() > mss {
            (skb.gso_size, skb.gso_type) = (gso_size, SKB_GSO_UDP_L4);
            skb.gso_segs = data.len().div_ceil(mss) as u16;
        }
        let flow = Flow {
            daddr,
            protocol: IPPROTO_UDP,
            tos: 0,
            df: true,
            id: self.ip_select_ident(),
        };
        self.udp_send_header(&mut skb, sport, dport, daddr);
        self.counters.snmp.udp_out_datagrams += 1;
        self.ip_send_skb(skb, rt, &flow);
        Ok(data.len())
    }

    /// Writes the header; the checksum is the device's to finish where it can (`udp_send_skb`).
    #[inline]
    fn udp_send_header(&self, skb: &mut SkBuff, sport: u16, dport: u16, daddr: u32) {
        let len = skb.len() + UDPHDR_LEN;
        let uh = skb.push::<UDPHDR_LEN>();
        uh[..2].copy_from_slice(&sport.to_be_bytes());
        uh[2..4].copy_from_slice(&dport.to_be_bytes());
        uh[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        uh[CHECK..].fill(0);
        let pseudo = csum_tcpudp_nofold(self.fib.local_addr(), daddr, len, IPPROTO_UDP);
        let check = if self.dev.features() & f::CSUM != 0 || skb.gso_size != 0 {
            // `udp4_hwcsum`
            skb.ip_summed = IpSummed::Partial;
            skb.csum_start = skb.headroom();
            skb.csum_offset = CHECK as u16;
            csum_fold_raw(pseudo).to_ne_bytes()
        } else {
            match csum_fold(csum_partial(skb.data(), pseudo)) {
                [0, 0] => CSUM_MANGLED_0,
                check => check,
            }
        };
        skb.data_mut()[CHECK..UDPHDR_LEN].copy_from_slice(&check);
    }
}
