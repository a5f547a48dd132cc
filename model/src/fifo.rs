//! The receive FIFO of one queue: frames that wait for a buffer of the host.
//!
//! Frames enter behind the filter and leave by DMA, in order. The port keeps account of the octets in it
//! ([`Occupancy`]): when the next frame does not fit it is the one that is dropped (tail drop), as a packet buffer
//! without flow control does it; a wire that can wait is not asked for one ([`Port::wire_is_paused`](crate::port::Port::wire_is_paused)). The frames themselves are with whoever serves the queue ([`Fifo`]).

use std::vec::Drain;

use crate::frame::{Contents, Frame};
use crate::segment;
use crate::time::Nanos;

/// What is in the FIFO of one queue, as the port counts it: from the filter to the return of the buffer.
///
/// Octets are counted from the first that ever entered, cut to 32 bits: a FIFO never holds as many. A frame remembers how
/// far its own go, so that one look at the last of those that leave tells about all of them.
#[derive(Clone, Copy, Debug)]
pub struct Occupancy {
    entered: u32,
    left: u32,
    capacity: u32,
    pushed: u64,
    drained: u64,
    /// Of those that were pushed, such as are in a super-frame with the one before them.
    merged: u64,
}

impl Occupancy {
    /// Of an empty FIFO for `capacity` octets, 2^31 at most; each frame counts as on the line, with padding and check sequence.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Occupancy {
            entered: 0,
            left: 0,
            // Octets are compared as they wrap.
            capacity: capacity.min(u32::MAX as usize / 2) as u32,
            pushed: 0,
            drained: 0,
            merged: 0,
        }
    }

    /// The one that was pushed last is a super-frame that stands for `frames`.
    pub fn count_super(&mut self, frames: usize) {
        self.pushed += frames as u64 - 1;
        self.merge(frames - 1);
    }

    /// Makes room for `frame`, whose [`octets`](Contents::octets) are known. Returns false if there is none.
    #[inline]
    #[must_use]
    pub fn push(&mut self, frame: &mut Contents) -> bool {
        let entered = self.entered.wrapping_add(frame.octets);
        if entered.wrapping_sub(self.left) > self.capacity {
            return false;
        }
        self.enter(frame, entered);
        true
    }

    /// Takes `frame`, for which there is room elsewhere ([`PacketBuffer`](crate::packet_buffer::PacketBuffer)).
    pub fn push_beyond(&mut self, frame: &mut Contents) {
        self.enter(frame, self.entered.wrapping_add(frame.octets));
    }

    #[inline]
    fn enter(&mut self, frame: &mut Contents, entered: u32) {
        self.entered = entered;
        self.pushed += 1;
        frame.fifo_end = entered;
    }

    /// The oldest have left: `frames`, in order.
    #[inline]
    pub fn drain(&mut self, frames: &[Frame]) {
        if let Some(last) = frames.last() {
            self.left = last.fifo_end;
            self.drained += frames.len() as u64;
        }
    }

    /// `frames` of those that were pushed are in a super-frame with others now: they leave with it.
    pub fn merge(&mut self, frames: usize) {
        self.merged += frames as u64;
    }

    /// What left with `frames`, which were drained and of which some are super-frames.
    #[cold]
    pub fn drain_super(&mut self, frames: &[Frame]) {
        let with = |frame: &Frame| segment::frames(frame) as u64 - 1;
        self.drained += frames.iter().map(with).sum::<u64>();
    }

    /// Octets that there is room for.
    #[must_use]
    #[inline]
    pub fn free(&self) -> usize {
        (self.capacity as usize).saturating_sub(self.octets())
    }

    /// Octets beyond those that there is room for here.
    #[must_use]
    pub fn beyond(&self) -> usize {
        self.octets().saturating_sub(self.capacity as usize)
    }

    /// Octets in the FIFO.
    #[must_use]
    pub fn octets(&self) -> usize {
        self.entered.wrapping_sub(self.left) as usize
    }

    /// Frames that have entered so far; a super-frame as one.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.pushed - self.merged
    }

    /// Frames that have entered so far, each for itself.
    #[must_use]
    #[inline]
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Frames that have left so far, each for itself.
    #[must_use]
    #[inline]
    pub fn drained(&self) -> u64 {
        self.drained
    }
}

/// The frames in the FIFO of one queue.
#[derive(Debug)]
pub struct Fifo {
    /// Mostly few, and all of them leave at once; what stays behind is moved up.
    frames: Vec<Frame>,
    /// Whether the host had no buffer for the oldest frame when it was last asked.
    pub refused: bool,
    /// How many of the oldest were counted as having found no buffer.
    waited: usize,
}

impl Default for Fifo {
    fn default() -> Self {
        Fifo {
            frames: Vec::with_capacity(2 * crate::BURST),
            refused: false,
            waited: 0,
        }
    }
}

impl Fifo {
    /// Adds a frame at the end.
    #[inline]
    pub fn push(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    /// Adds all of `frames` at the end.
    #[inline]
    pub fn append(&mut self, frames: &mut Vec<Frame>) {
        self.frames.append(frames);
    }

    /// The frames from the oldest on.
    #[must_use]
    #[inline]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Removes the `count` oldest frames.
    #[inline]
    pub fn drain(&mut self, count: usize) -> Drain<'_, Frame> {
        self.waited = self.waited.saturating_sub(count);
        self.frames.drain(..count.min(self.frames.len()))
    }

    /// The host has no buffer for those that have arrived by `horizon`. Returns how many of them were not known to wait.
    #[cold]
    pub fn wait(&mut self, horizon: Nanos) -> u64 {
        let arrived = self
            .frames
            .partition_point(|frame| frame.arrival <= horizon);
        let more = arrived.saturating_sub(self.waited);
        self.waited += more;
        more as u64
    }

    /// Frames in the FIFO.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is no frame.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use crate::phy;

    fn frame(pool: &mut Pool, len: usize) -> Frame {
        let mut frame = pool.take();
        frame.set_len(len);
        frame
    }

    #[test]
    fn it_is_bounded_by_octets_not_by_frames() {
        let mut pool = Pool::new(2048);
        let (mut fifo, mut occupancy) = (Fifo::default(), Occupancy::new(2 * 64 + 1000));
        for (len, fits) in [(20, true), (996, true), (61, false), (60, true)] {
            let mut frame = frame(&mut pool, len);
            frame.octets = phy::octets_on_line(&frame) as u32;
            assert_eq!(occupancy.push(&mut frame), fits);
            if fits {
                fifo.push(frame);
            }
        }
        assert_eq!((fifo.len(), occupancy.pushed()), (3, 3));
        assert_eq!((occupancy.octets(), occupancy.free()), (1128, 0));
        let frames: Vec<_> = fifo.drain(2).collect();
        occupancy.drain(&frames);
        assert_eq!(frames[0].len(), 20);
        assert_eq!(frames[1].len(), 996);
        assert_eq!((fifo.len(), occupancy.octets()), (1, 64));
        assert_eq!((occupancy.pushed(), occupancy.drained()), (3, 2));
    }
}
