//! From bytes to [`Message`]. Nothing here panics on any input or allocates more than the input
//! justifies.

use super::{
    ENTRY_OVERHEAD_BYTES, MAGIC, MESSAGE_BYTES_MAX, PREFIX_BYTES, RUN_BYTES, VERSION, kind,
};
use crate::integrity::{word32, word64};
use bytes::Bytes;
use quorate_consensus::{Ballot, Entry, Incarnation, Message, NodeId, Run, Slot, Value, ValueKind};

/// Why bytes are not a message: the other end is at fault, or the bytes were damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`MESSAGE_BYTES_MAX`].
    #[error("{0} bytes are more than a message may have")]
    TooLong(usize),
    /// It ends too early.
    #[error("the message is cut short")]
    Truncated,
    /// It goes on after its end.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    /// Not a message at all.
    #[error("this is no message of the protocol")]
    Magic,
    /// Made by an incompatible program.
    #[error("message version {0}, this program reads version {VERSION}")]
    Version(u8),
    /// A type that this version does not have.
    #[error("unknown message type {0}")]
    Kind(u8),
    /// Damaged on its way.
    #[error("the checksum of the message does not match")]
    Checksum,
    /// A value is damaged, on its way or where it was stored.
    #[error("the checksum of the value for slot {0} does not match")]
    ValueChecksum(Slot),
    /// A field has a value that it cannot have.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
}

/// Reads one message. Values are slices of `message`, and their checksums are verified.
///
/// # Errors
/// [`DecodeError`]; drop the link.
pub fn decode(message: Bytes) -> Result<Message, DecodeError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(DecodeError::TooLong(message.len()));
    }
    if message.len() < PREFIX_BYTES {
        return Err(DecodeError::Truncated);
    }
    if message[..2] != MAGIC {
        return Err(DecodeError::Magic);
    }
    if message[2] != VERSION {
        return Err(DecodeError::Version(message[2]));
    }
    let fixed_end = PREFIX_BYTES + word32(&message, 8) as usize;
    if message.len() < fixed_end {
        return Err(DecodeError::Truncated);
    }
    if checksum(&message[..fixed_end]) != word32(&message, 4) {
        return Err(DecodeError::Checksum);
    }
    let kind = message[3];
    let mut cursor = Cursor { at: PREFIX_BYTES, end: fixed_end, payload_at: fixed_end, message };
    let decoded = cursor.message(kind)?;
    if cursor.at != cursor.end {
        return Err(DecodeError::Trailing(cursor.end - cursor.at));
    }
    match cursor.message.len() - cursor.payload_at {
        0 => Ok(decoded),
        rest => Err(DecodeError::Trailing(rest)),
    }
}

/// The checksum of a message whose fixed part ends where `bytes` does.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &bytes[8..])
}

/// Goes through the fixed part; payloads are taken from behind it.
struct Cursor {
    message: Bytes,
    at: usize,
    /// Of the fixed part.
    end: usize,
    payload_at: usize,
}

impl Cursor {
    fn message(&mut self, kind: u8) -> Result<Message, DecodeError> {
        Ok(match kind {
            kind::PRE_VOTE => {
                Message::PreVote { ballot: self.ballot()?, commit_slot: self.slot()? }
            }
            kind::PRE_VOTE_REPLY => {
                let (ballot, promised) = (self.ballot()?, self.ballot()?);
                let incarnation = Incarnation(self.u64()?);
                Message::PreVoteReply { ballot, promised, incarnation, granted: self.flag()? }
            }
            kind::PREPARE => Message::Prepare {
                ballot: self.ballot()?,
                from: self.slot()?,
                released: self.ballot()?,
            },
            kind::LEAD => Message::Lead { ballot: self.ballot()? },
            kind::PROMISE => Message::Promise {
                ballot: self.ballot()?,
                from: self.slot()?,
                commit_slot: self.slot()?,
                incarnation: Incarnation(self.u64()?),
                runs: self.runs()?,
            },
            kind::NACK => Message::Nack { ballot: self.ballot()?, promised: self.ballot()? },
            kind::FETCH => {
                Message::Fetch { ballot: self.ballot()?, first: self.slot()?, last: self.slot()? }
            }
            kind::VALUES => Message::Values { ballot: self.ballot()?, entries: self.entries()? },
            kind::BEHIND => Message::Behind {
                ballot: self.ballot()?,
                first_available: self.slot()?,
                commit_slot: self.slot()?,
            },
            kind::CATCH_UP_REQUEST => {
                Message::CatchUpRequest { first: self.slot()?, bytes_max: self.u32()? }
            }
            kind::CATCH_UP_REPLY => Message::CatchUpReply {
                first: self.slot()?,
                commit_slot: self.slot()?,
                log_first: self.slot()?,
                entries: self.entries()?,
            },
            kind::FORWARD => Message::Forward { groups: self.rest() },
            kind::READ_INDEX => Message::ReadIndex { id: self.u64()? },
            kind::READ_INDEX_REPLY => {
                let (id, some, slot) = (self.u64()?, self.flag()?, self.slot()?);
                Message::ReadIndexReply { id, slot: some.then_some(slot) }
            }
            kind::FRESH => Message::Fresh { incarnation: Incarnation(self.u64()?) },
            kind::GENESIS => Message::Genesis { document: self.rest() },
            kind::GOODBYE => {
                let to = self.take(2)?;
                let to = NodeId(u16::from_le_bytes([to[0], to[1]]));
                Message::Goodbye { to, reason: self.rest() }
            }
            kind::SNAPSHOT_REQUEST => Message::SnapshotRequest {
                at_least: self.slot()?,
                slot: self.slot()?,
                digest: self.u64()?,
                first: self.u64()?,
                bytes_max: self.u32()?,
            },
            kind::SNAPSHOT_REPLY => Message::SnapshotReply {
                slot: self.slot()?,
                digest: self.u64()?,
                blocks: self.u64()?,
                first: self.u64()?,
                bytes: self.rest(),
            },
            other => return Err(DecodeError::Kind(other)),
        })
    }

    fn take(&mut self, length: usize) -> Result<&[u8], DecodeError> {
        if self.end - self.at < length {
            return Err(DecodeError::Truncated);
        }
        let from = self.at;
        self.at += length;
        Ok(&self.message[from..from + length])
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(word32(self.take(4)?, 0))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(word64(self.take(8)?, 0))
    }

    fn slot(&mut self) -> Result<Slot, DecodeError> {
        Ok(Slot(self.u64()?))
    }

    fn ballot(&mut self) -> Result<Ballot, DecodeError> {
        Ok(Ballot::unpack(self.u64()?))
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Malformed("a flag that is neither 0 nor 1")),
        }
    }

    fn rest(&mut self) -> Bytes {
        let rest = self.message.slice(self.at..self.end);
        self.at = self.end;
        rest
    }

    /// A count of things of `each` bytes that follow: checked before anything is allocated.
    fn count(&mut self, each: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        if (self.end - self.at) / each < count {
            return Err(DecodeError::Truncated);
        }
        Ok(count)
    }

    fn runs(&mut self) -> Result<Vec<Run>, DecodeError> {
        let count = self.count(RUN_BYTES)?;
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            runs.push(Run { first: self.slot()?, last: self.slot()?, ballot: self.ballot()? });
        }
        Ok(runs)
    }

    fn entries(&mut self) -> Result<Vec<Entry>, DecodeError> {
        let count = self.count(ENTRY_OVERHEAD_BYTES)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (slot, ballot) = (self.slot()?, self.ballot()?);
            let kind = u8::try_from(self.u32()?).ok().and_then(ValueKind::from_u8);
            let kind = kind.ok_or(DecodeError::Malformed("a value of an unknown kind"))?;
            let length = self.u32()? as usize;
            let checksum = self.u32()?;
            let bytes = self.payload(length)?;
            if crc32c::crc32c(&bytes) != checksum {
                return Err(DecodeError::ValueChecksum(slot));
            }
            entries.push(Entry { slot, ballot, value: Value { kind, checksum, bytes } });
        }
        Ok(entries)
    }

    fn payload(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        if self.message.len() - self.payload_at < length {
            return Err(DecodeError::Truncated);
        }
        let from = self.payload_at;
        self.payload_at += length;
        Ok(self.message.slice(from..from + length))
    }
}
