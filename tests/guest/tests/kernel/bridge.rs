//! A bridge between VLANs of eth0 and a dummy: each port's frames can be told apart on the wire by their tags.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use nic_guest::net::stats::{RxDrop, TxDrop};
use nic_guest::net::{Errno, Ifindex, PktType};
use nic_guest::virtio_net::features as f;

use crate::common::packets::{PEER_MAC, arp, arp_request, read_arp, udp_to};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, boot, settle};
use crate::devices::stats;
use crate::vlan::{tagged, untagged};
use crate::{read_all, udp_socket};

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];
const BROADCAST: [u8; 6] = [0xff; 6];
const OURS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// The ports' VLANs.
const PORTS: [u16; 3] = [10, 20, 30];

/// br0 over eth0.10, eth0.20 and eth0.30.
fn bridged() -> (Guest, Rc<World>, Ifindex) {
    let (mut kernel, world) = boot();
    let br = kernel.br_add_bridge("br0").unwrap();
    for vlan_id in PORTS {
        let name = format!("eth0.{vlan_id}");
        let port = kernel.vlan_add(&name, Ifindex::ETH0, vlan_id).unwrap();
        kernel.br_add_if(br, port).unwrap();
    }
    (kernel, world, br)
}

/// An Ethernet frame of no protocol that this host knows.
fn frame(dest: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    [&dest[..], &source, &[0x88, 0xb5], &[7; 46]].concat()
}

/// Has the port receive a frame; the ports that it left by, as it came.
fn pass(kernel: &mut Guest, world: &World, port: u16, frame: &[u8]) -> Vec<u16> {
    world.receive(&tagged(frame, &[(0x8100, port)]));
    settle(kernel);
    let sent = world.take_sent();
    sent.iter()
        .map(|sent| {
            let (port, passed) = untagged(&sent.frame);
            assert_eq!(passed, frame);
            port
        })
        .collect()
}

#[test]
fn frames_go_where_their_destination_was_heard() {
    let (mut kernel, world, br) = bridged();
    assert_eq!(
        pass(&mut kernel, &world, 10, &frame(B, A)),
        [20, 30],
        "unknown"
    );
    assert_eq!(pass(&mut kernel, &world, 20, &frame(A, B)), [10]);
    assert_eq!(pass(&mut kernel, &world, 10, &frame(B, A)), [20]);
    // The station moves.
    assert_eq!(pass(&mut kernel, &world, 30, &frame(A, B)), [10]);
    assert_eq!(pass(&mut kernel, &world, 10, &frame(B, A)), [30]);
    assert_eq!(kernel.br_fdb_n_learned(br), 2);
    // It is where the frame comes from.
    assert_eq!(pass(&mut kernel, &world, 30, &frame(B, A)), [0; 0]);
    assert_eq!(kernel.stats().rx_drop(RxDrop::BridgeNoEgressPort), 1);
    assert_eq!(kernel.stats().bridged, 5);
    assert_balanced(&kernel);
}

#[test]
fn who_was_not_heard_of_for_long_is_forgotten() {
    let (mut kernel, world, br) = bridged();
    pass(&mut kernel, &world, 20, &frame(A, B));
    world.advance(300_000_000_000 - 1);
    assert_eq!(pass(&mut kernel, &world, 10, &frame(B, A)), [20]);
    world.advance(1);
    assert_eq!(pass(&mut kernel, &world, 10, &frame(B, A)), [20, 30]);
    kernel
        .br_set_ageing_time(br, Duration::from_secs(1))
        .unwrap();
    assert_eq!(pass(&mut kernel, &world, 20, &frame(A, B)), [10]);
    world.advance(1_000_000_000);
    assert_eq!(pass(&mut kernel, &world, 20, &frame(A, B)), [10, 30]);
    kernel.br_set_ageing_time(br, Duration::ZERO).unwrap();
    assert_eq!(pass(&mut kernel, &world, 10, &frame(B, A)), [20, 30]);
}

#[test]
fn frames_of_the_link_alone_stay_there() {
    let (mut kernel, world, br) = bridged();
    let group = |last| [1, 0x80, 0xc2, 0, 0, last];
    assert_eq!(
        pass(&mut kernel, &world, 10, &frame(group(0), A)),
        [20, 30],
        "no STP"
    );
    assert_eq!(
        pass(&mut kernel, &world, 10, &frame(group(16), A)),
        [20, 30]
    );
    for (dest, source, reason) in [
        (group(1), A, RxDrop::MacIeeeMacControl),
        // For the port itself, where nobody knows the protocol.
        (group(14), B, RxDrop::UnhandledProto),
        (B, BROADCAST, RxDrop::MacInvalidSource),
        (B, [0; 6], RxDrop::MacInvalidSource),
    ] {
        let before = kernel.stats().rx_drop(reason);
        assert_eq!(pass(&mut kernel, &world, 10, &frame(dest, source)), [0; 0]);
        assert_eq!(kernel.stats().rx_drop(reason), before + 1, "{reason:?}");
    }
    // Who says so is learnt all the same.
    assert_eq!(kernel.br_fdb_n_learned(br), 2);
    assert_balanced(&kernel);
}

#[test]
fn the_bridge_is_a_device_of_this_host() {
    let (mut kernel, world, br) = bridged();
    kernel.inet_addr_add(br, OURS, 24).unwrap();
    assert_eq!(
        kernel.dev_get_by_index(br).unwrap().dev_addr(),
        MAC,
        "its ports'"
    );
    // A broadcast is for this host, too: here it is the last that gets it.
    let request = arp_request(OURS.octets());
    world.receive(&tagged(&request, &[(0x8100, 20)]));
    settle(&mut kernel);
    let sent: Vec<_> = world
        .take_sent()
        .iter()
        .map(|sent| untagged(&sent.frame))
        .collect();
    let ports: Vec<_> = sent.iter().map(|(port, _)| *port).collect();
    assert_eq!(ports, [10, 30, 20], "the reply knows its way");
    let (dest, reply) = read_arp(&sent[2].1);
    assert_eq!(
        (dest, reply.sender_mac, reply.sender_ipv4),
        (PEER_MAC, MAC, OURS.octets())
    );
    // What is for this host alone is passed to nobody else.
    let fd = udp_socket(&mut kernel, 7000);
    let datagram = udp_to(MAC, OURS.octets(), 7000, b"hello");
    assert_eq!(pass(&mut kernel, &world, 20, &datagram), [0; 0]);
    assert_eq!(read_all(&mut kernel, fd), [b"hello"]);
    let counted = stats(&kernel, br);
    assert_eq!((counted.rx_packets, counted.tx_packets), (2, 1));
    assert_balanced(&kernel);
}

#[test]
fn what_the_bridge_sends_leaves_by_the_port_or_by_all() {
    let (mut kernel, world, br) = bridged();
    kernel.inet_addr_add(br, OURS, 24).unwrap();
    let them = Ipv4Addr::new(10, 9, 0, 1);
    let fd = udp_socket(&mut kernel, 7000);
    let to = Some(SocketAddrV4::new(them, 9));
    let sent_by = |world: &World| -> Vec<u16> {
        let sent = world.take_sent();
        sent.iter().map(|sent| untagged(&sent.frame).0).collect()
    };
    kernel.sendto(fd, b"hi", to).unwrap();
    assert_eq!(sent_by(&world), PORTS, "a question to all");
    kernel.neigh_add(them, B).unwrap();
    settle(&mut kernel);
    assert_eq!(sent_by(&world), PORTS, "a station unknown to the bridge");
    pass(&mut kernel, &world, 30, &frame(BROADCAST, B));
    kernel.sendto(fd, b"hi", to).unwrap();
    assert_eq!(sent_by(&world), [30]);
    assert_eq!(kernel.stats().tx_dropped(), 0);
    // A bridge without ports.
    let empty = kernel.br_add_bridge("br1").unwrap();
    kernel
        .inet_addr_add(empty, Ipv4Addr::new(10, 8, 0, 2), 24)
        .unwrap();
    let nowhere = Some(SocketAddrV4::new(Ipv4Addr::new(10, 8, 0, 1), 9));
    kernel.sendto(fd, b"hi", nowhere).unwrap();
    assert_eq!(kernel.stats().tx_drop(TxDrop::BridgeOutNoEgressPort), 1);
    assert_balanced(&kernel);
}

#[test]
fn eth0_as_a_port_takes_all_frames_and_keeps_tags() {
    let (mut kernel, world) = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_RX,
        ..Setup::default()
    }
    .boot();
    let br = kernel.br_add_bridge("br0").unwrap();
    kernel.br_add_if(br, Ifindex::ETH0).unwrap();
    let promiscuous = (0, 0, vec![1]);
    assert_eq!(world.commands.take().last(), Some(&promiscuous));
    let dummy = kernel.dummy_add("dummy0", B).unwrap();
    kernel.br_add_if(br, dummy).unwrap();
    for tags in [&[][..], &[(0x8100, 5)], &[(0x8100, 0)]] {
        let before = stats(&kernel, dummy);
        let frame = tagged(&frame(A, PEER_MAC), tags);
        world.receive(&frame);
        settle(&mut kernel);
        let after = stats(&kernel, dummy);
        let counted = (
            after.tx_packets - before.tx_packets,
            after.tx_bytes - before.tx_bytes,
        );
        assert_eq!(counted, (1, frame.len() as u64));
    }
    kernel.br_del_if(Ifindex::ETH0).unwrap();
    assert_eq!(world.commands.take(), [(0, 0, vec![0])]);
    world.receive(&frame(A, PEER_MAC));
    settle(&mut kernel);
    assert_eq!(stats(&kernel, dummy).tx_packets, 3);
    assert_eq!(kernel.br_fdb_n_learned(br), 0);
    assert_balanced(&kernel);
}

#[test]
fn a_bridge_over_vlans_needs_all_frames_until_its_last_is_gone() {
    let (mut kernel, world) = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_RX,
        ..Setup::default()
    }
    .boot();
    let br = kernel.br_add_bridge("br0").unwrap();
    let [first, second] = [5, 6].map(|id| {
        let name = format!("eth0.{id}");
        kernel.vlan_add(&name, Ifindex::ETH0, id).unwrap()
    });
    let dummy = kernel.dummy_add("dummy0", B).unwrap();
    world.commands.take();
    kernel.br_add_if(br, dummy).unwrap();
    assert_eq!(world.commands.take(), []);
    kernel.br_add_if(br, first).unwrap();
    assert_eq!(world.commands.take(), [(0, 0, vec![1])]);
    kernel.br_add_if(br, second).unwrap();
    kernel.br_del_if(first).unwrap();
    kernel.br_del_if(dummy).unwrap();
    assert_eq!(world.commands.take(), [], "the second still needs them");
    kernel.br_del_if(second).unwrap();
    assert_eq!(world.commands.take(), [(0, 0, vec![0])]);
}

#[test]
fn a_bridge_follows_its_ports_addresses() {
    let (mut kernel, world) = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_MAC_ADDR,
        ..Setup::default()
    }
    .boot();
    let br = kernel.br_add_bridge("br0").unwrap();
    let high = [0xf2, 0, 0, 0, 0, 1];
    let dummy = kernel.dummy_add("dummy0", high).unwrap();
    let [first, second] = [5, 6].map(|id| {
        let name = format!("eth0.{id}");
        kernel.vlan_add(&name, Ifindex::ETH0, id).unwrap()
    });
    kernel.inet_addr_add(br, OURS, 24).unwrap();
    let addr = |kernel: &Guest, dev| kernel.dev_get_by_index(dev).unwrap().dev_addr();
    let mut seen = Vec::new();
    for port in [dummy, first, second] {
        kernel.br_add_if(br, port).unwrap();
        seen.push(addr(&kernel, br));
    }
    assert_eq!(seen, [high, MAC, MAC]);
    let new = [2, 9, 9, 9, 9, 9];
    kernel.dev_set_mac_address(new).unwrap();
    assert_eq!([first, br].map(|dev| addr(&kernel, dev)), [new, new]);
    // What is for this host is no other port's; what is for its old address is.
    let fd = udp_socket(&mut kernel, 7000);
    let flooded = |kernel: &mut Guest, mac| {
        let before = stats(kernel, dummy).tx_packets;
        let frame = udp_to(mac, OURS.octets(), 7000, b"hello");
        world.receive(&tagged(&frame, &[(0x8100, 5)]));
        settle(kernel);
        stats(kernel, dummy).tx_packets - before
    };
    assert_eq!(flooded(&mut kernel, new), 0);
    assert_eq!(read_all(&mut kernel, fd), [b"hello"]);
    assert_eq!(flooded(&mut kernel, MAC), 1);
    // The other port still has the address when one is gone.
    kernel.br_del_if(second).unwrap();
    assert_eq!(flooded(&mut kernel, new), 0);
    kernel.br_del_if(first).unwrap();
    assert_eq!(addr(&kernel, br), high);
    assert_balanced(&kernel);
}

#[test]
fn this_hosts_copy_of_what_a_port_sends_to_many_is_no_frame() {
    let (mut kernel, world) = boot();
    let br = kernel.br_add_bridge("br0").unwrap();
    let dummy = kernel.dummy_add("dummy0", B).unwrap();
    kernel.br_add_if(br, dummy).unwrap();
    kernel.br_add_if(br, Ifindex::ETH0).unwrap();
    let tap = kernel.packet_socket(Some(Ifindex::ETH0)).unwrap();
    let fd = udp_socket(&mut kernel, 7000);
    kernel.set_broadcast(fd, true).unwrap();
    // Buffers that have an old frame's header where one would be.
    for _ in 0..8 {
        world.receive(&udp_to(A, [10, 77, 0, 9], 7000, b"to somebody else"));
    }
    settle(&mut kernel);
    while kernel.packet_recvmsg(tap, &mut []).is_ok() {}
    let before = stats(&kernel, dummy).tx_packets;
    let learned = kernel.br_fdb_n_learned(br);
    let all = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 255), 7000);
    for _ in 0..4 {
        kernel.sendto(fd, b"to all", Some(all)).unwrap();
        settle(&mut kernel);
    }
    assert_eq!(stats(&kernel, dummy).tx_packets, before);
    assert_eq!(kernel.br_fdb_n_learned(br), learned);
    assert_eq!(read_all(&mut kernel, fd), [b"to all"; 4]);
    assert_eq!(world.take_sent().len(), 4);
    // Who taps the port sees its copy without addresses.
    let (mut looped, mut buf) = (0, [0xff; 100]);
    while let Ok(packet) = kernel.packet_recvmsg(tap, &mut buf) {
        if packet.pkt_type == PktType::Loopback {
            looped += 1;
            assert_eq!(buf[..14], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
            assert_eq!((packet.len, buf[14]), (14 + 34, 0x45));
        }
    }
    assert_eq!(looped, 4);
    assert_balanced(&kernel);
}

#[test]
fn what_is_too_long_for_a_port_is_dropped_there() {
    let (mut kernel, world, br) = bridged();
    let narrow = kernel.dev_get_by_name("eth0.30").unwrap().ifindex();
    kernel.dev_set_mtu(narrow, 100).unwrap();
    let long = [&frame(B, A)[..], &[0; 59]].concat();
    assert_eq!(pass(&mut kernel, &world, 10, &long), [20]);
    assert_eq!(kernel.stats().tx_drop(TxDrop::PktTooBig), 1);
    // With room for one tag it just fits.
    assert_eq!(pass(&mut kernel, &world, 10, &long[..118]), [20, 30]);
    let other = kernel.dummy_add("dummy0", A).unwrap();
    kernel.dev_set_mtu(other, 700).unwrap();
    kernel.br_add_if(br, other).unwrap();
    assert_eq!(kernel.dev_get_by_index(br).unwrap().mtu(), 700);
}

#[test]
fn what_can_be_no_port_is_refused() {
    let (mut kernel, _, br) = bridged();
    let other = kernel.br_add_bridge("br1").unwrap();
    let port = kernel.dev_get_by_name("eth0.10").unwrap().ifindex();
    let circle = kernel.vlan_add("br0.5", br, 5).unwrap();
    let inner = kernel.vlan_add("br0.5.6", circle, 6).unwrap();
    for (bridge, dev, error) in [
        (br, Ifindex::LO, Errno::EINVAL),
        (br, other, Errno::ELOOP),
        (br, circle, Errno::ELOOP),
        (br, inner, Errno::ELOOP),
        (other, port, Errno::EBUSY),
        (port, Ifindex::ETH0, Errno::EINVAL),
    ] {
        assert_eq!(kernel.br_add_if(bridge, dev), Err(error), "{error}");
    }
    assert_eq!(kernel.br_add_if(other, inner), Ok(()));
    assert_eq!(kernel.br_del_if(Ifindex::ETH0), Err(Errno::EINVAL));
    assert_eq!(kernel.br_add_bridge("eth0"), Err(Errno::EEXIST));
}

#[test]
fn a_bridge_hears_arp_for_others() {
    let (mut kernel, world, _) = bridged();
    let request = etherparse::ArpOperation::REQUEST;
    let who = arp(
        BROADCAST,
        request,
        (A, [10, 9, 0, 1]),
        ([0; 6], [10, 9, 0, 9]),
    );
    assert_eq!(pass(&mut kernel, &world, 10, &who), [20, 30]);
    assert_eq!(kernel.stats().consumed, 1, "and so does this host");
    assert_balanced(&kernel);
}
