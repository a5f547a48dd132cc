//! What goes wrong on purpose and what can be changed, from outside: `fault`, `set`, and `serve --config`.

use std::time::Duration;

use nic_backend::control::{Request, ask};
use nic_guest::virtio_net::header::VirtioNetHdr;
use serde_json::Value;

use super::child::{Finished, Serving, run};
use super::{assert_one_line, guest};
use crate::support::{numbered_frame, wait_until};

/// A command for the NIC on `control`.
fn command(nic: &Serving, name: &str, args: &[&str]) -> Finished {
    let control = nic.control();
    let control = control.to_str().expect("a name");
    run(&[&[name, "--control", control], args].concat())
}

/// The same, its output as JSON.
fn json(nic: &Serving, name: &str, args: &[&str]) -> Value {
    let end = command(nic, name, &[args, &["--json"]].concat());
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""), "{args:?}");
    serde_json::from_str(&end.out).expect("one JSON document")
}

#[test]
fn faults_are_shown_and_changed_from_outside() {
    let nic = Serving::start(&["--wire", "sink", "--fault", "tx:drop=1,seed=3"]);
    let mut guest = guest(&nic.socket());
    let mut send = |count: u64| {
        let target = guest.stats().1.packets + count;
        for number in 0..count {
            let frame = numbered_frame(number as u32, 60);
            guest
                .start_xmit(0, &frame, &VirtioNetHdr::default())
                .expect("room");
        }
        guest.flush(0);
        wait_until("the frames to be sent", || {
            guest.poll(0, 64, |_| {}).expect("sound rings");
            guest.stats().1.packets == target
        });
    };
    send(10);
    let shown = command(&nic, "fault", &[]);
    let expected = "faults: tx:drop=1,seed=3\ntx.dropped 10\ntx.frames 10\n";
    assert_eq!(
        (shown.code, shown.out.as_str()),
        (Some(0), expected),
        "{}",
        shown.err
    );
    let changed = json(&nic, "fault", &["tx:duplicate=100%"]);
    assert_eq!(changed["spec"], "tx:duplicate=1");
    send(5);
    let stats = ask(&nic.control(), Request::Stats).expect("an answer");
    assert_eq!(stats["wire_counters"]["sink_frames"], 10);
    assert_eq!(stats["port"]["tx_frames"], 15);
    let tx = &stats["faults"]["tx"];
    assert_eq!((&tx["dropped"], &tx["duplicated"]), (&10.into(), &5.into()));
    assert_eq!((&tx["passed"], &tx["on_line"]), (&10.into(), &0.into()));
    let none = command(&nic, "fault", &["none"]);
    assert!(none.out.starts_with("faults: none\n"), "{}", none.out);
    send(5);
    let now = json(&nic, "fault", &[]);
    assert_eq!(now["tx"]["frames"], 15, "there is no decorator any more");
    // At the queues, too.
    let changed = json(&nic, "fault", &["tx:irq-lost=1,tx:irq-spurious=1000"]);
    assert_eq!(changed["spec"], "tx:irq-lost=1,tx:irq-spurious=1000");
    wait_until("interrupts for nothing", || {
        let stats = ask(&nic.control(), Request::Stats).expect("an answer");
        let queues = &stats["queues"];
        assert_eq!(queues["rx0"]["interrupts_spurious"], 0);
        queues["tx0"]["interrupts_spurious"] != 0
    });
    for (args, code, part) in [
        (&["drop=2"][..], 2, "it is a probability"),
        (&["often"], 2, "is not KIND=VALUE"),
    ] {
        let end = command(&nic, "fault", args);
        assert_eq!(end.code, Some(code), "{args:?}");
        assert!(end.err.contains(part), "{args:?}: {}", end.err);
    }
    assert_eq!(
        json(&nic, "fault", &[])["spec"],
        changed["spec"],
        "nothing changed"
    );
}

#[test]
fn a_guest_hears_of_a_link_that_comes_and_goes() {
    let nic = Serving::start(&["--wire", "none"]);
    let mut guest = guest(&nic.socket());
    json(&nic, "fault", &["flap=20ms/20ms"]);
    for up in [false, true, false, true] {
        wait_until("the link to change", || {
            guest.handle_config_change().expect("a configuration space");
            guest.wait(Duration::from_millis(1));
            guest.link_up() == up
        });
    }
    let none = json(&nic, "fault", &["none"]);
    assert!(none["flaps"].as_u64() >= Some(2), "{none}");
    let link = ask(&nic.control(), Request::Link { up: None }).expect("an answer");
    assert_eq!(link["link"], "up");
}

#[test]
fn settings_are_changed_while_it_runs() {
    let nic = Serving::start(&["--wire", "none"]);
    let mut guest = guest(&nic.socket());
    assert_eq!(guest.config.speed, Some(10_000));
    let set = command(
        &nic,
        "set",
        &[
            "speed=2.5G",
            "coalesce=rx-usecs=50,rx-frames=32",
            "tx-weights=7",
            "rate=rx=1G:128K,tx=500M",
        ],
    );
    let expected = "coalesce rx-usecs=50,rx-frames=32,tx-usecs=0,tx-frames=0\nrate rx=1G:131072,tx=500M:65536\nspeed 2.5G\ntx-weights 7\n";
    assert_eq!(
        (set.code, set.out.as_str()),
        (Some(0), expected),
        "{}",
        set.err
    );
    wait_until("an announcement", || {
        guest.handle_config_change().expect("a configuration space")
    });
    assert_eq!(guest.config.speed, Some(2_500));
    let stats = ask(&nic.control(), Request::Stats).expect("an answer");
    assert_eq!(stats["port"]["speed_mbps"], 2_500);
    assert_eq!(
        stats["port"]["rates"]["rx"]["bits_per_second"],
        1_000_000_000
    );
    assert_eq!(stats["port"]["rates"]["tx"]["burst"], 64 * 1024);
    assert_eq!(stats["port"]["tx_weights"], serde_json::json!([7]));
    let rx = &stats["moderation"]["rx0"];
    assert_eq!((&rx["usecs"], &rx["frames"]), (&50.into(), &32.into()));
    // A new driver finds them, too.
    drop(guest);
    let _guest = super::guest(&nic.socket());
    let stats = ask(&nic.control(), Request::Stats).expect("an answer");
    assert_eq!(stats["moderation"]["rx0"]["usecs"], 50);
    assert_eq!(json(&nic, "set", &["speed=1G"])["speed"], "1G");
    for (args, parts) in [
        (&["mtu=9000"][..], &["mtu", "serve --mtu"][..]),
        (&["queues=4"], &["queues", "serve --queues"]),
        (
            &["colour=red"],
            &["colour", "coalesce, pfc, rate, speed and tx-weights"],
        ),
        (&["speed=3G"], &["3G", "400G"]),
        (&["speed"], &["NAME=VALUE"]),
        (&[], &["NAME=VALUE"]),
    ] {
        let end = command(&nic, "set", args);
        assert_eq!(end.code, Some(2), "{args:?}: {}", end.err);
        for part in parts {
            assert!(end.err.contains(part), "{args:?}: {}", end.err);
        }
    }
    let end = command(&nic, "set", &["speed=1G", "speed=10G"]);
    assert_eq!(end.code, Some(2), "{}", end.err);
    assert_eq!(end.err, "error: speed is said twice\n");
    // What this card cannot have.
    for (setting, part) in [
        (
            "tx-weights=1,3",
            "2 weights, and there are 1 transmit queues",
        ),
        ("rate=tx=11G", "no more than 10Gb/s"),
        ("pfc=3", "serve --pfc"),
    ] {
        let end = command(&nic, "set", &[setting]);
        assert_eq!(end.code, Some(1), "{setting}: {}", end.err);
        assert!(end.err.contains(part), "{setting}: {}", end.err);
    }
    // What it has already it can.
    assert_eq!(command(&nic, "set", &["pfc=off"]).code, Some(0));
}

#[test]
fn priorities_are_controlled_or_not_while_it_runs() {
    let nic = Serving::start(&["--wire", "none", "--pfc", "3,4"]);
    let controlled = || {
        let stats = ask(&nic.control(), Request::Stats).expect("an answer");
        stats["port"]["priorities"]["priorities"].clone()
    };
    assert_eq!(controlled(), serde_json::json!([3, 4]));
    for (setting, shown, expected) in [
        ("pfc=off", "pfc off\n", serde_json::json!([])),
        (
            "pfc=all",
            "pfc all\n",
            serde_json::json!([0, 1, 2, 3, 4, 5, 6, 7]),
        ),
        ("pfc=5", "pfc 5\n", serde_json::json!([5])),
    ] {
        let set = command(&nic, "set", &[setting]);
        assert_eq!(
            (set.code, set.out.as_str()),
            (Some(0), shown),
            "{}",
            set.err
        );
        assert_eq!(controlled(), expected);
    }
    let names = command(&nic, "stats", &["--names", "ethtool"]);
    assert!(names.out.contains("rx_prio3_pause: 0\n") && names.out.contains("tx_prio7_pause: 0\n"));
    let names = command(&nic, "stats", &["--names", "rfc"]);
    assert!(
        names.out.contains("ieee8021PfcRequests: 0\n"),
        "{}",
        names.out
    );
}

#[test]
fn options_may_stand_in_a_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("nic.toml");
    let text = "[[nic]]\nsocket = \"/nonexistent/other.sock\"\nqueues = 3\nwire = \"sink\"\nspeed = \"1G\"\n\
                fault = \"rx:drop=0.5\"\n";
    std::fs::write(&file, text).expect("a file");
    let path = file.to_str().expect("a name");
    let nic = Serving::start(&["--config", path, "--speed", "40G"]);
    let stats = ask(&nic.control(), Request::Stats).expect("an answer");
    assert_eq!(stats["wire"], "sink");
    assert_eq!(
        stats["port"]["speed_mbps"], 40_000,
        "the command line counts more"
    );
    assert_eq!(stats["faults"]["spec"], "rx:drop=0.5");
    assert_eq!(
        stats["queues"].as_object().map(serde_json::Map::len),
        Some(7)
    );
    assert!(nic.log().contains(path), "{}", nic.log());
    std::fs::write(&file, format!("{text}colour = \"red\"\n")).expect("a file");
    for (config, parts) in [
        (path, &["nic.toml, line 7: there is no key \"colour\""][..]),
        ("/nonexistent.toml", &["cannot read /nonexistent.toml"]),
    ] {
        let end = run(&["serve", "--config", config]);
        assert_eq!((end.code, end.out.as_str()), (Some(2), ""), "{}", end.err);
        let line = end.err.lines().next().unwrap_or_default();
        assert_one_line(&end.err, line, parts);
    }
}
