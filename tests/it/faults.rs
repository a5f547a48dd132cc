//! Faults on the line and at the queues: what a guest makes of them, and that every frame is accounted for.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use nic_backend::card::Line;
use nic_backend::wire::fault::{FaultSpec, FaultStatus};
use nic_backend::worker::Body;
use nic_device::nic::NicStatus;
use nic_device::virtio_net::VirtqueueCounters;
use nic_guest::net::{Errno, Kernel, KernelConfig, Protocol, SockType};
use nic_guest::transport::Transport;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{VirtnetInfo, features};
use nic_model::counters::Drop;
use nic_model::phy::Loopback;
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

use crate::support::{
    PATIENCE, TestNic, numbered_frame, virtual_guest, wait_until, without_super_frames,
};

type Guest = VirtnetInfo<InProcess>;

/// Has the faults of `spec` in the card of `transport` from now on.
pub fn inject(transport: &InProcess, spec: &str) {
    let (card, now) = (transport.card(), transport.now());
    let mut card = card.borrow_mut();
    let spec: FaultSpec = spec.parse().unwrap_or_else(|error| panic!("{error}"));
    card.inject(&spec, now);
    card.rings().set_faults(spec.host, spec.seed, now);
}

fn state(transport: &InProcess) -> (NicStatus, FaultStatus) {
    let card = transport.card();
    let mut card = card.borrow_mut();
    (card.nic.status(), card.faults())
}

/// Asserts that every frame is in one counter.
fn assert_balanced(what: &str, transport: &InProcess) -> (NicStatus, FaultStatus) {
    let (nic, faults) = state(transport);
    let port = &nic.port;
    assert_eq!(
        port.counters.receive_balance(port.rx_fifo_frames),
        0,
        "{what}: {port:#?}"
    );
    assert_eq!(port.counters.transmit_balance(0), 0, "{what}: {port:#?}");
    assert_eq!(
        (faults.rx.balance(), faults.tx.balance()),
        (0, 0),
        "{what}: {faults:#?}"
    );
    (nic, faults)
}

/// Lets the guest receive until `end`.
fn receive_until(guest: &mut Guest, end: Nanos, received: &mut Vec<(Nanos, Vec<u8>)>) {
    loop {
        let now = guest.transport.now();
        while guest
            .poll(0, 64, |frame| received.push((now, frame.to_vec())))
            .expect("sound rings")
            > 0
        {}
        if now >= end {
            return;
        }
        // A lost interrupt is made good for by looking now and then.
        guest.wait(end.since(now).min(Duration::from_micros(100)));
    }
}

/// Sends `count` frames of all sizes through a loopback with the faults of `spec`; what came when, and the state in the end.
fn loopback(spec: &str, count: u32) -> (Vec<(Nanos, Vec<u8>)>, NicStatus, FaultStatus) {
    let mut guest = virtual_guest("loopback", |port| {
        port.speed = "1G".parse().expect("a speed");
    });
    inject(&guest.transport, spec);
    let (mut received, mut number) = (Vec::new(), 0);
    while number < count {
        for _ in 0..50.min(count - number) {
            let frame = numbered_frame(number, 60 + (number as usize * 37) % 1455);
            // A full ring is tried again in the next round.
            if guest
                .start_xmit(0, &frame, &VirtioNetHdr::default())
                .is_err()
            {
                break;
            }
            number += 1;
        }
        guest.flush(0);
        let soon = guest.transport.now() + Duration::from_micros(300);
        receive_until(&mut guest, soon, &mut received);
    }
    let end = guest.transport.now() + Duration::from_millis(100);
    receive_until(&mut guest, end, &mut received);
    let (nic, faults) = assert_balanced(spec, &guest.transport);
    let lent = guest.transport.card().borrow().nic.port.pool.lent();
    assert_eq!(lent, 0, "{spec}: all buffers are back");
    assert_eq!(nic.port.counters.tx_fetched, u64::from(count), "{spec}");
    assert_eq!(
        nic.port.counters.rx_delivered,
        received.len() as u64,
        "{spec}"
    );
    (received, nic, faults)
}

/// The counts of all virtqueues together, as `count` gives them.
fn total(nic: &NicStatus, count: impl Fn(&VirtqueueCounters) -> u64) -> u64 {
    nic.queues.iter().map(count).sum()
}

/// Whether `hits` of `trials` are what a probability gives, within five standard deviations.
fn is_likely(hits: u64, trials: u64, probability: f64) -> bool {
    let mean = trials as f64 * probability;
    (hits as f64 - mean).abs() <= 5.0 * (mean * (1.0 - probability)).sqrt()
}

#[test]
fn each_fault_on_the_line_reaches_its_counter_and_the_guest_goes_on() {
    const FRAMES: u32 = 3_000;
    for (spec, which) in [
        ("drop=0.1", "dropped"),
        ("duplicate=0.1", "duplicated"),
        ("truncate=0.1", "truncated"),
        ("ber=1e-4", "damaged"),
        ("reorder=0.1/4", "reordered"),
        ("delay=50us±20us", "delayed"),
    ] {
        for direction in ["rx", "tx"] {
            let spec = format!("{direction}:{spec},seed=5");
            let (received, nic, faults) = loopback(&spec, FRAMES);
            let counts = serde_json::to_value(&faults).expect("JSON");
            let counted = counts[direction][which].as_u64().expect("a count");
            assert!(counted > 100, "{spec}: {counts:#}");
            let (rx, tx, drops) = (faults.rx, faults.tx, &nic.port.counters.drops);
            // A loopback has no far end: what is damaged on its way out, the card finds when it comes in.
            let found = drops.get(Drop::RxFcs) + drops.get(Drop::RxFragment);
            let damaged = rx.damaged + tx.damaged + rx.truncated + tx.truncated;
            assert_eq!(found, damaged, "{spec}");
            let came = u64::from(FRAMES) + rx.duplicated + tx.duplicated;
            let lost = rx.dropped + tx.dropped + damaged;
            assert_eq!(received.len() as u64, came - lost, "{spec}");
            let numbers = received.iter().map(|(_, frame)| {
                let octets = frame[14..18].try_into().expect("four octets");
                let number = u32::from_be_bytes(octets);
                assert_eq!(*frame, numbered_frame(number, frame.len()), "{spec}");
                number
            });
            let numbers: Vec<u32> = numbers.collect();
            assert_eq!(numbers.is_sorted(), which != "reordered", "{spec}");
        }
    }
}

#[test]
fn a_link_that_comes_and_goes_loses_what_is_under_way_and_no_more() {
    let (received, nic, faults) = loopback("flap=2ms/1ms", 3_000);
    assert!(faults.flaps >= 3, "{faults:?}");
    let down = nic.port.counters.drops.get(Drop::TxLinkDown);
    assert!(
        down > 100 && received.len() as u64 + down <= 3_000,
        "{down}"
    );
    // With faults of the line that keep frames, these are lost with the link, and counted.
    let (_, _, faults) = loopback("flap=2ms/1ms,delay=500us", 3_000);
    assert!(
        faults.rx.link_lost > 0 && faults.tx.link_lost > 0,
        "{faults:?}"
    );
}

#[test]
fn a_link_flaps_at_its_instants_and_the_user_has_the_last_word() {
    let guest = virtual_guest("generator:pps=1000", |_| {});
    inject(&guest.transport, "flap=10ms/5ms");
    let card = guest.transport.card();
    let link = |ms: u64| {
        guest.transport.run_until(Nanos(ms * 1_000_000));
        card.borrow().nic.port.phy.link()
    };
    for (ms, up) in [
        (9, true),
        (10, false),
        (14, false),
        (15, true),
        (24, true),
        (26, false),
    ] {
        assert_eq!(link(ms), up, "{ms}");
    }
    // What frees the line of its faults brings the link back.
    inject(&guest.transport, "none");
    assert!(link(26));
    inject(&guest.transport, "flap=10ms/5ms");
    assert!(!link(37));
    card.borrow_mut().set_link(Nanos(37_000_000), false);
    assert!(!link(90), "the user says that it is down");
    card.borrow_mut().set_link(Nanos(90_000_000), true);
    assert!(link(90));
    let flaps = card.borrow_mut().faults().flaps;
    link(200);
    assert!(card.borrow_mut().faults().flaps > flaps, "it goes on");
}

#[test]
fn a_link_that_flaps_negotiates_anew_each_time() {
    let mut guest = virtual_guest("sink", |port| {
        port.speed = "1G".parse().expect("a speed");
        port.autoneg = true;
    });
    let begin = guest.transport.now();
    inject(&guest.transport, "flap=4s/1s");
    let mut link = |ms: u64| {
        guest.transport.run_until(begin + Duration::from_millis(ms));
        guest.read_config().expect("a configuration space");
        guest.link_up()
    };
    // It takes 2.3 s; what breaks the link for 1.2 s of them begins when the cable is pulled.
    for (ms, up) in [
        (2_000, false),
        (2_400, true),
        (3_999, true),
        (4_000, false),
        (5_000, false),
        (6_300, false),
        (6_400, true),
        (8_999, true),
        (9_000, false),
    ] {
        assert_eq!(link(ms), up, "{ms}");
    }
    assert!(!link(9_500), "the cable is out");
    inject(&guest.transport, "none");
    let card = guest.transport.card();
    assert!(card.borrow().nic.port.phy.is_plugged());
    assert_eq!(card.borrow_mut().faults().flaps, 2);
}

#[test]
fn faults_befall_the_line_and_not_a_loopback_in_the_card() {
    let mut guest = virtual_guest("loopback", |_| {});
    let card = guest.transport.card();
    let mut returned = |at: Option<Loopback>| {
        let now = guest.transport.now();
        card.borrow_mut()
            .change_phy(now, &mut |phy| phy.set_loopback(now, at));
        let frame = numbered_frame(0, 60);
        for _ in 0..5 {
            guest
                .start_xmit(0, &frame, &VirtioNetHdr::default())
                .expect("room");
        }
        guest.flush(0);
        let mut received = Vec::new();
        receive_until(&mut guest, now + Duration::from_millis(5), &mut received);
        received.len()
    };
    let inject = |spec: &str| {
        let spec: FaultSpec = spec.parse().expect("faults");
        card.borrow_mut().inject(&spec, Nanos(1));
    };
    let dropped = || card.borrow_mut().faults().tx.dropped;
    assert_eq!(returned(None), 5);
    inject("tx:drop=1");
    assert_eq!((returned(None), dropped()), (0, 5));
    assert_eq!((returned(Some(Loopback::Mac)), dropped()), (5, 5));
    inject("tx:duplicate=1");
    assert_eq!(returned(Some(Loopback::Mac)), 5);
    assert_eq!(returned(None), 10);
    assert_eq!(returned(Some(Loopback::Mac)), 5);
    inject("none");
    assert_eq!(returned(Some(Loopback::Mac)), 5);
    assert_eq!(returned(None), 5);
    // One that is put there while frames turn in the card.
    assert_eq!(returned(Some(Loopback::Mac)), 5);
    inject("tx:drop=1");
    assert_eq!(returned(Some(Loopback::Mac)), 5);
    assert_eq!((returned(None), dropped()), (0, 10));
    assert_eq!(card.borrow().nic.port.pool.lent(), 0);
}

#[test]
fn each_fault_at_the_queues_reaches_its_counter_and_loses_nothing() {
    const FRAMES: u32 = 3_000;
    let plain = loopback("none", FRAMES);
    assert_eq!(plain.0.len(), FRAMES as usize);
    for (spec, which) in [
        ("dma-stall=200us/100us", "dma_stalls"),
        ("slow-used=30us", "used_late"),
        ("irq-lost=0.3", "interrupts_lost"),
        ("irq-spurious=10000", "interrupts_spurious"),
    ] {
        let (received, nic, _) = loopback(spec, FRAMES);
        let frames = |received: &[(Nanos, Vec<u8>)]| {
            received
                .iter()
                .map(|(_, frame)| frame.clone())
                .collect::<Vec<_>>()
        };
        assert!(
            frames(&received) == frames(&plain.0),
            "{spec}: all, in order"
        );
        let queues = serde_json::to_value(&nic.queues).expect("JSON");
        // This driver wants no interrupts for what was sent.
        let asked = if which == "interrupts_lost" { 1 } else { 2 };
        for queue in 0..asked {
            let counted = queues[queue][which].as_u64().expect("a count");
            assert!(counted > 0, "{spec}: {queues:#}");
        }
        let sent = total(&nic, |queue| queue.interrupts_sent);
        let lost = total(&nic, |queue| queue.interrupts_lost);
        assert!(
            which != "interrupts_lost" || sent > 0 && is_likely(lost, sent + lost, 0.3),
            "{sent} {lost}"
        );
        assert_eq!(queues[2][which], 0, "the control queue is left alone");
        // One direction alone.
        let (_, nic, _) = loopback(&format!("rx:{spec}"), 500);
        let queues = serde_json::to_value(&nic.queues).expect("JSON");
        assert!(
            queues[0][which] != 0 && queues[1][which] == 0,
            "{spec}: {queues:#}"
        );
    }
}

/// Everything at once.
const ALL: &str = "drop=0.02,duplicate=0.03,truncate=0.02,ber=1e-5,reorder=0.05/5,delay=30us±25us,flap=5ms/1ms,\
                   dma-stall=300us/50us,slow-used=5us,irq-lost=0.1,irq-spurious=1000,seed=";

#[test]
fn two_runs_with_one_seed_are_identical() {
    let run = |seed: u32| {
        let (received, nic, faults) = loopback(&format!("{ALL}{seed}"), 3_000);
        (received, format!("{nic:?} {faults:?}"))
    };
    let (first, second, other) = (run(7), run(7), run(8));
    assert_eq!(first.1, second.1, "counters");
    assert!(first.0 == second.0, "frames and instants");
    assert!(first.0 != other.0, "another seed");
}

#[test]
fn a_line_without_faults_in_this_direction_is_as_exact_as_before() {
    for wire in [
        "generator:pps=1000000,count=20000",
        "generator:count=20000,size=65",
        "generator:pps=900000,random=3,count=9000",
    ] {
        let run = |spec: &str| {
            let mut guest = virtual_guest(wire, |port| port.speed = "1G".parse().expect("a speed"));
            inject(&guest.transport, spec);
            let mut received = Vec::new();
            receive_until(&mut guest, Nanos(40_000_000), &mut received);
            assert_balanced(wire, &guest.transport);
            received
        };
        let (plain, decorated) = (run("none"), run("tx:drop=1"));
        // What the guest finds when it looks does not tell the instant at which it came; in an unpaced wire that is
        // settled only when it is asked.
        assert_eq!(plain.len(), decorated.len(), "{wire}");
        assert!(
            plain
                .iter()
                .map(|(at, _)| at)
                .eq(decorated.iter().map(|(at, _)| at)),
            "{wire}"
        );
    }
}

#[test]
fn losses_of_a_stream_are_those_that_were_asked_for() {
    let mut guest = virtual_guest("generator:pps=1000000,count=100000", |port| {
        port.link = false;
    });
    inject(&guest.transport, "rx:drop=0.01,rx:ber=1e-5,seed=11");
    let (card, now) = (guest.transport.card(), guest.transport.now());
    card.borrow_mut().set_link(now, true);
    let mut received = Vec::new();
    receive_until(&mut guest, Nanos(110_000_000), &mut received);
    let (nic, faults) = assert_balanced("a stream", &guest.transport);
    let (rx, drops) = (faults.rx, &nic.port.counters.drops);
    assert_eq!((rx.frames, rx.on_line), (100_000, 0));
    assert!(is_likely(rx.dropped, 100_000, 0.01), "{rx:?}");
    assert!(
        is_likely(rx.bit_errors, (100_000 - rx.dropped) * 512, 1e-5),
        "{rx:?}"
    );
    assert_eq!(drops.get(Drop::RxFcs), rx.damaged);
    assert_eq!(received.len() as u64, 100_000 - rx.dropped - rx.damaged);
}

/// Sends `count` datagrams to the partner's echo service, a few at a time; how many came back.
fn echo<T: Transport>(kernel: &mut Kernel<T, nic_testbed::in_process::World>, count: u32) -> u32 {
    let fd = kernel
        .socket(SockType::Dgram, Protocol::Udp)
        .expect("a socket");
    let to = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 7);
    let (mut back, mut buffer) = (0, [0; 1500]);
    for number in 0..count {
        match kernel.sendto(fd, &number.to_be_bytes(), Some(to)) {
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EHOSTUNREACH) => {}
            Err(error) => panic!("{error:?}"),
        }
        for _ in 0..4 {
            while kernel.step().expect("sound rings") {}
            loop {
                match kernel.recvfrom(fd, &mut buffer) {
                    Ok(_) => back += 1,
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EHOSTUNREACH | Errno::ECONNREFUSED) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            kernel
                .wait(Duration::from_micros(250))
                .expect("the card is there");
        }
    }
    kernel.close(fd).expect("it is open");
    back
}

#[test]
fn the_guests_kernel_survives_them_all_and_is_as_well_as_before_afterwards() {
    let guest = virtual_guest("partner", |_| {});
    let (world, card) = (guest.transport.world(), guest.transport.card());
    let mut kernel = Kernel::new(guest, world, KernelConfig::default());
    assert_eq!(echo(&mut kernel, 100), 100, "before");
    for spec in [
        "drop=0.1",
        "duplicate=0.1",
        "truncate=0.1",
        "ber=1e-4",
        "reorder=0.2/3",
        "delay=100us±50us",
        "flap=20ms/3ms",
        "dma-stall=1ms/300us",
        "slow-used=50us",
        // An interrupt that is lost is not made good for by the next one (EVENT_IDX): what makes the driver look again does.
        "irq-lost=0.2,irq-spurious=2000",
        "irq-spurious=5000",
        ALL.trim_end_matches(",seed="),
    ] {
        inject(&kernel.dev.transport, &format!("{spec},seed=1"));
        let back = echo(&mut kernel, 400);
        assert!(back >= 100, "{spec}: {back}");
        // The last interrupt that was lost.
        inject(&kernel.dev.transport, "irq-spurious=2000");
        echo(&mut kernel, 20);
        inject(&kernel.dev.transport, "none");
        assert_balanced(spec, &kernel.dev.transport);
        assert_eq!(echo(&mut kernel, 100), 100, "after {spec}");
    }
    let mut card = card.borrow_mut();
    assert!(card.plug().1.faults().is_none(), "no decorator is left");
}

#[test]
fn in_real_time_every_frame_is_accounted_for() {
    for (round, spec) in (0..).zip([
        "drop=0.05,duplicate=0.05",
        "truncate=0.05,ber=1e-5",
        "delay=200us±100us,reorder=0.1/3",
        "flap=20ms/5ms",
        "dma-stall=2ms/500us",
        "slow-used=100us",
        "slow-used=100us,dma-stall=2ms/500us",
        "irq-lost=0.2",
        "irq-spurious=1000",
    ]) {
        const FRAMES: u64 = 2_000;
        let nic = TestNic::with("loopback", |config| {
            config.fault = spec.parse().unwrap_or_else(|error| panic!("{error}"));
        });
        // Every other one with packed rings.
        let options = match round % 2 {
            0 => without_super_frames(),
            _ => without_super_frames().with(features::RING_PACKED),
        };
        let mut guest = nic.guest(&options);
        let (mut sent, mut received) = (0, 0);
        let start = Instant::now();
        while sent < FRAMES {
            for _ in 0..32 {
                let frame = numbered_frame(sent as u32, 200);
                if sent < FRAMES
                    && guest
                        .start_xmit(0, &frame, &VirtioNetHdr::default())
                        .is_ok()
                {
                    sent += 1;
                }
            }
            guest.flush(0);
            guest.wait(Duration::from_millis(1));
            guest.poll(0, 64, |_| received += 1).expect("sound rings");
            assert!(
                start.elapsed() < PATIENCE,
                "{spec}: it stands still at {sent}"
            );
        }
        wait_until(spec, || {
            guest.poll(0, 64, |_| received += 1).expect("sound rings");
            let status = nic.status();
            let (port, faults) = (&status.nic.port, &status.faults);
            let wire = |name: &str| status.wire_counters[name].as_u64().expect("a count");
            let gone =
                wire("loopback_returned") + wire("loopback_dropped") + wire("loopback_link_lost");
            let sent = match faults.tx.frames {
                0 => port.counters.tx_frames,
                _ => faults.tx.passed,
            };
            let under_way = faults.rx.on_line + faults.tx.on_line + port.rx_fifo_frames as u64;
            port.counters.tx_fetched == FRAMES
                && under_way + port.tx_queued_frames as u64 == 0
                && gone == sent
                && received == port.counters.rx_delivered
        });
        nic.assert_balanced();
        let faults = nic.status().faults;
        assert_eq!((faults.rx.balance(), faults.tx.balance()), (0, 0), "{spec}");
        nic.server()
            .set_faults(FaultSpec::default())
            .expect("the NIC runs");
        assert_eq!(nic.status().faults.spec, "none");
    }
}
