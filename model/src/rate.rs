//! Rate limits: a token bucket for each direction.
//!
//! Tokens are octets. They come at the rate, up to the burst, and each frame takes as many as it has octets from destination address to check sequence.
//! Where frames are received, one that finds too few is dropped (policing: who sends cannot be told to wait); one that is longer than the burst
//! passes when the bucket is full, and leaves a debt. RFC 2697 has that bucket. Where they are sent, they wait (shaping: the driver's ring can). A card knows a
//! frame's length when it has fetched it, and what it has fetched is to go at once: so there one may go as long as any token is left, and leaves a debt, which holds
//! up the next. Intel's 82599 limits its queues like that. Both are what clouds call the allowance of an instance, and how often it was exceeded is counted.
//!
//! Debts are paid, so the rate holds in the long run whatever the frames are. A bucket's level is exact: no rounding adds up.

use serde::Serialize;

use crate::time::Nanos;

/// A rate, and what may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Bits a second, at least 1.
    pub bits_per_second: u64,
    /// Octets that the bucket holds.
    pub burst: u32,
}

/// The limits of both directions, where there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rates {
    /// Of received frames.
    pub rx: Option<Limit>,
    /// Of sent frames.
    pub tx: Option<Limit>,
}

/// A token in the unit of the level: so many are of one octet that the rate brings as many in a nanosecond as it has bits a second.
const OCTET: i128 = 8 * 1_000_000_000;

/// A token bucket.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: i128,
    full: i128,
    level: i128,
    /// As of when.
    at: Nanos,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        let full = i128::from(limit.burst) * OCTET;
        TokenBucket {
            rate: i128::from(limit.bits_per_second.max(1)),
            full,
            level: full,
            at: Nanos::ZERO,
        }
    }

    fn refill(&mut self, now: Nanos) {
        if now > self.at {
            let elapsed = i128::from(now.0 - self.at.0);
            self.level = self.full.min(self.level + elapsed * self.rate);
            self.at = now;
        }
    }

    /// Takes the tokens of a frame of `octets` octets that is there at `now`. Returns false, and takes none, if there are too few.
    #[must_use]
    pub fn conforms(&mut self, octets: usize, now: Nanos) -> bool {
        self.refill(now);
        let cost = octets as i128 * OCTET;
        let conforms = self.level >= cost.min(self.full);
        if conforms {
            self.level -= cost;
        }
        conforms
    }

    /// From when on there is a token: the next frame may go then, whatever its length. That may be before the instant that the level is of: what the line was
    /// busy with had its tokens taken when it was to begin.
    #[must_use]
    pub fn ready(&self) -> Nanos {
        let lacks = (1 - self.level).div_euclid(self.rate);
        let exact = (1 - self.level).rem_euclid(self.rate) == 0;
        let ready = i128::from(self.at.0) + lacks + i128::from(!exact);
        Nanos(ready.clamp(0, u64::MAX.into()) as u64)
    }

    /// Takes the tokens of a frame of `octets` octets that goes when it is `ready` and there is one. Returns when that is, not before
    /// the frames before it.
    #[must_use]
    pub fn departs(&mut self, octets: usize, ready: Nanos) -> Nanos {
        self.refill(ready.max(self.ready()));
        self.level -= octets as i128 * OCTET;
        self.at
    }

    /// Frames of `octets` octets that there are tokens for at `now`.
    #[must_use]
    pub fn frames(&self, octets: usize, now: Nanos) -> usize {
        let elapsed = i128::from(now.0) - i128::from(self.at.0);
        let level = self.full.min(self.level + elapsed * self.rate);
        (level.max(0) / (octets as i128 * OCTET)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bucket(bits_per_second: u64, burst: u32) -> TokenBucket {
        TokenBucket::new(Limit {
            bits_per_second,
            burst,
        })
    }

    #[test]
    fn a_full_bucket_lets_its_burst_through_and_no_octet_more() {
        let mut bucket = bucket(8_000_000, 10_000);
        for _ in 0..10 {
            assert!(bucket.conforms(1_000, Nanos(5)));
        }
        assert!(!bucket.conforms(1, Nanos(5)));
        // An octet a microsecond.
        assert!(!bucket.conforms(1, Nanos(1_004)) && bucket.conforms(1, Nanos(1_005)));
        assert!(!bucket.conforms(1_000, Nanos(1_001_004)));
        assert!(bucket.conforms(1_000, Nanos(1_001_005)));
        // It is full again, and does not run over.
        assert!(bucket.conforms(10_000, Nanos(1_000_000_000)));
        assert!(!bucket.conforms(1, Nanos(1_000_000_000)));
    }

    #[test]
    fn a_frame_departs_when_the_closed_form_says() {
        // A rate that no frame divides: 1 s has 41,666,666.625 octets.
        let (rate, burst, len) = (333_333_333, 5_000_u64, 777_u64);
        let mut bucket = bucket(rate, burst as u32);
        for n in 0..1_000_000 {
            // As soon as there is a token beyond what went before.
            let lacks = (n * len).checked_sub(burst).map(u128::from);
            let lacks = lacks.map_or(0, |octets| octets * 8_000_000_000 + 1);
            let exact = lacks.div_ceil(rate.into());
            assert_eq!(u128::from(bucket.ready().0), exact, "{n}");
            assert_eq!(u128::from(bucket.departs(777, Nanos(0)).0), exact, "{n}");
        }
    }

    #[test]
    fn a_frame_longer_than_the_burst_leaves_a_debt() {
        let mut bucket = bucket(8_000_000_000, 1_000);
        assert_eq!(bucket.frames(100, Nanos(0)), 10);
        assert_eq!(bucket.departs(9_000, Nanos(0)), Nanos(0));
        // All of it is paid, and a token there, 8,000 octets later: then the next one goes.
        assert_eq!(
            (bucket.ready(), bucket.frames(1, Nanos(8_000))),
            (Nanos(8_001), 0)
        );
        assert_eq!(bucket.departs(9_000, Nanos(0)), Nanos(8_001));
        assert_eq!(bucket.departs(1, Nanos(10_000)), Nanos(17_001));
        assert_eq!(bucket.frames(100, Nanos(17_201)), 2);
    }

    #[test]
    fn a_frame_longer_than_the_burst_passes_when_the_bucket_is_full() {
        let mut bucket = bucket(8_000_000_000, 1_000);
        assert!(bucket.conforms(9_000, Nanos(0)) && !bucket.conforms(9_000, Nanos(8_999)));
        assert!(bucket.conforms(9_000, Nanos(9_000)));
    }

    proptest! {
        #[test]
        fn in_no_span_does_more_go_than_the_burst_and_the_rate(
            frames in proptest::collection::vec((0u64..20_000, 64usize..9_000), 2..200),
            rate in 1_000_000u64..400_000_000_000,
            burst in 9_000u32..1_000_000,
        ) {
            let (mut policed, mut shaped) = (bucket(rate, burst), bucket(rate, burst));
            let (mut now, mut through, mut gone) = (0, Vec::new(), Vec::new());
            for (gap, octets) in frames {
                now += gap;
                if policed.conforms(octets, Nanos(now)) {
                    through.push((now, octets as u128));
                }
                gone.push((shaped.departs(octets, Nanos(now)).0, octets as u128));
            }
            // What is shaped may exceed them by its last frame.
            for (frames, shaped) in [(through, false), (gone, true)] {
                prop_assert!(frames.is_sorted_by_key(|frame| frame.0));
                for first in 0..frames.len() {
                    let mut octets = 0;
                    for &(at, len) in &frames[first..] {
                        octets += len;
                        let span = u128::from(at - frames[first].0);
                        let over = if shaped { len } else { 0 };
                        let most = (u128::from(burst) + over) * 8_000_000_000 + span * u128::from(rate);
                        prop_assert!(octets * 8_000_000_000 <= most);
                    }
                }
            }
        }
    }
}
