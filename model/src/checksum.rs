//! The checksum engine: verifies the TCP or UDP checksum of a received frame, and IPv4's of its header, and inserts the one
//! that a driver left to the card.
//!
//! The Internet checksum is that of RFC 1071; the pseudo-headers are those of RFC 9293 (3.1), RFC 768 and
//! RFC 8200 (8.1). Fragments are not verified: the sum covers the whole datagram. A frame with a wrong
//! checksum is not dropped here, the host's stack judges it; the card only says what it found.

use crate::frame::Contents;
use crate::parse::{self, Network, Plain, Summary, Transport};

/// What the engine found in a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to verify: no TCP or UDP, a fragment, a truncated packet, UDP without a checksum.
    None,
    /// The checksum is right.
    Good,
    /// The checksum is wrong.
    Bad,
}

/// The ones' complement sum of `bytes` as big-endian 16-bit words, an odd last octet padded with zero, added
/// to `initial`; not complemented.
#[must_use]
#[inline]
pub fn sum(bytes: &[u8], initial: u64) -> u16 {
    finish(words(bytes, 0), initial)
}

/// Adds `bytes` to `total` as little-endian words, which RFC 1071 (2 B) allows, 64 bits at a time with the carry coming
/// round, four times a turn.
#[inline(always)] // on the way of each packet
fn words(bytes: &[u8], total: u64) -> u64 {
    let Some((first, rest)) = bytes.split_first_chunk::<32>() else {
        return few_words(bytes, total);
    };
    // The first block for itself: many packets have no other, and little more.
    let total = add_all(total, first.as_chunks().0);
    let (total, rest) = match rest.len() {
        ..8 => (total, rest.len()),
        _ => (whole_words(rest, total), rest.len() % 8),
    };
    match bytes.last_chunk() {
        // What has been added already is shifted out.
        Some(last) if rest > 0 => {
            let last = u64::from_le_bytes(*last) >> (64 - 8 * rest);
            add(total, last.to_le_bytes())
        }
        _ => total,
    }
}

/// Adds what is whole words of `bytes`.
#[inline(always)] // on the way of each packet
fn whole_words(bytes: &[u8], total: u64) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let total = if blocks.is_empty() {
        total
    } else {
        sum_blocks(blocks, total)
    };
    let (whole, _) = rest.as_chunks::<8>();
    whole.iter().copied().fold(total, add)
}

/// Adds blocks, in four sums that do not wait for each other's carries.
fn sum_blocks(blocks: &[[u8; 32]], total: u64) -> u64 {
    let mut sums = [total, 0, 0, 0];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = add(*sum, *word);
        }
    }
    sums.into_iter()
        .fold(0, |total, sum| add(total, sum.to_le_bytes()))
}

/// [`words`] for less than a block.
#[cold]
fn few_words(bytes: &[u8], total: u64) -> u64 {
    let (whole, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    add(whole.iter().copied().fold(total, add), last)
}

/// Adds words, and the carry of all: each goes into the next, and the last leaves room for its own.
#[inline(always)]
fn add_all(total: u64, words: &[[u8; 8]]) -> u64 {
    let (mut sum, mut carry) = (total, false);
    for word in words {
        (sum, carry) = sum.carrying_add(u64::from_le_bytes(*word), carry);
    }
    sum + u64::from(carry)
}

/// Adds a word, and the carry.
#[inline(always)]
fn add(total: u64, word: [u8; 8]) -> u64 {
    let (sum, carry) = total.overflowing_add(u64::from_le_bytes(word));
    sum + u64::from(carry)
}

#[cold]
fn words_of_both(one: &[u8], other: &[u8], initial: u64) -> u64 {
    words(one, words(other, initial))
}

/// Folds a sum of words into 16 bits.
#[inline]
fn fold(total: u64) -> u16 {
    let (sum, carry) = (total as u32).overflowing_add((total >> 32) as u32);
    let sum = sum + u32::from(carry);
    // Each half plus the other one: the upper one gets the lower one's carry.
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// Folds a sum of little-endian words into 16 bits, and adds `initial`, which is a number below 2^31.
#[inline]
fn finish(total: u64, initial: u64) -> u16 {
    let mut sum = u32::from(fold(total).swap_bytes()) + initial as u32;
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// Verifies the transport checksum of a frame whose headers are `summary`.
#[must_use]
pub fn verify(bytes: &[u8], summary: &Summary) -> Verdict {
    let protocol = match summary.transport {
        Transport::Tcp => 6_u8,
        Transport::Udp => 17,
        Transport::None => return Verdict::None,
    };
    let network = summary.network_offset as usize;
    let transport = summary.transport_offset as usize;
    // Where the addresses are; they end the fixed header.
    let (addresses, header_end) = match summary.network {
        Network::Ipv4 => (network + 12, network + 20),
        Network::Ipv6 => (network + 8, network + 40),
        Network::Other => return Verdict::None,
    };
    // The summary vouches for the fixed headers being there; these look-ups cannot miss.
    let Some(packet) = bytes.get(addresses..summary.end as usize) else {
        return Verdict::None;
    };
    let Some(segment) = packet.get(transport - addresses..) else {
        return Verdict::None;
    };
    if summary.transport == Transport::Udp {
        let Some([_, _, _, _, a, b, checksum @ ..]) = segment.first_chunk::<8>() else {
            return Verdict::None;
        };
        let unused = summary.network == Network::Ipv4 && *checksum == [0, 0];
        if unused || usize::from(u16::from_be_bytes([*a, *b])) != segment.len() {
            return Verdict::None;
        }
    }
    // All ones is zero in this arithmetic; the protocol's number sees to it that it is not the other one. No packet of IP is
    // longer than 16 bits say.
    let pseudo = u64::from((segment.len() as u16).swap_bytes())
        + u64::from(u16::from(protocol).swap_bytes());
    let total = if transport == header_end {
        words(packet, pseudo)
    } else {
        // What is between them does not count.
        words_of_both(segment, &packet[..header_end - addresses], pseudo)
    };
    if fold(total) == 0xffff {
        Verdict::Good
    } else {
        Verdict::Bad
    }
}

/// Whether the checksums of a frame as most are, of IPv4's header and of what is behind it, are right: [`verify`] and [`is_header_right`]
/// in fewer instructions.
#[inline(always)] // on the way of each packet
pub(crate) fn are_right<const VERSION: u8>(bytes: &[u8], headers: Plain<VERSION>) -> bool {
    let addresses = Plain::<VERSION>::ADDRESSES;
    let udp_length = Plain::<VERSION>::TRANSPORT + 4;
    let (Some(packet), Some([a, b, c, d])) = (
        bytes.get(addresses..headers.end as usize),
        bytes.get(udp_length..udp_length + 4),
    ) else {
        return false;
    };
    let len = (packet.len() - (Plain::<VERSION>::TRANSPORT - addresses)) as u16;
    let len = len.swap_bytes();
    let mut protocol = 6_u16;
    if headers.transport == Transport::Udp {
        if u16::from_le_bytes([*a, *b]) != len || [*c, *d] == [0, 0] {
            return false;
        }
        protocol = 17;
    }
    let pseudo = u64::from(len) + u64::from(protocol.swap_bytes());
    if packet.len() < 32 {
        return few_are_right::<VERSION>(bytes, packet, pseudo);
    }
    is_zero(words(packet, pseudo)) && is_plain_header_right::<VERSION>(bytes)
}

/// [`are_right`] of a short packet. To itself, so that the header's words are loaded there and there, and what is hashed of them is not shifted
/// out of registers.
#[cold]
fn few_are_right<const VERSION: u8>(bytes: &[u8], packet: &[u8], pseudo: u64) -> bool {
    is_zero(few_words(packet, pseudo)) && is_plain_header_right::<VERSION>(bytes)
}

/// Whether a sum of words, not all of them zero, is zero in ones' complement arithmetic, which counts modulo 2^16 - 1. To divide
/// without a remainder is one multiplication: less than to fold.
#[inline(always)] // on the way of each packet
fn is_zero(total: u64) -> bool {
    total.is_multiple_of(0xffff)
}

/// Whether the checksum of an IPv4 header, with its options, is right (RFC 791, 3.1); that of any other there is not, and it is. It is judged before
/// the packet's length, which may be what is damaged, as Linux does.
#[must_use]
pub fn is_header_right(bytes: &[u8], summary: &Summary) -> bool {
    let header = match summary.network {
        // The summary vouches for the header being there.
        Network::Ipv4 => bytes.get(summary.network_offset.into()..summary.transport_offset.into()),
        Network::Ipv6 => None,
        Network::Other => parse::ipv4_header(bytes, summary.network_offset.into()),
    };
    // The version sees to it that it is not all zeros.
    header.is_none_or(|header| is_zero(words(header, 0)))
}

/// [`is_header_right`] of a frame as most are.
#[inline(always)] // on the way of each packet
pub(crate) fn is_plain_header_right<const VERSION: u8>(bytes: &[u8]) -> bool {
    if VERSION != 4 {
        return true;
    }
    let header = bytes.get(Plain::<4>::TRANSPORT - 20..);
    let Some(header) = header.and_then(<[u8]>::first_chunk::<20>) else {
        return false;
    };
    let [one @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
    let [_, _, _, _, _, _, _, _, a, b, c, d, addresses @ ..] = header;
    let between = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
    is_zero(add_all(between, &[*one, *addresses]))
}

/// Whether a frame as most are has no checksum: UDP over IPv4 may do without (RFC 768).
#[inline]
pub(crate) fn is_unused<const VERSION: u8>(bytes: &[u8], headers: Plain<VERSION>) -> bool {
    let field = Plain::<VERSION>::TRANSPORT + 6;
    VERSION == 4
        && headers.transport == Transport::Udp
        && bytes.get(field..field + 2) == Some(&[0, 0])
}

/// The checksum field lies outside the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrame;

/// Sums the frame from `start` to its end and stores the complement at `start + offset`. The field holds
/// the pseudo-header's sum (VIRTIO 1.3, 5.1.6.2.1).
///
/// # Errors
/// [`OutOfFrame`] if the field is not within the frame.
#[inline]
pub fn insert(frame: &mut Contents, start: u16, offset: u16) -> Result<(), OutOfFrame> {
    let start = usize::from(start);
    let covered = frame.bytes_mut().get_mut(start..).ok_or(OutOfFrame)?;
    let offset = usize::from(offset);
    if offset + 2 > covered.len() {
        return Err(OutOfFrame);
    }
    // A sum of zero is sent as its other representation: for UDP, zero means that there is none.
    let checksum = match !sum(covered, 0) {
        0 => 0xffff,
        sum => sum,
    };
    covered[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use crate::parse::summarise;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn reference(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    fn build(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
        let ether = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if v6 {
            ether.ipv6([7; 16], [9; 16], 64)
        } else {
            ether.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut out = Vec::new();
        if tcp {
            ip.tcp(1, 2, 3, 4).write(&mut out, payload).unwrap();
        } else {
            ip.udp(1, 2).write(&mut out, payload).unwrap();
        }
        out
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_rfc_1071(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let (ours, theirs) = (sum(&bytes, 0), reference(&bytes));
            // Zero has two representations in ones' complement.
            prop_assert_eq!(ours % 0xffff, theirs % 0xffff);
        }

        #[test]
        fn a_packet_that_etherparse_built_is_good_and_a_changed_one_is_not(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            v6 in any::<bool>(), tcp in any::<bool>(), at in any::<prop::sample::Index>(), change in 1u8..,
        ) {
            let mut bytes = build(v6, tcp, &payload);
            prop_assert_eq!(verify(&bytes, &summarise(&bytes)), Verdict::Good);
            // Trailing padding does not count.
            bytes.extend([0xaa; 8]);
            prop_assert_eq!(verify(&bytes, &summarise(&bytes)), Verdict::Good);
            if !payload.is_empty() {
                let first = bytes.len() - 8 - payload.len();
                bytes[first + at.index(payload.len())] ^= change;
                prop_assert_eq!(verify(&bytes, &summarise(&bytes)), Verdict::Bad);
            }
        }

        #[test]
        fn what_is_inserted_is_good(payload in proptest::collection::vec(any::<u8>(), 0..200), v6 in any::<bool>(), tcp in any::<bool>()) {
            let bytes = build(v6, tcp, &payload);
            let summary = summarise(&bytes);
            let (start, offset) = (summary.transport_offset, if tcp { 16 } else { 6 });
            let mut pool = Pool::new(2048);
            let mut frame = pool.take();
            prop_assert!(frame.fill(&bytes));
            // The driver leaves the pseudo-header's sum in the field.
            let network = summary.network_offset as usize;
            let addresses = if v6 { &bytes[network + 8..network + 40] } else { &bytes[network + 12..network + 20] };
            let protocol = if tcp { 6 } else { 17 };
            let pseudo = sum(addresses, protocol + (bytes.len() - start as usize) as u64);
            let field = usize::from(start + offset);
            frame.bytes_mut()[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
            prop_assert_eq!(insert(&mut frame, start, offset), Ok(()));
            prop_assert_eq!(frame.bytes(), &bytes[..]);
        }
    }

    #[test]
    fn a_field_outside_the_frame_is_refused() {
        let mut pool = Pool::new(2048);
        let mut frame = pool.take();
        assert!(frame.fill(&[0; 60]));
        assert_eq!(insert(&mut frame, 61, 0), Err(OutOfFrame));
        assert_eq!(insert(&mut frame, 60, 0), Err(OutOfFrame));
        assert_eq!(insert(&mut frame, 50, 9), Err(OutOfFrame));
        assert_eq!(insert(&mut frame, 50, 8), Ok(()));
        assert_eq!(insert(&mut frame, 65535, 65535), Err(OutOfFrame));
    }

    #[test]
    fn udp_without_a_checksum_is_left_alone() {
        let mut bytes = build(false, false, b"payload");
        bytes[14 + 20 + 6..14 + 20 + 8].fill(0);
        assert_eq!(verify(&bytes, &summarise(&bytes)), Verdict::None);
    }
}
