//! The receiver, fed with streams cut and damaged in any way.

use super::B;
use crate::Statistics;
use crate::receiver::{ReceiveError, Receiver, Surroundings};
use crate::wire::{Header, Kind};
use proptest::prelude::*;
use quorate_consensus::Incarnation;
use quorate_transport::region::RegionTable;
use quorate_transport::{Event, Lane, RegionId};
use std::io::{self, IoSliceMut, Read};

const LIFE: Incarnation = Incarnation(3);
const GRANTED: RegionId = RegionId(1);
const PRIVATE: RegionId = RegionId(2);
const REGION_BYTES: usize = 200 << 10;

/// Gives its bytes in pieces of the given lengths, again and again, with nothing in between.
struct Pieces<'a> {
    bytes: &'a [u8],
    lengths: std::iter::Cycle<std::slice::Iter<'a, usize>>,
    pause: bool,
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
        let (piece, _) = self.bytes.split_at(self.bytes.len().min(*self.lengths.next().unwrap()));
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

fn regions() -> RegionTable {
    let mut regions = RegionTable::default();
    for region in [GRANTED, PRIVATE] {
        regions.register(region, REGION_BYTES).unwrap();
    }
    regions.grant(GRANTED, B).unwrap();
    regions
}

fn content(regions: &RegionTable, region: RegionId) -> Vec<u8> {
    let mut bytes = vec![0; REGION_BYTES];
    regions.copy_out(region, 0, &mut bytes);
    bytes
}

/// Receives all of `bytes`, or until they are refused.
fn receive(
    lane: Lane,
    bytes: &[u8],
    lengths: &[usize],
    regions: &mut RegionTable,
) -> (Result<u64, ReceiveError>, Vec<Event>) {
    let mut stream = Pieces { bytes, lengths: lengths.iter().cycle(), pause: false };
    let mut receiver = Receiver::new(B, lane, LIFE);
    let (mut events, mut statistics) = (Vec::new(), Statistics::default());
    while !stream.bytes.is_empty() {
        let mut around = Surroundings {
            regions,
            events: &mut events,
            statistics: &mut statistics,
            asides: &mut Vec::new(),
            sent: 0,
        };
        if let Err(error) = receiver.receive(&mut stream, false, &mut around) {
            return (Err(error), events);
        }
    }
    (Ok(receiver.applied()), events)
}

/// A stream of frames, and what it leaves in the region or says as messages.
fn frames(lane: Lane, payloads: &[(usize, usize)]) -> (Vec<u8>, Vec<u8>, Vec<Vec<u8>>) {
    let (mut stream, mut region, mut messages) = (Vec::new(), vec![0; REGION_BYTES], Vec::new());
    for (number, (offset, length)) in payloads.iter().enumerate() {
        let payload: Vec<u8> = (0..*length).map(|at| (at * 7 + number + 1) as u8).collect();
        let kind = if lane == Lane::Data { Kind::Write } else { Kind::Message };
        let header = Header {
            kind,
            length: *length as u32,
            region: GRANTED,
            offset: *offset as u64,
            number: number as u64 + 1,
            ack: 0,
        };
        stream.extend_from_slice(&header.encode(LIFE));
        stream.extend_from_slice(&payload);
        region[*offset..offset + length].copy_from_slice(&payload);
        messages.push(payload);
    }
    (stream, region, messages)
}

#[test]
fn a_write_that_arrives_over_many_polls_is_told_of_with_its_last_byte() {
    let (bytes, expected, _) = frames(Lane::Data, &[(64, 50_000)]);
    let mut regions = regions();
    let mut stream = Pieces { bytes: &bytes, lengths: [997].iter().cycle(), pause: false };
    let mut receiver = Receiver::new(B, Lane::Data, LIFE);
    let mut statistics = Statistics::default();
    let mut polls = 0;
    while receiver.applied() == 0 {
        let mut events = Vec::new();
        let mut around = Surroundings {
            regions: &mut regions,
            events: &mut events,
            statistics: &mut statistics,
            asides: &mut Vec::new(),
            sent: 0,
        };
        receiver.receive(&mut stream, false, &mut around).unwrap();
        polls += 1;
        let told = events.contains(&Event::Written { peer: B, region: GRANTED });
        assert_eq!(told, receiver.applied() == 1, "poll {polls}: {events:?}");
    }
    assert!(polls > 10, "only {polls} polls: nothing was cut");
    assert_eq!(content(&regions, GRANTED), expected);
}

fn payloads() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let lengths = prop_oneof![0usize..200, 0usize..100_000];
    prop::collection::vec((0usize..1000, lengths), 1..8)
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1usize..60, 1usize..100_000], 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn writes_land_the_same_however_the_stream_is_cut(
        payloads in payloads(),
        lengths in lengths(),
    ) {
        let (stream, expected, _) = frames(Lane::Data, &payloads);
        let mut regions = regions();
        let (outcome, _) = receive(Lane::Data, &stream, &lengths, &mut regions);
        prop_assert_eq!(outcome.unwrap(), payloads.len() as u64);
        prop_assert!(content(&regions, GRANTED) == expected);
    }

    #[test]
    fn messages_arrive_the_same_however_the_stream_is_cut(
        payloads in payloads(),
        lengths in lengths(),
    ) {
        let (stream, _, expected) = frames(Lane::Control, &payloads);
        let (outcome, events) = receive(Lane::Control, &stream, &lengths, &mut regions());
        prop_assert!(outcome.is_ok());
        let messages: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Control { message, .. } => &message[..],
                other => panic!("{other:?}"),
            })
            .collect();
        prop_assert!(messages == expected);
    }

    #[test]
    fn damage_never_panics_and_never_reaches_what_is_not_granted(
        payloads in payloads(),
        lengths in lengths(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..10),
        lane in prop_oneof![Just(Lane::Data), Just(Lane::Control)],
    ) {
        let (mut stream, ..) = frames(lane, &payloads);
        for (at, flip) in damage {
            let at = at.index(stream.len());
            stream[at] ^= flip;
        }
        let mut regions = regions();
        let _ = receive(lane, &stream, &lengths, &mut regions);
        prop_assert!(content(&regions, PRIVATE).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 48..2000),
        lengths in lengths(),
    ) {
        let (outcome, events) = receive(Lane::Data, &bytes, &lengths, &mut regions());
        prop_assert!(outcome.is_err() && events.is_empty());
        if let Some(bytes) = bytes.first_chunk() {
            prop_assert!(crate::wire::Hello::decode(bytes).is_err());
        }
    }
}
