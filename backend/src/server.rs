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
use nic_model::port::{Port, PortConfig};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;

use crate::clock::Clock;
use crate::cpus::CpuList;
use crate::engine::{Engine, EngineConfig};
use crate::patience::{PollMode, Waits};
use crate::relay::FrontEnd;
use crate::session::{self, SessionConfig};
use crate::wire::{PortFacts, WireSpec};
use crate::worker::{self, EndOnPanic, Ended};

/// What a NIC is made of.
#[derive(Clone, Debug)]
pub struct NicConfig {
    /// Where it listens for a front-end.
    pub socket: PathBuf,
    /// The card.
    pub port: PortConfig,
    /// What is offered to drivers.
    pub features: Features,
    /// What its line is plugged into.
    pub wire: WireSpec,
    /// Workers: one runs the whole card, of more each has some of the queue pairs, and the port a thread of its own.
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
    /// How the workers waited.
    #[serde(flatten)]
    pub waits: Waits,
    /// The wire's own counts.
    pub wire_counters: serde_json::Map<String, serde_json::Value>,
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
        let socket = config.socket.clone();
        let listener = listen(&socket)?;
        Self::start_behind(&listener, config).inspect_err(|_| remove(&socket))
    }

    fn start_behind(listener: &UnixListener, config: NicConfig) -> anyhow::Result<Self> {
        let facts = PortFacts {
            mac: config.port.mac,
            mtu: config.port.mtu,
            speed: config.port.speed,
        };
        let wire = config.wire.open(&facts)?;
        let (engine, threads) = Engine::start(EngineConfig {
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
        })?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_flags(flags)?);
        let mut server = NicServer {
            socket: config.socket,
            engine: engine.clone(),
            front_end: Arc::default(),
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
            front_end: server.front_end.clone(),
        };
        let listener = listener.try_clone()?;
        let accept = move || accept(&listener, &session, &stop);
        let thread = thread::Builder::new()
            .name("nic-accept".into())
            .spawn(accept)?;
        server.accept_thread = Some(thread);
        Ok(server)
    }

    /// Brings the link up or down, and tells the driver. Returns whether that was a change.
    ///
    /// # Errors
    /// The NIC has ended.
    pub fn set_link(&self, up: bool) -> Result<bool, Ended> {
        let changed = self.engine.line(move |line, now| line.set_link(now, up))?;
        if changed {
            info!("link {}", if up { "up" } else { "down" });
            self.front_end.config_changed();
        }
        Ok(changed)
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
        let (nic, waits) = self.engine.status()?;
        let wire_counters = self.engine.line(|line, _| line.wire().counters())?;
        Ok(ServerStatus {
            socket: self.socket.display().to_string(),
            wire: self.wire.to_string(),
            connections: self.front_end.connections.load(Ordering::Relaxed),
            refused_messages: self.front_end.refused.load(Ordering::Relaxed),
            waits,
            wire_counters: wire_counters
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count.into()))
                .collect(),
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
