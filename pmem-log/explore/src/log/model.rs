//! Which logs may come back.

use bytes::Bytes;
use quorate_consensus::{Ballot, Entry, Slot};
use quorate_pmem_log::{Log, Record, Recovered, Report};
use std::collections::VecDeque;
use std::fmt;

/// What a run was doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// Opening or formatting.
    #[default]
    Opening,
    /// Appending and flushing.
    Running,
    /// Trimming.
    Trimming,
    /// Setting the founding document.
    Founding,
    /// Closing.
    Closing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Running => "running",
            Self::Trimming => "trimming",
            Self::Founding => "founding",
            Self::Closing => "closing",
        })
    }
}

/// What a run of a log says about itself.
#[derive(Clone, Debug)]
pub enum Mark {
    /// It begins to do this.
    Phase(Phase),
    /// It is about to append this, with this commit slot.
    Append(Record, Slot),
    /// So many of the records that were pending are acknowledged.
    Acknowledged(usize),
    /// Slots below this one are not needed any more.
    Trim(Slot),
    /// It is about to set the founding document.
    Found(Bytes),
    /// The founding document is set.
    Founded,
    /// A recovery is finished: it brought back so many of the records that were pending, and this
    /// founding document. From now on others rely on exactly that.
    Recovered(usize, Option<Bytes>),
    /// The superblock says that all below this position is durable.
    Sealed(u64),
}

/// The log without the records whose fate is open.
#[derive(Clone, Debug, Default)]
struct State {
    /// The slot of the first of `entries`.
    first: u64,
    entries: VecDeque<Option<Entry>>,
    promised: Ballot,
    commit_slot: Slot,
}

/// How far below the trim point entries are remembered. A log keeps only a few segments.
const KEPT_BELOW_TRIM: u64 = 4096;

impl State {
    fn get(&self, slot: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(slot.checked_sub(self.first)?).ok()?)?.as_ref()
    }

    /// The slot behind the last.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn add(&mut self, record: &Record, commit_slot: Slot) {
        self.commit_slot = self.commit_slot.max(commit_slot);
        match record {
            Record::Promise(ballot) => self.promised = self.promised.max(*ballot),
            Record::Entry(entry) => {
                self.promised = self.promised.max(entry.ballot);
                if self.entries.is_empty() {
                    self.first = entry.slot.0;
                }
                while self.end() <= entry.slot.0 {
                    self.entries.push_back(None);
                }
                let index = (entry.slot.0 - self.first) as usize;
                self.entries[index] = Some(entry.clone());
            }
        }
    }
}

/// Which logs may come back at some moment of a run.
#[derive(Clone, Debug, Default)]
pub struct Model {
    phase: Phase,
    acknowledged: State,
    /// Records that may or may not be there: any number of them, from the first on.
    pending: Vec<(Record, Slot)>,
    trimmed_below: Slot,
    genesis: Option<Bytes>,
    next_genesis: Option<Bytes>,
    sealed: u64,
}

/// What came back.
pub(super) struct Found {
    /// How many of the pending records.
    pub(super) pending: usize,
    pub(super) genesis: Option<Bytes>,
}

impl Model {
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn genesis(&self) -> Option<&Bytes> {
        self.genesis.as_ref()
    }

    /// The highest slot, ballot and commit slot, of pending records too.
    pub(super) fn newest(&self) -> (Slot, Ballot, Slot) {
        let state = &self.acknowledged;
        let mut newest = (Slot(state.end().saturating_sub(1)), state.promised, state.commit_slot);
        for (record, commit_slot) in &self.pending {
            newest.2 = newest.2.max(*commit_slot);
            match record {
                Record::Promise(ballot) => newest.1 = newest.1.max(*ballot),
                Record::Entry(entry) => {
                    newest.0 = newest.0.max(entry.slot);
                    newest.1 = newest.1.max(entry.ballot);
                }
            }
        }
        newest
    }

    pub(super) fn note(&mut self, mark: &Mark) {
        match mark {
            Mark::Phase(phase) => self.phase = *phase,
            Mark::Append(record, commit_slot) => self.pending.push((record.clone(), *commit_slot)),
            Mark::Acknowledged(count) => self.settle(*count),
            Mark::Trim(below) => {
                self.trimmed_below = self.trimmed_below.max(*below);
                let state = &mut self.acknowledged;
                while state.first + KEPT_BELOW_TRIM < self.trimmed_below.0
                    && state.entries.pop_front().is_some()
                {
                    state.first += 1;
                }
            }
            Mark::Found(document) => self.next_genesis = Some(document.clone()),
            Mark::Founded => self.genesis = self.next_genesis.take(),
            Mark::Sealed(position) => self.sealed = self.sealed.max(*position),
            Mark::Recovered(count, genesis) => {
                self.settle(*count);
                self.pending.clear();
                self.genesis = genesis.clone();
                self.next_genesis = None;
            }
        }
    }

    fn settle(&mut self, count: usize) {
        for (record, commit_slot) in self.pending.drain(..count) {
            self.acknowledged.add(&record, commit_slot);
        }
    }

    /// Compares what an inspection says with what it may.
    pub(super) fn inspect(&self, report: &Report) -> Result<(), String> {
        if !report.is_whole() {
            return Err(format!("an inspection finds damage: {:?}", report.damaged));
        }
        if report.durable < self.sealed {
            let (durable, sealed) = (report.durable, self.sealed);
            return Err(format!("the superblock says durable up to {durable}, not {sealed}"));
        }
        Ok(())
    }

    /// Compares what came back with what may.
    pub(super) fn check(&self, recovered: &Recovered, log: &Log) -> Result<Found, String> {
        if !recovered.damaged.is_empty() || !recovered.promise_certain {
            let damaged = &recovered.damaged;
            return Err(format!("a crash is reported as damage: {damaged:?}"));
        }
        if recovered.intact_through != recovered.last_slot {
            return Err(format!("intact through {} only", recovered.intact_through));
        }
        let genesis = recovered.identity.genesis.clone();
        if genesis != self.genesis && (genesis.is_none() || genesis != self.next_genesis) {
            return Err("the founding document is another one".to_owned());
        }
        let mut entries = Vec::new();
        log.read(recovered.first_slot, usize::MAX, &mut entries)
            .map_err(|error| format!("what came back cannot be read: {error}"))?;
        let span =
            recovered.last_slot.0 + 1 - recovered.first_slot.0.min(recovered.last_slot.0 + 1);
        if entries.len() as u64 != span {
            return Err(format!("{} entries of {span} can be read", entries.len()));
        }
        let pending = self.matching(recovered, &entries)?;
        Ok(Found { pending, genesis })
    }

    /// How many of the pending records are in what came back.
    fn matching(&self, recovered: &Recovered, entries: &[Entry]) -> Result<usize, String> {
        let mut state = Overlay::new(&self.acknowledged);
        let mut fault = String::new();
        for count in 0..=self.pending.len() {
            if count > 0 {
                let (record, commit_slot) = &self.pending[count - 1];
                state.add(record, *commit_slot);
            }
            match state.compare(recovered, entries, self.trimmed_below) {
                Ok(()) => return Ok(count),
                Err(found) => fault = found,
            }
        }
        Err(format!(
            "neither the acknowledged log nor it with some of {} records behind it: {fault}",
            self.pending.len()
        ))
    }
}

/// A state with a few records more.
struct Overlay<'a> {
    below: &'a State,
    added: Vec<&'a Entry>,
    promised: Ballot,
    commit_slot: Slot,
    end: u64,
}

impl<'a> Overlay<'a> {
    fn new(below: &'a State) -> Self {
        let State { promised, commit_slot, .. } = *below;
        Self { below, added: Vec::new(), promised, commit_slot, end: below.end() }
    }

    fn add(&mut self, record: &'a Record, commit_slot: Slot) {
        self.commit_slot = self.commit_slot.max(commit_slot);
        match record {
            Record::Promise(ballot) => self.promised = self.promised.max(*ballot),
            Record::Entry(entry) => {
                self.promised = self.promised.max(entry.ballot);
                self.end = self.end.max(entry.slot.0 + 1);
                self.added.push(entry);
            }
        }
    }

    fn get(&self, slot: Slot) -> Option<&Entry> {
        let added = self.added.iter().rev().find(|entry| entry.slot == slot);
        added.copied().or_else(|| self.below.get(slot.0))
    }

    fn compare(
        &self,
        recovered: &Recovered,
        entries: &[Entry],
        trimmed_below: Slot,
    ) -> Result<(), String> {
        if (recovered.promised, recovered.commit_slot) != (self.promised, self.commit_slot) {
            return Err(format!(
                "promised {} and commit slot {} instead of {} and {}",
                recovered.promised, recovered.commit_slot, self.promised, self.commit_slot
            ));
        }
        let last = self.end.saturating_sub(1);
        // What is not needed may be gone; above that nothing may be missing, and nothing too much.
        if recovered.last_slot.0 != last && last >= trimmed_below.0 {
            return Err(format!("it ends with slot {}, not {last}", recovered.last_slot));
        }
        let needed = trimmed_below.0.max(self.below.first).max(1);
        if last >= needed && recovered.first_slot.0 > needed {
            return Err(format!("it begins with slot {}, not {needed}", recovered.first_slot));
        }
        for entry in entries {
            if self.get(entry.slot) != Some(entry) {
                return Err(format!("slot {} has another entry", entry.slot));
            }
        }
        Ok(())
    }
}
