//! The receive FIFO of one queue: frames that wait for a buffer of the host, bounded by octets.
//!
//! Frames enter behind the filter and leave by DMA, in order. When the next frame does not fit it is the
//! one that is dropped (tail drop), as a packet buffer without flow control does it.

use std::collections::VecDeque;

use crate::frame::{FCS, Frame};

/// A first-in, first-out queue of frames that holds at most a number of octets.
#[derive(Debug)]
pub struct Fifo {
    frames: VecDeque<Frame>,
    octets: usize,
    capacity: usize,
    /// Whether the host had no buffer for the oldest frame when it was last asked.
    pub refused: bool,
}

impl Fifo {
    /// An empty FIFO for `capacity` octets; each frame counts with its check sequence.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Fifo {
            frames: VecDeque::with_capacity(2 * crate::BURST),
            octets: 0,
            capacity,
            refused: false,
        }
    }

    /// Adds a frame at the end.
    ///
    /// # Errors
    /// Gives the frame back when it does not fit.
    #[inline]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        let octets = frame.len() + FCS;
        if self.octets + octets > self.capacity {
            return Err(frame);
        }
        self.octets += octets;
        self.frames.push_back(frame);
        Ok(())
    }

    /// The frames from the oldest on, as many as lie side by side in memory.
    #[must_use]
    #[inline]
    pub fn front(&self) -> &[Frame] {
        self.frames.as_slices().0
    }

    /// The `n`-th oldest frame, from 0 on.
    #[must_use]
    pub fn get(&self, n: usize) -> Option<&Frame> {
        self.frames.get(n)
    }

    /// Removes the `count` oldest frames and hands them to `sink`.
    #[inline]
    pub fn drain(&mut self, count: usize, mut sink: impl FnMut(Frame)) {
        for frame in self.frames.drain(..count.min(self.frames.len())) {
            self.octets -= frame.len() + FCS;
            sink(frame);
        }
        if self.frames.is_empty() {
            // Starts again at the first slot, so that the next burst lies in one piece.
            self.frames.clear();
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;

    fn frame(pool: &mut Pool, len: usize) -> Frame {
        let mut frame = pool.take();
        frame.set_len(len);
        frame
    }

    #[test]
    fn it_is_bounded_by_octets_not_by_frames() {
        let mut pool = Pool::new(2048);
        let mut fifo = Fifo::new(2 * 64 + 1000);
        assert!(fifo.push(frame(&mut pool, 60)).is_ok());
        assert!(fifo.push(frame(&mut pool, 996)).is_ok());
        assert!(fifo.push(frame(&mut pool, 61)).is_err());
        assert!(fifo.push(frame(&mut pool, 60)).is_ok());
        assert_eq!((fifo.len(), fifo.octets()), (3, 1128));
        let mut lens = Vec::new();
        fifo.drain(2, |f| lens.push(f.len()));
        assert_eq!(lens, [60, 996]);
        assert_eq!((fifo.len(), fifo.octets()), (1, 64));
    }
}
