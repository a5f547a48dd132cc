//! What IPv6 counts (Linux: `net/ipv6/proc.c`), by the names of `/proc/net/snmp6`.

use std::ops::{Index, IndexMut};

/// A counter of IPv6, in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mib6 {
    /// Packets for this station.
    Ip6InReceives,
    /// Headers, of IPv6 or behind it, that are short, contradict themselves or ask for what is not done; no hop left to live.
    Ip6InHdrErrors,
    /// Too long to be sent on.
    Ip6InTooBigErrors,
    /// No route leads there.
    Ip6InNoRoutes,
    /// For another host, and this one does not forward; or routed through this one.
    Ip6InAddrErrors,
    /// No protocol of that number.
    Ip6InUnknownProtos,
    /// Shorter than the header says.
    Ip6InTruncatedPkts,
    /// Dropped though nothing was wrong.
    Ip6InDiscards,
    /// Given to a protocol.
    Ip6InDelivers,
    /// Sent on to other hosts.
    Ip6OutForwDatagrams,
    /// Packets that this host made.
    Ip6OutRequests,
    /// Not sent though nothing was wrong.
    Ip6OutDiscards,
    /// No way to where they were to go.
    Ip6OutNoRoutes,
    /// Packets given up because they were not complete in time.
    Ip6ReasmTimeout,
    /// Fragments for this host.
    Ip6ReasmReqds,
    /// Packets put together.
    Ip6ReasmOKs,
    /// Packets given up, and fragments that there was no memory for.
    Ip6ReasmFails,
    /// Packets that were sent in fragments.
    Ip6FragOKs,
    /// Packets that were too long and not to be fragmented.
    Ip6FragFails,
    /// Fragments that were made.
    Ip6FragCreates,
    /// To groups.
    Ip6InMcastPkts,
    /// To groups.
    Ip6OutMcastPkts,
    /// Octets that came.
    Ip6InOctets,
    /// Octets that were sent.
    Ip6OutOctets,
    /// Octets that came, to groups.
    Ip6InMcastOctets,
    /// Octets that were sent to groups.
    Ip6OutMcastOctets,
    /// None: there are no broadcasts.
    Ip6InBcastOctets,
    /// None: there are no broadcasts.
    Ip6OutBcastOctets,
    /// That are not to be marked when queues are long.
    Ip6InNoECTPkts,
    /// That may be marked.
    Ip6InECT1Pkts,
    /// That may be marked.
    Ip6InECT0Pkts,
    /// That are marked.
    Ip6InCEPkts,
    /// Packets that went to a neighbour.
    Ip6OutTransmits,
    /// With a good checksum or not.
    Icmp6InMsgs,
    /// Messages that were wrong, and errors about packets that nobody here sent.
    Icmp6InErrors,
    /// Messages that were sent.
    Icmp6OutMsgs,
    /// Messages that could not be.
    Icmp6OutErrors,
    /// With a bad checksum.
    Icmp6InCsumErrors,
    /// Errors not sent because there were too many for their host.
    Icmp6OutRateLimitHost,
    /// Given to a reader.
    Udp6InDatagrams,
    /// No socket at the port.
    Udp6NoPorts,
    /// Not delivered: short, a bad checksum, or a full queue.
    Udp6InErrors,
    /// Sent.
    Udp6OutDatagrams,
    /// The socket's queue was full.
    Udp6RcvbufErrors,
    /// The socket's send buffer was full.
    Udp6SndbufErrors,
    /// With a bad checksum, or none.
    Udp6InCsumErrors,
    /// To a group, and no socket wants it.
    Udp6IgnoredMulti,
    /// None.
    Udp6MemErrors,
}

impl Mib6 {
    /// All of them.
    pub const ALL: [Self; 48] = [
        Self::Ip6InReceives,
        Self::Ip6InHdrErrors,
        Self::Ip6InTooBigErrors,
        Self::Ip6InNoRoutes,
        Self::Ip6InAddrErrors,
        Self::Ip6InUnknownProtos,
        Self::Ip6InTruncatedPkts,
        Self::Ip6InDiscards,
        Self::Ip6InDelivers,
        Self::Ip6OutForwDatagrams,
        Self::Ip6OutRequests,
        Self::Ip6OutDiscards,
        Self::Ip6OutNoRoutes,
        Self::Ip6ReasmTimeout,
        Self::Ip6ReasmReqds,
        Self::Ip6ReasmOKs,
        Self::Ip6ReasmFails,
        Self::Ip6FragOKs,
        Self::Ip6FragFails,
        Self::Ip6FragCreates,
        Self::Ip6InMcastPkts,
        Self::Ip6OutMcastPkts,
        Self::Ip6InOctets,
        Self::Ip6OutOctets,
        Self::Ip6InMcastOctets,
        Self::Ip6OutMcastOctets,
        Self::Ip6InBcastOctets,
        Self::Ip6OutBcastOctets,
        Self::Ip6InNoECTPkts,
        Self::Ip6InECT1Pkts,
        Self::Ip6InECT0Pkts,
        Self::Ip6InCEPkts,
        Self::Ip6OutTransmits,
        Self::Icmp6InMsgs,
        Self::Icmp6InErrors,
        Self::Icmp6OutMsgs,
        Self::Icmp6OutErrors,
        Self::Icmp6InCsumErrors,
        Self::Icmp6OutRateLimitHost,
        Self::Udp6InDatagrams,
        Self::Udp6NoPorts,
        Self::Udp6InErrors,
        Self::Udp6OutDatagrams,
        Self::Udp6RcvbufErrors,
        Self::Udp6SndbufErrors,
        Self::Udp6InCsumErrors,
        Self::Udp6IgnoredMulti,
        Self::Udp6MemErrors,
    ];
}

/// All of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snmp6([u64; Mib6::ALL.len()]);

impl Default for Snmp6 {
    fn default() -> Self {
        Self([0; Mib6::ALL.len()])
    }
}

impl Index<Mib6> for Snmp6 {
    type Output = u64;

    #[inline]
    fn index(&self, counter: Mib6) -> &u64 {
        &self.0[counter as usize]
    }
}

impl IndexMut<Mib6> for Snmp6 {
    #[inline]
    fn index_mut(&mut self, counter: Mib6) -> &mut u64 {
        &mut self.0[counter as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_its_place() {
        let mut snmp = Snmp6::default();
        for (at, counter) in Mib6::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, at, "{counter:?}");
            snmp[counter] = at as u64;
        }
        assert_eq!(snmp[Mib6::Udp6MemErrors], Mib6::ALL.len() as u64 - 1);
    }
}
