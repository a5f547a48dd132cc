//! Segments that the card merges on their way to the guest (RSC, LRO), and datagrams that it sends as fragments (UFO): between the
//! guest's driver and the card, in virtual time and over a real socket.

use etherparse::defrag::IpDefragPool;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use nic_backend::card::Card;
use nic_backend::wire::Wire;
use nic_device::nic::Nic;
use nic_guest::memory::GuestMemory;
use nic_guest::transport::Transport;
use nic_guest::virtio_net::gso::{RscInfo, ufo_frame};
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};
use nic_model::counters::Drop;
use nic_model::frame::{Frame, Pool};
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

use crate::support::{PATIENCE, TestNic, offered, wait_until};

const GSO_UDP: u8 = 3;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// A wire that gives what it was given, all at once, and takes super-frames as they are.
#[derive(Default)]
struct Plug {
    frames: Vec<Vec<u8>>,
    sent: Vec<Frame>,
}

impl Wire for Plug {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let count = self.frames.len().min(room);
        for bytes in self.frames.drain(..count) {
            let mut frame = pool.take();
            assert!(frame.fill(&bytes));
            frame.arrival = now;
            frames.push(frame);
        }
        let due = self.sent.iter().take_while(|frame| frame.arrival <= now);
        let due = due.count().min(room - count);
        for sent in self.sent.drain(..due) {
            let mut back = if sent.is_super() {
                pool.take_big_received().expect("room for one")
            } else {
                pool.take()
            };
            assert!(back.fill(sent.bytes()));
            (back.checksum, back.gso) = (sent.checksum, sent.gso);
            back.arrival = now;
            pool.give(sent);
            frames.push(back);
        }
    }

    fn transmit(&mut self, _: Nanos, _: &mut Pool, frames: &mut Vec<Frame>) {
        self.sent.append(frames);
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let waiting = (!self.frames.is_empty()).then_some(Nanos::ZERO);
        waiting.or(self.sent.first().map(|frame| frame.arrival))
    }

    fn has_super_frames(&self) -> bool {
        true
    }
}

fn plugged(frames: &[Vec<u8>], lro: bool, options: &ProbeOptions) -> VirtnetInfo<InProcess> {
    let config = PortConfig {
        lro,
        link: false,
        ..PortConfig::default()
    };
    let plug = Plug {
        frames: frames.to_vec(),
        ..Plug::default()
    };
    let card = Card::new(Nic::new(&config, offered(1)), Box::new(plug), Nanos::ZERO);
    let memory = GuestMemory::new(32 << 20).expect("guest memory");
    let transport = InProcess::new(card, memory).expect("a mapping");
    VirtnetInfo::probe(transport, options).expect("a device")
}

/// A received frame.
#[derive(Debug)]
struct Received {
    bytes: Vec<u8>,
    header: VirtioNetHdr,
    segments: u16,
    rsc: RscInfo,
}

/// Receives until `count` frames have come.
fn receive<T: Transport>(guest: &mut VirtnetInfo<T>, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    while received.len() < count {
        let before = received.len();
        let take = |frame: nic_guest::virtio_net::rx::RxFrame<'_>| {
            received.push(Received {
                bytes: frame.to_vec(),
                header: frame.hdr,
                segments: frame.shared_info().gso_segs,
                rsc: frame.rsc,
            });
        };
        guest.poll(0, 64, take).expect("sound rings");
        if received.len() == before {
            assert!(guest.wait(PATIENCE) > 0, "{before} of {count}");
        }
    }
    received
}

/// Segments of one stream of TCP to everyone, each with `payload` octets, the last pushed; and the stream.
fn stream(ipv6: bool, payloads: &[usize]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut segments, mut all) = (Vec::new(), Vec::new());
    for (index, &payload) in payloads.iter().enumerate() {
        let octets: Vec<u8> = (0..payload)
            .map(|at| (at * at / 3 + index * 11 + at) as u8)
            .collect();
        let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
        let ip = if ipv6 {
            ether.ipv6([7; 16], [9; 16], 64)
        } else {
            let (from, to) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let ip = etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::TCP, from, to);
            let mut ip = ip.expect("short");
            ip.identification = 0xfffe_u16.wrapping_add(index as u16);
            ether.ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        };
        let sequence = 0xffff_f000_u32.wrapping_add(all.len() as u32);
        let tcp = ip.tcp(1234, 80, sequence, 500).ack(77);
        let tcp = if index + 1 == payloads.len() {
            tcp.psh()
        } else {
            tcp
        };
        let mut bytes = Vec::new();
        tcp.write(&mut bytes, &octets).expect("short");
        segments.push(bytes);
        all.extend(octets);
    }
    (segments, all)
}

/// What of `frame` is TCP's payload, as a stranger finds it.
fn payload(frame: &[u8]) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.payload().to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Drivers with buffers of each kind that take super-frames.
fn drivers() -> impl Iterator<Item = ProbeOptions> {
    let varied = f::RING_PACKED | f::IN_ORDER | f::MRG_RXBUF | f::RSC_EXT | f::HASH_REPORT;
    let chosen = [
        f::MRG_RXBUF,
        f::MRG_RXBUF | f::RSC_EXT | f::RING_PACKED,
        f::RSC_EXT | f::IN_ORDER,
        f::RSC_EXT | f::HASH_REPORT | f::MRG_RXBUF,
    ];
    chosen.into_iter().map(move |chosen| ProbeOptions {
        features: f::SUPPORTED & !varied | chosen,
        queue_size: 64,
        ..ProbeOptions::default()
    })
}

#[test]
fn a_stream_reaches_a_driver_that_takes_it_as_one_super_frame() {
    let payloads = [[1000; 19].as_slice(), &[123]].concat();
    for options in drivers() {
        for ipv6 in [false, true] {
            let (segments, all) = stream(ipv6, &payloads);
            let mut guest = plugged(&segments, true, &options);
            let card = guest.transport.card();
            card.borrow_mut().nic.port.set_link(Nanos::ZERO, true);
            let frame = receive(&mut guest, 1).remove(0);
            assert_eq!(payload(&frame.bytes), all);
            assert_eq!(frame.segments, 20);
            let kind = if ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
            assert_eq!((frame.header.gso_type, frame.header.gso_size), (kind, 1000));
            let transport = if ipv6 { 54 } else { 34 };
            assert_eq!(frame.header.hdr_len, transport + 20);
            // Where the checksum is the device says, or the driver finds out.
            let start = (frame.header.csum_start, frame.header.csum_offset);
            assert_eq!(start, (transport, 16));
            let told = guest.features() & f::RSC_EXT != 0;
            let segments = if told { 20 } else { 0 };
            assert_eq!(
                frame.rsc,
                RscInfo {
                    segments,
                    dup_acks: 0
                }
            );
            let card = card.borrow();
            let counters = card.nic.counters();
            assert_eq!((counters.rx_frames, counters.rx_merged), (20, 19));
            assert_eq!((counters.rx_delivered, counters.receive_balance(0)), (1, 0));
            // What the driver can ask for: packets and bytes, and those that were coalesced.
            let gso = card.nic.device.counters_of(0).gso;
            assert_eq!((gso.packets, gso.bytes), (1, frame.bytes.len() as u64));
            let octets = counters.rx_octets - 4 * 20;
            assert_eq!((gso.segments, gso.segment_bytes), (20, octets));
        }
    }
}

#[test]
fn a_driver_that_takes_none_or_switched_it_off_gets_what_came() {
    let payloads = [[500; 7].as_slice(), &[123]].concat();
    let (segments, _) = stream(false, &payloads);
    let usual = ProbeOptions::default();
    for (lro, options, off) in [
        (false, usual.clone(), false),
        (true, usual.clone().without(f::GUEST_TSO4), false),
        (true, usual.clone().without(f::GUEST_CSUM), false),
        (true, usual, true),
    ] {
        let mut guest = plugged(&segments, lro, &options);
        if off {
            guest.set_gro_hw(false).expect("it is possible");
        }
        let card = guest.transport.card();
        card.borrow_mut().nic.port.set_link(Nanos::ZERO, true);
        let received = receive(&mut guest, segments.len());
        let bytes: Vec<_> = received.into_iter().map(|frame| frame.bytes).collect();
        assert_eq!(bytes, segments);
        assert_eq!(card.borrow().nic.counters().rx_merged, 0);
    }
}

#[test]
fn a_stream_comes_back_over_a_socket_in_fewer_frames() {
    const STREAMS: usize = 50;
    let nic = TestNic::with("loopback", |config| config.port.lro = true);
    for features in [f::USUAL, f::SUPPORTED] {
        let mut guest = nic.guest(&ProbeOptions {
            features,
            ..ProbeOptions::default()
        });
        let before = nic.status().nic.port.counters.rx_merged;
        let (segments, all) = stream(true, &[[1400; 15].as_slice(), &[1]].concat());
        for _ in 0..STREAMS {
            for segment in &segments {
                guest
                    .start_xmit(0, segment, &VirtioNetHdr::default())
                    .expect("room");
            }
            guest.flush(0);
            // How many come together depends on when the worker looks.
            let mut got = Vec::new();
            while got.len() < all.len() {
                for frame in receive(&mut guest, 1) {
                    assert!(frame.rsc.segments == 0 || frame.rsc.segments == frame.segments);
                    got.extend(payload(&frame.bytes));
                }
            }
            assert_eq!(got, all);
        }
        assert_eq!(guest.stats().0.drops, 0);
        let merged = nic.status().nic.port.counters.rx_merged - before;
        assert!(merged > 0 && merged <= 15 * STREAMS as u64, "{merged}");
        guest.remove().expect("a reset");
    }
    nic.assert_balanced();
}

/// A datagram of UDP to everyone with `payload` octets, and what the driver says of it.
fn datagram(ipv6: bool, payload: usize, size: u16) -> (Vec<u8>, VirtioNetHdr) {
    let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
    let octets: Vec<u8> = (0..payload).map(|at| (at * at / 7 + at) as u8).collect();
    let mut bytes = Vec::new();
    let ip = if ipv6 {
        ether.ipv6([7; 16], [9; 16], 64)
    } else {
        ether.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    ip.udp(1234, 4321)
        .write(&mut bytes, &octets)
        .expect("short");
    let header = ufo_frame(&mut bytes, size).expect("UDP");
    assert_eq!(header.gso_type, GSO_UDP);
    (bytes, header)
}

/// Asserts that `fragments` are of `datagram`, as a stranger puts them together.
fn assert_fragments(fragments: &[Vec<u8>], datagram: &[u8]) {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    for bytes in fragments {
        let packet = SlicedPacket::from_ethernet(bytes).expect("a packet");
        assert!(packet.is_ip_payload_fragmented() && whole.is_none());
        let got = pool.process_sliced_packet(&packet, (), ());
        whole = got.expect("it fits the others");
    }
    let whole = whole.expect("all of them").payload;
    let transport = datagram.len() - whole.len();
    // But for the checksum, which the driver had left to the device.
    assert_eq!(whole[..6], datagram[transport..transport + 6]);
    assert_ne!(whole[6..8], [0, 0]);
    assert_eq!(whole[8..], datagram[transport + 8..]);
}

#[test]
fn a_datagram_leaves_as_fragments() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    assert_ne!(guest.features() & f::HOST_UFO, 0);
    for ipv6 in [false, true] {
        for (payload, size) in [(60_000, 1448), (3000, 1480), (2000, 8 * 8), (1480, 1480)] {
            let size = if ipv6 { size.min(1448) } else { size };
            let (bytes, header) = datagram(ipv6, payload, size);
            guest.start_xmit(0, &bytes, &header).expect("room");
            guest.flush(0);
            let count = (payload + 8).div_ceil(size.into());
            let received = receive(&mut guest, count);
            assert!(received.iter().all(|frame| frame.header.gso_type == 0));
            let fragments: Vec<_> = received.into_iter().map(|frame| frame.bytes).collect();
            assert_fragments(&fragments, &bytes);
        }
    }
    nic.assert_balanced();
}

#[test]
fn a_datagram_that_stands_for_fragments_arrives_whole_or_cut() {
    for without in [0, f::MRG_RXBUF] {
        let options = ProbeOptions {
            queue_size: 64,
            ..ProbeOptions::default().without(without)
        };
        let mut guest = plugged(&[], false, &options);
        guest
            .transport
            .card()
            .borrow_mut()
            .nic
            .port
            .set_link(Nanos::ZERO, true);
        for ipv6 in [false, true] {
            let (bytes, header) = datagram(ipv6, 20_000, 1000);
            for whole in [true, false, true] {
                guest.set_gro_hw(whole).expect("it is possible");
                guest.start_xmit(0, &bytes, &header).expect("room");
                guest.flush(0);
                let received = receive(&mut guest, if whole { 1 } else { 21 });
                if whole {
                    let frame = &received[0];
                    assert_eq!(frame.bytes, bytes);
                    let VirtioNetHdr {
                        gso_type,
                        gso_size,
                        hdr_len,
                        ..
                    } = frame.header;
                    assert_eq!((gso_type, gso_size), (GSO_UDP, 1000));
                    assert_eq!(hdr_len, header.hdr_len);
                    assert_eq!(frame.segments, 21);
                } else {
                    let fragments: Vec<_> = received.into_iter().map(|frame| frame.bytes).collect();
                    assert_fragments(&fragments, &bytes);
                }
            }
        }
    }
}

#[test]
fn datagrams_and_headers_that_cannot_be_are_dropped_and_counted() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    let (bytes, header) = datagram(false, 9_000, 1000);
    let malformed = [
        VirtioNetHdr {
            gso_size: 0,
            ..header
        },
        VirtioNetHdr {
            gso_size: 7,
            ..header
        },
        VirtioNetHdr { flags: 0, ..header },
        VirtioNetHdr {
            csum_offset: 16,
            ..header
        },
        VirtioNetHdr {
            gso_type: GSO_UDP | 0x80,
            ..header
        },
    ];
    let count = |drop| nic.status().nic.port.counters.drops.get(drop);
    for (before, header) in (0..).zip(malformed) {
        guest.start_xmit(0, &bytes, &header).expect("room");
        guest.flush(0);
        wait_until("it to be dropped", || {
            count(Drop::TxMalformed) == before + 1
        });
    }
    // More fragments than anybody needs, and longer ones than the port's.
    let (many, header) = datagram(false, 60_000, 8);
    guest.start_xmit(0, &many, &header).expect("room");
    let long = VirtioNetHdr {
        gso_size: 1488,
        ..header
    };
    guest.start_xmit(0, &many, &long).expect("room");
    guest.flush(0);
    let all = malformed.len() as u64 + 1;
    wait_until("them to be dropped", || {
        (count(Drop::TxMalformed), count(Drop::TxOversize)) == (all, 1)
    });
    // The queue goes on.
    let (bytes, header) = datagram(false, 3000, 1000);
    guest.start_xmit(0, &bytes, &header).expect("room");
    guest.flush(0);
    let fragments = receive(&mut guest, 4).into_iter().map(|frame| frame.bytes);
    assert_fragments(&fragments.collect::<Vec<_>>(), &bytes);
    guest.remove().expect("a reset");
    let mut guest = nic.guest(&ProbeOptions::default().without(f::HOST_UFO));
    guest.start_xmit(0, &bytes, &header).expect("room");
    guest.flush(0);
    wait_until("it to be dropped", || count(Drop::TxMalformed) == all + 1);
    nic.assert_balanced();
}

#[test]
fn lengths_of_headers_that_are_said_to_be_exact_are_compared() {
    let nic = TestNic::new("loopback");
    let inexact = || nic.status().nic.port.counters.tx_headers_inexact;
    for (without, wrong) in [(0, 3), (f::GUEST_HDRLEN, 0)] {
        let mut guest = nic.guest(&ProbeOptions::default().without(without));
        let (bytes, header) = datagram(false, 3000, 1000);
        let before = inexact();
        let lengths = [header.hdr_len, header.hdr_len - 8, 0, 0xffff];
        for hdr_len in lengths {
            let header = VirtioNetHdr { hdr_len, ..header };
            guest.start_xmit(0, &bytes, &header).expect("room");
            guest.flush(0);
            // All the same, it is cut as it should be.
            let fragments = receive(&mut guest, 4).into_iter().map(|frame| frame.bytes);
            assert_fragments(&fragments.collect::<Vec<_>>(), &bytes);
        }
        assert_eq!(inexact() - before, wrong);
        guest.remove().expect("a reset");
    }
    nic.assert_balanced();
}
