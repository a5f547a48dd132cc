//! The NIC and the guest over a real socket, and in virtual time.

mod statistics;
mod support;

mod captures;
mod coalescing;
mod control_queue;
mod exchange;
mod front_ends;
mod hashes;
mod hostile_messages;
mod hostile_rings;
mod link;
mod measure;
mod multi_queue;
mod offloads;
mod packed;
mod process;
mod talk;
mod virtual_time;
