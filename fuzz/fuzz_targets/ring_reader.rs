//! `cargo fuzz run --features libfuzzer ring_reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::ring_reader(data));
