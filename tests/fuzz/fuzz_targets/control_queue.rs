//! See `src/control_queue.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nic_fuzz::control_queue::run(data));
