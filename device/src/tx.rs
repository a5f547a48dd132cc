//! Transmit DMA: packets go from the driver's buffers into frames (VIRTIO 1.3, 5.1.6.2).
//!
//! A packet is copied as a whole when it is fetched; its buffers are the driver's again as soon as the burst is
//! published. What it asks for is checked in the copy of its header.

use arrayvec::ArrayVec;
use nic_model::counters::{Drop, Drops};
use nic_model::frame::{Frame, Pool};
use nic_model::host::{ENOUGH, Fetched};
use zerocopy::IntoBytes;

use crate::features::Features;
use crate::header::{LEGACY_HEADER, MAX_HEADER, NetHeader, USUAL_HEADER};
use crate::memory::{Access, GuestMemory, Place, Scatter};
use crate::ring::{Fault, Ring};
use crate::virtio_net::{Dma, Virtqueue};
use crate::vring::Vring;

/// Reads up to `budget` packets into `frames`, and tells how many, those dropped included, and whether more wait. The caller publishes.
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
) -> (Fetched, Result<(), Fault>) {
    let available = match &mut queue.ring {
        Vring::Split(ring) => ring.begin(),
        Vring::Packed(ring) => ring.begin(),
    };
    let available = match available {
        Ok(available) => usize::from(available),
        Err(fault) => return (Fetched::default(), Err(fault)),
    };
    // Most queues have nothing most of the time, and that is to be cheap.
    let budget = budget.min(available);
    if budget == 0 {
        let fetched = Fetched {
            frames: 0,
            more: available > 0,
        };
        return (fetched, Ok(()));
    }
    let dma = &mut queue.dma;
    let before = frames.len();
    let mut engine = Engine {
        enabled: queue.enabled,
        features,
        pool,
        frames,
        drops,
        tally: Tally::default(),
    };
    let result = match &mut queue.ring {
        Vring::Split(ring) => engine.by_header(ring, dma, budget),
        Vring::Packed(ring) => engine.by_header(ring, dma, budget),
    };
    let tally = engine.tally;
    if let Some(liar) = &dma.liar {
        queue.counters.lies = liar.counts;
    }
    queue.counters.packets += (frames.len() - before) as u64;
    queue.counters.bytes += tally.octets as u64;
    let fetched = Fetched {
        frames: tally.read,
        more: tally.more,
    };
    (fetched, result)
}

mod super_frame;

/// Packets that the processor fetches at the same time.
const AHEAD: usize = 16;

/// Segments of super-frames after which a burst ends, looked at every [`AHEAD`] packets as [`ENOUGH`] octets are: each may become a frame.
const ENOUGH_SEGMENTS: usize = 2048;

/// What became of a burst.
#[derive(Clone, Copy, Default)]
struct Tally {
    /// Packets read.
    read: usize,
    /// In the packets passed on.
    octets: usize,
    /// That super-frames are to be cut into.
    segments: usize,
    /// Whether the ring has more.
    more: bool,
}

/// The DMA engine at work on one burst.
struct Engine<'a> {
    enabled: bool,
    features: Features,
    pool: &'a mut Pool,
    frames: &'a mut Vec<Frame>,
    drops: &'a mut Drops,
    tally: Tally,
}

impl Engine<'_> {
    /// Chooses the [`Engine::burst`] for the length of the header: as a constant it makes the header's copy a few moves.
    #[inline]
    fn by_header<R: Ring>(
        &mut self,
        ring: &mut R,
        dma: &mut Dma,
        budget: usize,
    ) -> Result<(), Fault> {
        if dma.liar.is_some() {
            return self.lie(ring, dma, budget);
        }
        match self.features.header_len() {
            USUAL_HEADER => self.burst::<R, USUAL_HEADER, false>(ring, dma, budget),
            MAX_HEADER => self.burst::<R, MAX_HEADER, false>(ring, dma, budget),
            _ => self.burst::<R, LEGACY_HEADER, false>(ring, dma, budget),
        }
    }

    /// [`Engine::burst`] where the driver is told what is not so: each packet goes the longer way.
    #[cold]
    fn lie<R: Ring>(&mut self, ring: &mut R, dma: &mut Dma, budget: usize) -> Result<(), Fault> {
        self.burst::<R, MAX_HEADER, true>(ring, dma, budget)
    }

    /// Reads up to `budget` packets behind headers of `HEADER` octets, `LYING` or not.
    #[inline]
    fn burst<R: Ring, const HEADER: usize, const LYING: bool>(
        &mut self,
        ring: &mut R,
        dma: &mut Dma,
        budget: usize,
    ) -> Result<(), Fault> {
        while self.tally.read < budget
            && self.tally.octets < ENOUGH
            && self.tally.segments < ENOUGH_SEGMENTS
            && ring.has_next()
        {
            // Each may be a super-frame.
            let asked = (budget - self.tally.read).min(AHEAD);
            let asked = asked.min(self.pool.big_room());
            if asked == 0 {
                break;
            }
            if !LYING && self.enabled && self.places::<R, HEADER>(ring, &dma.memory, asked) == asked
            {
                continue;
            }
            // The next one is not as most are, or there is none.
            if !self.gather::<R, LYING>(ring, dma)? {
                break;
            }
        }
        self.tally.more = ring.has_next();
        Ok(())
    }

    /// Reads packets as long as each is in one piece: first where they are, then, while the processor fetches them,
    /// one after the other. Returns how many it read, `asked` at most.
    #[inline(never)] // with the registers for itself it takes fewer instructions
    fn places<R: Ring, const HEADER: usize>(
        &mut self,
        ring: &mut R,
        memory: &GuestMemory,
        asked: usize,
    ) -> usize {
        let mut places = ArrayVec::<Place<'_>, AHEAD>::new();
        let count = ring.use_places(memory, Access::Read, asked, |place| {
            if place.len() < HEADER {
                return None;
            }
            places.try_push(place).ok()?;
            place.prefetch();
            Some(0)
        });
        let mut octets = 0;
        for &place in &places {
            let mut frame = self.pool.take();
            let copied = match place.split::<HEADER>() {
                None => Err(Drop::TxUndersize),
                Some((header, body)) => {
                    let len = body.len();
                    if let Some(room) = frame.buffer_mut().get_mut(..len)
                        && body.read(room)
                    {
                        frame.set_len(len);
                        self.offloads(&header, &mut frame)
                    } else {
                        self.copy_super(&header, len, &mut frame, |room| body.read(room))
                    }
                }
            };
            octets += self.pass(frame, copied);
        }
        self.tally.read += count;
        self.tally.octets += octets;
        count
    }

    /// Notes what the header of a packet asks for.
    #[inline(always)] // on the way of each packet
    fn offloads(&mut self, header: &[u8], frame: &mut Frame) -> Result<(), Drop> {
        // Most ask for nothing.
        if header[..2] != [0, 0] {
            let mut asked = NetHeader::default();
            asked.as_mut_bytes()[..header.len()].copy_from_slice(header);
            if asked.gso_type != 0 {
                return self.move_super(&asked, frame);
            }
            frame.checksum = asked.offloads(self.features)?;
        }
        Ok(())
    }

    /// Passes `frame` on if it was `copied`. Returns its octets if so.
    #[inline(always)] // on the way of each packet
    fn pass(&mut self, frame: Frame, copied: Result<(), Drop>) -> usize {
        match copied {
            Ok(()) => {
                let octets = frame.len();
                self.frames.push(frame);
                octets
            }
            Err(reason) => {
                self.drops.count(reason);
                self.pool.give(frame);
                0
            }
        }
    }

    /// Reads the next packet, in as many pieces as it is. Returns false if there is none.
    #[inline(never)] // so that the way of most packets is short
    fn gather<R: Ring, const LYING: bool>(
        &mut self,
        ring: &mut R,
        dma: &mut Dma,
    ) -> Result<bool, Fault> {
        dma.readable.clear();
        dma.writable.clear();
        let fetched = ring.fetch(&mut dma.readable, &mut dma.writable)?;
        let Some(chain) = fetched else {
            return Ok(false);
        };
        let mut frame = self.pool.take();
        let copied = if self.enabled {
            self.copy(&dma.readable, &mut frame)
        } else {
            Err(Drop::TxQueueDisabled)
        };
        self.tally.octets += self.pass(frame, copied);
        self.tally.read += 1;
        match &mut dma.liar {
            Some(liar) if LYING => liar.complete(ring, chain, 0),
            _ => ring.complete(chain, 0),
        }
        Ok(true)
    }

    /// Copies the packet in `readable` into `frame`.
    fn copy(&mut self, readable: &Scatter, frame: &mut Frame) -> Result<(), Drop> {
        let header_len = self.features.header_len();
        let len = readable.len().checked_sub(header_len as u64);
        let len = len.ok_or(Drop::TxUndersize)? as usize;
        let mut header = [0; MAX_HEADER];
        let header = &mut header[..header_len];
        let mut cursor = readable.cursor();
        cursor.read(header);
        let Some(room) = frame.buffer_mut().get_mut(..len) else {
            return self.copy_super(header, len, frame, |room| cursor.read(room) == len);
        };
        cursor.read(room);
        frame.set_len(len);
        self.offloads(header, frame)
    }
}
