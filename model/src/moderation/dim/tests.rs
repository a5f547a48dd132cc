use WalkState::{GoingLeft, GoingRight, ParkingOnTop, ParkingTired};
use proptest::prelude::*;

use super::super::tests::{conditions_ns, of, speed};
use super::*;
use crate::moderation::{Mode, Moderation};

fn rates(octets: u64, packets: u64, events: u64) -> Rates {
    Rates {
        octets,
        packets,
        events,
    }
}

#[test]
fn octets_decide_before_packets_and_these_before_interrupts() {
    let before = rates(1000, 100, 50);
    for (now, verdict) in [
        (before, Verdict::Same),
        (rates(1109, 100, 50), Verdict::Same),
        (rates(1110, 10, 500), Verdict::Better),
        (rates(891, 100, 50), Verdict::Same),
        (rates(890, 1000, 5), Verdict::Worse),
        (rates(1000, 110, 50), Verdict::Same),
        (rates(1000, 111, 500), Verdict::Better),
        (rates(1000, 89, 5), Verdict::Worse),
        (rates(1000, 100, 45), Verdict::Same),
        (rates(1000, 100, 44), Verdict::Better),
        (rates(1000, 100, 56), Verdict::Worse),
    ] {
        assert_eq!(now.compared_with(&before), verdict, "{now:?}");
    }
    let none = Rates::default();
    assert_eq!(none.compared_with(&none), Verdict::Same);
    assert_eq!(before.compared_with(&none), Verdict::Better);
    assert_eq!(before.compared_with(&rates(1000, 0, 0)), Verdict::Better);
    assert_eq!(before.compared_with(&rates(1000, 100, 0)), Verdict::Same);
}

#[test]
fn rates_are_rounded_up() {
    let measured = Measured {
        since: None,
        events: 64,
        packets: 3,
        octets: 1_000,
    };
    assert_eq!(Rates::of(&measured, 1_000), rates(1_000, 3, 64));
    assert_eq!(Rates::of(&measured, 999), rates(1_002, 4, 65));
    assert_eq!(Rates::of(&measured, 3_001), rates(334, 1, 22));
}

/// Where the tuner is after each decision, about so many octets.
fn walk(octets: &[u64]) -> Vec<(usize, WalkState)> {
    let mut dim = Dim::new(PeriodMode::Eqe, Direction::Receive);
    let mut decide = |&octets: &u64| {
        dim.decide(rates(octets, 100, 50));
        (dim.profile, dim.state)
    };
    octets.iter().map(&mut decide).collect()
}

#[test]
fn it_goes_on_while_it_gets_better_and_parks_at_the_edge() {
    assert_eq!(
        walk(&[1000, 500, 600, 700, 800, 900, 950, 800, 700]),
        [
            (0, GoingLeft),
            (1, GoingRight),
            (2, GoingRight),
            (3, GoingRight),
            (4, GoingRight),
            (4, ParkingOnTop),
            // Compared with 900.
            (4, ParkingOnTop),
            (3, GoingLeft),
            (4, GoingRight),
        ]
    );
}

#[test]
fn it_comes_back_from_beyond_the_best_and_parks_there() {
    assert_eq!(
        walk(&[1000, 500, 600, 700, 600, 700, 700, 100]),
        [
            (0, GoingLeft),
            (1, GoingRight),
            (2, GoingRight),
            (3, GoingRight),
            (2, GoingLeft),
            (2, ParkingOnTop),
            (2, ParkingOnTop),
            (1, GoingLeft),
        ]
    );
}

#[test]
fn it_gets_tired_of_going_to_and_fro() {
    let walked = walk(&[1000; 22]);
    for n in 0..10 {
        let there = [(0, GoingLeft), (1, GoingRight)][n % 2];
        assert_eq!(walked[n], there, "{n}");
    }
    // It rests for as many decisions as it had made steps.
    assert_eq!(walked[10..20], [(1, ParkingTired); 10]);
    assert_eq!(walked[20..], [(0, GoingLeft), (1, GoingRight)]);
}

fn state(moderation: &Moderation) -> (u8, WalkState, u64) {
    match moderation.mode() {
        ModeStatus::Dim {
            profile,
            tune_state,
            decisions,
            ..
        } => (profile, tune_state, decisions),
        other => panic!("{other:?}"),
    }
}

/// A constant load, from where the last one ended: packets every `distance` nanoseconds until so many decisions have been made.
/// What it came to with each.
fn decide(
    moderation: &mut Moderation,
    now: &mut u64,
    distance: u64,
    decisions: u64,
) -> Vec<(u8, WalkState)> {
    let end = state(moderation).2 + decisions;
    let mut came_to = Vec::new();
    while state(moderation).2 < end {
        let before = state(moderation).2;
        *now += distance;
        conditions_ns(moderation, &[(*now, 60)], false);
        let (profile, walk, after) = state(moderation);
        if after > before {
            came_to.push((profile, walk));
        }
    }
    came_to
}

#[test]
fn it_finds_the_longest_period_at_the_rate_of_the_line_and_wakes_when_the_load_changes() {
    let mut moderation = of(Mode::Dim(PeriodMode::Eqe));
    let now = &mut 0;
    // 64-octet frames at 1 Gb/s: 125 interrupts a millisecond, 1000 (worse), 125, 16, 8, and 6: 256 packets in 172 us.
    assert_eq!(
        decide(&mut moderation, now, 672, 8),
        [
            (0, GoingLeft),
            (1, GoingRight),
            (2, GoingRight),
            (3, GoingRight),
            (4, GoingRight),
            (4, ParkingOnTop),
            (4, ParkingOnTop),
            (4, ParkingOnTop),
        ]
    );
    let at_most = Coalesce {
        usecs: 256,
        frames: 256,
    };
    assert_eq!(moderation.coalesce(), at_most);
    // A tenth of it: fewer octets, it goes to see, and more interrupts for the same octets make it come back and park.
    assert_eq!(
        decide(&mut moderation, now, 6_720, 4),
        [
            (3, GoingLeft),
            (4, GoingRight),
            (4, ParkingOnTop),
            (4, ParkingOnTop),
        ]
    );
}

#[test]
fn where_periods_make_no_difference_it_gets_tired() {
    let mut moderation = of(Mode::Dim(PeriodMode::Eqe));
    // A packet every 100 us: with 1 us as with 8 us each interrupts.
    let came_to = decide(&mut moderation, &mut 0, 100_000, 21);
    assert_eq!(came_to[..2], [(0, GoingLeft), (1, GoingRight)]);
    assert_eq!(came_to[10..20], [(1, ParkingTired); 10]);
    assert_eq!(came_to[20], (0, GoingLeft));
    // 65 interrupts for the first decision, 64 for each of the others.
    assert_eq!(moderation.counters().conditions_met, 1 + 21 * 64);
}

#[test]
fn profiles_are_those_of_direction_and_period_mode() {
    let table = [
        (Direction::Receive, PeriodMode::Eqe, [1, 256], [256, 256]),
        (Direction::Receive, PeriodMode::Cqe, [2, 256], [64, 64]),
        (Direction::Transmit, PeriodMode::Eqe, [1, 128], [128, 128]),
        (Direction::Transmit, PeriodMode::Cqe, [5, 128], [64, 32]),
    ];
    for (direction, mode, first, last) in table {
        let mut dim = Dim::new(mode, direction);
        assert_eq!(dim.profile().usecs, 8, "at first");
        for (profile, expected) in [(0, first), (4, last)] {
            dim.profile = profile;
            let Coalesce { usecs, frames } = dim.profile();
            assert_eq!([usecs, frames], expected, "{direction:?} {mode:?}");
        }
    }
}

/// Periods that start with the last interrupt or the last packet: when the conditions are met, by packets and nanoseconds.
fn by_the_book(mode: PeriodMode, arrivals: &[u64], profile: Coalesce) -> Vec<u64> {
    let period = u64::from(profile.usecs) * 1_000;
    let (mut met, mut left, mut last) = (Vec::new(), arrivals, None);
    while let [first, ..] = left {
        let mut up = match (mode, last) {
            (PeriodMode::Cqe, _) => first + period,
            (PeriodMode::Eqe, None) => *first,
            (PeriodMode::Eqe, Some(last)) => *first.max(&(last + period)),
        };
        let mut count = 1;
        while count < profile.frames as usize && left.get(count).is_some_and(|&at| at <= up) {
            if mode == PeriodMode::Cqe && left[count] < up {
                up = left[count] + period;
            }
            count += 1;
        }
        let at = if count == profile.frames as usize {
            left[count - 1]
        } else {
            up
        };
        met.push(at);
        last = Some(at);
        left = &left[count..];
    }
    met
}

proptest! {
    #[test]
    fn periods_start_where_they_should(
        gaps in prop::collection::vec(1u64..12_000, 1..400),
        scale in 1u64..40,
        cqe: bool,
    ) {
        let arrivals: Vec<u64> = gaps
            .iter()
            .scan(0, |now, gap| { *now += 1 + gap / scale; Some(*now) })
            .collect();
        let mode = if cqe { PeriodMode::Cqe } else { PeriodMode::Eqe };
        let mut moderation = Moderation::new(Mode::Dim(mode), Direction::Transmit, speed(1_000));
        let profile = moderation.coalesce();
        let packets: Vec<_> = arrivals.iter().map(|&at| (at, 60)).collect();
        let met = conditions_ns(&mut moderation, &packets, true);
        let expected = by_the_book(mode, &arrivals, profile);
        // Before the first decision.
        let count = expected.len().min(65);
        let met: Vec<_> = met.iter().map(|at| at.0).take(count).collect();
        prop_assert_eq!(&met, &expected[..count]);
    }
}
