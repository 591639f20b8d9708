//! The parts of the `quorate` server: a linearizable, durable key-value store that speaks the Redis
//! protocol.
//!
//! `kv` is the deterministic store, `resp` the front end; neither knows of the other's bytes, nor of
//! consensus. `machine` and `backend` put them on a replica; the rest is the command line. The
//! library does not hide a second way to the data: everything goes through the replica's log or its
//! read-index.
#![forbid(unsafe_code)]

pub mod admin;
pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod doctor;
mod failover;
pub mod kv;
mod lease_bench;
pub mod log_command;
pub mod machine;
pub mod members;
pub mod metrics;
pub mod recover;
pub mod replay;
pub mod report;
pub mod resp;
pub mod serve;
pub mod status;
pub mod transfer;
