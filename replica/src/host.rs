//! [`Host`]: many replicas on one thread, over one transport. Each is a shard of its own: another
//! state machine, log and leader. One that fails takes none of the others with it.
//!
//! A turn looks only at shards that something happened to: their transport, their log, a client or a
//! timer woke them. So what an idle shard costs is its timers.

use crate::front::{Handle, Shared};
use crate::node::{Clock, Node, Turn};
use crate::runner::Leaving;
use crossbeam_queue::ArrayQueue;
use quorate_consensus::{Nanos, NodeId};
use quorate_transport::Wake;
use quorate_transport::shards::{SHARDS_MAX, ShardError, ShardId, ShardTransport, Trunk};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Which shards have something to do, from any thread.
struct Ready {
    queue: ArrayQueue<ShardId>,
    parked: AtomicBool,
    trunk: Arc<dyn Wake>,
}

impl Ready {
    /// Wakes the host's thread if it sleeps; see `Shared::wake` for the fence.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::AcqRel) {
            self.trunk.wake();
        }
    }
}

struct ShardWaker {
    id: ShardId,
    /// It is in the queue. So the queue never holds more than all shards.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for ShardWaker {
    fn wake(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            // There is room for every shard.
            let _ = self.ready.queue.push(self.id);
        }
        self.ready.wake();
    }
}

/// A shard that runs here.
struct Cell {
    node: Box<Node>,
    waker: Arc<ShardWaker>,
    /// Requests that wait fail when this goes.
    leaving: Leaving,
    due: Nanos,
}

enum Order {
    Run(ShardId, Box<Node>, Arc<ShardWaker>),
    Stop(ShardId),
}

/// The shards of one process, without the thread that drives them.
pub(crate) struct Host {
    trunk: Trunk,
    ready: Arc<Ready>,
    orders: Receiver<Order>,
    cells: BTreeMap<ShardId, Cell>,
    timers: BTreeSet<(Nanos, ShardId)>,
    hints: bool,
    /// The zero of the time that its turns are given.
    zero: Option<Instant>,
}

/// A host on its own thread. Dropping it stops all its shards.
#[derive(Debug)]
pub struct HostRunner {
    trunk: Trunk,
    ready: Arc<Ready>,
    orders: Sender<Order>,
    wakers: std::sync::Mutex<BTreeMap<ShardId, Arc<ShardWaker>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("queued", &self.queue.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ShardWaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardWaker({})", self.id)
    }
}

impl HostRunner {
    /// Starts a host's thread over the links of `trunk`. It spins for `spin` after its last work before
    /// it sleeps.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(trunk: Trunk, spin: Duration) -> std::io::Result<Self> {
        let ready = Arc::new(Ready {
            // A shard may stand in it twice for a moment, when it is new.
            queue: ArrayQueue::new(2 * usize::from(SHARDS_MAX)),
            parked: AtomicBool::new(false),
            trunk: trunk.waker(),
        });
        let (orders, receiver) = channel();
        trunk.drive();
        let host = Host {
            hints: trunk.hints(),
            trunk: trunk.clone(),
            ready: Arc::clone(&ready),
            orders: receiver,
            cells: BTreeMap::new(),
            timers: BTreeSet::new(),
            zero: None,
        };
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = std::thread::Builder::new()
            .name("quorate-host".into())
            .spawn(move || run(host, &stop, spin))?;
        let wakers = std::sync::Mutex::default();
        Ok(Self { trunk, ready, orders, wakers, stopping, thread: Some(thread) })
    }

    /// The transport for a new shard, with the peers that the links came with: build its log and its
    /// [`Node`] with it, then call [`HostRunner::run`].
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn open(&self, id: ShardId) -> Result<ShardTransport, ShardError> {
        let waker = self.shard_waker(id);
        let transport = self.trunk.shard(id, Arc::<ShardWaker>::clone(&waker))?;
        self.wakers().insert(id, waker);
        Ok(transport)
    }

    /// As [`HostRunner::open`], with these peers and their addresses. From then on the shard's own
    /// configurations say who its peers are.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn open_among(
        &self,
        id: ShardId,
        peers: &[(NodeId, String)],
    ) -> Result<ShardTransport, ShardError> {
        let waker = self.shard_waker(id);
        let transport = self.trunk.shard_among(id, peers, Arc::<ShardWaker>::clone(&waker))?;
        self.wakers().insert(id, waker);
        Ok(transport)
    }

    fn shard_waker(&self, id: ShardId) -> Arc<ShardWaker> {
        let ready = Arc::clone(&self.ready);
        Arc::new(ShardWaker { id, queued: AtomicBool::new(false), ready })
    }

    /// Runs a shard on the host's thread. `node` was made with the transport of [`HostRunner::open`];
    /// of a shard that was never opened nothing runs, and its requests fail.
    pub fn run(&self, id: ShardId, node: Node) -> Handle {
        let handle = node.handle();
        node.drive_checkpoints();
        let waker = self.wakers().get(&id).cloned();
        if let Some(waker) = waker {
            // If the thread is gone, the node falls here, and its requests fail.
            let _ = self.orders.send(Order::Run(id, Box::new(node), Arc::clone(&waker)));
            waker.wake();
        }
        handle
    }

    /// Stops a shard; requests under way get an error, and its peers hear of it. Its number can be opened
    /// again when it has stopped ([`Handle::is_stopped`]).
    pub fn stop_shard(&self, id: ShardId) {
        let _ = self.orders.send(Order::Stop(id));
        self.wake(id);
    }

    /// Whether the host's thread runs. It ends with [`HostRunner::stop`], or by a defect.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Stops all shards and the thread, and waits for it.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.ready.trunk.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by its hook.
            let _ = thread.join();
        }
    }

    fn wake(&self, id: ShardId) {
        if let Some(waker) = self.wakers().get(&id) {
            waker.wake();
        }
    }

    fn wakers(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, Arc<ShardWaker>>> {
        self.wakers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for HostRunner {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(mut host: Host, stopping: &AtomicBool, spin: Duration) {
    let origin = Instant::now();
    host.zero = Some(origin);
    let spin = spin.as_nanos() as u64;
    let mut worked_at = 0;
    while !stopping.load(Ordering::Acquire) {
        let now = origin.elapsed().as_nanos() as u64;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let turn = host.step(Clock { now: Nanos(now), wall_ms: wall.as_millis() as u64 });
        if turn.busy {
            worked_at = now;
        } else if now.saturating_sub(worked_at) >= spin {
            let next = turn.next.0.saturating_sub(origin.elapsed().as_nanos() as u64);
            host.park(Duration::from_nanos(next), stopping);
        } else {
            std::hint::spin_loop();
        }
    }
    host.stop();
}

impl Host {
    /// One turn: every shard that has something to do has one of its own.
    pub(crate) fn step(&mut self, clock: Clock) -> Turn {
        self.take_orders();
        let came = self.trunk.poll();
        let mut ran = false;
        // Those that wake each other go on in the next turn, after the links were looked at.
        for _ in 0..self.ready.queue.len() {
            let Some(id) = self.ready.queue.pop() else { break };
            ran |= self.step_shard(id, clock);
        }
        while let Some(&(due, id)) = self.timers.first()
            && due <= clock.now
        {
            self.step_shard(id, clock);
        }
        if !self.hints {
            let ids: Vec<ShardId> = self.cells.keys().copied().collect();
            for id in ids {
                ran |= self.step_shard(id, clock);
            }
        }
        self.trunk.flush();
        let next = self.timers.first().map_or(clock.now + LONGEST_PARK, |(due, _)| *due);
        Turn { busy: came || ran, next: next.min(clock.now + LONGEST_PARK) }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Run(id, node, waker) => {
                    let leaving = Leaving(Arc::clone(node.shared()));
                    node.drive_checkpoints();
                    if let Some(zero) = self.zero {
                        node.shared().gate.set_zero(zero);
                    }
                    // It may have been queued, and found nobody, before it came.
                    waker.queued.store(false, Ordering::Release);
                    let due = Nanos(0);
                    self.timers.insert((due, id));
                    self.cells.insert(id, Cell { node, waker, leaving, due });
                }
                Order::Stop(id) => self.end(id),
            }
        }
    }

    /// A turn of one shard. Returns whether it had work.
    fn step_shard(&mut self, id: ShardId, clock: Clock) -> bool {
        let Some(cell) = self.cells.get_mut(&id) else { return false };
        cell.waker.queued.store(false, Ordering::Release);
        let shared = Arc::clone(&cell.leaving.0);
        shared.parked.store(false, Ordering::Relaxed);
        // The node of a shard that panicked is dropped, and nothing of it is looked at again.
        let turn = catch_unwind(AssertUnwindSafe(|| cell.node.step(clock)));
        let Ok(turn) = turn else {
            tracing::error!(shard = %id, "the shard failed: it is gone from this process");
            self.timers.remove(&(cell.due, id));
            if let Some(cell) = self.cells.remove(&id) {
                // Its destructors may fail as well.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(cell)));
            }
            return true;
        };
        if shared.stopping.load(Ordering::Acquire) {
            self.end(id);
            return true;
        }
        if turn.next != cell.due {
            self.timers.remove(&(cell.due, id));
            self.timers.insert((turn.next, id));
            cell.due = turn.next;
        }
        if turn.busy || !may_rest(&shared) {
            cell.waker.wake();
        }
        turn.busy
    }

    fn end(&mut self, id: ShardId) {
        if let Some(mut cell) = self.cells.remove(&id) {
            self.timers.remove(&(cell.due, id));
            cell.node.stop();
        }
    }

    fn park(&mut self, timeout: Duration, stopping: &AtomicBool) {
        self.ready.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.ready.queue.is_empty() && !stopping.load(Ordering::Acquire) {
            self.trunk.park(timeout);
        }
        self.ready.parked.store(false, Ordering::Relaxed);
    }

    fn stop(&mut self) {
        self.take_orders();
        while let Some((&id, _)) = self.cells.first_key_value() {
            self.end(id);
        }
        self.trunk.flush();
    }
}

/// From now on a client that submits wakes the shard. False if one did just before. The fence pairs
/// with the one in `Shared::wake`.
fn may_rest(shared: &Shared) -> bool {
    shared.parked.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    shared.requests.is_empty()
}

/// New shards are looked for at least this often; they wake the thread as well.
const LONGEST_PARK: Nanos = Nanos::from_millis(1_000);
