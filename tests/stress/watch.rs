//! Lines to wake each other by, and a watch for the case that nobody does.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use nic_guest::ring::raw::RawRing;
use nic_guest::ring::raw_packed::RawPackedRing;
use nic_guest::ring::virtqueue::Virtqueue;

/// How long somebody sleeps while nothing moves before it is called a lost wake-up: so many times that long.
pub const PATIENCE: u32 = 20;
const LOOK: Duration = Duration::from_secs(1);

/// An interrupt line: what is raised while nobody waits is kept.
#[derive(Default)]
pub struct Line {
    raised: Mutex<bool>,
    wake: Condvar,
    /// Times that it was raised, and that somebody slept.
    raises: AtomicU64,
    sleeps: AtomicU64,
}

impl Line {
    /// Wakes who waits, or who waits next.
    pub fn raise(&self) {
        self.raises.fetch_add(1, Ordering::Relaxed);
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
    }
}

/// What the two sides share besides the ring.
pub struct Watch {
    /// Wakes the guest.
    pub interrupt: Line,
    /// Wakes the card.
    pub kick: Line,
    moved: [AtomicU64; 2],
    /// The longest time that nothing moved while somebody slept, in looks.
    quiet: AtomicU32,
    over: AtomicBool,
    ring: Words,
}

/// Where the words of the ring are.
enum Words {
    Split(RawRing),
    Packed(RawPackedRing),
}

/// Nobody woke this side, and nothing moved.
#[derive(Debug)]
pub struct LostWakeUp;

impl Watch {
    pub fn new(queue: &Virtqueue) -> Self {
        let ring = match queue {
            Virtqueue::Split(queue) => Words::Split(RawRing::new(queue.ring())),
            Virtqueue::Packed(queue) => Words::Packed(RawPackedRing::new(queue.ring())),
        };
        Watch {
            interrupt: Line::default(),
            kick: Line::default(),
            moved: Default::default(),
            quiet: AtomicU32::new(0),
            over: AtomicBool::new(false),
            ring,
        }
    }

    /// The guest has moved so many packets.
    pub fn guest_moved(&self, packets: u64) {
        self.moved[0].store(packets, Ordering::Relaxed);
    }

    /// The card has moved so many packets.
    pub fn card_moved(&self, packets: u64) {
        self.moved[1].store(packets, Ordering::Relaxed);
    }

    /// Sleeps until `line` is raised.
    ///
    /// # Errors
    /// Nothing moved for too long, or the other side says so.
    pub fn wait(&self, line: &Line) -> Result<(), LostWakeUp> {
        let moved = || {
            self.moved
                .each_ref()
                .map(|side| side.load(Ordering::Relaxed))
        };
        line.sleeps.fetch_add(1, Ordering::Relaxed);
        let (mut before, mut quiet) = (moved(), 0);
        let mut raised = line.raised.lock().unwrap_or_else(PoisonError::into_inner);
        while quiet < PATIENCE {
            let (guard, timeout) = line
                .wake
                .wait_timeout_while(raised, LOOK, |raised| !*raised)
                .unwrap_or_else(PoisonError::into_inner);
            raised = guard;
            if self.over.load(Ordering::Relaxed) {
                return Err(LostWakeUp);
            }
            if !timeout.timed_out() {
                *raised = false;
                return Ok(());
            }
            let now = moved();
            quiet = if now == before { quiet + 1 } else { 0 };
            self.quiet.fetch_max(quiet, Ordering::Relaxed);
            before = now;
        }
        drop(raised);
        self.over.store(true, Ordering::Relaxed);
        // The other one sleeps too, or it would have moved something: it shall tell where it stands.
        self.interrupt.raise();
        self.kick.raise();
        Err(LostWakeUp)
    }
}

/// How often they slept and were woken, and the words of the ring.
impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, line) in [("interrupts", &self.interrupt), ("kicks", &self.kick)] {
            let (raises, sleeps) = (&line.raises, &line.sleeps);
            let (raises, sleeps) = (
                raises.load(Ordering::Relaxed),
                sleeps.load(Ordering::Relaxed),
            );
            write!(f, "{raises} {name} for {sleeps} sleeps, ")?;
        }
        let quiet = self.quiet.load(Ordering::Relaxed);
        write!(f, "at most {quiet} s without news, ")?;
        match &self.ring {
            Words::Split(ring) => write!(
                f,
                "avail.flags {} avail.idx {} used_event {} used.flags {} used.idx {} avail_event {}",
                ring.avail_flags(),
                ring.avail_idx(),
                ring.used_event(),
                ring.used_flags(),
                ring.used_idx(),
                ring.avail_event()
            ),
            Words::Packed(ring) => {
                let flags: Vec<u16> = (0..ring.size()).map(|at| ring.flags(at)).collect();
                let (driver, device) = (ring.driver_event(), ring.device_event());
                write!(f, "flags {flags:x?} driver {driver:x?} device {device:x?}")
            }
        }
    }
}
