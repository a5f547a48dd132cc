//! See `src/guest_driver.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nic_fuzz::guest_driver::run(data));
