//! A line on which things go wrong: a decorator of any wire.
//!
//! Frames of both directions go through a path each, which loses, doubles, cuts, damages, delays and reorders them as a
//! [`FaultSpec`] says, by chance that repeats with the seed. From the wire they are carried here, at the line's rate, so that a
//! frame that is lost took its time; so a line without faults changes nothing. What is damaged towards us, the card finds and
//! counts by its check sequence; what is damaged on its way from us, the far end finds, and takes no further. Only a plug that has no
//! far end ([`Wire::is_passive`]) returns it.
//!
//! There is no decorator as long as there is no fault: [`Injection`] puts it on and takes it off while the card runs, has the link
//! come and go, and keeps the counts. A wire with faults neither gives nor takes super-frames: they are cut, and each frame has its own
//! fate. Flow control goes on, unless what we send is kept here for a time: it is taken further when the wire is asked for frames, and must
//! not wait for room for those.
//!
//! ```text
//! card -> loopback in the card, if frames turn there -> Faulty -> the partner's MAC Control -> wire
//! ```
//!
//! The line begins where a loopback in the card ends, so faults do not befall what turns there; and it ends at the partner's MAC, so
//! that PAUSE frames are lost and delayed like all others, and the partner's MAC refuses damaged ones.

use std::os::fd::BorrowedFd;

use nic_model::BURST;
use nic_model::frame::{Frame, Pool};
use nic_model::phy::Speed;
use nic_model::time::Nanos;

use super::Wire;
use super::none::NoWire;

mod injection;
mod path;
mod spec;

pub use injection::{FaultStatus, Injection};
pub use path::PathCounters;
pub use spec::{Delay, FaultSpec, Flap, PathFaults, Reorder};

use path::{Path, RX, TX};

/// Super-frames that are taken from the wire at once: each has a big buffer until it is cut, and there are not many.
const SUPER_BURST: usize = 16;

/// A wire with faults.
pub struct Faulty {
    inner: Box<dyn Wire>,
    rx: Path,
    tx: Path,
    passing: Vec<Frame>,
}

impl Faulty {
    /// `inner` with the faults of `spec`, on a line of `speed`.
    #[must_use]
    pub fn new(inner: Box<dyn Wire>, spec: &FaultSpec, speed: Speed) -> Self {
        let (rx, tx) = paths(spec, speed);
        Faulty {
            inner,
            rx,
            tx,
            passing: Vec::with_capacity(BURST),
        }
    }

    /// Has the faults of `spec` instead of those of before, on a line of `speed`. What is under way stays so.
    pub fn replace(&mut self, spec: &FaultSpec, speed: Speed) {
        let (rx, tx) = paths(spec, speed);
        self.rx.replace(rx);
        self.tx.replace(tx);
    }

    /// What became of the frames of both directions, from the wire and to it.
    #[must_use]
    pub fn paths(&self) -> [PathCounters; 2] {
        [self.rx.counters(), self.tx.counters()]
    }

    /// Goes on from the counts of one of before.
    fn go_on(&mut self, [rx, tx]: [PathCounters; 2]) {
        self.rx.go_on(rx);
        self.tx.go_on(tx);
    }

    /// Whether nothing is under way.
    fn is_empty(&self) -> bool {
        self.rx.is_empty() && self.tx.is_empty()
    }

    /// The wire below; nothing is left here.
    fn take_inner(&mut self) -> Box<dyn Wire> {
        std::mem::replace(&mut self.inner, Box::new(NoWire::default()))
    }

    /// Passes on to the far end what has come through by `until`.
    fn hand_over(&mut self, now: Nanos, until: Nanos, pool: &mut Pool) {
        self.tx.release_late(now);
        while let Some(mut frame) = self.tx.next(until) {
            if self.inner.is_passive() || self.tx.is_taken(&mut frame) {
                self.passing.push(frame);
            } else {
                pool.give(frame);
            }
        }
        if !self.passing.is_empty() {
            self.inner.transmit(now, pool, &mut self.passing);
        }
    }
}

fn paths(spec: &FaultSpec, speed: Speed) -> (Path, Path) {
    let rx = Path::new(spec.rx, spec.seed, RX, Some(speed));
    // The port has carried them.
    let tx = Path::new(spec.tx, spec.seed, TX, None);
    (rx, tx)
}

impl Wire for Faulty {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.rx.clear_lost(pool);
        self.tx.clear_lost(pool);
        if !self.tx.is_empty() {
            self.hand_over(now, now, pool);
        }
        let end = frames.len() + room;
        let room = match self.inner.has_super_frames() {
            true => room.min(SUPER_BURST),
            false => room,
        };
        loop {
            let wanted = end - frames.len();
            frames.extend(std::iter::from_fn(|| self.rx.next(now)).take(wanted));
            if frames.len() == end {
                return;
            }
            if self.rx.busy_until() <= now {
                self.inner.receive(now, room, pool, &mut self.passing);
            }
            if self.passing.is_empty() && !self.rx.release_late(now) {
                return;
            }
            for frame in self.passing.drain(..) {
                self.rx.take(frame, pool);
            }
        }
    }

    fn transmit(&mut self, now: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.tx.clear_lost(pool);
        let empty = self.tx.is_empty();
        for frame in frames.drain(..) {
            self.tx.take(frame, pool);
        }
        // What nothing keeps goes on at once, though its last bit may have yet to leave.
        let at_once = empty && !self.tx.holds();
        let until = if at_once { Nanos(u64::MAX) } else { now };
        self.hand_over(now, until, pool);
    }

    fn next_deadline(&self) -> Option<Nanos> {
        // While the line is busy, what comes from the wire has to wait for it.
        let wire = self.inner.next_deadline();
        let wire = wire.map(|due| due.max(self.rx.busy_until()));
        let ours = [self.rx.next_deadline(), self.tx.next_deadline()];
        ours.into_iter().flatten().chain(wire).min()
    }

    fn is_scheduled(&self) -> bool {
        self.inner.is_scheduled()
    }

    fn is_passive(&self) -> bool {
        self.inner.is_passive()
    }

    fn waits(&self) -> bool {
        self.inner.waits() && !self.tx.holds() && self.tx.is_empty()
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.inner.readable()
    }

    fn busy_until(&self) -> Nanos {
        self.rx.busy_until().max(self.inner.busy_until())
    }

    fn set_speed(&mut self, speed: Speed) {
        self.rx.set_speed(speed);
        self.inner.set_speed(speed);
    }

    fn link_changed(&mut self, now: Nanos, up: bool) {
        if !up {
            self.rx.lose();
            self.tx.lose();
        }
        self.inner.link_changed(now, up);
    }

    fn is_gone(&self) -> bool {
        self.inner.is_gone()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters()
    }

    fn faults(&mut self) -> Option<&mut Faulty> {
        Some(self)
    }
}

#[cfg(test)]
mod tests;
