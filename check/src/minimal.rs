//! Counter-examples small enough to read.

use std::fmt;

use crate::history::Operation;
use crate::model::{Model, OperationOf};
use crate::search::{Limits, Outcome, search};

/// Searches that the shrinking of one counter-example may spend.
const MAX_SHRINK_SEARCHES: usize = 4_000;

/// A counter-example of at most this many operations is not cut further: the writes that it
/// begins with tell more than the state that they lead to.
const READABLE: usize = 12;

/// Quiet moments, from the latest back, at which a cut is tried.
const MAX_CUTS: usize = 32;

/// Columns of the time-line at most.
const MAX_COLUMNS: usize = 72;

/// A part of a history, small, that no order of operations explains.
///
/// It was made from the shortest prefix that has no explanation, by steps that cannot make a
/// violation where there was none: leaving out operations as [`Model::droppable`] allows, and
/// beginning at a quiet moment at which only one state was possible.
#[derive(Clone, Debug)]
pub struct Minimal<M: Model> {
    /// The partition.
    pub key: M::Key,
    /// The state in which the operations begin.
    pub initial: M::State,
    /// The operations, in order of call.
    pub operations: Vec<OperationOf<M>>,
    /// Index of the operation that finds no place before its return: where the search ends. The
    /// fault may lie in any of the others.
    pub blocked: usize,
    /// Operations of the partition in the whole history.
    pub out_of: usize,
}

/// Shrinks the violation of one partition, whose search ended at `blocked`.
pub(crate) fn minimise<M: Model>(
    model: &M,
    key: M::Key,
    operations: Vec<OperationOf<M>>,
    blocked: usize,
    limits: &Limits,
) -> Minimal<M> {
    let out_of = operations.len();
    let initial = model.init();
    let mut minimal = Minimal { key, initial, operations, blocked, out_of };
    keep_prefix(&mut minimal);
    let mut shrinker = Shrinker { model, limits, searches: MAX_SHRINK_SEARCHES, minimal };
    shrinker.drop_groups();
    if shrinker.minimal.operations.len() > READABLE && shrinker.cut() {
        shrinker.drop_groups();
    }
    shrinker.minimal
}

/// Keeps what was called before the return at which the search ended: nothing later took part.
fn keep_prefix<M: Model>(minimal: &mut Minimal<M>) {
    let Some(end) = minimal.operations[minimal.blocked].ret.as_ref().map(|ret| ret.at) else {
        return;
    };
    let mut index = 0;
    let mut blocked = 0;
    minimal.operations.retain(|operation| {
        let keep = operation.call <= end;
        if index < minimal.blocked && keep {
            blocked += 1;
        }
        index += 1;
        keep
    });
    minimal.blocked = blocked;
}

struct Shrinker<'a, M: Model> {
    model: &'a M,
    limits: &'a Limits,
    searches: usize,
    minimal: Minimal<M>,
}

impl<M: Model> Shrinker<'_, M> {
    /// Leaves out groups of operations, many at a time first, as long as it stays a violation.
    fn drop_groups(&mut self) {
        let mut groups = self.groups();
        let mut chunk = groups.len();
        while chunk > 0 {
            let mut at = 0;
            while at < groups.len() {
                let end = (at + chunk).min(groups.len());
                if self.drop_all(&groups[at..end]) {
                    groups = self.groups();
                } else {
                    at = end;
                }
            }
            chunk = (chunk / 2).min(groups.len());
        }
    }

    fn groups(&self) -> Vec<Vec<usize>> {
        self.model.droppable(&self.minimal.operations)
    }

    fn drop_all(&mut self, groups: &[Vec<usize>]) -> bool {
        let mut keep = vec![true; self.minimal.operations.len()];
        for &index in groups.iter().flatten() {
            keep[index] = false;
        }
        let operations: Vec<_> = (self.minimal.operations.iter().zip(&keep))
            .filter(|(_, keep)| **keep)
            .map(|(operation, _)| operation.clone())
            .collect();
        if operations.len() == self.minimal.operations.len() {
            return false;
        }
        match self.search(self.minimal.initial.clone(), &operations, None) {
            Some(Outcome::Stuck(blocked)) => {
                self.minimal.operations = operations;
                self.minimal.blocked = blocked;
                keep_prefix(&mut self.minimal);
                true
            }
            _ => false,
        }
    }

    /// Begins at the latest moment at which nothing was in flight and the state was certain.
    fn cut(&mut self) -> bool {
        let operations = self.minimal.operations.clone();
        for at in quiet_moments(&operations).into_iter().rev().take(MAX_CUTS) {
            let (before, after) = operations.split_at(at);
            let initial = self.minimal.initial.clone();
            let Some(Outcome::Linearized(state)) = self.search(initial.clone(), before, None)
            else {
                continue;
            };
            // Another state at that moment would make the cut an accusation without ground.
            let other = self.search(initial, before, Some(&state));
            let rest = self.search(state.clone(), after, None);
            if let (Some(Outcome::Stuck(_)), Some(Outcome::Stuck(blocked))) = (other, rest) {
                self.minimal.initial = state;
                self.minimal.operations = after.to_vec();
                self.minimal.blocked = blocked;
                return true;
            }
        }
        false
    }

    fn search(
        &mut self,
        initial: M::State,
        operations: &[OperationOf<M>],
        avoid: Option<&M::State>,
    ) -> Option<Outcome<M::State>> {
        self.searches = self.searches.checked_sub(1)?;
        Some(search(self.model, initial, operations, avoid, self.limits))
    }
}

/// Indices (in order of call) before which all operations had returned.
fn quiet_moments<I, O>(operations: &[Operation<I, O>]) -> Vec<usize> {
    let mut moments = Vec::new();
    let mut busy_until = 0;
    for (index, operation) in operations.iter().enumerate() {
        if index > 0 && busy_until < operation.call {
            moments.push(index);
        }
        match &operation.ret {
            Some(ret) => busy_until = busy_until.max(ret.at),
            None => break,
        }
    }
    moments
}

impl<M: Model> fmt::Display for Minimal<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.operations.len();
        writeln!(f, "not linearizable: {}, {shown} of {} operations", self.key, self.out_of)?;
        writeln!(f, "begins with {:?}", self.initial)?;
        let words: Vec<String> = self.operations.iter().map(ToString::to_string).collect();
        let width = words.iter().map(|words| words.chars().count()).max().unwrap_or(0);
        let scale = Scale::new(&self.operations);
        for (index, operation) in self.operations.iter().enumerate() {
            let mut bar = scale.bar(operation);
            if index == self.blocked {
                bar.push_str(" <- finds no place");
            }
            let bar = bar.trim_end();
            writeln!(f, "client {:<4} {:width$}  {bar}", operation.client, words[index])?;
        }
        f.write_str("(a bar runs from call to return; `...` is an outcome never learned)")
    }
}

/// Maps times to columns: the events in their order, evenly, squeezed when they are many.
struct Scale {
    times: Vec<u64>,
    columns: usize,
}

impl Scale {
    fn new<I, O>(operations: &[Operation<I, O>]) -> Self {
        let returns = operations.iter().filter_map(|operation| operation.ret.as_ref());
        let mut times: Vec<u64> =
            returns.map(|ret| ret.at).chain(operations.iter().map(|o| o.call)).collect();
        times.sort_unstable();
        times.dedup();
        let columns = MAX_COLUMNS.min(times.len() * 3);
        Scale { times, columns }
    }

    fn column(&self, time: u64) -> usize {
        let rank = self.times.partition_point(|&other| other < time);
        rank * self.columns / self.times.len().max(1)
    }

    fn bar<I, O>(&self, operation: &Operation<I, O>) -> String {
        let from = self.column(operation.call);
        let (to, end) = match &operation.ret {
            Some(ret) => (self.column(ret.at), "|"),
            None => (self.columns, "..."),
        };
        let indent = " ".repeat(from);
        let line = "-".repeat(to.saturating_sub(from + 1));
        format!("{indent}|{line}{end}{}", " ".repeat(self.columns.saturating_sub(to)))
    }
}
