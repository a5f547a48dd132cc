//! The driver against a device in its own process: what goes into rings, and devices that lie.

mod common;

use std::time::Duration;

use common::in_process::InProcess;
use nic_guest::dma::CONFIG_DMA_API_DEBUG;
use nic_guest::dma::debug::DmaErrorKind;
use nic_guest::memory::{GuestMemory, PAGE_SIZE};
use nic_guest::ring::RingFault;
use nic_guest::ring::virtqueue::VirtqueueOptions;
use nic_guest::virtio_net::ctrl::ControlQueue;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::rx::{ReceiveQueue, RxMode};
use nic_guest::virtio_net::tx::{SendQueue, TxLayout, XmitError};
use nic_guest::virtio_net::{ProbeError, ProbeOptions, VirtnetInfo};

const BASE: u64 = f::VERSION_1 | f::MAC | f::STATUS | f::CSUM | f::GUEST_CSUM;

fn options() -> ProbeOptions {
    ProbeOptions {
        queue_size: 16,
        ctrl_timeout: Duration::from_millis(1),
        tx_buf_len: Some(2048),
        ..ProbeOptions::default()
    }
}

fn nic(offered: u64) -> VirtnetInfo<InProcess> {
    VirtnetInfo::probe(InProcess::new(offered), &options()).unwrap()
}

/// Header and frame as a device writes them.
fn with_header(hdr: VirtioNetHdr, hdr_len: usize, frame: &[u8]) -> Vec<u8> {
    [&hdr.to_bytes()[..hdr_len], frame].concat()
}

fn frames(nic: &mut VirtnetInfo<InProcess>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    nic.poll(0, 64, |frame| frames.push(frame.to_vec()))
        .unwrap();
    frames
}

/// All receive buffers are in the ring, or can be put there again.
fn assert_full(nic: &mut VirtnetInfo<InProcess>) {
    nic.rq[0].try_fill_recv();
    nic.rq[0].kick(&nic.transport);
    assert_eq!(nic.rq[0].vq.num_free(), 0, "receive buffers were lost");
}

#[test]
fn small_frames_arrive() {
    let mut nic = nic(BASE);
    assert_eq!(nic.rq[0].mode(), RxMode::Small);
    let frame: Vec<u8> = (0..100).collect();
    for round in 0..100 {
        let mut seen = Vec::new();
        for n in 0..16 {
            let bytes = with_header(VirtioNetHdr::default(), 12, &frame[..60 + n]);
            nic.transport.receive(0, &bytes, bytes.len() as u32);
        }
        let taken = nic.poll(0, 64, |f| seen.push(f.to_vec())).unwrap();
        assert_eq!(taken, 16, "round {round}");
        assert!(
            seen.iter()
                .zip(60..)
                .all(|(bytes, len)| bytes[..] == frame[..len])
        );
        assert_full(&mut nic);
    }
    assert_eq!(nic.rq[0].stats.packets, 1600);
    assert_eq!(nic.rq[0].stats.bytes, 100 * (60..76).sum::<u64>());
    assert_eq!(nic.rq[0].stats.drops, 0);
}

#[test]
fn mergeable_frames_are_put_together() {
    let mut nic = nic(BASE | f::MRG_RXBUF);
    let frame: Vec<u8> = (0..4000u32).map(|n| (n % 251) as u8).collect();
    let hdr = VirtioNetHdr {
        num_buffers: 3,
        ..VirtioNetHdr::default()
    };
    let bytes = with_header(hdr, 12, &frame);
    for piece in bytes.chunks(1500) {
        nic.transport.receive(0, piece, piece.len() as u32);
    }
    let mut buffers = 0;
    let mut short = [0; 10];
    nic.poll(0, 64, |f| {
        buffers = f.buffers();
        assert_eq!(f.to_vec(), frame);
        assert_eq!(f.copy_to(&mut short), 10);
    })
    .unwrap();
    assert_eq!(buffers, 3);
    assert_eq!(short, frame[..10]);
    assert_full(&mut nic);
}

#[test]
fn big_buffers_take_gso_frames_whole() {
    let offered = BASE | f::GUEST_TSO4 | f::INDIRECT_DESC;
    let mut nic = nic(offered);
    assert_eq!(nic.rq[0].mode(), RxMode::Big);
    let frame: Vec<u8> = (0..60_000u32).map(|n| (n % 253) as u8).collect();
    let hdr = VirtioNetHdr::needs_csum(34, 16).with_gso(1, 1448, 54);
    let bytes = with_header(hdr, 12, &frame);
    nic.transport.receive(0, &bytes, bytes.len() as u32);
    assert_eq!(frames(&mut nic), [frame]);
}

#[test]
fn the_hash_is_reported() {
    let mut device = InProcess::new(BASE | f::CTRL_VQ | f::HASH_REPORT);
    device.ctrl_index = 2;
    let mut nic = VirtnetInfo::probe(device, &options()).unwrap();
    let hdr = VirtioNetHdr {
        hash_value: 0xdead_beef,
        hash_report: 2,
        ..VirtioNetHdr::default()
    };
    let bytes = with_header(hdr, 20, &[7; 60]);
    nic.transport.receive(0, &bytes, 80);
    let mut seen = VirtioNetHdr::default();
    nic.poll(0, 1, |f| seen = f.hdr).unwrap();
    assert_eq!((seen.hash_value, seen.hash_report), (0xdead_beef, 2));
}

#[test]
fn impossible_lengths_cost_the_frame_only() {
    let mut nic = nic(BASE);
    let good = with_header(VirtioNetHdr::default(), 12, &[1; 60]);
    for len in [0, 11, 12, 25, 1531, u32::MAX] {
        nic.transport.receive(0, &good, len);
    }
    nic.transport.receive(0, &good, 72);
    assert_eq!(frames(&mut nic).len(), 1);
    assert_eq!(
        (nic.rq[0].stats.length_errors, nic.rq[0].stats.drops),
        (6, 6)
    );
    assert_full(&mut nic);
}

#[test]
fn lying_num_buffers_cost_the_frame_only() {
    let mut nic = nic(BASE | f::MRG_RXBUF);
    let with = |num_buffers| {
        with_header(
            VirtioNetHdr {
                num_buffers,
                ..VirtioNetHdr::default()
            },
            12,
            &[1; 60],
        )
    };
    for (lie, dropped) in [(0, 1), (2, 2), (17, 3), (0xffff, 4)] {
        nic.transport.receive(0, &with(lie), 72);
        assert!(frames(&mut nic).is_empty());
        assert_eq!(nic.rq[0].stats.drops, dropped);
        assert_full(&mut nic);
    }
    // Too long a second buffer: the frame goes, the next one comes.
    nic.transport.receive(0, &with(2), 72);
    nic.transport.receive(0, &[2; 100], u32::MAX);
    nic.transport.receive(0, &with(1), 72);
    assert_eq!(frames(&mut nic), [vec![1; 60]]);
    assert_full(&mut nic);
    assert_eq!(nic.rq[0].stats.length_errors, 5);
}

#[test]
fn lying_headers_cost_the_frame_only() {
    let mut nic = nic(BASE);
    let gso = VirtioNetHdr {
        gso_type: 1,
        gso_size: 1448,
        ..VirtioNetHdr::default()
    };
    for hdr in [VirtioNetHdr::needs_csum(50, 9), gso] {
        let bytes = with_header(hdr, 12, &[1; 60]);
        nic.transport.receive(0, &bytes, 72);
    }
    let fine = with_header(VirtioNetHdr::needs_csum(50, 8), 12, &[1; 60]);
    nic.transport.receive(0, &fine, 72);
    assert_eq!(frames(&mut nic).len(), 1);
    assert_eq!(
        (nic.rq[0].stats.frame_errors, nic.rq[0].stats.drops),
        (2, 2)
    );
    assert_full(&mut nic);
}

#[test]
fn a_broken_ring_is_reported_and_left_alone() {
    let mut nic = nic(BASE);
    nic.transport.queue(0).ring.get_mut().raw().set_used_idx(17);
    let fault = RingFault::UsedIndex {
        from: 0,
        to: 17,
        outstanding: 16,
    };
    assert_eq!(nic.poll(0, 64, |_| {}), Err(fault));
    assert_eq!(nic.poll(0, 64, |_| {}), Err(fault));
    nic.transport.queue(1).ring.get_mut().raw().set_used_idx(1);
    let sent = nic.start_xmit(0, &[0; 60], &VirtioNetHdr::default());
    assert!(matches!(
        sent,
        Err(XmitError::Broken(RingFault::UsedIndex { .. }))
    ));
}

#[test]
fn frames_are_laid_out_as_asked() {
    let shapes = [
        (TxLayout::Single, 0, vec![72]),
        (TxLayout::HeaderSeparate, 0, vec![12, 60]),
        (TxLayout::HeaderSeparate, f::INDIRECT_DESC, vec![12, 60]),
        (TxLayout::Cut(vec![5, 5, 2, 1]), 0, vec![5, 5, 2, 1, 59]),
        (
            TxLayout::Cut(vec![5, 5, 2, 1]),
            f::INDIRECT_DESC,
            vec![5, 5, 2, 1, 59],
        ),
    ];
    for (layout, ring, lengths) in shapes {
        let options = ProbeOptions {
            tx_layout: layout,
            ..options()
        };
        let mut nic = VirtnetInfo::probe(InProcess::new(BASE | ring), &options).unwrap();
        let frame: Vec<u8> = (0..60).collect();
        let hdr = VirtioNetHdr::needs_csum(34, 6);
        nic.start_xmit(0, &frame, &hdr).unwrap();
        assert!(nic.transport.take(1).is_none(), "published with the kick");
        nic.flush(0);
        assert_eq!(nic.transport.queue(1).kicks.get(), 1);
        let (head, chain) = nic.transport.take(1).unwrap();
        assert_eq!(chain.iter().map(|d| d.len).collect::<Vec<_>>(), lengths);
        let mut bytes = Vec::new();
        for desc in &chain {
            let mut piece = vec![0; desc.len as usize];
            nic.transport.memory.read(desc.addr, &mut piece).unwrap();
            bytes.extend(piece);
        }
        assert_eq!(bytes, with_header(hdr, 12, &frame));
        nic.transport.put(1, head, 0);
        assert_eq!(nic.sq[0].free_old_xmit(), Ok(1));
        assert_eq!((nic.sq[0].stats.packets, nic.sq[0].stats.bytes), (1, 60));
    }
}

#[test]
fn a_full_send_ring_is_busy_until_the_device_works() {
    let mut nic = nic(BASE);
    let hdr = VirtioNetHdr::default();
    for _ in 0..16 {
        nic.start_xmit(0, &[0; 60], &hdr).unwrap();
    }
    assert_eq!(nic.start_xmit(0, &[0; 60], &hdr), Err(XmitError::Busy));
    assert_eq!(
        nic.start_xmit(0, &[0; 2048], &hdr),
        Err(XmitError::TooLong(2048))
    );
    nic.flush(0);
    let (head, _) = nic.transport.take(1).unwrap();
    nic.transport.put(1, head, 0);
    nic.start_xmit(0, &[0; 60], &hdr).unwrap();
    assert_eq!((nic.sq[0].stats.busy, nic.sq[0].stats.too_long), (1, 1));
}

const CTRL: u64 = BASE | f::CTRL_VQ | f::CTRL_RX | f::MQ | f::RSS | f::CTRL_MAC_ADDR;

#[test]
fn impossible_config_space_fails_the_probe() {
    let probe = |change: &dyn Fn(&mut InProcess)| {
        let mut device = InProcess::new(CTRL | f::MTU);
        change(&mut device);
        VirtnetInfo::probe(device, &options()).map(|nic| nic.config)
    };
    assert!(matches!(
        probe(&|d| d.config[8] = 0),
        Err(ProbeError::MaxPairs(0))
    ));
    assert!(matches!(
        probe(&|d| d.config[9] = 0xff),
        Err(ProbeError::MaxPairs(0xff02))
    ));
    assert!(matches!(
        probe(&|d| d.config[17] = 39),
        Err(ProbeError::Rss { key: 39, .. })
    ));
    assert!(matches!(
        probe(&|d| d.config[17] = 41),
        Err(ProbeError::Rss { key: 41, .. })
    ));
    assert!(matches!(
        probe(&|d| d.config[18] = 127),
        Err(ProbeError::Rss { table: 127, .. })
    ));
    assert!(matches!(
        probe(&|d| d.config[10..12].fill(0)),
        Err(ProbeError::Mtu(0))
    ));
    let torn = probe(&|d| d.torn_reads = 3).unwrap();
    assert_eq!(
        torn.mac,
        Some([2, 0, 0, 0, 0, 4]),
        "read again until it rests"
    );
    assert!(matches!(
        probe(&|d| d.torn_reads = 99),
        Err(ProbeError::Transport(_))
    ));
}

#[test]
fn features_are_masked_or_forced() {
    let options = ProbeOptions {
        features: f::SUPPORTED & !f::GUEST_CSUM,
        ..options()
    };
    let nic = VirtnetInfo::probe(InProcess::new(BASE | f::GUEST_TSO4), &options).unwrap();
    assert_eq!(
        nic.transport.chosen,
        f::VERSION_1 | f::MAC | f::STATUS | f::CSUM
    );
    let forced = ProbeOptions {
        features: f::GUEST_TSO4 | 1 << 4,
        exact: true,
        ..options
    };
    let nic = VirtnetInfo::probe(InProcess::new(0), &forced).unwrap();
    assert_eq!(nic.transport.chosen, f::GUEST_TSO4 | 1 << 4);
}

#[test]
fn a_late_interrupt_of_the_control_queue_ends_no_wait_for_packets() {
    let mut nic = nic(f::CTRL_VQ | f::MQ);
    let control = nic.transport.ctrl_index;
    nic.transport.coming = vec![0, control].into();
    assert_eq!(nic.wait(Duration::ZERO), 1);
    assert_eq!(nic.rq[0].stats.interrupts, 1);
    // A device that does nothing but this keeps nobody.
    nic.transport.coming = vec![control; 100].into();
    assert_eq!(nic.wait(Duration::ZERO), 0);
}

#[test]
fn memory_comes_back_when_the_device_is_let_go() {
    let mut transport = InProcess::new(CTRL | f::INDIRECT_DESC | f::GUEST_TSO4);
    for _ in 0..100 {
        let mut nic = VirtnetInfo::probe(transport, &options()).unwrap();
        nic.start_xmit(0, &[0; 60], &VirtioNetHdr::default())
            .unwrap();
        transport = nic.remove().unwrap();
    }
}

/// What the checker of mappings finds, beside what a device does that has one frame to give and one to take.
fn checked(wrong: impl FnOnce(&mut VirtnetInfo<InProcess>, [u64; 2])) -> Vec<DmaErrorKind> {
    let mut nic = nic(BASE);
    let memory = nic.transport.memory.clone();
    memory.dma_debug().tolerate();
    let first = |ring: &nic_guest::ring::RingMemory| ring.desc.read_u64(0);
    nic.start_xmit(0, &[7; 60], &VirtioNetHdr::default())
        .unwrap();
    nic.flush(0);
    let buffers = [first(nic.rq[0].vq.ring()), first(nic.sq[0].vq.ring())];
    nic.transport.receive(0, &[0; 72], 72);
    wrong(&mut nic, buffers);
    nic.rq[0].try_fill_recv();
    assert_eq!(nic.transport.take(1).map(|chain| chain.0), Some(0));
    nic.transport.put(1, 0, 0);
    nic.sq[0].free_old_xmit().unwrap();
    nic.remove().unwrap();
    let errors = memory.dma_debug().take_errors();
    assert_eq!(memory.dma_debug().mapped(), 0);
    errors.iter().map(|error| error.kind).collect()
}

#[test]
fn a_device_that_writes_out_of_turn_is_found_out() {
    if !CONFIG_DMA_API_DEBUG {
        return;
    }
    let take = |nic: &mut VirtnetInfo<InProcess>| nic.poll(0, 64, |_| {}).unwrap();
    assert_eq!(checked(|nic, _| assert_eq!(take(nic), 1)), []);
    let late = checked(|nic, [received, _]| {
        take(nic);
        nic.transport.memory.write(received + 30, &[1]).unwrap();
    });
    assert_eq!(
        late,
        [DmaErrorKind::DeviceAccess],
        "a buffer that it gave back"
    );
    let read_only = checked(|nic, [_, sent]| {
        take(nic);
        nic.transport.memory.write(sent + 30, &[1]).unwrap();
    });
    assert_eq!(
        read_only,
        [DmaErrorKind::DeviceAccess],
        "what it was to read"
    );
}

#[test]
fn a_frame_that_cannot_be_mapped_is_not_sent() {
    if !CONFIG_DMA_API_DEBUG {
        return;
    }
    let mut nic = nic(BASE);
    let memory = nic.transport.memory.clone();
    memory.dma_debug().fail_maps(1);
    let hdr = VirtioNetHdr::default();
    let sent = nic.start_xmit(0, &[0; 60], &hdr);
    assert!(matches!(sent, Err(XmitError::Mapping(_))));
    assert_eq!(nic.start_xmit(0, &[0; 60], &hdr), Ok(()));
    assert_eq!(nic.sq[0].vq.outstanding(), 1);
    nic.remove().unwrap();
}

#[test]
fn receive_buffers_are_cut_from_pages_that_come_back() {
    let mut nic = nic(BASE | f::MRG_RXBUF);
    for _ in 0..100 {
        let bytes = with_header(
            VirtioNetHdr {
                num_buffers: 1,
                ..VirtioNetHdr::default()
            },
            12,
            &[0; 60],
        );
        for _ in 0..10 {
            nic.transport.receive(0, &bytes, bytes.len() as u32);
        }
        assert_eq!(nic.poll(0, 64, |_| {}).unwrap(), 10);
        assert_full(&mut nic);
    }
    // Sixteen buffers to a page: no page came but those that were there from the beginning.
    let stats = *nic.rq[0].page_pool_stats();
    assert_eq!((stats.alloc_slow_high_order, stats.alloc_empty), (2, 0));
    assert_eq!(stats.recycle_cached, 62, "1000 buffers: {stats:?}");
    assert_eq!((stats.recycle_ring, stats.recycle_ring_full), (0, 0));
    let names = stats.ethtool().map(|(name, _)| name);
    assert_eq!(names[..2], ["rx_pp_alloc_fast", "rx_pp_alloc_slow"]);
    nic.remove().unwrap();
}

#[test]
fn a_queue_that_there_is_no_memory_for_leaves_none_behind() {
    let plain = VirtqueueOptions::default();
    let mut refused = [0; 3];
    for options in [
        plain,
        VirtqueueOptions {
            packed: true,
            ..plain
        },
        VirtqueueOptions {
            indirect: 4,
            ..plain
        },
    ] {
        for pages in 2..80 {
            let memory = GuestMemory::new(pages * PAGE_SIZE).unwrap();
            let none_is_taken = || {
                let most = memory.allocate((pages - 1) * PAGE_SIZE, PAGE_SIZE);
                assert!(most.is_ok_and(|all| {
                    memory.release(&all);
                    true
                }));
                assert_eq!(memory.dma_debug().mapped(), 0);
            };
            none_is_taken();
            match ReceiveQueue::new(&memory, 0, 32, BASE, options, 1500, None) {
                Ok(queue) => queue.release(),
                Err(_) => refused[0] += 1,
            }
            none_is_taken();
            match SendQueue::new(&memory, 1, 32, BASE, options, 1500, None) {
                Ok(queue) => queue.release(),
                Err(_) => refused[1] += 1,
            }
            none_is_taken();
            match ControlQueue::new(&memory, 2, 32, options) {
                Ok(queue) => queue.release(),
                Err(_) => refused[2] += 1,
            }
            none_is_taken();
        }
    }
    assert!(
        refused.iter().all(|count| (6..200).contains(count)),
        "{refused:?}"
    );
}
