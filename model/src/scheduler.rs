//! The transmit scheduler: whose turn it is to send, where several queues share the line.
//!
//! Deficit round robin (Shreedhar and Varghese, "Efficient fair queuing using deficit round robin", SIGCOMM 1995): each turn of a queue
//! adds a quantum of octets, times its weight, to its credit, and what it sends is taken from that. So queues share the line by
//! octets, however long their frames are. A card learns the length of a frame when it has fetched it, so here a queue sends as long as it has credit, goes
//! into debt with its last burst, and begins its next turn with as much less: the paper's bounds hold, a burst later (surplus
//! round robin: Adiseshu, Parulkar and Varghese, "A reliable and scalable striping protocol", SIGCOMM 1996).
//!
//! Enters: how much each burst was. Leaves: the next queue, and how many frames it may send. Nothing is dropped. A queue that has
//! nothing to send keeps no more credit than a turn's, and none is owed anything while the others have nothing to send: the line never idles for fairness.

use crate::BURST;

/// Frames of the longest kind that a queue of weight 1 sends in its turn.
const FRAMES: i64 = 16;
/// Queues that can be given a weight; others have a weight of 1.
const WEIGHED: usize = 32;

/// How the line is shared: the weight of each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    by_queue: [u8; WEIGHED],
    /// How many were said.
    said: usize,
}

impl Default for Weights {
    fn default() -> Self {
        Weights {
            by_queue: [1; WEIGHED],
            said: 0,
        }
    }
}

impl Weights {
    /// The largest.
    pub const MAX: u8 = 100;

    /// Those of the first queues, as `weights` says; the others have a weight of 1. `None` if one is not from 1 to [`Weights::MAX`], or
    /// if there are more than 32.
    #[must_use]
    pub fn new(weights: &[u8]) -> Option<Self> {
        let mut all = Weights::default();
        let valid = weights
            .iter()
            .all(|weight| (1..=Self::MAX).contains(weight));
        let places = all.by_queue.get_mut(..weights.len())?;
        places.copy_from_slice(weights);
        all.said = weights.len();
        valid.then_some(all)
    }

    /// Those of the first queues, as they were said.
    #[must_use]
    pub fn said(&self) -> &[u8] {
        &self.by_queue[..self.said]
    }

    /// Of the queue with the number `queue`.
    #[must_use]
    pub fn of(&self, queue: usize) -> u8 {
        self.by_queue.get(queue).copied().unwrap_or(1)
    }
}

/// One queue's share of the line.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Octets that a turn adds.
    quantum: i64,
    /// Octets that it may send in its turn, this one or the next; not positive if it has sent more than it may.
    credit: i64,
    /// Frames that this is for, a burst at most, if they are like those of its last burst.
    budget: usize,
    /// Frames and octets of that.
    frames: i64,
    octets: i64,
}

impl Share {
    /// Sets the credit.
    #[inline]
    fn has(&mut self, credit: i64) {
        self.credit = credit;
        self.budget = if credit * self.frames >= BURST as i64 * self.octets {
            BURST
        } else if credit > 0 {
            (credit * self.frames / self.octets).max(1) as usize
        } else {
            0
        };
    }
}

/// Whose turn it is.
#[derive(Debug)]
pub struct Scheduler {
    shares: Vec<Share>,
    /// Octets that a turn of a queue of weight 1 adds.
    quantum: i64,
    /// Whose turn it is.
    turn: usize,
}

impl Scheduler {
    /// Of `queues` queues of equal weight, on a line whose longest frame has `longest` octets.
    #[must_use]
    pub fn new(queues: usize, longest: usize) -> Self {
        let share = Share {
            quantum: 0,
            credit: 0,
            budget: 0,
            frames: 1,
            octets: longest as i64,
        };
        let mut scheduler = Scheduler {
            shares: vec![share; queues.max(1)],
            quantum: FRAMES * longest as i64,
            turn: 0,
        };
        scheduler.set_weights(&Weights::default());
        scheduler
    }

    /// Shares the line as `weights` says. Nobody owes anything then.
    pub fn set_weights(&mut self, weights: &Weights) {
        let alone = self.shares.len() == 1;
        for (queue, share) in self.shares.iter_mut().enumerate() {
            share.quantum = self.quantum * i64::from(weights.of(queue));
            share.has(share.quantum);
            if alone {
                share.budget = BURST;
            }
        }
    }

    /// Octets that a turn of a queue of weight 1 adds to its credit.
    #[must_use]
    pub fn quantum(&self) -> usize {
        self.quantum as usize
    }

    /// Whose turn it is.
    #[must_use]
    #[inline]
    pub fn turn(&self) -> usize {
        self.turn
    }

    /// How many frames `queue` may send in its turn: none if it is in debt. One that has nothing to send keeps that for its next turn.
    #[must_use]
    #[inline]
    pub fn budget(&self, queue: usize) -> usize {
        self.shares[queue].budget
    }

    /// In its turn `queue` has sent `frames` frames of `octets` octets; `emptied` if it has no more. Octets are those of frames from
    /// destination address to check sequence. Returns whose turn it is now.
    #[inline]
    pub fn sent(&mut self, queue: usize, frames: usize, octets: u64, emptied: bool) -> usize {
        let queues = self.shares.len();
        if queues == 1 {
            // Nobody to share with.
            return queue;
        }
        let share = &mut self.shares[queue];
        let left = share.credit - octets as i64;
        if octets > 0 {
            (share.frames, share.octets) = (frames as i64, octets as i64);
        }
        // One whose frames all were dropped must not keep its turn.
        self.turn = if octets > 0 && left > 0 && !emptied {
            share.has(left);
            queue
        } else {
            share.has(left.min(0) + share.quantum);
            if queue + 1 == queues { 0 } else { queue + 1 }
        };
        self.turn
    }

    /// Since `queue` is in debt it has no turn, but owes as much less in the next one.
    #[cold]
    pub fn pay(&mut self, queue: usize) {
        let share = &mut self.shares[queue];
        share.has(share.credit + share.quantum);
    }

    /// Nobody has anything to send but queues that are in debt: then they owe nobody.
    #[cold]
    pub fn forgive(&mut self) {
        for share in &mut self.shares {
            share.has(share.credit.max(share.quantum));
        }
    }
}

#[cfg(test)]
mod tests;
