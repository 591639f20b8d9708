//! Registered memory that payloads are copied into once, for all peers that they go to.

use bytes::Bytes;
use quorate_ffi::memory::SharedMemory;
use quorate_ffi::verbs::{Access, MemoryRegion, ProtectionDomain, Source, VerbsError};
use std::collections::HashMap;

/// All of it, in bytes. It is pinned.
pub const STAGING_BYTES: usize = CHUNK_BYTES * CHUNKS;
/// Pieces do not cross the end of a chunk.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS: usize = 32;
/// Pieces from here on are found again when another peer gets them too.
const SHARED_FROM: usize = 256;
/// Beginnings of pieces.
const ALIGNMENT: usize = 8;

/// Chunks that fill up one after the other. One is used again when no request that reads it is under
/// way any more.
#[derive(Debug)]
pub(crate) struct Staging {
    region: MemoryRegion,
    chunks: Vec<Chunk>,
    free: Vec<usize>,
    /// The one that is being filled, and up to where.
    current: Option<(usize, usize)>,
    /// Where a piece is, by where it came from. Each holds the piece itself, so that no other bytes
    /// can be at the same place meanwhile.
    known: HashMap<(usize, usize), (usize, usize, Bytes)>,
    pub(crate) copied: u64,
}

#[derive(Debug, Default)]
struct Chunk {
    /// Requests under way that read it.
    users: usize,
    /// Keys of `known` that lead here.
    keys: Vec<(usize, usize)>,
}

/// A piece in registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Staged {
    pub(crate) chunk: usize,
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

impl Staged {
    /// Whether `next` begins where this one ends.
    pub(crate) const fn precedes(&self, next: &Self) -> bool {
        self.chunk == next.chunk && self.offset + self.length == next.offset
    }
}

impl Staging {
    pub(crate) fn new(domain: &ProtectionDomain) -> Result<Self, VerbsError> {
        let memory = SharedMemory::new(STAGING_BYTES)
            .map_err(|source| VerbsError::Register { length: STAGING_BYTES, source })?;
        let region = domain.register(&memory, Access::Source)?;
        Ok(Self {
            region,
            chunks: (0..CHUNKS).map(|_| Chunk::default()).collect(),
            free: (0..CHUNKS).rev().collect(),
            current: None,
            known: HashMap::new(),
            copied: 0,
        })
    }

    /// Puts `piece` from `from` on into registered memory: as much of it as `limit` allows and one
    /// chunk has room for; nothing if no chunk is free.
    pub(crate) fn place(&mut self, piece: &Bytes, from: usize, limit: usize) -> Option<Staged> {
        let rest = &piece[from..];
        let whole = from == 0 && rest.len() <= limit;
        let shared = whole && rest.len() >= SHARED_FROM && rest.len() <= CHUNK_BYTES;
        let key = (rest.as_ptr().addr(), rest.len());
        if shared && let Some((chunk, offset, _)) = self.known.get(&key) {
            return Some(Staged { chunk: *chunk, offset: *offset, length: rest.len() });
        }
        let (chunk, offset) = self.room(if shared { rest.len() } else { 1 })?;
        let length = rest.len().min(CHUNK_BYTES - offset).min(limit);
        self.region.memory().copy_in(chunk * CHUNK_BYTES + offset, &rest[..length]);
        self.copied += length as u64;
        self.current = Some((chunk, offset + length));
        if shared {
            self.known.insert(key, (chunk, offset, piece.clone()));
            self.chunks[chunk].keys.push(key);
        }
        Some(Staged { chunk, offset, length })
    }

    /// A place with room for at least `least` bytes.
    fn room(&mut self, least: usize) -> Option<(usize, usize)> {
        if let Some((chunk, filled)) = self.current {
            if CHUNK_BYTES - filled >= least {
                return Some((chunk, filled));
            }
            self.current = None;
            self.recycle(chunk);
        }
        let chunk = self.free.pop()?;
        self.current = Some((chunk, 0));
        Some((chunk, 0))
    }

    /// The next piece begins at a multiple of eight: only where a request begins anew.
    pub(crate) fn align(&mut self) {
        if let Some((_, filled)) = &mut self.current {
            *filled = filled.next_multiple_of(ALIGNMENT).min(CHUNK_BYTES);
        }
    }

    pub(crate) fn source(&self, staged: &Staged) -> Source {
        self.region.source(staged.chunk * CHUNK_BYTES + staged.offset, staged.length)
    }

    /// A request that reads the chunk is under way.
    pub(crate) fn hold(&mut self, chunk: usize) {
        self.chunks[chunk].users += 1;
    }

    /// It is no more.
    pub(crate) fn release(&mut self, chunk: usize) {
        self.chunks[chunk].users -= 1;
        self.recycle(chunk);
    }

    fn recycle(&mut self, chunk: usize) {
        let current = self.current.is_some_and(|(current, _)| current == chunk);
        if self.chunks[chunk].users > 0 || current {
            return;
        }
        while let Some(key) = self.chunks[chunk].keys.pop() {
            self.known.remove(&key);
        }
        self.free.push(chunk);
    }
}
