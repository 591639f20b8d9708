//! The key-value store as a replicated state machine.

use crate::kv::{Limits, Store};
use quorate::{BytesMut, Context, StateMachine};

/// [`Store`] behind the trait that replicas drive.
#[derive(Debug)]
pub struct KvMachine {
    store: Store,
}

impl KvMachine {
    /// An empty store.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { store: Store::new(limits) }
    }
}

impl StateMachine for KvMachine {
    fn apply(&mut self, context: &Context, command: &[u8], reply: &mut BytesMut) {
        self.store.apply(context.time_ms, command, reply);
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut) {
        self.store.query(context.time_ms, query, reply);
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        self.store.next_deadline_ms()
    }

    fn advance(&mut self, time_ms: u64) {
        self.store.advance(time_ms);
    }
}
