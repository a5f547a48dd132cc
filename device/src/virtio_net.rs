//! The virtio-net device: its virtqueues behind the model's [`Host`].
//!
//! Virtqueues are numbered as in VIRTIO 1.3, 5.1.2: receive and transmit of each pair in turn, then the
//! control queue. Each may be set up, stopped and set up again at any time, on its own.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use log::{info, warn};
use nic_model::counters::{Drops, GsoCounters};
use nic_model::frame::{Checksum, Frame, Pool};
use nic_model::host::{Direction, Host, QueueIndex};
use serde::Serialize;

use crate::features::Features;
use crate::interrupt::Interrupt;
use crate::memory::{GuestMemory, Scatter};
use crate::ring::{BadRing, Chain, Fault, Layout, RingState};
use crate::rx::Cutter;
use crate::vring::Vring;
use crate::{rx, tx};

/// Counts of one virtqueue; they go on when the queue is set up again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VirtqueueCounters {
    /// Packets moved.
    pub packets: u64,
    /// Octets of those, without headers and check sequences.
    pub bytes: u64,
    /// Received packets whose TCP or UDP checksum is left to the driver's host to compute.
    pub checksum_partial: u64,
    /// Received packets without a checksum that the card knows.
    pub checksum_none: u64,
    /// Received packets whose TCP or UDP checksum is wrong.
    pub checksum_bad: u64,
    /// Super-frames that the driver received whole.
    pub gso: GsoCounters,
    /// Received packets that were cut from super-frames, beyond one each.
    pub segments_made: u64,
    /// Times that a kick woke the worker; while it is awake it needs none.
    pub kicks: u64,
    /// Interrupts raised.
    pub interrupts_sent: u64,
    /// Interrupts not raised, since the driver asked not to be, or gave nothing to be interrupted with.
    pub interrupts_suppressed: u64,
    /// Interrupts that could not be raised: the front-end's call descriptor is broken.
    pub interrupts_failed: u64,
    /// Times that the driver broke the ring, and the queue stopped.
    pub faults: u64,
    /// What it did the last time.
    pub last_fault: Option<String>,
}

impl VirtqueueCounters {
    /// Received packets whose TCP or UDP checksum was found right: the rest, most of them.
    #[must_use]
    pub fn checksum_valid(&self) -> u64 {
        self.packets - self.checksum_partial - self.checksum_none - self.checksum_bad
    }

    /// Counts what is known of the checksum of a frame that was delivered as it is, if it was not found right.
    #[cold]
    pub(crate) fn count_checksum(&mut self, frame: &Frame) {
        match frame.checksum {
            Checksum::Valid => {}
            Checksum::Partial { .. } => {
                self.checksum_partial += 1;
                if frame.is_super() {
                    self.gso.count(frame);
                }
            }
            Checksum::Unknown => self.checksum_none += 1,
            Checksum::Bad => self.checksum_bad += 1,
        }
    }
}

/// What the DMA engine of a virtqueue works with.
pub(crate) struct Dma {
    /// The guest's memory.
    pub(crate) memory: Arc<GuestMemory>,
    /// The chain at hand: what the device may read, and what it may write.
    pub(crate) readable: Scatter,
    pub(crate) writable: Scatter,
    /// Chains that one received packet spans, each with its octets.
    pub(crate) chains: Vec<(Chain, u64)>,
    /// For received packets that the driver does not take as they are.
    pub(crate) cutter: Cutter,
}

/// A virtqueue that is set up.
pub(crate) struct Virtqueue {
    pub(crate) ring: Vring,
    pub(crate) dma: Dma,
    /// Whether the front-end lets packets pass.
    pub(crate) enabled: bool,
    pub(crate) counters: VirtqueueCounters,
    /// Whether the driver broke the ring.
    broken: bool,
    layout: Layout,
    interrupt: Option<Box<dyn Interrupt>>,
    error: Option<Box<dyn Interrupt>>,
}

impl fmt::Debug for Virtqueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Virtqueue")
            .field("layout", &self.layout)
            .field("enabled", &self.enabled)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Virtqueue {
    fn raise(&mut self) {
        if !self.ring.ring_mut().needs_interrupt() {
            self.counters.interrupts_suppressed += 1;
            return;
        }
        match self.interrupt.as_mut().map(|line| line.raise()) {
            Some(Ok(())) => self.counters.interrupts_sent += 1,
            Some(Err(_)) => self.counters.interrupts_failed += 1,
            None => self.counters.interrupts_suppressed += 1,
        }
    }

    /// Stops the queue: the driver broke it.
    fn stop(&mut self, index: usize, fault: Fault) {
        warn!("queue {index} stopped, the driver broke it: {fault}");
        self.broken = true;
        self.counters.faults += 1;
        self.counters.last_fault = Some(fault.name());
        if let Some(error) = &mut self.error {
            // Nobody else is there to be told.
            let _ = error.raise();
        }
    }

    /// Whether packets may pass.
    fn runs(&self) -> bool {
        self.enabled && !self.broken
    }
}

/// What it takes to set a virtqueue up.
#[derive(Default)]
pub struct QueueSetup {
    /// Where its ring is.
    pub layout: Layout,
    /// Whether packets may pass.
    pub enabled: bool,
    /// Interrupts the driver; without one, the driver polls.
    pub interrupt: Option<Box<dyn Interrupt>>,
    /// Tells the front-end that the driver broke the ring.
    pub error: Option<Box<dyn Interrupt>>,
}

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
        }
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

    /// Takes what the driver accepted. Queues that run are set up again with it; what they hold stays.
    ///
    /// # Errors
    /// A ring is not in guest memory any more as the new features need it; that queue is gone.
    pub(crate) fn set_features(&mut self, acked: Features) -> Result<(), BadRing> {
        if (self.acked ^ acked).intersects(Features::GUEST_OFFLOADS) {
            self.switched_off.take();
        }
        self.acked = acked;
        self.rebuild()
    }

    /// Replaces the guest's memory. Queues that run go on in the new one.
    ///
    /// # Errors
    /// A ring is not in the new memory; that queue is gone.
    pub fn set_memory(&mut self, memory: Option<Arc<GuestMemory>>) -> Result<(), BadRing> {
        self.memory = memory;
        self.rebuild()
    }

    fn rebuild(&mut self) -> Result<(), BadRing> {
        let mut result = Ok(());
        for index in 0..self.queues.len() {
            if let Some(queue) = self.take(index) {
                let layout = Layout {
                    base: queue.ring.base().or(queue.layout.base),
                    ..queue.layout
                };
                let setup = QueueSetup {
                    layout,
                    enabled: queue.enabled,
                    interrupt: queue.interrupt,
                    error: queue.error,
                };
                let cutter = queue.dma.cutter;
                let rebuilt = self.set_up(index, setup).map(drop);
                // What of a super-frame was delivered is not delivered again.
                self.each(index, |queue| queue.dma.cutter = cutter);
                if let (Ok(()), true) = (&rebuilt, queue.broken) {
                    // A new mapping does not mend what the driver did.
                    self.each(index, |queue| queue.broken = true);
                }
                result = result.and(rebuilt);
            }
        }
        result
    }

    /// Sets virtqueue `index` up, whether it was or not, and interrupts the driver: it may have missed one
    /// while nobody served the queue. Returns the index of the next chain that it takes.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    ///
    /// # Panics
    /// If there is no such queue.
    pub(crate) fn set_up(&mut self, index: usize, setup: QueueSetup) -> Result<u16, BadRing> {
        let stood = self.take(index).and_then(|queue| queue.ring.base());
        let stood = stood.or(self.lost[index].take());
        let mut layout = setup.layout;
        layout.base = layout.base.or(stood);
        let (memory, ring) = match self.make_ring(&layout) {
            Ok(made) => made,
            Err(error) => {
                self.lost[index] = layout.base;
                return Err(error);
            }
        };
        let size = usize::from(ring.ring().size());
        let next = ring.ring().position();
        info!("queue {index} set up: {size} descriptors, from {next}");
        let mut queue = Virtqueue {
            ring,
            dma: Dma {
                readable: Scatter::new(memory.clone(), size),
                writable: Scatter::new(memory.clone(), size),
                chains: Vec::with_capacity(size),
                cutter: Cutter::default(),
                memory,
            },
            enabled: setup.enabled,
            counters: std::mem::take(&mut self.counters[index]),
            broken: false,
            layout,
            interrupt: setup.interrupt,
            error: setup.error,
        };
        if let Some(line) = &mut queue.interrupt {
            // If it is broken, the first packet's interrupt will count it.
            let _ = line.raise();
        }
        self.queues[index] = Some(queue);
        Ok(next)
    }

    fn make_ring(&self, layout: &Layout) -> Result<(Arc<GuestMemory>, Vring), BadRing> {
        let memory = self.memory.clone().ok_or(BadRing::Unmapped {
            part: "descriptor table",
            addr: layout.descriptors,
            len: 16 * u64::from(layout.size),
        })?;
        let ring = Vring::new(memory.clone(), layout, self.acked)?;
        Ok((memory, ring))
    }

    fn take(&mut self, index: usize) -> Option<Virtqueue> {
        let mut queue = self.queues[index].take()?;
        self.counters[index] = std::mem::take(&mut queue.counters);
        Some(queue)
    }

    /// Stops virtqueue `index`: from now on nothing of it is touched. Returns the index of the next chain
    /// that it would have taken.
    pub(crate) fn tear_down(&mut self, index: usize) -> Option<u16> {
        let lost = self.lost[index].take();
        let Some(queue) = self.take(index) else {
            return lost;
        };
        let next = queue.ring.ring().position();
        info!("queue {index} stopped at {next}");
        Some(next)
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

    /// Stops all virtqueues and forgets what the driver accepted.
    pub fn reset(&mut self) {
        for index in 0..self.queues.len() {
            self.tear_down(index);
        }
        self.acked = Features::empty();
        self.switched_off.take();
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

    /// Interrupts the driver of virtqueue `index` unless it asked not to be.
    #[inline]
    pub(crate) fn raise(&mut self, index: usize) {
        self.each(index, Virtqueue::raise);
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
        let Some(queue) = self.sound(index) else {
            return 0;
        };
        let (taken, result) = rx::deliver(queue, features, frames, drops);
        queue.ring.ring_mut().publish();
        if queue.dma.cutter.take_untold() {
            // Nothing counts as delivered yet, so no moderation would tell the driver to make room for the rest.
            queue.raise();
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
    ) -> usize {
        let index = virtqueue(queue, Direction::Transmit);
        let features = self.acked;
        let Some(queue) = self.sound(index) else {
            return 0;
        };
        let (read, result) = tx::fetch(queue, features, budget, pool, frames, drops);
        self.judge(index, result);
        read
    }

    fn complete_tx(&mut self, queue: QueueIndex) {
        self.each(virtqueue(queue, Direction::Transmit), |queue| {
            queue.ring.ring_mut().publish();
        });
    }

    fn interrupt(&mut self, queue: QueueIndex, direction: Direction) {
        self.raise(virtqueue(queue, direction));
    }
}

#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod tests;
