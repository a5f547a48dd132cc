//! A card in this process, behind the guest's [`Transport`], in virtual time.
//!
//! Nothing happens by itself: a kick is noted, and [`World::run_until`] plays what the card and its wire do up to an
//! instant, each thing at its time. Waiting for an interrupt plays until it comes, and so does a guest's CPU
//! that is busy: the [`World`] is also the computer that a guest's kernel runs on.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nic_backend::card::Card;
use nic_backend::worker::Body;
use nic_device::config;
use nic_device::features::Features;
use nic_device::interrupt::Interrupt;
use nic_device::memory::GuestMemory as Mapped;
use nic_device::ring::Layout;
use nic_device::virtio_net::QueueSetup;
use nic_guest::memory::GuestMemory;
use nic_guest::net::Machine;
use nic_guest::transport::{QueueConfig, Transport, TransportError};
use nic_model::time::Nanos;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Counts interrupts.
struct Counter(Arc<AtomicU64>);

impl Interrupt for Counter {
    fn raise(&mut self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Looks at the card whenever it has done what it had to do at an instant.
pub type Watch = Box<dyn FnMut(&Card)>;

/// A card, its wire, and the clock that they live by.
#[derive(Clone)]
pub struct World {
    card: Rc<RefCell<Card>>,
    now: Rc<Cell<Nanos>>,
    watch: Rc<RefCell<Option<Watch>>>,
}

impl World {
    /// The virtual clock.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now.get()
    }

    /// Plays what happens up to `end`, or until `stop` says so at an instant at which the guest may notice
    /// something, and returns whether it did.
    pub fn play(&self, end: Nanos, mut stop: impl FnMut() -> bool) -> bool {
        let mut card = self.card.borrow_mut();
        loop {
            let now = self.now.get();
            while card.round(now) {}
            if let Some(watch) = &mut *self.watch.borrow_mut() {
                watch(&card);
            }
            if stop() {
                return true;
            }
            if card.nic.idle(now) {
                continue;
            }
            if now >= end {
                return false;
            }
            let due = card.next_notice(now).map_or(end, |due| due.min(end));
            self.now.set(due.max(now));
        }
    }

    /// Plays what happens up to `end`.
    pub fn run_until(&self, end: Nanos) {
        self.play(end, || false);
    }

    /// Has `watch` look at the card from now on.
    pub fn set_watch(&self, watch: Watch) {
        *self.watch.borrow_mut() = Some(watch);
    }
}

impl Machine for World {
    fn now(&self) -> u64 {
        self.now.get().0
    }

    fn spend(&self, ns: u64) {
        self.run_until(self.now.get() + Duration::from_nanos(ns));
    }
}

/// A card that shares this process with its guest.
pub struct InProcess {
    memory: Arc<GuestMemory>,
    world: World,
    queues: Vec<Option<QueueConfig>>,
    interrupts: Vec<Arc<AtomicU64>>,
}

impl InProcess {
    /// Puts `card` behind a transport whose guest has `memory`. The clock shows zero.
    ///
    /// # Errors
    /// The guest's memory cannot be mapped once more.
    pub fn new(card: Card, memory: Arc<GuestMemory>) -> anyhow::Result<Self> {
        let queues = card.nic.device.queues();
        let mut ranges = Vec::new();
        for (index, region) in memory.regions().iter().enumerate() {
            let file = memory
                .region_file(index)
                .expect("each region has a file")
                .as_fd()
                .try_clone_to_owned()?;
            let offset = FileOffset::new(file.into(), region.mmap_offset);
            let start = GuestAddress(region.guest_addr);
            ranges.push((start, region.size as usize, Some(offset)));
        }
        let mapped = GuestMemoryMmap::from_ranges_with_files(ranges)?;
        let mut card = card;
        card.nic
            .device
            .set_memory(Some(Arc::new(Mapped::new(Arc::new(mapped)))))?;
        Ok(InProcess {
            memory,
            world: World {
                card: Rc::new(RefCell::new(card)),
                now: Rc::default(),
                watch: Rc::default(),
            },
            queues: vec![None; queues],
            interrupts: (0..queues).map(|_| Arc::default()).collect(),
        })
    }

    /// The card, to look at or to change.
    #[must_use]
    pub fn card(&self) -> Rc<RefCell<Card>> {
        self.world.card.clone()
    }

    /// The card's world, for a guest's kernel to run in.
    #[must_use]
    pub fn world(&self) -> World {
        self.world.clone()
    }

    /// The virtual clock.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.world.now()
    }

    /// Plays what happens up to `end`.
    pub fn run_until(&self, end: Nanos) {
        self.world.run_until(end);
    }

    fn pending(&self, index: u16) -> u64 {
        self.interrupts[usize::from(index)].load(Ordering::Relaxed)
    }

    fn set_up(&self, index: u16, queue: &QueueConfig) -> Result<(), TransportError> {
        let setup = QueueSetup {
            layout: Layout {
                size: queue.size,
                descriptors: queue.layout.desc,
                driver: queue.layout.avail,
                device: queue.layout.used,
                base: Some(queue.next as u16),
            },
            enabled: true,
            interrupt: Some(Box::new(Counter(
                self.interrupts[usize::from(index)].clone(),
            ))),
            error: None,
        };
        self.world
            .card
            .borrow_mut()
            .nic
            .rings()
            .set_up(usize::from(index), setup)
            .map(drop)
            .map_err(|error| TransportError::refused(format!("queue {index}"), error))
    }
}

impl Transport for InProcess {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn device_features(&mut self) -> Result<u64, TransportError> {
        let offered = self.world.card.borrow().nic.device.offered();
        Ok((offered - Features::PROTOCOL_FEATURES).bits())
    }

    fn set_driver_features(&mut self, features: u64) -> Result<(), TransportError> {
        let acked = Features::from_bits(features)
            .ok_or_else(|| TransportError::refused("features", format!("{features:#x}")))?;
        self.world
            .card
            .borrow_mut()
            .nic
            .set_features(acked)
            .map_err(|error| TransportError::refused("features", error))
    }

    fn max_queues(&self) -> Option<u16> {
        Some(self.queues.len() as u16)
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        let card = self.world.card.borrow();
        buf.copy_from_slice(&config::read(
            &card.nic.port,
            card.nic.device.offered(),
            offset as usize,
            buf.len(),
        ));
        Ok(())
    }

    fn setup_queue(&mut self, queue: &QueueConfig) -> Result<(), TransportError> {
        self.queues[usize::from(queue.index)] = Some(*queue);
        Ok(())
    }

    fn driver_ok(&mut self) -> Result<(), TransportError> {
        for queue in self.queues.iter().flatten() {
            self.set_up(queue.index, queue)?;
        }
        Ok(())
    }

    fn enable_queue(&mut self, index: u16, enable: bool) -> Result<(), TransportError> {
        let nic = &mut self.world.card.borrow_mut().nic;
        nic.rings().enable(usize::from(index), enable);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<u32, TransportError> {
        self.world
            .card
            .borrow_mut()
            .nic
            .rings()
            .tear_down(usize::from(index))
            .map(u32::from)
            .ok_or_else(|| TransportError::refused("stopping", format!("no queue {index}")))
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        self.world.card.borrow_mut().nic.reset();
        self.queues.fill(None);
        Ok(())
    }

    fn kick(&self, index: u16) {
        self.world
            .card
            .borrow_mut()
            .nic
            .device
            .count_kick(usize::from(index));
    }

    fn take_interrupt(&self, index: u16) -> u64 {
        self.interrupts[usize::from(index)].swap(0, Ordering::Relaxed)
    }

    fn wait_interrupt(&self, index: u16, timeout: Duration) -> bool {
        self.world
            .play(self.now() + timeout, || self.pending(index) > 0)
    }

    fn wait(&self, timeout: Duration) -> bool {
        let queues = 0..self.queues.len() as u16;
        self.world.play(self.now() + timeout, || {
            queues.clone().any(|index| self.pending(index) > 0)
        })
    }
}
