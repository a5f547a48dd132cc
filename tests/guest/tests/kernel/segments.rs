//! Packets that stand for several: taken apart on their way to a socket, or on their way to a device that does not
//! do it.

use std::rc::Rc;

use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Protocol, SockType};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::{PEER_MAC, ip, read_ip, read_udp, udp, udp_to};
use crate::common::world::{FEATURES, Guest, Setup, World, assert_balanced, settle};
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

const GUEST: u64 = f::GUEST_TSO4 | f::GUEST_UFO | f::GUEST_USO4;
const USO: u8 = 5;

fn guest(features: u64) -> (Guest, Rc<World>) {
    let setup = Setup {
        features,
        queue_size: 64,
        tx_buf_len: (features & f::HOST_USO == 0).then_some(2048),
        ..Setup::default()
    };
    setup.boot()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn uso(gso_size: u16) -> VirtioNetHdr {
    VirtioNetHdr::needs_csum(34, 6).with_gso(USO, gso_size, 42)
}

#[test]
fn a_socket_receives_the_datagrams_that_a_frame_stands_for() {
    for buffers in [0, f::MRG_RXBUF] {
        for ring in [0, f::RING_PACKED, f::INDIRECT_DESC] {
            let (mut kernel, world) = guest(FEATURES | GUEST | buffers | ring);
            let fd = udp_socket(&mut kernel, PORT);
            for (len, size) in [(5000, 1400), (2800, 1400), (60_000, 1472), (129, 64)] {
                let data = payload(len);
                world.schedule_with(0, 0, uso(size), &udp(PORT, &data));
                settle(&mut kernel);
                let want: Vec<_> = data.chunks(size.into()).map(<[u8]>::to_vec).collect();
                assert_eq!(read_all(&mut kernel, fd), want);
                assert_balanced(&kernel);
            }
            assert_eq!(kernel.stats().rx_packets, 4);
        }
    }
}

#[test]
fn one_that_asked_for_it_receives_them_in_one() {
    let (mut kernel, world) = guest(FEATURES | GUEST | f::MRG_RXBUF);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_udp_gro(fd, true).unwrap();
    let data = payload(5000);
    world.schedule_with(0, 0, uso(1400), &udp(PORT, &data));
    world.receive(&udp(PORT, b"alone"));
    settle(&mut kernel);
    let mut buf = [0; 6000];
    let received = kernel.recvfrom(fd, &mut buf).unwrap();
    assert_eq!((received.len, received.gso_size), (5000, 1400));
    assert_eq!(buf[..5000], data);
    let received = kernel.recvfrom(fd, &mut buf).unwrap();
    assert_eq!((received.len, received.gso_size), (5, 0));
    assert_balanced(&kernel);
}

#[test]
fn each_segment_finds_its_receivers_or_none() {
    let (mut kernel, world) = guest(FEATURES | GUEST | f::MRG_RXBUF);
    // Nobody there: one packet, one answer.
    world.schedule_with(0, 0, uso(100), &udp(PORT, &payload(300)));
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpNoPorts), 1);
    assert_eq!(kernel.stats().snmp.icmp_out_msgs, 1);
    // A broadcast is for all that listen.
    let sockets = [0; 2].map(|_| {
        let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
        kernel.set_reuseaddr(fd, true).unwrap();
        let any = std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, PORT);
        kernel.bind(fd, any).unwrap();
        fd
    });
    let all = udp_to([0xff; 6], [255; 4], PORT, &payload(250));
    world.schedule_with(0, 0, uso(100), &all);
    settle(&mut kernel);
    for fd in sockets {
        let lens: Vec<usize> = read_all(&mut kernel, fd).iter().map(Vec::len).collect();
        assert_eq!(lens, [100, 100, 50]);
    }
    assert_balanced(&kernel);
}

#[test]
fn segments_of_another_protocol_are_dropped() {
    let (mut kernel, world) = guest(FEATURES | GUEST | f::MRG_RXBUF);
    let fd = udp_socket(&mut kernel, PORT);
    let tcp = VirtioNetHdr::needs_csum(34, 16).with_gso(1, 100, 54);
    world.schedule_with(0, 0, tcp, &udp(PORT, &payload(300)));
    // Nor does every protocol have segments.
    world.schedule_with(0, 0, tcp, &ip(99, &payload(3000)));
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::UdpGso), 1);
    assert_eq!(stats.rx_drop(RxDrop::IpInUnknownProtos), 1);
    // A fragmented datagram is one, however long.
    let ufo = VirtioNetHdr::needs_csum(34, 6).with_gso(3, 1480, 34);
    world.schedule_with(0, 0, ufo, &udp(PORT, &payload(5000)));
    settle(&mut kernel);
    let mut buf = [0; 6000];
    let received = kernel.recvfrom(fd, &mut buf).unwrap();
    assert_eq!((received.len, received.gso_size), (5000, 0));
    assert_balanced(&kernel);
}

#[test]
fn a_header_that_means_another_place_costs_no_more_than_the_packet() {
    let (mut kernel, world) = guest(FEATURES | GUEST | f::MRG_RXBUF);
    let fd = udp_socket(&mut kernel, PORT);
    for start in [20, 33, 35, 40, 60, 142] {
        let hdr = VirtioNetHdr::needs_csum(start, 6).with_gso(USO, 30, 42);
        for len in [0, 1, 29, 30, 31, 108] {
            world.schedule_with(0, 0, hdr, &udp(PORT, &payload(len)));
        }
    }
    settle(&mut kernel);
    read_all(&mut kernel, fd);
    assert_balanced(&kernel);
    let (rx, _) = kernel.dev.stats();
    assert!(rx.frame_errors > 0 && rx.packets > 0);
}

/// What was sent, after the peer's address was learnt.
fn sender(features: u64) -> (Guest, Rc<World>) {
    let (mut kernel, world) = guest(features);
    resolve_peer(&mut kernel, &world);
    settle(&mut kernel);
    (kernel, world)
}

#[test]
fn a_device_that_can_gets_datagrams_in_one_frame() {
    for ring in [0, f::RING_PACKED] {
        let (mut kernel, world) = sender(FEATURES | f::HOST_USO | ring);
        let fd = udp_socket(&mut kernel, PORT);
        let data = payload(60_000);
        for _ in 0..20 {
            assert_eq!(
                kernel.sendto_segments(fd, &data, Some(peer(9)), 1472),
                Ok(60_000)
            );
            let sent = world.take_sent();
            assert_eq!(sent.len(), 1);
            let want = VirtioNetHdr::needs_csum(34, 6).with_gso(USO, 1472, 42);
            assert_eq!(sent[0].hdr, want);
            let ip = read_ip(&sent[0].frame);
            assert_eq!(usize::from(ip.header.total_len), 28 + data.len());
            assert_eq!(ip.payload[8..], data);
        }
        // One is no more than itself.
        kernel
            .sendto_segments(fd, &data[..1472], Some(peer(9)), 1472)
            .unwrap();
        assert_eq!(world.take_sent()[0].hdr, VirtioNetHdr::needs_csum(34, 6));
    }
}

/// The device's part of a checksum, so that the frame can be read.
fn finish(hdr: VirtioNetHdr, frame: &mut [u8]) {
    if hdr.flags & 1 == 0 {
        return;
    }
    let start = usize::from(hdr.csum_start);
    let sum = frame[start..].chunks(2).fold(0u32, |sum, pair| {
        let sum = sum + u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        (sum & 0xffff) + (sum >> 16)
    });
    let at = start + usize::from(hdr.csum_offset);
    frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[test]
fn for_others_they_are_taken_apart_before() {
    let cases = [
        (FEATURES, true),
        (FEATURES & !f::CSUM, true),
        (FEATURES | f::HOST_USO, false),
    ];
    for (features, switch_is_off) in cases {
        let (mut kernel, world) = sender(features);
        let on = kernel.set_tx_udp_segmentation(true);
        assert_eq!(on.is_err(), switch_is_off);
        kernel.set_tx_udp_segmentation(false).unwrap();
        let fd = udp_socket(&mut kernel, PORT);
        let data = payload(30_001);
        for _ in 0..20 {
            assert_eq!(
                kernel.sendto_segments(fd, &data, Some(peer(9)), 1000),
                Ok(30_001)
            );
            settle(&mut kernel);
            let mut sent = world.take_sent();
            assert_eq!(sent.len(), 31);
            let first = read_ip(&sent[0].frame).header.identification;
            for ((number, sent), chunk) in (0u16..).zip(&mut sent).zip(data.chunks(1000)) {
                assert_eq!((sent.hdr.gso_type, sent.hdr.gso_size), (0, 0));
                assert_eq!(sent.hdr.flags & 1 != 0, features & f::CSUM != 0);
                finish(sent.hdr, &mut sent.frame);
                assert_eq!(sent.frame[..6], PEER_MAC);
                let id = read_ip(&sent.frame).header.identification;
                assert_eq!(id, first.wrapping_add(number));
                let (_, source, dest, payload) = read_udp(&sent.frame);
                assert_eq!((source, dest), (PORT, 9));
                assert_eq!(payload, chunk);
            }
        }
        assert_eq!(kernel.stats().tx_dropped(), 0);
    }
}

#[test]
fn a_sender_is_charged_until_the_last_has_gone() {
    let (mut kernel, world) = sender(FEATURES);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_sndbuf(fd, 5000).unwrap();
    world.hold.set(true);
    let data = payload(10_000);
    assert_eq!(
        kernel.sendto_segments(fd, &data, Some(peer(9)), 1000),
        Ok(10_000)
    );
    let again = kernel.sendto_segments(fd, &data, Some(peer(9)), 1000);
    assert_eq!(again, Err(Errno::EAGAIN));
    world.hold.set(false);
    world.transmit(0, 100);
    world.interrupt(1);
    settle(&mut kernel);
    assert_eq!(
        kernel.sendto_segments(fd, &data, Some(peer(9)), 1000),
        Ok(10_000)
    );
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let (mut kernel, world) = sender(FEATURES | f::HOST_USO);
    let fd = udp_socket(&mut kernel, PORT);
    let data = payload(65_507);
    let mut send = |len: usize, size| kernel.sendto_segments(fd, &data[..len], Some(peer(9)), size);
    assert_eq!(send(5000, 1473), Err(Errno::EMSGSIZE), "one is too long");
    assert_eq!(send(129, 1), Err(Errno::EINVAL), "129 datagrams");
    assert_eq!(send(128, 1), Ok(128));
    assert_eq!(send(65_507, 1472), Ok(65_507), "the longest");
    assert_eq!(send(0, 100), Ok(0));
    let long = payload(65_508);
    let too_long = kernel.sendto_segments(fd, &long, Some(peer(9)), 1472);
    assert_eq!(too_long, Err(Errno::EMSGSIZE));
    assert_eq!(world.take_sent().len(), 3);
    let ping = kernel.socket(SockType::Dgram, Protocol::Icmp).unwrap();
    let refused = kernel.sendto_segments(ping, &[8; 8], Some(peer(0)), 8);
    assert_eq!(refused, Err(Errno::EOPNOTSUPP));
}
