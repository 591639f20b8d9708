//! From [`Message`] to bytes.

use super::{
    ENTRY_OVERHEAD_BYTES, MAGIC, MESSAGE_BYTES_MAX, PREFIX_BYTES, RUN_BYTES, VERSION, kind,
};
use bytes::{BufMut, BytesMut};
use quorate_consensus::{Ballot, Entry, Message, Run};

/// A message that nobody could decode. An error of whoever made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a message of {length} bytes is longer than {MESSAGE_BYTES_MAX}: make it from fewer entries"
)]
pub struct EncodeError {
    /// The length that it would have.
    pub length: usize,
}

/// Appends the wire form of `message` to `into`.
///
/// # Errors
/// [`EncodeError`] when it is longer than [`MESSAGE_BYTES_MAX`]; then nothing was appended.
pub fn encode(message: &Message, into: &mut BytesMut) -> Result<(), EncodeError> {
    let length = encoded_len(message);
    if length > MESSAGE_BYTES_MAX {
        return Err(EncodeError { length });
    }
    into.reserve(length);
    let start = into.len();
    into.put_slice(&MAGIC);
    into.put_u8(VERSION);
    into.put_u8(kind_of(message));
    into.put_u64_le(0);
    put_fixed(message, into);
    let fixed = into.len() - start - PREFIX_BYTES;
    let prefix = &mut into[start..];
    prefix[8..12].copy_from_slice(&(fixed as u32).to_le_bytes());
    let crc = super::decode::checksum(prefix);
    prefix[4..8].copy_from_slice(&crc.to_le_bytes());
    for entry in entries_of(message) {
        into.put_slice(&entry.value.bytes);
    }
    debug_assert_eq!(into.len() - start, length, "the length is known in advance");
    Ok(())
}

/// How long the wire form of `message` is.
#[must_use]
pub fn encoded_len(message: &Message) -> usize {
    let fixed = match message {
        Message::PreVote { .. } | Message::Nack { .. } => 16,
        Message::Prepare { .. } => 24,
        Message::Lead { .. } => 8,
        Message::PreVoteReply { .. } => 25,
        Message::Promise { runs, .. } => 36 + RUN_BYTES * runs.len(),
        Message::Fetch { .. } | Message::Behind { .. } => 24,
        Message::Values { .. } => 12,
        Message::CatchUpRequest { .. } => 12,
        Message::CatchUpReply { .. } => 28,
        Message::Forward { groups } => groups.len(),
        Message::ReadIndex { .. } | Message::Fresh { .. } => 8,
        Message::ReadIndexReply { .. } => 17,
        Message::Genesis { document } => document.len(),
        Message::Goodbye { reason, .. } => 2 + reason.len(),
        Message::SnapshotRequest { .. } => 36,
        Message::SnapshotReply { bytes, .. } => 32 + bytes.len(),
    };
    let entry_bytes = |entry: &Entry| ENTRY_OVERHEAD_BYTES + entry.value.bytes.len();
    PREFIX_BYTES + fixed + entries_of(message).iter().map(entry_bytes).sum::<usize>()
}

fn kind_of(message: &Message) -> u8 {
    match message {
        Message::PreVote { .. } => kind::PRE_VOTE,
        Message::PreVoteReply { .. } => kind::PRE_VOTE_REPLY,
        Message::Prepare { .. } => kind::PREPARE,
        Message::Lead { .. } => kind::LEAD,
        Message::Promise { .. } => kind::PROMISE,
        Message::Nack { .. } => kind::NACK,
        Message::Fetch { .. } => kind::FETCH,
        Message::Values { .. } => kind::VALUES,
        Message::Behind { .. } => kind::BEHIND,
        Message::CatchUpRequest { .. } => kind::CATCH_UP_REQUEST,
        Message::CatchUpReply { .. } => kind::CATCH_UP_REPLY,
        Message::Forward { .. } => kind::FORWARD,
        Message::ReadIndex { .. } => kind::READ_INDEX,
        Message::ReadIndexReply { .. } => kind::READ_INDEX_REPLY,
        Message::Fresh { .. } => kind::FRESH,
        Message::Genesis { .. } => kind::GENESIS,
        Message::Goodbye { .. } => kind::GOODBYE,
        Message::SnapshotRequest { .. } => kind::SNAPSHOT_REQUEST,
        Message::SnapshotReply { .. } => kind::SNAPSHOT_REPLY,
    }
}

fn entries_of(message: &Message) -> &[Entry] {
    match message {
        Message::Values { entries, .. } | Message::CatchUpReply { entries, .. } => entries,
        _ => &[],
    }
}

fn put_fixed(message: &Message, into: &mut BytesMut) {
    match message {
        Message::PreVote { ballot, commit_slot } => put(into, *ballot, &[commit_slot.0]),
        Message::PreVoteReply { ballot, granted, promised, incarnation } => {
            put(into, *ballot, &[promised.pack(), incarnation.0]);
            into.put_u8(u8::from(*granted));
        }
        Message::Prepare { ballot, from, released } => {
            put(into, *ballot, &[from.0, released.pack()]);
        }
        Message::Lead { ballot } => put(into, *ballot, &[]),
        Message::Promise { ballot, from, commit_slot, runs, incarnation } => {
            put(into, *ballot, &[from.0, commit_slot.0, incarnation.0]);
            put_runs(into, runs);
        }
        Message::Nack { ballot, promised } => put(into, *ballot, &[promised.pack()]),
        Message::Fetch { ballot, first, last } => put(into, *ballot, &[first.0, last.0]),
        Message::Values { ballot, entries } => {
            put(into, *ballot, &[]);
            put_table(into, entries);
        }
        Message::Behind { ballot, first_available, commit_slot } => {
            put(into, *ballot, &[first_available.0, commit_slot.0]);
        }
        Message::CatchUpRequest { first, bytes_max } => {
            into.put_u64_le(first.0);
            into.put_u32_le(*bytes_max);
        }
        Message::CatchUpReply { first, commit_slot, log_first, entries } => {
            for slot in [first, commit_slot, log_first] {
                into.put_u64_le(slot.0);
            }
            put_table(into, entries);
        }
        Message::Forward { groups } => into.put_slice(groups),
        Message::ReadIndex { id } => into.put_u64_le(*id),
        Message::ReadIndexReply { id, slot } => {
            into.put_u64_le(*id);
            into.put_u8(u8::from(slot.is_some()));
            into.put_u64_le(slot.unwrap_or_default().0);
        }
        Message::Fresh { incarnation } => into.put_u64_le(incarnation.0),
        Message::Genesis { document } => into.put_slice(document),
        Message::SnapshotRequest { at_least, slot, digest, first, bytes_max } => {
            for word in [at_least.0, slot.0, *digest, *first] {
                into.put_u64_le(word);
            }
            into.put_u32_le(*bytes_max);
        }
        Message::SnapshotReply { slot, digest, blocks, first, bytes } => {
            for word in [slot.0, *digest, *blocks, *first] {
                into.put_u64_le(word);
            }
            into.put_slice(bytes);
        }
        Message::Goodbye { to, reason } => {
            into.put_u16_le(to.0);
            into.put_slice(reason);
        }
    }
}

fn put(into: &mut BytesMut, ballot: Ballot, words: &[u64]) {
    into.put_u64_le(ballot.pack());
    for word in words {
        into.put_u64_le(*word);
    }
}

fn put_runs(into: &mut BytesMut, runs: &[Run]) {
    into.put_u32_le(runs.len() as u32);
    for run in runs {
        for word in [run.first.0, run.last.0, run.ballot.pack()] {
            into.put_u64_le(word);
        }
    }
}

fn put_table(into: &mut BytesMut, entries: &[Entry]) {
    into.put_u32_le(entries.len() as u32);
    for entry in entries {
        into.put_u64_le(entry.slot.0);
        into.put_u64_le(entry.ballot.pack());
        into.put_u32_le(u32::from(entry.value.kind as u8));
        into.put_u32_le(entry.value.bytes.len() as u32);
        into.put_u32_le(entry.value.checksum);
    }
}
