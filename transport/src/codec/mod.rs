//! The wire form of [`Message`](quorate_consensus::Message)s, for the control lane.
//!
//! Little endian. Every message is
//!
//! | at | what |
//! | --- | --- |
//! | 0 | magic `QM`, version u8, type u8 |
//! | 4 | CRC-32C of bytes 0..4, 8..12 and the fixed part, u32 |
//! | 8 | length of the fixed part, u32 |
//! | 12 | the fixed part: the fields in the order of `encode.rs`, then its bytes or its table |
//! | … | the payloads of the values in the table, one after the other |
//!
//! The checksum covers everything but those payloads, and each of them has its own, made by its
//! proposer and verified here. Decoding copies nothing: values are slices of the message.

mod decode;
mod encode;

pub use decode::{DecodeError, decode};
pub use encode::{EncodeError, encode, encoded_len};

/// No message is longer: 32 MiB.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// What an [`quorate_consensus::Entry`] takes in a message beside its payload.
pub const ENTRY_OVERHEAD_BYTES: usize = 28;
/// What any message takes beside its entries, runs and bytes: an upper bound.
pub const MESSAGE_OVERHEAD_BYTES: usize = 64;

const MAGIC: [u8; 2] = *b"QM";
const VERSION: u8 = 1;
const PREFIX_BYTES: usize = 12;
const RUN_BYTES: usize = 24;

/// The type bytes. Never reuse one.
mod kind {
    pub(super) const PRE_VOTE: u8 = 1;
    pub(super) const PRE_VOTE_REPLY: u8 = 2;
    pub(super) const PREPARE: u8 = 3;
    pub(super) const PROMISE: u8 = 4;
    pub(super) const NACK: u8 = 5;
    pub(super) const FETCH: u8 = 6;
    pub(super) const VALUES: u8 = 7;
    pub(super) const BEHIND: u8 = 8;
    pub(super) const CATCH_UP_REQUEST: u8 = 9;
    pub(super) const CATCH_UP_REPLY: u8 = 10;
    pub(super) const FORWARD: u8 = 11;
    pub(super) const READ_INDEX: u8 = 12;
    pub(super) const READ_INDEX_REPLY: u8 = 13;
    pub(super) const FRESH: u8 = 14;
    pub(super) const GENESIS: u8 = 15;
    pub(super) const GOODBYE: u8 = 16;
    pub(super) const SNAPSHOT_REQUEST: u8 = 17;
    pub(super) const SNAPSHOT_REPLY: u8 = 18;
    pub(super) const LEAD: u8 = 32;
}

#[cfg(test)]
mod tests;
