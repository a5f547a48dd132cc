//! What `ethtool`, `ip` and `bridge` of Linux 6.12 set, as the NIC has it and as it acts on traffic: the same steps on User-mode Linux
//! and on QEMU's bare device, where every queue is the NIC's.
//!
//! The guest has three interfaces, of which one at a time is busy:
//! eth0, on a partner; eth1, on a generator that runs while its link is up; eth2, on a capture that is replayed each time
//! its link comes up, in which the number of frames that pass tells which ones did.

use std::fs::File;
use std::ops::Range;

use nic_guest::virtio_net::rss::RssConfig;
use pcap_file::pcap::{PcapPacket, PcapWriter};
use serde_json::Value;

use super::support::{Nic, Shell, boot};

/// Queue pairs of each NIC.
const PAIRS: usize = 4;
/// Entries of their indirection tables.
const TABLE: usize = 128;
/// Octets that a frame of an Ethernet header and the shortest packet of a guest, an ARP packet, is padded by.
const PADDING: u64 = 18;
/// Flows of the generator.
const FLOWS: u64 = 64;
/// Frames of the generator for one look at them.
const BURST: u64 = 400;

/// The frames of the capture: as many of each kind as its number says, so that a sum tells kinds apart.
mod kind {
    pub const OWN: u64 = 1;
    pub const OTHER: u64 = 2;
    pub const BROADCAST: u64 = 4;
    pub const GROUP: u64 = 8;
    pub const OTHER_GROUP: u64 = 16;
    pub const VLAN_5: u64 = 32;
    pub const VLAN_6: u64 = 64;
    pub const ALL: u64 = 127;
}

const MAC_OF_ETH2: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x36, 0x02];
const OTHER_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x36, 0x99];

/// Whether to take as long as a million packets take.
fn is_long() -> bool {
    std::env::var_os("LONG").is_some()
}

/// A frame of a type that no stack takes, to `destination`.
fn frame(destination: [u8; 6], vlan: Option<u8>) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([0x02, 0, 0, 0, 0x77, 0x01]);
    if let Some(vlan) = vlan {
        frame.extend([0x81, 0x00, 0, vlan]);
    }
    frame.extend([0x88, 0xb5]);
    frame.resize(64, 0);
    frame
}

/// Writes the capture of eth2.
fn write_capture(file: File) {
    let kinds = [
        (kind::OWN, MAC_OF_ETH2, None),
        (kind::OTHER, OTHER_MAC, None),
        (kind::BROADCAST, [0xff; 6], None),
        // The group of 239.0.0.66.
        (kind::GROUP, [0x01, 0x00, 0x5e, 0x00, 0x00, 0x42], None),
        (
            kind::OTHER_GROUP,
            [0x01, 0x00, 0x5e, 0x00, 0x00, 0x43],
            None,
        ),
        (kind::VLAN_5, MAC_OF_ETH2, Some(5)),
        (kind::VLAN_6, MAC_OF_ETH2, Some(6)),
    ];
    let mut writer = PcapWriter::new(file).expect("a capture");
    for (count, destination, vlan) in kinds {
        let data = frame(destination, vlan);
        for _ in 0..count {
            let packet = PcapPacket::new(std::time::Duration::ZERO, data.len() as u32, &data);
            writer.write_packet(&packet).expect("the capture");
        }
    }
}

/// A guest with its three NICs.
struct Lab {
    guest: Shell,
    partner: Nic,
    generator: Nic,
    capture: Nic,
    _directory: tempfile::TempDir,
}

fn count(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no count: {value}"))
}

/// A count of each receive queue.
fn rx(stats: &Value, group: &str, name: &str) -> [u64; PAIRS] {
    std::array::from_fn(|queue| count(&stats[group][format!("rx{queue}")][name]))
}

fn grown(after: [u64; PAIRS], before: [u64; PAIRS]) -> [u64; PAIRS] {
    std::array::from_fn(|queue| after[queue] - before[queue])
}

/// What the generator's NIC did with a burst.
struct Burst {
    before: Value,
    after: Value,
}

impl Burst {
    /// The sequence numbers of the frames.
    fn numbers(&self) -> Range<u64> {
        let sent = |stats: &Value| count(&stats["wire_counters"]["generator_frames"]);
        sent(&self.before)..sent(&self.after)
    }

    fn grown(&self, group: &str, name: &str) -> [u64; PAIRS] {
        grown(rx(&self.after, group, name), rx(&self.before, group, name))
    }

    /// Frames of each receive queue, which are all of them.
    fn packets(&self) -> [u64; PAIRS] {
        let packets = self.grown("queues", "packets");
        let numbers = self.numbers();
        assert_eq!(
            packets.iter().sum::<u64>(),
            numbers.end - numbers.start,
            "{packets:?} {:#}",
            self.after
        );
        packets
    }
}

/// The generator's frames of `numbers`, by the queue that RSS as the NIC says it has it sends them to.
fn predicted(stats: &Value, numbers: Range<u64>) -> [u64; PAIRS] {
    let rss = &stats["port"]["rss"];
    let key = rss["key"].as_str().expect("a key");
    let octet = |at| u8::from_str_radix(&key[at..at + 2], 16).expect("hexadecimal");
    let table = rss["table"].as_array().expect("a table");
    let config = RssConfig {
        hash_types: count(&rss["hash_types"]) as u32,
        unclassified_queue: count(&rss["unclassified"]) as u16,
        indirection_table: table.iter().map(|entry| count(entry) as u16).collect(),
        max_tx_vq: PAIRS as u16,
        key: (0..key.len()).step_by(2).map(octet).collect(),
    };
    let mut packets = [0; PAIRS];
    for number in numbers {
        let port = 1024 + (number % FLOWS) as u16;
        let [high, low] = port.to_be_bytes();
        let mut frame = [
            // Addresses and type.
            &[0x52, 0x54, 0, 0x12, 0x36, 1, 2, 0, 0, 0, 0x77, 1, 8, 0][..],
            // A datagram from 10.77.0.1 to 10.77.0.2, from `port` to 9.
            &[
                0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2,
            ],
            &[high, low, 0, 9, 0, 26, 0, 0],
        ]
        .concat();
        frame.resize(60, 0);
        packets[usize::from(config.steer(&frame).pair)] += 1;
    }
    packets
}

impl Lab {
    fn new(script: &str, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("kinds.pcap");
        write_capture(File::create(&path).expect("a file"));
        let nic = |index: u8, wire: &str, more: &[&str]| {
            let mac = format!("52:54:00:12:36:{index:02x}");
            let own = ["--queues", "4", "--mac", &mac, "--wire", wire];
            Nic::new(&[&own, more].concat())
        };
        let partner = nic(0, "partner", &[]);
        let generator = nic(
            1,
            &format!("generator:flows={FLOWS},pps=2000"),
            &["--link", "down", "--speed", "2.5G"],
        );
        let capture = nic(
            2,
            &format!("pcap={},pps=2000", path.display()),
            &["--link", "down"],
        );
        let timeout = if is_long() { "7200" } else { "600" };
        let mut guest = boot(script, &[&partner, &generator, &capture], options);
        guest.args(["--timeout", timeout]);
        let guest = Shell::start(guest, &partner.share());
        Lab {
            guest,
            partner,
            generator,
            capture,
            _directory: directory,
        }
    }

    /// Lets the guest run a command that its driver carries out before it ends, and returns what the generator's NIC has then.
    fn set(&mut self, command: &str) -> Value {
        self.guest.run(command);
        self.generator.stats()
    }

    /// The generator's link is up for some frames.
    fn burst(&self) -> Burst {
        let nic = &self.generator;
        let before = nic.stats();
        let sent = |stats: &Value| count(&stats["wire_counters"]["generator_frames"]);
        let came = |stats: &Value| rx(stats, "queues", "packets").iter().sum::<u64>();
        nic.link(true);
        nic.wait_for("frames", &|stats| sent(stats) >= sent(&before) + BURST);
        nic.link(false);
        let after = nic.wait_for("their delivery", &|stats| {
            came(stats) - came(&before) >= sent(stats) - sent(&before)
        });
        Burst { before, after }
    }

    /// The capture is replayed: its NIC lets those pass, and the guest receives them, whose `kind`s make up `expected`.
    fn passes(&mut self, when: &str, expected: u64) {
        let name = "/sys/class/net/eth2/statistics/rx_packets";
        let had: u64 = self.guest.number(&format!("cat {name}"));
        let before = self.capture.stats();
        let of = |stats: &Value| {
            let drops = &stats["port"]["drops"];
            [
                &stats["port"]["rx_delivered"],
                &drops["rx_filtered"],
                &drops["rx_vlan_filtered"],
            ]
            .map(count)
        };
        let grown = |stats: &Value| {
            let (now, before) = (of(stats), of(&before));
            [0, 1, 2].map(|at| now[at] - before[at])
        };
        self.capture.link(true);
        let after = self.capture.wait_for("the capture's end", &|stats| {
            grown(stats).iter().sum::<u64>() >= kind::ALL
        });
        self.capture.link(false);
        // The address filter, which is before that of VLANs, lets the tagged ones pass that are to the NIC's own address.
        let tagged = match expected & kind::OWN {
            0 => 0,
            _ => (kind::VLAN_5 | kind::VLAN_6) & !expected,
        };
        assert_eq!(
            grown(&after),
            [expected, kind::ALL - expected - tagged, tagged],
            "{when}: delivered, filtered, filtered by VLAN; {after:#}"
        );
        let has: u64 = self.guest.number(&format!(
            "for i in $(seq 100); do
                [ $(cat {name}) -lt {} ] || break
                sleep 0.05
            done
            cat {name}",
            had + expected
        ));
        assert_eq!(has - had, expected, "{when}: received by Linux");
    }

    /// Linux tells the NIC its receive mode some time after the command has ended.
    fn mode(&mut self, command: &str, reached: &dyn Fn(&Value) -> bool) {
        self.guest.run(command);
        self.capture
            .wait_for(command, &|stats| reached(&stats["port"]));
    }

    fn shows_what_it_drives(&mut self) {
        let driver = self.guest.run("ethtool -i eth0");
        assert!(driver.contains("driver: virtio_net"), "{driver}");
        let features = self.guest.run("ethtool -k eth0");
        for on in [
            "rx-checksumming: on",
            "tx-checksumming: on",
            "rx-vlan-filter: on",
        ] {
            assert!(features.contains(on), "{on:?} is missing: {features}");
        }
        let negotiated = self.partner.stats()["features"].to_string();
        for name in ["CSUM", "GUEST_CSUM", "CTRL_VLAN", "RSS", "DEVICE_STATS"] {
            assert!(negotiated.contains(name), "{name} is missing: {negotiated}");
        }
        for (interface, nic, speed) in [
            ("eth0", &self.partner, 10_000),
            ("eth1", &self.generator, 2_500),
        ] {
            // Linux asks for the speed when the link comes up.
            nic.link(true);
            let shown = self.guest.run(&format!(
                "for i in $(seq 100); do
                    [ \"$(cat /sys/class/net/{interface}/carrier)\" = 1 ] && break
                    sleep 0.05
                done
                ethtool {interface}"
            ));
            let expected = format!("Speed: {speed}Mb/s");
            assert!(shown.contains(&expected), "{expected:?}: {shown}");
            assert!(shown.contains("Duplex: Full"), "{shown}");
            assert_eq!(nic.stats()["port"]["speed_mbps"], speed);
        }
        self.generator.link(false);
        let refused = self.partner.stats();
        assert_eq!(
            refused["control"]["ok"], refused["control"]["commands"],
            "{refused:#}"
        );
    }

    fn uses_as_many_queues_as_it_is_told(&mut self) {
        for pairs in [1, 2, 3, PAIRS] {
            let stats = self.set(&format!("ethtool -L eth1 combined {pairs}"));
            // Linux tells how many by the table.
            let even = (0..TABLE).map(|entry| entry % pairs).collect::<Vec<_>>();
            assert_eq!(
                stats["port"]["rss"]["table"],
                Value::from(even),
                "{stats:#}"
            );
            let shown = self.guest.run("ethtool -l eth1");
            assert_eq!(
                settings(&shown, "Combined:"),
                [PAIRS.to_string(), pairs.to_string()],
                "{shown}"
            );
            let burst = self.burst();
            let packets = burst.packets();
            assert_eq!(packets, predicted(&burst.after, burst.numbers()));
            let used = packets.map(|packets| packets > 0);
            assert_eq!(used, std::array::from_fn(|queue| queue < pairs));
        }
        let refused = self.guest.fails("ethtool -L eth1 combined 5");
        assert!(
            refused.contains("exceeds maximum") || refused.contains("Invalid"),
            "{refused}"
        );
    }

    fn spreads_flows_as_it_is_told(&mut self) {
        for (arguments, used) in [
            ("weight 1 0 0 3", [true, false, false, true]),
            ("start 1 equal 2", [false, true, true, false]),
            ("weight 0 0 1", [false, false, true, false]),
            ("equal 4", [true; PAIRS]),
            (
                "hkey 6d:5a:56:da:25:5b:0e:c2:41:67:25:3d:43:a3:8f:b0:d0:ca:2b:cb:\
                 ae:7b:30:b4:77:cb:2d:a3:80:30:f2:0c:6a:42:b7:3b:be:ac:01:fa",
                [true; PAIRS],
            ),
            ("default", [true; PAIRS]),
        ] {
            let stats = self.set(&format!("ethtool -X eth1 {arguments}"));
            let rss = &stats["port"]["rss"];
            let shown = self.guest.run("ethtool -x eth1");
            assert_eq!(table(&shown), rss["table"], "{arguments}: {shown}");
            let key = key(&shown);
            // Linux 6.12.113, unlike 6.12.117, sends its structure's padding for the key's first octet, and the key behind it.
            let sent = rss["key"].as_str().expect("a key");
            assert!(
                sent == key || sent == format!("00{}", &key[..key.len() - 2]),
                "{arguments}: {shown}{sent}"
            );
            if let Some(asked) = arguments.strip_prefix("hkey ") {
                assert_eq!(key, asked.replace(':', ""));
            }
            let burst = self.burst();
            let packets = burst.packets();
            assert_eq!(
                packets,
                predicted(&burst.after, burst.numbers()),
                "{arguments}"
            );
            // Another key may spread the same flows over as many each: what it changes is predicted above.
            assert_eq!(packets.map(|packets| packets > 0), used, "{arguments}");
        }
    }

    fn hashes_what_it_is_told(&mut self) {
        const UDP4: u64 = 4;
        let types = |stats: &Value| count(&stats["port"]["rss"]["hash_types"]);
        // Linux tells the fields only while it wants the hashes.
        let on = self.set("ethtool -K eth1 rxhash on");
        assert_eq!(types(&on), 0x3f);
        for (fields, shown_fields, udp4) in [("sd", 2, 0), ("sdfn", 4, UDP4)] {
            let stats = self.set(&format!("ethtool -N eth1 rx-flow-hash udp4 {fields}"));
            assert_eq!(types(&stats) & UDP4, udp4, "{fields}");
            let shown = self.guest.run("ethtool -n eth1 rx-flow-hash udp4");
            let lines = shown.lines().filter(|line| {
                ["IP SA", "IP DA", "L4 bytes"]
                    .iter()
                    .any(|field| line.starts_with(field))
            });
            assert_eq!(lines.count(), shown_fields, "{shown}");
            let burst = self.burst();
            let packets = burst.packets();
            assert_eq!(packets, predicted(&burst.after, burst.numbers()));
            // Without ports, all are of one pair of hosts.
            let queues = packets.iter().filter(|&&packets| packets > 0).count();
            assert_eq!(queues, if fields == "sd" { 1 } else { PAIRS });
        }
        let shown = self.guest.run("ethtool -n eth1 rx-flow-hash tcp4");
        assert!(shown.contains("L4 bytes 2 & 3"), "{shown}");
        let off = self.set("ethtool -K eth1 rxhash off");
        assert_eq!(types(&off), 0);
        assert_eq!(self.burst().packets()[1..], [0; PAIRS - 1], "unclassified");
    }

    fn interrupts_as_it_is_told(&mut self) {
        const USECS: u64 = 1_000_000;
        const FRAMES: u64 = 64;
        self.set("ethtool -X eth1 equal 1");
        let both = |stats: &Value| {
            let [usecs, frames] = ["usecs", "frames"].map(|name| rx(stats, "moderation", name));
            std::array::from_fn(|queue| (usecs[queue], frames[queue]))
        };
        for (usecs, frames) in [(0, 0), (USECS, FRAMES)] {
            let stats = self.set(&format!(
                "ethtool -C eth1 rx-usecs {usecs} rx-frames {frames}"
            ));
            assert_eq!(both(&stats), [(usecs, frames); PAIRS], "{stats:#}");
            let shown = self.guest.run("ethtool -c eth1");
            assert_eq!(settings(&shown, "rx-usecs:"), [usecs.to_string()]);
            assert_eq!(settings(&shown, "rx-frames:"), [frames.to_string()]);
            let burst = self.burst();
            let [packets, ..] = burst.packets();
            let [met, ..] = burst.grown("moderation", "conditions_met");
            let [sent, ..] = burst.grown("queues", "interrupts_sent");
            // A guest that polls masks some.
            println!("{packets} packets, {met} interrupts due, {sent} sent");
            assert_eq!(met, packets / frames.max(1));
            assert!((1..=met).contains(&sent), "{sent} interrupts, {met} due");
        }

        let stats = self.set("ethtool -Q eth1 queue_mask 0x2 --coalesce rx-usecs 50 rx-frames 4");
        let mut expected = [(USECS, FRAMES); PAIRS];
        expected[1] = (50, 4);
        assert_eq!(both(&stats), expected, "{stats:#}");
        let shown = self
            .guest
            .run("ethtool -Q eth1 queue_mask 0xf --show-coalesce");
        let usecs = settings(&shown, "rx-usecs:");
        assert_eq!(usecs, ["1000000", "50", "1000000", "1000000"], "{shown}");

        // Linux adapts with the load, once it has seen some dozens of interrupts.
        self.set("ethtool -C eth1 rx-usecs 0 rx-frames 0");
        let before = self.set("ethtool -C eth1 adaptive-rx on");
        let shown = self.guest.run("ethtool -c eth1");
        assert!(shown.contains("Adaptive RX: on"), "{shown}");
        self.generator.link(true);
        let adapted = self.generator.wait_for("Linux to adapt", &|stats| {
            both(stats)[0].0 > 0 && both(stats)[0].1 == 256
        });
        self.generator.link(false);
        assert_eq!(both(&adapted)[3], both(&before)[3], "idle: {adapted:#}");
        let stats = self.set("ethtool -C eth1 adaptive-rx off");
        assert_eq!(stats["control"]["ok"], stats["control"]["commands"]);
        let shown = self.guest.run("ethtool -c eth1");
        assert!(shown.contains("Adaptive RX: off"), "{shown}");
    }

    fn receives_what_it_is_told(&mut self) {
        use kind::{ALL, BROADCAST, GROUP, OTHER, OTHER_GROUP, OWN, VLAN_5, VLAN_6};
        let untagged = ALL - VLAN_5 - VLAN_6;
        self.passes("at first", OWN | BROADCAST);
        self.mode("ip link set eth2 promisc on", &|port| {
            port["promiscuous"] == true
        });
        self.passes("promiscuous", ALL);
        self.mode("ip link set eth2 promisc off", &|port| {
            port["promiscuous"] == false
        });
        self.passes("no longer promiscuous", OWN | BROADCAST);
        self.mode("ip link set eth2 allmulticast on", &|port| {
            port["all_multicast"] == true
        });
        self.passes("all groups", OWN | BROADCAST | GROUP | OTHER_GROUP);
        self.mode("ip link set eth2 allmulticast off", &|port| {
            port["all_multicast"] == false
        });
        let has = |port: &Value, table: &str, entry: &str| {
            let entries = port[table].as_array().expect("a table");
            entries.iter().any(|other| other == entry)
        };
        let group = |port: &Value| has(port, "multicast_table", "01:00:5e:00:00:42");
        self.mode("ip address add 239.0.0.66/32 dev eth2 autojoin", &|port| {
            group(port)
        });
        self.passes("in the group", OWN | BROADCAST | GROUP);
        self.mode("ip address del 239.0.0.66/32 dev eth2", &|port| {
            !group(port)
        });
        self.passes("out of the group", OWN | BROADCAST);
        let other = |port: &Value| has(port, "unicast_table", "52:54:00:12:36:99");
        self.mode("bridge fdb add 52:54:00:12:36:99 dev eth2", &|port| {
            other(port)
        });
        self.passes("with a second address", OWN | OTHER | BROADCAST);
        self.mode("bridge fdb del 52:54:00:12:36:99 dev eth2", &|port| {
            !other(port)
        });
        self.guest.run("ip link set eth2 address 52:54:00:12:36:99");
        let stats = self.capture.stats();
        assert_eq!(stats["port"]["mac"], "52:54:00:12:36:99");
        self.passes("with another address", OTHER | BROADCAST);
        self.guest.run("ip link set eth2 address 52:54:00:12:36:02");

        let vlans = |lab: &mut Lab, command: &str, expected: &[&str]| {
            lab.guest.run(command);
            let stats = lab.capture.stats();
            assert_eq!(
                stats["port"]["vlan_table"],
                Value::from(expected.to_vec()),
                "{command}"
            );
        };
        // The module is a member of VLAN 0 on every interface.
        vlans(
            self,
            "modprobe 8021q; ip link add link eth2 name vlan5 type vlan id 5",
            &["0", "5"],
        );
        self.passes("in VLAN 5", OWN | BROADCAST | VLAN_5);
        let both = "ip link add link eth2 name vlan6 type vlan id 6";
        vlans(self, both, &["0", "5", "6"]);
        self.passes("in VLANs 5 and 6", OWN | BROADCAST | VLAN_5 | VLAN_6);
        vlans(self, "ip link del vlan5", &["0", "6"]);
        self.passes("in VLAN 6", OWN | BROADCAST | VLAN_6);
        vlans(self, "ip link del vlan6", &["0"]);
        self.passes("in no VLAN", (OWN | BROADCAST) & untagged);
    }

    fn goes_down_and_comes_up(&mut self) {
        self.guest
            .run("ip link set eth0 mtu 1400; ping -c 1 -M do -s 1372 -W 5 10.77.0.1");
        let refused = self.guest.fails("ping -c 1 -M do -s 1373 -W 5 10.77.0.1");
        assert!(
            refused.to_lowercase().contains("message too long"),
            "{refused}"
        );
        let refused = self.guest.fails("ip link set eth0 mtu 1501");
        assert!(refused.contains("greater than device maximum"), "{refused}");
        self.guest.run("ip link set eth0 mtu 1500");

        let sent = |nic: &Nic| count(&nic.stats()["port"]["tx_frames"]);
        self.guest.run("ip link set eth0 down");
        let before = sent(&self.partner);
        self.guest.fails("ping -c 1 -W 1 10.77.0.1");
        assert_eq!(sent(&self.partner), before);
        self.guest
            .run("ip link set eth0 up; ping -c 10 -i 0.01 -W 5 10.77.0.1 | grep ' 0% packet loss'");
        assert!(sent(&self.partner) >= before + 10);
    }

    /// Linux shows the NIC's own counts.
    fn counts_alike(&mut self) {
        self.guest.run("ethtool -L eth0 combined 4");
        // 32 MiB are 24,000 frames each way, at least.
        let (rounds, kib) = if is_long() {
            (44, 32 * 1024)
        } else {
            (1, 2 * 1024)
        };
        for _ in 0..rounds {
            self.guest.run(&format!(
                "head -c {kib}K /dev/urandom > /tmp/sent
                sent=$(sha256sum < /tmp/sent)
                back=$(socat -t 120 - TCP:10.77.0.1:7 < /tmp/sent | sha256sum)
                [ \"$sent\" = \"$back\" ]
                ping -q -c 100 -i 0.001 -W 5 10.77.0.1 | grep ' 0% packet loss'"
            ));
        }
        // Nothing moves any more.
        self.partner.link(false);
        let shown = self.guest.run(
            "for i in $(seq 100); do
                [ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ] && break
                sleep 0.05
            done
            sleep 0.2
            ethtool -S eth0",
        );
        let stats = self.partner.stats();
        let mut seen = 0;
        for line in shown.lines() {
            let Some((name, shown)) = line.trim().split_once(": ") else {
                continue;
            };
            let Some((queue, name)) = name.split_once("_hw_") else {
                continue;
            };
            let name = match name {
                "packets" | "bytes" => name,
                "notifications" => "kicks",
                "interrupts" => "interrupts_sent",
                "needs_csum" => "checksum_partial",
                // The queue of the commands that ask for all this.
                "command_num" | "ok_num" => continue,
                // No super-frame went either way, and no rate is limited.
                name if name.starts_with("gso_") || name.starts_with("ratelimit_") => {
                    assert_eq!(shown, "0", "{line}");
                    continue;
                }
                _ => panic!("not known: {line}"),
            };
            let expected = match queue {
                // What left on the line, padded to its least length.
                "tx" if name == "bytes" => {
                    let [octets, frames] =
                        ["tx_octets", "tx_frames"].map(|name| count(&stats["port"][name]));
                    octets - 4 * frames
                }
                "rx" | "tx" => (0..PAIRS)
                    .map(|at| count(&stats["queues"][format!("{queue}{at}")][name]))
                    .sum(),
                queue if queue.starts_with("tx") && name == "bytes" => {
                    let given = &stats["queues"][queue];
                    let padding = PADDING * count(&given["packets"]);
                    let shown: u64 = shown.parse().expect("a count");
                    shown.clamp(count(&given["bytes"]), count(&given["bytes"]) + padding)
                }
                queue => count(&stats["queues"][queue][name]),
            };
            assert_eq!(shown, expected.to_string(), "{line}: {stats:#}");
            seen += 1;
        }
        assert!(seen >= 9 * (1 + PAIRS), "{shown}");
        let packets = ["rx_hw_packets:", "tx_hw_packets:"].map(|name| {
            let shown: u64 = settings(&shown, name)[0].parse().expect("a count");
            shown
        });
        println!("{packets:?} packets were counted alike");
        let frames = rounds * kib * 1024 / 1448;
        assert!(
            packets.iter().all(|&packets| packets >= frames),
            "{packets:?}"
        );
        self.partner.link(true);
    }

    fn walk(mut self) {
        // Each packet is one frame on the line then, and both count the same.
        self.guest
            .run("ethtool -K eth0 tx-tcp-segmentation off tx-tcp6-segmentation off tx-tcp-ecn-segmentation off");
        self.shows_what_it_drives();
        self.uses_as_many_queues_as_it_is_told();
        self.spreads_flows_as_it_is_told();
        self.hashes_what_it_is_told();
        self.interrupts_as_it_is_told();
        self.receives_what_it_is_told();
        self.goes_down_and_comes_up();
        self.counts_alike();
        for nic in [&self.partner, &self.generator, &self.capture] {
            let stats = nic.stats();
            assert_eq!(
                stats["control"]["ok"], stats["control"]["commands"],
                "{stats:#}"
            );
            assert_eq!(stats["refused_messages"], 0);
        }
        self.guest.end();
    }
}

/// What stands behind `name` on each line that starts with it.
fn settings(shown: &str, name: &str) -> Vec<String> {
    let values = shown.lines().filter_map(|line| {
        let value = line.trim().strip_prefix(name)?;
        Some(value.trim().to_owned())
    });
    values.collect()
}

/// The indirection table that `ethtool -x` shows.
fn table(shown: &str) -> Value {
    let mut entries: Vec<u64> = Vec::new();
    for line in shown.lines() {
        // `  8:   0 1 2 3 0 1 2 3`
        let Some((at, queues)) = line.trim().split_once(':') else {
            continue;
        };
        if at.parse() == Ok(entries.len()) {
            let queues = queues.split_whitespace();
            entries.extend(queues.map_while(|queue| queue.parse::<u64>().ok()));
        }
    }
    entries.into()
}

/// The key that `ethtool -x` shows, in hexadecimal.
fn key(shown: &str) -> String {
    let mut lines = shown.lines().skip_while(|line| *line != "RSS hash key:");
    lines.nth(1).expect("a key").trim().replace(':', "")
}

#[test]
fn user_mode_linux_has_what_it_sets() {
    Lab::new("guest-uml", &[]).walk();
}

#[test]
fn linux_on_the_bare_device_of_qemu_has_what_it_sets() {
    let device = ["--device", "test-device", "--queues", "4", "--smp", "2"];
    Lab::new("guest-qemu", &device).walk();
}
