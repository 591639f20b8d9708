//! What a sequential specification has to say.

use std::fmt;
use std::hash::Hash;

use crate::history::Operation;

/// An operation of this model.
pub type OperationOf<M> = Operation<<M as Model>::Input, <M as Model>::Output>;

/// A sequential specification: what an object answers when operations come one after the other.
///
/// An operation touches one partition only ([`Model::partition`]); partitions are checked apart.
pub trait Model: Sized {
    /// Names a partition, for example a key.
    type Key: Ord + Clone + fmt::Display + fmt::Debug;
    /// What a client asked.
    type Input: Clone + PartialEq + fmt::Display + fmt::Debug;
    /// What it was answered.
    type Output: Clone + fmt::Display + fmt::Debug;
    /// The state of one partition. Equal states must hash alike and behave alike for ever.
    type State: Clone + Eq + Hash + fmt::Debug;

    /// The partition that an operation belongs to.
    fn partition(&self, input: &Self::Input) -> Self::Key;

    /// The state of a partition before its first operation.
    fn init(&self) -> Self::State;

    /// The state after `input`, or `None` when the object could not have given this `output`.
    ///
    /// With `output` absent the outcome was never learned: the answer is the state that the
    /// operation leaves if it runs now. An operation that would do nothing (a failed
    /// compare-and-swap) returns an equal state.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// Whether the operation, given its answer, leaves *every* state as it is: a read, or a
    /// compare-and-swap that failed. Writing the value that happens to be there does not count.
    ///
    /// Reads are what makes a search fast; saying `false` is always safe.
    fn is_read(&self, _input: &Self::Input, _output: Option<&Self::Output>) -> bool {
        false
    }

    /// Bytes that a state keeps on the heap; counted against
    /// [`Limits::state_bytes`](crate::Limits::state_bytes).
    fn heap_bytes(&self, _state: &Self::State) -> usize {
        0
    }

    /// Groups of operations (as indices) that a counter-example can do without.
    ///
    /// Dropping one group, or several, must keep every linearizable history linearizable,
    /// whatever state it begins in; otherwise the counter-example would show a violation that
    /// dropping made. A read can always go; a write can go only with all that saw its value. The
    /// default offers nothing, which is safe: counter-examples then stay longer.
    fn droppable(&self, _operations: &[OperationOf<Self>]) -> Vec<Vec<usize>> {
        Vec::new()
    }
}
