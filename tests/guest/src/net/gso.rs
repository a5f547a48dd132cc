//! Packets taken apart into the segments that they stand for (Linux: `net/core/gso.c`,
//! `net/ipv4/udp_offload.c`, `tcp_offload.c`).
//!
//! Receive: a datagram that stands for several, for a socket that did not ask for such. Send: the same, or TCP, for a
//! device that does not take it. Out: packets with headers of their own. What stands for segments of another
//! protocol than its own is dropped and counted.

use std::collections::VecDeque;

use super::checksum::{CSUM_MANGLED_0, csum_fold, csum_fold_raw, csum_partial};
use super::eth::ETH_P_IPV6;
use super::gro::{half, pseudo, word};
use super::ip_input::IPHDR_LEN;
use super::skbuff::{IpSummed, MAX_HEADER, NET_SKB_PAD, SkBuff, Skb, SkbCache};
use super::stats::RxDrop;
use super::tcp::{
    IPPROTO_TCP, TCP_CHECK, TCP_DOFF, TCP_FLAG_CWR, TCP_FLAG_FIN, TCP_FLAG_PSH, TCP_FLAGS,
};
use super::udp::{IPPROTO_UDP, UDPHDR_LEN};
use super::{Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::gso::{SKB_GSO_TCP_FIXEDID, SKB_GSO_TCPV4, SKB_GSO_UDP, SKB_GSO_UDP_L4};

/// Where length and checksum are in a UDP header; sequence number in a TCP header; total length, identification,
/// protocol and checksum in an IPv4 header.
const UDP_LEN: usize = 4;
const UDP_CHECK: usize = 6;
const TCP_SEQ: usize = 4;
const IP_TOT_LEN: usize = 2;
const IP_ID: usize = 4;
const IP_PROTOCOL: usize = 9;
const IP_CHECK: usize = 10;

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A datagram that is said to stand for several, for a socket: whole if that has UDP_GRO, else in its parts
    /// (`udp_rcv_segment`).
    #[cold]
    pub(super) fn udp_queue_rcv_gso_skb(&mut self, at: usize, mut skb: Skb) {
        let mss = usize::from(skb.gso_size);
        let of_udp = skb.gso_type & (SKB_GSO_UDP | SKB_GSO_UDP_L4);
        if of_udp == 0 {
            return self.drop_rx(skb, RxDrop::UdpGso);
        }
        let payload = skb.len() - UDPHDR_LEN;
        if of_udp == SKB_GSO_UDP {
            // Fragments: one datagram, however long.
            skb.gso_size = 0;
        }
        let takes_whole = self.socks.get(at).is_none_or(|sk| sk.gro_enabled);
        if payload <= mss || of_udp == SKB_GSO_UDP || takes_whole {
            return self.udp_queue_rcv_part(at, skb);
        }
        self.counters.cloned += payload.div_ceil(mss) as u64 - 1;
        for from in (UDPHDR_LEN..skb.len()).step_by(mss) {
            let part = from..skb.len().min(from + mss);
            let len = UDPHDR_LEN + part.len();
            let mut seg = self.skb_cache.alloc(NET_SKB_PAD, len);
            let bytes = seg.put(len);
            bytes[..UDPHDR_LEN].copy_from_slice(&skb.data()[..UDPHDR_LEN]);
            bytes[UDP_LEN..UDP_CHECK].copy_from_slice(&(len as u16).to_be_bytes());
            skb.copy_bits(part.start, &mut bytes[UDPHDR_LEN..]);
            seg.inherit(&skb);
            seg.network_header = seg.headroom();
            seg.ip_summed = IpSummed::Unnecessary;
            self.udp_queue_rcv_part(at, seg);
        }
        self.skb_cache.put(skb);
    }

    /// A datagram by itself, of either IP.
    fn udp_queue_rcv_part(&mut self, at: usize, skb: Skb) {
        if skb.protocol == ETH_P_IPV6 {
            self.udpv6_queue_rcv_one_skb(at, skb);
        } else {
            self.udp_queue_rcv_one_skb(at, skb);
        }
    }
}

/// Bytes of the transport's header, and where its checksum is there, of a packet that can be taken apart: TCP or UDP over IPv4
/// without options, whole headers in its linear part, and what its device or GRO says of it fits.
fn transport_of(skb: &SkBuff, network: usize) -> Option<(usize, usize)> {
    let packet = skb.data().get(network..)?;
    let transport = packet.get(IPHDR_LEN..)?;
    let (hdr_len, check_at) = match packet[IP_PROTOCOL] {
        IPPROTO_TCP if skb.gso_type & SKB_GSO_TCPV4 != 0 => {
            let doff = transport.get(TCP_DOFF)? >> 4;
            (usize::from(doff) * 4, TCP_CHECK)
        }
        IPPROTO_UDP if skb.gso_type & SKB_GSO_UDP_L4 != 0 => (UDPHDR_LEN, UDP_CHECK),
        _ => return None,
    };
    let fits = hdr_len >= check_at + 2 && hdr_len <= transport.len() && packet[0] == 0x45;
    fits.then_some((hdr_len, check_at))
}

/// The longest, in octets from its IP header on, of the packets that one stands for (`skb_gso_network_seglen`).
#[cold]
pub(super) fn skb_gso_network_seglen(skb: &SkBuff) -> usize {
    let packet = skb.network();
    let hdr_len = packet.first().map_or(0, |b| usize::from(b & 0xf) * 4);
    let transport = match packet.get(IP_PROTOCOL) {
        Some(&IPPROTO_TCP) => {
            let doff = packet.get(hdr_len + TCP_DOFF).map_or(0, |b| b >> 4);
            usize::from(doff) * 4
        }
        _ => UDPHDR_LEN,
    };
    hdr_len + transport + usize::from(skb.gso_size)
}

/// The packets that one, from its Ethernet or IP header on, stands for (`__skb_gso_segment`). With `csum` the device
/// finishes their checksums.
///
/// # Errors
/// It cannot be taken apart: here it is.
#[cold]
pub(super) fn skb_gso_segment(
    cache: &mut SkbCache,
    mut skb: Skb,
    csum: bool,
    list: &mut VecDeque<Skb>,
) -> Result<(), Skb> {
    let mss = usize::from(skb.gso_size);
    let network = skb.network_header - skb.headroom();
    let transport = network + IPHDR_LEN;
    let Some((thlen, check_at)) = transport_of(&skb, network) else {
        return Err(skb);
    };
    let of_tcp = check_at == TCP_CHECK;
    let payload = transport + thlen;
    let end = skb.len();
    for (number, at) in (payload..end).step_by(mss).enumerate() {
        let part = at..end.min(at + mss);
        let mut seg = cache.alloc(MAX_HEADER, payload + part.len());
        let bytes = seg.put(payload + part.len());
        bytes[..payload].copy_from_slice(&skb.data()[..payload]);
        skb.copy_bits(at, &mut bytes[payload..]);
        let last = part.end == end;
        let packet = &mut bytes[network..];
        let fixed_id = skb.gso_type & SKB_GSO_TCP_FIXEDID != 0;
        ip_header(packet, if fixed_id { 0 } else { number as u16 });
        if of_tcp {
            tcp_header(&mut packet[IPHDR_LEN..], (at - payload) as u32, last);
        } else {
            let len = (packet.len() - IPHDR_LEN) as u16;
            packet[IPHDR_LEN..][UDP_LEN..UDP_CHECK].copy_from_slice(&len.to_be_bytes());
        }
        let check = transport_check(packet, check_at, csum, of_tcp);
        packet[IPHDR_LEN + check_at..][..2].copy_from_slice(&check);
        seg.inherit(&skb);
        seg.network_header = seg.headroom() + network;
        if csum {
            seg.ip_summed = IpSummed::Partial;
            seg.csum_start = seg.headroom() + transport;
            seg.csum_offset = check_at as u16;
        }
        if last {
            // The sender is charged for all until the last has gone.
            (seg.sk, seg.truesize) = (skb.sk.take(), skb.truesize);
        }
        list.push_back(seg);
    }
    cache.put(skb);
    Ok(())
}

/// Makes IP's header of a segment out of that of the packet it was in; its identification is `number` beyond.
fn ip_header(packet: &mut [u8], number: u16) {
    let tot_len = packet.len() as u16;
    let id = half(packet, IP_ID).wrapping_add(number);
    packet[IP_TOT_LEN..IP_ID].copy_from_slice(&tot_len.to_be_bytes());
    packet[IP_ID..IP_ID + 2].copy_from_slice(&id.to_be_bytes());
    packet[IP_CHECK..IP_CHECK + 2].fill(0);
    let check = csum_fold(csum_partial(&packet[..IPHDR_LEN], 0));
    packet[IP_CHECK..IP_CHECK + 2].copy_from_slice(&check);
}

/// The same for TCP's header, of a segment whose payload begins `offset` bytes behind the packet's (`tcp_gso_segment`).
fn tcp_header(th: &mut [u8], offset: u32, last: bool) {
    let seq = word(th, TCP_SEQ).wrapping_add(offset);
    th[TCP_SEQ..TCP_SEQ + 4].copy_from_slice(&seq.to_be_bytes());
    if !last {
        th[TCP_FLAGS] &= !(TCP_FLAG_FIN | TCP_FLAG_PSH);
    }
    if offset > 0 {
        th[TCP_FLAGS] &= !TCP_FLAG_CWR;
    }
}

/// The transport's checksum of a packet, or the sum of its pseudo header if the device does the rest.
fn transport_check(packet: &mut [u8], check_at: usize, csum: bool, of_tcp: bool) -> [u8; 2] {
    packet[IPHDR_LEN + check_at..][..2].fill(0);
    let (ip, transport) = packet.split_at(IPHDR_LEN);
    let pseudo = pseudo(ip, transport.len());
    if csum {
        return csum_fold_raw(pseudo).to_ne_bytes();
    }
    match csum_fold(csum_partial(transport, pseudo)) {
        [0, 0] if !of_tcp => CSUM_MANGLED_0,
        check => check,
    }
}
