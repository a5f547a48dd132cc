//! Receive DMA: frames go from the FIFO into the buffers that the driver posted (VIRTIO 1.3, 5.1.6.3).
//!
//! Each frame goes behind its header into one chain of buffers, or with MRG_RXBUF into as many as it takes.
//! A frame for which there are not enough stays where it is.

use nic_model::counters::{Drop, Drops};
use nic_model::frame::{Checksum, Frame};
use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_DATA_VALID;
use zerocopy::IntoBytes;

use crate::features::Features;
use crate::header::{self, LEGACY_HEADER, MAX_HEADER, NetHeader, USUAL_HEADER};
use crate::memory::{Access, GuestMemory};
use crate::ring::{Chain, Fault, Ring};
use crate::virtio_net::{Dma, Virtqueue, VirtqueueCounters};
use crate::vring::Vring;

mod cut;
pub(crate) use cut::Cutter;

/// What became of a frame.
enum Outcome {
    Delivered,
    TooSmall,
    NoBuffers,
}

/// Delivers the first of `frames`, and tells how many were dealt with. The caller publishes.
///
/// # Errors
/// The driver broke the ring. What was dealt with before counts.
#[inline]
pub(crate) fn deliver(
    queue: &mut Virtqueue,
    features: Features,
    frames: &[Frame],
    drops: &mut Drops,
) -> (usize, Result<(), Fault>) {
    let dma = &mut queue.dma;
    dma.cutter.forget_all_but(frames.first());
    let mut tally = Tally {
        counters: &mut queue.counters,
        delivered: 0,
        segments: 0,
        octets: 0,
        dropped: 0,
    };
    let result = match &mut queue.ring {
        Vring::Split(ring) => by_header(ring, dma, features, frames, drops, &mut tally),
        Vring::Packed(ring) => by_header(ring, dma, features, frames, drops, &mut tally),
    };
    let taken = tally.delivered + tally.dropped;
    let counters = tally.counters;
    counters.packets += (tally.delivered + tally.segments) as u64;
    counters.segments_made += tally.segments as u64;
    counters.bytes += tally.octets as u64;
    (taken, result)
}

/// What became of a burst.
struct Tally<'a> {
    counters: &'a mut VirtqueueCounters,
    delivered: usize,
    /// Delivered segments of super-frames, beyond one a super-frame that was delivered.
    segments: usize,
    /// In the frames delivered.
    octets: usize,
    dropped: usize,
}

impl Tally<'_> {
    fn count(&mut self, frame: &Frame) {
        self.delivered += 1;
        self.octets += frame.len();
        if !matches!(frame.checksum, Checksum::Valid) {
            self.counters.count_checksum(frame);
        }
    }
}

/// Chooses the [`burst`] for the length of the header: as a constant it makes the header's copy a few moves.
#[inline]
fn by_header<R: Ring>(
    ring: &mut R,
    dma: &mut Dma,
    features: Features,
    frames: &[Frame],
    drops: &mut Drops,
    tally: &mut Tally<'_>,
) -> Result<(), Fault> {
    if ring.begin()? == 0 {
        return Ok(());
    }
    if dma.liar.is_some() {
        return lie(ring, dma, features, frames, drops, tally);
    }
    match features.header_len() {
        USUAL_HEADER => burst::<R, USUAL_HEADER, false>(ring, dma, features, frames, drops, tally),
        MAX_HEADER => burst::<R, MAX_HEADER, false>(ring, dma, features, frames, drops, tally),
        _ => burst::<R, LEGACY_HEADER, false>(ring, dma, features, frames, drops, tally),
    }
}

/// [`burst`] where the driver is told what is not so: each frame goes the longer way.
#[cold]
fn lie<R: Ring>(
    ring: &mut R,
    dma: &mut Dma,
    features: Features,
    frames: &[Frame],
    drops: &mut Drops,
    tally: &mut Tally<'_>,
) -> Result<(), Fault> {
    let result = burst::<R, MAX_HEADER, true>(ring, dma, features, frames, drops, tally);
    if let Some(liar) = &dma.liar {
        tally.counters.lies = liar.counts;
    }
    result
}

/// [`deliver`] on one kind of ring behind headers of `HEADER` octets, `LYING` or not.
#[inline]
fn burst<R: Ring, const HEADER: usize, const LYING: bool>(
    ring: &mut R,
    dma: &mut Dma,
    features: Features,
    frames: &[Frame],
    drops: &mut Drops,
    tally: &mut Tally<'_>,
) -> Result<(), Fault> {
    let mut frames = frames;
    loop {
        let done = match LYING {
            false => places::<R, HEADER>(ring, &dma.memory, features, frames, tally),
            true => 0,
        };
        let Some((frame, rest)) = frames[done..].split_first() else {
            return Ok(());
        };
        // One that was begun in pieces ends so, though the driver takes such frames by now.
        if !header::takes(frame, features) || dma.cutter.has_begun(frame) {
            if !cut::deliver(ring, dma, features, frame, drops, tally)? {
                return Ok(());
            }
            frames = rest;
            continue;
        }
        // The next frame or buffer is not as most are, or there is none.
        let start = ring.position();
        let gathered = gather::<R, LYING>(ring, dma, features, frame);
        match gathered.inspect_err(|_| ring.rewind(start))? {
            Outcome::Delivered => tally.count(frame),
            Outcome::TooSmall => {
                drops.count(Drop::RxBufferTooSmall);
                tally.dropped += 1;
            }
            Outcome::NoBuffers => return Ok(()),
        }
        frames = rest;
    }
}

/// Delivers frames as long as each goes into one buffer that is in one piece. Returns how many.
#[inline(never)] // with the registers for itself it takes fewer instructions
fn places<R: Ring, const HEADER: usize>(
    ring: &mut R,
    memory: &GuestMemory,
    features: Features,
    frames: &[Frame],
    tally: &mut Tally<'_>,
) -> usize {
    let verdict = if features.contains(Features::GUEST_CSUM) {
        VIRTIO_NET_HDR_F_DATA_VALID as u8
    } else {
        0
    };
    let (mut octets, mut unverified) = (0, 0);
    let mut left = frames.iter();
    let count = ring.use_places(memory, Access::Write, frames.len(), |place| {
        let frame = left.as_slice().first()?;
        let flags = match frame.checksum {
            Checksum::Valid => verdict,
            Checksum::Partial { .. } => return None,
            _ => 0,
        };
        let header = header::plain(flags, frame.hash, frame.hash_report);
        let header = header.first_chunk::<HEADER>().expect("none is longer");
        if !place.write(header, frame.bytes()) {
            return None;
        }
        match frame.checksum {
            Checksum::Valid => {}
            Checksum::Unknown => unverified += 1,
            _ => tally.counters.count_checksum(frame),
        }
        octets += frame.len();
        left.next();
        Some((HEADER + frame.len()) as u32)
    });
    tally.delivered += count;
    tally.octets += octets;
    tally.counters.checksum_none += unverified;
    count
}

/// Delivers `frame` into whatever the next chain is, if there are buffers for it.
#[inline(never)] // so that the way of most packets is short
fn gather<R: Ring, const LYING: bool>(
    ring: &mut R,
    dma: &mut Dma,
    features: Features,
    frame: &Frame,
) -> Result<Outcome, Fault> {
    let needed = (features.header_len() + frame.len()) as u64;
    let start = ring.position();
    dma.readable.clear();
    dma.writable.clear();
    let Some((chain, room)) = fetch(ring, dma)? else {
        return Ok(Outcome::NoBuffers);
    };
    if room >= needed {
        write::<LYING>(dma, features, frame, 1);
        complete::<R, LYING>(ring, dma, chain, needed as u32);
        return Ok(Outcome::Delivered);
    }
    dma.chains.clear();
    dma.chains.push((chain, room));
    merge::<R, LYING>(ring, dma, features, frame, start)
}

/// Delivers `frame` into as many chains as it takes; the first is in `dma.chains`, taken at `start`.
#[cold]
fn merge<R: Ring, const LYING: bool>(
    ring: &mut R,
    dma: &mut Dma,
    features: Features,
    frame: &Frame,
    start: u16,
) -> Result<Outcome, Fault> {
    let mut left = (features.header_len() + frame.len()) as u64;
    while dma.writable.len() < left {
        let whole_ring = dma.chains.len() == usize::from(ring.size());
        if !features.contains(Features::MRG_RXBUF) || whole_ring {
            // All the same the buffers go back to the driver, with nothing in them.
            for &(chain, _) in &dma.chains {
                ring.complete(chain, 0);
            }
            return Ok(Outcome::TooSmall);
        }
        let Some(next) = fetch(ring, dma)? else {
            ring.rewind(start);
            return Ok(Outcome::NoBuffers);
        };
        dma.chains.push(next);
    }
    write::<LYING>(dma, features, frame, dma.chains.len() as u16);
    for at in 0..dma.chains.len() {
        let (chain, room) = dma.chains[at];
        let here = left.min(room);
        left -= here;
        complete::<R, LYING>(ring, dma, chain, here as u32);
    }
    Ok(Outcome::Delivered)
}

/// Takes the next chain, and tells the octets that were added to `dma.writable`.
#[inline]
fn fetch<R: Ring>(ring: &mut R, dma: &mut Dma) -> Result<Option<(Chain, u64)>, Fault> {
    let before = dma.writable.len();
    let Some(chain) = ring.fetch(&mut dma.readable, &mut dma.writable)? else {
        return Ok(None);
    };
    let room = dma.writable.len() - before;
    // Readable descriptors, too, are none that a driver posts here. Each octet of a frame could cost a walk
    // over as many of them as the ring is long.
    if room == 0 || !dma.readable.is_empty() {
        return Err(Fault::NotWritable);
    }
    Ok(Some((chain, room)))
}

/// Completes `chain`, to which `len` octets were written.
#[inline(always)] // mostly it is the ring's
fn complete<R: Ring, const LYING: bool>(ring: &mut R, dma: &mut Dma, chain: Chain, len: u32) {
    match &mut dma.liar {
        Some(liar) if LYING => liar.complete(ring, chain, len),
        _ => ring.complete(chain, len),
    }
}

/// Writes header and frame into `dma.writable`.
#[inline]
fn write<const LYING: bool>(dma: &mut Dma, features: Features, frame: &Frame, num_buffers: u16) {
    let mut header = NetHeader::received(frame, num_buffers, features);
    if LYING && let Some(liar) = &mut dma.liar {
        liar.header(&mut header, frame.len());
    }
    let mut cursor = dma.writable.cursor();
    cursor.write(&header.as_bytes()[..features.header_len()]);
    cursor.write(frame.bytes());
}
