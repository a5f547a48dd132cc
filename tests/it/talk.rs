//! `nic-guest talk` as users run it, on our own backend.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use crate::support::TestNic;

fn command(nic: &TestNic, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-guest"));
    command
        .args(["talk", "--timeout", "5s", "--socket"])
        .arg(nic.socket())
        .args(arguments.split_whitespace())
        .stdin(Stdio::null());
    command
}

fn talk(nic: &TestNic, arguments: &str) -> Output {
    command(nic, arguments)
        .output()
        .expect("the program starts")
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn the_partner_answers_ping_and_echo() {
    let nic = TestNic::new("partner");
    let ping = talk(&nic, "ping -c 3 -i 10ms -s 1000");
    let out = text(&ping.stdout);
    assert!(ping.status.success(), "{out}{}", text(&ping.stderr));
    assert!(
        out.contains("1008 octets from 10.77.0.1: icmp_seq=3"),
        "{out}"
    );
    assert!(out.contains("3 transmitted, 3 received"), "{out}");
    let echo = talk(&nic, "udp-echo -c 2000 -s 1472");
    let out = text(&echo.stdout);
    assert!(echo.status.success(), "{out}{}", text(&echo.stderr));
    assert!(out.contains("2000 came back, 0 lost"), "{out}");
    nic.assert_balanced();
}

#[test]
fn who_does_not_answer_is_told_with_what_was_seen() {
    let nic = TestNic::new("sink");
    for arguments in [
        "--timeout 100ms ping -c 1 10.77.0.9",
        "--timeout 100ms --neighbour 10.77.0.1=02:00:00:00:77:01 udp-echo -c 10",
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nic-guest"));
        command.args(["talk", "--socket"]).arg(nic.socket());
        let output = command
            .args(arguments.split_whitespace())
            .output()
            .expect("it starts");
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {errors}");
        assert!(errors.contains("the backend took"), "{arguments}: {errors}");
    }
}

#[test]
fn ipv6_is_pinged_too() {
    let nic = TestNic::new("partner");
    let own = talk(&nic, "--address6 fd77::2/64 ping -c 2 -i 1ms fd77::2");
    let out = text(&own.stdout);
    assert!(out.contains("64 octets from fd77::2: icmp_seq=2"), "{out}");
    // The partner knows IPv4 only: it was asked for its address.
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-guest"));
    command.args([
        "talk",
        "--timeout",
        "100ms",
        "--proc",
        "net/snmp6",
        "--socket",
    ]);
    command
        .arg(nic.socket())
        .args(["ping", "-c", "1", "fe80::1"]);
    let failed = command.output().expect("it starts");
    assert_eq!(failed.status.code(), Some(1));
    let shown = text(&failed.stdout);
    let asked = shown
        .lines()
        .find(|line| line.starts_with("Icmp6OutNeighborSolicits"));
    assert!(asked.is_some_and(|line| line.ends_with("\t1")), "{shown}");
    let wrong = talk(&nic, "--address6 fd77::2 ping");
    assert!(text(&wrong.stderr).contains("an IPv6 address and a prefix length"));
}

#[test]
fn proc_is_shown_when_it_is_done() {
    let nic = TestNic::new("partner");
    let one = text(&talk(&nic, "--proc net/arp ping -c 1").stdout);
    assert!(one.contains("1 received"), "{one}");
    assert!(
        one.contains("HW address            Mask     Device\n10.77.0.1        0x1         0x2"),
        "{one}"
    );
    let all = text(&talk(&nic, "--proc all udp-echo -c 10").stdout);
    for line in [
        "==> /proc/interrupts <==",
        "eventfd   0-edge      virtio0-input.0",
        "==> /proc/net/snmp <==",
        "Udp: 10 0 0 10 0 0 0 0 0",
    ] {
        assert!(all.contains(line), "{all}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-guest"));
    command.args([
        "talk",
        "--timeout",
        "100ms",
        "--proc",
        "net/arp",
        "--socket",
    ]);
    command
        .arg(nic.socket())
        .args(["ping", "-c", "1", "10.77.0.9"]);
    let failed = command.output().expect("it starts");
    assert_eq!(failed.status.code(), Some(1));
    let shown = text(&failed.stdout);
    assert!(
        shown.contains("10.77.0.9        0x1         0x0"),
        "{shown}"
    );
    let wrong = talk(&nic, "--proc net/tcp6 ping");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("net/softnet_stat"));
}

/// A process that is killed if the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_backend_that_dies_ends_it() {
    let nic = TestNic::new("partner");
    let mut listen = command(&nic, "udp-echo --listen 7");
    let mut child = Killed(
        listen
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts"),
    );
    let mut out = BufReader::new(child.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert!(line.contains("echo service at 10.77.0.2:7"), "{line}");
    drop(nic);
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut child.0.stderr.take().expect("a pipe"), &mut errors)
        .expect("text");
    assert_eq!(child.0.wait().expect("an end").code(), Some(1), "{errors}");
    assert!(errors.contains("closed the connection"), "{errors}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let nic = TestNic::new("none");
    for (arguments, status, reason) in [
        ("ping -c 0", 2, "0 is not in 1.."),
        (
            "--address 10.77.0.2 ping",
            2,
            "an address and a prefix length",
        ),
        (
            "--neighbour 10.77.0.1=here ping",
            2,
            "an address and its MAC address",
        ),
        ("udp-echo -s 1473", 2, "1473 is not in"),
    ] {
        let output = talk(&nic, arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments}: {errors}");
        assert!(errors.contains(reason), "{arguments}: {errors}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-guest"));
    command.args([
        "talk",
        "--timeout",
        "10ms",
        "--socket",
        "/nowhere/nic.sock",
        "ping",
    ]);
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("/nowhere/nic.sock"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn streams_are_sent_back_and_thrown_away() {
    let nic = TestNic::new("partner");
    for (arguments, back) in [
        ("tcp-send -n 1000000 10.77.0.1:7", 1_000_000),
        ("tcp-send -n 3000000", 0),
        ("tcp-send -n 0 10.77.0.1:7", 0),
    ] {
        let send = talk(&nic, arguments);
        let out = text(&send.stdout);
        assert!(send.status.success(), "{out}{}", text(&send.stderr));
        assert!(out.contains(&format!("{back} came back")), "{out}");
    }
    let refused = talk(&nic, "tcp-send 10.77.0.1:10");
    let errors = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(errors.contains("ECONNREFUSED"), "{errors}");
    nic.assert_balanced();
}
