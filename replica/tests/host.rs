//! Many shards on one thread a process: they agree each for itself, and fail each for itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{Incarnation, NodeId, RoleName};
use quorate_pmem_log::{Log, LogOptions, MediumKind};
use quorate_replica::{
    Consistency, Context, Failure, Handle, HostRunner, Node, NodeOptions, StateMachine,
};
use quorate_transport::Transport;
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::shards::{ShardId, Trunk};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Counts; at `bang` it panics.
#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        assert_ne!(command, b"bang", "a state machine with a defect");
        self.0 += 1;
        reply.extend_from_slice(self.0.to_string().as_bytes());
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(self.0.to_string().as_bytes());
    }
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn members() -> Vec<NodeId> {
    (1..=3).map(NodeId).collect()
}

fn hosts(network: &MemoryNetwork) -> Vec<HostRunner> {
    let host = |node: NodeId| {
        let peers: Vec<NodeId> = members().into_iter().filter(|peer| *peer != node).collect();
        let trunk = Trunk::new(Box::new(network.endpoint(node, &peers)), random());
        HostRunner::start(trunk, Duration::ZERO).unwrap()
    };
    members().into_iter().map(host).collect()
}

fn run(host: &HostRunner, node: u16, shard: u16) -> Handle {
    let transport = host.open(ShardId(shard)).unwrap();
    let waker = transport.waker();
    let options = LogOptions {
        directory: PathBuf::new(),
        medium: MediumKind::Memory,
        node: NodeId(node),
        segment_bytes: 1 << 20,
    };
    let wake = Arc::new(move || waker.wake());
    let (log, recovered) = Log::open(&options, Incarnation(random()), wake).unwrap();
    let mut options = NodeOptions::new(NodeId(node), members(), random());
    options.command_bytes_max = 16 << 10;
    options.ring_bytes = 64 << 10;
    let machine = Box::<Counter>::default();
    let node = Node::new(options, Box::new(transport), log, recovered, machine).unwrap();
    host.run(ShardId(shard), node)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn each_shard_agrees_for_itself() {
    let network = MemoryNetwork::new(21);
    let hosts = hosts(&network);
    let shards = 40u16;
    let handles: Vec<Vec<Handle>> = (0..shards)
        .map(|shard| hosts.iter().zip(1..).map(|(host, node)| run(host, node, shard)).collect())
        .collect();
    let pending: Vec<_> = handles
        .iter()
        .enumerate()
        .flat_map(|(shard, handles)| {
            let commands = 1 + shard % 5;
            (0..commands).map(|index| handles[index % 3].propose(b"+")).collect::<Vec<_>>()
        })
        .collect();
    pending.into_iter().for_each(|one| assert!(one.wait().is_ok()));
    for (shard, handles) in handles.iter().enumerate() {
        for handle in handles {
            let count = handle.query(b"", Consistency::Linearizable).wait().unwrap();
            assert_eq!(count, (1 + shard % 5).to_string(), "shard {shard}");
        }
    }
}

#[test]
fn a_shard_that_fails_or_stops_takes_no_other_with_it() {
    let network = MemoryNetwork::new(22);
    let mut hosts = hosts(&network);
    let handles: Vec<Vec<Handle>> = (0..3)
        .map(|shard| hosts.iter().zip(1..).map(|(host, node)| run(host, node, shard)).collect())
        .collect();
    let [good, bad, stopped] = &handles[..] else { panic!() };
    for shard in &handles {
        assert_eq!(shard[0].propose(b"+").wait().unwrap(), "1");
    }
    let outcome = bad[0].propose(b"bang").wait();
    assert!(matches!(outcome, Err(Failure::Unknown(_))), "{outcome:?}");
    // The command is chosen: the defect is everywhere.
    until("the bad shard is gone", || bad.iter().all(Handle::is_stopped));
    assert!(matches!(bad[1].propose(b"+").wait(), Err(Failure::Rejected(_))));
    hosts[0].stop_shard(ShardId(2));
    until("the shard stopped", || stopped[0].is_stopped());
    assert_eq!(stopped[1].propose(b"+").wait().unwrap(), "2", "two of three go on");
    assert_eq!(good[2].propose(b"+").wait().unwrap(), "2");
    assert!(hosts.iter().all(HostRunner::is_running));
    // A whole process less: every shard finds a leader among the others.
    hosts.remove(0).stop();
    assert_eq!(good[1].propose(b"+").wait().unwrap(), "3");
    until("a leader is known", || {
        [&good[1], &good[2]].iter().any(|handle| handle.status().role == RoleName::Leader)
    });
}
