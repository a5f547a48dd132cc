//! The socket calls of AF_INET6 (Linux: `net/ipv6/af_inet6.c`, `datagram.c`).
//!
//! In: calls of a process, never blocking. Out: data to the transports, and what waits in a socket's queue. Sockets are of
//! IPv6 alone (`IPV6_V6ONLY` is on), so that their ports are others than those of AF_INET. There are datagrams of UDP, and
//! ping sockets; what is not of an address is done by the calls of AF_INET.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use super::ip_sockglue::IpPmtudisc;
use super::ip6_route::Rt6Info;
use super::ipv6::{IN6ADDR_ANY, IN6ADDR_LOOPBACK, is_multicast, needs_scope_id};
use super::netdevice::Ifindex;
use super::port_table::PortTable;
use super::skbuff::SkBuff;
use super::sock::{Ipv6Pinfo, Proto, SockTable};
use super::trace::Span;
use super::{Errno, Fd, Kernel, Machine, Protocol, Received, SockType};
use crate::transport::Transport;

impl Received<SocketAddrV6> {
    /// Copies a datagram behind its `header` bytes to `buf`.
    pub(super) fn copy6(skb: &SkBuff, header: usize, port: u16, buf: &mut [u8]) -> Self {
        let len = skb.copy_bits(header, buf);
        let saddr = skb.ip6.saddr;
        // `ipv6_iface_scope_id`
        let scope_id = if needs_scope_id(saddr) {
            skb.ip6.iif.into()
        } else {
            0
        };
        Self {
            len,
            datagram_len: skb.len().saturating_sub(header),
            from: SocketAddrV6::new(Ipv6Addr::from_bits(saddr), port, 0, scope_id),
            queued: skb.tstamp,
            hash: skb.hash,
            l4_hash: skb.l4_hash,
            gso_size: skb.gso_size,
        }
    }

    /// What a call gets that does not ask who sent it.
    pub(super) fn without_sender(self) -> Received {
        Received {
            len: self.len,
            datagram_len: self.datagram_len,
            from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, self.from.port()),
            queued: self.queued,
            hash: self.hash,
            l4_hash: self.l4_hash,
            gso_size: self.gso_size,
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The device that an address with a scope names.
    ///
    /// # Errors
    /// ENODEV: there is none of that number.
    fn scope_dev(&self, addr: &SocketAddrV6) -> Result<Option<Ifindex>, Errno> {
        let number = addr.scope_id();
        if number == 0 || !needs_scope_id(addr.ip().to_bits()) {
            return Ok(None);
        }
        let dev = Ifindex::from_number(number).and_then(|dev| self.dev_get_by_index(dev));
        dev.map(|dev| Some(dev.ifindex())).ok_or(Errno::ENODEV)
    }

    /// Makes a socket of AF_INET6 (`inet6_create`).
    ///
    /// # Errors
    /// EPROTONOSUPPORT of all but datagrams of UDP and of ICMP (then of ICMPv6); EMFILE.
    pub fn socket6(&mut self, sock_type: SockType, protocol: Protocol) -> Result<Fd, Errno> {
        let prot = match (sock_type, protocol) {
            (SockType::Dgram, Protocol::Udp) => Proto::Udpv6,
            (SockType::Dgram, Protocol::Icmp) => Proto::Pingv6,
            _ => return Err(Errno::EPROTONOSUPPORT),
        };
        let (rcvbuf, sndbuf) = (self.config.rmem_default, self.config.wmem_default);
        let at = self.socks.sk_alloc(prot, rcvbuf, sndbuf);
        self.sock_map_fd(at)
    }

    /// All sockets, and those of a protocol of IPv6 by their ports.
    pub(super) fn tables6(
        &mut self,
        prot: Proto,
    ) -> (&mut SockTable, Option<(&'static str, &mut PortTable<u128>)>) {
        let table = match prot {
            Proto::Udpv6 => Some(("udp_v6_get_port", &mut self.udp6_table)),
            Proto::Pingv6 => Some(("ping_get_port", &mut self.ping6_table)),
            _ => None,
        };
        (&mut self.socks, table)
    }

    fn get_port6(&mut self, fd: Fd, port: u16) -> Result<(), Errno> {
        let at = self.sockfd_lookup(fd)?;
        let prot = self.sock_mut(fd)?.sk_prot;
        let (cpu, tracer) = (self.cpu, self.machine.tracer().cloned());
        let stage = |name| Span::of(tracer.as_ref(), name, cpu);
        let (socks, table) = self.tables6(prot);
        let (name, table) = table.ok_or(Errno::EAFNOSUPPORT)?;
        let _stage = stage(name);
        table.get_port(socks, at, port, stage)
    }

    fn inet6_autobind(&mut self, fd: Fd) -> Result<(), Errno> {
        if self.sock_mut(fd)?.inet_num != 0 {
            return Ok(());
        }
        let _stage = self.stage("inet_autobind");
        self.get_port6(fd, 0).map_err(|error| match error {
            Errno::EADDRINUSE => Errno::EAGAIN,
            error => error,
        })
    }

    /// The place of a socket of IPv6.
    fn sockfd_lookup6(&self, fd: Fd) -> Result<(usize, Proto), Errno> {
        let at = self.sockfd_lookup(fd)?;
        let prot = self.socks.get(at).ok_or(Errno::EBADF)?.sk_prot;
        match prot {
            Proto::Udpv6 | Proto::Pingv6 => Ok((at, prot)),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// Binds a socket to an address of this host, or any, and a port, 0 for any.
    ///
    /// # Errors
    /// EBADF; EAFNOSUPPORT: it is no socket of AF_INET6; EINVAL when it is bound already, for an address of IPv4, and for
    /// one that means something on a link only without a device; ENODEV; EADDRNOTAVAIL; EADDRINUSE.
    pub fn bind6(&mut self, fd: Fd, addr: SocketAddrV6) -> Result<(), Errno> {
        let _stage = self.stage("inet6_bind");
        self.sockfd_lookup6(fd)?;
        let own = addr.ip().to_bits();
        if self.sock_mut(fd)?.inet_num != 0
            || addr.ip().to_ipv4_mapped().is_some()
            || needs_scope_id(own) && addr.scope_id() == 0
        {
            return Err(Errno::EINVAL);
        }
        let oif = self.scope_dev(&addr)?;
        let of_host = match oif {
            Some(dev) => self.ipv6_get_ifaddr(own, dev),
            None => self.fib6.is_local(own, None),
        };
        if own != IN6ADDR_ANY && !is_multicast(own) && !of_host {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let sk = self.sock_mut(fd)?;
        // What is bound to an address of many sends from another.
        sk.pinet6.saddr = if of_host { own } else { IN6ADDR_ANY };
        (sk.pinet6.rcv_saddr, sk.pinet6.oif) = (own, oif);
        let bound = self.get_port6(fd, addr.port());
        if bound.is_err() {
            let np = &mut self.sock_mut(fd)?.pinet6;
            *np = Ipv6Pinfo {
                tclass: np.tclass,
                ..Ipv6Pinfo::default()
            };
        }
        bound
    }

    /// Connects a socket: it sends to `addr` where nothing else is said, and receives from there only.
    ///
    /// # Errors
    /// EBADF; EAFNOSUPPORT; EINVAL for an address that means something on a link only without a device, or with another
    /// than the socket is bound to; ENETUNREACH, which addresses of IPv4 are as well; EADDRNOTAVAIL: this host has no address
    /// to send from; EAGAIN when no port is free.
    pub fn connect6(&mut self, fd: Fd, addr: SocketAddrV6) -> Result<(), Errno> {
        let (at, prot) = self.sockfd_lookup6(fd)?;
        let bound = self.sock_mut(fd)?.pinet6.oif;
        let (daddr, named) = self.named6(&addr)?;
        let oif = named.or(bound);
        if needs_scope_id(daddr) && oif.is_none() || bound.is_some() && bound != oif {
            return Err(Errno::EINVAL);
        }
        let rt = self.ip6_dst_lookup_flow(daddr, oif)?;
        let saddr = self.source6(at, &rt, daddr)?;
        self.inet6_autobind(fd)?;
        let sk = self.sock_mut(fd)?;
        let np = &mut sk.pinet6;
        (np.daddr, np.oif, sk.inet_dport) = (daddr, oif, addr.port());
        np.saddr = saddr;
        if np.rcv_saddr == IN6ADDR_ANY {
            np.rcv_saddr = saddr;
        }
        if let (socks, Some((_, table))) = self.tables6(prot)
            && let Some(sk) = socks.get(at)
        {
            table.rehash(at, sk);
        }
        Ok(())
    }

    /// Where a socket is bound.
    ///
    /// # Errors
    /// EBADF; EAFNOSUPPORT.
    pub fn getsockname6(&self, fd: Fd) -> Result<SocketAddrV6, Errno> {
        let (at, _) = self.sockfd_lookup6(fd)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let addr = sk.pinet6.rcv_saddr;
        let of_link = sk.pinet6.oif.filter(|_| needs_scope_id(addr));
        let scope_id = of_link.map_or(0, u32::from);
        Ok(SocketAddrV6::new(
            Ipv6Addr::from_bits(addr),
            sk.inet_num,
            0,
            scope_id,
        ))
    }

    /// Sends a datagram, to `to` or to where the socket is connected; how many bytes.
    ///
    /// # Errors
    /// EBADF; EAFNOSUPPORT; EDESTADDRREQ; EINVAL for port 0, or what is no echo request; ENETUNREACH; EADDRNOTAVAIL; EMSGSIZE
    /// beyond 65535 octets, or beyond the MTU where the socket says so; EAGAIN when the send buffer is full, or no port
    /// is free; EPERM: the packet filter; and what a peer answered to an earlier datagram, once.
    pub fn sendto6(
        &mut self,
        fd: Fd,
        data: &[u8],
        to: Option<SocketAddrV6>,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("inet6_sendmsg");
        let (at, prot) = self.sockfd_lookup6(fd)?;
        self.inet6_autobind(fd)?;
        match prot {
            Proto::Udpv6 => self.udpv6_sendmsg(at, data, to),
            _ => self.ping_v6_sendmsg(at, data, to),
        }
    }

    /// Takes the oldest datagram from a socket's queue and copies it to `buf`.
    ///
    /// # Errors
    /// EBADF; EAFNOSUPPORT; EAGAIN when there is none; and what a peer answered to an earlier datagram, once.
    pub fn recvfrom6(&mut self, fd: Fd, buf: &mut [u8]) -> Result<Received<SocketAddrV6>, Errno> {
        let (at, _) = self.sockfd_lookup6(fd)?;
        self.inet6_recvmsg(at, buf, false)
    }

    pub(super) fn inet6_recvmsg(
        &mut self,
        at: usize,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Received<SocketAddrV6>, Errno> {
        let _stage = self.stage("inet6_recvmsg");
        let sk = self.socks.get_mut(at).ok_or(Errno::EBADF)?;
        if let Some(error) = sk.sk_err.take() {
            return Err(error);
        }
        if sk.sk_prot == Proto::Udpv6 {
            return self.udpv6_recvmsg(at, buf, peek);
        }
        if peek {
            let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
            let skb = sk.sk_receive_queue.front().ok_or(Errno::EAGAIN)?;
            return Ok(Received::copy6(skb, 0, 0, buf));
        }
        let skb = self.sock_dequeue_skb(at)?;
        let received = Received::copy6(&skb, 0, 0, buf);
        self.skb_cache.put(skb);
        Ok(received)
    }

    /// The address that a process wants to send to, and the device that it names.
    fn named6(&self, to: &SocketAddrV6) -> Result<(u128, Option<Ifindex>), Errno> {
        let named = self.scope_dev(to).map_err(|_| Errno::ENETUNREACH)?;
        if to.ip().to_ipv4_mapped().is_some() {
            // A socket of IPv6 alone does not get there.
            return Err(Errno::ENETUNREACH);
        }
        match to.ip().to_bits() {
            IN6ADDR_ANY => Ok((IN6ADDR_LOOPBACK, named)),
            daddr => Ok((daddr, named)),
        }
    }

    /// Where a datagram goes that is sent to `to`, and by which device if that is said.
    pub(super) fn destination6(
        &self,
        at: usize,
        to: Option<SocketAddrV6>,
    ) -> Result<(u128, u16, Option<Ifindex>), Errno> {
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let np = &sk.pinet6;
        match to {
            Some(to) => {
                let (daddr, named) = self.named6(&to)?;
                Ok((daddr, to.port(), named.or(np.oif)))
            }
            None if np.daddr == IN6ADDR_ANY => Err(Errno::EDESTADDRREQ),
            None => Ok((np.daddr, sk.inet_dport, np.oif)),
        }
    }

    /// What a socket's packets have as their source on a route.
    pub(super) fn source6(&self, at: usize, rt: &Rt6Info, daddr: u128) -> Result<u128, Errno> {
        match self.socks.get(at).map(|sk| sk.pinet6.saddr) {
            None | Some(IN6ADDR_ANY) => {
                let saddr = self.ipv6_dev_get_saddr(rt.iif, daddr);
                saddr.ok_or(Errno::EADDRNOTAVAIL)
            }
            Some(own) => Ok(own),
        }
    }

    /// The route as a socket's packet of `len` octets takes it, without the path's MTU if the socket does not heed that
    /// (`ip6_setup_cork`): packets of IPv6 are cut here or nowhere.
    ///
    /// # Errors
    /// EMSGSIZE: it is too long, and its socket does not want it cut.
    pub(super) fn ip6_setup_cork(
        &self,
        pmtudisc: IpPmtudisc,
        mut rt: Rt6Info,
        len: usize,
    ) -> Result<Rt6Info, Errno> {
        if !pmtudisc.uses_pmtu() {
            rt.pmtu = 0;
        }
        if len > self.dst_mtu6(&rt) && !pmtudisc.ignores_df() {
            return Err(Errno::EMSGSIZE);
        }
        Ok(rt)
    }
}
