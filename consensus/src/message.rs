//! What replicas say to each other.
//!
//! Two lanes (see the transport contract): the *data* lane carries [`Accept`] records and each
//! replica's [`Row`], by one-sided writes; the *control* lane carries [`Message`]s in order.

use crate::{Ballot, Entry, Incarnation, NodeId, Slot, Value};
use alloc::vec::Vec;
use bytes::Bytes;

/// Phase 2a: "accept these values under this ballot", for consecutive slots.
///
/// Durability: none needed to send. The leader ships while it persists its own copy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Accept {
    /// The leader's ballot.
    pub ballot: Ballot,
    /// The slot of `values[0]`.
    pub first: Slot,
    /// The leader's `commit_slot` when this was sent: every slot up to it is chosen.
    pub commit_slot: Slot,
    /// One value for each slot from `first` on; at least one.
    pub values: Vec<Value>,
}

impl Accept {
    /// The last slot that this record carries.
    #[must_use]
    pub fn last(&self) -> Slot {
        Slot(self.first.0 + self.values.len() as u64 - 1)
    }
}

/// What a replica publishes about itself to one peer: phase 2b, flow of commits, heartbeat and
/// read-index ping in one fixed-size line that overwrites the one before.
///
/// Durability: `accepted_slot` counts only what is durable at the level this replica runs at.
/// Every field but `flags`, `incarnation` and the two of leases grows monotonically within one incarnation of a link, so that a row
/// that is late under-reports and never lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Row {
    /// The highest ballot promised, durable or not: it may only make others more careful.
    pub promised: Ballot,
    /// The ballot that `accepted_slot` speaks of.
    pub accepted_ballot: Ballot,
    /// The largest slot `i` such that every slot up to `i` is known chosen, or accepted under
    /// `accepted_ballot`, and durable here.
    pub accepted_slot: Slot,
    /// What this replica knows to be chosen.
    pub commit_slot: Slot,
    /// What its state machine has seen.
    pub applied_slot: Slot,
    /// Advanced by the replica's own thread only: a stuck thread has a silent heartbeat.
    pub heartbeat: u64,
    /// The newest read-index ping of this replica as leader.
    pub ping: u64,
    /// The newest ping seen from the peer that this row is written to.
    pub pong: u64,
    /// The lease that this replica, as leader, asks for with its ping, in microseconds; 0 for none.
    pub lease_asked: u32,
    /// The lease that was granted with `pong`, in microseconds; 0 for none.
    pub lease_granted: u32,
    /// See [`RowFlags`].
    pub flags: RowFlags,
    /// The life of the sender's disk: whose vote this is (rule C6). 0 before anything was heard.
    pub incarnation: Incarnation,
}

/// The bits of a [`Row`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct RowFlags(pub u64);

impl RowFlags {
    /// This replica leads under the ballot in `promised`.
    pub const LEADING: u64 = 1;
    /// This replica hears from a quorum (itself included).
    pub const QUORUM_CONNECTED: u64 = 2;
    /// This replica has promised or accepted things in an earlier life that it no longer knows:
    /// its row never counts in a quorum.
    pub const AMNESIAC: u64 = 4;
    /// This replica's log failed: it no longer votes.
    pub const POISONED: u64 = 8;
    /// This replica votes, and does not want to lead at present.
    pub const UNWILLING: u64 = 16;
    /// This replica rests: its heartbeat stands still until something happens.
    pub const QUIET: u64 = 32;
    /// This follower does not rest, its leader does: it needs to see that the leader lives.
    pub const WANTS_SIGN: u64 = 64;
    /// This replica's log has no room: it takes no records out of its rings for now.
    pub const FULL: u64 = 128;
    /// This replica keeps no payloads (rule W2).
    pub const WITNESS: u64 = 1 << 24;
    /// A completed write of the receiver into the sender's ring counts as the sender's vote, under the
    /// ballot in `promised` (rule B1).
    pub const PASSIVE: u64 = 1 << 25;
    /// Bits 16 to 23 hold the newest version of the protocol that the sender speaks; 0 is 1.
    pub(crate) const PROTOCOL_SHIFT: u32 = 16;
    /// Bits 8 to 15 hold the priority.
    pub(crate) const PRIORITY_SHIFT: u32 = 8;

    /// Bits 32 to 63 hold a word of the application.
    pub(crate) const PAYLOAD_SHIFT: u32 = 32;

    /// What the sender's application has its votes carry.
    #[must_use]
    pub const fn payload(self) -> u32 {
        (self.0 >> Self::PAYLOAD_SHIFT) as u32
    }

    /// How much this replica should lead rather than others.
    #[must_use]
    pub const fn priority(self) -> u8 {
        (self.0 >> Self::PRIORITY_SHIFT) as u8
    }

    /// The newest version of the protocol that the sender speaks (rule V1).
    #[must_use]
    pub fn protocol(self) -> u16 {
        u16::from((self.0 >> Self::PROTOCOL_SHIFT) as u8).max(crate::configuration::PROTOCOL_FIRST)
    }

    /// Whether all bits of `mask` are set.
    #[must_use]
    pub const fn has(self, mask: u64) -> bool {
        self.0 & mask == mask
    }
}

impl core::fmt::Debug for RowFlags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names = [
            (Self::LEADING, "L"),
            (Self::QUORUM_CONNECTED, "Q"),
            (Self::AMNESIAC, "A"),
            (Self::POISONED, "P"),
            (Self::UNWILLING, "U"),
        ];
        for (bit, name) in names {
            f.write_str(if self.has(bit) { name } else { "-" })?;
        }
        if self.has(Self::QUIET) {
            f.write_str("q")?;
        }
        if self.has(Self::WANTS_SIGN) {
            f.write_str("w")?;
        }
        if self.has(Self::FULL) {
            f.write_str("f")?;
        }
        if self.has(Self::WITNESS) {
            f.write_str("W")?;
        }
        Ok(())
    }
}

/// A run of consecutive slots accepted under one ballot, in a [`Message::Promise`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Run {
    /// First slot of the run.
    pub first: Slot,
    /// Last slot of the run, inclusive.
    pub last: Slot,
    /// The ballot they were accepted under.
    pub ballot: Ballot,
}

/// The control lane.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Message {
    /// "Would you promise this ballot?" Changes nothing at the receiver.
    PreVote {
        /// The ballot that the sender would use.
        ballot: Ballot,
        /// What the sender knows to be chosen.
        commit_slot: Slot,
    },
    /// The answer to [`Message::PreVote`].
    PreVoteReply {
        /// The ballot that was asked about.
        ballot: Ballot,
        /// Whether the sender would promise it now.
        granted: bool,
        /// The sender's promise, so that the next attempt can go above it.
        promised: Ballot,
        /// The life of the sender's disk: who would promise (rule C6).
        incarnation: Incarnation,
    },
    /// Phase 1a. Durability: the sender's own promise of `ballot` is durable before this leaves,
    /// so that no ballot is used twice.
    Prepare {
        /// The ballot to promise.
        ballot: Ballot,
        /// "Tell me what you accepted from here on": the sender's `commit_slot` + 1.
        from: Slot,
        /// The leader of this ballot asked the sender to stand, and gave up every lease under it and
        /// below; zero if nobody did.
        released: Ballot,
    },
    /// "Take over from me": the sender leads under this ballot, proposes no more, and holds no
    /// lease; the receiver has all that it proposed.
    Lead {
        /// The sender's ballot.
        ballot: Ballot,
    },
    /// Phase 1b. Durability: the promise of `ballot`, and all accepted entries that `runs` names,
    /// are durable before this leaves.
    Promise {
        /// The ballot promised.
        ballot: Ballot,
        /// The slot that the answered Prepare asked from.
        from: Slot,
        /// What the sender knows to be chosen.
        commit_slot: Slot,
        /// What it accepted above `commit_slot`, or from `from` on where that is larger, in slot
        /// order, without overlaps.
        runs: Vec<Run>,
        /// The life of the sender's disk: whose promise this is (rule C6).
        incarnation: Incarnation,
    },
    /// A refusal: the receiver's ballot is below what the sender promised.
    Nack {
        /// The ballot refused.
        ballot: Ballot,
        /// The sender's promise.
        promised: Ballot,
    },
    /// A new leader asks for accepted values that it does not hold.
    Fetch {
        /// The ballot that the sender prepares.
        ballot: Ballot,
        /// First slot wanted.
        first: Slot,
        /// Last slot wanted, inclusive.
        last: Slot,
    },
    /// The answer to [`Message::Fetch`]: as many of them as fit a message, in slot order.
    Values {
        /// The ballot of the Fetch.
        ballot: Ballot,
        /// What the sender accepted, with the ballots it accepted them under.
        entries: Vec<Entry>,
    },
    /// "I lead, and the slots you lack are no longer in my memory: catch up from a log."
    Behind {
        /// The leader's ballot.
        ballot: Ballot,
        /// The first slot that the leader can still ship.
        first_available: Slot,
        /// The leader's `commit_slot`.
        commit_slot: Slot,
    },
    /// Asks any replica for chosen values from its log.
    CatchUpRequest {
        /// First slot wanted.
        first: Slot,
        /// The answer holds at most this many payload bytes, but at least one entry if there is one.
        bytes_max: u32,
    },
    /// Chosen values. The ballot of each is the one that the sender accepted it under.
    CatchUpReply {
        /// First slot that was asked for.
        first: Slot,
        /// The sender's `commit_slot`.
        commit_slot: Slot,
        /// The lowest slot that the sender can still give.
        log_first: Slot,
        /// Entries from `first` on, without a hole, every one at or below `commit_slot`.
        entries: Vec<Entry>,
    },
    /// Asks any replica for blocks of a checkpoint: of the named one, or else of its newest.
    SnapshotRequest {
        /// A checkpoint of a lower slot does not help.
        at_least: Slot,
        /// The checkpoint of which the sender has some blocks; 0 for none.
        slot: Slot,
        /// Its digest: the fingerprint of all that was applied up to it.
        digest: u64,
        /// The first block of it that the sender lacks.
        first: u64,
        /// The answer holds at most so many bytes of blocks, but at least one block.
        bytes_max: u32,
    },
    /// Blocks of a checkpoint.
    SnapshotReply {
        /// The checkpoint; 0 if the sender has none that helps.
        slot: Slot,
        /// Its digest.
        digest: u64,
        /// How many blocks it has.
        blocks: u64,
        /// The number of the first block that follows.
        first: u64,
        /// Whole blocks, one behind the other; each has its own checksums.
        bytes: Bytes,
    },
    /// Client commands on their way to the leader: groups as [`crate::batch`] has them.
    Forward {
        /// The groups, concatenated; each is whole.
        groups: Bytes,
    },
    /// A follower's read-index request.
    ReadIndex {
        /// Chosen by the sender; grows.
        id: u64,
    },
    /// The answer to [`Message::ReadIndex`], sent when a quorum confirmed the leader after the
    /// request arrived.
    ReadIndexReply {
        /// The id of the request; it answers all smaller ids of that sender too.
        id: u64,
        /// Read once this slot is applied; none if the sender does not lead.
        slot: Option<Slot>,
    },
    /// Before a cluster exists: "I am a fresh member with this incarnation".
    Fresh {
        /// The incarnation of the sender's disk.
        incarnation: Incarnation,
    },
    /// The founding document of the cluster, the same on every member for ever.
    Genesis {
        /// The document, encoded by [`crate::Genesis::encode`].
        document: Bytes,
    },
    /// Refusal of a link's other end to go on, with the reason for its operator.
    Goodbye {
        /// Who the sender thinks it spoke to.
        to: NodeId,
        /// Why.
        reason: Bytes,
    },
}
