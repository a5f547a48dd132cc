//! Whole experiments in virtual time: NIC, wire and guest as one function of their input, to the nanosecond.

use std::time::Duration;

use nic_backend::card::Line;
use nic_guest::virtio_net::VirtnetInfo;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_model::counters::{Drop, PortCounters};
use nic_model::phy::Speed;
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

use crate::support::{numbered_frame, virtual_guest};

type Guest = VirtnetInfo<InProcess>;

const SECOND: u64 = 1_000_000_000;
/// Octets that each frame costs on the line beside its own: preamble, start frame delimiter and gap.
const OVERHEAD: u64 = 20;

fn counters(guest: &Guest) -> PortCounters {
    guest.transport.card().borrow().nic.counters()
}

/// Asserts that every frame is in one counter, and every buffer where it belongs.
fn assert_balanced(guest: &Guest) {
    let card = guest.transport.card();
    let card = card.borrow();
    let (nic, in_fifo) = (&card.nic, card.nic.queues.frames());
    let (counters, status) = (nic.counters(), nic.status());
    assert_eq!(counters.receive_balance(in_fifo), 0, "{status:#?}");
    assert_eq!(counters.transmit_balance(0), 0, "{status:#?}");
}

/// Lets the guest receive until `end`; calls `each` with the instant and the octets of each frame.
pub fn receive_until(guest: &mut Guest, end: Nanos, mut each: impl FnMut(Nanos, Vec<u8>)) {
    loop {
        let now = guest.transport.now();
        while guest
            .poll(0, 64, |frame| each(now, frame.to_vec()))
            .expect("sound rings")
            > 0
        {}
        if now >= end {
            return;
        }
        guest.wait(end.since(now));
    }
}

/// The number in a frame of the generator: behind Ethernet, IPv4 and UDP headers.
fn sequence(frame: &[u8]) -> u64 {
    let octets = frame[42..50].try_into().expect("eight octets");
    u64::from_be_bytes(octets)
}

#[test]
fn a_second_of_a_constant_rate_is_that_many_frames_each_at_its_instant() {
    let mut guest = virtual_guest("generator:pps=100000", |_| {});
    let mut count = 0;
    receive_until(&mut guest, Nanos(SECOND), |instant, frame| {
        // Due every 10 us; 72 octets, the preamble's with them, take 57.6 ns at 10 Gb/s.
        assert_eq!(instant, Nanos(count * 10_000 + 57), "frame {count}");
        assert_eq!(sequence(&frame), count);
        count += 1;
    });
    assert_eq!(count, 100_000);
    assert_eq!(guest.stats().0.packets, 100_000);
    assert_eq!(counters(&guest).rx_delivered, 100_000);
    assert_balanced(&guest);
}

#[test]
fn the_line_carries_what_ethernet_can_and_not_a_frame_more() {
    // A guest that never empties its ring: what is offered is the line's affair alone.
    for (speed, size, span) in [
        // The number everybody knows: 1,488,095 frames a second.
        ("1G", 64, SECOND),
        ("10M", 64, SECOND),
        ("100M", 1518, SECOND),
        ("1G", 1518, SECOND / 10),
        ("2.5G", 512, SECOND / 100),
        ("10G", 64, SECOND / 1_000),
        ("25G", 65, SECOND / 1_000),
        ("100G", 1518, SECOND / 1_000),
        ("400G", 64, SECOND / 100_000),
    ] {
        let what = format!("{size} octets at {speed}");
        let rate: Speed = speed.parse().expect("a speed");
        let guest = virtual_guest(&format!("generator:size={size}"), |port| port.speed = rate);
        guest.transport.run_until(Nanos(span));
        let counters = counters(&guest);
        let bits = 8 * (size + OVERHEAD);
        let exact = u64::from(rate.mbps()) * 1_000_000 * span / SECOND / bits;
        // Those whose last bit is through at the end; the line has taken a burst more at most.
        let arrived = counters.rx_frames - after(&guest, Nanos(span));
        assert!(arrived.abs_diff(exact) <= 1, "{what}: {arrived} of {exact}");
        assert!(counters.rx_frames - arrived <= 64, "{what}");
        assert_balanced(&guest);
        let in_fifo = guest.transport.card().borrow().nic.queues.frames() as u64;
        let overflow = counters.drops.get(Drop::RxFifoOverflow);
        assert_eq!(
            counters.rx_frames,
            counters.rx_delivered + overflow + in_fifo,
            "{what}"
        );
    }
}

/// Frames that the line has taken but not yet carried at `now`, by its own account.
fn after(guest: &Guest, now: Nanos) -> u64 {
    let card = guest.transport.card();
    let card = card.borrow();
    let (port, counters) = (&card.nic.port, card.nic.counters());
    let each = counters.rx_octets / counters.rx_frames + OVERHEAD;
    let left = port.phy.rx.busy_until().since(now).as_nanos() as u64;
    (left * u64::from(port.phy.speed().mbps())).div_ceil(8_000 * each)
}

#[test]
fn what_does_not_fit_into_the_fifo_is_dropped_and_counted() {
    let gigabit: Speed = "1G".parse().expect("a speed");
    let mut guest = virtual_guest("generator:size=64", |port| {
        port.speed = gigabit;
        port.fifo = 64 * 1000;
    });
    let end = Nanos(SECOND / 100);
    guest.transport.run_until(end);
    let ring = u64::from(guest.rq[0].vq.size());
    let before = counters(&guest);
    // As many as there are buffers, as many as the FIFO holds, and the rest.
    assert_eq!(before.rx_delivered, ring);
    assert_eq!(guest.transport.card().borrow().nic.queues.frames(), 1000);
    assert_eq!(
        before.drops.get(Drop::RxFifoOverflow),
        before.rx_frames - ring - 1000
    );
    // The newest were dropped: what the guest finds begins with the first, without a gap.
    guest.transport.card().borrow_mut().set_link(end, false);
    let mut received = Vec::new();
    let later = Nanos(2 * end.0);
    receive_until(&mut guest, later, |_, frame| {
        received.push(sequence(&frame));
    });
    assert_eq!(received, Vec::from_iter(0..ring + 1000));
    let counters = counters(&guest);
    assert_eq!(counters.rx_frames, before.rx_frames);
    assert_eq!(counters.drops.total(), before.drops.total());
    assert_balanced(&guest);
    assert_eq!(guest.transport.card().borrow().nic.port.pool.lent(), 0);
}

#[test]
fn what_is_sent_leaves_at_the_rate_of_the_line() {
    for (speed, len, picoseconds_per_octet) in [
        ("10M", 60, 800_000),
        ("1G", 1514, 8_000),
        ("10G", 60, 800),
        ("40G", 1514, 200),
    ] {
        let mut guest = virtual_guest("sink", |port| port.speed = speed.parse().expect("a speed"));
        let begin = guest.transport.now();
        let frames = u64::from(guest.sq[0].vq.size());
        for number in 0..frames {
            let frame = numbered_frame(number as u32, len);
            guest
                .start_xmit(0, &frame, &VirtioNetHdr::default())
                .expect("room");
        }
        guest.flush(0);
        guest.transport.run_until(begin + Duration::from_secs(10));
        let card = guest.transport.card();
        let card = card.borrow();
        let cost = frames * (len as u64 + 4 + OVERHEAD) * picoseconds_per_octet / 1_000;
        let through = card.nic.port.phy.tx.busy_until();
        assert_eq!(
            through.since(begin).as_nanos() as u64,
            cost,
            "{len} octets at {speed}"
        );
        assert!(card.wire().counters().contains(&("sink_frames", frames)));
        drop(card);
        assert_balanced(&guest);
    }
}

/// Sends `count` frames of all sizes through a loopback; what came when, and all counts in the end.
fn loopback(count: u32) -> (Vec<(Nanos, Vec<u8>)>, String) {
    let mut guest = virtual_guest("loopback", |port| {
        port.speed = "1G".parse().expect("a speed");
    });
    let mut received = Vec::new();
    let mut number = 0;
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
        receive_until(&mut guest, soon, |instant, frame| {
            received.push((instant, frame));
        });
    }
    let end = guest.transport.now() + Duration::from_millis(100);
    receive_until(&mut guest, end, |instant, frame| {
        received.push((instant, frame));
    });
    assert_balanced(&guest);
    let card = guest.transport.card();
    let card = card.borrow();
    (
        received,
        format!("{:?} {:?}", card.nic.status(), card.wire().counters()),
    )
}

#[test]
fn the_same_input_gives_the_same_output() {
    const FRAMES: u32 = 5_000;
    let (first, second) = (loopback(FRAMES), loopback(FRAMES));
    assert_eq!(first.1, second.1, "counters");
    assert!(first.0 == second.0, "frames and instants");
    let numbers = first.0.iter().map(|(_, frame)| {
        let octets = frame[14..18].try_into().expect("four octets");
        u32::from_be_bytes(octets)
    });
    assert!(numbers.eq(0..FRAMES), "all, in order");
    for (_, frame) in &first.0 {
        let number = u32::from_be_bytes(frame[14..18].try_into().expect("four octets"));
        assert_eq!(*frame, numbered_frame(number, frame.len()));
    }

    let generated = || {
        let mut guest = virtual_guest("generator:pps=1234567,flows=7,size=128", |_| {});
        let mut received = Vec::new();
        receive_until(&mut guest, Nanos(SECOND / 100), |instant, frame| {
            received.push((instant, frame));
        });
        let status = guest.transport.card().borrow().nic.status();
        (received, format!("{status:?} {:?}", guest.stats()))
    };
    let (first, second) = (generated(), generated());
    assert_eq!(first.1, second.1, "counters");
    assert!(first.0 == second.0, "frames and instants");
    assert!(first.0.len() >= 12_344, "{}", first.0.len());
}

#[test]
fn a_frame_through_the_loopback_takes_its_time_twice() {
    let mut guest = virtual_guest("loopback", |port| {
        port.speed = "1G".parse().expect("a speed");
    });
    for len in [60, 61, 512, 1514] {
        let frame = numbered_frame(7, len);
        let begin = guest.transport.now();
        guest
            .start_xmit(0, &frame, &VirtioNetHdr::default())
            .expect("room");
        guest.flush(0);
        let mut arrived = None;
        let end = begin + Duration::from_millis(1);
        receive_until(&mut guest, end, |instant, octets| {
            assert!(arrived.replace(instant).is_none() && octets == frame);
        });
        // Sent and received, from the preamble's first bit to the frame's last, at 8 ns an octet.
        let cost = 2 * 8 * (len as u64 + 4 + 8);
        let took = arrived.expect("a frame").since(begin);
        assert_eq!(took.as_nanos() as u64, cost, "{len} octets");
    }
}
