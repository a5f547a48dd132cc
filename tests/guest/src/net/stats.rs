//! What the kernel counts, by Linux's names where it has them.
//!
//! Each received packet ends in exactly one of: merged with another, a socket's queue, consumed (ARP, ICMP, IGMP), sent on, or one reason
//! for dropping ([`RxDrop`]); [`KernelStats::rx_balance`] holds the two sides together. A packet
//! that was to be sent and was not has one [`TxDrop`]. The driver's own counters are in
//! [`crate::virtio_net::stats`].

use std::ops::{Index, IndexMut};

pub use super::mib6::{Mib6, Snmp6};

/// Of one virtqueue: even numbers receive, odd ones send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueStats {
    /// Interrupts that the device raised; those that came while one was pending are one interrupt.
    pub raised: u64,
    /// Hard interrupts handled: NAPI was scheduled, or told to look again.
    pub interrupts: u64,
    /// Hard interrupts with nothing used (`IRQ_NONE`).
    pub spurious: u64,
    /// Calls of the poll function.
    pub polls: u64,
    /// Polls that took less than their weight and ended with interrupts on again.
    pub completes: u64,
    /// Polls after which the ring was found used again between switching interrupts on and the last
    /// look, so that NAPI was scheduled once more.
    pub repolls: u64,
    /// Polls that could not complete because an interrupt had come meanwhile (`NAPI_STATE_MISSED`).
    pub missed: u64,
}

/// Of one CPU (`/proc/net/softnet_stat`, `/proc/softirqs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuStats {
    /// Packets that went through the stack.
    pub processed: u64,
    /// Packets that its backlog had no room for.
    pub dropped: u64,
    /// Times that `net_rx_action` stopped because budget or time was spent: mostly with work left, but
    /// also when they ended exactly with the work.
    pub time_squeeze: u64,
    /// Runs of the timers' soft interrupt.
    pub timer_softirqs: u64,
    /// Runs of `net_rx_action`.
    pub net_rx_actions: u64,
    /// Runs of `net_tx_action`.
    pub net_tx_actions: u64,
    /// Interrupts from other CPUs: they had put packets into its backlog.
    pub received_rps: u64,
    /// Packets that readers polled the device for (`BusyPollRxPackets`).
    pub busy_poll_rx_packets: u64,
    /// Polls by NAPI threads.
    pub napi_threaded_polls: u64,
    /// Runs of ksoftirqd: soft interrupts had gone on for too long.
    pub ksoftirqd_runs: u64,
}

/// Of one transmit queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxQueueStats {
    /// Times that the queue was stopped because the ring was full.
    pub stop: u64,
    /// Times that completions started it again.
    pub wake: u64,
}

/// Counters of what went well (`/proc/net/snmp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Snmp {
    /// `IpInReceives`: IP packets for this station.
    pub ip_in_receives: u64,
    /// `IpForwDatagrams`: to be sent on to other hosts.
    pub ip_forw_datagrams: u64,
    /// `IpInDelivers`: given to a protocol.
    pub ip_in_delivers: u64,
    /// `IpReasmReqds`: fragments for this host.
    pub ip_reasm_reqds: u64,
    /// `IpReasmOKs`: packets put together.
    pub ip_reasm_oks: u64,
    /// `IpReasmFails`: packets given up, and fragments that there was no memory for.
    pub ip_reasm_fails: u64,
    /// `IpReasmTimeout`: packets given up because they were not complete in time.
    pub ip_reasm_timeout: u64,
    /// `IpExtReasmOverlaps`: packets given up because fragments overlapped.
    pub ip_reasm_overlaps: u64,
    /// `IpFragOKs`: packets that were sent in fragments.
    pub ip_frag_oks: u64,
    /// `IpFragFails`: packets that were too long and not to be fragmented.
    pub ip_frag_fails: u64,
    /// `IpFragCreates`: fragments that were made.
    pub ip_frag_creates: u64,
    /// `IpOutRequests`: IP packets that this host made.
    pub ip_out_requests: u64,
    /// `IpOutDiscards`: what a process was not let send: its send buffer was full, a peer had answered with an error, or
    /// the filter dropped it.
    pub ip_out_discards: u64,
    /// `IpOutNoRoutes`: what a process wanted to send where no route leads.
    pub ip_out_no_routes: u64,
    /// `IcmpInMsgs`: with a good checksum or not.
    pub icmp_in_msgs: u64,
    /// `IcmpInErrors`: messages that were wrong, and errors about packets that nobody here sent.
    pub icmp_in_errors: u64,
    /// `IcmpMsgInType`: messages with a good checksum, by type.
    /// `IcmpMsgOutType`.
    /// `IcmpOutRateLimitGlobal`: errors not sent because there were too many in all.
    pub icmp_out_rate_limit_global: u64,
    /// `IcmpOutRateLimitHost`: errors not sent because there were too many for their host.
    pub icmp_out_rate_limit_host: u64,
    /// `IcmpOutMsgs`.
    pub icmp_out_msgs: u64,
    /// `UdpInDatagrams`: given to a reader.
    pub udp_in_datagrams: u64,
    /// `UdpOutDatagrams`.
    pub udp_out_datagrams: u64,
    /// `UdpSndbufErrors`: datagrams for which the send buffer had no room.
    pub udp_sndbuf_errors: u64,
    /// `TcpActiveOpens`: connections that this host asked for.
    pub tcp_active_opens: u64,
    /// `TcpPassiveOpens`: those that a peer asked for and got.
    pub tcp_passive_opens: u64,
    /// `TcpAttemptFails`: those that were asked for and did not come to be.
    pub tcp_attempt_fails: u64,
    /// `TcpEstabResets`: those that ended at once.
    pub tcp_estab_resets: u64,
    /// `TcpCurrEstab`: those that are there.
    pub tcp_curr_estab: u64,
    /// `TcpInSegs`: with an error or not; what GRO merged is one.
    pub tcp_in_segs: u64,
    /// `TcpOutSegs`: without those that repeat others.
    pub tcp_out_segs: u64,
    /// `TcpRetransSegs`: those that repeat others.
    pub tcp_retrans_segs: u64,
    /// `TcpOutRsts`.
    pub tcp_out_rsts: u64,
}

/// Of the neighbour cache (`/proc/net/stat/arp_cache`, `ndisc_cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NeighStatistics {
    /// Entries made.
    pub allocs: u64,
    /// Entries that went.
    pub destroys: u64,
    /// Neighbours that did not answer.
    pub res_failed: u64,
    /// Packets dropped because too many waited for a neighbour.
    pub unres_discards: u64,
    /// Entries that there was no room for.
    pub table_fulls: u64,
    /// Looks for entries that nobody used for long.
    pub periodic_gc_runs: u64,
    /// Looks for entries to make room.
    pub forced_gc_runs: u64,
}

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

/// The stack's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counters {
    pub rx_packets: u64,
    pub gro_merged: u64,
    pub netif_rx: u64,
    pub cloned: u64,
    pub queued: u64,
    pub consumed: u64,
    pub forwarded: u64,
    pub bridged: u64,
    pub merged: u64,
    /// Fragments that wait.
    pub reassembling: u64,
    pub snmp: Snmp,
    pub snmp6: Snmp6,
    pub rx_drops: Drops<{ RxDrop::ALL.len() }>,
    pub tx_drops: Drops<{ TxDrop::ALL.len() }>,
}

/// All counters of a kernel, as they stood when they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelStats {
    /// By virtqueue number: even ones receive, odd ones send.
    pub queues: Vec<QueueStats>,
    /// By CPU.
    pub cpus: Vec<CpuStats>,
    /// By transmit queue.
    pub tx_queues: Vec<TxQueueStats>,
    /// Packets that the driver gave to the stack.
    pub rx_packets: u64,
    /// Packets that GRO made part of the one before them.
    pub gro_merged: u64,
    /// Packets that came through `netif_rx`: from devices without NAPI, and those sent to groups and to all that this host
    /// hears itself.
    pub netif_rx: u64,
    /// Packets made of one that came: copies for packet sockets, raw sockets and the further sockets of a broadcast, and parts of
    /// super-datagrams.
    pub cloned: u64,
    /// Packets put into sockets' queues.
    pub queued: u64,
    /// Packets that the kernel itself was the end of: ARP, ICMP and IGMP, segments of connections, and what only raw sockets
    /// had a use for.
    pub consumed: u64,
    /// Packets for other hosts that were sent on.
    pub forwarded: u64,
    /// Frames that bridges have passed on.
    pub bridged: u64,
    /// Packets that became part of another: fragments behind the first.
    pub merged: u64,
    /// Fragments that wait for others at present.
    pub reassembling: u64,
    /// What went well.
    pub snmp: Snmp,
    /// The same of IPv6.
    pub snmp6: Snmp6,
    /// Of the neighbour cache.
    pub neigh: NeighStatistics,
    /// Of that of IPv6.
    pub neigh6: NeighStatistics,
    rx_drops: Drops<{ RxDrop::ALL.len() }>,
    tx_drops: Drops<{ TxDrop::ALL.len() }>,
}

impl KernelStats {
    pub(super) fn new(
        counters: &Counters,
        queues: Vec<QueueStats>,
        cpus: Vec<CpuStats>,
        tx_queues: Vec<TxQueueStats>,
    ) -> Self {
        Self {
            queues,
            cpus,
            tx_queues,
            rx_packets: counters.rx_packets,
            gro_merged: counters.gro_merged,
            netif_rx: counters.netif_rx,
            cloned: counters.cloned,
            queued: counters.queued,
            consumed: counters.consumed,
            forwarded: counters.forwarded,
            bridged: counters.bridged,
            merged: counters.merged,
            reassembling: counters.reassembling,
            snmp: counters.snmp,
            snmp6: counters.snmp6,
            neigh: NeighStatistics::default(),
            neigh6: NeighStatistics::default(),
            rx_drops: counters.rx_drops,
            tx_drops: counters.tx_drops,
        }
    }

    /// Sum over the receive queues.
    #[must_use]
    pub fn rx(&self) -> QueueStats {
        self.sum(0)
    }

    /// Sum over the transmit queues.
    #[must_use]
    pub fn tx(&self) -> QueueStats {
        self.sum(1)
    }

    fn sum(&self, first: usize) -> QueueStats {
        let mut sum = QueueStats::default();
        for queue in self.queues.iter().skip(first).step_by(2) {
            sum.raised += queue.raised;
            sum.interrupts += queue.interrupts;
            sum.spurious += queue.spurious;
            sum.polls += queue.polls;
            sum.completes += queue.completes;
            sum.repolls += queue.repolls;
            sum.missed += queue.missed;
        }
        sum
    }

    /// Sum over the CPUs.
    #[must_use]
    pub fn cpu(&self) -> CpuStats {
        let mut sum = CpuStats::default();
        for cpu in &self.cpus {
            sum.processed += cpu.processed;
            sum.dropped += cpu.dropped;
            sum.time_squeeze += cpu.time_squeeze;
            sum.net_rx_actions += cpu.net_rx_actions;
            sum.net_tx_actions += cpu.net_tx_actions;
            sum.timer_softirqs += cpu.timer_softirqs;
            sum.received_rps += cpu.received_rps;
            sum.busy_poll_rx_packets += cpu.busy_poll_rx_packets;
            sum.napi_threaded_polls += cpu.napi_threaded_polls;
            sum.ksoftirqd_runs += cpu.ksoftirqd_runs;
        }
        sum
    }

    /// Received packets dropped for `reason`.
    #[must_use]
    pub fn rx_drop(&self, reason: RxDrop) -> u64 {
        self.rx_drops[reason as usize]
    }

    /// Packets not sent for `reason`.
    #[must_use]
    pub fn tx_drop(&self, reason: TxDrop) -> u64 {
        self.tx_drops[reason as usize]
    }

    /// Received packets dropped, for all reasons.
    #[must_use]
    pub fn rx_dropped(&self) -> u64 {
        self.rx_drops.0.iter().sum()
    }

    /// Packets not sent, for all reasons.
    #[must_use]
    pub fn tx_dropped(&self) -> u64 {
        self.tx_drops.0.iter().sum()
    }

    /// Drops by reason, received packets first; those that did not happen too.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let rx = RxDrop::ALL.map(|reason| (reason.name(), self.rx_drop(reason)));
        let tx = TxDrop::ALL.map(|reason| (reason.name(), self.tx_drop(reason)));
        rx.into_iter().chain(tx)
    }

    /// Packets that came in, and where they ended: the two are equal whenever the kernel is idle.
    #[must_use]
    pub fn rx_balance(&self) -> (u64, u64) {
        let came = self.rx_packets + self.netif_rx + self.cloned;
        let ended = self.queued + self.consumed + self.forwarded + self.bridged;
        let merged = self.merged + self.reassembling + self.gro_merged;
        (came, ended + merged + self.rx_dropped())
    }
}

#[cfg(test)]
mod tests {
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
