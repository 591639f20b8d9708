//! Offline inspection, and logs of the past: each format version must open for ever.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::{Incarnation, Slot, Value};
use quorate_pmem_log::{
    End, Log, LogOptions, MediumKind, OpenError, Record, inspect, open_medium, verify,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;
use tempfile::TempDir;

const FIXTURE_SEGMENT: u64 = 16 << 10;
const KINDS: [MediumKind; 2] = [MediumKind::Emulated, MediumKind::File];

fn disk() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open_at(directory: &Path, kind: MediumKind) -> Log {
    let options = LogOptions {
        directory: directory.to_owned(),
        medium: kind,
        node: NODE,
        segment_bytes: FIXTURE_SEGMENT,
    };
    Log::open(&options, FRESH, Arc::new(|| {})).unwrap().0
}

/// What the fixtures hold: two lives, a promise, slots written twice, a second segment.
fn write_history(directory: &Path, kind: MediumKind) {
    let mut log = open_at(directory, kind);
    log.set_genesis("quorate fixture, format 1".into()).unwrap();
    log.append(&Record::Promise(ballot(5)), Slot::ZERO).unwrap();
    for slot in 1..=4 {
        log.append(&Record::Entry(entry(slot, 5, 1900)), Slot(slot - 1)).unwrap();
    }
    log.close().unwrap();
    let mut log = open_at(directory, kind);
    let mut noop = entry(3, 6, 0);
    noop.value = Value::noop();
    log.append(&Record::Entry(noop), Slot(3)).unwrap();
    for slot in 4..=8 {
        log.append(&Record::Entry(entry(slot, 6, 1900)), Slot(4)).unwrap();
    }
    log.append(&Record::Promise(ballot(9)), Slot(5)).unwrap();
    log.close().unwrap();
}

fn check_history(directory: &Path, kind: MediumKind) {
    let report = verify(directory).unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!((report.medium, report.openings, &report.end), (kind, 2, &End::Clean));
    assert_eq!((report.records, report.entries), (12, 10));
    assert_eq!((report.promised, report.commit_slot), (ballot(9), Slot(5)));
    assert_eq!(report.slots, Some((Slot(1), Slot(8))));
    let log = open_at(directory, kind);
    let mut expected: Vec<_> = (1..=8).map(|s| entry(s, if s < 3 { 5 } else { 6 }, 1900)).collect();
    expected[2].value = Value::noop();
    assert_eq!(read_all(&log, 1), expected);
}

#[test]
fn a_log_tells_what_it_holds_and_is_not_touched() {
    for kind in KINDS {
        let directory = disk();
        write_history(directory.path(), kind);
        let before = contents(directory.path());
        let mut records = Vec::new();
        let report = inspect(directory.path(), &mut |record| records.push(record.clone())).unwrap();
        assert_eq!(contents(directory.path()), before);
        assert_eq!(records.len() as u64, report.records);
        assert_eq!(report.identity.incarnation, FRESH);
        let slots: Vec<_> = records.iter().map(|record| record.slot.0).collect();
        assert_eq!(slots, [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 8]);
        assert!(records[0].value_kind.is_none() && records[0].ballot == ballot(5));
        check_history(directory.path(), kind);
    }
}

#[test]
fn damage_is_shown_by_verify_with_its_file_and_offset() {
    let directory = disk();
    write_history(directory.path(), MediumKind::Emulated);
    let file = directory.path().join("segment-0000000000000001");
    let mut bytes = fs::read(&file).unwrap();
    bytes[64 + 64 + 64 + 700] ^= 1; // Within the value of slot 1.
    fs::write(&file, bytes).unwrap();
    let report = verify(directory.path()).unwrap();
    assert!(!report.is_whole());
    assert_eq!(report.damaged[0].file, file);
    assert_eq!(report.damaged[0].offset, 128);
    assert_eq!(report.damaged[0].slots, Some((Slot(1), Slot(1))));
}

#[test]
fn a_log_in_use_and_a_directory_without_one_are_refused() {
    let directory = disk();
    let refused = verify(directory.path()).unwrap_err();
    assert!(matches!(refused, OpenError::NotALog { .. }), "{refused}");
    let log = open_at(directory.path(), MediumKind::File);
    let refused = verify(directory.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Locked { holder: Some(_), .. }), "{refused}");
    drop(log);
    verify(directory.path()).unwrap();
    let refused = verify(&directory.path().join("nothing")).unwrap_err();
    assert!(matches!(refused, OpenError::Io { .. }), "{refused}");
}

#[test]
fn a_shortened_segment_file_is_damage_and_not_a_crash() {
    for kind in KINDS {
        for length in [0, 5, 64, 3001, 8200] {
            let directory = disk();
            write_history(directory.path(), kind);
            let file = directory.path().join("segment-0000000000000001");
            fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length).unwrap();
            assert!(!verify(directory.path()).unwrap().is_whole());
            let medium = open_medium(kind, directory.path()).unwrap();
            let (mut log, recovered) =
                Log::open_on(medium, &options(), Incarnation(1), Arc::new(|| {})).unwrap();
            assert!(!recovered.damaged.is_empty(), "{kind} cut to {length}");
            let lsn = log.append(&Record::Entry(entry(9, 6, 1900)), Slot(5)).unwrap();
            log.wait_durable(lsn).unwrap();
            assert_eq!(read_all(&log, 9), [entry(9, 6, 1900)]);
        }
    }
}

fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = files
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn fixture(kind: MediumKind) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-1-{kind}"))
}

#[test]
fn a_log_of_format_1_opens_for_ever() {
    for kind in KINDS {
        let directory = disk();
        for (name, bytes) in contents(&fixture(kind)) {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        check_history(directory.path(), kind);
    }
}

#[test]
#[ignore = "writes the fixtures of a format version, once"]
fn write_the_fixtures() {
    for kind in KINDS {
        let directory = disk();
        write_history(directory.path(), kind);
        fs::create_dir_all(fixture(kind)).unwrap();
        for (name, bytes) in contents(directory.path()) {
            if name != "LOCK" && !name.starts_with("spare-") {
                fs::write(fixture(kind).join(name), bytes).unwrap();
            }
        }
    }
}
