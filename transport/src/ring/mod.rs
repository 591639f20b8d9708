//! Log shipping: self-certifying records in a ring that one writer fills from afar.
//!
//! The leader owns a ring in each follower ([`crate::RegionId::inbox`]) and writes records into it
//! one after the other with one-sided writes. The follower finds a record by looking, trusts it
//! only after it proved itself, and gives the room back by publishing, in its row, the absolute
//! position up to which it has copied everything out.
//!
//! # A record
//! Little endian; starts at a multiple of [`ALIGNMENT`].
//!
//! | at | what |
//! | --- | --- |
//! | 0 | magic and version, u32 |
//! | 4 | length of all payloads, u32 |
//! | 8 | lane sequence, u64: 1 for the first record of a life of the lane |
//! | 16 | ballot, packed, u64 |
//! | 24 | slot of the first value, u64 |
//! | 32 | the leader's `commit_slot`, u64 |
//! | 40 | count of values, u32; 44: zero |
//! | 48 | absolute position of the record, u64; 56: zero |
//! | 60 | CRC-32C of incarnation, bytes 0..60 and the table, u32 |
//! | 64 | table: for each value kind u8, three zeros, length u32, CRC-32C u32 |
//! | … | payloads, then zeros up to a multiple of 8 |
//! | … | trailer, u64: `mix(incarnation, sequence, length)` |
//!
//! A pad record is a header alone with its own magic; its length says how many bytes to skip, up
//! to the end of the ring. A record never straddles that end.
//!
//! # Why a reader may believe it
//! Nothing is zeroed when room is used again. Bytes of an earlier lap carry an earlier sequence,
//! bytes of an earlier life another incarnation, and neither header checksum nor trailer match;
//! each payload has the checksum that its proposer computed. A record that lands piecewise, in any
//! order, is "not there yet" until all of it agrees (contract C2).
//!
//! A record that a late write of an earlier life destroyed is "not there yet" for ever: the reader
//! cannot tell. The writer can, by the credit that does not come back though the reader answers what
//! was written behind the record; it starts the lane over.

mod reader;
mod writer;

pub use reader::{MISMATCHES_MAX, RingError, RingReader};
pub use writer::{RingWriter, ShipError, Shipped};

/// Records start at multiples of this many bytes: a cache line.
pub const ALIGNMENT: usize = 64;
/// One record carries at most this many values; [`RingWriter::ship`] splits a longer run.
pub const RECORD_VALUES_MAX: usize = 4096;
/// A record that holds a value already takes no further one beyond this many payload bytes: the
/// reader can start on the first megabyte while the second is still under way.
pub const RECORD_BYTES_SOFT_MAX: usize = 1 << 20;

const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"QR\x01A");
const PAD_MAGIC: u32 = u32::from_le_bytes(*b"QR\x01P");
const HEADER_BYTES: usize = 64;
const TABLE_ENTRY_BYTES: usize = 12;
const TRAILER_BYTES: usize = 8;

/// Where the trailer of a record starts, counted from the record.
const fn trailer_at(count: usize, payload: usize) -> usize {
    (HEADER_BYTES + count * TABLE_ENTRY_BYTES + payload).next_multiple_of(8)
}

/// What a record takes away from the ring.
const fn record_bytes(count: usize, payload: usize) -> usize {
    (trailer_at(count, payload) + TRAILER_BYTES).next_multiple_of(ALIGNMENT)
}

/// A ring must hold at least a pad and a small record.
fn check_ring_length(ring_length: usize) {
    assert!(
        ring_length >= 16 * ALIGNMENT
            && ring_length.is_multiple_of(ALIGNMENT)
            && ring_length <= u32::MAX as usize,
        "a ring has 1 KiB to 4 GiB, a multiple of {ALIGNMENT} bytes; got {ring_length}"
    );
}

#[cfg(test)]
mod tests;
