//! How virtqueues come and go: with what the driver accepted, with the guest's memory, and one by one.
//!
//! A queue that runs is set up again whenever memory or features change. It goes on where its ring stood, also after it could not be set up for a while, and
//! keeps its counts, and who lies for it.

use std::sync::Arc;

use log::info;

use super::{Dma, VirtioNet, Virtqueue};
use crate::features::Features;
use crate::interrupt::Interrupt;
use crate::memory::{GuestMemory, Scatter};
use crate::ring::{BadRing, Layout};
use crate::rx::Cutter;
use crate::vring::Vring;

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

impl VirtioNet {
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
                liar: self.liar(index),
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
        if !queue.broken {
            // What a fault has kept back is shown; whoever goes on with the ring sees it as used.
            queue.ring.ring_mut().publish();
        }
        self.counters[index] = std::mem::take(&mut queue.counters);
        self.liars[index] = queue.dma.liar.take();
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

    /// Stops all virtqueues and forgets what the driver accepted.
    pub fn reset(&mut self) {
        for index in 0..self.queues.len() {
            self.tear_down(index);
        }
        self.acked = Features::empty();
        self.switched_off.take();
    }
}
