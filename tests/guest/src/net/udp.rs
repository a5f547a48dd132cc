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
use super::icmp::{ICMP_DEST_UNREACH, ICMP_PORT_UNREACH, IcmpError};
use super::ip_input::{IPHDR_LEN, Iphdr};
use super::ip_options::ReplyOptions;
use super::ip_output::Flow;
use super::netdevice::NETIF_F_HW_CSUM;
use super::route::Rtable;
use super::skbuff::{IpSummed, SkBuff, Skb};
use super::stats::RxDrop;
use super::{Errno, Kernel, Machine, Received};
use crate::transport::Transport;
use crate::virtio_net::gso::{SKB_GSO_UDP_L4, UDP_MAX_SEGMENTS};

pub(super) const IPPROTO_UDP: u8 = 17;
/// Bytes of a header.
pub(crate) const UDPHDR_LEN: usize = 8;
/// Where the checksum is in it.
pub(super) const CHECK: usize = 6;
/// Bytes of a datagram up to which Linux sums on arrival in any case.
pub(super) const CHECKSUM_BREAK: usize = 76;

/// Source port of a datagram, from its header on.
#[inline]
pub(super) fn source_port(skb: &SkBuff) -> u16 {
    skb.data()
        .first_chunk::<2>()
        .map_or(0, |port| u16::from_be_bytes(*port))
}

/// Whether the transport's checksum is good (`__udp4_lib_checksum_complete`, `tcp_checksum_complete`).
pub(super) fn checksum_complete(skb: &SkBuff) -> bool {
    let pseudo = csum_tcpudp_nofold(skb.ip.saddr, skb.ip.daddr, skb.len(), skb.ip.protocol);
    csum_good(csum_partial(skb.data(), pseudo))
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    #[inline]
    pub(super) fn udp_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("udp_rcv");
        self.__udp4_lib_rcv(skb);
    }

    /// To the socket that fits, or all that do.
    #[inline]
    fn __udp4_lib_rcv(&mut self, mut skb: Skb) {
        let _stage = self.stage("__udp4_lib_rcv");
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
        let sound = check == 0 || skb.ip_summed != IpSummed::None || checksum_complete(&skb);
        let (from, to) = ((skb.ip.saddr, source), (skb.ip.daddr, dest));
        if skb.rt_type().is_of_many() && (sound || skb.len() > CHECKSUM_BREAK) {
            return self.__udp4_lib_mcast_deliver(skb, from, to, sound);
        }
        if !sound {
            return self.drop_rx(skb, RxDrop::UdpInCsumErrors);
        }
        match self.__udp4_lib_lookup(from, to) {
            Some(at) => self.udp_unicast_rcv_skb(at, skb),
            None => {
                self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_PORT_UNREACH, 0);
                self.drop_rx(skb, RxDrop::UdpNoPorts);
            }
        }
    }

    #[inline]
    fn __udp4_lib_lookup(&self, from: (u32, u16), to: (u32, u16)) -> Option<usize> {
        let _stage = self.stage("__udp4_lib_lookup");
        let found = self.udp_table.lookup(from, to, ());
        self.changed("sk", || {
            found.map_or("none".into(), |at| format!("socket {at}"))
        });
        found
    }

    /// A datagram for all sockets that fit: the last one gets it, the others a copy. If its checksum is not `sound`, it is
    /// wrong for each of them.
    fn __udp4_lib_mcast_deliver(
        &mut self,
        skb: Skb,
        from: (u32, u16),
        to: (u32, u16),
        sound: bool,
    ) {
        let _stage = self.stage("__udp4_lib_mcast_deliver");
        let queue = |kernel: &mut Self, at, skb| {
            if sound {
                kernel.udp_queue_rcv_skb(at, skb);
            } else {
                kernel.drop_rx(skb, RxDrop::UdpInCsumErrors);
            }
        };
        let (mut previous, mut nth) = (None, 0);
        while let Some((at, next)) = self.udp_table.next_match(nth, from, to, ()) {
            nth = next;
            if !self.ip_mc_sf_allow(at, &skb) {
                continue;
            }
            if let Some(earlier) = previous.replace(at) {
                let copy = self.skb_cache.clone_skb(&skb);
                self.counters.cloned += 1;
                queue(self, earlier, copy);
            }
        }
        match previous {
            Some(at) => queue(self, at, skb),
            // Nobody is told: everybody would be.
            None => self.drop_rx(skb, RxDrop::UdpIgnoredMulti),
        }
    }

    #[inline]
    fn udp_unicast_rcv_skb(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("udp_unicast_rcv_skb");
        self.udp_queue_rcv_skb(at, skb);
    }

    /// To a socket, in its parts if it stands for several and the socket did not ask for such.
    #[inline(always)] // for each datagram; its other callers are rare
    fn udp_queue_rcv_skb(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("udp_queue_rcv_skb");
        if skb.gso_size != 0 {
            return self.udp_queue_rcv_gso_skb(at, skb);
        }
        self.udp_queue_rcv_one_skb(at, skb);
    }

    #[inline(always)] // for each datagram; its other callers are rare
    pub(super) fn udp_queue_rcv_one_skb(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("udp_queue_rcv_one_skb");
        self.__udp_enqueue_schedule_skb(at, skb);
    }

    #[inline(always)] // for each datagram; its other callers are rare
    fn __udp_enqueue_schedule_skb(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("__udp_enqueue_schedule_skb");
        self.sock_queue_rcv_skb(at, skb, RxDrop::UdpRcvbufErrors);
    }

    #[inline(always)] // for each datagram; its other caller is rare
    pub(super) fn udp_recvmsg(
        &mut self,
        at: usize,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received, Errno> {
        let _stage = self.stage("udp_recvmsg");
        let receiving = self.stage("__skb_recv_udp");
        if peek {
            let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
            let skb = sk.sk_receive_queue.front().ok_or(Errno::EAGAIN)?;
            drop(receiving);
            return Ok(Received::copy(skb, UDPHDR_LEN, source_port(skb), buf));
        }
        let skb = self.sock_dequeue_skb(at)?;
        drop(receiving);
        self.counters.snmp.udp_in_datagrams += 1;
        let received = Received::copy(&skb, UDPHDR_LEN, source_port(&skb), buf);
        self.skb_cache.put(skb);
        Ok(received)
    }

    /// A datagram of ours was not delivered (`__udp4_lib_err`): its socket may want to know.
    pub(super) fn udp_err(&mut self, iph: &Iphdr, quoted: &[u8], error: IcmpError) {
        let _stage = self.stage("udp_err");
        let half = |at: usize| u16::from_be_bytes([quoted[at], quoted[at + 1]]);
        // It went the other way.
        let (from, to) = ((iph.daddr, half(2)), (iph.saddr, half(0)));
        match self.udp_table.lookup(from, to, ()) {
            Some(at) => self.sock_icmp_error(at, from, error, &quoted[UDPHDR_LEN..]),
            None => self.counters.snmp.icmp_in_errors += 1,
        }
    }

    pub(super) fn udp_sendmsg(
        &mut self,
        at: usize,
        data: &[u8],
        to: Option<SocketAddrV4>,
        gso_size: u16,
        more: bool,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("udp_sendmsg");
        if data.len() > 0xffff {
            return Err(Errno::EMSGSIZE);
        }
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let (corkreq, pmtudisc) = (more || sk.corked, sk.pmtudisc);
        if sk.pending.is_some() {
            // Wherever it is said to go.
            return self.udp_append_data(at, data, corkreq);
        }
        let (daddr, dport) = self.destination(at, to)?;
        if dport == 0 {
            return Err(Errno::EINVAL);
        }
        let rt = self.ip_route_output_sk(at, daddr);
        let rt = rt.inspect_err(|error| self.count_no_route(*error))?;
        if corkreq {
            let begun = self.ip_setup_cork(at, UDPHDR_LEN, (rt, daddr, dport), gso_size);
            begun.inspect_err(|error| self.count_sndbuf_error(*error))?;
            return self.udp_append_data(at, data, true);
        }
        let mtu = self.ip_sk_mtu(pmtudisc, &rt);
        if IPHDR_LEN + UDPHDR_LEN + data.len() > 0xffff {
            self.ip_local_error(at, (daddr, dport), mtu);
            return Err(Errno::EMSGSIZE);
        }
        let mss = if gso_size == 0 {
            data.len()
        } else {
            data.len().min(gso_size.into())
        };
        if gso_size != 0 && IPHDR_LEN + UDPHDR_LEN + mss > mtu {
            return Err(Errno::EMSGSIZE);
        }
        let df = self.ip_dont_fragment(pmtudisc, &rt, IPHDR_LEN + UDPHDR_LEN + mss);
        let df = df.inspect_err(|_| self.ip_local_error(at, (daddr, dport), mtu))?;
        if data.len() > mss * UDP_MAX_SEGMENTS {
            return Err(Errno::EINVAL);
        }
        let sender = self.sock_alloc_send(at);
        let (sk, sport, tos) = sender.inspect_err(|error| self.count_sndbuf_error(*error))?;
        let flow = Flow {
            saddr: self.source(at, &rt),
            daddr,
            protocol: IPPROTO_UDP,
            tos,
            df,
            id: self.ip_select_ident(),
        };
        let mut skb = self.ip_make_skb(UDPHDR_LEN, data, &flow, Some(sk));
        self.ip_select_ttl(&rt, &mut skb);
        if data.len() > mss {
            (skb.gso_size, skb.gso_type) = (gso_size, SKB_GSO_UDP_L4);
            skb.gso_segs = data.len().div_ceil(mss) as u16;
        }
        self.udp_send_skb(skb, rt, (sport, dport), &flow, true)?;
        Ok(data.len())
    }

    #[cold]
    fn count_sndbuf_error(&mut self, error: Errno) {
        if matches!(error, Errno::EAGAIN | Errno::ENOBUFS) {
            self.counters.snmp.udp_sndbuf_errors += 1;
        }
    }

    /// Data for a datagram that waits: it is complete, unless the process wants it to wait on.
    #[cold]
    fn udp_append_data(&mut self, at: usize, data: &[u8], corkreq: bool) -> Result<usize, Errno> {
        let _stage = self.stage("ip_append_data");
        if let Err(error) = self.ip_append_pending(at, data) {
            self.ip_flush_pending_frames(at);
            self.count_sndbuf_error(error);
            return Err(error);
        }
        if !corkreq {
            self.udp_push_pending_frames(at)?;
        }
        Ok(data.len())
    }

    /// Sends the datagram that waits, if there is one.
    pub(super) fn udp_push_pending_frames(&mut self, at: usize) -> Result<(), Errno> {
        let _stage = self.stage("udp_push_pending_frames");
        let Some((mut skb, cork)) = self.ip_finish_skb(at) else {
            return Ok(());
        };
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let (pmtudisc, sport) = (sk.pmtudisc, sk.inet_num);
        let (len, gso_size) = (skb.len() - UDPHDR_LEN, usize::from(cork.gso_size));
        let gso = gso_size != 0;
        if gso {
            let segment = IPHDR_LEN + UDPHDR_LEN + len.min(gso_size);
            let refused = if segment > cork.fragsize {
                Some(Errno::EMSGSIZE)
            } else {
                (len > gso_size * UDP_MAX_SEGMENTS).then_some(Errno::EINVAL)
            };
            if let Some(error) = refused {
                self.consume_skb(skb);
                return Err(error);
            }
        }
        // What the path has become too narrow for since is found out by who fragments it.
        let whole = IPHDR_LEN + UDPHDR_LEN + if gso { len.min(gso_size) } else { len };
        let df = self.ip_dont_fragment(pmtudisc, &cork.rt, whole);
        let flow = cork.flow(IPPROTO_UDP, df.unwrap_or(true), self.ip_select_ident());
        self.__ip_make_skb(&mut skb, &flow, &ReplyOptions::NONE);
        self.ip_select_ttl(&cork.rt, &mut skb);
        if gso && len > gso_size {
            (skb.gso_size, skb.gso_type) = (cork.gso_size, SKB_GSO_UDP_L4);
            skb.gso_segs = len.div_ceil(gso_size) as u16;
        }
        self.udp_send_skb(skb, cork.rt, (sport, cork.dport), &flow, false)
    }

    /// Writes the header; the checksum is the device's to finish where it can, unless the datagram came in pieces.
    #[inline]
    fn udp_send_skb(
        &mut self,
        mut skb: Skb,
        rt: Rtable,
        (sport, dport): (u16, u16),
        flow: &Flow,
        at_once: bool,
    ) -> Result<(), Errno> {
        let _stage = self.stage("udp_send_skb");
        let start = skb.transport_header;
        let len = skb.len() - IPHDR_LEN;
        let uh = &mut skb.data_mut()[IPHDR_LEN..];
        uh[..2].copy_from_slice(&sport.to_be_bytes());
        uh[2..4].copy_from_slice(&dport.to_be_bytes());
        uh[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        uh[CHECK..UDPHDR_LEN].fill(0);
        let pseudo = csum_tcpudp_nofold(flow.saddr, flow.daddr, len, IPPROTO_UDP);
        let offloads = self.netdevs[rt.dev].features & NETIF_F_HW_CSUM != 0;
        // No device sums over fragments.
        let whole = skb.len() <= self.dst_mtu(&rt);
        let check = if offloads && whole && at_once || skb.gso_size != 0 {
            // `udp4_hwcsum`
            skb.ip_summed = IpSummed::Partial;
            skb.csum_start = start;
            skb.csum_offset = CHECK as u16;
            csum_fold_raw(pseudo).to_ne_bytes()
        } else {
            match csum_fold(csum_partial(&skb.data()[IPHDR_LEN..], pseudo)) {
                [0, 0] => CSUM_MANGLED_0,
                check => check,
            }
        };
        skb.data_mut()[IPHDR_LEN..][CHECK..UDPHDR_LEN].copy_from_slice(&check);
        self.changed("udphdr", || {
            format!(
                "{sport} to {dport}, {len} bytes, checksum {:?}",
                skb.ip_summed
            )
        });
        self.ip_send_skb(skb, rt)?;
        self.counters.snmp.udp_out_datagrams += 1;
        Ok(())
    }
}
