//! Fragments that wait for the rest of their packet (Linux: `net/ipv4/inet_fragment.c`).
//!
//! In: fragments and where they belong. Out: all of a packet's, once none is missing. A queue is one packet; what it holds
//! is kept in order of arrival, and beside it the runs of octets that are covered. A fragment that is there already is a
//! duplicate, one that is there in part makes its queue worthless (RFC 5722). Memory is bounded: once
//! `ipfrag_high_thresh` is passed nothing more is taken. Queues that end well are kept for their memory, within bounds.

use std::collections::{HashMap, VecDeque};

use super::skbuff::{IpSummed, NET_SKB_PAD, Skb};
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// What a queue is charged with before it holds anything (`struct ipq`).
const QUEUE_SIZE: usize = 208;

/// Bytes that places without a packet keep at most, all together: those of a few packets with many fragments.
const SPARE_MAX: usize = 64 << 10;

/// Fragments of one packet have this in common (`struct frag_v4_compare_key`, `struct frag_v6_compare_key`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct FragKey {
    pub saddr: u128,
    pub daddr: u128,
    pub id: u32,
    /// Of IPv4.
    pub protocol: u8,
    /// The device, where addresses mean something on a link only; else 0.
    pub iif: u16,
}

/// Whose queues: those of IPv4 or of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frags {
    Ip,
    Ip6,
}

/// Why a fragment is not added to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// All of it is there (`IPFRAG_DUP`).
    Duplicate,
    /// Some of it is there (`IPFRAG_OVERLAP`).
    Overlap,
}

/// A packet of which something is missing (`struct inet_frag_queue`).
#[derive(Debug, Default)]
pub(super) struct FragQueue {
    pub key: FragKey,
    /// When it is given up; `None` where there is no packet.
    pub expires: Option<u64>,
    /// The fragment at 0 is there.
    pub first_in: bool,
    /// The last one is there.
    last_in: bool,
    /// Octets of the whole payload, as far as is known, and those that are there.
    pub len: usize,
    meat: usize,
    /// What the fragments say of congestion, as a set.
    pub ecn: u8,
    /// The sender's count of fragments when one of this packet came last, if they are counted.
    rid: Option<u32>,
    /// Fragments with the octet of the payload that they begin at.
    pub fragments: Vec<(usize, Skb)>,
    /// Octets that are covered without a gap, from and to, in order.
    runs: Vec<(usize, usize)>,
    /// What is charged for it.
    mem: usize,
}

impl FragQueue {
    /// Whether a fragment that ends at `end` agrees with those before about the length of the whole; `more` follow it.
    pub fn agrees(&mut self, end: usize, more: bool) -> bool {
        if more {
            if self.last_in && end > self.len {
                return false;
            }
            self.len = self.len.max(end);
            return true;
        }
        if end < self.len || self.last_in && end != self.len {
            return false;
        }
        (self.last_in, self.len) = (true, end);
        true
    }

    /// Covers the octets of a fragment (`inet_frag_queue_insert`).
    ///
    /// # Errors
    /// They are covered already, all or some.
    pub fn insert(&mut self, offset: usize, end: usize) -> Result<(), Refused> {
        if let Some(last) = self.runs.last_mut()
            && end > last.1
        {
            // The usual case: it comes behind all others.
            if offset < last.1 {
                return Err(Refused::Overlap);
            }
            if offset == last.1 {
                last.1 = end;
            } else {
                self.runs.push((offset, end));
            }
            return Ok(());
        }
        let at = self.runs.partition_point(|run| run.1 <= offset);
        match self.runs.get(at) {
            Some(run) if run.0 <= offset && end <= run.1 => Err(Refused::Duplicate),
            Some(run) if run.0 < end => Err(Refused::Overlap),
            _ => {
                self.runs.insert(at, (offset, end));
                Ok(())
            }
        }
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.first_in && self.last_in && self.meat == self.len
    }

    /// Bytes that its fragments and runs have room in, whether they are there or not.
    fn spare(&self) -> usize {
        self.fragments.capacity() * size_of::<(usize, Skb)>()
            + self.runs.capacity() * size_of::<(usize, usize)>()
    }

    /// Gives that room back.
    fn free_spare(&mut self) {
        (self.fragments, self.runs) = (Vec::new(), Vec::new());
    }

    /// Forgets what it knew of the fragments, which are still there.
    fn clear(&mut self) {
        (self.first_in, self.last_in) = (false, false);
        (self.len, self.meat, self.ecn) = (0, 0, 0);
        self.runs.clear();
    }
}

/// How many fragments a host sent, as long as any of them waits (`struct inet_peer`).
#[derive(Debug, Default)]
struct Peer {
    rid: u32,
    queues: u32,
}

/// All queues (`struct fqdir`).
#[derive(Debug, Default)]
pub(super) struct Fqdir {
    queues: Vec<FragQueue>,
    /// Places in `queues` without a packet; those with memory are at the end.
    free: VecDeque<usize>,
    /// Bytes that they keep.
    spare: usize,
    hash: HashMap<FragKey, usize>,
    peers: HashMap<u128, Peer>,
    /// Bytes that are charged (`FRAG: memory` in `/proc/net/sockstat`).
    mem: usize,
    /// Not after the earliest `expires`.
    timer: Option<u64>,
}

impl Fqdir {
    pub fn next_timer(&self) -> Option<u64> {
        self.timer
    }

    pub fn mem(&self) -> usize {
        self.mem
    }

    /// Packets of which something is missing.
    pub fn waiting(&self) -> usize {
        self.hash.len()
    }

    /// The queue of a packet, a new one until `expires` if there is none.
    pub fn find_or_create(&mut self, key: FragKey, expires: u64) -> usize {
        if let Some(&at) = self.hash.get(&key) {
            return at;
        }
        let at = self.free.pop_back().unwrap_or_else(|| {
            self.queues.push(FragQueue::default());
            self.queues.len() - 1
        });
        let queue = &mut self.queues[at];
        self.spare -= queue.spare();
        (queue.key, queue.mem) = (key, QUEUE_SIZE);
        self.mem += QUEUE_SIZE;
        self.hash.insert(key, at);
        self.set_timer(at, expires);
        at
    }

    pub fn set_timer(&mut self, at: usize, expires: u64) {
        self.queues[at].expires = Some(expires);
        self.timer = Some(self.timer.map_or(expires, |timer| timer.min(expires)));
    }

    pub fn queue(&mut self, at: usize) -> &mut FragQueue {
        &mut self.queues[at]
    }

    /// Counts a fragment of the queue's sender; how many of his came since the last one of this packet.
    pub fn distance(&mut self, at: usize) -> u32 {
        let queue = &mut self.queues[at];
        let peer = self.peers.entry(queue.key.saddr).or_default();
        let start = queue.rid.unwrap_or_else(|| {
            peer.queues += 1;
            peer.rid
        });
        peer.rid = peer.rid.wrapping_add(1);
        queue.rid = Some(peer.rid);
        peer.rid.wrapping_sub(start)
    }

    /// Adds a fragment whose octets were found to be missing.
    pub fn add(&mut self, at: usize, offset: usize, skb: Skb) {
        let queue = &mut self.queues[at];
        queue.meat += skb.len();
        queue.first_in |= offset == 0;
        queue.mem += skb.truesize;
        self.mem += skb.truesize;
        queue.fragments.push((offset, skb));
    }

    /// Takes one fragment out of a queue that begins anew or ends, any one.
    pub fn purge_one(&mut self, at: usize) -> Option<Skb> {
        let queue = &mut self.queues[at];
        let (_, skb) = queue.fragments.pop()?;
        queue.mem -= skb.truesize;
        self.mem -= skb.truesize;
        queue.clear();
        Some(skb)
    }

    /// Nobody finds the queue any more (`inet_frag_kill`). Who killed it destroys it.
    pub fn kill(&mut self, at: usize) {
        let queue = &mut self.queues[at];
        queue.expires = None;
        let key = queue.key;
        self.hash.remove(&key);
        if queue.rid.take().is_some()
            && let Some(peer) = self.peers.get_mut(&key.saddr)
        {
            peer.queues -= 1;
            if peer.queues == 0 {
                self.peers.remove(&key.saddr);
            }
        }
        if self.hash.is_empty() {
            self.timer = None;
        }
    }

    /// Gives back the place of a queue that was killed and has no fragments (`inet_frag_destroy`).
    pub fn destroy(&mut self, at: usize) {
        let queue = &mut self.queues[at];
        queue.clear();
        self.mem -= std::mem::take(&mut queue.mem);
        if self.spare + queue.spare() > SPARE_MAX {
            queue.free_spare();
        }
        match queue.spare() {
            0 => self.free.push_front(at),
            spare => {
                self.spare += spare;
                self.free.push_back(at);
            }
        }
    }

    /// How many places there are for queues, taken and free.
    pub fn places(&self) -> usize {
        self.queues.len()
    }

    /// Whether the queue at a place has waited for too long.
    pub fn is_expired(&self, at: usize, now: u64) -> bool {
        self.queues[at]
            .expires
            .is_some_and(|expires| expires <= now)
    }

    /// Looks for the earliest `expires` again.
    pub fn restart_timer(&mut self) {
        self.timer = self.queues.iter().filter_map(|queue| queue.expires).min();
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    #[inline]
    pub(super) fn fqdir(&mut self, of: Frags) -> &mut Fqdir {
        match of {
            Frags::Ip => &mut self.frags,
            Frags::Ip6 => &mut self.frags6,
        }
    }

    pub(super) fn inet_frag_kill(&mut self, of: Frags, at: usize) {
        let _stage = self.stage("inet_frag_kill");
        self.fqdir(of).kill(at);
    }

    pub(super) fn inet_frag_destroy(&mut self, of: Frags, at: usize, reason: RxDrop) {
        let _stage = self.stage("inet_frag_destroy");
        self.inet_frag_rbtree_purge(of, at, reason);
        self.fqdir(of).destroy(at);
    }

    /// Drops what a queue holds, and the room for it: it was somebody's doing that there is none that is whole.
    pub(super) fn inet_frag_rbtree_purge(&mut self, of: Frags, at: usize, reason: RxDrop) {
        let _stage = self.stage("inet_frag_rbtree_purge");
        while let Some(skb) = self.fqdir(of).purge_one(at) {
            self.counters.reassembling -= 1;
            self.drop_rx(skb, reason);
        }
        self.fqdir(of).queue(at).free_spare();
    }

    /// Adds a fragment whose octets were found to be missing; whether it was the last one.
    pub(super) fn inet_frag_add(&mut self, of: Frags, at: usize, offset: usize, skb: Skb) -> bool {
        self.fqdir(of).add(at, offset, skb);
        self.counters.reassembling += 1;
        let queue = self.fqdir(of).queue(at);
        let (waiting, complete) = (queue.fragments.len(), queue.is_complete());
        self.changed("ipq", || {
            let what = if complete { "complete" } else { "incomplete" };
            format!("{waiting} fragments, {what}")
        });
        complete
    }

    /// Puts the fragments in order.
    pub(super) fn inet_frag_reasm_prepare(&mut self, of: Frags, at: usize) {
        let _stage = self.stage("inet_frag_reasm_prepare");
        let fragments = &mut self.fqdir(of).queue(at).fragments;
        fragments.sort_unstable_by_key(|(offset, _)| *offset);
    }

    /// One packet of the fragments, which stay to be freed, behind `head_len` bytes of the first one's headers.
    pub(super) fn inet_frag_reasm_finish(&mut self, of: Frags, at: usize, head_len: usize) -> Skb {
        let _stage = self.stage("inet_frag_reasm_finish");
        let fqdir = match of {
            Frags::Ip => &self.frags,
            Frags::Ip6 => &self.frags6,
        };
        let FragQueue { fragments, len, .. } = &fqdir.queues[at];
        let truesize = fragments.iter().map(|(_, skb)| skb.truesize).sum();
        let mut skb = self
            .skb_cache
            .alloc_charged(NET_SKB_PAD, head_len + len, truesize);
        skb.reset_network_header();
        for (nth, (_, fragment)) in fragments.iter().enumerate() {
            if nth == 0 {
                skb.inherit(fragment);
                skb.ip_summed = fragment.ip_summed;
                skb.put(head_len)
                    .copy_from_slice(&fragment.network()[..head_len]);
            } else if fragment.ip_summed != skb.ip_summed {
                skb.ip_summed = IpSummed::None;
            }
            skb.put(fragment.len()).copy_from_slice(fragment.data());
        }
        skb
    }

    /// Frees the fragments that are in a packet now.
    pub(super) fn inet_frag_destroy_empty(&mut self, of: Frags, at: usize) {
        let _stage = self.stage("inet_frag_destroy");
        let purging = self.stage("inet_frag_rbtree_purge");
        let mut freed = 0;
        while let Some(skb) = self.fqdir(of).purge_one(at) {
            freed += 1;
            self.skb_cache.put(skb);
        }
        drop(purging);
        self.counters.reassembling -= freed;
        self.counters.merged += freed.saturating_sub(1);
        self.fqdir(of).destroy(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_covered_is_a_duplicate_or_an_overlap() {
        let mut queue = FragQueue::default();
        for (offset, end, want) in [
            (16, 24, Ok(())),
            (24, 40, Ok(())),
            (64, 80, Ok(())),
            // All of it is in one run, though in no one fragment.
            (16, 40, Err(Refused::Duplicate)),
            (20, 32, Err(Refused::Duplicate)),
            (72, 80, Err(Refused::Duplicate)),
            // Beyond the end, and in the gaps.
            (72, 88, Err(Refused::Overlap)),
            (8, 24, Err(Refused::Overlap)),
            (32, 48, Err(Refused::Overlap)),
            (40, 72, Err(Refused::Overlap)),
            (0, 80, Err(Refused::Overlap)),
            (40, 64, Ok(())),
            (0, 16, Ok(())),
            (0, 8, Err(Refused::Duplicate)),
        ] {
            assert_eq!(queue.insert(offset, end), want, "{offset} to {end}");
        }
        assert!(queue.runs.is_sorted());
    }

    #[test]
    fn fragments_have_to_agree_about_the_length() {
        let mut queue = FragQueue::default();
        assert!(queue.agrees(16, true));
        assert!(!queue.agrees(8, false), "the last one ends before another");
        assert!(queue.agrees(24, false));
        assert!(queue.agrees(24, false), "a duplicate");
        assert!(!queue.agrees(32, true), "behind the last one");
        assert!(!queue.agrees(32, false), "another last one");
        assert!(queue.agrees(8, true));
    }

    /// As many fragments as a packet can have, with a gap behind each, in a queue of their own.
    fn fill(fqdir: &mut Fqdir, id: u32) -> usize {
        let key = FragKey {
            id,
            ..FragKey::default()
        };
        let at = fqdir.find_or_create(key, 5);
        for offset in (0..1 << 16).step_by(16) {
            fqdir.queue(at).insert(offset, offset + 8).unwrap();
            fqdir.add(at, offset, Skb::default());
        }
        at
    }

    #[test]
    fn queues_that_end_keep_little_memory() {
        let mut fqdir = Fqdir::default();
        for round in 0..3 {
            let open: Vec<_> = (0..10).map(|id| fill(&mut fqdir, id)).collect();
            for at in open {
                fqdir.kill(at);
                while fqdir.purge_one(at).is_some() {}
                fqdir.destroy(at);
            }
            let kept: usize = fqdir.queues.iter().map(FragQueue::spare).sum();
            assert!(kept <= SPARE_MAX, "{kept} after {round}");
            assert_eq!((kept, fqdir.places()), (fqdir.spare, 10));
        }
        // What is small enough is kept, and used again first.
        let at = fqdir.find_or_create(FragKey::default(), 5);
        fqdir.queue(at).insert(0, 8).unwrap();
        fqdir.kill(at);
        fqdir.destroy(at);
        assert!(fqdir.spare > 0);
        assert_eq!(fqdir.find_or_create(FragKey::default(), 5), at);
        assert_eq!(fqdir.spare, 0);
    }

    #[test]
    fn a_sender_is_known_as_long_as_something_waits() {
        let mut fqdir = Fqdir::default();
        let key = |id| FragKey {
            id,
            ..FragKey::default()
        };
        let (a, b) = (
            fqdir.find_or_create(key(1), 5),
            fqdir.find_or_create(key(2), 3),
        );
        assert_eq!(fqdir.find_or_create(key(1), 9), a);
        assert!(fqdir.peers.is_empty(), "nobody counts");
        assert_eq!(fqdir.next_timer(), Some(3));
        assert_eq!((fqdir.distance(a), fqdir.distance(a)), (1, 1));
        assert_eq!((fqdir.distance(b), fqdir.distance(a)), (1, 2));
        assert_eq!((fqdir.distance(a), fqdir.distance(b)), (1, 3));
        for at in [a, b] {
            fqdir.kill(at);
            fqdir.destroy(at);
        }
        assert_eq!((fqdir.mem(), fqdir.next_timer()), (0, None));
        assert!(fqdir.peers.is_empty());
        let again = fqdir.find_or_create(key(3), 9);
        assert!(again == a || again == b, "a place again");
    }
}
