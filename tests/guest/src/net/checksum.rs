//! The Internet checksum (Linux: `include/net/checksum.h`, RFC 1071).
//!
//! Sums are of 16-bit words as they lie in memory, whatever the host's byte order: a folded sum is
//! stored as it is, without turning it round.

/// A sum that was 0 and means "no checksum" in UDP goes out as this (`CSUM_MANGLED_0`).
pub(super) const CSUM_MANGLED_0: [u8; 2] = [0xff; 2];

/// Adds the words of `bytes` to `sum`; an odd byte counts as if a zero followed.
#[inline]
pub(crate) fn csum_partial(bytes: &[u8], mut sum: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// The sum of the pseudo header of UDP and TCP.
#[inline]
pub(super) fn csum_tcpudp_nofold(saddr: u32, daddr: u32, len: usize, protocol: u8) -> u64 {
    let word = |host: u32| u64::from(host.to_be());
    word(saddr) + word(daddr) + word(u32::from(protocol)) + word(len as u32)
}

/// The sum of the pseudo header of IPv6 (`csum_ipv6_magic`).
#[inline]
pub(super) fn csum_ipv6_magic(saddr: u128, daddr: u128, len: usize, protocol: u8) -> u64 {
    let word = |host: u32| u64::from(host.to_be());
    let addrs = csum_partial(&daddr.to_be_bytes(), csum_partial(&saddr.to_be_bytes(), 0));
    addrs + word(u32::from(protocol)) + word(len as u32)
}

/// Folds a sum to 16 bits, not complemented.
#[inline]
pub(crate) fn csum_fold_raw(sum: u64) -> u16 {
    let (sum, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    let sum = sum + u32::from(carry);
    let (sum, carry) = (sum as u16).overflowing_add((sum >> 16) as u16);
    sum + u16::from(carry)
}

/// Folds and complements a sum: the checksum, as it is stored (`csum_fold`).
#[inline]
pub(super) fn csum_fold(sum: u64) -> [u8; 2] {
    (!csum_fold_raw(sum)).to_ne_bytes()
}

/// Whether words that contain their own checksum add up.
#[inline]
pub(super) fn csum_good(sum: u64) -> bool {
    csum_fold_raw(sum) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word by word, as RFC 1071 writes it.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn agrees_with_the_plain_sum() {
        let bytes: Vec<u8> = (0..1500u32).map(|n| (n * 7 + n / 256) as u8).collect();
        for len in (0..70).chain([1459, 1460, 1500]) {
            assert_eq!(
                csum_fold(csum_partial(&bytes[..len], 0)),
                plain(&bytes[..len]),
                "{len}"
            );
        }
        let ones = [0xff; 1500];
        assert_eq!(csum_fold(csum_partial(&ones, 0)), plain(&ones));
    }

    #[test]
    fn a_packet_with_its_checksum_adds_up() {
        let mut packet: Vec<u8> = (0..40).collect();
        let pseudo = csum_tcpudp_nofold(0x0a4d_0001, 0x0a4d_0002, packet.len(), 17);
        packet[6..8].fill(0);
        let check = csum_fold(csum_partial(&packet, pseudo));
        packet[6..8].copy_from_slice(&check);
        assert!(csum_good(csum_partial(&packet, pseudo)));
        packet[9] ^= 1;
        assert!(!csum_good(csum_partial(&packet, pseudo)));
    }
}
