//! Socket buffers (Linux: `include/linux/skbuff.h`, `net/core/skbuff.c`).
//!
//! A [`SkBuff`] owns one linear buffer, with room before its data for headers still to come: they
//! are pushed on the way out and pulled on the way in, and no byte moves. Buffers are boxed, so that
//! a packet changes queues by pointer, and go back to a cache when they end (`napi_skb_cache`): in
//! steady state no packet costs an allocation. How an skb ends is counted by whoever ends it.

use super::ip_input::Iphdr;
use super::route::RtType;
use super::sock::SkRef;
use crate::virtio_net::gso::SkbSharedInfo;

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
pub(crate) enum PktType {
    #[default]
    Host,
    Broadcast,
    Multicast,
    OtherHost,
}

/// A boxed socket buffer: what is passed about.
pub(crate) type Skb = Box<SkBuff>;

/// A packet on its way.
#[derive(Debug, Default)]
pub(crate) struct SkBuff {
    head: Box<[u8]>,
    data: usize,
    tail: usize,
    /// Offset of the IP header in the buffer.
    pub network_header: usize,
    /// Ethertype.
    pub protocol: u16,
    pub pkt_type: PktType,
    pub ip_summed: IpSummed,
    /// With [`IpSummed::Partial`]: where summing begins, as an offset in the buffer.
    pub csum_start: usize,
    /// Where, from there, the checksum is stored.
    pub csum_offset: u16,
    /// Payload of each segment, of packets that stand for several; else 0, and what follows says nothing.
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
    /// The IP header, once it was checked.
    pub ip: Iphdr,
    /// Where the route led, once it was looked up.
    pub rt_type: RtType,
    /// When it was put into a socket's queue.
    pub tstamp: u64,
}

impl SkBuff {
    /// The packet from the header on that its present layer sees.
    #[inline]
    pub fn data(&self) -> &[u8] {
        &self.head[self.data..self.tail]
    }

    /// The same, to write to.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.head[self.data..self.tail]
    }

    /// Bytes of [`Self::data`].
    #[inline]
    pub fn len(&self) -> usize {
        self.tail - self.data
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

    /// Takes a header off (`skb_pull`); nothing happens when the packet is shorter.
    #[inline]
    pub fn pull(&mut self, len: usize) {
        self.data = (self.data + len).min(self.tail);
    }

    /// Cuts the packet off behind `len` bytes (`pskb_trim`).
    #[inline]
    pub fn trim(&mut self, len: usize) {
        self.tail = self.tail.min(self.data + len);
    }

    /// What is known of its segments, of which there are several (`skb_shinfo`).
    pub fn shared_info(&self) -> SkbSharedInfo {
        SkbSharedInfo {
            gso_type: self.gso_type,
            gso_size: self.gso_size,
            gso_segs: self.gso_segs,
        }
    }

    /// Takes over what `whole`, of which it is a part, was found to be (`__copy_skb_header`).
    pub fn inherit(&mut self, whole: &Self) {
        (self.protocol, self.pkt_type) = (whole.protocol, whole.pkt_type);
        (self.ip, self.rt_type) = (whole.ip, whole.rt_type);
        (self.hash, self.l4_hash) = (whole.hash, whole.l4_hash);
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
        let mut skb = match self.free.pop() {
            Some(skb) if skb.head.len() >= size => skb,
            small => Self::grow(small, size),
        };
        skb.reserve(headroom);
        skb.truesize = truesize;
        skb.ip_summed = IpSummed::None;
        skb.pkt_type = PktType::Host;
        skb.gso_size = 0;
        skb.hash = 0;
        skb.l4_hash = false;
        skb.sk = None;
        skb
    }

    /// Gives an skb, or a new one, a buffer of at least `size` bytes.
    #[cold]
    fn grow(small: Option<Skb>, size: usize) -> Skb {
        let mut skb = small.unwrap_or_default();
        skb.head = vec![0; size.max(MIN_HEAD).next_multiple_of(MIN_HEAD)].into();
        skb
    }

    /// A copy for one more receiver, from the present header on (`skb_clone`).
    pub fn clone_skb(&mut self, skb: &SkBuff) -> Skb {
        let mut copy = self.alloc(skb.headroom(), skb.len());
        copy.put(skb.len()).copy_from_slice(skb.data());
        copy.inherit(skb);
        (copy.ip_summed, copy.truesize) = (skb.ip_summed, skb.truesize);
        copy.network_header = copy.headroom();
        copy
    }

    /// Takes an skb back (`napi_skb_cache_put`).
    #[inline]
    pub fn put(&mut self, skb: Skb) {
        self.free.push(skb);
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
        (skb.ip_summed, skb.pkt_type, skb.gso_size) = (IpSummed::Partial, PktType::OtherHost, 9);
        (skb.hash, skb.l4_hash) = (9, true);
        let first = skb.head.as_ptr();
        cache.put(skb);
        let skb = cache.alloc(64, 1518);
        assert_eq!(skb.head.as_ptr(), first, "a new buffer");
        assert_eq!((skb.len(), skb.headroom(), skb.gso_size), (0, 64, 0));
        assert_eq!((skb.hash, skb.l4_hash), (0, false));
        assert_eq!(
            (skb.ip_summed, skb.pkt_type),
            (IpSummed::None, PktType::Host)
        );
        cache.put(skb);
        // A long one makes the buffer grow, once.
        let mut skb = cache.alloc(64, 9000);
        assert_eq!(skb.put(9000).len(), 9000);
    }

    #[test]
    fn the_charge_is_linuxs() {
        // GOOD_COPY_LEN with its headroom, as for a short frame in mergeable buffers.
        assert_eq!(skb_truesize(128 + NET_SKB_PAD), 768);
    }
}
