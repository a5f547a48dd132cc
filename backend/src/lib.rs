//! The NIC as a process: vhost-user, threads, the clock and the wires around one card.
//!
//! ```text
//! front-end --socket--> relay --> vhost-user-backend --jobs--> worker: card + wire
//!                                                        or    port + wire == lanes == workers: queue pairs
//! ```
//!
//! [`server::NicServer`] is one NIC with its threads, [`worker`] one that moves packets, [`engine`] which of them does what, [`patience`] how long one spins before it sleeps, [`cpus`] where they run,
//! [`card`] what one runs alone, [`split`] and [`lane`] what several share, [`wakeup`] how they wake each other, [`session`] a front-end's connection, [`relay`] and [`protocol`] its messages, [`wire`] what the line is plugged into, [`control`] how a running NIC is watched and changed, [`settings`] what can be, [`config`] its options in a file,
//! and [`mdio`] what users see of its PHY.

pub mod card;
pub mod clock;
pub mod coalesce;
pub mod config;
pub mod control;
pub mod cpus;
pub mod engine;
pub mod lane;
pub mod mdio;
pub mod packet_buffer;
pub mod patience;
pub mod pfc;
pub mod protocol;
pub mod rate;
pub mod relay;
pub mod server;
pub mod session;
pub mod settings;
pub mod split;
pub mod vring;
pub mod wakeup;
pub mod weights;
pub mod wire;
pub mod worker;
pub mod written;
