use super::*;
use crate::frame::Frame;
use crate::host::Recorder;
use crate::moderation::Coalesce;
use crate::port::{Port, PortConfig};
use crate::queues::Queues;

const ONE: QueueIndex = QueueIndex(0);

/// A card's queues and port, a host that records, and what is in between.
struct Bench {
    port: Port,
    queues: Queues,
    host: Recorder,
    rx: Vec<Frame>,
}

impl Bench {
    fn new(faults: HostFaults, coalesce: Coalesce) -> Self {
        let config = PortConfig {
            rx_coalesce: coalesce.into(),
            tx_coalesce: coalesce.into(),
            ..PortConfig::default()
        };
        let mut bench = Bench {
            port: Port::new(&config),
            queues: Queues::new(&config),
            host: Recorder::default(),
            rx: Vec::new(),
        };
        let host = &mut bench.host;
        bench.queues.set_faults(faults, 1, Nanos::ZERO, host);
        bench
    }

    /// A frame that is ready on the line at `at`.
    fn come(&mut self, at: u64) {
        let mut frame = self.port.pool.take();
        let bytes = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5], &[0; 46]].concat();
        assert!(frame.fill(&bytes));
        frame.arrival = Nanos(at);
        self.rx.push(frame);
    }

    fn round(&mut self, now: u64) {
        let (now, host) = (Nanos(now), &mut self.host);
        let mut out = Vec::new();
        self.queues.receive(&mut self.port, now, &mut self.rx, host);
        self.queues
            .transmit(&mut self.port, now, &mut out, &mut self.host);
        self.port.pool.give_all(out);
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        self.queues.next_deadline(Nanos(now)).map(|due| due.0)
    }

    /// Frames delivered, interrupts raised, times shown late.
    fn done(&self) -> (usize, usize, usize) {
        let Recorder {
            delivered,
            interrupts,
            shown_late,
            ..
        } = &self.host;
        (delivered.len(), interrupts.len(), *shown_late)
    }
}

fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn receive(faults: QueueFaults) -> HostFaults {
    HostFaults {
        receive: faults,
        ..HostFaults::default()
    }
}

fn stall(run: u64, stall: u64) -> Option<Stall> {
    let (run, stall) = (micros(run), micros(stall));
    Some(Stall { run, stall })
}

#[test]
fn dma_stands_still_and_goes_on() {
    let stall = stall(10, 5);
    let mut bench = Bench::new(
        receive(QueueFaults {
            stall,
            ..QueueFaults::default()
        }),
        Coalesce::default(),
    );
    assert_eq!(bench.deadline(0), Some(10_000));
    bench.come(1_000);
    bench.round(2_000);
    assert_eq!(bench.done(), (1, 1, 0));
    // The last instant still counts.
    bench.come(9_000);
    bench.round(10_000);
    assert_eq!(bench.done(), (2, 2, 0));
    assert_eq!(bench.deadline(10_000), Some(15_000));
    bench.come(11_000);
    bench.round(12_000);
    bench.round(14_999);
    assert_eq!(bench.done(), (2, 2, 0), "it stands still");
    assert!(
        !bench.queues.starved(Nanos(14_999), ONE),
        "it lacks no buffers"
    );
    assert_eq!(
        bench.host.faults,
        [(ONE, Direction::Receive, Fault::DmaStall)]
    );
    bench.round(15_000);
    assert_eq!(bench.done(), (3, 3, 0));
    assert_eq!(bench.deadline(15_000), Some(25_000));
    // The other direction never stood.
    bench
        .host
        .to_send
        .push_back((vec![0; 60], crate::frame::Checksum::Unknown));
    bench.round(27_000);
    assert_eq!(bench.host.completed, 1);
    assert_eq!(bench.queues.frames(), 0);
}

#[test]
fn what_a_stall_delayed_counts_from_its_end_on() {
    // The condition is met 8 us after the first packet that the host has.
    let coalesce = Coalesce {
        usecs: 8,
        frames: 100,
    };
    let stall = stall(10, 5);
    let mut bench = Bench::new(
        receive(QueueFaults {
            stall,
            ..QueueFaults::default()
        }),
        coalesce,
    );
    bench.come(11_000);
    // Nobody looked while it stood.
    bench.round(16_000);
    assert_eq!(bench.done(), (1, 0, 0));
    assert_eq!(bench.deadline(16_000), Some(15_000 + 8_000));
    bench.round(23_000);
    assert_eq!(bench.done(), (1, 1, 0));
}

#[test]
fn packets_wait_in_the_drivers_ring_while_dma_stands_still() {
    let transmit = QueueFaults {
        stall: stall(10, 5),
        ..QueueFaults::default()
    };
    let faults = HostFaults {
        transmit,
        ..HostFaults::default()
    };
    let mut bench = Bench::new(faults, Coalesce::default());
    bench
        .host
        .to_send
        .push_back((vec![0; 60], crate::frame::Checksum::Unknown));
    bench.round(11_000);
    assert_eq!((bench.host.to_send.len(), bench.host.completed), (1, 0));
    assert!(
        bench
            .queues
            .is_stalled(ONE, Direction::Transmit, Nanos(11_000))
    );
    assert!(
        !bench
            .queues
            .is_stalled(ONE, Direction::Receive, Nanos(11_000))
    );
    bench.round(15_000);
    assert_eq!((bench.host.to_send.len(), bench.host.completed), (0, 1));
}

#[test]
fn a_slow_used_ring_is_shown_later_and_only_then_the_driver_is_interrupted() {
    let faults = QueueFaults {
        slow_used: micros(20),
        ..QueueFaults::default()
    };
    let both = HostFaults {
        receive: faults,
        transmit: faults,
        ..HostFaults::default()
    };
    let mut bench = Bench::new(both, Coalesce::default());
    bench.come(900);
    bench.round(1_000);
    bench.come(4_900);
    bench
        .host
        .to_send
        .push_back((vec![0; 60], crate::frame::Checksum::Unknown));
    bench.round(5_000);
    assert_eq!(bench.done(), (2, 0, 0), "in memory, and not shown");
    assert_eq!(bench.host.completed, 0);
    assert_eq!(bench.deadline(5_000), Some(21_000));
    bench.round(20_999);
    assert_eq!(bench.done(), (2, 0, 0));
    bench.round(21_000);
    assert_eq!(bench.done(), (2, 1, 1), "both with the first");
    assert_eq!(bench.deadline(21_000), Some(25_000));
    bench.round(25_000);
    assert_eq!((bench.done(), bench.host.completed), ((2, 2, 1), 1));
    assert_eq!(bench.deadline(25_000), None);
    let moderation = bench.queues.moderator.of(ONE, Direction::Receive);
    assert_eq!(moderation.counters().conditions_met, 2);
}

#[test]
fn who_ends_the_faults_shows_what_was_held() {
    let faults = receive(QueueFaults {
        slow_used: micros(20),
        ..QueueFaults::default()
    });
    let mut bench = Bench::new(faults, Coalesce::default());
    bench.come(900);
    bench.round(1_000);
    let none = HostFaults::default();
    bench
        .queues
        .set_faults(none, 0, Nanos(2_000), &mut bench.host);
    assert_eq!(bench.done(), (1, 1, 1));
    assert_eq!(bench.deadline(2_000), None);
    // A queue that starts over has nothing to show.
    let mut bench = Bench::new(faults, Coalesce::default());
    bench.come(900);
    bench.round(1_000);
    bench.queues.forget_held(ONE, Direction::Receive);
    bench.round(30_000);
    assert_eq!(bench.done(), (1, 0, 0));
}

#[test]
fn interrupts_for_nothing_come_at_their_rate_and_the_same_each_time() {
    let play = || {
        let faults = receive(QueueFaults {
            spurious_interrupts: 10_000.0,
            ..QueueFaults::default()
        });
        let mut bench = Bench::new(faults, Coalesce::default());
        let (mut now, mut instants) = (0, Vec::new());
        // Whoever serves a queue looks after it from its first round on.
        bench.round(now);
        while let Some(due) = bench.deadline(now).filter(|&due| due <= 1_000_000_000) {
            assert!(due > now);
            now = due;
            bench.round(now);
            instants.push(now);
        }
        let kind = (ONE, Direction::Receive, Fault::SpuriousInterrupt);
        assert!(bench.host.faults.iter().all(|&fault| fault == kind));
        assert_eq!(bench.host.faults.len(), instants.len());
        instants
    };
    let instants = play();
    // Five standard deviations of a Poisson number.
    assert!(instants.len().abs_diff(10_000) < 500, "{}", instants.len());
    assert_eq!(instants, play());
}
