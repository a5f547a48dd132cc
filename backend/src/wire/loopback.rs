//! A loopback plug: what is sent comes back, in order, the same buffers.
//!
//! A frame enters when it is sent and reaches us again at the instant at which its last bit left; the
//! port then takes it from its own line as from any other, which costs the frame's time once more. What is
//! known of its checksum does not come back with it: bits on a line carry no such note, so the
//! card has to verify what it inserted. Dropped are frames that find [`ON_LINE`] others under way, and those
//! under way when the link goes down.

use nic_model::frame::{Checksum, Frame, Pool};
use nic_model::time::Nanos;

use super::Wire;

/// Frames that are under way at most.
const ON_LINE: usize = 1024;

/// The plug.
#[derive(Debug, Default)]
pub struct Loopback {
    line: Vec<Frame>,
    /// Frames at the head of `line` that were lost with the link and whose buffers are still to be returned.
    lost: usize,
    returned: u64,
    dropped: u64,
    link_lost: u64,
}

impl Loopback {
    /// Frames that came back, and those that were dropped or lost.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.returned, self.dropped + self.link_lost)
    }

    /// Gives all that is under way back to `pool`.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.link_changed(Nanos::ZERO, false);
        self.clear_lost(pool);
    }

    fn clear_lost(&mut self, pool: &mut Pool) {
        pool.give_all(self.line.drain(..self.lost));
        self.lost = 0;
    }
}

impl Wire for Loopback {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.clear_lost(pool);
        let arrived = self.line.partition_point(|frame| frame.arrival <= now);
        let taken = arrived.min(room);
        self.returned += taken as u64;
        frames.extend(self.line.drain(..taken));
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.clear_lost(pool);
        let fit = frames.len().min(ON_LINE - self.line.len());
        for frame in &mut frames[..fit] {
            frame.checksum = Checksum::Unknown;
        }
        self.dropped += (frames.len() - fit) as u64;
        pool.give_all(frames.drain(fit..));
        self.line.append(frames);
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.line.get(self.lost).map(|frame| frame.arrival)
    }

    fn is_passive(&self) -> bool {
        true
    }

    fn link_changed(&mut self, _: Nanos, up: bool) {
        if !up {
            self.link_lost += (self.line.len() - self.lost) as u64;
            self.lost = self.line.len();
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("loopback_returned", self.returned),
            ("loopback_dropped", self.dropped),
            ("loopback_link_lost", self.link_lost),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{frame, pool};

    #[test]
    fn frames_come_back_in_order_when_their_last_bit_has_left() {
        let (mut wire, mut pool) = (Loopback::default(), pool(1500));
        let mut sent: Vec<Frame> = (0..3u8)
            .map(|i| frame(&mut pool, 100 * (u64::from(i) + 1), &[i; 60]))
            .collect();
        sent[0].checksum = Checksum::Valid;
        let buffers: Vec<*const u8> = sent.iter().map(|f| f.bytes().as_ptr()).collect();
        wire.transmit(Nanos(0), &mut pool, &mut sent);
        let mut back = Vec::new();
        wire.receive(Nanos(99), 64, &mut pool, &mut back);
        assert!(back.is_empty());
        assert_eq!(wire.next_deadline(), Some(Nanos(100)));
        wire.receive(Nanos(300), 2, &mut pool, &mut back);
        assert_eq!(back.len(), 2, "no more than there is room for");
        wire.receive(Nanos(300), 2, &mut pool, &mut back);
        assert_eq!(wire.next_deadline(), None);
        for (i, frame) in back.iter().enumerate() {
            assert_eq!(frame.bytes(), [i as u8; 60]);
            assert_eq!(frame.arrival, Nanos(100 * (i as u64 + 1)));
            assert_eq!(frame.bytes().as_ptr(), buffers[i], "nothing is copied");
            assert_eq!(frame.checksum, Checksum::Unknown);
        }
    }

    #[test]
    fn the_line_holds_so_many_frames_and_loses_them_with_the_link() {
        let (mut wire, mut pool) = (Loopback::default(), pool(1500));
        let mut sent: Vec<Frame> = (0..ON_LINE + 5)
            .map(|_| frame(&mut pool, 1, &[0; 60]))
            .collect();
        wire.transmit(Nanos(1), &mut pool, &mut sent);
        assert_eq!(pool.lent(), ON_LINE);
        wire.link_changed(Nanos(2), false);
        wire.link_changed(Nanos(2), false);
        assert_eq!(wire.next_deadline(), None);
        wire.link_changed(Nanos(3), true);
        sent.push(frame(&mut pool, 4, &[9; 60]));
        wire.transmit(Nanos(4), &mut pool, &mut sent);
        let mut back = Vec::new();
        wire.receive(Nanos(4), 64, &mut pool, &mut back);
        assert_eq!(back.len(), 1);
        assert_eq!(back[0].bytes(), [9; 60]);
        assert_eq!(pool.lent(), 1);
        let expected = [
            ("loopback_returned", 1),
            ("loopback_dropped", 5),
            ("loopback_link_lost", ON_LINE as u64),
        ];
        assert_eq!(wire.counters(), expected);
    }
}
