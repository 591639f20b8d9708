//! Handing leadership over without a pause: planned, or because this leader makes no progress.
//!
//! The leader lets its successor catch up while it goes on, stops proposing for the last few slots,
//! gives up its lease, and tells the successor to stand at once (E9). Whoever leads keeps an eye on its
//! own progress, and hands over when there is none (E8).

use super::{Notice, Paxos};
use crate::role::{Role, Transfer};
use crate::{Ballot, Message, Mutant, Nanos, NodeId, PersistNumber, RowFlags, Slot};

/// A successor this close is waited for; before that the leader goes on proposing.
const CLOSE_SLOTS: u64 = 64;

/// Why leadership was not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferError {
    /// This replica does not lead, or not for long enough to have a first own entry chosen.
    NotLeading,
    /// This replica leads already, and was asked to make itself leader.
    LeadsAlready,
    /// The named replica has no vote, is not heard, or may not lead at present.
    Unfit(NodeId),
    /// No other replica could lead.
    Nobody,
    /// Leadership is being handed over already.
    UnderWay(NodeId),
}

impl core::fmt::Display for TransferError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotLeading => f.write_str("this replica does not lead: ask the leader"),
            Self::LeadsAlready => f.write_str("it leads already"),
            Self::Unfit(node) => {
                write!(f, "replica {node} has no vote, is not heard, or may not lead at present")
            }
            Self::Nobody => f.write_str("no other replica could lead at present"),
            Self::UnderWay(node) => write!(f, "leadership is being handed to replica {node}"),
        }
    }
}

/// What a leader watches of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    commit: (Slot, Nanos),
    applied: (Slot, Nanos),
    durable: (PersistNumber, Nanos),
    /// Nobody took over when it was offered: it is not offered again before.
    offered_until: Nanos,
}

impl Paxos {
    /// Hands leadership to `to`, or to whoever is best: the highest priority, then the most complete
    /// log. Returns to whom; [`Notice::SteppedDown`] and a new leader, or [`Notice::TransferFailed`],
    /// tell how it ended.
    ///
    /// # Errors
    /// [`TransferError`]; then nothing happens.
    pub fn transfer(&mut self, now: Nanos, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        self.rouse(now);
        self.begin_transfer(to, false)
    }

    pub(super) fn begin_transfer(
        &mut self,
        to: Option<NodeId>,
        resigns: bool,
    ) -> Result<NodeId, TransferError> {
        let leader = self.role.leader().ok_or(TransferError::NotLeading)?;
        if self.commit_slot < leader.barrier {
            return Err(TransferError::NotLeading);
        }
        if let Some(transfer) = &leader.transfer {
            return Err(TransferError::UnderWay(transfer.to));
        }
        let to = match to {
            Some(to) if to == self.settings.node => return Err(TransferError::LeadsAlready),
            Some(to) if self.could_lead(to) => to,
            Some(to) => return Err(TransferError::Unfit(to)),
            None => self.best_successor().ok_or(TransferError::Nobody)?.1,
        };
        let give_up_at = self.now + self.settings.election_timeout_min;
        if let Some(leader) = self.role.leader_mut() {
            leader.transfer =
                Some(Transfer { to, give_up_at, closing: false, told: false, resigns });
        }
        self.notice(Notice::Transferring(to));
        self.continue_transfer();
        Ok(to)
    }

    /// Whether `node` votes, is heard, and stands for election.
    fn could_lead(&self, node: NodeId) -> bool {
        let elector = self.configurations.latest().electors().find(|member| member.node == node);
        elector.and_then(|member| self.present(member)).is_some_and(|peer| {
            !peer.row.flags.has(RowFlags::UNWILLING)
                && self.hears(peer, self.settings.election_timeout_min)
        })
    }

    /// The fittest other replica, with its priority.
    fn best_successor(&self) -> Option<(u8, NodeId)> {
        let leader = self.role.leader()?;
        let fit = leader.progress.iter().filter(|progress| self.could_lead(progress.node));
        let rank = fit.map(|progress| {
            let index = self.peer_index(progress.node);
            let priority = index.map_or(0, |index| self.peers[index].row.flags.priority());
            (priority, progress.matched, core::cmp::Reverse(progress.node))
        });
        rank.max().map(|(priority, _, node)| (priority, node.0))
    }

    /// Whether leadership is about to leave, or soon should.
    pub(super) fn may_transfer(&self) -> bool {
        self.role.leader().is_some_and(|leader| leader.transfer.is_some())
            || self.best_successor().is_some_and(|(priority, _)| priority > self.settings.priority)
    }

    /// What was seen of the own progress before a rest says nothing.
    pub(super) fn watch_anew(&mut self) {
        let offered_until = self.watch.offered_until;
        self.watch = Watch { offered_until, ..Watch::default() };
    }

    /// Whether proposals wait since leadership is about to leave.
    pub(super) fn is_closing(&self) -> bool {
        self.role.leader().and_then(|leader| leader.transfer).is_some_and(|held| held.closing)
    }

    /// The next step of a transfer, if it is time for one.
    pub(super) fn continue_transfer(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let (to, ballot) = (transfer.to, leader.ballot);
        if self.now >= transfer.give_up_at {
            let resigns = transfer.resigns;
            leader.transfer = None;
            self.watch.offered_until = self.now + Nanos(10 * self.settings.election_timeout_max.0);
            self.notice(Notice::TransferFailed(to));
            if resigns {
                self.step_down("nobody took over, and it should not lead on");
            }
            return;
        }
        if transfer.told {
            return;
        }
        let newest = leader.next_slot.previous();
        let matched = leader
            .progress
            .iter()
            .find(|progress| progress.node == to)
            .map_or(Slot::ZERO, |progress| progress.matched);
        transfer.closing |= newest.0 <= matched.0 + CLOSE_SLOTS;
        if !transfer.closing || matched < newest {
            return;
        }
        transfer.told = true;
        // From here on this ballot has no lease, whatever becomes of the transfer: the successor
        // says so to all acceptors.
        self.release_lease();
        self.mark_rows_due();
        self.send(to, Message::Lead { ballot });
    }

    /// The leader asks this replica to take over.
    pub(super) fn on_lead(&mut self, from: NodeId, ballot: Ballot) {
        let follows = self.leader == Some(ballot)
            && ballot.node == from
            && ballot == self.acceptor.promised()
            && matches!(self.role, Role::Follower)
            || self.settings.is(Mutant::StandOutOfTurn);
        let next = self.next_ballot();
        if follows
            && self.votes()
            && self.may_stand()
            && self.knows_members()
            && self.quorum_connected()
            && !self.lease_binds(next, ballot)
        {
            self.rest_election_timer();
            self.begin_phase_one(next, ballot);
        }
    }

    /// Whether this replica may lead. One that may not hands over if it leads, and does not stand for
    /// election; it votes as before.
    pub fn set_may_lead(&mut self, may_lead: bool) {
        if self.may_lead != may_lead {
            self.end_quiet();
            self.may_lead = may_lead;
            self.mark_rows_due();
        }
        if may_lead {
            return;
        }
        match self.begin_transfer(None, true) {
            Ok(_) => {}
            Err(TransferError::UnderWay(_)) => {
                if let Some(transfer) =
                    self.role.leader_mut().and_then(|leader| leader.transfer.as_mut())
                {
                    transfer.resigns = true;
                }
            }
            Err(_) if self.role_is_leader() => self.step_down("it may not lead at present"),
            Err(_) => {}
        }
    }

    /// With each heartbeat, a leader looks whether it makes progress, and whether someone should lead
    /// rather than it.
    pub(super) fn watch_leadership(&mut self) {
        let Some(leader) = self.role.leader() else { return };
        let newest = leader.next_slot.previous();
        let (now, led_since) = (self.now, leader.since);
        let durable = self.acceptor.durable_through();
        let mut watch = self.watch;
        let commit = note(&mut watch.commit, self.commit_slot, self.commit_slot < newest, now);
        let applied =
            note(&mut watch.applied, self.applied_slot, self.applied_slot < self.commit_slot, now);
        let disk = note(&mut watch.durable, durable, durable < self.acceptor.emitted(), now);
        self.watch = watch;
        let patience = self.settings.election_timeout_max;
        // One that is cut off itself would only spoil ballots.
        let fresh = Nanos(4 * self.settings.heartbeat_interval.0);
        if now < self.watch.offered_until || !self.quorum_heard(fresh) {
            return;
        }
        let stalled = commit.max(applied).max(disk) >= patience;
        if stalled && now.since(led_since) >= patience {
            // With nobody to take over it stays: a slow leader is better than none.
            let _ = self.begin_transfer(None, false);
            return;
        }
        let settled = Nanos(10 * patience.0);
        if now.since(led_since) >= settled
            && let Some((priority, node)) = self.best_successor()
            && priority > self.settings.priority
            && self.lag_of(node) <= CLOSE_SLOTS
        {
            let _ = self.begin_transfer(Some(node), false);
        }
    }

    fn lag_of(&self, node: NodeId) -> u64 {
        let Some(leader) = self.role.leader() else { return 0 };
        let matched = leader.progress(node).map_or(0, |progress| progress.matched.0);
        leader.next_slot.previous().0.saturating_sub(matched)
    }
}

/// Notes where a counter is; returns for how long it has stood still although it should move.
fn note<T: Copy + PartialEq>(
    held: &mut (T, Nanos),
    value: T,
    should_move: bool,
    now: Nanos,
) -> Nanos {
    if held.0 != value || !should_move {
        *held = (value, now);
    }
    now.since(held.1)
}
