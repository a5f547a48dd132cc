//! See `src/guest_stack.rs`.
#![no_main]

#[path = "../compares.rs"]
mod compares;

libfuzzer_sys::fuzz_target!(|data: &[u8]| compares::seldom(|| nic_fuzz::guest_stack::run(data)));
