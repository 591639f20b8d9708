//! The follower's side of phase 2: accepting what the leader ships, and learning what is chosen.

use super::Paxos;
use super::passive::Held;
use crate::role::Role;
use crate::{Accept, Ballot, Message, Mutant, Nanos, NodeId, Row, RowFlags, Slot, ensures, old};

/// A record that cannot follow what was accepted before: the lane lost something, or the peer
/// misbehaves. The link is to be reset; the leader then starts again from our row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The slot that had to come next.
    pub expected: Slot,
    /// The first slot that came.
    pub found: Slot,
}

impl core::fmt::Display for Gap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "slot {} came where slot {} was due", self.found, self.expected)
    }
}

impl Paxos {
    /// A record arrived on the data lane. Takes the values out of `accept`.
    ///
    /// # Errors
    /// [`Gap`]: the lane must be reset.
    pub fn on_accept(&mut self, now: Nanos, from: NodeId, accept: &mut Accept) -> Result<(), Gap> {
        self.advance(now);
        self.end_quiet();
        let ballot = accept.ballot;
        let promised = self.acceptor.promised();
        if ballot.node != from || accept.values.is_empty() {
            accept.values.clear();
            return Ok(());
        }
        if self.poisoned {
            // Nor is a deposed leader told: whoever does not vote deposes nobody.
            accept.values.clear();
            return Ok(());
        }
        if ballot < promised && !self.settings.is(Mutant::AcceptBelowPromise) {
            // A deposed leader: its records are ignored by ballot, and it is told once a record.
            self.send(from, Message::Nack { ballot, promised });
            accept.values.clear();
            return Ok(());
        }
        if ballot > promised {
            // An Accept implies a promise: its sender has won phase 1.
            let held = || Held::Accept { from, accept: core::mem::take(accept) };
            let Some(cleared) = self.clear_to_accept(from, held) else { return Ok(()) };
            self.acceptor.promise(ballot, cleared);
        }
        if self.lacks_payloads(&accept.values) {
            accept.values.clear();
            return Err(Gap {
                expected: self.acceptor.accepted_slot().next(),
                found: accept.first,
            });
        }
        // Behind a fence it is read for what it decided, and is no sign of life.
        if !self.is_fencing() {
            self.follow(ballot);
            if let Some(index) = self.peer_index(from) {
                self.peers[index].heard_at = Some(self.now);
            }
        }
        let known = if self.settings.is(Mutant::KeepOldVotes) {
            self.acceptor.accepted_slot()
        } else {
            self.commit_slot
        };
        self.acceptor.begin(ballot, known);
        let expected = self.acceptor.accepted_slot().next();
        if accept.first > expected && !self.settings.is(Mutant::GapAccepted) {
            accept.values.clear();
            self.acceptor.mark();
            return Err(Gap { expected, found: accept.first });
        }
        let mut slot = accept.first;
        for value in accept.values.drain(..) {
            if slot > self.acceptor.accepted_slot() {
                self.note_value(slot, &value);
                let kept = self.kept(value);
                self.acceptor.accept(slot, kept);
            }
            slot = slot.next();
        }
        ensures!(
            checked,
            A2,
            self.acceptor.promised() <= ballot && self.acceptor.accepted_ballot() == ballot,
            "a record is accepted under its own ballot, which is promised"
        );
        self.learn_commit(ballot, accept.commit_slot);
        self.note_chosen_elsewhere(accept.commit_slot);
        if self.acceptor.mark() {
            self.mark_row_due_to_leader();
        }
        Ok(())
    }

    /// A peer's row arrived: vote, heartbeat, commit and read-index ping in one.
    pub fn on_row(&mut self, now: Nanos, from: NodeId, row: Row) {
        self.advance(now);
        let Some(index) = self.peer_index(from) else { return };
        let before = self.peers[index].row;
        self.peers[index].row = row;
        self.peers[index].row_is_current = true;
        self.peers[index].heard_at = Some(self.now);
        self.round_seen = self.round_seen.max(row.promised.round);
        self.outdate_pre_vote(from, row.promised);
        self.note_chosen_elsewhere(row.commit_slot);
        self.watch_pulse(index, row.heartbeat);
        if row.flags.has(RowFlags::LEADING) {
            self.on_leader_row(index, row);
        } else if before.flags.has(RowFlags::LEADING)
            && self.leader.is_some_and(|ballot| ballot.node == from)
        {
            // It says itself that it leads no more: no need to wait for silence.
            self.leader_lost();
            let soon = self.chance.between(Nanos(0), self.settings.election_timeout_min);
            self.election_at = self.election_at.min(self.now + soon);
        }
        if let Role::Leader(_) = self.role {
            self.on_follower_row(from, row);
        }
        self.row_and_quiet(from, before, row);
    }

    pub(super) fn on_leader_row(&mut self, index: usize, row: Row) {
        let ballot = row.promised;
        let from = self.peers[index].node;
        if ballot.node != from || ballot < self.acceptor.promised() || self.own_ballot() >= ballot {
            return;
        }
        self.follow(ballot);
        let told_all = row.accepted_ballot == ballot && row.accepted_slot <= self.commit_slot;
        if told_all && ballot > self.acceptor.promised() && !self.poisoned {
            // Others told it all that this leader has proposed, so no record comes that would make it
            // promise, and its answers to pings would not count. Who leads has won phase 1.
            let Some(cleared) = self.clear_to_promise(|| Held::LeaderRow { from, row }) else {
                return;
            };
            self.acceptor.promise(ballot, cleared);
        }
        if row.ping > self.peers[index].ping_seen && ballot == self.acceptor.promised() {
            self.peers[index].ping_seen = row.ping;
            self.peers[index].lease_granted = self.grant_lease(ballot, row.lease_asked);
            self.peers[index].row_due = true;
        }
        let before = self.commit_slot;
        self.learn_commit(ballot, row.commit_slot);
        if self.commit_slot != before {
            self.acceptor.mark();
        }
    }

    /// The promise that a row shows (rule A6).
    pub(super) fn promise_to_show(&self, voted: Ballot) -> Ballot {
        let mistaken = self.settings.is(Mutant::RowOldPromise);
        if mistaken { voted } else { self.acceptor.promised() }
    }

    /// The ballot under which this replica leads, if it does.
    fn own_ballot(&self) -> Ballot {
        self.role.leader().map_or(Ballot::ZERO, |leader| leader.ballot)
    }

    /// The leader of `ballot` says that everything up to `commit` is chosen. What we hold is that
    /// value only as far as we accepted it under the same ballot.
    fn learn_commit(&mut self, ballot: Ballot, commit: Slot) {
        if ballot != self.acceptor.accepted_ballot() && !self.settings.is(Mutant::LearnAnyBallot) {
            return;
        }
        let known = commit.min(self.acceptor.accepted_slot());
        let before = old!(self.commit_slot);
        if known > self.commit_slot {
            self.commit_slot = known;
            ensures!(
                checked,
                L1,
                self.acceptor.accepted_ballot() == ballot
                    && self.acceptor.accepted_slot() >= self.commit_slot
                    && before.is_none_or(|before| before < self.commit_slot),
                "a leader's commit slot counts as far as its values were accepted"
            );
            self.on_commit_moved();
            self.catch_up_progressed();
        }
    }
}
