//! Frames with virtio's header before each, as a TAP device gives and takes them (`IFF_VNET_HDR`).
//!
//! One `readv` a frame, straight into the buffer that it stays in; one `writev` a frame. The header ([`NetHeader`]) tells what has
//! yet to be done to the frame: the fields of a frame whose checksum was left to the card, or that is a super-frame, are
//! made of it, and it of them.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};

use nic_device::header::{LEGACY_HEADER, NetHeader};
use nic_model::frame::{BIG_BUFFER, Frame, Pool};
use nix::errno::Errno;
use nix::sys::uio::{readv, writev};
use zerocopy::IntoBytes;

/// Octets of the header that goes before each frame.
pub const HEADER: usize = LEGACY_HEADER;

/// What reads frames.
#[derive(Debug)]
pub struct Reader {
    /// Where the octets of a super-frame go that a usual buffer has no room for: where they stay, if it is one.
    rest: Frame,
}

impl Reader {
    pub fn new() -> Self {
        Reader {
            rest: Pool::new(BIG_BUFFER).take(),
        }
    }

    /// Reads the next frame of `device`.
    ///
    /// # Errors
    /// What the system said: `EAGAIN` if none waits. It is also said, and nothing is read, if `pool` has no buffer for
    /// what may turn out to be a super-frame.
    pub fn read(&mut self, device: &File, pool: &mut Pool) -> nix::Result<Frame> {
        if pool.big_room_received() == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut header = NetHeader::default();
        let mut frame = pool.take();
        let usual = frame.buffer_mut();
        let rest = &mut self.rest.buffer_mut()[usual.len()..];
        let outcome = readv(
            device,
            &mut [
                IoSliceMut::new(&mut header.as_mut_bytes()[..HEADER]),
                IoSliceMut::new(usual),
                IoSliceMut::new(rest),
            ],
        );
        match outcome {
            Ok(octets) if octets > HEADER => Ok(self.finish(&header, octets - HEADER, frame, pool)),
            outcome => {
                pool.give(frame);
                // The kernel gives no frame without octets.
                Err(outcome.err().unwrap_or(Errno::EBADMSG))
            }
        }
    }

    /// Makes what was read, `len` octets of it, a frame.
    #[inline]
    fn finish(
        &mut self,
        header: &NetHeader,
        len: usize,
        mut frame: Frame,
        pool: &mut Pool,
    ) -> Frame {
        if header.gso_type != 0 {
            return self.finish_super(header, len, frame, pool);
        }
        frame.set_len(len);
        frame.excess = (len - frame.len()) as u32;
        header.tell(&mut frame);
        frame
    }

    #[cold]
    fn finish_super(
        &mut self,
        header: &NetHeader,
        len: usize,
        mut frame: Frame,
        pool: &mut Pool,
    ) -> Frame {
        let mut big = pool.take_big();
        frame.set_len(len);
        // Buffers change places, so that only the beginning has to be moved.
        std::mem::swap(&mut *big, &mut *self.rest);
        big.buffer_mut()[..frame.len()].copy_from_slice(frame.bytes());
        big.set_len(len);
        header.tell(&mut big);
        pool.give(frame);
        big
    }
}

/// Writes `frame` to `device`.
///
/// # Errors
/// What the system said: `EIO` if the interface is down.
pub fn write(device: &File, frame: &Frame) -> nix::Result<()> {
    let mut header = NetHeader::default();
    if frame.is_super() {
        header.set_offloads(frame);
    }
    let header = IoSlice::new(&header.as_bytes()[..HEADER]);
    writev(device, &[header, IoSlice::new(frame.bytes())]).map(drop)
}
