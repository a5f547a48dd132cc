//! `nic-guest check` as users run it, on our own program.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use crate::support::{NicProcess, program};

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nic-guest"));
    command.args(["check", "--timeout", "60s"]);
    command.stdin(Stdio::null());
    command
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Runs the suite on a NIC that it starts itself.
fn check(serve: &str, arguments: &str) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("nic.sock");
    let nic = program("vhost-user-nic");
    let exec = format!(
        "RUST_LOG=off exec {} serve --socket {} {serve}",
        nic.display(),
        socket.display()
    );
    command()
        .arg("--socket")
        .arg(&socket)
        .args(["--exec", &exec])
        .args(arguments.split_whitespace())
        .output()
        .expect("the program starts")
}

/// How many cases ended how; none may fail.
fn counts(output: &Output) -> (usize, usize) {
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            let (out, errors) = (text(&output.stdout), text(&output.stderr));
            panic!("{error}: {out}{errors}")
        });
    let cases = report["cases"].as_array().expect("cases");
    let with = |result: &'static str| cases.iter().filter(move |case| case["result"] == result);
    let failed: Vec<_> = with("fail").collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(output.status.success(), "{}", text(&output.stderr));
    (with("pass").count(), with("not offered").count())
}

#[test]
fn all_cases_pass_on_ours() {
    let (passed, missing) = counts(&check("--wire loopback", "--json"));
    assert!(passed >= 100, "{passed} passed");
    // Logging, in-flight buffers and queue pairs, with one.
    assert!(missing < passed / 10, "{missing} not offered");
}

#[test]
fn all_cases_pass_with_several_pairs_and_a_partner() {
    let chosen = "--json --only control --only config --only features --only traffic --only life";
    counts(&check("--queues 4 --wire partner", chosen));
}

#[test]
fn a_death_is_no_refusal() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("nic.sock");
    let nic = NicProcess::start(&socket);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut child = command()
        .arg("--socket")
        .arg(&socket)
        .args(["--only", "life", "--only", "split"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut said = String::new();
    out.read_line(&mut said).expect("a line");
    // It is killed in the middle of the suite.
    drop(nic);
    out.read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("an end").code(), Some(1), "{said}");
    assert!(said.contains("the backend died (it is gone)"), "{said}");
    assert!(
        said.contains("not run: the backend is gone since"),
        "{said}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (arguments, status, reason) in [
        ("--socket s --only nothing", 2, "one of messages, order"),
        ("--socket /nowhere/s", 1, "nobody listens at /nowhere/s"),
        ("--socket /nowhere/s --exec false", 1, "exit status 1"),
    ] {
        let output = command()
            .args(arguments.split_whitespace())
            .output()
            .expect("it starts");
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments}: {errors}");
        assert!(errors.contains(reason), "{arguments}: {errors}");
    }
}

#[test]
fn cases_are_listed_and_reported_for_machines() {
    let listed = command()
        .args(["--socket", "s", "--list", "--only", "config"])
        .output()
        .expect("it starts");
    let out = text(&listed.stdout);
    assert!(out.starts_with("config: config space\n  "), "{out}");
    let directory = tempfile::tempdir().expect("a directory");
    let junit = directory.path().join("junit.xml");
    let arguments = format!("--only config --junit {}", junit.display());
    let output = check("--wire none", &arguments);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}");
    assert!(
        out.contains("pass         config    the address is"),
        "{out}"
    );
    let xml = std::fs::read_to_string(junit).expect("a file");
    assert!(xml.contains("failures=\"0\""), "{xml}");
}
