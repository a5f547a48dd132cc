//! A vhost-user front-end that plays the message orders of real VMMs.
//!
//! The driver sees an ordinary [`Transport`]; what goes over the socket is what the chosen
//! [`Persona`] would send: its features, its order, its addresses, its idea of a call descriptor.
//! Replies have to come in time and with flags of exactly 0x5, as QEMU, DPDK and Linux demand. When
//! the backend dies and comes back, [`FrontEnd::reattach`] attaches the same memory and rings again
//! as that VMM does. The sequences themselves are in `order.rs`.

use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::backend_req::BackendChannel;
use super::message::{self, Connection, Message, MessageError, connect};
use super::persona::Persona;
use super::vmm::{Control, DEVICE_OWNED, VmmConfig};
use super::vring::{VringFds, Waiter};
use super::{QueueConfig, Transport, TransportError};
use crate::memory::GuestMemory;
use crate::virtio_net::ctrl;
use crate::virtio_net::features::PROTOCOL_FEATURES;

/// What the VMM's command line would say.
#[derive(Debug, Clone)]
pub struct FrontEndOptions {
    /// The NIC: queue pairs (`queues=` of QEMU and DPDK, half of `num_queues=` of
    /// cloud-hypervisor); MAC and MTU where config space is the VMM's.
    pub nic: VmmConfig,
    /// How long a reply may take, and the socket to appear.
    pub timeout: Duration,
}

impl Default for FrontEndOptions {
    fn default() -> Self {
        Self {
            nic: VmmConfig::default(),
            timeout: Duration::from_secs(5),
        }
    }
}

/// A virtqueue as the front-end keeps it, over the life of several connections.
pub(super) struct Vring {
    pub(super) fds: VringFds,
    pub(super) queue: Option<QueueConfig>,
    pub(super) enabled: bool,
}

/// A front-end with the habits of a [`Persona`].
pub struct FrontEnd {
    pub(super) persona: Persona,
    pub(super) options: FrontEndOptions,
    pub(super) memory: Arc<GuestMemory>,
    path: Option<PathBuf>,
    connection: Option<Connection>,
    /// What the backend offers.
    pub(super) offered: u64,
    /// What the guest chose.
    pub(super) chosen: u64,
    pub(super) protocol: Protocol,
    /// What was negotiated when the backend was first attached.
    pub(super) agreed: Protocol,
    pub(super) max_queues: Option<u16>,
    pub(super) channel: Option<BackendChannel>,
    pub(super) inflight: Option<(Vec<u8>, File)>,
    pub(super) vrings: Vec<Vring>,
    pub(super) started: bool,
    pub(super) waiter: Waiter,
    config_changes: u32,
    unreported_change: bool,
    sent: Vec<Req>,
}

impl FrontEnd {
    /// A front-end that is not attached yet.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn new(
        persona: Persona,
        memory: Arc<GuestMemory>,
        options: FrontEndOptions,
    ) -> Result<Self, TransportError> {
        let waiter = Waiter::new()?;
        let mut front_end = Self {
            persona,
            memory,
            path: None,
            connection: None,
            offered: 0,
            chosen: 0,
            protocol: Protocol::empty(),
            agreed: Protocol::empty(),
            max_queues: None,
            channel: None,
            inflight: None,
            vrings: Vec::new(),
            started: false,
            waiter,
            config_changes: 0,
            unreported_change: false,
            sent: Vec::new(),
            options,
        };
        front_end.make_vrings(front_end.options.nic.pairs * 2)?;
        Ok(front_end)
    }

    /// A front-end attached to the backend that listens at `path`.
    ///
    /// # Errors
    /// When nobody listens there, or the backend fails the VMM's checks.
    pub fn connect(
        persona: Persona,
        path: &Path,
        memory: Arc<GuestMemory>,
        options: FrontEndOptions,
    ) -> Result<Self, TransportError> {
        let mut front_end = Self::new(persona, memory, options)?;
        front_end.path = Some(path.to_owned());
        front_end.attach()?;
        Ok(front_end)
    }

    /// Connects, and negotiates as the VMM does before its guest runs.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn attach(&mut self) -> Result<(), TransportError> {
        let stream = self.dial()?;
        self.attach_stream(stream)
    }

    /// [`Self::attach`] over a connected socket.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn attach_stream(&mut self, stream: UnixStream) -> Result<(), TransportError> {
        self.use_stream(stream)?;
        self.greet(false)
    }

    /// Attaches to a backend that died and came back: a new connection, the same memory and rings,
    /// and the guest none the wiser.
    ///
    /// # Errors
    /// [`TransportError::Unsupported`] where the VMM gives up, or the rings are packed; else as [`Self::connect`].
    pub fn reattach(&mut self) -> Result<(), TransportError> {
        let stream = self.dial()?;
        self.reattach_stream(stream)
    }

    /// [`Self::reattach`] over a connected socket.
    ///
    /// # Errors
    /// As [`Self::reattach`].
    pub fn reattach_stream(&mut self, stream: UnixStream) -> Result<(), TransportError> {
        if !self.persona.reconnects() {
            return Err(TransportError::Unsupported("this VMM does not reconnect"));
        }
        if self.started && self.is_packed() {
            // Only the backend knew.
            let what = "finding where a packed ring goes on";
            return Err(TransportError::Unsupported(what));
        }
        self.use_stream(stream)?;
        self.greet(true)?;
        if self.started {
            self.choose_features()?;
            self.activate(true)?;
        }
        Ok(())
    }

    /// Closes the connection without a word, as a VMM that dies.
    pub fn detach(&mut self) {
        self.connection = None;
        self.channel = None;
    }

    fn dial(&self) -> Result<UnixStream, TransportError> {
        let path = self
            .path
            .as_deref()
            .ok_or(TransportError::Unsupported("no socket path"))?;
        connect(path, self.options.timeout)
            .map_err(|error| TransportError::gone(format!("connect to {}", path.display()), error))
    }

    fn use_stream(&mut self, stream: UnixStream) -> Result<(), TransportError> {
        self.detach();
        self.connection = Some(Connection::new(stream, self.options.timeout)?);
        self.protocol = Protocol::empty();
        Ok(())
    }

    /// The socket as bytes, to say what no VMM says.
    ///
    /// # Errors
    /// When not attached.
    pub fn raw(&self) -> Result<&Connection, TransportError> {
        self.connection
            .as_ref()
            .ok_or_else(|| TransportError::gone("raw message", "not attached"))
    }

    /// Requests sent so far, over all connections.
    #[must_use]
    pub fn sent(&self) -> &[Req] {
        &self.sent
    }

    /// Protocol features in force.
    #[must_use]
    pub fn protocol_features(&self) -> Protocol {
        self.protocol
    }

    pub(super) fn make_vrings(&mut self, count: u16) -> Result<(), TransportError> {
        while self.vrings.len() < usize::from(count) {
            let fds = VringFds::new(self.persona.call_is_socket(), &self.waiter)?;
            // As in QEMU and DPDK, only the first pair is in use until the guest asks for more.
            let enabled = !self.persona.owns_config() || self.vrings.len() < 2;
            self.vrings.push(Vring {
                fds,
                queue: None,
                enabled,
            });
        }
        Ok(())
    }

    /// Sends a message, with NEED_REPLY where the persona does that.
    pub(super) fn tell(
        &mut self,
        req: Req,
        body: &[u8],
        fds: &[RawFd],
    ) -> Result<(), TransportError> {
        self.sent.push(req);
        let acked = self.protocol.contains(Protocol::REPLY_ACK) && self.persona.awaits(req);
        let connection = self.raw()?;
        let told = if acked {
            connection.tell_acked(req, body, fds)
        } else {
            connection.tell(req, body, fds)
        };
        told.map_err(|error| failed(req, &error))
    }

    /// Sends a question and returns its reply.
    pub(super) fn ask(&mut self, req: Req, body: &[u8]) -> Result<Message, TransportError> {
        self.sent.push(req);
        self.raw()?
            .ask(req, body)
            .map_err(|error| failed(req, &error))
    }

    pub(super) fn ask_u64(&mut self, req: Req) -> Result<u64, TransportError> {
        self.ask(req, &[])?
            .u64()
            .map_err(|error| failed(req, &error))
    }

    /// `0x100 | index`-style payload of KICK, CALL and ERR.
    pub(super) fn tell_fd(&mut self, req: Req, index: u16) -> Result<(), TransportError> {
        use std::os::fd::AsRawFd;
        let fds = &self.vrings[usize::from(index)].fds;
        let fd = match req {
            Req::SET_VRING_KICK => fds.kick_event().as_raw_fd(),
            Req::SET_VRING_CALL => fds.call_to_send(),
            _ => fds.err_event().as_raw_fd(),
        };
        self.tell(req, &u64::from(index).to_ne_bytes(), &[fd])
    }

    /// The address by which the persona calls guest address `addr`.
    pub(super) fn user_addr(&self, addr: u64) -> Result<u64, TransportError> {
        if self.persona.rings_by_guest_address() {
            return Ok(addr);
        }
        let why = || TransportError::refused("queue set-up", format!("no memory at {addr:#x}"));
        self.memory.host_addr(addr).ok_or_else(why)
    }

    fn vring(&self, index: u16) -> Option<&Vring> {
        self.vrings.get(usize::from(index))
    }

    /// Whether config space and control queue are the front-end's own.
    pub(super) fn owns_config(&self) -> bool {
        let fallback = self.persona == Persona::Plain && !self.protocol.contains(Protocol::CONFIG);
        self.persona.owns_config() || fallback
    }
}

impl Transport for FrontEnd {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn device_features(&mut self) -> Result<u64, TransportError> {
        let passed = self.offered & self.persona.passes();
        if !self.owns_config() {
            return Ok(passed);
        }
        let hidden = if self.persona == Persona::Plain {
            DEVICE_OWNED
        } else {
            0
        };
        Ok(self
            .options
            .nic
            .offer(passed & !hidden, self.persona.provides()))
    }

    fn set_driver_features(&mut self, features: u64) -> Result<(), TransportError> {
        let kept = if self.owns_config() {
            self.persona.keeps()
        } else {
            0
        };
        let told = features & !kept & self.persona.passes();
        self.chosen = self.offered & (told | PROTOCOL_FEATURES);
        self.choose_features()
    }

    fn max_queues(&self) -> Option<u16> {
        self.max_queues
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        let at = offset as usize;
        if self.owns_config() {
            let too_long = || TransportError::refused("config read", "too long");
            return self.options.nic.read(offset, buf).ok_or_else(too_long);
        }
        if !self.protocol.contains(Protocol::CONFIG) {
            return Err(TransportError::Unsupported(
                "the backend offers no config space",
            ));
        }
        // User-mode Linux reads all that is before the field too.
        let skip = if self.persona == Persona::Uml { at } else { 0 };
        let flags = u32::from(self.persona == Persona::Crosvm);
        let question = message::config(offset - skip as u32, flags, &vec![0; skip + buf.len()]);
        let reply = self.ask(Req::GET_CONFIG, &question)?;
        if reply.payload.len() != question.len() || reply.payload[..8] != question[..8] {
            let why = format!("{} bytes for {}", reply.payload.len(), question.len());
            return Err(TransportError::refused("GET_CONFIG", why));
        }
        buf.copy_from_slice(&reply.payload[12 + skip..]);
        Ok(())
    }

    fn write_config(&mut self, offset: u32, buf: &[u8]) -> Result<(), TransportError> {
        if self.owns_config() {
            return Ok(());
        }
        self.tell(Req::SET_CONFIG, &message::config(offset, 0, buf), &[])
    }

    fn config_generation(&mut self) -> u32 {
        if let Some(channel) = &mut self.channel {
            let changes = channel.take_config_changes();
            self.config_changes = self.config_changes.wrapping_add(changes);
            self.unreported_change |= changes > 0;
        }
        self.config_changes
    }

    fn setup_queue(&mut self, queue: &QueueConfig) -> Result<(), TransportError> {
        self.make_vrings(queue.index + 1)?;
        self.vrings[usize::from(queue.index)].queue = Some(*queue);
        if self.started {
            self.start_one(queue.index)?;
        }
        Ok(())
    }

    fn driver_ok(&mut self) -> Result<(), TransportError> {
        self.activate(false)?;
        self.started = true;
        Ok(())
    }

    fn enable_queue(&mut self, index: u16, enable: bool) -> Result<(), TransportError> {
        if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
            vring.enabled = enable;
        }
        if self.offered & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let body = message::vring_state(index.into(), enable.into());
        self.tell(Req::SET_VRING_ENABLE, &body, &[])
    }

    fn stop_queue(&mut self, index: u16) -> Result<u32, TransportError> {
        self.stop_one(index)
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        self.deactivate()?;
        self.started = false;
        for vring in &mut self.vrings {
            vring.queue = None;
        }
        Ok(())
    }

    fn kick(&self, index: u16) {
        if let Some(vring) = self.vring(index) {
            vring.fds.kick();
        }
    }

    fn take_interrupt(&self, index: u16) -> u64 {
        self.vring(index)
            .map_or(0, |vring| vring.fds.take_interrupt())
    }

    fn wait_interrupt(&self, index: u16, timeout: Duration) -> bool {
        self.vring(index)
            .is_some_and(|vring| vring.fds.wait_interrupt(timeout))
    }

    fn wait(&self, timeout: Duration) -> bool {
        self.waiter.wait(timeout)
    }

    fn take_config_change(&mut self) -> bool {
        self.config_generation();
        std::mem::take(&mut self.unreported_change)
    }

    fn take_queue_error(&self, index: u16) -> u64 {
        self.vring(index).map_or(0, |vring| vring.fds.take_error())
    }

    fn vmm_control(&mut self, class: u8, command: u8, data: &[u8]) -> Option<u8> {
        if !self.owns_config() {
            return None;
        }
        let done = match self.options.nic.control(class, command, data) {
            Control::Done => true,
            Control::Refused => false,
            Control::UsePairs(pairs) => self.use_pairs(pairs).is_ok(),
        };
        Some(if done {
            ctrl::VIRTIO_NET_OK
        } else {
            ctrl::VIRTIO_NET_ERR
        })
    }
}

fn failed(req: Req, error: &MessageError) -> TransportError {
    let what = format!("{req:?}");
    match error {
        MessageError::Closed | MessageError::TimedOut | MessageError::Io(_) => {
            TransportError::gone(what, error)
        }
        _ => TransportError::refused(what, error),
    }
}
