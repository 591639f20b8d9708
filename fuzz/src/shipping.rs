//! The ring and the row, over memory that a hostile writer scribbles in.

use crate::Input;
use crate::input::overwrite;
use bytes::Bytes;
use quorate_consensus::{
    Accept, Ballot, Incarnation, NodeId, Row, RowFlags, Slot, Value, ValueKind,
};
use quorate_transport::integrity::{mix, seeded_crc};
use quorate_transport::region::RegionTable;
use quorate_transport::ring::{RingReader, RingWriter};
use quorate_transport::row::{ROW_BYTES, RowReader, RowWriter};
use quorate_transport::{
    Event, LinkStatus, OpNumber, PostError, RegionError, RegionId, Transport, Wake,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const WRITER: NodeId = NodeId(1);
const READER: NodeId = NodeId(2);
const RING_BYTES: usize = 2048;
const HEADER_BYTES: usize = 64;
const TABLE_ENTRY_BYTES: usize = 12;
/// What a record of so short a ring can carry, beside what the header says.
const VALUE_BYTES_MAX: usize = 600;

/// Writes that were posted and have not landed, in front of the memory that they land in.
#[derive(Debug, Default)]
struct Shore {
    memory: RegionTable,
    posted: VecDeque<(RegionId, usize, Vec<u8>)>,
}

impl Shore {
    fn with(region: RegionId, length: usize) -> Self {
        let mut shore = Self::default();
        shore.memory.register(region, length).expect("the first region, and a small one");
        shore.memory.grant(region, WRITER).expect("it is registered");
        shore
    }

    /// Lets the first `length` bytes of the oldest write land; the rest stays, if any.
    fn land(&mut self, length: usize) {
        let Some((region, offset, bytes)) = self.posted.pop_front() else { return };
        let (now, later) = bytes.split_at(length.min(bytes.len()));
        self.scribble(region, offset, now);
        if !later.is_empty() {
            self.posted.push_front((region, offset + now.len(), later.to_vec()));
        }
    }

    fn scribble(&mut self, region: RegionId, offset: usize, bytes: &[u8]) {
        if let Ok(place) = self.memory.admit(WRITER, region, offset as u64, bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

#[derive(Debug)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

impl Transport for Shore {
    fn local(&self) -> NodeId {
        READER
    }
    fn peers(&self) -> Vec<NodeId> {
        vec![WRITER]
    }
    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        self.memory.register(region, length)
    }
    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.memory.grant(region, peer)
    }
    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.memory.revoke(region, peer)
    }
    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        self.memory.copy_out(region, offset, into);
    }
    fn load(&self, region: RegionId, offset: usize) -> u64 {
        self.memory.load(region, offset)
    }
    fn write(
        &mut self,
        _: NodeId,
        region: RegionId,
        offset: usize,
        pieces: &[Bytes],
    ) -> Result<OpNumber, PostError> {
        self.posted.push_back((region, offset, pieces.concat()));
        Ok(OpNumber(1))
    }
    fn send(&mut self, peer: NodeId, _: Bytes) -> Result<(), PostError> {
        Err(PostError::Down(peer))
    }
    fn flush(&mut self) {}
    fn poll(&mut self, _: &mut Vec<Event>) {}
    fn park(&mut self, _: Duration) {}
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }
    fn hints(&self) -> bool {
        false
    }
    fn reset(&mut self, _: NodeId, _: &str) {}
    fn status(&self, _: NodeId) -> LinkStatus {
        LinkStatus::default()
    }
}

/// What the writer shipped and the reader has not yet taken.
#[derive(Debug)]
struct Shipped {
    ballot: Ballot,
    first: Slot,
    commit: Slot,
    values: Vec<Value>,
}

struct Ring {
    shore: Shore,
    region: RegionId,
    writer: RingWriter,
    reader: RingReader,
    life: Incarnation,
    next_slot: Slot,
    shipped: VecDeque<Shipped>,
    /// Somebody forged a record: what comes out need not have been shipped.
    forged: bool,
}

/// A script of shipping, landing by pieces, scribbling and polling. Nothing comes out of the ring
/// that did not go in, in order; unless checksums were forged, and then it is well formed.
pub fn ring_reader(data: &[u8]) {
    let region = RegionId::inbox(WRITER);
    let mut ring = Ring {
        shore: Shore::with(region, RING_BYTES),
        region,
        writer: RingWriter::new(region, RING_BYTES),
        reader: RingReader::new(region, RING_BYTES),
        life: Incarnation(0),
        next_slot: Slot(1),
        shipped: VecDeque::new(),
        forged: false,
    };
    ring.begin_life();
    let mut input = Input::new(data);
    while !input.is_empty() {
        ring.step(&mut input);
    }
}

impl Ring {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 | 1 => self.ship(input),
            2 => self.shore.land(usize::MAX),
            3 => self.shore.land(1 + input.below(256)),
            4 => {
                let (offset, length) = (input.below(RING_BYTES), 1 + input.below(63));
                let bytes = input.bytes(length);
                self.shore.scribble(self.region, offset, bytes);
            }
            5 => self.forge(input),
            6 if input.u8() == 0 => self.begin_life(),
            _ => self.poll(),
        }
    }

    fn begin_life(&mut self) {
        self.life = Incarnation(self.life.0 + 1);
        self.writer.reset(self.life);
        self.reader.reset(self.life);
        self.shore.posted.clear();
        self.shipped.clear();
    }

    fn ship(&mut self, input: &mut Input<'_>) {
        let count = 1 + input.below(3);
        let values: Vec<Value> = (0..count)
            .map(|at| {
                let bytes = vec![at as u8 ^ 0x5a; input.below(VALUE_BYTES_MAX)];
                let kind = if bytes.is_empty() { ValueKind::Noop } else { ValueKind::Commands };
                Value { kind, checksum: crc32c::crc32c(&bytes), bytes: bytes.into() }
            })
            .collect();
        let ballot = Ballot { round: 3, node: WRITER };
        let (first, commit) = (self.next_slot, self.next_slot.previous());
        let shipped = self.writer.ship(&mut self.shore, WRITER, ballot, first, commit, &values);
        if let Ok(shipped) = shipped {
            let values = values[..shipped.count].to_vec();
            self.next_slot = Slot(first.0 + shipped.count as u64);
            self.shipped.push_back(Shipped { ballot, first, commit, values });
        }
    }

    /// A record where the reader looks next, with fields of the fuzzer's choice and checksums that
    /// match.
    fn forge(&mut self, input: &mut Input<'_>) {
        self.forged = true;
        let position = self.reader.consumed();
        let offset = (position % RING_BYTES as u64) as usize;
        let mut header = [0; HEADER_BYTES];
        let magic = if input.u8().is_multiple_of(4) { *b"QR\x01P" } else { *b"QR\x01A" };
        let (count, payload) = match input.u8() % 4 {
            0 => (input.edge() as u32, input.edge() as u32),
            _ => (input.below(4) as u32, input.below(RING_BYTES) as u32),
        };
        // The sequence is not told: it is near the number of records so far.
        let sequence = u64::from(input.u8());
        overwrite(&mut header, 0, &magic);
        overwrite(&mut header, 4, &payload.to_le_bytes());
        overwrite(&mut header, 8, &sequence.to_le_bytes());
        for at in [16, 24, 32] {
            overwrite(&mut header, at, &input.edge().to_le_bytes());
        }
        overwrite(&mut header, 40, &count.to_le_bytes());
        overwrite(&mut header, 48, &position.to_le_bytes());
        let mut table = vec![0; (count as usize).min(8) * TABLE_ENTRY_BYTES];
        for entry in table.chunks_exact_mut(TABLE_ENTRY_BYTES) {
            entry[0] = input.u8() % 4;
            overwrite(entry, 4, &(input.below(RING_BYTES) as u32).to_le_bytes());
        }
        let length = (count as usize).saturating_mul(TABLE_ENTRY_BYTES);
        let trailer = HEADER_BYTES.saturating_add(length).saturating_add(payload as usize);
        let parts: [&[u8]; 2] = [&header[..60], &table];
        let crc = seeded_crc(self.life, &parts);
        overwrite(&mut header, 60, &crc.to_le_bytes());
        self.shore.scribble(self.region, offset, &header);
        self.shore.scribble(self.region, offset + HEADER_BYTES, &table);
        if trailer < RING_BYTES {
            let word = mix(self.life.0, sequence, u64::from(payload)).to_le_bytes();
            self.shore.scribble(self.region, offset + trailer.next_multiple_of(8), &word);
        }
    }

    fn poll(&mut self) {
        let before = self.reader.consumed();
        let mut accept = Accept {
            ballot: Ballot::ZERO,
            first: Slot::ZERO,
            commit_slot: Slot::ZERO,
            values: Vec::new(),
        };
        let taken = match self.reader.poll(&self.shore, &mut accept) {
            Ok(taken) => taken,
            Err(_) => return self.begin_life(),
        };
        let consumed = self.reader.consumed();
        assert!(consumed >= before && consumed <= before + 2 * RING_BYTES as u64);
        let checked = |value: &Value| crc32c::crc32c(&value.bytes) == value.checksum;
        if taken && self.forged {
            assert!(!accept.values.is_empty() && accept.values.iter().all(checked));
        } else if taken {
            let expected = self.shipped.pop_front().expect("nothing comes out that did not go in");
            assert_eq!((accept.ballot, accept.first), (expected.ballot, expected.first));
            assert_eq!((accept.commit_slot, &accept.values), (expected.commit, &expected.values));
        }
        if !self.forged {
            assert!(self.writer.set_consumed(consumed), "credit is never more than was shipped");
        }
    }
}

/// A script of publishing, landing by pieces and scribbling. No row comes out that was not
/// published in this life, and none twice or backwards; unless lines were forged.
pub fn row_reader(data: &[u8]) {
    let region = RegionId::row(WRITER);
    let mut shore = Shore::with(region, ROW_BYTES);
    let (mut writer, mut reader) = (RowWriter::new(WRITER), RowReader::new(WRITER));
    let mut life = Incarnation(1);
    writer.reset(life);
    reader.reset(life);
    let (mut published, mut taken, mut forged): (Vec<(Row, u64)>, usize, bool) =
        (Vec::new(), 0, false);
    let mut input = Input::new(data);
    while !input.is_empty() {
        match input.u8() % 8 {
            0 | 1 => {
                let row = row(&mut input);
                let consumed = input.edge();
                let posted = writer.publish(&mut shore, WRITER, &row, consumed);
                posted.expect("this transport takes everything");
                published.push((row, consumed));
            }
            2 => shore.land(ROW_BYTES),
            3 => shore.land(1 + input.below(ROW_BYTES)),
            4 => {
                let (offset, length) = (input.below(ROW_BYTES), 1 + input.below(63));
                let bytes = input.bytes(length);
                shore.scribble(region, offset, bytes);
            }
            5 => {
                forged = true;
                forge_row(&mut shore, region, life, &mut input);
            }
            6 if input.u8() == 0 => {
                life = Incarnation(life.0 + 1);
                writer.reset(life);
                reader.reset(life);
                shore.posted.clear();
                (taken, published) = (0, Vec::new());
            }
            _ => {
                let Some(row) = reader.poll(&shore).filter(|_| !forged) else { continue };
                let later = published[taken..].iter().position(|known| *known == row);
                taken += later.expect("a row that was published, and not before the last") + 1;
            }
        }
    }
}

fn row(input: &mut Input<'_>) -> Row {
    Row {
        promised: Ballot::unpack(input.edge()),
        accepted_ballot: Ballot::unpack(input.edge()),
        accepted_slot: Slot(input.edge()),
        commit_slot: Slot(input.edge()),
        applied_slot: Slot(input.edge()),
        heartbeat: input.edge(),
        ping: input.edge(),
        pong: input.edge(),
        lease_asked: input.edge() as u32,
        lease_granted: input.edge() as u32,
        incarnation: Incarnation(input.edge()),
        flags: RowFlags(input.edge()),
    }
}

fn forge_row(shore: &mut Shore, region: RegionId, life: Incarnation, input: &mut Input<'_>) {
    let sequence = input.edge();
    let mut line = [0; ROW_BYTES / 2];
    for half in 0..2 {
        for at in (16..line.len()).step_by(8) {
            overwrite(&mut line, at, &input.edge().to_le_bytes());
        }
        overwrite(&mut line, 0, &(sequence as u32).to_le_bytes());
        overwrite(&mut line, 8, &sequence.to_le_bytes());
        let crc = seeded_crc(life, &[&line[0..4], &line[8..]]);
        overwrite(&mut line, 4, &crc.to_le_bytes());
        shore.scribble(region, half * line.len(), &line);
    }
}

pub(crate) fn ring_seeds() -> Vec<Vec<u8>> {
    let ship = [0u8, 1, 0, 100, 0, 50, 0];
    let (land, poll) = ([2u8], [7u8]);
    let round = [&ship[..], &land, &poll].concat();
    let torn = [&ship[..], &[3, 70, 0], &poll, &[4, 10, 0, 3, 1, 2, 3, 4], &land, &poll].concat();
    let forged = [5u8, 1, 1, 1, 0, 8, 0, 1, 1, 0, 1, 0, 1, 0, 1, 8, 0, 7];
    vec![round.repeat(12), torn.repeat(4), forged.to_vec(), [&round[..], &[6, 0], &torn].concat()]
}

pub(crate) fn row_seeds() -> Vec<Vec<u8>> {
    let publish: Vec<u8> = [0].into_iter().chain((1..=20).flat_map(|at| [at, 0])).collect();
    let round = [&publish[..], &[2, 7]].concat();
    let torn = [&publish[..], &publish, &[3, 70, 0, 7, 2, 7]].concat();
    let forged: Vec<u8> = [5].into_iter().chain([3; 40]).chain([7]).collect();
    vec![round.repeat(5), torn, forged]
}
