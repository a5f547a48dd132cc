//! Captures of real traffic, replayed to a guest: over the socket and in virtual time; and one that is written.

pub mod reader;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nic_backend::card::Line;
use nic_backend::patience::PollMode;
use nic_backend::worker::Body;
use nic_guest::transport::Transport;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nic_model::counters::{Drop, PortCounters};
use nic_model::port::PortConfig;
use nic_model::time::Nanos;

use crate::support::{PATIENCE, TestNic, virtual_guest, wait_until};

/// The captures of this repository.
fn all() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/captures");
    let readme = std::fs::read_to_string(directory.join("README.md")).expect("a README");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("captures")
        .map(|entry| {
            entry
                .expect("an entry")
                .path()
                .canonicalize()
                .expect("a file")
        })
        .filter(|path| matches!(path.extension(), Some(e) if e == "pcap" || e == "pcapng"))
        .collect();
    files.sort();
    for file in &files {
        let name = format!("`{}`", name(file));
        assert!(readme.contains(&name), "the README does not know {name}");
    }
    let listed = readme
        .lines()
        .filter(|line| line.starts_with("| `"))
        .count();
    assert_eq!(files.len(), listed, "as many as the README has");
    files
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .expect("a name")
}

fn file(name: &str) -> PathBuf {
    let found = all().into_iter().find(|path| path.ends_with(name));
    found.unwrap_or_else(|| panic!("no {name}"))
}

/// What a guest should get of a capture.
struct Expected {
    /// Nanoseconds since the first record, octets on the line, and the frame itself if it is good.
    records: Vec<(u64, usize, Option<Vec<u8>>)>,
    /// Bad frames by reason.
    drops: BTreeMap<&'static str, u64>,
}

impl Expected {
    fn of(path: &Path) -> Self {
        let capture = reader::read(path).expect("a whole capture");
        let damaged = match capture.fcs {
            0 => BTreeMap::new(),
            _ => damaged(path),
        };
        let mut drops = BTreeMap::new();
        let start = capture.records[0].0;
        let record = |(index, (time, mut bytes)): (usize, (u64, Vec<u8>))| {
            let octets = match capture.fcs {
                0 => (bytes.len() + 4).max(64),
                _ => bytes.len(),
            };
            let good = match damaged.get(&(index as u64)) {
                Some(reason) => {
                    *drops.entry(*reason).or_default() += 1;
                    None
                }
                None => {
                    bytes.truncate(bytes.len() - capture.fcs);
                    Some(bytes)
                }
            };
            (time - start, octets, good)
        };
        let records = capture
            .records
            .into_iter()
            .enumerate()
            .map(record)
            .collect();
        Expected { records, drops }
    }

    fn frames(&self) -> Vec<&[u8]> {
        self.records
            .iter()
            .filter_map(|(_, _, frame)| frame.as_deref())
            .collect()
    }

    /// Asserts that `received` is all that is good, in order.
    fn assert_received(&self, path: &Path, received: &[Vec<u8>]) {
        let frames = self.frames();
        for (index, (got, want)) in received.iter().zip(&frames).enumerate() {
            assert_eq!(got, want, "{}: frame {index}", path.display());
        }
        assert_eq!(received.len(), frames.len(), "{}", path.display());
    }

    /// Asserts that after `replays` of it nothing but what is bad was dropped.
    fn assert_counted(&self, path: &Path, replays: u64, counters: &PortCounters) {
        let path = path.display();
        for (reason, count) in counters.drops.iter() {
            let want = self.drops.get(reason.name()).copied().unwrap_or(0);
            assert_eq!(count, replays * want, "{path}: {reason}");
        }
        let octets: usize = self.records.iter().map(|(_, octets, _)| octets).sum();
        assert_eq!(counters.rx_octets, replays * octets as u64, "{path}");
        assert_eq!(
            counters.rx_frames,
            replays * self.records.len() as u64,
            "{path}"
        );
        assert_eq!(
            counters.rx_delivered,
            replays * self.frames().len() as u64,
            "{path}"
        );
        // tshark found all checksums right (fixtures/captures/README.md).
        assert_eq!(counters.rx_checksums.bad(), 0, "{path}");
    }
}

/// What is wrong with which records of `path`, as a counter of the NIC has it, from the list beside it.
fn damaged(path: &Path) -> BTreeMap<u64, &'static str> {
    let list = std::fs::read(path.with_extension("json")).expect("a list of bad frames");
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    let entry = |frame: &serde_json::Value| {
        let reason = match frame["kind"].as_str().expect("a kind") {
            "fcs" => Drop::RxFcs,
            "undersize" => Drop::RxUndersize,
            "fragment" => Drop::RxFragment,
            "oversize" => Drop::RxOversize,
            "jabber" => Drop::RxJabber,
            kind => panic!("{kind}?"),
        };
        (frame["index"].as_u64().expect("an index"), reason.name())
    };
    list["damaged"]
        .as_array()
        .expect("bad frames")
        .iter()
        .map(entry)
        .collect()
}

/// The card that takes what is in `path`, without a link.
fn port(path: &Path, port: &mut PortConfig) {
    port.link = false;
    if name(path) == "jumbo.pcap" {
        port.mtu = 9000;
    }
}

/// A NIC that replays `path` once its link is up, and a guest that takes everything.
fn plugged(path: &Path, options: &str) -> (TestNic, VirtnetInfo<VhostUser>) {
    let wire = format!("pcap={}{options}", path.display());
    let nic = TestNic::with(&wire, |config| port(path, &mut config.port));
    let mut guest = nic.guest(&ProbeOptions::default());
    guest.set_promisc(true).expect("promiscuous mode");
    (nic, guest)
}

/// Receives `count` frames, or fewer if they do not come.
fn receive<T: Transport>(guest: &mut VirtnetInfo<T>, count: usize) -> Vec<Vec<u8>> {
    let mut received = Vec::new();
    let start = Instant::now();
    while received.len() < count && start.elapsed() < PATIENCE {
        let deliver = |frame: nic_guest::virtio_net::rx::RxFrame<'_>| received.push(frame.to_vec());
        if guest.poll(0, 64, deliver).expect("sound rings") == 0 {
            guest.wait(Duration::from_millis(10));
        }
    }
    received
}

/// Waits until the wire has given `count` frames, and all are where they should be.
fn settled(nic: &TestNic, count: usize) -> PortCounters {
    wait_until("the end of the replay", || {
        let status = nic.status();
        status.wire_counters["pcap_frames"] == count as u64 && status.nic.port.rx_fifo_frames == 0
    });
    nic.assert_balanced();
    nic.status().nic.port.counters
}

#[test]
fn every_capture_arrives_whole_at_each_link_up() {
    for path in all() {
        let expected = Expected::of(&path);
        let (nic, mut guest) = plugged(&path, ",pps=20000");
        for replays in 1..=2 {
            assert!(nic.server().set_link(true).expect("the NIC runs"));
            let received = receive(&mut guest, expected.frames().len());
            expected.assert_received(&path, &received);
            let counters = settled(&nic, replays * expected.records.len());
            expected.assert_counted(&path, replays as u64, &counters);
            assert_eq!(
                guest.poll(0, 64, |_| {}).expect("sound rings"),
                0,
                "nothing more"
            );
            assert_eq!(nic.status().wire_counters["pcap_replays"], replays as u64);
            assert!(nic.server().set_link(false).expect("the NIC runs"));
        }
        let (stats, _) = guest.stats();
        assert_eq!(stats.drops, 0, "{stats:?}");
    }
}

#[test]
fn a_link_that_flaps_starts_the_replay_anew() {
    let path = file("udp.pcap");
    let expected = Expected::of(&path);
    // Slow enough that it cannot be through when the first frames are here.
    let (nic, mut guest) = plugged(&path, ",pps=50");
    for _ in 0..3 {
        nic.server().set_link(true).expect("the NIC runs");
        let mut received = receive(&mut guest, 5);
        nic.server().set_link(false).expect("the NIC runs");
        // What was on its way into the guest still arrives.
        let taken = nic.status().nic.port.counters.rx_frames - guest.stats().0.packets;
        received.extend(receive(&mut guest, taken as usize));
        assert!((5..expected.frames().len()).contains(&received.len()));
        assert_eq!(received, expected.frames()[..received.len()]);
    }
    nic.assert_balanced();
}

#[test]
fn short_captures_keep_their_spacing_in_real_time() {
    for name in [
        "udp-nano.pcap",
        "tcp-sack-loss.pcap",
        "udp.pcap",
        "jumbo.pcap",
    ] {
        let path = file(name);
        let expected = Expected::of(&path);
        let (nic, mut guest) = plugged(&path, "");
        let start = Instant::now();
        nic.server().set_link(true).expect("the NIC runs");
        let received = receive(&mut guest, expected.frames().len());
        let took = start.elapsed();
        expected.assert_received(&path, &received);
        expected.assert_counted(&path, 1, &settled(&nic, expected.records.len()));
        // Not sooner; how much later is up to the machine's scheduler.
        let last = expected.records.last().expect("records").0;
        let lead = nic_backend::worker::lead(PollMode::Never);
        assert!(
            took + lead >= Duration::from_nanos(last),
            "{name}: {took:?} for {last} ns"
        );
    }
}

#[test]
fn in_virtual_time_every_frame_arrives_at_its_own_instant() {
    for path in all() {
        let expected = Expected::of(&path);
        let wire = format!("pcap={}", path.display());
        let mut guest = virtual_guest(&wire, |config| port(&path, config));
        guest.set_promisc(true).expect("promiscuous mode");
        guest.wait(Duration::from_millis(1));
        let up = guest.transport.now();
        assert!(guest.transport.card().borrow_mut().set_link(up, true));
        let mut received = Vec::new();
        let end = up + Duration::from_secs(60);
        while guest.transport.now() < end {
            guest.wait(end.since(guest.transport.now()));
            let now = guest.transport.now();
            let deliver = |frame: nic_guest::virtio_net::rx::RxFrame<'_>| {
                received.push((now.since(up).as_nanos() as u64, frame.to_vec()));
            };
            guest.poll(0, 64, deliver).expect("sound rings");
        }
        assert_eq!(
            received.len(),
            expected.frames().len(),
            "{}",
            path.display()
        );
        let mut received = received.iter();
        // The line carries one frame at a time; 10 Gb/s are 800 ps an octet. The preamble is 8 octets, the gap 12.
        let mut free = 0;
        for (index, (time, octets, frame)) in expected.records.iter().enumerate() {
            let last_bit = free.max(time * 1_000) + (*octets as u64 + 8) * 800;
            free = last_bit + 12 * 800;
            if let Some(frame) = frame {
                let (instant, got) = received.next().expect("counted above");
                assert_eq!(got, frame, "{}: record {index}", path.display());
                assert_eq!(
                    *instant,
                    last_bit / 1_000,
                    "{}: record {index}",
                    path.display()
                );
            }
        }
        let card = guest.transport.card();
        let card = card.borrow();
        expected.assert_counted(&path, 1, &card.nic.counters());
        assert_eq!(card.nic.port.pool.lent(), 0, "every buffer came back");
        assert_eq!(card.next_deadline(end), None, "nothing is left to do");
    }
}

#[test]
fn what_the_guest_sends_is_written_as_it_was() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = directory.path().join("out.pcap");
    let (nic, mut guest) = plugged(&file("arp.pcap"), &format!(",{}", output.display()));
    nic.server().set_link(true).expect("the NIC runs");
    let frames: Vec<Vec<u8>> = ["mixed.pcap", "vlan.pcap", "udp.pcap"]
        .iter()
        .flat_map(|name| reader::read(&file(name)).expect("a capture").records)
        .map(|(_, bytes)| bytes)
        .chain((14..=64).map(|len| vec![0x42; len]))
        .collect();
    let mut to_send = frames.iter().peekable();
    let start = Instant::now();
    while let Some(frame) = to_send.peek() {
        match guest.start_xmit(0, frame, &VirtioNetHdr::default()) {
            Ok(()) => _ = to_send.next(),
            Err(_) => _ = guest.poll(0, 64, |_| {}).expect("sound rings"),
        }
        guest.flush(0);
        assert!(start.elapsed() < PATIENCE, "the card sends nothing");
    }
    // While the NIC runs: it must not keep what it has for itself.
    let written = || reader::read(&output).map_or(Vec::new(), |capture| capture.records);
    wait_until("the capture", || written().len() == frames.len());
    let written = written();
    for (index, (frame, (_, octets))) in frames.iter().zip(&written).enumerate() {
        let mut padded = frame.clone();
        padded.resize(frame.len().max(60), 0);
        assert_eq!(octets, &padded, "frame {index}");
    }
    assert!(written.is_sorted_by_key(|(time, _)| *time));
    let counters = nic.status();
    assert_eq!(counters.wire_counters["pcap_written"], frames.len() as u64);
    assert_eq!(counters.wire_counters["pcap_unwritten"], 0);
    assert_eq!(counters.nic.port.counters.tx_frames, frames.len() as u64);
    nic.assert_balanced();
}

#[test]
fn without_a_link_nothing_is_replayed() {
    let path = file("udp-nano.pcap");
    let mut guest = virtual_guest(&format!("pcap={}", path.display()), |config| {
        port(&path, config);
    });
    guest.set_promisc(true).expect("promiscuous mode");
    guest.wait(Duration::ZERO);
    guest.wait(Duration::from_secs(3600));
    assert_eq!(
        guest.transport.now().since(Nanos::ZERO),
        Duration::from_secs(3600)
    );
    assert_eq!(guest.transport.card().borrow().nic.counters().rx_frames, 0);
}
