//! A card that is plugged into a wire: the loop's body, without the loop.
//!
//! A worker calls [`Card::round`] in real time, a test calls it in virtual time. Neither the card nor the wire
//! knows which.

use nic_device::nic::Nic;
use nic_device::rings::Rings;
use nic_model::BURST;
use nic_model::frame::Frame;
use nic_model::port::Port;
use nic_model::time::Nanos;

use crate::wire::Wire;
use crate::worker::Body;

/// Whoever has the port and its wire.
pub trait Line {
    /// The port.
    fn port(&self) -> &Port;

    /// The wire.
    fn wire(&self) -> &dyn Wire;

    /// Both, to be changed.
    fn plug(&mut self) -> (&mut Port, &mut dyn Wire);

    /// When a frame comes from the wire that the port could take.
    fn wire_deadline(&self, now: Nanos) -> Option<Nanos> {
        // While the line is busy, frames on the wire have to wait for it; the port knows until when.
        match self.port().rx_room(now) {
            0 => None,
            _ => self.wire().next_deadline(),
        }
    }

    /// Brings the link up or down; returns whether that is a change.
    fn set_link(&mut self, now: Nanos, up: bool) -> bool {
        let (port, wire) = self.plug();
        let changed = port.set_link(up);
        if changed {
            wire.link_changed(now, up);
        }
        changed
    }
}

/// A card and what its line is plugged into.
pub struct Card {
    /// The card.
    pub nic: Nic,
    wire: Box<dyn Wire>,
    rx: Vec<Frame>,
    tx: Vec<Frame>,
}

impl Card {
    /// Plugs `nic` into `wire`.
    #[must_use]
    pub fn new(nic: Nic, wire: Box<dyn Wire>, now: Nanos) -> Self {
        let mut card = Card {
            nic,
            wire,
            rx: Vec::with_capacity(BURST),
            tx: Vec::with_capacity(BURST),
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
            nic.queues.next_notice(&nic.port, now, next_frame)
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

    fn plug(&mut self) -> (&mut Port, &mut dyn Wire) {
        (&mut self.nic.port, &mut *self.wire)
    }
}

impl Body for Card {
    #[inline]
    fn round(&mut self, now: Nanos) -> bool {
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
        nic.into_iter().chain(self.wire_deadline(now)).min()
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
