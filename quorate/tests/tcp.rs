//! The facade as a user meets it: three replicas over TCP with a log on a file, and its refusals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate::{
    BytesMut, Consistency, Context, Durability, MediumKind, Replica, RoleName, StartError,
    StateMachine,
};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Sum(i64);

impl StateMachine for Sum {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        self.0 += std::str::from_utf8(command).unwrap().parse::<i64>().unwrap();
        reply.extend_from_slice(self.0.to_string().as_bytes());
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(self.0.to_string().as_bytes());
    }
}

fn free_addresses(count: usize) -> Vec<String> {
    // All are held at once, so that they differ.
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn start(node: u16, addresses: &[String], directory: &Path) -> Replica {
    Replica::builder(node)
        .members(addresses)
        .directory(directory.join(node.to_string()))
        .segment_bytes(16 << 20)
        .at_least(Durability::PowerFailure)
        .start(Sum::default())
        .unwrap()
}

fn disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn three_replicas_over_tcp_survive_a_stop_of_the_leader_and_of_all() {
    let directory = disk();
    let addresses = free_addresses(3);
    let mut replicas: Vec<_> =
        (1..=3).map(|node| start(node, &addresses, directory.path())).collect();
    for replica in replicas.iter().cycle().take(9) {
        replica.handle().propose(b"1").wait().unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let leader = loop {
        let leads = |replica: &Replica| replica.status().role == RoleName::Leader;
        if let Some(leader) = replicas.iter().position(leads) {
            break leader;
        }
        assert!(Instant::now() < deadline, "no leader");
        std::thread::yield_now();
    };
    replicas.remove(leader).stop();
    assert_eq!(replicas[0].handle().propose(b"1").wait().unwrap(), "10");
    for replica in replicas {
        replica.stop();
    }
    let replicas: Vec<_> = (1..=3).map(|node| start(node, &addresses, directory.path())).collect();
    for replica in &replicas {
        let read = replica.handle().query(b"", Consistency::Linearizable).wait().unwrap();
        assert_eq!(read, "10", "replica {}", replica.status().node);
    }
    assert_eq!(replicas[0].status().durability, Durability::PowerFailure);
}

#[test]
fn one_replica_alone_is_a_cluster() {
    let directory = disk();
    let addresses = free_addresses(1);
    let replica = start(1, &addresses, directory.path());
    assert_eq!(replica.handle().propose(b"5").wait().unwrap(), "5");
    assert_eq!(replica.handle().query(b"", Consistency::default()).wait().unwrap(), "5");
}

#[test]
fn more_durability_than_the_medium_has_is_refused() {
    let builder = Replica::builder(1).members(free_addresses(1)).medium(MediumKind::Memory);
    let error = builder.at_least(Durability::ProcessCrash).start(Sum::default()).unwrap_err();
    assert!(matches!(error, StartError::Durability { .. }), "{error}");
    assert!(error.to_string().contains("choose another medium"), "{error}");
}

#[test]
fn a_port_in_use_and_a_missing_member_are_told_clearly() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let builder = Replica::builder(1).members([&address]).medium(MediumKind::Memory);
    let error = builder.start(Sum::default()).unwrap_err().to_string();
    assert!(error.contains(&address), "{error}");
    let builder = Replica::builder(7).members(free_addresses(3)).medium(MediumKind::Memory);
    let error = builder.start(Sum::default()).unwrap_err().to_string();
    assert!(error.contains("replica 7 is not among the members"), "{error}");
}

#[test]
fn the_counter_example_stays_short_and_runs() {
    let source = include_str!("../examples/counter.rs");
    assert!(source.lines().count() <= 60, "the promise is 60 lines");
}
