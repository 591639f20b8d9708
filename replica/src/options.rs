//! What a replica is told: limits and timers, all with defaults.

use quorate_consensus::{Address, Mistake, Mutant, Nanos, NodeId, Whims};
use std::sync::Arc;
use std::time::Duration;

/// Limits and timers of one replica.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// This replica.
    pub node: NodeId,
    /// All founding members, this one included; for one that joins, some members and itself.
    pub members: Vec<NodeId>,
    /// Whether this replica joins a cluster that is there: it founds none, and waits to be added.
    pub join: bool,
    /// Whether this replica is a witness: it votes, keeps no payloads and no state, never leads and serves
    /// no client. Told at its first start and never changed; a configuration has to name it as one.
    pub witness: bool,
    /// Whether this follower is passive (decision 23): a completed write of its leader into its ring counts
    /// as its vote, where the transport grants rings for one life of a lane; and whether it counts those of
    /// others when it leads. Only with a log in memory: what is voted for so is in no log yet.
    pub passive: bool,
    /// Where members are reached, as far as it is known here; goes into the next configuration.
    pub addresses: Vec<Address>,
    /// How often a replica shows that it lives.
    pub heartbeat_interval: Duration,
    /// A leader unheard for this long may be replaced.
    pub election_timeout_min: Duration,
    /// Waits for an election are drawn from min to max.
    pub election_timeout_max: Duration,
    /// A leader hands over to a replica of higher priority that keeps up. A higher one does not win
    /// elections more often: whoever is first leads, and gives it back.
    pub priority: u8,
    /// The newest version of the protocol that this replica says it speaks. The library and the server
    /// say what this program can; less keeps the cluster from using what an older one does not know.
    pub protocol: u16,
    /// Asked about fifty times a second: whether this replica may lead. One that may not hands over if
    /// it leads, and does not stand for election; it votes as before.
    pub may_lead: MayLead,
    /// How long a follower waits before it promises another ballot after it answered a ping, so that
    /// the leader answers reads without a message; zero: no leases. Equal on all replicas.
    pub lease: Duration,
    /// How far the rate of any replica's clock may be off, in millionths; only leases need it.
    pub clock_drift_ppm: u32,
    /// A request without an outcome after this long gets an error that says what may have happened.
    pub request_timeout: Duration,
    /// The largest submission in bytes.
    pub command_bytes_max: usize,
    /// A batch takes no further submission beyond this many bytes. A replica applies a batch in one go, and
    /// votes for nothing meanwhile.
    pub batch_bytes_max: usize,
    /// Bytes of the ring that each peer may write into; at least twice `command_bytes_max` is wise.
    pub ring_bytes: usize,
    /// A leader stops its heartbeats after so many in which nothing happened, and its followers with it,
    /// until something does; 0: never. For processes that hold many state machines: a leader that died
    /// in the meantime is noticed when its link breaks or somebody wants something. Equal on all replicas.
    pub quiet_after: u32,
    /// Slots in flight.
    pub window_slots_max: u64,
    /// Payload bytes in flight.
    pub window_bytes_max: usize,
    /// Payload bytes of applied entries kept in memory for followers.
    pub cache_bytes_max: usize,
    /// A checkpoint is taken after the log wrote so many bytes since the last one; 0 for never.
    pub checkpoint_log_bytes: u64,
    /// A checkpoint is taken after so many slots were applied since the last one; 0 for never.
    pub checkpoint_slots: u64,
    /// A checkpoint is taken after this long if anything was applied; zero for never.
    pub checkpoint_interval: Duration,
    /// Checkpoints kept, at least one. The log reaches back to the oldest of them, so that a bad one is
    /// made good by the one before.
    pub checkpoints_kept: usize,
    /// Bytes of the log that are kept for replicas a little behind, whatever the checkpoints allow.
    pub log_tail_bytes: u64,
    /// Bytes that checkpoints and transfers of them move in a second, reading and writing together;
    /// 0 for as many as the device takes.
    pub checkpoint_bytes_per_second: u64,
    /// How long the thread spins after its last work before it sleeps.
    pub spin: Duration,
    /// A random number: names this life's session and seeds the election timers.
    pub seed: u64,
    /// A mistake built in on purpose: none in a product.
    pub mistake: Mistake,
    /// Legal misbehaviour: none in a product.
    pub whims: Whims,
}

/// The application's word on whether its replica may lead; yes if it has none. It is asked on the
/// replica's thread and must not block.
#[derive(Clone, Default)]
pub struct MayLead(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl MayLead {
    /// Asks `ask`.
    #[must_use]
    pub fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    pub(crate) fn ask(&self) -> bool {
        self.0.as_ref().is_none_or(|ask| ask())
    }
}

impl std::fmt::Debug for MayLead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MayLead").field(&self.0.is_some()).finish()
    }
}

/// Clocks that differ by more are broken.
const CLOCK_DRIFT_PPM_MAX: u32 = 500_000;
/// Submissions of up to 8 MiB of value, with room for keys and framing.
const COMMAND_BYTES_MAX: usize = (8 << 20) + (256 << 10);

impl NodeOptions {
    /// The defaults.
    #[must_use]
    pub fn new(node: NodeId, members: Vec<NodeId>, seed: u64) -> Self {
        Self {
            node,
            members,
            join: false,
            witness: false,
            passive: false,
            addresses: Vec::new(),
            heartbeat_interval: Duration::from_millis(25),
            election_timeout_min: Duration::from_millis(200),
            election_timeout_max: Duration::from_millis(400),
            priority: 100,
            protocol: quorate_consensus::PROTOCOL_FIRST,
            may_lead: MayLead::default(),
            lease: Duration::ZERO,
            quiet_after: 0,
            clock_drift_ppm: 1_000,
            request_timeout: Duration::from_secs(5),
            command_bytes_max: COMMAND_BYTES_MAX,
            batch_bytes_max: 128 << 10,
            ring_bytes: 16 << 20,
            window_slots_max: 8192,
            window_bytes_max: 64 << 20,
            cache_bytes_max: 64 << 20,
            checkpoint_log_bytes: 256 << 20,
            checkpoint_slots: 0,
            checkpoint_interval: Duration::from_secs(3600),
            checkpoints_kept: 2,
            log_tail_bytes: 64 << 20,
            checkpoint_bytes_per_second: 64 << 20,
            spin: Duration::from_micros(20),
            seed,
            mistake: Mistake::default(),
            whims: Whims::default(),
        }
    }

    /// Whether this replica has the mistake: never without the feature `mutants`.
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mistake.is(mutant)
    }

    /// Checks that the numbers go together.
    ///
    /// # Errors
    /// A sentence that names the option and what it must be.
    pub fn check(&self) -> Result<(), String> {
        if self.node == NodeId(0) || !self.members.contains(&self.node) {
            return Err(format!("replica {} is not among the members", self.node));
        }
        if self.witness && !self.join {
            return Err(
                "a witness joins a cluster that is there: set `join` as well, and add it with \
                        `quorate member add --witness`"
                    .into(),
            );
        }
        if self.witness && self.passive {
            return Err(
                "a witness is not passive: it keeps no payloads, and others need its word".into()
            );
        }
        if self.witness && self.protocol < quorate_consensus::PROTOCOL_WITNESSES {
            return Err(format!(
                "witnesses need version {} of the protocol: take `protocol_max` out of the configuration",
                quorate_consensus::PROTOCOL_WITNESSES
            ));
        }
        if self.heartbeat_interval.is_zero()
            || self.election_timeout_min < self.heartbeat_interval * 3
        {
            return Err("the election time-out must be at least three heartbeats".into());
        }
        if self.election_timeout_max <= self.election_timeout_min {
            return Err("election_timeout_max must be above election_timeout_min".into());
        }
        if !self.lease.is_zero()
            && (self.lease < self.heartbeat_interval * 3 || self.lease > self.election_timeout_min)
        {
            return Err("a lease must be at least three heartbeats and at most \
                        election_timeout_min long, or 0 for none"
                .into());
        }
        if self.clock_drift_ppm > CLOCK_DRIFT_PPM_MAX {
            return Err(format!("clock_drift_ppm must be at most {CLOCK_DRIFT_PPM_MAX}"));
        }
        if !self.ring_bytes.is_multiple_of(64) || self.ring_bytes < self.command_bytes_max + 4096 {
            return Err(format!(
                "ring_bytes must be a multiple of 64 and hold the largest command: at least {}",
                (self.command_bytes_max + 4096).next_multiple_of(64)
            ));
        }
        if self.batch_bytes_max == 0 || self.window_slots_max == 0 || self.window_bytes_max == 0 {
            return Err("batches and windows must hold something".into());
        }
        if self.checkpoints_kept == 0 {
            return Err("at least one checkpoint must be kept".into());
        }
        Ok(())
    }
}

/// A duration as the core counts it.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
