//! Where the time comes from. Only the worker asks; everything below it is told.

use nic_model::time::Nanos;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// The machine's monotonic clock, from the moment it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds of the machine's clock when this one showed zero.
    zero: u64,
}

impl Clock {
    /// A clock that shows zero now.
    #[must_use]
    pub fn start() -> Self {
        Clock { zero: monotonic() }
    }

    /// The present instant.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Nanos {
        Nanos(monotonic() - self.zero)
    }
}

/// Nanoseconds of the machine's clock. It is asked once a round, so that conversions by way of [`std::time::Duration`] count.
#[inline]
fn monotonic() -> u64 {
    let now: TimeSpec =
        clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has that clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
