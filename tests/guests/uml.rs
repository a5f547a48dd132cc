//! User-mode Linux: every queue is the NIC's, the control queue too.

use serde_json::Value;

use super::support::{Conversation, Nic, PING, TRANSFER, boot, has_packed_rings, repository, run};

fn pings_and_a_transfer(arguments: &[&str], packed: u8) {
    let nic = Nic::new(arguments);
    let out = run(
        boot("guest-uml", &[&nic], &[]),
        &format!("{}{PING}{TRANSFER}", has_packed_rings(packed)),
    );
    assert!(out.contains("transferred"), "{out}");
    let stats = nic.stats();
    let drops = stats["port"]["drops"].as_object().expect("drops by reason");
    assert!(drops.values().all(|count| count == 0), "{stats:#}");
}

#[test]
fn pings_and_a_transfer_lose_nothing() {
    pings_and_a_transfer(&[], 1);
}

#[test]
fn pings_and_a_transfer_lose_nothing_on_split_rings() {
    pings_and_a_transfer(&["--disable", "RING_PACKED"], 0);
}

#[test]
fn merged_segments_make_the_same_stream_in_fewer_packets() {
    for (merges, before) in [(true, ""), (false, "ethtool -K eth0 rx-gro-hw off\n")] {
        let nic = Nic::new(&["--lro", "on"]);
        let job = format!("{before}{TRANSFER}");
        let out = run(boot("guest-uml", &[&nic], &[]), &job);
        assert!(out.contains("transferred"), "{out}");
        let stats = nic.stats();
        let count = |path: &str| {
            let count = stats.pointer(path).and_then(Value::as_u64);
            count.unwrap_or_else(|| panic!("no {path}: {stats:#}"))
        };
        let (frames, merged) = (count("/port/rx_frames"), count("/port/rx_merged"));
        let (packets, whole) = (
            count("/queues/rx0/packets"),
            count("/queues/rx0/gso/packets"),
        );
        println!("{frames} segments, {packets} packets, {whole} of them merged");
        assert_eq!(packets + merged, frames, "{stats:#}");
        assert_eq!((merged > 0, whole > 0), (merges, merges), "{stats:#}");
        let drops = stats["port"]["drops"].as_object().expect("drops by reason");
        assert!(drops.values().all(|count| count == 0), "{stats:#}");
    }
}

#[test]
fn polling_serves_as_well() {
    let nic = Nic::new(&["--poll"]);
    run(boot("guest-uml", &[&nic], &[]), PING);
}

#[test]
fn receive_mode_and_address_reach_the_nic() {
    let nic = Nic::new(&[]);
    let job = format!(
        "say ready
        ip link set eth0 promisc on; say promisc
        ip link set eth0 promisc off; say selective
        ip link set eth0 address 02:11:22:33:44:55; say address
        ip maddress add 01:00:5e:00:00:42 dev eth0; say group
        {PING}"
    );
    let mut guest = Conversation::start(boot("guest-uml", &[&nic], &[]), &nic.share(), &job);
    let mut step = |name: &str, reached: &dyn Fn(&Value) -> bool| {
        guest.hear(name);
        // Linux sets the receive mode some time after the command has ended.
        let stats = nic.wait_for(name, reached);
        guest.answer(name);
        stats
    };
    let ready = step("ready", &|stats| stats["port"]["filter_active"] == true);
    step("promisc", &|stats| stats["port"]["promiscuous"] == true);
    step("selective", &|stats| stats["port"]["promiscuous"] == false);
    step("address", &|stats| {
        stats["port"]["mac"] == "02:11:22:33:44:55"
    });
    let group = step("group", &|stats| {
        let groups = stats["port"]["multicast_table"].as_array();
        groups.is_some_and(|groups| groups.iter().any(|entry| entry == "01:00:5e:00:00:42"))
    });
    guest.end();
    let commands = |stats: &Value| stats["control"]["ok"].as_u64();
    assert!(commands(&group) > commands(&ready), "{group:#}");
    assert_eq!(group["control"]["ok"], group["control"]["commands"]);
}

#[test]
fn ethtool_moderates_the_interrupts() {
    let nic = Nic::new(&["--coalesce", "rx-usecs=7,rx-frames=9"]);
    // Eight requests go out at once, and their answers come back at once.
    let job = "say ready
        ethtool -C eth0 rx-usecs 200000 rx-frames 8; say set
        ping -q -c 8 -l 8 10.77.0.1; say moderated
        ethtool -C eth0 rx-usecs 0 rx-frames 0; say off
        ethtool -Q eth0 queue_mask 1 --coalesce rx-usecs 50 rx-frames 4; say queue
        ethtool -Q eth0 queue_mask 1 --show-coalesce";
    let mut guest = Conversation::start(boot("guest-uml", &[&nic], &[]), &nic.share(), job);
    let rx = |stats: &Value, name: &str| stats["moderation"]["rx0"][name].as_u64().expect(name);
    let mut step = |name: &str, usecs: u64, frames: u64| {
        guest.hear(name);
        let stats = nic.stats();
        let now = (rx(&stats, "usecs"), rx(&stats, "frames"));
        assert_eq!(now, (usecs, frames), "{name}: {stats:#}");
        guest.answer(name);
        stats
    };
    step("ready", 7, 9);
    let set = step("set", 200_000, 8);
    let moderated = step("moderated", 200_000, 8);
    step("off", 0, 0);
    step("queue", 50, 4);
    let out = guest.end();
    let shown = |line: &String| line.starts_with("rx-usecs:") && line.trim_end().ends_with("50");
    assert!(out.iter().any(shown), "{out:#?}");
    let packets = |stats: &Value| stats["queues"]["rx0"]["packets"].as_u64().expect("a count");
    let met = rx(&moderated, "conditions_met") - rx(&set, "conditions_met");
    let came = packets(&moderated) - packets(&set);
    // The ARP reply comes alone, but for what Linux sends by itself.
    assert!(
        came >= 9 && met <= came / 3,
        "{met} interrupts, {came} packets"
    );
}

#[test]
fn one_guest_has_several_nics() {
    let (first, second) = (Nic::new(&[]), Nic::new(&["--mac", "52:54:00:12:34:57"]));
    // Both partners have the same address: each is reached through the interface it is plugged into.
    let job = "ip addr flush dev eth1; ip addr add 10.77.0.3/24 dev eth1
        ping -c 3 -i 0.1 -I eth0 10.77.0.1; ping -c 3 -i 0.1 -I eth1 10.77.0.1
        cat /sys/class/net/eth1/address";
    let out = run(boot("guest-uml", &[&first, &second], &[]), job);
    assert!(out.contains("52:54:00:12:34:57"), "{out}");
    for nic in [&first, &second] {
        assert!(nic.stats()["port"]["rx_delivered"].as_u64() > Some(3));
    }
}

#[test]
fn the_demo_shows_it() {
    let demo = std::process::Command::new(repository("scripts/demo"))
        .arg("--once")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the script starts");
    let out = String::from_utf8_lossy(&demo.stdout);
    assert!(
        demo.status.success(),
        "{out}\n{}",
        String::from_utf8_lossy(&demo.stderr)
    );
    for shown in ["0% packet loss", "driver: virtio_net", "rx_delivered"] {
        assert!(out.contains(shown), "{shown:?} is missing:\n{out}");
    }
}
