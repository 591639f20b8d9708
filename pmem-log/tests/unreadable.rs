//! Devices that cannot read what they were given (`EIO`), and mappings that are gone (`SIGBUS`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::Slot;
use quorate_pmem_log::{
    Fault, Log, LogError, LogOptions, MediumKind, OpenError, Record, Recovered, open_medium, verify,
};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::*;

const PAGE: u64 = 4096;
const SLOTS: u64 = 60;
const BYTES: usize = 1500;

fn append(log: &mut Log, slot: u64) {
    log.append(&Record::Entry(entry(slot, 1, BYTES)), Slot(slot / 2)).unwrap();
}

/// Three segments of entries, all acknowledged, in batches of a few.
fn written(medium: &Arc<SimMedium>) -> Log {
    let (mut log, _) = open(medium).unwrap();
    log.append(&Record::Promise(ballot(1)), Slot::ZERO).unwrap();
    for slot in 1..=SLOTS {
        append(&mut log, slot);
        if slot % 3 == 0 {
            log.wait_durable(log.appended()).unwrap();
        }
    }
    log
}

/// What can be read is what was written, and what is missing was told. Returns how much is missing.
fn check(log: &Log, recovered: &Recovered, what: &str) -> u64 {
    let mut missing = 0;
    for slot in 1..=SLOTS {
        let mut out = Vec::new();
        if log.read(Slot(slot), 0, &mut out).is_ok() && !out.is_empty() {
            assert_eq!(out, [entry(slot, 1, BYTES)], "{what}");
            continue;
        }
        missing += 1;
        let told = recovered.damaged.iter().any(|damage| match damage.slots {
            Some((first, last)) => first.0 <= slot && (slot <= last.0 || !damage.exact),
            None => true,
        });
        assert!(told, "{what}: slot {slot} is missing without a word: {recovered:?}");
    }
    assert!(recovered.promised >= ballot(1) || !recovered.promise_certain, "{what}");
    missing
}

#[test]
fn what_the_device_cannot_read_is_damage_and_never_a_clean_end() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let log = written(&medium);
        let unsealed = medium.copy();
        let end = log.disk_bytes();
        drop(log);
        let segments = medium.segment_names();
        assert!(segments.len() >= 3, "{segments:?} of {end} bytes");
        let mut lost_some = 0;
        for (source, sealed) in [(&unsealed, false), (&medium.copy(), true)] {
            for name in &segments {
                for page in 0..SEGMENT / PAGE {
                    let what = format!("{profile:?}, sealed: {sealed}, {name}, page {page}");
                    let device = source.copy();
                    let range = page * PAGE..(page + 1) * PAGE;
                    let used = device.area(name).image()[range.start as usize..range.end as usize]
                        .iter()
                        .any(|byte| *byte != 0);
                    device.area(name).lose(range);
                    let (log, recovered) = open(&device).unwrap();
                    let missing = check(&log, &recovered, &what);
                    // Each page of a used part holds a piece of a record; of a header alone, where
                    // it has a page of its own, nobody misses anything.
                    let header_alone = page == 0 && profile.alignment == PAGE;
                    assert!(missing > 0 || !used || header_alone, "{what}");
                    lost_some += u64::from(missing > 0);
                    // When the page can be read again, what was written since stands behind it.
                    let mut log = log;
                    let newer = entry(SLOTS + 1, 2, 40);
                    log.append(&Record::Entry(newer.clone()), Slot(1)).unwrap();
                    log.close().unwrap();
                    let (log, again) = open(&device.copy()).unwrap();
                    check(&log, &again, &what);
                    let mut out = Vec::new();
                    log.read(newer.slot, 0, &mut out).unwrap();
                    assert_eq!(out, [newer], "{what}");
                }
            }
        }
        assert!(lost_some > 20, "void: {lost_some}");
    }
}

/// The last page that was written: nothing behind it could prove that it had been acknowledged.
#[test]
fn an_unreadable_end_is_not_cut_and_makes_the_promise_uncertain() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let log = written(&medium);
        let device = medium.copy();
        drop(log);
        let name = device.segment_names().pop().unwrap();
        let image = device.area(&name).image();
        let last = image.iter().rposition(|byte| *byte != 0).unwrap() as u64 / PAGE;
        device.area(&name).lose(last * PAGE..(last + 1) * PAGE);
        let (log, recovered) = open(&device).unwrap();
        assert!(check(&log, &recovered, "the end") > 0);
        assert!(!recovered.promise_certain, "{recovered:?}");
        let named = |damage: &quorate_pmem_log::Damage| damage.what.contains("cannot read");
        assert!(recovered.damaged.iter().any(named), "{recovered:?}");
    }
}

#[test]
fn one_unreadable_copy_of_the_superblock_is_survived_and_two_are_refused() {
    let medium = SimMedium::new(GROUPED);
    drop(written(&medium));
    for copy in [0, 32 << 10] {
        let device = medium.copy();
        device.area("superblock").lose(copy..copy + 1);
        let (log, recovered) = open(&device).unwrap();
        assert_eq!(check(&log, &recovered, "a copy"), 0);
    }
    let device = medium.copy();
    device.area("superblock").lose(0..64 << 10);
    let refused = open(&device).map(|_| ()).unwrap_err();
    assert!(matches!(refused, OpenError::SuperblockDamaged { .. }), "{refused}");
}

#[test]
fn a_read_that_fails_while_running_is_an_error_and_no_data() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let log = written(&medium);
        let name = medium.segment_names().remove(0);
        medium.area(&name).lose(0..SEGMENT);
        let mut out = Vec::new();
        let failed = log.read(Slot(1), usize::MAX, &mut out).unwrap_err();
        assert!(matches!(&failed, LogError::Unreadable { what } if what.contains("os error 5")));
        assert_eq!((failed.fault(), out.len()), (Fault::Device, 0));
        let mut out = Vec::new();
        log.read(Slot(SLOTS), usize::MAX, &mut out).unwrap();
        assert_eq!(out, [entry(SLOTS, 1, BYTES)], "what is elsewhere can be read");
    }
}

const CHILD: &str = "QUORATE_TEST_MAPPED_CHILD";

fn open_mapped(directory: &Path) -> (Log, Recovered) {
    let options = LogOptions { segment_bytes: 1 << 20, ..options() };
    let medium = open_medium(MediumKind::Emulated, directory).unwrap();
    Log::open_on(medium, &options, FRESH, Arc::new(|| {})).unwrap()
}

/// The other process of the test below: appends when it gets a line, and says what is durable.
#[test]
fn child_of_the_test_of_a_mapping_that_is_gone() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let (mut log, _) = open_mapped(Path::new(&directory));
    for (slot, line) in (1..).zip(std::io::stdin().lines()) {
        line.unwrap();
        append(&mut log, slot);
        log.wait_durable(log.appended()).unwrap();
        println!("\ndurable {slot}");
        std::io::stdout().flush().unwrap();
    }
}

/// What a device cannot read through a mapping, and what a mapped file lacks since somebody cut it, is
/// no error that a program gets: the process ends at once, by a signal, before it can answer.
#[test]
fn a_mapping_that_is_gone_ends_the_process_before_anything_is_acknowledged() {
    let directory = directory_for(MediumKind::Emulated);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "child_of_the_test_of_a_mapping_that_is_gone"])
        .env(CHILD, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut orders = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    for slot in 1..=3 {
        writeln!(orders, "go on").unwrap();
        let told = format!("durable {slot}");
        assert!(said.any(|line| line == told), "{told}");
    }
    let segment = directory.path().join("segment-0000000000000001");
    std::fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(PAGE).unwrap();
    // What still has its place is taken, and then the process is gone.
    for _ in 0..3 {
        let _ = writeln!(orders, "go on");
    }
    let later: Vec<_> = said.filter(|line| line.starts_with("durable")).collect();
    let ended = child.wait().unwrap();
    const SIGBUS: i32 = 7;
    assert_eq!(ended.signal(), Some(SIGBUS), "{ended}, {later:?}");
    assert_eq!(later, [""; 0], "nothing that is not there is acknowledged");
    // And whoever looks at it then looks at a short file, which is no reason to die.
    let report = verify(directory.path()).unwrap();
    assert!(report.records <= 3, "{report:?}");
}
