//! The state: keys, values, deadlines, versions, and the primitives that change them together.
//!
//! What each command does with them is in the sibling modules `strings` (values), `keys` (key
//! space) and `transaction`.

use super::bucket::{Bucket, Entry, Value};
use super::command::Command;
use super::hash::{hash, mix};
use super::reply::Token;
use bytes::BytesMut;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The number of buckets, a power of two: the unit in which a checkpoint shares the state.
pub const BUCKETS: usize = 16_384;
const BUCKET_SHIFT: u32 = u64::BITS - BUCKETS.trailing_zeros();
const LAYOUT_SEED: u64 = 0;
const DIGEST_SEED: u64 = 0x5155_4f52_4154_4531;

/// Bounds that are part of the replicated semantics: **equal on every replica**, or they diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest value that `APPEND` and `SETRANGE` may build, in bytes.
    pub max_value_bytes: usize,
    /// The longest reply of one command, in bytes: `KEYS`, `MGET` and transactions of reads answer
    /// with an error beyond it. It has no influence on the state.
    pub max_reply_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_value_bytes: 8 << 20, max_reply_bytes: 64 << 20 }
    }
}

/// The key-value state machine: equal sequences of [`Store::apply`] and [`Store::advance`] give
/// equal states, on every machine.
///
/// Time is replicated: it moves by the stamps of the leader alone, and a key exists until the
/// store's time reaches its deadline. Expired keys are removed when time moves, before anything
/// else can see them.
#[derive(Debug)]
pub struct Store {
    pub(super) limits: Limits,
    pub(super) buckets: Vec<Arc<Bucket>>,
    /// Every key that has a deadline, the earliest first.
    deadlines: BTreeSet<(u64, Arc<[u8]>)>,
    len: usize,
    memory_bytes: usize,
    time_ms: u64,
    /// Counts modifications of keys; the source of their versions.
    modifications: u64,
}

impl Default for Store {
    fn default() -> Self {
        Store::new(Limits::default())
    }
}

impl Store {
    /// An empty store at time 0.
    pub fn new(limits: Limits) -> Store {
        Store::restored(limits, 0, 0)
    }

    pub(super) fn restored(limits: Limits, time_ms: u64, modifications: u64) -> Store {
        Store {
            limits,
            buckets: vec![Arc::default(); BUCKETS],
            deadlines: BTreeSet::new(),
            len: 0,
            memory_bytes: 0,
            time_ms,
            modifications,
        }
    }

    /// Applies a command from the log at the replicated time `now_ms` (milliseconds since the Unix
    /// epoch) and appends one reply in the encoding of [`Token`].
    ///
    /// A time before the store's own counts as the store's own. Malformed commands change nothing
    /// but the time, and are answered with an error.
    pub fn apply(&mut self, now_ms: u64, command: &[u8], reply: &mut BytesMut) {
        self.advance(now_ms);
        match Command::decode(command) {
            Ok(command) => self.execute(&command, reply),
            Err(malformed) => put_error(reply, &format!("ERR {malformed}")),
        }
    }

    /// Answers a read, without changing anything. `now_ms` only serves to say how long a key will
    /// still live; whether it does is decided by the replicated time.
    ///
    /// A write in here is answered with an error.
    pub fn query(&self, now_ms: u64, query: &[u8], reply: &mut BytesMut) {
        match Command::decode(query) {
            Ok(command) if !command.is_write() => {
                self.read(now_ms.max(self.time_ms), &command, reply);
            }
            Ok(_) => put_error(reply, "ERR a write cannot be answered as a read"),
            Err(malformed) => put_error(reply, &format!("ERR {malformed}")),
        }
    }

    /// The earliest deadline of a key, in milliseconds since the Unix epoch: the leader commits a
    /// time stamp then, so that the key goes even when nothing else happens.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Moves the replicated time forward (a time in the past is ignored) and removes every key
    /// whose deadline is reached. The work is proportional to the number of these keys.
    pub fn advance(&mut self, now_ms: u64) {
        if now_ms <= self.time_ms {
            return;
        }
        self.time_ms = now_ms;
        while let Some((deadline, key)) = self.deadlines.first()
            && *deadline <= now_ms
        {
            let key = Arc::clone(key);
            let removed = self.remove(&key);
            assert!(removed.is_some(), "a deadline in the index belongs to a key of the store");
        }
    }

    /// The bounds that it was made with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The replicated time: the largest stamp so far.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// About how much memory the keys and values take, in bytes. What a checkpoint shares counts once.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes + BUCKETS * size_of::<Arc<Bucket>>()
    }

    /// How many keys have a deadline.
    pub fn expiring_len(&self) -> usize {
        self.deadlines.len()
    }

    /// How many modifications of keys there have been.
    pub fn modifications(&self) -> u64 {
        self.modifications
    }

    /// A digest of all keys, values and deadlines: equal for equal contents, whatever the history.
    /// It reads the whole state.
    pub fn digest(&self) -> u64 {
        let entries = self.buckets.iter().flat_map(|bucket| bucket.entries());
        entries.fold(0u64, |sum, entry| {
            let key = hash(&entry.key, DIGEST_SEED);
            let value = hash(entry.value.bytes(), key);
            sum.wrapping_add(mix(value ^ DIGEST_SEED, key ^ entry.deadline_ms.rotate_left(32) | 1))
        })
    }

    /// Every key with its value and its deadline (0 for none), in no order that means anything.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8], u64)> {
        let entries = self.buckets.iter().flat_map(|bucket| bucket.entries());
        entries.map(|entry| (&entry.key[..], entry.value.bytes(), entry.deadline_ms))
    }

    /// Removes every key.
    pub(super) fn clear(&mut self) {
        self.buckets = vec![Arc::default(); BUCKETS];
        self.deadlines.clear();
        self.len = 0;
        self.memory_bytes = 0;
    }

    /// The entry of a key.
    pub(super) fn entry(&self, key: &[u8]) -> Option<&Entry> {
        let hash = hash(key, LAYOUT_SEED);
        let bucket = &self.buckets[bucket_of(hash)];
        bucket.find(hash, key).ok().map(|index| bucket.at(index))
    }

    /// The value of a key.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.entry(key).map(|entry| entry.value.bytes())
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.entry(key).is_some()
    }

    /// The version of a key; 0 when it is absent.
    pub(super) fn version(&self, key: &[u8]) -> u64 {
        self.entry(key).map_or(0, |entry| entry.version)
    }

    /// Sets a value; the deadline stays as it is.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.modify(key, |entry| entry.value.assign(value));
    }

    /// Sets a value and a deadline (0 for none). A deadline that is reached already removes the key.
    pub(super) fn put_until(&mut self, key: &[u8], value: &[u8], deadline_ms: u64) {
        if self.is_past(deadline_ms) {
            self.remove(key);
            return;
        }
        let (old, shared) = self.modify(key, |entry| {
            entry.value.assign(value);
            let old = std::mem::replace(&mut entry.deadline_ms, deadline_ms);
            (old, (old != deadline_ms).then(|| Arc::clone(&entry.key)))
        });
        self.reindex(shared, old, deadline_ms);
    }

    /// Gives an existing key another deadline (0 for none). One that is reached already removes it.
    pub(super) fn set_deadline(&mut self, key: &[u8], deadline_ms: u64) {
        debug_assert!(self.contains(key));
        if self.is_past(deadline_ms) {
            self.remove(key);
            return;
        }
        let (old, shared) = self.modify(key, |entry| {
            let old = std::mem::replace(&mut entry.deadline_ms, deadline_ms);
            (old, Some(Arc::clone(&entry.key)))
        });
        self.reindex(shared, old, deadline_ms);
    }

    /// Changes the value of a key in place, starting from an empty one when it is absent.
    pub(super) fn grow<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.modify(key, |entry| change(entry.value.growable()))
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let hash = hash(key, LAYOUT_SEED);
        let bucket = &mut self.buckets[bucket_of(hash)];
        let index = bucket.find(hash, key).ok()?;
        let entry = Arc::make_mut(bucket).remove(index);
        self.len -= 1;
        self.memory_bytes -= entry.memory_bytes();
        if entry.deadline_ms != 0 {
            let indexed = self.deadlines.remove(&(entry.deadline_ms, Arc::clone(&entry.key)));
            debug_assert!(indexed, "a key with a deadline is in the index");
        }
        Some(entry)
    }

    /// Puts back an entry of a checkpoint as it was; `false` when the key is there already.
    pub(super) fn restore_entry(&mut self, entry: Entry) -> bool {
        let hash = hash(&entry.key, LAYOUT_SEED);
        let bucket = &mut self.buckets[bucket_of(hash)];
        let Err(index) = bucket.find(hash, &entry.key) else {
            return false;
        };
        self.len += 1;
        self.memory_bytes += entry.memory_bytes();
        if entry.deadline_ms != 0 {
            self.deadlines.insert((entry.deadline_ms, Arc::clone(&entry.key)));
        }
        Arc::make_mut(bucket).insert(index, hash, entry);
        true
    }

    /// Whether a deadline (0 for none) is reached.
    pub(super) fn is_past(&self, deadline_ms: u64) -> bool {
        deadline_ms != 0 && deadline_ms <= self.time_ms
    }

    /// Changes an entry, which is created empty when it is absent, and gives it a new version.
    fn modify<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Entry) -> R) -> R {
        self.modifications += 1;
        let version = self.modifications;
        let hash = hash(key, LAYOUT_SEED);
        let bucket = Arc::make_mut(&mut self.buckets[bucket_of(hash)]);
        match bucket.find(hash, key) {
            Ok(index) => {
                let entry = bucket.at_mut(index);
                let before = entry.memory_bytes();
                entry.version = version;
                let result = change(entry);
                self.memory_bytes = self.memory_bytes - before + entry.memory_bytes();
                result
            }
            Err(index) => {
                let value = Value::Flat(Arc::default());
                let mut entry = Entry { key: Arc::from(key), value, deadline_ms: 0, version };
                let result = change(&mut entry);
                self.len += 1;
                self.memory_bytes += entry.memory_bytes();
                bucket.insert(index, hash, entry);
                result
            }
        }
    }

    /// Moves a key in the index of deadlines; without a key there is nothing to move.
    fn reindex(&mut self, key: Option<Arc<[u8]>>, old: u64, new: u64) {
        let Some(mut key) = key.filter(|_| old != new) else {
            return;
        };
        if old != 0 {
            let mut position = (old, key);
            let indexed = self.deadlines.remove(&position);
            debug_assert!(indexed, "a key with a deadline is in the index");
            key = std::mem::take(&mut position.1);
        }
        if new != 0 {
            self.deadlines.insert((new, key));
        }
    }
}

/// The bucket of a hash: its highest bits, so that the rest orders the entries inside.
fn bucket_of(hash: u64) -> usize {
    (hash >> BUCKET_SHIFT) as usize
}

pub(super) fn put_error(reply: &mut BytesMut, text: &str) {
    Token::Error(text.as_bytes()).encode(reply);
}
