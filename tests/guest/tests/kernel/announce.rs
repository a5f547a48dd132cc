//! A device that asks the guest to announce itself, as after a migration; and a new hardware address.

use std::rc::Rc;
use std::time::Duration;

use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::features as f;

use crate::common::packets::{OURS, read_arp};
use crate::common::world::{FEATURES, Guest, Setup, World};

const ACK: (u8, u8, Vec<u8>) = (3, 0, Vec::new());

fn guest(features: u64) -> (Guest, Rc<World>) {
    let setup = Setup {
        features: FEATURES | f::STATUS | f::CTRL_VQ | features,
        ..Setup::default()
    };
    setup.boot()
}

/// What was sent, which must be gratuitous ARP, and as many unsolicited advertisements of IPv6's neighbours.
fn announcements(world: &World) -> usize {
    let (sent, advertised): (Vec<_>, Vec<_>) = world
        .take_sent()
        .into_iter()
        .partition(|sent| sent.frame[12..14] != [0x86, 0xdd]);
    assert_eq!(advertised.len(), sent.len());
    for sent in &advertised {
        assert_eq!(sent.frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!((sent.frame[54], sent.frame[58]), (136, 0x20));
    }
    for sent in &sent {
        let (to, arp) = read_arp(&sent.frame);
        assert_eq!(to, [0xff; 6]);
        assert_eq!((arp.sender_ipv4, arp.target_ipv4), (OURS, OURS));
        assert_eq!(arp.operation, etherparse::ArpOperation::REQUEST);
    }
    sent.len()
}

#[test]
fn an_announcement_is_made_and_acknowledged() {
    let (mut kernel, world) = guest(f::GUEST_ANNOUNCE);
    assert_eq!(announcements(&world), 0);
    kernel.wait(Duration::ZERO).unwrap();
    assert_eq!(announcements(&world), 0, "nobody asked");
    for _ in 0..2 {
        world.ask_for_announcement();
        kernel.wait(Duration::ZERO).unwrap();
        kernel.wait(Duration::ZERO).unwrap();
        assert_eq!(announcements(&world), 1);
        assert_eq!(world.commands.take(), [ACK]);
    }
    assert!(kernel.dev.link_up());
}

#[test]
fn who_cannot_does_not() {
    let (mut kernel, world) = guest(0);
    world.ask_for_announcement();
    kernel.wait(Duration::ZERO).unwrap();
    assert_eq!(announcements(&world), 0);
    assert!(world.commands.take().is_empty());
}

#[test]
fn a_device_that_refuses_the_acknowledgement_asks_again() {
    let (mut kernel, world) = guest(f::GUEST_ANNOUNCE);
    world.refuse.set(true);
    for _ in 0..2 {
        world.ask_for_announcement();
        kernel.wait(Duration::ZERO).unwrap();
    }
    assert_eq!(announcements(&world), 2);
    assert_eq!(world.commands.take(), [ACK, ACK]);
}

#[test]
fn a_new_address_is_the_devices_first() {
    let (mut kernel, world) = guest(f::CTRL_MAC_ADDR | f::GUEST_ANNOUNCE);
    let new = [2, 0, 0, 9, 9, 9];
    world.refuse.set(true);
    assert_eq!(kernel.dev_set_mac_address(new), Err(CtrlError::Refused(1)));
    let source = |kernel: &mut Guest| -> Vec<u8> {
        world.ask_for_announcement();
        kernel.wait(Duration::ZERO).unwrap();
        world.take_sent()[0].frame[6..12].to_vec()
    };
    assert_eq!(source(&mut kernel), crate::common::world::MAC);
    world.refuse.set(false);
    kernel.dev_set_mac_address(new).unwrap();
    assert_eq!(source(&mut kernel), new);
}
