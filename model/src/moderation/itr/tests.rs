use proptest::prelude::*;

use super::super::tests::{conditions, micros, of};
use super::*;
use crate::moderation::{Mode, ModeStatus, Moderation};

fn itr(usecs: u16, lli: Option<(u16, u8)>) -> Moderation {
    let lli = lli.map(|(below, usecs)| LliConfig::new(below, usecs).unwrap());
    of(Mode::Itr(ItrConfig::new(usecs, lli).unwrap()))
}

fn lli_sent(moderation: &Moderation) -> u64 {
    match moderation.mode() {
        ModeStatus::Itr { lli_sent } => lli_sent,
        other => panic!("{other:?}"),
    }
}

/// `count` packets of `octets`, one every `distance` microseconds from 0 on.
fn every(distance: u64, count: u64, octets: u32) -> Vec<(u64, u32)> {
    (0..count).map(|n| (n * distance, octets)).collect()
}

#[test]
fn registers_hold_what_they_hold() {
    assert!(ItrConfig::new(0, None).is_none());
    assert!(ItrConfig::new(0x1FFF, None).is_some());
    assert!(ItrConfig::new(0x2000, None).is_none());
    assert!(LliConfig::new(1, 0).is_some());
    assert!(LliConfig::new(0, 4).is_none());
    assert!(LliConfig::new(4095, 124).is_some());
    assert!(LliConfig::new(4096, 124).is_none());
    assert!(LliConfig::new(64, 6).is_none());
    assert!(LliConfig::new(64, 128).is_none());
}

#[test]
fn the_first_packet_interrupts_at_once_and_the_next_at_the_end_of_the_interval() {
    let mut moderation = itr(50, None);
    let packets = [(1_000, 60), (1_001, 60), (1_049, 60), (1_050, 60)];
    let expected = micros(&[1_000, 1_050]);
    assert_eq!(conditions(&mut moderation, &packets), expected);
    // Nothing came: the counter stays at zero, and the next is told of at once.
    let packets = [(1_101, 60), (1_151, 60), (1_160, 60)];
    let expected = micros(&[1_101, 1_151, 1_201]);
    assert_eq!(conditions(&mut moderation, &packets), expected);
    let counters = moderation.counters();
    assert_eq!((counters.conditions_met, counters.by_timer), (5, 2));
    assert_eq!(counters.timer_late_ns, 0);
}

#[test]
fn at_constant_distances_there_are_the_lesser_of_packets_and_intervals() {
    for interval in [1, 7, 50, 125, 8_191] {
        for distance in [1, 2, 7, 49, 50, 51, 200] {
            let mut moderation = itr(interval, None);
            let count = 2_000;
            let met = conditions(&mut moderation, &every(distance, count, 60));
            // min(λ, 1 / interval), from the first packet to the one that tells of the last.
            let last = (count - 1) * distance;
            let expected = match u64::from(interval) {
                interval if distance >= interval => count,
                interval => last.div_ceil(interval) + 1,
            };
            assert_eq!(met.len() as u64, expected, "{interval} us, {distance} us");
            let apart = met.windows(2).map(|pair| pair[1].since(pair[0]));
            let shortest = apart.min().unwrap();
            assert!(shortest >= Duration::from_micros(interval.into()));
        }
    }
}

#[test]
fn packets_that_are_told_of_together_are_one_event() {
    let mut moderation = itr(50, None);
    // As many as were sent in a burst.
    let packets = [(5, 60); 64];
    assert_eq!(conditions(&mut moderation, &packets), micros(&[5]));
    assert_eq!(moderation.deadline(), None);
}

#[test]
fn without_a_limit_every_small_packet_interrupts() {
    let mut moderation = itr(8_000, Some((128, 0)));
    let packets = [(0, 1500), (10, 128), (20, 127), (30, 60), (40, 128)];
    let expected = micros(&[0, 20, 30, 8_030]);
    assert_eq!(conditions(&mut moderation, &packets), expected);
    assert_eq!(lli_sent(&moderation), 2);
}

#[test]
fn credits_allow_a_burst_and_limit_the_rate() {
    // A credit every 20 us; 31 are kept, however long nothing came.
    let mut moderation = itr(8_000, Some((128, 20)));
    let burst: Vec<_> = (0..40).map(|n| (10_000 + n, 60)).collect();
    let met = conditions(&mut moderation, &burst);
    // The counter was zero: the first takes no credit. One comes at 10,020, and one at 10,040 for those that are left.
    let expected: Vec<_> = (10_000..=10_032).chain([10_040]).collect();
    assert_eq!(met, micros(&expected));
    assert_eq!(lli_sent(&moderation), 33);

    // In the long run: one an LL interval, the packets between wait for the next.
    let mut moderation = itr(8_000, Some((128, 20)));
    let met = conditions(&mut moderation, &every(1, 200_000, 60));
    let expected: Vec<_> = (0..=10_000).map(|n| n * 20).collect();
    assert_eq!(met, micros(&expected));
    assert_eq!(lli_sent(&moderation), 10_000);
}

#[test]
fn the_end_of_the_interval_takes_no_credit() {
    // The interval is over before a credit comes.
    let mut moderation = itr(10, Some((128, 124)));
    let met = conditions(&mut moderation, &every(1, 100, 60));
    let expected: Vec<_> = (0..=10).map(|n| n * 10).collect();
    assert_eq!(met, micros(&expected));
    assert_eq!(lli_sent(&moderation), 0);
}

/// The counters of the data sheet, microsecond by microsecond: when there are interrupts, and how many for credits.
fn by_the_counters(
    packets: &[(u64, u32)],
    interval: u64,
    lli: Option<(u16, u8)>,
) -> (Vec<u64>, u64) {
    let (mut met, mut sent) = (Vec::new(), 0);
    let (mut counter, mut credits) = (0u64, 0u64);
    let (mut cause, mut low) = (false, false);
    let end = packets.last().map_or(0, |&(at, _)| at) + interval;
    for now in 0..=end {
        counter = counter.saturating_sub(1);
        let (below, ll_interval) = lli.unwrap_or((0, 0));
        if now > 0 && ll_interval > 0 && now % u64::from(ll_interval) == 0 {
            credits = (credits + 1).min(31);
        }
        for &(_, octets) in packets.iter().filter(|&&(at, _)| at == now) {
            cause = true;
            low |= octets < u32::from(below);
        }
        if cause && counter > 0 && low && (credits > 0 || ll_interval == 0) {
            credits = credits.saturating_sub(1);
            sent += 1;
            counter = 0;
        }
        if cause && counter == 0 {
            met.push(now);
            (cause, low, counter) = (false, false, interval);
        }
    }
    (met, sent)
}

proptest! {
    #[test]
    fn any_packets_interrupt_as_the_counters_say(
        gaps in prop::collection::vec((1u64..30, prop::collection::vec(100u32..200, 1..3)), 1..40),
        interval in 1u16..120,
        lli in prop::option::of((100u16..200, 0u8..8)),
        burst in 1usize..20,
    ) {
        let lli = lli.map(|(below, quarters)| (below, quarters * 4));
        let mut now = 0;
        let groups: Vec<Vec<_>> = gaps
            .iter()
            .map(|(gap, octets)| { now += gap; octets.iter().map(|&octets| (now, octets)).collect() })
            .collect();
        let packets = groups.concat();
        let (expected, sent) = by_the_counters(&packets, interval.into(), lli);
        let mut punctual = itr(interval, lli);
        prop_assert_eq!(conditions(&mut punctual, &packets), micros(&expected));
        prop_assert_eq!(lli_sent(&punctual), sent);
        // Whoever looks in bursts comes to the same count.
        let mut late = itr(interval, lli);
        for groups in groups.chunks(burst) {
            super::super::tests::tell(&mut late, &groups.concat(), Nanos((now + 100) * 1_000));
        }
        late.expire(Nanos(1_000_000_000), Nanos(1_000_000_000));
        prop_assert_eq!(late.counters().conditions_met, expected.len() as u64);
        prop_assert_eq!(lli_sent(&late), sent);
    }
}
