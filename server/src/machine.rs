//! The key-value store as a replicated state machine.

use crate::kv::{FrozenView, Limits, Store};
use quorate::{BytesMut, CheckpointView, Context, StateMachine};
use std::io::{self, Read};

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

    /// The store as it is.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }
}

/// A store as it was, on its way into a checkpoint.
struct KvView(FrozenView);

impl CheckpointView for KvView {
    fn next_piece(&mut self, out: &mut BytesMut) -> bool {
        self.0.next_piece(out)
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

    fn checkpoint(&self) -> Option<Box<dyn CheckpointView>> {
        Some(Box::new(KvView(self.store.freeze().into_view())))
    }

    fn restore(&mut self, image: &mut dyn Read) -> io::Result<()> {
        let restored = Store::restore_from(self.store.limits(), image);
        self.store = restored.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(())
    }
}
