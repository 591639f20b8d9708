//! A disk that is really full: a small file system on a loop device, mounted by the test (as root).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::Slot;
use quorate_pmem_log::{Log, LogError, LogOptions, MediumKind, Record, Recovered, open_medium};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::*;
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 16 << 20;
const SEGMENT_BYTES: u64 = 1 << 20;

/// A mounted image; unmounted and removed when dropped.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// `None`, with a line that is counted, where this cannot be had.
    fn mount(file_system: &str) -> Option<Self> {
        let folder = directory_for(MediumKind::File);
        let disk = Self { folder };
        let image = disk.folder.path().join("image");
        File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        fs::create_dir(disk.root()).unwrap();
        let made = run(Command::new(format!("mkfs.{file_system}")).args(["-q", "-F"]).arg(&image));
        let mounted = made.and_then(|()| {
            run(Command::new("mount")
                .args(["-t", file_system, "-o", "loop"])
                .arg(&image)
                .arg(disk.root()))
        });
        let Err(why) = mounted else { return Some(disk) };
        // Past the harness, which keeps what a passing test prints.
        let line = format!("skipped: no {file_system} on a loop device here ({why})\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        None
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Takes all space that is left, to the last block.
    fn fill(&self) -> PathBuf {
        let path = self.root().join("filler");
        let mut file = File::create(&path).unwrap();
        for bytes in [1 << 20, 4096, 512] {
            let piece = vec![7; bytes];
            loop {
                match file.write(&piece) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("filling the disk: {error}"),
                }
            }
        }
        // Blocks are taken at the latest now.
        let _ = file.sync_all();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.root()));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

fn open_at(directory: &Path, kind: MediumKind) -> (Log, Recovered) {
    let options = LogOptions { segment_bytes: SEGMENT_BYTES, ..options() };
    let medium = open_medium(kind, directory).unwrap();
    Log::open_on(medium, &options, FRESH, Arc::new(|| {})).unwrap()
}

const ENTRY_BYTES: usize = 50_000;

/// Appends and flushes until there is no room; returns the first slot that was not taken.
fn fill_log(log: &mut Log, mut slot: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match log.append(&Record::Entry(entry(slot, 1, ENTRY_BYTES)), Slot(slot - 1)) {
            Ok(_) => slot += 1,
            Err(LogError::Full { .. }) => return slot,
            Err(error) => panic!("a full disk is no failure: {error}"),
        }
        match log.wait_durable(log.appended()) {
            Ok(()) => {}
            Err(LogError::Full { .. }) => return slot,
            Err(error) => panic!("a full disk is no failure: {error}"),
        }
        assert!(Instant::now() < deadline, "the disk never fills");
    }
}

fn full_and_free_again(file_system: &str, kind: MediumKind) {
    let Some(disk) = Disk::mount(file_system) else { return };
    let place = disk.root().join("log");
    let (mut log, _) = open_at(&place, kind);
    let lsn = log.append(&Record::Entry(entry(1, 1, ENTRY_BYTES)), Slot::ZERO).unwrap();
    log.wait_durable(lsn).unwrap();
    let filler = disk.fill();
    // What has its place already goes on being durable, and then there is no more.
    let stopped = fill_log(&mut log, 2);
    assert!(stopped > 2, "{file_system}, {kind}: the segment at hand has room");
    assert!(log.full(), "{file_system}, {kind}: it says so");
    let durable = log.durable().unwrap();
    let before: Vec<_> = (1..=durable.0).map(|slot| entry(slot, 1, ENTRY_BYTES)).collect();
    assert_eq!(read_all(&log, 1)[..before.len()], before, "reading goes on");
    assert!(fs::metadata(&filler).unwrap().len() > 1 << 20, "void: the filler took nothing");
    // Space comes back, and nobody has to do anything.
    fs::remove_file(filler).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut slot = log.appended().0 + 1;
    let until = slot + 30;
    while slot < until || log.durable().unwrap() < log.appended() {
        if slot < until
            && log.append(&Record::Entry(entry(slot, 1, ENTRY_BYTES)), Slot(slot - 1)).is_ok()
        {
            slot += 1;
        }
        log.flush().unwrap();
        assert!(Instant::now() < deadline, "{file_system}, {kind}: it does not go on");
        std::thread::yield_now();
    }
    assert!(!log.full());
    drop(log);
    let (log, recovered) = open_at(&place, kind);
    assert_eq!(recovered.damaged, [], "{file_system}, {kind}");
    let expected: Vec<_> = (1..until).map(|slot| entry(slot, 1, ENTRY_BYTES)).collect();
    assert!(read_all(&log, 1) == expected, "{file_system}, {kind}: everything is there");
}

#[test]
fn a_full_disk_takes_no_more_and_goes_on_by_itself_when_there_is_space() {
    for kind in [MediumKind::File, MediumKind::Emulated] {
        full_and_free_again("ext4", kind);
    }
}

/// This file system cannot reserve blocks: a new segment is written until a write comes back short,
/// and the next one says that there is no space.
#[test]
fn a_write_that_is_cut_short_by_a_full_disk_is_no_damage() {
    full_and_free_again("ext2", MediumKind::File);
}
