//! Super-frames: packets that the card is to cut (VIRTIO 1.3, 5.1.6.2.1). Each goes into a big buffer.

use std::mem;

use nic_model::counters::Drop;
use nic_model::frame::Frame;
use zerocopy::IntoBytes;

use super::Engine;
use crate::header::NetHeader;

impl Engine<'_> {
    /// Has `read` copy a packet of `len` octets, more than a frame has, into a big buffer that takes the place of `frame`.
    #[cold]
    pub(super) fn copy_super(
        &mut self,
        header: &[u8],
        len: usize,
        frame: &mut Frame,
        read: impl FnOnce(&mut [u8]) -> bool,
    ) -> Result<(), Drop> {
        let mut asked = NetHeader::default();
        asked.as_mut_bytes()[..header.len()].copy_from_slice(header);
        if asked.gso_type == 0 {
            return Err(Drop::TxOversize);
        }
        let (checksum, gso) = asked.segmentation(self.features)?;
        let mut big = self.pool.take_big();
        let Some(room) = big.buffer_mut().get_mut(..len) else {
            self.pool.give(big);
            return Err(Drop::TxOversize);
        };
        let whole = read(room);
        debug_assert!(whole, "there are as many octets");
        big.set_len(len);
        (big.checksum, big.gso) = (checksum, gso);
        self.tally.segments += big.len() / usize::from(gso.size.max(1));
        self.pool.give(mem::replace(frame, big));
        Ok(())
    }

    /// Moves a packet that turns out to be a super-frame, a short one, into a big buffer.
    #[cold]
    pub(super) fn move_super(&mut self, asked: &NetHeader, frame: &mut Frame) -> Result<(), Drop> {
        let (checksum, gso) = asked.segmentation(self.features)?;
        let mut big = self.pool.take_big();
        if !big.fill(frame.bytes()) {
            self.pool.give(big);
            return Err(Drop::TxOversize);
        }
        (big.checksum, big.gso) = (checksum, gso);
        self.tally.segments += big.len() / usize::from(gso.size.max(1));
        self.pool.give(mem::replace(frame, big));
        Ok(())
    }
}
