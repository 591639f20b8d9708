//! What one read of the socket brought: commands for the backend, and what was answered at once.

use super::session::{OwnedArgs, Queued};
use super::writer::Protocol;
use bytes::BytesMut;

/// Where one reply of the batch comes from, in order.
#[derive(Debug)]
pub(super) enum Slot {
    /// From the next so many bytes of [`Batch::locals`].
    Local(usize),
    /// From the backend.
    Store { protocol: Protocol, muted: bool },
    /// From the backend: a transaction, whose elements are distributed over the queue.
    Exec { protocol: Protocol, muted: bool, queue: Vec<Queued> },
    /// From the backend: versions of keys to remember, answered with `OK`.
    Watch { protocol: Protocol, muted: bool, keys: OwnedArgs },
}

/// Requests that are executed together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The commands for the backend, framed, back to back.
    pub(super) commands: BytesMut,
    /// How many there are.
    pub(super) count: usize,
    /// Whether one of them is a write.
    pub(super) writes: bool,
    /// Replies that are known already, in the protocol of the connection, back to back.
    pub(super) locals: BytesMut,
    pub(super) slots: Vec<Slot>,
    /// How many requests are in here.
    pub(super) requests: usize,
}

impl Batch {
    pub(super) fn has_commands(&self) -> bool {
        self.count > 0
    }

    pub(super) fn push_command(&mut self, slot: Slot, writes: bool) {
        self.slots.push(slot);
        self.count += 1;
        self.writes |= writes;
        self.requests += 1;
    }

    /// Adds what has been written to `locals` since it was `start` bytes long.
    pub(super) fn push_local(&mut self, start: usize) {
        self.requests += 1;
        let length = self.locals.len() - start;
        if let Some(Slot::Local(before)) = self.slots.last_mut() {
            *before += length;
        } else {
            self.slots.push(Slot::Local(length));
        }
    }

    /// Makes the batch empty; what it holds in memory stays for the next one.
    pub(super) fn clear(&mut self) {
        self.commands.clear();
        self.locals.clear();
        self.slots.clear();
        self.count = 0;
        self.requests = 0;
        self.writes = false;
    }

    /// Gives back memory after an unusually large batch.
    pub(super) fn shrink(&mut self, usual_bytes: usize) {
        if self.commands.capacity() > usual_bytes {
            self.commands = BytesMut::new();
        }
        if self.locals.capacity() > usual_bytes {
            self.locals = BytesMut::new();
        }
        self.slots.shrink_to(16);
    }
}
