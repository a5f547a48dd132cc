//! One queue of a TAP device, and what is in the way.

use super::*;
use crate::wire::testing::{frame, pool};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{BindToDevice, Broadcast};
use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// A name that no other test or process has.
pub(super) fn unique(tag: &str) -> String {
    format!("nic{tag}{}", std::process::id() % 10_000_000)
}

/// A TAP device with a single queue, where this process may have one.
pub(super) fn open(name: &str, mtu: u16) -> Option<Tap> {
    open_queues(name, mtu, 1)
}

/// A TAP device with several.
pub(super) fn open_queues(name: &str, mtu: u16, queues: u16) -> Option<Tap> {
    match Tap::open(name, mtu, queues) {
        Err(reason @ (TapError::NoDriver | TapError::NoAccess | TapError::NotPermitted)) => {
            eprintln!("not tested: {reason}");
            None
        }
        opened => Some(opened.unwrap()),
    }
}

/// Runs `test` in a network namespace of its own, where that is possible.
pub(super) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(reason) => eprintln!("not tested: no network namespace: {reason}"),
    });
    thread.join().expect("the test passes");
}

pub(super) fn shell(script: &str) -> bool {
    let status = Command::new("sh").args(["-ec", script]).status();
    status.expect("there is a shell").success()
}

pub(super) fn statistic(name: &str, what: &str) -> u64 {
    let path = format!("/sys/class/net/{name}/{what}");
    let text = fs::read_to_string(&path).unwrap();
    text.trim().parse().unwrap()
}

pub(super) fn count(tap: &Tap, counter: &str) -> u64 {
    let all = tap.counters();
    all.iter().find(|(name, _)| *name == counter).unwrap().1
}

#[test]
fn names_are_those_of_interfaces() {
    assert!(is_name("tap0") && is_name("abcdefghijklmno"));
    for name in [
        "",
        "abcdefghijklmnop",
        "a b",
        "a/b",
        "tap%d",
        "a:b",
        "..",
        "ö",
    ] {
        assert!(!is_name(name), "{name}");
    }
}

#[test]
fn frames_pass_both_ways() {
    let name = unique("a");
    let Some(mut tap) = open(&name, 1400) else {
        return;
    };
    let mut pool = pool(1400);
    tap.link_changed(Nanos(0), true);
    assert_eq!(statistic(&name, "mtu"), 1400);
    assert_eq!(statistic(&name, "carrier"), 1);

    let before = statistic(&name, "statistics/rx_packets");
    let mut frames = (0..3).map(|_| frame(&mut pool, 0, &[0xff; 60])).collect();
    tap.transmit(Nanos(1), &mut pool, &mut frames);
    assert_eq!(statistic(&name, "statistics/rx_packets"), before + 3);
    assert_eq!(count(&tap, "tap_sent"), 3);

    // A datagram to everyone on the interface needs no address on it.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    setsockopt(&socket, BindToDevice, &name.clone().into()).unwrap();
    setsockopt(&socket, Broadcast, &true).unwrap();
    socket
        .send_to(b"over the TAP", "255.255.255.255:9")
        .unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    // The kernel may have sent something of its own before.
    let ours = |f: &Frame| f.bytes().ends_with(b"over the TAP");
    while !frames.iter().any(ours) && Instant::now() < end {
        tap.receive(Nanos(7), 64, &mut pool, &mut frames);
    }
    let came = frames.iter().find(|f| ours(f)).expect("the datagram");
    assert_eq!(came.arrival, Nanos(7));
    assert_eq!(came.len(), 14 + 20 + 8 + 12);
    let waiting = frames.len();
    pool.give_all(frames.drain(..));
    assert_eq!(
        (pool.lent(), count(&tap, "tap_received")),
        (0, waiting as u64)
    );

    tap.link_changed(Nanos(8), false);
    assert_eq!(statistic(&name, "carrier"), 0);
    drop(tap);
    // Another test's child has our descriptors until it starts its own program.
    let start = Instant::now();
    while if_nametoindex(name.as_str()).is_ok() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it goes with its owner"
        );
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    let name = unique("b");
    let Some(tap) = open(&name, 1500) else {
        return;
    };
    assert!(matches!(Tap::open(&name, 1500, 1), Err(TapError::Busy)));
    drop(tap);
    assert!(matches!(Tap::open("lo", 1500, 1), Err(TapError::NotTap)));
}

#[test]
fn what_waited_without_a_link_is_discarded_and_what_is_refused_counted() {
    let name = unique("c");
    let Some(mut tap) = open(&name, 1500) else {
        return;
    };
    let mut pool = pool(1500);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    setsockopt(&socket, BindToDevice, &name.clone().into()).unwrap();
    setsockopt(&socket, Broadcast, &true).unwrap();
    socket.send_to(b"too early", "255.255.255.255:9").unwrap();
    tap.link_changed(Nanos(0), true);
    assert!(count(&tap, "tap_stale") >= 1);

    let control = UdpSocket::bind("0.0.0.0:0").unwrap();
    ioctl::set_flags(&control, &name, 0).unwrap();
    // The second is no frame.
    let mut frames = vec![
        frame(&mut pool, 0, &[0xff; 60]),
        frame(&mut pool, 0, &[1; 3]),
    ];
    tap.transmit(Nanos(1), &mut pool, &mut frames);
    assert_eq!(count(&tap, "tap_refused_down"), 1);
    assert_eq!(count(&tap, "tap_refused"), 1);
    assert_eq!(pool.lent(), 0);
}

#[test]
fn an_interface_that_is_removed_is_noticed() {
    let name = unique("r");
    let Some(mut tap) = open(&name, 1500) else {
        return;
    };
    let mut pool = pool(1500);
    let mut frames = Vec::new();
    tap.receive(Nanos::ZERO, 1, &mut pool, &mut frames);
    pool.give_all(frames.drain(..));
    assert!(!tap.is_gone());
    let removed = Command::new("ip")
        .args(["link", "delete", &name])
        .status()
        .unwrap();
    assert!(removed.success());
    tap.receive(Nanos::ZERO, 1, &mut pool, &mut frames);
    assert!(tap.is_gone() && frames.is_empty());
    assert_eq!(pool.lent(), 0);
}
