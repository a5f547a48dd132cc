//! Flow control of single priorities in both directions, to the nanosecond.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::counters::Drops;
use crate::host::Fetched;
use crate::pause;
use crate::pfc::{Priorities, Request};

/// A host that sends what each queue has, and takes frames as long as it reads.
#[derive(Default)]
struct Queued {
    to_send: [VecDeque<Vec<u8>>; 2],
    reads: bool,
    delivered: usize,
}

impl Host for Queued {
    fn receives(&self, _queue: QueueIndex) -> bool {
        true
    }

    fn deliver(&mut self, _queue: QueueIndex, frames: &[Frame], _drops: &mut Drops) -> usize {
        let taken = if self.reads { frames.len() } else { 0 };
        self.delivered += taken;
        taken
    }

    fn fetch_tx(
        &mut self,
        queue: QueueIndex,
        budget: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        _drops: &mut Drops,
    ) -> Fetched {
        let waiting = &mut self.to_send[usize::from(queue.0)];
        let count = budget.min(waiting.len());
        frames.extend(waiting.drain(..count).map(|bytes| {
            let mut frame = pool.take();
            assert!(frame.fill(&bytes));
            frame
        }));
        Fetched {
            frames: count,
            more: !waiting.is_empty(),
        }
    }

    fn complete_tx(&mut self, _queue: QueueIndex) {}

    fn interrupt(&mut self, _queue: QueueIndex, _direction: Direction) {}
}

/// A frame of 1000 octets with a tag for `priority`.
fn tagged(priority: u8) -> Vec<u8> {
    let mut frame = broadcast(1000);
    frame[12..16].copy_from_slice(&[0x81, 0, priority << 5, 0]);
    frame
}

/// Its time on the line at 1 Gb/s.
const EACH: u64 = (1000 + 4 + 20) * 8;

/// A card of 1 Gb/s that controls priorities 3 and 5, with FIFOs of 60 KiB.
fn controlled(change: impl FnOnce(&mut PortConfig)) -> Card {
    card(|c| {
        c.speed = Speed::from_mbps(1_000).unwrap();
        c.queue_pairs = 2;
        c.fifo = 60 * 1024;
        c.pfc = Some(Priorities::of_vector(0b10_1000));
        change(c);
    })
}

fn come(card: &mut Card, host: &mut Queued, now: Nanos, frames: &[Vec<u8>]) {
    let mut burst = Vec::new();
    for bytes in frames {
        let mut frame = card.pool.take();
        assert!(frame.fill(bytes));
        frame.arrival = now;
        burst.push(frame);
    }
    card.receive(now, &mut burst, host);
}

/// Has a frame come that stops `priority` for `quanta`. Returns when its last bit is there.
fn stop(card: &mut Card, host: &mut Queued, now: Nanos, priority: usize, quanta: u16) -> u64 {
    let mut request = Request::default();
    request.priorities.insert(priority);
    request.quanta[priority] = quanta;
    let mut frame = card.pool.take();
    request.write(&mut frame, MacAddress([2, 0, 0, 0, 0, 9]));
    let bytes = frame.bytes().to_vec();
    card.port.pool.give(frame);
    come(card, host, now, &[bytes]);
    now.0 + (8 + 64) * 8
}

/// Has the card send at each of its deadlines from `now` until `end`. Returns when the first bit of each frame left, and its priority.
fn play(card: &mut Card, host: &mut Queued, mut now: Nanos, end: u64) -> Vec<(u64, usize)> {
    let mut left = Vec::new();
    loop {
        let mut out = Vec::new();
        while card.transmit(now, &mut out, host) {}
        for frame in out.drain(..) {
            let begins = frame.arrival.0 - (8 + frame.len() as u64 + 4) * 8;
            left.push((begins, crate::pfc::priority(frame.bytes())));
            card.pool.give(frame);
        }
        now = match card.next_deadline(now) {
            Some(due) if due.0 < end => due.max(Nanos(now.0 + 1)),
            _ => return left,
        };
    }
}

/// What the card tells its partner at `now`.
fn told(card: &mut Card, host: &mut Queued, now: Nanos) -> Option<(Request, Nanos)> {
    let mut out = Vec::new();
    card.transmit(now, &mut out, host);
    assert!(out.len() <= 1);
    let frame = out.pop()?;
    let said = pause::read(frame.bytes(), MacAddress::default());
    let Some(pause::Control::Priorities(request)) = said else {
        panic!("{said:?}");
    };
    let leaves = frame.arrival;
    card.pool.give(frame);
    Some((request, leaves))
}

#[test]
fn a_priority_waits_for_as_many_quanta_as_were_asked_for() {
    let (mut card, mut host) = (controlled(|_| ()), Queued::default());
    host.to_send[0].extend((0..100).map(|_| tagged(3)));
    let before = play(&mut card, &mut host, Nanos(0), 2 * EACH + 1);
    assert_eq!(before, [(0, 3), (EACH, 3), (2 * EACH, 3)]);
    let arrival = stop(&mut card, &mut host, Nanos(2 * EACH + 1_000), 3, 1_000);
    let resumes = arrival + 1_000 * 512;
    let after = play(&mut card, &mut host, Nanos(arrival), resumes + EACH + 1);
    assert_eq!(after, [(resumes, 3), (resumes + EACH, 3)]);
    // The last one counts, and one of no quanta ends it at once.
    let now = Nanos(resumes + EACH + 10);
    stop(&mut card, &mut host, now, 3, u16::MAX);
    let now = Nanos(now.0 + 1_000_000);
    assert!(play(&mut card, &mut host, Nanos(now.0 - 500_000), now.0).is_empty());
    let arrival = stop(&mut card, &mut host, now, 3, 0);
    let after = play(&mut card, &mut host, Nanos(arrival), arrival + 1);
    assert_eq!(after, [(arrival, 3)]);
    let counters = card.counters();
    let priority = counters.pfc.priorities[3];
    assert_eq!(
        (counters.pfc.rx_frames, priority.rx_xoff, priority.rx_xon),
        (3, 2, 1)
    );
    assert_eq!(counters.drops.get(Drop::RxControl), 3);
    assert_eq!((counters.rx_pause, counters.rx_control_unknown), (0, 0));
    assert_balanced(&card);
}

#[test]
fn other_priorities_have_the_line_meanwhile() {
    let (mut card, mut host) = (controlled(|_| ()), Queued::default());
    host.to_send[0].extend((0..50).map(|_| tagged(3)));
    host.to_send[1].extend((0..50).map(|_| tagged(5)));
    let arrival = stop(&mut card, &mut host, Nanos(0), 3, 500);
    let resumes = arrival + 500 * 512;
    // One of priority 3 may have begun before.
    let sent = play(&mut card, &mut host, Nanos(arrival), resumes);
    let first = sent[0].0;
    let expected: Vec<_> = (0..sent.len() as u64)
        .map(|n| (first + n * EACH, 5))
        .collect();
    assert_eq!(sent, expected, "without a gap");
    assert!(sent.len() as u64 >= 500 * 512 / EACH);
    let status = card.status(card.queues.counters());
    assert_eq!(status.priorities.expect("a state").held, [1, 0]);
    assert_eq!(status.tx_queued_frames, 1);
    // Then both, by turns.
    let sent = play(&mut card, &mut host, Nanos(resumes), resumes + 200 * EACH);
    assert_eq!(
        sent.iter().filter(|(_, priority)| *priority == 3).count(),
        50
    );
    assert!(sent[0].0 < resumes + EACH);
    assert!(host.to_send.iter().all(VecDeque::is_empty));
    assert_balanced(&card);
}

#[test]
fn a_queue_of_several_priorities_waits_for_its_first_packet() {
    let (mut card, mut host) = (controlled(|c| c.queue_pairs = 1), Queued::default());
    host.to_send[0].extend([5, 3, 5, 5].map(tagged));
    let arrival = stop(&mut card, &mut host, Nanos(0), 3, 100);
    let resumes = arrival + 100 * 512;
    let sent = play(&mut card, &mut host, Nanos(arrival), resumes + 10 * EACH);
    let expected = [
        (arrival, 5),
        (resumes, 3),
        (resumes + EACH, 5),
        (resumes + 2 * EACH, 5),
    ];
    assert_eq!(sent, expected);
    assert_balanced(&card);
}

#[test]
fn priorities_that_are_not_controlled_do_not_wait() {
    let (mut card, mut host) = (controlled(|_| ()), Queued::default());
    host.to_send[0].extend([tagged(4), broadcast(1000)]);
    stop(&mut card, &mut host, Nanos(0), 0, u16::MAX);
    let arrival = stop(&mut card, &mut host, Nanos(1_000), 4, u16::MAX);
    let sent = play(&mut card, &mut host, Nanos(arrival), arrival + 10 * EACH);
    assert_eq!(sent, [(arrival, 4), (arrival + EACH, 0)]);
}

#[test]
fn the_partner_is_told_of_the_priority_that_fills_its_share_and_of_no_other() {
    let (mut card, mut host) = (controlled(|_| ()), Queued::default());
    // 20,480 octets for each of the two, and for the others: 1004 octets, so the 11th is the first above half.
    let mut now = Nanos(0);
    for count in 1..=10 {
        come(&mut card, &mut host, now, &[tagged(3), tagged(5)]);
        now = Nanos(now.0 + 2 * EACH);
        assert_eq!(told(&mut card, &mut host, now), None, "{count}");
    }
    come(&mut card, &mut host, now, &[tagged(3)]);
    let (stop, leaves) = told(&mut card, &mut host, now).expect("a frame");
    assert_eq!(stop.priorities, Priorities::of_vector(0b1000));
    assert_eq!(stop.quanta[3], u16::MAX);
    assert_eq!(leaves, Nanos(now.0 + (8 + 64) * 8));
    // It is said again when half of the time is over, and no sooner.
    let again = Nanos(leaves.0 + 65_535 * 512 / 2);
    assert_eq!(card.next_control(), Some(again));
    assert_eq!(told(&mut card, &mut host, Nanos(again.0 - 1)), None);
    let (stop, _) = told(&mut card, &mut host, again).expect("a frame");
    assert_eq!(stop.priorities, Priorities::of_vector(0b1000));
    // The other one fills up, too.
    come(&mut card, &mut host, again, &[tagged(5)]);
    let (stop, _) = told(&mut card, &mut host, again).expect("a frame");
    assert_eq!(stop.priorities, Priorities::of_vector(0b10_0000));
    // The host reads: both may go on.
    host.reads = true;
    let now = Nanos(again.0 + 100_000);
    card.receive(now, &mut Vec::new(), &mut host);
    let (go, _) = told(&mut card, &mut host, now).expect("a frame");
    assert_eq!(go.priorities, Priorities::of_vector(0b10_1000));
    assert_eq!(
        (go.quanta[3], go.quanta[5], card.next_control()),
        (0, 0, None)
    );
    let counters = card.counters();
    let of = |priority: usize| {
        let counters = counters.pfc.priorities[priority];
        (counters.tx_xoff, counters.tx_xon)
    };
    assert_eq!(
        (of(3), of(5), of(0), counters.pfc.tx_frames),
        ((2, 1), (1, 1), (0, 0), 4)
    );
    assert_eq!(
        (counters.tx_xoff, counters.tx_frames, host.delivered),
        (0, 0, 22)
    );
    let status = card.status(&[]).priorities.expect("a state");
    assert_eq!(status.octets, [0; 8]);
    assert_balanced(&card);
}

#[test]
fn what_is_not_controlled_is_lost_before_it_takes_the_room_of_what_is() {
    for shared in [false, true] {
        let (mut card, mut host) = (
            controlled(|c| {
                c.queue_pairs = 1;
                c.packet_buffer = shared.then_some(crate::packet_buffer::BufferConfig {
                    size: 120 * 1024,
                    guarantee: 0,
                    alpha: crate::packet_buffer::Alpha::default(),
                });
            }),
            Queued::default(),
        );
        let mut now = Nanos(0);
        for _ in 0..50 {
            come(&mut card, &mut host, now, &[broadcast(1000)]);
            now = Nanos(now.0 + EACH);
        }
        // 20,480 octets are for 20 of them.
        let lost = |card: &Card| card.counters().drops.get(Drop::RxFifoOverflow);
        assert_eq!((card.queues.frames(), lost(&card)), (20, 30));
        for _ in 0..20 {
            come(&mut card, &mut host, now, &[tagged(3), tagged(5)]);
            now = Nanos(now.0 + 2 * EACH);
        }
        assert_eq!((card.queues.frames(), lost(&card)), (60, 30), "{shared}");
        assert_eq!(card.line_counters(QueueIndex(0)).rx_overflows, 30);
        assert_balanced(&card);
        host.reads = true;
        card.receive(now, &mut Vec::new(), &mut host);
        let status = card.status(card.queues.counters());
        assert_eq!(status.priorities.expect("a state").octets, [0; 8]);
        assert_balanced(&card);
    }
}

#[test]
fn a_link_has_one_kind_of_flow_control_or_the_other() {
    let mut card = controlled(|c| {
        c.autoneg = true;
        c.link = true;
    });
    let mut now = Nanos::ZERO;
    while !card.phy.link() {
        now = card.phy.next_deadline().expect("it negotiates");
        card.change_phy(|phy| phy.advance(now));
    }
    assert_eq!(card.phy.pause(), (true, true), "agreed on");
    let mut host = Queued::default();
    let mut frame = card.pool.take();
    pause::write(&mut frame, MacAddress([2, 0, 0, 0, 0, 9]), u16::MAX);
    let pause = frame.bytes().to_vec();
    card.port.pool.give(frame);
    come(&mut card, &mut host, now, std::slice::from_ref(&pause));
    host.to_send[0].push_back(tagged(3));
    now = Nanos(now.0 + 1_000);
    assert_eq!(
        play(&mut card, &mut host, now, now.0 + 1).len(),
        1,
        "it goes"
    );
    // All FIFOs are full of what is not controlled: no PAUSE is said.
    for _ in 0..60 {
        come(&mut card, &mut host, now, &[broadcast(1000)]);
        now = Nanos(now.0 + EACH);
        assert_eq!(told(&mut card, &mut host, now), None);
    }
    // No priority is controlled any more: the line is.
    assert!(card.set_pfc(Priorities::NONE));
    for _ in 0..40 {
        come(&mut card, &mut host, now, &[broadcast(1000)]);
        now = Nanos(now.0 + EACH);
    }
    let mut out = Vec::new();
    card.transmit(now, &mut out, &mut host);
    card.port.pool.give_all(out);
    let stopped = stop(&mut card, &mut host, now, 3, u16::MAX);
    come(&mut card, &mut host, Nanos(stopped), &[pause]);
    let counters = card.counters();
    assert_eq!((counters.tx_xoff, counters.pfc.tx_frames), (1, 0));
    assert_eq!((counters.rx_control_unknown, counters.rx_pause), (1, 2));
    host.to_send[0].push_back(tagged(3));
    now = Nanos(stopped + 10_000);
    assert!(
        play(&mut card, &mut host, now, now.0 + 1_000_000).is_empty(),
        "PAUSE"
    );
    // To control none goes on with that; with some it is over for both.
    assert!(card.set_pfc(Priorities::NONE));
    let later = Nanos(now.0 + 2_000_000);
    assert!(play(&mut card, &mut host, Nanos(now.0 + 1_000_000), later.0).is_empty());
    assert!(card.set_pfc(Priorities::of_vector(0b1000)));
    let mut out = Vec::new();
    while card.transmit(later, &mut out, &mut host) {}
    let said = |frame: &Frame| pause::read(frame.bytes(), MacAddress::default());
    let said: Vec<_> = out.iter().map(said).collect();
    assert_eq!(said, [None, Some(pause::Control::Pause(0))]);
    card.port.pool.give_all(out);
    assert_eq!((card.counters().tx_xon, card.next_control()), (1, None));
    assert_balanced(&card);
}

#[test]
fn what_was_said_of_a_priority_holds_until_it_is_not_controlled_any_more() {
    let (mut card, mut host) = (controlled(|_| ()), Queued::default());
    for _ in 0..11 {
        come(&mut card, &mut host, Nanos(0), &[tagged(3)]);
    }
    let (stopped, leaves) = told(&mut card, &mut host, Nanos(0)).expect("a frame");
    host.to_send[0].push_back(tagged(3));
    let now = Nanos(11 * EACH);
    let resumes = stop(&mut card, &mut host, now, 3, 100) + 100 * 512;
    assert!(card.set_pfc(Priorities::of_vector(0b1_1000)));
    let sent = play(&mut card, &mut host, now, resumes + EACH);
    assert_eq!(sent, [(resumes, 3)], "and nothing is said");
    let again = Nanos(leaves.0 + 65_535 * 512 / 2);
    assert_eq!(card.next_control(), Some(again));
    // Nothing is controlled any more: the partner may go on, and so may we.
    host.to_send[0].push_back(tagged(3));
    let now = Nanos(resumes + EACH);
    let arrival = stop(&mut card, &mut host, now, 3, u16::MAX);
    assert!(play(&mut card, &mut host, Nanos(arrival), arrival + EACH).is_empty());
    assert!(card.set_pfc(Priorities::NONE));
    let now = Nanos(arrival + EACH);
    let mut out = Vec::new();
    while card.transmit(now, &mut out, &mut host) {}
    assert_eq!(out.len(), 2);
    let said = pause::read(out[1].bytes(), MacAddress::default());
    let go = Request {
        priorities: stopped.priorities,
        ..Request::default()
    };
    assert_eq!(said, Some(pause::Control::Priorities(go)));
    card.port.pool.give_all(out);
    assert_eq!(card.next_control(), None);
    assert_balanced(&card);
}

#[test]
fn what_is_held_back_of_a_queue_does_not_outlive_its_driver() {
    let (mut card, mut host) = (controlled(|_| ()), Queued::default());
    for queue in &mut host.to_send {
        queue.push_back(tagged(3));
    }
    let arrival = stop(&mut card, &mut host, Nanos(0), 3, u16::MAX);
    let mut now = Nanos(arrival);
    assert!(play(&mut card, &mut host, now, now.0 + EACH).is_empty());
    let held = |card: &Card| {
        let status = card.status(card.queues.counters());
        (
            status.tx_queued_frames,
            status.priorities.expect("a state").held,
        )
    };
    assert_eq!(held(&card), (2, vec![1, 1]));
    let dropped = |card: &Card| card.counters().drops.get(Drop::TxQueueDisabled);
    card.abandon(QueueIndex(0), &mut Vec::new());
    assert_eq!((held(&card), dropped(&card)), ((1, vec![0, 1]), 1));
    assert_eq!(card.line_counters(QueueIndex(0)).tx_abandoned, 1);
    // Who has the queue next is not held up.
    host.to_send[0].push_back(tagged(5));
    now = Nanos(now.0 + EACH);
    assert_eq!(play(&mut card, &mut host, now, now.0 + EACH), [(now.0, 5)]);
    card.port.reset();
    assert_eq!((held(&card), dropped(&card)), ((0, vec![0, 0]), 2));
    assert_balanced(&card);
    assert!(play(&mut card, &mut host, now, 65_535 * 512 * 2).is_empty());
}

#[test]
fn a_link_that_goes_down_holds_nothing_back() {
    let (mut card, mut host) = (controlled(|_| ()), Queued::default());
    host.to_send[0].push_back(tagged(3));
    let arrival = stop(&mut card, &mut host, Nanos(0), 3, u16::MAX);
    assert!(play(&mut card, &mut host, Nanos(arrival), arrival + EACH).is_empty());
    card.set_link(Nanos(arrival), false);
    let mut out = Vec::new();
    card.transmit(Nanos(arrival), &mut out, &mut host);
    assert_eq!(card.counters().drops.get(Drop::TxLinkDown), 1);
    assert_balanced(&card);
    // The new link knows nothing of before.
    card.set_link(Nanos(arrival), true);
    host.to_send[0].push_back(tagged(3));
    let sent = play(&mut card, &mut host, Nanos(arrival), arrival + EACH);
    assert_eq!(sent.len(), 1);
    // In half duplex there is none, nor in a loopback.
    card.change_phy(|phy| phy.set_loopback(Nanos(arrival), Some(phy::Loopback::Mac)));
    assert!(card.port.pfc().is_none());
}

#[test]
fn what_is_held_back_waits_for_the_rate_too() {
    let (mut card, mut host) = (
        controlled(|c| {
            c.rates.tx = Some(Limit {
                bits_per_second: 10_000_000,
                burst: 1_500,
            });
        }),
        Queued::default(),
    );
    host.to_send[0].extend((0..3).map(|_| tagged(3)));
    host.to_send[1].extend((0..2).map(|_| tagged(5)));
    let arrival = stop(&mut card, &mut host, Nanos(0), 3, 100);
    let resumes = arrival + 100 * 512;
    // Two of the other one exhaust the rate until 508 octets' time later, at 0.8 us each.
    let sent = play(&mut card, &mut host, Nanos(arrival), resumes);
    assert_eq!(sent, [(arrival, 5), (arrival + EACH, 5)]);
    let now = Nanos(resumes);
    let mut out = Vec::new();
    while card.transmit(now, &mut out, &mut host) {}
    assert!(out.is_empty(), "it is not committed");
    let token = arrival + 508 * 800 + 1;
    assert_eq!(
        card.next_deadline(now),
        Some(Nanos(token)),
        "and not asked about before"
    );
    let sent = play(&mut card, &mut host, now, token + 4_000_000);
    let expected: Vec<_> = (0..3).map(|n| (token + n * 1_004 * 800, 3)).collect();
    assert_eq!(sent, expected);
    assert_eq!(card.counters().tx_rate_exceeded, 3);
    assert_balanced(&card);
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Come(Vec<u8>),
    Send(usize, Vec<u8>),
    Stop(usize, u16),
    Read(bool),
    Control(u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let frames = || proptest::collection::vec(0..8_u8, 1..20);
    prop_oneof![
        4 => frames().prop_map(Step::Come),
        3 => (0..2_usize, frames()).prop_map(|(queue, frames)| Step::Send(queue, frames)),
        2 => (0..8_usize, 0..200_u16).prop_map(|(priority, quanta)| Step::Stop(priority, quanta)),
        1 => any::<bool>().prop_map(Step::Read),
        1 => any::<u8>().prop_map(Step::Control),
        2 => (1..300_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn every_octet_has_a_priority_and_every_frame_a_place_whatever_happens(
        shared in any::<bool>(),
        limited in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut card = controlled(|c| {
            c.packet_buffer = shared.then_some(crate::packet_buffer::BufferConfig {
                size: 120 * 1024,
                guarantee: 4096,
                alpha: crate::packet_buffer::Alpha::default(),
            });
            c.rates.tx = limited.then_some(Limit { bits_per_second: 100_000_000, burst: 5_000 });
        });
        let (mut host, mut now, mut given) = (Queued::default(), Nanos(0), 0);
        let (mut sent, mut out) = (0, Vec::new());
        // Which priorities are controlled, and until when the partner has none of theirs.
        let (mut controlled, mut until_of) = (0b10_1000_u8, [0; 8]);
        let end = [Step::Read(true), Step::Wait(40_000_000)];
        for step in steps.into_iter().chain(end) {
            let mut until = now;
            match step {
                Step::Come(priorities) => {
                    let frames: Vec<_> = priorities.into_iter().map(tagged).collect();
                    come(&mut card, &mut host, now, &frames);
                }
                Step::Send(queue, priorities) => {
                    given += priorities.len();
                    host.to_send[queue].extend(priorities.into_iter().map(tagged));
                }
                Step::Stop(priority, quanta) => {
                    stop(&mut card, &mut host, now, priority, quanta);
                    if controlled >> priority & 1 != 0 {
                        let arrival = card.phy.rx.busy_until().0 - 12 * 8;
                        until_of[priority] = arrival + u64::from(quanta) * 512;
                    }
                }
                Step::Read(reads) => host.reads = reads,
                Step::Control(vector) => {
                    prop_assert!(card.set_pfc(Priorities::of_vector(vector)));
                    controlled = vector;
                    for (priority, until) in until_of.iter_mut().enumerate() {
                        *until *= u64::from(vector >> priority & 1);
                    }
                }
                Step::Wait(span) => until = Nanos(now.0 + span),
            }
            for round in 0.. {
                prop_assert!(round < 100_000, "it goes round and round");
                card.receive(now, &mut Vec::new(), &mut host);
                while card.transmit(now, &mut out, &mut host) {}
                for frame in out.iter().filter(|frame| frame.len() == 1000) {
                    let begins = frame.arrival.0 - (8 + 1_004) * 8;
                    prop_assert!(begins >= until_of[crate::pfc::priority(frame.bytes())]);
                    sent += 1;
                }
                card.port.pool.give_all(out.drain(..));
                let status = card.status(card.queues.counters());
                let priorities = status.priorities.expect("a state");
                let octets: usize = card.fifos.iter().map(Occupancy::octets).sum();
                prop_assert_eq!(priorities.octets.iter().sum::<u32>() as usize, octets);
                let held: usize = priorities.held.iter().sum();
                prop_assert_eq!(status.tx_queued_frames, held);
                let waiting: usize = host.to_send.iter().map(VecDeque::len).sum();
                prop_assert_eq!(sent + held + waiting, given);
                prop_assert_eq!(card.pool.lent(), held + card.queues.frames());
                match card.next_deadline(now) {
                    Some(due) if due <= until => {
                        prop_assert!(due > now, "it waits for what has passed");
                        now = due;
                    }
                    _ => break,
                }
            }
            now = until;
        }
        prop_assert_eq!(sent, given, "nothing waits for ever");
        assert_balanced(&card);
    }
}
