//! IPv4 addresses of devices (Linux: `net/ipv4/devinet.c`, `fib_frontend.c`).
//!
//! An address brings its routes with it: to itself, to its network's broadcast address, and to the network.

use std::net::Ipv4Addr;

use super::fib::{Fib, FibEntry, prefix_mask};
use super::netdevice::{IFF_LOOPBACK, Ifindex};
use super::route::RtType;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// An address of a device (`struct in_ifaddr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InIfaddr {
    pub ifa_local: u32,
    pub ifa_mask: u32,
}

impl InIfaddr {
    pub fn new(addr: Ipv4Addr, prefix_len: u8) -> Self {
        Self {
            ifa_local: addr.to_bits(),
            ifa_mask: prefix_mask(prefix_len),
        }
    }

    /// Whether an address is of the same network (`inet_ifa_match`).
    fn covers(&self, addr: u32) -> bool {
        (addr ^ self.ifa_local) & self.ifa_mask == 0
    }
}

impl Fib {
    /// The routes that an address brings with it; `loopback` is whether its device is lo.
    pub fn add_ifaddr(&mut self, dev: Ifindex, loopback: bool, ifa: InIfaddr) {
        let InIfaddr {
            ifa_local,
            ifa_mask,
        } = ifa;
        let mut add = |prefix, mask, rt_type| {
            self.insert(FibEntry {
                prefix,
                mask,
                rt_type,
                dev,
                gateway: 0,
                prefsrc: ifa_local,
            })
        };
        if ifa_mask != u32::MAX {
            let rt_type = if loopback {
                RtType::Local
            } else {
                RtType::Unicast
            };
            add(ifa_local & ifa_mask, ifa_mask, rt_type);
            // Networks of two hosts need all their addresses.
            if ifa_mask != u32::MAX - 1 {
                add(ifa_local | !ifa_mask, u32::MAX, RtType::Broadcast);
            }
        }
        add(ifa_local, u32::MAX, RtType::Local);
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Gives lo and eth0 their addresses, and packets for other networks their gateway.
    pub(super) fn inet_config(&mut self) {
        let own = (self.config.addr, self.config.prefix_len);
        for (dev, (addr, prefix_len)) in [
            (Ifindex::LO, (Ipv4Addr::LOCALHOST, 8)),
            (Ifindex::ETH0, own),
        ] {
            // Only an eth0 with lo's address would be refused; it has none then.
            let _ = self.inet_addr_add(dev, addr, prefix_len);
        }
        if let Some(gateway) = self.config.gateway {
            let default = (Ipv4Addr::UNSPECIFIED, 0);
            let _ = self.ip_route_add(default, Some(gateway), Ifindex::ETH0);
        }
    }

    /// Gives a device an address in a network whose name is `prefix_len` bits long (`ip addr add ADDR/LEN dev DEV`).
    ///
    /// # Errors
    /// ENODEV; EEXIST: a device has that address.
    pub fn inet_addr_add(
        &mut self,
        dev: Ifindex,
        addr: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), Errno> {
        if self.dev_get_by_index(dev).is_none() {
            return Err(Errno::ENODEV);
        }
        let ifa = InIfaddr::new(addr, prefix_len);
        let mut known = self.net_devices().iter().flat_map(|dev| &dev.ifa_list);
        if known.any(|other| other.ifa_local == ifa.ifa_local) {
            return Err(Errno::EEXIST);
        }
        let device = &mut self.netdevs[dev];
        device.ifa_list.push(ifa);
        let loopback = device.flags & IFF_LOOPBACK != 0;
        self.fib.add_ifaddr(dev, loopback, ifa);
        Ok(())
    }

    /// Has packets for a network go by a device, to its `gateway` if it has one (`ip route add`).
    ///
    /// # Errors
    /// ENODEV; EEXIST: there is a route to that network.
    pub fn ip_route_add(
        &mut self,
        network: (Ipv4Addr, u8),
        gateway: Option<Ipv4Addr>,
        dev: Ifindex,
    ) -> Result<(), Errno> {
        if self.dev_get_by_index(dev).is_none() {
            return Err(Errno::ENODEV);
        }
        let entry = FibEntry::unicast(network, gateway, dev);
        if self.fib.insert(entry) {
            Ok(())
        } else {
            Err(Errno::EEXIST)
        }
    }

    /// The address that this host has towards `dst` on a device; one of another device if it has none, else 0.
    pub(super) fn inet_select_addr(&self, dev: Ifindex, dst: u32) -> u32 {
        let ifa_list = &self.netdevs[dev].ifa_list;
        let others = || {
            self.net_devices()
                .iter()
                .skip(1)
                .flat_map(|dev| &dev.ifa_list)
        };
        ifa_list
            .iter()
            .find(|ifa| ifa.covers(dst))
            .or_else(|| ifa_list.first())
            .or_else(|| others().next())
            .map_or(0, |ifa| ifa.ifa_local)
    }
}
