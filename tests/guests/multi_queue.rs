//! Four queue pairs behind QEMU's virtio-net-pci: QEMU has the control queue, and tells the NIC by what it enables how many pairs the
//! guest uses. Each virtqueue has an MSI-X vector of its own. The NIC runs on several workers.

use serde_json::Value;

use super::support::{Nic, PING, Shell, TRANSFER, boot, run};

const PAIRS: usize = 4;

fn nic(arguments: &[&str]) -> Nic {
    let queues = ["--queues", "4", "--workers", "4"];
    Nic::new(&[&queues, arguments].concat())
}

fn count(stats: &Value, queue: &str, name: &str) -> u64 {
    let count = &stats["queues"][queue][name];
    count
        .as_u64()
        .unwrap_or_else(|| panic!("{name}: {stats:#}"))
}

fn virtqueues() -> impl Iterator<Item = String> {
    (0..PAIRS).flat_map(|pair| [format!("rx{pair}"), format!("tx{pair}")])
}

/// The interrupts that /proc/interrupts shows for `queue`, of all CPUs, of the one line with it.
fn interrupts(shown: &str, queue: &str) -> u64 {
    let name = match queue.split_at(2) {
        ("rx", pair) => format!("-input.{pair}"),
        (_, pair) => format!("-output.{pair}"),
    };
    let mut lines = shown.lines().filter(|line| line.ends_with(&name));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        panic!("not one line with {name}: {shown}");
    };
    assert!(line.contains("PCI-MSIX"), "{line}");
    let counts = line.split_whitespace().skip(1);
    counts.map_while(|word| word.parse::<u64>().ok()).sum()
}

#[test]
fn four_pairs_carry_traffic_with_a_vector_each_and_change_under_load() {
    carry_traffic_and_change_under_load(&[]);
}

#[test]
fn four_pairs_of_packed_rings_carry_traffic_and_change_under_load() {
    carry_traffic_and_change_under_load(&["--packed"]);
}

fn carry_traffic_and_change_under_load(rings: &[&str]) {
    let nic = nic(&["--rss", "on"]);
    let guest = boot("guest-qemu", &[&nic], &[&["--queues", "4"], rings].concat());
    let mut guest = Shell::start(guest, &nic.share());
    let shown = guest.run("ethtool -l eth0");
    assert_eq!(shown.matches("Combined:\t4").count(), 2, "{shown}");
    let before = guest.run("cat /proc/interrupts");
    let vectors: Vec<_> = virtqueues()
        .map(|queue| (interrupts(&before, &queue), queue))
        .collect();
    let stats = nic.stats();
    // Each CPU sends on the queue of its own; flows of many ports come back, spread by their hash.
    guest.run(
        "for cpu in 0 1 2 3; do
            busybox taskset -p $((1 << cpu)) $$ > /dev/null
            for i in 1 2 3 4 5 6 7 8; do
                (echo hello | socat -t 10 - TCP:10.77.0.1:7 | grep -q hello) &
            done
            wait
            ping -q -c 20 -i 0.01 -W 5 10.77.0.1 | grep ' 0% packet loss'
        done",
    );
    let now = nic.stats();
    let after = guest.run("cat /proc/interrupts");
    for (had, queue) in vectors {
        let packets = count(&now, &queue, "packets") - count(&stats, &queue, "packets");
        assert!(packets > 0, "{queue}: {now:#}");
        let has = interrupts(&after, &queue);
        assert!(has > had, "{queue}: {had} to {has}: {now:#}");
    }

    // The connection stays while pairs come and go.
    guest.run(
        "head -c 33554432 /dev/urandom > /tmp/sent
        sha256sum < /tmp/sent > /tmp/sum
        (socat -t 120 - TCP:10.77.0.1:7 < /tmp/sent | sha256sum > /tmp/back; touch /tmp/done) > /dev/null 2>&1 &",
    );
    let mut changes = 0;
    loop {
        for pairs in [1, 2, 3, 4, 2, 1, 4] {
            guest.run(&format!("ethtool -L eth0 combined {pairs}"));
            changes += 1;
        }
        let done = guest.run("[ ! -e /tmp/done ] || echo done");
        if done.contains("done") {
            break;
        }
        assert!(changes < 2_000, "the transfer does not end");
    }
    println!("{changes} changes");
    guest.run("cmp /tmp/sum /tmp/back");
    guest.run(PING);
    // Where the queues cannot be reset one by one, Linux does not resize them.
    let refused = guest.fails("ethtool -G eth0 rx 128");
    assert!(refused.contains("No such file"), "{refused}");
    guest.run(PING);
    assert_eq!(nic.stats()["refused_messages"], 0);
    guest.end();
}

#[test]
fn four_workers_serve_the_control_queue_as_well() {
    let nic = nic(&[]);
    let job = format!("ethtool -L eth0 combined 4\n{PING}{TRANSFER}");
    let out = run(boot("guest-uml", &[&nic], &[]), &job);
    assert!(out.contains("transferred"), "{out}");
    let stats = nic.stats();
    // The partner has a thread of its own, and can send faster than a guest receives in one queue.
    let drops = stats["port"]["drops"].as_object().expect("drops by reason");
    let mut others = drops.iter().filter(|(name, _)| *name != "rx_fifo_overflow");
    assert!(others.all(|(_, count)| count == 0), "{stats:#}");
    assert_eq!(stats["control"]["ok"], stats["control"]["commands"]);
}
