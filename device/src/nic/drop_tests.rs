//! Every reason for which a frame can be dropped, reached: a reason without a case does not compile.

use nic_model::BURST;
use nic_model::counters::Drop;
use nic_model::filter::MacAddress;
use nic_model::frame::{FCS, Fcs, Segmentation};
use nic_model::host::QueueIndex;
use nic_model::mac::fcs;
use nic_model::pause;
use nic_model::rate::{Limit, Rates};
use nic_model::rss::{HashConfig, RssConfig};

use super::tests::{BASE, OTHER};
use super::*;
use crate::testing::{BUFFERS, Bench, Driver, RX, TX, broadcast, datagram, writable};

/// Lets a frame of `octets` arrive that shows its check sequence, a right one or another.
fn shown(octets: usize, right: bool, shows: Fcs) -> Bench {
    let mut bench = Bench::new(BASE);
    let mut bytes = broadcast(octets - FCS, 1);
    let sequence = fcs(&bytes);
    bytes.extend(sequence);
    bytes[octets - 1] ^= u8::from(!right);
    let mut frame = bench.nic.port.pool.take();
    assert!(frame.fill(&bytes));
    frame.fcs = shows;
    bench.arrive_frames(vec![frame]);
    bench
}

/// Lets `frame` arrive at a card with these features.
fn arrived(features: Features, frame: Vec<u8>) -> Bench {
    let mut bench = Bench::new(features);
    bench.arrive(&[frame]);
    bench
}

/// Sends `frame` behind a header that begins with `flags`.
fn sent(mut bench: Bench, flags: u8, frame: &[u8]) -> Bench {
    let mut packet = vec![0; 12];
    packet[0] = flags;
    packet.extend(frame);
    bench.send(BUFFERS, &packet);
    bench.poll();
    assert_eq!(bench.used(TX).len(), 1);
    bench
}

/// A super-frame that is not what it is said to be.
fn malformed() -> Bench {
    let mut bench = Bench::new(BASE);
    let mut frame = bench.nic.port.pool.take_big();
    assert!(frame.fill(&datagram(&[1; 3000])));
    (frame.gso.kind, frame.gso.size) = (Segmentation::Tcpv4, 1000);
    bench.arrive_frames(vec![frame]);
    bench
}

/// A flow that is to change its queue, while the old one never empties.
fn resteered() -> Bench {
    let config = PortConfig {
        queue_pairs: 2,
        ..PortConfig::default()
    };
    let mut bench = Bench::on(&config, BASE, |guest, base| {
        Driver::new(guest, base, 256, 0)
    });
    let steer = |bench: &mut Bench, to: u16| {
        let to = QueueIndex(to);
        let config = RssConfig::new(HashConfig::usual(), vec![to], to).unwrap();
        bench.nic.port.set_rss(&config, 2).unwrap();
    };
    steer(&mut bench, 0);
    bench.arrive(&[broadcast(60, 1)]);
    steer(&mut bench, 1);
    bench.arrive(&[broadcast(60, 2)]);
    // What came before the command leaves, the other one stays.
    bench.post(RX, &[writable(BUFFERS, 100)]);
    bench.poll();
    assert_eq!(bench.used(RX).len(), 1);
    bench.arrive(&[broadcast(60, 3)]);
    bench
}

/// A card that has dropped a frame for `reason`.
fn reach(reason: Drop) -> Bench {
    let base = || Bench::new(BASE);
    match reason {
        Drop::RxFcs => shown(64, false, Fcs::Present),
        Drop::RxAlign => shown(64, false, Fcs::Dribbled),
        Drop::RxUndersize => shown(63, true, Fcs::Present),
        Drop::RxFragment => shown(63, false, Fcs::Present),
        Drop::RxOversize => shown(1519, true, Fcs::Present),
        Drop::RxJabber => shown(1519, false, Fcs::Present),
        Drop::RxMalformed => malformed(),
        Drop::RxControl => {
            let mut bench = base();
            let mut frame = bench.nic.port.pool.take();
            pause::write(&mut frame, MacAddress(OTHER), 1);
            bench.arrive_frames(vec![frame]);
            bench
        }
        Drop::RxFiltered => {
            let mut frame = broadcast(60, 1);
            frame[..6].copy_from_slice(&OTHER);
            arrived(BASE, frame)
        }
        Drop::RxVlanFiltered => {
            let mut frame = broadcast(64, 1);
            frame[12..16].copy_from_slice(&[0x81, 0x00, 0x00, 0x05]);
            arrived(BASE | Features::CTRL_VLAN, frame)
        }
        Drop::RxQueueDisabled => {
            let mut bench = base();
            bench.nic.rings().enable(RX, false);
            bench.arrive(&[broadcast(60, 1)]);
            bench
        }
        Drop::RxResteered => resteered(),
        Drop::RxRateExceeded => {
            let mut bench = base();
            let rx = Some(Limit {
                bits_per_second: 1,
                burst: 100,
            });
            bench.nic.port.set_rates(Rates { rx, tx: None });
            bench.arrive(&vec![broadcast(60, 1); 2]);
            bench
        }
        Drop::RxFifoOverflow => {
            let mut bench = base();
            while bench.dropped(reason) == 0 {
                bench.arrive(&vec![broadcast(1500, 1); BURST]);
            }
            bench
        }
        Drop::RxBufferTooSmall => {
            let mut bench = Bench::new(BASE.difference(Features::MRG_RXBUF));
            bench.post(RX, &[writable(BUFFERS, 20)]);
            bench.arrive(&[broadcast(60, 1)]);
            bench
        }
        Drop::TxUndersize => sent(base(), 0, &[1; 13]),
        Drop::TxOversize => sent(base(), 0, &[1; 1515]),
        Drop::TxMalformed => sent(base(), 1, &[1; 60]),
        Drop::TxQueueDisabled => {
            let mut bench = base();
            bench.nic.rings().enable(TX, false);
            sent(bench, 0, &[1; 60])
        }
        Drop::TxLinkDown => {
            let mut bench = base();
            bench.nic.port.phy.set_link(Nanos::ZERO, false);
            sent(bench, 0, &[1; 60])
        }
    }
}

#[test]
fn every_reason_is_reached_and_no_other_with_it() {
    for &reason in Drop::ALL {
        let bench = reach(reason);
        bench.balance();
        let drops = bench.nic.counters().drops;
        assert!(drops.get(reason) > 0, "{reason}");
        for (other, count) in drops.iter() {
            assert!(other == reason || count == 0, "{reason}: {other}");
        }
    }
}
