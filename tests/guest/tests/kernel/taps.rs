//! Packet sockets: they see what devices receive and send, and nobody else sees less for it.

use std::net::{Ipv4Addr, SocketAddrV4};

use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Fd, Ifindex, Machine, Packet, PktType};

use crate::common::packets::{OURS, arp_request, echo_request, ethernet, udp, udp_to};
use crate::common::world::{Guest, MAC, Setup, assert_balanced, boot, settle};
use crate::devices::{dummy0, stats};
use crate::vlan::tagged;
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

/// All frames that a tap has seen.
fn seen(kernel: &mut Guest, tap: Fd) -> Vec<(Packet, Vec<u8>)> {
    let (mut all, mut buf) = (Vec::new(), [0; 2048]);
    loop {
        match kernel.packet_recvmsg(tap, &mut buf) {
            Ok(packet) => all.push((packet, buf[..packet.len].to_vec())),
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                return all;
            }
        }
    }
}

#[test]
fn a_tap_sees_both_directions() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    settle(&mut kernel);
    let tap = kernel.packet_socket(Some(Ifindex::ETH0)).unwrap();
    let fd = udp_socket(&mut kernel, PORT);
    world.advance(1000);
    let frame = udp(PORT, b"hello");
    world.receive(&frame);
    settle(&mut kernel);
    assert!(kernel.poll(tap).unwrap());
    kernel.sendto(fd, b"and back", Some(peer(9))).unwrap();
    // The one who is meant gets it all the same.
    assert_eq!(read_all(&mut kernel, fd), [b"hello"]);
    let sent = world.take_sent();
    let all = seen(&mut kernel, tap);
    let [(came, received), (went, passed)] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!((received, passed), (&frame, &sent[0].frame));
    assert_eq!(
        (came.pkt_type, went.pkt_type),
        (PktType::Host, PktType::Outgoing)
    );
    assert_eq!((came.protocol, went.protocol), (0x0800, 0x0800));
    assert_eq!(
        (came.ifindex, came.queued, came.vlan_tci),
        (Ifindex::ETH0, 1000, None)
    );
    assert!(!kernel.poll(tap).unwrap());
    assert_balanced(&kernel);
    // Once it is closed it sees nothing more.
    kernel.close(tap).unwrap();
    world.receive(&frame);
    settle(&mut kernel);
    assert_eq!(kernel.packet_recvmsg(tap, &mut []), Err(Errno::EBADF));
    assert_eq!(kernel.stats().cloned, 2);
}

#[test]
fn a_tap_sees_what_nobody_wants_and_as_what_it_came() {
    let (mut kernel, world) = boot();
    let tap = kernel.packet_socket(None).unwrap();
    for (frame, pkt_type) in [
        (ethernet(MAC, 0x1234), PktType::Host),
        (
            udp_to([2, 9, 9, 9, 9, 9], OURS, PORT, b"other"),
            PktType::OtherHost,
        ),
        (ethernet([1, 0, 0x5e, 0, 0, 1], 0x86dd), PktType::Multicast),
        (arp_request([10, 77, 0, 99]), PktType::Broadcast),
    ] {
        world.receive(&frame);
        settle(&mut kernel);
        let all = seen(&mut kernel, tap);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].0.pkt_type, &all[0].1), (pkt_type, &frame));
    }
    assert_balanced(&kernel);
}

#[test]
fn a_tap_is_of_its_device() {
    let (mut kernel, world) = boot();
    let dummy = dummy0(&mut kernel);
    let vlan = kernel.vlan_add("eth0.100", Ifindex::ETH0, 100).unwrap();
    let devices = [
        Some(Ifindex::ETH0),
        Some(dummy),
        Some(vlan),
        Some(Ifindex::LO),
        None,
    ];
    let taps = devices.map(|dev| kernel.packet_socket(dev).unwrap());
    let counts = |kernel: &mut Guest| taps.map(|tap| seen(kernel, tap).len());
    let fd = udp_socket(&mut kernel, PORT);
    let at = |addr: [u8; 4]| Some(SocketAddrV4::new(addr.into(), PORT));
    kernel.sendto(fd, b"there", at([192, 168, 9, 2])).unwrap();
    assert_eq!(counts(&mut kernel), [0, 1, 0, 0, 1]);
    kernel.sendto(fd, b"me", at([127, 0, 0, 1])).unwrap();
    assert_eq!(counts(&mut kernel), [0, 0, 0, 2, 2], "out and in");
    // The tag is told beside the frame, and the VLAN's device receives it once more.
    let plain = udp_to(MAC, OURS, PORT, b"hello");
    world.receive(&tagged(&plain, &[(0x8100, 0x2064)]));
    settle(&mut kernel);
    let [eth0, _, vlan, _, all] = taps.map(|tap| seen(&mut kernel, tap));
    assert_eq!((eth0[0].0.vlan_tci, &eth0[0].1), (Some(0x2064), &plain));
    assert_eq!((vlan[0].0.vlan_tci, &vlan[0].1), (None, &plain));
    assert_eq!((eth0.len(), vlan.len(), all.len()), (1, 1, 2));
    // One that nobody has, behind one that is none, is the same packet of the same device.
    world.receive(&tagged(&plain, &[(0x8100, 101), (0x8100, 0)]));
    settle(&mut kernel);
    assert_eq!(counts(&mut kernel), [1, 0, 0, 0, 1]);
    assert_eq!(kernel.packet_socket(Some(Ifindex::LO)).map(|_| ()), Ok(()));
    assert_balanced(&kernel);
}

#[test]
fn a_slow_tap_loses_frames_and_counts_them() {
    let (mut kernel, world) = boot();
    let tap = kernel.packet_socket(Some(Ifindex::ETH0)).unwrap();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_rcvbuf(tap, 2304).unwrap();
    for _ in 0..20 {
        world.receive(&udp(PORT, b"hello"));
        settle(&mut kernel);
    }
    assert_eq!(read_all(&mut kernel, fd).len(), 20, "nobody else does");
    // A frame in a small buffer is charged more than 2 KiB, of 4608 bytes.
    let counted = kernel.packet_statistics(tap).unwrap();
    assert_eq!((counted.tp_packets, counted.tp_drops), (20, 17));
    assert_eq!(
        kernel.packet_statistics(tap).unwrap().tp_packets,
        0,
        "told once"
    );
    assert_eq!(seen(&mut kernel, tap).len(), 3);
    assert_eq!(kernel.stats().rx_drop(RxDrop::PacketRcvbufErrors), 17);
    assert_balanced(&kernel);
}

#[test]
fn a_tap_of_what_is_sent_polls_no_queue() {
    let mut setup = Setup {
        pairs: 4,
        ..Setup::default()
    };
    setup.config.cpus = 1;
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    settle(&mut kernel);
    let tap = kernel.packet_socket(Some(Ifindex::ETH0)).unwrap();
    kernel.set_busy_poll(tap, 50).unwrap();
    let fd = udp_socket(&mut kernel, PORT);
    for port in 1..32 {
        kernel.sendto(fd, b"x", Some(peer(port))).unwrap();
        assert_eq!(seen(&mut kernel, tap).len(), 1);
        let before = world.now();
        let _ = kernel.recvfrom(tap, &mut []);
        assert_eq!(world.now(), before, "to port {port}");
    }
    let used: Vec<u64> = (0..4)
        .map(|pair| kernel.dev.sq[pair].stats.packets)
        .collect();
    assert!(used[1..].iter().any(|packets| *packets > 0), "{used:?}");
    // What came by a queue has it polled.
    world.receive(&udp(PORT, b"x"));
    settle(&mut kernel);
    assert_eq!(seen(&mut kernel, tap).len(), 1);
    let before = world.now();
    let _ = kernel.recvfrom(tap, &mut []);
    assert!(world.now() > before);
}

#[test]
fn a_tap_is_no_socket_of_internets() {
    let (mut kernel, world) = boot();
    let tap = kernel.packet_socket(None).unwrap();
    assert_eq!(kernel.set_recverr(tap, true), Err(Errno::ENOPROTOOPT));
    let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    assert_eq!(kernel.bind(tap, nowhere), Err(Errno::EOPNOTSUPP));
    assert_eq!(kernel.connect(tap, peer(9)), Err(Errno::EOPNOTSUPP));
    assert_eq!(
        kernel.sendto(tap, b"x", Some(peer(9))),
        Err(Errno::EOPNOTSUPP)
    );
    world.receive(&echo_request(1, 1, b"x"));
    settle(&mut kernel);
    assert_eq!(kernel.recvfrom(tap, &mut [0; 8]), Err(Errno::EOPNOTSUPP));
    let fd = udp_socket(&mut kernel, PORT);
    assert_eq!(kernel.packet_recvmsg(fd, &mut []), Err(Errno::EOPNOTSUPP));
    assert_eq!(kernel.packet_statistics(fd), Err(Errno::EOPNOTSUPP));
    assert_eq!(stats(&kernel, Ifindex::ETH0).rx_packets, 1);
}
