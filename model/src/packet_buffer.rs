//! The packet buffer that the receive queues share, where the card has one instead of a FIFO for each queue.
//!
//! Each queue has a guaranteed part that no other can take. The rest is shared by a dynamic threshold (Choudhury and Hahne, "Dynamic
//! queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998), as switch chips do it: a queue may hold
//! `alpha` times what of the shared part is free. So a queue alone may have much, many full ones have equal parts, and some of it stays free for
//! the next one: with `n` of them each has `alpha / (1 + alpha * n)` of the shared part, and `1 / (1 + alpha * n)` stays free.
//!
//! Enters: a frame that its queue's guarantee has no room for. Leaves: whether there is room, and what of the shared part is free. What has no room is
//! dropped (what the 82576 counts in MPC, missed packets). The account of each queue is its [`Occupancy`](crate::fifo::Occupancy); here is that of
//! what they have beyond their guarantees.

use serde::Serialize;

/// How a packet buffer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferConfig {
    /// Octets of all of it.
    pub size: u32,
    /// Octets of it that each queue has for itself.
    pub guarantee: u32,
    /// How many times what is free of the shared part a queue may hold.
    pub alpha: Alpha,
}

/// A power of two, from 1/128 to 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alpha(i8);

impl Alpha {
    /// 2 to the power of `exponent`, from -7 to 3.
    #[must_use]
    pub fn new(exponent: i8) -> Option<Self> {
        (-7..=3).contains(&exponent).then_some(Alpha(exponent))
    }

    /// Its logarithm to the base of two.
    #[must_use]
    pub fn exponent(self) -> i8 {
        self.0
    }

    fn times(self, octets: u32) -> u32 {
        match self.0 {
            up @ 0.. => (u64::from(octets) << up).min(u32::MAX.into()) as u32,
            down => octets >> down.unsigned_abs(),
        }
    }
}

impl BufferConfig {
    /// Octets that are shared between `queues` queues.
    #[must_use]
    pub fn shared(&self, queues: usize) -> u32 {
        let guaranteed = u64::from(self.guarantee) * queues as u64;
        u64::from(self.size).saturating_sub(guaranteed) as u32
    }
}

/// The shared part of a packet buffer.
#[derive(Debug)]
pub struct PacketBuffer {
    config: BufferConfig,
    shared: u32,
    used: u32,
    peak: u32,
}

/// A packet buffer's state, as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BufferStatus {
    /// Octets of all of it.
    pub octets: u32,
    /// Octets that each queue has for itself.
    pub guarantee: u32,
    /// Octets that the queues share.
    pub shared: u32,
    /// Octets of the shared part that are in use.
    pub shared_used: u32,
    /// The most that there ever were.
    pub shared_peak: u32,
    /// Octets of it that a queue may have now.
    pub threshold: u32,
}

impl PacketBuffer {
    /// The shared part of an empty buffer for `queues` queues.
    #[must_use]
    pub fn new(config: BufferConfig, queues: usize) -> Self {
        PacketBuffer {
            config,
            shared: config.shared(queues),
            used: 0,
            peak: 0,
        }
    }

    /// Takes `octets` for a queue that has `own` of the shared part. Returns false if it may not have them.
    #[must_use]
    pub fn take(&mut self, own: usize, octets: usize) -> bool {
        if octets > self.room(own) {
            return false;
        }
        self.used += octets as u32;
        self.peak = self.peak.max(self.used);
        true
    }

    /// Takes `octets` back.
    pub fn give(&mut self, octets: usize) {
        self.used -= octets as u32;
    }

    /// Octets of the shared part that a queue may have.
    fn threshold(&self) -> u32 {
        self.config.alpha.times(self.shared - self.used)
    }

    /// Octets that a queue may take that has `own` of the shared part.
    #[must_use]
    pub fn room(&self, own: usize) -> usize {
        let left = (self.threshold() as usize).saturating_sub(own);
        left.min((self.shared - self.used) as usize)
    }

    /// Octets that there is room for in such a queue, whichever queues take others meanwhile: no more than these in all.
    #[must_use]
    pub fn sure_room(&self, own: usize) -> usize {
        let room = self.room(own);
        // Each octet that is taken lowers the threshold by alpha, and if this queue takes it, leaves one less below it.
        match self.config.alpha.0 {
            up @ 0.. => room / (1 + (1 << up)),
            down => {
                let parts = 1 << down.unsigned_abs();
                room * parts / (parts + 1)
            }
        }
    }

    /// Its state.
    #[must_use]
    pub fn status(&self) -> BufferStatus {
        BufferStatus {
            octets: self.config.size,
            guarantee: self.config.guarantee,
            shared: self.shared,
            shared_used: self.used,
            shared_peak: self.peak,
            threshold: self.threshold(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(size: u32, guarantee: u32, exponent: i8, queues: usize) -> PacketBuffer {
        let alpha = Alpha::new(exponent).unwrap();
        let config = BufferConfig {
            size,
            guarantee,
            alpha,
        };
        PacketBuffer::new(config, queues)
    }

    /// What each of `full` queues has that take frames of `frame` octets in turn until none may have another.
    fn fill(buffer: &mut PacketBuffer, full: usize, frame: usize) -> Vec<usize> {
        let mut own = vec![0; full];
        loop {
            let before = own.clone();
            for own in &mut own {
                if buffer.take(*own, frame) {
                    *own += frame;
                }
            }
            if own == before {
                return own;
            }
        }
    }

    #[test]
    fn full_queues_have_the_parts_that_the_closed_form_says() {
        for exponent in -3..=3 {
            for full in 1..=8 {
                let mut buffer = buffer(1_200_000, 25_000, exponent, 8);
                let own = fill(&mut buffer, full, 64);
                let (alpha, shared) = (2_f64.powi(exponent.into()), 1_000_000.0);
                let each = alpha * shared / (1.0 + alpha * full as f64);
                for own in own {
                    // A frame more or less, and others' frames lower the threshold alpha-fold.
                    let off = (own as f64 - each).abs();
                    let frames = 64.0 * (1.0 + alpha * full as f64);
                    assert!(off <= frames, "{exponent}, {full}: {own}, not {each}");
                }
                assert!(buffer.room(0) > 0, "the next one finds some");
            }
        }
    }

    #[test]
    fn what_is_sure_is_so_whoever_takes_it() {
        for exponent in -2..=3 {
            let mut buffer = buffer(100_000, 0, exponent, 2);
            assert!(buffer.take(0, 10_000) && buffer.take(0, 5_000));
            let sure = buffer.sure_room(10_000);
            // The other one takes all of it but one frame.
            assert!(sure > 1_000 && buffer.take(5_000, sure - 1_000));
            assert!(buffer.take(10_000, 1_000), "{exponent}");
            // It takes all by itself, a frame at a time.
            let mut own = 11_000;
            let sure = buffer.sure_room(own);
            for _ in 0..sure / 64 {
                assert!(buffer.take(own, 64), "{exponent}: {own} of {sure}");
                own += 64;
            }
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut buffer = buffer(10_000, 1_000, 0, 2);
        assert_eq!(buffer.status().shared, 8_000);
        assert!(buffer.take(0, 4_000) && !buffer.take(4_000, 1));
        assert_eq!((buffer.status().threshold, buffer.room(4_000)), (4_000, 0));
        buffer.give(4_000);
        let status = buffer.status();
        assert_eq!((status.shared_used, status.shared_peak), (0, 4_000));
        assert_eq!(buffer.room(0), 8_000);
        assert!(Alpha::new(4).is_none() && Alpha::new(-8).is_none());
    }
}
