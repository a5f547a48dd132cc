//! Frames of a capture, played and traced; and the program's exit statuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nic_testbed::trace::COST;
use nic_testbed::trace::capture::{self, FRAMES, Incoming};
use nic_testbed::trace::compare::Recording;
use nic_testbed::trace::scenario::{CAPTURE, Scenario};

use super::{directory, flat, table, text};

fn trace(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nic-guest"))
        .arg("trace")
        .args(args)
        .output()
        .expect("nic-guest runs")
}

fn frames_of(name: &str) -> PathBuf {
    directory().join("frames").join(name).with_extension("pcap")
}

/// A capture (pcap, little-endian) of that link type: each record with the octets that it has, and what the frame had.
fn pcap(link: u32, records: &[(&[u8], usize)]) -> Vec<u8> {
    let mut file = Vec::new();
    let words = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, link];
    file.extend(words.into_iter().flat_map(u32::to_le_bytes));
    for (bytes, len) in records {
        let words = [0, 0, bytes.len() as u32, *len as u32];
        file.extend(words.into_iter().flat_map(u32::to_le_bytes));
        file.extend(*bytes);
    }
    file
}

/// What becomes of a file with this content.
fn read(content: &[u8]) -> anyhow::Result<(Vec<Incoming>, bool)> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("it.pcap");
    std::fs::write(&path, content).expect("a file");
    capture::read(&path)
}

/// The frames of a recorded scenario, given as a capture, do what the kernel did; then a process takes what came.
#[test]
fn a_captured_frame_goes_the_way_of_the_recording() {
    let table = table();
    for name in ["udp", "fragments", "tcp-burst", "vlan"] {
        let (frames, more) = capture::read(&frames_of(name)).expect("frames");
        assert!(!more);
        let stages = CAPTURE.play_frames(frames, COST).expect("it plays");
        let name = format!("scenario-{name}");
        let recording = Recording::read(&name, &text(&name), &table).expect("a recording");
        let comparison = recording.compare(&recording.reduce(&stages, &table));
        assert_eq!(comparison.difference, None, "{name}");
    }
    let (frames, _) = capture::read(&frames_of("udp")).expect("frames");
    let stages = CAPTURE.play_frames(frames, COST).expect("it plays");
    let mut all = Vec::new();
    flat(&stages, &mut all);
    assert!(all.iter().any(|stage| stage.name == "udp_rmem_release"));
}

/// Whether a frame's check sequence is right is the MAC's affair, as with any other wire.
#[test]
fn a_wrong_check_sequence_is_dropped_by_the_mac() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/captures/with-fcs.pcapng");
    let (mut frames, _) = capture::read(&path).expect("frames");
    frames.truncate(1);
    let drops = |frames: &[Incoming]| {
        let stages = CAPTURE
            .play_frames(frames.to_vec(), COST)
            .expect("it plays");
        let mut dropped = stages.into_iter().filter(|stage| stage.name == "drop");
        dropped.any(|stage| stage.changes[0].what == "rx_fcs_errors")
    };
    assert!(!drops(&frames));
    *frames[0].bytes.last_mut().expect("octets") ^= 1;
    assert!(drops(&frames));
}

#[test]
fn a_capture_is_bounded_and_what_is_none_is_refused() {
    let frame: &[u8] = &[0x55; 60];
    for (many, played, more) in [
        (1, 1, false),
        (FRAMES, FRAMES, false),
        (FRAMES + 1, FRAMES, true),
    ] {
        let (frames, left) = read(&pcap(1, &vec![(frame, 60); many])).expect("frames");
        assert_eq!((frames.len(), left), (played, more));
    }
    let cut = pcap(1, &[(frame, 1500)]);
    for (content, why) in [
        (
            &b"no capture at all, of anything"[..],
            "neither pcap nor pcapng",
        ),
        (&pcap(1, &[]), "there is no frame in it"),
        (&pcap(101, &[(frame, 60)]), "not Ethernet"),
        (&cut, "none of its 1 frames is whole"),
        (&cut[..cut.len() - 1], "ends in the middle"),
    ] {
        let error = format!("{:#}", read(content).expect_err(why));
        assert!(error.contains(why), "{error}");
    }
    let error = capture::read(Path::new("/nowhere.pcap")).expect_err("no file");
    assert!(format!("{error:#}").contains("/nowhere.pcap"), "{error:#}");
}

/// A frame of any length does not stop the guest: the shortest, and longer than any buffer.
#[test]
fn a_capture_of_odd_frames_plays() {
    let frames: Vec<_> = [1, 13, 14, 1600, 9000, 60_000]
        .map(|len| vec![0xff; len])
        .to_vec();
    let records: Vec<_> = frames
        .iter()
        .map(|frame| (&frame[..], frame.len()))
        .collect();
    let (frames, _) = read(&pcap(1, &records)).expect("frames");
    assert_eq!(frames.len(), records.len());
    let stages = CAPTURE.play_frames(frames, COST).expect("it plays");
    assert!(stages.iter().any(|stage| stage.name == "drop"));
}

#[test]
fn statuses_and_messages() {
    let own = tempfile::tempdir().expect("a directory");
    let mine = own.path().join("mine.txt");
    std::fs::write(&mine, "t | ip_local_deliver() {\nt |   udp_rcv();\nt | }\n").expect("a file");
    let mine = mine.to_str().expect("a name");
    let page = own.path().join("page.html");
    let page = page.to_str().expect("a name");
    let udp = frames_of("udp");
    let udp = udp.to_str().expect("a name");
    for (args, status, says) in [
        (&["--compare", mine][..], 2, "send-unresolved"),
        (&["--compare", mine, "--scenario", "udp"], 0, ""),
        (
            &["--compare", mine, "--scenario", "forward"],
            1,
            "mine differs",
        ),
        (&["--compare", mine, "--pcap", udp], 0, ""),
        (
            &["--pcap", udp, "--scenario", "udp"],
            2,
            "cannot be used with",
        ),
        (&["--pcap", "/nowhere.pcap"], 1, "/nowhere.pcap"),
        (&["--html", "/nowhere/page.html"], 1, "/nowhere/page.html"),
        (&["--html", page, "--pcap", udp], 0, ""),
    ] {
        let output = trace(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {errors}");
        assert!(errors.contains(says), "{args:?}: {errors}");
    }
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("udp_rmem_release"));
    assert!(Scenario::named(CAPTURE.name).is_none());
}
