//! Many state machines a process, over TCP with logs on files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate::{
    Address, BytesMut, Change, Consistency, Context, Handle, Host, NodeId, Replica, RoleName,
    StartError, StateMachine,
};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Last(Vec<u8>);

impl StateMachine for Last {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0);
        self.0 = command.to_vec();
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0);
    }
}

/// Addresses of this machine that nobody has at the moment.
fn free_addresses(count: usize) -> Vec<String> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn start(addresses: &[String], directory: &Path) -> Vec<Host> {
    let host = |node: u16| {
        let directory = directory.join(node.to_string());
        Replica::builder(node).members(addresses).directory(directory).host().unwrap()
    };
    (1..=3).map(host).collect()
}

fn open(hosts: &[Host], shard: u16) -> Vec<Handle> {
    hosts.iter().map(|host| host.open(shard, Last::default()).unwrap()).collect()
}

#[test]
fn shards_come_back_each_with_its_own_log() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let addresses = free_addresses(3);
    let hosts = start(&addresses, directory.path());
    for shard in [0, 1, 77] {
        let handles = open(&hosts, shard);
        let command = format!("of {shard}");
        assert_eq!(handles[usize::from(shard) % 3].propose(command.as_bytes()).wait().unwrap(), "");
    }
    let again = hosts[0].open(77, Last::default());
    assert!(matches!(again, Err(StartError::Options(_))), "{again:?}");
    drop(hosts);
    let hosts = start(&addresses, directory.path());
    for shard in [77, 0, 1] {
        let handles = open(&hosts, shard);
        let read = handles[1].query(b"", Consistency::Linearizable).wait().unwrap();
        assert_eq!(read, format!("of {shard}"));
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        std::thread::yield_now();
    }
}

fn change(handles: &[Handle], change: &Change, done_at: &Handle) {
    until("the members are changed", || {
        let done = done_at.status().configuration.is_some_and(|now| {
            let voters: Vec<NodeId> = now.voters.iter().map(|member| member.node).collect();
            let learners: Vec<NodeId> = now.learners.iter().map(|member| member.node).collect();
            now.settled && voters == change.voters && learners == change.learners
        });
        if !done {
            for handle in handles.iter().filter(|one| one.status().role == RoleName::Leader) {
                let _ = handle.change_members(change.clone()).wait();
            }
        }
        done
    });
}

#[test]
fn a_process_that_is_added_gets_a_shard_and_one_before_gives_it_up() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let addresses = free_addresses(4);
    let mut hosts = start(&addresses[..3], directory.path());
    let stays = open(&hosts, 0);
    let mut moves = open(&hosts, 1);
    stays[0].propose(b"stays").wait().unwrap();
    moves[0].propose(b"one").wait().unwrap();

    let fourth = || {
        let home = directory.path().join("4");
        Replica::builder(4).member(4, &addresses[3]).directory(home).host().unwrap()
    };
    let joining = |host: &Host| {
        let shard = (1..=3).fold(host.shard(1), |shard, node| {
            shard.member(node, &addresses[usize::from(node) - 1])
        });
        shard.join().open(Last::default()).unwrap()
    };
    hosts.push(fourth());
    moves.push(joining(&hosts[3]));
    let nodes = |nodes: &[u16]| nodes.iter().copied().map(NodeId).collect::<Vec<_>>();
    let fourth_is_at =
        Address { node: NodeId(4), peer: addresses[3].clone(), client: String::new() };
    let learner = Change {
        voters: nodes(&[1, 2, 3]),
        learners: nodes(&[4]),
        addresses: vec![fourth_is_at],
        ..Change::default()
    };
    change(&moves, &learner, &moves[3]);
    change(&moves, &Change { voters: nodes(&[2, 3, 4]), ..Change::default() }, &moves[3]);
    hosts[0].close(1);
    until("it stopped", || moves[0].is_stopped());
    assert_eq!(moves[3].propose(b"two").wait().unwrap(), "one");
    assert_eq!(stays[0].propose(b"on").wait().unwrap(), "stays");

    // All processes start again; the shard finds its members though those of the builders are others.
    drop(hosts);
    let mut hosts = start(&addresses[..3], directory.path());
    hosts.push(fourth());
    let stays = open(&hosts[..3], 0);
    let mut moves = open(&hosts[1..3], 1);
    moves.push(joining(&hosts[3]));
    assert_eq!(moves[2].propose(b"three").wait().unwrap(), "two");
    assert_eq!(stays[0].propose(b"and on").wait().unwrap(), "on");
    // It may come back, from the log that it left.
    let back = Change { voters: nodes(&[2, 3, 4]), learners: nodes(&[1]), ..Change::default() };
    let again = joining_again(&hosts[0], &addresses);
    change(&moves, &back, &again);
    until("it has it all", || {
        again.query(b"", Consistency::Stale).wait().is_ok_and(|last| last == "three")
    });
}

fn joining_again(host: &Host, addresses: &[String]) -> Handle {
    let shard = (2..=4)
        .fold(host.shard(1), |shard, node| shard.member(node, &addresses[usize::from(node) - 1]));
    shard.open(Last::default()).unwrap()
}
