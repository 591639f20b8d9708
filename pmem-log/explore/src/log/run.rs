//! A log at work on a tape, and a workload that meets everything that it does.

use super::LogSubject;
use super::model::{Mark, Model, Phase};
use crate::explore::{Subject, medium, record};
use crate::random::Random;
use crate::tape::{Event, Tape};
use bytes::Bytes;
use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot, Value, ValueKind};
use quorate_pmem_log::{Log, LogOptions, OpenError, Record, Report, SyncSteps, inspect_on};
use std::path::PathBuf;

const NODE: NodeId = NodeId(3);
const FRESH: Incarnation = Incarnation(0xfeed_beef_0bad_cafe);

/// An open log, and what is known of it.
pub(super) struct Run<'a> {
    subject: &'a LogSubject,
    tape: &'a Tape<Mark>,
    pub(super) model: Model,
    log: Option<Log>,
    steps: SyncSteps,
    /// What was acknowledged in this opening.
    acknowledged: u64,
    appended: u64,
}

impl<'a> Run<'a> {
    /// Opens the log and compares what it holds with the model.
    pub(super) fn open(
        subject: &'a LogSubject,
        tape: &'a Tape<Mark>,
        model: &Model,
    ) -> Result<Self, String> {
        let mut run = Self {
            subject,
            tape,
            model: model.clone(),
            log: None,
            steps: SyncSteps::default(),
            acknowledged: 0,
            appended: 0,
        };
        run.start()?;
        Ok(run)
    }

    fn mark(&mut self, mark: Mark) {
        self.model.note(&mark);
        self.tape.mark(mark);
    }

    fn start(&mut self) -> Result<(), String> {
        self.inspect()?;
        self.mark(Mark::Phase(Phase::Opening));
        self.steps = SyncSteps::default();
        let opened =
            Log::open_stepped(medium(self.tape), &options(self.subject), FRESH, &self.steps);
        let (log, recovered) = opened.map_err(|error| format!("it does not open: {error}"))?;
        if recovered.identity.incarnation != FRESH || recovered.identity.node != NODE {
            return Err("it is another log".to_owned());
        }
        let found = self.model.check(&recovered, &log)?;
        self.log = Some(log);
        (self.acknowledged, self.appended) = (0, 0);
        self.mark(Mark::Recovered(found.pending, found.genesis));
        let report = self.inspect()?;
        self.mark(Mark::Sealed(report.map_or(0, |report| report.ends_at)));
        self.mark(Mark::Phase(Phase::Running));
        Ok(())
    }

    /// Reads the log as an offline inspection does. `None`: it is not formatted yet.
    fn inspect(&self) -> Result<Option<Report>, String> {
        match inspect_on(&medium(&self.tape.copy()), &mut |_, _| {}) {
            Err(OpenError::NotALog { .. }) => Ok(None),
            Err(error) => Err(format!("it cannot be inspected: {error}")),
            Ok(report) => self.model.inspect(&report).map(|()| Some(report)),
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("a run has a log between its operations")
    }

    fn append(&mut self, record: Record, commit_slot: Slot) -> Result<(), String> {
        self.mark(Mark::Append(record.clone(), commit_slot));
        let appended = self.log().append(&record, commit_slot);
        self.appended = appended.map_err(|error| format!("it takes no record: {error}"))?.0;
        self.learn()
    }

    /// Notes what has become durable.
    fn learn(&mut self) -> Result<(), String> {
        let durable = self.log().durable().map_err(|error| format!("it failed: {error}"))?.0;
        if durable > self.acknowledged {
            let count = (durable - self.acknowledged) as usize;
            self.acknowledged = durable;
            self.mark(Mark::Acknowledged(count));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.log().flush().map_err(|error| format!("it does not flush: {error}"))?;
        self.learn()
    }

    /// Does what the sync thread would, once.
    fn step(&mut self) -> Result<(), String> {
        self.steps.step();
        self.learn()
    }

    fn wait(&mut self) -> Result<(), String> {
        self.flush()?;
        while self.acknowledged < self.appended {
            self.step()?;
            self.flush()?;
        }
        Ok(())
    }

    fn trim(&mut self, below: Slot) -> Result<(), String> {
        self.mark(Mark::Trim(below));
        self.mark(Mark::Phase(Phase::Trimming));
        self.log().trim(below).map_err(|error| format!("it does not trim: {error}"))?;
        while self.steps.is_due() {
            self.step()?;
        }
        self.mark(Mark::Phase(Phase::Running));
        Ok(())
    }

    fn found(&mut self, document: Bytes) -> Result<(), String> {
        self.mark(Mark::Found(document.clone()));
        self.mark(Mark::Phase(Phase::Founding));
        self.log().set_genesis(document).map_err(|error| format!("it is not founded: {error}"))?;
        self.mark(Mark::Founded);
        self.mark(Mark::Phase(Phase::Running));
        Ok(())
    }

    /// Closes the log, or forgets it as a process that dies does, and opens it again.
    pub(super) fn reopen(&mut self, closes: bool) -> Result<(), String> {
        if let Some(log) = self.log.take() {
            if closes {
                self.log = Some(log);
                self.wait()?;
                self.mark(Mark::Phase(Phase::Closing));
                drop(self.log.take());
                let report = self.inspect()?;
                self.mark(Mark::Sealed(report.map_or(0, |report| report.ends_at)));
            } else {
                // Dropping it would seal it.
                std::mem::forget(log);
            }
        }
        self.start()
    }

    /// A promise and two entries, made durable.
    pub(super) fn append_something(&mut self) -> Result<(), String> {
        let (last, promised, commit_slot) = self.model.newest();
        let ballot = Ballot { round: promised.round + 1, node: NODE };
        self.append(Record::Promise(ballot), commit_slot)?;
        self.append(Record::Entry(entry(last.next(), ballot, 0, 40)), commit_slot)?;
        self.wait()?;
        self.append(Record::Entry(entry(last.next().next(), ballot, 0, 200)), last)?;
        self.wait()
    }
}

/// How a log of this subject is opened.
pub(super) fn options(subject: &LogSubject) -> LogOptions {
    LogOptions {
        directory: PathBuf::new(),
        medium: subject.profile().kind,
        node: NODE,
        segment_bytes: subject.segment_bytes,
    }
}

/// An entry with a value that its slot, its ballot and `salt` tell.
pub(super) fn entry(slot: Slot, ballot: Ballot, salt: u64, bytes: usize) -> Entry {
    let mut random = Random::new(slot.0 ^ ballot.pack().rotate_left(20) ^ salt);
    let mut value = Vec::with_capacity(bytes + 8);
    while value.len() < bytes {
        value.extend_from_slice(&random.next().to_le_bytes());
    }
    value.truncate(bytes);
    let kind = if bytes == 0 { ValueKind::Noop } else { ValueKind::Commands };
    let checksum = crc32c::crc32c(&value);
    Entry { slot, ballot, value: Value { kind, checksum, bytes: value.into() } }
}

/// What a workload did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Workload {
    /// All of the below.
    pub operations: u64,
    /// Entries appended.
    pub entries: u64,
    /// Of these, how many replaced one of the same slot.
    pub replaced: u64,
    /// Promises appended.
    pub promises: u64,
    /// Flushes.
    pub flushes: u64,
    /// Trims.
    pub trims: u64,
    /// Times the founding document was set.
    pub foundings: u64,
    /// Times the log was closed and opened.
    pub closings: u64,
    /// Times the process died with what it had not flushed.
    pub deaths: u64,
}

/// Runs so many operations on a new log, drawn from `seed`.
///
/// # Errors
/// If the log does not do what it should even without a crash.
pub fn workload(
    subject: &LogSubject,
    operations: u64,
    seed: u64,
) -> Result<(Vec<Event<Mark>>, Workload), String> {
    let (events, done) = record(subject.profile(), |tape| {
        let run = Run::open(subject, tape, &Model::default())?;
        let random = Random::new(seed);
        let mut work = Work { run, random, ballot: Ballot::ZERO, done: Workload::default() };
        while work.done.operations < operations {
            work.operation()?;
        }
        work.run.reopen(true)?;
        Ok::<_, String>(work.done)
    });
    Ok((events, done?))
}

struct Work<'a> {
    run: Run<'a>,
    random: Random,
    ballot: Ballot,
    done: Workload,
}

impl Work<'_> {
    fn operation(&mut self) -> Result<(), String> {
        let before = self.sum();
        // A log is founded early in its life, and once.
        let founds = self.done.foundings == 0 && self.done.operations > 40;
        match self.random.below(100) {
            _ if founds => self.found()?,
            0..70 => self.batch()?,
            70..78 => self.promise()?,
            78..83 => self.new_leader()?,
            83..90 => self.trim()?,
            90..91 => self.found()?,
            91..95 => {
                self.done.closings += 1;
                self.run.reopen(true)?;
            }
            95..99 => {
                self.unflushed()?;
                self.done.deaths += 1;
                self.run.reopen(false)?;
            }
            _ => self.run.step()?,
        }
        self.done.operations += self.sum() - before;
        Ok(())
    }

    fn sum(&self) -> u64 {
        let Workload { entries, promises, flushes, trims, foundings, closings, deaths, .. } =
            self.done;
        entries + promises + flushes + trims + foundings + closings + deaths
    }

    /// Entries of any size, the smaller the more often.
    fn bytes(&mut self) -> usize {
        let bound = [1, 16, 100, 100, 400, 400, 1000, 4000][self.random.below(8) as usize];
        self.random.below(bound) as usize
    }

    fn commit_slot(&mut self) -> Slot {
        let (last, _, commit_slot) = self.run.model.newest();
        let open = last.0 - commit_slot.0.min(last.0);
        Slot(commit_slot.0 + self.random.below(open + 1))
    }

    fn entry_at(&mut self, slot: Slot) -> Result<(), String> {
        let bytes = self.bytes();
        let salt = self.random.next();
        let commit_slot = Slot(self.commit_slot().0.min(slot.0 - 1));
        self.done.entries += 1;
        let ballot = self.ballot;
        self.run.append(Record::Entry(entry(slot, ballot, salt, bytes)), commit_slot)
    }

    fn flush(&mut self) -> Result<(), String> {
        self.done.flushes += 1;
        if self.random.one_in(4) {
            // What follows is staged while this is on its way.
            return self.run.flush();
        }
        self.run.wait()
    }

    fn batch(&mut self) -> Result<(), String> {
        if self.ballot == Ballot::ZERO {
            return self.promise();
        }
        let most = [1, 1, 1, 2, 4, 8][self.random.below(6) as usize];
        for _ in 0..=self.random.below(most) {
            let last = self.run.model.newest().0;
            self.entry_at(last.next())?;
        }
        self.flush()
    }

    fn promise(&mut self) -> Result<(), String> {
        let rounds = 1 + self.random.below(3);
        self.ballot = Ballot { round: self.ballot.round + rounds, node: NODE };
        let commit_slot = self.commit_slot();
        self.done.promises += 1;
        self.run.append(Record::Promise(self.ballot), commit_slot)?;
        self.flush()
    }

    /// What was not chosen is proposed again, with other values.
    fn new_leader(&mut self) -> Result<(), String> {
        self.promise()?;
        let (last, _, commit_slot) = self.run.model.newest();
        for slot in commit_slot.0 + 1..=last.0.min(commit_slot.0 + 6) {
            self.done.replaced += 1;
            self.entry_at(Slot(slot))?;
        }
        self.flush()
    }

    fn trim(&mut self) -> Result<(), String> {
        let (.., commit_slot) = self.run.model.newest();
        let kept = self.random.below(40);
        self.done.trims += 1;
        self.run.trim(Slot(commit_slot.0.saturating_sub(kept)))
    }

    fn found(&mut self) -> Result<(), String> {
        let document = match self.run.model.genesis() {
            Some(document) => document.clone(),
            None => Bytes::from(vec![0x5a; 900 + self.random.below(900) as usize]),
        };
        self.done.foundings += 1;
        self.run.found(document)
    }

    fn unflushed(&mut self) -> Result<(), String> {
        if self.ballot == Ballot::ZERO {
            return Ok(());
        }
        for _ in 0..self.random.below(4) {
            let last = self.run.model.newest().0;
            self.entry_at(last.next())?;
            if self.random.one_in(3) {
                self.run.step()?;
            }
        }
        if self.run.model.pending() > 0 && self.random.one_in(2) {
            self.run.flush()?;
        }
        Ok(())
    }
}
