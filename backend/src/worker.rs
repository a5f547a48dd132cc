//! A worker: a thread that owns a card, or a part of one, and runs it to completion.
//!
//! It moves bursts until nothing is left to do. Then it asks the driver for kicks, looks once
//! more, and sleeps until a kick, the wire, another worker, a deadline or a job wakes it. In poll mode it spins instead, or for a
//! while before (see [`PollMode`]); the driver is not asked for kicks then. Whoever else
//! wants something of the card sends a job, which runs between two bursts: so there are no locks, and
//! when [`WorkerHandle::call`] returns, what it asked for has happened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use log::{debug, warn};
use nic_device::interrupt::is_eventfd;
use nic_device::rings::Rings;
use nic_model::time::Nanos;
use rustix::event::epoll;

use crate::card::Line;
use crate::clock::Clock;
use crate::cpus;
use crate::lane::Bell;
use crate::patience::{Patience, PollMode, Waits};

mod here;

use here::Here;

/// How far the card may run ahead of the clock: about what a thread is late that sleeps, or one that always spins
/// and has a burst at hand.
#[must_use]
pub const fn lead(poll: PollMode) -> Duration {
    Duration::from_micros(match poll {
        PollMode::Always => 5,
        PollMode::Never | PollMode::Adaptive => 100,
    })
}

/// Rounds without work that the worker makes before it sleeps: a driver that answers at once is not waited
/// for asleep.
const IDLE_ROUNDS: u32 = 3;

/// What a worker runs: a whole card, or a part of one.
pub trait Body: 'static {
    /// Moves one burst in each direction. Returns whether there was anything to do.
    fn round(&mut self, now: Nanos) -> bool;

    /// When a round has something to do without anybody's asking.
    fn next_deadline(&self, now: Nanos) -> Option<Nanos>;

    /// Asks to be woken for whatever may come. Returns true if something has come already.
    fn idle(&mut self, now: Nanos) -> bool;

    /// Its queues and their rings.
    fn rings(&mut self) -> Rings<'_>;

    /// The port and its wire, if it has these.
    fn line(&self) -> Option<&dyn Line> {
        None
    }
}

/// Whoever serves rings, as others see him.
pub trait ServesRings {
    /// The rings.
    fn rings(&mut self) -> Rings<'_>;

    /// The present instant.
    fn now(&self) -> Nanos;

    /// Hears of kicks of `queue` through `kick`, an eventfd, instead of what was before. Anything else that is not
    /// an eventfd stands for none: the queue is polled.
    fn set_kick(&mut self, queue: usize, kick: Option<File>);

    /// Resets what the driver and the front-end set up.
    fn reset(&mut self);

    /// Lets go of the guest: its queues, its descriptors and its memory.
    fn release(&mut self) {
        self.reset();
        // Without queues nothing can fail.
        let _ = self.rings().set_memory(None);
    }
}

/// What others have a worker do.
pub type Job<B> = Box<dyn FnOnce(&mut Worker<B>) + Send>;

/// What woke the worker: the wire, its bell, or from [`FIRST_KICK`] on, a queue's kick.
const WIRE: u64 = 0;
const BELL: u64 = 1;
const FIRST_KICK: u64 = 2;

/// How a driver tells that it has made something available on a queue.
enum Kick {
    /// It writes to an eventfd, of which we hear. It is never read: whoever shares it could make that block.
    Event(File),
    /// Not at all: the queue is looked at all the time.
    Polled,
}

/// What a card lives by.
enum Time {
    /// The machine's time.
    Machine(Clock),
    /// A time of its own, which a worker without a thread says.
    Own(Nanos),
}

/// The worker's own side.
pub struct Worker<B> {
    /// What it runs.
    pub body: B,
    time: Time,
    /// What it was asked to do while there is nothing to do; whether it always spins, for that or another reason.
    poll: PollMode,
    spinning: bool,
    patience: Patience,
    jobs: Receiver<Job<B>>,
    bell: Arc<Bell>,
    epoll: OwnedFd,
    kicks: Vec<Option<Kick>>,
    /// Whether the wire's descriptor wakes us.
    wire_watched: bool,
    stopping: bool,
}

/// The worker's side that others hold.
pub struct WorkerHandle<B>(Runs<B>);

/// Who runs it.
enum Runs<B> {
    /// A thread, which does what is sent to it and is woken for that.
    Thread(Sender<Job<B>>, Arc<Bell>),
    /// Whoever asks.
    Here(Arc<Here<B>>),
}

impl<B> Clone for WorkerHandle<B> {
    fn clone(&self) -> Self {
        WorkerHandle(match &self.0 {
            Runs::Thread(jobs, bell) => Runs::Thread(jobs.clone(), bell.clone()),
            Runs::Here(worker) => Runs::Here(worker.clone()),
        })
    }
}

/// How long a job may take: longer than any that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a job was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The worker has ended.
    #[error("the NIC's worker has ended")]
    Gone,
    /// It takes longer than any job should. The job will be done all the same.
    #[error("the NIC's worker does not answer")]
    Slow,
}

impl From<Ended> for io::Error {
    fn from(ended: Ended) -> Self {
        io::Error::other(ended)
    }
}

impl<B: Body> WorkerHandle<B> {
    /// Runs `job` on the worker's thread, or on this one if it has none, between two bursts, and returns what it returns.
    ///
    /// # Errors
    /// The worker has ended, or is slow.
    pub fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Worker<B>) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (jobs, bell) = match &self.0 {
            Runs::Thread(jobs, bell) => (jobs, bell),
            Runs::Here(worker) => return worker.call(job),
        };
        let (answer, answered) = mpsc::sync_channel(1);
        let job = Box::new(move |worker: &mut Worker<B>| {
            // The caller waits for it below, unless its thread has ended.
            let _ = answer.send(job(worker));
        });
        jobs.send(job).map_err(|_| Ended::Gone)?;
        bell.wake();
        answered
            .recv_timeout(PATIENCE)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => Ended::Slow,
                RecvTimeoutError::Disconnected => Ended::Gone,
            })
    }
}

/// Ends the process when its thread panics: half a NIC is worse than one that a supervisor restarts.
pub(crate) struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// How a worker's thread runs.
#[derive(Clone, Copy, Debug)]
pub struct ThreadConfig {
    /// What its card lives by.
    pub clock: Clock,
    /// What it does that has nothing to do.
    pub poll: PollMode,
    /// The CPU that it is kept on; `None`: any.
    pub cpu: Option<usize>,
}

/// Starts the worker `name`, which is woken by `bell`, for what `make` builds on its thread.
///
/// # Errors
/// The system refuses a thread, its CPU or a descriptor, or the wire cannot be waited for.
pub fn spawn<B: Body>(
    name: String,
    bell: Arc<Bell>,
    make: impl FnOnce(Nanos) -> B + Send + 'static,
    thread: ThreadConfig,
) -> anyhow::Result<(WorkerHandle<B>, JoinHandle<()>)> {
    let ours = bell.clone();
    let (jobs, queue) = mpsc::channel();
    let (ready, started) = mpsc::sync_channel(1);
    let run = move || {
        let _guard = EndOnPanic;
        // Sleeps end on time, not when it suits the kernel (the default slack is 50 us).
        let _ = nix::sys::prctl::set_timerslack(1);
        let ThreadConfig { clock, poll, cpu } = thread;
        // Before anything is made, so that it lies in memory near that CPU.
        let pinned = cpu.map_or(Ok(()), cpus::pin).map_err(anyhow::Error::from);
        let time = Time::Machine(clock);
        let worker = pinned.and_then(|()| Worker::new(make(clock.now()), time, poll, queue, ours));
        match worker {
            Ok(mut worker) => {
                let _ = ready.send(Ok(()));
                worker.run();
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    };
    let thread = thread::Builder::new().name(name).spawn(run)?;
    started.recv().context("the worker ended at once")??;
    Ok((WorkerHandle(Runs::Thread(jobs, bell)), thread))
}

/// A worker without a thread, of what `make` builds: whoever asks something of it runs it, and its time passes only then.
///
/// # Errors
/// The system refuses a descriptor, or the wire cannot be waited for.
pub fn here<B: Body>(
    bell: Arc<Bell>,
    make: impl FnOnce(Nanos) -> B,
) -> anyhow::Result<WorkerHandle<B>> {
    let (_, nobody) = mpsc::channel();
    let (begin, poll) = (Nanos::ZERO, PollMode::Never);
    let worker = Worker::new(make(begin), Time::Own(begin), poll, nobody, bell)?;
    Ok(WorkerHandle(Runs::Here(Arc::new(Here::new(worker)))))
}

impl<B: Body> Worker<B> {
    fn new(
        mut body: B,
        time: Time,
        poll: PollMode,
        jobs: Receiver<Job<B>>,
        bell: Arc<Bell>,
    ) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, bell.event().as_fd(), BELL, epoll::EventFlags::IN)?;
        if let Some(fd) = body.line().and_then(|line| line.wire().readable()) {
            watch(&epoll, fd, WIRE, epoll::EventFlags::IN).context("cannot wait for the wire")?;
        }
        let queues = body.rings().device.queues();
        Ok(Worker {
            body,
            time,
            poll,
            spinning: poll == PollMode::Always,
            patience: Patience::new(poll),
            jobs,
            bell,
            epoll,
            kicks: (0..queues).map(|_| None).collect(),
            wire_watched: true,
            stopping: false,
        })
    }

    fn run(&mut self) {
        let mut idle = 0;
        while !self.stopping {
            let now = self.now();
            let worked = self.body.round(now);
            let asked = self.do_jobs();
            if asked {
                self.spinning = self.polls();
            }
            if worked {
                self.patience.worked(now);
            }
            if worked || asked {
                // It may have asked for kicks before, and queues may have been set up; nobody waits for theirs.
                if asked || idle > IDLE_ROUNDS {
                    self.body.rings().busy();
                }
                idle = 0;
                continue;
            }
            if self.spinning || (idle == IDLE_ROUNDS && self.patience.lasts(now)) {
                if self.spinning && self.poll != PollMode::Always {
                    // Only because a driver does not kick: others are not kept off this CPU for that.
                    thread::yield_now();
                }
                std::hint::spin_loop();
                continue;
            }
            idle += 1;
            if idle > IDLE_ROUNDS {
                self.bell.doze();
                let ready = self.body.idle(self.now());
                // Asking for kicks touches guest memory.
                if !ready && !self.body.rings().device.memory_is_gone() {
                    self.sleep();
                }
                self.bell.rise();
            }
        }
    }

    /// Does what others asked for. Returns whether there was anything.
    fn do_jobs(&mut self) -> bool {
        let mut any = false;
        while let Ok(job) = self.jobs.try_recv() {
            job(self);
            any = true;
        }
        any
    }

    /// Has the wire's descriptor wake us only while the port would take what comes: it stays readable until
    /// somebody reads it, and with an error for ever once the wire is gone.
    fn watch_wire(&mut self, now: Nanos) {
        let Some(line) = self.body.line() else {
            return;
        };
        let wire = line.wire();
        let room = line.port().rx_room(now) > 0 && wire.busy_until() <= now;
        let wanted = room && !wire.is_gone();
        let Some(fd) = line.wire().readable() else {
            return;
        };
        if wanted != self.wire_watched {
            let changed = if wanted {
                watch(&self.epoll, fd, WIRE, epoll::EventFlags::IN)
            } else {
                epoll::delete(&self.epoll, fd).map_err(io::Error::from)
            };
            match changed {
                Ok(()) => self.wire_watched = wanted,
                Err(error) => warn!("cannot change what the wire wakes for: {error}"),
            }
        }
    }

    fn sleep(&mut self) {
        let now = self.now();
        self.watch_wire(now);
        let left = self.body.next_deadline(now).map(|due| due.since(now));
        self.patience.waits.sleeps += 1;
        self.wait(left);
    }

    /// Waits for what wakes us, `longest` at most, and hears what it is. Returns whether there was anything.
    fn wait(&mut self, longest: Option<Duration>) -> bool {
        let timeout = longest.map(|longest| rustix::event::Timespec {
            tv_sec: longest.as_secs() as i64,
            tv_nsec: i64::from(longest.subsec_nanos()),
        });
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        let woken = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((woken, _)) => woken,
            Err(rustix::io::Errno::INTR) => return false,
            Err(error) => {
                // Nothing that a caller could mend; do not spin on it either.
                warn!("cannot wait for events: {error}");
                thread::sleep(Duration::from_millis(10));
                return false;
            }
        };
        for event in &*woken {
            match event.data.u64() {
                WIRE => {}
                BELL => {
                    // Non-blocking; what comes now wakes us again.
                    let _ = self.bell.event().read();
                }
                token => {
                    let queue = (token - FIRST_KICK) as usize;
                    self.body.rings().device.count_kick(queue);
                }
            }
        }
        !woken.is_empty()
    }

    fn polls(&self) -> bool {
        self.poll == PollMode::Always
            || self
                .kicks
                .iter()
                .any(|kick| matches!(kick, Some(Kick::Polled)))
    }

    /// Ends the worker once the present job is done.
    pub fn stop(&mut self) {
        debug!("the worker stops");
        self.stopping = true;
    }

    /// How it has waited so far.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.patience.waits
    }

    /// The present instant on the worker's clock.
    #[must_use]
    pub fn now(&self) -> Nanos {
        match &self.time {
            Time::Machine(clock) => clock.now(),
            Time::Own(now) => *now,
        }
    }
}

impl<B: Body> ServesRings for Worker<B> {
    fn rings(&mut self) -> Rings<'_> {
        self.body.rings()
    }

    fn now(&self) -> Nanos {
        Worker::now(self)
    }

    fn set_kick(&mut self, queue: usize, kick: Option<File>) {
        if let Some(Kick::Event(old)) = self.kicks[queue].take() {
            // It is in the set: it was added below.
            let _ = epoll::delete(&self.epoll, &old);
        }
        let Some(kick) = kick else { return };
        let token = FIRST_KICK + queue as u64;
        // Edge-triggered: each write wakes, though nobody reads.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let watched = is_eventfd(&kick) && watch(&self.epoll, kick.as_fd(), token, flags).is_ok();
        self.kicks[queue] = Some(if watched {
            Kick::Event(kick)
        } else {
            warn!(
                "queue {queue} has no eventfd to be kicked with: the worker looks at it all the time"
            );
            Kick::Polled
        });
    }

    fn reset(&mut self) {
        for queue in 0..self.kicks.len() {
            self.set_kick(queue, None);
        }
        self.body.rings().reset();
    }
}

fn watch(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    token: u64,
    flags: epoll::EventFlags,
) -> io::Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), flags)?;
    Ok(())
}
