//! One bucket of the store: a small table sorted by hash, then key.
//!
//! Its layout is a function of its contents alone, whatever happened before, so that replicas scan
//! in the same order. A bucket is shared with a checkpoint by its handle; writing to a shared one
//! clones it first, which copies handles of keys and values and not their bytes.

use std::cmp::Ordering;
use std::sync::Arc;

/// A key with everything that is known about it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<[u8]>,
    pub(super) value: Value,
    /// Milliseconds since the Unix epoch; 0 for none.
    pub(super) deadline_ms: u64,
    /// The store's count of modifications when this key was last modified; never 0.
    pub(super) version: u64,
}

impl Entry {
    /// What the entry takes in memory, in bytes, as an estimate.
    pub(super) fn memory_bytes(&self) -> usize {
        // The slots of the two vectors at their usual fill, and the headers of two allocations.
        const OVERHEAD: usize = (size_of::<Entry>() + size_of::<u64>()) * 3 / 2 + 2 * 32;
        // A deadline also lies in the index.
        const DEADLINE_OVERHEAD: usize = 40;
        let deadline = if self.deadline_ms == 0 { 0 } else { DEADLINE_OVERHEAD };
        OVERHEAD + deadline + self.key.len() + self.value.capacity()
    }
}

/// The bytes of a value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// As it was set: one allocation, no slack.
    Flat(Arc<[u8]>),
    /// As it becomes by `APPEND` or `SETRANGE`: with room to grow, so that many small appends take
    /// time linear in the result.
    Grown(Arc<Vec<u8>>),
}

impl Value {
    pub(super) fn new(bytes: &[u8]) -> Value {
        Value::Flat(Arc::from(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Value::Flat(bytes) => bytes,
            Value::Grown(bytes) => bytes,
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Value::Flat(bytes) => bytes.len(),
            Value::Grown(bytes) => bytes.capacity(),
        }
    }

    /// Replaces the bytes; in place when the length is the same and no checkpoint shares them.
    pub(super) fn assign(&mut self, bytes: &[u8]) {
        if let Value::Flat(old) = self
            && old.len() == bytes.len()
            && let Some(old) = Arc::get_mut(old)
        {
            old.copy_from_slice(bytes);
            return;
        }
        *self = Value::new(bytes);
    }

    /// The bytes as a vector that can grow.
    pub(super) fn growable(&mut self) -> &mut Vec<u8> {
        if let Value::Flat(bytes) = self {
            *self = Value::Grown(Arc::new(bytes.to_vec()));
        }
        match self {
            Value::Grown(bytes) => Arc::make_mut(bytes),
            Value::Flat(_) => unreachable!("was made growable above"),
        }
    }
}

/// Entries sorted by hash, then key; the hashes lie apart so that a search touches few cache lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Bucket {
    hashes: Vec<u64>,
    entries: Vec<Entry>,
}

impl Bucket {
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Where the key is, or where it belongs.
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Result<usize, usize> {
        let mut at = self.hashes.partition_point(|&other| other < hash);
        if self.hashes.get(at) != Some(&hash) {
            return Err(at);
        }
        if *self.entries[at].key == *key {
            return Ok(at);
        }
        // Equal hashes of different keys: search among them by key.
        let end = at + self.hashes[at..].partition_point(|&other| other == hash);
        let among =
            self.entries[at..end].partition_point(|entry| (*entry.key).cmp(key) == Ordering::Less);
        at += among;
        if at < end && *self.entries[at].key == *key { Ok(at) } else { Err(at) }
    }

    pub(super) fn at(&self, index: usize) -> &Entry {
        &self.entries[index]
    }

    pub(super) fn at_mut(&mut self, index: usize) -> &mut Entry {
        &mut self.entries[index]
    }

    pub(super) fn insert(&mut self, index: usize, hash: u64, entry: Entry) {
        self.hashes.insert(index, hash);
        self.entries.insert(index, entry);
        debug_assert!(self.hashes.is_sorted());
    }

    pub(super) fn remove(&mut self, index: usize) -> Entry {
        self.hashes.remove(index);
        self.entries.remove(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &[u8]) -> Entry {
        Entry { key: Arc::from(key), value: Value::new(b"v"), deadline_ms: 0, version: 1 }
    }

    #[test]
    fn colliding_hashes_are_told_apart_by_key() {
        let mut bucket = Bucket::default();
        for key in ["m", "c", "x", "a", "q"] {
            let index = bucket.find(7, key.as_bytes()).expect_err("not there yet");
            bucket.insert(index, 7, entry(key.as_bytes()));
        }
        let keys: Vec<_> = bucket.entries().iter().map(|e| e.key.to_vec()).collect();
        assert_eq!(keys, [b"a", b"c", b"m", b"q", b"x"]);
        for key in ["m", "c", "x", "a", "q"] {
            let index = bucket.find(7, key.as_bytes()).expect("inserted");
            assert_eq!(*bucket.at(index).key, *key.as_bytes());
        }
        assert_eq!(bucket.find(7, b"zz"), Err(5));
        assert_eq!(bucket.find(6, b"a"), Err(0));
        assert_eq!(bucket.find(8, b"a"), Err(5));
    }

    #[test]
    fn value_shared_with_a_checkpoint_is_not_overwritten() {
        let mut value = Value::new(b"old");
        let kept = value.clone();
        value.assign(b"new");
        assert_eq!((kept.bytes(), value.bytes()), (&b"old"[..], &b"new"[..]));
        value.growable().extend_from_slice(b"er");
        let kept = value.clone();
        value.growable().push(b'!');
        assert_eq!((kept.bytes(), value.bytes()), (&b"newer"[..], &b"newer!"[..]));
    }
}
