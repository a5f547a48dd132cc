//! Sockets below the system calls (Linux: `net/core/sock.c`, `struct sock`, `struct inet_sock`).
//!
//! In: packets for a socket's queue. Out: the same to a reader. Each socket is charged for what waits
//! in its queue, and for what it sent until the device is done with it; beyond the limits packets are
//! dropped and counted, and senders are told to come again. They are found by their port ([`super::port_table`]).

use std::collections::VecDeque;
use std::fmt::Debug;

use super::ip_cork::Pending;
use super::ip_recverr::ErrorQueue;
use super::ip_sockglue::{IpPmtudisc, McOptions};
use super::netdevice::Ifindex;
use super::raw::RawOptions;
use super::skbuff::{SkBuff, Skb};
use super::stats::{Mib6, RxDrop};
use super::{Errno, Kernel, Machine, Received};
use crate::transport::Transport;

/// Least `SO_RCVBUF` and `SO_SNDBUF`, doubled.
pub(super) const SOCK_MIN_RCVBUF: usize = 2304;
pub(super) const SOCK_MIN_SNDBUF: usize = 4608;

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

    #[test]
    fn buffers_have_a_floor() {
        assert_eq!(sock_buf(1, SOCK_MIN_SNDBUF), 4608);
        assert_eq!(sock_buf(1, SOCK_MIN_RCVBUF), 2304);
        assert_eq!(sock_buf(4000, SOCK_MIN_SNDBUF), 8000);
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
