//! IPv6: Neighbour Discovery, ICMPv6, headers behind the first, fragments, and UDP.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::rc::Rc;

use etherparse::{Ipv6Slice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use nic_guest::net::netfilter::{NfHook, NfProto, NftChain, NftRule, Verdict};
use nic_guest::net::stats::{Mib6, RxDrop};
use nic_guest::net::{Errno, Fd, Ifindex, Kernel, NudState, ProcFile, Protocol, SockType};
use nic_guest::net::{Machine, NeighParms};
use nic_guest::transport::Transport;
use nic_guest::virtio_net::features as f;

use crate::PORT;
use crate::common::packets::{PEER_MAC, ethernet};
use crate::common::packets6::{
    ALL_NODES, LINKLOCAL, OURS6, PEER6, checksum6, echo_request6, ip6, ip6_between, message6, udp6,
};
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, settle};

const SECOND: u64 = 1_000_000_000;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A kernel with an IPv6 address, and the gateway's.
fn boot() -> (Guest, Rc<World>) {
    let mut setup = Setup::default();
    setup.config.ipv6.addr = Some((OURS6, 64));
    setup.config.ipv6.gateway = Some(PEER6);
    setup.boot()
}

/// The same, and the peer is known.
pub fn known_peer() -> (Guest, Rc<World>) {
    let (mut kernel, world) = boot();
    kernel.neigh6_add(PEER6, Ifindex::ETH0, PEER_MAC).unwrap();
    (kernel, world)
}

/// A message about a neighbour, with the peer's address in an option of that kind if one is named.
fn neighbour(
    icmp_type: u8,
    flags: u8,
    (from, to): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
    option: Option<u8>,
) -> Vec<u8> {
    let mut rest = target.octets().to_vec();
    if let Some(kind) = option {
        rest.extend([kind, 1]);
        rest.extend(PEER_MAC);
    }
    let message = message6(from, to, [icmp_type, 0, 0, 0, flags, 0, 0, 0], &rest);
    ip6_between(from, to, 255, 58, &message)
}

pub fn socket(kernel: &mut Guest) -> Fd {
    let fd = kernel.socket6(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0);
    kernel.bind6(fd, any).unwrap();
    fd
}

pub fn peer6(port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(PEER6, port, 0, 0)
}

/// A frame that was sent: its station, its header, and its payload.
fn read(frame: &[u8]) -> ([u8; 6], Ipv6Slice<'_>, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv6(ip)) = sliced.net else {
        panic!("no IPv6: {frame:02x?}");
    };
    let payload = ip.payload().payload.to_vec();
    (frame[..6].try_into().unwrap(), ip, payload)
}

/// The only frame that was sent: a message whose checksum is right.
pub fn sent_message(world: &World) -> (Ipv6Addr, Ipv6Addr, Vec<u8>) {
    let sent = world.take_sent();
    assert_eq!(sent.len(), 1, "{sent:02x?}");
    let (_, ip, payload) = read(&sent[0].frame);
    let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
    assert_eq!(checksum6(from, to, 58, &payload), [0, 0]);
    (from, to, payload)
}

/// What a packet is answered with: type, code, and the second word.
fn answer(kernel: &mut Guest, world: &World, frame: &[u8]) -> Option<(u8, u8, u32)> {
    world.receive(frame);
    settle(kernel);
    let sent = world.take_sent();
    let [sent] = &sent[..] else {
        assert!(sent.is_empty(), "{sent:02x?}");
        return None;
    };
    let (_, _, payload) = read(&sent.frame);
    let word = u32::from_be_bytes(payload[4..8].try_into().unwrap());
    assert_eq!(&payload[8..], &frame[14..], "what is quoted");
    Some((payload[0], payload[1], word))
}

#[test]
fn neighbours_ask_and_are_answered_and_remembered() {
    let (mut kernel, world) = boot();
    for (target, group) in [
        (OURS6, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2)),
        (
            LINKLOCAL,
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff12, 0x3456),
        ),
    ] {
        let asked = neighbour(SOLICITATION, 0, (PEER6, group), target, Some(1));
        world.receive(&asked);
        settle(&mut kernel);
        let (from, to, reply) = sent_message(&world);
        assert_eq!((from, to), (target, PEER6));
        // Solicited, and it overrides; with the station's address.
        assert_eq!((reply[0], reply[4]), (ADVERTISEMENT, 0x60));
        assert_eq!(reply[8..24], target.octets());
        assert_eq!(reply[24..], [&[2, 1][..], &MAC].concat());
    }
    assert_eq!(
        kernel.neigh6_state(PEER6, Ifindex::ETH0),
        Some(NudState::Delay)
    );
    // Of a single question the station is known.
    world.receive(&neighbour(SOLICITATION, 0, (PEER6, OURS6), OURS6, None));
    settle(&mut kernel);
    let (_, _, reply) = sent_message(&world);
    assert_eq!((reply[4], reply.len()), (0x40, 24));
    // Duplicate address detection: all are told.
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);
    let probe = (Ipv6Addr::UNSPECIFIED, group);
    world.receive(&neighbour(SOLICITATION, 0, probe, OURS6, None));
    settle(&mut kernel);
    let (_, to, reply) = sent_message(&world);
    assert_eq!((to, reply[4]), (ALL_NODES, 0x20));
    assert_balanced(&kernel);
}

#[test]
fn solicitations_that_make_no_sense_are_dropped() {
    let (mut kernel, world) = boot();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);
    let ask = |ends, target, option| neighbour(SOLICITATION, 0, ends, target, option);
    let mut forwarded = ask((PEER6, group), OURS6, Some(1));
    forwarded[21] = 254;
    let mut strange = ask((PEER6, group), OURS6, Some(1));
    strange[14 + 40 + 25] = 0;
    let sum = {
        let message = &mut strange[54..];
        message[2..4].fill(0);
        checksum6(PEER6, group, 58, message)
    };
    strange[56..58].copy_from_slice(&sum);
    let bad = [
        forwarded,
        strange,
        ask((PEER6, group), ALL_NODES, Some(1)),
        ask((PEER6, group), PEER6, Some(1)),
        ask((Ipv6Addr::UNSPECIFIED, group), OURS6, Some(1)),
        ask((Ipv6Addr::UNSPECIFIED, OURS6), OURS6, None),
    ];
    for frame in &bad {
        world.receive(frame);
    }
    settle(&mut kernel);
    assert_eq!(world.take_sent(), []);
    let dropped = kernel.stats().rx_drop(RxDrop::NdiscInvalid);
    assert_eq!(dropped, bad.len() as u64);
    assert_eq!(kernel.neigh6_state(PEER6, Ifindex::ETH0), None);
    assert_balanced(&kernel);
}

#[test]
fn packets_wait_for_a_neighbour_until_he_answers_or_is_given_up() {
    let (mut kernel, world) = boot();
    let fd = socket(&mut kernel);
    kernel.sendto6(fd, b"hello", Some(peer6(9))).unwrap();
    let (from, to, question) = sent_message(&world);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
    assert_eq!((from, to, question[0]), (OURS6, group, SOLICITATION));
    assert_eq!(question[24..], [&[1, 1][..], &MAC].concat());
    let state = |kernel: &Guest| kernel.neigh6_state(PEER6, Ifindex::ETH0);
    assert_eq!(state(&kernel), Some(NudState::Incomplete));
    world.receive(&neighbour(
        ADVERTISEMENT,
        0x60,
        (PEER6, OURS6),
        PEER6,
        Some(2),
    ));
    settle(&mut kernel);
    assert_eq!(state(&kernel), Some(NudState::Reachable));
    let sent = world.take_sent();
    let (station, ip, _) = read(&sent[0].frame);
    assert_eq!((station, ip.header().destination_addr()), (PEER_MAC, PEER6));
    // Another station says so, but does not insist: it is doubted.
    let mut other = neighbour(ADVERTISEMENT, 0, (PEER6, OURS6), PEER6, Some(2));
    other[14 + 40 + 31] ^= 8;
    let sum = {
        other[56..58].fill(0);
        checksum6(PEER6, OURS6, 58, &other[54..])
    };
    other[56..58].copy_from_slice(&sum);
    world.receive(&other);
    settle(&mut kernel);
    assert_eq!(state(&kernel), Some(NudState::Stale));
    // He is asked himself after a while, then all are, then he is given up.
    kernel.sendto6(fd, b"again", Some(peer6(9))).unwrap();
    assert_eq!(read(&world.take_sent()[0].frame).0, PEER_MAC);
    let mut asked = Vec::new();
    for _ in 0..20 {
        world.advance(SECOND);
        settle(&mut kernel);
        asked.extend(world.take_sent().iter().map(|sent| read(&sent.frame).0));
    }
    assert_eq!(asked, [PEER_MAC; 3]);
    assert_eq!(state(&kernel), Some(NudState::Failed));
    assert_balanced(&kernel);
}

#[test]
fn a_flood_of_neighbours_stays_within_bounds() {
    let mut setup = Setup::default();
    setup.config.ipv6.addr = Some((OURS6, 64));
    setup.config.neigh = NeighParms {
        gc_thresh1: 4,
        gc_thresh2: 8,
        gc_thresh3: 16,
        ..NeighParms::default()
    };
    let (mut kernel, world) = setup.boot();
    for host in 10..1000 {
        let from = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, host);
        world.receive(&neighbour(SOLICITATION, 0, (from, OURS6), OURS6, Some(1)));
        settle(&mut kernel);
    }
    let neigh = kernel.stats().neigh6;
    assert!(neigh.allocs - neigh.destroys <= 17, "{neigh:?}");
    assert!(neigh.table_fulls > 900, "{neigh:?}");
    assert_balanced(&kernel);
}

#[test]
fn echo_requests_are_answered() {
    let (mut kernel, world) = known_peer();
    for (to, from) in [(OURS6, OURS6), (LINKLOCAL, LINKLOCAL), (ALL_NODES, OURS6)] {
        world.receive(&echo_request6(PEER6, to, b"payload"));
        settle(&mut kernel);
        let (source, target, reply) = sent_message(&world);
        assert_eq!((source, target), (from, PEER6), "{to}");
        assert_eq!((reply[0], &reply[4..]), (129, &b"\0\x07\0\x01payload"[..]));
    }
    let stats = kernel.stats();
    assert_eq!(stats.snmp6[Mib6::Icmp6OutMsgs], 3);
    assert_eq!(stats.snmp6[Mib6::Ip6InMcastPkts], 1);
    let mut wrong = echo_request6(PEER6, OURS6, b"payload");
    wrong[60] ^= 1;
    world.receive(&wrong);
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::Icmp6InCsumErrors), 1);
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

#[test]
fn what_cannot_be_delivered_is_answered() {
    let (mut kernel, world) = known_peer();
    let mut say = |frame: &[u8]| answer(&mut kernel, &world, frame);
    assert_eq!(say(&udp6(9999, b"nobody")), Some((1, 4, 0)));
    assert_eq!(say(&ip6(99, b"what?")), Some((4, 1, 6)));
    let options = |kind| [&[17, 0, kind, 4, 0, 0, 0, 0][..], &[0; 8]].concat();
    assert_eq!(say(&ip6(60, &options(0x9e))), Some((4, 2, 42)));
    assert_eq!(say(&ip6(0, &options(0xde))), Some((4, 2, 42)));
    assert_eq!(say(&ip6(60, &options(0x5e))), None);
    // A route that leads on, and a fragment that is no multiple of 8.
    let route = [&[17, 0, 0, 1, 0, 0, 0, 0][..], &[0; 8]].concat();
    assert_eq!(say(&ip6(43, &route)), Some((4, 0, 42)));
    let fragment = [&[17, 0, 0, 1, 0, 0, 0, 1][..], &[0; 9]].concat();
    assert_eq!(say(&ip6(44, &fragment)), Some((4, 0, 4)));
    // Nobody is told of an error, nor by many, nor who is nobody.
    let error = message6(PEER6, OURS6, [1, 0, 0, 0, 0, 0, 0, 0], &[0; 40]);
    let behind = [&options(0xde)[..8], &error].concat();
    let mut of_error = ip6(60, &behind);
    of_error[54] = 58;
    assert_eq!(say(&of_error), None);
    assert_eq!(say(&ip6_between(PEER6, ALL_NODES, 64, 99, b"what?")), None);
    assert_eq!(
        say(&ip6_between(Ipv6Addr::UNSPECIFIED, OURS6, 64, 99, b"what?")),
        None
    );
    assert_balanced(&kernel);
}

#[test]
fn errors_are_limited_by_host() {
    let (mut kernel, world) = known_peer();
    for _ in 0..40 {
        world.receive(&udp6(9999, b"nobody"));
    }
    settle(&mut kernel);
    // Six at once to a network of 64 bits.
    assert_eq!(world.take_sent().len(), 6);
    assert_eq!(kernel.stats().snmp6[Mib6::Icmp6OutRateLimitHost], 34);
    // To a host it would be one each second; to that network it is one each quarter of it.
    world.advance(SECOND / 4);
    for _ in 0..2 {
        world.receive(&udp6(9999, b"nobody"));
    }
    settle(&mut kernel);
    assert_eq!(world.take_sent().len(), 1);
    assert_balanced(&kernel);
}

#[test]
fn headers_that_lie_are_told_apart() {
    let (mut kernel, world) = known_peer();
    let mut version = udp6(PORT, b"x");
    version[14] = 0x50;
    let mut longer = udp6(PORT, b"x");
    longer[19] += 1;
    let own = ip6_between(PEER6, Ipv6Addr::LOCALHOST, 64, 17, b"");
    let many = ip6_between(ALL_NODES, OURS6, 64, 17, b"");
    let other = ip6_between(
        PEER6,
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 3),
        64,
        17,
        b"",
    );
    let group = ip6_between(
        PEER6,
        Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 2),
        64,
        17,
        b"",
    );
    let short = [&ethernet(MAC, 0x86dd)[..], &[0x60; 39]].concat();
    let mut astray = udp6(PORT, b"x");
    astray[5] ^= 1;
    for frame in [
        &version, &longer, &own, &many, &other, &group, &short, &astray,
    ] {
        world.receive(frame);
    }
    settle(&mut kernel);
    let stats = kernel.stats();
    for (reason, count) in [
        (RxDrop::Ip6InHdrErrors, 4),
        (RxDrop::Ip6InTruncatedPkts, 1),
        (RxDrop::Ip6InAddrErrors, 1),
        (RxDrop::Ip6InMcastNotMember, 1),
        (RxDrop::Ip6OtherHost, 1),
    ] {
        assert_eq!(stats.rx_drop(reason), count, "{reason:?}");
    }
    assert_eq!(world.take_sent(), []);
    assert_balanced(&kernel);
}

/// The fragments of a datagram of 5 times 16 octets: offset and whether more follow.
fn fragments() -> Vec<Vec<u8>> {
    let whole = udp6(PORT, &[7; 72]);
    let data = &whole[54..];
    let pieces = data.chunks(16).enumerate();
    let fragment = |(at, piece): (usize, &[u8])| {
        let offset = (at * 16) as u16 | u16::from(at < 4);
        let [high, low] = offset.to_be_bytes();
        ip6(44, &[&[17, 0, high, low, 0, 0, 0, 9][..], piece].concat())
    };
    pieces.map(fragment).collect()
}

#[test]
fn fragments_become_a_datagram_in_whatever_order() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    let mut fragments = fragments();
    for round in 0..5 {
        fragments.rotate_left(1);
        fragments.swap(0, round);
        for fragment in &fragments {
            world.receive(fragment);
        }
        settle(&mut kernel);
        let mut buf = [0; 100];
        let received = kernel.recvfrom6(fd, &mut buf).unwrap();
        assert_eq!(
            (received.from, &buf[..received.len]),
            (peer6(9000), &[7; 72][..])
        );
    }
    assert_eq!(kernel.stats().snmp6[Mib6::Ip6ReasmOKs], 5);
    assert_balanced(&kernel);
}

#[test]
fn fragments_that_overlap_make_all_worthless_and_none_waits_for_ever() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    let fragments = fragments();
    let mut overlap = fragments[1].clone();
    overlap[57] += 8;
    for frame in [&fragments[0], &fragments[2], &overlap] {
        world.receive(frame);
    }
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::Ip6ReasmFails), 3);
    assert_eq!(kernel.stats().reassembling, 0);
    // What is left is no whole.
    for fragment in &fragments[1..] {
        world.receive(fragment);
    }
    world.receive(&fragments[1]);
    settle(&mut kernel);
    assert_eq!(
        kernel.recvfrom6(fd, &mut [0; 9]).unwrap_err(),
        Errno::EAGAIN
    );
    assert_eq!(kernel.stats().rx_drop(RxDrop::DupFrag), 1);
    world.advance(60 * SECOND);
    settle(&mut kernel);
    assert_eq!(world.take_sent(), [], "the first one is not there");
    assert_eq!(kernel.stats().snmp6[Mib6::Ip6ReasmTimeout], 1);
    world.receive(&fragments[0]);
    world.advance(1);
    settle(&mut kernel);
    world.advance(60 * SECOND);
    settle(&mut kernel);
    let (_, _, told) = sent_message(&world);
    assert_eq!((told[0], told[1]), (3, 1));
    assert_balanced(&kernel);
}

#[test]
fn fragments_find_memory_only_up_to_a_limit() {
    let mut setup = Setup::default();
    setup.config.ipv6.addr = Some((OURS6, 64));
    setup.config.ipv6.ip6frag_high_thresh = 20_000;
    let (mut kernel, world) = setup.boot();
    for id in 0..200 {
        let mut fragment = fragments()[1].clone();
        fragment[61] = id;
        world.receive(&fragment);
        settle(&mut kernel);
    }
    let stats = kernel.stats();
    assert!(
        (5..40).contains(&stats.reassembling),
        "{}",
        stats.reassembling
    );
    assert_eq!(
        stats.rx_drop(RxDrop::Ip6ReasmFails),
        200 - stats.reassembling
    );
    assert_balanced(&kernel);
}

#[test]
fn datagrams_go_to_the_socket_that_fits_best() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    let connected = kernel.socket6(SockType::Dgram, Protocol::Udp).unwrap();
    let again = kernel.bind6(connected, SocketAddrV6::new(OURS6, PORT, 0, 0));
    assert_eq!(again, Err(Errno::EADDRINUSE));
    kernel.connect6(connected, peer6(9000)).unwrap();
    let own = kernel.getsockname6(connected).unwrap();
    assert_eq!(*own.ip(), OURS6);
    world.receive(&udp6(own.port(), b"to you"));
    world.receive(&udp6(PORT, b"to anybody"));
    settle(&mut kernel);
    let mut buf = [0; 100];
    let len = kernel.recvfrom6(connected, &mut buf).unwrap().len;
    assert_eq!(&buf[..len], b"to you");
    let len = kernel.recvfrom6(fd, &mut buf).unwrap().len;
    assert_eq!(&buf[..len], b"to anybody");
    // Without a checksum none gets it; and AF_INET's port of that number is another.
    let mut none = udp6(PORT, b"x");
    none[60..62].fill(0);
    world.receive(&none);
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::Udp6InCsumErrors), 1);
    crate::udp_socket(&mut kernel, PORT);
    // The peer has no such port.
    kernel.sendto6(connected, b"hello?", None).unwrap();
    let sent = world.take_sent().remove(0).frame;
    let quoted = &sent[14..];
    let error = message6(PEER6, OURS6, [1, 4, 0, 0, 0, 0, 0, 0], quoted);
    world.receive(&ip6(58, &error));
    settle(&mut kernel);
    let told = kernel.recvfrom6(connected, &mut buf).unwrap_err();
    assert_eq!(told, Errno::ECONNREFUSED);
    for call in [
        kernel.bind(connected, crate::peer(1)),
        kernel.connect(connected, crate::peer(1)),
    ] {
        assert_eq!(call, Err(Errno::EAFNOSUPPORT));
    }
    assert_balanced(&kernel);
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    kernel.set_rcvbuf(fd, 1).unwrap();
    for _ in 0..10 {
        world.receive(&udp6(PORT, &[0; 1000]));
    }
    settle(&mut kernel);
    let stats = kernel.stats();
    let full = stats.rx_drop(RxDrop::Udp6RcvbufErrors);
    assert!(full > 0 && full + stats.queued == 10);
    assert_eq!(stats.snmp6[Mib6::Udp6RcvbufErrors], full);
    assert_balanced(&kernel);
}

#[test]
fn long_datagrams_are_sent_in_fragments_as_the_path_has_it() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    let lens = |world: &World| -> Vec<_> {
        let sent = world.take_sent();
        sent.iter().map(|sent| sent.frame.len() - 14).collect()
    };
    kernel.sendto6(fd, &[1; 3000], Some(peer6(9))).unwrap();
    assert_eq!(lens(&world), [1496, 1496, 160]);
    // A router says that less passes.
    kernel.sendto6(fd, &[1; 1400], Some(peer6(9))).unwrap();
    let sent = world.take_sent().remove(0).frame;
    let quoted = &sent[14..14 + 1232];
    let error = message6(PEER6, OURS6, [2, 0, 0, 0, 0, 0, 5, 0x14], quoted);
    world.receive(&ip6(58, &error));
    settle(&mut kernel);
    kernel.sendto6(fd, &[1; 1400], Some(peer6(9))).unwrap();
    assert_eq!(lens(&world), [1296, 208], "1300 pass");
    let stats = kernel.stats();
    assert_eq!(stats.snmp6[Mib6::Ip6FragOKs], 2);
    assert_eq!(stats.snmp6[Mib6::Ip6FragCreates], 5);
    let too_long = kernel.sendto6(fd, &vec![0; 65528], Some(peer6(9)));
    assert_eq!(too_long, Err(Errno::EMSGSIZE));
    assert_balanced(&kernel);
}

/// What is read of a socket.
pub fn take<T: Transport, M: Machine>(kernel: &mut Kernel<T, M>, fd: Fd) -> Vec<u8> {
    let mut buf = [0; 2048];
    let len = kernel.recvfrom6(fd, &mut buf).unwrap().len;
    buf[..len].to_vec()
}

#[test]
fn this_host_hears_itself() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    let own = kernel.socket6(SockType::Dgram, Protocol::Udp).unwrap();
    let scope = u32::from(Ifindex::ETH0);
    for (to, scope) in [
        (OURS6, 0),
        (Ipv6Addr::LOCALHOST, 0),
        (LINKLOCAL, scope),
        (ALL_NODES, scope),
    ] {
        let to = SocketAddrV6::new(to, PORT, 0, scope);
        kernel.sendto6(own, b"me", Some(to)).unwrap();
        settle(&mut kernel);
        assert_eq!(take(&mut kernel, fd), b"me", "{to}");
    }
    assert_eq!(world.take_sent().len(), 1, "only to all nodes");
    assert_balanced(&kernel);
}

#[test]
fn pings_are_asked_and_answered() {
    let (mut kernel, world) = known_peer();
    let fd = kernel.socket6(SockType::Dgram, Protocol::Icmp).unwrap();
    let request = [128, 0, 0, 0, 0, 0, 0, 1, 9, 9];
    kernel.sendto6(fd, &request, Some(peer6(0))).unwrap();
    let (from, _, asked) = sent_message(&world);
    assert_eq!((from, asked[0]), (OURS6, 128));
    let head = [129, 0, 0, 0, asked[4], asked[5], 0, 1];
    let reply = message6(PEER6, OURS6, head, &asked[8..]);
    world.receive(&ip6(58, &reply));
    settle(&mut kernel);
    assert_eq!(take(&mut kernel, fd), reply);
    let wrong = kernel.sendto6(fd, &[129; 10], Some(peer6(0)));
    assert_eq!(wrong, Err(Errno::EINVAL));
    assert_balanced(&kernel);
}

#[test]
fn segments_are_answered_with_a_reset() {
    let (mut kernel, world) = known_peer();
    let builder = PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv6(PEER6.octets(), OURS6.octets(), 64)
        .tcp(9000, 80, 5, 1000)
        .syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, b"").unwrap();
    world.receive(&frame);
    settle(&mut kernel);
    let sent = world.take_sent();
    let sliced = SlicedPacket::from_ethernet(&sent[0].frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("no TCP");
    };
    assert!(tcp.rst() && tcp.ack());
    assert_eq!(tcp.acknowledgment_number(), 6);
    let sum = tcp.calc_checksum_ipv6(OURS6.octets(), PEER6.octets());
    assert_eq!(sum.unwrap(), tcp.checksum());
    assert_eq!(kernel.stats().rx_drop(RxDrop::TcpNoSocket), 1);
    assert_balanced(&kernel);
}

#[test]
fn the_filter_asks_about_ipv6() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    let rule = NftRule {
        saddr6: Some((PEER6, 64)),
        protocol: Some(17),
        dport: Some(PORT),
        verdict: Some(Verdict::Drop),
        ..NftRule::default()
    };
    for hook in [NfHook::PreRouting, NfHook::LocalIn] {
        kernel.nf_unregister_net_hooks();
        kernel.nf_register_net_hook(NftChain {
            family: NfProto::Ipv6,
            rules: vec![rule.clone()],
            ..NftChain::counting(hook)
        });
        world.receive(&udp6(PORT, b"x"));
        world.receive(&udp6(PORT + 1, b"x"));
        settle(&mut kernel);
        assert_eq!(kernel.nft_chains()[0].rules[0].packets, 1, "{hook:?}");
    }
    assert_eq!(kernel.stats().rx_drop(RxDrop::NetfilterDrop), 2);
    assert_eq!(
        kernel.recvfrom6(fd, &mut [0; 9]).unwrap_err(),
        Errno::EAGAIN
    );
    kernel.nf_unregister_net_hooks();
    for hook in [NfHook::LocalOut, NfHook::PostRouting] {
        kernel.nf_register_net_hook(NftChain {
            family: NfProto::Ipv6,
            rules: Vec::new(),
            policy: Verdict::Drop,
            ..NftChain::counting(hook)
        });
        let refused = kernel.sendto6(fd, b"x", Some(peer6(9)));
        assert_eq!(refused, Err(Errno::EPERM));
    }
    assert_balanced(&kernel);
}

#[test]
fn the_filter_knows_what_later_fragments_are_of() {
    let (mut kernel, world) = known_peer();
    let rule = |protocol, dport| NftRule {
        protocol: Some(protocol),
        dport,
        ..NftRule::default()
    };
    kernel.nf_register_net_hook(NftChain {
        family: NfProto::Ipv6,
        rules: vec![
            rule(17, None),
            rule(17, Some(PORT)),
            rule(44, None),
            rule(59, None),
        ],
        ..NftChain::counting(NfHook::PreRouting)
    });
    for fragment in fragments() {
        world.receive(&fragment);
    }
    // Nothing follows, in a whole packet and in a piece; and what follows cannot be told.
    world.receive(&ip6(59, b""));
    for next in [59, 60] {
        world.receive(&ip6(44, &[next, 0, 0, 8, 0, 0, 0, 9, 7]));
    }
    settle(&mut kernel);
    let counted = kernel.nft_chains()[0].rules.iter().map(|rule| rule.packets);
    assert!(counted.eq([5, 1, 0, 2]), "a port is in the first one only");
}

#[test]
fn the_files_say_what_linuxs_say() {
    let (mut kernel, world) = known_peer();
    let fd = socket(&mut kernel);
    kernel.connect6(fd, peer6(9)).unwrap();
    world.receive(&echo_request6(PEER6, OURS6, b"x"));
    settle(&mut kernel);
    let show = |file: ProcFile| {
        let mut text = String::new();
        kernel.proc_show(file, &mut text).unwrap();
        text
    };
    assert_eq!(
        show(ProcFile::IfInet6),
        "00000000000000000000000000000001 01 80 10 80       lo\n\
         fd770000000000000000000000000002 02 40 00 80     eth0\n\
         fe80000000000000505400fffe123456 02 40 20 80     eth0\n"
    );
    let snmp6 = show(ProcFile::Snmp6);
    assert!(
        snmp6.starts_with(
            "Ip6InReceives                   \t1\nIp6InHdrErrors                  \t0\n"
        )
    );
    for line in [
        "Ip6InOctets                     \t49",
        "Icmp6InEchos                    \t1",
        "Icmp6OutType129                 \t1",
        "UdpLite6MemErrors               \t0",
    ] {
        assert!(snmp6.lines().any(|shown| shown == line), "{line}: {snmp6}");
    }
    let udp6 = show(ProcFile::Udp6);
    let line = udp6.lines().nth(1).unwrap();
    let ends = "000077FD000000000000000002000000:1B58 000077FD000000000000000001000000:0009 01 ";
    assert!(line.contains(ends), "{line}");
    assert!(show(ProcFile::Sockstat6).contains("UDP6: inuse 1\n"));
}

#[test]
fn each_device_has_an_address_of_its_link_and_the_card_lets_its_groups_in() {
    let mut setup = Setup {
        features: FEATURES | f::CTRL_VQ | f::CTRL_RX,
        ..Setup::default()
    };
    setup.config.ipv6.addr = Some((OURS6, 64));
    let (mut kernel, world) = setup.boot();
    let dummy = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    let commands = world.commands.take();
    let (class, command, table) = commands.last().unwrap();
    assert_eq!((class, command), (&1, &0));
    let groups = [
        [0x33, 0x33, 0, 0, 0, 1],
        [0x33, 0x33, 0xff, 0, 0, 2],
        [0x33, 0x33, 0xff, 0x12, 0x34, 0x56],
    ];
    assert_eq!(table[14..], groups.concat());
    let fd = kernel.socket6(SockType::Dgram, Protocol::Udp).unwrap();
    let own = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x901);
    for (dev, want) in [(Ifindex::ETH0, Err(Errno::EADDRNOTAVAIL)), (dummy, Ok(()))] {
        let bound = kernel.bind6(fd, SocketAddrV6::new(own, PORT, 0, dev.into()));
        assert_eq!(bound, want);
    }
    assert_balanced(&kernel);
}

#[test]
fn without_ipv6_its_packets_are_dropped() {
    let mut setup = Setup::default();
    setup.config.ipv6.disable_ipv6 = true;
    let (mut kernel, world) = setup.boot();
    world.receive(&udp6(PORT, b"x"));
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::Ip6InDiscards), 1);
    let refused = kernel.inet6_addr_add(Ifindex::ETH0, OURS6, 64);
    assert_eq!(refused, Err(Errno::EACCES));
    assert_balanced(&kernel);
}
