//! A card that is plugged into a wire: the loop's body, without the loop.
//!
//! A worker calls [`Card::round`] in real time, a test calls it in virtual time. Neither the card nor the wire
//! knows which.

use nic_device::nic::Nic;
use nic_device::rings::Rings;
use nic_model::BURST;
use nic_model::frame::Frame;
use nic_model::host::QueueIndex;
use nic_model::phy::{Phy, Seen, Speed};
use nic_model::port::Port;
use nic_model::time::Nanos;

use crate::wire::fault::{FaultSpec, FaultStatus, Injection};
use crate::wire::{Looped, NoWire, Wire};
use crate::worker::Body;

/// Hears of each change of the link, or of its mode: what it is now.
pub type Watch = Box<dyn Fn(Seen) + Send>;

/// Whoever has the port and its wire.
pub trait Line {
    /// The port.
    fn port(&self) -> &Port;

    /// The wire.
    fn wire(&self) -> &dyn Wire;

    /// Both, to be changed.
    fn plug(&mut self) -> (&mut Port, &mut Box<dyn Wire>);

    /// Who hears of the link.
    fn watch(&self) -> Option<&Watch>;

    /// The faults of the line, and all that they need.
    fn injection(&mut self) -> (&mut Injection, &mut Port, &mut Box<dyn Wire>);

    /// Queue `queue` is out of use: what of it is held back for its priority is dropped.
    fn abandon(&mut self, queue: QueueIndex) {
        self.plug().0.abandon(queue, &mut Vec::new());
    }

    /// Resets what a driver set up of the port.
    fn reset(&mut self) {
        for queue in 0..self.port().queue_pairs() {
            self.abandon(QueueIndex(queue));
        }
        self.plug().0.reset();
    }

    /// When a frame comes from the wire that the port could take.
    fn wire_deadline(&self, now: Nanos) -> Option<Nanos> {
        // While the line is busy, frames on the wire have to wait for it; the port knows until when.
        if self.port().rx_room(now) == 0 {
            return None;
        }
        let wire = self.wire();
        let resumes = Some(wire.busy_until()).filter(|&at| at > now && wire.readable().is_some());
        wire.next_deadline().into_iter().chain(resumes).min()
    }

    /// Plugs the cable in, or pulls it out: without auto-negotiation the link is up, or down, at once. Returns whether that is a
    /// change.
    fn set_link(&mut self, now: Nanos, up: bool) -> bool {
        self.injection().0.user_said();
        self.plug_in(now, up)
    }

    /// The same, whoever does it.
    fn plug_in(&mut self, now: Nanos, up: bool) -> bool {
        self.change_phy(now, &mut |phy| {
            phy.set_link(now, up);
        })
    }

    /// Does what is due in the PHY. Only [`Phy::is_due`] is asked in each round.
    #[cold]
    fn advance_phy(&mut self, now: Nanos) {
        self.change_phy(now, &mut |phy| phy.advance(now));
    }

    /// Changes the PHY by `change`. The wire and whoever watches hear of what comes of it. Returns whether the link, its mode or its flow
    /// control is another one.
    fn change_phy(&mut self, now: Nanos, change: &mut dyn FnMut(&mut Phy)) -> bool {
        let (port, wire) = self.plug();
        let before = LineState::of(&port.phy);
        let changed = port.change_phy(change);
        let after = LineState::of(&port.phy);
        if before != after {
            rewire(now, port, wire, before, after);
        }
        let seen = port.phy.seen();
        if let Some(watch) = self.watch().filter(|_| changed) {
            watch(seen);
        }
        changed
    }

    /// Has the faults of `spec` on the line, instead of those of before.
    fn inject(&mut self, spec: &FaultSpec, now: Nanos) {
        if self.injection().0.holds_cable() {
            self.plug_in(now, true);
        }
        let (injection, port, wire) = self.injection();
        injection.replace(wire, spec, port.phy.speed(), now);
        port.set_super_frames(wire.has_super_frames());
        port.set_flow_control(wire.waits());
    }

    /// The faults of the line, and what came of them.
    fn faults(&mut self) -> FaultStatus {
        let (injection, _, wire) = self.injection();
        injection.status(&mut **wire)
    }

    /// Has the cable pulled out or plugged in if it is time to.
    #[cold]
    fn flap(&mut self, now: Nanos) {
        // Where it comes and goes faster than that can be done, other things have their turn in between.
        for _ in 0..AT_ONCE {
            let (injection, port, _) = self.injection();
            let Some(up) = injection.next_change(now, port.phy.is_plugged()) else {
                return;
            };
            self.plug_in(now, up);
        }
    }
}

/// Changes of the cable that are caught up with at once.
const AT_ONCE: usize = 16;

/// What of the PHY the wire has to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
struct LineState {
    up: bool,
    speed: Speed,
    /// Whether frames turn in the card.
    turns: bool,
}

impl LineState {
    fn of(phy: &Phy) -> Self {
        LineState {
            up: phy.link(),
            speed: phy.speed(),
            turns: phy.loopback().is_some(),
        }
    }
}

/// Has the wire follow the PHY.
fn rewire(
    now: Nanos,
    port: &mut Port,
    wire: &mut Box<dyn Wire>,
    before: LineState,
    LineState { up, speed, turns }: LineState,
) {
    match (before.turns, turns) {
        (false, false) => {
            wire.set_speed(speed);
            if before.up != up {
                wire.link_changed(now, up);
            }
        }
        (true, true) => {}
        (false, true) => {
            if before.up {
                wire.link_changed(now, false);
            }
            let nothing: Box<dyn Wire> = Box::new(NoWire::default());
            let behind = std::mem::replace(wire, nothing);
            *wire = Box::new(Looped::before(behind));
        }
        (true, false) => {
            if let Some(behind) = wire.unplug(&mut port.pool) {
                *wire = behind;
            }
            if up {
                wire.set_speed(speed);
                wire.link_changed(now, true);
            }
        }
    }
    port.set_super_frames(wire.has_super_frames());
    port.set_flow_control(wire.waits());
}

/// A card and what its line is plugged into.
pub struct Card {
    /// The card.
    pub nic: Nic,
    wire: Box<dyn Wire>,
    injection: Injection,
    rx: Vec<Frame>,
    tx: Vec<Frame>,
    /// Who hears of the link.
    pub watch: Option<Watch>,
}

impl Card {
    /// Plugs `nic` into `wire`.
    #[must_use]
    pub fn new(nic: Nic, wire: Box<dyn Wire>, now: Nanos) -> Self {
        let mut card = Card {
            nic,
            wire,
            injection: Injection::default(),
            rx: Vec::with_capacity(BURST),
            tx: Vec::with_capacity(BURST),
            watch: None,
        };
        let link = card.nic.port.phy.link();
        let super_frames = card.wire.has_super_frames();
        card.nic.port.set_super_frames(super_frames);
        card.nic.port.set_flow_control(card.wire.waits());
        card.wire.link_changed(now, link);
        card
    }

    /// When the driver can notice at the earliest that the card has done something, if it does nothing itself. In
    /// virtual time a round is not needed before: what happens until then happens in one, each thing as of its own
    /// instant.
    #[must_use]
    pub fn next_notice(&self, now: Nanos) -> Option<Nanos> {
        if self.wire.is_scheduled() {
            let nic = &self.nic;
            let next_frame = self.wire.next_deadline();
            let notice = nic.queues.next_notice(&nic.port, now, next_frame);
            let due = [nic.port.phy.next_deadline(), self.injection.next_deadline()];
            notice.into_iter().chain(due.into_iter().flatten()).min()
        } else {
            self.next_deadline(now)
        }
    }
}

impl Line for Card {
    fn port(&self) -> &Port {
        &self.nic.port
    }

    fn wire(&self) -> &dyn Wire {
        &*self.wire
    }

    fn plug(&mut self) -> (&mut Port, &mut Box<dyn Wire>) {
        (&mut self.nic.port, &mut self.wire)
    }

    fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    fn injection(&mut self) -> (&mut Injection, &mut Port, &mut Box<dyn Wire>) {
        (&mut self.injection, &mut self.nic.port, &mut self.wire)
    }
}

impl Body for Card {
    #[inline]
    fn round(&mut self, now: Nanos) -> bool {
        if self.nic.port.phy.is_due(now) {
            self.advance_phy(now);
        }
        if self.injection.flaps() {
            self.flap(now);
        }
        let room = self.nic.port.rx_room(now);
        if room > 0 {
            self.wire
                .receive(now, room, &mut self.nic.port.pool, &mut self.rx);
        }
        let came = !self.rx.is_empty();
        let worked = self.nic.poll(now, &mut self.rx, &mut self.tx);
        if !self.tx.is_empty() {
            self.wire
                .transmit(now, &mut self.nic.port.pool, &mut self.tx);
        }
        came || worked
    }

    fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let nic = self.nic.next_deadline(now);
        let line = [self.wire_deadline(now), self.injection.next_deadline()];
        nic.into_iter().chain(line.into_iter().flatten()).min()
    }

    fn idle(&mut self, now: Nanos) -> bool {
        self.nic.idle(now)
    }

    fn rings(&mut self) -> Rings<'_> {
        self.nic.rings()
    }

    fn line(&self) -> Option<&dyn Line> {
        Some(self)
    }
}
