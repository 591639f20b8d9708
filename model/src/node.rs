//! One replica: the core, its disk, and what is between the two.

use crate::bounds::Bounds;
use quorate_consensus::{
    Ballot, Configuration, Configurations, Entry, Incarnation, LogRead, Member, Mistake, Nanos,
    NodeId, Paxos, Persist, PersistNumber, Restored, RoleName, Settings, Slot, ValueKind,
};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Further than any wait of the core, being let go of after a removal included.
pub(crate) const JUMP: Nanos = Nanos::from_millis(10_000);

/// What survives.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Disk {
    pub(crate) promised: Ballot,
    /// The newest record of each slot; a replica accepts in order, so there are no holes.
    pub(crate) log: Vec<Entry>,
    commit_slot: Slot,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) member: Member,
    pub(crate) paxos: Paxos,
    pub(crate) disk: Disk,
    /// Emitted and not durable, each with the commit slot that its record carries.
    pending: VecDeque<(Persist, Slot)>,
    durable: u64,
    pub(crate) now: Nanos,
    /// Of all of the above that decides anything.
    pub(crate) digest: u64,
}

pub(crate) fn member(node: u16) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(u64::from(node)) }
}

fn founding(bounds: &Bounds) -> Configuration {
    Configuration::of_voters(1, bounds.voters.iter().map(|node| member(*node)).collect())
}

impl Node {
    pub(crate) fn new(bounds: &Bounds, node: u16) -> Self {
        let disk = Disk { promised: Ballot::ZERO, log: Vec::new(), commit_slot: Slot::ZERO };
        Self::start(bounds, member(node), disk)
    }

    /// Starts from `disk`.
    pub(crate) fn start(bounds: &Bounds, member: Member, disk: Disk) -> Self {
        let mut settings = Settings::new(member.node, member.incarnation);
        settings.seed = 1;
        settings.contacts = (1..=Bounds::REPLICAS as u16).map(NodeId).collect();
        settings.mistake = Mistake::of(bounds.mistake);
        let commit_slot = disk.commit_slot;
        let mut configurations = Configurations::new(founding(bounds));
        for entry in disk.log.iter().filter(|entry| entry.slot <= commit_slot) {
            let named = entry.value.kind == ValueKind::Configuration;
            let named = named.then(|| Configuration::decode(&entry.value.bytes)).flatten();
            configurations.note(entry.slot, named);
        }
        let restored = Restored {
            promised: disk.promised,
            commit_slot,
            log_first: Slot(1),
            accepted: disk.log.iter().filter(|entry| entry.slot > commit_slot).cloned().collect(),
            configurations: configurations.as_of(commit_slot),
            remembers: true,
        };
        let paxos = Paxos::new(settings, restored, Nanos(0));
        let pending = VecDeque::new();
        Self { member, paxos, disk, pending, durable: 0, now: Nanos(0), digest: 0 }
    }

    /// Takes the next persists out of the core.
    pub(crate) fn emit(&mut self) -> bool {
        let mut any = false;
        while let Some(persist) = self.paxos.poll_persist() {
            self.pending.push_back((persist, self.paxos.log_commit_slot()));
            any = true;
        }
        any
    }

    pub(crate) fn may_flush(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The oldest persist becomes durable; returns it.
    pub(crate) fn flush(&mut self) -> Option<Persist> {
        let (persist, commit_slot) = self.pending.pop_front()?;
        self.durable += 1;
        match &persist {
            Persist::Promise(ballot) => self.disk.promised = *ballot,
            Persist::Entry(entry) => {
                let index = entry.slot.0 as usize - 1;
                assert!(index <= self.disk.log.len(), "the log has no holes");
                match self.disk.log.get_mut(index) {
                    Some(held) => *held = entry.clone(),
                    None => self.disk.log.push(entry.clone()),
                }
                // A record implies a promise of its ballot: a learned one may be of any.
                self.disk.commit_slot = self.disk.commit_slot.max(commit_slot);
            }
        }
        self.paxos.on_persisted(PersistNumber(self.durable));
        Some(persist)
    }

    /// Whether it collects promises for `ballot`, or adopts what they report.
    pub(crate) fn prepares(&self, ballot: Ballot) -> bool {
        self.paxos.role() == RoleName::Candidate && self.paxos.promised() == ballot
    }

    /// Whether it stands or leads under `ballot`.
    pub(crate) fn uses(&self, ballot: Ballot) -> bool {
        let active = matches!(self.paxos.role(), RoleName::Candidate | RoleName::Leader);
        active && self.paxos.promised() == ballot && ballot.node == self.member.node
    }

    pub(crate) fn read_log(&self, read: LogRead) -> Vec<Entry> {
        let within = |entry: &&Entry| entry.slot >= read.first && entry.slot <= read.last;
        self.disk.log.iter().filter(within).cloned().collect()
    }

    /// Notes what the node is now.
    pub(crate) fn seal(&mut self) {
        let mut hasher = DefaultHasher::new();
        self.paxos.hash_canonical(&mut hasher);
        (&self.disk, &self.pending).hash(&mut hasher);
        self.digest = hasher.finish();
    }
}
