//! The slots that flows are sorted into, each with the queue its frames go to, and what keeps them in order
//! when that queue changes.
//!
//! A slot that is given another queue keeps to the old one while a frame of its own may still be in that queue's
//! FIFO: the frames behind it would reach the host before it. So it remembers how far the FIFO had
//! been filled when its last frame went there.
//!
//! A flow that never lets up on a FIFO that is never empty would stay for ever. A slot that was told to move by the
//! driver therefore lets its frames go to the old queue no longer than until what the FIFO held at that moment has
//! left; from then on they are dropped until it can move. That takes one filling of the FIFO, and a
//! FIFO as busy as that drops frames anyway. A slot that only follows what is transmitted has time.

use crate::host::QueueIndex;

/// How far the receive FIFOs have got.
pub trait Progress {
    /// Frames that the FIFO of `queue` has ever taken.
    fn pushed(&self, queue: QueueIndex) -> u64;

    /// Frames that have ever left it again, delivered or not.
    fn drained(&self, queue: QueueIndex) -> u64;
}

/// Counts of frames are cut to 32 bits: a FIFO never holds as many, and slots stay small.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(test, derive(PartialEq))]
struct Slot {
    /// Where frames go.
    queue: u16,
    /// Where they are to go as soon as order allows it.
    target: u16,
    /// What `queue` had taken before the slot's last frame.
    last: u32,
    /// What must have left `queue` for patience to end with a slot that cannot move yet.
    fence: u32,
}

/// More frames than a slot ever waits for, and few enough for counts so far apart to be compared.
const LONG: u32 = 1 << 30;

impl Slot {
    /// A slot of which any frame that is in the FIFO of `queue` now may be.
    fn new(queue: QueueIndex, progress: &impl Progress) -> Self {
        let pushed = progress.pushed(queue) as u32;
        Slot {
            queue: queue.0,
            target: queue.0,
            last: pushed.wrapping_sub(1),
            fence: pushed,
        }
    }

    /// Gives it a target, to be reached soon.
    fn send_to(&mut self, target: QueueIndex, progress: &impl Progress) {
        self.target = target.0;
        self.fence = progress.pushed(QueueIndex(self.queue)) as u32;
    }

    #[inline(always)]
    fn place(&mut self, progress: &impl Progress) -> Option<QueueIndex> {
        if self.queue != self.target && !self.moves(progress) && self.is_overdue(progress) {
            return None;
        }
        let queue = QueueIndex(self.queue);
        self.last = progress.pushed(queue) as u32;
        Some(queue)
    }

    /// Goes over to the target, if no order is upset by that.
    #[cold]
    fn moves(&mut self, progress: &impl Progress) -> bool {
        let moves = !self.waits(progress);
        if moves {
            self.queue = self.target;
        }
        moves
    }

    /// Whether a frame of the slot may be in the FIFO of its queue.
    fn waits(&self, progress: &impl Progress) -> bool {
        let queue = QueueIndex(self.queue);
        let pushed = progress.pushed(queue) as u32;
        let held = pushed.wrapping_sub(progress.drained(queue) as u32);
        // If the FIFO had no room for the last one, none has come since, and one before it may still be there.
        held != 0 && pushed.wrapping_sub(self.last) <= held
    }

    fn is_overdue(&self, progress: &impl Progress) -> bool {
        let drained = progress.drained(QueueIndex(self.queue)) as u32;
        drained.wrapping_sub(self.fence) as i32 >= 0
    }
}

/// The slots of one way to steer.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(PartialEq))]
pub(super) struct Slots {
    /// A power of two of them, by hash.
    hashed: Vec<Slot>,
    /// For frames without a hash.
    unclassified: Slot,
}

impl Slots {
    /// `size` slots, a power of two, for frames that have all gone to `queue` until now.
    pub fn reset(&mut self, size: usize, queue: QueueIndex, progress: &impl Progress) {
        self.unclassified = Slot::new(queue, progress);
        self.hashed.clear();
        self.hashed.resize(size, self.unclassified);
    }

    /// The queue for the next frame with the hash `hash`; `None` if the frame must be dropped.
    #[inline(always)] // on the way of each packet
    pub fn place_hashed(&mut self, hash: u32, progress: &impl Progress) -> Option<QueueIndex> {
        self.hashed(hash).place(progress)
    }

    /// The queue for the next frame with this hash, or without one; `None` if the frame must be dropped.
    pub fn place(&mut self, hash: Option<u32>, progress: &impl Progress) -> Option<QueueIndex> {
        self.slot(hash).place(progress)
    }

    /// Makes `queue` the target of the slot for this hash, whenever that may be.
    #[inline]
    pub fn aim(&mut self, hash: u32, queue: QueueIndex) {
        let slot = self.slot(Some(hash));
        if slot.target != queue.0 {
            slot.target = queue.0;
            slot.fence = slot.last.wrapping_add(LONG);
        }
    }

    /// Gives each slot its target, by its number, to be reached soon; frames without a hash get `unclassified`.
    pub fn aim_all(
        &mut self,
        target: impl Fn(usize) -> QueueIndex,
        unclassified: QueueIndex,
        progress: &impl Progress,
    ) {
        for (index, slot) in self.hashed.iter_mut().enumerate() {
            slot.send_to(target(index), progress);
        }
        self.unclassified.send_to(unclassified, progress);
    }

    /// Lets each slot go over to its target now that has not got a queue where order `matters`.
    pub fn release(&mut self, matters: impl Fn(QueueIndex) -> bool) {
        for slot in self.hashed.iter_mut().chain([&mut self.unclassified]) {
            if !matters(QueueIndex(slot.queue)) {
                slot.queue = slot.target;
            }
        }
    }

    #[inline]
    fn slot(&mut self, hash: Option<u32>) -> &mut Slot {
        match hash {
            Some(hash) => self.hashed(hash),
            None => &mut self.unclassified,
        }
    }

    #[inline(always)] // on the way of each packet
    fn hashed(&mut self, hash: u32) -> &mut Slot {
        let last = self.hashed.len() - 1;
        &mut self.hashed[hash as usize & last]
    }
}
