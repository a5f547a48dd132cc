//! TCP between two kernels, this host's and User-mode Linux's, while their offloads and the card's are on, off, and being switched.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::support::{Conversation, boot};
use super::tap::Namespace;

/// Octets of a stream. In `scripts/test long` the offloads are switched for longer.
fn octets() -> usize {
    match std::env::var_os("LONG") {
        Some(_) => 512 << 20,
        None => 64 << 20,
    }
}

/// Times that all is off, on, being merged by the card, and being switched.
const STREAMS: usize = 4;

/// What `sha256sum` says of what `write` writes to it.
fn digest(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    write(&mut child.stdin.take().expect("a pipe"))?;
    let out = child.wait_with_output()?.stdout;
    Ok(String::from_utf8_lossy(&out).trim().to_owned())
}

/// In the guest: gets the stream, and sends it back, each compared by its SHA-256. `switch_all` has each of the offloads off and then on.
const GUEST: &str = r#"
    transfer() {
        socat -u TCP:10.77.0.1:19 CREATE:/tmp/data
        got=$(sha256sum < /tmp/data)
        [ "$got" = "$sum" ] || { echo "$1: received $got, not $sum" >&2; exit 1; }
        got=$(socat -t 120 - TCP:10.77.0.1:9 < /tmp/data)
        [ "$got" = "$sum" ] || { echo "$1: the other end received $got, not $sum" >&2; exit 1; }
        rm /tmp/data
        say "$1"
    }
    # What others need goes last, and comes first.
    switch_off() { for what in tso gso rx-gro-hw gro tx; do ethtool -K eth0 $what off || exit 1; done; }
    switch_on() { for what in tx gro rx-gro-hw gso tso; do ethtool -K eth0 $what on || exit 1; done; }
    switch_all() {
        times=0
        until [ -e /tmp/stop ]; do
            switch_off
            switch_on
            times=$((times + 1))
        done
        echo $times > /tmp/times
    }
    say ready
    transfer on
    transfer merged
    switch_off
    transfer off
    switch_on
    switch_all & switching=$!
    transfer switched
    touch /tmp/stop
    wait $switching || exit 1
    echo "times $(cat /tmp/times)"
"#;

/// This kernel leaves segments and checksums to the card, or not.
fn switch(namespace: &Namespace, way: &str) {
    let command = format!("ethtool -K tap0 tx {way} > /dev/null");
    namespace.run(&["sh", "-c", &command]);
}

/// Says so when the test is over, or has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn streams_are_the_same_whatever_offloads_are_on_and_while_they_are_switched() {
    let namespace = Namespace::new("offloads");
    let nic = namespace.nic_with("tap=tap0", &["--lro", "on"]);
    let mut data = vec![0; octets()];
    let mut chance = File::open("/dev/urandom").expect("it is there");
    chance.read_exact(&mut data).expect("it has enough");
    let data = Arc::new(data);
    let sum = digest(|sink| sink.write_all(&data)).expect("sha256sum");

    let gives = namespace.make(|| TcpListener::bind("10.77.0.1:19"));
    let takes = namespace.make(|| TcpListener::bind("10.77.0.1:9"));
    let all = Arc::clone(&data);
    let giver = thread::spawn(move || -> io::Result<()> {
        for _ in 0..STREAMS {
            let (mut stream, _) = gives.accept()?;
            stream.write_all(&all)?;
            stream.shutdown(Shutdown::Write)?;
            io::copy(&mut stream, &mut io::sink())?;
        }
        Ok(())
    });
    let taker = thread::spawn(move || -> io::Result<()> {
        for _ in 0..STREAMS {
            let (mut stream, _) = takes.accept()?;
            let sum = digest(|sink| io::copy(&mut &stream, sink).map(drop))?;
            writeln!(stream, "{sum}")?;
        }
        Ok(())
    });

    let job = format!("sum='{sum}'\n{GUEST}");
    let mut guest = Conversation::start(boot("guest-uml", &[&nic], &[]), &nic.share(), &job);
    let mut before = Value::Null;
    let mut step = |guest: &mut Conversation, name: &str| {
        guest.hear(name);
        let stats = nic.stats();
        let last = std::mem::replace(&mut before, stats.clone());
        // By how much a count has grown.
        move |path: &str| {
            let count = |stats: &Value| stats.pointer(path).and_then(Value::as_u64);
            let now = count(&stats).unwrap_or_else(|| panic!("no {path}: {stats:#}"));
            now - count(&last).unwrap_or(0)
        }
    };
    let segments = octets() as u64 / 1500;
    let _ = step(&mut guest, "ready");
    guest.answer("ready");
    let on = step(&mut guest, "on");
    assert!(on("/wire_counters/tap_received_super") > 100);
    assert!(on("/wire_counters/tap_sent_super") > 100);
    assert!(on("/port/tx_frames") > segments && on("/port/rx_frames") > segments);
    // This kernel sends segments one by one, with their checksums, and it is the card that merges them.
    switch(&namespace, "off");
    guest.answer("on");
    let merged = step(&mut guest, "merged");
    assert_eq!(merged("/wire_counters/tap_received_super"), 0);
    assert!(merged("/port/rx_merged") > segments / 10);
    guest.answer("merged");
    let off = step(&mut guest, "off");
    assert_eq!(off("/wire_counters/tap_sent_super"), 0);
    assert_eq!(
        (off("/port/rx_merged"), off("/port/tx_segments_made")),
        (0, 0)
    );
    // Both at once: what comes as one has to be cut where the guest takes none at that moment.
    guest.answer("off");
    let stop = AtomicBool::new(false);
    let switched = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                switch(&namespace, "on");
                thread::sleep(Duration::from_millis(100));
                switch(&namespace, "off");
                thread::sleep(Duration::from_millis(100));
            }
        });
        let _stop = Stop(&stop);
        step(&mut guest, "switched")
    });
    assert!(switched("/wire_counters/tap_received_super") > 0);
    // What came in segments was merged by the card.
    assert!(switched("/port/rx_coalesced") > 0 && switched("/queues/rx0/segments_made") > 0);
    let supers = switched("/wire_counters/tap_sent_super");
    let in_supers = supers + switched("/port/tx_segments_made");
    let alone = switched("/port/tx_sizes/1024-1518").saturating_sub(in_supers);
    assert!(
        supers > 100 && alone > 100,
        "{supers} super-frames, {alone} full segments for themselves"
    );
    assert!(switched("/control/commands") > 2);
    guest.answer("switched");
    let rest = guest.end();
    let times = rest.iter().find_map(|line| line.strip_prefix("times "));
    let times: u32 = times
        .and_then(|times| times.parse().ok())
        .expect("a number");
    println!("all offloads were switched off and on {times} times");
    assert!(times > 2, "{times}");
    giver.join().expect("no panic").expect("no error");
    taker.join().expect("no panic").expect("no error");
    let stats = nic.stats();
    for reason in ["tx_malformed", "tx_oversize", "rx_malformed", "rx_oversize"] {
        assert_eq!(stats["port"]["drops"][reason], 0, "{stats:#}");
    }
}
