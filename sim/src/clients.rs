//! Clients: each asks its replica one thing at a time, remembers when it asked and when it was
//! answered, and believes of an error only what the error says.

use crate::machine::{Act, Command, Ledger, decode_answer, key_name};
use crate::random::Random;
use crate::sessions::Sessions;
use crate::shape::Shape;
use bytes::{Bytes, BytesMut};
use quorate_check::{KvInput, KvOutput, Operation, Return};
use quorate_consensus::batch::{put_item, take_item};
use quorate_replica::{Clock, Consistency, Failure, Handle, Pending};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Unknown outcomes of one key at the most, if there are other keys.
const UNKNOWN_MAX: u32 = 5;
/// The key of the liveness phase.
const FRESH_KEY: u8 = 250;

/// One client of one replica.
#[derive(Debug)]
pub(crate) struct Client {
    /// The replica it talks to.
    pub(crate) node: usize,
    /// Its name in the history; another one after each unknown outcome.
    name: u32,
    asked: Option<Asked>,
    /// A linearizable read of it was answered.
    pub(crate) has_read: bool,
}

#[derive(Debug)]
struct Asked {
    pending: Pending,
    call: u64,
    what: What,
    at: Standing,
}

/// Where a replica stands when it is asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    /// It leads, and another one does so under a higher ballot.
    pub(crate) deposed: bool,
    /// Something is chosen that it has not applied.
    pub(crate) behind: bool,
    /// It leads, under a lease, and some clock is as wrong as it may be.
    pub(crate) leased: bool,
}

#[derive(Debug)]
enum What {
    Writes(Vec<Command>),
    Read {
        key: u8,
        stale: bool,
    },
    /// Must be refused.
    Wrong,
}

/// All clients of a run, and what they saw.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// Every client.
    pub(crate) all: Vec<Client>,
    names: u32,
    /// The number of the last command.
    numbers: u32,
    tick: u64,
    /// For the checker.
    pub(crate) history: Vec<Operation<KvInput, KvOutput>>,
    /// Numbers of commands that were acknowledged.
    pub(crate) acknowledged: Vec<u32>,
    /// Of those that were rejected: they must never be applied.
    pub(crate) rejected: Vec<u32>,
    /// Of those whose outcome is unknown.
    pub(crate) unknown: BTreeSet<u32>,
    /// How many writes of each key had unknown outcomes.
    unknown_of_key: BTreeMap<u8, u32>,
    /// Linearizable reads asked of deposed leaders and of replicas that were behind, and settled.
    pub(crate) deposed_reads: (u64, u64),
    pub(crate) behind_reads: (u64, u64),
    /// And of leaders with leases.
    pub(crate) leased_reads: (u64, u64),
    /// Clients that keep sessions of their own.
    pub(crate) sessions: Sessions,
    /// Requests so far.
    pub(crate) requests: u32,
    /// Reads answered.
    pub(crate) reads: u64,
    /// Stale reads answered and checked.
    pub(crate) stale_reads: u64,
    /// Refused requests that had to be refused.
    pub(crate) refused: u64,
    /// The first thing that was wrong.
    pub(crate) violation: Option<String>,
    /// Trace lines of the last call, if anyone wants them.
    pub(crate) said: Option<Vec<String>>,
}

impl Clients {
    /// As many as the shape says.
    #[must_use]
    pub(crate) fn new(shape: &Shape, trace: bool) -> Self {
        let mut clients = Self { said: trace.then(Vec::new), ..Self::default() };
        for node in 0..shape.nodes {
            for _ in 0..shape.clients {
                clients.add(node);
            }
        }
        if let Some(sessions) = &shape.sessions {
            clients.add_sessions(sessions);
        }
        clients
    }

    /// A name that no client had before.
    pub(crate) fn next_name(&mut self) -> u32 {
        self.names += 1;
        self.names
    }

    /// Another client of `node`; returns its place.
    pub(crate) fn add(&mut self, node: usize) -> usize {
        self.names += 1;
        self.all.push(Client { node, name: self.names, asked: None, has_read: false });
        self.all.len() - 1
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(said) = &mut self.said {
            said.push(line());
        }
    }

    /// Whether the client waits for an outcome.
    #[must_use]
    pub(crate) fn is_busy(&self, client: usize) -> bool {
        self.all[client].asked.is_some()
    }

    /// The client asks something.
    pub(crate) fn ask(
        &mut self,
        client: usize,
        handle: &Handle,
        shape: &Shape,
        random: &mut Random,
        at: Standing,
        clock: Clock,
    ) {
        if self.is_busy(client) {
            return;
        }
        self.requests += 1;
        if random.chance(5_000) {
            return self.ask_wrongly(client, handle, shape, random);
        }
        // A client whose write does not come back asks nothing else: these only read.
        let reader = shape.lease_storms && client.is_multiple_of(2);
        if random.chance(shape.reads_ppm) || reader {
            let key = self.draw_key(shape, random);
            let stale = random.chance(shape.stale_ppm);
            let consistency = if stale { Consistency::Stale } else { Consistency::Linearizable };
            let pending = handle.query_at(clock, &[key], consistency);
            self.note(client, pending, What::Read { key, stale });
            if let Some(asked) = self.all[client].asked.as_mut().filter(|_| !stale) {
                asked.at = at;
                self.deposed_reads.0 += u64::from(at.deposed);
                self.behind_reads.0 += u64::from(at.behind);
                self.leased_reads.0 += u64::from(at.leased);
            }
        } else {
            let count = if random.chance(150_000) { random.between(2, 4) } else { 1 };
            let commands = (0..count).map(|_| self.draw(shape, random, count)).collect();
            self.write(client, handle, commands);
        }
    }

    fn ask_wrongly(&mut self, client: usize, handle: &Handle, shape: &Shape, random: &mut Random) {
        let pending = match random.below(3) {
            0 => handle.propose_items(1, Bytes::from(vec![0; shape.command_bytes_max + 1])),
            1 => handle.propose_items(3, Bytes::from_static(&[200, 1, 2])),
            _ => handle.propose_items(0, Bytes::new()),
        };
        self.note(client, pending, What::Wrong);
    }

    fn note(&mut self, client: usize, pending: Pending, what: What) {
        let call = self.tick();
        let name = self.all[client].name;
        self.say(|| match &what {
            What::Writes(commands) => {
                let numbers: Vec<_> = commands
                    .iter()
                    .map(|command| format!("#{} {}", command.number, command.input()))
                    .collect();
                format!("client {name} asks {}", numbers.join(", "))
            }
            What::Read { key, stale } => {
                format!(
                    "client {name} asks {}{}",
                    key_name(*key),
                    if *stale { " (stale)" } else { "" }
                )
            }
            What::Wrong => format!("client {name} asks nonsense"),
        });
        self.all[client].asked = Some(Asked { pending, call, what, at: Standing::default() });
    }

    /// The client writes these.
    fn write(&mut self, client: usize, handle: &Handle, commands: Vec<Command>) {
        let mut items = BytesMut::new();
        for command in &commands {
            put_item(&mut items, &command.encode());
        }
        let pending = handle.propose_items(commands.len() as u32, items.freeze());
        self.note(client, pending, What::Writes(commands));
    }

    /// The client writes one thing that nobody wrote before.
    pub(crate) fn write_fresh(&mut self, client: usize, handle: &Handle) -> u32 {
        self.numbers += 1;
        let number = self.numbers;
        let act = Act::Set(format!("fresh {number}").into_bytes());
        self.write(client, handle, vec![Command { number, key: FRESH_KEY, act }]);
        number
    }

    /// The client reads, and not what may be old.
    pub(crate) fn read(&mut self, client: usize, handle: &Handle, clock: Clock) {
        let pending = handle.query_at(clock, &[FRESH_KEY], Consistency::Linearizable);
        self.note(client, pending, What::Read { key: FRESH_KEY, stale: false });
    }

    /// A key that the checker can still decide: after some unknown outcomes another takes its place,
    /// since each of them may take effect at any time after.
    fn draw_key(&self, shape: &Shape, random: &mut Random) -> u8 {
        let mut key = random.below(u64::from(shape.keys)) as u8;
        while self.unknown_of_key.get(&key).is_some_and(|unknown| *unknown >= UNKNOWN_MAX) {
            let Some(next) = key.checked_add(shape.keys).filter(|next| *next < FRESH_KEY) else {
                return key;
            };
            key = next;
        }
        key
    }

    pub(crate) fn draw(&mut self, shape: &Shape, random: &mut Random, parts: u64) -> Command {
        self.numbers += 1;
        let number = self.numbers;
        let key = self.draw_key(shape, random);
        let room = shape.command_bytes_max as u64 / parts / 2 - 32;
        let mut value = format!("{number}:").into_bytes();
        if random.chance(300_000) {
            let pad = random.below(room.saturating_sub(16)) as usize;
            value.resize(value.len() + pad, b'.');
        }
        // A key keeps to one kind, so that counters stay numbers.
        let act = match (key % 3, random.below(10)) {
            (0, 0..6) => Act::Set(value),
            (0, 6..8) => {
                let guess = format!("{}:", number.saturating_sub(random.between(1, 40) as u32));
                Act::Cas(Some(guess.into_bytes()), value)
            }
            (0, 8) => Act::Cas(None, value),
            (_, 9) => Act::Del,
            (1, _) => Act::Incr(random.between(1, 9) as i64),
            _ => Act::Append(format!("{number},").into_bytes()),
        };
        Command { number, key, act }
    }

    /// Takes the outcomes that are there for clients of `node`; returns who may ask again.
    pub(crate) fn poll(&mut self, node: usize, ledger: &Ledger) -> Vec<usize> {
        let mut free = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        for index in 0..self.all.len() {
            let client = &mut self.all[index];
            if client.node != node {
                continue;
            }
            let Some(asked) = &mut client.asked else { continue };
            let Poll::Ready(outcome) = Pin::new(&mut asked.pending).poll(&mut context) else {
                continue;
            };
            if let Some(asked) = client.asked.take() {
                self.settle(index, asked, outcome, ledger);
                free.push(index);
            }
        }
        free
    }

    /// The process of `node` died: what its clients asked may have happened or not.
    pub(crate) fn lose(&mut self, node: usize) -> Vec<usize> {
        let mut free = Vec::new();
        for index in 0..self.all.len() {
            if self.all[index].node != node {
                continue;
            }
            if let Some(asked) = self.all[index].asked.take() {
                self.unknown(index, asked.call, asked.what);
                free.push(index);
            }
        }
        free
    }

    fn unknown(&mut self, index: usize, call: u64, what: What) {
        let client = self.all[index].name;
        if let What::Writes(commands) = what {
            self.note_unknown(client, call, commands);
        }
        self.names += 1;
        self.all[index].name = self.names;
        self.say(|| format!("client {client} will not learn the outcome"));
    }

    /// These may have happened, or happen later.
    pub(crate) fn note_unknown(&mut self, client: u32, call: u64, commands: Vec<Command>) {
        for command in commands {
            self.unknown.insert(command.number);
            *self.unknown_of_key.entry(command.key).or_default() += 1;
            self.names += 1;
            let input = command.input();
            self.history.push(Operation { client, call, input, ret: None });
        }
    }

    fn settle(
        &mut self,
        index: usize,
        asked: Asked,
        outcome: Result<Bytes, Failure>,
        ledger: &Ledger,
    ) {
        let name = self.all[index].name;
        let Asked { call, what, at, .. } = asked;
        self.deposed_reads.1 += u64::from(at.deposed);
        self.behind_reads.1 += u64::from(at.behind && outcome.is_ok());
        self.leased_reads.1 += u64::from(at.leased && outcome.is_ok());
        match (outcome, what) {
            (Ok(_), What::Wrong) => self.wrong("a malformed request was answered".into()),
            (Err(Failure::Rejected(_)), What::Wrong) => self.refused += 1,
            (Err(Failure::Unknown(_)), What::Wrong) => {}
            (Err(Failure::Unknown(_)), what) => self.unknown(index, call, what),
            (Err(Failure::Rejected(reason)), what) => {
                self.say(|| format!("client {name} is rejected: {reason}"));
                if let What::Writes(commands) = what {
                    self.rejected.extend(commands.iter().map(|command| command.number));
                }
            }
            (Ok(replies), What::Writes(commands)) => {
                self.say(|| format!("client {name} has its writes acknowledged"));
                self.on_written(name, call, commands, &replies, ledger);
            }
            (Ok(answer), What::Read { key, stale }) => {
                self.all[index].has_read |= !stale;
                self.on_read(name, call, key, stale, &answer, ledger);
            }
        }
    }

    pub(crate) fn on_written(
        &mut self,
        client: u32,
        call: u64,
        commands: Vec<Command>,
        mut replies: &[u8],
        ledger: &Ledger,
    ) {
        let at = self.tick();
        for command in commands {
            let reply = take_item(&mut replies);
            let Some(output) = reply.and_then(|reply| command.output(reply)) else {
                return self.wrong(format!("command {} has no reply", command.number));
            };
            if !ledger.applied.contains_key(&command.number) {
                self.wrong(format!(
                    "command {} is acknowledged and nowhere applied",
                    command.number
                ));
            }
            self.acknowledged.push(command.number);
            let ret = Some(Return { at, output });
            self.history.push(Operation { client, call, input: command.input(), ret });
        }
    }

    fn on_read(
        &mut self,
        client: u32,
        call: u64,
        key: u8,
        stale: bool,
        answer: &[u8],
        ledger: &Ledger,
    ) {
        let Some((slot, value)) = decode_answer(answer) else {
            return self.wrong("an answer is garbage".into());
        };
        self.say(|| {
            let text = value.map(|value| String::from_utf8_lossy(value).into_owned());
            format!("client {client} reads {} of slot {slot}: {text:?}", key_name(key))
        });
        if ledger.value_at(key, slot) != value {
            self.wrong(format!("a read of {} at slot {slot} is no prefix", key_name(key)));
        }
        if stale {
            self.stale_reads += 1;
            return;
        }
        self.reads += 1;
        let output = value.map_or_else(KvOutput::absent, |value| KvOutput::value(value.to_vec()));
        let ret = Some(Return { at: self.tick(), output });
        let input = KvInput::get(key_name(key));
        self.history.push(Operation { client, call, input, ret });
    }

    pub(crate) fn wrong(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }
}
