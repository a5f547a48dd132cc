//! What the device counts.

use nic_guest::virtio_net::ProbeError;
use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::device_stats::StatsError;
use nic_guest::virtio_net::features as f;

use crate::{Nic, asked, nic, probe};

const QUERY: (u8, u8) = (8, 0);
const GET: (u8, u8) = (8, 1);
/// Of each queue the basic group, and the commands.
const TYPES: u64 = 1 << 32 | 1 << 16 | 1;

/// An honest device, whose counters are 100 times the queue's number, and up.
fn honest(class: u8, command: u8, data: &[u8]) -> Vec<u8> {
    if (class, command) == QUERY {
        return TYPES.to_le_bytes().to_vec();
    }
    let mut reply = Vec::new();
    for asked in data.as_chunks::<16>().0 {
        let vq = u64::from(asked[0]);
        let types = u64::from_le_bytes(*asked[8..].first_chunk().unwrap());
        for (kind, counters) in [(0, 6), (16, 6), (32, 2)] {
            if types & 1 << kind != 0 {
                reply.extend([kind, 0, asked[0], asked[1], 0, 0, 8 + 8 * counters, 0]);
                let first = 100 * vq;
                reply.extend((first..first + u64::from(counters)).flat_map(u64::to_le_bytes));
            }
        }
    }
    reply
}

fn with(reply: fn(u8, u8, &[u8]) -> Vec<u8>) -> Nic {
    let nic = probe(f::DEVICE_STATS, |device| device.reply = reply).unwrap();
    asked(&nic);
    nic
}

#[test]
fn each_queue_is_asked_for_what_it_has() {
    let mut nic = with(honest);
    assert_eq!(nic.device_stats_cap(), TYPES);
    let stats = nic.stats_get(&[4, 0, 3]).unwrap();
    let mut data = Vec::new();
    for (vq, types) in [(4u64, 1u64 << 32), (0, 1), (3, 1 << 16)] {
        data.extend(vq.to_le_bytes());
        data.extend(types.to_le_bytes());
    }
    assert_eq!(asked(&nic), [(8, 1, data)]);
    assert_eq!(stats.len(), 3);
    assert_eq!(stats[0].cvq.unwrap().ok_num, 401);
    assert_eq!(stats[1].rx_basic.unwrap().drop_overruns, 5);
    assert_eq!(stats[2].tx_basic.unwrap().packets, 301);
    assert!(stats[1].rx_csum.is_none(), "the device has none of these");
}

#[test]
fn many_queues_are_several_commands() {
    let mut nic = with(honest);
    let vqs: Vec<u16> = (0..40).map(|n| 2 * n).filter(|&vq| vq != 4).collect();
    let stats = nic.stats_get(&vqs).unwrap();
    let seen: Vec<_> = stats.iter().map(|stats| stats.vq).collect();
    assert_eq!(seen, vqs);
    let sizes: Vec<_> = asked(&nic).iter().map(|seen| seen.2.len()).collect();
    assert_eq!(sizes, [256, 256, 7 * 16]);
}

#[test]
fn refusals_and_silence_are_errors() {
    let mut nic = with(honest);
    nic.transport.refused = vec![GET];
    let refused = StatsError::Control(CtrlError::Refused(1));
    assert_eq!(nic.stats_get(&[9]), Err(refused));
    nic.transport.ctrl_answer = None;
    let silent = StatsError::Control(CtrlError::TimedOut);
    assert_eq!(nic.stats_get(&[0]), Err(silent));
    let without = StatsError::Control(CtrlError::NotNegotiated("DEVICE_STATS"));
    assert_eq!(self::nic(0).stats_get(&[0]), Err(without));
}

#[test]
fn a_device_that_does_not_say_what_it_has_fails_the_probe() {
    let refused = probe(f::DEVICE_STATS, |device| device.refused.push(QUERY));
    assert!(matches!(
        refused.map(|_| ()),
        Err(ProbeError::Stats(StatsError::Control(CtrlError::Refused(
            1
        ))))
    ));
    let short = probe(f::DEVICE_STATS, |device| {
        device.reply = |_, _, _| vec![1; 7];
    });
    assert!(matches!(
        short.map(|_| ()),
        Err(ProbeError::Stats(StatsError::Truncated { at: 0, len: 7 }))
    ));
}

#[test]
fn replies_that_are_no_answer_are_errors() {
    fn short(class: u8, command: u8, data: &[u8]) -> Vec<u8> {
        let mut reply = honest(class, command, data);
        if (class, command) == GET {
            reply.truncate(reply.len() - 3);
        }
        reply
    }
    fn of_another(class: u8, command: u8, data: &[u8]) -> Vec<u8> {
        let mut reply = honest(class, command, data);
        if (class, command) == GET {
            reply[2] = 2;
        }
        reply
    }
    fn none(class: u8, command: u8, data: &[u8]) -> Vec<u8> {
        match (class, command) {
            GET => Vec::new(),
            _ => honest(class, command, data),
        }
    }
    assert_eq!(
        with(short).stats_get(&[0]),
        Err(StatsError::Truncated { at: 0, len: 53 })
    );
    assert_eq!(
        with(of_another).stats_get(&[0]),
        Err(StatsError::Unasked { vq: 2, kind: 0 })
    );
    assert_eq!(
        with(none).stats_get(&[0]),
        Err(StatsError::Missing { vq: 0, types: 1 })
    );
}
