//! Who has to be told, on a packed ring (VIRTIO 1.3, 2.8.10).
//!
//! As on a split ring ([`crate::notify`]) both sides write first and look afterwards, with a full fence in between. Here each has
//! a structure of four octets in which it says what it wants to hear of: everything, nothing, or with EVENT_IDX that a
//! certain descriptor has changed hands. It is written and read in one piece, so nobody sees half of it.
//!
//! [`EventWords`] is the seam: guest memory, or words that a model checker plays with.

use virtio_bindings::virtio_ring::{
    VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

use super::cursor::Cursor;

/// The two event suppression structures, each as a word: index and wrap counter in the lower half, flags in the upper.
pub trait EventWords {
    /// What the driver wants to hear of.
    fn driver_event(&self) -> u32;
    /// Says what the device wants to hear of.
    fn set_device_event(&self, event: u32);
    /// What was set before is seen by all before anything is read after.
    fn full_fence(&self);
}

/// What one side wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Whatever happens.
    Enable,
    /// Nothing.
    Disable,
    /// That this descriptor has changed hands.
    Descriptor(Cursor),
}

impl Event {
    /// What `word` says. Without EVENT_IDX a side cannot ask for a certain descriptor; who does so all the same, or
    /// asks for what does not exist, is told of everything.
    #[must_use]
    pub fn new(word: u32, event_idx: bool, size: u16) -> Self {
        let at = Cursor::new(word as u16);
        match (word >> 16) & 3 {
            VRING_PACKED_EVENT_FLAG_DISABLE => Event::Disable,
            VRING_PACKED_EVENT_FLAG_DESC if event_idx && at.index() < size => Event::Descriptor(at),
            _ => Event::Enable,
        }
    }

    fn word(self) -> u32 {
        match self {
            Event::Enable => VRING_PACKED_EVENT_FLAG_ENABLE << 16,
            Event::Disable => VRING_PACKED_EVENT_FLAG_DISABLE << 16,
            Event::Descriptor(at) => (VRING_PACKED_EVENT_FLAG_DESC << 16) | u32::from(at.word()),
        }
    }
}

/// What the device has told the driver, and asked of it.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    event_idx: bool,
    size: u16,
    /// Descriptors that the driver was shown since an interrupt was last considered: with moderation that may be any number.
    unconsidered: u32,
    /// What the device asked for last. Nobody knows what whoever served the ring before asked for.
    asked: Option<Event>,
}

impl Events {
    /// For a ring of `size`.
    #[must_use]
    pub fn new(size: u16, event_idx: bool) -> Self {
        Events {
            event_idx,
            size,
            unconsidered: 0,
            asked: None,
        }
    }

    /// What the driver wants to hear of.
    pub fn wanted(&self, words: &impl EventWords) -> Event {
        Event::new(words.driver_event(), self.event_idx, self.size)
    }

    /// The driver was shown `entries` used descriptors.
    #[inline]
    pub fn published(&mut self, entries: u32) {
        self.unconsidered = self.unconsidered.saturating_add(entries);
    }

    /// Whether the driver wants an interrupt for what was published since the last call: descriptors up to `used`.
    #[inline]
    pub fn needs_interrupt(&mut self, words: &impl EventWords, used: Cursor) -> bool {
        let count = std::mem::take(&mut self.unconsidered);
        if count == 0 {
            return false;
        }
        // The driver must see what was used before we look whether it wants to hear of it.
        words.full_fence();
        match self.wanted(words) {
            Event::Enable => true,
            Event::Disable => false,
            // Anywhere in what was shown, not only at its end; after two rounds, it passed every descriptor.
            Event::Descriptor(at) => {
                let behind = used.since(at, self.size);
                let two_rounds = 2 * u32::from(self.size);
                count >= two_rounds || (behind != 0 && behind <= count)
            }
        }
    }

    /// Asks the driver to kick when the descriptor at `known` becomes available. Returns true if it has done so already, as
    /// `is_available` tells: then no kick may come, and the caller must not sleep.
    #[inline]
    pub fn enable_kicks(
        &mut self,
        words: &impl EventWords,
        known: Cursor,
        is_available: impl FnOnce() -> bool,
    ) -> bool {
        self.ask(
            words,
            if self.event_idx {
                Event::Descriptor(known)
            } else {
                Event::Enable
            },
        );
        // The driver must see the wish before we look whether it came too late.
        words.full_fence();
        is_available()
    }

    /// Tells the driver that kicks are not needed. Some may come all the same.
    #[inline]
    pub fn disable_kicks(&mut self, words: &impl EventWords) {
        self.ask(words, Event::Disable);
    }

    fn ask(&mut self, words: &impl EventWords, event: Event) {
        if self.asked != Some(event) {
            words.set_device_event(event.word());
            self.asked = Some(event);
        }
    }
}
