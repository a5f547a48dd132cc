//! The whole driver over rings of either layout, with each of the features that change them.

use std::time::Duration;

use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::tx::TxLayout;
use nic_guest::virtio_net::{ProbeError, ProbeOptions, VirtnetInfo};

use crate::common::in_process::InProcess;

const BASE: u64 = f::VERSION_1 | f::MAC | f::STATUS | f::CSUM | f::GUEST_CSUM;
const CONTROL: u64 = f::CTRL_VQ | f::CTRL_RX | f::MQ | f::RING_RESET;

/// All sets of what changes rings.
fn sets() -> impl Iterator<Item = u64> {
    let bits = [
        f::RING_PACKED,
        f::IN_ORDER,
        f::INDIRECT_DESC,
        f::EVENT_IDX,
        f::MRG_RXBUF,
    ];
    (0..1 << bits.len()).map(move |set| {
        let chosen = bits.iter().enumerate().filter(|(at, _)| set >> at & 1 != 0);
        chosen.fold(0, |sum, (_, bit)| sum | bit)
    })
}

fn probe(features: u64) -> VirtnetInfo<InProcess> {
    let packed = features & f::RING_PACKED != 0;
    let options = ProbeOptions {
        features,
        queue_size: if packed { 21 } else { 16 },
        ctrl_timeout: Duration::from_millis(1),
        tx_buf_len: Some(2048),
        tx_layout: TxLayout::HeaderSeparate,
        ..ProbeOptions::default()
    };
    let device = InProcess::new(BASE | CONTROL | f::SUPPORTED);
    VirtnetInfo::probe(device, &options).unwrap()
}

/// A frame of 60 to 100 bytes.
fn frame(number: u32) -> Vec<u8> {
    (0..60 + number % 40)
        .map(|at| (at ^ number) as u8)
        .collect()
}

fn receive(nic: &mut VirtnetInfo<InProcess>, numbers: std::ops::Range<u32>) {
    for number in numbers.clone() {
        let hdr = VirtioNetHdr {
            num_buffers: 1,
            ..VirtioNetHdr::default()
        };
        let bytes = [&hdr.to_bytes()[..12], &frame(number)].concat();
        nic.transport.receive(0, &bytes, bytes.len() as u32);
    }
    let mut seen = Vec::new();
    nic.poll(0, 64, |frame| seen.push(frame.to_vec())).unwrap();
    assert_eq!(seen, numbers.map(frame).collect::<Vec<_>>());
}

/// Sends frames; the device uses them one by one, or with IN_ORDER all at once.
fn send(nic: &mut VirtnetInfo<InProcess>, numbers: std::ops::Range<u32>) {
    let before = nic.sq[0].stats.packets;
    for number in numbers.clone() {
        let hdr = VirtioNetHdr::needs_csum(34, 6);
        nic.start_xmit(0, &frame(number), &hdr).unwrap();
    }
    nic.flush(0);
    let mut ids = Vec::new();
    for number in numbers.clone() {
        let (id, chain) = nic.transport.take(1).unwrap();
        let mut bytes = vec![0; chain[1].len as usize];
        nic.transport
            .memory
            .read(chain[1].addr, &mut bytes)
            .unwrap();
        assert_eq!((chain[0].len, bytes), (12, frame(number)));
        ids.push(id);
    }
    let ordered = nic.features() & f::IN_ORDER != 0;
    let ring = nic.transport.queue(1).ring.get_mut();
    if ordered {
        ring.put_batch(&ids, 0);
    } else {
        ids.reverse();
        ids.iter().for_each(|&id| _ = ring.put(id, 0));
    }
    nic.sq[0].free_old_xmit().unwrap();
    let count = numbers.len() as u64;
    assert_eq!(nic.sq[0].stats.packets - before, count);
    assert_eq!(nic.sq[0].vq.outstanding(), 0);
}

#[test]
fn frames_and_commands_pass_in_every_layout() {
    for set in sets() {
        let mut nic = probe(BASE | CONTROL | set);
        assert_eq!(nic.features() & set, set);
        assert_eq!(nic.rq[0].vq.is_packed(), set & f::RING_PACKED != 0);
        for round in 0..100 {
            let first = round * 7;
            receive(&mut nic, first..first + 1 + round % 9);
            send(&mut nic, first..first + 1 + round % 7);
            nic.set_promisc(round % 2 == 0).unwrap();
        }
        // One for MQ at probe.
        assert_eq!(nic.transport.commands.borrow().len(), 101);
        nic.rq[0].try_fill_recv();
        assert_eq!(nic.rq[0].vq.num_free(), 0, "{set:#x}: buffers were lost");
        let memory = nic.remove().unwrap();
        assert!(memory.queues.is_empty());
    }
}

#[test]
fn rings_of_every_layout_change_their_size() {
    for set in sets() {
        let mut nic = probe(BASE | CONTROL | set);
        receive(&mut nic, 0..5);
        send(&mut nic, 0..5);
        let packed = set & f::RING_PACKED != 0;
        let sizes = if packed { (33, 17) } else { (32, 64) };
        nic.set_ringparam(sizes.0, sizes.1).unwrap();
        assert_eq!(nic.ringparam(), sizes);
        assert_eq!(nic.set_ringparam(33, 17).is_ok(), packed);
        for round in 0..50 {
            receive(&mut nic, round..round + 8);
            send(&mut nic, round..round + 6);
        }
    }
}

#[test]
fn a_queue_goes_on_where_it_was_stopped() {
    use nic_guest::transport::{QueueConfig, Transport};
    use nic_guest::virtio_net::queue_config;
    for set in sets() {
        let mut nic = probe(BASE | CONTROL | set);
        receive(&mut nic, 0..13);
        let next = nic.transport.stop_queue(0).unwrap();
        let config = queue_config(0, &nic.rq[0].vq);
        assert_eq!(next, config.next, "{set:#x}: all that was used was taken");
        let config = QueueConfig { next, ..config };
        nic.transport.setup_queue(&config).unwrap();
        receive(&mut nic, 0..13);
    }
}

#[test]
fn a_ring_that_cannot_be_fails_the_probe() {
    let packed = f::RING_PACKED;
    for (offered, size) in [(0, 200), (0, 0), (packed, 0), (packed, 0x8001)] {
        let options = ProbeOptions {
            queue_size: size,
            ..ProbeOptions::default()
        };
        let device = InProcess::new(BASE | offered);
        let probed = VirtnetInfo::probe(device, &options.with(packed));
        assert!(matches!(probed, Err(ProbeError::QueueSize(bad)) if bad == size));
    }
}

#[test]
fn packed_rings_and_order_are_taken_when_asked_for_only() {
    let probe = |options: ProbeOptions| {
        let options = ProbeOptions {
            queue_size: 16,
            tx_buf_len: Some(2048),
            ..options
        };
        let both = f::RING_PACKED | f::IN_ORDER;
        let nic = VirtnetInfo::probe(InProcess::new(BASE | both), &options).unwrap();
        nic.features() & both
    };
    let options = ProbeOptions::default;
    assert_eq!(probe(options()), 0);
    let packed = options().with(f::RING_PACKED);
    assert_eq!(probe(packed.clone()), f::RING_PACKED);
    assert_eq!(probe(options().with(f::IN_ORDER)), f::IN_ORDER);
    assert_eq!(probe(packed.without(f::RING_PACKED)), 0);
}
