//! What a recovery keeps, slot by slot, from logs that were written by hand.
//!
//! Rule F7.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use quorate_consensus::{
    Ballot, Configuration, Entry, Genesis, Incarnation, Member, NodeId, Slot, Value, ValueKind,
};
use quorate_pmem_log::{Log, LogOptions, LogReader, MediumKind, Record};
use quorate_replica::{RecoverError, Recovery};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOST: u64 = 77;

fn value(text: &str) -> Value {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    Value { kind: ValueKind::Commands, checksum: crc32c::crc32c(&bytes), bytes }
}

fn voters(count: u16) -> Configuration {
    let voter =
        |node| Member { node: NodeId(node), incarnation: Incarnation(u64::from(node) * 11) };
    Configuration::of_voters(1, (1..=count).map(voter).collect())
}

/// The log of `node` in a cluster of `count`: slots with ballots and texts, known chosen up to `commit`.
fn write(
    home: &Path,
    node: u16,
    count: u16,
    commit: u64,
    slots: &[(u64, Ballot, &str)],
) -> PathBuf {
    let options = LogOptions {
        directory: home.join(node.to_string()),
        medium: MediumKind::Emulated,
        node: NodeId(node),
        segment_bytes: 64 << 10,
    };
    let incarnation = Incarnation(u64::from(node) * 11);
    let (mut log, _) = Log::open(&options, incarnation, Arc::new(|| {})).unwrap();
    let configuration = voters(count);
    let genesis = Genesis { cluster: LOST, configuration, recovered_from: None };
    log.set_genesis(genesis.encode()).unwrap();
    for (slot, ballot, text) in slots {
        let entry = Entry { slot: Slot(*slot), ballot: *ballot, value: value(text) };
        log.append(&Record::Entry(entry), Slot(commit.min(slot - 1))).unwrap();
    }
    let newest = slots.iter().map(|(_, ballot, _)| *ballot).max().unwrap();
    log.append(&Record::Promise(newest), Slot(commit)).unwrap();
    log.close().unwrap();
    options.directory
}

fn ballot(round: u64, node: u16) -> Ballot {
    Ballot { round, node: NodeId(node) }
}

fn why(refused: Result<Recovery, RecoverError>) -> String {
    refused.unwrap_err().to_string()
}

#[test]
fn the_value_of_the_highest_ballot_stays_and_holes_become_empty() {
    let home = tempfile::tempdir().unwrap();
    let (old, new) = (ballot(1, 1), ballot(2, 2));
    let of_three: Vec<(u64, Ballot, &str)> =
        (1..=7).map(|slot| (slot, old, if slot <= 5 { "chosen" } else { "old" })).collect();
    let of_two = [&of_three[..5], &[(6, new, "new"), (9, new, "beyond")]].concat();
    let three = write(home.path(), 3, 5, 5, &of_three);
    let two = write(home.path(), 2, 5, 4, &of_two);
    // Who goes on need not know most.
    let other = Recovery::plan(&two, std::slice::from_ref(&three)).unwrap();
    assert_eq!((other.certain(), other.last(), other.holes()), (Slot(5), Slot(9), 1));
    let plan = Recovery::plan(&three, &[two]).unwrap();
    assert_eq!((plan.cluster(), plan.node()), (LOST, NodeId(3)));
    assert_eq!((plan.certain(), plan.last(), plan.holes()), (Slot(5), Slot(9), 1));
    assert_eq!(plan.missing(), [NodeId(1), NodeId(4), NodeId(5)]);
    assert!(plan.may_lose(), "three of five choose without the two");
    // A plan changes nothing.
    assert_eq!(LogReader::open(&three).unwrap().recovered().commit_slot, Slot(5));

    let done = plan.carry_out(78).unwrap();
    assert_eq!((done.cluster, done.through), (78, Slot(10)));
    let log = LogReader::open(&three).unwrap();
    let recovered = log.recovered();
    assert_eq!((recovered.commit_slot, recovered.promised), (Slot(10), ballot(3, 3)));
    let genesis = Genesis::decode(recovered.identity.genesis.as_ref().unwrap()).unwrap();
    assert_eq!((genesis.cluster, genesis.recovered_from), (78, Some(LOST)));
    let mut entries = Vec::new();
    log.read(Slot(5), 1 << 20, &mut entries).unwrap();
    let texts: Vec<&[u8]> = entries[..5].iter().map(|entry| &entry.value.bytes[..]).collect();
    assert_eq!(texts, [&b"chosen"[..], b"new", b"old", b"", b"beyond"]);
    let alone = Configuration::decode(&entries[5].value.bytes).unwrap();
    assert_eq!((alone.id, alone.settled, &alone.voters), (2, true, &vec![voters(3).voters[2]]));
    drop(log);
    // It may be lost again; then its number is the one to confirm.
    let again = Recovery::plan(&three, &[]);
    assert!(why(again).contains("enough for a majority"));
}

#[test]
fn a_majority_is_started_and_not_recovered_and_half_of_four_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let slots = [(1, ballot(1, 1), "a"), (2, ballot(1, 1), "b")];
    let [one, two, three] = [1, 2, 3].map(|node| write(home.path(), node, 4, 1, &slots));
    let plan = Recovery::plan(&one, std::slice::from_ref(&two)).unwrap();
    assert!(!plan.may_lose(), "two of four choose nothing alone");
    let alone = Recovery::plan(&one, &[]).unwrap();
    assert!(alone.may_lose(), "three of four do");
    let said = why(Recovery::plan(&one, &[two, three.clone()]));
    assert!(said.contains("start them, nothing is lost"), "{said}");
    let said = why(Recovery::plan(&one, std::slice::from_ref(&one)));
    assert!(said.contains("named already"), "{said}");
    // The disk of a replica that is another one than the configuration names does not count.
    let stranger = home.path().join("stranger");
    std::fs::create_dir(&stranger).unwrap();
    let more = write(&stranger, 5, 4, 1, &slots);
    assert!(Recovery::plan(&one, &[more]).unwrap().may_lose());
}

#[test]
fn a_damaged_log_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let slots: Vec<(u64, Ballot, &str)> =
        (1..=20).map(|slot| (slot, ballot(1, 1), "something of some length")).collect();
    let one = write(home.path(), 1, 3, 10, &slots);
    let segment = std::fs::read_dir(&one).unwrap().flatten().map(|file| file.path());
    let segment = segment.filter(|path| path.to_string_lossy().contains("segment-")).min().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(9).position(|window| window == b"something").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let said = why(Recovery::plan(&one, &[]));
    assert!(said.contains("its log lost something"), "{said}");
}
