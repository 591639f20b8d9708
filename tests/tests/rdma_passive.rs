//! Passive followers over verbs, on the fake device: a write commits while both followers stand still, and is
//! there when they elect another leader.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{Incarnation, Nanos, NodeId};
use quorate_ffi::fake::Fabric;
use quorate_pmem_log::{Log, LogOptions, MediumKind};
use quorate_replica::{Clock, Context, Node, NodeOptions, StateMachine};
use quorate_transport_rdma::{AdapterOptions, RdmaOptions, RdmaTransport};
use quorate_transport_tcp::TcpOptions;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Default)]
struct Story(Arc<Mutex<Vec<Vec<u8>>>>);

impl StateMachine for Story {
    fn apply(&mut self, _: &Context, command: &[u8], _: &mut BytesMut) {
        self.0.lock().unwrap().push(command.to_vec());
    }

    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}
}

struct Three {
    nodes: Vec<Node>,
    stories: Vec<Story>,
    now: Nanos,
}

/// What takes real time (connections, a device's own thread) gets so much of it.
const PATIENCE: Duration = Duration::from_secs(60);

impl Three {
    fn start(fabric: &'static Fabric, passive: bool) -> Self {
        let members: Vec<NodeId> = (1..=3).map(NodeId).collect();
        // Held until all are known, so that no two are the same.
        let held: Vec<TcpListener> =
            members.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = held.iter().map(|held| held.local_addr().unwrap()).collect();
        drop(held);
        let mut three = Self { nodes: Vec::new(), stories: Vec::new(), now: Nanos(0) };
        for (at, node) in members.iter().copied().enumerate() {
            let peers = members.iter().zip(&addresses).filter(|(peer, _)| **peer != node);
            let peers = peers.map(|(peer, address)| (*peer, address.to_string())).collect();
            let tcp = TcpOptions { local: node, listen: addresses[at], peers, cluster: 0 };
            let device = Some(fabric.name().to_owned());
            let adapter = AdapterOptions { device, ..AdapterOptions::default() };
            let options = RdmaOptions { tcp, adapter };
            let transport = RdmaTransport::bind(&Fabric::library(), options).unwrap();
            let log = LogOptions {
                directory: std::path::PathBuf::new(),
                medium: MediumKind::Memory,
                node,
                segment_bytes: 16 << 20,
            };
            let incarnation = Incarnation(u64::from(node.0) + 100);
            let (log, recovered) = Log::open(&log, incarnation, Arc::new(|| {})).unwrap();
            let mut options = NodeOptions::new(node, members.clone(), u64::from(node.0) * 77);
            options.command_bytes_max = 1 << 20;
            options.passive = passive;
            let story = Story::default();
            let machine = Box::new(story.clone());
            let node = Node::new(options, Box::new(transport), log, recovered, machine).unwrap();
            three.nodes.push(node);
            three.stories.push(story);
        }
        three.until(&[0, 1, 2], "a leader, and lanes by RDMA", |three| {
            three.leader(&[0, 1, 2]).is_some() && three.all_by_rdma()
        });
        three
    }

    fn leader(&self, these: &[usize]) -> Option<usize> {
        let leads = |at: &&usize| self.nodes[**at].core().is_some_and(|core| core.role_is_leader());
        these.iter().find(leads).copied()
    }

    fn all_by_rdma(&self) -> bool {
        self.nodes.iter().all(|node| {
            let peers = node.status().peers;
            peers.len() == 2
                && peers.iter().all(|peer| peer.link.data_up && peer.link.carrier == "rdma")
        })
    }

    fn turn(&mut self, these: &[usize], step: Nanos) {
        self.now = self.now + step;
        let clock = Clock { now: self.now, wall_ms: 1_000 + self.now.0 / 1_000_000 };
        for at in these {
            self.nodes[*at].step(clock);
        }
    }

    fn until(&mut self, these: &[usize], what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "it never came to {what}");
            self.turn(these, Nanos(50_000));
        }
    }

    fn told(&self, at: usize) -> usize {
        self.stories[at].0.lock().unwrap().len()
    }

    /// One command that all have applied. Returns who leads, and who follows.
    fn settled(&mut self) -> (usize, Vec<usize>) {
        let leader = self.leader(&[0, 1, 2]).unwrap();
        let done = self.nodes[leader].handle().propose(b"first");
        self.until(&[0, 1, 2], "one command", |three| (0..3).all(|at| three.told(at) == 1));
        done.wait().unwrap();
        // Rows of the followers that say what they are.
        for _ in 0..2_000 {
            self.turn(&[0, 1, 2], Nanos(50_000));
        }
        let leader = self.leader(&[0, 1, 2]).unwrap();
        (leader, (0..3).filter(|at| *at != leader).collect())
    }
}

// Rules B1, B2.
#[test]
fn a_write_commits_while_both_followers_stand_still_and_outlives_its_leader() {
    let mut three = Three::start(Fabric::new(21), true);
    let (leader, followers) = three.settled();
    let seen: Vec<_> =
        followers.iter().map(|at| three.nodes[*at].core().unwrap().last_slot()).collect();
    let done = three.nodes[leader].handle().propose(b"unseen");
    // Time hardly moves, so that the leader does not miss its followers.
    let deadline = Instant::now() + PATIENCE;
    while three.told(leader) < 2 {
        assert!(Instant::now() < deadline, "a completed write is no vote");
        three.turn(&[leader], Nanos(100));
        assert!(three.nodes[leader].core().unwrap().role_is_leader());
    }
    done.wait().unwrap();
    for (at, seen) in followers.iter().zip(&seen) {
        assert_eq!(three.nodes[*at].core().unwrap().last_slot(), *seen, "it has looked");
    }
    // The leader stands still now, its lanes up; what it had acknowledged is in both others.
    three.until(&followers, "another leader that has it", |three| {
        three.leader(&followers).is_some() && followers.iter().all(|at| three.told(*at) == 2)
    });
    for at in followers {
        assert_eq!(three.stories[at].0.lock().unwrap()[1], b"unseen");
    }
}

#[test]
fn a_write_waits_for_followers_that_are_not_passive() {
    let mut three = Three::start(Fabric::new(22), false);
    let (leader, _) = three.settled();
    let _done = three.nodes[leader].handle().propose(b"unseen");
    for _ in 0..5_000 {
        three.turn(&[leader], Nanos(100));
    }
    assert_eq!(three.told(leader), 1);
}
