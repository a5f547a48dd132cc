//! The socket without a plug: what is sent is lost, nothing comes.
//!
//! The port still has a link, as a switch port with a cut receive pair would give it.

use nic_model::frame::{Frame, Pool};
use nic_model::time::Nanos;

use super::Wire;

/// Nothing is plugged in.
#[derive(Debug, Default)]
pub struct NoWire {
    lost: u64,
}

impl Wire for NoWire {
    fn receive(&mut self, _: Nanos, _: usize, _: &mut Pool, _: &mut Vec<Frame>) {}

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.lost += frames.len() as u64;
        pool.give_all(frames.drain(..));
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("none_lost", self.lost)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{frame, pool};

    #[test]
    fn what_is_sent_is_counted_and_its_buffer_returned() {
        let (mut wire, mut pool) = (NoWire::default(), pool(1500));
        let mut frames = vec![frame(&mut pool, 1, &[0; 60]), frame(&mut pool, 2, &[0; 60])];
        wire.transmit(Nanos(5), &mut pool, &mut frames);
        wire.receive(Nanos(5), 64, &mut pool, &mut frames);
        assert!(frames.is_empty());
        assert_eq!(pool.lent(), 0);
        assert_eq!(wire.counters(), [("none_lost", 2)]);
        assert_eq!(wire.next_deadline(), None);
    }
}
