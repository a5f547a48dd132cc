use proptest::prelude::*;

use super::*;

/// Has queues whose frames have `lens` octets send until `total` octets have gone. Returns what each has sent.
fn share(scheduler: &mut Scheduler, lens: &[u64], burst: usize, total: u64) -> Vec<u64> {
    let mut sent = vec![0; lens.len()];
    let mut queue = scheduler.turn();
    while sent.iter().sum::<u64>() < total {
        let frames = scheduler.budget(queue).min(burst);
        let octets = frames as u64 * lens[queue];
        sent[queue] += octets;
        queue = if frames > 0 {
            scheduler.sent(queue, frames, octets, false)
        } else {
            scheduler.pay(queue);
            (queue + 1) % lens.len()
        };
    }
    sent
}

#[test]
fn one_queue_has_nobody_to_share_with() {
    let mut scheduler = Scheduler::new(1, 1518);
    for _ in 0..1000 {
        assert_eq!((scheduler.turn(), scheduler.budget(0)), (0, BURST));
        assert_eq!(scheduler.sent(0, BURST, 64 * 1518, false), 0);
    }
}

proptest! {
    #[test]
    fn shares_are_as_the_weights_say_within_a_turn_and_a_frame(
        lens in proptest::collection::vec(64u64..1519, 2..8),
        weights in proptest::collection::vec(1u8..10, 8),
        burst in 1usize..=BURST,
    ) {
        let mut scheduler = Scheduler::new(lens.len(), 1518);
        scheduler.set_weights(&Weights::new(&weights).unwrap());
        let sent = share(&mut scheduler, &lens, burst, 20_000_000);
        let quantum = scheduler.quantum() as u64;
        // Turns that each has had, by what it has sent.
        let turns: Vec<_> = sent
            .iter()
            .zip(&weights)
            .map(|(&sent, &weight)| sent as f64 / (quantum * u64::from(weight)) as f64)
            .collect();
        let (least, most) = turns
            .iter()
            .fold((f64::MAX, 0.0_f64), |(a, b), &turn| (a.min(turn), b.max(turn)));
        // The first burst is measured by the longest frame, so no debt is more than a frame's octets.
        let frame = 1518.0 / quantum as f64;
        prop_assert!(most - least <= 1.0 + 2.0 * frame, "{turns:?}");
    }
}

#[test]
fn who_had_nothing_to_send_is_not_owed_for_it() {
    let mut scheduler = Scheduler::new(2, 1518);
    // The other one is empty for long.
    for _ in 0..1000 {
        let frames = scheduler.budget(0);
        assert!(frames > 0);
        scheduler.sent(0, frames, 1518 * frames as u64, false);
    }
    let sent = share(&mut scheduler, &[1518, 1518], BURST, 10_000_000);
    assert!(sent[0].abs_diff(sent[1]) <= scheduler.quantum() as u64 + 1518);
}

#[test]
fn a_debt_is_paid_back_in_turns_and_forgiven_where_nobody_else_sends() {
    let mut scheduler = Scheduler::new(2, 1518);
    let quantum = scheduler.quantum() as u64;
    assert_eq!(scheduler.budget(0), 16, "of the longest kind");
    // They are super-frames: five turns' worth, and then some.
    assert_eq!(scheduler.sent(0, 16, 5 * quantum + 1, false), 1);
    let mut turns_of_the_other = 0;
    loop {
        turns_of_the_other += 1;
        let frames = scheduler.budget(1);
        assert_eq!(scheduler.sent(1, frames, quantum, false), 0);
        if scheduler.budget(0) > 0 {
            break;
        }
        scheduler.pay(0);
    }
    assert_eq!(turns_of_the_other, 5, "as much as the first has had before");
    assert_eq!(
        scheduler.budget(0),
        3,
        "as many of such frames as a turn is for"
    );
    scheduler.sent(0, 1, 100 * quantum, false);
    scheduler.pay(0);
    assert_eq!(scheduler.budget(0), 0);
    scheduler.forgive();
    assert!(scheduler.budget(0) > 0);
}

#[test]
fn weights_are_from_1_to_100() {
    assert_eq!(Weights::new(&[]), Some(Weights::default()));
    let weights = Weights::new(&[1, 100]).unwrap();
    assert_eq!([0, 1, 2, 99].map(|queue| weights.of(queue)), [1, 100, 1, 1]);
    assert_eq!(Weights::new(&[0]), None);
    assert_eq!(Weights::new(&[101]), None);
    assert!(Weights::new(&[1; 32]).is_some() && Weights::new(&[1; 33]).is_none());
}
