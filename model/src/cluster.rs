//! The cluster as a [`Model`]: which events are possible, and what they do.

use crate::bounds::{Bounds, Rows};
use crate::history::History;
use crate::node::{JUMP, Node, member};
use quorate_consensus::{
    Accept, Ballot, Change, Configuration, Message, NodeId, Paxos, Persist, Row, Slot, Value,
    ValueKind,
};
use stateright::{Model, Property};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The model: replicas 1 to 3 within bounds.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// How much may happen.
    pub bounds: Bounds,
}

/// Sent, and deliverable ever after.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Packet {
    from: u16,
    to: u16,
    load: Load,
}

#[derive(Clone, PartialEq, Eq, Debug, Hash)]
enum Load {
    Message(Message),
    Record(Accept),
}

impl Load {
    /// What a pull asks and answers: asked for again where it is lost, and not doubled here.
    fn comes_once(&self) -> bool {
        matches!(
            self,
            Self::Message(
                Message::CatchUpRequest { .. }
                    | Message::CatchUpReply { .. }
                    | Message::Behind { .. }
            )
        )
    }
}

/// One state of the cluster.
#[derive(Clone)]
pub struct State {
    nodes: [Arc<Node>; Bounds::REPLICAS],
    /// Sorted by digest.
    network: Vec<(u64, Arc<Packet>)>,
    /// Rows that were published and may still arrive, oldest first, by sender and receiver.
    rows: [[Vec<Row>; Bounds::REPLICAS]; Bounds::REPLICAS],
    /// A row came by the link as it is now, by sender and receiver: says which rows are worth trying.
    heard: [[bool; Bounds::REPLICAS]; Bounds::REPLICAS],
    campaigns: [u8; Bounds::REPLICAS],
    commands: u8,
    crashes: u8,
    changed: bool,
    history: History,
    /// What went wrong; nothing happens any more then.
    wrong: Option<Wrong>,
}

#[derive(Clone, Debug, Hash)]
enum Wrong {
    /// Two values are chosen for one slot.
    Agreement(String),
    /// A replica takes for chosen what is not.
    Commit(String),
    /// A promise went back.
    Promise(String),
    /// An assertion of the core failed.
    Contract(String),
}

/// An event.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    /// A replica stands for election.
    Campaign(u16),
    /// What was sent arrives.
    Deliver(u64, Arc<Packet>),
    /// The newest row arrives, or the one at this place of those that were published.
    Row(u16, u16, usize),
    /// A leader proposes a command.
    Command(u16),
    /// A leader proposes the change of members.
    Change(u16),
    /// A persist becomes durable.
    Flush(u16),
    /// A replica stops and starts again.
    Crash(u16),
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Campaign(node) => write!(f, "n{node} campaigns"),
            Self::Deliver(_, packet) => {
                let Packet { from, to, load } = &**packet;
                write!(f, "n{from} to n{to}: {load:?}")
            }
            Self::Row(from, to, place) => write!(f, "row {place} of n{from} reaches n{to}"),
            Self::Command(node) => write!(f, "n{node} proposes a command"),
            Self::Change(node) => write!(f, "n{node} proposes the change"),
            Self::Flush(node) => write!(f, "a persist of n{node} is durable"),
            Self::Crash(node) => write!(f, "n{node} stops and starts again"),
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let paxos = &node.paxos;
            let (vote, commit) = (paxos.vote(), paxos.commit_slot());
            let role = paxos.role();
            let log: Vec<String> =
                node.disk.log.iter().map(|entry| format!("{:?}", entry.ballot)).collect();
            writeln!(
                f,
                "{:?} {role} promised {:?} vote {vote:?} commit {commit:?} disk {log:?}",
                node.member.node,
                paxos.promised()
            )?;
        }
        write!(f, "chosen {:?} wrong {:?}", self.history.chosen(), self.wrong)
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for node in &self.nodes {
            node.digest.hash(hasher);
        }
        for (digest, _) in &self.network {
            digest.hash(hasher);
        }
        for row in self.rows.iter().flatten().flatten() {
            row.canonical().hash(hasher);
        }
        for list in self.rows.iter().flatten() {
            list.len().hash(hasher);
        }
        // Two states in which different events are tried are two.
        self.heard.hash(hasher);
        (self.campaigns, self.commands, self.crashes, self.changed).hash(hasher);
        (&self.history, &self.wrong).hash(hasher);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

fn place(node: u16) -> usize {
    usize::from(node) - 1
}

fn number(node: NodeId) -> u16 {
    node.0
}

impl State {
    /// Of all that decides anything: what is the same state has the same.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    fn node(&self, node: u16) -> &Node {
        &self.nodes[place(node)]
    }

    fn send(&mut self, from: u16, to: u16, load: Load) {
        let packet = Packet { from, to, load };
        let mut hasher = DefaultHasher::new();
        packet.hash(&mut hasher);
        let digest = hasher.finish();
        if let Err(at) = self.network.binary_search_by_key(&digest, |(digest, _)| *digest) {
            self.network.insert(at, (digest, Arc::new(packet)));
        }
    }

    /// What must hold of the disks, whatever the replicas know.
    fn keeps_what_is_chosen(&self) -> bool {
        self.history.chosen().iter().enumerate().all(|(index, value)| {
            let deciding = self.history.deciding(Slot(index as u64 + 1));
            deciding.is_quorum(|member| {
                let entry = self.node(number(member.node)).disk.log.get(index);
                entry.is_some_and(|entry| entry.value == *value)
            })
        })
    }

    fn has_one_configuration_a_slot(&self) -> bool {
        self.nodes.iter().all(|node| {
            let open = node.paxos.commit_slot().next();
            *node.paxos.configurations().at(open) == self.history.deciding(open)
        })
    }

    /// Takes out what can have no effect any more, whatever comes: two states that differ in it only
    /// are one.
    fn prune(&mut self) {
        let mut network = std::mem::take(&mut self.network);
        network.retain(|(_, packet)| self.matters(packet));
        self.network = network;
    }

    fn matters(&self, packet: &Packet) -> bool {
        let (sender, receiver) = (self.node(packet.from), self.node(packet.to));
        let promised = receiver.disk.promised;
        match &packet.load {
            // A promise is for who still collects them, a refusal for who still uses the ballot.
            Load::Message(Message::Promise { ballot, .. } | Message::Values { ballot, .. }) => {
                receiver.prepares(*ballot)
            }
            Load::Message(Message::Nack { ballot, .. }) => receiver.uses(*ballot),
            Load::Message(Message::Fetch { ballot, .. }) => sender.prepares(*ballot),
            // Who promised that much already could only say so once more.
            Load::Message(Message::Prepare { ballot, .. }) => match promised.cmp(ballot) {
                Ordering::Less => true,
                Ordering::Equal => sender.prepares(*ballot),
                Ordering::Greater => sender.uses(*ballot),
            },
            Load::Message(Message::Lead { ballot }) => promised <= *ballot,
            Load::Message(_) => true,
            Load::Record(record) => match promised.cmp(&record.ballot) {
                Ordering::Less => true,
                // All of it was accepted and is durable, and what it says to be chosen is known.
                Ordering::Equal => {
                    let (ballot, slot) = receiver.paxos.vote();
                    let voted = ballot == record.ballot && slot >= record.last();
                    !voted || receiver.paxos.commit_slot() < record.commit_slot
                }
                Ordering::Greater => sender.uses(record.ballot),
            },
        }
    }

    fn contracts_hold(&self) -> bool {
        !matches!(self.wrong, Some(Wrong::Contract(_)))
    }

    /// A replica knows a change of members to be settled.
    fn is_settled(&self) -> bool {
        self.nodes.iter().any(|node| {
            let known = node.paxos.configurations();
            let latest = known.latest();
            latest.id > 1 && latest.settled && known.latest_slot() <= node.paxos.commit_slot()
        })
    }
}

impl Cluster {
    /// Runs `event` at `node`, and lets the effects out.
    fn at(&self, state: &mut State, node: u16, event: impl FnOnce(&mut Node, &mut State)) {
        let mut held = Arc::clone(&state.nodes[place(node)]);
        let before = held.paxos.promised();
        let durable = held.disk.promised;
        {
            let node = Arc::make_mut(&mut held);
            event(node, state);
            self.settle(node, state);
            node.seal();
        }
        if held.paxos.promised() < before || held.disk.promised < durable {
            let what = format!("{node}: from {before:?} to {:?}", held.paxos.promised());
            state.wrong.get_or_insert(Wrong::Promise(what));
        }
        state.nodes[place(node)] = held;
    }

    /// Lets all effects of a node out.
    fn settle(&self, node: &mut Node, state: &mut State) {
        let me = number(node.member.node);
        loop {
            let mut any = node.emit();
            if !self.bounds.slow_disks {
                while node.may_flush() {
                    Self::flush(node, state);
                    any = true;
                }
            }
            while let Some((to, message)) = node.paxos.poll_message() {
                if let Message::Promise { ballot, .. } = &message
                    && *ballot > node.disk.promised
                {
                    let what = format!("{me} told a promise of {ballot:?} that it may forget");
                    state.wrong.get_or_insert(Wrong::Promise(what));
                }
                state.send(me, number(to), Load::Message(message));
                any = true;
            }
            while let Some(read) = node.paxos.poll_log_read() {
                let entries = node.read_log(read);
                node.paxos.on_log_read(read, entries);
                any = true;
            }
            any |= Self::apply(node, state);
            for peer in 1..=Bounds::REPLICAS as u16 {
                while let Some(record) = next_record(&node.paxos, NodeId(peer)) {
                    node.paxos.shipped(NodeId(peer), record.last());
                    state.send(me, peer, Load::Record(record));
                    any = true;
                }
            }
            if !any {
                break;
            }
        }
        while node.paxos.poll_notice().is_some() {}
        if self.bounds.rows == Rows::Late {
            for peer in (1..=Bounds::REPLICAS as u16).filter(|peer| *peer != me) {
                let row = node.paxos.row(NodeId(peer));
                let published = &mut state.rows[place(me)][place(peer)];
                if published.last().map(Row::canonical) != Some(row.canonical()) {
                    published.push(row);
                }
            }
        }
    }

    fn flush(node: &mut Node, state: &mut State) {
        if let Some(Persist::Entry(entry)) = node.flush()
            && let Err(two) = state.history.accept(node.member, &entry)
        {
            state.wrong.get_or_insert(Wrong::Agreement(two));
        }
    }

    /// Applies what the node takes for chosen, and compares it with what is.
    fn apply(node: &mut Node, state: &mut State) -> bool {
        let commit = node.paxos.commit_slot();
        if node.paxos.applied_slot() >= commit {
            return false;
        }
        let chosen = state.history.chosen();
        if commit.0 > chosen.len() as u64 {
            let what = format!("{:?} takes {commit:?} for chosen", node.member.node);
            state.wrong.get_or_insert(Wrong::Commit(what));
        } else {
            while let Some((slot, value)) = node.paxos.next_to_apply() {
                if chosen[slot.0 as usize - 1] != *value {
                    let what = format!("{:?} applies {value:?} in {slot:?}", node.member.node);
                    state.wrong.get_or_insert(Wrong::Commit(what));
                }
                node.paxos.on_applied(slot);
            }
        }
        // After a restart what is below comes from the disk.
        node.paxos.on_applied(commit);
        true
    }

    fn campaign(&self, state: &mut State, node: u16) -> bool {
        state.campaigns[place(node)] += 1;
        // Above all rounds so far. A candidate with a lower ballot than one that stood before knows
        // nothing of that one, and might as well have stood first.
        let rounds: u8 = state.campaigns.iter().sum();
        let seen = Ballot { round: u64::from(rounds) - 1, node: NodeId(node) };
        let mut asked = Vec::new();
        self.at(state, node, |node, state| {
            let news = Message::Nack { ballot: Ballot::ZERO, promised: seen };
            node.paxos.on_message(node.now, other_than(node.member.node), news);
            // A leader steps down by the first, and stands by the second.
            while node.paxos.promised().round <= seen.round && asked.is_empty() {
                let led = node.paxos.role_is_leader();
                jump(node);
                node.paxos.on_time(node.now);
                asked = take_pre_votes(node, state);
                if !led {
                    break;
                }
            }
        });
        for (to, message) in asked {
            let mut answers = Vec::new();
            self.at(state, number(to), |voter, state| {
                voter.paxos.on_message(voter.now, NodeId(node), message.clone());
                answers = take_pre_votes(voter, state);
                if refuses(&answers) {
                    // It heard a leader of late: so this is a while later.
                    jump(voter);
                    voter.paxos.on_message(voter.now, NodeId(node), message);
                    answers = take_pre_votes(voter, state);
                }
                hear_all(voter);
            });
            for (_, answer) in answers {
                self.at(state, node, |node, _| node.paxos.on_message(node.now, to, answer));
            }
        }
        self.at(state, node, |node, _| hear_all(node));
        let ballot = state.node(node).paxos.promised();
        ballot.round > seen.round && state.node(node).uses(ballot)
    }

    fn deliver(&self, state: &mut State, packet: &Packet) {
        let from = NodeId(packet.from);
        self.at(state, packet.to, |node, _| match &packet.load {
            Load::Message(message) => node.paxos.on_message(node.now, from, message.clone()),
            Load::Record(record) => {
                // A gap resets the link, which a set of packets does not have: what is missing is
                // still on its way.
                let _ = node.paxos.on_accept(node.now, from, &mut record.clone());
            }
        });
    }

    fn deliver_row(&self, state: &mut State, from: u16, to: u16, at: usize) {
        let row = match self.bounds.rows {
            Rows::Fresh => state.node(from).paxos.row(NodeId(to)),
            Rows::Late => {
                let published = &mut state.rows[place(from)][place(to)];
                published.drain(..at);
                published[0]
            }
        };
        state.heard[place(from)][place(to)] = true;
        self.at(state, to, |node, _| node.paxos.on_row(node.now, NodeId(from), row));
    }

    fn crash(&self, state: &mut State, node: u16) {
        state.crashes += 1;
        // What was on its way to a life that is over does not reach the next one: links know lives apart.
        state.network.retain(|(_, packet)| packet.to != node);
        for peer in (1..=Bounds::REPLICAS as u16).filter(|peer| *peer != node) {
            for (one, other) in [(node, peer), (peer, node)] {
                state.rows[place(one)][place(other)].clear();
                state.heard[place(one)][place(other)] = false;
            }
        }
        let promised = state.node(node).disk.promised;
        let disk = state.node(node).disk.clone();
        let fresh = Node::start(&self.bounds, member(node), disk);
        if fresh.paxos.promised() < promised {
            state.wrong.get_or_insert(Wrong::Promise(format!("{node} forgot {promised:?}")));
        }
        state.nodes[place(node)] = Arc::new(fresh);
        self.link(state, node);
        for peer in (1..=Bounds::REPLICAS as u16).filter(|peer| *peer != node) {
            self.at(state, peer, |peer, _| {
                peer.paxos.on_link_down(peer.now, NodeId(node));
                peer.paxos.on_link_up(peer.now, NodeId(node));
            });
        }
    }

    fn link(&self, state: &mut State, node: u16) {
        self.at(state, node, |node, _| {
            for peer in 1..=Bounds::REPLICAS as u16 {
                node.paxos.on_link_up(node.now, NodeId(peer));
            }
        });
    }

    fn take(&self, state: &mut State, action: &Action) -> bool {
        match action {
            Action::Campaign(node) => return self.campaign(state, *node),
            Action::Deliver(digest, packet) => {
                if packet.load.comes_once() {
                    state.network.retain(|(held, _)| held != digest);
                }
                self.deliver(state, packet);
            }
            Action::Row(from, to, at) => self.deliver_row(state, *from, *to, *at),
            Action::Command(node) => {
                let ballot = state.node(*node).paxos.promised();
                let slot = state.node(*node).paxos.last_slot().next();
                let bytes = format!("{ballot} {slot}").into();
                let value = Value { kind: ValueKind::Commands, checksum: 0, bytes };
                let mut done = false;
                state.commands += 1;
                self.at(state, *node, |node, _| done = node.paxos.propose(value).is_some());
                return done;
            }
            Action::Change(node) => {
                let voters = self.bounds.change.iter().flatten().copied().map(NodeId).collect();
                let change = Change { voters, ..Change::default() };
                let mut done = false;
                state.changed = true;
                self.at(state, *node, |node, _| {
                    done = node.paxos.propose_configuration(&change).is_ok();
                });
                return done;
            }
            Action::Flush(node) => self.at(state, *node, Self::flush),
            Action::Crash(node) => self.crash(state, *node),
        }
        true
    }

    fn first(&self) -> State {
        let nodes = [1, 2, 3].map(|node| Arc::new(Node::new(&self.bounds, node)));
        let voters = self.bounds.voters.iter().map(|node| member(*node)).collect();
        let mut state = State {
            nodes,
            network: Vec::new(),
            rows: Default::default(),
            heard: Default::default(),
            campaigns: [0; Bounds::REPLICAS],
            commands: 0,
            crashes: 0,
            changed: false,
            history: History::new(Configuration::of_voters(1, voters)),
            wrong: None,
        };
        for node in 1..=Bounds::REPLICAS as u16 {
            self.link(&mut state, node);
        }
        // Everyone has seen everyone, so that positions are known from the start.
        for (from, to) in pairs() {
            let row = state.node(from).paxos.row(NodeId(to));
            state.heard[place(from)][place(to)] = true;
            self.at(&mut state, to, |node, _| node.paxos.on_row(node.now, NodeId(from), row));
        }
        state
    }

    /// Whether the row of `from` would tell `to` anything that matters: a vote or a promise to a leader, a
    /// commit slot to who accepted what that leader proposed.
    fn has_news(state: &State, from: u16, to: u16) -> bool {
        let (sender, receiver) = (&state.node(from).paxos, &state.node(to).paxos);
        if receiver.role_is_leader() {
            let ballot = receiver.promised();
            let commit = receiver.commit_slot();
            let vote = |row: Row| {
                (row.accepted_slot > commit).then_some((row.accepted_ballot, row.accepted_slot))
            };
            let says = |row: Row| (row.promised > ballot, vote(row));
            let known = receiver.peer_row(NodeId(from));
            let row = sender.row(NodeId(to));
            return !state.heard[place(from)][place(to)]
                || known.is_none_or(|(known, _)| says(known) != says(row));
        }
        sender.role_is_leader()
            && sender.commit_slot() > receiver.commit_slot()
            && receiver.ballot() == sender.promised()
    }
}

fn pairs() -> impl Iterator<Item = (u16, u16)> {
    let nodes = 1..=Bounds::REPLICAS as u16;
    nodes
        .clone()
        .flat_map(move |from| nodes.clone().map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
}

/// The next record for `peer`, of one value.
fn next_record(paxos: &Paxos, peer: NodeId) -> Option<Accept> {
    let shipment = paxos.next_shipment(peer, 1)?;
    Some(Accept {
        ballot: shipment.ballot,
        first: shipment.first,
        // What is chosen is said by rows.
        commit_slot: Slot::ZERO,
        values: shipment.values.cloned().collect(),
    })
}

fn other_than(node: NodeId) -> NodeId {
    NodeId(if node.0 == 1 { 2 } else { 1 })
}

/// Time passes at this replica, more than any wait.
fn jump(node: &mut Node) {
    node.now = node.now + JUMP;
    node.paxos.note_time(node.now);
}

/// Heartbeats went on all the while: who was heard is heard.
fn hear_all(node: &mut Node) {
    for peer in (1..=Bounds::REPLICAS as u16).map(NodeId).filter(|peer| *peer != node.member.node) {
        if let Some((row, _)) = node.paxos.peer_row(peer) {
            node.paxos.on_row(node.now, peer, row);
        }
    }
}

/// Takes pre-votes and their answers out of what is to be sent; the rest is sent.
fn take_pre_votes(node: &mut Node, state: &mut State) -> Vec<(NodeId, Message)> {
    let mut taken = Vec::new();
    while let Some((to, message)) = node.paxos.poll_message() {
        if matches!(message, Message::PreVote { .. } | Message::PreVoteReply { .. }) {
            taken.push((to, message));
        } else if !matches!(message, Message::CatchUpRequest { .. }) {
            // What a timer asks for is lost.
            state.send(number(node.member.node), number(to), Load::Message(message));
        }
    }
    taken
}

fn refuses(answers: &[(NodeId, Message)]) -> bool {
    let no = |message: &Message| matches!(message, Message::PreVoteReply { granted: false, .. });
    answers.iter().any(|(_, message)| no(message))
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.first()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        for (index, node) in state.nodes.iter().enumerate() {
            let number = index as u16 + 1;
            let first = state.campaigns.iter().all(|count| *count == 0);
            if state.campaigns[index] < self.bounds.campaigns[index] && (!first || index == 0) {
                actions.push(Action::Campaign(number));
            }
            if node.may_flush() {
                actions.push(Action::Flush(number));
            }
            if state.crashes < self.bounds.crashes {
                actions.push(Action::Crash(number));
            }
            if node.paxos.role_is_leader() && node.paxos.last_slot().0 < self.bounds.slots {
                if state.commands < self.bounds.commands
                    && node.paxos.commit_slot() < node.paxos.last_slot()
                {
                    actions.push(Action::Command(number));
                }
                if self.bounds.change.is_some() && !state.changed {
                    actions.push(Action::Change(number));
                }
            }
        }
        for (from, to) in pairs() {
            match self.bounds.rows {
                Rows::Fresh if Self::has_news(state, from, to) => {
                    actions.push(Action::Row(from, to, 0));
                }
                Rows::Fresh => {}
                Rows::Late => {
                    let count = state.rows[place(from)][place(to)].len();
                    actions.extend((0..count).map(|at| Action::Row(from, to, at)));
                }
            }
        }
        for (digest, packet) in &state.network {
            actions.push(Action::Deliver(*digest, Arc::clone(packet)));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let taken = catch_unwind(AssertUnwindSafe(|| self.take(&mut next, &action)));
        match taken {
            Ok(true) => {
                next.prune();
                Some(next)
            }
            Ok(false) => None,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.into()));
                let mut next = state.clone();
                next.wrong = Some(Wrong::Contract(text.unwrap_or_default()));
                Some(next)
            }
        }
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.nodes.iter().all(|node| node.paxos.last_slot().0 <= self.bounds.last_slot)
    }

    fn format_action(&self, action: &Action) -> String {
        format!("{action:?}")
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("agreement: one chosen value a slot", |_, state: &State| {
                !matches!(state.wrong, Some(Wrong::Agreement(_)))
            }),
            Property::always("what is taken for chosen is chosen", |_, state: &State| {
                !matches!(state.wrong, Some(Wrong::Commit(_)))
            }),
            Property::always("what is chosen stays on a quorum of disks", |_, state: &State| {
                state.keeps_what_is_chosen()
            }),
            Property::always("one configuration a slot", |_, state: &State| {
                state.has_one_configuration_a_slot()
            }),
            Property::always("promises only grow", |_, state: &State| {
                !matches!(state.wrong, Some(Wrong::Promise(_)))
            }),
            Property::always("no contract is broken", |_, state: &State| state.contracts_hold()),
            Property::sometimes("a slot is chosen", |_, state: &State| {
                !state.history.chosen().is_empty()
            }),
        ];
        if self.bounds.change.is_some() {
            properties.push(Property::sometimes("a change is settled", |_, state: &State| {
                state.is_settled()
            }));
        }
        properties
    }
}
