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
use crate::virtio_net::Virtqueue;

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
    let available = queue.ring.begin()?;
    for _ in 0..budget.min(usize::from(available)) {
        queue.readable.clear();
        queue.writable.clear();
        let Some(id) = queue.ring.fetch(&mut queue.readable, &mut queue.writable)? else {
            break;
        };
        *read += 1;
        let mut frame = pool.take();
        let copied = if queue.enabled {
            copy(queue, features, &mut frame)
        } else {
            Err(Drop::TxQueueDisabled)
        };
        match copied {
            Ok(()) => {
                queue.counters.packets += 1;
                queue.counters.bytes += frame.len() as u64;
                frames.push(frame);
            }
            Err(reason) => {
                drops.count(reason);
                pool.give(frame);
            }
        }
        queue.ring.complete(id, 0);
    }
    Ok(())
}

/// Copies the packet in `queue.readable` into `frame`.
#[inline]
fn copy(queue: &Virtqueue, features: Features, frame: &mut Frame) -> Result<(), Drop> {
    let header_len = features.header_len();
    let len = queue
        .readable
        .len()
        .checked_sub(header_len as u64)
        .ok_or(Drop::TxUndersize)? as usize;
    let mut header = NetHeader::default();
    let mut cursor = queue.readable.cursor();
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
