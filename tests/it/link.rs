//! The link goes down and comes up: what the guest hears, and what becomes of its frames.

use std::time::{Duration, Instant};

use nic_device::features::Features;
use nic_guest::memory::GuestMemory;
use nic_guest::transport::Transport;
use nic_guest::transport::front_end::{FrontEnd, FrontEndOptions};
use nic_guest::transport::persona::Persona;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nic_model::counters::Drop;

use crate::support::{PATIENCE, TestNic, exchange, numbered_frame, wait_until};

/// Brings the link up or down; whether that was a change.
fn set_link(nic: &TestNic, up: bool) -> bool {
    nic.server().set_link(up).expect("the NIC runs")
}

/// Waits until the guest has been told of a change, and reads what it is.
fn hear<T: Transport>(guest: &mut VirtnetInfo<T>) -> bool {
    wait_until("an announcement", || {
        guest.handle_config_change().expect("a configuration space")
    });
    guest.link_up()
}

/// Sends `count` frames and waits until the card is done with them.
fn send<T: Transport>(guest: &mut VirtnetInfo<T>, count: u32) {
    let target = guest.stats().1.packets + u64::from(count);
    for number in 0..count {
        let frame = numbered_frame(number, 60);
        guest
            .start_xmit(0, &frame, &VirtioNetHdr::default())
            .expect("room");
    }
    guest.flush(0);
    wait_until("the frames to be completed", || {
        guest
            .poll(0, 64, |_| panic!("a frame"))
            .expect("sound rings");
        guest.stats().1.packets == target
    });
}

#[test]
fn the_guest_hears_of_each_change_and_of_nothing_else() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    assert!(guest.link_up());
    let quiet = |guest: &mut VirtnetInfo<_>| !guest.handle_config_change().expect("no error");
    assert!(quiet(&mut guest));
    for _ in 0..3 {
        assert!(set_link(&nic, false));
        assert!(!hear(&mut guest));
        assert!(!nic.status().nic.port.link);
        // The announcement is on its way before set_link returns: there is nothing to wait for.
        assert!(!set_link(&nic, false), "it was down");
        assert!(quiet(&mut guest));
        assert!(set_link(&nic, true));
        assert!(hear(&mut guest));
        assert!(!set_link(&nic, true), "it was up");
        assert!(quiet(&mut guest));
    }
    // One that sleeps is woken.
    while guest.wait(Duration::ZERO) > 0 {}
    let start = Instant::now();
    assert!(set_link(&nic, false));
    guest.wait(PATIENCE);
    assert!(start.elapsed() < PATIENCE, "it slept on");
    assert!(guest.handle_config_change().expect("no error"));
    assert!(!guest.link_up());
}

#[test]
fn a_guest_is_asked_to_announce_itself_until_it_says_that_it_does() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    assert!(!guest.config.announce());
    assert_eq!(
        (guest.config.speed, guest.config.duplex),
        (Some(10_000), Some(1))
    );
    for again in [false, true] {
        if again {
            set_link(&nic, false);
            hear(&mut guest);
            assert_eq!(guest.config.duplex, Some(0xff));
            set_link(&nic, true);
        } else {
            assert!(nic.server().announce().expect("the NIC runs"));
        }
        assert!(hear(&mut guest) && guest.config.announce());
        guest.ack_link_announce().expect("an answer");
        guest.read_config().expect("a configuration space");
        assert!(guest.link_up() && !guest.config.announce());
    }
    // Nobody is there any more, or nobody who can.
    drop(guest);
    wait_until("the end of the connection", || {
        nic.status().nic.features.is_empty()
    });
    assert!(!nic.server().announce().expect("the NIC runs"));
    let guest = nic.guest(&ProbeOptions {
        features: f::SUPPORTED & !f::GUEST_ANNOUNCE,
        ..ProbeOptions::default()
    });
    assert!(!nic.server().announce().expect("the NIC runs"));
    drop(guest);
}

#[test]
fn without_a_link_frames_are_completed_and_counted() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    let frames: Vec<Vec<u8>> = (0..300).map(|number| numbered_frame(number, 100)).collect();
    for round in 1..=3 {
        assert_eq!(exchange(&mut guest, &frames), frames);
        set_link(&nic, false);
        let before = nic.status().nic.port.counters;
        send(&mut guest, 100);
        // With several workers the port takes them some time later.
        wait_until("the port to take them", || {
            nic.status().nic.port.tx_queued_frames == 0
        });
        let counters = nic.status().nic.port.counters;
        assert_eq!(counters.drops.get(Drop::TxLinkDown), 100 * round);
        assert_eq!(counters.tx_fetched - before.tx_fetched, 100);
        assert_eq!(
            counters.tx_frames, before.tx_frames,
            "nothing went on the line"
        );
        nic.assert_balanced();
        set_link(&nic, true);
    }
    assert_eq!(exchange(&mut guest, &frames), frames);
    nic.assert_balanced();
}

#[test]
fn a_guest_sees_the_link_as_it_is_when_it_comes() {
    let nic = TestNic::with("generator:pps=1000", |config| config.port.link = false);
    // Nobody is there to be told.
    assert!(set_link(&nic, true) && set_link(&nic, false));
    let mut guest = nic.guest(&ProbeOptions::default());
    assert!(!guest.link_up());
    send(&mut guest, 1);
    set_link(&nic, true);
    assert!(hear(&mut guest));
    wait_until("a frame", || {
        guest.poll(0, 64, |_| {}).expect("sound rings") > 0
    });
    // A reset is the driver's, the link is not.
    set_link(&nic, false);
    let transport = guest.remove().expect("a reset");
    let mut guest = VirtnetInfo::probe(transport, &ProbeOptions::default()).expect("a device");
    assert!(!guest.link_up());
    set_link(&nic, true);
    assert!(hear(&mut guest));
    // The next front-end is told, the one that left is no hindrance.
    drop(guest);
    set_link(&nic, false);
    let mut guest = nic.guest(&ProbeOptions::default());
    assert!(!guest.link_up());
    set_link(&nic, true);
    assert!(hear(&mut guest));
}

#[test]
fn a_guest_that_reads_no_status_takes_the_link_for_up() {
    let nic = TestNic::with("loopback", |config| {
        config.features = config.features.without(Features::STATUS);
    });
    let mut guest = nic.guest(&ProbeOptions::default());
    assert_eq!(guest.features() & f::STATUS, 0);
    set_link(&nic, false);
    assert!(hear(&mut guest), "it has no way to tell");
    send(&mut guest, 10);
    assert_eq!(
        nic.status().nic.port.counters.drops.get(Drop::TxLinkDown),
        10
    );
}

#[test]
fn guests_of_every_kind_of_front_end_hear_of_the_link() {
    // Those that own the configuration space tell the guest what they think of the link themselves.
    for persona in Persona::ALL {
        if persona.owns_config() {
            continue;
        }
        let nic = TestNic::new("loopback");
        let memory = GuestMemory::new(32 << 20).expect("guest memory");
        let options = FrontEndOptions::default();
        let front_end = FrontEnd::connect(persona, &nic.socket(), memory, options);
        let front_end = front_end.unwrap_or_else(|error| panic!("{persona:?}: {error}"));
        let mut guest = VirtnetInfo::probe(front_end, &ProbeOptions::default()).expect("a device");
        assert!(guest.link_up(), "{persona:?}");
        for up in [false, true, false] {
            set_link(&nic, up);
            assert_eq!(hear(&mut guest), up, "{persona:?}");
        }
    }
}
