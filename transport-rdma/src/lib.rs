//! Quorate's transport over RDMA: the contract of `quorate_transport` on verbs.
//!
//! Records and rows travel as one-sided writes of a reliable connection, straight into the memory
//! that the peer granted; its processor is not asked. Everything else stays on TCP: this transport
//! contains a [`quorate_transport_tcp::TcpTransport`], whose control lane is its control lane, and
//! whose data lane is the companion of its own: the two ends agree there on queue pairs and keys,
//! it says at once when the other end dies, and it carries the writes itself where a connection by
//! verbs cannot be built. One life of that TCP connection is one life of the data lane, whatever
//! carries its writes.
//!
//! Memory that a peer may write is never referred to, only copied out of. A fence is
//! `ibv_dereg_mr` of the one region that was made for that peer, the only primitive that held on
//! the device where all of them were tried (`docs/decisions/fence-by-deregistration.md`).
//!
//! RDMA is neither encrypted nor authenticated, and its keys are no secrets: run it among machines
//! that trust each other.
#![forbid(unsafe_code)]

mod adapter;
pub mod deposed;
pub mod diagnosis;
mod fence;
mod link;
mod negotiation;
mod options;
mod peer;
pub mod proof;
mod regions;
mod send_queue;
mod staging;
mod talk;
pub mod torture;
mod transport;

pub use adapter::{Adapter, AdapterOptions};
pub use link::{BELLS, SEND_DEPTH, STALL};
pub use options::{RdmaOptions, StartError, Statistics};
pub use peer::{FAILURES_MAX, RETRY_MAX, RETRY_MIN};
pub use quorate_ffi::verbs;
pub use send_queue::{SEND_QUEUE_BYTES_MAX, SEND_QUEUE_PIECES_MAX};
pub use staging::STAGING_BYTES;
pub use transport::RdmaTransport;

#[cfg(test)]
mod tests;
