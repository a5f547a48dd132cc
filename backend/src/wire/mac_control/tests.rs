use nic_model::pfc::{self, Request};

use super::stopped::KEPT;
use super::*;
use crate::wire::WireSpec;
use crate::wire::testing::{CARD, facts, frame, pool};

fn tell(wire: &mut MacControl, pool: &mut Pool, at: u64, quanta: u16) {
    let mut frame = pool.take();
    pause::write(&mut frame, CARD, quanta);
    frame.arrival = Nanos(at);
    wire.transmit(Nanos(at), pool, &mut vec![frame]);
}

#[test]
fn nothing_comes_for_as_many_quanta_as_the_card_says() {
    let mut pool = pool(1500);
    let generator: WireSpec = "generator:pps=1000000".parse().expect("a wire");
    let speed = Speed::from_mbps(1_000).expect("a rate");
    let behind = generator.open(&facts(1500)).expect("a generator");
    let mut wire = MacControl::before(behind, speed);
    wire.link_changed(Nanos(0), true);
    assert!(!wire.is_scheduled(), "what comes depends on the card");
    let mut frames = Vec::new();
    let mut arrivals = |wire: &mut MacControl, pool: &mut Pool, now: u64| {
        wire.receive(Nanos(now), 64, pool, &mut frames);
        let arrivals: Vec<_> = frames.iter().map(|frame| frame.arrival.0).collect();
        pool.give_all(frames.drain(..));
        arrivals
    };
    assert_eq!(arrivals(&mut wire, &mut pool, 2_000).len(), 3);
    // 10 quanta of 512 ns.
    tell(&mut wire, &mut pool, 2_500, 10);
    assert_eq!(wire.next_deadline(), Some(Nanos(7_620)));
    assert_eq!(
        wire.busy_until(),
        Nanos(7_620),
        "not to be waited for before"
    );
    assert!(arrivals(&mut wire, &mut pool, 7_619).is_empty());
    let later = arrivals(&mut wire, &mut pool, 8_000);
    assert_eq!(later, [7_620, 7_620, 7_620, 7_620, 7_620, 8_000]);
    tell(&mut wire, &mut pool, 8_500, u16::MAX);
    assert!(arrivals(&mut wire, &mut pool, 30_000_000).is_empty());
    tell(&mut wire, &mut pool, 30_000_100, 0);
    assert_eq!(arrivals(&mut wire, &mut pool, 30_000_100).len(), 64);
    tell(&mut wire, &mut pool, 30_000_200, u16::MAX);
    wire.link_changed(Nanos(30_000_300), false);
    wire.link_changed(Nanos(30_000_400), true);
    let again = arrivals(&mut wire, &mut pool, 30_000_400);
    assert_eq!(again, [30_000_400], "a new link knows of no PAUSE");
    assert_eq!(pool.lent(), 0);
    let counters = wire.counters();
    assert!(
        counters.contains(&("partner_paused", 3)) && counters.contains(&("partner_resumed", 1))
    );
}

/// A wire that has frames of priority 3 and 5 in turn, one each microsecond.
struct Turns(u64);

impl Wire for Turns {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        for _ in 0..room {
            if self.0 * 1_000 > now.0 {
                return;
            }
            let priority = [3, 5][self.0 as usize % 2];
            let mut bytes = [0; 60];
            bytes[12..15].copy_from_slice(&[0x81, 0, priority << 5]);
            bytes[20..28].copy_from_slice(&self.0.to_be_bytes());
            frames.push(frame(pool, self.0 * 1_000, &bytes));
            self.0 += 1;
        }
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        pool.give_all(frames.drain(..));
    }

    fn next_deadline(&self) -> Option<Nanos> {
        Some(Nanos(self.0 * 1_000))
    }
}

fn stop(wire: &mut MacControl, pool: &mut Pool, at: u64, quanta: u16) {
    let mut request = Request::default();
    request.priorities.insert(3);
    request.quanta[3] = quanta;
    let mut frame = pool.take();
    request.write(&mut frame, CARD);
    frame.arrival = Nanos(at);
    wire.transmit(Nanos(at), pool, &mut vec![frame]);
}

/// Number, priority and instant of each frame that comes until `now`.
fn come(wire: &mut MacControl, pool: &mut Pool, now: u64, room: usize) -> Vec<(u64, usize, u64)> {
    let mut frames = Vec::new();
    wire.receive(Nanos(now), room, pool, &mut frames);
    assert!(frames.is_sorted_by_key(|frame| frame.arrival));
    let seen = frames.iter().map(|frame| {
        let number = frame.bytes()[20..].first_chunk().expect("a number");
        let priority = pfc::priority(frame.bytes());
        (u64::from_be_bytes(*number), priority, frame.arrival.0)
    });
    let seen = seen.collect();
    pool.give_all(frames);
    seen
}

#[test]
fn a_priority_that_is_stopped_waits_and_the_other_comes() {
    let (mut pool, speed) = (pool(1500), Speed::from_mbps(1_000).expect("a rate"));
    let mut wire = MacControl::before(Box::new(Turns(0)), speed);
    let seen = come(&mut wire, &mut pool, 1_000, 64);
    assert_eq!(seen, [(0, 3, 0), (1, 5, 1_000)]);
    // 10 quanta of 512 ns.
    stop(&mut wire, &mut pool, 1_500, 10);
    let seen = come(&mut wire, &mut pool, 5_999, 64);
    assert_eq!(seen, [(3, 5, 3_000), (5, 5, 5_000)]);
    assert_eq!(wire.next_deadline(), Some(Nanos(6_000)));
    assert_eq!(come(&mut wire, &mut pool, 6_619, 64), []);
    assert_eq!(wire.next_deadline(), Some(Nanos(6_620)));
    // All of them at once, and in order; with no room for all, too.
    assert_eq!(come(&mut wire, &mut pool, 6_620, 1), [(2, 3, 6_620)]);
    let seen = come(&mut wire, &mut pool, 7_000, 64);
    assert_eq!(seen, [(4, 3, 6_620), (6, 3, 6_620), (7, 5, 7_000)]);
    // One of no quanta lets it go on at once.
    stop(&mut wire, &mut pool, 7_500, u16::MAX);
    assert_eq!(come(&mut wire, &mut pool, 9_000, 64), [(9, 5, 9_000)]);
    stop(&mut wire, &mut pool, 9_500, 0);
    let seen = come(&mut wire, &mut pool, 10_000, 64);
    assert_eq!(seen, [(8, 3, 9_500), (10, 3, 10_000)]);
    let counters = wire.counters();
    for counted in [
        ("partner_prio3_paused", 2),
        ("partner_prio3_resumed", 1),
        ("partner_paused", 0),
    ] {
        assert!(counters.contains(&counted), "{counters:?}");
    }
    assert_eq!(pool.lent(), 0);
}

#[test]
fn what_is_kept_has_an_end_and_is_lost_with_the_link() {
    let (mut pool, speed) = (pool(1500), Speed::from_mbps(1_000).expect("a rate"));
    let mut wire = MacControl::before(Box::new(Turns(0)), speed);
    stop(&mut wire, &mut pool, 0, u16::MAX);
    let mut passed = 0;
    while wire.busy_until() == Nanos(0) {
        passed += come(&mut wire, &mut pool, 10_000_000, 64).len();
    }
    // Then the wire is not asked any more.
    let most = KEPT / pool.buffer_size();
    assert!((most..most + 64).contains(&pool.lent()) && passed.abs_diff(most) <= 64);
    assert_eq!(wire.busy_until(), Nanos(65_535 * 512));
    assert_eq!(wire.next_deadline(), Some(Nanos(65_535 * 512)));
    assert_eq!(come(&mut wire, &mut pool, 11_000_000, 64), []);
    let kept = pool.lent() as u64;
    wire.link_changed(Nanos(12_000_000), false);
    assert!(wire.counters().contains(&("partner_kept_lost", kept)));
    // Their buffers come back when the wire is next used.
    wire.transmit(Nanos(12_000_000), &mut pool, &mut Vec::new());
    assert_eq!(pool.lent(), 0);
    wire.link_changed(Nanos(12_000_000), true);
    let seen = come(&mut wire, &mut pool, 12_000_000, 1);
    assert_eq!((seen.len(), pool.lent()), (1, 0));
}

/// A wire that has these frames, at once.
struct Says(Vec<Vec<u8>>);

impl Wire for Says {
    fn receive(&mut self, now: Nanos, _: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        frames.extend(self.0.drain(..).map(|bytes| frame(pool, now.0, &bytes)));
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        pool.give_all(frames.drain(..));
    }

    fn next_deadline(&self) -> Option<Nanos> {
        None
    }
}

#[test]
fn what_the_other_end_says_of_flow_control_waits_for_no_priority() {
    let (mut pool, speed) = (pool(1500), Speed::from_mbps(1_000).expect("a rate"));
    let mut said = pool.take();
    pause::write(&mut said, CARD, 100);
    let said = said.bytes().to_vec();
    let behind = Says(vec![vec![0; 60], said.clone()]);
    let mut wire = MacControl::before(Box::new(behind), speed);
    let mut request = Request::default();
    request.priorities.insert(0);
    request.quanta[0] = 1_000;
    let mut stop = pool.take();
    request.write(&mut stop, CARD);
    wire.transmit(Nanos(0), &mut pool, &mut vec![stop]);
    let mut frames = Vec::new();
    wire.receive(Nanos(500), 64, &mut pool, &mut frames);
    assert_eq!((frames.len(), frames[0].arrival), (1, Nanos(500)));
    assert_eq!(frames[0].bytes(), said);
    wire.receive(Nanos(512_000), 64, &mut pool, &mut frames);
    assert_eq!((frames.len(), frames[1].bytes()), (2, &[0; 60][..]));
}
