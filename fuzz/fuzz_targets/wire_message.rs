//! `cargo fuzz run --features libfuzzer wire_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::wire_message(data));
