//! Devices for the driver to meet: one in this process, one behind a vhost-user socket.

#![allow(dead_code)] // each test file uses its part

pub mod backend;
pub mod in_process;
