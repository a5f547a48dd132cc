//! RSS, hash reports and queue pairs.

use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::rss::RssConfig;
use nic_guest::virtio_net::rxfh_fields::{FlowHash, FlowType};
use nic_guest::virtio_net::{ProbeError, ProbeOptions, VirtnetInfo};

use crate::common::in_process::InProcess;
use crate::{BASE, Nic, asked, nic, options, probe};

const VQ_PAIRS_SET: (u8, u8) = (4, 0);
const RSS_CONFIG: (u8, u8) = (4, 1);
const HASH_CONFIG: (u8, u8) = (4, 2);

fn with_key(offered: u64) -> Nic {
    let options = ProbeOptions {
        queue_pairs: 2,
        rss_key: Some([9; 40]),
        ..options()
    };
    VirtnetInfo::probe(InProcess::new(BASE | offered), &options).unwrap()
}

/// The data of RSS_CONFIG: types, table of 128, transmit queues, key.
fn rss_bytes(types: u8, table: impl Fn(u8) -> u8, max_tx_vq: u8, key: u8) -> Vec<u8> {
    let mut bytes = vec![types, 0, 0, 0, 127, 0, 0, 0];
    bytes.extend((0..128).flat_map(|at| [table(at), 0]));
    bytes.extend([max_tx_vq, 0, 40]);
    bytes.extend([key; 40]);
    bytes
}

#[test]
fn a_new_device_is_told_to_spread_over_all_pairs() {
    let nic = with_key(f::RSS);
    let data = rss_bytes(0x3f, |at| at % 2, 2, 9);
    // Once for its own sake, once with the number of queue pairs, as Linux does.
    let expected = [(4, 1, data.clone()), (4, 1, data)];
    assert_eq!(asked(&nic), expected);
    assert_eq!(nic.curr_queue_pairs(), 2);
    assert!(nic.rss().has_rss() && !nic.rss().has_hash_report());
    let key = |nic: &Nic| nic.rss().config().key.clone();
    let (one, other) = (crate::nic(f::RSS), crate::nic(f::RSS));
    assert_eq!(key(&one).len(), 40);
    assert_ne!(key(&one), key(&other), "keys are random");
}

#[test]
fn hashes_that_are_only_reported_have_a_command_of_their_own() {
    let nic = with_key(f::HASH_REPORT);
    let data = [&[0x3f, 0, 0, 0][..], &[0; 8], &[40], &[9; 40]].concat();
    assert_eq!(asked(&nic), [(4, 2, data), (4, 0, vec![2, 0])]);
    assert!(!nic.rss().has_rss() && nic.rss().has_hash_report());
    let mut nic = nic;
    assert_eq!(
        nic.set_rxfh(Some(&[0; 128]), None),
        Err(CtrlError::NotNegotiated("RSS"))
    );
    nic.set_rxfh(None, Some(&[7; 40])).unwrap();
    let seen = &asked(&nic)[0];
    assert_eq!((seen.0, seen.1), HASH_CONFIG);
    assert_eq!(nic.rss().config().key, [7; 40]);
}

#[test]
fn a_device_that_refuses_is_used_without() {
    for (feature, command) in [(f::RSS, RSS_CONFIG), (f::HASH_REPORT, HASH_CONFIG)] {
        let nic = probe(feature, |device| device.refused.push(command)).unwrap();
        assert!(!nic.rss().has_rss() && !nic.rss().has_hash_report());
        let asked: Vec<_> = asked(&nic).iter().map(|seen| (seen.0, seen.1)).collect();
        assert_eq!(asked, [command, VQ_PAIRS_SET]);
        assert_eq!(nic.curr_queue_pairs(), 2);
        let mut nic = nic;
        assert!(matches!(
            nic.set_rxhash(true),
            Err(CtrlError::NotNegotiated(_))
        ));
    }
}

#[test]
fn a_silent_device_fails_the_probe() {
    let silent = probe(f::RSS, |device| device.ctrl_answer = None);
    assert!(matches!(
        silent.map(|_| ()),
        Err(ProbeError::Control(CtrlError::TimedOut))
    ));
}

#[test]
fn an_administrator_sets_table_and_key() {
    let mut nic = with_key(f::RSS);
    asked(&nic);
    let mut table = [1; 128];
    table[5] = 0;
    nic.set_rxfh(Some(&table), Some(&[3; 40])).unwrap();
    let data = rss_bytes(0x3f, |at| u8::from(at != 5), 2, 3);
    assert_eq!(asked(&nic), [(4, 1, data)]);
    assert_eq!(nic.rss().config().indirection_table, table);
    for (table, key) in [
        (Some(&[2; 128][..]), None),
        (Some(&[0; 64]), None),
        (None, Some(&[0; 39][..])),
    ] {
        assert!(matches!(
            nic.set_rxfh(table, key),
            Err(CtrlError::Invalid(_))
        ));
    }
    assert!(asked(&nic).is_empty(), "the device hears nothing of these");
    // The table is his from now on: it stays when the number of pairs is set, and must fit.
    assert!(matches!(nic.set_channels(1), Err(CtrlError::Invalid(_))));
    nic.set_channels(2).unwrap();
    assert_eq!(asked(&nic), [(4, 0, vec![2, 0])]);
    nic.reset_rxfh_indir().unwrap();
    assert_eq!(asked(&nic), [(4, 1, rss_bytes(0x3f, |at| at % 2, 2, 3))]);
    nic.set_channels(1).unwrap();
    assert_eq!(asked(&nic), [(4, 1, rss_bytes(0x3f, |_| 0, 1, 3))]);
}

#[test]
fn what_is_refused_is_not_kept() {
    let mut nic = with_key(f::RSS);
    nic.transport.refused = vec![RSS_CONFIG];
    let before = nic.rss().config().clone();
    let refused = Err(CtrlError::Refused(1));
    assert_eq!(nic.set_rxfh(Some(&[0; 128]), Some(&[1; 40])), refused);
    assert_eq!(nic.set_rxhash(false), refused);
    assert_eq!(
        nic.set_flow_hash(FlowType::UdpV4, FlowHash::Discard),
        refused
    );
    assert_eq!(nic.set_channels(1), refused);
    assert_eq!(nic.rss().config(), &before);
    assert_eq!(nic.rss().flow_hash(FlowType::UdpV4), FlowHash::Ports);
    assert_eq!(nic.curr_queue_pairs(), 2);
    // Nor was the table taken for the administrator's.
    nic.transport.refused.clear();
    asked(&nic);
    nic.set_channels(1).unwrap();
    assert_eq!(asked(&nic), [(4, 1, rss_bytes(0x3f, |_| 0, 1, 9))]);
}

#[test]
fn flows_are_hashed_as_asked() {
    let mut nic = with_key(f::RSS);
    asked(&nic);
    nic.set_flow_hash(FlowType::UdpV4, FlowHash::Addresses)
        .unwrap();
    let types = |nic: &Nic| -> Vec<u8> { asked(nic).iter().map(|seen| seen.2[0]).collect() };
    assert_eq!(types(&nic), [0x3b]);
    assert_eq!(nic.rss().flow_hash(FlowType::UdpV4), FlowHash::Addresses);
    nic.set_flow_hash(FlowType::UdpV4, FlowHash::Addresses)
        .unwrap();
    assert!(types(&nic).is_empty(), "nothing changed");
    // Off, and on again as it was, with what was asked meanwhile.
    nic.set_rxhash(false).unwrap();
    nic.set_flow_hash(FlowType::TcpV6, FlowHash::Addresses)
        .unwrap();
    assert_eq!(types(&nic), [0]);
    nic.set_rxhash(true).unwrap();
    assert_eq!(types(&nic), [0x2b]);
}

#[test]
fn types_that_the_device_has_not_are_not_asked_for() {
    let mut nic = probe(f::RSS, |device| device.config[20] = 0x07).unwrap();
    asked(&nic);
    let lacking = nic.set_flow_hash(FlowType::UdpV6, FlowHash::Ports);
    assert_eq!(lacking, Err(CtrlError::Invalid("hash type")));
    assert!(asked(&nic).is_empty());
    assert_eq!(nic.rss().hash_types_supported(), 0x07);
}

#[test]
fn a_long_table_is_cut_to_a_power_of_two() {
    for (max, len) in [(200u16, 128), (512, 512), (u16::MAX, 4096)] {
        let nic = probe(f::RSS, |device| {
            device.config[18..20].copy_from_slice(&max.to_le_bytes());
        })
        .unwrap();
        let (_, _, data) = &asked(&nic)[0];
        assert_eq!(data.len(), 8 + 2 * len + 3 + 40);
        assert_eq!(u16::from_le_bytes([data[4], data[5]]), len as u16 - 1);
    }
}

#[test]
fn raw_commands_go_out_as_they_are() {
    let mut nic = nic(f::RSS | f::HASH_REPORT);
    let rss = RssConfig {
        hash_types: 0x1ff,
        indirection_table: vec![7, 1, 2],
        max_tx_vq: 9,
        key: vec![5; 60],
        unclassified_queue: 4,
    };
    let before = nic.rss().config().clone();
    nic.set_rss(&rss).unwrap();
    nic.set_hash_config(&rss).unwrap();
    assert_eq!(nic.rss().config(), &before);
    let head = [0xff, 1, 0, 0];
    let expected = [
        [
            &head[..],
            &[2, 0, 4, 0, 7, 0, 1, 0, 2, 0, 9, 0, 60],
            &[5; 60],
        ]
        .concat(),
        [&head[..], &[0; 8], &[60], &[5; 60]].concat(),
    ];
    let asked: Vec<_> = asked(&nic).into_iter().map(|seen| seen.2).collect();
    assert_eq!(asked, expected);
}

#[test]
fn pairs_are_used_as_there_are_cpus() {
    let mut device = InProcess::new(BASE);
    device.config[8] = 4;
    device.ctrl_index = 8;
    let options = ProbeOptions {
        queue_size: 16,
        tx_buf_len: Some(2048),
        ..ProbeOptions::for_cpus(3)
    };
    let mut nic = VirtnetInfo::probe(device, &options).unwrap();
    assert_eq!((nic.rq.len(), nic.curr_queue_pairs()), (4, 3));
    assert_eq!(asked(&nic), [(4, 0, vec![3, 0])]);
    let free = |nic: &Nic| -> Vec<u16> { nic.rq.iter().map(|rq| rq.vq.num_free()).collect() };
    assert_eq!(free(&nic), [0, 0, 0, 16], "buffers where they are used");
    for bad in [0, 5, u16::MAX] {
        assert!(matches!(nic.set_channels(bad), Err(CtrlError::Invalid(_))));
    }
    assert!(asked(&nic).is_empty());
    nic.set_channels(4).unwrap();
    assert_eq!(free(&nic), [0; 4]);
    assert_eq!(nic.transport.queue(6).kicks.get(), 1);
    nic.transport.refused = vec![VQ_PAIRS_SET];
    assert_eq!(nic.set_channels(1), Err(CtrlError::Refused(1)));
    assert_eq!(nic.curr_queue_pairs(), 4);
}
