//! Checkpoints, as the core sees them: slots that are known chosen without their values at hand.

use super::Paxos;
use crate::role::Role;
use crate::{Configurations, Mutant, Nanos, NodeId, RowFlags, Slot, ValueKind, ensures, requires};

impl Paxos {
    /// The state machine stands at `slot` now, by a checkpoint that is durable here: one of this
    /// replica's own at its start, or one received from a peer.
    ///
    /// Rules K1, K3: a checkpoint covers chosen slots only, so all up to `slot` is known chosen. What
    /// was accepted above stays as it is, under the ballots it was accepted under, and the promise is
    /// untouched. What the log has at or below `slot`, if the slot was not known chosen before, need
    /// not be what was chosen: it is given to nobody any more.
    ///
    /// # Panics
    /// If the state machine has seen more already.
    pub fn on_checkpoint(&mut self, now: Nanos, slot: Slot, configurations: Configurations) {
        self.now = self.now.max(now);
        requires!(always, K3, slot >= self.applied_slot, "a state machine never goes back");
        let is_news = slot > self.commit_slot;
        if is_news {
            if let Role::Leader(_) = self.role {
                self.step_down("others have chosen more than it knows");
            }
            self.commit_slot = slot;
            self.log_first = self.log_first.max(slot.next());
            self.acceptor.window.begin_at(slot.next());
            if !self.settings.is(Mutant::CheckpointForgetsVote) {
                self.acceptor.chosen_through(slot);
            }
            self.acceptor.mark();
            self.catch_up.forget_missing_members();
            self.adopt_configurations(slot, configurations);
            self.catch_up_progressed();
            self.mark_rows_due();
        } else {
            self.recall_members(slot, &configurations);
        }
        self.applied_slot = slot;
        ensures!(
            checked,
            K3,
            self.commit_slot >= slot && self.acceptor.accepted_slot() >= slot,
            "a replica at a checkpoint knows all up to there to be chosen"
        );
        ensures!(
            checked,
            K4,
            !is_news || self.log_first > slot,
            "what a checkpoint passed over is read from no log"
        );
        self.shrink_window();
        self.configurations.forget_below(slot);
        self.resume_catch_up();
        self.settle_reads();
        if let Role::Adopting(_) = self.role
            && is_news
        {
            self.rest_election_timer();
            self.continue_adoption();
        }
    }

    /// Rule C1 over a jump: who decides as of `slot`, and what was accepted above it names more.
    fn adopt_configurations(&mut self, slot: Slot, configurations: Configurations) {
        if !self.settings.is(Mutant::CheckpointOldMembers) {
            self.configurations = configurations;
        }
        self.members_version += 1;
        if self.configurations.latest().protocol > self.settings.protocol {
            self.on_strange_configuration(slot);
        }
        let accepted = self.acceptor.window.entries(slot.next(), Slot(u64::MAX), usize::MAX);
        for entry in accepted.iter().filter(|entry| entry.value.kind == ValueKind::Configuration) {
            self.note_value(entry.slot, &entry.value);
        }
        self.refresh_members();
        self.on_commit_moved();
    }

    /// The log gives entries from `first` on: it was trimmed.
    pub fn on_log_trimmed(&mut self, first: Slot) {
        self.log_first = self.log_first.max(first);
    }

    /// The lowest slot that the log can give.
    #[must_use]
    pub fn log_first(&self) -> Slot {
        self.log_first
    }

    /// Whether only a checkpoint of a peer helps this replica on, at this slot or above: what the state
    /// machine needs next is in nobody's log, as far as this replica was told and has tried.
    #[must_use]
    pub fn snapshot_wanted(&self) -> Option<Slot> {
        if self.poisoned || matches!(self.role, Role::Leader(_)) {
            return None;
        }
        if self.settings.witness {
            // Who decides is all that it wants of a checkpoint (W2).
            return self.is_left_behind().then_some(self.commit_slot.next());
        }
        let next = self.applied_slot.next();
        if next < self.log_first && next < self.acceptor.window.first() {
            return Some(self.log_first.previous());
        }
        let first = self.commit_slot.next();
        // A peer that may have the slot and does not give it (its log failed, its disk hangs) is asked on,
        // but must not keep this replica from the checkpoint of one that trimmed its log.
        let trimmed = self.peers_ahead().any(|peer| peer.log_first > first);
        let mut others = self.peers_ahead().filter(|peer| peer.log_first <= first);
        (trimmed && others.all(|peer| peer.no_help_from == first)).then_some(first)
    }

    /// Who may have a checkpoint that reaches `at_least`: whoever knows so much to be chosen and
    /// lives, another one than `not` and not the leader, if there is a choice.
    #[must_use]
    pub fn snapshot_source(&self, at_least: Slot, not: Option<NodeId>) -> Option<NodeId> {
        let leader = self.leader();
        let within = self.settings.election_timeout_min;
        let able = |peer: &&super::Peer| {
            peer.row.applied_slot >= at_least
                && self.hears(peer, within)
                && !peer.row.flags.has(RowFlags::WITNESS)
        };
        let turn =
            |node: NodeId| not.map_or(node.0, |not| node.0.wrapping_sub(not.0).wrapping_sub(1));
        let spared = |node: NodeId| not.is_none() && Some(node) == leader;
        let able = self.peers.iter().filter(able);
        able.min_by_key(|peer| (Some(peer.node) == not, spared(peer.node), turn(peer.node)))
            .map(|peer| peer.node)
    }
}
