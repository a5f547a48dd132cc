//! Routes (Linux: `net/ipv4/route.c`, `net/ipv4/fib_trie.c`): where packets come from and go to.
//!
//! In: addresses. Out: whether a received packet is for this host, or why it is not; for a packet
//! to send, the neighbour it goes to. One interface has one network, and perhaps a gateway, so the table
//! is three rules instead of a trie.

use std::net::Ipv4Addr;

use super::stats::RxDrop;
use super::{Errno, Kernel, KernelConfig, Machine};
use crate::transport::Transport;

/// What a route leads to (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum RtType {
    /// Another host.
    Unicast,
    /// This host.
    #[default]
    Local,
    /// All hosts of the link.
    Broadcast,
}

/// Where a packet goes (`struct rtable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rtable {
    pub rt_type: RtType,
    /// The neighbour that gets it.
    pub next_hop: u32,
}

/// The forwarding information base.
#[derive(Debug)]
pub(super) struct Fib {
    local: u32,
    mask: u32,
    /// Last address of the network; the limited broadcast address where it has none. (The first one
    /// is a host's like any other since Linux 5.14.)
    broadcast: u32,
    gateway: Option<u32>,
}

impl Fib {
    pub fn new(config: &KernelConfig) -> Self {
        let host_bits = 32 - u32::from(config.prefix_len.min(32));
        let (local, mask) = (
            config.addr.to_bits(),
            u32::MAX.checked_shl(host_bits).unwrap_or(0),
        );
        // Networks of one or two hosts need all their addresses.
        let broadcast = if host_bits > 1 {
            local | !mask
        } else {
            u32::MAX
        };
        Self {
            local,
            mask,
            broadcast,
            gateway: config.gateway.map(Ipv4Addr::to_bits),
        }
    }

    /// The interface's address.
    #[inline]
    pub fn local_addr(&self) -> u32 {
        self.local
    }

    #[inline]
    pub fn is_local(&self, addr: u32) -> bool {
        addr == self.local
    }

    /// The limited broadcast, or the network's own.
    #[inline]
    pub fn is_broadcast(&self, addr: u32) -> bool {
        addr == u32::MAX || addr == self.broadcast
    }

    /// Whether it may be another host's address (`inet_addr_type`: `RTN_UNICAST`).
    pub fn is_unicast(&self, addr: u32) -> bool {
        !matches!(addr >> 24, 0 | 127 | 224..=239)
            && !self.is_local(addr)
            && !self.is_broadcast(addr)
    }

    /// The route to `daddr` (`fib_table_lookup`).
    fn output(&self, daddr: u32) -> Option<Rtable> {
        let addr = Ipv4Addr::from_bits(daddr);
        if self.is_broadcast(daddr) {
            return Some(Rtable {
                rt_type: RtType::Broadcast,
                next_hop: daddr,
            });
        }
        if self.is_local(daddr) || addr.is_loopback() || addr.is_multicast() || daddr == 0 {
            return None;
        }
        let on_link = daddr & self.mask == self.local & self.mask;
        let next_hop = if on_link { daddr } else { self.gateway? };
        Some(Rtable {
            rt_type: RtType::Unicast,
            next_hop,
        })
    }

    /// What a received packet is to this host, or why it is nothing.
    #[inline]
    fn input(&self, daddr: u32, saddr: u32) -> Result<RtType, RxDrop> {
        let host = !matches!(saddr >> 24, 0 | 127 | 224..=239);
        if daddr == self.local && host && saddr != self.local && !self.is_broadcast(saddr) {
            return Ok(RtType::Local);
        }
        self.input_slow(daddr, saddr)
    }

    /// The same for all the rest (`ip_route_input_slow`).
    fn input_slow(&self, daddr: u32, saddr: u32) -> Result<RtType, RxDrop> {
        if daddr >> 28 == 0xe {
            return Err(RxDrop::IpInMcastNotMember);
        }
        if saddr >> 24 == 0 {
            // A host that has no address yet may ask everybody.
            return if daddr == u32::MAX || (daddr, saddr) == (0, 0) {
                Ok(RtType::Broadcast)
            } else {
                Err(RxDrop::IpInMartianSource)
            };
        }
        if saddr >> 28 == 0xe || saddr >> 24 == 127 || self.is_broadcast(saddr) {
            return Err(RxDrop::IpInMartianSource);
        }
        if daddr >> 24 == 0 || daddr >> 24 == 127 {
            return Err(RxDrop::IpInMartianDest);
        }
        if saddr == self.local {
            return Err(RxDrop::IpInMartianSource);
        }
        if self.is_broadcast(daddr) {
            Ok(RtType::Broadcast)
        } else {
            Err(RxDrop::IpInAddrErrors)
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The route of a packet that came in (`ip_route_input_noref`); the error is `ip_error`'s
    /// counter: this host forwards nothing.
    #[inline]
    pub(super) fn ip_route_input_noref(&self, daddr: u32, saddr: u32) -> Result<RtType, RxDrop> {
        self.fib.input(daddr, saddr)
    }

    /// The route of a packet to send (`ip_route_output_flow`).
    #[inline]
    pub(super) fn ip_route_output_flow(&self, daddr: u32) -> Result<Rtable, Errno> {
        self.fib.output(daddr).ok_or(Errno::ENETUNREACH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fib(prefix_len: u8, gateway: Option<Ipv4Addr>) -> Fib {
        Fib::new(&KernelConfig {
            prefix_len,
            gateway,
            ..KernelConfig::default()
        })
    }

    fn addr(text: &str) -> u32 {
        text.parse::<Ipv4Addr>().unwrap().to_bits()
    }

    #[test]
    fn packets_are_for_us_or_are_not() {
        let fib = fib(24, None);
        for (daddr, saddr, want) in [
            ("10.77.0.2", "10.77.0.1", Ok(RtType::Local)),
            ("10.77.0.2", "192.0.2.1", Ok(RtType::Local)),
            ("10.77.0.255", "10.77.0.1", Ok(RtType::Broadcast)),
            ("10.77.0.0", "10.77.0.1", Err(RxDrop::IpInAddrErrors)),
            ("10.77.0.2", "10.77.0.0", Ok(RtType::Local)),
            ("255.255.255.255", "0.0.0.0", Ok(RtType::Broadcast)),
            ("10.77.0.2", "0.0.0.0", Err(RxDrop::IpInMartianSource)),
            ("10.77.0.2", "10.77.0.2", Err(RxDrop::IpInMartianSource)),
            ("10.77.0.2", "127.0.0.1", Err(RxDrop::IpInMartianSource)),
            ("10.77.0.2", "224.0.0.1", Err(RxDrop::IpInMartianSource)),
            (
                "10.77.0.2",
                "255.255.255.255",
                Err(RxDrop::IpInMartianSource),
            ),
            ("10.77.0.2", "10.77.0.255", Err(RxDrop::IpInMartianSource)),
            ("127.0.0.1", "10.77.0.1", Err(RxDrop::IpInMartianDest)),
            ("0.0.0.0", "10.77.0.1", Err(RxDrop::IpInMartianDest)),
            ("10.77.0.3", "10.77.0.1", Err(RxDrop::IpInAddrErrors)),
            ("224.0.0.251", "10.77.0.1", Err(RxDrop::IpInMcastNotMember)),
        ] {
            assert_eq!(
                fib.input(addr(daddr), addr(saddr)),
                want,
                "{saddr} to {daddr}"
            );
        }
    }

    #[test]
    fn packets_go_to_the_neighbour_or_the_gateway() {
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        let via = |fib: &Fib, to: &str| fib.output(addr(to)).map(|rt| rt.next_hop);
        let alone = fib(24, None);
        assert_eq!(via(&alone, "10.77.0.50"), Some(addr("10.77.0.50")));
        assert_eq!(via(&alone, "192.0.2.1"), None);
        let routed = fib(24, Some(gateway));
        assert_eq!(via(&routed, "192.0.2.1"), Some(gateway.to_bits()));
        for nowhere in ["10.77.0.2", "127.0.0.1", "224.0.0.1", "0.0.0.0"] {
            assert_eq!(via(&routed, nowhere), None, "{nowhere}");
        }
        let first = routed.output(addr("10.77.0.0")).unwrap();
        assert_eq!(first.rt_type, RtType::Unicast);
        let broadcast = routed.output(addr("10.77.0.255")).unwrap();
        assert_eq!(broadcast.rt_type, RtType::Broadcast);
    }

    #[test]
    fn prefixes_of_any_length_do() {
        assert!(!fib(32, None).is_broadcast(addr("10.77.0.2")));
        assert!(!fib(31, None).is_broadcast(addr("10.77.0.3")));
        assert!(fib(30, None).is_broadcast(addr("10.77.0.3")));
        assert_eq!(
            fib(0, None).output(addr("192.0.2.1")).unwrap().next_hop,
            addr("192.0.2.1")
        );
        assert_eq!(fib(40, None).mask, u32::MAX);
    }
}
