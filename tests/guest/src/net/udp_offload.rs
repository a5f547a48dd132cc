//! Datagrams that are merged (Linux: `net/ipv4/udp_offload.c`), for a socket that asked for it.
//!
//! In: datagrams behind a sound IP header. Out: which held packet is complete, with or without this one. Merged are
//! datagrams between the same ports that have a checksum and are as long as the first; a shorter one is the last, and
//! so is the 64th.

use super::checksum::csum_fold_raw;
use super::gro::{Held, NapiGroCb, UdpGro, half, pseudo, word};
use super::ip_input::IPHDR_LEN;
use super::trace::Span;
use super::udp::UDPHDR_LEN;
use crate::virtio_net::gso::SKB_GSO_UDP_L4;

/// Where the header begins, from the IP header on.
const UH: usize = IPHDR_LEN;
const LEN: usize = UH + 4;
const CHECK: usize = 6;
/// Most datagrams in one (`UDP_GRO_CNT_MAX`).
const CNT_MAX: u16 = 64;

pub(super) fn udp4_gro_receive(
    list: &mut [Held],
    cb: &mut NapiGroCb,
    wants: &impl UdpGro,
    stage: impl Fn(&'static str) -> Span + Copy,
) -> Option<usize> {
    let packet = cb.data();
    if packet.len() < UH + UDPHDR_LEN {
        cb.flush = true;
        return None;
    }
    let check = half(packet, UH + CHECK);
    let from = (word(packet, 12), half(packet, UH));
    let to = (word(packet, 16), half(packet, UH + 2));
    if !cb.flush && check != 0 && !cb.checksum_validate() {
        cb.flush = true;
        return None;
    }
    let _stage = stage("udp_gro_receive");
    if !wants.asked(from, to) {
        cb.flush = true;
        return None;
    }
    udp_gro_receive_segment(list, cb, stage)
}

fn udp_gro_receive_segment(
    list: &mut [Held],
    cb: &mut NapiGroCb,
    stage: impl Fn(&'static str) -> Span + Copy,
) -> Option<usize> {
    let packet = cb.data();
    let ulen = half(packet, LEN);
    // One without a checksum could not be told from the others again; a padded one is not worth it.
    let plain = usize::from(ulen) > UDPHDR_LEN && usize::from(ulen) == packet.len() - UH;
    if half(packet, UH + CHECK) == 0 || !plain {
        cb.flush = true;
        return None;
    }
    cb.pull(UH + UDPHDR_LEN);
    for (at, held) in list.iter_mut().enumerate().rev() {
        held.same_flow &= word(held.skb.data(), UH) == word(cb.data(), UH);
        if !held.same_flow {
            continue;
        }
        let ulen2 = half(held.skb.data(), LEN);
        let parts = ulen > ulen2 || held.inet_gro_flush(cb.data());
        let complete =
            parts || !held.skb_gro_receive(cb, stage) || ulen != ulen2 || held.count >= CNT_MAX;
        return complete.then_some(at);
    }
    None
}

/// Writes the header of what several datagrams became, `len` bytes with IP's header; where the checksum is, and `SKB_GSO_*`.
pub(super) fn udp4_gro_complete(packet: &mut [u8], len: usize) -> (u16, u32) {
    let ulen = len - UH;
    let check = csum_fold_raw(pseudo(packet, ulen)).to_ne_bytes();
    packet[LEN..LEN + 2].copy_from_slice(&(ulen as u16).to_be_bytes());
    packet[UH + CHECK..UH + UDPHDR_LEN].copy_from_slice(&check);
    (CHECK as u16, SKB_GSO_UDP_L4)
}
