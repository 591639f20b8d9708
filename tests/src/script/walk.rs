//! Random walks: the cluster of the scripts driven by seeded chance, faults and all, then healed.
//!
//! Each seed draws which faults it has and how often (a swarm: no walk has all of them), walks, and
//! must then find a leader, have a fresh write applied by all members, and keep that leader. Who is a
//! member changes at random too: any set to any set.

use super::cluster::{Cluster, Options};
use super::replica::Replica;
use super::show;
use quorate_consensus::{
    Change, Configuration, Member, Nanos, NodeId, QuorumSizes, Slot, ValueKind,
};
use std::collections::BTreeMap;

/// Events of one walk.
const EVENTS: u32 = 600;
/// After healing, a leader must have a fresh write chosen within this time.
const HEAL_MAX: Nanos = Nanos::from_millis(5_000);

/// SplitMix64: enough for choosing events, and the same everywhere.
#[derive(Clone, Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        let index = usize::try_from(self.below(list.len() as u64)).ok()?;
        list.get(index).copied()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Deliver,
    Run,
    Tick,
    Propose,
    Read,
    Persist,
    HoldPersists,
    Crash,
    Restart,
    Disconnect,
    Connect,
    Isolate,
    Heal,
    Stall,
    Pause,
    Meddle,
    Ghost,
    Lose,
    Change,
}

/// What is always possible, and how often.
const ALWAYS: [(Event, u64); 5] = [
    (Event::Deliver, 60),
    (Event::Run, 12),
    (Event::Tick, 8),
    (Event::Propose, 12),
    (Event::Read, 4),
];

/// Faults: each seed has about half of them, with their remedies.
const FAULTS: [(&[Event], u64); 9] = [
    (&[Event::Persist, Event::Persist, Event::Persist, Event::HoldPersists], 3),
    (&[Event::Crash, Event::Restart, Event::Restart], 1),
    (&[Event::Disconnect, Event::Connect], 3),
    (&[Event::Isolate, Event::Heal], 1),
    (&[Event::Stall], 4),
    (&[Event::Pause], 2),
    (&[Event::Meddle, Event::Ghost], 4),
    (&[Event::Lose], 1),
    (&[Event::Change], 4),
];

/// What became of one walk.
#[derive(Clone, Debug, Default)]
pub struct Walked {
    /// What was wrong; nothing if all was well.
    pub wrong: Vec<String>,
    /// How many control messages of each kind were delivered.
    pub delivered: BTreeMap<&'static str, u64>,
    /// Members were lost while a change that needs them was under way: no recovery was asked for.
    pub stuck: bool,
    /// How many slots were chosen.
    pub chosen: u64,
    /// How many changes of members were proposed.
    pub changes: u64,
    /// The number of the configuration at the end: how many changes were chosen, and one.
    pub configuration: u64,
}

/// One walk.
#[derive(Debug)]
struct Walk {
    cluster: Cluster,
    chance: Chance,
    weights: Vec<(Event, u64)>,
    proposals: u64,
    changes: u64,
    /// Those whose disk is lost or failed: never so many that a configuration lacks a quorum.
    lost: Vec<Member>,
    /// Those whose log is damaged and not repaired yet: the same.
    damaged: Vec<Member>,
}

/// Walks by `seed`. With `aloud`, the trace is written to standard error as it comes.
#[must_use]
pub fn walk(seed: u64, aloud: bool) -> Walked {
    go(Walk::new(seed), aloud)
}

/// One with witnesses among the members.
#[must_use]
pub fn walk_with_witnesses(seed: u64, aloud: bool) -> Walked {
    go(Walk::with_witnesses(seed), aloud)
}

fn go(mut walk: Walk, aloud: bool) -> Walked {
    walk.cluster.set_chatty(aloud);
    walk.cluster.set_aloud(aloud);
    let mut walked = Walked::default();
    for _ in 0..EVENTS {
        walk.step();
        walked.wrong = walk.cluster.take_violations();
        if !walked.wrong.is_empty() {
            break;
        }
    }
    // A change may name a disk that was lost in the moment before: nothing helps then, but that disk.
    walk.forget_repaired();
    walked.stuck = !walk.may_lose(None);
    if walked.wrong.is_empty() && !walked.stuck {
        walk.heal();
        walked.wrong = walk.recovers().err().into_iter().collect();
        walked.wrong.extend(walk.cluster.take_violations());
    }
    walked.delivered = walk.cluster.delivered().clone();
    walked.changes = walk.changes;
    walked.configuration = walk.cluster.ledger().configuration().id;
    walked.chosen = walk.cluster.ledger().chosen().len() as u64;
    walked
}

impl Walk {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let options = Options::new([3, 3, 5, 5, 2, 4][chance.below(6) as usize]);
        Self::of(seed, chance, options)
    }

    fn with_witnesses(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let mut options = Options::new([2, 2, 3, 3, 4][chance.below(5) as usize]);
        options.witnesses = 1 + chance.below(u64::from(options.nodes) - 1) as u16;
        options.copies = 1 + chance.below(u64::from(options.nodes)) as u16;
        options.spare_witnesses = chance.below(2) as u16;
        Self::of(seed, chance, options)
    }

    fn of(seed: u64, mut chance: Chance, mut options: Options) -> Self {
        options.seed = Some(seed);
        options.spares = [0, 1, 2, 3][chance.below(4) as usize];
        // Small memories and small messages: catching up takes several steps.
        options.cache_bytes_max = [8, 64, 1 << 20][chance.below(3) as usize];
        options.catch_up_bytes = [40, 200, 1 << 16][chance.below(3) as usize];
        options.window_slots_max = [4, 1024][chance.below(2) as usize];
        options.record_bytes = [1, 4096][chance.below(2) as usize];
        options.rows_max = [1, 3][chance.below(2) as usize];
        options.quiet_after = [0, 2][chance.below(2) as usize];
        options.lease = Nanos::from_millis([0, 200][chance.below(2) as usize]);
        let mut weights = ALWAYS.to_vec();
        for (events, weight) in FAULTS {
            if chance.below(2) == 0 {
                weights.extend(events.iter().map(|event| (*event, weight)));
            }
        }
        let cluster = Cluster::new(&options);
        let (lost, damaged) = (Vec::new(), Vec::new());
        Self { cluster, chance, weights, proposals: 0, changes: 0, lost, damaged }
    }

    fn any_node(&mut self) -> NodeId {
        let nodes = self.cluster.nodes();
        self.chance.one_of(&nodes).unwrap_or_default()
    }

    fn any_pair(&mut self) -> (NodeId, NodeId) {
        let pairs: Vec<_> = self.cluster.network().pairs().collect();
        self.chance.one_of(&pairs).unwrap_or_default()
    }

    fn step(&mut self) {
        let total = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.chance.below(total);
        let mut event = Event::Deliver;
        for (candidate, weight) in &self.weights {
            if left < *weight {
                event = *candidate;
                break;
            }
            left -= weight;
        }
        self.cluster.chat(|| format!("# {event:?}"));
        self.carry_out(event);
    }

    fn carry_out(&mut self, event: Event) {
        match event {
            Event::Deliver => self.deliver(),
            Event::Run => {
                let time = [1, 10, 50, 150][self.chance.below(4) as usize];
                self.cluster.run(Nanos::from_millis(time));
            }
            Event::Tick => {
                let time = [1, 5, 25, 200][self.chance.below(4) as usize];
                let some = self.chance.next();
                let mut nodes = self.cluster.nodes();
                nodes.retain(|node| some >> node.0 & 1 == 1);
                self.cluster.tick(Nanos::from_millis(time), &nodes);
            }
            Event::Propose => self.propose(),
            Event::Change => self.change(),
            Event::Read => {
                let node = self.any_node();
                self.cluster.read(node);
            }
            Event::Persist => {
                let node = self.any_node();
                let count = self.chance.below(4) as usize + 1;
                self.cluster.persist(node, count);
            }
            Event::HoldPersists => {
                let node = self.any_node();
                let holds = self.chance.below(2) == 0;
                self.hold_persists(node, holds);
            }
            Event::Crash | Event::Restart | Event::Pause | Event::Lose => self.process(event),
            _ => self.network(event),
        }
    }

    fn deliver(&mut self) {
        for _ in 0..=self.chance.below(6) {
            let able: Vec<_> = self.cluster.network().deliverable().collect();
            let Some((_, from, to, lane)) = self.chance.one_of(&able) else { return };
            self.cluster.deliver(from, to, lane);
        }
    }

    fn propose(&mut self) {
        let leaders = self.cluster.leaders();
        let Some(leader) = self.chance.one_of(&leaders) else { return };
        for _ in 0..=self.chance.below(3) {
            self.proposals += 1;
            let text = format!("v{}", self.proposals);
            self.cluster.propose(leader, &text);
        }
    }

    /// A random set of members, some of them with other disks than before, some as learners only.
    fn change(&mut self) {
        let leaders = self.cluster.leaders();
        let Some(leader) = self.chance.one_of(&leaders) else { return };
        self.forget_repaired();
        if !self.damaged.is_empty() {
            // It might make the one that has no vote at present indispensable.
            return;
        }
        let mut change = Change::default();
        let voters = self.chance.below(5) + 1;
        for node in self.cluster.nodes() {
            let is_witness =
                self.cluster.replica(node).is_some_and(|replica| replica.settings.witness);
            if is_witness {
                match self.chance.below(8) {
                    0..=4 => change.witnesses.push(node),
                    5 => change.learners.push(node),
                    _ => {}
                }
                continue;
            }
            match self.chance.below(8) {
                0..=4 if (change.voters.len() as u64) < voters => change.voters.push(node),
                5 => change.learners.push(node),
                _ => {}
            }
        }
        change.witnesses.truncate(change.voters.len().saturating_sub(1));
        if !change.witnesses.is_empty() {
            let copies = self.chance.below(change.voters.len() as u64 + 1) as u16;
            change.copies = Some(copies).filter(|copies| *copies > 0);
        }
        let electors = (change.voters.len() + change.witnesses.len()) as u64;
        if electors > 0 && self.chance.below(4) == 0 {
            let phase_two = self.chance.below(electors) + 1;
            let phase_one = electors + 1 - phase_two + self.chance.below(phase_two);
            change.quorums =
                Some(QuorumSizes { phase_one: phase_one as u16, phase_two: phase_two as u16 });
        }
        change.readmit = self.lost.iter().map(|member| member.node).collect();
        self.changes += u64::from(self.cluster.change(leader, &change));
    }

    /// What is repaired may be lost again.
    fn forget_repaired(&mut self) {
        let cluster = &self.cluster;
        self.damaged.retain(|member| {
            cluster.replica(member.node).is_some_and(|replica| replica.disk.repair.is_some())
        });
    }

    /// Whether every configuration that may still decide something has a quorum without those that are
    /// lost already, and without `member`: the last one that is chosen and settled, and what anyone
    /// accepted behind it. A disk that forgot knows older ones, which decide nothing any more.
    fn may_lose(&self, member: Option<Member>) -> bool {
        let settled = self.cluster.ledger().settled_at();
        let mut known = vec![self.cluster.ledger().configuration_at(settled.next())];
        let nodes = self.cluster.nodes();
        for replica in nodes.iter().filter_map(|node| self.cluster.replica(*node)) {
            let entries = replica.disk.log.range(settled.next()..).map(|(_, entry)| &entry.value);
            let entries = entries.filter(|value| value.kind == ValueKind::Configuration);
            known.extend(entries.filter_map(|value| Configuration::decode(&value.bytes)));
            if let Some(core) = replica.core() {
                let newer = core.configurations().iter().filter(|(slot, _)| *slot > settled);
                known.extend(newer.map(|(_, known)| known.clone()));
            }
        }
        let gone = |other| self.lost.contains(&other) || self.damaged.contains(&other);
        let stays = |other: Member| Some(other) != member && !gone(other);
        // The last copy of what was chosen must not go either.
        let goes_on = |known: &Configuration| {
            known.is_quorum(stays) && known.is_election_quorum(stays) && known.meets_copies(stays)
        };
        known.iter().all(goes_on)
    }

    fn hold_persists(&mut self, node: NodeId, holds: bool) {
        if let Some(replica) = self.cluster.replica_mut(node) {
            replica.holds_persists = holds;
        }
        if !holds {
            self.cluster.persist(node, usize::MAX);
        }
    }

    fn process(&mut self, event: Event) {
        let node = self.any_node();
        let member = self.cluster.replica(node).map(Replica::member).unwrap_or_default();
        self.forget_repaired();
        match event {
            Event::Crash => self.cluster.crash(node),
            Event::Restart => {
                // The log's newest records may carry an older commit slot than was known.
                let commit = Slot(self.chance.below(40));
                let known = self.chance.below(2) == 0;
                self.cluster.restart(node, if known { Slot(u64::MAX) } else { commit });
            }
            Event::Pause => {
                let pauses = self.chance.below(3) == 0;
                self.pause(node, pauses);
            }
            _ if self.chance.below(3) > 0 || self.lost.contains(&member) => {}
            _ if self.damaged.contains(&member) || !self.may_lose(Some(member)) => {}
            _ if self.chance.below(2) == 0 => {
                self.damaged.push(member);
                self.cluster.crash(node);
                let exact = self.chance.below(2) == 0;
                if let Some(replica) = self.cluster.replica_mut(node) {
                    let slots: Vec<Slot> = replica.disk.log.keys().copied().collect();
                    // The newest ones are the ones that matter.
                    let newest = &slots[slots.len().saturating_sub(6)..];
                    if let Some(slot) = self.chance.one_of(newest) {
                        replica.damage(slot, exact);
                    }
                }
                self.cluster.restart(node, Slot(u64::MAX));
            }
            _ => {
                self.lost.push(member);
                if self.chance.below(2) == 0 {
                    self.cluster.poison(node);
                } else {
                    self.cluster.crash(node);
                    if let Some(replica) = self.cluster.replica_mut(node) {
                        replica.wipe();
                    }
                    self.cluster.restart(node, Slot::ZERO);
                }
            }
        }
    }

    fn pause(&mut self, node: NodeId, pauses: bool) {
        if let Some(replica) = self.cluster.replica_mut(node) {
            replica.paused = pauses;
        }
        if !pauses {
            self.cluster.event(node, |_, _| ());
        }
    }

    fn network(&mut self, event: Event) {
        let (from, to) = self.any_pair();
        match event {
            Event::Disconnect => self.cluster.set_link(from, to, false),
            Event::Connect => self.cluster.set_link(from, to, true),
            Event::Isolate => {
                for other in self.cluster.nodes() {
                    if other != from {
                        self.cluster.set_link(from, other, false);
                    }
                }
            }
            Event::Heal => self.connect_all(),
            Event::Stall => {
                let stalls = self.chance.below(3) == 0;
                self.cluster.stall(from, to, stalls);
            }
            Event::Ghost => {
                self.cluster.network_mut().raise_ghosts(from, to);
            }
            _ => self.meddle(from, to),
        }
    }

    /// Loses, doubles or delays one control message.
    fn meddle(&mut self, from: NodeId, to: NodeId) {
        let how = self.chance.below(3);
        let Some(lanes) = self.cluster.network_mut().lanes_mut(from, to) else { return };
        let length = lanes.control.len() as u64;
        let index = self.chance.below(length) as usize;
        let Some(lanes) = self.cluster.network_mut().lanes_mut(from, to) else { return };
        let Some(message) = lanes.control.remove(index) else { return };
        match how {
            0 => {}
            1 => {
                lanes.control.insert(index, message.clone());
                lanes.control.push_back(message);
            }
            _ => lanes.control.push_back(message),
        }
    }

    fn connect_all(&mut self) {
        let pairs: Vec<_> = self.cluster.network().pairs().collect();
        for (a, b) in pairs {
            self.cluster.stall(a, b, false);
            self.cluster.set_link(a, b, true);
        }
    }

    fn heal(&mut self) {
        self.cluster.chat(|| "# heal".to_owned());
        for node in self.cluster.nodes() {
            self.cluster.restart(node, Slot(u64::MAX));
            self.pause(node, false);
            self.hold_persists(node, false);
        }
        self.connect_all();
        self.cluster.settle();
    }

    /// A leader, a fresh write that everyone applies, every read answered, and no leader change
    /// after that.
    fn recovers(&mut self) -> Result<(), String> {
        let end = self.cluster.now() + HEAL_MAX;
        let mut fresh = None;
        loop {
            self.cluster.run(Nanos::from_millis(50));
            if let Some(fresh) = fresh
                && self.everyone_applied(fresh)
                && self.leader_stays()
            {
                break;
            }
            if self.cluster.now() >= end {
                return Err(format!("no fresh write in {HEAL_MAX:?}:\n{}", self.states()));
            }
            let leaders = self.cluster.leaders();
            if let ([leader], None) = (&leaders[..], fresh) {
                let before = self.cluster.ledger().chosen().len() as u64;
                self.cluster.read(*leader);
                if self.cluster.propose(*leader, "fresh") {
                    fresh = Some(Slot(before + 1));
                }
            }
        }
        let before = self.leading();
        self.cluster.run(Nanos::from_millis(2_000));
        if self.leading() != before || before.len() != 1 {
            return Err(format!("the leader changed in peace:\n{}", self.states()));
        }
        let waits = |replica: &Replica| {
            replica.life.as_ref().is_some_and(|life| !life.reads.is_empty()) && !replica.poisoned
        };
        let known = self.cluster.ledger().configuration();
        let mut nodes = self.cluster.nodes();
        nodes.retain(|node| known.names(*node));
        match nodes.iter().find(|node| self.cluster.replica(**node).is_some_and(waits)) {
            Some(node) => Err(format!("a read at {node:?} is never answered:\n{}", self.states())),
            None => Ok(()),
        }
    }

    /// Whether the leader is a voter: one that removed itself is about to step down.
    fn leader_stays(&self) -> bool {
        let known = self.cluster.ledger().configuration();
        let electors: Vec<NodeId> = known.electors().map(|member| member.node).collect();
        matches!(&self.cluster.leaders()[..], [leader] if electors.contains(leader))
    }

    /// Every member but those whose disk failed, which may lack what they could not keep.
    fn everyone_applied(&self, slot: Slot) -> bool {
        let known = self.cluster.ledger().configuration();
        let mut nodes = self.cluster.nodes();
        nodes.retain(|node| known.names(*node));
        let mut replicas = nodes.iter().filter_map(|node| self.cluster.replica(*node));
        replicas.all(|replica| {
            replica.poisoned || replica.core().is_some_and(|core| core.applied_slot() >= slot)
        }) && known.settled
    }

    fn leading(&self) -> Vec<(NodeId, quorate_consensus::Ballot)> {
        let leaders = self.cluster.leaders().into_iter();
        let ballot = |node| Some((node, self.cluster.replica(node)?.core()?.ballot()));
        leaders.filter_map(ballot).collect()
    }

    fn states(&self) -> String {
        let nodes = self.cluster.nodes();
        let lines = nodes.iter().filter_map(|node| self.cluster.replica(*node)).map(show::state);
        let nodes = nodes.iter().filter_map(|node| self.cluster.replica(*node));
        let known = nodes.map(show::configurations);
        lines.chain(known).collect::<Vec<_>>().join("\n")
    }
}
