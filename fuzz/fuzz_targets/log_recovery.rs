//! `cargo fuzz run --features libfuzzer log_recovery`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::log_recovery(data));
