//! The worker: one piece of work after the other.

use super::image::{IMAGE_PIECE_BYTES, read_state};
use super::{Done, Job, Restored, Shared, Source};
use crate::machine::StateMachine;
use bytes::{Bytes, BytesMut};
use quorate_consensus::{Message, Nanos, NodeId, Slot};
use quorate_pmem_log::{
    Checkpoint, CheckpointError, CheckpointId, CheckpointReceiver, CheckpointStore,
    CheckpointWriter,
};
use std::io::{self, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A checkpoint that a peer read from within this time is not removed: it would have to begin again.
const PIN_FOR: Nanos = Nanos::from_millis(30_000);
/// So many checkpoints at the most are kept for peers beside the others; the oldest reader loses.
const PINS_MAX: usize = 2;

struct Taking {
    source: Source,
    writer: CheckpointWriter,
}

pub(super) struct Worker {
    store: CheckpointStore,
    shared: Arc<Shared>,
    taking: Option<Taking>,
    receiving: Option<CheckpointReceiver>,
    /// What peers read from, and when they last did.
    pins: Vec<(Slot, Nanos)>,
    now: Nanos,
    piece: BytesMut,
    /// Jobs and the checkpoint at hand take turns.
    job_was_last: bool,
}

/// A panic of the user's code costs what it was called for, not the worker.
fn catch<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let panicked = |_| Err(io::Error::other("the state machine panicked"));
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(panicked)
}

impl Worker {
    pub(super) fn new(store: CheckpointStore, shared: Arc<Shared>) -> Self {
        let worker = Self {
            store,
            shared,
            taking: None,
            receiving: None,
            pins: Vec::new(),
            now: Nanos(0),
            piece: BytesMut::new(),
            job_was_last: false,
        };
        worker.summarize();
        worker
    }

    /// One piece of work; returns the bytes moved.
    pub(super) fn step(&mut self) -> u64 {
        let goes_on = self.taking.is_some() && self.job_was_last;
        let job = if goes_on { None } else { self.shared.desk().jobs.pop_front() };
        self.job_was_last = job.is_some();
        let moved = match job {
            Some(job) => self.act(job),
            None => self.take_more(),
        };
        self.summarize();
        moved
    }

    fn act(&mut self, job: Job) -> u64 {
        match job {
            Job::Take { id, source, now } => {
                self.now = self.now.max(now);
                self.set_receiver_aside();
                match self.store.create(id) {
                    Ok(writer) => self.taking = Some(Taking { source, writer }),
                    Err(error) => self.report(Done::Taken(Err(error))),
                }
                0
            }
            Job::Write { id, blocks, commit_slot, now } => {
                self.now = self.now.max(now);
                let bytes = blocks.len() as u64;
                let result = self.write(id, &blocks, commit_slot);
                let next = self.receiving.as_ref().map_or(0, CheckpointReceiver::next);
                self.report(Done::Written { id, next, result });
                bytes
            }
            Job::Read { to, cluster, at_least, want, bytes_max, now } => {
                self.now = self.now.max(now);
                self.read(to, cluster, at_least, want, bytes_max)
            }
            Job::Restore { machine, at_least } => {
                self.restore(machine, at_least);
                0
            }
        }
    }

    fn take_more(&mut self) -> u64 {
        let Some(mut taking) = self.taking.take() else { return 0 };
        self.piece.clear();
        let made = catch(|| {
            let mut more = true;
            while more && self.piece.len() < IMAGE_PIECE_BYTES {
                more = taking.source.next(&mut self.piece);
            }
            Ok(more)
        });
        let more = match made {
            Ok(more) => more,
            Err(error) => {
                taking.writer.abandon();
                let what = error.to_string().into();
                self.report(Done::Taken(Err(CheckpointError::Failed { what })));
                return 0;
            }
        };
        let moved = self.piece.len() as u64;
        match taking.writer.write(&self.piece) {
            Ok(()) if more => self.taking = Some(taking),
            Ok(()) => {
                let taken = taking.writer.finish().and_then(|finished| self.install(finished));
                self.report(Done::Taken(taken));
            }
            Err(error) => {
                taking.writer.abandon();
                self.report(Done::Taken(Err(error)));
            }
        }
        moved
    }

    fn install(
        &mut self,
        finished: quorate_pmem_log::Finished,
    ) -> Result<Checkpoint, CheckpointError> {
        let log_from = self.store.log_from();
        let installed = self.store.install(finished, log_from)?;
        self.prune();
        Ok(installed)
    }

    fn prune(&mut self) {
        let now = self.now;
        self.pins.retain(|(_, read_at)| now.since(*read_at) < PIN_FOR);
        let pinned: Vec<Slot> = self.pins.iter().map(|(slot, _)| *slot).collect();
        if let Err(error) = self.store.prune(&pinned) {
            tracing::warn!(%error, "an old checkpoint cannot be removed; it is tried again");
        }
    }

    fn write(
        &mut self,
        id: CheckpointId,
        blocks: &[u8],
        commit_slot: Slot,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        if self.receiving.as_ref().is_none_or(|receiver| receiver.id() != id) {
            // Another one than was begun: a newer one, or that of another source.
            if let Some(other) = self.receiving.take() {
                other.abandon();
            }
            if let Some(taking) = self.taking.take() {
                taking.writer.abandon();
                let what = "a checkpoint of a peer is received instead".into();
                self.report(Done::Taken(Err(CheckpointError::Failed { what })));
            }
            self.receiving = Some(self.store.receive(id)?);
        }
        let Some(receiver) = &mut self.receiving else { return Ok(None) };
        // A process that died between the last block and the certificate left all blocks: nothing has
        // to come any more, and no source has what would.
        let complete = receiver.is_whole();
        if !complete && let Err(error) = receiver.take(blocks) {
            if receiver.is_poisoned()
                && let Some(receiver) = self.receiving.take()
            {
                receiver.abandon();
            }
            return Err(error);
        }
        if !receiver.is_whole() {
            return Ok(None);
        }
        let Some(receiver) = self.receiving.take() else { return Ok(None) };
        // What the log has of slots that were not known chosen is passed over.
        let passed = id.slot > commit_slot;
        let log_from = if passed { id.slot.next() } else { self.store.log_from() };
        let installed = self.store.install(receiver.finish()?, log_from)?;
        self.prune();
        Ok(Some(installed))
    }

    fn set_receiver_aside(&mut self) {
        if let Some(receiver) = self.receiving.take() {
            self.store.set_aside(&receiver);
        }
    }

    /// Reads blocks for a peer, and answers. A checkpoint that turns out to be bad is not offered
    /// again.
    fn read(
        &mut self,
        to: NodeId,
        cluster: u64,
        at_least: Slot,
        want: Option<(CheckpointId, u64)>,
        bytes_max: usize,
    ) -> u64 {
        loop {
            let installed = self.store.installed();
            let wanted = want.and_then(|(id, first)| {
                let found = installed.iter().find(|found| found.id == id);
                found.filter(|found| first < found.blocks).map(|found| (*found, first))
            });
            // One from before a recovery (rule F7) names the cluster that was lost.
            let mut ours = installed.iter().filter(|found| found.id.cluster == cluster);
            let newest = ours.next_back().filter(|newest| newest.id.slot >= at_least);
            let Some((checkpoint, first)) = wanted.or(newest.map(|newest| (*newest, 0))) else {
                let message = Message::SnapshotReply {
                    slot: Slot::ZERO,
                    digest: 0,
                    blocks: 0,
                    first: 0,
                    bytes: Bytes::new(),
                };
                self.report(Done::Blocks { to, message });
                return 0;
            };
            let slot = checkpoint.id.slot;
            match self.store.blocks(&checkpoint, first, bytes_max) {
                Ok(bytes) => {
                    let moved = bytes.len() as u64;
                    self.pin(slot);
                    let (digest, blocks) = (checkpoint.id.digest, checkpoint.blocks);
                    let bytes = bytes.into();
                    let message = Message::SnapshotReply { slot, digest, blocks, first, bytes };
                    self.report(Done::Blocks { to, message });
                    return moved;
                }
                Err(error) => {
                    tracing::error!(%error, "a checkpoint of this replica is not used any more");
                    self.store.distrust(slot);
                }
            }
        }
    }

    fn pin(&mut self, slot: Slot) {
        self.pins.retain(|(pinned, _)| *pinned != slot);
        self.pins.push((slot, self.now));
        if self.pins.len() > PINS_MAX {
            self.pins.remove(0);
        }
    }

    /// Restores the machine from the newest checkpoint that is whole; one that is not is passed over
    /// for the one before.
    fn restore(&mut self, mut machine: Box<dyn StateMachine>, at_least: Slot) {
        let mut result = Ok(None);
        while let Some(checkpoint) = self.store.installed().last().copied()
            && checkpoint.id.slot >= at_least
        {
            let slot = checkpoint.id.slot;
            // All of it is checked before the machine sees any of it.
            if let Err(error) = self.store.verify(&checkpoint) {
                tracing::error!(%error, "a checkpoint is damaged; the one before is used");
                self.store.distrust(slot);
                continue;
            }
            match catch(|| self.load(machine.as_mut(), &checkpoint)) {
                Ok(restored) => {
                    result = Ok(Some(restored));
                    break;
                }
                Err(error) => {
                    tracing::error!(%slot, %error, "the state machine refuses a checkpoint");
                    self.store.distrust(slot);
                    result = Err(format!("the checkpoint at slot {slot}: {error}"));
                }
            }
        }
        self.report(Done::Restored { machine, result });
    }

    fn load(
        &self,
        machine: &mut dyn StateMachine,
        checkpoint: &Checkpoint,
    ) -> io::Result<Restored> {
        let reader = self.store.reader(checkpoint).map_err(io::Error::other)?;
        let mut image = BufReader::with_capacity(64 << 10, reader);
        let (head, sessions) = read_state(&mut image)?;
        if head.id != checkpoint.id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it belongs to another slot"));
        }
        machine.restore(&mut image)?;
        Ok(Restored { head, sessions })
    }

    fn report(&self, done: Done) {
        // Whoever sees the result sees what the store holds since.
        self.summarize();
        self.shared.desk().done.push_back(done);
        self.shared.wake.wake();
    }

    fn summarize(&self) {
        let mut desk = self.shared.desk();
        desk.taking = self.taking.is_some();
        let receiving = self.receiving.as_ref().map(|receiver| (receiver.id(), receiver.next()));
        desk.summary.installed.clear();
        desk.summary.installed.extend_from_slice(self.store.installed());
        desk.summary.bad = self.store.bad().len();
        desk.summary.partial = receiving.or(self.store.partial());
        desk.summary.taken_bytes = self.taking.as_ref().map_or(0, |taking| taking.writer.bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::checkpoint::{CheckpointSteps, Head};
    use crate::machine::CheckpointView;
    use quorate_consensus::session::SessionTable;
    use quorate_consensus::{Configuration, Configurations, Incarnation, Member};
    use quorate_pmem_log::MappedMedium;
    use quorate_transport::Wake;

    struct Empty;

    impl CheckpointView for Empty {
        fn next_piece(&mut self, _: &mut BytesMut) -> bool {
            false
        }
    }

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    fn id(slot: u64) -> CheckpointId {
        CheckpointId { slot: Slot(slot), digest: slot, cluster: 7 }
    }

    fn source(slot: u64) -> Source {
        let voter = |node| Member { node: NodeId(node), incarnation: Incarnation(9) };
        let voters = Configuration::of_voters(1, (1..=3).map(voter).collect());
        let head = Head {
            id: id(slot),
            time_ms: 0,
            session_times: (0, 0),
            configurations: Configurations::new(voters),
        };
        Source::new(head, SessionTable::restored((0, 0)), Box::new(Empty))
    }

    #[test]
    fn what_a_peer_read_from_is_kept_for_a_while_and_no_longer() {
        let store = CheckpointStore::open(Arc::new(MappedMedium::memory()), 2).unwrap();
        let (steps, _) = CheckpointSteps::new(store, Arc::new(Nobody));
        let run = |job| {
            assert!(steps.submit(job));
            while steps.is_due() {
                steps.step();
            }
            let kept: Vec<u64> =
                steps.summary().installed.iter().map(|found| found.id.slot.0).collect();
            kept
        };
        let take = |slot, now| {
            run(Job::Take { id: id(slot), source: source(slot), now: Nanos::from_millis(now) })
        };
        let read = |slot, now| {
            run(Job::Read {
                to: NodeId(2),
                cluster: 7,
                at_least: Slot(1),
                want: Some((id(slot), 0)),
                bytes_max: 1 << 20,
                now: Nanos::from_millis(now),
            })
        };
        take(10, 1_000);
        assert_eq!(read(10, 2_000), [10]);
        take(20, 3_000);
        assert_eq!(take(30, 4_000), [10, 20, 30]);
        // Nobody read from it since, and nobody reads from any other.
        assert_eq!(take(40, 33_000), [30, 40]);
        // Of many that are read from the latest two are kept beside the others.
        for slot in [50, 60, 70, 80] {
            take(slot, 34_000);
            read(slot, 34_000);
        }
        assert_eq!(take(90, 34_000), [70, 80, 90]);
        assert_eq!(take(100, 34_000), [70, 80, 90, 100]);
        assert_eq!(take(110, 34_000), [70, 80, 100, 110]);
    }

    // Rule K6.
    #[test]
    fn a_checkpoint_that_was_whole_when_its_receiver_died_is_installed_at_the_next_blocks() {
        let memory = || Arc::new(MappedMedium::memory());
        let store =
            |medium: &Arc<MappedMedium>| CheckpointStore::open(Arc::clone(medium) as _, 2).unwrap();
        let mut source = store(&memory());
        let mut writer = source.create(id(12)).unwrap();
        writer.write(&[7; 1000]).unwrap();
        let checkpoint = source.install(writer.finish().unwrap(), Slot(1)).unwrap();
        let blocks = source.blocks(&checkpoint, 0, usize::MAX).unwrap();
        let here = memory();
        store(&here).receive(id(12)).unwrap().take(&blocks).unwrap();
        // It dies before the certificate.
        let (steps, _) = CheckpointSteps::new(store(&here), Arc::new(Nobody));
        let begun = steps.summary().partial;
        assert_eq!(begun, Some((id(12), checkpoint.blocks)), "nothing is missing");
        // A source has no block behind the last, and begins at the first.
        let commit_slot = Slot(5);
        let now = Nanos::from_millis(1);
        steps.submit(Job::Write { id: id(12), blocks: blocks.into(), commit_slot, now });
        steps.step();
        let Some(Done::Written { result, .. }) = steps.poll() else { panic!("nothing was done") };
        assert_eq!(result.unwrap().map(|installed| installed.id), Some(id(12)));
        assert_eq!(steps.summary().installed.len(), 1);
    }
}
