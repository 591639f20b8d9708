//! Questions that change nothing.

use super::Paxos;
use crate::acceptor::PersistNumber;
use crate::role::{Role, RoleName};
use crate::{Ballot, Configurations, Nanos, NodeId, Row, Slot};

impl Paxos {
    /// This replica.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.settings.node
    }

    /// What it is at the moment.
    #[must_use]
    pub fn role(&self) -> RoleName {
        match &self.role {
            Role::Leader(_) => RoleName::Leader,
            Role::Candidate(_) | Role::Adopting(_) | Role::PreCandidate(_) => RoleName::Candidate,
            Role::Follower if self.votes() && self.settings.witness => RoleName::Witness,
            Role::Follower if self.votes() => RoleName::Follower,
            Role::Follower => RoleName::Learner,
        }
    }

    /// Who leads, as far as this replica knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader.map(|ballot| ballot.node)
    }

    /// The ballot of the known leader; it changes with every change of leadership.
    #[must_use]
    pub fn leader_ballot(&self) -> Option<Ballot> {
        self.leader
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn role_is_leader(&self) -> bool {
        self.role.leader().is_some()
    }

    /// Up to where everything that came out of [`Paxos::poll_persist`] is durable.
    #[must_use]
    pub fn durable_through(&self) -> PersistNumber {
        self.acceptor.durable_through()
    }

    /// Under which ballot the known leader leads; the promise if none is known.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.leader.unwrap_or(self.acceptor.promised())
    }

    /// The highest ballot promised.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.acceptor.promised()
    }

    /// The durable vote: ballot and slot.
    #[must_use]
    pub fn vote(&self) -> (Ballot, Slot) {
        self.acceptor.vote()
    }

    /// Every slot up to it is known chosen here.
    #[must_use]
    pub fn commit_slot(&self) -> Slot {
        self.commit_slot
    }

    /// What the state machine has seen.
    #[must_use]
    pub fn applied_slot(&self) -> Slot {
        self.applied_slot
    }

    /// The highest slot that anything was accepted for here.
    #[must_use]
    pub fn last_slot(&self) -> Slot {
        self.acceptor.window.last()
    }

    /// The newest row of `peer`, and how long it has not moved; none before the first.
    #[must_use]
    pub fn peer_row(&self, peer: NodeId) -> Option<(Row, Nanos)> {
        let peer = &self.peers[self.peer_index(peer)?];
        peer.heard_at.map(|at| (peer.row, self.now.since(at)))
    }

    /// Whether what [`Paxos::peer_row`] gives came by the data lane as it is now. If not the peer may be
    /// another process by now, which remembers less.
    #[must_use]
    pub fn row_is_current(&self, peer: NodeId) -> bool {
        self.peer_index(peer).is_some_and(|index| {
            let peer = &self.peers[index];
            peer.linked && peer.row_is_current
        })
    }

    /// Whether this replica's votes count: it remembers, and a configuration names it.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.word_counts() && self.is_named()
    }

    /// Who decides what.
    #[must_use]
    pub fn configurations(&self) -> &Configurations {
        &self.configurations
    }

    /// Payload bytes of the log that are held in memory.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.acceptor.window.bytes()
    }
}
