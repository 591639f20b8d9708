//! The row that a replica publishes about itself to one peer: vote, credit and heartbeat in one
//! write of two self-checking cache lines.
//!
//! Each line, little endian: sequence (low half) u32, CRC-32C of incarnation and the rest of the
//! line u32, then seven words: the whole sequence and six of the row. The first line holds
//! promised, accepted ballot, accepted slot, consumed position, heartbeat, flags; the second
//! commit slot, applied slot, ping, pong, the lease granted and the one asked for (two u32),
//! the life of the disk.
//! A row counts when both lines check and carry the same sequence, newer than the last: a torn or
//! stale one yields nothing, and the next overwrites it in place.

use crate::integrity::{seeded_crc, word32, word64};
use crate::{OpNumber, PostError, RegionId, Transport};
use bytes::{BufMut, BytesMut};
use quorate_consensus::buggify::Point;
use quorate_consensus::{Ballot, Incarnation, Mistake, Mutant, NodeId, Row, RowFlags, Slot, Whims};

/// Bytes of a row, and of the region [`RegionId::row`].
pub const ROW_BYTES: usize = 2 * LINE_BYTES;
const LINE_BYTES: usize = 64;
const ARENA_CHUNK_BYTES: usize = 16 << 10;

/// Publishes this replica's row to one peer.
#[derive(Debug)]
pub struct RowWriter {
    region: RegionId,
    incarnation: Incarnation,
    sequence: u64,
    arena: BytesMut,
    whims: Whims,
}

impl RowWriter {
    /// For the rows of `local`, which its peers receive in [`RegionId::row`] of it.
    #[must_use]
    pub fn new(local: NodeId) -> Self {
        Self {
            region: RegionId::row(local),
            incarnation: Incarnation(0),
            sequence: 0,
            arena: BytesMut::new(),
            whims: Whims::default(),
        }
    }

    /// For simulators: legal misbehaviour. Does nothing in a product, which has none.
    pub fn simulate(&mut self, whims: Whims) {
        self.whims = whims;
    }

    /// Starts over in a new life of the data lane.
    pub fn reset(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.sequence = 0;
    }

    /// Posts `row`, and the position up to which the peer's ring was consumed, over the last one.
    ///
    /// # Errors
    /// [`PostError`]; then nothing was posted, and a later row says at least as much.
    pub fn publish(
        &mut self,
        transport: &mut dyn Transport,
        peer: NodeId,
        row: &Row,
        consumed: u64,
    ) -> Result<OpNumber, PostError> {
        if self.whims.has(Point::RefusedRow) {
            return Err(PostError::Full(peer));
        }
        let sequence = self.sequence + 1;
        let first = [
            row.promised.pack(),
            row.accepted_ballot.pack(),
            row.accepted_slot.0,
            consumed,
            row.heartbeat,
            row.flags.0,
        ];
        let lease = u64::from(row.lease_asked) << 32 | u64::from(row.lease_granted);
        let life = row.incarnation.0;
        let second = [row.commit_slot.0, row.applied_slot.0, row.ping, row.pong, lease, life];
        if self.arena.capacity() < ROW_BYTES && !self.arena.try_reclaim(ARENA_CHUNK_BYTES) {
            self.arena = BytesMut::with_capacity(ARENA_CHUNK_BYTES);
        }
        for words in [first, second] {
            self.arena.put_slice(&line(self.incarnation, sequence, words));
        }
        let piece = self.arena.split().freeze();
        let op = transport.write(peer, self.region, 0, &[piece])?;
        self.sequence = sequence;
        Ok(op)
    }
}

fn line(incarnation: Incarnation, sequence: u64, words: [u64; 6]) -> [u8; LINE_BYTES] {
    let mut line = [0; LINE_BYTES];
    line[0..4].copy_from_slice(&(sequence as u32).to_le_bytes());
    line[8..16].copy_from_slice(&sequence.to_le_bytes());
    for (place, word) in line[16..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let crc = seeded_crc(incarnation, &[&line[0..4], &line[8..]]);
    line[4..8].copy_from_slice(&crc.to_le_bytes());
    line
}

/// Reads the row that one peer publishes here.
#[derive(Debug)]
pub struct RowReader {
    region: RegionId,
    incarnation: Incarnation,
    /// Of the newest row taken.
    sequence: u64,
    mistake: Mistake,
}

impl RowReader {
    /// For the row of `peer`, in this replica's [`RegionId::row`] of it ([`ROW_BYTES`] long).
    #[must_use]
    pub fn new(peer: NodeId) -> Self {
        let (incarnation, mistake) = (Incarnation(0), Mistake::default());
        Self { region: RegionId::row(peer), incarnation, sequence: 0, mistake }
    }

    /// For simulators: builds a mistake in. Does nothing in a product, which has none.
    pub fn simulate(&mut self, mistake: Mistake) {
        self.mistake = mistake;
    }

    /// Starts over in a new life of the data lane.
    pub fn reset(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.sequence = 0;
    }

    /// The newest row, and the ring position that the peer consumed, if it is whole and was not
    /// taken before.
    pub fn poll(&mut self, transport: &dyn Transport) -> Option<(Row, u64)> {
        let mut bytes = [0; ROW_BYTES];
        transport.copy_out(self.region, 0, &mut bytes);
        let (first, second) = bytes.split_at(LINE_BYTES);
        let sequence = word64(first, 8);
        let believed = self.mistake.is(Mutant::BelieveRow);
        if sequence <= self.sequence || word64(second, 8) != sequence && !believed {
            return None;
        }
        if !believed && (!self.checks(first) || !self.checks(second)) {
            return None;
        }
        self.sequence = sequence;
        let row = Row {
            promised: Ballot::unpack(word64(first, 16)),
            accepted_ballot: Ballot::unpack(word64(first, 24)),
            accepted_slot: Slot(word64(first, 32)),
            commit_slot: Slot(word64(second, 16)),
            applied_slot: Slot(word64(second, 24)),
            heartbeat: word64(first, 48),
            ping: word64(second, 32),
            pong: word64(second, 40),
            flags: RowFlags(word64(first, 56)),
            lease_asked: word32(second, 52),
            lease_granted: word32(second, 48),
            incarnation: Incarnation(word64(second, 56)),
        };
        Some((row, word64(first, 40)))
    }

    fn checks(&self, line: &[u8]) -> bool {
        let crc = seeded_crc(self.incarnation, &[&line[0..4], &line[8..]]);
        crc == word32(line, 4)
    }
}
