//! ICMP (Linux: `net/ipv4/icmp.c`, RFC 792, RFC 1122 3.2.2).
//!
//! In: messages for this host, and packets that it cannot deliver. Out: echo replies, and errors back
//! to who sent the packet. Errors about datagrams of connected sockets, and about connections that begin, end there; echo replies go to
//! ping sockets; what asks for nothing is consumed. Dropped and counted: short messages, bad checksums,
//! unknown types, echo requests to broadcast addresses.

use super::checksum::{csum_fold, csum_good, csum_partial};
use super::ip_input::{IP_OFFSET, IPHDR_LEN, Iphdr, inner_header};
use super::ip_options::ReplyOptions;
use super::ip_output::Flow;
use super::ip_sockglue::IpPmtudisc;
use super::netdevice::IFF_LOOPBACK;
use super::route::{RtType, Rtable};
use super::skbuff::{IpSummed, PktType, SkBuff, Skb};
use super::sock::Proto;
use super::stats::RxDrop;
use super::tcp::IPPROTO_TCP;
use super::udp::IPPROTO_UDP;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

pub(super) const IPPROTO_ICMP: u8 = 1;
/// Where the counts of sent messages begin.
pub(super) const ICMP_OUT: usize = 0x100;
/// Bytes of a header.
pub(super) const ICMPHDR_LEN: usize = 8;
pub(super) const ICMP_ECHOREPLY: u8 = 0;
pub(super) const ICMP_DEST_UNREACH: u8 = 3;
pub(super) const ICMP_ECHO: u8 = 8;
pub(super) const ICMP_TIME_EXCEEDED: u8 = 11;
pub(super) const ICMP_PARAMETERPROB: u8 = 12;
const ICMP_TIMESTAMP: u8 = 13;
const ICMP_TIMESTAMPREPLY: u8 = 14;
const ICMP_SOURCE_QUENCH: u8 = 4;
const ICMP_REDIRECT: u8 = 5;
/// Questions about interfaces, and answers (RFC 8335).
const ICMP_EXT_ECHO: u8 = 42;
const ICMP_EXT_ECHOREPLY: u8 = 43;
/// The highest type that is known but for those.
pub(super) const NR_ICMP_TYPES: u8 = 18;
pub(super) const ICMP_NET_UNREACH: u8 = 0;
pub(super) const ICMP_HOST_UNREACH: u8 = 1;
pub(super) const ICMP_PROT_UNREACH: u8 = 2;
pub(super) const ICMP_PORT_UNREACH: u8 = 3;
pub(super) const ICMP_FRAG_NEEDED: u8 = 4;
pub(super) const ICMP_EXC_TTL: u8 = 0;
pub(super) const ICMP_EXC_FRAGTIME: u8 = 1;
/// The highest code of an unreachable destination that is known.
const NR_ICMP_UNREACH: u8 = 15;
/// An error is no longer than this with its IP header, whatever the MTU (RFC 1812, 4.3.2.3).
const MAX_ERROR_LEN: usize = 576;
/// Errors keep the delay, throughput and reliability bits, and have this precedence.
const IPTOS_TOS_MASK: u8 = 0x1e;
const IPTOS_PREC_INTERNETCONTROL: u8 = 0xc0;

/// What an unreachable destination means by its code, and whether for good (`icmp_err_convert`).
const ICMP_ERR_CONVERT: [(Errno, bool); 16] = [
    (Errno::ENETUNREACH, false),  // ICMP_NET_UNREACH
    (Errno::EHOSTUNREACH, false), // ICMP_HOST_UNREACH
    (Errno::ENOPROTOOPT, true),   // ICMP_PROT_UNREACH
    (Errno::ECONNREFUSED, true),  // ICMP_PORT_UNREACH
    (Errno::EMSGSIZE, false),     // ICMP_FRAG_NEEDED
    (Errno::EOPNOTSUPP, false),   // ICMP_SR_FAILED
    (Errno::ENETUNREACH, true),   // ICMP_NET_UNKNOWN
    (Errno::EHOSTDOWN, true),     // ICMP_HOST_UNKNOWN
    (Errno::ENONET, true),        // ICMP_HOST_ISOLATED
    (Errno::ENETUNREACH, true),   // ICMP_NET_ANO
    (Errno::EHOSTUNREACH, true),  // ICMP_HOST_ANO
    (Errno::ENETUNREACH, false),  // ICMP_NET_UNR_TOS
    (Errno::EHOSTUNREACH, false), // ICMP_HOST_UNR_TOS
    (Errno::EHOSTUNREACH, true),  // ICMP_PKT_FILTERED
    (Errno::EHOSTUNREACH, true),  // ICMP_PREC_VIOLATION
    (Errno::EHOSTUNREACH, true),  // ICMP_PREC_CUTOFF
];

/// What a message says of a packet that was not delivered.
#[derive(Debug, Clone, Copy)]
pub(super) struct IcmpError {
    icmp_type: u8,
    code: u8,
    /// The MTU of a path, or the octet that is wrong.
    pub info: u32,
    /// Who says so.
    pub offender: u32,
    /// What a socket is charged for the message.
    pub truesize: usize,
}

impl IcmpError {
    pub fn is_frag_needed(self) -> bool {
        (self.icmp_type, self.code) == (ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED)
    }

    pub fn type_and_code(self) -> (u8, u8) {
        (self.icmp_type, self.code)
    }

    /// What it means to a socket, and whether for good.
    pub fn errno(self) -> Option<(Errno, bool)> {
        match self.icmp_type {
            ICMP_DEST_UNREACH if self.is_frag_needed() => Some((Errno::EMSGSIZE, true)),
            ICMP_DEST_UNREACH => ICMP_ERR_CONVERT.get(usize::from(self.code)).copied(),
            ICMP_TIME_EXCEEDED => Some((Errno::EHOSTUNREACH, false)),
            ICMP_PARAMETERPROB => Some((Errno::EPROTO, true)),
            _ => None,
        }
    }
}

/// Whether a packet is an error of ICMP, or of a type that may be one.
fn is_icmp_error(iph: &Iphdr, message: &[u8]) -> bool {
    iph.protocol == IPPROTO_ICMP
        && !matches!(
            message.first(),
            Some(&(ICMP_ECHOREPLY | ICMP_ECHO | ICMP_TIMESTAMP..=NR_ICMP_TYPES))
        )
}

/// Whether the bytes begin with an IP header that may be whole.
fn is_header(bytes: &[u8]) -> bool {
    bytes.len() >= IPHDR_LEN && bytes[0] & 0xf >= 5
}

/// Writes the checksum of a message.
pub(super) fn icmp_checksum(message: &mut [u8]) {
    message[2..4].fill(0);
    let check = csum_fold(csum_partial(message, 0));
    message[2..4].copy_from_slice(&check);
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn icmp_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("icmp_rcv");
        self.counters.snmp.icmp_in_msgs += 1;
        if skb.ip_summed == IpSummed::None && !csum_good(csum_partial(skb.data(), 0)) {
            self.counters.snmp.icmp_in_errors += 1;
            return self.drop_rx(skb, RxDrop::IcmpInCsumErrors);
        }
        let Some(&[icmp_type, code, ..]) = skb.data().first_chunk::<ICMPHDR_LEN>() else {
            self.counters.snmp.icmp_in_errors += 1;
            return self.drop_rx(skb, RxDrop::IcmpInErrors);
        };
        self.icmpmsg[usize::from(icmp_type)] += 1;
        match icmp_type {
            // (`icmp_echo_enable_probe` is off: nobody is told of this host's interfaces.)
            ICMP_EXT_ECHO => {
                self.counters.consumed += 1;
                return self.consume_skb(skb);
            }
            ICMP_EXT_ECHOREPLY => return self.ping_rcv(skb),
            _ => {}
        }
        if icmp_type > NR_ICMP_TYPES || skb.rt_type().is_of_many() {
            self.counters.snmp.icmp_in_errors += 1;
            return self.drop_rx(skb, RxDrop::IcmpInErrors);
        }
        match icmp_type {
            ICMP_ECHO => self.icmp_echo(&skb),
            ICMP_TIMESTAMP => self.icmp_timestamp(&skb),
            ICMP_ECHOREPLY => return self.ping_rcv(skb),
            // (A redirect is only counted: the routes are the administrator's.)
            ICMP_DEST_UNREACH | ICMP_SOURCE_QUENCH | ICMP_REDIRECT | ICMP_TIME_EXCEEDED
            | ICMP_PARAMETERPROB
                if !self.icmp_unreach(&skb, icmp_type, code) =>
            {
                return self.drop_rx(skb, RxDrop::IcmpInErrors);
            }
            // Nothing asks for an answer that this host gives (`icmp_discard`).
            _ => {}
        }
        self.counters.consumed += 1;
        self.consume_skb(skb);
    }

    /// Sends the request back as a reply.
    fn icmp_echo(&mut self, request: &SkBuff) {
        let _stage = self.stage("icmp_echo");
        self.icmp_reply(request, request.data(), ICMP_ECHOREPLY);
    }

    /// Sends the time back at which the request came, and (the same) at which the reply went; it has when it was asked.
    fn icmp_timestamp(&mut self, request: &SkBuff) {
        let _stage = self.stage("icmp_timestamp");
        let Some(asked) = request.data().first_chunk::<{ ICMPHDR_LEN + 4 }>() else {
            self.counters.snmp.icmp_in_errors += 1;
            return;
        };
        let now = self.inet_current_timestamp().to_be_bytes();
        let mut message = [0; ICMPHDR_LEN + 12];
        message[..asked.len()].copy_from_slice(asked);
        message[1] = 0;
        message[12..16].copy_from_slice(&now);
        message[16..].copy_from_slice(&now);
        self.icmp_reply(request, &message, ICMP_TIMESTAMPREPLY);
    }

    /// Answers a request with a message of `icmp_type`, of whose header the rest is right.
    fn icmp_reply(&mut self, request: &SkBuff, message: &[u8], icmp_type: u8) {
        let _stage = self.stage("icmp_reply");
        let Some(options) = self.ip_options_echo(request) else {
            return;
        };
        let (saddr, daddr) = (request.ip.daddr, request.ip.saddr);
        let Ok(rt) = self.ip_route_output_flow(daddr) else {
            return;
        };
        let ends = (saddr, daddr);
        self.icmp_push_reply(rt, ends, request.ip.tos, &options, message, |message| {
            message[0] = icmp_type;
        });
    }

    /// Sends a message, with its header as `finish` leaves it and the right checksum.
    fn icmp_push_reply(
        &mut self,
        rt: Rtable,
        (saddr, daddr): (u32, u32),
        tos: u8,
        options: &ReplyOptions,
        message: &[u8],
        finish: impl FnOnce(&mut [u8]),
    ) {
        let _stage = self.stage("icmp_push_reply");
        let flow = Flow {
            saddr,
            daddr,
            protocol: IPPROTO_ICMP,
            tos,
            df: false,
            id: self.ip_select_ident(),
        };
        let mut skb = self.ip_append_data(message, None);
        finish(skb.data_mut());
        icmp_checksum(skb.data_mut());
        // Nobody waits for it: what the filter makes of it is counted.
        let _ = self.ip_push_pending_frames(skb, rt, &flow, options);
    }

    pub(super) fn icmp_out_count(&mut self, icmp_type: u8) {
        let _stage = self.stage("icmp_out_count");
        self.counters.snmp.icmp_out_msgs += 1;
        self.icmpmsg[ICMP_OUT + usize::from(icmp_type)] += 1;
    }

    /// Tells the sender of a packet why it was not delivered, with the beginning of it; `info` is the second word of the header.
    /// Nobody is told of packets that were sent to many, of fragments but the first, and of errors (RFC 1122, 3.2.2),
    /// nor of more than the limits allow.
    pub(super) fn icmp_send(&mut self, skb_in: &SkBuff, icmp_type: u8, code: u8, info: u32) {
        let _stage = self.stage("__icmp_send");
        let packet = skb_in.network();
        // In the packet, since of one that this host sends nothing else is known.
        let Some((iph, message)) = inner_header(packet) else {
            return;
        };
        if skb_in.pkt_type != PktType::Host
            || skb_in.rt_type().is_of_many()
            || iph.frag_off & IP_OFFSET != 0
            || is_icmp_error(&iph, message)
        {
            return;
        }
        let limited = self.icmp_is_limited(icmp_type, code);
        let looped = self.netdevs[skb_in.dev].flags & IFF_LOOPBACK != 0;
        if limited && !looped && !self.icmp_global_allow() {
            return;
        }
        let Some(options) = self.ip_options_echo(skb_in) else {
            return;
        };
        let daddr = iph.saddr;
        let Ok(rt) = self.icmp_route_lookup(daddr) else {
            return;
        };
        let saddr = match skb_in.rt_type() {
            RtType::Local => iph.daddr,
            // This host was not meant: it answers for itself.
            _ => rt.saddr,
        };
        if limited && !looped && !self.icmp_xrlim_allow(daddr, rt.dev) {
            return;
        }
        let room = self
            .dst_mtu(&rt)
            .min(MAX_ERROR_LEN)
            .saturating_sub(IPHDR_LEN + options.optlen());
        let len = (ICMPHDR_LEN + packet.len()).min(room);
        let mut message = [0; MAX_ERROR_LEN];
        (message[0], message[1]) = (icmp_type, code);
        message[4..ICMPHDR_LEN].copy_from_slice(&info.to_be_bytes());
        if let Some(quoted) = message.get_mut(ICMPHDR_LEN..len) {
            quoted.copy_from_slice(&packet[..quoted.len()]);
        }
        let tos = iph.tos & IPTOS_TOS_MASK | IPTOS_PREC_INTERNETCONTROL;
        self.changed("icmphdr", || format!("type {icmp_type}, code {code}"));
        let message = &message[..len.max(ICMPHDR_LEN)];
        self.icmp_push_reply(rt, (saddr, daddr), tos, &options, message, |_| {});
    }

    fn icmp_route_lookup(&self, daddr: u32) -> Result<Rtable, Errno> {
        let _stage = self.stage("icmp_route_lookup");
        self.ip_route_output_key_hash(daddr)
    }

    /// A packet of ours was not delivered: who sent it is told. Whether the message says which packet.
    fn icmp_unreach(&mut self, skb: &SkBuff, icmp_type: u8, code: u8) -> bool {
        let _stage = self.stage("icmp_unreach");
        let message = skb.data();
        let word = message.get(4..8).map_or(0, |word| {
            u32::from_be_bytes([word[0], word[1], word[2], word[3]])
        });
        let Some(quoted) = message
            .get(ICMPHDR_LEN..)
            .filter(|quoted| is_header(quoted))
        else {
            self.counters.snmp.icmp_in_errors += 1;
            return false;
        };
        let info = match icmp_type {
            ICMP_DEST_UNREACH if code > NR_ICMP_UNREACH => return true,
            ICMP_DEST_UNREACH if code == ICMP_FRAG_NEEDED => word & 0xffff,
            ICMP_TIME_EXCEEDED if code == ICMP_EXC_FRAGTIME => return true,
            ICMP_PARAMETERPROB => word >> 24,
            _ => 0,
        };
        let error = IcmpError {
            icmp_type,
            code,
            info,
            offender: skb.ip.saddr,
            truesize: skb.truesize,
        };
        self.icmp_socket_deliver(quoted, error);
        true
    }

    /// To whoever sent the packet that came back.
    fn icmp_socket_deliver(&mut self, quoted: &[u8], error: IcmpError) {
        let Some((iph, rest)) = inner_header(quoted).filter(|(_, rest)| rest.len() >= 8) else {
            self.counters.snmp.icmp_in_errors += 1;
            return;
        };
        self.raw_icmp_error(&iph, error, quoted);
        match iph.protocol {
            IPPROTO_UDP => self.udp_err(&iph, rest, error),
            IPPROTO_TCP => self.tcp_v4_err(&iph, rest, error),
            IPPROTO_ICMP => self.icmp_err(&iph, rest, error),
            _ => {}
        }
    }

    /// A message of ours was not delivered.
    fn icmp_err(&mut self, iph: &Iphdr, quoted: &[u8], error: IcmpError) {
        if quoted[0] != ICMP_ECHOREPLY {
            return self.ping_err(iph, quoted, error);
        }
        if error.is_frag_needed() {
            // Nobody but the route has to know of answers that were too long.
            self.ip_rt_update_pmtu(iph.daddr, error.info as u16);
        }
    }

    /// Tells a socket what became of a packet that it sent to `to`, of which `payload` came back, unless it is of no use
    /// to it.
    pub(super) fn sock_icmp_error(
        &mut self,
        at: usize,
        to: (u32, u16),
        error: IcmpError,
        payload: &[u8],
    ) {
        let Some(sk) = self.socks.get(at) else {
            return;
        };
        let (pmtudisc, connected) = (sk.pmtudisc, sk.inet_daddr != 0);
        let (keeps, raw) = (sk.errors.wanted, sk.sk_prot == Proto::Raw);
        if error.is_frag_needed() && pmtudisc.accepts_pmtu() {
            self.ip_rt_update_pmtu(to.0, error.info as u16);
        }
        let Some((errno, mut fatal)) = error.errno() else {
            return;
        };
        if error.is_frag_needed() && pmtudisc == IpPmtudisc::Dont {
            // Its packets may be fragmented: a raw socket hears of it if it asks, others do not.
            if !raw {
                return;
            }
            fatal = false;
        }
        if keeps {
            self.ip_icmp_error(at, (error, errno), to, payload);
        }
        // What may pass is not worth telling who does not ask.
        if keeps || fatal && connected {
            self.sk_error_report(at, errno);
        }
    }
}
