//! The end of a run in which the disks of a quorum, or of more, broke their word.
//!
//! All invariants held until here and go on being checked. Then everything heals but the disks. If
//! fewer replicas than a quorum can vote, nothing may be decided any more, each replica that cannot
//! vote must say so to its operator, and each client must be told within its time-out that its write
//! is not done. If enough can (what was damaged was of no use any more), the cluster may go on.

use crate::medium::Survival;
use crate::run::{heal_place, leader};
use crate::shape::MS;
use crate::world::World;

/// How long after the healing a leader of before may still finish.
const GRACE_NANOS: u64 = 2_000 * MS;

/// Heals the network and the processes, and looks at what is left.
pub(crate) fn settle(world: &mut World) {
    let nodes = world.shape.nodes;
    world.core = (0..nodes).collect();
    world.asking = false;
    world.with_net(|net| net.calm());
    world.whims.calm();
    for a in 0..nodes {
        for b in a + 1..nodes {
            world.with_net(|net| net.heal(a, b));
        }
    }
    for node in 0..nodes {
        world.places[node].recovery_deaths = None;
        heal_place(world, node);
    }
    world.run_until(world.now + GRACE_NANOS + 10 * world.shape.election_max);
    if world.violation.is_some() {
        return;
    }
    let votes =
        |node: &usize| world.places[*node].subject().is_some_and(|subject| subject.core.votes());
    let voters = (0..nodes).filter(votes).count();
    if voters >= world.shape.quorum() {
        return;
    }
    world.stalled = true;
    let committed = world.checks.committed;
    let askers: Vec<usize> = (0..nodes).map(|node| world.clients.add(node)).collect();
    for &asker in &askers {
        let node = world.clients.all[asker].node;
        let Some(process) = &world.places[node].process else { continue };
        let handle = process.handle.clone();
        world.clients.write_fresh(asker, &handle);
        world.wake(node);
    }
    world.run_until(world.now + world.shape.request_timeout * 2 + GRACE_NANOS);
    if world.violation.is_some() {
        return;
    }
    if let Some((ballot, node)) = leader(world) {
        return world.fail(format!("disaster: replica {} leads under {ballot}", node + 1));
    }
    if world.checks.committed != committed {
        return world.fail(format!("disaster: slot {} was decided", world.checks.committed));
    }
    for node in 0..nodes {
        let place = &world.places[node];
        // One that refuses to start has said so.
        let Some(process) = &place.process else { continue };
        let silent = process.node.status().trouble.is_empty();
        if silent && !place.subject().is_some_and(|subject| subject.core.votes()) {
            return world.fail(format!("disaster: replica {} does not say why", node + 1));
        }
    }
    for &asker in &askers {
        let node = world.clients.all[asker].node;
        if world.clients.is_busy(asker) && world.places[node].process.is_some() {
            return world.fail(format!("disaster: a client of replica {} waits", node + 1));
        }
    }
    // What was asked last is settled; what is left of the processes is of no use.
    for node in 0..nodes {
        world.crash(node, Survival::Everything);
    }
}
