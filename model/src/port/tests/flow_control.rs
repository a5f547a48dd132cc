//! PAUSE in both directions, to the nanosecond.

use super::*;
use crate::pause;
use crate::phy::Loopback;

/// Octets' time on the line of a frame of `len` octets without its check sequence, in nanoseconds at 1 Gb/s.
fn line_time(len: u64) -> u64 {
    (len + 4 + 20) * 8
}

/// A card of 1 Gb/s with a FIFO of 64 KiB whose partner is as `partner` says, and when their link is up.
pub(super) fn linked(partner: &str) -> (Card, Nanos) {
    let mut card = card(|c| {
        c.speed = Speed::from_mbps(1_000).unwrap();
        c.link = true;
        c.autoneg = true;
        c.partner = partner.parse().unwrap();
        c.fifo = 64 * 1024;
    });
    let mut now = Nanos::ZERO;
    while !card.phy.link() {
        now = card.phy.next_deadline().expect("it negotiates");
        card.change_phy(|phy| phy.advance(now));
    }
    (card, now)
}

pub(super) fn to_send(host: &mut Recorder, frames: usize) {
    let frame = (vec![0x11; 1000], Checksum::Unknown);
    host.to_send.extend(std::iter::repeat_n(frame, frames));
}

pub(super) fn control(port: &mut Card, host: &mut Recorder, now: Nanos, quanta: u16) {
    let mut frame = port.pool.take();
    pause::write(&mut frame, MacAddress([2, 0, 0, 0, 0, 9]), quanta);
    let bytes = frame.bytes().to_vec();
    port.pool.give(frame);
    assert_eq!(arrive(port, host, now, &[bytes]), 1);
}

/// Has the card send what it has at each of its deadlines until `end`. Returns when the first bit of each frame left.
pub(super) fn play(
    card: &mut Card,
    host: &mut Recorder,
    mut now: Nanos,
    end: Nanos,
) -> Vec<(u64, usize)> {
    let mut left = Vec::new();
    loop {
        let mut out = Vec::new();
        card.transmit(now, &mut out, host);
        for frame in out.drain(..) {
            let len = frame.len();
            left.push((frame.arrival.0 - (8 + len as u64 + 4) * 8, len));
            card.pool.give(frame);
        }
        now = match card.next_deadline(now) {
            Some(due) if due < end => due.max(Nanos(now.0 + 1)),
            _ => return left,
        };
    }
}

#[test]
fn a_frame_that_has_begun_is_completed_and_none_begins_for_as_many_quanta_as_were_asked_for() {
    let (mut card, up) = linked("same");
    assert_eq!(card.phy.pause(), (true, true));
    let mut host = Recorder::default();
    to_send(&mut host, 200);
    // It arrives while the third frame is on the line.
    let each = line_time(1000);
    let before = play(&mut card, &mut host, up, Nanos(up.0 + 2 * each + 1));
    assert_eq!(before.len(), 3);
    let sent = Nanos(up.0 + 2 * each + 1_000);
    control(&mut card, &mut host, sent, 1_000);
    let arrival = sent.0 + (8 + 64) * 8;
    let resumes = arrival + 1_000 * 512;
    let after = play(&mut card, &mut host, Nanos(arrival), Nanos(resumes + each));
    assert_eq!(after[0].0, resumes, "not sooner and not later");
    // One of no quanta ends it at once, and the last one counts.
    control(&mut card, &mut host, Nanos(resumes + each), u16::MAX);
    let stopped = Nanos(resumes + each + 10_000);
    assert!(play(&mut card, &mut host, stopped, Nanos(stopped.0 + 1_000_000)).is_empty());
    let again = Nanos(stopped.0 + 1_000_000);
    control(&mut card, &mut host, again, 0);
    let arrival = again.0 + (8 + 64) * 8;
    assert_eq!(
        play(&mut card, &mut host, Nanos(arrival), Nanos(arrival + 1))[0].0,
        arrival
    );
    let counters = card.counters();
    assert_eq!(
        (counters.rx_pause, counters.drops.get(Drop::RxControl)),
        (3, 3)
    );
    assert!(host.delivered.is_empty(), "such frames end in the MAC");
    assert_balanced(&card);
}

#[test]
fn who_has_not_agreed_to_stop_goes_on() {
    for partner in ["1000full", "1000half,pause", "1000full,pause,fault"] {
        let (mut card, up) = linked(partner);
        let (_, obeys) = card.phy.pause();
        let mut host = Recorder::default();
        control(&mut card, &mut host, up, u16::MAX);
        to_send(&mut host, 1);
        let now = Nanos(up.0 + 100_000);
        let sent = play(&mut card, &mut host, now, Nanos(now.0 + 1)).len();
        assert_eq!(sent, usize::from(!obeys), "{partner}");
        assert_eq!(card.counters().rx_pause, 1);
    }
}

#[test]
fn a_partner_is_told_to_stop_at_half_a_fifo_and_to_go_on_at_a_quarter() {
    let (mut card, up) = linked("same");
    let mut host = Recorder {
        buffers: Some(0),
        ..Recorder::default()
    };
    let (mut now, each) = (up, line_time(1000));
    let mut told = Vec::new();
    let mut run = |card: &mut Card, host: &mut Recorder, now: Nanos| {
        let mut out = Vec::new();
        card.transmit(now, &mut out, host);
        for frame in out {
            let quanta = u16::from_be_bytes([frame.bytes()[16], frame.bytes()[17]]);
            assert_eq!(
                pause::read(frame.bytes(), MacAddress::default()),
                Some(pause::Control::Pause(quanta))
            );
            told.push((frame.arrival, quanta));
            card.pool.give(frame);
        }
        told.clone()
    };
    let mut arrived = 0;
    let stop = loop {
        arrived += arrive(&mut card, &mut host, now, &[vec![0xff; 1000]]);
        let told = run(&mut card, &mut host, now);
        if let Some(&first) = told.first() {
            break first;
        }
        now = Nanos(now.0 + each);
    };
    // 1004 octets each: the 33rd is the first above half of 65,536.
    assert_eq!((arrived, stop.1), (33, u16::MAX));
    assert_eq!(stop.0, Nanos(now.0 + (8 + 64) * 8));
    // As long as nothing changes it is said again when half of the time is over, and no sooner.
    let refresh = Nanos(stop.0.0 + 65_535 * 512 / 2);
    assert_eq!(card.next_control(), Some(refresh));
    assert_eq!(run(&mut card, &mut host, Nanos(refresh.0 - 1)).len(), 1);
    assert_eq!(run(&mut card, &mut host, refresh).len(), 2);
    // The host takes frames again, some at a time.
    host.buffers = None;
    let now = Nanos(refresh.0 + 1_000);
    card.receive(now, &mut Vec::new(), &mut host);
    let told = run(&mut card, &mut host, now);
    assert_eq!(told.last().map(|&(_, quanta)| quanta), Some(0));
    assert_eq!(card.next_control(), None);
    let counters = card.counters();
    assert_eq!(
        (counters.tx_xoff, counters.tx_xon, counters.tx_frames),
        (2, 1, 0)
    );
    assert_balanced(&card);
}

#[test]
fn a_link_that_comes_up_again_knows_of_no_pause() {
    let (mut card, up) = linked("same");
    let mut host = Recorder::default();
    control(&mut card, &mut host, up, u16::MAX);
    let mut now = Nanos(up.0 + 10_000);
    card.set_link(now, false);
    card.set_link(now, true);
    while !card.phy.link() {
        now = card.phy.next_deadline().expect("it negotiates");
        card.change_phy(|phy| phy.advance(now));
    }
    to_send(&mut host, 1);
    assert_eq!(
        play(&mut card, &mut host, now, Nanos(now.0 + 1)),
        [(now.0, 1000)]
    );
}

#[test]
fn a_loopback_in_between_makes_both_ends_begin_anew() {
    let (mut card, up) = linked("same");
    let mut host = Recorder {
        buffers: Some(0),
        ..Recorder::default()
    };
    let mut now = up;
    while card.next_control().is_none() {
        arrive(&mut card, &mut host, now, &[vec![0xff; 1000]]);
        now = Nanos(now.0 + line_time(1000));
        let mut out = Vec::new();
        card.transmit(now, &mut out, &mut host);
        card.pool.give_all(out);
    }
    // The partner has no link meanwhile, and knows nothing of it afterwards.
    card.change_phy(|phy| phy.set_loopback(now, Some(Loopback::Mac)));
    assert_eq!(card.next_control(), None);
}

#[test]
fn beside_super_frames_a_pause_holds_to_its_end_too() {
    let (mut card, up) = linked("same");
    let mut host = Recorder::default();
    control(&mut card, &mut host, up, 1_000);
    let resumes = up.0 + (8 + 64) * 8 + 1_000 * 512;
    // The line may run ahead of the clock, so frames come here before.
    let big = card.pool.take_big();
    let mut frame = card.pool.take();
    frame.set_len(1000);
    let mut out = Vec::new();
    let early = Nanos(resumes - 50_000);
    card.send(early, QueueIndex(0), &mut vec![frame], &mut out);
    assert_eq!(out[0].arrival, Nanos(resumes + (8 + 1004) * 8));
    card.pool.give_all(out);
    card.pool.give(big);
}
