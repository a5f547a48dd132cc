//! A virtqueue in the layout that was negotiated.
//!
//! The data path asks once a burst which layout it is ([`Vring`] is an enum) and then runs code made for that one; what is
//! rare goes through [`Vring::ring`].

use std::sync::Arc;

use crate::features::Features;
use crate::memory::GuestMemory;
use crate::packed::PackedRing;
use crate::ring::{BadRing, Layout, Ring};
use crate::split::SplitRing;

/// A virtqueue in guest memory.
#[derive(Debug)]
pub enum Vring {
    /// VIRTIO 1.3, 2.7.
    Split(SplitRing),
    /// VIRTIO 1.3, 2.8.
    Packed(PackedRing),
}

impl Vring {
    /// The ring at `layout` as a driver that accepted `features` uses it.
    ///
    /// # Errors
    /// The layout is not one of a ring in `memory`.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &Layout,
        features: Features,
    ) -> Result<Self, BadRing> {
        if features.contains(Features::RING_PACKED) {
            PackedRing::new(memory, layout, features).map(Vring::Packed)
        } else {
            SplitRing::new(memory, layout, features).map(Vring::Split)
        }
    }

    /// Where it would have to be told to go on ([`Layout::base`]); a split ring need not be told.
    #[must_use]
    pub fn base(&self) -> Option<u16> {
        match self {
            Vring::Split(_) => None,
            Vring::Packed(ring) => Some(ring.position()),
        }
    }

    /// The ring, whatever its layout.
    pub fn ring(&self) -> &dyn Ring {
        match self {
            Vring::Split(ring) => ring,
            Vring::Packed(ring) => ring,
        }
    }

    /// The ring, whatever its layout, to be used.
    pub fn ring_mut(&mut self) -> &mut dyn Ring {
        match self {
            Vring::Split(ring) => ring,
            Vring::Packed(ring) => ring,
        }
    }
}
