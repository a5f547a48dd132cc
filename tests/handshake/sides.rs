//! A driver and a card that do nothing but move indices and tell each other, with the handshakes of the real ones.

use std::sync::Arc;

use nic_device::notify::{Notify, Word, Words};
use nic_guest::ring::handshake::Handshake;

use crate::ring::{Broken, CardWords, DriverCells, Ring, SIZE};

/// How the driver goes to sleep and what it does when it wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Interrupts stay on: when there is no buffer, it sleeps.
    Unmasked,
    /// It masks, takes, unmasks, and sleeps if no buffer came meanwhile.
    Masked,
    /// Likewise, but it wants to sleep until most buffers are used.
    Delayed,
    /// Broken: like `Masked`, without looking again.
    MaskedBlindly,
}

impl Sleep {
    /// All that are not broken.
    pub const SOUND: [Sleep; 3] = [Sleep::Unmasked, Sleep::Masked, Sleep::Delayed];
}

/// A driver's queue.
pub trait DriverSide: Send + 'static {
    /// Makes `count` buffers available, and kicks only if `kick` says that it is time to think of that.
    fn add(&mut self, count: u16, kick: bool);

    /// The buffers were made available, and the card knows, before this begins.
    fn has_added(&mut self, count: u16);

    /// Buffers that the card has, or that it has used and nobody took.
    fn outstanding(&self) -> u16;

    /// Takes all used buffers, and sleeps unless the handshake says that there are more; how many it took. Masked
    /// before, as a driver is that was woken.
    fn take(&mut self, sleep: Sleep) -> u16;

    /// Sleeps until the next interrupt, unless the handshake says not to.
    fn sleep(&mut self, sleep: Sleep);
}

/// A card's ring.
pub trait CardSide: Send + 'static {
    /// Takes what is available, but none if it is less than `least`; how much it took.
    fn take(&mut self, rest: Rest, least: u16) -> u16;

    /// Gives `count` buffers back, and interrupts only if `ask` says that it is time to think of that.
    fn give_back(&mut self, count: u16, ask: bool);

    /// Sleeps until there is more than was available, unless the handshake says that there is.
    fn sleep(&mut self, rest: Rest);
}

/// Both sides of a kind of ring.
pub trait Sides: 'static {
    /// The driver.
    type Driver: DriverSide;
    /// The card.
    type Card: CardSide;

    /// Whether a driver that has never masked asks for single events.
    const EVENTS_UNMASKED: bool;

    /// A ring whose indices stand at `start`, and what is left out by the driver and by the card.
    fn new(start: u16, event_idx: bool, broken: [Broken; 2]) -> (Self::Driver, Self::Card);
}

/// Both sides of a split ring.
pub struct Split;

impl Sides for Split {
    type Driver = Driver;
    type Card = Card;

    const EVENTS_UNMASKED: bool = true;

    fn new(start: u16, event_idx: bool, [driver, card]: [Broken; 2]) -> (Driver, Card) {
        let ring = Ring::new(start);
        (
            Driver::new(&ring, event_idx, driver),
            Card::new(&ring, event_idx, card),
        )
    }
}

/// The driver: what its queue is (`SplitQueue`), but for descriptors.
pub struct Driver {
    cells: DriverCells,
    handshake: Handshake,
    avail_idx: u16,
    kicked: u16,
    last_used: u16,
    used_seen: u16,
}

impl Driver {
    pub fn new(ring: &Arc<Ring>, event_idx: bool, broken: Broken) -> Self {
        let (ring, start) = (ring.clone(), ring.start);
        Driver {
            cells: DriverCells { ring, broken },
            handshake: Handshake::new(event_idx),
            avail_idx: start,
            kicked: start,
            last_used: start,
            used_seen: start,
        }
    }

    fn get_buf(&mut self) -> bool {
        if self.last_used == self.used_seen {
            self.used_seen = self.handshake.used_idx(&self.cells);
            if self.last_used == self.used_seen {
                return false;
            }
        }
        self.cells.ring.given_back(self.last_used);
        self.last_used = self.last_used.wrapping_add(1);
        self.handshake.taken(&self.cells, self.last_used);
        true
    }
}

impl DriverSide for Driver {
    fn add(&mut self, count: u16, kick: bool) {
        for _ in 0..count {
            self.cells.ring.offer(self.avail_idx);
            self.avail_idx = self.avail_idx.wrapping_add(1);
        }
        self.handshake.publish(&self.cells, self.avail_idx);
        if kick {
            let old = std::mem::replace(&mut self.kicked, self.avail_idx);
            if self.handshake.kick_wanted(&self.cells, old, self.avail_idx) {
                self.cells.ring.kick.raise();
            }
        }
    }

    fn has_added(&mut self, count: u16) {
        self.avail_idx = self.avail_idx.wrapping_add(count);
        self.kicked = self.avail_idx;
    }

    fn outstanding(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.last_used)
    }

    fn take(&mut self, sleep: Sleep) -> u16 {
        if sleep != Sleep::Unmasked {
            self.handshake.disable_cb(&self.cells, self.last_used);
        }
        let mut count = 0;
        while self.get_buf() {
            count += 1;
        }
        count
    }

    fn sleep(&mut self, sleep: Sleep) {
        let (cells, last_used) = (&self.cells, self.last_used);
        let idle = match sleep {
            Sleep::Unmasked => true,
            Sleep::Masked => self.handshake.enable_cb(cells, last_used),
            Sleep::Delayed => {
                let outstanding = self.avail_idx.wrapping_sub(last_used);
                self.handshake
                    .enable_cb_delayed(cells, last_used, outstanding)
            }
            Sleep::MaskedBlindly => {
                self.handshake.enable_cb_prepare(cells, last_used);
                true
            }
        };
        if idle {
            self.cells.ring.interrupt.wait();
        }
    }
}

/// The card: what its ring is (`SplitRing`), but for descriptors.
pub struct Card {
    ring: Arc<Ring>,
    words: CardWords,
    notify: Notify,
    available: u16,
    taken: u16,
    used: u16,
}

/// How the card goes to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Kicks are wanted all the time.
    Enabled,
    /// Kicks are off while it is awake.
    Disabled,
    /// Broken: it does not look again after it asked for kicks.
    DisabledBlindly,
}

impl Rest {
    /// All that are not broken.
    pub const SOUND: [Rest; 2] = [Rest::Enabled, Rest::Disabled];
}

impl Card {
    pub fn new(ring: &Arc<Ring>, event_idx: bool, broken: Broken) -> Self {
        let words = CardWords::new(ring, broken);
        let notify = Notify::new(&words, event_idx);
        let start = notify.published();
        Card {
            ring: ring.clone(),
            words,
            notify,
            available: start,
            taken: start,
            used: start,
        }
    }
}

impl CardSide for Card {
    fn take(&mut self, rest: Rest, least: u16) -> u16 {
        if rest != Rest::Enabled {
            self.notify.disable_kicks(&self.words);
        }
        self.available = self.words.available_index().get_acquire();
        let count = self.available.wrapping_sub(self.taken);
        assert!(usize::from(count) <= SIZE, "the available index jumped");
        if count < least {
            return 0;
        }
        for _ in 0..count {
            self.ring.offered(self.taken);
            self.taken = self.taken.wrapping_add(1);
        }
        count
    }

    fn give_back(&mut self, count: u16, ask: bool) {
        for _ in 0..count {
            self.ring.give_back(self.used);
            self.used = self.used.wrapping_add(1);
        }
        self.notify.publish(&self.words, self.used);
        if ask && self.notify.needs_interrupt(&self.words) {
            self.ring.interrupt.raise();
        }
    }

    fn sleep(&mut self, rest: Rest) {
        let more = self.notify.enable_kicks(&self.words, self.available);
        if !more || rest == Rest::DisabledBlindly {
            self.ring.kick.wait();
        }
    }
}
