//! The table of neighbours (Linux: `struct neigh_table`, `net/core/neighbour.c`): who is in it, who has to go.
//!
//! In: addresses of a device's link. Out: places of entries, which stay theirs until they go. The table is bounded: beyond
//! `gc_thresh2` entries old ones make room, and at `gc_thresh3` there is none for another; beyond `gc_thresh1` those that
//! nobody used for long go from time to time.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::eth::ETH_HLEN;
use super::netdevice::Ifindex;
use super::skbuff::Skb;
use super::stats::NeighStatistics;
use super::sysctl_net_ipv4::nanos;

const HASH_SIZE: usize = 256;
const SECOND: u64 = 1_000_000_000;
/// Between two collections that the table's being half full demands, and the age at which an entry may go then.
const FLUSH_INTERVAL: u64 = 5 * SECOND;
/// Shown of those whose address is known, and of those that the administrator told.
const ATF_COM: u8 = 2;
const ATF_PERM: u8 = 4;

/// How neighbours are asked and how long they are believed (`/proc/sys/net/ipv4/neigh`); the defaults are Linux's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighParms {
    /// How long an answer holds. (Linux draws at random between half and one and a half times this.)
    pub base_reachable_time: Duration,
    /// How long a neighbour of old is used before he is asked again.
    pub delay_first_probe_time: Duration,
    /// Between two questions.
    pub retrans_time: Duration,
    /// After how long without use an entry may go.
    pub gc_stale_time: Duration,
    /// How long an answer holds against other answers.
    pub locktime: Duration,
    /// Questions to the neighbour himself, at the address that he had.
    pub ucast_solicit: u32,
    /// Questions to all.
    pub mcast_solicit: u32,
    /// Entries below which none goes.
    pub gc_thresh1: usize,
    /// Entries beyond which old ones make room.
    pub gc_thresh2: usize,
    /// Most entries.
    pub gc_thresh3: usize,
}

impl Default for NeighParms {
    fn default() -> Self {
        Self {
            base_reachable_time: Duration::from_secs(30),
            delay_first_probe_time: Duration::from_secs(5),
            retrans_time: Duration::from_secs(1),
            gc_stale_time: Duration::from_secs(60),
            locktime: Duration::from_secs(1),
            ucast_solicit: 3,
            mcast_solicit: 3,
            gc_thresh1: 128,
            gc_thresh2: 512,
            gc_thresh3: 1024,
        }
    }
}

/// What is known of a neighbour (`NUD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NudState {
    /// Nothing yet.
    #[default]
    None,
    /// He was asked for.
    Incomplete,
    /// He did not answer; the next packet asks again.
    Failed,
    /// He was heard of, or answered long ago.
    Stale,
    /// As that, but used: he is to be asked unless something is heard of him.
    Delay,
    /// He is asked whether he is still there.
    Probe,
    /// He answered.
    Reachable,
    /// The administrator said so; what is heard changes nothing.
    Permanent,
    /// Nobody is to be asked: the address says it, or the device has no use for it.
    NoArp,
}

impl NudState {
    /// Whether the hardware address is known (`NUD_VALID`).
    pub(super) fn is_valid(self) -> bool {
        !matches!(self, Self::None | Self::Incomplete | Self::Failed)
    }

    /// Whether packets need not look at the state (`NUD_CONNECTED`).
    pub(super) fn is_connected(self) -> bool {
        matches!(self, Self::Reachable | Self::Permanent | Self::NoArp)
    }

    /// Whether a timer has it change (`NUD_IN_TIMER`).
    pub(super) fn is_in_timer(self) -> bool {
        matches!(
            self,
            Self::Incomplete | Self::Reachable | Self::Delay | Self::Probe
        )
    }
}

/// An address that neighbours are called by.
pub(super) trait NeighKey: Copy + Eq {
    /// The last 32 bits, which are the ones that differ on a link.
    fn low(self) -> u32;

    /// What it is called.
    fn addr(self) -> IpAddr;
}

impl NeighKey for u32 {
    #[inline]
    fn low(self) -> u32 {
        self
    }

    fn addr(self) -> IpAddr {
        Ipv4Addr::from_bits(self).into()
    }
}

impl NeighKey for u128 {
    #[inline]
    fn low(self) -> u32 {
        self as u32
    }

    fn addr(self) -> IpAddr {
        Ipv6Addr::from_bits(self).into()
    }
}

/// One neighbour (`struct neighbour`). Times are the machine's.
#[derive(Debug)]
pub(super) struct Neighbour<K> {
    pub primary_key: K,
    /// The device that it is behind.
    pub dev: Ifindex,
    pub nud_state: NudState,
    /// The Ethernet header of packets to it (`hh_cache`).
    pub hh: [u8; ETH_HLEN],
    /// A packet had it already; until then it is made anew (`hh_len`).
    pub hh_cached: bool,
    /// When a packet last had to look at the state.
    pub used: u64,
    /// When it was certain last that the address is right; `None` where it never was.
    pub confirmed: Option<u64>,
    /// When something about it changed.
    pub updated: u64,
    /// Questions that were asked, counted from `ucast_solicit` on where all are asked.
    pub probes: u32,
    /// When the state is to be looked at (`timer`).
    pub expires: Option<u64>,
    /// Packets that wait for the answer.
    pub arp_queue: VecDeque<Skb>,
}

/// What is shown of a neighbour.
pub(super) struct NeighView<K> {
    pub addr: K,
    pub dev: Ifindex,
    /// His hardware address; zeros where it is not known.
    pub lladdr: [u8; 6],
    /// Whether it is known, and for good (`ATF_*`).
    pub atf: u8,
}

/// The table (`arp_tbl`, `nd_tbl`).
#[derive(Debug)]
pub(super) struct NeighTable<K> {
    pub parms: NeighParms,
    pub entries: Vec<Neighbour<K>>,
    /// Places in `entries` that are free.
    free: Vec<u16>,
    /// Places in `entries`, by hash of the address.
    hash_buckets: Vec<Vec<u16>>,
    /// How many are permanent, and do not count against the bounds.
    permanent: usize,
    /// Not after the earliest `expires`.
    timer: Option<u64>,
    /// When to look for entries that nobody uses (`gc_work`).
    gc_at: Option<u64>,
    last_flush: Option<u64>,
    pub stats: NeighStatistics,
}

/// `arp_hash`: neighbours on one link differ in their last byte.
#[inline]
fn hash(key: impl NeighKey) -> usize {
    let key = key.low();
    (key ^ key >> 8) as usize % HASH_SIZE
}

impl<K: NeighKey> NeighTable<K> {
    /// An empty one.
    pub fn new(parms: NeighParms) -> Self {
        Self {
            parms,
            entries: Vec::new(),
            free: Vec::new(),
            hash_buckets: vec![Vec::new(); HASH_SIZE],
            permanent: 0,
            timer: None,
            gc_at: None,
            last_flush: None,
            stats: NeighStatistics::default(),
        }
    }

    /// All neighbours.
    pub fn iter(&self) -> impl Iterator<Item = NeighView<K>> + '_ {
        let view = |neigh: &Neighbour<K>| NeighView {
            addr: neigh.primary_key,
            dev: neigh.dev,
            lladdr: neigh.hh.first_chunk().copied().unwrap_or_default(),
            atf: match neigh.nud_state {
                NudState::Permanent => ATF_COM | ATF_PERM,
                state if state.is_valid() => ATF_COM,
                _ => 0,
            },
        };
        self.places()
            .into_iter()
            .map(move |at| view(&self.entries[at]))
    }

    pub fn next_timer(&self) -> Option<u64> {
        [self.timer, self.gc_at].into_iter().flatten().min()
    }

    /// Where `key` of a device is (`neigh_lookup`).
    #[inline]
    pub fn lookup(&self, key: K, dev: Ifindex) -> Option<usize> {
        self.hash_buckets[hash(key)]
            .iter()
            .map(|&at| usize::from(at))
            .find(|&at| self.entries[at].primary_key == key && self.entries[at].dev == dev)
    }

    /// Entries that count against the bounds (`gc_entries`).
    fn gc_entries(&self) -> usize {
        self.entries.len() - self.free.len() - self.permanent
    }

    /// Makes an entry (`neigh_alloc`); `None` when there is no room for it.
    pub fn create(&mut self, key: K, dev: Ifindex, now: u64) -> Option<usize> {
        let entries = self.gc_entries();
        let flushed_lately = |last: u64| now <= last.saturating_add(FLUSH_INTERVAL);
        if entries >= self.parms.gc_thresh3
            || entries >= self.parms.gc_thresh2 && !self.last_flush.is_some_and(flushed_lately)
        {
            let shrunk = self.forced_gc(now);
            if shrunk == 0 && entries >= self.parms.gc_thresh3 {
                self.stats.table_fulls += 1;
                return None;
            }
        }
        let entry = Neighbour {
            primary_key: key,
            dev,
            nud_state: NudState::None,
            hh: [0; ETH_HLEN],
            hh_cached: false,
            used: now,
            confirmed: None,
            updated: now,
            probes: 0,
            expires: None,
            arp_queue: VecDeque::new(),
        };
        let at = if let Some(at) = self.free.pop() {
            self.entries[usize::from(at)] = entry;
            at
        } else {
            let at = u16::try_from(self.entries.len()).ok()?;
            self.entries.push(entry);
            at
        };
        self.hash_buckets[hash(key)].push(at);
        self.stats.allocs += 1;
        if self.gc_at.is_none() && self.gc_entries() >= self.parms.gc_thresh1 {
            self.gc_at = Some(now.saturating_add(gc_interval(&self.parms)));
        }
        Some(at.into())
    }

    /// The administrator vouches for an entry that is new or was learnt.
    pub fn make_permanent(&mut self, at: usize) {
        if self.entries[at].nud_state != NudState::Permanent {
            self.permanent += 1;
        }
    }

    /// Takes an entry out of the table that no timer is about, and nothing waits for.
    fn remove(&mut self, at: usize) {
        debug_assert!(self.entries[at].arp_queue.is_empty());
        let place = at as u16;
        self.hash_buckets[hash(self.entries[at].primary_key)].retain(|&other| other != place);
        self.free.push(place);
        self.stats.destroys += 1;
    }

    /// Takes all neighbours of a device out; what waited for them (`neigh_flush_dev`).
    pub fn flush_dev(&mut self, dev: Ifindex) -> Vec<Skb> {
        let mut waited = Vec::new();
        for at in self.places() {
            let neigh = &mut self.entries[at];
            if neigh.dev != dev {
                continue;
            }
            neigh.expires = None;
            waited.extend(neigh.arp_queue.drain(..));
            self.permanent -= usize::from(neigh.nud_state == NudState::Permanent);
            self.remove(at);
        }
        self.restart_timer();
        waited
    }

    /// Places that are taken.
    fn places(&self) -> Vec<usize> {
        let buckets = self.hash_buckets.iter().flatten();
        let mut places: Vec<_> = buckets.map(|&at| usize::from(at)).collect();
        places.sort_unstable();
        places
    }

    /// Has entries make room until the table is as full as `gc_thresh2`: those of which nothing is known, and those
    /// that have not changed for long (`neigh_forced_gc`). How many went.
    fn forced_gc(&mut self, now: u64) -> usize {
        self.stats.forced_gc_runs += 1;
        self.last_flush = Some(now);
        let max_clean = self.gc_entries().saturating_sub(self.parms.gc_thresh2);
        let mut shrunk = 0;
        for at in self.places() {
            let neigh = &self.entries[at];
            let idle = !neigh.nud_state.is_in_timer() && neigh.nud_state != NudState::Permanent;
            let useless = matches!(neigh.nud_state, NudState::Failed | NudState::NoArp);
            let old = neigh.updated.saturating_add(FLUSH_INTERVAL) < now;
            if idle && (useless || old) {
                self.remove(at);
                shrunk += 1;
                if shrunk >= max_clean {
                    break;
                }
            }
        }
        shrunk
    }

    /// Takes out what nobody used for long, if it is time for that (`neigh_periodic_work`).
    pub fn periodic_work(&mut self, now: u64) {
        if self.gc_at.is_none_or(|at| at > now) {
            return;
        }
        self.stats.periodic_gc_runs += 1;
        if self.gc_entries() >= self.parms.gc_thresh1 {
            for at in self.places() {
                let neigh = &mut self.entries[at];
                neigh.used = neigh.used.max(neigh.confirmed.unwrap_or(0));
                let state = neigh.nud_state;
                let unused = neigh.used.saturating_add(nanos(self.parms.gc_stale_time)) <= now;
                if !state.is_in_timer()
                    && state != NudState::Permanent
                    && (state == NudState::Failed || unused)
                {
                    self.remove(at);
                }
            }
        }
        let full = self.gc_entries() >= self.parms.gc_thresh1;
        self.gc_at = full.then(|| now.saturating_add(gc_interval(&self.parms)));
    }

    pub fn add_timer(&mut self, at: usize, expires: u64) {
        self.entries[at].expires = Some(expires);
        self.timer = Some(self.timer.map_or(expires, |timer| timer.min(expires)));
    }

    /// An entry needs no timer any more (`neigh_del_timer`).
    pub fn del_timer(&mut self, at: usize) {
        let expires = self.entries[at].expires.take();
        if expires.is_some() && expires == self.timer {
            self.restart_timer();
        }
    }

    /// Looks for the earliest timer again.
    pub fn restart_timer(&mut self) {
        self.timer = self.entries.iter().filter_map(|entry| entry.expires).min();
    }
}

/// Between two looks for entries that nobody uses.
fn gc_interval(parms: &NeighParms) -> u64 {
    nanos(parms.base_reachable_time) / 2
}
