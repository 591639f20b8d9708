//! The leader: proposes, ships, counts durable votes, and knows what is chosen.

use super::{Notice, Paxos};
use crate::buggify::Point;
use crate::role::{Adopting, Adoption, Leader, Progress, Role};
use crate::{Ballot, Message, Mutant, NodeId, Row, Slot, Value, ensures, requires};
use alloc::vec::Vec;

/// A record to ship to one follower.
#[derive(Clone, Debug)]
pub struct Shipment<V> {
    /// The leader's ballot.
    pub ballot: Ballot,
    /// The first slot.
    pub first: Slot,
    /// The last slot, inclusive.
    pub last: Slot,
    /// The leader's `commit_slot`.
    pub commit_slot: Slot,
    /// The values, in slot order.
    pub values: V,
}

/// What a value costs in a record beside its payload, rounded up.
const VALUE_OVERHEAD_BYTES: usize = 32;
/// Values in one record at the most.
const SHIPMENT_SLOTS_MAX: u64 = 1024;

impl Paxos {
    /// All that may have been chosen is held: propose it again, then the first own entry.
    pub(super) fn begin_leading(&mut self, adopting: Adopting) {
        let Adopting { ballot, chosen_through, mut plan, .. } = adopting;
        requires!(
            always,
            P6,
            ballot == self.acceptor.promised(),
            "a leader leads under its promise"
        );
        requires!(
            always,
            P4,
            chosen_through <= self.commit_slot,
            "what is chosen was caught up first"
        );
        let learned = (self.commit_slot.0 - chosen_through.0) as usize;
        plan.drain(..learned.min(plan.len()));
        let chosen_through = self.commit_slot;
        let progress = self.peers.iter().map(|peer| Progress {
            // What it had accepted is re-proposed under our ballot, from its commit on.
            next: peer.row_is_current.then(|| peer.row.commit_slot.next()),
            stands_at: (Slot::ZERO, self.now),
            ..Progress::unknown(peer.node)
        });
        let progress = progress.collect();
        let barrier = Slot(chosen_through.0 + plan.len() as u64 + 1);
        self.role = Role::Leader(Leader {
            ballot,
            barrier,
            next_slot: chosen_through.next(),
            bytes_in_flight: 0,
            progress,
            // Pings of one leadership are above those of all earlier ones in this life.
            ping: self.reads.newest_ping(),
            since: self.now,
            transfer: None,
        });
        self.forget_lease();
        self.leader = Some(ballot);
        self.leader_heard_at = Some(self.now);
        self.acceptor.begin(ballot, chosen_through);
        self.acceptor.window.truncate(barrier);
        self.configurations.truncate(barrier);
        for adoption in plan {
            let value = match adoption {
                Adoption::Held { value, .. } => value,
                Adoption::Hole | Adoption::Missing { .. } => Value::noop(),
            };
            self.append(value);
        }
        let last =
            if self.settings.is(Mutant::NoBarrier) { barrier } else { self.append(Value::noop()) };
        ensures!(
            checked,
            P6,
            last == barrier,
            "a new leader proposes a no-op behind what it adopted"
        );
        self.met_leader = true;
        self.refresh_members();
        self.acceptor.mark();
        self.notice(Notice::Leading(ballot));
        self.mark_rows_due();
        self.advance_commit();
    }

    /// Whether a value may be proposed now. If this replica leads and may not, the window is full:
    /// wait for commits.
    #[must_use]
    pub fn can_propose(&self) -> bool {
        self.role.leader().is_some_and(|leader| {
            let in_flight = leader.next_slot.0 - self.commit_slot.0 - 1;
            !self.is_closing()
                && in_flight < self.settings.window_slots_max
                && leader.bytes_in_flight < self.settings.window_bytes_max
        })
    }

    /// Proposes a value for the next slot: it is persisted here and shipped to the followers at the
    /// same time. Refused (none) where [`Paxos::can_propose`] says no; then nothing happened.
    pub fn propose(&mut self, value: Value) -> Option<Slot> {
        if !self.can_propose() {
            return None;
        }
        let slot = self.append(value);
        self.acceptor.mark();
        self.advance_commit();
        Some(slot)
    }

    pub(super) fn append(&mut self, value: Value) -> Slot {
        self.end_quiet();
        let Role::Leader(leader) = &mut self.role else {
            unreachable!("only a leader appends; both callers checked it")
        };
        let slot = leader.next_slot;
        leader.next_slot = slot.next();
        leader.bytes_in_flight += value.bytes.len();
        let ballot = leader.ballot;
        self.note_value(slot, &value);
        self.acceptor.accept(slot, value);
        ensures!(
            checked,
            P7,
            self.acceptor.accepted_slot() == slot && self.acceptor.accepted_ballot() == ballot,
            "a leader gives each slot once, in order, under its ballot"
        );
        slot
    }

    /// The next record for `peer`: values that together take at most about `bytes_max`, at least
    /// one if any is due. Tell [`Paxos::shipped`] when it was posted. A witness gets none of these, see
    /// [`Paxos::next_withheld_shipment`].
    #[must_use]
    pub fn next_shipment(
        &self,
        peer: NodeId,
        bytes_max: usize,
    ) -> Option<Shipment<impl Iterator<Item = &Value> + Clone>> {
        let leader = self.role.leader()?;
        let first = leader.progress(peer)?.next?;
        let window = &self.acceptor.window;
        if first < window.first() || first > window.last() || self.is_witness_peer(peer) {
            return None;
        }
        let mut last = first;
        let mut bytes = 0;
        for value in window.values(first, window.last().min(Slot(first.0 + SHIPMENT_SLOTS_MAX - 1)))
        {
            bytes += value.bytes.len() + VALUE_OVERHEAD_BYTES;
            if last > first && bytes > bytes_max {
                break;
            }
            last = last.next();
        }
        let last = last.previous();
        let last = if self.settings.whims.has(Point::ShortShipment) { first } else { last };
        let values = window.values(first, last);
        let ahead = self.settings.is(Mutant::CommitAhead);
        let commit_slot = if ahead { last } else { self.commit_slot };
        Some(Shipment { ballot: leader.ballot, first, last, commit_slot, values })
    }

    /// The record up to `last` was posted to `peer`. It carried our commit slot.
    pub fn shipped(&mut self, peer: NodeId, last: Slot) {
        let Role::Leader(leader) = &mut self.role else { return };
        let ping = leader.ping;
        let Some(progress) = leader.progress_mut(peer) else { return };
        progress.next = Some(last.next());
        let answered = progress.pong >= ping;
        if let Some(index) = self.peer_index(peer).filter(|_| answered) {
            // The record says all that the row would; a heartbeat that is due still goes.
            self.peers[index].row_due = false;
        }
    }

    /// A row of a follower, seen by the leader.
    pub(super) fn on_follower_row(&mut self, from: NodeId, row: Row) {
        let Some(index) = self.peer_index(from) else { return };
        let counts = self.peers[index].counts();
        let Role::Leader(leader) = &mut self.role else { return };
        let ballot = leader.ballot;
        if counts && row.promised > ballot {
            self.step_down("a voter promised a higher ballot");
            return;
        }
        let first_available = self.acceptor.window.first();
        let commit_slot = self.commit_slot;
        let ping = leader.ping;
        let Some(progress) = leader.progress_mut(from) else { return };
        let any_disk = self.settings.is(Mutant::AnyDisk);
        if any_disk {
            progress.incarnation = row.incarnation;
        }
        if progress.incarnation != row.incarnation {
            // Another disk: what the one before voted for is no vote of this one (rule C6).
            progress.incarnation = row.incarnation;
            progress.matched = Slot::ZERO;
            progress.pong = 0;
            progress.leased_at = None;
            progress.passive = false;
        }
        let mut answers = false;
        let old_votes = self.settings.is(Mutant::CountOldBallotVotes);
        if counts && (row.accepted_ballot == ballot || old_votes) {
            progress.matched = progress.matched.max(row.accepted_slot);
        }
        if counts && row.promised <= ballot {
            progress.pong = progress.pong.max(row.pong.min(ping));
            answers = true;
        }
        let position = if row.accepted_ballot == ballot {
            row.accepted_slot.max(row.commit_slot)
        } else {
            row.commit_slot
        };
        // A position below what is still in memory is for the follower to catch up from a log.
        let behind = match progress.next {
            None => {
                progress.next = Some(position.next());
                position.next() < first_available
            }
            Some(next) => {
                if next <= position {
                    progress.next = Some(position.next());
                }
                progress.next < Some(first_available)
            }
        };
        let tell = behind && !progress.told_behind;
        progress.told_behind = behind;
        if tell {
            self.send(from, Message::Behind { ballot, first_available, commit_slot });
        }
        self.note_passive(from, &row, counts);
        if answers {
            self.on_lease_granted(from, &row);
        }
        self.continue_transfer();
        self.advance_commit();
    }

    /// Counts durable votes under the own ballot; everything up to the slot that a quorum of the
    /// configuration in force there has reached is chosen.
    pub(super) fn advance_commit(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let early = self.settings.is(Mutant::OwnVoteEarly);
        let (own_ballot, own_slot) = if early {
            (self.acceptor.accepted_ballot(), self.acceptor.accepted_slot())
        } else {
            self.acceptor.vote()
        };
        let own = if own_ballot == leader.ballot { own_slot } else { Slot::ZERO };
        let miscounted = self.miscounted();
        let counted = miscounted.as_ref().unwrap_or(&self.configurations);
        let chosen = counted.chosen_through(self.commit_slot, |member| {
            if member.node == self.settings.node {
                return if self.is_me(member) { own } else { Slot::ZERO };
            }
            let Some(progress) = leader.progress(member.node) else { return Slot::ZERO };
            let first = leader.progress.first().is_some_and(|first| first.node == member.node);
            if first && self.settings.is(Mutant::CommitOnMinority) {
                return own;
            }
            let copies_only = self.settings.is(Mutant::WitnessIsACopy);
            let any_disk =
                self.settings.is(Mutant::AnyDiskVotes) || miscounted.is_some() && !copies_only;
            let same_disk = progress.incarnation == member.incarnation || any_disk;
            if same_disk { progress.matched } else { Slot::ZERO }
        });
        if chosen > self.commit_slot {
            requires!(always, P8, chosen < leader.next_slot, "only what was proposed is chosen");
            requires!(
                checked,
                C2,
                self.configurations.at(chosen).is_quorum(|member| {
                    let peer = leader.progress(member.node);
                    let peer = peer.filter(|peer| peer.incarnation == member.incarnation);
                    let matched = peer.map_or(Slot::ZERO, |peer| peer.matched);
                    let reached = if self.is_me(member) { own } else { matched };
                    reached >= chosen
                }),
                "a quorum of the configuration of the newest chosen slot voted for it"
            );
            let bytes: usize = self
                .acceptor
                .window
                .values(self.commit_slot.next(), chosen)
                .map(|value| value.bytes.len())
                .sum();
            self.commit_slot = chosen;
            if let Role::Leader(leader) = &mut self.role {
                leader.bytes_in_flight -= bytes;
            }
            self.mark_rows_due();
            self.on_commit_moved();
            self.settle();
            self.step_down_if_removed();
        }
        self.settle_reads();
    }

    /// How far each follower's durable vote is behind the newest proposal, and how much of that was
    /// shipped to it already, in slots; empty unless leading.
    #[must_use]
    pub fn lags(&self) -> Vec<Lag> {
        let Some(leader) = self.role.leader() else { return Vec::new() };
        let newest = leader.next_slot.previous();
        let lag = |progress: &Progress| {
            let next = progress.next.unwrap_or(Slot::ZERO);
            Lag {
                node: progress.node,
                slots: newest.0.saturating_sub(progress.matched.0),
                in_flight: next.previous().0.saturating_sub(progress.matched.0),
                passive: progress.passive,
            }
        };
        leader.progress.iter().map(lag).collect()
    }
}

/// How far a follower is behind its leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lag {
    /// Which.
    pub node: NodeId,
    /// Slots that it has not voted for.
    pub slots: u64,
    /// Of those, slots that were shipped to it.
    pub in_flight: u64,
    /// Whether its votes are completed writes (rule B1).
    pub passive: bool,
}
