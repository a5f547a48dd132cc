//! The same packets to User-mode Linux and to our guest's kernel: sockets receive the same, the same answers come back,
//! the same counters move.

mod generator;
mod generator6;
mod hosts;
mod line;
mod packets;
mod packets6;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use self::generator::{Generator, Packet};
use self::hosts::{Host, Ours, Outcome, UserModeLinux};
use self::packets::{comparable, hex};

/// Packets between two looks at what became of them.
const BATCH: usize = 50;
/// Differences that are told.
const TOLD: usize = 20;

/// Counters that Linux 6.12 has for one: it counts all replies of ICMP as echo replies, as nobody tells
/// `ip_push_pending_frames` their type.
const SAME: [(&str, &str); 2] = [
    ("IcmpOutTimestampReps", "IcmpOutEchoReps"),
    ("IcmpMsgOutType14", "IcmpMsgOutType0"),
];

/// What a host made of some packets, as far as it has to be the same.
fn take_in(host: &mut impl Host, packets: &[Packet]) -> Outcome {
    let frames: Vec<_> = packets.iter().map(|packet| &packet.frame[..]).collect();
    let mut outcome = host.take_in(&frames);
    let answers = outcome.answers.iter();
    outcome.answers = answers.filter_map(|frame| comparable(frame)).collect();
    // Those of packets that a poll took in together overtake each other, as they are made at different stages.
    outcome.answers.sort();
    for (one, other) in SAME {
        if let Some(by) = outcome.counters.remove(one) {
            *outcome.counters.entry(other.to_owned()).or_default() += by;
        }
    }
    outcome
}

/// What both hosts made of them.
fn compare(linux: &mut UserModeLinux, ours: &mut Ours, packets: &[Packet]) -> [Outcome; 2] {
    [take_in(linux, packets), take_in(ours, packets)]
}

/// Those of `these` that are not among the `others`, each as often as it is one more.
fn without<'a, T: PartialEq>(these: &'a [T], others: &'a [T]) -> Vec<&'a T> {
    let mut others: Vec<_> = others.iter().collect();
    let mut left: Vec<_> = these.iter().collect();
    left.retain(|this| match others.iter().position(|other| other == this) {
        Some(at) => {
            others.swap_remove(at);
            false
        }
        None => true,
    });
    left
}

/// How two outcomes differ, in words.
fn difference(what: &str, [linux, ours]: &[Outcome; 2]) -> String {
    let mut text = format!("{what}\n");
    for (name, one, other) in [("Linux", linux, ours), ("our guest", ours, linux)] {
        for line in without(&one.received, &other.received) {
            let _ = writeln!(text, "  {name} received {line}");
        }
        for frame in without(&one.answers, &other.answers) {
            let _ = writeln!(text, "  {name} answered {}", hex(frame));
        }
        for (counter, by) in &one.counters {
            if other.counters.get(counter) != Some(by) {
                let _ = writeln!(text, "  {name} counted {by} {counter}");
            }
        }
    }
    if linux.received != ours.received {
        let _ = writeln!(text, "  what sockets received differs, or its order");
    }
    text
}

/// What some of the packets have to come to: else they test less than they seem to.
const REACHED: [&str; 33] = [
    "IcmpInCsumErrors",
    "IcmpInErrors",
    "IcmpOutDestUnreachs",
    "IcmpOutEchoReps",
    "IcmpOutParmProbs",
    "Icmp6InCsumErrors",
    "Icmp6InErrors",
    "Icmp6OutDestUnreachs",
    "Icmp6OutEchoReplies",
    "Icmp6OutNeighborAdvertisements",
    "Icmp6OutNeighborSolicits",
    "Icmp6OutParmProblems",
    "Ip6InAddrErrors",
    "Ip6InDelivers",
    "Ip6InHdrErrors",
    "Ip6InMcastPkts",
    "Ip6InTruncatedPkts",
    "Ip6InUnknownProtos",
    "Ip6ReasmFails",
    "Ip6ReasmOKs",
    "IpInAddrErrors",
    "IpInHdrErrors",
    "IpInUnknownProtos",
    "IpReasmFails",
    "IpReasmOKs",
    "TcpInErrs",
    "TcpOutRsts",
    "UdpIgnoredMulti",
    "UdpInCsumErrors",
    "UdpNoPorts",
    "Udp6IgnoredMulti",
    "Udp6InCsumErrors",
    "Udp6NoPorts",
];

/// The number in an environment variable.
fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// Ten thousand packets in the long tier, of another seed where `SEED` says so.
#[test]
fn linux_and_our_guest_make_the_same_of_them() {
    let count = number("LONG").map_or(1_000, |_| 10_000);
    let packets = Generator::new(number("SEED").unwrap_or(1)).packets(count);
    let (mut linux, mut ours) = (UserModeLinux::start(), Ours::start());
    let mut differences = Vec::new();
    let (mut received, mut answers) = (Vec::new(), 0);
    let mut counters = BTreeMap::<String, i64>::new();
    for batch in packets.chunks(BATCH) {
        let outcomes = compare(&mut linux, &mut ours, batch);
        if outcomes[0] == outcomes[1] {
            let [_, outcome] = outcomes;
            received.extend(outcome.received);
            answers += outcome.answers.len();
            for (counter, by) in outcome.counters {
                *counters.entry(counter).or_default() += by;
            }
            continue;
        }
        // The first packet that makes a difference by itself; or all of them together.
        let found = batch.iter().find_map(|packet| {
            let outcomes = compare(&mut linux, &mut ours, std::slice::from_ref(packet));
            let what = format!("{}: {}", packet.what, hex(&packet.frame));
            (outcomes[0] != outcomes[1]).then(|| difference(&what, &outcomes))
        });
        differences.push(found.unwrap_or_else(|| difference("several packets", &outcomes)));
        if differences.len() == TOLD {
            break;
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let (datagrams, sent) = (received.len(), packets.len());
    println!("{sent} packets: {datagrams} received, {answers} answers, {counters:#?}");
    for counter in REACHED {
        assert!(counters.contains_key(counter), "no {counter}");
    }
    let refused = |line: &String| line.ends_with("ECONNREFUSED");
    // That is seldom.
    let told = count < 10_000 || received.iter().any(refused);
    assert!(told && datagrams > count / 20, "{received:#?}");
    linux.end();
}

#[test]
#[ignore = "runs in User-mode Linux, where the test above starts it"]
fn listen() {
    hosts::listen();
}
