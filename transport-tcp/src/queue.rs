//! What waits to be sent on one connection.

use crate::Statistics;
use crate::wire::{HEADER_BYTES, Header};
use bytes::{Bytes, BytesMut};
use quorate_consensus::Incarnation;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

/// A lane queues at most this many bytes; then [`quorate_transport::PostError::Full`].
pub const SEND_QUEUE_BYTES_MAX: usize = 64 << 20;
/// A lane queues at most this many pieces; then [`quorate_transport::PostError::Full`].
pub const SEND_QUEUE_PIECES_MAX: usize = 1 << 16;
/// Pieces up to this length are copied behind the header before them: cheaper than an entry of
/// their own in the vector of a system call.
const COALESCE_BYTES: usize = 512;
const ARENA_CHUNK_BYTES: usize = 64 << 10;
/// One system call writes at most this many pieces.
const WRITE_PIECES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    pieces: VecDeque<Bytes>,
    /// Headers and small pieces that are not in `pieces` yet; they follow them.
    arena: BytesMut,
    /// Everything queued.
    bytes: usize,
}

impl SendQueue {
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether so many more bytes in so many pieces may be queued.
    pub(crate) fn has_room(&self, bytes: usize, pieces: usize) -> bool {
        self.bytes + bytes + HEADER_BYTES <= SEND_QUEUE_BYTES_MAX
            && self.pieces.len() + pieces < SEND_QUEUE_PIECES_MAX
    }

    pub(crate) fn push(&mut self, header: &Header, life: Incarnation, pieces: &[Bytes]) {
        self.append(&header.encode(life));
        for piece in pieces {
            if piece.len() <= COALESCE_BYTES {
                self.append(piece);
            } else {
                self.seal();
                self.bytes += piece.len();
                self.pieces.push_back(piece.clone());
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.arena.capacity() - self.arena.len() < bytes.len() {
            self.seal();
            if !self.arena.try_reclaim(ARENA_CHUNK_BYTES) {
                self.arena = BytesMut::with_capacity(ARENA_CHUNK_BYTES);
            }
        }
        self.arena.extend_from_slice(bytes);
        self.bytes += bytes.len();
    }

    fn seal(&mut self) {
        if !self.arena.is_empty() {
            self.pieces.push_back(self.arena.split().freeze());
        }
    }

    /// Writes as much as the socket takes; `false` if it would take no more for now.
    pub(crate) fn write(
        &mut self,
        stream: &mut impl Write,
        statistics: &mut Statistics,
    ) -> io::Result<bool> {
        self.seal();
        while let Some(front) = self.pieces.front() {
            let written = if self.pieces.len() == 1 {
                stream.write(front)
            } else {
                let mut slices = [IoSlice::new(&[]); WRITE_PIECES_MAX];
                let filled = slices.iter_mut().zip(&self.pieces).map(|(slice, piece)| {
                    *slice = IoSlice::new(piece);
                });
                let count = filled.count();
                stream.write_vectored(&slices[..count])
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    statistics.write_calls += 1;
                    statistics.bytes_sent += length as u64;
                    self.advance(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, mut length: usize) {
        self.bytes -= length;
        while let Some(front) = self.pieces.front_mut() {
            if length < front.len() {
                bytes::Buf::advance(front, length);
                return;
            }
            length -= front.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Kind;
    use quorate_transport::RegionId;

    /// Takes so many bytes a call, and refuses after so many calls.
    struct Slow {
        taken: Vec<u8>,
        grain: usize,
        calls_left: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.calls_left == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.calls_left -= 1;
            let length = bytes.len().min(self.grain);
            self.taken.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn header(length: usize) -> Header {
        Header {
            kind: Kind::Write,
            length: length as u32,
            region: RegionId(1),
            offset: 0,
            number: 1,
            ack: 0,
        }
    }

    #[test]
    fn bytes_leave_in_order_however_little_the_socket_takes() {
        for grain in [1, 7, 48, 1000, usize::MAX] {
            let mut queue = SendQueue::default();
            let mut expected = Vec::new();
            for length in [0, 1, 511, 512, 513, 5000, 3] {
                let piece = Bytes::from(vec![length as u8; length]);
                let header = header(length);
                queue.push(&header, Incarnation(1), &[piece.clone(), Bytes::new()]);
                expected.extend_from_slice(&header.encode(Incarnation(1)));
                expected.extend_from_slice(&piece);
            }
            assert_eq!(queue.bytes(), expected.len());
            let mut slow = Slow { taken: Vec::new(), grain, calls_left: 3 };
            let mut statistics = Statistics::default();
            while !queue.write(&mut slow, &mut statistics).unwrap() {
                slow.calls_left = 3;
            }
            assert_eq!(slow.taken, expected, "grain {grain}");
            assert_eq!(queue.bytes(), 0);
            assert_eq!(statistics.bytes_sent, expected.len() as u64);
        }
    }

    #[test]
    fn many_small_frames_leave_in_one_call() {
        let mut queue = SendQueue::default();
        for _ in 0..100 {
            queue.push(&header(64), Incarnation(1), &[Bytes::from_static(&[7; 64])]);
        }
        let mut slow = Slow { taken: Vec::new(), grain: usize::MAX, calls_left: 1 };
        assert!(queue.write(&mut slow, &mut Statistics::default()).unwrap());
        assert_eq!(slow.taken.len(), 100 * (64 + HEADER_BYTES));
    }

    #[test]
    fn the_queue_is_bounded_by_bytes_and_by_pieces() {
        let mut queue = SendQueue::default();
        assert!(!queue.has_room(SEND_QUEUE_BYTES_MAX, 1));
        let piece = Bytes::from(vec![0; 1000]);
        let mut frames = 0;
        while queue.has_room(1000, 1) {
            queue.push(&header(1000), Incarnation(1), std::slice::from_ref(&piece));
            frames += 1;
        }
        assert!(frames <= SEND_QUEUE_PIECES_MAX / 2 + 1, "{frames} frames");
        assert!(queue.bytes() <= SEND_QUEUE_BYTES_MAX);
    }
}
