//! See `src/messages.rs`.
#![no_main]

#[path = "../compares.rs"]
mod compares;

libfuzzer_sys::fuzz_target!(|data: &[u8]| compares::seldom(|| nic_fuzz::messages::run(data)));
