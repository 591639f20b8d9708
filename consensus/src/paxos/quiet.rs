//! Quiet: a replica with nothing to do, whose peers know everything that it knows, stops its clock.
//!
//! It is for processes that hold many state machines, most of which are idle: no heartbeat, no timer, no
//! row. Only progress depends on any of it. What is given up is the early discovery that a leader died; it is made when
//! someone wants something, and by whoever sees the link to its process break.
//!
//! * A leader is quiet when everything that it proposed is chosen and applied, every peer whose link is up
//!   says the same, and nothing moved for some heartbeats. Its last row says so.
//! * A follower is quiet when the leader's row says so and it knows all that the leader knows.
//! * Anything that arrives or is asked for ends it, but for rows that say nothing new: they may have crossed
//!   the leader's last one. A follower that is up while its leader's last row says that it rests asks for a
//!   sign of it, in its rows; one that is up because the leader is does not, or the two would wake each other for ever.
//! * Time that passed meanwhile counts for nothing: all waits begin anew.

use super::{Paxos, lease::Pulse};
use crate::role::Role;
use crate::{Nanos, NodeId, Row, RowFlags, Slot};

/// Whether this replica rests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quiet {
    on: bool,
    /// The next heartbeat comes at once and counts for nothing.
    skip_beat: bool,
    /// Heartbeats in which nothing happened.
    idle_beats: u32,
    /// The newest slot at the last heartbeat.
    seen: Slot,
}

impl Paxos {
    /// Whether this replica rests: it needs no call of [`Paxos::on_time`] before something happens.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.quiet.on
    }

    /// Somebody wants something: stop resting. Called by whoever drives the core when a command is on its
    /// way to the leader; everything that the core is asked itself does it too.
    pub fn rouse(&mut self, now: Nanos) {
        self.advance(now);
        self.end_quiet();
    }

    /// Whether this follower's rows ask for a sign of the leader: one that rests would seem dead to it, and
    /// to whoever asks it for a pre-vote.
    pub(super) fn wants_sign(&self) -> bool {
        !self.quiet.on && !self.role_is_leader() && self.leader_rests()
    }

    /// Whether the last row of the leader that this replica follows says that it rests.
    fn leader_rests(&self) -> bool {
        let row = self.leader.and_then(|ballot| Some((ballot, self.peer_index(ballot.node)?)));
        row.is_some_and(|(ballot, index)| {
            let row = &self.peers[index].row;
            row.promised == ballot && row.flags.has(RowFlags::LEADING | RowFlags::QUIET)
        })
    }

    /// Something happened: here, or at the leader.
    pub(super) fn end_quiet(&mut self) {
        self.quiet.idle_beats = 0;
        if !self.quiet.on {
            return;
        }
        self.quiet.on = false;
        self.quiet.skip_beat = true;
        self.heartbeat_at = self.now;
        for peer in &mut self.peers {
            peer.heard_at = peer.heard_at.map(|_| self.now);
            peer.pulse = Pulse::default();
        }
        if self.leader.is_some() {
            self.leader_heard_at = Some(self.now);
        }
        self.watch_anew();
        self.rest_election_timer();
        self.mark_rows_due();
    }

    /// With each heartbeat: a leader that has been idle for long enough rests.
    pub(super) fn count_idle_beat(&mut self) {
        let skipped = core::mem::take(&mut self.quiet.skip_beat);
        if skipped || self.settings.quiet_after == 0 || !self.role_is_leader() {
            return;
        }
        let last = self.last_slot();
        if last != self.quiet.seen || !self.nothing_to_do() || !self.peers_know_all() {
            self.quiet.seen = last;
            self.quiet.idle_beats = 0;
            return;
        }
        self.quiet.idle_beats += 1;
        if self.quiet.idle_beats >= self.settings.quiet_after {
            self.begin_quiet();
        }
    }

    fn begin_quiet(&mut self) {
        self.quiet = Quiet { on: true, seen: self.quiet.seen, ..Quiet::default() };
        self.heartbeat_at = Nanos::MAX;
        self.election_at = Nanos::MAX;
        self.mark_rows_due();
    }

    /// Everything known here is chosen and applied, and nobody was asked for anything.
    fn nothing_to_do(&self) -> bool {
        self.last_slot() <= self.commit_slot
            && self.applied_slot == self.commit_slot
            && self.role.leader().is_none_or(|leader| leader.barrier <= self.commit_slot)
            && self.configurations.latest().settled
            && self.acceptor.vote().1 >= self.commit_slot
            && self.messages.is_empty()
            && self.held.is_empty()
            && self.log_reads.is_empty()
            && !self.reads.any()
            && !self.is_behind()
            && !self.poisoned
            && (self.may_lead || !self.role_is_leader())
            && !self.may_transfer()
    }

    fn peers_know_all(&self) -> bool {
        let knows = |row: &Row| {
            row.accepted_ballot == self.acceptor.accepted_ballot()
                && row.accepted_slot >= self.commit_slot
                && row.commit_slot >= self.commit_slot
                && row.applied_slot >= self.commit_slot
        };
        self.quorum_connected()
            && self.peers.iter().all(|peer| {
                // A process that is gone is no reason to stay up: it is heard when it comes back.
                !peer.linked || peer.row_is_current && knows(&peer.row)
            })
    }

    /// A row came. Ends the quiet if it says anything new; begins it if the leader rests and there is
    /// nothing to do here. `before` is the row that it replaces.
    pub(super) fn row_and_quiet(&mut self, from: NodeId, before: Row, row: Row) {
        let leads = row.flags.has(RowFlags::LEADING);
        if self.role_is_leader() {
            let says = |row: Row| {
                let flags = row.flags.0 & (RowFlags::AMNESIAC | RowFlags::POISONED);
                let vote = (row.accepted_ballot, row.accepted_slot);
                (row.promised, vote, row.commit_slot, row.applied_slot, row.incarnation, flags)
            };
            if says(before) != says(row) || row.flags.has(RowFlags::WANTS_SIGN) || leads {
                self.end_quiet();
            }
            return;
        }
        if self.leader() == Some(from) {
            if !row.flags.has(RowFlags::QUIET) || !leads {
                self.end_quiet();
            }
        } else if leads || row.promised > self.acceptor.promised() {
            self.end_quiet();
        }
        let of_leader = self.leader() == Some(from) && self.leader_rests();
        if !of_leader || self.quiet.on {
            return;
        }
        if self.settings.quiet_after > 0
            && matches!(self.role, Role::Follower)
            && row.commit_slot == self.commit_slot
            && self.nothing_to_do()
        {
            self.begin_quiet();
        } else if let Some(index) = self.peer_index(from) {
            // It does not rest: the leader is to know soon that it must not either.
            self.peers[index].row_due = true;
        }
    }
}
