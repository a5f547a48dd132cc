//! The seam between the card and the computer it is plugged into.
//!
//! A [`Host`] is the DMA engine with its descriptor rings: it writes received frames into the buffers that
//! a driver posted, reads the frames that a driver wants sent, and raises interrupts. Everything comes
//! in bursts, one queue at a time, so that an implementation pays for its index updates once a burst.
//!
//! [`Recorder`] is the simplest one: it keeps what it is given.

use std::fmt;

use crate::counters::Drops;
use crate::frame::{Frame, Pool};

/// The number of a queue pair, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIndex(pub u16);

impl fmt::Display for QueueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which half of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Frames from the wire to the host.
    Receive,
    /// Frames from the host to the wire.
    Transmit,
}

/// Whoever has the buffers: the DMA engine's view of a computer.
pub trait Host {
    /// Whether the driver has enabled the receive half of `queue`. A frame for a queue that it has not is dropped.
    fn receives(&self, queue: QueueIndex) -> bool;

    /// Writes the first of `frames` into the buffers posted on `queue`, in order, and returns how many were
    /// dealt with. Those are delivered, or counted in `drops` (a buffer too small for its frame, say).
    /// Fewer than given means that the driver has posted no more buffers.
    fn deliver(&mut self, queue: QueueIndex, frames: &[Frame], drops: &mut Drops) -> usize;

    /// Reads up to `budget` frames that the driver wants sent on `queue` and appends them to `frames`, their
    /// buffers taken from `pool`. What cannot be sent as it is (a malformed header, say) is counted in
    /// `drops` and not appended. Returns how many frames it read, the dropped ones included.
    fn fetch_tx(
        &mut self,
        queue: QueueIndex,
        budget: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        drops: &mut Drops,
    ) -> usize;

    /// Gives the buffers of all frames fetched so far on `queue` back to the driver.
    fn complete_tx(&mut self, queue: QueueIndex);

    /// Interrupts the driver of `queue`, unless it asked not to be.
    fn interrupt(&mut self, queue: QueueIndex, direction: Direction);
}

/// A host that records what is delivered to it and sends what a test gave it.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Frames delivered, in order, with their queue.
    pub delivered: Vec<(QueueIndex, Vec<u8>)>,
    /// Frames to be sent.
    pub to_send: std::collections::VecDeque<(Vec<u8>, crate::frame::Checksum)>,
    /// Buffers left to receive into; `None` is as many as it takes.
    pub buffers: Option<usize>,
    /// Interrupts raised.
    pub interrupts: Vec<(QueueIndex, Direction)>,
}

impl Host for Recorder {
    fn receives(&self, _queue: QueueIndex) -> bool {
        true
    }

    fn deliver(&mut self, queue: QueueIndex, frames: &[Frame], _drops: &mut Drops) -> usize {
        let taken = self.buffers.unwrap_or(frames.len()).min(frames.len());
        if let Some(buffers) = &mut self.buffers {
            *buffers -= taken;
        }
        self.delivered
            .extend(frames[..taken].iter().map(|f| (queue, f.bytes().to_vec())));
        taken
    }

    fn fetch_tx(
        &mut self,
        _queue: QueueIndex,
        budget: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        drops: &mut Drops,
    ) -> usize {
        let count = budget.min(self.to_send.len());
        for (bytes, checksum) in self.to_send.drain(..count) {
            let mut frame = pool.take();
            if frame.fill(&bytes) {
                frame.checksum = checksum;
                frames.push(frame);
            } else {
                drops.count(crate::counters::Drop::TxOversize);
                pool.give(frame);
            }
        }
        count
    }

    fn complete_tx(&mut self, _queue: QueueIndex) {}

    fn interrupt(&mut self, queue: QueueIndex, direction: Direction) {
        self.interrupts.push((queue, direction));
    }
}
