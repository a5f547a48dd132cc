//! The filters as a driver sets them over its control queue, by what then reaches it (VIRTIO 1.3, 5.1.6.5.1 to
//! 5.1.6.5.3).

use nic_model::counters::Drop;

use super::tests::{BASE, ERROR, GROUP, OK, OTHER, admits, command};
use super::*;
use crate::testing::{BUFFERS, Bench, RX, broadcast, writable};

const EXTRA: Features = BASE.union(Features::CTRL_RX_EXTRA);
const VLAN: Features = BASE.union(Features::CTRL_VLAN);
const OWN: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Whether frames to this station, to another and to a group reach the driver.
fn admitted(bench: &mut Bench) -> [bool; 3] {
    [OWN, OTHER, GROUP].map(|address| admits(bench, address))
}

#[test]
fn whole_kinds_are_refused_or_admitted() {
    const ALLMULTI: u8 = 1;
    const ALLUNI: u8 = 2;
    const NOMULTI: u8 = 3;
    const NOUNI: u8 = 4;
    let mut bench = Bench::new(EXTRA);
    assert_eq!(admitted(&mut bench), [true, false, false]);
    for (mode, on, expected) in [
        (ALLUNI, 1, [true, true, false]),
        (NOUNI, 1, [false, false, false]),
        (ALLMULTI, 1, [false, false, true]),
        (NOMULTI, 1, [false, false, false]),
        (NOUNI, 0, [true, true, false]),
        (NOMULTI, 0, [true, true, true]),
        (ALLUNI, 0, [true, false, true]),
        (ALLMULTI, 0, [true, false, false]),
    ] {
        assert_eq!(command(&mut bench, &[2], &[0, mode, on]), OK);
        assert_eq!(admitted(&mut bench), expected, "mode {mode} {on}");
    }
    // NOBCAST: the frame is lost, and the buffer stays for the next.
    assert_eq!(command(&mut bench, &[2], &[0, 5, 1]), OK);
    bench.post(RX, &[writable(BUFFERS, 100)]);
    let before = bench.dropped(Drop::RxFiltered);
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!(bench.dropped(Drop::RxFiltered), before + 1);
    assert_eq!(bench.used(RX), []);
    // PROMISC wins.
    assert_eq!(command(&mut bench, &[2], &[0, 0, 1]), OK);
    bench.arrive(&[broadcast(60, 1)]);
    assert_eq!(bench.used(RX).len(), 1);
}

/// Lets a broadcast frame of VLAN `id` arrive. Whether it reaches the driver.
fn member(bench: &mut Bench, id: u16) -> bool {
    let mut frame = broadcast(64, 1);
    frame[12..14].copy_from_slice(&[0x81, 0x00]);
    frame[14..16].copy_from_slice(&(0x6000 | id).to_be_bytes());
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.arrive(&[frame]);
    let came = !bench.used(RX).is_empty();
    if !came {
        // Use the buffer up.
        bench.arrive(&[broadcast(60, 0)]);
        assert_eq!(bench.used(RX).len(), 1, "one without a tag");
    }
    came
}

fn vlan(bench: &mut Bench, which: u8, id: u16) -> u8 {
    let [low, high] = id.to_le_bytes();
    command(bench, &[2], &[2, which, low, high])
}

#[test]
fn frames_of_vlans_that_were_not_added_are_dropped() {
    const ADD: u8 = 0;
    const DEL: u8 = 1;
    let mut bench = Bench::new(VLAN);
    for id in [1, 5, 4095] {
        assert!(!member(&mut bench, id));
        assert_eq!(vlan(&mut bench, ADD, id), OK);
        assert!(member(&mut bench, id));
        assert_eq!(vlan(&mut bench, DEL, id), OK);
        assert!(!member(&mut bench, id));
    }
    assert_eq!(bench.dropped(Drop::RxVlanFiltered), 6);
    assert!(member(&mut bench, 0), "a priority alone");
    assert_eq!(vlan(&mut bench, ADD, 4096), ERROR);
    assert_eq!(vlan(&mut bench, ADD, 0x1005), ERROR);
    assert!(!member(&mut bench, 5));
    // PROMISC admits all frames.
    assert_eq!(command(&mut bench, &[2], &[0, 0, 1]), OK);
    assert!(member(&mut bench, 5));
}

#[test]
fn without_the_feature_frames_of_all_vlans_pass() {
    let mut bench = Bench::new(BASE);
    assert!(member(&mut bench, 5));
    assert_eq!(vlan(&mut bench, 0, 5), ERROR);
}

#[test]
fn a_reset_empties_the_table() {
    let mut bench = Bench::new(VLAN);
    assert_eq!(vlan(&mut bench, 0, 5), OK);
    assert_eq!(bench.nic.status().port.vlan_table, ["5"]);
    bench.nic.reset();
    let status = bench.nic.status().port;
    assert!(status.vlan_table.is_empty() && !status.vlan_filter_active);
}
