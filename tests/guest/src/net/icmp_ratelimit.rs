//! How many errors of ICMP this host sends (Linux: `net/ipv4/icmp.c`, `inet_peer_xrlim_allow`; RFC 1812, 4.3.2.8).
//!
//! In: each error that is to be sent, where its type is limited. Out: whether it may: all together have a bucket that fills
//! with `icmp_msgs_per_sec`, and each host has one that holds six errors and gets another each `icmp_ratelimit`. What
//! may not is counted and not sent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::icmp::{ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, NR_ICMP_TYPES};
use super::ip6_route::Rt6Info;
use super::netdevice::{IFF_LOOPBACK, Ifindex};
use super::stats::Mib6;
use super::sysctl_net_ipv4::nanos;
use super::{Kernel, Machine};
use crate::transport::Transport;

const SECOND: u64 = 1_000_000_000;
/// Between two times that the common bucket is filled.
const FILL_INTERVAL: u64 = SECOND / 50;
/// Errors that a host's bucket holds (`XRLIM_BURST_FACTOR`).
const XRLIM_BURST_FACTOR: u64 = 6;
/// Most hosts that are remembered (`inet_peer_threshold`).
const MAX_PEERS: usize = 65_536;

/// A host's bucket (`struct inet_peer`): in nanoseconds, of which an error costs `icmp_ratelimit`.
#[derive(Debug, Clone, Copy)]
struct Peer {
    rate_tokens: u64,
    rate_last: u64,
}

/// All buckets.
#[derive(Debug, Default)]
pub(super) struct IcmpLimits {
    credit: u64,
    /// When the common bucket was filled last.
    stamp: Option<u64>,
    peers: HashMap<IpAddr, Peer>,
}

impl IcmpLimits {
    /// Whether there is an error left in the common bucket (`icmp_global_allow`).
    fn global_allow(&mut self, now: u64, msgs_per_sec: u64, msgs_burst: u64) -> bool {
        if self.credit > 0 {
            return true;
        }
        let since = self.stamp.map_or(SECOND, |stamp| now.saturating_sub(stamp));
        let delta = since.min(SECOND);
        if delta < FILL_INTERVAL {
            return false;
        }
        let more = msgs_per_sec.saturating_mul(delta) / SECOND;
        if more == 0 {
            return false;
        }
        self.stamp = Some(now);
        self.credit = more.min(msgs_burst);
        self.credit > 0
    }

    /// Whether a host may be sent another error (`inet_peer_xrlim_allow`).
    fn peer_allow(&mut self, daddr: IpAddr, now: u64, timeout: u64) -> bool {
        let full = XRLIM_BURST_FACTOR.saturating_mul(timeout);
        if self.peers.len() >= MAX_PEERS {
            // Whose bucket is full again need not be remembered.
            let empty = |peer: &mut Peer| peer.rate_last.saturating_add(full) > now;
            self.peers.retain(|_, peer| empty(peer));
            if self.peers.len() >= MAX_PEERS {
                self.peers.clear();
            }
        }
        let peer = self.peers.entry(daddr).or_insert(Peer {
            rate_tokens: full,
            rate_last: now,
        });
        let delta = now.saturating_sub(peer.rate_last);
        peer.rate_last = now;
        peer.rate_tokens = peer.rate_tokens.saturating_add(delta).min(full);
        let allowed = peer.rate_tokens >= timeout;
        if allowed {
            peer.rate_tokens -= timeout;
        }
        allowed
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Whether messages of that kind are limited (`icmpv4_mask_allow`).
    pub(super) fn icmp_is_limited(&self, icmp_type: u8, code: u8) -> bool {
        icmp_type <= NR_ICMP_TYPES
            && (icmp_type, code) != (ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED)
            && self.config.ipv4.icmp_ratemask >> icmp_type & 1 != 0
    }

    /// Whether another of them may be sent at all.
    pub(super) fn icmp_global_allow(&mut self) -> bool {
        let _stage = self.stage("icmp_global_allow");
        let ipv4 = &self.config.ipv4;
        let now = self.machine.now();
        let (rate, burst) = (ipv4.icmp_msgs_per_sec, ipv4.icmp_msgs_burst);
        let allowed = self
            .icmp_limits
            .global_allow(now, rate.into(), burst.into());
        self.counters.snmp.icmp_out_rate_limit_global += u64::from(!allowed);
        allowed
    }

    /// Whether another one may be sent to a host, by that device (`icmpv4_xrlim_allow`); if so it is.
    pub(super) fn icmp_xrlim_allow(&mut self, daddr: u32, dev: Ifindex) -> bool {
        let timeout = nanos(self.config.ipv4.icmp_ratelimit);
        let now = self.machine.now();
        let free = self.netdevs[dev].flags & IFF_LOOPBACK != 0 || timeout == 0;
        if !free
            && !self
                .icmp_limits
                .peer_allow(Ipv4Addr::from_bits(daddr).into(), now, timeout)
        {
            self.counters.snmp.icmp_out_rate_limit_host += 1;
            return false;
        }
        self.icmp_global_consume();
        true
    }

    /// The same for ICMPv6 by a route: to networks more may be sent than to a host (`icmpv6_xrlim_allow`).
    pub(super) fn icmpv6_xrlim_allow(&mut self, daddr: u128, rt: &Rt6Info) -> bool {
        let timeout = nanos(self.config.ipv6.icmp_ratelimit) >> ((128 - rt.plen.min(128)) / 32);
        let now = self.machine.now();
        let free = self.netdevs[rt.dev].flags & IFF_LOOPBACK != 0 || timeout == 0;
        let daddr = Ipv6Addr::from_bits(daddr).into();
        if !free && !self.icmp_limits.peer_allow(daddr, now, timeout) {
            self.inc6(Mib6::Icmp6OutRateLimitHost);
            return false;
        }
        self.icmp_global_consume();
        true
    }

    /// (Linux takes 0 to 2 at random, so that nobody can count what others are told.)
    fn icmp_global_consume(&mut self) {
        let _stage = self.stage("icmp_global_consume");
        self.icmp_limits.credit = self.icmp_limits.credit.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(bits: u32) -> IpAddr {
        Ipv4Addr::from_bits(bits).into()
    }

    #[test]
    fn a_host_has_six_errors_and_one_a_second() {
        let mut limits = IcmpLimits::default();
        let mut burst = |now| {
            (0..20)
                .filter(|_| limits.peer_allow(host(1), now, SECOND))
                .count()
        };
        assert_eq!(burst(5), 6);
        assert_eq!(burst(5 + SECOND - 1), 0);
        assert_eq!(burst(5 + SECOND), 1);
        assert_eq!(burst(100 * SECOND), 6);
        assert!(
            limits.peer_allow(host(2), 100 * SECOND, SECOND),
            "another host"
        );
    }

    #[test]
    fn all_together_have_a_bucket_that_fills() {
        let mut limits = IcmpLimits::default();
        let mut burst = |now, rate| {
            let allowed = (0..200).take_while(|_| {
                let allowed = limits.global_allow(now, rate, 50);
                limits.credit = limits.credit.saturating_sub(1);
                allowed
            });
            allowed.count()
        };
        assert_eq!(burst(0, 1000), 50);
        assert_eq!(burst(FILL_INTERVAL - 1, 1000), 0);
        assert_eq!(burst(FILL_INTERVAL, 1000), 20);
        assert_eq!(burst(SECOND, 0), 0);
        assert_eq!(burst(2 * SECOND, 10), 10);
    }

    #[test]
    fn hosts_are_remembered_within_bounds() {
        let mut limits = IcmpLimits::default();
        for daddr in 0..70_000 {
            limits.peer_allow(host(daddr), 7, SECOND);
        }
        assert!(limits.peers.len() <= MAX_PEERS);
    }
}
