//! [`StateMachine`]: what a user implements.

use bytes::BytesMut;
use quorate_consensus::Slot;

/// What a command or a query may know about the moment it runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// The slot that holds the command; for a query, the newest one applied.
    pub slot: Slot,
    /// For a command: the time stamp that the leader gave its batch, in milliseconds since 1970. It
    /// is part of the log, the same on every replica, and never goes back. For a query: the clock of
    /// the replica that answers, never before the newest batch; good for display only.
    pub time_ms: u64,
}

/// Replies of one group of commands (what one replica sent on together) at the most, in bytes; the
/// ones that come after are replaced by empty ones. The same on every replica, since replies are
/// replicated outcomes.
pub const REPLY_BYTES_MAX: usize = 64 << 20;

/// The thing that is replicated. Every replica holds one and feeds it the same commands in the same
/// order, so it must be deterministic: no clocks, no randomness, no iteration in hash order that
/// shows in a reply.
pub trait StateMachine: Send + 'static {
    /// Applies a chosen command and appends the reply for whoever sent it. Called exactly once for
    /// each command. Replies are dropped where one submission has more than [`REPLY_BYTES_MAX`] of
    /// them; an empty reply is also what a client sees then. Bad commands are answered by an error of the application's own making.
    fn apply(&mut self, context: &Context, command: &[u8], reply: &mut BytesMut);

    /// Answers a question without changing anything, and appends the answer.
    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut);

    /// When time alone will change the state (something expires), in milliseconds since 1970: the
    /// leader then commits a time stamp, and every replica gets a call of [`StateMachine::advance`].
    fn next_deadline_ms(&self) -> Option<u64> {
        None
    }

    /// Replicated time is `time_ms` now. Called before the commands of each batch.
    fn advance(&mut self, _time_ms: u64) {}
}
