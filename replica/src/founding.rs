//! How a cluster begins: once, and never twice.
//!
//! A fresh replica does not know whether it is new, or old and wiped. So the first configuration is
//! made only when *all* founding members are present and fresh: the lowest-numbered one then writes
//! the [`Genesis`], which names each member with the incarnation of its disk, and everyone keeps it
//! before it takes part. Why this cannot make two clusters out of one: a second genesis would need
//! all members to say "fresh" again; a member says so only while it holds none; so every copy of the
//! first one would have to be gone, and with it everything that was ever decided under it. A member
//! that lost its disk says "fresh" under a new incarnation to peers that hold the genesis; they send
//! it, it does not find its incarnation there, and it follows without a vote (the amnesia rule).

use bytes::Bytes;
use quorate_consensus::{Configuration, Genesis, Incarnation, Member, Message, Nanos, NodeId};
use std::collections::BTreeMap;

/// How often a fresh replica tells its peers that it is.
const REPEAT_EVERY: Nanos = Nanos::from_millis(100);

/// A replica before it knows its cluster.
#[derive(Debug)]
pub(crate) struct Founding {
    node: NodeId,
    members: Vec<NodeId>,
    fresh: BTreeMap<NodeId, Incarnation>,
    repeat_at: Nanos,
    /// It waits to be given the founding document of a cluster that is there, and founds none.
    joins: bool,
}

impl Founding {
    /// Of a replica that joins a cluster.
    pub(crate) fn joining(self) -> Self {
        Self { joins: true, ..self }
    }

    /// Whether this replica waits to be made a member.
    pub(crate) fn joins(&self) -> bool {
        self.joins
    }

    /// `members` are all founding members, this one included.
    pub(crate) fn new(node: NodeId, incarnation: Incarnation, members: Vec<NodeId>) -> Self {
        let fresh = BTreeMap::from([(node, incarnation)]);
        Self { node, members, fresh, repeat_at: Nanos(0), joins: false }
    }

    /// A peer says that it is fresh.
    pub(crate) fn on_fresh(&mut self, from: NodeId, incarnation: Incarnation) {
        if self.members.contains(&from) {
            self.fresh.insert(from, incarnation);
        }
    }

    /// A peer is gone: it must say again that it is fresh, since it may come back as another.
    pub(crate) fn on_down(&mut self, peer: NodeId) {
        self.fresh.remove(&peer);
    }

    /// The founding document, once this replica is the one to write it and all are there.
    pub(crate) fn document(&self) -> Option<Bytes> {
        if self.joins || self.members.iter().min() != Some(&self.node) {
            return None;
        }
        let incarnation = |node: &NodeId| {
            let incarnation = *self.fresh.get(node)?;
            Some(Member { node: *node, incarnation })
        };
        let voters: Vec<Member> = self.members.iter().map(incarnation).collect::<Option<_>>()?;
        // The incarnations are random, so a mix of them names this founding and no other.
        let cluster = voters.iter().fold(0x51ab_3ad5_5c8e_27d1_u64, |mixed, member| {
            (mixed ^ member.incarnation.0).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        let configuration = Configuration::of_voters(1, voters);
        let recovered_from = None;
        Some(Genesis { cluster: cluster | 1, configuration, recovered_from }.encode())
    }

    /// The message to repeat to all peers, if it is time.
    pub(crate) fn repeat(&mut self, now: Nanos) -> Option<Message> {
        if now < self.repeat_at {
            return None;
        }
        self.repeat_at = now + REPEAT_EVERY;
        self.fresh.get(&self.node).map(|&incarnation| Message::Fresh { incarnation })
    }

    /// Who is still missing, for the operator.
    pub(crate) fn missing(&self) -> Vec<NodeId> {
        self.members.iter().copied().filter(|node| !self.fresh.contains_key(node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founding(node: u16) -> Founding {
        let members = vec![NodeId(1), NodeId(2), NodeId(3)];
        Founding::new(NodeId(node), Incarnation(u64::from(node) * 11), members)
    }

    // Rule F2.
    #[test]
    fn only_the_lowest_member_founds_and_only_with_all_present() {
        let mut first = founding(1);
        first.on_fresh(NodeId(2), Incarnation(22));
        assert_eq!(first.document(), None);
        assert_eq!(first.missing(), [NodeId(3)]);
        first.on_fresh(NodeId(9), Incarnation(99));
        first.on_fresh(NodeId(3), Incarnation(33));
        let genesis = Genesis::decode(&first.document().unwrap()).unwrap();
        assert_eq!(genesis.configuration.voters.len(), 3);
        assert!(genesis.configuration.votes(NodeId(3), Incarnation(33)));
        let mut second = founding(2);
        second.on_fresh(NodeId(1), Incarnation(11));
        second.on_fresh(NodeId(3), Incarnation(33));
        assert_eq!(second.document(), None);
    }

    // Rule F1.
    #[test]
    fn who_joins_founds_nothing() {
        let mut first = founding(1).joining();
        first.on_fresh(NodeId(2), Incarnation(22));
        first.on_fresh(NodeId(3), Incarnation(33));
        assert_eq!(first.document(), None);
    }

    #[test]
    fn a_member_that_went_away_must_say_again_who_it_is() {
        let mut first = founding(1);
        first.on_fresh(NodeId(2), Incarnation(22));
        first.on_fresh(NodeId(3), Incarnation(33));
        first.on_down(NodeId(3));
        assert_eq!(first.document(), None);
    }
}
