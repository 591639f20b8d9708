//! Random walks: the cluster of the scripts driven by seeded chance, faults and all, then healed.
//!
//! Each seed draws which faults it has and how often (a swarm: no walk has all of them), walks, and
//! must then find a leader, have a fresh write applied everywhere, and keep that leader.

use super::cluster::{Cluster, Options};
use super::replica::Replica;
use super::show;
use quorate_consensus::{Nanos, NodeId, Slot};
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
const FAULTS: [(&[Event], u64); 8] = [
    (&[Event::Persist, Event::Persist, Event::Persist, Event::HoldPersists], 3),
    (&[Event::Crash, Event::Restart, Event::Restart], 1),
    (&[Event::Disconnect, Event::Connect], 3),
    (&[Event::Isolate, Event::Heal], 1),
    (&[Event::Stall], 4),
    (&[Event::Pause], 2),
    (&[Event::Meddle, Event::Ghost], 4),
    (&[Event::Lose], 1),
];

/// What became of one walk.
#[derive(Clone, Debug, Default)]
pub struct Walked {
    /// What was wrong; nothing if all was well.
    pub wrong: Vec<String>,
    /// How many control messages of each kind were delivered.
    pub delivered: BTreeMap<&'static str, u64>,
    /// How many slots were chosen.
    pub chosen: u64,
}

/// One walk.
#[derive(Debug)]
struct Walk {
    cluster: Cluster,
    chance: Chance,
    weights: Vec<(Event, u64)>,
    proposals: u64,
    /// Members that lost their disk or whose disk failed: never a majority.
    lost: Vec<NodeId>,
}

/// Walks by `seed`. With `aloud`, the trace is written to standard error as it comes.
#[must_use]
pub fn walk(seed: u64, aloud: bool) -> Walked {
    let mut walk = Walk::new(seed);
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
    if walked.wrong.is_empty() {
        walk.heal();
        walked.wrong = walk.recovers().err().into_iter().collect();
        walked.wrong.extend(walk.cluster.take_violations());
    }
    walked.delivered = walk.cluster.delivered().clone();
    walked.chosen = walk.cluster.ledger().chosen().len() as u64;
    walked
}

impl Walk {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let mut options = Options::new([3, 3, 5, 5, 2, 4][chance.below(6) as usize]);
        options.seed = Some(seed);
        // Small memories and small messages: catching up takes several steps.
        options.cache_bytes_max = [8, 64, 1 << 20][chance.below(3) as usize];
        options.catch_up_bytes = [40, 200, 1 << 16][chance.below(3) as usize];
        options.window_slots_max = [4, 1024][chance.below(2) as usize];
        options.record_bytes = [1, 4096][chance.below(2) as usize];
        options.rows_max = [1, 3][chance.below(2) as usize];
        options.lease = Nanos::from_millis([0, 200][chance.below(2) as usize]);
        let mut weights = ALWAYS.to_vec();
        for (events, weight) in FAULTS {
            if chance.below(2) == 0 {
                weights.extend(events.iter().map(|event| (*event, weight)));
            }
        }
        Self { cluster: Cluster::new(&options), chance, weights, proposals: 0, lost: Vec::new() }
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
        let may_lose = 2 * (self.lost.len() + 1) < self.cluster.nodes().len();
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
            _ if !may_lose || self.lost.contains(&node) || self.chance.below(3) > 0 => {}
            _ => {
                self.lost.push(node);
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
        let nodes = self.cluster.nodes();
        match nodes.iter().find(|node| self.cluster.replica(**node).is_some_and(waits)) {
            Some(node) => Err(format!("a read at {node:?} is never answered:\n{}", self.states())),
            None => Ok(()),
        }
    }

    /// Everyone but those whose disk failed, which may lack what they could not keep.
    fn everyone_applied(&self, slot: Slot) -> bool {
        let nodes = self.cluster.nodes();
        let mut replicas = nodes.iter().filter_map(|node| self.cluster.replica(*node));
        replicas.all(|replica| {
            replica.poisoned || replica.core().is_some_and(|core| core.applied_slot() >= slot)
        })
    }

    fn leading(&self) -> Vec<(NodeId, quorate_consensus::Ballot)> {
        let leaders = self.cluster.leaders().into_iter();
        let ballot = |node| Some((node, self.cluster.replica(node)?.core()?.ballot()));
        leaders.filter_map(ballot).collect()
    }

    fn states(&self) -> String {
        let nodes = self.cluster.nodes();
        let lines = nodes.iter().filter_map(|node| self.cluster.replica(*node)).map(show::state);
        lines.collect::<Vec<_>>().join("\n")
    }
}
