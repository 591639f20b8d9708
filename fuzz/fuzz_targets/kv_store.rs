//! `cargo fuzz run --features libfuzzer kv_store`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::kv_store(data));
