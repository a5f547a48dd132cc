//! Why packets were dropped (Linux: `enum skb_drop_reason`, `include/net/dropreason-core.h`), and how often.

use std::ops::{Index, IndexMut};

/// Why a received packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RxDrop {
    /// No protocol of that Ethertype.
    UnhandledProto,
    /// An ARP packet that is none, or not for Ethernet and IPv4.
    ArpInvalid,
    /// An IP packet for another station, taken in promiscuous mode.
    IpOtherHost,
    /// An IP header that is short, of another version, or contradicts itself; or a packet for another host that has
    /// no hop left to live.
    IpInHdrErrors,
    /// The checksum of an IP header.
    IpInCsumErrors,
    /// Shorter than its IP header says.
    IpInTruncatedPkts,
    /// From an address that no packet comes from.
    IpInMartianSource,
    /// To an address that no packet goes to.
    IpInMartianDest,
    /// For another host, and this one does not forward.
    IpInAddrErrors,
    /// With a source route, which this host does not follow.
    IpInSourceRoute,
    /// For a multicast group that nobody here is in.
    IpInMcastNotMember,
    /// A fragment of a packet that cannot be put together: fragments overlap or contradict each other, it would be too long;
    /// or there is no memory for it.
    IpReasmFails,
    /// A fragment that was there already (`DUP_FRAG`).
    DupFrag,
    /// A fragment that waited while too many others of its sender came (`FRAG_TOO_FAR`).
    FragTooFar,
    /// A fragment that waited too long for the others (`FRAG_REASM_TIMEOUT`).
    FragReasmTimeout,
    /// A message of IGMP that is short or has a bad checksum.
    IgmpInvalid,
    /// No protocol of that number.
    IpInUnknownProtos,
    /// Short ICMP messages, unknown types, echo to a broadcast address.
    IcmpInErrors,
    /// The checksum of an ICMP message.
    IcmpInCsumErrors,
    /// An echo reply that no socket waits for.
    PingNoSocket,
    /// The ping socket's queue was full.
    PingRcvbufErrors,
    /// The raw socket's queue was full.
    RawRcvbufErrors,
    /// Shorter than a UDP header, or than the header says.
    UdpInErrors,
    /// The checksum of a datagram.
    UdpInCsumErrors,
    /// No socket at the port.
    UdpNoPorts,
    /// A broadcast that no socket wants.
    UdpIgnoredMulti,
    /// The socket's queue was full.
    UdpRcvbufErrors,
    /// A datagram that is said to stand for segments of another protocol.
    UdpGso,
    /// A segment that was not sent to this station alone.
    TcpNotHost,
    /// A TCP header that says it is shorter than one. (`TcpInErrs` counts bad checksums, too.)
    TcpInErrs,
    /// A segment that is shorter than a TCP header, or than its header says that is. (No counter of Linux's has it.)
    TcpTruncated,
    /// The checksum of a segment.
    TcpInCsumErrors,
    /// No connection, and nobody who listens.
    TcpNoSocket,
    /// To a listener, but no request.
    TcpFlags,
    /// To who has asked for a connection, of an earlier one (`TCP_INVALID_ACK_SEQUENCE`).
    TcpInvalidAckSequence,
    /// A request to a listener with too many handshakes under way.
    TcpReqQFullDrop,
    /// A request to a listener with too many connections that nobody has accepted, or the end of a handshake.
    ListenOverflows,
    /// A request that cannot be answered: there is no way back, or such a connection already. (Linux counts all requests
    /// that are dropped.)
    ListenDrops,
    /// A chain of the packet filter said so (`NETFILTER_DROP`).
    NetfilterDrop,
    /// A CPU's backlog was full (`CPU_BACKLOG`).
    CpuBacklog,
    /// For another host that no route leads to.
    IpInNoRoutes,
    /// For another host, but sent to many on the link.
    IpInDiscards,
    /// Too long for the device that it is to leave by, and not to be fragmented (`FragFails`).
    IpForwFragFails,
    /// A VLAN tag that is cut off.
    VlanUntag,
    /// A frame for a bridge from an address that no station has (`MAC_INVALID_SOURCE`).
    MacInvalidSource,
    /// A MAC control frame, which no bridge passes on (`MAC_IEEE_MAC_CONTROL`).
    MacIeeeMacControl,
    /// A frame that no other port of the bridge is there for (`BRIDGE_NO_EGRESS_PORT`).
    BridgeNoEgressPort,
    /// The packet socket's queue was full (`tp_drops`).
    PacketRcvbufErrors,
    /// An IPv6 packet for another station, taken in promiscuous mode.
    Ip6OtherHost,
    /// A header of IPv6 that is short, of another version, contradicts itself or has addresses that no packet has; or one behind it that is wrong, or asks for what is not done.
    Ip6InHdrErrors,
    /// Shorter than its IPv6 header says.
    Ip6InTruncatedPkts,
    /// For another host, and this one does not forward; or to be routed on by this one.
    Ip6InAddrErrors,
    /// For another host that no route leads to.
    Ip6InNoRoutes,
    /// No protocol of that number.
    Ip6InUnknownProtos,
    /// For a group that the device is not in, but a protocol wants it; or headers in an impossible order.
    Ip6InDiscards,
    /// For a group that the device is not in. (No counter of Linux's has it.)
    Ip6InMcastNotMember,
    /// A header behind that of IPv6 that is wrong or not known, dropped without a counter (`IPV6_BAD_EXTHDR`).
    Ip6BadExthdr,
    /// A fragment of a packet that cannot be put together, or that there is no memory for.
    Ip6ReasmFails,
    /// A message of ICMPv6 that is short, or an error that quotes too little.
    Icmp6InErrors,
    /// The checksum of a message of ICMPv6.
    Icmp6InCsumErrors,
    /// A message of Neighbour Discovery that came from beyond the link, in fragments, is short, or has wrong options or addresses (`IPV6_NDISC_*`).
    NdiscInvalid,
    /// Shorter than a UDP header, or than the header says.
    Udp6InErrors,
    /// The checksum of a datagram over IPv6, or that there is none.
    Udp6InCsumErrors,
    /// No IPv6 socket at the port.
    Udp6NoPorts,
    /// To a group, and no IPv6 socket wants it.
    Udp6IgnoredMulti,
    /// The IPv6 socket's queue was full.
    Udp6RcvbufErrors,
}

impl RxDrop {
    /// All reasons.
    pub const ALL: [Self; 66] = [
        Self::UnhandledProto,
        Self::ArpInvalid,
        Self::IpOtherHost,
        Self::IpInHdrErrors,
        Self::IpInCsumErrors,
        Self::IpInTruncatedPkts,
        Self::IpInMartianSource,
        Self::IpInMartianDest,
        Self::IpInAddrErrors,
        Self::IpInSourceRoute,
        Self::IpInMcastNotMember,
        Self::IpReasmFails,
        Self::DupFrag,
        Self::FragTooFar,
        Self::FragReasmTimeout,
        Self::IgmpInvalid,
        Self::IpInUnknownProtos,
        Self::IcmpInErrors,
        Self::IcmpInCsumErrors,
        Self::PingNoSocket,
        Self::PingRcvbufErrors,
        Self::RawRcvbufErrors,
        Self::UdpInErrors,
        Self::UdpInCsumErrors,
        Self::UdpNoPorts,
        Self::UdpIgnoredMulti,
        Self::UdpRcvbufErrors,
        Self::UdpGso,
        Self::TcpNotHost,
        Self::TcpInErrs,
        Self::TcpTruncated,
        Self::TcpInCsumErrors,
        Self::TcpNoSocket,
        Self::TcpFlags,
        Self::TcpInvalidAckSequence,
        Self::TcpReqQFullDrop,
        Self::ListenOverflows,
        Self::ListenDrops,
        Self::NetfilterDrop,
        Self::CpuBacklog,
        Self::IpInNoRoutes,
        Self::IpInDiscards,
        Self::IpForwFragFails,
        Self::VlanUntag,
        Self::MacInvalidSource,
        Self::MacIeeeMacControl,
        Self::BridgeNoEgressPort,
        Self::PacketRcvbufErrors,
        Self::Ip6OtherHost,
        Self::Ip6InHdrErrors,
        Self::Ip6InTruncatedPkts,
        Self::Ip6InAddrErrors,
        Self::Ip6InNoRoutes,
        Self::Ip6InUnknownProtos,
        Self::Ip6InDiscards,
        Self::Ip6InMcastNotMember,
        Self::Ip6BadExthdr,
        Self::Ip6ReasmFails,
        Self::Icmp6InErrors,
        Self::Icmp6InCsumErrors,
        Self::NdiscInvalid,
        Self::Udp6InErrors,
        Self::Udp6InCsumErrors,
        Self::Udp6NoPorts,
        Self::Udp6IgnoredMulti,
        Self::Udp6RcvbufErrors,
    ];

    /// Its name in a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UnhandledProto => "UnhandledProto",
            Self::ArpInvalid => "ArpInvalid",
            Self::IpOtherHost => "IpOtherHost",
            Self::IpInHdrErrors => "IpInHdrErrors",
            Self::IpInCsumErrors => "IpInCsumErrors",
            Self::IpInTruncatedPkts => "IpInTruncatedPkts",
            Self::IpInMartianSource => "IpInMartianSource",
            Self::IpInMartianDest => "IpInMartianDest",
            Self::IpInAddrErrors => "IpInAddrErrors",
            Self::IpInSourceRoute => "IpInSourceRoute",
            Self::IpInMcastNotMember => "IpInMcastNotMember",
            Self::IpReasmFails => "IpReasmFails",
            Self::DupFrag => "DupFrag",
            Self::FragTooFar => "FragTooFar",
            Self::FragReasmTimeout => "FragReasmTimeout",
            Self::IgmpInvalid => "IgmpInvalid",
            Self::IpInUnknownProtos => "IpInUnknownProtos",
            Self::IcmpInErrors => "IcmpInErrors",
            Self::IcmpInCsumErrors => "IcmpInCsumErrors",
            Self::PingNoSocket => "PingNoSocket",
            Self::PingRcvbufErrors => "PingRcvbufErrors",
            Self::RawRcvbufErrors => "RawRcvbufErrors",
            Self::UdpInErrors => "UdpInErrors",
            Self::UdpInCsumErrors => "UdpInCsumErrors",
            Self::UdpNoPorts => "UdpNoPorts",
            Self::UdpIgnoredMulti => "UdpIgnoredMulti",
            Self::UdpRcvbufErrors => "UdpRcvbufErrors",
            Self::UdpGso => "UdpGso",
            Self::TcpNotHost => "TcpNotHost",
            Self::TcpInErrs => "TcpInErrs",
            Self::TcpTruncated => "TcpTruncated",
            Self::TcpInCsumErrors => "TcpInCsumErrors",
            Self::TcpNoSocket => "TcpNoSocket",
            Self::TcpFlags => "TcpFlags",
            Self::TcpInvalidAckSequence => "TcpInvalidAckSequence",
            Self::TcpReqQFullDrop => "TCPReqQFullDrop",
            Self::ListenOverflows => "ListenOverflows",
            Self::ListenDrops => "ListenDrops",
            Self::NetfilterDrop => "NetfilterDrop",
            Self::CpuBacklog => "CpuBacklog",
            Self::IpInNoRoutes => "IpInNoRoutes",
            Self::IpInDiscards => "IpInDiscards",
            Self::IpForwFragFails => "IpForwFragFails",
            Self::VlanUntag => "VlanUntag",
            Self::MacInvalidSource => "MacInvalidSource",
            Self::MacIeeeMacControl => "MacIeeeMacControl",
            Self::BridgeNoEgressPort => "BridgeNoEgressPort",
            Self::PacketRcvbufErrors => "PacketRcvbufErrors",
            Self::Ip6OtherHost => "Ip6OtherHost",
            Self::Ip6InHdrErrors => "Ip6InHdrErrors",
            Self::Ip6InTruncatedPkts => "Ip6InTruncatedPkts",
            Self::Ip6InAddrErrors => "Ip6InAddrErrors",
            Self::Ip6InNoRoutes => "Ip6InNoRoutes",
            Self::Ip6InUnknownProtos => "Ip6InUnknownProtos",
            Self::Ip6InDiscards => "Ip6InDiscards",
            Self::Ip6InMcastNotMember => "Ip6InMcastNotMember",
            Self::Ip6BadExthdr => "Ip6BadExthdr",
            Self::Ip6ReasmFails => "Ip6ReasmFails",
            Self::Icmp6InErrors => "Icmp6InErrors",
            Self::Icmp6InCsumErrors => "Icmp6InCsumErrors",
            Self::NdiscInvalid => "NdiscInvalid",
            Self::Udp6InErrors => "Udp6InErrors",
            Self::Udp6InCsumErrors => "Udp6InCsumErrors",
            Self::Udp6NoPorts => "Udp6NoPorts",
            Self::Udp6IgnoredMulti => "Udp6IgnoredMulti",
            Self::Udp6RcvbufErrors => "Udp6RcvbufErrors",
        }
    }
}

/// Why a packet was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TxDrop {
    /// Too long, and marked "do not fragment" (`PKT_TOO_BIG`).
    IpFragFails,
    /// There is no way to where it is to go.
    IpOutNoRoutes,
    /// The queue of packets that wait for the neighbour was full: the oldest went.
    NeighUnresDiscards,
    /// The neighbour did not answer.
    NeighResFailed,
    /// No room for another neighbour.
    NeighTableFull,
    /// The queueing discipline was full.
    QdiscDrops,
    /// Its transmit queue went out of use, or got another discipline, while it waited there.
    QdiscReset,
    /// The device has no discipline, and its driver had no room (`tx_dropped`).
    TxDropped,
    /// It was in a ring that was reset: it may have been sent, or not.
    RingReset,
    /// The driver could not take it (`tx_fifo_errors`): its ring is broken or its buffers are short.
    TxFifoErrors,
    /// A chain of the packet filter said so (`NETFILTER_DROP`).
    NetfilterOutDrop,
    /// Too many devices without a queueing discipline send by one another (`RECURSION_LIMIT`).
    RecursionLimit,
    /// It stands for several and cannot be taken apart (`SKB_GSO_SEG`).
    SkbGsoSeg,
    /// Its checksum is the device's to finish, which cannot, and is not in the packet (`SKB_CSUM`).
    SkbCsum,
    /// Too long for the port of the bridge that it was to leave by (`PKT_TOO_BIG`).
    PktTooBig,
    /// The bridge that it was sent by has no port for it (`BRIDGE_NO_EGRESS_PORT`).
    BridgeOutNoEgressPort,
    /// Too long, and not to be fragmented (`PKT_TOO_BIG`).
    Ip6FragFails,
    /// To a group of this interface alone, by a device that leads elsewhere.
    Ip6OutDiscards,
}

impl TxDrop {
    /// All reasons.
    pub const ALL: [Self; 18] = [
        Self::IpFragFails,
        Self::IpOutNoRoutes,
        Self::NeighUnresDiscards,
        Self::NeighResFailed,
        Self::NeighTableFull,
        Self::QdiscDrops,
        Self::QdiscReset,
        Self::TxDropped,
        Self::RingReset,
        Self::TxFifoErrors,
        Self::NetfilterOutDrop,
        Self::RecursionLimit,
        Self::SkbGsoSeg,
        Self::SkbCsum,
        Self::PktTooBig,
        Self::BridgeOutNoEgressPort,
        Self::Ip6FragFails,
        Self::Ip6OutDiscards,
    ];

    /// Its name in a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IpFragFails => "IpFragFails",
            Self::IpOutNoRoutes => "IpOutNoRoutes",
            Self::NeighUnresDiscards => "NeighUnresDiscards",
            Self::NeighResFailed => "NeighResFailed",
            Self::NeighTableFull => "NeighTableFull",
            Self::QdiscDrops => "QdiscDrops",
            Self::QdiscReset => "QdiscReset",
            Self::TxDropped => "TxDropped",
            Self::RingReset => "RingReset",
            Self::TxFifoErrors => "TxFifoErrors",
            Self::NetfilterOutDrop => "NetfilterOutDrop",
            Self::RecursionLimit => "RecursionLimit",
            Self::SkbGsoSeg => "SkbGsoSeg",
            Self::SkbCsum => "SkbCsum",
            Self::PktTooBig => "PktTooBig",
            Self::BridgeOutNoEgressPort => "BridgeOutNoEgressPort",
            Self::Ip6FragFails => "Ip6FragFails",
            Self::Ip6OutDiscards => "Ip6OutDiscards",
        }
    }
}

/// A count for each reason. (Arrays of so many have no default.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drops<const N: usize>([u64; N]);

impl<const N: usize> Drops<N> {
    /// For all reasons.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl<const N: usize> Default for Drops<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Index<usize> for Drops<N> {
    type Output = u64;

    #[inline]
    fn index(&self, reason: usize) -> &u64 {
        &self.0[reason]
    }
}

impl<const N: usize> IndexMut<usize> for Drops<N> {
    #[inline]
    fn index_mut(&mut self, reason: usize) -> &mut u64 {
        &mut self.0[reason]
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::KernelStats;
    use super::*;

    #[test]
    fn each_reason_has_its_place_and_a_name_of_its_own() {
        for (at, reason) in RxDrop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{}", reason.name());
        }
        for (at, reason) in TxDrop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{}", reason.name());
        }
        let mut names: Vec<_> = KernelStats::default()
            .drops()
            .map(|(name, _)| name)
            .collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RxDrop::ALL.len() + TxDrop::ALL.len());
    }
}
