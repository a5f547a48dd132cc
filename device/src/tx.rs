//! Transmit DMA: packets go from the driver's buffers into frames (VIRTIO 1.3, 5.1.6.2).
//!
//! A packet is copied as a whole when it is fetched; its buffers are the driver's again as soon as the burst is
//! published. What it asks for is checked in the copy of its header.

use nic_model::counters::{Drop, Drops};
use nic_model::frame::{Frame, Pool};
use zerocopy::IntoBytes;

use crate::features::Features;
use crate::header::{NetHeader, USUAL_HEADER};
use crate::ring::{Fault, Ring};
use crate::virtio_net::{Dma, Virtqueue, VirtqueueCounters};
use crate::vring::Vring;

/// Reads up to `budget` packets, those dropped included, and counts them in `read`. The caller publishes.
///
/// # Errors
/// The driver broke the ring. What was read before counts.
#[inline]
pub(crate) fn fetch(
    queue: &mut Virtqueue,
    features: Features,
    budget: usize,
    pool: &mut Pool,
    frames: &mut Vec<Frame>,
    drops: &mut Drops,
    read: &mut usize,
) -> Result<(), Fault> {
    let Virtqueue { dma, counters, .. } = queue;
    let mut outcome = Outcomes {
        counters,
        pool,
        frames,
        drops,
        read,
    };
    let enabled = queue.enabled;
    match &mut queue.ring {
        Vring::Split(ring) => burst(ring, dma, enabled, features, budget, &mut outcome),
    }
}

/// Where packets go, and where it is counted what becomes of them.
struct Outcomes<'a> {
    counters: &'a mut VirtqueueCounters,
    pool: &'a mut Pool,
    frames: &'a mut Vec<Frame>,
    drops: &'a mut Drops,
    read: &'a mut usize,
}

/// [`fetch`] from one kind of ring.
#[inline]
fn burst<R: Ring>(
    ring: &mut R,
    dma: &mut Dma,
    enabled: bool,
    features: Features,
    budget: usize,
    outcome: &mut Outcomes<'_>,
) -> Result<(), Fault> {
    let available = ring.begin()?;
    for _ in 0..budget.min(usize::from(available)) {
        dma.readable.clear();
        dma.writable.clear();
        let Some(chain) = ring.fetch(&mut dma.readable, &mut dma.writable)? else {
            break;
        };
        *outcome.read += 1;
        let mut frame = outcome.pool.take();
        let copied = if enabled {
            copy(dma, features, &mut frame)
        } else {
            Err(Drop::TxQueueDisabled)
        };
        match copied {
            Ok(()) => {
                outcome.counters.packets += 1;
                outcome.counters.bytes += frame.len() as u64;
                outcome.frames.push(frame);
            }
            Err(reason) => {
                outcome.drops.count(reason);
                outcome.pool.give(frame);
            }
        }
        ring.complete(chain, 0);
    }
    Ok(())
}

/// Copies the packet in `dma.readable` into `frame`.
#[inline]
fn copy(dma: &Dma, features: Features, frame: &mut Frame) -> Result<(), Drop> {
    let header_len = features.header_len();
    let len = dma
        .readable
        .len()
        .checked_sub(header_len as u64)
        .ok_or(Drop::TxUndersize)? as usize;
    let mut header = NetHeader::default();
    let mut cursor = dma.readable.cursor();
    match header_len {
        // Most drivers' length, as a constant: the copy is two moves.
        USUAL_HEADER => cursor.read(&mut header.as_mut_bytes()[..USUAL_HEADER]),
        len => cursor.read(&mut header.as_mut_bytes()[..len]),
    };
    frame.checksum = header.offloads(features)?;
    let room = frame.buffer_mut().get_mut(..len).ok_or(Drop::TxOversize)?;
    cursor.read(room);
    frame.set_len(len);
    Ok(())
}
