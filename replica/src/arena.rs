//! Buffers that are cut into pieces: a batch, a reply or a message costs no allocation of its own.

use bytes::BytesMut;

/// Pieces are cut from chunks of this many bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// Makes room for `needed` bytes more, a chunk at a time.
pub(crate) fn reserve(arena: &mut BytesMut, needed: usize) {
    if arena.capacity() - arena.len() < needed {
        arena.reserve(needed.max(CHUNK_BYTES));
    }
}
