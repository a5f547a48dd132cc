//! An experiment in real time: a NIC with its threads, a guest at the other end of its socket, the machine's clock.

use std::time::Duration;

use anyhow::{Context, ensure};
use nic_backend::clock::Clock;
use nic_backend::cpus::CpuList;
use nic_backend::patience::PollMode;
use nic_backend::server::{NicConfig, NicServer};
use nic_backend::wire::fault::FaultSpec;
use nic_device::features::Features;
use nic_guest::memory::GuestMemory;
use nic_guest::net::{Kernel, KernelConfig, Machine};
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::VirtnetInfo;
use nic_model::port::PortConfig;

use super::observer::Observer;
use super::{Experiment, GUEST_MEMORY, MAC, Outcome, Sample, probe_options};

/// How often progress is shown.
const NAP: Duration = Duration::from_millis(100);

/// The computer that this process runs on, with the NIC's clock.
pub struct RealMachine(pub Clock);

impl Machine for RealMachine {
    fn now(&self) -> u64 {
        self.0.now().0
    }

    fn spend(&self, _ns: u64) {}
}

/// Runs `experiment`; `progress` hears now and then how much of it is done, from 0 to 1.
///
/// # Errors
/// The NIC cannot be started, or what came is not what was sent.
pub fn in_real_time(
    experiment: &Experiment,
    mut progress: impl FnMut(f64),
) -> anyhow::Result<Outcome> {
    let directory = tempfile::tempdir().context("no temporary directory for the socket")?;
    let clock = Clock::start();
    let server = NicServer::start(NicConfig {
        name: None,
        socket: directory.path().join("nic"),
        port: PortConfig {
            mac: MAC,
            mtu: experiment.mtu(),
            speed: experiment.speed,
            link: false,
            rx_coalesce: experiment.own_mode(),
            ..PortConfig::default()
        },
        features: Features::supported(1),
        wire: experiment.wire(),
        fault: FaultSpec::default(),
        workers: 1,
        poll: if experiment.poll {
            PollMode::Always
        } else {
            PollMode::Never
        },
        cpus: CpuList::default(),
        trace: false,
        clock,
    })?;
    let transport = VhostUser::connect(server.socket(), GuestMemory::new(GUEST_MEMORY)?)?;
    let dev = VirtnetInfo::probe(transport, &probe_options())?;
    let machine = RealMachine(clock);
    let mut kernel = Kernel::new(dev, machine, KernelConfig::default());
    let mut observer = Observer::new(&mut kernel)?;
    if let Some((frames, usecs)) = experiment.said_by_driver() {
        kernel.dev.set_rx_coalesce(frames, usecs)?;
    }
    while kernel.step()? {}
    let before = Sample::new(&server.status()?.nic, &kernel.stats());

    let begin = clock.now();
    let end = begin + experiment.duration;
    server.set_link(true)?;
    let mut next_report = begin;
    loop {
        let now = clock.now();
        if now >= end {
            break;
        }
        if now >= next_report {
            progress(now.since(begin).as_secs_f64() / experiment.duration.as_secs_f64());
            next_report = now + NAP;
        }
        if kernel.step()? {
            observer.read(&mut kernel)?;
        } else {
            kernel.wait(end.min(next_report).since(now))?;
        }
    }
    let elapsed = clock.now().since(begin);
    let after = Sample::new(&server.status()?.nic, &kernel.stats());
    ensure!(observer.delivered > 0, "nothing arrived");
    Ok(Outcome::between(&before, &after, &observer, elapsed))
}
