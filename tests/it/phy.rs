//! The physical layer as a guest and its operator see it: negotiated speed and duplex, loss and recovery of the link, loopbacks.

use std::time::Duration;

use nic_backend::card::Line;
use nic_device::features::Features;
use nic_guest::transport::Transport;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nic_model::counters::Drop;
use nic_model::phy::mdio::Address;
use nic_model::phy::mii::{BMCR, BMCR_ANENABLE, BMCR_ANRESTART, BMCR_FULLDPLX, BMCR_LOOPBACK};
use nic_model::phy::{LinkPartner, Loopback};
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

use crate::support::{TestNic, exchange, numbered_frame, virtual_guest, wait_until};
use crate::virtual_time::receive_until;

const HALF: Option<u8> = Some(0);
const FULL: Option<u8> = Some(1);
const UNKNOWN: Option<u8> = Some(0xff);

fn partner(text: &str) -> LinkPartner {
    text.parse().expect("a partner")
}

/// A guest in virtual time whose card negotiates.
fn negotiating(wire: &str, speed: &str, with: &str) -> VirtnetInfo<InProcess> {
    virtual_guest(wire, |port| {
        port.speed = speed.parse().expect("a speed");
        port.autoneg = true;
        port.partner = partner(with);
    })
}

/// What the guest reads of its link.
fn link(guest: &mut VirtnetInfo<InProcess>) -> (bool, Option<u32>, Option<u8>) {
    guest.read_config().expect("a configuration space");
    (guest.link_up(), guest.config.speed, guest.config.duplex)
}

fn millis(ms: u64) -> Nanos {
    Nanos(ms * 1_000_000)
}

#[test]
fn a_guest_sees_what_was_negotiated_once_it_is() {
    for (speed, with, ms, mbps, duplex) in [
        ("1G", "same", 2_318, 1_000, FULL),
        ("1G", "10full,100half", 1_393, 100, HALF),
        ("1G", "100full,silent", 1_701, 100, HALF),
        ("10G", "2500full", 2_584, 2_500, FULL),
    ] {
        let mut guest = negotiating("sink", speed, with);
        let down = (false, Some(u32::MAX), UNKNOWN);
        assert_eq!(link(&mut guest), down, "{speed} {with}");
        guest.transport.run_until(Nanos(millis(ms).0 - 1));
        assert_eq!(link(&mut guest), down, "{speed} {with}, just before");
        guest.transport.run_until(millis(ms));
        assert_eq!(
            link(&mut guest),
            (true, Some(mbps), duplex),
            "{speed} {with}"
        );
    }
}

#[test]
fn frames_take_the_time_of_the_negotiated_speed() {
    // A wire that is scheduled, so that the clock stops for nothing but what the guest may notice.
    let mut guest = negotiating("generator:pps=1000,size=1518", "1G", "10full");
    let up = millis(1_200 + 12 * 16 + 112);
    guest.transport.run_until(up);
    assert_eq!(link(&mut guest), (true, Some(10), FULL));
    let end = up + Duration::from_secs(1);
    guest.transport.run_until(end);
    let card = guest.transport.card();
    let frames = card.borrow().nic.counters().rx_frames;
    // 10 Mb/s carry 812 of the 1000.
    assert!((812..=877).contains(&frames), "{frames}");
    let busy = card.borrow().nic.port.phy.rx.busy_until();
    let octets = card.borrow().nic.counters().rx_octets + 20 * frames;
    assert_eq!(busy, Nanos(up.0 + octets * 800));
}

#[test]
fn a_restart_interrupts_traffic_and_nothing_else() {
    let mut guest = negotiating("loopback", "1G", "same");
    guest.transport.run_until(millis(3_000));
    let frames: Vec<_> = (0..20).map(|number| numbered_frame(number, 100)).collect();
    assert_eq!(exchange(&mut guest, &frames), frames);
    let now = guest.transport.now();
    let card = guest.transport.card();
    card.borrow_mut().change_phy(now, &mut |phy| {
        phy.write(now, Address::mii(BMCR), BMCR_ANENABLE | BMCR_ANRESTART);
    });
    assert!(!link(&mut guest).0);
    for frame in &frames {
        guest
            .start_xmit(0, frame, &VirtioNetHdr::default())
            .expect("room");
    }
    guest.flush(0);
    guest.transport.run_until(now + Duration::from_secs(1));
    let lost = card.borrow().nic.counters().drops.get(Drop::TxLinkDown);
    assert_eq!(lost, 20, "without a link");
    guest
        .transport
        .run_until(now + Duration::from_millis(2_318));
    assert_eq!(link(&mut guest), (true, Some(1_000), FULL));
    assert_eq!(exchange(&mut guest, &frames), frames);
}

#[test]
fn frames_turn_in_the_mac_with_or_without_a_link_and_reach_no_wire() {
    for (wire, plugged) in [
        ("sink", true),
        ("sink", false),
        ("generator:pps=1000", true),
    ] {
        let mut guest = virtual_guest(wire, |port| port.link = plugged);
        let frames: Vec<_> = (0..50)
            .map(|number| numbered_frame(number, 60 + 20 * number as usize))
            .collect();
        let set = |guest: &VirtnetInfo<InProcess>, at| {
            let now = guest.transport.now();
            let card = guest.transport.card();
            card.borrow_mut()
                .change_phy(now, &mut |phy| phy.set_loopback(now, at))
        };
        // What the wire gave before.
        guest.transport.run_until(Nanos(1_000));
        guest.poll(0, 64, |_| {}).expect("sound rings");
        // A link in its place is no change for one that has a link.
        assert_eq!(set(&guest, Some(Loopback::Mac)), !plugged, "{wire}");
        assert!(link(&mut guest).0);
        assert!(exchange(&mut guest, &frames) == frames, "{wire}");
        assert!(!set(&guest, Some(Loopback::Phy)), "{wire}");
        assert!(exchange(&mut guest, &frames) == frames, "{wire}");
        let lent = guest.transport.card().borrow().nic.port.pool.lent();
        assert_eq!(lent, 0, "{wire}");
        // The PHY's had cut the other end off, which has to come back.
        assert!(set(&guest, None) && !link(&mut guest).0, "{wire}");
        guest
            .transport
            .run_until(guest.transport.now() + Duration::from_secs(2));
        assert_eq!(link(&mut guest).0, plugged, "{wire}");
        let card = guest.transport.card();
        let counters = card.borrow().wire().counters();
        assert!(!counters.contains(&("sink_frames", 1)), "{counters:?}");
        let nic = &card.borrow().nic;
        assert_eq!(nic.port.pool.lent(), nic.queues.frames(), "{wire}");
    }
}

/// Waits until the guest hears of a change and its link is as `expected`.
fn hear<T: Transport>(guest: &mut VirtnetInfo<T>, expected: (bool, Option<u32>, Option<u8>)) {
    wait_until(&format!("{expected:?}"), || {
        guest.handle_config_change().expect("a configuration space");
        (guest.link_up(), guest.config.speed, guest.config.duplex) == expected
    });
}

#[test]
fn a_guest_behind_a_socket_hears_of_every_change() {
    let nic = TestNic::with("loopback", |config| {
        config.port.speed = "1G".parse().expect("a speed");
        config.port.autoneg = true;
        config.port.partner = partner("100half,10half");
    });
    let mut guest = nic.guest(&ProbeOptions::default());
    let down = (false, Some(u32::MAX), UNKNOWN);
    hear(&mut guest, (true, Some(100), HALF));
    let frames: Vec<_> = (0..100).map(|number| numbered_frame(number, 200)).collect();
    assert_eq!(exchange(&mut guest, &frames), frames);
    if guest.config.announce() {
        guest.ack_link_announce().expect("an answer");
    }
    // Another partner; the neighbours are told.
    assert!(nic.server().set_link(false).expect("it runs"));
    hear(&mut guest, down);
    nic.server()
        .phy(|phy, now| phy.set_partner(now, partner("1000full,pause")))
        .expect("it runs");
    assert!(
        !nic.server().set_link(true).expect("it runs"),
        "not at once"
    );
    hear(&mut guest, (true, Some(1_000), FULL));
    assert!(guest.config.announce());
    let phy = nic.status().nic.port.phy;
    assert!(phy.pause_transmit && phy.pause_receive && phy.autoneg);
    // Forced from now on.
    nic.server()
        .phy(|phy, now| {
            phy.set_partner(now, partner("10full,silent"));
            phy.write(now, Address::mii(BMCR), BMCR_FULLDPLX);
        })
        .expect("it runs");
    hear(&mut guest, (true, Some(10), FULL));
    nic.server()
        .phy(|phy, now| phy.write(now, Address::mii(BMCR), BMCR_FULLDPLX | BMCR_LOOPBACK))
        .expect("it runs");
    assert_eq!(nic.status().nic.port.phy.loopback, Some(Loopback::Phy));
    assert_eq!(exchange(&mut guest, &frames[..10]), frames[..10]);
    // The cable.
    assert!(
        !nic.server().set_link(false).expect("it runs"),
        "the loopback stands in for it"
    );
    nic.server()
        .phy(|phy, now| phy.set_loopback(now, None))
        .expect("it runs");
    hear(&mut guest, down);
    assert!(nic.server().set_link(true).expect("it runs"));
    hear(&mut guest, (true, Some(10), FULL));
    nic.assert_balanced();
}

#[test]
fn a_guest_that_is_not_told_of_the_speed_still_hears_of_the_link() {
    let nic = TestNic::with("loopback", |config| {
        config.features = config.features.without(Features::SPEED_DUPLEX);
        config.port.autoneg = true;
        config.port.partner = partner("100full");
    });
    let mut guest = nic.guest(&ProbeOptions::default());
    hear(&mut guest, (true, None, None));
}

/// What came of 30,000 frames for a guest that does not read for 20 ms: what it got, XOFF sent, frames lost to the FIFO.
fn overload(with: &str) -> (u64, u64, u64) {
    let wire = "generator:pps=400000,size=1024,count=30000";
    let mut guest = negotiating(wire, "10G", with);
    while !link(&mut guest).0 {
        let now = guest.transport.now();
        guest.transport.run_until(Nanos(now.0 + millis(1).0));
    }
    let mut got = 0;
    let begin = guest.transport.now();
    receive_until(&mut guest, begin + Duration::from_millis(5), |_, _| {
        got += 1;
    });
    guest.transport.run_until(begin + Duration::from_millis(25));
    receive_until(&mut guest, begin + Duration::from_millis(200), |_, _| {
        got += 1;
    });
    let card = guest.transport.card();
    let card = card.borrow();
    let counters = card.nic.counters();
    assert_eq!(counters.receive_balance(card.nic.queues.frames()), 0);
    let paused = card.wire().counters();
    assert!(
        paused.contains(&("partner_paused", counters.tx_xoff)),
        "{paused:?}"
    );
    (
        got,
        counters.tx_xoff,
        counters.drops.get(Drop::RxFifoOverflow),
    )
}

#[test]
fn a_guest_that_stops_reading_stops_the_partner_and_nothing_is_lost() {
    let (got, xoff, lost) = overload("10000full,pause");
    assert_eq!((got, lost), (30_000, 0));
    assert!(xoff >= 1, "{xoff}");
    let (got, xoff, lost) = overload("10000full");
    assert_eq!(
        (got + lost, xoff),
        (30_000, 0),
        "without it the FIFO overflows"
    );
    assert!(lost > 1_000, "{lost}");
}
