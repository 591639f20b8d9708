//! A witness: a replica without payloads, state and clients (rules W1 to W6).

use super::{Node, NodeError};
use crate::checkpoint::{Head, Job, Source};
use crate::front::{Failure, Reason, Request};
use crate::machine::StateMachine;
use crate::witness::{CHECKPOINT_SLOTS, Standing, Witness};
use bytes::Bytes;
use quorate_consensus::session::SessionTable;
use quorate_consensus::{Configurations, Message, NodeId, Restored, Slot};
use quorate_pmem_log::CheckpointId;

impl Node {
    /// What this replica is must be what it was started as: a voter without its payloads would be counted as
    /// a copy, and a witness cannot become one.
    pub(super) fn check_kind(&self, restored: &Restored) -> Result<(), NodeError> {
        let witness = self.options.witness;
        let node = self.options.node;
        let incarnation = self.recovered.identity.incarnation;
        let me = quorate_consensus::Member { node, incarnation };
        let latest = restored.configurations.latest();
        let as_other = if witness { &latest.voters } else { &latest.witnesses };
        let holds = |withheld: bool| {
            restored.accepted.iter().any(|entry| {
                entry.value.is_withheld() == withheld
                    && (withheld || entry.value.kind == quorate_consensus::ValueKind::Commands)
            })
        };
        if as_other.contains(&me) || holds(!witness) {
            return Err(NodeError::Kind { witness });
        }
        Ok(())
    }

    /// After how many slots a checkpoint is due; 0 for never.
    pub(super) fn checkpoint_slots(&self) -> u64 {
        match (self.options.witness, self.options.checkpoint_slots) {
            (true, 0) => CHECKPOINT_SLOTS,
            (_, slots) => slots,
        }
    }

    /// Bytes of the log that are kept for others: nobody asks a witness for any.
    pub(super) fn log_tail_bytes(&self) -> u64 {
        if self.options.witness { 0 } else { self.options.log_tail_bytes }
    }

    /// A client turned to a witness.
    pub(super) fn refuse_as_witness(&mut self, request: Request) {
        self.counters.failures += 1;
        let ask = self.whom_to_ask();
        request.fail(Failure::Rejected(Reason::Witness { ask }));
    }

    /// A replica that serves clients: the leader, or a voter; with its address, if that is known.
    fn whom_to_ask(&self) -> String {
        let Some(core) = &self.core else { return "a voter of its cluster".into() };
        let voter = core.configurations().latest().voters.first().map(|voter| voter.node);
        let Some(node) = core.leader().or(voter) else { return "a voter of its cluster".into() };
        let configured = self.options.addresses.iter().find(|at| at.node == node);
        let client = core.address(node).or(configured).map(|at| at.client.clone());
        match client.filter(|client| !client.is_empty()) {
            Some(client) => format!("replica {node} at {client}"),
            None => format!("replica {node}"),
        }
    }

    /// A witness that was left behind asks for a checkpoint: it is told who decides, and from which slot on.
    /// Returns whether it asked for no more than that.
    pub(super) fn tell_standing(&mut self, to: NodeId, at_least: Slot) -> bool {
        let Some(core) = self.core.as_ref().filter(|core| core.is_witness_peer(to)) else {
            return false;
        };
        let slot = core.commit_slot();
        if slot >= at_least && !self.options.witness {
            let bytes = core.configurations().as_of(slot).encode();
            let told = Message::SnapshotReply { slot, digest: 0, blocks: 0, first: 0, bytes };
            self.post(to, &told);
        }
        true
    }

    /// A voter told this witness who decides as of `slot`, up to which all is chosen. It counts once it is
    /// durable (K3).
    pub(super) fn on_standing(&mut self, slot: Slot, bytes: &Bytes) {
        let (Some(core), Some(genesis)) = (&self.core, &self.genesis) else { return };
        let Some(configurations) = Configurations::decode(bytes) else { return };
        if slot <= core.commit_slot() || self.checkpoints.is_taking() {
            return;
        }
        let id = CheckpointId { slot, digest: 0, cluster: genesis.cluster };
        let (time_ms, session_times) = (0, self.sessions.times());
        let head = Head { id, time_ms, session_times, configurations: configurations.clone() };
        let Some(view) = Witness.checkpoint() else { return };
        let source = Source::new(head, SessionTable::new(), view);
        tracing::info!(%slot, "a voter says that all up to here is chosen");
        self.checkpoints.begin_standing(Standing { slot, configurations });
        self.checkpoints.steps.submit(Job::Take { id, source, now: self.clock.now });
    }

    /// What a voter told is durable.
    pub(super) fn adopt_standing(&mut self, standing: Standing) {
        let Standing { slot, configurations } = standing;
        let Some(core) = &mut self.core else { return };
        if slot > core.applied_slot() {
            core.on_checkpoint(self.clock.now, slot, configurations);
        }
    }
}
