//! The link partner's MAC Control: what stands before a wire whose other end has flow control with the card.
//!
//! A PAUSE frame that the card sends ends here, and nothing more comes from the wire until its time is over or another one
//! says so (IEEE 802.3, annex 31B). A frame that stops single priorities (IEEE 802.1Q, clause 36) ends here, too; what comes of them is
//! kept until they may go on, and all else passes. It is the partner's MAC, next to its wire: faults of the line are in front of it, and damaged frames
//! end here, whatever the wire behind would do with them. A frame that was due meanwhile leaves then; what a wire would have lost in that time it still loses.

mod stopped;

use std::os::fd::BorrowedFd;

use nic_model::filter::MacAddress;
use nic_model::frame::{Frame, Pool};
use nic_model::pause::{self, Control};
use nic_model::phy::Speed;
use nic_model::time::Nanos;

use super::Wire;
use stopped::Stopped;

/// The partner's MAC, and the wire behind it.
pub(crate) struct MacControl {
    behind: Box<dyn Wire>,
    speed: Speed,
    /// Until when nothing comes.
    until: Nanos,
    /// PAUSE frames that came.
    paused: u64,
    resumed: u64,
    /// The same of single priorities, once the card has spoken of any.
    priorities: Option<Box<Stopped>>,
}

impl MacControl {
    /// Has `wire` obey the PAUSE frames of a card whose line has the rate `speed`.
    pub(crate) fn before(wire: Box<dyn Wire>, speed: Speed) -> Self {
        MacControl {
            behind: wire,
            speed,
            until: Nanos::ZERO,
            paused: 0,
            resumed: 0,
            priorities: None,
        }
    }

    /// Obeys `frame` if it is one of MAC Control. Returns whether it is.
    fn obey(&mut self, frame: &Frame) -> bool {
        // The partner's own address is nobody's business here: such frames go to the group.
        let Some(control) = pause::read(frame.bytes(), MacAddress::default()) else {
            return false;
        };
        match control {
            Control::Pause(quanta) => {
                self.until = Nanos(frame.arrival.0 + pause::nanoseconds(quanta, self.speed));
                if quanta == 0 {
                    self.resumed += 1;
                } else {
                    self.paused += 1;
                }
            }
            Control::Priorities(request) => {
                let priorities = self.priorities.get_or_insert_default();
                priorities.obey(&request, frame.arrival, self.speed);
            }
            Control::Other => {}
        }
        true
    }
}

impl Wire for MacControl {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        if let Some(priorities) = &mut self.priorities {
            priorities.clear_lost(pool);
        }
        if now < self.until {
            return;
        }
        let before = frames.len();
        match &mut self.priorities {
            None => self.behind.receive(now, room, pool, frames),
            Some(priorities) => priorities.receive(&mut *self.behind, now, room, pool, frames),
        }
        for frame in &mut frames[before..] {
            frame.arrival = frame.arrival.max(self.until);
        }
    }

    fn transmit(&mut self, now: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        if let Some(priorities) = &mut self.priorities {
            priorities.clear_lost(pool);
        }
        pool.give_all(frames.extract_if(.., |frame| self.obey(frame)));
        if !frames.is_empty() {
            self.behind.transmit(now, pool, frames);
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let priorities = self.priorities.as_ref();
        let is_full = priorities.is_some_and(|stopped| stopped.full_until().is_some());
        let behind = self.behind.next_deadline().filter(|_| !is_full);
        let kept = priorities.and_then(|stopped| stopped.due());
        let due = behind.into_iter().chain(kept).min();
        due.map(|due| due.max(self.until))
    }

    fn busy_until(&self) -> Nanos {
        let full = self.priorities.as_ref();
        let full = full.and_then(|stopped| stopped.full_until());
        let until = self.until.max(full.unwrap_or_default());
        until.max(self.behind.busy_until())
    }

    fn has_super_frames(&self) -> bool {
        self.behind.has_super_frames()
    }

    fn waits(&self) -> bool {
        self.behind.waits()
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.behind.readable()
    }

    fn set_speed(&mut self, speed: Speed) {
        self.speed = speed;
        self.behind.set_speed(speed);
    }

    fn link_changed(&mut self, now: Nanos, up: bool) {
        self.until = Nanos::ZERO;
        if let Some(priorities) = &mut self.priorities {
            priorities.link_changed(up);
        }
        self.behind.link_changed(now, up);
    }

    fn is_gone(&self) -> bool {
        self.behind.is_gone()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.behind.counters();
        counters.push(("partner_paused", self.paused));
        counters.push(("partner_resumed", self.resumed));
        if let Some(priorities) = &self.priorities {
            counters.extend(priorities.counters());
        }
        counters
    }
}

#[cfg(test)]
mod super_frame_tests;
#[cfg(test)]
mod tests;
