//! Rule E11: shards with nothing to do cost nothing, and are there when they are wanted. In a file of its own, since
//! it counts the processor time of its process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{Incarnation, NodeId};
use quorate_pmem_log::{Log, LogOptions, MediumKind};
use quorate_replica::{Consistency, Context, Handle, HostRunner, Node, NodeOptions, StateMachine};
use quorate_transport::Transport;
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::shards::{ShardId, Trunk};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// On each of three processes, which are all in this one.
const SHARDS: u16 = 200;

#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _: &Context, _: &[u8], reply: &mut BytesMut) {
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

fn run(host: &HostRunner, node: u16, shard: u16) -> Handle {
    let transport = host.open(ShardId(shard)).unwrap();
    let waker = transport.waker();
    let options = LogOptions {
        directory: PathBuf::new(),
        medium: MediumKind::Memory,
        node: NodeId(node),
        segment_bytes: 64 << 10,
    };
    let wake = Arc::new(move || waker.wake());
    let (log, recovered) = Log::open(&options, Incarnation(random()), wake).unwrap();
    let mut options = NodeOptions::new(NodeId(node), members(), random());
    options.command_bytes_max = 4 << 10;
    options.ring_bytes = 16 << 10;
    options.quiet_after = 4;
    let machine = Box::<Counter>::default();
    let node = Node::new(options, Box::new(transport), log, recovered, machine).unwrap();
    host.run(ShardId(shard), node)
}

/// Ticks of a hundredth of a second that this process has had.
fn processor_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let behind_name = stat.rsplit_once(')').unwrap().1;
    let field = |index: usize| behind_name.split_whitespace().nth(index).unwrap();
    field(11).parse::<u64>().unwrap() + field(12).parse::<u64>().unwrap()
}

/// Processor time, in hundredths of a second, over one second.
fn ticks_in_a_second() -> u64 {
    let before = processor_ticks();
    std::thread::park_timeout(Duration::from_secs(1));
    processor_ticks() - before
}

#[test]
fn idle_shards_cost_no_processor_time_and_outlive_their_leaders() {
    let network = MemoryNetwork::new(31);
    let mut hosts: Vec<HostRunner> = members()
        .into_iter()
        .map(|node| {
            let peers: Vec<NodeId> = members().into_iter().filter(|peer| *peer != node).collect();
            let trunk = Trunk::new(Box::new(network.endpoint(node, &peers)), random());
            HostRunner::start(trunk, Duration::ZERO).unwrap()
        })
        .collect();
    let handles: Vec<Vec<Handle>> = (0..SHARDS)
        .map(|shard| hosts.iter().zip(1..).map(|(host, node)| run(host, node, shard)).collect())
        .collect();
    for shard in &handles {
        shard[0].propose(b"+").wait().unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut ticks = u64::MAX;
    // Three times two hundred idle replicas: less than a hundredth of one processor.
    while ticks > 1 {
        assert!(Instant::now() < deadline, "{ticks} hundredths of a second in a second");
        ticks = ticks_in_a_second();
    }
    let steps = || -> u64 {
        let of = |handle: &Handle| handle.status().counters.steps;
        handles.iter().flatten().map(of).sum()
    };
    let before = steps();
    std::thread::park_timeout(Duration::from_secs(1));
    assert_eq!(steps(), before, "nothing is looked at");

    // Wanted by a follower's client, one goes on at once; the others rest.
    let started = Instant::now();
    for (handle, count) in handles[7].iter().zip(2..) {
        assert_eq!(handle.propose(b"+").wait().unwrap(), count.to_string());
    }
    assert!(started.elapsed() < Duration::from_secs(5));

    // With a process all its leaderships go; every shard finds another leader.
    hosts.remove(0).stop();
    for (number, shard) in handles.iter().enumerate() {
        let count = if number == 7 { "4" } else { "1" };
        let read = shard[2].query(b"", Consistency::Linearizable).wait().unwrap();
        assert_eq!(read, count, "shard {number}");
    }
    let mut ticks = u64::MAX;
    let deadline = Instant::now() + Duration::from_secs(60);
    while ticks > 1 {
        assert!(Instant::now() < deadline, "with one process gone: {ticks}");
        ticks = ticks_in_a_second();
    }
}
