//! Whoever changes the members of a cluster, hands leadership over, replaces what was lost, and lets
//! removed replicas come back with what they knew: steadily, and also while faults run.
//!
//! It knows what an operator knows: what is chosen, which disks were lost, and who says that it leads. It
//! asks for nothing that would need a lost disk, and it may ask the wrong replica, too early, or twice.

use crate::atlas::{node_at, place_of};
use crate::coverage::Row;
use crate::medium::Survival;
use crate::random::Random;
use crate::shape::{MS, MembersShape};
use crate::world::{Happening, World};
use quorate_consensus::{
    Ballot, Change, Configuration, Member, NodeId, PROTOCOL_WITNESSES, QuorumSizes, Refusal,
    RoleName, Slot,
};
use quorate_pmem_log::MediumKind;
use quorate_replica::{Failure, Pending, Reason};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// What the operator asked for last.
#[derive(Debug)]
struct Asked {
    node: usize,
    pending: Pending,
    /// None: to hand leadership over.
    target: Option<Target>,
}

/// A configuration that was asked for, and what there was to see of it.
#[derive(Debug)]
struct Target {
    configuration: Configuration,
    early: bool,
    /// A voter that was dead is replaced, and another one was slow.
    beside_slow: bool,
}

/// A row that was injected and is observed when a slot is decided.
#[derive(Debug)]
struct Open {
    slot: Slot,
    row: Row,
    /// Who led, and removed itself.
    removed: Option<usize>,
}

/// The operator of a run.
#[derive(Debug)]
pub(crate) struct Operator {
    random: Random,
    /// Decides when it asks for what must be refused.
    daring: Random,
    asked: Option<Asked>,
    open: Vec<Open>,
    /// Replicas with an empty disk, and a number that is a voter's.
    strangers: Vec<usize>,
    /// The fault that waits for a change.
    pub(crate) waylay: Option<usize>,
    /// Leaderships that were handed over because it was asked for.
    pub(crate) transfers: u64,
    /// Changes that were refused.
    pub(crate) refused: u64,
}

impl Operator {
    /// With chances of its own.
    #[must_use]
    pub(crate) fn new(random: Random, daring: Random) -> Self {
        Self {
            random,
            daring,
            asked: None,
            open: Vec::new(),
            strangers: Vec::new(),
            waylay: None,
            transfers: 0,
            refused: 0,
        }
    }

    /// The configuration that was asked for and not answered for yet.
    #[must_use]
    pub(crate) fn asked_for(&self) -> Option<&Configuration> {
        self.asked.as_ref()?.target.as_ref().map(|target| &target.configuration)
    }

    /// `row` is observed when `slot` is decided.
    pub(crate) fn await_decision(&mut self, slot: Slot, row: Row) {
        self.open.push(Open { slot, row, removed: None });
    }

    /// An empty disk came to a number that votes.
    pub(crate) fn await_stranger(&mut self, node: usize) {
        self.strangers.push(node);
    }
}

/// Whoever lacks more is slow.
const BEHIND_SLOTS: u64 = 8;

/// Changes of quorum sizes that ask for quorums that need not meet, of a million.
const APART_PPM: u64 = 200_000;

/// What may be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Add,
    Hasty,
    Promote,
    Replace,
    Remove,
    RemoveLeader,
    Demote,
    Drop,
    Readmit,
    AnySet,
    Sizes,
    Witness,
}

const STEPS: [(Step, u64); 11] = [
    (Step::Add, 5),
    (Step::Hasty, 1),
    (Step::Promote, 6),
    (Step::Replace, 4),
    (Step::Remove, 2),
    (Step::RemoveLeader, 2),
    (Step::Demote, 1),
    (Step::Drop, 1),
    (Step::Readmit, 6),
    (Step::AnySet, 1),
    (Step::Sizes, 1),
];

impl World {
    /// The operator looks after the cluster.
    pub(crate) fn operate(&mut self) {
        let Some(shape) = self.shape.members.clone() else { return };
        if !self.core.is_empty() {
            return;
        }
        let wait = self.operator.random.exponential(shape.step_mean) + MS;
        self.schedule(self.now + wait, Happening::Operate);
        self.settle_rows();
        if !self.take_answer() {
            return;
        }
        if self.checks.members.newest().is_none() {
            return;
        }
        self.tend_removed();
        self.tend_lost();
        let asked = match self.operator.random.chance(shape.astray_ppm) {
            true => Some(self.operator.random.below(self.shape.nodes as u64) as usize),
            false => self.leader(),
        };
        let asked = asked.filter(|node| self.places[*node].process.is_some());
        let Some(node) = asked else { return };
        if self.operator.random.chance(shape.transfers_ppm) {
            self.ask_to_transfer(node);
        } else {
            self.ask_to_change(node, &shape);
        }
    }

    /// After a turn of the replica at `node`: it may have answered.
    pub(crate) fn listen(&mut self, node: usize) {
        if self.operator.asked.as_ref().is_some_and(|asked| asked.node == node) {
            self.take_answer();
        }
    }

    fn ask_to_transfer(&mut self, node: usize) {
        let random = &mut self.operator.random;
        let to = match random.chance(500_000) {
            true => None,
            false => Some(node_at(random.below(self.shape.nodes as u64) as usize)),
        };
        let Some(process) = &self.places[node].process else { return };
        let pending = process.handle.transfer(to);
        self.operator.asked = Some(Asked { node, pending, target: None });
        self.say(|| format!("the operator asks replica {} to hand over to {to:?}", node + 1));
        self.wake(node);
    }

    fn ask_to_change(&mut self, node: usize, shape: &MembersShape) {
        let Some((_, standing)) = self.checks.members.newest() else { return };
        let standing = standing.clone();
        let Some((step, change)) = self.draw_change(&standing, shape) else { return };
        let configuration = self.target_of(&standing, &change);
        // A disk that is lost is needed by nobody, by the operator's will.
        if configuration.check().is_ok() && !self.could_decide(&configuration, None) {
            return;
        }
        let votes = |node: NodeId| configuration.electors().any(|member| member.node == node);
        let left = standing.electors().filter(|member| !votes(member.node));
        let dead = left.filter(|member| self.places[place_of(member.node)].process.is_none());
        let committed = self.checks.committed;
        let slow = standing.electors().any(|member| {
            let place = &self.places[place_of(member.node)];
            let commit = place.subject().map(|subject| subject.core.commit_slot());
            let behind = commit.is_some_and(|commit| commit.0 + BEHIND_SLOTS < committed);
            place.slow > 1 || place.stall > 0 || place.paused || behind
        });
        let beside_slow = dead.count() > 0 && slow;
        let early = step == Step::Hasty;
        if early {
            self.coverage.inject(Row::F79);
        }
        let Some(process) = &self.places[node].process else { return };
        self.operator.asked = Some(Asked {
            node,
            pending: process.handle.change_members(change.clone()),
            target: Some(Target { configuration, early, beside_slow }),
        });
        self.say(|| format!("the operator asks replica {} to {step:?}: {change:?}", node + 1));
        self.wake(node);
    }

    /// What the change would make of `standing`, as far as the operator knows.
    fn target_of(&self, standing: &Configuration, change: &Change) -> Configuration {
        let member = |node: &NodeId| {
            let mut named = standing.electors().filter(|_| !change.readmit.contains(node));
            let here = self.places[place_of(*node)].member();
            named.find(|member| member.node == *node).unwrap_or(here)
        };
        let voters: Vec<Member> = change.voters.iter().map(member).collect();
        let learner = |node: &NodeId| Member { node: *node, ..Member::default() };
        let mut learners: Vec<Member> = change.learners.iter().map(learner).collect();
        learners.sort_unstable();
        let settled = false;
        let mut witnesses: Vec<Member> = change.witnesses.iter().map(member).collect();
        witnesses.sort_unstable();
        let some = !witnesses.is_empty();
        let before = if standing.copies > 0 { standing.copies } else { 2 };
        let copies = change.copies.unwrap_or(before.min(voters.len() as u16));
        Configuration {
            learners,
            witnesses,
            copies: if some { copies } else { 0 },
            protocol: if some { PROTOCOL_WITNESSES } else { standing.protocol },
            settled,
            quorums: change.quorums,
            ..Configuration::of_voters(standing.id + 1, voters)
        }
    }

    fn draw_change(
        &mut self,
        standing: &Configuration,
        shape: &MembersShape,
    ) -> Option<(Step, Change)> {
        let total = STEPS.iter().map(|(_, weight)| weight).sum();
        let mut left = self.operator.random.below(total);
        let mut step = Step::Add;
        for (candidate, weight) in STEPS {
            if left < weight {
                step = candidate;
                break;
            }
            left -= weight;
        }
        let nodes = |members: &[Member]| -> Vec<NodeId> {
            members.iter().map(|member| member.node).collect()
        };
        let (voters, learners) = (nodes(&standing.voters), nodes(&standing.learners));
        let full = self.shape.nodes - self.shape.witnesses;
        if full < self.shape.nodes && self.operator.random.chance(350_000) {
            return self.draw_witness_change(standing).map(|change| (Step::Witness, change));
        }
        let is_full = |node: &NodeId| place_of(*node) < full;
        let (learners, witnessing): (Vec<NodeId>, Vec<NodeId>) =
            learners.into_iter().partition(is_full);
        let places = 0..full;
        let spares: Vec<NodeId> =
            places.map(node_at).filter(|node| !standing.names(*node)).collect();
        let lost: Vec<NodeId> = standing
            .electors()
            .filter(|member| !self.is_whole(*member))
            .map(|member| member.node)
            .collect();
        let dead: Vec<NodeId> = voters
            .iter()
            .copied()
            .filter(|node| self.places[place_of(*node)].process.is_none())
            .collect();
        let leader = self.leader().map(node_at);
        if self.shape.focus.bridges && self.operator.random.chance(700_000) {
            step = if learners.len() > 1 { Step::AnySet } else { Step::Add };
        }
        let prefers_dead = self.operator.random.chance(700_000);
        if !dead.is_empty() && self.operator.random.chance(400_000) {
            step = if learners.is_empty() { Step::Remove } else { Step::Replace };
        }
        let random = &mut self.operator.random;
        let mut one_of = |list: &[NodeId]| (!list.is_empty()).then(|| random.pick(list));
        let mut change = Change {
            voters: voters.clone(),
            learners: learners.clone(),
            witnesses: nodes(&standing.witnesses),
            quorums: standing.quorums,
            ..Change::default()
        };
        let room = voters.len() < shape.voters_max;
        match step {
            Step::Add => {
                let spare = one_of(&spares)?;
                self.prepare(place_of(spare), &voters);
                change.learners.push(spare);
            }
            Step::Hasty if room => {
                let spare = one_of(&spares)?;
                self.prepare(place_of(spare), &voters);
                change.voters.push(spare);
            }
            Step::Promote if room => {
                let learner = one_of(&learners)?;
                change.voters.push(learner);
                change.learners.retain(|other| *other != learner);
            }
            Step::Replace => {
                let learner = one_of(&learners)?;
                let dead = if prefers_dead { one_of(&dead) } else { None };
                let old = one_of(&lost).or(dead).or_else(|| one_of(&voters))?;
                change.voters.retain(|other| *other != old);
                change.voters.push(learner);
                change.learners.retain(|other| *other != learner);
            }
            Step::Remove | Step::RemoveLeader | Step::Demote if voters.len() > 1 => {
                let old = match step {
                    Step::RemoveLeader => leader?,
                    _ if prefers_dead && !dead.is_empty() => one_of(&dead)?,
                    _ => one_of(&voters)?,
                };
                change.voters.retain(|other| *other != old);
                if step == Step::Demote {
                    change.learners.push(old);
                }
            }
            Step::Drop => {
                let learner = one_of(&learners)?;
                change.learners.retain(|other| *other != learner);
            }
            Step::Readmit => change.readmit.push(one_of(&lost)?),
            Step::AnySet => {
                let mut all = [voters.clone(), learners].concat();
                random.shuffle(&mut all);
                let size = random.between(1, shape.voters_max.min(all.len()) as u64) as usize;
                change.learners = all.split_off(size);
                change.voters = all;
            }
            Step::Sizes => {
                let electors = (voters.len() + change.witnesses.len()) as u64;
                let two = random.between(1, electors);
                let mut one = electors + 1 - two + random.below(two);
                let apart = electors - two;
                if apart > 0 && self.operator.daring.chance(APART_PPM) {
                    // They need not meet: this must be refused.
                    one = self.operator.daring.between(1, apart);
                }
                change.quorums = Some(QuorumSizes { phase_one: one as u16, phase_two: two as u16 });
            }
            _ => return None,
        }
        change.learners.extend(witnessing);
        if change.voters.len() != voters.len() && change.quorums == standing.quorums {
            change.quorums = None;
        }
        Some((step, change))
    }

    /// A witness comes or goes, or the number of copies changes.
    fn draw_witness_change(&mut self, standing: &Configuration) -> Option<Change> {
        let nodes = |members: &[Member]| -> Vec<NodeId> {
            members.iter().map(|member| member.node).collect()
        };
        let voters = nodes(&standing.voters);
        let mut change = Change {
            voters: voters.clone(),
            learners: nodes(&standing.learners),
            witnesses: nodes(&standing.witnesses),
            quorums: standing.quorums,
            ..Change::default()
        };
        let first = self.shape.nodes - self.shape.witnesses;
        let place = first + self.operator.random.below(self.shape.witnesses as u64) as usize;
        let node = node_at(place);
        let whole = standing.electors().find(|member| member.node == node);
        let whole = whole.is_none_or(|member| self.is_whole(member));
        let luck = self.operator.random.below(10);
        if !standing.names(node) {
            self.prepare(place, &voters);
            change.learners.push(node);
        } else if change.learners.contains(&node) {
            change.learners.retain(|other| *other != node);
            change.witnesses.push(node);
            change.quorums = None;
        } else if !whole {
            change.readmit.push(node);
        } else if luck < 3 {
            change.witnesses.retain(|other| *other != node);
            change.quorums = None;
        } else if luck < 7 {
            let copies = 1 + self.operator.random.below(voters.len() as u64) as u16;
            change.copies = Some(copies);
        } else {
            return None;
        }
        Some(change)
    }

    /// A replica that shall become a member is told of some that are, and started.
    fn prepare(&mut self, node: usize, members: &[NodeId]) {
        if self.places[node].process.is_some() && self.can_hear(node, members) {
            return;
        }
        if self.places[node].process.is_some() {
            self.stop(node);
        }
        let again = self.places[node].incarnation.is_some();
        if again && self.operator.random.chance(500_000) && self.may_wipe(node) {
            self.wipe(node);
        }
        self.tell(node, members);
    }

    /// The replica at `node` is started beside some of `members`.
    fn tell(&mut self, node: usize, members: &[NodeId]) {
        let mut contacts: Vec<usize> = members.iter().map(|node| place_of(*node)).collect();
        let random = &mut self.operator.random;
        random.shuffle(&mut contacts);
        contacts.truncate(random.between(1, contacts.len() as u64) as usize);
        self.say(|| format!("the operator starts replica {} beside {contacts:?}", node + 1));
        self.places[node].contacts = Some(contacts);
        self.places[node].idle = false;
        self.restart(node);
    }

    /// Whether the replica at `node` looks for any of `members`.
    fn can_hear(&self, node: usize, members: &[NodeId]) -> bool {
        let place = &self.places[node];
        match place.subject() {
            Some(subject) => subject.core.peer_nodes().any(|peer| members.contains(&peer)),
            None => {
                let told = place.told_of(&self.shape);
                told.into_iter().any(|other| members.contains(&node_at(other)))
            }
        }
    }

    fn may_wipe(&self, node: usize) -> bool {
        self.may_lose(node) && !self.is_last_founder(node)
    }

    /// The process at `node` ends; what it has on its disk stays, unless it has none.
    fn stop(&mut self, node: usize) {
        if self.shape.profile.kind != MediumKind::Memory {
            self.crash(node, Survival::Everything);
        } else if self.may_wipe(node) {
            self.wipe(node);
        }
    }

    /// Replicas that nobody needs any more are stopped, and come back with what they knew.
    fn tend_removed(&mut self) {
        let node = self.operator.random.below(self.shape.nodes as u64) as usize;
        let named = self.deciders().iter().any(|known| known.names(node_at(node)));
        if named || self.places[node].incarnation.is_none() {
            return;
        }
        let luck = self.operator.random.below(100);
        let runs = self.places[node].process.is_some();
        match luck {
            0..20 if runs => {
                self.say(|| format!("the operator stops replica {}", node + 1));
                self.stop(node);
                self.places[node].idle = self.places[node].process.is_none();
            }
            0..30 if self.places[node].idle => {
                self.say(|| format!("replica {} comes back, removed", node + 1));
                self.places[node].idle = false;
                self.restart(node);
            }
            _ => {}
        }
    }

    /// A member that looks for none of the voters any more, or never did, is told of them.
    fn tend_lost(&mut self) {
        let Some((_, standing)) = self.checks.members.newest() else { return };
        let members: Vec<NodeId> = standing.voters.iter().map(|member| member.node).collect();
        let all = standing.members().map(|member| place_of(member.node));
        let mut lost: Vec<usize> = all
            .filter(|node| {
                let alone = members[..] == [node_at(*node)];
                !alone && self.places[*node].process.is_some() && !self.can_hear(*node, &members)
            })
            .collect();
        if self.shape.profile.kind == MediumKind::Memory {
            lost.retain(|node| {
                standing.learners.iter().any(|member| place_of(member.node) == *node)
            });
        }
        if let Some(node) = lost.into_iter().min() {
            self.stop(node);
            self.tell(node, &members);
        }
    }

    /// The operator tells each of `core` of the others, if it has to.
    pub(crate) fn bring_together(&mut self, core: &[usize]) {
        for node in self.lost_touch(core) {
            self.stop(node);
            self.places[node].contacts = Some(core.to_vec());
        }
    }

    /// Takes what the replica answered. Whether the operator waits for nothing.
    fn take_answer(&mut self) -> bool {
        let Some(asked) = &mut self.operator.asked else { return true };
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(outcome) = Pin::new(&mut asked.pending).poll(&mut context) else {
            return false;
        };
        let Some(Asked { node, target, .. }) = self.operator.asked.take() else { return true };
        self.say(|| format!("replica {} answers the operator: {outcome:?}", node + 1));
        match (outcome, target) {
            (Ok(_), None) => self.operator.transfers += 1,
            (Ok(slot), Some(target)) => {
                let slot = slot[..].try_into().map_or(0, u64::from_le_bytes);
                let electors = target.configuration.electors().count();
                let meet = target.configuration.quorums.is_none_or(|sizes| {
                    usize::from(sizes.phase_one) + usize::from(sizes.phase_two) > electors
                });
                if !meet {
                    self.fail("C4: a change to quorums that need not meet was taken".into());
                }
                self.on_proposed(node, Slot(slot), &target);
            }
            (Err(Failure::Rejected(Reason::Members(refusal))), Some(target)) => {
                self.operator.refused += 1;
                let early =
                    matches!(refusal, Refusal::NotReady { .. } | Refusal::NotCaughtUp { .. });
                if target.early && early {
                    self.coverage.observe(Row::F79);
                }
            }
            (Err(_), _) => {}
        }
        true
    }

    /// The change of members is in the log of the leader.
    fn on_proposed(&mut self, leader: usize, slot: Slot, target: &Target) {
        let mut rows = Vec::new();
        if self.is_partitioned() {
            rows.push((Row::F74, None));
        }
        if self.has_rival(leader) {
            rows.push((Row::F75, None));
        }
        if !target.configuration.electors().any(|member| place_of(member.node) == leader) {
            rows.push((Row::F76, Some(leader)));
        }
        if target.beside_slow {
            rows.push((Row::F77, None));
        }
        for (row, removed) in rows {
            self.coverage.inject(row);
            self.operator.open.push(Open { slot, row, removed });
        }
        let leads =
            self.places[leader].subject().is_some_and(|subject| subject.core.role_is_leader());
        // What begins in the liveness phase would never end.
        if leads && self.checks.committed < slot.0 && self.core.is_empty() {
            self.waylay(leader, &target.configuration);
        }
    }

    /// Whether some members cannot reach each other.
    fn is_partitioned(&self) -> bool {
        let deciders = self.deciders();
        let named = |node: usize| deciders.iter().any(|known| known.names(node_at(node)));
        let members: Vec<usize> = (0..self.shape.nodes).filter(|node| named(*node)).collect();
        let net = crate::transport::lock(&self.net);
        members.iter().any(|a| members.iter().any(|b| a < b && net.is_cut(*a, *b)))
    }

    /// Whether another replica has a change in its log that is not chosen, and that `leader` does not
    /// know.
    fn has_rival(&self, leader: usize) -> bool {
        let Some(subject) = self.places[leader].subject() else { return false };
        let ours: Vec<_> = subject.core.configurations().iter().collect();
        let others = self.places.iter().filter(|place| place.index != leader);
        others.into_iter().any(|place| {
            let live = place.subject().map(|subject| subject.core.configurations());
            let live = live.into_iter().flat_map(|known| known.iter());
            let dead = place.known.iter().map(|(slot, known)| (*slot, known));
            let dead = dead.filter(|_| place.process.is_none());
            let mut known = live.chain(dead).filter(|theirs| !ours.contains(theirs));
            known.any(|(slot, theirs)| !self.checks.members.is_chosen(slot, theirs))
        })
    }

    /// Rows that were waited for.
    pub(crate) fn settle_rows(&mut self) {
        let settled = self.checks.members.settled().map_or(0, |(slot, _)| slot);
        let leader = self.leader();
        for open in std::mem::take(&mut self.operator.open) {
            let over = match open.row {
                Row::F76 => settled >= open.slot.0 && leader.is_some() && leader != open.removed,
                Row::F77 => settled >= open.slot.0,
                _ => self.checks.committed >= open.slot.0,
            };
            if over {
                self.coverage.observe(open.row);
            } else {
                self.operator.open.push(open);
            }
        }
        for node in std::mem::take(&mut self.operator.strangers) {
            // It is there, it knows the cluster, and it does not vote.
            let votes = self.places[node].subject().map(|subject| subject.core.votes());
            match votes {
                Some(false) => self.coverage.observe(Row::F81),
                Some(true) => {}
                None => self.operator.strangers.push(node),
            }
        }
    }

    /// A replica stands for election: one that was removed must not disturb anyone.
    pub(crate) fn note_candidate(&mut self, node: usize) {
        let Some((_, settled)) = self.checks.members.settled() else { return };
        if self.shape.members.is_none() || settled.names(node_at(node)) {
            return;
        }
        if self.deciders().iter().any(|known| known.names(node_at(node))) {
            return;
        }
        let Some((ballot, _)) = crate::run::leader(self) else { return };
        self.coverage.inject(Row::F78);
        let at = self.now + 2 * self.shape.election_max;
        self.schedule(at, Happening::LookForPeace(ballot));
    }

    /// The leader stayed, in the end: also where removed members stand for election all the time.
    pub(crate) fn note_peace(&mut self) {
        let Some((_, settled)) = self.checks.members.settled() else { return };
        let settled = settled.clone();
        for node in 0..self.shape.nodes {
            let stands = |subject: crate::checks::Subject<'_>| {
                subject.core.role() == RoleName::Candidate && !settled.names(subject.member.node)
            };
            if self.places[node].subject().is_some_and(stands) {
                self.coverage.meet(Row::F78);
            }
        }
    }

    /// Some time later: does whoever led under `ballot` still do?
    pub(crate) fn look_for_peace(&mut self, ballot: Ballot) {
        if crate::run::leader(self).is_some_and(|(still, _)| still == ballot) {
            self.coverage.observe(Row::F78);
        }
    }
}
