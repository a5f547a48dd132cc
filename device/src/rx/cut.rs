//! What a driver does not take as it is: a checksum is completed for it, a super-frame cut.
//!
//! That is decided when a frame is delivered, so that nothing reaches a driver that has just switched an offload off. Segments
//! go into the driver's buffers one by one; if these run out in between, the next call goes on with the rest.

use nic_model::checksum;
use nic_model::counters::{Drop, Drops};
use nic_model::frame::{BIG_BUFFER, Checksum, Frame, Pool};
use nic_model::segment::Cut;
use nic_model::time::Nanos;

use super::{Outcome, Tally, gather};
use crate::features::Features;
use crate::ring::{Fault, Ring};
use crate::virtio_net::Dma;

/// What a virtqueue needs for that.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    /// The segment at hand; made when it is first needed.
    segment: Option<Frame>,
    /// The super-frame that was begun, and the segments of it that were delivered.
    begun: Option<(Identity, usize)>,
    /// Whether segments were delivered of which nobody is told yet, since their super-frame waits for buffers.
    untold: bool,
}

impl Cutter {
    /// Whether segments were delivered since the last call whose super-frame waits for more buffers: the driver has to hear of
    /// them, to post more.
    pub(crate) fn take_untold(&mut self) -> bool {
        std::mem::take(&mut self.untold)
    }

    /// Whether segments of `frame` were delivered already, and the others are to follow.
    pub(crate) fn has_begun(&self, frame: &Frame) -> bool {
        self.begun
            .is_some_and(|(begun, _)| begun == identity(frame))
    }

    /// Forgets a super-frame that was begun, and has left the FIFO otherwise: it is not `oldest`.
    pub(crate) fn forget_all_but(&mut self, oldest: Option<&Frame>) {
        if !oldest.is_some_and(|frame| self.has_begun(frame)) {
            self.begun = None;
        }
    }
}

/// Who a frame is, as long as it waits.
fn identity(frame: &Frame) -> Identity {
    (frame.bytes().as_ptr() as usize, frame.arrival)
}

/// No two frames have the same buffer at the same instant.
type Identity = (usize, Nanos);

/// Delivers `frame`, which the driver does not take as it is. Returns false if there are too few buffers.
///
/// # Errors
/// The driver broke the ring. What was delivered before counts.
#[cold]
pub(super) fn deliver<R: Ring>(
    ring: &mut R,
    dma: &mut Dma,
    features: Features,
    frame: &Frame,
    drops: &mut Drops,
    tally: &mut Tally<'_>,
) -> Result<bool, Fault> {
    let segment = dma.cutter.segment.take();
    let mut segment = segment.unwrap_or_else(|| Pool::new(BIG_BUFFER).take());
    let result = pieces(ring, dma, features, frame, &mut segment, drops, tally);
    dma.cutter.segment = Some(segment);
    result
}

fn pieces<R: Ring>(
    ring: &mut R,
    dma: &mut Dma,
    features: Features,
    frame: &Frame,
    segment: &mut Frame,
    drops: &mut Drops,
    tally: &mut Tally<'_>,
) -> Result<bool, Fault> {
    let identity = identity(frame);
    let cut = if frame.is_super() {
        Some(Cut::of(frame).expect("the port admitted it"))
    } else {
        None
    };
    let pieces = cut.as_ref().map_or(1, Cut::segments);
    let begun = dma.cutter.begun.take();
    let first = match begun {
        Some((begun, done)) if begun == identity => done.min(pieces - 1),
        _ => 0,
    };
    for index in first..pieces {
        match &cut {
            Some(cut) => _ = cut.write(frame, index, segment),
            None => complete(frame, segment),
        }
        let start = ring.position();
        let gathered = gather::<R, false>(ring, dma, features, segment);
        match gathered.inspect_err(|_| ring.rewind(start))? {
            Outcome::Delivered => {
                tally.segments += 1;
                tally.octets += segment.len();
            }
            Outcome::TooSmall => {
                drops.count(Drop::RxBufferTooSmall);
                tally.dropped += 1;
                return Ok(true);
            }
            Outcome::NoBuffers => {
                dma.cutter.begun = Some((identity, index));
                dma.cutter.untold = index > first;
                return Ok(false);
            }
        }
    }
    // The last one stands for the frame itself.
    tally.segments -= 1;
    tally.delivered += 1;
    Ok(true)
}

/// Makes `out` a copy of `frame` with its checksum.
fn complete(frame: &Frame, out: &mut Frame) {
    let fits = out.fill(frame.bytes());
    debug_assert!(fits, "no frame is longer than a super-frame");
    (out.hash, out.hash_report) = (frame.hash, frame.hash_report);
    out.checksum = Checksum::Unknown;
    if let Checksum::Partial { start, offset } = frame.checksum
        && checksum::insert(out, start, offset).is_ok()
    {
        out.checksum = Checksum::Valid;
    }
}
