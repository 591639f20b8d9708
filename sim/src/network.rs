//! The links between replicas: latency, bandwidth, loss, partitions, lives of lanes, and one-sided
//! writes that land torn, late, or after their lane died.
//!
//! What a replica sees is exactly what the contract of `quorate_transport` allows (C1 to C5). Time
//! passes only in the world, which is asked to call [`Net::on_event`] at the times in [`Net::due`].

mod granting;
mod landing;
mod noise;
mod peers;
mod showing;

pub(crate) use noise::MESSAGE_KINDS;

use granting::Gate;

use crate::coverage::{Coverage, Row};
use crate::random::{Random, mix};
use bytes::Bytes;
use quorate_consensus::{Ballot, Incarnation, NodeId, Slot};
use quorate_transport::region::RegionTable;
use quorate_transport::{Event, Lane, Level, OpNumber, PostError, RegionId};
use std::collections::VecDeque;

/// A direction of a lane queues at most this many bytes, or what the shape says.
pub(crate) const QUEUE_BYTES_MAX: usize = 1 << 20;
/// An endpoint that is not polled holds at most this many events; what comes beyond waits outside.
const INBOX_MAX: usize = 4096;
/// A lane that could not be rebuilt is tried again after this long.
const RETRY_NANOS: u64 = 20_000_000;

/// How the network is, all run long. Times in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct NetShape {
    /// Every operation takes at least so long.
    pub(crate) latency_min: u64,
    /// And on average so much longer, exponentially distributed.
    pub(crate) latency_mean: u64,
    /// Nanoseconds a byte.
    pub(crate) byte_nanos: u64,
    /// An operation breaks its lane in so many of a million cases.
    pub(crate) loss_ppm: u64,
    /// Writes land in pieces of this size, in any order; none: whole.
    pub(crate) tear_bytes: Option<usize>,
    /// How long a piece takes to become visible, on average.
    pub(crate) landing_mean: u64,
    /// Losses come in bursts too.
    pub(crate) bursts: bool,
    /// A message comes a second time in so many of a million cases.
    pub(crate) twice_ppm: u64,
    /// It is damaged in so many.
    pub(crate) damage_ppm: u64,
    /// Writers are told of completions, before and after their writes are visible.
    pub(crate) completions: bool,
    /// What a dead lane left under way lands later all the same.
    pub(crate) ghosts: bool,
    /// Whether receivers are told that a region was written.
    pub(crate) hints: bool,
    /// How long a broken lane goes unnoticed, on average.
    pub(crate) notice_mean: u64,
    /// How long until a broken lane is rebuilt, on average.
    pub(crate) back_off_mean: u64,
    /// Operations that a direction of a lane queues.
    pub(crate) queue_operations: usize,
    /// There are grants for one life of a lane. Then a writer is not always told before its write is
    /// visible, and no lane has a grant of the kind in so many of a million lives.
    pub(crate) for_life: bool,
    /// See there.
    pub(crate) lasting_ppm: u64,
    /// A fence does nothing: a mistake.
    pub(crate) broken_fence: bool,
    /// Of grants for one life: a writer is told so much later, on average, in some of the cases.
    pub(crate) told_late_mean: u64,
}

/// A replica, counted from 0: small, since every event of a run is moved about in a heap.
pub(crate) type Node = u8;

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub(crate) enum NetEvent {
    /// The front of a queue may be there.
    Arrive { from: Node, to: Node, lane: u8 },
    /// More of a torn write becomes visible.
    Land { from: Node, to: Node, life: u64 },
    /// The lane breaks.
    Break { a: Node, b: Node, lane: u8, row: Row, life: u64 },
    /// `side` of a broken lane finds out.
    Down { side: Node, peer: Node, lane: u8, life: u64 },
    /// `side` learns of the lane's new life.
    Up { side: Node, peer: Node, lane: u8, life: u64 },
    /// The lane is tried again.
    Connect { a: Node, b: Node, lane: u8, life: u64 },
    /// A write of a dead lane lands.
    Ghost(Box<Ghost>),
    /// A message comes a second time.
    Again(Box<Again>),
    /// A writer is told how far its writes have come.
    Told { from: Node, to: Node, life: u64, through: u64, level: Level },
}

/// What a dead lane left under way.
#[derive(Clone, Debug)]
pub(crate) struct Ghost {
    from: usize,
    to: usize,
    generation: u64,
    partings: u32,
    /// Of the lane that it was posted on.
    life: u64,
    write: Write,
}

/// A message that comes a second time.
#[derive(Clone, Debug)]
pub(crate) struct Again {
    from: usize,
    to: usize,
    life: u64,
    message: Bytes,
}

/// A record that is, or will be, whole in a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Who wrote it.
    pub(crate) from: usize,
    /// Into whose ring.
    pub(crate) to: usize,
    /// Under which ballot.
    pub(crate) ballot: Ballot,
    /// Up to which slot.
    pub(crate) slot: Slot,
}

/// A one-sided write.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    region: RegionId,
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Operation {
    Message(Bytes),
    Write(Write),
}

#[derive(Debug, Default)]
struct Endpoint {
    alive: bool,
    generation: u64,
    regions: RegionTable,
    inbox: Vec<Event>,
    /// Whom it has as its peers.
    peers: Vec<bool>,
    /// How often it let go of each.
    partings: Vec<u32>,
    /// What it granted for one life of a lane.
    for_life: Vec<granting::ForLife>,
}

/// An operation on its way.
#[derive(Debug)]
struct Queued {
    arrival: u64,
    /// Counts what one replica posted to another, on both lanes.
    order: u64,
    operation: Operation,
}

#[derive(Debug, Default)]
struct LaneState {
    /// Counts lives and deaths.
    life: u64,
    up: bool,
    /// It broke with operations under way.
    unknown: bool,
    incarnation: u64,
    /// The life that each side was told of, the lower id first.
    believed: [Option<u64>; 2],
    directions: [Direction; 2],
}

#[derive(Debug, Default)]
struct Direction {
    queue: VecDeque<Queued>,
    bytes: usize,
    newest_arrival: u64,
    posted: u64,
    /// Writes that were taken out of the queue.
    taken: u64,
    /// How far its writer was told that they are visible, or accepted.
    told: [u64; 2],
    /// Where the last record was posted to, and where the last one began to land.
    posted_at: Option<usize>,
    landed_at: Option<usize>,
    /// A write that is not wholly visible, with the pieces that are not.
    landing: Option<Landing>,
}

#[derive(Debug)]
struct Landing {
    write: Write,
    /// Those that are not visible.
    pieces: Vec<(usize, usize)>,
    /// Its writer was told that it was accepted.
    told: bool,
}

/// The network of one run.
#[derive(Debug)]
pub(crate) struct Net {
    shape: NetShape,
    /// The time, set by the world before each call.
    pub(crate) now: u64,
    random: Random,
    endpoints: Vec<Endpoint>,
    /// By `a * nodes + b` with a < b, and lane.
    lanes: Vec<[LaneState; 2]>,
    /// How many faults block each direction.
    blocked: Vec<u32>,
    /// Extra latency of each direction.
    extra: Vec<u64>,
    /// How many faults keep a writer out of a reader's memory.
    fenced: Vec<u32>,
    /// What each direction counts: posted, and the newest delivered.
    orders: Vec<(u64, u64)>,
    /// A damaged message was delivered, and the receiver has not reacted yet.
    damaged: Vec<Option<Row>>,
    /// A kind of message that each replica's control lanes refuse once.
    refused: Vec<Option<u8>>,
    /// What each replica promised, and the ballot under which it leads, packed.
    known: Vec<(u64, u64)>,
    /// Losses come in a burst just now.
    bad: bool,
    /// Events to come, for the world to schedule.
    pub(crate) due: Vec<(u64, NetEvent)>,
    /// Replicas to wake.
    pub(crate) wakes: Vec<usize>,
    /// Records in rings that their writers were or will be told of, for the checks.
    pub(crate) written: Vec<Written>,
    /// Grants for one life that were revoked in it.
    pub(crate) fences: u64,
    /// What happened, for the coverage table.
    pub(crate) coverage: Coverage,
    /// A fingerprint of everything that was delivered.
    pub(crate) hash: u64,
}

fn lane_index(lane: Lane) -> usize {
    usize::from(lane == Lane::Data)
}

fn lane_of(index: usize) -> Lane {
    if index == 0 { Lane::Control } else { Lane::Data }
}

/// Whether records land there, and not a row.
fn is_ring(region: RegionId) -> bool {
    region.0 >> 16 == RegionId::inbox(NodeId(0)).0 >> 16
}

fn id(node: usize) -> NodeId {
    NodeId(node as u16 + 1)
}

impl Net {
    /// A network of `nodes` endpoints, none of them alive.
    #[must_use]
    pub(crate) fn new(nodes: usize, shape: NetShape, random: Random) -> Self {
        Self {
            shape,
            now: 0,
            random,
            endpoints: (0..nodes)
                .map(|_| Endpoint { partings: vec![0; nodes], ..Endpoint::default() })
                .collect(),
            lanes: (0..nodes * nodes).map(|_| Default::default()).collect(),
            blocked: vec![0; nodes * nodes],
            extra: vec![0; nodes * nodes],
            fenced: vec![0; nodes * nodes],
            orders: vec![(0, 0); nodes * nodes],
            damaged: vec![None; nodes * nodes],
            refused: vec![None; nodes],
            known: vec![(0, 0); nodes],
            bad: false,
            due: Vec::new(),
            wakes: Vec::new(),
            written: Vec::new(),
            fences: 0,
            coverage: Coverage::default(),
            hash: 0,
        }
    }

    fn nodes(&self) -> usize {
        self.endpoints.len()
    }

    fn lane(&mut self, a: usize, b: usize, lane: usize) -> &mut LaneState {
        let nodes = self.nodes();
        &mut self.lanes[a.min(b) * nodes + a.max(b)][lane]
    }

    fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked[from * self.nodes() + to] > 0
    }

    /// Whether two replicas cannot talk.
    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.is_blocked(a, b) || self.is_blocked(b, a)
    }

    fn note(&mut self, word: u64) {
        self.hash = mix(self.hash ^ mix(word ^ self.now));
    }

    /// A process starts at `node`, with these peers: its lanes are tried.
    pub(crate) fn start(&mut self, node: usize, peers: &[usize]) -> u64 {
        let nodes = self.nodes();
        let endpoint = &mut self.endpoints[node];
        endpoint.peers = (0..nodes).map(|other| peers.contains(&other)).collect();
        endpoint.alive = true;
        endpoint.generation += 1;
        endpoint.regions = RegionTable::default();
        endpoint.for_life.clear();
        endpoint.inbox.clear();
        let generation = endpoint.generation;
        for peer in peers.iter().filter(|peer| **peer != node) {
            self.try_lanes(node, *peer);
        }
        generation
    }

    /// The process at `node` is gone, with its memory.
    pub(crate) fn stop(&mut self, node: usize) {
        if !std::mem::replace(&mut self.endpoints[node].alive, false) {
            return;
        }
        self.endpoints[node].inbox.clear();
        for peer in (0..self.nodes()).filter(|peer| *peer != node) {
            for lane in 0..2 {
                self.fail(node, peer, lane);
                self.lane(node, peer, lane).believed[usize::from(node > peer)] = None;
            }
        }
    }

    /// Blocks a direction: what is sent waits, and after a while both lanes break.
    pub(crate) fn block(&mut self, from: usize, to: usize, noticed_after: u64, row: Row) {
        let index = from * self.nodes() + to;
        self.blocked[index] += 1;
        for lane in 0..2 {
            let life = self.lane(from, to, lane).life;
            self.break_at(self.now + noticed_after, from, to, lane, life, row);
        }
    }

    /// Takes one block back; what waited arrives.
    pub(crate) fn unblock(&mut self, from: usize, to: usize) {
        let index = from * self.nodes() + to;
        self.blocked[index] = self.blocked[index].saturating_sub(1);
        if self.blocked[index] == 0 {
            for lane in 0..2 {
                self.pump(from, to, lane);
            }
        }
    }

    /// Takes all blocks and delays between two replicas back.
    pub(crate) fn heal(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let index = from * self.nodes() + to;
            self.blocked[index] = 0;
            self.extra[index] = 0;
            self.fenced[index] = 0;
            for lane in 0..2 {
                self.pump(from, to, lane);
            }
        }
    }

    /// Adds to the latency of a direction, or takes it back.
    pub(crate) fn delay(&mut self, from: usize, to: usize, extra: u64) {
        let index = from * self.nodes() + to;
        self.extra[index] = extra;
    }

    /// Stops losing and tearing: the liveness phase is about what is left broken, not about bad
    /// luck without end.
    pub(crate) fn calm(&mut self) {
        self.shape.loss_ppm = 0;
        self.shape.twice_ppm = 0;
        self.shape.damage_ppm = 0;
        self.shape.bursts = false;
        self.refused.fill(None);
    }

    /// Breaks one lane now.
    pub(crate) fn fail(&mut self, a: usize, b: usize, lane: usize) {
        let (a, b) = (a.min(b), a.max(b));
        let (ghosts, notice_mean) = (self.shape.ghosts, self.shape.notice_mean);
        let back_off_mean = self.shape.back_off_mean;
        if !self.lane(a, b, lane).up {
            return;
        }
        let life = self.lane(a, b, lane).life;
        self.note(0xfa11 ^ (a as u64) << 32 ^ (b as u64) << 40 ^ (lane as u64) << 48);
        for (side, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
            // What takes effect of the operations under way is a matter of luck.
            let waiting = self.lane(a, b, lane).directions[side].queue.len() as u64;
            if waiting > 0 && lane == 1 {
                self.coverage.inject(Row::F92);
                self.lane(a, b, lane).unknown = true;
            }
            let survivors = self.random.below(waiting + 1);
            let reachable = self.endpoints[to].alive && !self.is_blocked(from, to);
            let reachable = reachable && !(lane == 1 && self.is_fenced(from, to));
            if lane == 1 {
                self.keep_promises(from, to);
            }
            let mut reachable = reachable;
            for _ in 0..survivors {
                let front = self.lane(a, b, lane).directions[side].queue.pop_front();
                if let Some(Operation::Write(write)) = front.as_ref().map(|front| &front.operation)
                {
                    // Nothing behind one that waits or is refused takes effect (contract C1).
                    reachable = reachable && self.gate(from, to, write) == Gate::Open;
                }
                if let Some(queued) = front.filter(|_| reachable) {
                    self.finish_landing(from, to);
                    self.deliver_whole(from, to, queued.operation);
                }
            }
            let direction = std::mem::take(&mut self.lane(a, b, lane).directions[side]);
            if ghosts {
                let torn = direction.landing.map(|landing| Operation::Write(landing.write));
                let lost = direction.queue.into_iter().map(|queued| queued.operation);
                for operation in torn.into_iter().chain(lost) {
                    self.haunt(from, to, life, operation);
                }
            }
        }
        let state = self.lane(a, b, lane);
        state.up = false;
        state.life += 1;
        let life = state.life;
        for (side, peer) in [(a, b), (b, a)] {
            let wait = self.random.exponential(notice_mean);
            let (side, peer, lane) = (side as Node, peer as Node, lane as u8);
            self.due.push((self.now + wait, NetEvent::Down { side, peer, lane, life }));
        }
        let wait = self.random.exponential(back_off_mean);
        self.connect_after(wait, a, b, lane, life);
    }

    fn connect_after(&mut self, wait: u64, a: usize, b: usize, lane: usize, life: u64) {
        let (a, b, lane) = (a.min(b) as Node, a.max(b) as Node, lane as u8);
        self.due.push((self.now + wait, NetEvent::Connect { a, b, lane, life }));
    }

    fn break_at(&mut self, at: u64, a: usize, b: usize, lane: usize, life: u64, row: Row) {
        let (a, b, lane) = (a.min(b) as Node, a.max(b) as Node, lane as u8);
        self.due.push((at, NetEvent::Break { a, b, lane, row, life }));
    }

    /// Everything that `from` sent and that has not arrived is lost with its lanes.
    pub(crate) fn swallow(&mut self, from: usize) {
        for peer in (0..self.nodes()).filter(|peer| *peer != from) {
            for lane in 0..2 {
                let direction =
                    &mut self.lane(from, peer, lane).directions[usize::from(from > peer)];
                direction.queue.clear();
                direction.bytes = 0;
                // A lane that lost something has failed (contract C1), also where its process goes on.
                self.fail(from, peer, lane);
            }
        }
    }

    /// Something that was due happens.
    pub(crate) fn on_event(&mut self, event: NetEvent) {
        let id = usize::from;
        match event {
            NetEvent::Arrive { from, to, lane } => self.pump(id(from), id(to), id(lane)),
            NetEvent::Land { from, to, life } => {
                let (from, to) = (id(from), id(to));
                if self.lane(from, to, 1).life == life && self.lane(from, to, 1).up {
                    self.land_piece(from, to);
                    self.pump(from, to, 1);
                }
            }
            NetEvent::Break { a, b, lane, life, row } => {
                let (a, b, lane) = (id(a), id(b), id(lane));
                let blocked = self.is_blocked(a, b) || self.is_blocked(b, a);
                let lost = matches!(row, Row::F06 | Row::F07);
                if self.lane(a, b, lane).life == life && (blocked || lost) {
                    self.coverage.observe(row);
                    self.fail(a, b, lane);
                }
            }
            NetEvent::Down { side, peer, lane, life } => {
                let (side, peer, lane) = (id(side), id(peer), id(lane));
                if self.lane(side, peer, lane).life == life {
                    self.tell_down(side, peer, lane);
                }
            }
            NetEvent::Up { side, peer, lane, life } => {
                self.tell_up(id(side), id(peer), id(lane), life);
            }
            NetEvent::Connect { a, b, lane, life } => self.connect(id(a), id(b), id(lane), life),
            NetEvent::Ghost(ghost) => self.appear(&ghost),
            NetEvent::Again(again) => self.repeat(*again),
            NetEvent::Told { from, to, life, through, level } => {
                let (from, to) = (id(from), id(to));
                if self.lane(from, to, 1).life == life {
                    self.tell_writer(from, to, through, level);
                }
            }
        }
    }

    fn tell_down(&mut self, side: usize, peer: usize, lane: usize) {
        let believed = &mut self.lane(side, peer, lane).believed[usize::from(side > peer)];
        if believed.take().is_some() {
            if lane == 1 {
                self.end_for_life(side, peer);
            }
            let reason = String::from("the lane broke");
            let event = Event::LinkDown { peer: id(peer), lane: lane_of(lane), reason };
            self.tell(side, event);
        }
    }

    fn tell_up(&mut self, side: usize, peer: usize, lane: usize, life: u64) {
        let state = self.lane(side, peer, lane);
        if state.life != life || !state.up || !self.endpoints[side].alive {
            return;
        }
        if self.lane(side, peer, lane).believed[usize::from(side > peer)].is_some() {
            // It had not found out that the old life was over: a half-open connection.
            self.coverage.meet(Row::F17);
        }
        self.tell_down(side, peer, lane);
        let state = self.lane(side, peer, lane);
        state.believed[usize::from(side > peer)] = Some(life);
        if std::mem::take(&mut state.unknown) {
            self.coverage.observe(Row::F92);
        }
        let state = self.lane(side, peer, lane);
        let incarnation = Incarnation(state.incarnation);
        self.note(incarnation.0 ^ side as u64);
        self.tell(side, Event::LinkUp { peer: id(peer), lane: lane_of(lane), incarnation });
        self.pump(peer, side, lane);
    }

    fn connect(&mut self, a: usize, b: usize, lane: usize, life: u64) {
        let state = self.lane(a, b, lane);
        if state.life != life || state.up {
            return;
        }
        let reachable = self.endpoints[a].alive && self.endpoints[b].alive && !self.is_cut(a, b);
        if !self.are_peers(a, b) {
            // Whoever has the other as its peer next tries it then.
            return;
        }
        if !reachable {
            // A start tries at once; this is for partitions that end.
            if self.endpoints[a].alive && self.endpoints[b].alive {
                let wait = RETRY_NANOS / 2 + self.random.below(RETRY_NANOS);
                self.connect_after(wait, a, b, lane, life);
            }
            return;
        }
        let incarnation = self.random.word();
        let state = self.lane(a, b, lane);
        state.life += 1;
        state.up = true;
        state.incarnation = incarnation;
        state.directions = Default::default();
        let life = state.life;
        for (side, peer) in [(a, b), (b, a)] {
            let wait = self.latency(peer, side, 0);
            let (side, peer, lane) = (side as Node, peer as Node, lane as u8);
            self.due.push((self.now + wait, NetEvent::Up { side, peer, lane, life }));
        }
    }

    fn latency(&mut self, from: usize, to: usize, bytes: usize) -> u64 {
        let extra = self.extra[from * self.nodes() + to];
        let luck = self.random.exponential(self.shape.latency_mean);
        self.shape.latency_min + luck + extra + bytes as u64 * self.shape.byte_nanos
    }

    fn tell(&mut self, node: usize, event: Event) {
        self.endpoints[node].inbox.push(event);
        self.wakes.push(node);
    }

    /// Delivers what has arrived.
    fn pump(&mut self, from: usize, to: usize, lane: usize) {
        let side = usize::from(from > to);
        loop {
            let now = self.now;
            if self.is_blocked(from, to)
                || !self.endpoints[to].alive
                || self.endpoints[to].inbox.len() >= INBOX_MAX
            {
                return;
            }
            let state = self.lane(from, to, lane);
            // The receiver must know of this life before anything of it arrives.
            if !state.up || state.believed[1 - side] != Some(state.life) {
                return;
            }
            let direction = &mut state.directions[side];
            if direction.landing.is_some()
                || direction.queue.front().is_none_or(|queued| queued.arrival > now)
            {
                return;
            }
            let Some(queued) = direction.queue.pop_front() else { return };
            let gate = match &queued.operation {
                Operation::Write(write) => self.gate(from, to, write),
                Operation::Message(_) => Gate::Open,
            };
            let direction = &mut self.lane(from, to, lane).directions[side];
            if gate == Gate::Waits {
                direction.queue.push_front(queued);
                return;
            }
            match queued.operation {
                Operation::Message(ref message) => {
                    direction.bytes -= message.len();
                    self.note_order(from, to, queued.order);
                    self.deliver_whole(from, to, queued.operation);
                }
                Operation::Write(write) => {
                    direction.bytes -= write.bytes.len();
                    direction.taken += 1;
                    if gate == Gate::Refused || self.is_fenced(from, to) {
                        // Refused, and the lane with it.
                        self.coverage.observe(Row::F95);
                        return self.fail(from, to, 1);
                    }
                    self.note_order(from, to, queued.order);
                    self.begin_landing(from, to, write);
                }
            }
        }
    }

    fn deliver_whole(&mut self, from: usize, to: usize, operation: Operation) {
        match operation {
            Operation::Message(message) => {
                let sum = u64::from(crc32c::crc32c(&message));
                self.note(sum ^ (from as u64) << 32 ^ (to as u64) << 40);
                self.tell(to, Event::Control { peer: id(from), message });
            }
            Operation::Write(write) => {
                self.scribble(from, to, &write, 0, write.bytes.len());
                self.hint(from, to, write.region);
            }
        }
    }

    /// Posts an operation of the process at `from`.
    fn post(
        &mut self,
        from: usize,
        to: usize,
        lane: usize,
        operation: Operation,
    ) -> Result<OpNumber, PostError> {
        let side = usize::from(from > to);
        let length = match &operation {
            Operation::Message(message) => message.len(),
            Operation::Write(write) => write.bytes.len(),
        };
        let limit = self.shape.queue_operations;
        let state = self.lane(from, to, lane);
        let (life, up) = (state.life, state.up);
        let Some(believed) = state.believed[side] else { return Err(PostError::Down(id(to))) };
        if believed != life || !up {
            // It broke behind the sender's back: swallowed, and never completed.
            return Ok(OpNumber(u64::MAX));
        }
        let direction = &mut state.directions[side];
        if direction.queue.len() >= limit || direction.bytes + length > QUEUE_BYTES_MAX {
            self.coverage.observe(Row::F13);
            if lane == 1 {
                self.coverage.meet(Row::F93);
            }
            return Err(PostError::Full(id(to)));
        }
        direction.posted += 1;
        direction.bytes += length;
        if let Operation::Write(write) = &operation
            && is_ring(write.region)
        {
            let before = direction.posted_at.replace(write.offset);
            if write.offset == 0 && before.is_some() {
                self.coverage.inject(Row::F106);
            }
        }
        let direction = &mut self.lane(from, to, lane).directions[side];
        let number = OpNumber(direction.posted);
        let latency = self.latency(from, to, length);
        let now = self.now;
        let index = from * self.nodes() + to;
        self.orders[index].0 += 1;
        let order = self.orders[index].0;
        let newest = self.lane(from, to, lane).directions[side].newest_arrival;
        let arrival = (now + latency).max(newest);
        let operation = self.disturb(from, to, life, arrival, operation);
        let direction = &mut self.lane(from, to, lane).directions[side];
        direction.newest_arrival = arrival;
        direction.queue.push_back(Queued { arrival, order, operation });
        if let Some(row) = self.loses() {
            self.break_at(arrival, from, to, lane, life, row);
        }
        let (from, to, lane) = (from as Node, to as Node, lane as u8);
        self.due.push((arrival, NetEvent::Arrive { from, to, lane }));
        Ok(number)
    }

    /// Posts a message.
    ///
    /// # Errors
    /// As the contract says.
    pub(crate) fn post_message(
        &mut self,
        from: usize,
        to: usize,
        message: Bytes,
    ) -> Result<(), PostError> {
        self.post(from, to, 0, Operation::Message(message)).map(|_| ())
    }

    /// Posts a one-sided write.
    ///
    /// # Errors
    /// As the contract says.
    pub(crate) fn post_write(
        &mut self,
        from: usize,
        to: usize,
        region: RegionId,
        offset: usize,
        bytes: Vec<u8>,
    ) -> Result<OpNumber, PostError> {
        self.post(from, to, 1, Operation::Write(Write { region, offset, bytes }))
    }

    /// Takes what arrived at `node`.
    pub(crate) fn take_inbox(&mut self, node: usize, events: &mut Vec<Event>) {
        events.append(&mut self.endpoints[node].inbox);
    }

    /// The memory of `node`.
    pub(crate) fn regions(&mut self, node: usize) -> &mut RegionTable {
        &mut self.endpoints[node].regions
    }

    /// Reads the memory of `node`.
    #[must_use]
    pub(crate) fn regions_ref(&self, node: usize) -> &RegionTable {
        &self.endpoints[node].regions
    }

    /// Whether there are grants for one life of a lane.
    #[must_use]
    pub(crate) fn has_for_life(&self) -> bool {
        self.shape.for_life
    }

    /// Whether receivers are told of writes.
    #[must_use]
    pub(crate) fn hints(&self) -> bool {
        self.shape.hints
    }
}
