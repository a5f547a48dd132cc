//! See `src/guest_stack.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nic_fuzz::guest_stack::run(data));
