//! Multi-Paxos as a pure state machine: events in, effects out.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acceptor;
pub mod batch;
mod configuration;
mod message;
mod paxos;
mod role;
pub mod session;
mod settings;
mod types;
mod window;

pub use acceptor::{Persist, PersistNumber};
pub use configuration::{Configuration, Configurations, Genesis, Member};
pub use message::{Accept, Message, Row, RowFlags, Run};
pub use paxos::{Gap, LogRead, Notice, Paxos, ReadReady, Restored, Shipment};
pub use role::RoleName;
pub use settings::Settings;
pub use types::{Ballot, Entry, Incarnation, Nanos, NodeId, Slot, Value, ValueKind};
