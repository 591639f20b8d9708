//! No allocation per command on the replica's thread: counted, in the steady state.
//!
//! Three replicas are driven by hand on this thread, so that the counter sees only them. Requests
//! are put into the queue outside of what is counted, as clients do it on threads of their own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{Bytes, BytesMut};
use quorate_consensus::Nanos;
use quorate_consensus::batch::put_item;
use quorate_pmem_log::{MediumKind, open_medium};
use quorate_replica::Pending;
use quorate_rig::machines::Counter;
use quorate_rig::{Driven, Start, Turns, members};
use quorate_transport::memory::MemoryNetwork;

/// Commands that are submitted together.
const SMALL: usize = 64;
const LARGE: usize = 1024;
const ROUNDS: usize = 100;

struct Cluster {
    driven: Driven,
}

impl Cluster {
    fn start(medium: MediumKind, directory: &std::path::Path) -> Self {
        let network = MemoryNetwork::new(7);
        let nodes = members().into_iter().map(|node| {
            let mut start = Start::of(node);
            start.medium = open_medium(medium, &directory.join(node.to_string())).unwrap();
            start.segment_bytes = 64 << 20;
            start.options.ring_bytes = 4 << 20;
            start.options.command_bytes_max = 1 << 20;
            start.node_in(&network, Counter::default())
        });
        let mut driven = Driven::new(nodes, Nanos(10_000));
        driven.within(1_000_000, "a leader", |driven| driven.leader().is_some());
        Self { driven }
    }

    /// Puts `count` requests of one 64-byte command each into the queue of a replica.
    fn submit(&self, node: usize, count: usize) -> Vec<Pending> {
        let mut command = BytesMut::new();
        put_item(&mut command, &[7; 64]);
        let command: Bytes = command.freeze();
        let handle = self.driven.node(node).handle();
        (0..count).map(|_| handle.propose_items(1, command.clone())).collect()
    }

    /// Runs `count` commands that were submitted at `node` and returns the allocations of all three
    /// replicas meanwhile.
    fn count_allocations(&mut self, node: usize, count: usize) -> u64 {
        let outcomes = self.submit(node, count);
        let applied = |cluster: &Self| {
            let count = |at| cluster.driven.node(at).status().counters.commands_applied;
            (0..3).map(count).min().unwrap_or(0)
        };
        let goal = applied(self) + count as u64;
        let mut counted = 0;
        // The status clones histograms: it is looked at outside of what is counted.
        while applied(self) < goal {
            let info = allocation_counter::measure(|| self.driven.turns(20));
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
        let leader = cluster.driven.leader().unwrap();
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
