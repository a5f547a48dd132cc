//! What others got wrong once, where no other test has it: docs/conformance.md says which test is for which.

use std::time::Instant;

use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
use nic_guest::ring::raw::Descriptor;
use nic_guest::virtio_net::features as f;
use nic_model::counters::Drop;
use nic_testbed::check::bed::{
    BUFFER, Bed, FAR, FRAME, HEADER, HOLE, RX, SIZE, TX, buffer, memory, take,
};
use nic_testbed::check::front::Target;
use nic_testbed::check::ring::{Layout, Piece, Ring};

use crate::support::{PATIENCE, TestNic, wait_until};

fn target(nic: &TestNic) -> Target {
    let mut target = Target::new(&nic.socket(), PATIENCE);
    target.learn().expect("a NIC");
    target.facts.answers = true;
    target
}

/// Octets of the header with HASH_REPORT (VIRTIO 1.3, 5.1.6).
const LONG_HEADER: u32 = 20;

/// CVE-2023-6693, QEMU: the header was as long as with HASH_REPORT where there was room for a shorter one.
#[test]
fn cve_2023_6693_a_long_header_stays_within_a_short_buffer() {
    let nic = TestNic::new("loopback");
    let target = target(&nic);
    for layout in Layout::ALL {
        let memory = memory().expect("memory");
        let bed = Bed::attach_over(&target, memory, layout, SIZE, f::HASH_REPORT);
        let mut bed = bed.expect("a NIC");
        let header = [&[0; LONG_HEADER as usize][..], &bed.frame()].concat();
        for len in [
            1,
            9,
            10,
            12,
            13,
            19,
            20,
            21,
            LONG_HEADER + FRAME - 1,
            BUFFER,
        ] {
            bed.fill(RX).expect("memory");
            bed.memory.write(buffer(TX), &header).expect("memory");
            bed.offer(RX, 0, &[Piece::new(buffer(RX), len, WRITE)]);
            let mut used = None;
            wait_until("the buffer to come back", || {
                bed.offer(TX, 0, &[Piece::new(buffer(TX), LONG_HEADER + FRAME, 0)]);
                bed.await_used(TX, 0).expect("it is sent");
                used = bed.queues[RX].ring.take_used();
                used.is_some()
            });
            let mut octets = [0; BUFFER as usize];
            bed.memory.read(buffer(RX), &mut octets).expect("memory");
            let whole = LONG_HEADER + FRAME;
            let written = if len < whole { 0 } else { whole };
            assert_eq!(used, Some((0, written)), "{layout:?}, {len} octets");
            let behind = &octets[len.min(whole) as usize..];
            assert!(
                behind.iter().all(|&octet| octet == 0xa5),
                "{layout:?}, {len} octets"
            );
            if written > 0 {
                let frame = &octets[LONG_HEADER as usize..whole as usize];
                assert_eq!(frame, bed.frame(), "{layout:?}");
            }
        }
    }
}

/// Changes the first descriptor of a split ring to each of `places` in turn.
fn change(ring: &Ring, places: &[(u64, u32)]) {
    let Ring::Split(ring) = ring else {
        panic!("it is split");
    };
    for &(addr, len) in places {
        ring.raw.set_desc(0, Descriptor::new(addr, len, WRITE, 0));
    }
}

/// CVE-2020-14375 and, after the tables of others, CVE-2026-93683 and CVE-2026-86562, DPDK: a descriptor was checked, and read again when
/// it was used.
#[test]
fn cve_2020_14375_descriptors_that_change_while_they_are_used_reach_nowhere() {
    let nic = TestNic::new("loopback");
    let target = target(&nic);
    let (mut used, mut broken) = (0, 0);
    let mut bed = Bed::attach(&target, Layout::Split).expect("a NIC");
    for round in 0..1000 {
        bed.fill(RX).expect("memory");
        bed.fill(TX).expect("memory");
        let before = bed.snapshot().expect("memory");
        let good = (buffer(RX), BUFFER);
        let places = [
            good,
            (HOLE, BUFFER),
            (buffer(RX), u32::MAX),
            (u64::MAX - 10, 100),
            (HOLE - 4, BUFFER),
            (buffer(RX), 0),
        ];
        bed.offer(RX, 0, &[Piece::new(good.0, good.1, WRITE)]);
        bed.offer(TX, 0, &[Piece::new(buffer(TX), HEADER + FRAME, 0)]);
        let start = Instant::now();
        loop {
            change(&bed.queues[RX].ring, &places);
            if bed.queues[RX].ring.take_used().is_some() {
                used += 1;
                break;
            }
            if take(&bed.queues[RX].err) > 0 {
                broken += 1;
                break;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "round {round}: nothing comes of it"
            );
        }
        change(&bed.queues[RX].ring, &[good]);
        let harm = bed.harm(&before, RX).expect("memory");
        assert_eq!(harm, None, "round {round}");
        bed.restart().expect("a NIC that goes on");
        bed.queues.iter().for_each(|queue| {
            take(&queue.err);
        });
    }
    println!("{used} used, {broken} broken");
    bed.works(RX).expect("it works");
}

/// The same of a packet's header, and of what it is in, on both layouts.
#[test]
fn cve_2026_86562_headers_that_change_while_they_are_read_are_read_once() {
    let nic = TestNic::new("loopback");
    let target = target(&nic);
    for layout in Layout::ALL {
        let mut bed = Bed::attach(&target, layout).expect("a NIC");
        let passed = || {
            let counters = nic.status().nic.port.counters;
            counters.tx_frames + counters.drops.get(Drop::TxMalformed)
        };
        let before = passed();
        for _ in 0..1000 {
            let at = FAR + 0x1000 * TX as u64;
            bed.fill(TX).expect("memory");
            bed.offer(TX, 0, &[Piece::new(at, HEADER + FRAME, 0)]);
            // NEEDS_CSUM far behind the end; a segmentation of nothing; and a good one.
            for header in [
                [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
                [1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
                [0; HEADER as usize],
            ] {
                bed.memory.write(at, &header).expect("memory");
            }
            bed.await_used(TX, 0)
                .expect("it is used, whatever became of it");
        }
        // Each is one thing or the other, by one of its headers.
        wait_until("all of them to be counted", || passed() >= before + 1000);
        assert_eq!(passed(), before + 1000);
        bed.works(TX).expect("it works");
        drop(bed);
        nic.assert_balanced();
    }
}
