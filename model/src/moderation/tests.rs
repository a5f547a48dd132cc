use super::*;
use proptest::prelude::*;

fn at(micros: u64) -> Nanos {
    Nanos(micros * 1_000)
}

fn moderation(usecs: u32, frames: u32) -> Moderation {
    Moderation::new(Coalesce { usecs, frames })
}

impl Moderation {
    fn come(&mut self, micros: u64) {
        self.packet(at(micros), at(micros));
    }

    fn look(&mut self, now: Nanos) {
        self.expire(now, now);
    }
}

#[test]
fn either_at_zero_interrupts_for_each_packet() {
    for (usecs, frames) in [(0, 0), (64, 0), (0, 32)] {
        let mut moderation = moderation(usecs, frames);
        for n in 0..10 {
            moderation.come(n);
            assert!(moderation.take_due(), "({usecs}, {frames})");
            assert_eq!(moderation.deadline(), None);
        }
        assert_eq!(moderation.counters().conditions_met, 10);
        assert_eq!(moderation.counters().by_timer, 0);
    }
}

#[test]
fn the_first_packet_starts_the_clock() {
    let mut moderation = moderation(10, 100);
    moderation.look(at(1_000));
    assert!(!moderation.take_due(), "nothing waits");
    moderation.come(1_000);
    moderation.come(1_005);
    assert_eq!(moderation.deadline(), Some(at(1_010)));
    moderation.look(Nanos(1_009_999));
    assert!(!moderation.take_due());
    moderation.look(at(1_010));
    assert!(moderation.take_due());
    assert_eq!(moderation.deadline(), None, "it waits for the next packet");
    moderation.look(at(2_000));
    assert!(!moderation.take_due());
    assert_eq!(
        moderation.counters(),
        ModerationCounters {
            conditions_met: 1,
            by_timer: 1,
            ..Default::default()
        }
    );
}

#[test]
fn enough_packets_end_the_wait_and_stop_the_clock() {
    let mut moderation = moderation(10, 3);
    for n in 0..3 {
        assert!(!moderation.take_due());
        moderation.come(n);
    }
    assert!(moderation.take_due());
    moderation.look(at(100));
    assert!(!moderation.take_due(), "the clock has stopped");
    assert_eq!(moderation.counters().by_timer, 0);
}

#[test]
fn a_packet_at_the_instant_of_expiry_belongs_to_that_interrupt() {
    let mut moderation = moderation(10, 100);
    moderation.come(0);
    moderation.come(10);
    assert!(!moderation.take_due());
    moderation.look(at(10));
    assert!(moderation.take_due());
    assert_eq!(moderation.deadline(), None, "none is left over");
    moderation.come(20);
    // One that comes later finds that time was up before it, and starts the clock anew.
    moderation.packet(Nanos(30_001), at(35));
    assert!(moderation.take_due());
    assert_eq!(moderation.deadline(), Some(Nanos(40_001)));
    let counters = moderation.counters();
    assert_eq!((counters.by_timer, counters.timer_late_ns), (2, 5_000));
    assert_eq!(counters.timer_late_max_ns, 5_000);
}

#[test]
fn new_parameters_hold_for_packets_that_wait() {
    let waiting = |packets| {
        let mut moderation = moderation(100, 15);
        (0..packets).for_each(|n| moderation.come(n));
        assert!(!moderation.take_due());
        moderation
    };
    let to = |usecs, frames| Coalesce { usecs, frames };

    // The specification's example: ten packets, the limit goes from 15 to 8.
    let mut fewer = waiting(10);
    fewer.set(to(100, 8), at(20));
    assert!(fewer.take_due());
    assert_eq!(fewer.deadline(), None);

    let mut sooner = waiting(10);
    sooner.set(to(15, 15), at(20));
    assert!(sooner.take_due(), "15 us since the first have passed");

    let mut off = waiting(1);
    off.set(to(0, 15), at(20));
    assert!(off.take_due());

    let mut later = waiting(10);
    later.set(to(200, 20), at(20));
    assert!(!later.take_due());
    assert_eq!(later.deadline(), Some(at(200)));
    (10..20).for_each(|n| later.come(n + 20));
    assert!(later.take_due());

    let mut nothing = moderation(100, 15);
    nothing.set(to(0, 0), at(20));
    assert!(!nothing.take_due(), "no packet, no interrupt");
}

#[test]
fn a_disabled_queue_forgets_what_waited() {
    let mut moderation = moderation(10, 3);
    moderation.come(0);
    moderation.restart(Coalesce {
        usecs: 20,
        frames: 2,
    });
    assert_eq!(moderation.deadline(), None);
    moderation.come(5);
    assert_eq!(moderation.deadline(), Some(at(25)));
    moderation.come(6);
    assert!(moderation.take_due());
    assert_eq!(moderation.counters().conditions_met, 1);
}

#[test]
fn the_last_setter_wins_and_a_reset_restores_what_the_card_came_with() {
    let to = |frames| Coalesce { usecs: 10, frames };
    let frames = |moderator: &Moderator, queue| {
        [Direction::Receive, Direction::Transmit]
            .map(|direction| moderator.of(QueueIndex(queue), direction).coalesce().frames)
    };
    let mut moderator = Moderator::new(2, to(1), to(2));
    assert_eq!([frames(&moderator, 0), frames(&moderator, 1)], [[1, 2]; 2]);
    moderator
        .of_mut(QueueIndex(0), Direction::Receive)
        .set(to(3), at(0));
    assert_eq!(
        [frames(&moderator, 0), frames(&moderator, 1)],
        [[3, 2], [1, 2]]
    );
    moderator.set_all(Direction::Receive, to(4), at(0));
    assert_eq!([frames(&moderator, 0), frames(&moderator, 1)], [[4, 2]; 2]);
    moderator
        .of_mut(QueueIndex(1), Direction::Receive)
        .set(to(5), at(0));
    moderator.restart(QueueIndex(1), Direction::Receive);
    moderator.restart(QueueIndex(1), Direction::Transmit);
    assert_eq!(frames(&moderator, 1), [4, 2], "what was said for all");
    moderator.reset();
    assert_eq!([frames(&moderator, 0), frames(&moderator, 1)], [[1, 2]; 2]);
    moderator.restart(QueueIndex(0), Direction::Receive);
    assert_eq!(frames(&moderator, 0), [1, 2]);
}

/// What the text says, packet by packet, as slowly as one likes: the packets that each interrupt stands for.
fn by_the_book(arrivals: &[u64], usecs: u64, frames: usize) -> Vec<usize> {
    let mut groups = Vec::new();
    let mut left = arrivals;
    while let Some(first) = left.first() {
        let count = if usecs == 0 || frames == 0 {
            1
        } else {
            let in_time = left.iter().take_while(|&&a| a <= first + usecs * 1_000);
            in_time.count().min(frames)
        };
        groups.push(count);
        left = &left[count..];
    }
    groups
}

proptest! {
    #[test]
    fn any_arrivals_are_grouped_as_the_text_says(
        gaps in prop::collection::vec(0u64..30_000, 1..200),
        usecs in 0u32..40,
        frames in 0u32..20,
        every in 1usize..20,
    ) {
        let arrivals: Vec<u64> = gaps
            .iter()
            .scan(0, |now, gap| { *now += gap; Some(*now) })
            .collect();
        let expected = by_the_book(&arrivals, usecs.into(), frames as usize);
        // Whoever is there in time and whoever looks in bursts come to the same count.
        for (burst, punctual) in [(1, true), (every, false)] {
            let mut moderation = moderation(usecs, frames);
            for packets in arrivals.chunks(burst) {
                let now = Nanos(packets[packets.len() - 1]);
                if punctual {
                    moderation.look(Nanos(now.0.saturating_sub(1)));
                }
                for &packet in packets {
                    moderation.packet(Nanos(packet), now);
                }
            }
            moderation.look(Nanos(10_000_000_000));
            prop_assert_eq!(moderation.counters().conditions_met, expected.len() as u64);
        }
    }

    #[test]
    fn the_earliest_instant_is_where_the_condition_is_met(
        waiting in 0u64..30,
        gap in 1u64..5_000,
        usecs in 0u32..40,
        frames in 0u32..40,
    ) {
        let mut moderation = moderation(usecs, frames);
        for n in 0..waiting {
            moderation.packet(Nanos(n * gap), Nanos(n * gap));
            moderation.look(Nanos(n * gap));
        }
        moderation.take_due();
        let arrival = |n: usize| Nanos((waiting + n as u64) * gap);
        let earliest = moderation.earliest(|n| Some(arrival(n)));
        let met = (1..).find_map(|n| {
            let at = arrival(n);
            if moderation.deadline().is_some_and(|deadline| deadline < at) {
                return moderation.deadline();
            }
            moderation.packet(at, at);
            let up = moderation.take_due();
            moderation.look(at);
            (up || moderation.take_due()).then_some(at)
        });
        prop_assert_eq!(earliest, met);
    }
}

proptest! {
    #[test]
    fn packets_together_count_as_one_after_the_other(
        usecs in 0u32..4, frames in 0u32..8,
        bursts in proptest::collection::vec(proptest::collection::vec(0u64..1_500, 0..8), 0..12),
    ) {
        let (mut together, mut each) = (moderation(usecs, frames), moderation(usecs, frames));
        let mut at = 0;
        for gaps in bursts {
            let arrivals: Vec<_> = gaps.iter().map(|gap| { at += gap; Nanos(at) }).collect();
            let now = Nanos(at + 100);
            together.packets(arrivals.iter().copied(), now);
            arrivals.iter().for_each(|&at| each.packet(at, now));
            prop_assert_eq!(together.take_due(), each.take_due());
            prop_assert_eq!(together.deadline(), each.deadline());
            prop_assert_eq!((together.waiting, together.counters()), (each.waiting, each.counters()));
        }
    }
}
