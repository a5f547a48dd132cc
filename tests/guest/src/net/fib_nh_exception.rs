//! What is known of single hosts beside their route (Linux: `struct fib_nh_exception`, `net/ipv4/route.c`): path MTUs
//! (RFC 1191).
//!
//! In: what routers say of packets that were too long for them. Out: how long packets to a host may be, until that was
//! long ago. The table is bounded as Linux's: where a bucket is full the oldest makes room.

use super::ip_cork::IP_MAX_MTU;
use super::netdevice::Ifindex;
use super::port_table::SockAddr;
use super::route::Rtable;
use super::sysctl_net_ipv4::nanos;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Buckets, and how many hosts one has at most.
const FNHE_HASH_SIZE: usize = 2048;
const FNHE_RECLAIM_DEPTH: usize = 5;

/// The longest packet that passes on the way to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pmtu {
    /// In octets, with IP header.
    pub mtu: u16,
    /// A router asked for less than is believed: packets are not to be marked "do not fragment" any more.
    pub locked: bool,
    /// When it is forgotten.
    pub expires: u64,
}

/// All of them.
#[derive(Debug)]
pub(super) struct FnheHash<A> {
    /// Hosts and what is known of them; nothing before the first one.
    buckets: Vec<Vec<(A, Pmtu)>>,
}

impl<A> Default for FnheHash<A> {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
        }
    }
}

/// What a host is known by; of IPv6 with the device, where its address means something on a link only.
pub(super) trait Host: Copy + Eq {
    /// Some of its bits, for a hash.
    fn bits(self) -> u64;
}

impl Host for u32 {
    #[inline]
    fn bits(self) -> u64 {
        SockAddr::bits(self)
    }
}

impl Host for (u128, Option<Ifindex>) {
    #[inline]
    fn bits(self) -> u64 {
        SockAddr::bits(self.0)
    }
}

#[inline]
fn bucket(daddr: impl Host) -> usize {
    let bits = daddr.bits();
    let bits = (bits >> 32) as u32 ^ bits as u32;
    // The upper bits of a product with the golden ratio.
    (bits.wrapping_mul(0x9e37_79b1) >> 16) as usize % FNHE_HASH_SIZE
}

impl<A: Host> FnheHash<A> {
    #[inline]
    pub fn find(&self, daddr: A, now: impl FnOnce() -> u64) -> Option<Pmtu> {
        if self.buckets.is_empty() {
            return None;
        }
        let known = self.buckets[bucket(daddr)]
            .iter()
            .find(|(host, _)| *host == daddr);
        known
            .map(|(_, pmtu)| *pmtu)
            .filter(|pmtu| pmtu.expires > now())
    }

    pub fn update_or_create(&mut self, daddr: A, pmtu: Pmtu) {
        if self.buckets.is_empty() {
            self.buckets.resize_with(FNHE_HASH_SIZE, Vec::new);
        }
        let bucket = &mut self.buckets[bucket(daddr)];
        bucket.retain(|(host, _)| *host != daddr);
        if bucket.len() >= FNHE_RECLAIM_DEPTH {
            bucket.remove(0);
        }
        bucket.push((daddr, pmtu));
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The longest packet that takes a route (`ipv4_mtu`).
    #[inline]
    pub(super) fn dst_mtu(&self, rt: &Rtable) -> usize {
        let known = if rt.pmtu == 0 {
            IP_MAX_MTU
        } else {
            rt.pmtu.into()
        };
        self.mtu(rt.dev).min(known)
    }

    /// A packet to `daddr` was too long on its way, where `mtu` octets pass.
    pub(super) fn ip_rt_update_pmtu(&mut self, daddr: u32, mtu: u16) {
        let _stage = self.stage("ip_rt_update_pmtu");
        let Ok(rt) = self.ip_route_output_key_hash(daddr) else {
            return;
        };
        let old = self.dst_mtu(&rt);
        if old < mtu.into() {
            return;
        }
        let ipv4 = &self.config.ipv4;
        let (locked, least) = (mtu < ipv4.min_pmtu, usize::from(ipv4.min_pmtu));
        let mtu = if locked { old.min(least) as u16 } else { mtu };
        let lifetime = nanos(ipv4.mtu_expires);
        let expires = self.machine.now().saturating_add(lifetime);
        let known = self.fnhe.find(daddr, || self.machine.now());
        if !locked
            && known.is_some_and(|known| known.mtu == mtu && known.expires > expires - lifetime / 2)
        {
            // It was said not long ago.
            return;
        }
        let pmtu = Pmtu {
            mtu,
            locked,
            expires,
        };
        self.fnhe.update_or_create(daddr, pmtu);
        self.changed("fnhe_pmtu", || mtu.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_mtu_is_forgotten_and_the_table_is_bounded() {
        let mut hash = FnheHash::<u32>::default();
        assert_eq!(hash.find(1, || 0), None);
        let pmtu = |mtu| Pmtu {
            mtu,
            locked: false,
            expires: 100,
        };
        hash.update_or_create(1, pmtu(1400));
        hash.update_or_create(1, pmtu(1300));
        assert_eq!(hash.find(1, || 99), Some(pmtu(1300)));
        assert_eq!(hash.find(1, || 100), None);
        assert_eq!(hash.find(2, || 0), None);
        for daddr in 0..100_000 {
            hash.update_or_create(daddr, pmtu(1400));
        }
        let longest = hash.buckets.iter().map(Vec::len).max();
        assert_eq!(longest, Some(FNHE_RECLAIM_DEPTH));
        assert!(hash.find(99_999, || 0).is_some() && hash.find(1, || 0).is_none());
    }
}
