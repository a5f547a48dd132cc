//! Who has to be told: interrupts that the driver wants, and kicks that the device wants (VIRTIO 1.3, 2.7.7,
//! 2.7.10 and 2.7.14).
//!
//! Driver and device each run on their own and sleep when there is nothing to do. Each says in the ring whether
//! it wants to be woken, and each looks there before it wakes the other. A wake-up would be lost if the device
//! looked at the driver's wish before the driver had written it, and the driver at the used index before the device
//! had. So both write first and look afterwards, with a full fence in between, and at least one of the two
//! sees what the other wrote; likewise with a kick and the available index. [`Notify::needs_interrupt`] has the
//! fence of whoever wakes, [`Notify::enable_kicks`] that of whoever wants to sleep.
//!
//! [`Words`] is the seam: a ring in guest memory, or one whose words a model checker plays with.

use std::num::Wrapping;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

/// A word of 16 bits that driver and device share.
pub trait Word {
    /// The word's value.
    fn get(&self) -> u16;
    /// The word's value; what the driver had written before it can be read from now on.
    fn get_acquire(&self) -> u16;
    /// Sets the word.
    fn set(&self, value: u16);
    /// Sets the word; who reads it can read all that was written before.
    fn set_release(&self, value: u16);
}

/// In guest memory words are little-endian.
impl Word for AtomicU16 {
    #[inline]
    fn get(&self) -> u16 {
        u16::from_le(self.load(Ordering::Relaxed))
    }

    #[inline]
    fn get_acquire(&self) -> u16 {
        u16::from_le(self.load(Ordering::Acquire))
    }

    #[inline]
    fn set(&self, value: u16) {
        self.store(value.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn set_release(&self, value: u16) {
        self.store(value.to_le(), Ordering::Release);
    }
}

/// The words of a split ring that say how far each side is and what it wants to hear of.
pub trait Words {
    /// How a word is accessed.
    type Word: Word;

    /// The available ring's flags: the driver's, used without EVENT_IDX.
    fn available_flags(&self) -> &Self::Word;
    /// How far the driver has made chains available.
    fn available_index(&self) -> &Self::Word;
    /// With EVENT_IDX: the driver wants an interrupt once the used index passes this.
    fn used_event(&self) -> &Self::Word;
    /// The used ring's flags: the device's, used without EVENT_IDX.
    fn used_flags(&self) -> &Self::Word;
    /// How far the device has given chains back.
    fn used_index(&self) -> &Self::Word;
    /// With EVENT_IDX: the device wants a kick once the available index passes this.
    fn avail_event(&self) -> &Self::Word;

    /// What was set before is seen by all before anything is read after.
    #[inline]
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// What the device has told the driver, and asked of it.
#[derive(Clone, Copy, Debug)]
pub struct Notify {
    event_idx: bool,
    /// The used index that the driver was shown last.
    published: Wrapping<u16>,
    /// Chains that it was shown since an interrupt was last considered: with moderation that may be any number.
    unconsidered: u32,
    kicks_disabled: bool,
}

impl Notify {
    /// For a ring whose used index stands in memory. Whoever served it before may have stopped while it wanted
    /// no kicks.
    pub fn new(words: &impl Words, event_idx: bool) -> Self {
        let index = Wrapping(words.used_index().get());
        let flags = u32::from(words.used_flags().get());
        Notify {
            event_idx,
            published: index,
            unconsidered: 0,
            kicks_disabled: flags & VRING_USED_F_NO_NOTIFY != 0,
        }
    }

    /// The used index that the driver was shown last.
    #[must_use]
    #[inline]
    pub fn published(&self) -> u16 {
        self.published.0
    }

    /// Shows the driver that all chains up to `index` have been used.
    #[inline]
    pub fn publish(&mut self, words: &impl Words, index: u16) {
        let index = Wrapping(index);
        if self.published != index {
            let more = (index - self.published).0;
            self.unconsidered = self.unconsidered.saturating_add(more.into());
            self.published = index;
            let index = index.0;
            words.used_index().set_release(index);
        }
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    #[inline]
    pub fn needs_interrupt(&mut self, words: &impl Words) -> bool {
        let count = std::mem::take(&mut self.unconsidered);
        if count == 0 {
            return false;
        }
        // The driver must see the used index before we look whether it wants to hear of it.
        words.full_fence();
        if self.event_idx {
            // Anywhere in what was shown, not only at its end; once round, it passed every index.
            let event = Wrapping(words.used_event().get());
            u32::from((self.published - event - Wrapping(1)).0) < count
        } else {
            let flags = words.available_flags().get();
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver to kick when the available index passes `known`. Returns true if it has done so already:
    /// then no kick may come, and the caller must not sleep.
    #[inline]
    pub fn enable_kicks(&mut self, words: &impl Words, known: u16) -> bool {
        if self.event_idx {
            words.avail_event().set(known);
        } else if self.kicks_disabled {
            words.used_flags().set(0);
        }
        self.kicks_disabled = false;
        // The driver must see the wish before we look whether it came too late.
        words.full_fence();
        words.available_index().get_acquire() != known
    }

    /// Tells the driver that kicks are not needed. Some may come all the same.
    #[inline]
    pub fn disable_kicks(&mut self, words: &impl Words) {
        // With EVENT_IDX there is nothing to do: the index at which a kick was wanted lies behind.
        if !self.event_idx && !self.kicks_disabled {
            words.used_flags().set(VRING_USED_F_NO_NOTIFY as u16);
        }
        self.kicks_disabled = true;
    }
}
