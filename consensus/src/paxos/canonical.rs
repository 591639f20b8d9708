//! What the model checker takes for one state: a digest of all that decides what a replica will do.
//!
//! Two replicas with the same digest answer the same events with the same effects, under three conditions,
//! which `model/` keeps: the clock of a replica stands still, or jumps further than any wait; leases,
//! reads and rests are off; rows are published whenever they say anything new, not when they are due; and
//! whoever stands for election has seen every round, and is granted the pre-votes that it asks for. So times become "within an election time-out or not", and what only counts (heartbeats, pings, versions,
//! the random waits for elections) is left out.

use super::Paxos;
use crate::role::{Leader, Progress, Role, Transfer};
use crate::{Nanos, Row, RowFlags};
use core::hash::{Hash, Hasher};

impl Paxos {
    /// Feeds all that decides what this replica will do to `hasher`.
    pub fn hash_canonical<H: Hasher>(&self, hasher: &mut H) {
        let over = |deadline: Nanos| self.now >= deadline;
        let within = |at: Nanos| self.now.since(at) < self.settings.election_timeout_min;
        (&self.configurations, self.commit_slot, self.log_commit_slot).hash(hasher);
        (self.applied_slot, self.log_first, self.leader).hash(hasher);
        (self.remembers, self.may_lead, self.poisoned, self.announced).hash(hasher);
        (self.met_leader, self.leader_heard_at.is_some_and(within)).hash(hasher);
        self.acceptor.hash_canonical(hasher);
        for peer in &self.peers {
            (peer.node, peer.row.canonical()).hash(hasher);
            (peer.heard_at.is_some_and(within), peer.row_is_current, peer.linked).hash(hasher);
            (peer.leaves_at.map(over), peer.no_help_from).hash(hasher);
            (peer.log_first, peer.written).hash(hasher);
        }
        self.catch_up.canonical(self.now).hash(hasher);
        let durable = self.acceptor.durable_through();
        for (after, to, message) in &self.held {
            (after.0.saturating_sub(durable.0), to, message).hash(hasher);
        }
        (&self.messages, self.log_reads.len()).hash(hasher);
        self.rings().hash(hasher);
        self.role.hash_canonical(self.now, hasher);
    }
}

impl Row {
    /// What of a row decides anything, where leases, reads and rests are off.
    #[must_use]
    pub fn canonical(&self) -> impl Hash + Eq + Copy + use<> {
        let flags = RowFlags::LEADING
            | RowFlags::AMNESIAC
            | RowFlags::POISONED
            | RowFlags::UNWILLING
            | RowFlags::PASSIVE;
        let vote = (self.accepted_ballot, self.accepted_slot);
        (self.promised, vote, self.commit_slot, self.flags.0 & flags, self.incarnation)
    }
}

impl Role {
    fn hash_canonical<H: Hasher>(&self, now: Nanos, hasher: &mut H) {
        core::mem::discriminant(self).hash(hasher);
        match self {
            Self::Follower => {}
            Self::PreCandidate(held) => held.hash(hasher),
            Self::Candidate(held) => held.hash(hasher),
            Self::Adopting(held) => held.hash(hasher),
            Self::Leader(Leader { ballot, barrier, next_slot, progress, transfer, .. }) => {
                (ballot, barrier, next_slot).hash(hasher);
                for Progress { node, next, incarnation, matched, passive, told_behind, .. } in
                    progress
                {
                    (node, next, incarnation, matched, passive, told_behind).hash(hasher);
                }
                let held = transfer.as_ref();
                held.map(|&Transfer { to, give_up_at, closing, told, resigns }| {
                    (to, now >= give_up_at, closing, told, resigns)
                })
                .hash(hasher);
            }
        }
    }
}
