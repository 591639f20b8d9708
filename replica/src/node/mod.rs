//! [`Node`]: one turn of the loop after another, all of a replica on one thread.
//!
//! A turn takes what arrived (transport, log, time, clients), steps the core, and lets the effects
//! out: records to the followers and to the log at the same moment, votes once they are durable,
//! replies once their slot is applied. It never blocks and takes time as an argument, so that the
//! simulator runs this very code.

mod applying;
mod checkpointing;
mod effects;
mod intake;
mod members;
mod passive;
mod reporting;
mod snapshots;
mod witnessing;

use crate::checkpoint::CheckpointSteps;
use crate::founding::Founding;
use crate::front::{Handle, ReplySender, Request, Shared};
use crate::lanes::Lanes;
use crate::leased::LeaseGate;
use crate::machine::StateMachine;
use crate::options::{NodeOptions, nanos};
use crate::origin::Origin;
use crate::relay::Relay;
use crate::replies::Replies;
use crate::status::{Counters, Latencies};
use crate::witness::Witness;
use bytes::{Bytes, BytesMut};
use checkpointing::Checkpoints;
use quorate_consensus::buggify::Point;
use quorate_consensus::session::SessionTable;
use quorate_consensus::{
    Accept, Ballot, Genesis, Mutant, Nanos, NodeId, Paxos, Persist, ReadReady, Repair, Restored,
    Settings, Slot,
};
use quorate_pmem_log::{CheckpointStore, Durability, Log, LogError, Recovered};
use quorate_transport::{Event, RegionError, Transport};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The time of one turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    /// Monotonic.
    pub now: Nanos,
    /// Milliseconds since 1970: the leader stamps its batches with it.
    pub wall_ms: u64,
}

/// What a turn leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Something was done: there may be more at once.
    pub busy: bool,
    /// When the next turn is due if nothing arrives before.
    pub next: Nanos,
}

/// Why a replica could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The options contradict each other.
    #[error("{0}")]
    Options(String),
    /// The transport refused memory.
    #[error("the transport refused memory for the lanes")]
    Region(#[from] RegionError),
    /// The log could not be read or written.
    #[error("the log could not be read back")]
    Log(#[from] LogError),
    /// The checkpoints beside the log could not be looked at.
    #[error("the checkpoints beside the log cannot be read")]
    Checkpoints(#[source] std::io::Error),
    /// The cluster speaks a newer version of the protocol than this replica.
    #[error(
        "the cluster's active protocol version is {active}, and this replica speaks up to {speaks}: start \
         a program that speaks it (or take `protocol_max` out of the configuration). The version never \
         goes back"
    )]
    Protocol {
        /// The active one.
        active: u16,
        /// The newest that this replica speaks.
        speaks: u16,
    },
    /// A witness was started as another replica, or the other way round.
    #[error("{}", match .witness {
        true => "this replica was started as a witness, and its log or its cluster has it for one that keeps \
                 payloads: start it without `witness`, or remove it from the cluster and empty its directory",
        false => "this replica is a witness, by its log or its cluster, and was not started as one: start it \
                  with `witness`, or remove it from the cluster and empty its directory",
    })]
    Kind {
        /// How it was started.
        witness: bool,
    },
    /// The directory holds a founding document that cannot be read.
    #[error(
        "the founding document in the data directory cannot be read: it was written by a newer \
         version, or it is damaged; start with the version that wrote it, or restore the directory"
    )]
    Genesis,
}

/// A read on its way.
struct Read {
    /// Of a linearizable read.
    ticket: u64,
    count: u32,
    queries: Bytes,
    reply: ReplySender,
    asked_at: Nanos,
}

/// A replica, without the thread that drives it.
pub struct Node {
    options: NodeOptions,
    transport: Box<dyn Transport>,
    log: Log,
    machine: Box<dyn StateMachine>,
    shared: Arc<Shared>,
    lanes: Vec<Lanes>,
    recovered: Recovered,
    genesis: Option<Genesis>,
    founding: Option<Founding>,
    core: Option<Paxos>,
    sessions: SessionTable,
    origin: Origin,
    relay: Relay,
    checkpoints: Checkpoints,
    session_number: u64,
    /// Requests taken from the queue that cannot go on yet.
    waiting: VecDeque<(Request, Nanos)>,
    /// Groups that peers forwarded to this replica as leader.
    forwarded: VecDeque<Bytes>,
    forwarded_bytes: usize,
    forwarded_commands: u64,
    reads: VecDeque<Read>,
    /// Reads that wait for a slot and for nothing else.
    bounded_reads: BTreeMap<(Slot, u64), Read>,
    bounded_reads_taken: u64,
    read_ready: VecDeque<ReadReady>,
    led_by: Option<Ballot>,
    /// The version of the core's members that the lanes follow, and who they were.
    members_seen: Option<u64>,
    members_known: Vec<NodeId>,
    /// Replicated time, and the newest stamp that this replica gave as leader.
    time_ms: u64,
    stamped_ms: u64,
    /// Chains everything applied: see [`crate::Status::digest`].
    digest: u64,
    /// Who asked for the transfer of leadership that is under way.
    transferring: Option<ReplySender>,
    /// The application lets this replica lead.
    willing: bool,
    /// A persist that the log had no room for.
    unappended: Option<Persist>,
    log_full: bool,
    log_full_since: Nanos,
    log_failure: Option<String>,
    /// The slot from which on the last failed read for a peer was, and why it failed.
    log_unreadable: Option<(Slot, String)>,
    /// Proposals of this leadership that are not known chosen, for the commit latency.
    proposed: VecDeque<(Slot, Nanos)>,
    counters: Counters,
    latencies: Latencies,
    reported_at: Nanos,
    checked_at: Nanos,
    clock: Clock,
    /// Wall clock less monotonic clock at the last turn.
    clocks_apart: Option<i128>,
    // Storage that is used again in every turn.
    events: Vec<Event>,
    accept: Accept,
    message: BytesMut,
    batch: BytesMut,
    replies: Replies,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("node", &self.options.node).finish_non_exhaustive()
    }
}

impl Node {
    /// Puts a replica together from its parts and what its log gave back.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn new(
        options: NodeOptions,
        mut transport: Box<dyn Transport>,
        log: Log,
        recovered: Recovered,
        machine: Box<dyn StateMachine>,
    ) -> Result<Self, NodeError> {
        options.check().map_err(NodeError::Options)?;
        if options.passive && log.durability() != Durability::Volatile {
            // Rule B6.
            return Err(NodeError::Options(format!(
                "passive followers vote by memory alone, and this log promises {}: set \
                 `durability = \"memory\"`, or leave `passive` out",
                log.durability()
            )));
        }
        let machine = if options.witness { Box::new(Witness) } else { machine };
        let largest = options.command_bytes_max + BATCH_OVERHEAD_BYTES;
        if largest > log.value_bytes_max() {
            return Err(NodeError::Options(format!(
                "the largest command ({} bytes) does not fit a log segment, which takes values of up \
                 to {} bytes: make segment_bytes larger, or commands smaller",
                options.command_bytes_max,
                log.value_bytes_max()
            )));
        }
        let peers = transport.peers();
        let lanes = peers
            .iter()
            .map(|&peer| Lanes::open(transport.as_mut(), peer, &options))
            .collect::<Result<Vec<_>, _>>()?;
        let genesis = match &recovered.identity.genesis {
            Some(document) => Some(Genesis::decode(document).ok_or(NodeError::Genesis)?),
            None => None,
        };
        let store = CheckpointStore::open(log.shared_medium(), options.checkpoints_kept)
            .map_err(NodeError::Checkpoints)?;
        let log_from = store.log_from();
        let (steps, head) = CheckpointSteps::new(store, transport.waker());
        let mut checkpoints =
            Checkpoints::new(steps, machine.checkpoint().is_some(), log_from, head);
        let covered = checkpoints.newest_slot();
        if recovered.intact_through < covered {
            // Above the intact part stands what may not be the newest that was accepted. Up to the
            // checkpoint it counts as chosen and is never learned again: it is neither replayed nor
            // given to a peer.
            checkpoints.log_from = checkpoints.log_from.max(covered.next());
        }
        let session = options.seed | 1;
        let latencies = Latencies::new();
        let status = reporting::initial_status(&options, &log, &latencies);
        let waker = transport.waker();
        let reader = machine.reader().filter(|_| !options.lease.is_zero());
        let gate = LeaseGate::new(reader, options.mistake);
        let shared = Shared::new(waker, status, options.command_bytes_max, gate);
        let origin = Origin::new(session, options.node.0, nanos(options.request_timeout));
        let mut node = Self {
            transport,
            log,
            machine,
            shared,
            lanes,
            recovered,
            genesis: None,
            founding: None,
            core: None,
            sessions: SessionTable::new(),
            origin,
            relay: Relay::default(),
            checkpoints,
            session_number: session,
            waiting: VecDeque::new(),
            forwarded: VecDeque::new(),
            forwarded_bytes: 0,
            forwarded_commands: 0,
            reads: VecDeque::new(),
            bounded_reads: BTreeMap::new(),
            bounded_reads_taken: 0,
            read_ready: VecDeque::new(),
            led_by: None,
            members_seen: None,
            members_known: Vec::new(),
            time_ms: 0,
            stamped_ms: 0,
            digest: 0,
            transferring: None,
            willing: true,
            unappended: None,
            log_full: false,
            log_full_since: Nanos(0),
            log_failure: None,
            log_unreadable: None,
            proposed: VecDeque::new(),
            counters: Counters::default(),
            latencies,
            reported_at: Nanos(0),
            checked_at: Nanos(0),
            clock: Clock::default(),
            clocks_apart: None,
            events: Vec::new(),
            accept: Accept::default(),
            message: BytesMut::new(),
            batch: BytesMut::new(),
            replies: Replies::default(),
            options,
        };
        match genesis {
            Some(genesis) => node.start_core(genesis)?,
            None => {
                let incarnation = node.recovered.identity.incarnation;
                let members = node.options.members.clone();
                let founding = Founding::new(node.options.node, incarnation, members);
                node.founding = Some(if node.options.join { founding.joining() } else { founding });
            }
        }
        node.restore_at_start();
        Ok(node)
    }

    /// For clients in this process.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// The core, once the cluster is founded.
    #[must_use]
    pub fn core(&self) -> Option<&Paxos> {
        self.core.as_ref()
    }

    /// The transport, for tests that break links.
    pub fn transport(&mut self) -> &mut dyn Transport {
        self.transport.as_mut()
    }

    pub(crate) fn count_park(&mut self) {
        self.counters.parks += 1;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The founding document is known and kept: take part.
    fn start_core(&mut self, genesis: Genesis) -> Result<(), NodeError> {
        let identity = &self.recovered.identity;
        let mut settings = Settings::new(self.options.node, identity.incarnation);
        settings.contacts = self.options.members.clone();
        settings.heartbeat_interval = nanos(self.options.heartbeat_interval);
        settings.election_timeout_min = nanos(self.options.election_timeout_min);
        settings.election_timeout_max = nanos(self.options.election_timeout_max);
        settings.priority = self.options.priority;
        settings.witness = self.options.witness;
        settings.protocol = self.options.protocol;
        settings.lease = nanos(self.options.lease);
        settings.quiet_after = self.options.quiet_after;
        settings.clock_drift_ppm = self.options.clock_drift_ppm;
        settings.window_slots_max = self.options.window_slots_max;
        settings.window_bytes_max = self.options.window_bytes_max;
        settings.cache_bytes_max = self.options.cache_bytes_max;
        settings.seed = self.options.seed;
        settings.mistake = self.options.mistake;
        settings.whims = self.options.whims.clone();
        let (restored, members_from) = self.restored(&genesis)?;
        // Rule V3: it could not read what the others write, and must not guess.
        let (active, speaks) = (restored.configurations.latest().protocol, self.options.protocol);
        if active > speaks {
            return Err(NodeError::Protocol { active, speaks });
        }
        self.check_kind(&restored)?;
        tracing::info!(
            cluster = format_args!("{:016x}", genesis.cluster),
            promised = %restored.promised,
            commit_slot = %restored.commit_slot,
            accepted = restored.accepted.len(),
            votes = restored.remembers,
            durability = %self.log.durability(),
            "the replica takes part"
        );
        let mut core = Paxos::new(settings, restored, self.clock.now);
        if let Some(first) = members_from {
            tracing::warn!(%first, "who decided below may be missing: a peer's checkpoint has to bring it");
            core.misses_members_below(first);
        }
        if let Some(repair) = self.repair() {
            core.repair(repair);
            tracing::warn!(?repair, "the log is damaged: no vote until it is repaired");
        }
        self.core = Some(core);
        self.transport.set_cluster(genesis.cluster);
        if let Some(lost) = genesis.recovered_from {
            self.transport.set_lost_cluster(lost);
        }
        self.genesis = Some(genesis);
        self.founding = None;
        self.members_seen = None;
        self.members_known.clear();
        self.follow_members();
        Ok(())
    }

    /// What the log gave back, as the core wants it.
    fn restored(&self, genesis: &Genesis) -> Result<(Restored, Option<Slot>), LogError> {
        let recovered = &self.recovered;
        // Another disk than the one that a configuration names is another voter: it remembers all that it
        // ever promised, and nothing of what it does counts before a configuration names it.
        let remembers = recovered.damaged.is_empty() && recovered.promise_certain
            || self.options.is(Mutant::TruncateDamaged);
        // Behind damage stands what may not be the newest that was accepted here. It comes from the
        // peers, and this replica's word does not count: it may have accepted more.
        let commit_slot = recovered.commit_slot.min(recovered.intact_through);
        // A checkpoint covers chosen slots only, and is durable.
        let newest = self.checkpoints.newest_slot();
        let commit_slot = commit_slot.max(newest);
        let is_empty = recovered.last_slot == Slot::ZERO;
        let log_first = if is_empty { newest.next() } else { self.log.first_slot() };
        let mut accepted = Vec::new();
        let mut commit_slot = commit_slot;
        if remembers && self.options.witness {
            // A witness can say under which ballot it accepted what it knows to be chosen (rule W3), if its
            // log has all of that.
            self.read_accepted(newest, &mut accepted)?;
            let last = accepted.last().map_or(newest, |entry| entry.slot);
            commit_slot = if last >= commit_slot { newest } else { commit_slot };
        }
        if remembers && (commit_slot > newest || !self.options.witness) {
            accepted.clear();
            self.read_accepted(commit_slot, &mut accepted)?;
        }
        let (configurations, members_from) = self.configurations_of(genesis, commit_slot)?;
        let restored = Restored {
            promised: recovered.promised,
            commit_slot,
            log_first: log_first.max(self.checkpoints.log_from),
            accepted,
            configurations,
            remembers,
        };
        Ok((restored, members_from))
    }

    /// What brings the vote back to a replica that lost a part of its log, and not the log.
    pub(super) fn repair(&self) -> Option<Repair> {
        let recovered = &self.recovered;
        if recovered.damaged.is_empty() || !recovered.promise_certain {
            return None;
        }
        let exact = recovered.damaged.iter().all(|damage| damage.exact);
        Some(if exact { Repair::Through(recovered.last_slot) } else { Repair::UnderNewLeader })
    }

    fn read_accepted(
        &self,
        commit: Slot,
        accepted: &mut Vec<quorate_consensus::Entry>,
    ) -> Result<(), LogError> {
        let mut next = commit.next();
        loop {
            let before = accepted.len();
            self.log.read(next, 1 << 20, accepted)?;
            match accepted.last() {
                Some(last) if accepted.len() > before => next = last.slot.next(),
                _ => return Ok(()),
            }
        }
    }

    /// One turn. The order is the order of the data path: in, step, out, apply.
    pub fn step(&mut self, clock: Clock) -> Turn {
        self.clock = clock;
        self.compare_clocks();
        self.counters.steps += 1;
        let mut busy = self.receive();
        busy |= self.poll_durable();
        busy |= self.poll_checkpoints();
        self.on_time();
        self.take_requests();
        if self.core.is_some() {
            self.follow_members();
            self.send_commands();
            busy |= self.let_effects_out();
            self.renew_fenced();
            busy |= self.apply_chosen();
            self.answer_reads();
            // Reads under a lease are answered when the clock was read again.
            busy |=
                self.core.as_ref().is_some_and(|core| core.poll_timeout() <= clock.now + Nanos(1));
        }
        self.transport.flush();
        self.report();
        Turn { busy, next: self.next_turn() }
    }

    /// The two clocks of this machine must agree on how much time passed. If they do not, one of them
    /// was set or stood still (the machine slept), and leases are off for a while.
    fn compare_clocks(&mut self) {
        let apart = i128::from(self.clock.wall_ms) * 1_000_000 - i128::from(self.clock.now.0);
        let before = self.clocks_apart.replace(apart);
        let jumped = before.is_some_and(|before| (apart - before).abs() > CLOCK_JUMP_NANOS);
        if let Some(core) = self.core.as_mut().filter(|_| jumped) {
            core.distrust_clocks();
        }
    }

    fn on_time(&mut self) {
        let now = self.clock.now;
        if let Some(core) = &mut self.core {
            if now >= core.poll_timeout() {
                core.on_time(now);
            } else {
                core.note_time(now);
            }
        }
        self.serve_fence();
        if now.since(self.checked_at) >= CHECK_EVERY {
            self.checked_at = now;
            self.ask_application();
            if self.options.whims.has(Point::EarlyResend) {
                self.origin.send_again(now);
            }
            let reject = self.options.is(Mutant::RejectInFlight);
            self.counters.failures += self.origin.on_time(now, reject);
            self.expire_requests();
            self.consider_checkpoint();
            self.pull_snapshot();
            self.refuse_strangers();
        }
        self.continue_founding();
    }

    /// What the application wants of its replica's leadership, and what it tells the others.
    fn ask_application(&mut self) {
        self.willing = self.options.may_lead.ask();
        let payload = self.shared.payload.load(Ordering::Relaxed);
        if let Some(core) = &mut self.core {
            core.set_payload(payload);
            if !self.log_full {
                core.set_may_lead(self.willing);
            }
        }
    }

    /// Whether nobody waits for anything that only time could bring.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.reads.is_empty()
            && self.bounded_reads.is_empty()
            && self.read_ready.is_empty()
            && self.forwarded.is_empty()
            && self.unappended.is_none()
            && self.founding.is_none()
            && self.log_failure.is_none()
            && self.origin.in_flight() == 0
            && !self.origin.is_due()
            && self.relay.is_empty()
            && !self.checkpoints.is_busy()
            // Without hints somebody has to look.
            && self.transport.hints()
            && !self.lanes.iter().any(Lanes::want_a_look)
    }

    fn next_turn(&self) -> Nanos {
        let resting = self.core.as_ref().is_some_and(Paxos::is_quiet) && self.is_idle();
        let mut next = self.clock.now + if resting { REST } else { CHECK_EVERY };
        if let Some(core) = &self.core {
            next = next.min(core.poll_timeout());
            let deadline = self.machine.next_deadline_ms().filter(|_| core.role_is_leader());
            if let Some(deadline_ms) = deadline.filter(|due| *due > self.stamped_ms) {
                let wait = deadline_ms.saturating_sub(self.clock.wall_ms);
                next = next.min(self.clock.now + Nanos::from_millis(wait.min(1_000)));
            }
        }
        next
    }

    /// The thread is going: tell everyone who waits.
    pub(crate) fn stop(&mut self) {
        use crate::front::{Failure, Reason};
        self.origin.give_up(&Reason::Stopped);
        self.relay.give_up(&Reason::Stopped);
        self.checkpoints.steps.stop();
        let unsent = self.waiting.drain(..).map(|(request, _)| request);
        for request in unsent.chain(std::iter::from_fn(|| self.shared.requests.pop())) {
            request.fail(Failure::Rejected(Reason::Stopped));
        }
        self.fail_reads(&Reason::Stopped);
    }
}

/// What a batch of one command takes beside the command: headers, with room to spare.
const BATCH_OVERHEAD_BYTES: usize = 1024;

/// Clocks that part by more from one turn to the next have jumped; what slewing does is far less.
pub(crate) const CLOCK_JUMP_NANOS: i128 = 100_000_000;

/// A replica that rests looks after itself this often.
const REST: Nanos = Nanos::from_millis(60_000);
/// Deadlines of requests and lost commands are looked at this often.
const CHECK_EVERY: Nanos = Nanos::from_millis(20);

/// The peers' lanes by id: clusters are small, a scan is the fastest map.
fn lanes_of(lanes: &mut [Lanes], peer: NodeId) -> Option<&mut Lanes> {
    lanes.iter_mut().find(|lanes| lanes.peer == peer)
}
