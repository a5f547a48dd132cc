//! Sockets below the system calls (Linux: `net/core/sock.c`, `struct sock`, `struct inet_sock`).
//!
//! In: packets for a socket's queue. Out: the same to a reader. Each socket is charged for what waits
//! in its queue, and for what it sent until the device is done with it; beyond the limits packets are
//! dropped and counted, and senders are told to come again. Sockets are found by a hash of their port.

use std::collections::VecDeque;
use std::fmt::Debug;

use super::ip_cork::Pending;
use super::ip_recverr::ErrorQueue;
use super::ip_sockglue::{IpPmtudisc, McOptions};
use super::netdevice::Ifindex;
use super::raw::RawOptions;
use super::skbuff::{SkBuff, Skb};
use super::stats::{Mib6, RxDrop};
use super::trace::Span;
use super::{Errno, Kernel, Machine, Received};
use crate::transport::Transport;

/// Least `SO_RCVBUF` and `SO_SNDBUF`, doubled.
pub(super) const SOCK_MIN_RCVBUF: usize = 2304;
pub(super) const SOCK_MIN_SNDBUF: usize = 4608;
/// `net.ipv4.ip_local_port_range`.
pub(super) const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;
const PORT_HASH_SIZE: usize = 256;

/// The protocol of a socket (`struct proto`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proto {
    Udp,
    Ping,
    Packet,
    Tcp,
    Raw,
    Udpv6,
    Pingv6,
}

/// What an accepted socket has of its listener (`sk_clone_lock`).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Inherited {
    sk_reuse: bool,
    sk_reuseport: bool,
    tos: u8,
    pmtudisc: IpPmtudisc,
}

/// A socket that may be gone, or another, when it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SkRef {
    at: u32,
    generation: u32,
}

/// A socket.
#[derive(Debug)]
pub(super) struct Sock {
    pub sk_prot: Proto,
    /// Which of those that had this place.
    pub generation: u32,
    /// Local port, or identifier; 0 before it is bound. Of a raw socket the protocol.
    pub inet_num: u16,
    /// Local address; 0 is any.
    pub inet_rcv_saddr: u32,
    /// Source of what it sends; 0 is that of the route.
    pub inet_saddr: u32,
    /// Peer, once connected; else 0.
    pub inet_daddr: u32,
    pub inet_dport: u16,
    pub sk_rcvbuf: usize,
    pub sk_rmem_alloc: usize,
    pub sk_sndbuf: usize,
    pub sk_wmem_alloc: usize,
    pub sk_receive_queue: VecDeque<Skb>,
    /// Receive queue that its last packet came by, from 1 on; 0 is none (`sk_napi_id`).
    pub sk_rx_queue: u16,
    /// Hash of its flow, once it is connected and a packet came (`sk_rxhash`); 0 is none.
    pub sk_rxhash: u32,
    /// Microseconds that its reader polls the device (`SO_BUSY_POLL`).
    pub sk_ll_usec: u32,
    /// How urgent what it sends is (`SO_PRIORITY`), and what the packets say of it (`IP_TOS`).
    pub sk_priority: u32,
    pub tos: u8,
    /// Packets for which its queue had no room.
    pub sk_drops: u64,
    /// What a peer answered; told once.
    pub sk_err: Option<Errno>,
    /// It shares its port with others that would, too (`SO_REUSEADDR`).
    pub sk_reuse: bool,
    /// It takes datagrams that stand for several (`UDP_GRO`).
    pub gro_enabled: bool,
    /// Its place among the TCP sockets, of one of them.
    pub tcp_sk: Option<usize>,
    /// Whether its packets may be fragmented.
    pub pmtudisc: IpPmtudisc,
    /// It may send to broadcast addresses (`SO_BROADCAST`).
    pub broadcast: bool,
    /// It shares its port with others that would, too; each datagram is for one of them (`SO_REUSEPORT`).
    pub sk_reuseport: bool,
    /// Its groups.
    pub mc: McOptions,
    /// What a raw socket says of its packets.
    pub raw: RawOptions,
    /// What it sends waits for more, until it is told otherwise (`UDP_CORK`).
    pub corked: bool,
    /// What waits.
    pub pending: Option<Pending>,
    /// What became of what it sent, if it wants to know.
    pub errors: ErrorQueue,
    /// Its addresses, where it is of AF_INET6.
    pub pinet6: Ipv6Pinfo,
}

/// What a socket of AF_INET6 has instead of the addresses of IPv4 (`struct ipv6_pinfo`); 0 as there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ipv6Pinfo {
    pub rcv_saddr: u128,
    pub saddr: u128,
    pub daddr: u128,
    /// The device that packets leave by and come by (`sk_bound_dev_if`), if one was named.
    pub oif: Option<Ifindex>,
    /// What the packets say of their class (`IPV6_TCLASS`).
    pub tclass: u8,
}

impl Sock {
    /// What its children have of it; not its priority.
    pub fn bequeath(&self) -> Inherited {
        Inherited {
            sk_reuse: self.sk_reuse,
            sk_reuseport: self.sk_reuseport,
            tos: self.tos,
            pmtudisc: self.pmtudisc,
        }
    }

    /// It is a child.
    pub fn inherit(&mut self, of: Inherited) {
        (self.sk_reuse, self.sk_reuseport) = (of.sk_reuse, of.sk_reuseport);
        (self.tos, self.pmtudisc) = (of.tos, of.pmtudisc);
    }

    /// Who it is, being in place `at`.
    #[inline]
    fn sk_ref(&self, at: usize) -> SkRef {
        SkRef {
            at: at as u32,
            generation: self.generation,
        }
    }
}

/// All sockets.
#[derive(Debug, Default)]
pub(super) struct SockTable {
    socks: Vec<Option<Sock>>,
    generations: u32,
}

impl SockTable {
    /// A new socket; its place is the lowest free one.
    pub fn sk_alloc(&mut self, sk_prot: Proto, sk_rcvbuf: usize, sk_sndbuf: usize) -> usize {
        self.generations = self.generations.wrapping_add(1);
        let sk = Sock {
            sk_prot,
            generation: self.generations,
            inet_num: 0,
            inet_rcv_saddr: 0,
            inet_saddr: 0,
            inet_daddr: 0,
            inet_dport: 0,
            sk_rcvbuf,
            sk_rmem_alloc: 0,
            sk_sndbuf,
            sk_wmem_alloc: 0,
            sk_receive_queue: VecDeque::new(),
            sk_rx_queue: 0,
            sk_rxhash: 0,
            sk_ll_usec: 0,
            sk_priority: 0,
            tos: 0,
            sk_drops: 0,
            sk_err: None,
            sk_reuse: false,
            gro_enabled: false,
            tcp_sk: None,
            pmtudisc: IpPmtudisc::default(),
            broadcast: false,
            sk_reuseport: false,
            mc: McOptions::default(),
            raw: RawOptions::default(),
            corked: false,
            pending: None,
            errors: ErrorQueue::default(),
            pinet6: Ipv6Pinfo::default(),
        };
        let free = self.socks.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.socks.push(None);
            self.socks.len() - 1
        });
        self.socks[at] = Some(sk);
        at
    }

    #[inline]
    pub fn get(&self, at: usize) -> Option<&Sock> {
        self.socks.get(at)?.as_ref()
    }

    #[inline]
    pub fn get_mut(&mut self, at: usize) -> Option<&mut Sock> {
        self.socks.get_mut(at)?.as_mut()
    }

    /// Sockets of a protocol (`sock_prot_inuse_get`).
    pub fn inuse(&self, prot: Proto) -> usize {
        let socks = self.socks.iter().flatten();
        socks.filter(|sk| sk.sk_prot == prot).count()
    }

    pub fn remove(&mut self, at: usize) -> Option<Sock> {
        self.socks.get_mut(at)?.take()
    }

    /// Whether a group's packets of a socket, or of nobody's, are for this host as well.
    pub fn mc_loop(&self, sk: Option<SkRef>) -> bool {
        let sock = sk.and_then(|sk| self.get(sk.at as usize));
        sock.is_none_or(|sock| sock.mc.loops)
    }

    /// How many routers a group's packets of a socket, or of nobody's, pass, and one.
    pub fn mc_ttl(&self, sk: Option<SkRef>) -> u8 {
        let sock = sk.and_then(|sk| self.get(sk.at as usize));
        sock.map_or(1, |sock| sock.mc.ttl)
    }

    /// What the socket says of fragments, if it is still there.
    pub fn sk_pmtudisc(&self, sk: SkRef) -> Option<IpPmtudisc> {
        let sock = self.get(sk.at as usize);
        sock.filter(|sock| sock.generation == sk.generation)
            .map(|sock| sock.pmtudisc)
    }

    /// The device is done with a packet of that socket.
    #[inline]
    pub fn sock_wfree(&mut self, sk: SkRef, truesize: usize) {
        if let Some(sock) = self.get_mut(sk.at as usize)
            && sock.generation == sk.generation
        {
            sock.sk_wmem_alloc -= truesize.min(sock.sk_wmem_alloc);
        }
    }
}

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

/// What `SO_RCVBUF` and `SO_SNDBUF` make of a value: twice as much, because overhead counts too.
pub(super) fn sock_buf(value: usize, least: usize) -> usize {
    value.saturating_mul(2).max(least)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Puts a packet into a socket's queue, unless that is full: one
    /// more is always let in, however long. Whether it is there.
    #[inline(always)] // for each datagram; its other callers are rare
    pub(super) fn sock_queue_rcv_skb(&mut self, at: usize, mut skb: Skb, full: RxDrop) -> bool {
        let Some(sk) = self.socks.get_mut(at) else {
            self.drop_rx(skb, full);
            return false;
        };
        if sk.sk_rmem_alloc > sk.sk_rcvbuf {
            sk.sk_drops += 1;
            self.drop_rx(skb, full);
            return false;
        }
        let before = sk.sk_rmem_alloc;
        sk.sk_rmem_alloc += skb.truesize;
        let after = sk.sk_rmem_alloc;
        skb.tstamp = self.machine.now();
        sk.sk_rx_queue = skb.queue_mapping;
        if self.rps.rfs_needed {
            sk.sock_rps_save_rxhash(&skb);
        }
        sk.sk_receive_queue.push_back(skb);
        self.changed("sk_rmem_alloc", || format!("{before} -> {after}"));
        self.counters.queued += 1;
        true
    }

    /// Takes the oldest packet out of a socket's queue; the socket is no longer charged for it.
    #[inline(always)] // for each datagram; its other caller is rare
    pub(super) fn sock_dequeue_skb(&mut self, at: usize) -> Result<Skb, Errno> {
        let sk = self.socks.get_mut(at).ok_or(Errno::EBADF)?;
        let skb = sk.sk_receive_queue.pop_front().ok_or(Errno::EAGAIN)?;
        let before = sk.sk_rmem_alloc;
        sk.sk_rmem_alloc -= skb.truesize;
        let (after, prot) = (sk.sk_rmem_alloc, sk.sk_prot);
        let _stage = self.stage(match prot {
            Proto::Udp | Proto::Udpv6 => "udp_rmem_release",
            _ => "sock_rfree",
        });
        self.changed("sk_rmem_alloc", || format!("{before} -> {after}"));
        Ok(skb)
    }

    /// Gives a process the oldest packet of a socket's queue, headers and all; with `peek` it stays there.
    pub(super) fn sock_recv_skb(
        &mut self,
        at: usize,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received, Errno> {
        if peek {
            let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
            let skb = sk.sk_receive_queue.front().ok_or(Errno::EAGAIN)?;
            return Ok(Received::copy(skb, 0, 0, buf));
        }
        let skb = self.sock_dequeue_skb(at)?;
        let received = Received::copy(&skb, 0, 0, buf);
        self.skb_cache.put(skb);
        Ok(received)
    }

    /// Whether a socket may send (`sock_alloc_send_skb`): who it is, its port, and its type of service.
    #[inline]
    pub(super) fn sock_alloc_send(&mut self, at: usize) -> Result<(SkRef, u16, u8), Errno> {
        let sk = self.socks.get_mut(at).ok_or(Errno::EBADF)?;
        let full = || (sk.sk_wmem_alloc >= sk.sk_sndbuf).then_some(Errno::EAGAIN);
        if let Some(error) = sk.sk_err.take().or_else(full) {
            match sk.sk_prot {
                Proto::Udpv6 | Proto::Pingv6 => self.inc6(Mib6::Ip6OutDiscards),
                _ => self.counters.snmp.ip_out_discards += 1,
            }
            return Err(error);
        }
        Ok((sk.sk_ref(at), sk.inet_num, sk.tos))
    }

    /// Who a socket is.
    pub(super) fn sk_ref(&self, at: usize) -> Result<SkRef, Errno> {
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        Ok(sk.sk_ref(at))
    }

    /// Something went wrong that a socket's owner is to hear of, at the next call (`sk_error_report`).
    pub(super) fn sk_error_report(&mut self, at: usize, error: Errno) {
        let _stage = self.stage("sock_def_error_report");
        if let Some(sk) = self.socks.get_mut(at) {
            sk.sk_err = Some(error);
        }
        self.changed("sk_err", || error.to_string());
    }

    /// Charges the sender of a packet for it, which is as urgent as he says.
    #[inline]
    pub(super) fn skb_set_owner_w(&mut self, skb: &mut SkBuff, sk: SkRef) {
        skb.sk = Some(sk);
        if let Some(sock) = self.socks.get_mut(sk.at as usize) {
            sock.sk_wmem_alloc += skb.truesize;
            skb.priority = sock.sk_priority;
        }
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn buffers_have_a_floor() {
        assert_eq!(sock_buf(1, SOCK_MIN_SNDBUF), 4608);
        assert_eq!(sock_buf(1, SOCK_MIN_RCVBUF), 2304);
        assert_eq!(sock_buf(4000, SOCK_MIN_SNDBUF), 8000);
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

    #[test]
    fn a_packet_that_outlives_its_socket_charges_nobody() {
        let mut socks = SockTable::default();
        let at = socks.sk_alloc(Proto::Udp, 1000, 1000);
        let sk = SkRef {
            at: at as u32,
            generation: socks.get(at).unwrap().generation,
        };
        socks.remove(at);
        socks.sock_wfree(sk, 768);
        let again = socks.sk_alloc(Proto::Udp, 1000, 1000);
        assert_eq!(again, at);
        socks.get_mut(at).unwrap().sk_wmem_alloc = 768;
        socks.sock_wfree(sk, 768);
        assert_eq!(socks.get(at).unwrap().sk_wmem_alloc, 768);
    }
}
