//! The port's counts under the names that others know them by: this is the one table.
//!
//! [`ETHTOOL`] has the standard groups of Linux's `ethtool -S DEV --all-groups`, as it prints them, those of
//! `ethtool -I --show-pause`, and drivers' names where there are no standard ones: pause frames of each priority, wrong checksums of
//! each kind; [`RFC`] the MIBs: RFC 2819 (RMON), RFC 3635 (EtherLike), RFC 2863 (interfaces) and IEEE 802.1Q's of
//! priority-based flow control. All are of 64 bits. Counters that the card has no way to raise stand there as zero, with the reason; [`UNNAMED`] says which frames no name
//! is for.
//!
//! The MAC's names, of IEEE 802.3, and the MIBs count MAC Control frames that the card sends, which are no frames of the driver's; RMON
//! counts what is on the line, and the others what is for this station.

use super::{Bin, Drop, PortCounters};

/// Octets of addresses, type and check sequence: the names of IEEE 802.3 count the octets between (30.3.1.1.8).
const HEADER_AND_FCS: u64 = 18;
/// Octets of a MAC Control frame, and those between.
const CONTROL: u64 = 64;
const CONTROL_DATA: u64 = CONTROL - HEADER_AND_FCS;

/// Where a name's count comes from.
#[derive(Clone, Copy)]
pub enum Value {
    /// From ours.
    Of(fn(&PortCounters) -> u64),
    /// It is always zero, for this reason.
    Zero(&'static str),
}

/// A name that others know a count by.
#[derive(Clone, Copy)]
pub struct Name {
    /// As it is written there.
    pub name: &'static str,
    /// Which section says what it counts.
    pub section: &'static str,
    /// The count.
    pub value: Value,
}

impl Name {
    /// The count, of those of `port`.
    #[must_use]
    pub fn count(&self, port: &PortCounters) -> u64 {
        match self.value {
            Value::Of(value) => value(port),
            Value::Zero(_) => 0,
        }
    }
}

const fn of(name: &'static str, section: &'static str, value: fn(&PortCounters) -> u64) -> Name {
    let value = Value::Of(value);
    Name {
        name,
        section,
        value,
    }
}

const fn zero(name: &'static str, section: &'static str, why: &'static str) -> Name {
    let value = Value::Zero(why);
    Name {
        name,
        section,
        value,
    }
}

const DUPLEX: &str = "no CSMA/CD: the two directions do not disturb each other";
/// Frames of priority-based flow control that speak of a priority; there is no standard name for them.
const MLX5: &str = "Linux's driver mlx5";
/// The module, 1.3.111.2.802.1.1.21: its two counts are of whole frames, of whatever priorities they speak.
const PFC_MIB: &str = "IEEE8021-PFC-MIB (IEEE 802.1Q, 12.23)";
/// Wrong checksums by kind; there is no standard name for them, either.
const SFC: &str = "Linux's driver sfc";
const CODING: &str = "frames come whole, the line's coding is not modelled";

/// The standard groups of `ethtool -S DEV --all-groups`, pause frames as `ethtool -I --show-pause DEV` has them, and what no standard has a name for under those
/// of Linux's drivers mlx5 (priorities) and sfc (wrong checksums, which count both where both are wrong).
pub const ETHTOOL: &[Name] = &[
    zero(
        "eth-phy-SymbolErrorDuringCarrier",
        "IEEE 802.3, 30.3.2.1.5",
        CODING,
    ),
    of("eth-mac-FramesTransmittedOK", "30.3.1.1.2", |c| {
        c.tx_frames + c.control_sent()
    }),
    zero("eth-mac-SingleCollisionFrames", "30.3.1.1.3", DUPLEX),
    zero("eth-mac-MultipleCollisionFrames", "30.3.1.1.4", DUPLEX),
    of(
        "eth-mac-FramesReceivedOK",
        "30.3.1.1.5",
        PortCounters::received_ok,
    ),
    of("eth-mac-FrameCheckSequenceErrors", "30.3.1.1.6", |c| {
        c.drops.get(Drop::RxFcs)
    }),
    of("eth-mac-AlignmentErrors", "30.3.1.1.7", |c| {
        c.drops.get(Drop::RxAlign)
    }),
    of("eth-mac-OctetsTransmittedOK", "30.3.1.1.8", |c| {
        c.tx_octets - HEADER_AND_FCS * c.tx_frames + CONTROL_DATA * c.control_sent()
    }),
    zero("eth-mac-FramesWithDeferredXmissions", "30.3.1.1.9", DUPLEX),
    zero("eth-mac-LateCollisions", "30.3.1.1.10", DUPLEX),
    zero("eth-mac-FramesAbortedDueToXSColls", "30.3.1.1.11", DUPLEX),
    of(
        "eth-mac-FramesLostDueToIntMACXmitError",
        "30.3.1.1.12",
        PortCounters::unsendable,
    ),
    zero("eth-mac-CarrierSenseErrors", "30.3.1.1.13", DUPLEX),
    of("eth-mac-OctetsReceivedOK", "30.3.1.1.14", |c| {
        let lost = c.rx_error_octets + c.rx_filtered_octets + c.rx_length_octets;
        c.rx_octets - lost - HEADER_AND_FCS * c.received_ok()
    }),
    of(
        "eth-mac-FramesLostDueToIntMACRcvError",
        "30.3.1.1.15",
        |c| c.drops.get(Drop::RxMalformed),
    ),
    of("eth-mac-MulticastFramesXmittedOK", "30.3.1.1.18", |c| {
        c.tx_multicast + c.control_sent()
    }),
    of("eth-mac-BroadcastFramesXmittedOK", "30.3.1.1.19", |c| {
        c.tx_broadcast
    }),
    zero("eth-mac-FramesWithExcessiveDeferral", "30.3.1.1.20", DUPLEX),
    of("eth-mac-MulticastFramesReceivedOK", "30.3.1.1.21", |c| {
        c.rx_multicast + c.rx_control_multicast
    }),
    of("eth-mac-BroadcastFramesReceivedOK", "30.3.1.1.22", |c| {
        c.rx_broadcast
    }),
    of("eth-mac-InRangeLengthErrors", "30.3.1.1.23", |c| {
        c.rx_in_range_length
    }),
    of("eth-mac-OutOfRangeLengthField", "30.3.1.1.24", |c| {
        c.rx_out_of_range_length
    }),
    of(
        "eth-mac-FrameTooLongErrors",
        "30.3.1.1.25",
        PortCounters::too_long,
    ),
    of(
        "eth-ctrl-MACControlFramesTransmitted",
        "30.3.3.3",
        PortCounters::control_sent,
    ),
    of("eth-ctrl-MACControlFramesReceived", "30.3.3.4", |c| {
        c.drops.get(Drop::RxControl)
    }),
    of("eth-ctrl-UnsupportedOpcodesReceived", "30.3.3.5", |c| {
        c.rx_control_unknown
    }),
    of("rmon-etherStatsUndersizePkts", "RFC 2819", |c| {
        c.drops.get(Drop::RxUndersize)
    }),
    of("rmon-etherStatsOversizePkts", "RFC 2819", |c| {
        c.drops.get(Drop::RxOversize)
    }),
    of("rmon-etherStatsFragments", "RFC 2819", |c| {
        c.drops.get(Drop::RxFragment)
    }),
    of("rmon-etherStatsJabbers", "RFC 2819", |c| {
        c.drops.get(Drop::RxJabber)
    }),
    of("rx-rmon-etherStatsPkts64to64Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::Shortest)
    }),
    of("rx-rmon-etherStatsPkts65to127Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From65)
    }),
    of("rx-rmon-etherStatsPkts128to255Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From128)
    }),
    of("rx-rmon-etherStatsPkts256to511Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From256)
    }),
    of("rx-rmon-etherStatsPkts512to1023Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From512)
    }),
    of("rx-rmon-etherStatsPkts1024to1518Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From1024)
    }),
    of("rx-rmon-etherStatsPkts1519toMaxOctets", "Linux", |c| {
        c.rx_sizes.get(Bin::From1519)
    }),
    of("tx-rmon-etherStatsPkts64to64Octets", "Linux", |c| {
        c.tx_sizes.get(Bin::Shortest) + c.control_sent()
    }),
    of("tx-rmon-etherStatsPkts65to127Octets", "Linux", |c| {
        c.tx_sizes.get(Bin::From65)
    }),
    of("tx-rmon-etherStatsPkts128to255Octets", "Linux", |c| {
        c.tx_sizes.get(Bin::From128)
    }),
    of("tx-rmon-etherStatsPkts256to511Octets", "Linux", |c| {
        c.tx_sizes.get(Bin::From256)
    }),
    of("tx-rmon-etherStatsPkts512to1023Octets", "Linux", |c| {
        c.tx_sizes.get(Bin::From512)
    }),
    of("tx-rmon-etherStatsPkts1024to1518Octets", "Linux", |c| {
        c.tx_sizes.get(Bin::From1024)
    }),
    of("tx-rmon-etherStatsPkts1519toMaxOctets", "Linux", |c| {
        c.tx_sizes.get(Bin::From1519)
    }),
    of(
        "tx_pause_frames",
        "IEEE 802.3, 30.3.4.2",
        PortCounters::pause_sent,
    ),
    of("rx_pause_frames", "IEEE 802.3, 30.3.4.3", |c| c.rx_pause),
    of("rx_ip_hdr_chksum_err", SFC, |c| c.rx_checksums.bad_header()),
    of("rx_tcp_udp_chksum_err", SFC, |c| c.rx_checksums.bad()),
    of("rx_prio0_pause", MLX5, |c| c.pfc.received(0)),
    of("tx_prio0_pause", MLX5, |c| c.pfc.sent(0)),
    of("rx_prio1_pause", MLX5, |c| c.pfc.received(1)),
    of("tx_prio1_pause", MLX5, |c| c.pfc.sent(1)),
    of("rx_prio2_pause", MLX5, |c| c.pfc.received(2)),
    of("tx_prio2_pause", MLX5, |c| c.pfc.sent(2)),
    of("rx_prio3_pause", MLX5, |c| c.pfc.received(3)),
    of("tx_prio3_pause", MLX5, |c| c.pfc.sent(3)),
    of("rx_prio4_pause", MLX5, |c| c.pfc.received(4)),
    of("tx_prio4_pause", MLX5, |c| c.pfc.sent(4)),
    of("rx_prio5_pause", MLX5, |c| c.pfc.received(5)),
    of("tx_prio5_pause", MLX5, |c| c.pfc.sent(5)),
    of("rx_prio6_pause", MLX5, |c| c.pfc.received(6)),
    of("tx_prio6_pause", MLX5, |c| c.pfc.sent(6)),
    of("rx_prio7_pause", MLX5, |c| c.pfc.received(7)),
    of("tx_prio7_pause", MLX5, |c| c.pfc.sent(7)),
];

/// The objects of RFC 2819, RFC 3635, RFC 2863 and of IEEE8021-PFC-MIB.
pub const RFC: &[Name] = &[
    of("etherStatsDropEvents", "RFC 2819", |c| {
        c.drops.get(Drop::RxFifoOverflow)
    }),
    of("etherStatsOctets", "RFC 2819", |c| c.rx_octets),
    of("etherStatsPkts", "RFC 2819", |c| c.rx_frames),
    of("etherStatsBroadcastPkts", "RFC 2819", |c| {
        c.rx_line_broadcast
    }),
    of("etherStatsMulticastPkts", "RFC 2819", |c| {
        c.rx_line_multicast
    }),
    of("etherStatsCRCAlignErrors", "RFC 2819", |c| {
        c.drops.get(Drop::RxFcs) + c.drops.get(Drop::RxAlign)
    }),
    of("etherStatsUndersizePkts", "RFC 2819", |c| {
        c.drops.get(Drop::RxUndersize)
    }),
    of("etherStatsOversizePkts", "RFC 2819", |c| {
        c.drops.get(Drop::RxOversize)
    }),
    of("etherStatsFragments", "RFC 2819", |c| {
        c.drops.get(Drop::RxFragment)
    }),
    of("etherStatsJabbers", "RFC 2819", |c| {
        c.drops.get(Drop::RxJabber)
    }),
    zero("etherStatsCollisions", "RFC 2819", DUPLEX),
    of("etherStatsPkts64Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::Shortest)
    }),
    of("etherStatsPkts65to127Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From65)
    }),
    of("etherStatsPkts128to255Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From128)
    }),
    of("etherStatsPkts256to511Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From256)
    }),
    of("etherStatsPkts512to1023Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From512)
    }),
    of("etherStatsPkts1024to1518Octets", "RFC 2819", |c| {
        c.rx_sizes.get(Bin::From1024)
    }),
    of("dot3StatsAlignmentErrors", "RFC 3635", |c| {
        c.drops.get(Drop::RxAlign)
    }),
    of("dot3StatsFCSErrors", "RFC 3635", |c| {
        c.drops.get(Drop::RxFcs)
    }),
    zero("dot3StatsSingleCollisionFrames", "RFC 3635", DUPLEX),
    zero("dot3StatsMultipleCollisionFrames", "RFC 3635", DUPLEX),
    zero(
        "dot3StatsSQETestErrors",
        "RFC 3635",
        "there is no AUI, and so no SQE test",
    ),
    zero("dot3StatsDeferredTransmissions", "RFC 3635", DUPLEX),
    zero("dot3StatsLateCollisions", "RFC 3635", DUPLEX),
    zero("dot3StatsExcessiveCollisions", "RFC 3635", DUPLEX),
    of(
        "dot3StatsInternalMacTransmitErrors",
        "RFC 3635",
        PortCounters::unsendable,
    ),
    zero("dot3StatsCarrierSenseErrors", "RFC 3635", DUPLEX),
    of("dot3StatsFrameTooLongs", "RFC 3635", PortCounters::too_long),
    of("dot3StatsInternalMacReceiveErrors", "RFC 3635", |c| {
        c.drops.get(Drop::RxMalformed)
    }),
    zero("dot3StatsSymbolErrors", "RFC 3635", CODING),
    of("dot3ControlInUnknownOpcodes", "RFC 3635", |c| {
        c.rx_control_unknown
    }),
    of("dot3InPauseFrames", "RFC 3635", |c| c.rx_pause),
    of("dot3OutPauseFrames", "RFC 3635", PortCounters::pause_sent),
    of("ieee8021PfcRequests", PFC_MIB, |c| c.pfc.tx_frames),
    of("ieee8021PfcIndications", PFC_MIB, |c| c.pfc.rx_frames),
    of("ifHCInOctets", "RFC 2863; RFC 3635, 3.2.5", |c| {
        c.rx_octets - c.rx_error_octets - c.rx_filtered_octets
    }),
    of("ifHCInUcastPkts", "RFC 2863", |c| c.rx_unicast),
    of("ifHCInMulticastPkts", "RFC 2863", |c| c.rx_multicast),
    of("ifHCInBroadcastPkts", "RFC 2863", |c| c.rx_broadcast),
    of("ifInDiscards", "RFC 2863", |c| {
        let lost = [
            Drop::RxFifoOverflow,
            Drop::RxBufferTooSmall,
            Drop::RxQueueDisabled,
            Drop::RxResteered,
            Drop::RxRateExceeded,
        ];
        lost.iter().map(|&reason| c.drops.get(reason)).sum()
    }),
    of("ifInErrors", "RFC 2863; RFC 3635, 3.2.10", |c| {
        let bad = [Drop::RxFcs, Drop::RxAlign, Drop::RxMalformed];
        c.too_long() + bad.iter().map(|&reason| c.drops.get(reason)).sum::<u64>()
    }),
    zero("ifInUnknownProtos", "RFC 2863", "the host judges protocols"),
    of("ifHCOutOctets", "RFC 2863; RFC 3635, 3.2.5", |c| {
        c.tx_octets + CONTROL * c.control_sent()
    }),
    of("ifHCOutUcastPkts", "RFC 2863", |c| {
        c.tx_frames - c.tx_multicast - c.tx_broadcast
    }),
    of("ifHCOutMulticastPkts", "RFC 2863", |c| c.tx_multicast),
    of("ifHCOutBroadcastPkts", "RFC 2863", |c| c.tx_broadcast),
    of("ifOutDiscards", "RFC 2863", |c| {
        c.drops.get(Drop::TxLinkDown) + c.drops.get(Drop::TxQueueDisabled)
    }),
    of(
        "ifOutErrors",
        "RFC 2863; RFC 3635, 3.2.10",
        PortCounters::unsendable,
    ),
];

/// Drops that none of the names above is for, and why. RMON counts such frames as any others.
pub const UNNAMED: &[(Drop, &str)] = &[
    (
        Drop::RxFiltered,
        "frames for others are none of this interface",
    ),
    (
        Drop::RxVlanFiltered,
        "frames of others' VLANs are none of this interface, either",
    ),
];

/// Sums that more than one name has.
impl PortCounters {
    /// PAUSE frames sent (aPAUSEMACCtrlFramesTransmitted, IEEE 802.3, 30.3.4.2).
    #[must_use]
    pub fn pause_sent(&self) -> u64 {
        self.tx_xoff + self.tx_xon
    }

    /// MAC Control frames sent: those, and the ones for single priorities.
    fn control_sent(&self) -> u64 {
        self.pause_sent() + self.pfc.tx_frames
    }

    /// Received frames with nothing wrong, admitted by the address filter or of MAC Control.
    fn received_ok(&self) -> u64 {
        let admitted = self.rx_unicast + self.rx_multicast + self.rx_broadcast;
        let wrong_length = self.rx_in_range_length + self.rx_out_of_range_length;
        admitted + self.drops.get(Drop::RxControl) - wrong_length
    }

    /// Received frames that are longer than the port's longest, with a right check sequence or without.
    fn too_long(&self) -> u64 {
        self.drops.get(Drop::RxOversize) + self.drops.get(Drop::RxJabber)
    }

    /// What a driver gave to be sent and could not go on a line.
    fn unsendable(&self) -> u64 {
        let bad = [Drop::TxUndersize, Drop::TxOversize, Drop::TxMalformed];
        bad.iter().map(|&reason| self.drops.get(reason)).sum()
    }
}

#[cfg(test)]
mod tests;
