//! Several queue pairs, with one worker and with several: who receives what, in which order, and that nothing is lost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nic_guest::transport::Transport;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::rss::RssConfig;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f, queue_config};

use crate::support::{TestNic, offered, wait_until};

type Guest = VirtnetInfo<VhostUser>;

/// Queue pairs of each card here.
const PAIRS: u16 = 4;

/// A card of four pairs, and a guest that has set all of them up and uses all of them.
fn plugged(wire: &str, workers: u16, features: u64) -> (TestNic, Guest) {
    let nic = TestNic::with(wire, |config| {
        config.port.queue_pairs = PAIRS;
        config.port.link = false;
        config.features = offered(PAIRS);
        config.workers = workers;
    });
    let guest = nic.guest(&ProbeOptions {
        queue_pairs: PAIRS,
        features,
        ..ProbeOptions::default()
    });
    (nic, guest)
}

/// All but receive-side scaling: frames are steered automatically.
const AUTOMATIC: u64 = f::SUPPORTED & !(f::RSS | f::HASH_REPORT);

/// Packets that a test takes: a thousandth of those in the long tier.
fn packets() -> u64 {
    let said = std::env::var("FLOW_PACKETS").ok();
    said.map_or(100_000, |said| {
        said.parse().expect("FLOW_PACKETS is a number")
    })
}

/// What came, by flow.
#[derive(Default)]
struct Flows {
    /// Of each flow, by its source port: the queue it came on last, and its last sequence number.
    last: HashMap<u16, (u16, u64)>,
    /// Packets by queue.
    by_queue: [u64; PAIRS as usize],
    packets: u64,
}

impl Flows {
    /// A packet of the generator came on `queue`; whether its flow was on another one before is returned.
    fn came(&mut self, queue: u16, frame: &[u8]) -> bool {
        let port = u16::from_be_bytes([frame[34], frame[35]]);
        let number = frame[42..50].try_into().expect("eight octets");
        let number = u64::from_be_bytes(number);
        self.packets += 1;
        self.by_queue[usize::from(queue)] += 1;
        let before = self.last.insert(port, (queue, number));
        let moved = before.is_some_and(|(before, _)| before != queue);
        // Between two queues order is up to whoever polls them.
        if let Some((_, before)) = before.filter(|_| !moved) {
            let what = format!("flow {port}, queue {queue}");
            assert!(before < number, "{what}: {number} came behind {before}");
        }
        moved
    }

    fn poll(&mut self, guest: &mut Guest) -> u64 {
        let mut moved = 0;
        for pair in 0..guest.rq.len() as u16 {
            let came = |frame: nic_guest::virtio_net::rx::RxFrame<'_>| {
                moved += u64::from(self.came(pair, &frame.to_vec()));
            };
            guest.poll(pair, 64, came).expect("a sound ring");
        }
        moved
    }
}

#[test]
fn flows_keep_their_queue_and_their_order() {
    for workers in [1, PAIRS] {
        for features in [f::SUPPORTED, AUTOMATIC] {
            let count = packets();
            let wire = format!("generator:flows=1000,count={count},pps=400000");
            let (nic, mut guest) = plugged(&wire, workers, features);
            if features & f::RSS != 0 {
                guest.set_rss(&spread(PAIRS)).expect("it does");
            }
            nic.server().set_link(true).expect("it runs");
            let mut flows = Flows::default();
            let mut moved = 0;
            let (start, drops) = (Instant::now(), || {
                nic.status().nic.port.counters.drops.total()
            });
            while flows.packets + drops() < count {
                moved += flows.poll(&mut guest);
                let patience = Duration::from_secs(60 + count / 50_000);
                assert!(start.elapsed() < patience, "{} packets", flows.packets);
            }
            assert_eq!(moved, 0, "flows that changed their queue");
            assert_eq!(flows.last.len(), 1000);
            let even = flows.packets / u64::from(PAIRS);
            for queue in flows.by_queue {
                assert!(queue.abs_diff(even) < even / 5, "{:?}", flows.by_queue);
            }
            nic.assert_balanced();
            let status = nic.status().nic;
            for pair in 0..usize::from(PAIRS) {
                let queue = &status.queues[2 * pair];
                assert_eq!(queue.packets, flows.by_queue[pair]);
            }
        }
    }
}

/// Hashes UDP over IPv4 evenly over `pairs` pairs.
fn spread(pairs: u16) -> RssConfig {
    RssConfig {
        hash_types: 0x1ff,
        unclassified_queue: 0,
        indirection_table: (0..128).map(|entry| entry % pairs).collect(),
        max_tx_vq: pairs,
        key: (0..40).map(|n: u8| n.wrapping_mul(37) ^ 0x6d).collect(),
    }
}

#[test]
fn each_queue_interrupts_for_its_own_packets() {
    for workers in [1, PAIRS] {
        let (nic, mut guest) =
            plugged("generator:flows=64,count=400,pps=10000", workers, AUTOMATIC);
        for rq in &mut guest.rq {
            // Armed once: the first packet of each queue interrupts, and no other. A packed ring begins with every one wanted.
            rq.vq.disable_cb();
            assert!(rq.vq.enable_cb(), "nothing has come");
        }
        // Those of being set up.
        for pair in 0..PAIRS {
            guest.take_interrupts(pair);
        }
        let sent = || {
            let status = nic.status().nic;
            [0, 2, 4, 6].map(|index| status.queues[index].interrupts_sent)
        };
        let before = sent();
        nic.server().set_link(true).expect("it runs");
        wait_until("all packets", || {
            nic.status().nic.port.counters.rx_delivered == 400
        });
        let after = sent();
        for pair in 0..PAIRS {
            let at = usize::from(pair);
            assert_eq!(after[at] - before[at], 1, "queue {pair}, {workers} workers");
            assert_eq!(guest.take_interrupts(pair), 1, "queue {pair}");
        }
    }
}

/// An echo of one flow: a packet that was sent, and comes back with its ends exchanged.
fn datagram(port: u16, number: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [0x52, 0x54, 0, 0x12, 0x34, 0x56])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 1], 64)
        .udp(port, port);
    builder
        .write(&mut frame, &number.to_be_bytes())
        .expect("a vector takes it");
    frame
}

#[test]
fn what_is_sent_on_a_queue_comes_back_to_it() {
    for workers in [1, 2, PAIRS] {
        let (nic, mut guest) = plugged("loopback", workers, AUTOMATIC);
        nic.server().set_link(true).expect("it runs");
        let mut flows = Flows::default();
        let mut sent = 0;
        for round in 0..200_u64 {
            for pair in 0..PAIRS {
                for flow in 0..8 {
                    let port = 1000 + 8 * pair + flow;
                    let frame = datagram(port, round + 1);
                    let header = VirtioNetHdr::default();
                    guest.start_xmit(pair, &frame, &header).expect("room");
                    sent += 1;
                }
                guest.flush(pair);
            }
            let start = Instant::now();
            while flows.packets < sent {
                flows.poll(&mut guest);
                assert!(
                    start.elapsed() < Duration::from_secs(30),
                    "{workers} workers: {sent} sent, {} came; {:#?}",
                    flows.packets,
                    nic.status()
                );
            }
        }
        for (port, (queue, _)) in flows.last {
            assert_eq!(queue, (port - 1000) / 8, "{workers} workers: flow {port}");
        }
        nic.assert_balanced();
    }
}

#[test]
fn queue_pairs_change_under_load_without_disorder() {
    for workers in [1, PAIRS] {
        for features in [f::SUPPORTED, AUTOMATIC] {
            let (nic, mut guest) = plugged("generator:flows=100,pps=200000", workers, features);
            nic.server().set_link(true).expect("it runs");
            let mut flows = Flows::default();
            for pairs in [1, 4, 2, 3, 1, 4] {
                if features & f::RSS != 0 {
                    guest.set_rss(&spread(pairs)).expect("it does");
                } else {
                    guest.set_queues(pairs).expect("it does");
                }
                // Once what waited for the others has come, only those in use receive.
                let start = Instant::now();
                let mut used = [false; PAIRS as usize];
                while used != [0, 1, 2, 3].map(|pair| pair < pairs) {
                    flows.by_queue = [0; PAIRS as usize];
                    let until = flows.packets + 2_000;
                    while flows.packets < until {
                        flows.poll(&mut guest);
                        let patience = Duration::from_secs(30);
                        assert!(
                            start.elapsed() < patience,
                            "{pairs} pairs: {:?}",
                            flows.by_queue
                        );
                    }
                    used = flows.by_queue.map(|packets| packets > 0);
                }
            }
            nic.server().set_link(false).expect("it runs");
            wait_until("the rest", || {
                flows.poll(&mut guest);
                nic.status().nic.port.rx_fifo_frames == 0
            });
            nic.assert_balanced();
        }
    }
}

#[test]
fn a_front_end_that_has_the_control_queue_uses_what_it_enables() {
    let nic = TestNic::with("generator:flows=64,pps=50000", |config| {
        config.port.queue_pairs = PAIRS;
        config.port.link = false;
        config.features = offered(PAIRS);
    });
    let mut guest = nic.guest(&ProbeOptions {
        queue_pairs: PAIRS,
        features: f::VERSION_1 | f::MQ | f::MRG_RXBUF,
        exact: true,
        ..ProbeOptions::default()
    });
    nic.server().set_link(true).expect("it runs");
    for enabled in [4, 1, 3] {
        for pair in 0..PAIRS {
            let answer = guest.transport.enable_queue(2 * pair, pair < enabled);
            answer.expect("it does");
        }
        let mut flows = Flows::default();
        wait_until("packets on all queues in use", || {
            flows.poll(&mut guest);
            let used = flows.by_queue[..usize::from(enabled)].iter();
            used.copied().min() > Some(50)
        });
        let status = nic.status().nic.port.rss;
        assert_eq!(status.queue_pairs, enabled);
    }
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    for workers in [1, PAIRS] {
        let features = f::SUPPORTED & !(f::MQ | f::RSS);
        let (nic, mut guest) = plugged("loopback", workers, features);
        nic.server().set_link(true).expect("it runs");
        let control = guest.cvq.as_ref().expect("a control queue");
        assert_eq!(control.index(), 2);
        guest.set_promisc(true).expect("it does");
        assert!(nic.status().nic.port.promiscuous);
        let frame = datagram(1, 1);
        let header = VirtioNetHdr::default();
        guest.start_xmit(0, &frame, &header).expect("room");
        guest.flush(0);
        wait_until("the frame", || {
            guest.poll(0, 1, |_| {}).expect("a sound ring") == 1
        });
        nic.assert_balanced();
    }
}

#[test]
fn whoever_never_sets_the_control_queue_up_receives_on_all_that_it_enables() {
    let (nic, mut guest) = plugged("generator:flows=64,pps=50000", 2, AUTOMATIC);
    // cloud-hypervisor accepts the control queue, and keeps it to itself.
    let control = 2 * PAIRS;
    guest.transport.stop_queue(control).expect("it stops");
    nic.server().set_link(true).expect("it runs");
    let mut flows = Flows::default();
    wait_until("packets on all queues", || {
        flows.poll(&mut guest);
        flows.by_queue.iter().min() > Some(&50)
    });
}

#[test]
fn a_command_that_waits_when_the_control_queue_starts_counts() {
    for workers in [1, PAIRS] {
        let (nic, mut guest) = plugged("none", workers, AUTOMATIC);
        let control = 2 * PAIRS;
        for pairs in [3_u16, 2, 4] {
            let next = guest.transport.stop_queue(control).expect("it stops");
            let cvq = guest.cvq.as_mut().expect("a control queue");
            let data = pairs.to_le_bytes();
            cvq.submit(4, 0, &data, 0).expect("room");
            // It is there to be seen; the kick has nobody to hear it.
            let _ = cvq.vq.kick_prepare();
            let mut config = queue_config(control, &cvq.vq);
            config.next = next;
            guest.transport.setup_queue(&config).expect("it starts");
            wait_until("an answer", || {
                let status = nic.status().nic;
                let ring = status.rings[usize::from(control)].as_ref();
                ring.is_some_and(|ring| ring.used == ring.available)
            });
            let status = nic.status().nic.port.rss;
            assert_eq!(status.queue_pairs, pairs, "{workers} workers");
        }
    }
}
