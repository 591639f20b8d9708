//! The counting client: increments that must not happen twice and writes that must not be lost.

use super::client::{Client, Outcome, Reply};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const COUNTER: &str = "counter";
/// Each connection has this many keys for its writes; the last acknowledged value of each counts.
const KEYS_EACH: u64 = 64;

/// What one connection was told.
#[derive(Debug, Default)]
struct Told {
    /// Answers to increments.
    sums: Vec<i64>,
    increments_unknown: u64,
    keys: Vec<Key>,
    acknowledged: u64,
}

/// A key that one connection writes to.
#[derive(Debug)]
struct Key {
    name: String,
    /// The newest acknowledged value.
    value: Option<String>,
    /// Values without an outcome. One of them may be written at any time after it was sent, so
    /// they stay possible after newer writes were acknowledged.
    unknown: Vec<String>,
}

/// Connections that count, until they are told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Told>>,
}

impl Load {
    /// Starts `each` connections to each of `addresses`.
    pub fn start(addresses: &[String], each: usize, round: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (0..addresses.len() * each).map(|index| {
            let address = addresses[index % addresses.len()].clone();
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || run(&address, round, index, &stop, &acknowledged))
        });
        let threads = threads.collect();
        Self { stop, acknowledged, threads }
    }

    /// Commands acknowledged, as they come.
    pub fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.acknowledged)
    }

    /// Commands acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more commands were acknowledged.
    pub fn advance(&self, commands: u64) {
        let target = self.acknowledged() + commands;
        super::wait("progress of the load", super::PATIENCE, || {
            (self.acknowledged() >= target).then_some(())
        });
    }

    /// Stops, and gives back what the clients were told.
    pub fn stop(self) -> Account {
        self.stop.store(true, Ordering::Relaxed);
        let told = self.threads.into_iter().map(|thread| thread.join().expect("a client"));
        let mut account = Account::default();
        for told in told {
            account.sums.extend(told.sums);
            account.increments_unknown += told.increments_unknown;
            account.keys.extend(told.keys);
            account.acknowledged += told.acknowledged;
        }
        account
    }
}

fn run(
    address: &str,
    round: u64,
    index: usize,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
) -> Told {
    let mut client = Client::new(address);
    let mut told = Told::default();
    let keys = (0..KEYS_EACH).map(|key| Key {
        name: format!("key-{round}-{index}-{key}"),
        value: None,
        unknown: Vec::new(),
    });
    told.keys = keys.collect();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let rejected = if number % 2 == 0 {
            match client.words(&format!("INCR {COUNTER}")) {
                Outcome::Reply(Reply::Integer(sum)) => {
                    told.sums.push(sum);
                    told.acknowledged += 1;
                    false
                }
                Outcome::Reply(reply) => panic!("INCR at {address}: {reply:?}"),
                Outcome::Rejected(_) => true,
                Outcome::Unknown(_) => {
                    told.increments_unknown += 1;
                    true
                }
            }
        } else {
            let value = format!("value-{number}");
            let key = &mut told.keys[(number / 2 % KEYS_EACH) as usize];
            match client.words(&format!("SET {} {value}", key.name)) {
                Outcome::Reply(Reply::Simple(ok)) if ok == "OK" => {
                    key.value = Some(value);
                    told.acknowledged += 1;
                    false
                }
                Outcome::Reply(reply) => panic!("SET at {address}: {reply:?}"),
                Outcome::Rejected(_) => true,
                Outcome::Unknown(_) => {
                    key.unknown.push(value);
                    true
                }
            }
        };
        acknowledged.fetch_add(u64::from(!rejected), Ordering::Relaxed);
        if rejected {
            // A replica that is down refuses at once: do not ask it in a tight loop.
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
    told
}

/// What all connections of one or more loads were told.
#[derive(Debug, Default)]
pub struct Account {
    sums: Vec<i64>,
    increments_unknown: u64,
    keys: Vec<Key>,
    pub acknowledged: u64,
}

impl Account {
    /// Adds what another load was told.
    pub fn add(&mut self, other: Self) {
        self.sums.extend(other.sums);
        self.increments_unknown += other.increments_unknown;
        self.keys.extend(other.keys);
        self.acknowledged += other.acknowledged;
    }

    /// Asserts that everything acknowledged is there and that no increment happened twice.
    pub fn check(&self, address: &str) {
        let mut client = Client::new(address);
        let reply = client.insist(&format!("INCRBY {COUNTER} 0"));
        let Reply::Integer(counter) = reply else { panic!("the counter is {reply:?}") };
        let counter = counter as u64;
        let known = self.sums.len() as u64;
        assert!(
            counter >= known && counter <= known + self.increments_unknown,
            "the counter is {counter}; {known} increments were acknowledged and {} are unknown",
            self.increments_unknown
        );
        let distinct: HashSet<_> = self.sums.iter().collect();
        assert_eq!(distinct.len(), self.sums.len(), "two increments were answered the same sum");
        let newest = self.sums.iter().max().map_or(0, |sum| *sum as u64);
        assert!(newest <= counter, "sum {newest} was acknowledged, the counter is {counter}");
        for key in &self.keys {
            let reply = client.insist(&format!("GET {}", key.name));
            let fits = match &reply {
                Reply::Bulk(Some(found)) => {
                    let mut possible = key.value.iter().chain(&key.unknown);
                    possible.any(|it| it.as_bytes() == found)
                }
                Reply::Bulk(None) => key.value.is_none(),
                _ => false,
            };
            assert!(fits, "{key:?} holds {reply:?}");
        }
    }
}
