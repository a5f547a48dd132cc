//! What the kernel counts, by Linux's names where it has them.
//!
//! Each received packet ends in exactly one of: a socket's queue, consumed (ARP, ICMP), or one reason
//! for dropping ([`RxDrop`]); [`KernelStats::rx_balance`] holds the two sides together. A packet
//! that was to be sent and was not has one [`TxDrop`]. The driver's own counters are in
//! [`crate::virtio_net::stats`].

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
    /// Times that `net_rx_action` stopped because budget or time was spent: mostly with work left, but
    /// also when they ended exactly with the work.
    pub time_squeeze: u64,
    /// Runs of `net_rx_action`.
    pub net_rx_actions: u64,
    /// Runs of `net_tx_action`.
    pub net_tx_actions: u64,
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
    /// `IpInDelivers`: given to a protocol.
    pub ip_in_delivers: u64,
    /// `IpOutRequests`: IP packets that this host made.
    pub ip_out_requests: u64,
    /// `IcmpInMsgs`: with a good checksum or not.
    pub icmp_in_msgs: u64,
    /// `IcmpOutMsgs`.
    pub icmp_out_msgs: u64,
    /// `UdpInDatagrams`: given to a reader.
    pub udp_in_datagrams: u64,
    /// `UdpOutDatagrams`.
    pub udp_out_datagrams: u64,
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
    /// An IP header that is short, of another version, or contradicts itself.
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
    /// For a multicast group that nobody here is in.
    IpInMcastNotMember,
    /// A fragment: they are not put together yet.
    IpReasmFails,
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
}

impl RxDrop {
    /// All reasons.
    pub const ALL: [Self; 22] = [
        Self::UnhandledProto,
        Self::ArpInvalid,
        Self::IpOtherHost,
        Self::IpInHdrErrors,
        Self::IpInCsumErrors,
        Self::IpInTruncatedPkts,
        Self::IpInMartianSource,
        Self::IpInMartianDest,
        Self::IpInAddrErrors,
        Self::IpInMcastNotMember,
        Self::IpReasmFails,
        Self::IpInUnknownProtos,
        Self::IcmpInErrors,
        Self::IcmpInCsumErrors,
        Self::PingNoSocket,
        Self::PingRcvbufErrors,
        Self::UdpInErrors,
        Self::UdpInCsumErrors,
        Self::UdpNoPorts,
        Self::UdpIgnoredMulti,
        Self::UdpRcvbufErrors,
        Self::UdpGso,
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
            Self::IpInMcastNotMember => "IpInMcastNotMember",
            Self::IpReasmFails => "IpReasmFails",
            Self::IpInUnknownProtos => "IpInUnknownProtos",
            Self::IcmpInErrors => "IcmpInErrors",
            Self::IcmpInCsumErrors => "IcmpInCsumErrors",
            Self::PingNoSocket => "PingNoSocket",
            Self::PingRcvbufErrors => "PingRcvbufErrors",
            Self::UdpInErrors => "UdpInErrors",
            Self::UdpInCsumErrors => "UdpInCsumErrors",
            Self::UdpNoPorts => "UdpNoPorts",
            Self::UdpIgnoredMulti => "UdpIgnoredMulti",
            Self::UdpRcvbufErrors => "UdpRcvbufErrors",
            Self::UdpGso => "UdpGso",
        }
    }
}

/// Why a packet was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TxDrop {
    /// Too long, and it cannot be fragmented yet.
    IpFragFails,
    /// The queue of packets that wait for the neighbour was full: the oldest went.
    NeighUnresDiscards,
    /// The neighbour did not answer.
    NeighResFailed,
    /// No room for another neighbour.
    NeighTableFull,
    /// The queueing discipline was full.
    QdiscDrops,
    /// Its transmit queue went out of use while it waited there.
    QdiscReset,
    /// It was in a ring that was reset: it may have been sent, or not.
    RingReset,
    /// The driver could not take it (`tx_fifo_errors`): its ring is broken or its buffers are short.
    TxFifoErrors,
}

impl TxDrop {
    /// All reasons.
    pub const ALL: [Self; 8] = [
        Self::IpFragFails,
        Self::NeighUnresDiscards,
        Self::NeighResFailed,
        Self::NeighTableFull,
        Self::QdiscDrops,
        Self::QdiscReset,
        Self::RingReset,
        Self::TxFifoErrors,
    ];

    /// Its name in a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IpFragFails => "IpFragFails",
            Self::NeighUnresDiscards => "NeighUnresDiscards",
            Self::NeighResFailed => "NeighResFailed",
            Self::NeighTableFull => "NeighTableFull",
            Self::QdiscDrops => "QdiscDrops",
            Self::QdiscReset => "QdiscReset",
            Self::RingReset => "RingReset",
            Self::TxFifoErrors => "TxFifoErrors",
        }
    }
}

/// The stack's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counters {
    pub rx_packets: u64,
    pub cloned: u64,
    pub queued: u64,
    pub consumed: u64,
    pub snmp: Snmp,
    pub rx_drops: [u64; RxDrop::ALL.len()],
    pub tx_drops: [u64; TxDrop::ALL.len()],
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
    /// Copies made of broadcast packets, for sockets after the first.
    pub cloned: u64,
    /// Packets put into sockets' queues.
    pub queued: u64,
    /// Packets that the kernel itself was the end of: ARP and ICMP.
    pub consumed: u64,
    /// What went well.
    pub snmp: Snmp,
    rx_drops: [u64; RxDrop::ALL.len()],
    tx_drops: [u64; TxDrop::ALL.len()],
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
            cloned: counters.cloned,
            queued: counters.queued,
            consumed: counters.consumed,
            snmp: counters.snmp,
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
            sum.time_squeeze += cpu.time_squeeze;
            sum.net_rx_actions += cpu.net_rx_actions;
            sum.net_tx_actions += cpu.net_tx_actions;
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
        self.rx_drops.iter().sum()
    }

    /// Packets not sent, for all reasons.
    #[must_use]
    pub fn tx_dropped(&self) -> u64 {
        self.tx_drops.iter().sum()
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
        let came = self.rx_packets + self.cloned;
        (came, self.queued + self.consumed + self.rx_dropped())
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
