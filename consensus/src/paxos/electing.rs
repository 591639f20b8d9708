//! Elections: timers, pre-votes, phase 1, and the adoption of what may have been chosen.
//!
//! Three rules together give a leader whenever some replica is connected to a quorum (the
//! quorum-loss, constrained and chained cases of Omni-Paxos, EuroSys'23, section 2):
//! * *check-quorum*: a leader that does not hear from a quorum steps down, and its rows say so;
//! * *pre-vote*: nobody is asked to promise anything before a quorum says that it would, and who
//!   hears a leader says no: a returning replica deposes nobody;
//! * *phase 1 adopts*: a candidate needs no complete log to win, it fetches what it lacks.

use super::passive::Held;
use super::{Notice, Paxos};
use crate::buggify::Point;
use crate::role::{Adopting, Adoption, Candidate, PreCandidate, PromiseHeld, Role};
use crate::{Ballot, Configuration, Entry, Member, Message, Mutant, Nanos, NodeId, Slot, requires};
use alloc::vec::Vec;

/// A pre-vote is refused to a candidate this many slots behind a voter that could lead itself:
/// the better candidate's timer will fire too. It is no safety rule.
const BEHIND_SLOTS: u64 = 4096;

impl Paxos {
    /// Draws a new wait: nothing was heard of a leader before it ends, then an election is tried.
    pub(super) fn rest_election_timer(&mut self) {
        let Self { settings, chance, .. } = self;
        let wait = chance.between(settings.election_timeout_min, settings.election_timeout_max);
        let early = settings.whims.has(Point::EarlyElection);
        self.election_at = self.now + if early { Nanos(wait.0 / 8) } else { wait };
    }

    pub(super) fn on_election_timer(&mut self) {
        self.rest_election_timer();
        if matches!(self.role, Role::Leader(_)) || self.own_promise_waits() {
            return;
        }
        if self.leader.take().is_some() {
            self.notice(Notice::Leaderless);
        }
        self.role = Role::Follower;
        if !self.votes() || !self.may_stand() || !self.knows_members() {
            return;
        }
        if self.lease_binds(self.next_ballot(), Ballot::ZERO) {
            // Its own promise is one of those that have to wait.
            let soon = self.chance.between(Nanos(0), self.settings.heartbeat_interval);
            let end = self.lease_binds_until() + soon;
            if end > self.now {
                self.election_at = self.election_at.min(end);
            }
            return;
        }
        self.begin_pre_vote();
    }

    /// Above all that this replica has seen.
    pub(super) fn next_ballot(&self) -> Ballot {
        let again = u64::from(self.settings.is(Mutant::ReuseRound));
        let round = self.round_seen.max(self.acceptor.promised().round) + 1 - again;
        Ballot { round, node: self.settings.node }
    }

    /// Whether this candidate's own promise is not durable yet. Another ballot would wait no shorter,
    /// and a disk that hangs must not collect candidacies.
    fn own_promise_waits(&self) -> bool {
        let me = self.settings.node;
        matches!(&self.role, Role::Candidate(candidate)
            if candidate.promises.iter().all(|promise| promise.member.node != me))
    }

    fn begin_pre_vote(&mut self) {
        let ballot = self.next_ballot();
        // Each attempt has a ballot of its own: an answer to an earlier one, held up on its way, may say
        // yes to a leader that was dead then and is not now.
        self.round_seen = ballot.round;
        let commit_slot = self.commit_slot;
        let granted = alloc::vec![(self.me(), self.acceptor.promised())];
        self.role = Role::PreCandidate(PreCandidate { ballot, granted });
        for node in self.other_electors() {
            self.send(node, Message::PreVote { ballot, commit_slot });
        }
        self.count_pre_votes();
    }

    pub(super) fn on_pre_vote(&mut self, from: NodeId, ballot: Ballot, commit_slot: Slot) {
        let promised = self.acceptor.promised();
        let far_behind = commit_slot.0 + BEHIND_SLOTS < self.commit_slot.0
            && self.may_stand()
            && self.quorum_connected()
            && !matches!(self.role, Role::Leader(_));
        // Who knows that its removal is settled knows that nobody needs it any more (rule C8).
        let needed = self.word_counts() && !self.knows_better(commit_slot);
        let bound = self.lease_binds(ballot, Ballot::ZERO);
        let granted =
            needed && ballot > promised && !self.leader_is_alive() && !far_behind && !bound;
        let incarnation = self.me().incarnation;
        self.send(from, Message::PreVoteReply { ballot, granted, promised, incarnation });
    }

    /// Whether this replica has reason to believe that the cluster has a working leader.
    fn leader_is_alive(&self) -> bool {
        if let Role::Leader(_) = self.role {
            return self.quorum_connected();
        }
        let heard = self.leader_heard_at;
        heard.is_some_and(|at| self.now.since(at) < self.settings.election_timeout_min)
    }

    pub(super) fn on_pre_vote_reply(
        &mut self,
        from: Member,
        ballot: Ballot,
        granted: bool,
        promised: Ballot,
    ) {
        self.round_seen = self.round_seen.max(promised.round);
        // On the other lane it showed a promise that it made since.
        let outdated = self.peer_index(from.node);
        let outdated = outdated.is_some_and(|index| self.peers[index].row.promised > promised);
        let Role::PreCandidate(candidate) = &mut self.role else { return };
        let known = candidate.granted.iter().any(|(member, _)| *member == from);
        if candidate.ballot != ballot || !granted || known || outdated {
            return;
        }
        candidate.granted.push((from, promised));
        self.count_pre_votes();
    }

    /// A peer shows what it promised. What it granted before may be from before a leader that works:
    /// a candidate that waits for one more grant must not depose that leader with old ones.
    pub(super) fn outdate_pre_vote(&mut self, from: NodeId, promised: Ballot) {
        if let Role::PreCandidate(candidate) = &mut self.role {
            candidate.granted.retain(|(member, then)| member.node != from || promised <= *then);
        }
    }

    fn count_pre_votes(&mut self) {
        let Role::PreCandidate(candidate) = &self.role else { return };
        let from = self.commit_slot.next();
        let granted =
            |member: Member| candidate.granted.iter().any(|(granter, _)| *granter == member);
        if self.configurations.is_quorum_from(from, granted) {
            self.begin_phase_one(candidate.ballot, Ballot::ZERO);
        }
    }

    /// Phase 1a. The own promise becomes durable before any Prepare leaves: a ballot is never used
    /// by two lives of a replica.
    pub(super) fn begin_phase_one(&mut self, ballot: Ballot, released: Ballot) {
        requires!(
            always,
            P1,
            ballot.node == self.settings.node && ballot > self.acceptor.promised(),
            "a candidate stands under an own ballot, above all that it promised"
        );
        self.round_seen = self.round_seen.max(ballot.round);
        let Some(cleared) = self.clear_to_promise(|| Held::Stand { ballot, released }) else {
            return;
        };
        self.note_released(ballot, released);
        let from = self.commit_slot.next();
        let durable = self.acceptor.promise(ballot, cleared);
        self.role = Role::Candidate(Candidate { ballot, from, promises: Vec::new() });
        self.notice(Notice::Campaigning(ballot));
        self.mark_rows_due();
        for node in self.other_electors() {
            self.send_after(durable, node, Message::Prepare { ballot, from, released });
        }
        self.on_own_promise_durable();
    }

    /// A candidate's own answer to its phase 1 counts once its promise is durable.
    pub(super) fn on_own_promise_durable(&mut self) {
        let node = self.settings.node;
        let Role::Candidate(candidate) = &self.role else { return };
        if candidate.promises.iter().any(|promise| promise.member.node == node)
            || self.acceptor.durable_through() < self.acceptor.emitted()
        {
            return;
        }
        requires!(
            checked,
            P1,
            candidate.ballot == self.acceptor.promised(),
            "a candidate's own promise is of the ballot that it stands under"
        );
        let (ballot, from) = (candidate.ballot, candidate.from);
        let runs = self.acceptor.window.runs(self.commit_slot.next());
        let (member, commit_slot) = (self.me(), self.commit_slot);
        self.on_promise(PromiseHeld { member, commit_slot, runs }, ballot, from);
    }

    /// Phase 1b at the acceptor.
    pub(super) fn on_prepare(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        first: Slot,
        released: Ballot,
    ) {
        self.round_seen = self.round_seen.max(ballot.round);
        // Whoever remembers answers: it may be a member by a configuration that only the candidate
        // knows yet, or one that it knows to be over and the candidate does not.
        if ballot.node != from || !self.word_counts() {
            return;
        }
        let promised = self.acceptor.promised();
        if ballot < promised {
            self.send(from, Message::Nack { ballot, promised });
            return;
        }
        if ballot > promised {
            if self.lease_binds(ballot, released) {
                return;
            }
            let held = || Held::Prepare { from, ballot, first, released };
            let Some(cleared) = self.clear_to_promise(held) else { return };
            if !self.settings.is(Mutant::PromiseNotKept) {
                self.acceptor.promise(ballot, cleared);
            }
            self.abandon_role("a higher ballot was promised");
            self.leader_lost();
            self.mark_rows_due();
            self.rest_election_timer();
        }
        requires!(
            checked,
            A7,
            self.acceptor.promised() == ballot,
            "what is answered to a Prepare is a promise of its ballot"
        );
        // A repeated Prepare gets the same answer again.
        let hides = self.settings.is(Mutant::PromiseHidesRuns);
        // Rule W3: a witness says under which ballot it accepted what it knows to be chosen, since the
        // candidate may hold it without knowing so.
        let open = if self.settings.witness { first } else { first.max(self.commit_slot.next()) };
        let from_slot = if hides { Slot(u64::MAX) } else { open };
        let runs = self.acceptor.window.runs(from_slot);
        let commit_slot = self.commit_slot;
        let incarnation = self.me().incarnation;
        let promise = Message::Promise { ballot, from: first, commit_slot, runs, incarnation };
        // A promise to the same proposer that still waits for the disk is superseded by this one.
        self.held.retain(|(_, to, held)| *to != from || !matches!(held, Message::Promise { .. }));
        let after = match self.settings.is(Mutant::PromiseBeforePersist) {
            true => self.acceptor.durable_through(),
            false => self.acceptor.emitted(),
        };
        self.send_after(after, from, promise);
    }

    /// Phase 1b at the candidate, or at one that has a quorum of the configuration that it knew and
    /// found another one among what it is to adopt (rule C3).
    pub(super) fn on_promise(&mut self, promise: PromiseHeld, ballot: Ballot, from: Slot) {
        let me = self.settings.node;
        let node = promise.member.node;
        let (ours, asked, promises) = match &mut self.role {
            Role::Candidate(candidate) => {
                (candidate.ballot, candidate.from, &mut candidate.promises)
            }
            Role::Adopting(adopting) => (adopting.ballot, adopting.from, &mut adopting.promises),
            _ => return,
        };
        let known = promises.iter().any(|promise| promise.member.node == node);
        if ours != ballot || asked != from || known {
            return;
        }
        promises.push(promise);
        let own = promises.iter().any(|promise| promise.member.node == me);
        let promised = |member| self.has_promised(member);
        // The configuration of the first open slot is certain; which ones follow is in the values.
        if own && self.configurations.at(from).is_election_quorum(promised) {
            self.begin_adoption();
        }
    }

    /// Whether `member` promised the ballot that this replica prepares.
    fn has_promised(&self, member: Member) -> bool {
        let promises = match &self.role {
            Role::Candidate(candidate) => &candidate.promises,
            Role::Adopting(adopting) => &adopting.promises,
            _ => return false,
        };
        // A mistake: whoever promised nothing counts in the place of the first other elector.
        let assumed = self.peers.first().map(|peer| peer.node);
        let assumed = assumed.filter(|_| self.settings.is(Mutant::ElectOnMinority));
        Some(member.node) == assumed || promises.iter().any(|promise| promise.member == member)
    }

    /// A quorum promised: find for each open slot the value accepted under the highest ballot.
    ///
    /// Why this is enough: a value chosen for a slot under a ballot b below ours was accepted by a
    /// quorum, which meets ours in some acceptor; that one accepted it before it promised to us,
    /// and reports it. Under all ballots between b and ours the same value was proposed, by the
    /// same argument; so the highest reported ballot carries it.
    fn begin_adoption(&mut self) {
        let me = self.settings.node;
        let (ballot, from, promises, found, held) =
            match core::mem::replace(&mut self.role, Role::Follower) {
                Role::Candidate(Candidate { ballot, from, promises }) => {
                    (ballot, from, promises, Vec::new(), None)
                }
                Role::Adopting(adopting) => {
                    let held = (adopting.chosen_through, adopting.plan);
                    let Adopting { ballot, from, promises, found, .. } = adopting;
                    (ballot, from, promises, found, Some(held))
                }
                role => {
                    self.role = role;
                    return;
                }
            };
        requires!(
            checked,
            P2,
            promises.iter().any(|promise| promise.member.node == me),
            "a candidate adopts with its own promise among those that it has"
        );
        let (chosen_through, chosen_source) = self
            .with_payloads(&promises, &found)
            .map(|promise| (promise.commit_slot, promise.member.node))
            // What was learned since the own promise counts too.
            .chain([(self.commit_slot, me)])
            .max_by_key(|&(slot, node)| (slot, node == me))
            .unwrap_or((self.commit_slot, me));
        let best = self.best_reported(self.with_payloads(&promises, &found), chosen_through);
        let heeds_witnesses = self.heeds_witnesses(&promises, &found);
        let awaits_copy =
            heeds_witnesses && self.awaits_copy(&promises, &found, chosen_through, &best);
        let fetched = |slot: Slot, accepted: Ballot| {
            // What was fetched before another promise came.
            let (through, plan) = held.as_ref()?;
            let index = slot.0.checked_sub(through.0 + 1)?;
            match plan.get(index as usize)? {
                Adoption::Held { ballot, value } if *ballot >= accepted => {
                    Some(Adoption::Held { ballot: *ballot, value: value.clone() })
                }
                _ => None,
            }
        };
        let plan = best.into_iter().enumerate().map(|(index, (accepted, holder))| {
            let slot = Slot(chosen_through.0 + 1 + index as u64);
            match self.acceptor.window.get(slot) {
                _ if accepted == Ballot::ZERO => Adoption::Hole,
                Some((held, value)) if *held == accepted => {
                    Adoption::Held { ballot: accepted, value: value.clone() }
                }
                _ => fetched(slot, accepted)
                    .unwrap_or(Adoption::Missing { ballot: accepted, holder }),
            }
        });
        let plan = match self.settings.is(Mutant::SkipAdoption) {
            true => Vec::new(),
            false => plan.collect(),
        };
        let adopting = Adopting {
            ballot,
            from,
            promises,
            found,
            chosen_through,
            chosen_source,
            plan,
            heeds_witnesses,
            awaits_copy,
        };
        if awaits_copy {
            self.notice(Notice::AwaitsCopy(ballot));
        }
        self.role = Role::Adopting(adopting);
        self.continue_adoption();
    }

    /// For each slot behind `chosen_through`: the highest ballot that is reported, and by whom.
    fn best_reported<'a>(
        &self,
        promises: impl Iterator<Item = &'a PromiseHeld>,
        chosen_through: Slot,
    ) -> Vec<(Ballot, NodeId)> {
        let me = self.settings.node;
        let mut best: Vec<(Ballot, NodeId)> = Vec::new();
        for promise in promises {
            for run in &promise.runs {
                let first = run.first.max(chosen_through.next());
                for slot in first.0..=run.last.0 {
                    let index = (slot - chosen_through.0 - 1) as usize;
                    if best.len() <= index {
                        best.resize(index + 1, (Ballot::ZERO, me));
                    }
                    // On a tie the own copy wins: the values are equal, and it needs no fetching.
                    let lowest =
                        self.settings.is(Mutant::AdoptLowestBallot) && best[index].0 > Ballot::ZERO;
                    let better = (run.ballot > best[index].0) != lowest
                        || (run.ballot == best[index].0 && promise.member.node == me);
                    if better {
                        best[index] = (run.ballot, promise.member.node);
                    }
                }
            }
        }
        best
    }

    /// Everything to adopt is held: whose slots are these, and did they promise (rule C3)? If not
    /// they are asked, and what they report is compared anew.
    fn ask_found_members(&mut self) -> bool {
        let me = self.settings.node;
        let Role::Adopting(adopting) = &self.role else { return false };
        let (ballot, from) = (adopting.ballot, adopting.from);
        let known = self.found_configurations(adopting.chosen_through, &adopting.plan);
        let Some(known) = known else {
            self.step_down("it found a configuration that it cannot read");
            return true;
        };
        let promised = |member| self.has_promised(member);
        if self.settings.is(Mutant::FoundMembersNotAsked) {
            return false;
        }
        if known.is_quorum_from(self.commit_slot.next(), promised) {
            if self.must_heed_witnesses(&known) {
                self.begin_adoption();
                return true;
            }
            return false;
        }
        let found: Vec<Configuration> = known.deciding(self.commit_slot.next()).cloned().collect();
        if found != adopting.found {
            let absent = |member: &Member| member.node != me && !promised(*member);
            let electors = found.iter().flat_map(Configuration::electors);
            let mut nodes: Vec<NodeId> =
                electors.filter(absent).map(|member| member.node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            if let Role::Adopting(adopting) = &mut self.role {
                adopting.found = found;
            }
            self.refresh_members();
            let released = self.released_for(ballot);
            for node in nodes {
                self.send(node, Message::Prepare { ballot, from, released });
            }
        }
        true
    }

    /// Rule C8: whether a configuration that decides a slot that is still open names this replica, now that
    /// it knows what is chosen and what it adopts. One that was away when it was removed learns of it
    /// here, and leaves it to the members to lead.
    fn would_lead_as_voter(&self) -> bool {
        let Role::Adopting(adopting) = &self.role else { return false };
        let Member { node, incarnation } = self.me();
        let known = self.found_configurations(adopting.chosen_through, &adopting.plan);
        known.is_some_and(|known| {
            let mut open = known.deciding(self.commit_slot.next());
            open.any(|configuration| configuration.votes(node, incarnation))
        })
    }

    /// The link to a member that was found works now: it is asked, or asked again.
    pub(super) fn ask_found_member(&mut self, peer: NodeId) {
        let Role::Adopting(adopting) = &self.role else { return };
        let promised = adopting.promises.iter().any(|promise| promise.member.node == peer);
        let is_peer = |member: Member| member.node == peer;
        let elects = |configuration: &Configuration| configuration.electors().any(is_peer);
        let (ballot, from) = (adopting.ballot, adopting.from);
        if !promised && adopting.found.iter().any(elects) {
            let released = self.released_for(ballot);
            self.send(peer, Message::Prepare { ballot, from, released });
        }
    }

    /// Asks for the next missing values, or leads when none is missing.
    pub(super) fn continue_adoption(&mut self) {
        let Role::Adopting(adopting) = &self.role else { return };
        if self.commit_slot < adopting.chosen_through {
            let (through, source) = (adopting.chosen_through, adopting.chosen_source);
            self.catch_up_from(source, through);
            return;
        }
        // What was learned to be chosen meanwhile needs no fetching any more.
        let known = (self.commit_slot.0 - adopting.chosen_through.0) as usize;
        let first = adopting.plan.iter().enumerate().position(|(index, adoption)| {
            index >= known && matches!(adoption, Adoption::Missing { .. })
        });
        let Some(index) = first else {
            if adopting.awaits_copy {
                // Rule W4 (b): another voter's promise, or what is learned to be chosen, changes that.
                if self.commit_slot > adopting.chosen_through {
                    self.begin_adoption();
                }
                return;
            }
            if self.ask_found_members() {
                return;
            }
            if !self.would_lead_as_voter() && !self.settings.is(Mutant::LeadAfterRemoval) {
                self.step_down("it learned that it is no voter any more");
                return;
            }
            let Role::Adopting(adopting) = core::mem::replace(&mut self.role, Role::Follower)
            else {
                return;
            };
            requires!(
                checked,
                W4,
                !adopting.awaits_copy
                    && (adopting.heeds_witnesses
                        || !self.heeds_witnesses(&adopting.promises, &adopting.found)),
                "what a witness alone knows of is proposed over only where too few copies can be"
            );
            requires!(
                checked,
                P5,
                adopting
                    .plan
                    .iter()
                    .skip(known)
                    .all(|adoption| !matches!(adoption, Adoption::Missing { .. })),
                "every value that may have been chosen is held before its leader leads"
            );
            requires!(
                checked,
                P5,
                adopting.plan.iter().enumerate().skip(known).all(|(index, adoption)| {
                    let slot = Slot(adopting.chosen_through.0 + 1 + index as u64);
                    // Of those that count (rule W4).
                    let voters = self.with_payloads(&adopting.promises, &adopting.found);
                    let heeded = |promise: &&PromiseHeld| {
                        adopting.heeds_witnesses
                            || voters.clone().any(|voter| voter.member == promise.member)
                    };
                    let promises = adopting.promises.iter().filter(heeded);
                    let runs = promises.flat_map(|promise| &promise.runs);
                    let told = runs.filter(|run| run.first <= slot && slot <= run.last);
                    let newest = told.map(|run| run.ballot).max().unwrap_or(Ballot::ZERO);
                    match adoption {
                        Adoption::Held { ballot, .. } => *ballot >= newest,
                        _ => newest == Ballot::ZERO,
                    }
                }),
                "a value is adopted that was accepted under the highest ballot that a promise tells of"
            );
            self.begin_leading(adopting);
            return;
        };
        let Adoption::Missing { holder, .. } = adopting.plan[index] else { return };
        let same_holder = |adoption: &&Adoption| matches!(adoption, Adoption::Missing { holder: other, .. } if *other == holder);
        let run = adopting.plan[index..].iter().take_while(same_holder).count() as u64;
        let first = Slot(adopting.chosen_through.0 + 1 + index as u64);
        let last = Slot(first.0 + run - 1);
        let ballot = adopting.ballot;
        self.send(holder, Message::Fetch { ballot, first, last });
    }

    /// A candidate asks for values that it must adopt.
    pub(super) fn on_fetch(&mut self, from: NodeId, ballot: Ballot, first: Slot, last: Slot) {
        if ballot != self.acceptor.promised() || first < self.acceptor.window.first() {
            return;
        }
        if self.settings.witness && !self.settings.is(Mutant::WitnessGives) {
            // Rule W2. Nobody asks it who knows what it is.
            return;
        }
        let short = self.settings.whims.has(Point::ShortValues);
        let bytes_max = if short { 1 } else { self.settings.catch_up_bytes as usize };
        let entries = self.acceptor.window.entries(first, last, bytes_max);
        self.send(from, Message::Values { ballot, entries });
    }

    pub(super) fn on_values(&mut self, ballot: Ballot, entries: Vec<Entry>) {
        let any = self.settings.is(Mutant::AdoptAnyBallot);
        if entries.iter().any(|entry| self.lacks_payloads(core::slice::from_ref(&entry.value))) {
            return;
        }
        let Role::Adopting(adopting) = &mut self.role else { return };
        if adopting.ballot != ballot {
            return;
        }
        let mut adopted = false;
        for Entry { slot, ballot: accepted, value } in entries {
            let Some(index) = slot.0.checked_sub(adopting.chosen_through.0 + 1) else { continue };
            let Some(adoption) = adopting.plan.get_mut(index as usize) else { continue };
            // A record of a higher ballot than was reported: the holder promised ours since, so it can
            // only have learned that the slot is chosen, and what.
            if matches!(adoption, Adoption::Missing { ballot, .. } if any || accepted >= *ballot) {
                *adoption = Adoption::Held { ballot: accepted, value };
                adopted = true;
            }
        }
        // Only progress asks for more at once and starts the wait anew: an answer that does not help
        // would not help again.
        if adopted {
            self.rest_election_timer();
            self.continue_adoption();
        }
    }

    pub(super) fn on_nack(&mut self, ballot: Ballot, promised: Ballot) {
        self.round_seen = self.round_seen.max(promised.round);
        let ours = match &self.role {
            Role::Candidate(candidate) => candidate.ballot,
            Role::Adopting(adopting) => adopting.ballot,
            Role::Leader(leader) => leader.ballot,
            _ => return,
        };
        if ours == ballot && promised > ballot {
            self.step_down("a voter promised a higher ballot");
        }
    }

    /// Leaves whatever role it had; the election timer decides what comes next.
    pub(super) fn step_down(&mut self, why: &'static str) {
        self.abandon_role(why);
        self.leader_lost();
        self.mark_rows_due();
        self.rest_election_timer();
    }

    pub(super) fn abandon_role(&mut self, why: &'static str) {
        if let Role::Leader(leader) = &self.role {
            let ballot = leader.ballot;
            self.notice(Notice::SteppedDown(ballot, why));
        }
        if matches!(self.role, Role::Candidate(_)) {
            // Prepares of the abandoned ballot that still wait for the disk need not go out.
            self.held.retain(|(_, _, message)| !matches!(message, Message::Prepare { .. }));
        }
        self.role = Role::Follower;
        self.drop_leader_reads();
    }

    pub(super) fn leader_lost(&mut self) {
        // Who has no leader does not rest: it would never stand for election.
        self.end_quiet();
        if self.leader.take().is_some() {
            self.notice(Notice::Leaderless);
        }
        self.leader_heard_at = None;
    }

    /// The owner of `ballot` leads, and was heard just now.
    pub(super) fn follow(&mut self, ballot: Ballot) {
        self.round_seen = self.round_seen.max(ballot.round);
        if !matches!(self.role, Role::Follower) {
            self.abandon_role("another replica leads");
        }
        if self.leader != Some(ballot) {
            self.leader = Some(ballot);
            self.notice(Notice::Following(ballot));
            self.on_new_leader_for_reads();
        }
        self.leader_heard_at = Some(self.now);
        self.rest_election_timer();
        self.meet_leader(ballot.node);
    }

    /// Whether this replica hears from a quorum, itself included: one that no other leader's misses if it
    /// leads, one that elects leaders if not.
    pub(super) fn quorum_connected(&self) -> bool {
        self.quorum_heard(self.settings.election_timeout_min)
    }

    /// Whether such a quorum showed a sign of life within `within`.
    pub(super) fn quorum_heard(&self, within: Nanos) -> bool {
        let from = self.commit_slot.next();
        let hears = |member| {
            let peer = || self.present(member);
            self.is_me(member) || peer().is_some_and(|peer| self.hears(peer, within))
        };
        match &self.role {
            Role::Leader(_) => self.configurations.is_commit_quorum_from(from, hears),
            _ => self.configurations.is_quorum_from(from, hears),
        }
    }

    /// A leader that has not heard from a quorum for an election time-out steps down.
    pub(super) fn check_quorum(&mut self) {
        let Role::Leader(_) = self.role else { return };
        let grace = self.now.since(self.leader_heard_at.unwrap_or(self.started_at));
        if grace >= self.settings.election_timeout_min && !self.quorum_connected() {
            self.step_down("it did not hear from a quorum for an election time-out");
        }
    }

    pub(super) fn other_electors(&self) -> Vec<NodeId> {
        let me = self.settings.node;
        let deciding = self.configurations.deciding(self.commit_slot.next());
        let mut nodes: Vec<NodeId> = deciding
            .flat_map(Configuration::electors)
            .map(|member| member.node)
            .filter(|node| *node != me)
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// When a restarted election would come at the latest; for tests and the simulator's liveness.
    #[must_use]
    pub fn election_timeout_max(&self) -> Nanos {
        self.settings.election_timeout_max
    }
}
