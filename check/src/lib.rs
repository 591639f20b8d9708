//! A linearizability checker.
//!
//! A test records what its clients asked, what they were answered and when ([`ClientLog`]), and asks
//! [`check`] whether some order of the operations explains every answer: an order that respects
//! real time (an operation that returned before another was called comes first) and that the
//! sequential [`Model`] accepts. The answer is a [`Verdict`]: *linearizable*, *violation* with a
//! small counter-example that prints as a time-line, or *undecided* when a named limit ran out.
//! Undecided is never a pass: a test that meets it must be given more keys or fewer clients.
//!
//! ```
//! use quorate_check::{ClientLog, Clock, History, Kv, KvInput, KvOutput, Limits, Verdict, check};
//!
//! let clock = Clock::new();
//! let mut alice = ClientLog::new(1, clock.clone());
//! let mut bob = ClientLog::new(2, clock);
//!
//! let write = alice.call(KvInput::set("x", "1"));
//! alice.returned(write, KvOutput::Ok);
//! let read = bob.call(KvInput::get("x"));
//! bob.returned(read, KvOutput::absent()); // Stale: the write had returned.
//!
//! let history = History::merge([alice, bob]);
//! let verdict = check(&Kv, &history, &Limits::default());
//! assert!(matches!(verdict, Verdict::Violation(_)), "{verdict}");
//! ```
//!
//! # What it does
//!
//! The history is cut by key (linearizability is local: Herlihy and Wing, 1990, theorem 1), so
//! operations on several keys at once are outside the model. Each key is searched depth first as
//! Wing and Gong (1993) do, with the memory of visited configurations and the just-in-time order
//! of Lowe ("Testing for linearizability", 2017): nothing is linearized before a return forces it.
//! The module `search` says which branches are skipped and why that loses nothing.
//!
//! An operation without an answer may take effect at any time after its call, or never.
//!
//! # What it does not do
//!
//! It checks finished histories only, uses one thread, and keeps a 128-bit fingerprint of a visited
//! configuration in place of the configuration: two that collide (odds below 1 in 10²⁰ at the
//! default limit) could turn a legal history into a violation, never hide one in a pass.

#![forbid(unsafe_code)]

mod blob;
mod fingerprint;
pub mod generate;
mod history;
mod kv;
mod minimal;
mod model;
mod record;
mod search;
mod verdict;

pub use blob::{Blob, BlobError};
pub use history::{History, HistoryError, Operation, Return};
pub use kv::{Kv, KvInput, KvOutput, KvParseError};
pub use minimal::Minimal;
pub use model::{Model, OperationOf};
pub use record::{ClientLog, Clock, Ticket};
pub use search::{DEFAULT_CONFIGURATIONS, DEFAULT_STATE_BYTES, Limits};
pub use verdict::{Undecided, Verdict, check};
