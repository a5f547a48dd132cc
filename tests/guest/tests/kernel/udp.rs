//! UDP, both ways, and the sockets.

use std::net::{Ipv4Addr, SocketAddrV4};

use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Fd, Protocol, SockType};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VirtioNetHdr,
};

use crate::common::packets::{OURS, read_ip, read_udp, udp, udp_to};
use crate::common::world::{FEATURES, Guest, MAC, Sent, Setup, assert_balanced, boot, settle};
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

/// The frame as a device sends it that finishes checksums.
pub fn finish_checksum(sent: &Sent) -> Vec<u8> {
    let mut frame = sent.frame.clone();
    if sent.hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
        let start = usize::from(sent.hdr.csum_start);
        let mut sum = 0u32;
        for pair in frame[start..].chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let at = start + usize::from(sent.hdr.csum_offset);
        frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    frame
}

fn without(features: u64) -> Setup {
    Setup {
        features: FEATURES & !features,
        ..Setup::default()
    }
}

#[test]
fn a_datagram_arrives() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    world.schedule(12_345, &udp(PORT, b"hello"));
    world.advance(20_000);
    settle(&mut kernel);
    let mut buf = [0; 64];
    let received = kernel.recvfrom(fd, &mut buf).unwrap();
    assert_eq!((received.len, received.from), (5, peer(9000)));
    assert_eq!((received.queued, &buf[..5]), (20_000, &b"hello"[..]));
    assert_eq!(kernel.recvfrom(fd, &mut buf), Err(Errno::EAGAIN));
    // What does not fit is lost.
    world.receive(&udp(PORT, b"a long one"));
    settle(&mut kernel);
    assert_eq!(kernel.recvfrom(fd, &mut buf[..6]).unwrap().len, 6);
    assert_eq!(kernel.recvfrom(fd, &mut buf), Err(Errno::EAGAIN));
    assert_eq!(kernel.stats().snmp.udp_in_datagrams, 2);
    assert_balanced(&kernel);
}

#[test]
fn the_checksum_is_verified_unless_the_device_did() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    let good = udp(PORT, b"good");
    let mut bad = udp(PORT, b"evil");
    bad[44] ^= 0x10;
    let mut none = bad.clone();
    none[40..42].fill(0);
    let valid = VirtioNetHdr {
        flags: VIRTIO_NET_HDR_F_DATA_VALID,
        ..VirtioNetHdr::default()
    };
    let mut receive = |hdr, frame: &[u8]| {
        world.schedule_with(0, 0, hdr, frame);
        settle(&mut kernel);
        read_all(&mut kernel, fd).len()
    };
    let plain = VirtioNetHdr::default();
    assert_eq!(receive(plain, &good), 1);
    assert_eq!(receive(plain, &bad), 0);
    assert_eq!(receive(plain, &none), 1, "no checksum");
    assert_eq!(receive(valid, &bad), 1, "the device's word");
    assert_eq!(
        receive(VirtioNetHdr::needs_csum(34, 6), &bad),
        1,
        "never on a wire"
    );
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpInCsumErrors), 1);
    assert_balanced(&kernel);
}

#[test]
fn a_datagram_is_sent_with_and_without_offload() {
    for setup in [without(0), without(f::CSUM)] {
        let offload = setup.features & f::CSUM != 0;
        let (mut kernel, world) = setup.boot();
        resolve_peer(&mut kernel, &world);
        let fd = udp_socket(&mut kernel, PORT);
        for len in [0, 1, 18, 1472] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            assert_eq!(kernel.sendto(fd, &payload, Some(peer(9))), Ok(len));
            let sent = world.take_sent();
            assert_eq!(sent.len(), 1);
            if offload {
                assert_eq!(sent[0].hdr, VirtioNetHdr::needs_csum(34, 6));
            } else {
                assert_eq!(sent[0].hdr, VirtioNetHdr::default());
            }
            let frame = finish_checksum(&sent[0]);
            assert_eq!(read_udp(&frame), ([10, 77, 0, 1], PORT, 9, payload));
            assert!(read_ip(&frame).header.dont_fragment);
        }
        assert_eq!(kernel.stats().snmp.udp_out_datagrams, 5);
    }
}

#[test]
fn a_checksum_of_zero_goes_out_as_all_ones() {
    let (mut kernel, world) = without(f::CSUM).boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    // The two octets that make the sum come out at 0 for these addresses and ports.
    let mut payload = [0, 0];
    kernel.sendto(fd, &payload, Some(peer(9))).unwrap();
    let frame = &world.take_sent()[0].frame;
    payload.copy_from_slice(&frame[40..42]);
    kernel.sendto(fd, &payload, Some(peer(9))).unwrap();
    assert_eq!(world.take_sent()[0].frame[40..42], [0xff, 0xff]);
}

#[test]
fn a_full_queue_drops_and_a_read_makes_room() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_rcvbuf(fd, 4000).unwrap();
    let send = |kernel: &mut Guest, count: usize| {
        for n in 0..count {
            world.receive(&udp(PORT, &[n as u8]));
            settle(kernel);
        }
    };
    send(&mut kernel, 20);
    let dropped = kernel.stats().rx_drop(RxDrop::UdpRcvbufErrors);
    // Small buffers charge a page's half each: 8000 hold four, and one more.
    assert_eq!(dropped, 20 - 4);
    let mut buf = [0; 8];
    kernel.recvfrom(fd, &mut buf).unwrap();
    send(&mut kernel, 2);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpRcvbufErrors), dropped + 1);
    assert_eq!(read_all(&mut kernel, fd).len(), 4);
    send(&mut kernel, 1);
    assert_eq!(read_all(&mut kernel, fd).len(), 1);
    assert_balanced(&kernel);
}

#[test]
fn the_default_queue_holds_as_many_as_linuxs() {
    // 212992 / 768, and one more, with buffers that are merged.
    let setup = Setup {
        features: FEATURES | f::MRG_RXBUF,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    for _ in 0..400 {
        world.receive(&udp(PORT, b"x"));
        settle(&mut kernel);
    }
    assert_eq!(read_all(&mut kernel, fd).len(), 278);
    assert_balanced(&kernel);
}

#[test]
fn a_broadcast_goes_to_all_who_want_it() {
    let (mut kernel, world) = boot();
    let first = udp_socket(&mut kernel, PORT);
    let own = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    kernel
        .bind(own, SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 255), 7001))
        .unwrap();
    let second = udp_socket(&mut kernel, 7002);
    for ip in [[10, 77, 0, 255], [255; 4]] {
        for port in [PORT, 7001, 7002, 7003] {
            world.receive(&udp_to([0xff; 6], ip, port, b"all"));
        }
    }
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, first).len(), 2);
    assert_eq!(
        read_all(&mut kernel, own).len(),
        1,
        "bound to one broadcast address"
    );
    assert_eq!(read_all(&mut kernel, second).len(), 2);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpIgnoredMulti), 3);
    assert_balanced(&kernel);
}

#[test]
fn a_broken_broadcast_is_wrong_for_each_who_wants_it() {
    let (mut kernel, world) = boot();
    let mut frame = udp_to([0xff; 6], [255; 4], PORT, &[7; 100]);
    frame[42] ^= 1;
    for sockets in 0..3 {
        world.receive(&frame);
        settle(&mut kernel);
        let stats = kernel.stats();
        let wrong = stats.rx_drop(RxDrop::UdpInCsumErrors);
        assert_eq!(wrong, [0, 1, 3][sockets]);
        assert_eq!(stats.rx_drop(RxDrop::UdpIgnoredMulti), 1);
        let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
        kernel.set_reuseaddr(fd, true).unwrap();
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        kernel.bind(fd, any).unwrap();
    }
    assert_balanced(&kernel);
}

#[test]
fn a_broadcast_is_copied_for_sockets_that_share_a_port() {
    let (mut kernel, world) = boot();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    let sockets = [(); 3].map(|()| {
        let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
        kernel.set_reuseaddr(fd, true).unwrap();
        kernel.bind(fd, any).unwrap();
        fd
    });
    let selfish = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    assert_eq!(kernel.bind(selfish, any), Err(Errno::EADDRINUSE));
    world.receive(&udp_to([0xff; 6], [10, 77, 0, 255], PORT, b"all"));
    world.receive(&udp(PORT, b"one"));
    settle(&mut kernel);
    let datagrams = sockets.map(|fd| read_all(&mut kernel, fd));
    assert!(datagrams.iter().all(|all| all[0] == b"all"));
    assert_eq!(datagrams.iter().map(Vec::len).sum::<usize>(), 4);
    assert_eq!(kernel.stats().cloned, 2);
    assert_balanced(&kernel);
}

#[test]
fn calls_fail_as_in_linux() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let new = |kernel: &mut Guest| kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let fd = new(&mut kernel);
    let at = |ip: [u8; 4], port| SocketAddrV4::new(ip.into(), port);
    let mut buf = [0; 10];
    assert_eq!(kernel.recvfrom(fd, &mut buf), Err(Errno::EAGAIN));
    for (to, error) in [
        (None, Errno::EDESTADDRREQ),
        (Some(peer(0)), Errno::EINVAL),
        (Some(at([192, 0, 2, 1], 9)), Errno::ENETUNREACH),
        (Some(at([255; 4], 9)), Errno::EACCES),
        (Some(at([10, 77, 0, 255], 9)), Errno::EACCES),
    ] {
        assert_eq!(kernel.sendto(fd, b"x", to), Err(error), "{to:?}");
    }
    let huge = vec![0; 0x10000];
    assert_eq!(
        kernel.sendto(fd, &huge, Some(peer(9))),
        Err(Errno::EMSGSIZE)
    );
    assert_eq!(
        kernel.bind(fd, at([0; 4], 7)),
        Err(Errno::EINVAL),
        "it was autobound"
    );
    let fd = new(&mut kernel);
    assert_eq!(
        kernel.bind(fd, at([10, 77, 0, 3], 7)),
        Err(Errno::EADDRNOTAVAIL)
    );
    assert_eq!(kernel.bind(fd, at(OURS, 7)), Ok(()));
    assert_eq!(kernel.getsockname(fd), Ok(at(OURS, 7)));
    let other = new(&mut kernel);
    assert_eq!(kernel.bind(other, at([0; 4], 7)), Err(Errno::EADDRINUSE));
    assert_eq!(
        kernel.bind(other, at([0; 4], 8)),
        Ok(()),
        "it may try again"
    );
    assert_eq!(kernel.close(fd), Ok(()));
    let stale = [
        kernel.close(fd),
        kernel.bind(fd, peer(1)),
        kernel.connect(fd, peer(1)),
        kernel.set_rcvbuf(Fd(99), 1),
        kernel.sendto(fd, b"x", None).map(drop),
        kernel.recvfrom(fd, &mut buf).map(drop),
        kernel.getsockname(fd).map(drop),
    ];
    assert!(
        stale.iter().all(|result| *result == Err(Errno::EBADF)),
        "{stale:?}"
    );
    assert_eq!(new(&mut kernel), fd, "the lowest free descriptor");
}

#[test]
fn a_connected_socket_hears_its_peer_only() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.connect(fd, peer(9000)).unwrap();
    assert_eq!(
        kernel.getsockname(fd),
        Ok(SocketAddrV4::new(OURS.into(), PORT))
    );
    world.receive(&udp(PORT, b"from 9000"));
    let mut stranger = udp(PORT, b"from 9001");
    stranger[35] += 1;
    stranger[40..42].fill(0);
    world.receive(&stranger);
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd), [b"from 9000"]);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpNoPorts), 1);
    world.take_sent();
    kernel.sendto(fd, b"back", None).unwrap();
    let frame = finish_checksum(&world.take_sent()[0]);
    assert_eq!(read_udp(&frame).2, 9000);
}

#[test]
fn others_frames_are_not_ours() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    world.receive(&udp_to([2, 0, 0, 0, 0, 9], OURS, PORT, b"x"));
    world.receive(&udp_to(MAC, [10, 77, 0, 3], PORT, b"x"));
    world.receive(&udp_to([1, 0, 0x5e, 0, 0, 9], [224, 0, 0, 9], PORT, b"x"));
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::IpOtherHost), 1);
    assert_eq!(stats.rx_drop(RxDrop::IpInAddrErrors), 1);
    assert_eq!(stats.rx_drop(RxDrop::IpInMcastNotMember), 1);
    assert_eq!(read_all(&mut kernel, fd).len(), 0);
    assert_balanced(&kernel);
}
