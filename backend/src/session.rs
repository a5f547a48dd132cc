//! One front-end's connection, from the first message to the last.
//!
//! A session joins three parties: the front-end's socket, the [`relay`](crate::relay) behind it, and the crate
//! vhost-user-backend, which keeps the protocol's state and calls `NicBackend`. What it is told goes to the
//! workers as jobs. When the connection ends, however it ends, they let go of the guest's memory.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, anyhow};
use log::{debug, info, warn};
use nic_device::config;
use nic_device::features::Features;
use nic_device::memory::{Cut, GuestMemory};
use nic_device::nic::set_port_features;
use nic_device::ring::{BadRing, Layout};
use nic_device::vring::Vring;
use nic_model::host::QueueIndex;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::engine::{Engine, Server};
use crate::relay::{FrontEnd, Relay};
use crate::server::thread_name;
use crate::vring::{Memory, NicVring, Said, with_session};
use crate::worker::{Ended, ServesRings};

/// Memory regions that a front-end may have at once: what the crate answers to GET_MAX_MEM_SLOTS.
const MAX_MEM_SLOTS: usize = 509;

/// What the rings and the crate's callbacks share.
pub struct Session {
    engine: Engine,
    state: Mutex<State>,
    rings: Vec<Mutex<Said>>,
    /// Written to when guest memory was taken away.
    alarm: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    memory: Option<Arc<GuestMemory>>,
    /// What was taken away of a memory table of before.
    cut: Option<Cut>,
    /// Why the memory that the front-end gave last cannot be used.
    unusable: Option<String>,
    acked: Features,
    /// What the port was told last of how to steer.
    steering: Steering,
}

/// How the port steers by what is known of the rings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Steering {
    /// Whether the driver says how many queue pairs it uses: its control queue is ours.
    commanded: bool,
    /// Queue pairs up to the last one that receives, if it does not.
    pairs: u16,
    /// Whether each queue receives.
    receives: Vec<bool>,
}

impl Session {
    /// Runs `job` with whoever serves ring `index`. `None` if that thread has ended: then the process is about to.
    pub(crate) fn ring<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut dyn ServesRings) -> R + Send + 'static,
    ) -> Option<R> {
        let server = self.server(index, self.state().acked);
        self.engine.ring(server, job).ok()
    }

    /// Who serves ring `index` if the driver accepted `acked`.
    fn server(&self, index: usize, acked: Features) -> Server {
        let pairs = (self.rings.len() / 2) as u16;
        self.engine.server(index, acked.control_queue(pairs))
    }

    /// What the front-end has said about ring `index`.
    pub(crate) fn said(&self, index: usize) -> MutexGuard<'_, Said> {
        self.rings[index].lock().expect("no holder panics")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Has the port steer by the rings as they are now. Where the driver's control queue is not ours, it uses the queue
    /// pairs that are enabled.
    pub(crate) fn steer(&self) {
        let pairs = (self.rings.len() / 2) as u16;
        let control = self.state().acked.control_queue(pairs);
        let runs = |index: usize| Some(index) != control && self.said(index).runs();
        let receives: Vec<_> = (0..pairs).map(|pair| runs(2 * usize::from(pair))).collect();
        let last = receives.iter().rposition(|&receives| receives);
        let commanded = control.is_some_and(|control| self.said(control).is_set_up());
        let steering = Steering {
            commanded,
            pairs: match last {
                Some(last) if !commanded => last as u16 + 1,
                _ => 1,
            },
            receives,
        };
        let before = std::mem::replace(&mut self.state().steering, steering.clone());
        if before == steering {
            return;
        }
        if before.commanded != steering.commanded {
            // A new driver, or none that could have said so.
            let all_on = |rings: &mut dyn ServesRings| {
                let device = rings.rings().device;
                device.switch_offloads_off(Features::empty());
            };
            let _ = self.engine.rings(all_on);
        }
        // If the thread has ended, the process is about to.
        let _ = self.engine.port(move |port| {
            if before.commanded != steering.commanded {
                port.rsc.restore();
            }
            for (queue, receives) in (0..).map(QueueIndex).zip(&steering.receives) {
                port.set_receiving(queue, *receives);
            }
            if (before.commanded, before.pairs) != (steering.commanded, steering.pairs) {
                // There are as many.
                let _ = port.use_pairs(steering.pairs);
            }
        });
    }

    /// Has ring `index` set up as it stands now, if it is complete.
    pub(crate) fn set_up(&self, index: usize) {
        let Some((setup, base)) = self.said(index).setup(index) else {
            return;
        };
        let pairs = (self.rings.len() / 2) as u16;
        if self.state().acked.control_queue(pairs) == Some(index) {
            // Before the first command is done, which says how to steer.
            self.steer();
        }
        let result = self.ring(index, move |rings| rings.rings().set_up(index, setup));
        match result {
            Some(Ok(next)) => {
                self.said(index).has_begun();
                if let Some(base) = base.filter(|&base| base != next) {
                    info!(
                        "queue {index}: the front-end says to go on at {base}, the ring says {next}: that it is"
                    );
                }
            }
            Some(Err(error)) => warn!("queue {index} cannot be set up: {error}"),
            _ => {}
        }
        self.steer();
    }

    /// Sets up the rings that were lost when memory or features changed, now that they may be possible again.
    fn set_up_lost(&self) {
        for index in 0..self.rings.len() {
            let position = self.ring(index, move |rings| rings.rings().device.position(index));
            if position == Some(None) {
                self.set_up(index);
                let kick = self.said(index).kick(index);
                self.ring(index, move |rings| rings.set_kick(index, kick));
            }
        }
    }

    /// The driver accepted `acked`. A ring that has somebody else to serve it now, since it is for control or no more,
    /// goes to him.
    fn accept(&self, acked: Features) {
        let before = std::mem::replace(&mut self.state().acked, acked);
        for index in 0..self.rings.len() {
            let server = self.server(index, before);
            if server != self.server(index, acked) {
                let stopped = self.engine.ring(server, move |rings| {
                    rings.set_kick(index, None);
                    rings.rings().tear_down(index)
                });
                // If the thread has ended, the process is about to.
                if let Ok(Some(next)) = stopped {
                    self.said(index).goes_on_at(next);
                }
            }
        }
        let _ = self.engine.port(move |port| set_port_features(port, acked));
        let set = self
            .engine
            .rings(move |rings| rings.rings().set_features(acked));
        for error in set.into_iter().flatten().filter_map(Result::err) {
            warn!("a queue cannot go on with these features: {error}");
        }
        self.steer();
        self.set_up_lost();
    }

    /// Lets go of what the driver and the front-end set up, by way of `job` where there are rings.
    fn reset(&self, job: fn(&mut dyn ServesRings)) {
        // Whoever is slow still has the guest's memory: he is waited for. If a thread has ended, the process is about to.
        while let Err(Ended::Slow) = self.engine.rings(job) {
            warn!("the NIC's workers are slow to let go of the guest");
        }
        let _ = self.engine.line(|line, _| line.reset());
        self.state().steering = Steering::default();
    }

    /// Virtqueue `index` is out of use. What a queue has sent and is held back for its priority is not to leave later.
    pub(crate) fn abandon(&self, index: usize) {
        let queue = QueueIndex((index / 2) as u16);
        let pairs = (self.rings.len() / 2) as u16;
        if index % 2 == 1 && queue.0 < pairs {
            // If the thread has ended, the process is about to.
            let _ = self.engine.line(move |line, _| line.abandon(queue));
        }
    }

    /// What was taken away of guest memory, if something was.
    fn cut(&self) -> Option<Cut> {
        let state = self.state();
        let present = state.memory.as_ref().and_then(|memory| memory.cut());
        present.or(state.cut)
    }

    /// Ends the connection for the sake of `error`: the crate has the new memory in its table already.
    fn give_up_memory(&self, error: io::Error) -> io::Error {
        self.state().unusable = Some(error.to_string());
        // It is there, and nobody waits for what is written.
        let _ = self.alarm.write(1);
        error
    }

    /// Whether a ring could be at `layout` in the present memory.
    pub(crate) fn check_layout(&self, layout: &Layout) -> Result<(), BadRing> {
        let (memory, acked) = {
            let state = self.state();
            (state.memory.clone(), state.acked)
        };
        let memory = memory.ok_or(BadRing::Unmapped {
            part: "descriptor table",
            addr: layout.descriptors,
            len: 16 * u64::from(layout.size),
        })?;
        Vring::new(memory, layout, acked).map(|_| ())
    }
}

/// What the crate calls.
#[derive(Clone)]
struct NicBackend {
    session: Arc<Session>,
    front_end: Arc<FrontEnd>,
    offered: Features,
    queues: usize,
}

impl VhostUserBackend for NicBackend {
    type Bitmap = ();
    type Vring = NicVring;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        NicVring::MAX_SIZE
    }

    fn features(&self) -> u64 {
        self.offered.bits()
    }

    fn acked_features(&self, features: u64) {
        let acked = Features::from_bits_truncate(features);
        if acked == Features::PROTOCOL_FEATURES {
            debug!("rings are enabled before the driver accepts features");
        } else {
            info!("the driver accepted {acked}");
        }
        self.session.accept(acked);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        info!("the front-end resets the device");
        // First the rings, by those who serve them now.
        self.session.reset(|rings| rings.reset());
        self.session.state().acked = Features::empty();
        for index in 0..self.queues {
            self.session.said(index).reset();
        }
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The worker learns it with the other features.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let offered = self.offered;
        let mut octets = self
            .session
            .engine
            .port(move |port| config::read(port, offered, offset as usize, size as usize))
            .unwrap_or_else(|_| vec![0; size as usize]);
        self.front_end.tear(&mut octets);
        octets
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        // Modern drivers have the control queue; an error would end the connection of the others.
        info!(
            "the driver writes {buf:x?} to the configuration space at {offset}: ignored, it is read-only"
        );
        Ok(())
    }

    fn update_memory(&self, mem: Memory) -> io::Result<()> {
        let mapped = mem.memory().into_inner();
        let regions = mapped.num_regions();
        if regions > MAX_MEM_SLOTS {
            let many = format!(
                "{regions} memory regions, more than the {MAX_MEM_SLOTS} that there may be"
            );
            return Err(self.session.give_up_memory(io::Error::other(many)));
        }
        let memory = GuestMemory::guarded(mapped, self.session.alarm.clone())
            .map_err(|error| self.session.give_up_memory(error.into()))?;
        let memory = Arc::new(memory);
        debug!("guest memory: {memory}");
        let before = self.session.state().memory.replace(memory.clone());
        let set = self
            .session
            .engine
            .rings(move |rings| rings.rings().set_memory(Some(memory)));
        // A mapping that is in both tables has zeros now where something was touched, and does not say so again.
        if let Some(before) = before.filter(|before| before.is_cut()) {
            self.session.state().cut = before.cut();
            before.tell();
        }
        for error in set?.into_iter().filter_map(Result::err) {
            warn!("a queue cannot go on in the new memory: {error}");
        }
        self.session.set_up_lost();
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // The worker serves all queues; the crate's own threads would compete with it for kicks.
        Vec::new()
    }

    fn handle_event(
        &self,
        _device_event: u16,
        _evset: EventSet,
        _vrings: &[NicVring],
        _thread_id: usize,
    ) -> io::Result<()> {
        Ok(())
    }
}

/// What a session needs to know of the NIC that it serves.
#[derive(Clone)]
pub struct SessionConfig {
    /// The NIC's threads.
    pub engine: Engine,
    /// What is offered to drivers.
    pub offered: Features,
    /// Virtqueues, the control queue included.
    pub queues: usize,
    /// Whether each message is logged.
    pub trace: bool,
    /// What the NIC is called in the log, if it is not the only one of the process.
    pub name: Option<String>,
    /// What others may know of the front-end.
    pub front_end: Arc<FrontEnd>,
}

/// Serves a front-end until it leaves, breaks the protocol, takes guest memory away, or `stop` is readable. Others may come to
/// `listener` meanwhile, and have to wait.
///
/// # Errors
/// Our side failed: the session could not begin.
pub fn serve(
    front: UnixStream,
    listener: &UnixListener,
    config: &SessionConfig,
    stop: &EventFd,
) -> anyhow::Result<()> {
    let session = Arc::new(Session {
        engine: config.engine.clone(),
        state: Mutex::default(),
        rings: (0..config.queues).map(|_| Mutex::default()).collect(),
        alarm: Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?),
    });
    let backend = NicBackend {
        session: session.clone(),
        front_end: config.front_end.clone(),
        offered: config.offered,
        queues: config.queues,
    };
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = with_session(&session, || {
        let name = thread_name("nic-vhost-user", config.name.as_deref());
        VhostUserDaemon::new(name, backend, memory)
    })
    .map_err(|error| anyhow!("{error}"))?;
    let back = connect(&mut daemon).context("cannot connect the relay to the protocol's thread")?;
    let mut relay = Relay::new(front, back, config);
    let ended = relay.run(listener, stop, &session.alarm);
    daemon.request_shutdown();
    if let Err(error) = daemon.wait() {
        debug!("the protocol's thread ended: {error}");
    }
    config.front_end.left();
    session.reset(|rings| rings.release());
    // However it ended: a front-end that does this may not live long enough to be told.
    if let Some(cut) = session.cut() {
        config.front_end.memory_gone.fetch_add(1, Ordering::Relaxed);
        warn!("connection ended: {cut}");
    } else if let Some(error) = &session.state().unusable {
        config.front_end.refused.fetch_add(1, Ordering::Relaxed);
        warn!("connection ended: {error}");
    } else {
        info!("connection ended: {ended}");
    }
    // Only now: who sees the connection closed may use the rings for something else.
    drop(relay);
    Ok(())
}

/// Starts the daemon on one end of a private connection and returns the other. The crate only listens on a path;
/// it is in a directory that nobody else can enter, and gone when this returns.
fn connect(daemon: &mut VhostUserDaemon<NicBackend>) -> anyhow::Result<UnixStream> {
    let directory = tempfile::Builder::new()
        .prefix("vhost-user-nic-")
        .tempdir()?;
    let path = directory.path().join("relay");
    let mut listener = Listener::new(&path, false)?;
    let back = UnixStream::connect(&path)?;
    daemon
        .start(&mut listener)
        .map_err(|error| anyhow!("{error}"))?;
    Ok(back)
}
