//! A replica that may have lost a change of members with its newest checkpoint.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate_consensus::{
    Ballot, Configuration, Configurations, Incarnation, Member, Message, Nanos, NodeId, Paxos,
    Restored, Settings, Slot,
};

fn member(node: u16) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(node.into()) }
}

/// Knows all to be chosen up to slot 20, and who decided as of slot 5.
fn core() -> Paxos {
    let founding = Configuration::of_voters(1, (1..=3).map(member).collect());
    let restored = Restored {
        promised: Ballot { round: 1, node: NodeId(2) },
        commit_slot: Slot(20),
        log_first: Slot(15),
        accepted: Vec::new(),
        configurations: Configurations::new(founding),
        remembers: true,
    };
    Paxos::new(Settings::new(NodeId(1), Incarnation(1)), restored, Nanos(0))
}

/// Whom it asks whether it may stand, from `begin` on for so long that it would.
fn asks(core: &mut Paxos, begin: u64) -> Vec<NodeId> {
    let mut asked = Vec::new();
    for time in begin..begin + 5_000 {
        core.on_time(Nanos::from_millis(time));
        while core.poll_persist().is_some() {}
        while let Some((to, message)) = core.poll_message() {
            if matches!(message, Message::PreVote { .. }) && !asked.contains(&to) {
                asked.push(to);
            }
        }
    }
    asked
}

// Rule C11.
#[test]
fn who_may_have_lost_a_configuration_does_not_stand_until_a_checkpoint_brings_it() {
    assert_eq!(asks(&mut core(), 0).len(), 2, "it would stand");
    let mut core = core();
    core.misses_members_below(Slot(15));
    assert_eq!(asks(&mut core, 0), []);
    // A checkpoint that does not reach the log leaves the hole open.
    let now = Nanos::from_millis(5_000);
    let founding = Configuration::of_voters(1, (1..=3).map(member).collect());
    core.on_checkpoint(now, Slot(9), Configurations::new(founding));
    assert_eq!(asks(&mut core, 5_000), []);
    // The one of a peer, at a slot that was known chosen, says who decides.
    let later = Configuration::of_voters(2, [1, 4].map(member).to_vec());
    let mut configurations = Configurations::new(later.clone());
    configurations.forget_below(Slot(14));
    core.on_checkpoint(Nanos::from_millis(10_000), Slot(14), configurations);
    assert_eq!(core.configurations().latest(), &later);
    assert_eq!(asks(&mut core, 10_000), [NodeId(4)]);
}
