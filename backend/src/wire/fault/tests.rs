use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use nic_model::counters::Drop;
use nic_model::frame::{Checksum, Fcs, Gso, Segmentation};
use nic_model::mac::Mac;
use nic_model::phy::Line;

use super::*;
use crate::wire::testing::{facts, pool};

/// Whether `hits` of `trials` are what a probability gives, within five standard deviations.
fn is_likely(hits: u64, trials: u64, probability: f64) -> bool {
    let mean = trials as f64 * probability;
    (hits as f64 - mean).abs() <= 5.0 * (mean * (1.0 - probability)).sqrt()
}

/// Frames, each with the instant at which it comes or has come.
type Timed = Vec<(u64, Vec<u8>)>;

/// Frames that come, and what of those that are sent has reached the far end.
#[derive(Default)]
struct Script {
    coming: VecDeque<(u64, Vec<u8>)>,
    sent: Arc<Mutex<Timed>>,
    /// Segments that each frame stands for, of this size, if it is a super-frame.
    segment: Option<u16>,
    passive: bool,
}

impl Wire for Script {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        for _ in 0..room {
            let next = self.coming.pop_front_if(|(at, _)| *at <= now.0);
            let Some((at, bytes)) = next else { break };
            let mut frame = match self.segment {
                Some(_) => pool.take_big_received().expect("not so many"),
                None => pool.take(),
            };
            assert!(frame.fill(&bytes));
            frame.arrival = Nanos(at);
            if let Some(size) = self.segment {
                let kind = Segmentation::Udp;
                frame.gso = Gso {
                    kind,
                    headers: 0,
                    size,
                };
            }
            frames.push(frame);
        }
    }

    fn transmit(&mut self, now: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let mut sent = self.sent.lock().unwrap();
        for frame in frames.drain(..) {
            assert!(self.passive || frame.fcs == Fcs::Offloaded);
            sent.push((frame.arrival.0.max(now.0), frame.bytes().to_vec()));
            pool.give(frame);
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.coming.front().map(|(at, _)| Nanos(*at))
    }

    fn has_super_frames(&self) -> bool {
        self.segment.is_some()
    }

    fn waits(&self) -> bool {
        true
    }

    fn is_passive(&self) -> bool {
        self.passive
    }
}

/// Frame `number` of `len` octets: nobody's protocol.
fn bytes(number: u32, len: usize) -> Vec<u8> {
    // With more octets of 0xff the check sequence of a stump could be right: that of four of them is themselves.
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 1]);
    bytes.extend([0x88, 0xb5]);
    bytes.extend(number.to_be_bytes());
    bytes.resize(len, number as u8);
    bytes
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

const SPEED: u32 = 10_000;

fn faulty(inner: Box<dyn Wire>, spec: &str) -> Faulty {
    let speed = Speed::from_mbps(SPEED).unwrap();
    let mut wire = Faulty::new(inner, &spec.parse().unwrap(), speed);
    wire.link_changed(Nanos::ZERO, true);
    wire
}

/// `count` frames of `len` octets, `gap` nanoseconds apart.
fn script(count: u32, len: usize, gap: u64) -> Script {
    let coming = (0..count).map(|n| (u64::from(n) * gap, bytes(n, len)));
    Script {
        coming: coming.collect(),
        ..Script::default()
    }
}

/// What comes from `wire` until nothing is left, asked each time at the instant that it says, and `late` nanoseconds later.
fn receive_all(wire: &mut dyn Wire, pool: &mut Pool, late: u64) -> Vec<Frame> {
    let (mut all, mut burst, mut now) = (Vec::new(), Vec::new(), Nanos::ZERO);
    loop {
        wire.receive(now, BURST, pool, &mut burst);
        let in_order = burst.is_sorted_by_key(|frame: &Frame| frame.arrival);
        assert!(in_order && burst.iter().all(|frame| frame.arrival <= now));
        let came = !burst.is_empty();
        all.append(&mut burst);
        match wire.next_deadline() {
            None if !came => return all,
            Some(due) if due > now => now = Nanos(due.0 + late),
            _ => {}
        }
    }
}

/// Runs `count` frames of `len` octets, a microsecond apart, from the wire through the faults of `spec`.
fn play(spec: &str, count: u32, len: usize) -> (Vec<Frame>, PathCounters) {
    let (mut pool, mut wire) = (
        pool(1500),
        faulty(Box::new(script(count, len, 1_000)), spec),
    );
    let frames = receive_all(&mut wire, &mut pool, 0);
    let counts = wire.paths()[0];
    assert_eq!(counts.balance(), 0, "{spec}: {counts:?}");
    assert_eq!(counts.frames, u64::from(count), "{spec}");
    assert_eq!(counts.passed, frames.len() as u64, "{spec}");
    assert_eq!(pool.lent(), frames.len(), "{spec}");
    (frames, counts)
}

const FRAMES: u32 = 20_000;

#[test]
fn without_faults_a_line_changes_nothing() {
    let mut pool = pool(1500);
    for spec in [
        "generator:pps=1000000,count=500",
        "generator:count=500,size=1518",
    ] {
        let open = || {
            let wire = spec.parse::<crate::wire::WireSpec>().unwrap();
            let mut wire = wire.open(&facts(1500)).unwrap();
            wire.link_changed(Nanos::ZERO, true);
            wire
        };
        // As a port would have carried them.
        let mut line = Line::new(Speed::from_mbps(SPEED).unwrap());
        let mut carry = |frame: &Frame| line.carry(frame.len() + 4, frame.arrival);
        let plain = receive_all(&mut *open(), &mut pool, 0);
        let expected: Vec<Nanos> = plain.iter().map(&mut carry).collect();
        let mut line = Line::new(Speed::from_mbps(SPEED).unwrap());
        let mut carry = |frame: &Frame| line.carry(frame.len() + 4, frame.arrival);
        let ours = receive_all(&mut faulty(open(), "tx:drop=1"), &mut pool, 0);
        assert_eq!(ours.iter().map(&mut carry).collect::<Vec<_>>(), expected);
        assert!(ours.iter().all(|frame| frame.checksum == Checksum::Valid));
    }
}

#[test]
fn frames_are_lost_doubled_and_cut_as_often_as_was_asked_for() {
    for p in [0.001, 0.1, 0.5, 1.0] {
        let (frames, counts) = play(&format!("rx:drop={p}"), FRAMES, 60);
        assert!(is_likely(counts.dropped, FRAMES.into(), p), "{counts:?}");
        assert_eq!(frames.len() as u64 + counts.dropped, u64::from(FRAMES));

        let (frames, counts) = play(&format!("rx:duplicate={p}"), FRAMES, 60);
        assert!(is_likely(counts.duplicated, FRAMES.into(), p), "{counts:?}");
        let twice = frames
            .windows(2)
            .filter(|two| two[0].bytes() == two[1].bytes());
        assert_eq!(twice.count() as u64, counts.duplicated);

        let (frames, counts) = play(&format!("rx:truncate={p}"), FRAMES, 200);
        assert!(is_likely(counts.truncated, FRAMES.into(), p), "{counts:?}");
        let (mut whole, mut fragments, mut bad) = (0, 0, 0);
        for mut frame in frames {
            match Mac::new(1500).accept(&mut frame) {
                Ok(()) => whole += 1,
                Err(Drop::RxFragment) => fragments += 1,
                Err(Drop::RxFcs) => bad += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(fragments + bad, counts.truncated);
        assert_eq!(whole + counts.truncated, u64::from(FRAMES));
        // 1 to 203 octets are left of 204, 63 of these are fragments.
        assert!(
            is_likely(fragments, counts.truncated, 63.0 / 203.0),
            "{fragments}"
        );
    }
}

#[test]
fn a_line_that_carries_half_octets_may_cut_a_frame_within_one() {
    for (mbps, halves) in [(10, true), (100, true), (1_000, false)] {
        let mut pool = pool(1500);
        let frames = Box::new(script(2_000, 200, 1_000_000));
        let speed = Speed::from_mbps(mbps).unwrap();
        let mut wire = Faulty::new(frames, &"rx:truncate=1".parse().unwrap(), speed);
        wire.link_changed(Nanos::ZERO, true);
        let (mut odd, mut even) = (0, 0);
        for mut frame in receive_all(&mut wire, &mut pool, 0) {
            match Mac::new(1500).accept(&mut frame) {
                Err(Drop::RxAlign) => odd += 1,
                Err(Drop::RxFcs) => even += 1,
                other => assert_eq!(other, Err(Drop::RxFragment)),
            }
        }
        assert!(even > 0);
        if halves {
            assert!(is_likely(odd, odd + even, 0.5), "{odd} of {}", odd + even);
        } else {
            assert_eq!(odd, 0);
        }
    }
}

#[test]
fn bits_are_wrong_as_often_as_was_asked_for_and_the_card_finds_each_damaged_frame() {
    let mut pool = pool(1500);
    // With padding and check sequence: 42 octets of a sender's are 64 on the line.
    for (len, ber) in [(42, 1e-4), (60, 1e-5), (1514, 1e-6), (1514, 1e-3)] {
        let (frames, counts) = play(&format!("rx:ber={ber}"), FRAMES, len);
        let bits = 8 * (len + 4).max(64) as u64;
        assert!(
            is_likely(counts.bit_errors, bits * u64::from(FRAMES), ber),
            "{counts:?}"
        );
        let hit = 1.0 - (1.0 - ber).powi(bits as i32);
        assert!(is_likely(counts.damaged, FRAMES.into(), hit), "{counts:?}");
        let (mac, mut bad) = (Mac::new(1500), 0);
        for (n, mut frame) in (0..).zip(frames) {
            match mac.accept(&mut frame) {
                Ok(()) => assert_eq!(frame.bytes()[..len], bytes(n, len)),
                Err(reason) => {
                    assert_eq!(reason, Drop::RxFcs);
                    bad += 1;
                }
            }
            pool.adopt();
            pool.give(frame);
        }
        assert_eq!(bad, counts.damaged);
    }
}

#[test]
fn delays_are_uniform_and_keep_the_order() {
    let (frames, counts) = play("rx:delay=100us", 1_000, 60);
    let due = |n: u64| Nanos(n * 1_000 + 100_000);
    assert!(
        frames
            .iter()
            .zip(0..)
            .all(|(frame, n)| frame.arrival == due(n))
    );
    assert_eq!(counts.delayed, 1_000);
    // Far enough apart that none has to wait for another.
    let (mut pool, count) = (pool(1500), 20_000);
    let mut wire = faulty(Box::new(script(count, 60, 50_000)), "rx:delay=100us±20us");
    let frames = receive_all(&mut wire, &mut pool, 0);
    let mut bins = [0u64; 4];
    for (n, frame) in (0..).zip(&frames) {
        assert_eq!(number(frame.bytes()), n);
        let delay = frame.arrival.0 - 50_000 * u64::from(n);
        assert!((80_000..=120_000).contains(&delay), "{delay}");
        bins[((delay - 80_000) / 10_001) as usize] += 1;
    }
    assert!(
        bins.iter().all(|&n| is_likely(n, count.into(), 0.25)),
        "{bins:?}"
    );
    // Close together they are still in order.
    let (frames, _) = play("rx:delay=100us±100us", 10_000, 60);
    assert!(
        frames
            .iter()
            .map(|frame| number(frame.bytes()))
            .eq(0..10_000)
    );
}

#[test]
fn reordered_frames_let_as_many_pass_as_was_asked_for() {
    let (frames, counts) = play("rx:reorder=0.1", FRAMES, 60);
    assert!(
        is_likely(counts.reordered, FRAMES.into(), 0.1),
        "{counts:?}"
    );
    for depth in [1, 4, 10] {
        let (frames, counts) = play(&format!("rx:reorder=0.01/{depth}"), FRAMES, 60);
        assert_eq!((frames.len() as u32, counts.dropped), (FRAMES, 0));
        let mut seen: Vec<u32> = frames.iter().map(|frame| number(frame.bytes())).collect();
        // How many that were sent later came before.
        let mut passed = vec![0u64; 11];
        let mut late = 0;
        for (at, &n) in seen.iter().enumerate() {
            let before = &seen[at.saturating_sub(100)..at];
            let by = before.iter().filter(|&&other| other > n).count();
            late += u64::from(by > 0);
            passed[by.min(10)] += 1;
        }
        assert_eq!(late, counts.reordered);
        assert!(
            passed[depth + 1..].iter().all(|&n| n == 0) || depth == 10,
            "{passed:?}"
        );
        let each = 1.0 / depth as f64;
        let likely = |n: &u64| is_likely(*n, late, each);
        assert!(passed[1..=depth].iter().all(likely), "{passed:?}");
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..FRAMES));
    }
    // The last one is passed by none: it comes all the same, after its time.
    drop(frames);
    let (frames, counts) = play("rx:reorder=1/3", 10, 60);
    assert_eq!((frames.len(), counts.reordered), (10, 0));
    assert_eq!(frames[0].arrival, Nanos(0) + path::PATIENCE);
}

/// All kinds at once.
const ALL: &str = "rx:drop=0.02,rx:duplicate=0.03,rx:truncate=0.02,rx:ber=1e-5,rx:reorder=0.05/5,rx:delay=30us±25us,seed=";

#[test]
fn the_same_seed_gives_the_same_whenever_it_is_asked_for() {
    let run = |seed: u64, late: u64| {
        let mut pool = pool(1500);
        let mut wire = faulty(Box::new(script(20_000, 100, 700)), &format!("{ALL}{seed}"));
        let frames = receive_all(&mut wire, &mut pool, late);
        let frames = frames
            .iter()
            .map(|f| (f.arrival, f.bytes().to_vec(), f.fcs));
        (frames.collect::<Vec<_>>(), wire.paths())
    };
    let first = run(7, 0);
    assert_eq!(first.1[0].balance(), 0);
    for late in [0, 1, 1_000, 123_456, 60_000_000] {
        let again = run(7, late);
        assert_eq!(first.1, again.1, "{late}");
        assert!(first.0 == again.0, "{late}");
    }
    assert!(first.0 != run(8, 0).0);
}

#[test]
fn one_fault_more_changes_nothing_for_the_others() {
    let lost = |spec: &str| {
        let (frames, _) = play(spec, 10_000, 60);
        let numbers = frames.iter().map(|frame| number(&frame.bytes()[..18]));
        let mut numbers: Vec<_> = numbers.collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    let alone = lost("rx:drop=0.1,seed=3");
    assert_eq!(
        lost("rx:drop=0.1,rx:duplicate=0.3,tx:drop=0.2,seed=3"),
        alone
    );
    assert_eq!(
        lost("rx:drop=0.1,rx:delay=1us±1us,rx:reorder=0.2,seed=3"),
        alone
    );
}

#[test]
fn what_is_lost_takes_its_time_on_the_line_all_the_same() {
    let mut pool = pool(1500);
    let wire: crate::wire::WireSpec = "generator".parse().unwrap();
    let mut wire = faulty(wire.open(&facts(1500)).unwrap(), "rx:drop=1");
    let (mut frames, end) = (Vec::new(), 1_000_000);
    let mut now = Nanos::ZERO;
    while now.0 < end {
        wire.receive(now, BURST, &mut pool, &mut frames);
        now = wire
            .next_deadline()
            .expect("there are always more")
            .max(Nanos(now.0 + 1));
    }
    let counts = wire.paths()[0];
    // 84 octets each at 0.8 ns, and a burst more at most.
    assert!(
        frames.is_empty() && counts.dropped.abs_diff(end * 10 / 672) <= 64,
        "{counts:?}"
    );
    assert_eq!(pool.lent(), 0);
}

#[test]
fn what_is_under_way_when_the_link_goes_is_lost() {
    let mut pool = pool(1500);
    let mut wire = faulty(Box::new(script(100, 60, 10)), "delay=1ms,rx:reorder=0.5");
    let mut frames = Vec::new();
    wire.receive(Nanos(100_000), BURST, &mut pool, &mut frames);
    assert!(frames.is_empty());
    let mut sent = vec![pool.take()];
    assert!(sent[0].fill(&bytes(0, 60)));
    wire.transmit(Nanos(100_000), &mut pool, &mut sent);
    let [rx, tx] = wire.paths();
    assert_eq!((rx.on_line, tx.on_line), (rx.frames, 1));
    wire.link_changed(Nanos(200_000), false);
    wire.link_changed(Nanos(300_000), true);
    let left = receive_all(&mut wire, &mut pool, 0);
    let [rx, tx] = wire.paths();
    assert_eq!((rx.balance(), tx.balance()), (0, 0));
    assert_eq!((rx.link_lost + left.len() as u64, tx.link_lost), (100, 1));
    assert_eq!(pool.lent(), left.len());
}

#[test]
fn more_than_the_line_holds_is_lost() {
    let mut pool = pool(1500);
    let count = path::ON_LINE as u32 + 1_000;
    let mut wire = faulty(Box::new(script(count, 60, 100)), "rx:delay=1s");
    let frames = receive_all(&mut wire, &mut pool, 1_000_000);
    let counts = wire.paths()[0];
    assert_eq!((frames.len(), counts.overflowed), (path::ON_LINE, 1_000));
    assert_eq!(counts.balance(), 0);
}

#[test]
fn super_frames_are_cut_and_each_frame_has_its_own_fate() {
    let mut pool = pool(1500);
    let payload: Vec<u8> = (0..10_000).map(|n| n as u8).collect();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([1; 4], [2; 4], 9);
    let mut packet = Vec::new();
    builder.udp(1, 2).write(&mut packet, &payload).unwrap();
    let wire = Script {
        coming: (0..200).map(|n| (n * 1_000_000, packet.clone())).collect(),
        segment: Some(1_000),
        ..Script::default()
    };
    let mut wire = faulty(Box::new(wire), "rx:drop=0.1");
    assert!(!wire.has_super_frames() && wire.waits());
    let frames = receive_all(&mut wire, &mut pool, 0);
    let counts = wire.paths()[0];
    assert_eq!((counts.frames, counts.segments_made), (200, 200 * 9));
    assert!(is_likely(counts.dropped, 2_000, 0.1), "{counts:?}");
    assert_eq!((counts.balance(), pool.lent()), (0, frames.len()));
    for frame in &frames {
        assert!(!frame.is_super() && frame.checksum == Checksum::Valid);
        let packet = etherparse::SlicedPacket::from_ethernet(frame.bytes()).unwrap();
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else {
            panic!("a datagram");
        };
        assert_eq!(udp.payload().len(), 1_000);
    }
    assert!(!pool.lends_big());
}

/// Sends `count` frames, a microsecond apart, through the faults of `spec`; what arrives at the far end, and the counts.
fn send(spec: &str, count: u32, passive: bool) -> (Timed, PathCounters) {
    let (mut pool, script) = (
        pool(1500),
        Script {
            passive,
            ..Script::default()
        },
    );
    let sent = script.sent.clone();
    let mut wire = faulty(Box::new(script), spec);
    let mut burst = Vec::new();
    for n in 0..count {
        let now = Nanos(u64::from(n) * 1_000);
        let mut frame = pool.take();
        assert!(frame.fill(&bytes(n, 60)));
        frame.arrival = now;
        burst.push(frame);
        wire.transmit(now, &mut pool, &mut burst);
        assert!(burst.is_empty());
    }
    assert!(receive_all(&mut wire, &mut pool, 0).is_empty());
    let counts = wire.paths()[1];
    assert_eq!((counts.balance(), pool.lent()), (0, 0));
    let sent = std::mem::take(&mut *sent.lock().unwrap());
    (sent, counts)
}

#[test]
fn what_is_sent_has_the_same_faults() {
    let (sent, counts) = send("tx:drop=0.1,tx:duplicate=0.2", FRAMES, false);
    assert!(is_likely(counts.dropped, FRAMES.into(), 0.1), "{counts:?}");
    assert!(
        is_likely(counts.duplicated, FRAMES.into(), 0.2 * 0.9),
        "{counts:?}"
    );
    assert_eq!(sent.len() as u64, counts.passed);
    let (sent, _) = send("tx:delay=5us", 100, false);
    assert!(
        sent.iter()
            .zip(0..)
            .all(|((at, _), n)| *at == n * 1_000 + 5_000)
    );
    // What the far end finds damaged it takes no further; a plug without one returns it.
    let (sent, counts) = send("tx:ber=1e-3", 10_000, false);
    assert!(counts.damaged > 1_000);
    assert_eq!(counts.refused, counts.damaged);
    assert_eq!(sent.len() as u64, 10_000 - counts.damaged);
    assert!(
        sent.iter()
            .all(|(_, frame)| *frame == bytes(number(frame), 60))
    );
    let (sent, counts) = send("tx:ber=1e-3", 10_000, true);
    assert_eq!((sent.len(), counts.refused), (10_000, 0));
    assert!(counts.damaged > 1_000);
}

#[test]
fn flow_control_is_off_only_where_sent_frames_are_kept() {
    for (spec, waits) in [
        ("drop=0.1", true),
        ("rx:delay=1us", true),
        ("tx:delay=1us", false),
        ("tx:reorder=1", false),
    ] {
        assert_eq!(
            faulty(Box::new(Script::default()), spec).waits(),
            waits,
            "{spec}"
        );
    }
}

/// A wire with an injection.
struct Line10G {
    wire: Box<dyn Wire>,
    injection: Injection,
}

impl Line10G {
    fn inject(&mut self, spec: &str, now: Nanos) {
        let speed = Speed::from_mbps(SPEED).unwrap();
        let spec = spec.parse().unwrap();
        self.injection.replace(&mut self.wire, &spec, speed, now);
    }
}

#[test]
fn faults_come_and_go_and_their_counts_stay() {
    let mut pool = pool(1500);
    let mut line = Line10G {
        wire: Box::new(script(3_000, 60, 1_000)),
        injection: Injection::default(),
    };
    let mut frames = Vec::new();
    let mut until = |line: &mut Line10G, ms: u64| {
        let now = Nanos(ms * 1_000_000);
        loop {
            let before = frames.len();
            line.wire.receive(now, BURST, &mut pool, &mut frames);
            if frames.len() == before {
                return frames.len() as u64;
            }
        }
    };
    line.inject("none", Nanos(0));
    line.inject("irq-lost=1", Nanos(0));
    assert!(line.wire.faults().is_none(), "none is needed on the line");
    line.inject("rx:drop=1", Nanos(0));
    assert!(line.wire.faults().is_some());
    assert_eq!(until(&mut line, 1), 0);
    line.inject("none", Nanos(1_000_000));
    assert!(line.wire.faults().is_none(), "it is gone");
    let passed = until(&mut line, 2);
    let status = line.injection.status(&mut *line.wire);
    assert_eq!((status.spec.as_str(), status.rx.dropped), ("none", 1_001));
    line.inject("rx:delay=100us", Nanos(2_000_000));
    until(&mut line, 3);
    line.inject("none", Nanos(3_000_000));
    assert!(line.wire.faults().is_some(), "frames are under way");
    until(&mut line, 4);
    line.inject("none", Nanos(4_000_000));
    assert!(line.wire.faults().is_none());
    let status = line.injection.status(&mut *line.wire);
    assert_eq!((status.rx.dropped, status.rx.on_line), (1_001, 0));
    assert_eq!((until(&mut line, 5), passed), (1_999, 1_000));
    let order = frames.iter().map(|frame| number(frame.bytes()));
    assert!(order.eq(1_001..3_000));
}

#[test]
fn the_link_comes_and_goes_unless_somebody_says_what_it_shall_be() {
    let mut line = Line10G {
        wire: Box::new(Script::default()),
        injection: Injection::default(),
    };
    line.inject("flap=3us/1us", Nanos(500));
    let injection = &mut line.injection;
    assert!(injection.flaps() && line.wire.faults().is_none());
    assert_eq!(injection.next_deadline(), Some(Nanos(3_500)));
    assert_eq!(injection.next_change(Nanos(3_499), true), None);
    assert_eq!(injection.next_change(Nanos(3_500), true), Some(false));
    assert!(injection.holds_cable());
    assert_eq!(injection.next_change(Nanos(4_499), false), None);
    assert_eq!(injection.next_change(Nanos(4_500), false), Some(true));
    assert_eq!(injection.next_deadline(), Some(Nanos(7_500)));
    // Whoever slept through it sees both.
    assert_eq!(injection.next_change(Nanos(9_000), true), Some(false));
    assert_eq!(injection.next_change(Nanos(9_000), false), Some(true));
    assert_eq!(injection.next_change(Nanos(9_000), true), None);
    // The user brings it down while it is: it stays so.
    assert_eq!(injection.next_change(Nanos(11_500), true), Some(false));
    injection.user_said();
    assert_eq!(injection.next_change(Nanos(12_500), false), None);
    assert_eq!(
        injection.next_change(Nanos(15_500), false),
        None,
        "it is down"
    );
    assert_eq!(injection.next_change(Nanos(16_500), false), None);
    assert_eq!(injection.status(&mut *line.wire).flaps, 3);
}
