//! Rings of another size, one queue at a time.

use nic_guest::virtio_net::coalesce::IntrCoal;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::ringparam::ResizeError;
use nic_guest::virtio_net::tx::TxLayout;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};

use crate::common::in_process::InProcess;
use crate::{BASE, Nic, asked, nic, options};

const FEATURES: u64 = f::RING_RESET | f::EVENT_IDX;

/// A frame each way, on both pairs.
fn exchange(nic: &mut Nic) {
    for pair in 0..2 {
        let frame = [7; 60];
        let mut bytes = vec![0; 12];
        bytes.extend(frame);
        nic.transport.receive(2 * pair, &bytes, 72);
        let mut seen = Vec::new();
        nic.poll(pair, 64, |frame| seen.push(frame.to_vec()))
            .unwrap();
        assert_eq!(seen, [frame]);
        nic.start_xmit(pair, &frame, &VirtioNetHdr::default())
            .unwrap();
        nic.flush(pair);
        let (head, chain) = nic.transport.take(2 * pair + 1).unwrap();
        assert_eq!(chain[0].len, 72);
        nic.transport.put(2 * pair + 1, head, 0);
        nic.sq[usize::from(pair)].free_old_xmit().unwrap();
    }
}

fn sizes(nic: &mut Nic) -> Vec<u16> {
    let nic = &mut nic.transport;
    (0..4)
        .map(|vq| nic.queue(vq).ring.get_mut().size())
        .collect()
}

#[test]
fn rings_grow_and_shrink() {
    let mut nic = nic(FEATURES);
    for (round, (rx, tx)) in (1..).zip([(64, 32), (64, 8), (4, 8), (256, 256), (16, 16)]) {
        exchange(&mut nic);
        let same = nic.ringparam().0 == rx;
        nic.set_ringparam(rx, tx).unwrap();
        assert_eq!(nic.ringparam(), (rx, tx));
        assert_eq!(sizes(&mut nic), [rx, tx, rx, tx]);
        assert!(same || nic.rq[1].vq.num_free() == 0, "filled at once");
        exchange(&mut nic);
        assert_eq!(nic.rq[0].stats.packets, 2 * round, "counters go on");
        assert_eq!(nic.sq[0].stats.packets, 2 * round);
    }
    nic.remove().unwrap();
}

#[test]
fn a_ring_of_that_size_is_left_alone() {
    let mut nic = nic(FEATURES);
    nic.transport.no_stop = vec![0, 2];
    nic.set_ringparam(16, 32).unwrap();
    assert_eq!(sizes(&mut nic), [16, 32, 16, 32]);
}

#[test]
fn memory_of_old_rings_comes_back() {
    let mut nic = nic(FEATURES);
    for _ in 0..50 {
        nic.set_ringparam(512, 512).unwrap();
        nic.set_ringparam(16, 16).unwrap();
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_stopped() {
    let mut without = nic(f::EVENT_IDX);
    assert!(matches!(
        without.set_ringparam(32, 32),
        Err(ResizeError::NotNegotiated)
    ));
    let mut nic = nic(FEATURES);
    nic.transport.no_stop = vec![0, 1, 2, 3];
    for (rx, tx, bad) in [(0, 16, 0), (16, 3, 3), (u16::MAX, 16, u16::MAX)] {
        assert!(matches!(
            nic.set_ringparam(rx, tx),
            Err(ResizeError::Size(size)) if size == bad
        ));
    }
    assert!(matches!(
        nic.set_ringparam(32_768, 16),
        Err(ResizeError::Memory(_))
    ));
    exchange(&mut nic);
    let options = ProbeOptions {
        tx_layout: TxLayout::Cut(vec![1; 7]),
        queue_pairs: 2,
        ..options()
    };
    let mut cut = VirtnetInfo::probe(InProcess::new(BASE | FEATURES), &options).unwrap();
    assert!(matches!(
        cut.set_ringparam(16, 4),
        Err(ResizeError::Layout(_))
    ));
    assert_eq!(cut.ringparam(), (16, 16));
}

#[test]
fn a_device_that_does_not_stop_keeps_its_ring() {
    let mut nic = nic(FEATURES);
    nic.transport.no_stop = vec![0];
    assert!(matches!(
        nic.set_ringparam(32, 16),
        Err(ResizeError::Transport(_))
    ));
    assert_eq!(nic.ringparam(), (16, 16));
    exchange(&mut nic);
}

#[test]
fn a_queue_that_is_not_taken_back_can_be_tried_again() {
    let mut nic = nic(FEATURES);
    nic.transport.no_setup = vec![3];
    assert!(matches!(
        nic.set_ringparam(16, 32),
        Err(ResizeError::Transport(_))
    ));
    nic.transport.no_setup.clear();
    nic.set_ringparam(16, 64).unwrap();
    exchange(&mut nic);
}

#[test]
fn the_queue_moderates_as_all_of_its_kind() {
    let mut nic = nic(FEATURES | f::NOTF_COAL | f::VQ_NOTF_COAL);
    nic.set_rx_coalesce(8, 80).unwrap();
    nic.set_queue_coalesce(0, 1, 2).unwrap();
    asked(&nic);
    nic.set_ringparam(32, 32).unwrap();
    assert_eq!(nic.intr_coal(0), IntrCoal::new(8, 80));
    let command = |vq: u8, packets: u8, usecs: u8| {
        let data = vec![vq, 0, 0, 0, packets, 0, 0, 0, usecs, 0, 0, 0];
        (6, 2, data)
    };
    let expected = [
        command(1, 1, 0),
        command(0, 8, 80),
        command(3, 1, 0),
        command(2, 8, 80),
    ];
    assert_eq!(asked(&nic), expected);
    nic.transport.refused = vec![(6, 2)];
    assert!(matches!(
        nic.set_ringparam(16, 32),
        Err(ResizeError::Control(_))
    ));
}
