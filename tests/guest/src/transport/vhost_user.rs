//! A vhost-user backend over its socket, through the `vhost` crate's `Frontend`.
//!
//! This is a plain, well-behaved front-end: owner, features, protocol features, memory table; then
//! each queue as the driver sets it up; all of them enabled at `driver_ok`. Config space and
//! control queue are the backend's; only where it has none (DPDK's) does [`super::vmm`] stand in.
//! For the message orders of real VMMs, and for replies that may never come (the crate waits for
//! ever), see [`super::front_end`].

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Error as ProtocolError, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use super::backend_req::BackendChannel;
use super::message::{Connection, connect, vring_state};
use super::vmm::{Control, DEVICE_OWNED, PROVIDED, VmmConfig};
use super::vring::{VringFds, Waiter};
use super::{QueueConfig, Transport, TransportError};
use crate::memory::GuestMemory;
use crate::virtio_net::ctrl;
use crate::virtio_net::features::RING_PACKED;

/// The queue number in a message has 8 bits.
const MAX_VRINGS: u64 = 256;

/// How to be a front-end.
#[derive(Debug, Clone)]
pub struct VhostUserOptions {
    /// Protocol features to take where the backend offers them.
    pub protocol_features: VhostUserProtocolFeatures,
    /// The NIC, where the backend has no config space (and so no control queue either).
    pub nic: VmmConfig,
    /// How long to wait for the socket to appear, and for answers that this crate waits for itself.
    pub timeout: Duration,
}

impl Default for VhostUserOptions {
    fn default() -> Self {
        Self {
            protocol_features: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::RESET_DEVICE
                | VhostUserProtocolFeatures::STATUS,
            nic: VmmConfig::default(),
            timeout: Duration::from_secs(5),
        }
    }
}

struct Vring {
    fds: VringFds,
    running: bool,
}

/// A device behind a vhost-user socket.
pub struct VhostUser {
    frontend: Frontend,
    /// The same socket, for what the crate cannot say.
    raw: Connection,
    memory: Arc<GuestMemory>,
    nic: VmmConfig,
    offered: u64,
    /// What the driver chose.
    chosen: u64,
    protocol: VhostUserProtocolFeatures,
    max_queues: Option<u16>,
    channel: Option<BackendChannel>,
    config_changes: u32,
    unreported_change: bool,
    memory_sent: bool,
    driver_ok: bool,
    waiter: Waiter,
    vrings: Vec<Option<Vring>>,
}

impl VhostUser {
    /// Connects to the backend's socket and negotiates protocol features.
    ///
    /// # Errors
    /// When nobody listens, or the backend does not answer as it should.
    pub fn connect(path: &Path, memory: Arc<GuestMemory>) -> Result<Self, TransportError> {
        Self::connect_with(path, memory, &VhostUserOptions::default())
    }

    /// [`Self::connect`] as `options` say.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_with(
        path: &Path,
        memory: Arc<GuestMemory>,
        options: &VhostUserOptions,
    ) -> Result<Self, TransportError> {
        let stream = connect(path, options.timeout).map_err(|error| {
            TransportError::gone(format!("connect to {}", path.display()), error)
        })?;
        Self::from_stream(stream, memory, options)
    }

    /// Starts on a connected socket.
    ///
    /// # Errors
    /// When the backend does not answer as it should.
    pub fn from_stream(
        stream: UnixStream,
        memory: Arc<GuestMemory>,
        options: &VhostUserOptions,
    ) -> Result<Self, TransportError> {
        let raw = Connection::new(stream.try_clone()?, options.timeout)?;
        let mut frontend = Frontend::from_stream(stream, MAX_VRINGS);
        let waiter = Waiter::new()?;
        // Answers are waited for where they are asked for: what wakes a waiter is that the backend is gone.
        waiter.watch(raw.stream().as_raw_fd())?;
        say("SET_OWNER", frontend.set_owner())?;
        let offered = say("GET_FEATURES", frontend.get_features())?;
        let mut protocol = VhostUserProtocolFeatures::empty();
        if offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            let all = say("GET_PROTOCOL_FEATURES", frontend.get_protocol_features())?;
            protocol = all & options.protocol_features;
            say(
                "SET_PROTOCOL_FEATURES",
                frontend.set_protocol_features(protocol),
            )?;
        }
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let mut max_queues = None;
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            // Not through the crate: it would take the answer as its limit of queue numbers, and
            // some backends (DPDK) count pairs.
            let count = raw
                .ask_u64(FrontendReq::GET_QUEUE_NUM)
                .map_err(|error| TransportError::refused("GET_QUEUE_NUM", error))?;
            max_queues = Some(u16::try_from(count).unwrap_or(u16::MAX));
        }
        let mut channel = None;
        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let new = BackendChannel::new()?;
            say(
                "SET_BACKEND_REQ_FD",
                frontend.set_backend_request_fd(&new.fd_to_send()),
            )?;
            waiter.watch(new.fd_to_watch())?;
            channel = Some(new);
        }
        Ok(Self {
            frontend,
            raw,
            memory,
            nic: options.nic.clone(),
            offered,
            chosen: 0,
            protocol,
            max_queues,
            channel,
            config_changes: 0,
            unreported_change: false,
            memory_sent: false,
            driver_ok: false,
            waiter,
            vrings: Vec::new(),
        })
    }

    /// Protocol features in force.
    #[must_use]
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// The crate's front-end, for messages that a driver has no use for (logging, in-flight, ...).
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The same connection as bytes.
    #[must_use]
    pub fn raw(&self) -> &Connection {
        &self.raw
    }

    fn send_memory(&mut self) -> Result<(), TransportError> {
        let regions = self.memory.regions();
        let regions: Vec<_> = regions
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest_addr,
                memory_size: region.size,
                userspace_addr: region.host_addr,
                mmap_offset: region.mmap_offset,
                mmap_handle: region.fd,
            })
            .collect();
        if self
            .protocol
            .contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
        {
            for region in &regions {
                say("ADD_MEM_REG", self.frontend.add_mem_region(region))?;
            }
        } else {
            say("SET_MEM_TABLE", self.frontend.set_mem_table(&regions))?;
        }
        self.memory_sent = true;
        Ok(())
    }

    fn set_vring_base(&mut self, queue: &QueueConfig) -> Result<(), TransportError> {
        let index = usize::from(queue.index);
        if let Ok(next) = u16::try_from(queue.next) {
            let sent = self.frontend.set_vring_base(index, next);
            return say("SET_VRING_BASE", sent);
        }
        // The crate has 16 bits for it.
        let body = vring_state(queue.index.into(), queue.next);
        let sent = if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.raw.tell_acked(FrontendReq::SET_VRING_BASE, &body, &[])
        } else {
            self.raw.tell(FrontendReq::SET_VRING_BASE, &body, &[])
        };
        sent.map_err(|error| TransportError::refused("SET_VRING_BASE", error))
    }

    fn send_status(&mut self, status: u64) -> Result<(), TransportError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::STATUS) {
            return Ok(());
        }
        let payload = status.to_ne_bytes();
        let sent = if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.raw.tell_acked(FrontendReq::SET_STATUS, &payload, &[])
        } else {
            self.raw.tell(FrontendReq::SET_STATUS, &payload, &[])
        };
        sent.map_err(|error| TransportError::refused("SET_STATUS", error))
    }

    /// Whether config space and control queue are ours, because the backend has none.
    fn owns_config(&self) -> bool {
        !self.protocol.contains(VhostUserProtocolFeatures::CONFIG)
    }

    /// Whether the backend knows queue `index`.
    fn is_device_queue(&self, index: u16) -> bool {
        !self.owns_config() || index < 2 * self.nic.pairs
    }

    fn can_enable(&self) -> bool {
        self.offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    fn vring(&self, index: u16) -> Option<&Vring> {
        self.vrings.get(usize::from(index))?.as_ref()
    }

    fn host_addr(&self, addr: u64) -> Result<u64, TransportError> {
        self.memory.host_addr(addr).ok_or_else(|| {
            TransportError::refused("queue set-up", format!("no memory at {addr:#x}"))
        })
    }
}

impl Transport for VhostUser {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn device_features(&mut self) -> Result<u64, TransportError> {
        let ours = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        let passed = self.offered & !ours.bits();
        if !self.owns_config() {
            return Ok(passed);
        }
        Ok(self.nic.offer(passed & !DEVICE_OWNED, PROVIDED))
    }

    fn set_driver_features(&mut self, features: u64) -> Result<(), TransportError> {
        let protocol = self.offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let kept = if self.owns_config() { PROVIDED } else { 0 };
        let features = features & !kept;
        self.chosen = features;
        say(
            "SET_FEATURES",
            self.frontend.set_features(features | protocol),
        )?;
        // ACKNOWLEDGE, DRIVER, FEATURES_OK.
        self.send_status(0b1011)?;
        if !self.memory_sent {
            self.send_memory()?;
        }
        Ok(())
    }

    fn max_queues(&self) -> Option<u16> {
        self.max_queues
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        if self.owns_config() {
            let too_long = || TransportError::refused("config read", "too long");
            return self.nic.read(offset, buf).ok_or_else(too_long);
        }
        let flags = VhostUserConfigFlags::WRITABLE;
        let reply = self
            .frontend
            .get_config(offset, buf.len() as u32, flags, buf);
        let (_, bytes) = say("GET_CONFIG", reply)?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    fn write_config(&mut self, offset: u32, buf: &[u8]) -> Result<(), TransportError> {
        let flags = VhostUserConfigFlags::WRITABLE;
        say("SET_CONFIG", self.frontend.set_config(offset, flags, buf))
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
        let (slot, index) = (usize::from(queue.index), usize::from(queue.index));
        if self.vrings.len() <= slot {
            self.vrings.resize_with(slot + 1, || None);
        }
        let addresses = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: self.host_addr(queue.layout.desc)?,
            used_ring_addr: self.host_addr(queue.layout.used)?,
            avail_ring_addr: self.host_addr(queue.layout.avail)?,
            log_addr: None,
        };
        let fds = VringFds::new(false, &self.waiter)?;
        if !self.is_device_queue(queue.index) {
            self.vrings[slot] = Some(Vring {
                fds,
                running: false,
            });
            return Ok(());
        }
        say(
            "SET_VRING_NUM",
            self.frontend.set_vring_num(index, queue.size),
        )?;
        self.set_vring_base(queue)?;
        say(
            "SET_VRING_ADDR",
            self.frontend.set_vring_addr(index, &addresses),
        )?;
        if let Some(call) = fds.call_event() {
            say("SET_VRING_CALL", self.frontend.set_vring_call(index, call))?;
        }
        say(
            "SET_VRING_ERR",
            self.frontend.set_vring_err(index, fds.err_event()),
        )?;
        say(
            "SET_VRING_KICK",
            self.frontend.set_vring_kick(index, fds.kick_event()),
        )?;
        self.vrings[slot] = Some(Vring { fds, running: true });
        if self.driver_ok {
            self.enable_queue(queue.index, true)?;
        }
        Ok(())
    }

    fn driver_ok(&mut self) -> Result<(), TransportError> {
        self.driver_ok = true;
        for index in 0..self.vrings.len() {
            if self.vrings[index]
                .as_ref()
                .is_some_and(|vring| vring.running)
            {
                self.enable_queue(index as u16, true)?;
            }
        }
        self.send_status(0b1111)
    }

    fn enable_queue(&mut self, index: u16, enable: bool) -> Result<(), TransportError> {
        if !self.can_enable() {
            return Ok(());
        }
        say(
            "SET_VRING_ENABLE",
            self.frontend.set_vring_enable(index.into(), enable),
        )
    }

    fn stop_queue(&mut self, index: u16) -> Result<u32, TransportError> {
        let next = say("GET_VRING_BASE", self.frontend.get_vring_base(index.into()))?;
        if let Some(Some(vring)) = self.vrings.get_mut(usize::from(index)) {
            vring.running = false;
        }
        if next > 0xffff && self.chosen & RING_PACKED == 0 {
            let why = format!("index {next} for a split ring");
            return Err(TransportError::refused("GET_VRING_BASE", why));
        }
        Ok(next)
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        for index in 0..self.vrings.len() {
            if self.vrings[index]
                .as_ref()
                .is_some_and(|vring| vring.running)
            {
                self.stop_queue(index as u16)?;
            }
        }
        self.vrings.clear();
        self.driver_ok = false;
        if self
            .protocol
            .contains(VhostUserProtocolFeatures::RESET_DEVICE)
        {
            say("RESET_DEVICE", self.frontend.reset_device())?;
        }
        self.send_status(0)
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

    fn is_gone(&self) -> bool {
        self.raw.is_closed()
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
        let done = match self.nic.control(class, command, data) {
            Control::Done => true,
            Control::Refused => false,
            Control::UsePairs(pairs) => (0..2 * self.nic.pairs)
                .try_for_each(|index| self.enable_queue(index, index < 2 * pairs))
                .is_ok(),
        };
        Some(if done {
            ctrl::VIRTIO_NET_OK
        } else {
            ctrl::VIRTIO_NET_ERR
        })
    }
}

/// The result of a message, with its name.
fn say<T>(what: &str, result: vhost::Result<T>) -> Result<T, TransportError> {
    result.map_err(|error| match error {
        vhost::Error::VhostUserProtocol(
            ProtocolError::Disconnected
            | ProtocolError::SocketBroken(_)
            | ProtocolError::PartialMessage,
        ) => TransportError::gone(what, error),
        _ => TransportError::refused(what, error),
    })
}
