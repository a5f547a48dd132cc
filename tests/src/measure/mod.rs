//! Interrupt rates, measured: a load on the wire, a card that moderates, a guest that counts.
//!
//! [`in_virtual_time`] is one deterministic function: card, wire and guest in one loop, event by event, without
//! threads; the same [`Experiment`] gives the same [`Outcome`] on every machine. [`in_real_time`] does the same over
//! a vhost-user socket with the machine's clock. What should come out by arithmetic is in [`closed_form`], how
//! it is shown in [`report`].

use std::num::NonZeroU64;
use std::time::Duration;

use nic_backend::coalesce::CoalesceSpec;
use nic_backend::wire::WireSpec;
use nic_device::nic::NicStatus;
use nic_device::rings::ModerationStatus;
use nic_guest::net::stats::KernelStats;
use nic_guest::net::{CpuCost, DEVICE_FEATURES};
use nic_guest::virtio_net::ProbeOptions;
use nic_guest::virtio_net::rx::GOOD_PACKET_LEN;
use nic_guest::virtio_net::toeplitz::VERIFICATION_KEY;
use nic_model::filter::MacAddress;
use nic_model::moderation::{Coalesce, Mode, ModeStatus};
use nic_model::phy::{LINE_OVERHEAD, Speed};

pub mod closed_form;
mod observer;
mod real_time;
pub mod report;
mod virtual_time;

pub use real_time::{RealMachine, in_real_time};
pub use virtual_time::{Testbed, in_virtual_time};

use closed_form::{Arrivals, Load};

/// The station's address.
const MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
/// Where the generator's datagrams go: the discard service.
const PORT: u16 = 9;
/// Memory of the guest, in octets: rings and buffers of a queue pair.
const GUEST_MEMORY: usize = 16 << 20;
/// The reader's buffer, in octets: as large as it takes, so that nothing is lost behind the kernel.
const RCVBUF: usize = 16 << 20;

/// One run of the instrument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experiment {
    /// Packets a second that are offered.
    pub pps: NonZeroU64,
    /// Octets of a frame with its check sequence.
    pub frame_size: usize,
    /// When the card interrupts.
    pub coalesce: CoalesceSpec,
    /// How the packets follow each other.
    pub arrivals: Arrivals,
    /// The line's rate.
    pub speed: Speed,
    /// For how long.
    pub duration: Duration,
    /// What chance starts from.
    pub seed: u64,
    /// What the guest's CPU takes for its work; in virtual time only.
    pub cost: CpuCost,
    /// Whether the card spins instead of sleeping; in real time only.
    pub poll: bool,
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Packets that were offered.
    pub offered: u64,
    /// Packets that reached the socket.
    pub delivered: u64,
    /// Times that the moderation's condition was met, by its own count.
    pub conditions_met: u64,
    /// Interrupts that the card sent.
    pub interrupts: u64,
    /// The time that it took.
    pub elapsed: Duration,
    /// The moderation's mode, and where it was in the end.
    pub mode: ModeStatus,
    /// Its parameters in the end.
    pub in_force: Coalesce,
    /// Rounds of the guest's NAPI.
    pub polls: u64,
    /// Packets lost, by reason, those that are none left out.
    pub drops: Vec<(String, u64)>,
    /// From the first bit on the wire to the socket's queue, in nanoseconds: half of the packets were faster.
    pub latency_p50: u64,
    /// 99 of 100 were faster.
    pub latency_p99: u64,
    /// How late the card was when time was up; in real time only.
    pub lateness: Option<Lateness>,
}

/// How late the card was when a moderation's time was up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// In the mean.
    pub mean: Duration,
    /// At most.
    pub max: Duration,
}

impl Experiment {
    /// The load, for the closed form.
    #[must_use]
    pub fn load(&self) -> Load {
        let octet = self.speed.picoseconds_per_octet() as f64 / 1e12;
        Load {
            pps: self.pps.get() as f64,
            occupies: (self.frame_size + LINE_OVERHEAD) as f64 * octet,
            arrivals: self.arrivals,
        }
    }

    /// Conditions a second by arithmetic, if there is a closed form.
    #[must_use]
    pub fn expected(&self) -> Option<f64> {
        self.load().conditions_per_second(self.coalesce.rx)
    }

    /// What the card comes with: what a driver cannot say.
    fn own_mode(&self) -> Mode {
        match self.coalesce.rx {
            Mode::NotfCoal(_) => Mode::default(),
            own => own,
        }
    }

    /// What the driver says of it: frames, and microseconds.
    fn said_by_driver(&self) -> Option<(u32, u32)> {
        match self.coalesce.rx {
            Mode::NotfCoal(coalesce) => Some((coalesce.frames, coalesce.usecs)),
            _ => None,
        }
    }

    /// Why the closed form may not hold for this experiment, in words for whoever asked for it.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let load = self.load();
        let Some(group) = load.packets_per_condition(self.coalesce.rx, Duration::ZERO) else {
            return Vec::new();
        };
        let ring = f64::from(probe_options().queue_size);
        let buffers = (self.frame_size as f64 / GOOD_PACKET_LEN as f64).ceil();
        let mut doubts = Vec::new();
        // Time alone goes on.
        let counts = matches!(self.coalesce.rx, Mode::NotfCoal(_));
        if counts && group * buffers > ring {
            doubts.push(format!(
                "the guest's ring of {ring} buffers runs dry before {group:.0} packets are there: fewer interrupts than expected"
            ));
        }
        let groups = load.through() * self.duration.as_secs_f64() / group;
        if groups < 200.0 {
            doubts.push(format!(
                "only {groups:.0} interrupts to expect: the last one, cut off, is an error of up to {:.1} %; give more --packets",
                100.0 / groups.max(1.0)
            ));
        }
        doubts
    }

    /// The wire that makes the load.
    fn wire(&self) -> WireSpec {
        WireSpec::Generator {
            pps: Some(self.pps),
            size: self.frame_size,
            flows: 1,
            count: None,
            random: (self.arrivals == Arrivals::Poisson).then_some(self.seed),
        }
    }

    /// The longest packet that a frame of this size carries, at least the usual.
    fn mtu(&self) -> u16 {
        let overhead = nic_model::frame::ETHERNET_HEADER + nic_model::frame::FCS;
        (self.frame_size - overhead).clamp(1500, 9216) as u16
    }
}

/// How a guest's kernel takes its device.
pub(crate) fn probe_options() -> ProbeOptions {
    ProbeOptions {
        features: DEVICE_FEATURES,
        rss_key: Some(VERIFICATION_KEY),
        ..ProbeOptions::default()
    }
}

/// All counts at one instant.
struct Sample {
    offered: u64,
    interrupts: u64,
    moderation: ModerationStatus,
    polls: u64,
    /// Packets lost: first the card's reasons, then the guest's.
    drops: Vec<(&'static str, u64)>,
}

impl Sample {
    fn new(card: &NicStatus, guest: &KernelStats) -> Self {
        let drops = card.port.counters.drops.iter();
        let drops = drops.map(|(reason, count)| (reason.name(), count));
        Sample {
            offered: card.port.counters.rx_frames,
            interrupts: card.queues[0].interrupts_sent,
            moderation: card.moderation[0].expect("a receive queue"),
            polls: guest.rx().polls,
            drops: drops.chain(guest.drops()).collect(),
        }
    }
}

impl Outcome {
    fn between(
        before: &Sample,
        after: &Sample,
        observer: &observer::Observer,
        elapsed: Duration,
    ) -> Self {
        let (now, then) = (after.moderation.counters, before.moderation.counters);
        let timers = now.by_timer - then.by_timer;
        let late = now.timer_late_ns - then.timer_late_ns;
        let drops = before.drops.iter().zip(&after.drops);
        Outcome {
            offered: after.offered - before.offered,
            delivered: observer.delivered,
            conditions_met: now.conditions_met - then.conditions_met,
            interrupts: after.interrupts - before.interrupts,
            elapsed,
            mode: after.moderation.mode,
            in_force: after.moderation.coalesce,
            polls: after.polls - before.polls,
            drops: drops
                .map(|(&(_, before), &(name, after))| (name.to_owned(), after - before))
                .filter(|&(_, count)| count > 0)
                .collect(),
            latency_p50: observer.latency(50.0),
            latency_p99: observer.latency(99.0),
            lateness: late.checked_div(timers).map(|mean| Lateness {
                mean: Duration::from_nanos(mean),
                max: Duration::from_nanos(now.timer_late_max_ns),
            }),
        }
    }
}
