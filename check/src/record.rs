//! Recording a history while it happens, one log for each client, no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::history::{Operation, Return};

/// A clock that ticks once for each event, shared by the clients of one process.
///
/// Ticks are unique, and an event that happened before another (in any thread) has the smaller
/// one: exactly the order that linearizability is about. Clients in several processes need a clock
/// that all of them see, such as the machine's monotonic clock: see [`ClientLog::call_at`].
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// A clock whose first tick is 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next tick.
    pub fn tick(&self) -> u64 {
        // One total order of all events is the point, hence the strongest ordering.
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// Names an operation of a [`ClientLog`] that was called and has no outcome yet.
#[derive(Debug)]
#[must_use = "an operation without an outcome counts as unknown"]
pub struct Ticket(usize);

/// What one client did. Each client (thread, task) owns its own; [`History::merge`] joins them.
///
/// Several operations may be in flight at once. One that is given no outcome is *unknown*.
///
/// [`History::merge`]: crate::History::merge
#[derive(Debug)]
pub struct ClientLog<I, O> {
    client: u32,
    clock: Clock,
    operations: Vec<Option<Operation<I, O>>>,
}

impl<I, O> ClientLog<I, O> {
    /// An empty log.
    pub fn new(client: u32, clock: Clock) -> Self {
        ClientLog { client, clock, operations: Vec::new() }
    }

    /// Notes that `input` is about to be sent. Call it before the first byte leaves.
    pub fn call(&mut self, input: I) -> Ticket {
        let now = self.clock.tick();
        self.call_at(now, input)
    }

    /// Notes the answer. Call it after the last byte came.
    pub fn returned(&mut self, ticket: Ticket, output: O) {
        let now = self.clock.tick();
        self.returned_at(now, ticket, output);
    }

    /// As [`call`](Self::call), at a time of the caller's own clock. Do not mix the two clocks.
    pub fn call_at(&mut self, now: u64, input: I) -> Ticket {
        let operation = Operation { client: self.client, call: now, input, ret: None };
        self.operations.push(Some(operation));
        Ticket(self.operations.len() - 1)
    }

    /// As [`returned`](Self::returned), at a time of the caller's own clock.
    pub fn returned_at(&mut self, now: u64, ticket: Ticket, output: O) {
        if let Some(Some(operation)) = self.operations.get_mut(ticket.0) {
            operation.ret = Some(Return { at: now, output });
        }
    }

    /// Notes that the outcome will never be learned: it may take effect at any time, or never.
    pub fn unknown(&mut self, ticket: Ticket) {
        // The operation already stands without an outcome; the ticket is spent.
        drop(ticket);
    }

    /// Notes that the operation certainly did not and will not happen: it leaves the history.
    pub fn rejected(&mut self, ticket: Ticket) {
        if let Some(operation) = self.operations.get_mut(ticket.0) {
            *operation = None;
        }
    }

    /// Number of operations recorded, the rejected ones included.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub(crate) fn into_operations(self) -> impl Iterator<Item = Operation<I, O>> {
        self.operations.into_iter().flatten()
    }
}
