//! Clients that write down what they asked and were answered, for the linearizability checker.

use super::client::{Client, Outcome, Reply};
use quorate_check::generate::Random;
use quorate_check::{Blob, ClientLog, Clock, KvInput, KvOutput};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A client does not wait longer than this: a stopped process must not stop the test.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// Keys in use at the same time, of each of the three kinds.
const KEYS_OF_A_KIND: u64 = 5;
/// After so many operations the clients turn to new keys: the search stays small.
const OPERATIONS_OF_A_GENERATION: u64 = 6_000;
/// And after so many writes that may have happened at any time since, each of which doubles the search: 21
/// of them on one key were too many.
const UNKNOWN_OF_A_GENERATION: u64 = 40;
/// One operation in so many makes the client go to another replica.
const MOVE_ONE_IN: u64 = 40;

pub type Log = ClientLog<KvInput, KvOutput>;

/// What the clients share.
#[derive(Debug, Default)]
pub struct Shared {
    stop: AtomicBool,
    clock: Clock,
    identities: AtomicU32,
    called: AtomicU64,
    /// Operations that got an answer.
    pub answered: AtomicU64,
    /// Writes whose outcome was never learned.
    pub unknown: AtomicU64,
    /// Operations that were refused before anything happened.
    pub rejected: AtomicU64,
    /// Times that a client went to another replica.
    pub moved: AtomicU64,
}

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Log>>>,
}

impl Clients {
    /// Starts `count` clients, spread over `addresses`, that pause for about `pace` between
    /// operations.
    pub fn start(addresses: &[String], count: usize, pace: Duration, seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..count).map(|index| {
            let (shared, addresses) = (Arc::clone(&shared), addresses.to_vec());
            let random = Random::new(seed.wrapping_mul(1_000).wrapping_add(index as u64));
            std::thread::spawn(move || Worker::new(&shared, addresses, index, random, pace).run())
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Operations answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many more operations were answered.
    pub fn advance(&self, operations: u64) {
        let target = self.answered() + operations;
        super::wait("progress of the clients", super::PATIENCE, || {
            (self.answered() >= target).then_some(())
        });
    }

    /// Stops the clients and collects what they wrote down.
    pub fn stop(self) -> Vec<Log> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    addresses: Vec<String>,
    at: usize,
    client: Client,
    random: Random,
    pace: Duration,
    log: Log,
    logs: Vec<Log>,
    /// The last value seen of each key, for swaps that succeed.
    seen: BTreeMap<Blob, Blob>,
    writes: u64,
}

impl<'a> Worker<'a> {
    fn new(
        shared: &'a Shared,
        addresses: Vec<String>,
        index: usize,
        random: Random,
        pace: Duration,
    ) -> Self {
        let at = index % addresses.len();
        let client = Client::new(&addresses[at]).timeout(TIMEOUT);
        let (log, logs, seen) = (new_log(shared), Vec::new(), BTreeMap::new());
        Self { shared, addresses, at, client, random, pace, log, logs, seen, writes: 0 }
    }

    fn run(mut self) -> Vec<Log> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.random.below(MOVE_ONE_IN) == 0 {
                self.move_on();
            }
            let input = self.choose();
            self.perform(input);
            let pause = self.random.below(2 * self.pace.as_micros() as u64 + 1);
            std::thread::park_timeout(Duration::from_micros(pause));
        }
        self.logs.push(self.log);
        self.logs
    }

    /// Goes to the next replica.
    fn move_on(&mut self) {
        self.at = (self.at + 1) % self.addresses.len();
        self.client = Client::new(&self.addresses[self.at]).timeout(TIMEOUT);
        self.shared.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Three kinds of keys, so that each command meets values that it can do something with.
    fn choose(&mut self) -> KvInput {
        let called = self.shared.called.fetch_add(1, Ordering::Relaxed);
        let unknown = self.shared.unknown.load(Ordering::Relaxed);
        let generation = called / OPERATIONS_OF_A_GENERATION + unknown / UNKNOWN_OF_A_GENERATION;
        let number = self.random.below(KEYS_OF_A_KIND);
        let kind = ["register", "counter", "text"][self.random.below(3) as usize];
        let key = format!("{kind}-{generation}-{number}");
        let dice = self.random.below(100);
        match (kind, dice) {
            (_, 0..40) => KvInput::get(key.as_str()),
            (_, 40..45) => KvInput::del(key.as_str()),
            ("register", 45..75) => {
                let value = self.value();
                KvInput::set(key.as_str(), value.as_str())
            }
            ("register", _) => {
                let value = self.value();
                match self.seen.get(&Blob::from(key.as_str())) {
                    Some(seen) => KvInput::cas(key.as_str(), seen.clone(), value.as_str()),
                    None => KvInput::set_if_absent(key.as_str(), value.as_str()),
                }
            }
            ("counter", _) => KvInput::incr(key.as_str(), 1 + self.random.below(9) as i64),
            (_, _) => {
                let value = self.value();
                KvInput::append(key.as_str(), value.as_str())
            }
        }
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> String {
        self.writes += 1;
        let client = self.shared.identities.load(Ordering::Relaxed);
        format!("{client}.{}.{};", self.random.below(1 << 32), self.writes)
    }

    fn perform(&mut self, input: KvInput) {
        let command = words(&input);
        let arguments: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        let is_read = matches!(input, KvInput::Get { .. });
        let ticket = self.log.call(input.clone());
        match self.client.call(&arguments) {
            Outcome::Reply(reply) => {
                let output = output(&input, &reply);
                self.remember(&input, &output);
                self.log.returned(ticket, output);
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Rejected(_) => {
                self.log.rejected(ticket);
                self.shared.rejected.fetch_add(1, Ordering::Relaxed);
                self.move_on();
            }
            Outcome::Unknown(_) => {
                self.log.unknown(ticket);
                self.shared.unknown.fetch_add(u64::from(!is_read), Ordering::Relaxed);
                // The old identity may still have a command under way: it never speaks again.
                let log = std::mem::replace(&mut self.log, new_log(self.shared));
                self.logs.push(log);
                self.move_on();
            }
        }
    }

    fn remember(&mut self, input: &KvInput, output: &KvOutput) {
        match (input, output) {
            (KvInput::Get { key }, KvOutput::Value(Some(value)))
            | (KvInput::Set { key, value }, _)
            | (KvInput::Cas { key, value, .. }, KvOutput::Swapped(true)) => {
                self.seen.insert(key.clone(), value.clone());
            }
            (KvInput::Cas { key, .. }, _) | (KvInput::Del { key }, _) => {
                self.seen.remove(key);
            }
            _ => {}
        }
    }
}

fn new_log(shared: &Shared) -> Log {
    let identity = shared.identities.fetch_add(1, Ordering::Relaxed) + 1;
    ClientLog::new(identity, shared.clock.clone())
}

/// The command as the server wants it.
fn words(input: &KvInput) -> Vec<Vec<u8>> {
    let key = input.key().as_bytes();
    let sum;
    let words: &[&[u8]] = match input {
        KvInput::Get { .. } => &[b"GET", key],
        KvInput::Set { value, .. } => &[b"SET", key, value.as_bytes()],
        KvInput::Cas { expect: Some(expect), value, .. } => {
            &[b"SET", key, value.as_bytes(), b"IFEQ", expect.as_bytes()]
        }
        KvInput::Cas { expect: None, value, .. } => &[b"SET", key, value.as_bytes(), b"NX"],
        KvInput::Incr { by, .. } => {
            sum = by.to_string();
            &[b"INCRBY", key, sum.as_bytes()]
        }
        KvInput::Append { value, .. } => &[b"APPEND", key, value.as_bytes()],
        KvInput::Del { .. } => &[b"DEL", key],
    };
    words.iter().map(|word| word.to_vec()).collect()
}

/// The answer as the model has it.
fn output(input: &KvInput, reply: &Reply) -> KvOutput {
    match (input, reply) {
        (KvInput::Get { .. }, Reply::Bulk(Some(value))) => KvOutput::value(value.as_slice()),
        (KvInput::Get { .. }, Reply::Bulk(None)) => KvOutput::absent(),
        (KvInput::Set { .. }, reply) if reply.is_ok() => KvOutput::Ok,
        (KvInput::Cas { .. }, Reply::Bulk(None)) => KvOutput::Swapped(false),
        (KvInput::Cas { .. }, reply) if reply.is_ok() => KvOutput::Swapped(true),
        (KvInput::Incr { .. } | KvInput::Append { .. }, Reply::Integer(number)) => {
            KvOutput::Integer(*number)
        }
        (KvInput::Del { .. }, Reply::Integer(number)) => KvOutput::Deleted(*number == 1),
        (input, reply) => panic!("{input} was answered {reply:?}"),
    }
}
