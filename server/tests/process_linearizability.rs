//! Real processes under kills, stops and restarts, and a checker that knows what clients may see.
//!
//! `QUORATE_SECONDS` and `QUORATE_OPERATIONS` make it longer, `QUORATE_SEED` repeats the choice of
//! faults and operations (not their timing).

mod process;

use process::history::Clients;
use process::{Cluster, PATIENCE, environment, wait};
use quorate_check::generate::Random;
use quorate_check::{
    History, HistoryError, Kv, KvInput, KvOutput, Limits, Operation, Verdict, check,
};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

type KvHistory = History<KvInput, KvOutput>;

const CLIENTS: usize = 10;
/// Between two operations of a client, on average: about 1,500 operations a second when all is well.
const PACE: Duration = Duration::from_millis(5);
/// A run with fewer operations a second says nothing.
const OPERATIONS_PER_SECOND_MIN: u64 = 100;
/// Each kind of fault has to happen at least so often.
const FAULTS_MIN: u64 = 2;
const LEADER_CHANGES_MIN: u64 = 4;
/// The run goes on past its time for what is still missing, but not past this.
const OVERTIME: Duration = Duration::from_secs(180);

/// What happened to the cluster.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    leaders_killed: u64,
    followers_killed: u64,
    leaders_paused: u64,
    followers_paused: u64,
    majorities_paused: u64,
    leader_changes: u64,
}

impl Faults {
    /// The kind of fault that happened least often so far, and how often.
    fn rarest(&self) -> u64 {
        let each = [
            self.leaders_killed,
            self.followers_killed,
            self.leaders_paused,
            self.followers_paused,
            self.majorities_paused,
        ];
        each.into_iter().min().unwrap_or(0)
    }
}

/// Breaks the cluster and waits until it is whole again, fault after fault.
struct Nemesis {
    cluster: Cluster,
    random: Random,
    faults: Faults,
}

impl Nemesis {
    /// One fault. Kinds take turns; who leads and how long it lasts differ.
    fn strike(&mut self, clients: &Clients, round: u64) {
        let leader = self.cluster.leader();
        let ballot = self.ballot();
        let follower = self.cluster.follower(&[]);
        match round % 5 {
            0 => {
                self.kill(clients, leader);
                self.faults.leaders_killed += 1;
            }
            1 => {
                self.pause(&[leader]);
                self.faults.leaders_paused += 1;
            }
            2 => {
                self.kill(clients, follower);
                self.faults.followers_killed += 1;
            }
            3 => {
                self.pause(&[follower]);
                self.faults.followers_paused += 1;
            }
            _ => {
                self.pause(&[leader, follower]);
                self.faults.majorities_paused += 1;
            }
        }
        self.cluster.leader();
        self.faults.leader_changes += u64::from(self.ballot() != ballot);
        clients.advance(200);
    }

    fn kill(&mut self, clients: &Clients, victim: u16) {
        self.cluster.kill(victim);
        // The other two serve on meanwhile.
        clients.advance(100);
        self.cluster.restart(victim);
        self.cluster.wait("the restarted replica", || self.cluster.report(victim));
    }

    /// Longer than any election time-out, and shorter.
    fn pause(&mut self, victims: &[u16]) {
        for victim in victims {
            self.cluster.pause(*victim);
        }
        let lasting = Duration::from_millis(100 + self.random.below(1_400));
        let until = Instant::now() + lasting;
        wait("the end of the pause", PATIENCE, || (Instant::now() >= until).then_some(()));
        for victim in victims {
            self.cluster.resume(*victim);
        }
    }

    /// The ballot of whoever leads.
    fn ballot(&self) -> String {
        self.cluster.wait("a leader's ballot", || {
            let reports = self.cluster.reports();
            let mut reports = reports.into_iter().flatten();
            reports.find(|report| report.role == "leader").map(|report| report.ballot)
        })
    }
}

#[test]
fn leaders_and_followers_killed_and_stopped_under_ten_clients_stay_linearizable() {
    let seconds = environment("QUORATE_SECONDS", 40);
    let operations = environment("QUORATE_OPERATIONS", 20_000);
    let seed = environment("QUORATE_SEED", 31);
    let cluster = Cluster::start("linearizability", "file");
    let clients = Clients::start(&cluster.addresses(), CLIENTS, PACE, seed);
    let mut nemesis = Nemesis { cluster, random: Random::new(seed), faults: Faults::default() };
    let started = Instant::now();
    let time = Duration::from_secs(seconds);
    let mut round = 0;
    loop {
        nemesis.strike(&clients, round);
        round += 1;
        let enough = clients.answered() >= operations
            && nemesis.faults.rarest() >= FAULTS_MIN
            && nemesis.faults.leader_changes >= LEADER_CHANGES_MIN;
        let elapsed = started.elapsed();
        if elapsed >= time && enough || elapsed >= time + OVERTIME {
            break;
        }
    }
    let shared = std::sync::Arc::clone(&clients.shared);
    let history = History::merge(clients.stop());
    let elapsed = started.elapsed();
    nemesis.cluster.converged();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} operations answered in {elapsed:?}; {} writes unknown, {} refused, clients moved {} \
         times; {:?}",
        count(&shared.answered),
        count(&shared.unknown),
        count(&shared.rejected),
        count(&shared.moved),
        nemesis.faults
    );
    assert!(nemesis.faults.rarest() >= FAULTS_MIN, "void: {:?}", nemesis.faults);
    assert!(nemesis.faults.leader_changes >= LEADER_CHANGES_MIN, "void: {:?}", nemesis.faults);
    let answered = count(&shared.answered);
    assert!(answered >= operations, "void: {answered} operations only");
    assert!(answered >= OPERATIONS_PER_SECOND_MIN * elapsed.as_secs(), "void: too slow");
    let checked = Instant::now();
    judge(&history, nemesis.cluster.folder.path());
    println!("checked in {:?}", checked.elapsed());
    let planted = plant(&history);
    let verdict = check(&Kv, &planted, &Limits::default());
    assert!(matches!(verdict, Verdict::Violation(_)), "a planted stale read passed: {verdict}");
}

/// Fails the test unless the history is linearizable; keeps it for whoever looks into that.
fn judge(history: &KvHistory, folder: &std::path::Path) {
    let verdict = check(&Kv, history, &Limits::default());
    if !verdict.is_linearizable() {
        let file = folder.join("history.txt");
        // The verdict matters more than the file.
        let kept = std::fs::write(&file, history.to_text());
        panic!("{verdict}\nthe history is in {} ({kept:?})", file.display());
    }
    println!("{verdict}");
}

/// The same history with one read changed to what the key held before a write that had returned.
fn plant(history: &KvHistory) -> KvHistory {
    let mut operations = history.operations().to_vec();
    let (index, old) = stale_read(&operations).expect("a read that can be made stale");
    let ret = operations[index].ret.as_mut().expect("the read was answered");
    ret.output = old;
    let planted: Result<KvHistory, HistoryError> = History::new(operations);
    planted.expect("only an answer was changed")
}

/// A read and an answer that comes too late for it: of a value that a successful swap had replaced
/// before the read began. Values are unique, so nothing can bring it back.
fn stale_read(operations: &[Operation<KvInput, KvOutput>]) -> Option<(usize, KvOutput)> {
    operations.iter().find_map(|swap| {
        let KvInput::Cas { key, expect: Some(old), .. } = &swap.input else { return None };
        let ret = swap.ret.as_ref().filter(|ret| ret.output == KvOutput::Swapped(true))?;
        let read = operations.iter().position(|read| {
            read.call > ret.at
                && matches!(&read.input, KvInput::Get { key: it } if it == key)
                && read.ret.is_some()
        })?;
        Some((read, KvOutput::value(old.clone())))
    })
}
