//! What is too long for the way: fragments, path MTUs.

use std::rc::Rc;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, IpNumber, Ipv4Header, UdpHeader};
use nic_guest::net::{Errno, IpPmtudisc, Protocol, SockType};
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::{OURS, PEER, icmp, read_ip};
use crate::common::world::{Guest, Sent, World, assert_balanced, boot, settle};
use crate::{PORT, peer, resolve_peer, udp_socket};

const SECOND: u64 = 1_000_000_000;

fn known_peer() -> (Guest, Rc<World>) {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    (kernel, world)
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251) as u8).collect()
}

/// Joins the fragments that were sent: the sizes of their payloads, and the whole of it.
fn join(sent: &[Sent]) -> (Vec<usize>, Vec<u8>) {
    let (mut sizes, mut whole) = (Vec::new(), Vec::new());
    let id = read_ip(&sent[0].frame).header.identification;
    for (at, frame) in sent.iter().enumerate() {
        let ip = read_ip(&frame.frame);
        let header = &ip.header;
        let offset = usize::from(header.fragment_offset.byte_offset());
        assert_eq!(offset, whole.len());
        assert_eq!((header.identification, header.dont_fragment), (id, false));
        assert_eq!(header.more_fragments, at + 1 < sent.len());
        sizes.push(ip.payload.len());
        whole.extend(ip.payload);
    }
    (sizes, whole)
}

/// A router says that what was sent was too long: `mtu` octets pass.
fn too_long(sent: &Sent, mtu: u16) -> Vec<u8> {
    let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let message = Icmpv4Type::DestinationUnreachable(header);
    icmp(&message, &sent.frame[14..42])
}

fn receive(kernel: &mut Guest, world: &World, frame: &[u8]) {
    world.receive(frame);
    settle(kernel);
}

#[test]
fn what_is_longer_than_the_mtu_is_sent_in_fragments() {
    let (mut kernel, world) = known_peer();
    let fd = udp_socket(&mut kernel, PORT);
    let data = payload(3000);
    assert_eq!(kernel.sendto(fd, &data, Some(peer(9))), Ok(3000));
    let sent = world.take_sent();
    let (sizes, datagram) = join(&sent);
    assert_eq!(sizes, [1480, 1480, 48]);
    assert!(sent.iter().all(|sent| sent.hdr == VirtioNetHdr::default()));
    // Its checksum was made here.
    let (udp, rest) = UdpHeader::from_slice(&datagram).unwrap();
    let check = udp.calc_checksum_ipv4_raw(OURS, PEER, rest).unwrap();
    assert_eq!((rest, udp.checksum), (&data[..], check));
    let snmp = kernel.stats().snmp;
    assert_eq!((snmp.ip_frag_oks, snmp.ip_frag_creates), (1, 3));
    assert_eq!(snmp.udp_out_datagrams, 2);
}

#[test]
fn a_socket_is_charged_until_the_last_fragment_has_gone() {
    let (mut kernel, world) = known_peer();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_sndbuf(fd, 10_000).unwrap();
    for _ in 0..3 {
        world.hold.set(true);
        let data = payload(3000);
        let sends = (0..20).take_while(|_| kernel.sendto(fd, &data, Some(peer(9))).is_ok());
        assert_eq!(sends.count(), 4);
        world.hold.set(false);
        world.transmit(0, 100);
        world.interrupt(1);
        settle(&mut kernel);
    }
    assert_eq!(world.take_sent().len(), 3 * 4 * 3);
}

#[test]
fn a_socket_says_whether_its_packets_may_be_fragmented() {
    let (mut kernel, world) = known_peer();
    let fd = udp_socket(&mut kernel, PORT);
    let mut send = |pmtudisc, len| {
        kernel.set_mtu_discover(fd, pmtudisc).unwrap();
        kernel.sendto(fd, &payload(len), Some(peer(9)))?;
        let sent = world.take_sent();
        Ok((sent.len(), read_ip(&sent[0].frame).header.dont_fragment))
    };
    for (pmtudisc, short, long) in [
        (IpPmtudisc::Dont, false, Ok((2, false))),
        (IpPmtudisc::Want, true, Ok((2, false))),
        (IpPmtudisc::Do, true, Err(Errno::EMSGSIZE)),
        (IpPmtudisc::Probe, true, Err(Errno::EMSGSIZE)),
        (IpPmtudisc::Interface, false, Err(Errno::EMSGSIZE)),
        (IpPmtudisc::Omit, false, Ok((2, false))),
    ] {
        assert_eq!(send(pmtudisc, 1472), Ok((1, short)), "{pmtudisc:?}");
        assert_eq!(send(pmtudisc, 1473), long, "{pmtudisc:?}");
    }
}

#[test]
fn a_path_is_as_narrow_as_routers_say_for_ten_minutes() {
    let (mut kernel, world) = known_peer();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.connect(fd, peer(9)).unwrap();
    let sent = |kernel: &mut Guest, len: usize| {
        kernel.sendto(fd, &payload(len), None).unwrap();
        world.take_sent()
    };
    // The socket hears of it, once, and may send again.
    let told = |kernel: &mut Guest, frame: &[u8]| {
        receive(kernel, &world, frame);
        assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::EMSGSIZE));
        assert_eq!(kernel.recvfrom(fd, &mut []), Err(Errno::EAGAIN));
    };
    let long = sent(&mut kernel, 1400);
    assert_eq!(long.len(), 1);
    told(&mut kernel, &too_long(&long[0], 1000));
    assert_eq!(join(&sent(&mut kernel, 1400)).0, [976, 432]);
    let fits = sent(&mut kernel, 972);
    assert!(fits.len() == 1 && read_ip(&fits[0].frame).header.dont_fragment);
    // Whoever says that it is wider is not believed.
    told(&mut kernel, &too_long(&fits[0], 1200));
    assert_eq!(sent(&mut kernel, 1000).len(), 2);
    // Nor is what is absurd, but packets go without the mark then.
    told(&mut kernel, &too_long(&fits[0], 68));
    let small = sent(&mut kernel, 552 - 28);
    assert!(small.len() == 1 && !read_ip(&small[0].frame).header.dont_fragment);
    assert_eq!(sent(&mut kernel, 552 - 27).len(), 2);
    world.advance(600 * SECOND);
    let again = sent(&mut kernel, 1472);
    assert!(again.len() == 1 && read_ip(&again[0].frame).header.dont_fragment);
    assert_balanced(&kernel);
}

#[test]
fn who_does_not_heed_the_path_is_not_bound_by_it() {
    let (mut kernel, world) = known_peer();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.sendto(fd, &payload(1400), Some(peer(9))).unwrap();
    let sent = world.take_sent().remove(0);
    receive(&mut kernel, &world, &too_long(&sent, 600));
    for (pmtudisc, fragments) in [
        (IpPmtudisc::Want, 3),
        (IpPmtudisc::Dont, 3),
        (IpPmtudisc::Probe, 1),
        (IpPmtudisc::Interface, 1),
        (IpPmtudisc::Omit, 1),
    ] {
        kernel.set_mtu_discover(fd, pmtudisc).unwrap();
        assert_eq!(kernel.sendto(fd, &payload(1400), Some(peer(9))), Ok(1400));
        let sent = world.take_sent();
        assert_eq!(sent.len(), fragments, "{pmtudisc:?}");
    }
    kernel.set_mtu_discover(fd, IpPmtudisc::Do).unwrap();
    let sent = kernel.sendto(fd, &payload(1400), Some(peer(9)));
    assert_eq!(sent, Err(Errno::EMSGSIZE));
    assert_eq!(kernel.stats().snmp.ip_frag_fails, 0);
    assert_balanced(&kernel);
}

#[test]
fn errors_about_what_nobody_sent_change_nothing() {
    let (mut kernel, world) = known_peer();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.sendto(fd, &payload(1400), Some(peer(9))).unwrap();
    let mut sent = world.take_sent().remove(0);
    sent.frame[35] ^= 1;
    receive(&mut kernel, &world, &too_long(&sent, 1000));
    assert_eq!(kernel.stats().snmp.icmp_in_errors, 1);
    kernel.sendto(fd, &payload(1400), Some(peer(9))).unwrap();
    assert_eq!(world.take_sent().len(), 1);
}

#[test]
fn later_fragments_have_only_the_options_that_each_is_to_have() {
    let (mut kernel, world) = known_peer();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.sendto(fd, &payload(1400), Some(peer(9))).unwrap();
    let sent = world.take_sent().remove(0);
    receive(&mut kernel, &world, &too_long(&sent, 1000));
    let raw = kernel.socket(SockType::Raw, Protocol::Raw(255)).unwrap();
    let mut header = Ipv4Header::new(1200, 64, IpNumber(99), OURS, PEER).unwrap();
    header.dont_fragment = false;
    // One of each kind.
    header.options = [7, 3, 4, 0x94, 4, 0, 0, 0].into();
    header.total_len += 8;
    let packet = [header.to_bytes().to_vec(), payload(1200)].concat();
    kernel.sendto(raw, &packet, Some(peer(0))).unwrap();
    let sent = world.take_sent();
    assert_eq!(join(&sent).1, payload(1200));
    let options: Vec<_> = sent
        .iter()
        .map(|sent| read_ip(&sent.frame).header.options.as_slice().to_vec())
        .collect();
    assert_eq!(
        options,
        [[7, 3, 4, 0x94, 4, 0, 0, 0], [1, 1, 1, 0x94, 4, 0, 0, 0]]
    );
}
