//! What goes wrong between the card and the host, on purpose: DMA that stands still, used rings that are written late, interrupts
//! that come for nothing. (Interrupts that are lost are the device's affair, for it knows which would have been raised; so are
//! [`Lies`], which the driver is told.)
//!
//! What enters: what is to go wrong ([`HostFaults`]), the seed, and the instants at which [`Queues`](crate::queues::Queues) look
//! after each half of a pair. What leaves: whether its DMA stands still, which of its packets the driver has yet to be shown, and
//! each fault, told to the [`Host`], which counts it. Without faults there is none of this, and the queues ask
//! nobody.
//!
//! - *Stalls* come round at a fixed period: DMA runs for a time up to and including its last instant, then stands still, then runs
//!   again. All queues of a direction stall together. Interrupts for what was moved before go on. What waits meanwhile counts for the
//!   moderation as of the end of the stall.
//! - *A slow used ring* is written a time after the first packet that it does not show yet, with all that have come by then, and only then
//!   does the moderation hear of them: the data is in memory, and the driver cannot tell.
//! - *Spurious interrupts* are a Poisson process for each half of a pair. They are raised whatever the driver asked for.

use std::time::Duration;

use crate::chance::Random;
use crate::host::{Direction, Fault, Host, QueueIndex};
use crate::time::Nanos;

mod lies;
pub use lies::{LieCounters, Lies, RingLies};

/// What is to go wrong between the card and the host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostFaults {
    /// With received frames.
    pub receive: QueueFaults,
    /// With packets to be sent.
    pub transmit: QueueFaults,
    /// With what the driver is told.
    pub lies: Lies,
}

/// What is to go wrong with one direction of each queue pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueFaults {
    /// When its DMA stands still.
    pub stall: Option<Stall>,
    /// How much later than usual the driver is shown what was moved.
    pub slow_used: Duration,
    /// The probability that an interrupt is lost.
    pub lost_interrupts: f64,
    /// Interrupts for nothing, a second.
    pub spurious_interrupts: f64,
}

/// DMA runs and stands still by turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// For how long it runs, more than zero.
    pub run: Duration,
    /// For how long it then stands still, more than zero.
    pub stall: Duration,
}

impl HostFaults {
    /// Whether nothing is to go wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What is to go wrong in `direction`.
    #[must_use]
    pub fn of(&self, direction: Direction) -> QueueFaults {
        match direction {
            Direction::Receive => self.receive,
            Direction::Transmit => self.transmit,
        }
    }
}

/// Where a half of a pair stands with a [`Stall`].
struct Phase {
    /// Turns before this one.
    turn: u64,
    /// When this one began.
    begin: Nanos,
    /// Whether DMA stands still.
    stalled: bool,
    /// When that changes.
    ends: Nanos,
}

impl Stall {
    fn phase(self, since: Nanos, now: Nanos) -> Phase {
        let (run, stall) = (self.run.as_nanos() as u64, self.stall.as_nanos() as u64);
        let period = (run + stall).max(1);
        let passed = now.0.saturating_sub(since.0);
        let begin = since.0 + passed / period * period;
        let at = passed % period;
        Phase {
            turn: passed / period,
            begin: Nanos(begin),
            stalled: at > run,
            ends: Nanos(begin + if at < run { run } else { period }),
        }
    }
}

/// What the queues have to heed of a half of a pair.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dma {
    /// It stands still.
    pub(crate) stalled: bool,
    /// No packet of before counts as earlier: that is when it last stood still.
    pub(crate) resumed: Nanos,
    /// The driver is shown later what is moved now.
    pub(crate) slow: bool,
}

/// Packets that the driver has yet to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// When it is.
    pub(crate) due: Nanos,
    /// The octets of each packet.
    pub(crate) octets: Vec<u32>,
}

/// One half of a pair.
#[derive(Clone, Debug)]
struct Trouble {
    faults: QueueFaults,
    held: Option<Held>,
    /// The turn of the last stall that was seen.
    seen: Option<u64>,
    /// When the next interrupt for nothing comes.
    spurious: Option<Nanos>,
    random: Random,
}

/// All that goes wrong with the queues of one owner.
#[derive(Clone, Debug)]
pub(crate) struct Troubles {
    since: Nanos,
    queues: Vec<[Trouble; 2]>,
}

/// Interrupts for nothing that are raised at once, where they come faster than they can be: other things have their turn in between.
const AT_ONCE: usize = 64;
/// Numbers of purposes ([`Random::new`]) begin here; below are those of the line.
const SPURIOUS: u64 = 1 << 32;
/// What [`HostFaults`] need random numbers for beyond the queues: which interrupts of a virtqueue, whose number is added, are lost.
pub const LOST: u64 = 2 << 32;
/// What [`Lies`] need random numbers for: a virtqueue's number times 16 is added, and which of its lies.
pub const LIES: u64 = 3 << 32;
/// What torn reads of the configuration space need random numbers for.
pub const TEARS: u64 = 4 << 32;

impl Troubles {
    /// `faults` for `pairs` queue pairs, from `now` on.
    pub(crate) fn new(faults: HostFaults, seed: u64, pairs: usize, now: Nanos) -> Self {
        let trouble = |pair: usize, direction: Direction| {
            let faults = faults.of(direction);
            let purpose = SPURIOUS + 2 * pair as u64 + direction as u64;
            Trouble {
                faults,
                held: None,
                seen: None,
                spurious: None,
                random: Random::new(seed, purpose),
            }
        };
        let pair = |pair| [Direction::Receive, Direction::Transmit].map(|half| trouble(pair, half));
        Troubles {
            since: now,
            queues: (0..pairs).map(pair).collect(),
        }
    }

    fn of(&mut self, queue: QueueIndex, direction: Direction) -> &mut Trouble {
        &mut self.queues[usize::from(queue.0)][direction as usize]
    }

    /// Looks after one half of a pair at `now`: interrupts for nothing are raised, and a stall that has begun is told.
    pub(crate) fn attend(
        &mut self,
        queue: QueueIndex,
        direction: Direction,
        now: Nanos,
        host: &mut impl Host,
    ) -> Dma {
        let since = self.since;
        let trouble = self.of(queue, direction);
        if trouble.spurious.is_none() && trouble.faults.spurious_interrupts > 0.0 {
            // Only now, by who serves this half: it has no deadline for others.
            trouble.spurious = Some(since);
            trouble.next_spurious();
        }
        for _ in 0..AT_ONCE {
            if trouble.spurious.is_none_or(|due| due > now) {
                break;
            }
            host.fault(queue, direction, Fault::SpuriousInterrupt);
            trouble.next_spurious();
        }
        let mut dma = Dma {
            slow: trouble.faults.slow_used > Duration::ZERO,
            ..Dma::default()
        };
        if let Some(stall) = trouble.faults.stall {
            let phase = stall.phase(since, now);
            dma.stalled = phase.stalled;
            if phase.turn > 0 {
                dma.resumed = phase.begin;
            }
            if phase.stalled && trouble.seen != Some(phase.turn) {
                trouble.seen = Some(phase.turn);
                host.fault(queue, direction, Fault::DmaStall);
            }
        }
        dma
    }

    /// Whether the DMA of a half of a pair stands still.
    pub(crate) fn is_stalled(&self, queue: QueueIndex, direction: Direction, now: Nanos) -> bool {
        let trouble = &self.queues[usize::from(queue.0)][direction as usize];
        let stall = trouble.faults.stall;
        stall.is_some_and(|stall| stall.phase(self.since, now).stalled)
    }

    /// Whether the used rings of `direction` are slow.
    pub(crate) fn is_slow(&self, direction: Direction) -> bool {
        let trouble = |half: &[Trouble; 2]| half[direction as usize].faults.slow_used;
        self.queues.first().map(trouble) > Some(Duration::ZERO)
    }

    /// The driver is to be shown more packets, of so many `octets` each, later.
    pub(crate) fn hold(
        &mut self,
        queue: QueueIndex,
        direction: Direction,
        now: Nanos,
        octets: impl Iterator<Item = u32>,
    ) {
        let trouble = self.of(queue, direction);
        let due = now + trouble.faults.slow_used;
        let nothing = || Held {
            due,
            octets: Vec::new(),
        };
        let held = trouble.held.get_or_insert_with(nothing);
        held.octets.extend(octets);
    }

    /// Takes out the packets that are to be shown at `now`, if there are any.
    pub(crate) fn due(
        &mut self,
        queue: QueueIndex,
        direction: Direction,
        now: Nanos,
    ) -> Option<Held> {
        let held = &mut self.of(queue, direction).held;
        held.take_if(|held| held.due <= now)
    }

    /// Forgets what the driver is to be shown: it is another one, or the queue was stopped.
    pub(crate) fn forget(&mut self, queue: QueueIndex, direction: Direction) {
        self.of(queue, direction).held = None;
    }

    /// When the queues have to look after these faults next, after `now`.
    pub(crate) fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let since = self.since;
        let of = |trouble: &Trouble| {
            let stall = trouble.faults.stall.map(|s| s.phase(since, now).ends);
            let held = trouble.held.as_ref().map(|held| held.due);
            [stall, held, trouble.spurious].into_iter().flatten().min()
        };
        self.queues.iter().flatten().filter_map(of).min()
    }
}

impl Trouble {
    fn next_spurious(&mut self) {
        if let Some(due) = &mut self.spurious {
            let mean = 1e9 / self.faults.spurious_interrupts;
            // At least one: time goes on.
            let gap = (self.random.exponential() * mean) as u64;
            *due += Duration::from_nanos(gap.max(1));
        }
    }
}

#[cfg(test)]
mod tests;
