//! Passive followers (rules B1 to B7): three replicas, stepped by hand over the in-memory transport, whose
//! writes complete before they are visible.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate_consensus::{Incarnation, Nanos, NodeId, Slot};
use quorate_pmem_log::{MediumKind, open_medium};
use quorate_replica::NodeError;
use quorate_rig::machines::Story;
use quorate_rig::{Driven, Start, Turns, peers_of};
use quorate_transport::memory::{Landing, MemoryNetwork};

struct Three {
    network: MemoryNetwork,
    driven: Driven,
    stories: Vec<Story>,
}

impl Turns for Three {
    fn turn(&mut self) {
        self.driven.turn();
    }
}

fn id(at: usize) -> NodeId {
    NodeId(at as u16 + 1)
}

fn passive(at: usize) -> Start {
    let mut start = Start::of(id(at));
    start.options.passive = true;
    start
}

impl Three {
    fn new(seed: u64) -> Self {
        let network = MemoryNetwork::new(seed);
        let stories: Vec<Story> = (0..3).map(|_| Story::default()).collect();
        let node = |at: usize| passive(at).node_in(&network, stories[at].clone());
        let driven = Driven::new((0..3).map(node), Nanos::MILLISECOND);
        Self { network, driven, stories }
    }

    /// A leader whose every command the others have applied.
    fn settled(&mut self) -> usize {
        self.within(5_000, "a leader", |three| three.driven.leader().is_some());
        let leader = self.driven.leader().unwrap();
        let done = self.driven.node(leader).handle().propose(b"first");
        self.within(2_000, "the first command is applied everywhere", |three| {
            three.stories.iter().all(|story| story.told().len() == 1)
        });
        done.wait().unwrap();
        leader
    }

    fn commit(&self, at: usize) -> Slot {
        self.driven.core(at).commit_slot()
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
    three.within(1_000, "status says whose votes are completed writes", |three| {
        let peers = three.driven.node(leader).handle().status().peers;
        peers.iter().filter(|peer| peer.passive).count() == 2
    });
    three.network.cut(id(leader), id(third));
    three.turns(20);
    three.network.set_landing(id(follower), LATE);
    let before = three.commit(leader);
    let done = three.driven.node(leader).handle().propose(b"unseen");
    three.within(20, "a completed write is a vote", |three| three.commit(leader) > before);
    done.wait().unwrap();
    let seen = three.driven.core(follower).last_slot();
    assert!(seen <= before, "the follower has seen nothing of it");
    then(&mut three, leader, follower);
    three.within(10_000, "another leader", |three| three.driven.leader_among(&others).is_some());
    three.within(5_000, "what was acknowledged is there", |three| {
        others.iter().all(|at| three.stories[*at].told().len() == 2)
    });
    for at in others {
        assert_eq!(three.stories[at].told()[1], b"unseen");
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
        let mut start = passive(0);
        start.medium = open_medium(medium, &path).unwrap();
        let transport = Box::new(network.endpoint(id(0), &peers_of(id(0))));
        let refused = start.try_node(transport, Story::default()).err();
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
    assert!(three.driven.core(follower).votes());
    three.driven.nodes[follower] = None;
    let mut again = passive(follower);
    again.incarnation = Incarnation(again.incarnation.0 + 100);
    let story = Story::default();
    three.driven.nodes[follower] = Some(again.node_in(&three.network, story.clone()));
    three.within(5_000, "it learns", |_| story.told().len() == 1);
    assert!(!three.driven.core(follower).votes(), "another incarnation has no vote");
}
