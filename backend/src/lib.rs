//! The NIC as a process: vhost-user, threads, the clock and the wires around one card.
//!
//! ```text
//! front-end --socket--> relay --> vhost-user-backend --jobs--> worker: card + wire
//! ```
//!
//! [`server::NicServer`] is one NIC with its threads, [`worker`] the one that moves packets, [`session`] a front-end's
//! connection, [`relay`] and [`protocol`] its messages, [`wire`] what the line is plugged into, and [`control`]
//! how a running NIC is watched and changed.

pub mod card;
pub mod clock;
pub mod coalesce;
pub mod control;
pub mod engine;
pub mod lane;
pub mod protocol;
pub mod relay;
pub mod server;
pub mod session;
pub mod split;
pub mod vring;
pub mod wire;
pub mod worker;
