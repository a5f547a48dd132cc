//! How a driver is asked to announce itself, and says that it does (VIRTIO 1.3, 5.1.6.5.4).

use super::tests::{BASE, ERROR, OK, command};
use super::*;
use crate::config;
use crate::testing::Bench;

const ANNOUNCE: Features = BASE.union(Features::STATUS).union(Features::GUEST_ANNOUNCE);

/// The field `status`: 1 is the link, 2 the request.
fn status(bench: &Bench) -> u8 {
    config::read(&bench.nic.port, bench.nic.device.offered(), 6, 1)[0]
}

#[test]
fn a_link_that_comes_up_again_asks_until_the_driver_answers() {
    let mut bench = Bench::new(ANNOUNCE);
    assert_eq!(status(&bench), 1, "not at first");
    assert!(!bench.nic.port.set_link(Nanos::ZERO, true) && status(&bench) == 1);
    assert!(bench.nic.port.set_link(Nanos::ZERO, false) && status(&bench) == 0);
    assert!(bench.nic.port.set_link(Nanos::ZERO, true) && status(&bench) == 3);
    assert!(bench.nic.status().port.announce);
    assert_eq!(command(&mut bench, &[], &[3, 0]), OK);
    assert_eq!(status(&bench), 1);
    assert_eq!(command(&mut bench, &[], &[3, 0]), OK);
    assert_eq!(status(&bench), 1);
}

#[test]
fn a_driver_is_asked_when_somebody_wants_it() {
    let mut bench = Bench::new(ANNOUNCE);
    assert!(bench.nic.port.ask_to_announce() && bench.nic.port.ask_to_announce());
    assert_eq!(status(&bench), 3);
    assert_eq!(command(&mut bench, &[1, 1], &[3, 0]), OK);
    assert_eq!(status(&bench), 1);
}

#[test]
fn a_driver_that_cannot_answer_is_not_asked() {
    for features in [
        BASE,
        ANNOUNCE.difference(Features::CTRL_VQ),
        Features::empty(),
    ] {
        let mut bench = Bench::new(features);
        assert!(!bench.nic.port.ask_to_announce());
        assert!(
            bench.nic.port.set_link(Nanos::ZERO, false)
                && bench.nic.port.set_link(Nanos::ZERO, true)
        );
        assert_eq!(status(&bench), 1, "{features}");
    }
    let mut bench = Bench::new(BASE);
    assert_eq!(command(&mut bench, &[], &[3, 0]), ERROR);
}

#[test]
fn the_next_driver_is_not_asked_for_what_the_last_one_was() {
    let mut bench = Bench::new(ANNOUNCE);
    bench.nic.port.ask_to_announce();
    bench.nic.set_features(ANNOUNCE).unwrap();
    assert_eq!(status(&bench), 3, "it is the same one");
    bench.nic.set_features(BASE).unwrap();
    assert_eq!(status(&bench), 1);
    bench.nic.set_features(ANNOUNCE).unwrap();
    bench.nic.port.ask_to_announce();
    bench.nic.reset();
    assert_eq!(status(&bench), 1);
}
