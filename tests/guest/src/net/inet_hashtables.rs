//! Where TCP sockets are found (Linux: `struct inet_hashinfo`, `net/ipv4/inet_hashtables.c`, `inet_connection_sock.c`).
//!
//! Connections by their four-tuple, listeners by port and address; ports that are free; and the earliest instant at which a
//! socket's timer is due. Bounded are the connections that no process has any more.

use std::collections::HashMap;

use smoltcp::socket::tcp::State;

use super::Errno;
use super::port_table::LOCAL_PORTS;
use super::skbuff::{SkBuff, SkbCache};
use super::sock::Inherited;
use super::tcp_sock::{AcceptQueue, Peer, Role, Stack, TcpSock};

/// Connections that no process has any more (`tcp_max_orphans`).
const MAX_ORPHANS: usize = 256;

/// All TCP sockets (`struct inet_hashinfo`).
pub(super) struct TcpTable {
    socks: Vec<Option<Box<TcpSock>>>,
    /// By local and remote end.
    ehash: HashMap<(Peer, Peer), usize>,
    /// By port; of each port those with an address of their own first.
    listening: HashMap<u16, Vec<usize>>,
    pub stack: Stack,
    /// The earliest of the sockets' `expires`.
    pub timer: Option<u64>,
    next_port: u16,
    orphans: usize,
}

impl TcpTable {
    /// Without sockets; ports and sequence numbers begin where `seed` says.
    pub fn new(mtu: usize, seed: u64, now: u64) -> Self {
        Self {
            socks: Vec::new(),
            ehash: HashMap::new(),
            listening: HashMap::new(),
            stack: Stack::new(mtu, seed, now),
            timer: None,
            next_port: LOCAL_PORTS.start() + (seed % LOCAL_PORTS.len() as u64) as u16,
            orphans: 0,
        }
    }

    pub fn sk_alloc(&mut self, sk_rcvbuf: usize, sk_sndbuf: usize) -> usize {
        let sk = TcpSock {
            role: Role::Fresh,
            local: (0, 0),
            remote: (0, 0),
            reuse: false,
            parent: None,
            inherited: Inherited::default(),
            orphan: false,
            sk_err: None,
            sk_rcvbuf,
            sk_sndbuf,
            expires: None,
            fin_deadline: None,
        };
        let free = self.socks.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.socks.push(None);
            self.socks.len() - 1
        });
        self.socks[at] = Some(Box::new(sk));
        at
    }

    pub fn get(&self, at: usize) -> Option<&TcpSock> {
        self.socks.get(at)?.as_deref()
    }

    pub fn get_mut(&mut self, at: usize) -> Option<&mut TcpSock> {
        self.socks.get_mut(at)?.as_deref_mut()
    }

    /// What a socket is at ([`TcpSock::state`]).
    pub fn state(&self, at: usize) -> Option<State> {
        self.get(at).map(TcpSock::state)
    }

    /// Whether a number acknowledges all that a connection has sent.
    pub fn acknowledges(&mut self, at: usize, ack_seq: u32) -> bool {
        let connection = self.get_mut(at).and_then(TcpSock::connection);
        connection.is_some_and(|connection| connection.snd_nxt == Some(ack_seq))
    }

    /// Listeners and connections, those that no process has included, but neither requests nor what is over
    /// (`sock_prot_inuse_get`).
    pub fn inuse(&self) -> usize {
        let states = self.socks.iter().flatten().map(|sk| sk.state());
        let is_in_use =
            |state: &State| !matches!(state, State::Closed | State::SynReceived | State::TimeWait);
        states.filter(is_in_use).count()
    }

    /// Places that sockets have, or had.
    pub fn len(&self) -> usize {
        self.socks.len()
    }

    /// Nobody finds a socket by its addresses any more.
    pub fn unhash(&mut self, at: usize) {
        let Some(sk) = self.get(at) else { return };
        let (local, remote) = (sk.local, sk.remote);
        if self.ehash.get(&(local, remote)) == Some(&at) {
            self.ehash.remove(&(local, remote));
        }
        if let Some(listeners) = self.listening.get_mut(&local.1) {
            listeners.retain(|&other| other != at);
        }
    }

    pub fn remove(&mut self, at: usize) {
        self.unhash(at);
        self.mod_timer(at, None);
        if let Some(sk) = self.socks.get_mut(at).and_then(Option::take) {
            self.orphans -= usize::from(sk.orphan);
        }
    }

    /// A process has let go of a socket; whether there is room for one more such.
    pub fn orphan(&mut self, at: usize) -> bool {
        if let Some(sk) = self.get_mut(at) {
            sk.orphan = true;
            self.orphans += 1;
        }
        self.orphans <= MAX_ORPHANS
    }

    /// The connection that a packet is of (`__inet_lookup_established`).
    pub fn lookup_established(&self, from: Peer, to: Peer) -> Option<usize> {
        self.ehash.get(&(to, from)).copied()
    }

    /// The listener that a packet is for (`__inet_lookup_listener`).
    pub fn lookup_listener(&self, to: Peer) -> Option<usize> {
        let listeners = self.listening.get(&to.1)?.iter().copied();
        let score = |at: usize| match self.get(at)?.local.0 {
            0 => Some((0, at)),
            addr if addr == to.0 => Some((1, at)),
            _ => None,
        };
        listeners
            .filter_map(score)
            .max_by_key(|&(score, _)| score)
            .map(|(_, at)| at)
    }

    /// Whether another socket has the port at an address that overlaps (`inet_csk_bind_conflict`).
    fn bind_conflict(&self, at: usize, (addr, port): Peer) -> bool {
        let reuse = self.get(at).is_some_and(|sk| sk.reuse);
        self.socks.iter().enumerate().any(|(other, sk)| {
            sk.as_ref().is_some_and(|sk| {
                let apart = addr != 0 && sk.local.0 != 0 && addr != sk.local.0;
                let listens = matches!(sk.role, Role::Listen(_));
                other != at && sk.local.1 == port && !apart && !(reuse && sk.reuse && !listens)
            })
        })
    }

    /// Gives a socket a port, any free one for 0 (`inet_csk_get_port`).
    ///
    /// # Errors
    /// EADDRINUSE.
    pub fn get_port(&mut self, at: usize, (addr, port): Peer) -> Result<(), Errno> {
        let port = if port == 0 {
            let from = self.next_port;
            let free = (from..=*LOCAL_PORTS.end())
                .chain(*LOCAL_PORTS.start()..from)
                .find(|&port| !self.bind_conflict(at, (addr, port)))
                .ok_or(Errno::EADDRINUSE)?;
            let last = free == *LOCAL_PORTS.end();
            self.next_port = if last { *LOCAL_PORTS.start() } else { free + 1 };
            free
        } else if self.bind_conflict(at, (addr, port)) {
            return Err(Errno::EADDRINUSE);
        } else {
            port
        };
        self.get_mut(at).ok_or(Errno::EBADF)?.local = (addr, port);
        Ok(())
    }

    /// A bound socket waits for connections (`inet_csk_listen_start`).
    pub fn listen(&mut self, at: usize, max_ack_backlog: usize) {
        let Some(sk) = self.get_mut(at) else { return };
        if let Some(queue) = sk.listener() {
            queue.max_ack_backlog = max_ack_backlog;
            return;
        }
        sk.role = Role::Listen(AcceptQueue {
            max_ack_backlog,
            ..AcceptQueue::default()
        });
        let port = sk.local.1;
        self.listening.entry(port).or_default().push(at);
    }

    /// Makes a socket one end of a connection, which asks for it or waits to be asked.
    ///
    /// # Errors
    /// EADDRNOTAVAIL: there is one with these ends already, or its own is no host's address.
    pub fn connection(&mut self, at: usize, ends: (Peer, Peer), asks: bool) -> Result<(), Errno> {
        if self.ehash.contains_key(&ends) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let sk = self.socks.get_mut(at).and_then(Option::as_mut);
        sk.ok_or(Errno::EBADF)?.begin(&mut self.stack, ends, asks)?;
        self.ehash.insert(ends, at);
        Ok(())
    }

    /// Gives a connection a packet, if there is one, and has it send what it has to; that is left in the stack.
    pub fn poll(&mut self, at: usize, now: u64, packet: Option<&SkBuff>, cache: &mut SkbCache) {
        if let Some(sk) = self.socks.get_mut(at).and_then(Option::as_mut) {
            let expires = sk.poll(&mut self.stack, now, packet, cache);
            self.mod_timer(at, expires);
        }
    }

    /// Looks at a socket again at that instant.
    pub fn mod_timer(&mut self, at: usize, expires: Option<u64>) {
        let Some(sk) = self.get_mut(at) else { return };
        let before = std::mem::replace(&mut sk.expires, expires);
        if before.is_some() && before == self.timer {
            let socks = self.socks.iter().flatten();
            self.timer = socks.filter_map(|sk| sk.expires).min();
        } else {
            self.timer = self.timer.into_iter().chain(expires).min();
        }
    }
}
