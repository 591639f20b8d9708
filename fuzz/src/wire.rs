//! Messages of the control lane.

use crate::input::overwrite;
use bytes::{Bytes, BytesMut};
use quorate_consensus::{Ballot, Entry, Incarnation, Message, NodeId, Run, Slot, Value, ValueKind};
use quorate_transport::codec::{ENTRY_OVERHEAD_BYTES, decode, encode, encoded_len};

const PREFIX_BYTES: usize = 12;
/// The types that end in a table of values, and the bytes before its count.
const WITH_VALUES: [(u8, usize); 2] = [(7, 8), (10, 24)];

/// Bytes from a peer: refused, or a message that encodes to the same message again. The first byte
/// chooses whether all checksums are made to match.
pub fn wire_message(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let bytes = if mode % 2 == 0 { bytes.to_vec() } else { sealed(bytes) };
    let Ok(message) = decode(Bytes::from(bytes)) else { return };
    let mut again = BytesMut::new();
    encode(&message, &mut again).expect("what was decoded is not too long to encode");
    assert_eq!(again.len(), encoded_len(&message), "the length is known in advance");
    assert_eq!(decode(again.freeze()).as_ref(), Ok(&message), "it decodes to itself");
}

/// A type, the length of the fixed part as u16, that part and the payloads, as a message with
/// checksums that match.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut input = crate::Input::new(bytes);
    let kind = input.u8();
    let length = usize::from(input.u16());
    let mut message = vec![b'Q', b'M', 1, kind, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(input.bytes(length));
    let fixed_end = message.len();
    message.extend_from_slice(input.rest());
    overwrite(&mut message, 8, &((fixed_end - PREFIX_BYTES) as u32).to_le_bytes());
    if let Some((_, before)) = WITH_VALUES.iter().find(|(with, _)| *with == kind) {
        seal_values(&mut message, PREFIX_BYTES + before + 4, fixed_end);
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&message[..4]), &message[8..fixed_end]);
    overwrite(&mut message, 4, &crc.to_le_bytes());
    message
}

/// Gives each entry of the table the checksum of its payload, as far as there is one.
fn seal_values(message: &mut [u8], table: usize, fixed_end: usize) {
    let mut payload = fixed_end;
    let mut at = table;
    while at + ENTRY_OVERHEAD_BYTES <= fixed_end {
        let mut word = [0; 4];
        word.copy_from_slice(&message[at + 20..at + 24]);
        let length = u32::from_le_bytes(word) as usize;
        let Some(bytes) = message.get(payload..payload + length) else { return };
        let crc = crc32c::crc32c(bytes);
        overwrite(message, at + 24, &crc.to_le_bytes());
        payload += length;
        at += ENTRY_OVERHEAD_BYTES;
    }
}

/// One message of each type, as it is and to be sealed.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for message in messages() {
        let mut bytes = BytesMut::new();
        encode(&message, &mut bytes).expect("a short message");
        seeds.push([&[0], &bytes[..]].concat());
        let fixed = [bytes[8], bytes[9]];
        seeds.push([&[1, bytes[3]], &fixed[..], &bytes[PREFIX_BYTES..]].concat());
    }
    seeds
}

fn messages() -> Vec<Message> {
    let ballot = Ballot { round: 7, node: NodeId(2) };
    let promised = Ballot { round: 8, node: NodeId(3) };
    let slot = Slot(11);
    let value = |kind, text: &'static [u8]| {
        let bytes = Bytes::from_static(text);
        Value { kind, checksum: crc32c::crc32c(&bytes), bytes }
    };
    let entries = vec![
        Entry { slot, ballot, value: value(ValueKind::Commands, b"a batch of commands") },
        Entry { slot: Slot(12), ballot, value: Value::noop() },
        Entry { slot: Slot(13), ballot, value: value(ValueKind::Configuration, b"members") },
    ];
    let run = Run { first: slot, last: Slot(20), ballot };
    vec![
        Message::PreVote { ballot, commit_slot: slot },
        Message::PreVoteReply { ballot, promised, granted: true, incarnation: Incarnation(9) },
        Message::Prepare { ballot, from: slot, released: ballot },
        Message::Lead { ballot },
        Message::Promise {
            ballot,
            from: slot,
            commit_slot: slot,
            runs: vec![run, run],
            incarnation: Incarnation(9),
        },
        Message::Nack { ballot, promised },
        Message::Fetch { ballot, first: slot, last: Slot(20) },
        Message::Values { ballot, entries: entries.clone() },
        Message::Behind { ballot, first_available: slot, commit_slot: slot },
        Message::CatchUpRequest { first: slot, bytes_max: 1 << 20 },
        Message::CatchUpReply { first: slot, commit_slot: slot, log_first: slot, entries },
        Message::Forward { groups: Bytes::from_static(b"groups") },
        Message::ReadIndex { id: 5 },
        Message::ReadIndexReply { id: 5, slot: Some(slot) },
        Message::Fresh { incarnation: Incarnation(99) },
        Message::Genesis { document: Bytes::from_static(b"document") },
        Message::SnapshotRequest {
            at_least: Slot(7),
            slot: Slot(9),
            digest: 5,
            first: 2,
            bytes_max: 1 << 20,
        },
        Message::SnapshotReply {
            slot: Slot(9),
            digest: 5,
            blocks: 3,
            first: 2,
            bytes: Bytes::from_static(b"a block"),
        },
        Message::Goodbye { to: NodeId(3), reason: Bytes::from_static(b"restarting") },
    ]
}
