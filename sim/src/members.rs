//! Who decides what, as the checks know it: from the configurations that are chosen, and from what each
//! voter promised and accepted. A voter is a number and the life of its disk.

use crate::checks::Subject;
use quorate_consensus::{Ballot, Configuration, Incarnation, Member, Paxos, Slot};
use std::collections::BTreeMap;

/// What is known of members, for ever.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// The configurations that are chosen, by the slot that each stands in; in slot 0 the first one.
    chosen: BTreeMap<u64, Configuration>,
    /// For each ballot, how far each voter's durable vote went.
    voted: BTreeMap<Ballot, Vec<(Member, u64)>>,
    /// The highest promise of each.
    promised: Vec<(Member, Ballot)>,
}

impl Members {
    /// A durable vote.
    pub(crate) fn note_vote(&mut self, member: Member, (ballot, slot): (Ballot, Slot)) {
        let reached = self.voted.entry(ballot).or_default();
        match reached.iter_mut().find(|(voter, _)| *voter == member) {
            Some((_, reached)) => *reached = (*reached).max(slot.0),
            None => reached.push((member, slot.0)),
        }
    }

    /// A promise.
    pub(crate) fn note_promise(&mut self, member: Member, ballot: Ballot) {
        match self.promised.iter_mut().find(|(promiser, _)| *promiser == member) {
            Some((_, promised)) => *promised = (*promised).max(ballot),
            None => self.promised.push((member, ballot)),
        }
    }

    /// The configuration that decides `slot`, as far as it is chosen.
    #[must_use]
    pub(crate) fn deciding(&self, slot: Slot) -> Option<&Configuration> {
        self.chosen.range(..slot.0).next_back().map(|(_, configuration)| configuration)
    }

    /// Whether it is known to be chosen in `slot`.
    #[must_use]
    pub(crate) fn is_chosen(&self, slot: Slot, configuration: &Configuration) -> bool {
        self.chosen.get(&slot.0) == Some(configuration)
    }

    /// The newest chosen one, and where it stands.
    #[must_use]
    pub(crate) fn newest(&self) -> Option<(u64, &Configuration)> {
        self.chosen.last_key_value().map(|(slot, configuration)| (*slot, configuration))
    }

    /// The newest chosen one that is settled, and where it stands: what came before is over.
    #[must_use]
    pub(crate) fn settled(&self) -> Option<(u64, &Configuration)> {
        let mut newest_first = self.chosen.iter().rev();
        let settled = newest_first.find(|(_, configuration)| configuration.settled)?;
        Some((*settled.0, settled.1))
    }

    /// Those that are chosen behind `slot`.
    pub(crate) fn chosen_behind(&self, slot: u64) -> impl Iterator<Item = &Configuration> + '_ {
        self.chosen.range(slot + 1..).map(|(_, configuration)| configuration)
    }

    fn insert(&mut self, slot: u64, configuration: &Configuration) -> Result<(), String> {
        match self.chosen.get(&slot) {
            None => {
                let nobody =
                    configuration.electors().find(|member| member.incarnation == Incarnation(0));
                if let Some(member) = nobody {
                    return Err(format!("members: {} votes without a disk", member.node));
                }
                self.chosen.insert(slot, configuration.clone());
            }
            Some(known) if known == configuration => {}
            Some(known) => {
                return Err(format!(
                    "I1: two configurations in slot {slot}: {}, {}",
                    brief(configuration),
                    brief(known)
                ));
            }
        }
        Ok(())
    }

    /// What a replica knows of configurations in chosen slots.
    ///
    /// # Errors
    /// It contradicts what is known.
    pub(crate) fn learned(&mut self, core: &Paxos) -> Result<(), String> {
        let commit = core.commit_slot();
        let known = core.configurations().iter().take_while(|(slot, _)| *slot <= commit);
        for (slot, configuration) in known {
            self.insert(slot.0, configuration)?;
        }
        Ok(())
    }

    /// Whether the voters of `configuration` chose `slot` under some ballot.
    fn have_chosen(&self, configuration: &Configuration, slot: Slot) -> bool {
        self.voted.values().rev().any(|reached| {
            let has = |member| reached.iter().any(|vote| vote.0 == member && vote.1 >= slot.0);
            let copies = configuration.voters.iter().filter(|member| has(**member)).count();
            // Counted here once more, and not by the product.
            configuration.electors().filter(|member| has(*member)).count() >= configuration.quorum()
                && copies >= configuration.copies.into()
        })
    }

    /// I5: a replica says that all up to its commit slot is chosen, which nobody said of what lies
    /// above `before`. Each slot must have a quorum of the configuration that decides it.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn committed(&mut self, core: &Paxos, before: Slot) -> Result<(), String> {
        self.learned_below(core, before)?;
        let commit = core.commit_slot();
        let Some(standing) = self.deciding(before.next()) else {
            return Err("I5: something is committed by nobody".into());
        };
        let mut standing = standing.clone();
        let fails = |slot: Slot, by: &Configuration| {
            Err(format!(
                "I5: slot {slot} is committed without a quorum of durable votes of {}",
                brief(by)
            ))
        };
        let news = core.configurations().iter().filter(|(slot, _)| *slot > before);
        let news: Vec<_> = news.take_while(|(slot, _)| *slot <= commit).collect();
        for (slot, next) in news {
            // The switch before it was committed by one that died in that turn, and is forgotten here.
            let unseen = next.id > standing.id + 1
                || next.id > standing.id && next.settled && !next.decides_like(&standing);
            let chosen = self.have_chosen(&standing, slot);
            if !(chosen || unseen && self.have_chosen(next, slot)) {
                return fails(slot, &standing);
            }
            self.insert(slot.0, next)?;
            standing = next.clone();
        }
        if self.newest().is_none_or(|(slot, _)| slot < commit.0)
            && !self.have_chosen(&standing, commit)
        {
            return fails(commit, &standing);
        }
        Ok(())
    }

    fn learned_below(&mut self, core: &Paxos, slot: Slot) -> Result<(), String> {
        for (at, configuration) in core.configurations().iter().take_while(|(at, _)| *at <= slot) {
            self.insert(at.0, configuration)?;
        }
        Ok(())
    }

    /// A replica leads under a new ballot: a quorum of each configuration that may decide what it
    /// proposes must have promised it (rule C3), and one of those that decide what it did not know to be
    /// chosen before this turn must name it as a voter (rule C8).
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn elected(&self, subject: &Subject<'_>, before: Slot) -> Result<(), String> {
        let core = subject.core;
        let (ballot, commit) = (core.ballot(), core.commit_slot());
        let open = core.configurations().iter().filter(|(slot, _)| *slot > commit);
        let open = open.map(|(_, configuration)| configuration);
        let deciding: Vec<_> = self.deciding(commit.next()).into_iter().chain(open).collect();
        let has_promised = |member: &Member| {
            self.promised.iter().any(|(voter, promised)| voter == member && *promised >= ballot)
        };
        for configuration in &deciding {
            let promises = configuration.electors().filter(has_promised).count();
            if promises < configuration.election_quorum() {
                return Err(format!(
                    "elected: {ballot} leads with {promises} promises of {}",
                    brief(configuration)
                ));
            }
        }
        let is_named =
            |by: &Configuration| by.votes(subject.member.node, subject.member.incarnation);
        let found = self.chosen.range(before.0..=commit.0).map(|(_, configuration)| configuration);
        let found = self.deciding(before.next()).into_iter().chain(found);
        if !found.chain(deciding).any(is_named) {
            return Err(format!("elected: {ballot} leads, and its owner is no voter"));
        }
        Ok(())
    }
}

/// A configuration in a few words: its number, `!` if it is settled, voters and learners.
fn brief(configuration: &Configuration) -> String {
    let list = |members: &[Member]| {
        let numbers: Vec<String> = members.iter().map(|member| member.node.0.to_string()).collect();
        numbers.join(" ")
    };
    let Configuration { id, settled, voters, learners, witnesses, copies, quorums, .. } =
        configuration;
    let settled = if *settled { "!" } else { "" };
    let sizes = quorums.map(|sizes| format!(", {}/{}", sizes.phase_one, sizes.phase_two));
    let sizes = sizes.unwrap_or_default();
    let witnesses = match witnesses.is_empty() {
        true => String::new(),
        false => format!(" *{} copies {copies}", list(witnesses)),
    };
    format!("#{id}{settled} {{{}+{}{witnesses}{sizes}}}", list(voters), list(learners))
}
