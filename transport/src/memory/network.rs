//! The links between endpoints, behind one lock, and the faults that can be set on them.

use super::{BACK_OFF_POLLS, Landing, Pair, QUEUE_BYTES_MAX, QUEUE_OPERATIONS_MAX};
use crate::integrity::Randomness;
use crate::memory::MemoryTransport;
use crate::{Lane, OpNumber, PostError, RegionId};
use bytes::Bytes;
use quorate_consensus::{Incarnation, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A network of [`MemoryTransport`]s. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct MemoryNetwork {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) random: Randomness,
    endpoints: BTreeMap<NodeId, Endpoint>,
    links: BTreeMap<Pair, Link>,
    landing: BTreeMap<NodeId, Landing>,
}

#[derive(Debug)]
struct Endpoint {
    peers: Vec<NodeId>,
    parker: Arc<Parker>,
    /// How often it has polled.
    polls: u64,
}

#[derive(Debug, Default)]
struct Link {
    lanes: [LaneState; 2],
    cut: bool,
    /// By the sending side.
    stalled: [bool; 2],
    /// By the sending side.
    delay_polls: [u64; 2],
    reconnects: u64,
    last_error: String,
}

#[derive(Debug, Default)]
struct LaneState {
    phase: Phase,
    /// What each side believes: the life that it was told of and has not seen fail.
    believed: [Option<Incarnation>; 2],
    /// By the sending side.
    directions: [Direction; 2],
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    New,
    Up(Incarnation),
    /// Failed; a side that believes in the old life still has to be told.
    Failing(String),
    /// Both know; comes back after so many polls.
    Down(u32),
}

#[derive(Debug, Default)]
struct Direction {
    queue: VecDeque<Posted>,
    queued_bytes: usize,
    /// How many of the queue were flushed.
    flushed: usize,
    operations: u64,
    completed: Completed,
    /// What the sender was told of.
    reported: Completed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Completed {
    pub(super) accepted: u64,
    pub(super) visible: u64,
}

#[derive(Debug)]
struct Posted {
    /// By the receiver's polls.
    due: u64,
    operation: Operation,
}

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Message(Bytes),
    Write(Write),
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) number: u64,
    pub(super) region: RegionId,
    pub(super) offset: usize,
    pub(super) pieces: Vec<Bytes>,
}

impl Operation {
    fn length(&self) -> usize {
        match self {
            Self::Message(message) => message.len(),
            Self::Write(write) => write.pieces.iter().map(Bytes::len).sum(),
        }
    }
}

/// What a poll of a lane has to tell its endpoint, in this order.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    pub(super) operations: Vec<Operation>,
    pub(super) completed: Option<Completed>,
    pub(super) down: Option<String>,
    pub(super) up: Option<Incarnation>,
}

/// Where a thread sleeps in `park`.
#[derive(Debug, Default)]
pub(super) struct Parker {
    woken: Mutex<bool>,
    condition: Condvar,
}

impl Parker {
    pub(super) fn wake(&self) {
        *lock(&self.woken) = true;
        self.condition.notify_all();
    }

    pub(super) fn park(&self, timeout: Duration) {
        let woken = lock(&self.woken);
        let (mut woken, _) = self
            .condition
            .wait_timeout_while(woken, timeout, |woken| !*woken)
            .unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}

/// A thread that panicked inside leaves nothing half-done that others could trip over.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Control => 0,
        Lane::Data => 1,
    }
}

impl MemoryNetwork {
    /// A network without endpoints. Incarnations and faults follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: Randomness::new(seed),
            endpoints: BTreeMap::new(),
            links: BTreeMap::new(),
            landing: BTreeMap::new(),
        };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// The end of replica `local`, linked to those of `peers` that name it in turn, now or later.
    /// Dropping it is a crash; a new one for the same replica is its restart, with no regions.
    ///
    /// # Panics
    /// If `local` has an endpoint already, or is among `peers`.
    #[must_use]
    pub fn endpoint(&self, local: NodeId, peers: &[NodeId]) -> MemoryTransport {
        assert!(!peers.contains(&local), "a replica is not its own peer");
        let mut peers = peers.to_vec();
        peers.sort_unstable();
        peers.dedup();
        let parker = Arc::new(Parker::default());
        let endpoint = Endpoint { peers: peers.clone(), parker: Arc::clone(&parker), polls: 0 };
        let mut state = self.lock();
        let before = state.endpoints.insert(local, endpoint);
        assert!(before.is_none(), "replica {local} has an endpoint already");
        for peer in &peers {
            state.links.entry(Pair::of(local, *peer)).or_default();
        }
        drop(state);
        MemoryTransport::new(self.clone(), local, peers, parker)
    }

    /// Cuts the link between `a` and `b`: both lanes fail and stay down until [`Self::heal`].
    pub fn cut(&self, a: NodeId, b: NodeId) {
        let mut state = self.lock();
        state.fail(a, b, Lane::Control, "the link was cut");
        state.fail(a, b, Lane::Data, "the link was cut");
        state.link(a, b).cut = true;
        state.wake_all();
    }

    /// Holds back everything that `from` sends to `to`, its completions too, without a failure
    /// that anyone could notice: a one-way partition, or one half of a half-open link.
    pub fn stall(&self, from: NodeId, to: NodeId) {
        self.lock().link(from, to).stalled[Pair::of(from, to).side(from)] = true;
    }

    /// Ends cuts and stalls between `a` and `b`. What a stall held back arrives now.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        let mut state = self.lock();
        let link = state.link(a, b);
        link.cut = false;
        link.stalled = [false; 2];
        state.wake_all();
    }

    /// Cuts every link between a member of `group` and a replica outside of it.
    pub fn isolate(&self, group: &[NodeId]) {
        let pairs: Vec<Pair> = self.lock().links.keys().copied().collect();
        for Pair(a, b) in pairs {
            if group.contains(&a) != group.contains(&b) {
                self.cut(a, b);
            }
        }
    }

    /// Ends all cuts and stalls.
    pub fn heal_all(&self) {
        let pairs: Vec<Pair> = self.lock().links.keys().copied().collect();
        for Pair(a, b) in pairs {
            self.heal(a, b);
        }
    }

    /// Fails one lane once. Some of what is under way takes effect, in order; the rest is lost.
    pub fn fail(&self, a: NodeId, b: NodeId, lane: Lane) {
        let mut state = self.lock();
        state.fail(a, b, lane, "the lane was failed by its test");
        state.wake_all();
    }

    /// What `from` posts to `to` from now on takes effect so many polls of `to` later.
    pub fn delay(&self, from: NodeId, to: NodeId, polls: u64) {
        self.lock().link(from, to).delay_polls[Pair::of(from, to).side(from)] = polls;
    }

    /// How writes land at `at` from now on.
    pub fn set_landing(&self, at: NodeId, landing: Landing) {
        self.lock().landing.insert(at, landing);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

impl State {
    fn link(&mut self, a: NodeId, b: NodeId) -> &mut Link {
        self.links.entry(Pair::of(a, b)).or_default()
    }

    pub(super) fn landing(&self, at: NodeId) -> Landing {
        self.landing.get(&at).copied().unwrap_or_default()
    }

    fn wake_all(&self) {
        for endpoint in self.endpoints.values() {
            endpoint.parker.wake();
        }
    }

    fn wake(&self, node: NodeId) {
        if let Some(endpoint) = self.endpoints.get(&node) {
            endpoint.parker.wake();
        }
    }

    /// An endpoint is gone, with all that it knew.
    pub(super) fn remove(&mut self, node: NodeId) {
        let Some(endpoint) = self.endpoints.remove(&node) else { return };
        for peer in endpoint.peers {
            self.let_go(node, peer, "the other end is gone");
        }
    }

    /// `local` has `peer` as its peer from now on.
    pub(super) fn add_peer(&mut self, local: NodeId, peer: NodeId) {
        if let Some(endpoint) = self.endpoints.get_mut(&local)
            && !endpoint.peers.contains(&peer)
        {
            endpoint.peers.push(peer);
        }
        self.links.entry(Pair::of(local, peer)).or_default();
        self.wake(peer);
    }

    /// `local` has `peer` as its peer no more, and believes in no lane to it.
    pub(super) fn remove_peer(&mut self, local: NodeId, peer: NodeId) {
        if let Some(endpoint) = self.endpoints.get_mut(&local) {
            endpoint.peers.retain(|other| *other != peer);
        }
        self.let_go(local, peer, "the other end has other peers now");
    }

    fn let_go(&mut self, node: NodeId, peer: NodeId, reason: &str) {
        for lane in [Lane::Control, Lane::Data] {
            self.fail(node, peer, lane, reason);
            let side = Pair::of(node, peer).side(node);
            let state = &mut self.link(node, peer).lanes[index(lane)];
            state.believed[side] = None;
            state.directions[1 - side] = Direction::default();
            state.settle();
        }
        self.wake(peer);
    }

    pub(super) fn fail(&mut self, a: NodeId, b: NodeId, lane: Lane, reason: &str) {
        // What takes effect of the operations under way is a matter of luck.
        let luck = [self.random.word(), self.random.word()];
        let link = self.link(a, b);
        let state = &mut link.lanes[index(lane)];
        if !matches!(state.phase, Phase::Up(_)) {
            return;
        }
        for (direction, luck) in state.directions.iter_mut().zip(luck) {
            let survivors = luck as usize % (direction.flushed + 1);
            direction.queue.truncate(survivors);
            direction.flushed = survivors;
        }
        state.phase = Phase::Failing(reason.to_owned());
        link.reconnects += 1;
        reason.clone_into(&mut link.last_error);
        self.wake(a);
        self.wake(b);
    }

    /// Counts a poll of `node`.
    pub(super) fn tick(&mut self, node: NodeId) {
        if let Some(endpoint) = self.endpoints.get_mut(&node) {
            endpoint.polls += 1;
        }
    }

    /// Everything that the lane from `peer` has for `node` at this poll.
    /// Operations from the first one on that `waits` stay on their way.
    pub(super) fn receive(
        &mut self,
        node: NodeId,
        peer: NodeId,
        lane: Lane,
        waits: &dyn Fn(&Operation) -> bool,
    ) -> Inbound {
        let both = self.linked(node, peer);
        let polls = self.endpoints.get(&node).map_or(0, |endpoint| endpoint.polls);
        let fresh = Incarnation(self.random.word());
        let side = Pair::of(node, peer).side(node);
        let link = self.link(node, peer);
        let (stalled, cut) = (link.stalled, link.cut);
        let state = &mut link.lanes[index(lane)];
        let mut inbound = Inbound::default();
        let comes_back = match &mut state.phase {
            Phase::New => true,
            Phase::Down(polls_left) => {
                *polls_left = polls_left.saturating_sub(1);
                *polls_left == 0
            }
            Phase::Up(_) | Phase::Failing(_) => false,
        };
        if comes_back && both && !cut {
            state.phase = Phase::Up(fresh);
            state.directions = Default::default();
        }
        match &state.phase {
            Phase::Up(incarnation) if state.believed[side].is_none() => {
                inbound.up = Some(*incarnation);
                state.believed[side] = Some(*incarnation);
            }
            Phase::Up(_) => state.deliver(side, stalled, Some(polls), waits, &mut inbound),
            Phase::Failing(reason) if state.believed[side].is_some() => {
                inbound.down = Some(reason.clone());
                state.deliver(side, stalled, None, waits, &mut inbound);
                state.believed[side] = None;
                state.settle();
            }
            _ => {}
        }
        inbound
    }

    fn linked(&self, a: NodeId, b: NodeId) -> bool {
        let names = |x: NodeId, y: NodeId| {
            self.endpoints.get(&x).is_some_and(|endpoint| endpoint.peers.contains(&y))
        };
        names(a, b) && names(b, a)
    }

    /// Queues an operation.
    pub(super) fn post(
        &mut self,
        from: NodeId,
        to: NodeId,
        lane: Lane,
        mut operation: Operation,
    ) -> Result<OpNumber, PostError> {
        let polls = self.endpoints.get(&to).map_or(0, |endpoint| endpoint.polls);
        let length = operation.length();
        if length > QUEUE_BYTES_MAX {
            return Err(PostError::TooLarge { length, limit: QUEUE_BYTES_MAX });
        }
        let side = Pair::of(from, to).side(from);
        let link = self.link(from, to);
        let due = polls + link.delay_polls[side];
        let state = &mut link.lanes[index(lane)];
        let Some(believed) = state.believed[side] else { return Err(PostError::Down(to)) };
        let direction = &mut state.directions[side];
        if direction.queue.len() == QUEUE_OPERATIONS_MAX
            || direction.queued_bytes + length > QUEUE_BYTES_MAX
        {
            return Err(PostError::Full(to));
        }
        direction.operations += 1;
        let number = direction.operations;
        // A lane that failed behind the sender's back swallows what is posted.
        if matches!(state.phase, Phase::Up(current) if current == believed) {
            if let Operation::Write(write) = &mut operation {
                write.number = number;
            }
            direction.queued_bytes += length;
            direction.queue.push_back(Posted { due, operation });
        }
        Ok(OpNumber(number))
    }

    /// Lets `to` see what `from` posted.
    pub(super) fn flush(&mut self, from: NodeId, to: NodeId) {
        let side = Pair::of(from, to).side(from);
        let mut news = false;
        for lane in &mut self.link(from, to).lanes {
            let direction = &mut lane.directions[side];
            news |= direction.flushed < direction.queue.len();
            direction.flushed = direction.queue.len();
        }
        if news {
            self.wake(to);
        }
    }

    /// `node` has taken, or made visible, the writes of `peer` up to here.
    pub(super) fn complete(&mut self, node: NodeId, peer: NodeId, through: Completed) {
        let side = Pair::of(node, peer).side(peer);
        let state = &mut self.link(node, peer).lanes[index(Lane::Data)];
        if matches!(state.phase, Phase::Up(_)) && state.directions[side].completed != through {
            state.directions[side].completed = through;
            self.wake(peer);
        }
    }

    pub(super) fn status(&self, node: NodeId, peer: NodeId) -> crate::LinkStatus {
        let pair = Pair::of(node, peer);
        let Some(link) = self.links.get(&pair) else { return crate::LinkStatus::default() };
        let side = pair.side(node);
        let up = |lane| link.lanes[index(lane)].believed[side].is_some();
        crate::LinkStatus {
            control_up: up(Lane::Control),
            data_up: up(Lane::Data),
            carrier: "memory",
            queued_bytes: link.lanes.iter().map(|lane| lane.directions[side].queued_bytes).sum(),
            reconnects: link.reconnects,
            last_error: link.last_error.clone(),
        }
    }

    /// Whether the next poll of `node` has something to do though nobody wakes it: a delay that is
    /// counted in its polls, or a lane that comes back after some.
    pub(super) fn restless(&self, node: NodeId) -> bool {
        self.links.iter().any(|(pair, link)| {
            let side = pair.side(node);
            (pair.0 == node || pair.1 == node)
                && self.linked(pair.0, pair.1)
                && link.lanes.iter().any(|lane| match lane.phase {
                    Phase::New | Phase::Down(_) => !link.cut,
                    Phase::Up(_) => {
                        lane.believed[side].is_none()
                            || !link.stalled[1 - side] && lane.directions[1 - side].flushed > 0
                    }
                    Phase::Failing(_) => lane.believed[side].is_some(),
                })
        })
    }
}

impl LaneState {
    /// Moves what is due to side `to`: everything if the lane is failing (`polls` is none).
    fn deliver(
        &mut self,
        to: usize,
        stalled: [bool; 2],
        polls: Option<u64>,
        waits: &dyn Fn(&Operation) -> bool,
        inbound: &mut Inbound,
    ) {
        let from = 1 - to;
        if stalled[from] {
            return;
        }
        let direction = &mut self.directions[from];
        while direction.flushed > 0 {
            let held = |posted: &Posted| {
                polls.is_some_and(|polls| posted.due > polls) || waits(&posted.operation)
            };
            if direction.queue.front().is_some_and(held) {
                break;
            }
            let Some(posted) = direction.queue.pop_front() else { break };
            direction.flushed -= 1;
            direction.queued_bytes -= posted.operation.length();
            inbound.operations.push(posted.operation);
        }
        let own = &mut self.directions[to];
        if own.completed != own.reported {
            own.reported = own.completed;
            inbound.completed = Some(own.completed);
        }
    }

    /// Once nobody believes in the failed life any more, the next can begin.
    fn settle(&mut self) {
        if matches!(self.phase, Phase::Failing(_)) && self.believed == [None; 2] {
            self.phase = Phase::Down(BACK_OFF_POLLS);
        }
    }
}
