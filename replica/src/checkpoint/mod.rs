//! Taking, keeping, sending and restoring checkpoints, beside the replica's thread.
//!
//! The thread of the replica takes a view of the state between two commands and hands it to a
//! *worker*, which streams it into the store; the same worker writes what a peer sends, reads blocks
//! for peers, and restores the state machine, which lives with the worker meanwhile. The worker does
//! one bounded piece of work at a time ([`CheckpointSteps::step`]): in a process it has a thread while
//! there is work, a simulator calls it when it likes.

mod image;
mod worker;

use crate::machine::StateMachine;
use bytes::Bytes;
use quorate_consensus::session::SessionTable;
use quorate_consensus::{Message, Nanos, NodeId, Slot};
use quorate_pmem_log::{Checkpoint, CheckpointError, CheckpointId, CheckpointStore, Upkeep};
use quorate_transport::Wake;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use image::IMAGE_PIECE_BYTES;
pub(crate) use image::{Head, Source, read_head, read_state};
use worker::Worker;

/// Requests of peers for blocks that wait to be read; one beyond it is dropped, and asked again.
pub(crate) const READS_MAX: usize = 8;

/// Work for the worker. What may end with the removal of an old checkpoint says how late it is: one
/// that a peer read from is kept for a while.
pub(crate) enum Job {
    /// Write a checkpoint of this view.
    Take { id: CheckpointId, source: Source, now: Nanos },
    /// Blocks came from a peer. `installs` says whether the log is passed over if that was the last.
    Write { id: CheckpointId, blocks: Bytes, commit_slot: Slot, now: Nanos },
    /// A peer asked for blocks.
    Read {
        to: NodeId,
        cluster: u64,
        at_least: Slot,
        want: Option<(CheckpointId, u64)>,
        bytes_max: usize,
        now: Nanos,
    },
    /// Restore the state machine from the newest good checkpoint that reaches `at_least`.
    Restore { machine: Box<dyn StateMachine>, at_least: Slot },
}

/// What came of it.
pub(crate) enum Done {
    /// A checkpoint was taken, or could not be.
    Taken(Result<Checkpoint, CheckpointError>),
    /// Blocks were written: the checkpoint is whole now, or goes on with this block.
    Written { id: CheckpointId, next: u64, result: Result<Option<Checkpoint>, CheckpointError> },
    /// The answer to a peer.
    Blocks { to: NodeId, message: Message },
    /// The state machine is back.
    Restored { machine: Box<dyn StateMachine>, result: Result<Option<Restored>, String> },
}

/// A replica's state as it was restored.
pub(crate) struct Restored {
    pub(crate) head: Head,
    pub(crate) sessions: SessionTable,
}

/// What the store holds, for the replica's thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// The oldest first.
    pub(crate) installed: Vec<Checkpoint>,
    pub(crate) bad: usize,
    pub(crate) partial: Option<(CheckpointId, u64)>,
    /// Bytes of the image that is being taken.
    pub(crate) taken_bytes: u64,
}

#[derive(Default)]
struct Desk {
    jobs: VecDeque<Job>,
    done: VecDeque<Done>,
    reads: usize,
    /// The worker has a checkpoint to go on with.
    taking: bool,
    summary: Summary,
    /// A thread does the work, at this many bytes a second.
    drive: Option<u64>,
    /// The same thread makes the log's next segment, and when it has nothing else to do removes those that a
    /// checkpoint made unnecessary.
    upkeep: Option<Upkeep>,
    running: bool,
    thread: Option<JoinHandle<()>>,
    stop: bool,
}

impl Desk {
    /// Whether the thread has something to do.
    fn is_due(&self) -> bool {
        let upkeep = self.upkeep.as_ref().is_some_and(Upkeep::is_due);
        !self.jobs.is_empty() || self.taking || upkeep
    }
}

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
    wake: Arc<dyn Wake>,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // The desk is whole between any two statements of whoever held it.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker of one replica, moved on by whoever calls [`CheckpointSteps::step`].
#[derive(Clone)]
pub struct CheckpointSteps {
    shared: Arc<Shared>,
    worker: Arc<Mutex<Worker>>,
}

impl std::fmt::Debug for CheckpointSteps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CheckpointSteps")
    }
}

impl CheckpointSteps {
    /// Also gives back what the newest checkpoint begins with, as far as one can be read.
    pub(crate) fn new(store: CheckpointStore, wake: Arc<dyn Wake>) -> (Self, Option<Head>) {
        let heads = store.installed().iter().rev();
        let head = |found| read_head(&mut store.reader(found).ok()?).ok();
        let head = heads.filter_map(head).next();
        let desk = Mutex::new(Desk::default());
        let shared = Arc::new(Shared { desk, changed: Condvar::new(), wake });
        let worker = Worker::new(store, Arc::clone(&shared));
        (Self { shared, worker: Arc::new(Mutex::new(worker)) }, head)
    }

    /// Whether [`CheckpointSteps::step`] would do something.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let desk = self.shared.desk();
        !desk.jobs.is_empty() || desk.taking
    }

    /// Does one piece of work: some blocks written or read, or a state machine restored. Returns how
    /// many bytes were moved.
    pub fn step(&self) -> u64 {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner).step()
    }

    /// From now on the worker has a thread whenever there is work, which moves no more than so many
    /// bytes a second; 0 for as many as it can. Nothing else steps it then.
    pub(crate) fn drive(&self, bytes_per_second: u64) {
        let mut desk = self.shared.desk();
        desk.drive = Some(bytes_per_second);
        self.run_if_due(&mut desk);
    }

    /// The thread does this as well.
    pub(crate) fn keep_up(&self, upkeep: Upkeep) {
        let mut desk = self.shared.desk();
        desk.upkeep = Some(upkeep);
        self.run_if_due(&mut desk);
    }

    /// The log has something to be done.
    pub(crate) fn look(&self) {
        self.run_if_due(&mut self.shared.desk());
    }

    /// Ends the thread after the piece of work at hand, and waits for it: whatever it holds on to is
    /// free then. What was begun stays as a crash would leave it.
    pub(crate) fn stop(&self) {
        let thread = {
            let mut desk = self.shared.desk();
            desk.stop = true;
            desk.upkeep = None;
            self.shared.changed.notify_all();
            desk.thread.take()
        };
        if let Some(thread) = thread {
            // A panic of the thread was printed by its hook.
            let _ = thread.join();
        }
    }

    fn run_if_due(&self, desk: &mut Desk) {
        let Some(rate) = desk.drive.filter(|_| !desk.running && !desk.stop) else { return };
        if !desk.is_due() {
            return;
        }
        let steps = self.clone();
        let thread = std::thread::Builder::new().name("quorate-checkpoint".into());
        match thread.spawn(move || steps.run(rate)) {
            Ok(thread) => {
                desk.running = true;
                desk.thread = Some(thread);
            }
            // The next job tries again.
            Err(error) => tracing::error!(%error, "no thread for checkpoints"),
        }
    }

    fn run(&self, bytes_per_second: u64) {
        step_back();
        loop {
            let upkeep = self.shared.desk().upkeep.clone();
            upkeep.as_ref().map(Upkeep::prepare);
            let mut moved = self.step();
            if moved == 0
                && let Some(upkeep) = upkeep
            {
                moved = upkeep.remove_one().unwrap_or(0);
            }
            let mut desk = self.shared.desk();
            if bytes_per_second > 0 && moved > 0 && !desk.stop {
                let nanos = moved.saturating_mul(1_000_000_000) / bytes_per_second;
                let pause = Duration::from_nanos(nanos);
                let paused = self.shared.changed.wait_timeout_while(desk, pause, |desk| !desk.stop);
                desk = paused.unwrap_or_else(PoisonError::into_inner).0;
            }
            if desk.stop || !desk.is_due() {
                desk.running = false;
                return;
            }
        }
    }

    /// Gives the worker something to do. Returns whether it was taken: reads for peers are bounded, and
    /// of everything else the replica has one at a time under way.
    pub(crate) fn submit(&self, job: Job) -> bool {
        let mut desk = self.shared.desk();
        if let Job::Read { .. } = job {
            if desk.reads >= READS_MAX {
                return false;
            }
            desk.reads += 1;
        }
        desk.jobs.push_back(job);
        self.run_if_due(&mut desk);
        true
    }

    /// The next result.
    pub(crate) fn poll(&self) -> Option<Done> {
        let mut desk = self.shared.desk();
        let done = desk.done.pop_front();
        if let Some(Done::Blocks { .. }) = done {
            desk.reads -= 1;
        }
        done
    }

    pub(crate) fn summary(&self) -> Summary {
        self.shared.desk().summary.clone()
    }
}

/// How much nicer the worker's thread is than the others of its process: in the scheduler's weights a
/// tenth of their share, where there are too few processors for all.
const NICER: i32 = 10;

/// Lets this thread run behind those that answer clients: on Linux the priority called that of a process is
/// a thread's own (`setpriority(2)`, NOTES).
fn step_back() {
    let lowered = rustix::process::getpriority_process(None)
        .and_then(|nice| rustix::process::setpriority_process(None, (nice + NICER).min(19)));
    if let Err(error) = lowered {
        tracing::debug!(%error, "the thread for checkpoints keeps its priority");
    }
}
