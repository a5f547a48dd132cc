//! The card as a driver sees it: a virtio-net device (VIRTIO 1.3, 5.1).
//!
//! ```text
//! features, config      what is offered, and what the configuration space says
//! memory                the guest's memory as a table of mappings, and scatter lists over it
//! sigbus                guest memory that is taken away behind us
//! ring, vring           virtqueues: descriptors fetched once, checked, and used in bursts
//! split, packed         the layouts of such a ring
//! notify                who is told of what: interrupts wanted, kicks wanted
//! header                struct virtio_net_hdr
//! rx, tx                DMA: frames into posted buffers, packets out of them
//! control               the control queue's commands
//! interrupt             how a driver is told
//! liar                  a device that lies, on purpose
//! virtio_net            the device: its queues behind the model's `Host`, each of them, and how they come and go
//! rings                 the model's queues and the device's rings together
//! nic                   model and device together: one card
//! ```
//!
//! Guest memory is never trusted: what is used of a descriptor or a header is checked in the same copy of it, however the
//! guest changes it meanwhile. What a driver does wrong stops its queue with a counted [`ring::Fault`], or drops
//! its packet with a counted reason; it never harms this process. Unsafe code is in [`memory`],
//! [`sigbus`], [`split`] and [`packed`] alone.

#![deny(unsafe_code)]

pub mod config;
pub mod control;
pub mod features;
pub mod header;
pub mod interrupt;
mod liar;
#[allow(unsafe_code)]
pub mod memory;
pub mod nic;
pub mod notify;
#[allow(unsafe_code)]
pub mod packed;
pub mod ring;
pub mod rings;
mod rx;
#[allow(unsafe_code)]
pub mod sigbus;
#[allow(unsafe_code)]
pub mod split;
#[cfg(test)]
mod testing;
mod tx;
pub mod virtio_net;
pub mod vring;
