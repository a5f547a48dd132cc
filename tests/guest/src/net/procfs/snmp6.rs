//! `/proc/net/snmp6` (Linux: `net/ipv6/proc.c`; RFC 4293).

use std::fmt;

use super::super::icmp6::ICMP6_OUT;
use super::super::stats::Mib6;
use super::super::{Kernel, Machine};
use crate::transport::Transport;

/// Types of ICMPv6 that have names.
const ICMP6_TYPES: [(usize, &str); 15] = [
    (1, "DestUnreachs"),
    (2, "PktTooBigs"),
    (3, "TimeExcds"),
    (4, "ParmProblems"),
    (128, "Echos"),
    (129, "EchoReplies"),
    (130, "GroupMembQueries"),
    (131, "GroupMembResponses"),
    (132, "GroupMembReductions"),
    (133, "RouterSolicits"),
    (134, "RouterAdvertisements"),
    (135, "NeighborSolicits"),
    (136, "NeighborAdvertisements"),
    (137, "Redirects"),
    (143, "MLDv2Reports"),
];
/// The counters of UDP that UDP-Lite has as well, which nobody speaks here.
const UDPLITE6: [&str; 8] = [
    "InDatagrams",
    "NoPorts",
    "InErrors",
    "OutDatagrams",
    "RcvbufErrors",
    "SndbufErrors",
    "InCsumErrors",
    "MemErrors",
];

fn line(out: &mut impl fmt::Write, name: &str, value: u64) -> fmt::Result {
    writeln!(out, "{name:<32}\t{value}")
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn snmp6_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let is_udp = |counter: &Mib6| *counter as usize >= Mib6::Udp6InDatagrams as usize;
        let mib = |out: &mut _, counter: Mib6| {
            line(out, &format!("{counter:?}"), self.counters.snmp6[counter])
        };
        for counter in Mib6::ALL.into_iter().filter(|counter| !is_udp(counter)) {
            mib(out, counter)?;
        }
        self.icmp6msg_show(out)?;
        for counter in Mib6::ALL.into_iter().filter(is_udp) {
            mib(out, counter)?;
        }
        for name in UDPLITE6 {
            line(out, &format!("UdpLite6{name}"), 0)?;
        }
        Ok(())
    }

    /// By name, and those that there were by number.
    fn icmp6msg_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        for (way, first) in [("In", 0), ("Out", ICMP6_OUT)] {
            for (icmp_type, name) in ICMP6_TYPES {
                let count = self.icmp6msg[first + icmp_type];
                line(out, &format!("Icmp6{way}{name}"), count)?;
            }
        }
        for (at, &count) in self.icmp6msg.iter().enumerate() {
            if count > 0 {
                let way = if at < ICMP6_OUT { "In" } else { "Out" };
                line(out, &format!("Icmp6{way}Type{}", at % ICMP6_OUT), count)?;
            }
        }
        Ok(())
    }
}
