//! The writing end of a ring, at the leader.

use super::{
    HEADER_BYTES, PAD_MAGIC, RECORD_BYTES_SOFT_MAX, RECORD_MAGIC, RECORD_VALUES_MAX,
    TABLE_ENTRY_BYTES, TRAILER_BYTES, check_ring_length, record_bytes, trailer_at,
};
use crate::integrity::{mix, seeded_crc};
use crate::{OpNumber, PostError, RegionId, Transport};
use bytes::{BufMut, Bytes, BytesMut};
use quorate_consensus::buggify::Point;
use quorate_consensus::{Ballot, Incarnation, NodeId, Slot, Value, Whims};

/// Headers and trailers are cut from chunks of this many bytes.
const ARENA_CHUNK_BYTES: usize = 64 << 10;
const ZEROS: [u8; 8] = [0; 8];

/// Ships records into the ring that this replica owns in one peer.
///
/// Use one per peer and [`RingWriter::reset`] it at each [`crate::Event::LinkUp`] of the data lane.
#[derive(Debug)]
pub struct RingWriter {
    region: RegionId,
    ring_length: usize,
    incarnation: Incarnation,
    /// Absolute position of the next record.
    tail: u64,
    /// Absolute position up to which the reader has given room back.
    consumed: u64,
    /// Of the next record.
    sequence: u64,
    arena: BytesMut,
    /// The pieces of the record in the making; empty between calls, kept for its storage.
    pieces: Vec<Bytes>,
    whims: Whims,
}

/// What [`RingWriter::ship`] posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shipped {
    /// The number of the write, for [`crate::Event::Completed`].
    pub op: OpNumber,
    /// How many of the values went with it, from the first on; at least one.
    pub count: usize,
}

/// Why nothing was shipped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShipError {
    /// The reader has not given enough room back yet: try again when its row says so.
    #[error("the ring has no room: a record of {needed} bytes, {free} free")]
    NoCredit {
        /// Bytes that the record and the pad before it take.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// The value can never pass this ring.
    #[error("a value of {length} bytes does not fit a ring of {ring_length}")]
    TooLarge {
        /// Payload bytes of the value.
        length: usize,
        /// Bytes of the ring.
        ring_length: usize,
    },
    /// No value was given.
    #[error("a record carries at least one value")]
    Empty,
    /// The transport did not take it.
    #[error(transparent)]
    Post(#[from] PostError),
}

/// Where the next record goes.
struct Place {
    offset: usize,
    /// Bytes that a record there may take.
    budget: usize,
}

impl RingWriter {
    /// Writes into `region` of a peer, which registered it with `ring_length` bytes. Nothing can
    /// be shipped before the first [`RingWriter::reset`].
    ///
    /// # Panics
    /// If `ring_length` is not a multiple of 64 from 1 KiB to 4 GiB.
    #[must_use]
    pub fn new(region: RegionId, ring_length: usize) -> Self {
        check_ring_length(ring_length);
        Self {
            region,
            ring_length,
            incarnation: Incarnation(0),
            tail: 0,
            consumed: 0,
            sequence: 1,
            arena: BytesMut::new(),
            pieces: Vec::new(),
            whims: Whims::default(),
        }
    }

    /// For simulators: legal misbehaviour. Does nothing in a product, which has none.
    pub fn simulate(&mut self, whims: Whims) {
        self.whims = whims;
    }

    /// Starts over in a new life of the data lane: position 0, sequence 1.
    pub fn reset(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.tail = 0;
        self.consumed = 0;
        self.sequence = 1;
    }

    /// The payload that can be shipped in one value now; 0 if there is no room at all.
    #[must_use]
    pub fn room(&self) -> usize {
        let free = self.free();
        let to_end = self.to_end();
        let contiguous = free.min(to_end).max(free.saturating_sub(to_end));
        // A record of one value that exactly fills what is contiguous.
        contiguous.saturating_sub(HEADER_BYTES + TABLE_ENTRY_BYTES + TRAILER_BYTES)
    }

    /// Bytes shipped and not yet given back.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.tail - self.consumed
    }

    /// Takes credit from the peer's row. A position that goes backwards or beyond what was shipped
    /// cannot be meant for this life of the lane: it is ignored and `false` comes back.
    pub fn set_consumed(&mut self, position: u64) -> bool {
        let sane = position >= self.consumed && position <= self.tail;
        if sane {
            self.consumed = position;
        }
        sane
    }

    /// Ships the longest run from the start of `values` that fits one record and the credit. The
    /// payloads are shared with the transport, not copied, and their checksums are those that the
    /// proposer computed. Call again with the rest.
    ///
    /// # Errors
    /// [`ShipError`]; then no value was shipped.
    pub fn ship<'v>(
        &mut self,
        transport: &mut dyn Transport,
        peer: NodeId,
        ballot: Ballot,
        first: Slot,
        commit: Slot,
        values: impl IntoIterator<Item = &'v Value>,
    ) -> Result<Shipped, ShipError> {
        let mut values = values.into_iter().peekable();
        let length = values.peek().ok_or(ShipError::Empty)?.bytes.len();
        if self.whims.has(Point::NoCredit) {
            return Err(ShipError::NoCredit { needed: record_bytes(1, length), free: self.free() });
        }
        let place = self.place(transport, peer, length)?;
        self.pieces.clear();
        self.reserve_arena();
        let start = self.arena.len();
        self.arena.put_bytes(0, HEADER_BYTES);
        let (mut count, mut payload) = (0, 0);
        // The header comes first and its piece is cut last; keep its place.
        self.pieces.push(Bytes::new());
        for value in values {
            let grown = payload + value.bytes.len();
            let full = count == RECORD_VALUES_MAX
                || count > 0 && self.whims.has(Point::ShortRecord)
                || record_bytes(count + 1, grown) > place.budget
                || grown > RECORD_BYTES_SOFT_MAX;
            if count > 0 && full {
                break;
            }
            self.push_value(value);
            (count, payload) = (count + 1, grown);
        }
        let head = &mut self.arena[start..];
        head[0..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        head[4..8].copy_from_slice(&(payload as u32).to_le_bytes());
        head[16..24].copy_from_slice(&ballot.pack().to_le_bytes());
        head[24..32].copy_from_slice(&first.0.to_le_bytes());
        head[32..40].copy_from_slice(&commit.0.to_le_bytes());
        head[40..44].copy_from_slice(&(count as u32).to_le_bytes());
        self.seal_header(start);
        self.pieces[0] = self.arena.split().freeze();
        self.push_trailer(count, payload);
        let posted = transport.write(peer, self.region, place.offset, &self.pieces);
        self.pieces.clear();
        let op = posted?;
        self.advance(record_bytes(count, payload));
        Ok(Shipped { op, count })
    }

    /// Finds room for a record with a first value of `length` bytes, and pads to the end of the
    /// ring if it has to start over at 0. The pad goes out even if the record must then wait for
    /// credit: a record larger than half of the ring could never pass otherwise.
    fn place(
        &mut self,
        transport: &mut dyn Transport,
        peer: NodeId,
        length: usize,
    ) -> Result<Place, ShipError> {
        let ring_length = self.ring_length;
        let too_large = ShipError::TooLarge { length, ring_length };
        if length > ring_length || record_bytes(1, length) > ring_length {
            return Err(too_large);
        }
        let needed = record_bytes(1, length);
        let to_end = self.to_end();
        if needed > to_end {
            if self.free() < to_end {
                return Err(ShipError::NoCredit { needed: needed + to_end, free: self.free() });
            }
            self.pad(transport, peer)?;
        }
        let budget = self.free().min(self.to_end());
        if needed > budget {
            return Err(ShipError::NoCredit { needed, free: self.free() });
        }
        Ok(Place { offset: self.offset(), budget })
    }

    fn pad(&mut self, transport: &mut dyn Transport, peer: NodeId) -> Result<(), PostError> {
        let to_end = self.to_end();
        self.reserve_arena();
        let start = self.arena.len();
        self.arena.put_bytes(0, HEADER_BYTES);
        let head = &mut self.arena[start..];
        head[0..4].copy_from_slice(&PAD_MAGIC.to_le_bytes());
        head[4..8].copy_from_slice(&(to_end as u32).to_le_bytes());
        self.seal_header(start);
        let header = self.arena.split().freeze();
        transport.write(peer, self.region, self.offset(), &[header])?;
        self.advance(to_end);
        Ok(())
    }

    /// Adds what every header has, and its checksum over everything from `start` on.
    fn seal_header(&mut self, start: usize) {
        let (header, table) = self.arena[start..].split_at_mut(HEADER_BYTES);
        header[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        header[48..56].copy_from_slice(&self.tail.to_le_bytes());
        let crc = seeded_crc(self.incarnation, &[&header[..60], table]);
        header[60..64].copy_from_slice(&crc.to_le_bytes());
    }

    fn push_value(&mut self, value: &Value) {
        self.arena.put_u32_le(u32::from(value.kind as u8));
        self.arena.put_u32_le(value.bytes.len() as u32);
        self.arena.put_u32_le(value.checksum);
        if !value.bytes.is_empty() {
            self.pieces.push(value.bytes.clone());
        }
    }

    fn push_trailer(&mut self, count: usize, payload: usize) {
        let end = HEADER_BYTES + count * TABLE_ENTRY_BYTES + payload;
        self.arena.put_slice(&ZEROS[..trailer_at(count, payload) - end]);
        self.arena.put_u64_le(mix(self.incarnation.0, self.sequence, payload as u64));
        self.pieces.push(self.arena.split().freeze());
    }

    fn advance(&mut self, length: usize) {
        self.tail += length as u64;
        self.sequence += 1;
        debug_assert!(self.in_flight() <= self.ring_length as u64, "shipped beyond the credit");
    }

    fn reserve_arena(&mut self) {
        let largest = HEADER_BYTES + 8 * TABLE_ENTRY_BYTES + 2 * TRAILER_BYTES;
        if self.arena.capacity() < largest && !self.arena.try_reclaim(ARENA_CHUNK_BYTES) {
            self.arena = BytesMut::with_capacity(ARENA_CHUNK_BYTES);
        }
        self.arena.clear();
    }

    fn offset(&self) -> usize {
        (self.tail % self.ring_length as u64) as usize
    }

    fn to_end(&self) -> usize {
        self.ring_length - self.offset()
    }

    fn free(&self) -> usize {
        self.ring_length - self.in_flight() as usize
    }
}
