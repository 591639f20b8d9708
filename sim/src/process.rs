//! One replica's place in the world: its disk, which outlives it, and its process, which may not.

use crate::checks::{Seen, Subject};
use crate::coverage::Row;
use crate::medium::SimMedium;
use crate::shape::Shape;
use crate::spy::Spy;
use quorate_consensus::{
    Ballot, Configuration, Incarnation, Member, Mistake, Nanos, NodeId, Slot, Whims,
};
use quorate_pmem_log::SyncSteps;
use quorate_replica::{CheckpointSteps, Clock, Handle, Node, NodeOptions};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The wall clock's beginning, in milliseconds since 1970.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// A running process.
pub(crate) struct Process {
    /// The product.
    pub(crate) node: Node,
    /// For its clients.
    pub(crate) handle: Handle,
    /// Its sync thread.
    pub(crate) steps: SyncSteps,
    /// A step of the sync thread is under way.
    pub(crate) syncing: bool,
    /// The worker of its checkpoints.
    pub(crate) checkpoints: CheckpointSteps,
    /// A step of that worker is under way.
    pub(crate) checkpointing: bool,
    /// What it tells others.
    pub(crate) spy: Arc<Mutex<Spy>>,
    /// No two processes of a run have the same.
    pub(crate) life: u64,
    /// When it started.
    pub(crate) born: u64,
    /// The promise that its disk gave back.
    pub(crate) restored: Ballot,
    /// What it showed last.
    pub(crate) seen: Seen,
}

/// A place for processes.
pub(crate) struct Place {
    /// Counted from 0.
    pub(crate) index: usize,
    /// The disk, as the present or the next process sees it.
    pub(crate) medium: Arc<SimMedium>,
    /// The process, if one runs.
    pub(crate) process: Option<Process>,
    /// It does nothing for now.
    pub(crate) paused: bool,
    /// Its turns take so many times longer.
    pub(crate) slow: u64,
    /// Its syncs take so much longer.
    pub(crate) stall: u64,
    /// How far its wall clock is off, in milliseconds.
    pub(crate) wall_off_ms: i64,
    /// When it will be stepped; none scheduled: the maximum.
    pub(crate) step_at: u64,
    /// The highest promise that any of its processes told, and the newest vote.
    pub(crate) told: (Ballot, (Ballot, Slot)),
    /// Its disk was wiped or broke its word: it may forget.
    pub(crate) forgets: bool,
    /// What happens to unsynced bytes when its disk dies in the middle of a turn, and when it comes
    /// back then.
    pub(crate) death: Option<(crate::medium::Survival, u64)>,
    /// An empty disk replaced one that votes had left from.
    pub(crate) wiped: bool,
    /// Its present process lost what it may have voted for: it must not vote.
    pub(crate) forgot: bool,
    /// Its disk was replaced by an empty one.
    pub(crate) emptied: bool,
    /// Its log was damaged when its process started: what others had been told by then. It may vote
    /// only when that does not matter any more.
    pub(crate) damaged: Option<(Ballot, (Ballot, Slot))>,
    /// How its last process died, and how often one did.
    pub(crate) died_of: Vec<Row>,
    /// It dies again while it comes back: after so many changes of its disk, so often.
    pub(crate) recovery_deaths: Option<(u64, u32)>,
    /// It is stopped right after it read this clock.
    pub(crate) stale_clock: Option<Clock>,
    /// It stands for election, and something is chosen that it does not know.
    pub(crate) behind: bool,
    pub(crate) deaths: u32,
    /// Its log refused to open: it stays away, loudly.
    pub(crate) refused: bool,
    /// Its operator does not want it to run.
    pub(crate) idle: bool,
    /// It led, perhaps under a lease, when another one began to.
    pub(crate) old_lease: bool,
    /// Whom its operator told it of, if it joins a cluster that is there.
    pub(crate) contacts: Option<Vec<usize>>,
    /// The life of its disk, once it was used.
    pub(crate) incarnation: Option<Incarnation>,
    /// What its last process knew of configurations, with the slots that they stand in.
    pub(crate) known: Vec<(Slot, Configuration)>,
}

impl Place {
    /// An empty one.
    #[must_use]
    pub(crate) fn new(index: usize, shape: &Shape) -> Self {
        Self {
            index,
            medium: SimMedium::new(shape.profile),
            process: None,
            paused: false,
            slow: 1,
            stall: 0,
            wall_off_ms: shape.skews_ms[index] as i64,
            step_at: u64::MAX,
            told: (Ballot::ZERO, (Ballot::ZERO, Slot::ZERO)),
            forgets: false,
            death: None,
            wiped: false,
            forgot: false,
            emptied: false,
            damaged: None,
            died_of: Vec::new(),
            recovery_deaths: None,
            stale_clock: None,
            behind: false,
            deaths: 0,
            refused: false,
            idle: index >= shape.founders,
            old_lease: false,
            contacts: None,
            incarnation: None,
            known: Vec::new(),
        }
    }

    /// Its number, and the life of its disk.
    #[must_use]
    pub(crate) fn member(&self) -> Member {
        let incarnation = self.incarnation.unwrap_or_default();
        Member { node: NodeId(self.index as u16 + 1), incarnation }
    }

    /// Whom its process is told of: all founders, or what its operator says.
    #[must_use]
    pub(crate) fn told_of(&self, shape: &Shape) -> Vec<usize> {
        let mut others = self.contacts.clone().unwrap_or_else(|| (0..shape.founders).collect());
        others.retain(|other| *other != self.index);
        others
    }

    /// The clock of its process at `now`.
    #[must_use]
    pub(crate) fn clock(&self, now: u64, rate: u64) -> Clock {
        let born = self.process.as_ref().map_or(0, |process| process.born);
        let scaled = |nanos: u64| (u128::from(nanos) * u128::from(rate) / 1_000_000) as u64;
        let wall = (WALL_START_MS + scaled(now) / 1_000_000) as i64 + self.wall_off_ms;
        Clock { now: Nanos(scaled(now - born)), wall_ms: wall.max(0) as u64 }
    }

    /// When its process's clock will show `at`.
    #[must_use]
    pub(crate) fn world_time(&self, at: Nanos, rate: u64) -> u64 {
        let born = self.process.as_ref().map_or(0, |process| process.born);
        let nanos = u128::from(at.0.min(1 << 60)) * 1_000_000 / u128::from(rate);
        born.saturating_add(nanos as u64 + 1)
    }

    /// As checks see it; none if no process runs, or its cluster is not founded.
    #[must_use]
    pub(crate) fn subject(&self) -> Option<Subject<'_>> {
        let process = self.process.as_ref()?;
        let core = process.node.core()?;
        let digest = process.node.digest();
        Some(Subject { node: self.index, member: self.member(), life: process.life, digest, core })
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("index", &self.index).finish_non_exhaustive()
    }
}

/// What the replica at `place` is told.
#[must_use]
pub(crate) fn options(place: &Place, shape: &Shape, seed: u64, whims: &Whims) -> NodeOptions {
    let index = place.index;
    let mut members = place.told_of(shape);
    members.push(index);
    members.sort_unstable();
    let members = members.into_iter().map(|node| NodeId(node as u16 + 1)).collect();
    let mut options = NodeOptions::new(NodeId(index as u16 + 1), members, seed);
    options.witness = shape.is_witness(index);
    options.passive = shape.passive >> index & 1 == 1;
    options.join = place.contacts.is_some() || options.witness;
    if shape.witnesses > 0 {
        options.protocol = quorate_consensus::PROTOCOL_WITNESSES;
    }
    options.heartbeat_interval = Duration::from_nanos(shape.heartbeat);
    options.election_timeout_min = Duration::from_nanos(shape.election_min);
    options.election_timeout_max = Duration::from_nanos(shape.election_max);
    options.quiet_after = shape.quiet_after;
    options.lease = Duration::from_nanos(shape.lease);
    options.clock_drift_ppm = shape.clock_drift_ppm();
    options.request_timeout = Duration::from_nanos(shape.request_timeout);
    options.command_bytes_max = shape.command_bytes_max;
    options.batch_bytes_max = shape.batch_bytes_max;
    options.ring_bytes = shape.ring_bytes;
    options.window_slots_max = shape.window_slots_max;
    options.window_bytes_max = shape.window_bytes_max;
    options.cache_bytes_max = shape.cache_bytes_max;
    options.checkpoint_log_bytes = 0;
    options.checkpoint_slots = shape.checkpoint_slots;
    options.checkpoint_interval = Duration::ZERO;
    options.checkpoints_kept = shape.checkpoints_kept;
    options.log_tail_bytes = shape.log_tail_bytes;
    options.mistake = Mistake::of(shape.mutant);
    options.whims = whims.clone();
    options
}
