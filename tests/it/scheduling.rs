//! Buffers, scheduling and rates of a card that runs, with one worker and with several.

use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};
use nic_model::counters::Drop;
use nic_model::packet_buffer::{Alpha, BufferConfig};
use nic_model::phy::Speed;
use nic_model::rate::{Limit, Rates};
use nic_model::scheduler::Weights;

use crate::captures::reader;
use crate::support::{TestNic, numbered_frame, offered, wait_until};

/// Frames that each queue is given at once: as many as its ring takes.
const FRAMES: usize = 200;

fn guest(nic: &TestNic, pairs: u16) -> VirtnetInfo<VhostUser> {
    nic.guest(&ProbeOptions {
        queue_pairs: pairs,
        // Steered automatically, over all pairs.
        features: (f::SUPPORTED | f::DEVICE_STATS) & !(f::SEGMENTATION | f::RSS | f::HASH_REPORT),
        ..ProbeOptions::default()
    })
}

#[test]
fn a_slow_line_is_shared_by_weights_and_octets() {
    for workers in [1, 2] {
        let directory = tempfile::tempdir().expect("a directory");
        let [from, to] = ["in.pcap", "out.pcap"].map(|name| directory.path().join(name));
        // An empty capture: nothing comes.
        let mut header = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        header.extend([
            2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0,
        ]);
        std::fs::write(&from, header).expect("a file");
        let wire = format!("pcap={},{}", from.display(), to.display());
        let nic = TestNic::with(&wire, |config| {
            config.port.queue_pairs = 2;
            config.port.speed = Speed::from_mbps(10).expect("a rate");
            config.port.tx_weights = Weights::new(&[1, 3]).expect("weights");
            config.features = offered(2);
            config.workers = workers;
        });
        let mut guest = guest(&nic, 2);
        // Long frames and short ones; the fifth octet of the source address says whose they are.
        for (queue, len) in [(0, 1000), (1, 500)] {
            for number in 0..FRAMES {
                let mut frame = numbered_frame(number as u32, len);
                frame[10] = queue as u8;
                let sent = guest.start_xmit(queue, &frame, &VirtioNetHdr::default());
                sent.expect("room in the ring");
            }
        }
        guest.flush(0);
        guest.flush(1);
        let mut records = Vec::new();
        wait_until("all frames on the line", || {
            match reader::read(&to) {
                Some(capture) => records = capture.records,
                None => return false,
            }
            records.len() == 2 * FRAMES
        });
        let sent: Vec<_> = records
            .iter()
            .map(|(_, frame)| (frame[10], frame.len()))
            .collect();
        // From the first frame of the second queue to its last both had frames to send: it has three parts of four, and half of the octets.
        let first = sent.iter().position(|(queue, _)| *queue == 1);
        let last = sent.iter().rposition(|(queue, _)| *queue == 1);
        let (first, last) = (first.expect("one"), last.expect("one"));
        let octets = |queue: u8| -> usize {
            let both = sent[first..=last].iter();
            both.filter(|(of, _)| *of == queue)
                .map(|(_, len)| len + 4)
                .sum()
        };
        let quantum = 16 * 1518;
        let (one, three) = (octets(0), octets(1));
        assert_eq!(three, FRAMES * 504);
        assert!(
            (3 * one).abs_diff(three) <= 3 * (quantum + 1518),
            "{workers} workers: {one} and {three} octets"
        );
        nic.assert_balanced();
    }
}

#[test]
fn queues_that_are_not_read_leave_room_in_a_shared_buffer() {
    const PAIRS: u16 = 3;
    for workers in [1, PAIRS] {
        let nic = TestNic::with("generator:flows=300,count=20000,pps=100000", |config| {
            config.port.queue_pairs = PAIRS;
            config.port.link = false;
            config.port.packet_buffer = Some(BufferConfig {
                size: 60_000,
                guarantee: 5_000,
                alpha: Alpha::default(),
            });
            config.features = offered(PAIRS);
            config.workers = workers;
        });
        let mut guest = guest(&nic, PAIRS);
        nic.server().set_link(true).expect("it runs");
        let port = || nic.status().nic.port;
        wait_until("all of them", || {
            // Only one of them is read.
            guest.poll(0, 64, |_| {}).expect("a sound ring");
            port().counters.rx_frames == 20_000
        });
        nic.assert_balanced();
        let status = port();
        let buffer = status.packet_buffer.expect("a packet buffer");
        // Two full ones have a third each of the shared part, and it has another one left.
        assert!(status.counters.drops.get(Drop::RxFifoOverflow) > 0);
        assert!(status.counters.rx_no_buffer > 0);
        assert!(buffer.shared_peak > 0 && buffer.shared_peak < buffer.shared);
        // Once they are read it is empty.
        wait_until("an empty buffer", || {
            for pair in 0..PAIRS {
                guest.poll(pair, 64, |_| {}).expect("a sound ring");
            }
            port().rx_fifo_frames == 0
        });
        let buffer = port().packet_buffer.expect("a packet buffer");
        assert_eq!(buffer.shared_used, 0, "{workers} workers");
        nic.assert_balanced();
    }
}

#[test]
fn a_driver_reads_how_often_a_rate_was_exceeded() {
    for workers in [1, 2] {
        let nic = TestNic::with("generator:size=1000,count=100,pps=10000", |config| {
            config.port.queue_pairs = 2;
            config.port.link = false;
            let limit = |bits_per_second, burst| {
                Some(Limit {
                    bits_per_second,
                    burst,
                })
            };
            config.port.rates = Rates {
                rx: limit(1_000, 30_000),
                tx: limit(10_000, 2_500),
            };
            config.features = offered(2);
            config.workers = workers;
        });
        let mut guest = guest(&nic, 2);
        nic.server().set_link(true).expect("it runs");
        let port = || nic.status().nic.port;
        wait_until("all of them", || port().counters.rx_frames == 100);
        // A second brings an eighth of a frame.
        let exceeded = port().counters.drops.get(Drop::RxRateExceeded);
        assert_eq!(exceeded, 70);
        for number in 0..4 {
            let frame = numbered_frame(number, 996);
            let sent = guest.start_xmit(0, &frame, &VirtioNetHdr::default());
            sent.expect("room in the ring");
        }
        guest.flush(0);
        wait_until("all of them", || port().counters.tx_frames == 4);
        let stats = guest.stats_get(&[0, 1, 2]).expect("statistics");
        let speed = stats[0].rx_speed.expect("a group");
        let other = stats[2].rx_speed.expect("a group");
        let frames = speed.packets_allowance_exceeded + other.packets_allowance_exceeded;
        let bytes = speed.bytes_allowance_exceeded + other.bytes_allowance_exceeded;
        assert_eq!((frames, bytes), (exceeded, 996 * exceeded));
        let speed = stats[1].tx_speed.expect("a group");
        let expected = (
            speed.packets_allowance_exceeded,
            speed.bytes_allowance_exceeded,
        );
        // The burst is for three of them, of which the third leaves a debt of 0.4 s.
        assert_eq!(expected, (1, 996));
        nic.assert_balanced();
    }
}
