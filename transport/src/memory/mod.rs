//! A transport inside one process, with every fault that the contract allows, and some that it
//! forbids.
//!
//! [`MemoryNetwork::endpoint`] gives each replica its end. What was posted and flushed travels
//! through queues and takes effect when the *receiver* polls, as it does over sockets: driven by
//! one thread, a seed repeats everything; driven by several, it is an in-process cluster.
//!
//! Faults are set on the network, for a direction of a link ([`MemoryNetwork::stall`],
//! [`MemoryNetwork::delay`]), a lane ([`MemoryNetwork::fail`]), a link ([`MemoryNetwork::cut`]) or
//! the writes that arrive at a replica ([`Landing`]).

mod endpoint;
mod network;

pub use endpoint::MemoryTransport;
pub use network::MemoryNetwork;

use quorate_consensus::NodeId;

/// A direction of a lane queues at most this many bytes; then [`crate::PostError::Full`].
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A direction of a lane queues at most this many operations; then [`crate::PostError::Full`].
pub const QUEUE_OPERATIONS_MAX: usize = 1 << 16;
/// After this many polls of either end a failed lane comes back, unless it is cut.
pub const BACK_OFF_POLLS: u32 = 4;

/// How one-sided writes become visible at a replica. The default is at once and whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Landing {
    /// Writes become visible in pieces of so many bytes (1, 8, 64, an MTU), some of them at each
    /// poll, in any order within a write.
    pub tear_bytes: Option<usize>,
    /// A write stays invisible for so many polls after it was taken from the link.
    pub late_polls: u32,
    /// Completions with [`crate::Level::Accepted`] go out before the bytes are visible, as a verbs
    /// WRITE has them. `Visible` never does.
    pub complete_early: bool,
    /// Writes that were under way when their lane failed land later all the same, over whatever
    /// the next life wrote: beyond the contract's C1, and still nothing of them may validate.
    pub ghosts: bool,
    /// `revoke` does not fence: writes go on landing after it returned. Breaks C4 on purpose.
    pub broken_fence: bool,
}

/// The two ends of a link, the lower id first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Pair(NodeId, NodeId);

impl Pair {
    fn of(a: NodeId, b: NodeId) -> Self {
        Self(a.min(b), a.max(b))
    }

    /// 0 or 1.
    fn side(self, node: NodeId) -> usize {
        usize::from(node == self.1)
    }
}

#[cfg(test)]
mod tests;
