//! The port's counters under the names that others know them by: `stats --names`.

use nic_backend::control::{Request, ask};
use serde_json::Value;

use super::child::{Serving, run};
use crate::support::wait_until;

const FRAMES: u64 = 500;

#[test]
fn the_ports_counters_have_the_names_of_standards() {
    let wire = format!("generator:count={FRAMES},size=200");
    let nic = Serving::start(&["--wire", &wire]);
    let port = |name: &str| {
        let stats = ask(&nic.control(), Request::Stats).expect("an answer");
        stats["port"][name].clone()
    };
    // Nobody has them: there is no guest.
    wait_until("all frames", || {
        port("drops")["rx_queue_disabled"] == FRAMES
    });
    assert_eq!(port("rx_sizes")["128-255"], FRAMES);
    assert_eq!(port("rx_checksum_good_udp"), FRAMES);
    let control = nic.control();
    let control = control.to_str().expect("a name");
    let say = |args: &[&str]| {
        let end = run(&[&["stats", "--control", control], args].concat());
        assert_eq!((end.code, end.err.as_str()), (Some(0), ""), "{args:?}");
        end.out
    };
    for (names, expected) in [
        (
            "ethtool",
            [
                ("eth-mac-FramesReceivedOK", FRAMES),
                ("eth-mac-OctetsReceivedOK", FRAMES * 182),
                ("rx-rmon-etherStatsPkts128to255Octets", FRAMES),
                ("rx-rmon-etherStatsPkts64to64Octets", 0),
            ],
        ),
        (
            "rfc",
            [
                ("etherStatsOctets", FRAMES * 200),
                ("etherStatsPkts128to255Octets", FRAMES),
                ("ifInDiscards", FRAMES),
                ("dot3StatsFCSErrors", 0),
            ],
        ),
    ] {
        let text = say(&["--names", names]);
        let json: Value = serde_json::from_str(&say(&["--names", names, "--json"])).expect("JSON");
        assert_eq!(
            text.lines().count(),
            json.as_object().expect("an object").len()
        );
        for (name, count) in expected {
            let line = format!("{name}: {count}");
            assert!(text.lines().any(|known| known == line), "no {line}: {text}");
            assert_eq!(json[name], count, "{name}");
        }
    }
    for ours in [&[][..], &["--names", "nic"]] {
        assert!(say(ours).contains("rx_sizes.128-255"));
    }
}
