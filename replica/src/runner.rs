//! The thread of a replica: turn, spin, sleep.

use crate::front::{Handle, Shared};
use crate::node::{Clock, Node};
use quorate_consensus::Nanos;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A replica on its own thread. Dropping it stops the thread.
#[derive(Debug)]
pub struct Runner {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(node: Node, spin: Duration) -> std::io::Result<Self> {
        let handle = node.handle();
        node.drive_checkpoints();
        let shared = Arc::clone(node.shared());
        let name = format!("quorate-{}", handle.status().node);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // If a turn panics the replica is gone: whoever waits must learn it.
            let _guard = Leaving(Arc::clone(&shared));
            run(node, &shared, spin);
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// For clients in this process.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Whether the thread still runs; it ends only by [`Runner::stop`] or by a panic.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Stops the thread and waits for it. Requests under way get an error.
    pub fn stop(&mut self) {
        let shared = &self.handle.shared;
        shared.stopping.store(true, Ordering::Release);
        shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by its hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whoever waits for the replica learns that it is gone when this goes.
#[derive(Debug)]
pub(crate) struct Leaving(pub(crate) Arc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        use crate::front::{Failure, Reason};
        self.0.stopping.store(true, Ordering::Release);
        self.0.stopped.store(true, Ordering::Release);
        while let Some(request) = self.0.requests.pop() {
            request.fail(Failure::Rejected(Reason::Stopped));
        }
    }
}

fn run(mut node: Node, shared: &Shared, spin: Duration) {
    let origin = Instant::now();
    shared.gate.set_zero(origin);
    let spin = spin.as_nanos() as u64;
    let mut worked_at = 0;
    loop {
        let now = origin.elapsed().as_nanos() as u64;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let turn = node.step(Clock { now: Nanos(now), wall_ms: wall.as_millis() as u64 });
        if shared.stopping.load(Ordering::Acquire) {
            node.stop();
            return;
        }
        if turn.busy || !shared.requests.is_empty() {
            worked_at = now;
        } else if now.saturating_sub(worked_at) >= spin {
            let next = turn.next.0.saturating_sub(origin.elapsed().as_nanos() as u64);
            park(&mut node, shared, Duration::from_nanos(next));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Sleeps until the transport, the log, a client or the time wakes us. The fence pairs with the one
/// in `Shared::wake`.
fn park(node: &mut Node, shared: &Shared, timeout: Duration) {
    shared.parked.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    if shared.requests.is_empty() && !shared.stopping.load(Ordering::Acquire) {
        node.count_park();
        node.transport().park(timeout);
    }
    shared.parked.store(false, Ordering::Relaxed);
}
