//! Media access control: what is a frame, and what is not.
//!
//! Receive: checks the frame check sequence where there is one and the frame's size, tells apart what is
//! wrong as RFC 2819 does, and removes the check sequence. Transmit: inserts the checksum that the driver
//! left to the card, refuses what is too short or too long, and pads to the minimum (IEEE 802.3, 3.2.7,
//! 3.2.8 and 3.2.9). The check sequence is only computed for a wire that shows it ([`fcs`]).

use crate::checksum;
use crate::counters::Drop;
use crate::frame::{Checksum, Contents, ETHERNET_HEADER, FCS, Fcs, VLAN_TAG};
use crate::segment::{self, Unfit};

/// The shortest frame, in octets with its check sequence.
pub const MIN_FRAME: usize = 64;

/// The frame check sequence of `frame` (its octets without one), as it stands on the wire.
#[must_use]
pub fn fcs(frame: &[u8]) -> [u8; FCS] {
    crc32fast::hash(frame).to_le_bytes()
}

/// VLAN tags that may make a frame longer than the others: a customer's and a provider's (IEEE 802.1Q, 9.3).
const MAX_TAGS: usize = 2;

/// The media access control of one port.
#[derive(Clone, Debug)]
pub struct Mac {
    /// The longest frame without tags, in octets with its check sequence.
    max_untagged: usize,
}

impl Mac {
    /// For packets of up to `mtu` octets: frames may be as long as that with an Ethernet header, the check
    /// sequence, and the VLAN tags that they have, two at most.
    #[must_use]
    pub fn new(mtu: u16) -> Self {
        Mac {
            max_untagged: usize::from(mtu) + ETHERNET_HEADER + FCS,
        }
    }

    /// The longest frame of all, in octets with its check sequence.
    #[must_use]
    pub fn max_frame(&self) -> usize {
        self.max_untagged + MAX_TAGS * VLAN_TAG
    }

    /// Whether `octets`, check sequence included, are too many for `frame`.
    #[inline]
    pub(crate) fn oversize(&self, frame: &[u8], octets: usize) -> bool {
        octets > self.max_untagged && octets > self.max_untagged + tags(frame) * VLAN_TAG
    }

    /// Whether there is nothing to check of a frame from the line, nor to remove, as with most: its check sequence is
    /// off-loaded, and it is not longer than any may be.
    #[inline(always)]
    pub(crate) fn is_plain(&self, frame: &Contents) -> bool {
        matches!(frame.fcs, Fcs::Offloaded) && frame.len() + FCS <= self.max_untagged
    }

    /// Checks a frame from the line and removes its check sequence.
    ///
    /// # Errors
    /// The reason for which it is no valid frame.
    #[inline]
    pub fn accept(&self, frame: &mut Contents) -> Result<(), Drop> {
        match frame.fcs {
            Fcs::Offloaded => {
                if frame.len() < ETHERNET_HEADER {
                    return Err(Drop::RxUndersize);
                }
                if self.oversize(frame.bytes(), frame.len() + FCS) {
                    return Err(Drop::RxOversize);
                }
                Ok(())
            }
            Fcs::Present => self.check(frame, Drop::RxFcs),
            // What is over is cut off, and the rest may still be right (IEEE 802.3, 4.2.4.2.1).
            Fcs::Dribbled => self.check(frame, Drop::RxAlign),
        }
    }

    /// Checks a frame with its check sequence; `damaged` is what it is if it has a valid size, and a wrong one.
    fn check(&self, frame: &mut Contents, damaged: Drop) -> Result<(), Drop> {
        let good = frame
            .bytes()
            .split_last_chunk::<FCS>()
            .is_some_and(|(octets, sequence)| fcs(octets) == *sequence);
        let oversize = self.oversize(frame.bytes(), frame.len());
        match (frame.len(), good) {
            (..MIN_FRAME, true) => Err(Drop::RxUndersize),
            (..MIN_FRAME, false) => Err(Drop::RxFragment),
            (_, true) if oversize => Err(Drop::RxOversize),
            (_, false) if oversize => Err(Drop::RxJabber),
            (_, false) => Err(damaged),
            (len, true) => {
                frame.set_len(len - FCS);
                frame.fcs = Fcs::Offloaded;
                Ok(())
            }
        }
    }

    /// As [`Mac::prepare`], for a super-frame.
    ///
    /// # Errors
    /// The reason for which it cannot be sent.
    #[cold]
    pub fn prepare_super(&self, frame: &mut Contents) -> Result<bool, Drop> {
        segment::admit(frame, self).map_err(Unfit::sent)?;
        if frame.is_super() {
            // Each segment gets a checksum of its own.
            return Ok(true);
        }
        self.prepare(frame)
    }

    /// Makes a driver's packet a frame that may go on the line. Returns whether a checksum was inserted.
    ///
    /// # Errors
    /// The reason for which it cannot be sent.
    #[inline]
    pub fn prepare(&self, frame: &mut Contents) -> Result<bool, Drop> {
        let len = frame.len();
        if len < ETHERNET_HEADER {
            return Err(Drop::TxUndersize);
        }
        if self.oversize(frame.bytes(), len + FCS) {
            return Err(Drop::TxOversize);
        }
        let inserted = match frame.checksum {
            Checksum::Partial { start, offset } => {
                checksum::insert(frame, start, offset).map_err(|_| Drop::TxMalformed)?;
                frame.checksum = Checksum::Valid;
                true
            }
            Checksum::Unknown | Checksum::Valid | Checksum::Bad => false,
        };
        if len < MIN_FRAME - FCS {
            frame.set_len(MIN_FRAME - FCS);
            frame.bytes_mut()[len..].fill(0);
        }
        Ok(inserted)
    }
}

/// What the length of a frame says that has one instead of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthField {
    /// It is a type, or fits: what is beyond it is padding.
    Right,
    /// The frame has another length (aInRangeLengthErrors, IEEE 802.3, 30.3.1.1.23).
    InRange,
    /// No frame is as long, and no type as low (aOutOfRangeLengthField, 30.3.1.1.24).
    OutOfRange,
}

/// Compares the length that `frame`, without its check sequence, may have (IEEE 802.3, 3.2.6) with its own.
#[must_use]
pub fn length_field(frame: &[u8]) -> LengthField {
    /// Octets of data without padding at least, and at most; and the lowest type.
    const SHORTEST: usize = MIN_FRAME - FCS - ETHERNET_HEADER;
    const LONGEST: usize = 1500;
    const TYPES: usize = 0x0600;
    let Some(&[high, low]) = frame.get(ETHERNET_HEADER - 2..ETHERNET_HEADER) else {
        return LengthField::Right;
    };
    let said = usize::from(u16::from_be_bytes([high, low]));
    let has = (frame.len() - ETHERNET_HEADER).max(SHORTEST);
    match said {
        TYPES.. => LengthField::Right,
        _ if said > LONGEST => LengthField::OutOfRange,
        _ if said.max(SHORTEST) == has => LengthField::Right,
        _ => LengthField::InRange,
    }
}

/// VLAN tags that `frame` begins with, two at most.
fn tags(frame: &[u8]) -> usize {
    let tag = |index: usize| {
        let at = ETHERNET_HEADER - 2 + index * VLAN_TAG;
        matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8]))
    };
    (0..MAX_TAGS).take_while(|&index| tag(index)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, Pool};

    fn with_fcs(pool: &mut Pool, len: usize, damage: bool) -> Frame {
        let mut frame = pool.take();
        let mut bytes: Vec<u8> = (0..len - FCS).map(|i| i as u8).collect();
        bytes.extend(fcs(&bytes));
        if damage {
            bytes[7] ^= 0x10;
        }
        assert!(frame.fill(&bytes));
        frame.fcs = Fcs::Present;
        frame
    }

    #[test]
    fn the_check_sequence_is_ieee_802_3s() {
        // The CRC-32 check value of "123456789" is 0xcbf43926; its octets go least significant first.
        assert_eq!(fcs(b"123456789"), [0x26, 0x39, 0xf4, 0xcb]);
    }

    #[test]
    fn what_is_wrong_with_a_frame_is_told_apart() {
        let mut pool = Pool::new(4096);
        let mac = Mac::new(1500);
        for (len, damage, verdict) in [
            (64, false, Ok(())),
            (64, true, Err(Drop::RxFcs)),
            (63, false, Err(Drop::RxUndersize)),
            (63, true, Err(Drop::RxFragment)),
            (1518, false, Ok(())),
            (1519, false, Err(Drop::RxOversize)),
            (1519, true, Err(Drop::RxJabber)),
        ] {
            let mut frame = with_fcs(&mut pool, len, damage);
            assert_eq!(mac.accept(&mut frame), verdict, "{len} {damage}");
            if verdict.is_ok() {
                assert_eq!(frame.len(), len - FCS, "the check sequence is removed");
            }
        }
        // Half an octet more says what else is wrong with a damaged frame, and nothing of a whole one.
        for (len, damage, verdict) in [
            (64, false, Ok(())),
            (64, true, Err(Drop::RxAlign)),
            (63, true, Err(Drop::RxFragment)),
            (1519, true, Err(Drop::RxJabber)),
        ] {
            let mut frame = with_fcs(&mut pool, len, damage);
            frame.fcs = Fcs::Dribbled;
            assert_eq!(mac.accept(&mut frame), verdict, "{len} {damage}");
        }
        for len in 1..FCS {
            let mut frame = pool.take();
            frame.set_len(len);
            frame.fcs = Fcs::Present;
            assert_eq!(mac.accept(&mut frame), Err(Drop::RxFragment));
        }
    }

    #[test]
    fn each_tag_makes_room_for_itself_but_for_no_more_than_two() {
        let mut pool = Pool::new(4096);
        let mac = Mac::new(1500);
        for (tags, longest) in [(0, 1514), (1, 1518), (2, 1522), (3, 1522)] {
            for (len, fits) in [(longest, true), (longest + 1, false)] {
                let mut frame = pool.take();
                frame.set_len(len);
                frame.bytes_mut().fill(0);
                for tag in 0..tags {
                    frame.bytes_mut()[12 + 4 * tag..][..2].copy_from_slice(&[0x81, 0]);
                }
                assert_eq!(mac.prepare(&mut frame).is_ok(), fits, "{tags} {len}");
                assert_eq!(mac.accept(&mut frame).is_ok(), fits, "{tags} {len}");
            }
        }
    }

    #[test]
    fn a_length_has_to_be_the_frames_own() {
        for (said, len, verdict) in [
            (0x0600, 60, LengthField::Right),
            (0x05ff, 60, LengthField::OutOfRange),
            (1501, 1514, LengthField::OutOfRange),
            (1500, 1514, LengthField::Right),
            (1499, 1514, LengthField::InRange),
            (100, 114, LengthField::Right),
            (100, 60, LengthField::InRange),
            // Padding, which may have been left out.
            (38, 60, LengthField::Right),
            (38, 52, LengthField::Right),
            (38, 61, LengthField::InRange),
            (0, 60, LengthField::Right),
        ] {
            let mut frame = vec![0; len];
            frame[12..14].copy_from_slice(&u16::to_be_bytes(said));
            assert_eq!(length_field(&frame), verdict, "{said} {len}");
        }
        assert_eq!(length_field(&[0; 13]), LengthField::Right);
    }

    #[test]
    fn short_packets_are_padded_with_zeros() {
        let mut pool = Pool::new(2048);
        let mut stale = pool.take();
        assert!(stale.fill(&[0xee; 100]));
        pool.give(stale);
        let mut frame = pool.take();
        assert!(frame.fill(&[1; 42]));
        assert_eq!(Mac::new(1500).prepare(&mut frame), Ok(false));
        assert_eq!(frame.len(), 60);
        assert_eq!(frame.bytes()[42..], [0; 18]);
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let mut pool = Pool::new(4096);
        let mac = Mac::new(1500);
        for (len, verdict) in [
            (0, Err(Drop::TxUndersize)),
            (13, Err(Drop::TxUndersize)),
            (14, Ok(false)),
            (1514, Ok(false)),
            (1515, Err(Drop::TxOversize)),
        ] {
            let mut frame = pool.take();
            frame.set_len(len);
            assert_eq!(mac.prepare(&mut frame), verdict, "{len}");
        }
        let mut frame = pool.take();
        frame.set_len(60);
        frame.checksum = Checksum::Partial {
            start: 50,
            offset: 10,
        };
        assert_eq!(mac.prepare(&mut frame), Err(Drop::TxMalformed));
    }
}
