//! The bodies of the fuzz targets: each takes any octets, and panics if what it attacks does what it must not.
//!
//! The programs in `fuzz_targets` have libFuzzer call them, and `replay.rs` replays the committed corpora (`fixtures/fuzz`). An input is a
//! script: [`input`] reads it, a target's steps are what a driver, a front-end or a wire may do. docs/fuzzing.md says how to
//! run them and how to add one.

pub mod captures;
pub(crate) mod card;
pub mod control_queue;
pub(crate) mod guest;
pub mod guest_driver;
pub(crate) mod guest_host;
pub mod guest_stack;
pub mod input;
pub mod memory;
pub mod messages;
pub mod nic;
pub mod options;
pub mod packet;
pub mod ring_packed;
pub mod ring_split;
pub mod walk;
pub mod wire;

/// What a target does with an input.
pub type Body = fn(&[u8]);

/// Every target: its name and its body.
pub const TARGETS: &[(&str, Body)] = &[
    ("ring_split", ring_split::run),
    ("ring_packed", ring_packed::run),
    ("nic", nic::run),
    ("control_queue", control_queue::run),
    ("wire", wire::run),
    ("guest_stack", guest_stack::run),
    ("guest_driver", guest_driver::run),
    ("messages", messages::run),
    ("captures", captures::run),
    ("options", options::run),
];
