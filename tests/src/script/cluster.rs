//! Cores, disks and a network, driven one event at a time, with every invariant checked after each.

use super::ledger::Ledger;
use super::network::{Lane, Network};
use super::replica::{Pending, Read, Replica, founding};
use super::show;
use bytes::Bytes;
use quorate_consensus::{
    Accept, Configurations, Incarnation, Message, Nanos, NodeId, Notice, Paxos, Persist,
    PersistNumber, RoleName, RowFlags, Settings, Slot, Value, ValueKind,
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
}

impl Options {
    /// The defaults, for `nodes` voters.
    #[must_use]
    pub fn new(nodes: u16) -> Self {
        Self {
            nodes,
            seed: None,
            order: (1..=nodes).map(NodeId).collect(),
            cache_bytes_max: 1 << 20,
            catch_up_bytes: 1 << 16,
            window_slots_max: 1024,
            record_bytes: 4096,
        }
    }

    fn settings(&self, node: NodeId) -> Settings {
        let mut settings = Settings::new(node, Incarnation(u64::from(node.0)));
        settings.cache_bytes_max = self.cache_bytes_max;
        settings.catch_up_bytes = self.catch_up_bytes;
        settings.window_slots_max = self.window_slots_max;
        match self.seed {
            Some(seed) => settings.seed = seed.wrapping_mul(31).wrapping_add(u64::from(node.0)),
            None => {
                let rung = self.order.iter().position(|other| *other == node);
                let rung = rung.unwrap_or(self.order.len()) as u64;
                settings.election_timeout_min = Nanos::from_millis(200 + 20 * rung);
                settings.election_timeout_max = settings.election_timeout_min;
            }
        }
        settings
    }
}

/// A cluster under test.
#[derive(Debug)]
pub struct Cluster {
    now: Nanos,
    replicas: BTreeMap<NodeId, Replica>,
    network: Network,
    ledger: Ledger,
    configurations: Configurations,
    record_bytes: usize,
    trace: Vec<String>,
    /// Whether deliveries are traced, besides the news.
    chatty: bool,
    /// Whether the trace goes to standard error at once: a panic does not lose it.
    aloud: bool,
    delivered: BTreeMap<&'static str, u64>,
}

impl Cluster {
    /// All replicas alive, all links up, nothing delivered yet.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let nodes: Vec<NodeId> = (1..=options.nodes).map(NodeId).collect();
        let replica = |node: &NodeId| (*node, Replica::new(options.settings(*node)));
        let configurations = founding(options.nodes);
        let mut cluster = Self {
            now: Nanos(0),
            replicas: nodes.iter().map(replica).collect(),
            network: Network::new(&nodes),
            ledger: Ledger::new(configurations.latest().quorum()),
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
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let value = Value { kind: ValueKind::Commands, checksum: 0, bytes };
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

    fn write_disk(&mut self, node: NodeId, count: usize) -> Option<PersistNumber> {
        let replica = self.replicas.get_mut(&node).filter(|replica| !replica.poisoned)?;
        let life = replica.life.as_mut()?;
        let mut last = None;
        for _ in 0..count {
            let Some(Pending { number, persist, commit_slot }) = life.pending.pop_front() else {
                break;
            };
            last = Some(number);
            let disk = &mut replica.disk;
            match persist {
                Persist::Promise(ballot) => {
                    self.ledger.i3_promise_monotone(node, disk.promised, ballot);
                    disk.promised = ballot;
                }
                Persist::Entry(entry) => {
                    if disk.remembers {
                        self.ledger.i1_i2_one_chosen_value(node, &entry);
                    }
                    disk.log.insert(entry.slot, entry);
                }
            }
            disk.commit_slot = disk.commit_slot.max(commit_slot);
        }
        last
    }

    /// Takes out all effects of the event before, as the rules of [`Paxos`] have it.
    fn drain(&mut self, node: NodeId) {
        loop {
            let mut busy = self.take_notices(node);
            busy |= self.take_persists(node);
            busy |= self.take_messages(node);
            busy |= self.serve_log_reads(node);
            busy |= self.apply(node);
            busy |= self.release_reads(node);
            busy |= self.ship(node);
            if !busy {
                break;
            }
        }
        self.publish_rows(node);
        self.check(node);
    }

    fn take_notices(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        while let Some(notice) = self.core_mut(node).and_then(Paxos::poll_notice) {
            busy = true;
            if let Notice::Leading(ballot) = notice {
                self.ledger.one_leader_per_ballot(node, ballot);
            }
            self.note(show::notice(node, &notice));
        }
        busy
    }

    fn take_persists(&mut self, node: NodeId) -> bool {
        let Some(replica) = self.replicas.get_mut(&node) else { return false };
        let (remembers, holds) = (replica.disk.remembers, replica.holds_persists);
        let Some(life) = replica.life.as_mut() else { return false };
        let mut busy = false;
        while let Some(persist) = life.core.poll_persist() {
            busy = true;
            life.emitted += 1;
            if let Persist::Entry(entry) = &persist {
                let (promised, commit) = (life.core.promised(), life.core.commit_slot());
                self.ledger.one_value_per_ballot(entry.slot, entry.ballot, &entry.value);
                if remembers {
                    self.ledger.i4_no_acceptance_below_promise(node, entry, promised, commit);
                }
            }
            let number = PersistNumber(life.emitted);
            life.pending.push_back(Pending { number, persist, commit_slot: life.noted_commit });
        }
        // Only now: every record that the commit slot speaks of stands before those that carry it.
        life.noted_commit = life.core.commit_slot();
        let waiting = life.pending.len();
        if holds || waiting == 0 || self.replicas.get(&node).is_some_and(|r| r.poisoned) {
            return busy;
        }
        if let Some(number) = self.write_disk(node, waiting)
            && let Some(core) = self.core_mut(node)
        {
            core.on_persisted(number);
        }
        true
    }

    fn take_messages(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        while let Some((to, message)) = self.core_mut(node).and_then(Paxos::poll_message) {
            busy = true;
            if let Some(replica) = self.replicas.get(&node) {
                self.ledger.i9_message_is_durable(node, &replica.disk, &message);
            }
            self.network.post_control(node, to, message);
        }
        busy
    }

    fn serve_log_reads(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        while let Some(read) = self.core_mut(node).and_then(Paxos::poll_log_read) {
            busy = true;
            let entries = self.replicas.get(&node).map(|replica| replica.read_log(read));
            if let Some(core) = self.core_mut(node) {
                core.on_log_read(read, entries.unwrap_or_default());
            }
        }
        busy
    }

    fn apply(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        loop {
            let Some(replica) = self.replicas.get_mut(&node) else { return busy };
            let Some(life) = replica.life.as_mut() else { return busy };
            let Some((slot, value)) = life.next_to_apply(&replica.disk) else { return busy };
            busy = true;
            life.absorb(slot, &value);
            self.ledger.i7_equal_slot_equal_digest(node, slot, &value, life.digest);
            life.core.on_applied(slot);
        }
    }

    fn release_reads(&mut self, node: NodeId) -> bool {
        let Some(life) = self.replicas.get_mut(&node).and_then(|replica| replica.life.as_mut())
        else {
            return false;
        };
        let mut busy = false;
        let mut answered = Vec::new();
        while let Some(ready) = life.core.poll_read() {
            busy = true;
            life.released.push_back(ready);
        }
        while let Some(ready) = life.released.front().copied() {
            if life.core.applied_slot() < ready.slot {
                break;
            }
            life.released.pop_front();
            while let Some(read) = life.reads.front().copied() {
                if read.ticket > ready.through {
                    break;
                }
                life.reads.pop_front();
                self.ledger.read_is_fresh(node, read.floor, ready.slot);
                let (ticket, slot) = (read.ticket, ready.slot);
                answered.push(format!("{node:?} answers ticket {ticket} at {slot:?}"));
            }
        }
        for line in answered {
            self.note(line);
        }
        busy
    }

    fn ship(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        for peer in self.nodes() {
            while self.network.has_credit(node, peer) {
                let record_bytes = self.record_bytes;
                let Some(core) = self.core_mut(node) else { return busy };
                let accept = {
                    let Some(shipment) = core.next_shipment(peer, record_bytes) else { break };
                    Accept {
                        ballot: shipment.ballot,
                        first: shipment.first,
                        commit_slot: shipment.commit_slot,
                        values: shipment.values.cloned().collect(),
                    }
                };
                core.shipped(peer, accept.last());
                busy = true;
                for (slot, value) in (accept.first.0..).zip(&accept.values) {
                    self.ledger.one_value_per_ballot(Slot(slot), accept.ballot, value);
                }
                self.network.post_record(node, peer, accept);
            }
        }
        busy
    }

    fn publish_rows(&mut self, node: NodeId) {
        for peer in self.nodes() {
            if !self.network.is_up(node, peer) {
                continue;
            }
            let Some(replica) = self.replicas.get_mut(&node) else { return };
            let Some(life) = replica.life.as_mut() else { return };
            if !life.core.row_due(peer) {
                continue;
            }
            let row = life.core.row(peer);
            let commit = life.core.commit_slot();
            life.core.row_published(peer);
            if row.flags.0 & (RowFlags::AMNESIAC | RowFlags::POISONED) == 0 {
                self.ledger.i9_row_is_durable(node, &replica.disk, commit, &row);
            }
            if let Some(before) = self.network.post_row(node, peer, row) {
                self.ledger.row_grows(node, &before, &row);
            }
        }
    }

    fn check(&mut self, node: NodeId) {
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        let Some(life) = replica.life.as_mut() else { return };
        let (commit, applied) = (life.core.commit_slot(), life.core.applied_slot());
        let before = std::mem::replace(&mut life.checked_commit, commit);
        self.ledger.i3_promise_monotone(node, replica.disk.promised, life.core.promised());
        self.ledger.i5_commit_only_chosen(node, before, commit);
        self.ledger.i6_applied_within_commit(node, applied, commit);
    }

    fn core_mut(&mut self, node: NodeId) -> Option<&mut Paxos> {
        self.replicas.get_mut(&node)?.life.as_mut().map(|life| &mut life.core)
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
        let Some(queued) = lanes.row.take() else { return false };
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
                    self.event(node, Paxos::on_time);
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
        replica.start(configurations, commit_max, now);
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

    fn bring_down(&mut self, a: NodeId, b: NodeId) {
        if a != b && self.network.bring_down(a, b) {
            self.link_event(a, b, |core, now, peer| core.on_link_down(now, peer));
        }
    }

    fn bring_up(&mut self, a: NodeId, b: NodeId) {
        let live = |node| self.replicas.get(&node).is_some_and(|replica| replica.life.is_some());
        if a != b && live(a) && live(b) && self.network.bring_up(a, b) {
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
