//! Socket options of IP (Linux: `net/ipv4/ip_sockglue.c`, and those about groups of `net/ipv4/igmp.c`).

use std::net::Ipv4Addr;

use super::netdevice::Ifindex;
use super::route::{RtType, Rtable};
use super::skbuff::SkBuff;
use super::{Errno, Fd, Kernel, Machine};
use crate::transport::Transport;

/// Groups that a socket may be in (`igmp_max_memberships`).
const IGMP_MAX_MEMBERSHIPS: usize = 20;

/// Whether a socket's packets may be fragmented, and what it knows of the path (`IP_PMTUDISC_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpPmtudisc {
    /// They may, everywhere.
    Dont,
    /// Here they may, on the way only those that are too long already; errors set the path's MTU.
    #[default]
    Want,
    /// Nowhere: what is too long is refused.
    Do,
    /// Nowhere, and the path's MTU is not heeded.
    Probe,
    /// As the interface's MTU has it; nobody can spoil it by errors.
    Interface,
    /// The same, but what is too long is fragmented here.
    Omit,
}

/// What a socket says of groups (`struct ip_mc_socklist` and what is beside it).
#[derive(Debug)]
pub(super) struct McOptions {
    /// The device that packets to groups leave by.
    pub index: Option<Ifindex>,
    /// How many routers they pass, and one.
    pub ttl: u8,
    /// They are for this host as well.
    pub loops: bool,
    /// It gets packets of groups that others here are in.
    pub all: bool,
    /// The groups that it is in.
    pub list: Vec<(u32, Ifindex)>,
}

impl Default for McOptions {
    fn default() -> Self {
        Self {
            index: None,
            ttl: 1,
            loops: true,
            all: true,
            list: Vec::new(),
        }
    }
}

impl IpPmtudisc {
    /// Whether what is too long is fragmented here (`ip_sk_ignore_df`).
    pub(super) fn ignores_df(self) -> bool {
        matches!(self, Self::Dont | Self::Want | Self::Omit)
    }

    /// Whether the path's MTU counts (`ip_sk_use_pmtu`).
    pub(super) fn uses_pmtu(self) -> bool {
        matches!(self, Self::Dont | Self::Want | Self::Do)
    }

    /// Whether errors about the length change the path's MTU (`ip_sk_accept_pmtu`).
    pub(super) fn accepts_pmtu(self) -> bool {
        !matches!(self, Self::Interface | Self::Omit)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Says whether a socket's packets may be fragmented (`IP_MTU_DISCOVER`).
    ///
    /// # Errors
    /// EBADF.
    pub fn set_mtu_discover(&mut self, fd: Fd, pmtudisc: IpPmtudisc) -> Result<(), Errno> {
        self.sock_mut(fd)?.pmtudisc = pmtudisc;
        Ok(())
    }

    /// The longest packet that a socket may send by a route without its being fragmented.
    #[inline]
    pub(super) fn ip_sk_mtu(&self, pmtudisc: IpPmtudisc, rt: &Rtable) -> usize {
        if pmtudisc.uses_pmtu() {
            self.dst_mtu(rt)
        } else {
            self.mtu(rt.dev)
        }
    }

    /// Whether a packet of `len` octets with all headers is to be marked "do not fragment"
    /// (`ip_dont_fragment`, `__ip_make_skb`).
    ///
    /// # Errors
    /// EMSGSIZE: it is too long, and its socket does not want it fragmented here.
    #[inline]
    pub(super) fn ip_dont_fragment(
        &self,
        pmtudisc: IpPmtudisc,
        rt: &Rtable,
        len: usize,
    ) -> Result<bool, Errno> {
        let fits = len <= self.ip_sk_mtu(pmtudisc, rt);
        if !fits && !pmtudisc.ignores_df() {
            return Err(Errno::EMSGSIZE);
        }
        Ok(match pmtudisc {
            IpPmtudisc::Do | IpPmtudisc::Probe => true,
            IpPmtudisc::Want => fits && !rt.pmtu_locked,
            IpPmtudisc::Dont | IpPmtudisc::Interface | IpPmtudisc::Omit => false,
        })
    }
    /// Joins a group, on a device or on that of the route to it (`IP_ADD_MEMBERSHIP`).
    ///
    /// # Errors
    /// EBADF; EINVAL: it is no group; ENODEV; EADDRINUSE: it is joined already; ENOBUFS: these are too many.
    pub fn ip_mc_join_group(
        &mut self,
        fd: Fd,
        group: Ipv4Addr,
        dev: Option<Ifindex>,
    ) -> Result<(), Errno> {
        let (multiaddr, dev) = self.membership(group, dev)?;
        let sk = self.sock_mut(fd)?;
        if sk.mc.list.contains(&(multiaddr, dev)) {
            return Err(Errno::EADDRINUSE);
        }
        if sk.mc.list.len() >= IGMP_MAX_MEMBERSHIPS {
            return Err(Errno::ENOBUFS);
        }
        sk.mc.list.push((multiaddr, dev));
        self.ip_mc_inc_group(dev, multiaddr);
        Ok(())
    }

    /// Leaves a group (`IP_DROP_MEMBERSHIP`).
    ///
    /// # Errors
    /// EBADF; EINVAL: it is no group; ENODEV; EADDRNOTAVAIL: it was not joined.
    pub fn ip_mc_leave_group(
        &mut self,
        fd: Fd,
        group: Ipv4Addr,
        dev: Option<Ifindex>,
    ) -> Result<(), Errno> {
        let membership = self.membership(group, dev)?;
        let list = &mut self.sock_mut(fd)?.mc.list;
        let joined = list.iter().position(|joined| *joined == membership);
        list.remove(joined.ok_or(Errno::EADDRNOTAVAIL)?);
        self.ip_mc_dec_group(membership.1, membership.0);
        Ok(())
    }

    fn membership(&self, group: Ipv4Addr, dev: Option<Ifindex>) -> Result<(u32, Ifindex), Errno> {
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let multiaddr = group.to_bits();
        let dev = dev.or_else(|| self.ip_mc_find_dev(multiaddr));
        let dev = dev.filter(|dev| self.dev_get_by_index(*dev).is_some());
        Ok((multiaddr, dev.ok_or(Errno::ENODEV)?))
    }

    /// Says by which device a socket's packets to groups leave (`IP_MULTICAST_IF`), how far they go
    /// (`IP_MULTICAST_TTL`), and whether they are for this host as well (`IP_MULTICAST_LOOP`).
    ///
    /// # Errors
    /// EBADF; ENODEV.
    pub fn set_multicast(
        &mut self,
        fd: Fd,
        dev: Option<Ifindex>,
        ttl: u8,
        loops: bool,
    ) -> Result<(), Errno> {
        if dev.is_some_and(|dev| self.dev_get_by_index(dev).is_none()) {
            return Err(Errno::ENODEV);
        }
        let mc = &mut self.sock_mut(fd)?.mc;
        (mc.index, mc.ttl, mc.loops) = (dev, ttl, loops);
        Ok(())
    }

    /// Says whether a socket gets packets of groups that it is not in itself (`IP_MULTICAST_ALL`).
    ///
    /// # Errors
    /// EBADF.
    pub fn set_multicast_all(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.sock_mut(fd)?.mc.all = on;
        Ok(())
    }

    /// Whether a socket gets a packet for many.
    pub(super) fn ip_mc_sf_allow(&self, at: usize, skb: &SkBuff) -> bool {
        let membership = (skb.ip.daddr, skb.dev);
        skb.rt_type() != RtType::Multicast
            || self
                .socks
                .get(at)
                .is_some_and(|sk| sk.mc.all || sk.mc.list.contains(&membership))
    }

    /// The route of what a socket sends to a group.
    #[cold]
    pub(super) fn ip_route_output_group(&self, at: usize, daddr: u32) -> Result<Rtable, Errno> {
        let _stage = self.stage("ip_route_output_flow");
        let index = self.socks.get(at).and_then(|sk| sk.mc.index);
        let dev = index.or_else(|| self.ip_mc_find_dev(daddr));
        Ok(self.ip_route_output_mc(daddr, dev.ok_or(Errno::ENETUNREACH)?))
    }

    /// A packet to a group goes as far as its socket says, one of nobody's to the next router.
    #[inline]
    pub(super) fn ip_select_ttl(&self, rt: &Rtable, skb: &mut SkBuff) {
        if rt.rt_type == RtType::Multicast {
            skb.data_mut()[8] = self.socks.mc_ttl(skb.sk);
        }
    }
}
