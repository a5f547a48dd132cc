//! A TCP socket, and what a connection does (Linux: `struct tcp_sock`; RFC 9293).
//!
//! The protocol's state machine is smoltcp's: each connection has one of its sockets, and all share an interface without
//! link layer, through which a connection gets its packets and says what is to be sent. In: packets from
//! `tcp_v4_rcv`, instants. Out: packets with headers, and when to come again. There is no congestion control, nor are there
//! timestamps: the peer's window is the limit.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::Errno;
use super::ip_input::IPHDR_LEN;
use super::skbuff::{MAX_HEADER, SkBuff, Skb, SkbCache};
use super::sock::Inherited;
use super::tcp::{TCP_FLAG_ACK, TCP_FLAG_FIN, TCP_FLAGS, TCPHDR_LEN};

/// How long a handshake that the peer does not go on with lasts: six repetitions of a SYN, five of a SYN-ACK
/// (`tcp_syn_retries`, `tcp_synack_retries`).
const SYN_TIMEOUT: Duration = Duration::from_secs(127);
const SYNACK_TIMEOUT: Duration = Duration::from_secs(63);
/// How long data is repeated that nobody acknowledges (`tcp_retries2`).
const RETRANS_TIMEOUT: Duration = Duration::from_millis(924_600);
/// A timer that is due does not become due again within this, in nanoseconds.
const TIMER_SLACK: u64 = 1_000_000;
/// How long a FIN is waited for that smoltcp does not repeat, in nanoseconds.
const FIN_REPEATED: u64 = 1_000_000_000;
/// Headers of a segment without options.
const HEADERS: usize = IPHDR_LEN + TCPHDR_LEN;

/// Address and port.
pub(super) type Peer = (u32, u16);

/// Connections that wait for a process, or for their handshake's end (`struct request_sock_queue`).
#[derive(Debug, Default)]
pub(super) struct AcceptQueue {
    /// Handshakes under way.
    pub qlen: usize,
    /// Established, the oldest first.
    pub accept: Vec<usize>,
    pub max_ack_backlog: usize,
    /// The place of the listener among all sockets.
    pub owner: usize,
}

impl AcceptQueue {
    /// Whether one more would be too many (`sk_acceptq_is_full`).
    pub fn is_full(&self) -> bool {
        self.accept.len() > self.max_ack_backlog
    }
}

/// What a socket does.
pub(super) enum Role {
    /// Nothing yet.
    Fresh,
    Listen(AcceptQueue),
    Connection(Box<Connection>),
}

/// A connection.
pub(super) struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// What was sent ends before this (`snd_nxt`).
    pub snd_nxt: Option<u32>,
    /// What was acknowledged ends before this; once anything was sent.
    pub snd_una: u32,
    /// The headers of what was sent last.
    pub last: [u8; HEADERS],
    /// When to repeat a FIN that smoltcp has forgotten.
    fin_due: Option<u64>,
    /// It is over: nothing is sent or received any more, but what came may be read (`tcp_done`).
    pub done: bool,
    /// `shutdown` for reading.
    pub rcv_shutdown: bool,
}

impl Connection {
    fn new(socket: Socket<'static>) -> Self {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            snd_nxt: None,
            snd_una: 0,
            last: [0; HEADERS],
            fin_due: None,
            done: false,
            rcv_shutdown: false,
        }
    }

    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    /// The peer has got all before `ack_seq`, unless it cannot (`tcp_ack`).
    pub fn tcp_ack(&mut self, ack_seq: u32) {
        if self.awaits(ack_seq) {
            self.snd_una = ack_seq;
        }
    }

    /// Whether a number is of what was sent and is not acknowledged, or the next one.
    pub fn awaits(&self, seq: u32) -> bool {
        // (`between`)
        self.snd_nxt.is_some_and(|snd_nxt| {
            snd_nxt.wrapping_sub(self.snd_una) >= seq.wrapping_sub(self.snd_una)
        })
    }

    /// Whether there is something to read, or nothing more will come.
    pub fn is_readable(&self) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        let begins = matches!(socket.state(), State::SynSent | State::SynReceived);
        socket.can_recv() || self.done || self.rcv_shutdown || !begins && !socket.may_recv()
    }

    /// Whether there is room for something, or nobody takes anything more.
    pub fn is_writable(&self) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        let begins = matches!(socket.state(), State::SynSent | State::SynReceived);
        self.done || !begins && (socket.can_send() || !socket.may_send())
    }

    /// Whether nothing more will be received, as far as is known, and whether nothing more will be sent (`sk_shutdown`).
    pub fn shutdown(&self) -> (bool, bool) {
        let state = self.state();
        let fin_came = matches!(
            state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        let fin_sent = matches!(
            state,
            State::FinWait1 | State::FinWait2 | State::Closing | State::TimeWait | State::LastAck
        );
        let over = self.done || state == State::Closed;
        (self.rcv_shutdown || fin_came || over, fin_sent || over)
    }

    /// How long the peer may say nothing.
    fn timeout(&self, asked: bool) -> Option<Duration> {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        match socket.state() {
            State::SynSent => Some(SYN_TIMEOUT),
            State::SynReceived if asked => Some(SYNACK_TIMEOUT),
            State::Established | State::CloseWait if socket.send_queue() == 0 => None,
            State::Listen | State::FinWait2 | State::TimeWait | State::Closed => None,
            _ => Some(RETRANS_TIMEOUT),
        }
    }

    /// Gives it a packet, if there is one, and has it send what it has to; when to come again.
    fn poll(
        &mut self,
        stack: &mut Stack,
        now: u64,
        packet: Option<&SkBuff>,
        cache: &mut SkbCache,
        asked: bool,
    ) -> Option<u64> {
        let timeout = self.timeout(asked);
        self.socket().set_timeout(timeout);
        let rx = packet.map(|skb| {
            if skb.is_nonlinear() {
                stack.linear.resize(skb.network_len(), 0);
                skb.copy_network(&mut stack.linear);
                &stack.linear[..]
            } else {
                skb.network()
            }
        });
        let mut wire = Wire {
            rx,
            tx: &mut stack.out,
            cache,
            mtu: stack.mtu,
        };
        let time = instant(now);
        stack.iface.poll(time, &mut wire, &mut self.sockets);
        let sent = !wire.tx.is_empty();
        self.socket().set_timeout(None);
        let own = stack.iface.poll_at(time, &self.sockets);
        let timeout = self.timeout(asked);
        self.socket().set_timeout(timeout);
        let any = stack.iface.poll_at(time, &self.sockets);
        let any = any.map(|at| u64::try_from(at.total_micros()).unwrap_or(0) * 1000);
        let fin = self.repeat_fin(own.is_none() && !sent, now, stack, cache);
        let due = any.into_iter().chain(fin).min();
        due.map(|due| due.max(now + TIMER_SLACK))
    }

    /// After three repeated acknowledgements smoltcp stops its timer and sends the next segment again. If there is none but
    /// a FIN it sends nothing, and would never do so: its FIN is repeated here.
    fn repeat_fin(
        &mut self,
        idle: bool,
        now: u64,
        stack: &mut Stack,
        cache: &mut SkbCache,
    ) -> Option<u64> {
        let fin_sent = matches!(
            self.state(),
            State::FinWait1 | State::Closing | State::LastAck
        );
        let (true, Some(snd_nxt)) = (idle && fin_sent, self.snd_nxt) else {
            self.fin_due = None;
            return None;
        };
        if self.fin_due.is_some_and(|due| due <= now) {
            self.fin_due = None;
            let mut skb = cache.alloc(MAX_HEADER, HEADERS);
            let packet = skb.put(HEADERS);
            packet.copy_from_slice(&self.last);
            let th = &mut packet[IPHDR_LEN..];
            th[4..8].copy_from_slice(&snd_nxt.wrapping_sub(1).to_be_bytes());
            (th[12], th[TCP_FLAGS]) = (5 << 4, TCP_FLAG_FIN | TCP_FLAG_ACK);
            stack.out.push(skb);
        }
        Some(*self.fin_due.get_or_insert(now + FIN_REPEATED))
    }
}

/// A socket (`struct tcp_sock`).
pub(super) struct TcpSock {
    pub role: Role,
    /// Local address, 0 is any, and port, 0 before it is bound.
    pub local: Peer,
    /// The peer, of a connection.
    pub remote: Peer,
    pub reuse: bool,
    /// The listener in whose backlog it is.
    pub parent: Option<usize>,
    /// What it has of its listener, as that was when the handshake ended.
    pub inherited: Inherited,
    /// No process has it (`SOCK_DEAD`).
    pub orphan: bool,
    pub sk_err: Option<Errno>,
    pub sk_rcvbuf: usize,
    pub sk_sndbuf: usize,
    /// When to look at it again.
    pub expires: Option<u64>,
    /// When an orphan that waits for its peer's FIN is given up.
    pub fin_deadline: Option<u64>,
}

impl TcpSock {
    pub fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.role {
            Role::Connection(connection) => Some(connection),
            _ => None,
        }
    }

    pub fn listener(&mut self) -> Option<&mut AcceptQueue> {
        match &mut self.role {
            Role::Listen(queue) => Some(queue),
            _ => None,
        }
    }

    /// Its state; of what is no connection `Closed` or `Listen`.
    pub fn state(&self) -> State {
        match &self.role {
            Role::Fresh => State::Closed,
            Role::Listen(_) => State::Listen,
            Role::Connection(connection) => connection.state(),
        }
    }
}

/// One packet in, any number out.
struct Wire<'a> {
    rx: Option<&'a [u8]>,
    tx: &'a mut Vec<Skb>,
    cache: &'a mut SkbCache,
    mtu: usize,
}

struct Rx<'a>(&'a [u8]);
struct Tx<'a>(&'a mut Vec<Skb>, &'a mut SkbCache);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut skb = self.1.alloc(MAX_HEADER, len);
        let result = f(skb.put(len));
        self.0.push(skb);
        result
    }
}

impl Device for Wire<'_> {
    type RxToken<'a>
        = Rx<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        Some((Rx(self.rx.take()?), Tx(self.tx, self.cache)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(self.tx, self.cache))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // `tcp_v4_rcv` and the device see to them.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

fn instant(now: u64) -> Instant {
    Instant::from_micros(i64::try_from(now / 1000).unwrap_or(i64::MAX))
}

fn endpoint((addr, port): Peer) -> IpEndpoint {
    IpEndpoint::new(IpAddress::Ipv4(addr.into()), port)
}

/// What all connections share: smoltcp's interface, and room for what they take and send.
pub(super) struct Stack {
    iface: Interface,
    mtu: usize,
    /// What a packet or a call had a connection send.
    out: Vec<Skb>,
    /// Empty lists, kept for their memory: while one is sent others may have something to send.
    pub spare: Vec<Vec<Skb>>,
    /// A packet with fragments, in one piece. Kept for its memory.
    linear: Vec<u8>,
}

impl Stack {
    /// Sequence numbers begin where `seed` says.
    pub fn new(mtu: usize, seed: u64, now: u64) -> Self {
        let (mut out, mut cache) = (Vec::new(), SkbCache::default());
        let mut wire = Wire {
            rx: None,
            tx: &mut out,
            cache: &mut cache,
            mtu,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let iface = Interface::new(config, &mut wire, instant(now));
        Self {
            iface,
            mtu,
            out,
            spare: Vec::new(),
            linear: Vec::new(),
        }
    }

    /// What is to be sent, and whose list goes to [`Self::spare`] afterwards.
    pub fn take_out(&mut self) -> Vec<Skb> {
        let empty = self.spare.pop().unwrap_or_default();
        std::mem::replace(&mut self.out, empty)
    }

    /// The interface has a connection's own address; everybody else is on its link.
    fn set_local(&mut self, addr: u32) {
        let cidr = IpCidr::new(IpAddress::Ipv4(addr.into()), 0);
        self.iface.update_ip_addrs(|addrs| {
            addrs.clear();
            // There is room for one.
            let _ = addrs.push(cidr);
        });
    }
}

impl TcpSock {
    /// Makes it one end of a connection, which asks for it or waits to be asked.
    ///
    /// # Errors
    /// EADDRNOTAVAIL: its own is no host's address.
    pub fn begin(
        &mut self,
        stack: &mut Stack,
        ends: (Peer, Peer),
        asks: bool,
    ) -> Result<(), Errno> {
        let (local, remote) = ends;
        if matches!(local.0 >> 24, 0 | 224..=255) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        stack.set_local(local.0);
        let buffer = |len: usize| SocketBuffer::new(vec![0; len.clamp(2048, 1 << 22)]);
        let mut socket = Socket::new(buffer(self.sk_rcvbuf), buffer(self.sk_sndbuf));
        let begun = if asks {
            let context = stack.iface.context();
            let connecting = socket.connect(context, endpoint(remote), endpoint(local));
            connecting.is_ok()
        } else {
            socket.listen(endpoint(local)).is_ok()
        };
        if !begun {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.role = Role::Connection(Box::new(Connection::new(socket)));
        (self.local, self.remote) = ends;
        Ok(())
    }

    /// Gives a connection a packet, if there is one, and has it send what it has to; that is left in the stack. When to come
    /// again.
    pub fn poll(
        &mut self,
        stack: &mut Stack,
        now: u64,
        packet: Option<&SkBuff>,
        cache: &mut SkbCache,
    ) -> Option<u64> {
        stack.set_local(self.local.0);
        let (asked, fin_deadline) = (self.parent.is_some(), self.fin_deadline);
        let connection = self.connection()?;
        if connection.done {
            return None;
        }
        let due = connection.poll(stack, now, packet, cache, asked);
        due.into_iter().chain(fin_deadline).min()
    }
}
