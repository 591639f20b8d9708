//! The [`Transport`] trait: what the protocol may assume of every link.
//!
//! Two lanes per peer. The *data* lane carries one-sided writes into regions that the peer
//! granted; the *control* lane carries whole messages in order. The contract:
//!
//! * **C1 FIFO or fail.** Operations on one lane take effect in post order. After a failure
//!   nothing later takes effect until the lane is rebuilt under a new incarnation
//!   ([`Event::LinkDown`], then [`Event::LinkUp`]); outcomes in flight are *unknown*.
//! * **C2 No atomicity.** A reader may see any mixture of old and new bytes of an unfinished
//!   write: for ever, after a crash or a fence.
//! * **C3 A completion says its level** ([`Level`]): accepted by the remote end, visible to its
//!   processor, durable.
//! * **C4 Fence.** When [`Transport::revoke`] returns, no byte of that region changes any more
//!   through that peer's grant, and everything that the peer was or will be told succeeded is
//!   visible.
//! * **C5** Nothing of an older incarnation ever validates. It may still land late, over bytes of the
//!   present one: whoever writes what is read once watches whether it is read.

use bytes::Bytes;
use quorate_consensus::{Incarnation, NodeId};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Names a region within one replica. Which region serves what is a convention of both ends;
/// see [`RegionId::inbox`] and [`RegionId::row`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(pub u32);

impl RegionId {
    /// The ring that `writer` ships its records into.
    #[must_use]
    pub const fn inbox(writer: NodeId) -> Self {
        Self(0x1_0000 | writer.0 as u32)
    }

    /// The two lines that `writer` publishes its row in.
    #[must_use]
    pub const fn row(writer: NodeId) -> Self {
        Self(0x2_0000 | writer.0 as u32)
    }
}

/// The two lanes to a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Ordered messages.
    Control,
    /// One-sided writes.
    Data,
}

/// How far a write is known to have come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// The remote end has it and will not lose it while it lives (a verbs WRITE completion).
    Accepted,
    /// The remote processor sees it.
    Visible,
    /// It survives power failure of the remote end.
    Durable,
}

/// What happened since the last poll.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A lane works. `incarnation` was agreed for this life of the lane and is the same at both
    /// ends; the peer's regions may be written as far as they are granted.
    LinkUp {
        /// Who.
        peer: NodeId,
        /// Which lane.
        lane: Lane,
        /// This life of the lane.
        incarnation: Incarnation,
    },
    /// A lane failed. Everything posted on it and not completed is unknown.
    LinkDown {
        /// Who.
        peer: NodeId,
        /// Which lane.
        lane: Lane,
        /// For the operator.
        reason: String,
    },
    /// A message arrived on the control lane. The bytes are private to the receiver.
    Control {
        /// From whom.
        peer: NodeId,
        /// The message.
        message: Bytes,
    },
    /// A hint: `region` was written by `peer`. It may come while a write is still landing, and comes
    /// in any case with or after its last byte: whoever looks at each hint misses nothing. A
    /// transport that cannot tell (verbs) sends none, and says so by [`Transport::hints`].
    Written {
        /// By whom.
        peer: NodeId,
        /// Where.
        region: RegionId,
    },
    /// All data-lane writes to `peer` with a number up to and including `through` reached `level`.
    Completed {
        /// To whom.
        peer: NodeId,
        /// Cumulative.
        through: OpNumber,
        /// How far.
        level: Level,
    },
}

impl Event {
    /// Whom it is about.
    #[must_use]
    pub const fn peer(&self) -> NodeId {
        match self {
            Self::LinkUp { peer, .. }
            | Self::LinkDown { peer, .. }
            | Self::Control { peer, .. }
            | Self::Written { peer, .. }
            | Self::Completed { peer, .. } => *peer,
        }
    }
}

/// Numbers the writes of one life of a data lane, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OpNumber(pub u64);

/// Why an operation was not posted. Nothing of it took effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PostError {
    /// The lane is down; wait for [`Event::LinkUp`].
    #[error("the link to replica {0} is down")]
    Down(NodeId),
    /// The send queue is full: try again after the next poll. Back-pressure, not a failure.
    #[error("the send queue to replica {0} is full")]
    Full(NodeId),
    /// No such peer is configured.
    #[error("replica {0} is not a peer of this transport")]
    Unknown(NodeId),
    /// Larger than the transport can carry in one piece.
    #[error("{length} bytes are more than the limit of {limit}")]
    TooLarge {
        /// What was asked for.
        length: usize,
        /// What is possible.
        limit: usize,
    },
}

/// A misuse of a region.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegionError {
    /// Registered twice.
    #[error("region {0:?} is already registered")]
    Exists(RegionId),
    /// Never registered.
    #[error("region {0:?} is not registered")]
    Missing(RegionId),
    /// The device or the system refused the memory.
    #[error("region {0:?} of {1} bytes: {2}")]
    Refused(RegionId, usize, String),
    /// Grants of this transport, or of the carrier that the lane has at present, outlive the lane.
    #[error("region {0:?}: what carries the link to replica {1} cannot end a grant with its lane")]
    Lasting(RegionId, NodeId),
    /// A grant for one life was revoked in it, and is not renewed in it.
    #[error("region {0:?} was fenced from replica {1} in this life of the lane")]
    Fenced(RegionId, NodeId),
}

/// Why a peer was not added.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// This transport knows its peers from its start.
    #[error("this transport takes no new peers: restart it with replica {0} among them")]
    Fixed(NodeId),
    /// The address means nothing to it, or a replica would be its own peer.
    #[error("replica {0} at {1:?} cannot be a peer: {2}")]
    Unusable(NodeId, String, String),
}

/// Wakes a thread that is inside [`Transport::park`], from any thread.
pub trait Wake: Send + Sync {
    /// The next or the current `park` returns at once. Cheap enough to call often, not per command:
    /// callers check first whether the thread sleeps.
    fn wake(&self);
}

/// What one link looks like to an operator.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinkStatus {
    /// Whether the control lane is up.
    pub control_up: bool,
    /// Whether the data lane is up.
    pub data_up: bool,
    /// What carries it: "tcp", "rdma", "memory".
    pub carrier: &'static str,
    /// Bytes that wait in the send queues.
    pub queued_bytes: usize,
    /// How often a lane was rebuilt after a failure.
    pub reconnects: u64,
    /// The last failure, for the operator; empty if there was none.
    pub last_error: String,
}

/// A transport, seen from one replica. Used by one thread: every call returns at once but `park`.
pub trait Transport: Send {
    /// This replica.
    fn local(&self) -> NodeId;

    /// The peers as they are now, in order of their ids.
    fn peers(&self) -> Vec<NodeId>;

    /// Makes `peer` a peer, reached at `address` (`HOST:PORT`, or empty where the other end finds the
    /// way), or gives one that is a peer already another address, if one is named. Its lanes come up as
    /// those of the others do ([`Event::LinkUp`]), once both ends have each other as peers. Regions that
    /// it shall write are registered and granted before.
    ///
    /// # Errors
    /// [`PeerError`]; then nothing changed.
    fn add_peer(&mut self, peer: NodeId, _address: &str) -> Result<(), PeerError> {
        if self.peers().contains(&peer) { Ok(()) } else { Err(PeerError::Fixed(peer)) }
    }

    /// Ends it: the lanes to `peer` are gone when this returns, with what was posted on them, and its
    /// attempts to connect are refused. A peer that comes back is added again, and its lanes have other
    /// incarnations then. A transport that keeps to its first peers does nothing.
    fn remove_peer(&mut self, _peer: NodeId) {}

    /// Gives the memory of a region back. Every grant of it was revoked before.
    ///
    /// # Errors
    /// [`RegionError::Missing`].
    fn unregister(&mut self, _region: RegionId) -> Result<(), RegionError> {
        Ok(())
    }

    /// Allocates `length` zeroed bytes that peers may be granted to write.
    ///
    /// # Errors
    /// [`RegionError`] when it exists already or the memory cannot be had.
    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError>;

    /// Lets `peer` write into `region`, in this and later lives of the lane, until revoked.
    ///
    /// # Errors
    /// [`RegionError::Missing`].
    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError>;

    /// Lets `peer` write into `region` in the present life of its data lane only: when the life ends, for
    /// whatever reason, the right is taken back, and contract C4 holds before [`Event::LinkDown`] of it
    /// is polled. No byte of another life comes in by this grant, not even late. It is not renewed in the
    /// same life after a revoke. Writes of the peer wait until it is given. Where a lane can fall back to a carrier whose
    /// grants last, the transport may open the region for a life over that one by itself, once the end of the last
    /// life was polled and another poll begins: whoever reads the region at that end misses nothing. (Passive followers need it, see
    /// decision 23.)
    ///
    /// A lasting grant of the region to this peer is taken back first, as by [`Transport::revoke`]. The
    /// present life is the one of the newest [`Event::LinkUp`] that was polled; if that lane is down again
    /// meanwhile nothing is granted, and writes of the next life wait. A later [`Transport::grant`] ends
    /// the waiting and lasts.
    ///
    /// # Errors
    /// [`RegionError::Missing`]; [`RegionError::Fenced`] after a revoke in this life;
    /// [`RegionError::Lasting`] where it is not to be had, by this transport or by what carries the lane
    /// now: then nothing changed, and [`Transport::grant`] is what there is.
    fn grant_for_life(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        Err(RegionError::Lasting(region, peer))
    }

    /// Takes the right back; contract C4 holds when it returns. A write that arrives later fails
    /// the data lane of that peer.
    ///
    /// # Errors
    /// [`RegionError::Missing`].
    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError>;

    /// Copies bytes out of a region that peers may be writing at this moment (contract C2): what
    /// comes back is private, and is to be checked before it is believed.
    ///
    /// # Panics
    /// If the range is not inside the region: an error of the caller.
    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]);

    /// Loads an aligned little-endian word with acquire ordering: what was written before it in
    /// the same lane, and arrived in order, is seen by later reads.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 8 or not inside the region: an error of the caller.
    fn load(&self, region: RegionId, offset: usize) -> u64;

    /// Posts a one-sided write of `pieces`, one after the other, to `offset` in the peer's region.
    /// The bytes are shared, not copied, where the transport can.
    ///
    /// # Errors
    /// [`PostError`]; then nothing was posted.
    fn write(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: usize,
        pieces: &[Bytes],
    ) -> Result<OpNumber, PostError>;

    /// Posts a message on the control lane.
    ///
    /// # Errors
    /// [`PostError`]; then nothing was posted.
    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError>;

    /// Sends what was posted: one doorbell, or one system call, for many operations.
    fn flush(&mut self);

    /// Receives what has arrived and appends what happened. Never blocks.
    fn poll(&mut self, events: &mut Vec<Event>);

    /// Sleeps until something can be polled, [`Wake::wake`] is called, or the time is over.
    fn park(&mut self, timeout: Duration);

    /// A handle for other threads.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Whether [`Event::Written`] is sent for every write; if not, the caller looks at its regions
    /// after each poll.
    fn hints(&self) -> bool;

    /// Drops both lanes of `peer` (a protocol error at the other end) and rebuilds them after the
    /// usual back-off. [`Event::LinkDown`] follows.
    fn reset(&mut self, peer: NodeId, reason: &str);

    /// Names the cluster, once it is known (not 0): a transport that greets its peers talks to no
    /// member of another one from now on. A peer that does not know its cluster yet is welcome.
    fn set_cluster(&mut self, _cluster: u64) {}

    /// Names the cluster that this one was recovered from: a member of it that greets is told so.
    fn set_lost_cluster(&mut self, _cluster: u64) {}

    /// What the link to `peer` looks like.
    fn status(&self, peer: NodeId) -> LinkStatus;
}

impl fmt::Debug for dyn Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.local())
    }
}
