use super::*;
use crate::frame::Fcs;
use crate::moderation::dim::PeriodMode;
use crate::moderation::itr::{ItrConfig, LliConfig};
use crate::moderation::{Coalesce, Mode};
use std::ops::{Deref, DerefMut};

use crate::host::{Direction, Host, Recorder};
use crate::mac::fcs;
use crate::phy::Speed;
use crate::queues::Queues;
use crate::rate::Limit;

mod buffers;
mod flow_control;
mod priorities;
mod rates;
mod scheduling;
mod statistics;

/// A port and its queues, run to completion.
struct Card {
    port: Port,
    queues: Queues,
}

impl Deref for Card {
    type Target = Port;
    fn deref(&self) -> &Port {
        &self.port
    }
}

impl DerefMut for Card {
    fn deref_mut(&mut self) -> &mut Port {
        &mut self.port
    }
}

impl Card {
    fn new(config: &PortConfig) -> Self {
        Card {
            port: Port::new(config),
            queues: Queues::new(config),
        }
    }

    fn receive(&mut self, now: Nanos, frames: &mut Vec<Frame>, host: &mut impl Host) -> bool {
        self.queues.receive(&mut self.port, now, frames, host)
    }

    fn transmit(&mut self, now: Nanos, out: &mut Vec<Frame>, host: &mut impl Host) -> bool {
        self.queues.transmit(&mut self.port, now, out, host)
    }

    fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let port = self.port.next_deadline(now);
        [port, self.queues.next_deadline(now)]
            .into_iter()
            .flatten()
            .min()
    }

    fn next_notice(&self, now: Nanos, next_frame: Option<Nanos>) -> Option<Nanos> {
        self.queues.next_notice(&self.port, now, next_frame)
    }

    fn counters(&self) -> PortCounters {
        self.port.counters(self.queues.counters())
    }
}

fn card(change: impl FnOnce(&mut PortConfig)) -> Card {
    let mut config = PortConfig::default();
    change(&mut config);
    Card::new(&config)
}

fn broadcast(len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.resize(len, 0x55);
    bytes
}

/// Puts frames on the wire at `now`, as many as the line takes, and returns how many.
fn arrive(port: &mut Card, host: &mut Recorder, now: Nanos, frames: &[Vec<u8>]) -> usize {
    let mut burst = Vec::new();
    for bytes in frames.iter().take(port.rx_room(now)) {
        let mut frame = port.pool.take();
        assert!(frame.fill(bytes));
        frame.arrival = now;
        burst.push(frame);
    }
    let taken = burst.len();
    port.receive(now, &mut burst, host);
    taken
}

fn assert_balanced(port: &Card) {
    let counters = port.counters();
    assert_eq!(
        counters.receive_balance(port.queues.frames()),
        0,
        "{counters:?}"
    );
    assert_eq!(counters.transmit_balance(0), 0, "{counters:?}");
    assert!(counters.statistics_agree(), "{counters:?}");
    let waiting = port.queues.frames();
    assert_eq!(port.pool.lent(), waiting, "a frame was lost");
    let status = port.status(port.queues.counters());
    assert_eq!(status.rx_fifo_frames, waiting);
}

#[test]
fn a_frame_is_delivered_when_its_last_bit_has_arrived_and_not_before() {
    let mut port = card(|c| c.speed = Speed::from_mbps(1_000).unwrap());
    let (mut host, mut now) = (Recorder::default(), Nanos(0));
    arrive(
        &mut port,
        &mut host,
        Nanos(0),
        &[broadcast(60), broadcast(60)],
    );
    assert!(host.delivered.is_empty());
    for (n, last_bit) in [(1, 576), (2, 672 + 576)] {
        assert_eq!(port.next_deadline(now), Some(Nanos(last_bit)));
        now = Nanos(last_bit);
        port.receive(Nanos(last_bit - 1), &mut Vec::new(), &mut host);
        assert_eq!(host.delivered.len(), n - 1);
        port.receive(now, &mut Vec::new(), &mut host);
        assert_eq!(host.delivered.len(), n);
    }
    assert_eq!(host.interrupts.len(), 2);
    assert_eq!(port.next_deadline(now), Some(Nanos(1344)), "the gap");
    assert_eq!(port.next_deadline(Nanos(1344)), None);
    assert_balanced(&port);
}

#[test]
fn the_line_takes_no_more_than_its_rate() {
    let mut port = card(|c| c.speed = Speed::from_mbps(1_000).unwrap());
    let mut host = Recorder::default();
    let burst: Vec<_> = (0..BURST).map(|_| broadcast(60)).collect();
    let (mut now, mut frames) = (Nanos(0), 0);
    while now < Nanos(1_000_000_000) {
        frames += arrive(&mut port, &mut host, now, &burst);
        now = port.next_deadline(now).expect("the line is busy");
        host.delivered.clear();
    }
    // 1 Gb/s carries 1,488,095 of the shortest frames a second.
    assert!((1_488_095..1_488_095 + BURST).contains(&frames), "{frames}");
}

#[test]
fn a_host_without_buffers_fills_the_fifo_and_then_frames_are_lost_and_counted() {
    let mut port = card(|c| c.fifo = 100 * 64);
    let mut host = Recorder {
        buffers: Some(10),
        ..Default::default()
    };
    let mut now = Nanos(0);
    for _ in 0..130 {
        arrive(&mut port, &mut host, now, &[broadcast(60)]);
        now += Duration::from_micros(1);
        assert_balanced(&port);
    }
    assert_eq!(host.delivered.len(), 10);
    assert_eq!(port.queues.frames(), 100);
    assert_eq!(port.counters().drops.get(Drop::RxFifoOverflow), 20);
    assert_eq!(port.counters().rx_no_buffer, 100);
    assert!(port.queues.starved(now, QueueIndex(0)));
    host.buffers = None;
    port.receive(now, &mut Vec::new(), &mut host);
    assert_eq!(host.delivered.len(), 110);
    assert_balanced(&port);
}

#[test]
fn every_receive_drop_has_its_counter() {
    let mut port = card(|c| c.mac = MacAddress([2, 0, 0, 0, 0, 1]));
    port.filter.active = true;
    let mut host = Recorder::default();
    let mut burst = Vec::new();
    let damaged = |len: usize| {
        let mut bytes = broadcast(len - FCS);
        let sequence = fcs(&bytes);
        bytes.extend(sequence);
        bytes[len - 1] ^= 1;
        (bytes, Fcs::Present)
    };
    let whole = |len: usize| {
        let mut bytes = broadcast(len - FCS);
        let sequence = fcs(&bytes);
        bytes.extend(sequence);
        (bytes, Fcs::Present)
    };
    let to_other = vec![2; 60];
    for (bytes, fcs) in [
        damaged(64),
        whole(63),
        damaged(63),
        whole(1523),
        damaged(1523),
        (to_other, Fcs::Offloaded),
        (broadcast(13), Fcs::Offloaded),
        whole(64),
    ] {
        let mut frame = port.pool.take();
        assert!(frame.fill(&bytes));
        frame.fcs = fcs;
        burst.push(frame);
    }
    port.receive(Nanos(1_000_000), &mut burst, &mut host);
    let drops = port.counters().drops;
    assert_eq!(drops.get(Drop::RxFcs), 1);
    assert_eq!(drops.get(Drop::RxUndersize), 2);
    assert_eq!(drops.get(Drop::RxFragment), 1);
    assert_eq!(drops.get(Drop::RxOversize), 1);
    assert_eq!(drops.get(Drop::RxJabber), 1);
    assert_eq!(drops.get(Drop::RxFiltered), 1);
    assert_eq!(host.delivered, [(QueueIndex(0), broadcast(60))]);
    assert_balanced(&port);
}

#[test]
fn transmit_is_paced_by_the_line_and_balanced() {
    let mut port = card(|c| c.speed = Speed::from_mbps(1_000).unwrap());
    let mut host = Recorder::default();
    for _ in 0..1000 {
        host.to_send.push_back((broadcast(60), Checksum::Unknown));
    }
    host.to_send.push_back((vec![1; 13], Checksum::Unknown));
    let bad = Checksum::Partial {
        start: 60,
        offset: 0,
    };
    host.to_send.push_back((broadcast(60), bad));
    let (mut now, mut out, mut sent) = (Nanos(0), Vec::new(), 0u64);
    loop {
        port.transmit(now, &mut out, &mut host);
        for frame in &out {
            assert_eq!(frame.arrival, Nanos(sent * 672 + 576));
            sent += 1;
        }
        let frames: Vec<_> = std::mem::take(&mut out);
        port.pool.give_all(frames);
        match port.next_deadline(now) {
            Some(due) => now = due,
            None => break,
        }
    }
    assert_eq!(sent, 1000);
    assert_eq!(port.counters().drops.get(Drop::TxUndersize), 1);
    assert_eq!(port.counters().drops.get(Drop::TxMalformed), 1);
    assert_balanced(&port);
}

#[test]
fn what_is_sent_belongs_to_its_queue() {
    let mut port = card(|c| c.queue_pairs = 3);
    let mut host = Recorder::default();
    let mut now = Nanos(0);
    for (round, frames) in [BURST + 5, 20 * BURST, 7].into_iter().enumerate() {
        let len = 60 + 100 * round;
        let frame = || (broadcast(len), Checksum::Unknown);
        host.to_send
            .extend(std::iter::repeat_with(frame).take(frames));
        let (mut out, mut idle) = (Vec::new(), false);
        while !idle {
            idle = !port.transmit(now, &mut out, &mut host);
            now = port.next_deadline(now).unwrap_or(now);
            port.pool.give_all(out.drain(..));
        }
        port.phy.set_link(Nanos::ZERO, round != 1);
    }
    let (mut sum, total) = (LineCounters::default(), port.counters());
    for queue in (0..3).map(QueueIndex) {
        let line = port.line_counters(queue);
        assert!(line.tx_frames > 0, "queue {queue}");
        sum.tx_frames += line.tx_frames;
        sum.tx_octets += line.tx_octets;
        sum.tx_link_down += line.tx_link_down;
    }
    assert_eq!(
        (sum.tx_frames, sum.tx_octets, sum.tx_link_down),
        (total.tx_frames, total.tx_octets, 7)
    );
}

#[test]
fn without_a_link_nothing_arrives_and_what_is_sent_is_counted() {
    let mut port = card(|c| c.link = false);
    let mut host = Recorder::default();
    assert_eq!(port.rx_room(Nanos(0)), 0);
    host.to_send.push_back((broadcast(60), Checksum::Unknown));
    let mut out = Vec::new();
    assert!(port.transmit(Nanos(0), &mut out, &mut host));
    assert!(out.is_empty());
    assert_eq!(port.counters().drops.get(Drop::TxLinkDown), 1);
    let now = Nanos::ZERO;
    assert!(port.phy.set_link(now, true) && !port.phy.set_link(now, true));
    assert_eq!(port.rx_room(Nanos(0)), BURST);
    assert_balanced(&port);
}

#[test]
fn frames_that_had_to_wait_for_buffers_come_to_the_host_when_it_has_some() {
    let mut port = card(|c| {
        let coalesce = Coalesce {
            usecs: 50,
            frames: 1_000,
        };
        c.rx_coalesce = coalesce.into();
    });
    let mut host = Recorder {
        buffers: Some(0),
        ..Recorder::default()
    };
    // More than one burst, one a microsecond.
    for n in 0..200 {
        arrive(&mut port, &mut host, Nanos(n * 1_000), &[broadcast(60)]);
    }
    let now = Nanos(1_000_000);
    assert_eq!(port.next_notice(now, None), None, "nobody can be told");
    host.buffers = None;
    port.receive(now, &mut Vec::new(), &mut host);
    assert_eq!((host.delivered.len(), host.interrupts.len()), (200, 0));
    let deadline = now + Duration::from_micros(50);
    assert_eq!(port.next_deadline(now), Some(deadline));
    port.receive(deadline, &mut Vec::new(), &mut host);
    assert_eq!(host.interrupts.len(), 1);
    let counters = port
        .queues
        .moderator
        .of(QueueIndex(0), Direction::Receive)
        .counters();
    assert_eq!((counters.conditions_met, counters.timer_late_ns), (1, 0));
}

/// Plays frames that are ready at `ready` and stops at each instant that `next` says; when the host was interrupted.
fn interrupts(
    config: &PortConfig,
    ready: &[u64],
    buffers: Option<usize>,
    next: impl Fn(&Card, Nanos, Option<Nanos>) -> Option<Nanos>,
) -> (Vec<Nanos>, usize, u32) {
    let mut port = Card::new(config);
    let mut host = Recorder {
        buffers,
        ..Recorder::default()
    };
    let (mut now, mut left, mut instants, mut stops) = (Nanos(0), ready, Vec::new(), 0);
    loop {
        loop {
            let room = port.rx_room(now);
            let count = left.iter().take(room).take_while(|&&r| r <= now.0).count();
            let mut burst = Vec::new();
            for &ready in &left[..count] {
                let mut frame = port.pool.take();
                assert!(frame.fill(&broadcast(sizes(ready))));
                frame.arrival = Nanos(ready);
                burst.push(frame);
            }
            left = &left[count..];
            let worked = port.receive(now, &mut burst, &mut host);
            for _ in host.interrupts.drain(..) {
                instants.push(now);
            }
            if count == 0 && !worked {
                break;
            }
        }
        stops += 1;
        let wire = left.first().map(|&ready| Nanos(ready));
        match next(&port, now, wire) {
            Some(due) => {
                assert!(due > now, "{due:?} is not later than {now:?}");
                now = due;
            }
            None if left.is_empty() => break,
            // Nobody will notice: at the end of the day it happens all the same.
            None => now = Nanos(1_000_000_000),
        }
    }
    let queue = port
        .queues
        .moderator
        .of(QueueIndex(0), Direction::Receive)
        .counters();
    assert_eq!(queue.conditions_met, instants.len() as u64);
    assert_eq!(queue.timer_late_ns, 0);
    (instants, host.delivered.len(), stops)
}

/// Octets of the frame that is ready then: mostly the fewest.
fn sizes(ready: u64) -> usize {
    if ready.is_multiple_of(5) { 1_400 } else { 60 }
}

/// Any mode.
fn modes() -> impl proptest::strategy::Strategy<Value = Mode> {
    use proptest::prelude::*;
    let lli = (1..1500u16, 0..32u8).prop_map(|(below, usecs)| LliConfig::new(below, usecs * 4));
    let lli = prop_oneof![Just(None), lli];
    let itr = (1..300u16, lli).prop_map(|(usecs, lli)| {
        let config = ItrConfig::new(usecs, lli);
        Mode::Itr(config.expect("an interval"))
    });
    prop_oneof![
        3 => (0u32..300, 0u32..300).prop_map(|(usecs, frames)| Coalesce { usecs, frames }.into()),
        3 => itr,
        1 => Just(Mode::IgbDynamic),
        1 => Just(Mode::Dim(PeriodMode::Eqe)),
        1 => Just(Mode::Dim(PeriodMode::Cqe)),
    ]
}

proptest::proptest! {
    #[test]
    fn whoever_stops_only_where_something_may_be_noticed_misses_nothing(
        gaps in proptest::collection::vec(0u64..3_000, 1..600),
        mode in modes(),
        buffers in proptest::option::of(0usize..200),
        limit in proptest::option::of((1_000_000u64..800_000_000, 64u32..20_000)),
    ) {
        let ready: Vec<u64> = gaps
            .iter()
            .scan(0, |now, gap| { *now += gap; Some(*now) })
            .collect();
        let config = PortConfig {
            speed: Speed::from_mbps(1_000).unwrap(),
            rx_coalesce: mode,
            rates: Rates {
                rx: limit.map(|(bits_per_second, burst)| Limit { bits_per_second, burst }),
                tx: None,
            },
            ..PortConfig::default()
        };
        let every = interrupts(&config, &ready, buffers, |port, now, wire| {
            let wire = wire.filter(|_| port.rx_room(now) > 0);
            [wire, port.next_deadline(now)].into_iter().flatten().min()
        });
        let few = interrupts(&config, &ready, buffers, Card::next_notice);
        proptest::prop_assert_eq!(&every.0, &few.0);
        proptest::prop_assert_eq!(every.1, few.1);
        proptest::prop_assert!(few.2 <= every.2, "{} stops instead of {}", few.2, every.2);
    }
}

#[test]
fn a_wire_that_waits_is_paused_until_a_full_fifo_has_room_again() {
    let mut port = card(|c| c.fifo = 4 * 1600);
    port.set_flow_control(true);
    let mut host = Recorder {
        buffers: Some(0),
        ..Recorder::default()
    };
    let (mut now, mut taken) = (Nanos(0), 0);
    let mut offer = |port: &mut Card, host: &mut Recorder| loop {
        now += Duration::from_millis(1);
        let mut burst = Vec::new();
        for _ in 0..port.rx_room(now) {
            let mut frame = port.pool.take();
            assert!(frame.fill(&broadcast(1514)));
            frame.arrival = now;
            burst.push(frame);
        }
        if burst.is_empty() {
            return taken;
        }
        taken += burst.len();
        port.receive(now, &mut burst, host);
    };
    let full = offer(&mut port, &mut host);
    assert!(full >= 3 && port.wire_is_paused(), "{full}");
    host.buffers = Some(2);
    let more = offer(&mut port, &mut host);
    assert_eq!(more, full, "nobody has looked for buffers");
    port.receive(Nanos(1_000_000_000), &mut Vec::new(), &mut host);
    assert!(!port.wire_is_paused());
    assert_eq!(offer(&mut port, &mut host), full + 2);
    // One that does not wait is asked for what will be dropped.
    port.set_flow_control(false);
    assert_eq!(port.rx_room(Nanos(2_000_000_000)), 1);
    assert_eq!(port.counters().drops.total(), 0);
    assert_balanced(&port);
}
