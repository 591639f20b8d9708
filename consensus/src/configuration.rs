//! Who decides: [`Configuration`] and the quorums it asks for, [`Configurations`], who decides which
//! slot, and [`Genesis`], the first one.

mod codec;

pub(crate) use codec::crc32c;

use crate::mutant::planted;
use crate::{Incarnation, Mutant, NodeId, Slot, ensures, invariant};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::{Buf, BufMut, Bytes};

/// One member of a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Default, Hash)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// The life of its disk that this configuration names. A replica with the same number and
    /// another incarnation has lost what it promised, and is another voter. 0 for a learner whose
    /// disk is not known yet: nothing of a learner is counted.
    pub incarnation: Incarnation,
}

/// Where a member is reached. The core only passes it on.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Which member.
    pub node: NodeId,
    /// For its peers, `HOST:PORT`.
    pub peer: String,
    /// For clients, `HOST:PORT`; empty if it serves none.
    pub client: String,
}

/// Sizes of quorums other than majorities. Any quorum of phase 1 must meet any of phase 2 (Howard,
/// Malkhi, Spiegelman, "Flexible Paxos", 2016).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct QuorumSizes {
    /// Promises that a candidate needs.
    pub phase_one: u16,
    /// Votes that choose a slot.
    pub phase_two: u16,
}

/// The version of the protocol that a cluster begins with, and that every program speaks.
pub const PROTOCOL_FIRST: u16 = 1;
/// The newest version of the protocol that becomes active by itself (rule V2). 2: configurations say which
/// version is active. A later one goes through it: what is new must not be sent, or written to the log,
/// before [`Configuration::protocol`] allows it.
pub const PROTOCOL_RISES_TO: u16 = 2;
/// The version that knows witnesses. It becomes active with the first of them, so that a cluster without
/// any can go back to an older program.
pub const PROTOCOL_WITNESSES: u16 = 3;
/// The newest version of the protocol that this program speaks.
pub const PROTOCOL_NEWEST: u16 = PROTOCOL_WITNESSES;

/// A set of members, in force from a slot on.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Configuration {
    /// Grows by one with each change; the first is 1.
    pub id: u64,
    /// The switch to this configuration is known to be chosen: those who are not in it are needed no
    /// more.
    pub settled: bool,
    /// Members whose votes count, sorted by node.
    pub voters: Vec<Member>,
    /// Members that receive the log and do not vote, sorted by node.
    pub learners: Vec<Member>,
    /// Members that vote without keeping payloads, sorted by node.
    pub witnesses: Vec<Member>,
    /// Majorities if none.
    pub quorums: Option<QuorumSizes>,
    /// How many voters must hold what is chosen (rule W1); 0 where there are no witnesses.
    pub copies: u16,
    /// The version of the protocol that is spoken from here on (rule V2): all members could when it was
    /// proposed.
    pub protocol: u16,
    /// Where members are reached, sorted by node; those that are missing are reached as each
    /// replica was told at its start.
    pub addresses: Vec<Address>,
}

/// Why a configuration makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigurationError {
    /// Nobody votes.
    NoVoters,
    /// A node is named twice, or is 0, or the lists are not sorted.
    Members,
    /// Quorums of phase 1 and phase 2 need not meet, or are larger than the set of voters.
    Quorums(QuorumSizes),
    /// Not fewer witnesses than voters, copies that no voters could hold, witnesses under a version of the
    /// protocol that has none, or copies without witnesses.
    Witnesses,
    /// More members than [`Configuration::MEMBERS_MAX`], or an address too long.
    TooLarge,
}

impl Configuration {
    /// Members of all kinds together.
    pub const MEMBERS_MAX: usize = 64;

    /// A configuration of voters only.
    #[must_use]
    pub fn of_voters(id: u64, mut voters: Vec<Member>) -> Self {
        voters.sort_unstable();
        voters.dedup_by_key(|member| member.node);
        Self {
            id,
            settled: true,
            voters,
            learners: Vec::new(),
            witnesses: Vec::new(),
            quorums: None,
            copies: 0,
            protocol: PROTOCOL_FIRST,
            addresses: Vec::new(),
        }
    }

    /// How many votes choose a slot.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.quorums.map_or(self.majority(), |sizes| usize::from(sizes.phase_two))
    }

    /// How many promises make a leader.
    #[must_use]
    pub fn election_quorum(&self) -> usize {
        self.quorums.map_or(self.majority(), |sizes| usize::from(sizes.phase_one))
    }

    fn majority(&self) -> usize {
        (self.voters.len() + self.witnesses.len()) / 2 + 1
    }

    /// Everyone whose vote counts.
    pub fn electors(&self) -> impl Iterator<Item = Member> + '_ {
        self.voters.iter().chain(&self.witnesses).copied()
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

    /// Whether `node` is a member of any kind, whatever its disk.
    #[must_use]
    pub fn names(&self, node: NodeId) -> bool {
        self.members().any(|member| member.node == node)
    }

    /// Where `node` is reached, if this configuration says so.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<&Address> {
        self.addresses.iter().find(|address| address.node == node)
    }

    /// Rule W1: whether the members for which `has` answers yes choose a slot.
    pub fn is_quorum(&self, mut has: impl FnMut(Member) -> bool) -> bool {
        self.confirms(&mut has) && self.has_copies(has)
    }

    /// Whether they meet every set that makes a leader.
    pub fn confirms(&self, mut has: impl FnMut(Member) -> bool) -> bool {
        self.electors().filter(|&member| has(member)).count() >= self.quorum()
    }

    /// Rule W1: whether enough of those that keep payloads are among them.
    fn has_copies(&self, mut has: impl FnMut(Member) -> bool) -> bool {
        self.witnesses.is_empty()
            || self.voters.iter().filter(|member| has(**member)).count() >= self.copies.into()
    }

    /// Rule W4: whether so many voters are among those for which `has` answers yes that each set of
    /// [`Configuration::copies`] others has one of them.
    pub fn meets_copies(&self, mut has: impl FnMut(Member) -> bool) -> bool {
        self.witnesses.is_empty()
            || self.voters.iter().filter(|member| !has(**member)).count() < self.copies.into()
    }

    /// Whether the members for which `has` answers yes make a leader.
    pub fn is_election_quorum(&self, mut has: impl FnMut(Member) -> bool) -> bool {
        self.electors().filter(|&member| has(member)).count() >= self.election_quorum()
    }

    /// The largest slot that a quorum has reached, where `reached` tells how far each is.
    pub fn quorum_slot(&self, mut reached: impl FnMut(Member) -> Slot) -> Slot {
        // Clusters have up to nine electors (a dozen at the very most): counting for each
        // candidate is faster than sorting, and allocates nothing.
        let mut best = Slot::ZERO;
        for candidate in self.electors() {
            let slot = reached(candidate);
            if slot > best && self.is_quorum(|member| reached(member) >= slot) {
                best = slot;
            }
        }
        best
    }

    /// Whether the same votes decide under both.
    #[must_use]
    pub fn decides_like(&self, other: &Self) -> bool {
        (&self.voters, &self.witnesses, self.quorums, self.copies)
            == (&other.voters, &other.witnesses, other.quorums, other.copies)
    }

    /// Rule C9, and that nobody is named twice.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn check(&self) -> Result<(), ConfigurationError> {
        if self.voters.is_empty() {
            return Err(ConfigurationError::NoVoters);
        }
        let electors = self.voters.len() + self.witnesses.len();
        let count = electors + self.learners.len();
        let long = |text: &String| text.len() > Self::ADDRESS_BYTES_MAX;
        let long = |address: &Address| long(&address.peer) || long(&address.client);
        if count > Self::MEMBERS_MAX
            || self.addresses.len() > Self::MEMBERS_MAX
            || self.addresses.iter().any(long)
        {
            return Err(ConfigurationError::TooLarge);
        }
        let sorted = |list: &[Member]| list.windows(2).all(|pair| pair[0].node < pair[1].node);
        let mut nodes: Vec<NodeId> = self.members().map(|member| member.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let lists = [&self.voters, &self.learners, &self.witnesses];
        if nodes.len() != count
            || nodes.first() == Some(&NodeId(0))
            || !lists.into_iter().all(|list| sorted(list))
            || !self.addresses.windows(2).all(|pair| pair[0].node < pair[1].node)
        {
            return Err(ConfigurationError::Members);
        }
        let some = !self.witnesses.is_empty();
        let copies = usize::from(self.copies);
        if some != (copies > 0)
            || some && self.protocol < PROTOCOL_WITNESSES
            || self.witnesses.len() >= self.voters.len()
            || copies > self.voters.len()
        {
            return Err(ConfigurationError::Witnesses);
        }
        if let Some(sizes) = self.quorums {
            let (one, two) = (usize::from(sizes.phase_one), usize::from(sizes.phase_two));
            if one == 0
                || two == 0
                || one > electors
                || two > electors
                || one + two <= electors && !planted(Mutant::QuorumsNeedNotMeet)
            {
                return Err(ConfigurationError::Quorums(sizes));
            }
        }
        Ok(())
    }

    /// Bytes of an address at the most: a DNS name has up to 253, and a port follows.
    pub const ADDRESS_BYTES_MAX: usize = 320;
}

impl core::fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoVoters => f.write_str("a configuration needs at least one voter"),
            Self::Members => f.write_str("a member is named twice, or has the number 0"),
            Self::Quorums(QuorumSizes { phase_one, phase_two }) => write!(
                f,
                "quorums of {phase_one} (elections) and {phase_two} (writes) need not meet: together \
                 they must be more than the voters, and neither may be larger"
            ),
            Self::Witnesses => f.write_str(
                "there must be fewer witnesses than voters, and 1 or more copies of what is written, at \
                 most one on each voter (without witnesses it is the quorum that counts)",
            ),
            Self::TooLarge => f.write_str("too many members, or an address is too long"),
        }
    }
}

/// The configurations that matter, by the slot from which each is in force.
///
/// All quorum questions go through here. The first one is in force at the commit slot and certain;
/// later ones are as certain as the entries that name them (rule C1).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
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

    /// Where in the list the configuration that decides `slot` stands.
    fn place(&self, slot: Slot) -> usize {
        self.in_force_from.partition_point(|(from, _)| *from <= slot).max(1) - 1
    }

    /// The configuration that decides `slot`.
    #[must_use]
    pub fn at(&self, slot: Slot) -> &Configuration {
        &self.in_force_from[self.place(slot)].1
    }

    /// The newest one, whether or not its first slot is reached.
    #[must_use]
    pub fn latest(&self) -> &Configuration {
        &self.in_force_from[self.in_force_from.len() - 1].1
    }

    /// The slot that the newest one stands in: it decides those behind it.
    #[must_use]
    pub fn latest_slot(&self) -> Slot {
        self.in_force_from[self.in_force_from.len() - 1].0.previous()
    }

    /// Each with the slot that it stands in, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Slot, &Configuration)> + '_ {
        self.in_force_from.iter().map(|(from, configuration)| (from.previous(), configuration))
    }

    /// Those that decide a slot at or above `from`.
    pub fn deciding(&self, from: Slot) -> impl Iterator<Item = &Configuration> + '_ {
        self.in_force_from[self.place(from)..].iter().map(|(_, configuration)| configuration)
    }

    /// Rule C1: `slot` holds this configuration now, or a value that is none. Returns whether
    /// anything changed.
    pub fn note(&mut self, slot: Slot, configuration: Option<Configuration>) -> bool {
        invariant!(
            checked,
            C1,
            self.in_force_from.is_sorted_by(|(one, _), (other, _)| one < other),
            "each slot is decided by one configuration"
        );
        let late = planted(Mutant::ConfigurationLate);
        let from = if late { slot.next().next() } else { slot.next() };
        let place = self.in_force_from.partition_point(|(start, _)| *start < from);
        let stands = self.in_force_from.get(place).is_some_and(|(start, _)| *start == from);
        match configuration {
            Some(configuration) if stands && self.in_force_from[place].1 == configuration => false,
            Some(configuration) if stands => {
                self.in_force_from[place].1 = configuration;
                true
            }
            Some(configuration) => {
                self.in_force_from.insert(place, (from, configuration));
                true
            }
            // The first one stays whatever is said: something has to decide.
            None if stands && self.in_force_from.len() > 1 => {
                self.in_force_from.remove(place);
                true
            }
            None => false,
        }
    }

    /// Nothing stands at or above `slot` any more. Returns whether anything changed.
    pub fn truncate(&mut self, slot: Slot) -> bool {
        let keep = self.in_force_from.partition_point(|(from, _)| *from <= slot).max(1);
        let before = self.in_force_from.len();
        self.in_force_from.truncate(keep);
        keep < before
    }

    /// Forgets those that decide nothing above `slot`.
    pub fn forget_below(&mut self, slot: Slot) {
        let first = self.place(slot.next());
        self.in_force_from.drain(..first);
    }

    /// Those that stand at or below `slot`: what a checkpoint of this slot, or a restart from it, needs.
    #[must_use]
    pub fn as_of(&self, slot: Slot) -> Self {
        let mut known = self.clone();
        known.truncate(slot.next());
        known.forget_below(slot);
        known
    }

    /// Whether `has` makes a leader in every configuration that decides a slot at or above `from`.
    pub fn is_quorum_from(&self, from: Slot, mut has: impl FnMut(Member) -> bool) -> bool {
        self.deciding(from).all(|configuration| configuration.is_election_quorum(&mut has))
    }

    /// Whether `has` meets all that makes a leader in every configuration that decides a slot at or above
    /// `from`. Without witnesses it could choose a slot, too.
    pub fn is_commit_quorum_from(&self, from: Slot, mut has: impl FnMut(Member) -> bool) -> bool {
        self.deciding(from).all(|configuration| configuration.confirms(&mut has))
    }

    /// The largest slot above `commit` up to which every slot is accepted by a quorum of the
    /// configuration that decides it (rule C2); `commit` if there is none.
    pub fn chosen_through(&self, commit: Slot, mut reached: impl FnMut(Member) -> Slot) -> Slot {
        let mut chosen = commit;
        let first = self.place(commit.next());
        for index in first..self.in_force_from.len() {
            let own = !planted(Mutant::SwitchNotByOwnMembers);
            let end = self
                .in_force_from
                .get(index + 1)
                .filter(|_| own)
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
        ensures!(checked, C2, chosen >= commit, "what is known chosen stays so");
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
    /// The cluster that this one was recovered from, after its majority was lost (rule F7).
    pub recovered_from: Option<u64>,
}

impl Genesis {
    /// Little endian: version u16 = 1, count u16, cluster u64, then node u16 + incarnation u64 for
    /// each voter. Of a recovered cluster: version 2, and behind the cluster the one that was lost,
    /// u64.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(20 + 10 * self.configuration.voters.len());
        out.put_u16_le(if self.recovered_from.is_some() { 2 } else { 1 });
        out.put_u16_le(self.configuration.voters.len() as u16);
        out.put_u64_le(self.cluster);
        if let Some(lost) = self.recovered_from {
            out.put_u64_le(lost);
        }
        for member in &self.configuration.voters {
            out.put_u16_le(member.node.0);
            out.put_u64_le(member.incarnation.0);
        }
        out.into()
    }

    /// The inverse of [`Genesis::encode`]; none for anything else.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 12 {
            return None;
        }
        let version = bytes.get_u16_le();
        let count = usize::from(bytes.get_u16_le());
        let cluster = bytes.get_u64_le();
        let recovered_from = match version {
            1 => None,
            2 => Some(bytes.try_get_u64_le().ok()?),
            _ => return None,
        };
        if count == 0 || bytes.len() != count * 10 {
            return None;
        }
        let mut voters = Vec::with_capacity(count);
        for _ in 0..count {
            let node = NodeId(bytes.get_u16_le());
            voters.push(Member { node, incarnation: Incarnation(bytes.get_u64_le()) });
        }
        let sorted = voters.windows(2).all(|pair| pair[0].node < pair[1].node);
        (sorted && voters[0].node != NodeId(0)).then(|| Self {
            cluster,
            configuration: Configuration::of_voters(1, voters),
            recovered_from,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::vec;

    pub(crate) fn of(count: u16) -> Configuration {
        let member =
            |node| Member { node: NodeId(node), incarnation: Incarnation(u64::from(node)) };
        Configuration::of_voters(1, (1..=count).map(member).collect())
    }

    fn slot_of(reached: &[u64; 5]) -> impl Fn(Member) -> Slot + '_ {
        |member| Slot(reached[usize::from(member.node.0) - 1])
    }

    // Rule W1.
    #[test]
    fn a_witness_counts_as_a_vote_and_not_as_a_copy() {
        let mut known = of(3);
        known.witnesses = known.voters.split_off(2);
        assert_eq!(known.check(), Err(ConfigurationError::Witnesses), "no copies, no version");
        known.protocol = PROTOCOL_WITNESSES;
        known.copies = 2;
        assert_eq!(known.check(), Ok(()));
        for wrong in [0, 3] {
            let wrong = Configuration { copies: wrong, ..known.clone() };
            assert_eq!(wrong.check(), Err(ConfigurationError::Witnesses));
        }
        let one = |node: u16| move |member: Member| member.node == NodeId(node);
        let without = |node: u16| move |member: Member| member.node != NodeId(node);
        assert!(known.is_election_quorum(without(1)) && known.confirms(without(2)));
        assert!(!known.is_quorum(without(1)) && known.is_quorum(without(3)));
        assert!(known.meets_copies(one(1)) && !known.meets_copies(one(3)));
        known.copies = 1;
        assert!(known.is_quorum(without(1)) && known.is_quorum(without(3)));
        assert!(!known.meets_copies(one(1)) && known.meets_copies(without(3)));
        // Votes are cumulative: the slot that enough have, and enough of those that keep it.
        let reached = [7, 4, 9, 0, 0];
        assert_eq!(known.quorum_slot(slot_of(&reached)), Slot(7));
        known.copies = 2;
        assert_eq!(known.quorum_slot(slot_of(&reached)), Slot(4));
        let alone = Configuration { voters: known.voters[..1].to_vec(), copies: 1, ..known };
        assert_eq!(alone.check(), Err(ConfigurationError::Witnesses), "as many as voters");
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
        let slot = of(5).quorum_slot(slot_of(&reached));
        assert_eq!(slot, Slot(5));
        assert_eq!(of(3).quorum_slot(slot_of(&reached)), Slot(7));
        assert_eq!(of(2).quorum_slot(slot_of(&reached)), Slot(3));
        assert_eq!(of(1).quorum_slot(|_| Slot(4)), Slot(4));
    }

    #[test]
    fn each_slot_is_decided_by_the_configuration_in_force_there() {
        let configurations =
            Configurations { in_force_from: vec![(Slot(1), of(3)), (Slot(11), of(5))] };
        assert_eq!(configurations.at(Slot(10)).voters.len(), 3);
        assert_eq!(configurations.at(Slot(11)).voters.len(), 5);
        // Nodes 1 and 2 are far ahead: enough for the three, not for the five.
        let two = |member: Member| if member.node.0 <= 2 { Slot(20) } else { Slot(4) };
        assert_eq!(configurations.chosen_through(Slot(3), two), Slot(10));
        let three = |member: Member| if member.node.0 <= 3 { Slot(20) } else { Slot(4) };
        assert_eq!(configurations.chosen_through(Slot(3), three), Slot(20));
        assert!(!configurations.is_quorum_from(Slot(5), |member| member.node.0 <= 2));
        assert!(configurations.is_quorum_from(Slot(5), |member| member.node.0 <= 3));
    }

    #[test]
    fn a_voter_is_counted_for_the_life_of_the_disk_that_is_named() {
        let mut configuration = of(3);
        let lives = |member: Member| member.incarnation.0 < 10 && member.node.0 <= 2;
        assert!(configuration.is_quorum(lives));
        configuration.voters[1].incarnation = Incarnation(12);
        assert!(!configuration.is_quorum(lives));
    }

    #[test]
    fn a_configuration_is_noted_replaced_and_forgotten() {
        let mut known = Configurations::new(of(3));
        assert!(known.note(Slot(5), Some(of(5))));
        assert!(!known.note(Slot(5), Some(of(5))));
        assert_eq!((known.at(Slot(5)).voters.len(), known.at(Slot(6)).voters.len()), (3, 5));
        assert!(known.note(Slot(7), Some(of(1))));
        assert_eq!(known.as_of(Slot(6)).latest().voters.len(), 5);
        assert_eq!(known.as_of(Slot(4)).latest().voters.len(), 3);
        assert!(known.note(Slot(5), None) && !known.note(Slot(6), None));
        assert_eq!(known.at(Slot(7)).voters.len(), 3);
        assert!(!known.truncate(Slot(8)) && known.truncate(Slot(7)));
        assert_eq!(known, Configurations::new(of(3)));
        known.note(Slot(9), Some(of(2)));
        known.forget_below(Slot(9));
        assert_eq!((known.iter().count(), known.latest_slot()), (1, Slot(9)));
        // Whatever is said of its slot, the last one that is known stays.
        assert!(!known.note(Slot(9), None) && !known.truncate(Slot(1)));
    }

    #[test]
    fn quorums_that_need_not_meet_are_refused() {
        let mut configuration = of(5);
        let sizes = |phase_one, phase_two| Some(QuorumSizes { phase_one, phase_two });
        for one in 0..=6 {
            for two in 0..=6 {
                configuration.quorums = sizes(one, two);
                let meet = (1..=5).contains(&one) && (1..=5).contains(&two) && one + two > 5;
                assert_eq!(configuration.check().is_ok(), meet, "{one} and {two}");
            }
        }
        configuration.quorums = sizes(4, 2);
        assert!(configuration.is_quorum(|member| member.node.0 <= 2));
        assert!(!configuration.is_election_quorum(|member| member.node.0 <= 3));
        configuration.quorums = None;
        configuration.learners = vec![configuration.voters[2]];
        assert_eq!(configuration.check(), Err(ConfigurationError::Members));
        configuration.learners.clear();
        configuration.voters.clear();
        assert_eq!(configuration.check(), Err(ConfigurationError::NoVoters));
    }

    #[test]
    fn genesis_survives_the_wire_and_rejects_noise() {
        for recovered_from in [None, Some(76)] {
            let genesis = Genesis { cluster: 77, configuration: of(3), recovered_from };
            let bytes = genesis.encode();
            assert_eq!(Genesis::decode(&bytes), Some(genesis));
            for cut in 0..bytes.len() {
                assert_eq!(Genesis::decode(&bytes[..cut]), None);
            }
        }
    }
}
