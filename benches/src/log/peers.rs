//! raft-engine, the log of TiKV, told to do the same.

use super::{SEGMENT_BYTES, Side};
use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use std::path::Path;

const REGION: u64 = 1;

/// An entry is its bytes; the first eight hold its index.
#[derive(Debug)]
struct Numbered;

impl MessageExt for Numbered {
    type Entry = BytesValue;
    fn index(entry: &BytesValue) -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&entry.value[..8]);
        u64::from_le_bytes(number)
    }
}

pub(super) struct RaftEngine {
    engine: Engine,
    batch: LogBatch,
    entries: Vec<BytesValue>,
    commit_bytes: u64,
    index: u64,
    uncompacted: u64,
    compacted: u64,
}

impl std::fmt::Debug for RaftEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftEngine").field("index", &self.index).finish_non_exhaustive()
    }
}

impl RaftEngine {
    pub(super) fn new(directory: &Path, payloads: &[Bytes]) -> Self {
        let config = Config {
            dir: directory.to_string_lossy().into_owned(),
            // No compression: the bytes are to be the same.
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(SEGMENT_BYTES),
            purge_threshold: ReadableSize(2 * SEGMENT_BYTES),
            enable_log_recycle: true,
            ..Config::default()
        };
        let engine = Engine::open(config).expect("an engine for the benchmark");
        let entry = |payload: &Bytes| {
            let mut entry = BytesValue::new();
            entry.set_value(payload.to_vec());
            entry
        };
        let entries = payloads.iter().map(entry).collect();
        let commit_bytes = payloads.iter().map(|value| value.len() as u64).sum();
        let batch = LogBatch::default();
        Self { engine, batch, entries, commit_bytes, index: 0, uncompacted: 0, compacted: 0 }
    }
}

impl Side for RaftEngine {
    fn commit(&mut self) {
        for entry in &mut self.entries {
            self.index += 1;
            entry.value[..8].copy_from_slice(&self.index.to_le_bytes());
        }
        let added = self.batch.add_entries::<Numbered>(REGION, &self.entries);
        added.expect("the batch is not too large");
        self.engine.write(&mut self.batch, true).expect("the disk works");
        self.uncompacted += self.commit_bytes;
        if self.uncompacted >= SEGMENT_BYTES {
            self.engine.compact_to(REGION, self.compacted);
            self.engine.purge_expired_files().expect("the disk works");
            (self.uncompacted, self.compacted) = (0, self.index);
        }
    }
}
