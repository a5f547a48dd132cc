//! One virtqueue that is set up: its ring, its DMA, its interrupt, and its counts.

use std::fmt;
use std::sync::Arc;

use log::{info, warn};
use nic_model::counters::GsoCounters;
use nic_model::fault::LieCounters;
use nic_model::frame::{Checksum, Frame};
use serde::Serialize;

use crate::interrupt::{Interrupt, Lossy, Raised};
use crate::liar::Liar;
use crate::memory::{GuestMemory, Scatter};
use crate::ring::{Chain, Fault, Layout};
use crate::rx::Cutter;
use crate::vring::Vring;

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
    /// Interrupts lost on purpose; they are not among those raised.
    pub interrupts_lost: u64,
    /// Interrupts raised for nothing, on purpose; they are not among those raised.
    pub interrupts_spurious: u64,
    /// Times that DMA stood still on purpose.
    pub dma_stalls: u64,
    /// Times that the driver was shown later than usual what had been moved, on purpose.
    pub used_late: u64,
    /// Times that the driver was told what is not so, on purpose.
    pub lies: LieCounters,
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
    /// Who speaks for the queue, if it is to lie.
    pub(crate) liar: Option<Box<Liar>>,
}

/// A virtqueue that is set up.
pub(crate) struct Virtqueue {
    pub(crate) ring: Vring,
    pub(crate) dma: Dma,
    /// Whether the front-end lets packets pass.
    pub(crate) enabled: bool,
    pub(crate) counters: VirtqueueCounters,
    /// Whether the driver broke the ring.
    pub(super) broken: bool,
    pub(super) layout: Layout,
    pub(super) interrupt: Option<Box<dyn Interrupt>>,
    pub(super) error: Option<Box<dyn Interrupt>>,
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
    pub(super) fn raise(&mut self, lossy: Option<&mut Lossy>) {
        if !self.ring.ring_mut().needs_interrupt() {
            self.counters.interrupts_suppressed += 1;
            return;
        }
        let Some(line) = &mut self.interrupt else {
            self.counters.interrupts_suppressed += 1;
            return;
        };
        let raised = match lossy {
            None => line.raise().map(|()| Raised::Sent),
            Some(lossy) => lossy.raise(&mut **line),
        };
        match raised {
            Ok(Raised::Sent) => self.counters.interrupts_sent += 1,
            Ok(Raised::Lost) => self.counters.interrupts_lost += 1,
            Err(_) => self.counters.interrupts_failed += 1,
        }
    }

    /// Interrupts the driver for nothing, whatever it wants.
    pub(super) fn raise_for_nothing(&mut self) {
        match self.interrupt.as_mut().map(|line| line.raise()) {
            Some(Ok(())) => self.counters.interrupts_spurious += 1,
            Some(Err(_)) => self.counters.interrupts_failed += 1,
            None => {}
        }
    }

    /// Stops the queue: the driver broke it.
    pub(super) fn stop(&mut self, index: usize, fault: Fault) {
        // What looked like the driver's fault may be what was read of memory that is gone; the connection's end says more of that.
        let fault = match self.dma.memory.is_cut() {
            true => Fault::MemoryGone,
            false => fault,
        };
        if fault == Fault::MemoryGone {
            info!("queue {index} stopped: {fault}");
            self.dma.memory.tell();
        } else {
            warn!("queue {index} stopped, the driver broke it: {fault}");
        }
        self.broken = true;
        self.counters.faults += 1;
        self.counters.last_fault = Some(fault.name());
        if let Some(error) = &mut self.error {
            // Nobody else is there to be told.
            let _ = error.raise();
        }
    }

    /// Whether packets may pass.
    pub(super) fn runs(&self) -> bool {
        self.enabled && !self.broken
    }
}
