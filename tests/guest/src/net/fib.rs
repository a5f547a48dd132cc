//! The forwarding information base (Linux: `net/ipv4/fib_trie.c`): routes, by the network that they lead to.
//!
//! In: addresses. Out: the route with the longest prefix. Routes to this host come before all others, as in a table
//! of their own that is asked first. There are few, so they stand in a list in the order in which they are asked,
//! instead of a trie.

use std::net::Ipv4Addr;

use super::netdevice::Ifindex;
use super::route::RtType;

/// The bits that name a network.
pub(super) fn prefix_mask(prefix_len: u8) -> u32 {
    let host_bits = 32 - u32::from(prefix_len.min(32));
    u32::MAX.checked_shl(host_bits).unwrap_or(0)
}

/// A route (`struct fib_alias`, `struct fib_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FibEntry {
    pub prefix: u32,
    pub mask: u32,
    pub rt_type: RtType,
    /// The device that packets leave by.
    pub dev: Ifindex,
    /// The neighbour that passes them on; 0 where the network is on the link.
    pub gateway: u32,
    /// What packets of this host have as their source; 0 is an address of the device.
    pub prefsrc: u32,
}

impl FibEntry {
    /// To all hosts of the link, whichever network they are of.
    const LIMITED_BROADCAST: Self = Self {
        prefix: u32::MAX,
        mask: u32::MAX,
        rt_type: RtType::Broadcast,
        dev: Ifindex::ETH0,
        gateway: 0,
        prefsrc: 0,
    };

    /// To a network of other hosts, by a gateway if there is one.
    pub fn unicast(
        (network, prefix_len): (Ipv4Addr, u8),
        gateway: Option<Ipv4Addr>,
        dev: Ifindex,
    ) -> Self {
        let mask = prefix_mask(prefix_len);
        Self {
            prefix: network.to_bits() & mask,
            mask,
            rt_type: RtType::Unicast,
            dev,
            gateway: gateway.map_or(0, Ipv4Addr::to_bits),
            prefsrc: 0,
        }
    }

    #[inline]
    fn covers(&self, addr: u32) -> bool {
        (addr ^ self.prefix) & self.mask == 0
    }

    /// Its place among others: of lower ones first.
    fn rank(&self) -> (bool, u32) {
        (self.rt_type == RtType::Unicast, !self.mask)
    }
}

/// Words of bits that say which addresses may be this host's.
const OWN_WORDS: usize = 8;

/// All routes.
#[derive(Debug)]
pub(super) struct Fib {
    table: Vec<FibEntry>,
    /// A bit for each hash of an address of this host, or for broadcasts (`inet_addr_lst`): most addresses have none.
    own: [u64; OWN_WORDS],
}

impl Default for Fib {
    fn default() -> Self {
        let mut fib = Self {
            table: Vec::new(),
            own: [0; OWN_WORDS],
        };
        fib.insert(FibEntry::LIMITED_BROADCAST);
        fib
    }
}

#[inline]
fn own_bit(addr: u32) -> (usize, u64) {
    // All octets count: 10.77.0.1 must not look like 127.0.0.1.
    let hash = addr.wrapping_mul(0x9e37_79b1) >> 16;
    (hash as usize / 64 % OWN_WORDS, 1 << (hash % 64))
}

impl Fib {
    /// Adds a route; whether there was none to that network yet.
    pub fn insert(&mut self, entry: FibEntry) -> bool {
        let rank = entry.rank();
        let at = self.table.partition_point(|other| other.rank() < rank);
        let mut equals = self.table[at..]
            .iter()
            .take_while(|other| other.rank() == rank);
        if equals.any(|other| other.prefix == entry.prefix) {
            return false;
        }
        if entry.mask == u32::MAX && entry.rt_type != RtType::Unicast {
            let (word, bit) = own_bit(entry.prefix);
            self.own[word] |= bit;
        }
        self.table.insert(at, entry);
        true
    }

    /// All routes, in the order in which they are asked.
    pub fn iter(&self) -> impl Iterator<Item = &FibEntry> {
        self.table.iter()
    }

    /// The route to `addr` (`fib_table_lookup`).
    #[inline]
    pub fn lookup(&self, addr: u32) -> Option<&FibEntry> {
        self.table.iter().find(|entry| entry.covers(addr))
    }

    /// Whether a device has that address (`inet_lookup_ifaddr_rcu`).
    pub fn is_ifaddr(&self, addr: u32) -> bool {
        let is = |entry: &FibEntry| {
            (entry.prefix, entry.mask, entry.rt_type) == (addr, u32::MAX, RtType::Local)
        };
        self.table.iter().any(is)
    }

    /// What `addr` is to this host (`inet_addr_type`).
    pub fn addr_type(&self, addr: u32) -> RtType {
        self.lookup(addr)
            .map_or(RtType::Unicast, |entry| entry.rt_type)
    }

    /// Whether it is an address of this host, or one for broadcasts.
    #[inline]
    pub fn is_own(&self, addr: u32) -> bool {
        let (word, bit) = own_bit(addr);
        self.own[word] & bit != 0 && self.addr_type(addr) != RtType::Unicast
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(network: [u8; 4], prefix_len: u8, gateway: u32, rt_type: RtType) -> FibEntry {
        FibEntry {
            prefix: Ipv4Addr::from(network).to_bits(),
            mask: prefix_mask(prefix_len),
            rt_type,
            gateway,
            ..FibEntry::LIMITED_BROADCAST
        }
    }

    #[test]
    fn the_longest_prefix_counts_and_this_host_before_it() {
        let unicast = RtType::Unicast;
        let mut routes = vec![
            route([0, 0, 0, 0], 0, 1, unicast),
            route([10, 0, 0, 0], 8, 2, unicast),
            route([10, 1, 0, 0], 16, 3, unicast),
            route([10, 1, 2, 0], 24, 4, unicast),
            route([127, 0, 0, 0], 8, 5, RtType::Local),
            route([127, 0, 0, 9], 32, 6, unicast),
        ];
        for _ in 0..routes.len() {
            // In whatever order they came.
            routes.rotate_left(1);
            let mut fib = Fib::default();
            for entry in &routes {
                assert!(fib.insert(*entry));
                assert!(!fib.insert(*entry), "there is one");
            }
            for (addr, want) in [
                ([192, 0, 2, 1], 1),
                ([10, 9, 9, 9], 2),
                ([10, 1, 9, 9], 3),
                ([10, 1, 2, 9], 4),
                ([127, 0, 0, 9], 5),
            ] {
                let found = fib.lookup(Ipv4Addr::from(addr).to_bits());
                assert_eq!(found.map(|entry| entry.gateway), Some(want), "{addr:?}");
            }
        }
        assert!(Fib::default().lookup(1).is_none());
    }

    #[test]
    fn own_addresses_are_told_from_others() {
        let mut fib = Fib::default();
        fib.insert(route([10, 0, 0, 2], 32, 0, RtType::Local));
        fib.insert(route([10, 0, 0, 0], 24, 0, RtType::Unicast));
        for (addr, own) in [
            ([10, 0, 0, 2], true),
            ([255, 255, 255, 255], true),
            // The same hash.
            ([10, 0, 0, 66], false),
            ([192, 0, 2, 2], false),
            ([10, 0, 0, 3], false),
        ] {
            assert_eq!(fib.is_own(Ipv4Addr::from(addr).to_bits()), own, "{addr:?}");
        }
    }

    #[test]
    fn prefixes_of_any_length_do() {
        assert_eq!(prefix_mask(0), 0);
        assert_eq!(prefix_mask(24), 0xffff_ff00);
        assert_eq!([prefix_mask(32), prefix_mask(40)], [u32::MAX; 2]);
    }
}
