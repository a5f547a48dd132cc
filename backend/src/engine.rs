//! The threads that run a card, as others see them: who serves which ring, and who has the line.

use std::sync::Arc;
use std::thread::JoinHandle;

use nic_device::features::Features;
use nic_device::nic::{Nic, NicStatus};
use nic_model::port::{Port, PortConfig};
use nic_model::time::Nanos;

use crate::card::{Card, Line, Watch};
use crate::clock::Clock;
use crate::cpus::CpuList;
use crate::lane::Bell;
use crate::patience::{PollMode, Waits};
use crate::server::thread_name;
use crate::split::{self, PortSide, QueueSide};
use crate::wire::Wire;
use crate::wire::fault::FaultStatus;
use crate::worker::{self, Ended, ServesRings, ThreadConfig, WorkerHandle};

/// What runs a card.
#[derive(Clone)]
pub enum Engine {
    /// One worker runs all of it to completion.
    Whole(WorkerHandle<Card>),
    /// The port and the control queue have a thread, the queue pairs are dealt out to workers.
    Split(WorkerHandle<PortSide>, Arc<[WorkerHandle<QueueSide>]>),
}

/// What an engine is made of.
pub struct EngineConfig {
    /// What the card is called in the log, if it is not the only one of the process.
    pub name: Option<String>,
    /// The card.
    pub port: PortConfig,
    /// What is offered to drivers.
    pub features: Features,
    /// What its line is plugged into.
    pub wire: Box<dyn Wire>,
    /// Workers: one runs the whole card, of more each has some of the queue pairs. With none, who asks for something runs it.
    pub workers: u16,
    /// What they do that have nothing to do.
    pub poll: PollMode,
    /// The CPUs that they are kept on.
    pub cpus: CpuList,
    /// What they live by; a card without workers has a time of its own.
    pub clock: Clock,
    /// Who hears of the link.
    pub watch: Watch,
}

/// An engine's state and counts. The card's, its wire's and its faults' are of one instant.
pub struct EngineStatus {
    /// The card's.
    pub nic: NicStatus,
    /// How its threads have waited.
    pub waits: Waits,
    /// The wire's counts, by name.
    pub wire: Vec<(&'static str, u64)>,
    /// The faults of the line.
    pub faults: FaultStatus,
}

impl EngineStatus {
    fn of(nic: NicStatus, waits: Waits, line: &mut dyn Line) -> Self {
        EngineStatus {
            nic,
            waits,
            wire: line.wire().counters(),
            faults: line.faults(),
        }
    }
}

/// Who serves a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Whoever has the port.
    Port,
    /// A worker, by number.
    Worker(usize),
}

impl Engine {
    /// Starts the threads. They end when [`Engine::stop`] is called.
    ///
    /// # Errors
    /// The system refuses a thread, its CPU or a descriptor, or the wire cannot be waited for.
    pub fn start(config: EngineConfig) -> anyhow::Result<(Self, Vec<JoinHandle<()>>)> {
        let EngineConfig {
            name,
            port,
            features,
            wire,
            workers,
            poll,
            cpus,
            clock,
            watch,
        } = config;
        let called = |what: &str| thread_name(what, name.as_deref());
        let thread = |number| ThreadConfig {
            clock,
            poll,
            cpu: cpus.of(number),
        };
        let bell = Arc::new(Bell::new()?);
        if workers <= 1 {
            let make = move |now| {
                let mut card = Card::new(Nic::new(&port, features), wire, now);
                card.watch = Some(watch);
                card
            };
            if workers == 0 {
                let worker = worker::here(bell, make)?;
                return Ok((Engine::Whole(worker), Vec::new()));
            }
            let (worker, running) = worker::spawn(called("nic-worker"), bell, make, thread(0))?;
            return Ok((Engine::Whole(worker), vec![running]));
        }
        let bells = (0..workers).map(|_| Bell::new().map(Arc::new));
        let bells: Vec<_> = bells.collect::<nix::Result<_>>()?;
        let (lanes, theirs) = split::lanes(&port, &bell, &bells);
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for (number, (bell, lanes)) in bells.into_iter().zip(theirs).enumerate() {
            let config = port.clone();
            let make = move |_| QueueSide::new(&config, features, lanes);
            let name = called(&format!("nic-worker-{number}"));
            let (worker, running) = worker::spawn(name, bell, make, thread(number + 1))?;
            handles.push(worker);
            threads.push(running);
        }
        let workers: Arc<[_]> = handles.into();
        let asked = workers.clone();
        let make = move |now| {
            let mut side = PortSide::new(&port, features, wire, now, lanes, asked);
            side.watch = Some(watch);
            side
        };
        let (port, running) = worker::spawn(called("nic-port"), bell, make, thread(0))?;
        threads.push(running);
        Ok((Engine::Split(port, workers), threads))
    }

    /// Who serves virtqueue `index` if the control queue is `control`.
    #[must_use]
    pub fn server(&self, index: usize, control: Option<usize>) -> Server {
        match self {
            Engine::Split(_, workers) if Some(index) != control => {
                Server::Worker(split::worker_of(index / 2, workers.len()))
            }
            _ => Server::Port,
        }
    }

    /// Runs `job` with the rings that `server` serves, between two bursts.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn ring<R: Send + 'static>(
        &self,
        server: Server,
        job: impl FnOnce(&mut dyn ServesRings) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        match (self, server) {
            (Engine::Whole(worker), _) => worker.call(move |worker| job(worker)),
            (Engine::Split(port, _), Server::Port) => port.call(move |worker| job(worker)),
            (Engine::Split(_, workers), Server::Worker(number)) => {
                workers[number].call(move |worker| job(worker))
            }
        }
    }

    /// Runs `job` with all rings, those of one thread after those of another, and returns what each returned.
    ///
    /// # Errors
    /// A thread has ended.
    pub fn rings<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn ServesRings) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Ended> {
        let workers = match self {
            Engine::Whole(_) => 0,
            Engine::Split(_, workers) => workers.len(),
        };
        let workers = (0..workers).map(Server::Worker);
        let servers = [Server::Port].into_iter().chain(workers);
        // All of them are asked, whatever the first says.
        let done: Vec<_> = servers
            .map(|server| self.ring(server, job.clone()))
            .collect();
        done.into_iter().collect()
    }

    /// Runs `job` with the port and its wire, between two bursts; it is told the time.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn line<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Line, Nanos) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        match self {
            Engine::Whole(worker) => worker.call(move |worker| {
                let now = worker.now();
                job(&mut worker.body, now)
            }),
            Engine::Split(port, _) => port.call(move |worker| {
                let now = worker.now();
                job(&mut worker.body, now)
            }),
        }
    }

    /// Changes the port, between two bursts.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn port<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Port) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        self.line(move |line, _| job(line.plug().0))
    }

    /// The state and counts of all of it.
    ///
    /// # Errors
    /// A thread has ended.
    pub fn status(&self) -> Result<EngineStatus, Ended> {
        match self {
            Engine::Whole(worker) => worker.call(|worker| {
                let nic = worker.body.nic.status();
                EngineStatus::of(nic, worker.waits(), &mut worker.body)
            }),
            Engine::Split(port, workers) => {
                let mut status = port.call(|worker| {
                    let nic = worker.body.status();
                    EngineStatus::of(nic, worker.waits(), &mut worker.body)
                })?;
                for worker in workers.iter() {
                    status.waits += worker.call(|worker| worker.waits())?;
                }
                Ok(status)
            }
        }
    }

    /// Ends the threads.
    ///
    /// # Errors
    /// One has ended already, or does not answer; it need not be waited for.
    pub fn stop(&self) -> Result<(), Ended> {
        match self {
            Engine::Whole(worker) => worker.call(worker::Worker::stop),
            Engine::Split(port, workers) => {
                // The port first: it asks the workers.
                port.call(worker::Worker::stop)?;
                let stopped = workers
                    .iter()
                    .map(|worker| worker.call(worker::Worker::stop));
                stopped.collect()
            }
        }
    }
}
