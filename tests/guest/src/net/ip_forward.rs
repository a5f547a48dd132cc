//! IP, packets for other hosts (Linux: `net/ipv4/ip_forward.c`, RFC 1812).
//!
//! In: packets whose route leads to another host, where `ip_forward` is on. Out: the same to the device of that route,
//! with a hop less to live. Dropped and counted: packets that have no hop left, which their senders are told (time
//! exceeded); those that are too long for the device and not to be fragmented (fragmentation needed, with the MTU);
//! what the packet filter drops; and what was sent to many on the link. Nobody is redirected to a better gateway.
//! Where options record this host's address, it is that of the device by which the packet leaves.

use super::checksum::{csum_fold, csum_partial};
use super::gso::skb_gso_network_seglen;
use super::icmp::{ICMP_DEST_UNREACH, ICMP_EXC_TTL, ICMP_FRAG_NEEDED, ICMP_TIME_EXCEEDED};
use super::ip_input::{IP_DF, IPHDR_LEN};
use super::netfilter::NfHook;
use super::route::Rtable;
use super::skbuff::{PktType, SkBuff, Skb};
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Where time to live and checksum are in a header.
const TTL: usize = 8;
const CHECK: usize = 10;

/// Takes a hop off what a packet has left, and mends the checksum (`ip_decrease_ttl`).
fn ip_decrease_ttl(iph: &mut [u8]) {
    iph[TTL] -= 1;
    iph[CHECK..CHECK + 2].fill(0);
    let check = csum_fold(csum_partial(iph, 0));
    iph[CHECK..CHECK + 2].copy_from_slice(&check);
}

/// The longest packet that goes on of this one: itself, or one of those that it stands for.
fn network_len(skb: &SkBuff) -> usize {
    match skb.gso_size {
        0 => skb.len(),
        _ => skb.len().min(skb_gso_network_seglen(skb)),
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    #[cold]
    pub(super) fn ip_forward(&mut self, mut skb: Skb, rt: Rtable) {
        let _stage = self.stage("ip_forward");
        if skb.pkt_type != PktType::Host {
            return self.drop_rx(skb, RxDrop::IpInDiscards);
        }
        let hdr_len = skb.ip.hdr_len();
        let ttl = skb.data()[TTL];
        if ttl <= 1 {
            self.icmp_send(&skb, ICMP_TIME_EXCEEDED, ICMP_EXC_TTL, 0);
            return self.drop_rx(skb, RxDrop::IpInHdrErrors);
        }
        self.counters.snmp.ip_forw_datagrams += 1;
        let mtu = self.mtu(rt.dev);
        if network_len(&skb) > mtu && skb.ip.frag_off & IP_DF != 0 {
            self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, mtu as u32);
            return self.drop_rx(skb, RxDrop::IpForwFragFails);
        }
        ip_decrease_ttl(&mut skb.data_mut()[..hdr_len]);
        self.changed("ttl", || format!("{ttl} -> {}", ttl - 1));
        if !self.nf_hook(NfHook::Forward, &skb) {
            return self.drop_rx(skb, RxDrop::NetfilterDrop);
        }
        self.ip_forward_finish(skb, rt);
    }

    fn ip_forward_finish(&mut self, mut skb: Skb, rt: Rtable) {
        let _stage = self.stage("ip_forward_finish");
        if skb.ip.hdr_len() > IPHDR_LEN {
            self.ip_forward_options(&mut skb, rt.dev, rt.next_hop);
        }
        self.counters.forwarded += 1;
        // Nobody waits for it: what becomes of it is counted.
        let _ = self.ip_output(skb, rt);
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum::csum_good;
    use super::*;

    #[test]
    fn a_hop_less_keeps_the_checksum_right() {
        let mut iph = [
            0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 77, 0, 1, 192, 168, 9, 2,
        ];
        let check = csum_fold(csum_partial(&iph, 0));
        iph[CHECK..CHECK + 2].copy_from_slice(&check);
        for ttl in (1..64).rev() {
            ip_decrease_ttl(&mut iph);
            assert_eq!(iph[TTL], ttl);
            assert!(csum_good(csum_partial(&iph, 0)), "{ttl}");
        }
    }
}
