//! Drivers that break their rings: that queue stops and says why, all else goes on, and set up again it works.

use std::sync::Arc;

use nic_device::ring::Fault;
use nic_guest::memory::GuestMemory;
use nic_guest::ring::raw::{Descriptor, RawRing};
use nic_guest::ring::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::transport::{QueueConfig, Transport};
use nic_guest::virtio_net::{ProbeOptions, features as f};
use nic_model::counters::Drop;
use nic_testbed::check::bed::{
    BEHIND, CONTROL, FAR, FRAME, HEADER, HOLE, RX, SEAM, SIZE, TABLE, TX, buffer,
};
use nic_testbed::check::breaks::{BREAKS, Break, NOT_WRITABLE, four_gibioctets, indirect};

use crate::support::{TestNic, numbered_frame, wait_until};

const NEXT: u16 = VIRTQ_DESC_F_NEXT;
const WRITE: u16 = VIRTQ_DESC_F_WRITE;
const INDIRECT: u16 = VIRTQ_DESC_F_INDIRECT;

/// What the device says about each of [`BREAKS`].
fn fault(name: &str) -> Fault {
    match name {
        "a loop" | "a loop of one" | "a loop in a table" => Fault::ChainTooLong,
        "a head out of range" | "a head far out of range" => Fault::HeadOutOfRange,
        "a next out of range" | "a successor outside its table" => Fault::NextOutOfRange,
        "an address in a hole"
        | "a buffer that reaches into a hole"
        | "a buffer over a hole"
        | "a huge buffer"
        | "a table in a hole"
        | "a table at the last address" => Fault::AddressOutOfRange,
        "an address that wraps" => Fault::AddressWraps,
        "a length of zero" => Fault::ZeroLength,
        "readable after writable" => Fault::ReadableAfterWritable,
        "an index that jumps" | "an index that goes back" => Fault::IndexJump,
        "nested tables" => Fault::IndirectNested,
        "a table with a successor" => Fault::IndirectWithNext,
        "an empty table" | "half a table" => Fault::IndirectLength,
        other => panic!("what fault is {other}?"),
    }
}

/// A driver with nothing but rings: three of them, to write anything into.
struct Driver<'a> {
    nic: &'a TestNic,
    transport: VhostUser,
    memory: Arc<GuestMemory>,
    rings: [RawRing; 3],
}

const FEATURES: u64 = f::VERSION_1 | f::CTRL_VQ | f::CTRL_RX | f::INDIRECT_DESC;

impl<'a> Driver<'a> {
    fn attach(nic: &'a TestNic, features: u64, size: u16) -> Self {
        let memory = GuestMemory::builder()
            .region(0, SEAM as usize)
            .region(SEAM, (HOLE - SEAM) as usize)
            .region(FAR, BEHIND as usize)
            .build()
            .expect("memory");
        let mut transport =
            VhostUser::connect(&nic.socket(), memory.clone()).expect("a connection");
        transport.set_driver_features(features).expect("features");
        let rings = [size; 3].map(|size| RawRing::allocate(&memory, size).expect("room"));
        let mut driver = Driver {
            nic,
            transport,
            memory,
            rings,
        };
        (0..3).for_each(|queue| driver.set_up(queue));
        driver.transport.driver_ok().expect("it starts");
        driver
    }

    fn set_up(&mut self, queue: usize) {
        let ring = &self.rings[queue];
        ring.ring().clear();
        let config = QueueConfig {
            index: queue as u16,
            size: ring.size(),
            layout: ring.ring().layout(),
            next: 0,
        };
        self.transport.setup_queue(&config).expect("a sound ring");
    }

    fn faults(&self, queue: usize) -> (u64, Option<String>) {
        let counters = self.nic.status().nic.queues.swap_remove(queue);
        (counters.faults, counters.last_fault)
    }

    /// Makes the chain at `head` available and waits until it is used; how many octets were written to it.
    fn complete(&self, queue: usize, head: u16, why: &str) -> u32 {
        let ring = &self.rings[queue];
        let before = ring.used_idx();
        ring.make_available(&[head]);
        self.transport.kick(queue as u16);
        wait_until(why, || ring.used_idx() != before);
        let (id, len) = ring.used_elem(before);
        assert_eq!(
            (id, ring.used_idx()),
            (u32::from(head), before.wrapping_add(1)),
            "{why}"
        );
        len
    }

    /// Puts a good frame or command where the queue's buffer is.
    fn fill(&self, queue: usize) {
        let bytes = match queue {
            TX => [
                &[0; HEADER as usize][..],
                &numbered_frame(1, FRAME as usize),
            ]
            .concat(),
            // CTRL_RX PROMISC on, and no answer yet.
            CONTROL => vec![0, 0, 1, 0xff],
            _ => vec![0xee; 2048],
        };
        self.memory
            .write(buffer(queue), &bytes)
            .expect("it is mapped");
    }

    /// Has the queue do something good.
    fn assert_works(&self, queue: usize, why: &str) {
        let (ring, addr) = (&self.rings[queue], buffer(queue));
        self.fill(queue);
        match queue {
            RX => ring.set_desc(0, Descriptor::new(addr, 2048, WRITE, 0)),
            TX => ring.set_desc(0, Descriptor::new(addr, HEADER + FRAME, 0, 0)),
            _ => {
                ring.set_desc(0, Descriptor::new(addr, 3, NEXT, 1));
                ring.set_desc(1, Descriptor::new(addr + 3, 1, WRITE, 0));
            }
        }
        let expected = [HEADER + FRAME, 0, 1][queue];
        assert_eq!(
            self.complete(queue, 0, why),
            expected,
            "queue {queue} after {why}"
        );
        if queue == CONTROL {
            let mut answer = [0xff];
            self.memory
                .read(addr + 3, &mut answer)
                .expect("it is mapped");
            assert_eq!(answer, [0], "{why}");
        }
    }
}

/// Breaks `queue`, and asserts that it stops, that only it does, and that set up again it works.
fn attack(driver: &mut Driver<'_>, queue: usize, name: &str, fault: Fault, how: Break) {
    let ring = driver.rings[queue].clone();
    let (faults, _) = driver.faults(queue);
    let used = ring.used_idx();
    driver.fill(queue);
    how(&ring, buffer(queue), if queue == RX { WRITE } else { 0 });
    driver.transport.kick(queue as u16);
    let why = format!("{name} on queue {queue}");
    wait_until(&why, || driver.faults(queue).0 > faults);
    assert_eq!(
        driver.faults(queue),
        (faults + 1, Some(fault.name())),
        "{why}"
    );
    wait_until(&why, || driver.transport.take_queue_error(queue as u16) > 0);
    for other in (0..3).filter(|&other| other != queue) {
        driver.assert_works(other, &why);
    }
    assert_eq!(ring.used_idx(), used, "{why}: used all the same");
    driver.transport.kick(queue as u16);
    assert_eq!(driver.faults(queue).0, faults + 1, "{why}: counted twice");
    driver
        .transport
        .stop_queue(queue as u16)
        .expect("an answer");
    driver.set_up(queue);
    driver.assert_works(queue, &why);
}

/// A wire that always has frames to receive, of the shortest length.
fn busy_nic() -> TestNic {
    TestNic::new("generator:pps=20000,size=64")
}

fn assert_serves_the_next(nic: &TestNic, why: &str) {
    let mut guest = nic.guest(&ProbeOptions::default());
    let mut received = 0;
    wait_until(why, || {
        received += guest.poll(0, 64, |_| ()).expect("sound rings");
        received > 10
    });
    guest
        .start_xmit(0, &numbered_frame(0, 60), &Default::default())
        .expect("room");
    guest.flush(0);
    wait_until(why, || {
        guest.sq[0].free_old_xmit().expect("a sound ring") == 1
    });
    nic.assert_balanced();
}

#[test]
fn a_broken_ring_stops_its_queue_alone_until_it_is_set_up_again() {
    let nic = busy_nic();
    let mut driver = Driver::attach(&nic, FEATURES, SIZE);
    for &(name, how) in BREAKS {
        for queue in [RX, TX, CONTROL] {
            attack(&mut driver, queue, name, fault(name), how);
        }
    }
    for &(name, queue, how) in NOT_WRITABLE {
        attack(&mut driver, queue, name, Fault::NotWritable, how);
    }
    drop(driver);
    assert_serves_the_next(&nic, "all faults");
}

#[test]
fn an_indirect_table_that_was_not_negotiated_breaks_the_ring() {
    let nic = busy_nic();
    let mut driver = Driver::attach(&nic, FEATURES & !f::INDIRECT_DESC, SIZE);
    for queue in [RX, TX, CONTROL] {
        attack(
            &mut driver,
            queue,
            "a table",
            Fault::IndirectNotNegotiated,
            |ring, addr, flag| {
                indirect(ring, &[Descriptor::new(addr, 8, flag, 0)], 16, 0);
            },
        );
    }
}

#[test]
fn a_chain_of_more_than_four_gibioctets_breaks_the_ring() {
    let nic = busy_nic();
    let mut driver = Driver::attach(&nic, FEATURES, 1024);
    for queue in [RX, TX, CONTROL] {
        attack(
            &mut driver,
            queue,
            "4 GiB",
            Fault::ChainTooBig,
            four_gibioctets,
        );
    }
}

#[test]
fn a_broken_ring_is_no_matter_for_the_next_connection() {
    let nic = busy_nic();
    for &(name, how) in BREAKS {
        let driver = Driver::attach(&nic, FEATURES, SIZE);
        for queue in [RX, TX, CONTROL] {
            how(
                &driver.rings[queue],
                buffer(queue),
                if queue == RX { WRITE } else { 0 },
            );
            driver.transport.kick(queue as u16);
        }
        drop(driver);
        assert_serves_the_next(&nic, name);
    }
}

#[test]
fn a_reset_mends_all_rings_at_once() {
    let nic = busy_nic();
    let mut driver = Driver::attach(&nic, FEATURES, SIZE);
    for &(name, how) in BREAKS.iter().step_by(4) {
        for queue in [RX, TX, CONTROL] {
            let (faults, _) = driver.faults(queue);
            how(
                &driver.rings[queue],
                buffer(queue),
                if queue == RX { WRITE } else { 0 },
            );
            driver.transport.kick(queue as u16);
            wait_until(name, || driver.faults(queue).0 > faults);
        }
        driver.transport.reset().expect("a reset");
        driver
            .transport
            .set_driver_features(FEATURES)
            .expect("features");
        (0..3).for_each(|queue| driver.set_up(queue));
        driver.transport.driver_ok().expect("it starts");
        for queue in [RX, TX, CONTROL] {
            driver.assert_works(queue, name);
        }
    }
}

#[test]
fn what_is_odd_but_allowed_works() {
    let nic = busy_nic();
    let driver = Driver::attach(&nic, FEATURES, SIZE);
    let frame = [
        &[0; HEADER as usize][..],
        &numbered_frame(1, FRAME as usize),
    ]
    .concat();
    let at = |offset: u64| buffer(TX) + offset;
    let chains: &[(&str, &[Descriptor], &[Descriptor])] = &[
        (
            "a chain that ends in a table",
            &[
                Descriptor::new(at(0), 12, NEXT, 1),
                Descriptor::new(TABLE, 16, INDIRECT, 0),
            ],
            &[Descriptor::new(at(12), 60, 0, 0)],
        ),
        (
            "a writable table",
            &[Descriptor::new(TABLE, 16, INDIRECT | WRITE, 0)],
            &[Descriptor::new(at(0), 72, 0, 0)],
        ),
        (
            "a table with more entries than are used",
            &[Descriptor::new(TABLE, 0x1000, INDIRECT, 0)],
            &[Descriptor::new(at(0), 72, 0, 0)],
        ),
        (
            "a table that goes backwards",
            &[Descriptor::new(TABLE, 32, INDIRECT, 0)],
            &[
                Descriptor::new(at(0), 20, NEXT, 1),
                Descriptor::new(at(20), 52, 0, 0),
            ],
        ),
        (
            "a buffer over two regions",
            &[Descriptor::new(SEAM - 30, 72, 0, 0)],
            &[],
        ),
        (
            "a writable part to transmit",
            &[
                Descriptor::new(at(0), 72, NEXT, 1),
                Descriptor::new(at(0), 64, WRITE, 0),
            ],
            &[],
        ),
    ];
    driver
        .memory
        .write(SEAM - 30, &frame)
        .expect("it is mapped");
    for (sent, (name, chain, table)) in (1..).zip(chains) {
        driver.fill(TX);
        driver.rings[TX]
            .write_indirect_table(TABLE, table)
            .expect("it is mapped");
        for (index, desc) in (0..).zip(*chain) {
            driver.rings[TX].set_desc(index, *desc);
        }
        driver.complete(TX, 0, name);
        wait_until(name, || nic.status().nic.port.counters.tx_frames == sent);
    }
    driver.rings[RX].set_desc(0, Descriptor::new(SEAM - 30, 2048, WRITE, 0));
    assert_eq!(
        driver.complete(RX, 0, "a receive buffer over two regions"),
        HEADER + FRAME
    );
    assert!((0..3).all(|queue| driver.faults(queue).0 == 0));
}

#[test]
fn buffers_too_small_cost_their_packet_and_come_back() {
    let nic = busy_nic();
    let driver = Driver::attach(&nic, FEATURES, SIZE);
    let dropped = |reason| nic.status().nic.port.counters.drops.get(reason);
    for len in [1, HEADER - 1, HEADER, HEADER + 13, HEADER + 1600] {
        driver.fill(TX);
        driver.rings[TX].set_desc(0, Descriptor::new(buffer(TX), len, 0, 0));
        let reason = if len > HEADER + 1514 {
            Drop::TxOversize
        } else {
            Drop::TxUndersize
        };
        let before = dropped(reason);
        driver.complete(TX, 0, "a runt");
        assert_eq!(dropped(reason), before + 1, "{len} octets");
    }
    for len in [1, HEADER, HEADER + FRAME - 1] {
        let before = dropped(Drop::RxBufferTooSmall);
        driver.fill(RX);
        driver.rings[RX].set_desc(0, Descriptor::new(buffer(RX), len, WRITE, 0));
        assert_eq!(driver.complete(RX, 0, "a runt"), 0);
        assert_eq!(dropped(Drop::RxBufferTooSmall), before + 1, "{len} octets");
    }
    for queue in [RX, TX, CONTROL] {
        driver.assert_works(queue, "runts");
    }
    nic.assert_balanced();
}
