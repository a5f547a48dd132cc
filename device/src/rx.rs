//! Receive DMA: frames go from the FIFO into the buffers that the driver posted (VIRTIO 1.3, 5.1.6.3).
//!
//! Each frame goes behind its header into one chain of buffers, or with MRG_RXBUF into as many as it takes.
//! A frame for which there are not enough stays where it is.

use nic_model::counters::{Drop, Drops};
use nic_model::frame::Frame;
use zerocopy::IntoBytes;

use crate::features::Features;
use crate::header::{LEGACY_HEADER, MAX_HEADER, NetHeader, USUAL_HEADER};
use crate::ring::{Fault, Ring};
use crate::virtio_net::Virtqueue;

/// What became of a frame.
enum Outcome {
    Delivered,
    TooSmall,
    NoBuffers,
}

/// Delivers the first of `frames` and counts in `taken` how many were dealt with. The caller publishes.
///
/// # Errors
/// The driver broke the ring. What was dealt with before counts.
#[inline]
pub(crate) fn deliver(
    queue: &mut Virtqueue,
    features: Features,
    frames: &[Frame],
    drops: &mut Drops,
    taken: &mut usize,
) -> Result<(), Fault> {
    if queue.ring.begin()? == 0 {
        return Ok(());
    }
    match features.header_len() {
        USUAL_HEADER => burst::<USUAL_HEADER>(queue, features, frames, drops, taken),
        MAX_HEADER => burst::<MAX_HEADER>(queue, features, frames, drops, taken),
        _ => burst::<LEGACY_HEADER>(queue, features, frames, drops, taken),
    }
}

/// [`deliver`] behind headers of `HEADER` octets: as a constant it makes their copy a few moves.
#[inline]
fn burst<const HEADER: usize>(
    queue: &mut Virtqueue,
    features: Features,
    frames: &[Frame],
    drops: &mut Drops,
    taken: &mut usize,
) -> Result<(), Fault> {
    for frame in frames {
        let needed = HEADER + frame.len();
        if let Some((id, mut place)) = queue.ring.fetch_place(needed) {
            let header = NetHeader::received(frame, 1, features);
            place.write(&header.as_bytes()[..HEADER]);
            place.write(frame.bytes());
            queue.ring.complete(id, needed as u32);
            queue.counters.received(frame);
        } else {
            let start = queue.ring.position();
            let outcome = gather(queue, features, frame);
            match outcome.inspect_err(|_| queue.ring.rewind(start))? {
                Outcome::Delivered => queue.counters.received(frame),
                Outcome::TooSmall => drops.count(Drop::RxBufferTooSmall),
                Outcome::NoBuffers => break,
            }
        }
        *taken += 1;
    }
    Ok(())
}

/// Delivers `frame` into whatever the next chain is, if there are buffers for it.
#[inline(never)] // so that the way of most packets is short
fn gather(queue: &mut Virtqueue, features: Features, frame: &Frame) -> Result<Outcome, Fault> {
    let needed = (features.header_len() + frame.len()) as u64;
    let start = queue.ring.position();
    queue.readable.clear();
    queue.writable.clear();
    let Some((id, room)) = fetch(queue)? else {
        return Ok(Outcome::NoBuffers);
    };
    if room >= needed {
        write(queue, features, frame, 1);
        queue.ring.complete(id, needed as u32);
        return Ok(Outcome::Delivered);
    }
    queue.chains.clear();
    queue.chains.push((id, room));
    merge(queue, features, frame, start)
}

/// Delivers `frame` into as many chains as it takes; the first is in `queue.chains`, taken at `start`.
#[cold]
fn merge(
    queue: &mut Virtqueue,
    features: Features,
    frame: &Frame,
    start: u16,
) -> Result<Outcome, Fault> {
    let mut left = (features.header_len() + frame.len()) as u64;
    while queue.writable.len() < left {
        let whole_ring = queue.chains.len() == usize::from(queue.ring.size());
        if !features.contains(Features::MRG_RXBUF) || whole_ring {
            // All the same the buffers go back to the driver, with nothing in them.
            for &(id, _) in &queue.chains {
                queue.ring.complete(id, 0);
            }
            return Ok(Outcome::TooSmall);
        }
        let Some(chain) = fetch(queue)? else {
            queue.ring.rewind(start);
            return Ok(Outcome::NoBuffers);
        };
        queue.chains.push(chain);
    }
    write(queue, features, frame, queue.chains.len() as u16);
    for &(id, room) in &queue.chains {
        let here = left.min(room);
        left -= here;
        queue.ring.complete(id, here as u32);
    }
    Ok(Outcome::Delivered)
}

/// Takes the next chain: its identifier, and the octets that were added to `queue.writable`.
#[inline]
fn fetch(queue: &mut Virtqueue) -> Result<Option<(u16, u64)>, Fault> {
    let before = queue.writable.len();
    let (readable, writable) = (&mut queue.readable, &mut queue.writable);
    let Some(id) = queue.ring.fetch(readable, writable)? else {
        return Ok(None);
    };
    let room = queue.writable.len() - before;
    // Readable descriptors, too, are none that a driver posts here. Each octet of a frame could cost a walk
    // over as many of them as the ring is long.
    if room == 0 || !queue.readable.is_empty() {
        return Err(Fault::NotWritable);
    }
    Ok(Some((id, room)))
}

/// Writes header and frame into `queue.writable`.
#[inline]
fn write(queue: &Virtqueue, features: Features, frame: &Frame, num_buffers: u16) {
    let header = NetHeader::received(frame, num_buffers, features);
    let mut cursor = queue.writable.cursor();
    cursor.write(&header.as_bytes()[..features.header_len()]);
    cursor.write(frame.bytes());
}
