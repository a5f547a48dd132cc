//! Explicit congestion notification (RFC 3168; Linux: `include/net/inet_ecn.h`).
//!
//! In: packets that a queue would rather have dropped. Out: the same, marked, if their sender said that it
//! understands marks.

use super::checksum::csum_fold;
use super::eth::ETH_P_IP;
use super::skbuff::SkBuff;

/// The two bits of the type of service, and what they say.
pub(super) const INET_ECN_MASK: u8 = 3;
const INET_ECN_NOT_ECT: u8 = 0;
pub(super) const INET_ECN_CE: u8 = 3;

impl SkBuff {
    /// Marks a packet; whether it is marked, because its sender understands that.
    pub fn inet_ecn_set_ce(&mut self) -> bool {
        if self.protocol != ETH_P_IP {
            return false;
        }
        let Some(iph) = self.network_mut().first_chunk_mut::<20>() else {
            return false;
        };
        match iph[1] & INET_ECN_MASK {
            INET_ECN_NOT_ECT => return false,
            INET_ECN_CE => return true,
            _ => {}
        }
        let word = |bytes: &[u8]| u16::from_ne_bytes([bytes[0], bytes[1]]);
        let (before, check) = (word(&iph[..2]), word(&iph[10..12]));
        iph[1] |= INET_ECN_CE;
        // RFC 1624: the word that was there goes, the other comes.
        let sum = [!check, !before, word(&iph[..2])].map(u64::from);
        iph[10..12].copy_from_slice(&csum_fold(sum.iter().sum()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum::{csum_good, csum_partial};
    use super::super::skbuff::SkbCache;
    use super::*;

    #[test]
    fn who_understands_marks_is_marked_and_the_checksum_stays_right() {
        for (ecn, marked, after) in [(0, false, 0), (1, true, 3), (2, true, 3), (3, true, 3)] {
            let mut skb = SkbCache::default().alloc(0, 20);
            skb.protocol = ETH_P_IP;
            let mut iph = [
                0x45,
                0x10 | ecn,
                0,
                20,
                0xab,
                0xcd,
                0x40,
                0,
                64,
                17,
                0,
                0,
                10,
                77,
                0,
                2,
                10,
                77,
                0,
                1,
            ];
            let check = csum_fold(csum_partial(&iph, 0));
            iph[10..12].copy_from_slice(&check);
            skb.put(20).copy_from_slice(&iph);
            skb.reset_network_header();
            assert_eq!(skb.inet_ecn_set_ce(), marked, "{ecn}");
            assert_eq!(skb.data()[1], 0x10 | after);
            assert!(csum_good(csum_partial(skb.data(), 0)), "{ecn}");
            skb.protocol = 0x0806;
            assert!(!skb.inet_ecn_set_ce(), "no IP");
        }
    }
}
