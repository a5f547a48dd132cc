//! Every front-end in its own message order; and what happens when one of the two sides goes away.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nic_device::features::Features;
use nic_guest::memory::GuestMemory;
use nic_guest::ring::RingMemory;
use nic_guest::transport::Transport;
use nic_guest::transport::front_end::{FrontEnd, FrontEndOptions};
use nic_guest::transport::message::{
    Connection, MessageError, connect, memory_region, single_region,
};
use nic_guest::transport::persona::Persona;
use nic_guest::transport::vhost_user::{VhostUser, VhostUserOptions};
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f, queue_config};
use nic_model::counters::Drop;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

use crate::support::{
    PATIENCE, TestNic, exchange, numbered_frame, offered, split_memory, wait_until,
    without_super_frames,
};

mod reconnect;

/// Memory as the persona lays it out. Where it is in two regions, so little of the first is free that rings and
/// buffers come to lie in both.
fn memory_of(persona: Persona) -> Arc<GuestMemory> {
    let builder = GuestMemory::builder();
    match persona {
        Persona::VirtioUser => builder.region_at_host_address(16 << 20).build(),
        Persona::Uml => builder
            .region_at_offset(0x60_0000, 16 << 20, 0x60_0000)
            .build(),
        _ => {
            let memory = split_memory();
            memory.allocate(15 << 20, 4096).expect("room");
            Ok(memory)
        }
    }
    .expect("guest memory")
}

fn nic_for(persona: Persona) -> TestNic {
    TestNic::with("loopback", |config| {
        if persona == Persona::VirtioUser {
            config.features = offered(1).without(Features::CTRL_VQ);
        }
    })
}

fn options() -> FrontEndOptions {
    FrontEndOptions {
        timeout: PATIENCE,
        ..FrontEndOptions::default()
    }
}

/// Rings of each kind.
const RINGS: [u64; 3] = [0, f::RING_PACKED, f::RING_PACKED | f::IN_ORDER];

fn attach(persona: Persona, socket: &Path, size: u16) -> VirtnetInfo<FrontEnd> {
    attach_with(persona, socket, size, 0)
}

/// The same, with rings of that kind where the front-end has them.
fn attach_with(persona: Persona, socket: &Path, size: u16, rings: u64) -> VirtnetInfo<FrontEnd> {
    let transport =
        FrontEnd::connect(persona, socket, memory_of(persona), options()).expect("a connection");
    let probe = ProbeOptions {
        queue_size: size,
        ..without_super_frames().with(rings)
    };
    let guest = VirtnetInfo::probe(transport, &probe).expect("a device");
    catch_up(&guest);
    guest
}

/// Waits until the NIC has dealt with all messages, for those that do not: a ring that has a kick but is not
/// enabled yet discards what is sent.
fn catch_up(guest: &VirtnetInfo<FrontEnd>) {
    let raw = guest.transport.raw().expect("a connection");
    raw.ask_u64(FrontendReq::GET_FEATURES).expect("an answer");
}

fn frames(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    numbers
        .map(|n| numbered_frame(n, 60 + n as usize % 1455))
        .collect()
}

fn assert_passes<T: Transport>(guest: &mut VirtnetInfo<T>, numbers: std::ops::Range<u32>) {
    let sent = frames(numbers);
    let received = exchange(guest, &sent);
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "frames are changed or out of order");
}

#[test]
fn every_persona_attaches_passes_frames_and_leaves() {
    for persona in Persona::ALL {
        let nic = nic_for(persona);
        // After a front-end has left in order or without a word, whatever rings that one had.
        for (round, rings) in (0..6).zip(RINGS.into_iter().cycle()) {
            let mut guest = attach_with(persona, &nic.socket(), 256, rings);
            assert_passes(&mut guest, 0..1000);
            assert_eq!(guest.stats().0.drops, 0, "{persona:?}");
            guest.take_interrupts(0);
            assert!(guest.stats().0.interrupts > 0, "{persona:?}");
            if round % 2 == 1 {
                guest.remove().expect("a reset");
            }
        }
        nic.assert_balanced();
        let status = nic.status();
        assert_eq!(
            (status.connections, status.refused_messages),
            (6, 0),
            "{persona:?}"
        );
        assert!(
            status
                .nic
                .queues
                .iter()
                .all(|queue| queue.faults == 0 && queue.interrupts_failed == 0)
        );
    }
}

#[test]
fn memory_may_be_one_region_many_or_one_file() {
    let layouts = [
        GuestMemory::builder().region(0, 16 << 20),
        (0..8).fold(GuestMemory::builder(), |b, n| {
            b.region_at_offset(n << 32, 2 << 20, (n as usize) << 12)
        }),
        (0..32)
            .fold(GuestMemory::builder(), |b, n| b.region(n << 30, 1 << 20))
            .one_file(),
    ];
    for layout in layouts {
        let nic = TestNic::new("loopback");
        let memory = layout.build().expect("guest memory");
        // Both ways to tell it: the whole table, and region by region.
        let protocols = [
            Protocol::REPLY_ACK,
            Protocol::REPLY_ACK | Protocol::CONFIGURE_MEM_SLOTS,
        ];
        for (protocol, rings) in protocols.into_iter().flat_map(|p| [(p, 0), (p, RINGS[2])]) {
            let options = VhostUserOptions {
                protocol_features: protocol | Protocol::CONFIG | Protocol::MQ,
                ..VhostUserOptions::default()
            };
            let transport = VhostUser::connect_with(&nic.socket(), memory.clone(), &options)
                .expect("a connection");
            let options = without_super_frames().with(rings);
            let mut guest = VirtnetInfo::probe(transport, &options).expect("a device");
            assert_passes(&mut guest, 0..300);
            guest.remove().expect("a reset");
        }
    }
}

/// Sends one frame after the other, as many as fit, and does not look at what comes back.
fn stuff<T: Transport>(guest: &mut VirtnetInfo<T>, numbers: std::ops::Range<u32>) -> u32 {
    let mut sent = 0;
    for frame in frames(numbers) {
        if guest
            .start_xmit(0, &frame, &VirtioNetHdr::default())
            .is_err()
        {
            break;
        }
        sent += 1;
    }
    guest.flush(0);
    sent
}

/// Takes what was still on its way, so that what is sent next comes back first.
fn drain<T: Transport>(guest: &mut VirtnetInfo<T>, nic: &TestNic) {
    wait_until("the line to be empty", || {
        guest.poll(0, 64, |_| ()).expect("sound rings");
        let sent = guest.sq[0].vq.outstanding() == 0;
        let status = nic.status();
        let (port, returned) = (&status.nic.port, &status.wire_counters["loopback_returned"]);
        let idle = *returned == port.counters.tx_frames && port.rx_fifo_frames == 0;
        // With several workers what is sent may still be on its way to the port.
        let idle = idle && port.tx_queued_frames == 0;
        sent && idle && !guest.rq[0].vq.more_used()
    });
}

#[test]
fn the_next_guest_gets_nothing_that_was_meant_for_the_one_before() {
    let nic = TestNic::new("loopback");
    let leaves = [false, true].into_iter();
    for (in_order, rings) in leaves.flat_map(|leave| RINGS.map(|rings| (leave, rings))) {
        let mut first = nic.guest(&ProbeOptions {
            queue_size: 4,
            ..ProbeOptions::default().with(rings)
        });
        for start in (1000..1048).step_by(4) {
            settle_tx(&mut first);
            stuff(&mut first, start..start + 4);
        }
        settle_tx(&mut first);
        wait_until("the FIFO to fill", || {
            nic.status().nic.port.rx_fifo_frames >= 44
        });
        let dropped = nic
            .status()
            .nic
            .port
            .counters
            .drops
            .get(Drop::RxQueueDisabled);
        if in_order {
            first.remove().expect("a reset");
        } else {
            drop(first);
        }
        let mut second = nic.guest(&ProbeOptions::default());
        assert_passes(&mut second, 0..500);
        let now = nic
            .status()
            .nic
            .port
            .counters
            .drops
            .get(Drop::RxQueueDisabled);
        assert_eq!(now - dropped, 44, "the first guest's frames are counted");
        nic.assert_balanced();
    }
}

fn settle_tx<T: Transport>(guest: &mut VirtnetInfo<T>) {
    wait_until("the transmit ring to be empty", || {
        guest.sq[0].free_old_xmit().expect("a sound ring");
        guest.sq[0].vq.outstanding() == 0
    });
}

#[test]
fn the_second_front_end_waits_until_the_first_leaves() {
    let nic = TestNic::new("loopback");
    let mut first = nic.guest(&ProbeOptions::default());
    let stream = connect(&nic.socket(), PATIENCE).expect("a connection");
    let second = Connection::new(stream, Duration::from_millis(50)).expect("a timeout");
    second
        .tell(FrontendReq::GET_FEATURES, &[], &[])
        .expect("room in the socket");
    for round in 0..3 {
        assert_passes(&mut first, 0..200 + round);
        assert!(matches!(second.recv(), Err(MessageError::TimedOut)));
    }
    assert_eq!(nic.status().connections, 1);
    first.remove().expect("a reset");
    second
        .stream()
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    let features = second
        .recv_reply(FrontendReq::GET_FEATURES)
        .expect("its turn")
        .u64()
        .expect("a number");
    assert_eq!(features, offered(1).bits());
    assert_eq!(nic.status().connections, 2);
}

/// A line that never rests, and frames that any guest takes.
fn busy_nic() -> TestNic {
    TestNic::new("generator:pps=20000,size=64")
}

fn generated(nic: &TestNic) -> u64 {
    nic.status().wire_counters["generator_frames"]
        .as_u64()
        .expect("a count")
}

/// Waits until the wire has given `count` more frames.
fn let_pass(nic: &TestNic, count: u64) {
    let until = generated(nic) + count;
    wait_until("the generator", || generated(nic) >= until);
}

/// Takes frames until `count` have come.
fn receive<T: Transport>(guest: &mut VirtnetInfo<T>, count: usize) {
    let mut received = 0;
    wait_until("frames", || {
        received += guest.poll(0, 64, |_| ()).expect("sound rings");
        received >= count
    });
}

#[test]
fn nothing_is_touched_from_the_answer_to_get_vring_base_on() {
    RINGS.into_iter().for_each(nothing_is_touched);
}

fn nothing_is_touched(rings: u64) {
    let nic = busy_nic();
    // The control queue's ring would run on.
    let options = without_super_frames().with(rings).without(f::CTRL_VQ);
    let mut guest = nic.guest(&options);
    for _ in 0..5 {
        receive(&mut guest, 500);
        stuff(&mut guest, 0..100);
        let rx = guest.transport.stop_queue(0).expect("an answer");
        let tx = guest.transport.stop_queue(1).expect("an answer");
        let memory = guest.transport.memory().clone();
        let before = memory.checksum();
        for (next, vq) in [(rx, &guest.rq[0].vq), (tx, &guest.sq[0].vq)] {
            if rings & f::RING_PACKED != 0 {
                assert_eq!(next >> 16, next & 0xffff, "what was taken was used");
                continue;
            }
            let ring =
                RingMemory::at(&memory, vq.size(), vq.ring().layout()).expect("it is in memory");
            assert_eq!(
                next,
                u32::from(ring.used.load_acquire_u16(2)),
                "what was taken was used"
            );
        }
        let_pass(&nic, 1000);
        assert_eq!(memory.checksum(), before, "the NIC wrote to a stopped ring");
        for (index, next, vq) in [(0, rx, &guest.rq[0].vq), (1, tx, &guest.sq[0].vq)] {
            let queue = nic_guest::transport::QueueConfig {
                next,
                ..queue_config(index, vq)
            };
            guest
                .transport
                .setup_queue(&queue)
                .expect("it starts again");
        }
        settle_tx(&mut guest);
    }
    receive(&mut guest, 500);
    nic.assert_balanced();
}

#[test]
fn a_disabled_ring_receives_nothing_and_discards_what_is_sent() {
    RINGS.into_iter().for_each(a_disabled_ring);
}

fn a_disabled_ring(rings: u64) {
    let nic = busy_nic();
    let mut guest = nic.guest(&without_super_frames().with(rings));
    let drops = |reason| nic.status().nic.port.counters.drops.get(reason);
    for _ in 0..5 {
        receive(&mut guest, 300);
        guest.transport.enable_queue(0, false).expect("an answer");
        let ring = guest.rq[0].vq.ring();
        // What shows the driver that buffers were used.
        let shown = || {
            let mut descriptors = vec![0; ring.desc.len()];
            ring.desc.read(0, &mut descriptors);
            (descriptors, ring.used.load_acquire_u16(2))
        };
        let (before, dropped) = (shown(), drops(Drop::RxQueueDisabled));
        let_pass(&nic, 200);
        if rings & f::RING_PACKED == 0 {
            assert_eq!(shown().1, before.1);
        }
        assert!(shown().0 == before.0);
        assert!(drops(Drop::RxQueueDisabled) >= dropped + 200);
        guest.transport.enable_queue(0, true).expect("an answer");

        guest.transport.enable_queue(1, false).expect("an answer");
        let (sent, dropped) = (
            nic.status().nic.port.counters.tx_frames,
            drops(Drop::TxQueueDisabled),
        );
        assert_eq!(stuff(&mut guest, 0..100), 100);
        settle_tx(&mut guest);
        assert_eq!(drops(Drop::TxQueueDisabled), dropped + 100);
        assert_eq!(nic.status().nic.port.counters.tx_frames, sent);
        guest.transport.enable_queue(1, true).expect("an answer");
        assert_eq!(stuff(&mut guest, 0..100), 100);
        settle_tx(&mut guest);
        wait_until("all on the line", || {
            nic.status().nic.port.counters.tx_frames == sent + 100
        });
    }
    receive(&mut guest, 300);
    nic.assert_balanced();
}

#[test]
fn memory_and_features_may_be_set_again_while_rings_run() {
    RINGS.into_iter().for_each(memory_and_features_set_again);
}

fn memory_and_features_set_again(rings: u64) {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&without_super_frames().with(rings));
    let features = guest.features() | f::PROTOCOL_FEATURES;
    for round in 0..20 {
        stuff(&mut guest, 0..64);
        let regions: Vec<_> = guest.transport.memory().regions();
        let other = GuestMemory::builder()
            .region(1 << 40, 1 << 20)
            .build()
            .expect("more memory");
        let mut regions: Vec<_> = regions
            .iter()
            .chain(&other.regions())
            .copied()
            .map(region_info)
            .collect();
        // With another region, without it, and in another order: each time the file is mapped elsewhere.
        if round % 3 == 1 {
            regions.pop();
        } else if round % 3 == 2 {
            regions.reverse();
        }
        vhost::VhostBackend::set_mem_table(guest.transport.frontend(), &regions)
            .expect("a new table");
        vhost::VhostBackend::set_features(guest.transport.frontend(), features)
            .expect("the same features");
        drain(&mut guest, &nic);
        assert_passes(&mut guest, 0..200);
    }
    nic.assert_balanced();
    let delivered = nic.status().nic.port.counters;
    assert_eq!(
        delivered.rx_delivered, delivered.tx_fetched,
        "nothing was lost"
    );
}

fn region_info(region: nic_guest::memory::RegionInfo) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_addr,
        memory_size: region.size,
        userspace_addr: region.host_addr,
        mmap_offset: region.mmap_offset,
        mmap_handle: region.fd,
    }
}

#[test]
fn regions_come_and_go_while_rings_run() {
    RINGS.into_iter().for_each(regions_come_and_go);
}

fn regions_come_and_go(rings: u64) {
    let nic = TestNic::new("loopback");
    let mut guest = attach_with(Persona::Qemu, &nic.socket(), 256, rings);
    for round in 0..20u64 {
        stuff(&mut guest, 0..64);
        let more = GuestMemory::builder()
            .region((1 << 40) + (round << 30), 1 << 20)
            .build()
            .expect("more memory");
        let region = more.regions()[0];
        let body = single_region(&memory_region(&region, region.host_addr));
        let raw = guest.transport.raw().expect("a connection");
        raw.tell_acked(FrontendReq::ADD_MEM_REG, &body, &[region.fd])
            .expect("a new region");
        drain(&mut guest, &nic);
        assert_passes(&mut guest, 0..100);
        if round % 2 == 0 {
            let raw = guest.transport.raw().expect("a connection");
            raw.tell_acked(FrontendReq::REM_MEM_REG, &body, &[])
                .expect("a region less");
        }
    }
    let delivered = nic.status().nic.port.counters;
    assert_eq!(
        delivered.rx_delivered, delivered.tx_fetched,
        "nothing was lost"
    );
}

#[test]
fn no_front_end_has_more_regions_than_there_are_slots() {
    let nic = TestNic::new("loopback");
    let guest = attach_with(Persona::Qemu, &nic.socket(), 256, RINGS[0]);
    let more = GuestMemory::builder()
        .region(1 << 40, 1 << 20)
        .build()
        .expect("more memory");
    let region = more.regions()[0];
    let raw = guest.transport.raw().expect("a connection");
    let mut taken = raw.ask_u64(FrontendReq::GET_MAX_MEM_SLOTS).expect("slots");
    assert_eq!(taken, 509);
    taken -= guest.transport.memory().regions().len() as u64;
    for slot in 0..=taken {
        let mut at = region;
        at.guest_addr += slot << 20;
        let at = memory_region(&at, at.host_addr);
        let raw = guest.transport.raw().expect("a connection");
        let told = raw.tell_acked(FrontendReq::ADD_MEM_REG, &single_region(&at), &[region.fd]);
        assert_eq!(
            told.is_ok(),
            slot < taken,
            "slot {slot} of {taken}: {told:?}"
        );
    }
    let raw = guest.transport.raw().expect("a connection");
    assert!(raw.closes_within(PATIENCE), "the connection ends");
    assert_eq!(nic.status().refused_messages, 1);
    let mut guest = attach(Persona::Qemu, &nic.socket(), 256);
    assert_passes(&mut guest, 0..100);
}

#[test]
fn a_ring_whose_memory_goes_and_comes_back_goes_on() {
    RINGS.into_iter().for_each(memory_goes_and_comes_back);
}

fn memory_goes_and_comes_back(rings: u64) {
    let nic = TestNic::new("loopback");
    let mut guest = attach_with(Persona::Qemu, &nic.socket(), 256, rings);
    assert_passes(&mut guest, 0..100);
    for region in guest.transport.memory().regions() {
        let body = single_region(&memory_region(&region, region.host_addr));
        let raw = guest.transport.raw().expect("a connection");
        raw.tell_acked(FrontendReq::REM_MEM_REG, &body, &[])
            .expect("a region less");
        raw.tell_acked(FrontendReq::ADD_MEM_REG, &body, &[region.fd])
            .expect("the region again");
    }
    assert_passes(&mut guest, 0..100);
}

#[test]
fn a_front_end_that_says_nothing_makes_way_for_another() {
    let nic = TestNic::new("loopback");
    let mute = connect(&nic.socket(), PATIENCE).expect("a connection");
    wait_until("the mute one is served", || nic.status().connections == 1);
    let mut guest = attach(Persona::Qemu, &nic.socket(), 256);
    assert_passes(&mut guest, 0..100);
    drop(mute);
}
