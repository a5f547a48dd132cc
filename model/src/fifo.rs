//! The receive FIFO of one queue: frames that wait for a buffer of the host.
//!
//! Frames enter behind the filter and leave by DMA, in order. The port keeps account of the octets in it
//! ([`Occupancy`]): when the next frame does not fit it is the one that is dropped (tail drop), as a packet buffer
//! without flow control does it; a wire that can wait is not asked for one ([`Port::wire_is_paused`](crate::port::Port::wire_is_paused)). The frames themselves are with whoever serves the queue ([`Fifo`]).

use std::vec::Drain;

use crate::frame::Frame;

/// What is in the FIFO of one queue, as the port counts it: from the filter to the return of the buffer.
#[derive(Clone, Copy, Debug)]
pub struct Occupancy {
    octets: usize,
    capacity: usize,
    pushed: u64,
    drained: u64,
}

impl Occupancy {
    /// Of an empty FIFO for `capacity` octets; each frame counts as on the line, with padding and check sequence.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Occupancy {
            octets: 0,
            capacity,
            pushed: 0,
            drained: 0,
        }
    }

    /// Makes room for a frame of `octets`. Returns false if there is none.
    #[inline]
    #[must_use]
    pub fn push(&mut self, octets: usize) -> bool {
        let octets = self.octets + octets;
        if octets > self.capacity {
            return false;
        }
        self.octets = octets;
        self.pushed += 1;
        true
    }

    /// The oldest `frames` have left, of `octets` together.
    #[inline]
    pub fn drain(&mut self, frames: usize, octets: usize) {
        self.octets -= octets;
        self.drained += frames as u64;
    }

    /// Octets that there is room for.
    #[must_use]
    #[inline]
    pub fn free(&self) -> usize {
        self.capacity - self.octets
    }

    /// Octets in the FIFO.
    #[must_use]
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// Frames that have entered so far.
    #[must_use]
    #[inline]
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Frames that have left so far.
    #[must_use]
    #[inline]
    pub fn drained(&self) -> u64 {
        self.drained
    }
}

/// The frames in the FIFO of one queue.
#[derive(Debug)]
pub struct Fifo {
    /// Mostly few, and all of them leave at once; so nothing has to be moved up.
    frames: Vec<Frame>,
    /// Whether the host had no buffer for the oldest frame when it was last asked.
    pub refused: bool,
}

impl Default for Fifo {
    fn default() -> Self {
        Fifo {
            frames: Vec::with_capacity(2 * crate::BURST),
            refused: false,
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
        self.frames.drain(..count.min(self.frames.len()))
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
            assert_eq!(occupancy.push(frame.octets as usize), fits);
            if fits {
                fifo.push(frame);
            }
        }
        assert_eq!((fifo.len(), occupancy.pushed()), (3, 3));
        assert_eq!((occupancy.octets(), occupancy.free()), (1128, 0));
        let frames: Vec<_> = fifo.drain(2).collect();
        occupancy.drain(2, frames.iter().map(|frame| frame.octets as usize).sum());
        assert_eq!(frames[0].len(), 20);
        assert_eq!(frames[1].len(), 996);
        assert_eq!((fifo.len(), occupancy.octets()), (1, 64));
        assert_eq!((occupancy.pushed(), occupancy.drained()), (3, 2));
    }
}
