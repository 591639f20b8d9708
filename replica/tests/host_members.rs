//! Members of one shard change while it and others of the same processes are written to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{Address, Change, NodeId, RoleName};
use quorate_replica::{CheckpointView, Consistency, Context, Handle, HostRunner, StateMachine};
use quorate_rig::{Start, random, until};
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::shards::{ShardId, Trunk};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const COMMAND_BYTES: usize = 2048;

/// Lists the numbers that the commands begin with; replies with how many there are.
#[derive(Default)]
struct List(Arc<Vec<u8>>);

struct View(Arc<Vec<u8>>);

impl CheckpointView for View {
    fn next_piece(&mut self, out: &mut BytesMut) -> bool {
        out.extend_from_slice(&self.0);
        false
    }
}

impl StateMachine for List {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        let list = Arc::make_mut(&mut self.0);
        list.extend_from_slice(&command[..8]);
        reply.extend_from_slice(&(list.len() as u64 / 8).to_le_bytes());
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0);
    }

    fn checkpoint(&self) -> Option<Box<dyn CheckpointView>> {
        Some(Box::new(View(Arc::clone(&self.0))))
    }

    fn restore(&mut self, image: &mut dyn Read) -> io::Result<()> {
        let mut list = Vec::new();
        image.read_to_end(&mut list)?;
        self.0 = Arc::new(list);
        Ok(())
    }
}

fn nodes(numbers: &[u16]) -> Vec<NodeId> {
    numbers.iter().copied().map(NodeId).collect()
}

fn host(network: &MemoryNetwork, node: u16) -> HostRunner {
    let trunk = Trunk::new(Box::new(network.endpoint(NodeId(node), &[])), random());
    HostRunner::start(trunk, Duration::ZERO).unwrap()
}

/// Runs a shard with an empty log among `members`, of which it is one.
fn run(host: &HostRunner, node: u16, shard: u16, members: &[u16], join: bool) -> Handle {
    let others = members.iter().filter(|other| **other != node);
    let peers: Vec<_> = others.map(|peer| (NodeId(*peer), format!("host-{peer}"))).collect();
    let transport = host.open_among(ShardId(shard), &peers).unwrap();
    let mut start = Start::at_random(NodeId(node));
    start.segment_bytes = 64 << 10;
    let options = &mut start.options;
    options.members = nodes(members);
    options.join = join;
    options.request_timeout = Duration::from_secs(1);
    options.command_bytes_max = 16 << 10;
    options.batch_bytes_max = 16 << 10;
    options.ring_bytes = 64 << 10;
    options.cache_bytes_max = 32 << 10;
    options.log_tail_bytes = 0;
    options.checkpoints_kept = 1;
    host.run(ShardId(shard), start.node(transport, List::default()))
}

/// Changes the members, and waits until all of `voters` say that it is done.
fn change(handles: &[Handle], change: &Change, of: &[usize]) {
    let done = |handle: &Handle| {
        handle.status().configuration.is_some_and(|now| {
            let named = |members: &[quorate_consensus::Member]| {
                members.iter().map(|member| member.node).collect::<Vec<_>>()
            };
            let readmitted = change.readmit.is_empty() || handle.status().votes;
            now.settled
                && readmitted
                && named(&now.voters) == change.voters
                && named(&now.learners) == change.learners
        })
    };
    until("the members are changed", || {
        // A leader that is one no more refuses, and so does one for which it is so already.
        let all_done = of.iter().all(|at| done(&handles[*at]));
        if !all_done {
            for handle in handles.iter().filter(|one| one.status().role == RoleName::Leader) {
                let _ = handle.change_members(change.clone()).wait();
            }
        }
        all_done
    });
}

/// Writes to one shard all the time, through one replica after the other.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Vec<(u64, u64)>>,
}

impl Writer {
    fn start(handles: Vec<Handle>) -> Self {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopping, count) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = std::thread::spawn(move || {
            let mut outcomes = Vec::new();
            let mut number = 0u64;
            while !stopping.load(Ordering::Relaxed) {
                number += 1;
                let mut command = vec![7; COMMAND_BYTES];
                command[..8].copy_from_slice(&number.to_le_bytes());
                let handle = &handles[number as usize % handles.len()];
                if let Ok(reply) = handle.propose(&command).wait() {
                    let place = u64::from_le_bytes(reply[..].try_into().unwrap());
                    outcomes.push((number, place));
                    count.fetch_add(1, Ordering::Relaxed);
                }
                // Not as fast as it goes: the test is about the members.
                std::thread::park_timeout(Duration::from_millis(1));
            }
            outcomes
        });
        Self { stop, acknowledged, thread }
    }

    fn count(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn more(&self, count: u64) {
        let before = self.count();
        until("writes are acknowledged", || self.count() >= before + count);
    }

    /// Every acknowledged command stands where its reply said, and none stands there twice.
    fn check(self, handle: &Handle) {
        self.stop.store(true, Ordering::Relaxed);
        let outcomes = self.thread.join().unwrap();
        let list = handle.query(b"", Consistency::Linearizable).wait().unwrap();
        let list: Vec<u64> =
            list.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        assert!(outcomes.len() > 10);
        for (number, place) in &outcomes {
            assert_eq!(list[*place as usize - 1], *number, "in place {place}");
        }
        let mut once: Vec<u64> = list.iter().copied().filter(|number| *number != 0).collect();
        let all = once.len();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all, "a command was applied twice");
        // One writer at a time: what it was told grows with what it sent.
        assert!(outcomes.windows(2).all(|pair| pair[0].1 < pair[1].1));
    }
}

/// The links of a shard have not broken since it was opened. Adds zeros to its list.
fn undisturbed(handles: &[Handle]) {
    for handle in handles {
        let shown = Arc::new(AtomicU64::new(handle.status().counters.commands_applied));
        handle.propose(&[0; 8]).wait().unwrap();
        until("its status is new", || {
            handle.status().counters.commands_applied > shown.load(Ordering::Relaxed)
        });
        for peer in handle.status().peers {
            assert_eq!(peer.link.reconnects, 0, "{:?}", peer.link);
        }
    }
}

fn addresses(numbers: &[u16]) -> Vec<Address> {
    let address = |node: &u16| Address {
        node: NodeId(*node),
        peer: format!("host-{node}"),
        client: String::new(),
    };
    numbers.iter().map(address).collect()
}

#[test]
fn a_member_of_one_shard_is_replaced_under_writes_and_the_others_go_on() {
    let network = MemoryNetwork::new(51);
    let mut hosts: Vec<HostRunner> = (1..=3).map(|node| host(&network, node)).collect();
    let found = |shard: u16| -> Vec<Handle> {
        let hosts = hosts.iter().zip(1..);
        hosts.map(|(host, node)| run(host, node, shard, &[1, 2, 3], false)).collect()
    };
    let others = [found(0), found(2)];
    let mut moving = found(1);
    let writers: Vec<Writer> = others.iter().map(|shard| Writer::start(shard.clone())).collect();
    // More than a log keeps behind a checkpoint.
    for number in 0..150u64 {
        let mut command = vec![7; COMMAND_BYTES];
        command[..8].copy_from_slice(&(u64::MAX - number).to_le_bytes());
        moving[0].propose(&command).wait().unwrap();
    }
    let writer = Writer::start(moving.clone());
    until("the logs are trimmed", || {
        moving.iter().all(|handle| {
            handle.checkpoint().wait().unwrap();
            handle.status().checkpoints.log_first.0 > 100
        })
    });

    // A process is added, and gets one shard.
    hosts.push(host(&network, 4));
    moving.push(run(&hosts[3], 4, 1, &[1, 2, 3, 4], true));
    let learner = Change {
        voters: nodes(&[1, 2, 3]),
        learners: nodes(&[4]),
        addresses: addresses(&[1, 2, 3, 4]),
        ..Change::default()
    };
    change(&moving, &learner, &[0, 1, 2, 3]);
    assert!(moving[3].status().checkpoints.received > 0, "its log could not be given whole");
    writer.more(20);
    let replaced = Change { voters: nodes(&[2, 3, 4]), ..Change::default() };
    change(&moving, &replaced, &[1, 2, 3]);
    writer.more(20);
    hosts[0].stop_shard(ShardId(1));
    until("it is gone there", || moving[0].is_stopped());
    writer.more(20);
    writers.iter().for_each(|writer| writer.more(20));
    others.iter().for_each(|shard| undisturbed(shard));

    // Now the shard stands on the new one: of those before only one is left.
    hosts[1].stop_shard(ShardId(1));
    writer.more(20);
    // And back on the first host, with an empty log, as a new member.
    moving[0] = run(&hosts[0], 1, 1, &[1, 3, 4], true);
    let learner = Change { voters: nodes(&[2, 3, 4]), learners: nodes(&[1]), ..Change::default() };
    change(&moving, &learner, &[0, 2, 3]);
    let back = Change { voters: nodes(&[1, 3, 4]), ..Change::default() };
    change(&moving, &back, &[0, 2, 3]);
    writer.more(20);
    writers.iter().for_each(|writer| writer.more(20));
    others.iter().for_each(|shard| undisturbed(shard));
    writer.check(&moving[0]);
    for (writer, shard) in writers.into_iter().zip(&others) {
        writer.check(&shard[1]);
    }
}

#[test]
fn shards_of_the_same_processes_have_different_members() {
    let network = MemoryNetwork::new(52);
    let hosts: Vec<HostRunner> = (1..=4).map(|node| host(&network, node)).collect();
    let sets: [&[u16]; 4] = [&[1, 2, 3], &[2, 3, 4], &[1, 3, 4], &[2, 4]];
    let shards: Vec<Vec<Handle>> = sets
        .iter()
        .zip(0..)
        .map(|(members, shard)| {
            let run =
                |node: &u16| run(&hosts[usize::from(*node) - 1], *node, shard, members, false);
            members.iter().map(run).collect()
        })
        .collect();
    for (handles, members) in shards.iter().zip(sets) {
        for handle in handles {
            handle.propose(&[9; 8]).wait().unwrap();
        }
        let own = handles[0].status().node;
        let peers: Vec<NodeId> = handles[0].status().peers.iter().map(|peer| peer.node).collect();
        let expected: Vec<NodeId> =
            nodes(members).into_iter().filter(|node| *node != own).collect();
        assert_eq!(peers, expected);
    }
}

#[test]
fn a_shard_that_lost_its_log_votes_when_it_is_admitted_again() {
    let network = MemoryNetwork::new(53);
    let hosts: Vec<HostRunner> = (1..=3).map(|node| host(&network, node)).collect();
    let found = |shard: u16| -> Vec<Handle> {
        let hosts = hosts.iter().zip(1..);
        hosts.map(|(host, node)| run(host, node, shard, &[1, 2, 3], false)).collect()
    };
    let (mut shard, other) = (found(0), found(1));
    shard[0].propose(&[1; 8]).wait().unwrap();
    other[0].propose(&[1; 8]).wait().unwrap();
    hosts[2].stop_shard(ShardId(0));
    until("it stopped", || shard[2].is_stopped());
    // What was in memory is gone: this is the same number with another log.
    shard[2] = run(&hosts[2], 3, 0, &[1, 2, 3], false);
    shard[1].propose(&[2; 8]).wait().unwrap();
    until("it follows", || shard[2].status().counters.commands_applied == 2);
    assert!(!shard[2].status().votes);
    let readmit = Change { voters: nodes(&[1, 2, 3]), readmit: nodes(&[3]), ..Change::default() };
    change(&shard, &readmit, &[0, 1, 2]);
    hosts[0].stop_shard(ShardId(0));
    shard[2].propose(&[3; 8]).wait().unwrap();
    let list = shard[1].query(b"", Consistency::Linearizable).wait().unwrap();
    assert_eq!(list, [[1; 8], [2; 8], [3; 8]].concat());
    undisturbed(&other);
}
