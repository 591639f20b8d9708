//! The suite that every transport passes: the contract C1 to C5, tried with adversity.
//!
//! The suite builds endpoints through a function that the implementation gives it, drives them,
//! and reports case by case. It knows no implementation; what only sockets can do (absurd frames)
//! is tested where the sockets are.
//!
//! ```
//! use quorate_transport::{Transport, conformance, memory::MemoryNetwork};
//! use quorate_consensus::NodeId;
//!
//! let mut build = |count: u16| {
//!     let network = MemoryNetwork::new(1);
//!     let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
//!     let end = |id: &NodeId| {
//!         let peers: Vec<NodeId> = ids.iter().copied().filter(|peer| peer != id).collect();
//!         Box::new(network.endpoint(*id, &peers)) as Box<dyn Transport>
//!     };
//!     ids.iter().map(end).collect()
//! };
//! conformance::run(&mut build).assert_passed();
//! ```

mod cases;
mod lives;
mod rig;
mod streams;

use crate::Transport;
use std::fmt;

/// Builds so many endpoints for the replicas 1, 2, …, each with all others as peers. They may
/// still be connecting; nothing is registered on them.
pub type Build<'a> = dyn FnMut(u16) -> Vec<Box<dyn Transport>> + 'a;

/// How the cases of the suite went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// In the order they ran in.
    pub cases: Vec<Case>,
}

/// One scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// What is tried.
    pub name: &'static str,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Why it was not tried, if it was not: what it tries is not offered here.
    pub skipped: Option<&'static str>,
}

impl Report {
    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|case| case.failure.is_some())
    }

    /// For tests.
    ///
    /// # Panics
    /// If a case failed, with the whole report.
    pub fn assert_passed(&self) {
        assert!(self.failures().next().is_none(), "\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            match (&case.failure, case.skipped) {
                (Some(why), _) => writeln!(f, "FAILED  {}: {why}", case.name)?,
                (None, Some(why)) => writeln!(f, "skipped {}: {why}", case.name)?,
                (None, None) => writeln!(f, "ok      {}", case.name)?,
            }
        }
        Ok(())
    }
}

const LASTING: &str = "grants of this transport outlive the lane";

/// Runs all scenarios.
pub fn run(build: &mut Build<'_>) -> Report {
    run_matching(build, "")
}

/// Runs the scenarios whose name contains `part`.
pub fn run_matching(build: &mut Build<'_>, part: &str) -> Report {
    let chosen = cases::ALL.iter().filter(|(name, _)| name.contains(part));
    let tried = |name, failure| Case { name, failure, skipped: None };
    let mut cases: Vec<Case> = chosen.map(|(name, case)| tried(*name, case(build).err())).collect();
    let for_life: Vec<_> = cases::FOR_LIFE.iter().filter(|(name, _)| name.contains(part)).collect();
    let offered = if for_life.is_empty() { Ok(false) } else { lives::offered(build) };
    for (name, case) in for_life {
        cases.push(match &offered {
            Ok(true) => tried(name, case(build).err()),
            Ok(false) => Case { name, failure: None, skipped: Some(LASTING) },
            Err(why) => tried(name, Some(why.clone())),
        });
    }
    Report { cases }
}
