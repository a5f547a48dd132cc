//! Interrupt moderation.

use nic_guest::virtio_net::coalesce::IntrCoal;
use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::features as f;

use crate::{Nic, asked, nic};

const COAL: u64 = f::NOTF_COAL | f::VQ_NOTF_COAL;

fn state(nic: &Nic) -> Vec<(u32, u32)> {
    (0..4)
        .map(|vq| nic.intr_coal(vq))
        .map(|coal| (coal.max_packets, coal.max_usecs))
        .collect()
}

#[test]
fn the_last_word_counts() {
    let mut nic = nic(COAL);
    assert_eq!(state(&nic), [(0, 0), (1, 0), (0, 0), (1, 0)], "Linux's");
    nic.set_rx_coalesce(8, 100).unwrap();
    nic.set_tx_coalesce(0x0102_0304, 5).unwrap();
    nic.set_queue_coalesce(2, 3, 4).unwrap();
    nic.set_queue_coalesce(1, 6, 7).unwrap();
    assert_eq!(state(&nic), [(8, 100), (6, 7), (3, 4), (0x0102_0304, 5)]);
    let expected = [
        (6, 1, vec![8, 0, 0, 0, 100, 0, 0, 0]),
        (6, 0, vec![4, 3, 2, 1, 5, 0, 0, 0]),
        (6, 2, vec![2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]),
        (6, 2, vec![1, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0]),
    ];
    assert_eq!(asked(&nic), expected);
    nic.set_rx_coalesce(1, 2).unwrap();
    assert_eq!(state(&nic), [(1, 2), (6, 7), (1, 2), (0x0102_0304, 5)]);
}

#[test]
fn what_is_refused_is_not_kept() {
    let mut nic = nic(COAL);
    let before = state(&nic);
    nic.transport.refused = vec![(6, 0), (6, 1), (6, 2), (6, 3)];
    let refused = Err(CtrlError::Refused(1));
    assert_eq!(nic.set_rx_coalesce(1, 1), refused);
    assert_eq!(nic.set_tx_coalesce(2, 1), refused);
    assert_eq!(nic.set_queue_coalesce(0, 1, 1), refused);
    assert_eq!(nic.queue_coalesce(0), Err(CtrlError::Refused(1)));
    nic.transport.ctrl_answer = None;
    nic.transport.refused.clear();
    assert_eq!(nic.set_rx_coalesce(1, 1), Err(CtrlError::TimedOut));
    assert_eq!(state(&nic), before);
}

#[test]
fn a_queue_is_asked() {
    let mut nic = nic(COAL);
    nic.transport.reply = |_, _, data| vec![data[0], 1, 0, 0, 0, 2, 0, 0];
    assert_eq!(nic.queue_coalesce(3), Ok((0x103, 0x200)));
    assert_eq!(asked(&nic), [(6, 3, vec![3, 0, 0, 0])]);
    nic.transport.reply = |_, _, _| vec![0; 7];
    assert_eq!(nic.queue_coalesce(3), Err(CtrlError::ShortReply(7)));
}

#[test]
fn tuning_needs_its_feature_and_ends_with_what_was_before() {
    let lacking = nic(f::NOTF_COAL).set_adaptive_rx(true);
    assert_eq!(lacking, Err(CtrlError::NotNegotiated("VQ_NOTF_COAL")));
    let mut nic = nic(COAL);
    nic.set_rx_coalesce(9, 90).unwrap();
    asked(&nic);
    nic.set_adaptive_rx(true).unwrap();
    assert!(asked(&nic).is_empty(), "the tuner speaks later");
    assert!(nic.adaptive_rx(0) && nic.adaptive_rx(1));
    // Who is told something else is tuned no longer.
    nic.set_queue_coalesce(2, 1, 2).unwrap();
    assert!(nic.adaptive_rx(0) && !nic.adaptive_rx(1));
    asked(&nic);
    nic.set_adaptive_rx(false).unwrap();
    assert_eq!(asked(&nic), [(6, 1, vec![9, 0, 0, 0, 90, 0, 0, 0])]);
    assert!(!nic.adaptive_rx(0));
    assert_eq!(nic.intr_coal(2), IntrCoal::new(9, 90));
    nic.set_adaptive_rx(true).unwrap();
    nic.set_rx_coalesce(1, 1).unwrap();
    assert!(!nic.adaptive_rx(0));
}

#[test]
fn without_the_command_for_all_each_queue_is_told_of_the_end() {
    let mut nic = nic(f::VQ_NOTF_COAL);
    nic.set_adaptive_rx(true).unwrap();
    nic.set_adaptive_rx(false).unwrap();
    let zeros = |vq| vec![vq, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(asked(&nic), [(6, 2, zeros(0)), (6, 2, zeros(2))]);
}
