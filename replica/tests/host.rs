//! Many shards on one thread a process: they agree each for itself, and fail each for itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate_consensus::{NodeId, RoleName};
use quorate_replica::{Consistency, Failure, Handle, HostRunner};
use quorate_rig::machines::Counter;
use quorate_rig::{Start, hosts, until};
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::shards::ShardId;

fn run(host: &HostRunner, node: u16, shard: u16) -> Handle {
    let mut start = Start::at_random(NodeId(node));
    start.segment_bytes = 1 << 20;
    start.options.command_bytes_max = 16 << 10;
    start.options.ring_bytes = 64 << 10;
    let transport = host.open(ShardId(shard)).unwrap();
    host.run(ShardId(shard), start.node(transport, Counter::default()))
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
    // The command is chosen: the defect is everywhere. One that is left alone, because the others were
    // gone before it heard that, does not learn it any more.
    let gone = || bad.iter().filter(|handle| handle.is_stopped()).count();
    until("the bad shard is gone", || gone() >= 2);
    for handle in bad {
        let was_gone = handle.is_stopped();
        let outcome = handle.propose(b"+").wait();
        // One that is left alone acknowledges nothing.
        assert!(outcome.is_err(), "{outcome:?}");
        assert!(!was_gone || matches!(outcome, Err(Failure::Rejected(_))), "{outcome:?}");
    }
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
