//! One suite for every medium: those of the product, `dax` where there is a file system for it, and
//! the simulated ones.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::{Incarnation, NodeId, Slot};
use quorate_ffi::cache;
use quorate_pmem_log::{
    Boot, Durability, End, Fault, Log, LogError, LogOptions, Lsn, MappedMedium, Medium, MediumKind,
    OpenError, Record, Recovered, open_medium,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::*;
use tempfile::TempDir;

/// A place where a log can be opened again and again.
enum Place {
    Directory(TempDir, MediumKind),
    Memory(Arc<MappedMedium>),
    Simulated(Arc<SimMedium>),
}

impl Place {
    fn all() -> Vec<Self> {
        let directory = |kind| Self::Directory(directory_for(kind), kind);
        let mut places: Vec<_> = directory_kinds().into_iter().map(directory).collect();
        places.push(Self::Memory(Arc::new(MappedMedium::memory())));
        places.extend(PROFILES.map(|profile| Self::Simulated(SimMedium::new(profile))));
        places
    }

    fn try_open(&self, node: NodeId) -> Result<(Log, Recovered), OpenError> {
        let options = LogOptions { node, ..options() };
        let medium: Arc<dyn Medium> = match self {
            Self::Directory(directory, kind) => open_medium(*kind, directory.path())?,
            Self::Memory(medium) => Arc::clone(medium) as _,
            Self::Simulated(medium) => Arc::clone(medium) as _,
        };
        Log::open_on(medium, &options, FRESH, Arc::new(|| {}))
    }

    fn open(&self) -> (Log, Recovered) {
        self.try_open(NODE).unwrap()
    }

    /// How many areas there are.
    fn files(&self) -> usize {
        match self {
            Self::Directory(directory, _) => std::fs::read_dir(directory.path()).unwrap().count(),
            Self::Memory(medium) => medium.names().unwrap().len(),
            Self::Simulated(medium) => medium.names().unwrap().len(),
        }
    }
}

fn append_durably(log: &mut Log, record: Record, commit: u64) {
    let lsn = log.append(&record, Slot(commit)).unwrap();
    log.wait_durable(lsn).unwrap();
}

#[test]
fn what_was_appended_is_read_before_the_flush_after_it_and_after_reopening() {
    for place in Place::all() {
        let (mut log, recovered) = place.open();
        assert_eq!((recovered.first_slot, recovered.last_slot), (Slot(1), Slot::ZERO));
        assert_eq!(recovered.identity.incarnation, FRESH);
        let entries: Vec<_> = (1..=20).map(|slot| entry(slot, 7, slot as usize * 13)).collect();
        log.append(&Record::Promise(ballot(7)), Slot::ZERO).unwrap();
        for entry in &entries {
            log.append(&Record::Entry(entry.clone()), entry.slot.previous()).unwrap();
        }
        assert_eq!(read_all(&log, 1), entries);
        log.wait_durable(Lsn(21)).unwrap();
        assert_eq!(log.durable().unwrap(), Lsn(21));
        assert_eq!(read_all(&log, 5), entries[4..]);
        drop(log);
        let (log, recovered) = place.open();
        assert_eq!((recovered.first_slot, recovered.last_slot), (Slot(1), Slot(20)));
        assert_eq!((recovered.promised, recovered.commit_slot), (ballot(7), Slot(19)));
        assert_eq!((recovered.end, recovered.damaged), (End::Clean, vec![]));
        assert!(recovered.promise_certain);
        assert_eq!(read_all(&log, 1), entries);
    }
}

#[test]
fn the_newest_record_of_a_slot_wins_also_after_reopening() {
    for place in Place::all() {
        let (mut log, _) = place.open();
        for (slots, round) in [(1..=30, 1), (10..=20, 2), (15..=40, 3), (12..=12, 4)] {
            for slot in slots {
                log.append(&Record::Entry(entry(slot, round, 100)), Slot::ZERO).unwrap();
            }
            log.flush().unwrap();
        }
        log.wait_durable(log.appended()).unwrap();
        let round = |slot| match slot {
            12 => 4,
            1..=9 => 1,
            10..=14 => 2,
            _ => 3,
        };
        let expected: Vec<_> = (1..=40).map(|slot| entry(slot, round(slot), 100)).collect();
        assert_eq!(read_all(&log, 1), expected);
        drop(log);
        let (log, recovered) = place.open();
        assert_eq!(read_all(&log, 1), expected);
        assert_eq!(recovered.promised, ballot(4));
    }
}

#[test]
fn reading_stops_at_a_hole_and_at_the_limit_but_gives_at_least_one() {
    for place in Place::all() {
        let (mut log, _) = place.open();
        for slot in (1..=5).chain(7..=9) {
            log.append(&Record::Entry(entry(slot, 1, 100)), Slot::ZERO).unwrap();
        }
        let read = |first, limit| {
            let mut out = Vec::new();
            log.read(Slot(first), limit, &mut out).unwrap();
            out.iter().map(|entry| entry.slot.0).collect::<Vec<_>>()
        };
        assert_eq!(read(1, usize::MAX), [1, 2, 3, 4, 5]);
        assert_eq!(read(6, usize::MAX), [0; 0]);
        assert_eq!(read(7, 0), [7]);
        assert_eq!(read(1, 299), [1, 2]);
        assert_eq!(read(1, 300), [1, 2, 3]);
        assert_eq!(read(10, 300), [0; 0]);
    }
}

/// Values from a file are not copied once more: they lie as they lay in the piece that was read.
#[test]
fn values_from_a_file_are_slices_of_what_was_read() {
    let place = Place::Directory(directory_for(MediumKind::File), MediumKind::File);
    let (mut log, _) = place.open();
    for slot in 1..=20 {
        log.append(&Record::Entry(entry(slot, 1, 104)), Slot::ZERO).unwrap();
    }
    log.wait_durable(log.appended()).unwrap();
    let entries = read_all(&log, 1);
    let places: Vec<_> = entries.iter().map(|it| it.value.bytes.as_ptr() as usize).collect();
    assert!(places.windows(2).all(|two| two[1] == two[0] + 64 + 104), "{places:x?}");
    // And they stay what they were when the log goes on.
    for slot in 21..=40 {
        append_durably(&mut log, Record::Entry(entry(slot, 1, 104)), 0);
    }
    log.trim(Slot(20)).unwrap();
    drop(log);
    assert_eq!(entries, (1..=20).map(|slot| entry(slot, 1, 104)).collect::<Vec<_>>());
}

#[test]
fn segments_roll_over_and_reopen() {
    for place in Place::all() {
        let (mut log, _) = place.open();
        let entries: Vec<_> = (1..=60).map(|slot| entry(slot, 1, 3000)).collect();
        for entry in &entries {
            append_durably(&mut log, Record::Entry(entry.clone()), 0);
        }
        assert_eq!(read_all(&log, 1), entries);
        drop(log);
        let (mut log, recovered) = place.open();
        assert_eq!((recovered.end, recovered.damaged), (End::Clean, vec![]));
        assert_eq!(read_all(&log, 1), entries);
        append_durably(&mut log, Record::Entry(entry(61, 1, 3000)), 0);
        assert_eq!(read_all(&log, 60).len(), 2);
    }
}

#[test]
fn values_up_to_the_limit_fit_and_larger_ones_are_refused() {
    for place in Place::all() {
        let (mut log, _) = place.open();
        let limit = log.value_bytes_max();
        for slot in 1..=4 {
            let large = entry(slot, 1, limit + 1);
            let refused = log.append(&Record::Entry(large), Slot::ZERO).unwrap_err();
            assert!(matches!(refused, LogError::TooLarge { .. }), "{refused}");
            let bytes = if slot % 2 == 0 { 1 } else { limit };
            log.append(&Record::Entry(entry(slot, 1, bytes)), Slot::ZERO).unwrap();
        }
        log.wait_durable(log.appended()).unwrap();
        drop(log);
        let (log, _) = place.open();
        let lengths: Vec<_> = read_all(&log, 1).iter().map(|e| e.value.bytes.len()).collect();
        assert_eq!(lengths, [limit, 1, limit, 1]);
    }
}

#[test]
fn trimming_frees_whole_segments_and_forgets_no_promise() {
    for place in Place::all() {
        let (mut log, _) = place.open();
        append_durably(&mut log, Record::Promise(ballot(99)), 0);
        for round in 0..10 {
            for slot in round * 30 + 1..=round * 30 + 30 {
                append_durably(&mut log, Record::Entry(entry(slot, 1, 3000)), slot - 1);
            }
            log.trim(Slot(round * 30 + 25)).unwrap();
        }
        drop(log);
        let (log, recovered) = place.open();
        assert_eq!((recovered.promised, recovered.commit_slot), (ballot(99), Slot(299)));
        assert_eq!((recovered.end, recovered.damaged), (End::Clean, vec![]));
        assert_eq!(recovered.last_slot, Slot(300));
        let first = recovered.first_slot.0;
        assert!((250..=295).contains(&first), "kept from {first}");
        assert_eq!(read_all(&log, first).len() as u64, 301 - first);
        assert!(place.files() <= 12, "{} files are left", place.files());
    }
}

/// Trimmed segments are left to whoever took them over; what it does not remove, the next opening does.
#[test]
fn trimmed_segments_are_removed_one_by_one_by_whoever_takes_them_over() {
    for place in Place::all() {
        let (mut log, _) = place.open();
        let told = Arc::new(AtomicUsize::new(0));
        let tell = Arc::clone(&told);
        let upkeep = log.upkeep(Arc::new(move || {
            tell.fetch_add(1, Ordering::SeqCst);
        }));
        for slot in 1..=300 {
            append_durably(&mut log, Record::Entry(entry(slot, 1, 3000)), slot - 1);
        }
        upkeep.prepare();
        assert!(!upkeep.is_due() && upkeep.remove_one().is_none());
        let (before, so_far) = (place.files(), told.load(Ordering::SeqCst));
        log.trim(Slot(295)).unwrap();
        eventually("all were let go of", || told.load(Ordering::SeqCst) >= so_far + 7);
        assert_eq!(place.files(), before, "some became spares, and none is gone yet");
        assert_eq!(upkeep.remove_one(), Some(options().segment_bytes));
        assert_eq!(place.files(), before - 1);
        assert!(upkeep.is_due());
        let first = log.first_slot().0;
        drop((log, upkeep));
        let (log, recovered) = place.open();
        assert_eq!((recovered.end, recovered.damaged), (End::Clean, vec![]));
        assert_eq!(recovered.first_slot, Slot(first));
        assert_eq!(read_all(&log, first).len() as u64, 301 - first);
        assert!(place.files() <= 12, "{} files are left", place.files());
    }
}

/// On media without a sync thread the next segment is there before it is needed, if somebody makes it.
#[test]
fn the_next_segment_is_made_ahead() {
    let medium = SimMedium::new(DIRECT);
    let place = Place::Simulated(Arc::clone(&medium));
    let (mut log, _) = place.open();
    let upkeep = log.upkeep(Arc::new(|| {}));
    let mut slots = 1..;
    let mut fill = |log: &mut Log| {
        let files = place.files();
        let mut append = |slot| append_durably(log, Record::Entry(entry(slot, 1, 3000)), slot - 1);
        slots.by_ref().take(60).map(&mut append).find(|()| upkeep.is_due());
        (files, place.files())
    };
    let (before, after) = fill(&mut log);
    assert_eq!(after, before + 1, "the log made a segment");
    for _ in 0..3 {
        assert!(upkeep.prepare() && !upkeep.prepare());
        let (before, after) = fill(&mut log);
        assert_eq!(after, before, "it was there");
    }
}

/// Pages that this thread had to be given by the system.
#[cfg(target_os = "linux")]
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // proc(5): behind the name in parentheses, `minflt` is the eighth field and `majflt` the tenth.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let number = |at| fields.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap();
    number(7) + number(9)
}

/// In a segment that was made ahead records do not wait for pages.
#[cfg(target_os = "linux")]
#[test]
fn a_segment_made_ahead_has_its_pages() {
    let directory = directory_for(MediumKind::Emulated);
    let medium = open_medium(MediumKind::Emulated, directory.path()).unwrap();
    let options = LogOptions { segment_bytes: 4 << 20, ..options() };
    let (mut log, _) = Log::open_on(medium, &options, FRESH, Arc::new(|| {})).unwrap();
    let upkeep = log.upkeep(Arc::new(|| {}));
    let mut slots = 1..;
    // Of 4 KiB each, until the log took another segment.
    let mut fill = |log: &mut Log| {
        let mut append = |slot| append_durably(log, Record::Entry(entry(slot, 1, 4000)), slot - 1);
        slots.by_ref().take(1100).map(&mut append).find(|()| upkeep.is_due()).unwrap();
    };
    fill(&mut log);
    let prepare = || std::thread::scope(|scope| scope.spawn(|| upkeep.prepare()).join().unwrap());
    assert!(prepare());
    fill(&mut log);
    let before = faults();
    assert!(prepare());
    fill(&mut log);
    let pages = faults() - before;
    assert!(pages < 200, "{pages} of 1024 pages were waited for");
}

/// What waits to be removed is no reason to refuse a record.
#[test]
fn a_full_medium_removes_what_waits() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let place = Place::Simulated(Arc::clone(&medium));
        let (mut log, _) = place.open();
        let upkeep = log.upkeep(Arc::new(|| {}));
        for slot in 1..=300 {
            append_durably(&mut log, Record::Entry(entry(slot, 1, 3000)), slot - 1);
        }
        log.trim(Slot(295)).unwrap();
        eventually("some wait", || upkeep.is_due());
        medium.control.areas_max.store(place.files(), Ordering::SeqCst);
        for slot in 301..=500 {
            append_durably(&mut log, Record::Entry(entry(slot, 1, 3000)), slot - 1);
        }
        assert!(!log.full());
    }
}

#[test]
fn genesis_is_set_once() {
    for place in Place::all() {
        let (mut log, recovered) = place.open();
        assert_eq!(recovered.identity.genesis, None);
        log.set_genesis("three founded it".into()).unwrap();
        log.set_genesis("three founded it".into()).unwrap();
        let refused = log.set_genesis("four founded it".into()).unwrap_err();
        assert!(matches!(refused, LogError::OtherGenesis));
        let refused = log.set_genesis(vec![0; 40_000].into()).unwrap_err();
        assert!(matches!(refused, LogError::GenesisTooLarge { .. }));
        drop(log);
        let (_log, recovered) = place.open();
        assert_eq!(recovered.identity.genesis.as_deref(), Some(b"three founded it".as_slice()));
    }
}

#[test]
fn another_node_is_refused() {
    for place in Place::all() {
        drop(place.open());
        let refused = place.try_open(NodeId(4)).unwrap_err();
        assert!(matches!(refused, OpenError::OtherNode { found: NODE, .. }), "{refused}");
    }
}

#[test]
fn a_second_opener_is_refused_and_told_who_holds_it() {
    for place in Place::all() {
        let Place::Directory(directory, kind) = &place else { continue };
        let held = place.open();
        let refused = place.try_open(NODE).unwrap_err();
        let OpenError::Locked { holder, .. } = refused else { panic!("{refused}") };
        assert_eq!(holder, Some(std::process::id()));
        drop(held);
        let _ = open_medium(*kind, directory.path()).unwrap();
    }
}

#[test]
fn foreign_directories_other_media_and_bad_sizes_are_refused() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(directory.path().join("thesis.tex"), "x").unwrap();
    let place = Place::Directory(directory, MediumKind::File);
    let refused = place.try_open(NODE).unwrap_err();
    assert!(matches!(&refused, OpenError::NotALog { found, .. } if found == "thesis.tex"));
    let Place::Directory(directory, _) = place else { unreachable!() };
    std::fs::remove_file(directory.path().join("thesis.tex")).unwrap();
    let place = Place::Directory(directory, MediumKind::File);
    drop(place.open());
    let Place::Directory(directory, _) = place else { unreachable!() };
    let place = Place::Directory(directory, MediumKind::Emulated);
    let refused = place.try_open(NODE).unwrap_err();
    assert!(matches!(refused, OpenError::OtherMedium { .. }), "{refused}");
    for segment_bytes in [0, 1000, 4096, 33_000, 1 << 31] {
        let options = LogOptions {
            directory: PathBuf::new(),
            medium: MediumKind::Memory,
            node: NODE,
            segment_bytes,
        };
        let opened = Log::open(&options, Incarnation(1), Arc::new(|| {}));
        let accepted = segment_bytes == 33_000;
        assert_eq!(opened.is_ok(), accepted, "{segment_bytes}");
    }
}

#[test]
fn on_persistent_memory_the_suite_runs_too() {
    let Some(directory) = std::env::var_os(DAX_DIRECTORY) else {
        // Past the harness, which keeps what a passing test prints.
        let line = format!("skipped: no DAX file system here, set {DAX_DIRECTORY}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    };
    let refused =
        || open_medium(MediumKind::Dax, directory.as_ref()).map(|medium| medium.durability());
    assert_eq!(refused().expect("MAP_SYNC is granted"), Durability::PowerFailure);
    let suite = Place::all();
    let is_dax = |place: &&Place| matches!(place, Place::Directory(_, MediumKind::Dax));
    assert_eq!(suite.iter().filter(is_dax).count(), 1);
}

#[test]
fn where_nothing_is_persistent_memory_dax_is_refused_with_what_to_do() {
    let disk = directory_for(MediumKind::File);
    let mut places = vec![(disk.path(), "ext")];
    let memory = TempDir::new_in("/dev/shm").ok();
    places.extend(memory.as_ref().map(|memory| (memory.path(), "tmpfs")));
    for (place, filesystem) in places {
        let opened = open_medium(MediumKind::Dax, place).map(|_| ());
        let refused = opened.expect_err("this is no persistent memory");
        let OpenError::NotDax { filesystem: named, why, .. } = &refused else {
            panic!("{refused}")
        };
        assert!(named.contains(filesystem) || filesystem == "ext", "{refused}");
        assert!(why.contains("MAP_SYNC"), "{refused}");
        let said = refused.to_string();
        assert!(said.contains("-o dax") && said.contains("\"file\""), "{said}");
        assert_eq!(refused.fault(), Fault::Operator);
        // It took nothing: the place is free for what it can keep, and nothing is left in it.
        let names: Vec<_> =
            std::fs::read_dir(place).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name == "LOCK"), "{names:?}");
        open_medium(MediumKind::Emulated, place).unwrap();
    }
}

/// Opens an emulated log in a life of the machine.
fn open_in_boot(directory: &Path, boot: u128) -> (Log, Recovered) {
    let medium = MappedMedium::open_in(directory, Boot(boot)).unwrap();
    Log::open_on(Arc::new(medium), &options(), FRESH, Arc::new(|| {})).unwrap()
}

#[test]
fn a_log_that_the_machine_may_have_lost_the_end_of_is_never_certain_again() {
    let directory = directory_for(MediumKind::Emulated);
    let (mut log, recovered) = open_in_boot(directory.path(), 1);
    assert!(recovered.promise_certain && !recovered.outlived, "nothing is forgotten yet");
    append_durably(&mut log, Record::Entry(entry(1, 1, 100)), 0);
    drop(log);
    let (log, recovered) = open_in_boot(directory.path(), 1);
    assert!(recovered.promise_certain && !recovered.outlived, "the machine runs on");
    drop(log);
    // Also when it was opened once in the new life, and in each life after it.
    for boot in [2, 2, 3, 3] {
        let (log, recovered) = open_in_boot(directory.path(), boot);
        assert!(!recovered.promise_certain && recovered.outlived, "boot {boot}");
        assert_eq!((recovered.end, recovered.damaged), (End::Clean, vec![]), "it looks whole");
        assert_eq!(read_all(&log, 1), [entry(1, 1, 100)]);
        log.close().unwrap();
    }
}

#[test]
fn this_machine_tells_one_life_from_the_next() {
    let boot = Boot::current().unwrap();
    assert_ne!(boot, Boot::default());
    assert_eq!(Boot::current().unwrap(), boot);
    let directory = directory_for(MediumKind::Emulated);
    for _ in 0..2 {
        let medium = open_medium(MediumKind::Emulated, directory.path()).unwrap();
        assert_eq!(medium.boot(), boot);
        let (_, recovered) = Log::open_on(medium, &options(), FRESH, Arc::new(|| {})).unwrap();
        assert!(!recovered.outlived);
    }
    let (_, recovered) = open_in_boot(directory.path(), boot.0 + 1);
    assert!(recovered.outlived);
}

#[test]
fn what_survives_power_failure_is_not_asked_for_the_life_of_the_machine() {
    for kind in directory_kinds().into_iter().filter(|kind| *kind != MediumKind::Emulated) {
        let directory = directory_for(kind);
        assert_eq!(open_medium(kind, directory.path()).unwrap().boot(), Boot::default(), "{kind}");
    }
}

#[test]
fn a_commit_is_one_fence_and_no_line_is_written_back() {
    for kind in directory_kinds().into_iter().filter(|kind| *kind != MediumKind::File) {
        let directory = directory_for(kind);
        let place = Place::Directory(directory, kind);
        let (mut log, _) = place.open();
        append_durably(&mut log, Record::Entry(entry(1, 1, 1024)), 0);
        let before = cache::counts();
        for slot in 2..=12 {
            // Sixteen commands of 64 bytes in an entry; one entry, or two, in a commit.
            for slot in [slot * 2, slot * 2 + 1].into_iter().take(1 + slot as usize % 2) {
                log.append(&Record::Entry(entry(slot, 1, 1024)), Slot(1)).unwrap();
            }
            log.flush().unwrap();
            assert_eq!(log.durable().unwrap(), log.appended());
            let fences = cache::counts().fences - before.fences;
            assert_eq!(fences, slot - 1, "{kind}: fences after {} commits", slot - 1);
        }
        let stored = cache::counts().bytes_stored_through - before.bytes_stored_through;
        let payload = 16 * 1024;
        assert_eq!(log.statistics().payload_bytes, payload + 1024);
        assert!(stored * 100 <= payload * 125, "{kind}: {stored} bytes for {payload}");
        // Elsewhere than on x86-64 a store is a store and a write-back.
        if cfg!(target_arch = "x86_64") {
            assert_eq!(cache::counts().lines_written_back, before.lines_written_back, "{kind}");
        }
    }
}

#[test]
fn a_file_system_in_memory_is_refused_for_power_failure() {
    let Ok(directory) = TempDir::new_in("/dev/shm") else { return };
    let opened = open_medium(MediumKind::File, directory.path()).map(|_| ());
    let refused = opened.expect_err("/dev/shm does not survive power failure");
    assert!(matches!(refused, OpenError::WeakFileSystem { .. }), "{refused}");
    open_medium(MediumKind::Emulated, directory.path()).unwrap();
}
