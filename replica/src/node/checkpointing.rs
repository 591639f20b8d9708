//! When checkpoints are taken, what follows from one, and how the state comes back.

use super::Node;
use crate::checkpoint::{CheckpointSteps, Done, Head, Job, Restored, Source};
use crate::front::{CheckpointSender, Failure, Notification, Reason};
use crate::machine::{Absent, StateMachine};
use crate::options::nanos;
use crate::status::{CheckpointStatus, CheckpointTaken, Receiving};
use crate::witness::Standing;
use quorate_consensus::session::SessionTable;
use quorate_consensus::{Configurations, Message, Mutant, Nanos, Slot};
use quorate_pmem_log::{Checkpoint, CheckpointError, CheckpointId};

use super::snapshots::Transfer;
use std::sync::Arc;

/// A checkpoint that could not be written is tried again after this long.
const RETRY_AFTER: Nanos = Nanos::from_millis(10_000);

/// A replica's side of its checkpoints.
pub(super) struct Checkpoints {
    pub(super) steps: CheckpointSteps,
    /// The state machine hands out views.
    supported: bool,
    /// One is being taken.
    taking: bool,
    /// The state machine is with the worker: nothing is applied or queried.
    pub(super) restoring: bool,
    /// A peer asked for one, and none that was good was new enough.
    nothing_given: bool,
    /// Entries of the log below are not to be used.
    pub(super) log_from: Slot,
    /// The newest checkpoint whose beginning could be read at the start: its slot, and who decides as
    /// of it.
    pub(super) configurations: Option<(Slot, Configurations)>,
    /// Whoever asked for one and waits, for the next that is begun and for the one at hand.
    asked: Vec<CheckpointSender>,
    answering: Vec<CheckpointSender>,
    newest: Option<Checkpoint>,
    /// Where the last one was begun: the time, and what the log had written.
    begun_at: Nanos,
    begun_bytes: u64,
    not_before: Nanos,
    pub(super) transfer: Option<Transfer>,
    pub(super) retry_transfer_at: Nanos,
    taken: u64,
    failed: u64,
    received: u64,
    pub(super) error: String,
    /// What a voter told this witness, and is being made durable.
    standing: Option<Standing>,
}

impl Checkpoints {
    /// Whether one is being taken.
    pub(super) fn is_taking(&self) -> bool {
        self.taking
    }

    /// What a voter told is being made durable.
    pub(super) fn begin_standing(&mut self, standing: Standing) {
        self.taking = true;
        self.standing = Some(standing);
    }

    pub(super) fn new(
        steps: CheckpointSteps,
        supported: bool,
        log_from: Slot,
        head: Option<Head>,
    ) -> Self {
        let newest = steps.summary().installed.last().copied();
        Self {
            steps,
            supported,
            taking: false,
            restoring: false,
            nothing_given: false,
            log_from,
            configurations: head.map(|head| (head.id.slot, head.configurations)),
            asked: Vec::new(),
            answering: Vec::new(),
            newest,
            begun_at: Nanos(0),
            begun_bytes: 0,
            not_before: Nanos(0),
            transfer: None,
            retry_transfer_at: Nanos(0),
            taken: 0,
            failed: 0,
            received: 0,
            error: String::new(),
            standing: None,
        }
    }

    /// Whether one is being taken, received or restored from, or waited for.
    pub(super) fn is_busy(&self) -> bool {
        self.taking
            || self.restoring
            || self.transfer.is_some()
            || !self.asked.is_empty()
            || !self.answering.is_empty()
    }

    /// The slot of the newest checkpoint; 0 for none.
    pub(super) fn newest_slot(&self) -> Slot {
        self.newest.map_or(Slot::ZERO, |newest| newest.id.slot)
    }
}

impl Node {
    /// The worker of this replica's checkpoints has a thread from now on, whenever there is work.
    pub(crate) fn drive_checkpoints(&self) {
        let steps = &self.checkpoints.steps;
        steps.drive(self.options.checkpoint_bytes_per_second);
        // The worker has the log's keeper, which has the worker: that lets go of it when it is stopped.
        let worker = steps.clone();
        steps.keep_up(self.log.upkeep(Arc::new(move || worker.look())));
    }

    /// The worker of this replica's checkpoints: whoever drives the node without a
    /// [`crate::Runner`] drives this as well.
    #[must_use]
    pub fn checkpoint_steps(&self) -> CheckpointSteps {
        self.checkpoints.steps.clone()
    }

    /// At a start: the state comes back from the newest good checkpoint, before anything is applied.
    pub(super) fn restore_at_start(&mut self) {
        if self.checkpoints.newest.is_some() {
            self.restore(Slot::ZERO);
        }
    }

    /// Hands the state machine to the worker.
    pub(super) fn restore(&mut self, at_least: Slot) {
        let machine = std::mem::replace(&mut self.machine, Box::new(Absent));
        self.checkpoints.restoring = true;
        self.checkpoints.steps.submit(Job::Restore { machine, at_least });
    }

    /// Somebody asks for a checkpoint.
    pub(super) fn ask_for_checkpoint(&mut self, reply: CheckpointSender) {
        if self.checkpoints.supported {
            self.checkpoints.asked.push(reply);
            self.consider_checkpoint();
        } else {
            let _ = reply.send(Err(Failure::Rejected(Reason::NoCheckpoints)));
        }
    }

    /// Begins a checkpoint if one is due.
    pub(super) fn consider_checkpoint(&mut self) {
        let checkpoints = &self.checkpoints;
        let Some(core) = &self.core else { return };
        if checkpoints.taking || checkpoints.restoring || !checkpoints.supported {
            return;
        }
        let slot = core.applied_slot();
        let newest = checkpoints.newest_slot();
        if slot <= newest {
            // All is in the newest one: whoever asks has what it asked for.
            if let Some(newest) = checkpoints.newest.filter(|newest| newest.id.slot == slot) {
                let taken = CheckpointTaken { slot, bytes: newest.bytes };
                for reply in self.checkpoints.asked.drain(..) {
                    let _ = reply.send(Ok(taken));
                }
            }
            return;
        }
        // Rule F7: a recovered replica has what it can give to others only when it took one of its own.
        let cluster = self.genesis.as_ref().map(|genesis| genesis.cluster);
        let foreign = checkpoints.newest.is_some_and(|newest| Some(newest.id.cluster) != cluster);
        // The newest one turned out to be bad when a peer asked for it, and the log may be trimmed up to it:
        // who is behind needs another.
        let summary = checkpoints.steps.summary();
        let kept = |newest: &Checkpoint| {
            !checkpoints.nothing_given || summary.installed.iter().any(|one| one.id == newest.id)
        };
        let lost = checkpoints.newest.is_some_and(|newest| !kept(&newest));
        let needed = (foreign || lost) && self.clock.now >= checkpoints.not_before;
        let asked = !checkpoints.asked.is_empty();
        if asked || needed || self.checkpoint_is_due(slot.0 - newest.0) {
            self.begin_checkpoint(slot);
        }
    }

    fn checkpoint_is_due(&self, slots: u64) -> bool {
        let (options, checkpoints) = (&self.options, &self.checkpoints);
        let now = self.clock.now;
        if now < checkpoints.not_before || checkpoints.transfer.is_some() {
            return false;
        }
        let written = self.log.statistics().bytes_written - checkpoints.begun_bytes;
        let interval = nanos(options.checkpoint_interval);
        (options.checkpoint_log_bytes > 0 && written >= options.checkpoint_log_bytes)
            || (self.checkpoint_slots() > 0 && slots >= self.checkpoint_slots())
            || (interval > Nanos(0) && now.since(checkpoints.begun_at) >= interval)
    }

    /// Takes a view of the state as it is between two commands; the worker writes it.
    fn begin_checkpoint(&mut self, slot: Slot) {
        let (Some(genesis), Some(core)) = (&self.genesis, &self.core) else { return };
        let Some(view) = self.machine.checkpoint() else { return };
        let id = CheckpointId { slot, digest: self.digest, cluster: genesis.cluster };
        let head = Head {
            id,
            time_ms: self.time_ms,
            session_times: self.sessions.times(),
            configurations: core.configurations().as_of(slot),
        };
        let source = Source::new(head, self.sessions.clone(), view);
        let checkpoints = &mut self.checkpoints;
        checkpoints.taking = true;
        checkpoints.begun_at = self.clock.now;
        checkpoints.begun_bytes = self.log.statistics().bytes_written;
        checkpoints.answering.append(&mut checkpoints.asked);
        checkpoints.steps.submit(Job::Take { id, source, now: self.clock.now });
        tracing::info!(%slot, "taking a checkpoint");
    }

    /// Takes what the worker has finished. Returns whether there was anything.
    pub(super) fn poll_checkpoints(&mut self) -> bool {
        let mut busy = false;
        while let Some(done) = self.checkpoints.steps.poll() {
            busy = true;
            match done {
                Done::Taken(taken) => self.on_taken(taken),
                Done::Written { id, next, result } => self.on_written(id, next, result),
                Done::Blocks { to, message } => {
                    let nothing = matches!(message, Message::SnapshotReply { blocks: 0, .. });
                    self.checkpoints.nothing_given |= nothing;
                    self.post(to, &message);
                }
                Done::Restored { machine, result } => self.on_restored(machine, result),
            }
        }
        busy
    }

    fn on_taken(&mut self, taken: Result<Checkpoint, CheckpointError>) {
        self.checkpoints.taking = false;
        self.checkpoints.nothing_given = false;
        let standing = self.checkpoints.standing.take();
        let waiting = std::mem::take(&mut self.checkpoints.answering);
        let outcome = match taken {
            Ok(checkpoint) => {
                let (slot, bytes) = (checkpoint.id.slot, checkpoint.bytes);
                tracing::info!(%slot, bytes, "a checkpoint was taken");
                self.checkpoints.taken += 1;
                if let Some(standing) = standing {
                    self.adopt_standing(standing);
                }
                self.on_installed(checkpoint);
                self.notify(Notification::CheckpointTaken(slot));
                Ok(CheckpointTaken { slot, bytes })
            }
            Err(error) => {
                tracing::error!(%error, "a checkpoint could not be taken; the ones before are as they were");
                self.checkpoints.failed += 1;
                self.checkpoints.error = error.to_string();
                self.checkpoints.not_before = self.clock.now + RETRY_AFTER;
                self.notify(Notification::CheckpointFailed);
                Err(Failure::Rejected(Reason::CheckpointFailed(error.to_string())))
            }
        };
        for reply in waiting {
            let _ = reply.send(outcome.clone());
        }
    }

    /// A checkpoint counts: the log needs no longer reach below the oldest one that is kept.
    pub(super) fn on_installed(&mut self, checkpoint: Checkpoint) {
        let checkpoints = &mut self.checkpoints;
        checkpoints.error.clear();
        checkpoints.log_from = checkpoints.log_from.max(checkpoint.log_from);
        if checkpoint.id.slot > checkpoints.newest_slot() {
            checkpoints.newest = Some(checkpoint);
        }
        self.trim_log();
    }

    fn trim_log(&mut self) {
        let summary = self.checkpoints.steps.summary();
        let installed = &summary.installed;
        // A checkpoint that a peer reads is kept longer than others, and the log behind it, so that the
        // peer need not begin again; but not more of the log than as much again as is kept anyway.
        let (keep, log_bytes) =
            (self.options.checkpoints_kept.max(1), self.options.checkpoint_log_bytes);
        let own = log_bytes.saturating_mul(keep as u64).saturating_add(self.log_tail_bytes());
        let held = log_bytes == 0 || self.log.disk_bytes() <= own.saturating_mul(2);
        let surplus = if held { 0 } else { installed.len().saturating_sub(keep) };
        let Some(oldest) = installed.get(surplus) else { return };
        if self.log_failure.is_some() {
            return;
        }
        let below = oldest.id.slot.next();
        if let Err(error) = self.log.trim_keeping(below, self.log_tail_bytes()) {
            self.fail_log(&error);
            return;
        }
        let first = self.log.first_slot().max(self.checkpoints.log_from);
        if let Some(core) = &mut self.core {
            core.on_log_trimmed(first);
        }
    }

    pub(super) fn count_received(&mut self) {
        self.checkpoints.received += 1;
    }

    fn on_restored(
        &mut self,
        machine: Box<dyn StateMachine>,
        result: Result<Option<Restored>, String>,
    ) {
        self.machine = machine;
        match result {
            Ok(Some(restored)) => self.adopt(restored),
            // Nothing good is there, and the machine is as it was: the log may reach back to the
            // beginning, or a peer has a checkpoint.
            Ok(None) => self.checkpoints.restoring = false,
            Err(what) => self
                .leave_the_quorum(&format!("the state machine could not be restored from {what}")),
        }
    }

    fn adopt(&mut self, restored: Restored) {
        let Restored { head, sessions } = restored;
        let slot = head.id.slot;
        tracing::info!(%slot, sessions = sessions.len(), "the state was restored from a checkpoint");
        self.checkpoints.restoring = false;
        self.time_ms = head.time_ms;
        self.digest = head.id.digest;
        self.shared.gate.applied(slot, self.time_ms);
        self.sessions = match self.options.is(Mutant::DropSessionsOnSnapshot) {
            true => SessionTable::restored(head.session_times),
            false => sessions,
        };
        if let Some(core) = &mut self.core {
            core.on_checkpoint(self.clock.now, slot, head.configurations);
        }
        if self.options.witness {
            self.trim_log();
            return;
        }
        // Commands of this replica's clients may have been applied below the slot: their outcomes are
        // in the table.
        if !self.origin.settle(&self.sessions, self.clock.now) {
            self.reopen_session();
        }
        self.relay.on_restored(&self.sessions);
        self.trim_log();
        self.notify(Notification::Restored(slot));
    }

    /// A checkpoint's view of this replica, for the status.
    pub(super) fn checkpoint_status(&self) -> CheckpointStatus {
        let checkpoints = &self.checkpoints;
        let summary = checkpoints.steps.summary();
        let transfer = checkpoints.transfer.as_ref().and_then(Transfer::progress);
        CheckpointStatus {
            supported: checkpoints.supported,
            kept: summary.installed.len(),
            bad: summary.bad,
            newest_slot: checkpoints.newest_slot(),
            newest_bytes: checkpoints.newest.map_or(0, |newest| newest.bytes),
            oldest_slot: summary.installed.first().map_or(Slot::ZERO, |oldest| oldest.id.slot),
            taking_bytes: checkpoints.taking.then_some(summary.taken_bytes),
            restoring: checkpoints.restoring,
            receiving: transfer.map(|(slot, next, blocks)| Receiving { slot, next, blocks }),
            taken: checkpoints.taken,
            failed: checkpoints.failed,
            received: checkpoints.received,
            log_first: self.core.as_ref().map_or(Slot::ZERO, |core| core.log_first()),
            log_disk_bytes: self.log.disk_bytes(),
            error: checkpoints.error.clone(),
        }
    }
}
