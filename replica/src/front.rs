//! The way in for clients of this process: a bounded queue to the replica's thread, and replies back.

use bytes::{Bytes, BytesMut};
use crossbeam_queue::ArrayQueue;
use quorate_consensus::{Ballot, Change, NodeId, Refusal, Slot, batch};
use quorate_transport::Wake;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
use std::task::{Context as TaskContext, Poll};
use tokio::sync::{broadcast, oneshot};

use crate::leased::LeaseGate;
use crate::node::Clock;
use crate::relay::{GroupOutcome, GroupSender};
use crate::status::{CheckpointTaken, SharedStatus, Status};

/// Requests that wait for the replica's thread; beyond it a client is told "busy".
pub const REQUESTS_MAX: usize = if cfg!(feature = "buggify") { 256 } else { 65_536 };
/// Payload bytes that wait for the replica's thread.
pub const REQUEST_BYTES_MAX: usize = 512 << 20;

/// Notifications that wait for a subscriber; the oldest are lost to one that does not keep up, and it
/// is told how many.
pub const NOTIFICATIONS_MAX: usize = 256;

/// What happens to a replica that its application may want to know about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Notification {
    /// This replica leads under this ballot.
    Leading(Ballot),
    /// This replica led under this ballot and does not any more.
    SteppedDown(Ballot),
    /// Another replica, the owner of this ballot, leads.
    Following(Ballot),
    /// No leader is known.
    Leaderless,
    /// This leader hands over to that replica.
    Transferring(NodeId),
    /// This configuration is known here; settled once nothing is left of the one before.
    Configured {
        /// Its number.
        id: u64,
        /// Whether it is the only one in force.
        settled: bool,
    },
    /// That replica did not take over; this one goes on leading.
    TransferFailed(NodeId),
    /// A checkpoint of the state at this slot was taken here and is durable.
    CheckpointTaken(Slot),
    /// A checkpoint could not be taken; the ones before are as they were, and it is tried again. The
    /// status says why.
    CheckpointFailed,
    /// A checkpoint of a peer, of the state at this slot, was received whole and is durable.
    CheckpointReceived(Slot),
    /// The state machine was restored from a checkpoint and stands at this slot: whatever it had told
    /// its application of before may be outdated.
    Restored(Slot),
}

/// Why a request has no reply. The variant says what the client may believe: this and a reply are
/// the only three outcomes there are.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// It certainly did not happen, and will not.
    #[error("rejected: {0}")]
    Rejected(Reason),
    /// It may have happened, or may still happen.
    #[error("outcome unknown: {0}")]
    Unknown(Reason),
}

/// What stood in the way.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reason {
    /// A queue is full: try again later.
    #[error("too many requests wait already; try again later")]
    Busy,
    /// Larger than the limit.
    #[error("{length} bytes are more than the limit of {limit}")]
    TooLarge {
        /// What came.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Why the members are not changed.
    #[error("{0}")]
    Members(Refusal),
    /// No leader was found in time.
    #[error("no leader is known: fewer than a majority of the replicas can reach each other")]
    NoLeader,
    /// The leader did not answer in time.
    #[error("no outcome within the time limit")]
    TimedOut,
    /// This replica has not applied the slot that was asked for.
    #[error("this replica has not applied slot {0} yet")]
    NotApplied(Slot),
    /// Leadership was not handed over.
    #[error("leadership stays where it is: {0}")]
    NotTransferred(String),
    /// The log of this replica is full.
    #[error("the log has no space left: free some, the replica goes on by itself")]
    LogFull,
    /// The log of this replica failed.
    #[error("the log of this replica failed: use another replica")]
    LogFailed,
    /// The replica stopped.
    #[error("the replica stopped")]
    Stopped,
    /// The session was closed while the request was under way.
    #[error("the session of this replica was closed")]
    SessionClosed,
    /// The state machine has no checkpoints.
    #[error("the state machine does not hand out views for checkpoints")]
    NoCheckpoints,
    /// A checkpoint could not be written.
    #[error("the checkpoint could not be written: {0}")]
    CheckpointFailed(String),
    /// The state machine is being restored.
    #[error("the state is being restored from a checkpoint: try again soon, or at another replica")]
    Restoring,
    /// This replica is a witness.
    #[error("this replica is a witness: it holds no data and serves nobody; ask {ask}")]
    Witness {
        /// Whom to ask.
        ask: String,
    },
    /// Not whole items, or none; or not a whole group.
    #[error("a request needs whole, length-prefixed items")]
    Malformed,
    /// What a replica elsewhere said.
    #[error("{0}")]
    Remote(String),
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// It sees every write that was acknowledged before it began. Confirmed by a quorum, or by the
    /// leader alone where it holds a lease.
    #[default]
    Linearizable,
    /// It sees this slot and all before it, and perhaps more: what a client that was told a slot has
    /// seen, at any replica, without a question to the leader. Waits until this replica has applied
    /// it.
    AtLeast(Slot),
    /// It sees what this replica has applied: possibly old, never wrong, never waiting.
    Stale,
}

pub(crate) type CheckpointSender = oneshot::Sender<Result<CheckpointTaken, Failure>>;
pub(crate) type ReplySender = oneshot::Sender<Result<Bytes, Failure>>;

#[derive(Debug)]
pub(crate) enum Request {
    Propose { count: u32, commands: Bytes, reply: ReplySender },
    Read { count: u32, queries: Bytes, consistency: Consistency, reply: ReplySender },
    Group { bytes: Bytes, reply: GroupSender },
    Checkpoint { reply: CheckpointSender },
    Transfer { to: Option<NodeId>, reply: ReplySender },
    Change { change: Change, reply: ReplySender },
}

impl Request {
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::Propose { commands, .. } => commands.len(),
            Self::Read { queries, .. } => queries.len(),
            Self::Group { bytes, .. } => bytes.len(),
            Self::Checkpoint { .. } => 0,
            Self::Transfer { .. } => 0,
            Self::Change { .. } => 0,
        }
    }

    pub(crate) fn fail(self, failure: Failure) {
        // A client that went away does not wait for its answer.
        match self {
            Self::Propose { reply, .. }
            | Self::Read { reply, .. }
            | Self::Change { reply, .. }
            | Self::Transfer { reply, .. } => {
                let _ = reply.send(Err(failure));
            }
            Self::Group { reply, .. } => {
                let _ = reply.send(Err(failure));
            }
            Self::Checkpoint { reply } => {
                let _ = reply.send(Err(failure));
            }
        }
    }
}

/// What the replica's thread and its clients share.
pub(crate) struct Shared {
    pub(crate) requests: ArrayQueue<Request>,
    pub(crate) bytes: AtomicUsize,
    pub(crate) parked: AtomicBool,
    pub(crate) stopping: AtomicBool,
    pub(crate) stopped: AtomicBool,
    /// The newest slot whose replies may have been seen.
    pub(crate) applied: AtomicU64,
    /// What the rows of this replica carry for its application.
    pub(crate) payload: AtomicU32,
    pub(crate) notifications: broadcast::Sender<Notification>,
    pub(crate) status: SharedStatus,
    /// The number of the known leader, 0 for none.
    pub(crate) leader: AtomicU16,
    pub(crate) waker: Arc<dyn Wake>,
    pub(crate) command_bytes_max: usize,
    pub(crate) gate: LeaseGate,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("queued", &self.requests.len()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        waker: Arc<dyn Wake>,
        status: Status,
        command_bytes_max: usize,
        gate: LeaseGate,
    ) -> Arc<Self> {
        Arc::new(Self {
            gate,
            requests: ArrayQueue::new(REQUESTS_MAX),
            bytes: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            applied: AtomicU64::new(0),
            payload: AtomicU32::new(0),
            notifications: broadcast::Sender::new(NOTIFICATIONS_MAX),
            status: SharedStatus::new(status),
            leader: AtomicU16::new(0),
            waker,
            command_bytes_max,
        })
    }

    /// Wakes the replica's thread if it sleeps. The fence pairs with the one in `Runner::park`:
    /// either this thread sees the flag, or that thread sees the request.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }
}

/// A client's way to its local replica; clones share it. All methods may be called from any thread,
/// inside or outside an async runtime.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    /// Proposes one command. Resolves to its reply once it is chosen and applied here, which means:
    /// durable at a majority, at the durability the replicas run with.
    #[must_use]
    pub fn propose(&self, command: &[u8]) -> Pending {
        let mut item = BytesMut::with_capacity(command.len() + 5);
        batch::put_item(&mut item, command);
        self.propose_items(1, item.freeze()).single()
    }

    /// Asks one question.
    #[must_use]
    pub fn query(&self, query: &[u8], consistency: Consistency) -> Pending {
        let mut item = BytesMut::with_capacity(query.len() + 5);
        batch::put_item(&mut item, query);
        self.query_items(1, item.freeze(), consistency).single()
    }

    /// Proposes `count` commands, each a length-prefixed item (see [`batch::put_item`]), which are
    /// applied in this order, after what this handle and its clones proposed before. Resolves to as
    /// many replies, again items.
    #[must_use]
    pub fn propose_items(&self, count: u32, commands: Bytes) -> Pending {
        let (reply, receiver) = oneshot::channel();
        self.enqueue(Request::Propose { count, commands, reply });
        Pending::coming(receiver)
    }

    /// As [`Handle::query`], at the time `clock`: for whoever drives the replica turn by turn itself,
    /// as simulations do, where the clock of the system means nothing.
    #[must_use]
    pub fn query_at(&self, clock: Clock, query: &[u8], consistency: Consistency) -> Pending {
        let mut item = BytesMut::with_capacity(query.len() + 5);
        batch::put_item(&mut item, query);
        self.ask(Some(clock), 1, item.freeze(), consistency).single()
    }

    /// Asks `count` questions, each a length-prefixed item, at one moment.
    #[must_use]
    pub fn query_items(&self, count: u32, queries: Bytes, consistency: Consistency) -> Pending {
        self.ask(None, count, queries, consistency)
    }

    fn ask(
        &self,
        clock: Option<Clock>,
        count: u32,
        queries: Bytes,
        consistency: Consistency,
    ) -> Pending {
        if consistency == Consistency::Linearizable
            && let Some(answers) = self.read_under_lease(clock, count, &queries)
        {
            return Pending::known(Ok(answers));
        }
        let (reply, receiver) = oneshot::channel();
        self.enqueue(Request::Read { count, queries, consistency, reply });
        Pending::coming(receiver)
    }

    /// The answers, if this replica leads and its lease holds: on this thread, without a message.
    fn read_under_lease(&self, clock: Option<Clock>, count: u32, queries: &[u8]) -> Option<Bytes> {
        let shared = &self.shared;
        let allowed =
            queries.len() <= shared.command_bytes_max && !shared.stopping.load(Ordering::Acquire);
        allowed
            .then(|| shared.gate.read(|| clock.or_else(|| shared.gate.clock()), count, queries))?
    }

    /// Proposes one whole group (header and commands, see [`batch`]) of a session that the caller
    /// keeps itself, as a client that may turn to several replicas does. Commands to the control
    /// session open and close such sessions. Resolves when the group is applied here; a group that
    /// comes again gets its first outcome.
    #[must_use]
    pub fn propose_group(&self, group: Bytes) -> PendingGroup {
        let (reply, receiver) = oneshot::channel();
        self.enqueue(Request::Group { bytes: group, reply });
        PendingGroup { receiver }
    }

    /// Asks this replica for a checkpoint now, whatever its policy says. Resolves when it is durable;
    /// at once if nothing was applied since the newest one.
    #[must_use]
    pub fn checkpoint(&self) -> PendingCheckpoint {
        let (reply, receiver) = oneshot::channel();
        self.enqueue(Request::Checkpoint { reply });
        PendingCheckpoint { receiver }
    }

    /// Changes the members of the cluster; only the leader's replica can. Resolves, when the change is
    /// proposed, to the slot of the new configuration (8 bytes, little endian); it is done when
    /// [`Status::configuration`] shows it as settled. A refusal ([`Reason::Members`]) says why.
    #[must_use]
    pub fn change_members(&self, change: Change) -> Pending {
        let (reply, receiver) = oneshot::channel();
        self.enqueue(Request::Change { change, reply });
        Pending::coming(receiver)
    }

    fn enqueue(&self, request: Request) {
        let shared = &self.shared;
        let length = request.length();
        let limit = shared.command_bytes_max;
        if length > limit {
            return request.fail(Failure::Rejected(Reason::TooLarge { length, limit }));
        }
        if shared.stopping.load(Ordering::Acquire) {
            return request.fail(Failure::Rejected(Reason::Stopped));
        }
        let before = shared.bytes.fetch_add(length, Ordering::Relaxed);
        if before + length > REQUEST_BYTES_MAX {
            shared.bytes.fetch_sub(length, Ordering::Relaxed);
            return request.fail(Failure::Rejected(Reason::Busy));
        }
        if let Err(request) = shared.requests.push(request) {
            shared.bytes.fetch_sub(length, Ordering::Relaxed);
            return request.fail(Failure::Rejected(Reason::Busy));
        }
        shared.wake();
        if shared.stopped.load(Ordering::Acquire) {
            // The thread left between our check and the push: nobody else empties the queue now.
            while let Some(request) = shared.requests.pop() {
                request.fail(Failure::Rejected(Reason::Stopped));
            }
        }
    }

    /// Hands leadership to `to`, or, without a name, to whoever is fittest: this replica must lead. It
    /// goes on serving until its successor has all that it proposed; from then until the successor
    /// leads, some milliseconds, commands wait. Resolves to the number of the new leader, in decimal.
    #[must_use]
    pub fn transfer(&self, to: Option<NodeId>) -> Pending {
        let (reply, receiver) = oneshot::channel();
        self.enqueue(Request::Transfer { to, reply });
        Pending::coming(receiver)
    }

    /// What happens from now on: changes of leadership, and more in later versions. A subscriber that
    /// does not keep up loses the oldest of [`NOTIFICATIONS_MAX`] and is told so.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Notification> {
        self.shared.notifications.subscribe()
    }

    /// Has this replica's votes carry a word of its application, which every other replica shows in
    /// [`crate::PeerStatus::payload`]; it travels with the next row, and the newest one counts.
    pub fn set_payload(&self, payload: u32) {
        self.shared.payload.store(payload, Ordering::Relaxed);
        self.shared.wake();
    }

    /// The newest slot that this replica has applied or is just applying: whoever saw a reply from
    /// here has seen nothing newer. Take it elsewhere as [`Consistency::AtLeast`].
    #[must_use]
    pub fn applied_slot(&self) -> Slot {
        Slot(self.shared.applied.load(Ordering::Acquire))
    }

    /// Whether the replica's thread has ended.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }

    /// Who leads, as this replica knows it; cheaper than the whole status.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        Some(NodeId(self.shared.leader.load(Ordering::Relaxed))).filter(|node| node.0 != 0)
    }

    /// The largest submission in bytes.
    #[must_use]
    pub fn command_bytes_max(&self) -> usize {
        self.shared.command_bytes_max
    }

    /// The newest status of the replica, at most about 50 ms old.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status.get()
    }
}

/// The outcome of a group to come: a future, or [`PendingGroup::wait`] for it outside async code.
#[derive(Debug)]
pub struct PendingGroup {
    receiver: oneshot::Receiver<Result<GroupOutcome, Failure>>,
}

impl PendingGroup {
    /// Blocks this thread until the outcome is there.
    ///
    /// # Errors
    /// [`Failure`], which says whether this try may have happened.
    ///
    /// # Panics
    /// Inside an async runtime, as blocking calls do: await it there.
    pub fn wait(self) -> Result<GroupOutcome, Failure> {
        self.receiver.blocking_recv().unwrap_or(Err(Failure::Unknown(Reason::Stopped)))
    }
}

impl Future for PendingGroup {
    type Output = Result<GroupOutcome, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let gone = Err(Failure::Unknown(Reason::Stopped));
        Pin::new(&mut self.receiver).poll(context).map(|received| received.unwrap_or(gone))
    }
}

/// A checkpoint to come: a future, or [`PendingCheckpoint::wait`] for it outside async code.
#[derive(Debug)]
pub struct PendingCheckpoint {
    receiver: oneshot::Receiver<Result<CheckpointTaken, Failure>>,
}

impl PendingCheckpoint {
    /// Blocks this thread until the checkpoint is durable.
    ///
    /// # Errors
    /// [`Failure`]: there is none; the ones before are as they were.
    ///
    /// # Panics
    /// Inside an async runtime, as blocking calls do: await it there.
    pub fn wait(self) -> Result<CheckpointTaken, Failure> {
        self.receiver.blocking_recv().unwrap_or(Err(Failure::Unknown(Reason::Stopped)))
    }
}

impl Future for PendingCheckpoint {
    type Output = Result<CheckpointTaken, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let gone = Err(Failure::Unknown(Reason::Stopped));
        Pin::new(&mut self.receiver).poll(context).map(|received| received.unwrap_or(gone))
    }
}

/// An outcome to come: a future, or [`Pending::wait`] for it outside async code.
#[derive(Debug)]
pub struct Pending {
    outcome: Outcome,
    single: bool,
}

#[derive(Debug)]
enum Outcome {
    Coming(oneshot::Receiver<Result<Bytes, Failure>>),
    Known(Result<Bytes, Failure>),
}

/// Whoever will know the outcome of a [`Pending`].
#[derive(Debug)]
pub struct Replier(ReplySender);

impl Replier {
    /// Hands it over: for one command an item, for several as many. A client that went away does not
    /// wait for it.
    pub fn send(self, outcome: Result<Bytes, Failure>) {
        let _ = self.0.send(outcome);
    }
}

impl Pending {
    /// An outcome to come of one command or question, and who will know it. If that is dropped, the
    /// outcome is unknown.
    #[must_use]
    pub fn channel() -> (Replier, Self) {
        let (reply, receiver) = oneshot::channel();
        (Replier(reply), Self::coming(receiver).single())
    }

    fn coming(receiver: oneshot::Receiver<Result<Bytes, Failure>>) -> Self {
        Self { outcome: Outcome::Coming(receiver), single: false }
    }

    fn known(outcome: Result<Bytes, Failure>) -> Self {
        Self { outcome: Outcome::Known(outcome), single: false }
    }

    fn single(self) -> Self {
        Self { single: true, ..self }
    }

    /// Blocks this thread until the outcome is there.
    ///
    /// # Errors
    /// [`Failure`], which says whether it may have happened.
    ///
    /// # Panics
    /// Inside an async runtime, as blocking calls do: await it there.
    pub fn wait(self) -> Result<Bytes, Failure> {
        let outcome = match self.outcome {
            Outcome::Coming(receiver) => {
                receiver.blocking_recv().unwrap_or(Err(Failure::Unknown(Reason::Stopped)))
            }
            Outcome::Known(outcome) => outcome,
        };
        Self::finish(outcome, self.single)
    }

    fn finish(outcome: Result<Bytes, Failure>, single: bool) -> Result<Bytes, Failure> {
        let replies = outcome?;
        if !single {
            return Ok(replies);
        }
        let item = batch::take_item(&mut &replies[..]).map(|item| replies.slice_ref(item));
        item.ok_or(Failure::Unknown(Reason::Malformed))
    }
}

impl Future for Pending {
    type Output = Result<Bytes, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let single = self.single;
        let gone = Err(Failure::Unknown(Reason::Stopped));
        let outcome = match &mut self.outcome {
            Outcome::Coming(receiver) => {
                Pin::new(receiver).poll(context).map(|received| received.unwrap_or(gone))
            }
            Outcome::Known(outcome) => Poll::Ready(std::mem::replace(outcome, gone)),
        };
        outcome.map(|outcome| Self::finish(outcome, single))
    }
}
