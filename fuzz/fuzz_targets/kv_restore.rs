//! `cargo fuzz run --features libfuzzer kv_restore`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::kv_restore(data));
