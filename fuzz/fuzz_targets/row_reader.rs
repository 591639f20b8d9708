//! `cargo fuzz run --features libfuzzer row_reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::row_reader(data));
