//! Witnesses: replicas that vote and keep no payloads (rules W1 to W7).
//!
//! The argument is in `docs/decisions/0022-what-a-witness-may-decide.md`. A replica is a witness by its
//! settings, from its first start on; a configuration has to name it as what it is.

use super::{Paxos, Refusal, Shipment};
use crate::role::{Adopting, Progress, PromiseHeld, Role};
use crate::{Ballot, Configuration, Configurations, Member, Mutant, NodeId, RowFlags, Slot, Value};
use crate::{ensures, requires};
use alloc::vec::Vec;

/// What a value costs in a record beside its payload, rounded up.
const VALUE_OVERHEAD_BYTES: usize = 32;
/// A voter that lacks more of what is chosen is catching up: the witness does not wait for it.
const CLOSE_SLOTS: u64 = 64;
/// Values in one record to a witness at the most.
const SHIPMENT_SLOTS_MAX: u64 = 1024;

impl Paxos {
    /// Rule W2: what this replica keeps of a value that it accepts.
    pub(super) fn kept(&self, value: Value) -> Value {
        let kept = if self.settings.witness { value.withheld() } else { value };
        ensures!(
            checked,
            W2,
            !self.settings.witness || kept.kind != crate::ValueKind::Commands,
            "a witness keeps no payload"
        );
        kept
    }

    /// Whether this replica keeps no payloads.
    #[must_use]
    pub fn is_witness(&self) -> bool {
        self.settings.witness
    }

    /// Whether `peer` says that it keeps no payloads.
    #[must_use]
    pub fn is_witness_peer(&self, peer: NodeId) -> bool {
        self.peer_index(peer)
            .is_some_and(|index| self.peers[index].row.flags.has(RowFlags::WITNESS))
    }

    /// Rule W2: a witness does not stand for election.
    pub(super) fn may_stand(&self) -> bool {
        self.may_lead && !self.settings.witness
    }

    /// Whether this replica remembers all that it promised and accepted, and is what the configurations
    /// that decide open slots take it for. One that keeps no payloads is no voter among those that do,
    /// whatever its operator did with its settings.
    pub(super) fn word_counts(&self) -> bool {
        let Member { node, incarnation } = self.me();
        let me = Member { node, incarnation };
        let takes_for_other = |configuration: &Configuration| {
            let named = match self.settings.witness {
                true => &configuration.voters,
                false => &configuration.witnesses,
            };
            named.contains(&me)
        };
        self.remembers
            && !self.configurations.deciding(self.commit_slot.next()).any(takes_for_other)
    }

    /// Rules W2, W5 and V3: whoever is to be a witness was started as one, whoever is to vote with payloads was
    /// not, and all read the configurations that have witnesses.
    pub(super) fn check_kinds(
        &self,
        latest: &Configuration,
        next: &Configuration,
    ) -> Result<(), Refusal> {
        let was = |list: &[Member], member: &Member| list.contains(member);
        let is_witness = |node: NodeId| self.is_witness_peer(node);
        let mut voters = next.voters.iter().filter(|member| !was(&latest.voters, member));
        if let Some(Member { node, .. }) = voters.find(|member| is_witness(member.node)) {
            return Err(Refusal::OtherKind { node: *node, witness: true });
        }
        for Member { node, .. } in next.witnesses.iter().filter(|new| !was(&latest.witnesses, new))
        {
            let heard = self.peer_row(*node).is_some();
            if *node == self.settings.node || heard && !is_witness(*node) {
                return Err(Refusal::OtherKind { node: *node, witness: false });
            }
        }
        let active = next.protocol;
        for Member { node, .. } in next.members().filter(|_| active > latest.protocol) {
            let speaks = self.spoken_by(node);
            if speaks < active {
                let heard = node == self.settings.node || self.peer_row(node).is_some();
                let old = Refusal::TooOld { node, speaks, active };
                return Err(if heard { old } else { Refusal::NotReady { node } });
            }
        }
        Ok(())
    }

    /// A record that holds a value without its payload, at one that would have to keep it.
    pub(super) fn lacks_payloads(&self, values: &[Value]) -> bool {
        !self.settings.witness
            && values.iter().any(Value::is_withheld)
            && !self.settings.is(Mutant::WitnessGives)
    }

    /// The next record for `peer` if that is a witness: as [`Paxos::next_shipment`], without payloads.
    #[must_use]
    pub fn next_withheld_shipment(
        &self,
        peer: NodeId,
        bytes_max: usize,
    ) -> Option<Shipment<Vec<Value>>> {
        let leader = self.role.leader()?;
        if !self.is_witness_peer(peer) {
            return None;
        }
        let first = leader.progress(peer)?.next?;
        let window = &self.acceptor.window;
        let end = window.last().min(self.shown_to_witnesses());
        if first < window.first() || first > end {
            return None;
        }
        let mut values = Vec::new();
        let mut bytes = 0;
        let end = end.min(Slot(first.0 + SHIPMENT_SLOTS_MAX - 1));
        for value in window.values(first, end) {
            let value = value.withheld();
            bytes += value.bytes.len() + VALUE_OVERHEAD_BYTES;
            if !values.is_empty() && bytes > bytes_max {
                break;
            }
            values.push(value);
        }
        let last = Slot(first.0 + values.len() as u64 - 1);
        requires!(
            checked,
            W2,
            values.iter().all(|value| value.kind != crate::ValueKind::Commands),
            "no payload is shipped to a witness"
        );
        let ballot = leader.ballot;
        Some(Shipment { ballot, first, last, commit_slot: self.commit_slot, values })
    }

    /// Rule W6: where one copy chooses, a witness is shown what two voters have, as long as another one
    /// works and keeps up: what a witness knows of and no other voter has is what a successor would have to wait for.
    fn shown_to_witnesses(&self) -> Slot {
        let latest = self.configurations.latest();
        let Some(leader) = self.role.leader().filter(|_| latest.copies == 1) else {
            return Slot(u64::MAX);
        };
        let within = self.settings.election_timeout_min;
        let works = |member: &&Member| {
            let heard = |peer: &super::Peer| peer.linked && self.hears(peer, within);
            let keeps_up = |progress: &Progress| {
                self.commit_slot.0 <= progress.matched.0 + CLOSE_SLOTS
                    && self.now.since(progress.stands_at.1) < within
            };
            self.present(**member).is_some_and(heard)
                && leader.progress(member.node).is_some_and(keeps_up)
        };
        let others = latest.voters.iter().filter(|member| member.node != self.settings.node);
        let reached = others.filter(works).filter_map(|member| leader.progress(member.node));
        reached.map(|progress| progress.matched).max().unwrap_or(Slot(u64::MAX))
    }

    /// With the heartbeat: since when each voter has stood still with more to vote for. One whose disk hangs
    /// must not keep the witness from voting.
    pub(super) fn watch_voters(&mut self) {
        let now = self.now;
        if self.configurations.latest().copies != 1 {
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let newest = leader.next_slot.previous();
        for progress in &mut leader.progress {
            if progress.matched != progress.stands_at.0 || progress.matched >= newest {
                progress.stands_at = (progress.matched, now);
            }
        }
    }

    /// Rule W7: what has to be chosen before this leader answers reads. Where there are witnesses that is all that
    /// it adopted of commands, and not its own first entry, for which there may be too few copies: nothing
    /// else can have been chosen before it led (P3, W4), and what is no command changes no state.
    pub(super) fn readable_from(&self, barrier: Slot) -> Slot {
        if self.configurations.at(self.commit_slot.next()).witnesses.is_empty() {
            return barrier;
        }
        let mut slot = barrier.previous();
        let idle = |slot| {
            let held = self.acceptor.window.get(slot);
            held.is_some_and(|(_, value)| value.kind != crate::ValueKind::Commands)
        };
        while slot > self.commit_slot && idle(slot) {
            slot = slot.previous();
        }
        slot
    }

    /// Whether `member` is a witness in a configuration that decides an open slot, or in one of `found`.
    fn is_named_witness(&self, member: Member, found: &[Configuration]) -> bool {
        let deciding = self.configurations.deciding(self.commit_slot.next());
        deciding.chain(found).any(|configuration| configuration.witnesses.contains(&member))
            && !self.settings.is(Mutant::WitnessGives)
    }

    /// Rule W4 (a): so many voters promised that what a witness knows besides cannot have been chosen.
    fn copies_promised<'a>(
        &self,
        promises: &[PromiseHeld],
        mut configurations: impl Iterator<Item = &'a Configuration>,
    ) -> bool {
        let promised = |member: Member| promises.iter().any(|promise| promise.member == member);
        configurations.all(|configuration| configuration.meets_copies(promised))
            || self.settings.is(Mutant::WitnessPassedOver)
    }

    /// Whether what witnesses report is compared with the rest: rule W4. Where there are none, it does not
    /// matter.
    pub(super) fn heeds_witnesses(
        &self,
        promises: &[PromiseHeld],
        found: &[Configuration],
    ) -> bool {
        let deciding = self.configurations.deciding(self.commit_slot.next());
        !self.copies_promised(promises, deciding.chain(found))
    }

    /// The promises whose values can be had from who gave them.
    pub(super) fn with_payloads<'a>(
        &'a self,
        promises: &'a [PromiseHeld],
        found: &'a [Configuration],
    ) -> impl Iterator<Item = &'a PromiseHeld> + Clone {
        promises.iter().filter(|promise| !self.is_named_witness(promise.member, found))
    }

    /// Rule W4 (b): whether a witness knows of something above `chosen_through` that may have been chosen
    /// and is held by nobody who promised. `best` is what those that hold payloads report.
    pub(super) fn awaits_copy(
        &self,
        promises: &[PromiseHeld],
        found: &[Configuration],
        chosen_through: Slot,
        best: &[(Ballot, NodeId)],
    ) -> bool {
        let mut witnesses =
            promises.iter().filter(|promise| self.is_named_witness(promise.member, found));
        witnesses.any(|promise| {
            // It knows these to be chosen, and no more under which ballot.
            let first = promise.runs.first().map_or(Slot(u64::MAX), |run| run.first);
            let forgotten = chosen_through < promise.commit_slot && first > chosen_through.next();
            let unheld = |run: &crate::Run| {
                (run.first.max(chosen_through.next()).0..=run.last.0).any(|slot| {
                    let index = (slot - chosen_through.0 - 1) as usize;
                    best.get(index).is_none_or(|(ballot, _)| *ballot < run.ballot)
                })
            };
            forgotten || promise.runs.iter().any(unheld)
        })
    }

    /// All that is to be adopted is held, and `known` decides: whether reports of witnesses that were passed
    /// over may still matter (W5). They are compared then.
    pub(super) fn must_heed_witnesses(&mut self, known: &Configurations) -> bool {
        let open = self.commit_slot.next();
        let Role::Adopting(Adopting { promises, heeds_witnesses: false, .. }) = &self.role else {
            return false;
        };
        if self.copies_promised(promises, known.deciding(open)) {
            return false;
        }
        let found: Vec<Configuration> = known.deciding(open).cloned().collect();
        if let Role::Adopting(adopting) = &mut self.role {
            adopting.found = found;
        }
        true
    }
}
