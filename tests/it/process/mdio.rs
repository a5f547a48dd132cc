//! The PHY of a running NIC from outside: `mdio`, `loopback`, and `link` with auto-negotiation.

use nic_backend::control::{Request, ask};
use serde_json::Value;

use super::child::{Finished, Serving, run};
use super::{assert_one_line, guest};
use crate::support::{exchange, numbered_frame, wait_until};

/// Runs a command on the NIC's control socket.
fn command(nic: &Serving, args: &[&str]) -> Finished {
    let control = nic.control();
    let control = ["--control", control.to_str().expect("a name")];
    run(&[args, &control].concat())
}

/// What it says, which has to be good.
fn say(nic: &Serving, args: &[&str]) -> String {
    let end = command(nic, args);
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""), "{args:?}");
    end.out
}

fn json(nic: &Serving, args: &[&str]) -> Value {
    let text = say(nic, &[args, &["--json"]].concat());
    serde_json::from_str(&text).expect("one JSON document")
}

#[test]
fn registers_are_read_and_written_by_number_and_by_name() {
    let nic = Serving::start(&["--wire", "loopback", "--speed", "1G"]);
    let bmcr = "0     bmcr           0x0140  full-duplex speed-msb\n";
    for args in [&["0"][..], &["0x0"], &["bmcr"], &["BMCR"]] {
        assert_eq!(say(&nic, &[&["mdio", "read"], args].concat()), bmcr);
    }
    let status = json(&nic, &["mdio", "read", "--mmd", "1", "1"]);
    assert_eq!(
        (
            &status["mmd"],
            &status["reg"],
            &status["name"],
            &status["value"],
            &status["fields"]["link"]
        ),
        (
            &1.into(),
            &1.into(),
            &"pma-stat1".into(),
            &6.into(),
            &1.into()
        )
    );
    assert_eq!(json(&nic, &["mdio", "read", "7.1"])["name"], "an-stat1");
    assert_eq!(
        say(&nic, &["mdio", "write", "anar", "0x0de1"]),
        say(&nic, &["mdio", "read", "anar"])
    );
    // A link that was lost shows until it is read; a dump does not count.
    let link = || json(&nic, &["mdio", "read", "bmsr"])["fields"]["link"].clone();
    assert_eq!(link(), 1);
    say(&nic, &["link", "down"]);
    say(&nic, &["link", "up"]);
    let dump = say(&nic, &["mdio", "dump"]);
    let line = dump
        .lines()
        .find(|line| line.contains(" bmsr "))
        .expect("it is named");
    assert!(!line.ends_with(" link extended"), "{line}");
    assert_eq!((link(), link()), (0.into(), 1.into()));
    let dump = json(&nic, &["mdio", "dump"]);
    assert!(dump.as_array().is_some_and(|all| all.len() > 20), "{dump}");
    // What makes no sense.
    for (args, code, parts) in [
        (&["read", "bmxr"][..], 2, &["bmxr", "mdio dump"][..]),
        (&["read", "32"], 2, &["32"]),
        (&["read", "--mmd", "7", "an-ctrl1"], 2, &["7.0"]),
        (&["write", "bmcr", "faster"], 2, &["faster"]),
        (&["write", "bmcr", "65536"], 2, &["65536"]),
    ] {
        let end = command(&nic, &[&["mdio"], args].concat());
        assert_eq!(end.code, Some(code), "{args:?}: {}", end.err);
        for part in parts {
            assert!(end.err.contains(part), "{args:?}: {}", end.err);
        }
    }
    let wrong = Request::MdioRead {
        mmd: Some(99),
        reg: 0,
    };
    let error = ask(&nic.control(), wrong).expect_err("there is none");
    assert_one_line("no register", &format!("{error:#}"), &["no register 99.0"]);
}

#[test]
fn a_negotiation_is_followed_and_begun_anew_from_outside() {
    let nic = Serving::start(&[
        "--wire",
        "loopback",
        "--speed",
        "1G",
        "--autoneg",
        "on",
        "--link-partner",
        "100half,10full",
    ]);
    let mut guest = guest(&nic.socket());
    let state = || json(&nic, &["link"]);
    wait_until("a link", || state()["link"] == "up");
    assert_eq!(say(&nic, &["link"]), "link up at 100 Mb/s, half duplex\n");
    let shown = state();
    assert_eq!(
        (
            &shown["phy"]["autoneg"],
            &shown["phy"]["state"],
            &shown["phy"]["partner"]
        ),
        (&true.into(), &"link good".into(), &"10full,100half".into())
    );
    assert_eq!(
        json(&nic, &["mdio", "read", "anlpar"])["fields"]["100half"],
        1
    );
    let heard = |guest: &mut nic_guest::virtio_net::VirtnetInfo<_>, up| {
        wait_until("the guest to hear of it", || {
            guest.handle_config_change().expect("a configuration space");
            guest.link_up() == up
        });
    };
    heard(&mut guest, true);
    assert_eq!(
        (guest.config.speed, guest.config.duplex),
        (Some(100), Some(0))
    );
    // No more than 10 Mb/s from now on, by the bits' names.
    say(&nic, &["mdio", "write", "anar", "10full,10half"]);
    say(&nic, &["link", "down"]);
    heard(&mut guest, false);
    say(&nic, &["link", "up"]);
    heard(&mut guest, true);
    assert_eq!(
        (guest.config.speed, guest.config.duplex),
        (Some(10), Some(1))
    );
    let bmcr = json(&nic, &["mdio", "write", "bmcr", "an-enable,an-restart"]);
    assert_eq!(
        (&bmcr["fields"]["an-restart"], &bmcr["fields"]["an-enable"]),
        (&0.into(), &1.into())
    );
    assert_eq!(json(&nic, &["mdio", "read", "bmsr"])["fields"]["link"], 0);
    heard(&mut guest, true);
    // Another partner, that has been forced.
    say(&nic, &["mdio", "write", "anar", "100full,100half"]);
    say(&nic, &["link", "--partner", "100full,silent"]);
    wait_until("its signal", || {
        state()["phy"]["parallel_detection"] == true && state()["link"] == "up"
    });
    assert_eq!(state()["phy"]["duplex_mismatch"], true);
    let end = command(&nic, &["link", "--partner", "100full,100half,silent"]);
    assert_eq!(end.code, Some(2), "{}", end.err);
}

#[test]
fn loopbacks_are_switched_from_outside() {
    let nic = Serving::start(&["--wire", "none"]);
    let mut guest = guest(&nic.socket());
    assert_eq!(say(&nic, &["loopback"]), "loopback off\n");
    let frames: Vec<_> = (0..20).map(|number| numbered_frame(number, 300)).collect();
    for to in ["mac", "phy"] {
        assert_eq!(say(&nic, &["loopback", to]), format!("loopback {to}\n"));
        assert_eq!(exchange(&mut guest, &frames), frames, "{to}");
        let shown = json(&nic, &["mdio", "read", "bmcr"]);
        assert_eq!(shown["fields"]["loopback"], u8::from(to == "phy"), "{to}");
    }
    assert_eq!(json(&nic, &["loopback", "off"])["loopback"], Value::Null);
    wait_until("the link", || json(&nic, &["link"])["link"] == "up");
}
