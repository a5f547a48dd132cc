//! One NIC with its socket and its threads.
//!
//! The socket takes one front-end at a time; the next one waits in the socket's queue until the present one is
//! gone. The card stays as it is meanwhile, counters and all.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use anyhow::{Context, bail};
use log::{error, info};
use nic_device::features::Features;
use nic_device::nic::NicStatus;
use nic_model::host::Direction;
use nic_model::phy::{Phy, Seen};
use nic_model::port::{Port, PortConfig};
use nic_model::time::Nanos;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;

use crate::clock::Clock;
use crate::cpus::CpuList;
use crate::engine::{Engine, EngineConfig, EngineStatus};
use crate::patience::{PollMode, Waits};
use crate::relay::FrontEnd;
use crate::session::{self, SessionConfig};
use crate::settings::Settings;
use crate::wire::fault::{FaultSpec, FaultStatus};
use crate::wire::{PortFacts, Wire, WireSpec};
use crate::worker::{self, EndOnPanic, Ended};

/// What a NIC is made of.
#[derive(Clone, Debug)]
pub struct NicConfig {
    /// What it is called in the log, if it is not the only one of the process.
    pub name: Option<String>,
    /// Where it listens for a front-end.
    pub socket: PathBuf,
    /// The card.
    pub port: PortConfig,
    /// What is offered to drivers.
    pub features: Features,
    /// What its line is plugged into.
    pub wire: WireSpec,
    /// What goes wrong on purpose.
    pub fault: FaultSpec,
    /// Workers: one runs the whole card, of more each has some of the queue pairs, and the port a thread of its own. With none,
    /// which is for tests, the card runs while it is asked for something, in a time of its own ([`worker::here`]).
    pub workers: u16,
    /// What they do that have nothing to do.
    pub poll: PollMode,
    /// The CPUs that they are kept on.
    pub cpus: CpuList,
    /// Whether each message of the protocol is logged.
    pub trace: bool,
    /// The card's clock: the instants that a generator writes into its frames are on it.
    pub clock: Clock,
}

/// What a thread that is `what` is called, of the NIC that is called `nic`; a lone one has no name.
pub(crate) fn thread_name(what: &str, nic: Option<&str>) -> String {
    match nic {
        None => what.to_owned(),
        Some(nic) => format!("{what}@{nic}"),
    }
}

/// The name of the NIC whose thread this is, if it is one's that has a name.
#[must_use]
pub fn nic_of_this_thread() -> Option<String> {
    let thread = thread::current();
    let (_, nic) = thread.name()?.split_once('@')?;
    Some(nic.to_owned())
}

/// A NIC that runs. It stops, and its socket is removed, when it is dropped.
pub struct NicServer {
    socket: PathBuf,
    engine: Engine,
    front_end: Arc<FrontEnd>,
    wire: WireSpec,
    stop: Arc<EventFd>,
    accept_thread: Option<JoinHandle<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// What a NIC has done and where it stands, at one instant.
#[derive(Clone, Debug, Serialize)]
pub struct ServerStatus {
    /// Its socket.
    pub socket: String,
    /// Its wire.
    pub wire: String,
    /// Front-ends that have connected so far.
    pub connections: u64,
    /// Messages of theirs that were refused.
    pub refused_messages: u64,
    /// Connections that ended because guest memory was taken away: its file was cut short.
    pub memory_gone: u64,
    /// Reads of the configuration space that gave what was never there, on purpose.
    pub config_tears: u64,
    /// How the workers waited.
    #[serde(flatten)]
    pub waits: Waits,
    /// The wire's own counts.
    pub wire_counters: serde_json::Map<String, serde_json::Value>,
    /// What goes wrong on the line on purpose, and how often it did. What does so at the queues, these count.
    pub faults: FaultStatus,
    /// The card.
    #[serde(flatten)]
    pub nic: NicStatus,
}

impl NicServer {
    /// Starts a NIC. When this returns, front-ends can connect.
    ///
    /// # Errors
    /// The socket or the wire cannot be opened; the message says why.
    pub fn start(config: NicConfig) -> anyhow::Result<Self> {
        Self::start_with(config, |wire, facts| Ok(wire.open(facts)?))
    }

    /// The same on the wire that `open` gives: one of the caller's own, which no user could ask for.
    ///
    /// # Errors
    /// The socket cannot be opened, or `open` fails; the message says why.
    pub fn start_with(
        config: NicConfig,
        open: impl FnOnce(&WireSpec, &PortFacts) -> anyhow::Result<Box<dyn Wire>>,
    ) -> anyhow::Result<Self> {
        let socket = config.socket.clone();
        let listener = listen(&socket)?;
        let wire = open(&config.wire, &PortFacts::of(&config.port));
        wire.and_then(|wire| Self::start_behind(&listener, config, wire))
            .inspect_err(|_| remove(&socket))
    }

    fn start_behind(
        listener: &UnixListener,
        config: NicConfig,
        wire: Box<dyn Wire>,
    ) -> anyhow::Result<Self> {
        let front_end = Arc::<FrontEnd>::default();
        let told = front_end.clone();
        let watch = move |seen: Seen| {
            if seen.link {
                let (speed, duplex) = (seen.mode.speed, seen.mode.duplex.name());
                info!("link up at {speed}b/s, {duplex} duplex");
            } else {
                info!("link down");
            }
            told.config_changed();
        };
        let (engine, threads) = Engine::start(EngineConfig {
            name: config.name.clone(),
            port: PortConfig {
                lead: worker::lead(config.poll),
                ..config.port.clone()
            },
            features: config.features,
            wire,
            workers: config.workers,
            poll: config.poll,
            cpus: config.cpus,
            clock: config.clock,
            watch: Box::new(watch),
        })?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_flags(flags)?);
        let mut server = NicServer {
            socket: config.socket,
            engine: engine.clone(),
            front_end,
            wire: config.wire,
            stop: stop.clone(),
            accept_thread: None,
            threads,
        };
        let session = SessionConfig {
            engine,
            offered: config.features,
            queues: 2 * usize::from(config.port.queue_pairs) + 1,
            trace: config.trace,
            name: config.name.clone(),
            front_end: server.front_end.clone(),
        };
        let listener = listener.try_clone()?;
        let accept = move || accept(&listener, &session, &stop);
        let thread = thread::Builder::new()
            .name(thread_name("nic-accept", config.name.as_deref()))
            .spawn(accept)?;
        server.accept_thread = Some(thread);
        if !config.fault.is_none() {
            server.set_faults(config.fault)?;
        }
        Ok(server)
    }

    /// Has the faults of `spec` from now on, instead of those of before.
    ///
    /// # Errors
    /// The NIC has ended.
    pub fn set_faults(&self, spec: FaultSpec) -> Result<(), Ended> {
        self.engine.line(move |line, now| line.inject(&spec, now))?;
        self.engine.rings(move |rings| {
            let now = rings.now();
            rings.rings().set_faults(spec.host, spec.seed, now);
        })?;
        let tear = spec.host.lies.config_tear;
        self.front_end.set_tears(tear, spec.seed);
        info!("faults: {spec}");
        Ok(())
    }

    /// Changes what `settings` say.
    ///
    /// # Errors
    /// The card cannot do that, and then nothing is changed; or the NIC has ended.
    pub fn set(&self, settings: &Settings) -> anyhow::Result<()> {
        let asked = *settings;
        if let Some(reason) = self.engine.port(move |port| asked.unfit(port))? {
            bail!(reason);
        }
        if let Some(speed) = settings.speed {
            let (can, highest) = self.phy(move |phy, now| {
                let can = phy.set_speed(now, speed);
                (can, phy.abilities().highest())
            })?;
            if !can {
                let highest =
                    highest.map_or_else(String::new, |mode| format!(", at most {}", mode.speed));
                bail!(
                    "this card cannot do {speed}b/s: it does what serve --speed says{highest}, and below it what its kind of cable has"
                );
            }
            info!("line rate: {speed}b/s");
        }
        if let Some(rate) = settings.rate {
            self.engine.port(move |port| port.set_rates(rate.0))?;
            info!("rate limits: {rate}");
        }
        if let Some(pfc) = settings.pfc {
            let priorities = pfc.0.unwrap_or_default();
            self.engine.port(move |port| port.set_pfc(priorities))?;
            info!("flow control of priorities: {pfc}");
        }
        if let Some(weights) = settings.tx_weights {
            self.engine
                .port(move |port| port.set_tx_weights(weights.0))?;
            info!("weights of transmit queues: {weights}");
        }
        if let Some(coalesce) = settings.coalesce {
            self.engine.rings(move |rings| {
                let now = rings.now();
                let moderator = &mut rings.rings().queues.moderator;
                moderator.set_initial(Direction::Receive, coalesce.rx, now);
                moderator.set_initial(Direction::Transmit, coalesce.tx, now);
            })?;
            info!("interrupt moderation: {coalesce}");
        }
        Ok(())
    }

    /// What goes wrong on the line on purpose, and what came of it.
    ///
    /// # Errors
    /// The NIC has ended.
    pub fn faults(&self) -> Result<FaultStatus, Ended> {
        self.engine.line(|line, _| line.faults())
    }

    /// Plugs the cable in, or pulls it out, and tells the driver. Returns whether the link has changed: with auto-negotiation it comes
    /// up later.
    ///
    /// # Errors
    /// The NIC has ended.
    pub fn set_link(&self, up: bool) -> Result<bool, Ended> {
        self.engine.line(move |line, now| line.set_link(now, up))
    }

    /// Changes the physical layer, at an instant that `change` is told, and tells the driver what comes of it.
    ///
    /// # Errors
    /// The NIC has ended.
    pub fn phy<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Phy, Nanos) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        self.engine.line(move |line, now| {
            let (mut change, mut result) = (Some(change), None);
            line.change_phy(now, &mut |phy| {
                result = change.take().map(|change| change(phy, now));
            });
            result.expect("it is called once")
        })
    }

    /// Asks the driver to tell its neighbours where it is. Returns whether there is one that can be asked.
    ///
    /// # Errors
    /// The NIC has ended.
    pub fn announce(&self) -> Result<bool, Ended> {
        let asked = self.engine.port(Port::ask_to_announce)?;
        if asked {
            info!("the driver is asked to announce itself");
            self.front_end.config_changed();
        }
        Ok(asked)
    }

    /// All counts.
    ///
    /// # Errors
    /// The NIC has ended.
    pub fn status(&self) -> Result<ServerStatus, Ended> {
        let EngineStatus {
            nic,
            waits,
            wire,
            faults,
        } = self.engine.status()?;
        Ok(ServerStatus {
            socket: self.socket.display().to_string(),
            wire: self.wire.to_string(),
            connections: self.front_end.connections.load(Ordering::Relaxed),
            refused_messages: self.front_end.refused.load(Ordering::Relaxed),
            memory_gone: self.front_end.memory_gone.load(Ordering::Relaxed),
            config_tears: self.front_end.torn(),
            waits,
            wire_counters: wire
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count.into()))
                .collect(),
            faults,
            nic,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for NicServer {
    fn drop(&mut self) {
        // If the eventfd or the worker is gone already, so are those who would hear of it.
        let _ = self.stop.write(1);
        if let Some(thread) = self.accept_thread.take() {
            let _ = thread.join();
        }
        // No connection is left. A worker that does not answer is not waited for.
        if self.engine.stop().is_ok() {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
        remove(&self.socket);
    }
}

/// Binds the socket. One that a dead process left behind is replaced; one that somebody listens on is not.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Ok(there) = fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            bail!(
                "{} exists and is no socket; choose another path",
                path.display()
            );
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => bail!("cannot tell who listens on {}: {error}", path.display()),
            Ok(_) => bail!(
                "somebody listens on {} already; choose another path",
                path.display()
            ),
        }
        fs::remove_file(path)
            .with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
    }
    UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))
}

fn remove(socket: &Path) {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            error!("cannot remove {}: {error}", socket.display());
        }
        _ => {}
    }
}

/// Serves one front-end after the other until `stop` is readable.
fn accept(listener: &UnixListener, session: &SessionConfig, stop: &EventFd) {
    let _guard = EndOnPanic;
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                error!("cannot wait for front-ends: {error}");
                return;
            }
        }
        if fds[1].any().unwrap_or(true) {
            return;
        }
        if !fds[0].any().unwrap_or(false) {
            continue;
        }
        let front = match listener.accept() {
            Ok((front, _)) => front,
            Err(error) => {
                error!("cannot accept a front-end: {error}");
                thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
        };
        session
            .front_end
            .connections
            .fetch_add(1, Ordering::Relaxed);
        info!("a front-end connected");
        if let Err(error) = session::serve(front, listener, session, stop) {
            error!("the connection cannot be served: {error:#}");
        }
    }
}
