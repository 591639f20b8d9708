//! Who decides: [`Configuration`], the quorums it asks for, and [`Genesis`], the first one.

use crate::{Incarnation, NodeId, Slot};
use alloc::vec::Vec;
use bytes::{Buf, BufMut, Bytes};

/// One member of a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// The life of its disk that this configuration names. A replica with the same number and
    /// another incarnation has lost what it promised, and does not vote.
    pub incarnation: Incarnation,
}

/// A set of members, in force from a slot on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    /// Grows by one with each change; the first is 1.
    pub id: u64,
    /// Members whose votes count, sorted by node.
    pub voters: Vec<Member>,
    /// Members that receive the log and do not vote, sorted by node.
    pub learners: Vec<Member>,
    /// Members that vote without keeping payloads, sorted by node.
    pub witnesses: Vec<Member>,
}

impl Configuration {
    /// A configuration of voters only.
    #[must_use]
    pub fn of_voters(id: u64, mut voters: Vec<Member>) -> Self {
        voters.sort_unstable();
        voters.dedup_by_key(|member| member.node);
        Self { id, voters, learners: Vec::new(), witnesses: Vec::new() }
    }

    /// The number of votes that make a quorum: a majority of those who vote.
    #[must_use]
    pub fn quorum(&self) -> usize {
        (self.voters.len() + self.witnesses.len()) / 2 + 1
    }

    /// Everyone whose vote counts.
    pub fn electors(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voters.iter().chain(&self.witnesses).map(|member| member.node)
    }

    /// Whether `node` votes, if its disk is the one named here.
    #[must_use]
    pub fn votes(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let named = Member { node, incarnation };
        self.voters.contains(&named) || self.witnesses.contains(&named)
    }

    /// Everyone, whatever they do.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.voters.iter().chain(&self.witnesses).chain(&self.learners).copied()
    }

    /// Whether the nodes for which `has` answers yes make a quorum.
    pub fn is_quorum(&self, mut has: impl FnMut(NodeId) -> bool) -> bool {
        self.electors().filter(|&node| has(node)).count() >= self.quorum()
    }

    /// The largest slot that a quorum has reached, where `reached` tells how far each is.
    pub fn quorum_slot(&self, mut reached: impl FnMut(NodeId) -> Slot) -> Slot {
        // Clusters have up to nine electors (a dozen at the very most): counting for each
        // candidate is faster than sorting, and allocates nothing.
        let mut best = Slot::ZERO;
        for candidate in self.electors() {
            let slot = reached(candidate);
            if slot > best && self.is_quorum(|node| reached(node) >= slot) {
                best = slot;
            }
        }
        best
    }
}

/// The configurations that matter, by the slot from which each is in force.
///
/// All quorum questions go through here, so that a change of members is one more element and no
/// change in the protocol's code.
#[derive(Clone, Debug)]
pub struct Configurations {
    /// Sorted by slot; never empty.
    in_force_from: Vec<(Slot, Configuration)>,
}

impl Configurations {
    /// Starts with the configuration in force from the first slot.
    #[must_use]
    pub fn new(first: Configuration) -> Self {
        Self { in_force_from: alloc::vec![(Slot(1), first)] }
    }

    /// The configuration that decides `slot`.
    #[must_use]
    pub fn at(&self, slot: Slot) -> &Configuration {
        let after = self.in_force_from.partition_point(|(from, _)| *from <= slot);
        &self.in_force_from[after.max(1) - 1].1
    }

    /// The newest one, whether or not its first slot is reached.
    #[must_use]
    pub fn latest(&self) -> &Configuration {
        &self.in_force_from[self.in_force_from.len() - 1].1
    }

    /// Whether `has` makes a quorum in every configuration that decides a slot at or above `from`.
    pub fn is_quorum_from(&self, from: Slot, mut has: impl FnMut(NodeId) -> bool) -> bool {
        let first = self.in_force_from.partition_point(|(start, _)| *start <= from).max(1) - 1;
        self.in_force_from[first..]
            .iter()
            .all(|(_, configuration)| configuration.is_quorum(&mut has))
    }

    /// The largest slot above `commit` up to which every slot is accepted by a quorum of the
    /// configuration that decides it; `commit` if there is none.
    pub fn chosen_through(&self, commit: Slot, mut reached: impl FnMut(NodeId) -> Slot) -> Slot {
        let mut chosen = commit;
        let first =
            self.in_force_from.partition_point(|(start, _)| *start <= commit.next()).max(1) - 1;
        for index in first..self.in_force_from.len() {
            let end = self
                .in_force_from
                .get(index + 1)
                .map_or(Slot(u64::MAX), |(next, _)| next.previous());
            let slot = self.in_force_from[index].1.quorum_slot(&mut reached).min(end);
            if slot <= chosen {
                break;
            }
            chosen = slot;
            if chosen < end {
                break;
            }
        }
        chosen
    }
}

/// The founding document: written once, when all founding members are present and fresh, and the
/// same on each of them for ever. It makes "one cluster out of one bootstrap" a fact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// Random; a link or a data directory of another cluster is refused by it.
    pub cluster: u64,
    /// The first configuration: id 1, voters only.
    pub configuration: Configuration,
}

impl Genesis {
    /// Little endian: version u16 = 1, count u16, cluster u64, then node u16 + incarnation u64 for
    /// each voter.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(12 + 10 * self.configuration.voters.len());
        out.put_u16_le(1);
        out.put_u16_le(self.configuration.voters.len() as u16);
        out.put_u64_le(self.cluster);
        for member in &self.configuration.voters {
            out.put_u16_le(member.node.0);
            out.put_u64_le(member.incarnation.0);
        }
        out.into()
    }

    /// The inverse of [`Genesis::encode`]; none for anything else.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 12 || bytes.get_u16_le() != 1 {
            return None;
        }
        let count = usize::from(bytes.get_u16_le());
        let cluster = bytes.get_u64_le();
        if count == 0 || bytes.len() != count * 10 {
            return None;
        }
        let mut voters = Vec::with_capacity(count);
        for _ in 0..count {
            let node = NodeId(bytes.get_u16_le());
            voters.push(Member { node, incarnation: Incarnation(bytes.get_u64_le()) });
        }
        let sorted = voters.windows(2).all(|pair| pair[0].node < pair[1].node);
        (sorted && voters[0].node != NodeId(0))
            .then(|| Self { cluster, configuration: Configuration::of_voters(1, voters) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn of(count: u16) -> Configuration {
        let member =
            |node| Member { node: NodeId(node), incarnation: Incarnation(u64::from(node)) };
        Configuration::of_voters(1, (1..=count).map(member).collect())
    }

    #[test]
    fn majorities_intersect() {
        for count in 1..=9u16 {
            let configuration = of(count);
            assert!(2 * configuration.quorum() > usize::from(count));
            assert_eq!(configuration.quorum(), usize::from(count) / 2 + 1);
        }
    }

    #[test]
    fn quorum_slot_is_the_majority_th_largest() {
        let reached = [7u64, 3, 9, 1, 5];
        let slot = of(5).quorum_slot(|node| Slot(reached[usize::from(node.0) - 1]));
        assert_eq!(slot, Slot(5));
        assert_eq!(of(3).quorum_slot(|node| Slot(reached[usize::from(node.0) - 1])), Slot(7));
        assert_eq!(of(2).quorum_slot(|node| Slot(reached[usize::from(node.0) - 1])), Slot(3));
        assert_eq!(of(1).quorum_slot(|_| Slot(4)), Slot(4));
    }

    #[test]
    fn each_slot_is_decided_by_the_configuration_in_force_there() {
        let configurations =
            Configurations { in_force_from: vec![(Slot(1), of(3)), (Slot(11), of(5))] };
        assert_eq!(configurations.at(Slot(10)).voters.len(), 3);
        assert_eq!(configurations.at(Slot(11)).voters.len(), 5);
        // Nodes 1 and 2 are far ahead: enough for the three, not for the five.
        let two = |node: NodeId| if node.0 <= 2 { Slot(20) } else { Slot(4) };
        assert_eq!(configurations.chosen_through(Slot(3), two), Slot(10));
        let three = |node: NodeId| if node.0 <= 3 { Slot(20) } else { Slot(4) };
        assert_eq!(configurations.chosen_through(Slot(3), three), Slot(20));
        assert!(!configurations.is_quorum_from(Slot(5), |node| node.0 <= 2));
        assert!(configurations.is_quorum_from(Slot(5), |node| node.0 <= 3));
    }

    #[test]
    fn genesis_survives_the_wire_and_rejects_noise() {
        let genesis = Genesis { cluster: 77, configuration: of(3) };
        let bytes = genesis.encode();
        assert_eq!(Genesis::decode(&bytes), Some(genesis));
        for cut in 0..bytes.len() {
            assert_eq!(Genesis::decode(&bytes[..cut]), None);
        }
    }
}
