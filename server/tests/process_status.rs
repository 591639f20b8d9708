//! What `quorate status` tells an operator about real clusters in each kind of trouble.

mod process;

use process::client::Client;
use process::{Cluster, quorate};
use quorate_server::report::Report;
use quorate_server::status::{self, Answer};
use serde_json::Value;
use std::process::Output;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(cluster: &Cluster) -> (Vec<Value>, Option<i32>) {
    let output = cluster.status(true);
    let reports = serde_json::from_slice(&output.stdout).expect("a JSON array");
    (reports, output.status.code())
}

#[test]
fn all_is_well_the_table_says_who_leads_and_the_exit_code_is_zero() {
    let cluster = Cluster::start("status-well", "file");
    Client::new(&cluster.address(1)).insist("SET key value");
    cluster.converged();
    let said = without_problems(&cluster);
    assert_eq!(said.matches("leader").count(), 1, "{said}");
    assert_eq!(said.matches("follower").count(), 2, "{said}");
    assert_eq!(said.matches("power failure").count(), 3, "durability of each: {said}");
    // The leader may have had something of its own to write in between: looked at while nothing moves.
    let (converged, reports, code) = cluster.wait("equal reports before and after", || {
        let before = cluster.converged();
        let (reports, code) = json(&cluster);
        (cluster.converged().applied_slot == before.applied_slot).then_some((before, reports, code))
    });
    assert_eq!(code, Some(0));
    for report in &reports {
        assert_eq!(report["reachable"], true);
        assert_eq!(report["applied_slot"], converged.applied_slot);
        assert_eq!(report["digest"], converged.digest);
        assert_eq!(report["trouble"], "");
        assert_eq!(report["medium"], "file");
    }
}

#[test]
fn a_dead_replica_is_named_with_what_to_do_and_the_others_go_on() {
    let mut cluster = Cluster::start("status-dead", "file");
    let victim = cluster.follower(&[]);
    cluster.kill(victim);
    let output = cluster.status(false);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let problem = format!("! {} does not answer", cluster.address(victim));
    assert!(said.contains(&problem), "{said}");
    assert!(said.contains("The others go on without it"), "{said}");
    assert!(said.contains("Start it again with its own data directory"), "{said}");
    assert!(!said.contains("NO LEADER"), "{said}");
    let (reports, code) = json(&cluster);
    assert_eq!(code, Some(1));
    let unreachable: Vec<_> = reports.iter().filter(|it| it["reachable"] == false).collect();
    assert_eq!(unreachable.len(), 1);
    assert_eq!(unreachable[0]["address"], cluster.address(victim));
    assert!(unreachable[0]["error"].as_str().is_some_and(|error| !error.is_empty()));
}

#[test]
fn a_stopped_replica_does_not_answer_and_catches_up_when_it_goes_on() {
    let mut cluster = Cluster::start("status-lagging", "file");
    let victim = cluster.follower(&[]);
    let leader = cluster.leader();
    cluster.pause(victim);
    let mut client = Client::new(&cluster.address(leader));
    for number in 0..1_500 {
        client.insist(&format!("SET key-{number} {number}"));
    }
    let output = cluster.status(false);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("! {} does not answer", cluster.address(victim))), "{said}");
    assert!(said.contains(&format!("replica {victim} is ")), "how far behind: {said}");
    assert!(said.contains("slots behind"), "{said}");
    let (reports, _) = json(&cluster);
    let leading = reports.iter().find(|report| report["role"] == "leader").expect("a leader");
    let peers = leading["peers"].as_array().expect("peers");
    let peer = peers.iter().find(|peer| peer["node"] == victim).expect("the victim");
    assert!(peer["lag"].as_u64().is_some_and(|lag| lag >= 1_000), "{peer}");
    cluster.resume(victim);
    cluster.converged();
    without_problems(&cluster);
    // What the leader heard last may be older than what the replica says itself, which is in the table too.
    let mut reports: Vec<Report> = cluster.reports().into_iter().flatten().collect();
    for report in &mut reports {
        report.commit_slot = 5_000;
        report.last_slot = 5_000;
        for peer in &mut report.peers {
            peer.commit_slot = 3_000;
            peer.lag = peer.lag.map(|_| 2_000);
        }
    }
    assert!(!told(&reports).contains("2000"), "{}", told(&reports));
    for report in reports.iter_mut().filter(|report| report.node == victim) {
        report.commit_slot = 3_500;
    }
    let said = told(&reports);
    assert!(said.contains(&format!("replica {victim} is 1500 slots behind")), "{said}");
    assert_eq!(said.matches("1500").count(), 2, "in the table too: {said}");
}

/// The table once it tells no problem, and then exits with 0: a report is a moment old.
fn without_problems(cluster: &Cluster) -> String {
    cluster.wait("a table without problems", || {
        let output = cluster.status(false);
        let said = text(&output);
        let well = said.contains("All replicas are up");
        assert_eq!(output.status.code(), Some(i32::from(!well)), "{said}");
        well.then_some(said)
    })
}

/// What the command would print about these.
fn told(reports: &[Report]) -> String {
    let answer =
        |report: &Report| Answer { address: report.node.to_string(), report: Ok(report.clone()) };
    status::text(&reports.iter().map(answer).collect::<Vec<_>>())
}

#[test]
fn two_dead_the_last_one_says_that_there_is_no_leader_and_how_many_are_needed() {
    let mut cluster = Cluster::start("status-leaderless", "file");
    cluster.kill(2);
    cluster.kill(3);
    cluster.wait("a leaderless replica", || cluster.report(1)?.leader.is_none().then_some(()));
    let output = cluster.status(false);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("NO LEADER: 1 of 3 replicas are up"), "{said}");
    assert!(said.contains("2 are needed"), "{said}");
    assert!(said.contains("Start the missing replicas with their own data"), "{said}");
    assert!(!said.contains("The others go on"), "{said}");
}

#[test]
fn nobody_there_is_told_apart_from_not_knowing_whom_to_ask() {
    let ports = process::Ports::reserve();
    let addresses = (1..=3).map(|node| ports.client(node)).collect::<Vec<_>>().join(",");
    let output = quorate(&["status", "--addr", &addresses]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("NO LEADER: 0 of 3"), "{said}");
    let folder = process::Folder::new("status-nowhere");
    let directory = folder.path().to_string_lossy();
    let output = quorate(&["status", "--dir", &directory]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("there is no cluster in"), "{said}");
    assert!(said.contains("--addr HOST:PORT"), "{said}");
}
