//! How links come up, go down, and come back.

use super::*;
use crate::phy::mii::{self, BMCR, BMCR_ANENABLE, BMCR_ANRESTART};

const HALF_MINUTE: Nanos = Nanos(30 * SECOND.0);

/// What becomes of a card of `local` at `partner`: its mode and flow control, or none.
fn outcome(mut phy: Phy) -> Option<(String, (bool, bool))> {
    run(&mut phy, HALF_MINUTE, Phy::link)?;
    assert!(
        run(&mut phy, HALF_MINUTE, |phy| !phy.link()).is_none(),
        "it stays"
    );
    Some((mode_of(&phy), phy.pause()))
}

#[test]
fn without_negotiation_the_link_is_there_at_once_at_any_speed() {
    for mbps in Speed::RATES {
        let speed = Speed::from_mbps(mbps).unwrap();
        for up in [false, true] {
            let mut phy = Phy::new(speed, up);
            assert_eq!(
                (phy.link(), phy.speed(), phy.duplex()),
                (up, speed, Duplex::Full)
            );
            assert_eq!(
                (phy.pause(), phy.negotiates(), phy.next_deadline()),
                ((false, false), false, None)
            );
            assert!(phy.set_link(SECOND, !up) && !phy.set_link(SECOND, !up));
            assert_eq!((phy.link(), phy.next_deadline()), (!up, None));
            assert!(phy.set_link(SECOND, up));
            assert_eq!(phy.link(), up);
        }
    }
}

#[test]
fn every_pair_of_ends_comes_to_what_the_standard_says() {
    let (none, both, obey) = ((false, false), (true, true), (false, true));
    for (local, partner, expected) in [
        ("10M", "same", Some(("10full", both))),
        ("100M", "same", Some(("100full", both))),
        ("1G", "same", Some(("1000full", both))),
        ("2.5G", "same", Some(("2500full", both))),
        ("10G", "same", Some(("10000full", both))),
        ("25G", "same", Some(("25000full", both))),
        ("400G", "same", Some(("400000full", both))),
        // What the other end has decides.
        ("10G", "10half", Some(("10half", none))),
        ("10G", "10half,10full", Some(("10full", none))),
        ("10G", "100half,10full,pause", Some(("100half", none))),
        ("10G", "100half,100full,pause", Some(("100full", both))),
        ("10G", "100full,1000full,asym", Some(("1000full", obey))),
        ("10G", "1000half", Some(("1000half", none))),
        (
            "10G",
            "1000full,2500full,pause,asym",
            Some(("2500full", both)),
        ),
        ("10G", "5000full,1000full", Some(("5000full", none))),
        ("1G", "pause", Some(("1000full", both))),
        ("100G", "10000full,40000full", Some(("40000full", none))),
        (
            "100G",
            "25000full,200000full,asym",
            Some(("25000full", obey)),
        ),
        ("400G", "50000full", Some(("50000full", none))),
        // Nothing in common.
        ("100M", "1000full", None),
        ("1G", "10000full", None),
        ("25G", "100half", None),
        ("100G", "400000full", None),
        // One that does not negotiate: its duplex mode cannot be told, and half it is.
        ("1G", "10half,silent", Some(("10half", none))),
        ("1G", "10full,silent", Some(("10half", none))),
        ("1G", "100half,silent", Some(("100half", none))),
        ("10G", "100full,silent", Some(("100half", none))),
        ("10M", "100full,silent", None),
        ("1G", "1000full,silent", None),
        ("10G", "10000full,silent", None),
        ("25G", "1000full,silent", Some(("1000full", none))),
        ("25G", "25000full,silent", None),
        // Both told the same of the clock is none; one told is enough.
        ("1G", "1000full,master", Some(("1000full", none))),
        ("1G", "1000full,slave", Some(("1000full", none))),
    ] {
        let got = outcome(negotiating(local, partner));
        let expected = expected.map(|(mode, pause): (&str, _)| (mode.to_owned(), pause));
        assert_eq!(got, expected, "{local} and {partner}");
    }
    // A forced end with one that is forced, or negotiates and has to detect it.
    for (local, partner, expected) in [
        ("100M", "100full,silent", true),
        ("100M", "100half,silent", true),
        ("100M", "10full,silent", false),
        ("25G", "25000full,silent", true),
        ("25G", "10000full,silent", false),
        ("100M", "100half,1000full", true),
        ("100M", "1000full", false),
        ("1G", "1000full", false),
        ("10G", "same", true),
    ] {
        let got = outcome(forced(local, partner));
        let own = Mode::full(speed(local)).to_string();
        let expected = expected.then_some((own, none));
        assert_eq!(got, expected, "{local} and {partner}");
    }
}

#[test]
fn flow_control_follows_what_both_ends_say() {
    for (advertised, partner, pause) in [
        (0b11, "100full,asym", (false, true)),
        (0b10, "100full,pause,asym", (true, false)),
        (0b01, "100full,pause,asym", (true, true)),
        (0b01, "100full,asym", (false, false)),
        (0b00, "100full,pause,asym", (false, false)),
    ] {
        let mut phy = negotiating("100M", partner);
        let page = 0x01e1 | advertised << 10;
        phy.write(Nanos::ZERO, Address::mii(mii::ANAR), page);
        assert_eq!(mii_read(&mut phy, mii::ANAR), page);
        assert!(run(&mut phy, HALF_MINUTE, Phy::link).is_some());
        assert_eq!(phy.pause(), pause, "{advertised:b} and {partner}");
        phy.set_link(HALF_MINUTE, false);
        assert_eq!(phy.pause(), (false, false), "without a link");
    }
}

#[test]
fn a_link_takes_as_long_as_its_timers_and_pages() {
    let word = 16;
    for (speed, partner, expected) in [
        // break_link_timer; the same words three times, three more, six to end with; training.
        ("100M", "same", 1_200 + 12 * word + 1),
        ("10M", "same", 1_200 + 12 * word + 112),
        // Three next pages.
        ("1G", "same", 1_200 + 4 * 12 * word + 350),
        // One extended one.
        ("10G", "same", 1_200 + 2 * 12 * word + 1_000),
        // The other end has nothing to say beyond its base page.
        ("10G", "100full", 1_200 + 12 * word + 1),
        // autoneg_wait_timer.
        ("1G", "100full,silent", 1_200 + 500 + 1),
    ] {
        let mut phy = negotiating(speed, partner);
        let when = run(&mut phy, HALF_MINUTE, Phy::link);
        assert_eq!(when, Some(millis(expected)), "{speed} and {partner}");
    }
    // Clause 73: pages take next to nothing.
    let mut phy = negotiating("100G", "same");
    let when = run(&mut phy, HALF_MINUTE, Phy::link);
    assert_eq!(when, Some(Nanos(360_000_000 + 12 * 340)));
    // The other end has to detect one that is forced.
    let mut phy = forced("100M", "100half,100full");
    assert_eq!(run(&mut phy, HALF_MINUTE, Phy::link), Some(millis(501)));
}

#[test]
fn one_that_is_forced_to_full_duplex_meets_half_duplex() {
    let mut phy = negotiating("1G", "100full,silent");
    run(&mut phy, HALF_MINUTE, Phy::link).expect("a link");
    let status = phy.status();
    assert!(status.parallel_detection && status.duplex_mismatch);
    assert_eq!(
        mii_read(&mut phy, mii::ANLPAR),
        1 << 7,
        "100BASE-TX, and no selector"
    );
    assert_eq!(mii_read(&mut phy, mii::ANER) & mii::ANER_LPANABLE, 0);
    // The right one has no such trouble; nor have two that negotiate.
    for partner in ["100half,silent", "100full", "same"] {
        let mut phy = negotiating("1G", partner);
        run(&mut phy, HALF_MINUTE, Phy::link).expect("a link");
        assert!(!phy.status().duplex_mismatch, "{partner}");
    }
    // The other way round: we are forced, it detects us.
    let mut phy = forced("100M", "100half,100full");
    run(&mut phy, HALF_MINUTE, Phy::link).expect("a link");
    assert!(phy.status().duplex_mismatch);
}

#[test]
fn a_link_that_is_lost_is_negotiated_anew() {
    let mut phy = negotiating("1G", "same");
    let up = run(&mut phy, HALF_MINUTE, Phy::link).expect("a link");
    assert!(!phy.set_link(up, true), "it is plugged in");
    let lost = up + Duration::from_secs(1);
    assert!(phy.set_link(lost, false));
    assert!(!phy.link());
    // After break_link_timer it waits for as long as it takes.
    phy.advance(lost + Duration::from_secs(100));
    assert_eq!(phy.next_deadline(), None);
    let back = lost + Duration::from_secs(200);
    assert!(!phy.set_link(back, true), "not at once");
    let up = run(&mut phy, back + Duration::from_secs(30), Phy::link);
    assert_eq!(up, Some(back + Duration::from_millis(4 * 12 * 16 + 350)));
    // Lost for a moment it takes break_link_timer, too.
    let lost = up.unwrap() + Duration::from_secs(1);
    assert!(phy.set_link(lost, false) && !phy.set_link(lost, true));
    let up = run(&mut phy, lost + Duration::from_secs(30), Phy::link);
    assert_eq!(
        up,
        Some(lost + Duration::from_millis(1_200 + 4 * 12 * 16 + 350))
    );
}

#[test]
fn what_is_cut_off_at_any_instant_comes_back() {
    for partner in ["same", "100full,silent"] {
        for ms in (0..3_000).step_by(37) {
            let mut phy = negotiating("1G", partner);
            phy.set_link(millis(ms), false);
            assert!(!phy.link());
            phy.set_link(millis(ms + 5), true);
            assert!(
                run(&mut phy, HALF_MINUTE, Phy::link).is_some(),
                "{partner} at {ms}"
            );
        }
    }
}

#[test]
fn a_signal_that_goes_while_it_is_looked_at_is_a_fault() {
    let mut phy = negotiating("1G", "100full,silent");
    phy.advance(millis(1_300));
    assert_eq!(phy.status().state, "link status check");
    phy.set_link(millis(1_400), false);
    assert_eq!(mii_read(&mut phy, mii::ANER) & mii::ANER_PDF, 0);
    phy.advance(millis(1_700));
    assert_eq!(phy.status().state, "transmit disable");
    let expansion = phy.read(millis(1_701), Address::mii(mii::ANER));
    assert_eq!(expansion & mii::ANER_PDF, mii::ANER_PDF);
    let again = phy.read(millis(1_702), Address::mii(mii::ANER));
    assert_eq!(again & mii::ANER_PDF, 0, "it has been read");
}

#[test]
fn training_that_leads_nowhere_is_given_up_in_time() {
    let mut phy = negotiating("1G", "same");
    let training = |phy: &Phy| phy.status().state == "link good check";
    let began = run(&mut phy, HALF_MINUTE, training).expect("training");
    phy.set_link(began + Duration::from_millis(1), false);
    assert_eq!(
        phy.next_deadline(),
        Some(began + Duration::from_millis(750))
    );
    phy.advance(began + Duration::from_millis(750));
    assert_eq!(phy.status().state, "transmit disable");
}

#[test]
fn both_told_to_be_the_master_never_have_a_link() {
    let mut phy = negotiating("1G", "1000full,master");
    // Manual, master.
    phy.write(
        Nanos::ZERO,
        Address::mii(mii::GBCR),
        1 << 12 | 1 << 11 | 1 << 9,
    );
    assert!(run(&mut phy, HALF_MINUTE, Phy::link).is_none());
    assert_ne!(mii_read(&mut phy, mii::GBSR) & 1 << 15, 0);
    // One of them relents.
    phy.write(HALF_MINUTE, Address::mii(mii::GBCR), 1 << 12 | 1 << 9);
    phy.write(
        HALF_MINUTE,
        Address::mii(BMCR),
        BMCR_ANENABLE | BMCR_ANRESTART,
    );
    let end = HALF_MINUTE + Duration::from_secs(10);
    assert!(run(&mut phy, end, Phy::link).is_some());
    phy.read(end, Address::mii(mii::GBSR));
    assert_eq!(
        phy.read(end, Address::mii(mii::GBSR)) & 0xc000,
        0,
        "a slave, no fault"
    );
}

#[test]
fn a_restart_takes_the_link_down_and_what_is_advertised_counts_from_then() {
    let mut phy = negotiating("1G", "same");
    run(&mut phy, HALF_MINUTE, Phy::link).expect("a link");
    let now = millis(10_000);
    phy.write(now, Address::mii(mii::GBCR), 0);
    assert_eq!(
        (phy.link(), mode_of(&phy).as_str()),
        (true, "1000full"),
        "not yet"
    );
    phy.write(now, Address::mii(BMCR), BMCR_ANENABLE | BMCR_ANRESTART);
    assert!(!phy.link());
    assert_eq!(
        phy.peek(Address::mii(BMCR)) & BMCR_ANRESTART,
        0,
        "it clears itself"
    );
    let up = run(&mut phy, HALF_MINUTE, Phy::link);
    assert_eq!(up, Some(now + Duration::from_millis(1_200 + 12 * 16 + 1)));
    assert_eq!(mode_of(&phy), "100full");
}

#[test]
fn another_partner_is_negotiated_with_anew() {
    let mut phy = negotiating("1G", "same");
    run(&mut phy, HALF_MINUTE, Phy::link).expect("a link");
    phy.set_partner(millis(10_000), "10full,pause".parse().expect("a partner"));
    assert!(!phy.link());
    assert!(run(&mut phy, HALF_MINUTE, Phy::link).is_some());
    assert_eq!(
        (mode_of(&phy).as_str(), phy.pause()),
        ("10full", (true, true))
    );
    assert_eq!(phy.status().partner, "10full,pause");
}

#[test]
fn the_lines_follow_the_speed() {
    let mut phy = negotiating("1G", "100full");
    run(&mut phy, HALF_MINUTE, Phy::link).expect("a link");
    let begin = millis(5_000);
    assert_eq!(phy.tx.carry(1_000, begin), Nanos(begin.0 + 1_008 * 80));
    assert_eq!(phy.rx.carry(1_000, begin), Nanos(begin.0 + 1_008 * 80));
}

#[test]
fn a_forced_speed_is_another_one_at_once_where_the_other_end_follows() {
    let mut phy = forced("10G", "same");
    mii_read(&mut phy, mii::BMSR);
    assert!(phy.set_speed(SECOND, speed("1G")));
    assert_eq!((phy.link(), mode_of(&phy)), (true, "1000full".to_owned()));
    assert_eq!(phy.next_deadline(), None);
    let status = mii_read(&mut phy, mii::BMSR);
    assert_eq!(status & mii::BMSR_LSTATUS, 0, "it was lost meanwhile");
    assert!(!phy.set_speed(SECOND, speed("25G")), "it cannot do that");
    assert_eq!((phy.link(), mode_of(&phy)), (true, "1000full".to_owned()));
    let mut phy = forced("10G", "10000full,silent");
    assert!(phy.link() && phy.set_speed(SECOND, speed("1G")));
    assert!(!phy.link(), "the other end does not follow");
    assert!(phy.set_speed(SECOND, speed("10G")) && phy.link());
}

#[test]
fn a_speed_is_the_only_one_that_is_advertised_where_it_is_negotiated() {
    let mut phy = negotiating("10G", "same");
    run(&mut phy, HALF_MINUTE, Phy::link).unwrap();
    assert!(phy.set_speed(HALF_MINUTE, speed("100M")));
    assert!(!phy.link() && phy.negotiates());
    run(&mut phy, Nanos(2 * HALF_MINUTE.0), Phy::link).unwrap();
    assert_eq!(mode_of(&phy), "100full");
}
