//! One card: the model and its virtio-net face together.
//!
//! Whoever owns a [`Nic`] moves frames between it and a wire, calls [`Nic::poll`] until nothing is left to do, and
//! before it sleeps [`Nic::idle`], which asks the driver for kicks. There is no clock, no thread and no
//! file descriptor in here.

use nic_model::filter::MacAddress;
use nic_model::frame::Frame;
use nic_model::host::QueueIndex;
use nic_model::moderation::{Coalesce, ModerationCounters};
use nic_model::port::{Port, PortConfig, PortStatus};
use nic_model::time::Nanos;
use serde::{Serialize, Serializer};

use crate::control::{self, ControlCounters};
use crate::features::Features;
use crate::ring::{BadRing, RingState};
use crate::virtio_net::{QueueCounters, QueueSetup, VirtioNet};

/// A card.
#[derive(Debug)]
pub struct Nic {
    /// The hardware.
    pub port: Port,
    /// What the driver sees of it.
    pub device: VirtioNet,
    control: ControlCounters,
    /// The address that the card comes up with.
    address: MacAddress,
}

/// What a card has done and where it stands, at one instant.
#[derive(Clone, Debug, Serialize)]
pub struct NicStatus {
    /// The port.
    pub port: PortStatus,
    /// Features that the driver accepted.
    pub features: String,
    /// Virtqueues by number; shown by name: rx0, tx0, and so on, then ctrl.
    #[serde(serialize_with = "by_name")]
    pub queues: Vec<QueueCounters>,
    /// When they interrupt, and how often that was; none for the control queue.
    #[serde(serialize_with = "by_name")]
    pub moderation: Vec<Option<ModerationStatus>>,
    /// Where their rings stand; none for a queue that is not set up.
    #[serde(serialize_with = "by_name")]
    pub rings: Vec<Option<RingState>>,
    /// Commands on the control queue.
    pub control: ControlCounters,
}

/// The moderation of one virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ModerationStatus {
    /// The parameters in force.
    #[serde(flatten)]
    pub coalesce: Coalesce,
    /// What it has done.
    #[serde(flatten)]
    pub counters: ModerationCounters,
}

/// One entry a virtqueue, under the queue's name.
fn by_name<T: Serialize, S: Serializer>(queues: &[T], out: S) -> Result<S::Ok, S::Error> {
    let name = |index: usize| match index {
        control if control + 1 == queues.len() => "ctrl".to_owned(),
        index if index.is_multiple_of(2) => format!("rx{}", index / 2),
        index => format!("tx{}", index / 2),
    };
    out.collect_map(
        queues
            .iter()
            .enumerate()
            .map(|(index, queue)| (name(index), queue)),
    )
}

impl Nic {
    /// A card whose driver is offered `features`.
    #[must_use]
    pub fn new(config: &PortConfig, features: Features) -> Self {
        Nic {
            port: Port::new(config),
            device: VirtioNet::new(config.queue_pairs.max(1), features),
            control: ControlCounters::default(),
            address: config.mac,
        }
    }

    /// One round: frames from the wire in `rx` go towards the driver, the driver's packets are appended to
    /// `tx`, its commands are done. Returns whether there was anything to do.
    #[inline]
    pub fn poll(&mut self, now: Nanos, rx: &mut Vec<Frame>, tx: &mut Vec<Frame>) -> bool {
        let received = self.port.receive(now, rx, &mut self.device);
        let sent = self.port.transmit(now, tx, &mut self.device);
        let commanded = control::poll(&mut self.device, &mut self.port, &mut self.control, now);
        received | sent | commanded
    }

    /// Sets virtqueue `index` up, whether it was or not, and interrupts the driver: it may have missed one
    /// while nobody served the queue.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    ///
    /// # Panics
    /// If there is no such queue.
    pub fn set_up(&mut self, index: usize, setup: QueueSetup) -> Result<(), BadRing> {
        if !self.device.is_set_up(index) {
            self.restart_moderation(index);
        }
        self.device.set_up(index, setup)
    }

    /// Stops virtqueue `index`: from now on nothing of it is touched. Returns the index of the next chain
    /// that it would have taken.
    pub fn tear_down(&mut self, index: usize) -> Option<u16> {
        self.restart_moderation(index);
        self.device.tear_down(index)
    }

    /// Lets packets pass on virtqueue `index`, or not.
    pub fn enable(&mut self, index: usize, enabled: bool) {
        if self.device.is_enabled(index) != enabled {
            self.restart_moderation(index);
        }
        self.device.enable(index, enabled);
    }

    /// Virtqueue `index` is disabled, or enabled again: no packet of before waits to be told, and its parameters are those
    /// of all queues (VIRTIO 1.3, 5.1.6.5.10.1).
    fn restart_moderation(&mut self, index: usize) {
        if let Some((queue, direction)) = self.device.half(index) {
            self.port.moderator.restart(queue, direction);
        }
    }

    /// Asks the driver to kick where something may come that is waited for: commands always, packets unless
    /// the line is too busy for them, buffers only while frames wait for them. Returns true if something has come already.
    pub fn idle(&mut self, now: Nanos) -> bool {
        let mut ready = false;
        let tx_wanted = !self.port.tx_paused();
        for pair in 0..self.port.queue_pairs() {
            let rx = 2 * usize::from(pair);
            let starved = self.port.starved(now, QueueIndex(pair));
            ready |= self.device.want_kicks(rx, starved);
            ready |= self.device.want_kicks(rx + 1, tx_wanted);
        }
        if let Some(control) = self.device.control_queue() {
            ready |= self.device.want_kicks(control, true);
        }
        ready
    }

    /// Tells the driver not to kick: its queues are looked at anyway.
    pub fn busy(&mut self) {
        for index in 0..self.device.queues() {
            self.device.want_kicks(index, false);
        }
    }

    /// Takes the features that the driver accepted. The address filter works if the driver can set it up;
    /// otherwise whoever does that filters for the card, and all frames pass.
    ///
    /// # Errors
    /// A ring that runs is not in guest memory as these features need it.
    pub fn set_features(&mut self, acked: Features) -> Result<(), BadRing> {
        self.port.filter.active = acked.contains(Features::CTRL_VQ | Features::CTRL_RX);
        if !acked.intersects(Features::NOTF_COAL | Features::VQ_NOTF_COAL) {
            // A driver that cannot say what it wants does not get what another wanted.
            self.port.moderator.reset();
        }
        self.device.set_features(acked)
    }

    /// Resets what a driver set up (VIRTIO 1.3, 2.4): queues, features, receive modes, address, moderation. Counters
    /// and the link stay.
    pub fn reset(&mut self) {
        self.device.reset();
        self.port.filter = nic_model::filter::Filter::new(self.address);
        self.port.moderator.reset();
    }

    fn moderation(&self) -> Vec<Option<ModerationStatus>> {
        let of = |index| {
            let (queue, direction) = self.device.half(index)?;
            let moderation = self.port.moderator.of(queue, direction);
            Some(ModerationStatus {
                coalesce: moderation.coalesce(),
                counters: moderation.counters(),
            })
        };
        (0..self.device.queues()).map(of).collect()
    }

    /// The card's state and counts.
    #[must_use]
    pub fn status(&self) -> NicStatus {
        NicStatus {
            port: self.port.status(),
            features: self.device.acked().to_string(),
            queues: self.device.counters(),
            moderation: self.moderation(),
            rings: self.device.rings(),
            control: self.control,
        }
    }
}

#[cfg(test)]
mod coalescing_tests;
#[cfg(test)]
mod tests;
