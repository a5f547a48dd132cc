//! The port's way for super-frames: to the line and its counters each is the frames that it stands for.
//!
//! From a wire that gives them they go on as one, to be filtered and steered once; what a driver does not take is cut behind
//! the FIFO. To a wire that takes them they go as one, to any other in segments.

use super::{Fifos, Port};
use crate::checksum;
use crate::counters::Drop;
use crate::filter::Destination;
use crate::frame::{Checksum, Contents, FCS, Frame};
use crate::host::QueueIndex;
use crate::mac::MIN_FRAME;
use crate::parse;
use crate::phy;
use crate::rsc::Burst;
use crate::segment::{self, Cut, MAX_SEGMENTS, Unfit};
use crate::time::Nanos;
use crate::tunnel;

/// Octets that a super-frame from the wire may take in a FIFO: 64 KiB, and headers for each segment of the usual size.
pub const LONGEST_SUPER_FRAME: usize = 72 * 1024;

impl Port {
    /// Says whether the wire gives and takes super-frames.
    pub fn set_super_frames(&mut self, wire_has_them: bool) {
        self.wire_has_super_frames = wire_has_them;
    }

    /// Octets that a FIFO has to have room for before the wire is asked.
    #[inline]
    pub(super) fn longest(&self) -> usize {
        let buffer = self.pool.buffer_size();
        if self.wire_has_super_frames {
            LONGEST_SUPER_FRAME.max(buffer)
        } else {
            buffer
        }
    }

    /// A super-frame's way from the line to its queue.
    #[cold]
    pub(super) fn ingress_super(&mut self, frame: &mut Contents) -> Result<(), Drop> {
        if !matches!(frame.checksum, Checksum::Partial { .. }) {
            // Another card's, which had verified it.
            segment::leave_checksum(frame);
        }
        if let Err(unfit) = segment::admit(frame, &self.mac) {
            return Err(self.refuse(frame, unfit));
        }
        if !frame.is_super() {
            return self.ingress(frame, false);
        }
        self.look_closer();
        let frames = segment::frames(frame);
        frame.octets = phy::octets_on_line(frame) as u32;
        segment::count_sizes(frame, &mut self.counters.rx_sizes);
        frame.arrival = segment::carry(&mut self.phy.rx, frame, frame.arrival);
        // The caller counts one.
        self.counters.rx_frames += frames as u64 - 1;
        self.counters.rx_octets += u64::from(frame.octets);
        self.steer_super(frame, frames as u64)
            .inspect_err(|&reason| {
                // The one that the caller counts, and the others.
                self.counters.drops.count_many(reason, frames - 1);
            })?;
        self.counters.rx_merged += frames as u64 - 1;
        Ok(())
    }

    fn steer_super(&mut self, frame: &mut Contents, frames: u64) -> Result<(), Drop> {
        let bytes = frame.bytes();
        self.weigh(bytes, frames)?;
        let summary = parse::summarise(bytes);
        if summary.is_tagged() && !self.filter.promiscuous {
            self.vlan.admit(bytes)?;
        }
        self.counters.rx_checksums.count_left(frames);
        // If the host has it cut it sees none of that: each segment gets a checksum of its own.
        if !checksum::is_header_right(bytes, &summary) {
            self.counters.rx_checksums.count_bad_header(frames);
        }
        let inner = tunnel::inner(bytes, &summary, self.hash_tunnel_types);
        let hashed = inner.as_ref().unwrap_or(&summary);
        let steered = self.rss.steer(bytes, hashed, &Fifos(&self.fifos));
        self.police(frame, frames, &steered)?;
        (frame.hash, frame.hash_report) = (steered.hash, steered.report);
        frame.queue = steered.queue.ok_or(Drop::RxResteered)?;
        self.admit_by_priority(frame, frame.queue, frames)?;
        let queue = usize::from(frame.queue.0);
        if self.fifos[queue].push(frame) || self.push_shared(queue, frame) {
            self.fifos[queue].count_super(frames as usize);
            self.enter_by_priority(frame);
            Ok(())
        } else {
            self.lines[queue].rx_overflows += frames;
            Err(Drop::RxFifoOverflow)
        }
    }

    /// Counts a super-frame that is none: on the line it was one frame of its octets.
    fn refuse(&mut self, frame: &mut Contents, unfit: Unfit) -> Drop {
        self.look_closer();
        let octets = (frame.len() + FCS).max(MIN_FRAME);
        frame.octets = octets as u32;
        frame.arrival = self.phy.rx.carry(octets, frame.arrival);
        self.counters.rx_octets += octets as u64;
        unfit.received()
    }

    /// Has segments that came in one burst merged, as far as the host takes what that gives.
    #[cold]
    pub(super) fn coalesce(&mut self, frames: &mut Vec<Frame>) {
        let before = frames.len();
        if before < 2 {
            return;
        }
        self.rsc.merge(&mut Burst {
            frames,
            pool: &mut self.pool,
            mac: &self.mac,
            fifos: &mut self.fifos,
        });
        self.remove_gone(frames);
        let merged = (before - frames.len()) as u64;
        self.counters.rx_merged += merged;
        self.counters.rx_coalesced += merged;
    }

    /// Puts `frames` of `queue`, of which some may be super-frames, on the line, each when its rate lets it, and appends them to `out`.
    #[cold]
    pub(super) fn send_one_by_one(
        &mut self,
        ready: Nanos,
        queue: QueueIndex,
        frames: &mut Vec<Frame>,
        out: &mut Vec<Frame>,
    ) {
        for mut frame in frames.drain(..) {
            let stands_for = segment::frames(&frame);
            self.counters.tx_segments_made += stands_for as u64 - 1;
            segment::count_sizes(&frame, &mut self.counters.tx_sizes);
            let destination = Destination::of_frame(frame.bytes());
            self.counters.count_sent(destination, stands_for as u64);
            let octets = phy::octets_on_line(&frame);
            let ready = self.shape(queue, stands_for, octets, ready);
            if stands_for > 1 && !self.wire_has_super_frames {
                self.send_segments(ready, queue, frame, stands_for, out);
                continue;
            }
            frame.arrival = segment::carry(&mut self.phy.tx, &frame, ready);
            self.count_line(queue, stands_for as u64, octets as u64);
            out.push(frame);
        }
    }

    fn send_segments(
        &mut self,
        ready: Nanos,
        queue: QueueIndex,
        frame: Frame,
        frames: usize,
        out: &mut Vec<Frame>,
    ) {
        let cut = Cut::of(&frame).expect("it was admitted");
        debug_assert!(cut.segments() == frames && frames <= MAX_SEGMENTS);
        for index in 0..frames {
            let mut segment = self.pool.take();
            let fits = cut.write(&frame, index, &mut segment);
            debug_assert!(fits, "it was admitted");
            pad(&mut segment);
            let octets = phy::octets_on_line(&segment);
            segment.arrival = self.phy.tx.carry(octets, ready);
            self.count_line(queue, 1, octets as u64);
            out.push(segment);
        }
        self.pool.give(frame);
    }
}

/// Pads a frame to the minimum (IEEE 802.3, 3.2.8).
fn pad(frame: &mut Contents) {
    let len = frame.len();
    if len < MIN_FRAME - FCS {
        frame.set_len(MIN_FRAME - FCS);
        frame.bytes_mut()[len..].fill(0);
    }
}

#[cfg(test)]
mod tests;
