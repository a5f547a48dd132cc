//! The socket calls of AF_INET (Linux: `net/ipv4/af_inet.c`, `net/socket.c`).
//!
//! In: calls of a process, never blocking: what would have to wait gives EAGAIN. Out: data to the
//! transports, and what waits in a socket's queue. Errors have Linux's meaning.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::file::{MsgFlags, PollFlags};
use super::port_table::PortTable;
use super::raw::IPPROTO_RAW;
use super::route::{RtType, Rtable};
use super::skbuff::SkBuff;
use super::sock::{Proto, SOCK_MIN_RCVBUF, SOCK_MIN_SNDBUF, Sock, SockTable, sock_buf};
use super::trace::Span;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// A file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fd(pub u32);

/// Kind of a socket (`SOCK_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SockType {
    /// `SOCK_DGRAM`.
    Dgram,
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_RAW`.
    Raw,
}

/// Protocol of a socket (`IPPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// `IPPROTO_UDP`.
    Udp,
    /// `IPPROTO_TCP`.
    Tcp,
    /// `IPPROTO_ICMP`: with [`SockType::Dgram`] a ping socket. What is sent is an echo request with
    /// its header; what is received is the reply, likewise. The port is the identifier.
    Icmp,
    /// With [`SockType::Raw`]: IP packets of that protocol, with their header as they come; 255 is what is sent with one.
    Raw(u8),
}

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<A = SocketAddrV4> {
    /// Bytes in the caller's buffer; the rest of a longer datagram is lost.
    pub len: usize,
    /// Bytes of the datagram.
    pub datagram_len: usize,
    /// Who sent it.
    pub from: A,
    /// When it was put into the socket's queue, in the machine's time; of a piece of a stream when it was read.
    pub queued: u64,
    /// The hash that the device reported of its frame; 0 where it reported none.
    pub hash: u32,
    /// Whether that is a hash of the ports, too.
    pub l4_hash: bool,
    /// Bytes of each datagram that this one stands for, but for the last; 0 where it stands for itself
    /// (`UDP_GRO`).
    pub gso_size: u16,
}

impl Received {
    /// Copies a datagram behind its `header` bytes to `buf`.
    #[inline(always)] // for each datagram; its other callers are rare
    pub(super) fn copy(skb: &SkBuff, header: usize, port: u16, buf: &mut [u8]) -> Self {
        let len = if skb.is_nonlinear() {
            skb.copy_bits(header, buf)
        } else {
            let payload = skb.data().get(header..).unwrap_or_default();
            let len = payload.len().min(buf.len());
            buf[..len].copy_from_slice(&payload[..len]);
            len
        };
        Self {
            len,
            datagram_len: skb.len().saturating_sub(header),
            from: SocketAddrV4::new(Ipv4Addr::from_bits(skb.ip.saddr), port),
            queued: skb.tstamp,
            hash: skb.hash,
            l4_hash: skb.l4_hash,
            gso_size: skb.gso_size,
        }
    }

    /// A piece of a stream.
    pub(super) fn stream(len: usize, from: SocketAddrV4, now: u64) -> Self {
        Self {
            len,
            datagram_len: len,
            from,
            queued: now,
            hash: 0,
            l4_hash: false,
            gso_size: 0,
        }
    }
}

/// What all that send datagrams look at first.
///
/// # Errors
/// EMSGSIZE: no packet is as long; EOPNOTSUPP: it is urgent.
#[inline]
pub(super) fn datagram_check(data: &[u8], flags: MsgFlags) -> Result<(), Errno> {
    if data.len() > 0xffff {
        return Err(Errno::EMSGSIZE);
    }
    if flags.contains(MsgFlags::MSG_OOB) {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}

/// Which sockets there are (`struct inet_protosw`).
struct InetProtosw {
    sock_type: SockType,
    protocol: Protocol,
    prot: Proto,
}

const INETSW: [InetProtosw; 3] = [
    InetProtosw {
        sock_type: SockType::Stream,
        protocol: Protocol::Tcp,
        prot: Proto::Tcp,
    },
    InetProtosw {
        sock_type: SockType::Dgram,
        protocol: Protocol::Udp,
        prot: Proto::Udp,
    },
    InetProtosw {
        sock_type: SockType::Dgram,
        protocol: Protocol::Icmp,
        prot: Proto::Ping,
    },
];

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Makes a socket (`inet_create`).
    ///
    /// # Errors
    /// EPROTONOSUPPORT; EMFILE.
    pub fn socket(&mut self, sock_type: SockType, protocol: Protocol) -> Result<Fd, Errno> {
        if let (SockType::Raw, Protocol::Raw(number @ 1..)) = (sock_type, protocol) {
            return self.raw_socket(number);
        }
        let answer = INETSW
            .iter()
            .find(|answer| answer.sock_type == sock_type && answer.protocol == protocol)
            .ok_or(Errno::EPROTONOSUPPORT)?;
        let (rcvbuf, sndbuf) = (self.config.rmem_default, self.config.wmem_default);
        let at = self.socks.sk_alloc(answer.prot, rcvbuf, sndbuf);
        if answer.prot == Proto::Tcp
            && let Some(sk) = self.socks.get_mut(at)
        {
            let (rmem, wmem) = (self.config.tcp_rmem, self.config.tcp_wmem);
            sk.tcp_sk = Some(self.tcp.sk_alloc(rmem, wmem));
        }
        self.sock_map_fd(at)
    }

    /// A descriptor for a new socket; if there is none, the socket goes.
    pub(super) fn sock_map_fd(&mut self, at: usize) -> Result<Fd, Errno> {
        let fd = self.files.sock_map_fd(at);
        if fd.is_err() {
            self.inet_release(at)?;
        }
        fd
    }

    /// Makes one that has its protocol for a number, and is found from the beginning (`raw_hash_sk`).
    fn raw_socket(&mut self, number: u8) -> Result<Fd, Errno> {
        let (rcvbuf, sndbuf) = (self.config.rmem_default, self.config.wmem_default);
        let at = self.socks.sk_alloc(Proto::Raw, rcvbuf, sndbuf);
        if let Some(sk) = self.socks.get_mut(at) {
            sk.inet_num = number.into();
            sk.raw.hdrincl = number == IPPROTO_RAW;
        }
        self.raw_table.push(at);
        self.sock_map_fd(at)
    }

    /// Binds a socket to an address of this host, or any, and a port, 0 for any.
    ///
    /// # Errors
    /// EBADF; EINVAL when it is bound already; EADDRNOTAVAIL; EADDRINUSE; EOPNOTSUPP for a packet socket.
    pub fn bind(&mut self, fd: Fd, addr: SocketAddrV4) -> Result<(), Errno> {
        self.sock_is_inet(self.sockfd_lookup(fd)?)?;
        let own = addr.ip().to_bits();
        let of_host = self.fib.is_local(own);
        let available = own == 0 || self.fib.is_own(own) || of_host || own >> 28 == 0xe;
        let sk = self.sock_mut(fd)?;
        let (raw, num, tcp_sk) = (sk.sk_prot == Proto::Raw, sk.inet_num, sk.tcp_sk);
        let bound = tcp_sk.map_or(num, |at| self.tcp.get(at).map_or(0, |sk| sk.local.1));
        if bound != 0 && !raw {
            return Err(Errno::EINVAL);
        }
        if !available {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if let Some(at) = tcp_sk {
            let _stage = self.stage("inet_csk_get_port");
            return self.tcp.get_port(at, (own, addr.port()));
        }
        // What is bound to an address of many sends from another.
        let saddr = if of_host { own } else { 0 };
        let sk = self.sock_mut(fd)?;
        (sk.inet_rcv_saddr, sk.inet_saddr) = (own, saddr);
        if raw {
            return Ok(());
        }
        let bound = self.get_port(fd, addr.port());
        if bound.is_err() {
            let sk = self.sock_mut(fd)?;
            (sk.inet_rcv_saddr, sk.inet_saddr) = (0, 0);
        }
        bound
    }

    /// Connects a socket: it sends to `addr` where nothing else is said, and receives from there only. A stream asks for
    /// a connection; whether it is there [`Self::poll_writable`] tells.
    ///
    /// # Errors
    /// EBADF; ENETUNREACH; EACCES for a broadcast address without `SO_BROADCAST`; EAGAIN when no port is free; EOPNOTSUPP for a
    /// packet socket. Of a stream: EINPROGRESS when it has asked, EALREADY meanwhile, EISCONN afterwards, or why there is no
    /// connection, once; EADDRNOTAVAIL for port 0, or when no port is free.
    pub fn connect(&mut self, fd: Fd, addr: SocketAddrV4) -> Result<(), Errno> {
        if let Some(at) = self.sock_mut(fd)?.tcp_sk {
            return self.tcp_v4_connect(at, addr);
        }
        let at = self.sockfd_lookup(fd)?;
        self.sock_is_inet(at)?;
        let daddr = addr.ip().to_bits();
        let rt = self.ip_route_output_sk(at, daddr);
        let rt = rt.inspect_err(|error| self.count_no_route(*error))?;
        self.inet_autobind(fd)?;
        let sk = self.sock_mut(fd)?;
        (sk.inet_daddr, sk.inet_dport) = (daddr, addr.port());
        if sk.inet_saddr == 0 {
            sk.inet_saddr = rt.saddr;
        }
        if sk.inet_rcv_saddr == 0 {
            sk.inet_rcv_saddr = rt.saddr;
        }
        let prot = sk.sk_prot;
        if let (socks, Some(table)) = self.tables(prot)
            && let Some(sk) = socks.get(at)
        {
            table.rehash(at, sk);
        }
        Ok(())
    }

    /// Only a socket of AF_INET has addresses of that.
    fn sock_is_inet(&self, at: usize) -> Result<(), Errno> {
        match self.socks.get(at).map(|sk| sk.sk_prot) {
            Some(Proto::Udpv6 | Proto::Pingv6) => Err(Errno::EAFNOSUPPORT),
            _ => Ok(()),
        }
    }

    /// Where a socket is bound.
    ///
    /// # Errors
    /// EBADF.
    pub fn getsockname(&self, fd: Fd) -> Result<SocketAddrV4, Errno> {
        let at = self.sockfd_lookup(fd)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        if let Some(at) = sk.tcp_sk {
            return self.tcp_getsockname(at);
        }
        let addr = Ipv4Addr::from_bits(sk.inet_rcv_saddr);
        Ok(SocketAddrV4::new(addr, sk.inet_num))
    }

    /// Sends a datagram, to `to` or to where the socket is connected; how many bytes.
    ///
    /// # Errors
    /// EBADF; EDESTADDRREQ; EINVAL for port 0, or what is no echo request; ENETUNREACH; EACCES for a
    /// broadcast address without `SO_BROADCAST`; EMSGSIZE beyond 65535 octets with all headers, or beyond the MTU where the
    /// socket says so; EAGAIN when the send buffer is full, or no port is free; ENOBUFS when twice the send buffer has no
    /// room for its fragments, or for what a raw socket sends; EOPNOTSUPP for a packet socket; and what a peer answered to an
    /// earlier datagram, once, but not from a raw socket.
    pub fn sendto(
        &mut self,
        fd: Fd,
        data: &[u8],
        to: Option<SocketAddrV4>,
    ) -> Result<usize, Errno> {
        self.sendto_flags(fd, data, to, MsgFlags::empty())
    }

    /// The same with flags, of which `MSG_MORE` counts: what a UDP or a raw socket sends waits for more, and is one packet with
    /// it, to where the first piece went.
    ///
    /// # Errors
    /// As [`Self::sendto`]; EOPNOTSUPP for a datagram with `MSG_OOB`; ENOBUFS where too much waits. Of what does not fit any more
    /// (EMSGSIZE) nothing is sent, nor of what waits. (A stream has `MSG_OOB` in its order, and nobody is told that it is urgent.)
    pub fn sendto_flags(
        &mut self,
        fd: Fd,
        data: &[u8],
        to: Option<SocketAddrV4>,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("__x64_sys_sendto");
        self.__sys_sendto(fd, data, to, flags)
    }

    fn __sys_sendto(
        &mut self,
        fd: Fd,
        data: &[u8],
        to: Option<SocketAddrV4>,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("__sys_sendto");
        let prot = self.sock_mut(fd)?.sk_prot;
        self.inet_sendmsg(fd, prot, data, to, 0, flags)
    }

    /// A message without what only one call can say.
    pub(super) fn sock_sendmsg(
        &mut self,
        fd: Fd,
        data: &[u8],
        to: Option<SocketAddrV4>,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("sock_sendmsg");
        let prot = self.sock_mut(fd)?.sk_prot;
        self.inet_sendmsg(fd, prot, data, to, 0, MsgFlags::empty())
    }

    fn inet_sendmsg(
        &mut self,
        fd: Fd,
        prot: Proto,
        data: &[u8],
        to: Option<SocketAddrV4>,
        gso_size: u16,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("inet_sendmsg");
        let at = self.sockfd_lookup(fd)?;
        if self.rps.rfs_needed {
            self.sock_rps_record_flow(at);
        }
        match prot {
            Proto::Udp => {
                self.inet_autobind(fd)?;
                self.udp_sendmsg(at, data, to, gso_size, flags)
            }
            Proto::Ping => {
                self.inet_autobind(fd)?;
                self.ping_v4_sendmsg(at, data, to, flags)
            }
            Proto::Raw => self.raw_sendmsg(at, data, to, flags),
            Proto::Tcp => {
                let at = self.tcp_sk(fd)?;
                self.tcp_sendmsg(at, data)
            }
            Proto::Udpv6 if to.is_none() => self.udpv6_sendmsg(at, data, None),
            Proto::Pingv6 if to.is_none() => self.ping_v6_sendmsg(at, data, None),
            Proto::Udpv6 | Proto::Pingv6 => Err(Errno::EAFNOSUPPORT),
            Proto::Packet => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Sends datagrams of `gso_size` bytes each but for the last, 128 at most, by one call (`UDP_SEGMENT`); how
    /// many bytes.
    ///
    /// # Errors
    /// As [`Self::sendto`], but EMSGSIZE where one datagram, or all of them together with their headers, is too
    /// long, and EINVAL for more of them; EOPNOTSUPP where the socket has no datagrams of UDP.
    pub fn sendto_segments(
        &mut self,
        fd: Fd,
        data: &[u8],
        to: Option<SocketAddrV4>,
        gso_size: u16,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("__x64_sys_sendmsg");
        let prot = self.sock_mut(fd)?.sk_prot;
        if prot != Proto::Udp {
            return Err(Errno::EOPNOTSUPP);
        }
        self.inet_sendmsg(fd, prot, data, to, gso_size, MsgFlags::empty())
    }

    /// Has a UDP socket take datagrams that stand for several as one ([`Received::gso_size`]), or in their parts
    /// (`UDP_GRO`).
    ///
    /// # Errors
    /// EBADF; ENOPROTOOPT: it is no UDP socket.
    pub fn set_udp_gro(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.udp_sk(fd)?.gro_enabled = on;
        self.udp_gro_needed |= on;
        Ok(())
    }

    /// Whether a socket has something to read, or to tell (`poll`).
    ///
    /// # Errors
    /// EBADF.
    pub fn poll(&self, fd: Fd) -> Result<bool, Errno> {
        let mask = self.inet_poll(fd)?;
        Ok(mask.intersects(PollFlags::POLLIN | PollFlags::POLLERR))
    }

    /// What may be done with a socket without waiting.
    pub(super) fn inet_poll(&self, fd: Fd) -> Result<PollFlags, Errno> {
        let at = self.sockfd_lookup(fd)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        if let Some(at) = sk.tcp_sk {
            return Ok(self.tcp_poll(at));
        }
        let _stage = self.stage(match sk.sk_prot {
            Proto::Udp | Proto::Udpv6 => "udp_poll",
            Proto::Packet => "packet_poll",
            _ => "datagram_poll",
        });
        let mut mask = PollFlags::empty();
        if sk.sk_err.is_some() || !sk.errors.queue.is_empty() {
            mask |= PollFlags::POLLERR;
        }
        if !sk.sk_receive_queue.is_empty() {
            mask |= PollFlags::POLLIN | PollFlags::POLLRDNORM;
        }
        // `sock_writeable`
        if sk.sk_wmem_alloc < sk.sk_sndbuf / 2 {
            mask |= PollFlags::POLLOUT | PollFlags::POLLWRNORM | PollFlags::POLLWRBAND;
        }
        Ok(mask)
    }

    /// Takes the oldest datagram from a socket's queue and copies it to `buf`.
    ///
    /// # Errors
    /// EBADF; EAGAIN when there is none; EOPNOTSUPP for a packet socket; and what a peer answered to an earlier datagram, once.
    #[inline]
    pub fn recvfrom(&mut self, fd: Fd, buf: &mut [u8]) -> Result<Received, Errno> {
        let _stage = self.stage("__x64_sys_recvfrom");
        self.__sys_recvfrom(fd, buf)
    }

    /// Copies the oldest datagram to `buf` and leaves it where it is (`recvmsg` with `MSG_PEEK`).
    ///
    /// # Errors
    /// As [`Self::recvfrom`].
    pub fn recvmsg_peek(&mut self, fd: Fd, buf: &mut [u8]) -> Result<Received, Errno> {
        let _stage = self.stage("__x64_sys_recvmsg");
        self.sock_recvmsg(fd, buf, true)
    }

    #[inline]
    fn __sys_recvfrom(&mut self, fd: Fd, buf: &mut [u8]) -> Result<Received, Errno> {
        let _stage = self.stage("__sys_recvfrom");
        self.sock_recvmsg(fd, buf, false)
    }

    #[inline(always)] // for each datagram; its other caller is rare
    pub(super) fn sock_recvmsg(
        &mut self,
        fd: Fd,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received, Errno> {
        let _stage = self.stage("sock_recvmsg");
        self.inet_recvmsg(fd, buf, peek)
    }

    #[inline(always)] // for each datagram; its other caller is rare
    fn inet_recvmsg(&mut self, fd: Fd, buf: &mut [u8], peek: bool) -> Result<Received, Errno> {
        let _stage = self.stage("inet_recvmsg");
        let at = self.sockfd_lookup(fd)?;
        let sk = self.socks.get_mut(at).ok_or(Errno::EBADF)?;
        if sk.sk_err.is_some() {
            return Err(sk.sk_err.take().unwrap_or(Errno::EAGAIN));
        }
        let (prot, tcp_sk, busy_poll) = (sk.sk_prot, sk.tcp_sk, sk.sk_ll_usec != 0);
        if self.rps.rfs_needed {
            self.sock_rps_record_flow(at);
        }
        if busy_poll {
            self.sk_busy_loop(at);
        }
        match prot {
            Proto::Udp => self.udp_recvmsg(at, buf, peek),
            Proto::Ping => self.ping_recvmsg(at, buf, peek),
            Proto::Raw => self.raw_recvmsg(at, buf, peek),
            Proto::Tcp => {
                let at = tcp_sk.ok_or(Errno::EBADF)?;
                self.tcp_recvmsg(at, buf, peek)
            }
            Proto::Udpv6 | Proto::Pingv6 => {
                let received = self.inet6_recvmsg(at, buf, peek)?;
                Ok(received.without_sender())
            }
            Proto::Packet => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Lets a socket that is bound later share its port with others that have this set
    /// (`SO_REUSEADDR`): each gets broadcasts.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_reuseaddr(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        let sk = self.sock_mut(fd)?;
        sk.sk_reuse = on;
        if let Some(sk) = sk.tcp_sk.and_then(|at| self.tcp.get_mut(at)) {
            sk.reuse = on;
        }
        Ok(())
    }

    /// Lets a socket that is bound later share its port with others that have this set, so that each
    /// datagram is for one of them (`SO_REUSEPORT`).
    ///
    /// # Errors
    /// EBADF.
    pub fn set_reuseport(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.sock_mut(fd)?.sk_reuseport = on;
        Ok(())
    }

    /// Lets a socket send to broadcast addresses (`SO_BROADCAST`).
    ///
    /// # Errors
    /// EBADF.
    pub fn set_broadcast(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.sock_mut(fd)?.broadcast = on;
        Ok(())
    }

    /// Sets the receive buffer as `SO_RCVBUFFORCE` does: to twice `value`, without an upper limit. A connection keeps
    /// what it began with.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_rcvbuf(&mut self, fd: Fd, value: usize) -> Result<(), Errno> {
        let sk = self.sock_mut(fd)?;
        sk.sk_rcvbuf = sock_buf(value, SOCK_MIN_RCVBUF);
        let len = sk.sk_rcvbuf;
        if let Some(sk) = sk.tcp_sk.and_then(|at| self.tcp.get_mut(at)) {
            sk.sk_rcvbuf = len;
        }
        Ok(())
    }

    /// Sets the send buffer as `SO_SNDBUFFORCE` does: to twice `value`, without an upper limit. A connection keeps
    /// what it began with.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_sndbuf(&mut self, fd: Fd, value: usize) -> Result<(), Errno> {
        let sk = self.sock_mut(fd)?;
        sk.sk_sndbuf = sock_buf(value, SOCK_MIN_SNDBUF);
        let len = sk.sk_sndbuf;
        if let Some(sk) = sk.tcp_sk.and_then(|at| self.tcp.get_mut(at)) {
            sk.sk_sndbuf = len;
        }
        Ok(())
    }

    /// Closes a descriptor; with the last one of a socket that is released.
    ///
    /// # Errors
    /// EBADF.
    pub fn close(&mut self, fd: Fd) -> Result<(), Errno> {
        match self.files.close(fd)? {
            Some(at) => self.inet_release(at),
            None => Ok(()),
        }
    }

    /// A socket is gone; what waits in its queue is lost.
    fn inet_release(&mut self, at: usize) -> Result<(), Errno> {
        let sk = self.socks.remove(at).ok_or(Errno::EBADF)?;
        if let (_, Some((_, table))) = self.tables6(sk.sk_prot) {
            table.unhash(at, sk.inet_num);
        }
        match (sk.sk_prot, sk.tcp_sk, self.tables(sk.sk_prot).1) {
            (_, Some(at), _) => self.tcp_close(at),
            (_, None, Some(table)) => table.unhash(at, sk.inet_num),
            (Proto::Raw, None, None) => self.raw_table.retain(|raw| *raw != at),
            (_, None, None) => self.packet_release(at),
        }
        for (group, dev) in sk.mc.list {
            self.ip_mc_dec_group(dev, group);
        }
        let pending = sk.pending.map(|pending| pending.skb);
        let errors = sk.errors.queue.into_iter().map(|(_, skb)| skb);
        for skb in sk.sk_receive_queue.into_iter().chain(pending).chain(errors) {
            self.skb_cache.put(skb);
        }
        Ok(())
    }

    /// The place of the socket that a descriptor leads to.
    #[inline]
    pub(super) fn sockfd_lookup(&self, fd: Fd) -> Result<usize, Errno> {
        self.files.sockfd_lookup(fd)
    }

    #[inline]
    pub(super) fn sock_mut(&mut self, fd: Fd) -> Result<&mut Sock, Errno> {
        let at = self.files.sockfd_lookup(fd)?;
        self.socks.get_mut(at).ok_or(Errno::EBADF)
    }

    /// All sockets, and those of a protocol by their ports, if it has such a table.
    fn tables(&mut self, prot: Proto) -> (&mut SockTable, Option<&mut PortTable<u32>>) {
        let table = match prot {
            Proto::Udp => Some(&mut self.udp_table),
            Proto::Ping => Some(&mut self.ping_table),
            _ => None,
        };
        (&mut self.socks, table)
    }

    fn get_port(&mut self, fd: Fd, port: u16) -> Result<(), Errno> {
        let prot = self.sock_mut(fd)?.sk_prot;
        let at = self.sockfd_lookup(fd)?;
        let tracer = self.machine.tracer();
        let stage = |name| Span::of(tracer, name, self.cpu);
        let (name, table) = match prot {
            Proto::Udp => ("udp_v4_get_port", &mut self.udp_table),
            Proto::Ping => ("ping_get_port", &mut self.ping_table),
            Proto::Raw => return Ok(()),
            Proto::Udpv6 | Proto::Pingv6 => return Err(Errno::EAFNOSUPPORT),
            Proto::Tcp | Proto::Packet => return Err(Errno::EOPNOTSUPP),
        };
        let _stage = stage(name);
        table.get_port(&mut self.socks, at, port, stage)
    }

    /// Gives a socket a port of its own, if it has none.
    #[inline]
    fn inet_autobind(&mut self, fd: Fd) -> Result<(), Errno> {
        if self.sock_mut(fd)?.inet_num != 0 {
            return Ok(());
        }
        let _stage = self.stage("inet_autobind");
        self.get_port(fd, 0).map_err(|error| match error {
            Errno::EADDRINUSE => Errno::EAGAIN,
            error => error,
        })
    }

    /// Where a datagram goes that is sent to `to`.
    #[inline]
    pub(super) fn destination(
        &self,
        at: usize,
        to: Option<SocketAddrV4>,
    ) -> Result<(u32, u16), Errno> {
        if let Some(to) = to {
            return Ok((to.ip().to_bits(), to.port()));
        }
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        if sk.inet_daddr == 0 {
            return Err(Errno::EDESTADDRREQ);
        }
        Ok((sk.inet_daddr, sk.inet_dport))
    }

    /// What a socket's packets have as their source on a route.
    #[inline]
    pub(super) fn source(&self, at: usize, rt: &Rtable) -> u32 {
        match self.socks.get(at).map(|sk| sk.inet_saddr) {
            None | Some(0) => rt.saddr,
            Some(own) => own,
        }
    }

    /// The route for what a socket sends.
    ///
    /// # Errors
    /// ENETUNREACH; EACCES for a broadcast address, without `SO_BROADCAST`.
    #[inline]
    pub(super) fn ip_route_output_sk(&self, at: usize, daddr: u32) -> Result<Rtable, Errno> {
        if daddr >> 28 == 0xe {
            return self.ip_route_output_group(at, daddr);
        }
        let rt = self.ip_route_output_flow(daddr)?;
        if rt.rt_type == RtType::Broadcast && !self.socks.get(at).is_some_and(|sk| sk.broadcast) {
            return Err(Errno::EACCES);
        }
        Ok(rt)
    }
}
