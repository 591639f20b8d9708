//! Quorate's transport over TCP: the contract of `quorate_transport` on any network.
//!
//! Each pair of replicas has two connections, one for each lane. One-sided writes travel as frames
//! whose payload the receiving side puts into the region at the moment it reads it from the
//! socket, large ones straight from the kernel, under the same gate that a verbs device would be.
//! Everything happens on the caller's thread, inside of `poll`, `flush` and `park`; only host names
//! are resolved elsewhere.
//!
//! Bytes on these connections are neither encrypted nor authenticated: run it among machines that
//! trust each other. The cluster token protects from mistakes, not from attackers.
#![forbid(unsafe_code)]

mod connection;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod greeting;
mod lane;
mod links;
mod options;
mod queue;
mod receiver;
mod resolver;
mod transport;
mod wire;

pub use lane::{BACK_OFF_MAX, BACK_OFF_MIN, CONNECT_TIMEOUT, GREETING_TIMEOUT};
pub use links::PENDING_MAX;
pub use options::{BindError, Statistics, TcpOptions};
pub use queue::{SEND_QUEUE_BYTES_MAX, SEND_QUEUE_PIECES_MAX};
pub use transport::TcpTransport;

#[cfg(test)]
mod tests;
