//! Real traffic, replayed from captures to a real kernel, counted there by tcpdump.

use super::support::{Conversation, Nic, boot, repository};

/// Frames a second: slow enough for a guest without a CPU of its own.
const PPS: u32 = 1_000;

/// Captures, the frames that their NIC has to deliver, and the port's MTU.
fn captures() -> Vec<(String, u64, u16)> {
    let table = std::fs::read_to_string(repository("fixtures/captures/README.md"))
        .expect("the captures' README");
    let mut captures = Vec::new();
    // Rows of the table: | `name` | frames | ...
    for row in table.lines().filter(|row| row.starts_with("| `")) {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let name = cells.next().expect("a name").trim_matches('`').to_owned();
        let frames: u64 = cells
            .next()
            .expect("frames")
            .replace(',', "")
            .parse()
            .expect("a number");
        let mtu = if name.starts_with("jumbo") {
            9000
        } else {
            1500
        };
        let bad = if name.starts_with("with-fcs") {
            damaged()
        } else {
            0
        };
        captures.push((name, frames - bad, mtu));
    }
    assert!(captures.len() >= 12, "{captures:?}");
    captures
}

/// Frames of the captures with check sequences that are no valid frames.
fn damaged() -> u64 {
    let list = std::fs::read_to_string(repository("fixtures/captures/with-fcs.json"))
        .expect("the list of damaged frames");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    list["damaged"].as_array().expect("a list").len() as u64
}

#[test]
fn each_capture_arrives_whole() {
    let (jumbo, normal): (Vec<_>, Vec<_>) =
        captures().into_iter().partition(|(_, _, mtu)| *mtu == 9000);
    replay(&normal, 1500);
    replay(&jumbo, 9000);
}

/// Replays captures, each through a NIC of its own, to one guest with MTU `mtu`.
fn replay(captures: &[(String, u64, u16)], mtu: u16) {
    let nics: Vec<_> = captures
        .iter()
        .enumerate()
        .map(|(index, (name, ..))| {
            let wire = repository("fixtures/captures").join(name);
            let wire = format!("pcap={},pps={PPS}", wire.display());
            let mac = format!("52:54:00:12:35:{index:02x}");
            let mtu = mtu.to_string();
            Nic::new(&[
                "--link", "down", "--wire", &wire, "--mtu", &mtu, "--mac", &mac,
            ])
        })
        .collect();
    // Without GRO, which would merge segments before tcpdump counts them. One at a time: with several busy interfaces, User-mode Linux 6.12 sometimes takes an interrupt, schedules the
    // interface's poll, and never polls.
    let mut job = String::new();
    for (index, (_, frames, _)) in captures.iter().enumerate() {
        job += &format!(
            "ip link set eth{index} promisc on; ethtool -K eth{index} gro off
            timeout 60 tcpdump -i eth{index} -Q in -c {frames} -w /dev/null 2> /tmp/{index} &
            until grep -q listening /tmp/{index}; do sleep 0.05; done
            say listening{index}
            wait
            echo $(grep 'packets captured' /tmp/{index})
            say heard{index}\n"
        );
    }
    let guest = boot(
        "guest-uml",
        &nics.iter().collect::<Vec<_>>(),
        &["--no-address", "--mem", "512M", "--mtu", &mtu.to_string()],
    );
    let mut guest = Conversation::start(guest, &nics[0].share(), &job);
    for (index, (nic, (name, frames, _))) in nics.iter().zip(captures).enumerate() {
        guest.hear(&format!("listening{index}"));
        nic.link(true);
        guest.answer(&format!("listening{index}"));
        let count = guest.hear(&format!("heard{index}"));
        let stats = nic.stats();
        assert_eq!(
            count,
            [format!("{frames} packets captured")],
            "{name}: {stats:#}"
        );
        assert_eq!(stats["port"]["rx_delivered"], *frames, "{name}: {stats:#}");
        guest.answer(&format!("heard{index}"));
    }
    guest.end();
}
