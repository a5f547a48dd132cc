//! TCP's header, and what processes do with its sockets (Linux: `include/linux/tcp.h`, `net/ipv4/tcp.c`,
//! `inet_connection_sock.c`; RFC 9293).
//!
//! In: socket calls, never blocking. Out: data for the connection, which sends it when it may; what came, in order; connections
//! that peers have asked a listener for. Closing a socket leaves its connection to end by itself, unless something
//! was not read: then the peer is told by a reset (RFC 2525, 2.17).

use std::net::{Ipv4Addr, Shutdown, SocketAddrV4};

use smoltcp::socket::tcp::State;

use super::file::{POLLRDHUP, PollFlags};
use super::sock::Proto;
use super::stats::RxDrop;
use super::tcp_sock::{Role, TcpSock};
use super::{Errno, Fd, Kernel, Machine, Received};
use crate::transport::Transport;

pub(super) const IPPROTO_TCP: u8 = 6;
/// Bytes of a header without options.
pub(super) const TCPHDR_LEN: usize = 20;
/// Where its length in words, the flags and the checksum are in it.
pub(super) const TCP_DOFF: usize = 12;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const TCP_CHECK: usize = 16;
pub(super) const TCP_FLAG_FIN: u8 = 0x01;
pub(super) const TCP_FLAG_SYN: u8 = 0x02;
pub(super) const TCP_FLAG_RST: u8 = 0x04;
pub(super) const TCP_FLAG_PSH: u8 = 0x08;
pub(super) const TCP_FLAG_ACK: u8 = 0x10;
pub(super) const TCP_FLAG_URG: u8 = 0x20;
pub(super) const TCP_FLAG_CWR: u8 = 0x80;

/// A header (`struct tcphdr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tcphdr {
    pub source: u16,
    pub dest: u16,
    pub seq: u32,
    pub ack_seq: u32,
    /// Bytes, with options.
    pub len: usize,
    pub flags: u8,
}

impl Tcphdr {
    /// Of what begins with one.
    ///
    /// # Errors
    /// It is not whole, or says that it is shorter than possible.
    pub fn parse(bytes: &[u8]) -> Result<Self, RxDrop> {
        let b = bytes.first_chunk::<TCPHDR_LEN>();
        let b = b.ok_or(RxDrop::TcpTruncated)?;
        let len = usize::from(b[12] >> 4) * 4;
        if len < TCPHDR_LEN {
            return Err(RxDrop::TcpInErrs);
        }
        if len > bytes.len() {
            return Err(RxDrop::TcpTruncated);
        }
        Ok(Self {
            source: u16::from_be_bytes([b[0], b[1]]),
            dest: u16::from_be_bytes([b[2], b[3]]),
            seq: u32::from_be_bytes([b[4], b[5], b[6], b[7]]),
            ack_seq: u32::from_be_bytes([b[8], b[9], b[10], b[11]]),
            len,
            flags: b[TCP_FLAGS],
        })
    }

    /// The header of a reset of who sent such a segment, of `len` bytes (RFC 9293, 3.10.7.1); its checksum is to be made.
    pub fn reset(&self, len: usize) -> [u8; TCPHDR_LEN] {
        let (seq, ack_seq, flags) = if self.has(TCP_FLAG_ACK) {
            (self.ack_seq, 0, TCP_FLAG_RST)
        } else {
            let end = self.seq.wrapping_add(self.seq_len(len));
            (0, end, TCP_FLAG_RST | TCP_FLAG_ACK)
        };
        let mut reply = [0; TCPHDR_LEN];
        reply[..2].copy_from_slice(&self.dest.to_be_bytes());
        reply[2..4].copy_from_slice(&self.source.to_be_bytes());
        reply[4..8].copy_from_slice(&seq.to_be_bytes());
        reply[8..12].copy_from_slice(&ack_seq.to_be_bytes());
        (reply[TCP_DOFF], reply[TCP_FLAGS]) = (5 << 4, flags);
        reply
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Sequence numbers that a segment of `len` bytes takes.
    pub fn seq_len(&self, len: usize) -> u32 {
        let flags = u32::from(self.has(TCP_FLAG_SYN)) + u32::from(self.has(TCP_FLAG_FIN));
        len.saturating_sub(self.len) as u32 + flags
    }
}

fn addr((addr, port): (u32, u16)) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(addr), port)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The TCP socket that a file descriptor has.
    pub(super) fn tcp_sk(&self, fd: Fd) -> Result<usize, Errno> {
        let at = self.sockfd_lookup(fd)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        sk.tcp_sk.ok_or(Errno::EOPNOTSUPP)
    }

    fn tcp_sock(&mut self, at: usize) -> Result<&mut TcpSock, Errno> {
        self.tcp.get_mut(at).ok_or(Errno::EBADF)
    }

    /// Has a bound socket wait for connections, of which `backlog` may wait for [`Self::accept`], and as many be
    /// under way, no more than `net.core.somaxconn`. One that is not bound gets a port.
    ///
    /// # Errors
    /// EBADF; EOPNOTSUPP of what is no stream; EINVAL of what is connected; EADDRINUSE.
    pub fn listen(&mut self, fd: Fd, backlog: usize) -> Result<(), Errno> {
        let _stage = self.stage("inet_listen");
        let at = self.tcp_sk(fd)?;
        let sk = self.tcp_sock(at)?;
        if matches!(sk.role, Role::Connection(_)) {
            return Err(Errno::EINVAL);
        }
        if sk.local.1 == 0 {
            let any = sk.local;
            self.tcp.get_port(at, any)?;
        }
        self.tcp.listen(at, backlog.min(self.config.somaxconn));
        let owner = self.sockfd_lookup(fd)?;
        if let Some(queue) = self.tcp_sock(at)?.listener() {
            queue.owner = owner;
        }
        Ok(())
    }

    /// The oldest connection that a listener was asked for, and who asked.
    ///
    /// # Errors
    /// EBADF; EOPNOTSUPP; EINVAL of what is no listener; EAGAIN when there is none; EMFILE.
    pub fn accept(&mut self, fd: Fd) -> Result<(Fd, SocketAddrV4), Errno> {
        let _stage = self.stage("inet_csk_accept");
        let at = self.tcp_sk(fd)?;
        let queue = self.tcp_sock(at)?.listener().ok_or(Errno::EINVAL)?;
        if queue.accept.is_empty() {
            return Err(Errno::EAGAIN);
        }
        self.files.check_limit()?;
        let queue = self.tcp_sock(at)?.listener().ok_or(Errno::EINVAL)?;
        let child = queue.accept.remove(0);
        let sk = self.tcp_sock(child)?;
        sk.parent = None;
        let (from, inherited) = (addr(sk.remote), sk.inherited);
        let new = self.socks.sk_alloc(Proto::Tcp, 0, 0);
        if let Some(sk) = self.socks.get_mut(new) {
            sk.tcp_sk = Some(child);
            sk.inherit(inherited);
        }
        Ok((self.sock_map_fd(new)?, from))
    }

    /// Where a socket is bound.
    pub(super) fn tcp_getsockname(&self, at: usize) -> Result<SocketAddrV4, Errno> {
        self.tcp
            .get(at)
            .map(|sk| addr(sk.local))
            .ok_or(Errno::EBADF)
    }

    /// Whether a stream may be written to, or the attempt would tell of an error: how one learns that a connection that
    /// was asked for is there (`EPOLLOUT`).
    ///
    /// # Errors
    /// EBADF; EOPNOTSUPP of what is no stream.
    pub fn poll_writable(&self, fd: Fd) -> Result<bool, Errno> {
        let at = self.tcp_sk(fd)?;
        let mask = self.tcp_poll(at);
        Ok(mask.intersects(PollFlags::POLLOUT | PollFlags::POLLERR))
    }

    /// What may be done with it without waiting.
    pub(super) fn tcp_poll(&self, at: usize) -> PollFlags {
        let _stage = self.stage("tcp_poll");
        let mut mask = PollFlags::empty();
        let Some(sk) = self.tcp.get(at) else {
            return mask;
        };
        if sk.sk_err.is_some() {
            mask |= PollFlags::POLLERR;
        }
        let (readable, writable) = match &sk.role {
            // There is no telling yet what it will be; what is closed hangs up.
            Role::Fresh => (false, true),
            Role::Listen(queue) => (!queue.accept.is_empty(), false),
            Role::Connection(connection) => (connection.is_readable(), connection.is_writable()),
        };
        let (rcv_shutdown, send_shutdown) = match &sk.role {
            Role::Connection(connection) => connection.shutdown(),
            Role::Fresh | Role::Listen(_) => (false, false),
        };
        if matches!(sk.role, Role::Fresh) || rcv_shutdown && send_shutdown {
            mask |= PollFlags::POLLHUP;
        }
        if rcv_shutdown {
            mask |= POLLRDHUP;
        }
        if readable {
            mask |= PollFlags::POLLIN | PollFlags::POLLRDNORM;
        }
        if writable {
            mask |= PollFlags::POLLOUT | PollFlags::POLLWRNORM;
        }
        mask
    }

    /// Data for the connection; how much of it there was room for.
    pub(super) fn tcp_sendmsg(&mut self, at: usize, data: &[u8]) -> Result<usize, Errno> {
        let _stage = self.stage("tcp_sendmsg");
        let sk = self.tcp_sock(at)?;
        if let Some(error) = sk.sk_err.take() {
            return Err(error);
        }
        let connection = sk.connection().ok_or(Errno::EPIPE)?;
        if connection.state() == State::SynSent {
            return Err(Errno::EAGAIN);
        }
        if connection.done {
            return Err(Errno::EPIPE);
        }
        let socket = connection.socket();
        let sent = socket.send_slice(data).map_err(|_| Errno::EPIPE)?;
        if sent == 0 && !data.is_empty() {
            return Err(Errno::EAGAIN);
        }
        self.tcp_push(at);
        Ok(sent)
    }

    /// Copies what has come to `buf`; 0 bytes once the peer will send no more.
    pub(super) fn tcp_recvmsg(
        &mut self,
        at: usize,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received, Errno> {
        let _stage = self.stage("tcp_recvmsg");
        let now = self.machine.now();
        let sk = self.tcp_sock(at)?;
        let from = addr(sk.remote);
        let connection = sk.connection().ok_or(Errno::ENOTCONN)?;
        let (state, done) = (connection.state(), connection.done);
        let over = done || connection.rcv_shutdown;
        let socket = connection.socket();
        let copied = match peek {
            true => socket.peek_slice(buf),
            false => socket.recv_slice(buf),
        };
        let len = match copied {
            Ok(len) if len > 0 || buf.is_empty() => len,
            // Nothing there: an error is told once, the end again and again.
            copied => match sk.sk_err.take() {
                Some(error) => return Err(error),
                None if over => 0,
                None if copied.is_ok() => return Err(Errno::EAGAIN),
                None if matches!(state, State::SynSent | State::SynReceived) => {
                    return Err(Errno::EAGAIN);
                }
                None => 0,
            },
        };
        if len > 0 && !peek && !done {
            // The window may have grown enough to say so (`tcp_cleanup_rbuf`).
            self.tcp_push(at);
        }
        Ok(Received::stream(len, from, now))
    }

    /// Ends a connection's one direction or both: no more will be sent, or read.
    ///
    /// # Errors
    /// EBADF; EOPNOTSUPP of what is no stream; ENOTCONN of what is not connected.
    pub fn shutdown(&mut self, fd: Fd, how: Shutdown) -> Result<(), Errno> {
        let _stage = self.stage("inet_shutdown");
        let at = self.tcp_sk(fd)?;
        let sk = self.tcp_sock(at)?;
        let connection = sk.connection().ok_or(Errno::ENOTCONN)?;
        if connection.done || connection.state() == State::SynSent {
            return Err(Errno::ENOTCONN);
        }
        connection.rcv_shutdown |= how != Shutdown::Write;
        if how != Shutdown::Read {
            let old = connection.state();
            connection.socket().close();
            self.tcp_set_state(at, old, false);
            self.tcp_push(at);
        }
        Ok(())
    }

    /// A process has closed a socket.
    pub(super) fn tcp_close(&mut self, at: usize) {
        let _stage = self.stage("tcp_close");
        let Some(sk) = self.tcp.get_mut(at) else {
            return;
        };
        match &mut sk.role {
            Role::Fresh => self.tcp.remove(at),
            Role::Listen(_) => self.inet_csk_listen_stop(at),
            Role::Connection(connection) if connection.done => self.tcp.remove(at),
            Role::Connection(connection) => {
                let old = connection.state();
                let unread = connection.socket().recv_queue() > 0;
                if self.tcp.orphan(at) && !unread {
                    let sk = self.tcp.get_mut(at).and_then(TcpSock::connection);
                    if let Some(connection) = sk {
                        connection.socket().close();
                    }
                    self.tcp_set_state(at, old, false);
                    self.tcp_push(at);
                } else {
                    self.tcp_send_active_reset(at);
                }
            }
        }
    }

    /// Nobody will accept what a listener was asked for.
    fn inet_csk_listen_stop(&mut self, at: usize) {
        self.tcp.unhash(at);
        for child in 0..self.tcp.len() {
            let Some(sk) = self.tcp.get_mut(child) else {
                continue;
            };
            if sk.parent != Some(at) {
                continue;
            }
            sk.parent = None;
            if sk.state() == State::SynReceived {
                self.tcp.remove(child);
            } else {
                self.tcp_close_child(child);
            }
        }
        self.tcp.remove(at);
    }

    /// A connection that nobody has accepted is reset.
    fn tcp_close_child(&mut self, at: usize) {
        if self
            .tcp
            .get_mut(at)
            .and_then(TcpSock::connection)
            .is_some_and(|c| c.done)
        {
            return self.tcp.remove(at);
        }
        self.tcp.orphan(at);
        self.tcp_send_active_reset(at);
    }

    /// Ends a connection at once; the peer is told.
    pub(super) fn tcp_send_active_reset(&mut self, at: usize) {
        let _stage = self.stage("tcp_send_active_reset");
        if let Some(connection) = self.tcp.get_mut(at).and_then(TcpSock::connection) {
            let old = connection.state();
            connection.socket().abort();
            let now = self.machine.now();
            self.tcp.poll(at, now, None, &mut self.skb_cache);
            let out = self.tcp.stack.take_out();
            self.tcp_count(at, &out);
            self.tcp_set_state(at, old, false);
            self.tcp_write_xmit(None, out);
        }
    }
}
