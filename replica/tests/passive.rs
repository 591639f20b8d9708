//! Passive followers (rules B1 to B7): three replicas, stepped by hand over the in-memory transport, whose
//! writes complete before they are visible.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{Incarnation, Nanos, NodeId, Slot};
use quorate_pmem_log::{Log, LogOptions, MediumKind};
use quorate_replica::{Clock, Context, Node, NodeError, NodeOptions, StateMachine};
use quorate_transport::Transport;
use quorate_transport::memory::{Landing, MemoryNetwork};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Keeps what it was told to do.
#[derive(Clone, Default)]
struct Story(Arc<Mutex<Vec<Vec<u8>>>>);

impl StateMachine for Story {
    fn apply(&mut self, _: &Context, command: &[u8], _: &mut BytesMut) {
        self.0.lock().unwrap().push(command.to_vec());
    }

    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}
}

struct Three {
    network: MemoryNetwork,
    nodes: Vec<Node>,
    stories: Vec<Story>,
    now: Nanos,
}

fn id(at: usize) -> NodeId {
    NodeId(at as u16 + 1)
}

fn start(
    network: &MemoryNetwork,
    at: usize,
    medium: MediumKind,
    directory: &Path,
    life: u64,
) -> Result<(Node, Story), NodeError> {
    let members: Vec<NodeId> = (0..3).map(id).collect();
    let others: Vec<NodeId> = members.iter().copied().filter(|node| *node != id(at)).collect();
    let transport = network.endpoint(id(at), &others);
    let waker = transport.waker();
    let log =
        LogOptions { directory: directory.into(), medium, node: id(at), segment_bytes: 16 << 20 };
    let wake = Arc::new(move || waker.wake());
    let (log, recovered) = Log::open(&log, Incarnation(life * 10 + at as u64), wake).unwrap();
    let mut options = NodeOptions::new(id(at), members, at as u64 + 1);
    options.command_bytes_max = 512 << 10;
    options.passive = true;
    let story = Story::default();
    let machine = Box::new(story.clone());
    Ok((Node::new(options, Box::new(transport), log, recovered, machine)?, story))
}

impl Three {
    fn new(seed: u64) -> Self {
        let network = MemoryNetwork::new(seed);
        let nowhere = Path::new("");
        let started: Vec<(Node, Story)> =
            (0..3).map(|at| start(&network, at, MediumKind::Memory, nowhere, 1).unwrap()).collect();
        let (nodes, stories) = started.into_iter().unzip();
        Self { network, nodes, stories, now: Nanos(0) }
    }

    /// Turns of a millisecond, until it holds; at most so many.
    fn until(&mut self, turns: u64, holds: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..turns {
            if holds(self) {
                return true;
            }
            self.now = self.now + Nanos::MILLISECOND;
            let clock = Clock { now: self.now, wall_ms: self.now.0 / 1_000_000 };
            for node in &mut self.nodes {
                node.step(clock);
            }
        }
        holds(self)
    }

    fn leader_of(&self, these: &[usize]) -> Option<usize> {
        let leads = |at: &&usize| self.nodes[**at].core().is_some_and(|core| core.role_is_leader());
        these.iter().find(leads).copied()
    }

    /// A leader whose every command the others have applied.
    fn settled(&mut self) -> usize {
        assert!(self.until(5_000, |three| three.leader_of(&[0, 1, 2]).is_some()), "no leader");
        let leader = self.leader_of(&[0, 1, 2]).unwrap();
        let handle = self.nodes[leader].handle();
        let done = handle.propose(b"first");
        let applied =
            |three: &Self| three.stories.iter().all(|story| story.0.lock().unwrap().len() == 1);
        assert!(self.until(2_000, applied), "the first command is not applied everywhere");
        done.wait().unwrap();
        leader
    }

    fn commit(&self, at: usize) -> Slot {
        self.nodes[at].core().unwrap().commit_slot()
    }
}

/// Bytes that are there are not seen for two seconds of turns; that they are there is told.
const LATE: Landing = Landing {
    tear_bytes: None,
    late_polls: 2_000,
    complete_early: true,
    ghosts: true,
    broken_fence: false,
};

/// A command that is chosen by a completed write of which the follower has seen nothing: how it goes on when
/// `then` has happened, with the two that are not the old leader.
fn chosen_unseen(seed: u64, then: impl Fn(&mut Three, usize, usize)) {
    let mut three = Three::new(seed);
    let leader = three.settled();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let (follower, third) = (others[0], others[1]);
    let told = |three: &Three| {
        let peers = three.nodes[leader].handle().status().peers;
        peers.iter().filter(|peer| peer.passive).count() == 2
    };
    assert!(three.until(1_000, told), "status says whose votes are completed writes");
    three.network.cut(id(leader), id(third));
    three.until(20, |_| false);
    three.network.set_landing(id(follower), LATE);
    let before = three.commit(leader);
    let done = three.nodes[leader].handle().propose(b"unseen");
    let chosen = three.until(20, |three| three.commit(leader) > before);
    assert!(chosen, "a completed write is a vote");
    done.wait().unwrap();
    let seen = three.nodes[follower].core().unwrap().last_slot();
    assert!(seen <= before, "the follower has seen nothing of it");
    then(&mut three, leader, follower);
    assert!(three.until(10_000, |three| three.leader_of(&others).is_some()), "no other leader");
    let has =
        |three: &Three| others.iter().all(|at| three.stories[*at].0.lock().unwrap().len() == 2);
    assert!(three.until(5_000, has), "what was acknowledged is lost");
    for at in others {
        assert_eq!(three.stories[at].0.lock().unwrap()[1], b"unseen");
    }
}

// Rules B1, B2, B5: it stands for election, or promises to the third, behind a fence.
#[test]
fn what_was_acknowledged_unseen_survives_a_change_of_leader() {
    for seed in 1..=6 {
        // The old leader is not heard any more by anybody; its lane stays up.
        chosen_unseen(seed, |three, leader, follower| {
            three.network.stall(id(leader), id(follower));
        });
    }
}

// Rules B4, B5: the life of the lane ends first.
#[test]
fn what_was_acknowledged_unseen_survives_the_end_of_its_lane() {
    for seed in 1..=6 {
        chosen_unseen(seed, |three, leader, follower| {
            three.network.cut(id(leader), id(follower));
        });
    }
}

// Rule B6.
#[test]
fn a_passive_follower_has_its_log_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    for medium in [MediumKind::File, MediumKind::Emulated] {
        let network = MemoryNetwork::new(1);
        let path = directory.path().join(format!("{medium:?}"));
        std::fs::create_dir(&path).unwrap();
        let refused = start(&network, 0, medium, &path, 1).err();
        let Some(NodeError::Options(why)) = refused else { panic!("{medium:?}: {refused:?}") };
        assert!(why.contains("memory"), "{why}");
    }
}

// Rule B7.
#[test]
fn a_passive_follower_that_restarts_does_not_vote() {
    let mut three = Three::new(3);
    let leader = three.settled();
    let follower = (0..3).find(|at| *at != leader).unwrap();
    assert!(three.nodes[follower].core().unwrap().votes());
    three.nodes.remove(follower);
    let (node, story) =
        start(&three.network, follower, MediumKind::Memory, Path::new(""), 2).unwrap();
    three.nodes.insert(follower, node);
    three.stories[follower] = story;
    let back = |three: &Three| three.stories[follower].0.lock().unwrap().len() == 1;
    assert!(three.until(5_000, back), "it learns");
    assert!(!three.nodes[follower].core().unwrap().votes(), "another incarnation has no vote");
}
