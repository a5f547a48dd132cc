//! One direction of a line on which things go wrong.
//!
//! What enters: frames, each with the instant from which it is on the line. What leaves: what became of them, each at its
//! instant, in order. Each frame goes through these steps, and each copy of it through all but the first two:
//!
//! 1. *drop*: it is lost; it took its time on the line all the same.
//! 2. *duplicate*: a second one follows it.
//! 3. *truncate*: it ends after a number of octets, each number from one octet to one less than all as likely. A line of 10 or
//!    100 Mb/s from the wire carries half an octet at a time (IEEE 802.3, clause 22), so a frame there may end with one.
//! 4. *ber*: bits from the destination address to the check sequence are wrong, each with the same probability. (One in preamble or
//!    delimiter would lose the frame, that is a *drop*.) Truncated and damaged frames have a check sequence that shows it.
//! 5. *delay*: it comes later, by a time that is uniformly distributed. Frames keep their order: one that would overtake
//!    comes with the one before.
//! 6. *reorder*: it lets some of those behind it pass, or comes when none of them has for [`PATIENCE`].
//!
//! A super-frame is cut first: each of its frames has its own fate. (One that cannot be cut passes; the card refuses it.)

use std::collections::VecDeque;
use std::time::Duration;

use nic_model::chance::{Chance, Random, Rare};
use nic_model::checksum;
use nic_model::frame::{Checksum, FCS, Fcs, Frame, Gso, Pool};
use nic_model::mac::{self, MIN_FRAME};
use nic_model::phy::{Line, Speed, octets_on_line};
use nic_model::segment::{self, Cut};
use nic_model::time::Nanos;
use serde::Serialize;

use super::spec::PathFaults;

/// Frames that are under way at most.
pub const ON_LINE: usize = 16 * 1024;
/// How long a frame waits for others to pass it.
pub const PATIENCE: Duration = Duration::from_millis(10);

/// What became of the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PathCounters {
    /// Frames that came to the line.
    pub frames: u64,
    /// Frames that super-frames stood for, beyond one each.
    pub segments_made: u64,
    /// Frames that came twice.
    pub duplicated: u64,
    /// Frames that were lost.
    pub dropped: u64,
    /// Frames whose end was cut off.
    pub truncated: u64,
    /// Frames with wrong bits.
    pub damaged: u64,
    /// Their wrong bits.
    pub bit_errors: u64,
    /// Frames that took longer.
    pub delayed: u64,
    /// Frames that others passed.
    pub reordered: u64,
    /// Frames lost since too many were under way.
    pub overflowed: u64,
    /// Frames that were under way when the link went down.
    pub link_lost: u64,
    /// Frames that the far end found damaged and took no further.
    pub refused: u64,
    /// Frames that went on, damaged ones among them.
    pub passed: u64,
    /// Frames that are under way.
    pub on_line: u64,
}

impl PathCounters {
    /// Frames that came less frames accounted for. Always zero.
    #[must_use]
    pub fn balance(&self) -> i64 {
        let came = self.frames + self.segments_made + self.duplicated;
        let lost = self.dropped + self.overflowed + self.link_lost + self.refused;
        came as i64 - (lost + self.passed + self.on_line) as i64
    }
}

/// A frame that lets others pass.
struct Late {
    frame: Frame,
    /// How many more.
    left: u32,
    passed: bool,
    /// When it has waited long enough.
    until: Nanos,
}

impl Late {
    /// One that was behind it passes.
    fn pass(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.passed = true;
    }
}

/// One direction.
pub struct Path {
    faults: PathFaults,
    drop: Chance,
    duplicate: Chance,
    truncate: Chance,
    bits: Rare,
    reorder: Chance,
    /// Where frames are cut, how much later they come, and how many they let pass.
    cut: Random,
    jitter: Random,
    depth: Random,
    /// What carries them, if nobody has yet: each takes its time, lost or not.
    line: Option<Line>,
    /// Whether it carries half an octet at a time.
    nibbles: bool,
    /// Frames under way, each with its instant in `arrival`.
    on_line: VecDeque<Frame>,
    late: Vec<Late>,
    /// The instant of the last that was put on the line.
    last: Nanos,
    /// Frames that were lost with the link, whose buffers have to be given back.
    lost: Vec<Frame>,
    counters: PathCounters,
}

/// Which purposes random numbers of a direction have, of 16 each.
pub const RX: u64 = 0;
pub const TX: u64 = 16;

impl Path {
    /// A direction on which `faults` happen, by chance as `seed` says; a line of `speed` carries the frames unless they have been
    /// carried.
    pub fn new(faults: PathFaults, seed: u64, direction: u64, speed: Option<Speed>) -> Self {
        let chance = |probability, purpose| Chance::new(probability, seed, direction + purpose);
        let random = |purpose| Random::new(seed, direction + purpose);
        Path {
            faults,
            drop: chance(faults.drop, 0),
            duplicate: chance(faults.duplicate, 1),
            truncate: chance(faults.truncate, 2),
            bits: Rare::new(faults.bit_errors, seed, direction + 3),
            reorder: chance(faults.reorder.probability, 4),
            cut: random(5),
            jitter: random(6),
            depth: random(7),
            line: speed.map(Line::new),
            nibbles: speed.is_some_and(carries_nibbles),
            on_line: VecDeque::new(),
            late: Vec::new(),
            last: Nanos::ZERO,
            lost: Vec::new(),
            counters: PathCounters::default(),
        }
    }

    /// The same with other faults; what is under way and the counts stay.
    pub fn replace(&mut self, with: Path) {
        let before = std::mem::replace(self, with);
        self.on_line = before.on_line;
        self.late = before.late;
        self.last = before.last;
        self.lost = before.lost;
        self.counters = before.counters;
    }

    /// Carries the frames at `speed` from now on, if it is this that carries them.
    pub fn set_speed(&mut self, speed: Speed) {
        if let Some(line) = &mut self.line {
            line.set_speed(speed);
            self.nibbles = carries_nibbles(speed);
        }
    }

    /// Goes on from the counts of one of before.
    pub fn go_on(&mut self, counters: PathCounters) {
        self.counters = PathCounters {
            on_line: 0,
            ..counters
        };
    }

    /// What became of its frames.
    pub fn counters(&self) -> PathCounters {
        PathCounters {
            on_line: (self.on_line.len() + self.late.len()) as u64,
            ..self.counters
        }
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.on_line.is_empty() && self.late.is_empty() && self.lost.is_empty()
    }

    /// Whether frames are kept for a time.
    pub fn holds(&self) -> bool {
        self.faults.holds()
    }

    /// When the line is free for the next frame to come.
    pub fn busy_until(&self) -> Nanos {
        self.line.as_ref().map_or(Nanos::ZERO, Line::busy_until)
    }

    /// Takes a frame, on the line from its `arrival` on.
    pub fn take(&mut self, mut frame: Frame, pool: &mut Pool) {
        if frame.is_super() {
            if !matches!(frame.checksum, Checksum::Partial { .. }) {
                segment::leave_checksum(&mut frame);
            }
            // One whose frames are longer than any of the port's is for the card to refuse.
            if let Ok(cut) = Cut::of(&frame)
                && cut.segment_len(0) <= pool.buffer_size()
            {
                return self.take_segments(frame, &cut, pool);
            }
        }
        self.counters.frames += 1;
        self.pass(frame, pool);
    }

    fn take_segments(&mut self, frame: Frame, cut: &Cut, pool: &mut Pool) {
        let segments = cut.segments();
        self.counters.frames += 1;
        self.counters.segments_made += segments as u64 - 1;
        for index in 0..segments {
            let mut segment = pool.take();
            let fits = cut.write(&frame, index, &mut segment);
            debug_assert!(fits, "the first one does");
            self.pass(segment, pool);
        }
        pool.give(frame);
    }

    /// Steps 1 and 2.
    fn pass(&mut self, frame: Frame, pool: &mut Pool) {
        let dropped = self.drop.strikes();
        let twice = self.duplicate.strikes() && !dropped && !frame.is_super();
        let copy = twice.then(|| copy(&frame, pool));
        if dropped {
            self.carry(&frame);
            self.counters.dropped += 1;
            pool.give(frame);
        } else {
            self.send(frame, pool);
        }
        if let Some(copy) = copy {
            self.counters.duplicated += 1;
            self.send(copy, pool);
        }
    }

    /// When `frame` begins on the line, which it then occupies.
    fn carry(&mut self, frame: &Frame) -> Nanos {
        match &mut self.line {
            None => frame.arrival,
            Some(line) => {
                let begins = line.busy_until().max(frame.arrival);
                line.carry(octets_on_line(frame), frame.arrival);
                begins
            }
        }
    }

    /// Steps 3 to 6.
    fn send(&mut self, mut frame: Frame, pool: &mut Pool) {
        let begins = self.carry(&frame);
        if !frame.is_super() {
            self.damage(&mut frame);
        }
        let delay = self.faults.delay;
        let delayed = self.jitter.around(delay.mean, delay.jitter);
        self.counters.delayed += u64::from(!delayed.is_zero());
        let due = begins + delayed;
        if self.on_line.len() + self.late.len() >= ON_LINE {
            self.counters.overflowed += 1;
            return pool.give(frame);
        }
        self.release_late(due);
        if self.reorder.strikes() {
            let left = 1 + self.depth.below(self.faults.reorder.depth.into()) as u32;
            let until = due + PATIENCE;
            let passed = false;
            frame.arrival = due;
            self.late.push(Late {
                frame,
                left,
                passed,
                until,
            });
            return;
        }
        self.put(frame, due);
        // It passes those that wait for it.
        self.late.iter_mut().for_each(Late::pass);
        self.release_late(due);
    }

    /// Puts a frame on the line, at `due` or with the one before.
    fn put(&mut self, mut frame: Frame, due: Nanos) {
        self.last = self.last.max(due);
        frame.arrival = self.last;
        self.on_line.push_back(frame);
    }

    /// Puts those on the line that enough have passed, or that have waited long enough by `now`, the oldest first. All that comes to
    /// the line by `now` has been taken. Returns whether there were any.
    pub fn release_late(&mut self, now: Nanos) -> bool {
        let before = self.late.len();
        let is_due = |late: &Late| late.left == 0 || late.until <= now;
        while let Some(at) = self.late.iter().position(is_due) {
            let late = self.late.remove(at);
            self.late[..at].iter_mut().for_each(Late::pass);
            self.counters.reordered += u64::from(late.passed);
            let due = match late.left {
                0 => late.frame.arrival,
                _ => late.until,
            };
            self.put(late.frame, due);
        }
        self.late.len() < before
    }

    /// Steps 3 and 4.
    fn damage(&mut self, frame: &mut Frame) {
        if self.truncate.strikes() && frame.len() > 1 {
            show_fcs(frame);
            let octets = frame.len() as u64 - 1;
            let (left, half) = if self.nibbles {
                let nibbles = 2 + self.cut.below(2 * octets);
                (nibbles / 2, nibbles % 2 == 1)
            } else {
                (1 + self.cut.below(octets), false)
            };
            frame.set_len(left as usize);
            if half {
                frame.fcs = Fcs::Dribbled;
            }
            frame.excess = 0;
            self.counters.truncated += 1;
        }
        let bits = 8 * octets_on_line(frame) as u64;
        let before = self.counters.bit_errors;
        let counters = &mut self.counters;
        self.bits.strike(bits, |bit| {
            if counters.bit_errors == before {
                show_fcs(frame);
            }
            counters.bit_errors += 1;
            // Beyond the buffer it is too long anyhow.
            if let Some(octet) = frame.bytes_mut().get_mut((bit / 8) as usize) {
                *octet ^= 1 << (bit % 8);
            }
        });
        self.counters.damaged += u64::from(self.counters.bit_errors > before);
    }

    /// The next frame on the line that has come by `now`. Once there is none, see [`Path::release_late`].
    pub fn next(&mut self, now: Nanos) -> Option<Frame> {
        let frame = self.on_line.pop_front_if(|frame| frame.arrival <= now)?;
        self.counters.passed += 1;
        Some(frame)
    }

    /// Whether the far end, which looks at its check sequence as a card does, takes a frame that has passed. One that it takes has none
    /// any more.
    pub fn is_taken(&mut self, frame: &mut Frame) -> bool {
        if frame.fcs == Fcs::Offloaded {
            return true;
        }
        let good = frame.bytes().split_last_chunk::<FCS>();
        if good.is_some_and(|(octets, sequence)| mac::fcs(octets) == *sequence) {
            let len = frame.len() - FCS;
            frame.set_len(len);
            frame.fcs = Fcs::Offloaded;
            return true;
        }
        self.counters.passed -= 1;
        self.counters.refused += 1;
        false
    }

    /// When the next frame comes that is under way.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let first = self.on_line.front().map(|frame| frame.arrival);
        let late = self.late.iter().map(|late| late.until);
        first.into_iter().chain(late).min()
    }

    /// The link has gone: what is under way is lost.
    pub fn lose(&mut self) {
        let late = self.late.drain(..).map(|late| late.frame);
        let before = self.lost.len();
        self.lost.extend(self.on_line.drain(..).chain(late));
        self.counters.link_lost += (self.lost.len() - before) as u64;
        self.last = Nanos::ZERO;
    }

    /// Gives the buffers of lost frames back.
    pub fn clear_lost(&mut self, pool: &mut Pool) {
        if !self.lost.is_empty() {
            pool.give_all(self.lost.drain(..));
        }
    }
}

/// Whether a line of `speed` carries half an octet at a time: with MII (IEEE 802.3, clause 22), not with GMII and faster ones.
fn carries_nibbles(speed: Speed) -> bool {
    speed.mbps() <= 100
}

/// Another frame like `frame`.
fn copy(frame: &Frame, pool: &mut Pool) -> Frame {
    let mut copy = pool.take_for(frame);
    let fits = copy.fill(frame.bytes());
    debug_assert!(fits, "it has a buffer of the same size");
    copy.excess = frame.excess;
    copy.arrival = frame.arrival;
    (copy.fcs, copy.checksum, copy.gso) = (frame.fcs, frame.checksum, Gso::default());
    copy
}

/// Puts what the line carries into the frame: the checksum that was left to somebody, padding, and the check sequence. The card is to
/// look at all of it.
fn show_fcs(frame: &mut Frame) {
    if let Checksum::Partial { start, offset } = frame.checksum {
        // One that lies outside of the frame would be the card's to refuse.
        let _ = checksum::insert(frame, start, offset);
    }
    frame.checksum = Checksum::Unknown;
    if frame.fcs != Fcs::Offloaded {
        return;
    }
    let len = frame.len();
    let padded = len.max(MIN_FRAME - FCS);
    frame.set_len(padded);
    frame.bytes_mut()[len..].fill(0);
    let sequence = mac::fcs(frame.bytes());
    let end = (padded + FCS).min(frame.buffer_mut().len());
    frame.set_len(end);
    // One that fills its buffer is longer than the port's longest, whatever it ends with.
    let at = end - FCS;
    frame.bytes_mut()[at..].copy_from_slice(&sequence);
    frame.fcs = Fcs::Present;
}
