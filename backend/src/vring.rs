//! A ring as the front-end sets it up, message by message.
//!
//! The crate vhost-user-backend keeps rings behind its trait [`VringT`] and tells them what a front-end says.
//! [`NicVring`] takes notice of addresses and descriptors on the way, and has the worker set the ring up as
//! soon as it is complete: it has a place, and it was given something to kick. Front-ends send calls, kicks,
//! addresses and enabling in many orders, and none matters here; only memory and size come before the place.
//!
//! The crate makes the rings itself and gives them no context; [`with_session`] puts that where they find it.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use log::{error, warn};
use nic_device::interrupt::{CallFd, Interrupt};
use nic_device::ring::{BadRing, Layout};

use nic_device::virtio_net::QueueSetup;
use vhost_user_backend::{VringRwLock, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as VirtQueError;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::protocol::MAX_RING;
use crate::session::Session;

/// Guest memory as the crate holds it.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

thread_local! {
    static BUILDING: RefCell<Option<(Arc<Session>, usize)>> = const { RefCell::new(None) };
}

/// Calls `build`, which makes rings on this thread, one after the other: they belong to `session` and are
/// numbered from 0.
pub fn with_session<R>(session: &Arc<Session>, build: impl FnOnce() -> R) -> R {
    BUILDING.set(Some((session.clone(), 0)));
    let built = build();
    BUILDING.set(None);
    built
}

/// What the front-end has said about a ring.
#[derive(Debug, Default)]
pub struct Said {
    layout: Layout,
    placed: bool,
    /// The next chain to take, by the front-end's word, or where the ring stopped; of a packed ring with the wrap counter in bit
    /// 15.
    base: u16,
    /// Whether that is to be heeded when the ring is set up: it was said since it was set up the last time.
    base_is_news: bool,
    /// Whether it was started by a kick descriptor, and not stopped since.
    started: bool,
    enabled: bool,
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
}

impl Said {
    /// What it takes to set the ring up, if all of that has been said, and where the front-end says to go on.
    pub fn setup(&self, index: usize) -> Option<(QueueSetup, Option<u16>)> {
        let base = self.base_is_news.then_some(self.base);
        let layout = Layout {
            base,
            ..self.layout
        };
        let setup = QueueSetup {
            layout,
            enabled: self.enabled,
            interrupt: line(index, self.call.as_ref()),
            error: line(index, self.error.as_ref()),
        };
        self.is_set_up().then_some((setup, base))
    }

    /// The ring was set up: it knows itself where it stands.
    pub fn has_begun(&mut self) {
        self.base_is_news = false;
    }

    /// The ring goes on at `base`, whoever serves it.
    pub fn goes_on_at(&mut self, base: u16) {
        self.base = base;
        self.base_is_news = true;
    }

    /// Whether the ring is set up, if it could be.
    pub fn is_set_up(&self) -> bool {
        self.started && self.placed
    }

    /// Whether packets may pass, too.
    pub fn runs(&self) -> bool {
        self.is_set_up() && self.enabled
    }

    /// How the driver kicks.
    pub fn kick(&self, index: usize) -> Option<File> {
        copy(index, self.kick.as_ref())
    }

    /// RESET_DEVICE: nothing but the descriptors is still true.
    pub fn reset(&mut self) {
        self.layout = Layout::default();
        self.placed = false;
        self.base = 0;
        self.base_is_news = false;
        self.started = false;
        self.kick = None;
        self.enabled = false;
    }
}

/// A ring of the session's device.
#[derive(Clone)]
pub struct NicVring {
    inner: VringRwLock<Memory>,
    index: usize,
    session: Arc<Session>,
}

impl NicVring {
    /// Largest ring that may be asked for.
    pub const MAX_SIZE: usize = MAX_RING as usize;

    fn said(&self) -> MutexGuard<'_, Said> {
        self.session.said(self.index)
    }
}

/// An interrupt through `file`.
fn line(index: usize, file: Option<&File>) -> Option<Box<dyn Interrupt>> {
    let fd = OwnedFd::from(copy(index, file)?);
    match CallFd::new(fd) {
        Ok(call) => Some(Box::new(call)),
        Err(error) => {
            warn!("queue {index}: its call descriptor cannot be used: {error}");
            None
        }
    }
}

/// Another descriptor of `file`.
fn copy(index: usize, file: Option<&File>) -> Option<File> {
    file?
        .try_clone()
        .inspect_err(|error| error!("queue {index}: its descriptor cannot be used: {error}"))
        .ok()
}

impl<'a> VringStateGuard<'a, Memory> for NicVring {
    type G = RwLockReadGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for NicVring {
    type G = RwLockWriteGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for NicVring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, VirtQueError> {
        let (session, index) = BUILDING.with_borrow_mut(|building| {
            let (session, next) = building.as_mut().expect("rings are made in `with_session`");
            *next += 1;
            (session.clone(), *next - 1)
        });
        Ok(NicVring {
            inner: VringRwLock::new(mem, max_queue_size)?,
            index,
            session,
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), VirtQueError> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, VirtQueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), VirtQueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, VirtQueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
        self.said().enabled = enabled;
        let index = self.index;
        self.session
            .ring(index, move |rings| rings.rings().enable(index, enabled));
        if !enabled {
            self.session.abandon(index);
        }
        self.session.steer();
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), VirtQueError> {
        let index = self.index;
        let layout = Layout {
            size: self.said().layout.size,
            descriptors: desc_table,
            driver: avail_ring,
            device: used_ring,
            base: None,
        };
        self.session.check_layout(&layout).map_err(|error| {
            warn!("queue {index}: refused SET_VRING_ADDR: {error}");
            match error {
                BadRing::Size(_) | BadRing::Base { .. } => VirtQueError::InvalidMaxSize,
                BadRing::Misaligned { .. } => VirtQueError::InvalidDescTableAlign,
                BadRing::Unmapped { .. } => VirtQueError::AddressOverflow,
            }
        })?;
        self.inner
            .set_queue_info(desc_table, avail_ring, used_ring)?;
        {
            let mut said = self.said();
            said.layout = layout;
            said.placed = true;
        }
        self.session.set_up(self.index);
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.said().base
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
        self.said().goes_on_at(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, VirtQueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        // The crate's own ring, which nobody uses, takes no other; a packed one may have any size.
        if num.is_power_of_two() {
            self.inner.set_queue_size(num);
        }
        self.said().layout.size = num;
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        if ready {
            return;
        }
        // GET_VRING_BASE: from its answer on, nothing of the ring may be touched.
        let index = self.index;
        let stopped = self.session.ring(index, move |rings| {
            rings.set_kick(index, None);
            rings.rings().tear_down(index)
        });
        // What it has sent and is held back still goes when it may: a machine that is only paused has it back as sent.
        let mut said = self.said();
        said.started = false;
        said.kick = None;
        if let Some(Some(next)) = stopped {
            said.goes_on_at(next);
        }
        drop(said);
        self.session.steer();
    }

    fn set_kick(&self, file: Option<File>) {
        let index = self.index;
        let kick = copy(index, file.as_ref());
        self.inner.set_kick(file);
        if kick.is_some() {
            let mut said = self.said();
            said.started = true;
            said.kick = copy(index, kick.as_ref());
            drop(said);
            self.session.set_up(index);
        }
        self.session
            .ring(index, move |rings| rings.set_kick(index, kick));
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        let index = self.index;
        let interrupt = line(index, file.as_ref());
        self.said().call = copy(index, file.as_ref());
        self.inner.set_call(file);
        self.session.ring(index, move |rings| {
            rings.rings().set_interrupt(index, interrupt);
        });
    }

    fn set_err(&self, file: Option<File>) {
        let index = self.index;
        let error = line(index, file.as_ref());
        self.said().error = copy(index, file.as_ref());
        self.inner.set_err(file);
        self.session
            .ring(index, move |rings| rings.rings().set_error(index, error));
    }
}
