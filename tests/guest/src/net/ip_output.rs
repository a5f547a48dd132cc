//! IP, send side (Linux: `net/ipv4/ip_output.c`).
//!
//! In: data, room for the transport's header before it, and their route. Out: packets with an IP header, to the
//! neighbour; what is longer than the route's MTU in fragments. Dropped and counted: what the packet filter drops, which the
//! sender hears of (EPERM), and what is too long and not to be fragmented, whose sender is told.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::arp::Arp;
use super::checksum::{csum_fold, csum_partial};
use super::dev::skb_checksum_help;
use super::eth::{ETH_HLEN, ETH_P_IP, eth_header};
use super::gso::{skb_gso_network_seglen, skb_gso_segment};
use super::icmp::{ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, IPPROTO_ICMP};
use super::ip_cork::IP_MAX_MTU;
use super::ip_input::{IP_DF, IP_MF, IPHDR_LEN};
use super::ip_options::{ReplyOptions, ip_options_fragment};
use super::netdevice::{IFF_LOOPBACK, Ifindex};
use super::netfilter::NfHook;
use super::route::{RtType, Rtable};
use super::skbuff::{IpSummed, MAX_HEADER, PktType, SkBuff, Skb};
use super::sock::SkRef;
use super::stats::TxDrop;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// `ip_default_ttl`.
const IPDEFTTL: u8 = 64;

/// What a transport says of a packet (`struct ipcm_cookie`, `struct flowi4`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub saddr: u32,
    pub daddr: u32,
    pub protocol: u8,
    pub tos: u8,
    /// Not to be fragmented on its way.
    pub df: bool,
    pub id: u16,
}

/// Writes the checksum of an IP header.
#[inline(always)] // for each packet; its other callers are rare
pub(super) fn ip_send_check(iph: &mut [u8]) {
    iph[10..12].fill(0);
    let check = csum_fold(csum_partial(iph, 0));
    iph[10..12].copy_from_slice(&check);
}

/// The flags and the offset of a packet that begins with its IP header.
fn frag_off(skb: &SkBuff) -> u16 {
    let field = skb.data().get(6..8);
    field.map_or(0, |field| u16::from_be_bytes([field[0], field[1]]))
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Longest IP packet that a device sends.
    #[inline]
    pub(super) fn mtu(&self, dev: Ifindex) -> usize {
        self.netdevs[dev].mtu
    }

    /// An identification (`ip_select_ident`).
    #[inline]
    pub(super) fn ip_select_ident(&mut self) -> u16 {
        self.ip_ident = self.ip_ident.wrapping_add(1);
        self.ip_ident
    }

    /// The first of as many identifications as a packet stands for segments, 0 being one.
    pub(super) fn ip_select_ident_segs(&mut self, segs: u16) -> u16 {
        let first = self.ip_select_ident();
        self.ip_ident = self.ip_ident.wrapping_add(segs.saturating_sub(1));
        first
    }

    /// A buffer with the data in it; who sends it is charged.
    #[inline]
    pub(super) fn __ip_append_data(
        &mut self,
        transhdrlen: usize,
        data: &[u8],
        owner: Option<SkRef>,
    ) -> Skb {
        let _stage = self.stage("__ip_append_data");
        let len = transhdrlen + data.len();
        let mut skb = self.skb_cache.alloc(MAX_HEADER - transhdrlen, len);
        skb.transport_header = skb.headroom();
        skb.put(len)[transhdrlen..].copy_from_slice(data);
        if let Some(sk) = owner {
            self.skb_set_owner_w(&mut skb, sk);
        }
        self.changed("skb", || {
            format!("{} bytes, truesize {}", data.len(), skb.truesize)
        });
        skb
    }

    /// A message that begins with its transport's header.
    pub(super) fn ip_append_data(&mut self, message: &[u8], owner: Option<SkRef>) -> Skb {
        let _stage = self.stage("ip_append_data");
        self.__ip_append_data(0, message, owner)
    }

    /// Sends such a message.
    pub(super) fn ip_push_pending_frames(
        &mut self,
        mut skb: Skb,
        rt: Rtable,
        flow: &Flow,
        options: &ReplyOptions,
    ) -> Result<(), Errno> {
        let _stage = self.stage("ip_push_pending_frames");
        self.__ip_make_skb(&mut skb, flow, options);
        self.ip_select_ttl(&rt, &mut skb);
        // (`ip_send_skb`, which is part of this function in the recordings.)
        self.ip_local_out_counted(skb, rt)
    }

    /// Answers a packet with a message of its transport, for which there is no socket.
    pub(super) fn ip_send_unicast_reply(&mut self, message: &[u8], flow: &Flow) {
        let _stage = self.stage("ip_send_unicast_reply");
        let Ok(rt) = self.ip_route_output_flow(flow.daddr) else {
            return;
        };
        let skb = self.__ip_append_data(0, message, None);
        // Nobody waits for it: what the filter makes of it is counted.
        let _ = self.ip_push_pending_frames(skb, rt, flow, &ReplyOptions::NONE);
    }

    /// Sends a packet that begins with its transport's header, by a route that is known.
    pub(super) fn ip_build_and_send_pkt(
        &mut self,
        mut skb: Skb,
        rt: Rtable,
        flow: &Flow,
    ) -> Result<(), Errno> {
        self.__ip_make_skb(&mut skb, flow, &ReplyOptions::NONE);
        self.ip_local_out(skb, rt)
    }

    /// The same for a segment of a connection.
    pub(super) fn ip_queue_xmit(&mut self, skb: Skb, rt: Rtable, flow: &Flow) -> Result<(), Errno> {
        let _stage = self.stage("ip_queue_xmit");
        self.ip_build_and_send_pkt(skb, rt, flow)
    }

    /// Writes the header, but for what [`Self::__ip_local_out`] does.
    #[inline]
    pub(super) fn __ip_make_skb(&mut self, skb: &mut SkBuff, flow: &Flow, options: &ReplyOptions) {
        let _stage = self.stage("__ip_make_skb");
        let frag_off = if flow.df { IP_DF } else { 0 };
        let mut iph = [0; IPHDR_LEN];
        (iph[0], iph[1]) = (0x45, flow.tos);
        iph[4..6].copy_from_slice(&flow.id.to_be_bytes());
        iph[6..8].copy_from_slice(&frag_off.to_be_bytes());
        (iph[8], iph[9]) = (IPDEFTTL, flow.protocol);
        iph[12..16].copy_from_slice(&flow.saddr.to_be_bytes());
        iph[16..].copy_from_slice(&flow.daddr.to_be_bytes());
        if flow.protocol == IPPROTO_ICMP {
            self.icmp_out_count(skb.data().first().copied().unwrap_or_default());
        }
        if options.optlen() > 0 {
            let (bytes, len) = options.build(flow.saddr, self.inet_current_timestamp());
            skb.push_slice(&bytes[..len]);
            iph[0] += (len / 4) as u8;
        }
        *skb.push() = iph;
        skb.reset_network_header();
        self.changed("iphdr", || {
            let daddr = Ipv4Addr::from_bits(flow.daddr);
            format!("to {daddr}, protocol {}, id {}", flow.protocol, flow.id)
        });
    }

    #[inline]
    pub(super) fn ip_send_skb(&mut self, skb: Skb, rt: Rtable) -> Result<(), Errno> {
        let _stage = self.stage("ip_send_skb");
        self.ip_local_out_counted(skb, rt)
    }

    /// Sends a packet; one that was not let out is counted.
    #[inline]
    fn ip_local_out_counted(&mut self, skb: Skb, rt: Rtable) -> Result<(), Errno> {
        let sent = self.ip_local_out(skb, rt);
        sent.inspect_err(|_| self.counters.snmp.ip_out_discards += 1)
    }

    /// A process wants to send where no route leads, if that is the error.
    #[cold]
    pub(super) fn count_no_route(&mut self, error: Errno) {
        if error == Errno::ENETUNREACH {
            self.counters.snmp.ip_out_no_routes += 1;
        }
    }

    #[inline]
    pub(super) fn ip_local_out(&mut self, mut skb: Skb, rt: Rtable) -> Result<(), Errno> {
        skb.dst = Some(rt);
        let skb = self.__ip_local_out(skb)?;
        self.ip_output(skb, rt)
    }

    /// Length and checksum are written; what the filter drops its sender hears of.
    #[inline]
    fn __ip_local_out(&mut self, mut skb: Skb) -> Result<Skb, Errno> {
        let _stage = self.stage("__ip_local_out");
        self.counters.snmp.ip_out_requests += 1;
        skb.protocol = ETH_P_IP;
        let tot_len = skb.len() as u16;
        let hdr_len = skb.data().first().map_or(0, |b| usize::from(b & 0xf) * 4);
        if let Some(iph) = skb.data_mut().get_mut(..hdr_len) {
            iph[2..4].copy_from_slice(&tot_len.to_be_bytes());
            match iph.first_chunk_mut::<IPHDR_LEN>() {
                // The usual length is known to the compiler.
                Some(iph) if hdr_len == IPHDR_LEN => ip_send_check(iph),
                _ => ip_send_check(iph),
            }
        }
        self.changed("tot_len", || tot_len.to_string());
        self.nf_hook_out(NfHook::LocalOut, skb)
    }

    #[inline]
    pub(super) fn ip_output(&mut self, mut skb: Skb, rt: Rtable) -> Result<(), Errno> {
        let _stage = self.stage("ip_output");
        skb.dev = rt.dev;
        if rt.rt_type.is_of_many() {
            self.ip_mc_output(&skb, &rt);
        }
        let skb = self.nf_hook_out(NfHook::PostRouting, skb)?;
        self.ip_finish_output(skb, rt)
    }

    /// A packet for many is for this host as well, if it is in the group: it gets a copy.
    #[cold]
    fn ip_mc_output(&mut self, skb: &SkBuff, rt: &Rtable) {
        let _stage = self.stage("ip_mc_output");
        let looped = match rt.rt_type {
            RtType::Multicast => {
                self.igmp.is_member(rt.dev, rt.next_hop) && self.socks.mc_loop(skb.sk)
            }
            _ => true,
        };
        if !looped || self.netdevs[rt.dev].flags & IFF_LOOPBACK != 0 {
            return;
        }
        let copy = self.skb_cache.clone_skb(skb);
        if self.nf_hook(NfHook::PostRouting, &copy) {
            self.dev_loopback_xmit(copy);
        } else {
            self.drop_tx(copy, TxDrop::NetfilterOutDrop);
        }
    }

    /// What was sent to many comes in here as well.
    pub(super) fn dev_loopback_xmit(&mut self, mut copy: Skb) {
        let _stage = self.stage("dev_loopback_xmit");
        // It has no addresses, and nobody is to see what was in the buffer before.
        *copy.push() = eth_header([0; 6], [0; 6], copy.protocol);
        copy.pull(ETH_HLEN);
        copy.pkt_type = PktType::Loopback;
        copy.ip_summed = IpSummed::Unnecessary;
        self.netif_rx(copy);
    }

    /// A packet that may pass a hook.
    #[inline]
    pub(super) fn nf_hook_out(&mut self, hook: NfHook, skb: Skb) -> Result<Skb, Errno> {
        if self.nf_hook(hook, &skb) {
            return Ok(skb);
        }
        self.drop_tx(skb, TxDrop::NetfilterOutDrop);
        Err(Errno::EPERM)
    }

    #[inline]
    fn ip_finish_output(&mut self, skb: Skb, rt: Rtable) -> Result<(), Errno> {
        let _stage = self.stage("ip_finish_output");
        self.__ip_finish_output(skb, rt)
    }

    #[inline]
    fn __ip_finish_output(&mut self, skb: Skb, rt: Rtable) -> Result<(), Errno> {
        let _stage = self.stage("__ip_finish_output");
        if skb.len() > self.dst_mtu(&rt) {
            let mtu = self.ip_skb_dst_mtu(&skb, &rt);
            if skb.gso_size == 0 && skb.len() > mtu {
                return self.ip_fragment(skb, rt, mtu);
            }
            if skb.gso_size != 0 && skb_gso_network_seglen(&skb) > mtu {
                return self.ip_finish_output_gso(skb, rt, mtu);
            }
        }
        self.ip_finish_output2(skb, rt);
        Ok(())
    }

    /// The longest packet that leaves as it is: who sent it may not heed the path's MTU.
    #[cold]
    fn ip_skb_dst_mtu(&self, skb: &SkBuff, rt: &Rtable) -> usize {
        match skb.sk.and_then(|sk| self.socks.sk_pmtudisc(sk)) {
            Some(pmtudisc) => self.ip_sk_mtu(pmtudisc, rt).min(IP_MAX_MTU),
            None => self.dst_mtu(rt),
        }
    }

    /// A packet that stands for several which are too long each: forwarded, since of those made here the transport
    /// sees to that.
    #[cold]
    fn ip_finish_output_gso(&mut self, skb: Skb, rt: Rtable, mtu: usize) -> Result<(), Errno> {
        let _stage = self.stage("ip_finish_output_gso");
        let mut list = VecDeque::new();
        let segmenting = self.stage("skb_gso_segment");
        let done = skb_gso_segment(&mut self.skb_cache, skb, false, &mut list);
        drop(segmenting);
        if let Err(skb) = done {
            self.drop_tx(skb, TxDrop::SkbGsoSeg);
            return Err(Errno::EINVAL);
        }
        let mut all = Ok(());
        for skb in list {
            // The last may be short.
            if skb.len() > mtu {
                all = all.and(self.ip_fragment(skb, rt, mtu));
            } else {
                self.ip_finish_output2(skb, rt);
            }
        }
        all
    }

    /// A packet that is too long: in fragments, unless it is not to be.
    #[cold]
    fn ip_fragment(&mut self, skb: Skb, rt: Rtable, mtu: usize) -> Result<(), Errno> {
        let _stage = self.stage("ip_fragment");
        if frag_off(&skb) & IP_DF != 0 {
            self.counters.snmp.ip_frag_fails += 1;
            self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, mtu as u32);
            self.drop_tx(skb, TxDrop::IpFragFails);
            return Err(Errno::EMSGSIZE);
        }
        self.ip_do_fragment(skb, rt, mtu)
    }

    /// Sends a packet in pieces of up to `mtu` octets, each with the header. Of the whole nobody after this host could
    /// make the transport's checksum.
    fn ip_do_fragment(&mut self, mut skb: Skb, rt: Rtable, mtu: usize) -> Result<(), Errno> {
        let _stage = self.stage("ip_do_fragment");
        let summed = skb.ip_summed != IpSummed::Partial || skb_checksum_help(&mut skb);
        let hlen = usize::from(skb.data()[0] & 0xf) * 4;
        let before = frag_off(&skb);
        let step = mtu.saturating_sub(hlen) & !7;
        if !summed || step == 0 || hlen < IPHDR_LEN || skb.len() < hlen {
            self.counters.snmp.ip_frag_fails += 1;
            self.drop_tx(skb, TxDrop::IpFragFails);
            return Err(Errno::EINVAL);
        }
        let owner = skb.sk;
        let end = skb.len();
        for at in (hlen..end).step_by(step) {
            let part = at..end.min(at + step);
            let mut fragment = self.skb_cache.alloc(MAX_HEADER, hlen + part.len());
            let bytes = fragment.put(hlen + part.len());
            bytes[..hlen].copy_from_slice(&skb.data()[..hlen]);
            bytes[hlen..].copy_from_slice(&skb.data()[part.clone()]);
            let tot_len = bytes.len() as u16;
            bytes[2..4].copy_from_slice(&tot_len.to_be_bytes());
            let more = if part.end < end {
                IP_MF
            } else {
                before & IP_MF
            };
            let offset = before.wrapping_add(((at - hlen) / 8) as u16) & !IP_MF;
            bytes[6..8].copy_from_slice(&(offset | more).to_be_bytes());
            if at > hlen {
                ip_options_fragment(&mut bytes[..hlen]);
            }
            ip_send_check(&mut bytes[..hlen]);
            fragment.inherit(&skb);
            fragment.queue_mapping = 0;
            fragment.reset_network_header();
            if let Some(sk) = owner {
                self.skb_set_owner_w(&mut fragment, sk);
            }
            self.counters.snmp.ip_frag_creates += 1;
            self.ip_finish_output2(fragment, rt);
        }
        self.counters.snmp.ip_frag_oks += 1;
        self.consume_skb(skb);
        Ok(())
    }

    /// To the neighbour that the route names.
    #[inline]
    fn ip_finish_output2(&mut self, skb: Skb, rt: Rtable) {
        let _stage = self.stage("ip_finish_output2");
        self.neigh_output::<Arp>(rt.next_hop, skb);
    }
}
