//! `cargo fuzz run --features libfuzzer batch_groups`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::batch_groups(data));
