//! `cargo fuzz run --features libfuzzer genesis`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::genesis(data));
