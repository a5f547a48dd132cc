//! See `src/control_queue.rs`.
#![no_main]

#[path = "../compares.rs"]
mod compares;

libfuzzer_sys::fuzz_target!(|data: &[u8]| compares::seldom(|| nic_fuzz::control_queue::run(data)));
