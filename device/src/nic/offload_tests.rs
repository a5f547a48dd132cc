//! Super-frames and partial checksums, between the driver's buffers and the line.

use nic_model::counters::Drop;
use nic_model::frame::{Checksum, FCS, Frame, Gso, Segmentation};
use nic_model::segment::{self, Cut};

use crate::features::Features;
use crate::header::NetHeader;
use crate::testing::{BUFFERS, Bench, CONTROL, RX, TX, broadcast, noise, readable, writable};
use zerocopy::IntoBytes;

/// Of a driver as Linux's.
const LINUX: Features = Features::VERSION_1
    .union(Features::MRG_RXBUF)
    .union(Features::CSUM)
    .union(Features::GUEST_OFFLOADS)
    .union(Features::HOST_GSO)
    .union(Features::CTRL_VQ)
    .union(Features::CTRL_GUEST_OFFLOADS);
const HEADER: usize = 12;

/// A super-frame to everyone with `payload` octets in segments of `size`, as software leaves it.
fn super_frame(bench: &mut Bench, kind: Segmentation, size: u16, payload: usize) -> Frame {
    let ether = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
    let payload = noise(payload, 7);
    let mut bytes = Vec::new();
    let ip = match kind {
        Segmentation::Tcpv6 => ether.ipv6([7; 16], [9; 16], 64),
        _ => ether.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
    };
    match kind {
        Segmentation::Udp => ip.udp(1, 2).write(&mut bytes, &payload),
        _ => ip.tcp(1, 2, 3, 4).psh().write(&mut bytes, &payload),
    }
    .unwrap();
    let mut frame = bench.nic.port.pool.take_big();
    assert!(frame.fill(&bytes));
    frame.gso = Gso {
        kind,
        headers: 0,
        size,
    };
    segment::leave_checksum(&mut frame);
    frame
}

/// What `frame` stands for.
fn segments(bench: &mut Bench, frame: &Frame) -> Vec<Vec<u8>> {
    let cut = Cut::of(frame).unwrap();
    let mut segment = bench.nic.port.pool.take();
    let segments = (0..cut.segments())
        .map(|index| {
            assert!(cut.write(frame, index, &mut segment));
            segment.bytes().to_vec()
        })
        .collect();
    bench.nic.port.pool.give(segment);
    segments
}

/// The driver's header for `frame`, and the frame.
fn packet(frame: &Frame) -> Vec<u8> {
    let mut header = NetHeader::default();
    header.set_offloads(frame);
    // It lies; nobody looks.
    header.hdr_len.set(0xffff);
    [&header.as_bytes()[..HEADER], frame.bytes()].concat()
}

fn send(bench: &mut Bench, octets: &[u8]) {
    bench.guest.write(BUFFERS, octets);
    // As Linux does: the headers apart, the payload page by page.
    let mut at = octets.len().min(80) as u64;
    let mut pieces = vec![readable(BUFFERS, at as u32)];
    while at < octets.len() as u64 {
        let len = (octets.len() as u64 - at).min(4096);
        pieces.push(readable(BUFFERS + at, len as u32));
        at += len;
    }
    bench.post(TX, &pieces);
    bench.poll();
}

#[test]
fn what_a_driver_sends_leaves_as_segments() {
    for (kind, size) in [
        (Segmentation::Tcpv4, 1448),
        (Segmentation::Tcpv6, 1428),
        (Segmentation::Udp, 100),
        (Segmentation::Udp, 3),
    ] {
        for payload in [3000, 500, 1, 32_000] {
            if payload / usize::from(size) > segment::MAX_SEGMENTS {
                continue;
            }
            let mut bench = Bench::new(LINUX);
            let frame = super_frame(&mut bench, kind, size, payload);
            let mut expected = segments(&mut bench, &frame);
            expected
                .iter_mut()
                .for_each(|segment| segment.resize(segment.len().max(60), 0));
            let octets = packet(&frame);
            bench.nic.port.pool.give(frame);
            send(&mut bench, &octets);
            assert_eq!(bench.sent, expected, "{kind:?} {size} {payload}");
            let counters = bench.nic.counters();
            assert_eq!(counters.tx_frames, expected.len() as u64);
            assert_eq!(counters.tx_fetched, 1);
            let on_line: usize = expected.iter().map(|segment| segment.len() + FCS).sum();
            assert_eq!(counters.tx_octets, on_line as u64);
            let gso = bench.nic.queues.counters()[0].tx_gso;
            let segments = expected.len() as u64;
            if segments > 1 {
                let counted = (gso.packets, gso.bytes, gso.segments);
                assert_eq!(counted, (1, (octets.len() - HEADER) as u64, segments));
            } else {
                assert_eq!((gso.packets, gso.packets_whole), (0, 1));
            }
        }
    }
}

#[test]
fn what_cannot_be_cut_is_dropped_and_counted() {
    let mut bench = Bench::new(LINUX);
    let frame = super_frame(&mut bench, Segmentation::Tcpv4, 1448, 8000);
    let good = packet(&frame);
    bench.nic.port.pool.give(frame);
    let change = |at: usize, octet: u8| {
        let mut bad = good.clone();
        bad[at] = octet;
        bad
    };
    let malformed = [
        change(0, 0),
        change(1, 4),
        change(1, 5),
        // Neither a datagram of UDP, nor such with CWR.
        change(1, 3),
        change(1, 0x83),
        // Sizes of 168, less than needed for as few segments.
        change(6, 35),
        change(8, 17),
        change(HEADER + 14, 0x65),
        change(HEADER + 14 + 6, 0x20),
        change(HEADER + 14 + 9, 17),
        change(HEADER + 14 + 20 + 12, 0x40),
        good[..good.len() - 1].to_vec(),
    ];
    for (count, bad) in malformed.iter().enumerate() {
        send(&mut bench, bad);
        let dropped = bench.dropped(Drop::TxMalformed);
        assert_eq!(dropped, count as u64 + 1, "{count}");
    }
    // Too long: its segments, and the whole without or with what would make it a super-frame.
    send(&mut bench, &change(5, 6));
    send(&mut bench, &change(1, 0));
    let mut endless = good.clone();
    endless.resize(70_000, 0);
    send(&mut bench, &endless);
    assert_eq!(bench.dropped(Drop::TxOversize), 3);
    assert!(bench.sent.is_empty());
    // Nothing of that is a fault.
    send(&mut bench, &good);
    assert_eq!(bench.sent.len(), 6);
    // And one that the driver has not negotiated.
    let mut bench = Bench::new(LINUX - Features::HOST_TSO4);
    send(&mut bench, &good);
    assert_eq!(bench.dropped(Drop::TxMalformed), 1);
}

/// Posts `count` buffers of 1600 octets.
fn post(bench: &mut Bench, count: u64) {
    for at in 0..count {
        bench.post(RX, &[writable(BUFFERS + 1600 * at, 1600)]);
    }
}

/// What has been received since `seen` buffers: each packet's header, and its octets.
fn received(bench: &mut Bench, seen: &mut u64) -> Vec<(NetHeader, Vec<u8>)> {
    let mut packets: Vec<(NetHeader, Vec<u8>)> = Vec::new();
    let mut more = 0;
    for (_, len) in bench.used(RX) {
        let octets = bench.guest.read(BUFFERS + 1600 * *seen, len as usize);
        *seen += 1;
        if more == 0 {
            let mut header = NetHeader::default();
            header.as_mut_bytes()[..HEADER].copy_from_slice(&octets[..HEADER]);
            more = header.num_buffers.get();
            packets.push((header, octets[HEADER..].to_vec()));
        } else {
            packets.last_mut().unwrap().1.extend(octets);
        }
        more -= 1;
    }
    assert_eq!(more, 0);
    packets
}

#[test]
fn what_a_driver_takes_reaches_it_whole() {
    for (kind, gso_type, size) in [
        (Segmentation::Tcpv4, 1, 1448),
        (Segmentation::Tcpv6, 4, 1428),
        (Segmentation::Udp, 5, 1000),
    ] {
        let mut bench = Bench::new(LINUX);
        post(&mut bench, 30);
        let frame = super_frame(&mut bench, kind, size, 20_000);
        let Checksum::Partial { start, offset } = frame.checksum else {
            panic!("{frame:?}");
        };
        let octets = frame.bytes().to_vec();
        bench.arrive_frames(vec![frame]);
        let packets = received(&mut bench, &mut 0);
        let [(header, came)] = &packets[..] else {
            panic!("{}", packets.len());
        };
        assert_eq!(*came, octets);
        assert_eq!((header.flags, header.gso_type), (1, gso_type));
        assert_eq!(header.gso_size.get(), size);
        let headers = start + if kind == Segmentation::Udp { 8 } else { 20 };
        assert_eq!(header.hdr_len.get(), headers);
        assert_eq!(
            (header.csum_start.get(), header.csum_offset.get()),
            (start, offset)
        );
        let counters = bench.counters(RX);
        assert_eq!((counters.packets, counters.checksum_partial), (1, 1));
        let wire = bench.nic.counters();
        let gso = counters.gso;
        assert_eq!((gso.packets, gso.bytes), (1, octets.len() as u64));
        assert_eq!(gso.segments, wire.rx_frames);
        assert_eq!(gso.segment_bytes, wire.rx_octets - 4 * wire.rx_frames);
        assert_eq!(
            bench.nic.counters().rx_merged + 1,
            bench.nic.counters().rx_frames
        );
    }
}

#[test]
fn what_a_driver_does_not_take_is_cut_for_it() {
    let without = |features| LINUX - features;
    for (features, kind, cwr) in [
        (without(Features::GUEST_TSO4), Segmentation::Tcpv4, false),
        (without(Features::GUEST_TSO6), Segmentation::Tcpv6, false),
        (without(Features::GUEST_USO4), Segmentation::Udp, false),
        (without(Features::GUEST_ECN), Segmentation::Tcpv4, true),
        (without(Features::GUEST_CSUM), Segmentation::Tcpv4, false),
    ] {
        let mut bench = Bench::new(features);
        let mut frame = super_frame(&mut bench, kind, 1000, 20_500);
        if cwr {
            frame.bytes_mut()[14 + 20 + 13] |= 0x80;
        }
        let expected = segments(&mut bench, &frame);
        assert_eq!(expected.len(), 21);
        // Buffers come a few at a time, and another frame waits behind.
        let last = bench.nic.port.pool.take();
        let mut burst = vec![frame, last];
        assert!(burst[1].fill(&broadcast(100, 1)));
        let (mut seen, mut came) = (0, Vec::new());
        post(&mut bench, 5);
        bench.arrive_frames(std::mem::take(&mut burst));
        came.extend(received(&mut bench, &mut seen));
        assert_eq!(came.len(), 5);
        assert_eq!(bench.nic.queues.frames(), 2);
        for at in 5..22 {
            bench.post(RX, &[writable(BUFFERS + 1600 * at, 1600)]);
            bench.poll();
            came.extend(received(&mut bench, &mut seen));
        }
        let flags = if features.contains(Features::GUEST_CSUM) {
            2
        } else {
            0
        };
        for ((header, octets), expected) in came.iter().zip(&expected) {
            assert_eq!(octets, expected);
            assert_eq!((header.flags, header.gso_type), (flags, 0));
            assert_eq!(header.num_buffers.get(), 1);
        }
        assert_eq!(came.len(), 22);
        assert_eq!(came[21].1, broadcast(100, 1));
        let counters = bench.counters(RX);
        assert_eq!((counters.packets, counters.segments_made), (22, 20));
        assert_eq!((counters.checksum_none, counters.checksum_partial), (1, 0));
    }
}

#[test]
fn a_checksum_that_is_partial_is_completed_for_who_does_not_take_it() {
    for features in [LINUX, LINUX - Features::GUEST_CSUM] {
        let mut bench = Bench::new(features);
        post(&mut bench, 1);
        let mut frame = super_frame(&mut bench, Segmentation::Tcpv4, 1000, 500);
        let expected = segments(&mut bench, &frame).remove(0);
        frame.gso = Gso::default();
        let partial = frame.bytes().to_vec();
        bench.arrive_frames(vec![frame]);
        let (header, came) = received(&mut bench, &mut 0).remove(0);
        if features.contains(Features::GUEST_CSUM) {
            assert_eq!((header.flags, came), (1, partial));
            assert_eq!(
                (header.csum_start.get(), header.csum_offset.get()),
                (34, 16)
            );
        } else {
            assert_eq!((header.flags, came), (0, expected));
        }
    }
}

/// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`, and the answer.
fn set_offloads(bench: &mut Bench, data: &[u8]) -> u8 {
    let at = BUFFERS + 0x1_0000;
    bench.guest.write(at, &[&[5, 0], data].concat());
    let command = readable(at, 2 + data.len() as u32);
    bench.post(CONTROL, &[command, writable(at + 64, 1)]);
    bench.poll();
    bench.guest.read(at + 64, 1)[0]
}

#[test]
fn offloads_are_switched_off_and_on_at_once() {
    let mut bench = Bench::new(LINUX);
    let frames: Vec<_> = (0..2)
        .map(|_| super_frame(&mut bench, Segmentation::Tcpv4, 1000, 5_000))
        .collect();
    // No buffers: they wait in the FIFO while the command comes.
    bench.arrive_frames(frames);
    let off = Features::GUEST_OFFLOADS - Features::GUEST_TSO4;
    assert_eq!(set_offloads(&mut bench, &off.bits().to_le_bytes()), 0);
    assert_eq!(bench.nic.device.guest_offloads(), off);
    post(&mut bench, 20);
    bench.poll();
    let mut seen = 0;
    let came = received(&mut bench, &mut seen);
    assert_eq!(came.len(), 10, "none of them whole");
    let on = Features::GUEST_OFFLOADS;
    assert_eq!(set_offloads(&mut bench, &on.bits().to_le_bytes()), 0);
    let frame = super_frame(&mut bench, Segmentation::Tcpv4, 1000, 5_000);
    bench.arrive_frames(vec![frame]);
    assert_eq!(received(&mut bench, &mut seen).len(), 1);
}

#[test]
fn what_was_not_accepted_cannot_be_switched_on_and_a_reset_restores() {
    let features = LINUX - Features::GUEST_USO6;
    let mut bench = Bench::new(features);
    let refused = |bench: &mut Bench, data: &[u8]| {
        assert_eq!(set_offloads(bench, data), 1, "{data:?}");
        let all = features & Features::GUEST_OFFLOADS;
        assert_eq!(bench.nic.device.guest_offloads(), all);
    };
    for bits in [
        Features::GUEST_USO6.bits(),
        Features::HOST_TSO4.bits(),
        Features::VERSION_1.bits(),
        1 << 6,
        u64::MAX,
    ] {
        refused(&mut bench, &bits.to_le_bytes());
    }
    for malformed in [&[][..], &[0; 7], &[0; 9]] {
        refused(&mut bench, malformed);
    }
    assert_eq!(set_offloads(&mut bench, &[0; 8]), 0);
    assert!(bench.nic.device.guest_offloads().is_empty());
    // The same features again, a migration's log switched on: what the driver said stays.
    bench.nic.set_features(features).unwrap();
    assert!(bench.nic.device.guest_offloads().is_empty());
    bench.nic.reset();
    bench.nic.set_features(features).unwrap();
    let sends = features.intersects(Features::HOST_GSO);
    assert_eq!(bench.nic.port.host_sends_super, sends);
    let all = features & Features::GUEST_OFFLOADS;
    assert_eq!(bench.nic.device.guest_offloads(), all);

    let mut bench = Bench::new(LINUX);
    let exact = (Features::GUEST_CSUM | Features::GUEST_HDRLEN).bits();
    assert_eq!(set_offloads(&mut bench, &exact.to_le_bytes()), 1);
    let mut bench = Bench::new(LINUX | Features::GUEST_HDRLEN);
    assert_eq!(set_offloads(&mut bench, &exact.to_le_bytes()), 0);
    assert_eq!(bench.nic.device.guest_offloads(), Features::GUEST_CSUM);
    let mut bench = Bench::new(LINUX - Features::CTRL_GUEST_OFFLOADS);
    assert_eq!(set_offloads(&mut bench, &[0; 8]), 1);
}
