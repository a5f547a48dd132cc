//! Packets put together again from their fragments (Linux: `net/ipv4/ip_fragment.c`, RFC 791, RFC 815).
//!
//! In: fragments for this host. Out: the packet, when its last missing fragment comes, with the header of its first one.
//! Dropped and counted, each fragment on its own: duplicates; all of a packet whose fragments overlap or contradict each
//! other (RFC 5722), are marked by some and not by others as fit for congestion marks (RFC 3168, 5.3), or would be too
//! long together; what waits longer than `ipfrag_time`, of which the sender is told if the first fragment is there; what
//! comes so late that its identification may have been used again; and what there is no memory for.

use super::icmp::{ICMP_EXC_FRAGTIME, ICMP_TIME_EXCEEDED};
use super::inet_ecn::{INET_ECN_CE, INET_ECN_MASK};
use super::inet_fragment::{FragKey, Frags, Refused};
use super::ip_input::{IP_MF, IP_OFFSET};
use super::ip_output::ip_send_check;
use super::skbuff::{SkBuff, Skb};
use super::stats::RxDrop;
use super::sysctl_net_ipv4::nanos;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// The values of a type of service's bits that tell of congestion, as a set (`IPFRAG_ECN_*`).
const IPFRAG_ECN_NOT_ECT: u8 = 1;
const IPFRAG_ECN_CE: u8 = 1 << INET_ECN_CE;

/// What a packet says of congestion whose fragments say all of `set`; `None` where they contradict each other
/// (`ip_frag_ecn_table`).
pub(super) fn ip_frag_ecn(set: u8) -> Option<u8> {
    if set & IPFRAG_ECN_NOT_ECT != 0 && set != IPFRAG_ECN_NOT_ECT {
        return None;
    }
    // That of one fragment is that of all, unless some have it.
    let marked = set & IPFRAG_ECN_CE != 0 && set != IPFRAG_ECN_CE;
    Some(if marked { INET_ECN_CE } else { 0 })
}

/// Which packet a fragment is of; its data begins with its IP header.
fn frag_key(skb: &SkBuff) -> FragKey {
    let id = skb
        .data()
        .get(4..6)
        .map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
    FragKey {
        saddr: skb.ip.saddr.into(),
        daddr: skb.ip.daddr.into(),
        id: id.into(),
        protocol: skb.ip.protocol,
        iif: 0,
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Takes a fragment; the packet, if it was the last one missing.
    #[cold]
    pub(super) fn ip_defrag(&mut self, skb: Skb) -> Option<Skb> {
        let _stage = self.stage("ip_defrag");
        self.counters.snmp.ip_reasm_reqds += 1;
        match self.inet_frag_find(&skb) {
            Some(at) => self.ip_frag_queue(at, skb),
            None => {
                self.counters.snmp.ip_reasm_fails += 1;
                self.drop_rx(skb, RxDrop::IpReasmFails);
                None
            }
        }
    }

    /// The fragment's queue; `None` when there is no memory for another fragment.
    fn inet_frag_find(&mut self, skb: &SkBuff) -> Option<usize> {
        let _stage = self.stage("inet_frag_find");
        if self.frags.mem() > self.config.ipv4.ipfrag_high_thresh {
            return None;
        }
        Some(
            self.frags
                .find_or_create(frag_key(skb), self.frag_expires()),
        )
    }

    fn frag_expires(&self) -> u64 {
        let wait = nanos(self.config.ipv4.ipfrag_time);
        self.machine.now().saturating_add(wait)
    }

    fn ip_frag_queue(&mut self, at: usize, mut skb: Skb) -> Option<Skb> {
        let distance = self.frags.distance(at);
        let max_dist = self.config.ipv4.ipfrag_max_dist;
        if max_dist > 0 && distance > max_dist && !self.frags.queue(at).fragments.is_empty() {
            self.ip_frag_reinit(at);
        }
        let ihl = usize::from(skb.ip.hdr_len);
        let more = skb.ip.frag_off & IP_MF != 0;
        let offset = usize::from(skb.ip.frag_off & IP_OFFSET) * 8;
        let mut end = offset + skb.len().saturating_sub(ihl);
        if more {
            end &= !7;
        }
        let queue = self.frags.queue(at);
        if !queue.agrees(end, more) || end == offset {
            self.ip_frag_discard(at, skb);
            return None;
        }
        let inserting = self.stage("inet_frag_queue_insert");
        let inserted = self.frags.queue(at).insert(offset, end);
        drop(inserting);
        match inserted {
            Ok(()) => {}
            Err(Refused::Duplicate) => {
                self.drop_rx(skb, RxDrop::DupFrag);
                return None;
            }
            Err(Refused::Overlap) => {
                self.counters.snmp.ip_reasm_overlaps += 1;
                self.ip_frag_discard(at, skb);
                return None;
            }
        }
        skb.pull(ihl);
        skb.trim(end - offset);
        self.frags.queue(at).ecn |= 1 << (skb.ip.tos & INET_ECN_MASK);
        let complete = self.inet_frag_add(Frags::Ip, at, offset, skb);
        if complete {
            self.ip_frag_reasm(at)
        } else {
            None
        }
    }

    /// So much of its sender came meanwhile that what is there may be of an older packet: it begins anew.
    fn ip_frag_reinit(&mut self, at: usize) {
        self.counters.snmp.ip_reasm_fails += 1;
        self.inet_frag_rbtree_purge(Frags::Ip, at, RxDrop::FragTooFar);
        let expires = self.frag_expires();
        self.frags.set_timer(at, expires);
    }

    /// A fragment that does not go with the others, and with it all of them.
    fn ip_frag_discard(&mut self, at: usize, skb: Skb) {
        self.drop_rx(skb, RxDrop::IpReasmFails);
        self.inet_frag_kill(Frags::Ip, at);
        self.ip_frag_fail(at);
    }

    /// What was killed because it is no packet.
    fn ip_frag_fail(&mut self, at: usize) {
        self.counters.snmp.ip_reasm_fails += 1;
        self.inet_frag_destroy(Frags::Ip, at, RxDrop::IpReasmFails);
    }

    /// All fragments are there: they become one packet again.
    fn ip_frag_reasm(&mut self, at: usize) -> Option<Skb> {
        self.inet_frag_kill(Frags::Ip, at);
        let queue = self.frags.queue(at);
        let len = queue.len;
        let Some(ecn) = ip_frag_ecn(queue.ecn) else {
            self.ip_frag_fail(at);
            return None;
        };
        self.inet_frag_reasm_prepare(Frags::Ip, at);
        let head = self.frags.queue(at).fragments.first();
        let head_len = head.map_or(0, |(_, head)| usize::from(head.ip.hdr_len));
        if head_len + len > usize::from(u16::MAX) {
            self.ip_frag_fail(at);
            return None;
        }
        let mut skb = self.inet_frag_reasm_finish(Frags::Ip, at, head_len);
        skb.ip.frag_off = 0;
        skb.ip.tos |= ecn;
        let (tot_len, tos) = (skb.len() as u16, skb.ip.tos);
        let iph = &mut skb.data_mut()[..head_len];
        iph[1] = tos;
        iph[2..4].copy_from_slice(&tot_len.to_be_bytes());
        iph[6..8].fill(0);
        ip_send_check(iph);
        self.changed("iphdr", || format!("{tot_len} bytes, of fragments"));
        self.counters.snmp.ip_reasm_oks += 1;
        // The fragments are in it: all but one have ended.
        self.inet_frag_destroy_empty(Frags::Ip, at);
        Some(skb)
    }

    /// The timer's soft interrupt: packets whose fragments did not all come in time (`ip_expire`).
    pub(super) fn ip_expire(&mut self) {
        let now = self.machine.now();
        if self.frags.next_timer().is_none_or(|timer| timer > now) {
            return;
        }
        for at in 0..self.frags.places() {
            if !self.frags.is_expired(at, now) {
                continue;
            }
            let _stage = self.stage("ip_expire");
            self.inet_frag_kill(Frags::Ip, at);
            self.counters.snmp.ip_reasm_fails += 1;
            self.counters.snmp.ip_reasm_timeout += 1;
            let queue = self.frags.queue(at);
            if let Some(first) = queue.fragments.iter().position(|(offset, _)| *offset == 0) {
                // Lent for the time of the message.
                let fragments = std::mem::take(&mut queue.fragments);
                self.icmp_send(
                    &fragments[first].1,
                    ICMP_TIME_EXCEEDED,
                    ICMP_EXC_FRAGTIME,
                    0,
                );
                self.frags.queue(at).fragments = fragments;
            }
            self.inet_frag_destroy(Frags::Ip, at, RxDrop::FragReasmTimeout);
        }
        self.frags.restart_timer();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn congestion_is_told_if_one_fragment_tells() {
        let set = |values: &[u8]| values.iter().fold(0, |set, value| set | 1 << value);
        for (values, want) in [
            (&[0][..], Some(0)),
            (&[1], Some(0)),
            (&[2, 1], Some(0)),
            (&[3], Some(0)),
            (&[3, 2], Some(3)),
            (&[3, 1], Some(3)),
            (&[3, 2, 1], Some(3)),
            (&[0, 1], None),
            (&[0, 2], None),
            (&[0, 3], None),
            (&[0, 1, 2, 3], None),
        ] {
            assert_eq!(ip_frag_ecn(set(values)), want, "{values:?}");
        }
    }
}
