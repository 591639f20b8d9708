//! What a replica is at the moment. Each variant owns what only that role needs.
//!
//! ```text
//!              election timer              quorum of pre-votes
//!   Follower ----------------> PreCandidate ----------------> Candidate
//!      ^                            |                             | quorum of promises
//!      | leader heard,              | leader heard,               v
//!      | refused, timed out         | timed out                Adopting
//!      +----------------------------+                             | all chosen values held
//!      ^                                                          v
//!      +---------- higher promise seen, or quorum lost -------- Leader
//! ```

use crate::{Ballot, Configuration, Incarnation, Member, Nanos, NodeId, Run, Slot, Value};
use alloc::vec::Vec;

#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower,
    PreCandidate(PreCandidate),
    Candidate(Candidate),
    Adopting(Adopting),
    Leader(Leader),
}

/// Asks whether an election would succeed, before anything is promised.
#[derive(Clone, Debug, Hash)]
pub(crate) struct PreCandidate {
    /// The ballot it would use.
    pub(crate) ballot: Ballot,
    /// Who would promise it, itself included, and what each had promised when it said so.
    pub(crate) granted: Vec<(Member, Ballot)>,
}

/// One answer to phase 1.
#[derive(Clone, Debug, Hash)]
pub(crate) struct PromiseHeld {
    pub(crate) member: Member,
    pub(crate) commit_slot: Slot,
    pub(crate) runs: Vec<Run>,
}

/// Collects promises.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Candidate {
    pub(crate) ballot: Ballot,
    /// The first slot that phase 1 asks about.
    pub(crate) from: Slot,
    /// One for each node at most; its own once its promise is durable.
    pub(crate) promises: Vec<PromiseHeld>,
}

/// Has a quorum of promises and gathers the values that it must propose again.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Adopting {
    pub(crate) ballot: Ballot,
    /// As it was for the candidate.
    pub(crate) from: Slot,
    /// More may come, of members that were not known before (rule C3).
    pub(crate) promises: Vec<PromiseHeld>,
    /// The configurations found among the values to adopt whose members were asked for promises.
    pub(crate) found: Vec<Configuration>,
    /// Someone knows everything up to here to be chosen: caught up first.
    pub(crate) chosen_through: Slot,
    /// Where to get that from.
    pub(crate) chosen_source: NodeId,
    /// For each slot from `chosen_through + 1` on: what is to be proposed.
    pub(crate) plan: Vec<Adoption>,
    /// Reports of witnesses were compared with the others (rule W4).
    pub(crate) heeds_witnesses: bool,
    /// One of them won, and nobody who promised holds what it is of.
    pub(crate) awaits_copy: bool,
}

/// What becomes of one slot that a new leader found.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Adoption {
    /// Nobody in the quorum accepted anything: a hole, filled with a no-op.
    Hole,
    /// The value accepted under the highest ballot, held here.
    Held { ballot: Ballot, value: Value },
    /// The value accepted under the highest ballot, to be fetched from `holder`.
    Missing { ballot: Ballot, holder: NodeId },
}

/// How far one follower is, seen from the leader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) node: NodeId,
    /// The next slot to ship; none while the position is not known (lane down, no row yet).
    pub(crate) next: Option<Slot>,
    /// The life of its disk that `matched` and `pong` are of.
    pub(crate) incarnation: Incarnation,
    /// Durable vote under the leader's ballot.
    pub(crate) matched: Slot,
    /// Its newest row, of this life of its lane, says that completed writes are votes (rule B1).
    pub(crate) passive: bool,
    /// Newest read-index ping that it answered with its promise still at the leader's ballot.
    pub(crate) pong: u64,
    /// When the newest ping was made that it answered with a lease.
    pub(crate) leased_at: Option<Nanos>,
    /// It needs slots that are no longer in memory, and was told so.
    pub(crate) told_behind: bool,
    /// Where `matched` was when this was last looked at, and since when it has stood still there with more
    /// to vote for: see `witnessing.rs`.
    pub(crate) stands_at: (Slot, Nanos),
}

impl Progress {
    /// Of a follower that was not heard in this leadership.
    pub(crate) fn unknown(node: NodeId) -> Self {
        Self {
            node,
            next: None,
            incarnation: Incarnation(0),
            matched: Slot::ZERO,
            passive: false,
            pong: 0,
            leased_at: None,
            told_behind: false,
            stands_at: (Slot::ZERO, Nanos(0)),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) ballot: Ballot,
    /// The first entry of its own ballot that is no adoption: reads wait until it is chosen.
    pub(crate) barrier: Slot,
    /// The next slot to propose for.
    pub(crate) next_slot: Slot,
    /// Payload bytes proposed and not known chosen.
    pub(crate) bytes_in_flight: usize,
    pub(crate) progress: Vec<Progress>,
    pub(crate) ping: u64,
    /// When it began to lead.
    pub(crate) since: Nanos,
    /// Leadership is being handed over.
    pub(crate) transfer: Option<Transfer>,
}

/// A leader on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    /// If nothing came of it then, this leader goes on.
    pub(crate) give_up_at: Nanos,
    /// The successor is close: nothing more is proposed.
    pub(crate) closing: bool,
    /// The successor was asked to stand.
    pub(crate) told: bool,
    /// This leader steps down if nothing comes of it.
    pub(crate) resigns: bool,
}

impl Role {
    pub(crate) fn leader(&self) -> Option<&Leader> {
        match self {
            Self::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    pub(crate) fn leader_mut(&mut self) -> Option<&mut Leader> {
        match self {
            Self::Leader(leader) => Some(leader),
            _ => None,
        }
    }
}

impl Leader {
    pub(crate) fn progress_mut(&mut self, node: NodeId) -> Option<&mut Progress> {
        self.progress.iter_mut().find(|progress| progress.node == node)
    }

    pub(crate) fn progress(&self, node: NodeId) -> Option<&Progress> {
        self.progress.iter().find(|progress| progress.node == node)
    }
}

/// The public name of a role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoleName {
    /// Follows a leader, or waits for one.
    Follower,
    /// Tries to become leader.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log and never votes.
    Learner,
    /// Votes without payloads and never leads.
    Witness,
}

impl core::fmt::Display for RoleName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
            Self::Witness => "witness",
        })
    }
}
