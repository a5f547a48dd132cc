//! A ring whose words are loom's: each load may give any value that the memory model allows.
//!
//! Both sides reach the same words, the driver through its own trait, the card through its own. A view can be
//! [`Broken`]: the functions under test run as they are, on words that leave out what they ask for.

use loom::sync::atomic::AtomicU16;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use loom::sync::{Condvar, Mutex};
use std::sync::Arc;

use nic_device::notify::{Word, Words};
use nic_guest::ring::handshake::{IndexCell, IndexCells};

/// Entries of the ring.
pub const SIZE: usize = 4;

/// What one side's words leave out.
#[derive(Clone, Copy, Debug)]
pub struct Broken {
    /// The full fence.
    pub no_fence: bool,
    /// Release when an index is stored.
    pub no_release: bool,
    /// Acquire when an index is loaded.
    pub no_acquire: bool,
    /// The event index is taken for one more, or one less.
    pub event: i16,
}

/// Nothing.
pub const SOUND: Broken = Broken {
    no_fence: false,
    no_release: false,
    no_acquire: false,
    event: 0,
};

/// An eventfd, an interrupt line: what is raised while nobody waits is kept for whoever comes to wait.
#[derive(Default)]
pub struct Line {
    raised: Mutex<bool>,
    wake: Condvar,
}

impl Line {
    /// Wakes who waits, or who waits next.
    pub fn raise(&self) {
        *self.raised.lock().expect("no thread panicked") = true;
        self.wake.notify_one();
    }

    /// Sleeps until the line is raised. If it never is, loom says that there is a deadlock.
    pub fn wait(&self) {
        let mut raised = self.raised.lock().expect("no thread panicked");
        while !*raised {
            raised = self.wake.wait(raised).expect("no thread panicked");
        }
        *raised = false;
    }
}

/// A split ring, so far as its indices go. The entries hold the index that they are for, so that a stale one shows.
pub struct Ring {
    /// Where the indices start.
    pub start: u16,
    words: [AtomicU16; 6],
    available: [AtomicU16; SIZE],
    used: [AtomicU16; SIZE],
    /// Wakes the driver.
    pub interrupt: Line,
    /// Wakes the card.
    pub kick: Line,
}

impl Ring {
    /// A ring whose indices stand at `start`. Both sides want to be told of everything, as when a ring is zeroed.
    pub fn new(start: u16) -> Arc<Self> {
        let indices = [0, start, start, 0, start, start];
        Arc::new(Ring {
            start,
            words: indices.map(AtomicU16::new),
            // No entry that is stale may look like the one that is expected.
            available: [(); SIZE].map(|()| AtomicU16::new(start.wrapping_sub(100))),
            used: [(); SIZE].map(|()| AtomicU16::new(start.wrapping_sub(100))),
            interrupt: Line::default(),
            kick: Line::default(),
        })
    }

    /// Writes the available entry for `index`.
    pub fn offer(&self, index: u16) {
        self.available[usize::from(index) % SIZE].store(index, Relaxed);
    }

    /// Reads the available entry for `index`.
    pub fn offered(&self, index: u16) {
        let entry = self.available[usize::from(index) % SIZE].load(Relaxed);
        assert_eq!(entry, index, "a stale entry in the available ring");
    }

    /// Writes the used entry for `index`.
    pub fn give_back(&self, index: u16) {
        self.used[usize::from(index) % SIZE].store(index, Relaxed);
    }

    /// Reads the used entry for `index`.
    pub fn given_back(&self, index: u16) {
        let entry = self.used[usize::from(index) % SIZE].load(Relaxed);
        assert_eq!(entry, index, "a stale entry in the used ring");
    }
}

/// A full fence, if it is not left out.
pub fn fence(broken: Broken) {
    if !broken.no_fence {
        loom::sync::atomic::fence(SeqCst);
    }
}

/// The driver's view.
pub struct DriverCells {
    pub ring: Arc<Ring>,
    pub broken: Broken,
}

impl DriverCells {
    fn word(&self, cell: IndexCell) -> &AtomicU16 {
        &self.ring.words[match cell {
            IndexCell::AvailFlags => 0,
            IndexCell::AvailIdx => 1,
            IndexCell::UsedEvent => 2,
            IndexCell::UsedFlags => 3,
            IndexCell::UsedIdx => 4,
            IndexCell::AvailEvent => 5,
        }]
    }
}

impl IndexCells for DriverCells {
    fn load_acquire(&self, cell: IndexCell) -> u16 {
        let order = if self.broken.no_acquire {
            Relaxed
        } else {
            Acquire
        };
        self.word(cell).load(order)
    }

    fn store_release(&self, cell: IndexCell, value: u16) {
        let order = if self.broken.no_release {
            Relaxed
        } else {
            Release
        };
        self.word(cell).store(value, order);
    }

    fn read(&self, cell: IndexCell) -> u16 {
        let value = self.word(cell).load(Relaxed);
        match cell {
            IndexCell::AvailEvent => value.wrapping_add_signed(self.broken.event),
            _ => value,
        }
    }

    fn write(&self, cell: IndexCell, value: u16) {
        self.word(cell).store(value, Relaxed);
    }

    fn fence(&self) {
        fence(self.broken);
    }
}

/// One word as the card sees it.
pub struct CardWord {
    ring: Arc<Ring>,
    at: usize,
    broken: Broken,
}

impl Word for CardWord {
    fn get(&self) -> u16 {
        let value = self.ring.words[self.at].load(Relaxed);
        match self.at {
            USED_EVENT => value.wrapping_add_signed(self.broken.event),
            _ => value,
        }
    }

    fn get_acquire(&self) -> u16 {
        let order = if self.broken.no_acquire {
            Relaxed
        } else {
            Acquire
        };
        self.ring.words[self.at].load(order)
    }

    fn set(&self, value: u16) {
        self.ring.words[self.at].store(value, Relaxed);
    }

    fn set_release(&self, value: u16) {
        let order = if self.broken.no_release {
            Relaxed
        } else {
            Release
        };
        self.ring.words[self.at].store(value, order);
    }
}

const USED_EVENT: usize = 2;

/// The card's view.
pub struct CardWords {
    words: [CardWord; 6],
    broken: Broken,
}

impl CardWords {
    pub fn new(ring: &Arc<Ring>, broken: Broken) -> Self {
        let word = |at| CardWord {
            ring: ring.clone(),
            at,
            broken,
        };
        CardWords {
            words: [0, 1, USED_EVENT, 3, 4, 5].map(word),
            broken,
        }
    }
}

impl Words for CardWords {
    type Word = CardWord;

    fn available_flags(&self) -> &CardWord {
        &self.words[0]
    }

    fn available_index(&self) -> &CardWord {
        &self.words[1]
    }

    fn used_event(&self) -> &CardWord {
        &self.words[USED_EVENT]
    }

    fn used_flags(&self) -> &CardWord {
        &self.words[3]
    }

    fn used_index(&self) -> &CardWord {
        &self.words[4]
    }

    fn avail_event(&self) -> &CardWord {
        &self.words[5]
    }

    fn full_fence(&self) {
        fence(self.broken);
    }
}
