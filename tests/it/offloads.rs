//! Super-frames between the guest's driver and the card: what leaves as segments, over a real socket, and what a wire
//! that takes super-frames gives back, in virtual time; on rings and in buffers of every kind.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};
use nic_backend::card::Card;
use nic_backend::wire::Wire;
use nic_device::nic::Nic;
use nic_guest::memory::GuestMemory;
use nic_guest::transport::Transport;
use nic_guest::virtio_net::gso::super_frame;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::rx::RxMode;
use nic_guest::virtio_net::tx::TxLayout;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};
use nic_model::frame::{Frame, Pool};
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

use crate::support::{PATIENCE, TestNic, offered, wait_until};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Where TCP's flags are.
const FLAGS: usize = 13;

/// What a super-frame is to be.
#[derive(Clone, Copy, Debug)]
struct Shape {
    ipv6: bool,
    /// TCP's flags; UDP without.
    flags: Option<u8>,
    /// Octets of payload in each segment, and in all.
    size: u16,
    payload: usize,
}

const IDENTIFICATION: u16 = 0xfffe;
const SEQUENCE: u32 = u32::MAX - 2000;

impl Shape {
    fn all() -> impl Iterator<Item = Shape> {
        let protocols = [
            Some(ACK),
            Some(ACK | PSH | FIN),
            Some(ACK | PSH | ECE | CWR),
            None,
        ];
        let sizes = [(1428, 60_001), (536, 2 * 536), (1400, 1401), (100, 12_799)];
        let protocols = protocols
            .into_iter()
            .flat_map(|flags| [(false, flags), (true, flags)]);
        protocols.flat_map(move |(ipv6, flags)| {
            sizes.map(|(size, payload)| Shape {
                ipv6,
                flags,
                size,
                payload,
            })
        })
    }

    fn payload(self) -> Vec<u8> {
        let octet = |at: usize| (at * at / 7 + at + usize::from(self.size)) as u8;
        (0..self.payload).map(octet).collect()
    }

    /// The whole packet, and what the driver has to say of it.
    fn packet(self) -> (Vec<u8>, VirtioNetHdr) {
        let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
        let ip = if self.ipv6 {
            let header = Ipv6Header {
                source: [0xfd; 16],
                destination: [0xfc; 16],
                hop_limit: 64,
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        } else {
            let header = Ipv4Header::new(0, 64, IpNumber::TCP, [10, 77, 0, 2], [10, 77, 0, 1]);
            let mut header = header.expect("no payload is not too long");
            header.identification = IDENTIFICATION;
            IpHeaders::Ipv4(header, Default::default())
        };
        let (packet, mut bytes) = (ether.ip(ip), Vec::new());
        match self.flags {
            None => packet.udp(1234, 4321).write(&mut bytes, &self.payload()),
            Some(_) => {
                let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
                let tcp = packet
                    .tcp(1234, 4321, SEQUENCE, 500)
                    .options_raw(&options)
                    .expect("they are not too many");
                tcp.write(&mut bytes, &self.payload())
            }
        }
        .expect("it is not too long");
        if let Some(flags) = self.flags {
            let transport = if self.ipv6 { 54 } else { 34 };
            bytes[transport + FLAGS] = flags;
        }
        let header = super_frame(&mut bytes, self.size).expect("TCP or UDP");
        assert_ne!(header.gso_type, 0, "{self:?}");
        (bytes, header)
    }

    /// Asserts that `segments` are what it stands for, as a stranger reads them.
    fn assert_cut(self, segments: &[Vec<u8>]) {
        let payload = self.payload();
        let chunks: Vec<_> = payload.chunks(self.size.into()).collect();
        assert_eq!(segments.len(), chunks.len(), "{self:?}");
        let last = chunks.len() - 1;
        for (index, (bytes, chunk)) in segments.iter().zip(chunks).enumerate() {
            let what = format!("{self:?}, segment {index}");
            let packet = SlicedPacket::from_ethernet(bytes).expect(&what);
            let net = packet.net.as_ref().expect(&what);
            match net {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    let identification = IDENTIFICATION.wrapping_add(index as u16);
                    assert_eq!(header.identification, identification, "{what}");
                    let checksum = header.calc_header_checksum();
                    assert_eq!(header.header_checksum, checksum, "{what}");
                }
                NetSlice::Ipv6(_) => assert!(self.ipv6, "{what}"),
                NetSlice::Arp(_) => panic!("{what}: ARP"),
            }
            let (got, checksum, right) = match packet.transport.as_ref().expect(&what) {
                TransportSlice::Tcp(tcp) => {
                    let header = tcp.to_header();
                    let sequence = SEQUENCE.wrapping_add((index * usize::from(self.size)) as u32);
                    assert_eq!(header.sequence_number, sequence, "{what}");
                    let mut flags = self.flags.expect("TCP");
                    if index > 0 {
                        flags &= !CWR;
                    }
                    if index < last {
                        flags &= !(FIN | PSH);
                    }
                    assert_eq!(tcp.slice()[FLAGS], flags, "{what}");
                    let payload = tcp.payload();
                    let right = match net {
                        NetSlice::Ipv4(ip) => {
                            header.calc_checksum_ipv4(&ip.header().to_header(), payload)
                        }
                        NetSlice::Ipv6(ip) => {
                            header.calc_checksum_ipv6(&ip.header().to_header(), payload)
                        }
                        NetSlice::Arp(_) => unreachable!(),
                    };
                    (payload, header.checksum, right)
                }
                TransportSlice::Udp(udp) => {
                    let header = udp.to_header();
                    assert_eq!(usize::from(header.length), 8 + chunk.len(), "{what}");
                    let payload = udp.payload();
                    let right = match net {
                        NetSlice::Ipv4(ip) => {
                            header.calc_checksum_ipv4(&ip.header().to_header(), payload)
                        }
                        NetSlice::Ipv6(ip) => {
                            header.calc_checksum_ipv6(&ip.header().to_header(), payload)
                        }
                        NetSlice::Arp(_) => unreachable!(),
                    };
                    (payload, header.checksum, right)
                }
                _ => panic!("{what}: neither TCP nor UDP"),
            };
            assert_eq!(got, chunk, "{what}");
            assert_eq!(checksum, right.expect("it is not too long"), "{what}");
        }
    }
}

/// Rings of every kind, and buffers: small enough for many of 64 KiB each.
fn drivers() -> impl Iterator<Item = ProbeOptions> {
    let varied = f::RING_PACKED | f::INDIRECT_DESC | f::EVENT_IDX | f::IN_ORDER | f::MRG_RXBUF;
    let rings = [
        0,
        f::EVENT_IDX | f::IN_ORDER,
        f::INDIRECT_DESC | f::EVENT_IDX,
        f::RING_PACKED | f::EVENT_IDX,
        f::RING_PACKED | f::INDIRECT_DESC,
        f::RING_PACKED | f::INDIRECT_DESC | f::EVENT_IDX | f::IN_ORDER,
    ];
    let layouts = [
        TxLayout::Single,
        TxLayout::HeaderSeparate,
        // As Linux does: headers apart, the payload page by page.
        TxLayout::Cut([&[80][..], &[4096; 15]].concat()),
    ];
    let both = rings
        .into_iter()
        .flat_map(|ring| [ring, ring | f::MRG_RXBUF]);
    both.enumerate().map(move |(number, chosen)| ProbeOptions {
        features: f::SUPPORTED & !varied | chosen,
        queue_size: if chosen & f::RING_PACKED == 0 { 64 } else { 77 },
        tx_layout: layouts[number % layouts.len()].clone(),
        ..ProbeOptions::default()
    })
}

/// Sends it and waits until `count` frames have come.
fn echo<T: Transport>(guest: &mut VirtnetInfo<T>, shape: Shape, count: usize) -> Vec<Received> {
    let (packet, header) = shape.packet();
    guest.start_xmit(0, &packet, &header).expect("room");
    guest.flush(0);
    let mut received = Vec::new();
    while received.len() < count {
        let before = received.len();
        let take = |frame: nic_guest::virtio_net::rx::RxFrame<'_>| {
            let segments = frame.shared_info().gso_segs;
            received.push(Received {
                bytes: frame.to_vec(),
                header: frame.hdr,
                segments,
            });
        };
        guest.poll(0, 64, take).expect("sound rings");
        if received.len() == before {
            assert!(guest.wait(PATIENCE) > 0, "{shape:?}: {before} of {count}");
        }
    }
    received
}

struct Received {
    bytes: Vec<u8>,
    header: VirtioNetHdr,
    segments: u16,
}

fn bytes(received: Vec<Received>) -> Vec<Vec<u8>> {
    received.into_iter().map(|frame| frame.bytes).collect()
}

fn assert_mode<T: Transport>(guest: &VirtnetInfo<T>, options: &ProbeOptions) {
    assert_eq!(
        guest.features() & f::SEGMENTATION,
        offered(1).bits() & f::SEGMENTATION
    );
    let mode = if options.features & f::MRG_RXBUF == 0 {
        RxMode::Big
    } else {
        RxMode::Mergeable
    };
    assert_eq!(guest.rq[0].mode(), mode);
}

#[test]
fn super_frames_come_back_from_a_plug_as_segments() {
    for options in drivers() {
        let nic = TestNic::new("loopback");
        let mut guest = nic.guest(&options);
        assert_mode(&guest, &options);
        let (mut sent, mut segments) = (0, 0);
        for shape in Shape::all() {
            let count = shape.payload.div_ceil(shape.size.into());
            let received = echo(&mut guest, shape, count);
            assert!(received.iter().all(|frame| frame.header.gso_type == 0));
            shape.assert_cut(&bytes(received));
            sent += 1;
            segments += count as u64;
        }
        assert_eq!(guest.stats().0.drops, 0);
        nic.assert_balanced();
        let status = nic.status();
        let port = &status.nic.port.counters;
        assert_eq!(
            [port.tx_fetched, port.tx_frames, port.rx_delivered],
            [sent, segments, segments]
        );
        assert_eq!(port.tx_segments_made, segments - sent);
        assert_eq!(port.drops.total(), 0, "{status:#?}");
    }
}

#[test]
fn workers_lend_buffers_for_as_many_as_come() {
    const SENT: u64 = 500;
    let nic = TestNic::with("sink", |config| {
        config.workers = 2;
        config.features = offered(2);
        config.port.queue_pairs = 2;
        config.port.speed = "1G".parse().expect("a speed");
    });
    let mut guest = nic.guest(&ProbeOptions {
        queue_pairs: 2,
        ..ProbeOptions::default()
    });
    let shape = Shape {
        ipv6: false,
        flags: Some(ACK),
        size: 1000,
        payload: 3000,
    };
    let (packet, header) = shape.packet();
    for number in 0..SENT {
        let queue = (number % 2) as u16;
        // Without room, the card has to take some first.
        wait_until("room for a packet", || {
            let sent = guest.start_xmit(queue, &packet, &header).is_ok();
            guest.flush(queue);
            sent
        });
    }
    wait_until("all segments to be sent", || {
        nic.status().nic.port.counters.tx_frames == 3 * SENT
    });
    nic.assert_balanced();
}

#[test]
fn a_guest_that_may_not_send_them_has_them_dropped() {
    let nic = TestNic::new("loopback");
    let refused = [
        (true, f::HOST_TSO4),
        (true, f::HOST_ECN),
        (false, f::HOST_USO),
    ];
    for (number, (tcp, without)) in refused.into_iter().enumerate() {
        let mut guest = nic.guest(&ProbeOptions::default().without(without));
        let shape = Shape {
            ipv6: false,
            flags: tcp.then_some(ACK | CWR),
            size: 1000,
            payload: 5000,
        };
        let (packet, header) = shape.packet();
        guest.start_xmit(0, &packet, &header).expect("room");
        guest.flush(0);
        wait_until("it to be dropped", || {
            let drops = nic.status().nic.port.counters.drops;
            drops.get(nic_model::counters::Drop::TxMalformed) == 1 + number as u64
        });
        // The queue goes on.
        let shape = Shape {
            ipv6: true,
            flags: Some(ACK),
            ..shape
        };
        shape.assert_cut(&bytes(echo(&mut guest, shape, 5)));
        guest.remove().expect("a reset");
    }
    nic.assert_balanced();
}

#[test]
fn the_driver_switches_receive_offloads_over_the_socket() {
    let nic = TestNic::new("loopback");
    for features in [f::USUAL, f::SUPPORTED] {
        let mut guest = nic.guest(&ProbeOptions {
            features,
            ..ProbeOptions::default()
        });
        for on in [false, true, false] {
            let before = nic.status().nic.control;
            guest.set_gro_hw(on).expect("it is possible");
            let after = nic.status().nic.control;
            assert_eq!(after.ok, before.ok + 1);
            assert_eq!(guest.guest_offloads() == f::GUEST_CSUM, !on);
        }
        guest.remove().expect("a reset");
    }
    let mut guest = nic.guest(&ProbeOptions::default().without(f::CTRL_GUEST_OFFLOADS));
    guest.set_gro_hw(false).expect_err("it was not negotiated");
}

/// A plug that takes super-frames whole, and gives them back as they are.
#[derive(Default)]
struct Trunk(Vec<Frame>);

impl Wire for Trunk {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let due = self.0.iter().take_while(|frame| frame.arrival <= now);
        let due = due.count().min(room);
        for sent in self.0.drain(..due) {
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
        self.0.append(frames);
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.0.first().map(|frame| frame.arrival)
    }

    fn has_super_frames(&self) -> bool {
        true
    }
}

fn guest_on_a_trunk(options: &ProbeOptions) -> VirtnetInfo<InProcess> {
    let nic = Nic::new(&PortConfig::default(), offered(1));
    let card = Card::new(nic, Box::new(Trunk::default()), Nanos::ZERO);
    let memory = GuestMemory::new(32 << 20).expect("guest memory");
    let transport = InProcess::new(card, memory).expect("a mapping");
    VirtnetInfo::probe(transport, options).expect("a device")
}

#[test]
fn super_frames_arrive_whole_where_the_driver_takes_them_and_cut_where_it_does_not() {
    for options in drivers() {
        let mut guest = guest_on_a_trunk(&options);
        assert_mode(&guest, &options);
        for shape in Shape::all() {
            let count = shape.payload.div_ceil(shape.size.into());
            let (packet, header) = shape.packet();
            for whole in [true, false, true] {
                guest.set_gro_hw(whole).expect("it is possible");
                let expected = if whole { 1 } else { count };
                let received = echo(&mut guest, shape, expected);
                if !whole {
                    assert!(received.iter().all(|frame| frame.header.gso_type == 0));
                    shape.assert_cut(&bytes(received));
                    continue;
                }
                let frame = &received[0];
                assert_eq!(frame.bytes, packet, "{shape:?}");
                let told = |header: &VirtioNetHdr| {
                    let VirtioNetHdr {
                        gso_type,
                        gso_size,
                        hdr_len,
                        csum_start,
                        csum_offset,
                        ..
                    } = *header;
                    (gso_type, gso_size, hdr_len, csum_start, csum_offset)
                };
                assert_eq!(told(&frame.header), told(&header), "{shape:?}");
                assert_eq!(usize::from(frame.segments), count, "{shape:?}");
            }
        }
        assert_eq!(guest.stats().0.drops, 0);
        let card = guest.transport.card();
        let counters = card.borrow().nic.counters();
        assert_eq!(counters.drops.total(), 0, "{counters:#?}");
    }
}

#[test]
fn each_kind_of_super_frame_is_cut_for_a_driver_that_did_not_take_it() {
    for (without, cut) in [
        (f::GUEST_TSO4, &[(false, Some(ACK))][..]),
        (f::GUEST_TSO6, &[(true, Some(ACK))]),
        (
            f::GUEST_ECN,
            &[(false, Some(ACK | CWR)), (true, Some(ACK | CWR))],
        ),
        (f::GUEST_USO4, &[(false, None)]),
        (f::GUEST_USO6, &[(true, None)]),
    ] {
        let mut guest = guest_on_a_trunk(&ProbeOptions::default().without(without));
        for (ipv6, flags) in [
            (false, Some(ACK)),
            (true, Some(ACK)),
            (false, Some(ACK | CWR)),
            (true, Some(ACK | CWR)),
            (false, None),
            (true, None),
        ] {
            let shape = Shape {
                ipv6,
                flags,
                size: 1000,
                payload: 4001,
            };
            // What is no segment of TCP at all is none with CWR either.
            let of_kind = |flags: Option<u8>| (ipv6, flags.map(|flags| flags & !CWR));
            let is_cut = cut.contains(&(ipv6, flags))
                || (without != f::GUEST_ECN && cut.contains(&of_kind(flags)));
            let received = echo(&mut guest, shape, if is_cut { 5 } else { 1 });
            if is_cut {
                shape.assert_cut(&bytes(received));
            } else {
                assert_eq!(received[0].bytes, shape.packet().0, "{shape:?}");
            }
        }
    }
}
