//! How the queues share the line.

use super::*;
use crate::counters::Drops;
use crate::frame::Segmentation;
use crate::host::Fetched;
use crate::segment::tests::{super_frame, usual};

/// Payload of a super-frame.
pub(super) const SUPER: usize = 64_000;

/// A host whose queue `n` always has more frames of `lens[n]` octets to send, with their check sequences; none if that is 0, and super-frames
/// if it is [`SUPER`]. What it fetches at a time ends at 256 KiB, looked at every 16 packets.
pub(super) struct Senders(pub Vec<usize>);

impl Host for Senders {
    fn receives(&self, _queue: QueueIndex) -> bool {
        true
    }

    fn deliver(&mut self, _queue: QueueIndex, frames: &[Frame], _drops: &mut Drops) -> usize {
        frames.len()
    }

    fn fetch_tx(
        &mut self,
        queue: QueueIndex,
        budget: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        _drops: &mut Drops,
    ) -> Fetched {
        let len = self.0[usize::from(queue.0)];
        let (mut fetched, mut octets) = (0, 0);
        while len > 0 && fetched < budget && octets < 256 * 1024 {
            let asked = (budget - fetched).min(16).min(pool.big_room());
            if asked == 0 {
                break;
            }
            for _ in 0..asked {
                frames.push(if len == SUPER {
                    super_frame(pool, &usual(Segmentation::Tcpv4, 1448, SUPER))
                } else {
                    let mut frame = pool.take();
                    assert!(frame.fill(&broadcast(len - FCS)));
                    frame
                });
                fetched += 1;
                octets += len;
            }
        }
        Fetched {
            frames: fetched,
            more: len > 0,
        }
    }

    fn complete_tx(&mut self, _queue: QueueIndex) {}

    fn interrupt(&mut self, _queue: QueueIndex, _direction: Direction) {}
}

/// Plays for `millis` milliseconds at 1 Gb/s. Returns the octets that each queue has sent.
pub(super) fn play(card: &mut Card, host: &mut Senders, millis: u64) -> Vec<u64> {
    let (mut now, mut out) = (Nanos(0), Vec::new());
    while now < Nanos(millis * 1_000_000) {
        while card.transmit(now, &mut out, host) {
            card.pool.give_all(out.drain(..));
        }
        now = card.next_deadline(now).expect("the line is busy");
    }
    let queues = 0..host.0.len() as u16;
    let sent = |queue| card.line_counters(QueueIndex(queue)).tx_octets;
    queues.map(sent).collect()
}

fn shared(lens: &[usize], weights: &[u8]) -> (Vec<u64>, u64) {
    let mut card = card(|c| {
        c.speed = Speed::from_mbps(1_000).unwrap();
        c.queue_pairs = lens.len() as u16;
        c.tx_weights = Weights::new(weights).unwrap();
    });
    let sent = play(&mut card, &mut Senders(lens.to_vec()), 100);
    assert_balanced(&card);
    // The line was never idle.
    let counters = card.counters();
    let on_line = (counters.tx_octets + 20 * counters.tx_frames) * 8;
    assert!((100_000_000..101_000_000).contains(&on_line), "{on_line}");
    (sent, card.scheduler.quantum() as u64)
}

#[test]
fn short_and_long_frames_get_equal_octets() {
    let (sent, quantum) = shared(&[64, 1518], &[]);
    assert!(sent[0].abs_diff(sent[1]) <= quantum, "{sent:?}");
    let (sent, quantum) = shared(&[1518, 64, 700, 64], &[]);
    let (least, most) = (sent.iter().min(), sent.iter().max());
    // One that is in its turn may have a frame's debt, too.
    assert!(most.unwrap() - least.unwrap() <= quantum + 1518, "{sent:?}");
}

#[test]
fn weights_of_1_and_3_give_1_and_3_parts() {
    for lens in [[64, 1518], [1518, 64], [1518, 1518]] {
        let (sent, quantum) = shared(&lens, &[1, 3]);
        assert!((3 * sent[0]).abs_diff(sent[1]) <= 3 * quantum, "{sent:?}");
    }
}

#[test]
fn large_weights_hold_however_long_the_frames_are() {
    for mtu in [1500, 9000] {
        for lens in [
            [64, 64],
            [1518, 64],
            [9018, 9018],
            [SUPER, SUPER],
            [SUPER, 64],
        ] {
            if mtu == 1500 && lens[0] == 9018 {
                continue;
            }
            let mut card = card(|c| {
                c.speed = Speed::from_mbps(1_000).unwrap();
                c.queue_pairs = 2;
                c.mtu = mtu;
                c.tx_weights = Weights::new(&[1, 8]).unwrap();
            });
            let sent = play(&mut card, &mut Senders(lens.to_vec()), 200);
            // Within a turn, and the first burst, whose length nobody knows before.
            let most = 8 * (card.scheduler.quantum() + 16 * lens[0]) as u64;
            let off = (8 * sent[0]).abs_diff(sent[1]);
            assert!(
                sent[0] > 1_000_000 && off <= most,
                "{mtu}, {lens:?}: {sent:?}"
            );
            assert_balanced(&card);
        }
    }
}

#[test]
fn a_queue_alone_has_all_of_the_line_whatever_its_weight() {
    let (sent, _) = shared(&[0, 64, 0], &[100, 1, 100]);
    assert!(sent[0] == 0 && sent[2] == 0 && sent[1] > 0);
}

#[test]
fn a_queue_that_was_too_greedy_is_not_left_with_an_idle_line() {
    let mut card = card(|c| {
        c.speed = Speed::from_mbps(1_000).unwrap();
        c.queue_pairs = 2;
    });
    // A burst that is far more than a turn, as of super-frames.
    card.port.scheduler.sent(0, 1, 1 << 30, false);
    let sent = play(&mut card, &mut Senders(vec![64, 0]), 1);
    assert!(sent[0] > 0);
    assert_balanced(&card);
}
