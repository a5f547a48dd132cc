//! See `src/guest_driver.rs`.
#![no_main]

#[path = "../compares.rs"]
mod compares;

libfuzzer_sys::fuzz_target!(|data: &[u8]| compares::seldom(|| nic_fuzz::guest_driver::run(data)));
