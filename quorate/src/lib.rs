//! State machine replication: implement [`StateMachine`], start three [`Replica`]s, and what you wrote
//! is a replicated service with a durable log.
//!
//! ```no_run
//! use quorate::{BytesMut, Context, Replica, StateMachine};
//!
//! struct Counter(u64);
//!
//! impl StateMachine for Counter {
//!     fn apply(&mut self, _: &Context, _command: &[u8], reply: &mut BytesMut) {
//!         self.0 += 1;
//!         reply.extend_from_slice(&self.0.to_le_bytes());
//!     }
//!     fn query(&self, _: &Context, _query: &[u8], reply: &mut BytesMut) {
//!         reply.extend_from_slice(&self.0.to_le_bytes());
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let replica = Replica::builder(1)
//!     .members(["10.0.0.1:7101", "10.0.0.2:7101", "10.0.0.3:7101"])
//!     .directory("/var/lib/counter")
//!     .start(Counter(0))?;
//! let reply = replica.handle().propose(b"add").wait()?;
//! # Ok(()) }
//! ```
//!
//! Two more methods, [`StateMachine::checkpoint`] and [`StateMachine::restore`], let the log be trimmed;
//! without them it keeps everything.
//!
//! What a reply means: the command is durable at a majority of the replicas (at the [`Durability`]
//! they run with, which [`Replica::status`] shows) and applied here, exactly once, in the same order
//! everywhere. Without a reply there is a [`Failure`], which says whether the command certainly did
//! not happen ([`Failure::Rejected`]) or may have ([`Failure::Unknown`]).
//!
//! A client in another process turns to any replica that has a port for it ([`Builder::clients`]):
//! [`Client`] finds the leader, tries again safely, and has the same three outcomes.
//!
//! Many state machines in one process, each replicated for itself over shared connections: [`Host`].
//!
//! Included and replaceable: the TCP transport ([`Builder::transport`]), with the feature `rdma` one by
//! RDMA, the log on a file
//! ([`Builder::medium`]), limits and timers ([`Builder::adjust`]).
//!
//! Members change while the cluster runs: [`Handle::change_members`], and [`Builder::join`] for a replica
//! that is to be added.
//!
//! This crate does not protect its peer connections by encryption: keep the peer ports inside a
//! trusted network.
#![forbid(unsafe_code)]

mod builder;
mod host;
#[cfg(feature = "client")]
mod remote;

pub use builder::{Builder, Replica, StartError};
pub use bytes::{Bytes, BytesMut};
pub use host::{Host, ShardBuilder};
pub use quorate_consensus::batch::{put_item, take_item};
pub use quorate_consensus::{
    Address, Ballot, Change, Configuration, Genesis, NodeId, PROTOCOL_FIRST, PROTOCOL_NEWEST,
    PROTOCOL_RISES_TO, QuorumSizes, Refusal, RoleName, Slot, ValueKind,
};
pub use quorate_pmem_log::{self as log, Durability, LogOptions, MediumKind};
pub use quorate_replica::{
    CheckpointStatus, CheckpointTaken, CheckpointView, Consistency, Context, Counters, Failure,
    GroupOutcome, Handle, Latencies, MayLead, NOTIFICATIONS_MAX, Node, NodeError, NodeOptions,
    Notification, PeerStatus, Pending, PendingGroup, Reason, RecoverError, RecoveredCluster,
    Recovery, Replay, ReplayError, Replayed, Replier, Runner, StateMachine, StateReader, Status,
};
pub use quorate_transport::{self as transport, Transport};
#[cfg(feature = "rdma")]
pub use quorate_transport_rdma as rdma;
#[cfg(feature = "client")]
pub use remote::{CLIENTS_MAX, Client, ClientOptions, ConnectError, IN_FLIGHT_MAX};

/// A random number from the system's entropy, by way of the standard library's hash seeds.
#[must_use]
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() | 1
}
