//! A wire that waits and has super-frames, behind a partner whose priorities are stopped, and before a port whose host does not read.

use std::time::Duration;

use etherparse::PacketBuilder;
use nic_model::frame::{Checksum, Gso, Segmentation};
use nic_model::host::QueueIndex;
use nic_model::pfc::{Priorities, Request};
use nic_model::port::{LONGEST_SUPER_FRAME, Port, PortConfig};

use super::stopped::SUPER_KEPT;
use super::*;
use crate::wire::testing::CARD;

/// Octets of TCP's payload in each super-frame, and in its segments.
const PAYLOAD: usize = 60_000;
const SEGMENT: usize = 1_448;
const HEADERS: usize = 14 + 20 + 20;

/// A wire that has so many super-frames of TCP, as a TAP device has them: as many as there are buffers and sure room for.
struct Streams(usize);

impl Wire for Streams {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let (room, mut taken) = (room * pool.buffer_size(), 0);
        while self.0 > 0 && (taken == 0 || taken + LONGEST_SUPER_FRAME <= room) {
            let Some(mut frame) = pool.take_big_received() else {
                return;
            };
            let packet = PacketBuilder::ethernet2([2; 6], CARD.0)
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .tcp(1_000, 2_000, 0, 1_000);
            let mut octets = Vec::new();
            packet
                .write(&mut octets, &[0; PAYLOAD])
                .expect("a packet of TCP");
            assert!(frame.fill(&octets));
            frame.checksum = Checksum::Partial {
                start: 34,
                offset: 16,
            };
            frame.gso = Gso {
                kind: Segmentation::Tcpv4,
                headers: HEADERS as u8,
                size: SEGMENT as u16,
            };
            frame.arrival = now;
            taken += frame.len();
            frames.push(frame);
            self.0 -= 1;
        }
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        pool.give_all(frames.drain(..));
    }

    fn next_deadline(&self) -> Option<Nanos> {
        None
    }

    fn has_super_frames(&self) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }
}

#[test]
fn reception_goes_on_and_loses_nothing_whenever_the_host_reads_again() {
    const FRAMES: usize = 300;
    for (lead, controlled, mtu) in [
        (0, Priorities::ALL, 1_500),
        (100, Priorities::ALL, 1_500),
        (100, Priorities::of_vector(1), 1_500),
        (100, Priorities::of_vector(1), 9_000),
        // Not controlled: the wire itself waits. A super-frame has more octets than a share of the second.
        (100, Priorities::of_vector(8), 1_500),
        (100, Priorities::of_vector(0b1111_1110), 1_500),
    ] {
        let mut port = Port::new(&PortConfig {
            pfc: Some(controlled),
            lead: Duration::from_micros(lead),
            mtu,
            ..PortConfig::default()
        });
        let speed = port.phy.speed();
        let mut wire = MacControl::before(Box::new(Streams(FRAMES)), speed);
        port.set_super_frames(wire.has_super_frames());
        port.set_flow_control(wire.waits());
        let (mut burst, mut fifo, mut out) = (Vec::new(), Vec::new(), Vec::new());
        let (mut delivered, mut most, mut now) = (0, 0, Nanos(0));
        for round in 0..60_000 {
            now = Nanos(now.0 + 2_000);
            let room = port.rx_room(now);
            if room > 0 {
                wire.receive(now, room, &mut port.pool, &mut burst);
            }
            port.receive(now, &mut burst);
            fifo.append(&mut burst);
            most = most.max(port.pool.lent() - fifo.len());
            // By turns it takes nothing for a while, and all at once.
            if round % 800 >= 400 {
                delivered += fifo.len();
                port.release(QueueIndex(0), fifo.drain(..));
            }
            port.send_control(Nanos(now.0 + lead * 1_000), &mut out);
            wire.transmit(now, &mut port.pool, &mut out);
        }
        let counters = port.counters(&[]);
        let what = (lead, controlled, mtu);
        assert_eq!(delivered, FRAMES, "{what:?}: {:?}", wire.counters());
        assert_eq!(counters.drops.total(), 0, "{what:?}: {:?}", counters.drops);
        assert_eq!(port.pool.lent(), 0);
        let stopped = counters.pfc.priorities[0].tx_xoff > 0;
        assert_eq!(stopped, controlled.contains(0), "{what:?}");
        assert!(
            most <= SUPER_KEPT && (most > 0) == stopped,
            "{what:?}: {most}"
        );
    }
}

#[test]
fn what_was_kept_goes_as_far_as_there_is_room_for_its_octets() {
    let (mut pool, speed) = (
        crate::wire::testing::pool(1_500),
        Speed::from_mbps(10_000).expect("a rate"),
    );
    let mut wire = MacControl::before(Box::new(Streams(20)), speed);
    let mut request = Request::default();
    request.priorities.insert(0);
    request.quanta[0] = 1_000;
    let mut frame = pool.take();
    request.write(&mut frame, CARD);
    wire.transmit(Nanos(0), &mut pool, &mut vec![frame]);
    // Buffers that one takes the room of, and that the longest would.
    let usual = pool.buffer_size();
    let [each, longest] = [HEADERS + PAYLOAD, LONGEST_SUPER_FRAME].map(|it| it.div_ceil(usual));
    let mut come = |now: Nanos, room| {
        let mut frames = Vec::new();
        wire.receive(now, room, &mut pool, &mut frames);
        let count = frames.len();
        pool.give_all(frames);
        (count, pool.lent())
    };
    assert_eq!(come(Nanos(0), 64), (0, SUPER_KEPT));
    // The first goes in any case.
    let over = Nanos(1_000_000);
    assert_eq!(come(over, 1), (1, SUPER_KEPT - 1));
    assert_eq!(come(over, each + longest - 1), (1, SUPER_KEPT - 2));
    assert_eq!(come(over, each + longest), (2, SUPER_KEPT - 4));
    // Those that are not kept count with those that were.
    assert_eq!(come(over, 5 * each + longest), (6, 0));
}
