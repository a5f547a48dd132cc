//! A card that is plugged into a wire: the loop's body, without the loop.
//!
//! A worker calls [`Card::round`] in real time, a test calls it in virtual time. Neither the card nor the wire
//! knows which.

use nic_device::nic::Nic;
use nic_model::BURST;
use nic_model::frame::Frame;
use nic_model::time::Nanos;

use crate::wire::Wire;

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
        card.wire.link_changed(now, link);
        card
    }

    /// Moves one burst in each direction. Returns whether there was anything to do.
    #[inline]
    pub fn round(&mut self, now: Nanos) -> bool {
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

    /// When a round has something to do without anybody's asking.
    #[must_use]
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        // While the line is busy, frames on the wire have to wait for it; the port knows until when.
        let wire = match self.nic.port.rx_room(now) {
            0 => None,
            _ => self.wire.next_deadline(),
        };
        [wire, self.nic.next_deadline(now)]
            .into_iter()
            .flatten()
            .min()
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

    /// Brings the link up or down; returns whether that is a change.
    pub fn set_link(&mut self, now: Nanos, up: bool) -> bool {
        let changed = self.nic.set_link(up);
        if changed {
            self.wire.link_changed(now, up);
        }
        changed
    }

    /// The wire.
    #[must_use]
    pub fn wire(&self) -> &dyn Wire {
        &*self.wire
    }
}
