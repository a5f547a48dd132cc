//! A constant rate, exactly: event `n` is due `n / rate` seconds after the start, rounded down to a nanosecond.
//!
//! Integers only; what rounding leaves is carried over, so that nothing adds up over any number of events.

use std::num::NonZeroU64;

use nic_model::time::Nanos;

const SECOND: u64 = 1_000_000_000;

/// When the next event is due.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate: u64,
    due: Nanos,
    /// Nanoseconds beyond `due`, in units of 1/`rate`.
    rest: u64,
}

impl Pace {
    /// `rate` events a second, the first at `start`.
    pub fn new(rate: NonZeroU64, start: Nanos) -> Self {
        Pace {
            rate: rate.get(),
            due: start,
            rest: 0,
        }
    }

    /// When the next event is due.
    #[inline]
    pub fn due(&self) -> Nanos {
        self.due
    }

    /// The next event happens; returns when it was due.
    #[inline]
    pub fn advance(&mut self) -> Nanos {
        let due = self.due;
        self.due.0 += SECOND / self.rate;
        self.rest += SECOND % self.rate;
        if self.rest >= self.rate {
            self.rest -= self.rate;
            self.due.0 += 1;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_due_at_its_exact_instant() {
        for rate in [1, 3, 7, 1_000, 999_983, 14_880_952, SECOND, 7 * SECOND / 3] {
            let mut pace = Pace::new(NonZeroU64::new(rate).unwrap(), Nanos(12_345));
            for n in 0..10_000u64 {
                let exact = u128::from(n) * u128::from(SECOND) / u128::from(rate);
                assert_eq!(
                    u128::from(pace.advance().0),
                    12_345 + exact,
                    "{n} at {rate}"
                );
            }
        }
    }
}
