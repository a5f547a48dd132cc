//! Fragments that wait for the rest of their packet (Linux: `net/ipv4/inet_fragment.c`).
//!
//! In: fragments and where they belong. Out: all of a packet's, once none is missing. A queue is one packet; what it holds
//! is kept in order of arrival, and beside it the runs of octets that are covered. A fragment that is there already is a
//! duplicate, one that is there in part makes its queue worthless (RFC 5722). Memory is bounded: once
//! `ipfrag_high_thresh` is passed nothing more is taken. Queues that end are kept for their memory.

use std::collections::HashMap;

use super::skbuff::{IpSummed, NET_SKB_PAD, Skb};
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// What a queue is charged with before it holds anything (`struct ipq`).
const QUEUE_SIZE: usize = 208;

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
    /// The sender's count of fragments when one of this packet came last.
    pub rid: u32,
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
    /// Places in `queues` without a packet.
    free: Vec<usize>,
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
        let at = self.free.pop().unwrap_or_else(|| {
            self.queues.push(FragQueue::default());
            self.queues.len() - 1
        });
        let peer = self.peers.entry(key.saddr).or_default();
        peer.queues += 1;
        let queue = &mut self.queues[at];
        (queue.key, queue.rid, queue.mem) = (key, peer.rid, QUEUE_SIZE);
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
        let Some(peer) = self.peers.get_mut(&queue.key.saddr) else {
            return 0;
        };
        peer.rid = peer.rid.wrapping_add(1);
        let start = std::mem::replace(&mut queue.rid, peer.rid);
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
        if let Some(peer) = self.peers.get_mut(&key.saddr) {
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
        self.free.push(at);
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

    /// Drops what a queue holds.
    pub(super) fn inet_frag_rbtree_purge(&mut self, of: Frags, at: usize, reason: RxDrop) {
        let _stage = self.stage("inet_frag_rbtree_purge");
        while let Some(skb) = self.fqdir(of).purge_one(at) {
            self.counters.reassembling -= 1;
            self.drop_rx(skb, reason);
        }
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
        assert_eq!(fqdir.next_timer(), Some(3));
        assert_eq!((fqdir.distance(a), fqdir.distance(a)), (1, 1));
        assert_eq!((fqdir.distance(b), fqdir.distance(a)), (3, 2));
        for at in [a, b] {
            fqdir.kill(at);
            fqdir.destroy(at);
        }
        assert_eq!((fqdir.mem(), fqdir.next_timer()), (0, None));
        assert!(fqdir.peers.is_empty());
        assert_eq!(fqdir.find_or_create(key(3), 9), b, "its place again");
    }
}
