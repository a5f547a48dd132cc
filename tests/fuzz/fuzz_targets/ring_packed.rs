//! See `src/ring_packed.rs`.
#![no_main]

#[path = "../compares.rs"]
mod compares;

libfuzzer_sys::fuzz_target!(|data: &[u8]| compares::seldom(|| nic_fuzz::ring_packed::run(data)));
