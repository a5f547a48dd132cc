//! See `src/ring_split.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nic_fuzz::ring_split::run(data));
