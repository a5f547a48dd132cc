//! IP, receive side (Linux: `net/ipv4/ip_input.c`).
//!
//! In: packets of Ethertype IPv4, in lists: each stage is done with all of a list before the next begins, as in
//! Linux. Out: to the transports, without IP header and padding, fragments as one packet. Dropped, each kind with its
//! counter: what the packet filter drops, headers that are short or contradict themselves, bad checksums, truncated
//! packets, what is not for this host if it does not forward, options that are wrong; and protocols that nobody
//! registered and, where this host forwards, addresses without a route, which are answered (RFC 1122, 3.2.2.1;
//! RFC 1812, 5.2.7.1).

use std::net::Ipv4Addr;

use super::checksum::{csum_good, csum_partial};
use super::icmp::{ICMP_DEST_UNREACH, ICMP_NET_UNREACH, ICMP_PROT_UNREACH, IPPROTO_ICMP};
use super::igmp::IPPROTO_IGMP;
use super::netfilter::NfHook;
use super::route::{RtType, Rtable};
use super::skbuff::{PktType, Skb};
use super::stats::RxDrop;
use super::tcp::IPPROTO_TCP;
use super::udp::IPPROTO_UDP;
use super::{Kernel, Machine, each};
use crate::transport::Transport;

/// Bytes of a header without options.
pub(super) const IPHDR_LEN: usize = 20;
/// Do not fragment.
pub(super) const IP_DF: u16 = 0x4000;
pub(super) const IP_MF: u16 = 0x2000;
pub(super) const IP_OFFSET: u16 = 0x1fff;

/// A protocol above IP (`struct net_protocol`), by name instead of by pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetProtocol {
    Icmp,
    Igmp,
    Udp,
    Tcp,
}

impl NetProtocol {
    /// Its number.
    fn number(self) -> u8 {
        match self {
            Self::Icmp => IPPROTO_ICMP,
            Self::Igmp => IPPROTO_IGMP,
            Self::Udp => IPPROTO_UDP,
            Self::Tcp => IPPROTO_TCP,
        }
    }
}

/// What of an IP header is needed later (`struct iphdr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Iphdr {
    pub saddr: u32,
    pub daddr: u32,
    pub frag_off: u16,
    /// Length of the header with options.
    pub hdr_len: u8,
    pub tos: u8,
    pub protocol: u8,
}

impl Iphdr {
    /// Bytes of the header with options.
    pub fn hdr_len(&self) -> usize {
        self.hdr_len.into()
    }
}

/// Checks the header of a packet of `len` bytes, of which it has the first: what it says, and how long the packet is without
/// padding.
#[inline]
fn check_header(bytes: &[u8], len: usize) -> Result<(Iphdr, usize), RxDrop> {
    let b = bytes
        .first_chunk::<IPHDR_LEN>()
        .ok_or(RxDrop::IpInHdrErrors)?;
    let hdr_len = usize::from(b[0] & 0xf) * 4;
    if b[0] >> 4 != 4 || hdr_len < IPHDR_LEN {
        return Err(RxDrop::IpInHdrErrors);
    }
    let sum = if hdr_len == IPHDR_LEN {
        csum_partial(b, 0)
    } else {
        csum_partial(bytes.get(..hdr_len).ok_or(RxDrop::IpInHdrErrors)?, 0)
    };
    if !csum_good(sum) {
        return Err(RxDrop::IpInCsumErrors);
    }
    let half = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let tot_len = usize::from(half(2));
    if len < tot_len {
        return Err(RxDrop::IpInTruncatedPkts);
    }
    if tot_len < hdr_len {
        return Err(RxDrop::IpInHdrErrors);
    }
    let iph = Iphdr {
        saddr: word(12),
        daddr: word(16),
        frag_off: half(6),
        hdr_len: hdr_len as u8,
        tos: b[1],
        protocol: b[9],
    };
    Ok((iph, tot_len))
}

/// The header of a packet that was made here, or came back in an ICMP error, which may be cut off behind it; and the rest.
pub(super) fn inner_header(bytes: &[u8]) -> Option<(Iphdr, &[u8])> {
    let b = bytes.first_chunk::<IPHDR_LEN>()?;
    let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let hdr_len = (b[0] & 0xf) * 4;
    let rest = bytes.get(usize::from(hdr_len)..)?;
    if usize::from(hdr_len) < IPHDR_LEN {
        return None;
    }
    let iph = Iphdr {
        saddr: word(12),
        daddr: word(16),
        frag_off: u16::from_be_bytes([b[6], b[7]]),
        hdr_len,
        tos: b[1],
        protocol: b[9],
    };
    Some((iph, rest))
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Registers a transport (`inet_add_protocol`).
    pub(super) fn inet_add_protocol(&mut self, protocol: NetProtocol) {
        self.inet_protos[usize::from(protocol.number())] = Some(protocol);
    }

    /// Packets that came together: all are checked before the first goes on. Nothing is left in the list.
    pub(super) fn ip_list_rcv(&mut self, list: &mut Vec<Skb>) {
        let _stage = self.stage("ip_list_rcv");
        each(list, |skb| self.ip_rcv_core(skb));
        self.ip_sublist_rcv(list);
    }

    /// A packet that came by itself.
    #[cold]
    pub(super) fn ip_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("ip_rcv");
        let Some(skb) = self.ip_rcv_core(skb) else {
            return;
        };
        if !self.nf_hook(NfHook::PreRouting, &skb) {
            return self.drop_rx(skb, RxDrop::NetfilterDrop);
        }
        if let Some(skb) = self.ip_rcv_finish_core(skb, None) {
            self.dst_input(skb);
        }
    }

    /// A packet whose header is sound.
    #[inline(always)] // for each packet of a list; its other caller is rare
    fn ip_rcv_core(&mut self, mut skb: Skb) -> Option<Skb> {
        let _stage = self.stage("ip_rcv_core");
        if skb.pkt_type == PktType::OtherHost {
            self.drop_rx(skb, RxDrop::IpOtherHost);
            return None;
        }
        self.counters.snmp.ip_in_receives += 1;
        match check_header(skb.data(), skb.len()) {
            Ok((iph, len)) => {
                skb.ip = iph;
                // What is left was padding.
                skb.trim(len);
                self.changed("iphdr", || {
                    let [saddr, daddr] = [iph.saddr, iph.daddr].map(Ipv4Addr::from_bits);
                    format!("{saddr} to {daddr}, protocol {}, {len} bytes", iph.protocol)
                });
                Some(skb)
            }
            Err(reason) => {
                self.drop_rx(skb, reason);
                None
            }
        }
    }

    fn ip_sublist_rcv(&mut self, list: &mut Vec<Skb>) {
        let _stage = self.stage("ip_sublist_rcv");
        self.nf_hook_list(NfHook::PreRouting, list);
        self.ip_list_rcv_finish(list);
    }

    /// Those of one route that follow each other go on together.
    #[inline]
    fn ip_list_rcv_finish(&mut self, list: &mut Vec<Skb>) {
        let mut sublist = std::mem::take(&mut self.sd().dst_list);
        let mut curr_dst: Option<(u32, Rtable)> = None;
        for skb in list.drain(..) {
            let Some(skb) = self.ip_rcv_finish_core(skb, curr_dst.as_ref()) else {
                continue;
            };
            if curr_dst.is_none_or(|(daddr, _)| daddr != skb.ip.daddr) {
                self.ip_sublist_rcv_finish(&mut sublist);
                curr_dst = skb.dst.map(|rt| (skb.ip.daddr, rt));
            }
            sublist.push(skb);
        }
        self.ip_sublist_rcv_finish(&mut sublist);
        self.sd().dst_list = sublist;
    }

    /// Where a packet is to go; `hint` is where the one before it went.
    #[inline(always)] // as above
    fn ip_rcv_finish_core(&mut self, mut skb: Skb, hint: Option<&(u32, Rtable)>) -> Option<Skb> {
        let _stage = self.stage("ip_rcv_finish_core");
        if skb.dst.is_some() {
            // It was looked up when it was sent.
            return self.ip_rcv_finish_options(skb);
        }
        let (daddr, saddr) = (skb.ip.daddr, skb.ip.saddr);
        let found = match hint {
            Some((to, rt)) if *to == daddr && rt.rt_type != RtType::Broadcast => {
                let found = self.ip_route_use_hint(daddr, saddr);
                found.map(|()| *rt)
            }
            _ if daddr >> 28 == 0xe => self.ip_route_input_mc(&skb),
            _ => self.ip_route_input_noref(daddr, saddr),
        };
        match found {
            Ok(rt) => {
                skb.dst = Some(rt);
                self.changed("dst", || format!("{:?}", rt.rt_type));
                self.ip_rcv_finish_options(skb)
            }
            Err(reason) => {
                self.ip_error(skb, reason);
                None
            }
        }
    }

    /// A packet whose options are sound, if it has any.
    #[inline]
    fn ip_rcv_finish_options(&mut self, skb: Skb) -> Option<Skb> {
        match usize::from(skb.ip.hdr_len) {
            IPHDR_LEN => Some(skb),
            _ => self.ip_rcv_with_options(skb),
        }
    }

    #[cold]
    fn ip_rcv_with_options(&mut self, mut skb: Skb) -> Option<Skb> {
        match self.ip_rcv_options(&mut skb) {
            Ok(()) => Some(skb),
            Err(reason) => {
                self.drop_rx(skb, reason);
                None
            }
        }
    }

    #[inline(never)] // a loop of its own, which has the registers for itself
    fn ip_sublist_rcv_finish(&mut self, list: &mut Vec<Skb>) {
        for skb in list.drain(..) {
            self.dst_input(skb);
        }
    }

    /// To where its route leads: this host, or another.
    #[inline(always)] // for each packet of a list; its other caller is rare
    fn dst_input(&mut self, skb: Skb) {
        match skb.dst {
            Some(rt) if rt.rt_type == RtType::Unicast => self.ip_forward(skb, rt),
            _ => self.ip_local_deliver(skb),
        }
    }

    /// A packet that no route is there for; who sent it is told where this host forwards (`ip_error`).
    #[cold]
    fn ip_error(&mut self, mut skb: Skb, reason: RxDrop) {
        if matches!(reason, RxDrop::IpInNoRoutes | RxDrop::IpInAddrErrors) {
            skb.dst = Some(Rtable {
                rt_type: RtType::Unicast,
                ..Rtable::default()
            });
            // It has a route, if one that leads nowhere; so its options are looked at first.
            match self.ip_rcv_finish_options(skb) {
                Some(sound) => skb = sound,
                None => return,
            }
        }
        if reason == RxDrop::IpInNoRoutes {
            self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_NET_UNREACH, 0);
        }
        self.drop_rx(skb, reason);
    }

    #[inline(always)] // for each packet of a list; its other callers are rare
    fn ip_local_deliver(&mut self, mut skb: Skb) {
        let _stage = self.stage("ip_local_deliver");
        if skb.ip.frag_off & (IP_MF | IP_OFFSET) != 0 {
            match self.ip_defrag(skb) {
                Some(whole) => skb = whole,
                None => return,
            }
        }
        if !self.nf_hook(NfHook::LocalIn, &skb) {
            return self.drop_rx(skb, RxDrop::NetfilterDrop);
        }
        self.ip_local_deliver_finish(skb);
    }

    #[inline]
    fn ip_local_deliver_finish(&mut self, mut skb: Skb) {
        let _stage = self.stage("ip_local_deliver_finish");
        skb.pull(usize::from(skb.ip.hdr_len));
        let raw = !self.raw_table.is_empty() && self.raw_local_deliver(&skb);
        match self.inet_protos[usize::from(skb.ip.protocol)] {
            Some(protocol) => {
                self.counters.snmp.ip_in_delivers += 1;
                match protocol {
                    NetProtocol::Udp => self.udp_rcv(skb),
                    NetProtocol::Tcp => self.tcp_v4_rcv(skb),
                    NetProtocol::Icmp => self.icmp_rcv(skb),
                    NetProtocol::Igmp => self.igmp_rcv(skb),
                }
            }
            None if raw => {
                self.counters.snmp.ip_in_delivers += 1;
                self.counters.consumed += 1;
                self.consume_skb(skb);
            }
            None => {
                self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_PROT_UNREACH, 0);
                self.drop_rx(skb, RxDrop::IpInUnknownProtos);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum::csum_fold;
    use super::*;

    fn check_header(bytes: &[u8]) -> Result<(Iphdr, usize), RxDrop> {
        super::check_header(bytes, bytes.len())
    }

    /// A packet of `len` bytes whose header has the right checksum after `change`.
    fn packet(len: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[..IPHDR_LEN].copy_from_slice(&[
            0x45, 0x10, 0, len as u8, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2,
        ]);
        change(&mut bytes);
        let hdr_len = (usize::from(bytes[0] & 0xf) * 4).clamp(IPHDR_LEN, len);
        let check = csum_fold(csum_partial(&bytes[..hdr_len], 0));
        bytes[10..12].copy_from_slice(&check);
        bytes
    }

    #[test]
    fn a_good_header_is_read() {
        let (iph, len) = check_header(&packet(40, |_| ())).unwrap();
        assert_eq!((iph.saddr, iph.daddr), (0x0a4d_0001, 0x0a4d_0002));
        assert_eq!(
            (iph.hdr_len, iph.tos, iph.protocol, len),
            (20, 0x10, 17, 40)
        );
        let with_options = packet(40, |b| b[0] = 0x46);
        assert_eq!(check_header(&with_options).unwrap().0.hdr_len, 24);
        let padded = [packet(40, |_| ()), vec![0; 20]].concat();
        assert_eq!(check_header(&padded).unwrap().1, 40);
    }

    #[test]
    fn bad_headers_are_told_apart() {
        type Change = fn(&mut [u8]);
        let cases: [(&str, Change, RxDrop); 5] = [
            ("version 6", |b| b[0] = 0x65, RxDrop::IpInHdrErrors),
            ("4 words", |b| b[0] = 0x44, RxDrop::IpInHdrErrors),
            ("15 words", |b| b[0] = 0x4f, RxDrop::IpInHdrErrors),
            ("longer", |b| b[3] = 41, RxDrop::IpInTruncatedPkts),
            ("shorter than itself", |b| b[3] = 19, RxDrop::IpInHdrErrors),
        ];
        for (what, change, reason) in cases {
            assert_eq!(check_header(&packet(40, change)), Err(reason), "{what}");
        }
        let short = &packet(40, |_| ())[..19];
        assert_eq!(check_header(short), Err(RxDrop::IpInHdrErrors));
        let mut wrong = packet(40, |_| ());
        wrong[8] -= 1;
        assert_eq!(check_header(&wrong), Err(RxDrop::IpInCsumErrors));
    }
}
