//! The same on a packed ring: the flags of its descriptors tell of news, and what each side wants is in a word of its own.
//!
//! A descriptor is a buffer here. The driver writes its wish in two halves, and the card reads both at once: it is one word of loom's.

use std::sync::Arc;

use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicU16, AtomicU32};
use nic_device::packed::cursor::Cursor;
use nic_device::packed::events::{EventWords, Events};
use nic_guest::ring::packed_handshake::{PackedCells, PackedHandshake};
use nic_guest::ring::{OffWrap, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED};

use crate::ring::{Broken, Line, fence};
use crate::sides::{CardSide, DriverSide, Rest, Sides, Sleep};

/// Entries of the ring: no power of two, and as many as there are buffers at most.
pub const SIZE: u16 = 3;

/// A packed ring. A descriptor holds the number of the buffer that it is for, so that a stale one shows.
pub struct Ring {
    flags: [AtomicU16; SIZE as usize],
    buffers: [AtomicU16; SIZE as usize],
    driver_event: AtomicU32,
    device_event: AtomicU32,
    interrupt: Line,
    kick: Line,
}

/// Nobody's buffer.
const STALE: u16 = u16::MAX;
/// What the card writes besides a buffer's number.
const USED: u16 = 0x100;

impl Ring {
    /// A ring in which both sides stand at `start`, with everything before used.
    fn new(start: OffWrap) -> Arc<Self> {
        // What is behind was used in the round before.
        let flags = std::array::from_fn(|at| {
            let this_round = at < usize::from(start.off());
            used_flags(this_round == start.wrap())
        });
        Arc::new(Ring {
            flags: flags.map(AtomicU16::new),
            buffers: std::array::from_fn(|_| AtomicU16::new(STALE)),
            driver_event: AtomicU32::new(0),
            device_event: AtomicU32::new(0),
            interrupt: Line::default(),
            kick: Line::default(),
        })
    }

    fn read(&self, at: OffWrap, number: u16) {
        let buffer = self.buffers[usize::from(at.off())].load(Relaxed);
        assert_eq!(buffer, number, "a stale entry");
    }

    fn write(&self, at: OffWrap, number: u16) {
        self.buffers[usize::from(at.off())].store(number, Relaxed);
    }
}

/// The flags of a descriptor that is used in a round whose counter is `wrap`.
fn used_flags(wrap: bool) -> u16 {
    match wrap {
        true => VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED,
        false => 0,
    }
}

/// One place before or behind `at`, as `by` says.
fn off_by(at: OffWrap, by: i16) -> OffWrap {
    match by {
        0 => at,
        1 => at.advance(1, SIZE),
        // Twice round but one.
        _ => at.advance(SIZE, SIZE).advance(SIZE - 1, SIZE),
    }
}

/// What one side sees of the ring.
struct Cells {
    ring: Arc<Ring>,
    broken: Broken,
}

impl Cells {
    fn load(&self, at: u16) -> u16 {
        let order = match self.broken.no_acquire {
            true => Relaxed,
            false => Acquire,
        };
        self.ring.flags[usize::from(at)].load(order)
    }

    fn store(&self, at: u16, flags: u16) {
        let order = match self.broken.no_release {
            true => Relaxed,
            false => Release,
        };
        self.ring.flags[usize::from(at)].store(flags, order);
    }

    fn is_available(&self, at: OffWrap) -> bool {
        self.load(at.off()) == at.avail_flags()
    }
}

impl PackedCells for Cells {
    fn load_flags(&self, at: u16) -> u16 {
        self.load(at)
    }

    fn store_flags(&self, at: u16, flags: u16) {
        self.store(at, flags);
    }

    fn read_device_event(&self) -> (OffWrap, u16) {
        let event = self.ring.device_event.load(Relaxed);
        (
            off_by(OffWrap(event as u16), self.broken.event),
            (event >> 16) as u16,
        )
    }

    fn write_driver_off_wrap(&self, at: OffWrap) {
        // Nobody else writes it.
        let flags = self.ring.driver_event.load(Relaxed) & !0xffff;
        let event = flags | u32::from(at.0);
        self.ring.driver_event.store(event, Relaxed);
    }

    fn store_driver_flags(&self, flags: u16) {
        let at = self.ring.driver_event.load(Relaxed) & 0xffff;
        let event = at | u32::from(flags) << 16;
        self.ring.driver_event.store(event, Release);
    }

    fn fence(&self) {
        fence(self.broken);
    }
}

impl EventWords for Cells {
    fn driver_event(&self) -> u32 {
        let event = self.ring.driver_event.load(Relaxed);
        let at = off_by(OffWrap(event as u16), self.broken.event);
        (event & !0xffff) | u32::from(at.0)
    }

    fn set_device_event(&self, event: u32) {
        self.ring.device_event.store(event, Relaxed);
    }

    fn full_fence(&self) {
        fence(self.broken);
    }
}

/// A place in the ring, and how many buffers came before.
#[derive(Clone, Copy)]
struct Place {
    at: OffWrap,
    number: u16,
}

impl Place {
    fn next(self) -> Self {
        self.after(1)
    }

    fn after(self, count: u16) -> Self {
        Place {
            at: self.at.advance(count, SIZE),
            number: self.number + count,
        }
    }
}

/// The driver: what its queue is (`PackedQueue`), but for chains.
pub struct Driver {
    cells: Cells,
    handshake: PackedHandshake,
    next: Place,
    added: u16,
    last_used: Place,
}

impl DriverSide for Driver {
    fn add(&mut self, count: u16, kick: bool) {
        for _ in 0..count {
            let Place { at, number } = self.next;
            self.cells.ring.write(at, number);
            self.cells.store_flags(at.off(), at.avail_flags());
            self.next = self.next.next();
        }
        self.added += count;
        if kick {
            let added = std::mem::take(&mut self.added);
            let (cells, next) = (&self.cells, self.next.at);
            if self.handshake.kick_wanted(cells, added, next, SIZE) {
                cells.ring.kick.raise();
            }
        }
    }

    fn has_added(&mut self, count: u16) {
        self.next = self.next.after(count);
    }

    fn outstanding(&self) -> u16 {
        self.next.number - self.last_used.number
    }

    fn take(&mut self, sleep: Sleep) -> u16 {
        if sleep != Sleep::Unmasked {
            self.handshake.disable_cb(&self.cells);
        }
        let mut count = 0;
        while self.outstanding() > 0 && self.handshake.is_used(&self.cells, self.last_used.at) {
            let Place { at, number } = self.last_used;
            self.cells.ring.read(at, USED | number);
            self.last_used = self.last_used.next();
            self.handshake.taken(&self.cells, self.last_used.at);
            count += 1;
        }
        count
    }

    fn sleep(&mut self, sleep: Sleep) {
        let (cells, last_used) = (&self.cells, self.last_used.at);
        let outstanding = self.next.number - self.last_used.number;
        let idle = match sleep {
            Sleep::Unmasked => true,
            Sleep::Masked => self.handshake.enable_cb(cells, last_used),
            Sleep::Delayed => self
                .handshake
                .enable_cb_delayed(cells, last_used, outstanding, SIZE),
            Sleep::MaskedBlindly => {
                self.handshake.enable_cb_prepare(cells, last_used);
                true
            }
        };
        if idle {
            cells.ring.interrupt.wait();
        }
    }
}

/// The card: what its ring is (`PackedRing`), but for chains.
pub struct Card {
    cells: Cells,
    events: Events,
    next: Place,
    /// The first that was not available.
    known: OffWrap,
    used: Place,
}

impl CardSide for Card {
    fn take(&mut self, rest: Rest, least: u16) -> u16 {
        if rest != Rest::Enabled {
            self.events.disable_kicks(&self.cells);
        }
        let mut at = self.next;
        while at.number - self.used.number < SIZE && self.cells.is_available(at.at) {
            self.cells.ring.read(at.at, at.number);
            at = at.next();
        }
        self.known = at.at;
        let count = at.number - self.next.number;
        if count < least {
            return 0;
        }
        self.next = at;
        count
    }

    fn give_back(&mut self, count: u16, ask: bool) {
        if count == 0 {
            return;
        }
        let first = self.used;
        // The first one's flags last.
        for place in (0..count).rev().map(|behind| first.after(behind)) {
            let Place { at, number } = place;
            self.cells.ring.write(at, USED | number);
            let flags = used_flags(at.wrap());
            if place.number == first.number {
                self.cells.store(at.off(), flags);
            } else {
                self.cells.ring.flags[usize::from(at.off())].store(flags, Relaxed);
            }
        }
        self.used = first.after(count);
        self.events.published(count.into());
        let used = Cursor::new(self.used.at.0);
        if ask && self.events.needs_interrupt(&self.cells, used) {
            self.cells.ring.interrupt.raise();
        }
    }

    fn sleep(&mut self, rest: Rest) {
        let (cells, known) = (&self.cells, self.known);
        // When the card has all of them, that place is one that it has yet to use.
        let more = self
            .events
            .enable_kicks(cells, Cursor::new(known.0), || cells.is_available(known));
        if !more || rest == Rest::DisabledBlindly {
            cells.ring.kick.wait();
        }
    }
}

/// Both sides of a packed ring.
pub struct Packed;

impl Sides for Packed {
    type Driver = Driver;
    type Card = Card;

    /// It begins with interrupts on for everything.
    const EVENTS_UNMASKED: bool = false;

    fn new(start: u16, event_idx: bool, [driver, card]: [Broken; 2]) -> (Driver, Card) {
        // Where a split ring's indices wrap around, so does the last descriptor, in a round of either kind.
        let start = match start {
            u16::MAX => OffWrap::new(SIZE - 1, true),
            _ => OffWrap::new(1, false),
        };
        let ring = Ring::new(start);
        let place = Place {
            at: start,
            number: 0,
        };
        let cells = |broken| Cells {
            ring: ring.clone(),
            broken,
        };
        let driver = Driver {
            cells: cells(driver),
            handshake: PackedHandshake::new(event_idx),
            next: place,
            added: 0,
            last_used: place,
        };
        let card = Card {
            cells: cells(card),
            events: Events::new(SIZE, event_idx),
            next: place,
            known: start,
            used: place,
        };
        (driver, card)
    }
}
