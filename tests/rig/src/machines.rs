//! State machines that say what came to them.

use bytes::BytesMut;
use quorate_replica::{Context, StateMachine};
use std::fmt::Write;
use std::sync::{Arc, Mutex};

/// Takes everything and says nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: &Context, _: &[u8], _: &mut BytesMut) {}

    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}
}

/// Keeps the commands that it was told; its clones are the same story.
#[derive(Clone, Default, Debug)]
pub struct Story(Arc<Mutex<Vec<Vec<u8>>>>);

impl Story {
    /// The commands, in the order in which they were applied.
    #[must_use]
    pub fn told(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

impl StateMachine for Story {
    fn apply(&mut self, _: &Context, command: &[u8], _: &mut BytesMut) {
        self.0.lock().unwrap().push(command.to_vec());
    }

    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}
}

/// Counts commands and answers with their number, in decimal digits and without an allocation; at
/// `bang` it panics.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, context: &Context, command: &[u8], reply: &mut BytesMut) {
        assert_ne!(command, b"bang", "a state machine with a defect");
        self.0 += 1;
        self.query(context, b"", reply);
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        write!(reply, "{}", self.0).unwrap();
    }
}
