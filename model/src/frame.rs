//! Frames and the pool that their buffers come from.
//!
//! A [`Frame`] owns one buffer. It moves from block to block by handle; the bytes stay where the wire or
//! the DMA engine put them. Whoever ends a frame's way gives it back to the [`Pool`], so that nothing
//! is allocated once the pool has warmed up.

use std::ops::{Deref, DerefMut};

use crate::host::QueueIndex;
use crate::rss::HashReport;
use crate::time::Nanos;

/// Octets of an Ethernet header without tags (IEEE 802.3, 3.1.1).
pub const ETHERNET_HEADER: usize = 14;
/// Octets of one VLAN tag (IEEE 802.1Q, 9.3).
pub const VLAN_TAG: usize = 4;
/// Octets of the frame check sequence (IEEE 802.3, 3.2.9).
pub const FCS: usize = 4;

/// Where the frame check sequence of a frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fcs {
    /// Off-loaded: it is right by construction and not in the buffer, as are the padding octets that
    /// bring a short frame to the minimum. So are frames that came through another system's software.
    #[default]
    Offloaded,
    /// The last four octets of the buffer; whoever receives the frame has to check them.
    Present,
    /// The same, and the line carried half an octet more, which is not in the buffer (dribble bits: IEEE 802.3, 4.2.4.2.1). Only
    /// lines that carry half an octet at a time, of 10 and 100 Mb/s, do that.
    Dribbled,
}

/// What is known of a frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it was not looked at, or there is none.
    #[default]
    Unknown,
    /// It was verified, and is right.
    Valid,
    /// It was verified, and is wrong.
    Bad,
    /// It has yet to be computed over `start..` and stored at `start + offset` (octets from the first
    /// octet of the frame); the field holds the pseudo-header's sum.
    Partial {
        /// First octet that the sum covers.
        start: u16,
        /// Where the checksum field is, counted from `start`.
        offset: u16,
    },
}

/// Which frames a super-frame stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segmentation {
    /// Itself: it is an ordinary frame.
    #[default]
    None,
    /// Segments of TCP over IPv4.
    Tcpv4,
    /// Segments of TCP over IPv6.
    Tcpv6,
    /// Datagrams of UDP over either.
    Udp,
    /// Fragments of IP, of either version, of one datagram of UDP.
    Fragments,
}

/// The state of a frame's segmentation. A super-frame has [`Checksum::Partial`]: each of its segments gets a checksum
/// of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gso {
    /// What it stands for.
    pub kind: Segmentation,
    /// Octets of the super-frame's headers, the transport header included; known once the card has looked at it
    /// ([`segment`](crate::segment)). Before, what a driver says that they are, 0 if it says nothing.
    pub headers: u8,
    /// Octets of payload in each segment but the last, which has the rest; of fragments, the UDP header is among it.
    pub size: u16,
}

/// One Ethernet frame: a handle, the size of a pointer, to a buffer of the pool and what the card knows of its contents.
#[derive(Debug)]
pub struct Frame(Box<Contents>);

/// What a [`Frame`] refers to: a cache line, and the buffer.
#[derive(Debug)]
#[repr(align(64))]
pub struct Contents {
    buffer: Box<[u8]>,
    len: u32,
    /// Octets that the line carried beyond those in the buffer: of a frame that is too long for the card, what the
    /// buffer has no room for; of a super-frame, the headers that are repeated, check sequences and padding.
    pub excess: u32,
    /// Octets that it took on the line, with padding and check sequence; known once the port has received it.
    pub octets: u32,
    /// Where they end among all that its FIFO has taken ([`Occupancy`](crate::fifo::Occupancy)).
    pub(crate) fifo_end: u32,
    /// When its last bit arrived (receive) or will have left (transmit).
    pub arrival: Nanos,
    /// The hash that it was steered by, 0 if there is none.
    pub hash: u32,
    /// The queue that it was steered to.
    pub queue: QueueIndex,
    /// What was hashed.
    pub hash_report: HashReport,
    /// Where its frame check sequence is.
    pub fcs: Fcs,
    /// The state of its transport checksum.
    pub checksum: Checksum,
    /// Whether it stands for several.
    pub gso: Gso,
    /// See [`Contents::pattern`].
    pattern: u32,
}

// What is added has to fit into the cache line.
const _: () = assert!(size_of::<Contents>() == 64);

impl Deref for Frame {
    type Target = Contents;
    #[inline]
    fn deref(&self) -> &Contents {
        &self.0
    }
}

impl DerefMut for Frame {
    #[inline]
    fn deref_mut(&mut self) -> &mut Contents {
        &mut self.0
    }
}

impl Contents {
    /// Forgets all but the buffer, and what is known of it.
    #[inline]
    fn clear(&mut self) {
        self.len = 0;
        self.excess = 0;
        self.octets = 0;
        self.arrival = Nanos::ZERO;
        self.hash = 0;
        self.queue = QueueIndex(0);
        self.hash_report = HashReport::None;
        self.fcs = Fcs::Offloaded;
        self.checksum = Checksum::Unknown;
        self.gso = Gso::default();
    }

    /// The frame's octets, from the destination address on.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len()]
    }

    /// The frame's octets, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pattern = 0;
        &mut self.buffer[..self.len as usize]
    }

    /// The whole buffer, whatever the frame's length: where a wire or the DMA engine writes before it
    /// calls [`Contents::set_len`].
    #[inline]
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        self.pattern = 0;
        &mut self.buffer
    }

    /// What whoever wrote to the buffer last said that it holds, 0 if nothing. Who takes a frame from the pool and finds a pattern of
    /// its own there need not write it again.
    #[must_use]
    #[inline]
    pub fn pattern(&self) -> u32 {
        self.pattern
    }

    /// Says what the buffer holds, until it is written to.
    #[inline]
    pub fn set_pattern(&mut self, pattern: u32) {
        self.pattern = pattern;
    }

    /// Octets in the frame, the FCS included if it is there to be checked.
    #[must_use]
    #[inline]
    #[allow(clippy::len_without_is_empty)] // a frame is never empty in the sense of a collection
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Sets the number of octets in the frame; more than the buffer holds becomes what it holds.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.buffer.len()) as u32;
    }

    /// The first octet of its destination address, whose lowest bit says that this is a group (IEEE 802.3, 3.2.3).
    #[must_use]
    #[inline]
    pub fn first_octet(&self) -> u8 {
        self.buffer.first().copied().unwrap_or(0)
    }

    /// Whether it is a super-frame, which stands for several frames.
    #[must_use]
    #[inline]
    pub fn is_super(&self) -> bool {
        self.gso.kind != Segmentation::None
    }

    /// Copies `bytes` into the frame. Returns false, and leaves the frame empty, if they do not fit.
    #[must_use]
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        self.pattern = 0;
        let Some(room) = self.buffer.get_mut(..bytes.len()) else {
            self.len = 0;
            return false;
        };
        room.copy_from_slice(bytes);
        self.len = bytes.len() as u32;
        true
    }
}

/// Octets of a buffer for a super-frame: the longest IP packet behind an Ethernet header with tags. Each super-frame has one,
/// however short it is.
pub const BIG_BUFFER: usize = 64 * 1024 + 256;
/// Buffers that a pool keeps: more come back after a burst of super-frames that were cut, or from FIFOs that were full.
const KEPT: usize = 8192;
/// Big buffers that a pool lends, to packets as long as there is room, to received frames no more than some; and that it keeps.
const BIG_LENT: usize = 48;
const BIG_RECEIVED: usize = 32;
const BIG_KEPT: usize = 16;

/// Buffers of one size, used again and again, the last one given back first (it is still in the cache). A few big
/// ones are for super-frames.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Frame>,
    free_big: Vec<Frame>,
    big_lent: usize,
    buffer_size: usize,
    lent: usize,
}

impl Pool {
    /// A pool of buffers of `buffer_size` octets each. It holds none yet: they are made on first use.
    #[must_use]
    pub fn new(buffer_size: usize) -> Self {
        Pool {
            free: Vec::with_capacity(1024),
            free_big: Vec::new(),
            big_lent: 0,
            buffer_size,
            lent: 0,
        }
    }

    /// Whether buffers for super-frames are in use: without, no frame at hand is one.
    #[must_use]
    #[inline]
    pub fn lends_big(&self) -> bool {
        self.big_lent > 0
    }

    /// Octets that a buffer holds.
    #[must_use]
    pub fn buffer_size(&self) -> usize {
        self.buffer_size
    }

    /// Frames that were taken and have not come back.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// An empty frame. Its buffer holds whatever its last user left there.
    #[inline]
    pub fn take(&mut self) -> Frame {
        self.lent += 1;
        let Some(mut frame) = self.free.pop() else {
            return Self::make(self.buffer_size);
        };
        frame.clear();
        frame
    }

    /// Big buffers that packets may be given before some have to come back.
    #[must_use]
    #[inline]
    pub fn big_room(&self) -> usize {
        BIG_LENT.saturating_sub(self.big_lent)
    }

    /// Super-frames that may be received before some have to come back.
    #[must_use]
    #[inline]
    pub fn big_room_received(&self) -> usize {
        BIG_RECEIVED.saturating_sub(self.big_lent)
    }

    /// An empty frame with a buffer of [`BIG_BUFFER`] octets for a received super-frame, or none if too many are in use.
    #[cold]
    pub fn take_big_received(&mut self) -> Option<Frame> {
        (self.big_room_received() > 0).then(|| self.take_big())
    }

    /// An empty frame with a buffer of [`BIG_BUFFER`] octets, whoever asks for it: see [`Pool::big_room`].
    #[cold]
    pub fn take_big(&mut self) -> Frame {
        self.lent += 1;
        self.big_lent += 1;
        let Some(mut frame) = self.free_big.pop() else {
            return Self::make(BIG_BUFFER);
        };
        frame.clear();
        frame
    }

    #[cold]
    fn make(buffer_size: usize) -> Frame {
        Frame(Box::new(Contents {
            buffer: vec![0; buffer_size].into_boxed_slice(),
            len: 0,
            excess: 0,
            octets: 0,
            fifo_end: 0,
            arrival: Nanos::ZERO,
            hash: 0,
            queue: QueueIndex(0),
            hash_report: HashReport::None,
            fcs: Fcs::Offloaded,
            checksum: Checksum::Unknown,
            gso: Gso::default(),
            pattern: 0,
        }))
    }

    /// Takes a frame's buffer back.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        self.lent -= 1;
        if self.big_lent > 0 && self.is_big(&frame) {
            self.give_big(frame);
        } else if self.free.len() < KEPT {
            self.free.push(frame);
        }
    }

    #[inline]
    fn is_big(&self, frame: &Frame) -> bool {
        frame.buffer.len() != self.buffer_size
    }

    #[cold]
    fn give_big(&mut self, frame: Frame) {
        self.big_lent = self.big_lent.saturating_sub(1);
        if self.free_big.len() < BIG_KEPT {
            self.free_big.push(frame);
        }
    }

    /// A frame comes from another pool of buffers of this size, to be given to this one in the end.
    #[inline]
    pub fn adopt(&mut self) {
        self.lent += 1;
    }

    /// A frame goes to another pool of buffers of this size. A big one counts as lent until that one has sent another for it
    /// ([`Pool::take_for`]).
    #[inline]
    pub fn part_with(&mut self) {
        self.lent -= 1;
    }

    /// An empty frame with a buffer as large as that of `frame`, for the pool that has given that one away.
    #[inline]
    pub fn take_for(&mut self, frame: &Frame) -> Frame {
        if self.is_big(frame) {
            self.take_big()
        } else {
            self.take()
        }
    }

    /// Takes the buffers of all `frames` back.
    #[inline]
    pub fn give_all(&mut self, frames: impl IntoIterator<Item = Frame>) {
        if self.big_lent > 0 {
            return frames.into_iter().for_each(|frame| self.give(frame));
        }
        let before = self.free.len();
        self.free.extend(frames);
        self.lent -= self.free.len() - before;
        if self.free.len() > KEPT {
            self.free.truncate(KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_given_back_is_the_next_one_taken() {
        let mut pool = Pool::new(2048);
        let mut frame = pool.take();
        assert!(frame.fill(&[7; 60]));
        let address = frame.bytes().as_ptr();
        pool.give(frame);
        let mut frame = pool.take();
        assert_eq!(frame.len(), 0);
        assert_eq!(frame.buffer_mut().as_ptr(), address);
        assert_eq!(pool.lent(), 1);
    }

    #[test]
    fn big_buffers_are_lent_apart_and_not_without_end() {
        let mut pool = Pool::new(2048);
        let mut big: Vec<_> = std::iter::from_fn(|| pool.take_big_received()).collect();
        assert_eq!((big.len(), pool.lent()), (BIG_RECEIVED, BIG_RECEIVED));
        assert_eq!(pool.big_room(), BIG_LENT - BIG_RECEIVED);
        let (usual, mut back) = (pool.take(), big.pop().unwrap());
        assert_eq!(back.buffer_mut().len(), BIG_BUFFER);
        let address = back.buffer_mut().as_ptr();
        pool.give_all([usual, back]);
        assert_eq!(pool.take().buffer_mut().len(), 2048);
        let mut again = pool.take_big_received().expect("one is free");
        assert_eq!(again.buffer_mut().as_ptr(), address);
        assert!(pool.take_big_received().is_none());
        pool.give_all(big);
        assert_eq!(pool.free_big.len(), BIG_KEPT, "the others are gone");
        pool.give(again);
        assert!(!pool.lends_big());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut pool = Pool::new(100);
        let mut frame = pool.take();
        assert!(!frame.fill(&[0; 101]));
        assert_eq!(frame.bytes(), &[] as &[u8]);
        frame.set_len(1000);
        assert_eq!(frame.len(), 100);
    }
}
