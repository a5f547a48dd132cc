//! IPv6 packets put together again from their fragments (Linux: `net/ipv6/reassembly.c`; RFC 8200 4.5, RFC 5722).
//!
//! In: fragments for this host. Out: the packet, when its last missing fragment comes, with the headers of its first one
//! but the fragment's. Dropped and counted, each fragment on its own: duplicates; all of a packet whose fragments overlap
//! or contradict each other, or would be too long together; fragments that end at no multiple of 8 octets though others
//! follow, and first ones without all headers, of which the sender is told; what waits longer than `ip6frag_time`, of
//! which he is told if the first fragment is there; and what there is no memory for.

use super::icmp::ICMPHDR_LEN;
use super::icmp6::{ICMPV6_EXC_FRAGTIME, ICMPV6_HDR_FIELD, ICMPV6_HDR_INCOMP, ICMPV6_TIME_EXCEED};
use super::inet_ecn::INET_ECN_MASK;
use super::inet_fragment::{FragKey, Frags, Refused};
use super::ip_fragment::ip_frag_ecn;
use super::ip6_output::{FRAG_HDR_LEN, IP6_MF};
use super::ipv6::{
    IPPROTO_ICMPV6, IPV6HDR_LEN, NEXTHDR, NEXTHDR_FRAGMENT, PAYLOAD_LEN, needs_scope_id,
    skip_exthdr,
};
use super::skbuff::Skb;
use super::stats::{Mib6, RxDrop};
use super::sysctl_net_ipv4::nanos;
use super::tcp::{IPPROTO_TCP, TCPHDR_LEN};
use super::udp::{IPPROTO_UDP, UDPHDR_LEN};
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Whether a first fragment has not all headers, that of its transport among them (`ipv6frag_thdr_truncated`); its own is
/// at `at`.
fn thdr_truncated(packet: &[u8], at: usize) -> bool {
    let Some(upper) = skip_exthdr(packet, at, NEXTHDR_FRAGMENT) else {
        return false;
    };
    let len = match upper.protocol {
        IPPROTO_TCP => TCPHDR_LEN,
        IPPROTO_UDP => UDPHDR_LEN,
        IPPROTO_ICMPV6 => ICMPHDR_LEN,
        _ => 1,
    };
    upper.frag_off & !7 == 0 && upper.at + len > packet.len()
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Takes a fragment; the packet, if it was the last one missing.
    #[cold]
    pub(super) fn ipv6_frag_rcv(&mut self, mut skb: Skb) -> Option<Skb> {
        let _stage = self.stage("ipv6_frag_rcv");
        let at = skb.ip6.thoff();
        let fields = skb.next_header().first_chunk::<FRAG_HDR_LEN>().copied();
        if !skb.ip6.fragmented {
            self.inc6(Mib6::Ip6ReasmReqds);
        }
        let sound = !skb.ip6.fragmented && skb.ip6.payload_len != 0;
        let Some([_, _, o0, o1, i0, i1, i2, i3]) = fields.filter(|_| sound) else {
            self.inc6(Mib6::Ip6InHdrErrors);
            self.icmpv6_param_prob(skb, ICMPV6_HDR_FIELD, at);
            return None;
        };
        let frag_off = u16::from_be_bytes([o0, o1]);
        if frag_off & !7 == 0 && frag_off & IP6_MF == 0 {
            // It is all there is.
            self.inc6(Mib6::Ip6ReasmOKs);
            (skb.ip6.nhoff, skb.ip6.thoff) = (at as u32, (at + FRAG_HDR_LEN) as u32);
            skb.ip6.fragmented = true;
            return Some(skb);
        }
        if thdr_truncated(skb.network(), at) {
            self.inc6(Mib6::Ip6InHdrErrors);
            self.icmpv6_param_prob(skb, ICMPV6_HDR_INCOMP, 0);
            return None;
        }
        let key = FragKey {
            saddr: skb.ip6.saddr,
            daddr: skb.ip6.daddr,
            id: u32::from_be_bytes([i0, i1, i2, i3]),
            protocol: 0,
            iif: if needs_scope_id(skb.ip6.daddr) {
                skb.dev.into()
            } else {
                0
            },
        };
        match self.fq_find(key) {
            Some(queue) => self.ip6_frag_queue(queue, skb, frag_off),
            None => {
                self.inc6(Mib6::Ip6ReasmFails);
                self.drop_rx(skb, RxDrop::Ip6ReasmFails);
                None
            }
        }
    }

    /// The fragment's queue; `None` when there is no memory for another fragment.
    fn fq_find(&mut self, key: FragKey) -> Option<usize> {
        let _stage = self.stage("inet_frag_find");
        let ipv6 = &self.config.ipv6;
        if self.frags6.mem() > ipv6.ip6frag_high_thresh {
            return None;
        }
        let wait = nanos(ipv6.ip6frag_time);
        let expires = self.machine.now().saturating_add(wait);
        Some(self.frags6.find_or_create(key, expires))
    }

    fn ip6_frag_queue(&mut self, at: usize, mut skb: Skb, frag_off: u16) -> Option<Skb> {
        let _stage = self.stage("ip6_frag_queue");
        let offset = usize::from(frag_off & !7);
        let more = frag_off & IP6_MF != 0;
        let data = skb.ip6.thoff() + FRAG_HDR_LEN;
        // The packet was cut off behind what its header says.
        let end = offset + skb.len() - data;
        if end > usize::from(u16::MAX) {
            let field = skb.ip6.thoff() + 2;
            self.ip6_frag_kill(at);
            self.inc6(Mib6::Ip6InHdrErrors);
            self.icmpv6_param_prob(skb, ICMPV6_HDR_FIELD, field);
            return None;
        }
        if more && !end.is_multiple_of(8) {
            self.inc6(Mib6::Ip6InHdrErrors);
            self.icmpv6_param_prob(skb, ICMPV6_HDR_FIELD, PAYLOAD_LEN);
            return None;
        }
        let queue = self.frags6.queue(at);
        if !queue.agrees(end, more) || end == offset {
            self.ip6_frag_discard(at, skb);
            return None;
        }
        let inserting = self.stage("inet_frag_queue_insert");
        let inserted = self.frags6.queue(at).insert(offset, end);
        drop(inserting);
        match inserted {
            Ok(()) => {}
            Err(Refused::Duplicate) => {
                self.drop_rx(skb, RxDrop::DupFrag);
                return None;
            }
            Err(Refused::Overlap) => {
                self.ip6_frag_discard(at, skb);
                return None;
            }
        }
        skb.pull(data);
        self.frags6.queue(at).ecn |= 1 << (skb.ip6.tclass & INET_ECN_MASK);
        if self.inet_frag_add(Frags::Ip6, at, offset, skb) {
            self.ip6_frag_reasm(at)
        } else {
            None
        }
    }

    fn ip6_frag_kill(&mut self, at: usize) {
        self.inet_frag_kill(Frags::Ip6, at);
        self.inet_frag_destroy(Frags::Ip6, at, RxDrop::Ip6ReasmFails);
    }

    /// A fragment that does not go with the others, and with it all of them.
    fn ip6_frag_discard(&mut self, at: usize, skb: Skb) {
        self.inc6(Mib6::Ip6ReasmFails);
        self.drop_rx(skb, RxDrop::Ip6ReasmFails);
        self.ip6_frag_kill(at);
    }

    /// All fragments are there: they become one packet again, without the fragment's header.
    fn ip6_frag_reasm(&mut self, at: usize) -> Option<Skb> {
        let _stage = self.stage("ip6_frag_reasm");
        self.inet_frag_kill(Frags::Ip6, at);
        self.inet_frag_reasm_prepare(Frags::Ip6, at);
        let queue = self.frags6.queue(at);
        let (len, ecn) = (queue.len, ip_frag_ecn(queue.ecn));
        let head = queue.fragments.first().map(|(_, head)| head);
        let hdr = head.map(|head| head.ip6).unwrap_or_default();
        let nexthdr = head.and_then(|head| head.network().get(hdr.thoff()).copied());
        let payload_len = u16::try_from(hdr.thoff() + len - IPV6HDR_LEN).ok();
        let (Some(ecn), Some(nexthdr), Some(payload_len)) = (ecn, nexthdr, payload_len) else {
            self.inc6(Mib6::Ip6ReasmFails);
            self.inet_frag_destroy(Frags::Ip6, at, RxDrop::Ip6ReasmFails);
            return None;
        };
        let mut skb = self.inet_frag_reasm_finish(Frags::Ip6, at, hdr.thoff());
        let packet = skb.data_mut();
        packet[hdr.nhoff()] = nexthdr;
        packet[PAYLOAD_LEN..NEXTHDR].copy_from_slice(&payload_len.to_be_bytes());
        packet[1] |= ecn << 4;
        skb.ip6 = hdr;
        skb.ip6.tclass |= ecn;
        (skb.ip6.payload_len, skb.ip6.fragmented) = (payload_len, true);
        self.changed("ipv6hdr", || format!("{payload_len} bytes, of fragments"));
        self.inc6(Mib6::Ip6ReasmOKs);
        // The fragments are in it: all but one have ended.
        self.inet_frag_destroy_empty(Frags::Ip6, at);
        Some(skb)
    }

    /// The timer's soft interrupt: packets whose fragments did not all come in time (`ip6frag_expire_frag_queue`).
    pub(super) fn ip6_frag_expire(&mut self) {
        let now = self.machine.now();
        if self.frags6.next_timer().is_none_or(|timer| timer > now) {
            return;
        }
        for at in 0..self.frags6.places() {
            if !self.frags6.is_expired(at, now) {
                continue;
            }
            let _stage = self.stage("ip6_frag_expire");
            self.inet_frag_kill(Frags::Ip6, at);
            self.inc6(Mib6::Ip6ReasmFails);
            self.inc6(Mib6::Ip6ReasmTimeout);
            let queue = self.frags6.queue(at);
            if let Some(first) = queue.fragments.iter().position(|(offset, _)| *offset == 0) {
                // Lent for the time of the message.
                let fragments = std::mem::take(&mut queue.fragments);
                let head = &fragments[first].1;
                self.icmp6_send(head, ICMPV6_TIME_EXCEED, ICMPV6_EXC_FRAGTIME, 0);
                self.frags6.queue(at).fragments = fragments;
            }
            self.inet_frag_destroy(Frags::Ip6, at, RxDrop::FragReasmTimeout);
        }
        self.frags6.restart_timer();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_fragments_have_to_have_all_headers() {
        let fragment = |nexthdr, offset, data: &[u8]| {
            let mut packet = vec![0; IPV6HDR_LEN];
            packet.extend([nexthdr, 0, 0, offset, 0, 0, 0, 1]);
            packet.extend(data);
            packet
        };
        for (nexthdr, offset, len, want) in [
            (17, 1, 8, false),
            (17, 1, 7, true),
            (17, 8, 7, false),
            (6, 1, 19, true),
            (58, 1, 8, false),
            (99, 1, 0, true),
            (99, 1, 1, false),
            (59, 1, 0, false),
        ] {
            let packet = fragment(nexthdr, offset, &vec![0; len]);
            let what = format!("{nexthdr} {offset} {len}");
            assert_eq!(thdr_truncated(&packet, IPV6HDR_LEN), want, "{what}");
        }
        let options = fragment(60, 1, &[17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3]);
        assert!(thdr_truncated(&options, IPV6HDR_LEN));
    }
}
