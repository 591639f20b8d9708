//! [`StateMachine`]: what a user implements.

use bytes::BytesMut;
use quorate_consensus::Slot;
use std::io::{self, Read};
use std::sync::Arc;

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

    /// A way to ask the same questions on other threads, while commands are applied on this one.
    ///
    /// With it a leader that holds a lease answers linearizable reads on the thread that asks, without
    /// a message and without its own thread. The state is then shared, behind a lock or in a structure
    /// made for it. Called once, before anything is applied; what [`StateMachine::restore`] brings must
    /// show through it too.
    fn reader(&self) -> Option<Arc<dyn StateReader>> {
        None
    }

    /// When time alone will change the state (something expires), in milliseconds since 1970: the
    /// leader then commits a time stamp, and every replica gets a call of [`StateMachine::advance`].
    fn next_deadline_ms(&self) -> Option<u64> {
        None
    }

    /// Replicated time is `time_ms` now. Called before the commands of each batch.
    fn advance(&mut self, _time_ms: u64) {}

    /// Hands out the state as it is now, for a checkpoint. This is called between two commands, and
    /// nothing is applied before it returns: share what is there (`Arc`, a persistent structure)
    /// instead of copying it. Another thread then turns the view into bytes, while commands change
    /// the state.
    ///
    /// Without it there are no checkpoints: the log is never trimmed, and a replica that lost its disk
    /// reads all of it again. The status says so.
    fn checkpoint(&self) -> Option<Box<dyn CheckpointView>> {
        None
    }

    /// Replaces the whole state by the one that a view was taken of; the stream ends where the view's
    /// pieces did. Its integrity was checked before. Called on another thread than the rest, while
    /// nothing else is.
    ///
    /// # Errors
    /// When the bytes are not a state of this machine's, for example one of a newer version. The
    /// replica then tries an older checkpoint, and after that leaves the quorum and says why.
    fn restore(&mut self, _image: &mut dyn Read) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this state machine has no checkpoints"))
    }
}

/// Answers questions on any thread: what [`StateMachine::reader`] handed out.
pub trait StateReader: Send + Sync {
    /// As [`StateMachine::query`]. A command that is being applied shows as a whole or not at all; of
    /// the commands of one slot some may show and others not yet.
    ///
    /// False: not now, ask the ordinary way; for example when the other side broke off in the middle
    /// of a command.
    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut) -> bool;
}

/// A consistent view of a state machine: what [`StateMachine::checkpoint`] handed out.
pub trait CheckpointView: Send {
    /// Appends the next piece of the state as bytes, about a mebibyte at the most, and returns whether
    /// there is more. Equal states must give equal bytes, so that replicas can go on with each
    /// other's.
    fn next_piece(&mut self, out: &mut BytesMut) -> bool;
}

/// In the place of a state machine that is being restored elsewhere. Nothing is asked of it.
pub(crate) struct Absent;

impl StateMachine for Absent {
    fn apply(&mut self, _: &Context, _: &[u8], _: &mut BytesMut) {
        unreachable!("nothing is applied while the state machine is restored")
    }

    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {
        unreachable!("nothing is queried while the state machine is restored")
    }
}
