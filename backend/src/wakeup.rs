//! Who sleeps and is to be woken: the handshake of two threads that pass things to each other.
//!
//! Whoever goes to sleep asks to be woken, and then looks once more for what has come. Whoever has something for him passes it on, and
//! then looks whether he asked. Each has a full fence in between, so that at least one of the two sees what the other wrote: as with a
//! queue's notifications ([`nic_device::notify`]).
//!
//! [`Flag`] is the seam: an atomic flag, or one that a model checker plays with.

use std::sync::atomic::{AtomicBool, Ordering, fence};

/// A flag that two threads share.
pub trait Flag {
    /// Its value.
    fn get(&self) -> bool;
    /// Sets it.
    fn set(&self, value: bool);
    /// Clears it. Returns its value before.
    fn take(&self) -> bool;

    /// What was written before is seen by all before anything is read after.
    #[inline]
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl Flag for AtomicBool {
    #[inline]
    fn get(&self) -> bool {
        self.load(Ordering::Relaxed)
    }

    #[inline]
    fn set(&self, value: bool) {
        self.store(value, Ordering::Relaxed);
    }

    #[inline]
    fn take(&self) -> bool {
        self.swap(false, Ordering::Relaxed)
    }
}

/// Whether somebody is to be woken; nobody at first.
#[derive(Debug, Default)]
pub struct Wakeup<F = AtomicBool>(F);

impl<F: Flag> Wakeup<F> {
    /// What `flag` says: that of somebody who is awake is clear.
    pub const fn new(flag: F) -> Self {
        Wakeup(flag)
    }

    /// Who is about to sleep asks to be woken. He has to look once more for what came before.
    #[inline]
    pub fn ask(&self) {
        self.0.set(true);
        self.0.full_fence();
    }

    /// He is awake.
    #[inline]
    pub fn withdraw(&self) {
        self.0.set(false);
    }

    /// Whether he has to be woken, to see what was done before this call: true once for each time that he asks.
    #[inline]
    pub fn take(&self) -> bool {
        self.0.full_fence();
        self.0.get() && self.0.take()
    }
}
