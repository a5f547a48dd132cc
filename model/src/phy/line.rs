//! The line: how long each frame occupies it.
//!
//! Follows IEEE 802.3, 4.4.2 (MAC parameters) for what a frame costs on the line: preamble and start
//! frame delimiter, the frame from destination address to check sequence, and the inter-packet gap.

use super::Speed;
use crate::frame::{Contents, FCS, Fcs};
use crate::mac::MIN_FRAME;
use crate::time::Nanos;

/// Octets on the line before a frame: preamble 7, start frame delimiter 1.
const PREAMBLE: usize = 8;
/// Octets' time that the line is idle after a frame, at least.
const INTER_PACKET_GAP: usize = 12;
/// Octets that a frame costs on the line beside its own.
pub const LINE_OVERHEAD: usize = PREAMBLE + INTER_PACKET_GAP;

/// The unit in which the line keeps time: a fiftieth of a nanosecond. An octet takes a whole number of them at every rate,
/// so that no rounding adds up over frames; 64 bits last for eleven years.
const TICKS_PER_NANO: u64 = 50;
const PICOSECONDS_PER_TICK: u64 = 1_000 / TICKS_PER_NANO;

/// One direction of the line: it carries one frame at a time, at the link's rate.
#[derive(Debug)]
pub struct Line {
    ticks_per_octet: u64,
    /// Ticks of the inter-packet gap.
    gap: u64,
    /// When it is free again, in ticks.
    free: u64,
}

impl Line {
    /// A free line of `speed`.
    #[must_use]
    pub fn new(speed: Speed) -> Self {
        let ticks_per_octet = speed.picoseconds_per_octet() / PICOSECONDS_PER_TICK;
        Line {
            ticks_per_octet,
            gap: INTER_PACKET_GAP as u64 * ticks_per_octet,
            free: 0,
        }
    }

    /// Changes the rate. What has been carried keeps its instants, and the line stays busy with it as long as it was.
    pub fn set_speed(&mut self, speed: Speed) {
        *self = Line {
            free: self.free,
            ..Line::new(speed)
        };
    }

    /// Carries a frame of `octets` as soon as the line is free, but not before `ready`; returns the instant of its
    /// last bit. Preamble and gap are added here.
    #[inline]
    pub fn carry(&mut self, octets: usize, ready: Nanos) -> Nanos {
        let begin = self.free.max(ticks(ready));
        self.free = begin + (octets + LINE_OVERHEAD) as u64 * self.ticks_per_octet;
        // The last bit is a gap before.
        nanos(self.free - self.gap)
    }

    /// Is idle until `ready`, unless it is busy for longer: what it carries next need not say when it is ready.
    #[inline]
    pub fn idle_until(&mut self, ready: Nanos) {
        self.free = self.free.max(ticks(ready));
    }

    /// When the last bit of the `n`-th frame from now, from 1 on, can have arrived at the earliest, if none of them
    /// is ready before `ready`: all as short as frames can be, back to back.
    #[must_use]
    pub fn earliest(&self, n: usize, ready: Nanos) -> Nanos {
        let octets = n * (MIN_FRAME + LINE_OVERHEAD) - INTER_PACKET_GAP;
        let begin = self.free.max(ticks(ready));
        nanos(begin + octets as u64 * self.ticks_per_octet)
    }

    /// When the line is free again.
    #[must_use]
    #[inline]
    pub fn busy_until(&self) -> Nanos {
        nanos(self.free)
    }
}

#[inline]
fn ticks(instant: Nanos) -> u64 {
    instant.0.wrapping_mul(TICKS_PER_NANO)
}

/// The instant, rounded down.
#[inline]
fn nanos(ticks: u64) -> Nanos {
    Nanos(ticks / TICKS_PER_NANO)
}

/// Octets that `frame` has on the line: with padding and check sequence, without preamble and gap.
#[must_use]
#[inline]
pub fn octets_on_line(frame: &Contents) -> usize {
    let octets = match frame.fcs {
        Fcs::Present | Fcs::Dribbled => frame.len(),
        Fcs::Offloaded => (frame.len() + FCS).max(MIN_FRAME),
    };
    octets + frame.excess as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;

    #[test]
    fn line_rate_is_exact_at_every_speed() {
        let mut pool = Pool::new(2048);
        let mut frame = pool.take();
        frame.set_len(60);
        for mbps in Speed::RATES {
            let mut line = Line::new(Speed::from_mbps(mbps).unwrap());
            let frames = 1_000_000u64;
            for _ in 0..frames {
                line.carry(octets_on_line(&frame), Nanos::ZERO);
            }
            let bits = frames * 84 * 8;
            assert_eq!(
                line.busy_until().0,
                bits * 1_000 / u64::from(mbps),
                "{mbps} Mb/s"
            );
        }
    }

    #[test]
    fn a_frame_on_the_line_ends_at_the_rate_that_it_began_with() {
        let gigabit = Speed::from_mbps(1_000).unwrap();
        let mut line = Line::new(gigabit);
        assert_eq!(line.carry(1_000, Nanos(0)), Nanos(1_008 * 8));
        line.set_speed(Speed::from_mbps(100).unwrap());
        assert_eq!(line.busy_until(), Nanos(1_020 * 8));
        let next = Nanos(1_020 * 8 + 1_008 * 80);
        assert_eq!(line.carry(1_000, Nanos(0)), next);
        line.set_speed(gigabit);
        assert_eq!(line.busy_until(), Nanos(next.0 + 12 * 80));
        assert_eq!(line.earliest(1, Nanos(0)), Nanos(next.0 + 12 * 80 + 72 * 8));
    }

    #[test]
    fn a_gap_in_the_offered_load_leaves_the_line_idle() {
        let mut pool = Pool::new(2048);
        let mut frame = pool.take();
        frame.set_len(1514);
        let mut line = Line::new(Speed::from_mbps(1_000).unwrap());
        for (ready, begin) in [
            (1_000, 1_000),
            (0, 1_000 + 1538 * 8),
            (1_000_000, 1_000_000),
        ] {
            let last_bit = line.carry(octets_on_line(&frame), Nanos(ready));
            assert_eq!(last_bit, Nanos(begin + (8 + 1518) * 8));
            assert_eq!(line.busy_until(), Nanos(begin + 1538 * 8), "with the gap");
        }
    }
}
