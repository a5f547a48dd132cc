//! Socket buffers (Linux: `include/linux/skbuff.h`, `net/core/skbuff.c`).
//!
//! A [`SkBuff`] owns one linear buffer, with room before its data for headers still to come: they
//! are pushed on the way out and pulled on the way in, and no byte moves. Packets that were merged with it
//! hang on its fragment list, and their data follows on its own. Buffers are boxed, so that
//! a packet changes queues by pointer, and go back to a cache when they end (`napi_skb_cache`): in
//! steady state no packet costs an allocation. How an skb ends is counted by whoever ends it.

use super::eth::ETH_HLEN;
use super::ip_input::{IPHDR_LEN, Iphdr};
use super::ip_options::IpOptions;
use super::ipv6::Ipv6hdr;
use super::netdevice::Ifindex;
use super::route::{RtType, Rtable};
use super::sock::SkRef;
use super::vlan::VlanTag;
use crate::virtio_net::gso::{SKB_GSO_UDP_L4, SkbSharedInfo};

/// Room before the data of a received frame (`NET_SKB_PAD`).
pub(crate) const NET_SKB_PAD: usize = 64;
/// Room before the transport header of a packet to send: Ethernet, IP, and what may come later.
pub(crate) const MAX_HEADER: usize = 128;
/// Shortest buffer: holds any frame of ordinary size, so that the cache serves all of them.
const MIN_HEAD: usize = 2048;
/// What Linux charges a socket beside the bytes: `sk_buff` and `skb_shared_info`, rounded up.
const SKB_OVERHEAD: usize = 256 + 320;
/// Linux rounds buffers up to cache lines (`SKB_DATA_ALIGN`).
const SMP_CACHE_BYTES: usize = 64;

/// What Linux would charge a socket for a buffer of `size` bytes (`SKB_TRUESIZE`). Ours are
/// longer, but a socket's limits are to have Linux's effect.
#[inline]
pub(crate) fn skb_truesize(size: usize) -> usize {
    size.next_multiple_of(SMP_CACHE_BYTES) + SKB_OVERHEAD
}

/// What is known about a packet's checksum (`skb->ip_summed`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum IpSummed {
    /// Nothing: whoever cares sums.
    #[default]
    None,
    /// The device verified it.
    Unnecessary,
    /// Only the pseudo header is in it; the device that sends the packet does the rest. A packet
    /// received so never was on a wire.
    Partial,
}

/// To whom a frame was sent (`skb->pkt_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PktType {
    /// To this host (`PACKET_HOST`).
    #[default]
    Host,
    /// To all hosts (`PACKET_BROADCAST`).
    Broadcast,
    /// To a group (`PACKET_MULTICAST`).
    Multicast,
    /// To another host (`PACKET_OTHERHOST`).
    OtherHost,
    /// By this host, as a packet socket sees it (`PACKET_OUTGOING`).
    Outgoing,
    /// Sent by this host to many, of which it is one.
    Loopback,
}

/// A boxed socket buffer: what is passed about.
pub(crate) type Skb = Box<SkBuff>;

/// A packet on its way.
#[derive(Debug, Default)]
pub(crate) struct SkBuff {
    head: Box<[u8]>,
    data: usize,
    tail: usize,
    /// The first of the packets whose data follows on the linear part (`skb_shared_info.frag_list`).
    frag_list: Option<Skb>,
    /// The next one on such a list.
    next: Option<Skb>,
    /// Bytes in there.
    data_len: usize,
    /// Offset of the IP header in the buffer.
    pub network_header: usize,
    /// Offset of the transport's header in the buffer, of packets that this host makes.
    pub transport_header: usize,
    /// Ethertype.
    pub protocol: u16,
    pub pkt_type: PktType,
    /// The VLAN tag that is not in its data.
    pub vlan_tag: Option<VlanTag>,
    pub ip_summed: IpSummed,
    /// With [`IpSummed::Partial`]: where summing begins, as an offset in the buffer.
    pub csum_start: usize,
    /// Where, from there, the checksum is stored.
    pub csum_offset: u16,
    /// Payload of each segment, of packets that stand for several; else 0, and so is what follows.
    pub gso_size: u16,
    /// `SKB_GSO_*`.
    pub gso_type: u32,
    /// How many segments.
    pub gso_segs: u16,
    /// Hash of the flow, 0 where nobody made one.
    pub hash: u32,
    /// The hash is of the ports, too.
    pub l4_hash: bool,
    /// Bytes that the socket which holds it is charged.
    pub truesize: usize,
    /// The sending socket, which is charged until the packet is gone.
    pub sk: Option<SkRef>,
    /// The IP header of a packet that was received, once it was checked.
    pub ip: Iphdr,
    /// The options in there, where it has any.
    pub opt: IpOptions,
    /// The same of an IPv6 packet; of no other one is it looked at.
    pub ip6: Ipv6hdr,
    /// The device that it came by or goes to.
    pub dev: Ifindex,
    /// Where the route leads, once it was looked up.
    pub dst: Option<Rtable>,
    /// How urgent it is (`TC_PRIO_*`); 0 is best effort.
    pub priority: u32,
    /// The receive queue that it came by, from 1 on, 0 for none (`skb_record_rx_queue`); of one to send the transmit
    /// queue that it is for, from 0 on, once that was chosen.
    pub queue_mapping: u16,
    /// When it was put into a queue: a socket's, or a discipline's.
    pub tstamp: u64,
}

impl SkBuff {
    /// The packet from the header on that its present layer sees; of one with fragments the linear part.
    #[inline]
    pub fn data(&self) -> &[u8] {
        &self.head[self.data..self.tail]
    }

    /// The same, to write to.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.head[self.data..self.tail]
    }

    /// Bytes of [`Self::data`], and of the fragments behind it.
    #[inline]
    pub fn len(&self) -> usize {
        self.tail - self.data + self.data_len
    }

    /// Whether there are fragments.
    #[inline]
    pub fn is_nonlinear(&self) -> bool {
        self.data_len != 0
    }

    /// The `N` bytes that were pulled last: the header of the layer below.
    #[inline]
    pub fn pulled<const N: usize>(&self) -> Option<&[u8; N]> {
        self.head[..self.data].last_chunk()
    }

    /// Has the data of `frag` follow on what is there, once [`Self::close_frags`] says that no more comes; who holds the
    /// packet is charged for both.
    pub fn append(&mut self, mut frag: Skb) {
        self.data_len += frag.len();
        self.truesize += frag.truesize;
        // The last comes first so far: its place is known.
        frag.next = self.frag_list.take();
        self.frag_list = Some(frag);
    }

    /// Puts fragments into order, after the last one.
    pub fn close_frags(&mut self) {
        let mut rest = self.frag_list.take();
        while let Some(mut frag) = rest {
            rest = std::mem::replace(&mut frag.next, self.frag_list.take());
            self.frag_list = Some(frag);
        }
    }

    /// Copies as many bytes as `to` has, and as there are from `offset` on (`skb_copy_bits`); how many.
    pub fn copy_bits(&self, offset: usize, to: &mut [u8]) -> usize {
        let (mut skip, mut copied) = (offset, 0);
        let first = self.frag_list.as_deref();
        let frags = std::iter::successors(first, |frag| frag.next.as_deref());
        for skb in std::iter::once(self).chain(frags) {
            let piece = skb.data();
            let from = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            let rest = &mut to[copied..];
            let len = from.len().min(rest.len());
            rest[..len].copy_from_slice(&from[..len]);
            copied += len;
        }
        copied
    }

    /// Bytes from the IP header on, with those of the fragments, whatever was pulled since.
    pub fn network_len(&self) -> usize {
        self.data - self.network_header.min(self.data) + self.len()
    }

    /// Copies the packet from its IP header on, with its fragments, to `to`, which is as long.
    pub fn copy_network(&self, to: &mut [u8]) {
        let header = &self.head[self.network_header.min(self.data)..self.data];
        let (before, behind) = to.split_at_mut(header.len());
        before.copy_from_slice(header);
        self.copy_bits(0, behind);
    }

    /// Room before the data (`skb_headroom`).
    #[inline]
    pub fn headroom(&self) -> usize {
        self.data
    }

    /// The packet from its IP header on, whatever was pulled since.
    pub fn network(&self) -> &[u8] {
        &self.head[self.network_header.min(self.tail)..self.tail]
    }

    /// The same, to write to.
    pub fn network_mut(&mut self) -> &mut [u8] {
        &mut self.head[self.network_header.min(self.tail)..self.tail]
    }

    /// The Ethernet header of a packet that was received, which was pulled (`eth_hdr`).
    pub fn mac_header(&self) -> Option<&[u8; ETH_HLEN]> {
        self.head[..self.data].last_chunk()
    }

    /// The packet from its Ethernet header on, and from `before` bytes before that.
    pub fn mac_frame_mut(&mut self, before: usize) -> Option<&mut [u8]> {
        let at = self.data.checked_sub(ETH_HLEN + before)?;
        self.head.get_mut(at..self.tail)
    }

    /// Sets the headroom of an empty buffer (`skb_reserve`).
    ///
    /// # Panics
    /// When the buffer is shorter: its maker knows how long it is.
    #[inline]
    fn reserve(&mut self, len: usize) {
        assert!(len <= self.head.len(), "skb_reserve beyond the buffer");
        (self.data, self.tail) = (len, len);
    }

    /// Makes room for `len` bytes behind the data and lends them (`skb_put`).
    ///
    /// # Panics
    /// When the buffer was made too short (`skb_over_panic`).
    #[inline]
    pub fn put(&mut self, len: usize) -> &mut [u8] {
        let tail = self.tail;
        self.tail += len;
        &mut self.head[tail..self.tail]
    }

    /// Takes `len` bytes of headroom for a header and lends them (`skb_push`).
    ///
    /// # Panics
    /// When there is no such room (`skb_under_panic`).
    #[inline]
    pub fn push<const N: usize>(&mut self) -> &mut [u8; N] {
        self.data -= N;
        self.head[self.data..]
            .first_chunk_mut()
            .expect("the buffer did not end before the header")
    }

    /// The same for a header whose length is not always the same.
    pub fn push_slice(&mut self, header: &[u8]) {
        self.data -= header.len();
        self.head[self.data..][..header.len()].copy_from_slice(header);
    }

    /// Takes a header off (`skb_pull`); nothing happens when the packet is shorter.
    #[inline]
    pub fn pull(&mut self, len: usize) {
        self.data = (self.data + len).min(self.tail);
    }

    /// Cuts the packet off behind `len` bytes (`pskb_trim`).
    #[inline]
    pub fn trim(&mut self, len: usize) {
        if self.data_len != 0 {
            self.trim_frags(len);
        }
        self.tail = self.tail.min(self.data + len);
    }

    #[cold]
    fn trim_frags(&mut self, len: usize) {
        let mut left = len.saturating_sub(self.tail - self.data);
        self.data_len = self.data_len.min(left);
        let mut next = self.frag_list.as_deref_mut();
        while let Some(frag) = next {
            frag.trim(left);
            left -= frag.len();
            next = frag.next.as_deref_mut();
        }
    }

    /// What is known of its segments, of which there are several (`skb_shinfo`).
    pub fn shared_info(&self) -> SkbSharedInfo {
        SkbSharedInfo {
            gso_type: self.gso_type,
            gso_size: self.gso_size,
            gso_segs: self.gso_segs,
        }
    }

    /// Whether what it stands for are datagrams that can be told apart: its headers are known to be the usual ones, and
    /// their checksums are still to be made.
    #[inline]
    pub fn is_udp_gso(&self) -> bool {
        self.gso_type & SKB_GSO_UDP_L4 != 0
            && self.ip_summed == IpSummed::Partial
            && (self.csum_start, self.csum_offset) == (self.network_header + IPHDR_LEN, 6)
    }

    /// Takes over what `whole`, of which it is a part, was found to be (`__copy_skb_header`).
    pub fn inherit(&mut self, whole: &Self) {
        (self.protocol, self.pkt_type) = (whole.protocol, whole.pkt_type);
        self.vlan_tag = whole.vlan_tag;
        (self.ip, self.dst, self.dev) = (whole.ip, whole.dst, whole.dev);
        (self.opt, self.ip6) = (whole.opt, whole.ip6);
        (self.hash, self.l4_hash) = (whole.hash, whole.l4_hash);
        (self.priority, self.queue_mapping) = (whole.priority, whole.queue_mapping);
    }

    /// What its route leads to; this host, as long as it was not looked up.
    #[inline]
    pub fn rt_type(&self) -> RtType {
        self.dst.map_or(RtType::Local, |rt| rt.rt_type)
    }

    /// Notes that the IP header begins here (`skb_reset_network_header`).
    #[inline]
    pub fn reset_network_header(&mut self) {
        self.network_header = self.data;
    }
}

/// Buffers that wait for their next packet (`napi_skb_cache`). As many as were ever in use at once:
/// the queues that hold skbs have bounds of their own.
#[derive(Debug, Default)]
pub(crate) struct SkbCache {
    free: Vec<Skb>,
    /// Long ones, apart, so that short packets do not have all of them grow in time.
    large: Vec<Skb>,
}

impl SkbCache {
    /// An empty skb with `headroom` and room for `len` bytes (`alloc_skb`, `skb_reserve`).
    #[inline]
    pub fn alloc(&mut self, headroom: usize, len: usize) -> Skb {
        self.alloc_charged(headroom, len, skb_truesize(headroom + len))
    }

    /// The same, for which a socket is charged `truesize`.
    #[inline]
    pub fn alloc_charged(&mut self, headroom: usize, len: usize, truesize: usize) -> Skb {
        let size = headroom + len;
        let free = if size <= MIN_HEAD {
            &mut self.free
        } else {
            &mut self.large
        };
        let mut skb = match free.pop() {
            Some(skb) if skb.head.len() >= size => skb,
            small => Self::grow(small, size),
        };
        skb.reserve(headroom);
        skb.truesize = truesize;
        skb.ip_summed = IpSummed::None;
        skb.pkt_type = PktType::Host;
        (skb.gso_size, skb.gso_type, skb.gso_segs) = (0, 0, 0);
        (skb.ip, skb.opt) = (Iphdr::default(), IpOptions::default());
        skb.hash = 0;
        skb.l4_hash = false;
        skb.priority = 0;
        skb.queue_mapping = 0;
        skb.sk = None;
        skb.dst = None;
        skb.vlan_tag = None;
        skb
    }

    /// Makes room for `len` bytes behind the data (`pskb_expand_head`), for as much again where there is none: who puts bytes
    /// there one after the other does not copy all of them each time.
    pub fn expand_tail(&mut self, skb: &mut Skb, len: usize) {
        if skb.head.len() - skb.tail >= len {
            return;
        }
        let old = skb.tail - skb.data;
        let mut longer = self.alloc_charged(skb.data, old + len.max(old), skb.truesize);
        longer.put(old).copy_from_slice(skb.data());
        longer.transport_header = skb.transport_header;
        (longer.sk, longer.priority) = (skb.sk, skb.priority);
        self.put(std::mem::replace(skb, longer));
    }

    /// Gives an skb, or a new one, a buffer of at least `size` bytes.
    #[cold]
    fn grow(small: Option<Skb>, size: usize) -> Skb {
        let mut skb = small.unwrap_or_default();
        skb.head = vec![0; size.max(MIN_HEAD).next_multiple_of(MIN_HEAD)].into();
        skb
    }

    /// A copy for one more receiver, with what was pulled (`skb_clone`).
    pub fn clone_skb(&mut self, skb: &SkBuff) -> Skb {
        let mut copy = self.alloc(skb.headroom(), skb.len());
        copy.head[..skb.data].copy_from_slice(&skb.head[..skb.data]);
        skb.copy_bits(0, copy.put(skb.len()));
        copy.inherit(skb);
        (copy.ip_summed, copy.truesize) = (skb.ip_summed, skb.truesize);
        (copy.gso_size, copy.gso_type, copy.gso_segs) = (skb.gso_size, skb.gso_type, skb.gso_segs);
        (copy.csum_start, copy.csum_offset) = (skb.csum_start, skb.csum_offset);
        (copy.network_header, copy.transport_header) = (skb.network_header, skb.transport_header);
        copy
    }

    /// Takes an skb back (`napi_skb_cache_put`), and its fragments.
    #[inline]
    pub fn put(&mut self, mut skb: Skb) {
        if skb.frag_list.is_some() {
            self.put_frags(&mut skb);
        }
        if skb.head.len() <= MIN_HEAD {
            self.free.push(skb);
        } else {
            self.large.push(skb);
        }
    }

    #[cold]
    fn put_frags(&mut self, skb: &mut SkBuff) {
        skb.data_len = 0;
        let mut next = skb.frag_list.take();
        while let Some(mut frag) = next {
            next = frag.next.take();
            self.put(frag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pushed_and_pulled_in_place() {
        let mut cache = SkbCache::default();
        let mut skb = cache.alloc(MAX_HEADER, 100);
        skb.put(100).fill(7);
        *skb.push::<4>() = [1, 2, 3, 4];
        assert_eq!(skb.len(), 104);
        assert_eq!(skb.data()[..5], [1, 2, 3, 4, 7]);
        skb.pull(4);
        skb.trim(50);
        assert_eq!(skb.data(), [7; 50]);
        skb.pull(51);
        assert_eq!(skb.len(), 0);
        skb.trim(1000);
        assert_eq!(skb.len(), 0);
    }

    #[test]
    fn buffers_come_back_from_the_cache_as_new() {
        let mut cache = SkbCache::default();
        let mut skb = cache.alloc(64, 60);
        skb.put(60);
        (skb.ip_summed, skb.pkt_type) = (IpSummed::Partial, PktType::OtherHost);
        (skb.gso_size, skb.gso_type, skb.gso_segs) = (9, SKB_GSO_UDP_L4, 9);
        (skb.hash, skb.l4_hash, skb.priority, skb.queue_mapping) = (9, true, 6, 2);
        skb.dst = Some(Rtable::default());
        (skb.ip.hdr_len, skb.ip.saddr) = (32, 9);
        skb.opt.rr = 22;
        let first = skb.head.as_ptr();
        cache.put(skb);
        let skb = cache.alloc(64, 1518);
        assert_eq!(skb.head.as_ptr(), first, "a new buffer");
        assert_eq!((skb.len(), skb.headroom()), (0, 64));
        assert_eq!((skb.gso_size, skb.gso_type, skb.gso_segs), (0, 0, 0));
        assert_eq!((skb.hash, skb.l4_hash), (0, false));
        assert_eq!((skb.priority, skb.queue_mapping), (0, 0));
        assert_eq!((skb.dst, skb.vlan_tag), (None, None));
        assert_eq!(skb.sk, None);
        assert_eq!((skb.ip, skb.opt), Default::default());
        assert_eq!(
            (skb.ip_summed, skb.pkt_type),
            (IpSummed::None, PktType::Host)
        );
        cache.put(skb);
        // A long one has another, which it keeps.
        let mut skb = cache.alloc(64, 9000);
        assert_eq!(skb.put(9000).len(), 9000);
        let long = skb.head.as_ptr();
        cache.put(skb);
        let short = cache.alloc(64, 60);
        assert_eq!(short.head.as_ptr(), first);
        assert_eq!(cache.alloc(64, 9000).head.as_ptr(), long);
    }

    #[test]
    fn fragments_follow_on_the_linear_part() {
        let mut cache = SkbCache::default();
        let mut piece = |bytes: &[u8]| {
            let mut skb = cache.alloc(64, bytes.len());
            skb.put(bytes.len()).copy_from_slice(bytes);
            skb
        };
        let mut skb = piece(&[0, 1, 2, 3]);
        let alone = skb.truesize;
        skb.append(piece(&[4, 5]));
        skb.append(piece(&[6, 7, 8]));
        skb.close_frags();
        assert_eq!((skb.len(), skb.truesize), (9, 3 * alone));
        for from in 0..11 {
            for len in 0..11 {
                let mut to = vec![0xff; len];
                let copied = skb.copy_bits(from, &mut to);
                let want: Vec<u8> = (from as u8..9).take(len).collect();
                assert_eq!(to[..copied], want, "{len} from {from}");
            }
        }
        skb.pull(1);
        skb.trim(6);
        let mut all = [0; 9];
        assert_eq!((skb.len(), skb.copy_bits(0, &mut all)), (6, 6));
        assert_eq!(all[..6], [1, 2, 3, 4, 5, 6]);
        skb.queue_mapping = 3;
        let copy = cache.clone_skb(&skb);
        assert_eq!(copy.data(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(copy.queue_mapping, 3, "a reader polls where it came by");
        skb.trim(2);
        assert_eq!((skb.len(), skb.data()), (2, &[1, 2][..]));
        cache.put(skb);
        assert_eq!(cache.free.len(), 3, "the fragments come back, too");
        let again = cache.alloc(64, 10);
        assert!(!again.is_nonlinear());
    }

    #[test]
    fn long_fragments_are_kept_where_long_ones_are_looked_for() {
        let mut cache = SkbCache::default();
        for _ in 0..10 {
            let mut whole = cache.alloc(64, 9000);
            for _ in 0..6 {
                let mut frag = cache.alloc(64, 9000);
                frag.put(9000);
                // Part of what was merged may have been merged before.
                let mut rest = cache.alloc(64, 60);
                rest.put(60);
                frag.append(rest);
                whole.append(frag);
            }
            whole.close_frags();
            assert_eq!(whole.len(), 6 * 9060);
            cache.put(whole);
            assert_eq!((cache.large.len(), cache.free.len()), (7, 6));
        }
    }

    #[test]
    fn the_charge_is_linuxs() {
        // GOOD_COPY_LEN with its headroom, as for a short frame in mergeable buffers.
        assert_eq!(skb_truesize(128 + NET_SKB_PAD), 768);
    }
}
