//! Hashes that the device reports: they come with the packet, and steer it.

use nic_guest::net::Received;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::{OURS, read_udp, udp, udp_between};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, settle};
use crate::{PORT, peer, resolve_peer, udp_socket};

fn receive(kernel: &mut Guest, world: &World, hash: (u32, u16)) -> Received {
    let fd = udp_socket(kernel, PORT);
    let hdr = VirtioNetHdr {
        hash_value: hash.0,
        hash_report: hash.1,
        ..VirtioNetHdr::default()
    };
    world.schedule_with(0, 0, hdr, &udp(PORT, b"x"));
    settle(kernel);
    let received = kernel.recvfrom(fd, &mut [0; 10]).unwrap();
    kernel.close(fd).unwrap();
    received
}

fn guest(features: u64) -> (Guest, std::rc::Rc<World>) {
    let setup = Setup {
        features: FEATURES & !f::CSUM | f::CTRL_VQ | features,
        ..Setup::default()
    };
    setup.boot()
}

#[test]
fn the_hash_comes_with_the_packet() {
    let (mut kernel, world) = guest(f::HASH_REPORT);
    // Of ports, of addresses, none, and of a type that nobody knows: kept, but not trusted.
    for (report, l4_hash) in [(3, true), (1, false), (0, false), (99, false)] {
        let received = receive(&mut kernel, &world, (0xdead_beef, report));
        assert_eq!(
            (received.hash, received.l4_hash),
            (0xdead_beef, l4_hash),
            "{report}"
        );
    }
    assert_eq!(kernel.dev.stats().0.frame_errors, 0);
    kernel.dev.set_rxhash(false).unwrap();
    assert_eq!(receive(&mut kernel, &world, (7, 3)).hash, 0);
    kernel.dev.set_rxhash(true).unwrap();
    assert_eq!(receive(&mut kernel, &world, (7, 3)).hash, 7);
}

#[test]
fn without_the_feature_there_is_none() {
    let (mut kernel, world) = guest(0);
    let received = receive(&mut kernel, &world, (7, 3));
    assert_eq!((received.hash, received.l4_hash), (0, false));
}

#[test]
fn a_device_that_refused_is_not_believed() {
    let setup = Setup {
        features: FEATURES | f::CTRL_VQ | f::HASH_REPORT,
        refuse: true,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    assert_eq!(receive(&mut kernel, &world, (7, 3)).hash, 0);
}

#[test]
fn the_long_header_is_sent_without_a_hash() {
    let (mut kernel, world) = guest(f::HASH_REPORT);
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.sendto(fd, b"out", Some(peer(9))).unwrap();
    let sent = world.take_sent();
    assert_eq!((sent[0].hdr.hash_value, sent[0].hdr.hash_report), (0, 0));
    assert_eq!(read_udp(&sent[0].frame).3, b"out");
}

#[test]
fn flows_are_spread_over_queues_and_stay_there() {
    let mut setup = Setup {
        features: FEATURES | f::RSS | f::HASH_REPORT,
        pairs: 4,
        ..Setup::default()
    };
    setup.config.cpus = 4;
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    let mut pairs = std::collections::BTreeMap::new();
    for round in 0..2 {
        for port in 1000..1032 {
            let frame = udp_between(port, (MAC, OURS, PORT), b"flow");
            let pair = world.receive_steered(&frame);
            settle(&mut kernel);
            let received = kernel.recvfrom(fd, &mut [0; 10]).unwrap();
            assert!(received.l4_hash && received.from.port() == port);
            let steered = kernel.dev.rss().config().steer(&frame);
            assert_eq!((steered.hash_value, steered.pair), (received.hash, pair));
            assert_eq!(*pairs.entry(port).or_insert(pair), pair, "round {round}");
        }
    }
    let used: std::collections::BTreeSet<_> = pairs.into_values().collect();
    assert_eq!(used.len(), 4, "32 flows, {used:?}");
    let stats = kernel.stats();
    for pair in used {
        assert!(stats.cpus[usize::from(pair)].processed > 0);
        assert!(kernel.dev.rq[usize::from(pair)].stats.packets > 0);
    }
    assert_balanced(&kernel);
}
