//! What a replica tells about itself: a snapshot for operators, metrics and tests.

use hdrhistogram::Histogram;
use quorate_consensus::{Ballot, Configuration, NodeId, RoleName, Slot};
use quorate_pmem_log::{Durability, LogStatistics, MediumKind};
use quorate_transport::LinkStatus;
use std::sync::{Arc, Mutex, PoisonError};

/// A replica at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Which replica.
    pub node: NodeId,
    /// The cluster's number; none while the cluster is not founded.
    pub cluster: Option<u64>,
    /// The cluster that it was recovered from, after its majority was lost.
    pub recovered_from: Option<u64>,
    /// The active version of the protocol; 0 while no cluster is known.
    pub protocol: u16,
    /// The newest version that this replica speaks.
    pub speaks: u16,
    /// What it is.
    pub role: RoleName,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Under which ballot.
    pub ballot: Ballot,
    /// Everything up to it is known chosen here.
    pub commit_slot: Slot,
    /// The state machine has seen everything up to it.
    pub applied_slot: Slot,
    /// The newest slot that anything was accepted for.
    pub last_slot: Slot,
    /// A fingerprint of all commands and replies up to `applied_slot`: equal slots have equal ones on
    /// all replicas, or a state machine is not deterministic.
    pub digest: u64,
    /// Whether its votes count.
    pub votes: bool,
    /// Whether it was started as a witness: it votes without payloads, and serves no client.
    pub witness: bool,
    /// Whether it leads and answers linearizable reads without asking.
    pub holds_lease: bool,
    /// The members, as of the newest configuration known here, and whether the change to it is done.
    pub configuration: Option<Configuration>,
    /// What keeps the log.
    pub medium: MediumKind,
    /// What an acknowledged write survives at this replica.
    pub durability: Durability,
    /// One line for the operator: what is wrong and what to do; empty when all is well.
    pub trouble: String,
    /// The other replicas.
    pub peers: Vec<PeerStatus>,
    /// Requests of clients that wait.
    pub waiting_requests: usize,
    /// Commands under way: proposed or forwarded, and not yet applied here.
    pub commands_in_flight: usize,
    /// Payload bytes of the log held in memory.
    pub window_bytes: usize,
    /// Counters since the start.
    pub counters: Counters,
    /// The log's counters.
    pub log: LogStatistics,
    /// Its checkpoints.
    pub checkpoints: CheckpointStatus,
    /// How long what took.
    pub latencies: Latencies,
}

/// A replica's checkpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckpointStatus {
    /// The state machine hands out views. If not, there are no checkpoints and the log is never
    /// trimmed.
    pub supported: bool,
    /// Checkpoints that count.
    pub kept: usize,
    /// Checkpoints that are there and cannot be used.
    pub bad: usize,
    /// The slot of the newest; 0 for none.
    pub newest_slot: Slot,
    /// The bytes of its image.
    pub newest_bytes: u64,
    /// The slot of the oldest; 0 for none.
    pub oldest_slot: Slot,
    /// One is being taken, and has so many bytes by now.
    pub taking_bytes: Option<u64>,
    /// The state is being restored from one.
    pub restoring: bool,
    /// One is being received from a peer.
    pub receiving: Option<Receiving>,
    /// Taken since the start.
    pub taken: u64,
    /// That could not be taken, since the start.
    pub failed: u64,
    /// Received from peers since the start.
    pub received: u64,
    /// The lowest slot that the log can give.
    pub log_first: Slot,
    /// What the log takes of its disk.
    pub log_disk_bytes: u64,
    /// Why the last one could not be taken or kept; empty if it was.
    pub error: String,
}

/// How far a checkpoint is here that comes from a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receiving {
    /// Its slot.
    pub slot: Slot,
    /// The next block.
    pub next: u64,
    /// All blocks.
    pub blocks: u64,
}

/// A checkpoint that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointTaken {
    /// Everything up to it is covered.
    pub slot: Slot,
    /// The bytes of its image.
    pub bytes: u64,
}

/// A peer, seen from a replica.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Which replica.
    pub node: NodeId,
    /// The link to it.
    pub link: LinkStatus,
    /// Milliseconds since it was last heard; none if never.
    pub heard_ms_ago: Option<u64>,
    /// Whether all that follows is what it said before its data lane ended: it may have been started anew
    /// since, and remember less.
    pub outdated: bool,
    /// What it knows chosen.
    pub commit_slot: Slot,
    /// What its state machine has seen.
    pub applied_slot: Slot,
    /// Slots that it still has to vote for, as its leader sees it; none unless this replica leads.
    pub lag: Option<u64>,
    /// Of those, slots that were shipped to it already; none unless this replica leads.
    pub in_flight: Option<u64>,
    /// Whether a completed write counts as its vote at this moment (decision 23); only where this replica
    /// leads.
    pub passive: bool,
    /// Its newest durable vote: ballot and slot.
    pub vote: (Ballot, Slot),
    /// How much it should lead.
    pub priority: u8,
    /// The newest version of the protocol that it speaks, as it said last.
    pub speaks: u16,
    /// What its application has its votes carry: see [`crate::Handle::set_payload`].
    pub payload: u32,
    /// Whether its votes count.
    pub votes: bool,
    /// Whether its log failed.
    pub poisoned: bool,
    /// Whether it says that it is a witness.
    pub witness: bool,
}

/// Counters since the replica's thread started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Commands applied by the state machine.
    pub commands_applied: u64,
    /// Commands that were applied before and got their first outcome again.
    pub duplicates: u64,
    /// Groups rejected because something before them was lost on the way.
    pub gaps: u64,
    /// Batches proposed as leader.
    pub batches_proposed: u64,
    /// Commands in them.
    pub commands_proposed: u64,
    /// Linearizable reads answered.
    pub reads: u64,
    /// Those of them that were answered on the thread that asked, under a lease.
    pub lease_reads: u64,
    /// Stale reads answered.
    pub stale_reads: u64,
    /// Requests that got an error.
    pub failures: u64,
    /// Times that this replica became leader.
    pub leaderships: u64,
    /// Times that the known leader changed.
    pub leader_changes: u64,
    /// Turns of the loop.
    pub steps: u64,
    /// Times that the thread slept.
    pub parks: u64,
}

/// Histograms, in microseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From a client's submission here to its reply.
    pub request: Histogram<u64>,
    /// From a batch's proposal to its commit, as leader.
    pub commit: Histogram<u64>,
    /// Commands in a batch (no time).
    pub batch: Histogram<u64>,
    /// A flush of the log.
    pub flush: Histogram<u64>,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = || {
            // One microsecond to one hour at two digits: 20 KiB each, never growing. A simulator
            // copies them often and reads them never.
            let digits = if cfg!(feature = "buggify") { 1 } else { 2 };
            Histogram::new_with_max(3_600_000_000, digits).expect("the bounds are legal constants")
        };
        Self { request: histogram(), commit: histogram(), batch: histogram(), flush: histogram() }
    }
}

/// The newest status; written by the replica's thread a few times a second.
#[derive(Clone, Debug)]
pub(crate) struct SharedStatus(Arc<Mutex<Status>>);

impl SharedStatus {
    pub(crate) fn new(status: Status) -> Self {
        Self(Arc::new(Mutex::new(status)))
    }

    pub(crate) fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
