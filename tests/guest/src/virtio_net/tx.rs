//! The transmit side of a queue pair (Linux: `struct send_queue`).
//!
//! What enters: frames with their headers, copied into buffers of the queue's own. What leaves:
//! chains in the ring, and counts when the device gives them back. Refused and counted: frames for
//! which the ring has no room now (`busy`) or no buffer ever (`too_long`).

use std::sync::Arc;

use super::coalesce::{Coalesce, IntrCoal};
use super::header::VirtioNetHdr;
use super::rx::{MAX_GSO_LEN, good_packet_len};
use super::stats::TxStats;
use crate::dma::{CONFIG_DMA_API_DEBUG, DmaDevice, DmaDirection, DmaMappingError, DmaSlice};
use crate::memory::{GuestMemory, MemoryError};
use crate::ring::virtqueue::{Virtqueue, VirtqueueOptions};
use crate::ring::{AddError, RingFault, Segment};
use crate::transport::Transport;

/// Pieces a frame is cut into at most.
const MAX_PIECES: usize = 32;

/// How a frame is laid into descriptors. More than one become an indirect table where that was
/// negotiated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TxLayout {
    /// Header and frame in one descriptor.
    #[default]
    Single,
    /// The header in one, the frame in another.
    HeaderSeparate,
    /// Pieces of these lengths (the header counts), then one with the rest. At most 31 lengths.
    Cut(Vec<u32>),
}

impl TxLayout {
    /// Pieces that the longest frames become.
    #[inline]
    fn pieces(&self) -> usize {
        match self {
            Self::Single => 1,
            Self::HeaderSeparate => 2,
            Self::Cut(lengths) => MAX_PIECES.min(lengths.len() + 1),
        }
    }
}

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XmitError {
    /// No room now: try again after completions.
    #[error("transmit ring full")]
    Busy,
    /// No buffer holds it.
    #[error("frame of {0} bytes does not fit into a transmit buffer")]
    TooLong(usize),
    /// Its buffer could not be mapped.
    #[error("{0}")]
    Mapping(#[from] DmaMappingError),
    /// The ring is broken.
    #[error("{0}")]
    Broken(#[from] RingFault),
}

/// A layout that asks for more descriptors than the ring has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frames in {pieces} descriptors do not fit into a transmit ring of {ring}")]
pub struct LayoutError {
    /// Descriptors of a frame.
    pub pieces: usize,
    /// Entries of the ring.
    pub ring: u16,
}

/// A send queue: its ring, its buffers, its counters.
#[derive(Debug)]
pub struct SendQueue {
    /// The ring.
    pub vq: Virtqueue,
    /// Counters.
    pub stats: TxStats,
    pub(super) intr_coal: IntrCoal,
    layout: TxLayout,
    index: u16,
    /// Entries of an indirect table.
    indirect: usize,
    hdr_len: usize,
    device: DmaDevice,
    pool: DmaSlice,
    stride: usize,
    free: Vec<u32>,
    /// Frame length in each buffer, for the byte count.
    lens: Vec<u32>,
}

impl SendQueue {
    /// Allocates ring and buffers; `buf_len` (virtio header included) overrides the usual length,
    /// which holds packets of `mtu` bytes.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn new(
        memory: &Arc<GuestMemory>,
        index: u16,
        size: u16,
        features: u64,
        options: VirtqueueOptions,
        mtu: u16,
        buf_len: Option<usize>,
    ) -> Result<Self, MemoryError> {
        use super::features as f;
        let gso = f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_UFO | f::HOST_USO;
        let hdr_len = VirtioNetHdr::len(features);
        let usual = hdr_len
            + if features & gso != 0 {
                MAX_GSO_LEN
            } else {
                good_packet_len(mtu)
            };
        let stride = buf_len.unwrap_or(usual).max(hdr_len).next_multiple_of(64);
        let mut vq = Virtqueue::new(memory, size, options)?;
        // Completions are taken when frames are sent; who wants interrupts asks for them.
        vq.disable_cb();
        let name = || format!("output.{}", index / 2);
        let (device, pool) = match DmaDevice::allocate(memory, name, stride * usize::from(size), 64)
        {
            Ok(made) => made,
            Err(error) => {
                vq.release();
                return Err(error);
            }
        };
        Ok(Self {
            vq,
            stats: TxStats::default(),
            intr_coal: Coalesce::default().tx,
            layout: TxLayout::default(),
            index,
            indirect: usize::from(options.indirect),
            hdr_len,
            device,
            pool,
            stride,
            free: (0..u32::from(size)).rev().collect(),
            lens: vec![0; usize::from(size)],
        })
    }

    /// Queue number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Length of a buffer, virtio header included.
    #[must_use]
    pub fn buf_len(&self) -> usize {
        self.stride
    }

    /// Takes the place of `old`, whose ring has another size.
    pub(super) fn succeed(&mut self, old: &Self) {
        (self.stats, self.intr_coal) = (old.stats, old.intr_coal);
    }

    /// How frames are laid into descriptors.
    #[must_use]
    pub fn layout(&self) -> &TxLayout {
        &self.layout
    }

    /// Puts a frame into the ring (`start_xmit`). Not kicked yet.
    ///
    /// # Errors
    /// [`XmitError::Busy`] when it is to be tried again later.
    #[inline]
    pub fn start_xmit(&mut self, frame: &[u8], hdr: &VirtioNetHdr) -> Result<(), XmitError> {
        self.xmit(frame, hdr).map(drop)
    }

    /// The same; which buffer it is in until [`Self::get_sent`] names it.
    ///
    /// # Errors
    /// As [`Self::start_xmit`].
    #[inline]
    pub fn xmit(&mut self, frame: &[u8], hdr: &VirtioNetHdr) -> Result<u32, XmitError> {
        let len = self.hdr_len + frame.len();
        if len > self.stride {
            self.stats.too_long += 1;
            return Err(XmitError::TooLong(frame.len()));
        }
        let Some(&slot) = self.free.last() else {
            self.stats.busy += 1;
            return Err(XmitError::Busy);
        };
        let offset = slot as usize * self.stride;
        self.pool.write(offset, &hdr.to_bytes()[..self.hdr_len]);
        self.pool.write(offset + self.hdr_len, frame);
        let addr = self.pool.map_single(offset, len, DmaDirection::ToDevice)?;
        let added = if self.layout == TxLayout::Single {
            self.vq.add(&[Segment::new(addr, len as u32)], &[], slot)
        } else {
            let mut pieces = [Segment::default(); MAX_PIECES];
            let count = cut(&self.layout, self.hdr_len, addr, len, &mut pieces);
            self.vq.add(&pieces[..count], &[], slot)
        };
        match added {
            Ok(()) => {
                self.free.pop();
                self.lens[slot as usize] = frame.len() as u32;
                Ok(slot)
            }
            Err(error) => {
                self.pool.unmap_single(offset, len, DmaDirection::ToDevice);
                if let AddError::Broken(fault) = error {
                    return Err(fault.into());
                }
                self.stats.busy += 1;
                Err(XmitError::Busy)
            }
        }
    }

    /// The device is done with a buffer.
    #[inline(always)] // nothing is left of it
    fn unmap(&self, slot: u32) {
        let len = self.hdr_len + self.lens[slot as usize] as usize;
        let offset = slot as usize * self.stride;
        self.pool.unmap_single(offset, len, DmaDirection::ToDevice);
    }

    /// Publishes added frames and kicks if the device wants it.
    pub fn kick(&mut self, transport: &impl Transport) {
        if self.vq.kick_prepare() {
            self.notify(transport);
        }
    }

    /// Kicks the device (`virtqueue_notify`).
    pub(crate) fn notify(&mut self, transport: &impl Transport) {
        transport.kick(self.index);
        self.stats.kicks += 1;
    }

    /// Takes back what the device has sent (`free_old_xmit`); how many frames.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn free_old_xmit(&mut self) -> Result<usize, RingFault> {
        let mut count = 0;
        while self.get_sent()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Takes back the next frame that the device has sent; the buffer it was in.
    ///
    /// # Errors
    /// When the ring is broken.
    #[inline]
    pub fn get_sent(&mut self) -> Result<Option<u32>, RingFault> {
        let Some(used) = self.vq.get_buf()? else {
            return Ok(None);
        };
        if CONFIG_DMA_API_DEBUG {
            self.unmap(used.token);
        }
        self.stats.packets += 1;
        self.stats.bytes += u64::from(self.lens[used.token as usize]);
        self.free.push(used.token);
        Ok(Some(used.token))
    }

    /// Whether one more frame can be put into the ring, however it is laid.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() && usize::from(self.vq.num_free()) >= self.descriptors()
    }

    /// Descriptors of the ring that a frame takes at most: one, where all its pieces go into an
    /// indirect table.
    #[inline]
    fn descriptors(&self) -> usize {
        match self.layout.pieces() {
            pieces if pieces <= self.indirect => 1,
            pieces => pieces,
        }
    }

    /// Lays frames out as `layout` says from now on.
    ///
    /// # Errors
    /// When the empty ring has no room for such a frame: it would be waited for for ever.
    pub fn set_layout(&mut self, layout: TxLayout) -> Result<(), LayoutError> {
        let before = std::mem::replace(&mut self.layout, layout);
        let (pieces, ring) = (self.descriptors(), self.vq.size());
        if pieces > usize::from(ring) {
            self.layout = before;
            return Err(LayoutError { pieces, ring });
        }
        Ok(())
    }

    /// Takes all buffers back from a stopped ring (`free_unused_bufs`).
    pub fn detach_all(&mut self) {
        while let Some(slot) = self.vq.detach_unused_buf() {
            self.unmap(slot);
            self.free.push(slot);
        }
    }

    /// Gives ring and buffers back to guest memory; the device must be stopped.
    pub fn release(mut self) {
        self.detach_all();
        self.device.remove(self.pool.memory());
        self.pool.release();
        self.vq.release();
    }
}

/// Cuts `len` bytes at `addr` into pieces; how many.
fn cut(layout: &TxLayout, hdr_len: usize, addr: u64, len: usize, pieces: &mut [Segment]) -> usize {
    let header = [hdr_len as u32];
    let lengths: &[u32] = match layout {
        TxLayout::Single => &[],
        TxLayout::HeaderSeparate => &header,
        TxLayout::Cut(lengths) => lengths,
    };
    let (mut count, mut at) = (0, 0);
    for &piece in lengths.iter().take(pieces.len() - 1) {
        let piece = piece.min((len - at) as u32);
        if piece > 0 {
            pieces[count] = Segment::new(addr + at as u64, piece);
            count += 1;
            at += piece as usize;
        }
    }
    if at < len {
        pieces[count] = Segment::new(addr + at as u64, (len - at) as u32);
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(layout: &TxLayout, len: usize) -> Vec<u32> {
        let mut pieces = [Segment::default(); MAX_PIECES];
        let count = cut(layout, 12, 0x1000, len, &mut pieces);
        let mut addr = 0x1000;
        for piece in &pieces[..count] {
            assert_eq!(piece.addr, addr);
            addr += u64::from(piece.len);
        }
        assert_eq!(addr, 0x1000 + len as u64);
        pieces[..count].iter().map(|piece| piece.len).collect()
    }

    #[test]
    fn frames_are_cut_as_asked() {
        assert_eq!(lengths(&TxLayout::Single, 72), [72]);
        assert_eq!(lengths(&TxLayout::HeaderSeparate, 72), [12, 60]);
        assert_eq!(
            lengths(&TxLayout::Cut(vec![4, 4, 4, 20]), 72),
            [4, 4, 4, 20, 40]
        );
        assert_eq!(lengths(&TxLayout::Cut(vec![4, 0, 100, 5]), 72), [4, 68]);
        assert_eq!(lengths(&TxLayout::Cut(vec![1; 40]), 72).len(), 32);
    }
}
