//! What the front end needs from whatever stands behind it, and how its refusals are worded.

use bytes::Bytes;
use std::future::Future;

/// How fresh the answers to a connection's reads must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Freshness {
    /// All that was acknowledged before is seen.
    #[default]
    Linearizable,
    /// Everything up to this slot is seen: the connection said `QUORATE READ SLOT`.
    AtLeast(u64),
    /// Whatever the replica has: the connection said `READONLY`.
    Stale,
}

/// Executes encoded commands: a replicated log, or a store in the same process.
///
/// A batch holds `count` commands back to back, each a [frame] with an encoded
/// [`Command`](crate::kv::Command). The result holds `count` replies back to back, each a frame
/// with one reply in the encoding of [`Token`](crate::kv::Token)s.
///
/// A connection has one call outstanding at a time, and drops no future before it resolves unless
/// the connection itself is dropped.
///
/// [frame]: crate::kv::frame
pub trait Backend: Clone + Send + Sync + 'static {
    /// Runs the commands in order, after all earlier calls of this connection. Resolves when they
    /// are durable and applied. Reads may be among them.
    fn write(
        &self,
        count: usize,
        commands: Bytes,
    ) -> impl Future<Output = Result<Bytes, SubmitError>> + Send;

    /// Answers queries, as fresh as it is asked for.
    fn read(
        &self,
        count: usize,
        queries: Bytes,
        freshness: Freshness,
    ) -> impl Future<Output = Result<Bytes, SubmitError>> + Send;

    /// The newest slot that this replica has applied, or is just applying (`QUORATE SLOT`): whoever
    /// saw a reply from here has seen nothing newer.
    fn applied_slot(&self) -> u64;

    /// Begins to hand leadership to replica `to`, or to whoever is fittest (`QUORATE TRANSFER`); how it
    /// ends is seen in the status.
    ///
    /// # Errors
    /// Why not.
    fn transfer(&self, to: Option<u16>) -> Result<(), String>;

    /// Begins a checkpoint (`QUORATE CHECKPOINT`); what becomes of it is in the status.
    ///
    /// # Errors
    /// Why there are none.
    fn begin_checkpoint(&self) -> Result<(), String>;

    /// The state of the cluster as seen from here, as JSON (`QUORATE STATUS`).
    fn status_json(&self) -> String;

    /// Changes the members of the cluster (`QUORATE MEMBERS CHANGE`); `what` is in the form of
    /// [`crate::members::parse`]. Answers with the slot of the change.
    ///
    /// # Errors
    /// The text of an error reply.
    fn change_members(&self, _what: &str) -> Result<u64, String> {
        Err("ERR there are no members to change".into())
    }

    /// Sections of `INFO` that only the backend knows: `# Section` lines and `key:value` lines, each
    /// ended by `\r\n`. They follow the sections that the front end writes itself.
    fn info(&self) -> String;

    /// How many replicas besides the leader certainly hold every acknowledged write: the size of a
    /// majority less one, at least (`WAIT`).
    fn acknowledged_replicas(&self) -> u32;
}

/// Why a batch has no result. Every command of the batch gets the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A queue is full; nothing was executed.
    #[error("TRYAGAIN the server is busy, nothing was executed: try again")]
    Busy,
    /// Refused for the reason given; nothing was executed.
    #[error("ERR rejected, nothing was executed: {0}")]
    Rejected(String),
    /// The commands may have been executed, or may be later: nobody knows yet.
    #[error("UNKNOWN outcome, the command may or may not take effect: {0}")]
    Unknown(String),
    /// There is no leader at the moment; nothing was executed.
    #[error("CLUSTERDOWN no leader at the moment, nothing was executed: try again")]
    NoLeader,
    /// Another replica leads; nothing was executed.
    #[error("{}", not_leader(leader.as_deref()))]
    NotLeader {
        /// Where clients reach the leader, as `host:port`, if that is known.
        leader: Option<String>,
    },
    /// The batch is too long for the log; nothing was executed.
    #[error("ERR command of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The longest that is accepted.
        limit: usize,
    },
    /// The server is going down; nothing was executed.
    #[error("CLUSTERDOWN this server is shutting down, nothing was executed")]
    ShuttingDown,
}

/// `MOVED` is the redirection that clients of a Redis cluster follow by themselves; the slot has no
/// meaning here.
fn not_leader(leader: Option<&str>) -> String {
    match leader {
        Some(address) => format!("MOVED 0 {address}"),
        None => {
            "CLUSTERDOWN another replica leads but its address is not known, nothing was executed"
                .to_owned()
        }
    }
}
