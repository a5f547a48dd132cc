//! A guest and this host's own kernel, through a TAP device in a network namespace of the test's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::support::{Conversation, Nic, boot, run};

/// A network namespace.
pub struct Namespace(String);

impl Namespace {
    /// One of that name, with a TAP device that has the partner's address.
    pub fn new(name: &str) -> Self {
        Self::with_tap(name, &[])
    }

    /// One whose TAP device is made with further `options`.
    fn with_tap(name: &str, options: &[&str]) -> Self {
        let name = format!("nic-{name}-{}", std::process::id());
        let namespace = Namespace(name);
        ip(&["netns", "add", &namespace.0]);
        let add = ["ip", "tuntap", "add", "tap0", "mode", "tap"];
        namespace.run(&[&add, options].concat());
        namespace.run(&["ip", "addr", "add", "10.77.0.1/24", "dev", "tap0"]);
        namespace.run(&["ip", "link", "set", "tap0", "up"]);
        namespace
    }

    /// A NIC on its TAP device.
    fn nic(&self) -> Nic {
        self.nic_on("tap=tap0")
    }

    fn nic_on(&self, wire: &str) -> Nic {
        self.nic_with(wire, &[])
    }

    /// A NIC on `wire` with further options.
    pub fn nic_with(&self, wire: &str, options: &[&str]) -> Nic {
        let arguments = [&["--wire", wire], options].concat();
        Nic::within(&["ip", "netns", "exec", &self.0], &arguments)
    }

    /// Makes something in it, as a socket, which stays there.
    pub fn make<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<R> + Send + 'static,
    ) -> R {
        let file = File::open(format!("/run/netns/{}", self.0)).expect("it is there");
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        let made = thread.join().expect("it does not panic");
        made.expect("it can be made")
    }

    /// Runs a command in it and waits for it.
    pub fn run(&self, words: &[&str]) {
        ip(&[&["netns", "exec", &self.0], words].concat());
    }

    /// Starts a command in it.
    fn start(&self, words: &[&str]) -> Child {
        Command::new("ip")
            .args(["netns", "exec", &self.0])
            .args(words)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(words: &[&str]) {
    let status = Command::new("ip")
        .args(words)
        .status()
        .expect("iproute2 is there");
    assert!(status.success(), "ip {words:?}: {status}");
}

/// `nic-guest talk` on a NIC.
fn talk(nic: &Nic, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-guest"));
    command
        .args(["talk", "--timeout", "30s", "--socket"])
        .arg(nic.socket())
        .args(words)
        .stdout(Stdio::piped());
    command
}

#[test]
fn our_guests_kernel_and_this_hosts_exchange_streams() {
    let namespace = Namespace::new("streams");
    for fault in [&[][..], &["--fault", "drop=0.03,duplicate=0.01,seed=5"]] {
        let wire = [&["--wire", "tap=tap0"], fault].concat();
        let nic = Nic::within(&["ip", "netns", "exec", &namespace.0], &wire);
        let listener = namespace.make(|| TcpListener::bind("10.77.0.1:7"));
        let echo = std::thread::spawn(move || -> io::Result<u64> {
            let (stream, _) = listener.accept()?;
            let octets = io::copy(&mut &stream, &mut &stream)?;
            stream.shutdown(Shutdown::Write)?;
            Ok(octets)
        });
        let words = ["tcp-send", "-n", "300000", "10.77.0.1:7"];
        let sent = talk(&nic, &words).output().expect("it starts");
        let out = String::from_utf8_lossy(&sent.stdout);
        assert!(sent.status.success(), "{fault:?}: {out}");
        assert!(out.contains("300000 came back"), "{fault:?}: {out}");
        let echoed = echo.join().expect("it does not panic").expect("no error");
        assert_eq!(echoed, 300_000);
        let mut guest = talk(&nic, &["tcp-recv"]).spawn().expect("it starts");
        // It listens once it has said so.
        let mut out = guest.stdout.take().expect("a pipe");
        let mut said = [0; 16];
        out.read_exact(&mut said).expect("a line");
        let mut stream = namespace.make(|| TcpStream::connect("10.77.0.2:9"));
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        let data: Vec<u8> = (0..300_000_u32)
            .map(|at| (at * 7 + at / 251) as u8)
            .collect();
        stream.write_all(&data).expect("the guest takes it");
        stream.shutdown(Shutdown::Write).expect("it is connected");
        assert_eq!(stream.read(&mut said).expect("an end"), 0, "{fault:?}");
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("text");
        assert!(guest.wait().expect("an end").success(), "{fault:?}: {rest}");
        assert!(rest.contains("300000 octets received"), "{fault:?}: {rest}");
    }
}

#[test]
fn iperf3_over_tap_tcp_and_udp() {
    let namespace = Namespace::new("iperf3");
    let nic = namespace.nic();
    let mut server = namespace.start(&["iperf3", "--server"]);
    let job = "iperf3 --client 10.77.0.1 --time 3 --json > /tmp/up
        iperf3 --client 10.77.0.1 --time 3 --reverse --json > /tmp/down
        iperf3 --client 10.77.0.1 --time 3 --udp --bitrate 20M --json > /tmp/udp
        iperf3 --client 10.77.0.1 --time 3 --udp --bitrate 20M --reverse --json > /tmp/udp-down
        cat /tmp/up; echo ---; cat /tmp/down; echo ---; cat /tmp/udp; echo ---; cat /tmp/udp-down";
    let out = run(boot("guest-qemu", &[&nic], &[]), job);
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    let reports: Vec<Value> = out
        .split("---")
        .map(|report| serde_json::from_str(report).expect("iperf3's JSON"))
        .collect();
    let [up, down, udp, udp_down] = &reports[..] else {
        panic!("{out}");
    };
    for report in [up, down] {
        let received = report["end"]["sum_received"]["bytes"].as_u64();
        println!(
            "TCP: {} Mb/s",
            report["end"]["sum_received"]["bits_per_second"]
                .as_f64()
                .unwrap_or(0.0)
                / 1e6
        );
        assert!(received > Some(1_000_000), "{report:#}");
    }
    for report in [udp, udp_down] {
        let sum = &report["end"]["sum"];
        println!(
            "UDP: {} packets, {} lost",
            sum["packets"], sum["lost_packets"]
        );
        assert!(sum["packets"].as_u64() > Some(1_000), "{report:#}");
    }
    let stats = nic.stats();
    assert_eq!(stats["port"]["drops"]["tx_malformed"], 0, "{stats:#}");
}

#[test]
fn super_frames_pass_both_ways_until_they_are_switched_off() {
    const OCTETS: u64 = 16_000_000;
    let namespace = Namespace::new("gso");
    let nic = namespace.nic();
    let mut server = namespace.start(&["iperf3", "--server"]);
    let job = "say ready
        iperf3 --client 10.77.0.1 --bytes 16M > /tmp/out; say up
        iperf3 --client 10.77.0.1 --bytes 16M --reverse > /tmp/out; say down
        ethtool -K eth0 rx-gro-hw off; say off
        iperf3 --client 10.77.0.1 --bytes 16M --reverse > /tmp/out; say cut
        ethtool -K eth0 rx-gro-hw on; ethtool -K eth0 tso off; say single
        iperf3 --client 10.77.0.1 --bytes 16M > /tmp/out; say done";
    let mut guest = Conversation::start(boot("guest-uml", &[&nic], &[]), &nic.share(), job);
    let mut before = Value::Null;
    let mut step = |name: &str| {
        guest.hear(name);
        let stats = nic.stats();
        guest.answer(name);
        let last = std::mem::replace(&mut before, stats.clone());
        // By how much a count has grown.
        move |path: &str| {
            let count = |stats: &Value| stats.pointer(path).and_then(Value::as_u64);
            count(&stats).unwrap_or_else(|| panic!("no {path}: {stats:#}"))
                - count(&last).unwrap_or(0)
        }
    };
    let _ = step("ready");
    let up = step("up");
    assert!(
        up("/wire_counters/tap_sent_super") > 100,
        "no super-frames were sent"
    );
    assert!(up("/port/tx_octets") > OCTETS);
    // The line saw frames of the usual size.
    assert!(up("/port/tx_frames") > OCTETS / 1500);
    assert!(up("/port/tx_fetched") < up("/port/tx_frames") / 2);
    let down = step("down");
    assert!(
        down("/wire_counters/tap_received_super") > 100,
        "no super-frames came"
    );
    assert!(down("/port/rx_frames") > OCTETS / 1500);
    assert!(down("/queues/rx0/packets") < down("/port/rx_frames") / 2);
    assert_eq!(down("/queues/rx0/segments_made"), 0, "the guest takes them");
    assert!(down("/queues/rx0/checksum_partial") > 100);
    let _ = step("off");
    let cut = step("cut");
    assert!(cut("/wire_counters/tap_received_super") > 100);
    assert!(cut("/queues/rx0/segments_made") > OCTETS / 1500 / 2);
    assert!(cut("/queues/rx0/packets") > OCTETS / 1500);
    let _ = step("single");
    let single = step("done");
    assert_eq!(single("/wire_counters/tap_sent_super"), 0);
    assert_eq!(single("/port/tx_segments_made"), 0);
    guest.end();
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    let stats = nic.stats();
    for reason in ["tx_malformed", "tx_oversize", "rx_malformed", "rx_oversize"] {
        assert_eq!(stats["port"]["drops"][reason], 0, "{stats:#}");
    }
}

#[test]
fn flows_over_several_queues_lose_nothing_and_keep_their_order() {
    let namespace = Namespace::with_tap("queues", &["multi_queue"]);
    let nic = namespace.nic_on("tap=tap0,queues=4");
    let mut server = namespace.start(&["iperf3", "--server"]);
    let job = "for way in '' --reverse; do
            iperf3 --client 10.77.0.1 --parallel 8 --time 3 --json $way; echo ---
            iperf3 --client 10.77.0.1 --parallel 8 --time 3 --udp --length 1000 --bitrate 1M --json $way; echo ---
        done";
    let out = run(boot("guest-uml", &[&nic], &[]), job);
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    let reports: Vec<Value> = out
        .split("---")
        .filter(|report| !report.trim().is_empty())
        .map(|report| serde_json::from_str(report).expect("iperf3's JSON"))
        .collect();
    assert_eq!(reports.len(), 4, "{out}");
    for tcp in [&reports[0], &reports[2]] {
        let received = tcp["end"]["sum_received"]["bytes"].as_u64();
        assert!(received > Some(1_000_000), "{tcp:#}");
    }
    for udp in [&reports[1], &reports[3]] {
        let streams = udp["end"]["streams"].as_array();
        let streams = streams.expect("a list");
        assert_eq!(streams.len(), 8, "{udp:#}");
        for stream in streams {
            // The guest's sockets may drop some.
            let stream = &stream["udp"];
            assert!(stream["packets"].as_u64() > Some(100), "{udp:#}");
            assert_eq!(stream["out_of_order"], 0, "{udp:#}");
        }
    }
    let stats = nic.stats();
    for count in ["tap_received_super", "tap_sent_super"] {
        let count = stats["wire_counters"][count].as_u64();
        assert!(count > Some(50), "{stats:#}");
    }
    for count in ["tap_refused_full", "tap_refused", "tap_read_errors"] {
        assert_eq!(stats["wire_counters"][count], 0, "{stats:#}");
    }
    assert_eq!(stats["port"]["drops"]["rx_fifo_overflow"], 0, "{stats:#}");
    let dropped = "/sys/class/net/tap0/statistics/tx_dropped";
    namespace.run(&["grep", "-x", "0", dropped]);
}
