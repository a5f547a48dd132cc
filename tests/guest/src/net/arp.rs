//! ARP (Linux: `net/ipv4/arp.c`, RFC 826).
//!
//! In: ARP packets. Out: replies to requests for this station's address, and hardware addresses for
//! the neighbour cache. All of them end here: consumed, or dropped and counted when they are no ARP
//! for IPv4 over Ethernet.

use super::eth::{BROADCAST, ETH_P_ARP, ETH_P_IP, eth_header};
use super::icmp::{ICMP_DEST_UNREACH, ICMP_HOST_UNREACH};
use super::neigh_table::{NeighTable, NudState};
use super::neighbour::{NeighOps, NeighOverride, ip_eth_mc_map};
use super::netdevice::{IFF_LOOPBACK, IFF_NOARP, Ifindex};
use super::route::RtType;
use super::skbuff::{MAX_HEADER, PktType, Skb};
use super::stats::{RxDrop, TxDrop};
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
struct ArpPacket {
    op: u16,
    sha: [u8; 6],
    sip: u32,
    tha: [u8; 6],
    tip: u32,
}

impl ArpPacket {
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

/// Neighbours of IPv4 (`arp_tbl`, `arp_generic_ops`).
pub(super) struct Arp;

impl<T: Transport, M: Machine> NeighOps<T, M> for Arp {
    type Key = u32;
    const PROTOCOL: u16 = ETH_P_IP;
    const TBL: &'static str = "arp_tbl";

    #[inline]
    fn tbl(kernel: &Kernel<T, M>) -> &NeighTable<u32> {
        &kernel.arp_tbl
    }

    #[inline]
    fn tbl_mut(kernel: &mut Kernel<T, M>) -> &mut NeighTable<u32> {
        &mut kernel.arp_tbl
    }

    fn constructor(kernel: &Kernel<T, M>, key: u32, dev: Ifindex) -> Option<[u8; 6]> {
        let _stage = kernel.stage("arp_constructor");
        let device = &kernel.netdevs[dev];
        if key >> 28 == 0xe {
            Some(ip_eth_mc_map(key))
        } else if device.flags & (IFF_NOARP | IFF_LOOPBACK) != 0 {
            Some(device.dev_addr)
        } else if kernel.inet_addr_type(key) == RtType::Broadcast {
            Some(BROADCAST)
        } else {
            None
        }
    }

    fn solicit(
        kernel: &mut Kernel<T, M>,
        key: u32,
        dev: Ifindex,
        to: Option<[u8; 6]>,
        saddr: Option<u32>,
    ) {
        kernel.arp_solicit(key, dev, to.unwrap_or(BROADCAST), saddr);
    }

    fn saddr(packet: &[u8]) -> Option<u32> {
        let saddr = packet.get(12..16)?.first_chunk()?;
        Some(u32::from_be_bytes(*saddr))
    }

    /// Who sent it is told.
    fn error_report(kernel: &mut Kernel<T, M>, skb: Skb) {
        kernel.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_HOST_UNREACH, 0);
        kernel.drop_tx(skb, TxDrop::NeighResFailed);
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn arp_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("arp_rcv");
        let dev = skb.dev;
        let asks = self.netdevs[dev].flags & (IFF_NOARP | IFF_LOOPBACK) == 0;
        let arp = if !asks || skb.pkt_type == PktType::OtherHost {
            // Seen only because the device is promiscuous, or it has no use for ARP: none of our business.
            None
        } else if let Some(arp) = ArpPacket::parse(skb.data()) {
            Some(arp)
        } else {
            return self.drop_rx(skb, RxDrop::ArpInvalid);
        };
        if let Some(arp) = arp
            && !self.arp_process(&arp, skb.pkt_type, dev)
        {
            return self.drop_rx(skb, RxDrop::ArpInvalid);
        }
        self.counters.consumed += 1;
        self.consume_skb(skb);
    }

    /// Whether the packet made sense.
    fn arp_process(&mut self, arp: &ArpPacket, pkt_type: PktType, dev: Ifindex) -> bool {
        let _stage = self.stage("arp_process");
        let tip = std::net::Ipv4Addr::from_bits(arp.tip);
        if tip.is_multicast() || tip.is_loopback() {
            return false;
        }
        if arp.sip == 0 {
            // Somebody looks whether the address he wants is free (RFC 2131).
            if arp.op == ARPOP_REQUEST && self.fib.is_local(arp.tip) {
                self.arp_reply(arp, dev);
            }
            return true;
        }
        if arp.op == ARPOP_REQUEST
            && self
                .ip_route_input_noref(arp.tip, arp.sip)
                .is_ok_and(|rt| rt.rt_type == RtType::Local)
        {
            if self.neigh_event_ns::<Arp>(arp.sip, dev, arp.sha) {
                self.arp_reply(arp, dev);
            }
            return true;
        }
        // Nobody is learnt of who was not asked for.
        if let Some(at) = self.neigh_lookup::<Arp>(arp.sip, dev) {
            let overrides = self.arp_is_garp(arp) || !self.neigh_is_locked::<Arp>(at);
            let answer = arp.op == ARPOP_REPLY && pkt_type == PktType::Host;
            let state = if answer {
                NudState::Reachable
            } else {
                NudState::Stale
            };
            let overrides = if overrides {
                NeighOverride::Always
            } else {
                NeighOverride::Never
            };
            self.neigh_update::<Arp>(at, Some(arp.sha), state, overrides);
        }
        true
    }

    /// Whether a host tells of itself unasked; it knows best.
    fn arp_is_garp(&self, arp: &ArpPacket) -> bool {
        arp.tip == arp.sip
            && (arp.op != ARPOP_REPLY || arp.tha == arp.sha)
            && self.fib.is_unicast(arp.sip)
    }

    fn arp_reply(&mut self, request: &ArpPacket, dev: Ifindex) {
        let reply = ArpPacket {
            op: ARPOP_REPLY,
            sha: self.netdevs[dev].dev_addr,
            sip: request.tip,
            tha: request.sha,
            tip: request.sip,
        };
        self.arp_send_dst(request.sha, reply, dev);
    }

    /// Asks the neighbour at `dest`, or all of a device's neighbours, who has `target`; as `saddr`, if that is an
    /// address of this host.
    fn arp_solicit(&mut self, target: u32, dev: Ifindex, dest: [u8; 6], saddr: Option<u32>) {
        let _stage = self.stage("arp_solicit");
        let sip = match saddr {
            Some(saddr) if self.inet_addr_type(saddr) == RtType::Local => saddr,
            _ => self.inet_select_addr(dev, target),
        };
        self.arp_send_request(target, sip, dev, dest);
    }

    fn arp_send_request(&mut self, tip: u32, sip: u32, dev: Ifindex, dest: [u8; 6]) {
        let request = ArpPacket {
            op: ARPOP_REQUEST,
            sha: self.netdevs[dev].dev_addr,
            sip,
            tha: [0; 6],
            tip,
        };
        self.arp_send_dst(dest, request, dev);
    }

    /// Tells all of a device's neighbours where this host is (`netdev_notify_peers`, `inetdev_send_gratuitous_arp`), and
    /// those of IPv6.
    pub(crate) fn netdev_notify_peers(&mut self, dev: Ifindex) {
        for at in 0..self.netdevs[dev].ifa_list.len() {
            let own = self.netdevs[dev].ifa_list[at].ifa_local;
            self.arp_send_request(own, own, dev, BROADCAST);
        }
        self.ndisc_send_unsol_na(dev);
    }

    fn arp_send_dst(&mut self, dest: [u8; 6], arp: ArpPacket, dev: Ifindex) {
        let _stage = self.stage("arp_send_dst");
        let skb = self.arp_create(dest, arp, dev);
        self.arp_xmit(skb);
    }

    fn arp_create(&mut self, dest: [u8; 6], arp: ArpPacket, dev: Ifindex) -> Skb {
        let _stage = self.stage("arp_create");
        let mut skb = self.skb_cache.alloc(MAX_HEADER, ETH_ZLEN);
        (skb.protocol, skb.dev) = (ETH_P_ARP, dev);
        skb.put(ArpPacket::LEN).copy_from_slice(&arp.to_bytes());
        *skb.push() = eth_header(dest, self.netdevs[dev].dev_addr, ETH_P_ARP);
        self.changed("arphdr", || {
            let what = if arp.op == ARPOP_REQUEST {
                "who has"
            } else {
                "is at, asked by"
            };
            format!("{what} {}", std::net::Ipv4Addr::from_bits(arp.tip))
        });
        skb
    }

    fn arp_xmit(&mut self, skb: Skb) {
        let _stage = self.stage("arp_xmit");
        self.__dev_queue_xmit(skb);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back_and_others_are_refused() {
        let arp = ArpPacket {
            op: ARPOP_REQUEST,
            sha: [2, 0, 0, 0, 0x77, 1],
            sip: 0x0a4d_0001,
            tha: [0; 6],
            tip: 0x0a4d_0002,
        };
        let good = arp.to_bytes();
        assert_eq!(ArpPacket::parse(&good), Some(arp));
        assert_eq!(
            ArpPacket::parse(&[&good[..], &[0; 18]].concat()),
            Some(arp),
            "padded"
        );
        assert_eq!(ArpPacket::parse(&good[..27]), None, "short");
        for (at, byte, what) in [
            (1, 7, "hardware"),
            (2, 0x86, "protocol"),
            (4, 8, "length of a hardware address"),
            (5, 16, "length of a protocol address"),
            (7, 3, "reverse ARP"),
        ] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(ArpPacket::parse(&bad), None, "{what}");
        }
    }
}
