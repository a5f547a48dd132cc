//! The socket calls of AF_INET (Linux: `net/ipv4/af_inet.c`, `net/socket.c`).
//!
//! In: calls of a process, never blocking: what would have to wait gives EAGAIN. Out: datagrams to the
//! transports, and what waits in a socket's queue. Errors have Linux's meaning.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::route::{RtType, Rtable};
use super::sock::{PortTable, Proto, SOCK_MIN_RCVBUF, SOCK_MIN_SNDBUF, Sock, SockTable, sock_buf};
use super::udp::{UDPHDR_LEN, source_port};
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
}

/// Protocol of a socket (`IPPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// `IPPROTO_UDP`.
    Udp,
    /// `IPPROTO_ICMP`: with [`SockType::Dgram`] a ping socket. What is sent is an echo request with
    /// its header; what is received is the reply, likewise. The port is the identifier.
    Icmp,
}

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the caller's buffer; the rest of a longer datagram is lost.
    pub len: usize,
    /// Who sent it.
    pub from: SocketAddrV4,
    /// When it was put into the socket's queue, in the machine's time.
    pub queued: u64,
    /// The hash that the device reported of its frame; 0 where it reported none.
    pub hash: u32,
    /// Whether that is a hash of the ports, too.
    pub l4_hash: bool,
    /// Bytes of each datagram that this one stands for, but for the last; 0 where it stands for itself
    /// (`UDP_GRO`).
    pub gso_size: u16,
}

/// Which sockets there are (`struct inet_protosw`).
struct InetProtosw {
    sock_type: SockType,
    protocol: Protocol,
    prot: Proto,
}

const INETSW: [InetProtosw; 2] = [
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
    /// EPROTONOSUPPORT.
    pub fn socket(&mut self, sock_type: SockType, protocol: Protocol) -> Result<Fd, Errno> {
        let answer = INETSW
            .iter()
            .find(|answer| answer.sock_type == sock_type && answer.protocol == protocol)
            .ok_or(Errno::EPROTONOSUPPORT)?;
        let (rcvbuf, sndbuf) = (self.config.rmem_default, self.config.wmem_default);
        Ok(Fd(self.socks.sk_alloc(answer.prot, rcvbuf, sndbuf) as u32))
    }

    /// Binds a socket to an address of this host, or any, and a port, 0 for any.
    ///
    /// # Errors
    /// EBADF; EINVAL when it is bound already; EADDRNOTAVAIL; EADDRINUSE.
    pub fn bind(&mut self, fd: Fd, addr: SocketAddrV4) -> Result<(), Errno> {
        let own = addr.ip().to_bits();
        let available = own == 0 || self.fib.is_local(own) || self.fib.is_broadcast(own);
        let sk = self.sock_mut(fd)?;
        if sk.inet_num != 0 {
            return Err(Errno::EINVAL);
        }
        if !available {
            return Err(Errno::EADDRNOTAVAIL);
        }
        sk.inet_rcv_saddr = own;
        let bound = self.get_port(fd, addr.port());
        if bound.is_err() {
            self.sock_mut(fd)?.inet_rcv_saddr = 0;
        }
        bound
    }

    /// Connects a socket: it sends to `addr` where nothing else is said, and receives from there only.
    ///
    /// # Errors
    /// EBADF; ENETUNREACH; EACCES for a broadcast address; EAGAIN when no port is free.
    pub fn connect(&mut self, fd: Fd, addr: SocketAddrV4) -> Result<(), Errno> {
        self.sock_mut(fd)?;
        let daddr = addr.ip().to_bits();
        self.ip_route_output_unicast(daddr)?;
        self.inet_autobind(fd)?;
        let saddr = self.fib.local_addr();
        let sk = self.sock_mut(fd)?;
        (sk.inet_daddr, sk.inet_dport) = (daddr, addr.port());
        if sk.inet_rcv_saddr == 0 {
            sk.inet_rcv_saddr = saddr;
        }
        let (at, prot) = (fd.0 as usize, sk.sk_prot);
        let (socks, table) = self.tables(prot);
        if let Some(sk) = socks.get(at) {
            table.rehash(at, sk);
        }
        Ok(())
    }

    /// Where a socket is bound.
    ///
    /// # Errors
    /// EBADF.
    pub fn getsockname(&self, fd: Fd) -> Result<SocketAddrV4, Errno> {
        let sk = self.socks.get(fd.0 as usize).ok_or(Errno::EBADF)?;
        let addr = Ipv4Addr::from_bits(sk.inet_rcv_saddr);
        Ok(SocketAddrV4::new(addr, sk.inet_num))
    }

    /// Sends a datagram, to `to` or to where the socket is connected; how many bytes.
    ///
    /// # Errors
    /// EBADF; EDESTADDRREQ; EINVAL for port 0, or what is no echo request; ENETUNREACH; EACCES for a
    /// broadcast address; EMSGSIZE beyond the MTU; EAGAIN when the send buffer is full, or no port is
    /// free; and what a peer answered to an earlier datagram, once.
    pub fn sendto(
        &mut self,
        fd: Fd,
        data: &[u8],
        to: Option<SocketAddrV4>,
    ) -> Result<usize, Errno> {
        let prot = self.sock_mut(fd)?.sk_prot;
        self.inet_autobind(fd)?;
        let at = fd.0 as usize;
        match prot {
            Proto::Udp => self.udp_sendmsg(at, data, to, 0),
            Proto::Ping => self.ping_v4_sendmsg(at, data, to),
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
        if self.sock_mut(fd)?.sk_prot != Proto::Udp {
            return Err(Errno::EOPNOTSUPP);
        }
        self.inet_autobind(fd)?;
        self.udp_sendmsg(fd.0 as usize, data, to, gso_size)
    }

    /// Has a UDP socket take datagrams that stand for several as one ([`Received::gso_size`]), or in their parts
    /// (`UDP_GRO`).
    ///
    /// # Errors
    /// EBADF.
    pub fn set_udp_gro(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.sock_mut(fd)?.gro_enabled = on;
        Ok(())
    }

    /// Takes the oldest datagram from a socket's queue and copies it to `buf`.
    ///
    /// # Errors
    /// EBADF; EAGAIN when there is none; and what a peer answered to an earlier datagram, once.
    #[inline]
    pub fn recvfrom(&mut self, fd: Fd, buf: &mut [u8]) -> Result<Received, Errno> {
        let sk = self.socks.get_mut(fd.0 as usize).ok_or(Errno::EBADF)?;
        if let Some(error) = sk.sk_err.take() {
            return Err(error);
        }
        let skb = sk.sk_receive_queue.pop_front().ok_or(Errno::EAGAIN)?;
        sk.sk_rmem_alloc -= skb.truesize;
        let (header, port) = match sk.sk_prot {
            Proto::Udp => (UDPHDR_LEN, source_port(&skb)),
            Proto::Ping => (0, 0),
        };
        if header != 0 {
            self.counters.snmp.udp_in_datagrams += 1;
        }
        let payload = skb.data().get(header..).unwrap_or_default();
        let len = payload.len().min(buf.len());
        buf[..len].copy_from_slice(&payload[..len]);
        let received = Received {
            len,
            from: SocketAddrV4::new(Ipv4Addr::from_bits(skb.ip.saddr), port),
            queued: skb.tstamp,
            hash: skb.hash,
            l4_hash: skb.l4_hash,
            gso_size: skb.gso_size,
        };
        self.skb_cache.put(skb);
        Ok(received)
    }

    /// Lets a socket that is bound later share its port with others that have this set
    /// (`SO_REUSEADDR`): each gets broadcasts.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_reuseaddr(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.sock_mut(fd)?.sk_reuse = on;
        Ok(())
    }

    /// Sets the receive buffer as `SO_RCVBUFFORCE` does: to twice `value`, without an upper limit.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_rcvbuf(&mut self, fd: Fd, value: usize) -> Result<(), Errno> {
        self.sock_mut(fd)?.sk_rcvbuf = sock_buf(value, SOCK_MIN_RCVBUF);
        Ok(())
    }

    /// Sets the send buffer as `SO_SNDBUFFORCE` does: to twice `value`, without an upper limit.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_sndbuf(&mut self, fd: Fd, value: usize) -> Result<(), Errno> {
        self.sock_mut(fd)?.sk_sndbuf = sock_buf(value, SOCK_MIN_SNDBUF);
        Ok(())
    }

    /// Closes a socket; what waits in its queue is lost.
    ///
    /// # Errors
    /// EBADF.
    pub fn close(&mut self, fd: Fd) -> Result<(), Errno> {
        let at = fd.0 as usize;
        let sk = self.socks.remove(at).ok_or(Errno::EBADF)?;
        self.tables(sk.sk_prot).1.unhash(at, sk.inet_num);
        for skb in sk.sk_receive_queue {
            self.skb_cache.put(skb);
        }
        Ok(())
    }

    fn sock_mut(&mut self, fd: Fd) -> Result<&mut Sock, Errno> {
        self.socks.get_mut(fd.0 as usize).ok_or(Errno::EBADF)
    }

    fn tables(&mut self, prot: Proto) -> (&mut SockTable, &mut PortTable) {
        let table = match prot {
            Proto::Udp => &mut self.udp_table,
            Proto::Ping => &mut self.ping_table,
        };
        (&mut self.socks, table)
    }

    fn get_port(&mut self, fd: Fd, port: u16) -> Result<(), Errno> {
        let prot = self.sock_mut(fd)?.sk_prot;
        let (socks, table) = self.tables(prot);
        table.get_port(socks, fd.0 as usize, port)
    }

    /// Gives a socket a port of its own, if it has none.
    #[inline]
    fn inet_autobind(&mut self, fd: Fd) -> Result<(), Errno> {
        if self.sock_mut(fd)?.inet_num != 0 {
            return Ok(());
        }
        self.get_port(fd, 0).map_err(|_| Errno::EAGAIN)
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

    /// The route for a socket without `SO_BROADCAST`.
    #[inline]
    pub(super) fn ip_route_output_unicast(&self, daddr: u32) -> Result<Rtable, Errno> {
        let rt = self.ip_route_output_flow(daddr)?;
        if rt.rt_type == RtType::Broadcast {
            return Err(Errno::EACCES);
        }
        Ok(rt)
    }
}
