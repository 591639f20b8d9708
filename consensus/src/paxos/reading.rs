//! Linearizable reads by read-index (Raft thesis, section 6.4; etcd's `ReadOnlySafe`).
//!
//! The leader notes its commit slot, then asks everyone "do you still have no higher promise?" by a
//! ping in its row; a quorum of answers proves that no later leader had anything chosen before the
//! read arrived. Reads that arrive while a ping is under way go together with the next one.

use super::Paxos;
use crate::role::Role;
use crate::{Message, Mutant, Nanos, NodeId, Slot, requires};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Local reads with tickets up to and including `through` may run once `slot` is applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadReady {
    /// The highest ticket that this releases.
    pub through: u64,
    /// What must be applied first.
    pub slot: Slot,
}

/// Reads that one confirmation will release.
#[derive(Clone, Debug, Default)]
struct Batch {
    /// The highest local ticket.
    local: Option<u64>,
    /// For each asking peer, its highest request id.
    peers: Vec<(NodeId, u64)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    tickets: u64,
    waiting: Batch,
    /// At the leader: those of `waiting` that the clock was read after.
    aged: Batch,
    /// At the leader: what ping is under way, the commit slot when it was sent, and for whom.
    confirming: Option<(u64, Slot, Batch)>,
    /// At a follower: the request that is under way, its highest ticket, and when it is given up.
    forwarded: Option<(u64, u64, Nanos)>,
    requests: u64,
    newest_ping: u64,
    ready: VecDeque<ReadReady>,
}

impl Reads {
    /// Request ids begin anywhere: the answer to a request of an earlier life of this replica, late
    /// on its way, must not look like the answer to a new one.
    pub(super) fn new(seed: u64) -> Self {
        Self { requests: seed >> 1, ..Self::default() }
    }

    pub(super) fn newest_ping(&self) -> u64 {
        self.newest_ping
    }

    /// Whether a read waits for anything.
    pub(super) fn any(&self) -> bool {
        !self.waiting.is_empty()
            || !self.aged.is_empty()
            || self.confirming.is_some()
            || self.forwarded.is_some()
    }

    pub(super) fn note_ping(&mut self, ping: u64) {
        self.newest_ping = ping;
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.local.is_none() && self.peers.is_empty()
    }

    /// Adds what came after.
    fn merge(&mut self, later: Self) {
        self.local = self.local.max(later.local);
        for (node, id) in later.peers {
            self.add_peer(node, id);
        }
    }

    fn add_peer(&mut self, node: NodeId, id: u64) {
        match self.peers.iter_mut().find(|(peer, _)| *peer == node) {
            // Messages of one life of the lane come in order; a new life counts from elsewhere.
            Some((_, held)) => *held = id,
            None => self.peers.push((node, id)),
        }
    }
}

impl Paxos {
    /// Asks for a linearizable read. [`Paxos::poll_read`] tells when the returned ticket may read;
    /// while no leader is known it waits.
    pub fn read_index(&mut self, now: Nanos) -> u64 {
        self.rouse(now);
        self.reads.tickets += 1;
        self.reads.waiting.local = Some(self.reads.tickets);
        self.reads.tickets
    }

    /// The clock was read: what came before it may be answered by a lease that holds now.
    pub(super) fn age_reads(&mut self) {
        if self.role_is_leader() && !self.reads.waiting.is_empty() {
            let waiting = core::mem::take(&mut self.reads.waiting);
            self.reads.aged.merge(waiting);
        }
    }

    /// Whether reads need nothing but another look at the clock.
    pub(super) fn reads_wait_for_the_clock(&self) -> bool {
        !(self.reads.waiting.is_empty() && self.reads.aged.is_empty()) && self.holds_lease()
    }

    /// Starts what [`Paxos::read_index`] asked for: once for all reads of one step.
    pub fn start_reads(&mut self) {
        if self.reads.waiting.is_empty() && self.reads.aged.is_empty() {
            return;
        }
        if self.holds_lease() {
            if self.settings.is(Mutant::LeaseBeforeClock) {
                self.age_reads();
            }
            let batch = core::mem::take(&mut self.reads.aged);
            return self.release_reads(batch, self.commit_slot);
        }
        let barrier = self.role.leader().map_or(Slot::ZERO, |leader| leader.barrier);
        let readable = self.commit_slot >= self.readable_from(barrier);
        match &self.role {
            Role::Leader(_) => {
                // Before the first own entry is chosen, the commit slot may be behind what an
                // earlier leader acknowledged.
                let early = self.settings.is(Mutant::ReadBeforeBarrier);
                if self.reads.confirming.is_some() || (!readable && !early) {
                    return;
                }
                // Before the barrier is chosen (rule W7) only what was asked here is answered: a repair asks
                // for the barrier itself (rule A8).
                let all = self.commit_slot >= barrier || early;
                let local = self.reads.aged.local.max(self.reads.waiting.local);
                if !all && local.is_none() {
                    return;
                }
                let ping = self.next_ping();
                let mut batch = core::mem::take(&mut self.reads.aged);
                batch.merge(core::mem::take(&mut self.reads.waiting));
                if !all {
                    self.reads.waiting.peers = core::mem::take(&mut batch.peers);
                }
                self.reads.confirming = Some((ping, self.commit_slot, batch));
                self.mark_rows_due();
                self.settle_reads();
            }
            _ => self.forward_reads(),
        }
    }

    fn release_reads(&mut self, batch: Batch, slot: Slot) {
        requires!(
            checked,
            R1,
            self.role_is_leader() && slot <= self.commit_slot,
            "a leader releases reads at a slot that it knows to be chosen"
        );
        if let Some(through) = batch.local {
            self.reads.ready.push_back(ReadReady { through, slot });
        }
        for (node, id) in batch.peers {
            self.send(node, Message::ReadIndexReply { id, slot: Some(slot) });
        }
    }

    fn forward_reads(&mut self) {
        let Some(leader) = self.leader() else { return };
        if leader == self.settings.node || self.reads.forwarded.is_some() {
            return;
        }
        let Some(through) = self.reads.waiting.local.take() else { return };
        self.reads.requests += 1;
        let id = self.reads.requests;
        let give_up_at = self.now + self.settings.election_timeout_min;
        self.reads.forwarded = Some((id, through, give_up_at));
        self.send(leader, Message::ReadIndex { id });
    }

    /// The next release of local reads.
    pub fn poll_read(&mut self) -> Option<ReadReady> {
        self.reads.ready.pop_front()
    }

    /// At the leader: releases the reads whose ping a quorum answered.
    pub(super) fn settle_reads(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let Some((ping, slot, _)) = &self.reads.confirming else {
            if self.commit_slot >= self.readable_from(leader.barrier) {
                self.start_reads();
            }
            return;
        };
        let (ping, slot) = (*ping, *slot);
        // Every quorum that elects a later leader meets one that chooses slots.
        let confirmed = self.configurations.is_commit_quorum_from(slot.next(), |member| {
            let peer = leader.progress(member.node);
            let peer = peer.filter(|progress| progress.incarnation == member.incarnation);
            self.is_me(member) || peer.is_some_and(|progress| progress.pong >= ping)
        });
        let confirmed = confirmed || self.settings.is(Mutant::ReadWithoutQuorum);
        if !confirmed || self.acceptor.promised() != leader.ballot {
            return;
        }
        let Some((_, _, batch)) = self.reads.confirming.take() else { return };
        self.release_reads(batch, slot);
        self.start_reads();
    }

    pub(super) fn on_read_index(&mut self, from: NodeId, id: u64) {
        if let Role::Leader(_) = self.role {
            self.reads.waiting.add_peer(from, id);
            self.start_reads();
        } else {
            self.send(from, Message::ReadIndexReply { id, slot: None });
        }
    }

    pub(super) fn on_read_index_reply(&mut self, _from: NodeId, id: u64, slot: Option<Slot>) {
        let Some((asked, through, _)) = self.reads.forwarded else { return };
        if asked != id {
            return;
        }
        match slot {
            Some(slot) => {
                self.reads.forwarded = None;
                self.reads.ready.push_back(ReadReady { through, slot });
                self.on_barrier_known(through, slot);
                self.start_reads();
            }
            // It leads no more, or not yet: asked again when the timer says so.
            None => self.reads.forwarded = Some((0, through, self.now + Nanos::MILLISECOND)),
        }
    }

    pub(super) fn on_read_timer(&mut self) {
        if self.reads.forwarded.is_some_and(|(_, _, give_up_at)| self.now >= give_up_at) {
            self.take_back_forwarded();
            self.start_reads();
        }
    }

    fn take_back_forwarded(&mut self) {
        if let Some((_, through, _)) = self.reads.forwarded.take() {
            self.reads.waiting.local = self.reads.waiting.local.max(Some(through));
        }
    }

    pub(super) fn on_new_leader_for_reads(&mut self) {
        self.take_back_forwarded();
        self.start_reads();
    }

    /// The link to `peer` is another one: its requests of the earlier link are not answered, since it
    /// may have been restarted and be counting them from the beginning again.
    pub(super) fn forget_reads_of(&mut self, peer: NodeId) {
        self.reads.waiting.peers.retain(|(node, _)| *node != peer);
        self.reads.aged.peers.retain(|(node, _)| *node != peer);
        if let Some((_, _, batch)) = &mut self.reads.confirming {
            batch.peers.retain(|(node, _)| *node != peer);
        }
    }

    /// Leadership is lost: local reads wait for the next leader, peers are told.
    pub(super) fn drop_leader_reads(&mut self) {
        let confirming = self.reads.confirming.take().map(|(_, _, batch)| batch);
        let aged = core::mem::take(&mut self.reads.aged);
        let waiting = core::mem::take(&mut self.reads.waiting);
        for batch in confirming.into_iter().chain([aged, waiting]) {
            self.reads.waiting.local = self.reads.waiting.local.max(batch.local);
            for (node, id) in batch.peers {
                self.send(node, Message::ReadIndexReply { id, slot: None });
            }
        }
    }
}
