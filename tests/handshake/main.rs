//! No wake-up is lost: loom runs the driver's handshake and the card's against each other, in every order.
//!
//! Both are the real ones: `nic_guest::ring::handshake` and `nic_device::notify`, and on a packed ring
//! `nic_guest::ring::packed_handshake` and `nic_device::packed::events`. Their words are loom's (`ring`, `packed`), so
//! that a load may give any value that the memory model allows, and around them is just enough of a queue to
//! move indices (`sides`) or to go round the descriptors. Each side is a thread, and sleeps until it is woken: a lost wake-up is a deadlock, which loom
//! finds. An entry of the ring holds the index that it is for, so that one that is read too early shows.
//!
//! Likewise the port's thread and a queue's worker, which pass frames through a lane and wake each other as `nic_backend::wakeup` says
//! (`lane`). The lane's rings are rtrb's, which stand for an index here.
//!
//! # Bound
//!
//! | Models | Threads | Buffers | Preemptions | Executions |
//! |---|---|---|---|---|
//! | the card uses buffers, the driver sleeps: 180 | 2 | 2 or 3, in 1 or 2 steps | 3 | 109,690 |
//! | the driver adds buffers, the card sleeps: 160 | 2 | 2 or 3, in 1 or 2 steps | 3 | 68,500 |
//! | there and back through two entries of a ring: 24 | 2 | 3 | 2 | 32,400 |
//! | packed: the card uses buffers, the driver sleeps: 108 | 2 | 2, in 1 or 2 steps | 3 | 40,464 |
//! | packed: the driver adds buffers, the card sleeps: 96 | 2 | 2, in 1 or 2 steps | 3 | 37,236 |
//! | packed: there and back through two entries of three: 12 | 2 | 3 | 2 | 25,274 |
//! | lanes: the port's thread and a worker pass frames: 10 | 2 | 2 or 3, in 1 or 2 steps | 3 | 5,025 |
//!
//! Within the bound on preemptions loom explores all orders, and for each load all values. Who masks what, and when, is
//! not left to chance either: every pattern of two rounds is a model of its own, with EVENT_IDX and with flags, once
//! with indices that wrap around at 65535, or where a packed ring ends. `LOOM_MAX_PREEMPTIONS` sets another bound.
//!
//! To loom `fence(SeqCst)` is a fence of the C11 memory model, but stronger in that it also orders whatever was before an
//! earlier one; only SeqCst loads and stores would be taken for less than they are, and there are none here. What
//! loom does not show is a load that comes after a later store of its own thread. The driver's plain accesses to guest
//! memory are volatile; relaxed ones stand for them.
//!
//! # That it would fail
//!
//! `what_a_side_leaves_out_is_found` runs the same handshakes on words without fence, release or acquire, with an event
//! index that is off by one, and without the second look. Each of these changes to the sources, too, makes one of the
//! tests fail:
//!
//! | Driver | Card |
//! |---|---|
//! | no fence in `kick_wanted`, in `taken`, in `used_since` | no fence in `needs_interrupt`, in `enable_kicks` |
//! | `publish` or `used_idx` relaxed | `publish` relaxed |
//! | `enable_cb` or `enable_cb_delayed` without looking again, or before it asks | `enable_kicks` without looking again |
//! | `vring_need_event` without the 1, for the last index only, or without wrapping | the same in `needs_interrupt` |
//! | an event one further in `enable_cb_prepare`, in `enable_cb_delayed`; none in `taken` | one further in `enable_kicks` |
//! | `enable_cb_prepare` leaves the flag, or stays masked | `enable_kicks` leaves the flag; `disable_kicks` forgets that it set it |
//!
//! and at a lane, no fence in `ask` or in `Wakeup::take`, or who sleeps without looking again.

mod lane;
mod packed;
mod ring;
mod sides;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::model::Builder;
use loom::thread;

use lane::Frames;
use packed::Packed;
use ring::{Broken, SOUND};
use sides::{CardSide, DriverSide, Rest, Sides, Sleep, Split};

/// Preemptions in an execution of a model in which buffers go one way.
const ONE_WAY: usize = 3;
/// The same where they go there and back.
const BOTH_WAYS: usize = 2;

/// Where indices start: once they wrap around, once they do not.
const STARTS: [u16; 2] = [65535, 7];

/// A step of whoever has news: so many buffers at once, and whether it is time to tell the other side.
type Step = (u16, bool);

/// Ways to move two or three buffers: one by one, all at once, and with one notification for two steps.
const STEPS: [&[Step]; 5] = [
    &[(1, true), (1, true)],
    &[(2, true)],
    &[(1, false), (1, true)],
    &[(1, true), (2, true)],
    &[(2, true), (1, true)],
];

/// Those of a packed ring, whose every descriptor has a word that both sides write: more would take minutes.
const PACKED_STEPS: [&[Step]; 3] = [STEPS[0], STEPS[1], STEPS[2]];

fn buffers(steps: &[Step]) -> u16 {
    steps.iter().map(|step| step.0).sum()
}

/// Explores `model` and returns how many executions it has.
fn explore(bound: usize, model: impl Fn() + Send + Sync + 'static) -> usize {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(bound));
    let executions = Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    executions.load(Ordering::Relaxed)
}

/// The card uses buffers that it has; the driver takes them all.
#[derive(Clone, Copy, Debug)]
struct Interrupts {
    event_idx: bool,
    start: u16,
    steps: &'static [Step],
    /// How the driver sleeps, in turn.
    sleeps: [Sleep; 2],
    driver: Broken,
    card: Broken,
}

impl Interrupts {
    fn explore<S: Sides>(self) -> usize {
        // Shown if it fails.
        println!("{self:?}");
        explore(ONE_WAY, move || {
            let total = buffers(self.steps);
            let (mut driver, mut card) =
                S::new(self.start, self.event_idx, [self.driver, self.card]);
            driver.has_added(total);
            let card = thread::spawn(move || {
                for &(count, tell) in self.steps {
                    card.give_back(count, tell);
                }
            });
            let mut taken = 0;
            for sleep in self.sleeps.into_iter().cycle() {
                taken += driver.take(sleep);
                if taken == total {
                    break;
                }
                driver.sleep(sleep);
            }
            card.join().expect("the card's thread");
        })
    }
}

/// The driver adds buffers; the card takes them all.
#[derive(Clone, Copy, Debug)]
struct Kicks {
    event_idx: bool,
    start: u16,
    steps: &'static [Step],
    /// How the card sleeps, in turn.
    rests: [Rest; 2],
    /// How many buffers the card takes at least, as for a frame that spans several.
    least: u16,
    driver: Broken,
    card: Broken,
}

impl Kicks {
    fn explore<S: Sides>(self) -> usize {
        println!("{self:?}");
        explore(ONE_WAY, move || {
            let total = buffers(self.steps);
            let (mut driver, mut card) =
                S::new(self.start, self.event_idx, [self.driver, self.card]);
            let driver = thread::spawn(move || {
                for &(count, tell) in self.steps {
                    driver.add(count, tell);
                }
            });
            let mut taken = 0;
            for rest in self.rests.into_iter().cycle() {
                taken += card.take(rest, self.least.min(total - taken));
                if taken == total {
                    break;
                }
                card.sleep(rest);
            }
            driver.join().expect("the driver's thread");
        })
    }
}

/// Three buffers go to the card and back through two entries of the ring: each side waits for the other.
#[derive(Clone, Copy, Debug)]
struct ThereAndBack {
    event_idx: bool,
    start: u16,
    sleep: Sleep,
    rest: Rest,
}

impl ThereAndBack {
    fn explore<S: Sides>(self) -> usize {
        const TOTAL: u16 = 3;
        const ENTRIES: u16 = 2;
        println!("{self:?}");
        explore(BOTH_WAYS, move || {
            let (mut driver, mut card) = S::new(self.start, self.event_idx, [SOUND; 2]);
            let card = thread::spawn(move || {
                let mut moved = 0;
                loop {
                    let count = card.take(self.rest, 1);
                    card.give_back(count, true);
                    moved += count;
                    if moved == TOTAL {
                        break;
                    }
                    card.sleep(self.rest);
                }
            });
            let (mut added, mut taken) = (0, 0);
            while taken < TOTAL {
                let room = (ENTRIES - driver.outstanding()).min(TOTAL - added);
                if room > 0 {
                    driver.add(room, true);
                    added += room;
                }
                let count = driver.take(self.sleep);
                taken += count;
                if count == 0 {
                    driver.sleep(self.sleep);
                }
            }
            card.join().expect("the card's thread");
        })
    }
}

fn all_interrupts<S: Sides>(event_idx: bool, all_steps: &[&'static [Step]]) {
    let mut executions = 0;
    for start in STARTS {
        for &steps in all_steps {
            for first in Sleep::SOUND {
                for second in Sleep::SOUND {
                    let model = Interrupts {
                        event_idx,
                        start,
                        steps,
                        sleeps: [first, second],
                        driver: SOUND,
                        card: SOUND,
                    };
                    executions += model.explore::<S>();
                }
            }
        }
    }
    println!("{executions} executions");
}

#[test]
fn no_interrupt_is_lost_with_event_idx() {
    all_interrupts::<Split>(true, &STEPS);
}

#[test]
fn no_interrupt_is_lost_with_flags() {
    all_interrupts::<Split>(false, &STEPS);
}

#[test]
fn no_interrupt_of_a_packed_ring_is_lost_with_event_idx() {
    all_interrupts::<Packed>(true, &PACKED_STEPS);
}

#[test]
fn no_interrupt_of_a_packed_ring_is_lost_with_flags() {
    all_interrupts::<Packed>(false, &PACKED_STEPS);
}

fn all_kicks<S: Sides>(event_idx: bool, all_steps: &[&'static [Step]]) {
    let mut executions = 0;
    for start in STARTS {
        for &steps in all_steps {
            for first in Rest::SOUND {
                for second in Rest::SOUND {
                    for least in [1, 2] {
                        let model = Kicks {
                            event_idx,
                            start,
                            steps,
                            rests: [first, second],
                            least,
                            driver: SOUND,
                            card: SOUND,
                        };
                        executions += model.explore::<S>();
                    }
                }
            }
        }
    }
    println!("{executions} executions");
}

#[test]
fn no_kick_is_lost_with_event_idx() {
    all_kicks::<Split>(true, &STEPS);
}

#[test]
fn no_kick_is_lost_with_flags() {
    all_kicks::<Split>(false, &STEPS);
}

#[test]
fn no_kick_of_a_packed_ring_is_lost_with_event_idx() {
    all_kicks::<Packed>(true, &PACKED_STEPS);
}

#[test]
fn no_kick_of_a_packed_ring_is_lost_with_flags() {
    all_kicks::<Packed>(false, &PACKED_STEPS);
}

fn there_and_back<S: Sides>(starts: &[u16]) {
    let mut executions = 0;
    for event_idx in [false, true] {
        for &start in starts {
            for sleep in Sleep::SOUND {
                for rest in Rest::SOUND {
                    let model = ThereAndBack {
                        event_idx,
                        start,
                        sleep,
                        rest,
                    };
                    executions += model.explore::<S>();
                }
            }
        }
    }
    println!("{executions} executions");
}

#[test]
fn both_sides_sleep_and_wake_each_other() {
    there_and_back::<Split>(&STARTS);
}

#[test]
fn both_sides_of_a_packed_ring_sleep_and_wake_each_other() {
    there_and_back::<Packed>(&STARTS[..1]);
}

/// How an exploration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Sound,
    /// Somebody sleeps for good.
    LostWakeUp,
    /// Somebody read an entry of the ring before it was written.
    StaleEntry,
}

fn outcome(explore: impl FnOnce() -> usize) -> Outcome {
    let Err(panic) = catch_unwind(AssertUnwindSafe(explore)) else {
        return Outcome::Sound;
    };
    match panic.downcast_ref::<String>() {
        Some(message) if message.contains("deadlock") => Outcome::LostWakeUp,
        Some(message) if message.contains("a stale entry") => Outcome::StaleEntry,
        other => panic!("{other:?}"),
    }
}

const NO_FENCE: Broken = Broken {
    no_fence: true,
    ..SOUND
};
const NO_RELEASE: Broken = Broken {
    no_release: true,
    ..SOUND
};
const NO_ACQUIRE: Broken = Broken {
    no_acquire: true,
    ..SOUND
};
const LATE: Broken = Broken { event: 1, ..SOUND };
const EARLY: Broken = Broken { event: -1, ..SOUND };

fn what_is_left_out_is_found<S: Sides>() {
    use Outcome::{LostWakeUp, Sound, StaleEntry};
    for event_idx in [false, true] {
        // Without EVENT_IDX there is no event that could be off, and whoever never masks needs no fence.
        let off = if event_idx { LostWakeUp } else { Sound };
        for sleep in Sleep::SOUND {
            let sound = Interrupts {
                event_idx,
                start: 65535,
                steps: STEPS[0],
                sleeps: [sleep; 2],
                driver: SOUND,
                card: SOUND,
            };
            let unmasked = sleep == Sleep::Unmasked;
            let off = match unmasked && !S::EVENTS_UNMASKED {
                true => Sound,
                false => off,
            };
            let unfenced = if unmasked { off } else { LostWakeUp };
            for (card, expected) in [
                (NO_FENCE, unfenced),
                (NO_RELEASE, StaleEntry),
                (LATE, off),
                (EARLY, off),
            ] {
                let model = Interrupts { card, ..sound };
                assert_eq!(outcome(|| model.explore::<S>()), expected, "{model:?}");
            }
            for (driver, expected) in [(NO_FENCE, unfenced), (NO_ACQUIRE, StaleEntry)] {
                let model = Interrupts { driver, ..sound };
                assert_eq!(outcome(|| model.explore::<S>()), expected, "{model:?}");
            }
            let sleeps = [Sleep::MaskedBlindly; 2];
            let model = Interrupts { sleeps, ..sound };
            assert_eq!(outcome(|| model.explore::<S>()), LostWakeUp, "{model:?}");
        }
        for rest in Rest::SOUND {
            let sound = Kicks {
                event_idx,
                start: 65535,
                steps: STEPS[0],
                rests: [rest; 2],
                least: 1,
                driver: SOUND,
                card: SOUND,
            };
            let unfenced = match rest {
                Rest::Enabled => off,
                _ => LostWakeUp,
            };
            for (driver, expected) in [
                (NO_FENCE, unfenced),
                (NO_RELEASE, StaleEntry),
                (LATE, off),
                (EARLY, off),
            ] {
                let model = Kicks { driver, ..sound };
                assert_eq!(outcome(|| model.explore::<S>()), expected, "{model:?}");
            }
            for (card, expected) in [(NO_FENCE, unfenced), (NO_ACQUIRE, StaleEntry)] {
                let model = Kicks { card, ..sound };
                assert_eq!(outcome(|| model.explore::<S>()), expected, "{model:?}");
            }
            let rests = [Rest::DisabledBlindly; 2];
            let model = Kicks { rests, ..sound };
            assert_eq!(outcome(|| model.explore::<S>()), LostWakeUp, "{model:?}");
        }
    }
}

#[test]
fn what_a_side_leaves_out_is_found() {
    what_is_left_out_is_found::<Split>();
}

#[test]
fn what_a_side_of_a_packed_ring_leaves_out_is_found() {
    what_is_left_out_is_found::<Packed>();
}

const FRAMES: Frames = Frames {
    steps: STEPS[0],
    wanted: false,
    blindly: false,
    giver: SOUND,
    taker: SOUND,
};

#[test]
fn no_thread_sleeps_while_a_lane_has_frames() {
    let mut executions = 0;
    for steps in STEPS {
        for wanted in [false, true] {
            let model = Frames {
                steps,
                wanted,
                ..FRAMES
            };
            executions += model.explore();
        }
    }
    println!("{executions} executions");
}

#[test]
fn what_a_thread_at_a_lane_leaves_out_is_found() {
    for wanted in [false, true] {
        let sound = Frames { wanted, ..FRAMES };
        let (giver, taker) = (NO_FENCE, NO_FENCE);
        let broken = [
            Frames { giver, ..sound },
            Frames { taker, ..sound },
            Frames {
                blindly: true,
                ..sound
            },
        ];
        for model in broken {
            assert_eq!(
                outcome(|| model.explore()),
                Outcome::LostWakeUp,
                "{model:?}"
            );
        }
    }
}
