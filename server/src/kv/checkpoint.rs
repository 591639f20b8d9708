//! The image of a store, for a checkpoint: taken in constant time, written while the store goes on.
//!
//! [`Store::freeze`] shares the buckets; the store clones a bucket when it next writes to it.
//! The image is a header and one frame for each bucket that is not empty: a function of the state
//! alone. Integrity against damaged media is the business of whoever stores it; decoding is
//! nevertheless total.

use super::bucket::{Bucket, Entry, Value};
use super::frame::{put_bytes, put_framed, put_varint, take_bytes, take_varint};
use super::store::{Limits, Store};
use bytes::{BufMut, BytesMut};
use std::sync::Arc;

/// The first bytes of an image: a name and the version of the format.
const MAGIC: &[u8; 8] = b"QKVIMG01";

/// No store has counted further; versions are told to clients as `i64`.
const MODIFICATIONS_MAX: u64 = 1 << 62;

/// Why an image is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It does not begin as an image of this version.
    #[error("not an image of a key-value store of this version")]
    WrongFormat,
    /// It ends early, or its contents contradict themselves.
    #[error("the image of the key-value store is damaged: {0}")]
    Damaged(&'static str),
}

/// The contents of a store at one moment. Cheap to clone and to send to another thread.
#[derive(Clone, Debug)]
pub struct FrozenStore {
    buckets: Vec<Arc<Bucket>>,
    time_ms: u64,
    modifications: u64,
    len: usize,
}

impl FrozenStore {
    /// The image in pieces, in order: a header, then buckets. A piece has the size of one bucket.
    pub fn pieces(&self) -> impl Iterator<Item = BytesMut> + '_ {
        let mut header = BytesMut::new();
        header.put_slice(MAGIC);
        put_varint(&mut header, self.time_ms);
        put_varint(&mut header, self.modifications);
        put_varint(&mut header, self.len as u64);
        let filled = self.buckets.iter().filter(|bucket| !bucket.entries().is_empty());
        std::iter::once(header).chain(filled.map(|bucket| {
            let mut piece = BytesMut::new();
            put_framed(&mut piece, |out| {
                bucket.entries().iter().for_each(|entry| put_entry(out, entry));
            });
            piece
        }))
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Store {
    /// Shares the contents as they are now: a copy of 16384 handles, whatever the size.
    pub fn freeze(&self) -> FrozenStore {
        FrozenStore {
            buckets: self.buckets.clone(),
            time_ms: self.time_ms(),
            modifications: self.modifications(),
            len: self.len(),
        }
    }

    /// Builds the store whose image, all pieces in a row, is `image`.
    pub fn restore(limits: Limits, image: &[u8]) -> Result<Store, CheckpointError> {
        let mut input = image.strip_prefix(MAGIC).ok_or(CheckpointError::WrongFormat)?;
        let header = (take_varint(&mut input), take_varint(&mut input), take_varint(&mut input));
        let (Some(time_ms), Some(modifications), Some(len)) = header else {
            return Err(CheckpointError::Damaged("the header ends early"));
        };
        if modifications > MODIFICATIONS_MAX {
            return Err(CheckpointError::Damaged("the number of modifications is out of range"));
        }
        let mut store = Store::restored(limits, time_ms, modifications);
        while !input.is_empty() {
            let mut entries =
                take_bytes(&mut input).ok_or(CheckpointError::Damaged("a bucket ends early"))?;
            while !entries.is_empty() {
                let entry =
                    take_entry(&mut entries).ok_or(CheckpointError::Damaged("a key ends early"))?;
                if entry.version == 0 || entry.version > modifications {
                    return Err(CheckpointError::Damaged("a key's version is out of range"));
                }
                if i64::try_from(entry.deadline_ms).is_err() {
                    return Err(CheckpointError::Damaged("a key's deadline is out of range"));
                }
                if store.is_past(entry.deadline_ms) {
                    return Err(CheckpointError::Damaged("a key has expired"));
                }
                if !store.restore_entry(entry) {
                    return Err(CheckpointError::Damaged("a key occurs twice"));
                }
            }
        }
        if store.len() as u64 != len {
            return Err(CheckpointError::Damaged("the number of keys differs from the header's"));
        }
        Ok(store)
    }
}

fn put_entry(out: &mut BytesMut, entry: &Entry) {
    put_bytes(out, &entry.key);
    put_bytes(out, entry.value.bytes());
    put_varint(out, entry.deadline_ms);
    put_varint(out, entry.version);
}

fn take_entry(input: &mut &[u8]) -> Option<Entry> {
    Some(Entry {
        key: Arc::from(take_bytes(input)?),
        value: Value::new(take_bytes(input)?),
        deadline_ms: take_varint(input)?,
        version: take_varint(input)?,
    })
}
