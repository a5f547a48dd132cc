//! Fragments: put together, refused, given up.

use etherparse::icmpv4::TimeExceededCode;
use etherparse::{IcmpEchoHeader, Icmpv4Type, IpFragOffset, Ipv4Header};
use nic_guest::net::stats::RxDrop;
use nic_guest::net::{Protocol, SockType};

use crate::common::packets::{PEER, echo_request, ip_with, read_icmp, read_ip, udp};
use crate::common::world::{Guest, Setup, World, assert_balanced, settle};
use crate::{PORT, read_all, resolve_peer, udp_socket};

const SECOND: u64 = 1_000_000_000;

/// A part of a packet, `frame` without its Ethernet header, in `range` of its payload.
fn fragment(
    frame: &[u8],
    range: std::ops::Range<usize>,
    change: impl FnOnce(&mut Ipv4Header),
) -> Vec<u8> {
    let (mut header, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    assert_eq!(range.start % 8, 0);
    header.dont_fragment = false;
    header.more_fragments = range.end < payload.len();
    header.fragment_offset = IpFragOffset::try_new(range.start as u16 / 8).unwrap();
    change(&mut header);
    let part = &payload[range];
    header.total_len = (header.header_len() + part.len()) as u16;
    ip_with(header, part)
}

/// All fragments of a packet, with `step` octets in each but the last.
fn fragments(frame: &[u8], step: usize, id: u16) -> Vec<Vec<u8>> {
    let len = frame.len() - 34;
    (0..len)
        .step_by(step)
        .map(|at| {
            fragment(frame, at..len.min(at + step), |header| {
                header.identification = id;
            })
        })
        .collect()
}

fn boot() -> (Guest, std::rc::Rc<World>) {
    let (mut kernel, world) = Setup::default().boot();
    resolve_peer(&mut kernel, &world);
    (kernel, world)
}

fn receive(kernel: &mut Guest, world: &World, frames: &[Vec<u8>]) {
    for frame in frames {
        world.receive(frame);
        settle(kernel);
    }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251) as u8).collect()
}

#[test]
fn a_datagram_is_put_together_in_any_order() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    let mut buf = vec![0; 0x10000];
    let orders: [fn(&mut Vec<Vec<u8>>); 4] = [
        |_| (),
        |list| list.reverse(),
        |list| list.swap(0, 1),
        |list| list.rotate_left(1),
    ];
    for (id, order) in (1..).zip(orders) {
        for len in [9, 3000, 65_507] {
            let sent = payload(len);
            let step = (len / 6 + 8).min(1480) & !7;
            let mut list = fragments(&udp(PORT, &sent), step, id);
            order(&mut list);
            receive(&mut kernel, &world, &list);
            let received = kernel.recvfrom(fd, &mut buf).expect("it arrived");
            assert_eq!(buf[..received.len], sent, "{id}, {len}");
        }
    }
    let stats = kernel.stats();
    assert_eq!(stats.snmp.ip_reasm_oks, 12);
    assert_eq!((stats.snmp.ip_reasm_fails, stats.reassembling), (0, 0));
    assert!(stats.snmp.ip_reasm_reqds > 100);
    assert_balanced(&kernel);
}

#[test]
fn packets_of_several_hosts_and_protocols_do_not_mix() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    let datagram = fragments(&udp(PORT, &payload(100)), 48, 7);
    let echo = fragments(&echo_request(1, 2, &payload(100)), 48, 7);
    let another = fragments(&udp(PORT, &payload(101)), 48, 8);
    for at in 0..3 {
        receive(
            &mut kernel,
            &world,
            &[datagram[at].clone(), echo[at].clone(), another[at].clone()],
        );
    }
    let lengths: Vec<_> = read_all(&mut kernel, fd).iter().map(Vec::len).collect();
    assert_eq!(lengths, [100, 101]);
    let (message, answer) = read_icmp(&world.take_sent()[0].frame);
    let reply = IcmpEchoHeader { id: 1, seq: 2 };
    assert_eq!(
        (message, answer),
        (Icmpv4Type::EchoReply(reply), payload(100))
    );
    assert_balanced(&kernel);
}

#[test]
fn overlaps_kill_the_packet_and_duplicates_do_nothing() {
    let whole = udp(PORT, &payload(100));
    let part = |range| fragment(&whole, range, |header| header.identification = 3);
    for (what, frames, overlaps, duplicates, arrives) in [
        (
            "in order",
            vec![part(0..48), part(48..96), part(96..108)],
            0,
            0,
            1,
        ),
        (
            "twice",
            vec![part(0..48), part(0..48), part(16..32), part(48..108)],
            0,
            2,
            1,
        ),
        (
            "too much",
            vec![part(0..48), part(40..96), part(96..108)],
            1,
            0,
            0,
        ),
        ("around", vec![part(16..32), part(8..40)], 1, 0, 0),
    ] {
        let (mut kernel, world) = boot();
        let fd = udp_socket(&mut kernel, PORT);
        receive(&mut kernel, &world, &frames);
        let stats = kernel.stats();
        assert_eq!(stats.snmp.ip_reasm_overlaps, overlaps, "{what}");
        assert_eq!(stats.snmp.ip_reasm_fails, overlaps, "{what}");
        assert_eq!(stats.rx_drop(RxDrop::DupFrag), duplicates, "{what}");
        assert_eq!(read_all(&mut kernel, fd).len(), arrives, "{what}");
        assert_balanced(&kernel);
    }
}

#[test]
fn fragments_that_contradict_each_other_are_refused() {
    let whole = udp(PORT, &payload(100));
    let part = |range: std::ops::Range<usize>, more, tos| {
        fragment(&whole, range, |header| {
            header.more_fragments = more;
            header.ecn = etherparse::IpEcn::try_new(tos).unwrap();
        })
    };
    let far = fragment(&whole, 0..48, |header| {
        header.more_fragments = false;
        header.fragment_offset = IpFragOffset::try_new(0x1fff).unwrap();
    });
    for (what, frames) in [
        (
            "two ends",
            vec![part(48..96, false, 0), part(48..108, false, 0)],
        ),
        (
            "behind the end",
            vec![part(48..96, false, 0), part(96..104, true, 0)],
        ),
        (
            "the end too early",
            vec![part(48..96, true, 0), part(8..40, false, 0)],
        ),
        ("nothing", vec![part(0..4, true, 0)]),
        (
            "congestion",
            vec![part(0..48, true, 1), part(48..108, false, 0)],
        ),
        ("longer than a packet", {
            let all = (0..0x1fff).step_by(181).map(|at| {
                let whole = udp(PORT, &payload(1448));
                fragment(&whole, 0..1448, |header| {
                    header.more_fragments = true;
                    header.fragment_offset = IpFragOffset::try_new(at).unwrap();
                })
            });
            all.take(45).chain([far]).collect()
        }),
    ] {
        let (mut kernel, world) = boot();
        let fd = udp_socket(&mut kernel, PORT);
        receive(&mut kernel, &world, &frames);
        let stats = kernel.stats();
        assert_eq!(read_all(&mut kernel, fd).len(), 0, "{what}");
        if what != "longer than a packet" {
            assert_eq!(stats.snmp.ip_reasm_fails, 1, "{what}");
            assert_eq!(
                stats.rx_drop(RxDrop::IpReasmFails),
                frames.len() as u64,
                "{what}"
            );
        }
        assert_balanced(&kernel);
    }
}

#[test]
fn what_is_not_complete_in_time_is_given_up_and_the_sender_told() {
    let (mut kernel, world) = boot();
    let list = fragments(&udp(PORT, &payload(100)), 48, 3);
    // Of one packet the first fragment is there, of the other it is not.
    let other = fragments(&udp(PORT, &payload(100)), 48, 4);
    receive(
        &mut kernel,
        &world,
        &[list[0].clone(), list[1].clone(), other[2].clone()],
    );
    world.advance(30 * SECOND - 1);
    settle(&mut kernel);
    assert_eq!(kernel.stats().reassembling, 3);
    world.advance(1);
    settle(&mut kernel);
    let stats = kernel.stats();
    assert_eq!(
        (stats.snmp.ip_reasm_timeout, stats.snmp.ip_reasm_fails),
        (2, 2)
    );
    assert_eq!(stats.rx_drop(RxDrop::FragReasmTimeout), 3);
    assert_eq!(stats.reassembling, 0);
    let sent = world.take_sent();
    assert_eq!(sent.len(), 1);
    let ip = read_ip(&sent[0].frame);
    assert_eq!(ip.header.destination, PEER);
    let (message, quoted) = read_icmp(&sent[0].frame);
    let exceeded = Icmpv4Type::TimeExceeded(TimeExceededCode::FragmentReassemblyTimeExceeded);
    assert_eq!(message, exceeded);
    assert_eq!(quoted, list[0][14..]);
    assert_balanced(&kernel);
}

#[test]
fn a_flood_of_fragments_has_bounded_memory() {
    let mut setup = Setup::default();
    setup.config.ipv4.ipfrag_high_thresh = 100_000;
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    for id in 0..3000 {
        receive(
            &mut kernel,
            &world,
            &fragments(&udp(PORT, &payload(100)), 64, id)[..1],
        );
    }
    let stats = kernel.stats();
    // Each is charged its buffer of some 2 KiB and its queue.
    assert!((40..50).contains(&stats.reassembling), "{stats:?}");
    assert_eq!(stats.snmp.ip_reasm_fails, 3000 - stats.reassembling);
    assert_balanced(&kernel);
    // After their time there is room again.
    world.advance(31 * SECOND);
    settle(&mut kernel);
    receive(
        &mut kernel,
        &world,
        &fragments(&udp(PORT, &payload(100)), 64, 5000),
    );
    assert_eq!(read_all(&mut kernel, fd).len(), 1);
}

#[test]
fn a_packet_that_others_have_overtaken_begins_anew() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    let list = fragments(&udp(PORT, &payload(100)), 64, 1);
    receive(&mut kernel, &world, &list[..1]);
    for id in 2..66 {
        receive(
            &mut kernel,
            &world,
            &fragments(&udp(PORT, &payload(100)), 64, id)[1..],
        );
    }
    receive(&mut kernel, &world, &list[1..]);
    let stats = kernel.stats();
    assert_eq!(stats.rx_drop(RxDrop::FragTooFar), 1);
    assert_eq!(stats.snmp.ip_reasm_fails, 1);
    receive(&mut kernel, &world, &list[..1]);
    assert_eq!(read_all(&mut kernel, fd).len(), 1, "it came once more");
    assert_balanced(&kernel);
}

#[test]
fn one_fragments_word_of_congestion_is_the_packets() {
    let (mut kernel, world) = boot();
    let raw = kernel.socket(SockType::Raw, Protocol::Raw(17)).unwrap();
    let whole = udp(PORT, &payload(100));
    for (first, last, want) in [(2, 2, 2), (2, 3, 3), (3, 1, 3)] {
        for (range, ecn) in [(0..48, first), (48..108, last)] {
            let part = fragment(&whole, range, |header| {
                header.ecn = etherparse::IpEcn::try_new(ecn).unwrap();
            });
            receive(&mut kernel, &world, &[part]);
        }
        let packets = read_all(&mut kernel, raw);
        let (header, _) = Ipv4Header::from_slice(&packets[0]).unwrap();
        assert_eq!(header.ecn.value(), want);
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert!(!header.is_fragmenting_payload());
    }
}
