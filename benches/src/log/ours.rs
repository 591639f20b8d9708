//! The log of this project.

use super::{CIRCLE_BYTES, Clock, SEGMENT_BYTES, Side};
use bytes::Bytes;
use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot, Value, ValueKind};
use quorate_pmem_log::{Log, LogOptions, MediumKind, Record};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const NODE: NodeId = NodeId(1);
const BALLOT: Ballot = Ballot { round: 1, node: NODE };
const WARM_UP_ENTRY_BYTES: usize = 1 << 20;

fn open(medium: MediumKind, directory: &Path) -> Log {
    let options = LogOptions {
        directory: directory.to_owned(),
        medium,
        node: NODE,
        segment_bytes: SEGMENT_BYTES,
    };
    let opened = Log::open(&options, Incarnation(1), Arc::new(|| {}));
    opened.unwrap_or_else(|error| panic!("no log for the benchmark: {error}")).0
}

fn values(values: &[Bytes]) -> Vec<Value> {
    let value = |bytes: &Bytes| Value {
        kind: ValueKind::Commands,
        checksum: crc32c::crc32c(bytes),
        bytes: bytes.clone(),
    };
    values.iter().map(value).collect()
}

#[derive(Debug)]
pub(super) struct Ours {
    log: Log,
    values: Vec<Value>,
    commit_bytes: u64,
    slot: u64,
    /// Bytes since the log was last trimmed.
    untrimmed: u64,
    /// The slot at which it was.
    trimmed: u64,
}

impl Ours {
    pub(super) fn new(medium: MediumKind, directory: &Path, payloads: &[Bytes]) -> Self {
        let commit_bytes = payloads.iter().map(|value| value.len() as u64).sum();
        let log = open(medium, directory);
        let whole = Bytes::from(vec![0xa5; WARM_UP_ENTRY_BYTES]);
        let mut this = Self {
            log,
            values: values(&[whole]),
            commit_bytes: WARM_UP_ENTRY_BYTES as u64,
            slot: 0,
            untrimmed: 0,
            trimmed: 0,
        };
        // Around its segments, however small the commits are: from then on they are recycled, as those
        // of a replica are when it has run for a while, and as the file of the loop is.
        for _ in 0..CIRCLE_BYTES.div_ceil(WARM_UP_ENTRY_BYTES) + 1 {
            this.commit();
        }
        Self { values: values(payloads), commit_bytes, ..this }
    }
}

impl Side for Ours {
    fn commit(&mut self) {
        let chosen = Slot(self.slot);
        for value in &self.values {
            self.slot += 1;
            let entry = Entry { slot: Slot(self.slot), ballot: BALLOT, value: value.clone() };
            self.log.append(&Record::Entry(entry), chosen).expect("there is room");
        }
        self.log.wait_durable(self.log.appended()).expect("the disk works");
        self.untrimmed += self.commit_bytes;
        if self.untrimmed >= SEGMENT_BYTES {
            // As after a checkpoint: what is older than a segment is recycled.
            self.log.trim(Slot(self.trimmed)).expect("the disk works");
            (self.untrimmed, self.trimmed) = (0, self.slot);
        }
    }
}

/// A log to be opened again and again.
#[derive(Debug)]
pub struct Recovery {
    medium: MediumKind,
    directory: std::path::PathBuf,
    entries: u64,
}

/// Writes a log of `bytes` of payload in entries of `entry_bytes`.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn recovery_log(
    medium: MediumKind,
    directory: &Path,
    bytes: u64,
    entry_bytes: usize,
) -> Recovery {
    let mut log = open(medium, directory);
    let payload = Bytes::from((0..entry_bytes).map(|at| at as u8).collect::<Vec<_>>());
    let value = values(&[payload]).remove(0);
    let entries = bytes / entry_bytes as u64;
    for slot in 1..=entries {
        let entry = Entry { slot: Slot(slot), ballot: BALLOT, value: value.clone() };
        log.append(&Record::Entry(entry), Slot(slot - 1)).expect("there is room");
        if slot * entry_bytes as u64 % (1 << 20) < entry_bytes as u64 {
            log.wait_durable(log.appended()).expect("the disk works");
        }
    }
    log.close().expect("the disk works");
    Recovery { medium, directory: directory.to_owned(), entries }
}

impl Recovery {
    /// Opens it, reading and checking all of it; returns how long that took, and the processor's
    /// part of it.
    ///
    /// # Panics
    /// If not all of it comes back.
    #[must_use]
    pub fn open(&self) -> (Duration, Duration) {
        let begin = [Clock::Wall, Clock::Thread].map(Clock::now);
        let options = LogOptions {
            directory: self.directory.clone(),
            medium: self.medium,
            node: NODE,
            segment_bytes: SEGMENT_BYTES,
        };
        let (_log, recovered) =
            Log::open(&options, Incarnation(1), Arc::new(|| {})).expect("it opens");
        let spent = (Clock::Wall.now() - begin[0], Clock::Thread.now() - begin[1]);
        assert_eq!(recovered.last_slot, Slot(self.entries));
        assert!(recovered.damaged.is_empty());
        spent
    }
}
