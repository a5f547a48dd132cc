//! Flow control of single priorities, from a guest that does not read one of them to the partner that stops it, with one worker and with several.

use std::time::Duration;

use nic_backend::card::Line;
use nic_guest::transport::Transport;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f, queue_config};
use nic_model::counters::{Drop, PortCounters};
use nic_model::pfc::Priorities;
use nic_model::port::PortConfig;

use crate::support::{TestNic, offered, virtual_guest_with, wait_until};

/// Frames of each priority: more than the guest has buffers for, and than a FIFO holds.
const FRAMES: u32 = 900;

/// How often is waited for what is still to come.
const PATIENCE: usize = 50_000;

/// Which priority is sent, and received, on each queue.
const PRIORITY: [u8; 2] = [5, 3];

fn two_queues() -> ProbeOptions {
    ProbeOptions {
        queue_pairs: 2,
        // Steered automatically: a flow comes back where it is sent.
        features: f::SUPPORTED & !(f::SEGMENTATION | f::RSS | f::HASH_REPORT),
        ..ProbeOptions::default()
    }
}

fn config(port: &mut PortConfig, controlled: bool) {
    port.queue_pairs = 2;
    port.speed = "1G".parse().expect("a speed");
    port.fifo = PortConfig::default().fifo;
    port.pfc = controlled.then_some(Priorities::of_vector(0b10_1000));
}

/// Frame `number` of the flow of `queue`: a datagram with a tag.
fn frame(queue: u16, number: u32) -> Vec<u8> {
    let mut datagram = Vec::new();
    let own = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    etherparse::PacketBuilder::ethernet2([2; 6], own)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000 + queue, 9)
        .write(
            &mut datagram,
            &[[0; 4], number.to_be_bytes()].concat().repeat(100),
        )
        .expect("a datagram");
    let tag = [0x81, 0, PRIORITY[usize::from(queue)] << 5, 0];
    [&datagram[..12], &tag, &datagram[12..]].concat()
}

/// What a guest has received: the numbers of each queue's frames.
type Received = [Vec<u32>; 2];

/// Takes what has come on `queue`.
fn read<T: Transport>(guest: &mut VirtnetInfo<T>, queue: u16, received: &mut Received) {
    let mut each = |frame: &[u8]| {
        let priority = frame[14] >> 5;
        assert_eq!(priority, PRIORITY[usize::from(queue)], "steered to {queue}");
        let number = frame[50..].first_chunk().expect("a number");
        received[usize::from(queue)].push(u32::from_be_bytes(*number));
    };
    while guest
        .poll(queue, 64, |frame| each(&frame.to_vec()))
        .expect("a sound ring")
        > 0
    {}
}

/// Has `guest` send frames of both priorities, and read one of them alone; then both. `wait` lets some time pass. Returns what came of the first before
/// the second was read, and all.
fn neglect<T: Transport>(
    guest: &mut VirtnetInfo<T>,
    mut wait: impl FnMut(&mut VirtnetInfo<T>),
) -> (usize, Received) {
    let mut received = Received::default();
    for number in 0..FRAMES {
        for queue in [0, 1] {
            let frame = frame(queue, number);
            while guest
                .start_xmit(queue, &frame, &VirtioNetHdr::default())
                .is_err()
            {
                wait(guest);
                read(guest, 0, &mut received);
            }
            guest.flush(queue);
        }
        wait(guest);
        read(guest, 0, &mut received);
    }
    for _ in 0..PATIENCE {
        if received[0].len() == FRAMES as usize {
            break;
        }
        wait(guest);
        read(guest, 0, &mut received);
    }
    let meanwhile = received[0].len();
    for _ in 0..PATIENCE {
        if received[1].len() == FRAMES as usize {
            break;
        }
        wait(guest);
        read(guest, 1, &mut received);
    }
    (meanwhile, received)
}

fn check(counters: &PortCounters, wire: &[(String, u64)], what: &(usize, Received)) {
    let (meanwhile, received) = what;
    assert_eq!(*meanwhile, FRAMES as usize, "the other priority went on");
    let all: Vec<_> = (0..FRAMES).collect();
    assert!(
        received[0] == all && received[1] == all,
        "all, and in order"
    );
    assert_eq!(counters.drops.get(Drop::RxFifoOverflow), 0);
    let [five, three] = [5, 3].map(|priority: usize| counters.pfc.priorities[priority]);
    assert!(three.tx_xoff >= 1 && three.tx_xon >= 1, "{three:?}");
    let of = |name: &str| {
        wire.iter()
            .find(|(known, _)| known == name)
            .map(|(_, count)| *count)
    };
    assert_eq!(of("partner_prio3_paused"), Some(three.tx_xoff));
    // In real time a guest may be slow to read this one, too.
    assert_eq!(of("partner_prio5_paused"), Some(five.tx_xoff));
}

#[test]
fn a_priority_that_a_guest_does_not_read_is_stopped_alone_and_nothing_is_lost() {
    for controlled in [true, false] {
        let mut guest =
            virtual_guest_with("loopback", &two_queues(), |port| config(port, controlled));
        let what = neglect(&mut guest, |guest| {
            let now = guest.transport.now();
            guest.transport.run_until(now + Duration::from_micros(20));
        });
        let card = guest.transport.card();
        let card = card.borrow();
        let counters = card.nic.counters();
        assert_eq!(counters.receive_balance(card.nic.queues.frames()), 0);
        assert_eq!(counters.transmit_balance(0), 0);
        if controlled {
            let wire = card.wire().counters();
            let wire: Vec<_> = wire
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count))
                .collect();
            check(&counters, &wire, &what);
            assert_eq!(counters.pfc.priorities[5].tx_xoff, 0);
        } else {
            // Without, the FIFO overflows.
            let lost = counters.drops.get(Drop::RxFifoOverflow);
            assert!(
                lost > 0 && what.1[1].len() as u64 + lost == u64::from(FRAMES),
                "{lost}"
            );
        }
    }
}

#[test]
fn workers_stop_a_priority_alone_too() {
    for workers in [1, 2] {
        let nic = TestNic::with("loopback", |nic| {
            config(&mut nic.port, true);
            nic.features = offered(2);
            nic.workers = workers;
        });
        let mut guest = nic.guest(&two_queues());
        let what = neglect(&mut guest, |_| {
            std::thread::sleep(Duration::from_micros(100));
        });
        let status = nic.status();
        let wire: Vec<_> = status
            .wire_counters
            .iter()
            .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
            .collect();
        check(&status.nic.port.counters, &wire, &what);
        // What a worker has taken, the port hears of a moment later.
        wait_until("nothing is in the FIFOs", || {
            let state = nic.status().nic.port.priorities.expect("a state");
            state.octets == [0; 8]
        });
        nic.assert_balanced();
    }
}

/// A capture of `count` frames that stop priority 3 for as long as can be said.
fn stops(count: usize) -> tempfile::NamedTempFile {
    let mut frame = vec![0x01, 0x80, 0xc2, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x88, 0x08];
    frame.extend([1, 1, 0, 1 << 3]);
    frame.extend([[0; 2], [0; 2], [0; 2], [0xff; 2]].concat());
    frame.resize(60, 0);
    let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1];
    let record: [u32; 4] = [0, 0, 60, 60];
    let octets =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let mut capture = octets(&header);
    for _ in 0..count {
        capture.extend([octets(&record), frame.clone()].concat());
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, capture).expect("it is written");
    file
}

#[test]
fn what_is_held_back_does_not_outlive_its_driver() {
    // Said again twice a second, for a minute; at this speed each lasts three.
    let file = stops(120);
    for workers in [1, 2] {
        let nic = TestNic::with(&format!("pcap={},pps=2", file.path().display()), |nic| {
            config(&mut nic.port, true);
            nic.port.speed = "10M".parse().expect("a speed");
            nic.features = offered(2);
            nic.workers = workers;
        });
        let counters = || nic.status().nic.port.counters;
        wait_until("the partner's word", || {
            counters().pfc.priorities[3].rx_xoff > 0
        });
        let send = |guest: &mut VirtnetInfo<_>, tagged: &[u8]| {
            let header = VirtioNetHdr::default();
            guest.start_xmit(1, tagged, &header).expect("room");
            guest.flush(1);
        };
        let mut guest = nic.guest(&two_queues());
        for number in 0..10 {
            send(&mut guest, &frame(1, number));
        }
        let held = || nic.status().nic.port.priorities.expect("a state").held;
        wait_until("one that is held back", || held() == [0, 1]);
        drop(guest);
        wait_until("its end", || {
            counters().drops.get(Drop::TxQueueDisabled) > 0
        });
        let mut guest = nic.guest(&two_queues());
        assert_eq!((held(), counters().tx_frames), (vec![0, 0], 0));
        // The next one's queue waits for nobody.
        send(&mut guest, &frame(0, 0));
        wait_until("the next one's", || counters().tx_frames == 1);
        nic.assert_balanced();
    }
}

#[test]
fn what_is_held_back_of_a_machine_that_is_paused_leaves_when_it_may() {
    // Said for two seconds; the last lasts three.
    let file = stops(4);
    for workers in [1, 2] {
        let nic = TestNic::with(&format!("pcap={},pps=2", file.path().display()), |nic| {
            config(&mut nic.port, true);
            nic.port.speed = "10M".parse().expect("a speed");
            nic.features = offered(2);
            nic.workers = workers;
        });
        let counters = || nic.status().nic.port.counters;
        wait_until("the partner's word", || {
            counters().pfc.priorities[3].rx_xoff > 0
        });
        let mut guest = nic.guest(&two_queues());
        for number in 0..10 {
            let header = VirtioNetHdr::default();
            guest
                .start_xmit(1, &frame(1, number), &header)
                .expect("room");
            guest.flush(1);
        }
        let held = || nic.status().nic.port.priorities.expect("a state").held;
        wait_until("one that is held back", || held() == [0, 1]);
        let next = guest.transport.stop_queue(3).expect("an answer");
        wait_until("what was held back", || counters().tx_frames > 0);
        assert_eq!(held(), [0, 0]);
        let mut queue = queue_config(3, &guest.sq[1].vq);
        queue.next = next;
        guest.transport.setup_queue(&queue).expect("it goes on");
        guest.transport.kick(3);
        wait_until("the others", || counters().tx_frames == 10);
        assert_eq!(counters().drops.get(Drop::TxQueueDisabled), 0);
        nic.assert_balanced();
    }
}
