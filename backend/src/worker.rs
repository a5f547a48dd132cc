//! The worker: a thread that owns a card and runs it to completion.
//!
//! It moves bursts until nothing is left to do. Then, in interrupt mode, it asks the driver for kicks, looks once
//! more, and sleeps until a kick, the wire, a deadline or a job wakes it; in poll mode it spins. Whoever else
//! wants something of the card sends a job, which runs between two bursts: so there are no locks, and
//! when [`WorkerHandle::call`] returns, what it asked for has happened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use log::{debug, warn};
use nic_device::interrupt::is_eventfd;
use nic_model::time::Nanos;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::event::epoll;

use crate::card::Card;
use crate::clock::Clock;

/// How far the card may run ahead of the clock: about what a thread is late that sleeps, or, with `poll`, one that spins
/// and has a burst at hand.
#[must_use]
pub const fn lead(poll: bool) -> Duration {
    Duration::from_micros(if poll { 5 } else { 100 })
}

/// Rounds without work that the worker makes before it sleeps: a driver that answers at once is not waited
/// for asleep.
const IDLE_ROUNDS: u32 = 3;

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// What woke the worker: the wire, a job, or from [`FIRST_KICK`] on, a queue's kick.
const WIRE: u64 = 0;
const JOB: u64 = 1;
const FIRST_KICK: u64 = 2;

/// How a driver tells that it has made something available on a queue.
enum Kick {
    /// It writes to an eventfd, of which we hear. It is never read: whoever shares it could make that block.
    Event(File),
    /// Not at all: the queue is looked at all the time.
    Polled,
}

/// The worker's own side.
pub struct Worker {
    /// The card and its wire.
    pub card: Card,
    clock: Clock,
    /// Whether it was asked to spin; whether it does, for that or another reason.
    poll: bool,
    spinning: bool,
    jobs: Receiver<Job>,
    wake: Arc<EventFd>,
    epoll: OwnedFd,
    kicks: Vec<Option<Kick>>,
    /// Whether the wire's descriptor wakes us.
    wire_watched: bool,
    stopping: bool,
    /// Times that it slept.
    pub sleeps: u64,
}

/// The worker's side that others hold.
#[derive(Clone)]
pub struct WorkerHandle {
    jobs: Sender<Job>,
    wake: Arc<EventFd>,
}

/// How long a job may take: longer than any that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// The worker has ended.
#[derive(Debug, thiserror::Error)]
#[error("the NIC's worker has ended, or does not answer")]
pub struct Ended;

impl From<Ended> for io::Error {
    fn from(ended: Ended) -> Self {
        io::Error::other(ended)
    }
}

impl WorkerHandle {
    /// Runs `job` on the worker's thread, between two bursts, and returns what it returns.
    ///
    /// # Errors
    /// The worker has ended.
    pub fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (answer, answered) = mpsc::sync_channel(1);
        let job = Box::new(move |worker: &mut Worker| {
            // The caller waits for it below, unless its thread has ended.
            let _ = answer.send(job(worker));
        });
        self.jobs.send(job).map_err(|_| Ended)?;
        self.wake.write(1).map_err(|_| Ended)?;
        answered.recv_timeout(PATIENCE).map_err(|_| Ended)
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

/// Starts a worker for the card that `make` builds on its thread and that lives by `clock`.
///
/// # Errors
/// The system refuses a thread or a descriptor, or the wire cannot be waited for.
pub fn spawn(
    make: impl FnOnce(Nanos) -> Card + Send + 'static,
    clock: Clock,
    poll: bool,
) -> anyhow::Result<(WorkerHandle, JoinHandle<()>)> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let wake = Arc::new(EventFd::from_flags(flags)?);
    let ours = wake.clone();
    let (jobs, queue) = mpsc::channel();
    let (ready, started) = mpsc::sync_channel(1);
    let run = move || {
        let _guard = EndOnPanic;
        // Sleeps end on time, not when it suits the kernel (the default slack is 50 us).
        let _ = nix::sys::prctl::set_timerslack(1);
        let card = make(clock.now());
        let worker = Worker::new(card, clock, poll, queue, ours);
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
    let thread = thread::Builder::new()
        .name("nic-worker".into())
        .spawn(run)?;
    started.recv().context("the worker ended at once")??;
    Ok((WorkerHandle { jobs, wake }, thread))
}

impl Worker {
    fn new(
        card: Card,
        clock: Clock,
        poll: bool,
        jobs: Receiver<Job>,
        wake: Arc<EventFd>,
    ) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, wake.as_fd(), JOB, epoll::EventFlags::IN)?;
        if let Some(fd) = card.wire().readable() {
            watch(&epoll, fd, WIRE, epoll::EventFlags::IN).context("cannot wait for the wire")?;
        }
        let queues = card.nic.device.queues();
        Ok(Worker {
            card,
            clock,
            poll,
            spinning: poll,
            jobs,
            wake,
            epoll,
            kicks: (0..queues).map(|_| None).collect(),
            wire_watched: true,
            stopping: false,
            sleeps: 0,
        })
    }

    fn run(&mut self) {
        let mut idle = 0;
        while !self.stopping {
            let worked = self.card.round(self.clock.now());
            let asked = self.do_jobs();
            if asked {
                self.spinning = self.polls();
                if self.spinning {
                    // Queues may have been set up; nobody waits for their kicks.
                    self.card.nic.rings().busy();
                }
            }
            if self.spinning {
                if !worked {
                    std::hint::spin_loop();
                }
                continue;
            }
            if worked || asked {
                if idle > IDLE_ROUNDS {
                    self.card.nic.rings().busy();
                }
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > IDLE_ROUNDS && !self.card.nic.idle(self.clock.now()) {
                self.sleep();
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
        let wanted = self.card.nic.port.rx_room(now) > 0 && !self.card.wire().is_gone();
        let Some(fd) = self.card.wire().readable() else {
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
        let now = self.clock.now();
        self.watch_wire(now);
        let timeout = self.card.next_deadline(now).map(|due| {
            let left = due.since(now);
            rustix::event::Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        self.sleeps += 1;
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        let woken = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((woken, _)) => woken,
            Err(rustix::io::Errno::INTR) => return,
            Err(error) => {
                // Nothing that a caller could mend; do not spin on it either.
                warn!("cannot wait for events: {error}");
                thread::sleep(Duration::from_millis(10));
                return;
            }
        };
        for event in woken {
            match event.data.u64() {
                WIRE => {}
                JOB => {
                    // Non-blocking; a job that comes now wakes us again.
                    let _ = self.wake.read();
                }
                token => {
                    let queue = (token - FIRST_KICK) as usize;
                    self.card.nic.device.count_kick(queue);
                }
            }
        }
    }

    /// Hears of kicks of `queue` through `kick`, an eventfd, instead of what was before. Anything else that is not
    /// an eventfd stands for none: the queue is polled.
    pub fn set_kick(&mut self, queue: usize, kick: Option<File>) {
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

    fn polls(&self) -> bool {
        self.poll
            || self
                .kicks
                .iter()
                .any(|kick| matches!(kick, Some(Kick::Polled)))
    }

    /// Resets what the driver and the front-end set up.
    pub fn reset(&mut self) {
        for queue in 0..self.kicks.len() {
            self.set_kick(queue, None);
        }
        self.card.nic.reset();
    }

    /// Lets go of the guest: its queues, its descriptors and its memory.
    pub fn release(&mut self) {
        self.reset();
        // Without queues nothing can fail.
        let _ = self.card.nic.device.set_memory(None);
    }

    /// Ends the worker once the present job is done.
    pub fn stop(&mut self) {
        debug!("the worker stops");
        self.stopping = true;
    }

    /// The present instant on the worker's clock.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.clock.now()
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
