//! The reading end of a ring, at the follower that holds its memory.

use super::{
    HEADER_BYTES, PAD_MAGIC, RECORD_MAGIC, RECORD_VALUES_MAX, TABLE_ENTRY_BYTES, check_ring_length,
    record_bytes, trailer_at,
};
use crate::integrity::{mix, seeded_crc, word32, word64};
use crate::{RegionId, Transport};
use bytes::{Bytes, BytesMut};
use quorate_consensus::{Accept, Ballot, Incarnation, Mistake, Mutant, Slot, Value, ValueKind};

/// A record whose trailer is there while its checksums disagree is looked at this often before the
/// lane is given up: its middle may still be landing behind its end.
pub const MISMATCHES_MAX: u32 = 256;
/// Payloads are copied into chunks of this many bytes, which live as long as a value in them.
const ARENA_CHUNK_BYTES: usize = 256 << 10;
/// A payload from here on gets memory of its own, so that it pins nothing else.
const OWN_MEMORY_BYTES: usize = ARENA_CHUNK_BYTES / 4;

/// Takes records out of the ring that one peer fills. [`RingReader::reset`] it at each
/// [`crate::Event::LinkUp`] of the data lane.
#[derive(Debug)]
pub struct RingReader {
    region: RegionId,
    ring_length: usize,
    incarnation: Incarnation,
    /// Absolute position of the next record.
    position: u64,
    /// Of the next record.
    sequence: u64,
    mismatches: u32,
    table: Vec<u8>,
    arena: BytesMut,
    mistake: Mistake,
}

/// The writer broke the format: reset the link.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// Complete by its trailer, and still wrong after [`MISMATCHES_MAX`] looks.
    #[error("record {sequence} at {position} is complete and its checksum does not match")]
    Corrupt {
        /// Lane sequence of the record.
        sequence: u64,
        /// Absolute position of the record.
        position: u64,
    },
    /// The checksum matches and the content makes no sense: the writer is at fault.
    #[error("record {sequence} at {position} is malformed: {what}")]
    Malformed {
        /// Lane sequence of the record.
        sequence: u64,
        /// Absolute position of the record.
        position: u64,
        /// What is wrong.
        what: &'static str,
    },
}

enum Step {
    /// Nothing complete, or not yet.
    Nothing,
    /// A pad was skipped.
    Pad,
    /// A record was taken.
    Record,
}

impl RingReader {
    /// Reads from `region` of this replica, registered with `ring_length` bytes.
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
            position: 0,
            sequence: 1,
            mismatches: 0,
            table: Vec::new(),
            arena: BytesMut::new(),
            mistake: Mistake::default(),
        }
    }

    /// For simulators: builds a mistake in. Does nothing in a product, which has none.
    pub fn simulate(&mut self, mistake: Mistake) {
        self.mistake = mistake;
    }

    /// Starts over in a new life of the data lane. What an earlier life left in the ring is void.
    pub fn reset(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.position = 0;
        self.sequence = 1;
        self.mismatches = 0;
    }

    /// The absolute position up to which everything was copied out: the writer's credit.
    #[must_use]
    pub const fn consumed(&self) -> u64 {
        self.position
    }

    /// Whether the last poll saw a record that is complete by its trailer but not by its
    /// checksums: poll again soon, even without a hint that something was written.
    #[must_use]
    pub const fn suspicious(&self) -> bool {
        self.mismatches > 0
    }

    /// Takes the next record if it is complete. The storage of `into.values` is used again; the
    /// payload is copied once, and only the copy is checked and believed. On `false` and on an
    /// error `into` is in an unspecified but valid state.
    ///
    /// # Errors
    /// [`RingError`]: the lane cannot go on; see [`Transport::reset`].
    pub fn poll(
        &mut self,
        transport: &dyn Transport,
        into: &mut Accept,
    ) -> Result<bool, RingError> {
        // At most one pad stands before a record.
        for _ in 0..2 {
            match self.step(transport, into)? {
                Step::Nothing => return Ok(false),
                Step::Pad => {}
                Step::Record => return Ok(true),
            }
        }
        Ok(false)
    }

    fn step(&mut self, transport: &dyn Transport, into: &mut Accept) -> Result<Step, RingError> {
        let offset = (self.position % self.ring_length as u64) as usize;
        let mut header = [0; HEADER_BYTES];
        transport.copy_out(self.region, offset, &mut header);
        // Old laps, old lives and half-landed headers end here.
        if word64(&header, 8) != self.sequence || word64(&header, 48) != self.position {
            return Ok(Step::Nothing);
        }
        match word32(&header, 0) {
            PAD_MAGIC => Ok(self.skip_pad(&header, offset)),
            RECORD_MAGIC => self.take_record(transport, &header, offset, into),
            _ => Ok(Step::Nothing),
        }
    }

    fn skip_pad(&mut self, header: &[u8; HEADER_BYTES], offset: usize) -> Step {
        let whole = seeded_crc(self.incarnation, &[&header[..60]]) == word32(header, 60);
        let to_end = self.ring_length - offset;
        if !whole || word32(header, 4) as usize != to_end {
            return Step::Nothing;
        }
        self.advance(to_end);
        Step::Pad
    }

    fn take_record(
        &mut self,
        transport: &dyn Transport,
        header: &[u8; HEADER_BYTES],
        offset: usize,
        into: &mut Accept,
    ) -> Result<Step, RingError> {
        let payload = word32(header, 4) as usize;
        let count = word32(header, 40) as usize;
        // Lengths come before anything else that they could lead astray.
        if count > RECORD_VALUES_MAX
            || payload > self.ring_length
            || record_bytes(count, payload) > self.ring_length - offset
        {
            return Ok(Step::Nothing);
        }
        let trailer = transport.load(self.region, offset + trailer_at(count, payload));
        if trailer != mix(self.incarnation.0, self.sequence, payload as u64) {
            return Ok(Step::Nothing);
        }
        self.table.resize(count * TABLE_ENTRY_BYTES, 0);
        let table_at = offset + HEADER_BYTES;
        transport.copy_out(self.region, table_at, &mut self.table);
        let crc = seeded_crc(self.incarnation, &[&header[..60], &self.table]);
        if crc != word32(header, 60) && !self.mistake.is(Mutant::BelieveTrailer) {
            return self.mismatch();
        }
        self.check_table(payload)?;
        let bytes = self.copy_payload(transport, table_at + self.table.len(), payload);
        into.values.clear();
        if !self.cut_values(&bytes, &mut into.values) {
            return self.mismatch();
        }
        into.ballot = Ballot::unpack(word64(header, 16));
        into.first = Slot(word64(header, 24));
        into.commit_slot = Slot(word64(header, 32));
        self.advance(record_bytes(count, payload));
        Ok(Step::Record)
    }

    /// The table passed its checksum: what is wrong with it now is the writer's doing.
    fn check_table(&self, payload: usize) -> Result<(), RingError> {
        let malformed = |what| {
            let (sequence, position) = (self.sequence, self.position);
            Err(RingError::Malformed { sequence, position, what })
        };
        if self.table.is_empty() {
            return malformed("it carries no value");
        }
        let mut sum = 0u64;
        for entry in self.table.chunks_exact(TABLE_ENTRY_BYTES) {
            if ValueKind::from_u8(entry[0]).is_none() || entry[1..4] != [0; 3] {
                return malformed("it carries a value of an unknown kind");
            }
            sum += u64::from(word32(entry, 4));
        }
        if sum != payload as u64 {
            return malformed("its values do not add up to its length");
        }
        Ok(())
    }

    fn copy_payload(&mut self, transport: &dyn Transport, offset: usize, length: usize) -> Bytes {
        if length == 0 {
            return Bytes::new();
        }
        if length >= OWN_MEMORY_BYTES {
            let mut own = BytesMut::zeroed(length);
            transport.copy_out(self.region, offset, &mut own);
            return own.freeze();
        }
        self.arena.clear();
        if self.arena.capacity() < length && !self.arena.try_reclaim(ARENA_CHUNK_BYTES) {
            self.arena = BytesMut::with_capacity(ARENA_CHUNK_BYTES);
        }
        self.arena.resize(length, 0);
        transport.copy_out(self.region, offset, &mut self.arena);
        self.arena.split().freeze()
    }

    /// Cuts `bytes` into values as the table says; `false` if one of them fails its checksum.
    fn cut_values(&self, bytes: &Bytes, values: &mut Vec<Value>) -> bool {
        let mut at = 0;
        for entry in self.table.chunks_exact(TABLE_ENTRY_BYTES) {
            let kind = ValueKind::from_u8(entry[0]).expect("the table was checked");
            let (length, checksum) = (word32(entry, 4) as usize, word32(entry, 8));
            let value = bytes.slice(at..at + length);
            let believed = self.mistake.is(Mutant::BelieveTrailer);
            if !believed && crc32c::crc32c(&value) != checksum {
                return false;
            }
            values.push(Value { kind, checksum, bytes: value });
            at += length;
        }
        true
    }

    fn mismatch(&mut self) -> Result<Step, RingError> {
        self.mismatches += 1;
        if self.mismatches < MISMATCHES_MAX {
            return Ok(Step::Nothing);
        }
        Err(RingError::Corrupt { sequence: self.sequence, position: self.position })
    }

    fn advance(&mut self, length: usize) {
        self.position += length as u64;
        self.sequence += 1;
        self.mismatches = 0;
    }
}
