//! See `src/nic.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nic_fuzz::nic::run(data));
