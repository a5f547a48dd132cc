//! Routes of IPv6 (Linux: `net/ipv6/route.c`, `ip6_fib.c`): where packets come from and go to.
//!
//! In: addresses, and the device where they mean something on a link only. Out: the route with the longest prefix, those
//! to this host before all others; for a packet to send, the device that it leaves by and the neighbour that it goes to.

use std::net::Ipv6Addr;

use super::fib_nh_exception::Pmtu;
use super::ipv6::{
    IN6ADDR_ANY, IN6ADDR_LOOPBACK, IPV6_MIN_MTU, Ipv6hdr, is_linklocal, is_multicast,
    needs_scope_id, prefix_mask6,
};
use super::netdevice::{IFF_LOOPBACK, Ifindex};
use super::route::RtType;
use super::stats::Mib6;
use super::sysctl_net_ipv4::nanos;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// A route (`struct fib6_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fib6Info {
    pub prefix: u128,
    pub plen: u8,
    pub rt_type: RtType,
    /// The device that packets leave by; of an address of this host the one that has it.
    pub dev: Ifindex,
    /// The neighbour that passes them on; 0 where the network is on the link.
    pub gateway: u128,
}

impl Fib6Info {
    fn covers(&self, addr: u128) -> bool {
        (addr ^ self.prefix) & prefix_mask6(self.plen) == 0
    }

    /// Its place among others: of lower ones first.
    fn rank(&self) -> (bool, u8) {
        (self.rt_type == RtType::Unicast, 128 - self.plen)
    }
}

/// Where a packet goes (`struct rt6_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rt6Info {
    pub rt_type: RtType,
    /// The device that it leaves by.
    pub dev: Ifindex,
    /// The device that has the address, where that is this host's; else the same (`rt6i_idev`).
    pub iif: Ifindex,
    /// The neighbour that gets it.
    pub next_hop: u128,
    /// Bits of the network that the route leads to.
    pub plen: u8,
    /// The longest packet that passes, where the path is known to be narrower than the device; else 0.
    pub pmtu: u16,
    /// A packet to a group is for this host as well, if it is in that.
    pub mc_loop: bool,
}

impl Rt6Info {
    /// Whether `daddr`, where the route leads, is the address that all routers of a link have (`ipv6_anycast_destination`).
    pub fn is_anycast(&self, daddr: u128) -> bool {
        let network = daddr & prefix_mask6(self.plen) == daddr;
        self.plen < 127 && self.next_hop == daddr && network
    }
}

/// All routes.
#[derive(Debug, Default)]
pub(super) struct Fib6 {
    table: Vec<Fib6Info>,
}

impl Fib6 {
    /// Adds a route; whether there was none to that network by that device yet.
    pub fn insert(&mut self, entry: Fib6Info) -> bool {
        let rank = entry.rank();
        let at = self.table.partition_point(|other| other.rank() <= rank);
        let same = |other: &Fib6Info| {
            (other.rank(), other.prefix, other.dev) == (rank, entry.prefix, entry.dev)
        };
        if self.table[..at].iter().any(same) {
            return false;
        }
        self.table.insert(at, entry);
        true
    }

    /// A device has no IPv6 any more.
    pub fn remove_dev(&mut self, dev: Ifindex) {
        self.table.retain(|entry| entry.dev != dev);
    }

    /// The route to `addr`, by a device if one is named.
    fn lookup(&self, addr: u128, dev: Option<Ifindex>) -> Option<&Fib6Info> {
        let by = |entry: &Fib6Info| dev.is_none_or(|dev| dev == entry.dev);
        self.table
            .iter()
            .find(|entry| entry.covers(addr) && by(entry))
    }

    /// Whether it is an address of this host, of a device if one is named (`ipv6_chk_addr`).
    pub fn is_local(&self, addr: u128, dev: Option<Ifindex>) -> bool {
        let found = self.lookup(addr, dev);
        found.is_some_and(|entry| entry.rt_type == RtType::Local)
    }
}

/// Whether a device has to be named for the route (`rt6_need_strict`).
fn rt6_need_strict(daddr: u128) -> bool {
    is_multicast(daddr) || is_linklocal(daddr) || daddr == IN6ADDR_LOOPBACK
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The route of a packet that came in by a device; `None` if there is none.
    #[inline]
    pub(super) fn ip6_route_input(&self, hdr: &Ipv6hdr, dev: Ifindex) -> Option<Rt6Info> {
        let _stage = self.stage("ip6_route_input");
        if is_multicast(hdr.daddr) {
            return Some(self.ip6_route_mc(hdr.daddr, dev));
        }
        // What this host sent itself was looked up then.
        let looped = self.netdevs[dev].flags & IFF_LOOPBACK != 0;
        let strict = rt6_need_strict(hdr.daddr) && !looped;
        self.fib6_table_lookup(hdr.daddr, strict.then_some(dev))
    }

    fn fib6_table_lookup(&self, daddr: u128, dev: Option<Ifindex>) -> Option<Rt6Info> {
        let _stage = self.stage("fib6_table_lookup");
        let entry = self.fib6.lookup(daddr, dev)?;
        Some(Rt6Info {
            rt_type: entry.rt_type,
            dev: entry.dev,
            iif: entry.dev,
            next_hop: if entry.gateway == IN6ADDR_ANY {
                daddr
            } else {
                entry.gateway
            },
            plen: entry.plen,
            pmtu: 0,
            mc_loop: true,
        })
    }

    /// The route of a packet to a group, by a device.
    pub(super) fn ip6_route_mc(&self, daddr: u128, dev: Ifindex) -> Rt6Info {
        Rt6Info {
            rt_type: RtType::Multicast,
            dev,
            iif: dev,
            next_hop: daddr,
            plen: 8,
            pmtu: 0,
            mc_loop: true,
        }
    }

    /// The route of a packet to send, by a device if one is named.
    pub(super) fn ip6_route_output(
        &self,
        daddr: u128,
        oif: Option<Ifindex>,
    ) -> Result<Rt6Info, Errno> {
        let _stage = self.stage("ip6_route_output_flags");
        let mut rt = if is_multicast(daddr) {
            let dev = oif.unwrap_or(Ifindex::ETH0);
            // Each device with IPv6 has a route to all groups, but the loopback device.
            if self.netdevs[dev].flags & IFF_LOOPBACK != 0 || !self.has_ipv6(dev) {
                return Err(Errno::ENETUNREACH);
            }
            self.ip6_route_mc(daddr, dev)
        } else {
            let found = self.fib6_table_lookup(daddr, oif);
            // An address of this host is there, whichever device is named.
            let own = || self.fib6_table_lookup(daddr, None);
            let own = found.or_else(|| own().filter(|rt| rt.rt_type == RtType::Local));
            own.ok_or(Errno::ENETUNREACH)?
        };
        if rt.rt_type == RtType::Local {
            rt.dev = Ifindex::LO;
        }
        let host = (daddr, needs_scope_id(daddr).then_some(rt.dev));
        if let Some(pmtu) = self.fnhe6.find(host, || self.machine.now()) {
            rt.pmtu = pmtu.mtu;
        }
        self.changed("rt6", || {
            format!(
                "{:?} by {} to {}",
                rt.rt_type,
                self.netdevs[rt.dev].name(),
                Ipv6Addr::from_bits(rt.next_hop)
            )
        });
        Ok(rt)
    }

    /// The same for a sender that is told if there is none, which is counted (`ip6_dst_lookup_flow`).
    pub(super) fn ip6_dst_lookup_flow(
        &mut self,
        daddr: u128,
        oif: Option<Ifindex>,
    ) -> Result<Rt6Info, Errno> {
        let rt = self.ip6_route_output(daddr, oif);
        rt.inspect_err(|_| self.inc6(Mib6::Ip6OutNoRoutes))
    }

    /// Straight to a neighbour, whatever the table says (`icmp6_dst_alloc`). Groups do not hear themselves.
    pub(super) fn icmp6_dst_alloc(&self, daddr: u128, dev: Ifindex) -> Rt6Info {
        let rt_type = if is_multicast(daddr) {
            RtType::Multicast
        } else {
            RtType::Unicast
        };
        Rt6Info {
            rt_type,
            plen: 128,
            mc_loop: false,
            ..self.ip6_route_mc(daddr, dev)
        }
    }

    /// The longest packet that takes a route.
    pub(super) fn dst_mtu6(&self, rt: &Rt6Info) -> usize {
        let mtu = self.mtu(rt.dev);
        if rt.pmtu == 0 {
            mtu
        } else {
            mtu.min(rt.pmtu.into())
        }
    }

    /// A packet to `daddr` was too long on its way, where `mtu` octets pass (RFC 8201); that came by `dev`.
    pub(super) fn ip6_update_pmtu(&mut self, daddr: u128, mtu: u32, dev: Ifindex) {
        let _stage = self.stage("ip6_update_pmtu");
        let oif = needs_scope_id(daddr).then_some(dev);
        let Ok(rt) = self.ip6_route_output(daddr, oif) else {
            return;
        };
        let Ok(mtu) = u16::try_from(mtu) else {
            return;
        };
        // Nobody may have less; and what is more is nothing new.
        if usize::from(mtu) < IPV6_MIN_MTU || usize::from(mtu) >= self.dst_mtu6(&rt) {
            return;
        }
        let lifetime = nanos(self.config.ipv4.mtu_expires);
        let expires = self.machine.now().saturating_add(lifetime);
        let pmtu = Pmtu {
            mtu,
            locked: false,
            expires,
        };
        let host = (daddr, oif.map(|_| rt.dev));
        self.fnhe6.update_or_create(host, pmtu);
        self.changed("rt6_exception", || mtu.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: &str, plen: u8, dev: Ifindex, rt_type: RtType, gateway: u128) -> Fib6Info {
        Fib6Info {
            prefix: prefix.parse::<Ipv6Addr>().unwrap().to_bits(),
            plen,
            rt_type,
            dev,
            gateway,
        }
    }

    #[test]
    fn the_longest_prefix_counts_and_this_host_before_it() {
        let (unicast, eth0) = (RtType::Unicast, Ifindex::ETH0);
        let mut routes = vec![
            route("::", 0, eth0, unicast, 1),
            route("fd77::", 16, eth0, unicast, 2),
            route("fd77:1::", 32, eth0, unicast, 3),
            route("fd77:1::9", 128, eth0, RtType::Local, 4),
            route("fe80::", 64, eth0, unicast, 5),
            route("fe80::", 64, Ifindex::LO, unicast, 6),
        ];
        for _ in 0..routes.len() {
            // In whatever order they came.
            routes.rotate_left(1);
            let mut fib = Fib6::default();
            for entry in &routes {
                assert!(fib.insert(*entry));
                assert!(!fib.insert(*entry), "there is one");
            }
            for (addr, dev, want) in [
                ("2001:db8::1", None, 1),
                ("fd77:2::1", None, 2),
                ("fd77:1::1", None, 3),
                ("fd77:1::9", None, 4),
                ("fe80::7", Some(eth0), 5),
                ("fe80::7", Some(Ifindex::LO), 6),
            ] {
                let bits = addr.parse::<Ipv6Addr>().unwrap().to_bits();
                let found = fib.lookup(bits, dev);
                assert_eq!(found.map(|entry| entry.gateway), Some(want), "{addr}");
            }
            let own = routes.iter().find(|r| r.plen == 128).unwrap().prefix;
            assert!(fib.is_local(own, None));
            fib.remove_dev(eth0);
            assert!(fib.lookup(own, None).is_none() && fib.table.len() == 1);
        }
        assert!(Fib6::default().lookup(1, None).is_none());
    }
}
