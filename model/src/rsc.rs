//! Receive-side coalescing (RSC; Linux calls it LRO): segments of one TCP flow that come together go to the host as one super-frame.
//!
//! In: the frames of one burst, each steered and in its FIFO's account. Out: the same, but that segments which follow on each other are
//! one super-frame in the place of the last of them. A flow keeps its order, and nothing waits for a later burst: there is no timer. Nothing
//! is dropped; where there is no big buffer, or more flows than [`CONTEXTS`], frames stay as they are.
//!
//! Merged is only what [`segment`] takes apart again octet for octet, which is what Linux's GSO would make of it: TCP (RFC 9293)
//! over IPv4 without options or IPv6 without extension headers, with payload, verified checksums and no padding. All headers are the same, VLAN
//! tags, TTL, TOS, acknowledgement, window and options (so also timestamps) among them, but for what each segment has of its own: sequence
//! numbers follow on each other, IPv4's identifications count up, all payloads are as long as the first but the last, which may be
//! shorter, and only the last may have PSH or FIN, only the first CWR (RFC 3168, 6.1.2). Whatever else comes of a flow ends what was begun
//! of it. An acknowledgement without payload is never merged, so none is lost.

use crate::checksum;
use crate::fifo::Occupancy;
use crate::frame::{Checksum, Contents, Fcs, Frame, Gso, Pool, Segmentation};
use crate::host::QueueIndex;
use crate::mac::Mac;
use crate::parse::{self, IPV6_HEADER, Network, Summary, Transport};
use crate::port::GONE;
use crate::segment::{self, CWR, FIN, MAX_SEGMENTS, PSH, TCP_FLAGS, get, put};

/// Flows of which segments may wait for others in a burst, of all queues together; an Intel 82599 has as many a queue.
pub const CONTEXTS: usize = 32;

/// Octets of the longest headers that are looked at: Ethernet with four tags, IPv6, TCP with all options.
const LONGEST_HEADERS: usize = 14 + 4 * 4 + 40 + 60;
/// Octets of the longest IP packet.
const LONGEST_PACKET: usize = u16::MAX as usize;
/// Octets of IPv4's header without options.
const IPV4_HEADER: usize = 20;

/// TCP's flags that a segment may have, and the one that it has to have.
const ECE: u8 = 0x40;
const ACK: u8 = 0x10;
const POSSIBLE: u8 = ACK | ECE | CWR | PSH | FIN;
/// Those that end a super-frame.
const LAST: u8 = PSH | FIN;

/// Super-frames that the host takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// Of TCP over IPv4.
    pub ipv4: bool,
    /// Of TCP over IPv6.
    pub ipv6: bool,
    /// Of either, if they have CWR.
    pub ecn: bool,
}

/// A burst that has been steered, and what it takes to merge of it.
#[derive(Debug)]
pub struct Burst<'a> {
    /// Its frames.
    pub frames: &'a mut [Frame],
    /// Where their buffers come from.
    pub pool: &'a mut Pool,
    /// What segments have to be fit for.
    pub mac: &'a Mac,
    /// In whose account they are.
    pub fifos: &'a mut [Occupancy],
}

/// The block that merges.
#[derive(Debug, Default)]
pub struct Rsc {
    /// Whether the card is to do it at all.
    enabled: bool,
    /// What the host accepted when it was set up, and what it takes at the moment.
    accepted: Takes,
    takes: Takes,
    contexts: Vec<Context>,
}

/// Which conversation a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    queue: QueueIndex,
    network: Network,
    /// Addresses and ports; what IPv4 needs less is zero.
    ends: [u8; 36],
}

/// A segment that may be merged.
#[derive(Debug)]
struct Segment {
    flow: Flow,
    network: usize,
    transport: usize,
    /// Octets of all headers, and those headers without what each segment has of its own.
    headers: usize,
    alike: [u8; LONGEST_HEADERS],
    identification: u16,
    sequence: u32,
    flags: u8,
    payload: usize,
}

/// A flow of which a segment has come in this burst.
#[derive(Debug)]
struct Context {
    /// Its first segment.
    first: Segment,
    /// Segments so far, and octets of their payloads.
    segments: usize,
    payload: usize,
    /// Octets that they took on the line.
    octets: u32,
    /// Which frame of the burst is the last of them.
    last: usize,
    /// What they are merged into, if they are several.
    whole: Option<Frame>,
}

impl Rsc {
    /// The block of a card that is to merge if it is `enabled`, and the host takes what it makes.
    #[must_use]
    pub fn new(enabled: bool) -> Self {
        Rsc {
            enabled,
            contexts: Vec::with_capacity(if enabled { CONTEXTS } else { 0 }),
            ..Rsc::default()
        }
    }

    /// Whether there is anything to merge for.
    #[must_use]
    #[inline]
    pub fn is_on(&self) -> bool {
        self.takes.ipv4 | self.takes.ipv6
    }

    /// The host has accepted `takes`. What it switched off stays so until it accepts something else.
    pub fn accept(&mut self, takes: Takes) {
        if self.accepted != takes {
            self.accepted = takes;
            self.switch(takes);
        }
    }

    /// The host takes all again that it has accepted.
    pub fn restore(&mut self) {
        self.switch(self.accepted);
    }

    /// From now on the host takes `takes`.
    pub fn switch(&mut self, takes: Takes) {
        self.takes = if self.enabled {
            takes
        } else {
            Takes::default()
        };
    }

    /// Merges what can be of a burst. What is in a super-frame now has no octets ([`Contents::octets`]), and is to be removed.
    #[cold]
    pub fn merge(&mut self, burst: &mut Burst<'_>) {
        for at in 0..burst.frames.len() {
            match self.look(&burst.frames[at]) {
                Look::Stranger => {}
                Look::Other(flow) => self.end(&flow, burst),
                Look::Segment(segment) => self.take(segment, at, burst),
            }
        }
        for context in self.contexts.drain(..) {
            context.finish(burst);
        }
    }

    /// What `frame` is to this block.
    fn look(&self, frame: &Contents) -> Look {
        let bytes = frame.bytes();
        let summary = parse::summarise(bytes);
        let Some(flow) = Flow::of(frame, &summary) else {
            return Look::Stranger;
        };
        let taken = match summary.network {
            Network::Ipv4 => self.takes.ipv4,
            _ => self.takes.ipv6,
        };
        let usual = taken
            && !frame.is_super()
            && frame.checksum == Checksum::Valid
            && frame.fcs == Fcs::Offloaded
            && summary.end as usize == bytes.len();
        let segment = usual.then(|| Segment::of(bytes, &summary, flow)).flatten();
        match segment {
            Some(segment) if self.takes.ecn || segment.flags & CWR == 0 => Look::Segment(segment),
            _ => Look::Other(flow),
        }
    }

    /// Adds `segment`, which is frame `at`, to its flow's, or begins anew with it.
    fn take(&mut self, segment: Segment, at: usize, burst: &mut Burst<'_>) {
        let known = |context: &Context| context.first.flow == segment.flow;
        if let Some(number) = self.contexts.iter().position(known) {
            let context = &mut self.contexts[number];
            let added = context.is_followed_by(&segment) && context.add(&segment, at, burst);
            let shorter = segment.payload < context.first.payload;
            if !added || segment.flags & LAST != 0 || shorter {
                self.contexts.swap_remove(number).finish(burst);
            }
            if added {
                return;
            }
        }
        if segment.flags & LAST == 0 && self.contexts.len() < CONTEXTS {
            self.contexts.push(Context {
                segments: 1,
                payload: segment.payload,
                octets: burst.frames[at].octets,
                last: at,
                whole: None,
                first: segment,
            });
        }
    }

    /// Nothing follows any more on what has come of `flow`.
    fn end(&mut self, flow: &Flow, burst: &mut Burst<'_>) {
        let known = |context: &Context| context.first.flow == *flow;
        if let Some(number) = self.contexts.iter().position(known) {
            self.contexts.swap_remove(number).finish(burst);
        }
    }
}

/// What a frame is.
#[allow(clippy::large_enum_variant)] // it is looked at once, where it is made
enum Look {
    /// Of no flow that could have segments.
    Stranger,
    /// Of a flow, but not to be merged.
    Other(Flow),
    /// To be merged.
    Segment(Segment),
}

impl Flow {
    fn of(frame: &Contents, summary: &Summary) -> Option<Self> {
        if summary.transport != Transport::Tcp {
            return None;
        }
        let network = usize::from(summary.network_offset);
        let addresses = match summary.network {
            Network::Ipv4 => network + 12..network + 20,
            _ => network + 8..network + 40,
        };
        let transport = usize::from(summary.transport_offset);
        let bytes = frame.bytes();
        let mut ends = [0; 36];
        ends[..4].copy_from_slice(&bytes[transport..transport + 4]);
        ends[4..4 + addresses.len()].copy_from_slice(&bytes[addresses]);
        Some(Flow {
            queue: frame.queue,
            network: summary.network,
            ends,
        })
    }
}

impl Segment {
    /// The segment in `bytes`, whose headers are `summary`, if it is one to be merged, or to be merged with.
    fn of(bytes: &[u8], summary: &Summary, flow: Flow) -> Option<Self> {
        let network = usize::from(summary.network_offset);
        let transport = usize::from(summary.transport_offset);
        let tcp = &bytes[transport..];
        let headers = transport + usize::from(tcp[12] >> 4) * 4;
        let flags = tcp[TCP_FLAGS];
        let is_data = headers >= transport + 20
            && headers < bytes.len()
            && headers <= LONGEST_HEADERS
            && flags & ACK != 0
            && flags & !POSSIBLE == 0;
        if !is_data {
            return None;
        }
        let mut alike = [0; LONGEST_HEADERS];
        alike[..headers].copy_from_slice(&bytes[..headers]);
        let identification = match summary.network {
            Network::Ipv4 => {
                let ip = &mut alike[network..transport];
                if ip.len() != IPV4_HEADER || !is_one_of_ours(ip, get(ip, 10)) {
                    return None;
                }
                let identification = get(ip, 4);
                put(ip, 2, 0);
                put(ip, 4, 0);
                put(ip, 10, 0);
                identification
            }
            _ if transport - network != usize::from(IPV6_HEADER) => return None,
            _ => {
                put(&mut alike[network..], 4, 0);
                0
            }
        };
        let tcp = &mut alike[transport..headers];
        // All ones are as right as zero, which is what is computed.
        if get(tcp, 16) == 0xffff {
            return None;
        }
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        tcp[4..8].fill(0);
        tcp[TCP_FLAGS] &= !(LAST | CWR);
        put(tcp, 16, 0);
        Some(Segment {
            flow,
            network,
            transport,
            headers,
            alike,
            identification,
            sequence,
            flags,
            payload: bytes.len() - headers,
        })
    }
}

/// Whether `checksum`, which an IPv4 header has, is the one that would be computed for it.
fn is_one_of_ours(header: &[u8], checksum: u16) -> bool {
    checksum != 0xffff && checksum::sum(header, 0) == 0xffff
}

impl Context {
    /// Whether `next`, of the same flow, is what follows on its segments.
    fn is_followed_by(&self, next: &Segment) -> bool {
        let first = &self.first;
        let identification = first.identification.wrapping_add(self.segments as u16);
        let packet = first.headers - first.network + self.payload + next.payload;
        next.headers == first.headers
            && next.alike == first.alike
            && next.sequence == first.sequence.wrapping_add(self.payload as u32)
            && (first.flow.network == Network::Ipv6 || next.identification == identification)
            && next.payload <= first.payload
            && next.flags & CWR == 0
            && packet <= LONGEST_PACKET
            && self.segments < MAX_SEGMENTS
    }

    /// Adds `next`, which is frame `at`. Returns false if there is no big buffer.
    fn add(&mut self, next: &Segment, at: usize, burst: &mut Burst<'_>) -> bool {
        if self.whole.is_none() {
            let Some(mut whole) = burst.pool.take_big_received() else {
                return false;
            };
            let fits = whole.fill(burst.frames[self.last].bytes());
            debug_assert!(fits, "no frame is longer than a super-frame");
            self.whole = Some(whole);
        }
        let Some(whole) = &mut self.whole else {
            return false;
        };
        let (len, frame) = (whole.len(), &burst.frames[at]);
        let payload = &frame.bytes()[next.headers..];
        whole.buffer_mut()[len..len + payload.len()].copy_from_slice(payload);
        whole.set_len(len + payload.len());
        whole.bytes_mut()[next.transport + TCP_FLAGS] |= next.flags & LAST;
        self.segments += 1;
        self.payload += next.payload;
        self.octets += frame.octets;
        burst.frames[self.last].octets = GONE;
        self.last = at;
        true
    }

    /// Puts what the segments were merged into in the place of the last of them.
    fn finish(self, burst: &mut Burst<'_>) {
        let Some(mut whole) = self.whole else {
            return;
        };
        let first = &self.first;
        let packet = whole.len() - first.network;
        let ip = &mut whole.bytes_mut()[first.network..first.transport];
        let kind = if first.flow.network == Network::Ipv4 {
            put(ip, 2, packet as u16);
            segment::insert_header_checksum(ip);
            Segmentation::Tcpv4
        } else {
            put(ip, 4, (packet - ip.len()) as u16);
            Segmentation::Tcpv6
        };
        whole.gso = Gso {
            kind,
            headers: 0,
            size: first.payload as u16,
        };
        segment::leave_checksum(&mut whole);
        let admitted = segment::admit(&mut whole, burst.mac);
        debug_assert!(admitted.is_ok() && whole.is_super(), "{admitted:?}");
        let last = &mut burst.frames[self.last];
        whole.octets = self.octets;
        whole.fifo_end = last.fifo_end;
        whole.arrival = last.arrival;
        whole.queue = last.queue;
        (whole.hash, whole.hash_report) = (last.hash, last.hash_report);
        burst.pool.give(std::mem::replace(last, whole));
        burst.fifos[usize::from(first.flow.queue.0)].merge(self.segments - 1);
    }
}

#[cfg(test)]
mod tests;
