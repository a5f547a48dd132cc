//! The side of the host: queues and the rings that they serve, together.
//!
//! Whoever owns both sets virtqueues up and down through [`Rings`], so that the moderation hears of it.

use std::sync::Arc;

use nic_model::fault::HostFaults;
use nic_model::host::{Direction, QueueIndex};
use nic_model::moderation::{Coalesce, ModeStatus, ModerationCounters};
use nic_model::queues::Queues;
use nic_model::time::Nanos;
use serde::Serialize;

use crate::features::Features;
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::ring::BadRing;
use crate::virtio_net::{QueueSetup, VirtioNet};

/// The queues of one owner and their rings.
#[derive(Debug)]
pub struct Rings<'a> {
    /// The queues.
    pub queues: &'a mut Queues,
    /// Their rings.
    pub device: &'a mut VirtioNet,
}

/// The moderation of one virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ModerationStatus {
    /// What sets them.
    #[serde(flatten)]
    pub mode: ModeStatus,
    /// The parameters in force.
    #[serde(flatten)]
    pub coalesce: Coalesce,
    /// What it has done.
    #[serde(flatten)]
    pub counters: ModerationCounters,
}

impl Rings<'_> {
    /// Sets virtqueue `index` up, whether it was or not, and interrupts the driver: it may have missed one
    /// while nobody served the queue. Returns the index of the next chain that it takes.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    ///
    /// # Panics
    /// If there is no such queue.
    pub fn set_up(&mut self, index: usize, setup: QueueSetup) -> Result<u16, BadRing> {
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
            // The driver waits for what a fault has kept from it, and nothing else may come.
            self.device.publish(index);
            self.restart_moderation(index);
        }
        self.device.enable(index, enabled);
    }

    /// Replaces the interrupt of virtqueue `index`, and raises it once.
    pub fn set_interrupt(&mut self, index: usize, interrupt: Option<Box<dyn Interrupt>>) {
        self.device.set_interrupt(index, interrupt);
    }

    /// Replaces what tells the front-end that the driver broke virtqueue `index`.
    pub fn set_error(&mut self, index: usize, error: Option<Box<dyn Interrupt>>) {
        self.device.set_error(index, error);
    }

    /// Replaces the guest's memory. Queues that run go on in the new one.
    ///
    /// # Errors
    /// A ring is not in the new memory; that queue is gone.
    pub fn set_memory(&mut self, memory: Option<Arc<GuestMemory>>) -> Result<(), BadRing> {
        self.device.set_memory(memory)
    }

    /// Takes the features that the driver accepted. A driver that cannot say how its queues interrupt does not get what
    /// another wanted.
    ///
    /// # Errors
    /// A ring that runs is not in guest memory as these features need it.
    pub fn set_features(&mut self, acked: Features) -> Result<(), BadRing> {
        if !acked.intersects(Features::NOTF_COAL | Features::VQ_NOTF_COAL) {
            self.queues.moderator.reset();
        }
        self.device.set_features(acked)
    }

    /// Resets what a driver set up (VIRTIO 1.3, 2.4): queues, features, moderation. Counters stay.
    pub fn reset(&mut self) {
        for index in 0..self.device.queues() {
            self.forget_held(index);
        }
        self.device.reset();
        self.queues.moderator.reset();
    }

    /// From `now` on `faults` go wrong, by chance as `seed` says, instead of what did before.
    pub fn set_faults(&mut self, faults: HostFaults, seed: u64, now: Nanos) {
        self.queues.set_faults(faults, seed, now, self.device);
        self.device.set_faults(faults, seed);
    }

    /// What a driver has yet to be shown of virtqueue `index` is no more of interest, or shown when the queue is torn down.
    fn forget_held(&mut self, index: usize) {
        if let Some((queue, direction)) = self.device.half(index) {
            self.queues.forget_held(queue, direction);
        }
    }

    /// Virtqueue `index` is disabled, or enabled again: no packet of before waits to be told, and its parameters are those
    /// of all queues (VIRTIO 1.3, 5.1.6.5.10.1).
    fn restart_moderation(&mut self, index: usize) {
        if let Some((queue, direction)) = self.device.half(index) {
            self.queues.moderator.restart(queue, direction);
        }
        self.forget_held(index);
    }

    /// Asks the driver to kick where something may come that is waited for: packets of the queues that `tx_wanted` says,
    /// buffers only while frames wait for them. Returns true if something has come already.
    pub fn idle(&mut self, now: Nanos, tx_wanted: impl Fn(QueueIndex) -> bool) -> bool {
        let mut ready = false;
        for pair in 0..self.queues.pairs() {
            let rx = 2 * usize::from(pair);
            if Some(rx) == self.device.control_queue() {
                // Without MQ, it stands where the second pair would.
                continue;
            }
            let queue = QueueIndex(pair);
            let starved = self.queues.starved(now, queue);
            ready |= self.device.want_kicks(rx, starved);
            let stalled = self.queues.is_stalled(queue, Direction::Transmit, now);
            ready |= self.device.want_kicks(rx + 1, tx_wanted(queue) && !stalled);
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
}

/// The moderation of each virtqueue of `device`; none for those that are not for packets.
#[must_use]
pub fn moderation(queues: &Queues, device: &VirtioNet) -> Vec<Option<ModerationStatus>> {
    let of = |index| {
        let (queue, direction) = device.half(index)?;
        let moderation = queues.moderator.of(queue, direction);
        Some(ModerationStatus {
            mode: moderation.mode(),
            coalesce: moderation.coalesce(),
            counters: moderation.counters(),
        })
    };
    (0..device.queues()).map(of).collect()
}
