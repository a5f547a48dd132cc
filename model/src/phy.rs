//! The physical layer: whether there is a link, how fast it is, and how long each frame occupies it.
//!
//! Follows IEEE 802.3 Clause 4.4.2 (MAC parameters) for what a frame costs on the line: preamble and start
//! frame delimiter, the frame from destination address to check sequence, and the inter-packet gap.

use std::fmt;
use std::str::FromStr;

use crate::frame::{Contents, FCS, Fcs};
use crate::mac::MIN_FRAME;
use crate::time::Nanos;

/// Octets on the line before a frame: preamble 7, start frame delimiter 1.
const PREAMBLE: usize = 8;
/// Octets' time that the line is idle after a frame, at least.
const INTER_PACKET_GAP: usize = 12;
/// Octets that a frame costs on the line beside its own.
pub const LINE_OVERHEAD: usize = PREAMBLE + INTER_PACKET_GAP;

/// A line rate that IEEE 802.3 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speed(u32);

impl Speed {
    /// The rates, in megabits a second, each a whole number of picoseconds an octet.
    const RATES: [u32; 12] = [
        10, 100, 1_000, 2_500, 5_000, 10_000, 25_000, 40_000, 50_000, 100_000, 200_000, 400_000,
    ];

    /// The speed of `mbps` megabits a second, if IEEE 802.3 has it.
    #[must_use]
    pub fn from_mbps(mbps: u32) -> Option<Self> {
        Self::RATES.contains(&mbps).then_some(Speed(mbps))
    }

    /// Megabits a second.
    #[must_use]
    pub fn mbps(self) -> u32 {
        self.0
    }

    /// Picoseconds that one octet takes.
    #[must_use]
    pub fn picoseconds_per_octet(self) -> u64 {
        8_000_000 / u64::from(self.0)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            2_500 => write!(f, "2.5G"),
            mbps if mbps >= 1_000 => write!(f, "{}G", mbps / 1_000),
            mbps => write!(f, "{mbps}M"),
        }
    }
}

/// What is wrong with the text of a speed.
#[derive(Debug, thiserror::Error)]
#[error(
    "no such speed: use one of 10M, 100M, 1G, 2.5G, 5G, 10G, 25G, 40G, 50G, 100G, 200G, 400G (got {0:?})"
)]
pub struct BadSpeed(String);

impl FromStr for Speed {
    type Err = BadSpeed;
    fn from_str(text: &str) -> Result<Self, BadSpeed> {
        Self::RATES
            .iter()
            .map(|&mbps| Speed(mbps))
            .find(|speed| speed.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| BadSpeed(text.to_owned()))
    }
}

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
    fn new(speed: Speed) -> Self {
        let ticks_per_octet = speed.picoseconds_per_octet() / PICOSECONDS_PER_TICK;
        Line {
            ticks_per_octet,
            gap: INTER_PACKET_GAP as u64 * ticks_per_octet,
            free: 0,
        }
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
        Fcs::Present => frame.len(),
        Fcs::Offloaded => (frame.len() + FCS).max(MIN_FRAME),
    };
    octets + frame.excess as usize
}

/// The physical layer of one port.
#[derive(Debug)]
pub struct Phy {
    link: bool,
    speed: Speed,
    /// From the link partner to us.
    pub rx: Line,
    /// From us to the link partner.
    pub tx: Line,
}

impl Phy {
    /// A PHY with its link up or down.
    #[must_use]
    pub fn new(speed: Speed, link: bool) -> Self {
        Phy {
            link,
            speed,
            rx: Line::new(speed),
            tx: Line::new(speed),
        }
    }

    /// Whether there is a link.
    #[must_use]
    #[inline]
    pub fn link(&self) -> bool {
        self.link
    }

    /// Brings the link up or down; returns whether that is a change.
    pub fn set_link(&mut self, up: bool) -> bool {
        std::mem::replace(&mut self.link, up) != up
    }

    /// The line rate.
    #[must_use]
    pub fn speed(&self) -> Speed {
        self.speed
    }
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
            let mut line = Line::new(Speed(mbps));
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
    fn a_gap_in_the_offered_load_leaves_the_line_idle() {
        let mut pool = Pool::new(2048);
        let mut frame = pool.take();
        frame.set_len(1514);
        let mut line = Line::new(Speed(1_000));
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

    #[test]
    fn speeds_are_written_as_users_write_them() {
        for mbps in Speed::RATES {
            let speed = Speed(mbps);
            assert_eq!(speed.to_string().parse::<Speed>().unwrap(), speed);
        }
        assert_eq!("10g".parse::<Speed>().unwrap().mbps(), 10_000);
        assert!("3G".parse::<Speed>().is_err());
    }
}
