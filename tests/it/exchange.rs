//! Frames to a loopback plug and back: every octet, in order, whatever was negotiated.

use nic_backend::patience::PollMode;
use nic_guest::transport::Transport;
use nic_guest::virtio_net::header::{VIRTIO_NET_HDR_F_DATA_VALID, VirtioNetHdr};
use nic_guest::virtio_net::rx::RxFrame;
use nic_guest::virtio_net::tx::{TxLayout, XmitError};
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};
use nic_model::counters::Drop;

use crate::support::{PATIENCE, TestNic, numbered_frame, wait_until};

/// Sends `count` frames that `make` writes and gives what comes back to `check`, `window` under way at most.
///
/// It never looks at a ring but after an interrupt: one that is lost, or a kick, fails the test.
fn pump<T: Transport>(
    nic: &TestNic,
    guest: &mut VirtnetInfo<T>,
    count: u32,
    window: u16,
    mut make: impl FnMut(u32, &mut Vec<u8>) -> VirtioNetHdr,
    mut check: impl FnMut(u32, &RxFrame<'_>),
) {
    let (mut sent, mut received) = (0, 0);
    let mut frame = Vec::new();
    while received < count {
        while sent < count && sent - received < u32::from(window) {
            frame.clear();
            let header = make(sent, &mut frame);
            match guest.start_xmit(0, &frame, &header) {
                Ok(()) => sent += 1,
                Err(XmitError::Busy) => break,
                Err(error) => panic!("frame {sent}: {error}"),
            }
        }
        guest.flush(0);
        let before = received;
        guest
            .poll(0, 64, |frame| {
                check(received, &frame);
                received += 1;
            })
            .expect("sound rings");
        if received == before {
            let interrupts = guest.wait(PATIENCE);
            assert!(
                interrupts > 0,
                "{received} of {sent} came back, then nothing: {:#?}",
                nic.status()
            );
        }
    }
}

/// [`pump`] for a list of frames that come back as they are, over and over until there were `count`.
fn pump_list<T: Transport>(
    nic: &TestNic,
    guest: &mut VirtnetInfo<T>,
    frames: &[Vec<u8>],
    count: u32,
) {
    let nth = |n: u32| &frames[n as usize % frames.len()];
    let window = guest.rq[0].vq.size();
    let make = |n, frame: &mut Vec<u8>| {
        frame.extend(nth(n));
        VirtioNetHdr::default()
    };
    pump(nic, guest, count, window, make, |n, frame| {
        assert_eq!(&frame.to_vec(), nth(n), "frame {n}");
    });
    let before = guest.stats().1.packets;
    guest.sq[0].free_old_xmit().expect("a sound ring");
    assert!(guest.stats().1.packets >= before);
    assert_eq!(guest.sq[0].vq.outstanding(), 0, "a completion is missing");
}

/// `count` frames of all lengths from the shortest to `longest`.
fn frames(count: u32, longest: usize) -> Vec<Vec<u8>> {
    let len = |n: u32| 60 + (n as usize * 197) % (longest - 59);
    let mut frames: Vec<_> = (0..count).map(|n| numbered_frame(n, len(n))).collect();
    frames[0] = numbered_frame(0, longest);
    frames
}

/// Asserts that `count` frames went out and came back, and that nothing else happened.
fn assert_all_passed(nic: &TestNic, count: u64) {
    nic.assert_balanced();
    let status = nic.status();
    let port = &status.nic.port.counters;
    let counts = [
        port.tx_fetched,
        port.tx_frames,
        port.rx_frames,
        port.rx_delivered,
    ];
    assert_eq!(counts, [count; 4], "{status:#?}");
    assert_eq!(port.drops.total(), 0, "{status:#?}");
    let queues = &status.nic.queues;
    assert_eq!([queues[0].packets, queues[1].packets], [count; 2]);
    assert!(queues.iter().all(|queue| queue.faults == 0), "{queues:#?}");
}

/// The features that are combined.
const COMBINED: [u64; 5] = [
    f::RING_PACKED,
    f::INDIRECT_DESC,
    f::EVENT_IDX,
    f::IN_ORDER,
    f::MRG_RXBUF,
];

/// Features that are there in half of the combinations, in which each of the others is there as often as not.
const CHECKSUMS: u64 = f::CSUM | f::GUEST_CSUM;

/// What all combinations have. Super-frames would need buffers of 64 KiB each: see `offloads`.
const ALWAYS: u64 = f::SUPPORTED & !f::SEGMENTATION & !CHECKSUMS;

fn feature_sets() -> Vec<u64> {
    let all = COMBINED.iter().fold(0, |all, feature| all | feature);
    let set = |number: u32| {
        let bits = COMBINED.iter().enumerate();
        let chosen = bits.filter(|(bit, _)| number >> bit & 1 == 1);
        let chosen = chosen.fold(0, |all, (_, feature)| all | feature);
        let checksums = u64::from(number.count_ones() % 2) * CHECKSUMS;
        ALWAYS & !all | chosen | checksums
    };
    let mut sets: Vec<_> = (0..1 << COMBINED.len()).map(set).collect();
    // Legacy drivers: a header of 10 octets, and of 12.
    sets.extend([
        ALWAYS & !all & !f::VERSION_1,
        (ALWAYS & !f::VERSION_1 & !f::RING_PACKED) | CHECKSUMS,
    ]);
    sets
}

/// Ring sizes, layouts of transmitted frames, and how many frames.
fn runs(packed: bool) -> Vec<(u16, TxLayout, u32)> {
    let mut runs = vec![
        (1, TxLayout::Single, 60),
        (2, TxLayout::HeaderSeparate, 100),
        (4, TxLayout::Single, 150),
        (16, TxLayout::Cut(vec![4, 4, 4, 20]), 250),
        (64, TxLayout::Cut(vec![1; 31]), 250),
        (256, TxLayout::HeaderSeparate, 600),
        (1024, TxLayout::Single, 1200),
    ];
    if packed {
        // No powers of two (VIRTIO 1.3, 2.8.10.1).
        runs.extend([
            (3, TxLayout::HeaderSeparate, 100),
            (7, TxLayout::Cut(vec![4, 30]), 150),
            (100, TxLayout::Cut(vec![4, 4, 4, 20]), 350),
        ]);
    }
    runs
}

fn every_combination(poll: PollMode) {
    let frames = frames(1000, 1514);
    for features in feature_sets() {
        let nic = TestNic::with("loopback", |config| config.poll = poll);
        let mut total = 0;
        let mut transport = None;
        for (size, layout, count) in runs(features & f::RING_PACKED != 0) {
            let options = ProbeOptions {
                features,
                queue_size: size,
                tx_layout: layout,
                ..ProbeOptions::default()
            };
            // The device is reset and probed again, but for the first time.
            let mut guest = match transport.take() {
                None => nic.guest(&options),
                Some(transport) => VirtnetInfo::probe(transport, &options).expect("a device"),
            };
            assert_eq!(guest.features() & !features, 0);
            for feature in COMBINED {
                assert_eq!(guest.features() & feature, features & feature);
            }
            pump_list(&nic, &mut guest, &frames, count);
            total += u64::from(count);
            assert_eq!(guest.stats().0.drops, 0);
            transport = Some(guest.remove().expect("a reset"));
        }
        assert_all_passed(&nic, total);
    }
}

#[test]
fn every_combination_of_features_rings_and_layouts_asleep() {
    every_combination(PollMode::Never);
}

#[test]
fn every_combination_of_features_rings_and_layouts_polling_for_a_while() {
    every_combination(PollMode::Adaptive);
}

#[test]
fn every_combination_of_features_rings_and_layouts_polling() {
    every_combination(PollMode::Always);
}

#[test]
fn jumbo_frames_span_as_many_buffers_as_they_need() {
    const LONGEST: usize = 9014;
    let frames = frames(500, LONGEST);
    let mergeable = f::SUPPORTED;
    // Ring sizes and lengths of receive buffers; a driver refills half a ring at once, so that has to hold a frame.
    for (features, size, buffer) in [
        (mergeable, 16, 1536),
        (mergeable, 64, 300),
        (mergeable, 256, 128),
        (mergeable, 128, LONGEST + 20),
        (f::SUPPORTED & !f::MRG_RXBUF, 32, LONGEST + 20),
    ] {
        let nic = TestNic::with("loopback", |config| {
            config.port.mtu = 9000;
            config.port.fifo = 1 << 20;
        });
        let mut guest = nic.guest(&ProbeOptions {
            features,
            queue_size: size,
            rx_buf_len: Some(buffer),
            tx_buf_len: Some(LONGEST + 20),
            tx_layout: TxLayout::Cut(vec![12, 14, 1000]),
            ..ProbeOptions::default()
        });
        let make = |n: u32, frame: &mut Vec<u8>| {
            frame.extend(&frames[n as usize % frames.len()]);
            VirtioNetHdr::default()
        };
        let header = VirtioNetHdr::len(guest.features());
        // More than the ring holds at once: the rest waits in the FIFO.
        pump(&nic, &mut guest, 2000, size.min(64), make, |n, frame| {
            let expected = &frames[n as usize % frames.len()];
            assert_eq!(&frame.to_vec(), expected, "frame {n}");
            assert_eq!(frame.buffers(), (frame.len() + header).div_ceil(buffer));
        });
        assert_all_passed(&nic, 2000);
    }
}

/// The ones' complement sum of `bytes` and `start` (RFC 1071).
fn sum(bytes: &[u8], start: u16) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u64::from(low)));
    let mut sum = words.sum::<u64>() + u64::from(start);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// A TCP or UDP packet over IPv4 or IPv6.
struct Packet {
    bytes: Vec<u8>,
    /// Where TCP or UDP begins, and from there its checksum.
    start: usize,
    offset: usize,
    /// The sum over the pseudo-header.
    pseudo: u16,
}

fn packet(n: u32) -> Packet {
    let (ipv6, tcp) = (n & 1 == 1, n & 2 == 2);
    let payload = (n as usize * 37) % 1400;
    let (protocol, header, offset) = if tcp { (6, 20, 16) } else { (17, 8, 6) };
    let len = header + payload;
    let mut bytes = numbered_frame(n, 14 + 40 + 20 + 1400);
    let start = if ipv6 {
        bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        bytes[14..22].copy_from_slice(&[0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, 64]);
        54
    } else {
        let total = 20 + len;
        bytes[12..26].copy_from_slice(&[
            8,
            0,
            0x45,
            0,
            (total >> 8) as u8,
            total as u8,
            0,
            0,
            0x40,
            0,
            64,
            protocol,
            0,
            0,
        ]);
        let header = !sum(&bytes[14..34], 0);
        bytes[24..26].copy_from_slice(&header.to_be_bytes());
        34
    };
    bytes.truncate(start + len);
    bytes[start + offset..start + offset + 2].fill(0);
    if tcp {
        bytes[start + 12] = 0x50;
    } else {
        bytes[start + 4..start + 6].copy_from_slice(&(len as u16).to_be_bytes());
    }
    let addresses = if ipv6 { 22..54 } else { 26..34 };
    let pseudo = sum(&bytes[addresses], u16::from(protocol));
    let pseudo = sum(&(len as u16).to_be_bytes(), pseudo);
    Packet {
        bytes,
        start,
        offset,
        pseudo,
    }
}

#[test]
fn partial_checksums_are_completed_and_verified_on_the_way_back() {
    const COUNT: u32 = 3000;
    for features in [f::SUPPORTED, f::SUPPORTED & !f::GUEST_CSUM] {
        let nic = TestNic::new("loopback");
        let mut guest = nic.guest(&ProbeOptions {
            features,
            ..ProbeOptions::default()
        });
        let verdict = if features & f::GUEST_CSUM == 0 {
            0
        } else {
            VIRTIO_NET_HDR_F_DATA_VALID
        };
        let sent = |n: u32| {
            let mut packet = packet(n);
            let Packet {
                start,
                offset,
                pseudo,
                ..
            } = packet;
            // Some whose checksum comes out as zero, which in UDP would mean that there is none (RFC 768).
            if n.is_multiple_of(8) {
                let ports = !sum(
                    &packet.bytes[start + 4..],
                    sum(&packet.bytes[start + 2..start + 4], pseudo),
                );
                packet.bytes[start..start + 2].copy_from_slice(&ports.to_be_bytes());
            }
            let at = start + offset;
            packet.bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            packet
        };
        let make = |n, frame: &mut Vec<u8>| {
            let packet = sent(n);
            frame.extend(&packet.bytes);
            VirtioNetHdr::needs_csum(packet.start as u16, packet.offset as u16)
        };
        pump(&nic, &mut guest, COUNT, 256, make, |n, frame| {
            let Packet {
                mut bytes,
                start,
                offset,
                pseudo,
            } = sent(n);
            let back = frame.to_vec();
            let at = start + offset;
            let checksum = u16::from_be_bytes([back[at], back[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
            // Short frames come back padded to the shortest that Ethernet has.
            assert_eq!(back[..bytes.len()], bytes, "frame {n}");
            assert_eq!(
                sum(&bytes[start..], pseudo),
                0xffff,
                "frame {n}: {checksum:#x}"
            );
            assert!(n & 2 == 2 || checksum != 0, "frame {n} has no checksum");
            assert_eq!(frame.hdr.flags, verdict, "frame {n}");
        });
        assert_all_passed(&nic, u64::from(COUNT));
        let port = nic.status().nic.port.counters;
        assert_eq!(port.tx_checksum_inserted, u64::from(COUNT));
        assert_eq!(
            (port.rx_checksums.good(), port.rx_checksums.bad()),
            (u64::from(COUNT), 0)
        );
    }
}

#[test]
fn three_hundred_thousand_frames_in_one_run() {
    const COUNT: u32 = 300_000;
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    let template = numbered_frame(0, 60);
    let make = |n: u32, frame: &mut Vec<u8>| {
        frame.extend(&template);
        frame[14..18].copy_from_slice(&n.to_be_bytes());
        VirtioNetHdr::default()
    };
    let mut back = vec![0; 60];
    pump(&nic, &mut guest, COUNT, 256, make, |n, frame| {
        assert_eq!((frame.len(), frame.copy_to(&mut back)), (60, 60));
        assert_eq!(back[14..18], n.to_be_bytes());
        assert_eq!(
            (&back[..14], &back[18..]),
            (&template[..14], &template[18..])
        );
    });
    assert_all_passed(&nic, u64::from(COUNT));
}

#[test]
fn a_guest_that_does_not_poll_loses_what_the_fifo_cannot_hold_and_no_more() {
    const COUNT: u64 = 3000;
    const BUFFERS: u64 = 64;
    let nic = TestNic::with(&format!("generator:size=1518,count={COUNT}"), |config| {
        config.port.link = false;
        // With a worker that has to wake first the FIFO may overflow before.
        config.workers = 1;
        config.port.fifo = nic_model::port::PortConfig::default().fifo;
    });
    let mut guest = nic.guest(&ProbeOptions {
        queue_size: BUFFERS as u16,
        ..ProbeOptions::default()
    });
    nic.server().set_link(true).expect("it runs");
    wait_until("all frames", || {
        nic.status().nic.port.counters.rx_frames == COUNT
    });
    let status = nic.status().nic.port;
    let fifo = (256 * 1024) / 1518;
    assert_eq!(status.rx_fifo_frames as u64, fifo);
    assert_eq!(status.counters.rx_delivered, BUFFERS);
    assert_eq!(
        status.counters.drops.get(Drop::RxFifoOverflow),
        COUNT - BUFFERS - fifo
    );
    assert_eq!(status.counters.drops.total(), COUNT - BUFFERS - fifo);
    nic.assert_balanced();
    // Now it polls, and has the oldest frames, in order.
    let mut received = 0;
    wait_until("what was kept", || {
        let frame = |frame: RxFrame<'_>| {
            assert_eq!(frame.to_vec()[42..50], u64::to_be_bytes(received));
            received += 1;
        };
        guest.poll(0, 64, frame).expect("a sound ring");
        received == BUFFERS + fifo
    });
    assert_eq!(nic.status().nic.port.counters.rx_delivered, BUFFERS + fifo);
    nic.assert_balanced();
}
