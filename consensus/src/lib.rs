//! Multi-Paxos as a pure state machine: events in, effects out.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod configuration;
mod message;
mod types;

pub use configuration::{Configuration, Configurations, Genesis, Member};
pub use message::{Accept, Message, Row, RowFlags, Run};
pub use types::{Ballot, Entry, Incarnation, Nanos, NodeId, Slot, Value, ValueKind};
