//! Segmentation: cuts a super-frame into the frames that it stands for.
//!
//! A super-frame has one set of headers and more payload than a frame may have. Each segment gets the headers
//! and a piece of the payload: lengths, IPv4's identification (counted up) and header checksum, TCP's sequence
//! number, UDP's length and the transport checksum are its own. FIN and PSH are the last segment's, CWR is the
//! first's (RFC 3168, 6.1.2). The result is what Linux makes of the same super-frame. A datagram of UDP may be cut into fragments of IP
//! instead (`segment/fragment.rs`).
//!
//! Whoever asked for it (a driver: VIRTIO 1.3, 5.1.6.2; the host's kernel behind a TAP device) is not trusted: the headers are those
//! that the card finds itself. Refused are super-frames that are not what they are said to be, those whose segments are longer than
//! the port's frames, and those of more segments than anyone needs.

use crate::checksum;
use crate::counters::{Drop, Sizes};
use crate::frame::{Checksum, Contents, FCS, Gso, Segmentation};
use crate::mac::{MIN_FRAME, Mac};
use crate::parse::{self, Network, Summary, Transport};
use crate::phy::{self, LINE_OVERHEAD, Line};
use crate::time::Nanos;
use fragment::Fragments;

mod fragment;

/// Segments of a super-frame at most: 64 KiB in the shortest segments of TCP that Linux sends (48 octets).
pub const MAX_SEGMENTS: usize = 1400;

/// Where the checksum is in the headers of TCP and UDP (RFC 9293, 3.1; RFC 768).
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const UDP_HEADER: usize = 8;

/// Where TCP's flags are, and which of them not every segment has.
pub(crate) const TCP_FLAGS: usize = 13;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const CWR: u8 = 0x80;

/// Why a super-frame cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is not what it is said to be, or would give too many segments.
    Malformed,
    /// Its segments are longer than the port's frames.
    Oversize,
}

impl Unfit {
    /// Why it is dropped if a driver sends it.
    #[must_use]
    pub fn sent(self) -> Drop {
        match self {
            Unfit::Malformed => Drop::TxMalformed,
            Unfit::Oversize => Drop::TxOversize,
        }
    }

    /// Why it is dropped if it comes from the wire.
    #[must_use]
    pub fn received(self) -> Drop {
        match self {
            Unfit::Malformed => Drop::RxMalformed,
            Unfit::Oversize => Drop::RxOversize,
        }
    }
}

/// How a super-frame is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    network: Network,
    tcp: bool,
    /// Where the network and the transport header begin, and what is dealt out to the segments.
    network_offset: usize,
    transport_offset: usize,
    payload: usize,
    /// Octets that each segment has before its piece of that.
    headers: usize,
    /// Octets of the super-frame, and of payload in each segment.
    len: usize,
    size: usize,
    /// What fragments have in common, if it is cut into such.
    fragments: Option<Fragments>,
}

impl Cut {
    /// How `frame`, a super-frame, is to be cut.
    ///
    /// # Errors
    /// [`Unfit::Malformed`]
    pub fn of(frame: &Contents) -> Result<Self, Unfit> {
        let bytes = frame.bytes();
        let summary = parse::summarise(bytes);
        let (network, transport) = (summary.network, summary.transport);
        let (tcp, field) = match (frame.gso.kind, network, transport) {
            (Segmentation::Tcpv4, Network::Ipv4, Transport::Tcp)
            | (Segmentation::Tcpv6, Network::Ipv6, Transport::Tcp) => (true, TCP_CHECKSUM),
            (
                Segmentation::Udp | Segmentation::Fragments,
                Network::Ipv4 | Network::Ipv6,
                Transport::Udp,
            ) => (false, UDP_CHECKSUM),
            _ => return Err(Unfit::Malformed),
        };
        let partial = Checksum::Partial {
            start: summary.transport_offset,
            offset: field,
        };
        let transport_offset = usize::from(summary.transport_offset);
        let header = if tcp {
            usize::from(bytes[transport_offset + 12] >> 4) * 4
        } else {
            UDP_HEADER
        };
        let headers = transport_offset + header;
        let cut = Cut {
            network,
            tcp,
            network_offset: usize::from(summary.network_offset),
            transport_offset,
            payload: headers,
            headers,
            len: bytes.len(),
            size: usize::from(frame.gso.size),
            fragments: None,
        };
        let sound = frame.checksum == partial
            && summary.end as usize == bytes.len()
            && (!tcp || header >= 20)
            && cut.headers <= bytes.len().min(u8::MAX.into())
            && cut.size > 0
            && cut.segments() <= MAX_SEGMENTS;
        if !sound {
            return Err(Unfit::Malformed);
        }
        if frame.gso.kind == Segmentation::Fragments {
            return cut.into_fragments(frame, &summary);
        }
        Ok(cut)
    }

    /// Segments; one of no payload if the super-frame has none.
    #[must_use]
    pub fn segments(&self) -> usize {
        (self.len - self.payload).div_ceil(self.size).max(1)
    }

    /// Octets of segment `index`, without padding and check sequence.
    #[must_use]
    pub fn segment_len(&self, index: usize) -> usize {
        let before = (index * self.size).min(self.len - self.payload);
        self.headers + self.size.min(self.len - self.payload - before)
    }

    /// Octets of all segments, without padding and check sequences.
    pub(crate) fn octets(&self) -> usize {
        self.segments() * self.headers + self.len - self.payload
    }

    /// Octets of all segments on the line, without preambles and gaps.
    fn octets_on_line(&self) -> usize {
        let on_line = |index| (self.segment_len(index) + FCS).max(MIN_FRAME);
        let last = self.segments() - 1;
        last * on_line(0) + on_line(last)
    }

    /// Makes `out` segment `index` of `frame`, without padding. Returns false if its buffer is too small.
    pub fn write(&self, frame: &Contents, index: usize, out: &mut Contents) -> bool {
        let len = self.segment_len(index);
        let Some(room) = out.buffer_mut().get_mut(..len) else {
            return false;
        };
        let (headers, payload) = room.split_at_mut(self.headers);
        headers[..self.payload].copy_from_slice(&frame.bytes()[..self.payload]);
        let begin = self.payload + index * self.size;
        payload.copy_from_slice(&frame.bytes()[begin..begin + payload.len()]);
        let checksum = if let Some(fragments) = &self.fragments {
            self.set_fragment(fragments, headers, payload, index);
            Checksum::Unknown
        } else {
            self.set_network_header(&mut headers[self.network_offset..], index, len);
            self.set_transport_header(&mut headers[self.transport_offset..], index, len);
            insert_checksum(&mut room[self.transport_offset..], self.tcp);
            Checksum::Valid
        };
        out.set_len(len);
        out.arrival = frame.arrival;
        out.excess = 0;
        (out.hash, out.hash_report) = (frame.hash, frame.hash_report);
        (out.fcs, out.checksum) = (frame.fcs, checksum);
        out.gso = Gso::default();
        true
    }

    fn set_network_header(&self, header: &mut [u8], index: usize, len: usize) {
        let packet = len - self.network_offset;
        if self.network == Network::Ipv6 {
            put(header, 4, (packet - 40) as u16);
            return;
        }
        put(header, 2, packet as u16);
        put(header, 4, get(header, 4).wrapping_add(index as u16));
        insert_header_checksum(&mut header[..self.transport_offset - self.network_offset]);
    }

    /// All but the checksum, whose field then holds the pseudo-header's sum.
    fn set_transport_header(&self, header: &mut [u8], index: usize, len: usize) {
        if self.tcp {
            let before = (index * self.size) as u32;
            let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            header[4..8].copy_from_slice(&sequence.wrapping_add(before).to_be_bytes());
            if index + 1 != self.segments() {
                header[TCP_FLAGS] &= !(FIN | PSH);
            }
            if index > 0 {
                header[TCP_FLAGS] &= !CWR;
            }
        } else {
            put(header, 4, (len - self.transport_offset) as u16);
        }
        // The super-frame's length is in the sum that it came with.
        let field = checksum_field(self.tcp);
        let all = (self.len - self.transport_offset) as u16;
        let here = (len - self.transport_offset) as u16;
        let sum = u64::from(get(header, field)) + u64::from(!all);
        put(header, field, checksum::sum(&here.to_be_bytes(), sum));
    }
}

/// Looks at a super-frame before it may go on or come from the line, and notes what it costs there. One that is no more than a
/// single frame becomes an ordinary one.
///
/// # Errors
/// It cannot be cut into frames of the port whose MAC is `mac`.
#[cold]
pub fn admit(frame: &mut Contents, mac: &Mac) -> Result<(), Unfit> {
    let cut = Cut::of(frame)?;
    let is_one = cut.segments() == 1;
    // A fragment has a header more, which a packet in one piece has not.
    let longest = if is_one {
        frame.len()
    } else {
        cut.segment_len(0)
    };
    if mac.oversize(frame.bytes(), longest + FCS) {
        return Err(Unfit::Oversize);
    }
    if is_one {
        frame.gso = Gso::default();
        return Ok(());
    }
    frame.gso.headers = cut.replicated() as u8;
    frame.gso.size = cut.size as u16;
    let counted = (frame.len() + FCS).max(MIN_FRAME);
    frame.excess = (cut.octets_on_line() - counted) as u32;
    Ok(())
}

/// Frames that `frame`, which was admitted, stands for.
#[must_use]
#[inline]
pub fn frames(frame: &Contents) -> usize {
    if frame.is_super() { several(frame) } else { 1 }
}

#[cold]
fn several(frame: &Contents) -> usize {
    let payload = frame.len() - usize::from(frame.gso.headers);
    let payload = match frame.gso.kind {
        // Fragments are of the whole datagram.
        Segmentation::Fragments => payload + UDP_HEADER,
        _ => payload,
    };
    payload.div_ceil(frame.gso.size.max(1).into())
}

/// Counts `frame`, which was admitted, in `sizes` as the frames that it stands for, padded and with check sequences.
#[cold]
pub fn count_sizes(frame: &Contents, sizes: &mut Sizes) {
    let on_line = |octets: usize| (octets + FCS).max(MIN_FRAME);
    if !frame.is_super() {
        sizes.count(on_line(frame.len()));
        return;
    }
    let cut = Cut::of(frame).expect("it was admitted");
    // But for the last one all are of one size.
    let last = cut.segments() - 1;
    sizes.count_many(on_line(cut.segment_len(0)), last as u64);
    sizes.count(on_line(cut.segment_len(last)));
}

/// Octets of the frames that `frame`, which was admitted, stands for, without padding and check sequences.
#[must_use]
#[cold]
pub fn octets(frame: &Contents) -> usize {
    Cut::of(frame).map_or(frame.len(), |cut| cut.octets())
}

/// Has `line` carry `frame`, which was admitted, as the frames that it stands for, but not before `ready`; returns the
/// instant of the last one's last bit.
pub fn carry(line: &mut Line, frame: &Contents, ready: Nanos) -> Nanos {
    let between = (frames(frame) - 1) * LINE_OVERHEAD;
    line.carry(phy::octets_on_line(frame) + between, ready)
}

/// Whether `frame`, which was admitted, has TCP's CWR flag, which only the first of its segments may have.
#[must_use]
pub fn reduces_congestion_window(frame: &Contents) -> bool {
    let Checksum::Partial { start, .. } = frame.checksum else {
        return false;
    };
    let flags = frame.bytes().get(usize::from(start) + TCP_FLAGS);
    let tcp = matches!(frame.gso.kind, Segmentation::Tcpv4 | Segmentation::Tcpv6);
    tcp && flags.is_some_and(|flags| flags & CWR != 0)
}

/// Whether `frame`, which was admitted, is of IPv6.
#[must_use]
pub fn is_ipv6(frame: &Contents) -> bool {
    match frame.gso.kind {
        Segmentation::Tcpv4 | Segmentation::None => false,
        Segmentation::Tcpv6 => true,
        Segmentation::Udp | Segmentation::Fragments => {
            parse::summarise(frame.bytes()).network == Network::Ipv6
        }
    }
}

/// Makes the checksum of a frame of TCP or UDP, whatever its field holds, one that has yet to be computed.
pub fn leave_checksum(frame: &mut Contents) {
    let summary = parse::summarise(frame.bytes());
    let (protocol, tcp) = match summary.transport {
        Transport::Tcp => (6, true),
        Transport::Udp => (17, false),
        Transport::None => return,
    };
    let Some(pseudo) = pseudo_header(frame.bytes(), &summary, protocol) else {
        return;
    };
    let start = usize::from(summary.transport_offset);
    let field = checksum_field(tcp);
    put(&mut frame.bytes_mut()[start..], field, pseudo);
    frame.checksum = Checksum::Partial {
        start: summary.transport_offset,
        offset: field as u16,
    };
}

/// The sum of the pseudo-header of a packet with the headers `summary`.
fn pseudo_header(bytes: &[u8], summary: &Summary, protocol: u64) -> Option<u16> {
    let network = usize::from(summary.network_offset);
    let addresses = match summary.network {
        Network::Ipv4 => network + 12..network + 20,
        Network::Ipv6 => network + 8..network + 40,
        Network::Other => return None,
    };
    let len = u64::from(summary.end) - u64::from(summary.transport_offset);
    Some(checksum::sum(bytes.get(addresses)?, protocol + len))
}

/// Completes the checksum of `segment`, which begins with the transport header.
fn insert_checksum(segment: &mut [u8], tcp: bool) {
    let sum = !checksum::sum(segment, 0);
    // For UDP, zero means that there is none (RFC 768).
    let sum = if sum == 0 && !tcp { 0xffff } else { sum };
    put(segment, checksum_field(tcp), sum);
}

/// Writes the checksum of `header`, one of IPv4 with its options, whatever was there: cutting repairs a wrong one, as Linux's GSO does.
pub(crate) fn insert_header_checksum(header: &mut [u8]) {
    put(header, 10, 0);
    put(header, 10, !checksum::sum(header, 0));
}

fn checksum_field(tcp: bool) -> usize {
    usize::from(if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM })
}

pub(crate) fn get(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

pub(crate) fn put(header: &mut [u8], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod fragment_tests;
#[cfg(test)]
pub(crate) mod tests;
