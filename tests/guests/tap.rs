//! A guest and this host's own kernel, through a TAP device in a network namespace of the test's.

use std::process::{Child, Command, Stdio};

use super::support::{Nic, boot, run};

/// A network namespace.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("nic-{}", std::process::id());
        let namespace = Namespace(name);
        ip(&["netns", "add", &namespace.0]);
        namespace
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
    let namespace = Namespace::new();
    namespace.run(&["ip", "tuntap", "add", "tap0", "mode", "tap"]);
    namespace.run(&["ip", "addr", "add", "10.77.0.1/24", "dev", "tap0"]);
    namespace.run(&["ip", "link", "set", "tap0", "up"]);
    let nic = Nic::within(
        &["ip", "netns", "exec", &namespace.0],
        &["--wire", "tap=tap0"],
    );
    let mut server = namespace.start(&["iperf3", "--server"]);
    let job = "iperf3 --client 10.77.0.1 --time 3 --json > /tmp/up
        iperf3 --client 10.77.0.1 --time 3 --reverse --json > /tmp/down
        iperf3 --client 10.77.0.1 --time 3 --udp --bitrate 20M --json > /tmp/udp
        iperf3 --client 10.77.0.1 --time 3 --udp --bitrate 20M --reverse --json > /tmp/udp-down
        cat /tmp/up; echo ---; cat /tmp/down; echo ---; cat /tmp/udp; echo ---; cat /tmp/udp-down";
    let out = run(boot("guest-qemu", &[&nic], &[]), job);
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    let reports: Vec<serde_json::Value> = out
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
