//! The invariants, held against what the replicas show and what their disks keep.
//!
//! Numbers are those of the reliability catalogue: I1 one value a slot, I2 for ever, I3 promises only
//! grow, I5 what is committed has a quorum of durable votes, I6 applied ⊆ committed, both growing, I7
//! equal slots have equal digests, I9 nothing that was told is lost by the disk, I15 bounded queues.
//! I4 is asserted by the acceptor and shows as I1 or I9 when that is broken; I12 and I13 are in
//! [`crate::machine`] and at the end of a run.

use crate::medium::{SimMedium, Survival};
use crate::members::Members;
use crate::random::Random;
use crate::shape::Shape;
use crate::spy::Spy;
use quorate_consensus::{Ballot, Incarnation, Member, NodeId, Paxos, RowFlags, Slot};
use quorate_pmem_log::{CheckpointStore, Log, LogOptions, Recovered, SyncSteps};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What one life of a replica showed last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    promised: Ballot,
    commit: Slot,
    applied: Slot,
    /// What was noted of it: its durable vote, and the version of its members.
    vote: (Ballot, Slot),
    members_version: Option<u64>,
}

impl Seen {
    /// What it knew to be chosen.
    #[must_use]
    pub(crate) fn commit(&self) -> Slot {
        self.commit
    }
}

/// What a run knows to be so, for ever.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Who decides what.
    pub(crate) members: Members,
    /// Committed somewhere.
    pub(crate) committed: u64,
    /// The digest after each slot that some replica stopped at.
    digests: BTreeMap<u64, u64>,
    /// The checksum of what is chosen, from disks.
    chosen: BTreeMap<u64, u32>,
    /// Which life led under which ballot.
    leaders: BTreeMap<Ballot, u64>,
    /// Checks of disks.
    pub(crate) probes: u64,
}

/// One replica, as a check sees it.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    /// Counted from 0.
    pub(crate) node: usize,
    /// Its number, and the life of its disk.
    pub(crate) member: Member,
    /// Which life.
    pub(crate) life: u64,
    /// The digest of what it applied.
    pub(crate) digest: u64,
    /// Its core.
    pub(crate) core: &'a Paxos,
}

impl Checks {
    /// Leaderships so far.
    #[must_use]
    pub(crate) fn leaderships(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Notes the promise and the durable vote of a replica; done even for one that died in this turn,
    /// since they may have left before.
    pub(crate) fn note_vote(&mut self, subject: &Subject<'_>, seen: &mut Seen) {
        let core = subject.core;
        if core.promised() > seen.promised {
            self.members.note_promise(subject.member, core.promised());
        }
        let vote = core.vote();
        if vote != seen.vote && vote.0 > Ballot::ZERO && remembers(core) {
            seen.vote = vote;
            self.members.note_vote(subject.member, vote);
        }
    }

    /// What a ring holds is a vote of who holds it (rule B1).
    pub(crate) fn note_written(&mut self, subject: &Subject<'_>, vote: (Ballot, Slot)) {
        if remembers(subject.core) {
            self.members.note_vote(subject.member, vote);
        }
    }

    /// After a turn.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn after_turn(
        &mut self,
        subject: &Subject<'_>,
        seen: &mut Seen,
        shape: &Shape,
    ) -> Result<(), String> {
        let core = subject.core;
        let (promised, commit, applied) =
            (core.promised(), core.commit_slot(), core.applied_slot());
        if promised < seen.promised {
            return Err(format!("I3: promised {promised} after {}", seen.promised));
        }
        if commit < seen.commit || applied < seen.applied || applied > commit {
            return Err(format!("I6: commit {commit}, applied {applied} after {seen:?}"));
        }
        let members_version = Some(core.members_version());
        if commit.0 > self.committed {
            self.members.committed(core, Slot(self.committed))?;
            self.committed = commit.0;
        } else if members_version != seen.members_version || commit != seen.commit {
            self.members.learned(core)?;
        }
        // A witness applies nothing.
        if applied != seen.applied && !core.is_witness() {
            let digest = *self.digests.entry(applied.0).or_insert(subject.digest);
            if digest != subject.digest {
                return Err(format!("I7: another digest at slot {applied}"));
            }
        }
        if core.role_is_leader() {
            let ballot = core.ballot();
            if !self.leaders.contains_key(&ballot) {
                self.members.elected(subject, seen.commit)?;
            }
            let life = *self.leaders.entry(ballot).or_insert(subject.life);
            if life != subject.life || usize::from(ballot.node.0) != subject.node + 1 {
                return Err(format!("two lives led under ballot {ballot}"));
            }
        }
        let memory = shape.cache_bytes_max + shape.window_bytes_max + WINDOW_SLACK_BYTES;
        if core.window_bytes() > memory {
            return Err(format!("I15: {} bytes of log in memory", core.window_bytes()));
        }
        *seen = Seen { promised, commit, applied, members_version, vote: seen.vote };
        Ok(())
    }

    /// What a disk would give back if its machine died now, losing all that it may lose.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn probe(
        &mut self,
        node: usize,
        shape: &Shape,
        medium: &SimMedium,
        spy: &Spy,
    ) -> Result<(), String> {
        self.probes += 1;
        let copy = medium.after_crash(Survival::Nothing, &mut Random::new(0));
        let opened = open(Arc::clone(&copy), node, shape, Incarnation(1), &SyncSteps::default());
        let (log, recovered) =
            opened.map_err(|error| format!("I9: a disk is unreadable: {error}"))?;
        let checked = self.recovered(copy, &log, &recovered, spy.promised, spy.vote);
        // The copy is not to be sealed: it is thrown away.
        drop(log);
        checked
    }

    /// Holds what a log gave back against what its replica told others.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn recovered(
        &mut self,
        copy: Arc<SimMedium>,
        log: &Log,
        recovered: &Recovered,
        told: Ballot,
        vote: (Ballot, Slot),
    ) -> Result<(), String> {
        if let Some(damage) = recovered.damaged.first() {
            return Err(format!("I9: an undamaged disk is taken for damaged: {damage:?}"));
        }
        if recovered.promised < told.max(vote.0) {
            return Err(format!(
                "I3: the disk has promise {}, told were {told} and vote {}",
                recovered.promised, vote.0
            ));
        }
        // What a checkpoint covers need not be in the log, and what the log has there need not be what
        // was chosen (rule K4).
        let store = CheckpointStore::open(copy, 2)
            .map_err(|error| format!("I9: the checkpoints are unreadable: {error}"))?;
        if let Some(bad) = store.bad().first() {
            return Err(format!("I9: an undamaged checkpoint at {bad} is taken for damaged"));
        }
        let mut covered = Slot::ZERO;
        for checkpoint in store.installed() {
            store.verify(checkpoint).map_err(|error| format!("I9: {error}"))?;
            covered = checkpoint.id.slot;
            if checkpoint.id.digest == 0 {
                // A witness's: it holds no state.
                continue;
            }
            let digest = *self.digests.entry(covered.0).or_insert(checkpoint.id.digest);
            if digest != checkpoint.id.digest {
                return Err(format!("I14: the checkpoint at {covered} is of another history"));
            }
        }
        if recovered.last_slot.max(covered) < vote.1 {
            return Err(format!(
                "I9: the disk ends at slot {}, told was a vote for {}",
                recovered.last_slot, vote.1
            ));
        }
        let mut entries = Vec::new();
        let mut next = recovered.first_slot;
        if covered > Slot::ZERO {
            next = covered.next();
        }
        loop {
            let before = entries.len();
            log.read(next, 1 << 20, &mut entries).map_err(|error| format!("I9: {error}"))?;
            match entries.last() {
                Some(last) if entries.len() > before => next = last.slot.next(),
                _ => break,
            }
        }
        if vote.1 > Slot::ZERO && next <= vote.1 {
            return Err(format!("I9: slot {next} is missing below a vote for {}", vote.1));
        }
        let certain = entries.iter().take_while(|entry| entry.slot <= recovered.commit_slot);
        for entry in certain.filter(|entry| !entry.value.is_withheld()) {
            let sum = *self.chosen.entry(entry.slot.0).or_insert(entry.value.checksum);
            if sum != entry.value.checksum {
                return Err(format!("I2: slot {} has another value on this disk", entry.slot));
            }
        }
        Ok(())
    }
}

/// Whether a replica has all that it promised and accepted, and keeps it: its votes count wherever a
/// configuration names it.
fn remembers(core: &Paxos) -> bool {
    let flags = core.row(core.node()).flags;
    !flags.has(RowFlags::AMNESIAC) && !flags.has(RowFlags::POISONED)
}

/// What a window may hold beyond its limits: values in flight are counted when they are taken.
const WINDOW_SLACK_BYTES: usize = 8 << 20;

/// Opens the log of a replica.
///
/// # Errors
/// As `Log::open`.
pub(crate) fn open(
    medium: Arc<SimMedium>,
    node: usize,
    shape: &Shape,
    fresh: Incarnation,
    steps: &SyncSteps,
) -> Result<(Log, Recovered), quorate_pmem_log::OpenError> {
    let options = LogOptions {
        directory: PathBuf::new(),
        medium: shape.profile.kind,
        node: NodeId(node as u16 + 1),
        segment_bytes: shape.segment_bytes,
    };
    Log::open_stepped(medium, &options, fresh, steps)
}
