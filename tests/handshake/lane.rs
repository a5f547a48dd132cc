//! The port's thread and a queue's worker, who pass frames to each other and sleep when there are none: the handshake of the lanes' bells.

use std::sync::Arc;

use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicU16};
use loom::thread;
use nic_backend::wakeup::{Flag, Wakeup};

use crate::ring::{Broken, Line, fence};
use crate::{ONE_WAY, Step, buffers, explore};

/// A flag as one side sees it.
struct View {
    flag: Arc<AtomicBool>,
    broken: Broken,
}

impl Flag for View {
    fn get(&self) -> bool {
        self.flag.load(Relaxed)
    }

    fn set(&self, value: bool) {
        self.flag.store(value, Relaxed);
    }

    fn take(&self) -> bool {
        self.flag.swap(false, Relaxed)
    }

    fn full_fence(&self) {
        fence(self.broken);
    }
}

/// What both sides share: frames that were passed on, and the bell of who takes them.
#[derive(Default)]
struct Lane {
    passed: AtomicU16,
    asleep: Arc<AtomicBool>,
    wanted: Arc<AtomicBool>,
    bell: Line,
}

impl Lane {
    /// The wishes of who takes, as one side sees them: to be woken at all, and to be woken for a frame of this lane.
    fn wishes(&self, broken: Broken) -> [Wakeup<View>; 2] {
        [&self.asleep, &self.wanted].map(|flag| {
            Wakeup::new(View {
                flag: flag.clone(),
                broken,
            })
        })
    }
}

/// One side passes frames on, the other takes them all.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    pub steps: &'static [Step],
    /// Whether who takes is woken only if he wants to be, by this lane: as the port, for frames that come back.
    pub wanted: bool,
    /// Whether he sleeps without having looked again.
    pub blindly: bool,
    pub giver: Broken,
    pub taker: Broken,
}

impl Frames {
    /// Explores all orders; how many there are.
    pub fn explore(self) -> usize {
        println!("{self:?}");
        explore(ONE_WAY, move || {
            let lane = Arc::new(Lane::default());
            let total = buffers(self.steps);
            let theirs = lane.clone();
            let giver = thread::spawn(move || self.give(&theirs));
            let [asleep, wanted] = lane.wishes(self.taker);
            loop {
                let taken = lane.passed.load(Acquire);
                if taken == total {
                    break;
                }
                asleep.ask();
                if self.wanted {
                    wanted.ask();
                }
                if self.blindly || lane.passed.load(Acquire) == taken {
                    lane.bell.wait();
                }
                asleep.withdraw();
            }
            giver.join().expect("who gives");
        })
    }

    fn give(self, lane: &Lane) {
        let [asleep, wanted] = lane.wishes(self.giver);
        let mut passed = 0;
        for &(count, tell) in self.steps {
            passed += count;
            lane.passed.store(passed, Release);
            if tell && (!self.wanted || wanted.take()) && asleep.take() {
                lane.bell.raise();
            }
        }
    }
}
