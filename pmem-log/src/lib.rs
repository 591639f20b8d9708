//! Quorate's durable log: what an acceptor promised and accepted, kept in one ordered stream.
//!
//! [`Log::append`] stages a [`Record`], [`Log::flush`] hands all that is staged to the medium, and
//! [`Log::durable`] tells how far it got. A replica answers for a record only after that.
//!
//! ```
//! use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot, Value};
//! use quorate_pmem_log::{Log, LogOptions, MediumKind, Record};
//! use std::sync::Arc;
//!
//! let options = LogOptions {
//!     directory: "/var/lib/quorate/log".into(), // Not looked at by this medium.
//!     medium: MediumKind::Memory,
//!     node: NodeId(1),
//!     segment_bytes: 1 << 20,
//! };
//! let (mut log, recovered) = Log::open(&options, Incarnation(42), Arc::new(|| {}))?;
//! assert_eq!(recovered.last_slot, Slot::ZERO);
//!
//! let ballot = Ballot { round: 1, node: NodeId(1) };
//! log.append(&Record::Promise(ballot), Slot::ZERO)?;
//! let entry = Entry { slot: Slot(1), ballot, value: Value::noop() };
//! let lsn = log.append(&Record::Entry(entry.clone()), Slot::ZERO)?;
//! log.flush()?;
//! log.wait_durable(lsn)?; // A replica polls `durable` instead.
//!
//! let mut entries = Vec::new();
//! log.read(Slot(1), 1 << 20, &mut entries)?;
//! assert_eq!(entries, [entry]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it keeps
//! - A record that `durable` reached survives what [`Log::durability`] says. One flush is one
//!   persist, whatever was staged.
//! - What is read back is what was appended: every byte is covered by a checksum, and what does not
//!   match is an error, never data.
//! - Recovery tells a torn tail (never acknowledged, cut) from damage (acknowledged, reported slot
//!   by slot). The argument is at the top of `scan.rs`, the bytes are in `docs/log-format.md`.
//! - After a failed sync the log is poisoned: it never acknowledges again. A full disk is not a
//!   failure: [`LogError::Full`] says to try again, and clears by itself.
//!
//! Beside the log, on the same medium, a [`CheckpointStore`] keeps images of the state machine, so that
//! the log can be trimmed.
//!
//! # What it does not
//! It does not know what is chosen and does not copy itself anywhere. Damage in the very last batch before a crash looks like a torn tail: nothing written later is there to
//! prove that it had been durable.
#![deny(unsafe_code)]

mod api;
mod checkpoint;
mod direct;
mod error;
mod format;
mod group;
mod index;
mod inspect;
mod log;
mod look;
mod medium;
mod pool;
mod read;
mod recovery;
mod scan;
mod segments;
mod superblock;
mod upkeep;

pub use api::{
    Boot, Damage, Durability, End, Identity, LogOptions, LogStatistics, Lsn, MediumKind, Record,
    Recovered,
};
pub use checkpoint::{
    BLOCK_BYTES, BLOCK_PAYLOAD_BYTES, Checkpoint, CheckpointError, CheckpointId, CheckpointReader,
    CheckpointReceiver, CheckpointStore, CheckpointWriter, Finished,
};
pub use error::{Fault, LogError, OpenError};
pub use group::SyncSteps;
pub use inspect::{
    Cut, RecordSummary, Report, Truncation, export, inspect, inspect_on, truncation, verify,
};
pub use log::Log;
pub use look::LogReader;
pub use medium::{Area, FileMedium, MappedMedium, Medium, Profile, open_medium};
pub use pool::SyncPool;
pub use upkeep::Upkeep;
