//! How long a worker that has nothing to do spins before it sleeps.
//!
//! Spinning costs CPU time for as long as it lasts. A sleep costs the sleep, the wake-up, the driver's kick with the exit of its VM,
//! and the packet waits for all that. Whoever spins for as long as a sleep costs, and then sleeps, pays at most twice what he
//! would who knew when the next packet comes: so nobody spins longer than [`LONGEST`]. How long it is worth to spin is learnt
//! from what happens, as in KVM's halt polling (`grow_halt_poll_ns`, `shrink_halt_poll_ns`): a sleep that a longer spin
//! would have saved makes the next spin longer, one that no spin would have saved makes it shorter, down to none.

use std::time::Duration;

use clap::ValueEnum;
use nic_model::time::Nanos;
use serde::Serialize;

/// What a worker does that has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PollMode {
    /// It sleeps at once, and is woken by kicks and interrupts
    #[default]
    Never,
    /// It spins for as long as that has been worth it of late, 50 us at most, then sleeps
    Adaptive,
    /// It spins: takes a whole core a thread, answers fastest
    Always,
}

/// The longest spin: about what a sleep costs. In a VM with two CPUs a write to an eventfd took 11 us, the sleeper 6 us of CPU
/// time, and 3 to 16 us passed until it ran; a guest that kicks leaves its VM for it, and a CPU that was idle wakes up slowly.
pub const LONGEST: Duration = Duration::from_micros(50);

/// The shortest spin, KVM's `halt_poll_ns_grow_start`.
const SHORTEST: Duration = Duration::from_micros(10);

/// What a worker waited for, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// Times that it slept.
    #[serde(rename = "worker_sleeps")]
    pub sleeps: u64,
    /// Times that it spun and something came.
    #[serde(rename = "worker_spins_paid")]
    pub paid: u64,
    /// Times that it spun, and slept all the same.
    #[serde(rename = "worker_spins_wasted")]
    pub wasted: u64,
}

impl std::ops::AddAssign for Waits {
    fn add_assign(&mut self, other: Self) {
        self.sleeps += other.sleeps;
        self.paid += other.paid;
        self.wasted += other.wasted;
    }
}

/// What became of the time since there was work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// There is some.
    Work,
    /// It spins.
    Spin,
    /// It has spun long enough.
    Sleep,
}

/// How long it is worth to spin.
#[derive(Debug)]
pub struct Patience {
    /// The longest spin.
    longest: Duration,
    /// The next spin.
    window: Duration,
    /// When there was work last.
    worked: Nanos,
    since: Since,
    /// What it has done.
    pub waits: Waits,
}

impl Patience {
    /// That of a worker which waits as `mode` says; with [`PollMode::Always`] it is not asked.
    #[must_use]
    pub fn new(mode: PollMode) -> Self {
        let longest = match mode {
            PollMode::Adaptive => LONGEST,
            PollMode::Never | PollMode::Always => Duration::ZERO,
        };
        Patience {
            longest,
            window: Duration::ZERO,
            worked: Nanos::ZERO,
            since: Since::Work,
            waits: Waits::default(),
        }
    }

    /// There was work at `now`.
    #[inline]
    pub fn worked(&mut self, now: Nanos) {
        match self.since {
            Since::Work => {}
            Since::Spin => self.waits.paid += 1,
            Since::Sleep if now.since(self.worked) < self.longest => {
                self.window = (2 * self.window).clamp(SHORTEST, self.longest);
            }
            Since::Sleep => {
                self.window /= 2;
                if self.window < SHORTEST {
                    self.window = Duration::ZERO;
                }
            }
        }
        self.since = Since::Work;
        self.worked = now;
    }

    /// There is no work at `now`. Returns whether to look again instead of sleeping.
    #[inline]
    pub fn lasts(&mut self, now: Nanos) -> bool {
        if self.since != Since::Sleep && now.since(self.worked) < self.window {
            self.since = Since::Spin;
            return true;
        }
        self.waits.wasted += u64::from(self.since == Since::Spin);
        self.since = Since::Sleep;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;

    /// Plays work at each of the instants `at`, in microseconds, with a look each microsecond between them. Returns for each
    /// how long it was spun for, in microseconds, and whether it slept before.
    fn play(patience: &mut Patience, at: impl IntoIterator<Item = u64>) -> Vec<(u64, bool)> {
        let mut now = patience.worked.0 / US;
        let mut seen = Vec::new();
        for work in at {
            let begin = now;
            let mut slept = false;
            let mut spun = 0;
            while now < work {
                if patience.lasts(Nanos(now * US)) {
                    assert!(!slept, "nobody spins behind a sleep without work");
                    spun = now + 1 - begin;
                } else {
                    slept = true;
                }
                now += 1;
            }
            patience.worked(Nanos(now * US));
            seen.push((spun, slept));
        }
        seen
    }

    fn each(gap: u64, from: u64) -> impl Iterator<Item = u64> {
        (1..).map(move |n| from + n * gap)
    }

    #[test]
    fn it_learns_to_spin_where_that_saves_a_sleep() {
        let mut patience = Patience::new(PollMode::Adaptive);
        let seen = play(&mut patience, each(30, 0).take(5));
        // 10, 20 and 40 us: the last is enough.
        assert_eq!(
            seen,
            [(0, true), (10, true), (20, true), (30, false), (30, false)]
        );
        let waits = patience.waits;
        assert_eq!((waits.paid, waits.wasted), (2, 2));
    }

    #[test]
    fn it_never_spins_longer_than_a_sleep_costs() {
        let mut patience = Patience::new(PollMode::Adaptive);
        play(&mut patience, each(49, 0).take(20));
        assert_eq!(patience.window, LONGEST);
        // Whatever comes, and whenever.
        let mut chance = 1_u64;
        for _ in 0..2_000 {
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = patience.worked.0 / US + (chance >> 57);
            for (spun, _) in play(&mut patience, [at]) {
                assert!(spun <= LONGEST.as_micros() as u64, "{spun} us");
            }
        }
    }

    #[test]
    fn it_unlearns_where_nothing_comes() {
        let mut patience = Patience::new(PollMode::Adaptive);
        play(&mut patience, each(49, 0).take(20));
        let from = patience.worked.0 / US;
        let seen = play(&mut patience, each(1_000, from).take(5));
        // 50, 25, 12.5, then none.
        let spun: Vec<_> = seen.iter().map(|&(spun, _)| spun).collect();
        assert_eq!(spun, [50, 25, 13, 0, 0]);
        assert!(seen.iter().all(|&(_, slept)| slept));
        // Rare packets cost no spin for ever.
        let wasted = patience.waits.wasted;
        let from = patience.worked.0 / US;
        play(&mut patience, each(1_000, from).take(50));
        assert_eq!(patience.waits.wasted, wasted);
    }

    #[test]
    fn who_never_polls_never_spins() {
        let mut patience = Patience::new(PollMode::Never);
        for gap in [1, 5, 30, 1_000] {
            let from = patience.worked.0 / US;
            for (spun, slept) in play(&mut patience, each(gap, from).take(10)) {
                assert_eq!((spun, slept), (0, true));
            }
        }
        assert_eq!(patience.waits, Waits::default());
    }
}
