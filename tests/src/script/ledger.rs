//! The invariants, checked after every event against what really happened.
//!
//! The ledger sees everything that any replica made durable, and computes from it what is chosen:
//! in slot order, a value that a quorum of the configuration that decides the slot accepted under
//! one ballot (I11: that configuration is the newest one below the slot in the log of that ballot). It
//! never forgets. Numbers in names
//! are those of the reliability plan (I1 to I13).

use quorate_consensus::{
    Ballot, Configuration, Configurations, Entry, Member, Message, NodeId, Repair, Row, Slot,
    Value, ValueKind,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is on a replica's disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The highest durable promise.
    pub promised: Ballot,
    /// The newest durable record of each slot.
    pub log: BTreeMap<Slot, Entry>,
    /// The highest commit slot that a durable record carries.
    pub commit_slot: Slot,
    /// Whether it still has all that its voter ever promised.
    pub remembers: bool,
    /// Entries were lost, not the disk: the vote comes back when this is repaired.
    pub repair: Option<Repair>,
    /// Of a witness: all up to this slot was chosen, and who decided then.
    pub checkpoint: Option<(Slot, Configurations)>,
}

impl Disk {
    /// An empty one of a founding voter.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            promised: Ballot::ZERO,
            log: BTreeMap::new(),
            commit_slot: Slot::ZERO,
            remembers: true,
            repair: None,
            checkpoint: None,
        }
    }

    /// Up to where a witness knows all to be chosen without entries.
    #[must_use]
    pub fn passed_over(&self) -> Slot {
        self.checkpoint.as_ref().map_or(Slot::ZERO, |(slot, _)| *slot)
    }
}

/// The history of a cluster, and what it must never contain.
#[derive(Clone, Debug)]
pub struct Ledger {
    founding: Configuration,
    proposed: BTreeMap<(Slot, Ballot), Value>,
    /// Slots for which some ballot proposed a configuration.
    configured: BTreeSet<Slot>,
    votes: BTreeMap<(Slot, Ballot), BTreeSet<Member>>,
    chosen: BTreeMap<Slot, (Ballot, Value)>,
    leaders: BTreeMap<Ballot, NodeId>,
    promise_told: BTreeMap<(NodeId, u64), Ballot>,
    digests: BTreeMap<Slot, u64>,
    commit_max: Slot,
    violations: Vec<String>,
}

impl Ledger {
    /// Of a cluster in which `founding` decides the first slot.
    #[must_use]
    pub fn new(founding: Configuration) -> Self {
        Self {
            founding,
            proposed: BTreeMap::new(),
            configured: BTreeSet::new(),
            votes: BTreeMap::new(),
            chosen: BTreeMap::new(),
            leaders: BTreeMap::new(),
            promise_told: BTreeMap::new(),
            digests: BTreeMap::new(),
            commit_max: Slot::ZERO,
            violations: Vec::new(),
        }
    }

    /// What went wrong since this was last asked.
    pub fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    /// Notes something that must not have happened.
    pub fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// What is chosen, by slot.
    #[must_use]
    pub fn chosen(&self) -> &BTreeMap<Slot, (Ballot, Value)> {
        &self.chosen
    }

    /// The highest slot that any replica ever knew to be chosen: what may have been acknowledged
    /// to a client.
    #[must_use]
    pub fn commit_max(&self) -> Slot {
        self.commit_max
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }

    /// One proposer, one value: under a ballot a slot never has two.
    pub fn one_value_per_ballot(&mut self, slot: Slot, ballot: Ballot, value: &Value) {
        if value.kind == ValueKind::Configuration {
            self.configured.insert(slot);
        }
        // A new leader ships what an earlier one proposed as well, and perhaps to a witness first.
        let known = self.proposed.range((slot, Ballot::ZERO)..(slot.next(), Ballot::ZERO));
        let known = known.rev().map(|(_, known)| known).find(|known| known.withheld() == *value);
        let whole = known.filter(|_| value.is_withheld()).unwrap_or(value).clone();
        let before = self.proposed.entry((slot, ballot)).or_insert(whole).clone();
        // What a witness was shown of it (rule W2).
        let same = before == *value || value.is_withheld() && before.withheld() == *value;
        self.require(same && !before.is_withheld(), || {
            format!("two values for {slot:?} under {ballot:?}: {before:?} and {value:?}")
        });
    }

    /// I1 and I2: at most one value is chosen for a slot, for ever. Called for each entry that
    /// became durable at a replica.
    pub fn i1_i2_one_chosen_value(&mut self, member: Member, entry: &Entry) {
        self.votes.entry((entry.slot, entry.ballot)).or_default().insert(member);
        let proposed = self.proposed.get(&(entry.slot, entry.ballot)).cloned();
        let value = if entry.value.is_withheld() { proposed } else { Some(entry.value.clone()) };
        if let Some(value) = value {
            self.count(entry.slot, entry.ballot, &value);
        }
    }

    fn count(&mut self, slot: Slot, ballot: Ballot, value: &Value) {
        // In order: what is accepted behind a slot that is not chosen is not chosen either.
        if slot > Slot(1) && !self.chosen.contains_key(&slot.previous()) {
            return;
        }
        let Some(deciding) = self.deciding(slot, ballot) else { return };
        let votes = self.votes.get(&(slot, ballot));
        if !deciding.is_quorum(|member| votes.is_some_and(|votes| votes.contains(&member))) {
            return;
        }
        match self.chosen.get(&slot) {
            None => {
                self.chosen.insert(slot, (ballot, value.clone()));
                let next = slot.next();
                let waiting: Vec<_> = self
                    .proposed
                    .range((next, Ballot::ZERO)..(next.next(), Ballot::ZERO))
                    .map(|(&(slot, ballot), value)| (slot, ballot, value.clone()))
                    .collect();
                for (slot, ballot, value) in waiting {
                    self.count(slot, ballot, &value);
                }
            }
            Some((before, chosen)) if chosen != value => {
                let what = format!(
                    "I1: {slot:?} has {chosen:?} chosen under {before:?} and {value:?} under {ballot:?}"
                );
                self.violations.push(what);
            }
            Some(_) => {}
        }
    }

    /// Who decides `slot` under `ballot`; nobody if the log of this ballot has another configuration
    /// somewhere than was chosen there.
    fn deciding(&self, slot: Slot, ballot: Ballot) -> Option<Configuration> {
        let mut newest = None;
        for at in self.configured.range(..slot).rev() {
            let chosen = self.chosen.get(at).map(|(_, value)| value);
            let proposed = self.proposed.get(&(*at, ballot));
            if proposed.is_some() && chosen.is_some() && proposed != chosen {
                return None;
            }
            let value = proposed.or(chosen).filter(|value| value.kind == ValueKind::Configuration);
            newest = newest.or(value.and_then(|value| Configuration::decode(&value.bytes)));
        }
        Some(newest.unwrap_or_else(|| self.founding.clone()))
    }

    /// The configuration that decides the slot behind the last one chosen.
    #[must_use]
    pub fn configuration(&self) -> Configuration {
        self.configuration_at(Slot(u64::MAX))
    }

    /// The configuration that decides `slot`, as far as it is chosen.
    #[must_use]
    pub fn configuration_at(&self, slot: Slot) -> Configuration {
        let chosen = self.chosen.range(..slot).rev().map(|(_, (_, value))| value);
        let mut known = chosen.filter(|value| value.kind == ValueKind::Configuration);
        let known = known.find_map(|value| Configuration::decode(&value.bytes));
        known.unwrap_or_else(|| self.founding.clone())
    }

    /// The last slot chosen that says of a configuration that it is settled; 0 is the founding one's. Who
    /// decided below is needed by nobody any more (rule C7).
    #[must_use]
    pub fn settled_at(&self) -> Slot {
        let settles = |value: &Value| {
            value.kind == ValueKind::Configuration
                && Configuration::decode(&value.bytes).is_some_and(|known| known.settled)
        };
        let mut settled = self.chosen.iter().rev().filter(|(_, (_, value))| settles(value));
        settled.next().map_or(Slot::ZERO, |(slot, _)| *slot)
    }

    /// I3: a promise never goes back, on the disk or from one life to the next.
    pub fn i3_promise_monotone(&mut self, node: NodeId, before: Ballot, after: Ballot) {
        self.require(after >= before, || {
            format!("I3: {node:?} promised {before:?} and went back to {after:?}")
        });
    }

    /// I4: nothing is accepted below the promise. What is below was learned: it is chosen.
    pub fn i4_no_acceptance_below_promise(
        &mut self,
        node: NodeId,
        entry: &Entry,
        promised: Ballot,
        commit_slot: Slot,
    ) {
        if entry.ballot >= promised {
            return;
        }
        let chosen = self
            .chosen
            .get(&entry.slot)
            .is_some_and(|(_, value)| *value == entry.value || value.withheld() == entry.value);
        self.require(chosen && entry.slot <= commit_slot, || {
            format!("I4: {node:?} promised {promised:?} and accepted {entry:?}")
        });
    }

    /// I5: what a replica takes for chosen is chosen; and it never takes it back within a life.
    pub fn i5_commit_only_chosen(&mut self, node: NodeId, before: Slot, commit: Slot) {
        self.require(commit >= before, || {
            format!("I6: commit of {node:?} went back to {commit:?}")
        });
        for slot in before.0 + 1..=commit.0 {
            let chosen = self.chosen.contains_key(&Slot(slot));
            self.require(chosen, || {
                format!("I5: {node:?} takes {:?} for chosen, which it is not", Slot(slot))
            });
        }
        self.commit_max = self.commit_max.max(commit);
    }

    /// I6: the state machine sees only what is chosen.
    pub fn i6_applied_within_commit(&mut self, node: NodeId, applied: Slot, commit: Slot) {
        self.require(applied <= commit, || {
            format!("I6: {node:?} applied {applied:?} above its commit {commit:?}")
        });
    }

    /// I7: whoever applied a slot has applied the same sequence up to it.
    pub fn i7_equal_slot_equal_digest(
        &mut self,
        node: NodeId,
        slot: Slot,
        value: &Value,
        digest: u64,
    ) {
        let same = *self.digests.entry(slot).or_insert(digest) == digest;
        let chosen = self.chosen.get(&slot).is_some_and(|(_, chosen)| chosen == value);
        self.require(same && chosen, || {
            format!("I7: {node:?} applied {value:?} at {slot:?}, which others do not have there")
        });
    }

    /// A ballot belongs to its proposer, in one of its lives.
    pub fn one_leader_per_ballot(&mut self, node: NodeId, ballot: Ballot) {
        let before = self.leaders.insert(ballot, node);
        self.require(before.is_none() && ballot.node == node, || {
            format!("{node:?} leads under {ballot:?}, which {before:?} did before")
        });
    }

    /// I9, control lane: a message that needs durability left only after it.
    pub fn i9_message_is_durable(&mut self, member: Member, disk: &Disk, message: &Message) {
        let node = member.node;
        match message {
            Message::Prepare { ballot, .. } => {
                self.require(disk.promised >= *ballot, || {
                    format!("I9: {node:?} prepares {ballot:?}, and its disk does not know")
                });
            }
            Message::Promise { ballot, runs, .. } => {
                let life = (node, member.incarnation.0);
                let told = self.promise_told.get(&life).copied().unwrap_or_default();
                self.i3_promise_monotone(node, told, *ballot);
                self.promise_told.insert(life, *ballot);
                let held = runs.iter().all(|run| {
                    (run.first.0..=run.last.0).all(|slot| {
                        let entry = disk.log.get(&Slot(slot));
                        entry.is_some_and(|entry| entry.ballot >= run.ballot)
                    })
                });
                self.require(held && disk.promised >= *ballot, || {
                    format!("I9: {node:?} says {message:?}, and its disk does not know")
                });
            }
            _ => {}
        }
    }

    /// I9, data lane: a vote in a row counts only what is durable.
    pub fn i9_row_is_durable(&mut self, node: NodeId, disk: &Disk, commit: Slot, row: &Row) {
        for slot in disk.passed_over().0 + 1..=row.accepted_slot.0 {
            let slot = Slot(slot);
            let entry = disk.log.get(&slot);
            let vote =
                entry.is_some_and(|entry| slot <= commit || entry.ballot >= row.accepted_ballot);
            self.require(vote, || {
                format!("I9: {node:?} votes for {slot:?} in {row:?}, and its disk has {entry:?}")
            });
        }
    }

    /// Within one incarnation of a link a row only grows: late, it says too little, never a lie.
    pub fn row_grows(&mut self, node: NodeId, before: &Row, row: &Row) {
        let vote = |row: &Row| (row.accepted_ballot, row.accepted_slot);
        let grows = row.promised >= before.promised
            && vote(row) >= vote(before)
            && row.commit_slot >= before.commit_slot
            && row.applied_slot >= before.applied_slot
            && row.heartbeat >= before.heartbeat
            && row.ping >= before.ping
            && row.pong >= before.pong;
        self.require(grows, || format!("the row of {node:?} shrank: {before:?} to {row:?}"));
    }

    /// A linearizable read sees every write that may have been acknowledged before it began.
    pub fn read_is_fresh(&mut self, node: NodeId, floor: Slot, slot: Slot) {
        // Beside witnesses a new leader need not know of what changes no state (rule W7).
        let witnesses = !self.configuration_at(slot.next()).witnesses.is_empty();
        let mut missed = self.chosen.range(slot.next()..=floor.max(slot.next()));
        let same = witnesses && missed.all(|(_, (_, value))| value.kind != ValueKind::Commands);
        self.require(slot >= floor || same, || {
            format!("a read at {node:?} saw {slot:?}; {floor:?} was acknowledged before it began")
        });
    }
}
