//! Change of members: who is counted, what is known of configurations, and how a new one comes about.
//!
//! Rules C1 to C9; the argument is in `docs/decisions/0020-members-change-by-slot.md`.

use super::{Notice, Paxos, Peer};
use crate::configuration::ConfigurationError;
use crate::role::{Adopting, Adoption, Leader, Progress, Role};
use crate::{
    Address, Configuration, Configurations, Incarnation, Member, Mutant, NodeId, QuorumSizes, Slot,
    Value, ValueKind, ensures, requires,
};
use alloc::vec::Vec;
use core::fmt;

/// A new voter may be so many slots behind the commit slot.
const CAUGHT_UP_SLOTS: u64 = 1024;
/// How many voters hold what is chosen, where there are witnesses and nobody said otherwise.
const COPIES: u16 = 2;
/// Who was removed is shipped to, so that it learns of it, for so many election time-outs.
const LEAVING_TIMEOUTS: u64 = 10;

/// Who is to be what, as an operator says it: by numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Whose votes shall count.
    pub voters: Vec<NodeId>,
    /// Who shall only receive the log.
    pub learners: Vec<NodeId>,
    /// Whose votes shall count without payloads (rule W2).
    pub witnesses: Vec<NodeId>,
    /// How many voters shall hold what is chosen, where there are witnesses; as before if none, and two
    /// where there was no witness before.
    pub copies: Option<u16>,
    /// Sizes of quorums; majorities if none.
    pub quorums: Option<QuorumSizes>,
    /// Where members are reached, as far as it is not known or shall change.
    pub addresses: Vec<Address>,
    /// Voters that lost their disks, and shall vote again with the ones that they have now.
    pub readmit: Vec<NodeId>,
}

/// Why a change is not proposed. Nothing happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// This replica does not lead.
    NotLeading,
    /// The leader is new, and its first entry is not chosen yet: try again.
    TooSoon,
    /// The last change is not settled yet: try again.
    UnderWay {
        /// Its configuration.
        id: u64,
    },
    /// That is the configuration already.
    NothingToDo,
    /// It makes no sense.
    Unsound(ConfigurationError),
    /// A new voter is not connected, or its log failed or is damaged.
    NotReady {
        /// Who.
        node: NodeId,
    },
    /// A new voter lacks so many slots still: try again.
    NotCaughtUp {
        /// Who.
        node: NodeId,
        /// How many.
        behind: u64,
    },
    /// A new voter does not speak the active version of the protocol (rule V3).
    TooOld {
        /// Who.
        node: NodeId,
        /// The newest version that it speaks.
        speaks: u16,
        /// The active one.
        active: u16,
    },
    /// A witness, or a replica that was started as one, would become a voter or a learner; or a replica that
    /// keeps payloads a witness.
    OtherKind {
        /// Who.
        node: NodeId,
        /// Whether it was started as a witness.
        witness: bool,
    },
    /// Too few of the new voters work: the cluster would stand still.
    NoQuorum {
        /// How many do.
        ready: usize,
        /// How many must.
        needed: usize,
    },
}

impl Refusal {
    /// Whether the same change may be accepted a little later.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::NotLeading | Self::TooSoon | Self::UnderWay { .. } | Self::NotCaughtUp { .. }
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeading => f.write_str("this replica does not lead: ask the leader"),
            Self::TooSoon => f.write_str("the leader has just begun to lead: try again"),
            Self::UnderWay { id } => {
                write!(f, "the change to configuration {id} is under way: wait until it is settled")
            }
            Self::NothingToDo => f.write_str("the members are so already"),
            Self::Unsound(error) => write!(f, "{error}"),
            Self::NotReady { node } => write!(
                f,
                "replica {node} is not connected, or its log failed or is damaged: it cannot vote"
            ),
            Self::NotCaughtUp { node, behind } => {
                write!(f, "replica {node} is {behind} slots behind: wait until it has caught up")
            }
            Self::TooOld { node, speaks, active } => write!(
                f,
                "replica {node} speaks the protocol up to version {speaks}, and version {active} is \
                 active: start it with a newer program"
            ),
            Self::OtherKind { node, witness: true } => write!(
                f,
                "replica {node} is a witness and keeps no payloads: it can only be a witness. To make it a \
                 voter, remove it and start it without `witness` in an empty directory"
            ),
            Self::OtherKind { node, witness: false } => write!(
                f,
                "replica {node} was not started as a witness: remove it and start it with `witness` in an \
                 empty directory"
            ),
            Self::NoQuorum { ready, needed } => write!(
                f,
                "only {ready} of the new voters work and are caught up, and {needed} are needed: the \
                 cluster would stand still"
            ),
        }
    }
}

impl Paxos {
    /// The member that this replica is: its number, and the life of its disk (rule C6).
    pub(super) fn me(&self) -> Member {
        let node = self.settings.node;
        let mut me = Member { node, incarnation: self.settings.incarnation };
        if self.settings.is(Mutant::AmnesiacVotes) {
            let named = |member: &Member| member.node == node;
            me = self.configurations.latest().electors().find(named).unwrap_or(me);
        }
        me
    }

    /// Whether `member` is this replica, and its word counts.
    pub(super) fn is_me(&self, member: Member) -> bool {
        self.remembers && member == self.me()
    }

    /// The peer that is `member`, if its word counts: not one that has the number, and another disk.
    pub(super) fn present(&self, member: Member) -> Option<&Peer> {
        let peer = &self.peers[self.peer_index(member.node)?];
        let same_disk =
            peer.row.incarnation == member.incarnation || self.settings.is(Mutant::AnyDiskVotes);
        (same_disk && peer.counts()).then_some(peer)
    }

    /// Whether a configuration that decides slots above the commit slot names this replica, with its
    /// disk, as one whose vote counts.
    pub(super) fn is_named(&self) -> bool {
        let Member { node, incarnation } = self.me();
        self.configurations
            .deciding(self.commit_slot.next())
            .any(|configuration| configuration.votes(node, incarnation))
    }

    /// Rule C1: `slot` holds `value` from now on.
    pub(super) fn note_value(&mut self, slot: Slot, value: &Value) {
        let names = value.kind == ValueKind::Configuration;
        if !names && slot > self.configurations.latest_slot() {
            return;
        }
        let configuration = if names { Configuration::decode(&value.bytes) } else { None };
        let spoken = |known: &Configuration| known.protocol <= self.settings.protocol;
        if names && !configuration.as_ref().is_some_and(spoken) {
            self.on_strange_configuration(slot);
        }
        if configuration.is_none() && self.settings.is(Mutant::KeepOverwrittenMembers) {
            return;
        }
        let known = configuration.is_some();
        if self.configurations.note(slot, configuration) {
            self.members_version += 1;
            self.refresh_members();
        }
        ensures!(
            checked,
            C1,
            !known || self.configurations.iter().any(|(at, _)| at == slot),
            "a configuration is known as soon as it is accepted"
        );
    }

    /// A configuration of a format that a later version brought: this replica cannot know whose votes
    /// count, and leaves voting to those that do.
    pub(super) fn on_strange_configuration(&mut self, slot: Slot) {
        self.remembers = false;
        self.repair = None;
        self.notice(Notice::StrangeConfiguration(slot));
        self.mark_rows_due();
    }

    /// Who decides, as a known mistake has it; none in a product.
    pub(super) fn miscounted(&self) -> Option<Configurations> {
        let open = self.commit_slot.next();
        if self.settings.is(Mutant::SwitchTooLate) {
            let settled = self.configurations.latest().settled;
            return (!settled).then(|| Configurations::new(self.configurations.at(open).clone()));
        }
        if self.settings.is(Mutant::SwitchTooEarly) {
            return Some(Configurations::new(self.configurations.latest().clone()));
        }
        if self.settings.is(Mutant::WitnessIsACopy) {
            let any = |known: &Configuration| Configuration { copies: 0, ..known.clone() };
            let mut all = Configurations::new(any(self.configurations.at(open)));
            for (slot, configuration) in self.configurations.iter() {
                if slot > self.commit_slot {
                    all.note(slot, Some(any(configuration)));
                }
            }
            return Some(all);
        }
        let (learners, removed) =
            (self.settings.is(Mutant::LearnersVote), self.settings.is(Mutant::RemovedVote));
        if !learners && !removed {
            return None;
        }
        let counted = |configuration: &Configuration| {
            let mut counted = configuration.clone();
            let (one, two) = (counted.election_quorum() as u16, counted.quorum() as u16);
            counted.quorums = Some(QuorumSizes { phase_one: one, phase_two: two });
            let others: Vec<NodeId> = match learners {
                true => counted.learners.iter().map(|member| member.node).collect(),
                false => self.peers.iter().map(|peer| peer.node).collect(),
            };
            for node in others {
                if counted.voters.iter().all(|member| member.node != node) {
                    counted.voters.push(Member { node, ..Member::default() });
                }
            }
            counted
        };
        let mut all = Configurations::new(counted(self.configurations.at(open)));
        for (slot, configuration) in self.configurations.iter() {
            if slot > self.commit_slot {
                all.note(slot, Some(counted(configuration)));
            }
        }
        Some(all)
    }

    /// The commit slot moved: configurations below it are certain.
    pub(super) fn on_commit_moved(&mut self) {
        let standing = self.configurations.at(self.commit_slot.next());
        let news = (standing.id, standing.settled);
        if self.announced != news {
            self.announced = news;
            let (id, settled) = news;
            self.notice(Notice::Configured { id, settled });
            self.refresh_members();
            self.lease_of_new_members();
            self.mark_rows_due();
        }
    }

    /// Everyone that a configuration names which still matters is a peer; who is not is one until it
    /// knows, or for a while (rule C8).
    pub(super) fn refresh_members(&mut self) {
        let me = self.settings.node;
        let known = self.configurations.deciding(self.commit_slot.next());
        let found = match &self.role {
            Role::Adopting(Adopting { found, .. }) => found.as_slice(),
            _ => &[],
        };
        let mut wanted: Vec<NodeId> = known
            .chain(found)
            .flat_map(Configuration::members)
            .map(|member| member.node)
            .filter(|node| *node != me)
            .collect();
        // A member that was away while others were replaced may know none of those that are there now, and
        // one with a new disk knows the founders: until it follows somebody whom its configuration names,
        // it looks for those whom it was told of, too.
        let alone = !self.met_leader && !self.settings.is(Mutant::ForgetContacts);
        if alone || !self.configurations.latest().names(me) {
            wanted.extend(self.settings.contacts.iter().filter(|node| **node != me));
        }
        wanted.sort_unstable();
        wanted.dedup();
        for node in &wanted {
            if let Err(place) = self.peers.binary_search_by_key(node, |peer| peer.node) {
                self.peers.insert(place, Peer::new(*node));
                self.members_version += 1;
                if let Role::Leader(leader) = &mut self.role {
                    leader.progress.push(Progress::unknown(*node));
                }
            }
        }
        let timeouts = self.settings.election_timeout_max.0 * LEAVING_TIMEOUTS;
        let patience = self.now + crate::Nanos(timeouts);
        for peer in &mut self.peers {
            peer.leaves_at = match wanted.binary_search(&peer.node) {
                Ok(_) => None,
                Err(_) => peer.leaves_at.or(Some(patience)),
            };
        }
    }

    /// `leader` is followed. If a configuration names it, whom this replica was told of at its start
    /// matters no more.
    pub(super) fn meet_leader(&mut self, leader: NodeId) {
        if !self.met_leader && self.configurations.latest().names(leader) {
            self.met_leader = true;
            self.refresh_members();
        }
    }

    /// Lets go of those that were removed and know it, or had their time.
    pub(super) fn dismiss_leavers(&mut self) {
        let now = self.now;
        let settled =
            self.configurations.latest().settled.then(|| self.configurations.latest_slot());
        let settled = settled.filter(|slot| *slot <= self.commit_slot);
        let knows = |peer: &Peer| settled.is_some_and(|slot| peer.row.commit_slot >= slot);
        // By what this replica does not know yet, who knows more may be a member again, and perhaps nobody
        // else can tell it: one that catches up may pass a configuration that names only itself.
        let may_tell = |peer: &Peer| peer.row.commit_slot > self.commit_slot;
        let gone = |peer: &Peer| {
            peer.leaves_at.is_some_and(|at| !may_tell(peer) && (now >= at || knows(peer)))
        };
        let leavers: Vec<NodeId> =
            self.peers.iter().filter(|peer| gone(peer)).map(|peer| peer.node).collect();
        for node in leavers {
            self.peers.retain(|peer| peer.node != node);
            self.members_version += 1;
            self.forget_reads_of(node);
            self.give_up_catch_up_from(node);
            if let Role::Leader(leader) = &mut self.role {
                leader.progress.retain(|progress| progress.node != node);
            }
            if self.leader.is_some_and(|ballot| ballot.node == node) {
                self.leader_lost();
            }
        }
    }

    /// The configurations that decide from the open slots on if `plan` is adopted; none if one of
    /// them cannot be read. All values of the plan are held.
    pub(super) fn found_configurations(
        &self,
        chosen_through: Slot,
        plan: &[Adoption],
    ) -> Option<Configurations> {
        let mut known = self.configurations.as_of(self.commit_slot);
        for (slot, adoption) in (chosen_through.next().0..).map(Slot).zip(plan) {
            if let Adoption::Held { value, .. } = adoption
                && value.kind == ValueKind::Configuration
                && slot > self.commit_slot
            {
                let named = Configuration::decode(&value.bytes)?;
                known.note(
                    slot,
                    (named.protocol <= self.settings.protocol).then_some(named)?.into(),
                );
            }
        }
        Some(known)
    }

    /// Proposes another set of members (rules C4, C5). Commits go on meanwhile. The change is done when
    /// [`Notice::Configured`] says that its configuration is settled: from then on the members that are
    /// gone are needed by nobody.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing happened.
    pub fn propose_configuration(&mut self, change: &Change) -> Result<Slot, Refusal> {
        let Role::Leader(leader) = &self.role else { return Err(Refusal::NotLeading) };
        let latest = self.configurations.latest();
        if self.commit_slot < leader.barrier {
            return Err(Refusal::TooSoon);
        }
        if (!latest.settled || self.configurations.latest_slot() > self.commit_slot)
            && !self.settings.is(Mutant::ChangeUnsettled)
        {
            return Err(Refusal::UnderWay { id: latest.id });
        }
        let next = self.changed(latest, change);
        next.check().map_err(Refusal::Unsound)?;
        if (next.decides_like(latest), &next.learners, &next.addresses)
            == (true, &latest.learners, &latest.addresses)
        {
            return Err(Refusal::NothingToDo);
        }
        if !next.decides_like(latest) && !self.settings.is(Mutant::PromoteUnready) {
            self.check_ready(leader, latest, &next)?;
        }
        requires!(
            checked,
            C4,
            latest.settled && self.configurations.latest_slot() <= self.commit_slot,
            "a change begins when the one before is settled and chosen"
        );
        requires!(checked, C9, next.check().is_ok(), "quorums of a proposed configuration meet");
        let slot = self.append(next.to_value());
        self.acceptor.mark();
        self.advance_commit();
        if self.settings.is(Mutant::SettleTooSoon) {
            self.settle();
        }
        Ok(slot)
    }

    /// What `change` makes of `latest`.
    fn changed(&self, latest: &Configuration, change: &Change) -> Configuration {
        let incarnation = |node: NodeId| {
            let mut named = latest.electors().filter(|_| !change.readmit.contains(&node));
            if let Some(member) = named.find(|member| member.node == node) {
                return member.incarnation;
            }
            if node == self.settings.node {
                return self.settings.incarnation;
            }
            let index = self.peer_index(node);
            index.map_or(Incarnation(0), |index| self.peers[index].row.incarnation)
        };
        let members = |nodes: &[NodeId]| {
            let member = |node: &NodeId| Member { node: *node, incarnation: incarnation(*node) };
            let mut members: Vec<Member> = nodes.iter().map(member).collect();
            members.sort_unstable();
            members
        };
        let mut next = Configuration {
            id: latest.id + 1,
            quorums: change.quorums,
            protocol: latest.protocol,
            addresses: change.addresses.clone(),
            learners: members(&change.learners),
            ..Configuration::of_voters(0, Vec::new())
        };
        next.voters = members(&change.voters);
        next.witnesses = members(&change.witnesses);
        if !next.witnesses.is_empty() {
            let voters = u16::try_from(next.voters.len()).unwrap_or(u16::MAX);
            let before = Some(latest.copies).filter(|copies| *copies > 0);
            next.copies = change.copies.unwrap_or(before.unwrap_or(COPIES).min(voters));
            next.protocol = next.protocol.max(crate::PROTOCOL_WITNESSES);
        }
        // Of a learner nothing is counted, so that no change follows from what its disk is.
        for learner in &mut next.learners {
            learner.incarnation = Incarnation(0);
        }
        for address in &latest.addresses {
            if next.address(address.node).is_none() {
                next.addresses.push(address.clone());
            }
        }
        let named: Vec<NodeId> = next.members().map(|member| member.node).collect();
        next.addresses.retain(|address| named.contains(&address.node));
        next.addresses.sort_unstable();
        next.settled = next.decides_like(latest);
        next
    }

    /// Rule C5.
    fn check_ready(
        &self,
        leader: &Leader,
        latest: &Configuration,
        next: &Configuration,
    ) -> Result<(), Refusal> {
        let within = self.settings.election_timeout_min;
        let behind = |node: NodeId| {
            let matched = leader.progress(node).map_or(Slot::ZERO, |progress| progress.matched);
            self.commit_slot.0.saturating_sub(matched.0)
        };
        let lives = |member: Member| {
            let hears = |peer: &Peer| self.hears(peer, within);
            self.is_me(member) || self.present(member).is_some_and(hears)
        };
        let is_ready = |member: Member| {
            self.is_me(member) || lives(member) && behind(member.node) <= CAUGHT_UP_SLOTS
        };
        self.check_kinds(latest, next)?;
        for member in next.electors() {
            if latest.electors().any(|before| before == member) {
                continue;
            }
            let (speaks, active) = (self.spoken_by(member.node), next.protocol);
            let heard = self.peer_index(member.node).map(|index| self.peers[index].heard_at);
            if heard.flatten().is_some() && speaks < active {
                return Err(Refusal::TooOld { node: member.node, speaks, active });
            }
            if member.incarnation == Incarnation(0) || !lives(member) {
                return Err(Refusal::NotReady { node: member.node });
            }
            if !is_ready(member) {
                let behind = behind(member.node);
                return Err(Refusal::NotCaughtUp { node: member.node, behind });
            }
        }
        let ready = next.electors().filter(|member| is_ready(*member)).count();
        let needed = next.quorum().max(next.election_quorum());
        if ready < needed {
            return Err(Refusal::NoQuorum { ready, needed });
        }
        // Rule W1: what is written needs its copies too.
        let ready = next.voters.iter().filter(|member| is_ready(**member)).count();
        let needed = usize::from(next.copies);
        if ready < needed {
            return Err(Refusal::NoQuorum { ready, needed });
        }
        Ok(())
    }

    /// Rule C7: the switch to the newest configuration is chosen, so say it in the log.
    pub(super) fn settle(&mut self) {
        let latest = self.configurations.latest();
        let chosen = self.configurations.latest_slot() <= self.commit_slot
            || self.settings.is(Mutant::SettleTooSoon);
        if latest.settled || !chosen {
            return;
        }
        requires!(
            checked,
            C7,
            self.configurations.latest_slot() <= self.commit_slot,
            "a switch is settled when it is chosen"
        );
        let settled = Configuration { settled: true, ..latest.clone() };
        self.append(settled.to_value());
        self.acceptor.mark();
    }

    /// Rule C8: a leader that removed itself leads until its removal is settled, and hands over.
    pub(super) fn step_down_if_removed(&mut self) {
        let latest = self.configurations.latest();
        let Member { node, incarnation } = self.me();
        if latest.settled
            && self.configurations.latest_slot() <= self.commit_slot
            && !latest.votes(node, incarnation)
            && self.role.leader().is_some_and(|leader| leader.transfer.is_none())
            && self.begin_transfer(None, true).is_err()
        {
            self.step_down("it is no voter any more");
        }
    }

    /// The peers that this replica should have links to, in order of their numbers. It changes with
    /// [`Paxos::members_version`].
    pub fn peer_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.iter().map(|peer| peer.node)
    }

    /// Grows when [`Paxos::peer_nodes`] changes, or what is known of addresses.
    #[must_use]
    pub fn members_version(&self) -> u64 {
        self.members_version
    }

    /// Where `node` is reached, as the newest configuration that names it says.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<&Address> {
        let found = match &self.role {
            Role::Adopting(Adopting { found, .. }) => found.as_slice(),
            _ => &[],
        };
        let known = self.configurations.iter().map(|(_, configuration)| configuration);
        let mut newest_first = found.iter().rev().chain(known.rev());
        newest_first.find_map(|configuration| configuration.address(node))
    }

    /// Whether this replica was a member and is none any more, as far as it knows.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        let mut deciding = self.configurations.deciding(self.commit_slot.next());
        let standing = self.configurations.at(self.commit_slot.next());
        let named = deciding.any(|configuration| configuration.names(self.settings.node));
        standing.id > 1 && standing.settled && !named
    }

    /// Whether this replica knows its removal to be settled, and a candidate that knows the slots up to
    /// `commit_slot` does not: nobody needs its vote any more, and the candidate should learn why (rule
    /// C8). One that knows as much may know of a later configuration, which needs it again.
    pub(super) fn knows_better(&self, commit_slot: Slot) -> bool {
        let known = self.configurations.as_of(self.commit_slot);
        self.is_removed() && commit_slot < known.latest_slot()
    }
}

/// Rule C7, at a restart: the highest slot that `entries` themselves say to be chosen. Whoever accepted
/// a settled configuration under some ballot had accepted all before it under that ballot or knew it to
/// be chosen, so what stands in the slot of the switch is what was chosen there.
pub(super) fn settled_by<'a>(entries: impl Iterator<Item = (Slot, &'a Value)>) -> Slot {
    let mut switch: Option<(Slot, Configuration)> = None;
    let mut settled = Slot::ZERO;
    for (slot, value) in entries.filter(|(_, value)| value.kind == ValueKind::Configuration) {
        let Some(configuration) = Configuration::decode(&value.bytes) else { continue };
        if let Some((at, before)) = &switch
            && configuration.settled
            && (Configuration { settled: true, ..before.clone() }) == configuration
        {
            settled = *at;
        }
        switch = (!configuration.settled).then_some((slot, configuration));
    }
    settled
}
