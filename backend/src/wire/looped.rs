//! What stands before the wire while frames turn in the card, in its MAC or its PHY: they come back as from a [`Loopback`] plug.
//!
//! The wire behind has no link meanwhile: nothing reaches it, and what comes is lost as with a link that is down. The line's faults
//! are behind, too: what turns in the card is never on the line.

use std::os::fd::BorrowedFd;

use nic_model::frame::{Frame, Pool};
use nic_model::time::Nanos;

use super::Wire;
use super::fault::Faulty;
use super::loopback::Loopback;

/// A loopback in the card, and the wire behind it.
pub(crate) struct Looped {
    plug: Loopback,
    /// There until it is taken out.
    behind: Option<Box<dyn Wire>>,
}

impl Looped {
    /// Puts a loopback before `wire`, which has no link.
    pub(crate) fn before(wire: Box<dyn Wire>) -> Self {
        Looped {
            plug: Loopback::default(),
            behind: Some(wire),
        }
    }
}

impl Wire for Looped {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.plug.receive(now, room, pool, frames);
    }

    fn transmit(&mut self, now: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.plug.transmit(now, pool, frames);
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.plug.next_deadline()
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.behind.as_ref()?.readable()
    }

    fn faults(&mut self) -> Option<&mut Faulty> {
        self.behind.as_mut()?.faults()
    }

    fn behind(&mut self) -> Option<&mut Box<dyn Wire>> {
        self.behind.as_mut()
    }

    fn is_gone(&self) -> bool {
        // The descriptor is the wire's behind.
        true
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let behind = self.behind.iter().flat_map(|wire| wire.counters());
        let (returned, dropped) = self.plug.counts();
        let own = [("looped_returned", returned), ("looped_dropped", dropped)];
        behind.chain(own).collect()
    }

    fn unplug(&mut self, pool: &mut Pool) -> Option<Box<dyn Wire>> {
        self.plug.clear(pool);
        self.behind.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireSpec;
    use crate::wire::testing::{facts, frame, pool};

    #[test]
    fn frames_turn_before_the_wire_and_it_comes_out_again() {
        let mut pool = pool(1500);
        let sink = WireSpec::Sink.open(&facts(1500)).expect("a wire");
        let mut looped = Looped::before(sink);
        assert!(looped.is_gone() && looped.readable().is_none());
        let mut frames = vec![frame(&mut pool, 5, &[1; 60]), frame(&mut pool, 9, &[2; 60])];
        looped.transmit(Nanos(1), &mut pool, &mut frames);
        assert_eq!(looped.next_deadline(), Some(Nanos(5)));
        looped.receive(Nanos(5), 64, &mut pool, &mut frames);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].bytes(), [1; 60]);
        let counters = looped.counters();
        assert!(
            counters.contains(&("looped_returned", 1)) && counters.contains(&("sink_frames", 0))
        );
        pool.give_all(frames.drain(..));
        let mut sink = looped.unplug(&mut pool).expect("the wire behind");
        assert_eq!(pool.lent(), 0, "what was under way is lost");
        assert!(sink.unplug(&mut pool).is_none() && !sink.is_gone());
    }
}
