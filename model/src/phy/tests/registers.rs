//! What the registers show, what they keep, and what a write does.

use super::*;
use crate::phy::mii::{
    self, BMCR, BMCR_ANENABLE, BMCR_ANRESTART, BMCR_FULLDPLX, BMCR_ISOLATE, BMCR_LOOPBACK,
    BMCR_PDOWN, BMCR_RESET, BMSR, BMSR_ANEGCOMPLETE, BMSR_LSTATUS, BMSR_RFAULT,
};
use crate::phy::mmd::{AN, PCS, PMA};
use crate::phy::{Loopback, names};

const LATER: Nanos = Nanos(100 * SECOND.0);

fn up(phy: &mut Phy) -> Nanos {
    run(phy, LATER, Phy::link).expect("a link")
}

#[test]
fn every_register_comes_up_as_the_standard_has_it() {
    // Speed, register, without negotiation, with.
    let mii = Address::mii;
    let mmd = Address::mmd;
    for (speed, address, forced_value, negotiating_value) in [
        ("1G", mii(0), 0x0140, 0x1140),
        ("1G", mii(1), 0x794d, 0x7949),
        ("1G", mii(2), 0x4950, 0x4950),
        ("1G", mii(3), 0x0010, 0x0010),
        ("1G", mii(4), 0x8de1, 0x8de1),
        ("1G", mii(5), 0, 0),
        ("1G", mii(6), 0x0064, 0x0064),
        ("1G", mii(7), 0x2001, 0x2001),
        ("1G", mii(8), 0, 0),
        ("1G", mii(9), 0x0300, 0x0300),
        ("1G", mii(10), 0, 0),
        ("1G", mii(11), 0, 0),
        ("1G", mii(13), 0, 0),
        ("1G", mii(15), 0x3000, 0x3000),
        ("1G", mii(16), 0, 0),
        ("1G", mii(31), 0, 0),
        ("10M", mii(0), 0x0100, 0x1100),
        ("10M", mii(1), 0x184d, 0x1849),
        ("10M", mii(4), 0x0c61, 0x0c61),
        ("10M", mii(9), 0, 0),
        ("100M", mii(0), 0x2100, 0x3100),
        ("100M", mii(1), 0x784d, 0x7849),
        ("100M", mii(4), 0x0de1, 0x0de1),
        ("10G", mii(0), 0x2140, 0x3140),
        ("10G", mii(3), 0x0020, 0x0020),
        ("10G", mii(4), 0x9de1, 0x9de1),
        ("25G", mii(0), 0x2140, 0x3140),
        ("25G", mii(1), 0x004d, 0x0049),
        ("25G", mii(3), 0x0030, 0x0030),
        ("25G", mii(4), 0, 0),
        ("25G", mii(9), 0, 0),
        ("1G", mmd(PMA, 0), 0x0040, 0x0040),
        ("10G", mmd(PMA, 0), 0x2040, 0x2040),
        ("2.5G", mmd(PMA, 0), 0x2058, 0x2058),
        ("5G", mmd(PMA, 0), 0x205c, 0x205c),
        ("40G", mmd(PMA, 0), 0x2048, 0x2048),
        ("100G", mmd(PMA, 0), 0x204c, 0x204c),
        ("10G", mmd(PMA, 1), 0x0006, 0x0002),
        ("10G", mmd(PMA, 2), 0x4950, 0x4950),
        ("10G", mmd(PMA, 3), 0x0020, 0x0020),
        ("10G", mmd(PMA, 4), 0x6071, 0x6071),
        ("25G", mmd(PMA, 4), 0x6811, 0x6811),
        ("10G", mmd(PMA, 5), 0x008b, 0x008b),
        ("10G", mmd(PMA, 6), 0, 0),
        ("10G", mmd(PMA, 7), 0x0009, 0x0009),
        ("10G", mmd(PMA, 8), 0x8201, 0x8201),
        ("10G", mmd(PMA, 11), 0x41a4, 0x41a4),
        ("1G", mmd(PMA, 11), 0x01a0, 0x01a0),
        ("10G", mmd(PMA, 21), 0x0003, 0x0003),
        ("10G", mmd(PCS, 0), 0x2040, 0x2040),
        ("10G", mmd(PCS, 1), 0x0006, 0x0002),
        ("10G", mmd(PCS, 4), 0x00c1, 0x00c1),
        ("400G", mmd(PCS, 4), 0x03fd, 0x03fd),
        ("10G", mmd(PCS, 8), 0x8000, 0x8000),
        ("10G", mmd(PCS, 32), 0x1001, 0x0000),
        ("10G", mmd(AN, 0), 0x2000, 0x3000),
        ("10G", mmd(AN, 1), 0x000c, 0x0008),
        ("10G", mmd(AN, 16), 0x9de1, 0x9de1),
        ("10G", mmd(AN, 19), 0, 0),
        ("10G", mmd(AN, 32), 0x1180, 0x1180),
        ("10G", mmd(AN, 33), 0, 0),
        ("1G", mmd(AN, 32), 0, 0),
        ("100G", mmd(AN, 0), 0x0000, 0x1000),
        ("100G", mmd(AN, 16), 0x0c01, 0x0c01),
        ("100G", mmd(AN, 17), 0xa2a0, 0xa2a0),
        ("100G", mmd(AN, 18), 0x0007, 0x0007),
        ("400G", mmd(AN, 18), 0x0097, 0x0097),
        ("100G", mmd(AN, 48), 0x0001, 0x0001),
        // Nobody is there.
        ("10G", mmd(2, 0), 0xffff, 0xffff),
        ("10G", mmd(31, 1), 0xffff, 0xffff),
    ] {
        let (forced, negotiating) = (forced(speed, "same"), negotiating(speed, "same"));
        let (one, other) = (forced.peek(address), negotiating.peek(address));
        assert_eq!(one, forced_value, "{speed} {address} {one:#06x}");
        assert_eq!(
            other, negotiating_value,
            "{speed} {address} {other:#06x}, negotiating"
        );
    }
}

#[test]
fn what_was_agreed_on_is_shown() {
    let mut phy = negotiating("1G", "100full,1000full,pause,asym");
    let now = up(&mut phy);
    let read = |phy: &mut Phy, reg| phy.read(now, Address::mii(reg));
    assert_eq!(
        read(&mut phy, BMSR) & (BMSR_ANEGCOMPLETE | BMSR_LSTATUS),
        BMSR_ANEGCOMPLETE | BMSR_LSTATUS
    );
    assert_eq!(read(&mut phy, mii::ANLPAR), 0xcd01);
    assert_eq!(read(&mut phy, mii::ANER), 0x006f);
    assert_eq!(
        read(&mut phy, mii::ANER),
        0x006d,
        "the page has been read of"
    );
    assert_eq!(read(&mut phy, mii::GBSR), 0x3800, "a switch is the master");
    let mut phy = negotiating("10G", "1000full,2500full,10000full,fault");
    let now = up(&mut phy);
    assert_eq!(phy.read(now, Address::mmd(AN, 33)), 0x3820);
    assert_eq!(phy.read(now, Address::mmd(AN, 19)), 0xf001);
    assert_eq!(phy.read(now, Address::mmd(AN, 1)), 0x00fd);
    let mut phy = negotiating("100G", "25000full,100000full,pause");
    let now = up(&mut phy);
    assert_eq!(phy.read(now, Address::mmd(AN, 19)), 0x4401);
    assert_eq!(phy.read(now, Address::mmd(AN, 20)), 0xa000);
    assert_eq!(phy.read(now, Address::mmd(AN, 21)), 0);
    assert_eq!(phy.read(now, Address::mmd(AN, 48)), 1 << 11 | 1);
    assert_eq!(phy.read(now, Address::mmd(AN, 1)), 0x006d);
}

#[test]
fn a_link_that_was_lost_shows_until_it_is_read_in_each_register() {
    for autoneg in [false, true] {
        let mut phy = if autoneg {
            negotiating("10G", "same")
        } else {
            forced("10G", "same")
        };
        up(&mut phy);
        phy.set_link(LATER, false);
        phy.set_link(LATER, true);
        let later = Nanos(2 * LATER.0);
        phy.advance(later);
        assert!(phy.link());
        for (address, link) in [
            (Address::mii(BMSR), BMSR_LSTATUS),
            (Address::mmd(PMA, 1), 1 << 2),
            (Address::mmd(PCS, 1), 1 << 2),
            (Address::mmd(AN, 1), 1 << 2),
        ] {
            assert_eq!(
                phy.peek(address) & link,
                0,
                "{address}: looking is not reading"
            );
            assert_eq!(phy.read(later, address) & link, 0, "{address}");
            assert_eq!(phy.read(later, address) & link, link, "{address}");
        }
        // Down, it stays so.
        phy.set_link(later, false);
        for _ in 0..3 {
            assert_eq!(phy.read(later, Address::mii(BMSR)) & BMSR_LSTATUS, 0);
        }
    }
}

/// What the registers say of the other end alone, without what stays until it is read.
fn of_partner(phy: &Phy) -> Vec<u16> {
    let registers = [
        (Address::mii(mii::ANLPAR), 0xffff),
        // Able to exchange next pages, able to negotiate.
        (Address::mii(mii::ANER), 1 << 3 | mii::ANER_LPANABLE),
        (Address::mii(mii::ANLPRNPR), 0xffff),
        // The clock, both receivers, what it can do; not the fault.
        (Address::mii(mii::GBSR), 0x7c00),
        // Extended next pages, complete, able to negotiate.
        (Address::mmd(AN, 1), 1 << 7 | 1 << 5 | 1),
        (Address::mmd(AN, 19), 0xffff),
        (Address::mmd(AN, 20), 0xffff),
        (Address::mmd(AN, 21), 0xffff),
        (Address::mmd(AN, 33), 0x7fff),
        // What was agreed on.
        (Address::mmd(AN, 48), 0xfffe),
        (Address::mmd(AN, 49), 0xffff),
    ];
    let shown = registers.map(|(address, mask)| phy.peek(address) & mask);
    shown.to_vec()
}

/// What stays until it is read: a page has come, parallel detection has failed.
fn latched(phy: &Phy) -> bool {
    phy.peek(Address::mii(mii::ANER)) & (1 << 1 | 1 << 4) != 0
        || phy.peek(Address::mmd(AN, 1)) & (1 << 6 | 1 << 9) != 0
}

#[test]
fn nothing_of_a_partner_is_left_when_it_is_gone_or_negotiated_with_anew() {
    type Leave = fn(&mut Phy);
    let leave: [(&str, Leave); 6] = [
        ("pulled out", |phy| {
            phy.set_link(LATER, false);
        }),
        ("another one that says nothing", |phy| {
            phy.set_partner(LATER, "1000full,silent".parse().unwrap());
        }),
        ("restarted", |phy| {
            let restart = BMCR_ANENABLE | BMCR_ANRESTART;
            phy.write(LATER, Address::mii(BMCR), restart);
        }),
        ("not negotiating", |phy| {
            phy.write(LATER, Address::mii(BMCR), BMCR_FULLDPLX);
        }),
        ("without power", |phy| {
            phy.write(LATER, Address::mii(BMCR), BMCR_ANENABLE | BMCR_PDOWN);
        }),
        ("reset", |phy| {
            phy.write(LATER, Address::mii(BMCR), BMCR_RESET);
        }),
    ];
    // A link with each family and kind of page; one that was detected, of the right duplex mode and of another; and none.
    let partners = [
        ("1G", "same", true),
        ("1G", "100half,10full,pause", true),
        ("1G", "100half,silent", true),
        ("1G", "100full,silent", true),
        ("1G", "10000full", false),
        ("1G", "1000full,master", true),
        ("10G", "1000full,10000full,asym", true),
        ("100G", "25000full,100000full,pause", true),
        ("100G", "400000full", false),
    ];
    for (speed, partner, links) in partners {
        for (way, leave) in leave {
            let mut phy = negotiating(speed, partner);
            run(&mut phy, LATER, |_| false);
            assert_eq!(phy.link(), links, "{speed} {partner}");
            phy.advance(LATER);
            let before = of_partner(&phy);
            assert!(before.iter().any(|&bits| bits != 0), "{speed} {partner}");
            let was_latched = latched(&phy);
            leave(&mut phy);
            let after = of_partner(&phy);
            // Management begins with nothing; whatever else happens leaves it to whoever reads it.
            let managed = !matches!(way, "pulled out" | "another one that says nothing");
            assert_eq!(
                latched(&phy),
                was_latched && !managed,
                "{speed} {partner}, {way}"
            );
            assert!(!phy.link(), "{speed} {partner}, {way}");
            assert!(
                after.iter().all(|&bits| bits == 0),
                "{speed} {partner}, {way}: {before:04x?} {after:04x?}"
            );
            let status = phy.status();
            assert!(!status.parallel_detection && !status.duplex_mismatch);
            assert_eq!(phy.pause(), (false, false), "{speed} {partner}, {way}");
        }
    }
}

#[test]
fn one_that_nothing_came_of_is_forgotten_whenever_it_goes() {
    for (speed, partner) in [("1G", "10000full"), ("100G", "400000full")] {
        for ms in (0..3_000).step_by(37) {
            let mut phy = negotiating(speed, partner);
            phy.advance(LATER);
            let gone = LATER + Duration::from_millis(ms);
            phy.set_link(gone, false);
            // Pages that have begun are waited for no longer.
            assert_eq!(of_partner(&phy), [0; 11], "{speed} {partner} at {ms}");
        }
    }
}

#[test]
fn a_partner_that_was_detected_is_detected_again_with_what_it_is_by_then() {
    for (first, then, page, mismatch) in [
        ("100full,silent", "100full,silent", 1 << 7, true),
        ("100full,silent", "100half,silent", 1 << 7, false),
        ("100half,silent", "10full,silent", 1 << 5, true),
        ("100half,silent", "100full", 1 << 14 | 1 << 8 | 1, false),
        ("100full", "100full,silent", 1 << 7, true),
        ("10000full", "100full,silent", 1 << 7, true),
    ] {
        let mut phy = negotiating("1G", first);
        run(&mut phy, LATER, |_| false);
        phy.advance(LATER);
        phy.set_partner(LATER, then.parse().unwrap());
        let end = Nanos(2 * LATER.0);
        phy.advance(end);
        let status = phy.status();
        assert!(phy.link(), "{first}, {then}");
        assert_eq!(
            status.duplex_mismatch, mismatch,
            "{first}, {then}: {status:?}"
        );
        assert_eq!(phy.peek(Address::mii(mii::ANLPAR)), page, "{first}, {then}");
        let able = phy.peek(Address::mii(mii::ANER)) & mii::ANER_LPANABLE != 0;
        assert_eq!(able, !then.contains("silent"), "{first}, {then}");
    }
}

#[test]
fn a_remote_fault_shows_until_it_is_read_and_over() {
    let mut phy = negotiating("1G", "same");
    let now = up(&mut phy);
    assert_eq!(phy.read(now, Address::mii(BMSR)) & BMSR_RFAULT, 0);
    phy.set_partner(now, "1000full,fault".parse().unwrap());
    phy.advance(LATER);
    phy.set_partner(LATER, "same".parse().unwrap());
    let later = Nanos(2 * LATER.0);
    assert_ne!(phy.read(later, Address::mii(BMSR)) & BMSR_RFAULT, 0);
    assert_eq!(phy.read(later, Address::mii(BMSR)) & BMSR_RFAULT, 0);
}

#[test]
fn what_can_be_written_is_kept_and_nothing_else() {
    let mut phy = negotiating("1G", "same");
    let mut write = |address, value, kept| {
        phy.write(Nanos::ZERO, address, value);
        let found = phy.peek(address);
        assert_eq!(found, kept, "{address}: {value:#06x} became {found:#06x}");
    };
    for reg in [1, 2, 3, 5, 6, 8, 10, 11, 12, 15, 16, 31] {
        let before = negotiating("1G", "same").peek(Address::mii(reg));
        write(Address::mii(reg), 0xffff, before);
        write(Address::mii(reg), 0, before);
    }
    // Neither 100BASE-T4 nor another selector; that pages follow is settled by register 9.
    write(Address::mii(mii::ANAR), 0x7fff, 0xade1);
    write(Address::mii(mii::ANAR), 0, 0x8001);
    write(Address::mii(mii::GBCR), 0xffff, 0x1f00);
    write(Address::mii(mii::GBCR), 0, 0);
    write(Address::mii(mii::ANAR), 0xffff, 0x2de1);
    write(Address::mii(mii::ANNPTR), 0xffff, 0xbfff);
    // Everything but what clears itself.
    let control = BMCR_ANENABLE | BMCR_ANRESTART | BMCR_FULLDPLX | BMCR_ISOLATE | 1 << 7 | 1 << 13;
    write(Address::mii(BMCR), control, control & !BMCR_ANRESTART);
    // A rate that it does not have.
    let mut phy = forced("100M", "same");
    phy.write(Nanos::ZERO, Address::mii(BMCR), 1 << 6);
    assert_eq!(phy.peek(Address::mii(BMCR)), 0x2100);
    phy.write(Nanos::ZERO, Address::mmd(PMA, 0), 0x2058);
    assert_eq!(phy.peek(Address::mmd(PMA, 0)), 0x2000);
    // An advertisement of Clause 45 and of Clause 22 are the same.
    let mut phy = negotiating("10G", "same");
    phy.write(Nanos::ZERO, Address::mmd(AN, 16), 0x0001);
    assert_eq!(phy.peek(Address::mii(mii::ANAR)), 0x9001);
    phy.write(Nanos::ZERO, Address::mmd(AN, 32), 0x0100);
    assert_eq!(phy.peek(Address::mmd(AN, 32)), 0x0100);
    phy.write(Nanos::ZERO, Address::mii(mii::GBCR), 0);
    up(&mut phy);
    assert_eq!(mode_of(&phy), "5000full");
    let mut phy = negotiating("100G", "same");
    phy.write(Nanos::ZERO, Address::mmd(AN, 16), 0);
    phy.write(Nanos::ZERO, Address::mmd(AN, 17), 1 << 15);
    phy.write(Nanos::ZERO, Address::mmd(AN, 18), 0xffff);
    assert_eq!(phy.peek(Address::mmd(AN, 17)), 1 << 15);
    assert_eq!(phy.peek(Address::mmd(AN, 18)), 0x0007);
    up(&mut phy);
    assert_eq!(
        (mode_of(&phy).as_str(), phy.pause()),
        ("50000full", (false, false))
    );
}

#[test]
fn a_reset_restores_what_it_came_up_with() {
    for autoneg in [false, true] {
        let fresh = || {
            if autoneg {
                negotiating("10G", "same")
            } else {
                forced("10G", "same")
            }
        };
        for address in [
            Address::mii(BMCR),
            Address::mmd(PMA, 0),
            Address::mmd(PCS, 0),
            Address::mmd(AN, 0),
        ] {
            let mut phy = fresh();
            for (address, value) in [
                (Address::mii(mii::ANAR), 0),
                (Address::mii(mii::GBCR), 0x1f00),
                (Address::mii(mii::ANNPTR), 0),
                (Address::mmd(AN, 32), 0),
                (Address::mii(13), 0x4007),
                (Address::mii(BMCR), 1 << 6 | BMCR_ISOLATE | BMCR_LOOPBACK),
            ] {
                phy.write(SECOND, address, value);
            }
            phy.write(LATER, address, BMCR_RESET | 0x7fff);
            assert!(!phy.link(), "{address}: the link goes");
            for register in phy.registers() {
                if !matches!(
                    register.name,
                    "bmsr" | "pma-stat1" | "pcs-stat1" | "an-stat1" | "pcs-br-stat1"
                ) {
                    let (found, expected) =
                        (phy.peek(register.address), fresh().peek(register.address));
                    assert_eq!(found, expected, "{} after {address}", register.name);
                }
            }
            let end = Nanos(LATER.0 + 10 * SECOND.0);
            assert!(
                run(&mut phy, end, Phy::link).is_some(),
                "{address}: it comes back"
            );
            assert_eq!(mode_of(&phy), "10000full");
        }
    }
}

#[test]
fn a_forced_speed_is_taken_and_the_other_end_has_to_suit() {
    let mut phy = forced("1G", "100full,silent");
    assert!(!phy.link() && phy.next_deadline().is_none());
    phy.write(SECOND, Address::mii(BMCR), 1 << 13 | BMCR_FULLDPLX);
    let end = Nanos(2 * SECOND.0);
    assert_eq!(run(&mut phy, end, Phy::link), Some(millis(1_001)));
    assert_eq!(mode_of(&phy), "100full");
    // By Clause 45.
    let mut phy = forced("100G", "25000full,silent");
    phy.write(SECOND, Address::mmd(PMA, 0), 0x2040 | 4 << 2);
    assert!(run(&mut phy, end, Phy::link).is_some());
    assert_eq!(
        (mode_of(&phy).as_str(), phy.peek(Address::mmd(PCS, 0))),
        ("25000full", 0x2040 | 5 << 2)
    );
    // To be negotiated after all.
    let mut phy = forced("1G", "100half");
    phy.write(SECOND, Address::mii(BMCR), BMCR_ANENABLE);
    assert!(run(&mut phy, LATER, Phy::link).is_some());
    assert_eq!(mode_of(&phy), "100half");
}

#[test]
fn power_down_and_isolation_cut_it_off() {
    for autoneg in [0, BMCR_ANENABLE] {
        let mut phy = forced("1G", "same");
        let own = autoneg | BMCR_FULLDPLX | 1 << 6;
        phy.write(Nanos::ZERO, Address::mii(BMCR), own);
        up(&mut phy);
        phy.write(LATER, Address::mii(BMCR), own | BMCR_PDOWN);
        assert!(!phy.link() && phy.next_deadline().is_none());
        assert!(!phy.set_link(LATER, false) && !phy.set_link(LATER, true));
        phy.write(LATER, Address::mii(BMCR), own);
        let end = Nanos(2 * LATER.0);
        assert!(run(&mut phy, end, Phy::link).is_some());
        phy.write(end, Address::mii(BMCR), own | BMCR_ISOLATE);
        assert!(!phy.link());
        phy.read(end, Address::mii(BMSR));
        assert_ne!(
            phy.read(end, Address::mii(BMSR)) & BMSR_LSTATUS,
            0,
            "the link is there"
        );
        phy.write(end, Address::mii(BMCR), own);
        assert!(phy.link());
    }
}

#[test]
fn a_loopback_needs_no_other_end() {
    for (address, on, off) in [
        (Address::mii(BMCR), 0x0140 | BMCR_LOOPBACK, 0x0140),
        (Address::mmd(PCS, 0), BMCR_LOOPBACK, 0),
        (Address::mmd(PMA, 0), 0x0041, 0x0040),
    ] {
        for plugged in [true, false] {
            let mut phy = Phy::new(speed("1G"), plugged);
            assert_eq!(phy.loopback(), None);
            phy.write(SECOND, address, on);
            assert!(phy.link(), "{address}");
            assert_eq!(phy.loopback(), Some(Loopback::Phy));
            assert_ne!(phy.read(SECOND, Address::mii(BMSR)) & BMSR_LSTATUS, 0);
            phy.write(SECOND, address, off);
            phy.advance(LATER);
            assert_eq!((phy.link(), phy.loopback()), (plugged, None), "{address}");
        }
    }
    // One that negotiates has its best mode in it.
    let mut phy = negotiating("1G", "10half");
    up(&mut phy);
    phy.write(LATER, Address::mii(BMCR), BMCR_ANENABLE | BMCR_LOOPBACK);
    assert_eq!((phy.link(), mode_of(&phy).as_str()), (true, "1000full"));
    // The MAC's has nothing to do with the PHY.
    let mut phy = Phy::new(speed("1G"), false);
    phy.set_loopback(SECOND, Some(Loopback::Mac));
    assert_eq!((phy.link(), phy.loopback()), (true, Some(Loopback::Mac)));
    assert_eq!(phy.read(SECOND, Address::mii(BMSR)) & BMSR_LSTATUS, 0);
    phy.set_loopback(SECOND, None);
    assert!(!phy.link());
}

#[test]
fn registers_13_and_14_reach_what_is_behind() {
    let mut phy = negotiating("10G", "same");
    let now = Nanos::ZERO;
    let (control, data) = (Address::mii(13), Address::mii(14));
    phy.write(now, control, 7);
    phy.write(now, data, 32);
    assert_eq!(phy.read(now, data), 32, "the address");
    phy.write(now, control, 1 << 14 | 7);
    for _ in 0..2 {
        assert_eq!(phy.read(now, data), 0x1180, "the same each time");
    }
    phy.write(now, data, 0x1000);
    assert_eq!(phy.peek(Address::mmd(AN, 32)), 0x1000);
    // Each device has an address of its own; it counts with reads and writes, or with writes.
    phy.write(now, control, 1);
    phy.write(now, data, 2);
    phy.write(now, control, 2 << 14 | 1);
    assert_eq!((phy.read(now, data), phy.read(now, data)), (0x4950, 0x0020));
    phy.write(now, data, 0xffff);
    phy.write(now, control, 1);
    assert_eq!(phy.read(now, data), 5);
    phy.write(now, control, 3 << 14 | 7);
    phy.write(now, data, 0);
    assert_eq!(phy.peek(Address::mmd(AN, 32)), 0);
    phy.write(now, control, 7);
    assert_eq!(phy.read(now, data), 33);
    // A latch behind is cleared as in front.
    phy.advance(LATER);
    phy.write(LATER, data, 1);
    phy.write(LATER, control, 1 << 14 | 7);
    let first = phy.read(LATER, data);
    assert_eq!(
        (first & 1 << 6, phy.read(LATER, data) & 1 << 6),
        (1 << 6, 0)
    );
}

#[test]
fn registers_have_names_and_fields_that_do_not_overlap() {
    for speed in ["10M", "1G", "10G", "400G"] {
        let phy = forced(speed, "same");
        let mut seen = Vec::new();
        for register in phy.registers() {
            assert!(!seen.contains(&register.address), "{}", register.name);
            seen.push(register.address);
            assert_eq!(phy.register(register.address).unwrap().name, register.name);
            assert_eq!(
                names::named(register.name).unwrap().address,
                register.address
            );
            let all: u32 = register
                .fields
                .iter()
                .map(|field| {
                    let value = field.of(0xffff);
                    assert!(value != 0, "{}", field.name);
                    value.count_ones()
                })
                .sum();
            assert!(all <= 16, "{}", register.name);
            // What is set belongs to a field.
            let value = phy.peek(register.address);
            let named: u32 = register
                .fields
                .iter()
                .map(|field| field.of(value).count_ones())
                .sum();
            assert_eq!(named, value.count_ones(), "{} {value:#06x}", register.name);
        }
    }
    let bmcr = names::named("bmcr").unwrap();
    assert_eq!(bmcr.describe(0x1140), "an-enable full-duplex speed-msb");
    assert_eq!(
        names::flags(bmcr.address, "an-enable,an-restart"),
        Ok(0x1200)
    );
    assert_eq!(
        names::flags(bmcr.address, "an-enable,fast"),
        Err("fast".into())
    );
    let anar = names::named("anar").unwrap();
    assert_eq!(anar.describe(0x0c01), "asm-dir pause selector=1");
    assert_eq!(
        names::flags(anar.address, "selector"),
        Err("selector".into())
    );
    assert_eq!(names::named("BMCR").unwrap().address, Address::mii(0));
    assert!(names::named("nothing").is_none());
}
