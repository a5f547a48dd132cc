use super::*;
use crate::parse::summarise;
use crate::tunnel::TunnelTypes;
use proptest::prelude::*;
use std::collections::VecDeque;

/// The receive FIFOs of a card, with room for few frames, each known by its conversation and its number in it.
struct Fifos {
    queues: Vec<VecDeque<(usize, u32)>>,
    pushed: Vec<u64>,
    room: usize,
}

impl Fifos {
    fn new(queues: usize, room: usize) -> Self {
        Fifos {
            queues: vec![VecDeque::new(); queues],
            pushed: vec![0; queues],
            room,
        }
    }

    fn push(&mut self, queue: QueueIndex, frame: (usize, u32)) {
        let queue = usize::from(queue.0);
        if self.queues[queue].len() < self.room {
            self.queues[queue].push_back(frame);
            self.pushed[queue] += 1;
        }
    }

    fn pop(&mut self, queue: usize) -> Option<(usize, u32)> {
        self.queues[queue].pop_front()
    }
}

impl Progress for Fifos {
    fn pushed(&self, queue: QueueIndex) -> u64 {
        self.pushed[usize::from(queue.0)]
    }

    fn drained(&self, queue: QueueIndex) -> u64 {
        self.pushed(queue) - self.queues[usize::from(queue.0)].len() as u64
    }
}

impl Rss {
    fn look(&mut self, frame: &[u8], fifos: &Fifos) -> QueueIndex {
        self.steer(frame, &summarise(frame), fifos).queue.unwrap()
    }
}

fn queues(ids: &[u16]) -> Vec<QueueIndex> {
    ids.iter().copied().map(QueueIndex).collect()
}

fn table(ids: &[u16]) -> RssConfig {
    RssConfig::new(everything(), queues(ids), QueueIndex(0)).unwrap()
}

#[test]
fn a_bad_configuration_is_refused() {
    let refused = |entries: usize| RssConfig::new(everything(), vec![FIRST; entries], FIRST).err();
    for entries in [0, 3, 127, 1024] {
        assert_eq!(refused(entries), Some(RssError::TableLength(entries)));
    }
    for entries in [1, 128, 512] {
        assert_eq!(refused(entries), None);
    }
    assert_eq!(
        HashConfig::new(0x3ff, &KEY),
        Err(RssError::HashTypes(0x200))
    );
    assert_eq!(HashConfig::new(1, &[0; 41]), Err(RssError::KeyLength(41)));
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let fifos = Fifos::new(4, 8);
    let mut rss = Rss::new(4);
    rss.set_table(&table(&[3]), &fifos).unwrap();
    let (frame, _) = conversation(1);
    let unclassified = RssConfig::new(HashConfig::default(), queues(&[0]), QueueIndex(9)).unwrap();
    let refused = rss.set_table(&unclassified, &fifos);
    assert_eq!(refused, Err(RssError::Queue(QueueIndex(9))));
    let refused = rss.set_table(&table(&[0, 4]), &fifos);
    assert_eq!(refused, Err(RssError::Queue(QueueIndex(4))));
    assert_eq!(rss.set_pairs(0, &fifos), Err(RssError::Pairs(0)));
    assert_eq!(rss.set_pairs(5, &fifos), Err(RssError::Pairs(5)));
    assert_eq!((rss.mode(), rss.pairs()), (Mode::Table, 1));
    assert_eq!(rss.hash_config(), &everything());
    assert_eq!(rss.look(&frame, &fifos), QueueIndex(3));
}

#[test]
fn a_new_card_uses_one_queue_and_hashes_nothing() {
    let fifos = Fifos::new(4, 8);
    let mut rss = Rss::new(4);
    rss.set_table(&table(&[3]), &fifos).unwrap();
    rss.reset();
    let (frame, _) = conversation(1);
    let steered = rss.steer(&frame, &summarise(&frame), &fifos);
    let nothing = Steered {
        queue: Some(FIRST),
        hash: 0,
        report: HashReport::None,
    };
    assert_eq!(steered, nothing);
    // A hash for the driver's sake does not spread anything.
    rss.set_hash(&everything(), &fifos);
    let steered = rss.steer(&frame, &summarise(&frame), &fifos);
    assert_eq!(
        (steered.queue, steered.report),
        (Some(FIRST), HashReport::Tcpv4)
    );
}

#[test]
fn the_table_is_indexed_by_the_low_bits_of_the_hash() {
    let fifos = Fifos::new(8, 8);
    let mut rss = Rss::new(8);
    for len in [1, 2, 8, 128, 512] {
        let ids: Vec<u16> = (0..len).map(|entry| (entry * 5 % 7) as u16).collect();
        let config = RssConfig::new(everything(), queues(&ids), QueueIndex(7)).unwrap();
        rss.set_table(&config, &fifos).unwrap();
        for n in 0..100 {
            let (frame, _) = conversation(n);
            let steered = rss.steer(&frame, &summarise(&frame), &fifos);
            let entry = steered.hash as usize % len;
            assert_eq!(steered.queue, Some(QueueIndex(ids[entry])));
        }
        // What has no hash goes elsewhere.
        assert_eq!(rss.look(&[0; 60], &fifos), QueueIndex(7));
    }
}

#[test]
fn flows_are_spread_evenly_and_each_keeps_its_queue() {
    const FLOWS: u32 = 10_000;
    for pairs in [2, 4, 8, 16] {
        for automatic in [false, true] {
            let fifos = Fifos::new(pairs.into(), 8);
            let mut rss = Rss::new(pairs);
            let config = RssConfig::even(everything(), pairs);
            if automatic {
                rss.set_pairs(pairs, &fifos).unwrap();
            } else {
                rss.set_table(&config, &fifos).unwrap();
            }
            let mut counts = vec![0; pairs.into()];
            for n in 0..FLOWS {
                let (frame, _) = conversation(n);
                let queue = rss.look(&frame, &fifos);
                assert_eq!(rss.look(&frame, &fifos), queue);
                counts[usize::from(queue.0)] += 1;
            }
            let even = FLOWS / u32::from(pairs);
            for count in counts {
                assert!(
                    (even * 9 / 10..=even * 11 / 10).contains(&count),
                    "{count} of {even}"
                );
            }
        }
    }
}

#[test]
fn automatic_steering_follows_what_the_driver_transmits() {
    let mut fifos = Fifos::new(4, 8);
    let mut rss = Rss::new(4);
    let (sent, received) = conversation(1);
    // With one pair in use there is nothing to learn.
    rss.learn([&sent[..]], QueueIndex(2), TunnelTypes::default());
    assert_eq!(rss.look(&received, &fifos), FIRST);
    rss.set_pairs(4, &fifos).unwrap();
    for queue in queues(&[3, 1, 2, 0]) {
        rss.learn([&sent[..]], queue, TunnelTypes::default());
        assert_eq!(rss.look(&received, &fifos), queue);
    }
    // Not while its frames are in the old queue's FIFO.
    fifos.push(QueueIndex(0), (1, 0));
    rss.learn([&sent[..]], QueueIndex(3), TunnelTypes::default());
    assert_eq!(rss.look(&received, &fifos), QueueIndex(0));
    fifos.pop(0);
    assert_eq!(rss.look(&received, &fifos), QueueIndex(3));
    // Nor can a queue be learned that is not in use.
    rss.learn([&sent[..]], QueueIndex(4), TunnelTypes::default());
    assert_eq!(rss.look(&received, &fifos), QueueIndex(3));
    rss.set_pairs(2, &fifos).unwrap();
    rss.learn([&sent[..]], QueueIndex(3), TunnelTypes::default());
    assert!(rss.look(&received, &fifos).0 < 2);
    // What is not of IP is no flow.
    assert_eq!(rss.look(&[0; 60], &fifos), FIRST);
}

#[test]
fn automatic_steering_avoids_a_queue_that_does_not_receive() {
    let mut fifos = Fifos::new(2, 8);
    let mut rss = Rss::new(2);
    rss.set_pairs(2, &fifos).unwrap();
    let (sent, received) = conversation(1);
    rss.learn([&sent[..]], QueueIndex(1), TunnelTypes::default());
    assert_eq!(rss.look(&received, &fifos), QueueIndex(1));
    fifos.push(QueueIndex(1), (1, 0));
    // At once, though its FIFO is not empty: what is in there is lost.
    rss.set_receiving(QueueIndex(1), false, &fifos);
    assert_eq!(rss.look(&received, &fifos), QueueIndex(0));
    rss.learn([&sent[..]], QueueIndex(1), TunnelTypes::default());
    assert_eq!(rss.look(&received, &fifos), QueueIndex(0));
    rss.set_receiving(QueueIndex(0), false, &fifos);
    assert_eq!(rss.look(&received, &fifos), QueueIndex(0));
    rss.set_receiving(QueueIndex(1), true, &fifos);
    assert_eq!(rss.look(&received, &fifos), QueueIndex(1));
    rss.set_receiving(QueueIndex(9), true, &fifos);
}

#[test]
fn the_table_is_followed_even_to_a_queue_that_does_not_receive() {
    let mut fifos = Fifos::new(2, 8);
    let mut rss = Rss::new(2);
    rss.set_table(&table(&[1]), &fifos).unwrap();
    let (frame, _) = conversation(1);
    assert_eq!(rss.look(&frame, &fifos), QueueIndex(1));
    fifos.push(QueueIndex(1), (1, 0));
    rss.set_table(&table(&[0]), &fifos).unwrap();
    assert_eq!(rss.look(&frame, &fifos), QueueIndex(1));
    // Nothing waits for it.
    rss.set_receiving(QueueIndex(1), false, &fifos);
    assert_eq!(rss.look(&frame, &fifos), QueueIndex(0));
    rss.set_table(&table(&[1]), &fifos).unwrap();
    assert_eq!(rss.look(&frame, &fifos), QueueIndex(1));
}

#[test]
fn the_drivers_last_command_counts() {
    let fifos = Fifos::new(4, 8);
    let mut rss = Rss::new(4);
    rss.set_pairs(4, &fifos).unwrap();
    assert_eq!(rss.mode(), Mode::Automatic);
    rss.set_table(&table(&[0, 1]), &fifos).unwrap();
    assert_eq!(rss.mode(), Mode::Table);
    rss.set_hash(&everything(), &fifos);
    assert_eq!((rss.mode(), rss.pairs()), (Mode::Automatic, 4));
    rss.set_table(&table(&[0, 1]), &fifos).unwrap();
    rss.set_pairs(1, &fifos).unwrap();
    assert_eq!(rss.mode(), Mode::Single);
}

#[test]
fn a_sequence_number_may_come_round() {
    let mut fifos = Fifos::new(2, 8);
    fifos.pushed = vec![u64::from(u32::MAX) - 2; 2];
    let mut rss = Rss::new(2);
    rss.set_table(&table(&[0]), &fifos).unwrap();
    let (frame, _) = conversation(1);
    for n in 0..6 {
        assert_eq!(rss.look(&frame, &fifos), QueueIndex(0));
        fifos.push(QueueIndex(0), (0, n));
    }
    rss.set_table(&table(&[1]), &fifos).unwrap();
    for _ in 0..6 {
        assert_eq!(rss.look(&frame, &fifos), QueueIndex(0));
        fifos.pop(0);
    }
    assert_eq!(rss.look(&frame, &fifos), QueueIndex(1));
}

/// What may happen to a card; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Event {
    Receive(usize),
    Drain(usize, usize),
    Table(u32, Vec<u16>),
    Transmit(usize, u16),
    Pairs(u16),
}

const QUEUES: usize = 4;
const CONVERSATIONS: usize = 12;

fn common() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..CONVERSATIONS).prop_map(Event::Receive),
        (0..QUEUES, 1..6usize).prop_map(|(queue, count)| Event::Drain(queue, count)),
    ]
}

fn with_tables() -> impl Strategy<Value = Event> {
    let ids = prop::collection::vec(0..QUEUES as u16, 512);
    let change = (0u32..10, ids).prop_map(|(log, ids)| Event::Table(log, ids));
    prop_oneof![20 => common(), 1 => change]
}

fn automatic() -> impl Strategy<Value = Event> {
    let transmit = (0..CONVERSATIONS, 0..QUEUES as u16).prop_map(|(n, q)| Event::Transmit(n, q));
    let pairs = (2..=QUEUES as u16).prop_map(Event::Pairs);
    prop_oneof![20 => common(), 8 => transmit, 1 => pairs]
}

/// Runs the events and checks that each conversation is delivered in order. Returns how often one was received
/// on another queue than before, and how many frames were dropped for it.
fn run(events: &[Event], room: usize) -> Result<(u32, u32), TestCaseError> {
    let frames: Vec<_> = (0..CONVERSATIONS as u32).map(conversation).collect();
    let mut fifos = Fifos::new(QUEUES, room);
    let mut rss = Rss::new(QUEUES as u16);
    let mut sequence = [0; CONVERSATIONS];
    let mut delivered = [0; CONVERSATIONS];
    let mut last = [None; CONVERSATIONS];
    let (mut moved, mut lost) = (0, 0);
    let deliver = |fifos: &mut Fifos, queue, count, delivered: &mut [u32]| {
        for _ in 0..count {
            let Some((n, number)) = fifos.pop(queue) else {
                break;
            };
            prop_assert!(number > delivered[n], "{} after {}", number, delivered[n]);
            delivered[n] = number;
        }
        Ok(())
    };
    for event in events {
        match event {
            &Event::Receive(n) => {
                let frame = &frames[n].1;
                let Some(queue) = rss.steer(frame, &summarise(frame), &fifos).queue else {
                    lost += 1;
                    continue;
                };
                moved += u32::from(last[n].replace(queue).is_some_and(|old| old != queue));
                sequence[n] += 1;
                fifos.push(queue, (n, sequence[n]));
            }
            &Event::Drain(queue, count) => deliver(&mut fifos, queue, count, &mut delivered)?,
            Event::Table(log, ids) => {
                let config = table(&ids[..1 << log]);
                rss.set_table(&config, &fifos).unwrap();
            }
            &Event::Transmit(n, queue) => {
                rss.learn(
                    [&frames[n].0[..]],
                    QueueIndex(queue),
                    TunnelTypes::default(),
                );
            }
            &Event::Pairs(pairs) => {
                rss.set_pairs(pairs, &fifos).unwrap();
                // The driver has taken its buffers off the queues that are out of use.
                for queue in &mut fifos.queues[pairs.into()..] {
                    queue.clear();
                }
            }
        }
    }
    for queue in 0..QUEUES {
        deliver(&mut fifos, queue, usize::MAX, &mut delivered)?;
    }
    Ok((moved, lost))
}

proptest! {
    #[test]
    fn no_table_puts_a_flow_out_of_order(
        events in prop::collection::vec(with_tables(), 0..400), room in 1usize..20,
    ) {
        run(&events, room)?;
    }

    #[test]
    fn no_transmission_puts_a_flow_out_of_order(
        events in prop::collection::vec(automatic(), 0..400), room in 1usize..20,
    ) {
        run(&events, room)?;
    }
}

#[test]
fn flows_move_without_loss_when_their_frames_are_drained() {
    let mut events = Vec::new();
    for round in 0..100 {
        events.push(Event::Table(0, vec![round % QUEUES as u16; 512]));
        events.extend((0..CONVERSATIONS).map(Event::Receive));
        events.extend((0..QUEUES).map(|queue| Event::Drain(queue, 20)));
    }
    assert_eq!(run(&events, 20).unwrap(), (99 * CONVERSATIONS as u32, 0));
}

#[test]
fn flows_move_even_from_a_queue_that_is_always_full() {
    const ROOM: usize = 20;
    let flood = |rounds: usize, drained: usize| {
        (0..rounds).flat_map(move |_| {
            let frames = (0..CONVERSATIONS).map(Event::Receive);
            frames.chain((0..QUEUES).map(move |queue| Event::Drain(queue, drained)))
        })
    };
    let mut events: Vec<_> = flood(20, 3).collect();
    events.push(Event::Table(0, vec![1; 512]));
    // Twice what the FIFO holds leaves it.
    events.extend(flood(2 * ROOM / 3 + 1, 3));
    let (moved, lost) = run(&events, ROOM).unwrap();
    assert_eq!(moved, CONVERSATIONS as u32);
    assert!(lost > 0);
}

#[test]
fn a_flow_that_is_transmitted_elsewhere_loses_nothing_for_it() {
    let mut events = vec![Event::Pairs(4)];
    for round in 0..200 {
        events.push(Event::Transmit(0, round / 50));
        events.extend([Event::Receive(0), Event::Receive(0)]);
        events.extend((0..QUEUES).map(|queue| Event::Drain(queue, 1)));
    }
    assert_eq!(run(&events, 20).unwrap().1, 0);
}
