//! The program: how it starts, what it says, what it refuses, and how it ends.

mod change;
pub mod child;
mod control;
mod mdio;
mod rest;
mod several;
mod stats;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nic_backend::control::{Request, ask};
use nic_guest::memory::GuestMemory;
use nic_guest::transport::Transport;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nix::sys::signal::Signal;

use self::child::{Serving, run};
use crate::support::{
    PATIENCE, exchange, numbered_frame, program, wait_until, without_super_frames,
};

/// A guest on the socket at `path`.
fn guest(path: &Path) -> VirtnetInfo<VhostUser> {
    let memory = GuestMemory::new(32 << 20).expect("guest memory");
    let transport = VhostUser::connect(path, memory).expect("a connection");
    VirtnetInfo::probe(transport, &without_super_frames()).expect("a device")
}

/// Text that is one line, and says all of `parts`.
fn assert_one_line(what: &str, text: &str, parts: &[&str]) {
    assert_eq!(text.trim_end().lines().count(), 1, "{what}: {text}");
    for part in parts {
        assert!(text.contains(part), "{what}: no {part:?} in {text}");
    }
}

#[test]
fn it_listens_at_once_and_says_how_to_attach() {
    let start = Instant::now();
    let nic = Serving::start(&[
        "--mac",
        "52:54:00:ab:cd:ef",
        "--mtu",
        "9000",
        "--speed",
        "25G",
    ]);
    println!("from start to connection: {:?}", start.elapsed());
    let (socket, control) = (nic.socket(), nic.control());
    let (socket, control) = (socket.display(), control.display());
    for expected in [
        "52:54:00:ab:cd:ef, 25Gb/s, MTU 9000, wire partner".to_owned(),
        format!("listening on {socket}\n"),
        format!("-chardev socket,id=nic,path={socket},reconnect-ms=500\n"),
        "-netdev vhost-user,id=net,chardev=nic -device virtio-net-pci,netdev=net,mac=52:54:00:ab:cd:ef,host_mtu=9000\n".to_owned(),
        format!("virtio_uml.device={socket}:1\n"),
        format!("vhost-user-nic stats --control {control}\n"),
    ] {
        // Written once the socket is there, so a moment later perhaps.
        wait_until(&expected, || nic.output().contains(&expected));
    }
    let guest = guest(&nic.socket());
    assert_eq!(guest.mac(), [0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
    assert_eq!(guest.config.mtu, Some(9000));
}

#[test]
fn a_relative_path_is_printed_whole() {
    let nic = Serving::start_in("nic.sock", &[]);
    let whole = nic.directory().join("nic.sock");
    let expected = format!("path={},", whole.display());
    wait_until(&expected, || nic.output().contains(&expected));
}

#[test]
fn signals_end_it_and_nothing_is_left_behind() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // Alone; with a guest that does nothing; with frames in both directions.
        for (wire, attached, traffic) in [
            ("partner", false, false),
            ("loopback", true, false),
            ("generator", true, true),
        ] {
            let what = format!("{signal}, {wire}, guest {attached}");
            let mut nic = Serving::start(&["--wire", wire]);
            let mut guest = attached.then(|| guest(&nic.socket()));
            let mut exchange = |least: u64| {
                let Some(guest) = guest.as_mut().filter(|_| traffic) else {
                    return true;
                };
                let frame = numbered_frame(0, 60);
                // The ring may be full, and is once nobody empties it.
                let _ = guest.start_xmit(0, &frame, &VirtioNetHdr::default());
                guest.flush(0);
                guest.poll(0, 64, |_| {}).expect("sound rings");
                let (rx, tx) = guest.stats();
                rx.packets >= least && tx.packets >= least
            };
            wait_until("frames in both directions", || exchange(1000));
            nic.signal(signal);
            wait_until("its end", || {
                exchange(0);
                nic.ended().is_some()
            });
            let status = nic.ended().expect("it ended");
            assert_eq!(status.code(), Some(0), "{what}: {}", nic.log());
            assert!(!nic.socket().exists() && !nic.control().exists(), "{what}");
            assert!(nic.log().contains("shutting down"), "{what}: {}", nic.log());
        }
    }
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for name in ["nic.sock", "control"] {
        // Dropping a listener leaves its file.
        drop(UnixListener::bind(directory.path().join(name)).expect("a socket"));
    }
    let mut nic = Serving::start_at(directory, &[]);
    guest(&nic.socket());
    ask(&nic.control(), Request::Stats).expect("an answer");
    // One that was killed leaves its sockets too.
    nic.kill();
    assert!(nic.socket().exists() && nic.control().exists());
    let nic = Serving::start_at(nic.into_directory(), &[]);
    guest(&nic.socket());
    ask(&nic.control(), Request::Stats).expect("an answer");
}

#[test]
fn what_is_in_the_way_stays_and_is_named() {
    let nic = Serving::start(&[]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let free = directory.path().join("free.sock");
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").expect("a file");
    let nowhere = directory.path().join("no/such/directory");
    let (used, used_control) = (nic.socket(), nic.control());
    for (option, path, reason) in [
        ("--socket", &used, "somebody listens on"),
        ("--control", &used_control, "somebody listens on"),
        ("--control", &used, "somebody listens on"),
        ("--socket", &file, "is no socket"),
        ("--control", &file, "is no socket"),
        ("--socket", &nowhere, "cannot listen on"),
        ("--control", &nowhere, "cannot listen on"),
    ] {
        let mut args = vec!["serve", option, path.to_str().expect("a name")];
        if option == "--control" {
            args.extend(["--socket", free.to_str().expect("a name")]);
        }
        let end = run(&args);
        assert_eq!(end.code, Some(1), "{args:?}: {}", end.err);
        assert_one_line(&end.err, &end.err, &[reason, &path.display().to_string()]);
        assert_eq!(end.out, "", "{args:?}");
        assert!(!free.exists(), "{args:?}: its other socket is left behind");
    }
    assert_eq!(std::fs::read(&file).expect("the file"), b"precious");
    // The other NIC did not notice.
    guest(&nic.socket());
    ask(&nic.control(), Request::Stats).expect("an answer");
}

#[test]
fn bad_options_are_bad_usage_and_it_says_what_to_write() {
    for (option, value, advice) in [
        ("--wire", "string", "loopback"),
        ("--wire", "generator:pps=fast", "pps="),
        ("--wire", "pcap", "pcap=in.pcap"),
        ("--mac", "52:54:00:12:34", "52:54:00:12:34:56"),
        ("--mac", "01:00:5e:00:00:01", "52:54:00:12:34:56"),
        ("--speed", "3G", "2.5G"),
        ("--mtu", "10", "68..=9216"),
        ("--mtu", "many", "--mtu"),
        ("--queues", "0", "1"),
        ("--queues", "32", "1..=31"),
        ("--packet-buffer", "1000", "a frame may have 1526"),
        ("--packet-buffer", "64K,guarantee=1K,guarantee=2K", "twice"),
        ("--rate", "tx=11G", "no more than 10Gb/s"),
        ("--tx-weights", "1,3", "there are 1 transmit queues"),
        ("--pfc", "8", "from 0 to 7"),
        ("--fault", "device:foo=1", "used-id, used-len"),
        ("--workers", "2", "--queues 2"),
        ("--poll", "sometimes", "adaptive"),
        ("--rss", "maybe", "off"),
        ("--lro", "maybe", "off"),
        ("--rss-table", "100", "power of two"),
        ("--disable", "TURBO", "MRG_RXBUF"),
        ("--disable", "VERSION_1", "MRG_RXBUF"),
        ("--profile", "half", "virtio-user"),
        ("--link", "sideways", "down"),
        ("--colour", "blue", "--help"),
    ] {
        let end = run(&["serve", "--socket", "/nonexistent/nic.sock", option, value]);
        let what = format!("{option} {value}: {}", end.err);
        assert_eq!(end.code, Some(2), "{what}");
        assert!(
            end.err.contains(option) && end.err.contains(advice),
            "{what}"
        );
        assert_eq!(end.out, "", "{what}");
    }
    for args in [
        &[][..],
        &["serve"],
        &["stats"],
        &["announce"],
        &["link", "--control", "x", "sideways"],
        &["dance"],
    ] {
        let end = run(args);
        assert_eq!(end.code, Some(2), "{args:?}: {}", end.err);
        assert!(end.err.contains("help"), "{args:?}: {}", end.err);
    }
}

#[test]
fn what_is_wrong_with_options_together_is_one_line() {
    let socket = ["serve", "--socket", "/nonexistent/nic.sock"];
    for args in [
        ["--workers", "2"],
        ["--config", "/nonexistent.toml"],
        ["--tx-weights", "1,3"],
    ] {
        let end = run(&[&socket[..], &args].concat());
        assert_eq!(end.code, Some(2), "{args:?}: {}", end.err);
        assert!(
            end.err.starts_with("error: ") && end.err.lines().count() == 1,
            "{}",
            end.err
        );
    }
    let end = run(&["serve"]);
    assert!(
        end.err.contains("--socket <PATH>") && end.err.contains("--config FILE"),
        "{}",
        end.err
    );
}

#[test]
fn who_reads_no_more_ends_it_without_a_word() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(program("vhost-user-nic"));
    command.args(["serve", "--wire", "none", "--socket"]);
    command.arg(directory.path().join("nic.sock"));
    command.stderr(writer.try_clone().expect("a descriptor"));
    let mut child = command.stdout(writer).spawn().expect("a process");
    let begin = Instant::now();
    let mut ended = None;
    while ended.is_none() && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
        ended = child.try_wait().unwrap_or(None);
    }
    // It may have ended, as it should.
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}

#[test]
fn a_wire_that_cannot_be_plugged_in_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("text"), "no capture, but text").expect("a file");
    std::fs::write(path("empty"), "").expect("a file");
    let arp = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/captures/arp.pcap");
    let socket = path("nic.sock");
    for (wire, parts) in [
        (
            format!("pcap={}", path("missing")),
            ["missing", "check its name"],
        ),
        (
            format!("pcap={}", path("text")),
            ["text", "neither pcap nor pcapng"],
        ),
        (
            format!("pcap={}", path("empty")),
            ["empty", "neither pcap nor pcapng"],
        ),
        (
            format!("pcap={}", path("")),
            ["cannot replay", "check its name"],
        ),
        (
            format!("pcap={arp},{}", path("no/out")),
            ["no/out", "directory that exists"],
        ),
        (
            format!("pcap={arp},{arp}"),
            ["arp.pcap", "name another file"],
        ),
        ("generator:size=1519".into(), ["1519", "size=1518"]),
        ("tap=lo".into(), ["TAP device lo", ":"]),
        ("tap=lo,queues=2".into(), ["TAP device lo", "no TAP device"]),
    ] {
        let end = run(&["serve", "--socket", &socket, "--wire", &wire]);
        assert_eq!(end.code, Some(1), "{wire}: {}", end.err);
        assert_one_line(&wire, &end.err, &parts);
        assert!(!Path::new(&socket).exists(), "{wire}");
    }
}

#[test]
fn help_lists_every_option() {
    for (command, options) in [
        (
            &[][..],
            &["serve", "stats", "link", "--version", "--socket"][..],
        ),
        (
            &["serve"],
            &[
                "--socket",
                "--queues",
                "--workers",
                "--rss",
                "--rss-table",
                "--coalesce",
                "--mac",
                "--mtu",
                "--speed",
                "--wire",
                "--profile",
                "--disable",
                "--ring-reset",
                "--poll",
                "adaptive",
                "--cpus",
                "--link",
                "--control",
                "--trace-protocol",
                "partner",
                "tap=NAME[,queues=N]",
                "pcap=IN",
                "generator",
                "sink",
                "loopback",
                "none",
                "10G",
            ],
        ),
        (&["stats"], &["--control", "--json", "--all", "--names"]),
        (&["link"], &["--control", "--json", "up", "down"]),
        (&["announce"], &["--control", "--json", "GUEST_ANNOUNCE"]),
    ] {
        let end = run(&[command, &["--help"]].concat());
        assert_eq!((end.code, end.err.as_str()), (Some(0), ""), "{command:?}");
        for option in options {
            assert!(
                end.out.contains(option),
                "{command:?}: no {option} in {}",
                end.out
            );
        }
    }
}

#[test]
fn queues_workers_and_steering_are_as_they_are_asked_for() {
    let nic = Serving::start(&["--queues", "4", "--workers", "2", "--rss", "on"]);
    let expected = "-netdev vhost-user,id=net,chardev=nic,queues=4 -device virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,mq=on,vectors=10";
    wait_until(expected, || nic.output().contains(expected));
    let memory = GuestMemory::new(32 << 20).expect("guest memory");
    let transport = VhostUser::connect(&nic.socket(), memory).expect("a connection");
    let options = ProbeOptions {
        queue_pairs: 3,
        // The front-end has the control queue, as QEMU's has.
        features: f::VERSION_1 | f::MQ | f::MRG_RXBUF,
        exact: true,
        ..ProbeOptions::default()
    };
    let _guest = VirtnetInfo::probe(transport, &options).expect("a device");
    let stats = ask(&nic.control(), Request::Stats).expect("an answer");
    assert_eq!(stats["port"]["rss"]["mode"], "table");
    let table = stats["port"]["rss"]["table"].as_array().expect("entries");
    assert_eq!(table[..5], [0, 1, 2, 0, 1]);
}

#[test]
fn a_profile_decides_what_is_offered() {
    for (args, control, ring_reset) in [
        (&[][..], true, false),
        (&["--profile", "qemu"], true, false),
        (&["--ring-reset"], true, true),
        (&["--ring-reset", "--disable", "ring_reset"], true, false),
        (&["--profile", "virtio-user"], false, false),
        (&["--disable", "ctrl_vq"], false, false),
        (
            &["--disable", "MRG_RXBUF", "--disable", "CTRL_RX"],
            true,
            false,
        ),
    ] {
        let nic = Serving::start(args);
        let guest = guest(&nic.socket());
        assert_eq!(guest.cvq.is_some(), control, "{args:?}");
        let mut transport = guest.remove().expect("a reset");
        let offered = transport.device_features().expect("an answer");
        assert_eq!(offered & f::RING_RESET != 0, ring_reset, "{args:?}");
    }
    let nic = Serving::start(&["--poll", "--wire", "loopback", "--trace-protocol"]);
    let mut guest = guest(&nic.socket());
    let frames: Vec<Vec<u8>> = (0..100).map(|number| numbered_frame(number, 60)).collect();
    assert_eq!(exchange(&mut guest, &frames), frames);
    wait_until("a trace", || nic.log().contains("GET_FEATURES"));
    let stats = ask(&nic.control(), Request::Stats).expect("an answer");
    assert_eq!(stats["worker_sleeps"], 0, "it spins");
}
