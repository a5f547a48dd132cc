//! Devices for the driver to meet: one in this process, one behind a vhost-user socket, and one in
//! virtual time for the kernel; and the rings of the first and the last.

#![allow(dead_code)] // each test file uses its part

pub mod backend;
pub mod in_process;
pub mod packets;
pub mod packets6;
pub mod rings;
pub mod world;
