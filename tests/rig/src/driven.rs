//! Replicas that one thread drives by hand.

use crate::PATIENCE;
use quorate_consensus::{Nanos, Paxos};
use quorate_replica::{Clock, Node};
use std::time::Instant;

/// What goes on turn by turn.
pub trait Turns {
    /// One turn.
    fn turn(&mut self);

    /// So many turns.
    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    /// Turns until it holds: where nothing but turns is needed for it.
    ///
    /// # Panics
    /// If it does not hold after `count` of them.
    #[track_caller]
    fn within(&mut self, count: usize, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..count {
            if holds(self) {
                return;
            }
            self.turn();
        }
        assert!(holds(self), "not within {count} turns: {what}");
    }

    /// Turns until it holds: where it takes real time as well (connections, a device's own thread).
    ///
    /// # Panics
    /// If it does not hold after [`PATIENCE`].
    #[track_caller]
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            self.turn();
        }
    }
}

/// Replicas that take their turns one after the other, all at one simulated time.
#[derive(Debug)]
pub struct Driven {
    /// By their places; none where one is down.
    pub nodes: Vec<Option<Node>>,
    /// The simulated time.
    pub now: Nanos,
    /// How far it goes from turn to turn.
    pub step: Nanos,
    still: Vec<usize>,
}

impl Driven {
    /// At the beginning of time.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = Node>, step: Nanos) -> Self {
        let nodes = nodes.into_iter().map(Some).collect();
        Self { nodes, now: Nanos(0), step, still: Vec::new() }
    }

    /// These take no turns from now on; all others do.
    pub fn keep_still(&mut self, these: &[usize]) {
        self.still = these.to_vec();
    }

    /// The replica in this place.
    ///
    /// # Panics
    /// If it is down.
    #[must_use]
    pub fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().unwrap()
    }

    /// Its core.
    ///
    /// # Panics
    /// If it is down, or does not take part yet.
    #[must_use]
    pub fn core(&self, at: usize) -> &Paxos {
        self.node(at).core().unwrap()
    }

    /// The first of all that leads.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|at| self.leads(*at))
    }

    /// The first of these that leads.
    #[must_use]
    pub fn leader_among(&self, these: &[usize]) -> Option<usize> {
        these.iter().copied().find(|at| self.leads(*at))
    }

    fn leads(&self, at: usize) -> bool {
        let core = self.nodes[at].as_ref().and_then(Node::core);
        core.is_some_and(Paxos::role_is_leader)
    }

    /// A turn that takes `step`. The wall clock, which is far from the other, goes with it.
    pub fn turn_by(&mut self, step: Nanos) {
        self.now = self.now + step;
        let clock = Clock { now: self.now, wall_ms: 1_000 + self.now.0 / 1_000_000 };
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if let Some(node) = node.as_mut().filter(|_| !self.still.contains(&at)) {
                node.step(clock);
            }
        }
    }
}

impl Turns for Driven {
    fn turn(&mut self) {
        self.turn_by(self.step);
    }
}
