//! Single commands: their bytes, refusals, silence.

use nic_guest::virtio_net::VirtnetInfo;
use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::features as f;

use crate::common::in_process::InProcess;
use crate::{BASE, asked, nic, options};

#[test]
fn commands_arrive_as_the_standard_has_them() {
    let mut nic = nic(f::CTRL_RX | f::CTRL_MAC_ADDR);
    nic.set_promisc(true).unwrap();
    nic.set_mac_table(&[[1; 6]], &[[2; 6], [3; 6]]).unwrap();
    nic.set_mac_address([4; 6]).unwrap();
    assert_eq!(nic.mac(), [4; 6]);
    let table = [&[1, 0, 0, 0][..], &[1; 6], &[2, 0, 0, 0], &[2; 6], &[3; 6]].concat();
    let expected = [(0, 0, vec![1]), (1, 0, table), (1, 1, vec![4; 6])];
    assert_eq!(asked(&nic), expected);
}

#[test]
fn refusals_and_silence_are_errors() {
    let mut nic = nic(f::CTRL_RX);
    nic.transport.ctrl_answer = Some(1);
    assert_eq!(nic.set_promisc(true), Err(CtrlError::Refused(1)));
    nic.transport.ctrl_answer = None;
    for _ in 0..8 {
        assert_eq!(nic.set_promisc(true), Err(CtrlError::TimedOut));
    }
    assert_eq!(nic.set_promisc(true), Err(CtrlError::Full));
    // A device that wakes up late gets its slots reused, not confused.
    nic.transport.ctrl_answer = Some(0);
    let raw = nic.transport.queue(4).raw.clone();
    for n in 0..8 {
        let at = raw.used_idx();
        raw.set_used_elem(at, raw.avail_entry(at).into(), n);
        raw.set_used_idx(at.wrapping_add(1));
    }
    assert_eq!(nic.set_promisc(true), Ok(()));
    let without = InProcess::new(BASE & !f::CTRL_VQ);
    let mut without = VirtnetInfo::probe(without, &options()).unwrap();
    assert_eq!(without.set_promisc(true), Err(CtrlError::NoQueue));
}
