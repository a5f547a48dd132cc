//! Routes (Linux: `net/ipv4/route.c`): where packets come from and go to.
//!
//! In: addresses. Out: whether a received packet is for this host, or why it is not; for a packet
//! to send, the device that it leaves by and the neighbour that it goes to.

use std::net::Ipv4Addr;

use super::fib::{Fib, FibEntry};
use super::igmp::IPPROTO_IGMP;
use super::netdevice::Ifindex;
use super::skbuff::SkBuff;
use super::stats::RxDrop;
use super::{Errno, Kernel, Machine};
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
    /// A group of hosts.
    Multicast,
}

impl RtType {
    /// Whether several hosts get such a packet.
    pub fn is_of_many(self) -> bool {
        matches!(self, Self::Broadcast | Self::Multicast)
    }
}

/// Where a packet goes (`struct rtable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rtable {
    pub rt_type: RtType,
    /// The device that it leaves by.
    pub dev: Ifindex,
    /// The neighbour that gets it.
    pub next_hop: u32,
    /// What a packet of this host has as its source, if its sender does not care.
    pub saddr: u32,
    /// The longest packet that passes, in octets, where the path is known to be narrower than the device; else 0.
    pub pmtu: u16,
    /// That is so little that packets are not to be marked "do not fragment".
    pub pmtu_locked: bool,
}

impl Rtable {
    /// The route to `daddr` by an entry of the table.
    #[inline]
    fn new(entry: &FibEntry, daddr: u32) -> Self {
        Self {
            rt_type: entry.rt_type,
            dev: entry.dev,
            next_hop: if entry.gateway == 0 {
                daddr
            } else {
                entry.gateway
            },
            saddr: entry.prefsrc,
            pmtu: 0,
            pmtu_locked: false,
        }
    }
}

impl Fib {
    #[inline]
    pub fn is_local(&self, addr: u32) -> bool {
        self.addr_type(addr) == RtType::Local
    }

    /// Whether it may be another host's address (`inet_addr_type`: `RTN_UNICAST`).
    pub fn is_unicast(&self, addr: u32) -> bool {
        addr != 0
            && !matches!(addr >> 24, 127 | 224..=239)
            && self.addr_type(addr) == RtType::Unicast
    }

    /// The route to `daddr` for a packet of this host's.
    #[inline]
    pub fn output(&self, daddr: u32) -> Option<Rtable> {
        if daddr >> 28 == 0xe || daddr == 0 {
            return None;
        }
        let rt = Rtable::new(self.lookup(daddr)?, daddr);
        Some(match rt.rt_type {
            RtType::Local => Rtable {
                dev: Ifindex::LO,
                ..rt
            },
            _ => rt,
        })
    }

    /// What a received packet is to this host, or why it is nothing.
    #[cfg(test)]
    fn input(&self, daddr: u32, saddr: u32) -> Result<RtType, RxDrop> {
        if let Some(rt) = special(daddr, saddr)? {
            return Ok(rt.rt_type);
        }
        let found = self.lookup_input(daddr, false)?;
        self.validate_source(saddr)?;
        Ok(found.rt_type)
    }

    /// Where a packet to `daddr` goes that came in, on a host that forwards or does not (`fib_table_lookup`).
    #[inline]
    fn lookup_input(&self, daddr: u32, forwards: bool) -> Result<Rtable, RxDrop> {
        match self.lookup(daddr) {
            Some(entry) if forwards || entry.rt_type != RtType::Unicast => {
                Ok(Rtable::new(entry, daddr))
            }
            None if forwards => Err(RxDrop::IpInNoRoutes),
            _ => Err(RxDrop::IpInAddrErrors),
        }
    }

    /// No packet of this host's own comes in (`fib_validate_source`).
    #[inline]
    fn validate_source(&self, saddr: u32) -> Result<(), RxDrop> {
        // (Broadcast addresses pass: without rp_filter only those of this host are looked for.)
        if self.is_own(saddr) && self.is_ifaddr(saddr) {
            return Err(RxDrop::IpInMartianSource);
        }
        Ok(())
    }
}

/// What needs no table: packets that are nothing for anybody, and such as a host without an address sends.
#[inline]
fn special(daddr: u32, saddr: u32) -> Result<Option<Rtable>, RxDrop> {
    // All ones may be told, too, but not tell.
    if (is_usual(daddr) || daddr == u32::MAX) && is_usual(saddr) {
        return Ok(None);
    }
    special_slow(daddr, saddr)
}

/// Whether an address is a host's, as far as it says so itself.
#[inline]
fn is_usual(addr: u32) -> bool {
    // By its first octet: not 0, 127, 224 to 239, or 255.
    const OTHERS: [u64; 4] = [1, 1 << 63, 0, 0x8000_ffff << 32];
    let first = addr >> 24;
    OTHERS[(first >> 6) as usize] >> (first & 63) & 1 == 0
}

#[cold]
fn special_slow(daddr: u32, saddr: u32) -> Result<Option<Rtable>, RxDrop> {
    if daddr >> 28 == 0xe {
        return Err(RxDrop::IpInMcastNotMember);
    }
    if saddr >> 28 == 0xe || saddr == u32::MAX {
        return Err(RxDrop::IpInMartianSource);
    }
    if saddr == 0 {
        // A host that has no address yet may ask everybody.
        return if daddr == u32::MAX || (daddr, saddr) == (0, 0) {
            Ok(Some(Rtable {
                rt_type: RtType::Broadcast,
                next_hop: daddr,
                ..Rtable::default()
            }))
        } else {
            Err(RxDrop::IpInMartianSource)
        };
    }
    if daddr == u32::MAX {
        return Ok(None);
    }
    if daddr == 0 || daddr >> 24 == 127 {
        return Err(RxDrop::IpInMartianDest);
    }
    if saddr >> 24 == 127 {
        return Err(RxDrop::IpInMartianSource);
    }
    Ok(None)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The route of a packet that came in; the error is `ip_error`'s counter.
    #[inline]
    pub(super) fn ip_route_input_noref(&self, daddr: u32, saddr: u32) -> Result<Rtable, RxDrop> {
        let _stage = self.stage("ip_route_input_noref");
        self.ip_route_input_slow(daddr, saddr)
    }

    /// Linux caches no routes any more: this way every packet takes.
    #[inline]
    fn ip_route_input_slow(&self, daddr: u32, saddr: u32) -> Result<Rtable, RxDrop> {
        let _stage = self.stage("ip_route_input_slow");
        if let Some(rt) = special(daddr, saddr)? {
            return Ok(rt);
        }
        let looking = self.stage("fib_table_lookup");
        let found = self.fib.lookup_input(daddr, self.config.ip_forward);
        drop(looking);
        let found = found?;
        self.fib_validate_source(saddr)?;
        Ok(found)
    }

    #[inline]
    fn fib_validate_source(&self, saddr: u32) -> Result<(), RxDrop> {
        let _stage = self.stage("fib_validate_source");
        self.fib.validate_source(saddr)
    }

    /// A packet to the same address as the one before it, whose route it may take: only where it comes from is looked at.
    #[inline]
    pub(super) fn ip_route_use_hint(&self, daddr: u32, saddr: u32) -> Result<(), RxDrop> {
        let _stage = self.stage("ip_route_use_hint");
        if !is_usual(saddr) {
            special_slow(daddr, saddr)?;
        }
        self.fib_validate_source(saddr)
    }

    /// A packet for a group that came in: for this host, if the device is in that.
    #[cold]
    pub(super) fn ip_route_input_mc(&self, skb: &SkBuff) -> Result<Rtable, RxDrop> {
        let _stage = self.stage("ip_route_input_noref");
        let (daddr, saddr) = (skb.ip.daddr, skb.ip.saddr);
        if !self.igmp.is_member(skb.dev, daddr) {
            return Err(RxDrop::IpInMcastNotMember);
        }
        // `ip_mc_validate_source`: who has no address yet may speak on the link.
        let on_link = daddr >> 8 == 0xe0_0000 || skb.ip.protocol == IPPROTO_IGMP;
        match saddr >> 24 {
            0 if saddr == 0 && !on_link => return Err(RxDrop::IpInMartianSource),
            0 if saddr == 0 => {}
            127 | 224..=239 => return Err(RxDrop::IpInMartianSource),
            _ if saddr == u32::MAX => return Err(RxDrop::IpInMartianSource),
            _ => self.fib_validate_source(saddr)?,
        }
        Ok(Rtable {
            rt_type: RtType::Multicast,
            dev: skb.dev,
            next_hop: daddr,
            ..Rtable::default()
        })
    }

    /// The route of a packet to a group, by a device.
    pub(super) fn ip_route_output_mc(&self, daddr: u32, dev: Ifindex) -> Rtable {
        Rtable {
            rt_type: RtType::Multicast,
            dev,
            next_hop: daddr,
            saddr: self.inet_select_addr(dev, 0),
            ..Rtable::default()
        }
    }

    /// The device that packets to a group leave by if nobody says which: that of the route to it.
    pub(super) fn ip_mc_find_dev(&self, daddr: u32) -> Option<Ifindex> {
        let _stage = self.stage("fib_table_lookup");
        self.fib.lookup(daddr).map(|entry| entry.dev)
    }

    /// What an address is to this host.
    pub(super) fn inet_addr_type(&self, addr: u32) -> RtType {
        if addr == u32::MAX || addr == 0 {
            return RtType::Broadcast;
        }
        let _stage = self.stage("fib_table_lookup");
        self.fib.addr_type(addr)
    }

    /// The route of a packet to send.
    #[inline]
    pub(super) fn ip_route_output_flow(&self, daddr: u32) -> Result<Rtable, Errno> {
        let _stage = self.stage("ip_route_output_flow");
        self.ip_route_output_key_hash_rcu(daddr)
    }

    /// The same for what no socket asks for.
    pub(super) fn ip_route_output_key_hash(&self, daddr: u32) -> Result<Rtable, Errno> {
        let _stage = self.stage("ip_route_output_key_hash");
        self.ip_route_output_key_hash_rcu(daddr)
    }

    #[inline]
    fn ip_route_output_key_hash_rcu(&self, daddr: u32) -> Result<Rtable, Errno> {
        let _stage = self.stage("ip_route_output_key_hash_rcu");
        let looking = self.stage("fib_table_lookup");
        let found = self.fib.output(daddr);
        drop(looking);
        let mut rt = found.ok_or(Errno::ENETUNREACH)?;
        if let Some(pmtu) = self.fnhe.find(daddr, || self.machine.now()) {
            (rt.pmtu, rt.pmtu_locked) = (pmtu.mtu, pmtu.locked);
        }
        if rt.saddr == 0 {
            rt.saddr = self.inet_select_addr(rt.dev, rt.next_hop);
        }
        self.changed("rt", || {
            format!(
                "{:?} by {} to {}",
                rt.rt_type,
                self.netdevs[rt.dev].name(),
                Ipv4Addr::from_bits(rt.next_hop)
            )
        });
        Ok(rt)
    }
}

#[cfg(test)]
mod tests {
    use super::super::devinet::InIfaddr;
    use super::*;

    fn fib(prefix_len: u8, gateway: Option<Ipv4Addr>) -> Fib {
        let mut fib = Fib::default();
        fib.add_ifaddr(Ifindex::LO, true, InIfaddr::new(Ipv4Addr::LOCALHOST, 8));
        let own = InIfaddr::new(Ipv4Addr::new(10, 77, 0, 2), prefix_len);
        fib.add_ifaddr(Ifindex::ETH0, false, own);
        if let Some(gateway) = gateway {
            let default = (Ipv4Addr::UNSPECIFIED, 0);
            fib.insert(FibEntry::unicast(default, Some(gateway), Ifindex::ETH0));
        }
        fib
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
            // Who sent what is for nobody here is not asked.
            ("192.0.2.1", "10.77.0.2", Err(RxDrop::IpInAddrErrors)),
            ("10.77.0.2", "127.0.0.1", Err(RxDrop::IpInMartianSource)),
            ("10.77.0.2", "224.0.0.1", Err(RxDrop::IpInMartianSource)),
            (
                "10.77.0.2",
                "255.255.255.255",
                Err(RxDrop::IpInMartianSource),
            ),
            ("10.77.0.2", "10.77.0.255", Ok(RtType::Local)),
            (
                "255.255.255.255",
                "127.0.0.1",
                Err(RxDrop::IpInMartianSource),
            ),
            ("255.255.255.255", "127.0.0.2", Ok(RtType::Broadcast)),
            ("0.0.0.0", "127.0.0.2", Err(RxDrop::IpInMartianDest)),
            ("0.0.0.0", "0.0.0.0", Ok(RtType::Broadcast)),
            // Of the network 0 only the first address is special.
            ("10.77.0.2", "0.1.2.3", Ok(RtType::Local)),
            ("0.1.2.3", "10.77.0.1", Err(RxDrop::IpInAddrErrors)),
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
        for nowhere in ["224.0.0.1", "0.0.0.0"] {
            assert_eq!(via(&routed, nowhere), None, "{nowhere}");
        }
        for own in ["10.77.0.2", "127.0.0.1", "127.9.9.9"] {
            let rt = routed.output(addr(own)).unwrap();
            assert_eq!((rt.rt_type, rt.dev), (RtType::Local, Ifindex::LO), "{own}");
        }
        let rt = routed.output(addr("192.0.2.1")).unwrap();
        assert_eq!((rt.dev, rt.saddr), (Ifindex::ETH0, 0));
        let rt = routed.output(addr("10.77.0.1")).unwrap();
        assert_eq!((rt.dev, rt.saddr), (Ifindex::ETH0, addr("10.77.0.2")));
        let first = routed.output(addr("10.77.0.0")).unwrap();
        assert_eq!(first.rt_type, RtType::Unicast);
        let broadcast = routed.output(addr("10.77.0.255")).unwrap();
        assert_eq!(broadcast.rt_type, RtType::Broadcast);
    }

    #[test]
    fn prefixes_of_any_length_do() {
        let addr_type = |prefix_len, text| fib(prefix_len, None).addr_type(addr(text));
        assert_eq!(addr_type(32, "10.77.0.2"), RtType::Local);
        assert_eq!(addr_type(31, "10.77.0.3"), RtType::Unicast);
        assert_eq!(addr_type(30, "10.77.0.3"), RtType::Broadcast);
        assert_eq!(
            fib(0, None).output(addr("192.0.2.1")).unwrap().next_hop,
            addr("192.0.2.1")
        );
    }
}
