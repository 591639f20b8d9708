//! Many logs, few threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::Slot;
use quorate_pmem_log::{Log, LogOptions, Lsn, MediumKind, Record, SyncPool};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::*;

/// How many logs of this process have a thread of their own.
fn own_threads() -> usize {
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| name(task.unwrap()))
        .filter(|name| name.trim() == "quorate-sync")
        .count()
}

#[test]
fn forty_logs_share_two_threads_and_each_keeps_its_own() {
    let home = directory_for(MediumKind::File);
    let pool = SyncPool::start(2).unwrap();
    let woken = Arc::new(AtomicUsize::new(0));
    let open = |number: usize| {
        let options = LogOptions {
            directory: home.path().join(number.to_string()),
            medium: MediumKind::File,
            node: NODE,
            segment_bytes: 64 << 10,
        };
        let woken = Arc::clone(&woken);
        let wake = Arc::new(move || {
            woken.fetch_add(1, Ordering::Relaxed);
        });
        Log::open_pooled(&options, FRESH, wake, &pool).unwrap()
    };
    let mut logs: Vec<Log> = (0..40).map(|number| open(number).0).collect();
    assert_eq!(own_threads(), 0);
    for round in 1..=60u64 {
        let mut last = Vec::new();
        for (number, log) in logs.iter_mut().enumerate() {
            let record = Record::Entry(entry(round, 1, 2_000 + number));
            last.push(log.append(&record, Slot(round - 1)).unwrap());
            log.flush().unwrap();
        }
        // In another order than they were asked, so that some wait for others.
        for (log, lsn) in logs.iter_mut().zip(&last).rev() {
            log.wait_durable(*lsn).unwrap();
        }
        if round % 20 == 0 {
            logs.iter_mut().for_each(|log| log.trim(Slot(round - 5)).unwrap());
        }
    }
    // A wait may end a moment before the wake that belongs to it.
    assert!(woken.load(Ordering::Relaxed) >= 40 * 59);
    assert_eq!(logs[7].durable().unwrap(), Lsn(60));
    logs.drain(..20).for_each(|log| log.close().unwrap());
    drop(logs);
    for number in 0..40 {
        let (log, recovered) = open(number);
        assert_eq!((recovered.last_slot, recovered.damaged.len()), (Slot(60), 0), "{number}");
        assert!(recovered.first_slot > Slot(1), "it was trimmed");
        let mut entries = Vec::new();
        log.read(Slot(60), 1 << 20, &mut entries).unwrap();
        assert_eq!(entries[0].value.bytes.len(), 2_000 + number);
    }
}

#[test]
fn the_threads_end_with_the_last_log() {
    let home = directory_for(MediumKind::File);
    let options = LogOptions { directory: home.path().join("log"), ..options() };
    let options = LogOptions { medium: MediumKind::File, ..options };
    let pool = SyncPool::start(1).unwrap();
    let (mut log, _) = Log::open_pooled(&options, FRESH, Arc::new(|| {}), &pool).unwrap();
    drop(pool);
    let lsn = log.append(&Record::Entry(entry(1, 1, 100)), Slot(0)).unwrap();
    log.wait_durable(lsn).unwrap();
    log.close().unwrap();
}
