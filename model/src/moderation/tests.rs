use super::*;
use proptest::prelude::*;

fn at(micros: u64) -> Nanos {
    Nanos(micros * 1_000)
}

pub(super) fn speed(mbps: u32) -> Speed {
    Speed::from_mbps(mbps).unwrap()
}

/// A receive queue at 1 Gb/s.
pub(super) fn of(mode: impl Into<Mode>) -> Moderation {
    Moderation::new(mode, Direction::Receive, speed(1_000))
}

/// Tells of packets, each an instant in microseconds and octets, in one go.
pub(super) fn tell(moderation: &mut Moderation, packets: &[(u64, u32)], now: Nanos) {
    let packets = packets.iter().map(|&(micros, octets)| Packet {
        at: at(micros),
        octets,
    });
    moderation.packets(packets, now);
}

/// Instants in microseconds.
pub(super) fn micros(instants: &[u64]) -> Vec<Nanos> {
    instants.iter().map(|&micros| at(micros)).collect()
}

/// When the condition is met for packets, each an instant in microseconds and octets, and somebody who is always there in time.
pub(super) fn conditions(moderation: &mut Moderation, packets: &[(u64, u32)]) -> Vec<Nanos> {
    let packets: Vec<_> = packets
        .iter()
        .map(|&(micros, octets)| (micros * 1_000, octets))
        .collect();
    conditions_ns(moderation, &packets, true)
}

/// The same with nanoseconds. Those that wait in the end are waited for, or not.
pub(super) fn conditions_ns(
    moderation: &mut Moderation,
    packets: &[(u64, u32)],
    to_the_end: bool,
) -> Vec<Nanos> {
    let mut met = Vec::new();
    let mut wait = |moderation: &mut Moderation, until: Nanos| {
        while let Some(deadline) = moderation.deadline().filter(|&due| due < until) {
            moderation.expire(deadline, deadline);
            assert!(moderation.take_due());
            met.push(deadline);
        }
    };
    let mut all = Vec::new();
    for together in packets.chunk_by(|one, other| one.0 == other.0) {
        let now = Nanos(together[0].0);
        wait(moderation, now);
        let packets = together
            .iter()
            .map(|&(_, octets)| Packet { at: now, octets });
        moderation.packets(packets, now);
        if moderation.take_due() {
            all.push(now);
        }
    }
    if to_the_end {
        wait(moderation, Nanos(u64::MAX));
    }
    all.extend(met);
    all.sort_unstable();
    all
}

fn moderation(usecs: u32, frames: u32) -> Moderation {
    of(Coalesce { usecs, frames })
}

impl Moderation {
    fn come(&mut self, micros: u64) {
        self.one(at(micros), at(micros));
    }

    fn one(&mut self, at: Nanos, now: Nanos) {
        self.packets(std::iter::once(Packet { at, octets: 60 }), now);
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
    moderation.one(Nanos(30_001), at(35));
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
fn what_a_driver_says_ends_a_mode_of_the_cards_own() {
    let itr = Mode::Itr(itr::ItrConfig::new(100, None).unwrap());
    let in_force = |usecs, frames| Coalesce { usecs, frames };
    for mode in [itr, Mode::IgbDynamic, Mode::Dim(dim::PeriodMode::Cqe)] {
        let mut moderator = Moderator::new(2, mode, Mode::default(), speed(1_000));
        let status = |moderator: &Moderator, queue| {
            let of = |direction| moderator.of(QueueIndex(queue), direction);
            let [rx, tx] =
                DIRECTIONS.map(|direction| (of(direction).mode(), of(direction).coalesce()));
            assert_eq!(tx, (ModeStatus::Off, Coalesce::default()));
            rx
        };
        let own = status(&moderator, 0);
        assert!(!matches!(own.0, ModeStatus::Off | ModeStatus::NotfCoal));
        // One queue: until it is disabled.
        let first = moderator.of_mut(QueueIndex(0), Direction::Receive);
        first.set(in_force(10, 20), at(0));
        let said = (ModeStatus::NotfCoal, in_force(10, 20));
        assert_eq!([0, 1].map(|queue| status(&moderator, queue)), [said, own]);
        moderator.restart(QueueIndex(0), Direction::Receive);
        assert_eq!([0, 1].map(|queue| status(&moderator, queue)), [own, own]);
        // All of them: until a reset.
        moderator.set_all(Direction::Receive, in_force(0, 0), at(0));
        let off = (ModeStatus::Off, in_force(0, 0));
        assert_eq!([0, 1].map(|queue| status(&moderator, queue)), [off, off]);
        moderator.restart(QueueIndex(0), Direction::Receive);
        assert_eq!(status(&moderator, 0), off);
        moderator.reset();
        assert_eq!([0, 1].map(|queue| status(&moderator, queue)), [own, own]);
    }
}

#[test]
fn packets_that_wait_in_a_mode_are_judged_by_what_the_driver_says() {
    let itr = Mode::Itr(itr::ItrConfig::new(100, None).unwrap());
    let waiting = || {
        let mut moderation = of(itr);
        assert_eq!(
            conditions_ns(&mut moderation, &[(0, 60), (40_000, 60)], false),
            [at(0)]
        );
        assert_eq!(moderation.deadline(), Some(at(100)));
        moderation
    };
    let mut later = waiting();
    later.set(
        Coalesce {
            usecs: 200,
            frames: 9,
        },
        at(50),
    );
    assert_eq!((later.take_due(), later.deadline()), (false, Some(at(240))));
    let mut sooner = waiting();
    sooner.set(
        Coalesce {
            usecs: 10,
            frames: 9,
        },
        at(50),
    );
    assert!(sooner.take_due());
    let mut off = waiting();
    off.set(Coalesce::default(), at(50));
    assert!(off.take_due());
}

#[test]
fn a_disabled_queue_forgets_what_waited() {
    let mut moderation = moderation(10, 3);
    moderation.come(0);
    let other = Coalesce {
        usecs: 20,
        frames: 2,
    };
    moderation.restart(other.into(), Direction::Receive, speed(1_000));
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
    let mut moderator = Moderator::new(2, to(1).into(), to(2).into(), speed(1_000));
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
                    moderation.one(Nanos(packet), now);
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
            moderation.one(Nanos(n * gap), Nanos(n * gap));
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
            moderation.one(at, at);
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
            let packets = arrivals.iter().map(|&at| Packet { at, octets: 60 });
            together.packets(packets, now);
            arrivals.iter().for_each(|&at| each.one(at, now));
            prop_assert_eq!(together.take_due(), each.take_due());
            prop_assert_eq!(together.deadline(), each.deadline());
            prop_assert_eq!((together.pending.waiting, together.counters()), (each.pending.waiting, each.counters()));
        }
    }
}

proptest! {
    #[test]
    fn no_condition_is_met_before_the_earliest_instant(
        waiting in 0u64..30,
        gap in 1u64..20_000,
        octets in 0u32..300,
        usecs in 1u16..40,
        which in 0..5,
        quarters in 0u8..4,
    ) {
        let lli = itr::LliConfig::new(150, quarters * 4);
        let (mode, exact) = match which {
            0 => (Mode::Itr(itr::ItrConfig::new(usecs, None).unwrap()), true),
            1 => (Mode::Itr(itr::ItrConfig::new(usecs, lli).unwrap()), false),
            2 => (Mode::IgbDynamic, true),
            3 => (Mode::Dim(dim::PeriodMode::Eqe), true),
            _ => (Mode::Dim(dim::PeriodMode::Cqe), false),
        };
        let mut moderation = of(mode);
        let packets = |from: u64, to: u64| {
            (from..to).map(|n| (n * gap, octets)).collect::<Vec<_>>()
        };
        conditions_ns(&mut moderation, &packets(0, waiting), false);
        let arrival = |n: usize| Nanos((waiting + n as u64 - 1) * gap);
        let earliest = moderation.earliest(|n| Some(arrival(n))).unwrap();
        let met = conditions_ns(&mut moderation, &packets(waiting, waiting + 400), true)[0];
        if exact {
            prop_assert_eq!(earliest, met);
        } else {
            prop_assert!(earliest <= met, "{earliest:?} {met:?}");
        }
    }
}

#[test]
fn what_the_card_came_with_is_changed_for_good() {
    let rx = |moderator: &Moderator| moderator.of(QueueIndex(1), Direction::Receive).mode();
    let itr = Mode::Itr(itr::ItrConfig::new(50, None).unwrap());
    let coalesce = Coalesce {
        usecs: 50,
        frames: 32,
    };
    let mut moderator = Moderator::new(2, Mode::default(), Mode::default(), speed(1_000));
    moderator.set_initial(Direction::Receive, coalesce.into(), at(0));
    let queue = moderator.of_mut(QueueIndex(1), Direction::Receive);
    tell(queue, &[(1, 60)], at(1));
    assert!(!queue.take_due());
    moderator.set_initial(Direction::Receive, itr, at(2));
    assert!(matches!(rx(&moderator), ModeStatus::Itr { .. }));
    let queue = moderator.of_mut(QueueIndex(1), Direction::Receive);
    assert!(queue.take_due(), "what waits is told of");
    assert!(queue.is_quiet());
    let off = moderator.of(QueueIndex(1), Direction::Transmit).mode();
    assert_eq!(off, ModeStatus::Off);
    moderator.set_all(Direction::Receive, coalesce, at(3));
    assert_eq!(rx(&moderator), ModeStatus::NotfCoal);
    moderator.reset();
    assert!(matches!(rx(&moderator), ModeStatus::Itr { .. }));
}
