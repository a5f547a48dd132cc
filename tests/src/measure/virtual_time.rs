//! An experiment in virtual time.

use std::time::Duration;

use anyhow::ensure;
use nic_backend::card::{Card, Line};
use nic_backend::wire::PortFacts;
use nic_device::features::Features;
use nic_device::nic::{Nic, NicStatus};
use nic_guest::memory::GuestMemory;
use nic_guest::net::stats::KernelStats;
use nic_guest::net::{Kernel, KernelConfig};
use nic_guest::virtio_net::VirtnetInfo;
use nic_model::port::PortConfig;
use nic_model::time::Nanos;

use super::observer::Observer;
use super::{Experiment, GUEST_MEMORY, MAC, Outcome, Sample, probe_options};
use crate::in_process::{InProcess, World};

/// The longest stretch of virtual time between two reports of progress.
const STRIDE: Duration = Duration::from_millis(10);

/// A card with a generator on its wire, a guest's kernel, and a process that reads what the generator sends.
pub struct Testbed {
    kernel: Kernel<InProcess, World>,
    observer: Observer,
    world: World,
}

impl Testbed {
    /// Sets up what `experiment` says and lets the load begin.
    ///
    /// # Errors
    /// The experiment is none that a card can do.
    pub fn start(experiment: &Experiment) -> anyhow::Result<Self> {
        let config = PortConfig {
            mac: MAC,
            mtu: experiment.mtu(),
            speed: experiment.speed,
            link: false,
            rx_coalesce: experiment.own_mode(),
            ..PortConfig::default()
        };
        let facts = PortFacts::of(&config);
        let wire = experiment.wire().open(&facts)?;
        let card = Card::new(Nic::new(&config, Features::supported(1)), wire, Nanos::ZERO);
        let transport = InProcess::new(card, GuestMemory::new(GUEST_MEMORY)?)?;
        let world = transport.world();
        let dev = VirtnetInfo::probe(transport, &probe_options())?;
        let config = KernelConfig {
            cost: experiment.cost,
            ..KernelConfig::default()
        };
        let mut kernel = Kernel::new(dev, world.clone(), config);
        let observer = Observer::new(&mut kernel)?;
        if let Some((frames, usecs)) = experiment.said_by_driver() {
            kernel.dev.set_rx_coalesce(frames, usecs)?;
        }
        // What setting up caused is over before the load begins.
        while kernel.step()? {}
        let testbed = Testbed {
            kernel,
            observer,
            world,
        };
        let card = testbed.kernel.dev.transport.card();
        card.borrow_mut().set_link(testbed.now(), true);
        Ok(testbed)
    }

    /// The virtual clock.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.world.now()
    }

    /// Packets that the process has read.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.observer.delivered
    }

    /// Plays until `end`, or a little longer if the guest's CPU is busy then.
    ///
    /// # Errors
    /// A ring broke, or what arrived is not what was sent.
    pub fn run_until(&mut self, end: Nanos) -> anyhow::Result<()> {
        while self.now() < end {
            while self.now() < end && self.kernel.step()? {
                self.observer.read(&mut self.kernel)?;
            }
            let left = end.since(self.now());
            self.kernel.wait(left)?;
        }
        Ok(())
    }

    fn sample(&self) -> (NicStatus, KernelStats) {
        let card = self.kernel.dev.transport.card();
        let status = card.borrow().nic.status();
        (status, self.kernel.stats())
    }
}

/// Runs `experiment`; `progress` hears now and then how much of it is done, from 0 to 1.
///
/// # Errors
/// The experiment is none that a card can do, or its counters do not add up.
pub fn in_virtual_time(
    experiment: &Experiment,
    mut progress: impl FnMut(f64),
) -> anyhow::Result<Outcome> {
    let mut testbed = Testbed::start(experiment)?;
    let begin = testbed.now();
    let end = begin + experiment.duration;
    let (card, guest) = testbed.sample();
    let before = Sample::new(&card, &guest);
    while testbed.now() < end {
        let now = testbed.now();
        progress(now.since(begin).as_secs_f64() / experiment.duration.as_secs_f64());
        testbed.run_until(end.min(now + STRIDE))?;
    }
    let (card, guest) = testbed.sample();
    check_balance(&card)?;
    let outcome = Outcome::between(
        &before,
        &Sample::new(&card, &guest),
        &testbed.observer,
        testbed.now().since(begin),
    );
    ensure!(
        outcome.lateness.is_none_or(|late| late.max.is_zero()),
        "a deadline was missed in virtual time: {:?}",
        outcome.lateness
    );
    Ok(Outcome {
        lateness: None,
        ..outcome
    })
}

/// Each frame has ended in one counter.
fn check_balance(status: &NicStatus) -> anyhow::Result<()> {
    let counters = &status.port.counters;
    let missing = counters.receive_balance(status.port.rx_fifo_frames);
    ensure!(
        missing == 0,
        "{missing} frames are in no counter: {counters:?}"
    );
    Ok(())
}
