//! Which disks may still be lost: no decision may depend on one that is gone, in any configuration that
//! may still decide something. And which replicas must be able to go on in the end, for the same reason.

use crate::coverage::Row;
use crate::medium::{SimMedium, Survival};
use crate::process::Process;
use crate::random::Random;
use crate::world::World;
use quorate_consensus::{Ballot, Configuration, Member, NodeId, Slot};

/// Where a member has its place.
#[must_use]
pub(crate) fn place_of(node: NodeId) -> usize {
    usize::from(node.0).wrapping_sub(1)
}

/// The number of the replica at a place.
#[must_use]
pub(crate) fn node_at(place: usize) -> NodeId {
    NodeId(place as u16 + 1)
}

/// Whether those for which `has` says yes could elect a leader, and choose what it proposes; with
/// witnesses, also that one of them holds whatever was chosen (rule W4).
fn is_enough(configuration: &Configuration, mut has: impl FnMut(Member) -> bool) -> bool {
    configuration.is_quorum(&mut has)
        && configuration.is_election_quorum(&mut has)
        && configuration.meets_copies(has)
}

impl World {
    /// Every configuration that may still decide something: the newest one that is settled, and all that
    /// any replica or any disk has behind it. And the one that the operator has asked for.
    #[must_use]
    pub(crate) fn deciders(&self) -> Vec<Configuration> {
        let Some((slot, settled)) = self.checks.members.settled() else { return Vec::new() };
        let mut all = vec![settled.clone()];
        all.extend(self.checks.members.chosen_behind(slot).cloned());
        for place in &self.places {
            let live = place.subject().map(|subject| subject.core.configurations());
            let live = live.into_iter().flat_map(|known| known.iter());
            let dead = place.known.iter().map(|(slot, known)| (*slot, known));
            let behind = live.chain(dead).filter(|(at, _)| at.0 > slot);
            all.extend(behind.map(|(_, known)| known.clone()));
        }
        all.extend(self.operator.asked_for().cloned());
        all.sort_by_key(|known| (known.id, known.settled));
        all.dedup();
        all
    }

    /// Whether the disk of `member` is there, and kept its word.
    #[must_use]
    pub(crate) fn is_whole(&self, member: Member) -> bool {
        let place = &self.places[place_of(member.node)];
        place.incarnation == Some(member.incarnation) && !place.forgets && !place.refused
    }

    /// Whether `configuration` could decide with the disks that kept their word, but for that of `lost`.
    #[must_use]
    pub(crate) fn could_decide(&self, configuration: &Configuration, lost: Option<usize>) -> bool {
        is_enough(configuration, |member| {
            Some(place_of(member.node)) != lost && self.is_whole(member)
        })
    }

    /// Whether the disk of `node` may be lost. One copy of the founding document stays anyway, and
    /// before there is one, all disks do.
    #[must_use]
    pub(crate) fn may_lose(&self, node: usize) -> bool {
        let deciders = self.deciders();
        !deciders.is_empty() && deciders.iter().all(|known| self.could_decide(known, Some(node)))
    }

    /// An empty disk takes the place of the one of `node`, whose process dies: from now on it is another
    /// voter with the same number.
    pub(crate) fn wipe(&mut self, node: usize) {
        self.crash(node, Survival::Nothing);
        let named = self.places[node].member();
        let is_voter = |known: &Configuration| known.votes(named.node, named.incarnation);
        if self.deciders().iter().any(is_voter) {
            self.coverage.inject(Row::F81);
            self.operator.await_stranger(node);
        }
        let fresh = SimMedium::new(self.shape.profile);
        let place = &mut self.places[node];
        place.died_of = vec![Row::F58];
        place.medium = fresh;
        place.emptied = true;
        place.told = (Ballot::ZERO, (Ballot::ZERO, Slot::ZERO));
        place.incarnation = None;
        place.known.clear();
        (place.forgets, place.refused, place.damaged) = (false, false, None);
    }

    /// A process is gone: what it knew of configurations may be on its disk.
    pub(crate) fn remember_members(&mut self, node: usize, process: &Process) {
        if self.shape.members.is_none() {
            return;
        }
        let Some(core) = process.node.core() else { return };
        let known = core.configurations().iter();
        self.places[node].known =
            known.map(|(slot, configuration)| (slot, configuration.clone())).collect();
        let open = !core.configurations().latest().settled
            || core.configurations().latest_slot() > core.commit_slot();
        if core.role_is_leader() && open {
            let slot = core.configurations().latest_slot();
            self.coverage.inject(Row::F80);
            self.operator.await_decision(slot, Row::F80);
        }
    }

    /// Replicas with which every configuration that may still decide something could: a quorum of each,
    /// and no more of them than chance wants. None if a change that was under way when a disk was lost
    /// needs that disk.
    #[must_use]
    pub(crate) fn members_core(&self, random: &mut Random) -> Option<Vec<usize>> {
        let deciders = self.deciders();
        let mut members: Vec<Member> = deciders.iter().flat_map(Configuration::electors).collect();
        members.sort_unstable();
        members.dedup();
        members.retain(|member| self.is_whole(*member));
        random.shuffle(&mut members);
        let enough = |members: &[Member]| {
            deciders.iter().all(|known| is_enough(known, |member| members.contains(&member)))
        };
        let needed = (0..=members.len()).find(|count| enough(&members[..*count]))?;
        let size = random.between(needed as u64, members.len() as u64) as usize;
        let mut core: Vec<usize> =
            members[..size].iter().map(|member| place_of(member.node)).collect();
        for learner in deciders[0].learners.iter().map(|learner| place_of(learner.node)) {
            let takes_part = self.places[learner].subject().is_some();
            if takes_part && !self.places[learner].forgets && random.chance(500_000) {
                core.push(learner);
            }
        }
        core.sort_unstable();
        core.dedup();
        Some(core)
    }

    /// Those of `core` that know not all of the others any more: each was away for so long that it has to
    /// be told again whom to look for.
    #[must_use]
    pub(crate) fn lost_touch(&self, core: &[usize]) -> Vec<usize> {
        let knows_all = |a: &usize| core.iter().all(|b| a == b || self.knows(*a, *b));
        core.iter().copied().filter(|node| !knows_all(node)).collect()
    }

    /// Whether the replica at `a` looks for the one at `b`.
    fn knows(&self, a: usize, b: usize) -> bool {
        let place = &self.places[a];
        match place.subject() {
            // Others are peers for a while only: those that leave, and those that it was told of.
            Some(subject) => {
                let mut known = subject.core.configurations().iter();
                known.any(|(_, known)| known.names(node_at(b)))
            }
            None => {
                place.known.iter().any(|(_, known)| known.names(node_at(b)))
                    || place.known.is_empty() && place.told_of(&self.shape).contains(&b)
            }
        }
    }
}
