//! `nic-guest trace`: the guest's stages are a real kernel's, in its order; and the comparison finds what is not.

mod capture;
mod journey;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nic_guest::net::trace::Stage;
use nic_testbed::trace::COST;
use nic_testbed::trace::compare::{Node, Recording, scenario_of};
use nic_testbed::trace::function_graph::{self, Call};
use nic_testbed::trace::report::{Journey, Report};
use nic_testbed::trace::scenario::{SCENARIOS, Scenario};
use nic_testbed::trace::stages::{Stages, TABLE};

/// Recordings of what the guest can do.
const COMPARED: [&str; 18] = [
    "igb-rx",
    "igb-tx",
    "virtio_net-rx",
    "virtio_net-tx",
    "scenario-udp",
    "scenario-icmp-echo",
    "scenario-arp-request",
    "scenario-fragments",
    "scenario-send-fragmented",
    "scenario-send-unresolved",
    "scenario-udp-closed",
    "scenario-send-loopback",
    "scenario-forward",
    "scenario-vlan",
    "scenario-bridge",
    "scenario-tcp-closed",
    "scenario-tcp-listen",
    "scenario-tcp-burst",
];

fn table() -> Stages {
    Stages::parse(TABLE).expect("a table")
}

fn directory() -> &'static Path {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../fixtures/kernel-traces"
    ))
}

fn text(name: &str) -> String {
    let path = directory().join(name).with_extension("txt");
    std::fs::read_to_string(path).expect("a recording")
}

fn played(name: &str) -> Vec<Stage> {
    let scenario = scenario_of(name).expect("a name that says it");
    scenario.play(COST).expect("it plays")
}

/// All stages of a forest, depth first.
fn flat<'a>(stages: &'a [Stage], all: &mut Vec<&'a Stage>) {
    for stage in stages {
        all.push(stage);
        flat(&stage.calls, all);
    }
}

#[test]
fn the_guests_stages_are_the_kernels() {
    let table = table();
    for name in COMPARED {
        let recording = Recording::read(name, &text(name), &table).expect("a recording");
        let comparison = recording.compare(&recording.reduce(&played(name), &table));
        assert_eq!(comparison.difference, None, "{name}");
        assert!(comparison.stages >= 25, "{name}: {comparison:?}");
    }
}

/// All forests that come of `roots` by one stage's changing its place: with the one behind it, or out of its caller.
fn moved(roots: &[Node]) -> Vec<Vec<Node>> {
    let mut all = Vec::new();
    for at in 0..roots.len() {
        if at + 1 < roots.len() && roots[at].name != roots[at + 1].name {
            let mut swapped = roots.to_vec();
            swapped.swap(at, at + 1);
            all.push(swapped);
        }
        if !roots[at].open && !roots[at].calls.is_empty() {
            let mut out = roots.to_vec();
            let call = out[at].calls.pop().expect("it has one");
            out.insert(at + 1, call);
            all.push(out);
        }
        for calls in moved(&roots[at].calls) {
            let mut changed = roots.to_vec();
            changed[at].calls = calls;
            all.push(changed);
        }
    }
    all
}

#[test]
fn a_stage_in_another_place_is_a_difference() {
    let table = table();
    for name in COMPARED {
        let recording = Recording::read(name, &text(name), &table).expect("a recording");
        let guest = recording.reduce(&played(name), &table);
        let all = moved(&recording.roots);
        assert!(all.len() >= 15, "{name}: {}", all.len());
        for roots in all {
            let mut other = recording.clone();
            other.roots = roots;
            let difference = other.compare(&guest).difference;
            assert!(difference.is_some(), "{name}: {:?}", other.roots);
        }
    }
}

#[test]
fn the_first_difference_is_told() {
    let table = table();
    let name = "virtio_net-tx";
    let text = text(name).replacen("netdev_core_pick_tx", "validate_xmit_skb", 1);
    let recording = Recording::read(name, &text, &table).expect("a recording");
    let comparison = recording.compare(&recording.reduce(&played(name), &table));
    let told = comparison.difference.expect("a difference").to_string();
    assert!(
        told.ends_with(
            "> ip_finish_output2 > __dev_queue_xmit: the kernel does validate_xmit_skb (line 33), \
             the guest netdev_core_pick_tx"
        ),
        "{told}"
    );
    let unknown = text.replacen("__qdisc_run", "qdisc_run_twice", 1);
    let error = Recording::read(name, &unknown, &table).expect_err("no such function");
    assert!(error.to_string().contains("qdisc_run_twice"), "{error}");
}

#[test]
fn a_function_of_no_committed_recording_is_compared_where_it_is_in_one() {
    let table = table();
    let guest = played("scenario-tap");
    let tapped = text("scenario-udp").replacen(
        "__netif_receive_skb_core.constprop.0();",
        "__netif_receive_skb_core() {\n<idle> | tpacket_rcv();\n<idle> | }",
        1,
    );
    for (text, same) in [
        (tapped.clone(), true),
        // It was not looked for.
        (text("scenario-udp"), true),
        (
            tapped.replacen("napi_schedule_prep", "packet_rcv", 1),
            false,
        ),
    ] {
        let recording = Recording::read("scenario-udp", &text, &table).expect("a recording");
        let comparison = recording.compare(&recording.reduce(&guest, &table));
        assert_eq!(comparison.difference.is_none(), same, "{comparison:?}");
    }
}

#[test]
fn a_recording_of_ones_own_is_compared_by_what_is_in_it() {
    let table = table();
    let own = "\
 0)               |  ip_rcv_core.isra.0();
 0)               |  ip_local_deliver() {
 0)   1.234 us    |    udp_rcv();
 0)               |  }
";
    let recording = Recording::read("mine-rx", own, &table).expect("a recording");
    let guest = recording.reduce(&played("virtio_net-rx"), &table);
    assert_eq!(recording.compare(&guest).difference, None);
    let wrong = own.replacen("udp_rcv", "icmp_rcv", 1);
    let recording = Recording::read("mine-rx", &wrong, &table).expect("a recording");
    let guest = recording.reduce(&played("virtio_net-rx"), &table);
    assert!(recording.compare(&guest).difference.is_some());
    for name in ["mine", "scenario-mine"] {
        let error = scenario_of(name).expect_err("it does not say").to_string();
        assert!(error.contains("tcp-burst"), "{error}");
    }
}

/// Each function of the recordings is in the table, with the groups that it is in, and no other.
#[test]
fn the_table_has_what_the_recordings_have() {
    fn note(calls: &[Call], group: &str, seen: &mut BTreeMap<String, BTreeSet<String>>) {
        for call in calls {
            let groups = seen.entry(call.name.clone()).or_default();
            groups.insert(group.into());
            note(&call.calls, group, seen);
        }
    }
    let mut seen = BTreeMap::new();
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory()).expect("recordings") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let group = name.split('-').next().unwrap_or_default();
        let calls = function_graph::parse(&text(&name)).expect("a recording");
        note(&calls, group, &mut seen);
        names.insert(name);
    }
    assert_eq!(names.len(), 18);
    // There may be recordings of the others elsewhere.
    let scenarios = SCENARIOS.iter();
    names.extend(scenarios.map(|scenario| format!("scenario-{}", scenario.name)));
    let table = table();
    let (here, elsewhere): (Vec<_>, Vec<_>) = table
        .functions
        .iter()
        .map(|(function, row)| (function.clone(), row.groups.iter().cloned().collect()))
        .partition(|(_, groups): &(_, BTreeSet<_>)| !groups.is_empty());
    assert!(
        elsewhere
            .iter()
            .all(|(function, _)| !seen.contains_key(function))
    );
    assert_eq!(BTreeMap::from_iter(here), seen);
    for mark in &table.incidental {
        let of = mark.recording();
        assert!(of.is_none_or(|name| names.contains(name)), "{mark:?}");
    }
}

/// A stage that the table names is one that some scenario goes through.
#[test]
fn every_stage_of_the_table_is_played() {
    let mut played = BTreeSet::new();
    for scenario in &SCENARIOS {
        let stages = scenario.play(COST).expect("it plays");
        let mut all = Vec::new();
        flat(&stages, &mut all);
        played.extend(all.iter().map(|stage| stage.name));
    }
    // The ring of a scenario is never full.
    played.insert("net_tx_action");
    // Its packets come one by one.
    played.insert("ip_route_use_hint");
    played.insert("__do_softirq");
    for row in table().functions.values() {
        if let Some(stage) = &row.stage {
            assert!(played.contains(stage.as_str()), "{stage}");
        }
    }
}

#[test]
fn stages_have_their_time_and_their_cpu() {
    for scenario in &SCENARIOS {
        let stages = scenario.play(COST).expect("it plays");
        let again = scenario.play(COST).expect("it plays");
        assert_eq!(stages, again, "{}: the same each time", scenario.name);
        let mut all = Vec::new();
        flat(&stages, &mut all);
        for stage in &all {
            assert!(stage.left >= stage.entered);
            let within = |call: &Stage| call.entered >= stage.entered && call.left <= stage.left;
            assert!(stage.calls.iter().all(within), "{stage:?}");
        }
        let first = all.first().map(|stage| stage.name);
        assert!(
            matches!(first, Some("phy rx" | "__x64_sys_sendto")),
            "{}: {first:?}",
            scenario.name
        );
        let hardware: BTreeSet<_> = all
            .iter()
            .filter(|stage| stage.cpu.is_none())
            .map(|stage| stage.name)
            .collect();
        let (rx, tx) = (
            ["phy rx", "mac rx", "filter", "dma rx"],
            ["dma tx", "mac tx", "phy tx"],
        );
        if scenario.name == "send-loopback" {
            assert_eq!(hardware, BTreeSet::new());
            continue;
        }
        let has = |names: &[&str]| names.iter().all(|name| hardware.contains(name));
        assert!(has(&rx) || has(&tx), "{}: {hardware:?}", scenario.name);
        assert!(hardware.contains("msi-x"), "{}", scenario.name);
    }
    let receive = Scenario::named("receive").expect("a scenario");
    let stages = receive.play(COST).expect("it plays");
    let journey = Journey {
        scenario: receive.name,
        about: receive.about,
        stages,
    };
    let report = Report::new(&[journey], None).tree();
    let order = [
        "phy rx",
        "rss ",
        "rx fifo",
        "dma rx",
        "msi-x",
        "handle_irq_event",
        "ip_rcv_core",
        "udp_rmem_release",
    ];
    let places: Vec<_> = order.iter().map(|name| report.find(name)).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{report}"
    );
    assert!(report.contains("sk_rmem_alloc: 0 -> 768"), "{report}");
}
