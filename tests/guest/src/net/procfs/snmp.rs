//! `/proc/net/snmp` (Linux: `net/ipv4/proc.c`; RFC 1213).

use std::fmt;

use super::super::icmp::ICMP_OUT;
use super::super::stats::RxDrop;
use super::super::{Kernel, Machine};
use crate::transport::Transport;

/// A column and its value.
type Item<'a> = (&'a str, u64);

/// ICMP's types, by their names for received and for sent ones.
const ICMP_TYPES: [(&str, &str, usize); 11] = [
    ("InDestUnreachs", "OutDestUnreachs", 3),
    ("InTimeExcds", "OutTimeExcds", 11),
    ("InParmProbs", "OutParmProbs", 12),
    ("InSrcQuenchs", "OutSrcQuenchs", 4),
    ("InRedirects", "OutRedirects", 5),
    ("InEchos", "OutEchos", 8),
    ("InEchoReps", "OutEchoReps", 0),
    ("InTimestamps", "OutTimestamps", 13),
    ("InTimestampReps", "OutTimestampReps", 14),
    ("InAddrMasks", "OutAddrMasks", 17),
    ("InAddrMaskReps", "OutAddrMaskReps", 18),
];
/// Types of ICMP on one line.
const PERLINE: usize = 16;

/// Two lines: names, and values.
fn group(out: &mut impl fmt::Write, name: &str, items: &[Item<'_>]) -> fmt::Result {
    write!(out, "{name}:")?;
    for (column, _) in items {
        write!(out, " {column}")?;
    }
    write!(out, "\n{name}:")?;
    for (column, value) in items {
        match *column {
            // It is signed: no limit.
            "MaxConn" => write!(out, " {}", value.cast_signed())?,
            _ => write!(out, " {value}")?,
        }
    }
    writeln!(out)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn snmp_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        group(out, "Ip", &self.ip_items())?;
        self.icmp_put(out)?;
        group(out, "Tcp", &self.tcp_items())?;
        let udp = self.udp_items();
        group(out, "Udp", &udp)?;
        group(out, "UdpLite", &udp.map(|(name, _)| (name, 0)))
    }

    fn dropped<const N: usize>(&self, reasons: [RxDrop; N]) -> u64 {
        let counts = reasons.map(|reason| self.counters.rx_drops[reason as usize]);
        counts.iter().sum()
    }

    fn ip_items(&self) -> [Item<'static>; 20] {
        let snmp = &self.counters.snmp;
        // A packet in fragments is sent as those.
        let sent = snmp.ip_out_requests + snmp.ip_forw_datagrams + snmp.ip_frag_creates;
        let headers = [RxDrop::IpInHdrErrors, RxDrop::IpInCsumErrors];
        [
            ("Forwarding", if self.config.ip_forward { 1 } else { 2 }),
            ("DefaultTTL", 64),
            ("InReceives", snmp.ip_in_receives),
            ("InHdrErrors", self.dropped(headers)),
            ("InAddrErrors", self.dropped([RxDrop::IpInAddrErrors])),
            ("ForwDatagrams", snmp.ip_forw_datagrams),
            ("InUnknownProtos", self.dropped([RxDrop::IpInUnknownProtos])),
            ("InDiscards", 0),
            ("InDelivers", snmp.ip_in_delivers),
            ("OutRequests", snmp.ip_out_requests),
            ("OutDiscards", snmp.ip_out_discards),
            ("OutNoRoutes", snmp.ip_out_no_routes),
            ("ReasmTimeout", snmp.ip_reasm_timeout),
            ("ReasmReqds", snmp.ip_reasm_reqds),
            ("ReasmOKs", snmp.ip_reasm_oks),
            ("ReasmFails", snmp.ip_reasm_fails),
            ("FragOKs", snmp.ip_frag_oks),
            ("FragFails", snmp.ip_frag_fails),
            ("FragCreates", snmp.ip_frag_creates),
            ("OutTransmits", sent - snmp.ip_frag_oks - snmp.ip_frag_fails),
        ]
    }

    fn icmp_put(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let (snmp, msg) = (&self.counters.snmp, &self.icmpmsg);
        let checksums = self.dropped([RxDrop::IcmpInCsumErrors]);
        let mut items = vec![
            ("InMsgs", snmp.icmp_in_msgs),
            ("InErrors", snmp.icmp_in_errors),
            ("InCsumErrors", checksums),
        ];
        items.extend(ICMP_TYPES.map(|(name, _, icmp_type)| (name, msg[icmp_type])));
        items.extend([
            ("OutMsgs", snmp.icmp_out_msgs),
            ("OutErrors", 0),
            ("OutRateLimitGlobal", snmp.icmp_out_rate_limit_global),
            ("OutRateLimitHost", snmp.icmp_out_rate_limit_host),
        ]);
        items.extend(ICMP_TYPES.map(|(_, name, icmp_type)| (name, msg[ICMP_OUT + icmp_type])));
        group(out, "Icmp", &items)?;
        self.icmpmsg_put(out)
    }

    /// The types that there were.
    fn icmpmsg_put(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let seen: Vec<_> = (0..)
            .zip(self.icmpmsg.iter().copied())
            .filter(|&(_, count)| count > 0)
            .map(|(at, count): (usize, u64)| {
                let way = if at < ICMP_OUT { "In" } else { "Out" };
                (format!("{way}Type{}", at % ICMP_OUT), count)
            })
            .collect();
        for line in seen.chunks(PERLINE) {
            let items: Vec<_> = line
                .iter()
                .map(|(name, count)| (name.as_str(), *count))
                .collect();
            group(out, "IcmpMsg", &items)?;
        }
        Ok(())
    }

    fn udp_items(&self) -> [Item<'static>; 9] {
        let snmp = &self.counters.snmp;
        let (full, checksums) = (
            self.dropped([RxDrop::UdpRcvbufErrors]),
            self.dropped([RxDrop::UdpInCsumErrors]),
        );
        let errors = self.dropped([RxDrop::UdpInErrors]) + full + checksums;
        [
            ("InDatagrams", snmp.udp_in_datagrams),
            ("NoPorts", self.dropped([RxDrop::UdpNoPorts])),
            ("InErrors", errors),
            ("OutDatagrams", snmp.udp_out_datagrams),
            ("RcvbufErrors", full),
            ("SndbufErrors", snmp.udp_sndbuf_errors),
            ("InCsumErrors", checksums),
            ("IgnoredMulti", self.dropped([RxDrop::UdpIgnoredMulti])),
            // There is no limit to what all sockets have (`udp_mem`).
            ("MemErrors", 0),
        ]
    }
    fn tcp_items(&self) -> [Item<'static>; 15] {
        let snmp = &self.counters.snmp;
        let checksums = self.dropped([RxDrop::TcpInCsumErrors]);
        [
            ("RtoAlgorithm", 1),
            ("RtoMin", 200),
            ("RtoMax", 120_000),
            ("MaxConn", u64::MAX),
            ("ActiveOpens", snmp.tcp_active_opens),
            ("PassiveOpens", snmp.tcp_passive_opens),
            ("AttemptFails", snmp.tcp_attempt_fails),
            ("EstabResets", snmp.tcp_estab_resets),
            ("CurrEstab", snmp.tcp_curr_estab),
            ("InSegs", snmp.tcp_in_segs),
            ("OutSegs", snmp.tcp_out_segs),
            ("RetransSegs", snmp.tcp_retrans_segs),
            ("InErrs", self.dropped([RxDrop::TcpInErrs]) + checksums),
            ("OutRsts", snmp.tcp_out_rsts),
            ("InCsumErrors", checksums),
        ]
    }
}
