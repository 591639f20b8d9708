use super::*;
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use quorate_consensus::{Ballot, Entry, Incarnation, Message, NodeId, Run, Slot, Value, ValueKind};

fn ballots() -> impl Strategy<Value = Ballot> {
    (0..=Ballot::ROUND_MAX, any::<u16>())
        .prop_map(|(round, node)| Ballot { round, node: NodeId(node) })
}

fn slots() -> impl Strategy<Value = Slot> {
    any::<u64>().prop_map(Slot)
}

fn blobs() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn values() -> impl Strategy<Value = Value> {
    (0u8..4, blobs()).prop_map(|(kind, bytes)| Value {
        kind: ValueKind::from_u8(kind).unwrap(),
        checksum: crc32c::crc32c(&bytes),
        bytes,
    })
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (slots(), ballots(), values()).prop_map(|(slot, ballot, value)| Entry {
        slot,
        ballot,
        value,
    });
    prop::collection::vec(entry, 0..8)
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let run =
        (slots(), slots(), ballots()).prop_map(|(first, last, ballot)| Run { first, last, ballot });
    prop::collection::vec(run, 0..8)
}

/// Every variant; a new one without a line here fails `every_kind_is_generated`.
fn messages() -> impl Strategy<Value = Message> {
    let elections = prop_oneof![
        (ballots(), slots())
            .prop_map(|(ballot, commit_slot)| Message::PreVote { ballot, commit_slot }),
        (ballots(), any::<bool>(), ballots(), any::<u64>()).prop_map(
            |(ballot, granted, promised, word)| {
                let incarnation = Incarnation(word);
                Message::PreVoteReply { ballot, granted, promised, incarnation }
            }
        ),
        (ballots(), slots(), ballots()).prop_map(|(ballot, from, released)| Message::Prepare {
            ballot,
            from,
            released
        }),
        ballots().prop_map(|ballot| Message::Lead { ballot }),
        (ballots(), slots(), slots(), runs(), any::<u64>()).prop_map(
            |(ballot, from, commit_slot, runs, word)| {
                let incarnation = Incarnation(word);
                Message::Promise { ballot, from, commit_slot, runs, incarnation }
            }
        ),
        (ballots(), ballots()).prop_map(|(ballot, promised)| Message::Nack { ballot, promised }),
        (ballots(), slots(), slots()).prop_map(|(ballot, first, last)| Message::Fetch {
            ballot,
            first,
            last
        }),
        (ballots(), entries()).prop_map(|(ballot, entries)| Message::Values { ballot, entries }),
        (ballots(), slots(), slots()).prop_map(|(ballot, first_available, commit_slot)| {
            Message::Behind { ballot, first_available, commit_slot }
        }),
    ];
    let others = prop_oneof![
        (slots(), any::<u32>())
            .prop_map(|(first, bytes_max)| Message::CatchUpRequest { first, bytes_max }),
        (slots(), slots(), slots(), entries()).prop_map(
            |(first, commit_slot, log_first, entries)| {
                Message::CatchUpReply { first, commit_slot, log_first, entries }
            }
        ),
        blobs().prop_map(|groups| Message::Forward { groups }),
        any::<u64>().prop_map(|id| Message::ReadIndex { id }),
        (any::<u64>(), prop::option::of(slots()))
            .prop_map(|(id, slot)| Message::ReadIndexReply { id, slot }),
        any::<u64>().prop_map(|word| Message::Fresh { incarnation: Incarnation(word) }),
        blobs().prop_map(|document| Message::Genesis { document }),
        (any::<u16>(), blobs())
            .prop_map(|(to, reason)| Message::Goodbye { to: NodeId(to), reason }),
    ];
    let snapshots = prop_oneof![
        (slots(), slots(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
            |(at_least, slot, digest, first, bytes_max)| {
                Message::SnapshotRequest { at_least, slot, digest, first, bytes_max }
            }
        ),
        (slots(), any::<u64>(), any::<u64>(), any::<u64>(), blobs()).prop_map(
            |(slot, digest, blocks, first, bytes)| {
                Message::SnapshotReply { slot, digest, blocks, first, bytes }
            }
        ),
    ];
    prop_oneof![elections, others, snapshots]
}

fn encoded(message: &Message) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(message, &mut bytes).unwrap();
    bytes.freeze()
}

/// A message of a type and fixed part of our choice, with a checksum that matches.
fn forged(kind: u8, fixed: &[u8], payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(&[MAGIC[0], MAGIC[1], VERSION, kind, 0, 0, 0, 0][..]);
    bytes.extend_from_slice(&(fixed.len() as u32).to_le_bytes());
    bytes.extend_from_slice(fixed);
    let crc = decode::checksum(&bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

proptest! {
    #[test]
    fn every_message_comes_back_as_it_went(message in messages()) {
        let bytes = encoded(&message);
        prop_assert_eq!(bytes.len(), encoded_len(&message));
        prop_assert_eq!(decode(bytes).unwrap(), message);
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(decode(Bytes::from(bytes)).is_err());
    }

    #[test]
    fn arbitrary_fixed_parts_under_a_good_checksum_never_panic(
        kind in 0u8..20,
        fixed in prop::collection::vec(any::<u8>(), 0..200),
        payload in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        // Whatever is accepted is accepted as exactly these bytes.
        let bytes = forged(kind, &fixed, &payload);
        if let Ok(message) = decode(bytes.clone()) {
            prop_assert_eq!(encoded_len(&message), bytes.len());
        }
    }

    #[test]
    fn every_truncation_is_an_error(message in messages()) {
        let bytes = encoded(&message);
        for length in 0..bytes.len() {
            prop_assert!(decode(bytes.slice(..length)).is_err(), "cut to {}", length);
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error(message in messages(), at in any::<prop::sample::Index>()) {
        let mut bytes = BytesMut::from(&encoded(&message)[..]);
        let bit = at.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode(bytes.freeze()).is_err());
    }
}

#[test]
fn every_kind_is_generated() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = [false; 256];
    for _ in 0..1000 {
        let message = messages().new_tree(&mut runner).unwrap().current();
        seen[encoded(&message)[3] as usize] = true;
    }
    assert!(seen[1..19].iter().all(|seen| *seen), "{seen:?}");
    assert!(seen[kind::LEAD as usize]);
}

#[test]
fn unknown_versions_types_and_magics_are_named() {
    let bytes = encoded(&Message::ReadIndex { id: 7 });
    let with = |at: usize, byte: u8| {
        let mut bytes = BytesMut::from(&bytes[..]);
        bytes[at] = byte;
        decode(bytes.freeze())
    };
    assert_eq!(with(0, b'X'), Err(DecodeError::Magic));
    assert_eq!(with(2, 9), Err(DecodeError::Version(9)));
    assert_eq!(decode(forged(77, &[], &[])), Err(DecodeError::Kind(77)));
    assert_eq!(decode(forged(kind::READ_INDEX, &[0; 9], &[])), Err(DecodeError::Trailing(1)));
    assert_eq!(decode(forged(kind::READ_INDEX, &[0; 8], &[1])), Err(DecodeError::Trailing(1)));
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let mut fixed = vec![0; 8];
    fixed.extend_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(forged(kind::VALUES, &fixed, &[])), Err(DecodeError::Truncated));
}

#[test]
fn a_damaged_value_names_its_slot() {
    let bytes = Bytes::from_static(b"hello");
    let checksum = crc32c::crc32c(&bytes);
    let value = Value { kind: ValueKind::Commands, checksum, bytes };
    let entry = Entry { slot: Slot(9), ballot: Ballot::ZERO, value };
    let message = Message::Values { ballot: Ballot::ZERO, entries: vec![entry] };
    let mut bytes = BytesMut::from(&encoded(&message)[..]);
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(decode(bytes.freeze()), Err(DecodeError::ValueChecksum(Slot(9))));
}

#[test]
fn a_message_beyond_the_limit_is_not_encoded() {
    let message = Message::Forward { groups: Bytes::from(vec![0; MESSAGE_BYTES_MAX]) };
    let mut bytes = BytesMut::new();
    assert!(encode(&message, &mut bytes).is_err());
    assert!(bytes.is_empty());
}

#[test]
fn values_are_slices_of_the_message() {
    let bytes = Bytes::from(vec![7; 1000]);
    let value = Value { kind: ValueKind::Commands, checksum: crc32c::crc32c(&bytes), bytes };
    let entry = Entry { slot: Slot(1), ballot: Ballot::ZERO, value };
    let message = encoded(&Message::Values { ballot: Ballot::ZERO, entries: vec![entry] });
    let range = message.as_ptr_range();
    let Message::Values { entries, .. } = decode(message.clone()).unwrap() else { panic!() };
    assert!(range.contains(&entries[0].value.bytes.as_ptr()));
}
