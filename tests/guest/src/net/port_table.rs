//! Which socket a packet is for, of protocols without connections: by a hash of the port (Linux: `struct udp_table`, `udp4_lib_lookup2`,
//! `udp_lib_get_port`).
//!
//! In: addresses and ports of a packet. Out: the socket that fits best, or each that fits. A port without a number is given here, too.

use std::fmt::Debug;

use super::Errno;
use super::netdevice::Ifindex;
use super::sock::{Sock, SockTable};
use super::trace::Span;

/// `net.ipv4.ip_local_port_range`.
pub(super) const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;
const PORT_HASH_SIZE: usize = 256;

/// An address of a socket; the default is any.
pub(super) trait SockAddr: Copy + Eq + Default {
    /// What names a device beside it; the default is any.
    type Dev: Copy + Eq + Default + Debug;

    /// A socket's own address, and its peer's.
    fn of(sk: &Sock) -> (Self, Self);

    /// The device that a socket is tied to.
    fn dev(sk: &Sock) -> Self::Dev;

    /// Some of its bits, for a hash.
    fn bits(self) -> u64;
}

impl SockAddr for u32 {
    /// They all mean the same on each.
    type Dev = ();

    #[inline]
    fn of(sk: &Sock) -> (Self, Self) {
        (sk.inet_rcv_saddr, sk.inet_daddr)
    }

    #[inline]
    fn dev(_: &Sock) {}

    #[inline]
    fn bits(self) -> u64 {
        self.into()
    }
}

impl SockAddr for u128 {
    type Dev = Option<Ifindex>;

    #[inline]
    fn of(sk: &Sock) -> (Self, Self) {
        (sk.pinet6.rcv_saddr, sk.pinet6.daddr)
    }

    #[inline]
    fn dev(sk: &Sock) -> Self::Dev {
        sk.pinet6.oif
    }

    #[inline]
    fn bits(self) -> u64 {
        (self >> 64) as u64 ^ self as u64
    }
}

/// What of a socket decides whether a packet is for it: what a lookup reads is together.
#[derive(Debug, Clone, Copy)]
struct HashEntry<A: SockAddr> {
    at: u32,
    num: u16,
    dport: u16,
    rcv_saddr: A,
    daddr: A,
    dev: A::Dev,
    reuse: bool,
    reuseport: bool,
}

impl<A: SockAddr> HashEntry<A> {
    fn new(at: usize, sk: &Sock) -> Self {
        let (rcv_saddr, daddr) = A::of(sk);
        Self {
            at: at as u32,
            num: sk.inet_num,
            dport: sk.inet_dport,
            rcv_saddr,
            daddr,
            dev: A::dev(sk),
            reuse: sk.sk_reuse,
            reuseport: sk.sk_reuseport,
        }
    }

    /// How particular the socket is (`compute_score`). An address of its own counts for more than a
    /// peer, because Linux looks for such sockets first.
    fn score(&self) -> u8 {
        let own = u8::from(self.rcv_saddr != A::default());
        let peer = 4 * u8::from(self.daddr != A::default()) + 4 * u8::from(self.dport != 0);
        16 * own + peer + u8::from(self.dev != A::Dev::default())
    }

    /// Whether it is at that local address, of that device.
    #[inline]
    fn is_at(&self, daddr: A, num: u16, dev: A::Dev) -> bool {
        self.num == num
            && (self.rcv_saddr == daddr || self.rcv_saddr == A::default())
            && (self.dev == dev || self.dev == A::Dev::default())
    }

    /// Whether it takes a packet that came by a device.
    #[inline]
    fn takes(&self, (saddr, sport): (A, u16), (daddr, num): (A, u16), dev: A::Dev) -> bool {
        self.is_at(daddr, num, dev)
            && (self.daddr == saddr || self.daddr == A::default())
            && (self.dport == sport || self.dport == 0)
    }
}

/// Sockets by local port (`struct udp_table`).
#[derive(Debug)]
pub(super) struct PortTable<A: SockAddr> {
    /// In each slot those with the highest score come first, and of equals the newest.
    slots: Vec<Vec<HashEntry<A>>>,
    /// Where to look for a free port first.
    next_port: u16,
}

impl<A: SockAddr> Default for PortTable<A> {
    fn default() -> Self {
        Self {
            slots: (0..PORT_HASH_SIZE).map(|_| Vec::new()).collect(),
            next_port: *LOCAL_PORTS.start(),
        }
    }
}

impl<A: SockAddr> PortTable<A> {
    #[inline]
    fn slot(&self, num: u16) -> &[HashEntry<A>] {
        &self.slots[usize::from(num) % PORT_HASH_SIZE]
    }

    /// The next socket that takes a packet, from the `nth` in its slot on; and where to go on.
    #[inline]
    pub fn next_match(
        &self,
        nth: usize,
        from: (A, u16),
        to: (A, u16),
        dev: A::Dev,
    ) -> Option<(usize, usize)> {
        let slot = self.slot(to.1).get(nth..)?;
        let more = slot.iter().position(|entry| entry.takes(from, to, dev))?;
        Some((slot[more].at as usize, nth + more + 1))
    }

    /// The socket that fits a packet best (`__udp4_lib_lookup`); peers are address and port.
    #[inline(always)] // for each datagram; its other callers are rare
    pub fn lookup(&self, from: (A, u16), to: (A, u16), dev: A::Dev) -> Option<usize> {
        for (nth, entry) in self.slot(to.1).iter().enumerate() {
            if entry.takes(from, to, dev) {
                if entry.reuseport {
                    return Some(self.reuseport_select_sock(nth, from, to, dev));
                }
                return Some(entry.at as usize);
            }
        }
        None
    }

    /// One of the sockets that share a port, always the same for a peer; the `nth` of the slot is the first of them.
    #[cold]
    fn reuseport_select_sock(
        &self,
        nth: usize,
        from: (A, u16),
        to: (A, u16),
        dev: A::Dev,
    ) -> usize {
        let slot = &self.slot(to.1)[nth..];
        let score = slot[0].score();
        let shares = |entry: &&HashEntry<A>| {
            entry.reuseport && entry.score() == score && entry.takes(from, to, dev)
        };
        let count = slot.iter().filter(shares).count();
        let hash = (from.0.bits() << 16 | u64::from(from.1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let chosen = (((hash >> 32) * count as u64) >> 32) as usize;
        slot.iter()
            .filter(shares)
            .nth(chosen)
            .map_or(0, |entry| entry.at as usize)
    }

    /// The socket at a local address, whoever it is connected to (`ping_lookup`).
    pub fn lookup_local(&self, (daddr, num): (A, u16), dev: A::Dev) -> Option<usize> {
        self.slot(num)
            .iter()
            .find(|entry| entry.is_at(daddr, num, dev))
            .map(|entry| entry.at as usize)
    }

    /// All sockets, each with the number of its slot.
    pub fn buckets(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let slots = self.slots.iter().enumerate();
        slots.flat_map(|(bucket, slot)| slot.iter().map(move |entry| (bucket, entry.at as usize)))
    }

    fn hash(&mut self, at: usize, sk: &Sock) {
        let entry = HashEntry::new(at, sk);
        let slot = &mut self.slots[usize::from(sk.inet_num) % PORT_HASH_SIZE];
        // Among equals the newest is first (`hlist_add_head_rcu`).
        let behind = slot.partition_point(|other| other.score() > entry.score());
        slot.insert(behind, entry);
    }

    /// A socket has other addresses than before (`udp_lib_rehash`).
    pub fn rehash(&mut self, at: usize, sk: &Sock) {
        self.unhash(at, sk.inet_num);
        self.hash(at, sk);
    }

    /// Whether another socket has the port at an address that overlaps (`udp_lib_lport_inuse`).
    fn lport_inuse(&self, num: u16, sk: &HashEntry<A>) -> bool {
        self.slot(num).iter().any(|other| {
            let both_own = sk.rcv_saddr != A::default() && other.rcv_saddr != A::default();
            let any = A::Dev::default();
            other.num == num
                && !(sk.reuse && other.reuse)
                && !(sk.reuseport && other.reuseport)
                && (!both_own || other.rcv_saddr == sk.rcv_saddr)
                && (sk.dev == other.dev || sk.dev == any || other.dev == any)
        })
    }

    /// Gives a socket a port, any free one for 0 (`udp_lib_get_port`).
    ///
    /// # Errors
    /// EADDRINUSE.
    pub fn get_port(
        &mut self,
        socks: &mut SockTable,
        at: usize,
        num: u16,
        stage: impl Fn(&'static str) -> Span,
    ) -> Result<(), Errno> {
        let _stage = stage("udp_lib_get_port");
        let lport_inuse = |table: &Self, num, sk: &HashEntry<A>| {
            let _stage = stage("udp_lib_lport_inuse");
            table.lport_inuse(num, sk)
        };
        let entry = HashEntry::new(at, socks.get(at).ok_or(Errno::EBADF)?);
        let num = if num != 0 {
            if lport_inuse(self, num, &entry) {
                return Err(Errno::EADDRINUSE);
            }
            num
        } else {
            let from = self.next_port;
            let free = (from..=*LOCAL_PORTS.end())
                .chain(*LOCAL_PORTS.start()..from)
                .find(|&num| !lport_inuse(self, num, &entry))
                .ok_or(Errno::EADDRINUSE)?;
            self.next_port = if free == *LOCAL_PORTS.end() {
                *LOCAL_PORTS.start()
            } else {
                free + 1
            };
            free
        };
        let sk = socks.get_mut(at).ok_or(Errno::EBADF)?;
        sk.inet_num = num;
        self.hash(at, sk);
        Ok(())
    }

    /// A socket gives its port back (`udp_lib_unhash`).
    pub fn unhash(&mut self, at: usize, num: u16) {
        self.slots[usize::from(num) % PORT_HASH_SIZE].retain(|entry| entry.at as usize != at);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sock::Proto;
    use super::*;

    const OURS: u32 = 0x0a4d_0002;
    const PEER: u32 = 0x0a4d_0001;

    /// A socket at `addr`, connected to `peer` if that is not 0.
    fn add(
        socks: &mut SockTable,
        table: &mut PortTable<u32>,
        addr: u32,
        peer: (u32, u16),
    ) -> usize {
        let at = socks.sk_alloc(Proto::Udp, 1000, 1000);
        let sk = socks.get_mut(at).unwrap();
        sk.inet_rcv_saddr = addr;
        (sk.inet_daddr, sk.inet_dport) = peer;
        sk.inet_num = 7000;
        table.hash(at, sk);
        at
    }

    #[test]
    fn the_socket_that_fits_best_wins() {
        let (mut socks, mut table) = (SockTable::default(), PortTable::default());
        let any = add(&mut socks, &mut table, 0, (0, 0));
        let own = add(&mut socks, &mut table, OURS, (0, 0));
        let connected = add(&mut socks, &mut table, OURS, (PEER, 9));
        for (saddr, sport, daddr, port, want) in [
            (PEER, 9, OURS, 7000, Some(connected)),
            (PEER, 10, OURS, 7000, Some(own)),
            (PEER + 1, 9, OURS, 7000, Some(own)),
            (PEER, 9, u32::MAX, 7000, Some(any)),
            (PEER, 9, OURS, 7000 + PORT_HASH_SIZE as u16, None),
        ] {
            assert_eq!(table.lookup((saddr, sport), (daddr, port), ()), want);
            let first = table.next_match(0, (saddr, sport), (daddr, port), ());
            assert_eq!(first.is_some(), want.is_some());
        }
    }

    #[test]
    fn of_equal_sockets_the_newest_wins() {
        let (mut socks, mut table) = (SockTable::default(), PortTable::default());
        let mut last = 0;
        for _ in 0..3 {
            last = add(&mut socks, &mut table, 0, (0, 0));
        }
        let (from, to) = ((PEER, 9), (OURS, 7000));
        assert_eq!(table.lookup(from, to, ()), Some(last));
        assert_eq!(
            table.next_match(2, from, to, ()),
            Some((0, 3)),
            "the oldest"
        );
    }

    #[test]
    fn a_local_address_is_enough_to_be_found_by() {
        let (mut socks, mut table) = (SockTable::default(), PortTable::default());
        let connected = add(&mut socks, &mut table, OURS, (PEER, 9));
        assert_eq!(table.lookup((PEER, 0), (OURS, 7000), ()), None);
        assert_eq!(table.lookup_local((OURS, 7000), ()), Some(connected));
        assert_eq!(table.lookup_local((PEER, 7000), ()), None);
        assert_eq!(table.lookup_local((OURS, 7001), ()), None);
    }

    fn get_port(
        table: &mut PortTable<u32>,
        socks: &mut SockTable,
        at: usize,
        num: u16,
    ) -> Result<(), Errno> {
        table.get_port(socks, at, num, |name| Span::of(None, name, 0))
    }

    #[test]
    fn ports_are_given_once() {
        let (mut socks, mut table) = (SockTable::default(), PortTable::default());
        let mut open = |addr| {
            let at = socks.sk_alloc(Proto::Udp, 1000, 1000);
            socks.get_mut(at).unwrap().inet_rcv_saddr = addr;
            at
        };
        let (a, b, c) = (open(OURS), open(PEER), open(0));
        assert_eq!(get_port(&mut table, &mut socks, a, 7000), Ok(()));
        assert_eq!(
            get_port(&mut table, &mut socks, b, 7000),
            Ok(()),
            "another address"
        );
        assert_eq!(
            get_port(&mut table, &mut socks, c, 7000),
            Err(Errno::EADDRINUSE)
        );
        table.unhash(a, 7000);
        table.unhash(b, 7000);
        assert_eq!(get_port(&mut table, &mut socks, c, 7000), Ok(()));
    }

    #[test]
    fn free_ports_are_found_until_there_are_none() {
        let (mut socks, mut table) = (SockTable::default(), PortTable::default());
        table.next_port = 60_999;
        for want in [60_999, 32_768, 32_769] {
            let at = socks.sk_alloc(Proto::Udp, 1000, 1000);
            assert_eq!(get_port(&mut table, &mut socks, at, 0), Ok(()));
            assert_eq!(socks.get(at).unwrap().inet_num, want);
        }
    }
}
