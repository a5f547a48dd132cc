//! Packets taken apart into the segments that they stand for (Linux: `net/core/gso.c`,
//! `net/ipv4/udp_offload.c`).
//!
//! Receive: a datagram that stands for several, for a socket that did not ask for such. Send: the same, for a
//! device that does not take it. Out: datagrams with headers of their own. What stands for segments of another
//! protocol than its own is dropped and counted.

use super::checksum::{CSUM_MANGLED_0, csum_fold, csum_fold_raw, csum_partial, csum_tcpudp_nofold};
use super::ip_input::IPHDR_LEN;
use super::route::RtType;
use super::skbuff::{IpSummed, MAX_HEADER, NET_SKB_PAD, SkBuff, Skb};
use super::stats::RxDrop;
use super::udp::{IPPROTO_UDP, UDPHDR_LEN};
use super::{Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::features as f;
use crate::virtio_net::gso::{SKB_GSO_UDP, SKB_GSO_UDP_L4};

/// Where length and checksum are in a UDP header; total length, identification and checksum in an IPv4 header.
const UDP_LEN: usize = 4;
const UDP_CHECK: usize = 6;
const IP_TOT_LEN: usize = 2;
const IP_ID: usize = 4;
const IP_CHECK: usize = 10;

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A datagram that is said to stand for several (`udp_queue_rcv_skb`): whole to a socket with UDP_GRO, in
    /// its parts to others.
    #[cold]
    pub(super) fn udp_rcv_gso(&mut self, mut skb: Skb, source: u16, dest: u16) {
        let mss = usize::from(skb.gso_size);
        let of_udp = skb.gso_type & (SKB_GSO_UDP | SKB_GSO_UDP_L4);
        if of_udp == 0 {
            return self.drop_rx(skb, RxDrop::UdpGso);
        }
        let payload = skb.len() - UDPHDR_LEN;
        let whole =
            payload <= mss || of_udp == SKB_GSO_UDP || self.udp_takes_whole(&skb, source, dest);
        if whole {
            if of_udp == SKB_GSO_UDP {
                // Fragments: one datagram, however long.
                skb.gso_size = 0;
            }
            return self.__udp4_lib_rcv(skb, source, dest);
        }
        // `udp_rcv_segment`.
        self.counters.cloned += payload.div_ceil(mss) as u64 - 1;
        for at in (UDPHDR_LEN..skb.len()).step_by(mss) {
            let part = at..skb.len().min(at + mss);
            let len = UDPHDR_LEN + part.len();
            let mut seg = self.skb_cache.alloc(NET_SKB_PAD, len);
            let bytes = seg.put(len);
            bytes[..UDPHDR_LEN].copy_from_slice(&skb.data()[..UDPHDR_LEN]);
            bytes[UDP_LEN..UDP_CHECK].copy_from_slice(&(len as u16).to_be_bytes());
            bytes[UDPHDR_LEN..].copy_from_slice(&skb.data()[part]);
            seg.inherit(&skb);
            seg.network_header = seg.headroom();
            seg.ip_summed = IpSummed::Unnecessary;
            self.__udp4_lib_rcv(seg, source, dest);
        }
        self.skb_cache.put(skb);
    }

    /// Whether nobody, or a socket with UDP_GRO is to get a datagram.
    fn udp_takes_whole(&self, skb: &SkBuff, source: u16, dest: u16) -> bool {
        if skb.rt_type == RtType::Broadcast {
            return false;
        }
        let (from, to) = ((skb.ip.saddr, source), (skb.ip.daddr, dest));
        self.udp_table
            .lookup(from, to)
            .and_then(|at| self.socks.get(at))
            .is_none_or(|sk| sk.gro_enabled)
    }

    /// Sends the datagrams that a packet, complete with Ethernet header, stands for (`validate_xmit_skb`,
    /// `__udp_gso_segment`).
    #[cold]
    pub(super) fn validate_xmit_skb(&mut self, queue: usize, mut skb: Skb) {
        let mss = usize::from(skb.gso_size);
        let network = skb.network_header - skb.headroom();
        let transport = network + IPHDR_LEN;
        let payload = transport + UDPHDR_LEN;
        let end = skb.len();
        let csum = self.dev.features() & f::CSUM != 0;
        for (number, at) in (payload..end).step_by(mss).enumerate() {
            let part = at..end.min(at + mss);
            let mut seg = self.skb_cache.alloc(MAX_HEADER, payload + part.len());
            let last = part.end == end;
            let bytes = seg.put(payload + part.len());
            bytes[..payload].copy_from_slice(&skb.data()[..payload]);
            bytes[payload..].copy_from_slice(&skb.data()[part]);
            segment_headers(&mut bytes[network..], number as u16, csum);
            seg.inherit(&skb);
            seg.network_header = seg.headroom() + network;
            if csum {
                seg.ip_summed = IpSummed::Partial;
                seg.csum_start = seg.headroom() + transport;
                seg.csum_offset = UDP_CHECK as u16;
            }
            if last {
                // The sender is charged for all until the last has gone.
                (seg.sk, seg.truesize) = (skb.sk.take(), skb.truesize);
            }
            self.__dev_xmit_skb(queue, seg);
        }
        self.skb_cache.put(skb);
    }
}

/// Makes the headers of segment `number` out of those of the packet it was in, from the IP header on.
fn segment_headers(packet: &mut [u8], number: u16, csum: bool) {
    let tot_len = packet.len() as u16;
    let id = u16::from_be_bytes([packet[IP_ID], packet[IP_ID + 1]]).wrapping_add(number);
    packet[IP_TOT_LEN..IP_ID].copy_from_slice(&tot_len.to_be_bytes());
    packet[IP_ID..IP_ID + 2].copy_from_slice(&id.to_be_bytes());
    packet[IP_CHECK..IP_CHECK + 2].fill(0);
    let check = csum_fold(csum_partial(&packet[..IPHDR_LEN], 0));
    packet[IP_CHECK..IP_CHECK + 2].copy_from_slice(&check);
    let word = |at: usize| {
        packet[at..]
            .first_chunk()
            .map_or(0, |b| u32::from_be_bytes(*b))
    };
    let (saddr, daddr) = (word(12), word(16));
    let datagram = &mut packet[IPHDR_LEN..];
    let len = datagram.len();
    datagram[UDP_LEN..UDP_CHECK].copy_from_slice(&(len as u16).to_be_bytes());
    datagram[UDP_CHECK..UDPHDR_LEN].fill(0);
    let pseudo = csum_tcpudp_nofold(saddr, daddr, len, IPPROTO_UDP);
    let check = if csum {
        csum_fold_raw(pseudo).to_ne_bytes()
    } else {
        match csum_fold(csum_partial(datagram, pseudo)) {
            [0, 0] => CSUM_MANGLED_0,
            check => check,
        }
    };
    datagram[UDP_CHECK..UDPHDR_LEN].copy_from_slice(&check);
}
