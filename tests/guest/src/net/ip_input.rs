//! IP, receive side (Linux: `net/ipv4/ip_input.c`).
//!
//! In: packets of Ethertype IPv4. Out: to the transports, without IP header and padding. Dropped,
//! each kind with its counter: headers that are short or contradict themselves, bad checksums,
//! truncated packets, what is not for this host, fragments (RFC 791 reassembly is not here yet), and
//! protocols that nobody registered, which are answered (RFC 1122, 3.2.2.1). Options are skipped.

use super::checksum::{csum_good, csum_partial};
use super::icmp::{ICMP_DEST_UNREACH, ICMP_PROT_UNREACH, IPPROTO_ICMP};
use super::skbuff::{PktType, Skb};
use super::stats::RxDrop;
use super::udp::IPPROTO_UDP;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Bytes of a header without options.
pub(super) const IPHDR_LEN: usize = 20;
/// Do not fragment.
pub(super) const IP_DF: u16 = 0x4000;
const IP_MF: u16 = 0x2000;
const IP_OFFSET: u16 = 0x1fff;

/// A protocol above IP (`struct net_protocol`), by name instead of by pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetProtocol {
    Icmp,
    Udp,
}

impl NetProtocol {
    /// Its number.
    fn number(self) -> u8 {
        match self {
            Self::Icmp => IPPROTO_ICMP,
            Self::Udp => IPPROTO_UDP,
        }
    }
}

/// What of an IP header is needed later (`struct iphdr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Iphdr {
    pub saddr: u32,
    pub daddr: u32,
    frag_off: u16,
    /// Length of the header with options.
    hdr_len: u8,
    pub tos: u8,
    pub protocol: u8,
}

/// Checks the header of a packet (`ip_rcv_core`): what it says, and the length of the packet.
#[inline]
fn ip_rcv_core(bytes: &[u8]) -> Result<(Iphdr, usize), RxDrop> {
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
    if bytes.len() < tot_len {
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

/// The header in a packet that came back in an ICMP error, which may be cut off behind it; and the rest.
pub(super) fn inner_header(bytes: &[u8]) -> Option<(Iphdr, &[u8])> {
    let b = bytes.first_chunk::<IPHDR_LEN>()?;
    let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let hdr_len = (b[0] & 0xf) * 4;
    let rest = bytes.get(usize::from(hdr_len)..)?;
    if b[0] >> 4 != 4 || usize::from(hdr_len) < IPHDR_LEN {
        return None;
    }
    let iph = Iphdr {
        saddr: word(12),
        daddr: word(16),
        hdr_len,
        protocol: b[9],
        ..Iphdr::default()
    };
    Some((iph, rest))
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Registers a transport (`inet_add_protocol`).
    pub(super) fn inet_add_protocol(&mut self, protocol: NetProtocol) {
        self.inet_protos[usize::from(protocol.number())] = Some(protocol);
    }

    #[inline]
    pub(super) fn ip_rcv(&mut self, mut skb: Skb) {
        if skb.pkt_type == PktType::OtherHost {
            return self.drop_rx(skb, RxDrop::IpOtherHost);
        }
        self.counters.snmp.ip_in_receives += 1;
        match ip_rcv_core(skb.data()) {
            Ok((iph, len)) => {
                skb.ip = iph;
                // What is left was padding.
                skb.trim(len);
                self.ip_rcv_finish(skb);
            }
            Err(reason) => self.drop_rx(skb, reason),
        }
    }

    #[inline]
    fn ip_rcv_finish(&mut self, mut skb: Skb) {
        match self.ip_route_input_noref(skb.ip.daddr, skb.ip.saddr) {
            Ok(rt_type) => {
                skb.rt_type = rt_type;
                self.ip_local_deliver(skb);
            }
            Err(reason) => self.drop_rx(skb, reason),
        }
    }

    #[inline]
    fn ip_local_deliver(&mut self, skb: Skb) {
        if skb.ip.frag_off & (IP_MF | IP_OFFSET) != 0 {
            return self.drop_rx(skb, RxDrop::IpReasmFails);
        }
        self.ip_local_deliver_finish(skb);
    }

    #[inline]
    fn ip_local_deliver_finish(&mut self, mut skb: Skb) {
        skb.pull(usize::from(skb.ip.hdr_len));
        match self.inet_protos[usize::from(skb.ip.protocol)] {
            Some(protocol) => {
                self.counters.snmp.ip_in_delivers += 1;
                match protocol {
                    NetProtocol::Udp => self.udp_rcv(skb),
                    NetProtocol::Icmp => self.icmp_rcv(skb),
                }
            }
            None => {
                self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_PROT_UNREACH);
                self.drop_rx(skb, RxDrop::IpInUnknownProtos);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum::csum_fold;
    use super::*;

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
        let (iph, len) = ip_rcv_core(&packet(40, |_| ())).unwrap();
        assert_eq!((iph.saddr, iph.daddr), (0x0a4d_0001, 0x0a4d_0002));
        assert_eq!(
            (iph.hdr_len, iph.tos, iph.protocol, len),
            (20, 0x10, 17, 40)
        );
        let with_options = packet(40, |b| b[0] = 0x46);
        assert_eq!(ip_rcv_core(&with_options).unwrap().0.hdr_len, 24);
        let padded = [packet(40, |_| ()), vec![0; 20]].concat();
        assert_eq!(ip_rcv_core(&padded).unwrap().1, 40);
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
            assert_eq!(ip_rcv_core(&packet(40, change)), Err(reason), "{what}");
        }
        let short = &packet(40, |_| ())[..19];
        assert_eq!(ip_rcv_core(short), Err(RxDrop::IpInHdrErrors));
        let mut wrong = packet(40, |_| ());
        wrong[8] -= 1;
        assert_eq!(ip_rcv_core(&wrong), Err(RxDrop::IpInCsumErrors));
    }
}
