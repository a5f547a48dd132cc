use super::*;
use crate::frame::Segmentation;
use crate::host::QueueIndex;
use crate::port::PortConfig;
use crate::rsc::Takes;
use crate::segment::tests::{super_frame, usual};

fn port() -> Port {
    Port::new(&PortConfig::default())
}

/// The segments of `frame`, each in a frame of its own.
fn segments(port: &mut Port, frame: &Frame) -> Vec<Frame> {
    let cut = Cut::of(frame).unwrap();
    (0..cut.segments())
        .map(|index| {
            let mut segment = port.pool.take();
            assert!(cut.write(frame, index, &mut segment));
            segment
        })
        .collect()
}

/// Receives `frames`; what was admitted.
fn receive(port: &mut Port, mut frames: Vec<Frame>) -> Vec<Frame> {
    port.receive(Nanos(1_000), &mut frames);
    frames
}

#[test]
fn the_line_and_the_fifo_see_the_frames_that_a_super_frame_stands_for() {
    for (size, payload) in [(1448, 64_000), (4, 90), (100, 100_000 / 4)] {
        let shape = usual(Segmentation::Tcpv4, size, payload);
        let (mut whole, mut cut) = (port(), port());
        whole.set_super_frames(true);
        let frame = super_frame(&mut whole.pool, &shape);
        let pieces = segments(&mut cut, &frame);
        let count = pieces.len();
        let mut pieces = receive(&mut cut, pieces);
        let mut frame = receive(&mut whole, vec![frame]);
        assert_eq!((frame.len(), pieces.len()), (1, count));
        assert_eq!(frame[0].arrival, pieces.last().unwrap().arrival);
        assert_eq!(whole.fifos[0].octets(), cut.fifos[0].octets());
        let counters = whole.counters(&[]);
        assert_eq!(counters.receive_balance(1), 0, "{counters:?}");
        assert!(counters.statistics_agree(), "{counters:?}");
        let seen = |c: &crate::counters::PortCounters| {
            (c.rx_frames, c.rx_octets, c.rx_sizes, c.rx_unicast)
        };
        assert_eq!(seen(&counters), seen(&cut.counters(&[])));
        let merged = (counters.rx_merged, counters.rx_coalesced);
        assert_eq!(merged, (count as u64 - 1, 0), "not by the card");
        // For whoever waits until a FIFO has got that far, too.
        let fifo = whole.fifos[0];
        assert_eq!((fifo.pushed(), fifo.taken()), (count as u64, 1));
        whole.release(QueueIndex(0), frame.drain(..));
        assert_eq!((whole.fifos[0].octets(), whole.pool.lent()), (0, 0));
        assert_eq!(whole.fifos[0].drained(), fifo.pushed());
        cut.release(QueueIndex(0), pieces.drain(..));
    }
}

#[test]
fn a_wire_gets_a_super_frame_or_its_segments_at_the_same_instants() {
    for (kind, size) in [(Segmentation::Tcpv6, 1428), (Segmentation::Udp, 3)] {
        let shape = usual(kind, size, 40 * usize::from(size) + 1);
        let mut ports = [port(), port()];
        ports[0].set_super_frames(true);
        let mut sent = Vec::new();
        for port in &mut ports {
            let mut frame = super_frame(&mut port.pool, &shape);
            port.mac.prepare_super(&mut frame).unwrap();
            let mut ordinary = port.pool.take();
            ordinary.set_len(60);
            let (mut burst, mut out) = (vec![frame, ordinary], Vec::new());
            port.send(Nanos(7), QueueIndex(0), &mut burst, &mut out);
            assert!(burst.is_empty());
            sent.push(out);
        }
        let [whole, cut] = &ports;
        assert_eq!(sent[0].len(), 2);
        assert!(sent[1].len() > 3 && sent[1].iter().all(|frame| !frame.is_super()));
        assert_eq!(sent[0][0].arrival, sent[1][sent[1].len() - 2].arrival);
        assert_eq!(sent[0][1].arrival, sent[1].last().unwrap().arrival);
        assert!(sent[1].iter().all(|frame| frame.len() >= 60));
        let (one, other) = (whole.counters(&[]), cut.counters(&[]));
        assert_eq!(one, other);
        assert_eq!(one.tx_frames, sent[1].len() as u64);
        assert_eq!(one.tx_segments_made, one.tx_frames - 2);
        for (port, sent) in ports.iter_mut().zip(sent) {
            port.pool.give_all(sent);
            assert_eq!(port.pool.lent(), 0);
        }
    }
}

#[test]
fn a_wrong_header_counts_for_each_frame_that_it_stands_for_and_not_in_the_segments() {
    let mut port = port();
    port.set_super_frames(true);
    let shape = usual(Segmentation::Tcpv4, 1448, 5 * 1448);
    let good = super_frame(&mut port.pool, &shape);
    let mut bad = super_frame(&mut port.pool, &shape);
    // The time to live is in no pseudo-header.
    bad.bytes_mut()[22] ^= 1;
    let mut admitted = receive(&mut port, vec![good, bad]);
    assert_eq!(admitted.len(), 2, "none of it is a drop");
    let checksums = port.counters(&[]).rx_checksums;
    assert_eq!((checksums.bad_header(), checksums.left()), (5, 10));
    for segment in segments(&mut port, &admitted[1]) {
        let summary = parse::summarise(segment.bytes());
        assert!(checksum::is_header_right(segment.bytes(), &summary));
        port.pool.give(segment);
    }
    port.release(QueueIndex(0), admitted.drain(..));
}

#[test]
fn what_the_wire_gives_is_checked() {
    let mut port = port();
    port.set_super_frames(true);
    let mut bad = super_frame(&mut port.pool, &usual(Segmentation::Tcpv4, 1448, 5000));
    bad.gso.kind = Segmentation::Udp;
    let long = super_frame(&mut port.pool, &usual(Segmentation::Tcpv4, 1449, 5000));
    let single = super_frame(&mut port.pool, &usual(Segmentation::Tcpv4, 1448, 1448));
    // Another card had received it, and verified the checksum.
    let mut verified = super_frame(&mut port.pool, &usual(Segmentation::Tcpv4, 1448, 5000));
    let partial = verified.checksum;
    verified.checksum = Checksum::Valid;
    verified.bytes_mut()[50] ^= 0xff;
    let mut admitted = receive(&mut port, vec![bad, long, single, verified]);
    assert_eq!(admitted.len(), 2);
    assert!(!admitted[0].is_super() && admitted[1].is_super());
    assert_eq!(admitted[1].checksum, partial);
    let counters = port.counters(&[]);
    assert_eq!(counters.drops.get(Drop::RxMalformed), 1);
    assert_eq!(counters.drops.get(Drop::RxOversize), 1);
    assert_eq!(counters.receive_balance(2), 0);
    assert!(counters.statistics_agree(), "{counters:?}");
    port.release(QueueIndex(0), admitted.drain(..));
    assert_eq!(port.pool.lent(), 0);
}

#[test]
fn a_super_frame_that_is_dropped_counts_as_the_frames_that_it_stands_for() {
    let mut port = Port::new(&PortConfig {
        fifo: 100_000,
        ..PortConfig::default()
    });
    port.set_super_frames(true);
    let shape = usual(Segmentation::Tcpv4, 1000, 60_000);
    let burst = (0..3)
        .map(|_| super_frame(&mut port.pool, &shape))
        .collect();
    let mut admitted = receive(&mut port, burst);
    assert_eq!(admitted.len(), 1);
    let counters = port.counters(&[]);
    assert_eq!(counters.drops.get(Drop::RxFifoOverflow), 120);
    assert!(counters.statistics_agree(), "{counters:?}");
    assert_eq!(port.line_counters(QueueIndex(0)).rx_overflows, 120);
    assert_eq!(counters.receive_balance(1), 0);
    // There is less room than for the longest; one is taken in any case.
    assert_eq!(port.rx_room(Nanos(1_000_000_000)), 1);
    port.release(QueueIndex(0), admitted.drain(..));
}

#[test]
fn merged_segments_leave_the_fifo_as_those_that_they_are() {
    let mut port = Port::new(&PortConfig {
        lro: true,
        ..PortConfig::default()
    });
    port.rsc.accept(Takes {
        ipv4: true,
        ..Takes::default()
    });
    let shape = usual(Segmentation::Tcpv4, 1000, 20_000);
    let mut whole = super_frame(&mut port.pool, &shape);
    // Of others, for the station.
    whole.bytes_mut()[..6].copy_from_slice(&PortConfig::default().mac.0);
    let pieces = segments(&mut port, &whole);
    port.pool.give(whole);
    let mut merged = receive(&mut port, pieces);
    assert_eq!((merged.len(), port.counters(&[]).rx_merged), (1, 19));
    let fifo = port.fifos[0];
    assert_eq!((fifo.pushed(), fifo.taken(), fifo.drained()), (20, 1, 0));
    port.release(QueueIndex(0), merged.drain(..));
    let fifo = port.fifos[0];
    assert_eq!(
        (fifo.drained(), fifo.octets(), port.pool.lent()),
        (20, 0, 0)
    );
}
