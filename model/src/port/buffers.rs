//! Where received frames wait: in their queue's FIFO, or in the packet buffer that the queues share ([`packet_buffer`](crate::packet_buffer)).

use std::vec::Drain;

use super::{Port, PortConfig};
use crate::BURST;
use crate::fifo::Occupancy;
use crate::frame::{Contents, Frame};

impl Port {
    /// The empty FIFO of each queue, or its guaranteed part of the packet buffer.
    pub(super) fn fifo(config: &PortConfig) -> Occupancy {
        let octets = config.packet_buffer.map(|buffer| buffer.guarantee as usize);
        Occupancy::new(octets.unwrap_or(config.fifo))
    }

    /// Finds room for `frame` where its queue's own part has none. Returns false if there is none.
    #[cold]
    pub(super) fn push_shared(&mut self, queue: usize, frame: &mut Contents) -> bool {
        let (fifo, octets) = (&mut self.fifos[queue], frame.octets as usize);
        let Some(buffer) = &mut self.buffer else {
            return false;
        };
        // The first of them may still be in its own part.
        if !buffer.take(fifo.beyond(), octets - fifo.free()) {
            return false;
        }
        fifo.push_beyond(frame);
        true
    }

    /// Takes frames that have left out of the account of `queue`, and of their priorities.
    #[cold]
    pub(super) fn drain_shared(&mut self, queue: usize, frames: &Drain<'_, Frame>) {
        let fifo = &mut self.fifos[queue];
        let before = fifo.beyond();
        fifo.drain(frames.as_slice());
        if let Some(buffer) = &mut self.buffer {
            buffer.give(before - fifo.beyond());
        }
        if let Some(pfc) = &mut self.pfc {
            pfc.leave(frames.as_slice());
        }
    }

    /// Octets that a queue has room for.
    pub(super) fn room_in(&self, fifo: &Occupancy) -> usize {
        let shared = self.buffer.as_ref();
        fifo.free() + shared.map_or(0, |buffer| buffer.room(fifo.beyond()))
    }

    /// Octets that a queue has room for, whosever frames come.
    pub(super) fn sure_room_in(&self, fifo: &Occupancy) -> usize {
        let shared = self.buffer.as_ref();
        fifo.free() + shared.map_or(0, |buffer| buffer.sure_room(fifo.beyond()))
    }

    /// [`Port::rx_room`] with a packet buffer: as many frames as surely fit, whosever they are. With priorities that are controlled no more than
    /// a quarter of one's share: then the partner is told in time; from a wire that waits no more than fit if none of their priorities is controlled.
    #[cold]
    pub(super) fn shared_rx_room(&self) -> usize {
        let longest = self.longest();
        let free = self.fifos.iter().map(|fifo| self.sure_room_in(fifo));
        let free = free.filter(|&free| free >= longest).min().unwrap_or(0);
        let free = match self.pfc() {
            Some(pfc) => {
                let others = pfc.room_of_others().filter(|_| self.wire_waits);
                free.min(pfc.share() / 4).min(others.unwrap_or(free))
            }
            None => free,
        };
        (free / self.pool.buffer_size()).clamp(1, BURST)
    }
}
