//! The flow that a packet belongs to (Linux: `net/core/flow_dissector.c`).
//!
//! In: a packet. Out: a hash of its addresses, and of its ports where each packet of the flow has them; or the hash that the device
//! made. 0 is no flow.

use super::eth::{ETH_HLEN, ETH_P_IP};
use super::skbuff::SkBuff;
use super::tcp::IPPROTO_TCP;
use super::udp::IPPROTO_UDP;

/// Of the fragment word: more fragments, or an offset.
const IP_FRAGMENT: u16 = 0x3fff;

/// A hash of the flow of a frame to send, which has its Ethernet header.
#[inline]
pub(super) fn skb_get_hash(skb: &SkBuff) -> u32 {
    if skb.hash != 0 {
        return skb.hash;
    }
    dissect(skb.protocol, skb.data().get(ETH_HLEN..).unwrap_or_default())
}

/// A hash of the flow of a received packet, whose IP header was found.
pub(super) fn skb_get_rx_hash(skb: &SkBuff) -> u32 {
    if skb.hash != 0 {
        return skb.hash;
    }
    dissect(skb.protocol, skb.network())
}

fn dissect(protocol: u16, packet: &[u8]) -> u32 {
    let Some(ip) = packet.first_chunk::<20>().filter(|_| protocol == ETH_P_IP) else {
        return 0;
    };
    let header = (usize::from(ip[0] & 0xf) * 4).max(ip.len());
    let whole = u16::from_be_bytes([ip[6], ip[7]]) & IP_FRAGMENT == 0;
    let has_ports = whole && matches!(ip[9], IPPROTO_UDP | IPPROTO_TCP);
    let ports = packet.get(header..header + 4).filter(|_| has_ports);
    let fold = |hash: u64, bytes: &[u8]| {
        let word = bytes
            .iter()
            .fold(0, |word, &byte| word << 8 | u64::from(byte));
        (hash ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32)
    };
    let hash = fold(fold(u64::from(ip[9]), &ip[12..]), ports.unwrap_or_default());
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_count_where_each_packet_of_a_flow_has_them() {
        let mut packet = [7; 28];
        (packet[0], packet[6], packet[7]) = (0x45, 0x40, 0);
        let mut with_port = |protocol, fragment: u8, port| {
            (packet[9], packet[7], packet[21]) = (protocol, fragment, port);
            dissect(ETH_P_IP, &packet)
        };
        for (protocol, fragment, counts) in
            [(17, 0, true), (6, 0, true), (1, 0, false), (17, 1, false)]
        {
            let [one, other] = [1, 2].map(|port| with_port(protocol, fragment, port));
            assert_eq!(one != other, counts, "{protocol} {fragment}");
        }
        // With an option the ports are behind it.
        (packet[0], packet[7], packet[9]) = (0x46, 0, 17);
        let before = dissect(ETH_P_IP, &packet);
        packet[20] ^= 1;
        assert_eq!(dissect(ETH_P_IP, &packet), before);
        packet[24] ^= 1;
        assert_ne!(dissect(ETH_P_IP, &packet), before);
        assert_eq!(dissect(0x0806, &packet), 0);
        assert_eq!(dissect(ETH_P_IP, &packet[..19]), 0);
    }
}
