//! `cargo fuzz run --features libfuzzer log_forged`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::log_forged(data));
