//! [`SyncPool`]: a few threads that do the syncs of many logs.

use crate::group::Worker;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// Threads that write and sync for all logs opened with them, one group of one log at a time and in
/// turn, in place of a thread for each log. A device that hangs under one log holds up as many others as there are
/// threads fewer. Clones share it; the threads end with the last one and the last log.
#[derive(Clone)]
pub struct SyncPool(Arc<Pool>);

struct Pool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    desk: Mutex<Desk>,
    changed: Condvar,
}

#[derive(Default)]
struct Desk {
    /// Logs that have work, each at most once.
    due: VecDeque<Arc<Seat>>,
    stop: bool,
}

/// One log's place in the pool.
struct Seat {
    /// None once its work is over.
    worker: Mutex<Option<Worker>>,
    queued: AtomicBool,
}

/// A log's end of its seat. It keeps the pool.
pub(crate) struct PoolSeat {
    seat: Arc<Seat>,
    pool: SyncPool,
    ended: Weak<()>,
}

impl fmt::Debug for SyncPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncPool").field("threads", &self.0.threads.len()).finish_non_exhaustive()
    }
}

impl SyncPool {
    /// Starts `threads` threads, at least one.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(threads: usize) -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let mut pool = Pool { queue: Arc::clone(&queue), threads: Vec::new() };
        for number in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            let builder = thread::Builder::new().name(format!("quorate-sync-{number}"));
            pool.threads.push(builder.spawn(move || queue.work())?);
        }
        Ok(Self(Arc::new(pool)))
    }

    /// Gives a log's work a place, and begins with what is to be prepared.
    pub(crate) fn seat(&self, mut worker: Worker) -> PoolSeat {
        let alive = Arc::new(());
        let ended = Arc::downgrade(&alive);
        worker.keep(alive);
        let seat = Seat { worker: Mutex::new(Some(worker)), queued: AtomicBool::new(false) };
        let seat = PoolSeat { seat: Arc::new(seat), pool: self.clone(), ended };
        seat.wake();
        seat
    }
}

impl PoolSeat {
    /// There is work on the desk of this log.
    pub(crate) fn wake(&self) {
        self.pool.0.queue.put(&self.seat);
    }

    /// Whether the work is over, and nothing of the log is touched any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.strong_count() == 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.desk().stop = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a sync thread of the logs died");
            }
        }
    }
}

impl Queue {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // The desk is whole between any two statements of whoever held it.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, seat: &Arc<Seat>) {
        if !seat.queued.swap(true, Ordering::AcqRel) {
            self.desk().due.push_back(Arc::clone(seat));
            self.changed.notify_one();
        }
    }

    fn work(&self) {
        while let Some(seat) = self.next() {
            // Work that comes from here on queues it again.
            seat.queued.store(false, Ordering::Release);
            let mut place = seat.worker.lock().unwrap_or_else(PoisonError::into_inner);
            // A defect under one log ends that log's work, and says so: see `Worker::drop`.
            let goes_on = catch_unwind(AssertUnwindSafe(|| {
                place.as_mut().is_some_and(|worker| worker.step().unwrap_or(true))
            }));
            let has_more = place.as_ref().is_some_and(Worker::is_due);
            match goes_on {
                Ok(true) if has_more => self.put(&seat),
                Ok(true) => {}
                Ok(false) => *place = None,
                Err(_) => {
                    if let Some(worker) = place.take() {
                        worker.die();
                    }
                }
            }
        }
    }

    fn next(&self) -> Option<Arc<Seat>> {
        let mut desk = self.desk();
        loop {
            if let Some(seat) = desk.due.pop_front() {
                return Some(seat);
            }
            if desk.stop {
                return None;
            }
            desk = self.changed.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
