//! The steady state allocates nothing for a record.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::Slot;
use quorate_pmem_log::{Log, LogOptions, MediumKind, Record};
use std::sync::Arc;
use support::*;

const RECORDS: u64 = 6400;
/// The index takes an entry for 64 slots, and a tree node for about half a dozen of those.
const ALLOCATIONS_MAX: u64 = RECORDS / 64;

#[test]
fn appending_and_flushing_allocates_nothing_for_a_record() {
    let kinds = directory_kinds().into_iter().chain([MediumKind::Memory]);
    for kind in kinds {
        let directory = directory_for(kind);
        let options = LogOptions {
            directory: directory.path().to_owned(),
            medium: kind,
            node: NODE,
            segment_bytes: 16 << 20,
        };
        let (mut log, _) = Log::open(&options, FRESH, Arc::new(|| {})).unwrap();
        let records: Vec<_> =
            (1..=RECORDS + 100).map(|s| Record::Entry(entry(s, 1, 256))).collect();
        let (warm, steady) = records.split_at(100);
        let mut run = |records: &[Record]| {
            for batch in records.chunks(64) {
                for record in batch {
                    log.append(record, Slot(1)).unwrap();
                    log.flush().unwrap();
                }
                log.wait_durable(log.appended()).unwrap();
            }
        };
        run(warm);
        let counted = allocation_counter::measure(|| run(steady));
        assert!(counted.count_total <= ALLOCATIONS_MAX, "{kind}: {counted:?}");
    }
}
