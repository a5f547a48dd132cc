//! Several devices: what goes by which, and what comes back by lo.

use std::net::{Ipv4Addr, SocketAddrV4};

use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Errno, Ifindex, NetDevice, Protocol, RtnlLinkStats64, SockType};

use crate::common::packets::{PEER_MAC, arp, arp_request, ethernet, read_arp, udp};
use crate::common::world::{Guest, MAC, assert_balanced, boot, settle};
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

pub const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 168, 9, 1);
pub const DUMMY_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 168, 9, 2);

/// Adds dummy0 with its network.
pub fn dummy0(kernel: &mut Guest) -> Ifindex {
    let dev = kernel.dummy_add("dummy0", DUMMY_MAC).unwrap();
    kernel.inet_addr_add(dev, DUMMY, 24).unwrap();
    dev
}

pub fn stats(kernel: &Guest, dev: Ifindex) -> RtnlLinkStats64 {
    kernel.dev_get_stats(dev).unwrap()
}

fn at(addr: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(addr, port)
}

#[test]
fn a_packet_leaves_by_the_device_that_its_route_says() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let dummy = dummy0(&mut kernel);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.sendto(fd, b"there", Some(at(BEYOND, 9))).unwrap();
    assert_eq!(world.take_sent(), [], "it has another device");
    let sent = stats(&kernel, dummy);
    assert_eq!((sent.tx_packets, sent.tx_bytes), (1, 14 + 20 + 8 + 5));
    kernel.sendto(fd, b"here", Some(peer(9))).unwrap();
    assert_eq!(world.take_sent().len(), 1);
    assert_eq!(stats(&kernel, dummy).tx_packets, 1);
    settle(&mut kernel);
    assert_eq!(kernel.stats().tx_dropped(), 0);

    // A route to a network behind a neighbour, and one to a host of it.
    let far = Ipv4Addr::new(198, 51, 100, 7);
    let refused = kernel.sendto(fd, b"far", Some(at(far, 9)));
    assert_eq!(refused, Err(Errno::ENETUNREACH));
    kernel.ip_route_add((far, 24), Some(BEYOND), dummy).unwrap();
    let twice = kernel.ip_route_add((far, 24), None, Ifindex::ETH0);
    assert_eq!(twice, Err(Errno::EEXIST));
    kernel.sendto(fd, b"far", Some(at(far, 9))).unwrap();
    assert_eq!(stats(&kernel, dummy).tx_packets, 2);
    let gateway = Some(Ipv4Addr::new(10, 77, 0, 1));
    let host = (far, 32);
    kernel.ip_route_add(host, gateway, Ifindex::ETH0).unwrap();
    kernel.sendto(fd, b"far", Some(at(far, 9))).unwrap();
    let sent = world.take_sent();
    assert_eq!(sent[0].frame[..6], PEER_MAC);
    assert_eq!(sent[0].frame[26..34], [10, 77, 0, 2, 198, 51, 100, 7]);
}

#[test]
fn a_socket_sends_from_the_address_of_the_device_or_its_own() {
    let (mut kernel, world) = boot();
    let dummy = dummy0(&mut kernel);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.connect(fd, at(BEYOND, 9)).unwrap();
    assert_eq!(kernel.getsockname(fd).unwrap(), at(DUMMY, PORT));
    // One that is bound keeps its address, whatever the device.
    resolve_peer(&mut kernel, &world);
    let bound = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    kernel.bind(bound, at(DUMMY, 7001)).unwrap();
    kernel.sendto(bound, b"hi", Some(peer(9))).unwrap();
    assert_eq!(world.take_sent()[0].frame[26..30], DUMMY.octets());
    let other = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    assert_eq!(kernel.bind(other, at(BEYOND, 1)), Err(Errno::EADDRNOTAVAIL));
    assert_eq!(kernel.inet_addr_add(dummy, DUMMY, 8), Err(Errno::EEXIST));
}

#[test]
fn devices_are_found_by_number_and_name() {
    let (mut kernel, _) = boot();
    let dummy = dummy0(&mut kernel);
    assert_eq!(kernel.dummy_add("eth0", DUMMY_MAC), Err(Errno::EEXIST));
    assert_eq!(kernel.dummy_add("", DUMMY_MAC), Err(Errno::EINVAL));
    let long = kernel.dummy_add("sixteen-octets-1", DUMMY_MAC);
    assert_eq!(long, Err(Errno::EINVAL));
    let names: Vec<_> = kernel.net_devices().iter().map(NetDevice::name).collect();
    assert_eq!(names, ["lo", "eth0", "dummy0"]);
    for (name, index, addr, mtu) in [
        ("lo", Ifindex::LO, [0; 6], 65_536),
        ("eth0", Ifindex::ETH0, MAC, 1500),
        ("dummy0", dummy, DUMMY_MAC, 1500),
    ] {
        let dev = kernel.dev_get_by_name(name).unwrap();
        assert_eq!(
            (dev.ifindex(), dev.dev_addr(), dev.mtu()),
            (index, addr, mtu)
        );
        assert_eq!(kernel.dev_get_by_index(index).unwrap().name(), name);
    }
    assert!(kernel.dev_get_by_name("eth1").is_none());
}

#[test]
fn eth0_answers_for_all_addresses_of_the_host() {
    let (mut kernel, world) = boot();
    let dummy = dummy0(&mut kernel);
    world.receive(&arp_request(DUMMY.octets()));
    settle(&mut kernel);
    let (_, reply) = read_arp(&world.take_sent()[0].frame);
    assert_eq!((reply.sender_mac, reply.sender_ipv4), (MAC, DUMMY.octets()));
    // Neighbours belong to their device: eth0's of that address is not dummy0's.
    let other = (PEER_MAC, BEYOND.octets());
    let request = etherparse::ArpOperation::REQUEST;
    world.receive(&arp([0xff; 6], request, other, ([0; 6], [10, 77, 0, 2])));
    settle(&mut kernel);
    world.take_sent();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.sendto(fd, b"hi", Some(at(BEYOND, 9))).unwrap();
    assert_eq!(
        (world.take_sent().len(), stats(&kernel, dummy).tx_packets),
        (0, 1)
    );
}

#[test]
fn what_a_device_has_counted() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let before = stats(&kernel, Ifindex::ETH0);
    let frame = udp(PORT, b"nobody");
    world.receive(&frame);
    world.receive(&ethernet(MAC, 0x1234));
    settle(&mut kernel);
    settle(&mut kernel);
    let after = stats(&kernel, Ifindex::ETH0);
    assert_eq!(after.rx_packets - before.rx_packets, 2);
    assert_eq!(after.rx_bytes - before.rx_bytes, frame.len() as u64 + 14);
    assert_eq!(after.rx_dropped - before.rx_dropped, 1, "no such protocol");
    assert_eq!(after.tx_packets - before.tx_packets, 1, "port unreachable");
}

#[test]
fn lo_gives_back_what_is_sent_to_this_host() {
    let (mut kernel, world) = boot();
    dummy0(&mut kernel);
    let fd = udp_socket(&mut kernel, PORT);
    let from = udp_socket(&mut kernel, 7001);
    let before = stats(&kernel, Ifindex::LO);
    for (n, to) in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 77, 0, 2), DUMMY]
        .into_iter()
        .enumerate()
    {
        kernel
            .sendto(from, b"to myself", Some(at(to, PORT)))
            .unwrap();
        let mut buf = [0; 64];
        // The soft interrupt ran before the call came back.
        let received = kernel.recvfrom(fd, &mut buf).unwrap();
        assert_eq!(buf[..received.len], *b"to myself");
        assert_eq!(received.from, at(to, 7001));
        let lo = stats(&kernel, Ifindex::LO);
        assert_eq!(lo.rx_packets - before.rx_packets, n as u64 + 1);
        assert_eq!((lo.rx_packets, lo.rx_bytes), (lo.tx_packets, lo.tx_bytes));
    }
    assert_eq!(world.take_sent(), []);
    // The sender is charged no longer, though the packets wait.
    kernel.set_sndbuf(from, 0).unwrap();
    for _ in 0..100 {
        kernel
            .sendto(from, &[0; 1000], Some(at(Ipv4Addr::LOCALHOST, PORT)))
            .unwrap();
    }
    assert_eq!(read_all(&mut kernel, fd).len(), 100);
    assert_eq!(kernel.stats().netif_rx, 103);
    assert_balanced(&kernel);
}

#[test]
fn a_closed_port_of_this_host_says_so_by_lo() {
    let (mut kernel, world) = boot();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    kernel.connect(fd, at(Ipv4Addr::LOCALHOST, 4444)).unwrap();
    kernel.sendto(fd, b"anybody?", None).unwrap();
    let mut buf = [0; 8];
    assert_eq!(kernel.recvfrom(fd, &mut buf), Err(Errno::ECONNREFUSED));
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpNoPorts), 1);
    assert_eq!(kernel.stats().tx_dropped(), 0);
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn datagrams_that_stand_for_several_pass_lo_whole() {
    let (mut kernel, _) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_udp_gro(fd, true).unwrap();
    let from = udp_socket(&mut kernel, 7001);
    let to = Some(at(Ipv4Addr::LOCALHOST, PORT));
    kernel.sendto_segments(from, &[7; 2500], to, 1000).unwrap();
    let mut buf = [0; 4096];
    let received = kernel.recvfrom(fd, &mut buf).unwrap();
    assert_eq!((received.len, received.gso_size), (2500, 1000));
    assert_eq!(stats(&kernel, Ifindex::LO).rx_packets, 1);
}
