//! The checkpoint store: images survive every crash or were never there, and no byte of one that
//! changed is ever given out.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use quorate_consensus::Slot;
use quorate_pmem_log::{
    BLOCK_BYTES, BLOCK_PAYLOAD_BYTES, Checkpoint, CheckpointError, CheckpointId, CheckpointStore,
    FileMedium, MappedMedium, Medium,
};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::{PAGED, PROFILES, Random, SimMedium};

const KEEP: usize = 2;

fn id(slot: u64) -> CheckpointId {
    CheckpointId { slot: Slot(slot), digest: slot.wrapping_mul(0x9e37_79b9), cluster: 7 }
}

/// An image that tells which one it is, in every place.
fn image(slot: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(slot);
    let mut image = Vec::with_capacity(bytes + 8);
    while image.len() < bytes {
        image.extend_from_slice(&random.next().to_le_bytes());
    }
    image.truncate(bytes);
    image
}

fn open(medium: &Arc<impl Medium + 'static>) -> CheckpointStore {
    CheckpointStore::open(Arc::clone(medium) as Arc<dyn Medium>, KEEP).unwrap()
}

fn take(
    store: &mut CheckpointStore,
    slot: u64,
    bytes: usize,
) -> Result<Checkpoint, CheckpointError> {
    let mut writer = store.create(id(slot))?;
    for piece in image(slot, bytes).chunks(10_000) {
        writer.write(piece)?;
    }
    let finished = writer.finish()?;
    let checkpoint = store.install(finished, Slot(0))?;
    store.prune(&[]).map_err(|error| CheckpointError::Failed { what: error.to_string().into() })?;
    Ok(checkpoint)
}

fn read(store: &CheckpointStore, checkpoint: &Checkpoint) -> Vec<u8> {
    let mut image = Vec::new();
    store.reader(checkpoint).unwrap().read_to_end(&mut image).unwrap();
    image
}

fn slots(store: &CheckpointStore) -> Vec<u64> {
    store.installed().iter().map(|checkpoint| checkpoint.id.slot.0).collect()
}

const SIZES: [usize; 6] = [
    0,
    1,
    BLOCK_PAYLOAD_BYTES - 1,
    BLOCK_PAYLOAD_BYTES,
    BLOCK_PAYLOAD_BYTES + 1,
    5 * BLOCK_PAYLOAD_BYTES + 17,
];

fn reads_back(medium: &Arc<impl Medium + 'static>) {
    for (slot, bytes) in (1..).zip(SIZES) {
        let mut store = open(medium);
        let checkpoint = take(&mut store, slot, bytes).unwrap();
        assert_eq!(checkpoint.bytes, bytes as u64);
        let store = open(medium);
        assert_eq!(store.installed().last(), Some(&checkpoint));
        assert_eq!(read(&store, &checkpoint), image(slot, bytes), "{bytes} bytes");
        assert!(store.installed().len() <= KEEP);
    }
    assert_eq!(slots(&open(medium)), [5, 6]);
}

#[test]
fn images_of_all_sizes_read_back_on_every_medium() {
    reads_back(&Arc::new(MappedMedium::memory()));
    let directory = tempfile::tempdir().unwrap();
    reads_back(&Arc::new(MappedMedium::open(directory.path()).unwrap()));
    for profile in PROFILES {
        reads_back(&SimMedium::new(profile));
    }
    // Not in the default place for temporary files, which may be in memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if let Ok(medium) = FileMedium::open(directory.path()) {
        reads_back(&Arc::new(medium));
    }
}

/// What must hold after any crash: what counts is whole, and the older checkpoint is still there
/// as long as it is needed.
fn judge(medium: &Arc<SimMedium>, before: &[u64], after: &[u64], bytes: usize) -> Vec<u64> {
    let store = open(medium);
    let found = slots(&store);
    assert!(store.bad().is_empty(), "{:?} is bad", store.bad());
    for checkpoint in store.installed() {
        let slot = checkpoint.id.slot.0;
        assert_eq!(read(&store, checkpoint), image(slot, bytes), "slot {slot}");
    }
    let newest = found.last().copied();
    assert!(
        newest == before.last().copied() || newest == after.last().copied(),
        "{found:?} is neither {before:?} nor {after:?}"
    );
    found
}

/// Crashes at every operation, in three ways of losing what was not persisted, and goes on with the
/// work of the process that died; with a second crash in the recovery.
fn crash_everywhere(work: impl Fn(&Arc<SimMedium>) -> Result<(), CheckpointError>, bytes: usize) {
    for profile in PROFILES {
        let begin = SimMedium::new(profile);
        take(&mut open(&begin), 10, bytes).unwrap();
        take(&mut open(&begin), 20, bytes).unwrap();
        let mut crashes = 0;
        for at in 0.. {
            let medium = begin.copy();
            medium.control.crash_at.store(at, Ordering::SeqCst);
            let done = work(&medium);
            for way in 0..3 {
                let mut random = Random(at * 3 + way);
                let crashed = medium.crashed(|| match way {
                    0 => false,
                    1 => true,
                    _ => random.below(2) == 0,
                });
                let found = judge(&crashed, &[10, 20], &[20, 30], bytes);
                if done.is_ok() {
                    assert_eq!(found, [20, 30], "it counted, and does not after a crash");
                }
                // Opening it again may die as well; then all is done again.
                let again = crashed.copy();
                again.control.crash_at.store(random.below(4), Ordering::SeqCst);
                let _ = CheckpointStore::open(Arc::clone(&again) as Arc<dyn Medium>, KEEP);
                let last = again.crashed(|| random.below(2) == 0);
                if judge(&last, &[10, 20], &[20, 30], bytes).last() != Some(&30) {
                    work(&last).unwrap();
                }
                let mut store = open(&last);
                store.prune(&[]).unwrap();
                assert_eq!(slots(&store), [20, 30]);
                assert_eq!(judge(&last, &[20, 30], &[20, 30], bytes), [20, 30]);
                crashes += 1;
            }
            if done.is_ok() {
                break;
            }
        }
        assert!(crashes > 30, "{crashes} crashes only");
    }
}

#[test]
fn a_crash_at_any_moment_leaves_the_checkpoint_or_the_one_before() {
    let bytes = 2 * BLOCK_PAYLOAD_BYTES + 100;
    crash_everywhere(|medium| take(&mut reopened(medium)?, 30, bytes).map(|_| ()), bytes);
}

fn reopened(medium: &Arc<SimMedium>) -> Result<CheckpointStore, CheckpointError> {
    CheckpointStore::open(Arc::clone(medium) as Arc<dyn Medium>, KEEP)
        .map_err(|error| CheckpointError::Failed { what: error.to_string().into() })
}

/// The blocks of a checkpoint, as a peer has them.
fn source(slot: u64, bytes: usize) -> (CheckpointStore, Checkpoint) {
    let mut store = open(&SimMedium::new(PAGED));
    let checkpoint = take(&mut store, slot, bytes).unwrap();
    (store, checkpoint)
}

fn receive(
    medium: &Arc<SimMedium>,
    peer: &(CheckpointStore, Checkpoint),
) -> Result<u64, CheckpointError> {
    let mut store = reopened(medium)?;
    let mut receiver = store.receive(peer.1.id)?;
    let resumed = receiver.next();
    while !receiver.is_whole() {
        let blocks = peer.0.blocks(&peer.1, receiver.next(), BLOCK_BYTES)?;
        receiver.take(&blocks)?;
    }
    store.install(receiver.finish()?, peer.1.id.slot.next())?;
    store.prune(&[]).map_err(|error| CheckpointError::Failed { what: error.to_string().into() })?;
    Ok(resumed)
}

#[test]
fn a_receiver_that_crashes_at_any_moment_goes_on_and_ends_with_the_same_image() {
    let bytes = 4 * BLOCK_PAYLOAD_BYTES + 9;
    let peer = source(30, bytes);
    crash_everywhere(|medium| receive(medium, &peer).map(|_| ()), bytes);
}

#[test]
fn a_half_received_checkpoint_is_gone_on_with_from_another_source_of_the_same_one() {
    let bytes = 6 * BLOCK_PAYLOAD_BYTES;
    let (first, second) = (source(30, bytes), source(30, bytes));
    let medium = SimMedium::new(PAGED);
    let mut receiver = open(&medium).receive(first.1.id).unwrap();
    receiver.take(&first.0.blocks(&first.1, 0, 4 * BLOCK_BYTES).unwrap()).unwrap();
    drop(receiver);
    let crashed = medium.crashed(|| false);
    assert_eq!(open(&crashed).partial(), Some((id(30), 4)));
    assert_eq!(receive(&crashed, &second).unwrap(), 4, "all was durable that was taken");
    let mut store = open(&crashed);
    assert_eq!(store.log_from(), Slot(31), "what the log has below was passed over");
    take(&mut store, 50, 10).unwrap();
    take(&mut store, 60, 10).unwrap();
    assert_eq!((slots(&store), open(&crashed).log_from()), (vec![50, 60], Slot(31)));
    let mut store = open(&medium.crashed(|| false));
    let mut receiver = store.receive(first.1.id).unwrap();
    receiver.take(&second.0.blocks(&second.1, 4, usize::MAX).unwrap()).unwrap();
    store.install(receiver.finish().unwrap(), Slot(31)).unwrap();
    assert_eq!(read(&store, &store.installed()[0]), image(30, bytes));
    // Another one begins at its beginning, and the old beginning is gone.
    let other = source(40, 10);
    let medium = medium.crashed(|| false);
    assert_eq!(receive(&medium, &other).unwrap(), 0);
    assert_eq!(slots(&open(&medium)), [40]);
    let names = medium.names().unwrap();
    assert!(names.iter().all(|name| !name.contains(&format!("{:016x}", 30))), "{names:?}");
}

#[test]
fn blocks_that_a_dead_process_left_unsynced_are_synced_before_they_count() {
    let bytes = 3 * BLOCK_PAYLOAD_BYTES;
    let peer = source(30, bytes);
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let mut receiver = open(&medium).receive(peer.1.id).unwrap();
        medium.control.fail_persist.store(true, Ordering::SeqCst);
        receiver.take(&peer.0.blocks(&peer.1, 0, usize::MAX).unwrap()).unwrap_err();
        // The process dies, the machine does not: what was written is seen, and is not durable.
        let medium = medium.abandoned();
        assert!(receive(&medium, &peer).unwrap() > 0, "some blocks were there");
        let crashed = medium.crashed(|| false);
        assert_eq!(judge(&crashed, &[], &[30], bytes), [30]);
    }
}

#[test]
fn a_block_that_changed_on_its_way_is_refused_and_asked_for_again() {
    let peer = source(30, 3 * BLOCK_PAYLOAD_BYTES);
    let medium = SimMedium::new(PAGED);
    let mut store = open(&medium);
    let mut receiver = store.receive(peer.1.id).unwrap();
    let whole = peer.0.blocks(&peer.1, 0, usize::MAX).unwrap();
    let mut random = Random(5);
    for _ in 0..200 {
        let mut changed = whole.clone();
        let from = receiver.next() as usize * BLOCK_BYTES;
        let at = from + random.below((changed.len() - from) as u64) as usize;
        changed[at] ^= 1 << random.below(8);
        let refused = receiver.take(&changed[from..]);
        assert!(matches!(refused, Err(CheckpointError::Damaged { .. })), "{refused:?} at {at}");
        assert!(!receiver.is_whole() && receiver.next() <= (at / BLOCK_BYTES) as u64);
    }
    let from = receiver.next() as usize * BLOCK_BYTES;
    receiver.take(&whole[from..]).unwrap();
    let checkpoint = store.install(receiver.finish().unwrap(), Slot(31)).unwrap();
    assert_eq!(read(&store, &checkpoint), image(30, 3 * BLOCK_PAYLOAD_BYTES));
}

#[test]
fn a_changed_byte_is_never_given_out_and_the_one_before_is_still_good() {
    let bytes = 2 * BLOCK_PAYLOAD_BYTES + 500;
    let begin = SimMedium::new(PAGED);
    take(&mut open(&begin), 10, bytes).unwrap();
    take(&mut open(&begin), 20, bytes).unwrap();
    let names = begin.names().unwrap();
    let mut random = Random(1);
    let mut noticed = 0;
    for name in names.iter().filter(|name| name.contains(&format!("{:016x}", 20))) {
        for _ in 0..100 {
            let medium = begin.copy();
            let length = medium.area(name).image().len() as u64;
            let at = random.below(length) as usize;
            medium.area(name).tamper(|bytes| bytes[at] ^= 1 << random.below(8));
            let mut store = open(&medium);
            let newest = store.installed().last().copied().filter(|found| found.id.slot.0 == 20);
            match newest.map(|found| (store.verify(&found), found)) {
                // Behind the last block nothing counts.
                Some((Ok(()), found)) => assert_eq!(read(&store, &found), image(20, bytes)),
                Some((Err(error), found)) => {
                    assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
                    let mut read = Vec::new();
                    store.reader(&found).unwrap().read_to_end(&mut read).unwrap_err();
                    assert!(image(20, bytes).starts_with(&read), "what came out is the image's");
                    store.distrust(found.id.slot);
                    noticed += 1;
                }
                None => {
                    assert_eq!(store.bad(), [Slot(20)]);
                    assert_eq!(store.log_from(), Slot(21), "it may have been a received one");
                    noticed += 1;
                }
            }
            let before = store.installed()[0];
            assert_eq!(read(&store, &before), image(10, bytes));
        }
    }
    assert!(noticed > 100, "{noticed} changes were noticed");
}

#[test]
fn a_part_that_is_missing_or_of_another_checkpoint_is_noticed() {
    let bytes = 3 * BLOCK_PAYLOAD_BYTES;
    let medium = SimMedium::new(PAGED);
    take(&mut open(&medium), 10, bytes).unwrap();
    take(&mut open(&medium), 20, bytes).unwrap();
    let part = |slot: u64| format!("checkpoint-{slot:016x}-00000001");
    let missing = medium.copy();
    missing.forget(&part(20));
    let store = open(&missing);
    let failed = store.verify(&store.installed()[1]).unwrap_err();
    assert!(matches!(failed, CheckpointError::Unreadable { .. }), "{failed}");
    store.verify(&store.installed()[0]).unwrap();
    let other = medium.area(&part(10)).image();
    medium.area(&part(20)).tamper(|bytes| bytes.copy_from_slice(&other));
    let store = open(&medium);
    let failed = store.verify(&store.installed()[1]).unwrap_err();
    assert!(failed.to_string().contains("another checkpoint"), "{failed}");
}

#[test]
fn a_failed_sync_ends_the_checkpoint_and_is_not_tried_again() {
    let medium = SimMedium::new(PAGED);
    take(&mut open(&medium), 10, 10).unwrap();
    let mut store = open(&medium);
    let mut writer = store.create(id(20)).unwrap();
    medium.control.fail_persist.store(true, Ordering::SeqCst);
    let whole = image(20, 40 * BLOCK_PAYLOAD_BYTES);
    let failed = whole.chunks(10_000).find_map(|piece| writer.write(piece).err()).unwrap();
    assert!(matches!(failed, CheckpointError::Failed { .. }), "{failed}");
    medium.control.fail_persist.store(false, Ordering::SeqCst);
    assert!(writer.write(&whole[..BLOCK_BYTES * 2]).is_err(), "the device works again, too late");
    assert!(writer.finish().is_err());
    assert_eq!(slots(&open(&medium)), [10]);
    // The same for one that arrives, and for the certificate.
    let peer = source(30, 20 * BLOCK_PAYLOAD_BYTES);
    let mut receiver = store.receive(peer.1.id).unwrap();
    medium.control.fail_persist.store(true, Ordering::SeqCst);
    let blocks = peer.0.blocks(&peer.1, 0, usize::MAX).unwrap();
    receiver.take(&blocks).unwrap_err();
    medium.control.fail_persist.store(false, Ordering::SeqCst);
    assert!(receiver.is_poisoned() && receiver.finish().is_err());
    let mut writer = store.create(id(40)).unwrap();
    writer.write(b"all of it").unwrap();
    let finished = writer.finish().unwrap();
    medium.control.fail_persist.store(true, Ordering::SeqCst);
    store.install(finished, Slot(0)).unwrap_err();
    medium.control.fail_persist.store(false, Ordering::SeqCst);
    assert_eq!((slots(&store), slots(&open(&medium))), (vec![10], vec![10]));
}

#[test]
fn a_full_disk_costs_the_checkpoint_and_nothing_else() {
    let medium = SimMedium::new(PAGED);
    take(&mut open(&medium), 10, 10).unwrap();
    let mut store = open(&medium);
    let mut writer = store.create(id(20)).unwrap();
    writer.write(&image(20, 3 * BLOCK_PAYLOAD_BYTES)).unwrap();
    medium.control.full.store(true, Ordering::SeqCst);
    let full = writer.finish().unwrap_err();
    assert!(matches!(full, CheckpointError::Full { .. }), "{full}");
    medium.control.full.store(false, Ordering::SeqCst);
    let names = medium.names().unwrap();
    assert!(names.iter().all(|name| !name.contains(&format!("{:016x}", 20))), "{names:?}");
    take(&mut store, 20, 10).unwrap();
    assert_eq!(slots(&store), [10, 20]);
}

#[test]
fn a_checkpoint_that_somebody_reads_is_not_removed() {
    let medium = SimMedium::new(PAGED);
    let mut store = open(&medium);
    for slot in [10, 20, 30] {
        let mut writer = store.create(id(slot)).unwrap();
        writer.write(&image(slot, 100)).unwrap();
        let finished = writer.finish().unwrap();
        store.install(finished, Slot(0)).unwrap();
        store.prune(&[Slot(10)]).unwrap();
    }
    assert_eq!(slots(&store), [10, 20, 30]);
    store.prune(&[]).unwrap();
    assert_eq!((slots(&store), slots(&open(&medium))), (vec![20, 30], vec![20, 30]));
    assert!(store.create(id(30)).is_err(), "a good one is never written over");
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoint-1")
}

const FIXTURE_BYTES: usize = 300;

/// The fixture was written by `write_the_fixture`, and must open for ever.
#[test]
fn a_checkpoint_of_format_1_opens() {
    let directory = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture()).unwrap() {
        let file = file.unwrap();
        let mut bytes = std::fs::read(file.path()).unwrap();
        // Areas are kept without the zeros at their end.
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        std::fs::write(directory.path().join(file.file_name()), bytes).unwrap();
    }
    // The last part is read as a whole block.
    let part = directory.path().join(format!("checkpoint-{:016x}-00000000", 99));
    let file = std::fs::OpenOptions::new().write(true).open(part).unwrap();
    file.set_len(BLOCK_BYTES as u64).unwrap();
    let medium = Arc::new(MappedMedium::open(directory.path()).unwrap());
    let store = open(&medium);
    assert_eq!(slots(&store), [99]);
    assert_eq!(store.installed()[0].id, id(99));
    assert_eq!(read(&store, &store.installed()[0]), image(99, FIXTURE_BYTES));
}

#[test]
#[ignore = "writes the fixture of a format version, once"]
fn write_the_fixture() {
    let medium = SimMedium::new(PAGED);
    take(&mut open(&medium), 99, FIXTURE_BYTES).unwrap();
    std::fs::create_dir_all(fixture()).unwrap();
    for name in medium.names().unwrap() {
        let bytes = medium.area(&name).image();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        std::fs::write(fixture().join(name), &bytes[..end]).unwrap();
    }
}
