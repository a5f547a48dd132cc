//! Several NICs in one process: each for itself.

use std::path::Path;

use nic_backend::control::{Request, ask};
use nic_guest::memory::GuestMemory;
use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
use nic_testbed::check::bed::{BEHIND, BUFFER, Bed, FAR, HOLE, RX, SEAM, TX, buffer};
use nic_testbed::check::front::Target;
use nic_testbed::check::ring::{Layout, Piece};
use serde_json::Value;

use super::assert_one_line;
use super::child::{Serving, run};
use super::guest;
use crate::support::{PATIENCE, exchange, numbered_frame, wait_until};

/// Two NICs; the control socket of the last one is that of [`Serving::control`].
const TWO: &str = r#"
wire = "loopback"

[[nic]]
socket = "b.sock"
control = "b.ctl"
mac = "52:54:00:12:34:57"

[[nic]]
socket = "nic.sock"
control = "control"
"#;

fn stats(control: &Path) -> Value {
    ask(control, Request::Stats).expect("an answer")
}

/// Frames of a guest on `socket`, none of which may be lost.
fn passes(socket: &Path, count: u32) {
    let mut guest = guest(socket);
    let frames: Vec<_> = (0..count)
        .map(|number| numbered_frame(number, 60))
        .collect();
    assert_eq!(exchange(&mut guest, &frames), frames);
}

#[test]
fn two_nics_in_a_process_are_two() {
    let mut nic = Serving::start_with_file(TWO);
    let (second, control) = (
        nic.directory().join("b.sock"),
        nic.directory().join("b.ctl"),
    );
    let mut first_guest = guest(&nic.socket());
    assert_eq!(first_guest.mac(), [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    let other = guest(&second);
    assert_eq!(other.mac(), [0x52, 0x54, 0, 0x12, 0x34, 0x57]);
    drop(other);
    let frames: Vec<_> = (0..100).map(|number| numbered_frame(number, 60)).collect();
    assert_eq!(exchange(&mut first_guest, &frames), frames);
    passes(&second, 200);
    // Each is told of, and changed, on its own.
    assert_eq!(stats(&nic.control())["port"]["tx_frames"], 100);
    assert_eq!(stats(&control)["port"]["tx_frames"], 200);
    ask(&control, Request::Link { up: Some(false) }).expect("an answer");
    assert_eq!(stats(&nic.control())["port"]["link"], true);
    assert_eq!(stats(&control)["port"]["link"], false);
    // The log says which is meant.
    let path = |name: &str| format!("] {name}: ");
    wait_until("the log", || nic.log().contains("link down"));
    for line in nic.log().lines().filter(|line| line.contains("link down")) {
        assert!(line.contains(&path("b.sock")), "{line}");
    }
    assert!(nic.log().contains(&path("nic.sock")), "{}", nic.log());
    let socket = second.display().to_string();
    wait_until("what to do", || nic.output().contains(&socket));
    nic.signal(nix::sys::signal::Signal::SIGTERM);
    wait_until("its end", || nic.ended().is_some());
    assert_eq!(nic.ended().and_then(|status| status.code()), Some(0));
    for path in [&nic.socket(), &nic.control(), &second, &control] {
        assert!(!path.exists(), "{}", path.display());
    }
}

/// Does to the NIC on `socket` what a hostile front-end can: breaks both rings, sends nonsense, and takes its memory away.
fn attack(socket: &Path) {
    let mut target = Target::new(socket, PATIENCE);
    target.learn().expect("a NIC");
    for layout in Layout::ALL {
        let mut bed = Bed::attach(&target, layout).expect("a NIC");
        bed.offer(TX, 0, &[Piece::new(HOLE, 100, 0)]);
        bed.offer(RX, 0, &[Piece::new(buffer(RX), BUFFER, 0)]);
        wait_until("a fault", || bed.queues[TX].err.read().is_ok());
    }
    for layout in Layout::ALL {
        let memory = GuestMemory::builder()
            .region(0, SEAM as usize)
            .region(SEAM, (HOLE - SEAM) as usize)
            .region(FAR, BEHIND as usize)
            .unsealed();
        let memory = memory.build().expect("memory");
        let mut bed = Bed::attach_over(&target, memory, layout, 64, 0).expect("a NIC");
        bed.offer(RX, 0, &[Piece::new(buffer(RX), BUFFER, WRITE)]);
        bed.memory.truncate(0, 0).expect("it is not sealed");
        bed.kick(TX);
        wait_until("the end", || bed.front.raw.is_closed());
    }
    let front = target.dial().expect("a connection");
    let nonsense = [0xff; 100];
    let _ = std::io::Write::write_all(&mut front.stream(), &nonsense);
    wait_until("the end", || front.is_closed());
}

#[test]
fn one_is_attacked_while_the_other_passes_traffic_undisturbed() {
    let mut nic = Serving::start_with_file(TWO);
    let (second, control) = (
        nic.directory().join("b.sock"),
        nic.directory().join("b.ctl"),
    );
    let socket = nic.socket();
    let attacker = std::thread::spawn(move || (0..3).for_each(|_| attack(&socket)));
    let mut guest = guest(&second);
    let frames: Vec<_> = (0..200).map(|number| numbered_frame(number, 60)).collect();
    let mut passed = 0;
    while !attacker.is_finished() {
        assert_eq!(exchange(&mut guest, &frames), frames);
        passed += frames.len();
    }
    attacker.join().expect("it did all that");
    assert!(nic.ended().is_none(), "{}", nic.log());
    let attacked = stats(&nic.control());
    assert_eq!(attacked["memory_gone"], 6);
    let other = stats(&control);
    assert_eq!(
        (&other["memory_gone"], &other["refused_messages"]),
        (&0.into(), &0.into())
    );
    assert_eq!(other["connections"], 1);
    for queue in ["rx0", "tx0", "ctrl"] {
        assert_eq!(other["queues"][queue]["faults"], 0);
    }
    assert_eq!(other["port"]["tx_frames"], passed);
    assert_eq!(other["port"]["rx_delivered"], passed);
    // And the attacked one goes on.
    passes(&nic.socket(), 100);
}

#[test]
fn a_wire_that_ends_is_no_matter_of_the_other_nic() {
    let arp = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/captures/arp.pcap");
    let toml = TWO.replace(
        "control = \"control\"",
        &format!(
            "control = \"control\"\nwire = \"pcap={arp},out.pcap\"\nfault = \"drop=1,flap=1ms/1ms\""
        ),
    );
    let nic = Serving::start_with_file(&toml);
    let _first = guest(&nic.socket());
    passes(&nic.directory().join("b.sock"), 1000);
}

#[test]
fn what_two_nics_cannot_both_have_is_refused_with_its_place() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("nics.toml");
    let file = file.to_str().expect("a name");
    let base = directory.path().display();
    let first = format!(
        "[[nic]]\nsocket = \"{base}/a.sock\"\ncontrol = \"{base}/a.ctl\"\nwire = \"tap=nic-a\"\n\n[[nic]]\n"
    );
    for (second, parts) in [
        (
            format!("socket = \"{base}/a.sock\"\nmac = \"52:54:00:00:00:01\""),
            ["line 6: socket: ", "a.sock is the socket of the NIC at "],
        ),
        (
            format!("socket = \"{base}/b.sock\""),
            [
                "line 6: mac: 52:54:00:12:34:56 is the mac of the NIC at ",
                "line 1 already",
            ],
        ),
        (
            format!(
                "socket = \"{base}/b.sock\"\nmac = \"52:54:00:00:00:01\"\ncontrol = \"{base}/a.ctl\""
            ),
            ["line 6: control: ", "a.ctl is the control of the NIC at "],
        ),
        (
            format!(
                "socket = \"{base}/b.sock\"\nmac = \"52:54:00:00:00:01\"\ncontrol = \"{base}/a.sock\""
            ),
            ["line 6: control: ", "a.sock is the socket of the NIC at "],
        ),
        (
            format!(
                "socket = \"{base}/b.sock\"\nmac = \"52:54:00:00:00:01\"\nwire = \"tap=nic-a,queues=2\""
            ),
            ["line 6: wire: tap=nic-a", "already; each has its own"],
        ),
        (
            format!("socket = \"{base}/b.sock\"\nworkers = 3"),
            ["line 6: --workers 3 needs --queues 3", "there are 1"],
        ),
        (
            format!("socket = \"{base}/b.sock\"\nspeed = \"3G\""),
            ["line 8: invalid value '3G'", "--speed"],
        ),
        (
            "mtu = 1500".to_owned(),
            ["line 6: this NIC has no socket", "--socket"],
        ),
    ] {
        std::fs::write(file, format!("{first}{second}\n")).expect("a file");
        let end = run(&["serve", "--config", file]);
        assert_eq!(end.code, Some(2), "{second}: {}", end.err);
        let line = end.err.lines().next().unwrap_or_default();
        assert_one_line(&second, line, &parts);
    }
    // One that cannot start is named too, and nothing is left behind.
    let toml = format!(
        "[[nic]]\nsocket = \"{base}/a.sock\"\n\n[[nic]]\nsocket = \"{base}/b.sock\"\nmac = \"52:54:00:00:00:01\"\nwire = \"pcap={base}/missing\"\n"
    );
    std::fs::write(file, toml).expect("a file");
    let end = run(&["serve", "--config", file]);
    assert_eq!(end.code, Some(1), "{}", end.err);
    assert!(
        end.err.contains("line 4: ") && end.err.contains("missing"),
        "{}",
        end.err
    );
    for name in ["a.sock", "b.sock"] {
        assert!(!directory.path().join(name).exists(), "{name}");
    }
}
