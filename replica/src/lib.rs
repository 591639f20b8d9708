//! The replica: the loop that owns time, one thread and the state machine, and wires the consensus
//! core to a transport and a log.
//!
//! [`Node`] is one turn of that loop after another and takes time as an argument; [`Runner`] gives it
//! a thread that spins while there is work and then sleeps. [`Handle`] is the way in for clients of
//! the same process: a bounded queue, three outcomes (a reply, [`Failure::Rejected`],
//! [`Failure::Unknown`]), no fourth. [`StateMachine`] is what a user implements.
//!
//! This crate does not know what carries the messages, which medium keeps the log, or what the
//! commands mean; it does not use async code on the replica's thread, and spawns nothing per command.
//!
//! Rules that hold here and are tested:
//! * no lock is taken (but by a state machine that is read on other threads, see [`StateReader`]), no
//!   task spawned and, in the steady state, no memory allocated per command on
//!   the replica's thread (`tests/tests/allocations.rs`);
//! * every queue is bounded by a named constant and says what happens when it is full;
//! * a reply leaves only after its command is durable at a majority and applied here.
#![forbid(unsafe_code)]

mod arena;
mod checkpoint;
mod founding;
mod front;
mod host;
mod lanes;
mod leased;
mod machine;
mod node;
mod options;
mod origin;
mod recover;
mod relay;
mod replay;
mod replies;
mod runner;
mod status;
mod witness;

pub use checkpoint::{CheckpointSteps, IMAGE_PIECE_BYTES};
pub use front::{
    Consistency, Failure, Handle, NOTIFICATIONS_MAX, Notification, Pending, PendingCheckpoint,
    PendingGroup, REQUEST_BYTES_MAX, REQUESTS_MAX, Reason, Replier,
};
pub use host::HostRunner;
pub use machine::{CheckpointView, Context, REPLY_BYTES_MAX, StateMachine, StateReader};
pub use node::{Clock, Node, NodeError, Turn};
pub use options::{MayLead, NodeOptions};
pub use recover::{RecoverError, RecoveredCluster, Recovery};
pub use relay::{GROUPS_MAX, GroupOutcome};
pub use replay::{Replay, ReplayError, Replayed};
pub use runner::Runner;
pub use status::{
    CheckpointStatus, CheckpointTaken, Counters, Latencies, PeerStatus, Receiving, Status,
};
