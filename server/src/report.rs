//! The status of a replica as JSON: what `QUORATE STATUS` answers and `quorate status --json` prints.

use quorate::{Latencies, Status};
use serde::{Deserialize, Serialize};

/// A replica at one moment. Fields are added over time, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The replica's number.
    pub node: u16,
    /// The process that runs it.
    pub process: u32,
    /// The cluster's number, 16 hexadecimal digits; empty before it is founded.
    pub cluster: String,
    /// The cluster that it was recovered from, after its majority was lost.
    #[serde(default)]
    pub recovered_from: Option<String>,
    /// The active version of the protocol; 0 while no cluster is known.
    #[serde(default)]
    pub protocol: u16,
    /// The newest version that this replica speaks.
    #[serde(default)]
    pub speaks: u16,
    /// `leader`, `follower`, `candidate`, `learner` or `witness`.
    pub role: String,
    /// Who leads, as far as it knows.
    pub leader: Option<u16>,
    /// Under which ballot: `ROUND.NODE`.
    pub ballot: String,
    /// Everything up to it is known chosen.
    pub commit_slot: u64,
    /// The state machine has seen everything up to it.
    pub applied_slot: u64,
    /// The newest slot accepted.
    pub last_slot: u64,
    /// A fingerprint of all commands and replies up to `applied_slot`, 16 hexadecimal digits: replicas
    /// with equal slots have equal ones.
    pub digest: String,
    /// Whether its votes count.
    pub votes: bool,
    /// Whether it was started as a witness: it keeps no payloads, and serves no client.
    #[serde(default)]
    pub witness: bool,
    /// The members, as of the newest configuration known to it.
    #[serde(default)]
    pub configuration: Option<MembersReport>,
    /// What keeps the log: `file`, `dax`, `emulated` or `memory`.
    pub medium: String,
    /// What an acknowledged write survives at this replica.
    pub durability: String,
    /// What is wrong and what to do; empty when all is well.
    pub trouble: String,
    /// The other replicas as this one sees them.
    pub peers: Vec<PeerReport>,
    /// Requests of clients that wait for a leader, for room or for a read.
    pub waiting_requests: usize,
    /// Commands under way.
    pub commands_in_flight: usize,
    /// Payload bytes of the log held in memory.
    pub window_bytes: usize,
    /// Checkpoints, and what of the log is left beside them.
    #[serde(default)]
    pub checkpoints: CheckpointReport,
    /// Counters since the replica's thread started.
    pub counters: CounterReport,
    /// Histograms.
    pub latencies: LatencyReport,
}

/// A configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersReport {
    /// Its number.
    pub id: u64,
    /// Whether the change to it is done: who is not in it is needed no more.
    pub settled: bool,
    /// Members whose votes count.
    pub voters: Vec<u16>,
    /// Members that only receive the log.
    pub learners: Vec<u16>,
    /// Members that vote without payloads.
    #[serde(default)]
    pub witnesses: Vec<u16>,
    /// How many voters hold what is written, where there are witnesses; else 0.
    #[serde(default)]
    pub copies: u16,
    /// Promises that elect and votes that choose, where they are not majorities.
    pub quorums: Option<(u16, u16)>,
    /// Where members are reached, as far as the configuration says.
    pub addresses: Vec<AddressReport>,
}

/// Where a member is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressReport {
    /// Its number.
    pub node: u16,
    /// For its peers.
    pub peer: String,
    /// For clients.
    pub client: String,
}

fn members(known: &quorate::Configuration) -> MembersReport {
    let address = |at: &quorate::Address| AddressReport {
        node: at.node.0,
        peer: at.peer.clone(),
        client: at.client.clone(),
    };
    MembersReport {
        id: known.id,
        settled: known.settled,
        voters: known.voters.iter().map(|member| member.node.0).collect(),
        learners: known.learners.iter().map(|member| member.node.0).collect(),
        witnesses: known.witnesses.iter().map(|member| member.node.0).collect(),
        copies: known.copies,
        quorums: known.quorums.map(|sizes| (sizes.phase_one, sizes.phase_two)),
        addresses: known.addresses.iter().map(address).collect(),
    }
}

/// A replica's checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointReport {
    /// Whether there can be any.
    pub supported: bool,
    /// How many count.
    pub kept: usize,
    /// How many are there and cannot be used.
    pub bad: usize,
    /// The slot of the newest; 0 for none.
    pub newest_slot: u64,
    /// The bytes of its image.
    pub newest_bytes: u64,
    /// The slot of the oldest that is kept; 0 for none.
    pub oldest_slot: u64,
    /// One is being taken: its bytes so far.
    pub taking_bytes: Option<u64>,
    /// The state is being restored from one.
    pub restoring: bool,
    /// One is being received from a peer: slot, next block, blocks of 64 KiB.
    pub receiving: Option<(u64, u64, u64)>,
    /// Taken since the start.
    pub taken: u64,
    /// That could not be taken, since the start.
    pub failed: u64,
    /// Received from peers since the start.
    pub received: u64,
    /// The lowest slot that the log can give.
    pub log_first: u64,
    /// What the log takes of its disk.
    pub log_disk_bytes: u64,
    /// Why the last one could not be kept; empty if it was.
    pub error: String,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its number.
    pub node: u16,
    /// What carries the link: `tcp`, …
    pub carrier: String,
    /// Whether the control lane is up.
    pub control_up: bool,
    /// Whether the data lane is up.
    pub data_up: bool,
    /// Milliseconds since it was heard.
    pub heard_ms_ago: Option<u64>,
    /// Whether all that follows is what it said before its data lane ended last.
    #[serde(default)]
    pub outdated: bool,
    /// What it knows chosen.
    pub commit_slot: u64,
    /// What its state machine has seen.
    pub applied_slot: u64,
    /// Slots that it still has to vote for, as its leader sees it.
    pub lag: Option<u64>,
    /// Of those, slots that were shipped to it already.
    #[serde(default)]
    pub in_flight: Option<u64>,
    /// Whether a completed write counts as its vote, as its leader sees it.
    #[serde(default)]
    pub passive: bool,
    /// Its newest durable vote: the ballot, in text, and the slot.
    #[serde(default)]
    pub vote: (String, u64),
    /// A leader hands over to a replica of higher priority.
    #[serde(default)]
    pub priority: u8,
    /// The newest version of the protocol that it speaks.
    #[serde(default)]
    pub speaks: u16,
    /// Whether its votes count.
    pub votes: bool,
    /// Whether its log failed.
    pub poisoned: bool,
    /// Whether it was started as a witness.
    #[serde(default)]
    pub witness: bool,
    /// Bytes in the send queues to it.
    pub queued_bytes: usize,
    /// How often a lane was rebuilt.
    pub reconnects: u64,
    /// The last failure of the link.
    pub last_error: String,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// Commands applied by the state machine.
    pub commands_applied: u64,
    /// Commands that had been applied before.
    pub duplicates: u64,
    /// Groups rejected because something before them was lost on the way.
    pub gaps: u64,
    /// Batches proposed as leader.
    pub batches_proposed: u64,
    /// Commands in them.
    pub commands_proposed: u64,
    /// Linearizable reads.
    pub reads: u64,
    /// Those answered under a lease by the thread that asked.
    #[serde(default)]
    pub lease_reads: u64,
    /// Stale reads.
    pub stale_reads: u64,
    /// Requests that got an error.
    pub failures: u64,
    /// Times it became leader.
    pub leaderships: u64,
    /// Times the known leader changed.
    pub leader_changes: u64,
    /// Turns of the loop.
    pub steps: u64,
    /// Times the thread slept.
    pub parks: u64,
    /// Records appended to the log.
    pub log_records: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Flushes of the log.
    pub log_flushes: u64,
}

/// Histograms, in microseconds (batch: commands).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// From a client's submission at this replica to its reply.
    pub request: Quantiles,
    /// From proposal to commit, as leader.
    pub commit: Quantiles,
    /// A flush of the log.
    pub flush: Quantiles,
    /// Commands in a batch.
    pub batch: Quantiles,
}

/// A histogram in six numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many values.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

impl From<&Status> for Report {
    fn from(status: &Status) -> Self {
        Self {
            node: status.node.0,
            process: std::process::id(),
            cluster: status.cluster.map(|cluster| format!("{cluster:016x}")).unwrap_or_default(),
            protocol: status.protocol,
            speaks: status.speaks,
            recovered_from: status.recovered_from.map(|lost| format!("{lost:016x}")),
            role: status.role.to_string(),
            leader: status.leader.map(|node| node.0),
            ballot: status.ballot.to_string(),
            commit_slot: status.commit_slot.0,
            applied_slot: status.applied_slot.0,
            last_slot: status.last_slot.0,
            digest: format!("{:016x}", status.digest),
            votes: status.votes,
            witness: status.witness,
            configuration: status.configuration.as_ref().map(members),
            medium: status.medium.to_string(),
            durability: status.durability.to_string(),
            trouble: status.trouble.clone(),
            peers: status.peers.iter().map(peer).collect(),
            waiting_requests: status.waiting_requests,
            commands_in_flight: status.commands_in_flight,
            window_bytes: status.window_bytes,
            checkpoints: checkpoints(&status.checkpoints),
            counters: counters(status),
            latencies: latencies(&status.latencies),
        }
    }
}

fn checkpoints(status: &quorate::CheckpointStatus) -> CheckpointReport {
    CheckpointReport {
        supported: status.supported,
        kept: status.kept,
        bad: status.bad,
        newest_slot: status.newest_slot.0,
        newest_bytes: status.newest_bytes,
        oldest_slot: status.oldest_slot.0,
        taking_bytes: status.taking_bytes,
        restoring: status.restoring,
        receiving: status.receiving.map(|part| (part.slot.0, part.next, part.blocks)),
        taken: status.taken,
        failed: status.failed,
        received: status.received,
        log_first: status.log_first.0,
        log_disk_bytes: status.log_disk_bytes,
        error: status.error.clone(),
    }
}

fn peer(peer: &quorate::PeerStatus) -> PeerReport {
    PeerReport {
        node: peer.node.0,
        carrier: peer.link.carrier.to_string(),
        control_up: peer.link.control_up,
        data_up: peer.link.data_up,
        heard_ms_ago: peer.heard_ms_ago,
        outdated: peer.outdated,
        commit_slot: peer.commit_slot.0,
        applied_slot: peer.applied_slot.0,
        lag: peer.lag,
        in_flight: peer.in_flight,
        vote: (peer.vote.0.to_string(), peer.vote.1.0),
        priority: peer.priority,
        speaks: peer.speaks,
        votes: peer.votes,
        poisoned: peer.poisoned,
        witness: peer.witness,
        passive: peer.passive,
        queued_bytes: peer.link.queued_bytes,
        reconnects: peer.link.reconnects,
        last_error: peer.link.last_error.clone(),
    }
}

fn counters(status: &Status) -> CounterReport {
    let counters = &status.counters;
    CounterReport {
        commands_applied: counters.commands_applied,
        duplicates: counters.duplicates,
        gaps: counters.gaps,
        batches_proposed: counters.batches_proposed,
        commands_proposed: counters.commands_proposed,
        reads: counters.reads,
        lease_reads: counters.lease_reads,
        stale_reads: counters.stale_reads,
        failures: counters.failures,
        leaderships: counters.leaderships,
        leader_changes: counters.leader_changes,
        steps: counters.steps,
        parks: counters.parks,
        log_records: status.log.records,
        log_bytes: status.log.bytes_written,
        log_flushes: status.log.flushes,
    }
}

fn latencies(latencies: &Latencies) -> LatencyReport {
    LatencyReport {
        request: quantiles(&latencies.request),
        commit: quantiles(&latencies.commit),
        flush: quantiles(&latencies.flush),
        batch: quantiles(&latencies.batch),
    }
}

/// The six numbers of a histogram.
#[must_use]
pub fn quantiles(histogram: &hdrhistogram::Histogram<u64>) -> Quantiles {
    Quantiles {
        count: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p90: histogram.value_at_quantile(0.9),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    }
}
