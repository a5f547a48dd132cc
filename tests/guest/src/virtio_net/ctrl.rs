//! The control queue (virtio 1.3, 5.1.6.5): commands and their acknowledgements.
//!
//! What enters: class, command and data. What leaves: the device's verdict, or that none came in
//! time. A command that times out stays in its slot until the device gives it back; it is never
//! reused under the device's hands. The commands themselves are in [`super::commands`].

use std::sync::Arc;

use crate::dma::{DmaDevice, DmaDirection, DmaSlice};
use crate::memory::{GuestMemory, MemoryError};
use crate::ring::virtqueue::{Virtqueue, VirtqueueOptions};
use crate::ring::{RingFault, Segment};

/// The command succeeded.
pub const VIRTIO_NET_OK: u8 = 0;
/// The command failed.
pub const VIRTIO_NET_ERR: u8 = 1;

/// Class: receive modes.
pub const VIRTIO_NET_CTRL_RX: u8 = 0;
/// Receive everything.
pub const VIRTIO_NET_CTRL_RX_PROMISC: u8 = 0;
/// Receive all multicast.
pub const VIRTIO_NET_CTRL_RX_ALLMULTI: u8 = 1;
/// Receive all unicast.
pub const VIRTIO_NET_CTRL_RX_ALLUNI: u8 = 2;
/// Receive no multicast.
pub const VIRTIO_NET_CTRL_RX_NOMULTI: u8 = 3;
/// Receive no unicast.
pub const VIRTIO_NET_CTRL_RX_NOUNI: u8 = 4;
/// Receive no broadcast.
pub const VIRTIO_NET_CTRL_RX_NOBCAST: u8 = 5;
/// Class: MAC filter and address.
pub const VIRTIO_NET_CTRL_MAC: u8 = 1;
/// Set the filter table.
pub const VIRTIO_NET_CTRL_MAC_TABLE_SET: u8 = 0;
/// Set the address.
pub const VIRTIO_NET_CTRL_MAC_ADDR_SET: u8 = 1;
/// Class: VLAN filter.
pub const VIRTIO_NET_CTRL_VLAN: u8 = 2;
/// Let a VLAN in.
pub const VIRTIO_NET_CTRL_VLAN_ADD: u8 = 0;
/// Let it in no longer.
pub const VIRTIO_NET_CTRL_VLAN_DEL: u8 = 1;
/// Class: announcement.
pub const VIRTIO_NET_CTRL_ANNOUNCE: u8 = 3;
/// The driver has announced itself.
pub const VIRTIO_NET_CTRL_ANNOUNCE_ACK: u8 = 0;
/// Class: queue pairs and steering.
pub const VIRTIO_NET_CTRL_MQ: u8 = 4;
/// Queue pairs in use.
pub const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: u8 = 0;
/// RSS: types, table and key.
pub const VIRTIO_NET_CTRL_MQ_RSS_CONFIG: u8 = 1;
/// Hash report: types and key.
pub const VIRTIO_NET_CTRL_MQ_HASH_CONFIG: u8 = 2;
/// Class: receive offloads.
pub const VIRTIO_NET_CTRL_GUEST_OFFLOADS: u8 = 5;
/// Offloads in use.
pub const VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: u8 = 0;
/// Class: notification coalescing.
pub const VIRTIO_NET_CTRL_NOTF_COAL: u8 = 6;
/// For all transmit queues.
pub const VIRTIO_NET_CTRL_NOTF_COAL_TX_SET: u8 = 0;
/// For all receive queues.
pub const VIRTIO_NET_CTRL_NOTF_COAL_RX_SET: u8 = 1;
/// For one queue.
pub const VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET: u8 = 2;
/// Of one queue.
pub const VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET: u8 = 3;

/// Class: encapsulated packets.
pub const VIRTIO_NET_CTRL_HASH_TUNNEL: u8 = 7;
/// Tunnels whose inner headers are hashed.
pub const VIRTIO_NET_CTRL_HASH_TUNNEL_SET: u8 = 0;
/// Class: what the device counts.
pub const VIRTIO_NET_CTRL_STATS: u8 = 8;
/// Which types of statistics there are.
pub const VIRTIO_NET_CTRL_STATS_QUERY: u8 = 0;
/// Statistics of queues.
pub const VIRTIO_NET_CTRL_STATS_GET: u8 = 1;

/// Why a command has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CtrlError {
    /// There is no control queue.
    #[error("no control queue")]
    NoQueue,
    /// The device said no.
    #[error("device refused the command (ack {0})")]
    Refused(u8),
    /// The device said nothing in time.
    #[error("device did not answer the command in time")]
    TimedOut,
    /// All slots hold commands that the device never answered, or the command cannot be mapped.
    #[error("control queue full of unanswered commands, or none can be mapped")]
    Full,
    /// The device's reply has fewer bytes than the command calls for.
    #[error("reply of {0} bytes, which is too short")]
    ShortReply(usize),
    /// More data or reply than a slot holds.
    #[error("command of {0} bytes")]
    TooLong(usize),
    /// The ring is broken.
    #[error("{0}")]
    Broken(#[from] RingFault),
    /// What it takes was not negotiated (`EOPNOTSUPP`); nothing was sent.
    #[error("{0} was not negotiated")]
    NotNegotiated(&'static str),
    /// No device could do that (`EINVAL`); nothing was sent.
    #[error("impossible {0}")]
    Invalid(&'static str),
}

/// Commands that may wait for an answer at once.
const SLOTS: usize = 8;
/// What lies where in a slot.
const SLOT_LEN: usize = 16 << 10;
const DATA: usize = 64;
const REPLY: usize = 12 << 10;
const ACK: usize = SLOT_LEN - 1;
/// What the ack is before the device writes it.
const NO_ACK: u8 = 0xff;

/// A command that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u32);

/// The control queue.
#[derive(Debug)]
pub struct ControlQueue {
    /// The ring.
    pub vq: Virtqueue,
    index: u16,
    device: DmaDevice,
    pool: DmaSlice,
    state: [Slot; SLOTS],
    /// What of each slot is mapped: data to read, a reply to write.
    mapped: [(usize, usize); SLOTS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    Waiting,
    Abandoned,
    Acked(Answer),
}

/// What the device made of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// [`VIRTIO_NET_OK`] or another.
    pub ack: u8,
    /// Bytes of reply that the device wrote behind it.
    pub len: usize,
}

impl ControlQueue {
    /// Allocates ring and slots.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn new(
        memory: &Arc<GuestMemory>,
        index: u16,
        size: u16,
        options: VirtqueueOptions,
    ) -> Result<Self, MemoryError> {
        let vq = Virtqueue::new(memory, size, options)?;
        let name = || "control".into();
        let (device, pool) = match DmaDevice::allocate(memory, name, SLOTS * SLOT_LEN, 64) {
            Ok(made) => made,
            Err(error) => {
                vq.release();
                return Err(error);
            }
        };
        Ok(Self {
            vq,
            index,
            device,
            pool,
            state: [Slot::Free; SLOTS],
            mapped: [(0, 0); SLOTS],
        })
    }

    /// Queue number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Puts a command into the ring, with room for `reply_len` bytes of reply. Not kicked yet.
    ///
    /// # Errors
    /// When there is no room for it, or the ring is broken.
    pub fn submit(
        &mut self,
        class: u8,
        command: u8,
        data: &[u8],
        reply_len: usize,
    ) -> Result<Ticket, CtrlError> {
        if data.len() > REPLY - DATA {
            return Err(CtrlError::TooLong(data.len()));
        }
        if reply_len > ACK - REPLY {
            return Err(CtrlError::TooLong(reply_len));
        }
        self.collect()?;
        let slot = self
            .state
            .iter()
            .position(|&state| state == Slot::Free)
            .ok_or(CtrlError::Full)?;
        let base = slot * SLOT_LEN;
        self.pool.write(base, &[class, command]);
        self.pool.write(base + DATA, data);
        self.pool.write(base + ACK, &[NO_ACK]);
        self.mapped[slot] = (data.len(), reply_len);
        self.map(slot)?;
        let piece = |at: usize, len: usize| {
            Segment::new(self.pool.guest_addr() + (base + at) as u64, len as u32)
        };
        let out = [piece(0, 2), piece(DATA, data.len())];
        let input = [piece(ACK, 1), piece(REPLY, reply_len)];
        let out = if data.is_empty() { &out[..1] } else { &out };
        let input = if reply_len == 0 { &input[..1] } else { &input };
        if let Err(error) = self.vq.add(out, input, slot as u32) {
            self.unmap(slot);
            return Err(match error {
                crate::ring::AddError::Broken(fault) => CtrlError::Broken(fault),
                _ => CtrlError::Full,
            });
        }
        self.state[slot] = Slot::Waiting;
        Ok(Ticket(slot as u32))
    }

    /// What of a slot is mapped: where it begins, how long it is, and who writes it.
    fn pieces(&self, slot: usize) -> [(usize, usize, DmaDirection); 4] {
        let (base, (data, reply)) = (slot * SLOT_LEN, self.mapped[slot]);
        [
            (base, 2, DmaDirection::ToDevice),
            (base + DATA, data, DmaDirection::ToDevice),
            (base + ACK, 1, DmaDirection::FromDevice),
            (base + REPLY, reply, DmaDirection::FromDevice),
        ]
    }

    fn map(&self, slot: usize) -> Result<(), CtrlError> {
        let pieces = self.pieces(slot);
        let some = pieces.iter().filter(|(_, len, _)| *len > 0);
        for (nth, &(offset, len, direction)) in some.clone().enumerate() {
            if self.pool.map_single(offset, len, direction).is_err() {
                for &(offset, len, direction) in some.take(nth) {
                    self.pool.unmap_single(offset, len, direction);
                }
                return Err(CtrlError::Full);
            }
        }
        Ok(())
    }

    fn unmap(&self, slot: usize) {
        for (offset, len, direction) in self.pieces(slot) {
            if len > 0 {
                self.pool.unmap_single(offset, len, direction);
            }
        }
    }

    /// The device's answer, once it is there, with what of the reply it wrote copied to `reply`.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn poll(&mut self, ticket: Ticket, reply: &mut [u8]) -> Result<Option<Answer>, CtrlError> {
        self.collect()?;
        let slot = ticket.0 as usize;
        let Slot::Acked(Answer { ack, len }) = self.state[slot] else {
            return Ok(None);
        };
        self.state[slot] = Slot::Free;
        let len = len.min(reply.len()).min(ACK - REPLY);
        self.pool.read(slot * SLOT_LEN + REPLY, &mut reply[..len]);
        Ok(Some(Answer { ack, len }))
    }

    /// Waits for an answer no longer.
    pub fn abandon(&mut self, ticket: Ticket) {
        let state = &mut self.state[ticket.0 as usize];
        *state = if *state == Slot::Waiting {
            Slot::Abandoned
        } else {
            Slot::Free
        };
    }

    fn collect(&mut self) -> Result<(), CtrlError> {
        while let Some(used) = self.vq.get_buf()? {
            let slot = used.token as usize;
            self.unmap(slot);
            let ack = self.pool.read_u8(slot * SLOT_LEN + ACK);
            let abandoned = self.state[slot] == Slot::Abandoned;
            self.state[slot] = if abandoned {
                Slot::Free
            } else {
                // The ack is the first byte of what was written.
                let len = (used.len as usize).saturating_sub(1);
                Slot::Acked(Answer { ack, len })
            };
        }
        Ok(())
    }

    /// Gives ring and slots back to guest memory; the device must be stopped.
    pub fn release(mut self) {
        while let Some(slot) = self.vq.detach_unused_buf() {
            self.unmap(slot as usize);
        }
        self.device.remove(self.pool.memory());
        self.pool.release();
        self.vq.release();
    }
}
