//! Torn tails, flipped bits, failed syncs, full disks, crashes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use proptest::prelude::*;
use quorate_consensus::{Ballot, Slot};
use quorate_pmem_log::{
    End, Log, LogError, LogOptions, Lsn, Medium, Profile, Record, Recovered, SyncSteps,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::*;

const FIRST_SEGMENT: &str = "segment-0000000000000001";

fn append(log: &mut Log, slot: u64, round: u64, bytes: usize) -> Result<Lsn, LogError> {
    log.append(&Record::Entry(entry(slot, round, bytes)), Slot(slot - 1))
}

fn batch(log: &mut Log, slots: std::ops::RangeInclusive<u64>) {
    for slot in slots {
        append(log, slot, 1, 40 + slot as usize).unwrap();
    }
    log.wait_durable(log.appended()).unwrap();
}

#[test]
fn one_flush_is_one_persist_and_little_more_than_the_payload() {
    let medium = SimMedium::new(DIRECT);
    let (mut log, _) = open(&medium).unwrap();
    batch(&mut log, 1..=1);
    let before = log.statistics();
    let persists = medium.control.persists.load(Ordering::SeqCst);
    let written = medium.control.bytes_written.load(Ordering::SeqCst);
    // Sixteen commands of 64 bytes in one entry, and then thirty-two of them in two entries.
    append(&mut log, 2, 1, 1024).unwrap();
    log.flush().unwrap();
    assert_eq!(medium.control.persists.load(Ordering::SeqCst), persists + 1);
    let one = medium.control.bytes_written.load(Ordering::SeqCst) - written;
    assert!(one * 100 <= 1024 * 125, "{one} bytes for 1024");
    append(&mut log, 3, 1, 1024).unwrap();
    append(&mut log, 4, 1, 1024).unwrap();
    log.flush().unwrap();
    assert_eq!(medium.control.persists.load(Ordering::SeqCst), persists + 2);
    let after = log.statistics();
    assert_eq!(after.flushes - before.flushes, 2);
    assert_eq!(after.bytes_written - before.bytes_written, 3 * (1024 + 64));
    assert_eq!(log.durable().unwrap(), Lsn(4));
}

#[test]
fn what_is_flushed_while_a_sync_runs_goes_with_the_next_one() {
    let medium = SimMedium::new(GROUPED);
    let wakes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&wakes);
    let wake = Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let (mut log, _) =
        Log::open_on(Arc::clone(&medium) as Arc<dyn Medium>, &options(), FRESH, wake).unwrap();
    append(&mut log, 1, 1, 100).unwrap();
    medium.control.close_gate();
    log.flush().unwrap();
    for slot in 2..=20 {
        append(&mut log, slot, 1, 100).unwrap();
        log.flush().unwrap();
        assert_eq!(log.durable().unwrap(), Lsn(0), "nothing is durable before its sync");
    }
    assert_eq!(read_all(&log, 1).len(), 20, "what is in flight and what is staged can be read");
    medium.control.open_gate();
    eventually("all durable", || log.durable().unwrap() == Lsn(20));
    assert_eq!(log.statistics().flushes, 2);
    eventually("two wakes", || wakes.load(Ordering::SeqCst) == 2);
}

/// Syncs of the device for each of `groups` groups of `bytes`, one handed over when the last is done.
fn syncs_a_group(groups: u64, bytes: usize) -> f64 {
    let medium = SimMedium::new(GROUPED);
    let steps = SyncSteps::default();
    let options = LogOptions { segment_bytes: 8 << 20, ..options() };
    let shared = Arc::clone(&medium) as Arc<dyn Medium>;
    let (mut log, _) = Log::open_stepped(shared, &options, FRESH, &steps).unwrap();
    let before = medium.control.persists.load(Ordering::SeqCst);
    for slot in 1..=groups {
        append(&mut log, slot, 1, bytes).unwrap();
        log.flush().unwrap();
        assert!(steps.step(), "the group");
        assert_eq!(log.durable().unwrap(), Lsn(slot), "nothing else came first");
    }
    let syncs = medium.control.persists.load(Ordering::SeqCst) - before;
    syncs as f64 / groups as f64
}

#[test]
fn what_prepares_the_next_segment_costs_large_groups_nothing_and_small_ones_little() {
    // Three segments' worth: each new one costs its header.
    let large = syncs_a_group(90, 256 << 10);
    assert!(large <= 1.05, "{large} syncs for each group of 256 KiB");
    let small = syncs_a_group(4000, 100);
    assert!(small > 1.0 && small <= 1.26, "{small} syncs for each small group");
}

#[test]
fn after_a_failed_sync_nothing_is_ever_acknowledged_again() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let (mut log, _) = open(&medium).unwrap();
        batch(&mut log, 1..=3);
        medium.control.fail_persist.store(true, Ordering::SeqCst);
        let lsn = append(&mut log, 4, 1, 100).unwrap();
        let failed = log.wait_durable(lsn).unwrap_err();
        assert!(matches!(failed, LogError::Poisoned { .. }), "{failed}");
        medium.control.fail_persist.store(false, Ordering::SeqCst);
        for _ in 0..3 {
            assert!(matches!(append(&mut log, 5, 1, 1), Err(LogError::Poisoned { .. })));
            assert!(matches!(log.flush(), Err(LogError::Poisoned { .. })));
            assert!(matches!(log.durable(), Err(LogError::Poisoned { .. })));
            assert!(matches!(log.trim(Slot(2)), Err(LogError::Poisoned { .. })));
        }
        assert_eq!(
            read_all(&log, 1)[..3],
            (1..=3).map(|s| entry(s, 1, 40 + s as usize)).collect::<Vec<_>>()[..]
        );
    }
}

#[test]
fn a_full_disk_is_told_and_clears_by_itself() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let (mut log, _) = open(&medium).unwrap();
        batch(&mut log, 1..=3);
        medium.control.full.store(true, Ordering::SeqCst);
        let mut slot = 4;
        let mut acknowledged = Lsn(3);
        eventually("full", || {
            if append(&mut log, slot, 1, 3000).is_ok() {
                slot += 1;
            }
            log.flush().unwrap();
            acknowledged = log.durable().unwrap();
            log.full()
        });
        assert!(acknowledged.0 < slot, "there was no room for slot {slot}");
        let appended = slot - 1;
        medium.control.full.store(false, Ordering::SeqCst);
        eventually("room again", || append(&mut log, slot, 1, 3000).is_ok());
        eventually("durable", || {
            log.flush().unwrap();
            log.durable().unwrap() == Lsn(slot)
        });
        assert!(!log.full());
        assert_eq!(read_all(&log, 1).len() as u64, appended + 1);
        drop(log);
        let (log, recovered) = open(&medium).unwrap();
        assert_eq!(recovered.damaged, []);
        assert_eq!(read_all(&log, 1).len() as u64, appended + 1);
    }
}

#[test]
fn staged_records_are_bounded() {
    let medium = SimMedium::new(GROUPED);
    let (mut log, _) = open(&medium).unwrap();
    medium.control.close_gate();
    append(&mut log, 1, 1, 100).unwrap();
    log.flush().unwrap();
    let full = (2..2000).find(|slot| append(&mut log, *slot, 1, 20_000).is_err());
    assert!(full.is_some_and(|slot| slot < 1000), "staging is not bounded");
    assert!(log.full());
    medium.control.open_gate();
    log.wait_durable(log.appended()).unwrap();
    assert!(append(&mut log, full.unwrap(), 1, 20_000).is_ok());
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_log_goes_on() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let (mut log, _) = open(&medium).unwrap();
        batch(&mut log, 1..=3);
        let before = medium.area(FIRST_SEGMENT).image();
        batch(&mut log, 4..=6);
        let after = medium.area(FIRST_SEGMENT).image();
        let image = medium.copy();
        let end = after.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let start = before.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let begin = (start as u64).next_multiple_of(profile.alignment) as usize;
        for cut in begin..end {
            let torn = image.copy();
            torn.area(FIRST_SEGMENT).tamper(|bytes| bytes[cut..].fill(0));
            let (mut log, recovered) = open(&torn).unwrap();
            let whole = check_prefix(&log, &recovered, 3, &format!("{profile:?} cut at {cut}"));
            let attempted = after[begin..cut].iter().any(|byte| *byte != 0);
            let kept = (4..=whole)
                .map(|slot| 64 + (40 + slot as usize).next_multiple_of(8))
                .sum::<usize>();
            let rest = after[begin + kept..].iter().take(cut.saturating_sub(begin + kept));
            let expected = attempted && rest.copied().any(|byte| byte != 0);
            let torn_found = matches!(recovered.end, End::TornTail { .. });
            assert_eq!(torn_found, expected, "{profile:?} cut at {cut}: {:?}", recovered.end);
            // One short record, so that what was cut is not simply written over.
            log.append(&Record::Promise(ballot(1)), Slot::ZERO).unwrap();
            log.wait_durable(log.appended()).unwrap();
            let crashed = torn.copy();
            drop(log);
            let (mut log, recovered) = open(&crashed).unwrap();
            assert_eq!(
                (&recovered.end, &recovered.damaged),
                (&End::Clean, &vec![]),
                "{profile:?} cut at {cut}"
            );
            batch(&mut log, whole + 1..=whole + 2);
            drop(log);
            let (log, recovered) = open(&crashed).unwrap();
            assert_eq!((&recovered.end, &recovered.damaged), (&End::Clean, &vec![]));
            assert_eq!(read_all(&log, 1).len() as u64, whole + 2, "{profile:?} cut at {cut}");
        }
    }
}

/// The log holds slots 1 to some slot at or after `acknowledged`, as they were written.
fn check_prefix(log: &Log, recovered: &Recovered, acknowledged: u64, what: &str) -> u64 {
    assert_eq!(recovered.damaged, [], "{what}");
    let entries = read_all(log, 1);
    let last = entries.len() as u64;
    assert!(last >= acknowledged, "{what}: only {last} of {acknowledged}");
    for (entry_read, slot) in entries.iter().zip(1..) {
        assert_eq!(*entry_read, entry(slot, 1, 40 + slot as usize), "{what}");
    }
    last
}

#[test]
fn a_flipped_bit_is_never_data_and_is_damage_where_the_log_was_durable() {
    for profile in [DIRECT, PAGED] {
        let medium = SimMedium::new(profile);
        let (mut log, _) = open(&medium).unwrap();
        batch(&mut log, 1..=2);
        batch(&mut log, 3..=4);
        let proven = medium.area(FIRST_SEGMENT).image().iter().rposition(|b| *b != 0).unwrap();
        batch(&mut log, 5..=6);
        let unsealed = medium.copy();
        drop(log);
        let sealed = medium.copy();
        let image = medium.area(FIRST_SEGMENT).image();
        let end = image.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for at in 0..end {
            // Long stretches of padding are all alike.
            if image[at.saturating_sub(8)..(at + 9).min(end)].iter().all(|byte| *byte == 0) {
                continue;
            }
            for (source, durable) in [(&unsealed, 4), (&sealed, 6)] {
                let flipped = source.copy();
                flipped.area(FIRST_SEGMENT).tamper(|bytes| bytes[at] ^= 1 << (at % 8));
                let what = format!("{profile:?} byte {at}, durable to {durable}");
                let (log, recovered) = open(&flipped).unwrap();
                check_flipped(&log, &recovered, durable, &what);
                if at > proven && durable == 4 {
                    assert_eq!(recovered.damaged, [], "{what}");
                }
            }
        }
    }
}

fn check_flipped(log: &Log, recovered: &Recovered, durable: u64, what: &str) {
    let mut lost = Vec::new();
    for slot in 1..=6 {
        let mut out = Vec::new();
        match log.read(Slot(slot), 0, &mut out) {
            Ok(()) if out.is_empty() => lost.push((slot, false)),
            Ok(()) => assert_eq!(out, [entry(slot, 1, 40 + slot as usize)], "{what}"),
            Err(LogError::Damaged { slot: told, .. }) => {
                assert_eq!(told, Slot(slot), "{what}");
                lost.push((slot, true));
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
    for (slot, told) in lost {
        let reported = recovered.damaged.iter().any(|damage| {
            let named = |(first, last): (Slot, Slot)| (first.0..=last.0).contains(&slot);
            !damage.exact || damage.slots.is_some_and(named)
        });
        assert!(slot > durable || reported, "{what}: slot {slot} vanished: {recovered:?}");
        assert!(!told || reported, "{what}: slot {slot} is damaged and not reported");
        let certain = recovered.damaged.iter().all(|damage| damage.exact);
        assert!(slot > durable || told || !certain, "{what}: slot {slot} answers as empty");
    }
}

#[test]
fn a_damaged_slot_is_repaired_by_appending_it_again() {
    let medium = SimMedium::new(DIRECT);
    let (mut log, _) = open(&medium).unwrap();
    batch(&mut log, 1..=4);
    batch(&mut log, 5..=8);
    drop(log);
    let position = find(&medium.area(FIRST_SEGMENT).image(), b"slot 3 under 1");
    medium.area(FIRST_SEGMENT).tamper(|bytes| bytes[position] ^= 0x40);
    let (mut log, recovered) = open(&medium).unwrap();
    assert_eq!(recovered.damaged.len(), 1);
    assert_eq!(recovered.damaged[0].slots, Some((Slot(3), Slot(3))));
    assert_eq!(read_all(&log, 1).len(), 2);
    let mut out = Vec::new();
    let refused = log.read(Slot(3), 1000, &mut out).unwrap_err();
    assert!(matches!(refused, LogError::Damaged { slot: Slot(3), .. }));
    append(&mut log, 3, 1, 43).unwrap();
    log.close().unwrap();
    let (log, recovered) = open(&medium).unwrap();
    assert_eq!(recovered.damaged, []);
    assert_eq!(read_all(&log, 1).len(), 8);
}

/// A new leader proposed slots 8 to 11 again; the batch that says so is unreadable. The values that
/// an older leader proposed still stand before it, and must not come back.
#[test]
fn what_was_written_again_inside_a_gap_does_not_come_back_in_its_older_form() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let (mut log, _) = open(&medium).unwrap();
        batch(&mut log, 1..=7);
        for slot in 8..=11 {
            let record = Record::Entry(entry(slot, 1, 40));
            log.append(&record, Slot(7)).unwrap();
        }
        log.wait_durable(log.appended()).unwrap();
        let before = medium.area(FIRST_SEGMENT).image();
        for slot in 8..=11 {
            let record = Record::Entry(entry(slot, 2, 40));
            log.append(&record, Slot(7)).unwrap();
        }
        log.wait_durable(log.appended()).unwrap();
        let after = medium.area(FIRST_SEGMENT).image();
        let record = Record::Entry(entry(12, 2, 40));
        log.append(&record, Slot(11)).unwrap();
        log.close().unwrap();
        let changed = |at: &usize| before[*at] != after[*at];
        let begin = (0..before.len()).find(changed).unwrap();
        let end = (0..before.len()).rfind(changed).unwrap() + 1;
        medium.area(FIRST_SEGMENT).tamper(|bytes| bytes[begin..end].fill(0xa5));
        // The damage outlives even that the slots are written again: what else stood in the gap,
        // under which ballot, nobody can tell.
        for _ in 0..2 {
            let (mut log, recovered) = open(&medium).unwrap();
            assert_eq!(recovered.damaged.len(), 1, "{profile:?}");
            assert!(!recovered.damaged[0].exact, "{profile:?}");
            for found in read_all(&log, 1) {
                let older = found.slot.0 >= 8 && found.ballot == ballot(1);
                assert!(!older, "{profile:?}: slot {} under its old ballot", found.slot);
            }
            for slot in 8..=11 {
                let record = Record::Entry(entry(slot, 3, 40));
                log.append(&record, Slot(12)).unwrap();
            }
            log.close().unwrap();
        }
    }
}

fn find(bytes: &[u8], text: &[u8]) -> usize {
    bytes.windows(text.len()).position(|window| window == text).unwrap()
}

#[test]
fn a_lost_segment_is_damage_wherever_it_was() {
    for profile in PROFILES {
        let medium = SimMedium::new(profile);
        let (mut log, _) = open(&medium).unwrap();
        for slot in 1..=60 {
            append(&mut log, slot, 1, 3000).unwrap();
        }
        log.close().unwrap();
        let names = medium.segment_names();
        assert!(names.len() >= 5);
        for lost in &names {
            let image = medium.copy();
            image.forget(lost);
            let (log, recovered) = open(&image).unwrap();
            assert!(!recovered.damaged.is_empty(), "{profile:?} without {lost}");
            assert_eq!(recovered.promise_certain, lost != names.last().unwrap());
            for slot in 1..=60 {
                let mut out = Vec::new();
                match log.read(Slot(slot), 0, &mut out) {
                    Ok(()) if out.is_empty() => {
                        let unknown = recovered.damaged.iter().any(|damage| !damage.exact);
                        assert!(unknown, "slot {slot} vanished without {lost}");
                    }
                    Ok(()) => assert_eq!(out, [entry(slot, 1, 3000)]),
                    Err(error) => assert!(matches!(error, LogError::Damaged { .. })),
                }
            }
        }
    }
}

/// What was asked of a log, and what it said.
#[derive(Clone, Default, Debug)]
struct Model {
    /// The rounds appended for each slot, in order, and how many of them are acknowledged.
    slots: BTreeMap<u64, (Vec<(u64, usize)>, usize)>,
    promised: u64,
    commit: u64,
    trimmed: u64,
    /// With the commit slot given.
    unacknowledged: Vec<(Record, u64)>,
}

impl Model {
    fn appended(&mut self, record: Record, commit: u64) {
        if let Record::Entry(entry) = &record {
            let rounds = &mut self.slots.entry(entry.slot.0).or_default().0;
            rounds.push((entry.ballot.round, entry.value.bytes.len()));
        }
        self.unacknowledged.push((record, commit));
    }

    fn acknowledged(&mut self) {
        for (record, commit) in self.unacknowledged.drain(..) {
            self.commit = self.commit.max(commit);
            match record {
                Record::Promise(ballot) => self.promised = self.promised.max(ballot.round),
                Record::Entry(entry) => {
                    self.promised = self.promised.max(entry.ballot.round);
                    let (rounds, acknowledged) = self.slots.get_mut(&entry.slot.0).unwrap();
                    *acknowledged = rounds.len();
                }
            }
        }
    }

    /// What came back is what was acknowledged, or newer; what was not acknowledged and came back
    /// is relied upon from now on.
    fn check(&mut self, log: &Log, recovered: &Recovered, what: &str) {
        assert_eq!(recovered.damaged, [], "{what}");
        assert!(recovered.promised.round >= self.promised, "{what}: {recovered:?}");
        assert!(recovered.commit_slot.0 >= self.commit, "{what}");
        self.unacknowledged.clear();
        for (slot, (rounds, acknowledged)) in &mut self.slots {
            let mut out = Vec::new();
            log.read(Slot(*slot), 0, &mut out).unwrap_or_else(|error| panic!("{what}: {error}"));
            let Some(read) = out.first() else {
                assert!(*acknowledged == 0 || *slot < self.trimmed, "{what}: slot {slot} is lost");
                rounds.clear();
                *acknowledged = 0;
                continue;
            };
            let written = (read.ballot.round, read.value.bytes.len());
            let newest = rounds.iter().rposition(|round| *round == written);
            let newest = newest.unwrap_or_else(|| panic!("{what}: slot {slot} reads {read:?}"));
            assert_eq!(*read, entry(*slot, written.0, written.1), "{what}");
            assert!(
                newest + 1 >= *acknowledged || *slot < self.trimmed,
                "{what}: slot {slot} is old"
            );
            rounds.truncate(newest + 1);
            *acknowledged = rounds.len();
        }
        let known = self.slots.values().filter(|(rounds, _)| !rounds.is_empty()).count();
        let mut out = Vec::new();
        let first = recovered.first_slot;
        log.read(first, usize::MAX, &mut out).unwrap();
        assert!(out.len() <= known, "{what}: {} entries of {known}", out.len());
    }
}

/// Runs a reproducible load until `steps` are done or the medium is gone.
fn load(log: &mut Log, model: &mut Model, random: &mut Random, steps: u64) -> Result<(), LogError> {
    let mut round = model.promised + 1;
    let mut next = model.slots.keys().next_back().copied().unwrap_or(0) + 1;
    for _ in 0..steps {
        match random.below(12) {
            0 => {
                round += 1;
                let record = Record::Promise(Ballot { round, node: NODE });
                model.appended(record.clone(), next - 1);
                log.append(&record, Slot(next - 1))?;
            }
            // A new leader proposes again what its predecessor did.
            1 => {
                round += 1;
                next = next.saturating_sub(random.below(6)).max(model.trimmed + 1);
            }
            2 => {
                let below = next.saturating_sub(random.below(12));
                // Also a trim that fails half-way may have trimmed.
                model.trimmed = model.trimmed.max(below);
                log.trim(Slot(below))?;
            }
            _ => {
                let bytes = match random.below(8) {
                    0 => 0,
                    1 => 3000 + random.below(4000) as usize,
                    _ => random.below(600) as usize,
                };
                let record = Record::Entry(entry(next, round, bytes));
                model.appended(record.clone(), next - 1);
                log.append(&record, Slot(next - 1))?;
                next += 1;
            }
        }
        if random.below(3) == 0 {
            log.wait_durable(log.appended())?;
            model.acknowledged();
        }
    }
    Ok(())
}

fn crash_and_recover(profile: Profile, seed: u64, crash_at: u64, again_at: u64) {
    let mut random = Random(seed);
    let mut medium = SimMedium::new(profile);
    let mut model = Model::default();
    for (life, crash_at) in [crash_at, again_at, again_at, u64::MAX].into_iter().enumerate() {
        let what = format!("{profile:?} seed {seed} crash at {crash_at} life {life}");
        medium.control.crash_at.store(crash_at, Ordering::SeqCst);
        if let Ok((mut log, recovered)) = open(&medium) {
            model.check(&log, &recovered, &what);
            let _ = load(&mut log, &mut model, &mut random, 60);
        }
        // The process dies, or power fails and of what was not persisted all, some or nothing is
        // kept.
        medium = match random.below(7) {
            6 => medium.abandoned(),
            odds => medium.crashed(|| random.below(4) < odds),
        };
    }
    let (log, recovered) = open(&medium).unwrap();
    model.check(&log, &recovered, &format!("{profile:?} seed {seed} at the end"));
}

#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged() {
    for profile in PROFILES {
        let seeds = if profile.sync_thread { 1 } else { 2 };
        for seed in 0..seeds {
            for crash_at in 0..260 {
                crash_and_recover(profile, seed, crash_at, 5 + crash_at * 7 % 90);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        // A failing case is told in full by its message.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn whatever_is_done_and_wherever_it_crashes_the_log_agrees_with_the_model(
        profile in 0_usize..2, seed in any::<u64>(), first in 0_u64..300, second in 0_u64..300,
    ) {
        crash_and_recover(PROFILES[profile], seed, first, second);
    }
}
