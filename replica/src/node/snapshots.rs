//! Checkpoints in transit: a replica that no log helps on pulls one from any peer that has it, block
//! by block, and goes on where it was, also after a crash of either end.

use super::Node;
use crate::checkpoint::Job;
use crate::front::Notification;
use crate::options::nanos;
use bytes::Bytes;
use quorate_consensus::{Message, Nanos, NodeId, Slot};
use quorate_pmem_log::{BLOCK_BYTES, Checkpoint, CheckpointError, CheckpointId};

/// Asked for at a time: one request is under way, and its answer is written before the next one is
/// sent, so this is all that a transfer holds in memory at either end.
const REQUEST_BYTES: usize = 16 * BLOCK_BYTES;
/// A peer gives no more at a time, whatever it is asked for.
const REPLY_BYTES_MAX: usize = 64 * BLOCK_BYTES;
/// After this replica could not write what it received, it tries again after this long.
const RETRY_AFTER: Nanos = Nanos::from_millis(10_000);
/// A source that has nothing to give is followed by the next one after this long.
const NEXT_SOURCE_AFTER: Nanos = Nanos::from_millis(50);

/// A checkpoint that is being received.
#[derive(Debug)]
pub(super) struct Transfer {
    source: NodeId,
    /// Which one, the next block, and how many there are; none before the first answer.
    progress: Option<(CheckpointId, u64, u64)>,
    /// The answer is given up then.
    give_up_at: Nanos,
    /// Blocks are with the worker.
    writing: bool,
}

impl Transfer {
    /// Slot, next block, blocks.
    pub(super) fn progress(&self) -> Option<(Slot, u64, u64)> {
        self.progress.map(|(id, next, blocks)| (id.slot, next, blocks))
    }
}

impl Node {
    /// Begins, goes on with, or ends a transfer.
    pub(super) fn pull_snapshot(&mut self) {
        let now = self.clock.now;
        let Some(core) = &self.core else { return };
        if self.checkpoints.restoring || self.log_failure.is_some() {
            return;
        }
        if self.options.witness && self.checkpoints.is_taking() {
            return;
        }
        if self.checkpoints.transfer.as_ref().is_some_and(|transfer| transfer.writing) {
            return;
        }
        let Some(at_least) = core.snapshot_wanted() else {
            // The log of a peer helped after all, or the peers are gone: what was received stays.
            self.checkpoints.transfer = None;
            return;
        };
        if now < self.checkpoints.retry_transfer_at {
            return;
        }
        let before = match &self.checkpoints.transfer {
            Some(transfer) if now < transfer.give_up_at => return,
            Some(transfer) => Some(transfer.source),
            None => None,
        };
        let Some(source) = core.snapshot_source(at_least, before) else { return };
        let progress = self.checkpoints.transfer.take().and_then(|transfer| transfer.progress);
        let transfer = Transfer { source, progress, give_up_at: now, writing: false };
        self.checkpoints.transfer = Some(transfer);
        if before.is_none() {
            tracing::info!(%source, %at_least, "behind every log: asking for a checkpoint");
        }
        self.ask_for_blocks(at_least);
    }

    fn ask_for_blocks(&mut self, at_least: Slot) {
        let give_up_at = self.clock.now + nanos(self.options.election_timeout_max * 2);
        let partial = self.checkpoints.steps.summary().partial;
        let cluster = self.genesis.as_ref().map_or(0, |genesis| genesis.cluster);
        let Some(transfer) = &mut self.checkpoints.transfer else { return };
        transfer.give_up_at = give_up_at;
        let usable = |id: &CheckpointId| id.slot >= at_least && id.cluster == cluster;
        let begun = transfer.progress.map(|(id, next, _)| (id, next)).or(partial);
        let begun = begun.filter(|(id, _)| usable(id));
        let (id, first) =
            begun.unwrap_or((CheckpointId { slot: Slot::ZERO, digest: 0, cluster }, 0));
        let message = Message::SnapshotRequest {
            at_least,
            slot: id.slot,
            digest: id.digest,
            first,
            bytes_max: REQUEST_BYTES as u32,
        };
        let source = transfer.source;
        self.post(source, &message);
    }

    /// A peer asks for blocks of a checkpoint.
    pub(super) fn on_snapshot_request(
        &mut self,
        from: NodeId,
        at_least: Slot,
        (slot, digest): (Slot, u64),
        first: u64,
        bytes_max: u32,
    ) {
        if self.options.witness || self.tell_standing(from, at_least) {
            return;
        }
        let Some(genesis) = &self.genesis else { return };
        let cluster = genesis.cluster;
        let id = CheckpointId { slot, digest, cluster };
        let want = (slot > Slot::ZERO).then_some((id, first));
        let bytes_max = (bytes_max as usize).clamp(BLOCK_BYTES, REPLY_BYTES_MAX);
        let now = self.clock.now;
        // One that is dropped is asked for again.
        self.checkpoints.steps.submit(Job::Read {
            to: from,
            cluster,
            at_least,
            want,
            bytes_max,
            now,
        });
    }

    /// A peer gives blocks, or says that it has none that help.
    pub(super) fn on_snapshot_reply(
        &mut self,
        from: NodeId,
        (slot, digest): (Slot, u64),
        blocks: u64,
        first: u64,
        bytes: Bytes,
    ) {
        let now = self.clock.now;
        let (Some(core), Some(genesis)) = (&self.core, &self.genesis) else { return };
        let Some(at_least) = core.snapshot_wanted() else { return };
        let Some(transfer) = &mut self.checkpoints.transfer else { return };
        if transfer.source != from || transfer.writing {
            return;
        }
        if slot < at_least || bytes.is_empty() {
            transfer.give_up_at = transfer.give_up_at.min(now + NEXT_SOURCE_AFTER);
            return;
        }
        if self.options.witness {
            self.checkpoints.transfer = None;
            if blocks == 0 {
                self.on_standing(slot, &bytes);
            }
            return;
        }
        let id = CheckpointId { slot, digest, cluster: genesis.cluster };
        transfer.progress = Some((id, first, blocks));
        transfer.writing = true;
        let commit_slot = core.commit_slot();
        let now = self.clock.now;
        self.checkpoints.steps.submit(Job::Write { id, blocks: bytes, commit_slot, now });
    }

    /// Blocks were written, or not.
    pub(super) fn on_written(
        &mut self,
        id: CheckpointId,
        next: u64,
        result: Result<Option<Checkpoint>, CheckpointError>,
    ) {
        let now = self.clock.now;
        if let Some(transfer) = &mut self.checkpoints.transfer {
            transfer.writing = false;
            transfer.give_up_at = now;
            if let Some(progress) = transfer.progress.as_mut().filter(|(of, ..)| *of == id) {
                progress.1 = next;
            }
        }
        match result {
            Ok(None) => {
                let wanted = self.core.as_ref().and_then(|core| core.snapshot_wanted());
                if let Some(at_least) = wanted {
                    self.ask_for_blocks(at_least);
                }
            }
            Ok(Some(checkpoint)) => {
                let slot = checkpoint.id.slot;
                tracing::info!(%slot, bytes = checkpoint.bytes, "a checkpoint was received");
                self.checkpoints.transfer = None;
                self.count_received();
                self.on_installed(checkpoint);
                self.notify(Notification::CheckpointReceived(slot));
                let applied = self.core.as_ref().map(|core| core.applied_slot());
                // Logs may have helped meanwhile: then there is nothing to restore.
                if applied.is_some_and(|applied| applied < slot) && !self.checkpoints.restoring {
                    self.restore(slot);
                }
            }
            Err(error @ CheckpointError::Damaged { .. }) => {
                // The next source is asked for the same block.
                tracing::warn!(%error, "a block of a checkpoint was refused");
            }
            Err(error) => {
                tracing::error!(%error, "a checkpoint of a peer could not be kept");
                self.checkpoints.error = error.to_string();
                self.checkpoints.transfer = None;
                self.checkpoints.retry_transfer_at = now + RETRY_AFTER;
            }
        }
    }
}
