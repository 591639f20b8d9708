//! Passive followers over verbs, on the fake device: a write commits while both followers stand still, and is
//! there when they elect another leader.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_device;

use quorate_consensus::Nanos;
use quorate_ffi::fake::Fabric;
use quorate_replica::NodeOptions;
use quorate_rig::machines::Story;
use quorate_rig::{Driven, Turns};

struct Three {
    driven: Driven,
    stories: Vec<Story>,
}

impl Turns for Three {
    fn turn(&mut self) {
        self.driven.turn();
    }
}

impl Three {
    fn start(fabric: &'static Fabric, passive: bool) -> Self {
        let mut stories = Vec::new();
        let story = || {
            stories.push(Story::default());
            stories[stories.len() - 1].clone()
        };
        let set = |options: &mut NodeOptions| options.passive = passive;
        let driven = fake_device::three(fabric, set, |transport| transport, story);
        Self { driven, stories }
    }

    fn told(&self, at: usize) -> usize {
        self.stories[at].told().len()
    }

    /// One command that all have applied. Returns who leads, and who follows.
    fn settled(&mut self) -> (usize, Vec<usize>) {
        let leader = self.driven.leader().unwrap();
        let done = self.driven.node(leader).handle().propose(b"first");
        self.until("one command", |three| (0..3).all(|at| three.told(at) == 1));
        done.wait().unwrap();
        // Rows of the followers that say what they are.
        self.turns(2_000);
        let leader = self.driven.leader().unwrap();
        (leader, (0..3).filter(|at| *at != leader).collect())
    }

    /// From now on only the leader takes turns, and time hardly moves, so that it does not miss its
    /// followers.
    fn leader_alone(&mut self, followers: &[usize]) {
        self.driven.keep_still(followers);
        self.driven.step = Nanos(100);
    }
}

// Rules B1, B2.
#[test]
fn a_write_commits_while_both_followers_stand_still_and_outlives_its_leader() {
    let mut three = Three::start(Fabric::new(21), true);
    let (leader, followers) = three.settled();
    let last_slot = |three: &Three, at: usize| three.driven.core(at).last_slot();
    let seen: Vec<_> = followers.iter().map(|at| last_slot(&three, *at)).collect();
    let done = three.driven.node(leader).handle().propose(b"unseen");
    three.leader_alone(&followers);
    three.until("a completed write is a vote", |three| {
        assert!(three.driven.core(leader).role_is_leader());
        three.told(leader) == 2
    });
    done.wait().unwrap();
    for (at, seen) in followers.iter().zip(&seen) {
        assert_eq!(last_slot(&three, *at), *seen, "it has looked");
    }
    // The leader stands still now, its lanes up; what it had acknowledged is in both others.
    three.driven.keep_still(&[leader]);
    three.driven.step = Nanos(50_000);
    three.until("another leader that has it", |three| {
        three.driven.leader_among(&followers).is_some()
            && followers.iter().all(|at| three.told(*at) == 2)
    });
    for at in followers {
        assert_eq!(three.stories[at].told()[1], b"unseen");
    }
}

#[test]
fn a_write_waits_for_followers_that_are_not_passive() {
    let mut three = Three::start(Fabric::new(22), false);
    let (leader, followers) = three.settled();
    let _done = three.driven.node(leader).handle().propose(b"unseen");
    three.leader_alone(&followers);
    three.turns(5_000);
    assert_eq!(three.told(leader), 1);
}
