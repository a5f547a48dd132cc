//! What the kernel counts, by Linux's names where it has them.
//!
//! Each received packet ends in exactly one of: merged with another, a socket's queue, consumed (ARP, ICMP, IGMP), sent on, or one reason
//! for dropping ([`RxDrop`]); [`KernelStats::rx_balance`] holds the two sides together. A packet
//! that was to be sent and was not has one [`TxDrop`]. The driver's own counters are in
//! [`crate::virtio_net::stats`].

use super::dropreason::Drops;
pub use super::dropreason::{RxDrop, TxDrop};
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
        self.rx_drops.sum()
    }

    /// Packets not sent, for all reasons.
    #[must_use]
    pub fn tx_dropped(&self) -> u64 {
        self.tx_drops.sum()
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
