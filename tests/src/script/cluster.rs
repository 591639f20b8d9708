//! Cores, disks and a network, driven one event at a time, with every invariant checked after each.

use super::ledger::Ledger;
use super::network::{Lane, Network};
use super::replica::{Read, Replica, founding};
use super::show;
use bytes::Bytes;
use quorate_consensus::{
    Accept, Change, Configurations, Incarnation, Message, Nanos, NodeId, PROTOCOL_WITNESSES, Paxos,
    RoleName, Settings, Slot, Value, ValueKind,
};
use std::collections::BTreeMap;

/// Deliveries after which a cluster that does not come to rest is called a livelock.
const SETTLE_MAX: usize = 20_000;

/// Lines of news kept for whoever never takes them.
const TRACE_MAX: usize = 1_000;

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many voters, numbered from 1.
    pub nodes: u16,
    /// How many witnesses, with the numbers behind those.
    pub witnesses: u16,
    /// How many voters must hold what is chosen, where there are witnesses.
    pub copies: u16,
    /// How many more replicas, which may be made members.
    pub spares: u16,
    /// How many more again, which were started as witnesses.
    pub spare_witnesses: u16,
    /// Seeds the election timers (200 to 400 ms). Without one they are a ladder: 200 ms for the
    /// first of `order`, 20 ms more for each further one, so that a script knows who comes first.
    pub seed: Option<u64>,
    /// Who is first on the ladder.
    pub order: Vec<NodeId>,
    /// See [`Settings::cache_bytes_max`].
    pub cache_bytes_max: usize,
    /// See [`Settings::catch_up_bytes`].
    pub catch_up_bytes: u32,
    /// See [`Settings::window_slots_max`].
    pub window_slots_max: u64,
    /// Payload bytes of one shipped record, about.
    pub record_bytes: usize,
    /// Who has a higher priority than all others.
    pub prefers: Option<NodeId>,
    /// See [`Settings::lease`].
    pub lease: Nanos,
    /// See [`Settings::clock_drift_ppm`].
    pub clock_drift_ppm: u32,
    /// See [`Settings::quiet_after`].
    pub quiet_after: u32,
    /// Rows in flight on one lane: more than one lets a reader see old ones late.
    pub rows_max: usize,
}

impl Options {
    /// The defaults, for `nodes` voters.
    #[must_use]
    pub fn new(nodes: u16) -> Self {
        Self {
            nodes,
            witnesses: 0,
            copies: 0,
            spares: 0,
            spare_witnesses: 0,
            seed: None,
            order: Vec::new(),
            cache_bytes_max: 1 << 20,
            catch_up_bytes: 1 << 16,
            window_slots_max: 1024,
            record_bytes: 4096,
            prefers: None,
            lease: Nanos(0),
            clock_drift_ppm: 1_000,
            quiet_after: 0,
            rows_max: 1,
        }
    }

    fn settings(&self, node: NodeId) -> Settings {
        let mut settings = Settings::new(node, Incarnation(u64::from(node.0)));
        settings.cache_bytes_max = self.cache_bytes_max;
        settings.priority += u8::from(self.prefers == Some(node));
        settings.lease = self.lease;
        settings.clock_drift_ppm = self.clock_drift_ppm;
        settings.quiet_after = self.quiet_after;
        settings.catch_up_bytes = self.catch_up_bytes;
        settings.window_slots_max = self.window_slots_max;
        // Founding members are told of each other, who joins of everybody.
        let founders = self.nodes + self.witnesses;
        let full = founders + self.spares;
        settings.witness = (self.nodes < node.0 && node.0 <= founders) || node.0 > full;
        if self.witnesses + self.spare_witnesses > 0 {
            settings.protocol = PROTOCOL_WITNESSES;
        }
        let told_of = if node.0 <= founders { founders } else { full + self.spare_witnesses };
        settings.contacts = (1..=told_of).map(NodeId).collect();
        match self.seed {
            Some(seed) => settings.seed = seed.wrapping_mul(31).wrapping_add(u64::from(node.0)),
            None => {
                let rung = self.order.iter().position(|other| *other == node);
                let rung = rung.unwrap_or(usize::from(node.0) - 1) as u64;
                settings.election_timeout_min = Nanos::from_millis(200 + 20 * rung);
                settings.election_timeout_max = settings.election_timeout_min;
            }
        }
        settings
    }
}

/// Commands with this text. What a witness keeps tells values apart as far as their checksums do, so that
/// they have some, which nobody verifies here (FNV-1a).
#[must_use]
pub fn value_of(text: &str) -> Value {
    let mix = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let checksum = text.as_bytes().iter().fold(0x811c_9dc5, mix);
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    Value { kind: ValueKind::Commands, checksum, bytes }
}

/// A cluster under test.
#[derive(Debug)]
pub struct Cluster {
    pub(super) now: Nanos,
    pub(super) replicas: BTreeMap<NodeId, Replica>,
    pub(super) network: Network,
    pub(super) ledger: Ledger,
    pub(super) configurations: Configurations,
    pub(super) record_bytes: usize,
    pub(super) trace: Vec<String>,
    /// Whether deliveries are traced, besides the news.
    pub(super) chatty: bool,
    /// Whether the trace goes to standard error at once: a panic does not lose it.
    pub(super) aloud: bool,
    pub(super) delivered: BTreeMap<&'static str, u64>,
}

impl Cluster {
    /// All replicas alive, all links up, nothing delivered yet.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let all = options.nodes + options.witnesses + options.spares + options.spare_witnesses;
        let nodes: Vec<NodeId> = (1..=all).map(NodeId).collect();
        let replica = |node: &NodeId| (*node, Replica::new(options.settings(*node)));
        let configurations = founding(options.nodes, options.witnesses, options.copies);
        let mut cluster = Self {
            now: Nanos(0),
            replicas: nodes.iter().map(replica).collect(),
            network: Network::new(&nodes, options.rows_max),
            ledger: Ledger::new(configurations.latest().clone()),
            configurations,
            record_bytes: options.record_bytes,
            trace: Vec::new(),
            chatty: true,
            aloud: false,
            delivered: BTreeMap::new(),
        };
        for node in nodes {
            cluster.restart(node, Slot(u64::MAX));
        }
        cluster.trace.clear();
        cluster
    }

    /// All replicas.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.replicas.keys().copied().collect()
    }

    /// One replica, if there is such a one.
    #[must_use]
    pub fn replica(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.get(&node)
    }

    /// The same, to be meddled with.
    pub fn replica_mut(&mut self, node: NodeId) -> Option<&mut Replica> {
        self.replicas.get_mut(&node)
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The same, to be meddled with.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// What happened, and what is chosen.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The trace since this was last asked.
    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    /// Whether deliveries are traced, besides the news.
    pub fn set_chatty(&mut self, chatty: bool) {
        self.chatty = chatty;
    }

    /// Whether the trace goes to standard error as it comes, instead of being kept.
    pub fn set_aloud(&mut self, aloud: bool) {
        self.aloud = aloud;
    }

    /// How many control messages of each kind were delivered.
    #[must_use]
    pub fn delivered(&self) -> &BTreeMap<&'static str, u64> {
        &self.delivered
    }

    /// Adds a line to the trace.
    pub fn note(&mut self, line: String) {
        if self.aloud {
            eprintln!("{:>10?} {line}", self.now);
        } else if self.chatty || self.trace.len() < TRACE_MAX {
            self.trace.push(line);
        }
    }

    /// Adds a line to the trace, if deliveries are traced.
    pub fn chat(&mut self, line: impl FnOnce() -> String) {
        if self.chatty {
            self.note(line());
        }
    }

    /// What must not have happened and did.
    pub fn take_violations(&mut self) -> Vec<String> {
        self.ledger.take_violations()
    }

    /// The replicas that lead, by their own word.
    #[must_use]
    pub fn leaders(&self) -> Vec<NodeId> {
        let leads =
            |replica: &&Replica| replica.core().is_some_and(|core| core.role() == RoleName::Leader);
        self.replicas.values().filter(leads).map(|replica| replica.node).collect()
    }
}

/// Events at one replica.
impl Cluster {
    /// Gives an event to a replica and takes out all effects. None if it takes no events now.
    pub fn event<R>(
        &mut self,
        node: NodeId,
        event: impl FnOnce(&mut Paxos, Nanos) -> R,
    ) -> Option<R> {
        let now = self.now;
        let replica = self.replicas.get_mut(&node).filter(|replica| replica.runs())?;
        let answer = event(&mut replica.life.as_mut()?.core, now);
        self.drain(node);
        Some(answer)
    }

    /// Proposes a value; false if the replica refuses.
    pub fn propose(&mut self, node: NodeId, text: &str) -> bool {
        let value = value_of(text);
        let slot = self.event(node, |core, _| core.propose(value)).flatten();
        match slot {
            Some(slot) => self.chat(|| format!("{node:?} proposes {slot:?} [{text}]")),
            None => self.chat(|| format!("{node:?} refuses [{text}]")),
        }
        slot.is_some()
    }

    /// Begins a linearizable read. Returns its ticket.
    pub fn read(&mut self, node: NodeId) -> Option<u64> {
        let floor = self.ledger.commit_max();
        let now = self.now;
        let replica = self.replicas.get_mut(&node).filter(|replica| replica.runs())?;
        let life = replica.life.as_mut()?;
        let ticket = life.core.read_index(now);
        life.reads.push_back(Read { ticket, floor });
        life.core.start_reads();
        self.chat(|| format!("{node:?} reads, ticket {ticket}, at least {floor:?}"));
        self.drain(node);
        Some(ticket)
    }

    /// Makes the first `count` waiting persists of a replica durable.
    /// Nothing happens at one that is stopped: it could not be told.
    pub fn persist(&mut self, node: NodeId, count: usize) {
        if !self.replicas.get(&node).is_some_and(Replica::runs) {
            return;
        }
        let Some(number) = self.write_disk(node, count) else { return };
        self.event(node, |core, _| core.on_persisted(number));
    }
}

/// Deliveries and time.
impl Cluster {
    /// Delivers the next thing on a lane. False if there is none, or its receiver takes nothing.
    pub fn deliver(&mut self, from: NodeId, to: NodeId, lane: Lane) -> bool {
        if !self.replicas.get(&to).is_some_and(Replica::runs) {
            return false;
        }
        match lane {
            Lane::Control => self.deliver_control(from, to),
            Lane::Records => self.deliver_record(from, to),
            Lane::Row => self.deliver_row(from, to),
        }
    }

    fn deliver_control(&mut self, from: NodeId, to: NodeId) -> bool {
        let lanes = self.network.lanes_mut(from, to);
        let Some(queued) = lanes.and_then(|lanes| lanes.control.pop_front()) else { return false };
        let line = if self.chatty { show::message(&queued.item) } else { String::new() };
        *self.delivered.entry(show::kind(&queued.item)).or_default() += 1;
        if self.network.is_current(from, to, queued.incarnation) {
            self.chat(|| format!("{from:?} -> {to:?} {line}"));
            self.hand_message(from, to, queued.item);
        } else {
            self.chat(|| format!("{from:?} -> {to:?} {line} (of an older incarnation: ignored)"));
        }
        true
    }

    /// Gives a message to a replica as if it had come from `from`.
    pub fn hand_message(&mut self, from: NodeId, to: NodeId, message: Message) {
        self.event(to, |core, now| core.on_message(now, from, message));
    }

    fn deliver_record(&mut self, from: NodeId, to: NodeId) -> bool {
        let lanes = self.network.lanes_mut(from, to);
        let Some(queued) = lanes.and_then(|lanes| lanes.records.pop_front()) else { return false };
        let line = if self.chatty { show::accept(&queued.item) } else { String::new() };
        self.chat(|| format!("{from:?} => {to:?} {line}"));
        self.hand_record(from, to, queued.item);
        // The ring has room again.
        if self.replicas.get(&from).is_some_and(Replica::runs) {
            self.drain(from);
        }
        true
    }

    /// Gives a record to a replica; a gap resets the link.
    pub fn hand_record(&mut self, from: NodeId, to: NodeId, mut accept: Accept) {
        let outcome = self.event(to, |core, now| core.on_accept(now, from, &mut accept));
        if let Some(Err(gap)) = outcome {
            self.note(format!("{to:?} resets the link to {from:?}: {gap}"));
            self.bring_down(from, to);
            self.bring_up(from, to);
        }
    }

    fn deliver_row(&mut self, from: NodeId, to: NodeId) -> bool {
        let Some(lanes) = self.network.lanes_mut(from, to) else { return false };
        let Some(queued) = lanes.rows.pop_front() else { return false };
        let before = lanes.row_delivered.replace(queued.item).unwrap_or_default();
        if self.chatty
            && let Some(news) = show::row_news(&before, &queued.item)
        {
            self.chat(|| format!("{from:?} => {to:?} row{news}"));
        }
        self.event(to, |core, now| core.on_row(now, from, queued.item));
        true
    }

    /// Delivers in the order of posting until nothing more can be.
    pub fn settle(&mut self) {
        for _ in 0..SETTLE_MAX {
            let able = self
                .network
                .deliverable()
                .filter(|(_, _, to, _)| self.replicas.get(to).is_some_and(Replica::runs));
            let Some((_, from, to, lane)) = able.min() else { return };
            self.deliver(from, to, lane);
        }
        self.ledger.violation(format!("no rest after {SETTLE_MAX} deliveries: a livelock"));
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Time passes; the replicas of `nodes` notice.
    pub fn tick(&mut self, by: Nanos, nodes: &[NodeId]) {
        self.now = self.now + by;
        for &node in nodes {
            self.event(node, Paxos::on_time);
        }
    }

    /// Time passes, everyone acts when it must, and everything is delivered at once.
    pub fn run(&mut self, by: Nanos) {
        let end = self.now + by;
        loop {
            let due = self.replicas.values().filter(|replica| replica.runs());
            let due = due.filter_map(|replica| replica.core().map(Paxos::poll_timeout)).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            for node in self.nodes() {
                let is_due = self.replicas.get(&node).and_then(Replica::core);
                if is_due.is_some_and(|core| core.poll_timeout() <= self.now) {
                    let next = self.event(node, |core, now| {
                        core.on_time(now);
                        core.poll_timeout()
                    });
                    if next.is_some_and(|next| next <= self.now) {
                        self.ledger.violation(format!("{node:?} was due, and is due still"));
                        return;
                    }
                }
            }
            self.settle();
        }
        self.now = end;
    }
}

/// Faults.
impl Cluster {
    /// A replica stops dead: what is not durable is lost, and its links break.
    pub fn crash(&mut self, node: NodeId) {
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        replica.life = None;
        replica.paused = false;
        for peer in self.nodes() {
            self.bring_down(node, peer);
        }
    }

    /// A crashed replica starts again from its disk, at most at `commit_max`.
    pub fn restart(&mut self, node: NodeId, commit_max: Slot) {
        let (now, configurations) = (self.now, self.configurations.clone());
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        if replica.life.is_some() || replica.poisoned {
            return;
        }
        replica.start(&configurations, commit_max, now);
        for peer in self.nodes() {
            self.bring_up(node, peer);
        }
        self.drain(node);
    }

    /// A replica's disk fails for good.
    pub fn poison(&mut self, node: NodeId) {
        if let Some(replica) = self.replicas.get_mut(&node) {
            replica.poisoned = true;
        }
        self.event(node, |core, _| core.on_log_failure());
    }

    /// Joins or parts a pair.
    pub fn set_link(&mut self, a: NodeId, b: NodeId, wanted: bool) {
        self.network.want(a, b, wanted);
        if wanted {
            self.bring_up(a, b);
        } else {
            self.bring_down(a, b);
        }
    }

    /// Breaks a link and builds it again.
    pub fn reset_link(&mut self, a: NodeId, b: NodeId) {
        self.bring_down(a, b);
        self.bring_up(a, b);
    }

    /// One direction of a pair holds everything back, or lets it go again.
    pub fn stall(&mut self, from: NodeId, to: NodeId, stalled: bool) {
        if let Some(lanes) = self.network.lanes_mut(from, to) {
            lanes.stalled = stalled;
        }
    }

    /// Whether `a` wants a link to `b`: one of its members, or of those it was told to join.
    fn wants(&self, a: NodeId, b: NodeId) -> bool {
        let core = self.replicas.get(&a).and_then(Replica::core);
        core.is_some_and(|core| core.peer_nodes().any(|peer| peer == b))
    }

    /// A replica has other peers than before: links come and go.
    pub(super) fn follow_members(&mut self, node: NodeId) {
        let Some(life) = self.replicas.get_mut(&node).and_then(|replica| replica.life.as_mut())
        else {
            return;
        };
        let version = life.core.members_version();
        if life.members_seen.replace(version) == Some(version) {
            return;
        }
        for peer in self.nodes() {
            if self.wants(node, peer) {
                self.bring_up(node, peer);
            } else {
                self.bring_down(node, peer);
            }
        }
    }

    /// Proposes another set of members; false if the replica refuses.
    pub fn change(&mut self, node: NodeId, change: &Change) -> bool {
        match self.event(node, |core, _| core.propose_configuration(change)) {
            Some(Ok(slot)) => {
                self.chat(|| format!("{node:?} proposes members at {slot:?}"));
                true
            }
            Some(Err(refusal)) => {
                self.chat(|| format!("{node:?} refuses: {refusal}"));
                false
            }
            None => false,
        }
    }

    fn bring_down(&mut self, a: NodeId, b: NodeId) {
        if a != b && self.network.bring_down(a, b) {
            self.link_event(a, b, |core, now, peer| core.on_link_down(now, peer));
        }
    }

    fn bring_up(&mut self, a: NodeId, b: NodeId) {
        let live = |node| self.replicas.get(&node).is_some_and(|replica| replica.life.is_some());
        let joined = live(a) && live(b) && self.wants(a, b) && self.wants(b, a);
        if a != b && joined && self.network.bring_up(a, b) {
            self.link_event(a, b, |core, now, peer| core.on_link_up(now, peer));
        }
    }

    /// A stopped process acts on what became of its links when it goes on, not before.
    fn link_event(&mut self, a: NodeId, b: NodeId, tell: impl Fn(&mut Paxos, Nanos, NodeId)) {
        let now = self.now;
        for (node, peer) in [(a, b), (b, a)] {
            if let Some(core) = self.core_mut(node) {
                tell(core, now, peer);
                if self.replicas.get(&node).is_some_and(Replica::runs) {
                    self.drain(node);
                }
            }
        }
    }
}
