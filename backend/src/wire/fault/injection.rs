//! Faults while the card runs: who has the line puts them on and takes them off, and pulls the cable and plugs it in.

use nic_model::phy::Speed;
use nic_model::time::Nanos;
use serde::Serialize;

use super::{FaultSpec, Faulty, Flap, PathCounters, Wire};
use crate::wire::none::NoWire;

/// What is injected into one line, and what came of it.
#[derive(Debug, Default)]
pub struct Injection {
    spec: FaultSpec,
    flapping: Option<Flapping>,
    flaps: u64,
    /// The counts of a decorator that is gone.
    paths: [PathCounters; 2],
}

/// A link that comes and goes: its cable is pulled and plugged in.
#[derive(Debug)]
struct Flapping {
    flap: Flap,
    /// Whether the cable is out by turns, and whether that is our doing: users may have pulled it before, and plugged it in since.
    down: bool,
    ours: bool,
    /// When that changes.
    next: Nanos,
}

/// What is injected into one line, and what came of it so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultStatus {
    /// What is to go wrong, as users write it.
    pub spec: String,
    /// Times that the cable was pulled.
    pub flaps: u64,
    /// Frames from the wire.
    pub rx: PathCounters,
    /// Frames to the wire.
    pub tx: PathCounters,
}

impl Injection {
    /// Has the faults of `spec` on `wire`, a line of `speed`, instead of those of before, from `now` on. A cable that was pulled
    /// here stays so: see [`Injection::holds_cable`].
    pub fn replace(
        &mut self,
        wire: &mut Box<dyn Wire>,
        spec: &FaultSpec,
        speed: Speed,
        now: Nanos,
    ) {
        self.spec = *spec;
        self.flapping = spec.flap.map(|flap| Flapping {
            flap,
            down: false,
            ours: false,
            next: now + flap.up,
        });
        let wanted = !(spec.rx.is_none() && spec.tx.is_none());
        let wire = place(wire);
        match wire.faults() {
            Some(faulty) => {
                faulty.replace(spec, speed);
                // While frames are under way on it, it stays.
                if !wanted && faulty.is_empty() {
                    self.paths = faulty.paths();
                    *wire = faulty.take_inner();
                }
            }
            None if wanted => {
                let inner = std::mem::replace(wire, Box::new(NoWire::default()));
                let mut faulty = Faulty::new(inner, spec, speed);
                faulty.go_on(self.paths);
                *wire = Box::new(faulty);
            }
            None => {}
        }
    }

    /// What came of it, with the counts of `wire`.
    pub fn status(&self, wire: &mut dyn Wire) -> FaultStatus {
        let [rx, tx] = wire.faults().map_or(self.paths, |faulty| faulty.paths());
        FaultStatus {
            spec: self.spec.to_string(),
            flaps: self.flaps,
            rx,
            tx,
        }
    }

    /// Whether the link comes and goes.
    #[must_use]
    #[inline]
    pub fn flaps(&self) -> bool {
        self.flapping.is_some()
    }

    /// When the cable is pulled or plugged in next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.flapping.as_ref().map(|flapping| flapping.next)
    }

    /// Whether the cable is out that would be plugged in.
    #[must_use]
    pub fn holds_cable(&self) -> bool {
        self.flapping.as_ref().is_some_and(|flapping| flapping.ours)
    }

    /// Somebody said what the link shall be: that counts.
    pub fn user_said(&mut self) {
        if let Some(flapping) = &mut self.flapping {
            flapping.ours = false;
        }
    }

    /// Whether the cable, now plugged in or not, is to be so by `now`, if that is a change.
    pub fn next_change(&mut self, now: Nanos, plugged: bool) -> Option<bool> {
        let flapping = self.flapping.as_mut()?;
        while flapping.next <= now {
            let Flap { up, down } = flapping.flap;
            flapping.down = !flapping.down;
            flapping.next += if flapping.down { down } else { up };
            if flapping.down && plugged {
                flapping.ours = true;
                self.flaps += 1;
                return Some(false);
            }
            if !flapping.down && std::mem::take(&mut flapping.ours) {
                return Some(true);
            }
        }
        None
    }
}

/// Where faults stand: before the wire, behind a loopback in the card.
fn place(wire: &mut Box<dyn Wire>) -> &mut Box<dyn Wire> {
    // Asked twice, since the borrow checker takes the first answer for kept.
    if wire.behind().is_none() {
        return wire;
    }
    wire.behind().expect("there is one")
}
