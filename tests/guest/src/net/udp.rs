//! UDP (Linux: `net/ipv4/udp.c`, RFC 768).
//!
//! In: datagrams from IP, and what processes send. Out: datagrams in the queue of the socket that fits
//! best, or of all that fit a broadcast; packets to IP. Dropped and counted: datagrams that are short,
//! have a bad checksum, find no socket (which is answered) or a full queue. Linux sums when the datagram is read; here it is done on arrival, so that a bad one is
//! never queued.

use std::net::SocketAddrV4;

use super::af_inet::datagram_check;
use super::checksum::{
    CSUM_MANGLED_0, csum_fold, csum_fold_raw, csum_good, csum_partial, csum_tcpudp_nofold,
};
use super::file::{MSG_MORE, MsgFlags};
use super::icmp::{ICMP_DEST_UNREACH, ICMP_PORT_UNREACH, IcmpError};
use super::ip_cork::InetCork;
use super::ip_input::{IPHDR_LEN, Iphdr};
use super::netdevice::NETIF_F_HW_CSUM;
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

/// Has what is longer than one datagram of those it is to be stand for several.
///
/// # Errors
/// EMSGSIZE: one is too long; EINVAL: these are too many.
#[cold]
fn udp_set_gso(skb: &mut SkBuff, cork: &InetCork) -> Result<(), Errno> {
    let (len, gso_size) = (
        skb.len() - IPHDR_LEN - UDPHDR_LEN,
        usize::from(cork.gso_size),
    );
    if IPHDR_LEN + UDPHDR_LEN + len.min(gso_size) > cork.fragsize {
        return Err(Errno::EMSGSIZE);
    }
    if len > gso_size * UDP_MAX_SEGMENTS {
        return Err(Errno::EINVAL);
    }
    if len > gso_size {
        (skb.gso_size, skb.gso_type) = (cork.gso_size, SKB_GSO_UDP_L4);
        skb.gso_segs = len.div_ceil(gso_size) as u16;
    }
    Ok(())
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
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("udp_sendmsg");
        datagram_check(data, flags)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let corkreq = flags.contains(MSG_MORE) || sk.corked;
        if sk.pending.is_some() {
            // Wherever it is said to go.
            return self.udp_append_data(at, None, data, corkreq);
        }
        let (daddr, dport) = self.destination(at, to)?;
        if dport == 0 {
            return Err(Errno::EINVAL);
        }
        let rt = self.ip_route_output_sk(at, daddr);
        let rt = rt.inspect_err(|error| self.count_no_route(*error))?;
        let cork = self.ip_setup_cork(at, rt, (daddr, dport), gso_size)?;
        if corkreq {
            return self.udp_append_data(at, Some(&cork), data, true);
        }
        let skb = self.ip_make_skb(at, UDPHDR_LEN, data, &cork, IPPROTO_UDP);
        let skb = skb.inspect_err(|error| self.count_sndbuf_error(*error))?;
        self.udp_send_skb(at, skb, &cork, true)?;
        Ok(data.len())
    }

    #[cold]
    fn count_sndbuf_error(&mut self, error: Errno) {
        if matches!(error, Errno::EAGAIN | Errno::ENOBUFS) {
            self.counters.snmp.udp_sndbuf_errors += 1;
        }
    }

    /// Data for a datagram that waits, or begins to: it is complete, unless the process wants it to wait on.
    #[cold]
    fn udp_append_data(
        &mut self,
        at: usize,
        cork: Option<&InetCork>,
        data: &[u8],
        corkreq: bool,
    ) -> Result<usize, Errno> {
        let appended = self.ip_append_pending(at, UDPHDR_LEN, cork, data);
        appended.inspect_err(|error| self.count_sndbuf_error(*error))?;
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
        self.ip_finish_header(at, &mut skb, &cork, IPPROTO_UDP);
        self.udp_send_skb(at, skb, &cork, false)
    }

    /// Writes the header; the checksum is the device's to finish where it can, unless the datagram came in pieces or goes in
    /// fragments.
    #[inline]
    fn udp_send_skb(
        &mut self,
        at: usize,
        mut skb: Skb,
        cork: &InetCork,
        at_once: bool,
    ) -> Result<(), Errno> {
        let _stage = self.stage("udp_send_skb");
        if cork.gso_size != 0
            && let Err(error) = udp_set_gso(&mut skb, cork)
        {
            self.consume_skb(skb);
            return Err(error);
        }
        let sport = self.socks.get(at).map_or(0, |sk| sk.inet_num);
        let (rt, dport) = (cork.rt, cork.dport);
        let start = skb.transport_header;
        let len = skb.len() - IPHDR_LEN;
        let uh = &mut skb.data_mut()[IPHDR_LEN..];
        uh[..2].copy_from_slice(&sport.to_be_bytes());
        uh[2..4].copy_from_slice(&dport.to_be_bytes());
        uh[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        uh[CHECK..UDPHDR_LEN].fill(0);
        let pseudo = csum_tcpudp_nofold(cork.saddr, cork.daddr, len, IPPROTO_UDP);
        let offloads = self.netdevs[rt.dev].features & NETIF_F_HW_CSUM != 0;
        // No device sums over fragments.
        let whole = cork.gso_size != 0 || at_once && skb.len() <= cork.fragsize;
        let check = if offloads && whole || skb.gso_size != 0 {
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
