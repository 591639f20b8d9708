//! What a seed draws before anything happens: how large the cluster is, how its replicas are set up,
//! how its network and disks behave, and which faults there are at all.

use crate::focus::Focus;
use crate::network::NetShape;
use crate::random::Random;
use quorate_consensus::Mutant;
use quorate_consensus::buggify::Point;
use quorate_pmem_log::{MediumKind, Profile};

/// A millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// The shape of a run. Times in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Places for replicas: those of the founding members, then spare ones.
    pub(crate) nodes: usize,
    /// Founding members.
    pub(crate) founders: usize,
    /// Of the spare places, so many at the end are for witnesses.
    pub(crate) witnesses: usize,
    /// Replicas that are passive followers, by bit.
    pub(crate) passive: u64,
    /// Who is a member changes; none: it does not.
    pub(crate) members: Option<MembersShape>,
    /// Clients with sessions of their own; none: there are none.
    pub(crate) sessions: Option<SessionsShape>,
    /// How long faults go on before the liveness phase.
    pub(crate) safety_nanos: u64,
    /// The network.
    pub(crate) net: NetShape,
    /// The disks.
    pub(crate) profile: Profile,
    /// The log's segments.
    pub(crate) segment_bytes: u64,
    /// A checkpoint after so many slots; 0 for none.
    pub(crate) checkpoint_slots: u64,
    /// Checkpoints kept.
    pub(crate) checkpoints_kept: usize,
    /// Of the log, whatever the checkpoints allow.
    pub(crate) log_tail_bytes: u64,
    /// A sync takes so long on average.
    pub(crate) sync_mean: u64,
    /// See `NodeOptions`.
    pub(crate) heartbeat: u64,
    /// See `NodeOptions`.
    pub(crate) election_min: u64,
    /// See `NodeOptions`.
    pub(crate) election_max: u64,
    /// See `NodeOptions`: idle replicas rest.
    pub(crate) quiet_after: u32,
    /// See `NodeOptions`; 0: no leases.
    pub(crate) lease: u64,
    /// The faults are those that leases are afraid of.
    pub(crate) lease_storms: bool,
    /// See `NodeOptions`.
    pub(crate) request_timeout: u64,
    /// See `NodeOptions`.
    pub(crate) command_bytes_max: usize,
    /// See `NodeOptions`.
    pub(crate) batch_bytes_max: usize,
    /// See `NodeOptions`.
    pub(crate) ring_bytes: usize,
    /// See `NodeOptions`.
    pub(crate) window_slots_max: u64,
    /// See `NodeOptions`.
    pub(crate) window_bytes_max: usize,
    /// See `NodeOptions`.
    pub(crate) cache_bytes_max: usize,
    /// A turn of a replica takes so long on average.
    pub(crate) turn_mean: u64,
    /// Clients of each replica.
    pub(crate) clients: usize,
    /// Keys.
    pub(crate) keys: u8,
    /// A client waits so long on average between two requests.
    pub(crate) think_mean: u64,
    /// Reads, of a million requests.
    pub(crate) reads_ppm: u64,
    /// Stale ones, of a million reads.
    pub(crate) stale_ppm: u64,
    /// Requests of all clients together at the most: bounds the run.
    pub(crate) requests_max: u32,
    /// Replicas whose disks may be wiped or damaged: never so many that a majority is not whole.
    pub(crate) victims: Vec<usize>,
    /// Fault kinds that are on, as `plan` numbers them.
    pub(crate) kinds: Vec<usize>,
    /// How many faults.
    pub(crate) faults: usize,
    /// Clock rate of each replica, in millionths.
    pub(crate) rates: Vec<u64>,
    /// How far each wall clock is off at first, in milliseconds.
    pub(crate) skews_ms: Vec<u64>,
    /// Disks of a quorum break their word: nothing is promised but that nothing is invented.
    pub(crate) disaster: bool,
    /// A mistake built into all replicas.
    pub(crate) mutant: Option<Mutant>,
    /// What the run is about, if it looks for a mistake.
    pub(crate) focus: Focus,
    /// How seldom each point misbehaves: one in so many times; 0 for never.
    pub(crate) whims: [u64; Point::ALL.len()],
}

/// How an operator changes the members. Times in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct MembersShape {
    /// The operator looks after the cluster so often, on average.
    pub(crate) step_mean: u64,
    /// Voters at the most.
    pub(crate) voters_max: usize,
    /// Steps that ask a replica that may not be the leader, of a million.
    pub(crate) astray_ppm: u64,
    /// Steps that hand leadership over, of a million.
    pub(crate) transfers_ppm: u64,
}

/// Clients that keep sessions of their own.
#[derive(Clone, Debug)]
pub(crate) struct SessionsShape {
    /// How many.
    pub(crate) clients: usize,
    /// A session that is not used for so long is closed.
    pub(crate) idle_ms: u64,
    /// A try that is not answered for so long, on average, is given up, and the group given again.
    pub(crate) patience_mean: u64,
    /// Retries that come much later, of a million.
    pub(crate) sleeps_ppm: u64,
    /// Groups behind which their session is closed, of a million.
    pub(crate) cuts_ppm: u64,
}

/// The stream that decides on passive followers.
const PASSIVE_STREAM: u64 = 23;

/// The stream that decides on witnesses.
const WITNESSES_STREAM: u64 = 22;

/// The stream that decides on sessions: see [`MEMBERS_STREAM`].
const SESSIONS_STREAM: u64 = 1254;

/// The stream that decides who becomes a member. The number was chosen so that no seed that was kept
/// before there were changes of members has any: they stay what they were.
const MEMBERS_STREAM: u64 = 5235;

impl Shape {
    /// Draws the shape of `seed`.
    #[must_use]
    pub(crate) fn draw(seed: u64, kinds_known: usize) -> Self {
        Self::draw_towards(seed, kinds_known, Focus::default())
    }

    /// Draws the shape of `seed` for the mistake that is looked for, without it.
    #[must_use]
    pub(crate) fn draw_focused(seed: u64, kinds_known: usize, mutant: Mutant) -> Self {
        let focus = Focus::of(mutant);
        let mut shape = match mutant {
            // Without witnesses nothing is to be seen.
            Mutant::WitnessIsACopy | Mutant::WitnessPassedOver | Mutant::WitnessGives => {
                Self::draw_witnesses(seed, kinds_known)
            }
            Mutant::NoFence
            | Mutant::FenceAfterReading
            | Mutant::BrokenFence
            | Mutant::RenewGrant
            | Mutant::LastingGrant
            | Mutant::RingUnreadAtEnd
            | Mutant::CountUnconfirmed
            | Mutant::CountOldCompletions => Self::draw_passive(seed, kinds_known),
            _ => Self::draw_towards(seed, kinds_known, focus),
        };
        focus.turn(&mut shape);
        shape.focus = focus;
        shape
    }

    fn draw_towards(seed: u64, kinds_known: usize, focus: Focus) -> Self {
        let mut shape = Self::draw_plain(seed, kinds_known);
        shape.draw_lease(&mut Random::split(seed, 7), focus.stale_leaders);
        shape.quiet_after = Random::split(seed, 9).pick(&[0, 0, 0, 1, 2, 8]);
        shape.founders = shape.nodes;
        shape.draw_members(&mut Random::split(seed, MEMBERS_STREAM), focus.members);
        shape.draw_sessions(&mut Random::split(seed, SESSIONS_STREAM), focus.sessions);
        shape
    }

    /// Draws the shape of `seed` with witnesses, and with an operator who makes them members.
    #[must_use]
    pub(crate) fn draw_witnesses(seed: u64, kinds_known: usize) -> Self {
        let mut shape = Self::draw_founders(seed, kinds_known);
        let random = &mut Random::split(seed, WITNESSES_STREAM);
        shape.draw_spares(random);
        shape.witnesses = random.pick(&[1, 1, 2]);
        for _ in 0..shape.witnesses {
            let rate = random.pick(&shape.rates);
            shape.rates.push(rate);
            shape.skews_ms.push(random.exponential(500));
        }
        shape.nodes += shape.witnesses;
        if !shape.victims.is_empty() {
            shape.victims = (0..shape.nodes).collect();
        }
        shape.draw_sessions(&mut Random::split(seed, SESSIONS_STREAM), false);
        shape
    }

    /// Draws the shape of `seed` with passive followers: logs in memory, grants for one life of a lane, and
    /// writers that are told of their writes.
    #[must_use]
    pub(crate) fn draw_passive(seed: u64, kinds_known: usize) -> Self {
        let mut shape = Self::draw_founders(seed, kinds_known);
        let random = &mut Random::split(seed, PASSIVE_STREAM);
        shape.profile = Profile {
            kind: MediumKind::Memory,
            alignment: 8,
            sync_thread: false,
            zero_fill: false,
        };
        let some = random.word();
        shape.passive = random.pick(&[u64::MAX, u64::MAX, u64::MAX, some]);
        shape.net.for_life = true;
        shape.net.completions = true;
        shape.net.lasting_ppm = random.pick(&[0, 0, 50_000, 500_000]);
        shape.net.ghosts = random.chance(600_000);
        shape.net.tear_bytes =
            random.pick(&[None, Some(1), Some(8), Some(64), Some(64), Some(1024)]);
        shape.net.told_late_mean = random.pick(&[10_000, MS, 20 * MS]);
        shape.draw_members(&mut Random::split(seed, MEMBERS_STREAM), false);
        shape.draw_sessions(&mut Random::split(seed, SESSIONS_STREAM), false);
        shape
    }

    /// Whether the place `node` is for a witness.
    #[must_use]
    pub(crate) fn is_witness(&self, node: usize) -> bool {
        node + self.witnesses >= self.nodes
    }

    fn draw_sessions(&mut self, random: &mut Random, always: bool) {
        if !random.chance(300_000) && !always {
            return;
        }
        self.sessions = Some(SessionsShape {
            clients: random.between(1, 3) as usize,
            idle_ms: random.pick(&[100, 500, 2_000, 60_000]),
            patience_mean: random.pick(&[20, 100, 500]) * MS,
            sleeps_ppm: random.pick(&[0, 50_000, 300_000]),
            cuts_ppm: random.pick(&[0, 20_000, 100_000]),
        });
    }

    fn draw_founders(seed: u64, kinds_known: usize) -> Self {
        let mut shape = Self::draw_plain(seed, kinds_known);
        shape.draw_lease(&mut Random::split(seed, 7), false);
        shape.quiet_after = Random::split(seed, 9).pick(&[0, 0, 0, 1, 2, 8]);
        shape.founders = shape.nodes;
        shape
    }

    /// Changes of members, in a third of the runs. They take the chances of a stream of their own, so
    /// that all other seeds stay what they were.
    fn draw_members(&mut self, random: &mut Random, always: bool) {
        if random.chance(350_000) || always {
            self.draw_spares(random);
        }
    }

    fn draw_spares(&mut self, random: &mut Random) {
        let spares = random.pick(&[0, 1, 2, 2, 3]);
        for _ in 0..spares {
            let rate = random.pick(&self.rates);
            self.rates.push(rate);
            self.skews_ms.push(random.exponential(500));
        }
        self.nodes += spares;
        // Who may lose its disk depends on who is a member then: see `World::may_lose`.
        self.victims = if random.chance(700_000) { (0..self.nodes).collect() } else { Vec::new() };
        self.members = Some(MembersShape {
            step_mean: random.pick(&[20, 60, 60, 200]) * MS,
            voters_max: random.pick(&[3, 5, 5, 7]).max(self.founders),
            astray_ppm: random.pick(&[0, 100_000, 300_000]),
            transfers_ppm: random.pick(&[0, 100_000, 300_000]),
        });
    }

    /// Leases, in half of the runs: as long as a time-out, or as short as they may be. Clocks are
    /// exactly as wrong as the replicas are told: see [`Shape::clock_drift_ppm`].
    fn draw_lease(&mut self, random: &mut Random, storms: bool) {
        self.lease = random.pick(&[0, 0, 3 * self.heartbeat, self.election_min, self.election_min]);
        if !random.chance(150_000) && !storms {
            return;
        }
        self.lease_storms = true;
        self.lease = self.election_min;
        self.nodes = random.pick(&[3, 3, 5]);
        self.victims = Vec::new();
        // As wrong as it may be, in both directions.
        let drift = random.pick(&[50_000, 200_000, 400_000]);
        self.rates =
            (0..self.nodes).map(|_| random.pick(&[1_000_000 - drift, 1_000_000 + drift])).collect();
        self.skews_ms = vec![0; self.nodes];
        self.profile = Profile {
            kind: MediumKind::Emulated,
            alignment: 8,
            sync_thread: false,
            zero_fill: false,
        };
        self.net.latency_mean = 50_000;
        self.net.loss_ppm = 0;
        self.net.notice_mean = 100_000;
        self.net.back_off_mean = MS;
        self.election_max = self.election_min * 5 / 4;
        self.turn_mean = 20_000;
        self.clients = 2;
        self.keys = 3;
        self.think_mean = 2 * MS;
        self.reads_ppm = 500_000;
        self.stale_ppm = 0;
        self.requests_max = 2_000;
    }

    fn draw_plain(seed: u64, kinds_known: usize) -> Self {
        let random = &mut Random::split(seed, 1);
        let nodes = random.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7]);
        let slow = random.chance(200_000);
        // Nothing but liveness may depend on clocks; these still leave room for two heartbeats.
        let rates =
            random.pick(&[(999_900, 1_000_100), (950_000, 1_050_000), (650_000, 1_450_000)]);
        // Time-outs within the luck of a slow network would be a wrong configuration.
        let heartbeat = if slow { 25 } else { random.pick(&[5, 10, 25, 25]) } * MS;
        let election_min = heartbeat * random.between(4, 8);
        let command_bytes_max = random.pick(&[256, 512, 2048]);
        let batch_bytes_max = random.pick(&[64, 256, 2048, 8192]);
        let smallest_ring = (batch_bytes_max.max(command_bytes_max) + 4096) * 2;
        let victims_max = (nodes - 1) / 2;
        let mut all: Vec<usize> = (0..nodes).collect();
        random.shuffle(&mut all);
        all.truncate(random.between(0, victims_max as u64) as usize);
        // Few kinds in most runs, all in some: a fault that is drowned by others tests nothing.
        let mut kinds: Vec<usize> = (0..kinds_known).collect();
        random.shuffle(&mut kinds);
        let few = random.between(1, 4) as usize;
        kinds.truncate(if random.chance(250_000) { kinds_known } else { few });
        kinds.sort_unstable();
        Self {
            nodes,
            founders: nodes,
            witnesses: 0,
            passive: 0,
            members: None,
            sessions: None,
            safety_nanos: random.between(1_500, 5_000) * MS,
            net: draw_net(random, slow),
            profile: draw_profile(random),
            segment_bytes: random.pick(&[32 << 10, 32 << 10, 64 << 10, 256 << 10]),
            sync_mean: random.pick(&[50_000, 200_000, MS, 4 * MS]),
            heartbeat,
            election_min,
            election_max: election_min * random.pick(&[2, 2, 3]),
            quiet_after: 0,
            lease: 0,
            lease_storms: false,
            request_timeout: random.between(300, 2_000) * MS,
            command_bytes_max,
            batch_bytes_max,
            ring_bytes: random
                .pick(&[smallest_ring, smallest_ring * 2, 128 << 10])
                .max(smallest_ring)
                .next_multiple_of(64),
            window_slots_max: random.pick(&[1, 2, 16, 1024]),
            window_bytes_max: random.pick(&[512, 8 << 10, 1 << 20]),
            cache_bytes_max: random.pick(&[1, 1 << 10, 16 << 10, 1 << 20]),
            turn_mean: random.pick(&[2_000, 20_000, 200_000]),
            clients: random.between(1, 3) as usize,
            keys: random.between(2, 8) as u8 * 3,
            think_mean: random.pick(&[MS, 5 * MS, 20 * MS]),
            reads_ppm: random.pick(&[100_000, 400_000, 700_000]),
            stale_ppm: random.pick(&[0, 200_000, 500_000]),
            requests_max: random.pick(&[100, 300, 600, 1_200]),
            victims: all,
            kinds,
            faults: random.between(0, 24) as usize,
            rates: (0..nodes).map(|_| random.between(rates.0, rates.1)).collect(),
            skews_ms: (0..nodes).map(|_| random.exponential(500)).collect(),
            checkpoint_slots: random.pick(&[0, 10, 40, 40, 200]),
            checkpoints_kept: random.pick(&[1, 2, 2]),
            log_tail_bytes: random.pick(&[0, 0, 64 << 10]),
            disaster: false,
            mutant: None,
            focus: Focus::default(),
            whims: draw_whims(random),
        }
    }

    /// By how much the rate of the worst clock is off.
    #[must_use]
    pub(crate) fn clock_drift_ppm(&self) -> u32 {
        let off = self.rates.iter().map(|rate| rate.abs_diff(1_000_000)).max();
        off.unwrap_or_default() as u32
    }

    /// Draws the shape of a run in which the disks of a quorum break their word.
    #[must_use]
    pub(crate) fn draw_disaster(seed: u64, kinds_known: usize) -> Self {
        let mut shape = Self::draw_founders(seed, kinds_known);
        shape.disaster = true;
        shape
    }

    /// The most replicas that may be missing.
    #[must_use]
    pub(crate) fn quorum(&self) -> usize {
        self.nodes / 2 + 1
    }
}

/// Legal misbehaviour of the product's own code: of few points in most runs, of all in some.
fn draw_whims(random: &mut Random) -> [u64; Point::ALL.len()] {
    let share = random.pick(&[0, 100_000, 300_000, 1_000_000]);
    let mut rate = |_| {
        let rate = random.pick(&[10, 50, 500]);
        if random.chance(share) { rate } else { 0 }
    };
    let mut rates = std::array::from_fn(&mut rate);
    // Every new segment is memory of the run, and half-open windows are the rule with one slot.
    rates[Point::EarlyRoll as usize] *= 20;
    // What is hardly ever asked for is shortened whenever it is.
    for point in [Point::ShortValues, Point::ShortCatchUp, Point::ShortReplay] {
        rates[point as usize] = rates[point as usize].min(2);
    }
    rates
}

fn draw_net(random: &mut Random, slow: bool) -> NetShape {
    let scale = if slow { 10 } else { 1 };
    NetShape {
        latency_min: random.between(5_000, 100_000) * scale,
        latency_mean: random.pick(&[5_000, 50_000, 300_000]) * scale,
        byte_nanos: random.pick(&[0, 0, 1, 10]),
        loss_ppm: random.pick(&[0, 0, 100, 1_000, 10_000]),
        tear_bytes: random.pick(&[None, None, Some(1), Some(8), Some(64), Some(1024)]),
        landing_mean: random.pick(&[1_000, 20_000, 200_000]),
        bursts: random.chance(100_000),
        twice_ppm: random.pick(&[0, 0, 1_000, 50_000, 300_000]),
        damage_ppm: random.pick(&[0, 0, 0, 200, 5_000]),
        completions: random.chance(200_000),
        ghosts: random.chance(300_000),
        hints: random.chance(700_000),
        notice_mean: random.pick(&[100_000, 2 * MS, 50 * MS, 400 * MS]),
        back_off_mean: random.pick(&[MS, 10 * MS, 50 * MS]),
        queue_operations: random.pick(&[8, 64, 4096]),
        for_life: false,
        lasting_ppm: 0,
        broken_fence: false,
        told_late_mean: 0,
    }
}

fn draw_profile(random: &mut Random) -> Profile {
    match random.below(10) {
        0..6 => Profile {
            kind: MediumKind::File,
            alignment: random.pick(&[512, 512, 4096]),
            sync_thread: true,
            zero_fill: random.chance(200_000),
        },
        6..9 => Profile {
            kind: MediumKind::Emulated,
            alignment: 8,
            sync_thread: false,
            zero_fill: false,
        },
        _ => {
            Profile { kind: MediumKind::Memory, alignment: 8, sync_thread: false, zero_fill: false }
        }
    }
}
