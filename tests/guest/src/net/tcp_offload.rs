//! TCP segments that are merged (Linux: `net/ipv4/tcp_offload.c`).
//!
//! In: segments behind a sound IP header. Out: which held packet is complete, with or without this segment. Merged is what follows on
//! in sequence, with the same ports, flags, window, acknowledgement and options, and payload no longer than that
//! of the first; one that is shorter, or says PSH or FIN, is the last.

use super::checksum::csum_fold_raw;
use super::gro::{Held, NapiGroCb, pseudo, word};
use super::ip_input::IPHDR_LEN;
use super::tcp::{
    TCP_CHECK, TCP_FLAG_CWR, TCP_FLAG_FIN, TCP_FLAG_PSH, TCP_FLAG_RST, TCP_FLAG_SYN, TCP_FLAG_URG,
    TCP_FLAGS, TCPHDR_LEN,
};
use super::trace::Span;
use crate::virtio_net::gso::{SKB_GSO_TCP_ECN, SKB_GSO_TCP_FIXEDID, SKB_GSO_TCPV4};

/// Where the header begins, from the IP header on.
const TH: usize = IPHDR_LEN;
/// Where sequence number, acknowledgement, and the word of length, flags and window are in it.
const SEQ: usize = TH + 4;
const ACK_SEQ: usize = TH + 8;
const FLAG_WORD: usize = TH + 12;

/// A flag in its word.
fn in_word(flags: u8) -> u32 {
    u32::from(flags) << 16
}

pub(super) fn tcp4_gro_receive(
    list: &mut [Held],
    cb: &mut NapiGroCb,
    stage: impl Fn(&'static str) -> Span + Copy,
) -> Option<usize> {
    let _stage = stage("tcp4_gro_receive");
    if !cb.flush && !cb.checksum_validate() {
        cb.flush = true;
        return None;
    }
    // `tcp_gro_pull_header`
    let doff = cb.data().get(FLAG_WORD).map_or(0, |byte| byte >> 4);
    let end = TH + usize::from(doff) * 4;
    if end < TH + TCPHDR_LEN || end > cb.data().len() {
        cb.flush = true;
        return None;
    }
    cb.pull(end);
    tcp_gro_receive(list, cb, stage)
}

fn tcp_gro_receive(
    list: &mut [Held],
    cb: &mut NapiGroCb,
    stage: impl Fn(&'static str) -> Span + Copy,
) -> Option<usize> {
    let _stage = stage("tcp_gro_receive");
    let flags = word(cb.data(), FLAG_WORD);
    let found = tcp_gro_lookup(list, cb.data());
    let mut mss = 1;
    if let Some(at) = found {
        let held = &mut list[at];
        mss = usize::from(held.skb.gso_size);
        if !follows(held, cb) || !held.skb_gro_receive(cb, stage) {
            mss = 1;
        } else {
            held.skb.data_mut()[TH + TCP_FLAGS] |=
                (flags >> 16) as u8 & (TCP_FLAG_FIN | TCP_FLAG_PSH);
        }
    }
    let last = TCP_FLAG_URG | TCP_FLAG_PSH | TCP_FLAG_RST | TCP_FLAG_SYN | TCP_FLAG_FIN;
    let flush = cb.gro_len < mss || flags & in_word(last) != 0;
    cb.flush |= flush;
    found.filter(|_| !cb.same_flow() || flush)
}

/// The newest held packet with the same ports; no other is of the flow.
fn tcp_gro_lookup(list: &mut [Held], packet: &[u8]) -> Option<usize> {
    for (at, held) in list.iter_mut().enumerate().rev() {
        held.same_flow &= word(held.skb.data(), TH) == word(packet, TH);
        if held.same_flow {
            return Some(at);
        }
    }
    None
}

/// Whether a segment follows on a held one, as far as the headers tell.
fn follows(held: &mut Held, cb: &NapiGroCb) -> bool {
    let (th, th2) = (cb.data(), held.skb.data());
    let flags = word(th, FLAG_WORD);
    let differ = flags ^ word(th2, FLAG_WORD);
    let may_differ = in_word(TCP_FLAG_CWR | TCP_FLAG_FIN | TCP_FLAG_PSH);
    let next = word(th2, SEQ).wrapping_add(held.gro_len() as u32);
    let mss = usize::from(held.skb.gso_size);
    flags & in_word(TCP_FLAG_CWR) == 0
        && differ & !may_differ == 0
        && word(th, ACK_SEQ) == word(th2, ACK_SEQ)
        && cb.data_offset == held.data_offset
        && th[TH + TCPHDR_LEN..cb.data_offset] == th2[TH + TCPHDR_LEN..held.data_offset]
        && (1..=mss).contains(&cb.gro_len)
        && next == word(th, SEQ)
        && !held.inet_gro_flush(cb.data())
}

/// Writes the header of what several segments became, `len` bytes with IP's header; where the checksum is, and `SKB_GSO_*`.
pub(super) fn tcp4_gro_complete(packet: &mut [u8], len: usize, fixed_id: bool) -> (u16, u32) {
    let check = csum_fold_raw(pseudo(packet, len - TH)).to_ne_bytes();
    packet[TH + TCP_CHECK..TH + TCP_CHECK + 2].copy_from_slice(&check);
    let mut gso_type = SKB_GSO_TCPV4;
    if packet[TH + TCP_FLAGS] & TCP_FLAG_CWR != 0 {
        gso_type |= SKB_GSO_TCP_ECN;
    }
    if fixed_id {
        gso_type |= SKB_GSO_TCP_FIXEDID;
    }
    (TCP_CHECK as u16, gso_type)
}
