//! Where the time comes from.

use std::time::Instant;

use nic_model::time::Nanos;

/// A source of instants.
pub trait Clock {
    /// The present instant.
    fn now(&self) -> Nanos;
}

/// The machine's monotonic clock, from the moment it was made.
#[derive(Clone, Copy, Debug)]
pub struct RealClock(Instant);

impl RealClock {
    /// A clock that shows zero now.
    #[must_use]
    pub fn start() -> Self {
        RealClock(Instant::now())
    }
}

impl Clock for RealClock {
    #[inline]
    fn now(&self) -> Nanos {
        Nanos(self.0.elapsed().as_nanos() as u64)
    }
}
