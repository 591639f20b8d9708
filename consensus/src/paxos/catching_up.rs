//! Catching up: chosen values from any peer's log, for a replica that lagged, restarted, or has no
//! link to the leader.

use super::{LOG_READS_MAX, LogRead, Paxos};
use crate::buggify::Point;
use crate::role::Role;
use crate::{
    Ballot, Configurations, Entry, Message, Mutant, Nanos, NodeId, RowFlags, Slot, requires,
};
use alloc::vec::Vec;

/// One request is outstanding at a time: the reply of at most `catch_up_bytes` is the flow control.
#[derive(Clone, Debug, Default)]
pub(super) struct CatchUp {
    /// Someone knows everything up to here to be chosen.
    target: Slot,
    /// Who was asked last, and when the answer is given up.
    asked: Option<(NodeId, Nanos)>,
    /// Who is to be asked as soon as the state machine has made room in memory.
    held_back: Option<NodeId>,
    /// When `commit_slot` last moved, or there was last nothing to catch up.
    progressed_at: Nanos,
    /// Configurations that stand below may be missing: neither the checkpoint that could be read nor the
    /// log has those slots.
    members_from: Option<Slot>,
}

impl CatchUp {
    /// A checkpoint above all that is known chosen says who decides.
    pub(super) fn forget_missing_members(&mut self) {
        self.members_from = None;
    }

    /// All that decides what it will do, where the clock stands still or jumps past every wait.
    #[cfg(feature = "model")]
    pub(super) fn canonical(&self, now: Nanos) -> impl core::hash::Hash + use<> {
        let asked = self.asked.map(|(source, give_up_at)| (source, now >= give_up_at));
        (self.target, asked, self.held_back, self.members_from)
    }
}

impl Paxos {
    /// Between what the newest readable checkpoint covers and slot `first` a configuration may stand
    /// that this replica lost. It does not stand for election before a checkpoint of a peer brings it
    /// (rule C11): it would count the promises of those who decided once. It promises and votes as
    /// before, since others do the counting.
    pub fn misses_members_below(&mut self, first: Slot) {
        self.catch_up.members_from = Some(first);
    }

    /// Whether this replica knows who decides what.
    pub(super) fn knows_members(&self) -> bool {
        self.catch_up.members_from.is_none() || self.settings.is(Mutant::StandWithOldMembers)
    }

    /// A checkpoint of `slot`, which was known chosen, brings who decided then. What stands behind it
    /// is known here if nothing that may be missing does.
    pub(super) fn recall_members(&mut self, slot: Slot, configurations: &Configurations) {
        if self.catch_up.members_from.is_none_or(|first| slot.next() < first) {
            return;
        }
        self.catch_up.members_from = None;
        let known = core::mem::replace(&mut self.configurations, configurations.clone());
        for (at, configuration) in known.iter().filter(|(at, _)| *at > slot) {
            self.configurations.note(at, Some(configuration.clone()));
        }
        self.members_version += 1;
        self.refresh_members();
        self.on_commit_moved();
    }

    /// A peer says that everything up to `commit` is chosen.
    pub(super) fn note_chosen_elsewhere(&mut self, commit: Slot) {
        if self.catch_up.target <= self.commit_slot {
            self.catch_up.progressed_at = self.now;
        }
        self.catch_up.target = self.catch_up.target.max(commit);
    }

    /// `commit_slot` moved.
    pub(super) fn catch_up_progressed(&mut self) {
        self.catch_up.progressed_at = self.now;
    }

    /// The leader's memory does not reach back to what we lack: begin at once.
    pub(super) fn on_behind(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        first_available: Slot,
        commit_slot: Slot,
    ) {
        if ballot < self.acceptor.promised() || self.commit_slot.next() >= first_available {
            return;
        }
        self.note_chosen_elsewhere(commit_slot);
        if self.settings.witness {
            self.catch_up.progressed_at = Nanos(0);
        }
        if self.catch_up.asked.is_none()
            && let Some(source) = self.catch_up_source(None).or_else(|| self.if_it_reaches(from))
        {
            self.ask(source);
        }
    }

    /// A new leader pulls what `source` knows to be chosen.
    pub(super) fn catch_up_from(&mut self, source: NodeId, through: Slot) {
        self.note_chosen_elsewhere(through);
        if self.catch_up.asked.is_none()
            && let Some(source) = self.if_it_reaches(source)
        {
            self.ask(source);
        }
    }

    /// Live shipping is the normal way; this one starts when it has not helped for a while.
    /// Whether others know more to be chosen.
    pub(super) fn is_behind(&self) -> bool {
        self.commit_slot < self.catch_up.target
    }

    /// Whether a witness waits in vain for what is chosen to be shown to it.
    pub(super) fn is_left_behind(&self) -> bool {
        let patience = Nanos(self.settings.election_timeout_min.0 / 2);
        self.is_behind() && self.now.since(self.catch_up.progressed_at) >= patience
    }

    pub(super) fn on_catch_up_timer(&mut self) {
        if self.poisoned || self.commit_slot >= self.catch_up.target {
            self.catch_up.asked = None;
            return;
        }
        match self.catch_up.asked {
            Some((_, give_up_at)) if self.now < give_up_at => {}
            Some((asked, _)) => {
                self.catch_up.asked = None;
                self.note_no_help(asked, self.commit_slot.next());
                let source = self.catch_up_source(Some(asked));
                if let Some(source) = source.or_else(|| self.if_it_reaches(asked)) {
                    self.ask(source);
                }
            }
            None => {
                let patience = Nanos(self.settings.election_timeout_min.0 / 2);
                if self.now.since(self.catch_up.progressed_at) >= patience
                    && let Some(source) = self.catch_up_source(None)
                {
                    self.ask(source);
                }
            }
        }
    }

    /// A live peer that knows more than we do: followers before the leader, which has other work,
    /// and another one than `not`, which did not answer.
    fn catch_up_source(&self, not: Option<NodeId>) -> Option<NodeId> {
        let leader = self.leader();
        let first = self.commit_slot.next();
        let able = self.peers_ahead().filter(|peer| peer.log_first <= first);
        // After one that did not answer the others are asked in turn, the leader too: two followers
        // with failed disks must not be asked alternately for ever.
        let turn =
            |node: NodeId| not.map_or(node.0, |not| node.0.wrapping_sub(not.0).wrapping_sub(1));
        let spared = |node: NodeId| not.is_none() && Some(node) == leader;
        able.min_by_key(|peer| (Some(peer.node) == not, spared(peer.node), turn(peer.node)))
            .map(|peer| peer.node)
    }

    /// Live peers that know more than we do.
    pub(super) fn peers_ahead(&self) -> impl Iterator<Item = &super::Peer> + '_ {
        let within = self.settings.election_timeout_min;
        let ahead = |peer: &&super::Peer| {
            peer.row.commit_slot > self.commit_slot && !peer.row.flags.has(RowFlags::WITNESS)
        };
        self.peers.iter().filter(ahead).filter(move |peer| self.hears(peer, within))
    }

    /// `peer` was asked for `slot` and did not give it. It is asked again in its turn; but that it may have
    /// the slot is no reason any more to wait for it (rule K6).
    fn note_no_help(&mut self, peer: NodeId, slot: Slot) {
        if let Some(index) = self.peer_index(peer) {
            self.peers[index].no_help_from = slot;
        }
    }

    /// `source`, unless its log begins above what we lack, as it said.
    fn if_it_reaches(&self, source: NodeId) -> Option<NodeId> {
        let first = self.commit_slot.next();
        let reaches = self.peer_index(source).is_some_and(|at| self.peers[at].log_first <= first);
        reaches.then_some(source)
    }

    fn ask(&mut self, source: NodeId) {
        if self.settings.witness {
            // Rule W2: values are of no use to it. See `Paxos::snapshot_wanted`.
            return;
        }
        let full = self.settings.cache_bytes_max;
        if self.acceptor.window.bytes() > full && self.applied_slot < self.commit_slot {
            // The state machine is behind and memory is bounded: asked again when it went on.
            self.catch_up.asked = None;
            self.catch_up.held_back = Some(source);
            return;
        }
        self.catch_up.held_back = None;
        self.catch_up.asked = Some((source, self.now + self.settings.election_timeout_min));
        let bytes_max = self.settings.catch_up_bytes;
        self.send(source, Message::CatchUpRequest { first: self.commit_slot.next(), bytes_max });
    }

    /// The link to `peer` broke: if it was asked, it will not answer, and another one is asked next.
    pub(super) fn give_up_catch_up_from(&mut self, peer: NodeId) {
        if let Some((source, give_up_at)) = &mut self.catch_up.asked
            && *source == peer
        {
            *give_up_at = self.now;
        }
    }

    /// The state machine went on: go on catching up if that had to wait for it.
    pub(super) fn resume_catch_up(&mut self) {
        let Some(source) = self.catch_up.held_back.take() else { return };
        if self.commit_slot < self.catch_up.target && self.catch_up.asked.is_none() {
            self.ask(source);
        }
    }

    pub(super) fn on_catch_up_request(&mut self, from: NodeId, first: Slot, bytes_max: u32) {
        if self.settings.witness {
            return;
        }
        let unchosen = self.settings.is(Mutant::CatchUpUnchosen);
        let last = if unchosen { self.last_slot() } else { self.commit_slot };
        let bytes_max = if self.settings.whims.has(Point::ShortCatchUp) { 1 } else { bytes_max };
        if first > last || first >= self.acceptor.window.first() {
            let entries = self.acceptor.window.entries(first, last, bytes_max as usize);
            self.reply_to_catch_up(from, first, entries);
        } else if first < self.log_first && !self.settings.is(Mutant::CatchUpPassedOver)
            || self.poisoned && !self.all_is_durable()
        {
            // Trimmed, or passed over by a checkpoint: what stands there need not be chosen. Or nothing
            // becomes durable any more, so that a read of this log would wait for ever.
            self.reply_to_catch_up(from, first, Vec::new());
        } else if self.log_reads.len() < LOG_READS_MAX {
            requires!(
                checked,
                K4,
                first >= self.log_first,
                "what a checkpoint passed over is not read for a peer"
            );
            let read = LogRead { to: from, first, last, bytes_max };
            self.log_reads.push_back((self.acceptor.emitted(), read));
        }
    }

    fn all_is_durable(&self) -> bool {
        self.acceptor.durable_through() >= self.acceptor.emitted()
    }

    /// The log was read for a peer; `entries` are consecutive from `read.first` and may be none.
    pub fn on_log_read(&mut self, read: LogRead, mut entries: Vec<Entry>) {
        entries.retain(|entry| entry.slot <= read.last);
        self.reply_to_catch_up(read.to, read.first, entries);
    }

    fn reply_to_catch_up(&mut self, to: NodeId, first: Slot, entries: Vec<Entry>) {
        requires!(
            checked,
            L3,
            entries.iter().all(|entry| entry.slot <= self.commit_slot)
                && entries.is_sorted_by(|one, other| one.slot.next() == other.slot),
            "catch-up hands out chosen values only, one behind the other"
        );
        let (commit_slot, log_first) = (self.commit_slot, self.log_first);
        self.send(to, Message::CatchUpReply { first, commit_slot, log_first, entries });
    }

    pub(super) fn on_catch_up_reply(
        &mut self,
        from: NodeId,
        first: Slot,
        commit_slot: Slot,
        log_first: Slot,
        entries: Vec<Entry>,
    ) {
        if self.poisoned || matches!(self.role, Role::Leader(_)) {
            return;
        }
        let asked = self.catch_up.asked.is_some_and(|(source, _)| source == from);
        let before = self.commit_slot;
        for mut entry in entries {
            if entry.slot != self.commit_slot.next() || entry.value.is_withheld() {
                continue;
            }
            // The chosen value may stand here already, accepted under a higher ballot: a record
            // never goes back to a lower one.
            if let Some((held, _)) = self.acceptor.window.get(entry.slot) {
                let back = self.settings.is(Mutant::LearnGoesBack);
                entry.ballot = if back { entry.ballot } else { entry.ballot.max(*held) };
            }
            self.commit_slot = entry.slot;
            self.note_value(entry.slot, &entry.value);
            self.acceptor.learn(entry);
        }
        if self.commit_slot > before {
            self.acceptor.chosen_through(self.commit_slot);
            self.acceptor.mark();
            self.on_commit_moved();
            self.catch_up_progressed();
            self.mark_rows_due();
        }
        self.note_chosen_elsewhere(commit_slot);
        if let Some(index) = self.peer_index(from) {
            self.peers[index].log_first = log_first;
        }
        if self.commit_slot == before && first == before.next() {
            self.note_no_help(from, first);
        }
        if asked {
            self.catch_up.asked = None;
            let helps = self.commit_slot > before || (first == before.next() && log_first <= first);
            if self.commit_slot < self.catch_up.target {
                let next = if helps { Some(from) } else { self.catch_up_source(Some(from)) };
                match next {
                    Some(source) if self.commit_slot > before => self.ask(source),
                    // Nothing came: no tight loop, the timer asks again.
                    source => {
                        let source = source.or_else(|| self.if_it_reaches(from));
                        let again_at = self.now + self.settings.heartbeat_interval;
                        self.catch_up.asked = source.map(|source| (source, again_at));
                    }
                }
            }
        }
        if let Role::Adopting(_) = self.role {
            if self.commit_slot > before {
                self.rest_election_timer();
            }
            self.continue_adoption();
        }
    }
}
