use nic_model::port::{Port, PortConfig};

use super::*;
use crate::control::tests::{execute, refused};

const STATS: Features = Features::CTRL_VQ.union(Features::DEVICE_STATS);
const BOTH: Features = STATS.union(Features::CSUM).union(Features::GUEST_CSUM);

const RX_BASIC: u64 = 1 << 0;
const RX_CSUM: u64 = 1 << 1;
const TX_BASIC: u64 = 1 << 16;
const TX_CSUM: u64 = 1 << 17;
const RX_GSO: u64 = 1 << 2;
const TX_GSO: u64 = 1 << 18;
const RX_SPEED: u64 = 1 << 3;
const TX_SPEED: u64 = 1 << 19;
/// What needs no other feature.
const ALWAYS: u64 = RX_BASIC | RX_SPEED | TX_BASIC | TX_SPEED | CONTROL;
const CONTROL: u64 = 1 << 32;
/// With super-frames, too.
const GSO: Features = BOTH.union(Features::HOST_TSO6).union(Features::GUEST_USO4);

/// A request for groups of virtqueues.
fn request(entries: &[(u16, u64)]) -> Vec<u8> {
    let mut command = vec![8, 1];
    for (index, groups) in entries {
        command.extend(index.to_le_bytes());
        command.extend([0; 6]);
        command.extend(groups.to_le_bytes());
    }
    command
}

#[test]
fn a_driver_is_told_what_it_may_ask_for() {
    let mut port = Port::new(&PortConfig::default());
    for (features, expected) in [
        (STATS, ALWAYS),
        (BOTH, ALWAYS | RX_CSUM | TX_CSUM),
        (STATS | Features::CSUM, ALWAYS | TX_CSUM),
        (GSO, ALWAYS | RX_CSUM | RX_GSO | TX_CSUM | TX_GSO),
    ] {
        let reply = execute(&mut port, features, &[8, 0]).unwrap();
        assert_eq!(reply, expected.to_le_bytes(), "{features}");
    }
}

#[test]
fn each_group_has_its_header_and_the_length_of_its_structure() {
    let mut port = Port::new(&PortConfig::default());
    for (index, group, number, fields) in [
        (0, RX_BASIC, 0, 6),
        (0, RX_CSUM, 1, 4),
        (1, TX_BASIC, 16, 6),
        (1, TX_CSUM, 17, 2),
        (0, RX_GSO, 2, 4),
        (1, TX_GSO, 18, 6),
        (0, RX_SPEED, 3, 2),
        (1, TX_SPEED, 19, 2),
        (2, CONTROL, 32, 2),
    ] {
        let reply = execute(&mut port, GSO, &request(&[(index, group)])).unwrap();
        let size = 8 + 8 * fields;
        assert_eq!(
            reply[..8],
            [number, 0, index as u8, 0, 0, 0, size as u8, 0],
            "{group:#x}"
        );
        assert_eq!(reply.len(), size, "{group:#x}");
    }
}

#[test]
fn records_follow_in_the_order_of_the_request() {
    let mut port = Port::new(&PortConfig::default());
    let command = request(&[(2, CONTROL), (1, TX_CSUM | TX_BASIC), (0, 0), (1, TX_CSUM)]);
    let reply = execute(&mut port, BOTH, &command).unwrap();
    let (mut at, mut seen) = (0, Vec::new());
    while at < reply.len() {
        seen.push((reply[at + 2], reply[at]));
        at += usize::from(reply[at + 6]);
    }
    assert_eq!(seen, [(2, 32), (1, 16), (1, 17), (1, 17)]);
}

#[test]
fn padding_is_ignored() {
    let mut port = Port::new(&PortConfig::default());
    let mut command = request(&[(0, RX_BASIC)]);
    command[4..10].fill(0xff);
    execute(&mut port, BOTH, &command).unwrap();
}

#[test]
fn one_bad_entry_refuses_the_whole_request() {
    let mut port = Port::new(&PortConfig::default());
    for (bad, refusal) in [
        ((3, RX_BASIC), Refusal::NoQueue),
        ((0xffff, CONTROL), Refusal::NoQueue),
        ((0, TX_BASIC), Refusal::Malformed),
        ((0, RX_BASIC | CONTROL), Refusal::Malformed),
        ((1, RX_CSUM), Refusal::Malformed),
        ((2, RX_BASIC), Refusal::Malformed),
        // Segmentation that was not negotiated, the other half's, and what nobody knows.
        ((0, 1 << 2), Refusal::Malformed),
        ((0, TX_SPEED), Refusal::Malformed),
        ((0, 1 << 63), Refusal::Malformed),
    ] {
        for entries in [&[bad][..], &[(0, RX_BASIC), bad, (2, CONTROL)]] {
            assert_eq!(
                refused(&mut port, BOTH, &request(entries)),
                refusal,
                "{bad:x?}"
            );
        }
    }
}

#[test]
fn a_request_may_name_each_group_of_each_queue_and_no_more() {
    let mut port = Port::new(&PortConfig::default());
    let entries = [(0, RX_BASIC); 28];
    let reply = execute(&mut port, BOTH, &request(&entries[..27])).unwrap();
    assert_eq!(reply.len(), 27 * 56);
    let refusal = refused(&mut port, BOTH, &request(&entries));
    assert_eq!(refusal, Refusal::Malformed);
}

#[test]
fn groups_need_their_feature() {
    let mut port = Port::new(&PortConfig::default());
    for (features, entry) in [
        (STATS | Features::CSUM, (0, RX_BASIC | RX_CSUM)),
        (STATS | Features::GUEST_CSUM, (1, TX_CSUM)),
    ] {
        let refusal = refused(&mut port, features, &request(&[entry]));
        assert_eq!(refusal, Refusal::Malformed, "{features}");
    }
    for command in [&[8, 0][..], &request(&[(0, RX_BASIC)])] {
        let refusal = refused(&mut port, BOTH.difference(Features::DEVICE_STATS), command);
        assert_eq!(refusal, Refusal::Unknown);
    }
}

#[test]
fn what_is_too_short_too_long_or_unknown_is_refused() {
    let mut port = Port::new(&PortConfig::default());
    let whole = request(&[(0, RX_BASIC), (1, TX_BASIC)]);
    for len in (2..whole.len()).filter(|len| *len != 18) {
        let refusal = refused(&mut port, BOTH, &whole[..len]);
        assert_eq!(refusal, Refusal::Malformed, "{len} octets");
    }
    let longer = [&whole[..], &[0]].concat();
    assert_eq!(refused(&mut port, BOTH, &longer), Refusal::Malformed);
    assert_eq!(refused(&mut port, BOTH, &[8, 0, 0]), Refusal::Malformed);
    assert_eq!(refused(&mut port, BOTH, &[8, 2]), Refusal::Unknown);
}
