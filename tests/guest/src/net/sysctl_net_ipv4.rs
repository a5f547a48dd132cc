//! Settings of IPv4 (Linux: `net/ipv4/sysctl_net_ipv4.c`, `/proc/sys/net/ipv4`); the defaults are Linux's.

use std::time::Duration;

/// How IPv4 behaves, by the names of Linux's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv4Sysctl {
    /// Bytes of fragments that wait at once; beyond that no fragment is taken.
    pub ipfrag_high_thresh: usize,
    /// How long the first fragment waits for the last.
    pub ipfrag_time: Duration,
    /// How many other fragments of the same sender may come between two of a packet; 0 for any number.
    pub ipfrag_max_dist: u32,
    /// Octets of the shortest path MTU that is believed.
    pub min_pmtu: u16,
    /// How long a path MTU is kept.
    pub mtu_expires: Duration,
    /// Between two errors of ICMP to the same host; 0 for no limit.
    pub icmp_ratelimit: Duration,
    /// The types of ICMP that are limited, as bits.
    pub icmp_ratemask: u32,
    /// Messages of those types in a second to all hosts, and how many of them at once.
    pub icmp_msgs_per_sec: u32,
    /// See there.
    pub icmp_msgs_burst: u32,
}

impl Default for Ipv4Sysctl {
    fn default() -> Self {
        Self {
            ipfrag_high_thresh: 4 << 20,
            ipfrag_time: Duration::from_secs(30),
            ipfrag_max_dist: 64,
            min_pmtu: 552,
            mtu_expires: Duration::from_secs(600),
            icmp_ratelimit: Duration::from_secs(1),
            icmp_ratemask: 0x1818,
            icmp_msgs_per_sec: 1000,
            icmp_msgs_burst: 50,
        }
    }
}

/// A setting in the machine's time.
pub(super) fn nanos(setting: Duration) -> u64 {
    u64::try_from(setting.as_nanos()).unwrap_or(u64::MAX)
}
