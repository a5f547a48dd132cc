//! See `src/ring_packed.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nic_fuzz::ring_packed::run(data));
