//! Passive followers: votes by completed writes, and the gate that stands before each rise of the promise
//! (rules B1 to B7, [decision 23](../../../docs/decisions/0023-what-a-write-completion-may-count-for.md)).
//!
//! At the follower: a peer that was shown that its completed writes count (`RowFlags::PASSIVE`) may have
//! written what is not read yet. So no promise rises above that peer's ballot before its ring is fenced and
//! read: [`Cleared`] is what [`Acceptor::promise`](crate::acceptor::Acceptor::promise) wants to see, and it
//! is made here only. The event that would have made the promise rise is held meanwhile.
//!
//! At the leader: what was written counts while the row says so.

use super::{Gap, Paxos};
use crate::role::Role;
use crate::{Accept, Ballot, Mutant, Nanos, NodeId, Row, RowFlags, Slot, requires};
use alloc::vec::Vec;

/// Proof that nothing counts any more that could still come in under the present promise.
#[derive(Debug)]
pub(crate) struct Cleared(());

#[cfg(test)]
impl Cleared {
    pub(crate) const FOR_TESTS: Self = Self(());
}

/// An event that makes the promise rise, and waits for a fence.
#[derive(Clone, Debug, Hash)]
pub(super) enum Held {
    /// A record of another leader.
    Accept { from: NodeId, accept: Accept },
    /// A row of another leader.
    LeaderRow { from: NodeId, row: Row },
    /// Phase 1 of somebody.
    Prepare { from: NodeId, ballot: Ballot, first: Slot, released: Ballot },
    /// The own candidacy.
    Stand { ballot: Ballot, released: Ballot },
}

/// What is known of the rings that peers write into.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Rings {
    /// Granted for the present life of their lanes, and not fenced in it.
    granted: Vec<NodeId>,
    /// Whom a row told that its completed writes count: always the owner of the present promise.
    shown: Option<NodeId>,
    /// Waits until the ring of that one is fenced and read.
    held: Option<Held>,
}

impl Paxos {
    /// The ring of `peer` is granted to it for the present life of its data lane, which ends with that
    /// life. Not told where the grant lasts.
    pub fn on_granted(&mut self, peer: NodeId) {
        requires!(checked, B3, !self.rings.granted.contains(&peer), "one grant in a life");
        self.rings.granted.push(peer);
        if let Some(index) = self.peer_index(peer) {
            self.peers[index].row_due = true;
        }
    }

    /// The ring of `peer` is granted no more, and was read to its end: its lane is down (B4), or the peer is
    /// one no more.
    pub fn on_ring_closed(&mut self, peer: NodeId) {
        self.rings.granted.retain(|granted| *granted != peer);
        if self.rings.shown == Some(peer) {
            self.rings.shown = None;
        }
    }

    /// *Fence rule*: whenever this says so after an event, the caller takes the ring of that peer back
    /// (contract C4 of the transport), reads it to its end ([`Paxos::on_accept`]), and says
    /// [`Paxos::on_fenced`], before any other event.
    #[must_use]
    pub fn fence_due(&self) -> Option<NodeId> {
        self.rings.shown.filter(|_| self.rings.held.is_some())
    }

    /// The fence is there, and the ring was read to its end behind it: what waited goes on.
    ///
    /// # Errors
    /// As [`Paxos::on_accept`], with the peer whose lane must be reset.
    pub fn on_fenced(&mut self, now: Nanos, peer: NodeId) -> Result<(), (NodeId, Gap)> {
        self.advance(now);
        self.on_ring_closed(peer);
        match self.rings.held.take() {
            Some(Held::Accept { from, mut accept }) => {
                self.on_accept(now, from, &mut accept).map_err(|gap| (from, gap))?;
            }
            Some(Held::LeaderRow { from, row }) => {
                if let Some(index) = self.peer_index(from) {
                    self.on_leader_row(index, row);
                }
            }
            Some(Held::Prepare { from, ballot, first, released }) => {
                self.on_prepare(from, ballot, first, released);
            }
            // What was read may have been of a higher ballot of the same owner.
            Some(Held::Stand { ballot, released }) if ballot > self.acceptor.promised() => {
                self.begin_phase_one(ballot, released);
            }
            Some(Held::Stand { .. }) | None => {}
        }
        Ok(())
    }

    /// Whether the promise may rise now (rule B2). If not, the event waits for the fence.
    pub(super) fn clear_to_promise(&mut self, held: impl FnOnce() -> Held) -> Option<Cleared> {
        if self.rings.shown.is_none() {
            return Some(Cleared(()));
        }
        if self.settings.is(Mutant::NoFence) {
            self.rings.shown = None;
            return Some(Cleared(()));
        }
        requires!(checked, B2, self.rings.held.is_none(), "a fence is made before the next event");
        self.rings.held.get_or_insert_with(held);
        None
    }

    /// As [`Paxos::clear_to_promise`], for a record that came by the ring of `from`: what its owner wrote
    /// under the lower ballot stood before it in the same ring, and was read.
    pub(super) fn clear_to_accept(
        &mut self,
        from: NodeId,
        held: impl FnOnce() -> Held,
    ) -> Option<Cleared> {
        if self.rings.shown == Some(from) {
            return Some(Cleared(()));
        }
        self.clear_to_promise(held)
    }

    /// Whether an event waits: what is read meanwhile is no sign of life of who wrote it.
    pub(super) fn is_fencing(&self) -> bool {
        self.rings.held.is_some()
    }

    /// Whether a row may tell `peer` that its completed writes count: the promise is its ballot, and its ring
    /// is granted for this life of its lane.
    pub(super) fn shows_passive(&self, peer: NodeId) -> bool {
        self.acceptor.promised().node == peer
            && self.rings.granted.contains(&peer)
            && self.rings.held.is_none()
            && !self.settings.witness
            && self.word_counts()
    }

    /// Such a row was posted.
    pub(super) fn note_shown(&mut self, peer: NodeId) {
        if self.shows_passive(peer) {
            requires!(
                checked,
                B2,
                self.rings.shown.is_none_or(|shown| shown == peer),
                "one peer at a time is told that its completed writes count"
            );
            self.rings.shown = Some(peer);
        }
    }

    /// A record of this leader, of `ballot` and up to `slot`, was written at `peer` in the present life of its
    /// lane (rule B1). Records to witnesses are not told of.
    pub fn on_written(&mut self, peer: NodeId, ballot: Ballot, slot: Slot) {
        let Some(index) = self.peer_index(peer) else { return };
        let older = self.settings.is(Mutant::CountOldCompletions);
        let written = &mut self.peers[index].written;
        let before = if older { written.1 } else { Slot::ZERO };
        *written = (*written).max((ballot, slot.max(before)));
        if self.count_written(peer) {
            self.continue_transfer();
            self.advance_commit();
        }
    }

    /// A row of `peer` was seen by the leader.
    pub(super) fn note_passive(&mut self, peer: NodeId, row: &Row, counts: bool) {
        let passive = counts && row.flags.has(RowFlags::PASSIVE);
        if let Role::Leader(leader) = &mut self.role {
            let ballot = leader.ballot;
            if let Some(progress) = leader.progress_mut(peer) {
                progress.passive = passive && row.promised == ballot;
            }
        }
        self.count_written(peer);
    }

    /// Counts what was written at `peer`, if it says that it counts. Whether its vote moved.
    fn count_written(&mut self, peer: NodeId) -> bool {
        let Some(index) = self.peer_index(peer) else { return false };
        let (ballot, slot) = self.peers[index].written;
        let older = self.settings.is(Mutant::CountOldCompletions);
        let anyhow = self.settings.is(Mutant::CountUnconfirmed);
        let witness = self.is_witness_peer(peer);
        let Role::Leader(leader) = &mut self.role else { return false };
        if ballot != leader.ballot && !older {
            return false;
        }
        let last = leader.next_slot.previous();
        let Some(progress) = leader.progress_mut(peer) else { return false };
        if !(progress.passive || anyhow) || witness || slot <= progress.matched {
            return false;
        }
        requires!(always, B1, slot <= last, "what was written was proposed");
        progress.matched = slot;
        true
    }

    #[cfg(feature = "model")]
    pub(super) fn rings(&self) -> &Rings {
        &self.rings
    }
}
