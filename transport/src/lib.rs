//! The transport contract of Quorate. Being built.
#![forbid(unsafe_code)]

mod contract;

pub use contract::{
    Event, Lane, Level, LinkStatus, OpNumber, PostError, RegionError, RegionId, Transport, Wake,
};
