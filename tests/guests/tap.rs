//! A guest and this host's own kernel, through a TAP device in a network namespace of the test's.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::support::{Conversation, Nic, boot, run};

/// A network namespace.
struct Namespace(String);

impl Namespace {
    /// One of that name, with a TAP device that has the partner's address.
    fn new(name: &str) -> Self {
        let name = format!("nic-{name}-{}", std::process::id());
        let namespace = Namespace(name);
        ip(&["netns", "add", &namespace.0]);
        namespace.run(&["ip", "tuntap", "add", "tap0", "mode", "tap"]);
        namespace.run(&["ip", "addr", "add", "10.77.0.1/24", "dev", "tap0"]);
        namespace.run(&["ip", "link", "set", "tap0", "up"]);
        namespace
    }

    /// A NIC on its TAP device.
    fn nic(&self) -> Nic {
        Nic::within(&["ip", "netns", "exec", &self.0], &["--wire", "tap=tap0"])
    }

    /// Runs a command in it and waits for it.
    fn run(&self, words: &[&str]) {
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
