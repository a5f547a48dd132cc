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

/// What goes wrong with one half of a queue pair, on purpose ([`fault`](crate::fault)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Its DMA stands still from now on, for a time.
    DmaStall,
    /// What was moved is shown later than usual.
    SlowUsed,
    /// It interrupts for nothing.
    SpuriousInterrupt,
}

/// Octets after which a burst that a driver sends may end: with super-frames a whole one would keep the line from the other
/// queues for milliseconds.
pub const ENOUGH: usize = 256 * 1024;

/// What a driver had to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Frames that were read, the dropped ones included.
    pub frames: usize,
    /// Whether more wait: the budget, or something else, ended the burst before there were none left.
    pub more: bool,
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
    /// `drops` and not appended. Returns how many frames it read, and whether more wait; a budget of 0 asks for nothing else.
    fn fetch_tx(
        &mut self,
        queue: QueueIndex,
        budget: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        drops: &mut Drops,
    ) -> Fetched;

    /// Gives the buffers of all frames fetched so far on `queue` back to the driver.
    fn complete_tx(&mut self, queue: QueueIndex);

    /// Interrupts the driver of `queue`, unless it asked not to be.
    fn interrupt(&mut self, queue: QueueIndex, direction: Direction);

    /// Shows the driver all frames delivered so far on `queue`. Called only where a fault delays that; else it is
    /// [`Host::deliver`]'s part.
    fn complete_rx(&mut self, _queue: QueueIndex) {}

    /// A fault befalls `queue`: the host counts it, and interrupts for nothing if that is what it is.
    fn fault(&mut self, _queue: QueueIndex, _direction: Direction, _fault: Fault) {}
}

/// A host that records what is delivered to it, of each frame a `T`, and sends what a test gave it.
#[derive(Debug)]
pub struct Recorder<T = Vec<u8>> {
    /// What it keeps of a frame.
    pub keep: fn(&Frame) -> T,
    /// Frames delivered, in order, with their queue.
    pub delivered: Vec<(QueueIndex, T)>,
    /// Frames to be sent.
    pub to_send: std::collections::VecDeque<(Vec<u8>, crate::frame::Checksum)>,
    /// Buffers left to receive into; `None` is as many as it takes.
    pub buffers: Option<usize>,
    /// Interrupts raised.
    pub interrupts: Vec<(QueueIndex, Direction)>,
    /// Times that the driver was shown delivered frames later than usual.
    pub shown_late: usize,
    /// Faults that befell queues.
    pub faults: Vec<(QueueIndex, Direction, Fault)>,
    /// Times that buffers of packets were given back.
    pub completed: usize,
}

impl<T> Recorder<T> {
    /// One that keeps what `keep` makes of a frame.
    #[must_use]
    pub fn keeping(keep: fn(&Frame) -> T) -> Self {
        Recorder {
            keep,
            delivered: Vec::new(),
            to_send: Default::default(),
            buffers: None,
            interrupts: Vec::new(),
            shown_late: 0,
            faults: Vec::new(),
            completed: 0,
        }
    }
}

impl Default for Recorder {
    /// One that keeps the octets.
    fn default() -> Self {
        Recorder::keeping(|frame| frame.bytes().to_vec())
    }
}

impl<T> Host for Recorder<T> {
    fn receives(&self, _queue: QueueIndex) -> bool {
        true
    }

    fn deliver(&mut self, queue: QueueIndex, frames: &[Frame], _drops: &mut Drops) -> usize {
        let taken = self.buffers.unwrap_or(frames.len()).min(frames.len());
        if let Some(buffers) = &mut self.buffers {
            *buffers -= taken;
        }
        self.delivered.extend(
            frames[..taken]
                .iter()
                .map(|frame| (queue, (self.keep)(frame))),
        );
        taken
    }

    fn fetch_tx(
        &mut self,
        _queue: QueueIndex,
        budget: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        drops: &mut Drops,
    ) -> Fetched {
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
        Fetched {
            frames: count,
            more: !self.to_send.is_empty(),
        }
    }

    fn complete_tx(&mut self, _queue: QueueIndex) {
        self.completed += 1;
    }

    fn interrupt(&mut self, queue: QueueIndex, direction: Direction) {
        self.interrupts.push((queue, direction));
    }

    fn complete_rx(&mut self, _queue: QueueIndex) {
        self.shown_late += 1;
    }

    fn fault(&mut self, queue: QueueIndex, direction: Direction, fault: Fault) {
        self.faults.push((queue, direction, fault));
    }
}
