//! The NIC and the guest over a real socket, and in virtual time.

mod statistics;
mod support;

mod captures;
mod check;
mod coalescing;
mod control_queue;
mod exchange;
mod faults;
mod front_ends;
mod hashes;
mod hostile_device;
mod hostile_memory;
mod hostile_messages;
mod hostile_rings;
mod known_bugs;
mod line_rate;
mod link;
mod measure;
mod modes;
mod multi_queue;
mod offloads;
mod packed;
mod phy;
mod priorities;
mod process;
mod relay_states;
mod rsc;
mod scheduling;
mod talk;
mod tcp;
mod trace;
mod virtual_time;
