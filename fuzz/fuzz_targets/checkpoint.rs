//! `cargo fuzz run --features libfuzzer checkpoint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::checkpoint(data));
