//! IPv6 addresses of devices (Linux: `net/ipv6/addrconf.c`, `mcast.c`).
//!
//! In: devices that come into use, addresses and routes that the administrator tells. Out: a link-local address for each
//! device, made of its hardware address; the groups that a device is in; the address that a packet has as its
//! source. Addresses are used at once: nobody is asked whether another host has them (`accept_dad` is 0), no router is
//! asked for a prefix, and none is told of groups.

use std::net::Ipv6Addr;

use super::eth::ETH_ALEN;
use super::ip6_route::Fib6Info;
use super::ipv6::{
    IN6ADDR_ANY, IN6ADDR_LINKLOCAL_ALLNODES, IPV6_MIN_MTU, LINKLOCAL_PREFIX, SCOPE_LINKLOCAL,
    SCOPE_NODELOCAL, is_linklocal, is_multicast, linklocal_of, prefix_mask6, scope, solict_mult,
};
use super::netdevice::{IFF_LOOPBACK, Ifindex};
use super::route::RtType;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// The group of this host alone.
const IN6ADDR_INTERFACELOCAL_ALLNODES: u128 = 0xff01 << 112 | 1;

/// An address of a device (`struct inet6_ifaddr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inet6Ifaddr {
    pub addr: u128,
    pub prefix_len: u8,
}

/// Leading bits that two addresses have in common (`ipv6_addr_diff`).
fn common_bits(a: u128, b: u128) -> u32 {
    (a ^ b).leading_zeros()
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Whether a device has IPv6 (`__in6_dev_get`, `disable_ipv6`).
    #[inline]
    pub(super) fn has_ipv6(&self, dev: Ifindex) -> bool {
        !self.config.ipv6.disable_ipv6 && self.netdevs[dev].mtu >= IPV6_MIN_MTU
    }

    /// Gives lo and eth0 their addresses, and the one that is told; and packets for other networks their gateway.
    pub(super) fn inet6_config(&mut self) {
        for dev in [Ifindex::LO, Ifindex::ETH0] {
            self.addrconf_dev_config(dev);
        }
        let ipv6 = self.config.ipv6.clone();
        // An address that no host can have, or a second default route, is refused; there is none then.
        if let Some((addr, prefix_len)) = ipv6.addr {
            let _ = self.ipv6_add_addr(Ifindex::ETH0, addr, prefix_len);
        }
        if let Some(gateway) = ipv6.gateway.filter(|_| self.has_ipv6(Ifindex::ETH0)) {
            let default = (Ipv6Addr::UNSPECIFIED, 0);
            let _ = self.ip6_route_add(default, Some(gateway), Ifindex::ETH0);
        }
    }

    /// A device comes into use: it has a link-local address from then on (`addrconf_dev_config`, `init_loopback`), if it has
    /// a hardware address to make it of.
    pub(super) fn addrconf_dev_config(&mut self, dev: Ifindex) {
        let device = &self.netdevs[dev];
        let loopback = device.flags & IFF_LOOPBACK != 0;
        if !self.has_ipv6(dev) || device.dev_addr == [0; ETH_ALEN] && !loopback {
            return;
        }
        let (addr, prefix_len) = if loopback {
            (Ipv6Addr::LOCALHOST, 128)
        } else {
            (Ipv6Addr::from_bits(linklocal_of(device.dev_addr)), 64)
        };
        // It may have it.
        let _ = self.ipv6_add_addr(dev, addr, prefix_len);
    }

    /// A device has another MTU, with which it may have IPv6 no more, or again (`addrconf_ifdown`): its addresses and routes
    /// go, and only the link-local one comes again.
    pub(super) fn addrconf_mtu_changed(&mut self, dev: Ifindex) {
        if !self.has_ipv6(dev) {
            self.netdevs[dev].inet6_ifaddrs.clear();
            self.fib6.remove_dev(dev);
        } else if self.netdevs[dev].inet6_ifaddrs.is_empty() {
            self.addrconf_dev_config(dev);
        }
    }

    /// Gives a device an address in a network whose name is `prefix_len` bits long (`ip -6 addr add ADDR/LEN dev DEV`).
    ///
    /// # Errors
    /// ENODEV; EADDRNOTAVAIL for an address that no single host can have; EINVAL for a longer name than an address;
    /// EACCES: the device has no IPv6; EEXIST: it has that address.
    pub fn inet6_addr_add(
        &mut self,
        dev: Ifindex,
        addr: Ipv6Addr,
        prefix_len: u8,
    ) -> Result<(), Errno> {
        self.ipv6_add_addr(dev, addr, prefix_len)?;
        self.dev_set_rx_mode(dev);
        Ok(())
    }

    /// The same, but for the device, which does not hear of the address's group yet.
    fn ipv6_add_addr(&mut self, dev: Ifindex, addr: Ipv6Addr, prefix_len: u8) -> Result<(), Errno> {
        let device = self.dev_get_by_index(dev).ok_or(Errno::ENODEV)?;
        if prefix_len > 128 {
            return Err(Errno::EINVAL);
        }
        let bits = addr.to_bits();
        let loopback = device.flags & IFF_LOOPBACK != 0;
        if bits == IN6ADDR_ANY || is_multicast(bits) || addr.is_loopback() && !loopback {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if !self.has_ipv6(dev) {
            return Err(Errno::EACCES);
        }
        let known = &self.netdevs[dev].inet6_ifaddrs;
        if known.iter().any(|ifa| ifa.addr == bits) {
            return Err(Errno::EEXIST);
        }
        let ifa = Inet6Ifaddr {
            addr: bits,
            prefix_len,
        };
        // Those that reach far come before those that do not (`ipv6_link_dev_addr`).
        let behind = known.partition_point(|other| scope(other.addr) >= scope(bits));
        self.netdevs[dev].inet6_ifaddrs.insert(behind, ifa);
        let mut add = |prefix, plen, rt_type| {
            self.fib6.insert(Fib6Info {
                prefix,
                plen,
                rt_type,
                dev,
                gateway: 0,
            })
        };
        add(bits, 128, RtType::Local);
        if !loopback {
            if prefix_len < 128 {
                add(bits & prefix_mask6(prefix_len), prefix_len, RtType::Unicast);
            }
            add(LINKLOCAL_PREFIX, 64, RtType::Unicast);
        }
        Ok(())
    }

    /// Has packets for a network go by a device, to its `gateway` if it has one (`ip -6 route add`).
    ///
    /// # Errors
    /// ENODEV; EINVAL for a longer name than an address; EEXIST: there is a route to that network.
    pub fn ip6_route_add(
        &mut self,
        (network, plen): (Ipv6Addr, u8),
        gateway: Option<Ipv6Addr>,
        dev: Ifindex,
    ) -> Result<(), Errno> {
        if self.dev_get_by_index(dev).is_none() {
            return Err(Errno::ENODEV);
        }
        if plen > 128 {
            return Err(Errno::EINVAL);
        }
        let entry = Fib6Info {
            prefix: network.to_bits() & prefix_mask6(plen),
            plen,
            rt_type: RtType::Unicast,
            dev,
            gateway: gateway.map_or(IN6ADDR_ANY, Ipv6Addr::to_bits),
        };
        if self.fib6.insert(entry) {
            Ok(())
        } else {
            Err(Errno::EEXIST)
        }
    }

    /// Whether a device has an address (`ipv6_get_ifaddr`).
    pub(super) fn ipv6_get_ifaddr(&self, addr: u128, dev: Ifindex) -> bool {
        let ifaddrs = &self.netdevs[dev].inet6_ifaddrs;
        ifaddrs.iter().any(|ifa| ifa.addr == addr)
    }

    /// A device's link-local address (`ipv6_get_lladdr`).
    pub(super) fn ipv6_get_lladdr(&self, dev: Ifindex) -> Option<u128> {
        let addrs = self.netdevs[dev].inet6_ifaddrs.iter().map(|ifa| ifa.addr);
        addrs.into_iter().find(|addr| is_linklocal(*addr))
    }

    /// The address that a packet to `daddr` has as its source, if it leaves by `dev` (`ipv6_dev_get_saddr`; RFC 6724, 5:
    /// the same address, then one that reaches as far, then one of the device, then the longest common prefix).
    pub(super) fn ipv6_dev_get_saddr(&self, dev: Ifindex, daddr: u128) -> Option<u128> {
        let _stage = self.stage("ipv6_dev_get_saddr");
        let wanted = scope(daddr);
        let on_link = is_multicast(daddr) || wanted <= SCOPE_LINKLOCAL;
        let rank = |of: Ifindex, ifa: &Inet6Ifaddr| {
            let has = scope(ifa.addr);
            // One that reaches too far is better than one that does not reach, and of those the nearest is best.
            let reach = if has >= wanted {
                (true, u8::MAX - has)
            } else {
                (false, has)
            };
            let common = common_bits(ifa.addr, daddr).min(ifa.prefix_len.into());
            (ifa.addr == daddr, reach, of == dev, common)
        };
        let devices = self.net_devices().iter();
        let devices = devices.filter(|device| !on_link || device.ifindex == dev);
        let mut best = None;
        for device in devices {
            for ifa in &device.inet6_ifaddrs {
                let this = (rank(device.ifindex, ifa), ifa.addr);
                // Of equals the first.
                if best.is_none_or(|(rank, _)| this.0 > rank) {
                    best = Some(this);
                }
            }
        }
        best.map(|(_, addr)| addr)
    }

    /// Whether a device takes a group's packets (`ipv6_chk_mcast_addr`): those of all nodes, and of its own addresses'
    /// solicited nodes.
    pub(super) fn ipv6_chk_mcast_addr(&self, dev: Ifindex, group: u128) -> bool {
        matches!(
            group,
            IN6ADDR_LINKLOCAL_ALLNODES | IN6ADDR_INTERFACELOCAL_ALLNODES
        ) || self.netdevs[dev]
            .inet6_ifaddrs
            .iter()
            .any(|ifa| solict_mult(ifa.addr) == group)
    }

    /// The groups of a device that its card has to let in.
    pub(super) fn ipv6_groups(&self, dev: Ifindex) -> impl Iterator<Item = u128> + '_ {
        let ifaddrs = self.netdevs[dev].inet6_ifaddrs.iter();
        let any = self.has_ipv6(dev).then_some(IN6ADDR_LINKLOCAL_ALLNODES);
        any.into_iter()
            .chain(ifaddrs.map(|ifa| solict_mult(ifa.addr)))
            .filter(|group| scope(*group) > SCOPE_NODELOCAL)
    }
}
