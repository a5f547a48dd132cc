//! The virtio-net device: its virtqueues behind the model's [`Host`].
//!
//! Virtqueues are numbered as in VIRTIO 1.3, 5.1.2: receive and transmit of each pair in turn, then the
//! control queue. Each may be set up, stopped and set up again at any time, on its own.

mod set_up;
mod virtqueue;

use std::cell::Cell;
use std::sync::Arc;

use nic_model::chance::Chance;
use nic_model::counters::Drops;
use nic_model::fault::{HostFaults, LOST, Lies};
use nic_model::frame::{Frame, Pool};
use nic_model::host::{self, Direction, Fetched, Host, QueueIndex};

use crate::features::Features;
use crate::interrupt::{Interrupt, Lossy};
use crate::liar::Liar;
use crate::memory::GuestMemory;
use crate::ring::{Fault, RingState};
use crate::{rx, tx};

pub use set_up::QueueSetup;
pub use virtqueue::VirtqueueCounters;
pub(crate) use virtqueue::{Dma, Virtqueue};

/// The device with its virtqueues.
#[derive(Debug)]
pub struct VirtioNet {
    queue_pairs: u16,
    offered: Features,
    acked: Features,
    /// Those of them that the driver does not want at the moment.
    switched_off: Cell<Features>,
    memory: Option<Arc<GuestMemory>>,
    queues: Vec<Option<Virtqueue>>,
    /// Where packed rings stood that could not be set up again.
    lost: Vec<Option<u16>>,
    /// The counters of queues that are not set up.
    counters: Vec<VirtqueueCounters>,
    /// What loses interrupts of each virtqueue, on purpose; mostly nothing does.
    lossy: Vec<Option<Lossy>>,
    /// What drivers are to be told that is not so, and the seed; and those that do so for queues that are not set up now.
    lies: (Lies, u64),
    liars: Vec<Option<Box<Liar>>>,
    /// Whether what was received is shown only when [`Host::complete_rx`] says so.
    shows_later: bool,
}

impl VirtioNet {
    /// A device of `queue_pairs` pairs and a control queue that offers `offered`.
    #[must_use]
    pub fn new(queue_pairs: u16, offered: Features) -> Self {
        let queues = 2 * usize::from(queue_pairs) + 1;
        VirtioNet {
            queue_pairs,
            offered,
            acked: Features::empty(),
            switched_off: Cell::default(),
            memory: None,
            queues: (0..queues).map(|_| None).collect(),
            lost: vec![None; queues],
            counters: vec![VirtqueueCounters::default(); queues],
            lossy: Vec::new(),
            lies: Default::default(),
            liars: (0..queues).map(|_| None).collect(),
            shows_later: false,
        }
    }

    /// From now on loses interrupts for packets as `faults` say, by chance as `seed` says, and leaves it to the queues to say
    /// when the driver is shown what it received.
    pub(crate) fn set_faults(&mut self, faults: HostFaults, seed: u64) {
        self.shows_later = !faults.receive.slow_used.is_zero();
        let lossy = |index: usize| {
            let direction = match index % 2 {
                0 => Direction::Receive,
                _ => Direction::Transmit,
            };
            let probability = faults.of(direction).lost_interrupts;
            let chance = || Chance::new(probability, seed, LOST + index as u64);
            (probability > 0.0).then(|| Lossy::new(chance()))
        };
        self.lossy = (0..self.queues.len()).map(lossy).collect();
        if self.lossy.iter().all(Option::is_none) {
            self.lossy.clear();
        }
        self.lies = (faults.lies, seed);
        for index in 0..self.queues.len() {
            self.liars[index] = None;
            if self.is_set_up(index) {
                let liar = self.liar(index);
                self.each(index, |queue| queue.dma.liar = liar);
            }
        }
    }

    /// Who lies for virtqueue `index`, if somebody is to: the one that did before, if it is still what it was.
    fn liar(&mut self, index: usize) -> Option<Box<Liar>> {
        let half = self.half(index).map(|(_, direction)| direction);
        let before = self.liars[index].take();
        before.filter(|liar| liar.is_for(half)).or_else(|| {
            let (lies, seed) = &self.lies;
            let mut liar = Liar::new(lies, *seed, index, half)?;
            liar.counts = self.counters_of(index).lies;
            Some(liar)
        })
    }

    /// What the device can do.
    #[must_use]
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// What the driver accepted.
    #[must_use]
    pub fn acked(&self) -> Features {
        self.acked
    }

    /// Virtqueues, the control queue included.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The virtqueue that the driver uses for control, if it accepted one.
    #[must_use]
    pub fn control_queue(&self) -> Option<usize> {
        self.acked.control_queue(self.queue_pairs)
    }

    /// Whether virtqueue `index` is set up.
    #[must_use]
    pub fn is_set_up(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(Option::is_some)
    }

    /// Whether virtqueue `index` is set up and packets may pass.
    #[must_use]
    pub fn is_enabled(&self, index: usize) -> bool {
        matches!(self.queues.get(index), Some(Some(queue)) if queue.enabled)
    }

    /// Which half of which pair virtqueue `index` is; `None` for the control queue, or if there is none.
    #[must_use]
    pub fn half(&self, index: usize) -> Option<(QueueIndex, Direction)> {
        let direction = match index % 2 {
            0 => Direction::Receive,
            _ => Direction::Transmit,
        };
        let pair = u16::try_from(index / 2).ok()?;
        (pair < self.queue_pairs && Some(index) != self.control_queue())
            .then_some((QueueIndex(pair), direction))
    }

    /// The index of the next chain that virtqueue `index` takes, if it is set up.
    #[must_use]
    pub fn position(&self, index: usize) -> Option<u16> {
        Some(self.queues.get(index)?.as_ref()?.ring.ring().position())
    }

    /// Lets packets pass on virtqueue `index`, or not.
    pub(crate) fn enable(&mut self, index: usize, enabled: bool) {
        self.each(index, |queue| queue.enabled = enabled);
    }

    /// Replaces the interrupt of virtqueue `index`, and raises it once.
    pub fn set_interrupt(&mut self, index: usize, interrupt: Option<Box<dyn Interrupt>>) {
        self.each(index, |queue| {
            queue.interrupt = interrupt;
            if let Some(line) = &mut queue.interrupt {
                let _ = line.raise();
            }
        });
    }

    /// Replaces what tells the front-end that the driver broke virtqueue `index`.
    pub fn set_error(&mut self, index: usize, error: Option<Box<dyn Interrupt>>) {
        self.each(index, |queue| queue.error = error);
    }

    /// Counts a kick of virtqueue `index`.
    pub fn count_kick(&mut self, index: usize) {
        self.each(index, |queue| queue.counters.kicks += 1);
    }

    /// Delivers received frames as to a driver that did not accept `off`.
    pub fn switch_offloads_off(&self, off: Features) {
        self.switched_off.set(off);
    }

    /// The offloads that the driver takes at the moment.
    #[must_use]
    pub fn guest_offloads(&self) -> Features {
        (self.acked & Features::GUEST_OFFLOADS) - self.switched_off.get()
    }

    fn each(&mut self, index: usize, change: impl FnOnce(&mut Virtqueue)) {
        if let Some(Some(queue)) = self.queues.get_mut(index) {
            change(queue);
        }
    }

    /// Virtqueue `index` if its ring may be used.
    #[inline]
    pub(crate) fn sound(&mut self, index: usize) -> Option<&mut Virtqueue> {
        self.queues
            .get_mut(index)?
            .as_mut()
            .filter(|queue| !queue.broken)
    }

    /// Stops virtqueue `index` if `result` says that the driver broke it.
    #[inline]
    pub(crate) fn judge(&mut self, index: usize, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.each(index, |queue| queue.stop(index, fault));
        }
    }

    /// Whether guest memory was taken away behind us, and queues run that have yet to hear of it. To be asked once a round, and before
    /// whoever serves them sleeps.
    #[inline]
    #[must_use]
    pub fn memory_is_gone(&self) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|memory| memory.is_cut()) && self.has_sound_queues()
    }

    #[cold]
    fn has_sound_queues(&self) -> bool {
        self.queues.iter().flatten().any(|queue| !queue.broken)
    }

    /// Stops all queues, for guest memory is gone, and has that told.
    #[cold]
    pub fn let_go_of_memory(&mut self) {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue.as_mut().filter(|queue| !queue.broken) {
                queue.stop(index, Fault::MemoryGone);
            }
        }
    }

    /// Interrupts the driver of virtqueue `index` unless it asked not to be.
    #[inline]
    pub(crate) fn raise(&mut self, index: usize) {
        if self.lossy.is_empty() {
            self.each(index, |queue| queue.raise(None));
        } else {
            self.raise_or_lose(index);
        }
    }

    /// Shows the driver of virtqueue `index` all that has been used.
    pub(crate) fn publish(&mut self, index: usize) {
        if let Some(queue) = self.sound(index) {
            queue.ring.ring_mut().publish();
        }
    }

    /// [`VirtioNet::raise`], where interrupts for packets may be lost.
    #[cold]
    fn raise_or_lose(&mut self, index: usize) {
        let is_for_packets = self.half(index).is_some();
        if let Some(Some(queue)) = self.queues.get_mut(index) {
            let lossy = self.lossy.get_mut(index).and_then(Option::as_mut);
            queue.raise(lossy.filter(|_| is_for_packets));
        }
    }

    /// Tells the driver of virtqueue `index` whether to kick. Returns true if there is something to do already.
    pub fn want_kicks(&mut self, index: usize, wanted: bool) -> bool {
        let Some(queue) = self.sound(index) else {
            return false;
        };
        if wanted {
            queue.ring.ring_mut().enable_kicks()
        } else {
            queue.ring.ring_mut().disable_kicks();
            false
        }
    }

    /// Where each virtqueue's ring stands, of those that are set up.
    #[must_use]
    pub fn rings(&self) -> Vec<Option<RingState>> {
        let state =
            |queue: &Option<Virtqueue>| queue.as_ref().map(|queue| queue.ring.ring().state());
        self.queues.iter().map(state).collect()
    }

    /// Each virtqueue's counts.
    #[must_use]
    pub fn counters(&self) -> Vec<VirtqueueCounters> {
        let counters = |index| self.counters_of(index).clone();
        (0..self.queues.len()).map(counters).collect()
    }

    /// The counts of virtqueue `index`.
    ///
    /// # Panics
    /// If there is no such queue.
    #[must_use]
    pub fn counters_of(&self, index: usize) -> &VirtqueueCounters {
        let queue = self.queues[index].as_ref();
        queue.map_or(&self.counters[index], |queue| &queue.counters)
    }
}

/// The virtqueue of one half of a pair.
#[inline]
#[must_use]
pub fn virtqueue(queue: QueueIndex, direction: Direction) -> usize {
    2 * usize::from(queue.0) + usize::from(direction == Direction::Transmit)
}

impl Host for VirtioNet {
    #[inline]
    fn receives(&self, queue: QueueIndex) -> bool {
        let index = virtqueue(queue, Direction::Receive);
        matches!(&self.queues[index], Some(queue) if queue.runs())
    }

    fn deliver(&mut self, queue: QueueIndex, frames: &[Frame], drops: &mut Drops) -> usize {
        let index = virtqueue(queue, Direction::Receive);
        let features = self.acked - self.switched_off.get();
        let shows_later = self.shows_later;
        let Some(queue) = self.sound(index) else {
            return 0;
        };
        let (taken, result) = rx::deliver(queue, features, frames, drops);
        let untold = queue.dma.cutter.take_untold();
        if !shows_later || untold || result.is_err() {
            queue.ring.ring_mut().publish();
        }
        if untold {
            // Nothing counts as delivered yet, so no moderation would tell the driver to make room for the rest.
            self.raise(index);
        }
        self.judge(index, result);
        taken
    }

    fn fetch_tx(
        &mut self,
        queue: QueueIndex,
        budget: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        drops: &mut Drops,
    ) -> Fetched {
        let index = virtqueue(queue, Direction::Transmit);
        let features = self.acked;
        let Some(queue) = self.sound(index) else {
            return Fetched::default();
        };
        let (fetched, result) = tx::fetch(queue, features, budget, pool, frames, drops);
        self.judge(index, result);
        fetched
    }

    fn complete_tx(&mut self, queue: QueueIndex) {
        self.each(virtqueue(queue, Direction::Transmit), |queue| {
            queue.ring.ring_mut().publish();
        });
    }

    fn interrupt(&mut self, queue: QueueIndex, direction: Direction) {
        self.raise(virtqueue(queue, direction));
    }

    fn complete_rx(&mut self, queue: QueueIndex) {
        self.publish(virtqueue(queue, Direction::Receive));
    }

    fn fault(&mut self, queue: QueueIndex, direction: Direction, fault: host::Fault) {
        let index = virtqueue(queue, direction);
        if Some(index) == self.control_queue() {
            // Without MQ, it stands where the second pair would.
            return;
        }
        self.each(index, |queue| match fault {
            host::Fault::DmaStall => queue.counters.dma_stalls += 1,
            host::Fault::SlowUsed => queue.counters.used_late += 1,
            host::Fault::SpuriousInterrupt => queue.raise_for_nothing(),
        });
    }
}

#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod tests;
