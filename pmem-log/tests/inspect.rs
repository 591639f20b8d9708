//! Offline inspection, and logs of the past: each format version must open for ever.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::{Incarnation, Slot, Value};
use quorate_pmem_log::{
    Boot, End, Log, LogOptions, Lsn, MappedMedium, Medium, MediumKind, OpenError, Record,
    Recovered, export, inspect, open_medium, truncation, verify,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;
use tempfile::TempDir;

const FIXTURE_SEGMENT: u64 = 16 << 10;
/// The formats that there were, and the media of each.
const FIXTURES: [(u32, &[MediumKind]); 2] = [
    (1, &[MediumKind::Emulated, MediumKind::File]),
    (2, &[MediumKind::Emulated, MediumKind::File, MediumKind::Dax]),
];
/// The life of the machine that wrote them.
const FIXTURE_BOOT: Boot = Boot(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

fn disk() -> TempDir {
    directory_for(MediumKind::File)
}

fn open_at(directory: &Path, kind: MediumKind) -> Log {
    open_in(directory, kind, FIXTURE_BOOT).0
}

fn open_in(directory: &Path, kind: MediumKind, boot: Boot) -> (Log, Recovered) {
    let medium: Arc<dyn Medium> = match kind {
        MediumKind::Emulated => Arc::new(MappedMedium::open_in(directory, boot).unwrap()),
        _ => open_medium(kind, directory).unwrap(),
    };
    let options = LogOptions { segment_bytes: FIXTURE_SEGMENT, ..options() };
    Log::open_on(medium, &options, FRESH, Arc::new(|| {})).unwrap()
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
    for kind in directory_kinds() {
        let directory = directory_for(kind);
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
    for kind in directory_kinds() {
        for length in [0, 5, 64, 3001, 8200] {
            let directory = directory_for(kind);
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

fn fixture(format: u32, kind: MediumKind) -> PathBuf {
    let name = format!("tests/fixtures/format-{format}-{kind}");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A copy of a fixture that may be written to.
fn copy_of_fixture(format: u32, kind: MediumKind) -> TempDir {
    let directory = directory_for(kind);
    for (name, bytes) in contents(&fixture(format, kind)) {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

#[test]
fn a_log_of_any_format_opens_for_ever() {
    let here = directory_kinds();
    for (format, kinds) in FIXTURES {
        for kind in kinds.iter().filter(|kind| here.contains(kind)) {
            check_history(copy_of_fixture(format, *kind).path(), *kind);
        }
        // Any file system will do to look at them.
        for kind in kinds {
            assert!(verify(&fixture(format, *kind)).unwrap().is_whole());
        }
    }
}

#[test]
fn a_log_of_format_1_is_certain_only_where_it_survived_the_machine() {
    let (_, recovered) =
        open_in(copy_of_fixture(1, MediumKind::File).path(), MediumKind::File, FIXTURE_BOOT);
    assert!(recovered.promise_certain && !recovered.outlived);
    // It does not name the life of the machine in which it was written, so that was another one.
    let (_, recovered) = open_in(
        copy_of_fixture(1, MediumKind::Emulated).path(),
        MediumKind::Emulated,
        FIXTURE_BOOT,
    );
    assert!(!recovered.promise_certain && recovered.outlived);
    for (boot, outlived) in [(FIXTURE_BOOT, false), (Boot(7), true)] {
        let directory = copy_of_fixture(2, MediumKind::Emulated);
        let (_, recovered) = open_in(directory.path(), MediumKind::Emulated, boot);
        assert_eq!((recovered.promise_certain, recovered.outlived), (!outlived, outlived));
    }
}

#[test]
#[ignore = "writes the fixtures of a format version, once"]
fn write_the_fixtures() {
    let Some((format, kinds)) = FIXTURES.last() else { return };
    for kind in directory_kinds().into_iter().filter(|kind| kinds.contains(kind)) {
        let directory = directory_for(kind);
        write_history(directory.path(), kind);
        fs::create_dir_all(fixture(*format, kind)).unwrap();
        for (name, bytes) in contents(directory.path()) {
            if name != "LOCK" && !name.starts_with("spare-") {
                fs::write(fixture(*format, kind).join(name), bytes).unwrap();
            }
        }
    }
}

#[test]
fn what_is_exported_is_what_was_appended() {
    let disk = disk();
    write_history(disk.path(), MediumKind::Emulated);
    let before = contents(disk.path());
    let mut values = 0;
    let mut payload = 0;
    let report = export(disk.path(), &mut |record, value| {
        assert_eq!(crc32c::crc32c(value), record.value_checksum);
        assert_eq!(value.len(), record.payload_bytes);
        assert!(record.promised >= record.ballot && record.durable <= report_position(record));
        values += u64::from(record.value_kind.is_some());
        payload += value.len() as u64;
    })
    .unwrap();
    assert_eq!((values, payload), (report.entries, report.payload_bytes));
    assert!(values > 0 && report.durable == report.ends_at, "{report:?}");
    assert_eq!(contents(disk.path()), before, "exporting writes nothing");
}

fn report_position(record: &quorate_pmem_log::RecordSummary) -> u64 {
    record.segment * FIXTURE_SEGMENT + record.offset
}

#[test]
fn a_torn_tail_is_told_as_opening_cuts_it() {
    for kind in [MediumKind::Emulated, MediumKind::File] {
        let disk = disk();
        let mut log = open_at(disk.path(), kind);
        for slot in 1..=3 {
            log.append(&Record::Entry(entry(slot, 1, 100)), Slot::ZERO).unwrap();
        }
        log.wait_durable(Lsn(u64::MAX)).unwrap();
        let sealed = contents(disk.path());
        log.append(&Record::Entry(entry(4, 1, 100)), Slot::ZERO).unwrap();
        log.append(&Record::Entry(entry(5, 1, 100)), Slot::ZERO).unwrap();
        log.wait_durable(Lsn(u64::MAX)).unwrap();
        drop(log);
        // The process died before it sealed the log, and of the last batch only the second record is
        // whole.
        let name = "segment-0000000000000001";
        let (_, superblock) = &sealed[sealed.iter().position(|(n, _)| n == "superblock").unwrap()];
        fs::write(disk.path().join("superblock"), superblock).unwrap();
        let mut segment = fs::read(disk.path().join(name)).unwrap();
        let slot_4 = find_record(&segment, 4);
        segment[slot_4 + 70] ^= 1;
        fs::write(disk.path().join(name), &segment).unwrap();
        let before = contents(disk.path());
        let told = truncation(disk.path()).unwrap();
        assert_eq!(contents(disk.path()), before, "reporting writes nothing");
        let cut = told.cut.unwrap();
        assert_eq!((cut.from, cut.file.file_name().unwrap().to_str()), (slot_4 as u64, Some(name)));
        let slots: Vec<_> = cut.records.iter().map(|record| record.slot.0).collect();
        assert_eq!(slots, [4, 5], "{kind}");
        assert!(told.removed.is_empty() && told.report.is_whole());
        let log = open_at(disk.path(), kind);
        let mut entries = Vec::new();
        log.read(Slot(1), usize::MAX, &mut entries).unwrap();
        assert_eq!(entries.len(), 3, "{kind}: opening cuts what was told");
        drop(log);
        assert_eq!(truncation(disk.path()).unwrap().cut, None, "{kind}: once");
    }
}

/// Where the record of a slot stands.
fn find_record(segment: &[u8], slot: u64) -> usize {
    let is_it = |at: &usize| {
        segment[*at..].starts_with(b"QREC") && segment[at + 16..at + 24] == slot.to_le_bytes()
    };
    (64..segment.len() - 64).step_by(8).find(is_it).unwrap()
}
