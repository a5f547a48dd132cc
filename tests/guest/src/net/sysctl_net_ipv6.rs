//! Settings of IPv6 (Linux: `net/ipv6/sysctl_net_ipv6.c`, `/proc/sys/net/ipv6`); the defaults are Linux's.

use std::net::Ipv6Addr;
use std::time::Duration;

/// How IPv6 behaves, by the names of Linux's settings, and the addresses that the kernel has from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6Sysctl {
    /// No device has IPv6: all of its packets are dropped.
    pub disable_ipv6: bool,
    /// An address of `eth0` beside the link-local one, and bits of it that name the network.
    pub addr: Option<(Ipv6Addr, u8)>,
    /// Where packets for other networks go.
    pub gateway: Option<Ipv6Addr>,
    /// Bytes of fragments that wait at once; beyond that no fragment is taken.
    pub ip6frag_high_thresh: usize,
    /// How long the first fragment waits for the last.
    pub ip6frag_time: Duration,
    /// Between two errors of ICMPv6 to the same host (`icmp.ratelimit`); 0 for no limit. For networks it is less.
    pub icmp_ratelimit: Duration,
}

impl Default for Ipv6Sysctl {
    fn default() -> Self {
        Self {
            disable_ipv6: false,
            addr: None,
            gateway: None,
            ip6frag_high_thresh: 4 << 20,
            ip6frag_time: Duration::from_secs(60),
            icmp_ratelimit: Duration::from_secs(1),
        }
    }
}
