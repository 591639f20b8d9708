//! The transport contract of Quorate, and what every transport shares.
//!
//! [`Transport`] says what the protocol may assume of a link (C1 to C5) and nothing about what
//! carries it. On top of it stand the two data structures of log shipping, [`ring`] and [`row`],
//! which trust no byte that did not prove itself, and the [`codec`] of the control lane. The
//! [`memory`] transport runs a cluster inside one process and injects every fault that the
//! contract allows; [`conformance`] is the suite that each implementation passes.
//!
//! This crate knows neither sockets nor verbs, and nothing of Paxos but its words.
#![forbid(unsafe_code)]

pub mod codec;
pub mod conformance;
mod contract;
pub mod integrity;
pub mod memory;
pub mod region;
pub mod ring;
pub mod row;
pub mod shards;

pub use contract::{
    Event, Lane, Level, LinkStatus, OpNumber, PeerError, PostError, RegionError, RegionId,
    Transport, Wake,
};
