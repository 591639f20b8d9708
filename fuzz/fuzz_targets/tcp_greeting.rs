//! `cargo fuzz run --features libfuzzer tcp_greeting`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::tcp_greeting(data));
