//! The hash of received frames: what the device says against what the guest computes, two implementations that know
//! nothing of each other.

use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::hash_tunnel::VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::rss::RssConfig;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{TestNic, offered};

const PAIRS: u16 = 4;
/// Frames of one connection.
const FRAMES: usize = 1_000;

/// Frames of every kind: both versions of IP, TCP, UDP and neither, tagged or not, fragments.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let addresses = (any::<[u8; 16]>(), any::<[u8; 16]>());
    let ports = (any::<u16>(), any::<u16>());
    (
        addresses,
        ports,
        0..2u8,
        0..3u8,
        0..3u8,
        any::<bool>(),
        0..64usize,
    )
        .prop_map(
            |((from, to), (sport, dport), version, transport, tags, fragment, len)| {
                let link = PacketBuilder::ethernet2([2; 6], [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
                let payload = vec![0x5a; len];
                let mut frame = Vec::new();
                let four = |address: [u8; 16]| *address.first_chunk::<4>().expect("of sixteen");
                let ip = match version {
                    0 => link.ipv4(four(from), four(to), 64),
                    _ => link.ipv6(from, to, 64),
                };
                let written = match transport {
                    0 => ip.tcp(sport, dport, 1, 1000).write(&mut frame, &payload),
                    1 => ip.udp(sport, dport).write(&mut frame, &payload),
                    _ => ip.write(&mut frame, etherparse::IpNumber::GRE, &payload),
                };
                written.expect("a vector takes it");
                if fragment && version == 0 {
                    // More fragments follow; the header's sum does not matter to anybody here.
                    frame[20] |= 0x20;
                }
                for tag in 0..tags {
                    let ethertype = if tag == 0 { [0x81, 0x00] } else { [0x88, 0xa8] };
                    let tag = [ethertype[0], ethertype[1], 0, 7 + tag];
                    frame.splice(12..12, tag);
                }
                frame.resize(frame.len().max(60), 0);
                frame
            },
        )
}

/// A card whose wire returns everything, and a guest that takes everything.
fn plugged(features: u64) -> (TestNic, VirtnetInfo<VhostUser>) {
    let nic = TestNic::with("loopback", |config| {
        config.port.queue_pairs = PAIRS;
        config.features = offered(PAIRS);
    });
    let mut guest = nic.guest(&ProbeOptions {
        queue_pairs: PAIRS,
        features,
        ..ProbeOptions::default()
    });
    guest.set_promisc(true).expect("it does");
    (nic, guest)
}

/// Sends `frames` and has `each` look at what comes back: the queue, the frame, its hash and its report.
fn echo(
    guest: &mut VirtnetInfo<VhostUser>,
    frames: &[Vec<u8>],
    mut each: impl FnMut(u16, &[u8], u32, u16),
) {
    let mut came = 0;
    let start = Instant::now();
    for burst in frames.chunks(64) {
        let until = came + burst.len();
        for frame in burst {
            let header = VirtioNetHdr::default();
            guest.start_xmit(0, frame, &header).expect("room");
        }
        guest.flush(0);
        while came < until {
            for pair in 0..PAIRS {
                let look = |frame: nic_guest::virtio_net::rx::RxFrame<'_>| {
                    came += 1;
                    let (value, report) = (frame.hdr.hash_value, frame.hdr.hash_report);
                    each(pair, &frame.to_vec(), value, report);
                };
                guest.poll(pair, 64, look).expect("a sound ring");
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{came} came");
        }
    }
}

#[test]
fn the_device_and_the_guest_hash_ten_thousand_frames_alike() {
    let (nic, mut guest) = plugged(f::SUPPORTED);
    let mut runner = TestRunner::new(Config::default());
    let strategy = (
        any::<[u8; 40]>(),
        0..0x200_u32,
        prop::collection::vec(0..PAIRS, 128),
    );
    for _ in 0..10 {
        let (key, hash_types, indirection_table) =
            strategy.new_tree(&mut runner).expect("values").current();
        let config = RssConfig {
            hash_types,
            unclassified_queue: 1,
            indirection_table,
            max_tx_vq: PAIRS,
            key: key.to_vec(),
        };
        guest.set_rss(&config).expect("it does");
        let frames: Vec<_> = (0..FRAMES)
            .map(|_| frames().new_tree(&mut runner).expect("a frame").current())
            .collect();
        echo(&mut guest, &frames, |pair, frame, value, report| {
            let expected = config.steer(frame);
            let got = (pair, value, report);
            let told = (expected.pair, expected.hash_value, expected.hash_report);
            assert_eq!(got, told, "types {hash_types:#x}: {frame:02x?}");
        });
    }
    nic.assert_balanced();
}

#[test]
fn hashes_are_reported_without_being_steered_by() {
    let (nic, mut guest) = plugged(f::SUPPORTED & !f::RSS);
    guest.set_queues(1).expect("it does");
    let config = RssConfig {
        hash_types: 0x1ff,
        key: vec![0x6d; 40],
        ..RssConfig::default()
    };
    guest.set_hash_config(&config).expect("it does");
    let mut runner = TestRunner::new(Config::default());
    let frames: Vec<_> = (0..FRAMES)
        .map(|_| frames().new_tree(&mut runner).expect("a frame").current())
        .collect();
    let table = RssConfig {
        indirection_table: vec![0],
        ..config
    };
    echo(&mut guest, &frames, |pair, frame, value, report| {
        let expected = table.steer(frame);
        assert_eq!((value, report), (expected.hash_value, expected.hash_report));
        assert_eq!(pair, 0);
    });
    nic.assert_balanced();
}

/// `inner` in a VXLAN tunnel (RFC 7348), as long as the line takes it.
fn in_vxlan(inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0, 0, 0, 42, 0];
    payload.extend(inner);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [0x52, 0x54, 0, 0x12, 0x34, 0x56])
        .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
        .udp(49_152, 4789)
        .write(&mut frame, &payload)
        .expect("a vector takes it");
    frame
}

#[test]
fn inside_tunnels_the_inner_headers_are_hashed_once_the_driver_says_so() {
    let (nic, mut guest) = plugged(f::SUPPORTED);
    let config = RssConfig {
        hash_types: 0x1ff,
        unclassified_queue: 0,
        indirection_table: (0..128).map(|entry| entry % PAIRS).collect(),
        max_tx_vq: PAIRS,
        key: (0..40).collect(),
    };
    guest.set_rss(&config).expect("it does");
    let mut runner = TestRunner::new(Config::default());
    let inner: Vec<_> = (0..64)
        .map(|_| frames().new_tree(&mut runner).expect("a frame").current())
        .collect();
    let tunnelled: Vec<_> = inner.iter().map(|frame| in_vxlan(frame)).collect();
    let outer = config.steer(&tunnelled[0]);
    echo(&mut guest, &tunnelled, |pair, _, value, _| {
        assert_eq!((pair, value), (outer.pair, outer.hash_value), "one tunnel");
    });
    guest
        .set_hash_tunnel(VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN)
        .expect("it does");
    echo(&mut guest, &tunnelled, |pair, frame, value, report| {
        let expected = config.steer(&frame[14 + 20 + 8 + 8..]);
        let told = (expected.pair, expected.hash_value, expected.hash_report);
        assert_eq!((pair, value, report), told, "{frame:02x?}");
    });
    nic.assert_balanced();
}

#[test]
fn a_conversation_in_a_tunnel_is_received_where_it_is_sent() {
    let (nic, mut guest) = plugged(f::SUPPORTED & !f::RSS);
    guest.set_queues(PAIRS).expect("it does");
    let vxlan = VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN;
    guest.set_hash_tunnel(vxlan).expect("it does");
    for port in 1_000..1_064 {
        let mut inner = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(port, 7)
            .write(&mut inner, &[0; 18])
            .expect("a vector takes it");
        let (pair, frame) = (port % PAIRS, in_vxlan(&inner));
        let header = VirtioNetHdr::default();
        guest.start_xmit(pair, &frame, &header).expect("room");
        guest.flush(pair);
        // Once it has been sent, so that it has been learned.
        crate::support::wait_until("its return", || {
            guest.poll(pair, 1, |_| {}).expect("a sound ring") == 1
        });
    }
    nic.assert_balanced();
}
