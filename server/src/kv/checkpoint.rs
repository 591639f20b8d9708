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
use std::io::Read;
use std::sync::Arc;

/// The first bytes of an image: a name and the version of the format.
const MAGIC: &[u8; 8] = b"QKVIMG01";

/// No store has counted further; versions are told to clients as `i64`.
const MODIFICATIONS_MAX: u64 = 1 << 62;
/// The longest number of the format: 64 bits, seven in each byte.
const VARINT_BYTES_MAX: usize = 10;

/// Why an image is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It does not begin as an image of this version.
    #[error("not an image of a key-value store of this version")]
    WrongFormat,
    /// It ends early, or its contents contradict themselves.
    #[error("the image of the key-value store is damaged: {0}")]
    Damaged(&'static str),
    /// It could not be read.
    #[error("the image of the key-value store cannot be read: {0}")]
    Unreadable(String),
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
        self.put_header(&mut header);
        let filled = self.buckets.iter().filter(|bucket| !bucket.entries().is_empty());
        std::iter::once(header).chain(filled.map(|bucket| {
            let mut piece = BytesMut::new();
            put_bucket(&mut piece, bucket);
            piece
        }))
    }

    /// The same pieces, given out one after the other. A bucket is let go of as soon as it was given
    /// out: the store need not clone it any more when it writes to it.
    pub fn into_view(self) -> FrozenView {
        FrozenView { store: self, next: None }
    }

    fn put_header(&self, out: &mut BytesMut) {
        out.put_slice(MAGIC);
        put_varint(out, self.time_ms);
        put_varint(out, self.modifications);
        put_varint(out, self.len as u64);
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

/// The image of a store, piece by piece.
#[derive(Debug)]
pub struct FrozenView {
    store: FrozenStore,
    /// The next bucket; none before the header.
    next: Option<usize>,
}

impl FrozenView {
    /// Appends the next piece; returns whether there is more.
    pub fn next_piece(&mut self, out: &mut BytesMut) -> bool {
        let buckets = &mut self.store.buckets;
        let next = match self.next {
            None => {
                self.store.put_header(out);
                self.next = Some(0);
                return true;
            }
            Some(next) => next,
        };
        let filled = |bucket: &Arc<Bucket>| !bucket.entries().is_empty();
        if let Some(at) = buckets[next..].iter().position(filled).map(|skipped| next + skipped) {
            let bucket: Arc<Bucket> = std::mem::take(&mut buckets[at]);
            put_bucket(out, &bucket);
            self.next = Some(at + 1);
            return true;
        }
        false
    }
}

fn put_bucket(out: &mut BytesMut, bucket: &Bucket) {
    put_framed(out, |out| bucket.entries().iter().for_each(|entry| put_entry(out, entry)));
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
    pub fn restore(limits: Limits, mut image: &[u8]) -> Result<Store, CheckpointError> {
        Self::restore_from(limits, &mut image)
    }

    /// Builds the store whose image `input` gives to its end. Memory beside the store's own is that of
    /// one bucket.
    pub fn restore_from(limits: Limits, input: &mut dyn Read) -> Result<Store, CheckpointError> {
        let mut magic = [0; MAGIC.len()];
        let begun = fill(input, &mut magic)?;
        if begun < MAGIC.len() || magic != *MAGIC {
            return Err(CheckpointError::WrongFormat);
        }
        let mut number =
            || read_varint(input)?.ok_or(CheckpointError::Damaged("the header ends early"));
        let (time_ms, modifications, len) = (number()?, number()?, number()?);
        if modifications > MODIFICATIONS_MAX {
            return Err(CheckpointError::Damaged("the number of modifications is out of range"));
        }
        let mut store = Store::restored(limits, time_ms, modifications);
        let mut bucket = Vec::new();
        while let Some(length) = read_varint(input)? {
            bucket.clear();
            // Grows with what comes: a length alone reserves nothing.
            input.take(length).read_to_end(&mut bucket).map_err(unreadable)?;
            if (bucket.len() as u64) < length {
                return Err(CheckpointError::Damaged("a bucket ends early"));
            }
            let mut entries = &bucket[..];
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

/// A number, or nothing where the input ends.
fn read_varint(input: &mut dyn Read) -> Result<Option<u64>, CheckpointError> {
    let mut bytes = Vec::with_capacity(VARINT_BYTES_MAX);
    loop {
        let mut byte = [0];
        if fill(input, &mut byte)? == 0 {
            return match bytes.is_empty() {
                true => Ok(None),
                false => Err(CheckpointError::Damaged("a number ends early")),
            };
        }
        bytes.push(byte[0]);
        if byte[0] & 0x80 == 0 || bytes.len() == VARINT_BYTES_MAX {
            let number = take_varint(&mut &bytes[..]);
            return number.map(Some).ok_or(CheckpointError::Damaged("a number is out of range"));
        }
    }
}

/// Fills `into` as far as the input goes.
fn fill(input: &mut dyn Read, into: &mut [u8]) -> Result<usize, CheckpointError> {
    let mut filled = 0;
    while filled < into.len() {
        match input.read(&mut into[filled..]).map_err(unreadable)? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

fn unreadable(error: std::io::Error) -> CheckpointError {
    CheckpointError::Unreadable(error.to_string())
}

fn take_entry(input: &mut &[u8]) -> Option<Entry> {
    Some(Entry {
        key: Arc::from(take_bytes(input)?),
        value: Value::new(take_bytes(input)?),
        deadline_ms: take_varint(input)?,
        version: take_varint(input)?,
    })
}
