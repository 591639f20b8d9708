//! `kill -9` of replicas of a real cluster under clients that count: what was acknowledged stays,
//! and nothing happens twice.

mod process;

use process::client::{Client, Outcome};
use process::load::{Account, Load};
use process::{Cluster, PATIENCE, environment, wait};
use quorate_check::generate::Random;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The promise: with the default timers another leader acknowledges within this.
const FAIL_OVER: Duration = Duration::from_secs(1);

/// How long after `since` one of `addresses` acknowledges a write that was sent after it.
fn first_acknowledgement(addresses: Vec<String>, since: Instant) -> Duration {
    let (sender, receiver) = mpsc::channel();
    for address in addresses {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut client = Client::new(&address);
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                if client.words("SET probe after").is_ok() {
                    // The other prober was faster if nobody listens any more.
                    let _ = sender.send(since.elapsed());
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(2));
            }
        });
    }
    receiver.recv_timeout(PATIENCE).expect("a write is acknowledged after the leader's death")
}

#[test]
fn leader_killed_under_load_another_leads_within_a_second_and_nothing_is_lost_or_doubled() {
    let rounds = environment("QUORATE_ROUNDS", 4);
    let mut cluster = Cluster::start("kill-leader", "file");
    let mut account = Account::default();
    let mut times = Vec::new();
    for round in 0..rounds {
        let leader = cluster.leader();
        let load = Load::start(&cluster.addresses(), 2, round);
        load.advance(300);
        cluster.kill(leader);
        let killed = Instant::now();
        let survivors = (1..=3).filter(|node| *node != leader).map(|node| cluster.address(node));
        times.push(first_acknowledgement(survivors.collect(), killed));
        load.advance(300);
        cluster.restart(leader);
        load.advance(100);
        account.add(load.stop());
        let report = cluster.converged();
        account.check(&cluster.address(leader));
        println!(
            "round {round}: replica {leader} killed, acknowledged elsewhere after {:?}; all three at \
             slot {} with {} acknowledged commands",
            times[times.len() - 1],
            report.applied_slot,
            account.acknowledged
        );
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("fail-over of {rounds} rounds: p50 {median:?}, max {worst:?}");
    // One slow round may be the machine's: the median is the cluster's. A run that was asked for
    // by QUORATE_ROUNDS has the machine to itself.
    let judged = if std::env::var_os("QUORATE_ROUNDS").is_some() { worst } else { median };
    assert!(judged <= FAIL_OVER, "fail-over took {judged:?}: {times:?}");
}

#[test]
fn followers_and_others_killed_in_turn_under_load_nothing_is_lost_or_doubled() {
    let rounds = environment("QUORATE_ROUNDS", 4);
    let mut cluster = Cluster::start("kill-any", "file");
    let mut random = Random::new(29);
    let mut account = Account::default();
    for round in 0..rounds {
        let victim = if round == 0 { cluster.follower(&[]) } else { 1 + random.below(3) as u16 };
        let load = Load::start(&cluster.addresses(), 2, round);
        load.advance(200);
        cluster.kill(victim);
        load.advance(200);
        cluster.restart(victim);
        load.advance(50);
        account.add(load.stop());
        cluster.converged();
        account.check(&cluster.address(victim));
    }
}

fn all_killed_at_once(name: &str, durability: &str, rounds: u64) {
    let mut cluster = Cluster::start(name, durability);
    let mut account = Account::default();
    for round in 0..rounds {
        let load = Load::start(&cluster.addresses(), 2, round);
        load.advance(400);
        cluster.kill_all();
        account.add(load.stop());
        // In another order each time: whoever is up first must not decide alone.
        for step in 0..3 {
            cluster.restart(1 + ((round + step) % 3) as u16);
        }
        cluster.leader();
        cluster.converged();
        account.check(&cluster.address(1 + (round % 3) as u16));
    }
    assert!(
        account.acknowledged >= 400 * rounds / 2,
        "too little was acknowledged to mean anything"
    );
}

#[test]
fn all_killed_at_once_on_files_everything_acknowledged_is_there_again() {
    all_killed_at_once("kill-all-file", "file", environment("QUORATE_ROUNDS", 3));
}

#[test]
fn all_killed_at_once_on_mapped_files_everything_acknowledged_is_there_again() {
    all_killed_at_once("kill-all-emulated", "emulated", environment("QUORATE_ROUNDS", 2));
}

#[test]
fn two_killed_the_third_acknowledges_nothing_until_one_is_back() {
    let mut cluster = Cluster::start("kill-two", "file");
    let mut client = Client::new(&cluster.address(1));
    client.insist("SET before yes");
    cluster.converged();
    cluster.kill(2);
    cluster.kill(3);
    wait("a leaderless replica", PATIENCE, || cluster.report(1)?.leader.is_none().then_some(()));
    let outcome = client.words("SET alone yes");
    assert!(!matches!(outcome, Outcome::Reply(_)), "one of three acknowledged: {outcome:?}");
    cluster.restart(3);
    cluster.leader();
    let mut client = Client::new(&cluster.address(1));
    assert_eq!(client.insist("GET before"), process::client::Reply::text("yes"));
    assert!(client.insist("SET together yes").is_ok());
}
