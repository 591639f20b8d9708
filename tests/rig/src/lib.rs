//! What tests of replicas share: how one is made ([`Start`]), simple state machines ([`machines`]), and
//! replicas that the test's own thread drives, turn by turn ([`Driven`]).
//!
//! For tests only; it panics where something is not as it should be.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod driven;
pub mod machines;
mod start;

pub use driven::{Driven, Turns};
pub use start::{Start, hosts, members, peers_of, random};

use std::time::{Duration, Instant};

/// What takes real time (threads, connections, a device) gets so much of it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it holds, while other threads go on.
///
/// # Panics
/// If it does not hold after [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
