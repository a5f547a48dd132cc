use nic_model::filter::Filter;
use nic_model::port::{Port, PortConfig};

use super::*;
use crate::control::tests::{execute, refused};

const EXTRA: Features = Features::CTRL_VQ.union(Features::CTRL_RX_EXTRA);
const ORDINARY: Features = Features::CTRL_VQ.union(Features::CTRL_RX);
const VLAN: Features = Features::CTRL_VQ.union(Features::CTRL_VLAN);

/// The switches, in the order of their commands.
fn switches(filter: &Filter) -> [bool; 6] {
    [
        filter.promiscuous,
        filter.all_multicast,
        filter.all_unicast,
        filter.no_multicast,
        filter.no_unicast,
        filter.no_broadcast,
    ]
}

#[test]
fn each_command_turns_its_own_switch_on_and_off() {
    let mut port = Port::new(&PortConfig::default());
    for command in 0..6 {
        let feature = if command < 2 {
            Features::CTRL_RX
        } else {
            Features::CTRL_RX_EXTRA
        };
        let mut expected = [false; 6];
        for on in [1, 1, 0, 0] {
            assert_eq!(execute(&mut port, feature, &[0, command, on]), Ok(vec![]));
            expected[usize::from(command)] = on == 1;
            assert_eq!(switches(&port.filter), expected, "{command}");
        }
    }
}

#[test]
fn a_mode_is_one_octet_of_zero_or_one() {
    let mut port = Port::new(&PortConfig::default());
    for command in 0..6 {
        for data in [&[][..], &[2], &[0xff], &[1, 0], &[0, 0, 0, 1]] {
            let command = [&[0, command][..], data].concat();
            let refusal = refused(&mut port, Features::all(), &command);
            assert_eq!(refusal, Refusal::Malformed, "{command:?}");
        }
    }
    assert_eq!(
        refused(&mut port, Features::all(), &[0, 6, 1]),
        Refusal::Unknown
    );
}

#[test]
fn a_mode_needs_its_feature() {
    let mut port = Port::new(&PortConfig::default());
    for command in 0..7 {
        let other = if command < 2 { EXTRA } else { ORDINARY };
        let refusal = refused(&mut port, other, &[0, command, 1]);
        assert_eq!(refusal, Refusal::Unknown, "{command}");
    }
}

fn vlans(port: &Port) -> String {
    port.vlan
        .members()
        .map(|id| format!("{id} "))
        .collect::<String>()
}

#[test]
fn vlans_are_added_and_removed() {
    let mut port = Port::new(&PortConfig::default());
    for (command, expected) in [
        ([2, 0, 5, 0], "5 "),
        ([2, 0, 0xff, 0x0f], "5 4095 "),
        ([2, 0, 5, 0], "5 4095 "),
        ([2, 1, 6, 0], "5 4095 "),
        ([2, 1, 5, 0], "4095 "),
        ([2, 0, 0, 0], "0 4095 "),
        ([2, 1, 0, 0], "4095 "),
        ([2, 1, 0xff, 0x0f], ""),
    ] {
        assert_eq!(execute(&mut port, VLAN, &command), Ok(vec![]));
        assert_eq!(vlans(&port), expected, "{command:?}");
    }
}

#[test]
fn a_vlan_is_two_octets_below_4096() {
    let mut port = Port::new(&PortConfig::default());
    execute(&mut port, VLAN, &[2, 0, 7, 0]).unwrap();
    for command in [0, 1] {
        for data in [
            &[][..],
            &[7],
            &[7, 0, 0],
            &[7, 0, 0, 0],
            &[0, 0x10],
            &[7, 0x10],
            &[0xff, 0xff],
        ] {
            let command = [&[2, command][..], data].concat();
            let refusal = refused(&mut port, VLAN, &command);
            assert_eq!(refusal, Refusal::Malformed, "{command:x?}");
        }
        let others = Features::all().difference(Features::CTRL_VLAN);
        let refusal = refused(&mut port, others, &[2, command, 7, 0]);
        assert_eq!(refusal, Refusal::Unknown);
    }
    assert_eq!(refused(&mut port, VLAN, &[2, 2, 7, 0]), Refusal::Unknown);
    assert_eq!(vlans(&port), "7 ");
}
