//! Two voters and a witness as real processes: what goes on when one voter is killed, what waits, and that
//! nothing acknowledged is lost.
//!
//! Rules W1, W2, W4, W6, W7.

mod process;

use process::client::{Client, Outcome, Reply};
use process::load::{Account, Load};
use process::{Cluster, PATIENCE, wait};
use quorate_server::report::Report;
use std::time::Duration;

const WITNESS: u16 = 3;

/// Two voters, and a witness that is a member.
fn start(name: &str, copies: &str) -> Cluster {
    let mut cluster = Cluster::prepare_of(2, name, "file", |config| {
        config.client.request_timeout_ms = 1_000;
        // The leader soon remembers nothing of what a replica that is away missed.
        config.limits.cache_bytes_max = 16 << 10;
    });
    cluster.start_all();
    cluster.leader();
    let node = cluster.join_with(|config| {
        config.replica.witness = true;
        // It is among them already.
        config.members.pop();
    });
    assert_eq!(node, WITNESS);
    let (peer, client) = (cluster.ports.peer(node), cluster.address(node));
    // Refused where the witness is not heard just now; then the command is run again.
    wait("the witness is a member", PATIENCE, || {
        let added = cluster.member(&["add", "3", &peer, &client, "--witness", "--copies", copies]);
        let said = String::from_utf8_lossy(&added.stdout).into_owned();
        (added.status.success() && said.contains("votes as a witness")).then_some(())
    });
    wait("the witness votes", PATIENCE, || {
        let report = cluster.report(WITNESS)?;
        (report.role == "witness" && report.votes && report.witness).then_some(())
    });
    cluster
}

/// The voter that leads, by its own word.
fn leads(cluster: &Cluster) -> u16 {
    wait("a leader", PATIENCE, || {
        (1..=2).find(|node| cluster.report(*node).is_some_and(|report| report.role == "leader"))
    })
}

/// Waits until a read at `node` sees `value`, or until `excused` says of its report that it need not.
/// Returns whether it was read.
fn reads(
    cluster: &Cluster,
    node: u16,
    (key, value): (&str, &str),
    excused: impl Fn(&Report) -> bool,
) -> bool {
    let mut client = Client::new(&cluster.address(node));
    wait("a linearizable read", PATIENCE, || match client.words(&format!("GET {key}")) {
        Outcome::Reply(reply) => {
            assert_eq!(reply, Reply::text(value));
            Some(true)
        }
        Outcome::Rejected(_) | Outcome::Unknown(_) => {
            cluster.report(node).is_some_and(|report| excused(&report)).then_some(false)
        }
    })
}

#[test]
fn with_one_copy_writes_go_on_whichever_voter_dies() {
    let mut cluster = start("witness-one", "1");
    let list = String::from_utf8_lossy(&cluster.member(&["list"]).stdout).into_owned();
    assert!(list.contains("3     witness") && list.contains("only copy"), "{list}");
    let mut account = Account::default();
    for round in 0..4 {
        let load = Load::start(&cluster.addresses(), 2, round);
        load.advance(200);
        let leader = leads(&cluster);
        // The follower first, then the leader, which is then the other one.
        let gone = if round % 2 == 0 { 3 - leader } else { leader };
        let left = 3 - gone;
        let waits = |cluster: &Cluster| {
            let log = std::fs::read_to_string(&cluster.replicas[usize::from(left) - 1].log);
            log.unwrap_or_default().matches("a witness knows of something").count()
        };
        let waited = waits(&cluster);
        cluster.kill(gone);
        let goal = load.acknowledged() + 200;
        let served =
            wait("writes go on, or the one that is left says what it waits for", PATIENCE, || {
                let served = load.acknowledged() >= goal;
                (served || waits(&cluster) > waited).then_some(served)
            });
        // A follower that stood still for an election time-out just before its leader died lacks what the
        // witness and the leader had chosen meanwhile (W6), and has to wait for it.
        assert!(served || gone == leader, "the leader that lives on waits for nobody");
        if served {
            assert_eq!(leads(&cluster), left);
        } else {
            println!("round {round}: replica {left} stood still; it waits for {gone}");
        }
        cluster.restart(gone);
        load.advance(50);
        account.add(load.stop());
        cluster.converged();
    }
    for node in 1..=2 {
        account.check(&cluster.address(node));
    }
}

#[test]
fn with_two_copies_reads_go_on_and_writes_wait() {
    let mut cluster = start("witness-two", "2");
    let load = Load::start(&cluster.addresses(), 1, 0);
    load.advance(200);
    let account = load.stop();
    for round in 0..2 {
        let leader = leads(&cluster);
        let (key, value) = (format!("before-{round}"), format!("value-{round}"));
        let mut client = Client::new(&cluster.address(leader));
        wait("a write", PATIENCE, || {
            client.words(&format!("SET {key} {value}")).is_ok().then_some(())
        });
        cluster.converged();
        // The follower goes, then the leader.
        let gone = if round == 0 { 3 - leader } else { leader };
        let left = 3 - gone;
        cluster.kill(gone);
        let leads = |report: &Report| report.role == "leader";
        wait("the one that is left leads", PATIENCE, || {
            cluster.report(left).filter(leads).map(|_| ())
        });
        // Whoever led may have died with something under way that the other one has, and cannot know whether
        // it was chosen before there are two again: beside the barrier something is open then.
        let open = |report: &Report| leads(report) && report.last_slot > report.commit_slot + 1;
        let seen = (&*key, &*value);
        let served = reads(&cluster, left, seen, open);
        let before = cluster.report(left).map(|report| report.ballot);
        let mut client = Client::new(&cluster.address(left)).timeout(Duration::from_secs(30));
        let outcome = client.words(&format!("SET after-{round} there"));
        assert!(!outcome.is_ok(), "acknowledged with one copy: {outcome:?}");
        // The same leader goes on answering beside the write that waits. One that was elected anew, on a
        // machine that is slow just now, found it open.
        let anew = |report: &Report| Some(&report.ballot) != before.as_ref();
        reads(&cluster, left, seen, |report| !served || anew(report));
        cluster.restart(gone);
        wait("writes go on", PATIENCE, || {
            client.words(&format!("SET again-{round} there")).is_ok().then_some(())
        });
        reads(&cluster, left, seen, |_| false);
        if !matches!(outcome, Outcome::Rejected(_)) {
            // It was proposed, and is chosen now.
            reads(&cluster, left, (&format!("after-{round}"), "there"), |_| false);
        }
    }
    cluster.converged();
    for node in 1..=2 {
        account.check(&cluster.address(node));
    }
}

// Rule V2.
#[test]
fn no_witness_joins_while_a_member_does_not_know_any() {
    let mut cluster = Cluster::prepare_of(2, "witness-old", "file", |config| {
        config.replica.protocol_max = (config.replica.node == 2).then_some(2);
    });
    cluster.start_all();
    cluster.leader();
    let node = cluster.join_with(|config| {
        config.replica.witness = true;
        config.members.pop();
    });
    let (peer, client) = (cluster.ports.peer(node), cluster.address(node));
    let add = ["add", "3", &peer, &client, "--witness"];
    wait("version 2", PATIENCE, || (cluster.report(leads(&cluster))?.protocol == 2).then_some(()));
    // Whichever leads: one that does not know them itself says the same of itself. Before that it may
    // say that it has not heard of somebody yet.
    wait("refused for the version", PATIENCE, || {
        let refused = cluster.member(&add);
        assert!(!refused.status.success(), "{refused:?}");
        String::from_utf8_lossy(&refused.stderr).contains("up to version 2").then_some(())
    });
    let report = cluster.report(leads(&cluster)).expect("a report");
    assert_eq!(report.protocol, 2, "without a witness the version is what it was");
    cluster.kill(2);
    cluster.replica(2).config.replica.protocol_max = None;
    cluster.restart(2);
    cluster.leader();
    wait("the witness is a member", PATIENCE, || {
        cluster.member(&add).status.success().then_some(())
    });
    wait("the version rises", PATIENCE, || (cluster.report(WITNESS)?.protocol == 3).then_some(()));
}

/// How many records with and without payloads a log holds.
fn payloads_of(cluster: &Cluster, node: u16) -> (usize, usize) {
    let log = &cluster.replicas[usize::from(node) - 1].config.replica.directory;
    let export = process::quorate(&["log", "export", &log.to_string_lossy()]);
    let text = String::from_utf8_lossy(&export.stdout).into_owned();
    (text.matches("\"commands\"").count(), text.matches("\"withheld\"").count())
}

#[test]
fn a_witness_serves_nobody_keeps_little_and_stays_what_it_is() {
    let mut cluster = start("witness-kind", "2");
    let leader = leads(&cluster);
    let mut client = Client::new(&cluster.address(WITNESS));
    for command in ["GET key", "SET key value", "INCR counter"] {
        let outcome = client.words(command);
        let Outcome::Rejected(text) = &outcome else { panic!("{outcome:?}") };
        let place = |node: u16| format!("ask replica {node} at {}", cluster.address(node));
        let named = text.contains(&place(1)) || text.contains(&place(2));
        assert!(text.contains("is a witness") && named, "{text}");
    }
    // It was away for longer than the leader remembers: it is told where all stand, and votes on.
    cluster.kill(WITNESS);
    let load = Load::start(&cluster.addresses(), 2, 0);
    load.advance(2_000);
    cluster.restart(WITNESS);
    let goal = cluster.report(leader).map_or(0, |report| report.commit_slot);
    wait("the witness has caught up", PATIENCE, || {
        let report = cluster.report(WITNESS)?;
        (report.commit_slot >= goal && report.votes).then_some(())
    });
    load.advance(500);
    let account = load.stop();
    cluster.converged();
    account.check(&cluster.address(leader));
    // Nobody holds the directories of replicas that do not run.
    cluster.kill_all();
    let (commands, withheld) = payloads_of(&cluster, WITNESS);
    assert!(commands == 0 && withheld > 0, "{commands} payloads, {withheld} without");
    let (commands, withheld) = payloads_of(&cluster, leader);
    assert!(commands > 0 && withheld == 0, "{commands} payloads, {withheld} without");
    // Neither starts as what the other is.
    for (node, witness) in [(WITNESS, false), (leader, true)] {
        let replica = cluster.replica(node);
        (replica.config.replica.witness, replica.config.replica.join) = (witness, true);
        cluster.restart(node);
        wait("it ends", PATIENCE, || cluster.ended(node));
        let said = cluster.replica(node).logged();
        assert!(said.contains("empty its directory"), "{said}");
    }
}
