use std::collections::VecDeque;

use etherparse::{IcmpEchoHeader, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{Socket, tcp, udp};
use smoltcp::wire::IpEndpoint;

use super::services::CONNECTIONS;
use super::*;
use crate::wire::testing::{CARD, facts, frame, pool};

const ADDRESS_V4: [u8; 4] = [10, 77, 0, 1];
const CLIENT_V4: [u8; 4] = [10, 77, 0, 2];
const CLIENT_V6: [u8; 16] = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const PARTNER_V6: [u8; 16] = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Another host on smoltcp, with queues of octets.
#[derive(Default)]
struct Ether {
    mtu: usize,
    inbound: VecDeque<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.push_back(bytes);
        result
    }
}

impl Device for Ether {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;
    fn receive(&mut self, _: Instant) -> Option<(In, Out<'_>)> {
        let bytes = self.inbound.pop_front()?;
        Some((In(bytes), Out(&mut self.outbound)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(&mut self.outbound))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// A client and the partner on a line without loss, in virtual time.
struct Bench {
    now: Nanos,
    /// Frames that the card takes in 10 us.
    drain: usize,
    pool: Pool,
    partner: Partner,
    ether: Ether,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Bench {
    fn new(mtu: u16) -> Self {
        let mut ether = Ether {
            mtu: mtu.into(),
            ..Ether::default()
        };
        let config = Config::new(EthernetAddress(CARD.0).into());
        let mut interface = Interface::new(config, &mut ether, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::v4(10, 77, 0, 2), 24))
                .unwrap();
            let v6 = IpAddress::v6(0xfd77, 0, 0, 0, 0, 0, 0, 2);
            list.push(IpCidr::new(v6, 64)).unwrap();
        });
        let mut partner = Partner::new(&facts(mtu));
        partner.link_changed(Nanos(0), true);
        Bench {
            now: Nanos(0),
            drain: usize::MAX,
            pool: pool(mtu),
            partner,
            ether,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    /// Lets 10 us pass.
    fn step(&mut self) {
        self.interface
            .poll(instant(self.now), &mut self.ether, &mut self.sockets);
        let mut frames = Vec::new();
        for (i, bytes) in self.ether.outbound.drain(..).enumerate() {
            frames.push(frame(&mut self.pool, self.now.0 + 10 * i as u64, &bytes));
        }
        self.partner.transmit(self.now, &mut self.pool, &mut frames);
        self.now += Duration::from_micros(10);
        let mut left = self.drain;
        while left > 0 {
            self.partner
                .receive(self.now, left.min(64), &mut self.pool, &mut frames);
            if frames.is_empty() {
                break;
            }
            left -= frames.len();
            for frame in frames.drain(..) {
                assert!(frame.arrival <= self.now);
                self.ether.inbound.push_back(frame.bytes().to_vec());
                self.pool.give(frame);
            }
        }
    }

    fn connect(&mut self, port: u16, local: u16) -> smoltcp::iface::SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let remote = (IpAddress::v4(10, 77, 0, 1), port);
        socket
            .connect(self.interface.context(), remote, local)
            .unwrap();
        self.sockets.add(socket)
    }

    fn tcp(&mut self, handle: smoltcp::iface::SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sockets of the partner that wait for a connection.
    fn listening(&self) -> usize {
        let sockets = self.partner.sockets.iter();
        sockets
            .filter(|(_, socket)| match socket {
                Socket::Tcp(tcp) => tcp.is_listening(),
                _ => false,
            })
            .count()
    }

    fn steps_until(&mut self, most: usize, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..most {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("not done after {most} steps, at {:?}", self.now);
    }
}

/// What the partner answers to `packet`, sent at instant 1000.
fn answers(partner: &mut Partner, pool: &mut Pool, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = vec![frame(pool, 1_500, packet)];
    partner.transmit(Nanos(1_000), pool, &mut frames);
    assert!(frames.is_empty());
    partner.receive(Nanos(1_499), 64, pool, &mut frames);
    assert!(
        frames.is_empty(),
        "no answer before the question has arrived"
    );
    partner.receive(Nanos(1_500), 64, pool, &mut frames);
    let bytes = frames.iter().map(|f| f.bytes().to_vec()).collect();
    pool.give_all(frames);
    assert_eq!(pool.lent(), 0);
    bytes
}

fn arp_request() -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(CARD.0);
    packet.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    packet.extend(CARD.0);
    packet.extend(CLIENT_V4);
    packet.extend([0; 6]);
    packet.extend(ADDRESS_V4);
    packet.resize(60, 0);
    packet
}

fn ether() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(CARD.0, ADDRESS)
}

fn ping(payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ether()
        .ipv4(CLIENT_V4, ADDRESS_V4, 64)
        .icmpv4_echo_request(7, 8)
        .write(&mut packet, payload)
        .unwrap();
    packet
}

/// The packet `whole` in fragments, all at instant 2000.
fn fragments(pool: &mut Pool, whole: &[u8]) -> Vec<Frame> {
    let (header, body) = whole.split_at(34);
    let parts = body.chunks(1480).enumerate();
    let fragment = |(i, part): (usize, &[u8])| {
        let mut ip = etherparse::Ipv4Header::from_slice(&header[14..]).unwrap().0;
        ip.identification = 77;
        ip.dont_fragment = false;
        ip.more_fragments = (i + 1) * 1480 < body.len();
        ip.fragment_offset = ((i * 1480 / 8) as u16).try_into().unwrap();
        ip.total_len = (20 + part.len()) as u16;
        ip.header_checksum = ip.calc_header_checksum();
        let mut bytes = header[..14].to_vec();
        ip.write(&mut bytes).unwrap();
        bytes.extend(part);
        frame(pool, 2_000, &bytes)
    };
    parts.map(fragment).collect()
}

/// Makes the partner know the client.
fn introduced() -> (Partner, Pool) {
    let (mut partner, mut pool) = (Partner::new(&facts(1500)), pool(1500));
    assert_eq!(answers(&mut partner, &mut pool, &arp_request()).len(), 1);
    (partner, pool)
}

#[test]
fn arp_is_answered() {
    let (mut partner, mut pool) = (Partner::new(&facts(1500)), pool(1500));
    let answers = answers(&mut partner, &mut pool, &arp_request());
    let [answer] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(answer[..6], CARD.0);
    assert_eq!(answer[6..12], ADDRESS);
    assert_eq!(answer[20..22], [0, 2], "a reply");
    assert_eq!(answer[22..28], ADDRESS);
    assert_eq!(answer[28..32], ADDRESS_V4);
}

#[test]
fn ping_is_answered_and_wrong_checksums_are_not() {
    let (mut partner, mut pool) = introduced();
    let mut request = ping(b"are you there?");
    let replies = answers(&mut partner, &mut pool, &request);
    let packet = SlicedPacket::from_ethernet(&replies[0]).unwrap();
    let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else {
        panic!("{packet:?}")
    };
    let echo = etherparse::Icmpv4Type::EchoReply(IcmpEchoHeader { id: 7, seq: 8 });
    assert_eq!(icmp.header().icmp_type, echo);
    assert_eq!(icmp.payload(), b"are you there?");
    assert_eq!(icmp.checksum(), echo.calc_checksum(icmp.payload()));
    *request.last_mut().unwrap() ^= 1;
    assert!(answers(&mut partner, &mut pool, &request).is_empty());
}

#[test]
fn neighbours_and_ping_over_ipv6_are_answered() {
    let (mut partner, mut pool) = (Partner::new(&facts(1500)), pool(1500));
    // A neighbour solicitation with its sender's address, to the solicited-node group.
    let mut body = vec![0; 4];
    body.extend(PARTNER_V6);
    body.extend([1, 1]);
    body.extend(CARD.0);
    let group = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1];
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CARD.0, [0x33, 0x33, 0xff, 0, 0, 1])
        .ipv6(CLIENT_V6, group, 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut packet, &body[4..])
        .unwrap();
    let adverts = answers(&mut partner, &mut pool, &packet);
    assert_eq!(adverts.len(), 1);
    assert_eq!(adverts[0][54], 136);
    assert_eq!(adverts[0][62..78], PARTNER_V6);

    let mut packet = Vec::new();
    ether()
        .ipv6(CLIENT_V6, PARTNER_V6, 64)
        .icmpv6_echo_request(1, 2)
        .write(&mut packet, b"six")
        .unwrap();
    let replies = answers(&mut partner, &mut pool, &packet);
    let packet = SlicedPacket::from_ethernet(&replies[0]).unwrap();
    let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
        panic!("{packet:?}")
    };
    let echo = Icmpv6Type::EchoReply(IcmpEchoHeader { id: 1, seq: 2 });
    assert_eq!(icmp.icmp_type(), echo);
    assert!(icmp.is_checksum_valid(PARTNER_V6, CLIENT_V6));
}

#[test]
fn a_ping_in_fragments_is_answered_in_fragments() {
    let (mut partner, mut pool) = introduced();
    let mut frames = fragments(&mut pool, &ping(&[0x5a; 5000]));
    assert_eq!(frames.len(), 4);
    partner.transmit(Nanos(2_000), &mut pool, &mut frames);
    partner.receive(Nanos(2_000), 64, &mut pool, &mut frames);
    let octets: usize = frames.iter().map(|f| f.len() - 34).sum();
    assert_eq!((frames.len(), octets), (4, 5008));
}

#[test]
fn a_long_answer_goes_whole_though_the_line_is_busy() {
    let (mut partner, mut pool) = introduced();
    let mut bench = Bench::new(1500);
    let mut frames: Vec<Frame> = (0..OUTBOUND - 1)
        .map(|_| frame(&mut pool, 2_000, &ping(b"short")))
        .collect();
    // The client's stack makes the fragments.
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 65536]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(5000).unwrap();
    let handle = bench.sockets.add(socket);
    bench.step();
    let socket: &mut udp::Socket<'_> = bench.sockets.get_mut(handle);
    let echo = IpEndpoint::new(IpAddress::v4(10, 77, 0, 1), 7);
    socket.send_slice(&[9; 20_000], echo).unwrap();
    bench.steps_until(100, |bench| bench.partner.services.udp_echoed == 1);
    bench.steps_until(100, |bench| {
        bench.sockets.get::<udp::Socket<'_>>(handle).can_recv()
    });
    // And the same as a ping, behind short ones that leave room for one frame.
    frames.extend(fragments(&mut pool, &ping(&[0x5a; 20_000])));
    partner.transmit(Nanos(2_000), &mut pool, &mut frames);
    let mut octets = 0;
    for _ in 0..10 {
        partner.receive(Nanos(2_000), 64, &mut pool, &mut frames);
        octets += frames.iter().map(|f| f.len() - 34).sum::<usize>();
        pool.give_all(frames.drain(..));
    }
    assert_eq!(octets, (OUTBOUND - 1) * 13 + 20_008);
    assert_eq!(pool.lent(), 0);
}

#[test]
fn bulk_transfers_leave_room_for_others() {
    const OCTETS: usize = 1 << 18;
    let mut bench = Bench::new(1500);
    bench.drain = 8;
    let handles: Vec<_> = (0..CONNECTIONS as u16)
        .map(|i| bench.connect(7, 40_000 + i))
        .collect();
    let (mut sent, mut got, mut longest) = ([0; CONNECTIONS], 0, 0);
    bench.steps_until(100_000, |bench| {
        for (&handle, sent) in handles.iter().zip(&mut sent) {
            let socket = bench.tcp(handle);
            while *sent < OCTETS && socket.can_send() {
                *sent += socket.send_slice(&[1; 4096]).unwrap();
            }
            while let Ok(octets @ 1..) = socket.recv(|octets| (octets.len(), octets.len())) {
                got += octets;
            }
        }
        longest = longest.max(bench.partner.queues.outbound.len());
        got >= CONNECTIONS * OCTETS
    });
    // Sockets stop at half the room; what exceeds it is acknowledgements.
    assert!((FROM_SOCKETS..OUTBOUND).contains(&longest), "{longest}");
    assert_eq!(bench.partner.dropped, 0);
}

#[test]
fn datagrams_are_echoed_and_discarded() {
    for mtu in [1500, 9000] {
        let mut bench = Bench::new(mtu);
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 65536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(5000).unwrap();
        let handle = bench.sockets.add(socket);
        for address in [
            IpAddress::v4(10, 77, 0, 1),
            IpAddress::v6(0xfd77, 0, 0, 0, 0, 0, 0, 1),
        ] {
            let datagram = vec![0xa5; usize::from(mtu) - 48];
            let socket: &mut udp::Socket<'_> = bench.sockets.get_mut(handle);
            let to = |port| IpEndpoint::new(address, port);
            socket.send_slice(&datagram, to(7)).unwrap();
            socket.send_slice(&datagram, to(9)).unwrap();
            // smoltcp asks for one neighbour a second.
            bench.steps_until(200_000, |bench| {
                bench.sockets.get::<udp::Socket<'_>>(handle).can_recv()
            });
            let socket: &mut udp::Socket<'_> = bench.sockets.get_mut(handle);
            let (octets, meta) = socket.recv().unwrap();
            assert_eq!((octets, meta.endpoint), (&datagram[..], to(7)));
        }
        bench.step();
        let services = &bench.partner.services;
        assert_eq!((services.udp_echoed, services.udp_discarded), (2, 2));
        assert_eq!(bench.pool.lent(), 0);
    }
}

#[test]
fn a_mebibyte_comes_back_over_tcp_and_the_connection_closes() {
    const OCTETS: usize = 1 << 20;
    for mtu in [1500, 9000] {
        let mut bench = Bench::new(mtu);
        let handle = bench.connect(7, 40_000);
        let octet = |i: usize| (i * 7 + i / 251) as u8;
        let (mut sent, mut got) = (0, 0);
        bench.steps_until(1_000_000, |bench| {
            let socket = bench.tcp(handle);
            while sent < OCTETS && socket.can_send() {
                let piece: Vec<u8> = (sent..OCTETS.min(sent + 4096)).map(octet).collect();
                sent += socket.send_slice(&piece).unwrap();
            }
            if sent == OCTETS && socket.state() == tcp::State::Established {
                // Half-close: the rest is still echoed.
                socket.close();
            }
            while socket.can_recv() {
                got += socket
                    .recv(|octets| {
                        for (i, &o) in octets.iter().enumerate() {
                            assert_eq!(o, octet(got + i), "octet {}", got + i);
                        }
                        (octets.len(), octets.len())
                    })
                    .unwrap();
            }
            got == OCTETS && socket.state() == tcp::State::TimeWait
        });
        assert!(bench.now < Nanos(100_000_000), "it took {:?}", bench.now);
        assert_eq!(bench.partner.services.tcp_echoed, OCTETS as u64);
        for _ in 0..10 {
            bench.step();
        }
        assert_eq!(bench.pool.lent(), 0);
    }
}

#[test]
fn as_many_connections_as_there_are_sockets_again_and_again() {
    let mut bench = Bench::new(1500);
    for round in 0..3u16 {
        let handles: Vec<_> = (0..CONNECTIONS as u16)
            .map(|i| bench.connect(7, 40_000 + round * 100 + i))
            .collect();
        bench.steps_until(1000, |bench| {
            handles.iter().all(|&handle| bench.tcp(handle).may_send())
        });
        let refused = bench.connect(7, 50_000 + round);
        bench.steps_until(1000, |bench| {
            bench.tcp(refused).state() == tcp::State::Closed
        });
        for (i, &handle) in handles.iter().enumerate() {
            let socket = bench.tcp(handle);
            socket.send_slice(&[i as u8; 100]).unwrap();
            if round == 1 {
                socket.abort();
            } else {
                socket.close();
            }
        }
        bench.steps_until(3000, |bench| {
            handles.iter().all(|&handle| !bench.tcp(handle).is_open())
        });
        bench.steps_until(3000, |bench| bench.listening() == 2 * CONNECTIONS);
    }
}

#[test]
fn an_echo_that_is_not_read_holds_the_sender_up() {
    let mut bench = Bench::new(1500);
    let handle = bench.connect(7, 40_000);
    let mut sent = 0;
    for _ in 0..20_000 {
        let socket = bench.tcp(handle);
        while socket.can_send() {
            sent += socket.send_slice(&[1; 4096]).unwrap();
        }
        bench.step();
    }
    // All buffers are full, and nothing more moves, until the echo is read.
    assert!(sent <= (512 + 64 + 2 * 256) * 1024, "{sent}");
    let mut got = 0;
    bench.tcp(handle).close();
    bench.steps_until(100_000, |bench| {
        let socket = bench.tcp(handle);
        while let Ok(octets @ 1..) = socket.recv(|octets| (octets.len(), octets.len())) {
            got += octets;
        }
        got == sent
    });
}

#[test]
fn discard_takes_all_and_sends_nothing() {
    let mut bench = Bench::new(1500);
    let handle = bench.connect(9, 40_000);
    let mut sent = 0;
    bench.steps_until(100_000, |bench| {
        let socket = bench.tcp(handle);
        while socket.can_send() && sent < 1 << 20 {
            sent += socket.send_slice(&[1; 4096]).unwrap();
        }
        assert!(!socket.can_recv());
        if sent >= 1 << 20 {
            socket.close();
        }
        socket.state() == tcp::State::TimeWait
    });
    assert_eq!(bench.partner.services.tcp_discarded, sent as u64);
}

#[test]
fn a_flood_of_pings_is_answered_as_far_as_there_is_room_and_the_rest_counted() {
    let (mut partner, mut pool) = introduced();
    let request = ping(&[0; 56]);
    let total = 3 * (INBOUND + OUTBOUND);
    let mut frames: Vec<Frame> = (0..total)
        .map(|_| frame(&mut pool, 2_000, &request))
        .collect();
    partner.transmit(Nanos(2_000), &mut pool, &mut frames);
    assert_eq!(pool.lent(), INBOUND, "the rest was dropped");
    let mut replies = 0;
    while partner
        .next_deadline()
        .is_some_and(|due| due <= Nanos(2_000))
    {
        partner.receive(Nanos(2_000), 64, &mut pool, &mut frames);
        replies += frames.len();
        pool.give_all(frames.drain(..));
    }
    assert_eq!(pool.lent(), 0);
    let counters: std::collections::HashMap<_, _> = partner.counters().into_iter().collect();
    assert_eq!(counters["partner_frames_in"], total as u64 + 1);
    assert_eq!(counters["partner_frames_out"], replies as u64 + 1);
    assert_eq!(counters["partner_dropped"], (total - replies) as u64);
}

#[test]
fn what_is_on_the_line_is_lost_with_the_link() {
    let (mut partner, mut pool) = introduced();
    let mut frames = vec![frame(&mut pool, 2_000, &ping(b"x"))];
    partner.transmit(Nanos(2_000), &mut pool, &mut frames);
    partner.link_changed(Nanos(2_001), false);
    assert!(partner.next_deadline().is_none_or(|due| due > Nanos(2_001)));
    partner.link_changed(Nanos(2_002), true);
    partner.receive(Nanos(2_002), 64, &mut pool, &mut frames);
    assert!(frames.is_empty());
    assert_eq!((pool.lent(), partner.link_lost), (0, 1));
}

#[test]
fn an_idle_partner_wants_nothing() {
    let (mut partner, mut pool) = introduced();
    let mut frames = Vec::new();
    partner.receive(Nanos(10_000), 64, &mut pool, &mut frames);
    assert_eq!(partner.next_deadline(), None);
}

#[test]
fn a_guest_that_is_gone_is_given_up() {
    let mut bench = Bench::new(1500);
    let handle = bench.connect(7, 40_000);
    bench.steps_until(1000, |bench| bench.tcp(handle).may_send());
    assert_eq!(bench.listening(), 2 * CONNECTIONS - 1);
    let mut frames = Vec::new();
    let mut calls = 0;
    while bench.listening() < 2 * CONNECTIONS {
        let due = bench.partner.next_deadline().expect("a timer");
        assert!(due > bench.now, "time goes on");
        bench.now = due;
        bench.partner.receive(due, 64, &mut bench.pool, &mut frames);
        bench.pool.give_all(frames.drain(..));
        calls += 1;
        assert!(calls < 100, "{calls} calls, at {:?}", bench.now);
    }
    assert!(bench.now < Nanos(60_000_000_000));
}
