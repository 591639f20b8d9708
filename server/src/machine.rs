//! The key-value store as a replicated state machine.

use crate::kv::{FrozenView, Limits, Store};
use quorate::{BytesMut, CheckpointView, Context, StateMachine, StateReader};
use std::io::{self, Read};
use std::sync::{Arc, PoisonError, RwLock};

/// [`Store`] behind the trait that replicas drive.
#[derive(Debug)]
pub struct KvMachine {
    store: Held,
}

/// Without leases nobody but the replica's thread looks at the store, and it takes no lock.
#[derive(Debug)]
enum Held {
    Alone(Box<Store>),
    Shared(Arc<RwLock<Store>>),
}

impl KvMachine {
    /// An empty store.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { store: Held::Alone(Box::new(Store::new(limits))) }
    }

    /// An empty store that is read on other threads too where the replica holds a lease.
    #[must_use]
    pub fn shared(limits: Limits) -> Self {
        Self { store: Held::Shared(Arc::new(RwLock::new(Store::new(limits)))) }
    }

    /// Shows the store as it is.
    pub fn read<T>(&self, with: impl FnOnce(&Store) -> T) -> T {
        match &self.store {
            Held::Alone(store) => with(store),
            Held::Shared(store) => with(&store.read().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn change<T>(&mut self, with: impl FnOnce(&mut Store) -> T) -> T {
        match &mut self.store {
            Held::Alone(store) => with(store),
            Held::Shared(store) => with(&mut store.write().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// A store as it was, on its way into a checkpoint.
struct KvView(FrozenView);

impl CheckpointView for KvView {
    fn next_piece(&mut self, out: &mut BytesMut) -> bool {
        self.0.next_piece(out)
    }
}

struct KvReader(Arc<RwLock<Store>>);

impl StateReader for KvReader {
    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut) -> bool {
        // A poisoned lock: the replica's thread ended in the middle of a command.
        let Ok(store) = self.0.read() else { return false };
        store.query(context.time_ms, query, reply);
        true
    }
}

impl StateMachine for KvMachine {
    fn apply(&mut self, context: &Context, command: &[u8], reply: &mut BytesMut) {
        self.change(|store| store.apply(context.time_ms, command, reply));
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut) {
        self.read(|store| store.query(context.time_ms, query, reply));
    }

    fn reader(&self) -> Option<Arc<dyn StateReader>> {
        match &self.store {
            Held::Alone(_) => None,
            Held::Shared(store) => Some(Arc::new(KvReader(Arc::clone(store)))),
        }
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        self.read(Store::next_deadline_ms)
    }

    fn advance(&mut self, time_ms: u64) {
        self.change(|store| store.advance(time_ms));
    }

    fn checkpoint(&self) -> Option<Box<dyn CheckpointView>> {
        let view = self.read(Store::freeze).into_view();
        Some(Box::new(KvView(view)))
    }

    fn restore(&mut self, image: &mut dyn Read) -> io::Result<()> {
        let restored = Store::restore_from(self.read(Store::limits), image);
        let restored =
            restored.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // What was there is given back when nobody waits for the lock any more.
        let before = self.change(|store| std::mem::replace(store, restored));
        drop(before);
        Ok(())
    }
}
