//! A device that lies, on purpose: so that drivers can be tried against one ([`nic_model::fault::Lies`]).
//!
//! What enters: buffers that are about to be used, headers that are about to be written, commands that are about to be answered. What
//! leaves: the same, or by chance something that no device may say (VIRTIO 1.3, 2.7.8 and 5.1.6.4). Nothing here touches memory that is
//! not the chain's: a liar changes what is said, not where it is written.

use nic_model::chance::{Chance, Random};
use nic_model::fault::{LIES, LieCounters, Lies, RingLies};
use nic_model::host::Direction;
use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4};

use crate::header::NetHeader;
use crate::ring::{Chain, Ring};

/// Who speaks for a virtqueue that lies.
#[derive(Clone, Debug)]
pub(crate) struct Liar {
    /// How often it has lied.
    pub(crate) counts: LieCounters,
    /// What the virtqueue is.
    half: Option<Direction>,
    used_id: Chance,
    used_len: Chance,
    used_jump: Chance,
    num_buffers: Chance,
    gso: Chance,
    csum: Chance,
    silent: Chance,
    /// For what it says.
    random: Random,
}

impl Liar {
    /// One for virtqueue `index`, `half` of a pair or the control queue; none if it would only tell the truth.
    pub(crate) fn new(
        lies: &Lies,
        seed: u64,
        index: usize,
        half: Option<Direction>,
    ) -> Option<Box<Self>> {
        let ring = half.map_or(RingLies::default(), |half| lies.of(half));
        let received = |probability| match half {
            Some(Direction::Receive) => probability,
            _ => 0.0,
        };
        let silent = if half.is_none() { lies.silent } else { 0.0 };
        let all = [
            ring.used_id,
            ring.used_len,
            ring.used_jump,
            received(lies.num_buffers),
            received(lies.gso),
            received(lies.csum),
            silent,
        ];
        if all == [0.0; 7] {
            return None;
        }
        let purpose = LIES + 16 * index as u64;
        let mut number = 0;
        let [used_id, used_len, used_jump, num_buffers, gso, csum, silent] =
            all.map(|probability| {
                number += 1;
                Chance::new(probability, seed, purpose + number)
            });
        Some(Box::new(Liar {
            counts: LieCounters::default(),
            half,
            used_id,
            used_len,
            used_jump,
            num_buffers,
            gso,
            csum,
            silent,
            random: Random::new(seed, purpose),
        }))
    }

    /// Whether it speaks for what the virtqueue is now, `half` of a pair or the control queue.
    pub(crate) fn is_for(&self, half: Option<Direction>) -> bool {
        self.half == half
    }

    /// Completes `chain`, to which `len` octets were written, on `ring`.
    pub(crate) fn complete<R: Ring>(&mut self, ring: &mut R, mut chain: Chain, mut len: u32) {
        let size = ring.size();
        if self.used_id.strikes() {
            self.counts.used_ids += 1;
            // One that the ring does not have, or any that it has but the right one.
            let others = u64::from(size.saturating_sub(1));
            chain.id = if others == 0 || self.random.below(2) == 0 {
                size.saturating_add(self.random.below(1 << 15) as u16)
            } else {
                chain.id.wrapping_add(1 + self.random.below(others) as u16) % size
            };
        }
        if self.used_len.strikes() {
            self.counts.used_lengths += 1;
            len = match self.random.below(3) {
                0 => 0,
                // Less than a header.
                1 => 1 + self.random.below(9) as u32,
                // More than any buffer has.
                _ => (1 << 20) + self.random.below(1 << 30) as u32,
            };
        }
        ring.complete(chain, len);
        if self.used_jump.strikes() {
            self.counts.used_jumps += 1;
            // It was used once already.
            for _ in 0..=self.random.below(u64::from(size) / 2) {
                ring.complete(Chain::new(chain.id), len);
            }
        }
    }

    /// Changes the header of a received packet of `len` octets.
    pub(crate) fn header(&mut self, header: &mut NetHeader, len: usize) {
        if self.num_buffers.strikes() {
            self.counts.num_buffers += 1;
            let true_one = header.num_buffers.get();
            header.num_buffers.set(match self.random.below(2) {
                0 => 0,
                _ => true_one.saturating_add(1 + self.random.below(64) as u16),
            });
        }
        if self.gso.strikes() {
            self.counts.gso += 1;
            let (kind, size, flags) = match self.random.below(3) {
                // Segments of nothing.
                0 => (VIRTIO_NET_HDR_GSO_TCPV4, 0, VIRTIO_NET_HDR_F_NEEDS_CSUM),
                // A kind that there is not.
                1 => (0x7f, 1000, VIRTIO_NET_HDR_F_NEEDS_CSUM),
                // Segments whose checksums nobody can complete.
                _ => (VIRTIO_NET_HDR_GSO_TCPV4, 1000, 0),
            };
            header.gso_type = kind as u8;
            header.gso_size.set(size);
            header.hdr_len.set(self.random.below(1 << 16) as u16);
            header.flags = flags as u8;
        }
        if self.csum.strikes() {
            self.counts.csum += 1;
            header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            let start = len as u64 + self.random.below(1000);
            header.csum_start.set(start.min(u16::MAX.into()) as u16);
            header.csum_offset.set(self.random.below(1 << 16) as u16);
        }
    }

    /// Whether the command at hand is not answered.
    pub(crate) fn keeps_silent(&mut self) -> bool {
        let silent = self.silent.strikes();
        self.counts.unanswered += u64::from(silent);
        silent
    }
}

#[cfg(test)]
mod tests;
