//! The receive side of a queue pair (Linux: `struct receive_queue`).
//!
//! What enters: used buffers. What leaves: frames, lent to the caller for the time of a call, and
//! buffers back to the ring. Dropped and counted: buffers with impossible lengths, frames with
//! missing buffers, headers that lie. Three kinds of buffer, as in Linux: small (one per frame),
//! big (64 KiB in pages, for GSO without merging) and mergeable (a frame takes as many as it
//! needs).

use std::sync::Arc;

use super::coalesce::{IntrCoal, RxDim};
use super::features as f;
use super::gso::{MAX_HEADERS, RscInfo, SkbSharedInfo};
use super::header::{
    BadHeader, MAX_HDR_LEN, USUAL_HDR_LEN, VIRTIO_NET_HDR_F_RSC_INFO, VIRTIO_NET_HDR_GSO_NONE,
    VirtioNetHdr,
};
use super::stats::RxStats;
use crate::dma::{CONFIG_DMA_API_DEBUG, DmaDirection, DmaSlice};
use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE};
use crate::net::page_pool::{PagePool, PagePoolStats};
use crate::ring::virtqueue::{Virtqueue, VirtqueueOptions, either};
use crate::ring::{AddError, RingFault, Segment};
use crate::transport::Transport;

/// Shortest frame: an Ethernet header.
pub const ETH_HLEN: usize = 14;
/// Bytes of a packet, where the device does not say (`ETH_DATA_LEN`).
pub const ETH_DATA_LEN: u16 = 1500;
/// Longest frame without VLAN offload: header, VLAN tag and 1500 bytes.
pub const GOOD_PACKET_LEN: usize = ETH_HLEN + 4 + ETH_DATA_LEN as usize;
/// Longest GSO frame.
pub const MAX_GSO_LEN: usize = 65_535 + ETH_HLEN + 4;

/// Longest frame of a device with that MTU. A smaller one does not shrink the buffers: what others send
/// may be longer all the same.
pub(super) fn good_packet_len(mtu: u16) -> usize {
    ETH_HLEN + 4 + usize::from(mtu.max(ETH_DATA_LEN))
}

/// How frames are laid into buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxMode {
    /// One buffer, one frame of ordinary size.
    Small,
    /// One buffer of many pages, one frame of any size.
    Big,
    /// MRG_RXBUF: one frame over several buffers.
    Mergeable,
}

impl RxMode {
    /// What `features` call for.
    #[must_use]
    pub fn of(features: u64) -> Self {
        let gso = f::GUEST_TSO4
            | f::GUEST_TSO6
            | f::GUEST_ECN
            | f::GUEST_UFO
            | f::GUEST_USO4
            | f::GUEST_USO6;
        if features & f::MRG_RXBUF != 0 {
            Self::Mergeable
        } else if features & gso != 0 {
            Self::Big
        } else {
            Self::Small
        }
    }
}

/// A piece of a frame: which buffer it is in.
#[derive(Debug, Clone, Copy)]
struct Piece {
    frag: u32,
    len: usize,
}

/// A received frame, lent until the call that gives it ends.
#[derive(Debug, Clone, Copy)]
pub struct RxFrame<'a> {
    /// Its header, checked.
    pub hdr: VirtioNetHdr,
    pool: &'a PagePool,
    /// What is in the first buffer, behind the virtio header: in which page, where, how long.
    page: &'a DmaSlice,
    offset: usize,
    first_len: usize,
    /// What is in further buffers.
    rest: &'a [Piece],
    len: usize,
    /// What the device says that it put together to make it.
    pub rsc: RscInfo,
}

impl RxFrame<'_> {
    /// Checks its header, which it may have to understand first.
    #[inline]
    fn check(&mut self, features: u64) -> Result<(), BadHeader> {
        if self.hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO != 0 && features & f::RSC_EXT != 0 {
            self.take_rsc_info();
        }
        self.hdr.check(self.len, features)
    }

    #[cold]
    fn take_rsc_info(&mut self) {
        let mut head = [0; MAX_HEADERS];
        let len = self.copy_to(&mut head);
        self.rsc = self.hdr.take_rsc_info(&head[..len]);
    }

    /// Bytes of the frame, without the virtio header.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a frame has at least an Ethernet header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Buffers that the frame is in.
    #[inline]
    #[must_use]
    pub fn buffers(&self) -> usize {
        1 + self.rest.len()
    }

    /// Copies the frame's beginning into `buf`; how much.
    #[inline]
    pub fn copy_to(&self, buf: &mut [u8]) -> usize {
        let mut done = self.first_len.min(buf.len());
        self.page.read(self.offset, &mut buf[..done]);
        for piece in self.rest {
            let len = piece.len.min(buf.len() - done);
            let (page, offset) = self.pool.place(piece.frag);
            page.read(offset, &mut buf[done..done + len]);
            done += len;
        }
        done
    }

    /// What the device says of its segments, where it stands for several.
    #[must_use]
    pub fn shared_info(&self) -> SkbSharedInfo {
        if self.hdr.gso_type == VIRTIO_NET_HDR_GSO_NONE {
            return SkbSharedInfo::default();
        }
        let mut head = [0; MAX_HEADERS];
        let len = self.copy_to(&mut head);
        self.hdr.shared_info(self.len, &head[..len])
    }

    /// The frame in a vector of its own.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(&mut bytes);
        bytes
    }
}

/// What [`ReceiveQueue::receive_one`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken<R> {
    /// Nothing was used.
    Empty,
    /// A frame that was dropped and counted.
    Bad,
    /// A frame, and what was made of it.
    Frame(R),
}

/// A receive queue: its ring, its buffers, its counters.
#[derive(Debug)]
pub struct ReceiveQueue {
    /// The ring.
    pub vq: Virtqueue,
    /// Counters.
    pub stats: RxStats,
    pub(super) intr_coal: IntrCoal,
    pub(super) dim: RxDim,
    index: u16,
    features: u64,
    mode: RxMode,
    hdr_len: usize,
    pool: PagePool,
    /// Buffers whose frames were taken: they go back to the pool before others are posted.
    used: Vec<u32>,
    buf_len: usize,
    segments: Vec<Segment>,
    /// Of the frame being put together, after its first.
    rest: Vec<Piece>,
}

impl ReceiveQueue {
    /// Allocates ring and buffers; `buf_len` (virtio header included) overrides the usual length,
    /// which holds packets of `mtu` bytes where a frame has one buffer.
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
        let (mode, hdr_len) = (RxMode::of(features), VirtioNetHdr::len(features));
        let usual = match mode {
            RxMode::Small => hdr_len + good_packet_len(mtu),
            RxMode::Big => hdr_len + MAX_GSO_LEN,
            RxMode::Mergeable => (hdr_len + GOOD_PACKET_LEN).next_multiple_of(64),
        };
        let buf_len = buf_len.unwrap_or(usual).max(hdr_len);
        let per_buffer = 1 + (buf_len - hdr_len).div_ceil(PAGE_SIZE);
        let direct = mode == RxMode::Big && usize::from(options.indirect) < per_buffer;
        let count = usize::from(size) / if direct { per_buffer } else { 1 };
        let vq = Virtqueue::new(memory, size, options)?;
        let name = || format!("input.{}", index / 2);
        let pool = match PagePool::create(memory, name, buf_len, count, size.into()) {
            Ok(pool) => pool,
            Err(error) => {
                vq.release();
                return Err(error);
            }
        };
        Ok(Self {
            vq,
            stats: RxStats::default(),
            intr_coal: IntrCoal::default(),
            dim: RxDim::default(),
            index,
            features,
            mode,
            hdr_len,
            pool,
            buf_len,
            used: Vec::with_capacity(count),
            segments: Vec::with_capacity(per_buffer),
            rest: Vec::with_capacity(count),
        })
    }

    /// Queue number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How frames are laid into buffers.
    #[must_use]
    pub fn mode(&self) -> RxMode {
        self.mode
    }

    /// Length of a buffer, virtio header included.
    #[must_use]
    pub fn buf_len(&self) -> usize {
        self.buf_len
    }

    /// Takes the place of `old`, whose ring has another size.
    pub(super) fn succeed(&mut self, old: &Self) {
        (self.stats, self.intr_coal) = (old.stats, old.intr_coal);
        self.dim = old.dim.clone();
    }

    /// What the pool of its buffers counts.
    #[must_use]
    pub fn page_pool_stats(&self) -> &PagePoolStats {
        &self.pool.stats
    }

    /// Fills the ring with buffers (`try_fill_recv`), as far as there is memory for them; how many were added. Not kicked
    /// yet.
    pub fn try_fill_recv(&mut self) -> usize {
        self.pool.put_frags(self.used.drain(..), true);
        let (mut added, hdr_len, len) = (0, self.hdr_len, self.buf_len);
        let (pool, segments) = (&mut self.pool, &mut self.segments);
        // The ring's layout is asked for once, and how frames are laid into buffers.
        either!(&mut self.vq, vq => if self.mode == RxMode::Big {
            while Self::post(pool, vq.num_free(), len, &mut added, |addr, frag| {
                add_recvbuf_big(segments, addr, hdr_len, len);
                vq.add(&[], segments, frag)
            }) {}
        } else {
            while Self::post(pool, vq.num_free(), len, &mut added, |addr, frag| {
                vq.add(&[], &[Segment::new(addr, len as u32)], frag)
            }) {}
        });
        added
    }

    /// Gives the ring up to `most` buffers that follow each other in a page; whether there may be more.
    #[inline(always)] // for each page
    fn post(
        pool: &mut PagePool,
        most: u16,
        len: usize,
        added: &mut usize,
        mut add: impl FnMut(u64, u32) -> Result<(), AddError>,
    ) -> bool {
        let Some(frags) = pool.alloc_frags(most) else {
            return false;
        };
        let mut addr = frags.addr;
        for frag in frags.numbers.clone() {
            if CONFIG_DMA_API_DEBUG {
                let (page, offset) = pool.place(frag);
                page.sync_single_for_device(offset, len, DmaDirection::FromDevice);
            }
            if add(addr, frag).is_err() {
                Self::sync_for_cpu(pool, frag, len);
                pool.put_frags(frag..frags.numbers.end, true);
                return false;
            }
            addr += frags.len as u64;
            *added += 1;
        }
        true
    }

    /// Publishes added buffers and kicks if the device wants it.
    pub fn kick(&mut self, transport: &impl Transport) {
        if self.vq.kick_prepare() {
            transport.kick(self.index);
            self.stats.kicks += 1;
        }
    }

    /// Takes up to `budget` frames, good or bad, and lends the good ones to `deliver`
    /// (`virtnet_receive`); how many were taken. Buffers are not given back to the ring here.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn receive(
        &mut self,
        budget: usize,
        mut deliver: impl FnMut(RxFrame<'_>),
    ) -> Result<usize, RingFault> {
        let mut taken = 0;
        while taken < budget && !matches!(self.receive_one(&mut deliver)?, Taken::Empty) {
            taken += 1;
        }
        Ok(taken)
    }

    /// Takes the next frame, good or bad, and lends a good one to `deliver`. Its buffers are not
    /// given back to the ring here.
    ///
    /// # Errors
    /// When the ring is broken.
    #[inline(always)] // on the way of each packet; what is made of the frame is built in its place
    pub fn receive_one<R>(
        &mut self,
        deliver: impl FnOnce(RxFrame<'_>) -> R,
    ) -> Result<Taken<R>, RingFault> {
        let Some(used) = self.vq.get_buf()? else {
            return Ok(Taken::Empty);
        };
        self.used.push(used.token);
        Self::sync_for_cpu(&self.pool, used.token, self.buf_len);
        let mut len = used.len as usize;
        if len < self.hdr_len + ETH_HLEN || used.len > used.writable {
            self.length_error(len);
            return Ok(Taken::Bad);
        }
        len -= self.hdr_len;
        let (page, offset) = self.pool.place(used.token);
        let hdr = self.read_hdr(page, offset);
        let (first_len, mut rest) = (len, &[][..]);
        if self.mode == RxMode::Mergeable && hdr.num_buffers != 1 {
            let buffers = (&mut self.rest, &mut self.used);
            if !gather(&mut self.vq, buffers, hdr.num_buffers)? {
                self.length_error(len);
                return Ok(Taken::Bad);
            }
            for piece in &self.rest {
                Self::sync_for_cpu(&self.pool, piece.frag, self.buf_len);
            }
            rest = &self.rest;
            len += rest.iter().map(|piece| piece.len).sum::<usize>();
        }
        let mut frame = RxFrame {
            hdr,
            pool: &self.pool,
            page,
            offset: offset + self.hdr_len,
            first_len,
            rest,
            len,
            rsc: RscInfo::default(),
        };
        if let Err(error) = frame.check(self.features) {
            log::debug!("{error}");
            self.stats.drops += 1;
            self.stats.frame_errors += 1;
            return Ok(Taken::Bad);
        }
        self.stats.packets += 1;
        self.stats.bytes += len as u64;
        Ok(Taken::Frame(deliver(frame)))
    }

    /// The device has used a buffer, or never will.
    #[inline(always)] // nothing is left of it
    fn sync_for_cpu(pool: &PagePool, frag: u32, len: usize) {
        if CONFIG_DMA_API_DEBUG {
            let (page, offset) = pool.place(frag);
            page.sync_single_for_cpu(offset, len, DmaDirection::FromDevice);
        }
    }

    #[inline(always)] // on the way of each packet; called once
    fn read_hdr(&self, page: &DmaSlice, offset: usize) -> VirtioNetHdr {
        // A few loads instead of a call.
        match self.hdr_len {
            MAX_HDR_LEN => {
                let (low, high, report) = page.read_u64_u64_u32(offset);
                VirtioNetHdr::from_long_words(low, high, report)
            }
            USUAL_HDR_LEN => {
                let (low, high) = page.read_u64_u32(offset);
                VirtioNetHdr::from_words(low, high)
            }
            _ => self.read_short_hdr(page, offset),
        }
    }

    #[cold]
    fn read_short_hdr(&self, page: &DmaSlice, offset: usize) -> VirtioNetHdr {
        let mut bytes = [0; MAX_HDR_LEN];
        page.read(offset, &mut bytes[..self.hdr_len]);
        VirtioNetHdr::from_bytes(&bytes, self.features)
    }

    #[cold]
    fn length_error(&mut self, len: usize) {
        log::debug!("short packet, impossible length or buffers missing: {len}");
        self.stats.drops += 1;
        self.stats.length_errors += 1;
    }

    /// Takes all buffers back from a stopped ring (`free_receive_bufs`).
    pub fn detach_all(&mut self) {
        while let Some(frag) = self.vq.detach_unused_buf() {
            Self::sync_for_cpu(&self.pool, frag, self.buf_len);
            self.used.push(frag);
        }
        self.pool.put_frags(self.used.drain(..), false);
    }

    /// Gives ring and buffers back to guest memory; the device must be stopped.
    pub fn release(mut self) {
        self.detach_all();
        if let Err(inflight) = self.pool.destroy() {
            log::error!("{inflight}");
        }
        self.vq.release();
    }
}

/// Takes a frame's other buffers into `rest`; whether all were there and possible.
fn gather(
    vq: &mut Virtqueue,
    (rest, taken): (&mut Vec<Piece>, &mut Vec<u32>),
    num_buffers: u16,
) -> Result<bool, RingFault> {
    rest.clear();
    if num_buffers == 0 {
        log::debug!("rx error: a frame in 0 buffers");
        return Ok(false);
    }
    let mut good = true;
    for missing in (1..num_buffers).rev() {
        let Some(used) = vq.get_buf()? else {
            log::debug!("rx error: {missing} buffers out of {num_buffers} missing");
            return Ok(false);
        };
        taken.push(used.token);
        good &= used.len <= used.writable;
        rest.push(Piece {
            frag: used.token,
            len: used.len as usize,
        });
    }
    Ok(good)
}

/// The pieces of a buffer at `addr` that holds any frame: the header, then pages (`add_recvbuf_big`).
fn add_recvbuf_big(segments: &mut Vec<Segment>, addr: u64, hdr_len: usize, buf_len: usize) {
    segments.clear();
    segments.push(Segment::new(addr, hdr_len as u32));
    for at in (hdr_len..buf_len).step_by(PAGE_SIZE) {
        let len = PAGE_SIZE.min(buf_len - at);
        segments.push(Segment::new(addr + at as u64, len as u32));
    }
}
