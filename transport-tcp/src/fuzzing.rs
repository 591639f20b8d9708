//! What reads bytes from the network, for the fuzz targets: the same code that connections use.

use crate::Statistics;
use crate::receiver::{Receiver, Surroundings, printable};
use crate::wire::{HELLO_BYTES, Hello};
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::region::RegionTable;
use quorate_transport::{Event, Lane};
use std::io::{self, IoSliceMut, Read};

/// A stream that gives its bytes in pieces of the given lengths, again and again, and says between
/// two of them that nothing is there.
#[derive(Debug)]
pub struct Pieces<'a> {
    bytes: &'a [u8],
    lengths: &'a [usize],
    next: usize,
    pause: bool,
}

impl<'a> Pieces<'a> {
    /// `bytes` in pieces of `lengths`; without lengths in one piece. None of them is 0.
    #[must_use]
    pub const fn new(bytes: &'a [u8], lengths: &'a [usize]) -> Self {
        Self { bytes, lengths, next: 0, pause: false }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.pause = !self.pause;
        if self.pause || self.bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let wanted = self.lengths.get(self.next).copied().unwrap_or(usize::MAX);
        self.next = (self.next + 1) % self.lengths.len().max(1);
        let (piece, _) = self.bytes.split_at(self.bytes.len().min(wanted));
        let mut taken = 0;
        for buffer in buffers {
            let length = buffer.len().min(piece.len() - taken);
            buffer[..length].copy_from_slice(&piece[taken..taken + length]);
            taken += length;
        }
        self.bytes = &self.bytes[taken..];
        Ok(taken)
    }
}

/// Receives all of `stream` as one life of a lane: what became visible and what was acknowledged,
/// or why the connection would be dropped.
///
/// # Errors
/// What the peer would be told.
pub fn receive(
    (peer, lane, life): (NodeId, Lane, Incarnation),
    mut stream: Pieces<'_>,
    regions: &mut RegionTable,
    events: &mut Vec<Event>,
) -> Result<(u64, u64), String> {
    let mut receiver = Receiver::new(peer, lane, life);
    let (mut statistics, mut asides) = (Statistics::default(), Vec::new());
    while !stream.bytes.is_empty() {
        let mut around = Surroundings {
            regions,
            events,
            statistics: &mut statistics,
            asides: &mut asides,
            sent: u64::MAX / 2,
        };
        let received = receiver.receive(&mut stream, false, &mut around);
        received.map_err(|error| error.to_string())?;
    }
    Ok((receiver.applied(), receiver.acknowledged()))
}

/// Reads a greeting and the text behind it: the greeting encoded again, and the text as it would be
/// logged.
pub fn greeting(
    bytes: &[u8; HELLO_BYTES],
    reason: &[u8],
) -> (Result<[u8; HELLO_BYTES], String>, String) {
    let hello = Hello::decode(bytes).map_err(|error| error.to_string());
    (hello.map(|hello| hello.encode()), printable(reason))
}
