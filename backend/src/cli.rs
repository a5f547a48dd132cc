//! Commands of the program that take a file of their own.

pub mod mdio;
pub mod stats;
pub mod usage;
