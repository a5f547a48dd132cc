//! A bridge's forwarding database (Linux: `net/bridge/br_fdb.c`, IEEE 802.1Q, 8.8): which station is behind which port.
//!
//! In: source addresses of frames, and the addresses of the bridge and its ports, which stay. Out: the port of a
//! destination. What was not heard of for the ageing time is as if it had never been. There is room for so many; who
//! comes when all places are taken by others that are not too old is not learnt, and frames to him are flooded.

use std::collections::HashMap;

use super::super::netdevice::Ifindex;

/// How long a station is remembered that sends nothing (`ageing_time`, IEEE 802.1Q, table 8-6): 300 s.
const AGEING_TIME: u64 = 300_000_000_000;
/// Most stations that are learnt (`fdb_max_learned`, which Linux leaves without a limit unless told).
const FDB_MAX_LEARNED: usize = 4096;

/// What is known of a station (`struct net_bridge_fdb_entry`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FdbEntry {
    dst: Ifindex,
    /// It is the bridge itself (`BR_FDB_LOCAL`).
    local: bool,
    /// When it was heard of last, in nanoseconds.
    updated: u64,
}

/// Where a frame to a known station goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FdbDst {
    /// To the bridge itself.
    Local,
    /// To the station behind that port.
    Port(Ifindex),
}

/// What became of a source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Learnt {
    /// It was known to be there.
    Known,
    /// It is new, or was somewhere else.
    New,
    /// It is the bridge's own, or there is no room for it.
    Not,
}

/// All stations, by address.
#[derive(Debug)]
pub(super) struct BridgeFdb {
    entries: HashMap<[u8; 6], FdbEntry>,
    /// How many of them were learnt (`fdb_n_learned`).
    n_learned: usize,
    /// 0 is: nobody is learnt.
    pub ageing_time: u64,
}

impl Default for BridgeFdb {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            n_learned: 0,
            ageing_time: AGEING_TIME,
        }
    }
}

impl BridgeFdb {
    /// Adds an address of the bridge's own (`fdb_add_local`).
    pub fn add_local(&mut self, addr: [u8; 6], dst: Ifindex) {
        let entry = FdbEntry {
            dst,
            local: true,
            updated: 0,
        };
        if self
            .entries
            .insert(addr, entry)
            .is_some_and(|old| !old.local)
        {
            self.n_learned -= 1;
        }
    }

    /// Forgets the addresses of the bridge's own.
    pub fn delete_local(&mut self) {
        self.entries.retain(|_, entry| !entry.local);
    }

    /// Whether an entry is too old (`has_expired`).
    fn has_expired(entry: &FdbEntry, ageing_time: u64, now: u64) -> bool {
        !entry.local && now >= entry.updated.saturating_add(ageing_time)
    }

    /// A frame from `addr` came by the port `source` (`br_fdb_update`).
    pub fn update(&mut self, addr: [u8; 6], source: Ifindex, now: u64) -> Learnt {
        let ageing_time = self.ageing_time;
        if ageing_time == 0 {
            return Learnt::Not;
        }
        if let Some(entry) = self.entries.get_mut(&addr) {
            if entry.local {
                return Learnt::Not;
            }
            let known = entry.dst == source && !Self::has_expired(entry, ageing_time, now);
            (entry.dst, entry.updated) = (source, now);
            return if known { Learnt::Known } else { Learnt::New };
        }
        if self.n_learned >= FDB_MAX_LEARNED {
            self.cleanup(now);
        }
        if self.n_learned >= FDB_MAX_LEARNED {
            return Learnt::Not;
        }
        let entry = FdbEntry {
            dst: source,
            local: false,
            updated: now,
        };
        self.entries.insert(addr, entry);
        self.n_learned += 1;
        Learnt::New
    }

    /// Where frames to `addr` go, if it is known (`br_fdb_find_rcu`).
    pub fn find(&self, addr: [u8; 6], now: u64) -> Option<FdbDst> {
        let entry = self.entries.get(&addr)?;
        if entry.local {
            return Some(FdbDst::Local);
        }
        let fresh = !Self::has_expired(entry, self.ageing_time, now);
        fresh.then_some(FdbDst::Port(entry.dst))
    }

    /// Forgets those that are too old (`br_fdb_cleanup`).
    fn cleanup(&mut self, now: u64) {
        let ageing_time = self.ageing_time;
        let before = self.entries.len();
        self.entries
            .retain(|_, entry| !Self::has_expired(entry, ageing_time, now));
        self.n_learned -= before - self.entries.len();
    }

    /// Forgets all that was learnt behind a port, and its own address (`br_fdb_delete_by_port`).
    pub fn delete_by_port(&mut self, port: Ifindex) {
        self.entries.retain(|_, entry| entry.dst != port);
        self.n_learned = self.entries.values().filter(|entry| !entry.local).count();
    }

    /// How many stations were learnt and not forgotten.
    pub fn n_learned(&self) -> usize {
        self.n_learned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ifindex = Ifindex::ETH0;
    const OTHER: Ifindex = Ifindex::LO;

    fn station(n: usize) -> [u8; 6] {
        let [.., a, b] = n.to_be_bytes();
        [2, 0, 0, 0, a, b]
    }

    #[test]
    fn a_station_is_where_it_was_heard_last() {
        let mut fdb = BridgeFdb::default();
        assert_eq!(fdb.find(station(1), 0), None);
        assert_eq!(fdb.update(station(1), ONE, 0), Learnt::New);
        assert_eq!(fdb.update(station(1), ONE, 5), Learnt::Known);
        assert_eq!(fdb.find(station(1), 5), Some(FdbDst::Port(ONE)));
        assert_eq!(fdb.update(station(1), OTHER, 6), Learnt::New);
        assert_eq!(fdb.find(station(1), 6), Some(FdbDst::Port(OTHER)));
        fdb.delete_by_port(OTHER);
        assert_eq!((fdb.find(station(1), 6), fdb.n_learned()), (None, 0));
    }

    #[test]
    fn who_is_not_heard_of_is_forgotten() {
        let mut fdb = BridgeFdb::default();
        fdb.update(station(1), ONE, 7);
        assert!(fdb.find(station(1), 7 + AGEING_TIME - 1).is_some());
        assert_eq!(fdb.find(station(1), 7 + AGEING_TIME), None);
        // Hearing of him counts anew.
        assert_eq!(fdb.update(station(1), ONE, 8 + AGEING_TIME), Learnt::New);
        assert!(fdb.find(station(1), 2 * AGEING_TIME).is_some());
        fdb.ageing_time = 0;
        assert_eq!(fdb.update(station(2), ONE, 0), Learnt::Not);
    }

    #[test]
    fn the_bridges_own_addresses_stay() {
        let mut fdb = BridgeFdb::default();
        fdb.update(station(1), OTHER, 0);
        fdb.add_local(station(1), ONE);
        assert_eq!(fdb.n_learned(), 0);
        assert_eq!(fdb.update(station(1), OTHER, 0), Learnt::Not);
        assert_eq!(fdb.find(station(1), u64::MAX), Some(FdbDst::Local));
    }

    #[test]
    fn a_flood_of_stations_has_an_end() {
        let mut fdb = BridgeFdb::default();
        for n in 0..2 * FDB_MAX_LEARNED {
            let learnt = fdb.update(station(n), ONE, 0);
            assert_eq!(learnt == Learnt::New, n < FDB_MAX_LEARNED, "{n}");
        }
        assert_eq!(fdb.entries.len(), FDB_MAX_LEARNED);
        // Those that are too old make room.
        assert_eq!(fdb.update(station(1), ONE, 1), Learnt::Known);
        let later = AGEING_TIME;
        assert_eq!(fdb.update(station(9999), OTHER, later), Learnt::New);
        assert_eq!((fdb.entries.len(), fdb.n_learned()), (2, 2));
    }
}
