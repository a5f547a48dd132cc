//! Single commands: their bytes, refusals, silence.

use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::hash_tunnel::{
    VIRTIO_NET_HASH_TUNNEL_TYPE_IPIP, VIRTIO_NET_HASH_TUNNEL_TYPE_NVGRE,
    VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN,
};
use nic_guest::virtio_net::{ProbeError, VirtnetInfo};

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
    let raw = nic.transport.queue(4).ring.get_mut().raw().clone();
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

#[test]
fn each_receive_mode_has_its_number() {
    let mut nic = nic(f::CTRL_RX | f::CTRL_RX_EXTRA);
    nic.set_promisc(true).unwrap();
    nic.set_allmulti(false).unwrap();
    nic.set_alluni(true).unwrap();
    nic.set_nomulti(false).unwrap();
    nic.set_nouni(true).unwrap();
    nic.set_nobcast(false).unwrap();
    let expected: Vec<_> = (0..6).map(|mode| (0, mode, vec![1 - mode % 2])).collect();
    assert_eq!(asked(&nic), expected);
}

#[test]
fn vlans_come_and_go() {
    let mut nic = nic(f::CTRL_VLAN);
    nic.vlan_rx_add_vid(0x123).unwrap();
    nic.vlan_rx_kill_vid(4094).unwrap();
    assert_eq!(
        asked(&nic),
        [(2, 0, vec![0x23, 0x01]), (2, 1, vec![0xfe, 0x0f])]
    );
    nic.transport.refused = vec![(2, 0)];
    assert_eq!(nic.vlan_rx_add_vid(5), Err(CtrlError::Refused(1)));
}

#[test]
fn a_device_without_an_address_is_told_ours() {
    let probe = |refused: &[(u8, u8)]| {
        let mut device = InProcess::new(BASE & !f::MAC | f::CTRL_MAC_ADDR);
        device.refused = refused.to_vec();
        VirtnetInfo::probe(device, &options())
    };
    let nic = probe(&[]).unwrap();
    let told = asked(&nic).pop();
    assert_eq!(told, Some((1, 1, nic.mac().to_vec())));
    let refused = probe(&[(1, 1)]).map(|_| ());
    assert!(matches!(
        refused,
        Err(ProbeError::Control(CtrlError::Refused(1)))
    ));
}

#[test]
fn an_address_that_is_refused_is_not_kept() {
    let mut nic = nic(f::CTRL_MAC_ADDR);
    nic.transport.refused = vec![(1, 1)];
    let before = nic.mac();
    assert_eq!(nic.set_mac_address([4; 6]), Err(CtrlError::Refused(1)));
    assert_eq!(nic.mac(), before);
}

#[test]
fn tunnels_that_the_device_knows_are_hashed_inside() {
    let mut nic = nic(f::RSS | f::HASH_TUNNEL);
    let types = VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN | VIRTIO_NET_HASH_TUNNEL_TYPE_IPIP;
    nic.set_hash_tunnel(types).unwrap();
    assert_eq!(asked(&nic), [(7, 0, vec![0x90, 0, 0, 0])]);
    let unknown = nic.set_hash_tunnel(VIRTIO_NET_HASH_TUNNEL_TYPE_NVGRE);
    assert_eq!(unknown, Err(CtrlError::Invalid("tunnel type")));
    nic.transport.refused = vec![(7, 0)];
    assert_eq!(nic.set_hash_tunnel(0), Err(CtrlError::Refused(1)));
    let without = self::nic(f::RSS).set_hash_tunnel(0);
    assert_eq!(without, Err(CtrlError::NotNegotiated("HASH_TUNNEL")));
}

#[test]
fn offloads_are_chosen() {
    let mut nic = nic(f::CTRL_GUEST_OFFLOADS | f::GUEST_CSUM | f::GUEST_TSO4);
    nic.set_guest_offloads(f::GUEST_CSUM).unwrap();
    assert_eq!(asked(&nic), [(5, 0, vec![2, 0, 0, 0, 0, 0, 0, 0])]);
}
