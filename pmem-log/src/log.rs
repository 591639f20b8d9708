//! The log itself: appending, flushing, trimming.

use crate::api::{Durability, LogOptions, LogStatistics, Lsn, MediumKind, Record, Recovered};
use crate::direct::Staging;
use crate::error::{LogError, OpenError};
use crate::format::{Geometry, Header, Kind, record_bytes};
use crate::group::{
    Driver, Failure, Group, Outcome, STAGED_BYTES_MAX, SyncSteps, SyncThread, Wake,
};
use crate::index::Index;
use crate::medium::{Area, Medium, open_medium};
use crate::pool::SyncPool;
use crate::recovery::{self, Segment};
use crate::segments::{Keeper, Retired, Zeros, segment_name};
use crate::superblock::GENESIS_BYTES_MAX;
use crate::upkeep::Upkeep;
use bytes::Bytes;
use quorate_consensus::buggify::Point;
use quorate_consensus::{Ballot, Incarnation, Mistake, Mutant, Slot, Whims, ensures, requires};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// One flush of so many is timed where a flush takes less time than two looks at the clock.
const MEASURED_FLUSHES: u64 = 16;

/// The durable log of one replica. Used by one thread; see the crate's page.
#[derive(Debug)]
pub struct Log {
    medium: Arc<dyn Medium>,
    pub(crate) geometry: Geometry,
    keeper: Arc<Keeper>,
    /// In order; the last is written to. Never empty.
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) index: Index,
    writer: Writer,
    epoch: u32,
    /// The exact end of the last record.
    end: u64,
    /// Where the next record goes in the last segment.
    offset: u64,
    /// Where the batch begins that is being written; `None` between batches.
    batch: Option<Batch>,
    /// The exact end of what is durable.
    durable_end: u64,
    promised: Ballot,
    commit_slot: Slot,
    last_slot: Slot,
    appended: Lsn,
    durable: Lsn,
    statistics: LogStatistics,
    /// Why nothing is written any more.
    poisoned: Option<Arc<str>>,
    /// What ran out when the last append or flush found no room.
    full: Option<Arc<str>>,
    mistake: Mistake,
    whims: Whims,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    /// The offset of its first record.
    offset: u64,
    /// The exact end of the batch before.
    previous_end: u64,
}

#[derive(Debug)]
enum Writer {
    /// A flush stores and persists.
    Direct(Staging),
    /// Records are staged; a flush hands them to a thread.
    Grouped(Grouped),
}

#[derive(Debug)]
struct Grouped {
    thread: SyncThread,
    /// Being filled; shared with nobody.
    staged: Arc<Group>,
    /// The one that will be filled next.
    spare: Option<Arc<Group>>,
    /// A flush found the thread busy.
    flush_wanted: bool,
}

impl Log {
    /// Opens the log in `options.directory`, formatting it if it is empty; `fresh` becomes its
    /// incarnation then and is not used otherwise. `wake` is called from the sync thread whenever
    /// a sync has finished (never on the media that need no such thread).
    ///
    /// An existing log keeps the segment size that it was formatted with.
    ///
    /// # Errors
    /// [`OpenError`] says who has to act, and how.
    pub fn open(
        options: &LogOptions,
        fresh: Incarnation,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Self, Recovered), OpenError> {
        let medium = open_medium(options.medium, &options.directory)?;
        Self::open_on(medium, options, fresh, wake)
    }

    /// Opens the log on any medium: `options.directory` and `options.medium` are not looked at.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_on(
        medium: Arc<dyn Medium>,
        options: &LogOptions,
        fresh: Incarnation,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Self, Recovered), OpenError> {
        Self::open_with(medium, options, fresh, wake, Driver::Thread)
    }

    /// Opens the log in `options.directory` like [`Log::open`], with the threads of `pool` in place of
    /// one of its own: for many logs in a process.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_pooled(
        options: &LogOptions,
        fresh: Incarnation,
        wake: Arc<dyn Fn() + Send + Sync>,
        pool: &SyncPool,
    ) -> Result<(Self, Recovered), OpenError> {
        let medium = open_medium(options.medium, &options.directory)?;
        Self::open_with(medium, options, fresh, wake, Driver::Pool(pool))
    }

    /// Opens the log on any medium, without a sync thread: what it would do is done by
    /// [`SyncSteps::step`] when the caller says so, and a full disk is looked at again by each
    /// [`Log::durable`]. For simulators.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_stepped(
        medium: Arc<dyn Medium>,
        options: &LogOptions,
        fresh: Incarnation,
        steps: &SyncSteps,
    ) -> Result<(Self, Recovered), OpenError> {
        Self::open_with(medium, options, fresh, Arc::new(|| {}), Driver::Steps(steps))
    }

    fn open_with(
        medium: Arc<dyn Medium>,
        options: &LogOptions,
        fresh: Incarnation,
        wake: Wake,
        driver: Driver<'_>,
    ) -> Result<(Self, Recovered), OpenError> {
        let steps = match driver {
            Driver::Steps(steps) => Some(steps),
            Driver::Thread | Driver::Pool(_) => None,
        };
        let mistake = steps.map(|steps| steps.mistake).unwrap_or_default();
        let opened = recovery::open(&medium, options, fresh, mistake)?;
        let keeper = Arc::new(opened.keeper);
        let writer = Writer::new(&medium, &keeper, &opened.segments, wake, driver)?;
        let log = Self {
            medium,
            geometry: opened.geometry,
            keeper,
            segments: opened.segments,
            index: opened.index,
            writer,
            epoch: opened.epoch,
            end: opened.end,
            offset: opened.offset,
            batch: None,
            durable_end: opened.end,
            promised: opened.recovered.promised,
            commit_slot: opened.recovered.commit_slot,
            last_slot: opened.recovered.last_slot,
            appended: Lsn(0),
            durable: Lsn(0),
            statistics: LogStatistics::default(),
            poisoned: None,
            full: None,
            mistake,
            whims: steps.map(|steps| steps.whims.clone()).unwrap_or_default(),
        };
        Ok((log, opened.recovered))
    }

    /// Stores the founding document of the cluster; durable when this returns. Setting the same
    /// one again does nothing.
    ///
    /// # Errors
    /// [`LogError::OtherGenesis`] if another is set, [`LogError::GenesisTooLarge`], or as
    /// [`Log::append`].
    pub fn set_genesis(&mut self, document: Bytes) -> Result<(), LogError> {
        self.check()?;
        let (bytes, bytes_max) = (document.len(), GENESIS_BYTES_MAX);
        if bytes > bytes_max {
            return Err(LogError::GenesisTooLarge { bytes, bytes_max });
        }
        let written = {
            let mut store = self.keeper.superblock();
            match &store.current.genesis {
                Some(set) if *set == document => return Ok(()),
                Some(_) => return Err(LogError::OtherGenesis),
                None => store.current.genesis = Some(document),
            }
            store.write()
        };
        written.map_err(|error| self.fail(&Failure::of_sync(&error)))
    }

    /// Stores another founding document in the place of the one that is set: the directory belongs to
    /// another cluster from then on. For recovery after the loss of a majority, and for nothing else.
    ///
    /// # Errors
    /// As [`Log::set_genesis`].
    pub fn replace_genesis(&mut self, document: Bytes) -> Result<(), LogError> {
        self.check()?;
        self.keeper.superblock().current.genesis = None;
        self.set_genesis(document)
    }

    /// Stages a record. `commit_slot` is the highest slot that the caller knows to be chosen: it
    /// rides in the record's header, so that recovery knows it too.
    ///
    /// # Errors
    /// [`LogError::Full`]: nothing was taken, try again later. [`LogError::TooLarge`].
    /// [`LogError::Poisoned`]: for ever.
    pub fn append(&mut self, record: &Record, commit_slot: Slot) -> Result<Lsn, LogError> {
        self.check()?;
        let (kind, slot, ballot, checksum, payload) = match record {
            Record::Promise(ballot) => (Kind::Promise, self.last_slot, *ballot, 0, &[] as &[u8]),
            Record::Entry(entry) => {
                let value = &entry.value;
                let kind = Kind::Entry(value.kind);
                (kind, entry.slot, entry.ballot, value.checksum, value.bytes.as_ref())
            }
        };
        let (bytes, bytes_max) = (payload.len(), self.value_bytes_max());
        if bytes > bytes_max {
            return Err(LogError::TooLarge { bytes, bytes_max });
        }
        self.make_room(record_bytes(bytes as u64))?;
        self.commit_slot = self.commit_slot.max(commit_slot);
        self.promised = self.promised.max(ballot);
        let position = self.put(kind, slot, ballot, checksum, payload)?;
        if let Kind::Entry(_) = kind {
            self.index.insert(slot, position);
            self.last_slot = self.last_slot.max(slot);
            if let Some(segment) = self.segments.back_mut() {
                segment.last_slot = segment.last_slot.max(slot);
            }
        }
        self.appended.0 += 1;
        self.statistics.records += 1;
        self.statistics.payload_bytes += bytes as u64;
        if let Writer::Grouped(grouped) = &mut self.writer {
            grouped.staged_mut().lsn = self.appended;
            grouped.staged_mut().end = self.end;
        }
        ensures!(
            checked,
            A5,
            self.durable < self.appended && self.promised >= ballot,
            "a record is durable after it was appended, and carries its promise"
        );
        Ok(self.appended)
    }

    /// Hands everything staged to the medium. On a medium without a sync thread it is durable when
    /// this returns, by one persist for all of it. With one, a sync begins now, or as soon as the
    /// one under way has finished and [`Log::durable`] or this is called again.
    ///
    /// # Errors
    /// [`LogError::Poisoned`]. A full disk is no error here: the records stay staged.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.check()?;
        match &mut self.writer {
            Writer::Direct(_) => match self.persist_batch() {
                Err(LogError::Full { .. }) => Ok(()),
                done => done,
            },
            Writer::Grouped(grouped) => {
                grouped.flush_wanted = true;
                self.advance()
            }
        }
    }

    /// The last record that is durable. Never blocks; begins the next sync if records wait for it
    /// and the last one has finished.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] after a failed sync, for ever.
    pub fn durable(&mut self) -> Result<Lsn, LogError> {
        self.check()?;
        self.advance()?;
        Ok(self.durable)
    }

    /// Flushes, and blocks until the record is durable.
    ///
    /// # Errors
    /// As [`Log::flush`]; [`LogError::Full`] if the disk is: the records stay staged.
    pub fn wait_durable(&mut self, lsn: Lsn) -> Result<(), LogError> {
        let lsn = lsn.min(self.appended);
        self.flush()?;
        while self.durable()? < lsn {
            let full = match &self.writer {
                Writer::Direct(_) => self.full.clone(),
                Writer::Grouped(grouped) => grouped.thread.full(),
            };
            if let Some(what) = full {
                return Err(LogError::Full { what });
            }
            if let Writer::Grouped(grouped) = &mut self.writer {
                grouped.flush_wanted = true;
                grouped.thread.wait();
            }
        }
        Ok(())
    }

    /// Forgets records of slots below `below`, as far as whole segments can go. They are recycled.
    /// The promise and the commit slot are not forgotten.
    ///
    /// # Errors
    /// [`LogError::Poisoned`].
    pub fn trim(&mut self, below: Slot) -> Result<(), LogError> {
        self.trim_keeping(below, 0)
    }

    /// From now on segments are made ahead, and trimmed ones removed, by the caller, beside the thread of
    /// the log; `tell` is called, from either of the log's threads, when there is something to do. What
    /// the caller is late with the log does by itself when it needs it.
    pub fn upkeep(&self, tell: Arc<dyn Fn() + Send + Sync>) -> Upkeep {
        Upkeep::new(Arc::clone(&self.keeper), tell)
    }

    /// As [`Log::trim`], but keeps segments of at least `tail_bytes` together, for replicas that are
    /// a little behind.
    ///
    /// # Errors
    /// [`LogError::Poisoned`].
    pub fn trim_keeping(&mut self, below: Slot, tail_bytes: u64) -> Result<(), LogError> {
        self.check()?;
        let tail = tail_bytes.div_ceil(self.geometry.segment_bytes);
        let kept = usize::try_from(tail).unwrap_or(usize::MAX).max(1);
        let mut retired = Vec::new();
        while self.segments.len() > kept
            && let Some(first) = self.segments.front()
            && first.last_slot < below
            // A durable record of the next segment restates what this one promised.
            && self.geometry.position(first.number + 1, self.geometry.first_offset())
                < self.durable_end
            && let Some(area) = first.area.clone()
        {
            requires!(
                checked,
                K5,
                first.last_slot < below && first.number < self.current().number,
                "what is trimmed is below a checkpoint, and not written to"
            );
            retired.push(Retired { number: first.number, area });
            self.segments.pop_front();
        }
        let Some(first) = self.segments.front().filter(|_| !retired.is_empty()) else {
            return Ok(());
        };
        let first = first.number;
        self.index.trim(self.geometry.position(first, 0), below);
        match &self.writer {
            Writer::Grouped(grouped) => {
                grouped.thread.retire(first, retired);
                Ok(())
            }
            Writer::Direct(_) => {
                let retired = self.keeper.retire(first, retired);
                retired.map_err(|error| self.fail(&Failure::of_sync(&error)))
            }
        }
    }

    /// Flushes, waits, and notes in the superblock that all is durable, so that later damage to
    /// the last batch is known for what it is. Dropping a log does the same without the flush.
    ///
    /// # Errors
    /// As [`Log::wait_durable`].
    pub fn close(mut self) -> Result<(), LogError> {
        self.wait_durable(self.appended)?;
        self.seal()
    }

    /// Where the log lives.
    #[must_use]
    pub fn medium(&self) -> MediumKind {
        self.medium.profile().kind
    }

    /// What an acknowledged record survives.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.medium.durability()
    }

    /// What it lies on, for a [`crate::CheckpointStore`] beside it.
    #[must_use]
    pub fn shared_medium(&self) -> Arc<dyn Medium> {
        Arc::clone(&self.medium)
    }

    /// The lowest slot from which on every slot up to the last one can be read; the one after the
    /// last if there is none.
    #[must_use]
    pub fn first_slot(&self) -> Slot {
        self.index.first_without_a_hole().unwrap_or(self.last_slot.next())
    }

    /// What its segments take of the medium, spares not counted.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.segments.len() as u64 * self.geometry.segment_bytes
    }

    /// Counters since it was opened.
    #[must_use]
    pub fn statistics(&self) -> LogStatistics {
        self.statistics
    }

    /// Whether the last try found no room. It is tried again by [`Log::append`], [`Log::flush`]
    /// and [`Log::durable`], and clears by itself.
    #[must_use]
    pub fn full(&self) -> bool {
        self.full.is_some()
    }

    /// The largest value that fits.
    #[must_use]
    pub fn value_bytes_max(&self) -> usize {
        usize::try_from(self.geometry.payload_bytes_max()).unwrap_or(usize::MAX)
    }

    /// The last record appended.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        self.appended
    }

    fn check(&self) -> Result<(), LogError> {
        match &self.poisoned {
            None => Ok(()),
            Some(reason) => Err(LogError::Poisoned { reason: Arc::clone(reason) }),
        }
    }

    /// Turns a failure into its error; a fatal one ends the log.
    fn fail(&mut self, failure: &Failure) -> LogError {
        match failure {
            Failure::Full(what) => {
                self.full = Some(Arc::clone(what));
                LogError::Full { what: Arc::clone(what) }
            }
            Failure::Fatal(reason) => {
                tracing::error!(%reason, "the log is poisoned");
                let reason = self.poisoned.get_or_insert_with(|| Arc::clone(reason));
                LogError::Poisoned { reason: Arc::clone(reason) }
            }
        }
    }
}

/// Placing records.
impl Log {
    /// Makes sure that a record of this size can be placed, in a new segment if need be.
    fn make_room(&mut self, bytes: u64) -> Result<(), LogError> {
        if let Writer::Grouped(grouped) = &self.writer {
            let what = grouped.thread.full();
            if grouped.staged.len() >= STAGED_BYTES_MAX {
                let what = what.unwrap_or_else(|| "too much waits for the disk".into());
                return Err(self.fail(&Failure::Full(what)));
            }
        }
        if self.whims.has(Point::StagedFull) {
            return Err(self.fail(&Failure::Full("there is room, but not now".into())));
        }
        let used = self.offset > self.geometry.first_offset();
        if self.offset + bytes > self.geometry.segment_bytes
            || used && self.whims.has(Point::EarlyRoll)
        {
            self.roll()?;
        }
        if matches!(&self.writer, Writer::Direct(staging) if staging.is_empty()) {
            self.full = None;
        }
        Ok(())
    }

    /// Ends the batch and goes on in a new segment.
    fn roll(&mut self) -> Result<(), LogError> {
        let number = self.current().number + 1;
        let area = match &mut self.writer {
            Writer::Direct(_) => {
                self.persist_batch()?;
                let made = self.keeper.make(number, self.end, Zeros::AsFarAsTheyAre);
                let made = made.map_err(|error| self.fail(&Failure::of_write(&error)))?;
                self.full = None;
                Some(made)
            }
            Writer::Grouped(grouped) => {
                let padding = grouped.staged_mut().pad(self.geometry.alignment);
                self.statistics.bytes_written += padding;
                None
            }
        };
        self.batch = None;
        self.index.break_run();
        self.segments.push_back(Segment { number, area, last_slot: Slot::ZERO });
        self.offset = self.geometry.first_offset();
        Ok(())
    }

    fn current(&self) -> &Segment {
        self.segments.back().expect("a log has a segment: recovery makes one")
    }

    /// Writes a record at the end; returns its position. There is room for it.
    fn put(
        &mut self,
        kind: Kind,
        slot: Slot,
        ballot: Ballot,
        value_checksum: u32,
        payload: &[u8],
    ) -> Result<u64, LogError> {
        let number = self.current().number;
        let begins = self.batch.is_none();
        let batch =
            *self.batch.get_or_insert(Batch { offset: self.offset, previous_end: self.end });
        let offset = self.offset;
        let position = self.geometry.position(number, offset);
        let header = Header {
            kind,
            payload_bytes: payload.len() as u32,
            slot,
            ballot,
            commit_slot: self.commit_slot,
            promised: self.promised,
            durable: batch.previous_end,
            value_checksum,
            epoch: self.epoch,
        };
        let bytes = header.encode(&self.geometry, position);
        let written = match &mut self.writer {
            Writer::Direct(staging) => {
                staging.put(written_directly(&self.segments), offset, &bytes, payload)
            }
            Writer::Grouped(grouped) => {
                grouped.stage(begins.then_some((number, batch)), &bytes, payload);
                Ok(())
            }
        };
        if let Err(error) = written {
            return Err(self.fail(&Failure::of_write(&error)));
        }
        self.offset += header.bytes();
        self.end = position + header.bytes();
        self.statistics.bytes_written += header.bytes();
        Ok(position)
    }

    /// Direct: makes the batch durable with one persist.
    fn persist_batch(&mut self) -> Result<(), LogError> {
        let Some(batch) = self.batch else { return Ok(()) };
        let Writer::Direct(staging) = &mut self.writer else { return Ok(()) };
        let measured = self.statistics.flushes.is_multiple_of(MEASURED_FLUSHES);
        let begin = measured.then(Instant::now);
        let area = written_directly(&self.segments);
        if let Err(error) = staging.store(area) {
            return Err(self.fail(&Failure::of_write(&error)));
        }
        self.batch = None;
        let skipped = self.mistake.is(Mutant::SkipFlush);
        let bytes = if skipped { 0 } else { self.offset - batch.offset };
        if let Err(error) = area.persist(batch.offset, bytes)
            && !self.mistake.is(Mutant::IgnoreFailedSync)
        {
            return Err(self.fail(&Failure::of_sync(&error)));
        }
        self.statistics.flushes += 1;
        if let Some(begin) = begin {
            self.statistics.last_flush_nanos = nanos_since(begin);
        }
        self.full = None;
        self.durable = self.appended;
        self.durable_end = self.end;
        self.align();
        Ok(())
    }

    /// The next batch begins on a boundary of the medium.
    fn align(&mut self) {
        self.offset = self.geometry.align_up(self.offset);
    }

    /// Grouped: takes the outcome of the last sync, and begins the next if one is wanted.
    fn advance(&mut self) -> Result<(), LogError> {
        let Writer::Grouped(grouped) = &mut self.writer else { return Ok(()) };
        if let Some((outcome, group)) = grouped.thread.poll() {
            self.settle(outcome, group)?;
        }
        let Writer::Grouped(grouped) = &mut self.writer else { return Ok(()) };
        if grouped.flush_wanted && grouped.thread.is_idle() {
            grouped.flush_wanted = false;
            if !grouped.staged.is_empty() {
                let padding = grouped.submit(self.geometry.alignment);
                self.statistics.bytes_written += padding;
                self.batch = None;
                self.align();
            }
        }
        Ok(())
    }

    fn settle(&mut self, outcome: Outcome, group: Option<Arc<Group>>) -> Result<(), LogError> {
        self.statistics.flushes += outcome.syncs;
        self.statistics.last_flush_nanos = outcome.nanos;
        for (number, area) in outcome.made {
            let made = self.segments.iter_mut().find(|segment| segment.number == number);
            if let Some(segment) = made {
                segment.area = Some(area);
            }
        }
        let Writer::Grouped(grouped) = &mut self.writer else { return Ok(()) };
        if let Some(reason) = grouped.thread.chore_failure() {
            return Err(self.fail(&Failure::Fatal(reason)));
        }
        match (outcome.result, group) {
            (Ok(()), Some(mut group)) => {
                ensures!(
                    checked,
                    A5,
                    group.lsn >= self.durable && group.lsn <= self.appended,
                    "the durable point moves forward, to what was appended"
                );
                self.durable = group.lsn;
                self.durable_end = group.end;
                self.full = None;
                if let Some(group_mut) = Arc::get_mut(&mut group) {
                    group_mut.clear();
                    grouped.spare = Some(group);
                }
                Ok(())
            }
            (Err(Failure::Full(what)), _) => {
                self.full = Some(what);
                Ok(())
            }
            (Err(failure), _) => Err(self.fail(&failure)),
            (Ok(()), None) => Ok(()),
        }
    }

    /// Notes in the superblock how far the log is durable.
    fn seal(&mut self) -> Result<(), LogError> {
        self.check()?;
        let written = {
            let mut store = self.keeper.superblock();
            if store.current.durable == self.durable_end {
                return Ok(());
            }
            store.current.durable = self.durable_end;
            store.write()
        };
        written.map_err(|error| self.fail(&Failure::of_sync(&error)))
    }

    /// Bytes that are staged or in flight, if these are.
    pub(crate) fn unwritten(&self, number: u64, offset: u64, length: usize) -> Option<&[u8]> {
        let grouped = match &self.writer {
            Writer::Direct(staging) if number == self.current().number => {
                return staging.slice(offset, length);
            }
            Writer::Direct(_) => return None,
            Writer::Grouped(grouped) => grouped,
        };
        let staged = grouped.staged.slice(number, offset, length);
        staged.or_else(|| grouped.thread.unfinished()?.slice(number, offset, length))
    }

    /// Whether reading far ahead at a time pays: each read is a call into the system.
    pub(crate) fn reads_ahead(&self) -> bool {
        matches!(self.writer, Writer::Grouped(_))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Writer::Grouped(grouped) = &mut self.writer {
            grouped.thread.stop();
        }
        let sealed = self.advance().and_then(|()| self.seal());
        if let (Err(error), None) = (sealed, &self.poisoned) {
            tracing::warn!(%error, "the log was not sealed");
        }
    }
}

impl Writer {
    fn new(
        medium: &Arc<dyn Medium>,
        keeper: &Arc<Keeper>,
        segments: &VecDeque<Segment>,
        wake: Wake,
        driver: Driver<'_>,
    ) -> Result<Self, OpenError> {
        let current = segments.back().and_then(|last| Some((last.number, last.area.clone()?)));
        let Some(current) = current.filter(|_| medium.profile().sync_thread) else {
            return Ok(Self::Direct(Staging::default()));
        };
        let path = medium.path(&segment_name(current.0));
        let thread = SyncThread::start(Arc::clone(keeper), current, wake, driver)
            .map_err(|source| OpenError::Io { action: "start a thread for", path, source })?;
        let staged = Arc::default();
        Ok(Self::Grouped(Grouped { thread, staged, spare: None, flush_wanted: false }))
    }
}

impl Grouped {
    fn staged_mut(&mut self) -> &mut Group {
        Arc::get_mut(&mut self.staged).expect("the staged group is shared with nobody")
    }

    fn stage(&mut self, begins: Option<(u64, Batch)>, header: &[u8], payload: &[u8]) {
        let group = self.staged_mut();
        if let Some((number, batch)) = begins {
            group.begin(number, batch.previous_end, batch.offset);
        }
        group.put(header);
        group.put(payload);
        group.pad(crate::format::WORD_BYTES);
    }

    /// Hands what is staged to the thread; returns how many bytes of padding were added.
    fn submit(&mut self, alignment: u64) -> u64 {
        let padding = self.staged_mut().pad(alignment);
        let empty = self.spare.take().unwrap_or_default();
        self.thread.submit(std::mem::replace(&mut self.staged, empty));
        padding
    }
}

/// The area of the last segment of a log without a sync thread.
fn written_directly(segments: &VecDeque<Segment>) -> &dyn Area {
    let area = segments.back().and_then(|last| last.area.as_ref());
    area.expect("a segment is made before it is written to directly").as_ref()
}

fn nanos_since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
