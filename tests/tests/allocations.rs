//! No allocation per command on the replica's thread: counted, in the steady state.
//!
//! Three replicas are driven by hand on this thread, so that the counter sees only them. Requests
//! are put into the queue outside of what is counted, as clients do it on threads of their own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{Bytes, BytesMut};
use quorate_consensus::batch::put_item;
use quorate_consensus::{Incarnation, Nanos, NodeId};
use quorate_pmem_log::{Log, LogOptions, MediumKind};
use quorate_replica::{Clock, Context, Node, NodeOptions, Pending, StateMachine};
use quorate_transport::memory::MemoryNetwork;
use std::sync::Arc;

/// Counts, and answers with eight bytes.
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _: &Context, _command: &[u8], reply: &mut BytesMut) {
        self.0 += 1;
        reply.extend_from_slice(&self.0.to_le_bytes());
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0.to_le_bytes());
    }
}

/// Commands that are submitted together.
const SMALL: usize = 64;
const LARGE: usize = 1024;
const ROUNDS: usize = 100;

struct Cluster {
    nodes: Vec<Node>,
    now: Nanos,
}

impl Cluster {
    fn start(medium: MediumKind, directory: &std::path::Path) -> Self {
        let network = MemoryNetwork::new(7);
        let members: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let nodes = members.iter().map(|&node| {
            let peers: Vec<_> = members.iter().copied().filter(|peer| *peer != node).collect();
            let options = LogOptions {
                directory: directory.join(node.to_string()),
                medium,
                node,
                segment_bytes: 64 << 20,
            };
            let incarnation = Incarnation(u64::from(node.0) + 100);
            let (log, recovered) = Log::open(&options, incarnation, Arc::new(|| {})).unwrap();
            let mut options = NodeOptions::new(node, members.clone(), u64::from(node.0) * 77);
            options.ring_bytes = 4 << 20;
            options.command_bytes_max = 1 << 20;
            let transport = Box::new(network.endpoint(node, &peers));
            Node::new(options, transport, log, recovered, Box::new(Counter(0))).unwrap()
        });
        let mut cluster = Self { nodes: nodes.collect(), now: Nanos(0) };
        cluster.turn_until(|cluster| cluster.leader().is_some());
        cluster
    }

    fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.core().is_some_and(|core| core.role_is_leader()))
    }

    fn turn(&mut self) {
        self.now = self.now + Nanos(10_000);
        let clock = Clock { now: self.now, wall_ms: 1_000 + self.now.0 / 1_000_000 };
        for node in &mut self.nodes {
            node.step(clock);
        }
    }

    fn turn_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..1_000_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("not done within ten simulated seconds");
    }

    /// Puts `count` requests of one 64-byte command each into the queue of a replica.
    fn submit(&self, node: usize, count: usize) -> Vec<Pending> {
        let mut command = BytesMut::new();
        put_item(&mut command, &[7; 64]);
        let command: Bytes = command.freeze();
        let handle = self.nodes[node].handle();
        (0..count).map(|_| handle.propose_items(1, command.clone())).collect()
    }

    /// Runs `count` commands that were submitted at `node` and returns the allocations of all three
    /// replicas meanwhile.
    fn count_allocations(&mut self, node: usize, count: usize) -> u64 {
        let outcomes = self.submit(node, count);
        let applied = |cluster: &Self| {
            let statuses = cluster.nodes.iter().map(|node| node.status().counters.commands_applied);
            statuses.min().unwrap_or(0)
        };
        let goal = applied(self) + count as u64;
        let mut counted = 0;
        // The status clones histograms: it is looked at outside of what is counted.
        while applied(self) < goal {
            let info = allocation_counter::measure(|| {
                for _ in 0..20 {
                    self.turn();
                }
            });
            counted += info.count_total;
        }
        drop(outcomes);
        counted
    }
}

#[test]
fn steady_state_allocates_nothing_per_command() {
    let directory = tempfile::tempdir().unwrap();
    for medium in [MediumKind::Memory, MediumKind::Emulated] {
        let mut cluster = Cluster::start(medium, &directory.path().join(medium.to_string()));
        let leader = cluster.leader().unwrap();
        let follower = (leader + 1) % 3;
        for (whose, node) in [("the leader", leader), ("a follower", follower)] {
            // The first rounds let every buffer grow to its size.
            for _ in 0..20 {
                cluster.count_allocations(node, LARGE);
            }
            let mut total = |count| -> u64 {
                (0..ROUNDS).map(|_| cluster.count_allocations(node, count)).sum()
            };
            let (small, large) = (total(SMALL), total(LARGE));
            let more_commands = (ROUNDS * (LARGE - SMALL)) as f64;
            let per_command = (large as f64 - small as f64).max(0.0) / more_commands;
            println!(
                "{medium}, submitted at {whose}, allocations of three replicas over {ROUNDS} \
                 rounds: {small} with {SMALL} commands each, {large} with {LARGE}: {per_command:.5} \
                 for each command more"
            );
            // A batch may allocate (a chunk of an arena, a message), a command may not: the chunks
            // that many commands of 64 bytes fill are one in some thousand commands.
            assert!(per_command < 0.01, "{per_command} allocations a command");
        }
    }
}
