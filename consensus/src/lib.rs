//! Multi-Paxos as a pure state machine: events in, effects out.
//!
//! [`Paxos`] is one replica's part in the protocol. It decides a sequence of values, one for each
//! [`Slot`], that is the same on every replica and survives the loss of any minority. It reads no
//! clock, draws no randomness but from a seed, opens nothing and spawns nothing: the same events in
//! the same order give the same effects. What tests drive is what production runs.
//!
//! # The model
//! Replicas stop and come back, and do not lie. Links keep the order of what is sent, or break and
//! say so; disks keep what a successful sync covered. Nothing is assumed of clocks: timers decide
//! when an election is tried, never what is chosen.
//!
//! A replica is acceptor, proposer and learner at once. As acceptor it promises ballots and accepts
//! slots in order within a [`Ballot`], so that one number says its whole vote. That vote is not a
//! message: each replica publishes a [`Row`] to each peer, and a new row overwrites the one before.
//! A leader ships [`Accept`] records; everything else is a [`Message`]. The rules have numbers, and
//! reasons, in `docs/spec/paxos.md`.
//!
//! # The run loop
//! Events go in by the `on_...` methods, and by [`Paxos::propose`] and [`Paxos::read_index`]. After
//! each, the caller lets the effects out:
//!
//! ```text
//! poll_persist                   -> append to the log, in this order; later: on_persisted(number)
//! next_shipment(peer)            -> write the record to the peer, then shipped(peer, last)
//! row_due(peer), row(peer)       -> write the row to the peer, then row_published(peer)
//! poll_message                   -> send on the control lane
//! next_to_apply                  -> apply, then on_applied(slot); not in memory: read the own log
//! start_reads, poll_read         -> answer reads once the slot they name is applied
//! poll_log_read                  -> read the own log for a peer, then on_log_read
//! poll_notice                    -> tell the operator
//! poll_timeout                   -> call on_time then, if nothing happens before
//! ```
//!
//! Records and rows are asked for when their link has room, and made from the newest state: there is
//! no outbox between the core and the links, and after a link broke there is nothing to take back.
//! If a link has no room, what was due stays due.
//!
//! # Two rules bind the caller
//! * *Drain rule.* After each event, [`Paxos::poll_persist`] and [`Paxos::poll_message`] are called
//!   until they return nothing, before the thread rests. That is what bounds these two queues.
//! * *Durability rule.* Persists become durable in the order in which they came out, and
//!   [`Paxos::on_persisted`] is told no sooner. What must not leave before is held back in here;
//!   what comes out may leave at once. A log that failed is reported by [`Paxos::on_log_failure`],
//!   after which this replica votes no more.
//!
//! Events that a caller must not keep back: [`Paxos::on_link_down`] and [`Paxos::on_link_up`], each
//! time that a link lost what was in flight. [`Gap`] from [`Paxos::on_accept`] means: reset the link.
//!
//! # Around it
//! [`batch`] is the format of the values that hold commands, [`session`] the replicated table that
//! makes each of them take effect exactly once. Both are used by whoever applies, not by [`Paxos`],
//! which does not look into values. [`Restored`] is what a log gives back at a start; [`Genesis`] is
//! the founding document, which names who votes.
//!
//! # What it does not do
//! It does not know what carries records, keeps the log or applies commands. It does not retry on
//! behalf of clients, does not check checksums (whoever receives bytes does), and does not found
//! clusters. Checkpoints, leases and hand-over of leadership are not there yet;
//! [`Configurations`] already answers all questions about quorums slot by slot.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acceptor;
pub mod batch;
pub mod buggify;
mod configuration;
pub mod contract;
mod message;
mod mutant;
mod paxos;
mod role;
pub mod session;
mod settings;
mod types;
mod window;

pub use acceptor::{Persist, PersistNumber};
pub use buggify::Whims;
pub use configuration::{
    Address, Configuration, ConfigurationError, Configurations, Genesis, Member, PROTOCOL_FIRST,
    PROTOCOL_NEWEST, PROTOCOL_RISES_TO, PROTOCOL_WITNESSES, QuorumSizes,
};
pub use message::{Accept, Message, Row, RowFlags, Run};
#[cfg(feature = "mutants")]
pub use mutant::unplant;
pub use mutant::{Mistake, Mutant, plant};
pub use paxos::{
    Change, Gap, Lag, LogRead, Notice, Paxos, ReadReady, Refusal, Repair, Restored, Shipment,
    TransferError,
};
pub use role::RoleName;
pub use settings::Settings;
pub use types::{Ballot, Entry, Incarnation, Nanos, NodeId, Slot, Value, ValueKind};
