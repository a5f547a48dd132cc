//! Fragmentation: a datagram of UDP that leaves as fragments of IP (UFO).
//!
//! What is cut is the datagram with its UDP header, whose checksum is completed before, since no fragment has all that it covers.
//! IPv4 (RFC 791, 3.2): each fragment has the datagram's header and identification, its own length, its place, and MF
//! if others follow; DF does not stand where somebody asks for fragments. IPv6 (RFC 8200, 4.5): a fragment header comes between the
//! header and the piece. Places count in units of 8 octets, so a fragment has at most as many whole ones as were asked for. That is
//! Linux's `udp4_ufo_fragment` and `udp6_ufo_fragment`; its fragments of IPv4 are the same octet for octet.
//!
//! Nobody hands over the identification of IPv6's fragments. Linux takes a number; here it is made of the datagram's octets, so that
//! the same traffic gives the same frames: two datagrams that have the same are most likely the same, and then a mixture
//! of their fragments is, too.
//!
//! Refused are datagrams whose length is not what UDP's header says, and those of IPv6 with extension headers: no driver is known
//! to send any.

use super::{Cut, UDP_HEADER, Unfit, checksum_field, get, insert_header_checksum, put};
use crate::checksum;
use crate::frame::Contents;
use crate::parse::{IPV6_HEADER, Network, Summary};

/// Octets of IPv6's fragment header, its number, and that of UDP, which it says follows.
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;
const UDP: u8 = 17;
/// Octets that a fragment's place counts in.
const UNIT: usize = 8;
/// Where UDP's header has the datagram's length.
const UDP_LENGTH: usize = 4;
/// More fragments: in IPv4's header, and in IPv6's fragment header, which has the place in octets before its last 3 bits.
const IPV4_MORE: u16 = 0x2000;
const IPV6_MORE: u16 = 1;

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragments {
    /// UDP's checksum.
    checksum: u16,
    /// The identification that IPv6's have.
    identification: u32,
}

impl Cut {
    /// Cuts `frame`, whose headers are `summary`, into fragments, not into segments.
    pub(super) fn into_fragments(self, frame: &Contents, summary: &Summary) -> Result<Self, Unfit> {
        let transport = self.transport_offset;
        let datagram = &frame.bytes()[transport..];
        let cut = Cut {
            payload: transport,
            headers: match self.network {
                Network::Ipv6 => transport + FRAGMENT_HEADER,
                _ => transport,
            },
            size: self.size / UNIT * UNIT,
            ..self
        };
        let sound = cut.size > 0
            && !summary.is_extended()
            && usize::from(get(datagram, UDP_LENGTH)) == datagram.len();
        if !sound || cut.segments() > super::MAX_SEGMENTS {
            return Err(Unfit::Malformed);
        }
        let checksum = match !checksum::sum(datagram, 0) {
            // Zero means that there is none (RFC 768).
            0 => 0xffff,
            checksum => checksum,
        };
        let identification = match self.network {
            Network::Ipv6 => crc32fast::hash(datagram),
            _ => 0,
        };
        Ok(Cut {
            fragments: Some(Fragments {
                checksum,
                identification,
            }),
            ..cut
        })
    }

    /// Octets of the headers that whoever wants it cut says that there are: UDP's is among them though only the first fragment has it.
    pub(super) fn replicated(&self) -> usize {
        match self.fragments {
            Some(_) => self.transport_offset + UDP_HEADER,
            None => self.headers,
        }
    }

    /// Makes fragment `index` of `headers`, copied from the super-frame, and `piece`.
    pub(super) fn set_fragment(
        &self,
        fragments: &Fragments,
        headers: &mut [u8],
        piece: &mut [u8],
        index: usize,
    ) {
        let place = (index * self.size) as u16;
        let more = index + 1 != self.segments();
        let header = &mut headers[self.network_offset..];
        if self.network == Network::Ipv6 {
            let ip = usize::from(IPV6_HEADER);
            put(header, 4, (header.len() - ip + piece.len()) as u16);
            header[6] = FRAGMENT;
            let fragment = &mut header[ip..];
            fragment[..2].copy_from_slice(&[UDP, 0]);
            put(fragment, 2, place | if more { IPV6_MORE } else { 0 });
            fragment[4..8].copy_from_slice(&fragments.identification.to_be_bytes());
        } else {
            put(header, 2, (header.len() + piece.len()) as u16);
            let place = place / UNIT as u16;
            put(header, 6, place | if more { IPV4_MORE } else { 0 });
            insert_header_checksum(header);
        }
        if index == 0 {
            put(piece, checksum_field(false), fragments.checksum);
        }
    }
}
