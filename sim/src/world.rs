//! The world of one run: time, events, and the turns of the replicas.

use crate::checks::{Checks, Subject};
use crate::clients::{Clients, Standing};
use crate::coverage::{Coverage, Row, note_checkpoints};
use crate::machine::Ledger;
use crate::medium::Survival;
use crate::network::{Net, NetEvent, QUEUE_BYTES_MAX, Written};
use crate::operator::Operator;
use crate::plan::Item;
use crate::process::Place;
use crate::random::{Random, mix};
use crate::shape::{MS, Shape};
use crate::transport::{SharedNet, lock};
use quorate_consensus::{Ballot, Member, RoleName, Slot, Whims};
use quorate_pmem_log::MediumKind;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

/// Events of a run at the most: more is a run that cannot end.
pub(crate) const EVENTS_MAX: u64 = 3_000_000;
/// A disk is looked at after about so many turns.
const PROBE_EVERY: u64 = 400;
/// Trace lines kept.
pub(crate) const TRACE_LINES: usize = 200_000;

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A replica takes a turn.
    Step(usize),
    /// The sync thread of a replica's life finishes a step.
    Sync(usize, u64),
    /// The worker of a life's checkpoints finishes a piece of work.
    Checkpoint(usize, u64),
    /// The network.
    Net(NetEvent),
    /// A fault begins.
    Begin(usize),
    /// A fault ends.
    End(usize),
    /// A flapping link changes.
    Flap(usize, bool),
    /// A client may ask.
    Client(usize),
    /// A process starts again.
    Restart(usize),
    /// Some time has passed since a fault ended.
    Look(usize),
    /// A client with a session of its own acts.
    Session(usize),
    /// The operator looks after the members.
    Operate,
    /// Some time has passed since a removed member stood for election against this leader.
    LookForPeace(Ballot),
}

struct Scheduled {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The world of one run.
pub(crate) struct World {
    /// What the seed drew.
    pub(crate) shape: Shape,
    /// The faults.
    pub(crate) plan: Vec<Item>,
    /// The time.
    pub(crate) now: u64,
    /// Events so far.
    pub(crate) events: u64,
    /// The network.
    pub(crate) net: SharedNet,
    /// The replicas.
    pub(crate) places: Vec<Place>,
    /// What was applied.
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    /// Who asks.
    pub(crate) clients: Clients,
    /// What must hold.
    pub(crate) checks: Checks,
    /// What was injected and seen.
    pub(crate) coverage: Coverage,
    /// A fingerprint of all that happened.
    pub(crate) hash: u64,
    /// What is wrong.
    pub(crate) violation: Option<String>,
    /// One line an event, if anyone wants it.
    pub(crate) trace: Option<VecDeque<String>>,
    /// The liveness phase has begun: these replicas are left alone by faults.
    pub(crate) core: Vec<usize>,
    /// Clients ask.
    pub(crate) asking: bool,
    /// What was committed when each fault began.
    pub(crate) committed_before: Vec<u64>,
    /// Which faults ended.
    pub(crate) ended: Vec<bool>,
    /// Who led when a partition began, if it was another one than who is isolated.
    pub(crate) leader_before: Vec<Option<usize>>,
    /// An ambush that waits.
    pub(crate) ambush: Option<usize>,
    /// Records in rings that may be votes of those who hold them, with the lives of these.
    pub(crate) written: Vec<(Written, u64)>,
    /// Votes that were in a ring before they were in a log.
    pub(crate) passive_votes: u64,
    /// Replicas that stand for election, by bit, and whether two did at once since the last leader.
    candidates: u64,
    duel: bool,
    /// After a disaster too few can vote.
    pub(crate) stalled: bool,
    /// A change needs a disk that was lost in the same moment.
    pub(crate) stuck: bool,
    /// Answers to a catch-up that held nothing, of processes that are gone.
    pub(crate) empty_answers: u64,
    /// Faults in force, for those that hit whoever led: whom they hit.
    pub(crate) hit: Vec<Option<usize>>,
    pub(crate) random: Random,
    pub(crate) client_random: Random,
    session_random: Random,
    /// Legal misbehaviour of the product.
    pub(crate) whims: Whims,
    /// Who changes the members.
    pub(crate) operator: Operator,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    lives: u64,
}

impl World {
    /// A world in which all replicas have just started.
    #[must_use]
    pub(crate) fn new(seed: u64, shape: Shape, plan: Vec<Item>, trace: bool) -> Self {
        let net = Net::new(shape.nodes, shape.net.clone(), Random::split(seed, 3));
        let places = (0..shape.nodes).map(|index| Place::new(index, &shape)).collect();
        let mut world = Self {
            clients: Clients::new(&shape, trace),
            hit: vec![None; plan.len()],
            ended: vec![false; plan.len()],
            leader_before: vec![None; plan.len()],
            ambush: None,
            written: Vec::new(),
            passive_votes: 0,
            candidates: 0,
            duel: false,
            stalled: false,
            stuck: false,
            empty_answers: 0,
            committed_before: vec![0; plan.len()],
            net: Arc::new(Mutex::new(net)),
            places,
            plan,
            now: 0,
            events: 0,
            ledger: Arc::default(),
            checks: Checks::default(),
            coverage: Coverage::default(),
            hash: mix(seed),
            violation: None,
            trace: trace.then(VecDeque::new),
            core: Vec::new(),
            asking: true,
            random: Random::split(seed, 4),
            client_random: Random::split(seed, 5),
            session_random: Random::split(seed, 14),
            whims: Whims::new(Random::split(seed, 7).word(), shape.whims),
            operator: Operator::new(Random::split(seed, 11), Random::split(seed, 15)),
            queue: BinaryHeap::new(),
            order: 0,
            lives: 0,
            shape,
        };
        for node in 0..world.shape.founders {
            let at = world.random.below(20 * MS);
            world.schedule(at, Happening::Restart(node));
        }
        for client in 0..world.clients.sessions_count() {
            let at = world.session_random.below(300 * MS);
            world.schedule(at, Happening::Session(client));
        }
        if world.shape.members.is_some() {
            world.schedule(200 * MS, Happening::Operate);
        }
        for client in 0..world.clients.all.len() {
            let at = world.client_random.below(100 * MS);
            world.schedule(at, Happening::Client(client));
        }
        for index in 0..world.plan.len() {
            world.schedule(world.plan[index].at, Happening::Begin(index));
            world.schedule(world.plan[index].until, Happening::End(index));
        }
        world
    }

    /// Lets `what` happen at `at`.
    pub(crate) fn schedule(&mut self, at: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at, order: self.order, what }));
    }

    /// A line of the trace.
    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{:>12.6} ms  {}", self.now as f64 / 1e6, line()));
        }
    }

    /// Something is wrong: the run is over.
    pub(crate) fn fail(&mut self, what: String) {
        if self.violation.is_none() && self.trace.is_some() {
            self.say_states();
        }
        self.say(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    fn say_states(&mut self) {
        let lanes = lock(&self.net).describe();
        for lane in lanes {
            self.say(|| lane);
        }
        for node in 0..self.shape.nodes {
            let place = &self.places[node];
            let Some(process) = &place.process else {
                self.say(|| format!("replica {} is not there", node + 1));
                continue;
            };
            let status = process.node.status();
            let links: Vec<_> = status
                .peers
                .iter()
                .map(|peer| {
                    (peer.node.0, peer.link.control_up, peer.link.data_up, peer.heard_ms_ago)
                })
                .collect();
            let line = format!(
                "replica {} is {:?} of {:?} under {}, commit {}, applied {}, last {}, votes {}, {}; \
                 peers (control, data, heard ms ago) {links:?}",
                status.node,
                status.role,
                status.leader,
                status.ballot,
                status.commit_slot,
                status.applied_slot,
                status.last_slot,
                status.votes,
                status.trouble,
            );
            self.say(|| line);
        }
    }

    /// Lets everything happen up to `until`, or until something is wrong.
    pub(crate) fn run_until(&mut self, until: u64) {
        while self.violation.is_none() {
            let Some(Reverse(next)) = self.queue.peek() else { break };
            if next.at > until {
                break;
            }
            let Some(Reverse(Scheduled { at, what, .. })) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            self.events += 1;
            if self.events > EVENTS_MAX {
                self.fail(format!("the run does not end: {EVENTS_MAX} events"));
            }
            self.happen(what);
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Step(node) => {
                if self.places[node].step_at == self.now {
                    self.places[node].step_at = u64::MAX;
                    self.step(node);
                }
            }
            Happening::Sync(node, life) => self.sync(node, life),
            Happening::Checkpoint(node, life) => self.checkpoint(node, life),
            Happening::Net(event) => {
                let net = Arc::clone(&self.net);
                let mut net = lock(&net);
                net.now = self.now;
                net.on_event(event);
                self.after_net(&mut net);
            }
            Happening::Begin(index) => self.begin(index),
            Happening::End(index) => self.end(index),
            Happening::Flap(index, open) => self.flap(index, open),
            Happening::Client(client) => self.client(client),
            Happening::Restart(node) => self.restart(node),
            Happening::Look(index) => self.look(index),
            Happening::Session(client) => self.session(client),
            Happening::Operate => self.operate(),
            Happening::LookForPeace(ballot) => self.look_for_peace(ballot),
        }
    }

    /// No two lives of processes have the same number.
    pub(crate) fn next_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    /// Does something to the network.
    pub(crate) fn with_net(&mut self, act: impl FnOnce(&mut Net)) {
        let net = Arc::clone(&self.net);
        let mut net = lock(&net);
        net.now = self.now;
        act(&mut net);
        self.after_net(&mut net);
    }

    fn after_net(&mut self, net: &mut Net) {
        for (at, event) in net.due.drain(..) {
            self.schedule(at.max(self.now), Happening::Net(event));
        }
        for written in net.written.drain(..) {
            if let Some(process) = &self.places[written.to].process {
                self.written.push((written, process.life));
            }
        }
        self.settle_written();
        for node in std::mem::take(&mut net.wakes) {
            if self.places[node].paused {
                self.coverage.meet(Row::F103);
            }
            self.wake(node);
        }
    }

    /// The replica takes a turn soon.
    pub(crate) fn wake(&mut self, node: usize) {
        let turn = self.random.exponential(self.shape.turn_mean) * self.places[node].slow;
        self.step_by(node, self.now + turn);
    }

    fn step_by(&mut self, node: usize, at: u64) {
        let place = &mut self.places[node];
        if place.process.is_some() && !place.paused && at < place.step_at {
            place.step_at = at;
            self.schedule(at, Happening::Step(node));
        }
    }

    fn step(&mut self, node: usize) {
        let rate = self.shape.rates[node];
        let clock = self.places[node].clock(self.now, rate);
        if self.places[node].paused {
            return;
        }
        let stale = self.places[node].stale_clock.take();
        if stale.is_some() {
            self.coverage.observe(Row::F32);
        }
        let clock = stale.unwrap_or(clock);
        let Some(process) = &mut self.places[node].process else { return };
        lock(&self.net).now = self.now;
        let turn = catch_unwind(AssertUnwindSafe(|| process.node.step(clock)));
        self.with_net(|_| {});
        let turn = match turn {
            Ok(turn) => turn,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("without a word").to_owned();
                return self.fail(format!("panic: replica {}: {text}", node + 1));
            }
        };
        self.observe(node);
        if self.places[node].medium.control().is_dead() {
            let (survival, back_at) =
                self.places[node].death.take().unwrap_or((Survival::Subset, self.now + MS));
            self.say(|| format!("replica {} dies in the middle of a turn", node + 1));
            self.coverage.observe(Row::F39);
            let died_in = self.places[node].medium.control().died_in();
            self.crash(node, survival);
            if let Some(row) = died_in {
                self.coverage.inject(row);
                self.places[node].died_of = vec![row];
            }
            self.schedule(back_at.max(self.now + 1), Happening::Restart(node));
            return;
        }
        self.poll_clients(node);
        self.listen(node);
        if self.clients.sessions_count() > 0 {
            let ledger = Arc::clone(&self.ledger);
            self.clients.poll_sessions(&lock(&ledger));
            self.after_clients(Vec::new());
        }
        self.schedule_sync(node);
        self.schedule_checkpoint(node);
        if self.places[node].process.is_none() {
            return;
        }
        let next = if turn.busy {
            let mean = self.shape.turn_mean * self.places[node].slow;
            self.now + 1 + self.random.exponential(mean)
        } else {
            self.places[node].world_time(turn.next, rate).max(self.now + 1)
        };
        self.step_by(node, next);
    }

    /// Checks a replica after its turn.
    fn observe(&mut self, node: usize) {
        self.settle_written();
        let Some(subject) = self.places[node].subject() else { return };
        let Some(process) = &self.places[node].process else { return };
        let mut seen = process.seen;
        let was = seen;
        self.checks.note_vote(&subject, &mut seen);
        let core = subject.core;
        let state = core.commit_slot().0 << 20 ^ core.promised().pack() ^ subject.digest;
        self.hash = mix(self.hash ^ mix(state ^ self.now << 8 ^ node as u64));
        let forgot = self.places[node].forgot && core.votes();
        // Repaired: all that was told is chosen, or a later leader has asked the others.
        let early = self.places[node].damaged.filter(|_| core.votes()).is_some_and(|told| {
            let (promised, (_, slot)) = told;
            core.commit_slot() < slot && core.vote().0 <= promised
        });
        let dead = self.places[node].medium.control().is_dead();
        // Its clock was read again: whatever it does now, it does not answer reads by the old lease.
        let over = self.places[node].old_lease && !core.holds_lease();
        let life = subject.life;
        let led = self.checks.leaderships();
        let (role, leads) = (core.role(), core.role_is_leader());
        let (promised, commit) = (core.promised().pack(), core.commit_slot());
        let leading = if leads { core.ballot().pack() } else { 0 };
        let unnamed = self.shape.members.is_some() && core.votes() && !is_named(&subject);
        let told = lock(&process.spy).row_promised.take();
        let hidden = told.filter(|told| *told != core.promised() && !dead);
        let hidden =
            hidden.map(|told| format!("A6: a row tells promise {told} for {}", core.promised()));
        let checked =
            if dead { Ok(()) } else { self.checks.after_turn(&subject, &mut seen, &self.shape) };
        let checked = checked.and(hidden.map_or(Ok(()), Err));
        let checked = checked.and_then(|()| self.leases_apart(node));
        let line = (self.trace.is_some() && format!("{was:?}") != format!("{seen:?}"))
            .then(|| format!("replica {} is {:?}, {seen:?}", node + 1, core.role()));
        if let Some(process) = &mut self.places[node].process {
            process.seen = seen;
        }
        if over {
            self.places[node].old_lease = false;
            self.coverage.observe(Row::F88);
        }
        lock(&self.net).note_ballots(node, promised, leading);
        self.note_role(node, role, commit, led);
        if let Some(line) = line {
            self.say(|| line);
        }
        if let Err(what) = checked {
            self.fail(format!("{what} (replica {}, life {life})", node + 1));
        }
        if early {
            self.fail(format!("amnesia: replica {} votes before it is repaired", node + 1));
        }
        if forgot || unnamed {
            self.fail(format!("amnesia: replica {} lost votes and votes (life {life})", node + 1));
        }
        let wrong = lock(&self.ledger).violation.clone();
        if let Some(what) = wrong {
            self.fail(format!("{what} (replica {}, life {life})", node + 1));
        }
        if leads && commit > was.commit() && self.ambush.is_some() && !dead {
            self.maybe_spring(node, commit);
        }
        if self.random.below(PROBE_EVERY) == 0 {
            let waiting = lock(&self.net).queued_bytes();
            if waiting > QUEUE_BYTES_MAX {
                self.fail(format!("I15: {waiting} bytes wait in one direction of a lane"));
            }
            self.probe(node);
        }
    }

    /// While a leader may answer reads alone, nobody else leads (rules R7, R8): from a member that granted
    /// the lease every other leader needs a promise, and gets it when the lease is over by all clocks, or
    /// given up.
    fn leases_apart(&self, node: usize) -> Result<(), String> {
        let Some(subject) = self.places[node].subject().filter(|_| self.shape.lease > 0) else {
            return Ok(());
        };
        if !subject.core.role_is_leader() {
            return Ok(());
        }
        let ballot = subject.core.ballot();
        for place in self.places.iter().filter(|place| place.index != node) {
            let Some(other) = place.subject() else { continue };
            let clock = place.clock(self.now, self.shape.rates[place.index]);
            let holds = other.core.lease_until().is_some_and(|until| clock.now < until);
            if holds && other.core.ballot() < ballot {
                let older = other.core.ballot();
                return Err(format!("R7: {ballot} leads while {older} has a lease"));
            }
        }
        Ok(())
    }

    /// What elections meet by themselves.
    fn note_role(&mut self, node: usize, role: RoleName, commit: Slot, led: u64) {
        let bit = 1 << node;
        if role == RoleName::Candidate {
            let first = self.candidates & bit == 0;
            self.candidates |= bit;
            if first {
                self.note_candidate(node);
            }
            if first && commit.0 < self.checks.committed && !self.places[node].behind {
                self.places[node].behind = true;
                self.coverage.inject(Row::F28);
            }
            if self.candidates.count_ones() > 1 && !self.duel {
                self.duel = true;
                self.coverage.inject(Row::F26);
            }
            return;
        }
        self.candidates &= !bit;
        let behind = std::mem::take(&mut self.places[node].behind);
        if self.checks.leaderships() > led {
            self.note_old_lease(node);
            if behind {
                self.coverage.observe(Row::F28);
            }
            if std::mem::take(&mut self.duel) {
                self.coverage.observe(Row::F26);
            }
        }
    }

    /// A replica begins to lead while another one, that has led under a lease, does not know yet.
    fn note_old_lease(&mut self, node: usize) {
        if self.shape.lease == 0 {
            return;
        }
        for other in (0..self.shape.nodes).filter(|other| *other != node) {
            let Some(subject) = self.places[other].subject() else { continue };
            if subject.core.role_is_leader() {
                self.coverage.inject(Row::F88);
                self.places[other].old_lease = true;
            }
        }
    }

    /// Springs the ambush if `node` alone knows that `commit` is chosen, sooner or later.
    fn maybe_spring(&mut self, node: usize, commit: Slot) {
        let Some(index) = self.ambush else { return };
        let others = self.places.iter().filter(|place| place.index != node);
        let others: Vec<_> = others.filter_map(|place| Some(place.subject()?.core)).collect();
        let known = others.iter().map(|core| core.commit_slot()).max();
        let alone = known < Some(commit) && !self.places[node].forgets;
        // Another value of an older ballot in this very slot, at somebody who comes back for the next
        // election: that is what an ambush is for.
        let ballot = self.places[node].subject().map(|subject| subject.core.ballot());
        let rival =
            others.iter().any(|core| core.last_slot() >= commit && Some(core.vote().0) < ballot);
        let chance = if rival { 900_000 } else { 200_000 };
        if alone && self.core.is_empty() && self.random.chance(chance) {
            self.spring(index, node);
        }
    }

    fn probe(&mut self, node: usize) {
        let place = &self.places[node];
        let Some(process) = &place.process else { return };
        if place.forgets
            || place.medium.control().is_dead()
            || self.shape.profile.kind == MediumKind::Memory
        {
            return;
        }
        let spy = Arc::clone(&process.spy);
        let medium = Arc::clone(&place.medium);
        let probed = self.checks.probe(node, &self.shape, &medium, &lock(&spy));
        if let Err(what) = probed {
            self.fail(format!("{what} (replica {}, its disk)", node + 1));
        }
    }

    fn poll_clients(&mut self, node: usize) {
        let ledger = Arc::clone(&self.ledger);
        let free = self.clients.poll(node, &lock(&ledger));
        self.after_clients(free);
    }

    pub(crate) fn after_clients(&mut self, free: Vec<usize>) {
        for client in free {
            let think = self.client_random.exponential(self.shape.think_mean);
            self.schedule(self.now + think, Happening::Client(client));
        }
        if let Some(said) = &mut self.clients.said {
            for line in std::mem::take(said) {
                self.say(|| line);
            }
        }
        if let Some(what) = self.clients.violation.clone() {
            self.fail(what);
        }
    }

    fn client(&mut self, client: usize) {
        if !self.asking || self.clients.requests >= self.shape.requests_max {
            return;
        }
        let node = self.clients.all[client].node;
        let Some(process) = &self.places[node].process else {
            let wait = self.client_random.exponential(20 * MS);
            return self.schedule(self.now + wait, Happening::Client(client));
        };
        let handle = process.handle.clone();
        let at = self.standing(node);
        let clock = self.places[node].clock(self.now, self.shape.rates[node]);
        self.clients.ask(client, &handle, &self.shape, &mut self.client_random, at, clock);
        self.after_clients(Vec::new());
        self.wake(node);
        // What is refused at once is answered at once.
        self.poll_clients(node);
    }

    /// A client with a session of its own turns to any replica.
    fn session(&mut self, client: usize) {
        if !self.asking || self.clients.requests >= self.shape.requests_max {
            return;
        }
        let node = self.session_random.below(self.shape.nodes as u64) as usize;
        let handle = self.places[node].process.as_ref().map(|process| process.handle.clone());
        let ledger = Arc::clone(&self.ledger);
        let random = &mut self.session_random;
        let wait = self.clients.act(client, handle.as_ref(), &self.shape, random, &lock(&ledger));
        self.after_clients(Vec::new());
        self.schedule(self.now + wait, Happening::Session(client));
        self.wake(node);
    }

    /// Where a replica stands when a client asks it.
    fn standing(&self, node: usize) -> Standing {
        let Some(subject) = self.places[node].subject() else { return Standing::default() };
        let core = subject.core;
        Standing {
            deposed: core.role_is_leader() && self.is_deposed(node, core.ballot()),
            behind: core.applied_slot().0 < self.checks.committed,
            // One of the clocks is always exactly as wrong as the replicas are told.
            leased: core.role_is_leader() && core.holds_lease(),
        }
    }

    fn is_deposed(&self, node: usize, ballot: Ballot) -> bool {
        let others = self.places.iter().filter(|place| place.index != node);
        let mut cores = others.filter_map(Place::subject);
        cores.any(|subject| subject.core.promised() > ballot)
    }

    /// Lets the sync thread of a replica work, if there is work.
    fn schedule_sync(&mut self, node: usize) {
        if !self.shape.profile.sync_thread {
            return;
        }
        let wait = self.random.exponential(self.shape.sync_mean) + self.places[node].stall;
        let now = self.now;
        let Some(process) = &mut self.places[node].process else { return };
        if process.syncing || !process.steps.is_due() {
            return;
        }
        process.syncing = true;
        let life = process.life;
        self.schedule(now + wait, Happening::Sync(node, life));
    }

    fn sync(&mut self, node: usize, life: u64) {
        let Some(process) = &mut self.places[node].process else { return };
        if process.life != life {
            return;
        }
        process.syncing = false;
        process.steps.step();
        self.schedule_sync(node);
        self.wake(node);
    }

    /// Lets the worker of a replica's checkpoints work, if there is work.
    fn schedule_checkpoint(&mut self, node: usize) {
        let wait = self.random.exponential(2 * self.shape.sync_mean) + self.places[node].stall;
        let now = self.now;
        let Some(process) = &mut self.places[node].process else { return };
        if process.checkpointing || !process.checkpoints.is_due() {
            return;
        }
        process.checkpointing = true;
        let life = process.life;
        self.schedule(now + wait, Happening::Checkpoint(node, life));
    }

    fn checkpoint(&mut self, node: usize, life: u64) {
        let Some(process) = &mut self.places[node].process else { return };
        if process.life != life {
            return;
        }
        process.checkpointing = false;
        process.checkpoints.step();
        self.schedule_checkpoint(node);
        self.wake(node);
    }

    /// The process dies, and with its machine as much of what was not synced as `survival` says.
    pub(crate) fn crash(&mut self, node: usize, survival: Survival) {
        let Some(process) = self.places[node].process.take() else { return };
        let power = survival != Survival::Everything;
        note_checkpoints(&mut self.coverage, &process.node);
        self.remember_members(node, &process);
        let checkpoints = process.node.status().checkpoints;
        if checkpoints.taking_bytes.is_some() {
            self.coverage.inject(Row::F69);
            self.places[node].died_of.push(Row::F69);
        }
        if power && process.syncing && self.random.chance(600_000) {
            // The sync thread was in the middle of it.
            let medium = &self.places[node].medium;
            medium.control().kill_after(self.random.below(4));
            process.steps.step();
            self.coverage.inject(Row::F39);
            self.coverage.observe(Row::F39);
        }
        if power && process.checkpointing && self.random.chance(600_000) {
            // So was the worker of its checkpoints: in a checkpoint, or in an installation.
            let medium = &self.places[node].medium;
            medium.control().kill_after(self.random.below(6));
            process.checkpoints.step();
        }
        self.places[node].medium.control().kill();
        {
            let spy = lock(&process.spy);
            let (told, vote) = &mut self.places[node].told;
            *told = (*told).max(spy.promised);
            *vote = (*vote).max(spy.vote);
            self.empty_answers += spy.empty_answers;
        }
        drop(process);
        self.with_net(|net| net.stop(node));
        let medium = self.places[node].medium.after_crash(survival, &mut self.random);
        self.places[node].medium = medium;
        self.places[node].step_at = u64::MAX;
        self.places[node].paused = false;
        self.places[node].stale_clock = None;
        self.places[node].old_lease = false;
        self.places[node].behind = false;
        self.candidates &= !(1 << node);
        let free = self.clients.lose(node);
        self.after_clients(free);
        self.say(|| {
            format!("replica {} is gone ({survival:?} of its unsynced bytes left)", node + 1)
        });
    }
}

/// Whether some configuration that a replica knows names it, with its disk, as a voter.
fn is_named(subject: &Subject<'_>) -> bool {
    let Member { node, incarnation } = subject.member;
    let mut known = subject.core.configurations().iter();
    known.any(|(_, configuration)| configuration.votes(node, incarnation))
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now", &self.now).finish_non_exhaustive()
    }
}
