//! Generic receive offload (Linux: `net/core/gro.c`, `net/ipv4/af_inet.c`): segments of a flow become one packet.
//!
//! In: packets from a driver's poll. Out: the same up the stack in lists of 8, with those that followed on each other as
//! one packet, which knows what its segments were. Held back is at most what one poll finds; a packet that may not be
//! merged goes on as it is, behind what it would have been merged with. What a transport asks of its segments is
//! in `tcp_offload` and `udp_offload`. Nothing is dropped.

use super::checksum::{csum_fold, csum_good, csum_partial, csum_tcpudp_nofold};
use super::eth::{ETH_HLEN, ETH_P_8021Q, ETH_P_IP};
use super::ip_input::{IP_DF, IP_MF, IP_OFFSET, IPHDR_LEN};
use super::port_table::PortTable;
use super::skbuff::{IpSummed, SkBuff, Skb};
use super::sock::SockTable;
use super::softirq::nsecs_to_jiffies;
use super::tcp::IPPROTO_TCP;
use super::tcp_offload::{tcp4_gro_complete, tcp4_gro_receive};
use super::trace::Span;
use super::udp::IPPROTO_UDP;
use super::udp_offload::{udp4_gro_complete, udp4_gro_receive};
use super::vlan::{VLAN_HLEN, vlan_protocol};
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Lists of held packets, by hash of the flow.
const GRO_HASH_BUCKETS: usize = 8;
/// Held packets of a list.
const MAX_GRO_SKBS: usize = 8;
/// Bytes of a merged packet, from its IP header on, stay below this.
const GRO_MAX_SIZE: usize = 65_536;
/// Where total length, identification, flags with offset, TTL, protocol and checksum are in an IP header.
const TOT_LEN: usize = 2;
const ID: usize = 4;
const FRAG_OFF: usize = 6;
const TTL: usize = 8;
const PROTOCOL: usize = 9;
const CHECK: usize = 10;

/// Whether an IP packet is a part of one (`ip_is_fragment`).
#[inline]
fn is_fragment(packet: &[u8]) -> bool {
    let frag_off = packet.get(FRAG_OFF..FRAG_OFF + 2);
    frag_off.is_some_and(|bytes| half(bytes, 0) & (IP_MF | IP_OFFSET) != 0)
}

/// Two bytes of a packet, which has them.
#[inline]
pub(super) fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes of a packet, which has them.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A packet that is looked at (`struct napi_gro_cb`).
pub(super) struct NapiGroCb {
    /// It is gone once it was merged.
    skb: Option<Skb>,
    /// It may not be merged, nor held.
    pub flush: bool,
    /// Where its payload begins, from the IP header on, and how much there is.
    pub data_offset: usize,
    pub gro_len: usize,
}

impl NapiGroCb {
    /// The packet from its IP header on.
    #[inline]
    pub fn data(&self) -> &[u8] {
        self.skb.as_ref().map_or(&[], |skb| skb.data())
    }

    /// Says where the payload begins (`skb_gro_pull`).
    pub fn pull(&mut self, data_offset: usize) {
        self.data_offset = data_offset;
        self.gro_len = self.data().len().saturating_sub(data_offset);
    }

    /// Whether it was merged.
    pub fn same_flow(&self) -> bool {
        self.skb.is_none()
    }

    /// Whether the transport's checksum is right; it need not be looked at again (`skb_gro_checksum_validate`).
    pub fn checksum_validate(&mut self) -> bool {
        let Some(skb) = &mut self.skb else {
            return false;
        };
        if skb.ip_summed != IpSummed::None {
            return true;
        }
        let packet = skb.data();
        let (ip, transport) = packet.split_at(IPHDR_LEN.min(packet.len()));
        let good = csum_good(csum_partial(transport, pseudo(ip, transport.len())));
        if good {
            skb.ip_summed = IpSummed::Unnecessary;
        }
        good
    }
}

/// The sum of the pseudo header of what is `len` bytes behind an IP header.
pub(super) fn pseudo(ip: &[u8], len: usize) -> u64 {
    csum_tcpudp_nofold(word(ip, 12), word(ip, 16), len, ip[PROTOCOL])
}

/// A packet that waits for more of its flow.
#[derive(Debug)]
pub(super) struct Held {
    pub skb: Skb,
    /// As far as the layers have looked, the packet that is looked at is of its flow.
    pub same_flow: bool,
    /// Where its payload begins, from the IP header on.
    pub data_offset: usize,
    /// How many it is.
    pub count: u16,
    /// All of them had one identification.
    fixed_id: bool,
    /// In jiffies.
    age: u64,
}

impl Held {
    /// Bytes of payload.
    pub fn gro_len(&self) -> usize {
        self.skb.len() - self.data_offset
    }

    /// Whether IP's header of a packet does not follow on this one's (`inet_gro_flush`).
    pub fn inet_gro_flush(&mut self, iph: &[u8]) -> bool {
        let iph2 = self.skb.data();
        let df = half(iph, FRAG_OFF) & IP_DF;
        if iph[TTL] != iph2[TTL] || iph[1] != iph2[1] || df != half(iph2, FRAG_OFF) & IP_DF {
            return true;
        }
        let offset = half(iph, ID).wrapping_sub(half(iph2, ID));
        if self.count == 1 && df != 0 && offset == 0 {
            self.fixed_id = true;
        }
        offset != if self.fixed_id { 0 } else { self.count }
    }

    /// Merges a packet with this one, if it may be and there is room for it; whether it did (`skb_gro_receive`).
    pub fn skb_gro_receive(
        &mut self,
        cb: &mut NapiGroCb,
        stage: impl Fn(&'static str) -> Span,
    ) -> bool {
        let _stage = stage("skb_gro_receive");
        if cb.flush || self.skb.len() + cb.gro_len >= GRO_MAX_SIZE {
            return false;
        }
        let Some(mut skb) = cb.skb.take() else {
            return false;
        };
        skb.pull(cb.data_offset);
        self.skb.append(skb);
        self.count += 1;
        true
    }
}

/// Held packets of a NAPI instance, and those that are about to go up (`struct gro_node`).
#[derive(Debug, Default)]
pub(super) struct GroNode {
    /// The oldest of each list first.
    hash: [Vec<Held>; GRO_HASH_BUCKETS],
    /// A bit for each list that has any.
    bitmask: u8,
    rx_list: Vec<Skb>,
    /// Packets in there, those that were merged counted each.
    rx_count: usize,
}

impl GroNode {
    /// Looks at a packet: what is complete now, and the packet if it was neither merged nor held.
    pub fn dev_gro_receive(
        &mut self,
        skb: Skb,
        jiffies: impl Fn() -> u64,
        wants: &impl UdpGro,
        stage: impl Fn(&'static str) -> Span + Copy,
    ) -> (Option<Held>, Option<Skb>) {
        let _stage = stage("dev_gro_receive");
        match skb.protocol {
            ETH_P_IP => self.gro_receive_ip(skb, jiffies, wants, stage),
            ETH_P_8021Q => self.vlan_gro_receive(skb, jiffies, wants, stage),
            _ => (None, Some(skb)),
        }
    }

    /// The same of a tagged packet, which lies as if its tag were part of its Ethernet header as long as it is here.
    #[cold]
    fn vlan_gro_receive(
        &mut self,
        mut skb: Skb,
        jiffies: impl Fn() -> u64,
        wants: &impl UdpGro,
        stage: impl Fn(&'static str) -> Span + Copy,
    ) -> (Option<Held>, Option<Skb>) {
        let _stage = stage("vlan_gro_receive");
        if vlan_protocol(&skb) != Some(ETH_P_IP) {
            return (None, Some(skb));
        }
        skb.pull(VLAN_HLEN);
        let (complete, normal) = self.gro_receive_ip(skb, jiffies, wants, stage);
        let with_tag = |mut skb: Skb| {
            skb.push::<VLAN_HLEN>();
            skb
        };
        (complete, normal.map(with_tag))
    }

    #[inline]
    fn gro_receive_ip(
        &mut self,
        skb: Skb,
        jiffies: impl Fn() -> u64,
        wants: &impl UdpGro,
        stage: impl Fn(&'static str) -> Span + Copy,
    ) -> (Option<Held>, Option<Skb>) {
        let at = skb.hash as usize % GRO_HASH_BUCKETS;
        let list = &mut self.hash[at];
        gro_list_prepare(list, &skb);
        let mut cb = NapiGroCb {
            // What a device has merged is not to be trusted so far.
            flush: skb.gso_size != 0,
            skb: Some(skb),
            data_offset: 0,
            gro_len: 0,
        };
        let complete = inet_gro_receive(list, &mut cb, wants, stage);
        if complete.is_none() && cb.flush {
            return (None, cb.skb);
        }
        self.hold(at, complete, cb, jiffies())
    }

    /// The rest of it, for packets of flows that are merged.
    fn hold(
        &mut self,
        at: usize,
        complete: Option<usize>,
        cb: NapiGroCb,
        age: u64,
    ) -> (Option<Held>, Option<Skb>) {
        let list = &mut self.hash[at];
        let mut complete = complete.map(|nth| list.remove(nth));
        let mut normal = None;
        if cb.flush {
            normal = cb.skb;
        } else if let Some(mut skb) = cb.skb {
            if list.len() >= MAX_GRO_SKBS {
                // `gro_flush_oldest`
                complete = Some(list.remove(0));
            }
            skb.gso_size = cb.gro_len as u16;
            list.push(Held {
                skb,
                same_flow: false,
                data_offset: cb.data_offset,
                count: 1,
                fixed_id: false,
                age,
            });
        }
        self.update(at);
        (complete, normal)
    }

    fn update(&mut self, at: usize) {
        let bit = 1 << at;
        self.bitmask &= !bit;
        if !self.hash[at].is_empty() {
            self.bitmask |= bit;
        }
    }

    /// Takes the oldest packet of the first list that has one, unless it came after `before`.
    pub(super) fn take_oldest(&mut self, before: u64) -> Option<Held> {
        let at = (0..GRO_HASH_BUCKETS)
            .find(|&at| self.hash[at].first().is_some_and(|held| held.age < before))?;
        let held = self.hash[at].remove(0);
        self.update(at);
        Some(held)
    }
}

/// Who asked for datagrams in one.
pub(super) trait UdpGro {
    /// Whether the socket that a datagram is for did; address and port it comes from and goes to.
    fn asked(&self, from: (u32, u16), to: (u32, u16)) -> bool;
}

/// Finds out which held packets may be of a packet's flow: same hash, same Ethernet header.
fn gro_list_prepare(list: &mut [Held], skb: &SkBuff) {
    for held in list {
        let same = if skb.protocol == ETH_P_IP {
            held.skb.pulled::<ETH_HLEN>() == skb.pulled::<ETH_HLEN>()
        } else {
            const TAGGED: usize = ETH_HLEN + VLAN_HLEN;
            held.skb.pulled::<TAGGED>() == skb.pulled::<TAGGED>()
        };
        held.same_flow = held.skb.hash == skb.hash && held.skb.protocol == skb.protocol && same;
    }
}

/// IP's part: which held packet is complete by this one's coming.
fn inet_gro_receive(
    list: &mut [Held],
    cb: &mut NapiGroCb,
    wants: &impl UdpGro,
    stage: impl Fn(&'static str) -> Span + Copy,
) -> Option<usize> {
    let _stage = stage("inet_gro_receive");
    if !matches!(cb.data().get(PROTOCOL), Some(&(IPPROTO_TCP | IPPROTO_UDP))) {
        cb.flush = true;
        return None;
    }
    let len = cb.data().len();
    let Some(&iph) = cb.data().first_chunk::<IPHDR_LEN>() else {
        cb.flush = true;
        return None;
    };
    let frag_off = half(&iph, FRAG_OFF);
    if iph[0] != 0x45 || is_fragment(&iph) || !csum_good(csum_partial(&iph, 0)) {
        cb.flush = true;
        return None;
    }
    cb.flush |= usize::from(half(&iph, TOT_LEN)) != len || frag_off & !IP_DF != 0;
    for held in list.iter_mut() {
        let iph2 = held.skb.data();
        held.same_flow &= iph[PROTOCOL] == iph2[PROTOCOL] && iph[12..20] == iph2[12..20];
    }
    if iph[PROTOCOL] == IPPROTO_TCP {
        tcp4_gro_receive(list, cb, stage)
    } else {
        udp4_gro_receive(list, cb, wants, stage)
    }
}

/// Writes the headers of a packet that several became (`inet_gro_complete`).
fn inet_gro_complete(held: Held) -> Skb {
    let mut skb = held.skb;
    skb.close_frags();
    let len = skb.len();
    let start = skb.headroom() + IPHDR_LEN;
    let packet = skb.data_mut();
    packet[TOT_LEN..ID].copy_from_slice(&(len as u16).to_be_bytes());
    packet[CHECK..CHECK + 2].fill(0);
    let check = csum_fold(csum_partial(&packet[..IPHDR_LEN], 0));
    packet[CHECK..CHECK + 2].copy_from_slice(&check);
    let (csum_offset, gso_type) = if packet[PROTOCOL] == IPPROTO_TCP {
        tcp4_gro_complete(packet, len, held.fixed_id)
    } else {
        udp4_gro_complete(packet, len)
    };
    skb.ip_summed = IpSummed::Partial;
    (skb.csum_start, skb.csum_offset) = (start, csum_offset);
    (skb.gso_type, skb.gso_segs) = (gso_type, held.count);
    skb
}

/// A packet as it goes up, and how many it is.
pub(super) fn napi_gro_complete(held: Held) -> (Skb, u16) {
    let count = held.count;
    let mut skb = if count > 1 {
        inet_gro_complete(held)
    } else {
        let mut skb = held.skb;
        skb.gso_size = 0;
        skb
    };
    if skb.protocol == ETH_P_8021Q {
        // `vlan_gro_complete`
        skb.push::<VLAN_HLEN>();
    }
    (skb, count)
}

/// The kernel's sockets.
struct UdpSockets<'a>(&'a PortTable<u32>, &'a SockTable);

impl UdpGro for UdpSockets<'_> {
    fn asked(&self, from: (u32, u16), to: (u32, u16)) -> bool {
        let found = self.0.lookup(from, to, ());
        found
            .and_then(|at| self.1.get(at))
            .is_some_and(|sk| sk.gro_enabled)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A packet from the driver.
    #[inline]
    pub(crate) fn napi_gro_receive(&mut self, vq: usize, skb: Skb) {
        let _stage = self.stage("napi_gro_receive");
        self.counters.rx_packets += 1;
        if self.is_never_merged(&skb) {
            return self.gro_normal_one(vq, skb, 1);
        }
        self.napi_gro_receive_slow(vq, skb);
    }

    /// Whether a packet is a datagram, and no socket has asked for several in one: then nothing comes of looking at it
    /// further, whatever its headers say.
    #[inline(always)] // for each packet
    fn is_never_merged(&self, skb: &SkBuff) -> bool {
        let of_udp = skb.data().get(PROTOCOL) == Some(&IPPROTO_UDP);
        if self.udp_gro_needed || skb.protocol != ETH_P_IP || !of_udp {
            return false;
        }
        let _dev = self.stage("dev_gro_receive");
        let _inet = self.stage("inet_gro_receive");
        let _udp = (!is_fragment(skb.data())).then(|| self.stage("udp_gro_receive"));
        true
    }

    #[cold]
    fn napi_gro_receive_slow(&mut self, vq: usize, skb: Skb) {
        let (machine, cpu) = (&self.machine, self.cpu);
        let tracer = machine.tracer();
        let wants = UdpSockets(&self.udp_table, &self.socks);
        let (complete, normal) = self.napi[vq].gro.dev_gro_receive(
            skb,
            || nsecs_to_jiffies(machine.now()),
            &wants,
            |name| Span::of(tracer, name, cpu),
        );
        if let Some(held) = complete {
            self.napi_gro_complete(vq, held);
        }
        if let Some(skb) = normal {
            self.gro_normal_one(vq, skb, 1);
        }
    }

    #[cold]
    fn napi_gro_complete(&mut self, vq: usize, held: Held) {
        let _stage = self.stage("napi_gro_complete");
        let (skb, count) = napi_gro_complete(held);
        self.counters.gro_merged += u64::from(count) - 1;
        self.changed("gso_segs", || format!("{count}, {} bytes", skb.len()));
        self.gro_normal_one(vq, skb, count.into());
    }

    /// Puts a packet with those that go up together; `segs` it stands for.
    #[inline]
    fn gro_normal_one(&mut self, vq: usize, skb: Skb, segs: usize) {
        let gro = &mut self.napi[vq].gro;
        gro.rx_list.push(skb);
        gro.rx_count += segs;
        let (len, count) = (gro.rx_list.len(), gro.rx_count);
        self.changed("rx_list", || format!("{} -> {len} packets", len - 1));
        if count >= self.config.gro_normal_batch {
            self.gro_normal_list(vq);
        }
    }

    /// Gives what was gathered to the stack.
    #[inline]
    pub(super) fn gro_normal_list(&mut self, vq: usize) {
        let gro = &mut self.napi[vq].gro;
        if gro.rx_list.is_empty() {
            return;
        }
        gro.rx_count = 0;
        // Taken out for the time of the call, because the stack may need all of the kernel to
        // answer; nobody adds to the list meanwhile.
        let mut list = std::mem::take(&mut gro.rx_list);
        self.netif_receive_skb_list_internal(&mut list);
        self.napi[vq].gro.rx_list = list;
    }

    /// What is held back goes up; with `flush_old` only what came in an earlier jiffy.
    #[inline]
    pub(super) fn napi_gro_flush(&mut self, vq: usize, flush_old: bool) {
        if self.napi[vq].gro.bitmask != 0 {
            self.__napi_gro_flush(vq, flush_old);
        }
    }

    #[cold]
    fn __napi_gro_flush(&mut self, vq: usize, flush_old: bool) {
        let before = if flush_old { self.jiffies() } else { u64::MAX };
        while let Some(held) = self.napi[vq].gro.take_oldest(before) {
            self.napi_gro_complete(vq, held);
        }
    }
}
