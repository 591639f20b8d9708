//! Rule E11: shards with nothing to do cost nothing, and are there when they are wanted. In a file of its own, since
//! it counts the processor time of its process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate_consensus::NodeId;
use quorate_replica::{Consistency, Handle, HostRunner};
use quorate_rig::machines::Counter;
use quorate_rig::{Start, hosts};
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::shards::ShardId;
use std::time::{Duration, Instant};

/// On each of three processes, which are all in this one.
const SHARDS: u16 = 200;

fn run(host: &HostRunner, node: u16, shard: u16) -> Handle {
    let mut start = Start::at_random(NodeId(node));
    start.segment_bytes = 64 << 10;
    start.options.command_bytes_max = 4 << 10;
    start.options.ring_bytes = 16 << 10;
    start.options.quiet_after = 4;
    let transport = host.open(ShardId(shard)).unwrap();
    host.run(ShardId(shard), start.node(transport, Counter::default()))
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
    let mut hosts = hosts(&network);
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
