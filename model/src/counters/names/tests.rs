use std::collections::BTreeSet;

use super::*;
use crate::pfc::Request;

#[test]
fn each_name_is_there_once() {
    for table in [ETHTOOL, RFC] {
        let names: BTreeSet<_> = table.iter().map(|name| name.name).collect();
        assert_eq!(names.len(), table.len());
        assert!(table.iter().all(|name| !name.section.is_empty()));
    }
}

/// Counts in which everything that may be subtracted from is large.
fn large() -> PortCounters {
    PortCounters {
        rx_frames: 1 << 20,
        rx_octets: 1 << 40,
        rx_unicast: 1 << 20,
        tx_frames: 1 << 20,
        tx_octets: 1 << 40,
        ..PortCounters::default()
    }
}

/// Names of `table` whose count changes from `before` to `after`.
fn changed(table: &[Name], before: &PortCounters, after: &PortCounters) -> Vec<&'static str> {
    let changes = |name: &&Name| name.count(before) != name.count(after);
    table.iter().filter(changes).map(|name| name.name).collect()
}

#[test]
fn every_drop_has_a_name_or_a_reason_for_having_none() {
    for &reason in Drop::ALL {
        let (before, mut after) = (large(), large());
        after.drops.count(reason);
        let named = !changed(ETHTOOL, &before, &after).is_empty()
            || !changed(RFC, &before, &after).is_empty();
        let unnamed = UNNAMED.iter().any(|(drop, _)| *drop == reason);
        assert!(named != unnamed, "{reason}");
    }
}

#[test]
fn a_discard_is_no_error_and_each_error_has_one_name_in_each_mib() {
    for &reason in Drop::ALL {
        let (before, mut after) = (large(), large());
        after.drops.count(reason);
        let names = changed(RFC, &before, &after);
        let totals = ["ifInDiscards", "ifInErrors", "ifOutDiscards", "ifOutErrors"];
        let in_totals = names.iter().filter(|name| totals.contains(name)).count();
        // Of frames that are too short RFC 3635 has no count: they are what collisions leave.
        let none = UNNAMED.iter().any(|(drop, _)| *drop == reason)
            || [Drop::RxUndersize, Drop::RxFragment, Drop::RxControl].contains(&reason);
        assert_eq!(in_totals, usize::from(!none), "{reason}: {names:?}");
        for mib in ["dot3", "etherStats"] {
            let of_mib = names.iter().filter(|name| name.starts_with(mib)).count();
            assert!(of_mib <= 1, "{reason}: {names:?}");
        }
    }
}

#[test]
fn every_bin_has_a_name_in_each_direction() {
    for &bin in Bin::ALL {
        let (before, mut rx, mut tx) = (large(), large(), large());
        rx.rx_sizes.count(bin.first());
        tx.tx_sizes.count(bin.first());
        let octets = match bin {
            Bin::Shortest => "64to64".to_owned(),
            Bin::From1519 => "1519toMax".to_owned(),
            _ => bin.name().replace('-', "to"),
        };
        for (direction, after) in [("rx", &rx), ("tx", &tx)] {
            let name = format!("{direction}-rmon-etherStatsPkts{octets}Octets");
            assert_eq!(changed(ETHTOOL, &before, after), [name.as_str()]);
        }
        // RFC 2819 has no name for longer ones, and none for those sent.
        let named = usize::from(bin != Bin::From1519);
        assert_eq!(changed(RFC, &before, &rx).len(), named, "{bin:?}");
        assert!(changed(RFC, &before, &tx).is_empty());
    }
}

#[test]
fn pause_frames_count_as_frames_of_the_mac() {
    let count = |table: &[Name], port: &PortCounters, name: &str| {
        let named = table.iter().find(|known| known.name == name);
        named.expect("a name").count(port)
    };
    let port = PortCounters {
        tx_frames: 3,
        tx_octets: 3 * 100,
        tx_multicast: 1,
        tx_xoff: 2,
        tx_xon: 1,
        ..PortCounters::default()
    };
    for (name, expected) in [
        ("eth-mac-FramesTransmittedOK", 6),
        ("eth-mac-OctetsTransmittedOK", 3 * 82 + 3 * 46),
        ("eth-mac-MulticastFramesXmittedOK", 4),
        ("eth-ctrl-MACControlFramesTransmitted", 3),
        ("tx-rmon-etherStatsPkts64to64Octets", 3),
        ("tx_pause_frames", 3),
    ] {
        assert_eq!(count(ETHTOOL, &port, name), expected, "{name}");
    }
    for (name, expected) in [
        ("dot3OutPauseFrames", 3),
        ("ifHCOutOctets", 3 * 100 + 3 * 64),
        ("ifHCOutUcastPkts", 2),
        ("ifHCOutMulticastPkts", 1),
    ] {
        assert_eq!(count(RFC, &port, name), expected, "{name}");
    }
}

#[test]
fn frames_for_priorities_are_mac_control_and_no_pause_frames() {
    let (before, mut after) = (large(), large());
    let mut request = Request::default();
    request.priorities.insert(3);
    after.pfc.count_sent(&request);
    let of_mac = [
        "eth-mac-FramesTransmittedOK",
        "eth-mac-OctetsTransmittedOK",
        "eth-mac-MulticastFramesXmittedOK",
        "eth-ctrl-MACControlFramesTransmitted",
        "tx-rmon-etherStatsPkts64to64Octets",
        "tx_prio3_pause",
    ];
    assert_eq!(changed(ETHTOOL, &before, &after), of_mac);
    let of_mibs = ["ieee8021PfcRequests", "ifHCOutOctets"];
    assert_eq!(changed(RFC, &before, &after), of_mibs);
    request.quanta[3] = 1;
    let mut after = large();
    after.pfc.count_received(&request);
    assert_eq!(changed(ETHTOOL, &before, &after), ["rx_prio3_pause"]);
    assert_eq!(changed(RFC, &before, &after), ["ieee8021PfcIndications"]);
}

#[test]
fn docs_have_every_name_and_reason() {
    let text = include_str!("../../../../docs/hardware.md");
    for table in [ETHTOOL, RFC] {
        for name in table {
            // One line for a group of names that begin alike.
            let short = name.name.rsplit('-').next().unwrap_or(name.name);
            assert!(
                text.contains(short),
                "{} is not in docs/hardware.md",
                name.name
            );
        }
    }
    for &reason in Drop::ALL {
        let name = format!("`{reason}`");
        assert!(text.contains(&name), "{name} is not in docs/hardware.md");
    }
}
