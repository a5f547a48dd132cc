//! One card: the model and its virtio-net face together.
//!
//! Whoever owns a [`Nic`] moves frames between it and a wire, calls [`Nic::poll`] until nothing is left to do, and
//! before it sleeps [`Nic::idle`], which asks the driver for kicks. There is no clock, no thread and no
//! file descriptor in here.

use nic_model::counters::PortCounters;
use nic_model::frame::Frame;
use nic_model::port::{Port, PortConfig, PortStatus};
use nic_model::queues::Queues;
use nic_model::rsc::Takes;
use nic_model::time::Nanos;
use nic_model::tunnel::TunnelTypes;
use serde::{Serialize, Serializer};

use crate::control::{self, Context, ControlCounters, Local};
use crate::features::Features;
use crate::ring::{BadRing, RingState};
use crate::rings::{self, ModerationStatus, Rings};
use crate::virtio_net::{VirtioNet, VirtqueueCounters};

/// A card.
#[derive(Debug)]
pub struct Nic {
    /// The hardware on the side of the line.
    pub port: Port,
    /// The hardware on the side of the host.
    pub queues: Queues,
    /// What the driver sees of it.
    pub device: VirtioNet,
    control: ControlCounters,
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
    pub queues: Vec<VirtqueueCounters>,
    /// When they interrupt, and how often that was; none for the control queue.
    #[serde(serialize_with = "by_name")]
    pub moderation: Vec<Option<ModerationStatus>>,
    /// Where their rings stand; none for a queue that is not set up.
    #[serde(serialize_with = "by_name")]
    pub rings: Vec<Option<RingState>>,
    /// Commands on the control queue.
    pub control: ControlCounters,
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
            queues: Queues::new(config),
            device: VirtioNet::new(config.queue_pairs.max(1), features),
            control: ControlCounters::default(),
        }
    }

    /// One round: frames from the wire in `rx` go towards the driver, the driver's packets are appended to
    /// `tx`, its commands are done. Returns whether there was anything to do.
    #[inline]
    pub fn poll(&mut self, now: Nanos, rx: &mut Vec<Frame>, tx: &mut Vec<Frame>) -> bool {
        if self.device.memory_is_gone() {
            self.device.let_go_of_memory();
        }
        let (port, queues) = (&mut self.port, &mut self.queues);
        let received = queues.receive(port, now, rx, &mut self.device);
        let sent = queues.transmit(port, now, tx, &mut self.device);
        let execute = |device: &VirtioNet, commands, command: &[u8]| {
            let pairs = &mut Local {
                queues,
                device,
                now,
            };
            let mut context = Context {
                device,
                port,
                pairs,
                commands,
            };
            control::execute(&mut context, command)
        };
        let commanded = control::poll(
            &mut self.device,
            &mut self.control,
            control::BUDGET,
            execute,
        );
        received | sent | commanded
    }

    /// The side of the host.
    pub fn rings(&mut self) -> Rings<'_> {
        Rings {
            queues: &mut self.queues,
            device: &mut self.device,
        }
    }

    /// Asks the driver to kick where something may come that is waited for: commands always, packets unless
    /// the line is too busy for them, buffers only while frames wait for them. Returns true if something has come already.
    pub fn idle(&mut self, now: Nanos) -> bool {
        let port = &self.port;
        let mut rings = Rings {
            queues: &mut self.queues,
            device: &mut self.device,
        };
        rings.idle(now, |queue| port.tx_wants(queue))
    }

    /// When the card has something to do again without anybody's asking; `None` if it only waits for the wire or the
    /// host.
    #[must_use]
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let port = self.port.next_deadline(now);
        port.into_iter().chain(self.queues.next_deadline(now)).min()
    }

    /// Takes the features that the driver accepted.
    ///
    /// # Errors
    /// A ring that runs is not in guest memory as these features need it.
    pub fn set_features(&mut self, acked: Features) -> Result<(), BadRing> {
        set_port_features(&mut self.port, acked);
        self.rings().set_features(acked)
    }

    /// Resets what a driver set up (VIRTIO 1.3, 2.4): queues, features, receive modes, address, VLANs, steering, moderation. Counters
    /// and the link stay.
    pub fn reset(&mut self) {
        self.rings().reset();
        self.port.reset();
    }

    /// The port's counts, and those of all queues.
    #[must_use]
    pub fn counters(&self) -> PortCounters {
        self.port.counters(self.queues.counters())
    }

    /// How many commands came on the control queue.
    #[must_use]
    pub fn commands(&self) -> ControlCounters {
        self.control
    }

    /// The card's state and counts.
    #[must_use]
    pub fn status(&self) -> NicStatus {
        NicStatus {
            port: self.port.status(self.queues.counters()),
            features: self.device.acked().to_string(),
            queues: self.device.counters(),
            moderation: rings::moderation(&self.queues, &self.device),
            rings: self.device.rings(),
            control: self.control,
        }
    }
}

/// The filters work if the driver can set them up; otherwise whoever does that filters for the card, and all
/// frames pass.
pub fn set_port_features(port: &mut Port, acked: Features) {
    port.filter.active = acked.contains(Features::CTRL_VQ | Features::CTRL_RX);
    port.vlan.active = acked.contains(Features::CTRL_VQ | Features::CTRL_VLAN);
    // It says on the control queue that it does.
    port.announces = acked.contains(Features::CTRL_VQ | Features::GUEST_ANNOUNCE);
    port.announce &= port.announces;
    port.rsc.accept(coalesced(acked));
    port.host_sends_super = acked.intersects(Features::HOST_GSO);
    if !acked.contains(Features::CTRL_VQ | Features::HASH_TUNNEL) {
        port.hash_tunnel_types = TunnelTypes::default();
    }
}

/// What a driver that takes the offloads in `features` may be given of segments that were merged.
pub(crate) fn coalesced(features: Features) -> Takes {
    let takes = |feature| features.contains(Features::GUEST_CSUM | feature);
    Takes {
        ipv4: takes(Features::GUEST_TSO4),
        ipv6: takes(Features::GUEST_TSO6),
        ecn: takes(Features::GUEST_ECN),
    }
}

#[cfg(test)]
mod announce_tests;
#[cfg(test)]
mod coalescing_tests;
#[cfg(test)]
mod drop_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod filter_tests;
#[cfg(test)]
mod offload_tests;
#[cfg(test)]
mod ring_reset_tests;
#[cfg(test)]
mod stats_tests;
#[cfg(test)]
mod tests;
