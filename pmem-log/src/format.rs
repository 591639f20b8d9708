//! The bytes of a record and of a segment's header, and where records may stand.
//! `docs/log-format.md` is this file in prose.

use quorate_consensus::{Ballot, Incarnation, Slot, ValueKind};

/// The version of the superblock, and so of the whole, that this program writes.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// The oldest version that it reads.
pub(crate) const FORMAT_VERSION_MIN: u32 = 1;
/// The version of segments, in which all versions so far agree.
const SEGMENT_VERSION: u32 = 1;
/// The bytes before each record's payload, and at the start of each segment.
pub(crate) const HEADER_BYTES: usize = 64;
/// Records stand at multiples of this, and so do the stores of a mapped medium.
pub(crate) const WORD_BYTES: u64 = 8;
/// The largest segment; recovery holds one segment in memory.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The smallest segment.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 16 << 10;

/// Positions and slots that a log states are below this, so that no sum of a few of them overflows.
/// At a gigabyte a second it takes a century to get there.
pub(crate) const STATED_MAX: u64 = 1 << 62;

const RECORD_MAGIC: [u8; 4] = *b"QREC";
const SEGMENT_MAGIC: [u8; 8] = *b"QLOGSEG\0";

/// What must agree between a reader and a writer about places. A *position* is
/// `segment number * segment_bytes + offset`: it names a byte of the log for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    pub(crate) incarnation: Incarnation,
    pub(crate) segment_bytes: u64,
    /// Batches begin at multiples of this: 8 where single words can be written, the size of a
    /// page where an acknowledged sector must not be written again.
    pub(crate) alignment: u64,
}

impl Geometry {
    pub(crate) fn position(&self, number: u64, offset: u64) -> u64 {
        number * self.segment_bytes + offset
    }

    pub(crate) fn number(&self, position: u64) -> u64 {
        position / self.segment_bytes
    }

    pub(crate) fn offset(&self, position: u64) -> u64 {
        position % self.segment_bytes
    }

    pub(crate) fn align_up(&self, position: u64) -> u64 {
        position.next_multiple_of(self.alignment)
    }

    /// Where the first record of a segment stands.
    pub(crate) fn first_offset(&self) -> u64 {
        self.align_up(HEADER_BYTES as u64)
    }

    /// The largest payload that fits a segment.
    pub(crate) fn payload_bytes_max(&self) -> u64 {
        self.segment_bytes - self.first_offset() - HEADER_BYTES as u64
    }

    /// CRC-32C over `bytes`, begun with the log's incarnation and the position: what was written
    /// for another log, another segment or another place never validates here.
    fn checksum(&self, position: u64, bytes: &[u8]) -> u32 {
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&self.incarnation.0.to_le_bytes());
        seed[8..].copy_from_slice(&position.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&seed), bytes)
    }
}

/// The bytes that a record of this payload takes.
pub(crate) fn record_bytes(payload: u64) -> u64 {
    HEADER_BYTES as u64 + payload.next_multiple_of(WORD_BYTES)
}

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// No entry: only the promise and the commit slot that every header carries.
    Promise,
    /// An accepted entry of this kind; the payload is its value.
    Entry(ValueKind),
}

/// A record's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) payload_bytes: u32,
    /// The entry's slot; for a promise the highest slot appended so far.
    pub(crate) slot: Slot,
    /// The entry's ballot; for a promise the ballot promised.
    pub(crate) ballot: Ballot,
    /// The highest slot known chosen when the record was staged.
    pub(crate) commit_slot: Slot,
    /// The highest ballot promised or accepted, this record included: a promise that is lost, or
    /// trimmed, is restated by whatever follows it.
    pub(crate) promised: Ballot,
    /// The exact end of the batch before this record's: all below was durable before a byte of
    /// this batch was written.
    pub(crate) durable: u64,
    /// CRC-32C of the payload, as its proposer computed it.
    pub(crate) value_checksum: u32,
    /// Counts openings of the log: what an earlier one left behind its end is not taken for news.
    pub(crate) epoch: u32,
}

impl Header {
    pub(crate) fn bytes(&self) -> u64 {
        record_bytes(u64::from(self.payload_bytes))
    }

    pub(crate) fn encode(&self, geometry: &Geometry, position: u64) -> [u8; HEADER_BYTES] {
        let (kind, value_kind) = match self.kind {
            Kind::Promise => (1, 0),
            Kind::Entry(value) => (2, value as u8),
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&RECORD_MAGIC);
        bytes[8] = kind;
        bytes[9] = value_kind;
        bytes[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.slot.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.ballot.pack().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.commit_slot.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.promised.pack().to_le_bytes());
        bytes[48..56].copy_from_slice(&self.durable.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.value_checksum.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.epoch.to_le_bytes());
        let checksum = geometry.checksum(position, &bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header at `position`; `None` if there is none, whatever the bytes are.
    pub(crate) fn decode(bytes: &[u8], geometry: &Geometry, position: u64) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        if bytes[0..4] != RECORD_MAGIC {
            return None;
        }
        if u32_at(bytes, 4) != geometry.checksum(position, &bytes[8..]) {
            return None;
        }
        let kind = match bytes[8] {
            1 => Kind::Promise,
            2 => Kind::Entry(ValueKind::from_u8(bytes[9])?),
            _ => return None,
        };
        let header = Self {
            kind,
            payload_bytes: u32_at(bytes, 12),
            slot: Slot(u64_at(bytes, 16)),
            ballot: Ballot::unpack(u64_at(bytes, 24)),
            commit_slot: Slot(u64_at(bytes, 32)),
            promised: Ballot::unpack(u64_at(bytes, 40)),
            durable: u64_at(bytes, 48),
            value_checksum: u32_at(bytes, 56),
            epoch: u32_at(bytes, 60),
        };
        header.can_stand_at(position).then_some(header)
    }

    /// Whether the fields agree with each other: what a checksum does not tell when it was computed
    /// over nonsense.
    fn can_stand_at(&self, position: u64) -> bool {
        self.durable <= position && self.slot.0 < STATED_MAX && self.commit_slot.0 < STATED_MAX
    }

    /// A cheap test before [`Header::decode`]: most places of a damaged range fail it.
    pub(crate) fn may_stand_at(bytes: &[u8], offset: usize) -> bool {
        bytes.get(offset..offset + 4).is_some_and(|magic| magic == RECORD_MAGIC)
    }
}

/// The first 64 bytes of a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    /// The exact end of the record before this segment.
    pub(crate) previous_end: u64,
    /// The file held another segment before: what stands behind the last record may be old.
    pub(crate) recycled: bool,
}

impl SegmentHeader {
    pub(crate) fn encode(&self, geometry: &Geometry) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.previous_end.to_le_bytes());
        bytes[32] = u8::from(self.recycled);
        let checksum = geometry.checksum(geometry.position(self.number, 0), &bytes[16..]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header of segment `number`; `None` if these bytes are not it.
    pub(crate) fn decode(bytes: &[u8], geometry: &Geometry, number: u64) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let version = u32_at(bytes, 8);
        if bytes[0..8] != SEGMENT_MAGIC || version != SEGMENT_VERSION {
            return None;
        }
        let checksum = geometry.checksum(geometry.position(number, 0), &bytes[16..]);
        if u32_at(bytes, 12) != checksum || u64_at(bytes, 16) != number {
            return None;
        }
        let previous_end = u64_at(bytes, 24);
        // The segment before ended before this one began.
        let in_order = previous_end <= geometry.position(number, 0);
        in_order.then(|| Self { number, previous_end, recycled: bytes[32] == 1 })
    }
}

/// The little-endian word at `offset`. Callers index arrays whose length they know.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(word)
}

/// The little-endian double word at `offset`, as [`u32_at`].
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_consensus::NodeId;

    const GEOMETRY: Geometry =
        Geometry { incarnation: Incarnation(77), segment_bytes: 1 << 16, alignment: 8 };

    fn header() -> Header {
        Header {
            kind: Kind::Entry(ValueKind::Commands),
            payload_bytes: 13,
            slot: Slot(4),
            ballot: Ballot { round: 9, node: NodeId(2) },
            commit_slot: Slot(3),
            promised: Ballot { round: 10, node: NodeId(1) },
            durable: 65_000,
            value_checksum: 0xdead_beef,
            epoch: 5,
        }
    }

    // Rule W2.
    #[test]
    fn a_header_says_that_a_payload_was_withheld() {
        let withheld = Header { kind: Kind::Entry(ValueKind::Withheld), ..header() };
        let bytes = withheld.encode(&GEOMETRY, 65_600);
        assert_eq!((bytes[8], bytes[9]), (2, 3));
        assert_eq!(Header::decode(&bytes, &GEOMETRY, 65_600), Some(withheld));
    }

    #[test]
    fn a_header_reads_back_only_where_and_in_the_log_for_which_it_was_written() {
        let bytes = header().encode(&GEOMETRY, 65_600);
        assert_eq!(Header::decode(&bytes, &GEOMETRY, 65_600), Some(header()));
        assert_eq!(Header::decode(&bytes, &GEOMETRY, 65_608), None);
        let other = Geometry { incarnation: Incarnation(78), ..GEOMETRY };
        assert_eq!(Header::decode(&bytes, &other, 65_600), None);
        assert_eq!(Header::decode(&bytes[..63], &GEOMETRY, 65_600), None);
    }

    #[test]
    fn headers_that_contradict_themselves_are_refused_whatever_their_checksum_says() {
        let position = 65_600;
        let refused = [
            Header { durable: position + 1, ..header() },
            Header { durable: u64::MAX, ..header() },
            Header { slot: Slot(u64::MAX), ..header() },
            Header { commit_slot: Slot(STATED_MAX), ..header() },
        ];
        for header in refused {
            let bytes = header.encode(&GEOMETRY, position);
            assert_eq!(Header::decode(&bytes, &GEOMETRY, position), None, "{header:?}");
        }
        let segment = SegmentHeader { number: 3, previous_end: u64::MAX, recycled: false };
        assert_eq!(SegmentHeader::decode(&segment.encode(&GEOMETRY), &GEOMETRY, 3), None);
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let whole = header().encode(&GEOMETRY, 65_600);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes, &GEOMETRY, 65_600), None, "bit {bit}");
        }
        let segment = SegmentHeader { number: 3, previous_end: 190_000, recycled: true };
        let whole = segment.encode(&GEOMETRY);
        assert_eq!(SegmentHeader::decode(&whole, &GEOMETRY, 3), Some(segment));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes, &GEOMETRY, 3), None, "bit {bit}");
        }
    }
}
