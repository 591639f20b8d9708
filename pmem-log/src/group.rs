//! Group commit: what was staged while the last sync ran goes with the next one.
//!
//! Two [`Group`]s take turns: the log's thread fills one while the sync thread writes and syncs
//! the other. A group is shared by `Arc`, so that entries in flight can be read; the sync thread
//! drops its share before it reports, and the log's thread then has it to itself again.

use crate::Lsn;
use crate::error::is_full;
use crate::medium::Area;
use crate::pool::{PoolSeat, SyncPool};
use crate::segments::{Keeper, Retired, Zeros};
use quorate_consensus::{Mistake, Mutant, Whims};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most bytes staged before `append` says that the log is full. One more record fits above it,
/// so that the largest value always finds room.
pub(crate) const STAGED_BYTES_MAX: usize = 16 << 20;
/// How long a full disk is left alone before the next try.
const FULL_RETRY: Duration = Duration::from_millis(20);

/// Behind groups of at most so many bytes the next segment is filled with zeros, a step behind one of
/// [`PREPARE_EVERY`]: enough to have it ready when a segment of 64 MiB is full. Larger groups would
/// write each byte twice; the first write to reserved blocks costs them 5 to 7 in a hundred (256 KiB and
/// 1 MiB on ext4, medians of pairs), and 50 at 4 KiB.
const PREPARE_BEHIND_BYTES_MAX: usize = 32 << 10;
const PREPARE_EVERY: u64 = 4;

/// A shared thread says when a log's work has ended; this is how long its word may get lost.
const ENDS_WITHIN: Duration = Duration::from_millis(20);

/// Called by the sync thread when a sync has finished.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// Records on their way to the medium.
#[derive(Debug, Default)]
pub(crate) struct Group {
    bytes: Vec<u8>,
    /// In the order of the log. Each is persisted before the next is written.
    pieces: Vec<Piece>,
    /// The last record in it.
    pub(crate) lsn: Lsn,
    /// The exact end of it.
    pub(crate) end: u64,
}

/// A batch within one segment.
#[derive(Debug)]
struct Piece {
    segment: u64,
    previous_end: u64,
    offset: u64,
    /// Where in [`Group::bytes`].
    from: usize,
    to: usize,
}

impl Group {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.pieces.clear();
    }

    /// Begins a batch.
    pub(crate) fn begin(&mut self, segment: u64, previous_end: u64, offset: u64) {
        let from = self.bytes.len();
        self.pieces.push(Piece { segment, previous_end, offset, from, to: from });
    }

    /// Adds to the batch begun last.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if let Some(piece) = self.pieces.last_mut() {
            piece.to = self.bytes.len();
        }
    }

    /// Fills the batch begun last with zeros to a multiple of `alignment`; returns how many.
    pub(crate) fn pad(&mut self, alignment: u64) -> u64 {
        let Some(piece) = self.pieces.last_mut() else { return 0 };
        let length = piece.to - piece.from;
        let padded = length.next_multiple_of(alignment as usize);
        self.bytes.resize(piece.from + padded, 0);
        piece.to = self.bytes.len();
        (padded - length) as u64
    }

    /// The bytes from `offset` of a segment, if they are in here.
    pub(crate) fn slice(&self, segment: u64, offset: u64, length: usize) -> Option<&[u8]> {
        let mut pieces = self.pieces.iter().rev();
        let piece = pieces.find(|piece| piece.segment == segment && piece.offset <= offset)?;
        let from = piece.from + usize::try_from(offset - piece.offset).ok()?;
        (from + length <= piece.to).then(|| &self.bytes[from..from + length])
    }
}

/// How a group fared.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Segments made on the way.
    pub(crate) made: Vec<(u64, Arc<dyn Area>)>,
    pub(crate) syncs: u64,
    pub(crate) nanos: u64,
    pub(crate) result: Result<(), Failure>,
}

/// Why a group, or a chore, did not finish.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// There was no room, and nothing is lost: it can be tried again.
    Full(Arc<str>),
    /// The device failed.
    Fatal(Arc<str>),
}

impl Failure {
    /// A failed write: want of space passes, anything else does not.
    pub(crate) fn of_write(error: &io::Error) -> Self {
        if is_full(error) { Self::Full(error.to_string().into()) } else { Self::of_sync(error) }
    }

    /// A failed sync: what it was to make durable may be anywhere, whatever the reason was.
    pub(crate) fn of_sync(error: &io::Error) -> Self {
        Self::Fatal(error.to_string().into())
    }
}

/// The log's end of the sync thread.
pub(crate) struct SyncThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// In place of the thread, if someone else drives the work.
    steps: Option<SyncSteps>,
    /// In place of the thread, if it is shared.
    seat: Option<PoolSeat>,
    /// When a group met a full disk: it waits here for the next try.
    waiting: Option<(Arc<Group>, Instant, Arc<str>)>,
    in_flight: Option<Arc<Group>>,
}

impl fmt::Debug for SyncThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncThread")
            .field("in_flight", &self.in_flight.is_some())
            .field("waiting", &self.waiting.is_some())
            .finish_non_exhaustive()
    }
}

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
    /// Whether an outcome lies on the desk: polled without the lock.
    done: AtomicBool,
}

#[derive(Default)]
struct Desk {
    job: Option<Arc<Group>>,
    outcome: Option<Outcome>,
    /// Segments to retire; at most as many as there are.
    chores: VecDeque<(u64, Vec<Retired>)>,
    chore_failure: Option<Arc<str>>,
    stop: bool,
}

impl Desk {
    /// The next piece of work, if there is any.
    fn next(&mut self, prepare: bool) -> Option<Work> {
        if let Some(group) = self.job.take() {
            return Some(Work::Group(group));
        }
        if let Some((first_segment, retired)) = self.chores.pop_front() {
            return Some(Work::Chore(first_segment, retired));
        }
        if self.stop {
            return Some(Work::Stop);
        }
        prepare.then_some(Work::Prepare)
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // The desk is whole between any two statements of whoever held it.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SyncThread {
    /// `current` is the segment in which the log goes on.
    pub(crate) fn start(
        keeper: Arc<Keeper>,
        current: (u64, Arc<dyn Area>),
        wake: Wake,
        driver: Driver<'_>,
    ) -> io::Result<Self> {
        let steps = match driver {
            Driver::Steps(steps) => Some(steps),
            Driver::Thread | Driver::Pool(_) => None,
        };
        let desk = Mutex::new(Desk::default());
        let done = AtomicBool::new(false);
        let shared = Arc::new(Shared { desk, changed: Condvar::new(), done });
        let shared_too = Arc::clone(&shared);
        let mistake = steps.map(|steps| steps.mistake).unwrap_or_default();
        let worker = Worker {
            shared: shared_too,
            keeper,
            current,
            wake,
            finished: 0,
            prepare: true,
            groups: 0,
            mistake,
            alive: None,
        };
        let mut this = Self {
            shared,
            thread: None,
            steps: steps.cloned(),
            seat: None,
            waiting: None,
            in_flight: None,
        };
        match driver {
            Driver::Steps(steps) => *steps.worker() = Some(worker),
            Driver::Pool(pool) => this.seat = Some(pool.seat(worker)),
            Driver::Thread => {
                let builder = thread::Builder::new().name("quorate-sync".to_owned());
                this.thread = Some(builder.spawn(move || worker.run())?);
            }
        }
        Ok(this)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.waiting.is_none()
    }

    /// The group that is not staged any more and not durable yet.
    pub(crate) fn unfinished(&self) -> Option<&Arc<Group>> {
        self.in_flight.as_ref().or_else(|| self.waiting.as_ref().map(|(group, ..)| group))
    }

    /// What ran out, if the group could not be written.
    pub(crate) fn full(&self) -> Option<Arc<str>> {
        self.waiting.as_ref().map(|(.., what)| Arc::clone(what))
    }

    /// Hands a group over. Only when idle.
    pub(crate) fn submit(&mut self, group: Arc<Group>) {
        assert!(self.in_flight.is_none(), "one group at a time is in flight");
        self.in_flight = Some(Arc::clone(&group));
        self.shared.desk().job = Some(group);
        self.work_is_there();
    }

    fn work_is_there(&self) {
        match &self.seat {
            Some(seat) => seat.wake(),
            None => self.shared.changed.notify_all(),
        }
    }

    /// Retires segments when there is time.
    pub(crate) fn retire(&self, first_segment: u64, retired: Vec<Retired>) {
        self.shared.desk().chores.push_back((first_segment, retired));
        self.work_is_there();
    }

    /// Takes the outcome of the group in flight, if there is one. The group comes back if it
    /// finished; if the medium was full, it is tried again after a while.
    pub(crate) fn poll(&mut self) -> Option<(Outcome, Option<Arc<Group>>)> {
        // Who drives the steps also decides when to look again: no clock is read there.
        let stepped = self.steps.is_some();
        let rested = |since: &Instant| stepped || since.elapsed() >= FULL_RETRY;
        if self.waiting.as_ref().is_some_and(|(_, since, _)| rested(since))
            && let Some((group, ..)) = self.waiting.take()
        {
            self.submit(group);
        }
        if !self.shared.done.load(Ordering::Acquire) {
            return None;
        }
        let outcome = {
            let mut desk = self.shared.desk();
            self.shared.done.store(false, Ordering::Release);
            desk.outcome.take()?
        };
        let group = self.in_flight.take()?;
        if let Err(Failure::Full(what)) = &outcome.result {
            self.waiting = Some((group, Instant::now(), Arc::clone(what)));
            return Some((outcome, None));
        }
        Some((outcome, Some(group)))
    }

    /// The first failure of a chore.
    pub(crate) fn chore_failure(&self) -> Option<Arc<str>> {
        self.shared.desk().chore_failure.clone()
    }

    /// Blocks until the group in flight has an outcome.
    pub(crate) fn wait(&self) {
        if let Some(steps) = &self.steps {
            while self.in_flight.is_some() && self.shared.desk().outcome.is_none() && steps.step() {
            }
            return;
        }
        let mut desk = self.shared.desk();
        while self.in_flight.is_some() && desk.outcome.is_none() && !desk.stop {
            desk = self.shared.changed.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the thread after the group in flight and all chores.
    pub(crate) fn stop(&mut self) {
        self.shared.desk().stop = true;
        self.work_is_there();
        if let Some(seat) = self.seat.take() {
            let mut desk = self.shared.desk();
            while !seat.has_ended() {
                let waited = self.shared.changed.wait_timeout(desk, ENDS_WITHIN);
                desk = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if let Some(steps) = self.steps.take() {
            while steps.step() {}
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the sync thread of the log died");
        }
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The work of the sync thread, done a step at a time by whoever drives a replica's time: a
/// simulator decides when a sync is over, and no thread or clock is involved. See
/// [`crate::Log::open_stepped`].
#[derive(Clone, Default)]
pub struct SyncSteps {
    worker: Arc<Mutex<Option<Worker>>>,
    /// A mistake built into the log that is opened with it: none in a product.
    pub mistake: Mistake,
    /// Legal misbehaviour of that log: none in a product.
    pub whims: Whims,
}

impl fmt::Debug for SyncSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SyncSteps")
    }
}

impl SyncSteps {
    fn worker(&self) -> MutexGuard<'_, Option<Worker>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`SyncSteps::step`] would do something.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.worker().as_ref().is_some_and(Worker::is_due)
    }

    /// Does what the sync thread would do next, from the first write to the last sync of one group
    /// or one chore. Returns whether there can be more to do.
    pub fn step(&self) -> bool {
        let mut place = self.worker();
        let Some(worker) = place.as_mut() else { return false };
        let Some(goes_on) = worker.step() else { return false };
        if !goes_on {
            *place = None;
        }
        goes_on
    }
}

/// Who does the work of a log's sync thread.
#[derive(Clone, Copy)]
pub(crate) enum Driver<'a> {
    /// A thread of its own.
    Thread,
    /// Whoever steps it.
    Steps(&'a SyncSteps),
    /// A thread that works for other logs as well.
    Pool(&'a SyncPool),
}

/// The sync thread itself.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    keeper: Arc<Keeper>,
    /// The segment written last.
    current: (u64, Arc<dyn Area>),
    wake: Wake,
    /// How many pieces of the group at hand are durable: a full disk interrupts between two.
    finished: usize,
    /// The next segment is not ready yet.
    prepare: bool,
    /// Counts groups.
    groups: u64,
    mistake: Mistake,
    /// Falls with the worker, before whoever waits for its end is told.
    alive: Option<Arc<()>>,
}

enum Work {
    Group(Arc<Group>),
    Chore(u64, Vec<Retired>),
    Prepare,
    Stop,
}

impl Worker {
    /// Whether there is something to do.
    pub(crate) fn is_due(&self) -> bool {
        let desk = self.shared.desk();
        desk.job.is_some() || !desk.chores.is_empty() || desk.stop || self.prepare
    }

    /// Does the next piece of work, if there is any; returns whether there can be more after it.
    pub(crate) fn step(&mut self) -> Option<bool> {
        let work = self.shared.desk().next(self.prepare)?;
        Some(self.act(work))
    }

    /// `alive` is dropped when the worker is.
    pub(crate) fn keep(&mut self, alive: Arc<()>) {
        self.alive = Some(alive);
    }

    /// Ends it after a panic, which is told as a failure of the log.
    pub(crate) fn die(self) {
        self.report_death();
    }

    fn report_death(&self) {
        // Nobody would ever finish the group in flight: say so instead of letting it hang.
        let result = Err(Failure::Fatal("the sync thread died".into()));
        self.report(Outcome { made: Vec::new(), syncs: 0, nanos: 0, result });
    }

    fn run(mut self) {
        let mut goes_on = true;
        while goes_on {
            let work = self.wait();
            goes_on = self.act(work);
        }
    }

    /// Does one piece of work; returns whether there can be more.
    fn act(&mut self, work: Work) -> bool {
        match work {
            Work::Stop => return false,
            Work::Chore(first_segment, retired) => self.chore(first_segment, retired),
            Work::Prepare => self.prepare = self.prepare_more(),
            Work::Group(group) => {
                let (before, bytes) = (self.current.0, group.len());
                let outcome = self.group(&group);
                let fatal = matches!(outcome.result, Err(Failure::Fatal(_)));
                drop(group);
                self.report(outcome);
                if fatal {
                    return false;
                }
                self.prepare |= self.current.0 != before;
                // Steady work must not keep it from being ready; but a step writes and syncs, and
                // the next group waits for it. Large ones would wait for more bytes than they have,
                // and gain nothing: see `PREPARE_BEHIND_BYTES_MAX`.
                self.groups += 1;
                let small = bytes <= PREPARE_BEHIND_BYTES_MAX;
                if self.prepare && small && self.groups.is_multiple_of(PREPARE_EVERY) {
                    self.prepare = self.prepare_more();
                }
            }
        }
        true
    }

    fn wait(&self) -> Work {
        let mut desk = self.shared.desk();
        loop {
            if let Some(work) = desk.next(self.prepare) {
                return work;
            }
            desk = self.shared.changed.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One step towards the next segment; returns whether to go on. A failure here is met again,
    /// and told, when the segment is needed.
    fn prepare_more(&self) -> bool {
        self.keeper.prepare().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot prepare the next segment of the log");
            false
        })
    }

    fn chore(&self, first_segment: u64, retired: Vec<Retired>) {
        if let Err(error) = self.keeper.retire(first_segment, retired) {
            tracing::error!(%error, "cannot retire segments of the log");
            self.shared.desk().chore_failure.get_or_insert_with(|| error.to_string().into());
            (self.wake)();
        }
    }

    fn group(&mut self, group: &Group) -> Outcome {
        let begin = Instant::now();
        let mut made = Vec::new();
        let first = self.finished;
        let result = self.pieces(group, &mut made);
        let syncs = (self.finished - first) as u64;
        if result.is_ok() {
            self.finished = 0;
        }
        let nanos = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Outcome { made, syncs, nanos, result }
    }

    fn pieces(
        &mut self,
        group: &Group,
        made: &mut Vec<(u64, Arc<dyn Area>)>,
    ) -> Result<(), Failure> {
        for piece in &group.pieces[self.finished..] {
            if piece.segment != self.current.0 {
                let area =
                    self.keeper.make(piece.segment, piece.previous_end, Zeros::AsFarAsTheyAre);
                let area = area.map_err(|error| Failure::of_write(&error))?;
                made.push((piece.segment, Arc::clone(&area)));
                self.current = (piece.segment, area);
            }
            let bytes = &group.bytes[piece.from..piece.to];
            let area = &self.current.1;
            area.write(piece.offset, bytes).map_err(|error| Failure::of_write(&error))?;
            if !self.mistake.is(Mutant::SkipFlush) {
                let synced = area.persist(piece.offset, bytes.len() as u64);
                let ignored = synced.is_err() && self.mistake.is(Mutant::IgnoreFailedSync);
                synced.or_else(
                    |error| if ignored { Ok(()) } else { Err(Failure::of_sync(&error)) },
                )?;
            }
            self.finished += 1;
        }
        Ok(())
    }

    /// Lays the outcome on the desk and wakes whoever waits for it.
    fn report(&self, outcome: Outcome) {
        self.shared.desk().outcome = Some(outcome);
        self.shared.done.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        (self.wake)();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if thread::panicking() {
            self.report_death();
        }
        self.alive = None;
        self.shared.changed.notify_all();
    }
}
