//! Where the time comes from. Only the worker asks; everything below it is told.

use std::time::Instant;

use nic_model::time::Nanos;

/// The machine's monotonic clock, from the moment it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that shows zero now.
    #[must_use]
    pub fn start() -> Self {
        Clock(Instant::now())
    }

    /// The present instant.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Nanos {
        Nanos(self.0.elapsed().as_nanos() as u64)
    }
}
