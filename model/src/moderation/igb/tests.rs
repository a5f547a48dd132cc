use Class::{BulkLatency, LowLatency, LowestLatency};

use super::super::tests::{conditions, of, speed};
use super::*;
use crate::host::Direction;
use crate::moderation::{Mode, Moderation};

#[test]
fn the_classes_change_as_the_driver_has_it() {
    // Packets and octets on both sides of each threshold.
    let table = [
        (LowestLatency, 1, 8_000, LowLatency),
        (LowestLatency, 1, 8_001, BulkLatency),
        (LowestLatency, 2, 16_001, LowLatency),
        (LowestLatency, 2, 16_002, BulkLatency),
        (LowestLatency, 4, 512, LowestLatency),
        (LowestLatency, 4, 513, LowLatency),
        (LowestLatency, 5, 513, LowestLatency),
        (LowestLatency, 5, 40_000, LowestLatency),
        (LowestLatency, 5, 40_005, BulkLatency),
        (LowLatency, 9, 10_000, LowLatency),
        (LowLatency, 9, 10_001, BulkLatency),
        (LowLatency, 10, 10_001, LowLatency),
        (LowLatency, 10, 12_009, LowLatency),
        (LowLatency, 10, 12_010, BulkLatency),
        (LowLatency, 35, 42_000, LowLatency),
        (LowLatency, 36, 42_000, LowestLatency),
        (LowLatency, 36, 43_236, BulkLatency),
        (LowLatency, 2, 20_000, BulkLatency),
        (LowLatency, 4, 8_003, LowLatency),
        (LowLatency, 4, 8_004, BulkLatency),
        (LowLatency, 2, 511, LowestLatency),
        (LowLatency, 2, 512, LowLatency),
        (LowLatency, 3, 511, LowLatency),
        (BulkLatency, 35, 25_001, BulkLatency),
        (BulkLatency, 36, 25_000, BulkLatency),
        (BulkLatency, 36, 25_001, LowLatency),
        (BulkLatency, 1, 1_500, BulkLatency),
        (BulkLatency, 1, 1_499, LowLatency),
        (BulkLatency, 24, 1_499, LowLatency),
    ];
    for (class, packets, octets, next) in table {
        let after = class.after(packets, octets);
        assert_eq!(after, next, "{class:?} with {packets}, {octets}");
    }
}

fn class(moderation: &Moderation) -> (Class, u64) {
    match moderation.mode() {
        ModeStatus::IgbDynamic {
            class,
            class_changes,
        } => (class, class_changes),
        other => panic!("{other:?}"),
    }
}

/// Tells of `count` packets, one every `distance` microseconds from `from` on; how often that is told of, and where it ends.
fn load(
    moderation: &mut Moderation,
    from: &mut u64,
    distance: u64,
    count: u64,
    octets: u32,
) -> (usize, Class) {
    let packets: Vec<_> = (0..count).map(|n| (*from + n * distance, octets)).collect();
    *from += count * distance;
    let met = conditions(moderation, &packets).len();
    (met, class(moderation).0)
}

#[test]
fn loads_settle_in_their_class() {
    let mut of_igb = of(Mode::IgbDynamic);
    let (moderation, now) = (&mut of_igb, &mut 0);
    // Small packets, seldom: each interrupts.
    assert_eq!(load(moderation, now, 100, 500, 60), (500, LowestLatency));
    // Small packets, many: one interrupt every 14 us.
    let every_14 = 9_990usize.div_ceil(14) + 1;
    assert_eq!(
        load(moderation, now, 10, 1_000, 60),
        (every_14, LowestLatency)
    );
    // Full frames at 1 Gb/s: the first, 10 us later as an interval has to pass, says so, and then it is one every 49 us.
    let (met, class_then) = load(moderation, now, 13, 1_000, 1_514);
    assert_eq!(
        (met, class_then),
        ((12_987usize - 10).div_ceil(49) + 1, LowLatency)
    );
    // Jumbo frames: 44 us later the first says so, and then it is one every 245 us.
    let (met, class_then) = load(moderation, now, 73, 1_000, 9_014);
    assert_eq!(
        (met, class_then),
        ((72_927usize - 44).div_ceil(245) + 1, BulkLatency)
    );
    assert_eq!(moderation.coalesce().usecs, 245);
    // Small ones again: two interrupts later, they are quick again.
    *now += 1_000;
    assert_eq!(load(moderation, now, 1_000, 1, 60).1, LowLatency);
    assert_eq!(load(moderation, now, 1_000, 1, 60).1, LowestLatency);
    assert_eq!(class(moderation).1, 4);
}

#[test]
fn small_packets_at_the_rate_of_the_line_get_through_with_70_000_interrupts_a_second() {
    let mut moderation = of(Mode::IgbDynamic);
    let packets: Vec<_> = (0..20_000u64).map(|n| (n * 2 / 3, 60)).collect();
    let met = conditions(&mut moderation, &packets).len();
    assert_eq!((met, class(&moderation)), (953 + 1, (LowestLatency, 0)));
    assert_eq!(packets[19_999].0.div_ceil(14), 953);
}

#[test]
fn slow_links_have_one_interval() {
    for mbps in [10, 100] {
        let mut moderation = Moderation::new(Mode::IgbDynamic, Direction::Receive, speed(mbps));
        let packets: Vec<_> = (0..1_000).map(|n| (n * 10, 60)).collect();
        let met = conditions(&mut moderation, &packets).len();
        assert_eq!(met, 9_990usize.div_ceil(245) + 1);
        assert_eq!(class(&moderation), (BulkLatency, 0));
    }
}
