//! What a replica is told at its birth.

use crate::{Incarnation, Mistake, Nanos, NodeId, Whims};
use alloc::vec::Vec;

/// Timers and limits of one replica. All limits are hard: what is beyond waits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This replica.
    pub node: NodeId,
    /// The life of its disk.
    pub incarnation: Incarnation,
    /// Whom to listen to while no configuration names this replica, and until it follows one that
    /// its configuration names: the members that it was told of when it was started.
    pub contacts: Vec<NodeId>,
    /// How often a replica shows that it lives.
    pub heartbeat_interval: Nanos,
    /// A leader unheard for this long may be replaced. Also how long a leader goes on without
    /// hearing from a quorum.
    pub election_timeout_min: Nanos,
    /// Each wait for an election is drawn from min..max, so that duels end.
    pub election_timeout_max: Nanos,
    /// A leader hands over to a replica of higher priority that keeps up.
    pub priority: u8,
    /// This replica keeps no payloads: it votes where a configuration names it as a witness, and never
    /// leads. Told at its first start, and not changed afterwards.
    pub witness: bool,
    /// The newest version of the protocol that this replica speaks, or says that it does.
    pub protocol: u16,
    /// How long a follower that answered a ping waits before it promises another ballot, so that the
    /// leader may answer reads without asking; 0: leases are off. Also how long this replica waits
    /// after a restart. Lower it only together with a pause of the old length.
    pub lease: Nanos,
    /// How far the rate of any replica's clock may be off, in millionths.
    pub clock_drift_ppm: u32,
    /// A leader rests after so many heartbeats in which nothing happened, and its followers with it; 0:
    /// never. See `paxos/quiet.rs`.
    pub quiet_after: u32,
    /// Slots in flight: proposed and not known chosen.
    pub window_slots_max: u64,
    /// Payload bytes in flight.
    pub window_bytes_max: usize,
    /// Payload bytes of chosen and applied entries kept in memory for followers that are behind.
    pub cache_bytes_max: usize,
    /// Payload bytes asked for in one catch-up request.
    pub catch_up_bytes: u32,
    /// Seeds the only randomness there is: the waits for elections.
    pub seed: u64,
    /// A mistake built in on purpose: none in a product.
    pub mistake: Mistake,
    /// Legal misbehaviour: none in a product.
    pub whims: Whims,
}

impl Settings {
    /// The defaults, for `node`.
    #[must_use]
    pub fn new(node: NodeId, incarnation: Incarnation) -> Self {
        Self {
            node,
            incarnation,
            contacts: Vec::new(),
            heartbeat_interval: Nanos::from_millis(25),
            election_timeout_min: Nanos::from_millis(200),
            election_timeout_max: Nanos::from_millis(400),
            priority: 100,
            witness: false,
            protocol: crate::PROTOCOL_FIRST,
            lease: Nanos(0),
            clock_drift_ppm: 1_000,
            quiet_after: 0,
            window_slots_max: 8192,
            window_bytes_max: 64 << 20,
            cache_bytes_max: 64 << 20,
            catch_up_bytes: 1 << 20,
            seed: incarnation.0 ^ u64::from(node.0).rotate_left(32),
            mistake: Mistake::default(),
            whims: Whims::default(),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the core's only source of chance, and it is seeded.
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration from `low` (inclusive) to `high` (exclusive).
    pub(crate) fn between(&mut self, low: Nanos, high: Nanos) -> Nanos {
        let span = high.0.saturating_sub(low.0).max(1);
        Nanos(low.0 + self.next() % span)
    }
}
