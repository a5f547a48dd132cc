//! The neighbour cache (Linux: `net/core/neighbour.c`): hardware addresses of IP addresses.
//!
//! In: packets for an address on the link, and what ARP learns. Out: frames to the neighbour, and
//! requests to find it: three, a second apart, the first at once. Dropped and counted: packets that
//! wait beyond a bound (the oldest goes), those of neighbours that never answer, and those for which
//! there is no room for another neighbour. Entries do not age; when the table is full the one that
//! has been there longest makes room.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::eth::{ETH_HLEN, ETH_P_IP, eth_header};
use super::skbuff::Skb;
use super::stats::TxDrop;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// Requests before a neighbour is given up (`mcast_solicit`).
const MAX_PROBES: u8 = 3;
/// Between two requests (`retrans_time_ms`).
const RETRANS_TIME: u64 = 1_000_000_000;
/// How long an answer holds against other answers (`locktime`).
const LOCKTIME: u64 = 1_000_000_000;
/// Most entries (`gc_thresh3`).
const MAX_ENTRIES: usize = 1024;
const HASH_SIZE: usize = 256;

/// What is known (`NUD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NudState {
    /// It was asked for.
    Incomplete,
    /// It did not answer; the next packet asks again.
    Failed,
    /// It was heard of, but did not answer. As good as reachable, as long as nothing ages.
    Stale,
    /// It answered.
    Reachable,
    /// The administrator said so; what is heard changes nothing.
    Permanent,
}

impl NudState {
    /// Whether the hardware address is known (`NUD_VALID`).
    fn valid(self) -> bool {
        matches!(self, Self::Stale | Self::Reachable | Self::Permanent)
    }

    /// Whether the entry may make room for another.
    fn may_go(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Permanent)
    }
}

/// One neighbour (`struct neighbour`).
#[derive(Debug)]
struct Neighbour {
    primary_key: u32,
    nud_state: NudState,
    /// The Ethernet header of packets to it (`hh_cache`).
    hh: [u8; ETH_HLEN],
    /// When the hardware address was learnt.
    updated: u64,
    probes: u8,
    /// When to ask again, of those that are incomplete.
    expires: u64,
    /// Packets that wait for the answer.
    arp_queue: VecDeque<Skb>,
}

/// The table (`arp_tbl`).
#[derive(Debug)]
pub(super) struct NeighTable {
    entries: Vec<Neighbour>,
    /// Places in `entries`, by hash of the address.
    hash_buckets: Vec<Vec<u16>>,
    /// The earliest `expires`.
    timer: Option<u64>,
    /// Where to look for an entry that makes room.
    victim: usize,
}

impl Default for NeighTable {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            hash_buckets: vec![Vec::new(); HASH_SIZE],
            timer: None,
            victim: 0,
        }
    }
}

/// `arp_hash`: neighbours on one link differ in their last byte.
#[inline]
fn hash(key: u32) -> usize {
    (key ^ key >> 8) as usize % HASH_SIZE
}

impl NeighTable {
    pub fn next_timer(&self) -> Option<u64> {
        self.timer
    }

    /// Where `key` is (`neigh_lookup`).
    #[inline]
    pub fn lookup(&self, key: u32) -> Option<usize> {
        self.hash_buckets[hash(key)]
            .iter()
            .map(|&at| usize::from(at))
            .find(|&at| self.entries[at].primary_key == key)
    }

    /// Makes an entry (`neigh_create`); `None` when all places are taken by neighbours that packets
    /// wait for.
    fn create(&mut self, key: u32) -> Option<usize> {
        let entry = Neighbour {
            primary_key: key,
            nud_state: NudState::Failed,
            hh: [0; ETH_HLEN],
            updated: 0,
            probes: 0,
            expires: 0,
            arp_queue: VecDeque::new(),
        };
        let at = if self.entries.len() < MAX_ENTRIES {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let at = self.forced_gc()?;
            self.entries[at] = entry;
            at
        };
        self.hash_buckets[hash(key)].push(at as u16);
        Some(at)
    }

    /// Takes an entry out of the table that nothing waits for (`neigh_forced_gc`); its place.
    fn forced_gc(&mut self) -> Option<usize> {
        let len = self.entries.len();
        let at = (0..len)
            .map(|step| (self.victim + step) % len)
            .find(|&at| self.entries[at].nud_state.may_go())?;
        self.victim = (at + 1) % len;
        let bucket = &mut self.hash_buckets[hash(self.entries[at].primary_key)];
        bucket.retain(|&place| usize::from(place) != at);
        Some(at)
    }

    fn add_timer(&mut self, expires: u64) {
        self.timer = Some(self.timer.map_or(expires, |timer| timer.min(expires)));
    }

    /// Looks for the earliest timer again.
    fn restart_timer(&mut self) {
        self.timer = self
            .entries
            .iter()
            .filter(|entry| entry.nud_state == NudState::Incomplete)
            .map(|entry| entry.expires)
            .min();
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Sends an IP packet to the neighbour `key` (`ip_neigh_for_gw`, `neigh_output`).
    pub(super) fn neigh_output(&mut self, key: u32, skb: Skb) {
        let Some(at) = self
            .arp_tbl
            .lookup(key)
            .or_else(|| self.arp_tbl.create(key))
        else {
            return self.drop_tx(skb, TxDrop::NeighTableFull);
        };
        if self.arp_tbl.entries[at].nud_state.valid() {
            self.neigh_hh_output(at, skb);
        } else {
            self.neigh_resolve_output(at, skb);
        }
    }

    #[inline]
    fn neigh_hh_output(&mut self, at: usize, mut skb: Skb) {
        *skb.push() = self.arp_tbl.entries[at].hh;
        self.dev_queue_xmit(skb);
    }

    /// Has the packet wait and asks for the neighbour, unless that was done already.
    fn neigh_resolve_output(&mut self, at: usize, skb: Skb) {
        let limit = self.config.unres_qlen;
        let neigh = &mut self.arp_tbl.entries[at];
        neigh.arp_queue.push_back(skb);
        let oldest = if neigh.arp_queue.len() > limit {
            neigh.arp_queue.pop_front()
        } else {
            None
        };
        if let Some(skb) = oldest {
            self.drop_tx(skb, TxDrop::NeighUnresDiscards);
        }
        self.__neigh_event_send(at);
    }

    fn __neigh_event_send(&mut self, at: usize) {
        let neigh = &mut self.arp_tbl.entries[at];
        if neigh.nud_state == NudState::Incomplete {
            return;
        }
        neigh.nud_state = NudState::Incomplete;
        neigh.probes = 0;
        let now = self.machine.now();
        self.neigh_probe(at, now);
    }

    /// Asks, and sets the timer to look for the answer.
    fn neigh_probe(&mut self, at: usize, now: u64) {
        let neigh = &mut self.arp_tbl.entries[at];
        neigh.probes += 1;
        neigh.expires = now.saturating_add(RETRANS_TIME);
        let (key, expires) = (neigh.primary_key, neigh.expires);
        self.arp_tbl.add_timer(expires);
        self.arp_solicit(key);
    }

    /// The timer's soft interrupt: asks again, or gives up (`neigh_timer_handler`).
    pub(super) fn neigh_timer_handler(&mut self) {
        let now = self.machine.now();
        self.arp_tbl.timer = None;
        for at in 0..self.arp_tbl.entries.len() {
            let neigh = &self.arp_tbl.entries[at];
            if neigh.nud_state != NudState::Incomplete || neigh.expires > now {
                continue;
            }
            if neigh.probes >= MAX_PROBES {
                self.neigh_invalidate(at);
            } else {
                self.neigh_probe(at, now);
            }
        }
        self.arp_tbl.restart_timer();
    }

    /// The neighbour did not answer: what waits for it is dropped.
    fn neigh_invalidate(&mut self, at: usize) {
        self.arp_tbl.entries[at].nud_state = NudState::Failed;
        while let Some(skb) = self.arp_tbl.entries[at].arp_queue.pop_front() {
            self.drop_tx(skb, TxDrop::NeighResFailed);
        }
    }

    /// Somebody asked for us and so told us of himself (`neigh_event_ns`); whether there was room
    /// for him.
    pub(super) fn neigh_event_ns(&mut self, key: u32, lladdr: [u8; 6]) -> bool {
        let Some(at) = self
            .arp_tbl
            .lookup(key)
            .or_else(|| self.arp_tbl.create(key))
        else {
            return false;
        };
        self.neigh_update(at, lladdr, NudState::Stale, true);
        true
    }

    /// A hardware address was learnt (`neigh_update`); without `override` a fresh one stays. What
    /// waited for it is sent.
    pub(super) fn neigh_update(
        &mut self,
        at: usize,
        lladdr: [u8; 6],
        state: NudState,
        overrides: bool,
    ) {
        let now = self.machine.now();
        let hh = eth_header(lladdr, self.dev_addr, ETH_P_IP);
        let neigh = &mut self.arp_tbl.entries[at];
        if neigh.nud_state == NudState::Permanent && state != NudState::Permanent {
            return;
        }
        let was_valid = neigh.nud_state.valid();
        if was_valid && neigh.hh == hh {
            // Known; that someone asks does not make less of an answer he gave.
            if state != NudState::Stale {
                neigh.nud_state = state;
            }
            return;
        }
        if was_valid && !overrides && now < neigh.updated.saturating_add(LOCKTIME) {
            return;
        }
        (neigh.hh, neigh.nud_state, neigh.updated) = (hh, state, now);
        if !was_valid {
            self.arp_tbl.restart_timer();
            while let Some(skb) = self.arp_tbl.entries[at].arp_queue.pop_front() {
                self.neigh_hh_output(at, skb);
            }
        }
    }

    /// Tells the neighbour at `addr` for good (`ip neigh replace ADDR lladdr MAC nud permanent`).
    ///
    /// # Errors
    /// `ENOBUFS`: the table is full.
    pub fn neigh_add(&mut self, addr: Ipv4Addr, lladdr: [u8; 6]) -> Result<(), Errno> {
        let key = addr.to_bits();
        let known = self.arp_tbl.lookup(key);
        let at = known
            .or_else(|| self.arp_tbl.create(key))
            .ok_or(Errno::ENOBUFS)?;
        self.neigh_update(at, lladdr, NudState::Permanent, true);
        Ok(())
    }
}
