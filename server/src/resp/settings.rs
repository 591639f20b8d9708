//! The bounds of the front end.

use super::parser::ParserLimits;
use std::time::Duration;

/// Every bound of the Redis front end, with its unit in the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most connections at a time; further ones get an error and are closed.
    pub max_clients: usize,
    /// The longest argument of a request (`proto-max-bulk-len` in Redis).
    pub max_bulk_bytes: usize,
    /// The longest request, with its framing.
    pub max_request_bytes: usize,
    /// The longest command in the encoding of the log; also of a whole transaction.
    pub max_command_bytes: usize,
    /// The most requests that are executed as one batch.
    pub max_batch_commands: usize,
    /// The most bytes of encoded commands in one batch; a longer command is a batch of its own.
    pub max_batch_bytes: usize,
    /// A connection is closed when its client has not taken a byte of a reply for so long.
    pub write_timeout: Duration,
    /// A connection is closed when it has been silent for so long; `None` for never.
    pub idle_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_clients: 10_000,
            max_bulk_bytes: 8 << 20,
            max_request_bytes: 16 << 20,
            max_command_bytes: 8 << 20,
            max_batch_commands: 1_024,
            max_batch_bytes: 1 << 20,
            write_timeout: Duration::from_secs(30),
            idle_timeout: None,
        }
    }
}

impl Settings {
    pub(super) fn parser_limits(&self) -> ParserLimits {
        ParserLimits {
            max_bulk_bytes: self.max_bulk_bytes,
            max_request_bytes: self.max_request_bytes,
        }
    }
}
