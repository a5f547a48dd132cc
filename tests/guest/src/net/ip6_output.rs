//! IPv6, send side (Linux: `net/ipv6/ip6_output.c`).
//!
//! In: data, room for the transport's header before it, and their route. Out: packets with an IPv6 header, to the
//! neighbour; what is longer than the route's MTU in fragments. Dropped and counted: what the packet filter drops, which
//! the sender hears of (EPERM), what cannot be cut, and what is for this interface's own groups.

use std::net::Ipv6Addr;

use super::dev::skb_checksum_help;
use super::eth::ETH_P_IPV6;
use super::ip6_route::Rt6Info;
use super::ipv6::{
    IPV6HDR_LEN, NEXTHDR, NEXTHDR_FRAGMENT, PAYLOAD_LEN, SCOPE_NODELOCAL, addr_at, is_multicast,
    mc_scope,
};
use super::ndisc::Ndisc;
use super::netdevice::IFF_LOOPBACK;
use super::netfilter::NfHook;
use super::skbuff::{IpSummed, MAX_HEADER, Skb};
use super::sock::SkRef;
use super::stats::{Mib6, TxDrop};
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// Bytes of a fragment's header.
pub(super) const FRAG_HDR_LEN: usize = 8;
/// More fragments follow.
pub(super) const IP6_MF: u16 = 1;
/// `ip6_dst_hoplimit`, and that of packets to groups.
const HOP_LIMIT: u8 = 64;
const MCAST_HOPS: u8 = 1;

/// What a transport says of a packet (`struct ipcm6_cookie`, `struct flowi6`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow6 {
    pub saddr: u128,
    pub daddr: u128,
    pub protocol: u8,
    pub tclass: u8,
    pub hop_limit: u8,
}

impl Flow6 {
    /// As most packets have it.
    pub fn new(saddr: u128, daddr: u128, protocol: u8) -> Self {
        Self {
            saddr,
            daddr,
            protocol,
            tclass: 0,
            hop_limit: if is_multicast(daddr) {
                MCAST_HOPS
            } else {
                HOP_LIMIT
            },
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Makes a packet of `data` behind `transhdrlen` bytes that its transport is to fill in.
    pub(super) fn ip6_make_skb(
        &mut self,
        transhdrlen: usize,
        data: &[u8],
        flow: &Flow6,
        owner: Option<SkRef>,
    ) -> Skb {
        let _stage = self.stage("ip6_make_skb");
        let mut skb = self.__ip_append_data(transhdrlen, data, owner);
        self.ip6_finish_skb(&mut skb, flow);
        skb
    }

    /// Writes the header, but for its length.
    pub(super) fn ip6_finish_skb(&mut self, skb: &mut Skb, flow: &Flow6) {
        let _stage = self.stage("__ip6_make_skb");
        self.inc6(Mib6::Ip6OutRequests);
        let hdr = skb.push::<IPV6HDR_LEN>();
        (hdr[0], hdr[1]) = (0x60 | flow.tclass >> 4, flow.tclass << 4);
        // No labels: `auto_flowlabels` is off.
        hdr[2..NEXTHDR].fill(0);
        (hdr[NEXTHDR], hdr[NEXTHDR + 1]) = (flow.protocol, flow.hop_limit);
        hdr[8..24].copy_from_slice(&flow.saddr.to_be_bytes());
        hdr[24..].copy_from_slice(&flow.daddr.to_be_bytes());
        skb.reset_network_header();
        self.changed("ipv6hdr", || {
            let daddr = Ipv6Addr::from_bits(flow.daddr);
            format!("to {daddr}, next header {}", flow.protocol)
        });
    }

    /// Sends a packet; one that was not let out is counted.
    pub(super) fn ip6_send_skb(&mut self, skb: Skb, rt: Rt6Info) -> Result<(), Errno> {
        let _stage = self.stage("ip6_send_skb");
        let sent = self.ip6_local_out(skb, rt);
        sent.inspect_err(|_| self.inc6(Mib6::Ip6OutDiscards))
    }

    /// The length is written; what the filter drops its sender hears of.
    pub(super) fn ip6_local_out(&mut self, mut skb: Skb, rt: Rt6Info) -> Result<(), Errno> {
        let _stage = self.stage("ip6_local_out");
        skb.protocol = ETH_P_IPV6;
        // What is longer says so by 0.
        let len = u16::try_from(skb.len() - IPV6HDR_LEN).unwrap_or(0);
        skb.data_mut()[PAYLOAD_LEN..NEXTHDR].copy_from_slice(&len.to_be_bytes());
        let skb = self.nf_hook6_out(NfHook::LocalOut, skb)?;
        self.ip6_output(skb, rt)
    }

    fn ip6_output(&mut self, mut skb: Skb, rt: Rt6Info) -> Result<(), Errno> {
        let _stage = self.stage("ip6_output");
        (skb.dev, skb.ip6.iif) = (rt.dev, rt.iif);
        let skb = self.nf_hook6_out(NfHook::PostRouting, skb)?;
        self.ip6_finish_output(skb, rt);
        Ok(())
    }

    /// A packet that may pass a hook.
    fn nf_hook6_out(&mut self, hook: NfHook, skb: Skb) -> Result<Skb, Errno> {
        if self.nf_hook6(hook, &skb) {
            return Ok(skb);
        }
        self.drop_tx(skb, TxDrop::NetfilterOutDrop);
        Err(Errno::EPERM)
    }

    fn ip6_finish_output(&mut self, skb: Skb, rt: Rt6Info) {
        let _stage = self.stage("ip6_finish_output");
        let mtu = self.dst_mtu6(&rt);
        if skb.len() > mtu {
            return self.ip6_fragment(skb, rt, mtu);
        }
        self.ip6_finish_output2(skb, rt);
    }

    /// Sends a packet that this host made in pieces of up to `mtu` octets, each with the header. Of the whole nobody after
    /// this host could make the transport's checksum.
    #[cold]
    fn ip6_fragment(&mut self, mut skb: Skb, rt: Rt6Info, mtu: usize) {
        let _stage = self.stage("ip6_fragment");
        let summed = skb.ip_summed != IpSummed::Partial || skb_checksum_help(&mut skb);
        let hlen = IPV6HDR_LEN + FRAG_HDR_LEN;
        let step = mtu.saturating_sub(hlen) & !7;
        if !summed || step == 0 {
            self.inc6(Mib6::Ip6FragFails);
            return self.drop_tx(skb, TxDrop::Ip6FragFails);
        }
        let id = self.ipv6_select_ident();
        let (owner, end) = (skb.sk, skb.len());
        for at in (IPV6HDR_LEN..end).step_by(step) {
            let part = at..end.min(at + step);
            let mut fragment = self.skb_cache.alloc(MAX_HEADER, hlen + part.len());
            let bytes = fragment.put(hlen + part.len());
            let (header, rest) = bytes.split_at_mut(IPV6HDR_LEN);
            header.copy_from_slice(&skb.data()[..IPV6HDR_LEN]);
            let len = rest.len() as u16;
            header[PAYLOAD_LEN..NEXTHDR].copy_from_slice(&len.to_be_bytes());
            let (frag, data) = rest.split_at_mut(FRAG_HDR_LEN);
            frag[0] = std::mem::replace(&mut header[NEXTHDR], NEXTHDR_FRAGMENT);
            frag[1] = 0;
            let more = if part.end < end { IP6_MF } else { 0 };
            let offset = (at - IPV6HDR_LEN) as u16 | more;
            frag[2..4].copy_from_slice(&offset.to_be_bytes());
            frag[4..].copy_from_slice(&id.to_be_bytes());
            data.copy_from_slice(&skb.data()[part]);
            fragment.inherit(&skb);
            fragment.reset_network_header();
            if let Some(sk) = owner {
                self.skb_set_owner_w(&mut fragment, sk);
            }
            self.inc6(Mib6::Ip6FragCreates);
            self.ip6_finish_output2(fragment, rt);
        }
        self.inc6(Mib6::Ip6FragOKs);
        self.consume_skb(skb);
    }

    /// An identification of a packet in fragments. (Linux draws at random.)
    fn ipv6_select_ident(&mut self) -> u32 {
        let _stage = self.stage("ipv6_select_ident");
        self.ip6_ident = self.ip6_ident.wrapping_add(1);
        self.ip6_ident
    }

    /// To the neighbour that the route names; what is for a group also to this host, if it is in that.
    fn ip6_finish_output2(&mut self, skb: Skb, rt: Rt6Info) {
        let _stage = self.stage("ip6_finish_output2");
        let daddr = addr_at(skb.data(), 24).unwrap_or(rt.next_hop);
        if is_multicast(daddr) {
            let loopback = self.netdevs[rt.dev].flags & IFF_LOOPBACK != 0;
            if !loopback && rt.mc_loop && self.ipv6_chk_mcast_addr(rt.dev, daddr) {
                let copy = self.skb_cache.clone_skb(&skb);
                if self.nf_hook6(NfHook::PostRouting, &copy) {
                    self.dev_loopback_xmit(copy);
                } else {
                    self.drop_tx(copy, TxDrop::NetfilterOutDrop);
                }
            }
            self.upd6(Mib6::Ip6OutMcastPkts, Mib6::Ip6OutMcastOctets, skb.len());
            if mc_scope(daddr) <= SCOPE_NODELOCAL && !loopback {
                return self.drop_tx(skb, TxDrop::Ip6OutDiscards);
            }
        }
        self.upd6(Mib6::Ip6OutTransmits, Mib6::Ip6OutOctets, skb.len());
        if !self.neigh_output::<Ndisc>(rt.next_hop, skb) {
            self.inc6(Mib6::Ip6OutNoRoutes);
        }
    }
}
