//! What waits to be posted on one connection.

use bytes::Bytes;
use quorate_transport::RegionId;
use std::collections::VecDeque;

/// A lane queues at most this many bytes; then [`quorate_transport::PostError::Full`].
pub const SEND_QUEUE_BYTES_MAX: usize = 64 << 20;
/// A lane queues at most this many pieces; then [`quorate_transport::PostError::Full`].
pub const SEND_QUEUE_PIECES_MAX: usize = 1 << 16;

/// One write of the caller's, or what is left of it.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) region: RegionId,
    pub(crate) offset: u64,
    /// Of all that is left.
    pub(crate) length: usize,
    /// Pieces at the front of the queue that are left.
    pub(crate) pieces: usize,
    /// Bytes of the first of them that went already.
    pub(crate) done: usize,
    pub(crate) number: u64,
}

/// Writes in order; their pieces are in one queue of their own, so that nothing is allocated for
/// each.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    pub(crate) writes: VecDeque<Write>,
    pub(crate) pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl SendQueue {
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether so many more bytes in so many pieces may be queued, beside `under_way` bytes that
    /// were posted.
    pub(crate) fn has_room(&self, bytes: usize, pieces: usize, under_way: usize) -> bool {
        self.bytes + under_way + bytes <= SEND_QUEUE_BYTES_MAX
            && self.pieces.len() + pieces <= SEND_QUEUE_PIECES_MAX
            && self.writes.len() < SEND_QUEUE_PIECES_MAX
    }

    pub(crate) fn push(&mut self, region: RegionId, offset: u64, pieces: &[Bytes], number: u64) {
        let filled = pieces.iter().filter(|piece| !piece.is_empty());
        let before = self.pieces.len();
        self.pieces.extend(filled.cloned());
        let count = self.pieces.len() - before;
        let length = pieces.iter().map(Bytes::len).sum();
        self.bytes += length;
        self.writes.push_back(Write { region, offset, length, pieces: count, done: 0, number });
    }

    /// So many bytes of the front write are posted.
    pub(crate) fn advance(&mut self, mut length: usize) {
        self.bytes -= length;
        let Some(write) = self.writes.front_mut() else { return };
        write.length -= length;
        write.offset = write.offset.wrapping_add(length as u64);
        while let Some(front) = self.pieces.front().filter(|_| write.pieces > 0) {
            let left = front.len() - write.done;
            if length < left {
                write.done += length;
                return;
            }
            length -= left;
            write.done = 0;
            write.pieces -= 1;
            self.pieces.pop_front();
        }
        self.writes.pop_front();
    }
}
