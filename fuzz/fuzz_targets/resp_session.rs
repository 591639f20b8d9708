//! `cargo fuzz run --features libfuzzer resp_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::resp_session(data));
