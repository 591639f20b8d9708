//! What fuzzing found in the recovery of logs that changed behind its back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use quorate_consensus::Slot;
use quorate_pmem_log::{End, Log, Record};
use support::*;

const FIRST_SEGMENT: &str = "segment-0000000000000001";

fn append(log: &mut Log, slot: u64, round: u64, bytes: usize) {
    log.append(&Record::Entry(entry(slot, round, bytes)), Slot::ZERO).unwrap();
}

/// Where a record of the first batch of the first segment begins, after entries of these sizes.
fn offset_after(payloads: &[usize]) -> usize {
    payloads.iter().fold(64, |offset, payload| offset + 64 + payload.next_multiple_of(8))
}

#[test]
fn what_is_appended_behind_a_cut_tail_is_read_and_not_what_was_cut() {
    for (profile, first_offset) in [(DIRECT, 64), (PAGED, 4096)] {
        let medium = SimMedium::new(profile);
        let (mut log, _) = open(&medium).unwrap();
        for slot in 1..=4 {
            append(&mut log, slot, 1, 100);
        }
        log.flush().unwrap();
        // On pages, what is cut stays as it is up to the next page.
        let crashed = medium.copy();
        let torn = first_offset - 64 + offset_after(&[100, 100]) + 70;
        crashed.area(FIRST_SEGMENT).tamper(|bytes| bytes[torn] ^= 1);
        let (mut log, recovered) = open(&crashed).unwrap();
        assert!(matches!(recovered.end, End::TornTail { .. }), "{recovered:?}");
        let first = recovered.last_slot.0 + 1;
        for slot in first..first + 3 {
            append(&mut log, slot, 2, 40);
        }
        let expected: Vec<_> = (first..first + 3).map(|slot| entry(slot, 2, 40)).collect();
        assert_eq!(read_all(&log, first), expected, "before the flush");
        log.flush().unwrap();
        assert_eq!(read_all(&log, first), expected);
    }
}

#[test]
fn records_behind_a_short_segment_without_a_header_survive_another_opening() {
    // In the first segment, and in one that follows another.
    for before in [0, 5] {
        let medium = SimMedium::new(DIRECT);
        let (mut log, _) = open(&medium).unwrap();
        for slot in 1..=before {
            append(&mut log, slot, 1, SEGMENT as usize / 5 - 100);
            log.flush().unwrap();
        }
        append(&mut log, before + 1, 1, 3000);
        log.flush().unwrap();
        let crashed = medium.copy();
        let names = crashed.segment_names();
        assert_eq!(names.len(), if before == 0 { 1 } else { 2 });
        let area = crashed.area(names.last().unwrap());
        area.tamper(|bytes| bytes[0] ^= 1);
        area.shorten(136);
        let (mut log, recovered) = open(&crashed).unwrap();
        assert_eq!(recovered.last_slot, Slot(before), "the record in it is torn");
        for slot in before + 1..before + 4 {
            append(&mut log, slot, 2, 40);
        }
        log.flush().unwrap();
        let (log, recovered) = open(&crashed.copy()).unwrap();
        assert_eq!(recovered.last_slot, Slot(before + 3), "{recovered:?}");
        assert_eq!(read_all(&log, before + 1).len(), 3);
        assert_eq!(recovered.promised.round, 2);
    }
}

#[test]
fn a_value_without_bytes_is_read_where_its_segment_ends() {
    let medium = SimMedium::new(DIRECT);
    let (mut log, _) = open(&medium).unwrap();
    let filler = SEGMENT as usize - 64 - 64 - 64;
    append(&mut log, 1, 1, filler);
    append(&mut log, 2, 1, 0);
    assert_eq!(read_all(&log, 2), [entry(2, 1, 0)]);
    log.flush().unwrap();
    let (log, _) = open(&medium.copy()).unwrap();
    assert_eq!(read_all(&log, 2), [entry(2, 1, 0)], "no segment is behind it");
}

#[test]
fn a_promise_lost_in_front_of_a_torn_record_is_not_called_certain() {
    let medium = SimMedium::new(DIRECT);
    let (mut log, _) = open(&medium).unwrap();
    append(&mut log, 1, 1, 100);
    log.append(&Record::Promise(ballot(5)), Slot::ZERO).unwrap();
    log.flush().unwrap();
    append(&mut log, 2, 5, 100);
    log.flush().unwrap();
    let crashed = medium.copy();
    crashed.area(FIRST_SEGMENT).tamper(|bytes| {
        bytes[..offset_after(&[100])].fill(0);
        bytes[offset_after(&[100])..][..64].fill(0);
        bytes[offset_after(&[100, 0]) + 64] ^= 1;
    });
    let (_, recovered) = open(&crashed).unwrap();
    assert!(!recovered.promise_certain, "the promise of round 5 was durable: {recovered:?}");
    assert!(!recovered.damaged.is_empty());
}

#[test]
fn a_record_that_lacks_only_zeros_at_the_end_of_a_short_file_is_read_as_it_was_recovered() {
    let medium = SimMedium::new(DIRECT);
    let (mut log, _) = open(&medium).unwrap();
    append(&mut log, 1, 1, 40);
    append(&mut log, 2, 1, 0);
    log.flush().unwrap();
    let crashed = medium.copy();
    // The last bytes of the header are the upper half of the epoch.
    crashed.area(FIRST_SEGMENT).shorten(offset_after(&[40, 0]) - 2);
    let (log, recovered) = open(&crashed).unwrap();
    assert_eq!((recovered.last_slot, recovered.damaged.len()), (Slot(2), 0));
    assert_eq!(read_all(&log, 1), [entry(1, 1, 40), entry(2, 1, 0)]);
}
