//! Whole clusters of the real code, on simulated time, network, clocks and disks.
//!
//! [`run`] draws everything from one seed: the size of the cluster, its timers and limits, how its
//! network and disks behave (`shape.rs`), the faults and their times (`plan.rs`), and what the clients
//! ask. One thread then steps real [`quorate_replica::Node`]s with real logs; the same seed gives the
//! same trace, byte for byte.
//!
//! A run has two phases. In the *safety* phase everything may break at any time, and the invariants
//! (`checks.rs`) must hold after each turn of each replica. Then a *core* is healed, a quorum or more
//! of the replicas whose disks kept their word, and the rest is left broken: within bounded time the
//! core must have a leader, acknowledge a fresh write at each of its replicas, agree on everything,
//! and not change its leader again. At the end no acknowledged write may be missing, no rejected one
//! may have taken effect, and the history must be linearizable.
//!
//! In a third of the runs who is a member changes (`operator.rs`), and disks may be lost as the configurations
//! of the moment allow (`atlas.rs`); each slot must be chosen by the configuration that decides it
//! (`members.rs`), and the core is a quorum of every configuration that may still decide anything. In
//! three of ten some clients keep sessions of their own (`sessions.rs`).
//!
//! What it cannot find: faults of the real transports and media, of threads, and anything that
//! depends on real time.
#![forbid(unsafe_code)]

mod atlas;
mod checks;
mod clients;
mod coverage;
mod disaster;
mod faults;
mod focus;
mod machine;
mod medium;
mod members;
mod network;
mod operator;
mod passive;
mod plan;
mod process;
mod random;
mod run;
mod sessions;
mod shape;
mod shrink;
mod spy;
mod starting;
mod transport;
mod world;

pub use coverage::{Coverage, Row, Standing};
pub use focus::unseen;
pub use quorate_consensus::Mutant;
pub use quorate_consensus::buggify::Point;
pub use quorate_consensus::{plant, unplant};
pub use run::{Cast, Outcome, run, run_as, run_disaster, run_mutant, run_without};
pub use shrink::shrink;
