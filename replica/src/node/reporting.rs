//! The status snapshot.

use super::Node;
use crate::founding::Founding;
use crate::options::NodeOptions;
use crate::status::{Counters, Latencies, PeerStatus, Status};
use quorate_consensus::{Ballot, Nanos, Repair, RoleName, Row, RowFlags, Slot};
use quorate_pmem_log::Log;

/// How often the snapshot is renewed.
const REPORT_EVERY: Nanos = Nanos::from_millis(50);

/// The status before the first turn.
pub(super) fn initial_status(options: &NodeOptions, log: &Log, latencies: &Latencies) -> Status {
    Status {
        node: options.node,
        cluster: None,
        recovered_from: None,
        protocol: 0,
        speaks: options.protocol,
        role: RoleName::Follower,
        leader: None,
        ballot: Ballot::ZERO,
        commit_slot: Slot::ZERO,
        applied_slot: Slot::ZERO,
        last_slot: Slot::ZERO,
        digest: 0,
        votes: false,
        witness: options.witness,
        configuration: None,
        holds_lease: false,
        medium: log.medium(),
        durability: log.durability(),
        trouble: String::new(),
        peers: Vec::new(),
        waiting_requests: 0,
        commands_in_flight: 0,
        window_bytes: 0,
        counters: Counters::default(),
        log: log.statistics(),
        checkpoints: crate::status::CheckpointStatus::default(),
        latencies: latencies.clone(),
    }
}

impl Node {
    /// Renews the snapshot if it is time.
    pub(super) fn report(&mut self) {
        if self.clock.now.since(self.reported_at) < REPORT_EVERY && self.counters.steps > 1 {
            return;
        }
        self.reported_at = self.clock.now;
        self.shared.status.set(self.status());
    }

    /// This replica at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = initial_status(&self.options, &self.log, &self.latencies);
        status.cluster = self.genesis.as_ref().map(|genesis| genesis.cluster);
        status.recovered_from = self.genesis.as_ref().and_then(|genesis| genesis.recovered_from);
        status.trouble = self.trouble();
        status.waiting_requests = self.waiting.len()
            + self.reads.len()
            + self.bounded_reads.len()
            + self.shared.requests.len();
        status.commands_in_flight = self.origin.in_flight() as usize;
        status.counters = self.counters;
        status.counters.lease_reads = self.shared.gate.reads();
        status.counters.reads += status.counters.lease_reads;
        status.checkpoints = self.checkpoint_status();
        if let Some(core) = &self.core {
            status.role = core.role();
            status.leader = core.leader();
            status.ballot = core.ballot();
            status.commit_slot = core.commit_slot();
            status.applied_slot = core.applied_slot();
            status.last_slot = core.last_slot();
            status.protocol = core.protocol();
            status.votes = core.votes();
            status.configuration = Some(core.configurations().latest().clone());
            status.holds_lease = core.holds_lease();
            status.window_bytes = core.window_bytes();
            status.digest = self.digest;
        }
        status.peers = self.lanes.iter().map(|lanes| self.peer_status(lanes.peer)).collect();
        status
    }

    /// A fingerprint of all that was applied here: [`Status::digest`] at this moment.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    fn peer_status(&self, peer: quorate_consensus::NodeId) -> PeerStatus {
        let heard = self.core.as_ref().and_then(|core| core.peer_row(peer));
        let row = heard.map_or(Row::default(), |(row, _)| row);
        let lags = self.core.as_ref().map(|core| core.lags()).unwrap_or_default();
        let lag = lags.iter().find(|lag| lag.node == peer);
        PeerStatus {
            node: peer,
            link: self.transport.status(peer),
            heard_ms_ago: heard.map(|(_, ago)| ago.0 / 1_000_000),
            outdated: self.core.as_ref().is_none_or(|core| !core.row_is_current(peer)),
            commit_slot: row.commit_slot,
            applied_slot: row.applied_slot,
            lag: lag.map(|lag| lag.slots),
            in_flight: lag.map(|lag| lag.in_flight),
            passive: lag.is_some_and(|lag| lag.passive),
            vote: (row.accepted_ballot, row.accepted_slot),
            priority: row.flags.priority(),
            speaks: row.flags.protocol(),
            payload: row.flags.payload(),
            votes: heard.is_some()
                && row.flags.0 & RowFlags::AMNESIAC == 0
                && self.core.as_ref().is_some_and(|core| {
                    core.configurations().latest().votes(peer, row.incarnation)
                }),
            poisoned: row.flags.has(RowFlags::POISONED),
            witness: row.flags.has(RowFlags::WITNESS),
        }
    }

    /// What is wrong and what to do about it, in one line.
    fn trouble(&self) -> String {
        if let Some(failure) = &self.log_failure {
            return format!(
                "the log failed ({failure}); this replica no longer votes. Check its disk, then \
                 restart it"
            );
        }
        if self.log_full {
            return "the log has no space left; free some, the replica goes on by itself".into();
        }
        if let Some((slot, why)) = &self.log_unreadable {
            return format!(
                "{why} (slot {slot}); this replica votes on, and others get that part elsewhere. Check \
                 its disk; at its next start it has what is lost repaired by them"
            );
        }
        if self.founding.as_ref().is_some_and(Founding::joins) {
            let how = if self.options.witness { " --witness" } else { "" };
            return format!(
                "this replica waits to be made a member: run `quorate member add{how}` for it"
            );
        }
        if let Some(founding) = &self.founding {
            let missing: Vec<_> = founding.missing().iter().map(ToString::to_string).collect();
            return if missing.is_empty() {
                "the cluster is being founded".into()
            } else {
                format!(
                    "the cluster is not founded yet: replica {} has not been heard. All founding \
                     members must run once at the same time",
                    missing.join(", ")
                )
            };
        }
        let Some(core) = &self.core else { return String::new() };
        if self.checkpoints.restoring {
            return "the state is being restored from a checkpoint; reads wait for it".into();
        }
        if !self.checkpoints.error.is_empty() {
            return format!(
                "the last checkpoint could not be kept ({}): the log grows until one is",
                self.checkpoints.error
            );
        }
        if !self.recovered.damaged.is_empty() && !core.votes() {
            let parts = self.recovered.damaged.len();
            let hope = match self.repair() {
                Some(Repair::Through(slot)) => {
                    format!("until slot {slot} is known chosen here again")
                }
                Some(Repair::UnderNewLeader) => {
                    "until another leader is elected, since nobody can tell what stood there"
                        .to_owned()
                }
                None => "since it cannot say what it promised".to_owned(),
            };
            return format!(
                "{parts} damaged part(s) of the log; this replica follows and does not vote {hope}. \
                 Run `quorate log verify` on its directory"
            );
        }
        if self.recovered.outlived {
            return "the machine was started again since this log was made, which its medium does not \
                    survive: records may be missing at its end. This replica follows and does not \
                    vote. Start it with an empty directory, and use `file` or `dax` durability"
                .into();
        }
        let active = core.configurations().latest().protocol;
        if active > self.options.protocol {
            return format!(
                "the cluster's active protocol version is {active}, and this replica speaks up to {}: it \
                 follows and does not vote. Start it with a newer program",
                self.options.protocol
            );
        }
        if core.is_removed() {
            return "this replica was removed from the cluster: nobody needs it any more, stop it"
                .into();
        }
        let latest = core.configurations().latest();
        if latest.learners.iter().any(|learner| learner.node == self.options.node) {
            return String::new();
        }
        if !core.votes() && !latest.names(self.options.node) {
            return "this replica is no member: run `quorate member add` for it".into();
        }
        if !core.votes() {
            return "this replica lost what it had promised (new disk, or `memory` durability and a \
                    restart): it follows and does not vote until it is made a member again: run \
                    `quorate member replace` with its number twice"
                .into();
        }
        if core.distrusts_clocks() {
            return "leases are off for some seconds, since the clocks of this machine or of a peer do \
                    not run as clock_drift_ppm says; reads are confirmed by a majority instead"
                .into();
        }
        if core.leader().is_none() {
            return "no leader: fewer than a majority of the replicas reach each other".into();
        }
        String::new()
    }
}
