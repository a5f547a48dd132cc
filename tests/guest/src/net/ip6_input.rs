//! IPv6, receive side (Linux: `net/ipv6/ip6_input.c`; RFC 8200).
//!
//! In: packets of Ethertype IPv6. Out: to the transports, without the headers before them and without padding, fragments
//! as one packet. Dropped, each kind with its counter: what the packet filter drops, headers that are short or have
//! addresses that no packet has, truncated packets, headers behind the first that are wrong, what is not for this host
//! (which does not forward), and groups that the device is not in; and addresses without a route and protocols that
//! nobody registered, which are answered.

use std::net::Ipv6Addr;

use super::icmp6::{ICMPV6_DEST_UNREACH, ICMPV6_NOROUTE, ICMPV6_PARAMPROB, ICMPV6_UNK_NEXTHDR};
use super::ip6_route::Rt6Info;
use super::ipv6::{
    IN6ADDR_ANY, IN6ADDR_LOOPBACK, IPPROTO_ICMPV6, IPV6HDR_LEN, Ipv6hdr, NEXTHDR_DEST,
    NEXTHDR_FRAGMENT, NEXTHDR_HOP, NEXTHDR_NONE, NEXTHDR_ROUTING, SCOPE_NODELOCAL, is_multicast,
    mc_scope,
};
use super::netdevice::IFF_LOOPBACK;
use super::netfilter::NfHook;
use super::route::RtType;
use super::skbuff::{PktType, SkBuff, Skb};
use super::stats::{Mib6, RxDrop};
use super::tcp::IPPROTO_TCP;
use super::udp::IPPROTO_UDP;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// What takes a packet above IPv6's header (`struct inet6_protocol`), by name instead of by pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inet6Protocol {
    Routing,
    Fragment,
    DestOpts,
    /// Nothing follows.
    NoData,
    Icmpv6,
    Udp,
    Tcp,
}

impl Inet6Protocol {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Routing,
        Self::Fragment,
        Self::DestOpts,
        Self::NoData,
        Self::Icmpv6,
        Self::Udp,
        Self::Tcp,
    ];

    /// Its number.
    fn number(self) -> u8 {
        match self {
            Self::Routing => NEXTHDR_ROUTING,
            Self::Fragment => NEXTHDR_FRAGMENT,
            Self::DestOpts => NEXTHDR_DEST,
            Self::NoData => NEXTHDR_NONE,
            Self::Icmpv6 => IPPROTO_ICMPV6,
            Self::Udp => IPPROTO_UDP,
            Self::Tcp => IPPROTO_TCP,
        }
    }

    /// Whether nothing else is behind it (`INET6_PROTO_FINAL`).
    fn is_final(self) -> bool {
        matches!(self, Self::Icmpv6 | Self::Udp | Self::Tcp)
    }
}

/// Why a header's addresses are nothing for a packet that came by this device.
fn has_bad_addresses(hdr: &Ipv6hdr, pkt_type: PktType, loopback: bool) -> bool {
    let multicast = is_multicast(hdr.daddr);
    let own = |addr| addr == IN6ADDR_LOOPBACK;
    let looped = loopback || pkt_type == PktType::Loopback;
    (own(hdr.saddr) || own(hdr.daddr)) && !loopback
        || multicast && !looped && mc_scope(hdr.daddr) == SCOPE_NODELOCAL
        || multicast && mc_scope(hdr.daddr) == 0
        || is_multicast(hdr.saddr)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Counts something of IPv6.
    #[inline]
    pub(super) fn inc6(&mut self, counter: Mib6) {
        self.counters.snmp6[counter] += 1;
    }

    /// Counts a packet of `len` octets, and those (`IP6_UPD_PO_STATS`).
    #[inline]
    pub(super) fn upd6(&mut self, packets: Mib6, octets: Mib6, len: usize) {
        self.counters.snmp6[packets] += 1;
        self.counters.snmp6[octets] += len as u64;
    }

    /// Drops a packet whose headers are wrong.
    pub(super) fn bad_header6(&mut self, skb: Skb) {
        self.inc6(Mib6::Ip6InHdrErrors);
        self.drop_rx(skb, RxDrop::Ip6InHdrErrors);
    }

    /// Registers what takes packets by number (`inet6_add_protocol`).
    pub(super) fn inet6_add_protocol(&mut self, protocol: Inet6Protocol) {
        self.inet6_protos[usize::from(protocol.number())] = Some(protocol);
    }

    /// Packets that came together.
    pub(super) fn ipv6_list_rcv(&mut self, list: &mut Vec<Skb>) {
        let _stage = self.stage("ipv6_list_rcv");
        for skb in list.drain(..) {
            self.ip6_rcv_one(skb);
        }
    }

    /// A packet that came by itself.
    #[cold]
    pub(super) fn ipv6_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("ipv6_rcv");
        self.ip6_rcv_one(skb);
    }

    fn ip6_rcv_one(&mut self, skb: Skb) {
        let Some(skb) = self.ip6_rcv_core(skb) else {
            return;
        };
        if !self.nf_hook6(NfHook::PreRouting, &skb) {
            return self.drop_rx(skb, RxDrop::NetfilterDrop);
        }
        self.ip6_rcv_finish(skb);
    }

    /// A packet whose header is sound, and the options for each hop if it has such.
    fn ip6_rcv_core(&mut self, mut skb: Skb) -> Option<Skb> {
        let _stage = self.stage("ip6_rcv_core");
        if skb.pkt_type == PktType::OtherHost {
            self.drop_rx(skb, RxDrop::Ip6OtherHost);
            return None;
        }
        self.upd6(Mib6::Ip6InReceives, Mib6::Ip6InOctets, skb.len());
        if !self.has_ipv6(skb.dev) {
            self.inc6(Mib6::Ip6InDiscards);
            self.drop_rx(skb, RxDrop::Ip6InDiscards);
            return None;
        }
        let loopback = self.netdevs[skb.dev].flags & IFF_LOOPBACK != 0;
        let version = skb.data().first().map(|first| first >> 4);
        let Some(mut hdr) = Ipv6hdr::parse(skb.data()).filter(|_| version == Some(6)) else {
            self.bad_header6(skb);
            return None;
        };
        hdr.iif = if loopback { skb.ip6.iif } else { skb.dev };
        let ecn = [
            Mib6::Ip6InNoECTPkts,
            Mib6::Ip6InECT1Pkts,
            Mib6::Ip6InECT0Pkts,
            Mib6::Ip6InCEPkts,
        ];
        self.counters.snmp6[ecn[usize::from(hdr.tclass & 3)]] += u64::from(skb.gso_segs.max(1));
        if has_bad_addresses(&hdr, skb.pkt_type, loopback) {
            self.bad_header6(skb);
            return None;
        }
        skb.ip6 = hdr;
        let nexthdr = skb.data()[hdr.nhoff()];
        let len = IPV6HDR_LEN + usize::from(hdr.payload_len);
        // A length of 0 may stand in an option.
        if hdr.payload_len != 0 || nexthdr != NEXTHDR_HOP {
            if len > skb.len() {
                self.inc6(Mib6::Ip6InTruncatedPkts);
                self.drop_rx(skb, RxDrop::Ip6InTruncatedPkts);
                return None;
            }
            // What is left was padding.
            skb.trim(len);
        }
        self.changed("ipv6hdr", || {
            let [saddr, daddr] = [hdr.saddr, hdr.daddr].map(Ipv6Addr::from_bits);
            format!("{saddr} to {daddr}, next header {nexthdr}, {len} bytes")
        });
        if nexthdr == NEXTHDR_HOP {
            return self.ipv6_parse_hopopts(skb);
        }
        Some(skb)
    }

    fn ip6_rcv_finish(&mut self, skb: Skb) {
        let _stage = self.stage("ip6_rcv_finish");
        let rt = self.ip6_route_input(&skb.ip6, skb.dev);
        self.changed("dst", || {
            rt.map_or("none".into(), |rt| format!("{:?}", rt.rt_type))
        });
        match rt {
            None => self.ip6_pkt_discard(skb),
            Some(rt) => match rt.rt_type {
                RtType::Multicast => self.ip6_mc_input(skb),
                RtType::Local => self.ip6_input(skb),
                _ => self.ip6_forward(skb, rt),
            },
        }
    }

    /// A packet that no route is there for; who sent it is told.
    #[cold]
    fn ip6_pkt_discard(&mut self, skb: Skb) {
        let _stage = self.stage("ip6_pkt_discard");
        let (counter, reason) = if skb.ip6.daddr == IN6ADDR_ANY {
            (Mib6::Ip6InAddrErrors, RxDrop::Ip6InAddrErrors)
        } else {
            (Mib6::Ip6InNoRoutes, RxDrop::Ip6InNoRoutes)
        };
        self.inc6(counter);
        self.icmp6_send(&skb, ICMPV6_DEST_UNREACH, ICMPV6_NOROUTE, 0);
        self.drop_rx(skb, reason);
    }

    /// A packet for another host: this one does not forward.
    #[cold]
    fn ip6_forward(&mut self, skb: Skb, _: Rt6Info) {
        let _stage = self.stage("ip6_forward");
        self.inc6(Mib6::Ip6InAddrErrors);
        self.drop_rx(skb, RxDrop::Ip6InAddrErrors);
    }

    /// A packet for a group.
    fn ip6_mc_input(&mut self, skb: Skb) {
        let _stage = self.stage("ip6_mc_input");
        self.upd6(Mib6::Ip6InMcastPkts, Mib6::Ip6InMcastOctets, skb.len());
        if self.ipv6_chk_mcast_addr(skb.dev, skb.ip6.daddr) {
            return self.ip6_input(skb);
        }
        self.drop_rx(skb, RxDrop::Ip6InMcastNotMember);
    }

    fn ip6_input(&mut self, skb: Skb) {
        let _stage = self.stage("ip6_input");
        if !self.nf_hook6(NfHook::LocalIn, &skb) {
            return self.drop_rx(skb, RxDrop::NetfilterDrop);
        }
        self.ip6_input_finish(skb);
    }

    fn ip6_input_finish(&mut self, skb: Skb) {
        let _stage = self.stage("ip6_input_finish");
        self.ip6_protocol_deliver_rcu(skb);
    }

    /// Gives a packet to what takes its next header, and so on, until it ends.
    fn ip6_protocol_deliver_rcu(&mut self, mut skb: Skb) {
        let _stage = self.stage("ip6_protocol_deliver_rcu");
        loop {
            let (nhoff, thoff) = (skb.ip6.nhoff(), skb.ip6.thoff());
            let nexthdr = skb.network().get(nhoff).copied();
            let Some(nexthdr) = nexthdr.filter(|_| thoff <= skb.len()) else {
                self.inc6(Mib6::Ip6InDiscards);
                return self.drop_rx(skb, RxDrop::Ip6InDiscards);
            };
            let Some(protocol) = self.inet6_protos[usize::from(nexthdr)] else {
                self.inc6(Mib6::Ip6InUnknownProtos);
                let info = nhoff as u32;
                self.icmp6_send(&skb, ICMPV6_PARAMPROB, ICMPV6_UNK_NEXTHDR, info);
                return self.drop_rx(skb, RxDrop::Ip6InUnknownProtos);
            };
            if protocol.is_final() {
                return self.ip6_final(skb, protocol);
            }
            let next = match protocol {
                Inet6Protocol::Routing => self.ipv6_rthdr_rcv(skb),
                Inet6Protocol::Fragment => self.ipv6_frag_rcv(skb),
                Inet6Protocol::DestOpts => self.ipv6_destopt_rcv(skb),
                _ => {
                    self.inc6(Mib6::Ip6InDelivers);
                    self.counters.consumed += 1;
                    return self.consume_skb(skb);
                }
            };
            match next {
                Some(more) => skb = more,
                None => return,
            }
        }
    }

    /// To a transport, without what is before it.
    fn ip6_final(&mut self, mut skb: Skb, protocol: Inet6Protocol) {
        skb.pull(skb.ip6.thoff());
        if is_multicast(skb.ip6.daddr) && !self.ipv6_chk_mcast_addr(skb.dev, skb.ip6.daddr) {
            self.inc6(Mib6::Ip6InDiscards);
            return self.drop_rx(skb, RxDrop::Ip6InDiscards);
        }
        self.inc6(Mib6::Ip6InDelivers);
        match protocol {
            Inet6Protocol::Udp => self.udpv6_rcv(skb),
            Inet6Protocol::Tcp => self.tcp_v6_rcv(skb),
            _ => self.icmpv6_rcv(skb),
        }
    }
}

impl SkBuff {
    /// The bytes from the next header on that nobody has looked at yet.
    pub fn next_header(&self) -> &[u8] {
        self.network().get(self.ip6.thoff()..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hdr(saddr: &str, daddr: &str) -> Ipv6hdr {
        let [saddr, daddr] = [saddr, daddr].map(|addr| addr.parse::<Ipv6Addr>().unwrap().to_bits());
        Ipv6hdr {
            saddr,
            daddr,
            ..Ipv6hdr::default()
        }
    }

    #[test]
    fn addresses_that_no_packet_has_are_refused() {
        for (saddr, daddr, outside, looped, inside) in [
            ("fd77::1", "fd77::2", false, false, false),
            ("::", "ff02::1", false, false, false),
            ("::1", "fd77::2", true, true, false),
            ("fd77::1", "::1", true, true, false),
            ("fd77::1", "ff01::1", true, false, false),
            ("fd77::1", "ff00::1", true, true, true),
            ("ff02::1", "fd77::2", true, true, true),
        ] {
            let hdr = hdr(saddr, daddr);
            let bad = |pkt_type, loopback| has_bad_addresses(&hdr, pkt_type, loopback);
            let what = format!("{saddr} to {daddr}");
            assert_eq!(bad(PktType::Multicast, false), outside, "{what}");
            assert_eq!(bad(PktType::Loopback, false), looped, "{what}");
            assert_eq!(bad(PktType::Host, true), inside, "{what}");
        }
    }
}
