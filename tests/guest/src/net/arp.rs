//! ARP (Linux: `net/ipv4/arp.c`, RFC 826).
//!
//! In: ARP packets. Out: replies to requests for this station's address, and hardware addresses for
//! the neighbour cache. All of them end here: consumed, or dropped and counted when they are no ARP
//! for IPv4 over Ethernet.

use super::eth::{BROADCAST, ETH_P_ARP, ETH_P_IP, eth_header};
use super::neighbour::NudState;
use super::route::RtType;
use super::skbuff::{MAX_HEADER, PktType, Skb};
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

const ARPHRD_ETHER: u16 = 1;
/// IEEE 802 hardware; taken for Ethernet, as RFC 1122 has it.
const ARPHRD_IEEE802: u16 = 6;
const ARPOP_REQUEST: u16 = 1;
const ARPOP_REPLY: u16 = 2;
/// Shortest frame without its check sequence, to which short ones are padded.
const ETH_ZLEN: usize = 60;

/// An ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arp {
    op: u16,
    sha: [u8; 6],
    sip: u32,
    tha: [u8; 6],
    tip: u32,
}

impl Arp {
    /// Bytes of it.
    const LEN: usize = 28;

    /// Reads one; `None` when it is something else.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let b = bytes.first_chunk::<{ Self::LEN }>()?;
        let half = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
        let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let mac = |at: usize| [b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5]];
        let op = half(6);
        let good = matches!(half(0), ARPHRD_ETHER | ARPHRD_IEEE802)
            && half(2) == ETH_P_IP
            && (b[4], b[5]) == (6, 4)
            && matches!(op, ARPOP_REQUEST | ARPOP_REPLY);
        good.then(|| Self {
            op,
            sha: mac(8),
            sip: word(14),
            tha: mac(18),
            tip: word(24),
        })
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&ARPHRD_ETHER.to_be_bytes());
        bytes[2..4].copy_from_slice(&ETH_P_IP.to_be_bytes());
        bytes[4..6].copy_from_slice(&[6, 4]);
        bytes[6..8].copy_from_slice(&self.op.to_be_bytes());
        bytes[8..14].copy_from_slice(&self.sha);
        bytes[14..18].copy_from_slice(&self.sip.to_be_bytes());
        bytes[18..24].copy_from_slice(&self.tha);
        bytes[24..].copy_from_slice(&self.tip.to_be_bytes());
        bytes
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn arp_rcv(&mut self, skb: Skb) {
        let arp = if skb.pkt_type == PktType::OtherHost {
            // Seen only because the device is promiscuous: none of our business.
            None
        } else if let Some(arp) = Arp::parse(skb.data()) {
            Some(arp)
        } else {
            return self.drop_rx(skb, RxDrop::ArpInvalid);
        };
        if let Some(arp) = arp
            && !self.arp_process(&arp, skb.pkt_type)
        {
            return self.drop_rx(skb, RxDrop::ArpInvalid);
        }
        self.counters.consumed += 1;
        self.consume_skb(skb);
    }

    /// Whether the packet made sense.
    fn arp_process(&mut self, arp: &Arp, pkt_type: PktType) -> bool {
        let tip = std::net::Ipv4Addr::from_bits(arp.tip);
        if tip.is_multicast() || tip.is_loopback() {
            return false;
        }
        if arp.sip == 0 {
            // Somebody looks whether the address he wants is free (RFC 2131).
            if arp.op == ARPOP_REQUEST && self.fib.is_local(arp.tip) {
                self.arp_reply(arp);
            }
            return true;
        }
        if arp.op == ARPOP_REQUEST
            && self.ip_route_input_noref(arp.tip, arp.sip) == Ok(RtType::Local)
        {
            if self.neigh_event_ns(arp.sip, arp.sha) {
                self.arp_reply(arp);
            }
            return true;
        }
        // Nobody is learnt of who was not asked for.
        if let Some(at) = self.arp_tbl.lookup(arp.sip) {
            let gratuitous = self.arp_is_garp(arp);
            let answer = arp.op == ARPOP_REPLY && pkt_type == PktType::Host;
            let state = if answer {
                NudState::Reachable
            } else {
                NudState::Stale
            };
            self.neigh_update(at, arp.sha, state, gratuitous);
        }
        true
    }

    /// Whether a host tells of itself unasked; it knows best.
    fn arp_is_garp(&self, arp: &Arp) -> bool {
        arp.tip == arp.sip
            && (arp.op != ARPOP_REPLY || arp.tha == arp.sha)
            && self.fib.is_unicast(arp.sip)
    }

    fn arp_reply(&mut self, request: &Arp) {
        let reply = Arp {
            op: ARPOP_REPLY,
            sha: self.dev_addr,
            sip: request.tip,
            tha: request.sha,
            tip: request.sip,
        };
        self.arp_send(request.sha, reply);
    }

    /// Asks who has `target`.
    pub(super) fn arp_solicit(&mut self, target: u32) {
        let request = Arp {
            op: ARPOP_REQUEST,
            sha: self.dev_addr,
            sip: self.fib.local_addr(),
            tha: [0; 6],
            tip: target,
        };
        self.arp_send(BROADCAST, request);
    }

    /// Tells all neighbours where this host is (`netdev_notify_peers`, `inetdev_send_gratuitous_arp`).
    pub(crate) fn netdev_notify_peers(&mut self) {
        self.arp_solicit(self.fib.local_addr());
    }

    /// Makes and sends a frame (`arp_create`, `arp_xmit`).
    fn arp_send(&mut self, dest: [u8; 6], arp: Arp) {
        let mut skb = self.skb_cache.alloc(MAX_HEADER, ETH_ZLEN);
        skb.protocol = ETH_P_ARP;
        skb.put(Arp::LEN).copy_from_slice(&arp.to_bytes());
        *skb.push() = eth_header(dest, self.dev_addr, ETH_P_ARP);
        self.dev_queue_xmit(skb);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back_and_others_are_refused() {
        let arp = Arp {
            op: ARPOP_REQUEST,
            sha: [2, 0, 0, 0, 0x77, 1],
            sip: 0x0a4d_0001,
            tha: [0; 6],
            tip: 0x0a4d_0002,
        };
        let good = arp.to_bytes();
        assert_eq!(Arp::parse(&good), Some(arp));
        assert_eq!(
            Arp::parse(&[&good[..], &[0; 18]].concat()),
            Some(arp),
            "padded"
        );
        assert_eq!(Arp::parse(&good[..27]), None, "short");
        for (at, byte, what) in [
            (1, 7, "hardware"),
            (2, 0x86, "protocol"),
            (4, 8, "length of a hardware address"),
            (5, 16, "length of a protocol address"),
            (7, 3, "reverse ARP"),
        ] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(Arp::parse(&bad), None, "{what}");
        }
    }
}
