//! The real consensus core under a model checker: every schedule within stated bounds.
//!
//! The sources of `consensus` (as the simulator compiles them, so that a known mistake can be planted) run
//! under [stateright]: nothing of the protocol is written a second time. A state is three replicas, what
//! is on their disks, what is on its way, and the history of what was accepted. [`Cluster`] says which
//! events are possible in it, and [`Bounds`] how many of each.
//!
//! What can happen, what is left out and why nothing is lost by it, and what must hold, is in
//! `docs/model.md`, with the number of states.
#![forbid(unsafe_code)]

mod bounds;
mod cluster;
mod history;
mod node;
mod run;

pub use bounds::{Bounds, Rows};
pub use cluster::{Action, Cluster, State};
pub use run::{Outcome, run, unlike};
