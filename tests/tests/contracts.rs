//! The contracts of the core: that they cost nothing when off, that all are reached, and random states and
//! messages with the contracts as the judge.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use quorate_consensus::batch::{GroupHeader, SessionCommand};
use quorate_consensus::session::{Admission, SessionTable};
use quorate_consensus::{
    Accept, Ballot, Configuration, Configurations, Entry, Incarnation, Member, Message, Nanos,
    NodeId, Paxos, Persist, PersistNumber, Restored, Row, Run, Settings, Slot, Value, ValueKind,
};
use quorate_pmem_log::{Log, LogOptions, MediumKind, Record};
use std::sync::Arc;

/// Three replicas of the core `$core`, one of which leads, and so many commands that all accept.
macro_rules! three_replicas {
    ($core:ident, $commands:expr) => {{
        use $core::{Accept, Nanos, NodeId, PersistNumber, Value};
        let mut cores = quorate_tests::three_cores!($core);
        let mut emitted = [0; 3];
        let mut left = $commands;
        for time in 0..2_000 {
            let now = Nanos::from_millis(time);
            for from in 0..3 {
                cores[from].on_time(now);
                if left > 0 && cores[from].propose(Value::noop()).is_some() {
                    left -= 1;
                }
                while cores[from].poll_persist().is_some() {
                    emitted[from] += 1;
                }
                cores[from].on_persisted(PersistNumber(emitted[from]));
                while let Some((to, message)) = cores[from].poll_message() {
                    let at = NodeId(from as u16 + 1);
                    cores[usize::from(to.0) - 1].on_message(now, at, message);
                }
                for to in (0..3).filter(|to| *to != from) {
                    let (at, peer) = (NodeId(from as u16 + 1), NodeId(to as u16 + 1));
                    let mut record = Accept::default();
                    if let Some(shipment) = cores[from].next_shipment(peer, 1 << 20) {
                        record = Accept {
                            ballot: shipment.ballot,
                            first: shipment.first,
                            commit_slot: shipment.commit_slot,
                            values: shipment.values.cloned().collect(),
                        };
                    }
                    if !record.values.is_empty() {
                        cores[from].shipped(peer, record.last());
                        cores[to].on_accept(now, at, &mut record).unwrap();
                    }
                    let row = cores[from].row(peer);
                    cores[to].on_row(now, at, row);
                }
                while let Some((slot, _)) = cores[from].next_to_apply() {
                    cores[from].on_applied(slot);
                }
            }
        }
        let applied: Vec<u64> = cores.iter().map(|core| core.applied_slot().0).collect();
        applied
    }};
}

#[test]
fn a_contract_that_is_off_evaluates_nothing() {
    let before = quorate_consensus::contract::all_evaluations();
    let with = three_replicas!(quorate_consensus, 50);
    let evaluated = quorate_consensus::contract::all_evaluations() - before;
    let without = three_replicas!(quorate_consensus_off, 50);
    assert_eq!(with, without, "contracts change nothing");
    assert!(with.iter().all(|applied| *applied == 51), "{with:?}");
    const { assert!(quorate_consensus::contract::CHECKED) };
    const { assert!(!quorate_consensus_off::contract::CHECKED) };
    let (mut on, mut off, mut always) = (0, 0, 0);
    for contract in contracts() {
        if contract.tier == "always" {
            always += quorate_consensus_off::contract::evaluations(&contract.text);
        } else {
            on += quorate_consensus::contract::evaluations(&contract.text);
            off += quorate_consensus_off::contract::evaluations(&contract.text);
        }
    }
    off += quorate_consensus_off::contract::evaluations("old");
    println!(
        "checked contracts: {on} evaluations on, {off} off; {always} always; {evaluated} of all"
    );
    assert_eq!(off, 0, "a contract is evaluated although it is off");
    assert!(on > 1_000 && always > 100, "nothing is counted: {on} on, {always} always");
}

struct Contract {
    tier: String,
    text: String,
}

/// The contracts in the sources of the core and of the log.
fn contracts() -> Vec<Contract> {
    let mut found = Vec::new();
    let root = quorate_tests::folder().join("..");
    let mut folders = vec![root.join("consensus/src"), root.join("pmem-log/src")];
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "contract.rs") {
                let text = std::fs::read_to_string(path).unwrap();
                for kind in ["requires!(", "ensures!(", "invariant!("] {
                    for rest in text.split(kind).skip(1) {
                        let tier = rest.split(',').next().unwrap().trim().to_owned();
                        let text = rest.split('"').nth(1).unwrap().to_owned();
                        found.push(Contract { tier, text });
                    }
                }
            }
        }
    }
    assert!(found.len() > 40, "only {} contracts", found.len());
    found
}

/// Prints what `cargo xtask rules` reads.
#[test]
fn every_contract_is_reached() {
    let scripts = quorate_tests::folder().join("scripts");
    for file in std::fs::read_dir(scripts).unwrap() {
        let path = file.unwrap().path();
        quorate_tests::script::run_file(&path, false).unwrap();
    }
    for seed in 0..20 {
        let _ = quorate_tests::script::walk::walk(seed, false);
    }
    a_log_is_appended_and_trimmed();
    groups_are_applied_once(&[(1, 1, 3), (1, 2, 4), (7, 1, 1)], &[5, 3, 900]);
    checkpoints(&[2, 5]);
    quorate_tests::passive::all();
    let mut unreached = Vec::new();
    for Contract { text, .. } in contracts() {
        let times = quorate_consensus::contract::evaluations(&text);
        println!("contract reached {times} times: {text}");
        if times == 0 {
            unreached.push(text);
        }
    }
    assert!(unreached.is_empty(), "contracts that no test reaches: {unreached:#?}");
}

/// Rules A5 and K5, on a medium with a thread that syncs.
fn a_log_is_appended_and_trimmed() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions {
        directory: directory.path().into(),
        medium: MediumKind::File,
        node: NodeId(1),
        segment_bytes: 1 << 20,
    };
    let (mut log, _) = Log::open(&options, Incarnation(1), Arc::new(|| {})).unwrap();
    let payload = bytes::Bytes::from(vec![0; 300_000]);
    for slot in 1..=20 {
        let value = Value { kind: ValueKind::Commands, checksum: 0, bytes: payload.clone() };
        let entry = Entry { slot: Slot(slot), ballot: ballot_of(1, 1), value };
        let lsn = log.append(&Record::Entry(entry), Slot::ZERO).unwrap();
        log.wait_durable(lsn).unwrap();
    }
    log.trim(Slot(15)).unwrap();
    assert!(log.first_slot() > Slot(1) && log.first_slot() <= Slot(15), "{:?}", log.first_slot());
}

// --- Random states and messages ---

fn member(node: u16) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(node.into()) }
}

fn ballot_of(round: u64, node: u16) -> Ballot {
    Ballot { round, node: NodeId(node) }
}

/// What a leader proposes for a slot under its ballot: one value (rule P7).
fn value_of(ballot: Ballot, slot: u64) -> Value {
    let bytes = format!("{ballot} {slot}").into();
    Value { kind: ValueKind::Commands, checksum: 0, bytes }
}

fn core(promised: Ballot, accepted: Vec<Entry>) -> Paxos {
    core_with(Settings::new(NodeId(1), Incarnation(1)), promised, accepted)
}

fn core_with(settings: Settings, promised: Ballot, accepted: Vec<Entry>) -> Paxos {
    quorate_tests::plant();
    let founding = Configuration::of_voters(1, (1..=3).map(member).collect());
    let restored = Restored {
        promised,
        commit_slot: Slot::ZERO,
        log_first: Slot(1),
        accepted,
        configurations: Configurations::new(founding),
        remembers: true,
    };
    Paxos::new(settings, restored, Nanos(0))
}

/// What may come to an acceptor.
#[derive(Clone, Debug)]
enum Event {
    Prepare(u64, u16, u64),
    Record { round: u64, node: u16, first: u64, count: u64, commit: u64 },
    LeaderRow { round: u64, node: u16, commit: u64 },
    CatchUp { first: u64, count: u64 },
    Request(u64),
    Persisted(u64),
    Restart,
    Time(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let node = 2..=3u16;
    prop_oneof![
        4 => (1..6u64, node.clone(), 1..5u64).prop_map(|(round, node, from)| Event::Prepare(round, node, from)),
        8 => (1..6u64, node.clone(), 1..7u64, 1..4u64, 0..8u64).prop_map(
            |(round, node, first, count, commit)| Event::Record { round, node, first, count, commit }
        ),
        3 => (1..6u64, node, 0..8u64)
            .prop_map(|(round, node, commit)| Event::LeaderRow { round, node, commit }),
        2 => (1..6u64, 1..4u64).prop_map(|(first, count)| Event::CatchUp { first, count }),
        1 => (1..6u64).prop_map(Event::Request),
        6 => (0..4u64).prop_map(Event::Persisted),
        1 => Just(Event::Restart),
        1 => (0..100u64).prop_map(Event::Time),
    ]
}

/// An acceptor with its disk, as it is driven.
struct Driven {
    core: Paxos,
    pending: Vec<Persist>,
    durable: u64,
    promised: Ballot,
    log: Vec<Entry>,
    now: Nanos,
}

impl Driven {
    fn drain(&mut self) {
        while let Some(persist) = self.core.poll_persist() {
            self.pending.push(persist);
        }
        while let Some((_, message)) = self.core.poll_message() {
            if let Message::Promise { ballot, runs, .. } = message {
                // Rule A5: told, so durable.
                assert!(ballot <= self.promised, "{ballot:?} was told before it was durable");
                for run in runs {
                    let held = &self.log[run.last.0 as usize - 1];
                    assert!(held.ballot >= run.ballot, "an entry was told before it was durable");
                }
            }
        }
        // Rule A6: the promise in a row may be ahead of the disk, the vote never.
        let row = self.core.row(NodeId(2));
        assert!(row.promised >= self.promised && row.promised >= row.accepted_ballot);
        for slot in self.core.commit_slot().0 + 1..=row.accepted_slot.0 {
            // A record of a higher ballot may be durable before the vote under it is shown.
            let held = self.log.get(slot as usize - 1).map(|entry| entry.ballot);
            let shown = held.is_some_and(|held| held >= row.accepted_ballot);
            assert!(shown, "a vote is shown that is not on the disk: {held:?} of {row:?}");
        }
    }

    fn persist(&mut self, count: u64) {
        for persist in self.pending.drain(..(count as usize).min(self.pending.len())) {
            self.durable += 1;
            match persist {
                Persist::Promise(ballot) => {
                    assert!(ballot > self.promised, "rule A1");
                    self.promised = ballot;
                }
                Persist::Entry(entry) => {
                    let index = entry.slot.0 as usize - 1;
                    assert!(index <= self.log.len(), "rule A3");
                    self.log.truncate(self.log.len().max(index));
                    match self.log.get_mut(index) {
                        Some(held) => *held = entry,
                        None => self.log.push(entry),
                    }
                }
            }
        }
        self.core.on_persisted(PersistNumber(self.durable));
    }

    fn take(&mut self, event: &Event) {
        let before = self.core.promised();
        match *event {
            Event::Prepare(round, node, from) => {
                let message = Message::Prepare {
                    ballot: ballot_of(round, node),
                    from: Slot(from),
                    released: Ballot::ZERO,
                };
                self.core.on_message(self.now, NodeId(node), message);
            }
            Event::Record { round, node, first, count, commit } => {
                let ballot = ballot_of(round, node);
                let values = (first..first + count).map(|slot| value_of(ballot, slot)).collect();
                let (first, commit_slot) = (Slot(first), Slot(commit));
                let mut record = Accept { ballot, first, commit_slot, values };
                let due = self.core.commit_slot();
                let gap = self.core.on_accept(self.now, NodeId(node), &mut record);
                // Rule A3: only what leaves a gap is refused as one.
                assert!(gap.is_ok() || first > due.next(), "{gap:?} at {due:?}");
            }
            Event::LeaderRow { round, node, commit } => {
                let ballot = ballot_of(round, node);
                let flags = quorate_consensus::RowFlags(quorate_consensus::RowFlags::LEADING);
                let incarnation = Incarnation(node.into());
                let row = Row {
                    promised: ballot,
                    accepted_ballot: ballot,
                    accepted_slot: Slot(commit),
                    commit_slot: Slot(commit),
                    flags,
                    incarnation,
                    ..Row::default()
                };
                self.core.on_row(self.now, NodeId(node), row);
            }
            Event::CatchUp { first, count } => {
                let entry = |slot| Entry {
                    slot: Slot(slot),
                    ballot: ballot_of(1, 2),
                    value: value_of(ballot_of(1, 2), slot),
                };
                let message = Message::CatchUpReply {
                    first: Slot(first),
                    commit_slot: Slot(first + count - 1),
                    log_first: Slot(1),
                    entries: (first..first + count).map(entry).collect(),
                };
                self.core.on_message(self.now, NodeId(2), message);
            }
            Event::Request(first) => {
                let message = Message::CatchUpRequest { first: Slot(first), bytes_max: 1000 };
                self.core.on_message(self.now, NodeId(3), message);
                while let Some(read) = self.core.poll_log_read() {
                    let within = |entry: &&Entry| entry.slot >= read.first;
                    let entries = self.log.iter().filter(within).cloned().collect();
                    self.core.on_log_read(read, entries);
                }
            }
            Event::Persisted(count) => self.persist(count),
            Event::Restart => {
                self.core = core(self.promised, self.log.clone());
                self.pending.clear();
                self.durable = 0;
                self.now = Nanos(0);
                // Rule A9: the vote begins again under no ballot.
                assert_eq!(self.core.vote(), (Ballot::ZERO, Slot::ZERO));
                assert_eq!(self.core.promised(), self.promised);
                return;
            }
            Event::Time(millis) => {
                self.now = self.now + Nanos::from_millis(millis);
                self.core.on_time(self.now);
            }
        }
        assert!(self.core.promised() >= before, "rule A1");
        self.drain();
    }
}

fn drive(events: &[Event]) {
    let mut driven = Driven {
        core: core(Ballot::ZERO, Vec::new()),
        pending: Vec::new(),
        durable: 0,
        promised: Ballot::ZERO,
        log: Vec::new(),
        now: Nanos(0),
    };
    for event in events {
        driven.take(event);
    }
}

/// Rules S1, S2 and S8 against a table that is nothing but the next number of each session.
fn groups_are_applied_once(groups: &[(u64, u64, u32)], stamps: &[u64]) {
    quorate_tests::plant();
    let mut table = SessionTable::new();
    let mut next = std::collections::BTreeMap::new();
    for (index, (session, first, count)) in groups.iter().enumerate() {
        let (session, first) = (session % 3 + 1, first % 8);
        let slot = Slot(index as u64 + 1);
        if let Some(stamp) = stamps.get(index) {
            table.advance(*stamp);
        }
        let due = next.entry(session).or_insert_with(|| {
            let owner = 0;
            table.control(slot, SessionCommand::Open { session, owner, idle_ms: 0 });
            1u64
        });
        let header = GroupHeader {
            session,
            first_sequence: first,
            count: *count,
            acknowledged_below: 0,
            length: 0,
        };
        let end = first + u64::from(*count);
        let admitted = table.admit(slot, &header);
        if first > *due {
            assert_eq!(admitted, Admission::Gap { expected: *due });
        } else if end <= *due {
            assert_eq!(admitted, Admission::Duplicate);
        } else {
            let known = (*due - first) as u32;
            assert_eq!(admitted, Admission::Apply { known });
            table.record(session, *due, count - known, bytes::Bytes::new());
            *due = end;
        }
        assert_eq!(table.next_sequence(session), Some(*due));
    }
}

/// Rules K3 and K4: jumps by checkpoints.
fn checkpoints(slots: &[u64]) {
    let entries = (1..=3).map(|slot| Entry {
        slot: Slot(slot),
        ballot: ballot_of(1, 2),
        value: value_of(ballot_of(1, 2), slot),
    });
    let mut core = core(ballot_of(2, 3), entries.collect());
    let founding = Configuration::of_voters(1, (1..=3).map(member).collect());
    for slot in slots.iter().copied().map(Slot).filter(|slot| *slot > Slot::ZERO) {
        if slot < core.applied_slot() {
            continue;
        }
        let mut known = Configurations::new(founding.clone());
        let members = Configuration::of_voters(slot.0 + 1, vec![member(1), member(2)]);
        known.note(slot.previous(), Some(members));
        core.on_checkpoint(Nanos(0), slot, known);
        // Rules C1 and K3: who decides behind it comes with it.
        assert_eq!(core.configurations().at(slot.next()).id, slot.0 + 1);
        assert_eq!((core.commit_slot(), core.applied_slot()), (slot, slot));
        assert_eq!(core.promised(), ballot_of(2, 3));
        // Rule K4: what stood at or below it was not known chosen, and is given to nobody.
        let message = Message::CatchUpRequest { first: Slot(1), bytes_max: 1000 };
        core.on_message(Nanos(0), NodeId(2), message);
        assert_eq!(core.poll_log_read(), None);
        let answer = core.poll_message();
        assert!(
            matches!(&answer, Some((_, Message::CatchUpReply { log_first, entries, .. }))
                if *log_first > slot && entries.is_empty()),
            "{answer:?}"
        );
    }
}

/// Replica 1 of three stands for election at 500 ms, and replica 2 promises, having accepted `runs`.
fn candidate(lease: Nanos, runs: Vec<Run>) -> (Paxos, Ballot, Nanos) {
    let mut settings = Settings::new(NodeId(1), Incarnation(1));
    settings.lease = lease;
    let mut core = core_with(settings, Ballot::ZERO, Vec::new());
    let now = Nanos::from_millis(500);
    core.on_time(now);
    let mut ballot = Ballot::ZERO;
    while let Some((to, message)) = core.poll_message() {
        if let (NodeId(2), Message::PreVote { ballot: asked, .. }) = (to, message) {
            ballot = asked;
        }
    }
    let incarnation = Incarnation(2);
    let promised = Ballot::ZERO;
    let granted = Message::PreVoteReply { ballot, granted: true, promised, incarnation };
    core.on_message(now, NodeId(2), granted);
    persist_all(&mut core);
    let (from, commit_slot) = (Slot(1), Slot::ZERO);
    let promise = Message::Promise { ballot, from, commit_slot, runs, incarnation };
    core.on_message(now, NodeId(2), promise);
    (core, ballot, now)
}

fn persist_all(core: &mut Paxos) {
    let mut emitted = core.durable_through();
    while core.poll_persist().is_some() {
        emitted.0 += 1;
    }
    core.on_persisted(emitted);
    while core.poll_message().is_some() {}
}

fn row_of_two(ballot: Ballot, slot: u64) -> Row {
    Row {
        promised: ballot,
        accepted_ballot: ballot,
        accepted_slot: Slot(slot),
        incarnation: Incarnation(2),
        ..Row::default()
    }
}

// Rule P5.
#[test]
fn a_value_that_was_accepted_under_a_lower_ballot_than_reported_is_not_adopted() {
    let reported = ballot_of(0, 3);
    let runs = vec![Run { first: Slot(1), last: Slot(1), ballot: reported }];
    let (mut core, ballot, now) = candidate(Nanos(0), runs);
    let values = |accepted: Ballot| Message::Values {
        ballot,
        entries: vec![Entry { slot: Slot(1), ballot: accepted, value: value_of(accepted, 1) }],
    };
    core.on_message(now, NodeId(2), values(ballot_of(0, 2)));
    assert!(!core.role_is_leader(), "it adopted what nobody reported");
    core.on_message(now, NodeId(2), values(reported));
    assert!(core.role_is_leader());
}

// Rule C6.
#[test]
fn what_another_disk_of_a_voter_voted_for_does_not_count() {
    let (mut core, ballot, now) = candidate(Nanos(0), Vec::new());
    persist_all(&mut core);
    core.on_row(now, NodeId(2), Row { incarnation: Incarnation(99), ..row_of_two(ballot, 1) });
    assert_eq!(core.commit_slot(), Slot::ZERO);
    core.on_row(now, NodeId(2), row_of_two(ballot, 0));
    assert_eq!(core.commit_slot(), Slot::ZERO, "the vote of a disk that is no member counts");
    core.on_row(now, NodeId(2), row_of_two(ballot, 1));
    assert_eq!(core.commit_slot(), Slot(1));
}

// Rules R8 and R9: a lease of 200 ms lasts 197 ms from the question on, by the leader's clock, and answers
// a read at a reading of the clock that is later than the read.
#[test]
fn a_lease_is_counted_from_the_question_and_ends_before_the_followers_wait() {
    let lease = Nanos::from_millis(200);
    let (mut core, ballot, began) = candidate(lease, Vec::new());
    persist_all(&mut core);
    let at = |millis| began + Nanos::from_millis(millis);
    core.on_row(began, NodeId(2), row_of_two(ballot, 1));
    // With the heartbeat the leader asks.
    core.on_time(at(30));
    let ping = core.row(NodeId(2)).ping;
    let micros = core.row(NodeId(2)).lease_asked;
    let granted = Row { pong: ping, lease_granted: micros, ..row_of_two(ballot, 1) };
    assert!(micros == 200_000 && ping > 0 && !core.holds_lease());
    core.on_row(at(100), NodeId(2), granted);
    assert!(core.holds_lease());
    let ticket = core.read_index(at(100));
    core.start_reads();
    assert_eq!(core.poll_read(), None, "the clock was not read after the read came");
    core.note_time(at(101));
    core.start_reads();
    assert_eq!(core.poll_read().map(|ready| ready.through), Some(ticket));
    core.note_time(at(30 + 196));
    assert!(core.holds_lease());
    core.note_time(at(30 + 199));
    assert!(!core.holds_lease(), "the followers may wait no longer");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, rng_seed: RngSeed::Fixed(6), failure_persistence: None, ..ProptestConfig::default() })]

    /// Rules A1 to A9, L1, L3 and L4: whatever comes to an acceptor, its contracts hold, and so does
    /// what its disk can say.
    #[test]
    fn an_acceptor_keeps_its_contracts(events in prop::collection::vec(event(), 1..40)) {
        drive(&events);
    }

    /// Rules S1 and S2.
    #[test]
    fn sessions_keep_their_contracts(
        groups in prop::collection::vec((0..3u64, 0..8u64, 1..4u32), 1..30),
        stamps in prop::collection::vec(0..1000u64, 0..30),
    ) {
        groups_are_applied_once(&groups, &stamps);
    }

    /// Rules C2 and C9: what the configurations take for chosen is what the definition says.
    #[test]
    fn each_slot_is_decided_by_its_own_configuration(
        second in prop::collection::btree_set(1..=5u16, 1..=5),
        at in 1..8u64,
        reached in prop::collection::vec(0..12u64, 5),
    ) {
        quorate_tests::plant();
        let first = Configuration::of_voters(1, (1..=3).map(member).collect());
        let second = Configuration::of_voters(2, second.into_iter().map(member).collect());
        let mut known = Configurations::new(first.clone());
        known.note(Slot(at), Some(second.clone()));
        let slot_of = |member: Member| Slot(reached[usize::from(member.node.0) - 1]);
        let mut chosen = 0;
        loop {
            let slot = Slot(chosen + 1);
            let deciding = if slot.0 <= at { &first } else { &second };
            let votes = deciding.electors().filter(|member| slot_of(*member) >= slot).count();
            if votes * 2 <= deciding.electors().count() || chosen > 20 {
                break;
            }
            chosen += 1;
        }
        prop_assert_eq!(known.chosen_through(Slot::ZERO, slot_of), Slot(chosen));
    }

    /// Rules K3 and K4.
    #[test]
    fn checkpoints_keep_their_contracts(slots in prop::collection::vec(1..9u64, 1..5)) {
        checkpoints(&slots);
    }
}
