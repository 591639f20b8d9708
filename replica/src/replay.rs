//! Offline replay: the state that a directory holds, as of any slot that it knows to be chosen.
//!
//! What a restart does (rule K7), without a replica: the newest good checkpoint at or below the slot,
//! then the log. Nothing in the directory is changed, and a replica that runs on it is refused.

use crate::checkpoint::read_state;
use crate::machine::{Context, StateMachine};
use crate::replies::Replies;
use bytes::Buf;
use quorate_consensus::batch::{CONTROL_SESSION, Group, SessionCommand, take_group, take_item};
use quorate_consensus::session::{Admission, SessionTable};
use quorate_consensus::{Genesis, NodeId, Slot, Value, ValueKind};
use quorate_pmem_log::{Checkpoint, CheckpointStore, LogError, LogReader, OpenError};
use std::io::{self, BufReader};
use std::path::Path;

/// Payload bytes that are read from the log at a time.
const READ_BYTES: usize = 4 << 20;

/// The fingerprint of a history, after one more word of it.
pub(crate) fn chained(digest: u64, word: u64) -> u64 {
    // The finaliser of SplitMix64: a difference anywhere changes all that follows.
    let mut z = (digest ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Why a directory could not be replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The log could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A slot could not be read.
    #[error("the log cannot be replayed any further: {0}")]
    Log(#[from] LogError),
    /// The checkpoints could not be looked at.
    #[error("the checkpoints beside the log cannot be read: {0}")]
    Checkpoints(#[source] io::Error),
    /// The replica has never been part of a cluster.
    #[error("this replica has not been part of a cluster yet: there is nothing to replay")]
    NotFounded,
    /// It is a witness's.
    #[error("this directory is a witness's, which keeps no values: replay the one of a voter")]
    Witness,
    /// The founding document cannot be read.
    #[error("the founding document cannot be read: replay with the version that wrote it")]
    Genesis,
    /// The slot is above what this directory knows to be chosen.
    #[error(
        "slot {asked} is not known to be chosen here: this replica knows it of the slots up to {chosen} \
         (it has accepted values up to slot {accepted}, and something else may have been chosen there). \
         Replay to {chosen}, or the directory of a replica that knows more"
    )]
    NotChosen {
        /// The slot asked for.
        asked: Slot,
        /// The highest slot known chosen.
        chosen: Slot,
        /// The highest slot accepted.
        accepted: Slot,
    },
    /// What leads to the slot is not there any more.
    #[error(
        "slot {asked} cannot be reached: slot {missing} stands neither in the log nor in a checkpoint at \
         or below slot {asked} ({why}). The state can be had as of {can}"
    )]
    Missing {
        /// The slot asked for.
        asked: Slot,
        /// The first one that is missing.
        missing: Slot,
        /// Why it is.
        why: &'static str,
        /// Which slots can be reached.
        can: String,
    },
    /// The state machine refused a checkpoint that is whole.
    #[error("the state machine refuses the checkpoint at slot {slot}: {source}")]
    Restore {
        /// The checkpoint's slot.
        slot: Slot,
        /// What it said.
        source: io::Error,
    },
}

/// One slot that was replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replayed {
    /// Which.
    pub slot: Slot,
    /// What it holds.
    pub kind: ValueKind,
    /// Commands that it applied; those that had been applied before are not counted.
    pub commands: u64,
    /// The fingerprint of the history up to here, as [`crate::Status::digest`] has it.
    pub digest: u64,
}

/// The replicated state of a replica that does not run.
pub struct Replay<M> {
    log: LogReader,
    cluster: u64,
    /// The highest slot known chosen.
    chosen: Slot,
    to: Slot,
    from: Slot,
    applied: Slot,
    machine: M,
    sessions: SessionTable,
    time_ms: u64,
    digest: u64,
    replies: Replies,
}

impl<M> std::fmt::Debug for Replay<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl<M: StateMachine> Replay<M> {
    /// Opens the log in `directory` for a replay to slot `to`, or to the highest one that it knows to be
    /// chosen. `machine` is empty, and made as the replica's was.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn open(directory: &Path, machine: M, to: Option<Slot>) -> Result<Self, ReplayError> {
        let log = LogReader::open(directory)?;
        let recovered = log.recovered();
        let genesis = recovered.identity.genesis.as_ref().ok_or(ReplayError::NotFounded)?;
        let cluster = Genesis::decode(genesis).ok_or(ReplayError::Genesis)?.cluster;
        let store = log.checkpoints().map_err(ReplayError::Checkpoints)?;
        let good: Vec<Checkpoint> =
            store.installed().iter().filter(|found| store.verify(found).is_ok()).copied().collect();
        // Behind damage stands what may not be the newest that was accepted.
        let in_log = recovered.commit_slot.min(recovered.intact_through);
        let newest = good.last().map_or(Slot::ZERO, |newest| newest.id.slot);
        let chosen = in_log.max(newest);
        let to = to.unwrap_or(chosen);
        if to > chosen {
            let accepted = recovered.last_slot.max(chosen);
            return Err(ReplayError::NotChosen { asked: to, chosen, accepted });
        }
        let start = good.iter().rfind(|found| found.id.slot <= to).copied();
        let from = start.map_or(Slot::ZERO, |found| found.id.slot);
        let first_usable = store.log_from().max(recovered.first_slot);
        let missing = |missing, why| {
            let mut can: Vec<String> = good.iter().map(|found| found.id.slot.to_string()).collect();
            let beyond = Slot(first_usable.0.saturating_sub(1));
            let base = good.iter().map(|found| found.id.slot).chain([Slot::ZERO]);
            if let Some(base) = base.filter(|base| *base >= beyond && *base < in_log).min() {
                can.push(format!("any slot from {base} to {in_log}"));
            }
            ReplayError::Missing { asked: to, missing, why, can: can.join(", ") }
        };
        if to > from && from.next() < first_usable {
            return Err(missing(
                from.next(),
                "the log was trimmed, or passed over by a checkpoint",
            ));
        }
        if to > from && to > in_log {
            return Err(missing(in_log.max(from).next(), "the log is damaged there"));
        }
        let mut replay = Self {
            cluster,
            chosen,
            to,
            from,
            applied: from,
            machine,
            sessions: SessionTable::new(),
            time_ms: 0,
            digest: 0,
            replies: Replies::default(),
            log,
        };
        if let Some(start) = start {
            replay.restore(&store, &start)?;
        }
        Ok(replay)
    }

    fn restore(&mut self, store: &CheckpointStore, from: &Checkpoint) -> Result<(), ReplayError> {
        let slot = from.id.slot;
        let mut restored = || {
            let reader = store.reader(from).map_err(io::Error::other)?;
            let mut image = BufReader::with_capacity(64 << 10, reader);
            let (head, sessions) = read_state(&mut image)?;
            self.machine.restore(&mut image)?;
            Ok((head, sessions))
        };
        let (head, sessions) =
            restored().map_err(|source| ReplayError::Restore { slot, source })?;
        (self.sessions, self.time_ms, self.digest) = (sessions, head.time_ms, head.id.digest);
        Ok(())
    }

    /// Applies the log up to the slot that was asked for, and calls `each` after every slot.
    ///
    /// # Errors
    /// [`ReplayError::Log`].
    pub fn run(&mut self, each: &mut dyn FnMut(&Replayed)) -> Result<(), ReplayError> {
        let mut entries = Vec::new();
        while self.applied < self.to {
            let first = self.applied.next();
            self.log.read(first, READ_BYTES, &mut entries)?;
            if entries.first().is_none_or(|entry| entry.slot != first) {
                let what = "it is not in the log";
                return Err(LogError::Damaged { slot: first, what }.into());
            }
            let to = self.to;
            for entry in entries.drain(..).take_while(|entry| entry.slot <= to) {
                if entry.value.is_withheld() {
                    return Err(ReplayError::Witness);
                }
                let commands = self.apply(entry.slot, &entry.value);
                self.applied = entry.slot;
                let (kind, digest) = (entry.value.kind, self.digest);
                each(&Replayed { slot: entry.slot, kind, commands, digest });
            }
        }
        Ok(())
    }

    /// As a replica applies a chosen value, without anybody to answer.
    fn apply(&mut self, slot: Slot, value: &Value) -> u64 {
        self.digest = chained(self.digest, slot.0 << 32 | u64::from(value.checksum));
        if value.kind != ValueKind::Commands || value.bytes.len() < 8 {
            return 0;
        }
        let mut bytes = value.bytes.clone();
        let stamp = bytes.get_u64_le();
        if stamp > self.time_ms {
            self.time_ms = stamp;
            self.sessions.advance(stamp);
            self.machine.advance(stamp);
        }
        let mut applied = 0;
        while let Some(group) = take_group(&mut bytes) {
            applied += self.apply_group(slot, &group);
        }
        applied
    }

    fn apply_group(&mut self, slot: Slot, group: &Group) -> u64 {
        let header = &group.header;
        if header.session == CONTROL_SESSION {
            let mut commands = &group.commands[..];
            while let Some(item) = take_item(&mut commands) {
                if let Some(command) = SessionCommand::decode(item) {
                    self.sessions.control(slot, command);
                }
            }
            return 0;
        }
        let Admission::Apply { known } = self.sessions.admit(slot, header) else { return 0 };
        let context = Context { slot, time_ms: self.time_ms };
        let replies = self.replies.of_commands(&mut self.machine, &context, group, known);
        self.digest = chained(self.digest, u64::from(crc32c::crc32c(&replies)));
        let (first, count) = (header.first_sequence + u64::from(known), header.count - known);
        self.sessions.record(header.session, first, count, replies);
        u64::from(count)
    }

    /// Whose directory it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.log.recovered().identity.node
    }

    /// Of which cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// The slot of the checkpoint that the replay began with; 0 for none.
    #[must_use]
    pub fn from(&self) -> Slot {
        self.from
    }

    /// The highest slot that the directory knows to be chosen.
    #[must_use]
    pub fn chosen(&self) -> Slot {
        self.chosen
    }

    /// The highest slot that was accepted; above [`Replay::chosen`] it is not certain what was chosen.
    #[must_use]
    pub fn accepted(&self) -> Slot {
        self.log.recovered().last_slot.max(self.chosen)
    }

    /// What was applied.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.applied
    }

    /// The fingerprint of the history up to there, as [`crate::Status::digest`] has it.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Replicated time, in milliseconds since 1970.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The state.
    #[must_use]
    pub fn machine(&self) -> &M {
        &self.machine
    }
}
