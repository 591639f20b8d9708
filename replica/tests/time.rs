//! Replicated time: one replica, stepped by hand, whose wall clock does as it likes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{Nanos, NodeId};
use quorate_replica::{Clock, Context, Handle, Node, StateMachine};
use quorate_rig::Start;
use quorate_transport::memory::MemoryNetwork;
use std::sync::{Arc, Mutex};

/// Notes the stamps that it sees, and wants to be told of one moment.
#[derive(Clone, Default)]
struct Stamps {
    commands: Arc<Mutex<Vec<u64>>>,
    advances: Arc<Mutex<Vec<u64>>>,
    deadline: Arc<Mutex<Option<u64>>>,
}

impl StateMachine for Stamps {
    fn apply(&mut self, context: &Context, _: &[u8], _: &mut BytesMut) {
        self.commands.lock().unwrap().push(context.time_ms);
    }

    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}

    fn next_deadline_ms(&self) -> Option<u64> {
        *self.deadline.lock().unwrap()
    }

    fn advance(&mut self, time_ms: u64) {
        self.advances.lock().unwrap().push(time_ms);
        let mut deadline = self.deadline.lock().unwrap();
        *deadline = deadline.filter(|due| *due > time_ms);
    }
}

struct Stepped {
    node: Node,
    now: Nanos,
}

impl Stepped {
    fn start(machine: Stamps) -> Self {
        let mut start = Start::of(NodeId(1));
        start.options.members = vec![NodeId(1)];
        let transport = MemoryNetwork::new(1).endpoint(NodeId(1), &[]);
        Self { node: start.node(transport, machine), now: Nanos(0) }
    }

    /// So many turns of a millisecond, while the wall clock shows `wall_ms`.
    fn turns(&mut self, count: u64, wall_ms: u64) {
        for _ in 0..count {
            self.now = self.now + Nanos::MILLISECOND;
            self.node.step(Clock { now: self.now, wall_ms });
        }
    }

    fn propose(&mut self, handle: &Handle, wall_ms: u64) {
        let done = handle.propose(b"x");
        self.turns(50, wall_ms);
        done.wait().unwrap();
    }
}

// Rule T1: stamps never go back, though the leader's clock does.
#[test]
fn a_leader_whose_clock_goes_back_stamps_no_lower() {
    let machine = Stamps::default();
    let mut stepped = Stepped::start(machine.clone());
    stepped.turns(1_000, 5_000);
    let handle = stepped.node.handle();
    for wall_ms in [5_000, 7_000, 6_000, 1_000, 7_500] {
        stepped.propose(&handle, wall_ms);
    }
    assert_eq!(*machine.commands.lock().unwrap(), [5_000, 7_000, 7_000, 7_000, 7_500]);
}

// Rule T3: a deadline of the state machine is told to it without a command, once its time has come.
#[test]
fn a_deadline_without_commands_gets_a_tick() {
    let machine = Stamps::default();
    let mut stepped = Stepped::start(machine.clone());
    stepped.turns(1_000, 5_000);
    let handle = stepped.node.handle();
    stepped.propose(&handle, 5_000);
    *machine.deadline.lock().unwrap() = Some(5_500);
    stepped.turns(100, 5_499);
    assert!(machine.advances.lock().unwrap().iter().all(|time_ms| *time_ms < 5_500));
    stepped.turns(100, 5_500);
    assert_eq!(machine.advances.lock().unwrap().last(), Some(&5_500));
    assert_eq!(machine.commands.lock().unwrap().len(), 1, "a tick is no command");
    let status = handle.status();
    stepped.turns(100, 6_000);
    assert_eq!(handle.status().commit_slot, status.commit_slot, "one tick is enough");
}
