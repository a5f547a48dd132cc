//! A capture that is replayed to the card, and one that the card's frames are written to.
//!
//! With each link-up the replay starts anew from the first record: frames leave with the capture's own spacing,
//! counted from the first record, or at a constant rate. They carry their check sequence if the file has it, so that
//! bad ones can be tried. Records that lack the rest of their frame are skipped and counted; a damaged or
//! unreadable capture ends the replay there, with a warning and a count. What the card sends enters and is
//! dropped, or written.
//!
//! The file is read as the replay goes on, one record ahead, so that its size does not matter. Reading and
//! writing files may wait for a disk; that is the price of a wire for tests.

mod reader;

use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::{info, warn};
use nic_model::frame::{Checksum, Frame, Pool};
use nic_model::time::Nanos;

use super::capture::CaptureWriter;
use super::pace::Pace;
use super::{OpenError, Wire};
pub use reader::{CaptureError, Next, Reader};

/// How long what was written may stay in memory.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// Records without a frame that are passed over at once; the rest have to wait for the next call.
const SKIPPED_AT_ONCE: usize = 1024;

/// A replay, and a capture of what the card sends.
pub struct Replay {
    path: PathBuf,
    pps: Option<NonZeroU64>,
    state: State,
    /// A frame of the pool: the next one to come in [`State::Ready`], else its buffer for another.
    ahead: Option<Frame>,
    output: Option<CaptureWriter>,
    last_flush: Nanos,
    replays: u64,
    frames: u64,
    truncated: u64,
    errors: u64,
    sunk: u64,
}

enum State {
    /// No link, or nothing left.
    Stopped,
    /// The link came up at this instant; the file is not yet open.
    Starting(Nanos),
    /// There may be another record.
    Reading(Box<Position>),
    /// [`Replay::ahead`] is the next frame.
    Ready(Box<Position>),
}

struct Position {
    reader: Reader,
    start: Nanos,
    /// The first record's timestamp.
    first: Option<u64>,
    /// The last frame's arrival: timestamps that go backwards do not.
    last: Nanos,
    pace: Option<Pace>,
    frames: u64,
}

impl Replay {
    /// Replays `input`, at `pps` frames a second if given, and writes to `output`. The first frame is read
    /// at once, so that what is no capture of Ethernet frames is refused here.
    ///
    /// # Errors
    /// The one cannot be read or the other not be written.
    pub fn open(
        input: &Path,
        output: Option<&Path>,
        pps: Option<NonZeroU64>,
    ) -> Result<Self, OpenError> {
        let unreadable = |reason| OpenError::Capture {
            path: input.to_owned(),
            reason,
        };
        let mut reader = Reader::open(input).map_err(unreadable)?;
        let mut trial = Pool::new(64).take();
        reader.next(&mut trial).map_err(unreadable)?;
        let output = match output {
            None => None,
            Some(path) => {
                let same = |a, b| matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b);
                if same(input, path) {
                    let path = path.to_owned();
                    return Err(OpenError::SameFile { path });
                }
                let writer = CaptureWriter::create(path).map_err(|source| OpenError::Create {
                    path: path.to_owned(),
                    source,
                })?;
                Some(writer)
            }
        };
        Ok(Replay {
            path: input.to_owned(),
            pps,
            state: State::Stopped,
            ahead: None,
            output,
            last_flush: Nanos::ZERO,
            replays: 0,
            frames: 0,
            truncated: 0,
            errors: 0,
            sunk: 0,
        })
    }

    /// Reads ahead: from [`State::Starting`] or [`State::Reading`] to [`State::Ready`], or to an end. Many
    /// records without a frame leave it at [`State::Reading`].
    fn read_ahead(&mut self, pool: &mut Pool) {
        let outcome = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Starting(start) => self.start(start).and_then(|p| self.advance(p, pool)),
            State::Reading(position) => self.advance(position, pool),
            settled => Ok(settled),
        };
        match outcome {
            Ok(state) => self.state = state,
            Err(error) => {
                warn!(
                    "{}: the replay ends after {} frames: {error}",
                    self.path.display(),
                    self.frames
                );
                self.errors += 1;
            }
        }
        if matches!(self.state, State::Stopped) {
            pool.give_all(self.ahead.take());
        }
    }

    fn start(&mut self, start: Nanos) -> Result<Box<Position>, CaptureError> {
        self.replays += 1;
        Ok(Box::new(Position {
            reader: Reader::open(&self.path)?,
            start,
            first: None,
            last: start,
            pace: self.pps.map(|pps| Pace::constant(pps, start)),
            frames: 0,
        }))
    }

    fn advance(
        &mut self,
        mut position: Box<Position>,
        pool: &mut Pool,
    ) -> Result<State, CaptureError> {
        let frame = self.ahead.get_or_insert_with(|| pool.take());
        for _ in 0..SKIPPED_AT_ONCE {
            let time = match position.reader.next(frame)? {
                Next::Frame(time) => time,
                Next::Truncated(time) => {
                    position.first.get_or_insert(time);
                    self.truncated += 1;
                    continue;
                }
                Next::End => {
                    info!(
                        "{}: replayed to its end, {} frames",
                        self.path.display(),
                        position.frames
                    );
                    return Ok(State::Stopped);
                }
            };
            let first = *position.first.get_or_insert(time);
            frame.checksum = Checksum::Unknown;
            frame.arrival = match &mut position.pace {
                Some(pace) => pace.advance(),
                None => position.start + Duration::from_nanos(time.saturating_sub(first)),
            }
            .max(position.last);
            position.last = frame.arrival;
            position.frames += 1;
            return Ok(State::Ready(position));
        }
        Ok(State::Reading(position))
    }

    /// The next frame, if it is due.
    fn take_due(&mut self, now: Nanos, pool: &mut Pool) -> Option<Frame> {
        if matches!(self.state, State::Starting(_) | State::Reading(_)) {
            self.read_ahead(pool);
        }
        let State::Ready(_) = &self.state else {
            return None;
        };
        let frame = self.ahead.take_if(|frame| frame.arrival <= now)?;
        if let State::Ready(position) = std::mem::replace(&mut self.state, State::Stopped) {
            self.state = State::Reading(position);
        }
        self.frames += 1;
        Some(frame)
    }

    fn flush(&mut self, now: Nanos) {
        if let Some(output) = &mut self.output {
            output.flush();
        }
        self.last_flush = now;
    }

    fn flush_deadline(&self) -> Option<Nanos> {
        let dirty = self.output.as_ref().is_some_and(CaptureWriter::is_dirty);
        dirty.then(|| self.last_flush + FLUSH_AFTER)
    }
}

impl Wire for Replay {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        for _ in 0..room {
            let Some(frame) = self.take_due(now, pool) else {
                break;
            };
            frames.push(frame);
        }
        // Read on now, so that the next deadline is known.
        if matches!(self.state, State::Reading(_)) {
            self.read_ahead(pool);
        }
        if self.flush_deadline().is_some_and(|due| due <= now) {
            self.flush(now);
        }
    }

    fn transmit(&mut self, now: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.sunk += frames.len() as u64;
        if let Some(output) = &mut self.output {
            for frame in &*frames {
                output.write(frame);
            }
            if now >= self.last_flush + FLUSH_AFTER {
                self.flush(now);
            }
        }
        pool.give_all(frames.drain(..));
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let replay = match &self.state {
            State::Stopped => None,
            State::Starting(start) => Some(*start),
            State::Reading(position) => Some(position.last),
            State::Ready(_) => self.ahead.as_ref().map(|frame| frame.arrival),
        };
        [replay, self.flush_deadline()].into_iter().flatten().min()
    }

    fn link_changed(&mut self, now: Nanos, up: bool) {
        self.state = match up {
            true => State::Starting(now),
            false => State::Stopped,
        };
        if !up {
            self.flush(now);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = vec![
            ("pcap_replays", self.replays),
            ("pcap_frames", self.frames),
            ("pcap_truncated", self.truncated),
            ("pcap_errors", self.errors),
        ];
        if let Some(output) = &self.output {
            let (written, unwritten) = output.counts();
            counters.push(("pcap_written", written));
            counters.push(("pcap_unwritten", unwritten));
        } else {
            counters.push(("pcap_sunk", self.sunk));
        }
        counters
    }
}

#[cfg(test)]
mod tests;
