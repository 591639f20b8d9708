//! The answer to "is this history linearizable?".

use std::collections::BTreeMap;
use std::fmt;

use crate::history::History;
use crate::minimal::{self, Minimal};
use crate::model::{Model, OperationOf};
use crate::search::{Limits, Outcome, search};

/// What [`check`] found.
#[derive(Clone, Debug)]
#[must_use]
pub enum Verdict<M: Model> {
    /// Every partition has an order that explains all answers.
    Linearizable {
        /// Operations checked.
        operations: usize,
    },
    /// A partition has none. The first such partition in the order of keys.
    Violation(Box<Minimal<M>>),
    /// A limit ran out in some partition, and no other one has a violation.
    Undecided(Undecided),
}

/// Why a check came to no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecided {
    /// The partition.
    pub partition: String,
    /// Its operations.
    pub operations: usize,
    /// The field of [`Limits`] that ran out.
    pub limit: &'static str,
}

impl<M: Model> Verdict<M> {
    /// Whether the history is linearizable. Undecided is not.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Verdict::Linearizable { .. })
    }
}

impl<M: Model> fmt::Display for Verdict<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Linearizable { operations } => {
                write!(f, "linearizable: {operations} operations")
            }
            Verdict::Violation(minimal) => minimal.fmt(f),
            Verdict::Undecided(Undecided { partition, operations, limit }) => write!(
                f,
                "undecided: the {operations} operations on {partition} used up Limits::{limit}; \
                 spread them over more keys, or let fewer clients run at once"
            ),
        }
    }
}

/// Checks a history against a model, partition by partition.
///
/// The same history gives the same verdict, and the same counter-example, on every machine.
/// `examples/throughput.rs` measures how fast; what is slow is many clients at once on one key.
pub fn check<M: Model>(
    model: &M,
    history: &History<M::Input, M::Output>,
    limits: &Limits,
) -> Verdict<M> {
    let mut partitions: BTreeMap<M::Key, Vec<OperationOf<M>>> = BTreeMap::new();
    for operation in history.operations() {
        partitions.entry(model.partition(&operation.input)).or_default().push(operation.clone());
    }
    let mut undecided = None;
    for (key, operations) in partitions {
        match search(model, model.init(), &operations, None, limits) {
            Outcome::Linearized(_) => {}
            Outcome::Stuck(blocked) => {
                let minimal = minimal::minimise(model, key, operations, blocked, limits);
                return Verdict::Violation(Box::new(minimal));
            }
            Outcome::GaveUp(limit) => {
                undecided.get_or_insert(Undecided {
                    partition: key.to_string(),
                    operations: operations.len(),
                    limit,
                });
            }
        }
    }
    match undecided {
        Some(undecided) => Verdict::Undecided(undecided),
        None => Verdict::Linearizable { operations: history.len() },
    }
}
