use super::*;
use crate::frame::Fcs;
use crate::host::Recorder;
use crate::mac::fcs;

fn port(change: impl FnOnce(&mut PortConfig)) -> Port {
    let mut config = PortConfig::default();
    change(&mut config);
    Port::new(&config)
}

fn broadcast(len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.resize(len, 0x55);
    bytes
}

/// Puts frames on the wire at `now`, as many as the line takes, and returns how many.
fn arrive(port: &mut Port, host: &mut Recorder, now: Nanos, frames: &[Vec<u8>]) -> usize {
    let mut burst = Vec::new();
    for bytes in frames.iter().take(port.rx_room(now)) {
        let mut frame = port.pool.take();
        assert!(frame.fill(bytes));
        frame.arrival = now;
        burst.push(frame);
    }
    let taken = burst.len();
    port.receive(now, &mut burst, host);
    taken
}

fn assert_balanced(port: &Port) {
    let counters = port.counters();
    assert_eq!(
        counters.receive_balance(port.fifo_frames()),
        0,
        "{counters:?}"
    );
    assert_eq!(counters.transmit_balance(), 0, "{counters:?}");
    assert_eq!(port.pool.lent(), port.fifo_frames(), "a frame was lost");
}

#[test]
fn a_frame_is_delivered_when_its_last_bit_has_arrived_and_not_before() {
    let mut port = port(|c| c.speed = Speed::from_mbps(1_000).unwrap());
    let mut host = Recorder::default();
    arrive(
        &mut port,
        &mut host,
        Nanos(0),
        &[broadcast(60), broadcast(60)],
    );
    assert!(host.delivered.is_empty());
    assert_eq!(port.next_deadline(Nanos(0)), Some(Nanos(672)));
    port.receive(Nanos(672), &mut Vec::new(), &mut host);
    assert_eq!(host.delivered.len(), 1);
    assert_eq!(port.next_deadline(Nanos(672)), Some(Nanos(1344)));
    port.receive(Nanos(1344), &mut Vec::new(), &mut host);
    assert_eq!(host.delivered.len(), 2);
    assert_eq!(host.interrupts.len(), 2);
    assert_eq!(port.next_deadline(Nanos(1344)), None);
    assert_balanced(&port);
}

#[test]
fn the_line_takes_no_more_than_its_rate() {
    let mut port = port(|c| c.speed = Speed::from_mbps(1_000).unwrap());
    let mut host = Recorder::default();
    let burst: Vec<_> = (0..BURST).map(|_| broadcast(60)).collect();
    let (mut now, mut frames) = (Nanos(0), 0);
    while now < Nanos(1_000_000_000) {
        frames += arrive(&mut port, &mut host, now, &burst);
        now = port.next_deadline(now).expect("the line is busy");
        host.delivered.clear();
    }
    // 1 Gb/s carries 1,488,095 of the shortest frames a second.
    assert!((1_488_095..1_488_095 + BURST).contains(&frames), "{frames}");
}

#[test]
fn a_host_without_buffers_fills_the_fifo_and_then_frames_are_lost_and_counted() {
    let mut port = port(|c| c.fifo = 100 * 64);
    let mut host = Recorder {
        buffers: Some(10),
        ..Default::default()
    };
    let mut now = Nanos(0);
    for _ in 0..130 {
        arrive(&mut port, &mut host, now, &[broadcast(60)]);
        now += Duration::from_micros(1);
        assert_balanced(&port);
    }
    assert_eq!(host.delivered.len(), 10);
    assert_eq!(port.fifo_frames(), 100);
    assert_eq!(port.counters().drops.get(Drop::RxFifoOverflow), 20);
    assert!(port.starved(now, QueueIndex(0)));
    host.buffers = None;
    port.receive(now, &mut Vec::new(), &mut host);
    assert_eq!(host.delivered.len(), 110);
    assert_balanced(&port);
}

#[test]
fn every_receive_drop_has_its_counter() {
    let mut port = port(|c| c.mac = MacAddress([2, 0, 0, 0, 0, 1]));
    port.filter.active = true;
    let mut host = Recorder::default();
    let mut burst = Vec::new();
    let damaged = |len: usize| {
        let mut bytes = broadcast(len - FCS);
        let sequence = fcs(&bytes);
        bytes.extend(sequence);
        bytes[len - 1] ^= 1;
        (bytes, Fcs::Present)
    };
    let whole = |len: usize| {
        let mut bytes = broadcast(len - FCS);
        let sequence = fcs(&bytes);
        bytes.extend(sequence);
        (bytes, Fcs::Present)
    };
    let to_other = vec![2; 60];
    for (bytes, fcs) in [
        damaged(64),
        whole(63),
        damaged(63),
        whole(1523),
        damaged(1523),
        (to_other, Fcs::Offloaded),
        (broadcast(13), Fcs::Offloaded),
        whole(64),
    ] {
        let mut frame = port.pool.take();
        assert!(frame.fill(&bytes));
        frame.fcs = fcs;
        burst.push(frame);
    }
    port.receive(Nanos(1_000_000), &mut burst, &mut host);
    let drops = &port.counters().drops;
    assert_eq!(drops.get(Drop::RxFcs), 1);
    assert_eq!(drops.get(Drop::RxUndersize), 2);
    assert_eq!(drops.get(Drop::RxFragment), 1);
    assert_eq!(drops.get(Drop::RxOversize), 1);
    assert_eq!(drops.get(Drop::RxJabber), 1);
    assert_eq!(drops.get(Drop::RxFiltered), 1);
    assert_eq!(host.delivered, [(QueueIndex(0), broadcast(60))]);
    assert_balanced(&port);
}

#[test]
fn transmit_is_paced_by_the_line_and_balanced() {
    let mut port = port(|c| c.speed = Speed::from_mbps(1_000).unwrap());
    let mut host = Recorder::default();
    for _ in 0..1000 {
        host.to_send.push_back((broadcast(60), Checksum::Unknown));
    }
    host.to_send.push_back((vec![1; 13], Checksum::Unknown));
    let bad = Checksum::Partial {
        start: 60,
        offset: 0,
    };
    host.to_send.push_back((broadcast(60), bad));
    let (mut now, mut out, mut sent) = (Nanos(0), Vec::new(), 0u64);
    loop {
        port.transmit(now, &mut out, &mut host);
        for frame in &out {
            sent += 1;
            assert_eq!(frame.arrival, Nanos(sent * 672));
        }
        let frames: Vec<_> = std::mem::take(&mut out);
        port.pool.give_all(frames);
        match port.next_deadline(now) {
            Some(due) => now = due,
            None => break,
        }
    }
    assert_eq!(sent, 1000);
    assert_eq!(port.counters().drops.get(Drop::TxUndersize), 1);
    assert_eq!(port.counters().drops.get(Drop::TxMalformed), 1);
    assert_balanced(&port);
}

#[test]
fn without_a_link_nothing_arrives_and_what_is_sent_is_counted() {
    let mut port = port(|c| c.link = false);
    let mut host = Recorder::default();
    assert_eq!(port.rx_room(Nanos(0)), 0);
    host.to_send.push_back((broadcast(60), Checksum::Unknown));
    let mut out = Vec::new();
    assert!(port.transmit(Nanos(0), &mut out, &mut host));
    assert!(out.is_empty());
    assert_eq!(port.counters().drops.get(Drop::TxLinkDown), 1);
    assert!(port.phy.set_link(true) && !port.phy.set_link(true));
    assert_eq!(port.rx_room(Nanos(0)), BURST);
    assert_balanced(&port);
}
