//! A run: the safety phase, the liveness phase, and what is checked at the end.

use crate::atlas::{node_at, place_of};
use crate::coverage::{Coverage, Row, note_checkpoints};
use crate::disaster;
use crate::medium::Survival;
use crate::plan::{self, Item};
use crate::process::Place;
use crate::random::Random;
use crate::shape::{MS, Shape};
use crate::transport::lock;
use crate::world::World;
use quorate_check::{History, Kv, Limits, Verdict, check};
use quorate_consensus::buggify::Point;
use quorate_consensus::{Ballot, Mutant, RowFlags};
use quorate_pmem_log::MediumKind;

/// The longest call of a stalled storage.
const STALL_NANOS: u64 = 1_000 * MS;
/// How long the healed core may take, besides what its time-outs allow.
const LIVENESS_NANOS: u64 = 10_000 * MS;

/// Liveness phases that begin with reads, before anything is written, of a million.
const READ_FIRST_PPM: u64 = 300_000;

/// What a run was.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What is wrong; none: nothing.
    pub violation: Option<String>,
    /// A fingerprint of all that happened.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Simulated nanoseconds.
    pub nanos: u64,
    /// Slots committed.
    pub commits: u64,
    /// Leaderships.
    pub leaderships: u64,
    /// Votes that were in the ring of a passive follower before they were in its log.
    pub passive_votes: u64,
    /// Rings that were fenced.
    pub fences: u64,
    /// Operations given to the checker.
    pub checked: u64,
    /// Stale reads checked.
    pub stale_reads: u64,
    /// Disks looked at.
    pub probes: u64,
    /// Faults of the plan.
    pub faults: u64,
    /// A run with a disaster in which too few could vote: it stalled, and said so.
    pub stalled: bool,
    /// Configurations that were chosen, but for the first.
    pub changes: u64,
    /// Leaderships that were handed over because somebody asked for it.
    pub transfers: u64,
    /// A disk was lost in the moment in which a change made it indispensable: nothing helps then.
    pub stuck: bool,
    /// Injected and observed.
    pub coverage: Coverage,
    /// How often each point of the product misbehaved.
    pub whims: [u64; Point::ALL.len()],
    /// One line an event, if it was asked for.
    pub trace: Vec<String>,
}

/// Which runs a seed is drawn for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cast {
    /// Those of every day: see [`run`].
    #[default]
    Plain,
    /// See [`run_disaster`].
    Disaster,
    /// Witnesses are among the replicas, and an operator makes them members.
    Witnesses,
    /// Followers are passive: what their leader wrote into their memory is their vote.
    Passive,
}

impl Cast {
    /// Draws the shape of `seed`, and its faults.
    #[must_use]
    pub(crate) fn draw(self, seed: u64) -> (Shape, Vec<Item>) {
        match self {
            Self::Plain => {
                let shape = Shape::draw(seed, plan::KINDS);
                let plan = plan::draw(seed, &shape);
                (shape, plan)
            }
            Self::Disaster => {
                let shape = Shape::draw_disaster(seed, plan::KINDS);
                let plan = plan::draw_disaster(seed, &shape);
                (shape, plan)
            }
            Self::Witnesses => {
                let shape = Shape::draw_witnesses(seed, plan::KINDS);
                let plan = plan::draw(seed, &shape);
                (shape, plan)
            }
            Self::Passive => {
                let shape = Shape::draw_passive(seed, plan::KINDS);
                let plan = plan::draw(seed, &shape);
                (shape, plan)
            }
        }
    }
}

/// Runs `seed` of `cast`.
#[must_use]
pub fn run_as(cast: Cast, seed: u64, trace: bool) -> Outcome {
    let (shape, plan) = cast.draw(seed);
    run_plan(seed, shape, plan, trace)
}

/// Runs `seed`.
#[must_use]
pub fn run(seed: u64, trace: bool) -> Outcome {
    let shape = Shape::draw(seed, plan::KINDS);
    let plan = plan::draw(seed, &shape);
    run_plan(seed, shape, plan, trace)
}

/// Runs `seed` with the disks of a quorum, or of more, destroyed: what is left must stall, say so, and
/// invent nothing.
#[must_use]
pub fn run_disaster(seed: u64, trace: bool) -> Outcome {
    let shape = Shape::draw_disaster(seed, plan::KINDS);
    let plan = plan::draw_disaster(seed, &shape);
    run_plan(seed, shape, plan, trace)
}

/// Runs `seed` with a mistake built into all replicas, in a run that is about it. What some mistakes are in
/// knows no settings: those are to be planted ([`quorate_consensus::plant`]) before.
#[must_use]
pub fn run_mutant(seed: u64, mutant: Mutant) -> Outcome {
    let mut shape = Shape::draw_focused(seed, plan::KINDS, mutant);
    shape.mutant = Some(mutant);
    shape.net.broken_fence = mutant == Mutant::BrokenFence;
    let plan = plan::draw(seed, &shape);
    run_plan(seed, shape, plan, false)
}

/// The same run without the mistake.
#[must_use]
pub fn run_without(seed: u64, mutant: Mutant) -> Outcome {
    let shape = Shape::draw_focused(seed, plan::KINDS, mutant);
    let plan = plan::draw(seed, &shape);
    run_plan(seed, shape, plan, false)
}

/// Runs the faults of `plan` on the shape and the chances of `seed`.
#[must_use]
pub(crate) fn run_plan(seed: u64, shape: Shape, plan: Vec<Item>, trace: bool) -> Outcome {
    let faults = plan.len() as u64;
    let mut world = World::new(seed, shape, plan, trace);
    world.say(|| format!("seed {seed}"));
    let shape = world.shape.clone();
    world.say(|| format!("{shape:?}"));
    world.run_until(shape.safety_nanos);
    if shape.disaster {
        disaster::settle(&mut world);
    } else {
        settle(&mut world);
        if world.violation.is_none() && !world.stuck {
            wait_for_convergence(&mut world);
        }
    }
    if world.violation.is_none() {
        check_the_end(&mut world);
    }
    finish(seed, faults, world)
}

fn finish(seed: u64, faults: u64, mut world: World) -> Outcome {
    world.settle_rows();
    let checked = world.clients.history.len() as u64;
    let net_hash = lock(&world.net).hash;
    let net_coverage = lock(&world.net).coverage.clone();
    world.coverage.add(&net_coverage);
    for place in &world.places {
        let Some(process) = &place.process else { continue };
        world.empty_answers += lock(&process.spy).empty_answers;
        note_checkpoints(&mut world.coverage, &process.node);
        let duplicates = process.node.status().counters.duplicates;
        if duplicates > 0 {
            world.coverage.inject(Row::F82);
            world.coverage.observe(Row::F82);
        }
    }
    let sessions = &world.clients.sessions;
    let reads = [
        (Row::F85, world.clients.deposed_reads),
        (Row::F86, world.clients.behind_reads),
        (Row::F87, world.clients.leased_reads),
        (Row::F82, sessions.retried),
        (Row::F89, sessions.cut),
    ];
    for (row, (asked, settled)) in reads {
        (0..asked).for_each(|_| world.coverage.inject(row));
        (0..settled).for_each(|_| world.coverage.observe(row));
    }
    (0..world.empty_answers).for_each(|_| world.coverage.meet(Row::F73));
    if world.clients.refused > 0 {
        world.coverage.inject(Row::F90);
        world.coverage.observe(Row::F90);
    }
    Outcome {
        seed,
        violation: world.violation.take(),
        hash: crate::random::mix(world.hash ^ net_hash),
        events: world.events,
        nanos: world.now,
        commits: world.checks.committed,
        leaderships: world.checks.leaderships(),
        passive_votes: world.passive_votes,
        fences: lock(&world.net).fences,
        checked,
        stale_reads: world.clients.stale_reads,
        probes: world.checks.probes,
        faults,
        stalled: world.stalled,
        changes: world.checks.members.chosen_behind(0).count() as u64,
        transfers: world.operator.transfers,
        stuck: world.stuck,
        coverage: world.coverage.clone(),
        whims: world.whims.hits(),
        trace: world.trace.take().map(Vec::from).unwrap_or_default(),
    }
}

/// The replicas that are healed: a quorum or more of those whose disks kept their word.
fn draw_core(world: &mut World, random: &mut Random) -> Vec<usize> {
    let founders = world.shape.founders;
    let mut whole: Vec<usize> = (0..founders).filter(|node| !world.places[*node].forgets).collect();
    let changes = world.shape.members.is_some() && world.checks.members.newest().is_some();
    if changes {
        let core = world.members_core(random);
        // Without a disk nobody can be told anything at a restart.
        let core = core.filter(|core| {
            world.shape.profile.kind != MediumKind::Memory || world.lost_touch(core).is_empty()
        });
        world.stuck = core.is_none();
        whole = core.unwrap_or_default();
        world.bring_together(&whole);
    } else {
        random.shuffle(&mut whole);
        let quorum = world.shape.quorum();
        let size = random.between(quorum as u64, (whole.len() as u64).max(quorum as u64)) as usize;
        whole.truncate(size);
    }
    let founded = |node: &usize| {
        world.places[*node].subject().is_some() || world.places[*node].told.0.round > 0
    };
    // Founding needs everyone, so everyone is the core of a cluster that is not founded yet. One of
    // them that was there tells the others. Where members change it is founded, whoever of them was not
    // started yet.
    if !changes && !whole.iter().any(founded) {
        let present = (0..founders).filter(|node| !world.places[*node].refused);
        let late = whole.iter().copied().filter(|node| *node >= founders);
        whole = present.chain(late).collect();
    }
    whole.sort_unstable();
    whole
}

/// Ends the faults of a core that is connected to itself and leaves the rest as it is.
fn settle(world: &mut World) {
    let random = &mut Random::split(world.hash, 6);
    let nodes = world.shape.nodes;
    let whole = draw_core(world, random);
    if world.stuck {
        return;
    }
    world.say(|| {
        format!(
            "liveness phase: the core is {:?}",
            whole.iter().map(|node| node + 1).collect::<Vec<_>>()
        )
    });
    world.core.clone_from(&whole);
    world.asking = false;
    world.with_net(|net| net.calm());
    world.whims.calm();
    for &a in &whole {
        for &b in whole.iter().filter(|b| **b > a) {
            world.with_net(|net| net.heal(a, b));
        }
    }
    for node in 0..nodes {
        if whole.contains(&node) {
            heal_place(world, node);
        } else if random.chance(500_000) {
            world.crash(node, Survival::Nothing);
            world.places[node].refused = true;
        }
    }
}

pub(crate) fn heal_place(world: &mut World, node: usize) {
    let place = &mut world.places[node];
    place.slow = 1;
    place.stall = 0;
    place.idle = false;
    place.death = None;
    place.medium.control().calm();
    world.go_on(node);
    world.replace_failed_log(node);
    world.restart(node);
    world.wake(node);
}

/// Lets the core run until it agrees on everything, and then keeps its leader.
fn wait_for_convergence(world: &mut World) {
    let bound = LIVENESS_NANOS + 60 * world.shape.election_max + 4 * world.shape.request_timeout;
    if Random::split(world.hash, 9).chance(READ_FIRST_PPM) {
        read_before_any_write(world, world.now + bound);
        if world.violation.is_some() {
            return;
        }
    }
    let fresh: Vec<usize> =
        world.core.clone().into_iter().map(|node| world.clients.add(node)).collect();
    let mut written = vec![None; fresh.len()];
    // Each replica outside of the core may come back once with a promise above the leader.
    for _ in 0..=world.shape.nodes {
        converge(world, bound, &fresh, &mut written);
        if world.violation.is_some() || keeps_its_leader(world) {
            return;
        }
    }
}

/// Lets the core run until it agrees on everything.
fn converge(world: &mut World, bound: u64, fresh: &[usize], written: &mut [Option<u32>]) {
    let deadline = world.now + bound;
    loop {
        world.run_until(world.now + 10 * MS);
        if world.violation.is_some() {
            return;
        }
        write_fresh(world, fresh, written);
        match unconverged(world, written) {
            None => break,
            Some(why) if world.now >= deadline => return world.fail(format!("liveness: {why}")),
            Some(_) => look_after(world),
        }
    }
}

/// Whether the leader stays for some election time-outs; if not although it should, the run fails. It need
/// not where a replica outside of the core returned that had promised more before the core converged: that
/// one can take part under a higher ballot only, and who leads gives way to it (P10).
fn keeps_its_leader(world: &mut World) -> bool {
    let held: Vec<Option<Ballot>> = world
        .places
        .iter()
        .map(|place| place.subject().map(|subject| subject.core.promised()))
        .collect();
    // A call of a storage that stalled before the healing may take until now, and a leader that saw no
    // progress of it has begun to hand over.
    world.run_until(world.now + STALL_NANOS + 2 * world.shape.election_max);
    // A leader outside of the core has what broke there as a reason to go.
    let Some((ballot, leader)) = leader(world) else { return true };
    let healthy = world.core.contains(&leader);
    let since = world.now;
    let shown: Vec<Ballot> = world.places.iter().map(promise_to_heed).collect();
    world.run_until(world.now + 3 * world.shape.election_max + 300 * MS);
    let after = self::leader(world);
    if after == Some((ballot, leader)) {
        world.note_peace();
    }
    if world.violation.is_some() || !healthy || after == Some((ballot, leader)) {
        return true;
    }
    let returned = world.places.iter().find(|place| {
        let Some(process) = &place.process else { return false };
        // Who promised more while the core had its leader was let by nobody.
        let late = process.born > since;
        let promised = if late { process.restored } else { shown[place.index] };
        let before = held[place.index].unwrap_or(process.restored);
        !world.core.contains(&place.index) && promised > ballot && promised <= before
    });
    let Some(name) = returned.map(|place| place.index + 1) else {
        world.fail(format!("liveness: leader {ballot} was replaced without a reason: {after:?}"));
        return true;
    };
    world.say(|| format!("replica {name} had promised more than {ballot} before"));
    false
}

/// What the replica promised, as far as a leader has to heed it: not if its log failed, since it does not
/// vote then.
fn promise_to_heed(place: &Place) -> Ballot {
    let Some(subject) = place.subject() else { return Ballot::ZERO };
    let failed = subject.core.row(subject.member.node).flags.has(RowFlags::POISONED);
    if failed { Ballot::ZERO } else { subject.core.promised() }
}

/// A log that failed is looked at by its operator, also now.
fn look_after(world: &mut World) {
    for node in world.core.clone() {
        world.replace_failed_log(node);
        world.restart(node);
    }
}

/// Reads are answered though nobody writes: a leader needs no client for that.
fn read_before_any_write(world: &mut World, deadline: u64) {
    let readers: Vec<usize> =
        world.core.clone().into_iter().map(|node| world.clients.add(node)).collect();
    loop {
        world.run_until(world.now + 10 * MS);
        if world.violation.is_some() {
            return;
        }
        for &client in &readers {
            let reader = &world.clients.all[client];
            let node = reader.node;
            if reader.has_read || world.clients.is_busy(client) {
                continue;
            }
            let Some(process) = &world.places[node].process else { continue };
            let handle = process.handle.clone();
            let clock = world.places[node].clock(world.now, world.shape.rates[node]);
            world.clients.read(client, &handle, clock);
            world.wake(node);
            world.after_clients(Vec::new());
        }
        let served = served(world);
        let clients = &world.clients.all;
        let waits = |client: &&usize| {
            let reader = &clients[**client];
            served.contains(&reader.node)
                && is_member(world, reader.node)
                && !world.shape.is_witness(reader.node)
                && !reader.has_read
        };
        let Some(&client) = readers.iter().find(waits) else { return };
        if world.now >= deadline {
            let name = clients[client].node + 1;
            return world.fail(format!("liveness: a read at replica {name} is not answered"));
        }
        look_after(world);
    }
}

/// Whether the newest configuration that was chosen names the replica, if they change.
fn is_member(world: &World, node: usize) -> bool {
    let standing = world.checks.members.newest().map(|(_, standing)| standing);
    standing.is_none_or(|standing| standing.names(node_at(node)))
}

/// Who leads under the highest ballot, and under which.
pub(crate) fn leader(world: &World) -> Option<(Ballot, usize)> {
    let leaders = world.places.iter().filter_map(|place| {
        let core = place.subject()?.core;
        core.role_is_leader().then(|| (core.ballot(), place.index))
    });
    leaders.max()
}

/// The replicas of the core that must be served: all, but those that a leader outside of the core
/// does not reach. Such a leader stays, since a quorum hears it (the chained case), and commands are
/// not passed on by third replicas.
fn served(world: &World) -> Vec<usize> {
    let leader = leader(world).map(|(_, leader)| leader);
    let outside = leader.filter(|leader| !world.core.contains(leader));
    let net = lock(&world.net);
    let cut = |node: usize| outside.is_some_and(|leader| net.is_cut(node, leader));
    world.core.iter().copied().filter(|node| !cut(*node)).collect()
}

/// Has a client of each replica of the core write something, until it is acknowledged.
fn write_fresh(world: &mut World, fresh: &[usize], written: &mut [Option<u32>]) {
    for (place, &client) in fresh.iter().enumerate() {
        let node = world.clients.all[client].node;
        let done =
            written[place].is_some_and(|number| world.clients.acknowledged.contains(&number));
        if done || world.clients.is_busy(client) || world.shape.is_witness(node) {
            continue;
        }
        let Some(process) = &world.places[node].process else { continue };
        let handle = process.handle.clone();
        written[place] = Some(world.clients.write_fresh(client, &handle));
        world.wake(node);
        world.after_clients(Vec::new());
    }
}

/// What is still missing.
fn unconverged(world: &World, written: &[Option<u32>]) -> Option<String> {
    let Some((ballot, leader)) = leader(world) else { return Some("no leader".into()) };
    let served = served(world);
    let standing = world.checks.members.newest().map(|(_, standing)| standing);
    if let Some(standing) = standing.filter(|_| world.shape.members.is_some()) {
        if !standing.settled {
            return Some("the last change of members is not settled".into());
        }
        if !standing.electors().any(|member| place_of(member.node) == leader) {
            return Some(format!("replica {} leads and is no voter", leader + 1));
        }
    }
    let is_member = |node: usize| is_member(world, node);
    for (place, node) in world.core.iter().enumerate() {
        let name = node + 1;
        if !is_member(*node) {
            continue;
        }
        let Some(subject) = world.places[*node].subject() else {
            return Some(format!("replica {name} does not take part"));
        };
        // A witness serves nobody.
        let is_witness = world.shape.is_witness(*node);
        let is_served = served.contains(node);
        if is_served && subject.core.leader_ballot() != Some(ballot) {
            return Some(format!("replica {name} does not follow {ballot}"));
        }
        let number = written[place].unwrap_or(0);
        if is_served && !is_witness && !world.clients.acknowledged.contains(&number) {
            return Some(format!("a fresh write at replica {name} is not acknowledged"));
        }
        if subject.core.applied_slot().0 != world.checks.committed {
            return Some(format!(
                "replica {name} has applied {} of {} slots",
                subject.core.applied_slot(),
                world.checks.committed
            ));
        }
    }
    let members = world.core.iter().filter(|node| is_member(**node));
    let members = members.filter(|node| !world.shape.is_witness(**node));
    let mut digests = members.filter_map(|node| Some(world.places[*node].subject()?.digest));
    let first = digests.next();
    digests.any(|digest| Some(digest) != first).then(|| "I7: the core has different digests".into())
}

/// The oracle of the clients, and linearizability.
fn check_the_end(world: &mut World) {
    for node in 0..world.shape.nodes {
        let free = world.clients.lose(node);
        world.after_clients(free);
    }
    let ledger = std::sync::Arc::clone(&world.ledger);
    world.clients.end_sessions(&lock(&ledger));
    world.after_clients(Vec::new());
    let wrong = {
        let ledger = lock(&world.ledger);
        let clients = &world.clients;
        let lost = clients.acknowledged.iter().find(|number| !ledger.applied.contains_key(number));
        let undead = clients.rejected.iter().find(|number| ledger.applied.contains_key(number));
        for number in &clients.unknown {
            world.coverage.inject(Row::F83);
            if ledger.applied.contains_key(number) {
                world.coverage.observe(Row::F83);
            }
        }
        match (lost, undead) {
            (Some(number), _) => Some(format!("I13: acknowledged command {number} is lost")),
            (_, Some(number)) => Some(format!("rejected command {number} took effect")),
            _ => None,
        }
    };
    if let Some(wrong) = wrong {
        return world.fail(wrong);
    }
    let history = match History::new(world.clients.history.clone()) {
        Ok(history) => history,
        Err(error) => return world.fail(format!("the history is malformed: {error}")),
    };
    match check(&Kv, &history, &Limits::default()) {
        Verdict::Linearizable { .. } => {}
        verdict => world.fail(format!("not linearizable: {verdict}")),
    }
}
